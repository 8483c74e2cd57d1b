"""Flags of values that were not observed: a coordinate X_filled on the dimensions of X, 0 observed, 1 filled.

Files write such flags in many ways (see :mod:`~convlstm_wx.data.masks`); the coordinate is made of them as it is read.
"""

from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import xarray as xr
from xarray.backends import BackendArray
from xarray.core import indexing

from convlstm_wx.errors import DataError

SUFFIX = "_filled"
_CHUNK_BYTES = 32e6
_ATTRIBUTES = {"units": "1"}


@dataclass(frozen=True)
class Mark:
    """How a mask of a file marks the values of a variable.

    Attributes:
        mask: name of the mask in the file.
        variable: name of the variable whose values it marks.
        observed: the values of the mask that mean observed.
        bits: of the mask's values, those that count; None: all.
    """

    mask: str
    variable: str
    observed: tuple[float, ...]
    bits: int | None = None

    def filled(self, values: np.ndarray) -> np.ndarray:
        """Flags of these values of the mask, int8: 1 for a value that does not mean observed, as NaN never does."""
        if self.bits is None:
            return (~np.isin(values, self.observed)).astype(np.int8)
        known = np.isfinite(values)
        bits = np.where(known, values, 0).astype(np.int64) & self.bits
        return (~(known & np.isin(bits, self.observed))).astype(np.int8)

    def to_dict(self) -> dict[str, Any]:
        """Plain types, for a checkpoint."""
        return asdict(self) | {"observed": list(self.observed)}

    @classmethod
    def from_dict(cls, entries: dict[str, Any]) -> "Mark":
        """Back from :meth:`to_dict`."""
        return cls(**entries | {"observed": tuple(entries["observed"])})

    def __str__(self) -> str:
        return f"{self.mask}={','.join(f'{value:g}' for value in self.observed)}"


def flag_name(name: Hashable) -> str:
    """What the flag of a variable is called."""
    return f"{name}{SUFFIX}"


def with_flags(part: xr.Dataset, marks: Sequence[Mark]) -> xr.Dataset:
    """A file with flags as variables X_filled in the place of its masks, lazily.

    A flag has the dimensions of its variable, or those of the mask in a file that has the mask alone. A value counts as
    observed where all masks of its variable say so.

    Raises:
        DataError: for a mask whose dimensions its variable lacks, or another variable of a flag's name.
    """
    here = [mark for mark in marks if mark.mask in part.variables]
    bare = part.drop_vars({mark.mask for mark in here})
    flags = {}
    for name in dict.fromkeys(mark.variable for mark in here):
        mine = [mark for mark in here if mark.variable == name]
        if flag_name(name) in bare.variables:
            raise DataError(
                f"'{flag_name(name)}' is a variable, but the flags made of '{mine[0].mask}' need this name; leave one "
                f"out with --ignore-variables {flag_name(name)} or --ignore-variables {mine[0].mask}"
            )
        masks = [part[mark.mask].variable for mark in mine]
        like = bare[name].variable if name in bare else max(masks, key=lambda mask: mask.ndim)
        for mark, mask in zip(mine, masks):
            extra = [str(dim) for dim in mask.dims if dim not in like.dims]
            if extra:
                raise DataError(
                    f"'{mark.mask}' marks values of '{name}', but has the dimension {', '.join(extra)}, which '{name}' "
                    f"lacks; leave the mask out with --ignore-variables {mark.mask}"
                )
        flags[flag_name(name)] = _flags(masks, mine, like)
    return bare.assign(flags)


def as_coordinates(dataset: xr.Dataset, marks: Sequence[Mark]) -> xr.Dataset:
    """The flags of all variables as coordinates on the dimensions of their variables."""
    coords = {}
    for name in dict.fromkeys(mark.variable for mark in marks if flag_name(mark.variable) in dataset):
        flag, field = dataset[flag_name(name)].variable, dataset[name].variable
        coords[flag_name(name)] = flag if flag.dims == field.dims else flag.set_dims(dict(field.sizes))
    return dataset.drop_vars(coords).assign_coords(coords)


def _flags(masks: Sequence[xr.Variable], marks: Sequence[Mark], like: xr.Variable) -> xr.Variable:
    """One flag out of all masks of a variable, in the dimensions of that variable."""
    if all(mask.chunks is None for mask in masks):
        lazy = indexing.LazilyIndexedArray(_FlagArray(masks, marks, like.dims, like.shape))
        return xr.Variable(like.dims, lazy, _ATTRIBUTES)
    flags = [
        xr.apply_ufunc(mark.filled, mask, dask="parallelized", output_dtypes=[np.int8])
        for mark, mask in zip(marks, masks)
    ]
    merged = flags[0]
    for flag in flags[1:]:
        merged = merged | flag
    return xr.Variable(like.dims, merged.set_dims(dict(like.sizes)).data, _ATTRIBUTES)


class _FlagArray(BackendArray):
    """Flags of a variable made of its masks where they are read; a dimension that a mask lacks repeats it."""

    def __init__(
        self, masks: Sequence[xr.Variable], marks: Sequence[Mark], dims: Sequence[Hashable], shape: tuple[int, ...]
    ):
        self.masks = [mask.transpose(*(dim for dim in dims if dim in mask.dims)) for mask in masks]
        self.marks, self.dims, self.shape, self.dtype = tuple(marks), tuple(dims), shape, np.dtype(np.int8)

    def __getitem__(self, key: Any) -> Any:
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.OUTER, self._read)

    def _read(self, key: tuple[Any, ...]) -> np.ndarray:
        kept = {dim: np.arange(size)[part] for dim, size, part in zip(self.dims, self.shape, key)}
        sizes = {dim: at.size for dim, at in kept.items() if at.ndim}
        flags = np.zeros(tuple(sizes.values()), np.int8)
        for mask, mark in zip(self.masks, self.marks):
            own = mask[tuple(part for dim, part in zip(self.dims, key) if dim in mask.dims)]
            values = mark.filled(own.values)
            flags |= values.reshape([size if dim in own.dims else 1 for dim, size in sizes.items()])
        return flags


def observed_only(field: xr.DataArray) -> xr.DataArray:
    """The field with what was filled in as missing again, lazily, and without flags; as it is where there are none."""
    name = flag_name(field.name)
    flags = [coord for coord in field.coords if str(coord).endswith(SUFFIX) and coord not in field.dims]
    if name not in field.coords:
        return field.drop_vars(flags)
    if field.chunks is None:  # else the whole field would be read at once
        step = max(int(_CHUNK_BYTES * field.shape[0] / max(field.nbytes, 1)), 1)
        field = field.chunk({field.dims[0]: step})
    return field.where(field[name] == 0).drop_vars(flags)
