"""What is usual: from training times alone, right with gaps, missing values and the turn of the year."""

import numpy as np
import pytest
import xarray as xr

from convlstm_wx.errors import DataError
from convlstm_wx.verification import climatology as module
from convlstm_wx.verification.climatology import fit_climatology, read


def times(start: str, end: str, step_hours: int = 24) -> np.ndarray:
    """Times from start up to, not including, end."""
    return np.arange(start, end, np.timedelta64(step_hours, "h"), dtype="datetime64[h]").astype("datetime64[ns]")


def fields(at: np.ndarray, values: np.ndarray | None = None) -> xr.DataArray:
    """A field per time; by default the value is the number of the time, 0, 1, 2 ..., on 2 x 3 points."""
    values = np.arange(at.size) if values is None else values
    data = np.repeat(np.asarray(values, float), 6).reshape(at.size, 2, 3)
    return xr.DataArray(data, dims=("time", "lat", "lon"), coords={"time": at}, name="t2m")


def season(at: np.ndarray) -> np.ndarray:
    """A smooth year: 10 in winter, 20 in summer."""
    day = (at - at.astype("datetime64[Y]")) / np.timedelta64(1, "D")
    return 15 - 5 * np.cos(2 * np.pi * day / 365.25)


def test_read_gives_the_fields_of_the_times_in_their_order():
    at = times("2000-01-01", "2000-01-11")
    assert read(fields(at), at[[7, 2, 3, 3]])[:, 0, 0].tolist() == [7, 2, 3, 3]


def test_read_gives_nan_where_the_data_has_no_such_time():
    at = times("2000-01-01", "2000-01-11")
    wanted = np.array([at[9], at[9] + np.timedelta64(1, "D"), at[0]])
    np.testing.assert_array_equal(read(fields(at), wanted)[:, 1, 2], [9, np.nan, 0])
    assert np.isnan(read(fields(at), wanted[1:2])).all()


def test_read_of_scattered_times_equals_read_of_all():
    at = times("2000-01-01", "2010-01-01")
    np.testing.assert_array_equal(read(fields(at), at[[3600, 5]])[:, 0, 0], [3600, 5])


def test_windowed_climatology_equals_the_weighted_mean_done_by_hand():
    at = times("2000-01-01", "2006-01-01")
    values = np.random.default_rng(0).standard_normal(at.size)
    wanted = np.array(["2006-01-03", "2006-07-01"], "datetime64[ns]")
    climatology = fit_climatology(fields(at, values), at, wanted)
    day = (at.astype("datetime64[D]") - at.astype("datetime64[Y]").astype("datetime64[D]")).astype(int)
    for time, today in zip(wanted, (2, 181)):
        apart = np.abs(day - today)
        weight = np.clip(1 - np.minimum(apart, 366 - apart) / 31, 0, None)  # wraps: late December counts for 3 January
        assert climatology.at(time[None])[0, 1, 1] == pytest.approx(np.average(values, weights=weight), rel=1e-10)
    assert "61-day triangular window" in climatology.description
    assert "6.0 years" in climatology.description


def test_climatology_does_not_move_when_held_out_values_change():
    at = times("2000-01-01", "2006-01-01")
    training, held_out = at[:1800], at[1900:]
    values = np.random.default_rng(1).standard_normal(at.size)
    changed = np.where(np.isin(at, training), values, 1e6)
    before, after = (fit_climatology(fields(at, v), training, held_out).at(held_out) for v in (values, changed))
    np.testing.assert_array_equal(before, after)


def test_harmonics_recover_a_smooth_year_from_two_years_even_across_a_held_out_month():
    at = times("2000-01-01", "2002-01-01")
    training = at[(at.astype("datetime64[M]").astype(int) % 12) != 6]  # every July is held out
    july = np.array(["2001-07-16"], "datetime64[ns]")
    climatology = fit_climatology(fields(at, season(at)), training, july)
    assert climatology.at(july)[0, 0, 0] == pytest.approx(season(july)[0], abs=0.05)
    assert climatology.description.startswith("annual and semi-annual harmonics")


def test_a_whole_season_without_training_gets_the_annual_harmonic_alone():
    at = times("2000-01-01", "2006-01-01")
    month = at.astype("datetime64[M]").astype(int) % 12
    training = at[(month < 5) | (month > 7)]  # no June, July, August
    july = np.array(["2005-07-16"], "datetime64[ns]")
    climatology = fit_climatology(fields(at, season(at)), training, july)
    assert climatology.at(july)[0, 0, 0] == pytest.approx(season(july)[0], abs=0.2)
    assert "lack" in climatology.description


def test_under_a_year_of_training_gives_the_mean_per_hour_of_day_and_says_so():
    at = times("2000-01-01", "2000-04-30", step_hours=6)
    hour = (at - at.astype("datetime64[D]")) // np.timedelta64(1, "h")
    climatology = fit_climatology(fields(at, hour + np.tile([-1, 1], at.size // 8).repeat(4)), at, at[-4:])
    np.testing.assert_allclose(climatology.at(at[-4:])[:, 0, 0], [0, 6, 12, 18], atol=1e-6)
    assert "season cannot be known" in climatology.description


def test_the_diurnal_cycle_is_kept_apart_from_the_season():
    at = times("2000-01-01", "2002-01-01", step_hours=6)
    hour = ((at - at.astype("datetime64[D]")) // np.timedelta64(1, "h")).astype(float)
    climatology = fit_climatology(fields(at, season(at) + hour), at, at[-4:])
    np.testing.assert_allclose(climatology.at(at[-4:])[:, 0, 0], season(at[-4:]) + hour[-4:], atol=0.05)


def test_times_of_day_that_nobody_asks_for_change_nothing():
    at = times("2000-01-01", "2000-01-11", step_hours=6)
    hour = (at - at.astype("datetime64[D]")) / np.timedelta64(1, "h")
    climatology = fit_climatology(fields(at, hour), at, at[1:2])
    assert climatology.at(at[1:2])[0, 0, 0] == 6


@pytest.mark.parametrize("years", [1, 2, 6])
def test_a_missing_value_is_left_out_and_a_point_that_is_never_valid_stays_missing(years):
    at = times("2000-01-01", f"{2000 + years}-01-01")
    data = fields(at, np.full(at.size, 7.0))
    data[::3, 0, 0] = np.nan
    data[:, 1, 2] = np.nan
    usual = fit_climatology(data, at, at[:40]).at(at[:40])
    np.testing.assert_allclose(usual[:, 0], 7.0)
    assert np.isnan(usual[:, 1, 2]).all()


def test_a_point_with_few_values_falls_back_to_their_mean():
    at = times("2000-01-01", "2002-01-01")
    data = fields(at, season(at))
    data[1:, 0, 0] = np.nan
    usual = fit_climatology(data, at, at[180:181]).at(at[180:181])
    assert usual[0, 0, 0] == pytest.approx(float(data[0, 0, 0]))


def test_precipitation_climatology_is_never_negative():
    at = times("2000-01-01", "2002-01-01")
    rain = np.where(season(at) > 19, 10.0, 0.0)
    assert fit_climatology(fields(at, rain), at, at[:366]).at(at[:366]).min() < 0
    assert fit_climatology(fields(at, rain), at, at[:366], never_negative=True).at(at[:366]).min() == 0


def test_bands_and_blocks_do_not_change_the_climatology(monkeypatch):
    at = times("2000-01-01", "2005-01-01", step_hours=12)
    data = fields(at, np.random.default_rng(2).standard_normal(at.size))
    data[5:900:7, 1, 1] = np.nan
    whole = fit_climatology(data, at, at[-100:]).at(at[-100:])
    monkeypatch.setattr(module, "ACCUMULATOR_BYTES", 1)  # one row at a time
    monkeypatch.setattr(module, "READ_BYTES", 3 * 8 * 50)  # fifty times at a time
    np.testing.assert_allclose(fit_climatology(data, at, at[-100:]).at(at[-100:]), whole, rtol=1e-12)


@pytest.mark.parametrize(
    ("training", "wanted", "message"),
    [
        (times("1990-01-01", "1990-02-01"), times("2000-01-01", "2000-01-03"), "none of the 31 training times"),
        (times("2000-01-01", "2000-01-05"), times("2000-01-06T06", "2000-01-07"), "no training time at 06:00 UTC"),
    ],
)
def test_what_cannot_be_known_is_an_error_that_says_why(training, wanted, message):
    with pytest.raises(DataError, match=message):
        fit_climatology(fields(times("2000-01-01", "2000-02-01")), training, wanted)


@pytest.mark.real_data
def test_climatology_of_the_masked_india_file_is_missing_only_outside_of_india(real_data):
    with xr.open_dataset(real_data / "imd_india_1deg_daily_1991-2000_tmax_tmin.nc") as india:
        tmax = india["tmax"].transpose("time", "lat", "lon").load()
    at = tmax["time"].values
    usual = fit_climatology(tmax, at[:2500], at[2600:]).at(at[2600:])
    ever = np.isfinite(tmax[:2500]).any("time").values
    assert np.isfinite(usual[:, ever]).all()
    assert np.isnan(usual[:, ~ever]).all()
    error = usual - tmax[2600:].values
    assert np.sqrt(np.nanmean(error**2)) < 2.5  # persistence of the annual mean gives 4.6 degC
