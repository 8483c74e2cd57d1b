"""Levels that a file writes as text: "850hPa", "P_850", "85000 Pa". Pressures become numbers; the rest is refused."""

import re
from collections.abc import Sequence

import numpy as np
import xarray as xr

from convlstm_wx.conventions import unit_conversion
from convlstm_wx.errors import DataError

_HIGHEST_HPA = 2_000  # a larger number without units is a pressure in Pa
# Words that add nothing to "pressure level".
_FILLERS = frozenset(
    (
        *("p", "l", "lv", "lev", "lvl", "level", "levels", "pl", "plev", "plevel", "pres", "press", "pressure"),
        *("isobaric", "isobar", "at", "in", "on"),
    )
)
_PARTS = re.compile(r"[^\W\d_]+|\d+(?:[.,]\d+)*\.?(?:e[+-]?\d+)?")  # words and numbers, lower case
_BETWEEN = re.compile(r"[\s_:=@()\[\]/.-]*")
_THOUSANDS = re.compile(r"[1-9]\d{0,2}(,\d{3})+(\.\d*)?")  # 1,000; any other comma is a decimal one
_MOST_NAMED = 6


def is_text(values: xr.DataArray | xr.Variable) -> bool:
    """Whether a coordinate holds text or objects rather than numbers or times."""
    return values.dtype.kind in "SUOT"


def scale_to_hpa(units: str, values: np.ndarray) -> float:
    """Factor from the units of levels to hPa; without units, large numbers are in Pa."""
    conversion = unit_conversion(units, "hPa")
    return conversion[0] if conversion is not None else 0.01 if values.max() > _HIGHEST_HPA else 1.0


def says_pressure(values: xr.Variable) -> bool:
    """Whether a coordinate is of texts, at least one of them with a number and a unit of pressure."""
    if values.ndim != 1 or values.size == 0 or not is_text(values):
        return False
    found = [_pressure_in(text) for text in _texts(values)]
    return any(pressure is not None and pressure[1] for pressure in found)


def levels_as_numbers(values: xr.DataArray) -> xr.DataArray:
    """Texts that are pressures as numbers, in hPa where one of them has a unit; any other coordinate as it is.

    A unit in the text wins over the units attribute; a number without one is read as where all levels are numbers.
    """
    if values.ndim != 1 or values.size == 0 or not is_text(values):
        return values
    found = [pressure for pressure in map(_pressure_in, _texts(values)) if pressure is not None]
    if len(found) < values.size:
        return values
    levels, attrs = np.array([number for number, _ in found]), values.attrs
    if any(unit for _, unit in found):
        bare = [number for number, unit in found if not unit]
        scale = scale_to_hpa(attrs.get("units", ""), np.array(bare)) if bare else 1.0
        levels = levels * [(unit_conversion(unit, "hPa") or (scale, 0))[0] if unit else scale for _, unit in found]
        attrs = attrs | {"units": "hPa"}
    return xr.DataArray(levels, dims=values.dims, name=values.name, attrs=attrs)


def refuse_texts(dataset: xr.Dataset, coordinates: Sequence[xr.DataArray]) -> None:
    """Refuse a level coordinate of texts that are no pressures, if a variable lies on it.

    Raises:
        DataError: naming the texts, and how to write a file without them.
    """
    for values in coordinates:
        dim = values.dims[0]
        if not is_text(values) or not any(
            dim in field.dims for name, field in dataset.data_vars.items() if name != values.name
        ):
            continue
        texts = _texts(values)
        unfit = [index for index, text in enumerate(texts) if _pressure_in(text) is None]
        named = ", ".join(repr(texts[index]) for index in unfit[:_MOST_NAMED])
        named += f" and {len(unfit) - _MOST_NAMED} more" if len(unfit) > _MOST_NAMED else ""
        purpose, change = f"choose {texts[0]!r}", f"isel({{{dim!r}: 0}}, drop=True)"
        if len(unfit) < len(texts):
            purpose, change = "leave these out", f"drop_isel({{{dim!r}: {unfit}}})"
        path = dataset.encoding.get("source")
        opened, saved = "dataset", ""
        if path is not None:
            opened, saved = f"import xarray; xarray.open_dataset({path!r}, chunks='auto')", ".to_netcdf('changed.nc')"
        raise DataError(
            f"'{values.name}' holds {named}; needed are pressure levels such as 850 or 850hPa. To {purpose}, "
            f"in Python: {opened}.{change}{saved}"
        )


def _texts(values: xr.DataArray | xr.Variable) -> list[str]:
    decoded = (value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value) for value in values.values)
    return [text.strip(" \t\r\n\0") for text in decoded]


def _pressure_in(text: str) -> tuple[float, str] | None:
    """The number and the unit ("" for none) of a pressure level; None for what is no pressure."""
    lower = text.lower()
    parts = _PARTS.findall(lower)
    numbers = [part for part in parts if part[0].isdigit()]
    words = {part.removeprefix("isobaricin") for part in parts if not part[0].isdigit()}
    units = {word for word in words if unit_conversion(word, "hPa") is not None}
    if units:  # "850 hPa isobaric surface", but not "surface 1"
        words.discard("surface")
    is_level = len(numbers) == 1 and len(units) <= 1 and words - units <= _FILLERS
    if not is_level or lower.startswith("-") or not _BETWEEN.fullmatch(_PARTS.sub("", lower)):
        return None
    number = numbers[0].replace(",", "" if _THOUSANDS.fullmatch(numbers[0]) else ".")
    return (float(number), *(units or [""])) if number.count(".") < 2 else None
