"""The account of a dataset: what :mod:`~convlstm_wx.data.quality` found, for people and for programs.

It never raises for bad content: `problems` make training impossible, `warnings` want a look.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from convlstm_wx.data.channel_account import PROBLEMS, WARNINGS, ChannelAccount, described, joined
from convlstm_wx.text import MOST_CHANNELS, aligned, count

_MOST_GAPS_TOLD = 5
_MOST_NOTES_TOLD = 12


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
            told.append(f"note: {len(notes) - _MOST_NOTES_TOLD} more; convlstm-wx inspect lists all of them")
        times = f"{count(self.steps, 'time')}{each} from {first} to {last}"
        return [f"{self.source}: {times}", self.grid(), *aligned([_range(group) for group in self.rows()]), *told]

    def rows(self) -> list[list[ChannelAccount]]:
        """What a table shows in a row each: a channel or, of more than eight channels, the levels of a variable."""
        if len(self.channels) <= MOST_CHANNELS:
            return [[channel] for channel in self.channels]
        variables: dict[str, list[ChannelAccount]] = {}
        for channel in self.channels:
            variables.setdefault(channel.variable, []).append(channel)
        return list(variables.values())

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
        return told + described(self.channels, PROBLEMS)

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
        return described(self.channels, WARNINGS)

    def to_dict(self) -> dict[str, Any]:
        """Plain types, for JSON: what is not a finite number is None; warnings are those of each channel."""
        warnings = self.time_warnings() + [text for channel in self.channels for text in channel.warnings()]
        return finite_or_none(asdict(self) | {"problems": self.problems(), "warnings": warnings})

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


def _spacing(lat: Axis, lon: Axis) -> str:
    if lat.spacing is None or lon.spacing is None:
        return ", unevenly spaced" if max(lat.points, lon.points) > 2 else ""
    north, east = f"{lat.spacing:.4g}", f"{lon.spacing:.4g}"
    if north != east:
        return f", every {north} (north) x {east} (east) degrees"
    return ", every degree" if north == "1" else f", every {north} degrees"


def _range(levels: Sequence[ChannelAccount]) -> list[str]:
    """A row of the brief account: what it is and what it ranges over."""
    c = joined(levels)
    mean = f", mean {c.mean:.6g}" if len(levels) == 1 else ""
    gaps = f", {100 * c.missing_share:.3g} % missing" if c.missing_share else ""
    name = f"{c.variable} on {count(len(levels), 'level')}" if len(levels) > 1 else c.name
    return [name, c.meaning or "", f"{c.minimum:.6g} to {c.maximum:.6g} {c.units}{mean}{gaps}"]


def finite_or_none(value: Any) -> Any:
    """The same with None for what JSON cannot hold: NaN and infinities."""
    if isinstance(value, dict):
        return {key: finite_or_none(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite_or_none(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
