"""From files to what a network gathers from: for training, and again later from a checkpoint's description alone."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from convlstm_wx.config import TrainConfig
from convlstm_wx.conventions import Channel
from convlstm_wx.data.account import Account
from convlstm_wx.data.cache import DEFAULT_FOLDER, Cache, open_array, read_entries, write_entries
from convlstm_wx.data.channels import choose_channels, choose_targets, flagged_channels, static_fields, static_names
from convlstm_wx.data.forcings import Forcings
from convlstm_wx.data.normalise import Statistics, StatisticsFit
from convlstm_wx.data.pieces import positions, read_pieces
from convlstm_wx.data.quality import Survey
from convlstm_wx.data.reading import open_dataset, source_of, time_step
from convlstm_wx.data.regions import Grid, Region, choose_upstream, select_region
from convlstm_wx.data.spec import Attributes, DataSpec, RegionSpec
from convlstm_wx.data.splits import TRAIN, make_split
from convlstm_wx.data.store import SLICE_BYTES, Array, allocate_in_file, memory_budget_bytes, time_slices
from convlstm_wx.data.windows import Source, Windows, init_indices
from convlstm_wx.errors import DataError
from convlstm_wx.files import describe_bytes

KEPT_ATTRIBUTES = ("units", "long_name", "standard_name", "cell_methods")
FILE_SLICE_BYTES = 64 * 2**20  # of a record that is not kept in memory
BUDGET_SHARE = 8  # a slice of it is at most this part of the budget

TARGET = "target region"

Allocate = Callable[[str, Any, Sequence[int]], Array]


@dataclass(frozen=True)
class Sources:
    """The normalised arrays of one file over all regions.

    Attributes:
        target, upstream: one source per region.
        times: the N times.
        complete_N: times at which every channel that must be complete is so, in every region.
    """

    target: Source
    upstream: tuple[Source, ...]
    times: np.ndarray
    complete_N: np.ndarray

    def windows(self, spec: DataSpec, allowed_N: np.ndarray | None = None, *, lead_steps: int | None = None) -> Windows:
        """All windows whose times are complete and allowed (None: all times)."""
        leads = spec.lead_steps if lead_steps is None else lead_steps
        allowed = self.complete_N if allowed_N is None else self.complete_N & allowed_N
        at = init_indices(self.times, spec.step, allowed, input_steps=spec.input_steps, lead_steps=leads)
        return self.windows_at(spec, at, lead_steps=leads, with_targets=True)

    def windows_at(self, spec: DataSpec, at: np.ndarray, *, lead_steps: int, with_targets: bool) -> Windows:
        """The windows with the given indices of their last input time."""
        return Windows(
            target=self.target,
            upstream=self.upstream,
            times=self.times,
            step=spec.step,
            init_indices=at,
            input_steps=spec.input_steps,
            lead_steps=lead_steps,
            target_indices=spec.target_indices,
            target_mask_indices=spec.target_mask_indices,
            with_targets=with_targets,
        )


@dataclass(frozen=True)
class _Input:
    """One region's data on the way in.

    Attributes:
        role: "target", or "upstream region" or "upstream data" with which one.
        box, files: of :class:`~convlstm_wx.data.spec.RegionSpec`.
        paths: the files behind the data, for the key of a cache.
        data: canonical, cut to the box.
        channels: those to read.
    """

    role: str
    box: Region | None
    files: tuple[str, ...]
    paths: tuple[str, ...]
    data: xr.Dataset
    channels: tuple[Channel, ...]

    def shape(self, times: np.ndarray) -> tuple[int, int, int, int]:
        """N, C, H, W."""
        return len(times), len(self.channels), self.data.sizes["lat"], self.data.sizes["lon"]

    @property
    def attributes(self) -> Attributes:
        """Units and names of each variable."""
        return {name: _kept_attributes(self.data[name]) for name in dict.fromkeys(c.variable for c in self.channels)}

    @contextmanager
    def named(self) -> Iterator[None]:
        """What is wrong with these data names them."""
        try:
            yield
        except DataError as error:
            role = "" if self.role == TARGET else f", {self.role}"
            raise DataError(f"{source_of(self.data)}{role}: {error}") from error


def _kept_attributes(field: xr.DataArray) -> dict[str, str]:
    kept = {name: str(field.attrs[name]) for name in KEPT_ATTRIBUTES if name in field.attrs}
    return {"units": "1"} | kept


@dataclass(frozen=True)
class TrainingInputs:
    """What a training run starts from.

    Attributes:
        spec: for the checkpoint.
        sources: the arrays.
        roles_N: role of each time in the split.
        account: the check of the target region's data.
        notes: what was decided about upstream regions and found in them.
        stored: where the arrays are kept, and how large they are.
    """

    spec: DataSpec
    sources: Sources
    roles_N: np.ndarray
    account: Account
    notes: tuple[str, ...]
    stored: str

    def windows(self, role: int) -> Windows:
        """The windows of one role."""
        return self.sources.windows(self.spec, self.roles_N == role)


def prepare_training(config: TrainConfig) -> TrainingInputs:
    """Read, check, split and normalise the data of a configuration.

    Raises:
        DataError, ConfigError: for data or options that cannot be trained with.
    """
    dataset = open_dataset(config.data)
    times = dataset["time"].values
    if len(times) < 2:
        raise DataError(f"{source_of(dataset)}: {len(times)} time in the file; a forecast needs a series of them")
    split = make_split(
        times,
        window_steps=config.input_steps + config.lead_steps,
        held_out=config.held_out_months,
        validation=config.validation_months,
    )
    roles = split.roles(times)
    target = _target(config, dataset)
    targets = choose_targets(target.channels, config.target_variables)
    upstream, notes = _upstream(config, dataset, target, roles == TRAIN)
    inputs = (target, *upstream)
    size = sum(4 * int(np.prod(each.shape(times))) for each in inputs)
    budget = memory_budget_bytes(config.memory_budget)
    folder = Path(config.cache_dir or DEFAULT_FOLDER) if size > budget else None
    regions, built, accounts = [], [], []
    for each in inputs:
        region, source, complete, account = _prepare(each, times, roles == TRAIN, folder, budget)
        regions.append(region)
        built.append((source, complete))
        accounts.append(account)
    for each, account in zip(upstream, accounts[1:]):
        notes += [f"upstream {source_of(each.data)}: {text}" for text in account.warnings() if each.files]
    spec = DataSpec(
        target=regions[0],
        upstream=tuple(regions[1:]),
        targets=targets,
        step_s=int(time_step(times) / np.timedelta64(1, "s")),
        input_steps=config.input_steps,
        lead_steps=config.lead_steps,
        split=split,
        lat_descending=bool(dataset.attrs.get("lat_descending", 0)),
        source=source_of(dataset),
    )
    stored = f"{describe_bytes(size)} " + (f"in the data cache {folder}" if folder else "in memory")
    return TrainingInputs(spec, _gather_sources(built, times), roles, accounts[0], tuple(notes), stored)


# Regions


def _target(config: TrainConfig, dataset: xr.Dataset) -> _Input:
    channels = choose_channels(dataset, config.variables, config.levels)
    box = None if config.target_region is None else Region(*config.target_region)
    return _Input(TARGET, box, (), config.data, select_region(dataset, box), channels)


def _upstream(
    config: TrainConfig, dataset: xr.Dataset, target: _Input, training_N: np.ndarray
) -> tuple[list[_Input], list[str]]:
    """The upstream regions, and why they are these."""
    if not config.include_upstream:
        return [], []
    found, notes = [], []
    if config.upstream_region:
        boxes = [Region(*box) for box in config.upstream_region]
        notes += [f"upstream region {box} (as asked)" for box in boxes]
    elif not config.upstream_data:
        chosen, reason = choose_upstream(dataset, Region(*_box_of(target.data)), training_N)
        boxes = [chosen]
        notes.append(f"upstream region {chosen}: {reason}")
    else:
        boxes = []
    for box in boxes:
        data = select_region(dataset, box)
        found.append(_Input(f"upstream region {box}", box, (), config.data, data, target.channels))
    for file in config.upstream_data:
        other = open_dataset([file])
        channels = choose_channels(other, config.upstream_variables, config.levels if "level" in other.dims else ())
        each = _Input("upstream data", None, (file,), (file,), other, channels)
        notes.append(_check_times(each, dataset["time"].values, training_N))
        found.append(each)
    return found, notes


def _box_of(dataset: xr.Dataset) -> tuple[float, float, float, float]:
    lat_HW, lon_HW = Grid.from_dataset(dataset).places()
    return (float(lat_HW.min()), float(lat_HW.max()), float(lon_HW.min()), float(lon_HW.max()))


def _check_times(upstream: _Input, times: np.ndarray, training_N: np.ndarray) -> str:
    """How much of training the upstream data cover, in words.

    Raises:
        DataError: if they cover nothing of it.
    """
    there = upstream.data["time"].values
    shared = np.isin(times[training_N], there)
    if not shared.any():
        first, last = there[[0, -1]].astype("datetime64[m]")
        begin, end = times[training_N][[0, -1]].astype("datetime64[m]")
        raise DataError(
            f"upstream data {source_of(upstream.data)}: its times ({first} to {last}) hold none of the training times "
            f"({begin} to {end}), so it would say nothing; give data of the same period and times of day"
        )
    missing = int((~np.isin(times, there)).sum())
    lost = f"; {missing} of {len(times)} times are missing there, and windows with them are left out" if missing else ""
    return f"upstream data {source_of(upstream.data)}, on their own grid{lost}"


# Arrays


def _prepare(
    each: _Input, times: np.ndarray, training_N: np.ndarray, folder: Path | None, budget: int
) -> tuple[RegionSpec, Source, np.ndarray, Account]:
    """One region read, checked and normalised; or taken from its cache."""
    if folder is None:
        return _build(each, times, training_N, _in_memory, SLICE_BYTES)
    depends_on = {
        "channels": [channel.name for channel in each.channels],
        "attributes": each.attributes,
        "times": times,
        "training": training_N,
        "grid": [each.data["lat"].values.tolist(), each.data["lon"].values.tolist()],
        "static": static_fields(each.data),
    }
    cache = Cache(folder, each.paths, depends_on)
    if not cache.exists():
        with cache.building() as unfinished:
            made = _build(each, times, training_N, _in_folder(unfinished), _slice_bytes(budget))
            region, source, complete, account = made
            statistics = {f"statistics.{name}": value for name, value in region.statistics.to_dict().items()}
            entries = {"complete": complete, "account": account.to_dict(), "masks": source.observed_NMHW.shape[1]}
            write_entries(unfinished, statistics | entries)
    return _from_cache(cache.path, each, times)


def _from_cache(folder: Path, each: _Input, times: np.ndarray) -> tuple[RegionSpec, Source, np.ndarray, Account]:
    entries = read_entries(folder)
    shape = each.shape(times)
    named = {name.removeprefix("statistics."): value for name, value in entries.items() if "." in name}
    statistics = Statistics.from_dict(named)
    source = Source(
        open_array(folder, "values", np.float32, shape),
        open_array(folder, "observed", bool, (shape[0], entries["masks"], *shape[2:])),
        _forcings(each.data),
    )
    return _region(each, statistics), source, entries["complete"], Account.from_dict(entries["account"])


def _slice_bytes(budget: int) -> int:
    return min(FILE_SLICE_BYTES, budget // BUDGET_SHARE)


def _in_memory(_name: str, dtype: Any, shape: Sequence[int]) -> Array:
    return np.empty(tuple(shape), dtype)


def _in_folder(folder: Path) -> Allocate:
    """Files of a cache; the flags of filled values go into the masks and are not kept themselves."""

    def allocate(name: str, dtype: Any, shape: Sequence[int]) -> Array:
        return allocate_in_file(None if name == "filled" else folder / f"{name}.bin", dtype, shape, folder)

    return allocate


def _nameless(_name: str, dtype: Any, shape: Sequence[int]) -> Array:
    return allocate_in_file(None, dtype, shape)


def _build(
    each: _Input, times: np.ndarray, training_N: np.ndarray, allocate: Allocate, most_bytes: int
) -> tuple[RegionSpec, Source, np.ndarray, Account]:
    """One pass over the files for the check, the statistics and the array; a second over the array to normalise it."""
    data, channels = each.data, each.channels
    attributes = [each.attributes[channel.variable] for channel in channels]
    there_N = positions(data["time"].values, times) >= 0
    survey = Survey(data.isel(time=np.isin(data["time"].values, times)), channels)
    values = allocate("values", np.float32, each.shape(times))
    flagged = flagged_channels(data, channels)
    filled = allocate("filled", bool, (len(times), len(flagged), *each.shape(times)[2:]))
    with each.named():
        trained_N = training_N & there_N
        fit = StatisticsFit(each.shape(times)[1:], times, trained_N, channels, attributes, time_step(times))
        for piece, block, flags in read_pieces(data, channels, times, most_bytes=most_bytes):
            for index in range(len(channels)):
                survey.add(index, block[there_N[piece], index])
            block[~np.isfinite(block)] = np.nan
            values[piece], filled[piece] = block, flags
            fit.add(piece, _observed_only(block, flags, channels, flagged))
        account = survey.account()
        if account.problems():
            raise DataError("; ".join(account.problems()))
        statistics = fit.statistics()
        if each.role != TARGET and fit.constant_C.all():
            names = ", ".join(channel.name for channel in channels)
            raise DataError(f"all it holds ({names}) is constant in training, so it would be silently inactive")
    source, complete = _make_source(each, values, filled, times, statistics, allocate, most_bytes)
    return _region(each, statistics), source, complete, account


def _observed_only(
    values_NCHW: np.ndarray, filled_NMHW: np.ndarray, channels: Sequence[Channel], flagged: Sequence[Channel]
) -> np.ndarray:
    """Without what was filled: the array itself, or a copy."""
    if not filled_NMHW.any():
        return values_NCHW
    values = values_NCHW.copy()
    for place, channel in enumerate(flagged):
        values[:, channels.index(channel)][filled_NMHW[:, place]] = np.nan
    return values


def _region(each: _Input, statistics: Statistics) -> RegionSpec:
    grid = Grid.from_dataset(each.data)
    return RegionSpec(each.box, each.files, grid, statistics, static_names(each.data), each.attributes)


def _forcings(data: xr.Dataset) -> Forcings:
    return Forcings(Grid.from_dataset(data), static_fields(data))


def _make_source(
    each: _Input,
    values_NCHW: Array,
    filled_NMHW: Array,
    times: np.ndarray,
    statistics: Statistics,
    allocate: Allocate,
    most_bytes: int,
) -> tuple[Source, np.ndarray]:
    """Normalise in place; missing becomes 0, beside a mask where training had gaps, else an incomplete time."""
    gaps = statistics.gaps_C
    observed_NMHW = allocate("observed", bool, (len(times), int(gaps.sum()), *values_NCHW.shape[2:]))
    complete = np.empty(len(times), bool)
    flagged = flagged_channels(each.data, each.channels)
    for piece in time_slices(values_NCHW.shape, most_bytes):
        values = values_NCHW[piece]
        statistics.normalise(values, times[piece])
        known = np.isfinite(values)
        # A time without any value says nothing, masked channel or not; one that was filled has values.
        complete[piece] = known[:, ~gaps].all(axis=(1, 2, 3)) & np.all(known.any(axis=(2, 3)), axis=1)
        values[~known] = 0
        values_NCHW[piece] = values
        for place, channel in enumerate(flagged):
            known[:, each.channels.index(channel)] &= ~filled_NMHW[piece][:, place]
        observed_NMHW[piece] = known[:, gaps]
    return Source(values_NCHW, observed_NMHW, _forcings(each.data)), complete


def open_sources(spec: DataSpec, dataset: xr.Dataset, upstream: Sequence[xr.Dataset] = ()) -> Sources:
    """Data that fit the spec, read and normalised with the spec's own statistics.

    Args:
        spec: of the checkpoint.
        dataset: the main data.
        upstream: one for each of `spec.upstream_files`.
    """
    regions = (spec.target, *spec.upstream)
    times = dataset["time"].values
    inputs = [
        _Input(TARGET, region.box, region.files, (), select_region(data, region.box), region.statistics.channels)
        for region, data in zip(regions, spec.region_data(dataset, upstream))
    ]
    budget = memory_budget_bytes(None)
    fits = sum(4 * int(np.prod(each.shape(times))) for each in inputs) <= budget
    allocate, most_bytes = (_in_memory, SLICE_BYTES) if fits else (_nameless, _slice_bytes(budget))
    built = []
    for each, region in zip(inputs, regions):
        values = allocate("values", np.float32, each.shape(times))
        filled = allocate(
            "filled", bool, (len(times), len(flagged_channels(each.data, each.channels)), *values.shape[2:])
        )
        with each.named():
            for piece, block, flags in read_pieces(each.data, each.channels, times, most_bytes=most_bytes):
                block[~np.isfinite(block)] = np.nan
                values[piece], filled[piece] = block, flags
        built.append(_make_source(each, values, filled, times, region.statistics, allocate, most_bytes))
    return _gather_sources(built, times)


def _gather_sources(built: Sequence[tuple[Source, np.ndarray]], times: np.ndarray) -> Sources:
    sources = [source for source, _ in built]
    complete = np.logical_and.reduce([complete for _, complete in built])
    return Sources(sources[0], tuple(sources[1:]), times, complete)
