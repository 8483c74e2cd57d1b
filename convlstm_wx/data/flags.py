"""Flags of values that were filled in: beside a variable X an X_filled on the same dimensions, 0 observed, 1 filled."""

from collections.abc import Hashable, Iterable

import xarray as xr

_SUFFIX = "_filled"
_CHUNK_BYTES = 32e6


def flag_name(name: Hashable) -> str:
    """What the flag of a variable is called."""
    return f"{name}{_SUFFIX}"


def is_flag(dataset: xr.Dataset, name: Hashable) -> bool:
    """Whether a variable of a file only tells which values of another one were filled in."""
    stem, field = str(name).removesuffix(_SUFFIX), dataset.variables[name]
    if stem == name or stem not in dataset.variables or field.dtype.kind not in "fiub":
        return False
    named = str(dataset.variables[stem].attrs.get("ancillary_variables", "")).split()
    return field.attrs.get("standard_name") == "status_flag" or name in named


def flags_of(dataset: xr.Dataset, names: Iterable[Hashable]) -> dict[Hashable, xr.DataArray]:
    """The flags of those of these variables that have one."""
    return {
        name: dataset[flag_name(name)]
        for name in names
        if flag_name(name) in dataset.variables and is_flag(dataset, flag_name(name))
    }


def observed_only(field: xr.DataArray) -> xr.DataArray:
    """The field with what was filled in as missing again, lazily, and without flags; as it is where there are none."""
    name = flag_name(field.name)
    flags = [coord for coord in field.coords if str(coord).endswith(_SUFFIX) and coord not in field.dims]
    if name not in field.coords:
        return field.drop_vars(flags)
    if field.chunks is None:  # else the whole field would be read at once
        step = max(int(_CHUNK_BYTES * field.shape[0] / max(field.nbytes, 1)), 1)
        field = field.chunk({field.dims[0]: step})
    return field.where(field[name] == 0).drop_vars(flags)
