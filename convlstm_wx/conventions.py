"""What the field agrees on: names, standard names, units, plausible ranges and colours of known variables.

Knowledge only: nothing here opens a file. A variable that is not known works as well; it is then treated as a plain
number without a plausible range.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from convlstm_wx.errors import ConfigError, DataError

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


@dataclass(frozen=True)
class KnownVariable:
    """A meteorological variable that we recognise.

    Attributes:
        name: short name (ECMWF's where there is one).
        long_name: for titles.
        units: the units of valid_min and valid_max; files may use others.
        valid_min, valid_max: values outside are not plausible anywhere on earth, from the surface to 1 hPa.
        aliases: other names in files, lower case.
        standard_names: CF standard names.
        transform: "log1p_mm" for precipitation, else "none".
        colormap, error_colormap: matplotlib's, for the field and for differences.
        non_negative: values below zero cannot be.
        static: never changes; a file that repeats it at every time holds one field.
    """

    name: str
    long_name: str
    units: str
    valid_min: float
    valid_max: float
    aliases: tuple[str, ...] = ()
    standard_names: tuple[str, ...] = ()
    transform: str = "none"
    colormap: str = "viridis"
    error_colormap: str = "RdBu_r"
    non_negative: bool = False
    static: bool = False


_WARM_COLD = "RdYlBu_r"
_TWO_SIDED = "PuOr_r"

# Order matters where two share a name: the first whose units fit the file's is taken.
KNOWN_VARIABLES: tuple[KnownVariable, ...] = (
    KnownVariable(
        "t", "temperature", "K", 150, 350,
        ("ta", "temp", "temperature", "air", "tmp", "air_temperature"), ("air_temperature",), colormap=_WARM_COLD,
    ),
    KnownVariable(
        "t2m", "2 m temperature", "K", 170, 340,
        ("2t", "2m_temperature", "t2", "tas", "t_2m", "temp2", "tmp2m", "tg", "tmean", "tavg"),
        ("air_temperature",), colormap=_WARM_COLD,
    ),
    KnownVariable(
        "tmax", "daily maximum temperature", "K", 170, 340,
        ("tasmax", "mx2t", "tx", "t2mmax", "tmp_max", "maximum_2m_temperature"), ("air_temperature",),
        colormap=_WARM_COLD,
    ),
    KnownVariable(
        "tmin", "daily minimum temperature", "K", 170, 340,
        ("tasmin", "mn2t", "tn", "t2mmin", "tmp_min", "minimum_2m_temperature"), ("air_temperature",),
        colormap=_WARM_COLD,
    ),
    KnownVariable(
        "d2m", "2 m dewpoint temperature", "K", 150, 320,
        ("2d", "2m_dewpoint_temperature", "td2m", "tdps", "dew2m", "t2mdew"), ("dew_point_temperature",),
        colormap=_WARM_COLD,
    ),
    KnownVariable(
        "sst", "sea surface temperature", "K", 265, 315,
        ("sea_surface_temperature", "tos"), ("sea_surface_temperature",), colormap=_WARM_COLD,
    ),
    KnownVariable(
        "skt", "skin temperature", "K", 150, 370,
        ("skin_temperature", "ts", "tskin"), ("surface_temperature",), colormap=_WARM_COLD,
    ),
    KnownVariable(
        "msl", "mean sea level pressure", "Pa", 85_000, 110_000,
        ("slp", "psl", "mslp", "mean_sea_level_pressure", "prmsl", "pmsl", "mslet"),
        ("air_pressure_at_mean_sea_level", "air_pressure_at_sea_level"),
    ),
    KnownVariable(
        "sp", "surface pressure", "Pa", 40_000, 110_000,
        ("surface_pressure", "ps", "psfc", "pres", "pressfc"), ("surface_air_pressure",),
    ),
    KnownVariable(
        "z", "geopotential", "m2 s-2", -10_000, 500_000, ("geopotential", "phi"), ("geopotential",)
    ),
    KnownVariable(
        "gh", "geopotential height", "m", -1_000, 51_000,
        ("geopotential_height", "hgt", "zg", "z", "h", "height"), ("geopotential_height", "geopotential"),
    ),
    KnownVariable(
        "u", "eastward wind", "m s-1", -200, 200,
        ("ua", "uwnd", "u_component_of_wind", "ugrd", "eastward_wind"), ("eastward_wind",), colormap=_TWO_SIDED,
    ),
    KnownVariable(
        "v", "northward wind", "m s-1", -200, 200,
        ("va", "vwnd", "v_component_of_wind", "vgrd", "northward_wind"), ("northward_wind",), colormap=_TWO_SIDED,
    ),
    KnownVariable(
        "u10", "10 m eastward wind", "m s-1", -100, 100,
        ("10u", "10m_u_component_of_wind", "u10m", "uas", "u_10m"), ("eastward_wind",), colormap=_TWO_SIDED,
    ),
    KnownVariable(
        "v10", "10 m northward wind", "m s-1", -100, 100,
        ("10v", "10m_v_component_of_wind", "v10m", "vas", "v_10m"), ("northward_wind",), colormap=_TWO_SIDED,
    ),
    KnownVariable(
        "ws", "wind speed", "m s-1", 0, 200,
        ("wspd", "si10", "sfcwind", "wind_speed", "10m_wind_speed"), ("wind_speed",), non_negative=True,
    ),
    KnownVariable(
        "w", "vertical velocity", "Pa s-1", -100, 100,
        ("omega", "wap", "vertical_velocity"), ("lagrangian_tendency_of_air_pressure",), colormap=_TWO_SIDED,
    ),
    KnownVariable(
        "vo", "relative vorticity", "s-1", -0.05, 0.05,
        ("vorticity", "relative_vorticity"), ("atmosphere_relative_vorticity",), colormap=_TWO_SIDED,
    ),
    KnownVariable(
        "q", "specific humidity", "kg kg-1", 0, 0.1,
        ("shum", "hus", "qv", "specific_humidity", "q2m", "qv2m", "huss"), ("specific_humidity",),
        colormap="YlGnBu", non_negative=True,
    ),
    KnownVariable(
        "r", "relative humidity", "%", 0, 180,
        ("rh", "rhum", "hur", "relative_humidity", "hurs", "rh2m"), ("relative_humidity",),
        colormap="YlGnBu", non_negative=True,
    ),
    KnownVariable(
        "tcwv", "total column water vapour", "kg m-2", 0, 150,
        ("tcw", "pwat", "prw", "total_column_water_vapour", "pr_wtr", "tqv"),
        ("atmosphere_mass_content_of_water_vapor", "lwe_thickness_of_atmosphere_mass_content_of_water_vapor"),
        colormap="YlGnBu", non_negative=True,
    ),
    KnownVariable(
        "tcc", "total cloud cover", "1", 0, 1,
        ("clt", "total_cloud_cover", "tcdc", "cloud"), ("cloud_area_fraction",), colormap="Greys_r", non_negative=True,
    ),
    KnownVariable(
        "tp", "total precipitation", "mm", 0, 2_000,
        (
            "total_precipitation", "precip", "precipitation", "rain", "rainfall", "rf", "rr", "pr", "pre", "prcp",
            "apcp", "total_precipitation_6hr", "total_precipitation_24hr", "rainnc", "prectot", "ppt", "pcp",
        ),
        ("precipitation_amount", "lwe_thickness_of_precipitation_amount", "rainfall_amount",
         "thickness_of_rainfall_amount"),
        transform="log1p_mm", colormap="YlGnBu", error_colormap="BrBG", non_negative=True,
    ),
    KnownVariable(
        "prate", "precipitation rate", "mm d-1", 0, 10_000,
        (
            "pr", "precip", "precipitation", "mtpr", "avg_tprate", "tprate", "prectot", "prectotcorr", "rain",
            "rainfall", "mean_total_precipitation_rate", "tp",
        ),
        ("precipitation_flux", "lwe_precipitation_rate", "rainfall_flux", "rainfall_rate"),
        transform="log1p_mm", colormap="YlGnBu", error_colormap="BrBG", non_negative=True,
    ),
    KnownVariable(
        "sf", "snowfall", "mm", 0, 1_000,
        ("snowfall",), ("snowfall_amount", "lwe_thickness_of_snowfall_amount"),
        transform="log1p_mm", colormap="YlGnBu", error_colormap="BrBG", non_negative=True,
    ),
    KnownVariable(
        "sd", "snow depth", "m", 0, 50,
        ("snow_depth", "snod", "snd"), ("surface_snow_thickness", "lwe_thickness_of_surface_snow_amount"),
        colormap="Blues", non_negative=True,
    ),
    KnownVariable(
        "rsds", "downward solar radiation", "W m-2", 0, 1_600,
        ("dswrf", "swdown", "avg_sdswrf", "msdwswrf"), ("surface_downwelling_shortwave_flux_in_air",),
        colormap="magma", non_negative=True,
    ),
    KnownVariable(
        "ssrd", "downward solar radiation, accumulated", "J m-2", 0, 1.4e8,
        ("surface_solar_radiation_downwards",),
        ("surface_downwelling_shortwave_flux_in_air", "integral_wrt_time_of_surface_downwelling_shortwave_flux_in_air"),
        colormap="magma", non_negative=True,
    ),
    KnownVariable(
        "lsm", "land-sea mask", "1", 0, 1,
        ("land_sea_mask", "sftlf", "land"), ("land_binary_mask", "land_area_fraction"),
        colormap="Greys_r", non_negative=True, static=True,
    ),
    KnownVariable(
        "orog", "surface altitude", "m", -500, 9_000,
        ("orography", "topo", "elevation", "hgt_surface"), ("surface_altitude",), colormap="terrain", static=True,
    ),
    KnownVariable(
        "zs", "surface geopotential", "m2 s-2", -5_000, 90_000,
        ("geopotential_at_surface", "surface_geopotential", "phis"), ("surface_geopotential",), colormap="terrain",
        static=True,
    ),
)  # fmt: skip

_LEVEL_IN_NAME = re.compile(r"^(?P<stem>[a-z][a-z_]*?)_?(?P<level>\d{2,4})(hpa|mb)?$")


def recognise(name: str, attrs: Mapping[Any, Any]) -> KnownVariable | None:
    """The known variable that a file's variable is, or None.

    The CF standard name is asked first, then the name and its aliases ("z500" and "T_850hPa" too). Units tell apart
    what shares a name (z in m2 s-2 is geopotential, in m its height); a name alone, with units that cannot be its, is
    not believed.
    """
    units = normalise_units(str(attrs.get("units", "")))
    standard_name = str(attrs.get("standard_name", "")).lower()
    by_standard = [known for known in KNOWN_VARIABLES if standard_name in known.standard_names]
    by_name = [known for known in KNOWN_VARIABLES if _is_called(known, name.lower())]
    # "air_temperature" is t, t2m, tmax or tmin: the name decides where it is one of them.
    candidates = [known for known in by_standard if known in by_name] or by_standard or by_name
    fitting = [known for known in candidates if unit_conversion(units, known.units) is not None]
    believed = fitting or (candidates if by_standard or units == "1" else [])
    return believed[0] if believed else None


_ALL_NAMES = frozenset(name for known in KNOWN_VARIABLES for name in (known.name, *known.aliases))


def _is_called(known: KnownVariable, lower: str) -> bool:
    if lower not in _ALL_NAMES:
        with_level = _LEVEL_IN_NAME.match(lower)
        lower = with_level["stem"] if with_level else lower
    return lower == known.name or lower in known.aliases


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


# unit: (what it measures, scale, offset) with base = scale * value + offset. A kg m-2 is taken as a mm of water.
_UNITS: dict[str, tuple[str, float, float]] = {
    "K": ("temperature", 1, 0),
    "degC": ("temperature", 1, 273.15),
    "degF": ("temperature", 5 / 9, 459.67 * 5 / 9),
    "Pa": ("pressure", 1, 0),
    "hPa": ("pressure", 100, 0),
    "kPa": ("pressure", 1_000, 0),
    "m": ("length", 1, 0),
    "cm": ("length", 0.01, 0),
    "mm": ("length", 0.001, 0),
    "km": ("length", 1_000, 0),
    "in": ("length", 0.0254, 0),
    "kg m-2": ("length", 0.001, 0),
    "m s-1": ("speed", 1, 0),
    "m d-1": ("speed", 1 / 86_400, 0),
    "km h-1": ("speed", 1 / 3.6, 0),
    "knot": ("speed", 1.852 / 3.6, 0),
    "mm s-1": ("speed", 0.001, 0),
    "mm h-1": ("speed", 0.001 / 3_600, 0),
    "mm d-1": ("speed", 0.001 / 86_400, 0),
    "cm d-1": ("speed", 0.01 / 86_400, 0),
    "kg m-2 s-1": ("speed", 0.001, 0),
    "kg m-2 h-1": ("speed", 0.001 / 3_600, 0),
    "kg m-2 d-1": ("speed", 0.001 / 86_400, 0),
    "m2 s-2": ("geopotential", 1, 0),
    "J kg-1": ("geopotential", 1, 0),
    "kg kg-1": ("ratio", 1, 0),
    "g kg-1": ("ratio", 0.001, 0),
    "1": ("ratio", 1, 0),
    "%": ("ratio", 0.01, 0),
    "Pa s-1": ("omega", 1, 0),
    "hPa s-1": ("omega", 100, 0),
    "s-1": ("frequency", 1, 0),
    "W m-2": ("flux", 1, 0),
    "J m-2": ("energy", 1, 0),
}


def unit_conversion(units: str, canonical: str) -> tuple[float, float] | None:
    """(scale, offset) with canonical = scale * value + offset, or None where the two do not measure the same."""
    origin, goal = _UNITS.get(normalise_units(units)), _UNITS.get(normalise_units(canonical))
    if origin is None or goal is None or origin[0] != goal[0]:
        return None
    return origin[1] / goal[1], (origin[2] - goal[2]) / goal[1]


_SPELLINGS = {
    "K": ("k", "degk", "deg_k", "kelvin", "degrees_kelvin", "degreesk", "degree_kelvin", "°k"),
    "degC": ("c", "°c", "degc", "deg_c", "celsius", "degrees_celsius", "degree_celsius", "degreesc", "degrees_c",
             "celcius", "degree_c"),
    "degF": ("f", "°f", "degf", "deg_f", "fahrenheit", "degrees_fahrenheit", "degree_fahrenheit"),
    "Pa": ("pa", "pascal", "pascals"),
    "hPa": ("hpa", "mb", "mbar", "mbars", "millibar", "millibars", "hectopascal", "hectopascals"),
    "kPa": ("kpa",),
    "m": ("m", "meter", "meters", "metre", "metres", "gpm", "mgpm", "m_of_water_equivalent"),
    "mm": ("mm", "millimeter", "millimeters", "millimetre", "millimetres"),
    "in": ("in", "inch", "inches"),
    "knot": ("kt", "kts", "knot", "knots"),
    "d": ("d", "day", "days"),
    "h": ("h", "hr", "hrs", "hour", "hours"),
    "s": ("s", "sec", "secs", "second", "seconds"),
    "1": ("", "1", "-", "none", "unitless", "dimensionless", "fraction", "(0_-_1)", "0-1", "(0-1)", "proportion"),
    "%": ("%", "percent", "per_cent", "pct"),
    "degrees_north": ("degrees_north", "degree_north", "degrees_n", "degree_n", "degreen", "degreesn"),
    "degrees_east": ("degrees_east", "degree_east", "degrees_e", "degree_e", "degreee", "degreese"),
}  # fmt: skip
_BY_SPELLING = {spelling: unit for unit, spellings in _SPELLINGS.items() for spelling in spellings}
_FACTOR = re.compile(r"^(?P<unit>[A-Za-z%°_]+)(?P<power>[-+]?\d+)?$")


def normalise_units(text: str) -> str:
    """One spelling for the same units: "degK" is "K", "m**2 s**-2" is "m2 s-2", "mm/day" is "mm d-1".

    What is not understood is given back as it is.
    """
    whole = _BY_SPELLING.get("_".join(text.lower().split()))
    if whole is not None:
        return whole
    plain = re.sub(r"\*\*|\^", "", text).replace("*", " ").replace(".", " ")
    factors = []
    for divided, part in re.findall(r"(/?)\s*([^\s/]+)", plain):
        found = _FACTOR.match(part)
        if found is None:
            return text.strip()
        unit = _BY_SPELLING.get(found["unit"].lower(), found["unit"])
        power = int(found["power"] or 1) * (-1 if divided else 1)
        factors.append(unit if power == 1 else f"{unit}{power}")
    return " ".join(factors)


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
