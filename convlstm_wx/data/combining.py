"""Several files as one: by period, by variable or by level."""

from collections.abc import Hashable, Mapping, Sequence
from itertools import pairwise

import numpy as np
import xarray as xr

from convlstm_wx.data.flags import SUFFIX, flag_name
from convlstm_wx.data.times import MEND
from convlstm_wx.errors import DataError

_TOLERANCE_DEG = 1e-4
_PLACES = ("latitude", "longitude")
_COUNTS = ("unsorted_times", "duplicate_times")


def combine(parts: list[xr.Dataset], source: str, *, mend: bool = False) -> xr.Dataset:
    """Several canonical files as one, by period, by variable or by level; periods may interleave.

    Args:
        parts: in canonical form, each with its file name in attrs["source"].
        source: the name of them all, for messages.
        mend: of times that occur in several files take the first file's.

    Returns:
        With attrs "unsorted_times" and "duplicate_times": those of the files, and what occurs in several of them.

    Raises:
        DataError: for other grids, other units, overlapping or missing periods.
    """
    first = parts[0]
    places = {name: first[name] for name in _PLACES if name in first.coords}
    parts = [_on_grid_of(first, part) for part in parts]
    _check_units(parts)
    parts = _with_all_flags(parts)
    with_name: dict[Hashable, list[xr.Dataset]] = {}
    for part in parts:
        for name in part.data_vars:
            with_name.setdefault(name, []).append(part)
    try:
        joined = {name: _join(name, having, mend) for name, having in with_name.items()}
        fields = {name: _beside(field, name, joined) for name, (field, _) in joined.items()}
        combined = xr.merge(list(fields.values()), join="exact", combine_attrs="override")
    except (ValueError, xr.MergeError) as error:
        raise DataError(f"{source}: {_why_not_together(parts)}") from error
    except DataError as error:
        raise DataError(f"{source}: {error}") from error
    combined = combined.assign_coords(places)
    combined.attrs = {count: max(counts[count] for _, counts in joined.values()) for count in _COUNTS}
    return combined


def _join(name: Hashable, parts: Sequence[xr.Dataset], mend: bool) -> tuple[xr.DataArray, dict[str, int]]:
    """One variable out of all files that have it, and how many of its times were mended."""
    fields = [part[name].reset_coords(drop=True) for part in parts]
    counts = {count: sum(part.attrs[count] for part in parts) for count in _COUNTS}
    if not any("time" in field.dims for field in fields):
        values = fields[0].values
        for part, field in zip(parts[1:], fields[1:]):
            if not np.array_equal(values, field.values, equal_nan=True):
                raise DataError(f"'{name}' has no time, and differs between {_source(parts[0])} and {_source(part)}")
        return fields[0], counts
    by_levels: dict[tuple[float, ...], list[xr.DataArray]] = {}
    for field in fields:
        levels = tuple(field["level"].values.tolist()) if "level" in field.dims else ()
        by_levels.setdefault(levels, []).append(field)
    series = []
    for of_levels in by_levels.values():
        field, repeated = _one_after_another(of_levels, mend)
        series.append(field)
        counts["duplicate_times"] += repeated
    stacked = [level for of_levels in by_levels for level in of_levels]
    if len(series) > 1 and (() in by_levels or len(set(stacked)) < len(stacked)):
        raise ValueError("the levels do not fit together")
    return (
        xr.concat(series, "level", join="exact", combine_attrs="override") if len(series) > 1 else series[0]
    ), counts


def _one_after_another(fields: list[xr.DataArray], mend: bool) -> tuple[xr.DataArray, int]:
    """Fields of several periods as one in the order of time, and how many times occurred again."""
    if len(fields) == 1:
        return fields[0], 0
    times = np.concatenate([field["time"].values for field in fields])
    repeated = times.size - np.unique(times).size
    if repeated and not mend:
        raise ValueError("periods overlap")
    if not repeated:  # then whole files can mostly follow each other as they are
        fields = sorted(fields, key=lambda field: field["time"].values[0])
    whole = xr.concat(fields, "time", join="override", combine_attrs="override")
    _, order = np.unique(whole["time"].values, return_index=True)
    return (whole if np.array_equal(order, np.arange(times.size)) else whole.isel(time=order)), repeated


def _with_all_flags(parts: Sequence[xr.Dataset]) -> list[xr.Dataset]:
    """With "all observed" in files that have a variable without its flag, if the flag is not in files of its own."""
    names = dict.fromkeys(name for part in parts for name in part if any(flag_name(name) in each for each in parts))
    beside = [name for name in names if all(name in part for part in parts if flag_name(name) in part)]
    plain = []
    for part in parts:
        missing = [name for name in beside if name in part and flag_name(name) not in part]
        plain.append(part.assign({flag_name(name): _observed(part[name]) for name in missing}))
    return plain


def _observed(field: xr.DataArray) -> xr.DataArray:
    return xr.zeros_like(field, dtype=np.int8).assign_attrs(units="1")


def _beside(
    flag: xr.DataArray, name: Hashable, joined: Mapping[Hashable, tuple[xr.DataArray, dict[str, int]]]
) -> xr.DataArray:
    """A flag at the times and levels of its variable, observed where it has none; anything else as it is."""
    owner = str(name).removesuffix(SUFFIX)
    if owner == name or owner not in joined:
        return flag
    field = joined[owner][0]
    axes = {axis: field[axis] for axis in ("time", "level") if axis in flag.dims and axis in field.dims}
    same = all(np.array_equal(flag[axis].values, values.values) for axis, values in axes.items())
    return flag if same else flag.reindex(axes, fill_value=0)


def _on_grid_of(first: xr.Dataset, part: xr.Dataset) -> xr.Dataset:
    """The same file with the first one's coordinates, where they differ by rounding or by whole turns only."""
    for axis in ("lat", "lon"):
        mine, its = first[axis].values, part[axis].values
        if not _same(mine, its, _TOLERANCE_DEG, turns=axis == "lon"):
            raise DataError(
                f"{_source(part)}: its {axis} ({_span(its)}) differs from that of {_source(first)} ({_span(mine)}). "
                "Files that are read together need the same grid."
            )
        part = part.assign_coords({axis: first[axis]})
    for name in _PLACES:
        if (name in first.coords) != (name in part.coords) or (
            name in first.coords
            and not _same(first[name].values, part[name].values, _TOLERANCE_DEG, turns=name == "longitude")
        ):
            raise DataError(
                f"{_source(part)}: its two-dimensional {name} differs from that of {_source(first)}. Files that are "
                "read together need the same grid."
            )
    return part.drop_vars(_PLACES, errors="ignore")


def _same(mine: np.ndarray, its: np.ndarray, tolerance: float, *, turns: bool) -> bool:
    if mine.shape != its.shape:
        return False
    apart = mine - its
    whole_turns = 360 * np.round(apart / 360) if turns else 0.0
    return bool((np.abs(apart - whole_turns) <= tolerance).all())


def _source(part: xr.Dataset) -> str:
    return str(part.attrs["source"])


def _span(values: np.ndarray) -> str:
    return f"{len(values)} points from {values[0]:g} to {values[-1]:g}"


def _check_units(parts: Sequence[xr.Dataset]) -> None:
    first_with: dict[Hashable, xr.Dataset] = {}
    for part in parts:
        for name, field in part.data_vars.items():
            first = first_with.setdefault(name, part)
            mine, its = first[name].attrs["units"], field.attrs["units"]
            if mine != its:
                raise DataError(f"{_source(part)}: '{name}' is in {its}, but in {mine} in {_source(first)}")


def _why_not_together(parts: Sequence[xr.Dataset]) -> str:
    """What most likely keeps files from being put together."""
    by_start = sorted((part for part in parts if "time" in part.dims), key=lambda part: part["time"].values[0])
    for before, after in pairwise(by_start):
        if _series_of(before) & _series_of(after) and np.isin(before["time"], after["time"]).any():
            return f"{_source(before)} and {_source(after)} overlap in time; give each period once, or {MEND}"
    described = (
        f"{_source(part)} has {', '.join(map(str, part.data_vars))} {_period(part)}" for part in list(parts)[:4]
    )
    return (
        f"the files do not fit together: {'; '.join(described)}. Files of one variable must follow each other in time; "
        "files of different variables must have the same times."
    )


def _series_of(part: xr.Dataset) -> set[tuple[Hashable, tuple[float, ...]]]:
    """The variables with a time, each with its levels."""
    levels = tuple(part["level"].values.tolist()) if "level" in part.dims else ()
    return {
        (name, levels if "level" in field.dims else ())
        for name, field in part.data_vars.items()
        if "time" in field.dims
    }


def _period(part: xr.Dataset) -> str:
    if "time" not in part.dims:
        return "without a time"
    times = part["time"].values.astype("datetime64[m]")
    return f"at {len(times)} times from {times[0]} to {times[-1]}"
