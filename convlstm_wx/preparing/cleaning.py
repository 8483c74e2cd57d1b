"""Cleaning the values of one variable: units, bounds, coarser grid, filled gaps. Arrays in, arrays and counts out.

Order: units, bounds, coarsening, filling in time, filling in space; each step sees what the one before left.
Shapes: T times, L levels, H lat, W lon; "..." stands for what is left as it is.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from convlstm_wx.conventions import KnownVariable, normalise_units, recognise, unit_conversion
from convlstm_wx.data.coarsening import axis_means, block_means
from convlstm_wx.errors import ConfigError

# Packing and interpolation leave rain of -1e-9 mm. What is below zero by less than this share of the largest plausible
# value is zero, not an error.
_ROUNDING_SHARE = 1e-5


@dataclass(frozen=True)
class Rules:
    """What is to be done to the values.

    Attributes:
        coarsen: N for the mean of N x N points; 1 leaves the grid.
        units: variable -> the units it shall have.
        bounds: variable -> lowest and highest value, in the units of the output; infinite is no bound.
        keep_implausible: leave values outside of the plausible range of known variables.
        fill_time: for how many steps the last observed value is held; 0 fills none.
        fill_space: how many grid points to fill inwards from the observed ones; 0 fills none.

    Raises:
        ConfigError: for numbers that make no sense.
    """

    coarsen: int = 1
    units: Mapping[str, str] = field(default_factory=dict)
    bounds: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    keep_implausible: bool = False
    fill_time: int = 0
    fill_space: int = 0

    def __post_init__(self) -> None:
        for name, least in (("coarsen", 1), ("fill_time", 0), ("fill_space", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"--{name.replace('_', '-')} {getattr(self, name)}: must be at least {least}")
        for name, (low, high) in self.bounds.items():
            if not low < high:
                raise ConfigError(f"--bounds {name}={low:g}:{high:g}: the first number must be the smaller one")

    @property
    def fills(self) -> bool:
        """Whether anything is to be filled."""
        return bool(self.fill_time or self.fill_space)


@dataclass(frozen=True)
class FieldPlan:
    """What is to be done to one variable.

    Attributes:
        units: of the output.
        scale, offset: output = scale * value + offset.
        low, high: values outside become missing.
        rounding: values below zero by less than this become zero.
        known: the variable it was recognised as.
    """

    units: str
    scale: float = 1.0
    offset: float = 0.0
    low: float = -np.inf
    high: float = np.inf
    rounding: float = 0.0
    known: KnownVariable | None = None


def plan_field(name: str, attrs: Mapping[str, Any], rules: Rules) -> FieldPlan:
    """What the rules mean for one variable.

    Raises:
        ConfigError: for units that cannot be had from the variable's own, naming both.
    """
    own = str(attrs.get("units", "1"))
    asked = rules.units.get(name, own)
    units = normalise_units(asked)  # one spelling: "C" is the coulomb in CF files
    conversion = (1.0, 0.0) if units == own else unit_conversion(own, units)
    if conversion is None:
        raise ConfigError(f"--units {name}={asked}: '{name}' is in '{own}', which cannot be converted to '{asked}'")
    known = recognise(name, attrs)
    low, high, rounding = _plausible(known, units)
    if name in rules.bounds:
        low, high = rules.bounds[name]
    elif rules.keep_implausible:
        low, high = -np.inf, np.inf
    return FieldPlan(units, *conversion, low, high, rounding, known)


def _plausible(known: KnownVariable | None, units: str) -> tuple[float, float, float]:
    """Lowest and highest plausible value, and what is rounding below zero, in the given units."""
    conversion = None if known is None else unit_conversion(units, known.units)
    if known is None or conversion is None:
        return -np.inf, np.inf, 0.0
    scale, offset = conversion
    rounding = _ROUNDING_SHARE * known.valid_max / scale if known.non_negative and offset == 0 else 0.0
    return (known.valid_min - offset) / scale, (known.valid_max - offset) / scale, rounding


@dataclass
class Counts:
    """How many values of a variable were looked at and changed.

    Attributes:
        values, missing: read, and missing among them.
        infinite, outside: made missing, as they were infinite, or outside of the bounds.
        rounded: set from just below zero to zero.
        written, missing_after: written, and missing among them.
        filled_time, filled_space: filled among those written.
    """

    values: int = 0
    missing: int = 0
    infinite: int = 0
    outside: int = 0
    rounded: int = 0
    written: int = 0
    missing_after: int = 0
    filled_time: int = 0
    filled_space: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(*(getattr(self, entry.name) + getattr(other, entry.name) for entry in fields(self)))


def convert_and_bound(values: np.ndarray, plan: FieldPlan) -> tuple[np.ndarray, Counts]:
    """Values [...] in the units of the output, NaN where missing, infinite or out of bounds; same float type.

    Whole numbers become floats that can hold them.
    """
    if values.dtype.kind == "f":
        values = values.astype(values.dtype.newbyteorder("="), order="C")
    else:
        values = values.astype(np.float32 if values.dtype.itemsize <= 2 else np.float64, order="C")
    if (plan.scale, plan.offset) != (1.0, 0.0):
        values = (plan.scale * values.astype(np.float64) + plan.offset).astype(values.dtype)
    missing, infinite = np.isnan(values), np.isinf(values)
    rounded = (values < 0) & (values > -plan.rounding) if plan.rounding else np.zeros(values.shape, bool)
    values[rounded] = 0
    # A bound is met, where it is met but for the rounding of float32.
    slack = np.finfo(values.dtype).eps
    low, high = plan.low - slack * abs(plan.low), plan.high + slack * abs(plan.high)
    outside = ~missing & ~infinite & ((values < low) | (values > high))
    values[infinite | outside] = np.nan
    counts = Counts(values.size, int(missing.sum()), int(infinite.sum()), int(outside.sum()), int(rounded.sum()))
    return values, counts


def coarsen(values: np.ndarray, weights_H: np.ndarray, factor: int) -> np.ndarray:
    """:func:`~convlstm_wx.data.coarsening.block_means` of whole blocks; the rest in the north and east is dropped."""
    rows, columns = (size // factor * factor for size in values.shape[-2:])
    return block_means(values[..., :rows, :columns], weights_H[:rows], factor)


def coarsen_axis(values: np.ndarray, factor: int) -> np.ndarray:
    """The middles of the whole blocks, degrees."""
    return axis_means(values[: len(values) // factor * factor], factor)


def fill_time(values: np.ndarray, stretch_T: np.ndarray, most: int) -> np.ndarray:
    """Hold what was last observed for at most `most` steps, in place.

    A line to the next observation would tell a forecast that starts in the gap what is to come.

    Args:
        values: [T, ...], contiguous.
        stretch_T: the number of the stretch of regular times that a time belongs to; nothing is held beyond one.
        most: how many steps a value is held, at most.

    Returns:
        Where values were filled, bool [T, ...].
    """
    missing = np.isnan(values).reshape(len(values), -1)
    gaps = missing.any(axis=0) & ~missing.all(axis=0)
    absent, lines = missing[:, gaps], values.reshape(len(values), -1)[:, gaps]  # [T, P], only points that have gaps
    index = np.arange(len(values))[:, None]
    before = np.maximum.accumulate(np.where(absent, -1, index), axis=0)
    t, p = np.nonzero(absent & (before >= 0) & (index - before <= most))
    inside = stretch_T[before[t, p]] == stretch_T[t]
    t, p = t[inside], p[inside]
    filled = np.zeros(missing.shape, bool)
    at = (t, np.flatnonzero(gaps)[p])
    filled[at] = True
    values.reshape(len(values), -1)[at] = lines[before[t, p], p]
    return filled.reshape(values.shape)


def regular_stretches(times: np.ndarray) -> np.ndarray:
    """The number of the stretch that each time belongs to; a new one begins after a step unlike the usual one, [T]."""
    if len(times) < 2:
        return np.zeros(len(times), int)
    steps, counts = np.unique(np.diff(times), return_counts=True)
    return np.concatenate([[0], np.cumsum(np.diff(times) != steps[counts.argmax()])])


def fill_space(values: np.ndarray, reach: int) -> np.ndarray:
    """Fill missing points, in place, with the mean of their present neighbours (of eight), `reach` points inwards.

    Args:
        values: [..., H, W].
        reach: how many times; each fills the points beside those that are there.

    Returns:
        Where values were filled, bool [..., H, W].
    """
    before = np.isnan(values)
    for _ in range(reach):
        missing = np.isnan(values)
        if not missing.any() or missing.all():
            break
        total, count = _sum_of_neighbours(np.where(missing, 0, values)), _sum_of_neighbours((~missing).astype(np.int8))
        edge = missing & (count > 0)
        values[edge] = (total[edge] / count[edge]).astype(values.dtype)
    return before & ~np.isnan(values)


def _sum_of_neighbours(values: np.ndarray) -> np.ndarray:
    """Sum over each point and the eight around it, zero beyond the edges, [..., H, W]; a missing point counts 0."""
    height, width = values.shape[-2:]
    padded = np.pad(values, [(0, 0)] * (values.ndim - 2) + [(1, 1), (1, 1)])
    total = np.zeros_like(values)
    for row in range(3):
        for column in range(3):
            total += padded[..., row : row + height, column : column + width]
    return total
