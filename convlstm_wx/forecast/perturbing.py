"""Perturbed initial states: how an ensemble grows from one network.

Shapes: C channels, H lat, W lon.
"""

import numpy as np

from convlstm_wx.data.normalise import Statistics
from convlstm_wx.data.regions import Grid

CORRELATION_KM = 300.0  # of errors of a weather analysis, about
_DEGREE_KM = 111.2


def perturbation(
    statistics: Statistics, grid: Grid, size: float, *, seed: int, member: int, init_time: np.datetime64
) -> np.ndarray:
    """Smooth noise to add to the normalised input fields, float32 [C, H, W]; independent between channels.

    Its standard deviation is `size` of what each channel changes in one time step, its correlation falls to 1/e over
    twice CORRELATION_KM. It depends on the seed, the member and the init time alone, not on what else is forecast.
    """
    rng = np.random.default_rng([seed, member, int(init_time.astype("datetime64[s]").astype(np.int64)) % 2**63])
    fields_CHW = smooth_noise(rng, len(statistics.channels), (len(grid.lat), len(grid.lon)), _points(grid))
    return (fields_CHW * (size * statistics.increment_std_C)[:, None, None]).astype(np.float32)


def smooth_noise(
    rng: np.random.Generator, channels: int, shape: tuple[int, int], points: tuple[float, float]
) -> np.ndarray:
    """Gaussian fields [C, H, W] of variance 1, white noise smoothed over so many rows and columns; nothing wraps."""
    margins = [int(np.ceil(6 * sigma)) for sigma in points]
    padded = [size + margin for size, margin in zip(shape, margins)]
    waves = [np.exp(-2 * (np.pi * np.fft.fftfreq(size) * sigma) ** 2) for size, sigma in zip(padded, points)]
    response = waves[0][:, None] * waves[1][None, :]
    white = rng.standard_normal((channels, *padded))
    smoothed = np.fft.ifft2(np.fft.fft2(white) * response).real / np.sqrt(np.mean(response**2))
    return smoothed[:, : shape[0], : shape[1]]


def _points(grid: Grid) -> tuple[float, float]:
    """CORRELATION_KM in rows and in columns of the grid, at most half of it."""
    lat_HW, lon_HW = grid.places()
    sizes = []
    for axis in (0, 1):
        north = np.diff(lat_HW, axis=axis)
        east = np.diff(lon_HW, axis=axis) * np.cos(np.deg2rad(lat_HW.mean()))
        apart_km = _DEGREE_KM * float(np.hypot(north, east).mean()) if north.size else CORRELATION_KM
        sizes.append(min(CORRELATION_KM / max(apart_km, 1e-3), lat_HW.shape[axis] / 2))
    return sizes[0], sizes[1]
