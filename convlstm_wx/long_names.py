"""What a long name says a variable is: "12-hour accumulated precipitation", "u-component of wind @ Isobaric surface".

A text is understood only if all of its words are: those of one variable, those that may stand beside them, and words
that say where, when or how it was made. So "temperature anomaly" and "soil temperature" are no temperature, as
"anomaly" and "soil" are words that we do not know.
"""

import re
from functools import lru_cache

from convlstm_wx.units import is_known

_OF_WIND = "component velocity vector"
_OF_CLOUD = "total cover coverage fraction amount area percentage"
_OF_WATER = (
    "total accumulated accumulation cumulative sum amount depth rate intensity flux surface liquid water equivalent"
)
_OF_RADIATION = "downward surface flux density radiation radiative irradiance accumulated"

# variable of known_variables: what says it (several ways, separated by commas), and words that may stand beside.
# Words that mean the same are written as _SAME writes them.
_WORDS: dict[str, tuple[str, str]] = {
    "t": ("temperature", ""),
    "tmax": ("maximum temperature", ""),
    "tmin": ("minimum temperature", ""),
    "dpt": ("dew point, dew point temperature", ""),
    "sst": ("sea surface temperature", ""),
    "skt": ("skin temperature, land surface temperature, ground surface temperature", "surface"),
    "msl": ("sea pressure", "reduced reduction eta model"),
    "sp": ("surface pressure, station pressure", ""),
    "z": ("geopotential", ""),
    "gh": ("geopotential height, geopotential", ""),
    "u": ("eastward wind", _OF_WIND),
    "v": ("northward wind", _OF_WIND),
    "ws": ("wind speed", "surface"),
    "gust": ("wind gust, gust", "speed maximum surface"),
    "w": ("vertical velocity, vertical wind, omega", "velocity pressure speed"),
    "vo": ("relative vorticity, vorticity", "relative"),
    "q": ("specific humidity", "surface"),
    "r": ("relative humidity", "surface"),
    "tcwv": ("precipitable water, column water vapour, integrated water vapour", "total content vertically"),
    "tcc": ("cloud", _OF_CLOUD),
    "lcc": ("low cloud", _OF_CLOUD),
    "mcc": ("medium cloud", _OF_CLOUD),
    "hcc": ("high cloud", _OF_CLOUD),
    "vis": ("visibility", "surface horizontal"),
    "tp": ("precipitation", _OF_WATER),
    "prate": ("precipitation", _OF_WATER),
    "cp": ("convective precipitation", _OF_WATER),
    "cprate": ("convective precipitation", _OF_WATER),
    "lsp": ("large scale precipitation, stratiform precipitation", _OF_WATER),
    "lsprate": ("large scale precipitation, stratiform precipitation", _OF_WATER),
    "sf": ("snowfall", _OF_WATER),
    "prsn": ("snowfall", _OF_WATER),
    "sd": ("snow depth, snow height, snow thickness, snow water equivalent", "surface physical liquid"),
    "rsds": ("downward shortwave, global radiation, global shortwave", _OF_RADIATION),
    "ssrd": ("downward shortwave, global radiation, global shortwave", _OF_RADIATION),
    "rss": ("net shortwave", _OF_RADIATION),
    "rls": ("net longwave", _OF_RADIATION),
    "swvl": ("volumetric soil water, volumetric soil moisture, soil moisture, soil water", "content layer volumetric"),
    "siconc": ("sea ice", _OF_CLOUD + " concentration"),
    "orog": ("orography, terrain height, surface altitude", ""),
}
# At a height above ground, or on it, some are variables of their own.
_NEAR_GROUND = {"t": ("t2m", 1, 3), "dpt": ("d2m", 1, 3), "u": ("u10", 10, 10), "v": ("v10", 10, 10)}
_ON_GROUND = {"t": "skt", "gh": "orog", "z": "zs"}

# In this order, on lower case without underscores and hyphens.
_HEIGHT = re.compile(r"\b(\d+(?:\.\d+)?|two|ten) ?(?:m|met(?:er|re)s?)(?: ?above ?(?:the )?ground(?: level)?)?\b")
_LEFT_OUT = re.compile(
    r"\b\d+(?:\.\d+)? ?(?:hpa|mb|mbar|millibars?|pa)(?: isobaric)?(?: pressure)?(?: (?:surface|level))?\b"
    r"|\b(?:isobaric surface|isobaric level|pressure levels?|specified height level above ground|height above ground)\b"
    r"|\b(?:entire|whole) atmosphere(?: layer)?\b|\b(?:considered as a )?single layer\b"
    r"|\bbias (?:corrected|adjusted)\b"
    r"|\b\d+(?:\.\d+)? ?(?:hourly|hours?|hrs?|h|days?|d|min|minutes?|mi|cm)?\b"
)
_SAME = tuple(
    (re.compile(rf"\b(?:{pattern})\b"), words)
    for pattern, words in (
        ("ground or water surface", "surface"),
        ("screen level|screen height|screen", "near surface"),
        ("mslp|slp", "sea level pressure"),
        ("msl", "sea level"),
        ("sst", "sea surface temperature"),
        ("rh", "relative humidity"),
        ("temp", "temperature"),
        ("dewpoint", "dew point"),
        ("rainfall|rain|precip|prcp", "precipitation"),
        ("snow fall", "snowfall"),
        ("u|zonal", "eastward"),
        ("v|meridional", "northward"),
        ("windspeed", "wind speed"),
        ("gusts", "gust"),
        ("winds", "wind"),
        ("short wave|sw|solar", "shortwave"),
        ("long wave|lw|thermal", "longwave"),
        ("downwelling|downwards|down|incoming|incident", "downward"),
        ("vapor", "vapour"),
        ("clouds", "cloud"),
        ("cloudiness", "cloud cover"),
        ("mid|middle|medium level", "medium"),
        ("max|highest", "maximum"),
        ("min|lowest", "minimum"),
    )
)
_SAY_NOTHING = frozenset(
    (
        *("the", "of", "at", "on", "in", "over", "for", "from", "to", "by", "a", "an", "near", "level", "levels"),
        *("above", "ground", "air", "atmosphere", "atmospheric", "isobaric", "specified", "value", "values", "gridded"),
        *("mean", "average", "averaged", "avg", "daily", "hourly", "monthly", "hour", "hours", "hr", "day", "time"),
        *("instantaneous", "interval", "intervals", "mixed", "since", "previous", "post", "processing", "observed"),
        *("analysis", "reanalysis", "forecast", "estimated", "calibrated"),
    )
)
NEAR_GROUND = -1.0  # a height that is not said in metres: that of thermometers or anemometers


@lru_cache(maxsize=4096)
def variables_meant(text: str) -> tuple[str, ...]:
    """The variables of known_variables that a long name, or a name made of words, may mean; units tell them apart."""
    lower = re.sub(r"[\[(]([^\])]*)[\])]", _without_units, text.lower())
    lower = " ".join(re.sub(r"[_\-,;:/@]+|\.(?!\d)", " ", lower).split())
    for pattern, replacement in _SAME:
        lower = pattern.sub(replacement, lower)
    height = _HEIGHT.search(lower)
    said = _LEFT_OUT.sub(" ", _HEIGHT.sub(" ", lower)).split()
    words = frozenset(said) - _SAY_NOTHING
    meters = None if height is None else float({"two": "2", "ten": "10"}.get(height[1], height[1]))
    found = _named_by(words)
    if not found and "surface" in words:
        found = _named_by(words - {"surface"})
        meters = NEAR_GROUND if "air" in said or "near" in said else 0.0
    return tuple(dict.fromkeys(at_height(name, meters) for name in found))


def at_height(name: str, meters: float | None) -> str:
    """What a variable is called at a height above ground; 0 is on the ground, None not said."""
    if meters == 0:
        return _ON_GROUND.get(name, name)
    near, lowest, highest = _NEAR_GROUND.get(name, (name, 0, 0))
    return near if meters == NEAR_GROUND or (meters is not None and lowest <= meters <= highest) else name


def _named_by(words: frozenset[str]) -> list[str]:
    return [
        name
        for name, (ways, beside) in _WORDS.items()
        for way in ways.split(", ")
        if set(way.split()) <= words <= {*way.split(), *beside.split()}
    ]


def _without_units(bracket: re.Match[str]) -> str:
    """ "temperature (K)" says no more than "temperature"."""
    is_units = is_known(bracket[1]) and not bracket[1][:1].isdigit()  # (10m) is a height
    return " " if is_units else f" {bracket[1]} "
