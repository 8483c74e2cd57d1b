"""Planning a download: what is asked for, looked up in a store, and how much it is. Nothing is downloaded here."""

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from math import prod
from typing import Any

import numpy as np
import xarray as xr

from convlstm_wx.conventions import normalise_units, recognise
from convlstm_wx.data.reading import describe_step
from convlstm_wx.data.regions import Region, select_region
from convlstm_wx.errors import ConfigError, DataError
from convlstm_wx.files import describe_bytes
from convlstm_wx.gridfiles import Layout, described
from convlstm_wx.preparing.selecting import parse_time
from convlstm_wx.preparing.stores import Store, find_variable, hours_summed
from convlstm_wx.text import count

logger = logging.getLogger(__name__)

_PIECE_BYTES = 256e6
_HOUR = np.timedelta64(1, "h")


@dataclass(frozen=True)
class Request:
    """What to fetch.

    Attributes:
        variables: long or short names; the file gets the names as they are written here.
        levels: hPa, empty for all of the store.
        region: the box.
        start, end: as the user writes them; the end is included.
        step_hours: between two times of the file.
    """

    variables: tuple[str, ...]
    region: Region
    start: str
    end: str
    levels: tuple[float, ...] = ()
    step_hours: int = 6

    def describe(self, store: Store) -> dict[str, Any]:
        """Plain types, to tell whether a later request is the same."""
        return json.loads(json.dumps(asdict(self) | {"store": store.url}))


@dataclass(frozen=True)
class Field:
    """One variable of a plan.

    Attributes:
        name: in the output.
        source: in the store.
        summed_steps: how many of the store's steps are added up to one value; 1 for the state at the time.
        layout: in the output.
    """

    name: str
    source: str
    summed_steps: int
    layout: Layout


@dataclass(frozen=True)
class Piece:
    """Times from index start to before stop."""

    start: int
    stop: int


@dataclass(frozen=True)
class Plan:
    """A request, looked up in the store; nothing is downloaded yet.

    Attributes:
        part: the region and levels of the store, lazily, all times.
        times: of the output.
        at: their positions in the store.
        fields, static: variables with and without a time.
        pieces: what is fetched at once.
        chunks: chunks of the store to download.
        download_bytes: their size before compression, so that the download is smaller.
        output_bytes: size of the output before compression.
    """

    store: Store
    request: Request
    part: xr.Dataset
    times: np.ndarray
    at: np.ndarray
    fields: tuple[Field, ...]
    static: tuple[Field, ...]
    pieces: tuple[Piece, ...]
    chunks: int
    download_bytes: float
    output_bytes: float

    @property
    def sizes(self) -> dict[str, int]:
        """Points along each dimension of the output."""
        there = {"time": len(self.times), "lat": self.part.sizes["lat"], "lon": self.part.sizes["lon"]}
        return there | ({"level": self.part.sizes["level"]} if "level" in self.part.sizes else {})

    def lines(self) -> Iterator[str]:
        """The plan for people, before it starts."""
        ends = self.times.astype("datetime64[m]").astype(str)
        lat, lon = self.part["lat"].values, self.part["lon"].values
        yield f"store      {self.store.url}"
        yield (
            f"region     {self.sizes['lat']} x {self.sizes['lon']} points, {lat[0]:g} to {lat[-1]:g} degrees north, "
            f"{lon[0]:g} to {lon[-1]:g} degrees east"
        )
        step = describe_step(np.timedelta64(self.request.step_hours, "h"))
        yield f"times      {len(self.times):,}, one each {step}, from {ends[0]} to {ends[-1]}"
        for field in self.fields + self.static:
            yield f"{field.name:<10} {self._origin(field)}"
        size = f"{describe_bytes(self.download_bytes)} in {count(self.chunks, 'chunk')}"
        yield (
            f"download   at most {size} (the size before compression); the file will have about "
            f"{describe_bytes(self.output_bytes)}, less where it compresses"
        )

    def _origin(self, field: Field) -> str:
        if "time" not in field.layout.dims:
            return f"{field.source}, without a time"
        hours = hours_summed(field.source, self.part[field.source].attrs)
        if hours is None:
            return f"{field.source}, at the time"
        return f"{field.source}, summed over the {hours * field.summed_steps} h up to the time"


def make_plan(store: Store, request: Request) -> Plan:
    """Look up what is asked for and how much it is.

    Raises:
        ConfigError: for a variable, level or time that makes no sense.
        DataError: for a region or period that the store does not hold.
    """
    if not request.variables:
        raise ConfigError("--variables: name at least one, such as t2m msl tp")
    sources = {asked: find_variable(store, asked, request.step_hours) for asked in dict.fromkeys(request.variables)}
    repeated = [asked for asked in sources if list(sources.values()).count(sources[asked]) > 1]
    if repeated:
        raise ConfigError(f"--variables {' '.join(repeated)}: these are the same variable; give it once")
    part = select_region(_levels(store, request, list(sources.values())), request.region, option="--region")
    times, at = _times(store, request)
    part = part.assign({name: part[name][int(at[0])] for name in sources.values() if _is_repeated(part[name])})
    fields = tuple(_field(part, asked, source, request, store) for asked, source in sources.items())
    timed = tuple(field for field in fields if "time" in field.layout.dims)
    if not timed:
        raise ConfigError(f"--variables {' '.join(sources)}: these have no time; name one that has, such as t2m")
    before = max(field.summed_steps for field in timed) - 1
    if at[0] < before or store.dataset["time"].values[at[0] - before] < store.filled[0]:
        first = store.filled[0] + (before * store.step)
        raise DataError(
            f"--start {request.start}: sums need {count(before, 'step')} before it; start at {_minutes(first)}"
        )
    static = tuple(field for field in fields if field not in timed)
    chunks, size = _download(store, part, timed + static, at)
    sizes = dict(part.sizes) | {"time": len(times)}
    output = sum(field.layout.dtype.itemsize * prod(sizes[dim] for dim in field.layout.dims) for field in fields)
    row = output / len(times) * max(field.summed_steps for field in timed)
    pieces = tuple(_pieces(times, max(1, int(_PIECE_BYTES / row))))
    return Plan(store, request, part, times, at, timed, static, pieces, chunks, size, output)


def check_size(plan: Plan, most_gigabytes: float) -> None:
    """Refuse what is too much to download unawares.

    Raises:
        ConfigError: saying how to make it smaller.
    """
    if plan.download_bytes > most_gigabytes * 1e9:
        size = f"{describe_bytes(plan.download_bytes)} in {count(plan.chunks, 'chunk')}"
        raise ConfigError(
            f"at most {size} are to be downloaded, more than --max-download {most_gigabytes:g} GB. Choose a shorter "
            "period, a longer --step, fewer --variables or a coarser --store (a smaller region does not help where a "
            "chunk holds the globe), or raise --max-download."
        )


def _levels(store: Store, request: Request, names: Sequence[str]) -> xr.Dataset:
    part = store.dataset[list(names)]
    if "level" not in part.dims:
        if request.levels:
            raise ConfigError(f"--levels: none of {', '.join(names)} has levels")
        return part
    held = part["level"].values
    missing = [f"{level:g}" for level in request.levels if level not in held]
    if missing:
        has = ", ".join(f"{level:g}" for level in held)
        raise ConfigError(f"--levels {' '.join(missing)}: {store.name} has {has} hPa")
    return part.isel(level=np.flatnonzero(np.isin(held, request.levels))) if request.levels else part


def _times(store: Store, request: Request) -> tuple[np.ndarray, np.ndarray]:
    """The times of the output, and where they stand in the store."""
    first = parse_time("--start", request.start)
    last = parse_time("--end", request.end, last=True)
    if last < first:
        raise ConfigError(f"--end {request.end}: is before --start {request.start}")
    step = np.timedelta64(request.step_hours, "h")
    times = np.arange(first, last + np.timedelta64(1, "ns"), step.astype("timedelta64[ns]"))
    if times[0] < store.filled[0] or times[-1] > store.filled[1]:
        raise DataError(
            f"{_minutes(times[0])} to {_minutes(times[-1])}: {store.name} holds values from "
            f"{_minutes(store.filled[0])} to {_minutes(store.filled[1])}. Check --start and --end."
        )
    if store.preliminary_from is not None and times[-1] >= store.preliminary_from:
        logger.warning(
            "from %s on the values are preliminary (ERA5T) and may still change", _minutes(store.preliminary_from)
        )
    there = store.dataset["time"].values
    at = np.searchsorted(there, times)
    if (there[np.minimum(at, len(there) - 1)] != times).any():
        raise ConfigError(
            f"--step {request.step_hours}h from {_minutes(first)}: {store.name} has one time each "
            f"{describe_step(store.step)} from {_minutes(there[0])}; choose a multiple of it, and a --start among them"
        )
    if len(np.unique(np.diff(at))) > 1:
        raise DataError(f"{store.name}: its time axis has a gap between {_minutes(times[0])} and {_minutes(times[-1])}")
    return times, at


def _minutes(moment: np.datetime64) -> str:
    return str(moment.astype("datetime64[m]"))


def _field(part: xr.Dataset, asked: str, source: str, request: Request, store: Store) -> Field:
    values = part[source]
    dims = tuple(dim for dim in ("time", "level", "lat", "lon") if dim in values.dims)
    unfit = set(values.dims) - set(dims)
    if unfit or not {"lat", "lon"} <= set(dims):
        raise ConfigError(f"--variables {asked}: '{source}' has the dimensions {', '.join(map(str, values.dims))}")
    kept = {key: str(values.attrs[key]) for key in ("long_name", "standard_name") if values.attrs.get(key)}
    if kept.get("standard_name") == "unknown":
        del kept["standard_name"]
    attrs = described(asked, kept | {"units": normalise_units(str(values.attrs.get("units", "")))})
    steps = 1
    hours = hours_summed(source, values.attrs) if "time" in dims else None
    if hours is not None:
        attrs["cell_methods"] = "time: sum"
        steps = _steps_to_sum(asked, source, hours, request.step_hours, store.step / _HOUR)
    dtype = values.dtype.newbyteorder("=") if values.dtype.kind == "f" else np.dtype(np.float32)
    return Field(asked, source, steps, Layout(dims, dtype, attrs))


def _is_repeated(field: xr.DataArray) -> bool:
    """Whether a field that never changes is stored at every time."""
    known = recognise(str(field.name), field.attrs)
    return "time" in field.dims and known is not None and known.static


def _steps_to_sum(asked: str, source: str, hours: int, step_hours: int, store_hours: float) -> int:
    """How many values of an accumulation make one of the output."""
    if hours == step_hours:
        return 1
    if hours == store_hours and step_hours % hours == 0:
        return step_hours // hours
    raise ConfigError(
        f"--variables {asked}: '{source}' holds sums over {hours} h, one each {store_hours:g} h, which do not add up "
        f"to --step {step_hours}h; choose another --step, or leave it out"
    )


def _pieces(times: np.ndarray, most: int) -> Iterator[Piece]:
    """Months, cut further where they have more times than may be fetched at once."""
    months = times.astype("datetime64[M]")
    starts = [0, *(np.flatnonzero(months[1:] != months[:-1]) + 1), len(times)]
    for start, stop in pairwise(starts):
        for cut in range(int(start), int(stop), most):
            yield Piece(cut, min(cut + most, int(stop)))


def _download(store: Store, part: xr.Dataset, fields: Sequence[Field], at: np.ndarray) -> tuple[int, float]:
    """Chunks that hold what is asked for, and their size before compression."""
    rows = np.flatnonzero(np.isin(store.dataset["lat"].values, part["lat"].values))
    if store.rows_descend:
        rows = store.dataset.sizes["lat"] - 1 - rows
    turns = np.mod(part["lon"].values[:, None] - store.dataset["lon"].values, 360)
    columns = np.flatnonzero((np.minimum(turns, 360 - turns) < 1e-6).any(axis=0))
    indices = {"lat": rows, "lon": columns}
    if "level" in part.dims:
        indices["level"] = np.flatnonzero(np.isin(store.dataset["level"].values, part["level"].values))
    chunks, size = 0, 0.0
    for field in fields:
        values = store.dataset[field.source]
        timed = "time" in field.layout.dims
        indices["time"] = (at[:, None] - np.arange(field.summed_steps)).ravel() if timed else at[:1]
        shape = values.encoding.get("chunks") or values.shape
        touched = prod(len(np.unique(indices[str(dim)] // edge)) for dim, edge in zip(values.dims, shape))
        chunks += touched
        size += touched * prod(shape) * values.encoding.get("dtype", values.dtype).itemsize
    return chunks, size
