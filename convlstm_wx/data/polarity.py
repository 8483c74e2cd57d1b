"""Polarity of masks: which of their values mean observed, by what the data are like where a mask has each value.

What fills a gap repeats a neighbour or a constant, or lies on a line between two times; weather does so much less. A
bounded number of times is looked at, spread over the file. Shapes: N times, L levels, H lat, W lon.
"""

import dataclasses
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import xarray as xr

from convlstm_wx.errors import DataError

STRETCHES, TIMES = 16, 8  # of a mask and its variable, that are looked at
LOOK_BYTES = 64e6  # of a variable: fewer times and levels of a large grid
MOST_VALUES = 10  # of a mask; a variable has more
_FEWEST = 3  # filled values that say anything
_CHANCE = 1e-3  # that as many observed values would all be repeated
_CLEARLY = 5  # times as many values are new among the observed as among the filled
_MOST_NEW, _MOST_NEW_OF_MANY = 0.05, 0.001  # share of the filled that is new; where most is filled: dry days repeat too
_MAJORITY = 0.6
_THRESHOLD_GAP = 0.01  # of the range: values so close together on both sides of a threshold come from one variable
_RELATIVE = 1e-6  # of a line in time, for rounding in float32
_MOST_SAMPLED = 4096  # values of a stretch, to find the constant that fills gaps


@dataclass(frozen=True)
class Look:
    """A mask and its variable at some times.

    Attributes:
        parts: canonical files, one or some of which hold the mask.
        mask, variable: names.
    """

    parts: Sequence[xr.Dataset]
    mask: str
    variable: str

    @cached_property
    def counts(self) -> dict[float, int]:
        """How often the mask has each value, NaN left out."""
        counts: Counter[float] = Counter()
        for mask, _ in self._stretches():
            values, numbers = np.unique(np.asarray(_load(mask, self.mask), np.float64), return_counts=True)
            counts.update(dict(zip(values[np.isfinite(values)].tolist(), numbers.tolist())))
            if len(counts) > MOST_VALUES:
                break
        return dict(counts)

    def holds_marks(self) -> bool:
        """Whether the mask holds a few whole numbers."""
        return _are_marks(self.counts)

    def pairs(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Mask and variable [N, L, H, W] of each stretch in which the file has both."""
        for mask, field in self._stretches():
            if field is None or any(field.sizes.get(dim) != size for dim, size in mask.sizes.items()):
                continue
            full = {dim: field.sizes.get(dim, 1) for dim in ("time", "level", "lat", "lon")}
            values = _load(field.set_dims(full), self.variable)
            yield _load(mask.set_dims(full), self.mask), np.asarray(values, np.float32)

    def _stretches(self) -> Iterator[tuple[xr.Variable, xr.Variable | None]]:
        """Mask and variable in stretches of time, lazily; None where the variable is not in the files."""
        having = [part for part in self.parts if self.mask in part.variables]
        masks, fields = [part[self.mask].variable for part in having], [self._field_beside(part) for part in having]
        larger = [mask if field is None else field for mask, field in zip(masks, fields)]
        steps = np.array([variable.sizes.get("time", 1) for variable in larger])
        row_bytes = max(4 * variable.size / variable.sizes.get("time", 1) for variable in larger)
        thin = max(1, int(np.ceil(3 * STRETCHES * row_bytes / LOOK_BYTES)))  # only every so many levels
        length = int(np.clip(LOOK_BYTES * thin / (row_bytes * STRETCHES), 3, TIMES))
        ends = np.cumsum(steps)
        starts = np.unique(np.linspace(0, max(ends[-1] - length, 0), STRETCHES).astype(int))
        if ends[-1] <= STRETCHES * length:  # then all of them
            starts, length = ends - steps, max(steps)
        for start in starts:
            index = np.searchsorted(ends, start, side="right")
            first = int(start - ends[index] + steps[index])
            rows = {"time": slice(first, first + int(length)), "level": slice(None, None, thin)}
            field = fields[index]
            yield _part(masks[index], rows), None if field is None else _part(field, rows)

    def _field_beside(self, part: xr.Dataset) -> xr.Variable | None:
        """The variable in the same file, or in another with the same times."""
        if self.variable in part.data_vars:
            return part[self.variable].variable
        fixed = "time" not in part.dims  # and so beside any
        other = next(iter(self._part_by_times.values()), None) if fixed else self._part_by_times.get(_times_of(part))
        return None if other is None else other[self.variable].variable

    @cached_property
    def _part_by_times(self) -> dict[bytes, xr.Dataset]:
        """The first of the files with the variable at the same times."""
        found: dict[bytes, xr.Dataset] = {}
        for part in self.parts:
            if self.variable in part.data_vars:
                found.setdefault(_times_of(part), part)
        return found


def _times_of(part: xr.Dataset) -> bytes:
    return part["time"].values.tobytes() if "time" in part.dims else b""


def _part(variable: xr.Variable, rows: dict[str, slice]) -> xr.Variable:
    return variable.isel({dim: part for dim, part in rows.items() if dim in variable.dims})


def _load(variable: xr.Variable, name: str) -> np.ndarray:
    try:
        return np.asarray(variable.values)
    except Exception as error:  # the libraries below, and the network, raise almost anything
        raise DataError(f"'{name}' cannot be read to its end ({' '.join(str(error).split())[:200]})") from error


def holds_marks(values: np.ndarray) -> bool:
    """Whether an array holds a few whole numbers."""
    found = np.unique(np.asarray(values, np.float64))
    return _are_marks(found[np.isfinite(found)].tolist())


def _are_marks(values: Collection[float]) -> bool:
    return 0 < len(values) <= MOST_VALUES and all(value == int(value) for value in values)


def decide(looks: Sequence[Look], hint: bool | None) -> tuple[tuple[float, ...], str] | None:
    """The values that mean observed in masks of one kind, and why; None where nothing says so.

    Args:
        looks: at each of the masks.
        hint: whether their names or texts speak of what is observed (True) or of what is not (False).
    """
    counts: Counter[float] = Counter()
    for look in looks:
        counts.update(look.counts)
    if not counts:
        return None
    telling = [look for look in looks if len(look.counts) > 1]
    if any(_is_threshold(look) for look in telling):
        return None
    repeated = _by_what_repeats(telling, counts)
    if repeated is not None:
        return repeated
    if len(counts) > 2:
        return None
    marked = [value for value in counts if value]
    if hint is not None and len(marked) < 2:
        return (marked[0] if marked else 1.0,) if hint else (0.0,), "by name"
    alone = {value for look in looks if len(look.counts) == 1 for value in look.counts}
    if len(alone) == 1:  # it cannot mean filled: nothing at all would have been observed
        (only,) = alone
        return (only,), f"{only:g} is the only value{' of some' if len(counts) > 1 else ''}"
    often, number = counts.most_common(1)[0]
    if number >= _MAJORITY * counts.total():
        return (often,), f"{100 * number / counts.total():.3g} % of the values"
    return None


def _is_threshold(look: Look) -> bool:
    """Whether the mask tells where its variable exceeds a threshold: it rained, it is cloudy."""
    low, high = dict.fromkeys(look.counts, np.inf), dict.fromkeys(look.counts, -np.inf)
    for mask, field in look.pairs():
        for value in look.counts:
            taken = field[(mask == value) & np.isfinite(field)]
            low[value] = min(low[value], float(taken.min(initial=np.inf)))
            high[value] = max(high[value], float(taken.max(initial=-np.inf)))
    classes = sorted((low[value], high[value]) for value in low if low[value] <= high[value])
    if len(classes) < 2:
        return False
    span = classes[-1][1] - classes[0][0]
    return all(0 < above[0] - below[1] <= _THRESHOLD_GAP * span for below, above in pairwise(classes))


# What repeats


@dataclass
class _Tally:
    """How many of the filled and of the observed values there are, how many are new, and why others are not."""

    filled: int = 0
    filled_new: int = 0
    observed: int = 0
    observed_new: int = 0
    reasons: Counter[str] = dataclasses.field(default_factory=Counter)

    def is_clear(self) -> bool:
        """Whether the filled values repeat others as the observed ones do not."""
        if self.filled < _FEWEST or not self.observed:
            return False
        new, filled_new = self.observed_new / self.observed, self.filled_new / self.filled
        most = _MOST_NEW if self.filled <= self.observed else _MOST_NEW_OF_MANY
        return filled_new <= min(most, new / _CLEARLY) and (1 - new) ** self.filled < _CHANCE

    def reason(self) -> str:
        """The first of the reasons that hold for nearly as many values as any does."""
        most = max(self.reasons.values())
        return next(text for text, number in self.reasons.items() if number >= 0.9 * most)


def _by_what_repeats(looks: Sequence[Look], counts: Counter[float]) -> tuple[tuple[float, ...], str] | None:
    """The value of a mask that means observed, if where it has others they clearly repeat what is beside them."""
    candidates = sorted(counts) if len(counts) == 2 else [0.0, counts.most_common(1)[0][0]]
    tallies = {value: _Tally() for value in candidates if value in counts}
    for look in looks:
        pairs = list(look.pairs())  # of one mask at a time
        for good, tally in tallies.items():
            _add(tally, pairs, good)
    clear = {good: tally for good, tally in tallies.items() if tally.is_clear()}
    if len(clear) != 1:
        return None
    ((good, tally),) = clear.items()
    others = [f"{value:g}" for value in sorted(counts) if value != good]
    return (good,), f"{' and '.join(others)} {tally.reason().format('s' if len(others) == 1 else '')}"


def _add(tally: _Tally, pairs: Sequence[tuple[np.ndarray, np.ndarray]], good: float) -> None:
    """Count one mask, supposing that a value means observed."""
    where_good = [(mask == good, field) for mask, field in pairs]
    where_not = [(mask != good, field) for mask, field in pairs]
    filler_L, usual_L = _most_common_L(where_not), _most_common_L(where_good)
    filled_by_LHW, always_LHW = _only_value_LHW(where_not), _only_value_LHW(where_good)
    for mask_NLHW, field_NLHW in pairs:
        inner = slice(1, -1) if len(field_NLHW) > 2 else slice(None)  # whose neighbours in time are there
        observed, missing = (mask_NLHW == good) & ~np.isnan(field_NLHW), np.isnan(field_NLHW)
        filled = (mask_NLHW != good)[inner]
        repeats = {
            "mark{} missing values": missing,
            "repeat{} a constant": field_NLHW == filler_L[:, None, None],
            "repeat{} a neighbour in time": _repeats(field_NLHW, (0,)),
            "repeat{} a neighbour in space": _repeats(field_NLHW, (2, 3)),
            "repeat{} one value at each point": field_NLHW == filled_by_LHW,
            "lie{} on lines in time": _on_a_line(field_NLHW),
        }
        for text, where in repeats.items():
            tally.reasons[text] += int((where[inner] & filled).sum())
        tally.filled += int(filled.sum())
        tally.filled_new += int((filled & ~np.logical_or.reduce(list(repeats.values()))[inner]).sum())
        # What is observed may well be repeated by what was filled beside it.
        old = _repeats(field_NLHW, (0, 2, 3), among=observed) | (field_NLHW == usual_L[:, None, None])
        old |= field_NLHW == always_LHW
        tally.observed += int(observed[inner].sum())
        tally.observed_new += int((observed & ~old)[inner].sum())


def _most_common_L(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Of each level the value that is most common at some points, NaN where none occurs twice."""
    common = []
    for level in range(max((field.shape[1] for _, field in pairs), default=0)):
        taken = [field[:, level][where[:, level]] for where, field in pairs]
        sampled = np.concatenate([values[:: 1 + values.size // _MOST_SAMPLED] for values in taken])
        values, numbers = np.unique(sampled[~np.isnan(sampled)], return_counts=True)
        common.append(values[numbers.argmax()] if numbers.size and numbers.max() > 1 else np.nan)
    return np.array(common, np.float32)


def _only_value_LHW(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Of each point the value that it has wherever it is taken, twice or more often; NaN where it has others too."""
    low, high, number = np.float32(np.inf), np.float32(-np.inf), np.int64(0)
    for where, field in pairs:
        taken = where & ~np.isnan(field)
        low = np.minimum(low, np.where(taken, field, np.inf).min(axis=0))
        high = np.maximum(high, np.where(taken, field, -np.inf).max(axis=0))
        number = number + taken.sum(axis=0)
    return np.where((low == high) & (number > 1), low, np.nan)


def _repeats(field: np.ndarray, axes: Sequence[int], among: np.ndarray | None = None) -> np.ndarray:
    """Where a value equals one beside it along these axes; `among`: of the values there alone."""
    found = np.zeros(field.shape, bool)
    for axis in axes:
        values, out = np.moveaxis(field, axis, 0), np.moveaxis(found, axis, 0)
        same = values[1:] == values[:-1]
        if among is not None:
            there = np.moveaxis(among, axis, 0)
            same &= there[1:] & there[:-1]
        out[1:] |= same
        out[:-1] |= same
    return found


def _on_a_line(field: np.ndarray) -> np.ndarray:
    """Where a value is the mean of those before and after it."""
    found = np.zeros(field.shape, bool)
    with np.errstate(invalid="ignore"):  # inf - inf
        bend = np.abs(field[2:] - 2 * field[1:-1] + field[:-2])
    found[1:-1] = bend <= _RELATIVE * (np.abs(field[2:]) + np.abs(field[:-2]))
    return found
