"""Score a forecast beside its rivals, on exactly the same points."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from convlstm_wx.data.regions import Region, row_weights
from convlstm_wx.dressing import is_dressed
from convlstm_wx.errors import DataError
from convlstm_wx.verification import breakdowns, ensembles, event_differences, events, metrics, spectra
from convlstm_wx.verification.describing import described
from convlstm_wx.verification.events import Threshold
from convlstm_wx.verification.gathering import Measures, Runner, Task, gather, one_by_one
from convlstm_wx.verification.pairs import MEMBER, channels_of, fields_of, match_truth
from convlstm_wx.verification.rivals import learn
from convlstm_wx.verification.significance import limits_by_channel, paired_by_channel

log = logging.getLogger(__name__)

KEPT_BYTES = 512e6  # a truth up to this size is read once and kept; of a larger one each pass reads what it needs
STRETCH_BYTES = 256e6  # of one channel's forecast in one task


def evaluate(
    forecast: xr.Dataset,
    truth: xr.Dataset,
    training_times: np.ndarray,
    *,
    baselines: Sequence[str] | None = None,
    thresholds: Sequence[str] | None = None,
    boxes: Sequence[Region] = (),
    confidence: float = 0.95,
    seed: int = 0,
    runner: Runner = one_by_one,
) -> xr.Dataset:
    """Scores of the forecast ("model") and of its rivals, on exactly the same points.

    A point counts if the truth at the valid time, the forecast, and every rival are all finite. Pairs whose valid or
    init time the truth lacks are left out and counted.

    Args:
        forecast: variables ([realization,] init_time, lead_time, [level,] lat, lon), as data.reading.open_forecast
            gives them; of an ensemble the mean is scored like any forecast, and the members beside it.
        truth: canonical dataset that holds these variables, levels and grid points, and the training times.
        training_times: the times that the rivals may learn from.
        baselines: some of baselines.NAMES; persistence and climatology are always among them; None: all that apply.
        thresholds: of events, as events.parse takes them; None: those usual for each variable.
        boxes: parts of the region to score on their own.
        confidence: of every interval.
        seed: of the bootstrap.
        runner: what works through the tasks, such as a cluster; only lazy data are then sent as what to read.

    Returns:
        Dataset; units are those of the channel (coordinate `units`) unless a variable says otherwise:
        [system, channel, lead_time]: rmse, rmse_low, rmse_high, mae, bias, acc, acc_centred, activity
        [channel, lead_time]: observed_activity, count (points), pairs (init times)
        [reference, channel, lead_time]: skill, mse_difference, each with _low and _high; p_value, effective_size,
            block_length
        [system, channel, lead_time, init_time]: mse_by_init; [channel, lead_time, init_time]: weight_by_init
        [system, channel, lead_time, lat, lon]: bias_map, rmse_map
        [..., month | season | hour]: rmse_by_month, bias_by_month, pairs_by_month, and so on
        [..., box]: rmse_by_box, bias_by_box, acc_by_box; [reference, ..., box]: skill_by_box with _low and _high
        [system, channel, lead_time, threshold]: pod, far, csi, ets, hss, frequency_bias, hits, misses, false_alarms,
            correct_negatives; [..., window]: fss
        [reference, channel, lead_time, threshold]: csi_difference and so on, see event_differences.differences
        [channel, lead_time, wavelength]: power, observed_power
        [system, wind, lead_time]: wind_rmse, of vectors; [reference, wind, lead_time]: wind_skill with _low and _high
        of an ensemble [channel, lead_time]: crps, crps_low, crps_high, spread; of the linear inverse model's normal
            distribution crps_linear_inverse_model, and beside it crps_skill with _low and _high and crps_p_value;
            [..., rank]: rank_histogram; [..., threshold]: brier; [..., threshold, probability]: reliability,
            probability_count
        The formula of each stands in its attributes, the method in those of the dataset.

    Raises:
        DataError: the truth lacks a variable, level or grid point of the forecast, or has other units; training is
            not in the truth, or too short for a baseline that was asked for; a box holds no point; nothing is valid.
        ConfigError: thresholds that cannot be understood.
    """
    truth = match_truth(forecast, truth)
    if runner is one_by_one and truth.nbytes <= KEPT_BYTES:
        truth = truth.load()
    if forecast.sizes.get(MEMBER) == 1:
        forecast = forecast.isel({MEMBER: 0}, drop=True)
    channels = channels_of(forecast)
    asked = events.parse(thresholds, channels)
    areas = {breakdowns.box_name(box): breakdowns.places_in(forecast, box) for box in boxes}
    weights, rings = row_weights(forecast), spectra.Rings.of(forecast)
    rivals = learn(forecast, truth, channels, training_times, baselines, weights)
    limits: dict[str, list[Threshold]] = {}
    tasks: list[Task] = []
    # Errors that sum to zero are not drawn independently: a fair score would flatter.
    crps_method = "ecdf" if is_dressed(forecast.attrs) else "fair"
    for channel in channels:
        record, name = rivals.records[channel.name], channel.name
        limits[name] = events.thresholds_of(channel, record, rivals.training, asked)
        spread = rivals.spread(name) if MEMBER in forecast.dims else None
        measures = Measures(xr.DataArray(weights, dims="lat"), limits[name], areas, rings, spread, crps_method)
        whole = Task(name, fields_of(forecast, channel), record, rivals.of(name), measures)
        tasks += whole.stretches(STRETCH_BYTES)
    statistics = gather(tasks, runner)
    _check_points(statistics["means"], forecast, truth)
    means = statistics["means"]
    drawn: dict[str, Any] = {"confidence": confidence, "generator": np.random.default_rng(seed)}
    parts = [
        metrics.averaged(means),
        _intervals(means, drawn),
        _maps(statistics["maps"]),
        breakdowns.by_period(means),
        events.scores_of(events.pooled(statistics["events"])),
        event_differences.differences(statistics["events"], **drawn),
    ]
    if rings is not None:
        parts.append(spectra.averaged(statistics["spectra"], rings))
    wind = breakdowns.wind_of(means, channels, {str(name): truth[name].attrs for name in truth})
    if wind is not None:
        parts.append(_wind_scores(wind, drawn))
    if areas:
        parts.append(_box_scores({name: statistics[f"in {name}"] for name in areas}, drawn))
    if "ensemble" in statistics:
        parts.append(_ensemble_scores(means, statistics["ensemble"], forecast.sizes[MEMBER], crps_method, drawn))
    scores = xr.merge(parts).assign_coords(events.coordinates(limits))
    said: dict[str, float | str] = {"confidence": confidence, "seed": seed}
    if "crps" in scores:
        said["crps_method"] = crps_method
    return described(scores, forecast, truth, rivals.descriptions(), said)


def _check_points(means: xr.Dataset, forecast: xr.Dataset, truth: xr.Dataset) -> None:
    """An error where nothing is left to score; loud where forecasts are missing that could have been scored."""
    points, lost = int(means["points"].sum()), int(means["lost"].sum())
    if points == 0:
        spans = [np.datetime_as_string(times.values[[0, -1]], unit="m") for times in (forecast.init_time, truth.time)]
        raise DataError(
            f"nothing to score: no point has a valid forecast, truth, persistence and climatology; forecasts start "
            f"{spans[0][0]} to {spans[0][1]}, the truth covers {spans[1][0]} to {spans[1][1]}. Give data that covers "
            "the init and valid times."
        )
    if lost:
        share = 100 * lost / (points + lost)
        log.warning("the forecast is missing at %.2g %% of the points where the truth is valid; left out", share)


def _intervals(means: xr.Dataset, drawn: Mapping) -> xr.Dataset:
    """Bootstrap over the init times: limits of each RMSE, and the model against each reference."""
    limits = limits_by_channel(means["mse"], means["weight"], **drawn).clip(min=0.0) ** 0.5
    against = _against_references(means, drawn)
    return against.assign(rmse_low=limits.isel(limit=1), rmse_high=limits.isel(limit=2))


def _against_references(means: xr.Dataset, drawn: Mapping) -> xr.Dataset:
    """Differences between the model and each rival, with intervals."""
    mse = means["mse"]
    rivals = mse.drop_sel(system="model").rename(system="reference")
    return paired_by_channel(mse.sel(system="model", drop=True), rivals, means["weight"], **drawn)


def _maps(maps: xr.Dataset) -> xr.Dataset:
    return xr.Dataset({"bias_map": maps["bias"], "rmse_map": np.sqrt(maps["mse"])})


def _box_scores(in_boxes: Mapping[str, xr.Dataset], drawn: Mapping) -> xr.Dataset:
    parts = []
    for means in in_boxes.values():
        own = metrics.averaged(means)[["rmse", "bias", "acc", "pairs"]]
        against = _against_references(means, drawn)[["skill", "skill_low", "skill_high"]]
        parts.append(own.merge(against))
    found = xr.concat(parts, xr.Variable("box", list(in_boxes)))
    return found.rename({str(name): f"{name}_by_box" for name in found.data_vars})


def _wind_scores(wind: xr.Dataset, drawn: Mapping) -> xr.Dataset:
    against = _against_references(wind, drawn)[["skill", "skill_low", "skill_high"]]
    mse = metrics.pool(wind[["mse"]], wind["weight"], "init_time")["mse"]
    return against.rename({str(name): f"wind_{name}" for name in against}).assign(wind_rmse=np.sqrt(mse))


def _ensemble_scores(means: xr.Dataset, summed: xr.Dataset, size: int, method: str, drawn: Mapping) -> xr.Dataset:
    limits = limits_by_channel(means["crps"], means["weight"], **drawn)
    found = ensembles.averaged(means, summed, size, method)
    found = found.assign(crps_low=limits.isel(limit=1), crps_high=limits.isel(limit=2))
    if ensembles.LINEAR_CRPS not in means:
        return found
    against = paired_by_channel(means["crps"], means[ensembles.LINEAR_CRPS], means["weight"], **drawn)
    return found.assign({f"crps_{name}": against[name] for name in ("skill", "skill_low", "skill_high", "p_value")})
