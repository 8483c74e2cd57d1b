"""The rivals that a forecast must beat, from the truth up to the init time and from training times alone.

Each rival gives fields [N, H, W] for init times [N] and one lead time. Persistence and climatology are the classic
ones; damped persistence and the linear inverse model lie between them, and are harder to beat.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from convlstm_wx.linear.damping import DAY, damping
from convlstm_wx.linear.inverse_model import InverseForecast
from convlstm_wx.verification.climatology import Climatology
from convlstm_wx.verification.record import Record

ALWAYS = ("persistence", "climatology")  # the ACC needs the one, `compare` the other
NAMES = ("persistence", "diurnal_persistence", "damped_persistence", "climatology", "linear_inverse_model")
DESCRIPTIONS = {
    "persistence": "the truth at the init time, held for every lead time",
    "diurnal_persistence": "the latest truth at the valid time's hour of the day that is known at the init time",
    "damped_persistence": (
        "climatology at the valid time plus the anomaly at the init time times its regression coefficient, by point "
        "and lead time, from training times; coefficients are drawn towards that of the whole area as far as they are "
        "uncertain"
    ),
}

Observed = Callable[[np.ndarray], np.ndarray]  # times [N] -> fields [N, H, W], NaN where there are none
Baseline = Callable[[np.ndarray, np.timedelta64, Observed], np.ndarray]


def persistence(init_times: np.ndarray, lead_time: np.timedelta64, observed: Observed) -> np.ndarray:
    """The state of the init time."""
    return observed(init_times)


def diurnal_persistence(init_times: np.ndarray, lead_time: np.timedelta64, observed: Observed) -> np.ndarray:
    """The state at the same hour of the day as the valid time, the latest that is known at the init time."""
    return observed(latest_at_same_hour(init_times, lead_time))


def latest_at_same_hour(init_times: np.ndarray, lead_time: np.timedelta64) -> np.ndarray:
    """Whole days before the valid times, at or before the init times."""
    return init_times + lead_time - DAY * -(-lead_time // DAY)


@dataclass(frozen=True)
class FromUsual:
    """Climatology at the valid time plus an anomaly, within what the variable can be."""

    usual: Climatology
    anomaly: Callable[[np.ndarray, np.timedelta64, Observed], np.ndarray | float]
    never_negative: bool

    def __call__(self, init_times: np.ndarray, lead_time: np.timedelta64, observed: Observed) -> np.ndarray:
        """Fields [N, H, W]."""
        fields = self.usual.at(init_times + lead_time) + self.anomaly(init_times, lead_time, observed)
        return fields.clip(min=0) if self.never_negative else fields


def choose(asked: Sequence[str] | None, lead_times: np.ndarray) -> list[str]:
    """The rivals to score against, in the order of NAMES: those asked for, or all; diurnal only if it differs."""
    wanted = set(NAMES if asked is None else asked) | set(ALWAYS)
    if not (lead_times % DAY).astype(int).any():
        wanted -= {"diurnal_persistence"}  # at whole days it is persistence
    return [name for name in NAMES if name in wanted]


def make(
    names: Sequence[str],
    channel: str,
    record: Record,
    training_times: np.ndarray,
    lead_times: np.ndarray,
    inverse: InverseForecast | None,
    *,
    never_negative: bool,
) -> dict[str, Baseline]:
    """The rivals of one channel by name.

    Args:
        record: what was observed of the channel, and its climatology.
        inverse: forecast of the linear inverse model; needed if it is among the names.
        never_negative: whether the channel can be below zero.
    """
    made: dict[str, Baseline] = {}
    for name in names:
        if name == "persistence":
            made[name] = persistence
        elif name == "diurnal_persistence":
            made[name] = diurnal_persistence
        elif name == "climatology":
            made[name] = FromUsual(record.usual, lambda *_: 0.0, never_negative)
        elif name == "damped_persistence":
            damped = Damped(record.usual, damping(record, training_times, list(lead_times)))
            made[name] = FromUsual(record.usual, damped, never_negative)
        else:
            assert inverse is not None
            made[name] = FromUsual(record.usual, Inverse(record.usual, inverse, channel), never_negative)
    return made


@dataclass(frozen=True)
class Inverse:
    """The anomaly that a linear inverse model makes of that at the init time."""

    usual: Climatology
    forecast: InverseForecast
    channel: str

    def __call__(self, init_times: np.ndarray, lead_time: np.timedelta64, observed: Observed) -> np.ndarray:
        """Anomalies [N, H, W]."""
        now = observed(init_times) - self.usual.at(init_times)
        return self.forecast.anomaly(self.channel, init_times, lead_time, now)


@dataclass(frozen=True)
class Damped:
    """The anomaly at the init time times a factor [H, W] of the lead time."""

    usual: Climatology
    factors: Mapping[np.timedelta64, np.ndarray]

    def __call__(self, init_times: np.ndarray, lead_time: np.timedelta64, observed: Observed) -> np.ndarray:
        """Anomalies [N, H, W]."""
        return self.factors[lead_time] * (observed(init_times) - self.usual.at(init_times))
