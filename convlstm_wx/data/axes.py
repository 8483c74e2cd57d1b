"""Axes: which coordinate of a file is its time, level, latitude and longitude, and the canonical form in space.

Every axis ends up as one dimension of our own name: level in hPa, latitude and longitude ascending, longitude without a
jump. Only coordinates are read here, never fields. Times are in times.py, grids with two-dimensional latitudes in
projection.py.
"""

import re
from collections.abc import Iterator

import cf_xarray  # noqa: F401  (adds the .cf accessor)
import numpy as np
import xarray as xr

from convlstm_wx.conventions import AXIS_ALIASES, normalise_units, unit_conversion
from convlstm_wx.data.level_texts import is_text, levels_as_numbers, refuse_texts, says_pressure, scale_to_hpa
from convlstm_wx.errors import DataError

_CF_NAMES = {
    "time": ("time", "T"),
    "level": ("vertical", "Z", "air_pressure"),
    "lat": ("latitude",),
    "lon": ("longitude",),
    "init_time": ("forecast_reference_time",),
    "lead_time": ("forecast_period",),
    "realization": ("realization",),
}
_WORDS = {
    "time": "time axis",
    "lat": "latitude axis",
    "lon": "longitude axis",
    "init_time": "init_time axis",
    "lead_time": "lead_time axis",
}
# Other units of latitudes and longitudes, lower case: how many degrees north or east one is.
_DEGREES = {
    **dict.fromkeys(("radian", "rad", "radian_north", "radian_east"), 180 / np.pi),
    **dict.fromkeys(("degrees_west", "degree_west", "degrees_w", "degree_w", "degreew", "degreesw"), -1.0),
    **dict.fromkeys(("degrees_south", "degree_south", "degrees_s", "degree_s"), -1.0),
}
_NO_PRESSURE = re.compile(r"model|hybrid|sigma|eta\b|theta|height|altitude|depth|layer", re.IGNORECASE)
_TOLERANCE_DEG = 1e-4
_NEEDS_PLACES = (
    "a projected grid needs two-dimensional latitudes and longitudes in degrees beside it; add them (with pyproj, for "
    "example), or regrid to latitudes and longitudes"
)


def find_axis(dataset: xr.Dataset, axis: str) -> xr.DataArray | None:
    """The file's coordinate for a canonical axis, one-dimensional (a lone time may be a scalar); None if it has none.

    Looks at the CF attributes first, then at the aliases, upper or lower case. Levels that are written as text come as
    numbers.

    Raises:
        DataError: if latitude and longitude are fields of a projected grid, or levels are texts that are no pressures.
    """
    if axis in ("lat", "lon"):
        return axis_of(find_place(dataset, axis))
    found = [values for values in _coordinates(dataset, axis) if _suits(values, axis)]
    flat = [values for values in found if values.ndim == 1]
    lone = [values for values in found if values.ndim == 0 and axis.endswith("time")]
    if axis == "level" and not flat:
        refuse_texts(dataset, [values for values in _coordinates(dataset, axis) if values.ndim == 1])
    return next(iter(flat + lone), None)


def find_place(dataset: xr.Dataset, axis: str) -> xr.DataArray | None:
    """The latitudes or longitudes of a file, one- or two-dimensional; None if it has none.

    Raises:
        DataError: if they change with time.
    """
    found = (values for values in _coordinates(dataset, axis) if _suits(values, axis) and values.ndim in (1, 2, 3))
    # In this order: beside a two-dimensional latitude, a plain y counts rows and is no latitude.
    place = next(found, None)
    return place if place is None or place.ndim < 3 else _of_all_times(place)


def _of_all_times(place: xr.DataArray) -> xr.DataArray:
    """WRF repeats latitudes and longitudes at every time."""
    first = place[0]
    if not np.array_equal(first.values, place[-1].values):
        raise DataError(f"'{place.name}' changes along '{place.dims[0]}': a grid that moves cannot be used")
    return first


def _coordinates(dataset: xr.Dataset, axis: str) -> Iterator[xr.DataArray]:
    found = (dataset[name].reset_coords(drop=True) for name in _candidates(dataset, axis))
    as_numbers = {"lat": _in_degrees, "lon": _in_degrees, "level": levels_as_numbers}.get(axis)
    return map(as_numbers, found) if as_numbers else found


def _in_degrees(values: xr.DataArray) -> xr.DataArray:
    """Radians, degrees west and degrees south as degrees east and north; others as they are."""
    units = str(values.attrs.get("units", "")).strip().lower()
    factor = _DEGREES.get(units, _DEGREES.get(units.removesuffix("s")))
    if factor is None or values.dtype.kind not in "fiu":
        return values
    # Rounded to a decimetre, so that 52 degrees are not 52.00000000000001.
    return (values.astype(np.float64) * factor).round(6).assign_attrs(values.attrs | {"units": "degrees"})


def _candidates(dataset: xr.Dataset, axis: str) -> list[str]:
    tables = (dataset.cf.coordinates, dataset.cf.axes, dataset.cf.standard_names)
    by_attribute = [name for key in _CF_NAMES[axis] for table in tables for name in table.get(key, [])]
    lower = {str(name).lower(): name for name in dataset.variables}
    by_alias = [lower[alias] for alias in AXIS_ALIASES[axis] if alias in lower]
    by_content: list = []
    if axis == "time":
        by_content = [name for name, values in dataset.variables.items() if " since " in values.attrs.get("units", "")]
    elif axis == "level":  # "850hPa" is a pressure level whatever its coordinate is called
        by_content = [name for name, values in dataset.variables.items() if says_pressure(values)]
    bounds = {values.attrs.get(key) for values in dataset.variables.values() for key in ("bounds", "climatology")}
    names = dict.fromkeys([*by_attribute, *by_alias, *by_content])
    return [name for name in names if name not in bounds]


def _suits(values: xr.DataArray, axis: str) -> bool:
    """Whether a coordinate's units can be those of the axis: a height is no pressure, a metre no degree."""
    units = normalise_units(values.attrs.get("units", ""))
    if axis == "level":
        named = str(values.name).lower() in AXIS_ALIASES["level"]
        return (values.ndim == 1 and not is_text(values)) and (
            unit_conversion(units, "hPa") is not None or (units == "1" and named and not _numbers_levels(values))
        )
    return axis.endswith("time") or (values.dtype.kind in "fiu" and unit_conversion(units, "m") is None)


def _numbers_levels(values: xr.DataArray) -> bool:
    """Whether a level without units counts the levels of a model: these are no pressures."""
    told = f"{values.attrs.get('standard_name', '')} {values.attrs.get('long_name', '')}"
    if values.dtype.kind not in "fiu" or "pressure" in told.replace("sigma_pressure", ""):
        return False
    return bool(_NO_PRESSURE.search(told)) or (
        values.size > 1 and np.array_equal(np.sort(values.values), np.arange(1, values.size + 1))
    )


def axis_of(place: xr.DataArray | None) -> xr.DataArray | None:
    """The one-dimensional axis of what :func:`find_place` found.

    Raises:
        DataError: if latitude and longitude are fields of a projected grid.
    """
    return axis_of_mesh(place) if place is not None and place.ndim == 2 else place


def axis_of_mesh(mesh: xr.DataArray) -> xr.DataArray:
    """The one-dimensional axis behind a two-dimensional coordinate that varies along one dimension only.

    Raises:
        DataError: if it varies along both.
    """
    for dim in mesh.dims:
        line = mesh.isel({other: 0 for other in mesh.dims if other != dim})
        if float(np.abs(mesh - line).max()) <= _TOLERANCE_DEG and np.ptp(line.values) > _TOLERANCE_DEG:
            return line
    raise DataError(
        f"'{mesh.name}' is a two-dimensional coordinate: projected or curvilinear grids cannot be used here. Regrid "
        "the file to a regular latitude-longitude grid first (for example: cdo remapbil)."
    )


def check_not_counted(lat: xr.DataArray, lon: xr.DataArray) -> None:
    """Refuse y and x that only number the rows and columns: they are no latitudes and longitudes.

    Raises:
        DataError: if both are without units and count from 0 or 1.
    """
    if all(_counts(values) for values in (lat, lon)):
        raise DataError(
            f"'{lat.name}' and '{lon.name}' only number the rows and columns of the grid; needed are latitudes and "
            "longitudes. Add them as one- or two-dimensional coordinates lat and lon, in degrees."
        )


def _counts(axis: xr.DataArray) -> bool:
    if str(axis.name).lower() not in ("y", "x") or axis.attrs.get("units") or axis.size < 2:
        return False
    values = numbers(axis)
    return values[0] in (0, 1) and bool((np.diff(values) == 1).all())


def missing_axis(dataset: xr.Dataset, axis: str) -> DataError:
    """The error for a file without an axis: what was looked for, and what the file has."""
    aliases = AXIS_ALIASES[axis]
    unfit = [_why_unfit(values) for name, values in dataset.variables.items() if str(name).lower() in aliases]
    bare = [f"the dimension '{dim}' has no coordinate values" for dim in dataset.dims if str(dim).lower() in aliases]
    dims = ", ".join(f"{name} ({size})" for name, size in dataset.sizes.items()) or "none"
    reason = [*unfit, *bare, f"its dimensions are {dims}"][0]
    wanted = f"Needed is a coordinate called {aliases[0]} or {aliases[1]}, or one with CF attributes"
    return DataError(f"no {_WORDS[axis]}: {reason}. {wanted}.")


def _why_unfit(values: xr.Variable) -> str:
    """Why a variable with the name of an axis is none."""
    units = normalise_units(values.attrs.get("units", ""))
    if unit_conversion(units, "m") is not None:
        return f"there is one in {units}, and {_NEEDS_PLACES}"
    if values.dtype.kind not in "fiu":
        return f"there is one of the type {values.dtype}, and numbers are needed"
    return f"there is one with {values.ndim} dimensions, and one dimension is needed"


def level_values(axis: xr.DataArray) -> np.ndarray:
    """Levels in hPa, in the file's order.

    Raises:
        DataError: for levels that are missing or occur twice.
    """
    values = numbers(axis)
    # Rounded, so that 85000 Pa times 0.01 is 850 and not 850.0000000000001.
    levels = np.round(values * scale_to_hpa(axis.attrs.get("units", ""), values), 6)
    if len(np.unique(levels)) < len(levels):
        raise DataError(f"a level occurs twice in '{axis.name}': {', '.join(f'{v:g}' for v in levels)} hPa")
    return levels


def latitude_order(axis: xr.DataArray) -> tuple[slice, np.ndarray]:
    """How to take the rows so that latitude ascends, and the latitudes then.

    Raises:
        DataError: for latitudes that are missing, unsorted or not between -90 and 90.
    """
    values = numbers(axis)
    if np.abs(values).max() > 90 + _TOLERANCE_DEG:
        raise DataError(
            f"latitudes from {values.min():g} to {values.max():g} in '{axis.name}' are not between -90 and 90 degrees; "
            f"{_NEEDS_PLACES}"
        )
    steps = np.diff(values)
    if not ((steps > 0).all() or (steps < 0).all()):
        raise DataError(f"latitudes in '{axis.name}' are not sorted or occur twice. Sort the file by latitude.")
    descending = len(values) > 1 and values[0] > values[-1]
    return (slice(None, None, -1), values[::-1]) if descending else (slice(None), values)


def longitude_order(axis: xr.DataArray) -> tuple[slice | np.ndarray, np.ndarray]:
    """How to take the columns so that longitude ascends without a jump, and the longitudes then.

    The file's own values are kept, unless its region lies across the seam of its own convention: 350, 355, 0, 5 becomes
    -10, -5, 0, 5. A last column that repeats the first (0 and 360) is left out.

    Raises:
        DataError: for longitudes that are missing, out of range or occur twice.
    """
    values = numbers(axis)
    if values.min() < -360 or values.max() > 540 or np.ptp(values) > 360 + _TOLERANCE_DEG:
        raise DataError(
            f"longitudes from {values.min():g} to {values.max():g} in '{axis.name}' are not degrees of one turn; "
            f"{_NEEDS_PLACES}"
        )
    order = np.argsort(values, kind="stable")
    if len(order) > 1 and np.isclose(np.ptp(values), 360, atol=_TOLERANCE_DEG):
        order = order[:-1]
    gaps = np.diff(values[order])
    if len(gaps) and gaps.min() < _TOLERANCE_DEG:
        raise DataError(f"longitude {values[order][gaps.argmin()]:g} occurs twice in '{axis.name}'")
    seam = 360 - np.ptp(values[order])
    if len(gaps) and gaps.max() > 2 * seam:
        order = np.roll(order, -(gaps.argmax() + 1))
    return _as_slice(order), unwrap(values[order])


def unwrap(lon: np.ndarray) -> np.ndarray:
    """The same places, each east of the one before: 350, 0, 10 becomes -10, 0, 10; ascending values stay."""
    turns = np.concatenate([[0], np.cumsum(np.diff(lon) < 0)])
    if turns[-1] == 0:
        return lon
    values = lon + 360.0 * turns
    return values - 360.0 if values[-1] >= 360 else values


def _as_slice(order: np.ndarray) -> slice | np.ndarray:
    """An index array as a slice where it is one: reading a stretch is much faster than picking columns."""
    return slice(int(order[0]), int(order[-1]) + 1) if (np.diff(order) == 1).all() else order


def numbers(axis: xr.DataArray) -> np.ndarray:
    """The values of a coordinate in float64.

    Raises:
        DataError: where it has none, or some are missing.
    """
    if axis.dtype.kind not in "fiu" or axis.size == 0:
        raise DataError(f"'{axis.name}' has no numbers to use as coordinates")
    values = axis.values.astype(np.float64)
    if not np.isfinite(values).all():
        raise DataError(f"'{axis.name}' has missing values; a coordinate must be complete")
    return values
