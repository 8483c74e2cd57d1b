"""Reading: files as users have them, as one lazy dataset in canonical form.

Canonical: dimensions time, level, lat, lon in this order; time datetime64[ns] and increasing; level in hPa; lat and lon
ascending, lon without a jump; variables with the file's own names, values and units. What comes after relies on it.
"""

import glob
import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from convlstm_wx.conventions import normalise_units
from convlstm_wx.data.axes import (
    check_increasing,
    decode_leads,
    decode_times,
    find_axis,
    latitude_order,
    level_values,
    longitude_order,
    missing_axis,
)
from convlstm_wx.data.combining import combine
from convlstm_wx.errors import DataError

logger = logging.getLogger(__name__)

_KEPT_ATTRIBUTES = ("long_name", "standard_name", "cell_methods")
_ZARR_MARKS = ("zarr.json", ".zgroup", ".zmetadata")
_AXIS_ATTRIBUTES = {
    "time": {"standard_name": "time", "long_name": "time"},
    "level": {"standard_name": "air_pressure", "units": "hPa", "positive": "down"},
    "lat": {"standard_name": "latitude", "units": "degrees_north"},
    "lon": {"standard_name": "longitude", "units": "degrees_east"},
    "init_time": {"standard_name": "forecast_reference_time", "long_name": "init time"},
    "lead_time": {"standard_name": "forecast_period", "long_name": "lead time"},
}


def open_dataset(paths: Sequence[str | Path]) -> xr.Dataset:
    """Open NetCDF files, globs or Zarr directories as one lazy dataset in canonical form.

    Several files are put together by period, by variable or by level.

    Returns:
        Variables (time, [level,] lat, lon), and static fields (lat, lon), each with attrs["units"] ("1" where the file
        has none). attrs: "source", the file names; "lat_descending", 1 where latitude descends in the (first) file.
        Several files and Zarr are backed by dask, a single file by the file itself.

    Raises:
        DataError: for whatever is missing, unreadable, unsorted or does not fit together.
    """
    files = _expand([paths] if isinstance(paths, str | Path) else paths)
    several = len(files) > 1
    parts = [_open_canonical(file, ("time",), several=several) for file in files]
    source = _describe_files(files)
    dataset = combine(parts, source) if several else parts[0]
    if "time" not in dataset.dims:
        names = ", ".join(map(str, dataset.data_vars))
        raise DataError(f"{source}: holds static fields only ({names}); needed are variables with a time")
    dataset.attrs = {"source": source, "lat_descending": parts[0].attrs["lat_descending"]}
    return dataset


def open_forecast(path: str | Path) -> xr.Dataset:
    """Open a forecast file in our layout, or in WeatherBench 2's (time, prediction_timedelta, latitude, longitude).

    Returns:
        Variables (init_time, lead_time, [level,] lat, lon) with attrs["units"], coordinate valid_time (init_time,
        lead_time), lat and lon ascending; attrs as of :func:`open_dataset`.

    Raises:
        DataError: for a file that is missing, unreadable or no forecast.
    """
    dataset = _open_canonical(Path(path), ("init_time", "lead_time"))
    valid_times = dataset["init_time"].values[:, None] + dataset["lead_time"].values
    dataset.coords["valid_time"] = (("init_time", "lead_time"), valid_times, _AXIS_ATTRIBUTES["time"])
    return dataset


def source_of(dataset: xr.Dataset) -> str:
    """The names of a dataset's files, for messages."""
    return str(dataset.attrs.get("source", "the data"))


def time_step(times: np.ndarray) -> np.timedelta64:
    """The most common difference between neighbouring times (the smallest of the most common ones).

    Raises:
        DataError: for fewer than two times.
    """
    if len(times) < 2:
        raise DataError(f"{len(times)} time step(s) in the data; at least two are needed to know the time step")
    steps, counts = np.unique(np.diff(times), return_counts=True)
    return steps[counts.argmax()]


def describe_step(step: np.timedelta64) -> str:
    """A duration for people: "1 d", "6 h", "30 min"."""
    for unit, name in ((np.timedelta64(1, "D"), "d"), (np.timedelta64(1, "h"), "h"), (np.timedelta64(1, "m"), "min")):
        count = step / unit
        if count >= 1 and count == int(count):
            return f"{int(count)} {name}"
    return f"{step / np.timedelta64(1, 's'):g} s"


def _expand(paths: Sequence[str | Path]) -> list[Path]:
    """The files behind paths and globs, each once."""
    files: list[Path] = []
    for path in paths:
        pattern = glob.has_magic(str(path)) and not Path(path).exists()
        found = sorted(glob.glob(str(path), recursive=True)) if pattern else [str(path)]
        if not found:
            raise DataError(f"{path}: no file fits this pattern")
        files.extend(Path(name) for name in found)
    if not files:
        raise DataError("no data file given; name at least one NetCDF file with --data")
    return list(dict.fromkeys(files))


def _describe_files(files: Sequence[Path]) -> str:
    names = [file.name for file in files]
    return ", ".join(names) if len(names) <= 3 else f"{names[0]} ... {names[-1]} ({len(names)} files)"


def _open_canonical(file: Path, time_axes: Sequence[str], *, several: bool = False) -> xr.Dataset:
    raw = _open_raw(file, lazily=several)
    try:
        return _canonical(raw, time_axes, several).assign_attrs(source=file.name)
    except DataError as error:
        raise DataError(f"{file.name}: {error}") from error
    except (OSError, RuntimeError) as error:
        raise DataError(_why_unreadable(file, file.is_dir(), error)) from error


def _open_raw(file: Path, *, lazily: bool) -> xr.Dataset:
    """The file as xarray sees it: missing values and packing decoded, dates not yet."""
    if not file.exists():
        raise DataError(f"{file}: no such file")
    zarr = file.is_dir()
    if zarr and not any((file / mark).exists() for mark in _ZARR_MARKS):
        raise DataError(f"{file}: is a folder without a Zarr store; give NetCDF files, or a pattern: '{file}/*.nc'")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", xr.SerializationWarning)
            warnings.simplefilter("ignore", RuntimeWarning)  # a Zarr store without consolidated metadata
            return xr.open_dataset(
                file,
                engine="zarr" if zarr else "netcdf4",
                chunks={} if zarr or lazily else None,
                decode_times=False,
                decode_timedelta=False,
            )
    except PermissionError as error:
        raise DataError(f"{file}: may not be read; check its permissions") from error
    except Exception as error:  # the libraries below raise almost anything for a damaged file
        raise DataError(_why_unreadable(file, zarr, error)) from error


def _why_unreadable(file: Path, zarr: bool, error: Exception) -> str:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    if zarr:
        return f"{file}: cannot be read as a Zarr store ({reason})"
    with file.open("rb") as stream:
        start = stream.read(8)
    if start.startswith((b"CDF", b"\x89HDF")):
        return f"{file}: damaged or cut short ({reason}); fetch it again"
    return f"{file}: not a NetCDF file (it begins with {start!r}); needed is NetCDF 3 or 4, or a Zarr folder"


def _canonical(dataset: xr.Dataset, time_axes: Sequence[str], one_of_several: bool) -> xr.Dataset:
    """One file in canonical form; one of several may be without a time and hold static fields."""
    for variable in dataset.variables.values():
        variable.attrs = {key: value for key, value in variable.attrs.items() if isinstance(value, str)}
    dataset = _merge_expver(dataset)
    axes = _find_axes(dataset, time_axes, one_of_several)
    fields = _fields(dataset, axes)
    order, values = _order_and_values(axes)
    fields = fields.isel(order, missing_dims="ignore").assign_coords(
        {axis: (axis, values[axis], _AXIS_ATTRIBUTES[axis]) for axis in values if axis in fields.dims}
    )
    fields.attrs = {"lat_descending": int(order["lat"] != slice(None))}
    return fields.drop_encoding()


def _merge_expver(dataset: xr.Dataset) -> xr.Dataset:
    """ERA5 in the older Copernicus form: final (expver 1) where it is there, else preliminary (expver 5) values."""
    if dataset.sizes.get("expver", 1) < 2:
        return dataset
    if "expver" in dataset.variables:
        dataset = dataset.isel(expver=np.argsort(dataset["expver"].values))
    chunked = dataset.chunk("auto")
    merged = chunked.isel(expver=0, drop=True)
    for index in range(1, dataset.sizes["expver"]):
        merged = merged.combine_first(chunked.isel(expver=index, drop=True))
    for name, variable in merged.variables.items():
        variable.attrs = dataset.variables[name].attrs
    return merged


def _find_axes(dataset: xr.Dataset, time_axes: Sequence[str], one_of_several: bool) -> dict[str, xr.DataArray]:
    axes = {}
    for axis in (*time_axes, "level", "lat", "lon"):
        found = find_axis(dataset, axis)
        if found is not None:
            axes[axis] = found
        elif axis != "level" and not (axis == "time" and one_of_several):
            raise missing_axis(dataset, axis)
    along = [values.dims for values in axes.values() if values.dims]
    if len(set(along)) < len(along):
        described = ", ".join(f"{axis} along '{values.dims[0]}'" for axis, values in axes.items() if values.dims)
        raise DataError(f"not a grid, as axes share a dimension ({described}); needed is one dimension for each")
    return axes


def _fields(dataset: xr.Dataset, axes: Mapping[str, xr.DataArray]) -> xr.Dataset:
    """The variables on the grid, their dimensions named and ordered canonically, without coordinates."""
    names = {values.dims[0]: axis for axis, values in axes.items() if values.dims}
    taken = {*axes, *(values.name for values in axes.values())}
    kept, refused = {}, []
    for name, field in dataset.data_vars.items():
        reason = "an axis" if name in taken else _why_not_a_field(field, names, axes)
        if reason is None:
            kept[name] = _field(field, names, axes)
        else:
            refused.append(f"'{name}' {reason}")
            logger.log(logging.WARNING if "more than one" in reason else logging.DEBUG, "left out: %s", refused[-1])
    if not kept:
        reasons = "; ".join(refused[:4]) or "there are no variables at all"
        raise DataError(f"no variable on (time, latitude, longitude) to use: {reasons}")
    return xr.Dataset(kept)


def _why_not_a_field(field: xr.DataArray, names: Mapping[Any, str], axes: Mapping[str, xr.DataArray]) -> str | None:
    """Why a variable cannot be used, or None."""
    if field.dtype.kind not in "fiub":
        return f"holds no numbers ({field.dtype})"
    if " since " in field.attrs.get("units", ""):
        return "holds dates"
    extra = [f"{dim} ({size})" for dim, size in field.sizes.items() if dim not in names and size > 1]
    if extra:
        return f"has more than one value along {', '.join(extra)}; choose one of them first"
    there = {names[dim] for dim in field.dims if dim in names}
    if not {"lat", "lon"} <= there:
        return "is not on the grid"
    timed = there >= {axis for axis, values in axes.items() if axis.endswith("time") and values.dims}
    if not timed and there != {"lat", "lon"}:
        return "has some dimensions of the others only"
    return None if 0 not in field.shape else "is empty"


def _field(field: xr.DataArray, names: Mapping[Any, str], axes: Mapping[str, xr.DataArray]) -> xr.DataArray:
    """One variable with canonical dimensions, without coordinates and with the attributes that we keep."""
    bare = field.isel({dim: 0 for dim in field.dims if dim not in names}).drop_vars(field.coords, errors="ignore")
    bare = bare.rename({dim: names[dim] for dim in bare.dims})
    # A file of one time may have it as a scalar.
    lone = [axis for axis, values in axes.items() if axis.endswith("time") and not values.dims]
    bare = bare.expand_dims(lone).transpose(*(axis for axis in axes if axis in {*bare.dims, *lone}))
    kept = {key: field.attrs[key] for key in _KEPT_ATTRIBUTES if field.attrs.get(key, "unknown") != "unknown"}
    bare.attrs = {"units": normalise_units(field.attrs.get("units", "")), **kept}
    return bare


def _order_and_values(axes: Mapping[str, xr.DataArray]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """How to take each dimension, and the coordinate values then."""
    order: dict[str, Any] = {}
    values: dict[str, np.ndarray] = {}
    for axis, found in axes.items():
        if axis in ("time", "init_time"):
            values[axis], keep = decode_times(found)
            check_increasing(values[axis], axis)
            if not keep.all():
                order[axis] = np.flatnonzero(keep)
        elif axis == "lead_time":
            values[axis] = decode_leads(found)
        elif axis == "level":
            values[axis] = level_values(found)
        elif axis == "lat":
            order[axis], values[axis] = latitude_order(found)
        else:
            order[axis], values[axis] = longitude_order(found)
    return order, values
