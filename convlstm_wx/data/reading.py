"""Reading: files as users have them, as one lazy dataset in canonical form.

Canonical: dimensions time, level, lat, lon in this order; time datetime64[ns] and increasing; level in hPa; lat and lon
ascending, lon without a jump; variables with the file's own names, values and units. What comes after relies on it.

A projected grid has the same dimensions: its lat and lon are the rows and columns of the grid, whose values are the
projection's y and x, ascending, in the file's units (m, km, degrees of a rotated pole; row and column numbers in units
"1" where the file has none). Two coordinates latitude and longitude (lat, lon), in degrees and without a jump, tell
where the points are; :func:`is_projected` tells the two kinds apart. Its cells are taken as equal in area.

Where a file has a mask of a variable X, a coordinate X_filled on the dimensions of X says it: 0 observed, 1 filled.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from convlstm_wx.conventions import normalise_units, recognise
from convlstm_wx.data.axes import (
    axis_of,
    check_not_counted,
    find_axis,
    find_place,
    latitude_order,
    level_values,
    longitude_order,
    missing_axis,
)
from convlstm_wx.data.combining import combine
from convlstm_wx.data.flags import as_coordinates, observed_only
from convlstm_wx.data.locations import Location, describe, expand, open_raw, unreadable
from convlstm_wx.data.masks import Masking, claims_of, flagged, is_on_the_grid, owners_of
from convlstm_wx.data.meanings import FLAG_MASKS, FLAG_VALUES
from convlstm_wx.data.projection import Mesh, axis_attributes, make_mesh, row_order
from convlstm_wx.data.times import check_increasing, decode_leads, decode_times, mended_order
from convlstm_wx.errors import DataError

__all__ = [
    "NAME_IN_DATA", "adopt_dataset", "describe_step", "is_projected", "observed_only", "open_dataset", "open_forecast",
    "source_of", "time_step",
]  # fmt: skip

logger = logging.getLogger(__name__)

NAME_IN_DATA = "name_in_data"
"""The attribute in which a forecast file under other names keeps what the data call a variable."""

_KEPT_ATTRIBUTES = ("long_name", "standard_name", "cell_methods")
_AXIS_ATTRIBUTES = {
    "time": {"standard_name": "time", "long_name": "time"},
    "level": {"standard_name": "air_pressure", "units": "hPa", "positive": "down"},
    "lat": {"standard_name": "latitude", "units": "degrees_north"},
    "lon": {"standard_name": "longitude", "units": "degrees_east"},
    "init_time": {"standard_name": "forecast_reference_time", "long_name": "init time"},
    "lead_time": {"standard_name": "forecast_period", "long_name": "lead time"},
    "realization": {"standard_name": "realization", "units": "1"},
}
_CHUNK_BYTES = 8e6  # of a variable whose dimensions are put into another order
_SPREAD = "realization: standard_deviation"
_MOST_TEXTS = 4  # of one attribute that are handed on, where several files say different things
_COUNTS = ("unsorted_times", "duplicate_times")
_FLAGS = (FLAG_VALUES, FLAG_MASKS)
_MASKS_AS_THEY_ARE = Masking()


def open_dataset(
    paths: Sequence[str | Path], *, mend: bool = False, masking: Masking = _MASKS_AS_THEY_ARE
) -> xr.Dataset:
    """Open NetCDF files, globs, Zarr folders and addresses of Zarr stores as one lazy dataset in canonical form.

    Several files are put together by period, by variable or by level.

    Args:
        paths: files, patterns, Zarr folders, and addresses (https, http, gs, s3, file), mixed as need be.
        mend: sort times that are not in order, and keep the first of those that occur twice.
        masking: which variables to leave out, and what is known of masks.

    Returns:
        Variables (time, [level,] lat, lon), and static fields (lat, lon), each with attrs["units"] ("1" where the file
        has none). attrs: "source", the file names; "lat_descending", 1 where latitude descends in the (first) file
        with a time; "axis_names", what its axes are called there; "calendar" of its dates, None where it names none;
        "unsorted_times" and "duplicate_times", how many were mended; "texts", the files' own global attributes that are
        texts (licence, history ...), "masks", how masks are read, and "ignored", what is left out, where there are any.
        Several files and Zarr are backed by dask, a single file by the file itself.

    Raises:
        DataError: for whatever is missing, unreadable, unsorted or does not fit together.
    """
    locations = expand([paths] if isinstance(paths, str | Path) else paths)
    several = len(locations) > 1
    source = describe(locations)
    raw = [_open_canonical(location, ("time",), several=several, mend=mend, masking=masking) for location in locations]
    parts, read = flagged(raw, masking, source)
    dataset = as_coordinates(combine(parts, source, mend=mend) if several else parts[0], read.get("masks", ()))
    if "time" not in dataset.dims:
        names = ", ".join(map(str, dataset.data_vars))
        raise DataError(f"{source}: holds static fields only ({names}); needed are variables with a time")
    kept = {name: dataset.attrs[name] for name in _COUNTS}
    first = next(part for part in parts if "time" in part.dims)
    about = {name: first.attrs[name] for name in ("lat_descending", "axis_names", "calendar")}
    texts = _said_by_all([part.attrs["texts"] for part in parts])
    dataset.attrs = {"source": source, **about, **kept, **read} | ({"texts": texts} if texts else {})
    if is_projected(dataset):
        logger.info("%s: a projected grid; its cells are taken as equal in area", source)
    return dataset


def open_forecast(path: str | Path) -> xr.Dataset:
    """Open a forecast file in our layout, or in WeatherBench 2's (time, prediction_timedelta, latitude, longitude).

    Returns:
        Variables ([realization,] init_time, lead_time, [level,] lat, lon) with attrs["units"], coordinate valid_time
        (init_time, lead_time), lat and lon ascending; attrs as of :func:`open_dataset`.

    Raises:
        DataError: for a file that is missing, unreadable or no forecast.
    """
    dataset = _open_canonical(expand([path])[0], ("init_time", "lead_time"))
    # The spread of an ensemble, beside its mean, is no forecast.
    spreads = [name for name, field in dataset.data_vars.items() if _SPREAD in field.attrs.get("cell_methods", "")]
    claims = dataset.attrs.pop("claims").items()
    masks = [name for name, claim in claims if claim.is_flag or not claim.is_field]
    dataset = dataset.drop_vars([*spreads, *masks])
    del dataset.attrs["ignored"], dataset.attrs["refused"]
    valid_times = dataset["init_time"].values[:, None] + dataset["lead_time"].values
    dataset.coords["valid_time"] = (("init_time", "lead_time"), valid_times, _AXIS_ATTRIBUTES["time"])
    return dataset


def adopt_dataset(
    dataset: xr.Dataset, name: str = "the dataset", *, masking: Masking = _MASKS_AS_THEY_ARE
) -> xr.Dataset:
    """A dataset that xarray has opened already, in the form of :func:`open_dataset`, as lazy as it came.

    Raises:
        DataError: for whatever is missing or unsorted.
    """
    dates = {key for key, held in dataset.variables.items() if held.dtype.kind in "mM" or _holds_dates(held)}
    raw = dataset.reset_index([key for key in dates if key in dataset.indexes]).copy()
    raw.encoding = {}  # it may differ from the file that it was opened from
    for key in dates:
        raw[key] = xr.conventions.encode_cf_variable(dataset[key].variable.to_base_variable(), name=key)
    texts = {str(key): text for key, text in raw.attrs.items() if isinstance(text, str) and text.strip()}
    try:
        canonical = _canonical(raw, ("time",), False, False, masking).assign_attrs(source=name)
    except DataError as error:
        raise DataError(f"{name}: {error}") from error
    (canonical,), read = flagged([canonical], masking, name)
    canonical = as_coordinates(canonical, read.get("masks", ()))
    return canonical.assign_attrs(**read, **({"texts": texts} if texts else {}))


def _holds_dates(variable: xr.Variable) -> bool:
    """Whether they are those of another calendar."""
    return variable.dtype == object and variable.size > 0 and hasattr(variable.values.flat[0], "calendar")


def is_projected(data: xr.Dataset | xr.DataArray) -> bool:
    """Whether lat and lon are rows and columns of a projected grid, with the places as latitude and longitude."""
    return "latitude" in data.coords


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


def _open_canonical(
    location: Location,
    time_axes: Sequence[str],
    *,
    several: bool = False,
    mend: bool = False,
    masking: Masking = _MASKS_AS_THEY_ARE,
) -> xr.Dataset:
    raw = open_raw(location, with_dask=several or location.is_store)
    try:
        texts = {str(name): text for name, text in raw.attrs.items() if isinstance(text, str) and text.strip()}
        return _canonical(raw, time_axes, several, mend, masking).assign_attrs(source=location.name, texts=texts)
    except DataError as error:
        raise DataError(f"{location.name}: {error}") from error
    except (OSError, RuntimeError) as error:
        raise unreadable(location, error) from error


def _said_by_all(files: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Attributes of several files: where they differ, one text after the other, or none where they all do."""
    said: dict[str, dict[str, None]] = {}
    for texts in files:
        for name, text in texts.items():
            said.setdefault(name, {})[text] = None
    return {name: "\n".join(texts) for name, texts in said.items() if len(texts) <= _MOST_TEXTS}


def _canonical(
    dataset: xr.Dataset, time_axes: Sequence[str], one_of_several: bool, mend: bool, masking: Masking
) -> xr.Dataset:
    """One file in canonical form; one of several may be without a time and hold static fields.

    Masks are variables yet, on some of the dimensions; see :func:`flagged` for the attributes that say so.
    """
    for variable in dataset.variables.values():
        kept = {key: value for key, value in variable.attrs.items() if isinstance(value, str) or key in _FLAGS}
        variable.attrs = kept
    dataset = _merge_expver(_under_own_names(dataset))
    axes, mesh = _find_axes(dataset, time_axes, one_of_several)
    fields, masks = _fields(dataset, axes, mesh, masking)
    order, values, counts = _order_and_values(axes, mesh, mend)
    attributes = dict(_AXIS_ATTRIBUTES)
    if mesh is not None:
        attributes |= {axis: axis_attributes(axes[axis].attrs.get("units", "1"), axis) for axis in ("lat", "lon")}
    fields = fields.isel(order, missing_dims="ignore").assign_coords(
        {axis: (axis, values[axis], attributes[axis]) for axis in values if axis in fields.dims}
    )
    if mesh is not None:
        fields = fields.assign_coords(mesh.coordinates(order))
    fields.attrs = {
        "lat_descending": int(order["lat"] != slice(None)),
        "axis_names": {axis: str(found.name) for axis, found in axes.items()},
        "calendar": axes["time"].attrs.get("calendar") if "time" in axes else None,
        **counts,
        **masks,
    }
    return fields.drop_encoding()


def _under_own_names(dataset: xr.Dataset) -> xr.Dataset:
    """A forecast in WeatherBench 2's layout under the names of the data that it was made from."""
    own = {name: field.attrs.get(NAME_IN_DATA) for name, field in dataset.data_vars.items()}
    return dataset.rename({name: text for name, text in own.items() if text and text not in dataset})


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


def _find_axes(
    dataset: xr.Dataset, time_axes: Sequence[str], one_of_several: bool
) -> tuple[dict[str, xr.DataArray], Mesh | None]:
    """The file's coordinate for each axis, and the places of a projected grid, whose axes are its rows and columns."""
    latitude, longitude = find_place(dataset, "lat"), find_place(dataset, "lon")
    mesh = make_mesh(dataset, latitude, longitude)
    rows, columns = (mesh.rows, mesh.columns) if mesh is not None else (axis_of(latitude), axis_of(longitude))
    in_space = {"lat": rows, "lon": columns}
    axes: dict[str, xr.DataArray] = {}
    members = ("realization",) if "lead_time" in time_axes else ()
    for axis in (*members, *time_axes, "level", "lat", "lon"):
        found = in_space[axis] if axis in in_space else find_axis(dataset, axis)
        if found is not None:
            axes[axis] = found
        elif axis not in ("level", "realization") and not (axis == "time" and one_of_several):
            raise missing_axis(dataset, axis)
    along = [values.dims for values in axes.values() if values.dims]
    if len(set(along)) < len(along):
        described = ", ".join(f"{axis} along '{values.dims[0]}'" for axis, values in axes.items() if values.dims)
        raise DataError(f"not a grid, as axes share a dimension ({described}); needed is one dimension for each")
    if mesh is None:
        check_not_counted(axes["lat"], axes["lon"])
    return axes, mesh


def _fields(
    dataset: xr.Dataset, axes: Mapping[str, xr.DataArray], mesh: Mesh | None, masking: Masking
) -> tuple[xr.Dataset, dict[str, Any]]:
    """The variables on the grid and their masks, dimensions named and ordered canonically.

    Beside them what :func:`flagged` needs: "claims", "ignored" and "refused", the names of other variables.
    """
    names = {values.dims[0]: axis for axis, values in axes.items() if values.dims}
    taken = {*axes, *(values.name for values in axes.values())}
    if mesh is not None:
        taken |= {"latitude", "longitude", mesh.latitude.name, mesh.longitude.name}
    ignored = [str(name) for name in dataset.variables if name not in taken and masking.ignores(str(name))]
    claims = {name: claim for name, claim in claims_of(dataset).items() if name not in {*taken, *ignored}}
    kept, refused = {}, {}
    for name, field in dataset.data_vars.items():
        reason = "an axis" if name in taken else _why_not_a_field(field, names, axes)
        if name in ignored or (reason and name in claims):
            continue
        if reason is None:
            kept[str(name)] = _field(field, names, axes)
        else:
            refused[str(name)] = f"'{name}' {reason}"
            level = logging.WARNING if "more than one" in reason else logging.DEBUG
            logger.log(level, "left out: %s", refused[str(name)])
    if not kept:
        reasons = "; ".join(list(refused.values())[:4]) or "there are no variables at all"
        raise DataError(f"no variable on (time, latitude, longitude) to use: {reasons}")
    may_be = {name: replace(claim, is_field=name in kept) for name, claim in claims.items()}
    masks = {
        name: _field(dataset[name], names, axes)
        for name, claim in may_be.items()
        if not claim.is_field and is_on_the_grid(dataset[name], names, owners_of(name, claim, kept))
    }
    claims = {name: claim for name, claim in may_be.items() if claim.is_field or name in masks}
    return xr.Dataset(kept | masks), {"claims": claims, "ignored": ignored, "refused": tuple(refused)}


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
    kept = {key: field.attrs[key] for key in _KEPT_ATTRIBUTES if field.attrs.get(key, "unknown") != "unknown"}
    attrs = {"units": normalise_units(field.attrs.get("units", "")), **kept}
    bare = field.isel({dim: 0 for dim in field.dims if dim not in names}).drop_vars(field.coords, errors="ignore")
    bare = bare.rename({dim: names[dim] for dim in bare.dims})
    known = recognise(str(field.name), attrs)
    if known is not None and known.static:
        # ERA5 repeats its land-sea mask at every time; the middle one is there even where a store's ends are empty.
        bare = bare.isel(time=bare.sizes["time"] // 2) if "time" in bare.dims else bare
    else:
        # A file of one time may have it as a scalar.
        bare = bare.expand_dims([axis for axis, at in axes.items() if axis.endswith("time") and not at.dims])
    bare = _in_order(bare, [axis for axis in axes if axis in bare.dims])
    bare.attrs = attrs
    return bare


def _in_order(field: xr.DataArray, dims: Sequence[str]) -> xr.DataArray:
    """With its dimensions in this order, lazily."""
    if list(field.dims) == list(dims):
        return field
    if field.chunks is None:  # else xarray would keep an index of 8 bytes per value and dimension
        longest = max(dims, key=lambda dim: field.sizes[dim])
        field = field.chunk({longest: max(int(_CHUNK_BYTES * field.sizes[longest] / max(field.nbytes, 1)), 1)})
    return field.transpose(*dims)


def _order_and_values(
    axes: Mapping[str, xr.DataArray], mesh: Mesh | None, mend: bool
) -> tuple[dict[str, Any], dict[str, np.ndarray], dict[str, int]]:
    """How to take each dimension, the coordinate values then, and how many times were mended."""
    order: dict[str, Any] = {}
    values: dict[str, np.ndarray] = {}
    counts = dict.fromkeys(_COUNTS, 0)
    for axis, found in axes.items():
        if axis in ("time", "init_time"):
            values[axis], keep = decode_times(found)
            taken = np.flatnonzero(keep)
            if mend and axis == "time":
                mended, counts = mended_order(values[axis])
                values[axis], taken = values[axis][mended], taken[mended]
            check_increasing(values[axis], axis)
            if not np.array_equal(taken, np.arange(keep.size)):
                order[axis] = taken
        elif axis == "lead_time":
            values[axis] = decode_leads(found)
        elif axis == "level":
            values[axis] = level_values(found)
        elif axis == "realization":
            values[axis] = found.values
        elif mesh is not None:
            order[axis], values[axis] = row_order(found)
        elif axis == "lat":
            order[axis], values[axis] = latitude_order(found)
        else:
            order[axis], values[axis] = longitude_order(found)
    return order, values, counts
