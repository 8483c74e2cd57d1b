"""Is forecast B better than forecast A on the pairs that both made? "Does the upstream region help?" """

import itertools
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import xarray as xr

from convlstm_wx.errors import DataError
from convlstm_wx.verification.pairing import differences
from convlstm_wx.verification.significance import MIN_BLOCKS, RESAMPLES, paired_by_channel
from convlstm_wx.verification.where import discoveries
from convlstm_wx.verification.wording import lead_label, span

log = logging.getLogger(__name__)

FORMULAS = {
    "gain": "1 - MSE of B / MSE of A on common pairs; positive: B is better",
    "mse_difference": "MSE of B - MSE of A on common pairs, units of the channel squared; negative: B is better",
    "p_value": "probability that chance alone makes a gain this far from 0, adjusted across lead times [Holm 1979]",
    "mse_a": "MSE of A on common pairs, units of the channel squared",
    "mse_b": "MSE of B on common pairs, units of the channel squared",
    "gain_by_month": "as gain; by month of the valid time",
    "gain_by_run": "as gain; of each pair of runs alone",
    "gain_map": "1 - MSE of B / MSE of A at the point, over all init times",
    "significant_map": "points that count at the false discovery rate 1 - confidence [Benjamini and Hochberg 1995]",
}
INTERVALS = (
    f"paired circular block bootstrap over init times, {RESAMPLES} resamples; no interval where fewer than "
    f"{MIN_BLOCKS} blocks fit, that is with too few independent init times; a difference counts if the p-value of the "
    "gain, adjusted across the lead times of a channel by Holm's method, is at most 1 - confidence"
)


def open_scores(path: Path) -> xr.Dataset:
    """Scores that evaluate wrote: scores.nc, or the folder that holds it.

    Raises:
        DataError: if there is no such file or it holds no scores.
    """
    file = path / "scores.nc" if path.is_dir() else path
    try:
        with xr.open_dataset(file, decode_timedelta=True) as scores:
            scores = scores.load()
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: cannot be read as scores; give scores.nc of convlstm-wx evaluate") from error
    if "mse_by_init" not in scores:
        raise DataError(f"{file}: holds no mse_by_init; give scores.nc of convlstm-wx evaluate")
    return scores


def errors_of_scores(a: xr.Dataset, b: xr.Dataset) -> xr.Dataset:
    """Errors of two evaluations, as `compare` takes them, on the channels, lead times and init times of both.

    Pairs count if persistence has the same error in both: then both were scored on the same points against the same
    truth. Others are left out, with a warning. Maps cannot be made: scores keep no errors by point and init time.

    Raises:
        DataError: another grid or other units, nothing in common, or no pair that was scored on the same points.
    """
    pairs = [scores.sizes["init_time"] * scores.sizes["lead_time"] for scores in (a, b)]
    a, b = _common(a, b)
    ours, theirs = (scores["mse_by_init"].sel(system="persistence", drop=True) for scores in (a, b))
    same = abs(ours - theirs) <= 1e-6 * ours  # NaN, that is nothing scored, compares as False
    if not same.any():
        raise DataError(
            "the two evaluations were scored on different points or truths (persistence differs at every common pair); "
            "evaluate both on the same data and target region"
        )
    apart = int((~same & (ours.notnull() | theirs.notnull())).any("channel").sum())
    if apart:
        log.warning(
            "%d of %d common pairs left out for some channel, as A and B were scored on different points (missing "
            "values, or other rivals); evaluate both with the same --data and --baselines",
            apart,
            same.isel(channel=0).size,
        )
    mse = [scores["mse_by_init"].sel(system="model", drop=True).expand_dims("run") for scores in (a, b)]
    weight = a["weight_by_init"].where(same, 0.0)
    errors = xr.Dataset({"mse_a": mse[0], "mse_b": mse[1], "weight": weight})
    errors = errors.assign_coords(lead_hours=a["lead_hours"], units=a["units"])
    return errors.assign_attrs(pairs_a=pairs[0], pairs_b=pairs[1])


def _common(a: xr.Dataset, b: xr.Dataset) -> tuple[xr.Dataset, xr.Dataset]:
    if all(name in scores.coords for scores in (a, b) for name in ("lat", "lon")):
        differ = differences(a[["lat", "lon"]], b[["lat", "lon"]])
        if differ:
            raise DataError(
                f"the two evaluations are of other grids: {'; '.join(differ)}; give the two "
                "checkpoints and --data, which compares them at the points that both have"
            )
    for dim, what in (("channel", "channels"), ("lead_time", "lead times"), ("init_time", "init times")):
        both = a[dim].values[np.isin(a[dim].values, b[dim].values)]
        if both.size == 0:
            raise DataError(f"the two evaluations have no {what} in common; evaluate both on the same data and months")
        a, b = a.sel({dim: both}), b.sel({dim: both})
    units = zip(a["channel"].values, a["units"].values, b["units"].values)
    differ = [f"{name} in {theirs} instead of {ours}" for name, ours, theirs in units if ours != theirs]
    if differ:
        raise DataError(f"the two evaluations have other units: {', '.join(differ)}; evaluate both on the same data")
    return a, b


def compare(errors: xr.Dataset, *, confidence: float = 0.95, seed: int = 0) -> xr.Dataset:
    """Paired gain of B over A.

    Args:
        errors: of `errors_of_scores` or pairing.errors_of_forecasts.
        confidence: of the intervals; 1 less it is the false discovery rate of the maps.
        seed: of the resampling.

    Returns:
        Dataset [channel, lead_time]: gain and mse_difference, each with _low and _high (NaN where too few independent
        init times allow one), p_value (across lead times), mse_a, mse_b, effective_size, block_length, pairs; [month,
        channel, lead_time]:
        gain_by_month with _low and _high, pairs_by_month; of several runs gain_by_run [run, channel, lead_time]; if the
        errors have maps, gain_map and significant_map [channel, lead_time, lat, lon].
    """
    mse_a, mse_b, weight = errors["mse_a"].mean("run"), errors["mse_b"].mean("run"), errors["weight"]
    drawn = {"confidence": confidence, "generator": np.random.default_rng(seed)}
    means = errors[["mse_a", "mse_b"]].weighted(weight).mean("init_time")
    found = _gain(mse_a, mse_b, weight, drawn).assign(means.mean("run"))
    month = (errors["init_time"] + errors["lead_time"]).dt.month
    there = np.unique(month.values)
    in_month = weight.where(month == xr.DataArray(there, dims="month", coords={"month": there}), 0.0)
    by_month = _gain(mse_a, mse_b, in_month, drawn)[["gain", "gain_low", "gain_high", "pairs"]]
    found = found.merge(by_month.rename({str(name): f"{name}_by_month" for name in by_month}))
    found = found.rename({f"gain_{end}_by_month": f"gain_by_month_{end}" for end in ("low", "high")})
    if errors.sizes["run"] > 1:
        found["gain_by_run"] = 1.0 - means["mse_b"] / means["mse_a"]
    if "p_value" in errors:
        with np.errstate(invalid="ignore", divide="ignore"):
            found["gain_map"] = 1.0 - errors["mse_map_b"] / errors["mse_map_a"]
        found["significant_map"] = xr.apply_ufunc(
            lambda p: discoveries(p, 1.0 - confidence),
            errors["p_value"],
            input_core_dims=[["lat", "lon"]],
            output_core_dims=[["lat", "lon"]],
            vectorize=True,
        )
    for name, formula in FORMULAS.items():
        if name in found:
            found[name].attrs["formula"] = formula
    dims = ("month", "run", "channel", "lead_time", "lat", "lon")
    found = found.transpose(*dims, missing_dims="ignore").assign_coords(
        lead_hours=errors["lead_hours"], units=errors["units"]
    )
    times = np.datetime_as_string(errors["init_time"].values[[0, -1]], unit="m")
    return found.assign_attrs(
        errors.attrs,
        confidence=confidence,
        seed=seed,
        runs=errors.sizes["run"],
        pairs_common=int((weight > 0).any("channel").sum()),
        init_times_common=errors.sizes["init_time"],
        first_init_time=times[0],
        last_init_time=times[1],
        intervals=INTERVALS,
    )


def _gain(mse_a: xr.DataArray, mse_b: xr.DataArray, weight: xr.DataArray, drawn: dict) -> xr.Dataset:
    found = paired_by_channel(mse_b, mse_a, weight, **drawn)
    found = found.rename({f"skill{part}": f"gain{part}" for part in ("", "_low", "_high")})
    return found.assign(pairs=(weight > 0).sum("init_time"))


# In words


def outcome(gain: float, difference: float, p: float, *, level: float) -> str:
    """What a gain, an MSE difference (B minus A) and a p-value say of B."""
    if np.isnan(difference):
        return "unscored"
    if difference == 0 and (np.isnan(p) or p == 1):
        return "equal"
    if np.isnan(p):
        return "smaller" if difference < 0 else "larger"
    if p > level + 1e-12:
        return "same"
    return "better" if gain > 0 else "worse"


def outcomes(gains: xr.Dataset) -> list[str]:
    """By lead time of one channel."""
    figures = [gains[name].values for name in ("gain", "mse_difference", "p_value")]
    return [outcome(*found, level=1.0 - gains.attrs["confidence"]) for found in zip(*figures)]


SAID = {
    "better": "{b} is better",
    "worse": "{b} is worse",
    "same": "no significant difference",
    "equal": "{b} makes the same errors as {a}",
    "smaller": "{b} has smaller errors, untested for want of independent init times,",
    "larger": "{b} has larger errors, untested for want of independent init times,",
    "unscored": "nothing to compare",
}


def sentences(gains: xr.Dataset, names: tuple[str, str] = ("A", "B")) -> list[str]:
    """One sentence per channel: "msl: B is better at +24 h by 6.3 % (4.1 to 8.6); no significant difference ..."."""
    return [_sentence(gains.sel(channel=name), names) for name in gains["channel"].values]


def _sentence(gains: xr.Dataset, names: tuple[str, str]) -> str:
    hours, found = gains["lead_hours"].values, outcomes(gains)
    clauses = []
    for what, group in itertools.groupby(range(len(found)), key=found.__getitem__):
        places = list(group)
        said = SAID[what].format(a=names[0], b=names[1])
        clauses.append(f"{said} {span(places[0], places[-1], len(found) - 1, hours)}")
        if what in ("better", "worse", "smaller", "larger"):
            clauses[-1] += _sizes(gains, places, hours)
    return f"{gains['channel'].item()}: {'; '.join(clauses)}."


def _sizes(gains: xr.Dataset, places: list[int], hours: np.ndarray) -> str:
    """ " by 6.3 % (4.1 to 8.6)", of several lead times at the first and the last."""
    if len(places) == 1:
        return f" by {size(gains.isel(lead_time=places[0]))}"
    ends = (f"{size(gains.isel(lead_time=at))} at {lead_label(hours[at])}" for at in (places[0], places[-1]))
    return f", by {' and '.join(ends)}"


def size(gains: xr.Dataset) -> str:
    """ "6.3 % (4.1 to 8.6)": how much smaller, or larger, the MSE of B is; without an interval where there is none."""
    best, low, high = (100.0 * float(gains[f"gain{part}"]) for part in ("", "_low", "_high"))
    if best < 0:
        best, low, high = -best, -high, -low
    return f"{percent(best)} %" + (f" ({percent(low)} to {percent(high)})" if np.isfinite(low) else "")


def percent(value: float) -> str:
    """With one decimal, or where that would be 0 with one digit that is not."""
    return f"{value:.1f}" if abs(value) >= 0.05 else f"{value:.1g}"


def agreement(gains: xr.Dataset, names: tuple[str, str] = ("A", "B")) -> Iterator[str]:
    """Of several runs: whether each pair of them alone says the same as all together."""
    if "gain_by_run" not in gains:
        return
    for name in gains["channel"].values:
        of_run = 100.0 * gains.sel(channel=name)["gain_by_run"].mean("lead_time").values
        each = ", ".join(f"{percent(value)} %" for value in of_run)
        better = int((of_run > 0).sum())
        yield (
            f"{name}: {names[1]} has the smaller error in {better} of {of_run.size} pairs of runs; gains in the mean "
            f"over lead times {each}."
        )
