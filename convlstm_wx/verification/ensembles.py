"""Scores of an ensemble: is it sharp, is it reliable, does its spread tell how large the error will be?

Members have dims (realization, init_time, lat, lon); NaN means "does not count". Counts and sums can be added up over
blocks of init times, roots and ratios are taken last.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import scores.probability
import xarray as xr
from scipy.special import ndtr

from convlstm_wx.verification.events import Threshold
from convlstm_wx.verification.metrics import SPACE
from convlstm_wx.verification.pairs import MEMBER, Pairs

LINEAR_CRPS = "crps_linear_inverse_model"
PROBABILITIES = np.linspace(0.0, 1.0, 11)


def by_init(
    pairs: Pairs,
    weights: xr.DataArray,
    linear_spread: Mapping[np.timedelta64, np.ndarray] | None = None,
    method: str = "fair",
) -> xr.Dataset:
    """Area means per init time: the CRPS and the members' variance.

    Args:
        method: "fair" [Ferro 2014, Q. J. R. Meteorol. Soc.] for members that are drawn independently, or "ecdf" for
            others, which takes the ensemble as it is.
        linear_spread: standard deviation [H, W] of the linear inverse model's errors by lead time; if given, the CRPS
            of the normal distribution that it makes with that model's forecast is among the means.
    """
    members = pairs.members
    assert members is not None
    crps = scores.probability.crps_for_ensemble(
        members, pairs.truth, MEMBER, method=method, preserve_dims="init_time", weights=weights
    )
    variance = members.var(MEMBER, ddof=1, skipna=False).weighted(weights).mean(SPACE)
    found = xr.Dataset({"crps": crps, "variance": variance})
    if linear_spread is None:
        return found
    linear = pairs.systems.sel(system="linear_inverse_model", drop=True)
    spread = linear_spread[np.timedelta64(pairs.truth["lead_time"].item(), "ns")]
    means = normal_crps(linear - pairs.truth, spread).weighted(weights).mean(SPACE)
    return found.assign({LINEAR_CRPS: means})


def normal_crps(error: xr.DataArray, spread: np.ndarray) -> xr.DataArray:
    """CRPS of normal distributions [Gneiting et al. 2005, Mon. Wea. Rev., eq. 5] whose means have this error."""
    scale = np.maximum(spread, 1e-9 * max(float(abs(error).max()), 1e-9))  # without spread it is the absolute error
    z = error / scale
    density = np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi)
    return scale * (z * (2 * ndtr(z) - 1) + 2 * density - 1 / np.sqrt(np.pi))


def sums(pairs: Pairs, thresholds: Sequence[Threshold]) -> xr.Dataset:
    """Counts of the truth's rank among the members [rank], and of forecasts and events by forecast probability."""
    assert pairs.members is not None
    members, truth, usual = pairs.members.values, pairs.truth.values, pairs.usual.values
    valid = np.isfinite(truth)
    forecasts, events = np.zeros((2, len(thresholds), PROBABILITIES.size))
    squares = np.zeros(len(thresholds))
    for row, threshold in enumerate(thresholds):
        probability = threshold.reached(members, usual).mean(axis=0)[valid]
        happened = threshold.reached(truth, usual)[valid]
        places = np.round(probability * (PROBABILITIES.size - 1)).astype(int)
        forecasts[row] = np.bincount(places, minlength=PROBABILITIES.size)
        events[row] = np.bincount(places, happened, minlength=PROBABILITIES.size)
        squares[row] = ((probability - happened) ** 2).sum()
    where = ("threshold", "probability")
    return xr.Dataset(
        {
            "rank_count": ("rank", _ranks(members[:, valid], truth[valid])),
            "probability_count": (where, forecasts),
            "probability_events": (where, events),
            "probability_squares": ("threshold", squares),
        },
        {"rank": np.arange(1, len(members) + 2), "probability": PROBABILITIES},
    )


def _ranks(members: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """How often the truth [P] has each rank among the members [M, P]; where it equals some, they share it."""
    below, equal = (members < truth).sum(axis=0), (members == truth).sum(axis=0)
    # A share of 1 / (equal + 1) from rank `below` to rank `below + equal`: added where it begins, taken off after it.
    edges = np.zeros(len(members) + 2)
    share = 1.0 / (equal + 1)
    np.add.at(edges, below, share)
    np.subtract.at(edges, below + equal + 1, share)
    return edges.cumsum()[:-1]


def averaged(by_init: xr.Dataset, summed: xr.Dataset, ensemble_size: int, method: str = "fair") -> xr.Dataset:
    """crps, spread, rank_histogram, reliability and brier, from area means per init time and from sums.

    Spread is comparable with the RMSE of the mean: of a perfect ensemble both are equal [Fortin et al. 2014, J.
    Hydrometeorol.], hence the factor (M + 1) / M; not where members were made around their mean (method "ecdf" of
    `by_init`).
    """
    more = (ensemble_size + 1) / ensemble_size if method == "fair" else 1.0
    names = [name for name in ("crps", "variance", LINEAR_CRPS) if name in by_init]
    means = by_init[names].weighted(by_init["weight"]).mean("init_time")
    count = summed["probability_count"]
    total = count.sum("probability")
    return means.drop_vars("variance").assign(
        {
            "spread": np.sqrt(means["variance"] * more),
            "rank_histogram": summed["rank_count"] / summed["rank_count"].sum("rank"),
            "reliability": summed["probability_events"] / count.where(count > 0),
            "probability_count": count,
            "brier": summed["probability_squares"] / total.where(total > 0),
        }
    )
