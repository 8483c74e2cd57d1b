"""What is usual for the day of the year and the hour of the day, learnt from training times only."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import xarray as xr

from convlstm_wx.data.times import DAYS, days_of_year, longest_gap
from convlstm_wx.errors import DataError

HALF_WINDOW = 31  # weight 1 - |d| / 31: zero from 31 days on, so 61 days count
YEARS_FOR_WINDOW = 3.8  # four years less what an embargo takes
ACCUMULATOR_BYTES = 256e6
READ_BYTES = 64e6


@dataclass(frozen=True)
class Climatology:
    """Usual fields for the days and hours that were asked for.

    keys: sorted day-and-minute keys [K] (see `_keys`); fields: [K, H, W] in the units of the data, NaN where a point
    has no training value; description: how it was made, in one sentence.
    """

    keys: np.ndarray
    fields: np.ndarray
    description: str

    def at(self, times: np.ndarray) -> np.ndarray:
        """Fields at these times [N, H, W], NaN for a day or an hour that was not asked for."""
        keys = _keys(times)
        places = np.searchsorted(self.keys, keys).clip(max=self.keys.size - 1)
        fields = self.fields[places]
        fields[self.keys[places] != keys] = np.nan
        return fields


def read(values: xr.DataArray, times: np.ndarray) -> np.ndarray:
    """Fields [N, H, W] at these times, NaN where the data has no such time. values: (time, lat, lon), lazy or not."""
    index = values.get_index("time").get_indexer(times)
    found = index >= 0
    fields = np.full((len(times), *values.shape[1:]), np.nan, np.promote_types(values.dtype, np.float32))
    if not found.any():
        return fields
    first, last = index[found].min(), index[found].max()
    # One contiguous read is many times faster than a read per time, unless most of it would be thrown away.
    if last - first < 4 * found.sum():
        fields[found] = values[first : last + 1].values[index[found] - first]
    else:
        wanted, place = np.unique(index[found], return_inverse=True)
        fields[found] = values[wanted].values[place]
    return fields


def fit_climatology(
    values: xr.DataArray,
    training_times: np.ndarray,
    wanted_times: np.ndarray,
    *,
    never_negative: bool = False,
) -> Climatology:
    """Climatology for the days of the year and hours of the day of `wanted_times`, from `training_times` alone.

    Mean per day of year (1 to 366) and hour of day under a 61-day triangular window that wraps around the year
    (WeatherBench 2's definition). With fewer than about four years that would be the weather of those years, so annual
    and semi-annual harmonics are fitted instead; under one year the season cannot be known, and the mean per hour of
    day is used. Missing values are left out point by point.

    Args:
        values: (time, lat, lon), lazy or not; read band by band and block by block, in bounded memory.
        training_times: times of `values` that may be used; others are ignored.
        wanted_times: the times at which fields will be asked for.
        never_negative: clip at zero (a fitted curve of a rare quantity can dip below it).

    Raises:
        DataError: no training time is in the data, or an hour of day has none.
    """
    training = np.intersect1d(training_times, values["time"].values)
    if training.size == 0:
        raise DataError(
            f"climatology: none of the {len(training_times)} training times is in the data to score against; it needs "
            "them to know what is usual. Give the training file too (--data takes several files)."
        )
    keys = np.unique(_keys(wanted_times))
    minutes = np.unique(minutes_of_day(training))
    unknown = np.setdiff1d(keys % 1440, minutes)
    if unknown.size:
        raise DataError(
            f"climatology: no training time at {_clock(unknown[0])} UTC; training has "
            f"{', '.join(_clock(minute) for minute in minutes[:6])}. Score times of day that training holds."
        )
    smooth, description = _choose_method(training, wanted_times)
    minutes = np.unique(keys % 1440)  # other times of day need not be read
    training = training[np.isin(minutes_of_day(training), minutes)]
    fields = np.empty((keys.size, *values.shape[1:]), np.promote_types(values.dtype, np.float32))
    for rows in _bands(values, minutes.size):
        sums, counts = _sums_by_day(values[:, rows], training, minutes)
        for minute, day_sums, day_counts in zip(minutes, sums, counts):
            here = keys % 1440 == minute
            usual = smooth(day_sums, day_counts, keys[here] // 1440)
            fields[here, rows] = usual.reshape(usual.shape[0], -1, values.shape[2])
    return Climatology(keys, fields.clip(min=0) if never_negative else fields, description)


def minutes_of_day(times: np.ndarray) -> np.ndarray:
    """Minutes since midnight UTC."""
    return ((times - times.astype("datetime64[D]")) // np.timedelta64(1, "m")).astype(int)


def _keys(times: np.ndarray) -> np.ndarray:
    """One number per day of the year and time of day."""
    return days_of_year(times) * 1440 + minutes_of_day(times)


def _clock(minute: int) -> str:
    return f"{minute // 60:02d}:{minute % 60:02d}"


# (sums [366, P], counts [366, P], days [K]) -> usual values [K, P]
Smoother = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def _choose_method(training: np.ndarray, wanted_times: np.ndarray) -> tuple[Smoother, str]:
    """How to smooth sums per day of the year, by how long a record training is and how well it covers the season."""
    dates = np.unique(training.astype("datetime64[D]"))
    step_days = float(np.median(np.diff(dates).astype(float))) if dates.size > 1 else 1.0
    years = dates.size * step_days / 365.25
    gap = longest_gap(days_of_year(dates), days_of_year(wanted_times)) - step_days
    of_what = f"{training.size} training times ({years:.1f} years)"
    if years >= YEARS_FOR_WINDOW and gap <= 15:
        return _windowed, f"mean per day of year and hour of day over {of_what}, 61-day triangular window"
    if years >= 0.96 and gap <= 60:
        return partial(_harmonic, order=2), f"annual and semi-annual harmonics per hour of day, fitted to {of_what}"
    if years >= 0.96 and gap <= 120:
        return partial(_harmonic, order=1), (
            f"annual harmonic per hour of day, fitted to {of_what}, which lack {gap:.0f} days of the season to score"
        )
    return partial(_harmonic, order=0), (
        f"mean per hour of day over {of_what}; the season cannot be known from them, so this rival is weak"
    )


def _bands(values: xr.DataArray, n_minutes: int) -> Iterator[slice]:
    """Rows that may be accumulated at once: sums and counts (12 bytes) per time of day, day of year and point."""
    bytes_per_row = 12 * n_minutes * DAYS * values.shape[2]
    height = max(int(ACCUMULATOR_BYTES / bytes_per_row), 1)
    return (slice(start, start + height) for start in range(0, values.shape[1], height))


def _sums_by_day(values: xr.DataArray, training: np.ndarray, minutes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sums and counts of the finite values per time of day and day of the year, each [minutes, 366, P]."""
    n_points = values.shape[1] * values.shape[2]
    sums = np.zeros((minutes.size * DAYS, n_points))
    counts = np.zeros((minutes.size * DAYS, n_points), np.int32)
    n_blocks = int(np.ceil(training.size * n_points * 8 / READ_BYTES))
    for times in np.array_split(training, n_blocks):
        place = np.searchsorted(minutes, minutes_of_day(times)) * DAYS + days_of_year(times)
        order = np.argsort(place, kind="stable")
        places, starts = np.unique(place[order], return_index=True)
        block = read(values, times).reshape(times.size, n_points)[order].astype(float)
        finite = np.isfinite(block)
        sums[places] += np.add.reduceat(np.where(finite, block, 0.0), starts, axis=0)
        counts[places] += np.add.reduceat(finite, starts, axis=0, dtype=np.int32)
    shape = (minutes.size, DAYS, n_points)
    return sums.reshape(shape), counts.reshape(shape)


def _windowed(sums: np.ndarray, counts: np.ndarray, days: np.ndarray) -> np.ndarray:
    """Mean under a triangular window around each day, wrapped around the year."""
    distance = np.abs(days[:, None] - np.arange(DAYS))
    weights = np.clip(1.0 - np.minimum(distance, DAYS - distance) / HALF_WINDOW, 0.0, None)
    with np.errstate(invalid="ignore"):
        return (weights @ sums) / (weights @ counts)


def _harmonic(sums: np.ndarray, counts: np.ndarray, days: np.ndarray, *, order: int) -> np.ndarray:
    """Least-squares fit of a mean and `order` harmonics of the year, point by point, at each day.

    Sums and counts per day are enough for the normal equations. They are solved for the departure from the point's
    mean with a pseudo-inverse, so that a point with few values falls back to its mean.
    """
    basis = _basis(np.arange(DAYS), order)
    total = counts.sum(axis=0)
    with np.errstate(invalid="ignore"):
        mean = sums.sum(axis=0) / total
    share = counts / np.maximum(total, 1)
    normal = np.einsum("dp,di,dj->pij", share, basis, basis, optimize=True)
    right = np.einsum("dp,di->pi", (sums - counts * np.nan_to_num(mean)) / np.maximum(total, 1), basis)
    solution = np.einsum("pij,pj->pi", np.linalg.pinv(normal, rcond=1e-8, hermitian=True), right)
    return mean + _basis(days, order) @ solution.T


def _basis(days: np.ndarray, order: int) -> np.ndarray:
    """1, cos, sin, cos 2, sin 2 ... of the season [N, 1 + 2 order]."""
    angle = 2.0 * np.pi * days / 365.25
    waves = [wave(harmonic * angle) for harmonic in range(1, order + 1) for wave in (np.cos, np.sin)]
    return np.column_stack([np.ones(days.size), *waves])
