"""Regions: boxes of latitude and longitude, the grid inside them, and where the weather comes from."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from convlstm_wx.conventions import recognise
from convlstm_wx.data.axes import unwrap
from convlstm_wx.data.reading import source_of
from convlstm_wx.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

TOLERANCE_DEG = 1e-4  # about 10 m: a box edge finds the grid line that a float32 file rounds
STEERING_HPA = 700  # weather systems move roughly with the wind of this level
_READ_BYTES = 64e6


@dataclass(frozen=True)
class Region:
    """A box in degrees north and east, edges included; lon_min > lon_max is a box across the seam (170 to -170).

    Raises:
        ConfigError: for edges in the wrong order or out of range.
    """

    lat_min: float
    lat_max: float
    lon_min: float
    lon_max: float

    def __post_init__(self) -> None:
        if not -90 <= self.lat_min <= self.lat_max <= 90:
            raise ConfigError(
                f"region {self._numbers()}: the first two are LAT_MIN LAT_MAX, from -90 to 90, the smaller first"
            )
        if not (-360 <= self.lon_min <= 540 and -360 <= self.lon_max <= 540 and self.lon_max - self.lon_min <= 360):
            raise ConfigError(
                f"region {self._numbers()}: the last two are LON_MIN LON_MAX in degrees east, "
                "at most one turn, such as -20 15 or 340 15"
            )

    def __str__(self) -> str:
        return f"{self.lat_min:g} to {self.lat_max:g} degrees north, {self.lon_min:g} to {self.lon_max:g} degrees east"

    def _numbers(self) -> str:
        return " ".join(f"{number:g}" for number in self.as_tuple())

    def as_tuple(self) -> tuple[float, float, float, float]:
        """(lat_min, lat_max, lon_min, lon_max)."""
        return (self.lat_min, self.lat_max, self.lon_min, self.lon_max)

    @property
    def width(self) -> float:
        """Degrees of longitude from the west to the east edge."""
        return self.lon_max - self.lon_min + (360 if self.lon_min > self.lon_max else 0)


def select_region(ds: xr.Dataset, region: Region | None) -> xr.Dataset:
    """The grid points of a dataset inside a box; None is the whole file.

    Longitudes may be written in any convention. They stay the file's own, unless the box lies across the seam of the
    file: then they run on without a jump (-10 ... 15 from a file of 0 to 360).

    Raises:
        DataError: where the box holds no point, or two separate pieces of the file.
    """
    if region is None:
        return ds
    lat, lon = ds["lat"].values, ds["lon"].values
    rows = np.flatnonzero((lat >= region.lat_min - TOLERANCE_DEG) & (lat <= region.lat_max + TOLERANCE_DEG))
    columns = _columns(lon, region)
    if rows.size == 0 or columns.size == 0:
        raise DataError(
            f"{source_of(ds)}: no grid points in the region {region}; the file covers {_coverage(lat)} degrees north "
            f"and {_coverage(lon)} degrees east. Check --target-region and --upstream-region."
        )
    values = unwrap(lon[columns])
    if len(values) > 1 and np.diff(values).max() > 1.5 * np.diff(lon).max():
        raise DataError(
            f"{source_of(ds)}: the region {region} takes two separate pieces of the file, which covers "
            f"{_coverage(lon)} degrees east. Choose a narrower box."
        )
    _warn_of_missing_edges(ds, region, lat[rows], values)
    whole = slice(columns[0], columns[-1] + 1) if columns[-1] - columns[0] == len(columns) - 1 else columns
    part = ds.isel(lat=slice(rows[0], rows[-1] + 1), lon=whole)
    return part.assign_coords(lon=("lon", values, ds["lon"].attrs))


def _columns(lon: np.ndarray, region: Region) -> np.ndarray:
    """The columns inside the box, from its west edge to its east edge."""
    east_of_edge = np.mod(lon - region.lon_min + TOLERANCE_DEG, 360)
    columns = np.flatnonzero(east_of_edge <= region.width + 2 * TOLERANCE_DEG)
    if region.width >= 360:
        return columns
    return columns[np.argsort(east_of_edge[columns], kind="stable")]


def _warn_of_missing_edges(ds: xr.Dataset, region: Region, lat: np.ndarray, lon: np.ndarray) -> None:
    spacing = max(_spacing(ds["lat"].values), _spacing(ds["lon"].values))
    lon_short = region.width - (lon[-1] - lon[0]) if region.width < 360 else 0.0
    if max(region.lat_max - region.lat_min - (lat[-1] - lat[0]), lon_short) > 2 * spacing + TOLERANCE_DEG:
        logger.warning(
            "%s: the region %s reaches beyond the file; taken are %s degrees north, %s degrees east",
            source_of(ds),
            region,
            _coverage(lat),
            _coverage(lon),
        )


def _spacing(values: np.ndarray) -> float:
    return float(np.diff(values).max()) if len(values) > 1 else 0.0


def _coverage(values: np.ndarray) -> str:
    by = f" by {np.median(np.diff(values)):g}" if len(values) > 1 else ""
    return f"{values[0]:g} to {values[-1]:g}{by}"


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
    wind = _mean_zonal_wind(part, times_mask)
    if wind is None:
        side, reason = "west", "the file has no zonal wind, so the weather is taken to come from the west"
    else:
        name, speed = wind
        side = "west" if speed >= 0 else "east"
        reason = (
            f"the mean {name} over the target in training is {speed:.1f} m s-1, so the weather comes from the {side}"
        )
    columns = _columns_beside(ds["lon"].values, part["lon"].values, side)
    if columns.size == 0:
        raise DataError(
            f"{source_of(ds)}: no grid points {side} of the target region {target} ({reason}). Choose a smaller "
            "--target-region, or give an --upstream-region."
        )
    return Region(target.lat_min, target.lat_max, float(columns[0]), float(columns[-1])), reason


def _columns_beside(lon: np.ndarray, target: np.ndarray, side: str) -> np.ndarray:
    """Longitudes on one side of the target, from west to east."""
    first = int(np.argmin(np.abs(np.mod(lon - target[0] + 180, 360) - 180)))
    size, width = len(lon), len(target)
    if 360 - (lon[-1] - lon[0]) > 1.5 * max(_spacing(lon), TOLERANCE_DEG):
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
    mean = _mean_over(field, times_mask)
    return None if np.isnan(mean) else (label, mean)


def _is_zonal_wind(name: str, field: xr.DataArray) -> bool:
    known = recognise(name, field.attrs)
    return known is not None and known.name in ("u", "u10") and "time" in field.dims


def _mean_over(field: xr.DataArray, times_mask: np.ndarray) -> float:
    """Mean of the valid values at the masked times, read in bounded memory."""
    total, count = 0.0, 0
    block = max(1, int(_READ_BYTES / (8 * field[0].size)))
    for start in range(0, field.sizes["time"], block):
        mask = times_mask[start : start + block]
        if mask.any():
            values = field[start : start + block].values[mask]
            valid = np.isfinite(values)
            total, count = total + float(values[valid].sum(dtype=np.float64)), count + int(valid.sum())
    return total / count if count else float("nan")


@dataclass(frozen=True)
class Grid:
    """The latitudes and longitudes of a region's points, degrees."""

    lat: tuple[float, ...]
    lon: tuple[float, ...]

    @classmethod
    def from_dataset(cls, ds: xr.Dataset) -> "Grid":
        """The grid of a canonical dataset."""
        return cls(tuple(ds["lat"].values.tolist()), tuple(ds["lon"].values.tolist()))

    def to_dict(self) -> dict[str, list[float]]:
        """Plain types, for a checkpoint."""
        return {"lat": list(self.lat), "lon": list(self.lon)}

    @classmethod
    def from_dict(cls, entries: Mapping[str, Any]) -> "Grid":
        """Back from :meth:`to_dict`."""
        return cls(tuple(entries["lat"]), tuple(entries["lon"]))

    def differences(self, other: "Grid") -> list[str]:
        """How another grid differs from this one, in words; longitudes may be written in another convention."""
        found = []
        for name, mine, its, turn in (("latitudes", self.lat, other.lat, 0), ("longitudes", self.lon, other.lon, 360)):
            was, found_now = np.array(mine), np.array(its)
            if not _same_places(was, found_now, turn):
                found.append(f"{name} {_coverage(found_now)} ({len(its)}) instead of {_coverage(was)} ({len(mine)})")
        return found


def _same_places(mine: np.ndarray, its: np.ndarray, turn: float) -> bool:
    """Whether two axes are the same, but for rounding and for whole turns (0: there are none)."""
    if len(mine) != len(its):
        return False
    apart = mine - its
    whole_turns = turn * np.round(apart / turn) if turn else 0.0
    return bool((np.abs(apart - whole_turns) <= TOLERANCE_DEG).all())


def area_weights(lat: np.ndarray) -> np.ndarray:
    """Weight of each grid row by its area, [H] float64, mean 1.

    sin(upper edge) - sin(lower edge), edges midway between rows, the outer ones half a cell out and never beyond the
    poles. The edges stay inside the region, so that outer rows do not stand for the rest of the globe [as
    WeatherBench-X does; a global helper gives 85 % of a 10 to 30 N score to its two edge rows].

    Args:
        lat: latitudes of the rows, ascending or descending, degrees.
    """
    if len(lat) == 1:
        return np.ones(1)
    lat = np.asarray(lat, np.float64)
    middle = (lat[1:] + lat[:-1]) / 2
    edges = np.concatenate([[1.5 * lat[0] - 0.5 * lat[1]], middle, [1.5 * lat[-1] - 0.5 * lat[-2]]])
    weights = np.abs(np.diff(np.sin(np.deg2rad(np.clip(edges, -90, 90)))))
    return weights / weights.mean()
