"""One region's data on the way from files to normalised arrays: in memory, or through the data cache.

Shapes: N times, C channels, M channels with masks or flags, H lat, W lon.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from tqdm import tqdm

from convlstm_wx.conventions import Channel
from convlstm_wx.data.account import Account
from convlstm_wx.data.cache import Cache, open_array, read_entries, write_entries
from convlstm_wx.data.channels import flagged_channels, static_fields, static_names
from convlstm_wx.data.coarsening import block_means, coarse_places
from convlstm_wx.data.flags import Mark
from convlstm_wx.data.forcings import Forcings
from convlstm_wx.data.normalise import Statistics, StatisticsFit
from convlstm_wx.data.pieces import positions, read_pieces
from convlstm_wx.data.quality import Survey
from convlstm_wx.data.reading import source_of, time_step
from convlstm_wx.data.regions import Grid, Region, row_weights
from convlstm_wx.data.spec import Attributes, RegionSpec
from convlstm_wx.data.store import SLICE_BYTES, Array, allocate_in_file, time_slices
from convlstm_wx.data.windows import Source
from convlstm_wx.errors import DataError

KEPT_ATTRIBUTES = ("units", "long_name", "standard_name", "cell_methods")
FILE_SLICE_BYTES = 64 * 2**20  # of a record that is not kept in memory
BUDGET_SHARE = 8  # a slice of it is at most this part of the budget
FEWEST_SLICE_BYTES = 16 * 2**20  # what is written in small pieces is slower to read, even from the system's own memory

# Filled values this far from what is observed are no stand-ins for weather but codes such as -9999: missing.
MOST_FILLED_DEVIATIONS = 10  # standard deviations from the climatology
MOST_FILLED_SPANS = 10  # ranges of what is observed beside them

TARGET = "target region"

Allocate = Callable[[str, Any, Sequence[int]], Array]
Look = Callable[[slice, np.ndarray, np.ndarray], None]


@dataclass(frozen=True)
class RegionInput:
    """One region's data on the way in.

    Attributes:
        role: "target", or "upstream region" or "upstream data" with which one.
        box, files: of :class:`~convlstm_wx.data.spec.RegionSpec`.
        paths: the files behind the data, for the key of a cache.
        data: canonical, cut to the box.
        channels: those to read.
        ignored: of :class:`~convlstm_wx.data.spec.RegionSpec`.
        coarsen: N for means over N x N points of the data.
    """

    role: str
    box: Region | None
    files: tuple[str, ...]
    paths: tuple[str, ...]
    data: xr.Dataset
    channels: tuple[Channel, ...]
    ignored: tuple[str, ...] = ()
    coarsen: int = 1

    @cached_property
    def places(self) -> xr.Dataset:
        """The grid and the static fields as the network gets them, coarsened if the values are."""
        return coarse_places(self.data, row_weights(self.data), self.coarsen)

    def shape(self, times: np.ndarray) -> tuple[int, int, int, int]:
        """N, C, H, W."""
        return len(times), len(self.channels), self.places.sizes["lat"], self.places.sizes["lon"]

    @property
    def kind(self) -> str:
        """For a progress bar."""
        return "target region" if self.role == TARGET else "upstream region"

    @property
    def points(self) -> tuple[int, int]:
        """Rows and columns of the data, before coarsening."""
        return self.data.sizes["lat"], self.data.sizes["lon"]

    def nbytes(self, times: np.ndarray) -> int:
        """Size of the array of its values."""
        return 4 * int(np.prod(self.shape(times)))

    @property
    def attributes(self) -> Attributes:
        """Units and names of each variable."""
        return {name: _kept_attributes(self.data[name]) for name in dict.fromkeys(c.variable for c in self.channels)}

    @property
    def masks(self) -> tuple[Mark, ...]:
        """How masks of its variables are read."""
        return tuple(mark for mark in self.data.attrs.get("masks", ()) if mark.variable in self.attributes)

    @contextmanager
    def named(self) -> Iterator[None]:
        """What is wrong with these data names them."""
        try:
            yield
        except DataError as error:
            role = "" if self.role == TARGET else f", {self.role}"
            text = str(error).replace("--variables", "--upstream-variables") if self.files else str(error)
            raise DataError(f"{source_of(self.data)}{role}: {text}") from error


def _kept_attributes(field: xr.DataArray) -> dict[str, str]:
    kept = {name: str(field.attrs[name]) for name in KEPT_ATTRIBUTES if name in field.attrs}
    return {"units": "1"} | kept


def prepare(
    each: RegionInput, times: np.ndarray, training_N: np.ndarray, folder: Path | None, budget: int, *, packed: bool
) -> tuple[RegionSpec, Source, np.ndarray, Account]:
    """One region read, checked and normalised; or taken from its cache, whose numbers have 16 bits if packed."""
    if folder is None:
        return _build(each, times, training_N, _in_memory, SLICE_BYTES)
    depends_on = {
        "channels": [channel.name for channel in each.channels],
        "attributes": each.attributes,
        "times": times,
        "training": training_N,
        "grid": [each.places["lat"].values.tolist(), each.places["lon"].values.tolist()],
        "static": static_fields(each.places),
        "masks": [mark.to_dict() for mark in each.masks],
        "texts": each.data.attrs.get("texts", {}),  # of a store on the net all that tells of new values
        "packed": packed,
    }
    cache = Cache(folder, each.paths, depends_on)
    if not cache.exists():
        with cache.building() as unfinished:
            made = _build(each, times, training_N, _in_folder(unfinished, packed=packed), _slice_bytes(budget))
            region, source, complete, account = made
            statistics = {f"statistics.{name}": value for name, value in region.statistics.to_dict().items()}
            entries = {"complete": complete, "account": account.to_dict(), "masks": source.observed_NMHW.shape[1]}
            write_entries(unfinished, statistics | entries)
    return _from_cache(cache.path, each, times, packed=packed)


def _from_cache(
    folder: Path, each: RegionInput, times: np.ndarray, *, packed: bool
) -> tuple[RegionSpec, Source, np.ndarray, Account]:
    entries = read_entries(folder)
    shape = each.shape(times)
    named = {name.removeprefix("statistics."): value for name, value in entries.items() if "." in name}
    statistics = Statistics.from_dict(named)
    source = Source(
        open_array(folder, "values", np.float32, shape, packed=packed),
        open_array(folder, "observed", bool, (shape[0], entries["masks"], *shape[2:])),
        _forcings(each.places),
    )
    return _region(each, statistics), source, entries["complete"], Account.from_dict(entries["account"])


def _slice_bytes(budget: int) -> int:
    return min(FILE_SLICE_BYTES, max(FEWEST_SLICE_BYTES, budget // BUDGET_SHARE))


def _in_memory(_name: str, dtype: Any, shape: Sequence[int]) -> Array:
    return np.empty(tuple(shape), dtype)


def _in_folder(folder: Path, *, packed: bool) -> Allocate:
    """Files of a cache; the flags of filled values go into the masks and are not kept themselves."""

    def allocate(name: str, dtype: Any, shape: Sequence[int]) -> Array:
        path = None if name == "filled" else folder / f"{name}.bin"
        return allocate_in_file(path, dtype, shape, folder, packed=packed and name == "values")

    return allocate


def _nameless(_name: str, dtype: Any, shape: Sequence[int]) -> Array:
    return allocate_in_file(None, dtype, shape)


def _build(
    each: RegionInput, times: np.ndarray, training_N: np.ndarray, allocate: Allocate, most_bytes: int
) -> tuple[RegionSpec, Source, np.ndarray, Account]:
    """One pass over the files for the check, the statistics and the array; a second over the array to normalise it."""
    data, channels = each.data, each.channels
    attributes = [each.attributes[channel.variable] for channel in channels]
    there_N = positions(data["time"].values, times) >= 0
    survey = Survey(data.isel(time=np.isin(data["time"].values, times)), channels)
    with each.named():
        trained_N = training_N & there_N
        fit = StatisticsFit(each.shape(times)[1:], times, trained_N, channels, attributes, time_step(times))
        flagged = flagged_channels(data, channels)
        filled_NM = np.zeros((len(times), len(flagged)), bool)

        def survey_file(piece: slice, block: np.ndarray, flags: np.ndarray) -> None:
            rows = there_N[piece]
            for index, channel in enumerate(channels):
                filled = flags[rows, flagged.index(channel)] if channel in flagged else None
                survey.add(index, block[rows, index], filled)

        def fit_statistics(piece: slice, block: np.ndarray, flags: np.ndarray) -> None:
            fit.add(piece, _observed_only(block, flags, channels, flagged))
            filled_NM[piece] = flags.any(axis=(2, 3))

        arrays = _read(each, times, allocate, most_bytes, survey_file, fit_statistics)
        account = survey.account()
        if account.problems():
            raise DataError("; ".join(account.problems()))
        statistics = fit.statistics()
        if each.role != TARGET and fit.constant_C.all():
            names = ", ".join(channel.name for channel in channels)
            raise DataError(f"all it holds ({names}) is constant in training, so it would be silently inactive")
    source, complete = _normalise(each, arrays, times, statistics, allocate, most_bytes)
    # Filled after training only: no mask says so, and what was filled is no truth to validate with.
    maskless_M = np.array([not statistics.gaps_C[channels.index(channel)] for channel in flagged], bool)
    complete &= ~filled_NM[:, maskless_M].any(axis=1)
    return _region(each, statistics), source, complete, account


def from_checkpoint(
    each: RegionInput, statistics: Statistics, times: np.ndarray, budget: int | None
) -> tuple[Source, np.ndarray]:
    """One region read and normalised with known statistics; with a budget, in a file that goes with the process."""
    allocate, most_bytes = (_in_memory, SLICE_BYTES) if budget is None else (_nameless, _slice_bytes(budget))
    with each.named():
        arrays = _read(each, times, allocate, most_bytes)
    return _normalise(each, arrays, times, statistics, allocate, most_bytes)


def _read(
    each: RegionInput,
    times: np.ndarray,
    allocate: Allocate,
    most_bytes: int,
    look_at_file: Look = lambda piece, block, flags: None,
    look: Look = lambda piece, block, flags: None,
) -> tuple[Array, Array]:
    """Values [N, C, H, W] with missing and infinite as NaN, and the bits of which are filled [N, M, H, W / 8].

    Each piece is shown to `look_at_file` as the file has it, and to `look` on the grid of the network.
    """
    shape = each.shape(times)
    flagged_M = [each.channels.index(channel) for channel in flagged_channels(each.data, each.channels)]
    values = allocate("values", np.float32, shape)
    filled = allocate("filled", np.uint8, (shape[0], len(flagged_M), shape[2], -(-shape[3] // 8)))
    pieces = read_pieces(each.data, each.channels, times, most_bytes=most_bytes, label=f"reading the {each.kind}")
    for piece, block, flags in pieces:
        look_at_file(piece, block, flags)
        _drop_codes(block, flags, flagged_M)
        if each.coarsen > 1:
            block, flags = _coarsened(each, block, flags, flagged_M)
        look(piece, block, flags)
        block[~np.isfinite(block)] = np.nan
        values[piece], filled[piece] = block, np.packbits(flags, axis=-1)
    return values, filled


def _drop_codes(block_NCHW: np.ndarray, flags_NMHW: np.ndarray, flagged_M: Sequence[int]) -> None:
    """Make filled values missing, in place, that no means or packed fields should have to hold beside observed ones."""
    for place, channel in enumerate(flagged_M):
        values_NHW, filled_NHW = block_NCHW[:, channel], flags_NMHW[:, place]
        observed = values_NHW[~filled_NHW & np.isfinite(values_NHW)]
        if filled_NHW.any() and observed.size:
            low, high = float(observed.min()), float(observed.max())
            reach = MOST_FILLED_SPANS * (high - low)
            values_NHW[filled_NHW & ((values_NHW < low - reach) | (values_NHW > high + reach))] = np.nan


def _coarsened(
    each: RegionInput, block_NCHW: np.ndarray, flags_NMHW: np.ndarray, flagged_M: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """A piece on the coarser grid: means of what was observed, else of what was filled, which stays flagged."""
    weights_H = row_weights(each.data)
    values = np.empty((*block_NCHW.shape[:2], each.places.sizes["lat"], each.places.sizes["lon"]), block_NCHW.dtype)
    filled = np.zeros((len(values), len(flagged_M), *values.shape[2:]), bool)
    block_NCHW[np.isinf(block_NCHW)] = np.nan
    for channel in range(values.shape[1]):
        fine_NHW = block_NCHW[:, channel]
        means_NHW = block_means(fine_NHW, weights_H, each.coarsen)
        if channel in flagged_M and flags_NMHW[:, (place := flagged_M.index(channel))].any():
            observed_NHW = block_means(np.where(flags_NMHW[:, place], np.nan, fine_NHW), weights_H, each.coarsen)
            filled[:, place] = np.isnan(observed_NHW) & ~np.isnan(means_NHW)
            means_NHW = np.where(filled[:, place], means_NHW, observed_NHW)
        values[:, channel] = means_NHW
    return values, filled


def _observed_only(
    values_NCHW: np.ndarray, filled_NMHW: np.ndarray, channels: Sequence[Channel], flagged: Sequence[Channel]
) -> np.ndarray:
    """Without what was filled and what is infinite: the array itself, or a copy."""
    infinite = np.isinf(values_NCHW)
    if not (filled_NMHW.any() or infinite.any()):
        return values_NCHW
    values = np.where(infinite, np.nan, values_NCHW)
    for place, channel in enumerate(flagged):
        values[:, channels.index(channel)][filled_NMHW[:, place]] = np.nan
    return values


def _region(each: RegionInput, statistics: Statistics) -> RegionSpec:
    grid, names = Grid.from_dataset(each.places), static_names(each.places)
    return RegionSpec(
        each.box, each.files, grid, statistics, names, each.attributes, each.masks, each.ignored, each.coarsen
    )


def _forcings(data: xr.Dataset) -> Forcings:
    return Forcings(Grid.from_dataset(data), static_fields(data))


def _normalise(
    each: RegionInput,
    arrays: tuple[Array, Array],
    times: np.ndarray,
    statistics: Statistics,
    allocate: Allocate,
    most_bytes: int,
) -> tuple[Source, np.ndarray]:
    """In place; missing becomes 0, beside a mask where training had gaps, else an incomplete time."""
    values_NCHW, filled_bits = arrays
    gaps = statistics.gaps_C
    observed_NMHW = allocate("observed", bool, (len(times), int(gaps.sum()), *values_NCHW.shape[2:]))
    complete = np.empty(len(times), bool)
    flagged = flagged_channels(each.data, each.channels)
    slices = list(time_slices(values_NCHW.shape, most_bytes))
    hidden = True if len(slices) == 1 else None
    for piece in tqdm(slices, desc=f"normalising the {each.kind}", unit="piece", leave=False, disable=hidden):
        values = values_NCHW[piece]
        statistics.normalise(values, times[piece])
        flags = np.unpackbits(filled_bits[piece], axis=-1, count=values.shape[-1]).astype(bool)
        for place, channel in enumerate(flagged):
            fields_NHW = values[:, each.channels.index(channel)]
            fields_NHW[flags[:, place] & (np.abs(fields_NHW) > MOST_FILLED_DEVIATIONS)] = np.nan
        known = np.isfinite(values)
        # A time without any value says nothing, masked channel or not; one that was filled has values.
        complete[piece] = known[:, ~gaps].all(axis=(1, 2, 3)) & np.all(known.any(axis=(2, 3)), axis=1)
        values[~known] = 0
        values_NCHW[piece] = values
        for place, channel in enumerate(flagged):
            known[:, each.channels.index(channel)] &= ~flags[:, place]
        observed_NMHW[piece] = known[:, gaps]
    return Source(values_NCHW, observed_NMHW, _forcings(each.places)), complete
