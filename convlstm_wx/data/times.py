"""Times of files: dates of any calendar as datetime64[ns] and increasing, and lead times."""

import logging
import warnings
from typing import Any

import numpy as np
import xarray as xr

from convlstm_wx.conventions import normalise_units
from convlstm_wx.data.axes import numbers
from convlstm_wx.errors import DataError

logger = logging.getLogger(__name__)

DAYS = 366  # of the longest year
_YEARS = (1678, 2262)  # what datetime64[ns] can hold
MEND = "'convlstm-wx prepare --data ... --output clean.nc' mends it"


def mended_order(times: np.ndarray) -> tuple[np.ndarray, dict[str, int]]:
    """Which times to take so that they increase, the first of those that occur twice, and how many were wrong.

    Returns:
        Indices, and counts: unsorted_times, those that come after a later one; duplicate_times, those left out.
    """
    _, order = np.unique(times, return_index=True)
    late = int((times < np.maximum.accumulate(times)).sum()) if times.size else 0
    return order, {"unsorted_times": late, "duplicate_times": times.size - order.size}


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
            f"{name} {after} occurs twice, at steps {index} and {index + 1}; {_remedy(name, 'drop_duplicates')}"
        )
    raise DataError(
        f"{name} is not increasing: {after} (step {index + 1}) comes after {before}; {_remedy(name, 'sortby')}"
    )


def _remedy(name: str, method: str) -> str:
    return MEND if name == "time" else f'in Python dataset.{method}("{name}") mends it'


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
    leads = np.atleast_1d(np.round(numbers(axis) * unit)).astype("timedelta64[ns]")
    check_increasing(leads, "lead_time")
    if leads[0] < np.timedelta64(0, "ns"):
        raise DataError(f"'{axis.name}' begins with a negative lead time")
    return leads


def days_of_year(times: np.ndarray) -> np.ndarray:
    """From 0 (1 January) to 365 (31 December of a leap year)."""
    dates = times.astype("datetime64[D]")
    return (dates - dates.astype("datetime64[Y]")).astype(int)


def longest_gap(known_days: np.ndarray, wanted_days: np.ndarray) -> float:
    """Longest distance, in days, between the known days of the year around a wanted one; 0 if all are known."""
    known = np.unique(known_days)
    wanted = np.setdiff1d(wanted_days, known)
    around = np.concatenate([known[-1:] - DAYS, known, known[:1] + DAYS])
    after = np.searchsorted(around, wanted)
    return float(np.max(around[after] - around[after - 1], initial=0))
