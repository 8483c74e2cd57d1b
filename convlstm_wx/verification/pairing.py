"""Two forecasts, or two groups of them, on the same pairs and points: their squared errors, in the mean and by place.

Shapes: F forecasts, N init times, H lat, W lon. One lead time of one channel is in memory at once.
"""

import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial, reduce

import numpy as np
import xarray as xr

from convlstm_wx.conventions import Channel, normalise_units
from convlstm_wx.data.regions import Grid, row_weights
from convlstm_wx.errors import DataError
from convlstm_wx.verification.baselines import Baseline, diurnal_persistence, persistence
from convlstm_wx.verification.climatology import read
from convlstm_wx.verification.pairs import MEMBER, channels_of, fields_of, match_truth, places_on
from convlstm_wx.verification.significance import Dependence, lead_in_spacings, season_of
from convlstm_wx.verification.where import p_values

logger = logging.getLogger(__name__)


def errors_of_forecasts(a: Sequence[xr.Dataset], b: Sequence[xr.Dataset], truth: xr.Dataset) -> xr.Dataset:
    """Squared errors of A and of B where all of them and the truth are valid.

    Args:
        a, b: forecasts as data.reading.open_forecast gives them; of an ensemble the mean counts. Several are the runs
            of one configuration, as many in A as in B; their squared errors are averaged.
        truth: canonical, with the forecasts' variables, levels and grid points.

    Returns:
        Dataset: mse_a, mse_b [run, channel, lead_time, init_time], area means; weight [channel, lead_time, init_time],
        the valid area; mse_map_a, mse_map_b, p_value [channel, lead_time, lat, lon], means over runs and init times,
        and how likely chance makes their difference (NaN where too few independent init times tell). Coordinates units
        and lead_hours; attributes pairs_a, pairs_b: what each had to offer.

    Raises:
        DataError: grids or units that differ, nothing in common, or a truth that does not fit.
    """
    forecasts = on_common_pairs([*a, *b])
    grid, weights = forecasts[0], row_weights(forecasts[0])
    truth = match_truth(grid, truth)
    init_times = grid["init_time"].values
    leads = lead_in_spacings(grid["lead_time"], init_times).values
    season = season_of(init_times)
    found = _by_channel_and_lead(
        grid,
        lambda channel: (
            _of_lead(squared, weights, season, lead)
            for squared, lead in zip(_squared_errors(forecasts, truth, channel), leads)
        ),
    )
    offered = {"pairs_a": _pairs(a[0]), "pairs_b": _pairs(b[0])}
    return found.assign_coords({name: grid[name] for name in _PLACES if name in grid.coords}).assign_attrs(offered)


def scores_of_forecast(forecast: xr.Dataset, truth: xr.Dataset, systems: Collection[str] = ()) -> xr.Dataset:
    """What a comparison reads of an evaluation's scores: mse_by_init of the model and persistence, weight_by_init.

    Args:
        forecast, truth: as of errors_of_forecasts.
        systems: of that evaluation. If diurnal persistence is among them, points count only where it is known too, as
            in the evaluation; other rivals are known wherever persistence is.

    Raises:
        DataError: for a truth that does not fit.
    """
    truth, weights = match_truth(forecast, truth), row_weights(forecast)
    rivals = [persistence, *([diurnal_persistence] if "diurnal_persistence" in systems else [])]

    def of_leads(channel: Channel) -> Iterator[xr.Dataset]:
        for squared in _squared_errors([forecast], truth, channel, rivals):
            mse, weight = _area_means(squared, weights)
            mse, dims = mse[:2], ("system", "init_time")
            yield xr.Dataset({"mse_by_init": (dims, mse), "weight_by_init": ("init_time", weight)})

    found = _by_channel_and_lead(forecast, of_leads).assign_coords(system=["model", "persistence"])
    return found.assign_coords({name: forecast[name] for name in _PLACES if name in forecast.coords})


_PLACES = ("lat", "lon", "latitude", "longitude")


def _pairs(forecast: xr.Dataset) -> int:
    return forecast.sizes["init_time"] * forecast.sizes["lead_time"]


def _by_channel_and_lead(forecast: xr.Dataset, of_leads: Callable[[Channel], Iterator[xr.Dataset]]) -> xr.Dataset:
    """What is found lead time by lead time, with the dimensions channel and lead_time and their labels."""
    channels = channels_of(forecast)
    leads = forecast["lead_time"].reset_coords(drop=True)
    found = xr.concat(
        [xr.concat(list(of_leads(channel)), leads) for channel in channels],
        xr.Variable("channel", [channel.name for channel in channels]),
    )
    return found.assign_coords(
        init_time=forecast["init_time"].values,
        units=("channel", [_units(forecast, channel.variable) for channel in channels]),
        lead_hours=("lead_time", leads.values / np.timedelta64(1, "h")),
    )


def _units(forecast: xr.Dataset, name: str) -> str:
    return normalise_units(str(forecast[name].attrs.get("units", "1")))


# What they have in common


def on_common_pairs(forecasts: Sequence[xr.Dataset]) -> list[xr.Dataset]:
    """The variables, levels, init times and lead times that all have, and the points of the smallest region.

    Raises:
        DataError: for other units, grids of which none lies in all others, or nothing in common.
    """
    forecasts = _at_common_points(forecasts)
    first = forecasts[0]
    for other in forecasts[1:]:
        differ = differences(first, other)
        if differ:
            raise DataError(f"B does not fit A: {'; '.join(differ)}. Compare forecasts of the same region and data")
    kept = [name for name in first.data_vars if all(name in other for other in forecasts)]
    if not kept:
        there = [" ".join(map(str, each.data_vars)) for each in (first, forecasts[-1])]
        raise DataError(f"no variables in common: A has {there[0]}, B has {there[1]}")
    shared = {
        name: reduce(np.intersect1d, [forecast[name].values for forecast in forecasts])
        for name in ("init_time", "lead_time", "level")
        if all(name in forecast[kept].dims for forecast in forecasts)
    }
    for name, values in shared.items():
        if not values.size:
            ends = [f"{each[name].values[0]} to {each[name].values[-1]}" for each in (first, forecasts[-1])]
            raise DataError(f"no {name.replace('_', ' ')}s in common: A has {ends[0]}, B has {ends[1]}")
    places = {name: first[name] for name in ("lat", "lon")}
    return [forecast[kept].sel(shared).assign_coords(places) for forecast in forecasts]


def _at_common_points(forecasts: Sequence[xr.Dataset]) -> Sequence[xr.Dataset]:
    """At the points of the smallest grid, where all others have them; else as they are."""
    smallest = min(forecasts, key=points_of)
    if all(points_of(each) == points_of(smallest) for each in forecasts):
        return forecasts
    try:
        places = [{axis: places_on(smallest, each, axis) for axis in ("lat", "lon")} for each in forecasts]
    except DataError:
        return forecasts
    logger.info("points     %d x %d, those that all have", smallest.sizes["lat"], smallest.sizes["lon"])
    return [each.isel(at) for each, at in zip(forecasts, places)]


def points_of(forecast: xr.Dataset) -> int:
    """Number of grid points."""
    return forecast.sizes["lat"] * forecast.sizes["lon"]


def differences(a: xr.Dataset, b: xr.Dataset) -> list[str]:
    """How the grid and the units of forecast B differ from those of A, in words."""
    return Grid.from_dataset(a).differences(Grid.from_dataset(b)) + [
        f"{name} in {_units(b, name)} instead of {_units(a, name)}"
        for name in map(str, a.data_vars)
        if name in b and _units(b, name) != _units(a, name)
    ]


def _at_lead(fields: xr.DataArray, number: int) -> np.ndarray:
    """Fields [N, H, W] of one lead time; of an ensemble the mean."""
    read = fields.isel(lead_time=number).load()
    mean = read.mean(MEMBER, skipna=False) if MEMBER in read.dims else read
    return mean.transpose("init_time", "lat", "lon").values


# Errors


def _squared_errors(
    forecasts: Sequence[xr.Dataset], truth: xr.Dataset, channel: Channel, rivals: Sequence[Baseline] = ()
) -> Iterator[np.ndarray]:
    """[F, N, H, W] of one lead time after the other, NaN where any of them is not valid; rivals come last."""
    observed = fields_of(truth, channel)
    given = [fields_of(forecast, channel) for forecast in forecasts]
    init_times = given[0]["init_time"].values
    for number, lead in enumerate(given[0]["lead_time"].values):
        others = (rival(init_times, lead, partial(read, observed)) for rival in rivals)
        fields = np.stack([*(_at_lead(each, number) for each in given), *others]).astype(float)
        squared = (fields - read(observed, init_times + lead)) ** 2
        squared[:, ~np.isfinite(squared).all(axis=0)] = np.nan
        yield squared


def _area_means(squared_FNHW: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean of each forecast and init time [F, N], NaN where nothing is valid, and the weights it is of [N]."""
    valid_NHW = np.isfinite(squared_FNHW[0])
    weight_N = valid_NHW.sum(axis=2) @ weights
    with np.errstate(invalid="ignore"):
        return np.nansum(squared_FNHW, axis=3) @ weights / weight_N, weight_N


def _of_lead(squared_FNHW: np.ndarray, weights: np.ndarray, season: np.ndarray, lead: float) -> xr.Dataset:
    """Of the first half of the forecasts (A) and the second (B) at one lead time; lead: in spacings of init times."""
    runs = len(squared_FNHW) // 2
    mse_FN, weight_N = _area_means(squared_FNHW, weights)
    a_NHW, b_NHW = squared_FNHW[:runs].mean(axis=0), squared_FNHW[runs:].mean(axis=0)
    count_HW = np.isfinite(a_NHW).sum(axis=0)
    maps = {}
    with np.errstate(invalid="ignore"):
        for name, field in (("a", a_NHW), ("b", b_NHW)):
            maps[f"mse_map_{name}"] = (("lat", "lon"), np.nansum(field, axis=0) / count_HW)
    return xr.Dataset(
        {
            "mse_a": (("run", "init_time"), mse_FN[:runs]),
            "mse_b": (("run", "init_time"), mse_FN[runs:]),
            "weight": ("init_time", weight_N),
            **maps,
            "p_value": (("lat", "lon"), _p_values(b_NHW - a_NHW, mse_FN, weight_N, season, lead)),
        }
    )


def _p_values(
    difference_NHW: np.ndarray, mse_FN: np.ndarray, weight_N: np.ndarray, season: np.ndarray, lead: float
) -> np.ndarray:
    """Of each point [H, W], with blocks as long as the area means ask for."""
    kept = weight_N > 0
    runs = len(mse_FN) // 2
    series = (mse_FN[runs:].mean(axis=0) - mse_FN[:runs].mean(axis=0))[kept]
    if not series.size:
        return np.full(difference_NHW.shape[1:], np.nan)
    dependence = Dependence.of(series, season[kept])
    block = dependence.block(lead)
    if block is None:
        return np.full(difference_NHW.shape[1:], np.nan)
    flat = difference_NHW[kept].reshape(series.size, -1)
    return p_values(flat, dependence, block).reshape(difference_NHW.shape[1:])
