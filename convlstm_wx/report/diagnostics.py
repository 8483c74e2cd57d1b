"""Figures that say what an RMSE does not: blur, events, the course of the year, and the spread of an ensemble.

Each function gives one sheet, with a panel per channel; None where the scores hold nothing to draw. Scores are those of
verification.evaluate, in the units in which they are shown.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MultipleLocator

from convlstm_wx.conventions import Channel, event_label
from convlstm_wx.report.maps import Look
from convlstm_wx.text import select_some

# Okabe and Ito's palette, with line styles and markers that tell the systems apart without colour.
STYLES: dict[str, dict[str, Any]] = {
    "model": {"color": "#0072B2", "linestyle": "-", "marker": "o", "linewidth": 2.2, "zorder": 3},
    "persistence": {"color": "#D55E00", "linestyle": "--", "marker": "s", "linewidth": 1.4},
    "diurnal_persistence": {"color": "#CC79A7", "linestyle": "--", "marker": "D", "linewidth": 1.4},
    "damped_persistence": {"color": "#E69F00", "linestyle": "-.", "marker": "v", "linewidth": 1.4},
    "climatology": {"color": "#7f7f7f", "linestyle": ":", "marker": "^", "linewidth": 1.6},
    "linear_inverse_model": {"color": "#009E73", "linestyle": "-", "marker": "x", "linewidth": 1.6},
}
MONTHS = "JFMAMJJASOND"
COLUMNS = 3
MOST_PANELS = 12  # of a sheet; more would not be read
PANEL_HEIGHT = 2.9
LEADS = 4
ROUND_HOURS = (1, 2, 3, 6, 12, 24, 48, 72, 120, 240)


def spoken(system: str) -> str:
    """The name of a system in words."""
    return system.replace("_", " ")


def panels(names: Sequence[str], draw: Callable[[Axes, str], None], *, height: float = PANEL_HEIGHT) -> Figure:
    """A figure with a panel per name, and one legend for all above them."""
    n_columns = min(len(names), COLUMNS)
    n_rows = -(-len(names) // n_columns)
    figure = Figure(figsize=(max(1.2 + 3.6 * n_columns, 7.0), 0.7 + height * n_rows), layout="constrained")
    axes = figure.subplots(n_rows, n_columns, squeeze=False).ravel()
    legend: dict[str, Any] = {}
    for panel, name in zip(axes, names):
        legend = _fill(panel, draw, name) | legend
    for panel in axes[len(names) :]:
        panel.set_axis_off()
    figure.legend(legend.values(), legend.keys(), loc="outside upper center", ncols=min(len(legend), 4), frameon=False)
    return figure


def _fill(panel: Axes, draw: Callable[[Axes, str], None], name: str) -> dict[str, Any]:
    """Draw one panel; label -> handle of its legend."""
    draw(panel, name)
    panel.grid(alpha=0.3)
    panel.spines[["top", "right"]].set_visible(False)
    handles, labels = panel.get_legend_handles_labels()
    return dict(zip(labels, handles))


@dataclass(frozen=True)
class Sheet:
    """Panels that say the same of several channels, with one legend for all.

    Attributes:
        name: of its file.
        caption: what it shows.
        names: of the panels.
        draw: what fills a panel, given its name.
    """

    name: str
    caption: str
    names: Sequence[str]
    draw: Callable[[Axes, str], None]

    def whole(self) -> Figure:
        """All panels in one figure, for a file."""
        return panels(self.names, self.draw)

    def parts(self) -> tuple[dict[str, Figure], dict[str, Any]]:
        """A figure for each panel, for a page that puts them beside or below each other, and label -> legend handle."""
        figures: dict[str, Figure] = {}
        legend: dict[str, Any] = {}
        for name in self.names:
            figures[name] = Figure(figsize=(4.1, PANEL_HEIGHT))  # fixed margins: finding them takes half the time
            legend = _fill(figures[name].add_axes((0.17, 0.17, 0.79, 0.72)), self.draw, name) | legend
        return figures, legend


def left_out(scores: xr.Dataset) -> str:
    """Which channels the figures show, where they do not show all."""
    shown = select_some(scores, MOST_PANELS)["channel"].values
    if shown.size == scores.sizes["channel"]:
        return ""
    names = ", ".join(map(str, shown))
    return f"{shown.size} of {scores.sizes['channel']} channels are drawn: {names}. The tables have all."


def lead_axis(panel: Axes, hours: np.ndarray) -> None:
    """Lead times along the bottom, in round hours and days."""
    step = next((hour for hour in ROUND_HOURS if hours[-1] / hour <= 6.5), ROUND_HOURS[-1])
    panel.xaxis.set_major_locator(MultipleLocator(step))
    panel.set_xlabel("lead time (h)")


def _look(scores: xr.Dataset, name: str) -> Look:
    return Look.of(Channel.parse(name), {"units": scores["units"].sel(channel=name).item()})


def _names(scores: xr.Dataset, wanted: xr.DataArray) -> list[str]:
    """Channels with any finite value."""
    return [str(name) for name in scores["channel"].values if np.isfinite(wanted.sel(channel=name).values).any()]


def rmse(scores: xr.Dataset) -> Sheet:
    """RMSE against lead time: the model with its confidence band, and its rivals."""
    hours = scores["lead_hours"].values
    band = f"{scores.attrs['confidence']:.0%} interval of the model"

    def draw(panel: Axes, name: str) -> None:
        at, look = scores.sel(channel=name), _look(scores, name)
        low, high = (at[f"rmse_{end}"].sel(system="model") for end in ("low", "high"))
        panel.fill_between(hours, low, high, color="#0072B2", alpha=0.25, lw=0, label=band)
        for system in map(str, at["system"].values):
            panel.plot(hours, at["rmse"].sel(system=system), label=spoken(system), markersize=4.5, **STYLES[system])
        panel.set_title(look.title, fontsize=11)
        panel.set_ylabel(f"RMSE ({look.units})")
        panel.set_ylim(bottom=0)
        lead_axis(panel, hours)

    names = [str(name) for name in scores["channel"].values]
    return Sheet("rmse", "Error by lead time, with the confidence band of the model", names, draw)


def spectra(scores: xr.Dataset) -> Sheet | None:
    """Power of the forecast over that of the truth by wavelength, a line per lead time: below 1 it is blurred."""
    if "power" not in scores or not (names := _names(scores, scores["power"])):
        return None
    hours = scores["lead_hours"].values
    shown = np.unique(np.linspace(0, hours.size - 1, min(hours.size, LEADS)).round().astype(int))
    colours = colormaps["viridis"](np.linspace(0.3, 0.78, shown.size))  # seen on white and on black

    def draw(panel: Axes, name: str) -> None:
        at = scores.sel(channel=name)
        ratio = (at["power"] / at["observed_power"]).isel(lead_time=shown)
        for line, hour, colour, marker in zip(ratio.values, hours[shown], colours, "os^D"):
            panel.plot(scores["wavelength"], line, color=colour, marker=marker, markersize=3.5, label=f"+{hour:g} h")
        panel.axhline(1.0, color="black", linewidth=1.2, linestyle=":", label="as the truth")
        panel.set_xscale("log")
        panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.invert_xaxis()
        panel.set_ylim(0, max(1.2, min(float(np.nanmax(ratio)) * 1.05, 3.0)))
        panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        panel.xaxis.set_minor_formatter(FuncFormatter(lambda value, _: ""))
        panel.set_title(_look(scores, name).title, fontsize=11)
        panel.set_xlabel("wavelength (km)")
        panel.set_ylabel("power, forecast / truth")

    return Sheet("spectra", "Power by wavelength, forecast over truth: below 1 the forecast is blurred", names, draw)


def events(scores: xr.Dataset) -> Sheet | None:
    """Critical success index by lead time, of all systems, at the lowest threshold that happened; of rain at each."""
    names = []
    for name in _names(scores, scores["csi"]):
        at = scores.sel(channel=name)
        happened = (at["hits"] + at["misses"]).sel(system="model").sum("lead_time").values > 0
        labels = [str(label) for label in at["threshold_label"].values[happened]]
        names += [f"{name}\n{label}" for label in (labels if at["rain"].item() else labels[:1])]
    if not names:
        return None

    def draw(panel: Axes, event: str) -> None:
        name, _, label = event.partition("\n")
        at = scores.sel(channel=name)
        place = at["threshold_label"].values.tolist().index(label)
        for system in map(str, at["system"].values):
            csi = at["csi"].sel(system=system).isel(threshold=place)
            panel.plot(scores["lead_hours"], csi, label=spoken(system), markersize=4.5, **STYLES[system])
        panel.set_title(event_label(name, label), fontsize=11)
        lead_axis(panel, scores["lead_hours"].values)
        panel.set_ylabel("CSI")
        panel.set_ylim(bottom=0)

    return Sheet("events", "Events: critical success index by lead time", names, draw)


def months(scores: xr.Dataset) -> Sheet | None:
    """RMSE by month of the valid time at the middle lead time, of all systems; None for a single month."""
    if scores.sizes.get("month", 0) < 2:
        return None
    lead = (scores.sizes["lead_time"] - 1) // 2

    def draw(panel: Axes, name: str) -> None:
        look = _look(scores, name)
        rmse = scores["rmse_by_month"].sel(channel=name).isel(lead_time=lead)
        months = range(int(rmse["month"].min()), int(rmse["month"].max()) + 1)
        rmse = rmse.reindex(month=months)  # a line ends where a month was not scored
        for system in map(str, rmse["system"].values):
            line = rmse.sel(system=system)
            panel.plot(line["month"], line, label=spoken(system), markersize=4.5, **STYLES[system])
        panel.set_xticks(months, labels=[MONTHS[month - 1] for month in months])
        panel.set_ylim(bottom=0)
        panel.set_title(f"{look.title}, +{scores['lead_hours'].values[lead]:g} h", fontsize=11)
        panel.set_ylabel(f"RMSE ({look.units})")

    return Sheet("months", "Error by month of the valid time", [str(name) for name in scores["channel"].values], draw)


def ensemble(scores: xr.Dataset) -> Sheet | None:
    """Spread beside the RMSE of the ensemble mean, and the rank histogram of the middle lead time below."""
    if "crps" not in scores:
        return None
    lead = (scores.sizes["lead_time"] - 1) // 2
    names = [str(name) for name in scores["channel"].values]

    def draw(panel: Axes, label: str) -> None:
        name, _, kind = label.partition("\n")
        at, look = scores.sel(channel=name), _look(scores, name)
        if kind:
            panel.bar(at["rank"], at["rank_histogram"].isel(lead_time=lead), color="#56B4E9", width=0.9)
            panel.axhline(1 / at.sizes["rank"], color="black", linestyle=":", label="reliable")
            panel.set_title(f"{name}, rank of the truth, +{at['lead_hours'].values[lead]:g} h", fontsize=11)
            panel.set_ylabel("share")
            return
        panel.plot(at["lead_hours"], at["rmse"].sel(system="model"), label="RMSE of the mean", **STYLES["model"])
        panel.plot(at["lead_hours"], at["spread"], label="spread", **STYLES["persistence"])
        panel.set_ylim(bottom=0)
        panel.set_title(look.title, fontsize=11)
        lead_axis(panel, at["lead_hours"].values)
        panel.set_ylabel(look.units)

    return Sheet(
        "ensemble",
        "Ensemble: spread beside the error of its mean, and the rank of the truth among the members",
        [label for name in names for label in (name, f"{name}\nranks")],
        draw,
    )
