"""Channels: which (variable, level) pairs of a dataset a network sees, and its fields without a time.

Shapes: F static fields, H lat, W lon.
"""

from collections.abc import Sequence

import numpy as np
import xarray as xr

from convlstm_wx.conventions import Channel
from convlstm_wx.data.flags import flag_name
from convlstm_wx.data.reading import source_of
from convlstm_wx.errors import ConfigError
from convlstm_wx.text import list_channels, list_names


def choose_channels(
    dataset: xr.Dataset, variables: Sequence[str] = (), levels: Sequence[float] = (), *, option: str = "--variables"
) -> tuple[Channel, ...]:
    """The (variable, level) pairs to use: the variables named (default: all with a time), at the levels named (hPa).

    The option is where the variables were named, for messages.

    Raises:
        ConfigError: for a variable or level that the file does not have, naming those that it has.
    """
    there = [str(name) for name, values in dataset.data_vars.items() if "time" in values.dims]
    masks = {mark.mask: f"{mark.mask} (a mask of {mark.variable})" for mark in dataset.attrs.get("masks", ())}
    unknown = [masks.get(name, name) for name in variables if name not in there]
    if unknown:
        raise ConfigError(
            f"{source_of(dataset)}: no variable {', '.join(unknown)}; the file has {list_names(there)}. Check {option}."
        )
    wanted = [float(level) for level in levels]
    held = [float(level) for level in dataset["level"].values] if "level" in dataset.dims else []
    missing = [f"{level:g}" for level in wanted if level not in held]
    if missing:
        has = ", ".join(f"{level:g}" for level in held) or "no levels"
        raise ConfigError(
            f"{source_of(dataset)}: no level {', '.join(missing)} hPa; the file has {has}. Check --levels."
        )
    channels: list[Channel] = []
    for name in dict.fromkeys(variables or there):
        at = [level for level in held if not wanted or level in wanted] if "level" in dataset[name].dims else [None]
        channels.extend(Channel(name, level) for level in at)
    return tuple(channels)


def choose_targets(channels: Sequence[Channel], target_variables: Sequence[str]) -> tuple[Channel, ...]:
    """The channels to forecast: those of the variables (or channel names) given, by default all.

    Raises:
        ConfigError: for a target that is not among the inputs.
    """
    names = {channel.variable for channel in channels} | {channel.name for channel in channels}
    unknown = [name for name in target_variables if name not in names]
    if unknown:
        raise ConfigError(
            f"--target-variables {' '.join(unknown)}: not among the inputs, which are {list_channels(channels)}; name "
            f"a variable, or one level of it as in z@500hPa"
        )
    wanted = set(target_variables) or names
    return tuple(channel for channel in channels if channel.variable in wanted or channel.name in wanted)


def static_names(dataset: xr.Dataset) -> tuple[str, ...]:
    """The fields without a time (orography, land-sea mask ...), by name."""
    return tuple(sorted(str(name) for name, values in dataset.data_vars.items() if values.dims == ("lat", "lon")))


def static_fields(dataset: xr.Dataset) -> np.ndarray:
    """These fields, each standardised, missing as 0, float32 [F, H, W]; one that is constant here is 0 throughout."""
    names = static_names(dataset)
    fields = np.zeros((len(names), dataset.sizes["lat"], dataset.sizes["lon"]), np.float32)
    for field, name in zip(fields, names):
        values = np.asarray(dataset[name].values, np.float64)
        known = np.isfinite(values)
        spread = values[known].std() if known.any() else 0.0
        if spread > 0:
            field[known] = (values[known] - values[known].mean()) / spread
    return fields


def flagged_channels(dataset: xr.Dataset, channels: Sequence[Channel]) -> list[Channel]:
    """Those of the channels that may hold filled values."""
    return [channel for channel in channels if flag_name(channel.variable) in dataset.coords]
