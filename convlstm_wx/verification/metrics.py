"""The scores of forecast fields against the observed ones, equal to those of the `scores` library.

Fields have dims ([system,] init_time, lat, lon); NaN means "does not count". Means over space are weighted by area, and
a mean with missing points is divided by the weights of the valid ones. The statistic is kept per init time (`by_init`)
and per grid point (`by_point`), and averaged further with `pool`; roots are taken last (`averaged`). Sums over points
are matrix products, because a year of forecasts has 10^8 of them. Shapes: S systems, N init times, P points.
"""

import numpy as np
import xarray as xr

from convlstm_wx.verification.pairs import Pairs

SPACE = ("lat", "lon")

OWN, SQUARED, PURE = "units of the channel", "square of the units of the channel", "1"
LIMIT = "limit of the confidence interval; NaN where too few independent init times allow one"
# H hits, M misses, F false alarms, R correct negatives, n their sum
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
    "p_value": (
        "probability that chance alone makes a skill this far from 0; adjusted across the lead times of a channel "
        "[Holm 1979]",
        PURE,
    ),
    "effective_size": ("independent init times that the paired differences are worth", PURE),
    "block_length": ("length of the bootstrap's blocks, in init times", PURE),
    "mse_by_init": ("area mean of (f - o)^2 per init time", SQUARED),
    "weight_by_init": ("sum of w over the scored points per init time", PURE),
    "bias_map": ("mean over init times of f - o", OWN),
    "rmse_map": ("sqrt(mean over init times of (f - o)^2)", OWN),
    "wind_rmse": ("sqrt(mean(w (eu^2 + ev^2))), e the errors of both components", "units of the wind"),
    "wind_skill": ("1 - MSE / MSE of the reference, of wind vectors", PURE),
    "wind_skill_low": (LIMIT, PURE),
    "wind_skill_high": (LIMIT, PURE),
    "hits": ("points with an event that was forecast", PURE),
    "misses": ("points with an event that was not forecast", PURE),
    "false_alarms": ("points without the event that was forecast", PURE),
    "correct_negatives": ("points without the event, as forecast", PURE),
    "pod": ("probability of detection, H / (H + M)", PURE),
    "far": ("false alarm ratio, F / (H + F)", PURE),
    "csi": ("critical success index, H / (H + M + F)", PURE),
    "ets": ("equitable threat score, (H - Hr) / (H + M + F - Hr), Hr = (H + F) (H + M) / n", PURE),
    "hss": ("Heidke skill score, 2 (H R - F M) / [(H + M) (M + R) + (H + F) (F + R)]", PURE),
    "frequency_bias": ("(H + F) / (H + M); above 1: forecast too often", PURE),
    "fss": (
        "fractions skill score, 1 - sum (Pf - Po)^2 / (sum Pf^2 + sum Po^2), P the share of a window's points with the "
        "event; windows inside the region, sums over init times before dividing",
        PURE,
    ),
    **{
        f"{name}_difference{part}": (text, PURE)
        for name in ("pod", "far", "csi", "ets", "frequency_bias", "fss")
        for part, text in (
            ("", f"{name} of the model - {name} of the reference; counts are added up over init times first"),
            ("_low", LIMIT),
            ("_high", LIMIT),
        )
    },
    "csi_p_value": ("probability that chance alone makes a csi_difference this far from 0; as p_value", PURE),
    "power": ("variance of the forecast per ring of wavenumbers (cosine transform), mean over whole fields", SQUARED),
    "observed_power": ("variance of the truth per ring of wavenumbers, mean over the same fields", SQUARED),
    "power_fields": ("fields without a missing value, of which the spectra are", PURE),
    "crps": (
        "mean(w (mean_i abs(x_i - o) - sum_ij abs(x_i - x_j) / (2 M (M - 1)))), x the M members; fair. Where "
        "crps_method is ecdf, as the members are not drawn independently, M^2 in place of M (M - 1)",
        OWN,
    ),
    "crps_linear_inverse_model": (
        "CRPS of normal distributions about the linear inverse model's forecast; their standard deviation, by point, "
        "is that of its errors in training, enlarged as cross-validation there tells",
        OWN,
    ),
    "crps_skill": ("1 - crps / crps_linear_inverse_model", PURE),
    "crps_skill_low": (LIMIT, PURE),
    "crps_skill_high": (LIMIT, PURE),
    "crps_p_value": ("probability that chance alone makes a crps_skill this far from 0; as p_value", PURE),
    "crps_low": (LIMIT, OWN),
    "crps_high": (LIMIT, OWN),
    "spread": (
        "sqrt((M + 1) / M mean(w variance of the members)); of a perfect ensemble equal to the RMSE. Without "
        "(M + 1) / M where crps_method is ecdf",
        OWN,
    ),
    "rank_histogram": ("share of the truths with this rank among the members; ties are shared; flat if reliable", PURE),
    "reliability": ("share of events where this probability (rounded to tenths) was forecast", PURE),
    "probability_count": ("points where this probability was forecast", PURE),
    "brier": ("Brier score, mean of (forecast probability - event)^2", PURE),
}


def attributes(name: str) -> dict[str, str]:
    """Formula and units of a score, for the file that holds it."""
    whole, part = _parts(name)
    formula, units = DEFINITIONS[whole]
    if part:
        formula += f"; by {part}" if part in ("box", "hour") else f"; by {part} of the valid time"
    return {"formula": formula, "units": units} if units == PURE else {"formula": formula, "comment": f"in {units}"}


def power_of_units(name: str) -> int:
    """How often the units of the channel are a factor of the score's: 1 for an RMSE, 2 for an MSE, else 0."""
    return {OWN: 1, SQUARED: 2}.get(DEFINITIONS[_parts(name)[0]][1], 0)


def _parts(name: str) -> tuple[str, str]:
    """ "rmse_by_month" is the "rmse" by "month"."""
    if name in DEFINITIONS:
        return name, ""
    whole, _, part = name.partition("_by_")
    return whole, part


def by_init(pairs: Pairs, weights: xr.DataArray) -> xr.Dataset:
    """Area means [system, init_time]: mse, mae, bias, acc, acc_centred, squared_anomaly, observed_squared_anomaly.

    With them, per init time: `weight`, the sum of the area weights (lat) of the points that count, which `pool` needs;
    `points`, their number; `lost`, the points that only the forecast lacks.
    """
    systems_SNP, truth_NP, usual_NP = (_flat(field) for field in (pairs.systems, pairs.truth, pairs.usual))
    area_P = np.repeat(weights.values, pairs.truth.sizes["lon"])
    valid_NP = np.isfinite(truth_NP)
    area_N = valid_NP @ area_P
    area_N[area_N == 0] = np.nan

    def mean(fields: np.ndarray) -> np.ndarray:
        """Over the valid points; the others hold 0."""
        return fields @ area_P / area_N

    error_SNP = _zero_outside(systems_SNP - truth_NP, valid_NP)
    given_SNP = _zero_outside(systems_SNP - usual_NP, valid_NP)
    seen_NP = _zero_outside(truth_NP - usual_NP, valid_NP)
    product, given, seen = mean(given_SNP * seen_NP), mean(given_SNP**2), mean(seen_NP**2)
    given_mean, seen_mean = mean(given_SNP), mean(seen_NP)
    of_system, of_truth = ("system", "init_time"), ("init_time",)
    found = {
        "mse": (of_system, mean(error_SNP**2)),
        "mae": (of_system, mean(np.abs(error_SNP))),
        "bias": (of_system, mean(error_SNP)),
        "squared_anomaly": (of_system, given),
        "observed_squared_anomaly": (of_truth, seen),
        "acc": (of_system, _correlation(product, given, seen)),
        "acc_centred": (
            of_system,
            _correlation(
                product - given_mean * seen_mean,
                _variance(given, given_mean),
                _variance(seen, seen_mean),
            ),
        ),
        "weight": (of_truth, np.nan_to_num(area_N)),
        "points": (of_truth, valid_NP.sum(axis=1)),
        "lost": (of_truth, pairs.lost.values),
    }
    coords = {name: pairs.systems[name] for name in of_system if name in pairs.systems.coords}
    return xr.Dataset(found, coords)


def _flat(fields: xr.DataArray) -> np.ndarray:
    """The points of each field in one row [..., P]."""
    return fields.values.reshape(*fields.shape[:-2], -1)


def _zero_outside(fields: np.ndarray, valid: np.ndarray) -> np.ndarray:
    if not valid.all():
        fields[..., ~valid] = 0.0
    return fields


def _variance(square: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Mean square without the mean; 0 where nothing but rounding is left."""
    rest = square - mean**2
    return np.where(rest > 1e-13 * square, rest, 0.0)


def _correlation(product: np.ndarray, given: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Mean product over the root of the mean squares; NaN where one of those is zero."""
    norm = np.sqrt(given * seen)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(norm > 0, product / norm, np.nan)


def by_point(pairs: Pairs) -> xr.Dataset:
    """Means over the init times at each grid point [system, lat, lon]: mse and bias; the number of pairs, `count`."""
    error = pairs.systems.values - pairs.truth.values
    valid = np.isfinite(pairs.truth.values)
    if not valid.all():
        error[:, ~valid] = 0.0
    count = valid.sum(axis=0)
    dims, divisor = ("system", *SPACE), np.where(count > 0, count, np.nan)
    found = {
        "mse": (dims, np.einsum("snhw,snhw->shw", error, error) / divisor),
        "bias": (dims, error.sum(axis=1) / divisor),
        "count": (SPACE, count),
    }
    return xr.Dataset(found, {name: pairs.systems[name] for name in dims if name in pairs.systems.coords})


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
