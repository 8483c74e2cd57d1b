"""Writing a grid bit by bit: a NetCDF file or a Zarr store that is filled in stretches of time (or of init times)."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import Any, Protocol

import netCDF4
import numpy as np
import xarray as xr

from convlstm_wx.conventions import KnownVariable, normalise_units, recognise
from convlstm_wx.errors import ConfigError
from convlstm_wx.files import check_can_make, describe_bytes, library_errors, make_folder, replacing

CONVENTIONS = "CF-1.11"
FILLED_ATTRIBUTES: dict[str, Any] = {
    "standard_name": "status_flag",
    "flag_values": np.array([0, 1], np.int8),
    "flag_meanings": "observed filled",
}
_CHUNK_BYTES = 4e6
_ONE_A_CHUNK = ("level", "realization")
_EPOCH = "since 1970-01-01"
_AXES = {
    "time": {"standard_name": "time", "long_name": "time", "axis": "T"},
    "level": {"standard_name": "air_pressure", "units": "hPa", "positive": "down", "axis": "Z"},
    "lat": {"standard_name": "latitude", "long_name": "latitude", "units": "degrees_north", "axis": "Y"},
    "lon": {"standard_name": "longitude", "long_name": "longitude", "units": "degrees_east", "axis": "X"},
    "y": {"axis": "Y"},
    "x": {"axis": "X"},
}


@dataclass(frozen=True)
class Layout:
    """One variable of a file that is to be written.

    Attributes:
        dims: of which the first is filled bit by bit.
        dtype: of its values.
        attrs: of the file.
        most_rows: of a chunk along the first dimension; None: by its size alone.
    """

    dims: tuple[str, ...]
    dtype: np.dtype
    attrs: Mapping[str, Any]
    most_rows: int | None = None


class GridFile(Protocol):
    """A file under way: every variable is written in stretches of its first dimension, in any order."""

    def write(self, name: str, start: int, values: np.ndarray) -> None:
        """Values from this index of the first dimension on."""

    def finish(self, attrs: Mapping[str, Any]) -> None:
        """Add attributes of the whole file."""


def check_output(path: Path, *, overwrite: bool, option: str = "--output") -> None:
    """Refuse an output that could not or should not be written, before work begins. Nothing is created.

    Raises:
        ConfigError: for an ending that is neither .nc nor .zarr, a missing package, a folder that cannot be written,
            or something in the way.
    """
    if path.suffix not in (".nc", ".zarr"):
        raise ConfigError(f"{option} {path}: must end in .nc or .zarr")
    if path.suffix == ".zarr" and find_spec("zarr") is None:
        raise ConfigError(f"{option} {path}: needs the zarr package: pip install 'convlstm_wx[zarr]'")
    is_store = any((path / mark).exists() for mark in (".zgroup", "zarr.json"))
    if path.is_dir() and not (path.suffix == ".zarr" and is_store):
        raise ConfigError(f"{option} {path}: is a folder that is not a Zarr store; choose another name")
    if path.exists() and not overwrite:
        raise ConfigError(f"{option} {path}: exists already; choose another name, or replace it with --overwrite")
    check_can_make(path.parent)


@contextmanager
def writing(path: Path, frame: xr.Dataset, layouts: Mapping[str, Layout]) -> Iterator[GridFile]:
    """A file to fill, which takes its place at `path` when the block ends well, and leaves nothing otherwise.

    Args:
        path: .nc (NetCDF-4, compressed) or .zarr (format 2, consolidated).
        frame: the coordinates (time, [level,] lat and lon, or those of a forecast; y and x of a projected grid, whose
            places are the coordinates latitude and longitude), and the fields without a time, with values.
        layouts: the variables that are filled bit by bit.

    Raises:
        ConfigError: if the folder cannot be written or is full.
    """
    make_folder(path.parent)
    frame = _with_axes(frame)
    with replacing(path) as temporary:
        file = (_Zarr if path.suffix == ".zarr" else _NetCDF)(temporary, frame, layouts)
        try:
            yield file
        finally:
            file.close()


def size_on_disk(path: Path) -> str:
    """The size of a file or folder for people."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return describe_bytes(sum(file.stat().st_size for file in files))


def chunk_rows(sizes: Mapping[Any, int], layout: Layout) -> int:
    """How many times go into one chunk of a file; a chunk holds one level, and one member of an ensemble."""
    row = layout.dtype.itemsize * prod(sizes[dim] for dim in layout.dims[1:] if dim not in _ONE_A_CHUNK)
    return int(np.clip(_CHUNK_BYTES // row, 1, max(1, min(sizes[layout.dims[0]], layout.most_rows or np.inf))))


def standard_name(known: KnownVariable, units: str) -> str | None:
    """The CF standard name of a known variable whose canonical units are like those given."""
    wanted = {"J m-2": "integral_", "m": "lwe_", "mm": "lwe_", "cm": "lwe_", "in": "lwe_"}
    wanted |= {"mm d-1": "lwe_", "mm h-1": "lwe_", "m s-1": "lwe_"}
    start = wanted.get(normalise_units(units), "")
    fitting = [name for name in known.standard_names if name.startswith(start)]
    fitting = [name for name in fitting if name.endswith("area_fraction")] or fitting  # ERA5's land mask is a fraction
    return next(iter(fitting or known.standard_names), None)


def described(name: str, attrs: Mapping[str, Any]) -> dict[str, Any]:
    """A variable's attributes, with the standard and long name added where they are known and absent."""
    known = recognise(name, attrs)
    added: dict[str, Any] = {}
    if known is not None:
        added = {"long_name": known.long_name, "standard_name": standard_name(known, str(attrs.get("units", "")))}
    return {key: value for key, value in (added | dict(attrs)).items() if value is not None}


def _with_axes(frame: xr.Dataset) -> xr.Dataset:
    frame = frame.copy()
    for name, attrs in _AXES.items():
        if name in frame.coords:
            frame[name].attrs = {**attrs, **frame[name].attrs}
    return frame


def _encoding(frame: xr.Dataset) -> dict[str, dict[str, Any]]:
    encoding: dict[str, dict[str, Any]] = {str(name): {"_FillValue": None} for name in frame.coords}
    for name, coordinate in frame.coords.items():
        if coordinate.dtype.kind in "mM":
            since = f" {_EPOCH}" if coordinate.dtype.kind == "M" else ""
            encoding[str(name)] = {"units": _unit_of(coordinate.values) + since, "dtype": "int64"}
    return encoding


def _unit_of(times: np.ndarray) -> str:
    """The unit in which times or durations are whole numbers."""
    nanoseconds = times.astype(f"{times.dtype.kind}8[ns]").astype("int64")
    return "seconds" if (nanoseconds % (3600 * 10**9)).any() else "hours"


def _chunks(sizes: Mapping[Any, int], layout: Layout) -> tuple[int, ...]:
    there = {layout.dims[0]: chunk_rows(sizes, layout)} | dict.fromkeys(_ONE_A_CHUNK, 1)
    return tuple(there.get(dim, sizes[dim]) for dim in layout.dims)


class _NetCDF:
    """Coordinates by xarray, which knows how to write dates; the rest by the NetCDF library, piece by piece."""

    def __init__(self, path: Path, frame: xr.Dataset, layouts: Mapping[str, Layout]):
        with library_errors():
            frame.to_netcdf(path, encoding=_encoding(frame))
            self._file = netCDF4.Dataset(path, "a")
            self._file.set_fill_off()
            if "coordinates" in self._file.ncattrs():  # xarray's, for coordinates that no variable has yet
                self._file.delncattr("coordinates")
        for name, layout in layouts.items():
            variable = self._file.createVariable(
                name,
                layout.dtype,
                layout.dims,
                compression="zlib",
                complevel=1,
                shuffle=True,
                chunksizes=_chunks(frame.sizes, layout),
                fill_value=np.nan if layout.dtype.kind == "f" else False,
            )
            places = [str(name) for name in frame.coords if name not in frame.dims]
            variable.setncatts(dict(layout.attrs) | ({"coordinates": " ".join(places)} if places else {}))
            variable.set_auto_maskandscale(False)
            variable.set_var_chunk_cache(size=int(2 * _CHUNK_BYTES))  # the library's own: 64 MB for each variable

    def write(self, name: str, start: int, values: np.ndarray) -> None:
        with library_errors():
            self._file.variables[name][start : start + len(values)] = values

    def finish(self, attrs: Mapping[str, Any]) -> None:
        with library_errors():
            self._file.setncatts({"Conventions": CONVENTIONS, **attrs})
            self._file.sync()

    def close(self) -> None:
        if self._file.isopen():
            with library_errors():
                self._file.close()


class _Zarr:
    def __init__(self, path: Path, frame: xr.Dataset, layouts: Mapping[str, Layout]):
        import dask.array
        import zarr

        self._path = path
        encoding = _encoding(frame)
        for name, layout in layouts.items():
            shape = tuple(frame.sizes[dim] for dim in layout.dims)
            empty = dask.array.zeros(shape, dtype=layout.dtype, chunks=-1)  # never computed: only its shape is written
            frame[name] = (layout.dims, empty, _plain(layout.attrs))
            encoding[name] = {
                "chunks": _chunks(frame.sizes, layout),
                "_FillValue": np.nan if layout.dtype.kind == "f" else None,
            }
        frame.to_zarr(path, mode="w", encoding=encoding, compute=False, zarr_format=2, consolidated=False)
        self._group = zarr.open_group(path, mode="r+", zarr_format=2)

    def write(self, name: str, start: int, values: np.ndarray) -> None:
        self._group[name][start : start + len(values)] = values  # type: ignore[index]

    def finish(self, attrs: Mapping[str, Any]) -> None:
        import zarr

        self._group.attrs.update({"Conventions": CONVENTIONS, **attrs})
        zarr.consolidate_metadata(self._group.store, zarr_format=2)

    def close(self) -> None:
        """Nothing is left open."""


def _plain(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes as JSON takes them."""
    return {key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in attrs.items()}
