"""Classic NetCDF files (CDF-1, -2 and -5): how long a whole one is.

The NetCDF library reads zeros beyond the end of a classic file that was cut short, so that half a download looks like
data. The header tells where every variable ends. [The NetCDF Classic Format Specification, Unidata]
"""

import struct
from io import BufferedReader
from math import prod
from pathlib import Path

_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 4, 6: 8, 7: 1, 8: 2, 9: 4, 10: 8, 11: 8}
_STREAMING = (2**32 - 1, 2**64 - 1)  # in place of a number of records that was not known


def missing_bytes(path: Path) -> int:
    """How many bytes a classic file lacks at its end; 0 for a whole one, and for a file of another format.

    Raises:
        ValueError: for a header that makes no sense, or is cut short itself.
    """
    with path.open("rb") as stream:
        magic = stream.read(4)
        if magic[:3] != b"CDF" or magic[3:] not in (b"\x01", b"\x02", b"\x05"):
            return 0
        try:
            end = _Header(stream, version=magic[3]).end()
        except (struct.error, KeyError, IndexError, OverflowError) as error:
            raise ValueError("its header makes no sense") from error
    return max(0, end - path.stat().st_size)


class _Header:
    def __init__(self, stream: BufferedReader, version: int):
        self.stream = stream
        self.count_format = ">Q" if version == 5 else ">I"
        self.offset_format = ">I" if version == 1 else ">Q"

    def end(self) -> int:
        """Where the last value of the file ends."""
        records = self._count()
        lengths = [self._dimension() for _ in self._items()]
        self._skip_attributes()
        variables = [self._variable(lengths) for _ in self._items()]
        fixed = [begin + size for begin, size, is_record in variables if not is_record]
        record = [(begin, size) for begin, size, is_record in variables if is_record]
        # A record of one variable alone is not padded.
        record_bytes = record[0][1] if len(record) == 1 else sum(_padded(size) for _, size in record)
        if records and records not in _STREAMING:
            fixed += [begin + (records - 1) * record_bytes + size for begin, size in record]
        return max(fixed, default=0)

    def _number(self, layout: str) -> int:
        return struct.unpack(layout, self.stream.read(struct.calcsize(layout)))[0]

    def _count(self) -> int:
        return self._number(self.count_format)

    def _items(self) -> range:
        """As many as a list has; what kind of list it is, is known."""
        self._number(">I")
        return range(self._count())

    def _skip(self, size: int) -> None:
        self.stream.seek(_padded(size), 1)

    def _dimension(self) -> int:
        self._skip(self._count())
        return self._count()

    def _skip_attributes(self) -> None:
        for _ in self._items():
            self._skip(self._count())
            width = _TYPE_BYTES[self._number(">I")]
            self._skip(width * self._count())

    def _variable(self, lengths: list[int]) -> tuple[int, int, bool]:
        """Where it begins, the bytes of it (of a record of it), and whether it has records."""
        self._skip(self._count())
        shape = [lengths[self._count()] for _ in range(self._count())]
        self._skip_attributes()
        width = _TYPE_BYTES[self._number(">I")]
        self._count()  # its size, which overflows for large ones
        is_record = bool(shape) and shape[0] == 0
        return self._number(self.offset_format), width * prod(shape[is_record:]), is_record


def _padded(size: int) -> int:
    return -(-size // 4) * 4
