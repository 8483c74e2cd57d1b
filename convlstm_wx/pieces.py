"""Work in pieces that outlive a stop: finished ones lie in a folder beside the output, until the output is whole."""

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from convlstm_wx.errors import ConfigError
from convlstm_wx.files import make_folder, replacing, write_text


class Pieces:
    """The finished pieces of one request, in the folder .NAME.partial beside its output.

    Args:
        output: the file that they become.
        request: all that the pieces depend on, as plain JSON; another request's pieces are never used.
        what: the work in a word, for messages.
        anew: throw away another request's pieces.
        remedy: the option that does so.

    Raises:
        ConfigError: if pieces of another request are in the way, or the folder cannot be written.
    """

    def __init__(self, output: Path, request: Mapping[str, Any], *, what: str, anew: bool, remedy: str):
        self.folder = output.with_name(f".{output.name}.partial")
        file, request = self.folder / "request.json", json.loads(json.dumps(request))  # a tuple comes back as a list
        differing = _differing(file, request)
        if differing and not anew:
            raise ConfigError(
                f"{self.folder}: holds an unfinished {what} with another {', '.join(differing)}; give the same options "
                f"to go on with it, or {remedy} to begin anew"
            )
        if differing:
            self.remove()
        make_folder(self.folder)
        write_text(file, json.dumps(request, indent=1))

    def __contains__(self, number: int) -> bool:
        try:
            with np.load(self._path(number)):
                return True
        except (OSError, ValueError, EOFError, BadZipFile):  # not there, or cut short when the power went
            return False

    def done(self, count: int) -> set[int]:
        """Which of the pieces 0 ... count - 1 are here."""
        return {number for number in range(count) if number in self}

    def add(self, number: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Keep a piece, whole or not at all.

        Raises:
            ConfigError: if the disk is full.
        """
        with replacing(self._path(number)) as temporary, temporary.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]

    def read(self, number: int) -> Iterator[tuple[str, np.ndarray]]:
        """Its arrays by name, one after the other."""
        with np.load(self._path(number)) as piece:
            for name in piece.files:
                yield name, piece[name]

    def array(self, number: int, name: str) -> np.ndarray:
        """One of its arrays."""
        with np.load(self._path(number)) as piece:
            return piece[name]

    def remove(self) -> None:
        """When the output is whole, or nothing came of it."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:05d}.npz"


def _differing(file: Path, request: Mapping[str, Any]) -> list[str]:
    """What an earlier request asked for differently; nothing if there was none."""
    if not file.exists():
        return []
    try:
        earlier = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        earlier = {}
    return [key for key in request if request[key] != earlier.get(key)]
