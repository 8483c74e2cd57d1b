"""Tables of the page beside that of the RMSE: events, periods, boxes, wind and ensemble."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr

from convlstm_wx.report.diagnostics import spoken
from convlstm_wx.report.maps import pretty_units


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


def further(scores: xr.Dataset) -> list[Table]:
    """All of them, as far as the scores hold them."""
    return [*_events(scores), *_ensemble(scores), *_wind(scores), *_boxes(scores), *_periods(scores)]


def _leads(scores: xr.Dataset) -> list[int]:
    """The first, the middle and the last lead time."""
    last = scores.sizes["lead_time"] - 1
    return sorted({0, last // 2, last})


def _lead(scores: xr.Dataset, place: int) -> str:
    return f"+{scores['lead_hours'].values[place]:g} h"


def _events(scores: xr.Dataset) -> Iterator[Table]:
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
                happened = f"{int(model['hits'] + model['misses']):,}"
                figures = [digits(float(model[score])) for score in names]
                figures += [digits(float(model["fss"].sel(window=size))) for size in windows]
                persistence = digits(float(at["csi"].sel(system="persistence")))
                rows.append([f">= {label}", _lead(scores, lead), happened, *figures, persistence])
        yield Table(f"Events: {name}", header, rows)


def _ensemble(scores: xr.Dataset) -> Iterator[Table]:
    if "crps" not in scores:
        return
    rows = []
    for name in map(str, scores["channel"].values):
        for lead in _leads(scores):
            at = scores.sel(channel=name).isel(lead_time=lead)
            crps, spread, rmse = float(at["crps"]), float(at["spread"]), float(at["rmse"].sel(system="model"))
            interval = f"{digits(float(at['crps_low']))} to {digits(float(at['crps_high']))}"
            cells = [digits(crps), interval, digits(spread), digits(rmse), digits(spread / rmse)]
            rows.append([f"{name} ({pretty_units(at['units'].item())})", _lead(scores, lead), *cells])
    header = ["channel", "lead", "CRPS (fair)", "its interval", "spread", "RMSE of the mean", "spread / RMSE"]
    yield Table(f"Ensemble of {scores.attrs['members']} members", header, rows)


def _wind(scores: xr.Dataset) -> Iterator[Table]:
    if "wind" not in scores.dims:
        return
    systems = list(map(str, scores["system"].values))
    rows = [
        [str(name), _lead(scores, lead), *map(digits, scores["wind_rmse"].sel(wind=name).isel(lead_time=lead).values)]
        for name in scores["wind"].values
        for lead in _leads(scores)
    ]
    yield Table("Wind: RMSE of the vector", ["wind", "lead", *map(spoken, systems)], rows)


def _boxes(scores: xr.Dataset) -> Iterator[Table]:
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


def _periods(scores: xr.Dataset) -> Iterator[Table]:
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
                text = f"{label:g}:00 UTC" if period == "hour" else str(label)
                rows.append([name, text, f"{int(at[f'pairs_by_{period}'])}", *figures])
        header = ["channel", period, "pairs", "RMSE", "bias", *(f"RMSE / {spoken(rival)}" for rival in rivals)]
        yield Table(f"By {period} of the valid time, {_lead(scores, lead)}", header, rows)
