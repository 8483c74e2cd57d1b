"""Rain, which is learned as log(1 + r), r in millimetres or millimetres a day.

Shapes: B batch, L lead times, D target channels, R precipitation channels among them, H lat, W lon.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from convlstm_wx.conventions import unit_conversion
from convlstm_wx.data.forcings import DAY_S
from convlstm_wx.data.normalise import Statistics
from convlstm_wx.data.spec import DataSpec
from convlstm_wx.errors import ConfigError
from convlstm_wx.text import list_channels

RAIN_TERMS = 3
_ROUNDING = 1e-5  # of the way through log1p and back in float32: 5 mm must still reach 5 mm


@dataclass(frozen=True)
class RainMeans:
    """How much it rained on average where so much was forecast.

    Squared errors of log(1 + r) teach a network something near the median of r, which is drier than its mean. The mean
    is a + b r + c log(1 + r), never below 0, with the numbers that were right on validation.

    Attributes:
        by_channel: a, b and c of each lead time; no entry: forecasts of that channel stay as they are.
    """

    by_channel: Mapping[str, Sequence[Sequence[float]]]

    def apply(self, values_LDHW: np.ndarray, statistics: Statistics) -> None:
        """Turn forecasts in the file's units into such means, in place; lead times beyond the last take its numbers.

        Args:
            statistics: of the D channels.
        """
        for index, (channel, millimetres) in enumerate(zip(statistics.channels, statistics.millimetres_C)):
            if found := self.by_channel.get(channel.name):
                leads = np.arange(len(values_LDHW)).clip(max=len(found) - 1)
                terms_3LHW = rain_terms(values_LDHW[:, index] * millimetres)
                numbers_3L = np.array(found, np.float32)[leads].T
                means_LHW = (numbers_3L[:, :, None, None] * terms_3LHW).sum(axis=0)
                values_LDHW[:, index] = np.maximum(means_LHW, 0) / millimetres


def rain_terms(rain: np.ndarray) -> np.ndarray:
    """What the mean is a sum of: 1, r and log(1 + r), along a new first axis."""
    return np.stack([np.ones_like(rain), rain, np.log1p(rain)])


@dataclass(frozen=True)
class RainEmphasis:
    """The weight of the highest threshold that the true precipitation reaches, 1 below all [Shi et al. 2017, eq. 6].

    Attributes:
        at_R: where precipitation stands among the targets.
        statistics: of those channels.
        millimetres_R: what their values in the file are multiplied with to be mm per step.
        weights: by thresholds in mm per step, increasing.
    """

    at_R: np.ndarray
    statistics: Statistics
    millimetres_R: np.ndarray
    weights: Mapping[float, float]

    def __call__(self, y_BLDHW: np.ndarray, times_BL: np.ndarray) -> np.ndarray:
        """The weight of each point of normalised targets at their valid times, float32 [B, L, D, H, W]."""
        rain_NRHW = y_BLDHW[:, :, self.at_R].reshape(-1, len(self.at_R), *y_BLDHW.shape[-2:])
        rain_NRHW = self.statistics.to_physical(rain_NRHW, times_BL.ravel()) * self.millimetres_R[:, None, None]
        thresholds = np.array(list(self.weights)) * (1 - _ROUNDING)
        weights = np.array([1.0, *self.weights.values()], np.float32)
        emphasis_BLDHW = np.ones_like(y_BLDHW)
        reached = np.searchsorted(thresholds, rain_NRHW, side="right")
        emphasis_BLDHW[:, :, self.at_R] = weights[reached].reshape(*y_BLDHW.shape[:2], *rain_NRHW.shape[1:])
        return emphasis_BLDHW


def rain_emphasis(weights: Mapping[float, float], spec: DataSpec) -> RainEmphasis | None:
    """The emphasis that is asked for; None for none.

    Raises:
        ConfigError: if no target is precipitation.
    """
    if not weights:
        return None
    statistics = spec.target.statistics.select(spec.targets)
    at_R = np.flatnonzero(statistics.millimetres_C)
    if not at_R.size:
        names = list_channels(spec.targets)
        raise ConfigError(f"--rain-weights: none of the targets is precipitation; there are {names}")
    rain = statistics.select([spec.targets[index] for index in at_R])
    units = [spec.target.attributes[channel.variable]["units"] for channel in rain.channels]
    steps_R = [1.0 if unit_conversion(unit, "mm") else spec.step_s / DAY_S for unit in units]  # rates are mm per day
    return RainEmphasis(at_R, rain, rain.millimetres_C * np.array(steps_R), weights)
