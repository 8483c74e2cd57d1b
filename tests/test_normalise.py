"""The crossing from physical to normalised units and back."""

import numpy as np
import pytest

from convlstm_wx.conventions import Channel
from convlstm_wx.data.normalise import ClimatologyBasis, Statistics, StatisticsFit
from convlstm_wx.errors import DataError

DAY = np.timedelta64(1, "D")


def record(days: int = 800, *, step_hours: int = 24, seed: int = 0):
    """Temperature with a season and a diurnal cycle, and rain in metres."""
    rng = np.random.default_rng(seed)
    count = days * 24 // step_hours
    times = np.datetime64("2001-01-01", "ns") + np.arange(count) * np.timedelta64(step_hours, "h")
    elapsed = np.arange(count) * step_hours / 24
    season = 280 + 10 * np.cos(2 * np.pi * elapsed / 365.2425) + 4 * np.cos(2 * np.pi * elapsed)
    t2m = season[:, None, None] + rng.normal(size=(count, 3, 4)) * 2
    rain = np.maximum(rng.normal(size=(count, 3, 4)), 0) * 0.005
    return times, np.stack([t2m, rain], axis=1).astype(np.float32)


def fit(times, values, training=None, step=DAY) -> Statistics:
    channels = [Channel("t2m"), Channel("tp")]
    attributes = [{"units": "K"}, {"units": "m", "long_name": "Total precipitation"}]
    training = np.ones(len(times), bool) if training is None else training
    fit = StatisticsFit(values.shape[1:], times, training, channels, attributes, step)
    for piece in (slice(0, 7), slice(7, len(times))):  # two pieces give what one gives
        fit.add(piece, values[piece])
    return fit.statistics()


def test_normalised_training_values_have_no_mean_and_unit_spread():
    times, values = record()
    statistics = fit(times, values)
    normalised = values.copy()
    statistics.normalise(normalised, times)
    np.testing.assert_allclose(normalised.mean(axis=(0, 2, 3)), 0, atol=1e-3)
    np.testing.assert_allclose(normalised.std(axis=(0, 2, 3)), 1, atol=1e-2)


def test_to_physical_undoes_normalise():
    times, values = record()
    statistics = fit(times, values)
    there = values.copy()
    statistics.normalise(there, times)
    np.testing.assert_allclose(statistics.to_physical(there, times), values, rtol=1e-5, atol=1e-6)


def test_the_season_is_taken_out_and_put_back():
    times, values = record()
    statistics = fit(times, values)
    assert statistics.basis.annual_harmonics == 2
    assert statistics.std_C[0] == pytest.approx(2, rel=0.05)  # the noise alone, not the season's 7 K
    january, july = np.datetime64("2005-01-01", "ns"), np.datetime64("2005-07-02", "ns")
    climatology = statistics.climatology(np.array([january, july]))[:, 0].mean(axis=(1, 2))
    np.testing.assert_allclose(climatology, [294, 274], atol=0.5)


def test_the_daily_cycle_is_taken_out_when_the_step_shows_it():
    times, values = record(40, step_hours=6)
    statistics = fit(times, values, step=np.timedelta64(6, "h"))
    assert statistics.basis.annual_harmonics == 0
    assert statistics.std_C[0] == pytest.approx(2, rel=0.1)


@pytest.mark.parametrize(("days", "harmonics"), [(300, 0), (400, 1), (800, 2)])
def test_a_season_that_training_did_not_see_is_not_subtracted(days, harmonics):
    times = record(days)[0]
    assert ClimatologyBasis.choose(times, times).annual_harmonics == harmonics


@pytest.mark.parametrize(("held_out", "harmonics"), [((7,), 2), ((6, 7, 8), 1), (range(4, 10), 0)])
def test_nor_is_one_of_which_no_year_was_seen(held_out, harmonics):
    times = record(3000)[0]
    months = times.astype("datetime64[M]").astype(int) % 12 + 1
    training = times[~np.isin(months, held_out)]
    assert ClimatologyBasis.choose(training, times).annual_harmonics == harmonics
    assert ClimatologyBasis.choose(training, training).annual_harmonics == 2


def test_statistics_do_not_move_when_held_out_values_change():
    times, values = record()
    training = np.arange(len(times)) < 500
    before = fit(times, values, training)
    changed = values.copy()
    changed[500:] = 1e6
    changed[600:] = np.nan
    after = fit(times, changed, training)
    for name, value in before.to_dict().items():
        np.testing.assert_array_equal(np.asarray(after.to_dict()[name]), np.asarray(value), err_msg=name)
    assert before.period == ("2001-01-01T00:00:00", str(times[499].astype("datetime64[s]")))


def test_rain_is_never_negative_on_its_way_back():
    times, values = record()
    statistics = fit(times, values)
    rain = statistics.to_physical(np.full_like(values[:5], -9.0), times[:5])[:, 1]
    assert rain.min() == 0
    assert statistics.millimetres_C.tolist() == [0, 1000]


def test_increments_are_taken_between_neighbours_only():
    times, values = record(200)
    gap = np.ones(len(times), bool)
    gap[50:150] = False
    values[150:, 0] += 500  # a jump across the gap must not count
    statistics = fit(times[gap], values[gap])
    increments = statistics.increment_std_C * statistics.std_C
    assert increments[0] == pytest.approx(2 * np.sqrt(2), rel=0.1)


def test_points_without_a_value_come_back_missing_and_gaps_are_noted():
    times, values = record(400)
    values[:, 0, 0, 0] = np.nan
    values[7, 0, 1, 1] = np.nan
    statistics = fit(times, values)
    assert statistics.gaps_C.tolist() == [True, False]
    back = statistics.to_physical(np.zeros_like(values[:2]), times[:2])
    assert np.isnan(back[:, 0, 0, 0]).all()
    assert np.isfinite(back[:, 0, 1, 1]).all()


def test_a_constant_channel_stays_finite():
    times, values = record(50)
    values[:, 0] = 3.5
    statistics = fit(times, values)
    statistics.normalise(values, times)
    assert np.abs(values[:, 0]).max() < 1e-3


def test_a_channel_without_training_values_is_refused():
    times, values = record(50)
    values[:, 1] = np.nan
    with pytest.raises(DataError, match="'tp' has no value in the training months"):
        fit(times, values)


def test_statistics_survive_their_dictionary():
    times, values = record(50)
    statistics = fit(times, values)
    again = Statistics.from_dict(statistics.to_dict())
    assert again.channels == statistics.channels
    np.testing.assert_array_equal(again.climatology_PCHW, statistics.climatology_PCHW)
    assert again.select([Channel("tp")]).std_C.tolist() == [statistics.std_C[1]]
