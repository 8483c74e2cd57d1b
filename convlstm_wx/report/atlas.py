"""Maps for a page on which a reader moves through lead times: small pictures on shared scales, and their colour bars.

All pictures of an atlas have the same size and place, so that the next lead time takes the place of the one before. The
scale of a channel holds for all its cases and lead times, for forecast and truth alike.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import xarray as xr
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, to_hex
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from convlstm_wx.conventions import Channel
from convlstm_wx.data.reading import is_projected
from convlstm_wx.report.cases import clock, fields_of, rmse_of, spread_out, typical_case, worst_case
from convlstm_wx.report.coastlines import draw_coastlines
from convlstm_wx.report.embedding import svg_uri, webp_uri
from convlstm_wx.report.maps import ROUND_STEPS, Band, Look, corners, degree_axes, error_levels, stretch_of
from convlstm_wx.text import select_some

MOST_PICTURES = 360  # of 10 kB and 20 ms each
MOST_TICKS, MOST_LETTERS = 9, 40  # along a colour bar
FEWEST_SMOOTH = 12  # points along an edge; coarser fields are drawn in cells, as contours turn them to diamonds
MISSING, COLOUR = "#d9d9d9", "#222222"
FEWEST_LEADS = 4  # that are shown even where channels must be left out for it
WIDTH, DPI = 4.8, 110  # inches, dots per inch
KINDS = ("forecast", "truth", "error")


@dataclass(frozen=True)
class Frame:
    """What is seen at one moment: pictures side by side.

    moment: which; pictures: data URIs; texts: what each shows, in words; notes: a number under each.
    """

    moment: str
    pictures: Sequence[str]
    texts: Sequence[str]
    notes: Sequence[str]


@dataclass(frozen=True)
class Bar:
    """A colour bar: colours as a CSS gradient, ticks with their place along it, and what is measured."""

    colours: str
    ticks: Sequence[tuple[str, str]]
    label: str


@dataclass(frozen=True)
class Chart:
    """One channel: its colour bars, one for each picture of a frame, and a row of frames for each case."""

    name: str
    title: str
    bars: Sequence[Bar]
    frames: Sequence[Sequence[Frame]]


@dataclass(frozen=True)
class Atlas:
    """Charts that a reader chooses from.

    kinds: of the pictures side by side; cases: names of the rows of frames; overlay: lies over every picture;
    shape: height of a picture over its width; left_out: what is not shown, in words.
    """

    kinds: Sequence[str]
    cases: Sequence[str]
    charts: Sequence[Chart]
    overlay: str
    shape: float
    left_out: str

    def plain(self) -> list[dict[str, Any]]:
        """The charts for the script of the page."""
        return [asdict(chart) for chart in self.charts]


def choose(n_channels: int, n_leads: int, per_lead: int) -> tuple[int, np.ndarray]:
    """How many channels and which lead times are shown, where each of them needs so many pictures."""
    frames = MOST_PICTURES // per_lead
    leads = min(n_leads, max(frames // n_channels, FEWEST_LEADS))
    return min(n_channels, frames // leads), spread_out(n_leads, leads)


def _atlas(
    kinds: Sequence[str], cases: Sequence[str], charts: Sequence[Chart], scores: xr.Dataset, leads: np.ndarray
) -> Atlas:
    easel = Easel(scores["bias_map"])
    shown = {"lead times": (leads.size, scores.sizes["lead_time"]), "variables": (len(charts), scores.sizes["channel"])}
    cut = [f"{some} of {all_} {what}" for what, (some, all_) in shown.items() if some < all_]
    left_out = f"Shown are {' and '.join(cut)}, so that the page stays small; scores.nc has all." if cut else ""
    return Atlas(kinds, cases, charts, easel.overlay(), easel.shape, left_out)


def forecasts(forecast: xr.Dataset, truth: xr.Dataset, scores: xr.Dataset, shown: tuple[int, np.ndarray]) -> Atlas:
    """Forecast, truth and error of a typical forecast and of each channel's worst.

    Args:
        forecast, truth: as verification.evaluate was given them.
        scores: as it gave them.
        shown: of :func:`choose`.
    """
    n_channels, leads = shown
    typical = typical_case(scores)
    charts = []
    for name in map(str, select_some(scores, n_channels)["channel"].values):
        channel = Channel.parse(name)
        cases = [fields_of(forecast, truth, at, channel, leads) for at in (typical, worst_case(scores, name))]
        charts.append(_case_chart(channel, cases))
    return _atlas(KINDS, ("typical", "worst"), charts, scores, leads)


def _case_chart(channel: Channel, cases: Sequence[tuple[xr.DataArray, xr.DataArray]]) -> Chart:
    given, observed = (np.stack([pair[place].values for pair in cases]) for place in (0, 1))
    sample = cases[0][0]
    look = Look.of(channel, sample.attrs)
    error = error_levels(given - observed)
    field = Band({}, look.levels(observed, given), look.colormap, look.units, look.is_rain)
    wrong = Band({}, error, look.error_colormap, f"forecast - truth ({look.units})", look.is_rain)
    bands = (field, field, wrong)
    easel = Easel(sample)
    frames = [list(_case_frames(channel.name, *pair, bands, easel, look.units)) for pair in cases]
    return Chart(channel.name, look.title, [colour_bar(band) for band in bands], frames)


def _case_frames(
    name: str, given: xr.DataArray, observed: xr.DataArray, bands: Sequence[Band], easel: "Easel", units: str
) -> Iterator[Frame]:
    """One case, a frame for each lead time."""
    init_time = given["init_time"].values
    error = given.copy(data=given.values - observed.values)
    for place, (lead, rmse) in enumerate(zip(given["lead_time"].values, rmse_of(error))):
        fields = [part.values[place] for part in (given, observed, error)]
        hours = f"+{lead / np.timedelta64(1, 'h'):g} h"
        yield Frame(
            f"{hours}: from {clock(init_time)}, valid {clock(init_time + lead)}",
            [easel.picture(field, band) for field, band in zip(fields, bands)],
            [f"Map of {name}, {kind}, {hours} after {clock(init_time)}" for kind in KINDS],
            ["", "", f"RMSE {rmse} {units}".removesuffix(" 1")],
        )


def places(scores: xr.Dataset, shown: tuple[int, np.ndarray]) -> Atlas:
    """Mean error and RMSE of the model at each grid point, by lead time."""
    n_channels, leads = shown
    at = select_some(scores, n_channels).sel(system="model").isel(lead_time=leads)
    charts = [_place_chart(at.sel(channel=name)) for name in at["channel"].values]
    return _atlas(("mean error", "RMSE"), ("",), charts, scores, leads)


def _place_chart(scores: xr.Dataset) -> Chart:
    name, units = str(scores["channel"].item()), {"units": scores["units"].item()}
    look = Look.of(Channel.parse(name), units)
    bias, rmse = scores["bias_map"].values, scores["rmse_map"].values
    bands = (
        Band({}, error_levels(bias), look.error_colormap, f"mean of forecast - truth ({look.units})", look.is_rain),
        Band({}, from_zero(rmse), "magma_r", f"RMSE ({look.units})", look.is_rain),
    )
    easel = Easel(scores["bias_map"])
    frames = []
    for place, hours in enumerate(scores["lead_hours"].values):
        pictures = [easel.picture(fields[place], band) for fields, band in zip((bias, rmse), bands)]
        texts = [f"Map of the {kind} of {name} at +{hours:g} h" for kind in ("mean error", "RMSE")]
        over_area = [
            f"over the area {scores[score].values[place]:.3g} {look.units}".removesuffix(" 1")
            for score in ("bias", "rmse")
        ]
        frames.append(Frame(f"+{hours:g} h", pictures, texts, over_area))
    return Chart(name, look.title, [colour_bar(band) for band in bands], [frames])


class Easel:
    """Draws fields of one grid, one after the other, each filling a picture to the outer edges of its cells.

    Args:
        grid: tells where the points are, on a projected grid too.

    Attributes:
        shape: height over width.
    """

    def __init__(self, grid: xr.DataArray):
        self._projected = is_projected(grid)
        names = ("latitude", "longitude") if self._projected else ("lat", "lon")
        lat, lon = (grid[name].values for name in names)
        self.shape = stretch_of(lat, lon)[1]
        if self._projected:
            self._lat, self._lon = corners(lat), corners(lon)
        else:
            self._lat, self._lon = _edges(lat), _edges(lon)
            self._inner = [
                np.concatenate([edge[:1], axis, edge[-1:]]) for edge, axis in ((self._lat, lat), (self._lon, lon))
            ]
        self._figure, self._panel = self._blank()
        self._figure.set_facecolor(MISSING)
        self._panel.set_axis_off()

    def _blank(self) -> tuple[Figure, Axes]:
        figure = Figure(figsize=(WIDTH, WIDTH * self.shape), dpi=DPI)
        panel = figure.add_axes((0.0, 0.0, 1.0, 1.0))
        panel.set(xlim=(self._lon.min(), self._lon.max()), ylim=(self._lat.min(), self._lat.max()), autoscale_on=False)
        return figure, panel

    def picture(self, field_HW: np.ndarray, band: Band) -> str:
        """The field alone, as a data URI."""
        for old in list(self._panel.collections):
            old.remove()
        norm = BoundaryNorm(band.levels, 256, extend="both")
        if self._projected or band.in_cells or min(field_HW.shape) < FEWEST_SMOOTH or not np.isfinite(field_HW).all():
            cells = np.ma.masked_invalid(field_HW)
            self._panel.pcolormesh(self._lon, self._lat, cells, cmap=band.colormap, norm=norm, shading="flat")
        else:
            lat, lon = self._inner
            padded = np.pad(field_HW, 1, mode="edge")
            self._panel.contourf(lon, lat, padded, band.levels, cmap=band.colormap, norm=norm, extend="both")
        return webp_uri(self._figure)

    def overlay(self) -> str:
        """Graticule, degrees and coastlines on no background, to lie over every picture, as a data URI."""
        figure, panel = self._blank()
        panel.patch.set_visible(False)
        degree_axes(panel)
        draw_coastlines(panel)
        panel.grid(color=COLOUR, alpha=0.25, linewidth=0.6)
        # Inside the frame: outside, degrees would need a background that suits light and dark pages.
        panel.tick_params(direction="in", length=0, labelsize=10, labelcolor=COLOUR)
        panel.tick_params(axis="x", pad=-14)
        panel.tick_params(axis="y", pad=-5)
        panel.spines[:].set_visible(False)
        halo = [withStroke(linewidth=2.5, foreground="white", alpha=0.75)]
        for axis, (low, high), align in (
            (panel.xaxis, panel.get_xlim(), "center"),
            (panel.yaxis, panel.get_ylim(), "left"),
        ):
            for place, label in zip(axis.get_ticklocs(), axis.get_ticklabels()):
                in_corner = not 0.08 < (place - low) / (high - low) < 0.92
                label.set(path_effects=halo, horizontalalignment=align, visible=not in_corner)
        return svg_uri(figure)


def _edges(axis: np.ndarray) -> np.ndarray:
    """Edges of the cells of an axis: midway between points, half a cell out at the ends."""
    if axis.size == 1:
        return axis[0] + np.array([-0.5, 0.5])
    middle = (axis[1:] + axis[:-1]) / 2
    return np.concatenate([[2 * axis[0] - middle[0]], middle, [2 * axis[-1] - middle[-1]]])


def from_zero(fields: np.ndarray) -> np.ndarray:
    """Round levels from 0 up to all but the most extreme 1 %."""
    largest = np.nanquantile(fields, 0.99) if np.isfinite(fields).any() else 0.0
    return np.asarray(MaxNLocator(14, steps=ROUND_STEPS).tick_values(0.0, largest or 1.0))


def colour_bar(band: Band) -> Bar:
    """The colours of a band, of equal width each."""
    n = band.levels.size + 1  # the first and the last are what lies outside
    colours = colormaps[band.colormap](np.linspace(0, 1, n))
    shares = np.linspace(0, 100, n + 1)
    stops = [f"{to_hex(colour)} {low:.2f}% {high:.2f}%" for colour, low, high in zip(colours, shares, shares[1:])]
    longest = max(len(f"{level:g}") for level in band.levels)
    every = -(-band.levels.size // min(MOST_TICKS, MOST_LETTERS // (longest + 1)))
    place = np.arange(n - 1)
    if band.levels[0] < 0 < band.levels[-1]:  # both sides of 0 alike, and no two labels that touch beside it
        from_middle = np.abs(place - (n - 2) / 2).astype(int)
        is_told = from_middle % every == every // 2
    else:
        is_told = place % every == 0
    ticks = [(f"{share:.2f}%", f"{level:g}") for share, level, told in zip(shares[1:], band.levels, is_told) if told]
    return Bar(f"linear-gradient(90deg, {', '.join(stops)})", ticks, band.label)
