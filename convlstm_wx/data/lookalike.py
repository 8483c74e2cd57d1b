"""Lookalike: the units that a variable's values look like, where those that the file declares cannot be.

Ranges in `conventions` are wide, so that no true value is refused; here a typical range, a mean or a level is asked.
"""

import math
import re
from dataclasses import dataclass

from convlstm_wx.conventions import KnownVariable, unit_conversion

# In this order: where several fit, the commoner one is named.
_UNITS = (
    *("K", "degC", "degF", "Pa", "hPa", "kPa", "mm", "m", "cm", "in", "km"),
    *("mm d-1", "kg m-2 s-1", "mm h-1", "m s-1", "km h-1", "knot"),
    *("kg kg-1", "g kg-1", "%", "1", "m2 s-2", "Pa s-1", "hPa s-1", "s-1", "W m-2", "J m-2"),
)
_MIXING_RATIOS = ("kg kg-1", "g kg-1")
_WETTEST_MM_PER_DAY = 100.0  # a mean over a region and a record
_DRIEST_MM = 0.1  # no record of rain has a lower maximum, in mm or mm per day
# The highest value of any record reaches this much, in the units of `conventions`.
_SMALLEST_MAXIMUM = {"r": 2.0, "tcc": 0.02, "tcwv": 0.5, "rsds": 5.0, "ssrd": 2e4, "vis": 200.0}
_SMALLEST_MAXIMUM |= dict.fromkeys(("lcc", "mcc", "hcc"), _SMALLEST_MAXIMUM["tcc"])
_GRAVITY = 9.80665
_LEVEL_IN_NAME = re.compile(r"\D(\d{2,4})(?:hpa|mb)?$")
_LOWEST_LEVEL = 900.0  # nearer to the ground, the weather moves heights by more than units do
_HEIGHT_RATIO = 1.3  # from the standard atmosphere, anywhere on earth


@dataclass(frozen=True)
class Typical:
    """What the values of a channel are like, in the file's units.

    Attributes:
        low, high: medians, over time, of the lowest and the highest value of a field: no single wrong value moves them.
        mean, maximum: of all values.
        step_hours: time step of the file.
    """

    low: float
    high: float
    mean: float
    maximum: float
    step_hours: float


def looks_like(known: KnownVariable, name: str, units: str, level: float | None, typical: Typical) -> str | None:
    """The units that the values fit, if they do not fit those declared; None if they do, or if nothing fits better."""
    if known.name in ("z", "gh"):
        return _geopotential_units(name, units, level, typical.mean)
    fits = _rain_fits if known.transform == "log1p_mm" else _range_fits
    if unit_conversion(units, known.units) is None or fits(known, units, typical):
        return None
    kind = (other for other in _UNITS if other != units and _same_kind(other, known.units))
    return next((other for other in kind if fits(known, other, typical)), None)


def _same_kind(units: str, canonical: str) -> bool:
    """Whether both measure the same; a mixing ratio is never given in %."""
    return unit_conversion(units, canonical) is not None and (units in _MIXING_RATIOS) == (canonical in _MIXING_RATIOS)


def _range_fits(known: KnownVariable, units: str, typical: Typical) -> bool:
    scale, offset = unit_conversion(units, known.units) or (1.0, 0.0)
    low, high = scale * typical.low + offset, scale * typical.high + offset
    tall_enough = scale * typical.maximum + offset >= _SMALLEST_MAXIMUM.get(known.name, -math.inf)
    # Packing leaves 1e-9 below zero.
    slack = 1e-3 * (known.valid_max - known.valid_min)
    return known.valid_min - slack <= low and high <= known.valid_max + slack and tall_enough


def _rain_fits(known: KnownVariable, units: str, typical: Typical) -> bool:
    scale, _ = unit_conversion(units, known.units) or (1.0, 0.0)
    if typical.maximum <= 0:
        return True
    steps_per_day = 24 / typical.step_hours if known.units == "mm" else 1.0
    return scale * typical.mean * steps_per_day <= _WETTEST_MM_PER_DAY and scale * typical.maximum >= _DRIEST_MM


def _geopotential_units(name: str, units: str, level: float | None, mean: float) -> str | None:
    """Geopotential is 9.8 times its height: the standard atmosphere tells which one the values are."""
    found = _LEVEL_IN_NAME.search(name.lower())
    hpa = level if level is not None else float(found[1]) if found else None
    if hpa is None or not 1 <= hpa <= _LOWEST_LEVEL:
        return None
    height = _standard_height_m(hpa)
    expected = {"m2 s-2": _GRAVITY * height, "m": height, "dam": height / 10}
    fitting = [unit for unit, value in expected.items() if 1 / _HEIGHT_RATIO < mean / value < _HEIGHT_RATIO]
    declared = "m2 s-2" if unit_conversion(units, "m2 s-2") else "m" if units == "m" else units
    return None if not fitting or declared in fitting or declared not in expected else fitting[0]


def _standard_height_m(hpa: float) -> float:
    """Height of a pressure level in the ICAO standard atmosphere: 6.5 K per km up to 11 km, isothermal above."""
    if hpa >= 226.32:
        return 44_330.8 * (1 - (hpa / 1013.25) ** 0.190263)
    return 11_000 + 6_341.6 * math.log(226.32 / hpa)
