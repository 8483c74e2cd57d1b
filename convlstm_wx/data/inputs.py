"""From a file to what a network gathers from: for training, and again later from a checkpoint's description alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from convlstm_wx.config import TrainConfig
from convlstm_wx.conventions import Channel
from convlstm_wx.data import quality
from convlstm_wx.data.forcings import Forcings
from convlstm_wx.data.normalise import Statistics, fit_statistics
from convlstm_wx.data.reading import describe_step, open_dataset, source_of, time_step
from convlstm_wx.data.regions import Grid, Region, choose_upstream, select_region
from convlstm_wx.data.splits import TRAIN, Split, make_split
from convlstm_wx.data.store import (
    choose_channels,
    choose_targets,
    memory_budget_bytes,
    read_values,
    static_fields,
    static_names,
    time_slices,
)
from convlstm_wx.data.windows import Source, Windows, init_indices
from convlstm_wx.errors import CheckpointError, DataError

KEPT_ATTRIBUTES = ("units", "long_name", "standard_name", "cell_methods")


@dataclass(frozen=True)
class RegionSpec:
    """One region as the network knows it: its box (None: the whole file), grid and training statistics."""

    box: Region | None
    grid: Grid
    statistics: Statistics
    static_names: tuple[str, ...]

    @property
    def input_channels(self) -> int:
        """Fields and masks that the network reads from this region."""
        return len(self.statistics.channels) + int(self.statistics.gaps_C.sum())

    @property
    def forcing_channels(self) -> int:
        """Forcing channels of this region."""
        return len(Forcings.NAMES) + len(self.static_names)

    def to_dict(self) -> dict[str, Any]:
        """Plain types and arrays, for a checkpoint."""
        return {
            "box": None if self.box is None else list(self.box.as_tuple()),
            "grid": self.grid.to_dict(),
            "statistics": self.statistics.to_dict(),
            "static_names": list(self.static_names),
        }

    @classmethod
    def from_dict(cls, entries: Mapping[str, Any]) -> "RegionSpec":
        """Back from :meth:`to_dict`."""
        box = None if entries["box"] is None else Region(*entries["box"])
        grid, statistics = Grid.from_dict(entries["grid"]), Statistics.from_dict(entries["statistics"])
        return cls(box, grid, statistics, tuple(entries["static_names"]))


@dataclass(frozen=True)
class DataSpec:
    """All that a checkpoint must know of its data, to forecast from another file of the same kind.

    Attributes:
        target, upstream: the regions.
        targets: the channels that are forecast.
        attributes: units and names of each variable, as the file has them.
        step_s: time step, seconds.
        input_steps, lead_steps: T and L of training.
        split: which times were trained on, validated with and held out.
        lat_descending: the order of latitudes in the file, which forecasts keep.
        source: the file names.
    """

    target: RegionSpec
    upstream: tuple[RegionSpec, ...]
    targets: tuple[Channel, ...]
    attributes: dict[str, dict[str, str]]
    step_s: int
    input_steps: int
    lead_steps: int
    split: Split
    lat_descending: bool
    source: str

    @property
    def channels(self) -> tuple[Channel, ...]:
        """The input channels."""
        return self.target.statistics.channels

    @property
    def step(self) -> np.timedelta64:
        """Time step."""
        return np.timedelta64(self.step_s, "s")

    @property
    def target_indices(self) -> list[int]:
        """Where the targets stand among the inputs."""
        return [self.channels.index(channel) for channel in self.targets]

    @property
    def target_mask_indices(self) -> list[int]:
        """For each target its place among the mask channels, -1 where it has no gaps."""
        gaps = self.target.statistics.gaps_C
        return [int(gaps[:index].sum()) if gaps[index] else -1 for index in self.target_indices]

    def to_dict(self) -> dict[str, Any]:
        """Plain types and arrays, for a checkpoint."""
        plain = {name: getattr(self, name) for name in _PLAIN_FIELDS}
        return plain | {
            "target": self.target.to_dict(),
            "upstream": [region.to_dict() for region in self.upstream],
            "targets": [channel.name for channel in self.targets],
            "split": self.split.to_dict(),
        }

    @classmethod
    def from_dict(cls, entries: Mapping[str, Any]) -> "DataSpec":
        """Back from :meth:`to_dict`."""
        return cls(
            target=RegionSpec.from_dict(entries["target"]),
            upstream=tuple(RegionSpec.from_dict(region) for region in entries["upstream"]),
            targets=tuple(Channel.parse(name) for name in entries["targets"]),
            split=Split.from_dict(entries["split"]),
            **{name: entries[name] for name in _PLAIN_FIELDS},
        )

    def differences(self, dataset: xr.Dataset) -> list[str]:
        """What keeps a dataset from being used with these statistics: variables, units, levels, step, grids."""
        found = _variable_differences(self, dataset)
        step = time_step(dataset["time"].values)
        if step != self.step:
            found.append(f"time step {describe_step(step)} instead of {describe_step(self.step)}")
        if static_names(dataset) != self.target.static_names:
            found.append(
                f"static fields {_listed(static_names(dataset))} instead of {_listed(self.target.static_names)}"
            )
        for region in (self.target, *self.upstream):
            try:
                found.extend(region.grid.differences(Grid.from_dataset(select_region(dataset, region.box))))
            except DataError as error:
                found.append(str(error))
        return found

    def changes(self, now: "DataSpec") -> list[str]:
        """What another description has different: a run goes on with the same data only."""
        found = [
            f"{what} {_listed(a)} there, {_listed(b)} here"
            for what, a, b in (
                ("inputs", [c.name for c in self.channels], [c.name for c in now.channels]),
                ("targets", [c.name for c in self.targets], [c.name for c in now.targets]),
                (
                    "units",
                    [a["units"] for a in self.attributes.values()],
                    [a["units"] for a in now.attributes.values()],
                ),
                ("static fields", self.target.static_names, now.target.static_names),
                ("upstream regions", [str(r.box) for r in self.upstream], [str(r.box) for r in now.upstream]),
                ("time step", [describe_step(self.step)], [describe_step(now.step)]),
            )
            if list(a) != list(b)
        ]
        for mine, theirs in zip((self.target, *self.upstream), (now.target, *now.upstream)):
            found.extend(mine.grid.differences(theirs.grid))
        return found + (["another split into training, validation and held out"] if self.split != now.split else [])

    def check(self, dataset: xr.Dataset) -> None:
        """Refuse a dataset that differs.

        Raises:
            CheckpointError: naming every difference.
        """
        found = self.differences(dataset)
        if found:
            raise CheckpointError(
                f"{source_of(dataset)} does not fit the checkpoint, which was trained on "
                f"{self.source}: {'; '.join(found)}"
            )


def _listed(names: Sequence[str]) -> str:
    return " ".join(names) or "none"


_PLAIN_FIELDS = ("attributes", "step_s", "input_steps", "lead_steps", "lat_descending", "source")


def _variable_differences(spec: DataSpec, dataset: xr.Dataset) -> list[str]:
    found = []
    levels = dataset["level"].values if "level" in dataset.dims else ()
    for name, attributes in spec.attributes.items():
        if name not in dataset.data_vars:
            found.append(f"no variable '{name}'")
            continue
        units = dataset[name].attrs.get("units", "1")
        if units != attributes["units"]:
            found.append(f"'{name}' is in {units} instead of {attributes['units']}")
    for level in sorted({c.level for c in spec.channels if c.level is not None} - {float(x) for x in levels}):
        found.append(f"no level {level:g} hPa")
    return found


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


def open_sources(spec: DataSpec, dataset: xr.Dataset) -> Sources:
    """A dataset that fits the spec, read and normalised with the spec's own statistics."""
    regions = (spec.target, *spec.upstream)
    budget = memory_budget_bytes(None) // len(regions)
    built = []
    for region in regions:
        part = select_region(dataset, region.box)
        values = read_values(part, region.statistics.channels, budget_bytes=budget)
        built.append(_make_source(values, part, region.statistics))
    return _gather_sources(built, dataset["time"].values)


def _gather_sources(built: Sequence[tuple[Source, np.ndarray]], times: np.ndarray) -> Sources:
    sources = [source for source, _ in built]
    complete = np.logical_and.reduce([complete for _, complete in built])
    return Sources(sources[0], tuple(sources[1:]), times, complete)


def _make_source(values_NCHW: np.ndarray, dataset: xr.Dataset, statistics: Statistics) -> tuple[Source, np.ndarray]:
    """Normalise in place; missing becomes 0, beside a mask where training had gaps, else an incomplete time."""
    times = dataset["time"].values
    gaps = statistics.gaps_C
    observed = np.empty((len(times), int(gaps.sum()), *values_NCHW.shape[2:]), bool)
    complete = np.empty(len(times), bool)
    for piece in time_slices(values_NCHW.shape, 64 * 2**20):
        values = values_NCHW[piece]
        statistics.normalise(values, times[piece])
        finite = np.isfinite(values)
        observed[piece] = finite[:, gaps]
        # A time without any value says nothing, masked channel or not.
        complete[piece] = finite[:, ~gaps].all(axis=(1, 2, 3)) & finite.any(axis=(2, 3)).all(axis=1)
        values[~finite] = 0
    forcings = Forcings(Grid.from_dataset(dataset), static_fields(dataset))
    return Source(values_NCHW, observed, forcings), complete


@dataclass(frozen=True)
class TrainingInputs:
    """What a training run starts from.

    Attributes:
        spec: for the checkpoint.
        sources: the arrays.
        roles_N: role of each time in the split.
        account: the check of the data, line by line.
    """

    spec: DataSpec
    sources: Sources
    roles_N: np.ndarray
    account: list[str]

    def windows(self, role: int) -> Windows:
        """The windows of one role."""
        return self.sources.windows(self.spec, self.roles_N == role)


def prepare_training(config: TrainConfig, cache_folder: Path | None = None) -> TrainingInputs:
    """Read, check, split and normalise the data of a configuration.

    Raises:
        DataError, ConfigError: for data or options that cannot be trained with, before anything is written.
    """
    dataset = open_dataset(config.data)
    channels = choose_channels(dataset, config.variables, config.levels)
    targets = choose_targets(channels, config.target_variables)
    if config.levels and "level" in dataset.dims:  # what is not used need not be whole
        dataset = dataset.isel(level=np.isin(dataset["level"].values, config.levels))
    names = list(dict.fromkeys(channel.variable for channel in channels))
    box = None if config.target_region is None else Region(*config.target_region)
    target_data = select_region(dataset, box)
    times = dataset["time"].values
    if len(times) < 2:
        raise DataError(f"{dataset.attrs['source']}: {len(times)} time in the file; a forecast needs a series of them")
    step = time_step(times)
    split = make_split(
        times,
        window_steps=config.input_steps + config.lead_steps,
        held_out=config.held_out_months,
        validation=config.validation_months,
    )
    roles = split.roles(times)
    account = quality.check(target_data, names).lines()
    upstream_boxes, reasons = _upstream_boxes(config, dataset, Region(*_box_of(target_data)), roles == TRAIN)
    attributes = {name: _kept_attributes(dataset[name]) for name in names}
    budget = memory_budget_bytes(config.memory_budget) // (1 + len(upstream_boxes))
    regions, built = [], []
    for region_box in (box, *upstream_boxes):
        part = select_region(dataset, region_box)
        values = read_values(part, channels, budget_bytes=budget, cache_folder=cache_folder)
        channel_attributes = [attributes[channel.variable] for channel in channels]
        statistics = fit_statistics(values, times, roles == TRAIN, channels, channel_attributes, step)
        source, complete = _make_source(values, part, statistics)
        regions.append(RegionSpec(region_box, source.forcings.grid, statistics, static_names(part)))
        built.append((source, complete))
    spec = DataSpec(
        target=regions[0],
        upstream=tuple(regions[1:]),
        targets=targets,
        attributes=attributes,
        step_s=int(step / np.timedelta64(1, "s")),
        input_steps=config.input_steps,
        lead_steps=config.lead_steps,
        split=split,
        lat_descending=bool(dataset.attrs.get("lat_descending", 0)),
        source=source_of(dataset),
    )
    return TrainingInputs(spec, _gather_sources(built, times), roles, account + reasons)


def _upstream_boxes(
    config: TrainConfig, dataset: xr.Dataset, target: Region, training_N: np.ndarray
) -> tuple[list[Region], list[str]]:
    if not config.include_upstream:
        return [], []
    if config.upstream_region:
        boxes = [Region(*box) for box in config.upstream_region]
        return boxes, [f"upstream region {box} (as asked)" for box in boxes]
    chosen, reason = choose_upstream(dataset, target, training_N)
    return [chosen], [f"upstream region {chosen}: {reason}"]


def _box_of(dataset: xr.Dataset) -> tuple[float, float, float, float]:
    grid = Grid.from_dataset(dataset)
    return (grid.lat[0], grid.lat[-1], grid.lon[0], grid.lon[-1])


def _kept_attributes(field: xr.DataArray) -> dict[str, str]:
    kept = {name: str(field.attrs[name]) for name in KEPT_ATTRIBUTES if name in field.attrs}
    return {"units": "1"} | kept
