"""Axes: which coordinate of a file is its time, level, latitude and longitude, and the canonical form of each.

Every axis ends up as one dimension of our own name: time as datetime64[ns] and increasing, level in hPa, latitude and
longitude ascending, longitude without a jump. Only coordinates are read here, never fields.
"""

import logging
import warnings
from typing import Any

import cf_xarray  # noqa: F401  (adds the .cf accessor)
import numpy as np
import xarray as xr

from convlstm_wx.conventions import AXIS_ALIASES, normalise_units, unit_conversion
from convlstm_wx.errors import DataError

logger = logging.getLogger(__name__)

_CF_NAMES = {
    "time": ("time", "T"),
    "level": ("vertical", "Z", "air_pressure"),
    "lat": ("latitude",),
    "lon": ("longitude",),
    "init_time": ("forecast_reference_time",),
    "lead_time": ("forecast_period",),
}
_WORDS = {
    "time": "time axis",
    "lat": "latitude axis",
    "lon": "longitude axis",
    "init_time": "init_time axis",
    "lead_time": "lead_time axis",
}
_YEARS = (1678, 2262)  # what datetime64[ns] can hold
_HIGHEST_HPA = 2_000  # a larger number without units is a pressure in Pa
_TOLERANCE_DEG = 1e-4


def find_axis(dataset: xr.Dataset, axis: str) -> xr.DataArray | None:
    """The file's coordinate for a canonical axis, one-dimensional (a lone time may be a scalar); None if it has none.

    Looks at the CF attributes first, then at the aliases, upper or lower case.

    Raises:
        DataError: if latitude and longitude are fields of a projected grid.
    """
    coordinates = (dataset[name].reset_coords(drop=True) for name in _candidates(dataset, axis))
    found = [values for values in coordinates if _suits(values, axis)]
    if axis in ("lat", "lon"):
        # In this order: beside a two-dimensional latitude, a plain y counts rows and is no latitude.
        placed = next((values for values in found if values.ndim in (1, 2)), None)
        return _axis_of_mesh(placed) if placed is not None and placed.ndim == 2 else placed
    flat = [values for values in found if values.ndim == 1]
    lone = [values for values in found if values.ndim == 0 and axis != "level"]
    return next(iter(flat + lone), None)


def _candidates(dataset: xr.Dataset, axis: str) -> list[str]:
    tables = (dataset.cf.coordinates, dataset.cf.axes, dataset.cf.standard_names)
    by_attribute = [name for key in _CF_NAMES[axis] for table in tables for name in table.get(key, [])]
    lower = {str(name).lower(): name for name in dataset.variables}
    by_alias = [lower[alias] for alias in AXIS_ALIASES[axis] if alias in lower]
    by_units = [name for name, values in dataset.variables.items() if " since " in values.attrs.get("units", "")]
    return list(dict.fromkeys([*by_attribute, *by_alias, *(by_units if axis == "time" else [])]))


def _suits(values: xr.DataArray, axis: str) -> bool:
    """Whether a coordinate's units can be those of the axis: a height is no pressure, a metre no degree."""
    units = normalise_units(values.attrs.get("units", ""))
    if axis == "level":
        named = str(values.name).lower() in AXIS_ALIASES["level"]
        return values.ndim == 1 and (unit_conversion(units, "hPa") is not None or (units == "1" and named))
    return axis.endswith("time") or (values.dtype.kind in "fiu" and unit_conversion(units, "m") is None)


def _axis_of_mesh(mesh: xr.DataArray) -> xr.DataArray:
    """The one-dimensional axis behind a two-dimensional coordinate that varies along one dimension only."""
    for dim in mesh.dims:
        line = mesh.isel({other: 0 for other in mesh.dims if other != dim})
        if float(np.abs(mesh - line).max()) <= _TOLERANCE_DEG and np.ptp(line.values) > _TOLERANCE_DEG:
            return line
    raise DataError(
        f"'{mesh.name}' is a two-dimensional coordinate: projected or curvilinear grids are not supported. Regrid the "
        "file to a regular latitude-longitude grid first (for example: cdo remapbil)."
    )


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
        return (
            f"there is one in {units}, and projected grids are not supported (regrid to latitudes and longitudes first)"
        )
    if values.dtype.kind not in "fiu":
        return f"there is one of the type {values.dtype}, and numbers are needed"
    return f"there is one with {values.ndim} dimensions, and one dimension is needed"


def level_values(axis: xr.DataArray) -> np.ndarray:
    """Levels in hPa, in the file's order.

    Raises:
        DataError: for levels that are missing or occur twice.
    """
    values = _numbers(axis)
    units = normalise_units(axis.attrs.get("units", ""))
    conversion = unit_conversion(units, "hPa")
    if conversion is None:
        conversion = (0.01, 0.0) if values.max() > _HIGHEST_HPA else (1.0, 0.0)
    # Rounded, so that 85000 Pa times 0.01 is 850 and not 850.0000000000001.
    levels = np.round(values * conversion[0], 6)
    if len(np.unique(levels)) < len(levels):
        raise DataError(f"a level occurs twice in '{axis.name}': {', '.join(f'{v:g}' for v in levels)} hPa")
    return levels


def latitude_order(axis: xr.DataArray) -> tuple[slice, np.ndarray]:
    """How to take the rows so that latitude ascends, and the latitudes then.

    Raises:
        DataError: for latitudes that are missing, unsorted or not between -90 and 90.
    """
    values = _numbers(axis)
    if np.abs(values).max() > 90 + _TOLERANCE_DEG:
        raise DataError(
            f"latitudes from {values.min():g} to {values.max():g} in '{axis.name}' are not between -90 and 90 degrees; "
            "projected grids are not supported. Regrid to latitudes and longitudes first."
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
    values = _numbers(axis)
    if values.min() < -360 or values.max() > 540 or np.ptp(values) > 360 + _TOLERANCE_DEG:
        raise DataError(
            f"longitudes from {values.min():g} to {values.max():g} in '{axis.name}' are not degrees of one turn; "
            "projected grids are not supported. Regrid to latitudes and longitudes first."
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


def _numbers(axis: xr.DataArray) -> np.ndarray:
    if axis.dtype.kind not in "fiu" or axis.size == 0:
        raise DataError(f"'{axis.name}' has no numbers to use as coordinates")
    values = axis.values.astype(np.float64)
    if not np.isfinite(values).all():
        raise DataError(f"'{axis.name}' has missing values; a coordinate must be complete")
    return values


def decode_times(axis: xr.DataArray) -> tuple[np.ndarray, np.ndarray]:
    """Times as datetime64[ns], rounded to seconds, and which of the file's times they are (a mask).

    Calendars of climate models (noleap, 360_day ...) are read as dates of the standard one; dates that it does not have
    (30 February) are left out, and the log says so.

    Raises:
        DataError: for times without dates, missing, or outside the years 1678 to 2261.
    """
    name = str(axis.name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", xr.SerializationWarning)
            decoded = xr.decode_cf(xr.Dataset(coords={name: axis.variable}), decode_timedelta=False)[name].values
    except (ValueError, OverflowError, KeyError, TypeError) as error:
        raise DataError(f"the dates of '{name}' cannot be understood (units '{axis.attrs.get('units')}')") from error
    decoded = np.atleast_1d(decoded)
    if decoded.dtype.kind == "O" and decoded.size and hasattr(decoded[0], "calendar"):
        decoded = _to_standard_calendar(decoded, name)
    elif decoded.dtype.kind != "M":
        raise DataError(
            f"'{name}' has no dates; needed are units such as 'hours since 1900-01-01', found {_found(axis)}"
        )
    elif np.isnat(decoded).any():
        raise DataError(f"'{name}' has a missing value at step {int(np.isnat(decoded).argmax())}; mend the time axis")
    keep = ~np.isnat(decoded)
    times = decoded[keep]
    years = times.astype("datetime64[Y]").astype(np.int64) + 1970
    if years.size and (years.min() < _YEARS[0] or years.max() >= _YEARS[1]):
        raise DataError(f"'{name}' holds the years {years.min()} to {years.max()}; needed are 1678 to 2261")
    # Hours counted in fractions of a day come out some nanoseconds off.
    whole_seconds = (times.astype("datetime64[ms]") + np.timedelta64(500, "ms")).astype("datetime64[s]")
    return whole_seconds.astype("datetime64[ns]"), keep


def _found(axis: xr.DataArray) -> str:
    units = axis.attrs.get("units")
    return f"units '{units}'" if units else f"no units, and values such as {np.atleast_1d(axis.values)[0]}"


def _to_standard_calendar(dates: np.ndarray, name: str) -> np.ndarray:
    """datetime64[s]; NaT for dates that the standard calendar does not have."""
    times = np.array([_standard_date(date.isoformat()) for date in dates])
    lost = int(np.isnat(times).sum())
    logger.warning(
        "'%s' has the calendar '%s': read as dates of the standard calendar%s",
        name,
        dates[0].calendar,
        f", without {lost} dates that it does not have" if lost else "",
    )
    return times


def _standard_date(text: str) -> np.datetime64:
    try:
        return np.datetime64(text, "s")
    except ValueError:
        return np.datetime64("NaT", "s")


def check_increasing(times: np.ndarray, name: str) -> None:
    """Refuse times that are not strictly increasing.

    Raises:
        DataError: naming the first time that is out of order or occurs twice.
    """
    steps = np.diff(times)
    zero = np.zeros((), steps.dtype)
    wrong = np.flatnonzero(steps <= zero)
    if wrong.size == 0:
        return
    index = int(wrong[0])
    before, after = (_readable(value) for value in times[index : index + 2])
    if steps[index] == zero:
        raise DataError(
            f"{name} {after} occurs twice, at steps {index} and {index + 1}. Keep one of them (in Python: "
            f'dataset.drop_duplicates("{name}")).'
        )
    raise DataError(
        f"{name} is not increasing: {after} (step {index + 1}) comes after {before}. Sort the file by time (in Python: "
        f'dataset.sortby("{name}")).'
    )


def _readable(value: Any) -> str:
    if isinstance(value, np.datetime64):
        return str(value.astype("datetime64[m]"))
    return f"{value / np.timedelta64(1, 'h'):g} h"


_NANOSECONDS = {"ns": 1.0, "nanoseconds": 1.0, "s": 1e9, "min": 6e10, "minutes": 6e10, "h": 3.6e12, "d": 8.64e13}


def decode_leads(axis: xr.DataArray) -> np.ndarray:
    """Lead times as timedelta64[ns].

    Raises:
        DataError: for lead times without units of time, unsorted or negative.
    """
    text = axis.attrs.get("units", "")
    unit = _NANOSECONDS.get(normalise_units(text))
    if unit is None or axis.dtype.kind not in "fiu":
        raise DataError(f"'{axis.name}' has no units of time (found '{text}'); needed are hours, seconds ...")
    leads = np.atleast_1d(np.round(_numbers(axis) * unit)).astype("timedelta64[ns]")
    check_increasing(leads, "lead_time")
    if leads[0] < np.timedelta64(0, "ns"):
        raise DataError(f"'{axis.name}' begins with a negative lead time")
    return leads
