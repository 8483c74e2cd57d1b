"""A forecast scored beside its rivals: the same points for all, right weights, plain words, whole files."""

import json
import logging
import re

import numpy as np
import pytest
import scores.continuous
import scores.probability
import xarray as xr

from convlstm_wx.data.regions import Region, area_weights
from convlstm_wx.errors import ConfigError, DataError
from convlstm_wx.verification import pairs
from convlstm_wx.verification.describing import in_shown_units
from convlstm_wx.verification.evaluate import evaluate
from convlstm_wx.verification.summary import event_verdicts, table, verdicts, write_scores

DAY = np.timedelta64(24, "h").astype("timedelta64[ns]")
TRAINING = 2000  # days, of 2400
LAT, LON = np.array([30.0, 40.0, 50.0]), np.array([0.0, 10.0, 20.0, 30.0])


def make_truth(seed: int = 0) -> xr.Dataset:
    """Weather of 2400 days: AR(1) about a season; t2m in K, z in m2 s-2 on two levels."""
    generator = np.random.default_rng(seed)
    at = np.datetime64("2000-01-01", "ns") + np.arange(2400) * DAY
    wave = 8 * np.cos(2 * np.pi * np.arange(2400) / 365.25)
    noise = generator.standard_normal((2400, 3, LAT.size, LON.size))
    for step in range(1, 2400):
        noise[step] = 0.7 * noise[step - 1] + 0.7 * noise[step]
    fields = 280 + wave[:, None, None, None] + noise
    coords = {"time": at, "level": [500.0, 850.0], "lat": LAT, "lon": LON}
    return xr.Dataset(
        {
            "t2m": (("time", "lat", "lon"), fields[:, 0], {"units": "K"}),
            "z": (("time", "level", "lat", "lon"), 100 * fields[:, 1:], {"units": "m**2 s**-2"}),
        },
        coords,
    )


def make_forecast(truth: xr.Dataset, start: int = 2050, n: int = 300, leads: int = 3, error: float = 0.3) -> xr.Dataset:
    """Truth plus noise that grows with the lead time, daily starts."""
    generator = np.random.default_rng(1)
    at = truth["time"].values
    inits, lead_times = at[start : start + n], np.arange(1, leads + 1) * DAY
    valid = xr.DataArray(np.add.outer(inits, lead_times), dims=("init_time", "lead_time"))
    forecast = truth.sel(time=valid).drop_vars("time")
    for name in forecast:
        spread = error * np.arange(1, leads + 1) * float(truth[name].std()) / 6
        noise = generator.standard_normal(forecast[name].shape)
        forecast[name] = forecast[name] + noise * spread.reshape(1, -1, *(1,) * (noise.ndim - 2))
        forecast[name].attrs = truth[name].attrs
    return forecast.assign_coords(init_time=inits, lead_time=lead_times, valid_time=valid)


@pytest.fixture(scope="module")
def truth() -> xr.Dataset:
    return make_truth()


@pytest.fixture(scope="module")
def forecast(truth) -> xr.Dataset:
    return make_forecast(truth)


@pytest.fixture(scope="module")
def scored(forecast, truth) -> xr.Dataset:
    return evaluate(forecast, truth, truth["time"].values[:TRAINING])


def test_layout_is_the_one_that_readers_rely_on(scored):
    assert scored["channel"].values.tolist() == ["t2m", "z@500hPa", "z@850hPa"]
    rivals = ["persistence", "damped_persistence", "climatology", "linear_inverse_model"]
    assert scored["system"].values.tolist() == ["model", *rivals]
    assert scored["reference"].values.tolist() == rivals
    assert scored["units"].values.tolist() == ["K", "m2 s-2", "m2 s-2"]
    assert scored["lead_hours"].values.tolist() == [24, 48, 72]
    for name in ("rmse", "rmse_low", "rmse_high", "mae", "bias", "acc", "acc_centred", "activity"):
        assert scored[name].dims == ("system", "channel", "lead_time"), name
    for name in ("skill", "skill_low", "mse_difference", "mse_difference_high", "p_value", "block_length"):
        assert scored[name].dims == ("reference", "channel", "lead_time"), name
    assert scored["observed_activity"].dims == scored["count"].dims == ("channel", "lead_time")
    assert scored["mse_by_init"].dims == ("system", "channel", "lead_time", "init_time")
    assert scored["rmse_map"].dims == scored["bias_map"].dims == ("system", "channel", "lead_time", "lat", "lon")
    assert all(scored[name].attrs["formula"] for name in scored.data_vars)


def test_scores_equal_numpy_and_the_scores_library(scored, forecast, truth):
    given = forecast["z"].sel(level=500.0).isel(lead_time=1)
    observed = given.copy(data=truth["z"].sel(level=500.0, time=given["valid_time"]).values)
    start = given.copy(data=truth["z"].sel(level=500.0, time=given["init_time"].values).values)
    area = xr.DataArray(area_weights(LAT), dims="lat")
    at = scored.sel(channel="z@500hPa").isel(lead_time=1)
    for system, field in (("model", given), ("persistence", start)):
        error = (field - observed).values
        by_hand = np.sqrt((error**2 * area.values[:, None]).sum() / (error[:, :, 0].size / 3 * area.sum() * 4))
        assert at["rmse"].sel(system=system).item() == pytest.approx(by_hand.item(), abs=1e-10, rel=1e-10)
        for name, score in (("mae", scores.continuous.mae), ("bias", scores.continuous.additive_bias)):
            expected = float(score(field, observed, weights=area))
            assert at[name].sel(system=system).item() == pytest.approx(expected, abs=1e-10)
    error = (given - observed).values
    np.testing.assert_allclose(at["bias_map"].sel(system="model"), error.mean(axis=0), atol=1e-10)
    assert at["count"].item() == error.size
    assert at["pairs"].item() == 300


def test_overall_rmse_is_the_pooled_mse_by_init(scored):
    pooled = scored["mse_by_init"].weighted(scored["weight_by_init"]).mean("init_time") ** 0.5
    np.testing.assert_allclose(scored["rmse"], pooled.transpose(*scored["rmse"].dims), atol=1e-10)
    skill = 1 - scored["rmse"].sel(system="model") ** 2 / scored["rmse"].sel(system="persistence") ** 2
    np.testing.assert_allclose(scored["skill"].sel(reference="persistence"), skill, atol=1e-10)
    assert (scored["rmse_low"] <= scored["rmse"]).all()
    assert (scored["rmse"] <= scored["rmse_high"]).all()


def test_persistence_holds_the_state_of_the_init_time(truth):
    perfect_at_start = make_forecast(truth, leads=2, n=40)
    for name in perfect_at_start:
        start = truth[name].sel(time=perfect_at_start["init_time"].values).values[:, None]
        perfect_at_start[name] = perfect_at_start[name].copy(data=np.repeat(start, 2, axis=1))
    scored = evaluate(perfect_at_start, truth, truth["time"].values[:TRAINING])
    np.testing.assert_array_equal(scored["rmse"].sel(system="model"), scored["rmse"].sel(system="persistence"))
    np.testing.assert_array_equal(scored["acc"].sel(system="model"), scored["acc"].sel(system="persistence"))


def test_all_systems_are_scored_on_the_same_points(forecast, truth):
    # Missing in the forecast at one point, in the truth at another: both points are out for everyone.
    holed, holed_truth = forecast[["t2m"]].copy(deep=True), truth[["t2m"]].copy(deep=True)
    holed["t2m"][:, :, 0, 0] = np.nan
    holed_truth["t2m"][:, 2, 3] = np.nan
    scored = evaluate(holed, holed_truth, truth["time"].values[:TRAINING])
    assert (scored["count"] == 300 * 10).all()
    for system in scored["system"].values:
        gone = np.isnan(scored["rmse_map"].sel(system=system).isel(channel=0, lead_time=0).values)
        assert np.argwhere(gone).tolist() == [[0, 0], [2, 3]]


def test_truth_that_was_filled_in_counts_neither_in_scores_nor_in_the_climatology(forecast, truth):
    flag = xr.zeros_like(truth["t2m"], dtype=np.int8)
    flag[:, 0, 0] = 1
    flag[100:200, 2, 3] = 1  # in training: only the climatology can see it
    wrong = truth[["t2m"]].copy(deep=True)
    wrong["t2m"] = wrong["t2m"] + 1000.0 * flag
    wrong["t2m"].attrs["units"] = "K"
    missing = truth[["t2m"]].copy(deep=True)
    missing["t2m"] = missing["t2m"].where(flag == 0)
    marked = wrong.assign_coords(t2m_filled=flag)
    scored, expected = (
        evaluate(forecast[["t2m"]], data, truth["time"].values[:TRAINING]) for data in (marked, missing)
    )
    assert (scored["count"] == 300 * 11).all()
    xr.testing.assert_allclose(scored, expected)


def test_a_missing_init_state_takes_the_pair_from_the_model_too(forecast, truth):
    holed = truth[["t2m"]].copy(deep=True)
    holed["t2m"][2050] = np.nan  # the first init time, and no valid time of any forecast
    scored = evaluate(forecast[["t2m"]], holed, truth["time"].values[:TRAINING])
    assert scored["pairs"].values.tolist() == [[299, 299, 299]]
    assert np.isnan(scored["mse_by_init"].sel(system="model").isel(init_time=0)).all()


def test_a_forecast_that_is_missing_where_the_truth_is_not_is_loud(forecast, truth, caplog):
    holed = forecast[["t2m"]].copy(deep=True)
    holed["t2m"][:, :, 0, :] = np.nan
    with caplog.at_level(logging.WARNING):
        evaluate(holed, truth, truth["time"].values[:TRAINING])
    assert "missing at 33 %" in caplog.text


def test_pairs_beyond_the_truth_are_left_out_and_counted(truth):
    late = make_forecast(truth, start=2300, n=90)
    short = truth.isel(time=slice(0, 2390))
    scored = evaluate(late, short, truth["time"].values[:TRAINING])
    assert scored.attrs["pairs_offered"] == 270
    assert scored.attrs["pairs_without_truth"] == 1 + 2 + 3
    assert scored["pairs"].isel(channel=0).values.tolist() == [89, 88, 87]


def test_edge_rows_weigh_like_their_neighbours_and_not_like_polar_caps(truth):
    # Weights that run to the poles put 85 % of a region's score on its two edge rows.
    lat = np.arange(10.0, 31.0, 1.0)
    wide = truth[["t2m"]].isel(lat=[0] * 21).assign_coords(lat=lat)
    wrong_at_edges = make_forecast(wide, n=30, error=0.0)
    wrong_at_edges["t2m"][:, :, [0, -1]] += 1.0
    mse = evaluate(wrong_at_edges, wide, truth["time"].values[:TRAINING])["rmse"].sel(system="model") ** 2
    np.testing.assert_allclose(mse, 2 / 21, rtol=0.01)


def test_longitudes_of_another_convention_and_a_part_of_the_grid_are_found(forecast, truth):
    part = forecast[["t2m"]].isel(lat=slice(1, 3), lon=slice(1, 3))
    shifted = truth.assign_coords(lon=truth["lon"] - 360.0)
    ours, theirs = (evaluate(part, data, truth["time"].values[:TRAINING]) for data in (truth, shifted))
    xr.testing.assert_equal(ours, theirs)
    assert ours.sizes["lon"] == 2


def test_blocks_of_init_times_do_not_change_the_scores(forecast, truth, scored, monkeypatch):
    monkeypatch.setattr(pairs, "BLOCK_BYTES", 50_000)  # several blocks instead of one
    xr.testing.assert_allclose(evaluate(forecast, truth, truth["time"].values[:TRAINING]), scored, rtol=1e-10)


def test_lazy_files_give_the_same_scores(forecast, truth, scored, tmp_path):
    truth.to_netcdf(tmp_path / "truth.nc")
    with xr.open_dataset(tmp_path / "truth.nc", chunks={"time": 400}) as lazy:
        xr.testing.assert_allclose(evaluate(forecast, lazy, truth["time"].values[:TRAINING]), scored, rtol=1e-10)


def test_confidence_and_seed_change_the_intervals_and_nothing_else(forecast, truth):
    part, training = forecast[["t2m"]], truth["time"].values[:TRAINING]
    wide, reseeded = evaluate(part, truth, training, confidence=0.99), evaluate(part, truth, training, seed=3)
    known = evaluate(part, truth, training)
    for other in (wide, reseeded):
        xr.testing.assert_equal(other["rmse"], known["rmse"])
        assert (other["skill_low"] != known["skill_low"]).all()
    assert (wide["skill_low"] < known["skill_low"]).all()


def test_climatology_and_training_times_are_said_in_the_file(scored):
    assert scored.attrs["climatology"].startswith("mean per day of year and hour of day over 2000 training times")
    assert "uncentred" in scored.attrs["acc"]
    assert "1000 resamples" in scored.attrs["intervals"]
    assert scored.attrs["confidence"] == 0.95


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f, t: (f, t.drop_vars("z")), "no variable z to score against; it has t2m"),
        (lambda f, t: (f, t.isel(level=[0])), "no level 850 hPa to score against; it has 500"),
        (lambda f, t: (f.assign_coords(lat=LAT + 1), t), "3 of the forecast's 3 lat values are not on its grid"),
        (lambda f, t: (f, t.isel(lon=[0, 1])), "2 of the forecast's 4 lon values are not on its grid (first: 20)"),
        (lambda f, t: (f.expand_dims(number=2), t), "has dimension number"),
        (
            lambda f, t: (f, t.assign(t2m=t["t2m"].assign_attrs(units="degC"))),
            "t2m: the forecast is in K, the truth in degC",
        ),
        (lambda f, t: (f, t.isel(time=slice(0, 2000))), "nothing to score: no point has a valid forecast"),
        (lambda f, t: (f, t.isel(time=slice(2000, None))), "none of the 2000 training times is in the data"),
    ],
)
def test_what_does_not_fit_is_an_error_that_names_it(forecast, truth, change, message):
    with pytest.raises(DataError, match=re.escape(message)):
        evaluate(*change(forecast, truth), truth["time"].values[:TRAINING])


def with_differences(scored: xr.Dataset, persistence: list[float], climatology: list[float]) -> xr.Dataset:
    """Scores of one channel whose MSE differences are these, sure if 5 or -5; NaN stands for no test."""
    two = ["persistence", "climatology"]
    one = scored.sel(channel=["t2m"], reference=two, system=["model", *two]).copy(deep=True)
    given = np.array([persistence, climatology])[:, None]
    p = np.where(np.isnan(given), np.nan, np.where(np.abs(given) == 5, 0.05, 0.06))
    for name, values in (("mse_difference", np.nan_to_num(given, nan=-1)), ("skill", -given), ("p_value", p)):
        one[name] = one[name].copy(data=values)
    return one


UNSURE = "shows no significant difference from"


@pytest.mark.parametrize(
    ("persistence", "climatology", "said"),
    [
        ([-5, -5, -5], [-5, -5, -5], "beats persistence and climatology at every lead time."),
        (
            [-5, -5, -5],
            [-5, -5, 0.5],
            f"beats persistence at every lead time and climatology until +48 h and {UNSURE} climatology at +72 h.",
        ),
        (
            [-5, -5, -5],
            [-5, 0, 5],
            f"beats persistence at every lead time and climatology at +24 h, {UNSURE} climatology at +48 h and is "
            "worse than climatology at +72 h.",
        ),
        (
            [5, 5, 5],
            [5, -5, 5],
            "beats climatology at +48 h and is worse than persistence at every lead time and climatology at +24 h and "
            "at +72 h.",
        ),
        (
            [0, -5, -5],
            [5, 0, 0],
            f"beats persistence from +48 h on, {UNSURE} persistence at +24 h and climatology from +48 h on and is "
            "worse than climatology at +24 h.",
        ),
        (
            [np.nan] * 3,
            [np.nan] * 3,
            "has a smaller error than persistence and climatology at every lead time (errors untested: too few "
            "independent init times).",
        ),
    ],
)
def test_verdicts_say_plainly_what_the_intervals_allow(scored, persistence, climatology, said):
    assert verdicts(with_differences(scored, persistence, climatology)) == [f"t2m {said}"]


def test_equal_errors_that_are_not_tested_are_no_larger_ones(scored):
    same = with_differences(scored, [np.nan] * 3, [0.5] * 3)
    same["mse_difference"] = same["mse_difference"] * 0
    assert verdicts(same) == [
        f"t2m {UNSURE} climatology at every lead time and has the same error as persistence at every lead time."
    ]


def test_verdict_of_a_channel_without_pairs(scored):
    nothing = with_differences(scored, [0, 0, 0], [0, 0, 0])
    nothing["mse_difference"] = nothing["mse_difference"] * np.nan
    assert verdicts(nothing) == ["t2m has nothing to score."]


def test_table_shows_all_systems_units_and_marks_the_best(scored):
    lines = table(scored).splitlines()
    assert "z@850hPa (m2 s-2)" in lines
    row = lines[lines.index("t2m (K)") + 1].split()
    rmse = scored["rmse"].sel(channel="t2m").isel(lead_time=0).values
    assert row[:2] == ["+24", "h"]
    assert row[2] == f"{rmse[0]:.3f}*"
    assert row[3:7] == [f"{value:.3f}" for value in rmse[1:]]
    assert row[-1] == "300"
    assert max(map(len, lines)) <= 100


def test_small_units_do_not_run_into_each_other(scored):
    tiny = scored.copy()
    for name in ("rmse", "bias"):
        tiny[name] = tiny[name] * 1e-9
    rows = [line.split() for line in table(tiny).splitlines() if line.lstrip().startswith("+")]
    assert {len(row) for row in rows} == {11}


def test_table_of_many_lead_times_shows_ten_with_the_first_and_the_last(scored):
    many = xr.concat([scored.isel(lead_time=[0])] * 40, "lead_time")
    many = many.assign_coords(lead_time=np.arange(1, 41) * DAY, lead_hours=("lead_time", np.arange(1, 41) * 24.0))
    text = table(many)
    assert len(re.findall(r"\+\d+ h", text)) == 3 * 10
    assert "+24 h" in text
    assert "+960 h" in text
    assert "10 of 40 lead times" in text


def test_written_scores_come_back_the_same(scored, tmp_path):
    nc, csv, happened, told = write_scores(scored, tmp_path)
    with xr.open_dataset(nc, decode_timedelta=True) as back:
        xr.testing.assert_allclose(back, scored, rtol=1e-6)
        assert back["lead_time"].values.tolist() == scored["lead_time"].values.tolist()
        assert back.attrs == scored.attrs
        assert back["rmse"].attrs["formula"] == scored["rmse"].attrs["formula"]
        assert back["lead_hours"].attrs["units"] == "h"
    lines = csv.read_text().splitlines()
    assert lines[0].startswith("channel,units,lead_hours,system,rmse,")
    assert len(lines) == 1 + 3 * 3 * 5
    persistence = dict(zip(lines[0].split(","), next(line for line in lines if ",persistence," in line).split(",")))
    assert float(persistence["model_skill"]) == pytest.approx(
        scored["skill"].sel(reference="persistence", channel="t2m").values[0], rel=1e-5
    )
    rows = happened.read_text().splitlines()
    assert rows[0].startswith("channel,units,lead_hours,system,threshold_label,threshold_value,pod,far,csi,")
    assert "model_csi_difference_low" in rows[0]
    assert len(rows) == 1 + 3 * 3 * 5 * 2
    said = json.loads(told.read_text())
    assert said["verdicts"] == verdicts(scored)
    assert said["formulas"]["csi"]["formula"] == scored["csi"].attrs["formula"]
    assert said["method"]["weights"] == scored.attrs["weights"]
    assert len(said["scores"]) == 3 * 3 * 5
    assert said["scores"][0]["model_skill"] is None  # the model against itself
    assert not list(tmp_path.glob(".*"))


def test_a_folder_that_cannot_be_written_is_an_error_of_the_user(scored, tmp_path):
    with pytest.raises(ConfigError, match="cannot be written"):
        write_scores(scored, tmp_path / "absent")


def test_rivals_lie_where_they_should(scored):
    rmse = scored["rmse"].isel(lead_time=-1)
    assert (rmse.sel(system="damped_persistence") < rmse.sel(system="persistence")).all()
    assert (rmse.sel(system="damped_persistence") < rmse.sel(system="climatology")).all()
    # Points are independent here: what the inverse model learns of the others is nothing, or nearly so.
    np.testing.assert_allclose(
        rmse.sel(system="linear_inverse_model"), rmse.sel(system="damped_persistence"), rtol=0.03
    )
    assert "EOFs of all channels" in scored.attrs["linear_inverse_model"]


def test_baselines_can_be_chosen_and_the_choice_does_not_move_the_others(forecast, truth):
    part, training = forecast[["t2m"]], truth["time"].values[:TRAINING]
    two, three = (
        evaluate(part, truth, training, baselines=names) for names in (["persistence"], ["damped_persistence"])
    )
    assert two["reference"].values.tolist() == ["persistence", "climatology"]
    assert three["reference"].values.tolist() == ["persistence", "damped_persistence", "climatology"]
    for name in ("rmse", "hits"):  # with the thresholds of the events
        xr.testing.assert_allclose(two[name], three[name].sel(system=two["system"]))


def test_too_short_a_training_leaves_the_inverse_model_out_unless_it_was_asked_for(forecast, truth, caplog):
    part, training = forecast[["t2m"]].isel(init_time=slice(0, 20)), truth["time"].values[:30]
    scored = evaluate(part, truth, training)
    assert "linear_inverse_model" not in scored["system"]
    assert "needs 40 training times or more, there are 30" in caplog.text
    with pytest.raises(DataError, match="needs 40 training times"):
        evaluate(part, truth, training, baselines=["linear_inverse_model"])


def test_no_rival_learns_from_what_it_is_scored_on(forecast, truth):
    # Other values after the last init time change the errors, but not what persistence, damping and model forecast:
    # errors of the earlier init times stay the same to the last bit.
    changed = truth.copy(deep=True)
    changed["t2m"][2200:] += 50.0
    a, b = (
        evaluate(forecast[["t2m"]].isel(init_time=slice(0, 140)), data, truth["time"].values[:TRAINING])
        for data in (truth, changed)
    )
    np.testing.assert_array_equal(a["mse_by_init"].values, b["mse_by_init"].values)


def test_diurnal_persistence_is_scored_where_the_step_is_under_a_day(truth):
    hourly = truth[["t2m"]].assign_coords(time=truth["time"].values[0] + np.arange(2400) * DAY // 4)
    inits, leads = hourly["time"].values[2050:2150], np.arange(1, 5) * DAY // 4
    valid = xr.DataArray(np.add.outer(inits, leads), dims=("init_time", "lead_time"))
    forecast = hourly.sel(time=valid).drop_vars("time").assign_coords(init_time=inits, lead_time=leads)
    forecast["t2m"].attrs = truth["t2m"].attrs
    scored = evaluate(forecast, hourly, hourly["time"].values[:TRAINING])
    rmse = scored["rmse"].sel(channel="t2m")
    before = hourly["t2m"].sel(time=inits + leads[0] - DAY).values - hourly["t2m"].sel(time=inits + leads[0]).values
    area = area_weights(LAT)[:, None]
    expected = np.sqrt(np.mean(area * before**2))
    assert float(rmse.sel(system="diurnal_persistence")[0]) == pytest.approx(expected, rel=1e-10)
    assert float(rmse.sel(system="diurnal_persistence")[3]) == float(rmse.sel(system="persistence")[3])
    assert scored["hour"].values.tolist() == [0, 6, 12, 18]


def test_thresholds_and_boxes_are_scored(forecast, truth):
    part, training = forecast[["t2m"]], truth["time"].values[:TRAINING]
    box = Region(35, 55, 5, 35)
    scored = evaluate(part, truth, training, thresholds=["t2m=285,p80"], boxes=[box], baselines=["persistence"])
    assert scored["threshold_label"].sel(channel="t2m").values.tolist() == ["285 K", "p80"]
    happened = (scored["hits"] + scored["misses"]).sel(system="model", channel="t2m").isel(lead_time=0, threshold=0)
    observed = truth["t2m"].sel(time=forecast["valid_time"].isel(lead_time=0))
    assert int(happened) == int((observed >= 285).sum())
    inside = evaluate(
        part.isel(lat=[1, 2], lon=[1, 2, 3]), truth, training, baselines=["persistence"]
    )  # rows of a box weigh as in the region, up to a factor
    weights = area_weights(LAT)[1:]
    mse = (scored["rmse_map"] ** 2).isel(lat=[1, 2], lon=[1, 2, 3]).mean("lon")
    expected = (mse * xr.DataArray(weights / weights.sum(), dims="lat")).sum("lat") ** 0.5
    np.testing.assert_allclose(scored["rmse_by_box"].isel(box=0), expected, rtol=1e-10)
    np.testing.assert_allclose(scored["rmse_by_box"].isel(box=0), inside["rmse"], rtol=1e-2)
    assert scored["box"].values.tolist() == ["35..55N 5..35E"]
    assert (scored["skill_low_by_box"] <= scored["skill_by_box"]).all()
    with pytest.raises(DataError, match="--box"):
        evaluate(part, truth, training, boxes=[Region(-10, 0, 0, 10)])


def test_differences_of_event_scores_are_those_of_the_scores_with_an_interval_about_them(scored):
    for name in ("pod", "far", "csi", "ets", "frequency_bias", "fss"):
        ours, theirs = scored[name].sel(system="model", drop=True), scored[name].drop_sel(system="model")
        difference, low, high = (scored[f"{name}_difference{part}"] for part in ("", "_low", "_high"))
        expected = (ours - theirs.rename(system="reference")).transpose(*difference.dims)
        np.testing.assert_allclose(difference, expected, atol=1e-12, err_msg=name)
        tested = np.isfinite(low)
        assert tested.sel(reference="persistence").all(), name
        assert ((low <= difference) & (difference <= high)).where(tested, True).all(), name


def test_events_get_a_sentence_where_a_difference_is_clear(scored):
    said = event_verdicts(scored)
    assert said[0].startswith("t2m anomaly >= p90 (CSI) beats persistence, damped persistence, climatology and the")
    unclear = scored.assign(csi_p_value=scored["csi_p_value"] * 0 + 0.06)
    assert event_verdicts(unclear) == []
    unclear["csi_p_value"][0, 0, 0, 0], unclear["csi_difference"][0, 0, 0, 0] = 0.01, -0.2
    assert event_verdicts(unclear) == ["t2m anomaly >= p90 (CSI) is worse than persistence at +24 h."]


def test_an_ensemble_is_scored_by_its_mean_and_its_members(forecast, truth):
    part, training = forecast[["t2m"]], truth["time"].values[:TRAINING]
    noise = xr.DataArray([-1.0, 0.0, 1.0], dims="realization")
    members = (part + noise).transpose("init_time", "realization", ...)
    members["t2m"].attrs = truth["t2m"].attrs
    scored, of_mean = (evaluate(data, truth, training, baselines=["persistence"]) for data in (members, part))
    np.testing.assert_allclose(scored["rmse"], of_mean["rmse"], rtol=1e-10)
    np.testing.assert_allclose(scored["spread"], np.sqrt(4 / 3), rtol=1e-10)  # variance 1, (M + 1) / M
    observed = part["t2m"].copy(data=truth["t2m"].sel(time=part["valid_time"]).values)
    expected = scores.probability.crps_for_ensemble(
        members["t2m"],
        observed,
        "realization",
        method="fair",
        preserve_dims="lead_time",
        weights=xr.DataArray(area_weights(LAT), dims="lat"),
    )
    np.testing.assert_allclose(scored["crps"].sel(channel="t2m"), expected, atol=1e-10)
    assert (scored["crps_low"] <= scored["crps"]).all()
    assert scored.attrs["members"] == 3
    assert "CRPS" in table(scored)
    lone = evaluate(members.isel(realization=[1]), truth, training, baselines=["persistence"])
    assert "crps" not in lone
    xr.testing.assert_allclose(lone["rmse"], of_mean["rmse"])


def test_rain_is_shown_in_millimetres_and_kept_in_the_units_of_the_file(truth):
    rain = truth.rename(t2m="tp")[["tp"]]
    rain["tp"] = (rain["tp"] - 285).clip(min=0) / 1000
    rain["tp"].attrs["units"] = "m"
    scored = evaluate(make_forecast(rain), rain, rain["time"].values[:TRAINING], baselines=["persistence"])
    shown = in_shown_units(scored)
    assert shown["units"].values.tolist() == ["mm"]
    np.testing.assert_allclose(shown["rmse"], 1000 * scored["rmse"])
    np.testing.assert_allclose(shown["mse_difference"], 1e6 * scored["mse_difference"])
    np.testing.assert_array_equal(shown["skill"], scored["skill"])
    assert "tp (mm)" in table(scored)
    assert scored["units"].values.tolist() == ["m"]


@pytest.mark.real_data
def test_real_weather_persistence_and_climatology_have_the_errors_that_are_known(real_data):
    # README of the data: one day ahead on a later year, persistence 634 Pa, 663 m2 s-2, 2.83 K.
    with xr.open_dataset(real_data / "erainterim_weurope_1p5deg_daily12utc_2000-2008_msl_z500_t850.nc") as era:
        era = era.sortby("lat").transpose("time", "lat", "lon").load()
    at = era["time"].values
    inits = at[2920:3287]
    forecast = era.sel(time=inits).rename(time="init_time").expand_dims(lead_time=[DAY], axis=1)
    scored = evaluate(forecast, era, at[:2500])
    np.testing.assert_allclose(
        scored["rmse"].sel(system="persistence", channel=["msl", "z500", "t850"])[:, 0], [634, 663, 2.83], rtol=0.1
    )
    np.testing.assert_allclose(
        scored["rmse"].sel(system="climatology", channel=["msl", "z500", "t850"])[:, 0], [964, 1146, 4.09], rtol=0.15
    )
