"""Scores by month, season, hour, box and of the wind: parts that add up to the whole, each of the right pairs."""

import numpy as np
import pytest
import xarray as xr

from convlstm_wx.conventions import Channel
from convlstm_wx.data.regions import Region
from convlstm_wx.errors import DataError
from convlstm_wx.verification.breakdowns import box_name, by_period, places_in, wind_of

HOUR = np.timedelta64(1, "h").astype("timedelta64[ns]")


def means(start: str, n: int, step_hours: int, mse: np.ndarray | None = None) -> xr.Dataset:
    """Area means of two lead times (6 and 24 h) with the init time's number as MSE."""
    inits = np.datetime64(start, "ns") + np.arange(n) * step_hours * HOUR
    values = np.arange(float(n)) if mse is None else mse
    dims = ("system", "channel", "lead_time", "init_time")
    coords = {"system": ["model"], "channel": ["t2m"], "lead_time": np.array([6, 24]) * HOUR, "init_time": inits}
    both = np.broadcast_to(values, (1, 1, 2, n))
    of_init = (dims[1:], np.ones((1, 2, n)))
    return xr.Dataset({"mse": (dims, both), "bias": (dims, both), "weight": of_init, "points": of_init}, coords)


def test_months_are_those_of_the_valid_time():
    found = by_period(means("2000-01-31T12", 4, 6)).sel(system="model", channel="t2m")  # to 1 February 06
    # +6 h is valid at 18 of 31 January, then on 1 February at 00, 06 and 12; +24 h is valid in February throughout.
    assert found["pairs_by_month"].isel(lead_time=0).values.tolist() == [1, 3]
    assert found["pairs_by_month"].isel(lead_time=1).values.tolist() == [0, 4]
    np.testing.assert_allclose(found["rmse_by_month"].isel(lead_time=0), np.sqrt([0, 2]))
    assert np.isnan(found["rmse_by_month"].isel(lead_time=1, month=0))


def test_hours_are_those_of_the_valid_time_and_a_single_one_is_no_breakdown():
    found = by_period(means("2000-01-01", 8, 6)).sel(system="model", channel="t2m").isel(lead_time=0)
    assert found["hour"].values.tolist() == [0, 6, 12, 18]
    np.testing.assert_allclose(found["bias_by_hour"].sel(hour=6), (0 + 4) / 2)  # inits 0 and 4 start at 00
    assert "hour" not in by_period(means("2000-01-01", 8, 24).isel(lead_time=[1]))


def test_seasons_are_named_and_december_is_winter():
    found = by_period(means("2000-11-15", 40, 24))
    assert found["season"].values.tolist() == ["DJF", "SON"]
    assert found["pairs_by_season"].sel(season="SON").values.ravel().tolist() == [16, 15]


def test_parts_add_up_to_the_whole():
    generator = np.random.default_rng(0)
    given = means("2000-01-01", 700, 24, generator.random(700))
    given["weight"] = given["weight"] * xr.DataArray(generator.random(700), dims="init_time")
    whole = given["mse"].weighted(given["weight"]).mean("init_time")
    for period in ("month", "season"):
        found = by_period(given)
        labels = (given["init_time"] + given["lead_time"]).dt.month
        labels = labels if period == "month" else (labels % 12) // 3
        area = xr.concat([given["weight"].where(labels == n, 0).sum("init_time") for n in np.unique(labels)], period)
        pooled = (found[f"rmse_by_{period}"] ** 2).drop_vars(period).weighted(area).mean(period)
        np.testing.assert_allclose(pooled, whole.transpose(*pooled.dims))


def test_a_box_takes_its_rows_and_columns_in_any_convention_of_longitudes():
    grid = xr.Dataset(coords={"lat": np.arange(40.0, 50), "lon": np.arange(340.0, 360)}, attrs={"source": "f.nc"})
    rows, columns = places_in(grid, Region(42, 44, -15, -10))
    assert rows.tolist() == [2, 3, 4]
    assert columns.tolist() == [5, 6, 7, 8, 9, 10]
    assert box_name(Region(42, 44, -15, -10)) == "42..44N -15..-10E"
    with pytest.raises(DataError, match="--box"):
        places_in(grid, Region(0, 10, -15, -10))


def test_the_wind_is_a_vector_where_both_components_are_there():
    given = means("2000-01-01", 3, 24, np.array([9.0, 9.0, 9.0]))
    channels = [Channel("u10"), Channel("v10"), Channel("u", 850.0), Channel("v", 500.0)]
    u, v = given.assign_coords(channel=["u10"]), given.assign_coords(channel=["v10"])
    v["mse"] = v["mse"] + 7
    v["weight"] = v["weight"] * xr.DataArray([1.0, 1.0, 0.5], dims="init_time")  # the last was scored on another area
    attrs = {name: {"units": "m s-1"} for name in ("u10", "v10", "u", "v")}
    others = [given.assign_coords(channel=[name]) for name in ("u@850hPa", "v@500hPa")]
    found = wind_of(xr.concat([u, v, *others], "channel"), channels, attrs)
    assert found["wind"].values.tolist() == ["wind10"]  # not of u and v on different levels
    assert (found["mse"] == 25).all()
    assert found["weight"].isel(wind=0, lead_time=0).values.tolist() == [1, 1, 0]
    assert wind_of(given, [Channel("t2m")], {"t2m": {"units": "K"}}) is None
