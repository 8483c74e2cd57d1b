"""Score a forecast beside persistence and climatology, and tell what came out: table, sentences, files."""

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import xarray as xr

from convlstm_wx.conventions import normalise_units, recognise
from convlstm_wx.data.reading import is_projected
from convlstm_wx.data.regions import row_weights
from convlstm_wx.errors import DataError
from convlstm_wx.files import replacing
from convlstm_wx.verification import metrics
from convlstm_wx.verification.baselines import Climatology, fit_climatology
from convlstm_wx.verification.pairs import channels_of, fields_of, match_truth, pairs_of
from convlstm_wx.verification.significance import MIN_BLOCKS, RESAMPLES, limits_by_channel, paired_by_channel
from convlstm_wx.verification.wording import lead_label, outcomes, sentence

log = logging.getLogger(__name__)

REFERENCES = ("persistence", "climatology")
_MOST_DECIMALS = 6  # of the table: with more, columns touch, and nobody counts the zeros
TABLE_LEADS = 10
BY_AREA = "w: sin(upper edge) - sin(lower edge) of the row, edges midway between rows, mean 1 over the region"
EQUAL = "w: 1 for every grid point; the cells of a projected grid are taken as equal in area"


def evaluate(
    forecast: xr.Dataset,
    truth: xr.Dataset,
    training_times: np.ndarray,
    *,
    confidence: float = 0.95,
    seed: int = 0,
) -> xr.Dataset:
    """Scores of the forecast ("model"), of persistence and of climatology, on exactly the same points.

    A point counts if the truth at the valid time, the forecast, the truth at the init time (persistence) and the
    climatology are all finite. Pairs whose valid or init time the truth lacks are left out and counted.

    Args:
        forecast: variables (init_time, lead_time, [level,] lat, lon), as data.reading.open_forecast gives them.
        truth: canonical dataset that holds these variables, levels and grid points, and the training times.
        training_times: the times that the climatology may use.
        confidence: of every interval.
        seed: of the bootstrap.

    Returns:
        Dataset; units are those of the channel (coordinate `units`) unless a variable says otherwise:
        [system, channel, lead_time]: rmse, rmse_low, rmse_high, mae, bias, acc, acc_centred, activity
        [channel, lead_time]: observed_activity, count (points), pairs (init times)
        [reference, channel, lead_time]: skill, mse_difference, each with _low and _high; effective_size, block_length
        [system, channel, lead_time, init_time]: mse_by_init; [channel, lead_time, init_time]: weight_by_init
        [system, channel, lead_time, lat, lon]: bias_map, rmse_map
        The formula of each stands in its attributes, the method in those of the dataset.

    Raises:
        DataError: the truth lacks a variable, level or grid point of the forecast, or has other units; no training
            time is in the truth; nothing is valid.
    """
    truth = match_truth(forecast, truth)
    weights = xr.DataArray(row_weights(forecast), dims="lat")
    area_means, maps, usual = [], [], {}
    for channel in channels_of(forecast):
        fields, observed = fields_of(forecast, channel), fields_of(truth, channel)
        climatology = _climatology(observed, training_times, fields)
        by_init, by_point = _statistics(fields, observed, climatology, weights)
        area_means.append(by_init)
        maps.append(by_point)
        usual[channel.name] = climatology.description
    names = xr.Variable("channel", list(usual))
    by_init, by_point = xr.concat(area_means, names), xr.concat(maps, names)
    _check_points(by_init, forecast, truth)
    by_point = xr.Dataset({"bias_map": by_point["bias"], "rmse_map": np.sqrt(by_point["mse"])})
    intervals = _intervals(by_init, np.random.default_rng(seed), confidence)
    scores = xr.merge([metrics.averaged(by_init), intervals, by_point])
    return _described(scores, forecast, truth, usual, {"confidence": confidence, "seed": seed})


def _climatology(observed: xr.DataArray, training_times: np.ndarray, fields: xr.DataArray) -> Climatology:
    known = recognise(str(observed.name), observed.attrs)
    valid_times = np.add.outer(fields["init_time"].values, fields["lead_time"].values).ravel()
    never_negative = known is not None and known.non_negative
    return fit_climatology(observed, training_times, valid_times, never_negative=never_negative)


def _statistics(
    fields: xr.DataArray, observed: xr.DataArray, climatology: Climatology, weights: xr.DataArray
) -> tuple[xr.Dataset, xr.Dataset]:
    """Of one channel: area means by system, lead time and init time; time means by system, lead time and point."""
    parts = [
        (metrics.by_init(pairs, weights), metrics.by_point(pairs)) for pairs in pairs_of(fields, observed, climatology)
    ]
    leads = fields.sizes["lead_time"]
    blocks = [parts[start : start + leads] for start in range(0, len(parts), leads)]
    area_means = [xr.concat([means for means, _ in block], "lead_time") for block in blocks]
    maps = xr.concat([xr.concat([points for _, points in block], "lead_time") for block in blocks], "block")
    return xr.concat(area_means, "init_time"), metrics.pool(maps[["mse", "bias"]], maps["count"], "block")


def _check_points(by_init: xr.Dataset, forecast: xr.Dataset, truth: xr.Dataset) -> None:
    """An error where nothing is left to score; loud where forecasts are missing that could have been scored."""
    points, lost = int(by_init["points"].sum()), int(by_init["lost"].sum())
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


def _intervals(by_init: xr.Dataset, generator: np.random.Generator, confidence: float) -> xr.Dataset:
    """Bootstrap over the init times: limits of each RMSE, and the model against each reference."""
    mse, weight = by_init["mse"], by_init["weight"]
    limits = limits_by_channel(mse, weight, confidence=confidence, generator=generator)
    against = paired_by_channel(
        mse.sel(system="model", drop=True),
        mse.sel(system=list(REFERENCES)).rename(system="reference"),
        weight,
        confidence=confidence,
        generator=generator,
    )
    rmse_limits = limits.clip(min=0.0) ** 0.5
    return against.assign(rmse_low=rmse_limits.isel(limit=1), rmse_high=rmse_limits.isel(limit=2))


def _described(
    scores: xr.Dataset,
    forecast: xr.Dataset,
    truth: xr.Dataset,
    usual: Mapping[str, str],
    options: Mapping[str, float],
) -> xr.Dataset:
    """The same scores with coordinates, formulas and the account of how they were made."""
    variables = [truth[channel.variable] for channel in channels_of(forecast)]
    hours = scores["lead_time"].values / np.timedelta64(1, "h")
    in_space = {name: forecast[name] for name in ("lat", "lon", "latitude", "longitude") if name in forecast.coords}
    scores = scores.transpose("system", "reference", "channel", "lead_time", "init_time", "lat", "lon").assign_coords(
        units=("channel", [normalise_units(str(variable.attrs.get("units", "1"))) for variable in variables]),
        lead_hours=("lead_time", hours, {"units": "h", "long_name": "lead time"}),
    )
    scores = scores.assign_coords(in_space)
    for name in scores.data_vars:
        scores[name].attrs = metrics.attributes(str(name))
    valid_times = np.add.outer(forecast["init_time"].values, forecast["lead_time"].values)
    has_truth = np.isin(valid_times, truth["time"]) & np.isin(forecast["init_time"], truth["time"])[:, None]
    shared = set(usual.values())
    return scores.assign_attrs(
        Conventions="CF-1.11",
        title="Scores of a forecast, of persistence and of climatology on the same points",
        weights=EQUAL if is_projected(forecast) else BY_AREA,
        points=(
            "valid where truth, forecast, persistence and climatology all are (truth that was filled in is not); means "
            "divide by the valid weights"
        ),
        persistence="the truth at the init time, held for every lead time",
        climatology=shared.pop() if len(shared) == 1 else "; ".join(f"{name}: {text}" for name, text in usual.items()),
        acc="uncentred, per init time, then averaged; acc_centred beside it",
        intervals=(
            f"paired circular block bootstrap over init times, {RESAMPLES} resamples; block: the longer of lead + "
            "decorrelation length and three decorrelation lengths (season taken out); no interval where fewer than "
            f"{MIN_BLOCKS} blocks fit"
        ),
        pairs_offered=valid_times.size,
        pairs_without_truth=int((~has_truth).sum()),
        **options,
    )


def verdicts(scores: xr.Dataset) -> list[str]:
    """One plain sentence per channel: which rival it beats until when, and where no difference can be shown."""
    hours = scores["lead_hours"].values
    return [sentence(str(name), outcomes(scores.sel(channel=name)), hours) for name in scores["channel"].values]


def table(scores: xr.Dataset) -> str:
    """Monospaced table: RMSE of the three systems, and MAE, bias and ACC of the model, by channel and lead time.

    The smallest RMSE of a row is marked with *. Of more than ten lead times ten are shown, the first and last included.
    """
    n_leads = scores.sizes["lead_time"]
    shown = np.unique(np.linspace(0, n_leads - 1, min(n_leads, TABLE_LEADS)).round().astype(int))
    lines = [
        f"{'':10}  {' RMSE (* best) ':-^34}  {' model ':-^34}",
        _line(("lead", "model ", "persistence ", "climatology ", "MAE", "bias", "ACC", "pairs")),
    ]
    for name in scores["channel"].values:
        lines += ["", *_channel_lines(scores.sel(channel=name).isel(lead_time=shown))]
    if shown.size < n_leads:
        lines += ["", f"{shown.size} of {n_leads} lead times; all are in scores.csv."]
    return "\n".join(lines)


def _channel_lines(scores: xr.Dataset) -> Iterator[str]:
    """The name and units of one channel, and a row per lead time."""
    yield f"{scores['channel'].item()} ({scores['units'].item()})"
    smallest = float(scores["rmse"].min())
    decimals = max(0, int(2 - np.floor(np.log10(smallest)))) if smallest > 0 else 3
    plain = decimals <= _MOST_DECIMALS
    size, bias = (f".{decimals}f", f"+.{decimals + 1}f") if plain else (".2e", "+.2e")
    for row in range(scores.sizes["lead_time"]):
        at = scores.isel(lead_time=row)
        best, model = float(at["rmse"].min()), at.sel(system="model")
        yield _line(
            (
                lead_label(float(at["lead_hours"])),
                *(f"{value:{size}}{'*' if value == best else ' '}" for value in at["rmse"].values),
                f"{float(model['mae']):{size}}",
                f"{float(model['bias']):{bias}}",
                f"{float(model['acc']):.3f}",
                f"{int(at['pairs'])}",
            )
        )


def _line(cells: tuple[str, ...]) -> str:
    return f"{cells[0]:>10}" + "".join(f"{cell:>12}" for cell in cells[1:])


def write_scores(scores: xr.Dataset, folder: Path) -> list[Path]:
    """Write scores.nc (everything) and scores.csv (a row per channel, lead time and system); returns both paths.

    Raises:
        ConfigError: if the folder cannot be written.
    """
    paths = [folder / "scores.nc", folder / "scores.csv"]
    packed = {name: {"zlib": True, "dtype": "float32"} for name in ("bias_map", "rmse_map")}
    with replacing(paths[0]) as temporary:
        scores.to_netcdf(temporary, encoding=packed)
    of_system = ["rmse", "rmse_low", "rmse_high", "mae", "bias", "acc", "acc_centred", "activity", "count", "pairs"]
    # The skill of the model against a system stands in that system's row.
    skill = {f"skill{part}": f"model_skill{part}" for part in ("", "_low", "_high")}
    against = scores[list(skill)].rename({"reference": "system", **skill})
    rows = xr.merge([scores[of_system], against], join="left")
    with replacing(paths[1]) as temporary:
        columns = ["channel", "units", "lead_hours", "system", *of_system, *skill.values()]
        rows.to_dataframe().reset_index()[columns].to_csv(temporary, index=False, float_format="%.6g")
    return paths
