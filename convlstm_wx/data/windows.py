"""Windows: stretches of consecutive times, gathered into whole batches at once.

Shapes: B batch, T input times, L lead times, S = T + L, C channels, M mask channels, D target channels, G clock
numbers, H lat, W lon.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from convlstm_wx.data.forcings import Forcings, clock
from convlstm_wx.data.store import Array


@dataclass(frozen=True)
class Source:
    """One region's normalised fields.

    Attributes:
        values_NCHW: normalised, missing as 0 (unless filled).
        observed_NMHW: False where the channels with gaps are missing or filled; M may be 0.
        forcings: of the region's grid.
    """

    values_NCHW: Array
    observed_NMHW: Array
    forcings: Forcings


@dataclass(frozen=True)
class Batch:
    """Arrays of one batch; all float32.

    Attributes:
        x_BTCHW: input fields, then their masks (1 observed, 0 missing).
        clock_BSG: what the forcings of the input and lead times are made of.
        upstream: for each upstream region [B, T, C + M, H, W] on its own grid.
        y_BLDHW: what the targets became; 0 where missing.
        valid_BLDHW: 1 where y is observed; None where all of it is.
        emphasis_BLDHW: how much the errors of each point count in training; None where all count alike.
    """

    x_BTCHW: np.ndarray
    clock_BSG: np.ndarray
    upstream: tuple[np.ndarray, ...]
    y_BLDHW: np.ndarray
    valid_BLDHW: np.ndarray | None
    emphasis_BLDHW: np.ndarray | None = None


def init_indices(
    times: np.ndarray,
    step: np.timedelta64,
    allowed_N: np.ndarray,
    *,
    input_steps: int,
    lead_steps: int,
) -> np.ndarray:
    """Where a window can have its last input time: all T + L times are allowed and one step apart.

    A window thus never crosses a gap in time, nor the edge of a split when `allowed_N` is one role of the split.
    """
    length = input_steps + lead_steps
    if len(times) < length:
        return np.empty(0, np.int64)
    linked = (np.diff(times) == step) & allowed_N[1:] & allowed_N[:-1]
    run = np.concatenate([[0], np.cumsum(linked)])
    starts = np.arange(len(times) - length + 1)
    whole = (run[starts + length - 1] - run[starts] == length - 1) & allowed_N[starts]
    return starts[whole] + input_steps - 1


@dataclass(frozen=True)
class Windows:
    """All windows of one kind (training, validation, ...) over one target region and its upstream regions.

    Attributes:
        target: the region to forecast.
        upstream: regions that are read only.
        times: the N times of every source.
        step: time step.
        init_indices: index of the last input time of each window.
        input_steps: T.
        lead_steps: L; windows without observed leads (a forecast of the future) have `with_targets` False.
        target_indices: the D target channels among the target region's C.
        target_mask_indices: for each target its mask among the M, -1 without gaps.
        with_targets: whether y and valid are gathered.
        emphasis: from y_BLDHW and its valid times [B, L] to the emphasis of each point; None counts all alike.
        upstream_indices: like init_indices, where the upstream fields come from; None: from the window itself.
    """

    target: Source
    upstream: tuple[Source, ...]
    times: np.ndarray
    step: np.timedelta64
    init_indices: np.ndarray
    input_steps: int
    lead_steps: int
    target_indices: Sequence[int]
    target_mask_indices: Sequence[int]
    with_targets: bool = True
    emphasis: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None
    upstream_indices: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.init_indices)

    def gather(self, windows: Sequence[int] | np.ndarray) -> Batch:
        """The batch of the given window numbers."""
        init_B = self.init_indices[np.asarray(windows)]
        past_T = np.arange(1 - self.input_steps, 1)
        past_BT = init_B[:, None] + past_T
        from_B = init_B if self.upstream_indices is None else self.upstream_indices[np.asarray(windows)]
        offsets_S = np.arange(1 - self.input_steps, self.lead_steps + 1)
        times_BS = self.times[init_B][:, None] + offsets_S * self.step
        y, valid = self._targets(init_B)
        return Batch(
            x_BTCHW=_fields(self.target, past_BT),
            clock_BSG=clock(times_BS),
            upstream=tuple(_fields(source, from_B[:, None] + past_T) for source in self.upstream),
            y_BLDHW=y,
            valid_BLDHW=valid,
            emphasis_BLDHW=self.emphasis and self.emphasis(y, times_BS[:, self.input_steps :]),
        )

    def _targets(self, init_B: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        channels, height, width = self.target.values_NCHW.shape[1:]
        if not (self.with_targets and self.lead_steps):
            return np.empty((len(init_B), 0, len(self.target_indices), height, width), np.float32), None
        future_BL = init_B[:, None] + np.arange(1, self.lead_steps + 1)
        y_BLDHW = self.target.values_NCHW[future_BL]
        if list(self.target_indices) != list(range(channels)):
            y_BLDHW = y_BLDHW[:, :, list(self.target_indices)]
        if max(self.target_mask_indices) < 0:
            return y_BLDHW, None
        valid_BLDHW = np.ones_like(y_BLDHW)
        observed_BLMHW = self.target.observed_NMHW[future_BL]
        for index, mask in enumerate(self.target_mask_indices):
            if mask >= 0:
                valid_BLDHW[:, :, index] = observed_BLMHW[:, :, mask]
        return y_BLDHW, valid_BLDHW


def _fields(source: Source, at_BT: np.ndarray) -> np.ndarray:
    """Values and masks at the given time indices, [B, T, C + M, H, W]."""
    values = source.values_NCHW[at_BT]
    if source.observed_NMHW.shape[1] == 0:
        return values
    return np.concatenate([values, source.observed_NMHW[at_BT].astype(np.float32)], axis=2)
