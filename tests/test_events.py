"""Events: counts by eye, scores from a published table, fractions like those of the `scores` library."""

import numpy as np
import pytest
import scores.categorical
import scores.spatial
import xarray as xr

from convlstm_wx.conventions import Channel
from convlstm_wx.errors import ConfigError
from convlstm_wx.verification import events
from convlstm_wx.verification.climatology import fit_climatology
from convlstm_wx.verification.events import COUNTS, Threshold, count, parse, pooled, scores_of, thresholds_of
from convlstm_wx.verification.pairs import Pairs
from convlstm_wx.verification.record import Record
from tests.weather import times

AT = times("2000-01-01", "2004-01-01")


def pairs(model, truth, usual=None) -> Pairs:
    """Pairs of arrays [init_time, lat, lon]; persistence is the model turned upside down."""
    model, truth = np.asarray(model, float), np.asarray(truth, float)
    dims = ("init_time", "lat", "lon")
    systems = np.where(np.isnan(truth), np.nan, np.stack([model, model[:, ::-1]]))
    usual = np.zeros_like(truth) if usual is None else np.asarray(usual, float)
    made = [xr.DataArray(field, dims=dims) for field in (truth, usual)]
    named = xr.DataArray(systems, {"system": ["model", "persistence"]}, ("system", *dims))
    return Pairs(named, *made, lost=made[0].sum(("lat", "lon")))


def at_least(value: float) -> Threshold:
    return Threshold(f"{value:g}", value, value)


def record(values: np.ndarray, units: str, name: str) -> Record:
    fields = xr.DataArray(values, {"time": AT}, ("time", "lat", "lon"), name=name, attrs={"units": units})
    return Record(fields, fit_climatology(fields, AT, AT))


def test_finley_s_tornado_forecasts_have_their_published_scores():
    # Finley (1884): 28 hits, 72 false alarms, 23 misses, 2680 correct negatives. Scores as in Wilks, Statistical
    # Methods in the Atmospheric Sciences, ch. 8: threat 0.228, bias 1.96, false alarm ratio 0.720, hit rate 0.549,
    # Heidke 0.355, Gilbert 0.216.
    table = xr.Dataset({name: float(value) for name, value in zip(COUNTS, (28, 23, 72, 2680))})
    found = scores_of(table)
    published = {"csi": 0.228, "frequency_bias": 1.96, "far": 0.720, "pod": 0.549, "hss": 0.355, "ets": 0.216}
    for name, value in published.items():
        assert float(found[name]) == pytest.approx(value, abs=5e-3 if name == "frequency_bias" else 5e-4), name


def test_counts_by_eye_and_an_event_is_at_or_above_its_threshold():
    counted = (
        pooled(count(pairs([[[5, 5, 0, 0]]], [[[5, 0, 7, 1]]]), [at_least(5)])).sel(system="model").isel(threshold=0)
    )
    assert [int(counted[name]) for name in COUNTS] == [1, 1, 1, 1]


def test_missing_points_are_in_no_count():
    counted = pooled(count(pairs([[[5, 5, 0, 0]]], [[[5, np.nan, np.nan, 1]]]), [at_least(5)])).sel(system="model")
    assert [int(counted[name].sum()) for name in COUNTS] == [1, 0, 0, 1]


def test_scores_of_counts_equal_the_threshold_operator_of_the_scores_library():
    generator = np.random.default_rng(0)
    given = pairs(generator.gamma(0.5, 4, (20, 6, 7)), generator.gamma(0.5, 4, (20, 6, 7)))
    operator = scores.categorical.ThresholdEventOperator(default_event_threshold=3.0)
    expected = operator.make_contingency_manager(given.systems.sel(system="model"), given.truth)
    found = scores_of(pooled(count(given, [at_least(3.0)]))).sel(system="model").isel(threshold=0)
    assert float(found["csi"]) == pytest.approx(float(expected.critical_success_index()), abs=1e-12)
    assert float(found["ets"]) == pytest.approx(float(expected.equitable_threat_score()), abs=1e-12)
    assert float(found["hss"]) == pytest.approx(float(expected.heidke_skill_score()), abs=1e-12)


def test_an_event_that_never_happens_has_no_scores():
    found = scores_of(pooled(count(pairs(np.ones((3, 6, 6)), np.zeros((3, 6, 6))), [at_least(1), at_least(2)])))
    model = found.sel(system="model")
    assert float(model["far"][0]) == 1
    for name in ("pod", "frequency_bias"):
        assert np.isnan(model[name]).all(), name
    for name in ("csi", "far", "fss"):
        assert np.isnan(model[name].isel(threshold=1)).all(), name


def test_no_score_is_a_quotient_of_roundings():
    table = xr.Dataset(dict(zip(COUNTS, (0.0, 0.0, 0.0, 49.0))))  # 49 (1 / 49) is not 1
    assert all(np.isnan(float(found)) for name, found in scores_of(table).items() if name not in COUNTS)


def test_fss_by_hand():
    # One point forecast two columns away from where it happened: in windows of 3 they meet in one column of windows.
    forecast, happened = np.zeros((1, 6, 6)), np.zeros((1, 6, 6))
    forecast[0, 2, 1], happened[0, 2, 3] = 1, 1
    found = (
        scores_of(pooled(count(pairs(forecast, happened), [at_least(1)])))["fss"].sel(system="model").values.squeeze()
    )
    # Windows of 3 x 3 inside 6 x 6 have 16 places. Rows 0 to 2 hold row 2 in 3 places; the forecast is in columns 0, 1,
    # the event in columns 1, 2, 3: 6 places against 9, 3 shared.
    assert found == pytest.approx(1 - (3 + 6) / (6 + 9))


@pytest.mark.parametrize("size", [3, 5, 9])
def test_fss_equals_the_scores_library(size):
    generator = np.random.default_rng(1)
    model, truth = generator.random((2, 8, 20, 23))
    found = scores_of(pooled(count(pairs(model, truth), [at_least(0.9)])))["fss"].sel(window=size, system="model")
    expected = scores.spatial.fss_2d(
        xr.DataArray(model, dims=("t", "y", "x")),
        xr.DataArray(truth, dims=("t", "y", "x")),
        event_threshold=0.9,
        threshold_operator=np.greater_equal,
        window_size=(size, size),
        spatial_dims=("y", "x"),
        reduce_dims=["t", "y", "x"],
    )
    assert found.item() == pytest.approx(float(expected), abs=1e-10)


def test_counts_of_blocks_are_those_of_their_init_times():
    generator = np.random.default_rng(2)
    model, truth = generator.random((2, 10, 8, 8))
    whole = count(pairs(model, truth), [at_least(0.5)])
    parts = [count(pairs(model[part], truth[part]), [at_least(0.5)]) for part in (slice(0, 3), slice(3, None))]
    xr.testing.assert_identical(xr.concat(parts, "init_time"), whole)


def test_rain_has_thresholds_in_millimetres_whatever_the_file_has():
    metres = record(np.ones((AT.size, 2, 2)), "m", "tp")
    found = thresholds_of(Channel("tp"), metres, AT, {})
    assert [one.label for one in found] == ["0.1 mm", "1 mm", "5 mm", "10 mm", "25 mm", "50 mm"]
    np.testing.assert_allclose([one.limit for one in found], [0.0001, 0.001, 0.005, 0.01, 0.025, 0.05])


def test_percentiles_are_exceeded_as_often_as_they_say_in_every_season_and_place():
    generator = np.random.default_rng(3)
    season = 4 * np.cos(2 * np.pi * np.arange(AT.size) / 365.25)
    values = season[:, None, None] + generator.standard_normal((AT.size, 2, 3)) * np.array([1.0, 2.0, 5.0])
    warm = record(values, "K", "t2m")
    thresholds = thresholds_of(Channel("t2m"), warm, AT, {})
    assert [one.label for one in thresholds] == ["p90", "p95"]
    for one, share in zip(thresholds, (0.10, 0.05)):
        reached = one.reached(values, warm.usual.at(AT))
        np.testing.assert_allclose(reached.mean(axis=0), share, atol=0.01)  # each place
        summer = np.isin(AT.astype("datetime64[M]").astype(int) % 12, (5, 6, 7))
        assert reached[summer].mean() == pytest.approx(share, abs=0.025)


def test_percentiles_do_not_move_when_held_out_values_change():
    values = np.random.default_rng(4).standard_normal((AT.size, 2, 2))
    changed = values.copy()
    changed[1000:] = 1e6
    limits = []
    for data in (values, changed):
        fields = xr.DataArray(data, {"time": AT}, ("time", "lat", "lon"), name="t2m", attrs={"units": "K"})
        known = Record(fields, fit_climatology(fields, AT[:1000], AT))
        limits.append(thresholds_of(Channel("t2m"), known, AT[:1000], {})[0].limit)
    np.testing.assert_array_equal(*limits)


def test_a_point_that_is_never_observed_has_no_event():
    values = np.random.default_rng(5).standard_normal((AT.size, 2, 2))
    values[:, 0, 0] = np.nan
    masked = record(values, "K", "t2m")
    one = thresholds_of(Channel("t2m"), masked, AT, {})[0]
    assert not one.reached(np.full((1, 2, 2), 1e9), np.zeros((1, 2, 2)))[0, 0, 0]
    assert np.isfinite(one.value)


def test_thresholds_can_be_chosen_and_a_variable_stands_for_its_levels():
    channels = [Channel("z", 500.0), Channel("z", 850.0), Channel("tp")]
    found = parse(["z=p99", "tp=1,2.5"], channels)
    assert found == {"z@500hPa": ["p99"], "z@850hPa": ["p99"], "tp": ["1", "2.5"]}
    rain = thresholds_of(Channel("tp"), record(np.ones((AT.size, 2, 2)), "mm", "tp"), AT, found)
    assert [(one.label, one.limit) for one in rain] == [("1 mm", 1.0), ("2.5 mm", 2.5)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tp", "write NAME=VALUE,VALUE"),
        ("tp=", "write NAME=VALUE,VALUE"),
        ("tp=p100", "write NAME=VALUE,VALUE"),
        ("tp=lots", "write NAME=VALUE,VALUE"),
        ("tp=nan", "write NAME=VALUE,VALUE"),
        ("rain=1", "rain is not forecast; there are t2m, tp"),
    ],
)
def test_thresholds_that_cannot_be_understood_are_errors_that_say_how(text, message):
    with pytest.raises(ConfigError, match=message):
        parse([text], [Channel("t2m"), Channel("tp")])


def test_windows_fit_into_the_grid():
    assert events.windows_of((61, 65)) == [3, 5, 9, 17]
    assert events.windows_of((6, 9)) == [3]
    assert events.windows_of((4, 9)) == [1]
