"""Wind as speed and direction: a direction is an angle, which can be neither averaged nor learned as a plain number."""

import re
import shlex
from collections.abc import Sequence
from contextlib import suppress

import numpy as np
import xarray as xr

from convlstm_wx.conventions import Channel, recognise, unit_conversion
from convlstm_wx.data.flags import flag_name
from convlstm_wx.data.reading import source_of
from convlstm_wx.errors import ConfigError

_CHUNK_BYTES = 8e6
_AT_10_M = re.compile(r"^[a-z_]*(?<![a-z]x)10(_?m)?(?=$|[ _])|^sfcwind\b|\b10[ -]?m(et(er|re)s?)?\b", re.IGNORECASE)
_TOWARDS = re.compile(r"(?<![a-z])to[ _]direction|toward", re.IGNORECASE)


def directions(dataset: xr.Dataset, names: Sequence[str]) -> list[str]:
    """Those of the variables that are directions."""
    known = {name: recognise(name, dataset[name].attrs) for name in names}
    return [name for name, meant in known.items() if meant is not None and meant.circular]


def refuse_directions(
    dataset: xr.Dataset, channels: Sequence[Channel], paths: Sequence[str], *, option: str = "--variables"
) -> None:
    """Refuse to learn from a direction.

    Args:
        dataset: canonical.
        channels: those to learn from.
        paths: the files of the dataset, for the advice.
        option: where variables are chosen.

    Raises:
        ConfigError: naming the directions, and how to get wind components or leave them out.
    """
    names = list(dict.fromkeys(channel.variable for channel in channels))
    found = directions(dataset, names)
    if not found:
        return
    it = "it" if len(found) == 1 else "them"
    others = [name for name in names if name not in found]
    advice = [f"leave {it} out: {option} {shlex.join(others)}" if others else "add other variables, such as u and v"]
    with suppress(ConfigError):
        speed, direction = speed_and_direction(dataset)
        _names_of_components(dataset, speed)
        if found == [direction]:
            command = f"convlstm-wx prepare --data {shlex.join(paths)} --output components.nc --derive u v"
            advice.insert(0, f"make wind components of it: {command}")
    are = "is a direction" if len(found) == 1 else "are directions"
    raise ConfigError(
        f"{source_of(dataset)}: {', '.join(map(repr, found))} {are}, where 359 and 1 degrees are neighbours, and "
        f"cannot be learned as plain numbers; {', or '.join(advice)}"
    )


def speed_and_direction(dataset: xr.Dataset) -> tuple[str, str]:
    """The names of the dataset's wind speed and wind direction.

    Raises:
        ConfigError: if it has none of them, several, or both on other dimensions.
    """
    known = {str(name): recognise(str(name), field.attrs) for name, field in dataset.data_vars.items()}
    pair = []
    for kind, words in (("ws", "wind speed"), ("wdir", "wind direction")):
        found = [name for name, meant in known.items() if meant is not None and meant.name == kind]
        if len(found) != 1:
            has = f"several ({', '.join(found)})" if found else f"none among {', '.join(known)}"
            choice = "choose one with --variables" if found else "its units and long_name must say what it is"
            raise ConfigError(f"--derive u v: needed is one {words}, and there is {has}; {choice}")
        pair += found
    speed, direction = pair
    if dataset[speed].dims != dataset[direction].dims:
        on = [f"'{name}' is on ({', '.join(map(str, dataset[name].dims))})" for name in pair]
        raise ConfigError(f"--derive u v: {' and '.join(on)}; needed are the same dimensions")
    return speed, direction


def with_components(dataset: xr.Dataset) -> xr.Dataset:
    """Eastward and northward wind in place of the wind direction, lazily; the speed stays.

    u = -s sin(d) and v = -s cos(d), where d is the direction that the wind comes from, clockwise from north [CF
    conventions, wind_from_direction]; without the signs where it is the direction that it blows to. Missing where the
    speed or the direction is missing, the speed is negative, or the direction is no angle of one turn.

    Returns:
        With u and v, or u10 and v10 where the speed says that it is at 10 m, in the units of the speed. attrs
        "derived": what was done, in words.

    Raises:
        ConfigError: if there is no such pair, or several, or the new names are taken.
    """
    speed, direction = speed_and_direction(dataset)
    names = _names_of_components(dataset, speed)
    pair = dataset[[speed, direction]]
    if dataset[speed].chunks is None:  # else all of it would be read at once
        rows = int(_CHUNK_BYTES * pair.sizes["time"] / max(pair[speed].nbytes, 1))
        pair = pair.chunk(time=max(rows, 1))
    scale, _ = unit_conversion(str(dataset[direction].attrs.get("units", "1")), "degrees") or (1.0, 0.0)
    degrees, fast = (pair[name].reset_coords(drop=True).astype(np.float64) for name in (direction, speed))
    degrees = scale * degrees
    angle = np.deg2rad(degrees.where(abs(degrees) <= 360))
    towards = _TOWARDS.search(" ".join([direction, *map(str, dataset[direction].attrs.values())])) is not None
    fast = fast.where(fast >= 0) * (1 if towards else -1)
    dtype = dataset[speed].dtype if dataset[speed].dtype.kind == "f" else np.dtype(np.float32)
    made = {}
    for name, function, word in zip(names, (np.sin, np.cos), ("eastward", "northward")):
        height = "10 m " if name.endswith("10") else ""
        made[name] = (fast * function(angle)).astype(dtype)
        made[name].attrs = {
            "units": dataset[speed].attrs["units"],
            "standard_name": f"{word}_wind",
            "long_name": f"{height}{word} wind",
            "comment": f"{'' if towards else '-'}{speed} * {function.__name__}({direction})",
        }
    flags = [pair[flag_name(name)].reset_coords(drop=True) == 1 for name in pair if flag_name(name) in pair.coords]
    marks = {flag_name(name): sum(flags[1:], start=flags[0]).astype(np.int8) for name in names if flags}
    kept = dataset.drop_vars([direction, flag_name(direction)], errors="ignore").assign(made).assign_coords(marks)
    sense = "blows to" if towards else "comes from"
    source = f"the speed '{speed}' and the direction '{direction}' that the wind {sense}"
    return kept.assign_attrs(derived=f"{' and '.join(names)} from {source}; '{direction}' is left out")


def _names_of_components(dataset: xr.Dataset, speed: str) -> tuple[str, str]:
    """The names u and v, or u10 and v10 of a wind at 10 m."""
    told = f"{speed} {dataset[speed].attrs.get('long_name', '')}"
    names = ("u10", "v10") if "level" not in dataset[speed].dims and _AT_10_M.search(told) else ("u", "v")
    taken = [name for name in names if name in dataset]
    if taken:
        raise ConfigError(f"--derive u v: there is a variable '{taken[0]}' already; leave it out with --variables")
    return names
