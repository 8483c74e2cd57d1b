"""Does a model use its upstream region? What its forecasts lose when the upstream inputs are those of other times.

The test is Breiman's (2001) permutation importance, with whole windows exchanged between init times of the same month
and hour of the day: climatology and the course of the day stay, and only the weather is another.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr

from convlstm_wx.conventions import Channel
from convlstm_wx.errors import DataError
from convlstm_wx.text import MOST_CHANNELS, join, subject
from convlstm_wx.verification.compare import outcomes, size
from convlstm_wx.verification.wording import lead_label, when_said


def other_times(init_times: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """For each init time [N] another one of the same month and hour, of any year; each is taken once.

    The members of a group are put in a random ring and everyone takes the place of the next. Where a group has one
    member it keeps its own.

    Raises:
        DataError: if no group has two.
    """
    stamps = init_times.astype("datetime64[s]")
    months = stamps.astype("datetime64[M]").astype(int) % 12
    minutes = (stamps - stamps.astype("datetime64[D]")).astype("timedelta64[m]").astype(int)
    groups = months * 1440 + minutes
    taken = init_times.copy()
    for group in np.unique(groups):
        ring = generator.permutation(np.flatnonzero(groups == group))
        taken[ring] = init_times[np.roll(ring, 1)]
    if (taken == init_times).all():
        raise DataError("no two init times are of the same month and hour, so none can be shuffled; score more months")
    return taken


def sentences(gains: xr.Dataset) -> list[str]:
    """Whether the model uses its upstream region, and what shuffling costs, channel by channel.

    Args:
        gains: of compare.compare, where A has its upstream inputs as they were and B those of other times.
    """
    hours = gains["lead_hours"].values
    by_channel = {str(name): gains.sel(channel=name) for name in gains["channel"].values}
    found = {name: outcomes(at) for name, at in by_channel.items()}
    return [_verdict(found), *(f"{name}: {_channel(at, found[name], hours)}." for name, at in by_channel.items())]


def _verdict(found: Mapping[str, Sequence[str]]) -> str:
    used = [name for name, row in found.items() if "worse" in row]
    if used:
        named = join(used) if len(used) <= MOST_CHANNELS else subject(list(map(Channel.parse, used)))
        return f"The model uses its upstream region, for {named}."
    if any({"better", "same", "equal"} & set(row) for row in found.values()):
        return "The model does not use its upstream region: shuffling it costs nothing that stands out from chance."
    return "Too few independent init times to tell whether the model uses its upstream region; score more months."


def _channel(gains: xr.Dataset, found: Sequence[str], hours: np.ndarray) -> str:
    worse = [lead for lead, what in enumerate(found) if what == "worse"]
    if worse:
        said = f"shuffled upstream inputs raise the MSE {when_said('worse', found, hours)}"
        if len(worse) == 1:
            return f"{said} by {size(gains.isel(lead_time=worse[0]))}"
        ends = [f"{size(gains.isel(lead_time=lead))} at {lead_label(hours[lead])}" for lead in (worse[0], worse[-1])]
        return f"{said}, by {join(ends)}"
    if set(found) == {"equal"}:
        return "shuffled upstream inputs change no forecast"
    if "same" not in found and "better" not in found:
        return "untested, for want of independent init times"
    return "shuffled upstream inputs cost nothing that stands out from chance"


def readings(gains: xr.Dataset, costs: xr.Dataset) -> list[str]:
    """Where the comparison and the permutation test must be read together, channel by channel.

    Args:
        gains: of the forecasts with upstream over those without.
        costs: of shuffling, see `sentences`.
    """
    lines = []
    for name in map(str, gains["channel"].values):
        better = "better" in outcomes(gains.sel(channel=name))
        used = "worse" in outcomes(costs.sel(channel=name))
        if better and not used:
            lines.append(
                f"{name}: better with upstream, but not by its upstream inputs, as shuffling them costs nothing that "
                "stands out: take it for the luck of training until more seeds and epochs say the same."
            )
        if used and not better:
            lines.append(f"{name}: the upstream inputs are used, but the forecasts are not better for it.")
    return lines
