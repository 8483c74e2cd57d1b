"""Small regional files for tests: waves that travel east, with a season and noise."""

from pathlib import Path

import numpy as np
import xarray as xr


def region(
    *,
    days: int = 420,
    step_hours: int = 24,
    height: int = 7,
    width: int = 9,
    seed: int = 0,
    levels: tuple[float, ...] = (),
) -> xr.Dataset:
    """t2m (K), tp (m, never negative) and, with levels, z (m2 s-2); latitudes descend, as in most files."""
    rng = np.random.default_rng(seed)
    times = np.datetime64("2001-01-01", "ns") + np.arange(days * 24 // step_hours) * np.timedelta64(step_hours, "h")
    lat, lon = np.linspace(60, 60 - 2 * (height - 1), height), np.linspace(-10, -10 + 2 * (width - 1), width)
    elapsed = (np.arange(len(times)) * step_hours / 24)[:, None, None]
    phase = 2 * np.pi * (lon[None, None] / 18 - elapsed / 6) + lat[None, :, None] / 10
    wave = np.sin(phase) + 0.1 * rng.normal(size=(len(times), height, width))
    t2m = 280 - 10 * np.cos(2 * np.pi * elapsed / 365.25) + 3 * wave
    tp = np.maximum(0.004 * wave - 0.002, 0)
    dims = ("time", "lat", "lon")
    dataset = xr.Dataset(
        {
            "t2m": (dims, t2m.astype(np.float32), {"units": "K", "long_name": "2 metre temperature"}),
            "tp": (dims, tp.astype(np.float32), {"units": "m", "long_name": "Total precipitation"}),
        },
        coords={
            "time": times,
            "lat": ("lat", lat, {"units": "degrees_north", "standard_name": "latitude"}),
            "lon": ("lon", lon, {"units": "degrees_east", "standard_name": "longitude"}),
        },
    )
    if levels:
        z = np.stack([wave * 500 + 50_000 - 40 * level for level in levels], axis=1)
        dataset["level"] = ("level", list(levels), {"units": "hPa", "standard_name": "air_pressure"})
        dataset["z"] = (("time", "level", "lat", "lon"), z.astype(np.float32), {"units": "m2 s-2"})
    return dataset


def write(dataset: xr.Dataset, path: Path) -> Path:
    """As NetCDF-4, with times in hours."""
    dataset.to_netcdf(path, encoding={"time": {"units": "hours since 1900-01-01"}})
    return path
