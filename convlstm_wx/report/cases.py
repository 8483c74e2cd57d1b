"""Single forecasts to look at: which ones, and their fields beside the truth. Shapes: L lead times, H lat, W lon."""

import numpy as np
import xarray as xr

from convlstm_wx.conventions import Channel, is_precipitation, millimetres_factor, millimetres_units
from convlstm_wx.data.reading import is_projected, observed_only
from convlstm_wx.data.regions import row_weights


def typical_case(scores: xr.Dataset) -> np.datetime64:
    """The init time whose error at the middle lead time is the median: a typical forecast, not the best one."""
    mse = scores["mse_by_init"].sel(system="model").isel(lead_time=(scores.sizes["lead_time"] - 1) // 2)
    error = (mse / mse.mean("init_time")).mean("channel", skipna=False).values
    if np.isnan(error).all():  # no init time has all channels
        error = (mse / mse.mean("init_time")).mean("channel").values
    ranked = np.argsort(error)[: np.isfinite(error).sum()]
    return scores["init_time"].values[ranked[(ranked.size - 1) // 2]]


def worst_case(scores: xr.Dataset, name: str) -> np.datetime64:
    """The init time of the largest error of one channel, all lead times counting alike."""
    mse = scores["mse_by_init"].sel(system="model", channel=name)
    error = (mse / mse.mean("init_time")).mean("lead_time").values
    return scores["init_time"].values[np.nanargmax(error) if np.isfinite(error).any() else 0]


def fields_of(
    forecast: xr.Dataset, truth: xr.Dataset, init_time: np.datetime64, channel: Channel, leads: np.ndarray
) -> tuple[xr.DataArray, xr.DataArray]:
    """Forecast and truth [L, H, W] in the units in which they are shown; missing where the truth has no such time.

    Args:
        leads: places of the wanted lead times.
    """
    given, observed = forecast[channel.variable].sel(init_time=init_time), observed_only(truth[channel.variable])
    if channel.level is not None:
        given, observed = given.sel(level=channel.level), observed.sel(level=channel.level)
    given = given.isel(lead_time=leads).load()
    if "realization" in given.dims:
        given = given.mean("realization", keep_attrs=True)
    if is_projected(given):  # the scores have been made, so the grid is the same
        observed = observed.sel(lat=given["lat"].values, lon=given["lon"].values, method="nearest")
    else:
        west = float(observed["lon"][0])
        lon = (given["lon"] - west + 1e-3) % 360 - 1e-3 + west  # the truth may count longitudes from elsewhere
        observed = observed.sel(lat=given["lat"], lon=lon.values, method="nearest", tolerance=1e-3)
    observed = observed.reindex(time=init_time + given["lead_time"].values).load()
    return _in_millimetres(given, channel), _in_millimetres(observed, channel)


def _in_millimetres(fields: xr.DataArray, channel: Channel) -> xr.DataArray:
    """Precipitation in mm, as people know it; anything else as it is."""
    if not is_precipitation(channel.variable, fields.attrs):
        return fields
    units = str(fields.attrs["units"])
    return (fields * millimetres_factor(units)).assign_attrs(fields.attrs | {"units": millimetres_units(units)})


def spread_out(n: int, most: int) -> np.ndarray:
    """Up to so many places out of n, the first and the last included."""
    return np.unique(np.linspace(0, n - 1, min(n, most)).round().astype(int))


def rmse_of(error: xr.DataArray) -> list[str]:
    """Area-weighted RMSE of each field [L, H, W] over its valid points, to three digits."""
    weights_HW = np.broadcast_to(row_weights(error)[:, None], error.shape[1:])
    return [_rmse(field, weights_HW) for field in error.values]


def _rmse(error_HW: np.ndarray, weights_HW: np.ndarray) -> str:
    valid = np.isfinite(error_HW)
    value = np.sqrt(np.average(error_HW[valid] ** 2, weights=weights_HW[valid])) if valid.any() else np.nan
    return f"{float(f'{value:.3g}'):g}"


def clock(time: np.datetime64 | np.ndarray) -> str:
    """ "2008-07-01 12:00 UTC"."""
    return str(time.astype("datetime64[m]")).replace("T", " ") + " UTC"
