"""The scores of forecast fields against the observed ones: thin over the `scores` library.

Fields have dims ([system,] init_time, lat, lon); NaN means "does not count". Means over space are weighted by area, and
a mean with missing points is divided by the weights of the valid ones. The statistic is kept per init time (`by_init`)
and per grid point (`by_point`), and averaged further with `pool`; roots are taken last (`averaged`).
"""

import numpy as np
import scores.continuous
import xarray as xr

from convlstm_wx.verification.pairs import Pairs

SPACE = ("lat", "lon")

OWN, SQUARED, PURE = "units of the channel", "square of the units of the channel", "1"
LIMIT = "limit of the confidence interval; NaN where too few independent init times allow one"
# f forecast, o observed, c climatology at the valid time, f' = f - c, o' = o - c, w area weight
DEFINITIONS = {
    "rmse": ("sqrt(mean(w (f - o)^2)): mean over points and init times first, root last", OWN),
    "rmse_low": (LIMIT, OWN),
    "rmse_high": (LIMIT, OWN),
    "mae": ("mean(w abs(f - o))", OWN),
    "bias": ("mean(w (f - o)); positive: the forecast is too high", OWN),
    "acc": (
        "mean over init times of sum(w f' o') / sqrt(sum(w f'^2) sum(w o'^2)); uncentred, as in WeatherBench 2; 0/0 is "
        "NaN, so the climatology itself has none",
        PURE,
    ),
    "acc_centred": ("as acc, with the area means of f' and of o' taken off first, as in MET", PURE),
    "activity": ("sqrt(mean(w f'^2)); less than observed_activity: the forecast is blurred", OWN),
    "observed_activity": ("sqrt(mean(w o'^2))", OWN),
    "count": ("points that were scored, over all init times", PURE),
    "pairs": ("init times with at least one scored point", PURE),
    "skill": ("1 - MSE / MSE of the reference, on the same points", PURE),
    "skill_low": (LIMIT, PURE),
    "skill_high": (LIMIT, PURE),
    "mse_difference": ("MSE - MSE of the reference, on the same points; negative: better than the reference", SQUARED),
    "mse_difference_low": (LIMIT, SQUARED),
    "mse_difference_high": (LIMIT, SQUARED),
    "effective_size": ("independent init times that the paired differences are worth", PURE),
    "block_length": ("length of the bootstrap's blocks, in init times", PURE),
    "mse_by_init": ("area mean of (f - o)^2 per init time", SQUARED),
    "weight_by_init": ("sum of w over the scored points per init time", PURE),
    "bias_map": ("mean over init times of f - o", OWN),
    "rmse_map": ("sqrt(mean over init times of (f - o)^2)", OWN),
}


def attributes(name: str) -> dict[str, str]:
    """Formula and units of a score, for the file that holds it."""
    formula, units = DEFINITIONS[name]
    return {"formula": formula, "units": units} if units == PURE else {"formula": formula, "comment": f"in {units}"}


def by_init(pairs: Pairs, weights: xr.DataArray) -> xr.Dataset:
    """Area means [system, init_time]: mse, mae, bias, acc, acc_centred, squared_anomaly, observed_squared_anomaly.

    With them, per init time: `weight`, the sum of the area weights (lat) of the points that count, which `pool` needs;
    `points`, their number; `lost`, the points that only the forecast lacks.
    """
    systems, truth = pairs.systems, pairs.truth
    usual = systems.sel(system="climatology", drop=True)
    anomaly, observed_anomaly = systems - usual, truth - usual
    how = {"preserve_dims": ("system", "init_time"), "weights": weights}
    counts = truth.notnull()
    return xr.Dataset(
        {
            "mse": scores.continuous.mse(systems, truth, **how),
            "mae": scores.continuous.mae(systems, truth, **how),
            "bias": scores.continuous.additive_bias(systems, truth, **how),
            "squared_anomaly": (anomaly**2).weighted(weights).mean(SPACE),
            "observed_squared_anomaly": (observed_anomaly**2).weighted(weights).mean(SPACE),
            "acc": anomaly_correlation(anomaly, observed_anomaly, weights),
            "acc_centred": anomaly_correlation(
                _without_mean(anomaly, weights), _without_mean(observed_anomaly, weights), weights
            ),
            "weight": counts.weighted(weights).sum(SPACE),
            "points": counts.sum(SPACE),
            "lost": pairs.lost,
        }
    )


def anomaly_correlation(
    forecast_anomaly: xr.DataArray, observed_anomaly: xr.DataArray, weights: xr.DataArray
) -> xr.DataArray:
    """Uncentred anomaly correlation per init time; NaN where either anomaly is zero everywhere.

    `scores.continuous.correlation` has no weights and always centres, hence our own.
    Source: WeatherBench 2 (Rasp et al. 2024, J. Adv. Model. Earth Syst.), section on the ACC.
    """
    product = (forecast_anomaly * observed_anomaly).weighted(weights).mean(SPACE)
    forecast_square = (forecast_anomaly**2).weighted(weights).mean(SPACE)
    observed_square = (observed_anomaly**2).weighted(weights).mean(SPACE)
    norm = (forecast_square * observed_square) ** 0.5
    return product / norm.where(norm > 0)


def _without_mean(anomaly: xr.DataArray, weights: xr.DataArray) -> xr.DataArray:
    return anomaly - anomaly.weighted(weights).mean(SPACE)


def by_point(pairs: Pairs) -> xr.Dataset:
    """Means over the init times at each grid point [system, lat, lon]: mse and bias; the number of pairs, `count`."""
    keep = ("system", *SPACE)
    return xr.Dataset(
        {
            "mse": scores.continuous.mse(pairs.systems, pairs.truth, preserve_dims=keep),
            "bias": scores.continuous.additive_bias(pairs.systems, pairs.truth, preserve_dims=keep),
            "count": pairs.truth.notnull().sum("init_time"),
        }
    )


def pool(means: xr.Dataset, weight: xr.DataArray, dim: str) -> xr.Dataset:
    """Mean of means, each with the weight that it was made with; equals the mean over everything at once.

    NaN where the weights add up to zero.
    """
    return means.weighted(weight).mean(dim)


def averaged(area_means: xr.Dataset) -> xr.Dataset:
    """Scores over all init times from area means per init time; the roots are taken here, last."""
    by_area = ["mse", "mae", "bias", "squared_anomaly", "observed_squared_anomaly"]
    means = pool(area_means[by_area], area_means["weight"], "init_time")
    return xr.Dataset(
        {
            "rmse": np.sqrt(means["mse"]),
            "mae": means["mae"],
            "bias": means["bias"],
            "acc": area_means["acc"].mean("init_time"),
            "acc_centred": area_means["acc_centred"].mean("init_time"),
            "activity": np.sqrt(means["squared_anomaly"]),
            "observed_activity": np.sqrt(means["observed_squared_anomaly"]),
            "count": area_means["points"].sum("init_time"),
            "pairs": (area_means["points"] > 0).sum("init_time"),
            "mse_by_init": area_means["mse"],
            "weight_by_init": area_means["weight"],
        }
    )
