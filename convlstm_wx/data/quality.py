"""Quality: what a dataset holds, told before hours are spent on it. Nothing is changed here.

One pass over the values, block by block, in bounded memory.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import xarray as xr

from convlstm_wx.conventions import Channel, KnownVariable, recognise, unit_conversion
from convlstm_wx.data.reading import describe_step, source_of, time_step
from convlstm_wx.errors import DataError

READ_BYTES = 256e6
_MOST_GAPS_TOLD = 5
_SUSPICIOUS_SHARE = 0.5


@dataclass(frozen=True)
class ChannelAccount:
    """What one variable, on one level, holds.

    Attributes:
        name: of the channel.
        units: of the file.
        meaning: the known variable it was recognised as, or None.
        minimum, maximum, mean: of the finite values, in the file's units; the mean is not weighted by area.
        missing_share: share of missing values, infinities included.
        infinities: number of infinite values.
        plausible: lowest and highest plausible value in the file's units, None where nothing is known.
        outside: number of finite values outside of the plausible range.
        values: number of finite values.
    """

    name: str
    units: str
    meaning: str | None
    minimum: float
    maximum: float
    mean: float
    missing_share: float
    infinities: int
    plausible: tuple[float, float] | None
    outside: int
    values: int

    @property
    def constant(self) -> bool:
        """Whether all values are the same."""
        return self.minimum == self.maximum

    def line(self) -> str:
        """One line for people."""
        missing = f", {100 * self.missing_share:.3g} % missing" if self.missing_share else ""
        name = f"{self.name} ({self.meaning})" if self.meaning else self.name
        return f"{name}: {self.minimum:.6g} to {self.maximum:.6g} {self.units}, mean {self.mean:.6g}{missing}"

    def warnings(self) -> Iterator[str]:
        """What a person should look at."""
        if self.constant:
            yield f"{self.name} is constant ({self.minimum:g}): there is nothing to learn from it"
        if self.infinities:
            yield f"{self.name} has infinite values, which are treated as missing: {self.infinities}"
        if self.outside and self.plausible is not None:
            low, high = self.plausible
            share = self.outside / self.values
            hint = f"; is it really in {self.units}?" if share > _SUSPICIOUS_SHARE else ""
            plausible = f"the plausible range {low:.6g} to {high:.6g} {self.units}"
            counted = f"{self.outside} of {self.values} values ({100 * share:.3g} %)"
            yield f"{self.name} has {counted} outside of {plausible}{hint}"


@dataclass(frozen=True)
class Gap:
    """A hole in the time axis: the last time before it, the first after it, and the steps that are missing."""

    before: str
    after: str
    missing_steps: int


@dataclass(frozen=True)
class Account:
    """What a dataset holds.

    Attributes:
        source: file names.
        grid: rows and columns, and what they cover, in words.
        steps: number of times.
        step: the time step, in words.
        period: first and last time, ISO.
        gaps: the holes in the time axis.
        irregular_steps: neighbouring times that are closer than the time step.
        channels: one account per variable and level.
    """

    source: str
    grid: str
    steps: int
    step: str
    period: tuple[str, str]
    gaps: tuple[Gap, ...]
    irregular_steps: int
    channels: tuple[ChannelAccount, ...]

    def lines(self) -> list[str]:
        """The account for people; what to look at comes last."""
        first, last = self.period
        return [
            f"{self.source}: {self.steps} times, one each {self.step}, from {first} to {last}; {self.grid}",
            *(channel.line() for channel in self.channels),
            *(f"note: {text}" for text in self.warnings()),
        ]

    def warnings(self) -> list[str]:
        """What a person should look at."""
        told = [
            f"missing steps between {g.before} and {g.after}: {g.missing_steps}" for g in self.gaps[:_MOST_GAPS_TOLD]
        ]
        if len(self.gaps) > _MOST_GAPS_TOLD:
            told.append(f"more gaps in time, across which no window reaches: {len(self.gaps) - _MOST_GAPS_TOLD}")
        if self.irregular_steps:
            told.append(f"times that follow the one before in less than {self.step}: {self.irregular_steps}")
        return told + [text for channel in self.channels for text in channel.warnings()]

    def to_dict(self) -> dict[str, Any]:
        """Plain types, for JSON."""
        return asdict(self)


def check(ds: xr.Dataset, variables: Sequence[str]) -> Account:
    """Look at every value of the given variables once.

    Raises:
        DataError: if a variable, on one of its levels, has no value at all; if there are fewer than two times; if the
            file cannot be read to its end.
    """
    source = source_of(ds)
    times = ds["time"].values
    step = time_step(times)
    differences = np.diff(times)
    ends = times.astype("datetime64[m]").astype(str)
    gaps = tuple(
        Gap(str(ends[i]), str(ends[i + 1]), round(differences[i] / step) - 1)
        for i in np.flatnonzero(differences > step)
    )
    return Account(
        source=source,
        grid=_describe_grid(ds),
        steps=len(times),
        step=describe_step(step),
        period=(str(ends[0]), str(ends[-1])),
        gaps=gaps,
        irregular_steps=int((differences < step).sum()),
        channels=tuple(account for name in variables for account in _accounts(ds[name], source)),
    )


def _describe_grid(ds: xr.Dataset) -> str:
    lat, lon = ds["lat"].values, ds["lon"].values
    north = f"{lat[0]:g} to {lat[-1]:g} degrees north"
    return f"{len(lat)} x {len(lon)} points, {north}, {lon[0]:g} to {lon[-1]:g} degrees east"


def _accounts(field: xr.DataArray, source: str) -> Iterator[ChannelAccount]:
    levels = field["level"].values.tolist() if "level" in field.dims else [None]
    known = recognise(str(field.name), field.attrs)
    plausible = _plausible_range(field, known)
    tallies = [_Tally(plausible) for _ in levels]
    for block in _blocks(field, source):
        for tally, values in zip(tallies, np.moveaxis(block.reshape(len(block), len(levels), -1), 1, 0)):
            tally.add(values)
    for level, tally in zip(levels, tallies):
        name = Channel(str(field.name), level).name
        if tally.count == 0:
            raise DataError(f"{source}: all values of '{name}' are missing. Leave it out with --variables or --levels.")
        yield ChannelAccount(
            name=name,
            units=str(field.attrs["units"]),
            meaning=None if known is None else known.long_name,
            minimum=tally.minimum,
            maximum=tally.maximum,
            mean=tally.total / tally.count,
            missing_share=1 - tally.count / (field.size // len(levels)),
            infinities=tally.infinities,
            plausible=plausible,
            outside=tally.outside,
            values=tally.count,
        )


def _plausible_range(field: xr.DataArray, known: KnownVariable | None) -> tuple[float, float] | None:
    """Lowest and highest plausible value, in the file's units."""
    conversion = None if known is None else unit_conversion(field.attrs["units"], known.units)
    if known is None or conversion is None:
        return None
    scale, offset = conversion
    return (known.valid_min - offset) / scale, (known.valid_max - offset) / scale


def _blocks(field: xr.DataArray, source: str) -> Iterator[np.ndarray]:
    """The values [time, ...] in stretches of time; compressed files like it best when these are long."""
    rows = max(1, int(READ_BYTES / (field.dtype.itemsize * field[0].size)))
    for start in range(0, field.sizes["time"], rows):
        try:
            yield field[start : start + rows].values
        except (OSError, RuntimeError, ValueError) as error:
            raise DataError(
                f"{source}: '{field.name}' cannot be read to its end ({error}). The file is damaged; fetch it again."
            ) from error


class _Tally:
    """Running counts of one channel."""

    def __init__(self, plausible: tuple[float, float] | None):
        self.low, self.high = plausible or (-np.inf, np.inf)
        self.count = self.infinities = self.outside = 0
        self.total = 0.0
        self.minimum, self.maximum = np.inf, -np.inf

    def add(self, values: np.ndarray) -> None:
        """Take in a block of any shape."""
        finite = values[np.isfinite(values)]
        self.infinities += int(np.isinf(values).sum())
        if finite.size == 0:
            return
        self.count += finite.size
        self.total += float(finite.sum(dtype=np.float64))
        self.minimum = min(self.minimum, float(finite.min()))
        self.maximum = max(self.maximum, float(finite.max()))
        self.outside += int(((finite < self.low) | (finite > self.high)).sum())
