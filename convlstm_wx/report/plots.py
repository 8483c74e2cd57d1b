"""Figures of an evaluation: errors by lead time, a case, where it is biased, how the loss fell.

Each function draws one figure with matplotlib's object interface (no global state, no display) and returns the path it
wrote. Colours are safe for colour-blind readers; truth and forecast always share one scale, errors are centred on 0.
"""

import io
import re
from pathlib import Path

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import imread

from convlstm_wx.conventions import Channel, is_precipitation, millimetres_factor, millimetres_units
from convlstm_wx.data.reading import is_projected, observed_only
from convlstm_wx.data.regions import row_weights
from convlstm_wx.files import make_folder, replacing
from convlstm_wx.report.curves import draw_history
from convlstm_wx.report.diagnostics import STYLES, ensemble, events, lead_axis, months, panels, spectra, spoken
from convlstm_wx.report.maps import Band, Look, around_zero, draw_maps

DPI, SCREEN_DPI = 130, 80
COLUMNS = 4  # lead times on a page of maps

DIAGNOSTICS = {
    "Power by wavelength, forecast over truth: below 1 the forecast is blurred": spectra,
    "Events: critical success index by lead time": events,
    "Error by month of the valid time": months,
    "Ensemble: spread beside the error of its mean, and the rank of the truth among the members": ensemble,
}


def draw_all(
    folder: Path, forecast: xr.Dataset, truth: xr.Dataset, scores: xr.Dataset, history: Path | None = None
) -> dict[str, Path]:
    """Every figure of an evaluation, in the order of a page: caption -> path.

    Args:
        folder: where they go; made if need be.
        forecast, truth, scores: as verification.evaluate was given them and gave them.
        history: history.csv of the training run, if there is one.

    Raises:
        ConfigError: if the folder cannot be written.
    """
    make_folder(folder)
    figures = {"Error by lead time, with the confidence band of the model": rmse_by_lead(scores, folder / "rmse.png")}
    init_time = choose_case(scores)
    for name in map(str, scores["channel"].values):
        caption = f"{name}: a typical forecast (its error is the median), from {_clock(init_time)}"
        path = folder / f"case_{_file_name(name)}.png"
        figures[caption] = case(forecast, truth, init_time, Channel.parse(name), path)
    figures["Mean error by place: where the forecasts are too high or too low"] = bias_map(scores, folder / "bias.png")
    for caption, draw in DIAGNOSTICS.items():
        figure = draw(scores)
        if figure is not None:
            figures[caption] = _save(figure, folder / f"{draw.__name__}.png")
    if history is not None and history.exists():
        figures["Loss in training"] = draw_history([history.parent], folder / "loss.png")
    return figures


def choose_case(scores: xr.Dataset) -> np.datetime64:
    """The init time whose error at the middle lead time is the median: a typical forecast, not the best one."""
    mse = scores["mse_by_init"].sel(system="model").isel(lead_time=(scores.sizes["lead_time"] - 1) // 2)
    error = (mse / mse.mean("init_time")).mean("channel", skipna=False).values
    if np.isnan(error).all():  # no init time has all channels
        error = (mse / mse.mean("init_time")).mean("channel").values
    ranked = np.argsort(error)[: np.isfinite(error).sum()]
    return scores["init_time"].values[ranked[(ranked.size - 1) // 2]]


def rmse_by_lead(scores: xr.Dataset, path: Path) -> Path:
    """RMSE against lead time, a panel per channel: the model with its confidence band, and its rivals."""
    names = list(map(str, scores["channel"].values))
    return _save(panels(names, lambda panel, name: _rmse_panel(panel, scores.sel(channel=name))), path)


def _rmse_panel(panel: Axes, scores: xr.Dataset) -> None:
    hours, model = scores["lead_hours"].values, scores.sel(system="model")
    look = Look.of(Channel.parse(str(scores["channel"].item())), {"units": scores["units"].item()})
    band = f"{scores.attrs['confidence']:.0%} interval of the model"
    panel.fill_between(hours, model["rmse_low"], model["rmse_high"], color="#0072B2", alpha=0.18, lw=0, label=band)
    for system in map(str, scores["system"].values):
        rmse = scores["rmse"].sel(system=system)
        panel.plot(hours, rmse, label=spoken(system), markersize=4.5, **STYLES[system])
    panel.set_title(look.title, fontsize=11)
    panel.set_ylabel(f"RMSE ({look.units})")
    panel.set_ylim(bottom=0)
    lead_axis(panel, hours)


def case(forecast: xr.Dataset, truth: xr.Dataset, init_time: np.datetime64, channel: Channel, path: Path) -> Path:
    """One forecast of one channel: maps of truth, forecast and error at up to four lead times."""
    return _save(case_figure(*_fields(forecast, truth, init_time, channel), channel), path)


def case_figure(given: xr.DataArray, observed: xr.DataArray, channel: Channel) -> Figure:
    """Maps of truth, forecast and error, a column per lead time.

    Args:
        given: the forecast from one init time [lead_time, lat, lon].
        observed: what it became, likewise; missing where nothing was observed.
        channel: which one it is.
    """
    look = Look.of(channel, given.attrs)
    error = given.values - observed.values
    notes = [f"RMSE {_rmse(field, row_weights(given))}" for field in error]
    bands = [
        _beside(given, observed, look),
        Band(
            {"error": error},
            around_zero(error),
            look.error_colormap,
            f"forecast - truth ({look.units})",
            look.is_rain,
            notes,
        ),
    ]
    title = f"{look.title}, forecast from {_clock(given.coords['init_time'].values)}"
    return draw_maps(title, bands, _lead_titles(given), given)


def _beside(given: xr.DataArray, observed: xr.DataArray, look: Look) -> Band:
    fields = {"truth": observed.values, "forecast": given.values}
    return Band(fields, look.levels(observed.values, given.values), look.colormap, look.units, look.is_rain)


def bias_map(scores: xr.Dataset, path: Path) -> Path:
    """Mean error of the model at each grid point, a row per channel, at up to four lead times."""
    shown = scores.isel(lead_time=_spread(scores.sizes["lead_time"]))
    bias = shown["bias_map"].sel(system="model")
    bands = []
    for name, units in zip(map(str, shown["channel"].values), map(str, shown["units"].values)):
        look = Look.of(Channel.parse(name), {"units": units})
        field = bias.sel(channel=name).values
        bands.append(Band({name: field}, around_zero(field), look.error_colormap, look.units, look.is_rain))
    titles = [f"+{hours:g} h" for hours in shown["lead_hours"].values]
    return _save(draw_maps("Mean error (forecast - truth)", bands, titles, bias), path)


def _fields(
    forecast: xr.Dataset, truth: xr.Dataset, init_time: np.datetime64, channel: Channel
) -> tuple[xr.DataArray, xr.DataArray]:
    """Forecast and truth [lead_time, lat, lon] at up to four lead times; missing where the truth has no such time."""
    given, observed = forecast[channel.variable].sel(init_time=init_time), observed_only(truth[channel.variable])
    if channel.level is not None:
        given, observed = given.sel(level=channel.level), observed.sel(level=channel.level)
    given = given.isel(lead_time=_spread(given.sizes["lead_time"])).load()
    if "realization" in given.dims:
        given = given.mean("realization", keep_attrs=True)
    if is_projected(given):  # the scores have been made, so the grid is the same
        observed = observed.sel(lat=given["lat"].values, lon=given["lon"].values, method="nearest")
    else:
        west = float(observed["lon"][0])
        lon = (given["lon"] - west + 1e-3) % 360 - 1e-3 + west  # the truth may count longitudes from elsewhere
        observed = observed.sel(lat=given["lat"], lon=lon.values, method="nearest", tolerance=1e-3)
    observed = observed.reindex(time=init_time + given["lead_time"].values).load()
    return _in_millimetres(given, channel), _in_millimetres(observed, channel)


def _in_millimetres(fields: xr.DataArray, channel: Channel) -> xr.DataArray:
    """Precipitation in mm, as people know it; anything else as it is."""
    if not is_precipitation(channel.variable, fields.attrs):
        return fields
    units = str(fields.attrs["units"])
    return (fields * millimetres_factor(units)).assign_attrs(fields.attrs | {"units": millimetres_units(units)})


def _spread(n: int) -> np.ndarray:
    """Up to four places out of n, the first and the last included."""
    return np.unique(np.linspace(0, n - 1, min(n, COLUMNS)).round().astype(int))


def _lead_titles(given: xr.DataArray) -> list[str]:
    leads, init_time = given["lead_time"].values, given["init_time"].values
    return [f"+{lead / np.timedelta64(1, 'h'):g} h\n{_clock(init_time + lead)}" for lead in leads]


def _rmse(error: np.ndarray, weights: np.ndarray) -> str:
    """Area-weighted RMSE over the valid points, to three digits."""
    valid = np.isfinite(error)
    by_point = np.broadcast_to(weights[:, None], error.shape)[valid]
    value = np.sqrt(np.average(error[valid] ** 2, weights=by_point)) if valid.any() else np.nan
    return f"{float(f'{value:.3g}'):g}"


def _clock(time: np.datetime64 | np.ndarray) -> str:
    return str(time.astype("datetime64[m]")).replace("T", " ") + " UTC"


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
