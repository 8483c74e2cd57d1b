"""Normalised fields of a region as linear statistics read them, channel by channel."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from convlstm_wx.config import TrainConfig
from convlstm_wx.data.spec import DataSpec
from convlstm_wx.data.splits import TRAIN
from convlstm_wx.data.store import Array
from convlstm_wx.data.windows import Source, init_indices
from convlstm_wx.errors import DataError
from convlstm_wx.linear.inverse_model import InverseModel, TooLittleError, fit

log = logging.getLogger(__name__)

LARGE = 1e8  # values, whose fit takes longer than a few seconds


@dataclass(frozen=True)
class ChannelRecord:
    """One channel of a source: a :class:`~convlstm_wx.linear.record.Record`.

    Attributes:
        channel: its place among the source's channels.
        mask: its place among the masks, -1 without gaps.
        all_times: N times of the source.
        complete_N: which of them can be used.
    """

    source: Source
    channel: int
    mask: int
    all_times: np.ndarray
    complete_N: np.ndarray

    @property
    def times(self) -> np.ndarray:
        """When it was observed."""
        return self.all_times[self.complete_N]

    @property
    def shape(self) -> tuple[int, int]:
        """H, W."""
        return self.source.values_NCHW.shape[2], self.source.values_NCHW.shape[3]

    def anomalies(self, times: np.ndarray) -> np.ndarray:
        """Normalised values at these times [N, H, W], NaN where nothing was observed."""
        at = np.searchsorted(self.all_times, times).clip(max=self.all_times.size - 1)
        values = _channel(self.source.values_NCHW, at, self.channel)
        if self.mask >= 0:
            values[~_channel(self.source.observed_NMHW, at, self.mask)] = np.nan
        values[(self.all_times[at] != times) | ~self.complete_N[at]] = np.nan
        return values


def _channel(array: Array, at: np.ndarray, channel: int) -> np.ndarray:
    """A copy of some rows of one channel [N, H, W]."""
    return array[at, channel] if isinstance(array, np.ndarray) else array.part(at, channel)


def channel_names(spec: DataSpec) -> list[list[str]]:
    """Of the channels of each region, target first: names that no other region has."""
    regions = (spec.target, *spec.upstream)
    return [[f"{number} {channel.name}" for channel in each.statistics.channels] for number, each in enumerate(regions)]


def fit_linear(
    config: TrainConfig,
    spec: DataSpec,
    sources: Sequence[Source],
    times: np.ndarray,
    complete_N: np.ndarray,
    roles_N: np.ndarray,
) -> InverseModel | None:
    """The linear inverse model that the network is to be blended with, from training times alone; None: none.

    Args:
        sources: of the target and of each upstream region.

    Raises:
        DataError: where training is too short for it, and it was asked for.
    """
    if config.blend == "none":
        return None
    steps = {"input_steps": spec.input_steps, "lead_steps": spec.lead_steps}
    if not init_indices(times, spec.step, complete_N & (roles_N == TRAIN), **steps).size:
        return None  # no network can be trained either, which is told where windows are counted
    records, weights = {}, {}
    for names, region, source in zip(channel_names(spec), (spec.target, *spec.upstream), sources):
        for channel, (name, mask) in enumerate(zip(names, region.statistics.mask_indices)):
            records[name] = ChannelRecord(source, channel, mask, times, complete_N)
            weights[name] = region.grid.area_weights()
    if sum(len(times) * int(np.prod(record.shape)) for record in records.values()) > LARGE:
        log.info("fitting the linear inverse model")
    targets = [channel_names(spec)[0][index] for index in spec.target_indices]
    leads = [lead * spec.step for lead in range(1, spec.lead_steps + 1)]
    try:
        return fit(
            records, times[roles_N == TRAIN], leads, weights, spec.step, targets=targets, most_past=spec.input_steps
        )
    except TooLittleError as error:
        if config.blend == "auto":
            return None
        raise DataError(f"{spec.source}: {error}; take --blend none") from error
