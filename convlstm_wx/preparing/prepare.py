"""Preparing a record: read, cleaned and written in stretches of time, so that its length does not matter.

The work is cut into one task per variable and stretch. They run one after the other here, or on a dask cluster, whose
workers need the same files and this package; the results are written here either way.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from tqdm import tqdm

from convlstm_wx import __version__
from convlstm_wx.config import parse_mask_values
from convlstm_wx.data.account import finite_or_none
from convlstm_wx.data.flags import flag_name
from convlstm_wx.data.masks import Masking, check_names
from convlstm_wx.data.reading import is_projected, open_dataset, source_of
from convlstm_wx.data.regions import Region, row_weights
from convlstm_wx.data.wind import directions, with_components
from convlstm_wx.errors import ConfigError, DataError
from convlstm_wx.gridfiles import (
    FILLED_ATTRIBUTES,
    Layout,
    chunk_rows,
    described,
    size_on_disk,
    writing,
)
from convlstm_wx.preparing import cleaning
from convlstm_wx.preparing.cleaning import Counts, FieldPlan, Rules, plan_field
from convlstm_wx.preparing.selecting import select
from convlstm_wx.preparing.wording import changes, coarsened, mended, record
from convlstm_wx.text import percent

_MOST_OUTSIDE = 0.5  # share of values beyond the plausible range
_BLOCK_BYTES = 32e6  # of one task's values as float64; cleaning needs some ten times that


@dataclass(frozen=True)
class Request:
    """What to read, which part of it, and what to do to the values.

    Attributes:
        paths: files, globs or stores.
        variables, levels: names, and hPa; empty for all.
        region: the box, None for all.
        start, end: times as the user writes them, None for all.
        derive: ("u", "v") to put wind components in place of the wind direction, else empty.
        rules: what is done to the values.
        ignore_variables: names and patterns of variables and masks to leave out.
        mask_values: entries as of --mask-values.
    """

    paths: tuple[str, ...]
    variables: tuple[str, ...] = ()
    levels: tuple[float, ...] = ()
    region: Region | None = None
    start: str | None = None
    end: str | None = None
    derive: tuple[str, ...] = ()
    rules: Rules = field(default_factory=Rules)
    ignore_variables: tuple[str, ...] = ()
    mask_values: tuple[str, ...] = ()

    def open(self) -> xr.Dataset:
        """The part asked for, lazily; times sorted, duplicates dropped, with their counts in attrs."""
        masking = Masking(self.ignore_variables, parse_mask_values(self.mask_values), wanted=self.variables)
        dataset = open_dataset(self.paths, mend=True, masking=masking)
        check_names(masking, [dataset])
        part = select(
            dataset,
            variables=self.variables,
            levels=self.levels,
            region=self.region,
            start=self.start,
            end=self.end,
        )
        part = part.assign_attrs(dataset.attrs)
        return with_components(part) if self.derive else part


@dataclass(frozen=True)
class Task:
    """A stretch of time of one variable: indices from start to before stop."""

    name: str
    start: int
    stop: int


@dataclass(frozen=True)
class Block:
    """What came out of a task: values [T, [L,] H, W], where they were filled (None: not asked for), and counts."""

    values: np.ndarray
    filled: np.ndarray | None
    counts: Counts


def prepare(request: Request, output: Path, *, scheduler: str | None = None) -> Iterator[str]:
    """Clean a record into a file, whole or not at all; yields an account of it, line by line.

    Args:
        request: what to read and to do.
        output: .nc or .zarr.
        scheduler: the address of a dask scheduler to run on.

    Raises:
        ConfigError: for options that do not fit the data, an output that cannot be written, or a cluster that cannot be
            reached.
        DataError: for files that cannot be read.
    """
    dataset = request.open()
    rules = request.rules
    names = _timed(dataset)
    plans = {name: plan_field(name, dataset[name].attrs, rules) for name in names + _static(dataset)}
    _check_names(rules, plans, dataset)
    frame, counts = _frame(dataset, plans, rules)
    layouts = dict(_layouts(dataset, plans, rules, names))
    yield f"read       {record(dataset)}"
    yield from mended(dataset)
    if "derived" in dataset.attrs:
        yield f"derived    {dataset.attrs['derived']}"
    yield from coarsened(dataset, rules)
    tasks = [task for name in names for task in _tasks(dataset, name, chunk_rows(frame.sizes, layouts[name]))]
    progress = tqdm(total=len(tasks), desc="preparing", unit="block", leave=False, disable=None)
    with progress, writing(output, frame, layouts) as file:
        for task, block in _run(request, dataset, tasks, scheduler):
            file.write(task.name, task.start, block.values)
            if block.filled is not None:
                file.write(flag_name(task.name), task.start, block.filled.view(np.int8))
            counts[task.name] = counts.get(task.name, Counts()) + block.counts
            progress.update()
        _check_plausible(dataset, plans, counts, rules)
        file.finish(_provenance(request, dataset, plans, counts))
    for name in plans:
        yield from changes(name, plans[name], dataset[name].attrs["units"], counts[name])
    yield f"written    {output} ({size_on_disk(output)})"


def _timed(dataset: xr.Dataset) -> list[str]:
    return [str(name) for name, values in dataset.data_vars.items() if "time" in values.dims]


def _static(dataset: xr.Dataset) -> list[str]:
    return [str(name) for name, values in dataset.data_vars.items() if "time" not in values.dims]


def _check_names(rules: Rules, plans: Mapping[str, FieldPlan], dataset: xr.Dataset) -> None:
    for option, named in (("--units", rules.units), ("--bounds", rules.bounds)):
        unknown = [name for name in named if name not in plans]
        if unknown:
            raise ConfigError(
                f"{option}: no variable {', '.join(unknown)} in {source_of(dataset)}; there are {', '.join(plans)}"
            )
    angles = directions(dataset, _timed(dataset))
    for option, averages in (("--coarsen", rules.coarsen > 1), ("--fill-space", rules.fill_space > 0)):
        if averages and angles:
            raise ConfigError(
                f"{option}: '{angles[0]}' is a direction, which cannot be averaged; leave it out with --variables, or "
                "make wind components of it and the wind speed with --derive u v"
            )
    height, width = dataset.sizes["lat"], dataset.sizes["lon"]
    if rules.coarsen > min(height, width):
        raise ConfigError(f"--coarsen {rules.coarsen}: the grid has only {height} x {width} points")


def _check_plausible(
    dataset: xr.Dataset, plans: Mapping[str, FieldPlan], counts: Mapping[str, Counts], rules: Rules
) -> None:
    """Refuse to throw all of a variable away, or most of it for bounds that nobody asked for: its units are wrong."""
    for name, plan in plans.items():
        present, outside = counts[name].values - counts[name].missing, counts[name].outside
        if name in rules.bounds and 0 < outside == present:
            raise ConfigError(
                f"--bounds {name}={plan.low:.6g}:{plan.high:.6g}: all values of '{name}' lie outside of that, so that "
                f"none would be left; give bounds in {plan.units}"
            )
        if name not in rules.bounds and outside > _MOST_OUTSIDE * present:
            raise DataError(
                f"{source_of(dataset)}: {percent(outside, present)} of '{name}' lie outside of the "
                f"plausible range {plan.low:.6g} to {plan.high:.6g} {plan.units}; is it really in "
                f"{dataset[name].attrs['units']}? Correct its units attribute, or use --bounds or --keep-implausible."
            )


# One block


def clean_block(dataset: xr.Dataset, task: Task, rules: Rules) -> Block:
    """Read and clean one stretch of one variable, latitudes in the file's own order.

    Raises:
        DataError: if the file cannot be read to its end.
    """
    field = dataset[task.name]
    plan = plan_field(task.name, field.attrs, rules)
    first = max(0, task.start - rules.fill_time)
    inside = slice(task.start - first, task.stop - first)
    read = _load(field.isel(time=slice(first, task.stop)), dataset)
    values, counts = cleaning.convert_and_bound(read, plan)
    if rules.fill_time:  # what lies before the stretch is counted where it is the stretch
        counts = cleaning.convert_and_bound(read[inside], plan)[1]
    values = _coarser(values, dataset, rules)
    filled_time = np.zeros(values.shape, bool)
    if rules.fill_time:
        stretches = cleaning.regular_stretches(dataset["time"].values)[first : task.stop]
        filled_time = cleaning.fill_time(values, stretches, rules.fill_time)
    values, filled_time = values[inside], filled_time[inside]
    filled_space = cleaning.fill_space(values, rules.fill_space)
    counts = replace(
        counts,
        written=values.size,
        missing_after=int(np.isnan(values).sum()),
        filled_time=int(filled_time.sum()),
        filled_space=int(filled_space.sum()),
    )
    filled = filled_time | filled_space if rules.fills else None
    earlier = flag_name(task.name)
    if earlier in dataset:
        marks = _load(dataset[earlier].isel(time=slice(task.start, task.stop)), dataset) == 1
        marks = marks if rules.coarsen == 1 else _any_of_block(marks, rules.coarsen)
        filled = (marks if filled is None else marks | filled) & ~np.isnan(values)
    if filled is not None:
        filled = np.ascontiguousarray(_own_rows(filled, dataset))
    return Block(_own_rows(values, dataset), filled, counts)


def _load(field: xr.DataArray, dataset: xr.Dataset) -> np.ndarray:
    try:
        return np.asarray(field.values)
    except (OSError, RuntimeError, ValueError) as error:
        raise DataError(
            f"{source_of(dataset)}: '{field.name}' cannot be read to its end ({error}); the file is damaged"
        ) from error


def _coarser(values: np.ndarray, dataset: xr.Dataset, rules: Rules) -> np.ndarray:
    if rules.coarsen == 1:
        return values
    return cleaning.coarsen(values, row_weights(dataset), rules.coarsen)


def _any_of_block(marks: np.ndarray, factor: int) -> np.ndarray:
    rows, columns = (size // factor for size in marks.shape[-2:])
    whole = marks[..., : rows * factor, : columns * factor]
    return np.asarray(whole.reshape(*marks.shape[:-2], rows, factor, columns, factor).any(axis=(-3, -1)))


# What the file will be


def _frame(dataset: xr.Dataset, plans: Mapping[str, FieldPlan], rules: Rules) -> tuple[xr.Dataset, dict[str, Counts]]:
    """Coordinates and static fields of the output, and what was changed in the latter."""
    names = _names(dataset)
    coords: dict[str, tuple] = {
        axis: (axis, dataset[axis].values, dataset[axis].attrs) for axis in ("time", "level") if axis in dataset.dims
    }
    for axis in ("lat", "lon"):
        values = cleaning.coarsen_axis(dataset[axis].values, rules.coarsen)
        values = values[::-1] if axis == "lat" and dataset.attrs.get("lat_descending") else values
        coords[names[axis]] = (names[axis], values, dataset[axis].attrs)
    grid = (names["lat"], names["lon"])
    for place in ("latitude", "longitude") if is_projected(dataset) else ():
        values = _coarser(dataset[place].values, dataset, rules)
        coords[place] = (grid, _own_rows(values, dataset), dataset[place].attrs)
    frame, counts = xr.Dataset(coords=coords), {}
    for name in _static(dataset):
        values, counts[name] = cleaning.convert_and_bound(_load(dataset[name], dataset), plans[name])
        values = _coarser(values, dataset, rules)
        counts[name] = replace(counts[name], written=values.size, missing_after=int(np.isnan(values).sum()))
        frame[name] = (grid, _own_rows(values, dataset), _attributes(name, dataset, plans[name]))
    return frame, counts


def _names(dataset: xr.Dataset) -> dict[str, str]:
    """What the dimensions are called in the output."""
    rows, columns = ("y", "x") if is_projected(dataset) else ("lat", "lon")
    return {"time": "time", "level": "level", "lat": rows, "lon": columns}


def _own_rows(values: np.ndarray, dataset: xr.Dataset) -> np.ndarray:
    """Rows [..., H, W] from north to south, where the source has them so."""
    return values[..., ::-1, :] if dataset.attrs.get("lat_descending") else values


def _layouts(
    dataset: xr.Dataset, plans: Mapping[str, FieldPlan], rules: Rules, names: Sequence[str]
) -> Iterator[tuple[str, Layout]]:
    for name in names:
        field = dataset[name]
        dims = tuple(_names(dataset)[str(dim)] for dim in field.dims)
        attrs = _attributes(name, dataset, plans[name])
        float_type = cleaning.convert_and_bound(np.zeros(1, field.dtype), plans[name])[0].dtype
        if rules.fills or flag_name(name) in dataset:
            long_name = {"long_name": f"where {name} was filled"}
            yield flag_name(name), Layout(dims, np.dtype(np.int8), FILLED_ATTRIBUTES | long_name)
            attrs["ancillary_variables"] = flag_name(name)
        yield name, Layout(dims, float_type, attrs)


def _attributes(name: str, dataset: xr.Dataset, plan: FieldPlan) -> dict[str, Any]:
    return described(name, dataset[name].attrs | {"units": plan.units})


# Running


def _tasks(dataset: xr.Dataset, name: str, rows: int) -> Iterator[Task]:
    """Stretches that fit the memory, whole pieces of the output and, where possible, of the source."""
    field = dataset[name]
    most = max(1, int(_BLOCK_BYTES / (8 * field[0].size)))
    source = field.chunks[0][0] if field.chunks else rows
    whole = next((piece for piece in (np.lcm(source, rows), source, rows) if piece <= most), most)
    step = int(most // whole * whole)
    for start in range(0, field.sizes["time"], step):
        yield Task(name, start, min(start + step, field.sizes["time"]))


def _run(
    request: Request, dataset: xr.Dataset, tasks: Sequence[Task], scheduler: str | None
) -> Iterator[tuple[Task, Block]]:
    if scheduler is None:
        for task in tasks:
            yield task, clean_block(dataset, task, request.rules)
    else:
        from convlstm_wx.preparing.cluster import run_on

        absolute = replace(request, paths=tuple(str(_absolute(path)) for path in request.paths))
        yield from run_on(scheduler, _clean_on_worker, absolute, tasks)


def _absolute(path: str) -> str | Path:
    return path if "://" in path else Path(path).absolute()


_open: dict[str, xr.Dataset] = {}  # on a worker: the request's dataset, opened once


def _clean_on_worker(request: Request, task: Task) -> Block:
    key = repr(request)
    if key not in _open:
        _open.clear()
        _open[key] = request.open()
    return clean_block(_open[key], task, request.rules)


# What the sources say of themselves and what stays true: not the extent, which may have been cut.
_KEPT = re.compile(r"(?!Conventions$|coordinates$|geospatial_|time_coverage_|valid_time_st)[A-Za-z][\w .+-]*")


def _provenance(
    request: Request, dataset: xr.Dataset, plans: Mapping[str, FieldPlan], counts: Mapping[str, Counts]
) -> dict[str, Any]:
    """Attributes that say where the file comes from: those of the sources, and what was done here.

    Of files we tell the names only, never where they lie.
    """
    kept = {name: text for name, text in dataset.attrs.get("texts", {}).items() if _KEPT.fullmatch(name)}
    options = {key: value for key, value in asdict(request).items() if key not in ("paths", "rules") and value}
    unchanged = asdict(Rules())
    options |= {key: value for key, value in asdict(request.rules).items() if value != unchanged[key]}
    changed = {name: {key: n for key, n in asdict(counts[name]).items() if n} for name in plans}
    times = {key: int(dataset.attrs.get(key, 0)) for key in ("unsorted_times", "duplicate_times")}
    made = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
    done = f"{made} convlstm-wx {__version__} prepare, from {source_of(dataset)}"
    return {
        "source": source_of(dataset),
        **kept,
        "history": "\n".join([done, kept["history"]] if "history" in kept else [done]),
        "prepare_options": json.dumps(finite_or_none(options), sort_keys=True),
        "prepare_counts": json.dumps(changed | {"times": times}, sort_keys=True),
        "prepare_versions": json.dumps({"convlstm_wx": __version__, "xarray": xr.__version__, "numpy": np.__version__}),
    }
