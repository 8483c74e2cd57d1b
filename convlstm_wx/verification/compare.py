"""Is one evaluation better than another on the forecasts that both made? "Does the upstream region help?" """

from pathlib import Path

import numpy as np
import xarray as xr

from convlstm_wx.errors import DataError
from convlstm_wx.verification.significance import paired_by_channel
from convlstm_wx.verification.wording import join, lead_label, outcomes, sentence

FORMULAS = {
    "gain": "1 - MSE of A / MSE of B on common pairs; positive: A is better",
    "mse_difference": "MSE of A - MSE of B on common pairs, units of the channel squared; negative: A is better",
}


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


def compare(a: xr.Dataset, b: xr.Dataset, *, confidence: float = 0.95, seed: int = 0) -> xr.Dataset:
    """Paired gain of A over B by channel and lead time, on the channels, lead times and init times of both.

    Pairs count if persistence has the same error in both: then both were scored on the same points against the same
    truth.

    Returns:
        Dataset [channel, lead_time]: gain and mse_difference, each with _low and _high (a paired block bootstrap; NaN
        where too few independent init times allow one), effective_size, block_length, pairs.

    Raises:
        DataError: nothing in common, other units, or no pair that was scored on the same points.
    """
    a, b = _common(a, b)
    same = _scored_alike(a, b)
    pairs = same.sum("init_time")
    if not int(pairs.sum()):
        raise DataError(
            "the two evaluations were scored on different points or truths (persistence differs at every common pair); "
            "evaluate both on the same data and target region"
        )
    gains = paired_by_channel(
        a["mse_by_init"].sel(system="model", drop=True),
        b["mse_by_init"].sel(system="model", drop=True),
        a["weight_by_init"].where(same, 0.0),
        confidence=confidence,
        generator=np.random.default_rng(seed),
    )
    gains = gains.rename({f"skill{part}": f"gain{part}" for part in ("", "_low", "_high")}).assign(pairs=pairs)
    for name, formula in FORMULAS.items():
        gains[name].attrs["formula"] = formula
    gains.attrs = {"confidence": confidence, "seed": seed, "pairs_left_out": int(same.size - pairs.sum())}
    return gains.assign_coords(lead_hours=a["lead_hours"], units=a["units"])


def _common(a: xr.Dataset, b: xr.Dataset) -> tuple[xr.Dataset, xr.Dataset]:
    for dim, what in (("channel", "channels"), ("lead_time", "lead times"), ("init_time", "init times")):
        both = a[dim].values[np.isin(a[dim].values, b[dim].values)]
        if both.size == 0:
            raise DataError(f"the two evaluations have no {what} in common; evaluate both on the same data and months")
        a, b = a.sel({dim: both}), b.sel({dim: both})
    differ = [str(name) for name in a["channel"].values[a["units"].values != b["units"].values]]
    if differ:
        raise DataError(f"the two evaluations have other units for {', '.join(differ)}; evaluate both on the same data")
    return a, b


def _scored_alike(a: xr.Dataset, b: xr.Dataset) -> xr.DataArray:
    """Where persistence has the same error in both [channel, lead_time, init_time]."""
    ours, theirs = (scores["mse_by_init"].sel(system="persistence", drop=True) for scores in (a, b))
    return abs(ours - theirs) <= 1e-6 * ours  # NaN, that is nothing scored, compares as False


def sentences(gains: xr.Dataset) -> list[str]:
    """One plain sentence per channel: when A beats B, and by how much at the first and the last lead time."""
    hours = gains["lead_hours"].values
    lines = []
    for name in gains["channel"].values:
        at = gains.sel(channel=name)
        said = sentence(f"{name}: A", outcomes(at.expand_dims(reference=["B"])), hours)
        percent = np.round(-100 * at["gain"].values, 1) + 0.0  # + 0.0 turns -0.0 into 0.0
        sizes = [f"{percent[lead]:+.1f} % at {lead_label(hours[lead])}" for lead in sorted({0, len(hours) - 1})]
        lines.append(f"{said} MSE against B: {join(sizes)}.")
    return lines
