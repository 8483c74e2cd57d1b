"""One pass over all pairs of a channel: every statistic that the scores are made of, in bounded memory.

The work is cut into a task per channel and stretch of init times, which may run on other machines.
"""

import functools
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import dask
import numpy as np
import xarray as xr
from tqdm import tqdm

from convlstm_wx.verification import ensembles, events, metrics, spectra
from convlstm_wx.verification.baselines import Baseline
from convlstm_wx.verification.events import Threshold
from convlstm_wx.verification.pairs import Pairs, pairs_of, parts_of
from convlstm_wx.verification.record import Record

# By kind: "means" are area means per init time, "events" counts per init time, "maps" means over init times, "in ..."
# area means of a box; all others are sums over init times.
Statistics = dict[str, xr.Dataset]


@dataclass(frozen=True)
class Measures:
    """What is measured of each block of pairs.

    weights: area of each row (lat); thresholds: of the channel's events; areas: rows and columns of each box;
    rings: of the spectra, None for a grid too small for them; linear_spread, crps_method: see `ensembles.by_init`.
    """

    weights: xr.DataArray
    thresholds: Sequence[Threshold]
    areas: Mapping[str, tuple[np.ndarray, np.ndarray]]
    rings: spectra.Rings | None
    linear_spread: Mapping[np.timedelta64, np.ndarray] | None = None
    crps_method: str = "fair"

    def of(self, pairs: Pairs) -> Statistics:
        """Of one lead time and one block of init times."""
        found = {
            "means": metrics.by_init(pairs, self.weights),
            "maps": metrics.by_point(pairs),
            "events": events.count(pairs, self.thresholds),
        }
        for name, (rows, columns) in self.areas.items():
            found[f"in {name}"] = metrics.by_init(pairs.inside(rows, columns), self.weights.isel(lat=rows))
        if self.rings is not None:
            model = pairs.systems.sel(system="model")
            found["spectra"] = spectra.power_of(model, pairs.truth, self.rings)
        if pairs.members is not None:
            of_members = ensembles.by_init(pairs, self.weights, self.linear_spread, self.crps_method)
            found["means"] = found["means"].assign(of_members.data_vars)
            found["ensemble"] = ensembles.sums(pairs, self.thresholds)
        return found


@dataclass(frozen=True)
class Task:
    """One channel in a stretch of init times; can be sent to another process, as fields may be lazy.

    fields: forecast ([realization,] init_time, lead_time, lat, lon); record: of the truth; rivals: by name;
    measures: what is measured.
    """

    channel: str
    fields: xr.DataArray
    record: Record
    rivals: Mapping[str, Baseline]
    measures: Measures

    def stretches(self, most_bytes: float) -> "Iterator[Task]":
        """The same in stretches of init times of at most so many bytes each."""
        return (replace(self, fields=part) for part in parts_of(self.fields, self.fields.nbytes / most_bytes))


# (work, what all tasks share, tasks) -> each task with what came out of it, in their order; see preparing.cluster.
Runner = Callable[[Callable[[None, Task], Statistics], None, Sequence[Task]], Iterable[tuple[Task, Statistics]]]


def one_by_one(
    work: Callable[[None, Task], Statistics], common: None, tasks: Sequence[Task]
) -> Iterator[tuple[Task, Statistics]]:
    """All tasks here."""
    return ((task, work(common, task)) for task in tasks)


def gather(tasks: Sequence[Task], runner: Runner) -> Statistics:
    """All statistics, with the dimensions channel and lead_time."""
    found: dict[str, list[Statistics]] = {}
    several = None if len(tasks) > 1 else True
    with tqdm(total=len(tasks), desc="scoring", unit="part", leave=False, disable=several) as progress:
        for task, statistics in runner(measure, None, tasks):
            found.setdefault(task.channel, []).append(statistics)
            progress.update()
    return by_channel({channel: _in_one(stretches) for channel, stretches in found.items()})


def measure(_: None, task: Task) -> Statistics:
    """All statistics of a task, with the dimension lead_time."""
    fields, record = task.fields, task.record
    with dask.config.set(scheduler="synchronous"):  # on a cluster, lazy data would else be asked of the cluster itself
        parts = [task.measures.of(pairs) for pairs in pairs_of(fields, record.fields, record.usual, task.rivals)]
    leads = fields.sizes["lead_time"]
    return _in_one([_by_lead(parts[start : start + leads], fields) for start in range(0, len(parts), leads)])


def _by_lead(parts: Sequence[Statistics], fields: xr.DataArray) -> Statistics:
    return {kind: xr.concat([part[kind] for part in parts], fields["lead_time"]) for kind in parts[0]}


def _in_one(blocks: Sequence[Statistics]) -> Statistics:
    """Blocks of init times, one after the other."""
    return {kind: _joined(kind)([block[kind] for block in blocks]) for kind in blocks[0]}


def _joined(kind: str) -> Callable[[list[xr.Dataset]], xr.Dataset]:
    """How blocks of init times become one."""
    if kind in ("means", "events") or kind.startswith("in "):
        return lambda blocks: xr.concat(blocks, "init_time")
    return _pooled if kind == "maps" else lambda blocks: functools.reduce(operator.add, blocks)


def _pooled(blocks: list[xr.Dataset]) -> xr.Dataset:
    maps = xr.concat(blocks, "block")
    return metrics.pool(maps[["mse", "bias"]], maps["count"], "block").assign(count=maps["count"].sum("block"))


def by_channel(statistics: Mapping[str, Statistics]) -> Statistics:
    """The same kinds with the dimension channel; thresholds are numbered; where a channel has fewer, counts are 0."""
    names = xr.Variable("channel", list(statistics))
    kinds = next(iter(statistics.values()))
    return {
        kind: xr.concat(
            [_numbered(of_channel[kind]) for of_channel in statistics.values()], names, join="outer", fill_value=0
        )
        for kind in kinds
    }


def _numbered(part: xr.Dataset) -> xr.Dataset:
    return part.assign_coords(threshold=np.arange(part.sizes["threshold"])) if "threshold" in part.dims else part
