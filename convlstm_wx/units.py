"""Units: one spelling for the same units, and the conversion between two that measure the same."""

import math
import re

# unit: (what it measures, scale, offset) with base = scale * value + offset. A kg m-2 is taken as a mm of water.
_UNITS: dict[str, tuple[str, float, float]] = {
    "K": ("temperature", 1, 0),
    "degC": ("temperature", 1, 273.15),
    "degF": ("temperature", 5 / 9, 459.67 * 5 / 9),
    "Pa": ("pressure", 1, 0),
    "hPa": ("pressure", 100, 0),
    "kPa": ("pressure", 1_000, 0),
    "m": ("length", 1, 0),
    "dam": ("length", 10, 0),
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
    "kJ m-2": ("energy", 1e3, 0),
    "MJ m-2": ("energy", 1e6, 0),
    "J cm-2": ("energy", 1e4, 0),
    "m3 m-3": ("ratio", 1, 0),
    "degrees": ("angle", 1, 0),
    "rad": ("angle", 180 / math.pi, 0),
}


def is_known(units: str) -> bool:
    """Whether we know what these units measure."""
    return normalise_units(units) in _UNITS


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
    "dam": ("dam", "gpdam", "gpdm", "decameter", "decametre", "decameters", "decametres", "10m", "10_m"),
    "mm": ("mm", "millimeter", "millimeters", "millimetre", "millimetres"),
    "in": ("in", "inch", "inches"),
    "knot": ("kt", "kts", "knot", "knots"),
    "d": ("d", "day", "days"),
    "h": ("h", "hr", "hrs", "hour", "hours"),
    "s": ("s", "sec", "secs", "second", "seconds"),
    "1": ("", "1", "-", "none", "unitless", "dimensionless", "fraction", "(0_-_1)", "0-1", "(0-1)", "proportion"),
    "%": ("%", "percent", "per_cent", "pct"),
    "degrees": ("degree", "degrees", "deg", "degs", "°", "degree_true", "degrees_true", "deg_true", "degt", "arcdeg",
                "arc_degree", "arc_degrees"),
    "rad": ("rad", "radian", "radians"),
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
