"""Fetching a region from a public store, in pieces that outlive a stop.

A piece is a month, or less where a month would not fit into memory. Finished pieces lie in a folder beside the output;
the same command goes on where it stopped, and joins them at the end.
"""

import json
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from tqdm import tqdm

from convlstm_wx import __version__
from convlstm_wx.errors import DataError
from convlstm_wx.gridfiles import size_on_disk, writing
from convlstm_wx.pieces import Pieces
from convlstm_wx.preparing.planning import Field, Piece, Plan
from convlstm_wx.text import count

logger = logging.getLogger(__name__)

_ATTEMPTS = 4
_FIRST_PAUSE_S = 1.0
_DOWNLOADING_BYTES = 400e6
_MOST_AT_ONCE = 16
CITATION = (
    "Hersbach, H., et al. (2020): The ERA5 global reanalysis, Q. J. R. Meteorol. Soc., 146, 1999-2049, "
    "doi:10.1002/qj.3803; Copernicus Climate Change Service (C3S) Climate Data Store, doi:10.24381/cds.adbb2d47 and "
    "doi:10.24381/cds.bd0915c6"
)
LICENCE = (
    "ERA5 is produced by ECMWF for the Copernicus Climate Change Service and is free to use under the Copernicus "
    "licence, if the source is named. This file holds modified Copernicus Climate Change Service information; neither "
    "the European Commission nor ECMWF is responsible for any use made of it."
)


def fetch(plan: Plan, output: Path, *, overwrite: bool = False) -> Iterator[str]:
    """Download what is still missing and write the file, whole or not at all; yields an account, line by line.

    Raises:
        ConfigError: if an unfinished download of another request is in the way, or the disk is full.
        DataError: if the store does not answer; the same command then goes on from there.
    """
    request = plan.request.describe(plan.store) | {"pieces": [piece.stop for piece in plan.pieces]}
    finished = Pieces(output, request, what="download", anew=overwrite, remedy="--overwrite")
    done = finished.done(len(plan.pieces))
    if done:
        yield f"going on   {len(done)} of {count(len(plan.pieces), 'piece')} are here already"
    bar = tqdm(total=len(plan.pieces), initial=len(done), desc="fetching", unit="piece", leave=False, disable=None)
    with bar:
        for index, piece in enumerate(plan.pieces):
            if index not in done:
                finished.add(index, {field.name: _read(plan, field, piece) for field in plan.fields})
                bar.update()
    frame = _frame(plan)
    empty = dict.fromkeys((field.name for field in plan.fields), 0)
    with writing(output, frame, {field.name: field.layout for field in plan.fields}) as file:
        for index, piece in enumerate(plan.pieces):
            for name, values in finished.read(index):
                file.write(name, piece.start, values)
                empty[name] += int(np.isnan(values).reshape(len(values), -1).all(axis=1).sum())
        file.finish(_provenance(plan))
    finished.remove()
    for name, number in empty.items():
        if number:
            yield f"note       {name} has no value at all at {number:,} of {count(len(plan.times), 'time')}"
    yield f"written    {output} ({size_on_disk(output)})"


def _read(plan: Plan, field: Field, piece: Piece) -> np.ndarray:
    """Values of a piece [T, [L,] H, W], latitudes in the store's order; accumulations summed over the step."""
    at = plan.at[piece.start : piece.stop]
    values = plan.part[field.source]
    stride = int(at[1] - at[0]) if len(at) > 1 else 1
    if field.summed_steps > 1:
        hours = values.isel(time=slice(int(at[0]) - field.summed_steps + 1, int(at[-1]) + 1))
        read = _loaded(plan, hours, field.layout.dims)
        summed = read.reshape(len(at), field.summed_steps, *read.shape[1:]).sum(axis=1, dtype=np.float64)
        return _own_rows(plan, summed.astype(field.layout.dtype))
    chosen = values.isel(time=slice(int(at[0]), int(at[-1]) + 1, stride))
    return _own_rows(plan, _loaded(plan, chosen, field.layout.dims).astype(field.layout.dtype, copy=False))


def _own_rows(plan: Plan, values: np.ndarray) -> np.ndarray:
    return values[..., ::-1, :] if plan.store.rows_descend else values


@contextmanager
def _at_once(values: xr.DataArray) -> Iterator[None]:
    """As many chunks at a time as fit the memory: ARCO-ERA5's with levels have 154 MB, others 4 MB."""
    import zarr

    chunk_bytes = prod(values.encoding.get("chunks") or values.shape) * values.dtype.itemsize
    at_once = int(np.clip(_DOWNLOADING_BYTES // max(chunk_bytes, 1), 2, _MOST_AT_ONCE))
    with zarr.config.set({"async.concurrency": at_once}):
        yield


def _loaded(plan: Plan, values: xr.DataArray, dims: Sequence[str]) -> np.ndarray:
    """Download, a few times if need be."""
    for attempt in range(_ATTEMPTS):
        try:
            # Transposed only when loaded: a lazy transpose would pick the points of a chunk one by one.
            with _at_once(values):
                return values.copy(deep=False).load().transpose(*dims).values
        except Exception as error:  # the libraries below raise almost anything when a network fails
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            if attempt + 1 == _ATTEMPTS:
                raise DataError(
                    f"{plan.store.name}: '{values.name}' could not be fetched in {_ATTEMPTS} attempts ({reason}). What "
                    "is here already is kept: run the same command again to go on."
                ) from error
            pause = _FIRST_PAUSE_S * 2**attempt
            logger.warning("'%s' could not be fetched (%s); trying again in %g s", values.name, reason, pause)
            time.sleep(pause)
    raise AssertionError("unreachable")


def _frame(plan: Plan) -> xr.Dataset:
    """Coordinates and fields without a time."""
    lat = plan.part["lat"].values
    coords: dict[str, Any] = {"time": plan.times, "lat": lat[::-1] if plan.store.rows_descend else lat}
    coords["lon"] = plan.part["lon"].values
    if "level" in plan.part.dims:
        coords["level"] = plan.part["level"].values
    frame = xr.Dataset(coords={name: (name, values) for name, values in coords.items()})
    for field in plan.static:
        values = _own_rows(plan, _loaded(plan, plan.part[field.source], field.layout.dims))
        frame[field.name] = (field.layout.dims, values.astype(field.layout.dtype), dict(field.layout.attrs))
    return frame


def _provenance(plan: Plan) -> dict[str, Any]:
    made = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
    remote = "://" in plan.store.url
    request = plan.request.describe(plan.store)
    request |= {"store": plan.store.url if remote else plan.store.name}
    return {
        "title": "ERA5 over a region",
        "source": f"ERA5 reanalysis (ECMWF), from {request['store']}",
        "institution": "European Centre for Medium-Range Weather Forecasts",
        "references": CITATION,
        "license": LICENCE,
        "history": f"{made} convlstm-wx {__version__} fetch era5",
        "fetch_request": json.dumps(request, sort_keys=True),
        "fetch_variables": json.dumps({field.name: field.source for field in plan.fields + plan.static}),
    }
