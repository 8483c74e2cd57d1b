"""Rows of maps on shared scales: levels, colours, graticule and colour bars."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from convlstm_wx.conventions import Channel, normalise_units, recognise
from convlstm_wx.data.reading import is_projected

ROUND_STEPS = [1, 2, 2.5, 4, 5, 10]
LEVELS_OF_ERRORS = 4  # on either side of 0
NOTE_BOX = {"boxstyle": "round,pad=0.25", "facecolor": "white", "edgecolor": "none", "alpha": 0.8}


@dataclass(frozen=True)
class Look:
    """How a variable is shown: colours, and its name and units as people write them."""

    title: str
    units: str
    colormap: str
    error_colormap: str
    is_rain: bool = False
    is_signed: bool = False  # 0 is the middle, as of a wind component

    @classmethod
    def of(cls, channel: Channel, attrs: Mapping[Any, Any]) -> "Look":
        """From what we know of the channel's variable; attrs: those of the file, its units above all."""
        units = pretty_units(str(attrs.get("units", "1")))
        known = recognise(channel.variable, attrs)
        if known is None:
            return cls(channel.name, units, "viridis", "RdBu_r")
        return cls(
            f"{channel.name}: {known.long_name}",
            units,
            known.colormap,
            known.error_colormap,
            is_rain=known.transform == "log1p_mm",
            is_signed=known.valid_min == -known.valid_max,
        )

    def levels(self, *fields: np.ndarray) -> np.ndarray:
        """Round levels that hold all but the most extreme 1 % of the values, for all fields together."""
        values = np.concatenate([field.ravel() for field in fields])
        low, high = np.nanquantile(values, [0.005, 0.995]) if np.isfinite(values).any() else (0.0, 1.0)
        if self.is_signed:
            return around_zero(values)
        if self.is_rain:
            return _rain_levels(high)
        ticks = MaxNLocator(16, steps=ROUND_STEPS).tick_values(low, high if high > low else low + 1.0)
        return np.asarray(ticks)


def _rain_levels(high: float) -> np.ndarray:
    """0 and then 1, 2, 5, 10 ... up to the highest: much rain is rare, and light rain must still be seen."""
    decade = np.floor(np.log10(high)) if high > 0 else 0.0
    steps = np.outer(10.0 ** np.arange(decade - 2, decade + 1), [1, 2, 5]).ravel()
    return np.concatenate([[0.0], steps[steps < max(high, steps[0] * 2)]])


def around_zero(fields: np.ndarray) -> np.ndarray:
    """Round levels symmetric about 0 without 0 itself, so that "hardly any error" is one colour: white."""
    largest = np.nanquantile(np.abs(fields), 0.99) if np.isfinite(fields).any() else 0.0
    above = np.asarray(MaxNLocator(8, steps=ROUND_STEPS).tick_values(0.0, largest or 1.0))[1:]
    return np.concatenate([-above[::-1], above])


def error_levels(fields: np.ndarray) -> np.ndarray:
    """1, 2, 5, 10 ... on both sides of 0: the errors of the first lead time are seen beside those of the last."""
    largest = np.nanquantile(np.abs(fields), 0.99) if np.isfinite(fields).any() else 0.0
    above = np.outer(10.0 ** np.arange(-2, 1), [1, 2, 5]).ravel() * 10 ** np.floor(np.log10(largest or 1.0))
    above = above[above <= (largest or 1.0)][-LEVELS_OF_ERRORS:]
    return np.concatenate([-above[::-1], above])


@dataclass(frozen=True)
class Band:
    """Rows of maps that share a colour bar.

    rows: label -> fields [N, H, W]; label: of the colour bar; in_cells: as grid cells, not as filled contours;
    notes: one inside each map of a row.
    """

    rows: Mapping[str, np.ndarray]
    levels: np.ndarray
    colormap: str
    label: str
    in_cells: bool
    notes: Sequence[str] = ()


def draw_maps(title: str, bands: Sequence[Band], column_titles: Sequence[str], grid: xr.DataArray) -> Figure:
    """Bands of maps, a column per lead time; `grid` tells where the points are, on a projected grid too."""
    lat, lon = (grid[name].values for name in (("latitude", "longitude") if is_projected(grid) else ("lat", "lon")))
    n_rows, n_columns = sum(len(band.rows) for band in bands), len(column_titles)
    stretch, shape = stretch_of(lat, lon)
    width = 11.0 / n_columns if n_columns > 2 else 3.8
    size = (width * n_columns + 1.4, (width * shape + 0.3) * n_rows + 0.9)
    figure = Figure(figsize=size, layout="compressed")
    panels = figure.subplots(n_rows, n_columns, squeeze=False, sharex=True, sharey=True)
    figure.suptitle(title, fontsize=13)
    row = 0
    for band in bands:
        norm = BoundaryNorm(band.levels, 256, extend="both")
        mappable = ScalarMappable(norm, band.colormap)
        for label, fields in band.rows.items():
            for panel, field in zip(panels[row], fields):
                _map(panel, lon, lat, field, band, norm)
                panel.set_aspect(stretch)
            for panel, note in zip(panels[row], band.notes):
                panel.text(0.03, 0.04, note, transform=panel.transAxes, fontsize=9, bbox=NOTE_BOX)
            panels[row, 0].set_ylabel(label, fontsize=12)
            row += 1
        bar = figure.colorbar(mappable, ax=panels[row - len(band.rows) : row].ravel().tolist(), pad=0.01, aspect=25)
        bar.set_ticks(band.levels.tolist())
        bar.ax.tick_params(labelsize=8)
        bar.set_label(band.label)
    for panel, text in zip(panels[0], column_titles):
        panel.set_title(text, fontsize=10)
    return figure


def stretch_of(lat: np.ndarray, lon: np.ndarray) -> tuple[float, float]:
    """A degree of latitude over one of longitude, and height over width of a map, within what a page can show."""
    stretch = 1.0 / np.cos(np.deg2rad(np.clip(lat.mean(), -80, 80)))
    shape = np.clip(stretch * (np.ptp(lat) or 1.0) / (np.ptp(lon) or 1.0), 0.35, 1.6)
    return float(stretch), float(shape)


def _map(panel: Axes, lon: np.ndarray, lat: np.ndarray, field: np.ndarray, band: Band, norm: BoundaryNorm) -> None:
    """One field with a graticule.

    Filled contours suit smooth fields on fine grids; missing values would eat coasts, coarse grids turn to diamonds.
    lon, lat: axes, or the places of a projected grid [H, W].
    """
    if band.in_cells or min(field.shape) < 12 or not np.isfinite(field).all():
        if lat.ndim == 2:
            lon, lat = corners(lon), corners(lat)
        shading: Literal["flat", "nearest"] = "flat" if lat.ndim == 2 else "nearest"
        panel.pcolormesh(lon, lat, np.ma.masked_invalid(field), cmap=band.colormap, norm=norm, shading=shading)
        panel.set_facecolor("#e8e8e8")
    else:
        panel.contourf(lon, lat, field, band.levels, cmap=band.colormap, norm=norm, extend="both")
    degree_axes(panel)


def degree_axes(panel: Axes) -> None:
    """A few round longitudes and latitudes along the edges of a map, with faint lines."""
    panel.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 3, 5, 10]))
    panel.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 3, 5, 10]))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _degrees((value + 180) % 360 - 180, "EW")))
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _degrees(value, "NS")))
    panel.tick_params(labelsize=8)
    panel.grid(color="black", alpha=0.18, linewidth=0.6)


def corners(centres_HW: np.ndarray) -> np.ndarray:
    """Corners [H + 1, W + 1] of cells whose centres are given: means of four centres, continued straight at the edges.

    Matplotlib's own takes rows and columns for parallels and meridians, and warns where they bend.
    """
    padded = centres_HW
    for axis in (0, 1):
        before, after = (np.take(padded, [0, 1] if end == 0 else [-1, -2], axis, mode="wrap") for end in (0, -1))
        first, last = (2 * pair.take([0], axis) - pair.take([1], axis) for pair in (before, after))
        padded = np.concatenate([first, padded, last], axis)
    return (padded[:-1, :-1] + padded[1:, :-1] + padded[:-1, 1:] + padded[1:, 1:]) / 4


def _degrees(value: float, sides: str) -> str:
    side = sides[0] if value > 0 else sides[1] if value < 0 else ""
    return f"{abs(value):g}°{side}"


def pretty_units(units: str) -> str:
    """Units as people write them: "m2 s-2" becomes "m² s⁻²"."""
    raised = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
    powers = re.sub(r"(?<=[A-Za-z])-?\d+", lambda power: power[0].translate(raised), normalise_units(units))
    return powers.replace("degC", "°C")
