"""From physical units to what a network sees, and back: the one place of the crossing.

A value is transformed (log1p of millimetres for precipitation), freed from the training months' own climatology at its
grid point, time of year and time of day, and divided by the channel's standard deviation. All statistics come from
training times only. Shapes: N times, P climatology terms, C channels, H lat, W lon.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from convlstm_wx.conventions import Channel, is_precipitation, millimetres_factor
from convlstm_wx.data.forcings import day_fraction, year_fraction
from convlstm_wx.data.store import time_slices
from convlstm_wx.errors import DataError


@dataclass(frozen=True)
class ClimatologyBasis:
    """The terms of the climatology: harmonics of the year times harmonics of the day.

    Attributes:
        annual_harmonics: 2 when the training times cover the seasons of two years or more, 1 for one year, 0 for less
            (a season that was not seen cannot be subtracted).
        times_of_day: how many different times of day the file has; sets the number of daily terms.
        first_fraction: time of day of the first one, as a fraction of a day.
    """

    annual_harmonics: int
    times_of_day: int
    first_fraction: float

    @classmethod
    def choose(cls, times: np.ndarray) -> "ClimatologyBasis":
        """The richest basis that the given training times can carry."""
        days = np.unique(times.astype("datetime64[D]"))
        covered_days = len(days)
        annual = 0 if covered_days < 330 else 1 if covered_days < 690 else 2
        fractions = np.unique(np.round(day_fraction(times), 6))
        return cls(annual, len(fractions), float(fractions[0]))

    def terms(self, times: np.ndarray) -> np.ndarray:
        """The design matrix [N, P]."""
        season = _harmonics(year_fraction(times), self.annual_harmonics, np.inf)
        day = _harmonics(day_fraction(times) - self.first_fraction, 2, self.times_of_day)
        return (season[:, :, None] * day[:, None, :]).reshape(len(times), -1)

    def describe(self) -> str:
        """In words, for the log."""
        season = ["no annual cycle (under a year of training)", "one annual harmonic", "two annual harmonics"]
        return season[self.annual_harmonics] + (", with a daily cycle" if self.times_of_day > 1 else "")


def _harmonics(fraction: np.ndarray, count: int, samples: float) -> np.ndarray:
    """1, cos and sin of the first harmonics, as far as `samples` points per cycle can tell them apart: [N, terms]."""
    terms = [np.ones_like(fraction)]
    for k in range(1, count + 1):
        if 2 * k <= samples:
            terms.append(np.cos(2 * np.pi * k * fraction))
        if 2 * k < samples:
            terms.append(np.sin(2 * np.pi * k * fraction))
    return np.stack(terms, axis=1)


@dataclass(frozen=True)
class Statistics:
    """What normalisation needs, from training times only.

    Attributes:
        channels: C names, in the order of the arrays.
        millimetres_C: 0 for a plain channel; for precipitation the factor from the file's unit to millimetres.
        basis: terms of the climatology.
        climatology_PCHW: their coefficients, in transformed units.
        std_C: standard deviation of the anomalies over training times and points, in transformed units.
        increment_std_C: standard deviation of one-step differences, as a share of std_C.
        observed_CHW: points that have at least one value in training.
        gaps_C: channels that have at least one missing value; they get a mask channel.
        period: first and last training time.
    """

    channels: tuple[Channel, ...]
    millimetres_C: np.ndarray
    basis: ClimatologyBasis
    climatology_PCHW: np.ndarray
    std_C: np.ndarray
    increment_std_C: np.ndarray
    observed_CHW: np.ndarray
    gaps_C: np.ndarray
    period: tuple[str, str]

    def select(self, channels: Sequence[Channel]) -> "Statistics":
        """The same for some of the channels."""
        at = [self.channels.index(channel) for channel in channels]
        return Statistics(
            tuple(channels),
            self.millimetres_C[at],
            self.basis,
            self.climatology_PCHW[:, at],
            self.std_C[at],
            self.increment_std_C[at],
            self.observed_CHW[at],
            self.gaps_C[at],
            self.period,
        )

    def climatology(self, times: np.ndarray) -> np.ndarray:
        """The training climatology at the given times, transformed units, [N, C, H, W]."""
        return np.tensordot(self.basis.terms(times).astype(np.float32), self.climatology_PCHW, axes=1)

    def normalise(self, values_NCHW: np.ndarray, times: np.ndarray) -> None:
        """File units to normalised units, in place; missing values stay NaN."""
        _transform(values_NCHW, self.millimetres_C)
        values_NCHW -= self.climatology(times)
        values_NCHW /= self.std_C[:, None, None]

    def to_physical(self, fields_NCHW: np.ndarray, times: np.ndarray) -> np.ndarray:
        """Normalised units back to the file's; precipitation is never negative, points never observed are NaN."""
        values = fields_NCHW * self.std_C[:, None, None] + self.climatology(times)
        for index in np.flatnonzero(self.millimetres_C):
            values[:, index] = np.expm1(np.maximum(values[:, index], 0)) / self.millimetres_C[index]
        return np.where(self.observed_CHW, values, np.nan).astype(np.float32)

    def to_dict(self) -> dict[str, Any]:
        """Plain types and float32 arrays, for a checkpoint."""
        return {
            "channels": [channel.name for channel in self.channels],
            "basis": vars(self.basis).copy(),
            "period": list(self.period),
        } | {name: getattr(self, name) for name in _ARRAYS}

    @classmethod
    def from_dict(cls, entries: Mapping[str, Any]) -> "Statistics":
        """Back from :meth:`to_dict`."""
        return cls(
            channels=tuple(Channel.parse(name) for name in entries["channels"]),
            basis=ClimatologyBasis(**entries["basis"]),
            period=(entries["period"][0], entries["period"][1]),
            **{name: np.asarray(entries[name]) for name in _ARRAYS},
        )


_ARRAYS = ("millimetres_C", "climatology_PCHW", "std_C", "increment_std_C", "observed_CHW", "gaps_C")


def fit_statistics(
    values_NCHW: np.ndarray,
    times: np.ndarray,
    training_N: np.ndarray,
    channels: Sequence[Channel],
    attributes: Sequence[Mapping[str, Any]],
    step: np.timedelta64,
) -> Statistics:
    """Statistics of the training times of an array in file units; other times are never looked at.

    Args:
        values_NCHW: file units, missing as NaN.
        times: N times, increasing.
        training_N: which of them are training times.
        channels: C of them.
        attributes: the attributes of each channel's variable (units, standard_name).
        step: the file's time step; differences are taken only between times one step apart.

    Raises:
        DataError: if a channel has no value at all in training, or precipitation comes in an unknown unit.
    """
    millimetres = np.array(
        [
            millimetres_factor(a.get("units", "")) if is_precipitation(c.variable, a) else 0.0
            for c, a in zip(channels, attributes)
        ],
        np.float32,
    )
    mean, count, gaps = _mean_and_count(values_NCHW, training_N, millimetres)
    for channel, values_there in zip(channels, count.sum(axis=(1, 2))):
        if values_there == 0:
            raise DataError(f"'{channel.name}' has no value in the training months. Leave it out with --variables.")
    basis = ClimatologyBasis.choose(times[training_N])
    coefficients, std = _fit_climatology(values_NCHW, times, training_N, millimetres, mean, count, basis)
    increment_std = _increment_std(values_NCHW, times, training_N, millimetres, step) / std
    period = times[training_N][[0, -1]].astype("datetime64[s]").astype(str)
    return Statistics(
        channels=tuple(channels),
        millimetres_C=millimetres,
        basis=basis,
        climatology_PCHW=coefficients.astype(np.float32),
        std_C=std.astype(np.float32),
        increment_std_C=np.clip(increment_std, 1e-2, None).astype(np.float32),
        observed_CHW=count > 0,
        gaps_C=gaps,
        period=(str(period[0]), str(period[1])),
    )


def _transform(values_NCHW: np.ndarray, millimetres_C: np.ndarray) -> None:
    """log1p of millimetres, in place, for the channels that have a factor. Small negative rain is rounding: 0."""
    for index in np.flatnonzero(millimetres_C):
        field = values_NCHW[:, index]
        np.log1p(np.maximum(field * millimetres_C[index], 0), out=field)


def _training_slices(values_NCHW: np.ndarray, training_N: np.ndarray, millimetres_C: np.ndarray) -> Any:
    """(indices, transformed float64 copy) of the training times, slice by slice."""
    for piece in time_slices(values_NCHW.shape, 64 * 2**20):
        indices = np.arange(piece.start, piece.stop)[training_N[piece]]
        if indices.size:
            values = values_NCHW[indices].astype(np.float64)
            _transform(values, millimetres_C)
            yield indices, values


def _mean_and_count(
    values_NCHW: np.ndarray, training_N: np.ndarray, millimetres_C: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean [C, H, W] and number of values [C, H, W] at each point, and which channels have gaps [C]."""
    total = np.zeros(values_NCHW.shape[1:])
    count: np.ndarray = np.zeros(values_NCHW.shape[1:], np.int64)
    for _, values in _training_slices(values_NCHW, training_N, millimetres_C):
        valid = np.isfinite(values)
        total += np.where(valid, values, 0).sum(axis=0)
        count += valid.sum(axis=0)
    gaps = np.any(count < int(training_N.sum()), axis=(1, 2))
    return total / np.maximum(count, 1), count, np.asarray(gaps)


def _fit_climatology(
    values_NCHW: np.ndarray,
    times: np.ndarray,
    training_N: np.ndarray,
    millimetres_C: np.ndarray,
    mean_CHW: np.ndarray,
    count_CHW: np.ndarray,
    basis: ClimatologyBasis,
) -> tuple[np.ndarray, np.ndarray]:
    """Least-squares coefficients [P, C, H, W] and the standard deviation of the rest [C].

    Missing values take their point's mean, so a point with many gaps gets a weaker cycle, never a wild one.
    """
    channels = values_NCHW.shape[1]
    normal = 0.0
    projected: Any = 0.0
    squares_C = np.zeros(channels)
    for indices, values in _training_slices(values_NCHW, training_N, millimetres_C):
        terms = basis.terms(times[indices])
        anomalies = np.nan_to_num(values - mean_CHW)
        normal = normal + terms.T @ terms
        projected = projected + np.tensordot(terms.T, anomalies, axes=1)
        squares_C += np.square(anomalies).sum(axis=(0, 2, 3))
    solved = np.linalg.lstsq(np.asarray(normal), projected.reshape(len(projected), -1), rcond=1e-10)[0]
    coefficients = solved.reshape(projected.shape)
    explained_C = (coefficients * projected).sum(axis=(0, 2, 3))
    variance_C = (squares_C - explained_C) / count_CHW.sum(axis=(1, 2))
    # A constant channel says nothing; a scale of 1 keeps its anomalies at zero.
    floor_C = 1e-6 * np.maximum(np.abs(mean_CHW).max(axis=(1, 2)), 1e-12)
    std_C = np.sqrt(np.maximum(variance_C, 0))
    coefficients[0] += mean_CHW
    return coefficients, np.where(std_C > floor_C, std_C, 1.0)


def _increment_std(
    values_NCHW: np.ndarray,
    times: np.ndarray,
    training_N: np.ndarray,
    millimetres_C: np.ndarray,
    step: np.timedelta64,
) -> np.ndarray:
    """Root mean square of one-step differences between neighbouring training times, transformed units, [C]."""
    total = np.zeros(values_NCHW.shape[1])
    count = np.zeros(values_NCHW.shape[1])
    before: np.ndarray | None = None
    before_time = np.datetime64("NaT")
    for indices, values in _training_slices(values_NCHW, training_N, millimetres_C):
        at = times[indices]
        if before is not None:
            values, at = np.concatenate([before, values]), np.concatenate([[before_time], at])
        neighbours = np.diff(at) == step
        difference = (values[1:] - values[:-1])[neighbours]
        total += np.nansum(np.square(difference), axis=(0, 2, 3))
        count += np.isfinite(difference).sum(axis=(0, 2, 3))
        before, before_time = values[-1:], at[-1]
    return np.sqrt(total / np.maximum(count, 1))
