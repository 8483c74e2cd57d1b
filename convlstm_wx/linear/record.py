"""What linear statistics learn from: the anomalies of one channel, wherever they come from."""

from collections.abc import Iterator
from typing import Protocol

import numpy as np

READ_BYTES = 64e6  # of anomalies at once


class Record(Protocol):
    """One channel as it was observed, less what is usual."""

    @property
    def times(self) -> np.ndarray:
        """When it was observed, increasing."""

    @property
    def shape(self) -> tuple[int, int]:
        """H, W of its grid."""

    def anomalies(self, times: np.ndarray) -> np.ndarray:
        """At these times [N, H, W], NaN where nothing was observed."""


def blocks_of(times: np.ndarray, record: Record) -> list[np.ndarray]:
    """The times in stretches whose anomalies can be worked on at once."""
    n_blocks = int(np.ceil(times.size * int(np.prod(record.shape)) * 8 / READ_BYTES))
    return np.array_split(times, max(n_blocks, 1))


def in_blocks(record: Record, times: np.ndarray) -> Iterator[np.ndarray]:
    """Anomalies of some of the times after the other, [n, H, W] each."""
    return (record.anomalies(some) for some in blocks_of(times, record))
