"""Files exactly as well-known sources deliver them. Values are 0, 1, 2 ... so that a wrong order is seen by eye."""

import numpy as np
import pytest
import xarray as xr

from convlstm_wx.conventions import recognise
from convlstm_wx.data.reading import is_projected, open_dataset

NORTH = {"units": "degrees_north", "standard_name": "latitude", "long_name": "latitude"}
EAST = {"units": "degrees_east", "standard_name": "longitude", "long_name": "longitude"}
START = np.datetime64("2001-01-01", "ns")


def counted(*sizes: int, dtype="float32") -> np.ndarray:
    return np.arange(np.prod(sizes)).reshape(sizes).astype(dtype)


@pytest.fixture
def delivered(tmp_path):
    """Write a dataset as it is, open it again."""

    def write_and_open(dataset: xr.Dataset, **options) -> xr.Dataset:
        dataset.to_netcdf(tmp_path / "x.nc", **options)
        return open_dataset([tmp_path / "x.nc"])

    return write_and_open


def names_of(dataset: xr.Dataset) -> dict[str, str | None]:
    known = {str(name): recognise(str(name), field.attrs) for name, field in dataset.data_vars.items()}
    return {name: meaning and meaning.name for name, meaning in known.items()}


def seconds(*hours: int) -> np.ndarray:
    return np.array(hours) * 3600 + 978307200  # of 2001-01-01


def test_era5_of_todays_copernicus(delivered):
    era5 = xr.Dataset(
        {
            "t": (
                ("valid_time", "pressure_level", "latitude", "longitude"),
                counted(2, 2, 2, 3),
                {"units": "K", "standard_name": "air_temperature", "GRIB_paramId": 130, "GRIB_missingValue": 3.4e38},
            )
        },
        {
            "number": ((), 0, {"units": "1", "standard_name": "realization"}),
            "valid_time": (
                "valid_time",
                seconds(0, 6),
                {"units": "seconds since 1970-01-01", "calendar": "proleptic_gregorian", "standard_name": "time"},
            ),
            "pressure_level": (
                "pressure_level",
                [1000.0, 850.0],
                {"units": "hPa", "positive": "down", "stored_direction": "decreasing", "standard_name": "air_pressure"},
            ),
            "latitude": ("latitude", [50.25, 50.0], {**NORTH, "stored_direction": "decreasing"}),
            "longitude": ("longitude", [-1.0, -0.75, -0.5], EAST),
            "expver": ("valid_time", np.array(["0001", "0005"], dtype=object)),
        },
    )
    dataset = delivered(era5)
    assert dict(dataset.sizes) == {"time": 2, "level": 2, "lat": 2, "lon": 3}
    assert dataset["t"][0, 0].values.tolist() == [[3, 4, 5], [0, 1, 2]]
    assert dataset["time"].values.tolist() == [START.astype(int), (START + np.timedelta64(6, "h")).astype(int)]
    assert dataset["level"].values.tolist() == [1000, 850]
    assert set(dataset.coords) == {"time", "level", "lat", "lon"}
    assert dataset.attrs["lat_descending"] == 1


def test_era5_of_yesterdays_copernicus_is_packed_and_mixes_expver(delivered):
    # Hours since 1900; expver 1 is final and missing in the last time, expver 5 preliminary and missing before.
    values = np.stack([counted(3, 2, 2), counted(3, 2, 2) + 100], axis=1)
    values[2, 0], values[:2, 1] = np.nan, np.nan
    era5 = xr.Dataset(
        {
            "tp": (
                ("time", "expver", "latitude", "longitude"),
                values,
                {"units": "m", "long_name": "Total precipitation"},
            )
        },
        {
            "time": (
                "time",
                np.array([885360, 885361, 885362], "int32"),
                {"units": "hours since 1900-01-01 00:00:00.0"},
            ),
            "expver": ("expver", np.array([1, 5], "int32")),
            "latitude": ("latitude", np.array([51, 50], "float32"), NORTH),
            "longitude": ("longitude", np.array([359, 360], "float32"), EAST),
        },
    )
    packing = {"dtype": "int16", "scale_factor": 1.0, "add_offset": 0.0, "_FillValue": -32767}
    dataset = delivered(era5, encoding={"tp": packing})
    assert dataset["tp"].dims == ("time", "lat", "lon")
    assert dataset["tp"][:, 1].values.tolist() == [[0, 1], [4, 5], [108, 109]]
    assert dataset["time"].values[0] == START
    assert names_of(dataset) == {"tp": "tp"}


def test_weatherbench_2(delivered):
    wb2 = xr.Dataset(
        {
            "temperature": (("time", "level", "longitude", "latitude"), counted(2, 2, 3, 2), {"units": "K"}),
            "2m_temperature": (("time", "longitude", "latitude"), counted(2, 3, 2), {"units": "K"}),
            "total_precipitation_6hr": (("time", "longitude", "latitude"), counted(2, 3, 2), {"units": "m"}),
            "land_sea_mask": (("longitude", "latitude"), counted(3, 2), {"units": "(0 - 1)"}),
        },
        {
            "time": START + np.arange(2) * np.timedelta64(6, "h"),
            "level": np.array([500, 850]),
            "longitude": [0.0, 120.0, 240.0],
            "latitude": [-30.0, 30.0],
        },
    )
    dataset = delivered(wb2)
    assert dataset["2m_temperature"][0].values.tolist() == [[0, 2, 4], [1, 3, 5]]
    assert dataset["temperature"].dims == ("time", "level", "lat", "lon")
    assert dataset["land_sea_mask"].dims == ("lat", "lon")
    assert list(names_of(dataset).values()) == ["t", "t2m", "tp", "lsm"]


@pytest.mark.parametrize("repeated", [True, False], ids=["static fields at every time", "static fields once"])
def test_arco_era5(delivered, repeated):
    dims = ("time", "latitude", "longitude")
    still = {"land_sea_mask": ("(0 - 1)", counted(2, 3)), "geopotential_at_surface": ("m**2 s**-2", counted(2, 3) + 9)}
    fields = {
        name: (dims, np.stack([values * np.nan, values, values]), {"units": units}) if repeated
        else (dims[1:], values, {"units": units})
        for name, (units, values) in still.items()
    }  # fmt: skip
    fields["temperature"] = (("time", "level", *dims[1:]), counted(3, 2, 2, 3), {"units": "K", "short_name": "t"})
    arco = xr.Dataset(
        fields,
        {
            "time": ("time", np.arange(3), {"units": "hours since 2001-01-01"}),
            "level": ("level", np.array([500, 850], "int64")),
            "latitude": ("latitude", np.array([0.25, 0.0], "float32"), NORTH),
            "longitude": ("longitude", np.array([0, 0.25, 359.75], "float32"), EAST),
        },
        {"valid_time_start": "2001-01-01"},
    )
    dataset = delivered(arco)
    assert dataset["lon"].values.tolist() == [-0.25, 0, 0.25]
    assert dataset["land_sea_mask"].values.tolist() == [[5, 3, 4], [2, 0, 1]]
    assert dataset["geopotential_at_surface"].dims == ("lat", "lon")
    assert names_of(dataset) == {"land_sea_mask": "lsm", "geopotential_at_surface": "zs", "temperature": "t"}
    assert dataset["lat"].dtype == dataset["lon"].dtype == "float64"


def test_ncep_reanalysis_1(delivered):
    ncep = xr.Dataset(
        {
            "air": (
                ("time", "level", "lat", "lon"),
                counted(2, 2, 2, 2),
                {"units": "degK", "var_desc": "Air temperature", "valid_range": [137.5, 362.5], "dataset": "NCEP"},
            ),
            "time_bnds": (("time", "nbnds"), np.zeros((2, 2))),
        },
        {
            "time": (
                "time",
                [1761936.0, 1761960.0],
                {"units": "hours since 1800-01-01 00:00:0.0", "delta_t": "0000-00-01 00:00:00", "axis": "T"},
            ),
            "level": (
                "level",
                np.array([1000, 500], "float32"),
                {"units": "millibar", "positive": "down", "axis": "Z"},
            ),
            "lat": ("lat", np.array([52.5, 50], "float32"), {"units": "degrees_north", "actual_range": [52.5, 50.0]}),
            "lon": ("lon", np.array([357.5, 360], "float32"), {"units": "degrees_east", "axis": "X"}),
        },
    )
    packing = {"dtype": "int16", "scale_factor": 0.5, "add_offset": 1.0, "_FillValue": 32766}
    dataset = delivered(ncep, encoding={"air": packing})
    assert dataset["time"].values[0] == START
    assert dataset["level"].values.tolist() == [1000, 500]
    assert dataset["air"][0, 0].values.tolist() == [[2, 3], [0, 1]]
    assert dataset["air"].attrs["units"] == "K"
    assert names_of(dataset) == {"air": "t"}


def test_merra_2(delivered):
    single = {
        "T2M": ("K", "2-meter_air_temperature"), "U10M": ("m s-1", "10-meter_eastward_wind"),
        "SLP": ("Pa", "sea_level_pressure"), "PRECTOTCORR": ("kg m-2 s-1", "total_precipitation_corrected"),
        "QV2M": ("kg kg-1", "2-meter_specific_humidity"), "T2MDEW": ("K", "dew_point_temperature_at_2_m"),
    }  # fmt: skip
    fields = {
        name: (("time", "lat", "lon"), counted(2, 2, 2), {"units": units, "long_name": text, "standard_name": text})
        for name, (units, text) in single.items()
    }
    fields["H"] = (("time", "lev", "lat", "lon"), counted(2, 2, 2, 2), {"units": "m", "standard_name": "edge_heights"})
    merra = xr.Dataset(
        fields,
        {
            "time": (
                "time",
                np.array([0, 60], "int32"),
                {"units": "minutes since 2001-01-01 00:30:00", "begin_time": 3000},
            ),
            "lev": ("lev", [1000.0, 850.0], {"units": "hPa", "long_name": "vertical level", "positive": "down"}),
            "lat": ("lat", [10.0, 10.5], {"units": "degrees_north"}),
            "lon": ("lon", [-180.0, -179.375], {"units": "degrees_east"}),
        },
    )
    dataset = delivered(merra, encoding={name: {"_FillValue": np.float32(1e15)} for name in fields})
    assert dataset["time"].values[0] == START + np.timedelta64(30, "m")
    assert dataset["H"].dims == ("time", "level", "lat", "lon")
    assert list(names_of(dataset).values()) == ["t2m", "u10", "msl", "prate", "q", "d2m", "gh"]


def test_imd_rain_in_capitals_and_without_attributes(delivered):
    rain = counted(2, 2, 2)
    rain[0, 0, 0] = -999
    imd = xr.Dataset(
        {"rf": (("TIME", "LATITUDE", "LONGITUDE"), rain)},
        {
            "TIME": ("TIME", np.arange(2), {"units": "days since 2001-01-01"}),
            "LATITUDE": [6.5, 6.75],
            "LONGITUDE": [66.5, 66.75],
        },
    )
    dataset = delivered(imd, encoding={"rf": {"_FillValue": np.float32(-999)}})
    assert dataset["rf"].dims == ("time", "lat", "lon")
    assert np.isnan(dataset["rf"].values[0, 0, 0])
    assert dataset["rf"].attrs["units"] == "1"
    assert names_of(dataset) == {"rf": "tp"}


@pytest.mark.parametrize(("name", "units", "known"), [("tg", "Celsius", "t2m"), ("rr", "mm", "tp")])
def test_e_obs_packed_with_gaps_over_the_sea(delivered, name, units, known):
    values = counted(2, 2, 2)
    values[:, 0, 0] = np.nan
    text = {"tg": "air_temperature", "rr": "thickness_of_rainfall_amount"}[name]
    eobs = xr.Dataset(
        {name: (("time", "latitude", "longitude"), values, {"units": units, "standard_name": text})},
        {
            "time": ("time", np.arange(2), {"units": "days since 2001-01-01 00:00", "calendar": "standard"}),
            "latitude": ("latitude", [25.05, 25.15], {**NORTH, "axis": "Y"}),
            "longitude": ("longitude", [-40.35, -40.25], {**EAST, "axis": "X"}),
        },
    )
    packing = {"dtype": "int16", "scale_factor": 0.01, "_FillValue": -9999}
    dataset = delivered(eobs, encoding={name: packing})
    assert np.isnan(dataset[name][0]).values.tolist() == [[True, False], [False, False]]
    assert dataset[name].values[1, 1, 1] == pytest.approx(7)
    assert names_of(dataset) == {name: known}


@pytest.mark.parametrize(("calendar", "last"), [("noleap", "2004-03-01"), ("360_day", "2004-03-01")])
def test_cmip_with_bounds_a_height_and_another_calendar(delivered, calendar, last):
    first, n = {"noleap": ("2004-02-27", 3), "360_day": ("2004-02-28", 4)}[calendar]
    cmip = xr.Dataset(
        {
            "tas": (
                ("time", "lat", "lon"),
                counted(n, 2, 2),
                {"units": "K", "standard_name": "air_temperature", "cell_methods": "area: time: mean"},
            ),
            "ta": (
                ("time", "plev", "lat", "lon"),
                counted(n, 2, 2, 2),
                {"units": "K", "standard_name": "air_temperature"},
            ),
            "lat_bnds": (("lat", "bnds"), [[0.0, 1.0], [1.0, 2.0]], {"units": "degrees_north"}),
            "lon_bnds": (("lon", "bnds"), [[0.0, 1.0], [1.0, 2.0]], {"units": "degrees_east"}),
            "time_bnds": (("time", "bnds"), np.zeros((n, 2))),
        },
        {
            "time": (
                "time",
                np.arange(n) + 0.5,
                {"units": f"days since {first}", "calendar": calendar, "bounds": "time_bnds", "axis": "T"},
            ),
            "plev": ("plev", [100000.0, 85000.0], {"units": "Pa", "axis": "Z", "positive": "down"}),
            "lat": ("lat", [0.5, 1.5], {**NORTH, "axis": "Y", "bounds": "lat_bnds"}),
            "lon": ("lon", [0.5, 1.5], {**EAST, "axis": "X", "bounds": "lon_bnds"}),
            "height": ((), 2.0, {"units": "m", "axis": "Z", "positive": "up", "standard_name": "height"}),
        },
    )
    dataset = delivered(cmip)
    assert set(dataset.data_vars) == {"tas", "ta"}
    assert dataset["level"].values.tolist() == [1000, 850]
    assert dataset["time"].values[-1] == np.datetime64(f"{last}T12:00", "ns")
    assert names_of(dataset) == {"tas": "t2m", "ta": "t"}
    assert dataset["lat"].values.tolist() == [0.5, 1.5]


# Projected


def test_wrf_with_places_at_every_time(delivered):
    lat, lon = np.array([[40.0, 40.1, 40.2], [41.0, 41.1, 41.2]]), np.array([[5.0, 6, 7], [4.9, 5.9, 6.9]])
    dims = ("Time", "south_north", "west_east")
    wrf = xr.Dataset(
        {
            "T2": (
                dims,
                counted(2, 2, 3),
                {"units": "K", "description": "TEMP at 2 M", "coordinates": "XLONG XLAT XTIME"},
            ),
            "PSFC": (dims, counted(2, 2, 3), {"units": "Pa"}),
            "U": (("Time", "bottom_top", "south_north", "west_east_stag"), counted(2, 2, 2, 4), {"units": "m s-1"}),
            "XLAT": (dims, np.stack([lat, lat]), {"units": "degree_north"}),
            "XLONG": (dims, np.stack([lon, lon]), {"units": "degree_east"}),
            "XTIME": ("Time", [0.0, 60.0], {"units": "minutes since 2001-01-01 00:00:00"}),
            "Times": ("Time", np.array([b"2001-01-01_00:00:00", b"2001-01-01_01:00:00"])),
        }
    )
    dataset = delivered(wrf)
    assert is_projected(dataset)
    assert dataset["T2"].dims == ("time", "lat", "lon")
    assert dataset["latitude"].values.tolist() == lat.tolist()
    assert dataset["longitude"].values.tolist() == lon.tolist()
    assert dataset["lat"].values.tolist() == [0, 1]
    assert dataset["lat"].attrs == {"long_name": "row", "units": "1"}
    assert set(dataset.data_vars) == {"T2", "PSFC"}
    assert names_of(dataset) == {"T2": "t2m", "PSFC": "sp"}


def test_lambert_with_y_and_x_and_a_grid_mapping(delivered):
    lat, lon = np.array([[50.0, 50.1, 50.2], [49.0, 49.1, 49.2]]), np.array([[359.0, 0, 1], [359.1, 0.1, 1.1]])
    lambert = xr.Dataset(
        {
            "tas": (("time", "y", "x"), counted(2, 2, 3), {"units": "K", "grid_mapping": "crs"}),
            "crs": ((), 0, {"grid_mapping_name": "lambert_conformal_conic", "standard_parallel": 49.5}),
        },
        {
            "time": START + np.arange(2) * np.timedelta64(1, "D"),
            "y": ("y", [12500.0, 0.0], {"units": "m", "standard_name": "projection_y_coordinate"}),
            "x": ("x", [0.0, 12500.0, 25000.0], {"units": "m", "standard_name": "projection_x_coordinate"}),
            "lat": (("y", "x"), lat, NORTH),
            "lon": (("y", "x"), lon, EAST),
        },
    )
    dataset = delivered(lambert)
    assert dataset["lat"].values.tolist() == [0, 12500]
    assert dataset["lat"].attrs == {"standard_name": "projection_y_coordinate", "units": "m"}
    assert dataset["tas"][0].values.tolist() == [[3, 4, 5], [0, 1, 2]]
    assert dataset["latitude"].values.tolist() == lat[::-1].tolist()
    np.testing.assert_allclose(dataset["longitude"], [[-0.9, 0.1, 1.1], [-1, 0, 1]])
    assert dataset.attrs["lat_descending"] == 1
    assert names_of(dataset) == {"tas": "t2m"}


def test_a_rotated_pole_keeps_its_own_degrees(delivered):
    rotated = xr.Dataset(
        {"pr": (("time", "rlat", "rlon"), counted(1, 2, 2), {"units": "kg m-2 s-1", "grid_mapping": "rotated_pole"})},
        {
            "time": [START],
            "rlat": ("rlat", [-1.0, 1.0], {"units": "degrees", "standard_name": "grid_latitude", "axis": "Y"}),
            "rlon": ("rlon", [-2.0, 0.0], {"units": "degrees", "standard_name": "grid_longitude", "axis": "X"}),
            "lat": (("rlat", "rlon"), [[47.0, 47.5], [49.0, 49.5]], NORTH),
            "lon": (("rlat", "rlon"), [[5.0, 8.0], [4.8, 7.9]], EAST),
        },
    )
    dataset = delivered(rotated)
    assert dataset["lon"].values.tolist() == [-2, 0]
    assert dataset["lon"].attrs == {"standard_name": "grid_longitude", "units": "degrees"}
    assert dataset["latitude"].values.tolist() == [[47, 47.5], [49, 49.5]]


def test_ocean_models_name_their_places_nav_lat_and_order_columns_first(delivered):
    nemo = xr.Dataset(
        {"sosst": (("time_counter", "x", "y"), counted(1, 2, 3), {"units": "degC"})},
        {
            "time_counter": ("time_counter", [START], {"standard_name": "time"}),
            "nav_lat": (("x", "y"), [[1.0, 2.0, 3.0], [1.1, 2.1, 3.1]]),
            "nav_lon": (("x", "y"), [[5.0, 5.1, 5.2], [6.0, 6.1, 6.2]]),
        },
    )
    dataset = delivered(nemo)
    assert dataset["latitude"].values.tolist() == [[1, 1.1], [2, 2.1], [3, 3.1]]
    assert dataset["sosst"][0].values.tolist() == [[0, 3], [1, 4], [2, 5]]
