"""From files to what a network gathers from: for training, and again later from a checkpoint's description alone."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import xarray as xr

from convlstm_wx.config import TrainConfig, parse_mask_values
from convlstm_wx.data.account import Account
from convlstm_wx.data.cache import DEFAULT_FOLDER
from convlstm_wx.data.channels import choose_channels, choose_targets
from convlstm_wx.data.masks import Masking, check_names
from convlstm_wx.data.reading import open_dataset, source_of, time_step
from convlstm_wx.data.records import fit_linear
from convlstm_wx.data.regional import TARGET, RegionInput, from_checkpoint, prepare
from convlstm_wx.data.regions import Grid, Region, select_region
from convlstm_wx.data.spec import DataSpec
from convlstm_wx.data.splits import TRAIN, Split, make_split
from convlstm_wx.data.store import memory_budget_bytes
from convlstm_wx.data.upstream import choose_coarsening, choose_upstream, divide
from convlstm_wx.data.wind import refuse_directions
from convlstm_wx.data.windows import Source, Windows, init_indices
from convlstm_wx.errors import DataError
from convlstm_wx.files import describe_bytes
from convlstm_wx.linear.inverse_model import InverseModel

LEAD_TIME = np.timedelta64(72, "h")  # is forecast unless other --lead-steps are asked for
FEWEST_LEADS, MOST_LEADS = 4, 24
TIMES_PER_LEAD = 28  # of the record, at least


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

    def windows_at(
        self,
        spec: DataSpec,
        at: np.ndarray,
        *,
        lead_steps: int,
        with_targets: bool,
        upstream_at: np.ndarray | None = None,
    ) -> Windows:
        """The windows with the given indices of their last input time; upstream those of other windows, if given."""
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
            upstream_indices=upstream_at,
        )


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
        linear: the linear inverse model that the network is blended with, if it is.
    """

    spec: DataSpec
    sources: Sources
    roles_N: np.ndarray
    account: Account
    notes: tuple[str, ...]
    stored: str
    linear: InverseModel | None = None

    def windows(self, role: int) -> Windows:
        """The windows of one role."""
        return self.sources.windows(self.spec, self.roles_N == role)


def masking_of(config: TrainConfig, known: DataSpec | None = None, *, upstream: int | None = None) -> Masking:
    """How the masks of a configuration's data are to be read.

    Args:
        known: of the run that is resumed; what the configuration does not say is read as there.
        upstream: the place of the file among the upstream data; None: the main data.
    """
    regions = () if known is None else (known.target,) if upstream is None else known.upstream_of_files[upstream:]
    return replace(
        regions[0].masking if regions else Masking(),
        ignored=config.ignore_variables,
        values=parse_mask_values(config.mask_values),
        wanted=config.variables if upstream is None else config.upstream_variables,
    )


def prepare_training(config: TrainConfig, *, processes: int = 1, known: DataSpec | None = None) -> TrainingInputs:
    """Read, check, split and normalise the data of a configuration.

    Args:
        config: what to read, and how.
        processes: how many of this machine do the same, and share its memory.
        known: the description of the data in the run that is resumed.

    Raises:
        DataError, ConfigError: for data or options that cannot be trained with.
    """
    dataset = open_dataset(config.data, masking=masking_of(config, known))
    times = dataset["time"].values
    if len(times) < 2:
        raise DataError(f"{source_of(dataset)}: {len(times)} time in the file; a forecast needs a series of them")
    lead_steps, split = _lead_steps_and_split(config, times)
    roles = split.roles(times)
    config, notes = with_regions(config, dataset)
    target = _target(config, dataset)
    targets = choose_targets(target.channels, config.target_variables)
    upstream, more = _upstream(config, dataset, target, roles == TRAIN, lead_steps, known)
    notes += more
    check_names(masking_of(config), [dataset, *(each.data for each in upstream)])
    inputs = (target, *upstream)
    size = sum(each.nbytes(times) for each in inputs)
    budget = memory_budget_bytes(config.memory_budget) // processes
    folder = Path(config.cache_dir or DEFAULT_FOLDER) if size > budget else None
    packed = config.cache_dtype == "int16" and folder is not None
    regions, built, accounts = [], [], []
    for each in inputs:
        region, source, complete, account = prepare(each, times, roles == TRAIN, folder, budget, packed=packed)
        regions.append(region)
        built.append((source, complete))
        accounts.append(account)
    for each, account in zip(upstream, accounts[1:]):
        where = f"upstream {source_of(each.data)}" if each.files else each.role
        # Of a part of the main data the times are those of the target, and told with it.
        notes += [f"{where}: {text}" for text in (account.warnings() if each.files else account.channel_warnings())]
    spec = DataSpec(
        target=regions[0],
        upstream=tuple(regions[1:]),
        targets=targets,
        step_s=int(time_step(times) / np.timedelta64(1, "s")),
        input_steps=config.input_steps,
        lead_steps=lead_steps,
        split=split,
        lat_descending=bool(dataset.attrs.get("lat_descending", 0)),
        source=source_of(dataset),
    )
    kept = f"{describe_bytes(size / 2)} as 16-bit numbers" if packed else describe_bytes(size)
    stored = f"{kept} in the data cache {folder}" if folder else f"{kept} in memory"
    sources = _gather_sources(built, times)
    linear = fit_linear(config, spec, [sources.target, *sources.upstream], times, sources.complete_N, roles)
    return TrainingInputs(spec, sources, roles, accounts[0], tuple(notes), stored, linear)


def _lead_steps_and_split(config: TrainConfig, times: np.ndarray) -> tuple[int, Split]:
    lead_steps = config.lead_steps or _lead_steps(times)
    split = make_split(
        times,
        window_steps=config.input_steps + lead_steps,
        held_out=config.held_out_months,
        validation=config.validation_months,
    )
    return lead_steps, split


def _lead_steps(times: np.ndarray) -> int:
    """How many to forecast if nobody says so; the splits of a short record must hold windows of that length."""
    wanted = int(np.ceil(LEAD_TIME / time_step(times)))
    return int(np.clip(wanted, FEWEST_LEADS, max(FEWEST_LEADS, min(MOST_LEADS, len(times) // TIMES_PER_LEAD))))


# Regions


def with_regions(config: TrainConfig, dataset: xr.Dataset) -> tuple[TrainConfig, list[str]]:
    """The configuration with its target and upstream boxes, and a note, where --include-upstream alone is given.

    Raises:
        DataError: if the file is too narrow to be divided.
    """
    if not config.include_upstream or config.target_region or config.upstream_region or config.upstream_data:
        return config, []
    times = dataset["time"].values
    _, split = _lead_steps_and_split(config, times)
    target, upstream, reason = divide(dataset, split.roles(times) == TRAIN)
    target_flags, upstream_flags = (" ".join(f"{edge:.15g}" for edge in box.as_tuple()) for box in (target, upstream))
    note = (
        f"the file is divided into a target and an upstream region ({reason}): --target-region {target_flags} "
        f"--include-upstream --upstream-region {upstream_flags}"
    )
    return replace(config, target_region=target.as_tuple(), upstream_region=(upstream.as_tuple(),)), [note]


def _target(config: TrainConfig, dataset: xr.Dataset) -> RegionInput:
    channels = choose_channels(dataset, config.variables, config.levels)
    refuse_directions(dataset, channels, config.data)
    box = None if config.target_region is None else Region(*config.target_region)
    data = select_region(dataset, box, option="--target-region")
    return RegionInput(TARGET, box, (), config.data, data, channels, config.ignore_variables)


def _upstream(
    config: TrainConfig,
    dataset: xr.Dataset,
    target: RegionInput,
    training_N: np.ndarray,
    lead_steps: int,
    known: DataSpec | None,
) -> tuple[list[RegionInput], list[str]]:
    """The upstream regions, and why they are these and on this grid."""
    if not config.include_upstream:
        return [], []
    found, notes = [], []
    if config.upstream_region:
        boxes = [Region(*box) for box in config.upstream_region]
        notes += [f"upstream region {box}" for box in boxes]
    elif not config.upstream_data:
        chosen, reason = choose_upstream(dataset, Grid.from_dataset(target.data).box(), training_N)
        boxes = [chosen]
        notes.append(f"upstream region {chosen}: {reason}")
    else:
        boxes = []
    for box in boxes:
        data = select_region(dataset, box, option="--upstream-region")
        role = f"upstream region {box}"
        found.append(RegionInput(role, box, (), config.data, data, target.channels, config.ignore_variables))
    for place, file in enumerate(config.upstream_data):
        other = open_dataset([file], masking=masking_of(config, known, upstream=place))
        held = other["level"].values if "level" in other.dims else ()
        levels = [level for level in config.levels if level in held]  # a file of other levels is read whole
        channels = choose_channels(other, config.upstream_variables, levels, option="--upstream-variables")
        refuse_directions(other, channels, [file], option="--upstream-variables")
        each = RegionInput("upstream data", None, (file,), (file,), other, channels, config.ignore_variables)
        notes.append(_check_times(each, dataset["time"].values, training_N))
        found.append(each)
    factor, note = choose_coarsening(
        config.upstream_coarsen, target.points, [each.points for each in found], config.input_steps, lead_steps
    )
    return [replace(each, coarsen=factor) for each in found], notes + note


def _check_times(upstream: RegionInput, times: np.ndarray, training_N: np.ndarray) -> str:
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
        RegionInput(
            TARGET,
            region.box,
            region.files,
            (),
            select_region(data, region.box),
            region.statistics.channels,
            coarsen=region.coarsen,
        )
        for region, data in zip(regions, spec.region_data(dataset, upstream))
    ]
    budget = memory_budget_bytes(None)
    in_file = sum(each.nbytes(times) for each in inputs) > budget
    built = [
        from_checkpoint(each, region.statistics, times, budget if in_file else None)
        for each, region in zip(inputs, regions)
    ]
    return _gather_sources(built, times)


def _gather_sources(built: Sequence[tuple[Source, np.ndarray]], times: np.ndarray) -> Sources:
    sources = [source for source, _ in built]
    complete = np.logical_and.reduce([complete for _, complete in built])
    return Sources(sources[0], tuple(sources[1:]), times, complete)
