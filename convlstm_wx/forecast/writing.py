"""Forecast files: labelled fields in physical units, CF NetCDF or Zarr.

Shapes: N init times, L lead times, D target channels, H lat, W lon.
"""

from pathlib import Path

import numpy as np
import xarray as xr

from convlstm_wx import __version__
from convlstm_wx.data.projection import PLACE_ATTRIBUTES, axis_attributes
from convlstm_wx.data.reading import is_projected
from convlstm_wx.data.regions import Grid
from convlstm_wx.data.spec import DataSpec
from convlstm_wx.errors import ConfigError
from convlstm_wx.files import check_can_make, library_errors, make_folder, replacing

CONVENTIONS = "CF-1.11"
EPOCH = "hours since 1970-01-01"
WB2_NAMES = {"init_time": "time", "lead_time": "prediction_timedelta", "lat": "latitude", "lon": "longitude"}


def to_dataset(spec: DataSpec, init_times: np.ndarray, fields_NLDHW: np.ndarray) -> xr.Dataset:
    """Normalised fields as a labelled dataset in the file's own units.

    Returns:
        Variables under their own names with dimensions init_time, lead_time (timedelta, the first is one step),
        [level,] lat, lon; coordinate valid_time (init_time, lead_time). Points never observed in training are NaN.
        On a projected grid lat and lon are its rows and columns, with coordinates latitude and longitude (lat, lon).
    """
    init_times = init_times.astype("datetime64[ns]")
    leads = np.arange(1, fields_NLDHW.shape[1] + 1) * spec.step.astype("timedelta64[ns]")
    valid_times = init_times[:, None] + leads
    statistics = spec.target.statistics.select(spec.targets)
    values = np.stack([statistics.to_physical(f, t) for f, t in zip(fields_NLDHW, valid_times)])
    coords = {
        "init_time": ("init_time", init_times, {"standard_name": "forecast_reference_time", "long_name": "init time"}),
        "lead_time": ("lead_time", leads, {"standard_name": "forecast_period", "long_name": "lead time"}),
        "valid_time": (("init_time", "lead_time"), valid_times, {"standard_name": "time", "long_name": "valid time"}),
    }
    variables = [_variable(spec, name, values) for name in dict.fromkeys(c.variable for c in spec.targets)]
    dataset = xr.merge(variables, join="outer")  # a level that only one variable has is missing in the others
    dataset = _on_grid(dataset.assign_coords(coords), spec.target.grid, descending=spec.lat_descending)
    dataset.attrs = {
        "Conventions": CONVENTIONS,
        "title": "Regional weather forecast by a ConvLSTM encoder-forecaster",
        "source": f"convlstm_wx {__version__}, trained on {spec.source}",
    }
    return dataset


def _on_grid(dataset: xr.Dataset, grid: Grid, *, descending: bool) -> xr.Dataset:
    """The same fields with coordinates in space, rows in the file's own order."""
    attributes = {name: PLACE_ATTRIBUTES[place] for name, place in (("lat", "latitude"), ("lon", "longitude"))}
    if grid.projected:
        attributes = {name: axis_attributes(grid.units, name) for name in ("lat", "lon")}
    dataset = dataset.assign_coords(
        lat=("lat", np.asarray(grid.lat), {**attributes["lat"], "axis": "Y"}),
        lon=("lon", np.asarray(grid.lon), {**attributes["lon"], "axis": "X"}),
    )
    if grid.projected:
        places = zip(("latitude", "longitude"), grid.places())
        dataset = dataset.assign_coords({name: (("lat", "lon"), at, PLACE_ATTRIBUTES[name]) for name, at in places})
    return dataset.isel(lat=slice(None, None, -1 if descending else 1))


def _variable(spec: DataSpec, name: str, values_NLDHW: np.ndarray) -> xr.Dataset:
    """One variable, its levels stacked along `level` where it has any."""
    at = [index for index, channel in enumerate(spec.targets) if channel.variable == name]
    levels = [spec.targets[index].level for index in at]
    attributes = dict(spec.target.attributes[name])
    if levels[0] is None:
        field = xr.DataArray(values_NLDHW[:, :, at[0]], dims=("init_time", "lead_time", "lat", "lon"))
    else:
        field = xr.DataArray(
            values_NLDHW[:, :, at], dims=("init_time", "lead_time", "level", "lat", "lon"), coords={"level": levels}
        )
        level_attributes = {"standard_name": "air_pressure", "units": "hPa", "positive": "down", "axis": "Z"}
        field["level"].attrs.update(level_attributes)
    return field.assign_attrs(attributes).to_dataset(name=name)


def write_forecast(dataset: xr.Dataset, path: Path, *, layout: str = "cf") -> None:
    """Write a forecast to .nc or .zarr, whole or not at all; the rows and columns of a projected grid as y and x.

    Args:
        dataset: from :func:`to_dataset`.
        path: its ending decides the format.
        layout: 'cf', or 'wb2' for WeatherBench 2's dimension names.

    Raises:
        ConfigError: for another ending, a folder that cannot be written, or Zarr without the zarr package.
    """
    check_output(path)
    make_folder(path.parent)
    if is_projected(dataset):
        dataset = dataset.rename(lat="y", lon="x").rename(latitude="lat", longitude="lon")
    encoding: dict[str, dict[str, object]] = {
        "init_time": {"units": EPOCH, "dtype": "int64"},
        "valid_time": {"units": EPOCH, "dtype": "int64"},
    }
    if layout == "wb2":
        dataset = dataset.rename(WB2_NAMES).drop_vars("valid_time")
        encoding = {"time": encoding["init_time"]}
    for name in dataset.coords:
        if np.issubdtype(dataset[name].dtype, np.datetime64) and _has_minutes(dataset[name].values):
            encoding[str(name)]["units"] = EPOCH.replace("hours", "seconds")
    lead_name = "prediction_timedelta" if layout == "wb2" else "lead_time"
    encoding[lead_name] = {"units": "seconds" if _has_minutes(dataset[lead_name].values) else "hours", "dtype": "int64"}
    encoding |= {
        str(name): {"_FillValue": None}
        for name in ("lat", "lon", "latitude", "longitude", "y", "x", "level")
        if name in dataset.coords
    }
    with replacing(path) as temporary, library_errors():
        if path.suffix == ".zarr":
            dataset.to_zarr(temporary, mode="w", encoding=encoding, zarr_format=2, consolidated=True)
        else:
            compression = {"zlib": True, "complevel": 1, "shuffle": True, "_FillValue": np.float32(np.nan)}
            dataset.to_netcdf(temporary, encoding=encoding | {str(name): compression for name in dataset.data_vars})


def check_output(path: Path) -> None:
    """Refuse what could not or should not be written, before hours are spent on it. Nothing is created.

    Raises:
        ConfigError: for an unknown ending, a missing package, a folder that cannot be written, or something in the way
            that is no forecast.
    """
    is_store = any((path / mark).exists() for mark in (".zgroup", "zarr.json"))
    if path.is_dir() and not (path.suffix == ".zarr" and is_store):
        raise ConfigError(f"--output {path}: is a folder that is not a Zarr store; choose another name")
    if path.suffix not in (".nc", ".zarr"):
        raise ConfigError(f"--output {path}: must end in .nc or .zarr")
    if path.suffix == ".zarr":
        try:
            import zarr  # noqa: F401 - an optional package, asked for only here
        except ImportError as error:
            raise ConfigError(f"--output {path}: needs the zarr package: pip install 'convlstm_wx[zarr]'") from error
    check_can_make(path.parent)


def _has_minutes(times: np.ndarray) -> bool:
    """Whether whole hours do not describe the times exactly."""
    return bool((times.astype("int64") % (3600 * 10**9)).any())
