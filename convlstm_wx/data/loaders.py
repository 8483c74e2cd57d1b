"""Batches as tensors: the one room of `data` that knows torch."""

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from convlstm_wx.data.windows import Batch, Windows


class TensorBatch(NamedTuple):
    """The arrays of :class:`~convlstm_wx.data.windows.Batch`; init times stay behind."""

    x_BTCHW: Tensor
    forcing_BSFHW: Tensor
    upstream: list[Tensor]
    y_BLDHW: Tensor
    valid_BLDHW: Tensor

    def to(self, device: torch.device, *, non_blocking: bool = False) -> "TensorBatch":
        """The same on a device."""

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=non_blocking)

        return TensorBatch(
            move(self.x_BTCHW),
            move(self.forcing_BSFHW),
            [move(u) for u in self.upstream],
            move(self.y_BLDHW),
            move(self.valid_BLDHW),
        )


class _Batches(Dataset[TensorBatch]):
    """Item i is the whole i-th batch: gathered at once, and picklable for worker processes."""

    def __init__(self, windows: Windows, batches: Sequence[np.ndarray]):
        self.windows = windows
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> TensorBatch:
        return as_tensors(self.windows.gather(self.batches[index]))


def as_tensors(batch: Batch) -> TensorBatch:
    """The same memory as tensors."""
    return TensorBatch(
        torch.from_numpy(batch.x_BTCHW),
        torch.from_numpy(batch.forcing_BSFHW),
        [torch.from_numpy(u) for u in batch.upstream],
        torch.from_numpy(batch.y_BLDHW),
        torch.from_numpy(batch.valid_BLDHW),
    )


def epoch_order(windows: int, *, seed: int, epoch: int) -> np.ndarray:
    """The order of an epoch's windows: decided by the seed and the epoch alone, so that a resumed run repeats it."""
    return np.random.default_rng([seed, epoch]).permutation(windows)


def in_batches(order: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Consecutive pieces of an order; the last may be shorter."""
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def load_batches(
    windows: Windows, batches: Sequence[np.ndarray], *, num_workers: int = 0, pin_memory: bool = False
) -> Iterator[TensorBatch]:
    """The given batches of window numbers, in order."""
    loader = DataLoader(
        _Batches(windows, batches),
        batch_size=None,
        num_workers=num_workers,
        pin_memory=pin_memory,
        multiprocessing_context="spawn" if num_workers else None,
        # A loader draws a seed from its generator: from one of its own, so that dropout and noise do not depend on
        # how often batches were loaded, and a resumed run repeats them.
        generator=torch.Generator(),
    )
    with _deaf_to_interrupts() if num_workers else nullcontext():
        loaded = iter(loader)
    yield from loaded


@contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """Worker processes that start in here ignore Ctrl-C: the parent alone decides, and never waits for a dead one."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
