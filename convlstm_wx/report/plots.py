"""Figures of an evaluation as files: errors by lead time, a case, where it is biased, how the loss fell.

Drawn with matplotlib's object interface (no global state, no display). Colours are safe for colour-blind readers; truth
and forecast always share one scale, errors are centred on 0.
"""

import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.image import imread

from convlstm_wx.conventions import Channel
from convlstm_wx.files import make_folder, replacing
from convlstm_wx.report.cases import clock, fields_of, rmse_of, spread_out, typical_case
from convlstm_wx.report.curves import draw_history
from convlstm_wx.report.diagnostics import MOST_PANELS, Sheet, ensemble, events, months, rmse, spectra
from convlstm_wx.report.maps import Band, Look, around_zero, draw_maps
from convlstm_wx.text import select_some

DPI, SCREEN_DPI = 130, 80
COLUMNS = 4  # lead times on a page of maps
MOST_MAPPED = 6  # channels that get maps in files, which take a second each; the page has maps of more


def draw_all(
    folder: Path, forecast: xr.Dataset, truth: xr.Dataset, scores: xr.Dataset, history: Path | None = None
) -> dict[str, Path]:
    """The figures of an evaluation: caption -> path.

    Args:
        folder: where they go; made if need be.
        forecast, truth: as verification.evaluate was given them.
        scores: as it gave them, in the units in which they are shown.
        history: history.csv of the training run, if there is one.

    Raises:
        ConfigError: if the folder cannot be written.
    """
    make_folder(folder)
    mapped, drawn = select_some(scores, MOST_MAPPED), select_some(scores, MOST_PANELS)
    figures = _draw_sheets(folder, drawn, [rmse])
    init_time = typical_case(scores)
    for name in map(str, mapped["channel"].values):
        caption = f"{name}: a typical forecast (its error is the median), from {clock(init_time)}"
        path = folder / f"case_{_file_name(name)}.png"
        figures[caption] = case(forecast, truth, init_time, Channel.parse(name), path)
    figures["Mean error by place: where the forecasts are too high or too low"] = bias_map(mapped, folder / "bias.png")
    figures |= _draw_sheets(folder, drawn, [spectra, events, months, ensemble])
    if history is not None and history.exists():
        figures["Loss in training"] = draw_history([history.parent], folder / "loss.png")
    return figures


def _draw_sheets(
    folder: Path, scores: xr.Dataset, kinds: Sequence[Callable[[xr.Dataset], Sheet | None]]
) -> dict[str, Path]:
    sheets = [sheet for kind in kinds if (sheet := kind(scores)) is not None]
    return {sheet.caption: _save(sheet.whole(), folder / f"{sheet.name}.png") for sheet in sheets}


def case(forecast: xr.Dataset, truth: xr.Dataset, init_time: np.datetime64, channel: Channel, path: Path) -> Path:
    """One forecast of one channel: maps of truth, forecast and error at up to four lead times."""
    leads = spread_out(forecast.sizes["lead_time"], COLUMNS)
    return _save(case_figure(*fields_of(forecast, truth, init_time, channel, leads), channel), path)


def case_figure(given: xr.DataArray, observed: xr.DataArray, channel: Channel) -> Figure:
    """Maps of truth, forecast and error, a column per lead time.

    Args:
        given: the forecast from one init time [lead_time, lat, lon].
        observed: what it became, likewise; missing where nothing was observed.
        channel: which one it is.
    """
    look = Look.of(channel, given.attrs)
    error = given.copy(data=given.values - observed.values)
    notes = [f"RMSE {text}" for text in rmse_of(error)]
    bands = [
        _beside(given, observed, look),
        Band(
            {"error": error.values},
            around_zero(error.values),
            look.error_colormap,
            f"forecast - truth ({look.units})",
            look.is_rain,
            notes,
        ),
    ]
    title = f"{look.title}, forecast from {clock(given.coords['init_time'].values)}"
    return draw_maps(title, bands, _lead_titles(given), given)


def _beside(given: xr.DataArray, observed: xr.DataArray, look: Look) -> Band:
    fields = {"truth": observed.values, "forecast": given.values}
    return Band(fields, look.levels(observed.values, given.values), look.colormap, look.units, look.is_rain)


def bias_map(scores: xr.Dataset, path: Path) -> Path:
    """Mean error of the model at each grid point, a row per channel, at up to four lead times."""
    shown = scores.isel(lead_time=spread_out(scores.sizes["lead_time"], COLUMNS))
    bias = shown["bias_map"].sel(system="model")
    bands = []
    for name, units in zip(map(str, shown["channel"].values), map(str, shown["units"].values)):
        look = Look.of(Channel.parse(name), {"units": units})
        field = bias.sel(channel=name).values
        bands.append(Band({name: field}, around_zero(field), look.error_colormap, look.units, look.is_rain))
    titles = [f"+{hours:g} h" for hours in shown["lead_hours"].values]
    return _save(draw_maps("Mean error (forecast - truth)", bands, titles, bias), path)


def _lead_titles(given: xr.DataArray) -> list[str]:
    leads, init_time = given["lead_time"].values, given["init_time"].values
    return [f"+{lead / np.timedelta64(1, 'h'):g} h\n{clock(init_time + lead)}" for lead in leads]


def _file_name(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", name)


def pixels(figure: Figure) -> np.ndarray:
    """A figure as it would be on a screen, [height, width, 3], uint8."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=SCREEN_DPI, facecolor="white", bbox_inches="tight", pad_inches=0.1)
    file.seek(0)
    return (255 * imread(file)[:, :, :3]).round().astype(np.uint8)


def _save(figure: Figure, path: Path) -> Path:
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=DPI, facecolor="white", bbox_inches="tight", pad_inches=0.1)
    return path
