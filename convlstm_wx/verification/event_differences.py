"""Are events forecast better than by a rival? Differences between scores of counts, with intervals.

Counts are added up over the init times of a resample first, then scores are formed, then their difference is taken.
"""

from functools import partial

import numpy as np
import xarray as xr

from convlstm_wx.verification.events import FRACTIONS
from convlstm_wx.verification.significance import holm, lead_in_spacings, resampled, season_of

SCORES = ("pod", "far", "csi", "ets", "frequency_bias")
PARTS = ("", "_low", "_high")


def differences(counts: xr.Dataset, *, confidence: float, generator: np.random.Generator) -> xr.Dataset:
    """Scores of the model minus those of each rival.

    Args:
        counts: of events.count, with dimensions [channel, lead_time, ...].
        confidence: of the intervals.
        generator: of the resampling.

    Returns:
        [reference, channel, lead_time, threshold]: pod_difference, far_difference, and so on for SCORES;
        [..., window]: fss_difference; each with _low and _high, NaN where too few independent init times, or too few
        with the event, allow an interval; csi_p_value, adjusted across lead times by `holm`.
    """
    init_times, windows = counts["init_time"].values, counts["window"].values
    of_systems, of_truth = counts[["hits", "forecasts", *FRACTIONS]], counts[["events", "valid"]]
    ours = of_systems.sel(system="model", drop=True)
    theirs = of_systems.drop_sel(system="model").rename(system="reference")
    fields = [of_truth["events"], of_truth["valid"]]
    fields += [each[name] for each in (ours, theirs) for name in of_systems]
    dims = [["window", "init_time"] if "window" in field.dims else ["init_time"] for field in fields]
    found = xr.apply_ufunc(
        partial(_of_event, confidence=confidence, generator=generator),
        *fields,
        xr.DataArray(season_of(init_times), dims=("init_time", "wave")),
        lead_in_spacings(counts["lead_time"], init_times),
        input_core_dims=[*dims, ["init_time", "wave"], []],
        output_core_dims=[["figure", "part"]],
        vectorize=True,
    )
    made: dict[str, xr.DataArray] = {}
    for number, part in enumerate(PARTS):
        of_part = found.isel(part=number)
        made |= {f"{name}_difference{part}": of_part.isel(figure=at) for at, name in enumerate(SCORES)}
        fss = of_part.isel(figure=slice(len(SCORES), None)).rename(figure="window")
        made[f"fss_difference{part}"] = fss.assign_coords(window=windows)
    p = found.isel(part=3, figure=SCORES.index("csi")).transpose(..., "lead_time")
    return xr.Dataset(made).assign(csi_p_value=p.copy(data=holm(p.values)))


def _of_event(*given: np.ndarray, confidence: float, generator: np.random.Generator) -> np.ndarray:
    """[figure, 4]: difference, low, high and p of each of SCORES and of the FSS of each window."""
    *fields, season, lead_steps = given
    sums = np.concatenate([np.atleast_2d(field) for field in fields]).T.astype(float)
    found = resampled(sums, _scores_apart, season, float(lead_steps), confidence=confidence, generator=generator)
    return found[:, :4]


def _scores_apart(sums: np.ndarray) -> np.ndarray:
    """From sums [R, events and valid, then of each system hits, forecasts and two fractions per window] to [R, F]."""
    events, valid = sums[:, :1], sums[:, 1:2]
    ours, theirs = np.split(sums[:, 2:], 2, axis=1)
    return _scores(events, valid, ours) - _scores(events, valid, theirs)


def _scores(events: np.ndarray, valid: np.ndarray, of_system: np.ndarray) -> np.ndarray:
    """0/0 is NaN, and so is x/0."""
    hits, forecasts = of_system[:, :1], of_system[:, 1:2]
    apart, reference = np.split(of_system[:, 2:], 2, axis=1)
    either, by_chance = events + forecasts - hits, events * forecasts / np.where(valid > 0, valid, np.nan)
    ratios = [(hits, events), (forecasts - hits, forecasts), (hits, either)]
    ratios += [(hits - by_chance, either - by_chance), (forecasts, events)]
    found = [over / np.where(under > 0, under, np.nan) for over, under in ratios]
    return np.concatenate([*found, 1.0 - apart / np.where(reference > 0, reference, np.nan)], axis=1)
