"""Two forecasts on common pairs: who is better, by how much, where, and is it luck."""

import csv
import json
import re

import numpy as np
import pytest
import xarray as xr

from convlstm_wx.cli import main
from convlstm_wx.errors import DataError
from convlstm_wx.report import comparison as report
from convlstm_wx.verification.compare import agreement, compare, errors_of_scores, open_scores, percent, sentences
from convlstm_wx.verification.evaluate import evaluate
from convlstm_wx.verification.pairing import errors_of_forecasts, scores_of_forecast
from convlstm_wx.verification.recording import write_comparison
from convlstm_wx.verification.significance import Dependence
from convlstm_wx.verification.summary import write_scores
from convlstm_wx.verification.where import discoveries, p_values
from tests.weather import autoregressive, times

DAY = np.timedelta64(24, "h").astype("timedelta64[ns]")


def make_scores(better: float = 0.0, n: int = 300, start: int = 0, leads: int = 2, seed: int = 0) -> xr.Dataset:
    """Scores as evaluate gives them, as far as compare reads them; the model's MSE is 10 + weather - better."""
    init_times = np.datetime64("2000-01-01", "ns") + (start + np.arange(n)) * DAY
    weather = np.random.default_rng(0).standard_normal(2000)[start : start + n]  # the same for both evaluations
    own = 0.2 * np.random.default_rng(seed).standard_normal((leads, n))
    mse = np.stack([10 + weather + own - better, np.tile(20 + weather, (leads, 1))])[:, None]
    lead_times = np.arange(1, leads + 1) * DAY
    return xr.Dataset(
        {
            "mse_by_init": (("system", "channel", "lead_time", "init_time"), mse),
            "weight_by_init": (("channel", "lead_time", "init_time"), np.full((1, leads, n), 9.0)),
        },
        {
            "system": ["model", "persistence"],
            "channel": ["t850"],
            "units": ("channel", ["K"]),
            "lead_time": lead_times,
            "lead_hours": ("lead_time", lead_times / np.timedelta64(1, "h")),
            "init_time": init_times,
            "lat": [40.0, 50.0],
            "lon": [0.0, 10.0],
        },
    )


def gains_of(a: xr.Dataset, b: xr.Dataset, **options: float) -> xr.Dataset:
    return compare(errors_of_scores(a, b), **options)


# by how much


def test_gain_is_positive_and_sure_where_b_is_better():
    gains = gains_of(make_scores(seed=2), make_scores(better=1.0, seed=1))
    np.testing.assert_allclose(gains["gain"], 0.1, atol=0.01)
    assert (gains["gain_low"] > 0.08).all()
    assert (gains["mse_difference_high"] < 0).all()
    assert re.match(
        r"t850: B is better at every lead time, by 1\d\.\d % \(\d+\.\d to 1\d\.\d\) at \+24 h and ", sentences(gains)[0]
    )


def test_what_is_hard_for_both_cancels():
    # The weather varies by 1, the difference is 0.1: told apart because the pairs share the weather.
    gains = gains_of(make_scores(seed=2), make_scores(better=0.1, seed=1))
    assert (gains["gain_low"] > 0).all()


def test_no_difference_is_said_as_such():
    gains = gains_of(make_scores(seed=1), make_scores(seed=2))
    assert sentences(gains) == ["t850: no significant difference at every lead time."]


def test_an_evaluation_makes_the_errors_of_itself():
    assert sentences(gains_of(make_scores(), make_scores())) == [
        "t850: B makes the same errors as A at every lead time."
    ]


def test_a_lead_time_alone_is_told_with_its_size_and_who_is_worse():
    b = make_scores(seed=2)
    b["mse_by_init"][0, :, 0] += 1.0
    said = sentences(gains_of(make_scores(seed=1), b), ("old", "new"))[0]
    assert re.match(r"t850: new is worse at \+24 h by 1\d\.\d % \(\d+\.\d to 1\d\.\d\); no significant", said)


def test_too_few_independent_init_times_are_said():
    few = [make_scores(n=5, leads=1, better=better) for better in (0, 1)]
    assert "untested for want of independent init times, at +24 h by" in sentences(gains_of(*few))[0]


@pytest.mark.parametrize(
    ("value", "said"), [(6.34, "6.3"), (0.05, "0.1"), (0.012, "0.01"), (-0.004, "-0.004"), (-2.0, "-2.0")]
)
def test_percentages_are_never_rounded_to_nothing(value, said):
    assert percent(value) == said


def test_exchanging_a_and_b_turns_the_difference():
    one, other = make_scores(better=0.5, seed=1), make_scores(seed=2)
    ab, ba = gains_of(one, other), gains_of(other, one)
    np.testing.assert_allclose(ab["mse_difference"], -ba["mse_difference"])
    np.testing.assert_allclose(ab["mse_difference_low"], -ba["mse_difference_high"], rtol=0.1)


def test_only_common_channels_lead_times_and_init_times_count_and_are_counted():
    gains = gains_of(make_scores(leads=3, n=200), make_scores(leads=2, start=50, n=300))
    assert gains.sizes["lead_time"] == 2
    assert (gains["pairs"] == 150).all()
    assert [gains.attrs[name] for name in ("pairs_a", "pairs_b", "pairs_common")] == [600, 600, 300]


def test_pairs_scored_on_other_points_are_left_out_and_said(caplog):
    b = make_scores(seed=2)
    b["mse_by_init"][1, :, :, :100] += 1.0  # persistence differs: other points or another truth
    gains = gains_of(make_scores(seed=1), b)
    assert (gains["pairs"] == 200).all()
    assert gains.attrs["pairs_common"] == 400
    assert "200 of 600 common pairs left out for some channel, as A and B were scored on different" in caplog.text


def test_months_are_those_of_the_valid_time():
    b = make_scores(n=366, leads=1, seed=2)
    b["mse_by_init"][0, 0, 0, 30:59] -= 5.0  # from 31 January, valid in February
    gains = gains_of(make_scores(n=366, leads=1, seed=1), b)["gain_by_month"].isel(channel=0, lead_time=0)
    assert gains.sel(month=2).item() > 0.4
    assert abs(gains.drop_sel(month=2)).max() < 0.05


def test_confidence_and_seed_change_the_intervals():
    pair = make_scores(seed=1), make_scores(seed=2)
    usual = gains_of(*pair)["gain_low"]
    assert (gains_of(*pair, confidence=0.5)["gain_low"] > usual).all()
    assert (gains_of(*pair, seed=1)["gain_low"] != usual).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: b.assign_coords(channel=["t2m"]), "no channels in common"),
        (lambda b: b.assign_coords(lead_time=b["lead_time"] + DAY * 50), "no lead times in common"),
        (lambda b: b.assign_coords(init_time=b["init_time"] + DAY * 5000), "no init times in common"),
        (lambda b: b.assign_coords(units=("channel", ["degC"])), "other units: t850 in degC instead of K"),
        (lambda b: b.assign_coords(lat=[40.0, 60.0]), "other grids: latitudes 40 to 60 by 20 (2) instead of 40 to 50"),
        (lambda b: b.assign(mse_by_init=b["mse_by_init"] + 1), "scored on different points or truths"),
    ],
)
def test_what_cannot_be_compared_is_an_error_that_says_why(change, message):
    with pytest.raises(DataError, match=re.escape(message)):
        gains_of(make_scores(), change(make_scores()))


def test_scores_are_opened_from_a_file_or_its_folder(tmp_path):
    make_scores().to_netcdf(tmp_path / "scores.nc")
    xr.testing.assert_equal(open_scores(tmp_path), open_scores(tmp_path / "scores.nc"))
    assert open_scores(tmp_path)["lead_time"].dtype == "timedelta64[ns]"


def test_what_holds_no_scores_is_an_error_that_names_the_file(tmp_path):
    (tmp_path / "text.nc").write_text("no scores")
    xr.Dataset({"t2m": 1.0}).to_netcdf(tmp_path / "other.nc")
    for path, message in (
        (tmp_path, "scores.nc"),
        (tmp_path / "text.nc", "text.nc"),
        (tmp_path / "other.nc", "other.nc"),
    ):
        with pytest.raises(DataError, match=message):
            open_scores(path)


# forecasts


def make_truth(days: int = 400) -> xr.Dataset:
    at = times("2000-01-01", "2002-01-01")[:days]
    fields = 280 + autoregressive(days, (5, 6), 0.5, seed=0)
    return xr.Dataset(
        {"t2m": (("time", "lat", "lon"), fields, {"units": "K"})},
        {"time": at, "lat": np.linspace(40, 48, 5), "lon": np.linspace(0, 10, 6)},
        {"source": "truth.nc"},
    )


def make_forecast(
    truth: xr.Dataset, error: float, *, seed: int, west: float | None = None, step: np.timedelta64 = DAY
) -> xr.Dataset:
    """The truth with errors of this size; west: the size in the western half."""
    inits, leads = truth["time"].values[:-3], np.arange(1, 3) * step
    valid = xr.DataArray(np.add.outer(inits, leads), dims=("init_time", "lead_time"))
    made = truth.sel(time=valid).drop_vars("time").assign_coords(init_time=inits, lead_time=leads)
    size = np.full(6, error)
    if west is not None:
        size[:3] = west
    made["t2m"] = made["t2m"] + size * np.random.default_rng(seed).standard_normal(made["t2m"].shape)
    made["t2m"].attrs = truth["t2m"].attrs
    made.coords["valid_time"] = valid
    return made


def test_forecasts_are_compared_where_both_are_valid():
    truth = make_truth()
    a, b = make_forecast(truth, 1.0, seed=1), make_forecast(truth, 1.0, seed=2)
    b["t2m"][:, :, 0] = np.nan  # the first row
    a["t2m"][:, :, 1] = 1e6  # so wrong that it would be seen
    b["t2m"][:, :, 1] = np.nan
    errors = errors_of_forecasts([a], [b], truth)
    np.testing.assert_allclose(errors["mse_a"].mean(), 1.0, atol=0.05)
    assert np.isnan(errors["mse_map_a"].isel(lat=[0, 1])).all()
    assert np.isfinite(errors["mse_map_a"].isel(lat=2)).all()


def test_maps_show_where_it_helps_and_mark_only_that():
    truth = make_truth()
    gains = compare(
        errors_of_forecasts([make_forecast(truth, 1.0, seed=1)], [make_forecast(truth, 1.0, seed=2, west=0.7)], truth)
    )
    west, east = (gains["significant_map"].isel(lon=part) for part in (slice(0, 3), slice(3, 6)))
    assert west.mean() > 0.95
    assert east.mean() < 0.1
    np.testing.assert_allclose(gains["gain_map"].isel(lon=slice(0, 3)).mean(), 1 - 0.49, atol=0.05)


def test_scores_of_a_forecast_are_those_of_evaluate():
    truth = make_truth()
    forecast = make_forecast(truth, 1.0, seed=1)
    scores = scores_of_forecast(forecast, truth)
    evaluated = evaluate(forecast, truth, truth["time"].values, baselines=[])
    for name in ("mse_by_init", "weight_by_init"):
        theirs = evaluated[name].sel(system=scores["system"]) if "system" in scores[name].dims else evaluated[name]
        np.testing.assert_allclose(scores[name], theirs.transpose(*scores[name].dims))
    pair = compare(errors_of_scores(scores, scores_of_forecast(make_forecast(truth, 0.5, seed=3), truth)))
    np.testing.assert_allclose(pair["gain"], 0.75, atol=0.02)


def test_several_runs_are_averaged_and_told_apart():
    truth = make_truth()
    a = [make_forecast(truth, 1.0, seed=seed) for seed in (1, 2)]
    b = [make_forecast(truth, size, seed=seed) for size, seed in ((0.5, 3), (1.2, 4))]
    gains = compare(errors_of_forecasts(a, b, truth))
    np.testing.assert_allclose(gains["gain"], 1 - (0.25 + 1.44) / 2, atol=0.03)
    np.testing.assert_allclose(gains["gain_by_run"].mean(("channel", "lead_time")), [0.75, -0.44], atol=0.03)
    assert "in 1 of 2 pairs of runs" in next(agreement(gains))


def test_of_two_grids_the_points_that_both_have_count():
    truth = make_truth(60)
    a, b = (make_forecast(truth, 1.0, seed=seed) for seed in (1, 2))
    part = {"lat": slice(1, 3), "lon": slice(2, None)}
    expected = errors_of_forecasts([a.isel(part)], [b.isel(part)], truth)
    for left, right in ((a, b.isel(part)), (a.isel(part), b.assign_coords(lon=b["lon"] + 360))):
        errors = errors_of_forecasts([left], [right], truth)
        np.testing.assert_allclose(errors["mse_a"], expected["mse_a"])
        np.testing.assert_allclose(errors["mse_b"], expected["mse_b"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda b: b.assign_coords(lon=b["lon"] + 1),
            "B does not fit A: longitudes 1 to 11 by 2 (6) instead of 0 to 10",
        ),
        (lambda b: b.isel(lat=slice(1, None)).assign_coords(lat=[41.0, 43, 45, 47]), "latitudes 41 to 47 by 2 (4)"),
        (lambda b: b.assign(t2m=b["t2m"].assign_attrs(units="degC")), "t2m in degC instead of K"),
        (lambda b: b.rename(t2m="t850"), "no variables in common: A has t2m, B has t850"),
        (lambda b: b.assign_coords(init_time=b["init_time"] + 5000 * DAY), "no init times in common"),
        (lambda b: b.assign_coords(lead_time=b["lead_time"] + 50 * DAY), "no lead times in common"),
    ],
)
def test_forecasts_that_do_not_fit_are_refused_naming_the_difference(change, message):
    truth = make_truth(60)
    forecast = make_forecast(truth, 1.0, seed=1)
    with pytest.raises(DataError, match=re.escape(message)):
        errors_of_forecasts([forecast], [change(forecast)], truth)


# many tests at once


def test_p_values_are_as_often_small_as_chance_makes_them():
    # 400 points without any difference, with a memory of 0.6: of a test at 5 %, 5 % are below.
    series = autoregressive(300, (400,), 0.6, seed=1)
    dependence = Dependence.of(series[:, 0], np.empty((300, 0)))
    p = p_values(series, dependence, dependence.block(1) or 0)
    assert 0.02 < (p < 0.05).mean() < 0.09
    assert not discoveries(p, 0.05).mean() > 0.01


def test_benjamini_and_hochberg_on_their_own_example():
    # Benjamini and Hochberg (1995), section 3.2: of 15 p-values four are declared significant at a rate of 0.05.
    p = [
        0.0001,
        0.0004,
        0.0019,
        0.0095,
        0.0201,
        0.0278,
        0.0298,
        0.0344,
        0.0459,
        0.324,
        0.4262,
        0.5719,
        0.6528,
        0.759,
        1,
    ]
    assert discoveries(np.array(p), 0.05).sum() == 4
    assert not discoveries(np.array([0.5, np.nan]), 0.05).any()


def test_a_point_without_data_is_no_discovery_and_one_without_difference_is_none():
    series = np.random.default_rng(0).standard_normal((100, 3)) + 5
    series[:, 0], series[:, 1] = np.nan, 0.0
    p = p_values(series, Dependence.of(series[:, 2], np.empty((100, 0))), 5)
    assert np.isnan(p[0])
    assert p[1] == 1.0
    assert discoveries(p, 0.05).tolist() == [False, False, True]


# files and pages


def test_files_hold_every_lead_time_and_month(tmp_path):
    gains = gains_of(make_scores(seed=2), make_scores(better=1.0, seed=1))
    paths = write_comparison(gains, ["said"], tmp_path)
    assert [path.name for path in paths] == ["comparison.nc", "comparison.csv", "comparison.json"]
    rows = list(csv.DictReader(paths[1].open()))
    assert {row["month"] for row in rows} == {"all", *(str(month) for month in range(1, 11))}
    assert float(rows[0]["gain"]) == pytest.approx(gains["gain"].values[0, 0], rel=1e-5)
    told = json.loads(paths[2].read_text())
    assert told["verdicts"] == ["said"]
    assert told["formulas"]["gain"]["formula"].startswith("1 - MSE of B")
    with xr.open_dataset(paths[0], decode_timedelta=True) as kept:
        assert kept["gain_by_month"].dims == ("month", "channel", "lead_time")


def test_the_page_says_how_points_were_marked(tmp_path):
    truth = make_truth()
    gains = compare(
        errors_of_forecasts([make_forecast(truth, 1.0, seed=1)], [make_forecast(truth, 0.9, seed=2)], truth)
    )
    figures = report.draw(gains)
    assert len(figures) == 3
    page = report.write_page(
        tmp_path / "c.html", title="T", said=["B <is> better"], gains=gains, figures=figures, facts={"A": "x"}
    )
    text = page.read_text()
    for words in (
        "false discovery rate of 5%",
        "Benjamini-Hochberg",
        "B &lt;is&gt; better",
        "794 of init and lead time",
    ):
        assert words in text
    assert not re.search(r'(src|href)="http', text)


@pytest.mark.parametrize(("p", "is_bold"), [(0.04, True), (0.06, False), (np.nan, False)])
def test_the_table_of_the_page_has_bold_what_the_sentences_call_better(tmp_path, p, is_bold):
    truth = make_truth()
    errors = errors_of_forecasts([make_forecast(truth, 1.0, seed=1)], [make_forecast(truth, 0.9, seed=2)], truth)
    gains = compare(errors)
    known = gains.assign(p_value=gains["p_value"] * 0 + p)
    page = report.write_page(tmp_path / "c.html", title="T", said=[], gains=known, figures={}, facts={})
    assert ('<td class="best">' in page.read_text()) == is_bold


# the command line


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """truth.nc, two forecast files and an evaluation of each."""
    folder = tmp_path_factory.mktemp("compare")
    truth = make_truth()
    truth.drop_attrs(deep=False).to_netcdf(folder / "truth.nc")
    for name, size, seed in (("a", 1.0, 1), ("b", 0.8, 2)):
        forecast = make_forecast(truth, size, seed=seed)
        forecast.to_netcdf(folder / f"{name}.nc")
        scores_of_forecast(forecast, truth).to_netcdf(folder / f"scores_{name}.nc")
    return folder


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def test_forecast_files_are_compared_with_maps(files, tmp_path, capsys):
    assert run("compare", files / "a.nc", files / "b.nc", "--data", files / "truth.nc", "--output", tmp_path / "c") == 0
    said = capsys.readouterr().out
    assert "t2m: B is better at every lead time, by 3" in said
    assert "794 in common of init and lead time, of 794 in A and 794 in B" in said
    names = sorted(path.name for path in (tmp_path / "c").iterdir())
    assert names == ["comparison.csv", "comparison.html", "comparison.json", "comparison.nc"]
    with xr.open_dataset(tmp_path / "c/comparison.nc", decode_timedelta=True) as gains:
        assert gains["significant_map"].mean() > 0.9


def test_an_evaluation_and_a_forecast_file_are_compared_without_maps(files, tmp_path, capsys):
    assert run("compare", files / "scores_a.nc", files / "b.nc", "--data", files / "truth.nc") == 0
    said = capsys.readouterr().out
    assert "t2m: B is better at every lead time" in said
    assert "maps: none" in said
    assert run("compare", files / "scores_a.nc", files / "scores_b.nc", "--output", tmp_path / "c") == 0
    assert "t2m: B is better at every lead time" in (tmp_path / "c/comparison.html").read_text()


def test_gaps_in_data_of_every_six_hours_leave_pairs_of_an_evaluation_and_a_forecast_file(tmp_path, capsys):
    step = DAY // 4
    whole = make_truth().assign_coords(time=times("2000-01-01", "2001-01-01", 6)[:400])
    forecasts = [make_forecast(whole, size, seed=seed, step=step) for size, seed in ((1.0, 1), (0.8, 2))]
    holed = whole.where(np.random.default_rng(0).random(whole["t2m"].shape) > 0.1).drop_attrs(deep=False)
    holed.to_netcdf(tmp_path / "truth.nc")
    scored = evaluate(forecasts[0], holed, whole["time"].values, baselines=["diurnal_persistence"])
    write_scores(scored, tmp_path)
    forecasts[1].to_netcdf(tmp_path / "b.nc")
    assert run("compare", tmp_path, tmp_path / "b.nc", "--data", tmp_path / "truth.nc") == 0
    said = capsys.readouterr().out
    assert "789 in common of init and lead time, of 794" in said  # the first have no same hour of the day before
    assert "left out" not in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.nc", "nothing.nc"], "nothing.nc: no such file"),
        (["a.nc", "scores_b.nc"], "--data is needed, as A is a forecast file"),
        (["scores_a.nc", "scores_b.nc", "--data", "truth.nc"], "--data: does nothing here"),
        (["a.nc", "b.nc", "--data", "truth.nc", "--months", "2001"], "--months: does nothing here"),
        (["truth.nc", "scores_b.nc"], "truth.nc: holds no mse_by_init"),
    ],
)
def test_mistakes_are_told_in_one_line(files, tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(files)
    assert run("compare", *arguments, "--output", tmp_path / "c") == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not (tmp_path / "c").exists()
