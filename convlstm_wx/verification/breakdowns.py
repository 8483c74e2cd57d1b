"""The same scores by month, season and hour of the valid time, in boxes, and of the wind as a vector.

All come from area means per init time, pooled with their weights; roots are taken last.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr

from convlstm_wx.conventions import Channel, recognise
from convlstm_wx.data.regions import Region, select_region
from convlstm_wx.verification.metrics import pool

SEASONS = ("DJF", "MAM", "JJA", "SON")
WINDS = {"u": "v", "u10": "v10", "u100": "v100"}


def by_period(means: xr.Dataset) -> xr.Dataset:
    """rmse, bias and pairs by month, by season and, where there are several, by hour of the day.

    Args:
        means: mse, bias, weight and points by [channel, lead_time, init_time].
    """
    valid = means["init_time"] + means["lead_time"]
    months = valid.dt.month
    periods = {"month": months, "season": (months % 12) // 3, "hour": valid.dt.hour + valid.dt.minute / 60}
    parts = []
    for name, label in periods.items():
        labels = np.unique(label.values)
        if name == "hour" and labels.size == 1:
            continue
        rows = [_pooled(means, label == one) for one in labels]
        found = xr.concat(rows, xr.Variable(name, labels)).rename({part: f"{part}_by_{name}" for part in rows[0]})
        if name == "season":
            found = found.assign_coords(season=[SEASONS[int(one)] for one in labels])
        parts.append(found)
    return xr.merge(parts)


def _pooled(means: xr.Dataset, here: xr.DataArray) -> xr.Dataset:
    found = pool(means[["mse", "bias"]], means["weight"].where(here, 0.0), "init_time")
    pairs = ((means["points"] > 0) & here).sum("init_time")
    return xr.Dataset({"rmse": np.sqrt(found["mse"]), "bias": found["bias"], "pairs": pairs})


def places_in(grid: xr.Dataset, box: Region) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the grid points inside a box.

    Raises:
        DataError: where there are none.
    """
    numbered = grid.assign_coords(
        row=("lat", np.arange(grid.sizes["lat"])), column=("lon", np.arange(grid.sizes["lon"]))
    )
    part = select_region(numbered, box, option="--box")
    return part["row"].values, part["column"].values


def box_name(box: Region) -> str:
    """ "40..55N 0..14.5E"."""
    return f"{box.lat_min:g}..{box.lat_max:g}N {box.lon_min:g}..{box.lon_max:g}E"


def wind_of(means: xr.Dataset, channels: Sequence[Channel], attrs: Mapping[str, Mapping]) -> xr.Dataset | None:
    """Area mean of eu^2 + ev^2 as `mse`, with its weight, by wind ("wind@850hPa"); None if no pair was forecast.

    An init time counts if both components were scored on the same area.

    Args:
        means: mse and weight [system, channel, lead_time, init_time].
        attrs: attributes of each variable.
    """
    known = {(_known(channel, attrs), channel.level): channel for channel in channels}
    winds = {}
    for (name, level), eastward in known.items():
        northward = known.get((WINDS.get(name, ""), level))
        if northward is not None:
            winds[Channel({"u": "wind"}.get(name, f"wind{name[1:]}"), level).name] = (eastward, northward)
    parts = []
    for eastward, northward in winds.values():
        u, v = (means[["mse", "weight"]].sel(channel=channel.name, drop=True) for channel in (eastward, northward))
        alike = u["weight"] == v["weight"]
        parts.append(xr.Dataset({"mse": u["mse"] + v["mse"], "weight": u["weight"].where(alike, 0.0)}))
    return xr.concat(parts, xr.Variable("wind", list(winds))) if parts else None


def _known(channel: Channel, attrs: Mapping[str, Mapping]) -> str:
    known = recognise(channel.variable, attrs[channel.variable])
    return "" if known is None else known.name
