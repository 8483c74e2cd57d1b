"""Quality: what a dataset holds, told before hours are spent on it. Nothing is changed here.

One pass over the values, block by block, in bounded memory.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import xarray as xr

from convlstm_wx.conventions import Channel, recognise, unit_conversion
from convlstm_wx.data.reading import describe_step, time_step
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
            yield f"{self.name} has {self.infinities} infinite values; they are treated as missing"
        if self.outside and self.plausible is not None:
            low, high = self.plausible
            share = self.outside / self.values
            hint = f"; is it really in {self.units}?" if share > _SUSPICIOUS_SHARE else ""
            yield (
                f"{self.name} has {self.outside} values ({100 * share:.2g} %) outside of the plausible range "
                f"{low:.6g} to {high:.6g} {self.units}{hint}"
            )


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
            f"{g.missing_steps} steps missing between {g.before} and {g.after}" for g in self.gaps[:_MOST_GAPS_TOLD]
        ]
        if len(self.gaps) > _MOST_GAPS_TOLD:
            told.append(f"{len(self.gaps) - _MOST_GAPS_TOLD} more gaps in time; no window reaches across a gap")
        if self.irregular_steps:
            told.append(f"{self.irregular_steps} times follow the one before in less than {self.step}")
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
    source = str(ds.attrs.get("source", "the data"))
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
    plausible = _plausible_range(field)
    sums = _Sums(len(levels))
    for block in _blocks(field, source):
        sums.add(block.reshape(block.shape[0], len(levels), -1), plausible)
    known = recognise(str(field.name), field.attrs)
    for index, level in enumerate(levels):
        name = Channel(str(field.name), level).name
        if sums.count[index] == 0:
            raise DataError(f"{source}: all values of '{name}' are missing. Leave it out with --variables or --levels.")
        yield ChannelAccount(
            name=name,
            units=str(field.attrs["units"]),
            meaning=None if known is None else known.long_name,
            minimum=float(sums.minimum[index]),
            maximum=float(sums.maximum[index]),
            mean=float(sums.total[index] / sums.count[index]),
            missing_share=float(1 - sums.count[index] / (field.size // len(levels))),
            infinities=int(sums.infinities[index]),
            plausible=plausible,
            outside=int(sums.outside[index]),
            values=int(sums.count[index]),
        )


def _plausible_range(field: xr.DataArray) -> tuple[float, float] | None:
    """Lowest and highest plausible value, in the file's units."""
    known = recognise(str(field.name), field.attrs)
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


class _Sums:
    """Running sums per level [K]."""

    def __init__(self, levels: int):
        self.count = np.zeros(levels, np.int64)
        self.infinities = np.zeros(levels, np.int64)
        self.outside = np.zeros(levels, np.int64)
        self.total = np.zeros(levels)
        self.minimum = np.full(levels, np.inf)
        self.maximum = np.full(levels, -np.inf)

    def add(self, values_NKP: np.ndarray, plausible: tuple[float, float] | None) -> None:
        """Take in a block of N times, K levels, P points."""
        valid = np.isfinite(values_NKP)
        axes = (0, 2)
        self.count += valid.sum(axis=axes)
        self.infinities += np.isinf(values_NKP).sum(axis=axes)
        self.total += np.where(valid, values_NKP, 0).sum(axis=axes, dtype=np.float64)
        self.minimum = np.minimum(self.minimum, np.where(valid, values_NKP, np.inf).min(axis=axes))
        self.maximum = np.maximum(self.maximum, np.where(valid, values_NKP, -np.inf).max(axis=axes))
        if plausible is not None:
            low, high = plausible
            self.outside += (valid & ((values_NKP < low) | (values_NKP > high))).sum(axis=axes)
