"""Pieces: a dataset's values read one stretch of time after the other, each value once.

Shapes: N times, C channels, M channels with flags of filled values, H lat, W lon.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import xarray as xr
from tqdm import tqdm

from convlstm_wx.conventions import Channel
from convlstm_wx.data.channels import flagged_channels
from convlstm_wx.data.flags import flag_name
from convlstm_wx.data.store import SLICE_BYTES, time_slices
from convlstm_wx.errors import DataError


def read_pieces(
    dataset: xr.Dataset,
    channels: Sequence[Channel],
    times: np.ndarray,
    *,
    most_bytes: int = SLICE_BYTES,
    label: str = "reading",
) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """All values at the given times, in the file's own units, one stretch of time after the other.

    Args:
        dataset: canonical.
        channels: C of them.
        times: N times; those that the dataset does not have are missing.
        most_bytes: of one piece.
        label: of the progress bar.

    Yields:
        The slice of times; values [n, C, H, W] float32 with missing as NaN; which of them were filled, or not observed
        by a mask [n, M, H, W] bool, M the channels of :func:`flagged_channels`.

    Raises:
        DataError: if the file cannot be read to its end.
    """
    shape = (len(times), len(channels), dataset.sizes["lat"], dataset.sizes["lon"])
    flagged = flagged_channels(dataset, channels)
    at = positions(dataset["time"].values, times)
    slices = list(time_slices(shape, most_bytes))
    for piece in tqdm(slices, desc=label, unit="piece", leave=False, disable=None if len(slices) > 1 else True):
        values = np.full((piece.stop - piece.start, *shape[1:]), np.nan, np.float32)
        filled = np.zeros((len(values), len(flagged), *shape[2:]), bool)
        there = at[piece] >= 0
        if there.any():
            rows = _stretch(at[piece][there])
            for variable in dict.fromkeys(channel.variable for channel in channels):
                field = dataset[variable].isel(time=rows)
                _take(field, variable, channels, values, there)
                if flag_name(variable) in dataset.coords:
                    _take(field[flag_name(variable)], variable, flagged, filled, there)
        yield piece, values, filled


def positions(there: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Where each wanted time stands among the increasing ones that are there, -1 for none."""
    at = np.minimum(np.searchsorted(there, wanted), len(there) - 1)
    return np.where(there[at] == wanted, at, -1)


def _stretch(at: np.ndarray) -> slice | np.ndarray:
    """An index array as a slice where it is one: files are read faster so."""
    return slice(int(at[0]), int(at[-1]) + 1) if at[-1] - at[0] == len(at) - 1 else at


def _take(
    field: xr.DataArray, variable: str, channels: Sequence[Channel], into_NCHW: np.ndarray, rows_N: np.ndarray
) -> None:
    """The levels of one variable, read at once, into their channels."""
    wanted = {index: channel.level for index, channel in enumerate(channels) if channel.variable == variable}
    levels = [level for level in wanted.values() if level is not None]
    block = _load(field.sel(level=levels) if levels else field)
    whole = bool(rows_N.all())
    for place, index in enumerate(wanted):
        layer = block[:, place] if levels else block
        with np.errstate(over="ignore"):  # beyond float32 is infinite
            if whole:
                into_NCHW[:, index] = layer
            else:
                into_NCHW[rows_N, index] = layer


def _load(field: xr.DataArray) -> np.ndarray:
    try:
        return field.values
    except Exception as error:  # the libraries below, and the network, raise almost anything
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(
            f"'{field.name}' cannot be read to its end ({reason}); the file is damaged, or its store out of reach"
        ) from error
