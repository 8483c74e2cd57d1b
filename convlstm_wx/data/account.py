"""The account of a dataset: what :mod:`~convlstm_wx.data.quality` found, for people and for programs.

It never raises for bad content: `problems` make training impossible, `warnings` want a look.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

_MOST_GAPS_TOLD = 5
_MOST_CHANNELS_TOLD = 16  # of more, the log of a training shows a line per variable
_MOST_NOTES_TOLD = 12
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
        told = [
            ("no values", not self.values),
            (f"looks like {_units_in_words(self.looks_like)}", self.looks_like),
            ("constant", self.constant),
            (f"implausible {percent(self.outside, self.values)}", self.outside > self.negative and not self.looks_like),
            (f"below zero {percent(self.negative, self.values)}", self.negative),
            (f"infinite {self.infinities}", self.infinities),
            (f"frozen {count(self.frozen_times, 'time')}", self.frozen_times),
            (f"empty {count(self.empty_times, 'time')}", self.empty_times and self.values),
            (f"never observed {count(self.unobserved_points, 'point')}", self.unobserved_points and self.values),
            (f"filled {100 * (self.filled_share or 0):.3g} %", self.filled_share),
        ]
        return [text for text, is_so in told if is_so]

    def problems(self) -> Iterator[str]:
        """What makes training impossible."""
        if not self.values:
            yield f"all values of '{self.name}' are missing. Leave it out with --variables or --levels."

    def warnings(self) -> Iterator[str]:
        """What a person should look at."""
        if not self.values:
            return
        if self.constant:
            yield f"{self.name} is constant ({self.minimum:g}): there is nothing to learn from it"
        if self.looks_like:
            yield (
                f"{self.name} is declared in {self.units}, but its values ({self.minimum:.4g} to {self.maximum:.4g}, "
                f"mean {self.mean:.4g}) look like {_units_in_words(self.looks_like)}: correct the units attribute"
            )
        elif self.plausible is not None and self.outside > self.negative:
            low, high = self.plausible
            implausible = f"{self.outside:,} of {count(self.values, 'value')} ({percent(self.outside, self.values)})"
            hint = f"; is it really in {self.units}?" if self.outside > _SUSPICIOUS_SHARE * self.values else ""
            plausible = f"the plausible range {low:.6g} to {high:.6g} {self.units}"
            found = f"from {self.minimum:.6g} to {self.maximum:.6g}"
            yield f"{self.name} has {implausible} outside of {plausible}, {found}{hint}"
        if self.negative:
            below = f"{count(self.negative, 'value')} ({percent(self.negative, self.values)}) below zero"
            yield f"{self.name} has {below}, down to {self.minimum:.3g} {self.units}"
        if self.infinities:
            yield f"{self.name} has infinite values, which are treated as missing: {self.infinities}"
        if self.frozen_times:
            yield (
                f"{self.name} repeats the field before it point by point at {count(self.frozen_times, 'time')} "
                f"(at most {self.longest_frozen_run} in a row, first {self.first_frozen}): a frozen record?"
            )
        if self.empty_times:
            yield f"{self.name} has no value at all at {count(self.empty_times, 'time')}: no window reaches across"


@dataclass(frozen=True)
class Gap:
    """A hole in the time axis: the last time before it, the first after it, and the steps that are missing."""

    before: str
    after: str
    missing_steps: int

    def line(self) -> str:
        """For people."""
        return f"{self.before} to {self.after}: {count(self.missing_steps, 'step')} missing"


@dataclass(frozen=True)
class Axis:
    """A horizontal axis, south to north or west to east.

    Attributes:
        points: how many.
        first, last: degrees; metres or numbers of a projected grid.
        spacing: between neighbours, None where it is uneven or there is one point only.
    """

    points: int
    first: float
    last: float
    spacing: float | None


@dataclass(frozen=True)
class Account:
    """What a dataset holds.

    Attributes:
        source: file names.
        lat, lon: the horizontal axes.
        projected: whether they are those of a map projection: areas are then taken as equal.
        axis_names: our names of the axes, and those in the file where they are known.
        levels: hPa.
        static_fields: names of the fields without a time.
        steps: number of times.
        step: the time step, in words; "" with fewer than two times.
        step_s: the same in seconds, None with fewer than two times.
        period: first and last time, ISO.
        calendar: of the file's dates, where it is known.
        gaps: the holes in the time axis.
        irregular_steps: neighbouring times that are closer than the time step.
        duplicate_times, unsorted_times: times of the file that occur twice or are out of order.
        channels: one account per variable and level.
    """

    source: str
    lat: Axis
    lon: Axis
    projected: bool
    axis_names: dict[str, str]
    levels: tuple[float, ...]
    static_fields: tuple[str, ...]
    steps: int
    step: str
    step_s: int | None
    period: tuple[str, str]
    calendar: str | None
    gaps: tuple[Gap, ...]
    irregular_steps: int
    duplicate_times: int
    unsorted_times: int
    channels: tuple[ChannelAccount, ...]

    def grid(self) -> str:
        """The grid in words."""
        lat, lon = self.lat, self.lon
        size = f"{lat.points} x {lon.points} points"
        if self.projected:
            return f"{size} of a projected grid, whose areas are taken as equal"
        covered = f"{lat.first:g} to {lat.last:g} degrees north, {lon.first:g} to {lon.last:g} degrees east"
        return f"{size}, {covered}{_spacing(lat, lon)}"

    def lines(self) -> list[str]:
        """The account in brief, as for the log of a training; what to look at comes last."""
        first, last = self.period
        each = f", one each {self.step}," if self.step else ""
        notes = [*self.problems(), *self.warnings()]
        told = [f"note: {text}" for text in notes[:_MOST_NOTES_TOLD]]
        if len(notes) > _MOST_NOTES_TOLD:
            told.append(f"note: {len(notes) - _MOST_NOTES_TOLD} more; convlstm-wx inspect tells all of them")
        times = f"{count(self.steps, 'time')}{each} from {first} to {last}"
        return [f"{self.source}: {times}; {self.grid()}", *self._ranges(), *told]

    def _ranges(self) -> list[str]:
        if len(self.channels) <= _MOST_CHANNELS_TOLD:
            return aligned([_range(c.name, [c]) for c in self.channels])
        variables = {c.variable: [d for d in self.channels if d.variable == c.variable] for c in self.channels}
        return aligned([_range(_on_levels(name, group), group) for name, group in variables.items()])

    def problems(self) -> list[str]:
        """What makes training impossible, and what to do."""
        told = []
        if self.steps < 2:
            told.append(f"{count(self.steps, 'time')} in the file; a forecast needs a series of them.")
        mend = "; mend the file with: convlstm-wx prepare --data FILE --output clean.nc"
        if self.duplicate_times:
            told.append(f"times that occur more than once: {self.duplicate_times}{mend}")
        if self.unsorted_times:
            told.append(f"times that are earlier than the one before: {self.unsorted_times}{mend}")
        return told + [text for channel in self.channels for text in channel.problems()]

    def warnings(self) -> list[str]:
        """What a person should look at."""
        return self.time_warnings() + self.channel_warnings()

    def time_warnings(self) -> list[str]:
        """What is wrong with the times."""
        told = [
            f"missing steps between {g.before} and {g.after}: {g.missing_steps}" for g in self.gaps[:_MOST_GAPS_TOLD]
        ]
        if len(self.gaps) > _MOST_GAPS_TOLD:
            told.append(f"more gaps in time, across which no window reaches: {len(self.gaps) - _MOST_GAPS_TOLD}")
        if self.irregular_steps:
            told.append(f"times that follow the one before in less than {self.step}: {self.irregular_steps}")
        return told

    def channel_warnings(self) -> list[str]:
        """What is wrong with the values."""
        return [text for channel in self.channels for text in channel.warnings()]

    def to_dict(self) -> dict[str, Any]:
        """Plain types, for JSON: what is not a finite number is None."""
        return finite_or_none(asdict(self) | {"problems": self.problems(), "warnings": self.warnings()})

    @classmethod
    def from_dict(cls, entries: Mapping[str, Any]) -> "Account":
        """Back from :meth:`to_dict`."""
        plain = {key: value for key, value in entries.items() if key not in ("problems", "warnings")}
        return cls(
            **plain
            | {
                "lat": Axis(**entries["lat"]),
                "lon": Axis(**entries["lon"]),
                "gaps": tuple(Gap(**gap) for gap in entries["gaps"]),
                "channels": tuple(ChannelAccount.from_dict(channel) for channel in entries["channels"]),
                **{name: tuple(entries[name]) for name in ("levels", "static_fields", "period")},
            }
        )


def _units_in_words(units: str | None) -> str:
    return "a fraction" if units == "1" else str(units)


def _spacing(lat: Axis, lon: Axis) -> str:
    if lat.spacing is None or lon.spacing is None:
        return ", unevenly spaced" if max(lat.points, lon.points) > 2 else ""
    north, east = f"{lat.spacing:.4g}", f"{lon.spacing:.4g}"
    if north != east:
        return f", every {north} (north) x {east} (east) degrees"
    return ", every degree" if north == "1" else f", every {north} degrees"


def _on_levels(name: str, group: Sequence[ChannelAccount]) -> str:
    return f"{name} on {len(group)} levels" if len(group) > 1 else group[0].name


def _range(name: str, group: Sequence[ChannelAccount]) -> list[str]:
    """A row of the brief account: what it is and what it ranges over."""
    minimum, maximum = min(c.minimum for c in group), max(c.maximum for c in group)
    missing = sum(c.missing_share for c in group) / len(group)
    mean = f", mean {group[0].mean:.6g}" if len(group) == 1 else ""
    gaps = f", {100 * missing:.3g} % missing" if missing else ""
    return [name, group[0].meaning or "", f"{minimum:.6g} to {maximum:.6g} {group[0].units}{mean}{gaps}"]


def aligned(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> list[str]:
    """Rows of cells as lines with straight columns two blanks apart; the columns numbered in `right` end flush."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))] if rows else []
    return [
        "  ".join(
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths))
            if width
        ).rstrip()
        for row in rows
    ]


def count(number: int, noun: str) -> str:
    """ "1 time", "2,184 times"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def percent(part: float, whole: float) -> str:
    """A share with up to three digits; what is there is never "0 %", and only all of it is "100 %"."""
    share = f"{100 * part / whole:.3g}" if whole else "0"
    return "over 99.9 %" if share == "100" and part < whole else f"{share} %"


def finite_or_none(value: Any) -> Any:
    """The same with None for what JSON cannot hold: NaN and infinities."""
    if isinstance(value, dict):
        return {key: finite_or_none(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite_or_none(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
