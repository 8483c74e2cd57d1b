"""Plain sentences from differences with intervals: "t850 beats persistence at every lead time"."""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr

from convlstm_wx.text import join

# Outcome at one lead time, and how a sentence says it, in the order of the sentence. The first three were tested.
CLAUSES = {
    "better": "beats",
    "same": "shows no significant difference from",
    "worse": "is worse than",
    "equal": "has the same error as",
    "smaller": "has a smaller error than",
    "larger": "has a larger error than",
}


def outcomes(against: xr.Dataset) -> dict[str, list[str | None]]:
    """Outcomes per reference, by lead time, from skill, mse_difference and p_value [reference, lead_time].

    Attribute confidence: 1 less it is the level of the test.
    """
    figures = [against[name].transpose("reference", ...).values for name in ("skill", "mse_difference", "p_value")]
    names = (_spoken(str(name)) for name in against["reference"].values)
    level = 1.0 - against.attrs["confidence"]
    return {name: [_outcome(*figures, level=level) for figures in zip(*rows)] for name, *rows in zip(names, *figures)}


def clear_outcomes(against: xr.Dataset) -> dict[str, list[str | None]]:
    """As `outcomes`, from csi_difference and csi_p_value; None too where no difference can be told from chance."""
    figures = [against[name].transpose("reference", ...).values for name in ("csi_difference", "csi_p_value")]
    clear = np.where(figures[1] <= 1.0 - against.attrs["confidence"] + 1e-12, figures[0], 0.0)
    names = (_spoken(str(name)) for name in against["reference"].values)
    return {
        name: [{1.0: "better", -1.0: "worse"}.get(sign) for sign in np.sign(row)] for name, row in zip(names, clear)
    }


def ensemble_outcomes(against: xr.Dataset) -> list[str | None]:
    """As `outcomes`, of an ensemble's CRPS, from crps_skill, crps_p_value and CRPS of both [lead_time]."""
    difference = against["crps"] - against["crps_linear_inverse_model"]
    figures = (against["crps_skill"].values, difference.values, against["crps_p_value"].values)
    return [_outcome(*at, level=1.0 - against.attrs["confidence"]) for at in zip(*figures)]


def _spoken(reference: str) -> str:
    """ "damped persistence", "the linear inverse model"."""
    words = reference.replace("_", " ")
    return f"the {words}" if words.endswith("model") else words


def _outcome(skill: float, difference: float, p: float, *, level: float) -> str | None:
    """What a skill and its p-value say; None if nothing was scored. Untested, only which error is larger is told."""
    if np.isnan(difference):
        return None
    if difference == 0 and (np.isnan(p) or p == 1):
        return "equal"
    if np.isnan(p):
        return "smaller" if difference < 0 else "larger"
    if p > level + 1e-12:
        return "same"
    return "better" if skill > 0 else "worse"


def sentence(subject: str, found: Mapping[str, Sequence[str | None]], hours: np.ndarray) -> str:
    """One sentence from the outcomes per reference and lead time.

    "t850 beats persistence at every lead time and climatology until +72 h and is worse than climatology at +96 h."
    """
    clauses = [clause for word in CLAUSES if (clause := _clause(word, found, hours))]
    if not clauses:
        return f"{subject} has nothing to score."
    untested = {"smaller", "larger"} & {word for row in found.values() for word in row}
    reserve = " (errors untested: too few independent init times)" if untested else ""
    return f"{subject} {join(clauses)}{reserve}."


def _clause(word: str, found: Mapping[str, Sequence[str | None]], hours: np.ndarray) -> str:
    """ "beats persistence at every lead time and climatology until +72 h"; empty if the outcome never occurs."""
    when = {reference: when_said(word, row, hours) for reference, row in found.items() if word in row}
    if not when:
        return ""
    alike = [[reference for reference, text in when.items() if text == one] for one in dict.fromkeys(when.values())]
    return f"{CLAUSES[word]} {join([f'{join(group)} {when[group[0]]}' for group in alike])}"


def when_said(word: str, row: Sequence[str | None], hours: np.ndarray) -> str:
    """The lead times with this outcome: "at every lead time", "until +72 h", "at +24 h and from +96 h on"."""
    runs = [list(places) for _, places in itertools.groupby(range(len(row)), key=lambda place: row[place])]
    return join([span(run[0], run[-1], len(row) - 1, hours) for run in runs if row[run[0]] == word])


def span(first: int, final: int, last: int, hours: np.ndarray) -> str:
    """Lead times from number `first` to number `final` of those up to number `last`: "until +72 h", "from +96 h on"."""
    if first == final:
        return f"at {lead_label(hours[first])}"
    if first == 0:
        return "at every lead time" if final == last else f"until {lead_label(hours[final])}"
    if final == last:
        return f"from {lead_label(hours[first])} on"
    return f"between {lead_label(hours[first])} and {lead_label(hours[final])}"


def lead_label(hours: float) -> str:
    """ "+24 h"."""
    return f"+{hours:g} h"
