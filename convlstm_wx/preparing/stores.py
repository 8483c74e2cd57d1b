"""Public ERA5 stores: where they are, what their variables are called, and how they are opened.

ARCO-ERA5 (Carver and Merose 2023) is hourly on 0.25 degrees and 37 levels, one time and all levels of the globe in a
chunk. Its time axis runs from 1900 to 2050; the part with values is told by attributes. WeatherBench 2 (Rasp et al.
2024) holds ERA5 every 6 hours from 1959 to 2023 on 13 levels, on several grids.
"""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from convlstm_wx.conventions import KNOWN_VARIABLES, normalise_units
from convlstm_wx.data.axes import find_axis, latitude_order, level_values, longitude_order, missing_axis
from convlstm_wx.data.locations import expand, open_raw
from convlstm_wx.data.reading import time_step
from convlstm_wx.errors import ConfigError, DataError

_WB2 = "gs://weatherbench2/datasets/era5/1959-2023_01_10"
STORES = {
    "arco": "gs://gcp-public-data-arco-era5/ar/full_37-1h-0p25deg-chunk-1.zarr-v3",
    "wb2": f"{_WB2}-wb13-6h-1440x721.zarr",
    "wb2-1.5deg": f"{_WB2}-6h-240x121_equiangular_with_poles_conservative.zarr",
    "wb2-5.6deg": f"{_WB2}-6h-64x32_equiangular_conservative.zarr",
}
_NEAREST_TOLD = 6

# ERA5's hourly accumulations over the hour that ends at the time; energies are told by their units.
_ACCUMULATIONS = frozenset(
    {
        "total_precipitation", "convective_precipitation", "large_scale_precipitation", "snowfall",
        "convective_snowfall", "large_scale_snowfall", "evaporation", "potential_evaporation", "snowmelt",
        "snow_evaporation", "runoff", "surface_runoff", "sub_surface_runoff",
    }
)  # fmt: skip
_SUM_OF_HOURS = re.compile(r"^(?P<stem>[a-z_]+)_(?P<hours>\d+)hr$")


@dataclass(frozen=True)
class Store:
    """An opened store.

    Attributes:
        name: its file or folder name, for messages and attributes.
        url: where it is.
        dataset: variables under their own names, dimensions time, level, lat and lon in the store's order, latitude
            and longitude ascending; nothing is read but the coordinates, and nothing is cut for dask.
        rows_descend: whether the store itself has latitudes from north to south.
        filled: first and last time with values.
        preliminary_from: the first time of preliminary values (ERA5T), if any.
    """

    name: str
    url: str
    dataset: xr.Dataset
    rows_descend: bool
    filled: tuple[np.datetime64, np.datetime64]
    preliminary_from: np.datetime64 | None = None

    @property
    def step(self) -> np.timedelta64:
        """The time step."""
        return time_step(self.dataset["time"].values)


def open_store(name_or_url: str) -> Store:
    """Open one of STORES, a URL, or a folder.

    Raises:
        ConfigError: for another name.
        DataError: if there is no store, it cannot be reached, it needs a package that is not installed, or it has no
            time, latitude and longitude.
    """
    url = STORES.get(name_or_url, name_or_url)
    locations = expand([url])
    location = locations[0]
    if len(locations) > 1 or not location.is_store:
        raise ConfigError(f"--store {url}: no such Zarr store; known are {', '.join(STORES)}, a URL or a folder")
    try:
        return _store(url, open_raw(location, with_dask=False, decode_times=True))
    except DataError as error:
        raise DataError(f"--store {error}") from error


def _store(url: str, raw: xr.Dataset) -> Store:
    axes = {}
    for axis in ("time", "level", "lat", "lon"):
        found = find_axis(raw, axis)
        if found is not None and found.dims:
            axes[axis] = found
        elif axis != "level":
            raise missing_axis(raw, axis)
    rows, lat = latitude_order(axes["lat"])
    columns, lon = longitude_order(axes["lon"])
    names = {values.dims[0]: axis for axis, values in axes.items() if values.dims[0] != axis}
    dataset = raw.drop_vars(raw.coords).rename_dims(names).isel(lat=rows, lon=columns)
    dataset = dataset.assign_coords(time=axes["time"].values, lat=lat, lon=lon)
    if "level" in axes:
        dataset = dataset.assign_coords(level=level_values(axes["level"]))
    name = url.rstrip("/").rpartition("/")[2]
    dataset.attrs = {**raw.attrs, "source": name}
    filled, preliminary = _filled_part(raw.attrs, dataset["time"].values)
    return Store(name, url, dataset, rows == slice(None, None, -1), filled, preliminary)


def _filled_part(
    attrs: dict[Any, Any], times: np.ndarray
) -> tuple[tuple[np.datetime64, np.datetime64], np.datetime64 | None]:
    """First and last time with values, and the first preliminary one, by ARCO-ERA5's attributes."""
    if not times.size:
        raise DataError("its time axis is empty")
    first, last, preliminary = times[0], times[-1], None
    hour = np.timedelta64(1, "h")
    if "valid_time_start" in attrs:
        first = max(first, np.datetime64(str(attrs["valid_time_start"]), "ns"))
    if "valid_time_stop" in attrs:
        last = min(last, _end(str(attrs["valid_time_stop"])))
    if "valid_time_stop_era5t" in attrs and _end(str(attrs["valid_time_stop_era5t"])) > last:
        preliminary = last + hour
        last = min(times[-1], _end(str(attrs["valid_time_stop_era5t"])))
    return (first, last), preliminary


def _end(text: str) -> np.datetime64:
    """The last hour of a day, where only the day is told."""
    end = np.datetime64(text)
    whole_day = np.datetime_data(end.dtype)[0] == "D"
    return end.astype("datetime64[ns]") + np.timedelta64(23 if whole_day else 0, "h")


def find_variable(store: Store, asked: str, step_hours: float) -> str:
    """The store's name of a variable that a user calls by its long or short name: "t2m" is "2m_temperature".

    Of precipitation, sums over the step that is asked for are preferred where the store has them, then sums over the
    store's own step.

    Raises:
        ConfigError: if the store has no such variable, naming the nearest that it has.
    """
    there = [str(name) for name in store.dataset.data_vars]
    lower = asked.lower()
    if asked in there:
        return asked
    known = [k for k in KNOWN_VARIABLES if lower == k.name or lower in k.aliases]
    names = [name for k in known for name in (k.name, *k.aliases) if name in there]
    names += [name for name in there if str(store.dataset[name].attrs.get("short_name", "")).lower() == lower]
    if not names:
        raise ConfigError(f"--variables {asked}: {store.name} has no such variable; {_nearest(asked, there)}")
    own_hours = store.step / np.timedelta64(1, "h")
    fitting = [name for hours in (step_hours, own_hours) for name in names if hours_summed(name, {}) == hours]
    return (fitting or names)[0]


def _nearest(asked: str, there: Sequence[str]) -> str:
    near = difflib.get_close_matches(asked.lower(), there, _NEAREST_TOLD, 0.3)
    near += [name for name in there if asked.lower() in name and name not in near]
    if len(there) <= 3 * _NEAREST_TOLD:
        return f"it has {', '.join(dict.fromkeys([*near, *there]))}"
    return f"the nearest of its {len(there)} are {', '.join((near or list(there))[:_NEAREST_TOLD])}"


def hours_summed(name: str, attrs: dict[Any, Any]) -> int | None:
    """Over how many hours up to the time a variable is summed; None for the state at the time."""
    found = _SUM_OF_HOURS.match(name)
    if found and found["stem"] in _ACCUMULATIONS:
        return int(found["hours"])
    return 1 if name in _ACCUMULATIONS or normalise_units(str(attrs.get("units", ""))) == "J m-2" else None
