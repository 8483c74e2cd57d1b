"""Writing whole or not at all."""

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from convlstm_wx.errors import ConfigError


def make_folder(folder: Path) -> None:
    """Create a folder if need be, and see that it can be written.

    Raises:
        ConfigError: if it cannot be created or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = "it is a file" if isinstance(error, FileExistsError | NotADirectoryError) else error.strerror
        raise ConfigError(f"{folder}: cannot be written ({reason}); choose another folder") from error


def check_can_make(folder: Path) -> None:
    """The same for a folder that is not to be created yet: its nearest existing parent must be writable.

    Raises:
        ConfigError: if it is not.
    """
    nearest = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    make_folder(nearest)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path in the same folder, which takes the place of `path` when the block ends well.

    A file is synced before it is renamed; a folder (a Zarr store) replaces a folder. When the block fails, the
    temporary is removed and what was at `path` is untouched.

    Raises:
        ConfigError: if the folder cannot be written or is full.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp{path.suffix}")
    try:
        yield temporary
        if temporary.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be written ({error.strerror or error}); free some space or choose another folder"
        ) from error
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            with suppress(OSError):  # what went wrong above is what the user must hear of
                temporary.unlink()


def remove_unfinished(folder: Path, names: Sequence[str]) -> None:
    """Remove what killed processes left of these files (names or patterns) when they were replacing them.

    Only whoever holds the folder (:func:`alone_in`) may: another process's file may be under way.
    """
    for name in names:
        for file in folder.glob(f".{name}.*.tmp*"):
            file.unlink()


@contextmanager
def alone_in(folder: Path, option: str = "--output-dir") -> Iterator[None]:
    """Holds a folder for this process, until the block or the process ends.

    Args:
        folder: that exists.
        option: of the command line, that chose the folder, for the message.

    Raises:
        ConfigError: if another process holds it.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise ConfigError(f"{folder}: another run is writing here; choose another {option}") from error
    except OSError:  # a file system without locks
        pass
    try:
        yield
    finally:
        os.close(handle)


@contextmanager
def library_errors() -> Iterator[None]:
    """PyTorch and the NetCDF library report a full disk as a RuntimeError; an OSError is what it is."""
    try:
        yield
    except RuntimeError as error:
        cause = error.__context__  # PyTorch's own words are about positions in a file
        raise (cause if isinstance(cause, OSError) else OSError(str(error))) from error


def write_text(path: Path, text: str) -> None:
    """A text file, whole or not at all.

    Raises:
        ConfigError: if it cannot be written.
    """
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def describe_bytes(size: float) -> str:
    """A size for people: "1.5 GB", "12 MB", "3 kB", "70 bytes"."""
    for unit, name in ((2**30, "GB"), (2**20, "MB")):
        if size >= unit:
            return f"{size / unit:.3g} {name}"
    return f"{size / 2**10:.0f} kB" if size >= 2**10 else f"{size:.0f} bytes"


def describe_duration(seconds: float) -> str:
    """A duration for people: "3 s", "20 min", "1.5 h"."""
    if seconds < 90:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
