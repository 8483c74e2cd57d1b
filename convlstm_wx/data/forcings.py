"""Forcings: what is known of any time, past or future, without a forecast.

Season and time of day, the height of the sun, the place on the map, and static fields of the file such as orography.
Shapes: S times, F forcing channels, H lat, W lon.
"""

from dataclasses import dataclass

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


def cosine_solar_zenith(times: np.ndarray, lat: np.ndarray, lon: np.ndarray) -> np.ndarray:
    """Cosine of the solar zenith angle, 0 at night, [S, H, W].

    Declination from the day of the year (error up to half a degree) and local mean solar time, that is without the
    equation of time (up to 16 minutes): for a network's input that is enough. [Hartmann 2016, Global Physical
    Climatology, appendix A]
    """
    declination = -DECLINATION_MAX * np.cos(2 * np.pi * (year_fraction(times) + 10 / YEAR_DAYS))
    hour_angle_SW = 2 * np.pi * (day_fraction(times)[:, None] - 0.5) + np.deg2rad(lon)[None]
    lat_rad = np.deg2rad(lat)
    vertical_SH = np.sin(lat_rad)[None] * np.sin(declination)[:, None]
    swing_SH = np.cos(lat_rad)[None] * np.cos(declination)[:, None]
    return np.maximum(vertical_SH[..., None] + swing_SH[..., None] * np.cos(hour_angle_SW)[:, None], 0.0)


@dataclass(frozen=True)
class Forcings:
    """The forcing channels of one region: 7 that any grid has, then its static fields.

    static_FHW holds the file's own static fields, standardised over the region.
    """

    grid: Grid
    static_FHW: np.ndarray

    NAMES = ("cos_season", "sin_season", "cos_day", "sin_day", "cos_solar_zenith", "lat", "lon")

    @property
    def channels(self) -> int:
        """F."""
        return len(self.NAMES) + len(self.static_FHW)

    def at(self, times: np.ndarray) -> np.ndarray:
        """The forcing of the given times (datetime64, any shape S...), float32 [S..., F, H, W]."""
        flat = times.reshape(-1)
        lat, lon = np.asarray(self.grid.lat), np.asarray(self.grid.lon)
        fields = np.empty((flat.size, self.channels, lat.size, lon.size), np.float32)
        angles = 2 * np.pi * np.stack([year_fraction(flat), day_fraction(flat)])
        fields[:, 0:4:2] = np.cos(angles).T[..., None, None]
        fields[:, 1:4:2] = np.sin(angles).T[..., None, None]
        fields[:, 4] = cosine_solar_zenith(flat, lat, lon)
        fields[:, 5] = _minus_one_to_one(lat)[:, None]
        fields[:, 6] = _minus_one_to_one(lon)[None, :]
        fields[:, len(self.NAMES) :] = self.static_FHW
        return fields.reshape(*times.shape, *fields.shape[1:])


def _minus_one_to_one(values: np.ndarray) -> np.ndarray:
    span = values[-1] - values[0]
    return np.zeros_like(values) if span == 0 else 2 * (values - values[0]) / span - 1
