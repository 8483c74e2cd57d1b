"""Splits: which times are trained on, validated with and held out, decided once and by time alone.

Between the roles lies an embargo of one window's length less one step, so that no window of one role holds a time that
a window of another role holds, nor one next to it.
"""

import calendar
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from convlstm_wx.data.reading import describe_step, time_step
from convlstm_wx.errors import ConfigError, DataError
from convlstm_wx.text import count

TRAIN, VALIDATION, HELD_OUT, UNUSED = 0, 1, 2, -1

Spans = tuple[tuple[str, str], ...]

SHARE = 0.15  # of the times, for validation and for held out each
FEWEST_MONTHS = 7  # a record of fewer is split by time
FEWEST_EQUAL_STEPS = 0.8  # of all: else the record has no time step, whatever its length
_NEVER = np.datetime64("NaT", "s")
_DATE = r"\d{4}(?:-\d{2}(?:-\d{2})?)?"
_PERIOD = re.compile(rf"^(?P<first>{_DATE})(?::(?P<last>{_DATE}))?$")


@dataclass(frozen=True)
class Period:
    """A calendar month of every year, or all times from the start of one date to the end of another.

    Attributes:
        text: as the user wrote it.
        month: 1 to 12 for a month of every year, else 0.
        start, end: from the first second to before the last, else.
    """

    text: str
    month: int = 0
    start: np.datetime64 = _NEVER
    end: np.datetime64 = _NEVER

    @classmethod
    def parse(cls, text: str) -> "Period":
        """From "2014-07", "07", "2014", "2014-07-15", or a range of these such as "2009-01:2010-12".

        Raises:
            ConfigError: for anything else.
        """
        if re.fullmatch(r"0?[1-9]|1[0-2]", text):
            return cls(text, month=int(text))
        found = _PERIOD.match(text)
        try:
            if found is None:
                raise ValueError(text)
            first = np.datetime64(found["first"])
            last = np.datetime64(found["last"] or found["first"])
        except ValueError:
            raise ConfigError(
                f"'{text}' is not a period; write 2014-07 (a month), 07 (every July), 2014 (a year), or a range such "
                "as 2009-01:2010-12"
            ) from None
        start, end = first.astype("datetime64[s]"), (last + 1).astype("datetime64[s]")
        if end <= start:
            raise ConfigError(f"'{text}' ends before it begins; write the earlier date first")
        return cls(text, start=start, end=end)

    def contains(self, times: np.ndarray) -> np.ndarray:
        """Which times lie in the period."""
        if self.month:
            return times.astype("datetime64[M]").astype(np.int64) % 12 + 1 == self.month
        seconds = times.astype("datetime64[s]")  # nanoseconds end in 2262, periods need not
        return (seconds >= self.start) & (seconds < self.end)

    def describe(self) -> str:
        """In words."""
        if self.month:
            return f"every {calendar.month_name[self.month]}"
        return self.text.replace(":", " to ")


@dataclass(frozen=True)
class Periods:
    """Several periods; none of them is no time at all."""

    periods: tuple[Period, ...]

    def contains(self, times: np.ndarray) -> np.ndarray:
        """Which times lie in at least one of the periods, a boolean mask."""
        masks = [period.contains(times) for period in self.periods]
        return np.logical_or.reduce(masks) if masks else np.zeros(len(times), bool)

    def describe(self) -> str:
        """In words: "every July, 2014, 2009-01 to 2010-12"."""
        return ", ".join(period.describe() for period in self.periods)


def parse_periods(texts: Sequence[str]) -> Periods:
    """Periods from "2014-07", "07" (every July), "2014", "2014-07-15" and ranges such as "2009-01:2010-12".

    Raises:
        ConfigError: for anything else.
    """
    return Periods(tuple(Period.parse(text) for text in texts))


@dataclass(frozen=True)
class Split:
    """The role of every time, as spans of time: the same for any file, however long.

    Attributes:
        train, validation, held_out: inclusive (start, end) spans, ISO to the second.
        method: how it was decided, in words.
        embargo_steps: steps left out between the roles.
    """

    train: Spans
    validation: Spans
    held_out: Spans
    method: str
    embargo_steps: int

    def roles(self, times: np.ndarray) -> np.ndarray:
        """TRAIN, VALIDATION, HELD_OUT or UNUSED for each time, int8 [N]; times unknown to the split are UNUSED."""
        roles = np.full(len(times), UNUSED, np.int8)
        for role, spans in ((TRAIN, self.train), (VALIDATION, self.validation), (HELD_OUT, self.held_out)):
            for start, end in spans:
                roles[(times >= np.datetime64(start)) & (times <= np.datetime64(end))] = role
        return roles

    def _spans(self) -> dict[str, list[list[str]]]:
        return {name: [list(span) for span in getattr(self, name)] for name in _ROLE_NAMES}

    @property
    def fingerprint(self) -> str:
        """A hash of the spans: two runs with the same one held out the same times."""
        return hashlib.sha256(json.dumps(self._spans(), sort_keys=True).encode()).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        """Plain types, for a checkpoint: the proof of what was held out, with its fingerprint."""
        facts = {"method": self.method, "embargo_steps": self.embargo_steps, "fingerprint": self.fingerprint}
        return {**self._spans(), **facts}

    @classmethod
    def from_dict(cls, entries: Mapping[str, Any]) -> "Split":
        """Back from :meth:`to_dict`.

        Raises:
            ValueError: if the spans are not those that the fingerprint was taken of.
        """
        spans = {name: tuple((start, end) for start, end in entries[name]) for name in _ROLE_NAMES}
        split = cls(**spans, method=entries["method"], embargo_steps=entries["embargo_steps"])
        if entries.get("fingerprint", split.fingerprint) != split.fingerprint:
            raise ValueError("the split was changed after training")
        return split

    def lines(self) -> list[str]:
        """For people: each role's times, and how they were chosen."""
        called = {"train": "training", "held_out": "held out"}
        roles = [f"{called.get(name, name)}: {_describe_spans(getattr(self, name))}" for name in _ROLE_NAMES]
        return [
            *roles,
            f"split {self.method}; {count(self.embargo_steps, 'step')} left out between the parts",
            f"fingerprint of the split {self.fingerprint}",
        ]


_ROLE_NAMES = ("train", "validation", "held_out")


def _describe_spans(spans: Spans) -> str:
    first, last = spans[0][0][:16], spans[-1][1][:16]
    return f"{first} to {last}" + (f", in {len(spans)} pieces" if len(spans) > 1 else "")


def make_split(
    times: np.ndarray, *, window_steps: int, held_out: Sequence[str] = (), validation: Sequence[str] = ()
) -> Split:
    """Decide the role of every time.

    Without periods: the first 70 % are for training, then 15 % for validation, the last 15 % are held out, in whole
    months, or by time where the record has fewer than 7 months. With periods for one role, the other takes the last 15
    % or so of what they leave. Held out goes before validation, and both before training: whatever is less than an
    embargo away from a more protected role is unused.

    Args:
        times: N times of the file, increasing.
        window_steps: length of a window, input and lead steps together.
        held_out, validation: periods as in :func:`parse_periods`.

    Raises:
        ConfigError: for a period that holds no time of the file, or periods that leave a role without a window.
        DataError: for a record too short to give each role a window.
    """
    step = time_step(times)
    embargo = window_steps - 1
    in_held_out = _matching(held_out, times, "--held-out-months")
    in_validation = _matching(validation, times, "--validation-months")
    unit = ""
    if not held_out:
        in_held_out, unit = _last_part(times, ~in_validation, SHARE, window_steps)
    if not validation:
        share = SHARE if held_out else SHARE / (1 - SHARE)
        in_validation, unit = _last_part(times, ~in_held_out, share, window_steps + embargo)
    in_validation &= ~_near(times, in_held_out, embargo * step)
    in_train = ~_near(times, in_held_out | in_validation, embargo * step)
    roles = dict(zip(_ROLE_NAMES, (in_train, in_validation, in_held_out)))
    for name, mask in roles.items():
        if _longest_run(times, mask, step) < window_steps:
            raise _no_window(times, name, window_steps, asked=bool(held_out or validation))
    spans = {name: _spans(times, mask) for name, mask in roles.items()}
    return Split(**spans, method=_describe_method(held_out, validation, unit), embargo_steps=embargo)


def _months(times: np.ndarray) -> np.ndarray:
    return times.astype("datetime64[M]")


def _matching(texts: Sequence[str], times: np.ndarray, option: str) -> np.ndarray:
    """The times in any of the periods, each of which must hold one."""
    for period in parse_periods(texts).periods:
        if not period.contains(times).any():
            first, last = times[[0, -1]].astype("datetime64[D]")
            raise ConfigError(f"{option} {period.text}: no time of the data lies there; it covers {first} to {last}")
    return parse_periods(texts).contains(times)


def _last_part(times: np.ndarray, free: np.ndarray, share: float, fewest: int) -> tuple[np.ndarray, str]:
    """The last of the free times, about a share and at least `fewest` of them, and how they were cut off.

    In whole months where the record has enough of them and a month is left for the rest, else by time.
    """
    at = np.flatnonzero(free)
    wanted = share * len(at)
    size, unit = max(round(wanted), fewest), "by time, as there are too few months"
    if len(np.unique(_months(times))) >= FEWEST_MONTHS:
        months = _months(times[at])
        starts = np.flatnonzero(months[1:] != months[:-1]) + 1
        sizes = [int(count) for count in len(at) - starts if count >= fewest]
        if sizes:
            size, unit = min(sizes, key=lambda count: abs(count - wanted)), "in whole months"
    part = np.zeros(len(times), bool)
    part[at[-size:]] = True
    return part, unit


def _near(times: np.ndarray, mask: np.ndarray, reach: np.timedelta64) -> np.ndarray:
    """The masked times and all that are at most `reach` away from one."""
    marked = times[mask]
    if marked.size == 0:
        return np.zeros(len(times), bool)
    after = np.searchsorted(marked, times)
    to_next = marked[np.minimum(after, len(marked) - 1)] - times
    to_last = times - marked[np.maximum(after - 1, 0)]
    return (np.abs(to_next) <= reach) | (np.abs(to_last) <= reach)


def _longest_run(times: np.ndarray, mask: np.ndarray, step: np.timedelta64) -> int:
    """The most masked times in a row, one step apart."""
    at = np.flatnonzero(mask)
    if at.size == 0:
        return 0
    breaks = np.flatnonzero((np.diff(at) > 1) | (np.diff(times[at]) != step)) + 1
    return int(np.diff(np.concatenate([[0], breaks, [len(at)]])).max())


def _no_window(times: np.ndarray, role: str, window_steps: int, *, asked: bool) -> ConfigError | DataError:
    first, last = times[[0, -1]].astype("datetime64[m]")
    found = f"the {len(times)} times of the data ({first} to {last}) leave no window of {window_steps} steps for "
    found += {"train": "training", "validation": "validation", "held_out": "holding out"}[role]
    steps = np.diff(times)
    if np.mean(steps == time_step(times)) < FEWEST_EQUAL_STEPS:
        return DataError(
            f"{found}: they are {describe_step(steps.min())} to {describe_step(steps.max())} apart, but a window needs "
            "equal steps, which calendar months are not. Give data at times that are equally far apart."
        )
    if asked:
        return ConfigError(f"{found}. Choose other --held-out-months or --validation-months, or fewer --input-steps.")
    return DataError(
        f"{found}; at least {5 * window_steps - 2} times without a gap are needed. Use fewer --input-steps or "
        "--lead-steps, or a longer record."
    )


def _spans(times: np.ndarray, mask: np.ndarray) -> Spans:
    """First and last time of each run of masked times."""
    edges = np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8))
    seconds = times.astype("datetime64[s]").astype(str)
    return tuple(
        (str(seconds[first]), str(seconds[end - 1]))
        for first, end in zip(np.flatnonzero(edges == 1), np.flatnonzero(edges == -1))
    )


def _describe_method(held_out: Sequence[str], validation: Sequence[str], unit: str) -> str:
    if not held_out and not validation:
        return f"{unit}: about 70 % training, then 15 % validation, then 15 % held out"
    rest = f"the last 15 % of the rest {unit}"
    return f"held out {_as_asked(held_out) or rest}, validation {_as_asked(validation) or rest}"


def _as_asked(texts: Sequence[str]) -> str:
    return f"as asked ({parse_periods(texts).describe()})" if texts else ""
