"""The data cache: what a region's data became, kept for the next run under a key of all that it depends on.

A cache is a folder: values.bin and observed.bin (rows of raw numbers), arrays.npz and entries.json (everything else).
It is built under another name and renamed when whole, so that what bears its name can be used.
"""

import hashlib
import json
import logging
import os
import shutil
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np

from convlstm_wx.data.locations import expand
from convlstm_wx.data.store import FileArray, PackedArray, no_room
from convlstm_wx.files import make_folder

log = logging.getLogger(__name__)

FORMAT = 3
DEFAULT_FOLDER = ".convlstm_wx_cache"


class Cache:
    """One region's place among the caches of a folder.

    Args:
        folder: of all caches; created when something is written.
        files: what the data are read from, patterns too; when one of them changes, the cache is another.
        depends_on: plain values and arrays that the contents depend on besides.

    Raises:
        ConfigError: if the folder cannot be written.
    """

    def __init__(self, folder: Path, files: Sequence[str], depends_on: Mapping[str, Any]):
        self.path = folder / _key(files, depends_on)

    def exists(self) -> bool:
        """Whether a whole one is there."""
        return (self.path / "entries.json").exists()

    @contextmanager
    def building(self) -> Iterator[Path]:
        """A folder to write into, which becomes the cache when the block ends well; unfinished ones are thrown away."""
        make_folder(self.path.parent)
        _remove_unfinished(self.path.parent)
        unfinished = self.path.with_name(f"{self.path.name}.{socket.gethostname()}.{os.getpid()}.unfinished")
        unfinished.mkdir()
        try:
            yield unfinished
            try:
                unfinished.rename(self.path)
            except OSError:
                if not self.exists():  # else a sibling process was faster
                    raise
        except OSError as error:
            raise no_room(self.path.parent, 0, error) from error
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)


def write_entries(folder: Path, entries: Mapping[str, Any]) -> None:
    """Arrays and plain values by name."""
    arrays = {name: value for name, value in entries.items() if isinstance(value, np.ndarray)}
    np.savez(folder / "arrays.npz", allow_pickle=False, **arrays)
    plain = {name: value for name, value in entries.items() if name not in arrays}
    (folder / "entries.json").write_text(json.dumps(plain), encoding="utf-8")


def read_entries(folder: Path) -> dict[str, Any]:
    """Back from :func:`write_entries`."""
    with np.load(folder / "arrays.npz", allow_pickle=False) as arrays:
        entries = dict(arrays)
    return entries | json.loads((folder / "entries.json").read_text(encoding="utf-8"))


def open_array(folder: Path, name: str, dtype: Any, shape: Sequence[int], *, packed: bool = False) -> FileArray:
    """An array of a complete cache, for reading."""
    file = FileIO(folder / f"{name}.bin")
    return PackedArray(file, shape) if packed else FileArray(file, dtype, shape)


def _key(files: Sequence[str], depends_on: Mapping[str, Any]) -> str:
    digest = hashlib.sha256()
    for name, value in {"format": FORMAT, "files": fingerprint(files), **depends_on}.items():
        digest.update(name.encode())
        if isinstance(value, np.ndarray):
            digest.update(np.ascontiguousarray(value).tobytes())
        else:
            digest.update(json.dumps(value, sort_keys=True).encode())
    return digest.hexdigest()[:20]


def fingerprint(files: Sequence[str]) -> list[list[Any]]:
    """Name, size and time of change of every file; of a Zarr store every one in it. A store on the net has its name."""
    found: list[list[Any]] = []
    for location in expand(files):
        path = location.path
        if location.scheme:
            found.append([location.address])
            continue
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                status = file.stat()
                found.append([str(file.absolute()), status.st_size, status.st_mtime_ns])
    return found


def _remove_unfinished(folder: Path) -> None:
    """What killed processes of this machine left."""
    for path in folder.glob("*.unfinished"):
        host, process = _owner(path)
        # A number is used again, by this process too: in a container every run may have the same.
        if host == socket.gethostname() and (process == os.getpid() or not _runs(process)):
            log.info("removed an unfinished data cache, %s", path)
            shutil.rmtree(path, ignore_errors=True)


def _owner(path: Path) -> tuple[str, int]:
    """(host, process) that a folder is built by."""
    host, _, process = path.name.removesuffix(".unfinished").partition(".")[2].rpartition(".")
    return host, int(process) if process.isdigit() else 0


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return True
