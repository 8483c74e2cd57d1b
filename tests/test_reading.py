"""Reading. The base file has the values 0, 1, 2 ... so that a wrong order is seen by eye."""

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from convlstm_wx.conventions import Channel
from convlstm_wx.data import quality
from convlstm_wx.data.channels import choose_channels
from convlstm_wx.data.reading import describe_step, observed_only, open_dataset, open_forecast, time_step
from convlstm_wx.errors import DataError

START = np.datetime64("2001-01-01", "ns")
DAY, HOUR = np.timedelta64(1, "D"), np.timedelta64(1, "h")
NOTHING_MENDED = {"unsorted_times": 0, "duplicate_times": 0}
HALF_HOUR, SECOND = np.timedelta64(30, "m"), np.timedelta64(1, "s")


def small(*, days=4, lat=(1.0, 2.0, 3.0), lon=(10.0, 20.0), name="t2m", units="K", start=START) -> xr.Dataset:
    shape = (days, len(lat), len(lon))
    values = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    return xr.Dataset(
        {name: (("time", "lat", "lon"), values, {"units": units})},
        {"time": start + np.arange(days) * DAY, "lat": list(lat), "lon": list(lon)},
    )


def with_levels(values=(1000.0, 500.0), *, name="level", units: str | None = "hPa") -> xr.Dataset:
    dataset = small().expand_dims({name: list(values)}, axis=1)
    if units:
        dataset[name].attrs["units"] = units
    return dataset


@pytest.fixture
def opened(tmp_path):
    """Write a dataset, open it again; each in a folder of its own, as files that are open cannot be written again."""

    def write_and_open(dataset: xr.Dataset, **options) -> xr.Dataset:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        dataset.to_netcdf(folder / "x.nc", **options)
        return open_dataset([folder / "x.nc"])

    return write_and_open


# Axes and order


def test_a_plain_file_comes_back_as_it_is(opened):
    dataset = opened(small())
    assert dataset["t2m"].dims == ("time", "lat", "lon")
    assert dataset["t2m"].values.ravel().tolist() == list(range(24))
    assert dataset["time"].dtype == "datetime64[ns]"
    axes = {"axis_names": {name: name for name in ("time", "lat", "lon")}, "calendar": "proleptic_gregorian"}
    assert dataset.attrs == {"source": "x.nc", "lat_descending": 0, **axes, **NOTHING_MENDED}
    assert dataset["t2m"].attrs["units"] == "K"


def test_the_files_own_names_and_calendar_are_told_by_the_account(opened):
    dataset = opened(small().rename(time="valid_time", lat="latitude", lon="longitude"))
    account = quality.check(dataset, choose_channels(dataset))
    assert account.axis_names == {"time": "valid_time", "lat": "latitude", "lon": "longitude"}
    assert account.calendar == "proleptic_gregorian"


@pytest.mark.parametrize(
    "names",
    [
        {"time": "valid_time", "lat": "latitude", "lon": "longitude"},
        {"time": "TIME", "lat": "LAT", "lon": "LON"},
        {"time": "forecast_time", "lat": "nav_lat", "lon": "nav_lon"},
        {"time": "Time", "lat": "y", "lon": "x"},
    ],
)
def test_axes_are_found_by_their_usual_names(opened, names):
    assert opened(small().rename(names)).equals(opened(small()))


def test_axes_are_found_by_cf_attributes_whatever_their_names(opened):
    odd = small().rename(time="a", lat="b", lon="c")
    odd["b"].attrs["units"] = "degrees_north"
    odd["c"].attrs["standard_name"] = "longitude"
    assert opened(odd).equals(opened(small()))


def test_a_coordinate_may_lie_on_a_dimension_of_another_name(opened):
    odd = small().rename_dims(lat="j", lon="i").drop_indexes(["lat", "lon"])
    assert opened(odd).equals(opened(small()))


def test_any_order_of_dimensions_becomes_time_lat_lon(opened):
    assert opened(small().transpose("lon", "time", "lat")).equals(opened(small()))


def test_descending_latitude_is_turned_and_remembered(opened):
    dataset = opened(small(lat=(3.0, 2.0, 1.0)))
    assert dataset["lat"].values.tolist() == [1, 2, 3]
    assert dataset["t2m"][0].values.tolist() == [[4, 5], [2, 3], [0, 1]]
    assert dataset.attrs["lat_descending"] == 1


@pytest.mark.parametrize(
    ("delivered", "expected", "first_row"),
    [
        ((0, 120, 240), (0, 120, 240), (0, 1, 2)),
        ((-180, -60, 60), (-180, -60, 60), (0, 1, 2)),
        ((200, 210, 220), (200, 210, 220), (0, 1, 2)),
        ((350, 355, 0, 5), (-10, -5, 0, 5), (0, 1, 2, 3)),
        ((0, 5, 350, 355), (-10, -5, 0, 5), (2, 3, 0, 1)),
        ((170, 175, -180, -175), (170, 175, 180, 185), (0, 1, 2, 3)),
        ((-180, -175, 170, 175), (170, 175, 180, 185), (2, 3, 0, 1)),
        ((30, 20, 10), (10, 20, 30), (2, 1, 0)),
        ((0, 120, 240, 360), (0, 120, 240), (0, 1, 2)),
    ],
)
def test_longitude_ascends_without_a_jump(opened, delivered, expected, first_row):
    dataset = opened(small(days=1, lat=(1.0,), lon=[float(x) for x in delivered]))
    assert dataset["lon"].values.tolist() == list(expected)
    assert dataset["t2m"][0, 0].values.tolist() == list(first_row)


def test_a_mesh_that_is_really_regular_is_read_as_a_grid(opened):
    regular = small()
    lat, lon = xr.broadcast(regular["lat"].rename(lat="j"), regular["lon"].rename(lon="i"))
    mesh = regular.rename(lat="j", lon="i").drop_vars(["j", "i"])
    mesh = mesh.assign_coords(lat=(("j", "i"), lat.values), lon=(("j", "i"), lon.values))
    assert opened(mesh).equals(opened(regular))


@pytest.mark.parametrize(
    ("axis", "units", "values"),
    [
        ("lat", "radians", np.radians([1.0, 2.0, 3.0])),
        ("lat", "degrees_south", [-1.0, -2.0, -3.0]),
        ("lon", "Radian", np.radians([10.0, 20.0])),
        ("lon", "degrees_west", [-10.0, -20.0]),
        ("lon", "degreesW", [350.0, 340.0]),
    ],
)
def test_degrees_are_north_and_east_whatever_the_file_counts_in(opened, axis, units, values):
    dataset = small()
    dataset[axis] = (axis, values, {"units": units})
    read = opened(dataset)
    np.testing.assert_allclose(read[axis] % 360, small()[axis], atol=1e-6)
    assert read["t2m"].values.tolist() == opened(small())["t2m"].values.tolist()


# Levels


@pytest.mark.parametrize(
    ("values", "attrs"),
    [
        ((1.0, 2.0), {}),
        ((10.0, 20.0), {"standard_name": "model_level_number"}),
        ((10.0, 20.0), {"standard_name": "atmosphere_hybrid_sigma_pressure_coordinate"}),
        ((0.5, 1.0), {"long_name": "sigma", "units": "1"}),
    ],
)
def test_levels_of_a_model_are_no_pressures(opened, caplog, values, attrs):
    dataset = with_levels(values, units=None)
    dataset["level"].attrs = attrs
    dataset["z"] = dataset["t2m"].isel(level=0, drop=True)
    assert list(opened(dataset).data_vars) == ["z"]
    assert "'t2m' has more than one value along level (2)" in caplog.text


@pytest.mark.parametrize(
    ("levels", "units", "name"),
    [
        ((1000.0, 500.0), "hPa", "level"),
        ((1000.0, 500.0), "millibars", "pressure_level"),
        ((100000.0, 50000.0), "Pa", "plev"),
        ((100000.0, 50000.0), None, "lev"),
        ((1000.0, 500.0), None, "isobaricInhPa"),
        ((100.0, 50.0), "kPa", "level"),
    ],
)
def test_levels_come_in_hpa_and_in_the_order_of_the_file(opened, levels, units, name):
    dataset = opened(with_levels(levels, units=units, name=name))
    assert dataset["t2m"].dims == ("time", "level", "lat", "lon")
    assert dataset["level"].values.tolist() == [1000, 500]


def test_a_single_pressure_level_stays_a_level(opened):
    assert opened(with_levels((500.0,)))["level"].values.tolist() == [500]


def test_a_height_is_no_level_and_disappears(opened):
    high = small().expand_dims(height=[2.0])
    high["height"].attrs = {"units": "m", "axis": "Z", "positive": "up"}
    assert opened(high).equals(opened(small()))
    assert opened(small().assign_coords(height=2.0)).equals(opened(small()))


# Time


def test_hours_as_fractions_of_a_day_become_whole_seconds(opened):
    hourly = small(days=5).assign_coords(time=START + np.arange(5) * HOUR)
    hourly["time"].encoding = {"units": "days since 1850-01-01", "dtype": "float64"}
    assert opened(hourly)["time"].values.tolist() == (START + np.arange(5) * HOUR).tolist()


@pytest.mark.parametrize(
    ("calendar", "start", "days", "expected"),
    [
        ("noleap", "2004-02-27", 3, ["2004-02-27", "2004-02-28", "2004-03-01"]),
        ("360_day", "2001-02-27", 5, ["2001-02-27", "2001-02-28", "2001-03-01"]),
        ("julian", "2001-02-27", 2, ["2001-02-27", "2001-02-28"]),
    ],
)
def test_other_calendars_become_dates_that_exist(opened, caplog, calendar, start, days, expected):
    odd = small(days=days).drop_vars("time")
    odd["time"] = ("time", np.arange(days), {"units": f"days since {start}", "calendar": calendar})
    with caplog.at_level(logging.WARNING):
        dataset = opened(odd)
    assert dataset["time"].values.astype("datetime64[D]").astype(str).tolist() == expected
    assert dataset["t2m"].shape == (len(expected), 3, 2)
    assert dataset["t2m"][-1, 0, 0] == (days - 1) * 6
    assert f"calendar '{calendar}'" in caplog.text


def test_the_valid_time_is_the_time_where_a_file_has_both(opened):
    both = small().assign_coords(valid_time=("time", small()["time"].values + 6 * HOUR, {"standard_name": "time"}))
    both["time"].attrs["standard_name"] = "forecast_reference_time"
    assert opened(both)["time"].values[0] == START + 6 * HOUR


# Values and variables


def test_packed_integers_and_fill_values_are_decoded(opened):
    gappy = small().where(small()["t2m"] != 5)
    packing = {"dtype": "int16", "scale_factor": 0.5, "add_offset": 10.0, "_FillValue": -32768}
    values = opened(gappy, encoding={"t2m": packing})["t2m"].values.ravel()
    assert np.isnan(values[5])
    assert np.delete(values, 5).tolist() == [*range(5), *range(6, 24)]


def test_no_packing_is_left_to_spoil_a_later_file(opened):
    packed = opened(small(), encoding={"t2m": {"dtype": "int16", "scale_factor": 1.0, "_FillValue": -1}})
    assert packed["t2m"].encoding == {}


def test_netcdf3_is_read(opened):
    assert opened(small(), format="NETCDF3_CLASSIC").equals(opened(small()))


def test_units_keep_their_meaning_in_one_spelling_and_are_1_where_absent(opened):
    dataset = opened(small(units="degK").assign(odd=small()["t2m"].assign_attrs(units="furlongs")))
    assert dataset["t2m"].attrs["units"] == "K"
    assert dataset["odd"].attrs["units"] == "furlongs"
    bare = small()
    del bare["t2m"].attrs["units"]
    assert opened(bare)["t2m"].attrs["units"] == "1"


def test_only_useful_attributes_stay_and_unknown_standard_names_go(opened):
    noisy = small()
    noisy["t2m"].attrs |= {"standard_name": "unknown", "long_name": "2 m temperature", "GRIB_paramId": 167}
    assert opened(noisy)["t2m"].attrs == {"units": "K", "long_name": "2 m temperature"}


def test_static_fields_stay_and_what_is_not_on_the_grid_goes(opened):
    full = small()
    full["orog"] = full["t2m"][0].drop_vars("time")
    full["time_bnds"] = (("time", "bnds"), np.zeros((4, 2)))
    full["crs"] = 0
    full["station"] = ("time", np.array(["a", "b", "c", "d"]))
    full["when"] = full["t2m"].assign_attrs(units="hours since 2000-01-01")
    dataset = opened(full)
    assert set(dataset.data_vars) == {"t2m", "orog"}
    assert dataset["orog"].dims == ("lat", "lon")


def test_an_ensemble_is_left_out_aloud_while_the_rest_is_used(opened, caplog):
    dataset = opened(small().assign(many=small()["t2m"].expand_dims(number=3)))
    assert list(dataset.data_vars) == ["t2m"]
    assert "'many' has more than one value along number (3)" in caplog.text


def test_a_variable_in_seconds_stays_a_number(opened):
    assert opened(small(name="period", units="s"))["period"].dtype == np.float32


def test_nothing_is_read_at_open_time(opened):
    assert not opened(small(lat=(3.0, 2.0, 1.0)))["t2m"].variable._in_memory


# ERA5 as Copernicus delivers it


def test_era5_of_today_loses_number_and_expver(opened):
    era5 = small().assign_coords(number=0, expver=("time", ["0001"] * 3 + ["0005"]))
    assert opened(era5).equals(opened(small()))
    assert opened(small().expand_dims(number=[0], axis=1)).equals(opened(small()))


def test_era5_of_yesterday_mixes_final_and_preliminary(opened):
    late = small()["time"] >= START + 2 * DAY
    mixed = xr.concat([small().where(late) + 100, small().where(~late)], "expver").assign_coords(expver=[5, 1])
    mixed["t2m"].attrs["units"] = "K"
    dataset = opened(mixed)
    assert dataset["t2m"].dims == ("time", "lat", "lon")
    assert dataset["t2m"].values.ravel().tolist() == [*range(12), *range(112, 124)]
    assert dataset["t2m"].attrs["units"] == "K"


# Several files, Zarr


def write_all(folder: Path, **datasets: xr.Dataset) -> list[Path]:
    for name, dataset in datasets.items():
        dataset.to_netcdf(folder / f"{name}.nc")
    return [folder / f"{name}.nc" for name in datasets]


def test_files_of_consecutive_periods_are_joined_in_time_whatever_their_order(tmp_path):
    whole = small(days=6)
    files = write_all(tmp_path, b=whole.isel(time=slice(3, 6)), a=whole.isel(time=slice(0, 3)))
    dataset = open_dataset(files)
    assert dataset["t2m"].values.ravel().tolist() == list(range(36))
    assert dataset.attrs["source"] == "b.nc, a.nc"
    assert dataset["t2m"].chunks is not None


def test_files_of_one_time_each_are_joined(tmp_path):
    whole = small(days=3)
    files = write_all(tmp_path, **{f"day{i}": whole.isel(time=i) for i in range(3)})
    assert open_dataset(files)["t2m"].values.ravel().tolist() == list(range(18))


def test_files_whose_times_interleave_are_joined_in_order(tmp_path):
    whole = small(days=6)
    files = write_all(tmp_path, odd=whole.isel(time=[0, 2, 4]), even=whole.isel(time=[1, 3, 5]))
    assert open_dataset(files)["t2m"].values.ravel().tolist() == list(range(36))


def test_files_by_variable_and_period_are_joined_both_ways(tmp_path):
    both = small(days=4).assign(msl=small(days=4, units="Pa")["t2m"] + 100)
    pieces = {f"{v}{i}": both[[v]].isel(time=slice(2 * i, 2 * i + 2)) for v in both.data_vars for i in range(2)}
    dataset = open_dataset(write_all(tmp_path, **pieces))
    assert set(dataset.data_vars) == {"t2m", "msl"}
    assert dataset["msl"].values.ravel().tolist() == list(range(100, 124))


def test_files_by_level_are_joined(tmp_path):
    levels = with_levels((1000.0, 500.0))
    files = write_all(tmp_path, a=levels.isel(level=[0]), b=levels.isel(level=[1]))
    assert set(open_dataset(files)["level"].values) == {1000, 500}


def test_a_file_of_static_fields_joins_any_other(tmp_path):
    static = small(name="orog", units="m").isel(time=0, drop=True)
    dataset = open_dataset(write_all(tmp_path, a=small(), b=static))
    assert dataset["orog"].dims == ("lat", "lon")
    assert dataset["t2m"].dims == ("time", "lat", "lon")


def test_the_same_static_field_in_every_file_stays_static(tmp_path):
    whole = small(days=4)
    whole["orog"] = whole["t2m"][0].drop_vars("time")
    dataset = open_dataset(write_all(tmp_path, a=whole.isel(time=[0, 1]), b=whole.isel(time=[2, 3])))
    assert dataset["orog"].dims == ("lat", "lon")


def test_a_static_field_may_stand_in_any_file(tmp_path):
    whole = small(days=4)
    last = whole.isel(time=[2, 3]).assign(orog=whole["t2m"][0].drop_vars("time"))
    dataset = open_dataset(write_all(tmp_path, a=whole.isel(time=[0, 1]), b=last))
    assert dataset["orog"].values.tolist() == [[0, 1], [2, 3], [4, 5]]
    assert dataset["t2m"].values.ravel().tolist() == list(range(24))


def test_grids_that_differ_by_rounding_or_by_a_turn_are_the_same(tmp_path):
    whole = small(days=4, lon=(200.0, 210.0))
    west = whole.isel(time=[2, 3]).assign_coords(lon=[-160.00001, -150.0])
    assert open_dataset(write_all(tmp_path, a=whole.isel(time=[0, 1]), b=west))["lon"].values.tolist() == [200, 210]


def test_a_pattern_stands_for_all_its_files_each_once(tmp_path):
    whole = small(days=4)
    write_all(tmp_path, a=whole.isel(time=[0, 1]), b=whole.isel(time=[2, 3]))
    dataset = open_dataset([tmp_path / "*.nc", tmp_path / "a.nc"])
    assert dataset.sizes["time"] == 4


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_a_zarr_folder_is_read(tmp_path, zarr_format):
    pytest.importorskip("zarr")
    small().to_zarr(tmp_path / "x.zarr", zarr_format=zarr_format, consolidated=False)
    dataset = open_dataset([str(tmp_path / "x.zarr")])
    assert dataset["t2m"].values.ravel().tolist() == list(range(24))
    assert dataset["t2m"].chunks is not None


# Mending


def at_days(*days: int) -> xr.Dataset:
    """Fields that hold their place in the file, at these days."""
    return small(days=len(days), lat=(1.0,), lon=(10.0,)).assign_coords(time=START + np.array(days) * DAY)


def values_by_day(dataset: xr.Dataset) -> dict[int, float]:
    days = (dataset["time"].values - START) // DAY
    return dict(zip(days.astype(int).tolist(), dataset["t2m"].values.ravel().tolist()))


@pytest.mark.parametrize(
    ("days", "expected", "unsorted", "duplicates"),
    [
        ((0, 1, 2), {0: 0, 1: 1, 2: 2}, 0, 0),
        ((0, 2, 1), {0: 0, 1: 2, 2: 1}, 1, 0),
        ((0, 1, 1, 2), {0: 0, 1: 1, 2: 3}, 0, 1),
        ((2, 1, 0, 1), {0: 2, 1: 1, 2: 0}, 3, 1),
    ],
)
def test_times_are_sorted_and_the_first_of_two_kept_when_asked(tmp_path, days, expected, unsorted, duplicates):
    at_days(*days).to_netcdf(tmp_path / "x.nc")
    dataset = open_dataset([tmp_path / "x.nc"], mend=True)
    assert not dataset["t2m"].variable._in_memory
    assert values_by_day(dataset) == expected
    assert (dataset.attrs["unsorted_times"], dataset.attrs["duplicate_times"]) == (unsorted, duplicates)


def test_of_files_that_overlap_the_first_counts_when_asked(tmp_path):
    files = write_all(tmp_path, a=at_days(2, 3), b=at_days(1, 0, 0), c=at_days(0, 3, 4))
    dataset = open_dataset(files, mend=True)
    assert values_by_day(dataset) == {0: 1, 1: 0, 2: 0, 3: 1, 4: 2}
    assert (dataset.attrs["unsorted_times"], dataset.attrs["duplicate_times"]) == (2, 3)


def test_files_by_variable_count_what_was_mended_once(tmp_path):
    files = write_all(tmp_path, a=at_days(0, 1, 1), b=at_days(0, 1, 1).rename(t2m="msl"))
    dataset = open_dataset(files, mend=True)
    assert dataset.sizes["time"] == 2
    assert dataset.attrs["duplicate_times"] == 1


# Values that were filled in


def filled(*steps: int, **options) -> xr.Dataset:
    """A file whose field was filled at these steps."""
    dataset = small(**options)
    flag = xr.zeros_like(dataset["t2m"], dtype=np.int8)
    flag[list(steps)] = 1
    flag.attrs = {
        "standard_name": "status_flag",
        "flag_values": np.array([0, 1], np.int8),
        "flag_meanings": "observed filled",
    }
    dataset["t2m"].attrs["ancillary_variables"] = "t2m_filled"
    return dataset.assign(t2m_filled=flag)


@pytest.mark.parametrize("as_coordinate", [False, True])
def test_flags_of_filled_values_travel_as_coordinates(opened, as_coordinate):
    delivered = filled(1, lat=(3.0, 2.0, 1.0)).transpose("lon", "lat", "time")
    delivered["t2m_filled"][0, 0, 2] = 1  # the last row in our order
    dataset = opened(delivered.set_coords("t2m_filled") if as_coordinate else delivered)
    assert list(dataset.data_vars) == ["t2m"]
    flags = dataset["t2m"].coords["t2m_filled"]
    assert flags.dims == ("time", "lat", "lon")
    assert flags.dtype == np.int8
    assert np.argwhere(flags.values[2]).tolist() == [[2, 0]]
    assert flags[:, 0, 0].values.tolist() == [0, 1, 0, 0]
    assert dataset.isel(time=[1])["t2m_filled"].values.all()


def test_a_variable_that_only_sounds_like_a_flag_stays_one(opened):
    plain = small().assign(t2m_filled=small()["t2m"] + 1, other_filled=small()["t2m"] + 2)
    assert set(opened(plain).data_vars) == {"t2m", "t2m_filled", "other_filled"}


def test_a_flag_on_other_dimensions_is_refused(opened):
    odd = filled(1)
    odd["t2m_filled"] = odd["t2m_filled"].expand_dims(sample=2)
    with pytest.raises(DataError, match=r"'t2m_filled' marks values of 't2m', but is on other dimensions \(sample\)"):
        opened(odd)


def test_flags_are_joined_and_files_without_them_were_observed(tmp_path):
    files = write_all(tmp_path, a=small(days=2), b=filled(1, days=2, start=START + 2 * DAY))
    dataset = open_dataset(files)
    assert dataset["t2m_filled"][:, 0, 0].values.tolist() == [0, 0, 0, 1]
    assert list(dataset.data_vars) == ["t2m"]


def test_only_what_was_observed_is_left_and_lazily(opened):
    dataset = opened(filled(1).assign(msl=small(units="Pa")["t2m"]))
    field = observed_only(dataset["t2m"])
    assert field.chunks is not None
    assert np.isnan(field[:, 0, 0].values).tolist() == [False, True, False, False]
    assert field[2].values.ravel().tolist() == list(range(12, 18))
    assert field.attrs["units"] == "K"
    assert "t2m_filled" not in field.coords
    untouched = observed_only(dataset["msl"])
    assert "t2m_filled" not in untouched.coords
    assert not untouched.variable._in_memory
    assert untouched.values.ravel().tolist() == list(range(24))


# What cannot be read


def dates(*texts: str) -> list[np.datetime64]:
    return [np.datetime64(text, "ns") for text in texts]


def curvilinear() -> xr.Dataset:
    mesh = small(lat=(0.0, 1.0), lon=(0.0, 1.0)).rename(lat="y", lon="x").drop_vars(["y", "x"])
    return mesh.assign_coords(lat=(("y", "x"), [[0.0, 1.0], [2.0, 3.5]]), lon=(("y", "x"), [[0.0, 1.0], [0.5, 1.7]]))


def projected() -> xr.Dataset:
    metres = small(lat=(1000.0, 2000.0)).rename(lat="y", lon="x")
    metres["y"].attrs["units"] = metres["x"].attrs["units"] = "m"
    return metres


def undated(units: str | None = None) -> xr.Dataset:
    return small().assign_coords(time=("time", [0, 1, 2, 3], {"units": units} if units else {}))


BAD = {
    "no time": (small().rename(time="a").drop_vars("a"), "no time axis.*a \\(4\\).*called time or valid_time"),
    "no lat": (small().rename(lat="a").drop_vars("a"), "no latitude axis"),
    "no lon": (small().drop_vars("lon"), "no longitude axis: the dimension 'lon' has no coordinate values"),
    "repeated time": (
        small(days=3).assign_coords(time=dates("2001-01-01", "2001-01-02", "2001-01-02")),
        "time 2001-01-02T00:00 occurs twice, at steps 1 and 2; 'convlstm-wx prepare --data ... --output clean.nc'",
    ),
    "unsorted time": (
        small(days=3).assign_coords(time=dates("2001-01-01", "2001-01-03", "2001-01-02")),
        "time is not increasing: 2001-01-02T00:00 \\(step 2\\) comes after 2001-01-03T00:00; 'convlstm-wx prepare",
    ),
    "time without dates": (undated(), "'time' has no dates; needed are units such as.*no units"),
    "time in odd units": (undated("fortnights since yesterday"), "dates of 'time' cannot be understood"),
    "time too early": (undated("days since 0001-01-01"), "'time' holds the years 1 to 1; needed are 1678"),
    "missing time": (
        small().assign_coords(time=dates("2001-01-01", "2001-01-02", "NaT", "2001-01-04")),
        "'time' has a missing value at step 2",
    ),
    "text for time": (small().assign_coords(time=["a", "b", "c", "d"]), "'time' has no dates"),
    "mesh of longitudes elsewhere": (
        curvilinear().assign_coords(lon=(("y", "i"), [[0.0, 1.0], [0.5, 1.7]])),
        "'lat' is on \\(y, x\\), but 'lon' on \\(y, i\\); needed are the same two dimensions",
    ),
    "mesh with gaps": (
        curvilinear().assign_coords(lat=(("y", "x"), [[0.0, np.nan], [2.0, 3.5]])),
        "'lat' has missing values",
    ),
    "mesh in metres": (
        curvilinear().assign_coords(lat=(("y", "x"), [[0.0, 1000.0], [2.0, 3.5]])),
        "'lat' and 'lon' are not in degrees",
    ),
    "one latitude, a mesh of longitudes": (
        curvilinear().drop_vars("lat").assign_coords(lat=("y", [1.0, 2.0])),
        "'lon' is a two-dimensional coordinate: projected or curvilinear grids cannot be used here",
    ),
    "a moving mesh": (
        curvilinear().assign_coords(lat=(("time", "y", "x"), np.arange(16.0).reshape(4, 2, 2))),
        "'lat' changes along 'time': a grid that moves cannot be used",
    ),
    "row numbers": (
        small(lat=(0.0, 1.0, 2.0), lon=(0.0, 1.0)).rename(lat="y", lon="x"),
        "'y' and 'x' only number the rows and columns of the grid; needed are latitudes and longitudes",
    ),
    "metres without units": (
        small(lat=(1000.0, 2000.0)).rename(lat="y", lon="x"),
        "latitudes from 1000 to 2000 in 'y' are not between -90 and 90 degrees; a projected grid needs two-dim",
    ),
    "only static": (
        small().isel(time=0, drop=True).assign_coords(time=small()["time"]),
        "static fields only \\(t2m\\)",
    ),
    "no time on the field": (
        with_levels().isel(time=0, drop=True).assign_coords(time=small()["time"]),
        "'t2m' has some dimensions of the others only",
    ),
    "metres": (
        projected(),
        "no latitude axis: there is one in m, and a projected grid needs two-dimensional latitudes",
    ),
    "text for lat": (small(lat=("a", "b", "c")), "no latitude axis: there is one of the type .*numbers are needed"),
    "one lat": (small().isel(lat=0), "no latitude axis: there is one with 0 dimensions"),
    "lat too large": (small(lat=(100.0, 110.0, 120.0)), "latitudes from 100 to 120.*projected"),
    "lat unsorted": (small(lat=(1.0, 3.0, 2.0)), "latitudes in 'lat' are not sorted or occur twice"),
    "lat missing": (small(lat=(1.0, np.nan, 2.0)), "'lat' has missing values"),
    "lon twice": (small(lon=(10.0, 10.0)), "longitude 10 occurs twice"),
    "lon too large": (small(lon=(10.0, 1000.0)), "longitudes from 10 to 1000"),
    "level twice": (with_levels((500.0, 500.0)), "a level occurs twice in 'level': 500, 500 hPa"),
    "only an ensemble": (
        small().expand_dims(number=3),
        "no variable on \\(time, latitude, longitude\\).*'t2m' has more than one value along number \\(3\\)",
    ),
    "only text": (small().astype(str), "'t2m' holds no numbers"),
    "nothing": (small().drop_vars("t2m"), "there are no variables at all"),
    "no points": (small(lat=()), "'t2m' is empty"),
    "a track": (
        xr.Dataset(
            {"t": ("obs", [1.0])}, {c: ("obs", [START if c == "time" else 1.0]) for c in ("time", "lat", "lon")}
        ),
        "not a grid, as axes share a dimension \\(time along 'obs', lat along 'obs'",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_refused_in_one_line_that_names_the_file(tmp_path, case):
    dataset, fragment = BAD[case]
    dataset.to_netcdf(tmp_path / "bad.nc")
    with pytest.raises(DataError, match=fragment) as raised:
        open_dataset([tmp_path / "bad.nc"])
    assert "bad.nc: " in str(raised.value)
    assert "\n" not in str(raised.value)


def cut_short(path: Path) -> None:
    small(days=200).to_netcdf(path)
    path.write_bytes(path.read_bytes()[:300])


UNREADABLE = {
    "absent": (lambda path: None, "no such file"),
    "text": (lambda path: path.write_text("hello, I am text"), "not a NetCDF file.*hello"),
    "empty": (lambda path: path.touch(), "not a NetCDF file"),
    "cut short": (cut_short, "damaged or cut short"),
    "cut to its mark": (lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n"), "damaged or cut short"),
    "a folder": (lambda path: path.mkdir(), "is a folder without a Zarr store"),
    "a broken Zarr": (
        lambda path: (path.mkdir(), (path / "zarr.json").write_text("{")),
        "cannot be read as a Zarr store",
    ),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_unreadable_files_are_refused_in_one_line(tmp_path, case):
    make, fragment = UNREADABLE[case]
    make(tmp_path / "x.nc")
    for opener in (lambda path: open_dataset([path]), open_forecast):
        with pytest.raises(DataError, match=fragment) as raised:
            opener(tmp_path / "x.nc")
        assert "x.nc" in str(raised.value)
        assert "\n" not in str(raised.value)


def test_a_pattern_without_files_and_no_file_at_all_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"nothing_\*\.nc: no file fits"):
        open_dataset([tmp_path / "nothing_*.nc"])
    with pytest.raises(DataError, match="no data file given"):
        open_dataset([])


MISFITS = {
    "other grid": (small(days=2, lat=(1.0, 2.0)), "b.nc: its lat \\(2 points from 1 to 2\\) differs from that of a.nc"),
    "other place": (small(days=2, lat=(1.0, 2.0, 4.0)), "b.nc: its lat .* differs"),
    "other units": (small(days=2, start=START + 9 * DAY, units="degC"), "b.nc: 't2m' is in degC, but in K in a.nc"),
    "overlap": (
        small(days=2, start=START + 3 * DAY),
        "a.nc and b.nc overlap in time; give each period once, or 'convlstm-wx prepare --data",
    ),
    "other levels": (with_levels((500.0,)), "do not fit together"),
    "another static field": (
        small(start=START + 9 * DAY).assign(orog=small()["t2m"][1].drop_vars("time")),
        "'orog' has no time, and differs between a.nc and b.nc",
    ),
    "other times": (
        small(name="msl", start=START + 9 * DAY),
        "do not fit together.*a.nc has t2m at 4 times",
    ),
}


@pytest.mark.parametrize("case", MISFITS)
def test_files_that_do_not_fit_together_are_refused(tmp_path, case):
    other, fragment = MISFITS[case]
    first = small().assign(orog=small()["t2m"][0].drop_vars("time")) if "orog" in other else small()
    with pytest.raises(DataError, match=fragment) as raised:
        open_dataset(write_all(tmp_path, a=first, b=other))
    assert "\n" not in str(raised.value)


# Forecasts


def forecast(inits=2, leads=3) -> xr.Dataset:
    shape = (inits, leads, 3, 2)
    return xr.Dataset(
        {"t2m": (("init_time", "lead_time", "lat", "lon"), np.arange(np.prod(shape)).reshape(shape) * 1.0)},
        {
            "init_time": START + np.arange(inits) * DAY,
            "lead_time": np.arange(1, leads + 1) * (6 * HOUR).astype("timedelta64[ns]"),
            "lat": [3.0, 2.0, 1.0],
            "lon": [10.0, 20.0],
        },
    )


WB2 = {"init_time": "time", "lead_time": "prediction_timedelta", "lat": "latitude", "lon": "longitude"}


@pytest.mark.parametrize("names", [{}, WB2], ids=["ours", "WeatherBench 2"])
@pytest.mark.parametrize("units", ["hours", "minutes", "nanoseconds"])
def test_forecast_layouts_become_ours(tmp_path, names, units):
    written = forecast().rename(names)
    lead = names.get("lead_time", "lead_time")
    written.to_netcdf(tmp_path / "f.nc", encoding={lead: {"units": units, "dtype": "int64"}})
    opened = open_forecast(tmp_path / "f.nc")
    assert opened["t2m"].dims == ("init_time", "lead_time", "lat", "lon")
    assert opened["t2m"][0, 0].values.tolist() == [[4, 5], [2, 3], [0, 1]]
    assert opened["lead_time"].values.tolist() == forecast()["lead_time"].values.tolist()
    assert opened["valid_time"].values[1, 2] == START + DAY + 18 * HOUR
    assert opened.attrs.items() >= {"source": "f.nc", "lat_descending": 1, **NOTHING_MENDED}.items()


def test_a_forecast_with_levels_and_one_init_time_is_read(tmp_path):
    forecast(inits=1).isel(init_time=0).expand_dims(level=[500.0]).to_netcdf(tmp_path / "f.nc")
    assert open_forecast(tmp_path / "f.nc")["t2m"].dims == ("init_time", "lead_time", "level", "lat", "lon")


BAD_FORECASTS = {
    "no forecast": (small(), "no lead_time axis"),
    "leads without units": (forecast().assign_coords(lead_time=[1, 2, 3]), "'lead_time' has no units of time"),
    "negative lead": (forecast().assign_coords(lead_time=np.array([-1, 1, 2]) * HOUR), "negative lead time"),
    "leads unsorted": (
        forecast().assign_coords(lead_time=np.array([6, 18, 12]) * HOUR),
        "lead_time is not increasing: 12 h",
    ),
    "init repeated": (forecast().assign_coords(init_time=[START, START]), "init_time 2001-01-01T00:00 occurs twice"),
    "an ensemble": (forecast().expand_dims(realization=4), "more than one value along realization \\(4\\)"),
}


@pytest.mark.parametrize("case", BAD_FORECASTS)
def test_bad_forecasts_are_refused(tmp_path, case):
    dataset, fragment = BAD_FORECASTS[case]
    dataset.to_netcdf(tmp_path / "f.nc")
    with pytest.raises(DataError, match=fragment) as raised:
        open_forecast(tmp_path / "f.nc")
    assert str(raised.value).startswith("f.nc: ")


# Steps


def test_the_time_step_is_the_most_common_one():
    times = START + np.array([0, 6, 12, 24, 30]) * HOUR
    assert time_step(times) == 6 * HOUR
    with pytest.raises(DataError, match="1 time step"):
        time_step(times[:1])


@pytest.mark.parametrize(
    ("step", "text"),
    [
        (DAY, "1 d"),
        (6 * HOUR, "6 h"),
        (36 * HOUR, "36 h"),
        (HALF_HOUR, "30 min"),
        (SECOND, "1 s"),
    ],
)
def test_steps_are_told_in_the_largest_unit_that_fits(step, text):
    assert describe_step(step.astype("timedelta64[ns]")) == text


# Real files


@pytest.mark.real_data
def test_every_real_file_is_read_and_plausible(real_data):
    files = sorted(real_data.glob("*.nc"))
    assert len(files) == 7
    for file in files:
        dataset = open_dataset([file])
        assert (np.diff(dataset["lat"]) > 0).all()
        assert (np.diff(dataset["lon"]) > 0).all()
        assert "number" not in dataset.coords
        account = quality.check(dataset, choose_channels(dataset))
        assert account.warnings() == [], file.name
        assert all(channel.meaning for channel in account.channels), file.name


@pytest.mark.real_data
def test_a_real_file_in_halves_is_the_whole(real_data, tmp_path):
    file = real_data / "era5_plev_merapi_6h_202601.nc"
    raw = xr.open_dataset(file)
    raw.isel(valid_time=slice(0, 60)).to_netcdf(tmp_path / "1.nc")
    raw.isel(valid_time=slice(60, None)).to_netcdf(tmp_path / "2.nc")
    assert open_dataset([tmp_path / "*.nc"]).equals(open_dataset([file]))


@pytest.mark.real_data
def test_a_real_file_cut_short_never_leaves_a_traceback(real_data, tmp_path):
    whole = (real_data / "era5_plev_merapi_6h_202601.nc").read_bytes()
    path = tmp_path / "cut.nc"
    for share in (0.001, 0.01, 0.1, 0.5, 0.9, 0.999):
        path.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(DataError, match=r"cut\.nc"):
            quality.check(open_dataset([path]), [Channel("u", 500.0)])
    shutil.copy(real_data / "era5_plev_merapi_6h_202601.nc", path)
    assert open_dataset([path])["u"].shape == (124, 5, 9, 9)
