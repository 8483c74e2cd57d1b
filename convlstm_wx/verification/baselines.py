"""The rivals that a forecast must beat, from the truth up to the init time and from training times alone.

Each rival gives fields [N, H, W] for init times [N] and one lead time. Persistence and climatology are the classic
ones; damped persistence and the linear inverse model lie between them, and are harder to beat.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from convlstm_wx.verification.climatology import READ_BYTES, Climatology, read
from convlstm_wx.verification.inverse_model import InverseForecast, Record

DAY = np.timedelta64(24, "h").astype("timedelta64[ns]")
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
DAYS_PER_VALUE = 5  # of weather that make one independent training pair, about

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
            damped = Damped(record.usual, damping(record, training_times, lead_times))
            made[name] = FromUsual(record.usual, damped, never_negative)
        else:
            assert inverse is not None
            made[name] = FromUsual(record.usual, _anomaly_of(inverse, channel), never_negative)
    return made


def _anomaly_of(inverse: InverseForecast, channel: str) -> Callable[..., np.ndarray]:
    return lambda init_times, lead_time, _: inverse.anomaly(channel, init_times, lead_time)


@dataclass(frozen=True)
class Damped:
    """The anomaly at the init time times a factor [H, W] of the lead time."""

    usual: Climatology
    factors: Mapping[np.timedelta64, np.ndarray]

    def __call__(self, init_times: np.ndarray, lead_time: np.timedelta64, observed: Observed) -> np.ndarray:
        """Anomalies [N, H, W]."""
        return self.factors[lead_time] * (observed(init_times) - self.usual.at(init_times))


def damping(record: Record, training_times: np.ndarray, lead_times: np.ndarray) -> dict[np.timedelta64, np.ndarray]:
    """Regression coefficient of the anomaly at t + lead on that at t [H, W], by lead time; between 0 and 1.

    From pairs that lie in training as a whole. A point's own coefficient is drawn towards that of the whole area by
    empirical Bayes [Efron and Morris 1975, J. Am. Stat. Assoc.]: with the weight that the variance between points has
    beside the sampling variance, which counts one independent pair for five days.
    """
    training = np.intersect1d(training_times, record.fields["time"].values)
    shape = record.fields.shape[1:]
    sums = {lead: np.zeros((4, *shape)) for lead in lead_times}  # of x x, x y, y y, pairs
    n_blocks = int(np.ceil(training.size * int(np.prod(shape)) * 8 / READ_BYTES))
    for starts in np.array_split(training, max(n_blocks, 1)):
        # The block and all that its leads reach are read once; neighbouring blocks overlap by the longest lead.
        times = training[(training >= starts[0]) & (training <= starts[-1] + lead_times.max())]
        anomalies = read(record.fields, times) - record.usual.at(times)
        x = anomalies[: starts.size]
        for lead in lead_times:
            there = np.isin(starts + lead, times)
            own, ahead = x[there], anomalies[np.searchsorted(times, (starts + lead)[there])]
            both = np.isfinite(own) & np.isfinite(ahead)
            own, ahead = np.where(both, own, 0.0), np.where(both, ahead, 0.0)
            sums[lead] += [_inner(own, own), _inner(own, ahead), _inner(ahead, ahead), both.sum(axis=0)]
    days = float(np.median(np.diff(training)) / DAY) if training.size > 1 else 1.0
    per_value = max(DAYS_PER_VALUE / days, 1.0)
    return {lead: _shrunk(xx, xy, yy, pairs / per_value) for lead, (xx, xy, yy, pairs) in sums.items()}


def _inner(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.einsum("nhw,nhw->hw", a, b, dtype=float)


def _shrunk(xx: np.ndarray, xy: np.ndarray, yy: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Coefficients [H, W] between each point's own and the common one; 0 where nothing was observed.

    xx, xy, yy: sums of products over the pairs of each point; size: independent pairs that they are worth.
    """
    if not (known := xx > 0).any():
        return np.zeros_like(xx)
    common = xy.sum() / xx.sum()
    with np.errstate(divide="ignore", invalid="ignore"):
        own = xy / xx
        sampling = (yy / xx - own**2).clip(min=0) / size.clip(min=1)
    own, sampling = np.where(known, own, common), np.where(known, sampling, np.inf)
    between = max(float(((own[known] - common) ** 2 - sampling[known]).mean()), 0.0)
    weight = between / (between + sampling) if between > 0 else np.zeros_like(own)
    return (common + weight * (own - common)).clip(0.0, 1.0)
