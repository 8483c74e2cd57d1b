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
from convlstm_wx.service_names import SERVICE_NAMES


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


@pytest.mark.parametrize(
    ("long_name", "units", "expected"),
    [
        ("Dew point temperature", "K", "dpt"),
        ("2 metre dewpoint temperature", "K", "d2m"),
        ("Geopotential height", "gpm", "gh"),
        ("Geopotential height", "gpdam", "gh"),
        ("Geopotential", "m2 s-2", "z"),
        ("Eastward wind component", "m/s", "u"),
        ("Zonal wind", "m/s", "u"),
        ("10 metre V wind component", "m/s", "v10"),
        ("U wind (10m)", "m/s", "u10"),
        ("2 metre temperature", "K", "t2m"),
        ("Near-Surface Air Temperature", "K", "t2m"),
        ("Surface air temperature", "degC", "t2m"),
        ("Surface temperature", "K", "skt"),
        ("Temperature (K)", "K", "t"),
        ("Temperature at 850 hPa", "K", "t"),
        ("Daily Maximum Near-Surface Air Temperature", "K", "tmax"),
        ("Total precipitation", "mm", "tp"),
        ("Total precipitation", "mm/day", "prate"),
        ("12-hour accumulated precipitation", "mm", "tp"),
        ("Bias-corrected daily rainfall", "mm", "tp"),
        ("convective precipitation", "mm", "cp"),
        ("Mean sea level pressure", "Pa", "msl"),
        ("Surface pressure", "hPa", "sp"),
        ("Relative humidity", "%", "r"),
        ("Visibility", "m", "vis"),
        ("precipitable water", "mm", "tcwv"),
        ("wind speed", "m/s", "ws"),
        ("Low cloud cover", "%", "lcc"),
        ("Surface net solar radiation", "W m-2", "rss"),
        ("Surface solar radiation downwards", "J m-2", "ssrd"),
        ("Volumetric soil water layer 1", "m3 m-3", "swvl"),
        ("Geopotential height at 500 hPa surface", "m", "gh"),
        ("Geopotential height", "K", None),
        ("Total precipitation", "", None),
        ("Sea ice area fraction", "(0 - 1)", "siconc"),
        ("Relative humidity (%)", "", None),
        ("Total cloud cover", "", None),
        ("temperature anomaly", "K", None),
        ("soil temperature", "K", None),
        ("brightness temperature", "K", None),
        ("dew point depression", "K", None),
        ("eastward wind stress", "m/s", None),
        ("precipitation type", "mm", None),
        ("probability of precipitation", "%", None),
        ("precipitation error", "mm", None),
        ("precipitation uncertainty", "mm", None),
        ("precipitation quality", "mm", None),
        ("precipitation mask", "1", None),
        ("relative humidity mask", "1", None),
        ("absolute vorticity", "s-1", None),
        ("sea surface elevation", "m", None),
        ("pressure", "Pa", None),
    ],
)
def test_a_name_that_says_nothing_leaves_it_to_words_and_units(long_name, units, expected):
    known = recognise("var42", {"units": units, "long_name": long_name})
    assert (known.name if known else None) == expected


@pytest.mark.parametrize(
    ("name", "units", "expected"),
    [
        ("precipitationCal", "mm/hr", "prate"),
        ("randomError", "mm/hr", None),
        ("APCP_surface", "kg/m^2", "tp"),
        ("TMP_2maboveground", "K", "t2m"),
        ("TMP_surface", "K", "skt"),
        ("TMP_850mb", "K", "t"),
        ("UGRD_10maboveground", "m/s", "u10"),
        ("UGRD_100maboveground", "m/s", "u"),
        ("PRMSL_meansealevel", "Pa", "msl"),
        ("HGT_500mb", "gpm", "gh"),
        ("RH_850mb", "%", "r"),
        ("apcpsfc", "kg/m^2", "tp"),
        ("hgtprs", "gpm", "gh"),
        ("Total_precipitation_surface_6_Hour_Accumulation", "kg.m-2", "tp"),
        ("Temperature_isobaric", "K", "t"),
        ("u-component_of_wind_isobaric", "m/s", "u"),
        ("Pressure_reduced_to_MSL_msl", "Pa", "msl"),
        ("Geopotential_height_surface", "gpm", "orog"),
        ("Absolute_vorticity_isobaric", "1/s", None),
        ("Categorical_Rain_surface", "Code table 4.222", None),
        ("PRE_24h", "mm", "tp"),
        ("PRE_24h", "hPa", None),
        ("TEM_850", "K", "t"),
        ("U", "%", "r"),
        ("U", "m/s", "u"),
        ("U", "", "u"),
        ("UX", "", None),
        ("CA_TOT", "", None),
        ("FR_LAND", "1", "lsm"),
        ("T", "hPa", None),
        ("RN", "W m-2", None),
        ("VS", "10m", "vis"),
        ("wind_speed_10m", "m/s", "ws"),
        ("temperature_2m", "degC", "t2m"),
    ],
)
def test_names_of_tools_tell_the_variable_its_level_and_its_hours(name, units, expected):
    known = recognise(name, {"units": units})
    assert (known.name if known else None) == expected


def test_every_short_name_of_a_weather_service_is_recognised_in_units_that_fit_and_only_there():
    table = {known.name: known for known in KNOWN_VARIABLES}
    for names in SERVICE_NAMES.values():
        for meant, listed in names.items():
            for name in listed.split():
                units = ["%" if table[each].units == "1" else table[each].units for each in meant.split()]
                found = [recognise(name.upper(), {"units": unit}) for unit in units]
                assert {known.name for known in found if known} & set(meant.split()), name
                assert recognise(name, {"units": "furlong"}) is None, name


def test_the_long_name_decides_where_a_name_means_two_things():
    for long_name, expected in (("", "sp"), ("Surface pressure", "sp"), ("Sea level pressure", "msl")):
        assert recognise("PS", {"units": "hPa", "long_name": long_name}).name == expected


@pytest.mark.parametrize("long_name", ["2 m temperature anomaly", "error of the 2 m temperature", "quality flag"])
def test_what_is_made_of_a_variable_is_not_taken_for_it(long_name):
    assert recognise("t2m", {"units": "K", "long_name": long_name}) is None
    assert recognise("lsm", {"units": "1", "long_name": "Land-sea mask"}).name == "lsm"


@pytest.mark.parametrize(
    ("name", "attrs", "expected"),
    [
        ("wdir", {"units": "degree"}, "wdir"),
        ("WIN_D_Avg_10mi", {"units": "deg"}, "wdir"),
        ("dd", {"units": "degrees"}, "wdir"),
        ("x", {"units": "degrees_true", "standard_name": "wind_from_direction"}, "wdir"),
        ("x", {"standard_name": "wind_to_direction"}, "wdir"),
        ("x", {"units": "radians", "long_name": "10 m wind direction"}, "wdir"),
        ("WDIR_10maboveground", {"units": "degree"}, "wdir"),
        ("mwd", {"units": "degree true"}, "direction"),
        ("x", {"units": "degree", "standard_name": "sea_surface_wave_from_direction"}, "direction"),
        ("x", {"units": "degree", "long_name": "Mean direction of wind waves"}, "direction"),
        ("dd", {"units": "m"}, None),
        ("latitude_of_storm", {"units": "degrees"}, None),
        ("x", {"units": "degrees", "long_name": "Wave directional spread"}, None),
        ("x", {"units": "degrees", "long_name": "standard deviation of wind direction"}, None),
        ("wdir_sin", {"units": "1"}, None),
    ],
)
def test_an_angle_that_says_direction_is_a_circle(name, attrs, expected):
    known = recognise(name, attrs)
    assert (known.name if known else None) == expected
    assert known is None or known.circular


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
