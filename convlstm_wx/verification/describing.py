"""What a file of scores says about itself: coordinates, the formula and units of each score, and how all were made."""

from collections.abc import Mapping

import numpy as np
import xarray as xr

from convlstm_wx.conventions import is_precipitation, millimetres_factor, millimetres_units, normalise_units
from convlstm_wx.data.reading import is_projected
from convlstm_wx.verification import metrics
from convlstm_wx.verification.pairs import MEMBER, channels_of
from convlstm_wx.verification.significance import MIN_BLOCKS, RESAMPLES

DIMS = ("system", "reference", "channel", "wind", "lead_time", "init_time")
BY_AREA = "w: sin(upper edge) - sin(lower edge) of the row, edges midway between rows, mean 1 over the region"
EQUAL = "w: 1 for every grid point; the cells of a projected grid are taken as equal in area"


def described(
    scores: xr.Dataset,
    forecast: xr.Dataset,
    truth: xr.Dataset,
    rivals: Mapping[str, str],
    options: Mapping[str, float | str],
) -> xr.Dataset:
    """The same scores with coordinates, formulas and the account of how they were made.

    Args:
        rivals: how each was made.
    """
    variables = [truth[channel.variable] for channel in channels_of(forecast)]
    hours = scores["lead_time"].values / np.timedelta64(1, "h")
    in_space = {name: forecast[name] for name in ("lat", "lon", "latitude", "longitude") if name in forecast.coords}
    scores = scores.transpose(*DIMS, ..., "lat", "lon", missing_dims="ignore").assign_coords(
        units=("channel", [normalise_units(str(variable.attrs.get("units", "1"))) for variable in variables]),
        rain=("channel", [is_precipitation(str(variable.name), variable.attrs) for variable in variables]),
        lead_hours=("lead_time", hours, {"units": "h", "long_name": "lead time"}),
    )
    scores = scores.assign_coords(in_space)
    for name in scores.data_vars:
        scores[name].attrs = metrics.attributes(str(name))
    valid_times = np.add.outer(forecast["init_time"].values, forecast["lead_time"].values)
    has_truth = np.isin(valid_times, truth["time"]) & np.isin(forecast["init_time"], truth["time"])[:, None]
    if MEMBER in forecast.dims:
        options = {**options, "members": forecast.sizes[MEMBER]}
    return scores.assign_attrs(
        Conventions="CF-1.11",
        title="Scores of a forecast and of its rivals on the same points",
        weights=EQUAL if is_projected(forecast) else BY_AREA,
        points=(
            "valid where truth, forecast and every rival all are (truth that was filled in is not); means divide by "
            "the valid weights"
        ),
        **rivals,
        acc="uncentred, per init time, then averaged; acc_centred beside it",
        events="value >= threshold; of percentiles: anomaly >= that percentile of the training anomalies of the point",
        intervals=(
            f"paired circular block bootstrap over init times, {RESAMPLES} resamples; block: the longer of lead + "
            "decorrelation length and three decorrelation lengths (season taken out); no interval where fewer than "
            f"{MIN_BLOCKS} blocks fit"
        ),
        verdicts=(
            "a difference from a rival counts if the p-value of the skill, adjusted across the lead times of a channel "
            "by Holm's method, is at most 1 - confidence; intervals are of one lead time alone"
        ),
        pairs_offered=valid_times.size,
        pairs_without_truth=int((~has_truth).sum()),
        **options,
    )


def in_shown_units(scores: xr.Dataset) -> xr.Dataset:
    """The same scores with those of precipitation in mm (of rates in mm per day), for people; files keep their own."""
    factors, units = [], []
    for rain, unit in zip(scores["rain"].values, scores["units"].values):
        factors.append(millimetres_factor(str(unit)) if rain else 1.0)
        units.append(millimetres_units(str(unit)) if rain else str(unit))
    factor = xr.DataArray(factors, dims="channel")
    shown = scores.copy()
    for name, values in scores.data_vars.items():
        power = metrics.power_of_units(str(name))
        if power and "channel" in values.dims:
            shown[name] = (values * factor**power).transpose(*values.dims).assign_attrs(values.attrs)
    return shown.assign_coords(units=("channel", units))
