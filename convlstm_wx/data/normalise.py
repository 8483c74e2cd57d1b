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
from convlstm_wx.data.times import days_of_year, longest_gap
from convlstm_wx.errors import DataError


@dataclass(frozen=True)
class ClimatologyBasis:
    """The terms of the climatology: harmonics of the year times harmonics of the day.

    Attributes:
        annual_harmonics: 2 when the training times cover the seasons of two years or more, 1 for one year or with
            some 60 days of the year unseen, 0 for less (a season that was not seen cannot be subtracted).
        times_of_day: how many different times of day the file has; sets the number of daily terms.
        first_fraction: time of day of the first one, as a fraction of a day.
    """

    annual_harmonics: int
    times_of_day: int
    first_fraction: float

    @classmethod
    def choose(cls, times: np.ndarray, wanted_times: np.ndarray) -> "ClimatologyBasis":
        """The richest basis that the given training times can carry to all times at which it is wanted."""
        days = np.unique(times.astype("datetime64[D]"))
        covered_days = len(days)
        gap = longest_gap(days_of_year(days), days_of_year(wanted_times))
        annual = 0 if covered_days < 330 or gap > 120 else 1 if covered_days < 690 or gap > 60 else 2
        fractions = np.unique(np.round(day_fraction(times), 6))
        return cls(annual, len(fractions), float(fractions[0]))

    def terms(self, times: np.ndarray) -> np.ndarray:
        """The design matrix [N, P]."""
        season = _harmonics(year_fraction(times), self.annual_harmonics, np.inf)
        day = _harmonics(day_fraction(times) - self.first_fraction, 2, self.times_of_day)
        return (season[:, :, None] * day[:, None, :]).reshape(len(times), -1)

    def describe(self) -> str:
        """In words, for the log."""
        season = ["no annual cycle (training has not seen all seasons)", "one annual harmonic", "two annual harmonics"]
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

    @property
    def mask_indices(self) -> list[int]:
        """For each channel its place among the mask channels, -1 where it has no gaps."""
        return np.where(self.gaps_C, np.cumsum(self.gaps_C) - 1, -1).tolist()

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
        for index in np.flatnonzero(self.millimetres_C):
            values_NCHW[:, index] = _log_of_millimetres(values_NCHW[:, index], self.millimetres_C[index])
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


class StatisticsFit:
    """Statistics of the training times, gathered in one pass over an array in file units; no other time is looked at.

    Args:
        shape: C, H, W.
        times: N times, increasing.
        training_N: which of them are training times.
        channels: C of them.
        attributes: the attributes of each channel's variable (units, standard_name).
        step: the file's time step; differences are taken only between times one step apart.

    Raises:
        DataError: if precipitation comes in an unknown unit.
    """

    def __init__(
        self,
        shape: Sequence[int],
        times: np.ndarray,
        training_N: np.ndarray,
        channels: Sequence[Channel],
        attributes: Sequence[Mapping[str, Any]],
        step: np.timedelta64,
    ):
        self.channels, self.times, self.training_N, self.step = tuple(channels), times, training_N, step
        self.millimetres_C = np.array(
            [
                millimetres_factor(a.get("units", "")) if is_precipitation(c.variable, a) else 0.0
                for c, a in zip(channels, attributes)
            ],
            np.float32,
        )
        self.basis = ClimatologyBasis.choose(times[training_N], times)
        terms = self.basis.terms(times[:1]).shape[1]
        self.normal_PP = np.zeros((terms, terms))
        self.shift_C = np.full(shape[0], np.nan)  # near the mean, so that squares lose no digits
        self.sum_CHW, self.count_CHW = np.zeros(tuple(shape)), np.zeros(tuple(shape), np.int64)
        self.terms_sum_PCHW, self.projected_PCHW = np.zeros((terms, *shape)), np.zeros((terms, *shape))
        self.squares_C, self.steps_C, self.step_squares_C = np.zeros(shape[0]), np.zeros(shape[0]), np.zeros(shape[0])
        self.constant_C = np.zeros(shape[0], bool)  # known once the statistics are
        self.last_CHW: np.ndarray | None = None
        self.last_time = np.datetime64("NaT", "ns")

    def add(self, piece: slice, values_NCHW: np.ndarray) -> None:
        """Take in the values of the next stretch of times, missing as NaN."""
        training = self.training_N[piece]
        if not training.any():
            return
        times = self.times[piece][training]
        terms_NP = self.basis.terms(times)
        self.normal_PP += terms_NP.T @ terms_NP
        neighbours = np.diff(np.concatenate([[self.last_time], times])) == self.step
        newest = np.empty(values_NCHW.shape[1:])
        for index in range(values_NCHW.shape[1]):
            values = values_NCHW[training, index].astype(np.float64)
            if self.millimetres_C[index]:
                values = _log_of_millimetres(values, self.millimetres_C[index])
            newest[index] = values[-1]
            self._add_steps(index, values, neighbours)
            self._add_values(index, values, terms_NP)
        self.last_CHW, self.last_time = newest, times[-1]

    def _add_steps(self, index: int, values_NHW: np.ndarray, neighbours_N: np.ndarray) -> None:
        """Squares of one-step differences between neighbouring training times."""
        steps = np.diff(values_NHW, axis=0)[neighbours_N[1:]]
        if neighbours_N[0] and self.last_CHW is not None:
            steps = np.concatenate([steps, values_NHW[:1] - self.last_CHW[index]])
        known = steps[np.isfinite(steps)]
        self.steps_C[index] += known.size
        self.step_squares_C[index] += known @ known

    def _add_values(self, index: int, values_NHW: np.ndarray, terms_NP: np.ndarray) -> None:
        known = np.isfinite(values_NHW)
        if np.isnan(self.shift_C[index]) and known.any():
            self.shift_C[index] = values_NHW[known].mean()
        values_NHW -= np.nan_to_num(self.shift_C[index])
        if known.all():
            self.terms_sum_PCHW[:, index] += terms_NP.sum(axis=0)[:, None, None]
        else:
            values_NHW[~known] = 0
            self.terms_sum_PCHW[:, index] += np.tensordot(terms_NP.T, known.astype(np.float64), axes=1)
        self.count_CHW[index] += known.sum(axis=0)
        self.sum_CHW[index] += values_NHW.sum(axis=0)
        self.projected_PCHW[:, index] += np.tensordot(terms_NP.T, values_NHW, axes=1)
        self.squares_C[index] += np.vdot(values_NHW, values_NHW)

    def statistics(self) -> Statistics:
        """Of all that was added.

        Raises:
            DataError: if a channel has no value at all in training.
        """
        for channel, known in zip(self.channels, self.count_CHW.sum(axis=(1, 2))):
            if known == 0:
                raise DataError(f"'{channel.name}' has no value in the training months. Leave it out with --variables.")
        coefficients, std_C = self._climatology()
        increment_std_C = np.sqrt(self.step_squares_C / np.maximum(self.steps_C, 1)) / std_C
        period = self.times[self.training_N][[0, -1]].astype("datetime64[s]").astype(str)
        return Statistics(
            channels=self.channels,
            millimetres_C=self.millimetres_C,
            basis=self.basis,
            climatology_PCHW=coefficients.astype(np.float32),
            std_C=std_C.astype(np.float32),
            increment_std_C=np.clip(increment_std_C, 1e-2, None).astype(np.float32),
            observed_CHW=self.count_CHW > 0,
            gaps_C=np.any(self.count_CHW < int(self.training_N.sum()), axis=(1, 2)),
            period=(str(period[0]), str(period[1])),
        )

    def _climatology(self) -> tuple[np.ndarray, np.ndarray]:
        """Least-squares coefficients [P, C, H, W] and the standard deviation of the rest [C].

        Missing values take their point's mean, so a point with many gaps gets a weaker cycle, never a wild one.
        """
        mean_CHW = self.sum_CHW / np.maximum(self.count_CHW, 1)
        projected = self.projected_PCHW - mean_CHW * self.terms_sum_PCHW
        solved = np.linalg.lstsq(self.normal_PP, projected.reshape(len(projected), -1), rcond=1e-10)[0]
        coefficients = solved.reshape(projected.shape)
        squares_C = self.squares_C - (self.count_CHW * np.square(mean_CHW)).sum(axis=(1, 2))
        explained_C = (coefficients * projected).sum(axis=(0, 2, 3))
        variance_C = (squares_C - explained_C) / self.count_CHW.sum(axis=(1, 2))
        mean_CHW = mean_CHW + self.shift_C[:, None, None]
        # A constant channel says nothing; a scale of 1 keeps its anomalies at zero.
        floor_C = 1e-6 * np.maximum(np.abs(mean_CHW).max(axis=(1, 2)), 1e-12)
        std_C = np.sqrt(np.maximum(variance_C, 0))
        coefficients[0] += mean_CHW
        self.constant_C = std_C <= floor_C
        return coefficients, np.where(self.constant_C, 1.0, std_C)


def _log_of_millimetres(values: np.ndarray, factor: float) -> np.ndarray:
    """log1p of millimetres; small negative rain is rounding: 0."""
    return np.log1p(np.maximum(values * factor, 0))
