"""What preparing did, in words: one line each."""

from collections.abc import Iterator

import numpy as np
import xarray as xr

from convlstm_wx.data.reading import describe_step, source_of, time_step
from convlstm_wx.preparing.cleaning import Counts, FieldPlan, Rules
from convlstm_wx.text import count, percent


def record(dataset: xr.Dataset) -> str:
    """What was read."""
    times = dataset["time"].values
    ends = times.astype("datetime64[m]").astype(str)
    step = f", one each {describe_step(time_step(times))}" if len(times) > 1 else ""
    grid = f"{dataset.sizes['lat']} x {dataset.sizes['lon']} points"
    return f"{source_of(dataset)}: {count(len(times), 'time')}{step}, from {ends[0]} to {ends[-1]}; {grid}"


def mended(dataset: xr.Dataset) -> Iterator[str]:
    """What was done to the order of times."""
    unsorted, duplicates = (int(dataset.attrs.get(key, 0)) for key in ("unsorted_times", "duplicate_times"))
    told = [(unsorted, "out of order, now sorted"), (duplicates, "repeated, left out")]
    if unsorted or duplicates:
        yield f"times      {'; '.join(f'{number:,} {words}' for number, words in told if number)}"


def coarsened(dataset: xr.Dataset, rules: Rules) -> Iterator[str]:
    """The coarser grid."""
    if rules.coarsen == 1:
        return
    left = {"lat": "north", "lon": "east"}
    rest = {side: dataset.sizes[axis] % rules.coarsen for axis, side in left.items()}
    dropped = [f"{number} in the {side}" for side, number in rest.items() if number]
    note = f"; rows and columns left over and dropped: {', '.join(dropped)}" if dropped else ""
    grid = f"{dataset.sizes['lat'] // rules.coarsen} x {dataset.sizes['lon'] // rules.coarsen} points"
    yield f"coarsened  {rules.coarsen} x {rules.coarsen} points to one: {grid}{note}"


def changes(name: str, plan: FieldPlan, units: str, counts: Counts) -> Iterator[str]:
    """What happened to one variable, in one line."""
    told = []
    if plan.units != units:
        told.append(f"{units} to {plan.units}")
    limits = f"outside of {plan.low:.6g} to {plan.high:.6g} {plan.units}"
    if np.isinf(plan.low) or np.isinf(plan.high):
        limits = f"above {plan.high:.6g} {plan.units}" if np.isinf(plan.low) else f"below {plan.low:.6g} {plan.units}"
    present = counts.values - counts.missing
    for number, whole, words in (
        (counts.rounded, present, "just below zero set to zero"),
        (counts.infinite, present, "infinite made missing"),
        (counts.outside, present, f"{limits} made missing"),
        (counts.filled_time, counts.written, "filled in time"),
        (counts.filled_space, counts.written, "filled in space"),
    ):
        if number:
            told.append(f"{number:,} ({percent(number, whole)}) {words}")
    before, after = percent(counts.missing, counts.values), percent(counts.missing_after, counts.written)
    missing = f"missing {before}" if before == after else f"missing {before} before, {after} now"
    yield f"{name:<10} {'; '.join(told) or 'nothing changed'}; {missing}"
