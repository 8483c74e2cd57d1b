"""What the field agrees on: names of axes, what a variable is by its attributes, limits, and channels.

Knowledge only: nothing here opens a file. A variable that is not known works as well; it is then treated as a plain
number without a plausible range.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from convlstm_wx.errors import ConfigError, DataError
from convlstm_wx.known_variables import KNOWN_VARIABLES, KnownVariable
from convlstm_wx.long_names import at_height, variables_meant
from convlstm_wx.service_names import SERVICE_NAMES
from convlstm_wx.units import normalise_units, unit_conversion

# Lower case; the first that a file has is taken, after the CF attributes have been asked.
AXIS_ALIASES: dict[str, tuple[str, ...]] = {
    "time": ("time", "valid_time", "forecast_time", "forecast time", "t", "date", "datetime", "xtime", "day"),
    "level": (
        "level",
        "pressure_level",
        "plev",
        "lev",
        "isobaricinhpa",
        "isobaric",
        "pressure",
        "pres",
        "isobaricinpa",
        "lv_isbl0",
        "air_pressure",
    ),
    "lat": ("lat", "latitude", "nav_lat", "xlat", "lats", "latitudes", "g0_lat_1", "y"),
    "lon": ("lon", "longitude", "nav_lon", "xlong", "long", "lons", "longitudes", "g0_lon_2", "x"),
    "init_time": ("init_time", "forecast_reference_time", "reference_time", "time"),
    "lead_time": ("lead_time", "prediction_timedelta", "forecast_period", "step", "lead"),
    "realization": ("realization", "member", "number", "ensemble_member"),
}


_BY_ALIAS: dict[str, list[str]] = {}
_BY_SHORT_NAME: dict[str, list[str]] = {}
for _known in KNOWN_VARIABLES:
    for _name in (_known.name, *_known.aliases):
        _BY_ALIAS.setdefault(_name, []).append(_known.name)
for _names in SERVICE_NAMES.values():
    for _meant, _listed in _names.items():
        for _name in _listed.split():
            _BY_SHORT_NAME.setdefault(_name, []).extend(_meant.split())
_DIRECTIONS = {known.name: known for known in KNOWN_VARIABLES if known.circular}

# What follows a name: a level ("z500", "T_850hPa"), a place as wgrib2 and GrADS write it ("TMP_2maboveground",
# "apcpsfc"), or the hours of an accumulation ("PRE_6h").
_LEVEL_IN_NAME = re.compile(r"^(?P<stem>[a-z][a-z_]*?)_?(?P<level>\d{2,4})(hpa|mb)?$")
_PLACE_IN_NAME = re.compile(
    r"^(?P<stem>.+?)_?((?P<meters>\d+)_?m(_?above_?ground|agl)?|(?P<ground>surface|sfc)|(?P<sea>mean_?sea_?level|msl)"
    r"|prs|clm|entire_?atmosphere\w*|(low|middle|high)cloudlayer)$"
)
_HOURS_IN_NAME = re.compile(r"^(?P<stem>.+?)_?\d{1,2}_?(h|hr|hrs|hour|hours)$")

# What is made of a variable, but is none: its error has the same name and units at times.
_DERIVED = re.compile(
    r"anomal(y|ies)|\b(errors?|uncertainty|uncertainties|deviation|spread|variance|probability|mask|flags?)\b"
    r"|\bquality\b(?!.(control|check|assur))"
)
_DIRECTION = re.compile(r"direction(?!al)|azimuth|(?<![a-z])(w|wi?nd|wave|wv|sw)?_?dirn?(?![a-z])")
_NO_DIRECTION = re.compile(r"change|difference|width|variab")
_OF_WIND = re.compile(r"wi?nd|(?<![a-z])w_?dir|gust")
_NOT_OF_WIND = re.compile(r"wave|swell|current|stress")


def recognise(name: str, attrs: Mapping[Any, Any]) -> KnownVariable | None:
    """The known variable that a file's variable is, or None.

    The CF standard name is asked first, then the name, its aliases and the short names of weather services ("z500" and
    "T_850hPa" too), then the words of the long name, and of the name. Units tell apart what shares a name (z in m2 s-2
    is geopotential, in m its height); a name or words alone, with units that cannot be its, are not believed.
    """
    told = (str(attrs.get(key, "")).lower() for key in ("standard_name", "long_name"))
    return _recognise(name.lower(), normalise_units(str(attrs.get("units", ""))), *told)


@lru_cache(maxsize=4096)
def _recognise(name: str, units: str, standard_name: str, long_name: str) -> KnownVariable | None:
    derived = _DERIVED.search(long_name)
    if unit_conversion(units, "degrees") is not None:
        return None if derived else _direction(name, standard_name, long_name)
    possible = {known.name: known for known in KNOWN_VARIABLES if derived is None or derived[0] in known.long_name}

    def fitting(names: Iterable[str]) -> list[str]:
        return [each for each in names if each in possible and unit_conversion(units, possible[each].units) is not None]

    aliases, short_names = _names_of(name)
    by_name, by_words = {*aliases, *short_names}, variables_meant(long_name)
    by_standard = [known.name for known in possible.values() if standard_name in known.standard_names]
    if by_standard:
        found = fitting(by_standard) or by_standard
    elif units == "1":  # or none at all: percent may be meant, so only aliases are believed, and fractions that say so
        found = fitting(aliases) or [each for each in aliases if each in possible]
        found = found or [each for each in fitting(short_names) if possible[each].static]
        found = found or (fitting(by_words) if "fraction" in long_name else [])
    else:
        found = fitting([*aliases, *short_names]) or fitting(by_words) or fitting(variables_meant(name))
    # "air_temperature" is t, t2m, tmax or tmin: the name decides where it is one of them, else the words.
    for narrower in (by_name if by_standard else found, by_words):
        found = [each for each in found if each in narrower] or found
    return possible[found[0]] if found else None


def _names_of(name: str) -> tuple[list[str], list[str]]:
    """The known variables whose alias a name is, and those whose short name it is at some weather service."""
    meters, is_at_sea = None, False
    for pattern in (_LEVEL_IN_NAME, _PLACE_IN_NAME, _HOURS_IN_NAME):
        found = pattern.match(name)
        if found and name not in _BY_ALIAS and name not in _BY_SHORT_NAME:
            name, parts = found["stem"], found.groupdict()
            meters = 0.0 if parts.get("ground") else float(parts["meters"]) if parts.get("meters") else meters
            is_at_sea = is_at_sea or bool(parts.get("sea"))
    aliases, short_names = (
        ["msl" if is_at_sea and each == "sp" else at_height(each, meters) for each in table.get(name, ())]
        for table in (_BY_ALIAS, _BY_SHORT_NAME)
    )
    return aliases, short_names


def _direction(name: str, standard_name: str, long_name: str) -> KnownVariable | None:
    """The direction that an angle is, if its name or one of its attributes says so."""
    told = f"{name} {standard_name} {long_name}"
    meant = next((each for names in _names_of(name) for each in names if each in _DIRECTIONS), None)
    if (meant is None and not _DIRECTION.search(told)) or _NO_DIRECTION.search(told):
        return None
    is_wind = _OF_WIND.search(told) and not _NOT_OF_WIND.search(told)
    return _DIRECTIONS[meant or ("wdir" if is_wind else "direction")]


def physical_limits(name: str, attrs: Mapping[Any, Any]) -> tuple[float, float] | None:
    """What a quantity that cannot be negative (rain, humidity, cloud cover ...) may be, in the file's own units.

    None for any other variable, and where the units are not understood.
    """
    known = recognise(name, attrs)
    conversion = unit_conversion(str(attrs.get("units", "")), known.units) if known is not None else None
    if known is None or not known.non_negative or conversion is None:
        return None
    scale, offset = conversion
    highest = known.valid_max if known.valid_max <= 1 or known.units == "%" else float("inf")  # shares have an end
    return (known.valid_min - offset) / scale, (highest - offset) / scale


_WB2_ON_LEVELS = {
    "t": "temperature",
    "z": "geopotential",
    "u": "u_component_of_wind",
    "v": "v_component_of_wind",
    "w": "vertical_velocity",
    "q": "specific_humidity",
}
_WB2_AT_THE_SURFACE = {
    "t2m": "2m_temperature",
    "u10": "10m_u_component_of_wind",
    "v10": "10m_v_component_of_wind",
    "msl": "mean_sea_level_pressure",
    "sp": "surface_pressure",
    "sst": "sea_surface_temperature",
    "tcwv": "total_column_water_vapour",
    "tcc": "total_cloud_cover",
}


def weatherbench_name(name: str, attrs: Mapping[Any, Any], *, on_levels: bool) -> str:
    """What WeatherBench 2 calls a variable; its own name where that is not known, or where the units are others.

    Precipitation keeps its name: WeatherBench 2's tell the hours that are summed, which a file does not.
    """
    known = recognise(name, attrs)
    if known is None or normalise_units(str(attrs.get("units", ""))) != known.units:
        return name
    return (_WB2_ON_LEVELS if on_levels else _WB2_AT_THE_SURFACE).get(known.name, name)


def is_precipitation(name: str, attrs: Mapping[Any, Any]) -> bool:
    """Whether the variable is rain, snow or both: never negative, and learnt as log1p of millimetres."""
    known = recognise(name, attrs)
    return known is not None and known.transform == "log1p_mm"


def millimetres_factor(units: str) -> float:
    """What precipitation is multiplied with to be in mm (amounts), or in mm per day (rates).

    One kg m-2 of water is one mm.

    Raises:
        DataError: for units that are neither an amount nor a rate of water.
    """
    for canonical in ("mm", "mm d-1"):
        conversion = unit_conversion(units, canonical)
        if conversion is not None:
            return conversion[0]
    raise DataError(
        f"precipitation in units of '{units}' is not understood; known are m, mm, kg m-2, mm d-1, mm h-1, m s-1 and "
        "kg m-2 s-1. Correct the variable's units attribute."
    )


def millimetres_units(units: str) -> str:
    """What precipitation is in after :func:`millimetres_factor`: "mm" (amounts) or "mm d-1" (rates)."""
    return "mm" if unit_conversion(units, "mm") is not None else "mm d-1"


@dataclass(frozen=True, order=True)
class Channel:
    """One field that a network sees: a variable, on a level (hPa) where the variable has levels."""

    variable: str
    level: float | None = None

    @property
    def name(self) -> str:
        """For people and files: "t2m" or "z@500hPa"."""
        return self.variable if self.level is None else f"{self.variable}@{self.level:g}hPa"

    @classmethod
    def parse(cls, name: str) -> "Channel":
        """Back from :attr:`name`.

        Raises:
            ConfigError: if what follows the @ is not a level in hPa.
        """
        variable, at, level = name.rpartition("@")
        if not at:
            return cls(name)
        try:
            return cls(variable, float(level.removesuffix("hPa")))
        except ValueError:
            raise ConfigError(f"'{name}' is not a channel; write t2m, or z@500hPa for a level") from None


def event_label(name: str, threshold: str) -> str:
    """What happens where a channel reaches a threshold: "tp >= 1 mm", "t2m anomaly >= p90"."""
    return f"{name}{' anomaly' if threshold.startswith('p') else ''} >= {threshold}"
