import matplotlib
import pytest

from convlstm_wx.conventions import (
    KNOWN_VARIABLES,
    Channel,
    is_precipitation,
    millimetres_factor,
    normalise_units,
    recognise,
    unit_conversion,
)
from convlstm_wx.errors import ConfigError, DataError


@pytest.mark.parametrize(
    ("name", "attrs", "expected"),
    [
        ("t2m", {"units": "K", "standard_name": "unknown"}, "t2m"),
        ("t2m", {"units": "K", "standard_name": "air_temperature"}, "t2m"),
        ("whatever", {"units": "K", "standard_name": "air_temperature"}, "t"),
        ("t850", {"units": "K", "standard_name": "air_temperature"}, "t"),
        ("T_850hPa", {"units": "K"}, "t"),
        ("air", {"units": "degK"}, "t"),
        ("tmax", {"units": "degC"}, "tmax"),
        ("SLP", {"units": "Pa"}, "msl"),
        ("z", {"units": "m**2 s**-2"}, "z"),
        ("z", {"units": "m"}, "gh"),
        ("z500", {"units": "m"}, "gh"),
        ("Z", {"units": "m2 s-2"}, "z"),
        ("u10", {"units": "m s**-1", "standard_name": "eastward_wind"}, "u10"),
        ("u100", {"units": "m s-1"}, "u"),
        ("TP", {"units": "m"}, "tp"),
        ("pr", {"units": "kg m-2 s-1"}, "prate"),
        ("precip", {"units": "mm/day"}, "prate"),
        ("precip", {"units": "mm"}, "tp"),
        ("t2m", {}, "t2m"),
        ("t2m", {"units": "1"}, "t2m"),
        ("t", {"units": "m"}, None),
        ("salinity", {"units": "1"}, None),
    ],
)
def test_variables_are_recognised_by_standard_name_then_name_then_units(name, attrs, expected):
    known = recognise(name, attrs)
    assert (known.name if known else None) == expected


def test_every_real_precipitation_unit_becomes_millimetres():
    factors = {"m": 1000, "mm": 1, "kg m**-2": 1, "kg m-2 s-1": 86_400, "mm/day": 1, "mm h-1": 24, "m s-1": 86.4e6}
    assert {units: millimetres_factor(units) for units in factors} == pytest.approx(factors)


def test_precipitation_in_unknown_units_is_refused():
    with pytest.raises(DataError, match=r"precipitation in units of '1'.*units attribute"):
        millimetres_factor("1")


def test_only_rain_and_snow_are_precipitation():
    assert is_precipitation("tp", {"units": "m"})
    assert is_precipitation("x", {"units": "kg m-2 s-1", "standard_name": "precipitation_flux"})
    assert not is_precipitation("t2m", {"units": "K"})
    assert not is_precipitation("unheard_of", {})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("degK", "K"),
        ("Kelvin", "K"),
        ("C", "degC"),
        ("°C", "degC"),
        ("degrees celsius", "degC"),
        ("m**2 s**-2", "m2 s-2"),
        ("m^2 s^-2", "m2 s-2"),
        ("m2/s2", "m2 s-2"),
        ("m.s-1", "m s-1"),
        ("kg/kg", "kg kg-1"),
        ("kg kg**-1", "kg kg-1"),
        ("mm/day", "mm d-1"),
        ("W m**-2", "W m-2"),
        ("degrees north", "degrees_north"),
        ("millibars", "hPa"),
        ("(0 - 1)", "1"),
        ("", "1"),
        ("m of water equivalent", "m"),
        ("hours since 1900-01-01", "hours since 1900-01-01"),
        ("  odd (units)! ", "odd (units)!"),
    ],
)
def test_units_get_one_spelling(text, expected):
    assert normalise_units(text) == expected
    assert normalise_units(expected) == expected


def test_units_convert_only_to_what_measures_the_same():
    assert unit_conversion("degC", "K") == (1.0, 273.15)
    scale, offset = unit_conversion("K", "degC")
    assert 300 * scale + offset == pytest.approx(26.85)
    scale, offset = unit_conversion("degF", "degC")
    assert 212 * scale + offset == pytest.approx(100)
    assert unit_conversion("millibar", "Pa") == (100.0, 0.0)
    assert unit_conversion("K", "Pa") is None
    assert unit_conversion("furlong", "m") is None


@pytest.mark.parametrize("known", KNOWN_VARIABLES, ids=lambda known: known.name)
def test_the_table_is_sound(known):
    assert known.valid_min < known.valid_max
    assert unit_conversion(known.units, known.units) == (1.0, 0.0)
    assert {known.colormap, known.error_colormap} <= set(matplotlib.colormaps)
    assert recognise(known.name, {"units": known.units}) is known
    assert all(alias == alias.lower() for alias in known.aliases)


@pytest.mark.parametrize(
    ("channel", "name"),
    [(Channel("t2m"), "t2m"), (Channel("z", 500.0), "z@500hPa"), (Channel("q", 0.5), "q@0.5hPa")],
)
def test_channel_names_go_there_and_back(channel, name):
    assert channel.name == name
    assert Channel.parse(name) == channel


def test_a_channel_name_that_makes_no_sense_is_refused():
    with pytest.raises(ConfigError, match="'z@high' is not a channel"):
        Channel.parse("z@high")


def test_channels_sort_by_variable_then_level():
    channels = [Channel("z", 850.0), Channel("z", 500.0), Channel("q", 1000.0)]
    assert [c.name for c in sorted(channels)] == ["q@1000hPa", "z@500hPa", "z@850hPa"]
