"""Where arrays are kept: in memory, or in a file that is read row by row."""

import os
import tempfile
from collections.abc import Iterator, Sequence
from io import FileIO
from itertools import pairwise
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from convlstm_wx.errors import DataError
from convlstm_wx.files import describe_bytes
from convlstm_wx.memory import memory_bytes

SLICE_BYTES = 256 * 2**20


def memory_budget_bytes(gigabytes: float | None) -> int:
    """The --memory-budget in bytes; by default half of the memory that there is."""
    return memory_bytes() // 2 if gigabytes is None else int(gigabytes * 2**30)


def time_slices(array_shape: Sequence[int], most_bytes: int = SLICE_BYTES) -> Iterator[slice]:
    """Slices of the first axis of a float32 array, each of at most the given bytes (but one row)."""
    rows = max(1, most_bytes // (4 * max(1, int(np.prod(array_shape[1:])))))
    for start in range(0, array_shape[0], rows):
        yield slice(start, min(start + rows, array_shape[0]))


class FileArray:
    """An array [N, ...] in a file, of which only the rows asked for are ever in memory.

    A memory map would do as well, but its pages count as the process's own until the system wants them back.
    Several threads may read it.
    """

    def __init__(self, file: FileIO, dtype: Any, shape: Sequence[int]):
        self.file, self.lock = file, Lock()
        self.dtype, self.shape = np.dtype(dtype), tuple(shape)
        self.row_bytes = self.dtype.itemsize * int(np.prod(self.shape[1:]))

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def nbytes(self) -> int:
        """Size in the file."""
        return len(self) * self.row_bytes

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        """The rows of a slice, or of an index array of any shape; runs of neighbours are read in one piece."""
        at = np.arange(len(self))[rows]
        flat = at.ravel()
        out = np.empty((flat.size, *self.shape[1:]), self.dtype)
        edges = [0, *(np.flatnonzero(np.diff(flat) != 1) + 1).tolist(), flat.size]
        for first, end in pairwise(edges):
            if self.row_bytes and end > first:
                self._read(int(flat[first]), out[first:end])
        return out.reshape(*at.shape, *self.shape[1:])

    def part(self, rows: np.ndarray, place: int) -> np.ndarray:
        """Of some rows the part that `[rows, place]` gives of an array [N, C, ...]; nothing else is read."""
        out = np.empty((rows.size, *self.shape[2:]), self.dtype)
        for index, row in enumerate(rows.tolist()):
            self._read(row, out[index], skip=place * out[0].nbytes)
        return out

    def _read(self, row: int, out: np.ndarray, *, skip: int = 0) -> None:
        view = out.reshape(-1).view(np.uint8).data
        with self.lock:
            self.file.seek(row * self.row_bytes + skip)
            while view:
                count = self.file.readinto(view)
                if not count:
                    raise DataError("the data cache is cut short; delete its folder and start again")
                view = view[count:]

    def __setitem__(self, rows: slice, values: np.ndarray) -> None:
        """Write a stretch of rows."""
        view = np.ascontiguousarray(values, self.dtype).reshape(-1).view(np.uint8).data
        self.file.seek(rows.start * self.row_bytes)
        while view:
            view = view[self.file.write(view) :]


class PackedArray(FileArray):
    """Fields [N, C, H, W] of 16-bit numbers in a file, read and written as float32: half the space of a FileArray.

    Each field has a lowest value and a step of its own, so that packing changes a value by at most 1/131,068 of the
    range of its field. This is the simple packing of GRIB [WMO Manual on Codes, template 5.0] with steps that are no
    powers of two. The data cache packs twice, before and after it normalises values. A row is the C pairs of lowest
    value and step in float32, then the numbers.
    """

    def __init__(self, file: FileIO, shape: Sequence[int]):
        super().__init__(file, np.float32, shape)
        self.channels, self.points = self.shape[1], int(np.prod(self.shape[2:]))
        self.row_bytes = self.channels * (_SCALE_BYTES + 2 * self.points)
        self.rows = FileArray(file, np.uint8, (len(self), self.row_bytes))
        self.lock = self.rows.lock

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        """As of a FileArray."""
        at = np.arange(len(self))[rows]
        rows_NB = self.rows[at.ravel()]
        scales, numbers = np.split(rows_NB, [self.channels * _SCALE_BYTES], axis=1)
        fields = _unpacked(scales.copy().view(np.float32), numbers.copy().view(np.uint16))
        return fields.reshape(*at.shape, *self.shape[1:])

    def part(self, rows: np.ndarray, place: int) -> np.ndarray:
        """As of a FileArray."""
        scales_N2, numbers_NP = np.empty((rows.size, 2), np.float32), np.empty((rows.size, self.points), np.uint16)
        for index, row in enumerate(rows.tolist()):
            self._read(row, scales_N2[index], skip=place * _SCALE_BYTES)
            self._read(row, numbers_NP[index], skip=self.channels * _SCALE_BYTES + place * numbers_NP[index].nbytes)
        return _unpacked(scales_N2, numbers_NP).reshape(rows.size, *self.shape[2:])

    def __setitem__(self, rows: slice, values: np.ndarray) -> None:
        """Write a stretch of rows."""
        fields_FP = np.asarray(values, np.float32).reshape(-1, self.points)
        known = np.isfinite(fields_FP)
        low_F = np.where(known, fields_FP, np.inf).min(axis=1, initial=np.inf)
        high_F = np.where(known, fields_FP, -np.inf).max(axis=1, initial=-np.inf)
        low_F, high_F = np.where(low_F <= high_F, (low_F, high_F), 0)
        step_F = ((high_F.astype(np.float64) - low_F) / (_MISSING_NUMBER - 1)).astype(np.float32)
        steps = (fields_FP - low_F[:, None]) / np.where(step_F > 0, step_F, 1)[:, None]
        numbers = np.where(known, steps.round().clip(0, _MISSING_NUMBER - 1), _MISSING_NUMBER).astype(np.uint16)
        scales = np.stack([low_F, step_F], axis=1, dtype=np.float32)
        parts = [part.reshape(len(values), -1).view(np.uint8) for part in (scales, numbers)]
        self.rows[rows] = np.concatenate(parts, axis=1)


_SCALE_BYTES = 8  # of a field: its lowest value and its step
_MISSING_NUMBER = 65_535


def _unpacked(scales: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Fields [F, P] from pairs of lowest value and step, and numbers; missing as NaN."""
    scales_F2 = scales.reshape(-1, 2)
    numbers_FP = numbers.reshape(len(scales_F2), -1)
    fields = numbers_FP * scales_F2[:, 1:] + scales_F2[:, :1]
    fields[numbers_FP == _MISSING_NUMBER] = np.nan
    return fields


Array = np.ndarray | FileArray


def allocate_in_file(
    path: Path | None, dtype: Any, shape: Sequence[int], folder: Path | None = None, *, packed: bool = False
) -> FileArray:
    """An array in a file of a given name, or in a nameless temporary file that goes with the process.

    A packed one holds float32 as 16-bit numbers.

    Raises:
        DataError: if there is no room for it.
    """
    size = 0
    try:
        if path is None:
            with tempfile.TemporaryFile(dir=folder, buffering=0) as nameless:
                file = FileIO(os.dup(nameless.fileno()), "r+")
        else:
            file = FileIO(path, "w+")
        array = PackedArray(file, shape) if packed else FileArray(file, dtype, shape)
        size = array.nbytes
        if size and hasattr(os, "posix_fallocate"):  # macOS has not: a full disk shows when the rows are written
            os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        raise no_room(path.parent if path else folder or Path(tempfile.gettempdir()), size, error) from error
    return array


def no_room(folder: Path, size: int, error: OSError) -> DataError:
    """The error for a cache that does not fit on the disk."""
    return DataError(
        f"no room for a cache of {describe_bytes(size)} in {folder}: {error.strerror}. Choose another --cache-dir, "
        f"fewer --variables, a --target-region, or a larger --memory-budget."
    )
