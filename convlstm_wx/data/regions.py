"""Regions: boxes of latitude and longitude, and the grid inside them."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from convlstm_wx.data.axes import unwrap
from convlstm_wx.data.reading import is_projected, source_of
from convlstm_wx.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

TOLERANCE_DEG = 1e-4  # about 10 m: a box edge finds the grid line that a float32 file rounds


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


def select_region(ds: xr.Dataset, region: Region | None, *, option: str = "") -> xr.Dataset:
    """The grid points of a dataset inside a box; None is the whole file.

    Longitudes may be written in any convention. They stay the file's own, unless the box lies across the seam of the
    file: then they run on without a jump (-10 ... 15 from a file of 0 to 360). Of a projected grid it is the smallest
    block of rows and columns that holds all points in the box, and so a little more than the box.

    Args:
        ds: a canonical dataset.
        region: the box.
        option: of the command line, that chose the box, to be named where it holds nothing.

    Raises:
        DataError: where the box holds no point, or two separate pieces of the file.
    """
    if region is None:
        return ds
    if is_projected(ds):
        return _select_block(ds, region, option)
    lat, lon = ds["lat"].values, ds["lon"].values
    rows = np.flatnonzero((lat >= region.lat_min - TOLERANCE_DEG) & (lat <= region.lat_max + TOLERANCE_DEG))
    columns = _columns(lon, region)
    if rows.size == 0 or columns.size == 0:
        raise _nothing_inside(ds, region, option, _coverage(lat), _coverage(lon))
    values = unwrap(lon[columns])
    if len(values) > 1 and np.diff(values).max() > 1.5 * np.diff(lon).max():
        raise DataError(
            f"{source_of(ds)}: the region {region} takes two separate pieces of the file, which covers "
            f"{_coverage(lon)} degrees east. Choose a narrower box."
        )
    _warn_of_missing_edges(ds, region, lat[rows], values, max(spacing(lat), spacing(lon)))
    whole = slice(columns[0], columns[-1] + 1) if columns[-1] - columns[0] == len(columns) - 1 else columns
    part = ds.isel(lat=slice(rows[0], rows[-1] + 1), lon=whole)
    return part.assign_coords(lon=("lon", values, ds["lon"].attrs))


def _select_block(ds: xr.Dataset, region: Region, option: str) -> xr.Dataset:
    """The smallest block of a projected grid that holds all its points inside the box."""
    lat_HW, lon_HW = ds["latitude"].values, ds["longitude"].values
    inside_HW = (lat_HW >= region.lat_min - TOLERANCE_DEG) & (lat_HW <= region.lat_max + TOLERANCE_DEG)
    inside_HW &= _east_of(lon_HW, region.lon_min) <= region.width + 2 * TOLERANCE_DEG
    if not inside_HW.any():
        raise _nothing_inside(ds, region, option, _range(lat_HW), _range(lon_HW))
    spacing = max(
        float(np.abs(np.diff(places_HW, axis=axis)).max(initial=0)) for places_HW in (lat_HW, lon_HW) for axis in (0, 1)
    )
    _warn_of_missing_edges(ds, region, np.sort(lat_HW[inside_HW]), np.sort(lon_HW[inside_HW]), spacing)
    rows, columns = (np.flatnonzero(inside_HW.any(axis)) for axis in (1, 0))
    return ds.isel(lat=slice(rows[0], rows[-1] + 1), lon=slice(columns[0], columns[-1] + 1))


def _nothing_inside(ds: xr.Dataset, region: Region, option: str, lat: str, lon: str) -> DataError:
    covers = f"the file covers {lat} degrees north and {lon} degrees east"
    check = f". Check {option}." if option else ""
    return DataError(f"{source_of(ds)}: no grid points in the region {region}; {covers}{check}")


def _columns(lon: np.ndarray, region: Region) -> np.ndarray:
    """The columns inside the box, from its west edge to its east edge."""
    east_of_edge = _east_of(lon, region.lon_min)
    columns = np.flatnonzero(east_of_edge <= region.width + 2 * TOLERANCE_DEG)
    if region.width >= 360:
        return columns
    return columns[np.argsort(east_of_edge[columns], kind="stable")]


def _east_of(lon: np.ndarray, edge: float) -> np.ndarray:
    """Degrees east of an edge, 0 to 360, plus the tolerance."""
    return np.mod(lon - edge + TOLERANCE_DEG, 360)


def _warn_of_missing_edges(ds: xr.Dataset, region: Region, lat: np.ndarray, lon: np.ndarray, spacing: float) -> None:
    """Say so where a box is much larger than the points (ascending) that the file has inside it."""
    lon_short = region.width - (lon[-1] - lon[0]) if region.width < 360 else 0.0
    if max(region.lat_max - region.lat_min - (lat[-1] - lat[0]), lon_short) > 2 * spacing + TOLERANCE_DEG:
        describe = _range if is_projected(ds) else _coverage
        logger.warning(
            "%s: the region %s reaches beyond the file; taken are %s degrees north, %s degrees east",
            source_of(ds),
            region,
            describe(lat),
            describe(lon),
        )


def spacing(values: np.ndarray) -> float:
    """The widest step between neighbours; 0 for a lone value."""
    return float(np.diff(values).max()) if len(values) > 1 else 0.0


def _coverage(values: np.ndarray) -> str:
    by = f" by {np.median(np.diff(values)):g}" if len(values) > 1 else ""
    return f"{values[0]:g} to {values[-1]:g}{by}"


def _range(values: np.ndarray) -> str:
    return f"{values.min():g} to {values.max():g}"


@dataclass(frozen=True, eq=False)
class Grid:
    """Where a region's points are.

    Attributes:
        lat, lon: the axes: degrees, or of a projected grid the coordinates of its rows and columns.
        latitude, longitude: the places of a projected grid [H, W], degrees; None for a plain one.
        units: of the axes: "degrees", or a projected grid's own.
    """

    lat: tuple[float, ...]
    lon: tuple[float, ...]
    latitude: np.ndarray | None = None
    longitude: np.ndarray | None = None
    units: str = "degrees"

    @classmethod
    def from_dataset(cls, ds: xr.Dataset) -> "Grid":
        """The grid of a canonical dataset."""
        axes = tuple(ds["lat"].values.tolist()), tuple(ds["lon"].values.tolist())
        if not is_projected(ds):
            return cls(*axes)
        return cls(*axes, ds["latitude"].values, ds["longitude"].values, ds["lat"].attrs.get("units", "1"))

    @property
    def projected(self) -> bool:
        """Whether rows and columns are not parallels and meridians."""
        return self.latitude is not None

    def places(self) -> tuple[np.ndarray, np.ndarray]:
        """Latitude and longitude of every point, each [H, W], degrees."""
        if self.latitude is not None and self.longitude is not None:
            return self.latitude, self.longitude
        lat_HW, lon_HW = np.meshgrid(self.lat, self.lon, indexing="ij")
        return lat_HW, lon_HW

    def box(self) -> Region:
        """The smallest box around all points."""
        if not self.projected:
            return Region(self.lat[0], self.lat[-1], self.lon[0], self.lon[-1])
        lat_HW, lon_HW = self.places()
        return Region(float(lat_HW.min()), float(lat_HW.max()), float(lon_HW.min()), float(lon_HW.max()))

    def area_weights(self) -> np.ndarray:
        """Weight of each row by its area, [H] float64, mean 1; the rows of a projected grid weigh the same."""
        return np.ones(len(self.lat)) if self.projected else area_weights(np.asarray(self.lat))

    def to_dict(self) -> dict[str, Any]:
        """Plain types and arrays, for a checkpoint."""
        axes = {"lat": list(self.lat), "lon": list(self.lon)}
        if not self.projected:
            return axes
        return axes | {"latitude": self.latitude, "longitude": self.longitude, "units": self.units}

    @classmethod
    def from_dict(cls, entries: Mapping[str, Any]) -> "Grid":
        """Back from :meth:`to_dict`."""
        optional = {name: entries[name] for name in ("latitude", "longitude", "units") if name in entries}
        return cls(tuple(entries["lat"]), tuple(entries["lon"]), **optional)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Grid)
            and (self.lat, self.lon, self.units) == (other.lat, other.lon, other.units)
            and self.projected == other.projected
            and all(np.array_equal(mine, its) for mine, its in zip(self.places(), other.places()))
        )

    def __hash__(self) -> int:
        return hash((self.lat, self.lon))

    def differences(self, other: "Grid") -> list[str]:
        """How another grid differs from this one, in words; longitudes may be written in another convention."""
        if self.projected != other.projected:
            kinds = ("latitudes and longitudes", "a projected grid")
            return [f"{kinds[other.projected]} instead of {kinds[self.projected]}"]
        if self.projected:
            return self._other_places(other)
        found = []
        for name, mine, its, turn in (("latitudes", self.lat, other.lat, 0), ("longitudes", self.lon, other.lon, 360)):
            was, found_now = np.array(mine), np.array(its)
            if not _same_places(was, found_now, turn):
                found.append(f"{name} {_coverage(found_now)} ({len(its)}) instead of {_coverage(was)} ({len(mine)})")
        return found

    def _other_places(self, other: "Grid") -> list[str]:
        sizes = [f"{len(grid.lat)} x {len(grid.lon)}" for grid in (other, self)]
        if sizes[0] != sizes[1]:
            return [f"a projected grid of {sizes[0]} points instead of {sizes[1]}"]
        names = zip(("latitudes", "longitudes"), self.places(), other.places(), (0, 360))
        return [
            f"{name} of the projected grid {_range(its)} instead of {_range(mine)}"
            for name, mine, its, turn in names
            if not _same_places(mine, its, turn)
        ]


def _same_places(mine: np.ndarray, its: np.ndarray, turn: float) -> bool:
    """Whether two sets of degrees are the same, but for rounding and for whole turns (0: there are none)."""
    if mine.shape != its.shape:
        return False
    apart = mine - its
    whole_turns = turn * np.round(apart / turn) if turn else 0.0
    return bool((np.abs(apart - whole_turns) <= TOLERANCE_DEG).all())


def row_weights(data: xr.Dataset | xr.DataArray) -> np.ndarray:
    """:func:`area_weights` of canonical data; 1 for every row of a projected grid, whose cells are taken as equal."""
    return np.ones(data.sizes["lat"]) if is_projected(data) else area_weights(data["lat"].values)


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
