"""The rivals by hand: what each holds, from which times it learns, and which apply."""

import numpy as np
import pytest
import xarray as xr

from convlstm_wx.linear import record as records
from convlstm_wx.linear.damping import damping
from convlstm_wx.verification.baselines import NAMES, choose, diurnal_persistence, latest_at_same_hour, persistence
from convlstm_wx.verification.climatology import fit_climatology
from convlstm_wx.verification.record import Record
from tests.weather import autoregressive, times

HOUR = np.timedelta64(1, "h").astype("timedelta64[ns]")
DAY = 24 * HOUR


def record(values: np.ndarray, at: np.ndarray, training: np.ndarray) -> Record:
    """A record [time, lat, lon] and the climatology of its training times."""
    fields = xr.DataArray(values, {"time": at}, ("time", "lat", "lon"), name="t2m")
    return Record(fields, fit_climatology(fields, training, at))


def numbers(at: np.ndarray) -> np.ndarray:
    """The hour since 2000 as a field of one point."""
    return ((at - np.datetime64("2000-01-01")) / HOUR)[:, None, None]


def test_persistence_is_the_state_of_the_init_time():
    init = np.array(["2000-01-03T06"], "datetime64[ns]")
    assert persistence(init, 3 * HOUR, numbers).item() == 54


@pytest.mark.parametrize(
    ("lead_hours", "latest"),
    [(6, "2000-01-02T12"), (18, "2000-01-03T00"), (24, "2000-01-03T06"), (30, "2000-01-02T12"), (48, "2000-01-03T06")],
)
def test_diurnal_persistence_is_the_latest_known_state_at_the_valid_hour(lead_hours, latest):
    init = np.array(["2000-01-03T06"], "datetime64[ns]")
    assert latest_at_same_hour(init, lead_hours * HOUR) == np.array([latest], "datetime64[ns]")
    expected = (np.datetime64(latest) - np.datetime64("2000-01-01")) / HOUR
    assert diurnal_persistence(init, lead_hours * HOUR, numbers).item() == expected


def test_diurnal_persistence_applies_only_where_it_is_not_persistence():
    assert "diurnal_persistence" not in choose(None, np.array([DAY, 2 * DAY]))
    assert "diurnal_persistence" in choose(None, np.array([6 * HOUR, DAY]))


def test_chosen_rivals_come_with_the_two_that_are_always_there():
    assert choose(["damped_persistence"], np.array([DAY])) == ["persistence", "damped_persistence", "climatology"]
    assert choose(None, np.array([6 * HOUR])) == list(NAMES)


def test_damping_finds_the_memory_of_a_known_series():
    # AR(1): the regression coefficient at k steps is memory^k.
    at = times("2000-01-01", "2012-01-01")
    values = autoregressive(at.size, (3, 4), memory=0.8, seed=0)
    found = damping(record(values, at, at), at, np.array([DAY, 3 * DAY]))
    np.testing.assert_allclose(found[DAY], 0.8, atol=0.03)
    np.testing.assert_allclose(found[3 * DAY], 0.8**3, atol=0.06)


def test_damping_keeps_the_difference_between_points_of_a_long_record_but_not_of_a_short_one():
    at = times("2000-01-01", "2020-01-01")
    values = np.concatenate(
        [autoregressive(at.size, (2, 4), 0.3, seed=1), autoregressive(at.size, (2, 4), 0.9, seed=2)], axis=1
    )
    long = damping(record(values, at, at), at, np.array([DAY]))[DAY]
    np.testing.assert_allclose(long[:2], 0.3, atol=0.06)
    np.testing.assert_allclose(long[2:], 0.9, atol=0.06)
    alike = autoregressive(60, (4, 4), 0.6, seed=3)  # points differ by chance alone
    short = damping(record(alike, at[:60], at[:60]), at[:60], np.array([DAY]))[DAY]
    own = np.array([np.polyfit(alike[:-1, i, j], alike[1:, i, j], 1)[0] for i in range(4) for j in range(4)])
    assert short.std() < 0.5 * own.std()


def test_damping_does_not_move_when_held_out_values_change():
    at = times("2000-01-01", "2004-01-01")
    values = autoregressive(at.size, (2, 3), 0.7, seed=4)
    changed = values.copy()
    changed[1000:] = 1e6
    leads = np.array([DAY, 2 * DAY])
    before, after = (damping(record(v, at, at[:1000]), at[:1000], leads) for v in (values, changed))
    for lead in leads:
        np.testing.assert_array_equal(before[lead], after[lead])


def test_damping_in_blocks_equals_damping_at_once(monkeypatch):
    at = times("2000-01-01", "2003-01-01")
    values = autoregressive(at.size, (2, 3), 0.7, seed=5)
    values[40:60, 0, 0] = np.nan
    known, leads = record(values, at, at), np.array([DAY, 5 * DAY])
    whole = damping(known, at, leads)
    monkeypatch.setattr(records, "READ_BYTES", 8 * 6 * 100)  # a hundred times at a time
    for lead, factors in damping(known, at, leads).items():
        np.testing.assert_allclose(factors, whole[lead], rtol=1e-12)


def test_damping_of_a_point_that_is_never_observed_is_no_error():
    at = times("2000-01-01", "2003-01-01")
    values = autoregressive(at.size, (2, 3), 0.7, seed=6)
    values[:, 1, 1] = np.nan
    found = damping(record(values, at, at), at, np.array([DAY]))[DAY]
    assert np.isfinite(found).all()
