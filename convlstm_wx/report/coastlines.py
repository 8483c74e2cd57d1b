"""Coastlines for maps, where cartopy and its Natural Earth files are installed; elsewhere maps have their graticule."""

import functools
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection

COLOUR = "#303030"


def draw_coastlines(panel: Axes, color: str = COLOUR) -> None:
    """Add coastlines to a map in degrees, whichever way it counts longitudes; its limits stay."""
    lines = coastlines()
    if not lines:
        return
    limits = panel.get_xlim(), panel.get_ylim()
    turns = [line + np.array([turn, 0]) for turn in (-360, 0, 360) for line in lines]
    panel.add_collection(LineCollection(turns, colors=color, linewidths=0.8), autolim=False)
    panel.set(xlim=limits[0], ylim=limits[1])


@functools.cache
def coastlines() -> tuple[np.ndarray, ...]:
    """Lines [n, 2] of longitude and latitude; none where there is no file of them. Nothing is fetched."""
    path = _natural_earth()
    if path is None:
        return ()
    from cartopy.io.shapereader import BasicReader

    lines = []
    for shape in BasicReader(path).geometries():
        lines += [np.asarray(part.coords)[:, :2] for part in getattr(shape, "geoms", [shape])]
    return tuple(lines)


def _natural_earth() -> Path | None:
    """The finest file of coastlines that cartopy has on this machine."""
    try:
        from cartopy import config
        from cartopy.io import Downloader
    except ImportError:
        return None
    for resolution in ("50m", "110m"):
        what = {"config": config, "category": "physical", "name": "coastline", "resolution": resolution}
        source = Downloader.from_config(("shapefiles", "natural_earth", resolution, "physical", "coastline"))
        for path in (source.pre_downloaded_path(what), source.target_path(what)):
            if path and Path(path).is_file():
                return Path(path)
    return None
