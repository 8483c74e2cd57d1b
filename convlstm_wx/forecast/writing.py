"""Forecast files: CF NetCDF or Zarr, written part by part, whole or not at all; a stop loses no finished part."""

import hashlib
from collections.abc import Callable, Iterable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from convlstm_wx.checkpoint import Checkpoint
from convlstm_wx.files import alone_in
from convlstm_wx.forecast.labelling import WB2_NAMES, data_texts, in_layout, statistics_of, time_coordinates
from convlstm_wx.forecast.rollout import Forecast
from convlstm_wx.gridfiles import Layout, writing
from convlstm_wx.pieces import Pieces


def write_forecast(parts: Iterable[xr.Dataset], path: Path, init_times: np.ndarray, *, layout: str = "cf") -> None:
    """Write a forecast to .nc or .zarr, whole or not at all, with no more than one part in memory.

    Args:
        parts: from :func:`~convlstm_wx.forecast.labelling.to_dataset`, for one stretch of init times after the other.
        path: its ending decides the format.
        init_times: of all parts.
        layout: 'cf', or 'wb2' for WeatherBench 2's names of dimensions and variables.

    Raises:
        ConfigError: for a folder that cannot be written or is full.
    """
    iterator = iter(parts)
    first = next(iterator)
    frame = _frame(first, init_times, layout)
    init_name = WB2_NAMES["init_time"] if layout == "wb2" else "init_time"
    layouts = {
        # Chunks no larger than a part: none is compressed twice.
        str(name): Layout(tuple(map(str, field.dims)), np.dtype(np.float32), dict(field.attrs), field.shape[0])
        for name, field in in_layout(first, layout).data_vars.items()
    }
    start = 0
    with writing(path, frame, layouts) as file:
        for part in chain([first], iterator):
            part = in_layout(part, layout)
            for name, field in part.data_vars.items():
                file.write(str(name), start, field.values)
            start += part.sizes[init_name]
        file.finish(first.attrs)


def _frame(first: xr.Dataset, init_times: np.ndarray, layout: str) -> xr.Dataset:
    """The coordinates of the whole file."""
    one = first.isel(init_time=0).drop_vars(("init_time", "valid_time"))
    coords = one.coords.to_dataset().assign_coords(time_coordinates(init_times, first["lead_time"].values))
    return in_layout(coords, layout)


def forecast_to_file(
    forecast: Forecast,
    output: Path,
    *,
    data_files: list[Any],
    layout: str = "cf",
    statistics: Path | None = None,
    restart: bool = False,
    tell: Callable[[str], None] = lambda _: None,
) -> np.ndarray:
    """Make a forecast and write it; stopped at any moment, the same call goes on where it was.

    Finished pieces lie in .NAME.partial beside the output until it is whole.

    Args:
        forecast: what to make.
        output: a path ending in .nc or .zarr.
        data_files: what identifies the data, see :func:`~convlstm_wx.data.cache.fingerprint`.
        layout: of :func:`write_forecast`.
        statistics: where the mean and the spread of an ensemble go too.
        restart: throw away unfinished pieces of another request.
        tell: is called with a line when it goes on.

    Returns:
        The init times in the file; those with missing inputs are left out.

    Raises:
        ConfigError: if pieces of another request are in the way, or the disk is full.
        DataError: if inputs have missing values.
    """
    request = _request(forecast) | {"data": data_files}
    pieces = Pieces(output, request, what="forecast", anew=restart, remedy="--restart")
    numbers = range(len(forecast.pieces))
    with alone_in(pieces.folder, "--output"):
        done = pieces.done(len(numbers))
        if done:
            tell(f"{len(done)} of {len(numbers)} pieces are here already")
        try:
            for number, init_times, values in forecast.make(done):
                pieces.add(number, {"init_times": init_times, "values": values})
        except BaseException:
            if not pieces.done(len(numbers)):
                pieces.remove()
            raise
        kept = np.concatenate([pieces.array(number, "init_times") for number in numbers])
        if not kept.size:
            pieces.remove()
        forecast.check_some(kept)
        filled = [number for number in numbers if len(pieces.array(number, "init_times"))]
        texts = data_texts(forecast.dataset)

        def part(number: int) -> xr.Dataset:
            made = forecast.labelled(*(values for _, values in pieces.read(number)))
            return made.assign_attrs(texts)

        write_forecast(map(part, filled), output, kept, layout=layout)
        if statistics is not None:
            write_forecast((statistics_of(part(number)) for number in filled), statistics, kept, layout=layout)
        pieces.remove()
    return kept


def _request(forecast: Forecast) -> dict[str, Any]:
    """All that the pieces depend on."""
    ensemble, init_times = forecast.ensemble, forecast.init_times.astype("datetime64[s]")
    return {
        "checkpoint": [_digest(each.checkpoint) for each in forecast.trained],
        "errors": _hash([forecast.residuals.fields_NLDHW]) if ensemble and ensemble.is_dressed else None,
        "init times": [len(init_times), str(init_times[0]), str(init_times[-1]), _hash([init_times.astype("int64")])],
        "lead steps": forecast.lead_steps,
        "ensemble": None if ensemble is None else vars(ensemble).copy(),
        "batch size": forecast.batch_size,
        "device": [forecast.policy.device.type, str(forecast.policy.amp_dtype)],
    }


def _digest(checkpoint: Checkpoint) -> str:
    return _hash([checkpoint.weights[name].float().numpy() for name in sorted(checkpoint.weights)])


def _hash(arrays: Iterable[np.ndarray]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:20]
