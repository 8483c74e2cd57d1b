"""Forcings: what is known of any time, past or future, without a forecast.

Season and time of day, the height of the sun, the place on the map, and static fields of the file such as orography.
A forcing field is made of a few numbers per time (the clock) and a few fixed fields per region (the places), so that a
batch carries the numbers only and the fields are made where the network is.
Shapes: S times, G clock numbers, P place fields, F forcing channels, H lat, W lon.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from convlstm_wx.data.regions import Grid

DAY_S = 86_400.0
YEAR_DAYS = 365.2425
DECLINATION_MAX = np.deg2rad(23.44)


def day_fraction(times: np.ndarray) -> np.ndarray:
    """Time of day in UTC as a fraction of a day, 0 <= fraction < 1."""
    return (times - times.astype("datetime64[D]")) / np.timedelta64(1, "s") / DAY_S


def year_fraction(times: np.ndarray) -> np.ndarray:
    """Days since the year began, the time of day included, as a fraction of 365.2425 days."""
    return (times - times.astype("datetime64[Y]")) / np.timedelta64(1, "s") / (DAY_S * YEAR_DAYS)


def clock(times: np.ndarray) -> np.ndarray:
    """The numbers of each time (datetime64, any shape S...): float32 [S..., G].

    Cosine and sine of the season and of the time of day, then what the three sun fields of :attr:`Forcings.places` are
    multiplied with and summed to give the sine of the sun's height (the cosine of its zenith angle).

    Declination from the day of the year (error up to half a degree) and local mean solar time, that is without the
    equation of time (up to 16 minutes): for a network's input that is enough. [Hartmann 2016, Global Physical
    Climatology, appendix A]
    """
    season, day = 2 * np.pi * year_fraction(times), 2 * np.pi * day_fraction(times)
    declination = -DECLINATION_MAX * np.cos(season + 2 * np.pi * 10 / YEAR_DAYS)
    # cos(hour angle) with hour angle = day - pi + lon, by the addition theorem.
    sun = [np.sin(declination), -np.cos(declination) * np.cos(day), np.cos(declination) * np.sin(day)]
    return np.stack([np.cos(season), np.sin(season), np.cos(day), np.sin(day), *sun], axis=-1).astype(np.float32)


@dataclass(frozen=True)
class Forcings:
    """The forcing channels of one region: 7 that any grid has, then its static fields.

    static_FHW holds the file's own static fields, standardised over the region.
    """

    grid: Grid
    static_FHW: np.ndarray

    NAMES = ("cos_season", "sin_season", "cos_day", "sin_day", "cos_solar_zenith", "lat", "lon")
    CLOCK_FIELDS = 4  # the clock's numbers that are spread over the map as they are
    SUN_FIELDS = 3  # the place fields that the height of the sun is made of

    @property
    def channels(self) -> int:
        """F."""
        return len(self.NAMES) + len(self.static_FHW)

    @cached_property
    def places(self) -> np.ndarray:
        """Three sun fields, latitude and longitude from -1 to 1, the static fields: float32 [P, H, W]."""
        lat_HW, lon_HW = self.grid.places()
        phi, eastward = np.deg2rad(lat_HW), np.deg2rad(lon_HW)
        sun = [np.sin(phi), np.cos(phi) * np.cos(eastward), np.cos(phi) * np.sin(eastward)]
        fields = np.stack([*sun, _minus_one_to_one(lat_HW), _minus_one_to_one(lon_HW)])
        return np.concatenate([fields, self.static_FHW]).astype(np.float32)


def _minus_one_to_one(values: np.ndarray) -> np.ndarray:
    span = np.ptp(values)
    return np.zeros_like(values) if span == 0 else 2 * (values - values.min()) / span - 1
