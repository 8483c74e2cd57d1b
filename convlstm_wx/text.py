"""Numbers and channels in words: tables, short lists of many channels, sentences for those that share them."""

import textwrap
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING

from convlstm_wx.conventions import Channel

if TYPE_CHECKING:
    import xarray as xr

MOST_CHANNELS = 8  # listed one by one; of more, variables are
WIDTH = 120  # of a line
_MOST_NAMES = 12  # of variables in a list
_MOST_IN_A_SUBJECT = 3
_LEVELS_THAT_SHOW_MOST = (500.0, 850.0, 250.0)  # hPa, as weather services draw them


def by_variable(channels: Iterable[Channel]) -> dict[str, list[Channel]]:
    """The channels of each variable, in their order."""
    found: dict[str, list[Channel]] = {}
    for channel in channels:
        found.setdefault(channel.variable, []).append(channel)
    return found


def list_channels(channels: Sequence[Channel]) -> str:
    """All of them in one line, by name up to eight, else by variable.

    "t2m, z@500hPa", or "z t on 13 levels (50 to 1000 hPa), t2m, msl: 28 channels".
    """
    if len(channels) <= MOST_CHANNELS:
        return ", ".join(channel.name for channel in channels)
    alike: dict[tuple[float | None, ...], list[str]] = {}  # variables by their levels
    for name, group in by_variable(channels).items():
        alike.setdefault(tuple(channel.level for channel in group), []).append(name)
    parts = []
    for levels, names in alike.items():
        if len(levels) == 1:
            parts.append(list_names([Channel(name, levels[0]).name for name in names]))
        else:
            parts.append(f"{list_names(names, ' ')} on {len(levels)} levels ({describe_levels(levels)})")
    return f"{', '.join(parts)}: {len(channels)} channels"


def list_names(names: Sequence[str], between: str = ", ") -> str:
    """The names of up to twelve variables, and how many more there are."""
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return between.join(names[:_MOST_NAMES]) + more


def describe_levels(levels: Sequence[float | None], among: Sequence[float | None] = ()) -> str:
    """ "500, 850 hPa" or, of more than three, "100 to 1000 hPa"; "" of a variable without levels.

    Args:
        among: all levels that there are; a range is given only where none of them is left out.
    """
    known, all_ = (sorted(level for level in some if level is not None) for some in (levels, among or levels))
    if not known:
        return ""
    if len(known) <= 3 or known != [level for level in all_ if known[0] <= level <= known[-1]]:
        return f"{', '.join(f'{level:g}' for level in known)} hPa"
    return f"{known[0]:g} to {known[-1]:g} hPa"


def subject(channels: Sequence[Channel], among: Sequence[Channel] = ()) -> str:
    """The channels that a sentence is about, of those that there are.

    "t2m", "z on 13 levels (50 to 1000 hPa)", or "z, t and 3 more variables (65 channels)".
    """
    groups = by_variable(channels)
    if len(groups) == 1 and len(channels) > 1:
        variable = channels[0].variable
        there = [channel.level for channel in among if channel.variable == variable]
        levels = describe_levels([channel.level for channel in channels], there)
        return f"{variable} on {len(channels)} levels ({levels})"
    names = [group[0].name if len(group) == 1 else name for name, group in groups.items()]
    if len(names) > _MOST_IN_A_SUBJECT:
        names = [*names[: _MOST_IN_A_SUBJECT - 1], f"{len(names) - _MOST_IN_A_SUBJECT + 1} more variables"]
    number = f" ({len(channels)} channels)" if len(channels) > len(names) else ""
    return join(names) + number


def join(parts: Sequence[str]) -> str:
    """ "a, b and c"."""
    return f"{', '.join(parts[:-1])} and {parts[-1]}" if len(parts) > 1 else parts[0]


def merge_levels(sentences: Sequence[tuple[Channel, str]]) -> list[str]:
    """Sentences that begin with a channel's name; of more than eight channels, once for levels that share the rest.

    Args:
        sentences: each with its channel.
    """
    channels = list(dict.fromkeys(channel for channel, _ in sentences))
    if len(channels) <= MOST_CHANNELS:
        return [text for _, text in sentences]
    alike: dict[tuple[str, str], list[Channel]] = {}
    for channel, text in sentences:
        alike.setdefault((channel.variable, text.removeprefix(channel.name)), []).append(channel)
    return [subject(group, channels) + rest for (_, rest), group in alike.items()]


def choose_some(channels: Sequence[Channel], most: int) -> list[Channel]:
    """At most so many that stand for all, in their order: every variable first, near 500, 850 and 250 hPa."""
    ranks = []
    for group in by_variable(channels).values():
        left, ranked = list(group), []
        for wanted in _LEVELS_THAT_SHOW_MOST[: len(group)]:
            ranked.append(min(left, key=lambda channel: abs((channel.level or 0.0) - wanted)))
            left.remove(ranked[-1])
        ranks.append(ranked + left)
    chosen = [channel for rank in zip_longest(*ranks) for channel in rank if channel is not None][:most]
    return [channel for channel in channels if channel in chosen]


def select_some(scores: "xr.Dataset", most: int) -> "xr.Dataset":
    """The part of scores with a dimension channel that :func:`choose_some` chooses."""
    channels = [Channel.parse(str(name)) for name in scores["channel"].values]
    if len(channels) <= most:
        return scores
    return scores.sel(channel=[channel.name for channel in choose_some(channels, most)])


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


def wrap(lines: Iterable[str], indent: int = 0) -> list[str]:
    """The same in lines of at most 120 letters, less those that they are indented by.

    No word is broken, and no options that follow a colon: they stay whole, to be pasted.
    """
    found = []
    for line in lines:
        if len(line) <= WIDTH - indent:
            found.append(line)
            continue
        text, _, options = line.partition(": --")
        if options:
            text += ":"
        found += textwrap.wrap(
            text, WIDTH - indent, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
        )
        found += [f"  --{options}"] if options else []
    return found


def count(number: int, noun: str) -> str:
    """ "1 time", "2,184 times"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def percent(part: float, whole: float) -> str:
    """A share with up to three digits; what is there is never "0 %", and only all of it is "100 %"."""
    share = f"{100 * part / whole:.3g}" if whole else "0"
    return "over 99.9 %" if share == "100" and part < whole else f"{share} %"
