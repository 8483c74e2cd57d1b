"""One self-contained HTML page about an evaluation: it can be mailed, and opens without a network."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xarray as xr
from matplotlib.artist import Artist
from matplotlib.figure import Figure

from convlstm_wx.files import write_text
from convlstm_wx.report import atlas, diagnostics, tables
from convlstm_wx.report.card import Card, map_caption, region_map, timeline
from convlstm_wx.report.curves import history_figure, read_histories
from convlstm_wx.report.diagnostics import Sheet, left_out, spoken
from convlstm_wx.report.embedding import render, svg_uri
from convlstm_wx.text import select_some

# Attributes of the scores that the page tells under "How this was computed", in this order.
METHOD = (
    "points",
    "weights",
    "persistence",
    "diurnal_persistence",
    "damped_persistence",
    "climatology",
    "linear_inverse_model",
    "acc",
    "events",
    "intervals",
    "verdicts",
)
FORMULAS = (
    "rmse",
    "mae",
    "bias",
    "acc",
    "activity",
    "skill",
    "csi",
    "ets",
    "frequency_bias",
    "fss",
    "csi_difference",
    "power",
    "crps",
    "spread",
)
ACRONYMS = ("rmse", "mae", "acc", "csi", "ets", "fss", "crps")
PICTURES_PER_LEAD = 8  # forecast, truth and error of two cases, mean error and RMSE


@dataclass(frozen=True)
class Picture:
    """A figure on the page, and what it shows."""

    caption: str
    source: str


@dataclass(frozen=True)
class Panels:
    """A sheet on the page: pictures beside or below each other, and what their lines mean."""

    caption: str
    pictures: Sequence[Picture]
    legend: Sequence[Picture]


def write_page(
    path: Path,
    *,
    title: str,
    verdicts: Sequence[str],
    scores: xr.Dataset,
    forecast: xr.Dataset,
    truth: xr.Dataset,
    card: Card,
    history: Path | None = None,
    event_verdicts: Sequence[str] = (),
) -> Path:
    """Write the page and return its path.

    Args:
        verdicts: one plain sentence per channel.
        scores: as verification.evaluate gives them, in the units in which they are shown.
        forecast, truth: as verification.evaluate was given them.
        card: what is known of model and data.
        history: history.csv of the training run, if there is one.
        event_verdicts: a sentence for each event whose forecasts differ clearly from a rival's.

    Raises:
        ConfigError: if the page cannot be written.
    """
    drawn = select_some(scores, diagnostics.MOST_PANELS)
    shown = atlas.choose(scores.sizes["channel"], scores.sizes["lead_time"], PICTURES_PER_LEAD)
    text = render(
        "page.html",
        title=title,
        verdicts=verdicts,
        left_out=left_out(scores),
        scorecard=tables.scorecard(scores),
        score_tables=[tables.score_table(scores.sel(channel=name)) for name in scores["channel"].values],
        systems=[spoken(str(name)) for name in scores["system"].values],
        forecasts=atlas.forecasts(forecast, truth, scores, shown),
        places=atlas.places(scores, shown),
        rmse=_panels(diagnostics.rmse, drawn),
        spectra=_panels(diagnostics.spectra, drawn),
        events=_panels(diagnostics.events, drawn),
        months=_panels(diagnostics.months, drawn),
        ensemble=_panels(diagnostics.ensemble, drawn),
        event_verdicts=event_verdicts,
        has_percentiles=any(label.startswith("p") for label in scores["threshold_label"].values.ravel().tolist()),
        event_tables=list(tables.events(scores)),
        event_differences=list(tables.event_differences(scores)),
        period_tables=list(tables.periods(scores)),
        ensemble_tables=list(tables.ensemble(scores)),
        other_tables=[*tables.wind(scores), *tables.boxes(scores)],
        card_pictures=list(_card_pictures(card)),
        learning=_learning(history),
        facts=card.facts,
        counts=_counts(scores),
        method={_term(name): scores.attrs[name] for name in METHOD if name in scores.attrs},
        formulas={_term(name): scores[name].attrs["formula"] for name in FORMULAS if name in scores},
    )
    write_text(path, text)
    return path


def _term(name: str) -> str:
    """The name of a score or a method in words, as tables head their columns."""
    return " ".join(word.upper() if word in ACRONYMS else word for word in spoken(name).split())


def _panels(kind: Callable[[xr.Dataset], Sheet | None], scores: xr.Dataset) -> Panels | None:
    sheet = kind(scores)
    if sheet is None:
        return None
    figures, legend = sheet.parts()
    pictures = [
        Picture(f"{sheet.caption}: {name.replace(chr(10), ', ')}", svg_uri(figure)) for name, figure in figures.items()
    ]
    return Panels(sheet.caption, pictures, [Picture(label, _swatch(handle)) for label, handle in legend.items()])


def _swatch(handle: Artist) -> str:
    """A short piece of a line, as in a legend."""
    figure = Figure(figsize=(0.45, 0.17))
    figure.legend([handle], [""], loc="center", frameon=False, borderpad=0, handlelength=2.8, handletextpad=0)
    return svg_uri(figure)


def _card_pictures(card: Card) -> Iterator[Picture]:
    if card.regions:
        yield Picture(f"Regions. {map_caption(card.regions)}", svg_uri(region_map(card.regions)))
    if card.spans:
        yield Picture("Which times were learned from, and which were kept for scoring", svg_uri(timeline(card.spans)))


def _learning(history: Path | None) -> Picture | None:
    if history is None or not history.exists():
        return None
    figure = history_figure(read_histories([history.parent]))
    for legend in filter(None, (panel.get_legend() for panel in figure.axes)):
        legend.set_frame_on(False)  # its white would hide letters that are light on a dark page
    return Picture("How the run learned: losses, learning rate and validation errors by epoch", svg_uri(figure))


def _counts(scores: xr.Dataset) -> dict[str, str]:
    init_times = np.datetime_as_string(scores["init_time"].values, unit="m")
    lead_hours = scores["lead_hours"].values
    return {
        "Forecasts": f"{init_times.size}, started from {init_times[0]} to {init_times[-1]} UTC",
        "Lead times": f"{lead_hours.size}, +{lead_hours[0]:g} h to +{lead_hours[-1]:g} h",
        "Region": f"{_extent(scores, 'lat', 'latitude', 'N')}, {_extent(scores, 'lon', 'longitude', 'E')}",
        "Points scored": f"{int(scores['count'].sum()):,} over all channels and lead times",
        "Pairs without truth": f"{scores.attrs['pairs_without_truth']} of {scores.attrs['pairs_offered']}, left out",
    }


def _extent(scores: xr.Dataset, axis: str, mesh: str, side: str) -> str:
    """Points along an axis and the degrees that they cover: of a projected grid, those of the points themselves."""
    degrees = scores[mesh if mesh in scores.coords else axis].values
    return f"{scores.sizes[axis]} points from {degrees.min():g} to {degrees.max():g} °{side}"
