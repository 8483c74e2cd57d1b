"""Quality: what a dataset holds, told before hours are spent on it. Nothing is changed here.

One pass over the values, piece by piece, in bounded memory: a `Survey` is fed by whoever reads them, or `check` reads
them itself. Shapes: N times, H lat, W lon, P = H x W points.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from convlstm_wx.conventions import Channel, recognise, unit_conversion
from convlstm_wx.data.account import Account, Axis, ChannelAccount, Gap
from convlstm_wx.data.channels import flagged_channels
from convlstm_wx.data.lookalike import Typical, looks_like
from convlstm_wx.data.pieces import read_pieces
from convlstm_wx.data.reading import describe_step, is_projected, source_of, time_step
from convlstm_wx.errors import DataError

READ_BYTES = 256e6
PLAIN_SHARE = 0.25  # a field that differs from its lowest or highest value at fewer points says little
BLOCK_BYTES = 2**20  # the few passes over a block find it in the processor's cache


class Survey:
    """Counts, ranges and sums of every channel, while its values pass by once.

    Args:
        dataset: in the canonical form of `reading`, of the region to look at.
        channels: the channels that will be fed, in this order.
    """

    def __init__(self, dataset: xr.Dataset, channels: Sequence[Channel]):
        self.dataset, self.channels = dataset, tuple(channels)
        points = dataset.sizes["lat"] * dataset.sizes["lon"]
        self._tallies = [_Tally(_Bounds.of(dataset[c.variable]), points) for c in self.channels]

    def add(self, index: int, values_NHW: np.ndarray, filled_NHW: np.ndarray | None = None) -> None:
        """Take in the next consecutive times of channel `index`, file units, missing as NaN or infinite.

        What was filled is counted, and looked at no further; None: the file does not say what was.
        """
        points = self.dataset.sizes["lat"] * self.dataset.sizes["lon"]
        frames_NP = values_NHW.reshape(len(values_NHW), points)
        filled_NP = None if filled_NHW is None else filled_NHW.reshape(frames_NP.shape)
        rows = max(1, BLOCK_BYTES // (frames_NP.itemsize * points))
        for start in range(0, len(frames_NP), rows):
            part = slice(start, start + rows)
            self._tallies[index].add(frames_NP[part], None if filled_NP is None else filled_NP[part])

    def account(self) -> Account:
        """What was found so far."""
        dataset, times = self.dataset, self.dataset["time"].values
        step = time_step(times) if len(times) > 1 else None
        return Account(
            source=source_of(dataset),
            lat=_axis(dataset["lat"].values),
            lon=_axis(dataset["lon"].values),
            projected=is_projected(dataset),
            axis_names=dict(dataset.attrs.get("axis_names", {})),
            levels=tuple(float(level) for level in dataset["level"].values) if "level" in dataset.dims else (),
            static_fields=tuple(sorted(str(n) for n, v in dataset.data_vars.items() if v.dims == ("lat", "lon"))),
            calendar=dataset.attrs.get("calendar"),
            duplicate_times=int(dataset.attrs.get("duplicate_times", 0)),
            unsorted_times=int(dataset.attrs.get("unsorted_times", 0)),
            channels=tuple(self._channel(index, step) for index in range(len(self.channels))),
            **_time_facts(times, step),
        )

    def _channel(self, index: int, step: np.timedelta64 | None) -> ChannelAccount:
        channel, tally = self.channels[index], self._tallies[index]
        field = self.dataset[channel.variable]
        known = recognise(channel.variable, field.attrs)
        units = str(field.attrs.get("units", "1"))
        step_hours = 24.0 if step is None else step / np.timedelta64(1, "h")
        typical = tally.typical(step_hours)
        return ChannelAccount(
            name=channel.name,
            variable=channel.variable,
            level=channel.level,
            units=units,
            meaning=None if known is None else known.long_name,
            first_frozen=_clock(self.dataset["time"].values[tally.first_frozen]) if tally.frozen else None,
            looks_like=looks_like(known, channel.variable, units, channel.level, typical)
            if known and typical
            else None,
            **tally.facts(),
        )


def check(dataset: xr.Dataset, channels: Sequence[Channel]) -> Account:
    """Look at every value of the given channels once, in bounded memory.

    Raises:
        DataError: if the file cannot be read to its end; bad content is in the account.
    """
    survey = Survey(dataset, channels)
    flagged = flagged_channels(dataset, channels)
    try:
        for _, values_NCHW, filled_NMHW in read_pieces(
            dataset, channels, dataset["time"].values, most_bytes=int(READ_BYTES)
        ):
            for index, channel in enumerate(channels):
                filled_NHW = filled_NMHW[:, flagged.index(channel)] if channel in flagged else None
                survey.add(index, values_NCHW[:, index], filled_NHW)
    except DataError as error:
        raise DataError(f"{source_of(dataset)}: {error}") from error
    return survey.account()


# The axes


def _axis(values: np.ndarray) -> Axis:
    steps = np.diff(values)
    even = len(steps) > 0 and np.allclose(steps, steps.mean(), rtol=1e-3, atol=0)
    spacing = float(np.round(steps.mean(), 6)) if even else None
    return Axis(len(values), float(values[0]), float(values[-1]), spacing)


def _time_facts(times: np.ndarray, step: np.timedelta64 | None) -> dict[str, Any]:
    period = (_clock(times[0]), _clock(times[-1])) if len(times) else ("", "")
    facts = {"steps": len(times), "period": period, "step": "", "step_s": None, "gaps": (), "irregular_steps": 0}
    if step is None:
        return facts
    differences = np.diff(times)
    gaps = tuple(
        Gap(_clock(times[i]), _clock(times[i + 1]), round(differences[i] / step) - 1)
        for i in np.flatnonzero(differences > step)
    )
    return facts | {
        "step": describe_step(step),
        "step_s": int(step / np.timedelta64(1, "s")),
        "gaps": gaps,
        "irregular_steps": int((differences < step).sum()),
    }


def _clock(time: np.datetime64) -> str:
    return str(time.astype("datetime64[m]"))


# One channel


@dataclass(frozen=True)
class _Bounds:
    """Lowest and highest plausible value, in the file's units; whether less than zero cannot be."""

    low: np.float32
    high: np.float32
    non_negative: bool
    known: bool

    @classmethod
    def of(cls, field: xr.DataArray) -> "_Bounds":
        known = recognise(str(field.name), field.attrs)
        conversion = None if known is None else unit_conversion(str(field.attrs.get("units", "1")), known.units)
        if known is None or conversion is None:
            return cls(np.float32(-np.inf), np.float32(np.inf), False, False)
        scale, offset = conversion
        low, high = (known.valid_min - offset) / scale, (known.valid_max - offset) / scale
        return cls(np.float32(low), np.float32(high), known.non_negative, True)

    def as_plain(self) -> tuple[float, float] | None:
        """To six digits: 179.85 and not 179.85000610351562."""
        return (float(f"{self.low:.6g}"), float(f"{self.high:.6g}")) if self.known else None


@dataclass(frozen=True)
class _Frames:
    """Some fields in a row, and what they hold.

    Attributes:
        values_NP: missing as NaN.
        count_N, low_N, high_N: number, lowest and highest of the finite values; without any: 0, inf and -inf.
    """

    values_NP: np.ndarray
    count_N: np.ndarray
    low_N: np.ndarray
    high_N: np.ndarray

    def __getitem__(self, rows: Any) -> "_Frames":
        return _Frames(self.values_NP[rows], self.count_N[rows], self.low_N[rows], self.high_N[rows])


class _Tally:
    """Running counts of one channel."""

    def __init__(self, bounds: _Bounds, points: int):
        self.bounds, self.points = bounds, points
        self.times = self.count = self.infinities = self.outside = self.negative = self.empty = 0
        self.filled: int | None = None  # as long as the file does not say
        self.total = 0.0
        self.minimum, self.maximum = np.inf, -np.inf
        self.lows: list[np.ndarray] = []
        self.highs: list[np.ndarray] = []
        self.observed_P = np.zeros(points, bool)
        self.frozen = self.run = self.longest_run = 0
        self.first_frozen = -1
        self.last: _Frames | None = None

    def add(self, values_NP: np.ndarray, filled_NP: np.ndarray | None) -> None:
        """Take in the next fields; of values that were filled the number only."""
        has_filled_N = np.zeros(len(values_NP), bool)
        if filled_NP is not None:
            self.filled = self.filled or 0
        if filled_NP is not None and filled_NP.any():
            filled_NP = filled_NP & np.isfinite(values_NP)
            self.filled = (self.filled or 0) + int(filled_NP.sum())
            has_filled_N |= filled_NP.any(axis=1)
            values_NP = np.where(filled_NP, np.float32(np.nan), values_NP)
        frames, total = self._measure(values_NP)
        self.count += int(frames.count_N.sum())
        self.total += total
        self.empty += int(((frames.count_N == 0) & ~has_filled_N).sum())
        self.minimum = min(self.minimum, float(frames.low_N.min()))
        self.maximum = max(self.maximum, float(frames.high_N.max()))
        self.lows.append(frames.low_N)
        self.highs.append(frames.high_N)
        self._count_implausible(frames)
        self._count_frozen(frames)
        self.last = frames[[-1]]  # a copy: the caller may use its array again
        self.times += len(values_NP)

    def _measure(self, values_NP: np.ndarray) -> tuple[_Frames, float]:
        """What the fields hold, and the sum of their values."""
        with np.errstate(invalid="ignore"):  # inf - inf
            total = float(values_NP.sum(dtype=np.float64))
        if np.isfinite(total):  # a sum with NaN or an infinity in it is not: nothing is missing
            self.observed_P[:] = True
            counts = np.full(len(values_NP), self.points)
            return _Frames(values_NP, counts, values_NP.min(axis=1), values_NP.max(axis=1)), total
        finite_NP = np.isfinite(values_NP)
        infinities = int(np.isinf(values_NP).sum())
        if infinities:
            values_NP = np.where(finite_NP, values_NP, np.float32(np.nan))
        self.infinities += infinities
        self.observed_P |= finite_NP.any(axis=0)
        low_N, high_N = np.fmin.reduce(values_NP, axis=1), np.fmax.reduce(values_NP, axis=1)
        empty_N = np.isnan(low_N)
        low_N[empty_N], high_N[empty_N] = np.inf, -np.inf
        total = float(np.where(finite_NP, values_NP, np.float32(0)).sum(dtype=np.float64))
        return _Frames(values_NP, np.count_nonzero(finite_NP, axis=1), low_N, high_N), total

    def _count_implausible(self, frames: _Frames) -> None:
        bounds, values = self.bounds, frames.values_NP
        if frames.low_N.min() >= bounds.low and frames.high_N.max() <= bounds.high:
            return
        self.outside += int(((values < bounds.low) | (values > bounds.high)).sum())
        if bounds.non_negative:
            self.negative += int((values < 0).sum())

    def _count_frozen(self, frames: _Frames) -> None:
        """Fields that repeat the one before."""
        frozen_N = np.zeros(len(frames.count_N), bool)
        if self.last is not None:
            frozen_N[:1] = _repeats(self.last, frames[:1])
        frozen_N[1:] = _repeats(frames[:-1], frames[1:])
        for index in np.flatnonzero(frozen_N):
            follows = frozen_N[index - 1] if index else self.run > 0
            self.run = self.run + 1 if follows else 1
            self.longest_run = max(self.longest_run, self.run)
        if not frozen_N[-1]:
            self.run = 0
        if self.first_frozen < 0 and frozen_N.any():
            self.first_frozen = self.times + int(frozen_N.argmax())
        self.frozen += int(frozen_N.sum())

    def typical(self, step_hours: float) -> Typical | None:
        """What the fields are like, None without any value."""
        if not self.count:
            return None
        lows, highs = np.concatenate(self.lows), np.concatenate(self.highs)
        low, high = np.median(lows[np.isfinite(lows)]), np.median(highs[np.isfinite(highs)])
        return Typical(float(low), float(high), self.total / self.count, self.maximum, step_hours)

    def facts(self) -> dict[str, Any]:
        """The counts under the names of `ChannelAccount`."""
        size = self.times * self.points
        return {
            "minimum": self.minimum if self.count else np.nan,
            "maximum": self.maximum if self.count else np.nan,
            "mean": self.total / self.count if self.count else np.nan,
            "values": self.count,
            "missing_share": 1 - (self.count + (self.filled or 0)) / size if size else 0.0,
            "filled_share": None if self.filled is None else self.filled / size if size else 0.0,
            "infinities": self.infinities,
            "empty_times": self.empty,
            "unobserved_points": self.points - int(self.observed_P.sum()),
            "plausible": self.bounds.as_plain(),
            "outside": self.outside,
            "negative": self.negative,
            "frozen_times": self.frozen,
            "longest_frozen_run": self.longest_run,
        }


def _repeats(before: _Frames, after: _Frames) -> np.ndarray:
    """Which fields equal those before them at all points that both have (most of their own) without being plain."""
    repeated_N = np.zeros(len(after.count_N), bool)
    at = _may_repeat(before, after)
    if at.size:
        old_NP, new_NP = before.values_NP[at], after.values_NP[at]
        both_NP = np.isfinite(old_NP) & np.isfinite(new_NP)
        equal_N = ((old_NP == new_NP) | ~both_NP).all(axis=1)
        repeated_N[at] = equal_N & (2 * both_NP.sum(axis=1) > after.count_N[at]) & ~_is_plain(new_NP, both_NP)
    return repeated_N


def _is_plain(values_NP: np.ndarray, there_NP: np.ndarray) -> np.ndarray:
    """Which fields have one value nearly everywhere: no rain but a drizzle, which may well be the same twice."""
    low_N1 = np.where(there_NP, values_NP, np.inf).min(axis=1, keepdims=True)
    high_N1 = np.where(there_NP, values_NP, -np.inf).max(axis=1, keepdims=True)
    fewest_N = PLAIN_SHARE * there_NP.sum(axis=1)
    above_N, below_N = (values_NP > low_N1).sum(axis=1), (values_NP < high_N1).sum(axis=1)
    return (above_N < fewest_N) | (below_N < fewest_N) | (above_N == 0)


def _may_repeat(before: _Frames, after: _Frames) -> np.ndarray:
    """Numbers of the fields that deserve a full comparison: some sixty points tell nearly all others apart."""
    some = slice(None, None, 1 + after.values_NP.shape[1] // 64)
    old_NP, new_NP = before.values_NP[:, some], after.values_NP[:, some]
    same_NP = (old_NP == new_NP) | np.isnan(old_NP) | np.isnan(new_NP)
    return np.flatnonzero(same_NP.all(axis=1) & (after.low_N < after.high_N))
