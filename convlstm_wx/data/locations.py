"""Where data lie: files, patterns, Zarr folders, and Zarr stores behind an address such as gs://bucket/era5.zarr.

Stores behind an address are read without an account, chunk by chunk; nothing is downloaded beforehand.
"""

import glob
import re
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.request import url2pathname

import netCDF4
import xarray as xr
from xarray.backends import CachingFileManager, NetCDF4DataStore
from xarray.backends.netCDF4_ import NETCDF4_PYTHON_LOCK

from convlstm_wx.data.classic import missing_bytes
from convlstm_wx.errors import DataError

_ZARR_MARKS = ("zarr.json", ".zgroup", ".zmetadata")
# One slash too: a Path makes https:/host of https://host. Two letters at least, as C:/ is a disk.
_SCHEME = re.compile(r"^(?P<scheme>[A-Za-z][A-Za-z0-9+.-]+):/{1,2}(?=[^/])")
_PACKAGES = {"http": "aiohttp", "https": "aiohttp", "gs": "aiohttp", "gcs": "aiohttp", "s3": "s3fs"}
# Public buckets are served here too. gcsfs asks for an account's settings first, and waits minutes where it has none.
_GOOGLE_CLOUD = "https://storage.googleapis.com"
_NETCDF_ENDINGS = (".nc", ".nc4", ".cdf", ".netcdf", ".h5", ".hdf5")
_CONNECT_S, _READ_S = 20, 120  # the libraries' own limits are up to five minutes


@dataclass(frozen=True)
class Location:
    """A file, a Zarr folder, or the address of a Zarr store (https, http, gs, s3)."""

    address: str

    @property
    def scheme(self) -> str | None:
        """'gs', 'https' ..., or None for a path."""
        found = _SCHEME.match(self.address)
        return found["scheme"] if found else None

    @property
    def name(self) -> str:
        """The last part, for messages and attributes."""
        return re.split(r"[?#]", self.address)[0].rstrip("/").rpartition("/")[2] if self.scheme else self.path.name

    @property
    def served_at(self) -> str:
        """Where it is read from: the address, but web addresses for gs://bucket."""
        return _SCHEME.sub(f"{_GOOGLE_CLOUD}/", self.address) if self.scheme in ("gs", "gcs") else self.address

    @property
    def is_store(self) -> bool:
        """A Zarr store rather than a NetCDF file."""
        return self.scheme is not None or self.path.is_dir()

    @property
    def path(self) -> Path:
        """Of a file or folder."""
        return Path(self.address)


def expand(paths: Sequence[str | Path]) -> list[Location]:
    """The files, folders and stores behind paths, patterns and addresses, each once.

    Raises:
        DataError: for a pattern without files, for no path at all, and for an address of a kind that is not known.
    """
    found = [location for path in paths for location in _behind(str(path))]
    if not found:
        raise DataError("no data file given; name at least one NetCDF file with --data")
    return list(dict.fromkeys(found))


def _behind(text: str) -> list[Location]:
    remote = _SCHEME.match(text)
    if remote or text.startswith("file:///"):
        return [_at_address(text, remote["scheme"].lower() if remote else "file")]
    pattern = glob.has_magic(text) and not Path(text).exists()
    names = sorted(glob.glob(text, recursive=True)) if pattern else [text]
    if not names:
        raise DataError(f"{text}: no file fits this pattern")
    return [Location(name) for name in names]


def _at_address(text: str, scheme: str) -> Location:
    rest = text.partition(":")[2].lstrip("/")
    if scheme == "file":
        return Location(url2pathname("/" + rest.removeprefix("localhost/")))
    if scheme not in _PACKAGES:
        raise DataError(f"{text}: {scheme}:// is not known; known are https://, http://, gs://, s3:// and file://")
    if "*" in rest:
        raise DataError(f"{text}: patterns work for files only; name each store with its address")
    if re.split(r"[?#]", rest)[0].lower().endswith(_NETCDF_ENDINGS):
        raise DataError(
            f"{text}: a NetCDF file cannot be read piece by piece from its address; download it first and give the "
            "file, or give the address of a Zarr store"
        )
    return Location(f"{scheme}://{rest}")


def describe(locations: Sequence[Location]) -> str:
    """The names of several files, for messages."""
    names = [location.name for location in locations]
    return ", ".join(names) if len(names) <= 3 else f"{names[0]} ... {names[-1]} ({len(names)} files)"


def open_raw(location: Location, *, with_dask: bool, decode_times: bool = False) -> xr.Dataset:
    """What is there as xarray sees it: missing values and packing decoded.

    Args:
        location: from :func:`expand`.
        with_dask: lazily in dask's chunks; else lazily in xarray's own way.
        decode_times: dates, too.

    Raises:
        DataError: for what is missing, damaged, out of reach or neither NetCDF nor Zarr.
    """
    options: dict[str, Any] = {}
    if location.scheme:
        options["storage_options"] = _reach(location)
    else:
        _check_path(location.path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", xr.SerializationWarning)
            warnings.simplefilter("ignore", RuntimeWarning)  # a Zarr store without consolidated metadata
            dataset = xr.open_dataset(
                location.served_at if location.is_store else NetCDF4DataStore(_handle(location.path)),
                engine="zarr" if location.is_store else None,
                # A Zarr store's own chunks; a NetCDF file may be one chunk as a whole, or cut very small.
                chunks=({} if location.is_store else "auto") if with_dask else None,
                decode_times=decode_times,
                decode_timedelta=False,
                **options,
            )
    except Exception as error:  # the libraries below raise almost anything for a damaged file
        raise unreadable(location, error) from error
    if location.scheme and not dataset.variables:
        raise DataError(
            f"{location.address}: no variables are listed there; a store behind an address needs consolidated metadata"
        )
    dataset = _by_name(dataset) if location.is_store else dataset
    dataset.encoding["source"] = location.address  # as given, for messages
    return dataset


def _by_name(dataset: xr.Dataset) -> xr.Dataset:
    """The variables in the order of their names: that of a folder's entries is another on another disk."""
    names = sorted(dataset.data_vars, key=str)
    return dataset.drop_vars(names).assign({name: dataset[name] for name in names})


def _handle(path: Path) -> CachingFileManager:
    """The one open handle of a file, shared by all who read it and closed after the last of them.

    HDF5 breaks (an error, or a crash) where a file with strings, as Copernicus writes them, is open more than once and
    one of its handles is closed: https://github.com/HDFGroup/hdf5/issues/5359. Managers of one identity share what
    xarray holds open, and find again what it could not close when a garbage collection came in the midst of reading.
    """
    state = path.stat()
    real = str(path.resolve())
    identity = f"{real} {state.st_ino} {state.st_size} {state.st_mtime_ns}"
    return CachingFileManager(netCDF4.Dataset, real, mode="r", lock=NETCDF4_PYTHON_LOCK, manager_id=identity)


def _reach(location: Location) -> dict[str, Any]:
    """fsspec's options for a store behind an address, after a look whether one is there.

    One request at a time: zarr asks for several things at once, and leaves what it asked for behind when one fails.
    """
    _check_packages(location)
    import fsspec  # an optional package, asked for only here

    options = _storage_options(str(location.scheme))
    try:
        files, root = fsspec.url_to_fs(location.served_at, **options)
        for mark in _ZARR_MARKS:
            with suppress(FileNotFoundError):
                files.cat_file(f"{root.rstrip('/')}/{mark}", start=0, end=1)
                return options
    except Exception as error:  # whatever the network and its libraries raise
        raise unreadable(location, error) from error
    raise DataError(f"{location.address}: there is no Zarr store; check the address")


def _check_packages(location: Location) -> None:
    needed = ("zarr", "fsspec", _PACKAGES[str(location.scheme)])
    missing = [name for name in needed if find_spec(name) is None]
    if missing:
        raise DataError(
            f"{location.address}: needs {' and '.join(missing)}, not installed here: pip install 'convlstm_wx[cloud]'"
        )


def _check_path(path: Path) -> None:
    if not path.exists():
        raise DataError(f"{path}: no such file")
    if not path.is_dir():
        _check_whole(path)
        return
    if not any((path / mark).exists() for mark in _ZARR_MARKS):
        raise DataError(f"{path}: is a folder without a Zarr store; give NetCDF files, or a pattern: '{path}/*.nc'")
    if find_spec("zarr") is None:
        raise DataError(f"{path}: is a Zarr store and needs zarr, not installed: pip install 'convlstm_wx[zarr]'")


def _check_whole(path: Path) -> None:
    """The NetCDF library itself reads zeros beyond the end of a classic file."""
    try:
        lost = missing_bytes(path)
    except OSError:
        return  # that it cannot be read is told when it is opened
    except ValueError as error:
        raise DataError(f"{path}: damaged or cut short ({error}); fetch it again") from error
    if lost:
        raise DataError(f"{path}: damaged or cut short (the last {lost:,} bytes are missing); fetch it again")


def _storage_options(scheme: str) -> dict[str, Any]:
    """No account, and no waiting without end."""
    if scheme == "s3":
        limits = {"connect_timeout": _CONNECT_S, "read_timeout": _READ_S, "retries": {"max_attempts": 2}}
        return {"anon": True, "config_kwargs": limits}
    import aiohttp  # an optional package, asked for only here

    timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S, sock_read=_READ_S)
    return {"client_kwargs": {"timeout": timeout, "trust_env": True}}  # with the proxies of the environment


def unreadable(location: Location, error: Exception) -> DataError:
    """What an error of the libraries below means, in one line."""
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    if location.scheme:
        return DataError(f"{location.address}: {_why_out_of_reach(error, reason)}")
    path = location.path
    if isinstance(error, PermissionError):
        return DataError(f"{path}: may not be read; check its permissions")
    if path.is_dir():
        return DataError(f"{path}: cannot be read as a Zarr store ({reason})")
    with path.open("rb") as stream:
        start = stream.read(8)
    if start.startswith((b"CDF", b"\x89HDF")):
        return DataError(f"{path}: damaged or cut short ({reason}); fetch it again")
    return DataError(f"{path}: not a NetCDF file (it begins with {start!r}); needed is NetCDF 3 or 4, or a Zarr folder")


def _why_out_of_reach(error: Exception, reason: str) -> str:
    status = getattr(error, "status", None)
    if isinstance(error, PermissionError) or status in (401, 403):
        return "may not be read without an account; only public stores can be read, others must be downloaded first"
    if status is None and (isinstance(error, OSError) or "onnect" in type(error).__name__):
        return f"cannot be reached ({reason}); check the address and the network"
    return f"cannot be read as a Zarr store ({reason})"
