"""What a checkpoint knows of its data: enough to forecast from another file of the same kind."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from convlstm_wx.conventions import Channel, normalise_units
from convlstm_wx.data.channels import static_names
from convlstm_wx.data.coarsening import coarse_places
from convlstm_wx.data.flags import Mark
from convlstm_wx.data.forcings import Forcings
from convlstm_wx.data.masks import Masking
from convlstm_wx.data.normalise import Statistics
from convlstm_wx.data.reading import describe_step, source_of, time_step
from convlstm_wx.data.regions import Grid, Region, row_weights, select_region
from convlstm_wx.data.splits import Split
from convlstm_wx.errors import CheckpointError, DataError
from convlstm_wx.text import list_names

Attributes = dict[str, dict[str, str]]


@dataclass(frozen=True)
class RegionSpec:
    """One region as the network knows it.

    Attributes:
        box: None is the whole file.
        files: what an upstream region of other files is read from; empty for a part of the main data.
        grid: its points.
        statistics: of its channels in training.
        static_names: its fields without a time.
        attributes: units and names of each variable, as the file has them.
        masks: how masks of its variables were read; None in checkpoints of earlier versions.
        ignored: names and patterns of variables that were left out.
        coarsen: N for means over N x N points of the data.
    """

    box: Region | None
    files: tuple[str, ...]
    grid: Grid
    statistics: Statistics
    static_names: tuple[str, ...]
    attributes: Attributes
    masks: tuple[Mark, ...] | None = None
    ignored: tuple[str, ...] = ()
    coarsen: int = 1

    @property
    def masking(self) -> Masking:
        """How another file is to be read, so that its masks mean the same as in training."""
        names = (*self.attributes, *self.static_names)
        return Masking(self.ignored, wanted=tuple(self.attributes), fields=names, marks=self.masks or ())

    @property
    def input_channels(self) -> int:
        """Fields and masks that the network reads from this region."""
        return len(self.statistics.channels) + int(self.statistics.gaps_C.sum())

    @property
    def forcing_channels(self) -> int:
        """Forcing channels of this region."""
        return len(Forcings.NAMES) + len(self.static_names)

    def describe(self) -> str:
        """The box, or the files it is read from."""
        return " ".join(self.files) or ("the whole file" if self.box is None else str(self.box))

    def to_dict(self) -> dict[str, Any]:
        """Plain types and arrays, for a checkpoint."""
        return {
            "box": None if self.box is None else list(self.box.as_tuple()),
            "files": list(self.files),
            "grid": self.grid.to_dict(),
            "statistics": self.statistics.to_dict(),
            "static_names": list(self.static_names),
            "attributes": self.attributes,
            "masks": None if self.masks is None else [mark.to_dict() for mark in self.masks],
            "ignored": list(self.ignored),
            "coarsen": self.coarsen,
        }

    @classmethod
    def from_dict(cls, entries: Mapping[str, Any], attributes: Attributes | None = None) -> "RegionSpec":
        """Back from :meth:`to_dict`; the first format kept the attributes of all regions in one place."""
        return cls(
            box=None if entries["box"] is None else Region(*entries["box"]),
            files=tuple(entries.get("files", ())),
            grid=Grid.from_dict(entries["grid"]),
            statistics=Statistics.from_dict(entries["statistics"]),
            static_names=tuple(entries["static_names"]),
            attributes=entries["attributes"] if attributes is None else attributes,
            masks=None if entries.get("masks") is None else tuple(Mark.from_dict(mark) for mark in entries["masks"]),
            ignored=tuple(entries.get("ignored", ())),
            coarsen=entries.get("coarsen", 1),
        )

    def differences(self, dataset: xr.Dataset) -> list[str]:
        """What keeps a dataset from being read as this region: variables, units, levels, static fields, grid."""
        found = []
        missing = [f"'{name}'" for name in self.attributes if name not in dataset.data_vars]
        if missing:
            there_are = _listed([str(name) for name in dataset.data_vars])
            found.append(f"no variable {', '.join(missing)} (there are: {there_are})")
        for name, attributes in self.attributes.items():
            if name not in dataset.data_vars:
                continue
            units = dataset[name].attrs.get("units", "1")
            if units != normalise_units(attributes["units"]):
                found.append(f"'{name}' is in {units} instead of {attributes['units']}")
        there = set(dataset["level"].values.tolist()) if "level" in dataset.dims else set()
        for level in sorted({c.level for c in self.statistics.channels if c.level is not None} - there):
            found.append(f"no level {level:g} hPa")
        if static_names(dataset) != self.static_names:
            found.append(f"static fields {_listed(static_names(dataset))} instead of {_listed(self.static_names)}")
        try:
            part = select_region(dataset, self.box)
            places = coarse_places(part, row_weights(part), self.coarsen)
            return found + self.grid.differences(Grid.from_dataset(places))
        except DataError as error:
            return [*found, str(error)]


@dataclass(frozen=True)
class DataSpec:
    """All that a checkpoint must know of its data, to forecast from another file of the same kind.

    Attributes:
        target, upstream: the regions.
        targets: the channels that are forecast.
        step_s: time step, seconds.
        input_steps, lead_steps: T and L of training.
        split: which times were trained on, validated with and held out.
        lat_descending: the order of latitudes in the file, which forecasts keep.
        source: the file names.
    """

    target: RegionSpec
    upstream: tuple[RegionSpec, ...]
    targets: tuple[Channel, ...]
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
        masks = self.target.statistics.mask_indices
        return [masks[index] for index in self.target_indices]

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
        shared = entries.get("attributes")
        return cls(
            target=RegionSpec.from_dict(entries["target"], shared),
            upstream=tuple(RegionSpec.from_dict(region, shared) for region in entries["upstream"]),
            targets=tuple(Channel.parse(name) for name in entries["targets"]),
            split=Split.from_dict(entries["split"]),
            **{name: entries[name] for name in _PLAIN_FIELDS},
        )

    @property
    def upstream_of_files(self) -> list[RegionSpec]:
        """The upstream regions that are not part of the main data."""
        return [region for region in self.upstream if region.files]

    @property
    def upstream_files(self) -> list[tuple[str, ...]]:
        """The files of those upstream regions."""
        return [region.files for region in self.upstream_of_files]

    def region_data(self, dataset: xr.Dataset, upstream: Sequence[xr.Dataset] = ()) -> list[xr.Dataset]:
        """For the target and each upstream region the dataset that it is read from, not yet cut to its box.

        Args:
            dataset: the main data.
            upstream: one for each of :attr:`upstream_files`.
        """
        others = iter(upstream)
        return [next(others) if region.files else dataset for region in (self.target, *self.upstream)]

    def differences(self, dataset: xr.Dataset, upstream: Sequence[xr.Dataset] = ()) -> list[str]:
        """What keeps data from being used with these statistics: variables, units, levels, step, grids."""
        found = []
        step = time_step(dataset["time"].values)
        if step != self.step:
            found.append(f"time step {describe_step(step)} instead of {describe_step(self.step)}")
        for region, data in zip((self.target, *self.upstream), self.region_data(dataset, upstream)):
            where = f" (upstream, {source_of(data)})" if region.files else ""
            found.extend(text + where for text in region.differences(data) if text + where not in found)
        return found

    def changes(self, now: "DataSpec") -> list[str]:
        """What another description has different: a run goes on with the same data only."""
        found = [
            f"{what} {_listed(a)} there, {_listed(b)} here"
            for what, a, b in (
                ("inputs", [c.name for c in self.channels], [c.name for c in now.channels]),
                ("upstream inputs", _names(self.upstream), _names(now.upstream)),
                ("targets", [c.name for c in self.targets], [c.name for c in now.targets]),
                ("units", self.units(), now.units()),
                ("static fields", self.target.static_names, now.target.static_names),
                ("upstream regions", _boxes(self.upstream), _boxes(now.upstream)),
                ("observed values of masks", _masks(self, now), _masks(now, self)),
                ("--upstream-coarsen", _coarsening(self.upstream), _coarsening(now.upstream)),
                ("time step", [describe_step(self.step)], [describe_step(now.step)]),
                ("--input-steps", [str(self.input_steps)], [str(now.input_steps)]),
                ("--lead-steps", [str(self.lead_steps)], [str(now.lead_steps)]),
            )
            if list(a) != list(b)
        ]
        for mine, theirs in zip((self.target, *self.upstream), (now.target, *now.upstream)):
            found.extend(mine.grid.differences(theirs.grid))
        return found + (["another split into training, validation and held out"] if self.split != now.split else [])

    def units(self) -> list[str]:
        """Of each variable, region by region."""
        return [a["units"] for region in (self.target, *self.upstream) for a in region.attributes.values()]

    def check(self, dataset: xr.Dataset, upstream: Sequence[xr.Dataset] = ()) -> None:
        """Refuse data that differ.

        Raises:
            CheckpointError: naming every difference.
        """
        found = self.differences(dataset, upstream)
        if found:
            raise CheckpointError(
                f"{source_of(dataset)} does not fit the checkpoint, which was trained on "
                f"{self.source}: {'; '.join(found)}. What differs in units or size can be brought in line with "
                f"convlstm-wx prepare"
            )


def _boxes(regions: Sequence[RegionSpec]) -> list[str]:
    """Regions in words; what a file is called may change, what it holds may not."""
    return ["of a file" if region.files else str(region.box) for region in regions]


def _coarsening(regions: Sequence[RegionSpec]) -> list[str]:
    return [str(region.coarsen) for region in regions]


def _names(regions: Sequence[RegionSpec]) -> list[str]:
    """Of the channels, region by region."""
    return [channel.name for region in regions for channel in region.statistics.channels]


def _masks(spec: DataSpec, other: DataSpec) -> list[str]:
    """How masks are read, region by region, where both descriptions say it."""
    pairs = zip((spec.target, *spec.upstream), (other.target, *other.upstream))
    return [str(mark) for mine, its in pairs if its.masks is not None for mark in mine.masks or ()]


def _listed(names: Sequence[str]) -> str:
    return list_names(names, " ") or "none"


_PLAIN_FIELDS = ("step_s", "input_steps", "lead_steps", "lat_descending", "source")
