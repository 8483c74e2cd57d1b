"""Dressed forecasts: an ensemble whose members differ as forecasts were found to be wrong on validation.

Each member is given a whole field of errors that the network (of several: their mean) made on one window of
validation, so that errors hang together over space, lead times and variables, as in a real forecast [Roulston and Smith
2003, Tellus A; Wang and Bishop 2005, Q. J. R. Meteorol. Soc.].

Shapes: N windows of validation, M members, L lead times, D target channels, H lat, W lon.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

SEASON = 1 / 3  # of the windows are drawn from: those whose day of the year is the nearest
FEWEST = 20  # windows to draw from
BYTES = 48 * 2**20  # of all windows; they are part of the checkpoint
DRESSED = {"ensemble": "dressed with errors of validation, which sum to zero before limits are applied"}
_YEAR = np.timedelta64(31_556_952, "s")  # 365.2425 days


@dataclass(frozen=True)
class Residuals:
    """Truth minus forecast on windows of validation, kept with the weights that made them.

    Attributes:
        init_times: of N windows.
        fields_NLDHW: normalised, float16; where the truth is missing the error of that point in the window before that
            has one, 0 if none has.
    """

    init_times: np.ndarray
    fields_NLDHW: np.ndarray

    def __post_init__(self) -> None:
        if len(self.init_times) != len(self.fields_NLDHW) or self.fields_NLDHW.ndim != 5 or not len(self.init_times):
            raise ValueError(f"residuals of {len(self.init_times)} windows: {self.fields_NLDHW.shape}")

    def near(self, init_time: np.datetime64) -> np.ndarray:
        """Numbers of the windows that are nearest to this time of the year."""
        apart = np.abs((self.init_times - init_time) / _YEAR) % 1.0
        count = max(round(SEASON * len(apart)), min(FEWEST, len(apart)))
        return np.sort(np.argsort(np.minimum(apart, 1.0 - apart), kind="stable")[:count])


def of_their_mean(residuals: Sequence[Residuals]) -> Residuals:
    """What the mean of several networks leaves over, from what each leaves over on the same windows."""
    total = np.zeros(residuals[0].fields_NLDHW.shape, np.float32)
    for each in residuals:
        total += each.fields_NLDHW
    return Residuals(residuals[0].init_times, (total / len(residuals)).astype(np.float16))


def dressing(residuals: Residuals, init_time: np.datetime64, *, members: int, lead_steps: int, seed: int) -> np.ndarray:
    """What to add to the normalised forecast of one init time, float32 [M, L, D, H, W].

    The sum over members is zero, so that their mean is the forecast; their sample variance (M - 1) is that of the
    residuals. Lead times beyond those of training get the errors of the last one. It depends on the seed and the init
    time alone, not on what else is forecast.
    """
    rng = np.random.default_rng([seed, int(init_time.astype("datetime64[s]").astype(np.int64)) % 2**63])
    pool = residuals.near(init_time)
    rounds = -(-members // len(pool))  # none comes again before all had their turn
    numbers = np.concatenate([rng.permutation(pool) for _ in range(rounds)])[:members]
    leads = np.arange(lead_steps).clip(max=residuals.fields_NLDHW.shape[1] - 1)
    fields = residuals.fields_NLDHW[numbers[:, None], leads].astype(np.float32)
    return fields - fields.mean(axis=0)


def is_dressed(attributes: Mapping) -> bool:
    """Whether a forecast's members are, by the attributes of its dataset (those of a file lie in `texts`)."""
    return str({**attributes, **attributes.get("texts", {})}.get("ensemble", "")).startswith("dressed")
