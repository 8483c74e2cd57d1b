"""Tables of the page: scores by lead time, where the model wins, events, periods, boxes, wind and ensemble."""

from calendar import month_abbr
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from convlstm_wx.report.diagnostics import spoken
from convlstm_wx.report.maps import pretty_units

MOST_CELLS = 16  # in a row of the scorecard


@dataclass(frozen=True)
class Table:
    """Rows of texts under a header; the first cell of a row names it."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


def digits(value: float, n: int = 3) -> str:
    """A number to so many digits, without an exponent where that is readable; "-" for none."""
    if not np.isfinite(value):
        return "-"
    if value == 0:
        return "0"
    if not 1e-4 <= abs(value) < 1e6:
        return f"{value:.{n - 1}e}"
    return f"{value:.{max(0, n - 1 - int(np.floor(np.log10(abs(value)))))}f}"


@dataclass(frozen=True)
class Cell:
    """A skill: its text, the skill itself from -1 to 1, and whether it is no chance."""

    text: str
    skill: float
    sure: bool

    @property
    def tone(self) -> str:
        """What it means, for the style of the page."""
        return ("good" if self.skill > 0 else "bad") if self.sure else "open"


@dataclass(frozen=True)
class Scorecard:
    """The skill of the model over each rival: a row of cells per channel, for each rival the same lead times."""

    rivals: Sequence[str]
    leads: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Cell]]]


def scorecard(scores: xr.Dataset) -> Scorecard:
    """Where the model wins, at a glance: at all lead times if they are few, else at the first, middle and last."""
    n_leads, n_rivals = scores.sizes["lead_time"], scores.sizes["reference"]
    leads = list(range(n_leads)) if n_leads * n_rivals <= MOST_CELLS else _leads(scores)
    rows = []
    for name in map(str, scores["channel"].values):
        at = scores.sel(channel=name).isel(lead_time=leads).transpose("reference", "lead_time", ...)
        sure = at["p_value"].values <= 1 - scores.attrs["confidence"] + 1e-12
        rows.append((name, [_cell(*pair) for pair in zip(at["skill"].values.ravel().tolist(), sure.ravel().tolist())]))
    return Scorecard(
        [spoken(str(name)) for name in scores["reference"].values], [_lead(scores, lead) for lead in leads], rows
    )


def _cell(skill: float, sure: bool) -> Cell:
    if not np.isfinite(skill):
        return Cell("-", 0.0, False)
    text = f"{100 * skill:+z.0f} %" if skill > -9.995 else "< -999 %"
    return Cell(text, float(np.clip(skill, -1, 1)), sure)


@dataclass(frozen=True)
class ScoreTable:
    """Scores of one channel, a row per lead time."""

    name: str
    units: str
    rows: Sequence["ScoreRow"]


@dataclass(frozen=True)
class ScoreRow:
    """One lead time: RMSE of all systems and which are the smallest; MAE, bias, ACC and activity; the skills."""

    lead: str
    rmse: Sequence[tuple[str, bool]]
    others: Sequence[str]
    skills: Sequence[str]


def score_table(scores: xr.Dataset) -> ScoreTable:
    """The scores of one channel."""
    smallest = float(scores["rmse"].min())
    decimals = int(np.clip(2 - np.floor(np.log10(smallest)), 0, 8)) if smallest > 0 else 3
    rows = [_score_row(scores.isel(lead_time=lead), decimals) for lead in range(scores.sizes["lead_time"])]
    return ScoreTable(str(scores["channel"].item()), pretty_units(str(scores["units"].item())), rows)


def _score_row(scores: xr.Dataset, decimals: int) -> ScoreRow:
    best, model = float(scores["rmse"].min()), scores.sel(system="model")
    return ScoreRow(
        f"+{scores['lead_hours'].item():g} h",
        [(f"{value:.{decimals}f}", value == best) for value in scores["rmse"].values],
        [
            f"{model['mae'].item():.{decimals}f}",
            f"{model['bias'].item():+.{decimals + 1}f}",
            f"{model['acc'].item():.3f}",
            f"{(model['activity'] / scores['observed_activity']).item():.2f}",
        ],
        [f"{100 * skill:+z.0f} %" for skill in scores["skill"].values],
    )


def _leads(scores: xr.Dataset) -> list[int]:
    """The first, the middle and the last lead time."""
    last = scores.sizes["lead_time"] - 1
    return sorted({0, last // 2, last})


def _lead(scores: xr.Dataset, place: int) -> str:
    return f"+{scores['lead_hours'].values[place]:g} h"


def events(scores: xr.Dataset) -> Iterator[Table]:
    """Contingency scores and FSS at each threshold."""
    names = ("pod", "far", "csi", "ets", "hss", "frequency_bias")
    windows = [int(size) for size in scores["window"].values]
    header = ["event", "lead", "happened", "POD", "FAR", "CSI", "ETS", "HSS", "frequency bias"]
    header += [*(f"FSS {size} x {size}" for size in windows), "CSI of persistence"]
    for name in scores["channel"].values:
        rows = []
        for place, label in enumerate(scores["threshold_label"].sel(channel=name).values):
            for lead in _leads(scores) if label else []:
                at = scores.sel(channel=name).isel(threshold=place, lead_time=lead)
                model = at.sel(system="model")
                number = float(model["hits"] + model["misses"])
                happened = f"{number:,.0f}" if np.isfinite(number) else "-"  # nothing was observed at such lead times
                figures = [_thousandths(float(model[score])) for score in names]
                figures += [_thousandths(float(model["fss"].sel(window=size))) for size in windows]
                persistence = _thousandths(float(at["csi"].sel(system="persistence")))
                rows.append([f">= {label}", _lead(scores, lead), happened, *figures, persistence])
        yield Table(f"Events: {name}", header, rows)


def _thousandths(score: float) -> str:
    return f"{score:z.3f}" if np.isfinite(score) else "-"


def event_differences(scores: xr.Dataset) -> Iterator[Table]:
    """CSI and FSS of the model less those of each rival, with intervals."""
    size = int(scores["window"].values[0])
    rivals = list(map(str, scores["reference"].values))
    header = ["event", "lead", "score", *(f"model - {spoken(rival)}" for rival in rivals)]
    for name in map(str, scores["channel"].values):
        rows = []
        for place, label in enumerate(scores["threshold_label"].sel(channel=name).values):
            for lead in _leads(scores) if label else []:
                at = scores.sel(channel=name, window=size).isel(threshold=place, lead_time=lead)
                for text, score in (("CSI", "csi"), (f"FSS {size} x {size}", "fss")):
                    cells = [_with_interval(at.sel(reference=rival), f"{score}_difference") for rival in rivals]
                    rows.append([f">= {label}", _lead(scores, lead), text, *cells])
        yield Table(f"Events: {name}, model less rivals (above 0 the model is better)", header, rows)


def _with_interval(scores: xr.Dataset, name: str) -> str:
    """ "+0.12 (0.05 to 0.18)"."""
    best, low, high = (float(scores[f"{name}{part}"]) for part in ("", "_low", "_high"))
    if not np.isfinite(best):
        return "-"
    return f"{best:+z.2f}" + (f" ({low:z.2f} to {high:z.2f})" if np.isfinite(low) else "")


def ensemble(scores: xr.Dataset) -> Iterator[Table]:
    """CRPS and spread beside the error of the mean."""
    if "crps" not in scores:
        return
    rows = []
    for name in map(str, scores["channel"].values):
        for lead in _leads(scores):
            at = scores.sel(channel=name).isel(lead_time=lead)
            crps, spread, rmse = float(at["crps"]), float(at["spread"]), float(at["rmse"].sel(system="model"))
            interval = f"{digits(float(at['crps_low']))} to {digits(float(at['crps_high']))}"
            cells = [digits(crps), interval, digits(spread), digits(rmse), digits(spread / rmse)]
            if "crps_skill" in at:
                cells += [digits(float(at["crps_linear_inverse_model"])), _with_interval(at, "crps_skill")]
            rows.append([f"{name} ({pretty_units(at['units'].item())})", _lead(scores, lead), *cells])
    header = [
        "channel",
        "lead",
        f"CRPS ({scores.attrs['crps_method']})",
        "its interval",
        "spread",
        "RMSE of the mean",
        "spread / RMSE",
    ]
    if "crps_skill" in scores:
        header += ["CRPS of the linear inverse model's normal distribution", "skill against it"]
    yield Table(f"Ensemble of {scores.attrs['members']} members", header, rows)


def wind(scores: xr.Dataset) -> Iterator[Table]:
    """Errors of wind vectors."""
    if "wind" not in scores.dims:
        return
    systems = list(map(str, scores["system"].values))
    rows = [
        [str(name), _lead(scores, lead), *map(digits, scores["wind_rmse"].sel(wind=name).isel(lead_time=lead).values)]
        for name in scores["wind"].values
        for lead in _leads(scores)
    ]
    yield Table("Wind: RMSE of the vector", ["wind", "lead", *map(spoken, systems)], rows)


def boxes(scores: xr.Dataset) -> Iterator[Table]:
    """Scores in each box."""
    if "box" not in scores.dims:
        return
    systems = list(map(str, scores["system"].values))
    for box in scores["box"].values:
        rows = []
        for name in map(str, scores["channel"].values):
            for lead in _leads(scores):
                at = scores.sel(box=box, channel=name).isel(lead_time=lead)
                cells = [*map(digits, at["rmse_by_box"].values), digits(float(at["bias_by_box"].sel(system="model")))]
                rows.append([f"{name} ({pretty_units(at['units'].item())})", _lead(scores, lead), *cells])
        header = ["channel", "lead", *(f"RMSE {spoken(system)}" for system in systems), "bias"]
        yield Table(f"Box {box}", header, rows)


def _period(kind: str, label: Any) -> str:
    """ "Jan", "DJF", "6:00 UTC"."""
    if kind == "month":
        return month_abbr[label]
    return f"{label:g}:00 UTC" if kind == "hour" else str(label)


def periods(scores: xr.Dataset) -> Iterator[Table]:
    """RMSE of the model, its bias, and its RMSE over that of each rival, at the middle lead time."""
    lead = (scores.sizes["lead_time"] - 1) // 2
    rivals = [str(system) for system in scores["system"].values if system != "model"]
    for period in ("month", "season", "hour"):
        if scores.sizes.get(period, 0) < 2:
            continue
        rows = []
        for name in map(str, scores["channel"].values):
            for label in scores[period].values:
                at = scores.sel({"channel": name, period: label}).isel(lead_time=lead)
                rmse = at[f"rmse_by_{period}"]
                own = float(rmse.sel(system="model"))
                shares = [digits(own / float(rmse.sel(system=rival))) for rival in rivals]
                figures = [digits(own), digits(float(at[f"bias_by_{period}"].sel(system="model"))), *shares]
                rows.append([name, _period(period, label), f"{int(at[f'pairs_by_{period}'])}", *figures])
        header = ["channel", period, "pairs", "RMSE", "bias", *(f"RMSE / {spoken(rival)}" for rival in rivals)]
        yield Table(f"By {period} of the valid time, {_lead(scores, lead)}", header, rows)
