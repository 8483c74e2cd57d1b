"""Upstream: where the weather of a region comes from."""

from collections.abc import Sequence
from math import prod

import numpy as np
import xarray as xr

from convlstm_wx.conventions import recognise
from convlstm_wx.data.reading import is_projected, observed_only, source_of
from convlstm_wx.data.regions import TOLERANCE_DEG, Grid, Region, select_region, spacing
from convlstm_wx.errors import ConfigError, DataError

STEERING_HPA = 700  # weather systems move roughly with the wind of this level
LEE_SHARE = 1 / 3  # of the file's width along the wind is the target, where nobody names one
FEW_POINTS = 1_000  # of all upstream regions: they cost little, and coarser ones cost skill
_READ_BYTES = 64e6
_MOST_TIMES = 500  # from which a mean wind is known well enough


def choose_upstream(ds: xr.Dataset, target: Region, times_mask: np.ndarray) -> tuple[Region, str]:
    """The region that the weather of the target comes from, and why, in one sentence.

    It has the target's latitudes and reaches from the target's edge to the edge of the file, on the side that the mean
    zonal wind over the target comes from; west where the file has no zonal wind. In a file around the globe it is as
    wide as the target.

    Args:
        ds: the whole file.
        target: the target region.
        times_mask: which times may be looked at (those of training).

    Raises:
        DataError: if the file has no points on that side.
    """
    part = select_region(ds, target)
    side, reason = _windward(part, times_mask, "the target")
    return _beside(ds, part, target, side, reason), reason


def divide(ds: xr.Dataset, times_mask: np.ndarray) -> tuple[Region, Region, str]:
    """The file divided along the wind: its lee third is the target, the rest upstream; and why, in one sentence.

    Args:
        ds: the whole file.
        times_mask: which times may be looked at (those of training).

    Raises:
        DataError: if the file has too few columns to be divided.
    """
    side, reason = _windward(ds, times_mask, "the file")
    columns = ds.sizes["lon"]
    width = round(LEE_SHARE * columns)
    if width == 0:
        raise DataError(
            f"{source_of(ds)}: its grid has {columns} column(s), too few to be divided into a target and an upstream "
            "region. Give a wider file, or leave out --include-upstream."
        )
    eastward = not is_projected(ds) or bool(ds["longitude"][:, -1].mean() >= ds["longitude"][:, 0].mean())
    lee = slice(columns - width, columns) if (side == "west") == eastward else slice(0, width)
    target = Grid.from_dataset(ds.isel(lon=lee)).box()
    return target, _beside(ds, select_region(ds, target), target, side, reason), reason


def choose_coarsening(
    asked: int, target: tuple[int, int], upstream: Sequence[tuple[int, int]], input_steps: int, lead_steps: int
) -> tuple[int, list[str]]:
    """N, for reading the upstream regions as means over N x N points, and a note where it is not 1.

    A network computes about as much for a point and time of any region; it reads the target at input and lead times,
    upstream regions at input times only. Where upstream regions would cost more than the target, N is the smallest
    number that leaves them no more points than the target has, or than a thousand.

    Args:
        asked: N as the user wants it, 0 to choose.
        target: rows and columns of the target.
        upstream: rows and columns of each upstream region.
        input_steps, lead_steps: T and L of a window.

    Raises:
        ConfigError: if a region has fewer than `asked` rows or columns.
    """
    if not upstream:
        return 1, []
    smallest = min(min(sides) for sides in upstream)
    if asked > smallest:
        raise ConfigError(f"--upstream-coarsen {asked}: an upstream region has only {smallest} rows or columns")

    def points(factor: int) -> int:
        return sum(-(-rows // factor) * -(-columns // factor) for rows, columns in upstream)

    available, factor = max(prod(target), FEW_POINTS), asked or 1
    if not asked and points(1) > FEW_POINTS and input_steps * points(1) > (input_steps + lead_steps) * prod(target):
        factor = next((n for n in range(1, smallest + 1) if points(n) <= available), smallest)
    if factor == 1:
        return 1, []
    why = "" if asked else f"; the target has {prod(target):,}, --upstream-coarsen chooses another"
    return factor, [f"upstream read as means over {factor} x {factor} points: {points(factor):,} of {points(1):,}{why}"]


def _windward(ds: xr.Dataset, times_mask: np.ndarray, where: str) -> tuple[str, str]:
    """The side that the weather comes from, and why."""
    wind = _mean_zonal_wind(ds, times_mask)
    if wind is None:
        return "west", "the file has no zonal wind, so the weather is taken to come from the west"
    name, speed = wind
    side = "west" if speed >= 0 else "east"
    return side, (
        f"the mean {name} over {where} in training is {speed:.1f} m s-1, so the weather comes from the {side}"
    )


def _beside(ds: xr.Dataset, part: xr.Dataset, target: Region, side: str, reason: str) -> Region:
    """The region on one side of the target, whose points are `part`."""
    edges = _beside_block(ds, part, side) if is_projected(ds) else _beside_columns(ds, part, side)
    if edges is None:
        raise DataError(
            f"{source_of(ds)}: no grid points {side} of the target region {target} ({reason}). Choose a smaller "
            "--target-region, or give an --upstream-region."
        )
    return Region(target.lat_min, target.lat_max, *edges)


def _beside_columns(ds: xr.Dataset, part: xr.Dataset, side: str) -> tuple[float, float] | None:
    """First and last longitude of a grid on one side of the target's columns; None where there are none."""
    columns = _columns_beside(ds["lon"].values, part["lon"].values, side)
    return (float(columns[0]), float(columns[-1])) if columns.size else None


def _beside_block(ds: xr.Dataset, part: xr.Dataset, side: str) -> tuple[float, float] | None:
    """First and last longitude of a projected grid's points in the target's rows, on one side of its columns."""
    rows = np.isin(ds["lat"].values, part["lat"].values)
    lon_HW, target_HW = ds["longitude"].values[rows], part["longitude"].values
    ascending = lon_HW[:, -1].mean() >= lon_HW[:, 0].mean()
    before, after = (int(np.argmax(ds["lon"].values == part["lon"].values[end])) for end in (0, -1))
    beside_HW = lon_HW[:, :before] if (side == "west") == ascending else lon_HW[:, after + 1 :]
    # Meridians lean over rows and columns: what lies within the target's own longitudes is no border.
    outside = beside_HW[beside_HW < target_HW.max()] if side == "west" else beside_HW[beside_HW > target_HW.min()]
    return (float(outside.min()), float(outside.max())) if outside.size else None


def _columns_beside(lon: np.ndarray, target: np.ndarray, side: str) -> np.ndarray:
    """Longitudes on one side of the target, from west to east."""
    first = int(np.argmin(np.abs(np.mod(lon - target[0] + 180, 360) - 180)))
    size, width = len(lon), len(target)
    if 360 - (lon[-1] - lon[0]) > 1.5 * max(spacing(lon), TOLERANCE_DEG):
        return lon[:first] if side == "west" else lon[first + width :]
    reach = min(width, size - width)
    start = first - reach if side == "west" else first + width
    return lon[np.arange(start, start + reach) % size]


def _mean_zonal_wind(part: xr.Dataset, times_mask: np.ndarray) -> tuple[str, float] | None:
    """(variable, mean speed m s-1) of the wind nearest to the steering level, None if the file has no zonal wind."""
    winds = {name: field for name, field in part.data_vars.items() if _is_zonal_wind(str(name), field)}
    if not winds:
        return None
    name, field = min(winds.items(), key=lambda item: ("level" not in item[1].dims, str(item[0])))
    label = f"'{name}'"
    if "level" in field.dims:
        field = field.isel(level=int(np.abs(field["level"].values - STEERING_HPA).argmin()))
        label = f"'{name}' at {float(field['level']):g} hPa"
    mean = _mean_over(observed_only(field), times_mask)
    return None if np.isnan(mean) else (label, mean)


def _is_zonal_wind(name: str, field: xr.DataArray) -> bool:
    known = recognise(name, field.attrs)
    return known is not None and known.name in ("u", "u10") and "time" in field.dims


def _mean_over(field: xr.DataArray, times_mask: np.ndarray) -> float:
    """Mean of the valid values at the masked times, of a long record at some of them; read in bounded memory."""
    chosen = np.flatnonzero(times_mask)
    if chosen.size > _MOST_TIMES:
        chosen = chosen[np.linspace(0, chosen.size - 1, _MOST_TIMES).round().astype(int)]
    total, count = 0.0, 0
    block = max(1, int(_READ_BYTES / (8 * field[0].size)))
    for start in range(0, chosen.size, block):
        values = field.isel(time=chosen[start : start + block]).values
        valid = np.isfinite(values)
        total, count = total + float(values[valid].sum(dtype=np.float64)), count + int(valid.sum())
    return total / count if count else float("nan")
