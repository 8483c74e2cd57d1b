"""Power spectra of regional fields: how much variance a forecast has at each wavelength, beside the truth.

A region has no periodic edges, so that a Fourier transform would see the jump between opposite borders as small scales.
The two-dimensional cosine transform mirrors the field instead, and needs neither detrending nor a window [Denis, Côté
and Laprise 2002, Mon. Wea. Rev.]. Its variances are summed over rings of equal wavenumber.
"""

from dataclasses import dataclass

import numpy as np
import xarray as xr

from convlstm_wx.data.reading import is_projected

EARTH_RADIUS_KM = 6371.0
SMALLEST = 4  # points along a side


@dataclass(frozen=True)
class Rings:
    """How a grid's cosine waves are summed.

    rows_HH, columns_WW: orthonormal cosine transforms; ring_HW: ring of each wave, the mean in none (-1);
    wavelengths_km: of the middle of each ring, from long to short.
    """

    rows_HH: np.ndarray
    columns_WW: np.ndarray
    ring_HW: np.ndarray
    wavelengths_km: np.ndarray

    @classmethod
    def of(cls, grid: xr.Dataset) -> "Rings | None":
        """Rings as wide as the longest wave that fits into the shorter side; None for a grid too small for any.

        Wavenumbers are half waves per side over the side's length, so that cells need not be square.
        """
        height, width = grid.sizes["lat"], grid.sizes["lon"]
        if min(height, width) < SMALLEST:
            return None
        row_km, column_km = _spacing_km(grid)
        down, along = np.arange(height) / (2 * height * row_km), np.arange(width) / (2 * width * column_km)
        number_HW = np.hypot(down[:, None], along)
        step = 1 / (2 * min(height * row_km, width * column_km))
        last = round(min(1 / (2 * row_km), 1 / (2 * column_km)) / step) - 1
        ring = np.round(number_HW / step).astype(int).clip(min=1) - 1
        ring[(ring >= last) | (number_HW == 0)] = -1  # the corners hold waves of few directions only
        return cls(_cosines(height), _cosines(width), ring, 1 / (step * np.arange(1, last + 1)))

    def power(self, fields_NHW: np.ndarray) -> np.ndarray:
        """Variance of whole fields per ring [N, ring]."""
        waves = self.rows_HH @ fields_NHW @ self.columns_WW.T
        variance = (waves**2 / self.ring_HW.size).reshape(len(waves), self.ring_HW.size)
        inside = self.ring_HW.ravel() >= 0
        members = (self.ring_HW.ravel()[inside, None] == np.arange(self.wavelengths_km.size)).astype(float)
        return variance[:, inside] @ members


def _cosines(n: int) -> np.ndarray:
    """Orthonormal cosine transform (DCT-II) [wave, point]."""
    wave, point = np.arange(n)[:, None], np.arange(n)
    transform = np.sqrt(2 / n) * np.cos(np.pi * wave * (point + 0.5) / n)
    transform[0] /= np.sqrt(2)
    return transform


def _spacing_km(grid: xr.Dataset) -> tuple[float, float]:
    """Median distance between neighbours along a column and along a row, on a sphere."""
    if is_projected(grid):
        lat, lon = (np.deg2rad(grid[name].values) for name in ("latitude", "longitude"))
    else:
        lat, lon = np.meshgrid(*(np.deg2rad(grid[name].values) for name in ("lat", "lon")), indexing="ij")
    found = []
    for axis in (0, 1):
        turn = np.cos(np.diff(lon, axis=axis))
        here, there = (np.take(lat, range(start, lat.shape[axis] - 1 + start), axis) for start in (0, 1))
        cosine = np.sin(here) * np.sin(there) + np.cos(here) * np.cos(there) * turn
        found.append(float(np.median(np.arccos(cosine.clip(-1, 1)))) * EARTH_RADIUS_KM)
    return found[0], found[1]


def power_of(model: xr.DataArray, truth: xr.DataArray, rings: Rings) -> xr.Dataset:
    """Sums over init times of the variance per ring of forecast and truth, and the number of whole fields."""
    whole = np.isfinite(truth.values).all(axis=(1, 2))
    sums = [rings.power(fields.values[whole]).sum(axis=0) for fields in (model, truth)]
    return xr.Dataset(
        {"power": ("ring", sums[0]), "observed_power": ("ring", sums[1]), "power_fields": ((), int(whole.sum()))}
    )


def averaged(sums: xr.Dataset, rings: Rings) -> xr.Dataset:
    """Mean power by wavelength; NaN where no field was whole."""
    count = sums["power_fields"]
    means = sums[["power", "observed_power"]] / count.where(count > 0)
    wavelengths = ("wavelength", rings.wavelengths_km, {"units": "km", "long_name": "wavelength"})
    return means.rename(ring="wavelength").assign_coords(wavelength=wavelengths).assign(power_fields=count)
