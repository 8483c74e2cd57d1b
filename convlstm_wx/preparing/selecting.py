"""Choosing a part of a canonical dataset: variables, levels, a box and a period."""

import re
from collections.abc import Sequence

import numpy as np
import xarray as xr

from convlstm_wx.data.channels import choose_channels
from convlstm_wx.data.reading import source_of
from convlstm_wx.data.regions import Region, select_region
from convlstm_wx.errors import ConfigError, DataError

_TIME = re.compile(r"\d{4}(-\d\d(-\d\d([T ]\d\d(:\d\d(:\d\d)?)?)?)?)?")


def parse_time(option: str, text: str, *, last: bool = False) -> np.datetime64:
    """A time of the user's: 2008, 2008-07, 2008-07-01 or 2008-07-01T12; the last second of it on demand.

    "--end 2008-07" means all of July, as everyone expects who writes it.

    Raises:
        ConfigError: if it is no time, naming the option.
    """
    try:
        if not _TIME.fullmatch(text.strip()):
            raise ValueError(text)
        time = np.datetime64(text.strip().replace(" ", "T"))
    except ValueError:
        raise ConfigError(f"{option} {text}: is not a time; write 2008-07-01, or 2008-07-01T12") from None
    seconds = (time + (1 if last else 0)).astype("datetime64[s]") - np.timedelta64(1 if last else 0, "s")
    return seconds.astype("datetime64[ns]")


def select_period(dataset: xr.Dataset, start: str | None, end: str | None) -> xr.Dataset:
    """The times from start to end, both included.

    Raises:
        ConfigError: for a text that is no time, or an end before the start.
        DataError: if there are no times between them.
    """
    times = dataset["time"].values
    first = times[0] if start is None else parse_time("--start", start)
    last = times[-1] if end is None else parse_time("--end", end, last=True)
    if start and end and last < first:
        raise ConfigError(f"--end {end}: is before --start {start}")
    inside = np.flatnonzero((times >= first) & (times <= last))
    if inside.size == 0:
        raise DataError(
            f"{source_of(dataset)}: no times between {start or 'its start'} and {end or 'its end'}; it covers "
            f"{_minutes(times[0])} to {_minutes(times[-1])}. Check --start and --end."
        )
    return dataset.isel(time=slice(inside[0], inside[-1] + 1))


def _minutes(time: np.datetime64) -> str:
    return str(time.astype("datetime64[m]"))


def select(
    dataset: xr.Dataset,
    *,
    variables: Sequence[str] = (),
    levels: Sequence[float] = (),
    region: Region | None = None,
    start: str | None = None,
    end: str | None = None,
) -> xr.Dataset:
    """The part of a canonical dataset that is asked for; fields without a time always stay.

    Raises:
        ConfigError: for a variable or level that the data do not have, or a text that is no time.
        DataError: for a box or a period without data.
    """
    static = [str(name) for name, field in dataset.data_vars.items() if "time" not in field.dims]
    timed = [name for name in variables if name not in static]
    if variables and not timed:
        raise ConfigError(f"--variables {' '.join(variables)}: these have no time; name one that has")
    channels = choose_channels(dataset, timed, levels)
    kept = dict.fromkeys([channel.variable for channel in channels] + static)
    part = dataset[list(kept)]
    if levels and "level" in part.dims:
        part = part.isel(level=np.flatnonzero(np.isin(part["level"].values, np.asarray(levels, float))))
    return select_period(select_region(part, region, option="--region"), start, end)
