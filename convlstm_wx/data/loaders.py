"""Batches as tensors: the one room of `data` that knows torch."""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from convlstm_wx.data.forcings import Forcings
from convlstm_wx.data.windows import Batch, Windows


class TensorBatch(NamedTuple):
    """What a network is fed with; all float32 and on its device.

    x_BTCHW, clock_BSG, y_BLDHW, valid_BLDHW and emphasis_BLDHW are those of
    :class:`~convlstm_wx.data.windows.Batch`; places has the place fields of the target and of each upstream region,
    upstream_fields the values and masks of the latter.
    """

    x_BTCHW: Tensor
    clock_BSG: Tensor
    places: list[Tensor]
    upstream_fields: list[Tensor]
    y_BLDHW: Tensor
    valid_BLDHW: Tensor
    emphasis_BLDHW: Tensor | None = None

    def first_leads(self, lead_steps: int) -> "TensorBatch":
        """The same with the first lead times only."""
        emphasis = self.emphasis_BLDHW
        return self._replace(
            clock_BSG=self.clock_BSG[:, : self.x_BTCHW.shape[1] + lead_steps],
            y_BLDHW=self.y_BLDHW[:, :lead_steps],
            valid_BLDHW=self.valid_BLDHW[:, :lead_steps],
            emphasis_BLDHW=None if emphasis is None else emphasis[:, :lead_steps],
        )

    @property
    def forcing_BSFHW(self) -> Tensor:
        """The target region's forcings at input and lead times."""
        return forcing_fields(self.clock_BSG, self.places[0])

    @property
    def upstream(self) -> list[Tensor]:
        """Each upstream region's input [B, T, C + M + F, H, W], its own forcings last."""
        past_BTG = self.clock_BSG[:, : self.x_BTCHW.shape[1]]
        return [
            torch.cat([fields, forcing_fields(past_BTG, places)], dim=2)
            for fields, places in zip(self.upstream_fields, self.places[1:])
        ]


class _Feed:
    """Moves batches to a device."""

    def __init__(self, windows: Windows, device: torch.device, *, pin_memory: bool):
        self.device, self.pin_memory = device, pin_memory
        regions = (windows.target, *windows.upstream)
        self.places = [torch.from_numpy(region.forcings.places).to(device) for region in regions]

    def __call__(self, batch: Batch, windows: int) -> TensorBatch:
        """A batch whose first windows count; those after them fill it up."""
        y = self._move(batch.y_BLDHW)
        valid = torch.ones_like(y) if batch.valid_BLDHW is None else self._move(batch.valid_BLDHW)
        if windows < len(valid):
            valid[windows:] = 0
        return TensorBatch(
            self._move(batch.x_BTCHW),
            self._move(batch.clock_BSG),
            self.places,
            [self._move(fields) for fields in batch.upstream],
            y,
            valid,
            None if batch.emphasis_BLDHW is None else self._move(batch.emphasis_BLDHW),
        )

    def _move(self, array: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(array)
        return (tensor.pin_memory() if self.pin_memory else tensor).to(self.device, non_blocking=self.pin_memory)


def forcing_fields(clock_BSG: Tensor, places_PHW: Tensor) -> Tensor:
    """The forcing channels [B, S, F, H, W] of :class:`~convlstm_wx.data.forcings.Forcings`, the sun 0 at night."""
    spread, sun = Forcings.CLOCK_FIELDS, Forcings.SUN_FIELDS
    channels = spread + 1 + len(places_PHW) - sun
    fields = clock_BSG.new_empty(*clock_BSG.shape[:2], channels, *places_PHW.shape[1:])
    fields[:, :, :spread] = clock_BSG[:, :, :spread, None, None]
    height_of_sun = torch.tensordot(clock_BSG[:, :, spread:], places_PHW[:sun], dims=1)
    fields[:, :, spread] = height_of_sun.clamp(min=0)
    fields[:, :, spread + 1 :] = places_PHW[sun:]
    return fields


def epoch_order(windows: int, *, seed: int, epoch: int) -> np.ndarray:
    """The order of an epoch's windows: decided by the seed and the epoch alone, so that a resumed run repeats it."""
    return np.random.default_rng([seed, epoch]).permutation(windows)


def in_batches(order: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Consecutive pieces of an order; the last may be shorter."""
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def load_batches(
    windows: Windows,
    batches: Sequence[np.ndarray],
    device: torch.device,
    *,
    num_workers: int = 0,
    pin_memory: bool = False,
    fill_to: int = 0,
) -> Iterator[TensorBatch]:
    """The given batches of window numbers, in order, on the device.

    One of fewer than `fill_to` windows is filled up with its last window, again and again, of which no point is valid.

    Threads, if any, gather the next batches while the network works on one: copying arrays and reading files needs no
    interpreter, so processes would only add copies.
    """
    feed = _Feed(windows, device, pin_memory=pin_memory)
    if num_workers == 0:
        yield from (feed(windows.gather(_filled(numbers, fill_to)), len(numbers)) for numbers in batches)
        return
    with ThreadPoolExecutor(num_workers, thread_name_prefix="gather") as pool:
        ahead: deque[tuple[Future[Batch], int]] = deque()
        for numbers in batches:
            ahead.append((pool.submit(windows.gather, _filled(numbers, fill_to)), len(numbers)))
            if len(ahead) > num_workers:
                gathered, count = ahead.popleft()
                yield feed(gathered.result(), count)
        for gathered, count in ahead:
            yield feed(gathered.result(), count)


def _filled(numbers: np.ndarray, size: int) -> np.ndarray:
    return np.concatenate([numbers, np.repeat(numbers[-1:], max(0, size - len(numbers)))])
