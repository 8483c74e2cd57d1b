"""What a page tells of a model and its data: facts, its regions on a map, and which months had which role."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter, date2num
from matplotlib.figure import Figure

from convlstm_wx.data.regions import Grid
from convlstm_wx.report.coastlines import coastlines, draw_coastlines
from convlstm_wx.report.maps import degree_axes, stretch_of

Spans = Sequence[tuple[str, str]]
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")
GREY = "#7f7f7f"
HIGHEST_MAP = 4.2  # inches
ROOM_DEG = 4.0  # around the regions, at least


@dataclass(frozen=True)
class Card:
    """What is known of a model and its data.

    Attributes:
        facts: name -> value, in words.
        regions: name -> grid; the target first.
        spans: role -> the times that had it, ISO dates.
    """

    facts: Mapping[str, str]
    regions: Mapping[str, Grid] = field(default_factory=dict)
    spans: Mapping[str, Spans] = field(default_factory=dict)


def region_map(regions: Mapping[str, Grid]) -> Figure:
    """The outline of each region, with coastlines where there are any and a graticule in any case."""
    middle = float(np.mean(next(iter(regions.values())).places()[1]))
    rings = {name: _ring(grid, middle) for name, grid in regions.items()}
    corners = np.concatenate(list(rings.values()))
    low, high = corners.min(axis=0), corners.max(axis=0)
    room = np.maximum(0.12 * (high - low), ROOM_DEG)
    (west, south), (east, north) = low - room, high + room
    south, north = max(south, -90.0), min(north, 90.0)
    stretch, shape = stretch_of(np.array([south, north]), np.array([west, east]))
    width = min(6.4, HIGHEST_MAP / shape)
    figure = Figure(figsize=(width, width * shape + 0.4), layout="constrained")
    panel = figure.subplots()
    panel.set(xlim=(west, east), ylim=(south, north), aspect=stretch)
    degree_axes(panel)
    panel.grid(color=GREY, alpha=0.45, linewidth=0.7)
    draw_coastlines(panel, color=GREY)
    for (name, ring), colour in zip(rings.items(), COLOURS * len(rings)):
        panel.fill(*ring.T, color=colour, alpha=0.15, lw=0)
        panel.plot(*ring.T, color=colour, linewidth=2)
        top = ring[np.argmax(ring[:, 1] - 1e-3 * ring[:, 0])]
        panel.annotate(name, top, (4, -4), textcoords="offset points", va="top", color=colour, weight="bold")
    return figure


def map_caption(regions: Mapping[str, Grid]) -> str:
    """What the map shows, in words."""
    boxes = "; ".join(f"{name}: {grid.box()}" for name, grid in regions.items())
    return f"{boxes}." + ("" if coastlines() else " No coastlines: they need cartopy and its Natural Earth files.")


def _ring(grid: Grid, middle: float) -> np.ndarray:
    """The outline of a region [n, 2] in degrees east and north, counted so that it lies near a longitude."""
    lat_HW, lon_HW = grid.places()
    lat, lon = (
        np.concatenate([places[0], places[:, -1], places[-1, ::-1], places[::-1, 0]]) for places in (lat_HW, lon_HW)
    )
    lon = np.unwrap(lon, period=360)
    return np.stack([lon - 360 * np.round((lon.mean() - middle) / 360), lat], axis=1)


def timeline(spans: Mapping[str, Spans]) -> Figure:
    """A row for each role, with bars over its times."""
    figure = Figure(figsize=(6.4, 0.7 + 0.34 * len(spans)), layout="constrained")
    panel = figure.subplots()
    for row, (periods, colour) in enumerate(zip(spans.values(), COLOURS)):
        days = [date2num(np.array(period, "datetime64[s]")) for period in periods]
        panel.broken_barh([(start, max(end - start, 0.25)) for start, end in days], (row - 0.35, 0.7), color=colour)
    panel.set_yticks(range(len(spans)), labels=list(spans))
    panel.invert_yaxis()
    locator = AutoDateLocator(maxticks=8)
    panel.xaxis.set_major_locator(locator)
    panel.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    panel.grid(axis="x", alpha=0.3)
    panel.spines[["top", "right", "left"]].set_visible(False)
    panel.tick_params(axis="y", length=0)
    return figure
