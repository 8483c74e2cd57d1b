"""Figures and one self-contained page of a comparison: where, when and how far ahead B is better than A."""

import base64
import calendar
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import xarray as xr
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from convlstm_wx.data.reading import is_projected
from convlstm_wx.files import write_text
from convlstm_wx.report.diagnostics import MOST_PANELS, lead_axis, left_out, panels
from convlstm_wx.report.maps import Band, around_zero, draw_maps, pretty_units
from convlstm_wx.text import select_some

DPI = 110
MAPS = 4  # lead times in a row
MONTH_COLOURS = ("#0072B2", "#D55E00", "#009E73")
MOST_DOTS = 70  # along an axis, so that the map under them is still seen


def draw(gains: xr.Dataset, names: tuple[str, str] = ("A", "B")) -> dict[str, bytes]:
    """The figures of a comparison, in the order of the page: caption -> PNG; of many channels some of each variable.

    Args:
        gains: of verification.compare.compare.
        names: of A and B.
    """
    gains = select_some(gains, MOST_PANELS)
    share, channels = f"{gains.attrs['confidence']:.0%}", list(map(str, gains["channel"].values))
    against = f"{names[1]} against {names[0]}"
    figures = {
        f"{against}: how much smaller the squared error is, by lead time, with the {share} interval; above 0 it is "
        "better": panels(channels, lambda panel, name: _by_lead(panel, gains.sel(channel=name))),
        f"The same by month of the valid time, with {share} intervals; hollow where too few independent init times "
        "allow one": panels(channels, lambda panel, name: _by_month(panel, gains.sel(channel=name))),
    }
    if "gain_map" in gains:
        rate = 1.0 - gains.attrs["confidence"]
        for name in channels:
            figures[
                f"{name}, {against}: where it is better (blue) or worse (red). Dots: points whose difference stands "
                f"out from chance, with a false discovery rate of {rate:.0%} over the points of a map "
                "(Benjamini-Hochberg): of the dots, no more than about that share is chance"
            ] = _maps(gains.sel(channel=name))
    return {caption: _png(figure) for caption, figure in figures.items()}


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=DPI, bbox_inches="tight", format="png")
    return buffer.getvalue()


def _by_lead(panel: Axes, gains: xr.Dataset) -> None:
    hours = gains["lead_hours"].values
    panel.axhline(0.0, color="black", lw=0.9)
    for run in range(gains.sizes.get("run", 0)):
        label = "each alone" if run == 0 else None
        panel.plot(hours, 100 * gains["gain_by_run"].isel(run=run), color="#888888", lw=0.8, label=label)
    low, high = 100 * gains["gain_low"], 100 * gains["gain_high"]
    panel.fill_between(hours, low, high, color="#0072B2", alpha=0.2, lw=0, label="interval")
    panel.plot(hours, 100 * gains["gain"], color="#0072B2", marker="o", markersize=4.5, label="gain")
    panel.set_title(gains["channel"].item(), fontsize=11)
    panel.set_ylabel("gain (% of MSE)")
    lead_axis(panel, hours)


def _by_month(panel: Axes, gains: xr.Dataset) -> None:
    """The first, the middle and the last lead time beside each other."""
    last = gains.sizes["lead_time"] - 1
    panel.axhline(0.0, color="black", lw=0.9)
    months = gains["month"].values
    for number, (lead, colour) in enumerate(zip(sorted({0, last // 2, last}), MONTH_COLOURS)):
        at = gains.isel(lead_time=lead)
        best, low, high = (100 * at[f"gain_by_month{part}"].values for part in ("", "_low", "_high"))
        x = months + 0.2 * (number - 1)
        tested = np.isfinite(low)
        panel.vlines(x[tested], low[tested], high[tested], color=colour, lw=1.5)
        panel.plot(x, best, "o", markersize=5, markerfacecolor="white", color=colour)
        panel.plot(x[tested], best[tested], "o", markersize=5, color=colour, label=f"+{at['lead_hours'].item():g} h")
        if not tested.any():
            panel.plot([], [], "o", markerfacecolor="white", color=colour, label=f"+{at['lead_hours'].item():g} h")
    panel.set_xticks(months, [calendar.month_abbr[month][:1] for month in months])
    panel.set_xlabel("month of the valid time")
    panel.set_title(gains["channel"].item(), fontsize=11)
    panel.set_ylabel("gain (% of MSE)")


def _maps(gains: xr.Dataset) -> Figure:
    n_leads = gains.sizes["lead_time"]
    shown = gains.isel(lead_time=np.unique(np.linspace(0, n_leads - 1, min(MAPS, n_leads)).round().astype(int)))
    fields, marked = 100 * shown["gain_map"].values, shown["significant_map"].values
    hours = [f"+{value:g} h" for value in shown["lead_hours"].values]
    shares = [
        f"{mark.sum() / max(np.isfinite(field).sum(), 1):.0%} of points stand out"
        if np.isfinite(low)
        else "too few independent init times to test"
        for field, mark, low in zip(fields, marked, shown["mse_difference_low"].values)
    ]
    titles = [f"{hour}: {text}" for hour, text in zip(hours, shares)]
    band = Band({"gain": fields}, around_zero(fields), "RdBu", "gain (% of MSE)", in_cells=True)
    figure = draw_maps(shown["channel"].item(), [band], titles, shown["gain_map"])
    for panel, mark in zip(figure.axes, marked):
        _dots(panel, shown, mark)
    return figure


def _dots(panel: Axes, gains: xr.Dataset, mark_HW: np.ndarray) -> None:
    if is_projected(gains):
        lat_HW, lon_HW = gains["latitude"].values, gains["longitude"].values
    else:
        lat_HW, lon_HW = np.meshgrid(gains["lat"].values, gains["lon"].values, indexing="ij")
    thin = np.zeros(mark_HW.shape, bool)
    thin[:: -(-mark_HW.shape[0] // MOST_DOTS), :: -(-mark_HW.shape[1] // MOST_DOTS)] = True
    chosen = mark_HW & thin
    size = float(np.clip(400 / max(mark_HW.shape) / 4, 1.5, 14))
    panel.scatter(lon_HW[chosen], lat_HW[chosen], s=size, color="black", linewidths=0)


def write_page(
    path: Path,
    *,
    title: str,
    said: Sequence[str],
    gains: xr.Dataset,
    figures: Mapping[str, bytes],
    facts: Mapping[str, str],
    further: Sequence[tuple[str, Sequence[str]]] = (),
) -> Path:
    """Write the page and return its path.

    Args:
        said: the sentences on top.
        gains: shown as a table.
        figures: caption -> PNG; embedded.
        facts: what was compared: name -> value.
        further: more sections of sentences, such as that of the permutation test: heading, sentences.

    Raises:
        ConfigError: if the page cannot be written.
    """
    environment = Environment(
        loader=PackageLoader("convlstm_wx.report", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    text = environment.get_template("comparison.html").render(
        title=title,
        said=said,
        left_out=left_out(gains),
        further=further,
        tables=[_table(gains.sel(channel=name)) for name in gains["channel"].values],
        confidence=f"{gains.attrs['confidence']:.0%}",
        figures={caption: base64.b64encode(image).decode() for caption, image in figures.items()},
        facts=dict(facts) | _counts(gains),
        method={name: gains[name].attrs["formula"] for name in map(str, gains) if "formula" in gains[name].attrs}
        | {"intervals": gains.attrs["intervals"]},
    )
    write_text(path, text)
    return path


def _table(gains: xr.Dataset) -> dict[str, object]:
    """Of one channel, a row per lead time."""
    rows = []
    for lead in range(gains.sizes["lead_time"]):
        at = gains.isel(lead_time=lead)
        best, low, high = (100 * float(at[f"gain{part}"]) for part in ("", "_low", "_high"))
        sure = bool(at["p_value"] <= 1.0 - gains.attrs["confidence"] + 1e-12)  # as the sentences have it
        interval = f"{low:+.1f} to {high:+.1f}" if np.isfinite(low) else "too few"
        numbers = [f"{float(np.sqrt(at[name])):.4g}" for name in ("mse_a", "mse_b")]
        cells = [*numbers, f"{best:+.2g}" if abs(best) < 0.05 else f"{best:+.1f}", interval, f"{int(at['pairs'])}"]
        rows.append({"lead": f"+{at['lead_hours'].item():g} h", "cells": cells, "sure": sure})
    return {"name": str(gains["channel"].item()), "units": pretty_units(str(gains["units"].item())), "rows": rows}


def _counts(gains: xr.Dataset) -> dict[str, str]:
    known = gains.attrs
    return {
        "Common pairs": f"{known['pairs_common']} of init and lead time, of {known['pairs_a']} in A and "
        f"{known['pairs_b']} in B",
        "Init times": f"{known['init_times_common']}, {known['first_init_time']} to {known['last_init_time']} UTC",
    }
