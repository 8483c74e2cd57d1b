"""Intervals that hold the truth as often as they say, shown by simulation."""

import numpy as np
import pytest
import xarray as xr

from convlstm_wx.verification.significance import (
    PAIRED_FIGURES,
    Dependence,
    holm,
    lead_in_spacings,
    mean_interval,
    paired,
    paired_by_channel,
    resample_sums,
    season_of,
)


def autoregressive(n: int, replicates: int, memory: float, seed: int) -> np.ndarray:
    """AR(1) series [replicates, n] with mean 0, variance 1 and lag-one correlation `memory`."""
    noise = np.random.default_rng(seed).standard_normal((n, replicates))
    series = noise.copy()
    for step in range(1, n):
        series[step] = memory * series[step - 1] + np.sqrt(1 - memory**2) * noise[step]
    return series.T


def no_season(n: int) -> np.ndarray:
    return np.empty((n, 0))


def figures(values: np.ndarray) -> dict[str, float]:
    return dict(zip(PAIRED_FIGURES, values))


def compare(mse, reference, weights=None, lead=1.0, seed=0, confidence=0.95) -> dict[str, float]:
    weights = np.ones(len(mse)) if weights is None else weights
    generator = np.random.default_rng(seed)
    return figures(
        paired(mse, reference, weights, no_season(len(mse)), lead, confidence=confidence, generator=generator)
    )


@pytest.mark.parametrize(("memory", "n", "lead"), [(0.0, 120, 1), (0.4, 200, 4), (0.7, 300, 1), (0.7, 300, 8)])
def test_95_percent_intervals_of_paired_differences_hold_the_truth_95_percent_of_the_time(memory, n, lead):
    # The truth: A is worse by 0.5. What is hard for both (the shared part) is much larger, and cancels.
    own = autoregressive(n, 400, memory, seed=2)
    shared = 20 + 5 * autoregressive(n, 400, 0.9, seed=3)
    generator, held, tested = np.random.default_rng(4), 0, 0
    for a, b in zip(shared + own + 0.5, shared):
        found = figures(paired(a, b, np.ones(n), no_season(n), lead, confidence=0.95, generator=generator))
        tested += np.isfinite(found["mse_difference_low"])
        held += found["mse_difference_low"] <= 0.5 <= found["mse_difference_high"]
    assert tested >= 396
    assert 0.92 <= held / tested <= 0.98


def of_hard_and_easy_days(n: int, lead: float, ratio: float, replicates: int = 400) -> list[dict[str, float]]:
    """MSE of two forecasts on days that are hard or easy for both; `ratio` is that of their expectations."""
    easy = np.exp(0.8 * autoregressive(n, replicates, 0.8, seed=5))
    own, other = (np.exp(0.3 * autoregressive(n, replicates, 0.5, seed=seed)) for seed in (6, 7))
    return [compare(ratio * day * a, day * b, lead=lead, seed=k) for k, (day, a, b) in enumerate(zip(easy, own, other))]


@pytest.mark.parametrize(("n", "lead", "ratio"), [(45, 1, 0.6), (60, 1, 1.0), (60, 4, 0.8), (300, 8, 0.8)])
def test_95_percent_intervals_of_skill_hold_the_truth_95_percent_of_the_time(n, lead, ratio):
    tested = [found for found in of_hard_and_easy_days(n, lead, ratio) if np.isfinite(found["skill_low"])]
    held = np.mean([found["skill_low"] <= 1 - ratio <= found["skill_high"] for found in tested])
    assert len(tested) >= 390
    assert 0.93 <= held <= 0.97


def test_skill_finds_on_short_periods_what_the_difference_misses():
    made = of_hard_and_easy_days(45, 1, 0.6)
    assert np.mean([found["p_value"] <= 0.05 for found in made]) > 0.8
    assert np.mean([found["mse_difference_high"] < 0 for found in made]) < 0.6


def test_p_values_and_intervals_say_the_same():
    for found in of_hard_and_easy_days(60, 1, 0.85, replicates=50):
        assert (found["p_value"] < 0.05) == (found["skill_low"] > 0 or found["skill_high"] < 0)


def test_holm_by_hand():
    # Holm (1979): the smallest times the number of tests, the next times one less, and none below those before it.
    assert holm(np.array([0.01, 0.04, 0.03, 0.005])) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm(np.array([[np.nan, 0.02], [0.6, 0.7]])) == pytest.approx(
        np.array([[np.nan, 0.02], [1.0, 1.0]]), nan_ok=True
    )


def test_of_forecasts_that_are_alike_any_lead_time_is_found_different_no_more_often_than_a_single_one():
    p = np.array([found["p_value"] for found in of_hard_and_easy_days(120, 1, 1.0, replicates=600)]).reshape(-1, 6)
    assert (p <= 0.05).any(axis=1).mean() > 0.15
    assert (holm(p) <= 0.05).any(axis=1).mean() <= 0.08


def test_intervals_that_ignore_dependence_would_fail_this_test():
    # Why blocks: resampling single init times holds the truth in far fewer than 95 % of the series.
    series, held = autoregressive(200, 200, 0.7, seed=5), 0
    generator = np.random.default_rng(6)
    for values in series:
        low, high = np.quantile(resample_sums(values[:, None], 1, generator)[:, 0], [0.025, 0.975])
        held += low <= 0 <= high
    assert held / len(series) < 0.75


def test_decorrelation_length_of_a_known_series():
    # AR(1): (1 + r) / (1 - r), so 4 at r = 0.6.
    lengths = [Dependence.of(series, no_season(600)).length for series in autoregressive(600, 50, 0.6, seed=7)]
    assert np.median(lengths) == pytest.approx(4, rel=0.15)
    white = [Dependence.of(series, no_season(600)).effective_size for series in autoregressive(600, 50, 0.0, seed=8)]
    assert np.median(white) > 500


def test_blocks_are_longer_than_lead_and_decorrelation():
    series = autoregressive(600, 1, 0.6, seed=9)[0]
    dependence = Dependence.of(series, no_season(600))
    assert dependence.block(1) >= 3 * dependence.length
    assert dependence.block(20) >= 20 + dependence.length


def test_skill_and_difference_by_hand():
    found = compare(np.array([1.0, 3.0] * 30), np.array([2.0, 6.0] * 30))
    assert found["mse_difference"] == pytest.approx(-2)
    assert found["skill"] == pytest.approx(0.5)
    assert found["skill_low"] == pytest.approx(0.5)  # half in every block: no doubt at all
    assert found["mse_difference_high"] < 0


def test_weights_count_and_init_times_without_points_are_left_out():
    mse, reference = np.array([1.0, 5.0, np.nan]), np.array([2.0, 2.0, np.nan])
    found = compare(mse, reference, weights=np.array([3.0, 1.0, 0.0]))
    assert found["mse_difference"] == pytest.approx((3 * 1 + 5) / 4 - 2)


def test_too_few_init_times_give_no_interval_but_the_difference():
    found = compare(np.arange(10.0), np.arange(10.0) + 1, lead=4)
    assert found["mse_difference"] == pytest.approx(-1)
    assert np.isnan(found["mse_difference_low"])
    assert np.isnan(found["block_length"])


def test_nothing_to_compare_is_nan_and_no_error():
    assert np.isnan(
        paired(
            *np.full((2, 3), np.nan), np.zeros(3), no_season(3), 1, confidence=0.95, generator=np.random.default_rng(0)
        )
    ).all()


def test_a_forecast_compared_with_itself_differs_by_nothing():
    mse = autoregressive(100, 1, 0.5, seed=10)[0] ** 2
    found = compare(mse, mse)
    assert found["mse_difference_low"] == found["mse_difference_high"] == 0


def test_the_generator_alone_decides_the_draws():
    a, b = autoregressive(100, 2, 0.5, seed=11) ** 2
    assert compare(a, b, seed=1) == compare(a, b, seed=1)
    assert compare(a, b, seed=1)["skill_low"] != compare(a, b, seed=2)["skill_low"]


def test_more_confidence_is_a_wider_interval():
    a, b = autoregressive(100, 2, 0.5, seed=12) ** 2
    wide, narrow = compare(a, b, confidence=0.99), compare(a, b, confidence=0.9)
    assert wide["skill_low"] < narrow["skill_low"] < narrow["skill_high"] < wide["skill_high"]


def test_resampled_sums_are_sums_of_whole_blocks():
    # Values 0..11 in blocks of 3: every block sums to 3 (start + 1), except where it wraps around the end.
    sums = resample_sums(np.arange(12.0)[:, None], 3, np.random.default_rng(0), resamples=200)
    assert sums.shape == (200, 1)
    assert (sums % 3 == 0).all()
    assert sums.mean() == pytest.approx(66, rel=0.1)


def test_mean_interval_is_about_the_weighted_mean():
    values, weights = np.array([1.0, 3.0] * 40), np.array([3.0, 1.0] * 40)
    mean, low, high = mean_interval(
        values, weights, no_season(80), 1, confidence=0.95, generator=np.random.default_rng(0)
    )
    assert mean == pytest.approx(1.5)
    assert low <= mean <= high


def test_lead_is_measured_in_spacings_of_the_init_times():
    leads = xr.DataArray(np.array([12, 24], "timedelta64[h]").astype("timedelta64[ns]"), dims="lead_time")
    inits = np.array(["2000-01-01T00", "2000-01-01T06", "2000-01-01T12", "2000-02-01"], "datetime64[ns]")
    assert lead_in_spacings(leads, inits).values.tolist() == [2, 4]
    assert lead_in_spacings(leads, inits[:1]).values.tolist() == [1, 2]


def daily(n: int) -> np.ndarray:
    return np.datetime64("2000-01-01", "ns") + np.arange(n) * np.timedelta64(24, "h")


def test_season_is_a_wave_of_the_year_or_a_line_through_part_of_one():
    assert season_of(daily(366)).shape == (366, 2)
    assert season_of(daily(366))[0].tolist() == [1, 0]
    assert season_of(daily(200))[:, 0] == pytest.approx(np.arange(200) / 365.25)


def test_a_season_in_the_errors_is_no_memory_of_the_weather():
    at = daily(400)
    series = autoregressive(400, 1, 0.3, seed=14)[0] + 3 * season_of(at)[:, 0]
    assert Dependence.of(series, no_season(400)).length > 50
    assert Dependence.of(series, season_of(at)).length < 4


def test_intervals_hold_the_truth_with_a_season_too():
    at, held = daily(400), 0
    generator, series = np.random.default_rng(15), autoregressive(400, 200, 0.6, seed=16)
    for values in series + 0.5 * season_of(at)[:, 0]:
        found = mean_interval(values, np.ones(400), season_of(at), 1, confidence=0.95, generator=generator)
        held += found[1] <= 0.5 * season_of(at)[:, 0].mean() <= found[2]
    assert 0.92 <= held / 200 <= 0.995  # a little too careful: the blocks still hold the season


def test_labelled_comparison_equals_the_plain_one():
    a, b = autoregressive(80, 2, 0.3, seed=13) ** 2
    dims = ("channel", "lead_time", "init_time")
    coords = {"lead_time": np.array([24], "timedelta64[h]").astype("timedelta64[ns]"), "init_time": daily(80)}
    series = [xr.DataArray(values[None, None], coords, dims) for values in (a, b, np.ones(80))]
    labelled = paired_by_channel(*series, confidence=0.95, generator=np.random.default_rng(0))
    plain = figures(
        paired(a, b, np.ones(80), season_of(daily(80)), 1.0, confidence=0.95, generator=np.random.default_rng(0))
    )
    for name in PAIRED_FIGURES:
        assert labelled[name].squeeze().item() == plain[name]
