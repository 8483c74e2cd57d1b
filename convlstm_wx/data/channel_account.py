"""What one channel holds, and what is unusual about it: of one channel, or of several at once.

It never raises for bad content: problems make training impossible, warnings want a look.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from convlstm_wx.conventions import Channel
from convlstm_wx.text import MOST_CHANNELS, count, percent, subject

_SUSPICIOUS_SHARE = 0.5


@dataclass(frozen=True)
class ChannelAccount:
    """What one variable, on one level, holds. Values are in the file's units.

    Attributes:
        name: of the channel.
        variable: of the file.
        level: hPa, None without levels.
        units: of the file.
        meaning: the known variable it was recognised as, or None.
        minimum, maximum, mean: of the finite values, NaN without any; the mean is not weighted by area.
        values: number of finite values.
        missing_share: share of missing values, infinities included.
        infinities: number of infinite values.
        empty_times: times without any value.
        unobserved_points: grid points without any value.
        plausible: lowest and highest plausible value, None where nothing is known.
        outside: number of finite values outside of the plausible range.
        negative: those of them below zero although the quantity cannot be.
        frozen_times: times whose field repeats the one before point by point, although it is not plain (no rain).
        longest_frozen_run: most of them in a row.
        first_frozen: the first of them, ISO.
        looks_like: other units of the same kind, which the values fit much better, or None.
        filled_share: share of values that were filled in when the file was prepared, None if the file does not say.
    """

    name: str
    variable: str
    level: float | None
    units: str
    meaning: str | None
    minimum: float
    maximum: float
    mean: float
    values: int
    missing_share: float
    infinities: int
    empty_times: int
    unobserved_points: int
    plausible: tuple[float, float] | None
    outside: int
    negative: int
    frozen_times: int
    longest_frozen_run: int
    first_frozen: str | None
    looks_like: str | None
    filled_share: float | None

    @property
    def constant(self) -> bool:
        """Whether all values are the same."""
        return self.minimum == self.maximum

    @classmethod
    def from_dict(cls, entries: Mapping[str, Any]) -> "ChannelAccount":
        """Back from plain types."""
        missing = {name: math.nan for name in ("minimum", "maximum", "mean") if entries[name] is None}
        plausible = entries["plausible"] and tuple(entries["plausible"])
        return cls(**dict(entries) | missing | {"plausible": plausible})

    def remarks(self) -> list[str]:
        """What is unusual, in two or three words each: for a table."""
        return remarks([self])

    def warnings(self) -> list[str]:
        """What a person should look at, a sentence each."""
        return described([self], WARNINGS)


def joined(channels: Sequence[ChannelAccount]) -> ChannelAccount:
    """What several channels hold as if they were one.

    Values are added up, ranges span all, shares are means; of times and points there are those of the worst channel.
    Its variable is "" where they are of several.
    """
    if len(channels) == 1:
        return channels[0]
    first = channels[0]
    several = len({c.variable for c in channels}) > 1
    filled = [c.filled_share for c in channels if c.filled_share is not None]
    times = [c.first_frozen for c in channels if c.first_frozen]
    values = sum(c.values for c in channels)
    return replace(
        first,
        name=subject([Channel(c.variable, c.level) for c in channels]),
        variable="" if several else first.variable,
        level=None,
        minimum=min((c.minimum for c in channels if c.values), default=math.nan),
        maximum=max((c.maximum for c in channels if c.values), default=math.nan),
        mean=sum(c.mean * c.values for c in channels if c.values) / values if values else math.nan,
        values=values,
        missing_share=sum(c.missing_share for c in channels) / len(channels),
        **{name: sum(getattr(c, name) for c in channels) for name in ("infinities", "outside", "negative")},
        **{
            name: max(getattr(c, name) for c in channels)
            for name in ("empty_times", "unobserved_points", "frozen_times", "longest_frozen_run")
        },
        first_frozen=min(times, default=None),
        filled_share=sum(filled) / len(channels) if filled else None,
    )


# What is unusual about channels


@dataclass(frozen=True)
class _Finding:
    """One kind of it.

    Attributes:
        holds: whether a channel has it.
        text: of one channel, or of several that are joined.
        alike: what channels must have in common to be described together.
    """

    holds: Callable[[ChannelAccount], Any]
    text: Callable[[ChannelAccount], str]
    alike: Callable[[ChannelAccount], Any] = lambda _: None


def _say(c: ChannelAccount, word: str) -> str:
    """The word as it goes with one variable, or with several."""
    return word if c.variable else {"is": "are", "has": "have", "repeats": "repeat", "its": "their", "it": "them"}[word]


def _is_joined(c: ChannelAccount) -> bool:
    return c.name != Channel(c.variable, c.level).name


def _times(c: ChannelAccount, number: int) -> str:
    return f"{'up to ' if _is_joined(c) else ''}{count(number, 'time')}"


def _is_implausible(c: ChannelAccount) -> bool:
    return c.outside > c.negative and not c.looks_like


def _outside(c: ChannelAccount) -> str:
    assert c.plausible is not None
    low, high = c.plausible
    implausible = f"{c.outside:,} of {count(c.values, 'value')} ({percent(c.outside, c.values)})"
    hint = f"; {_say(c, 'is')} {_say(c, 'it')} really in {c.units}?" if c.outside > _SUSPICIOUS_SHARE * c.values else ""
    plausible = f"the plausible range {low:.6g} to {high:.6g} {c.units}"
    found = f"from {c.minimum:.6g} to {c.maximum:.6g}"
    return f"{c.name} {_say(c, 'has')} {implausible} outside of {plausible}, {found}{hint}"


def _constant(c: ChannelAccount) -> str:
    values = f"{c.minimum:g}" if c.constant else f"each, {c.minimum:g} to {c.maximum:g}"
    return f"{c.name} {_say(c, 'is')} constant ({values}): there is nothing to learn from {_say(c, 'it')}"


def _mistaken(c: ChannelAccount) -> str:
    values = f"{_say(c, 'its')} values ({c.minimum:.4g} to {c.maximum:.4g}, mean {c.mean:.4g})"
    looks_like = f"look like {_units_in_words(c.looks_like)}: correct the units attribute"
    return f"{c.name} {_say(c, 'is')} declared in {c.units}, but {values} {looks_like}"


def _negative(c: ChannelAccount) -> str:
    below = f"{count(c.negative, 'value')} ({percent(c.negative, c.values)}) below zero"
    return f"{c.name} {_say(c, 'has')} {below}, down to {c.minimum:.3g} {c.units}"


def _infinite(c: ChannelAccount) -> str:
    return f"{c.name} {_say(c, 'has')} infinite values, which are treated as missing: {c.infinities}"


def _frozen(c: ChannelAccount) -> str:
    return (
        f"{c.name} {_say(c, 'repeats')} the field before it point by point at {_times(c, c.frozen_times)} "
        f"(at most {c.longest_frozen_run} in a row, first {c.first_frozen}): a frozen record?"
    )


def _empty(c: ChannelAccount) -> str:
    return f"{c.name} {_say(c, 'has')} no value at all at {_times(c, c.empty_times)}: no window reaches across"


_REMARKS = (
    _Finding(lambda c: not c.values, lambda c: "no values"),
    _Finding(lambda c: c.looks_like, lambda c: f"looks like {_units_in_words(c.looks_like)}", lambda c: c.looks_like),
    _Finding(lambda c: c.constant, lambda c: "constant"),
    _Finding(_is_implausible, lambda c: f"implausible {percent(c.outside, c.values)}"),
    _Finding(lambda c: c.negative, lambda c: f"below zero {percent(c.negative, c.values)}"),
    _Finding(lambda c: c.infinities, lambda c: f"infinite {c.infinities}"),
    _Finding(lambda c: c.frozen_times, lambda c: f"frozen {_times(c, c.frozen_times)}"),
    _Finding(lambda c: c.empty_times and c.values, lambda c: f"empty {_times(c, c.empty_times)}"),
    _Finding(
        lambda c: c.unobserved_points and c.values, lambda c: f"never observed {count(c.unobserved_points, 'point')}"
    ),
    _Finding(lambda c: c.filled_share, lambda c: f"filled {100 * (c.filled_share or 0):.3g} %"),
)
WARNINGS = (
    _Finding(lambda c: c.values and c.constant, _constant),
    _Finding(lambda c: c.values and c.looks_like, _mistaken, lambda c: (c.units, c.looks_like)),
    _Finding(lambda c: c.plausible and _is_implausible(c), _outside, lambda c: (c.units, c.plausible)),
    _Finding(lambda c: c.negative, _negative, lambda c: c.units),
    _Finding(lambda c: c.values and c.infinities, _infinite),
    _Finding(lambda c: c.values and c.frozen_times, _frozen),
    _Finding(lambda c: c.values and c.empty_times, _empty),
)
PROBLEMS = (
    _Finding(
        lambda c: not c.values,
        lambda c: (
            f"all values of {c.name if _is_joined(c) else repr(c.name)} are missing. Leave {_say(c, 'it')} out with "
            f"--variables or --levels."
        ),
    ),
)


def described(channels: Sequence[ChannelAccount], findings: Sequence[_Finding]) -> list[str]:
    """A sentence for each finding: of more than eight channels, for all that have it; else for each of them."""
    if len(channels) <= MOST_CHANNELS:
        return [finding.text(c) for c in channels for finding in findings if finding.holds(c)]
    return [finding.text(joined(group)) for finding in findings for group in _alike(channels, finding)]


def _alike(channels: Sequence[ChannelAccount], finding: _Finding) -> list[list[ChannelAccount]]:
    groups: dict[Any, list[ChannelAccount]] = {}
    for channel in filter(finding.holds, channels):
        groups.setdefault(finding.alike(channel), []).append(channel)
    return list(groups.values())


def remarks(levels: Sequence[ChannelAccount]) -> list[str]:
    """What is unusual about a channel, or about the levels of a variable, in a few words each: for a table."""
    return [
        finding.text(joined(group)) + ("" if len(group) == len(levels) else f" on {count(len(group), 'level')}")
        for finding in _REMARKS
        for group in _alike(levels, finding)
    ]


def _units_in_words(units: str | None) -> str:
    return "a fraction" if units == "1" else str(units)
