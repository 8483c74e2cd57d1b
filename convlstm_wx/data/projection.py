"""Projected and curvilinear grids: latitudes and longitudes that take two dimensions, as in Lambert or rotated grids.

Such a grid is used as it is. Its rows and columns become the dimensions lat and lon, whose values are the projection's
own y and x (or row and column numbers); the places stand beside them as latitude and longitude (lat, lon).
"""

from dataclasses import dataclass

import numpy as np
import xarray as xr

from convlstm_wx.conventions import normalise_units, unit_conversion
from convlstm_wx.data.axes import axis_of_mesh, numbers
from convlstm_wx.errors import DataError

PLACE_ATTRIBUTES = {
    "latitude": {"standard_name": "latitude", "units": "degrees_north"},
    "longitude": {"standard_name": "longitude", "units": "degrees_east"},
}
_COLUMN_DIMS = ("x", "i", "ni", "nx", "xc", "rlon", "lon", "longitude", "west_east", "easting", "xi_rho")
_COLUMN_NAMES = ("projection_x_coordinate", "grid_longitude")
_ROW_NAMES = ("projection_y_coordinate", "grid_latitude")


@dataclass(frozen=True)
class Mesh:
    """Places of a projected grid as the file has them.

    latitude, longitude: two-dimensional, rows first; rows, columns: the axes, one-dimensional.
    """

    latitude: xr.DataArray
    longitude: xr.DataArray
    rows: xr.DataArray
    columns: xr.DataArray

    def coordinates(self, order: dict[str, slice]) -> dict[str, tuple]:
        """The coordinates latitude and longitude (lat, lon), rows and columns taken in an order, without a jump."""
        latitude, longitude = (
            place.values[order["lat"], order["lon"]].astype(np.float64) for place in (self.latitude, self.longitude)
        )
        return {
            "latitude": (("lat", "lon"), latitude, PLACE_ATTRIBUTES["latitude"]),
            "longitude": (("lat", "lon"), _without_jump(longitude), PLACE_ATTRIBUTES["longitude"]),
        }


def make_mesh(dataset: xr.Dataset, latitude: xr.DataArray | None, longitude: xr.DataArray | None) -> Mesh | None:
    """The places of a projected grid; None for a file whose latitude and longitude are axes, or that has none.

    Args:
        dataset: the file.
        latitude, longitude: as axes.find_place found them.

    Raises:
        DataError: for places that are missing, out of range, or on other dimensions than one another.
    """
    if latitude is None or longitude is None or latitude.ndim != 2 or longitude.ndim != 2:
        return None
    if _is_regular(latitude) and _is_regular(longitude):
        return None
    if set(latitude.dims) != set(longitude.dims):
        raise DataError(
            f"'{latitude.name}' is on ({', '.join(map(str, latitude.dims))}), but '{longitude.name}' on "
            f"({', '.join(map(str, longitude.dims))}); needed are the same two dimensions"
        )
    if np.abs(numbers(latitude)).max() > 90 or np.abs(numbers(longitude)).max() > 540:
        raise DataError(f"'{latitude.name}' and '{longitude.name}' are not in degrees; needed are degrees")
    rows, columns = latitude.dims
    if _is_column(dataset, str(rows)):
        rows, columns = columns, rows
    return Mesh(
        latitude.transpose(rows, columns),
        longitude.transpose(rows, columns),
        _axis(dataset, str(rows), _ROW_NAMES),
        _axis(dataset, str(columns), _COLUMN_NAMES),
    )


def _is_regular(place: xr.DataArray) -> bool:
    try:
        return axis_of_mesh(place) is not None
    except DataError:
        return False


def _is_column(dataset: xr.Dataset, dim: str) -> bool:
    attrs = dataset.variables[dim].attrs if dim in dataset.variables else {}
    named = attrs.get("standard_name") in _COLUMN_NAMES or attrs.get("axis") == "X"
    return named or dim.lower() in _COLUMN_DIMS


def _axis(dataset: xr.Dataset, dim: str, standard_names: tuple[str, ...]) -> xr.DataArray:
    """The projection's own coordinate along a dimension, or row numbers where the file has none."""
    along = [str(name) for name, values in dataset.variables.items() if values.dims == (dim,)]
    named = [name for name in along if dataset.variables[name].attrs.get("standard_name") in standard_names]
    for name in [dim] * (dim in along) + named:
        axis = dataset[name].reset_coords(drop=True)
        steps = np.diff(axis.values) if axis.dtype.kind in "fiu" else np.array([])
        if axis.size == 1 or (steps > 0).all() or (steps < 0).all():
            return axis
    return xr.DataArray(np.arange(dataset.sizes[dim]), dims=dim, name=dim)


def row_order(axis: xr.DataArray) -> tuple[slice, np.ndarray]:
    """How to take the rows or columns so that the projection's coordinate ascends, and its values then."""
    values = numbers(axis)
    descending = len(values) > 1 and values[0] > values[-1]
    return (slice(None, None, -1), values[::-1]) if descending else (slice(None), values)


def axis_attributes(units: str, axis: str) -> dict[str, str]:
    """CF attributes of a projected grid's axis, by its units: a length, degrees of a rotated pole, or none ("1")."""
    y_or_x, word, number = ("y", "latitude", "row") if axis == "lat" else ("x", "longitude", "column")
    units = normalise_units(units)
    if unit_conversion(units, "m") is not None:
        return {"standard_name": f"projection_{y_or_x}_coordinate", "units": units}
    if units.startswith("deg"):
        return {"standard_name": f"grid_{word}", "units": "degrees"}
    return {"long_name": number, "units": units}


def _without_jump(longitude: np.ndarray) -> np.ndarray:
    """The same places, near one another: no step of a whole turn between neighbours."""
    middle = longitude[longitude.shape[0] // 2, longitude.shape[1] // 2]
    near = longitude - 360 * np.round((longitude - middle) / 360)
    return near - 360 if near.max() >= 360 else near
