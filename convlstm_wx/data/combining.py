"""Several files as one: by period, by variable or by level."""

from collections.abc import Hashable, Sequence
from itertools import pairwise

import numpy as np
import xarray as xr

from convlstm_wx.data.axes import check_increasing
from convlstm_wx.errors import DataError

_TOLERANCE_DEG = 1e-4


def combine(parts: list[xr.Dataset], source: str) -> xr.Dataset:
    """Several canonical files as one, by period, by variable or by level.

    Args:
        parts: in canonical form, each with its file name in attrs["source"].
        source: the name of them all, for messages.

    Raises:
        DataError: for other grids, other units, overlapping or missing periods.
    """
    first = parts[0]
    aligned = [_on_grid_of(first, part) for part in parts]
    _check_units(aligned)
    try:
        combined = xr.combine_by_coords(
            aligned, compat="equals", join="exact", data_vars="minimal", coords="minimal", combine_attrs="override"
        )
        if "time" in combined.dims:
            check_increasing(combined["time"].values, "time")
    except (ValueError, xr.MergeError, DataError) as error:
        raise DataError(f"{source}: {_why_not_together(aligned)}") from error
    assert isinstance(combined, xr.Dataset)
    return combined


def _on_grid_of(first: xr.Dataset, part: xr.Dataset) -> xr.Dataset:
    """The same file with the first one's coordinates, where they differ by rounding or by whole turns only."""
    for axis in ("lat", "lon"):
        mine, its = first[axis].values, part[axis].values
        apart = mine - its if mine.shape == its.shape else np.array([np.inf])
        turns = 360 * np.round(apart[0] / 360) if axis == "lon" and np.isfinite(apart[0]) else 0.0
        if (np.abs(apart - turns) <= _TOLERANCE_DEG).all():
            part = part.assign_coords({axis: first[axis]})
        else:
            raise DataError(
                f"{part.attrs['source']}: its {axis} ({_span(its)}) differs from that of {first.attrs['source']} "
                f"({_span(mine)}). Files that are read together need the same grid."
            )
    return part


def _span(values: np.ndarray) -> str:
    return f"{len(values)} points from {values[0]:g} to {values[-1]:g}"


def _check_units(parts: Sequence[xr.Dataset]) -> None:
    first_with: dict[Hashable, xr.Dataset] = {}
    for part in parts:
        for name, field in part.data_vars.items():
            first = first_with.setdefault(name, part)
            mine, its = first[name].attrs["units"], field.attrs["units"]
            if mine != its:
                raise DataError(
                    f"{part.attrs['source']}: '{name}' is in {its}, but in {mine} in {first.attrs['source']}"
                )


def _why_not_together(parts: Sequence[xr.Dataset]) -> str:
    """What most likely keeps files from being put together."""
    by_start = sorted((part for part in parts if "time" in part.dims), key=lambda part: part["time"].values[0])
    for before, after in pairwise(by_start):
        if set(before.data_vars) & set(after.data_vars) and before["time"].values[-1] >= after["time"].values[0]:
            return f"{before.attrs['source']} and {after.attrs['source']} overlap in time. Give each period once."
    described = (
        f"{part.attrs['source']} has {', '.join(map(str, part.data_vars))} {_period(part)}" for part in list(parts)[:4]
    )
    return (
        f"the files do not fit together: {'; '.join(described)}. Files of one variable must follow each other in time; "
        "files of different variables must have the same times."
    )


def _period(part: xr.Dataset) -> str:
    if "time" not in part.dims:
        return "without a time"
    times = part["time"].values.astype("datetime64[m]")
    return f"at {len(times)} times from {times[0]} to {times[-1]}"
