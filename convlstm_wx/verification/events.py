"""Events: does a value reach a threshold, and was it forecast that it would? Counts, their scores, and fractions.

An event is a value >= its threshold. Thresholds are values (of precipitation in mm), or percentiles of the training
anomalies at each point: "p90" is reached where the anomaly from climatology is among the highest tenth of that place,
so that summer and winter, coast and mountain have events alike. Counts are pooled over points and init times first;
0/0 is NaN.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from scores.categorical import BasicContingencyManager

from convlstm_wx.conventions import Channel, is_precipitation, millimetres_factor, millimetres_units, normalise_units
from convlstm_wx.errors import ConfigError
from convlstm_wx.text import list_channels
from convlstm_wx.verification.climatology import READ_BYTES
from convlstm_wx.verification.pairs import Pairs
from convlstm_wx.verification.record import Record

RAIN_MM = ("0.1", "1", "5", "10", "25", "50")
PERCENTILES = ("p90", "p95")
WINDOWS = (3, 5, 9, 17)  # points along an edge
COUNTS = {"hits": "tp_count", "misses": "fn_count", "false_alarms": "fp_count", "correct_negatives": "tn_count"}


@dataclass(frozen=True)
class Threshold:
    """What makes an event.

    label: for people, "1 mm" or "p90"; value: in the channel's units, of a percentile the mean anomaly over the area;
    limit: a number, or of a percentile the anomaly at each point [H, W].
    """

    label: str
    value: float
    limit: float | np.ndarray

    def reached(self, fields: np.ndarray, usual: np.ndarray) -> np.ndarray:
        """Where fields [..., H, W] hold the event; a missing value holds none."""
        if np.ndim(self.limit):
            return fields - usual >= self.limit
        return fields >= self.limit


def parse(given: Sequence[str] | None, channels: Sequence[Channel]) -> dict[str, list[str]]:
    """ "tp=1,5,10" and "z@500hPa=p90" by channel name; a variable's name stands for all its levels.

    Raises:
        ConfigError: for another form, a name that is not forecast, or no number or percentile.
    """
    found: dict[str, list[str]] = {}
    for text in given or ():
        name, _, values = text.partition("=")
        named = [channel.name for channel in channels if name in (channel.name, channel.variable)]
        if not values or not all(map(_is_threshold, values.split(","))):
            raise ConfigError(f"--thresholds {text}: write NAME=VALUE,VALUE such as tp=1,5,10 or t2m=p90,p95")
        if not named:
            raise ConfigError(f"--thresholds {text}: {name} is not forecast; there are {list_channels(channels)}")
        found |= dict.fromkeys(named, values.split(","))
    return found


def _is_threshold(text: str) -> bool:
    try:
        number = float(text.removeprefix("p"))
    except ValueError:
        return False
    return 0 < number < 100 if text.startswith("p") else bool(np.isfinite(number))


def thresholds_of(
    channel: Channel, record: Record, training_times: np.ndarray, asked: Mapping[str, Sequence[str]]
) -> list[Threshold]:
    """The thresholds of one channel: those asked for, else the usual ones."""
    units = normalise_units(str(record.fields.attrs.get("units", "1")))
    rain = is_precipitation(channel.variable, record.fields.attrs)
    factor, shown = (millimetres_factor(units), millimetres_units(units)) if rain else (1.0, units)
    texts = asked.get(channel.name, RAIN_MM if rain else PERCENTILES)
    values = sorted(float(text) for text in texts if not text.startswith("p"))
    found = [Threshold(f"{value:g} {shown}".removesuffix(" 1"), value / factor, value / factor) for value in values]
    percents = sorted(float(text[1:]) for text in texts if text.startswith("p"))
    if percents:
        limits = _percentiles(record, training_times, percents)
        known = [np.isfinite(limit) for limit in limits]
        means = [float(limit[there].mean()) if there.any() else np.nan for limit, there in zip(limits, known)]
        found += [Threshold(f"p{p:g}", mean, limit) for p, mean, limit in zip(percents, means, limits)]
    return found


def coordinates(thresholds: Mapping[str, Sequence[Threshold]]) -> dict[str, xr.DataArray]:
    """threshold_label and threshold_value [channel, threshold] for the file of scores; empty where there are fewer."""
    most = max(map(len, thresholds.values()))
    labels = [[one.label for one in some] + [""] * (most - len(some)) for some in thresholds.values()]
    values = [[one.value for one in some] + [np.nan] * (most - len(some)) for some in thresholds.values()]
    dims = ("channel", "threshold")
    comment = "in units of the channel; of a percentile the anomaly that it stands for, mean over the area"
    return {
        "threshold_label": xr.DataArray(labels, dims=dims),
        "threshold_value": xr.DataArray(values, dims=dims, attrs={"comment": comment}),
    }


def _percentiles(record: Record, training_times: np.ndarray, percents: Sequence[float]) -> np.ndarray:
    """Percentiles of the training anomalies at each point [n, H, W]; of evenly spaced times where there are many."""
    training = np.intersect1d(training_times, record.fields["time"].values)
    most = max(int(READ_BYTES / (8 * record.fields[0].size)), 100)
    some = training[np.unique(np.linspace(0, training.size - 1, min(most, training.size)).round().astype(int))]
    anomalies = record.anomalies(some)
    never = np.isnan(anomalies).all(axis=0)
    anomalies[:, never] = 0.0
    quantile = np.nanquantile if np.isnan(anomalies).any() else np.quantile
    return np.where(never, np.nan, quantile(anomalies, np.asarray(percents) / 100, axis=0))


def count(pairs: Pairs, thresholds: Sequence[Threshold]) -> xr.Dataset:
    """Whole numbers of each init time of a block of pairs, which can be added up.

    Returns:
        valid, events [threshold, init_time]: points scored, and those with the event; forecasts, hits [system,
        threshold, init_time]; fraction_difference, fraction_reference [system, threshold, window, init_time]: see
        `_fractions`.
    """
    truth, usual, systems = pairs.truth.values, pairs.usual.values, pairs.systems.values
    windows = windows_of(truth.shape[1:])
    shape = len(systems), len(thresholds), len(truth)
    valid, observed = np.zeros((2, *shape[1:]), np.int32)
    forecasts, hits = np.zeros((2, *shape), np.int32)
    most = 2 * truth[0].size * max(windows) ** 4
    fractions = np.zeros((2, *shape[:2], len(windows), shape[2]), np.int32 if most < 2**31 else float)
    valid[:] = np.isfinite(truth).sum(axis=SPACE_AXES)
    for column, threshold in enumerate(thresholds):
        happened, forecast = threshold.reached(truth, usual), threshold.reached(systems, usual)
        observed[column] = happened.sum(axis=SPACE_AXES, dtype=np.int32)
        forecasts[:, column] = forecast.sum(axis=SPACE_AXES, dtype=np.int32)
        hits[:, column] = (forecast & happened).sum(axis=SPACE_AXES, dtype=np.int32)
        fractions[:, :, column] = _fractions(forecast, happened, windows)
    of_truth, of_system = ("threshold", "init_time"), ("system", "threshold", "init_time")
    of_window = ("system", "threshold", "window", "init_time")
    found: dict[str, Any] = {"valid": (of_truth, valid), "events": (of_truth, observed)}
    found |= {"forecasts": (of_system, forecasts), "hits": (of_system, hits)}
    found |= {name: (of_window, fractions[k]) for k, name in enumerate(FRACTIONS)}
    coords = {name: pairs.systems[name].values for name in ("system", "init_time") if name in pairs.systems.coords}
    return xr.Dataset(found, {**coords, "window": windows})


SPACE_AXES = (-2, -1)
FRACTIONS = ("fraction_difference", "fraction_reference")


def pooled(counts: xr.Dataset) -> xr.Dataset:
    """The contingency table over all init times, and the sums of the fractions; NaN where there is no threshold."""
    sums = counts.sum("init_time", dtype=float)
    hits, forecasts, happened = sums["hits"], sums["forecasts"], sums["events"]
    table = {"hits": hits, "misses": happened - hits, "false_alarms": forecasts - hits}
    table["correct_negatives"] = sums["valid"] - forecasts - happened + hits
    found = xr.Dataset(table).where(sums["valid"] > 0)
    return found.assign({name: sums[name] / sums["window"] ** 4 for name in FRACTIONS})


def windows_of(shape: tuple[int, ...]) -> list[int]:
    """Window sizes that fit into the grid at least twice."""
    return [size for size in WINDOWS if 2 * size <= min(shape)] or [1]


def _fractions(forecast: np.ndarray, happened: np.ndarray, windows: Sequence[int]) -> np.ndarray:
    """Sums of (f - o)^2 and of f^2 + o^2 over windows that lie inside the grid [2, system, window, init_time].

    f and o are the numbers of a window's points with an event: the shares of Roberts and Lean [2008, Mon. Wea. Rev.]
    times the size of the window.
    """
    sums = np.zeros((2, len(forecast), len(windows), len(happened)))
    observed = _cumulated(happened)
    given = [_cumulated(events) if events.any() else None for events in forecast]
    for column, size in enumerate(windows):
        o = _window_counts(observed, size)
        squares = _sum_of_products(o, o)
        for row, cumulated in enumerate(given):
            both, cross = squares, np.zeros_like(squares)
            if cumulated is not None:
                f = _window_counts(cumulated, size)
                both, cross = squares + _sum_of_products(f, f), _sum_of_products(f, o)
            sums[:, row, column] = both - 2 * cross, both
    return sums


def _cumulated(events: np.ndarray) -> np.ndarray:
    """Events above and left of each corner [..., H + 1, W + 1], modulo 2^16.

    Small integers make this four times as fast as float64, and exact: a window holds fewer events than 2^15, so that
    the differences that count them are right although the sums wrap around.
    """
    padded = np.zeros((*events.shape[:-2], events.shape[-2] + 1, events.shape[-1] + 1), np.int16)
    np.cumsum(events, axis=-1, dtype=np.int16, out=padded[..., 1:, 1:])
    np.cumsum(padded[..., 1:, 1:], axis=-2, dtype=np.int16, out=padded[..., 1:, 1:])
    return padded


def _window_counts(cumulated: np.ndarray, size: int) -> np.ndarray:
    """int32: the squares of a row of windows must fit."""
    rows = cumulated[..., size:, :] - cumulated[..., :-size, :]
    return (rows[..., size:] - rows[..., :-size]).astype(np.int32)


def _sum_of_products(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """[init_time]."""
    return np.einsum("...w,...w->...", a, b).sum(axis=-1, dtype=float)


def scores_of(counts: xr.Dataset) -> xr.Dataset:
    """Scores of `pooled` counts by the `scores` library: pod, far, csi, ets, hss, frequency_bias; and fss."""
    table = {key: counts[name] for name, key in COUNTS.items()}
    manager = BasicContingencyManager(table | {"total_count": sum(table.values())})
    found = xr.Dataset(
        {
            "pod": manager.probability_of_detection(),
            "far": manager.false_alarm_ratio(),
            "csi": manager.critical_success_index(),
            "ets": manager.equitable_threat_score(),
            "hss": manager.heidke_skill_score(),
            "frequency_bias": manager.frequency_bias(),
        }
    )
    found = found.where(np.isfinite(found))  # x/0 is as unknown as 0/0
    events, forecasts = counts["hits"] + counts["misses"], counts["hits"] + counts["false_alarms"]
    chance = events * (counts["misses"] + counts["correct_negatives"]) + forecasts * (
        counts["false_alarms"] + counts["correct_negatives"]
    )
    found["hss"] = found["hss"].where(chance > 0)  # the library's quotient of two roundings is not 0/0
    if "fraction_reference" in counts:
        reference = counts["fraction_reference"]
        found["fss"] = 1.0 - counts["fraction_difference"] / reference.where(reference > 0)
    return found.assign({name: counts[name] for name in COUNTS})
