"""How much of an anomaly is left after a lead time: regression of what comes on what is, point by point."""

from collections.abc import Sequence

import numpy as np

from convlstm_wx.linear.record import Record, blocks_of

DAY = np.timedelta64(24, "h").astype("timedelta64[ns]")
DAYS_PER_VALUE = 5  # of weather that make one independent training pair, about


def damping(
    record: Record, training_times: np.ndarray, lead_times: Sequence[np.timedelta64]
) -> dict[np.timedelta64, np.ndarray]:
    """Regression coefficient of the anomaly at t + lead on that at t [H, W], by lead time; between 0 and 1.

    From pairs that lie in training as a whole. A point's own coefficient is drawn towards that of the whole area by
    empirical Bayes [Efron and Morris 1975, J. Am. Stat. Assoc.]: with the weight that the variance between points has
    beside the sampling variance, which counts one independent pair for five days.
    """
    training = np.intersect1d(training_times, record.times)
    sums = {lead: np.zeros((4, *record.shape)) for lead in lead_times}  # of x x, x y, y y, pairs
    for starts in blocks_of(training, record):
        # The block and all that its leads reach are read once; neighbouring blocks overlap by the longest lead.
        times = training[(training >= starts[0]) & (training <= starts[-1] + max(lead_times))]
        fields = record.anomalies(times)
        x = fields[: starts.size]
        for lead in lead_times:
            there = np.isin(starts + lead, times)
            own, ahead = x[there], fields[np.searchsorted(times, (starts + lead)[there])]
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
