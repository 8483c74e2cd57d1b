"""Labels: from what a network gives to fields with names, coordinates and CF attributes, in physical units.

Shapes: N init times, R members, L lead times, D target channels, H lat, W lon.
"""

from collections.abc import Mapping

import numpy as np
import xarray as xr

from convlstm_wx import __version__
from convlstm_wx.conventions import physical_limits, unit_conversion, weatherbench_name
from convlstm_wx.data.projection import PLACE_ATTRIBUTES, axis_attributes
from convlstm_wx.data.rain import RainMeans
from convlstm_wx.data.reading import NAME_IN_DATA, is_projected
from convlstm_wx.data.regions import Grid
from convlstm_wx.data.spec import DataSpec
from convlstm_wx.gridfiles import CONVENTIONS, described

WB2_NAMES = {"init_time": "time", "lead_time": "prediction_timedelta", "lat": "latitude", "lon": "longitude"}
LEVEL = {"standard_name": "air_pressure", "units": "hPa", "positive": "down", "axis": "Z"}
REALIZATION = {"standard_name": "realization", "long_name": "member of the ensemble", "units": "1"}
VALID_TIME = {"standard_name": "time", "long_name": "valid time", "units_metadata": "leap_seconds: none"}
_KEPT_TEXTS = (
    "license", "licence", "copyright", "rights", "acknowledgement", "acknowledgment", "references", "citation", "doi",
)  # fmt: skip
AS_IT_IS = RainMeans({})
_TEXTS_OF_DATA = ("institution", "source")


def to_physical(
    spec: DataSpec, init_time: np.datetime64, fields_LDHW: np.ndarray, rain: RainMeans = AS_IT_IS
) -> np.ndarray:
    """Normalised fields of one init time in the file's own units, within physical limits, float32 [L, D, H, W].

    Points never observed in training are NaN.

    Args:
        rain: turns forecasts of precipitation into means.
    """
    valid_times = init_time.astype("datetime64[ns]") + lead_times(spec, len(fields_LDHW))
    statistics = spec.target.statistics.select(spec.targets)
    values = statistics.to_physical(fields_LDHW, valid_times)
    rain.apply(values, statistics)
    for index, channel in enumerate(spec.targets):
        limits = physical_limits(channel.variable, spec.target.attributes[channel.variable])
        if limits is not None:
            np.clip(values[:, index], *limits, out=values[:, index])
    return values


def lead_times(spec: DataSpec, lead_steps: int) -> np.ndarray:
    """The first is one step."""
    return np.arange(1, lead_steps + 1) * spec.step.astype("timedelta64[ns]")


def to_dataset(spec: DataSpec, init_times: np.ndarray, values: np.ndarray) -> xr.Dataset:
    """Physical values [N, L, D, H, W], or of an ensemble [N, R, L, D, H, W], as a labelled dataset.

    Returns:
        Variables under their own names with dimensions init_time, [realization,] lead_time (timedelta, the first is one
        step), [level,] lat, lon; coordinate valid_time (init_time, lead_time). On a projected grid lat and lon are its
        rows and columns, with coordinates latitude and longitude (lat, lon).
    """
    members = ("realization",) if values.ndim == 6 else ()
    leads = lead_times(spec, values.shape[-4])
    variables = [_variable(spec, name, values, members) for name in dict.fromkeys(c.variable for c in spec.targets)]
    dataset = xr.merge(variables, join="outer")  # a level that only one variable has is missing in the others
    dataset = dataset.assign_coords(time_coordinates(init_times.astype("datetime64[ns]"), leads))
    if members:
        numbers = np.arange(values.shape[1], dtype=np.int32)
        dataset = dataset.assign_coords(realization=("realization", numbers, REALIZATION))
    dataset = _on_grid(dataset, spec.target.grid, descending=spec.lat_descending)
    dataset.attrs = {
        "Conventions": CONVENTIONS,
        "title": "Regional weather forecast by a ConvLSTM network",
        "source": f"convlstm_wx {__version__}, trained on {spec.source}",
        "history": f"convlstm-wx {__version__} forecast",
    }
    return dataset


def time_coordinates(init_times: np.ndarray, leads: np.ndarray) -> dict[str, tuple]:
    """init_time, lead_time and the valid_time of each pair."""
    valid_times = init_times[:, None] + leads
    return {
        "init_time": ("init_time", init_times, {"standard_name": "forecast_reference_time", "long_name": "init time"}),
        "lead_time": ("lead_time", leads, {"standard_name": "forecast_period", "long_name": "lead time"}),
        "valid_time": (("init_time", "lead_time"), valid_times, VALID_TIME),
    }


def data_texts(dataset: xr.Dataset) -> dict[str, str]:
    """What the data say of their licence and origin, to be handed on with what is made of them."""
    texts = dataset.attrs.get("texts", {})
    kept = {name: texts[name] for name in _KEPT_TEXTS if name in texts}
    return kept | {f"data_{name}": texts[name] for name in _TEXTS_OF_DATA if name in texts}


def statistics_of(made: xr.Dataset) -> xr.Dataset:
    """Mean and standard deviation (n - 1) over the members: each variable under its own name, and NAME_spread."""
    variables: dict[str, xr.DataArray] = {}
    for name, field in made.data_vars.items():
        before = f"{field.attrs['cell_methods']} " if "cell_methods" in field.attrs else ""
        long_name = field.attrs.get("long_name", name)
        for key, values, method in (
            (str(name), field.mean("realization"), "mean"),
            (f"{name}_spread", field.std("realization", ddof=1), "standard_deviation"),
        ):
            attrs = {"long_name": f"ensemble {method.replace('_', ' ')} of {long_name}"}
            attrs["cell_methods"] = f"{before}realization: {method}"
            if method != "mean" and "units_metadata" in field.attrs:
                attrs["units_metadata"] = "temperature: difference"
            variables[key] = values.astype(np.float32).assign_attrs(dict(field.attrs) | attrs)
    return xr.Dataset(variables, attrs=made.attrs).drop_vars("realization", errors="ignore")


def in_layout(dataset: xr.Dataset, layout: str) -> xr.Dataset:
    """Under the names of a file: 'cf', or 'wb2' for WeatherBench 2's; rows and columns of a projection as y and x."""
    if layout == "wb2":
        if "level" in dataset.dims and not (dataset["level"] % 1).any():
            dataset = dataset.assign_coords(level=dataset["level"].astype(np.int64))
        names = _weatherbench_variables(dataset)
        dataset = dataset.drop_vars("valid_time").rename(names)
        for own, new in names.items():
            dataset[new].attrs[NAME_IN_DATA] = own
    if is_projected(dataset):
        dataset = dataset.rename(lat="y", lon="x").rename(latitude="lat", longitude="lon")
    return dataset.rename(WB2_NAMES) if layout == "wb2" else dataset


def _weatherbench_variables(dataset: xr.Dataset) -> Mapping[str, str]:
    """New names, none of them twice."""
    found: dict[str, str] = {}
    for name, field in dataset.data_vars.items():
        new = weatherbench_name(str(name), field.attrs, on_levels="level" in field.dims)
        if new != name and new not in found.values() and new not in dataset:
            found[str(name)] = new
    return found


def _variable(spec: DataSpec, name: str, values: np.ndarray, members: tuple[str, ...]) -> xr.Dataset:
    """One variable, its levels stacked along `level` where it has any."""
    at = [index for index, channel in enumerate(spec.targets) if channel.variable == name]
    levels = [spec.targets[index].level for index in at]
    if levels[0] is None:
        field = xr.DataArray(values[..., at[0], :, :], dims=("init_time", *members, "lead_time", "lat", "lon"))
    else:
        dims = ("init_time", *members, "lead_time", "level", "lat", "lon")
        field = xr.DataArray(values[..., at, :, :], dims=dims, coords={"level": ("level", levels, LEVEL)})
    attributes = described(name, spec.target.attributes[name])
    if unit_conversion(attributes["units"], "K") is not None:
        attributes["units_metadata"] = "temperature: on_scale"
    return field.assign_attrs(attributes).to_dataset(name=name)


def _on_grid(dataset: xr.Dataset, grid: Grid, *, descending: bool) -> xr.Dataset:
    """The same fields with coordinates in space, rows in the file's own order."""
    attributes = {name: PLACE_ATTRIBUTES[place] for name, place in (("lat", "latitude"), ("lon", "longitude"))}
    if grid.projected:
        attributes = {name: axis_attributes(grid.units, name) for name in ("lat", "lon")}
    dataset = dataset.assign_coords(
        lat=("lat", np.asarray(grid.lat), {**attributes["lat"], "axis": "Y"}),
        lon=("lon", np.asarray(grid.lon), {**attributes["lon"], "axis": "X"}),
    )
    if grid.projected:
        places = zip(("latitude", "longitude"), grid.places())
        dataset = dataset.assign_coords({name: (("lat", "lon"), at, PLACE_ATTRIBUTES[name]) for name, at in places})
    return dataset.isel(lat=slice(None, None, -1 if descending else 1))
