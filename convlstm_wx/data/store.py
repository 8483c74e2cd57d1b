"""The [time, channel, lat, lon] array that training and forecasting gather from.

What fits the memory budget is kept in memory, the rest in a memory-mapped
file that goes with the process. Shapes: N times, C channels, H lat, W lon, F static fields.
"""

import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import xarray as xr
from tqdm import tqdm

from convlstm_wx.conventions import Channel
from convlstm_wx.data.reading import source_of
from convlstm_wx.errors import ConfigError, DataError

SLICE_BYTES = 256 * 2**20


def choose_channels(
    dataset: xr.Dataset, variables: Sequence[str] = (), levels: Sequence[float] = ()
) -> tuple[Channel, ...]:
    """The (variable, level) pairs to use: the variables named (default: all with a time), at the levels named (hPa).

    Raises:
        ConfigError: for a variable or level that the file does not have, naming those that it has.
    """
    there = [str(name) for name, values in dataset.data_vars.items() if "time" in values.dims]
    unknown = [name for name in variables if name not in there]
    if unknown:
        raise ConfigError(
            f"{source_of(dataset)}: no variable {', '.join(unknown)}; the file has {', '.join(there)}. "
            f"Check --variables."
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
            f"--target-variables {' '.join(unknown)}: not among the inputs {', '.join(c.name for c in channels)}"
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


def memory_budget_bytes(gigabytes: float | None) -> int:
    """The --memory-budget in bytes; by default half of the machine's memory."""
    if gigabytes is not None:
        return int(gigabytes * 2**30)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def time_slices(array_shape: Sequence[int], most_bytes: int = SLICE_BYTES) -> Iterator[slice]:
    """Slices of the first axis of a float32 array, each of at most the given bytes."""
    rows = max(1, most_bytes // (4 * int(np.prod(array_shape[1:]))))
    for start in range(0, array_shape[0], rows):
        yield slice(start, min(start + rows, array_shape[0]))


def read_values(
    dataset: xr.Dataset,
    channels: Sequence[Channel],
    *,
    budget_bytes: int,
    cache_folder: Path | None = None,
    label: str = "reading",
) -> np.ndarray:
    """All values in the file's own units, infinities as NaN, float32 [N, C, H, W].

    An array larger than the budget is a memory map of a nameless temporary file in the cache folder, which goes with
    the process.

    Raises:
        DataError: if the file cannot be read to its end, or the cache folder has no room.
    """
    shape = (dataset.sizes["time"], len(channels), dataset.sizes["lat"], dataset.sizes["lon"])
    values = _allocate(shape, budget_bytes, cache_folder)
    in_memory = not isinstance(values, np.memmap)
    # Compressed files hold long stretches of time in one piece: read a whole variable at once where it fits.
    slices = [slice(0, shape[0])] if in_memory else list(time_slices(shape))
    progress = tqdm(total=len(slices) * len(channels), desc=label, unit="piece", leave=False, disable=None)
    with progress:
        for index, channel in enumerate(channels):
            field = dataset[channel.variable]
            if channel.level is not None:
                field = field.sel(level=channel.level)
            for piece in slices:
                values[piece, index] = _load(field.isel(time=piece), dataset)
                progress.update()
    for piece in time_slices(shape):
        values[piece][~np.isfinite(values[piece])] = np.nan
    return values


def _allocate(shape: tuple[int, ...], budget_bytes: int, cache_folder: Path | None) -> np.ndarray:
    size = 4 * int(np.prod(shape))
    if size <= budget_bytes:
        return np.empty(shape, np.float32)
    try:
        with tempfile.TemporaryFile(dir=cache_folder) as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            else:  # macOS: a full disk shows only when the pages are written
                file.truncate(size)
            return np.memmap(file, np.float32, "r+", shape=shape)
    except OSError as error:
        folder = cache_folder or tempfile.gettempdir()
        raise DataError(
            f"no room for a cache of {size / 2**30:.1f} GB in {folder}: {error.strerror}. "
            f"Choose fewer --variables, a --target-region, or a larger --memory-budget."
        ) from error


def _load(field: xr.DataArray, dataset: xr.Dataset) -> np.ndarray:
    try:
        return np.asarray(field.values, np.float32)
    except (OSError, RuntimeError, ValueError) as error:
        raise DataError(
            f"{source_of(dataset)}: '{field.name}' cannot be read to its end ({error}); the file is damaged"
        ) from error
