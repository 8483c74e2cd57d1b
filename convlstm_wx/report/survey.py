"""Figures of a data file before training: each channel's time mean, a typical field, and its course in time.

Drawn to be looked at for mistakes: missing points are grey, gaps in time are gaps in the lines, and the lowest and
highest value of every field are shown, so that a wrong one stands out. Shapes: N times, H lat, W lon.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure

from convlstm_wx.conventions import Channel
from convlstm_wx.data.reading import is_projected, observed_only, time_step
from convlstm_wx.data.regions import row_weights
from convlstm_wx.files import make_folder, replacing
from convlstm_wx.report.maps import Look, corners, degree_axes

DPI = 120
READ_BYTES = 128e6
MOST_TIMES_DRAWN = 1_500  # of more, a line per month is drawn
MOST_EVEN_RATIO = 20  # of the most to the least rain in a map whose colours are evenly spaced
MISSING_COLOUR = "#d9d9d9"
LINE_COLOUR = "#0072B2"


@dataclass(frozen=True)
class Overview:
    """A channel in brief, in the file's units; NaN where nothing was observed.

    Attributes:
        channel, attrs: which one, and what the file says of it.
        times: N.
        mean_HW: over time.
        mean_N: over the area, weighted by it.
        low_N, high_N: lowest and highest value of each field.
        missing_share: of all values.
        example_HW, example_time: a typical field; of rain a wet one.
    """

    channel: Channel
    attrs: dict[str, str]
    times: np.ndarray
    mean_HW: np.ndarray
    mean_N: np.ndarray
    low_N: np.ndarray
    high_N: np.ndarray
    missing_share: float
    example_HW: np.ndarray
    example_time: np.datetime64


def draw_all(folder: Path, dataset: xr.Dataset, channels: Sequence[Channel]) -> dict[str, Path]:
    """One figure for each channel: channel name -> path.

    Raises:
        ConfigError: if the folder cannot be written or is full.
    """
    make_folder(folder)
    figures = {}
    for name in dict.fromkeys(channel.variable for channel in channels):
        mine = [channel for channel in channels if channel.variable == name]
        for overview in overviews(dataset, mine):
            path = folder / f"{re.sub(r'[^A-Za-z0-9_.@-]+', '_', overview.channel.name)}.png"
            figures[overview.channel.name] = draw(overview, dataset, path)
    return figures


def overviews(dataset: xr.Dataset, channels: Sequence[Channel]) -> Iterator[Overview]:
    """The overview of each of one variable's channels, from one pass over its values in bounded memory."""
    field = observed_only(dataset[channels[0].variable])
    field = field.sel(level=[c.level for c in channels]) if "level" in field.dims else field.expand_dims("level", 1)
    weights_H1 = row_weights(dataset)[:, None]
    total = np.zeros(field.shape[1:])
    count = np.zeros(field.shape[1:], np.int64)
    rows = []
    for block_NKHW in _blocks(field):
        there = np.isfinite(block_NKHW)
        values = np.where(there, block_NKHW, 0)
        total += values.sum(axis=0, dtype=np.float64)
        count += there.sum(axis=0)
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = (values * weights_H1).sum(axis=(2, 3)) / (there * weights_H1).sum(axis=(2, 3))
        low = np.where(there, block_NKHW, np.inf).min(axis=(2, 3))
        high = np.where(there, block_NKHW, -np.inf).max(axis=(2, 3))
        rows.append(np.stack([mean, low, high]))
    mean_NK, low_NK, high_NK = np.where(np.isfinite(found := np.concatenate(rows, axis=1)), found, np.nan)
    for k, channel in enumerate(channels):
        at = _typical(mean_NK[:, k], is_rain=Look.of(channel, field.attrs).is_rain)
        example = np.asarray(field.isel(time=at, level=k).values, np.float64)
        yield Overview(
            channel=channel,
            attrs={str(key): str(value) for key, value in field.attrs.items()},
            times=dataset["time"].values,
            mean_HW=np.where(count[k], total[k] / np.maximum(count[k], 1), np.nan),
            mean_N=mean_NK[:, k],
            low_N=low_NK[:, k],
            high_N=high_NK[:, k],
            missing_share=1 - count[k].sum() / (count[k].size * len(mean_NK)),
            example_HW=np.where(np.isfinite(example), example, np.nan),
            example_time=dataset["time"].values[at],
        )


def _blocks(field: xr.DataArray) -> Iterator[np.ndarray]:
    """The values in stretches of time, [n, level, lat, lon]."""
    field = field.transpose("time", "level", "lat", "lon")
    rows = max(1, int(READ_BYTES / (8 * field[0].size)))
    for start in range(0, field.sizes["time"], rows):
        yield field[start : start + rows].values


def _typical(mean_N: np.ndarray, *, is_rain: bool) -> int:
    """The time whose area mean is the median; of rain the 95th percentile, as the median may well be dry."""
    if np.isnan(mean_N).all():
        return 0
    wanted = np.nanquantile(mean_N, 0.95 if is_rain else 0.5)
    return int(np.nanargmin(np.abs(mean_N - wanted)))


def draw(overview: Overview, dataset: xr.Dataset, path: Path) -> Path:
    """Two maps and a time series of one channel; `dataset` gives the grid."""
    look = Look.of(overview.channel, overview.attrs)
    lat, lon = _mesh(dataset) or (dataset["lat"].values, dataset["lon"].values)
    stretch = 1 / np.cos(np.deg2rad(np.clip(np.mean(lat), -80, 80)))
    shape = float(np.clip(stretch * (np.ptp(lat) or 1) / (np.ptp(lon) or 1), 0.3, 1.2))
    figure = Figure(figsize=(10, 3.4 + 4.4 * shape), layout="constrained")
    grid = figure.add_gridspec(2, 2, height_ratios=(4.4 * shape + 0.6, 2.4))
    title = look.title
    if overview.missing_share:
        title += f"  ({100 * overview.missing_share:.3g} % missing, grey)"
    figure.suptitle(title, fontsize=13)
    fields = {
        f"time mean, {_day(overview.times[0])} to {_day(overview.times[-1])}": overview.mean_HW,
        f"{'a wet field' if look.is_rain else 'a typical field'}, {_clock(overview.example_time)}": overview.example_HW,
    }
    for column, (text, field_HW) in enumerate(fields.items()):
        panel = figure.add_subplot(grid[0, column])
        _map(panel, lon, lat, field_HW, look, _levels(field_HW, look))
        panel.set_title(text, fontsize=10)
        panel.set_aspect(stretch)
    _series(figure.add_subplot(grid[1, :]), overview, look.units)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=DPI, facecolor="white", bbox_inches="tight", pad_inches=0.1)
    return path


def _mesh(dataset: xr.Dataset) -> tuple[np.ndarray, np.ndarray] | None:
    """Latitudes and longitudes [H, W] of a projected grid, None on a regular one."""
    if not is_projected(dataset):
        return None
    lat, lon = (dataset[name].transpose("lat", "lon").values for name in ("latitude", "longitude"))
    return lat, lon


def _levels(field_HW: np.ndarray, look: Look) -> np.ndarray:
    """Of rain that falls everywhere, as in most means over time, evenly spaced: 1, 2, 5 would be one colour or two."""
    there = field_HW[np.isfinite(field_HW)]
    everywhere = look.is_rain and there.size and np.quantile(there, 0.005) * MOST_EVEN_RATIO > np.quantile(there, 0.995)
    return (replace(look, is_rain=False) if everywhere else look).levels(field_HW)


def _map(panel: Axes, lon: np.ndarray, lat: np.ndarray, field_HW: np.ndarray, look: Look, levels: np.ndarray) -> None:
    norm = BoundaryNorm(levels, 256, extend="both")
    masked = np.ma.masked_invalid(field_HW)
    if lat.ndim == 2:
        lon, lat = corners(lon), corners(lat)
    cells = panel.pcolormesh(
        lon, lat, masked, cmap=look.colormap, norm=norm, shading="flat" if lat.ndim == 2 else "nearest"
    )
    panel.set_facecolor(MISSING_COLOUR)
    degree_axes(panel)
    assert panel.figure is not None
    bar = panel.figure.colorbar(cells, ax=panel, orientation="horizontal", pad=0.02, aspect=35)
    bar.ax.tick_params(labelsize=8)
    ticks = _ticks(levels)
    bar.set_ticks(ticks.tolist(), labels=[f"{level:g}" for level in ticks])
    bar.set_label(look.units, fontsize=9)


def _ticks(levels: np.ndarray) -> np.ndarray:
    """Every other level; of those about 0, which lack it, the same on both sides."""
    if levels[0] == -levels[-1]:
        above = levels[levels > 0][::-2][::-1]
        return np.concatenate([-above[::-1], above])
    return levels[::2]


def _series(panel: Axes, overview: Overview, units: str) -> None:
    """The area mean, and what lies between the lowest and the highest value, at all times or by month."""
    times, (mean, low, high), each = _thinned(overview)
    panel.fill_between(times, low, high, color=LINE_COLOUR, alpha=0.18, lw=0, label="lowest to highest value")
    lonely = len(times) - np.isnan(mean).sum() < 60
    marker = "." if lonely else None
    panel.plot(times, mean, color=LINE_COLOUR, linewidth=1.1, marker=marker, label=f"area mean{each}")
    locator = AutoDateLocator(maxticks=9)
    panel.xaxis.set_major_locator(locator)
    panel.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    panel.set_ylabel(units)
    panel.tick_params(labelsize=9)
    panel.grid(alpha=0.3)
    panel.spines[["top", "right"]].set_visible(False)
    panel.margins(x=0.01)
    panel.legend(frameon=False, fontsize=8, loc="lower right", bbox_to_anchor=(1, 0.98), ncols=2, borderaxespad=0)


def _thinned(overview: Overview) -> tuple[np.ndarray, list[np.ndarray], str]:
    """Times with a NaN in every gap, and mean, low and high there; by month where the record is long."""
    times, parts = overview.times, [overview.mean_N, overview.low_N, overview.high_N]
    each = ""
    if len(times) > MOST_TIMES_DRAWN:
        months, group = np.unique(times.astype("datetime64[M]"), return_inverse=True)
        starts = np.flatnonzero(np.diff(group, prepend=-1))
        parts = [
            np.array([_mean_of(piece) for piece in np.split(overview.mean_N, starts[1:])]),
            np.fmin.reduceat(overview.low_N, starts),
            np.fmax.reduceat(overview.high_N, starts),
        ]
        times, each = months.astype("datetime64[ns]"), ", by month"
    return *_with_gaps(times, parts), each


def _mean_of(values: np.ndarray) -> float:
    there = values[np.isfinite(values)]
    return float(there.mean()) if there.size else np.nan


def _with_gaps(times: np.ndarray, parts: Sequence[np.ndarray]) -> tuple[np.ndarray, list[np.ndarray]]:
    """The same with NaN after each time that is followed by a gap: lines then stop there."""
    if len(times) < 3:
        return times, list(parts)
    after = np.flatnonzero(np.diff(times) > 1.5 * time_step(times)) + 1
    between = times[after - 1] + np.diff(times)[after - 1] // 2
    return np.insert(times, after, between), [np.insert(part, after, np.nan) for part in parts]


def _day(time: np.datetime64) -> str:
    return str(time.astype("datetime64[D]"))


def _clock(time: np.datetime64) -> str:
    return str(time.astype("datetime64[m]")).replace("T", " ") + " UTC"
