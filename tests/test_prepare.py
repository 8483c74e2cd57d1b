"""Preparing a record: small whole numbers, whose cleaned values are seen by eye, and whole files."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from convlstm_wx.cli import main
from convlstm_wx.data.reading import open_dataset
from convlstm_wx.preparing import cleaning
from convlstm_wx.preparing import prepare as preparing
from convlstm_wx.preparing.cleaning import Rules, plan_field
from tests.region_files import region, write

NAN = np.nan
REAL_FILES = (
    "erainterim_weurope_1p5deg_daily12utc_2000-2008_msl_z500_t850",
    "ncep_air_sig995_na_6h_201301-201406",
    "ncep_iberia_2p5deg_daily_1961-2008_TQZ3lev_t2m_slp_tp",
    "era5_morocco_0p25deg_daily12utc_202401-09_t2m_tp",
    "era5_5var_telangana_1h_20230901-07",
    "era5_plev_merapi_6h_202601",
    "imd_india_1deg_daily_1991-2000_tmax_tmin",
)


# Units and bounds


@pytest.mark.parametrize(
    ("name", "own", "wanted", "value", "result"),
    [
        ("t2m", "K", "degC", 283.15, 10),
        ("tp", "m", "mm", 0.003, 3),
        ("tp", "m", "kg m-2", 0.003, 3),
        ("msl", "Pa", "hPa", 101300, 1013),
        ("t2m", "K", "C", 283.15, 10),
        ("pr", "kg m-2 s-1", "mm/day", 1 / 86_400, 1),
    ],
)
def test_units_are_converted(name, own, wanted, value, result):
    plan = plan_field(name, {"units": own}, Rules(units={name: wanted}))
    values, _ = cleaning.convert_and_bound(np.array([value, NAN]), plan)
    assert plan.units == {"C": "degC", "mm/day": "mm d-1"}.get(wanted, wanted)
    np.testing.assert_allclose(values, [result, NAN])


def test_what_is_outside_of_the_bounds_or_infinite_is_missing():
    plan = plan_field("x", {"units": "1"}, Rules(bounds={"x": (2, 5)}))
    values, counts = cleaning.convert_and_bound(np.array([1, 2, 3, 5, 6, np.inf, NAN]), plan)
    np.testing.assert_equal(values, [NAN, 2, 3, 5, NAN, NAN, NAN])
    assert (counts.values, counts.missing, counts.infinite, counts.outside) == (7, 1, 1, 2)


def test_bounds_are_the_plausible_ones_in_the_units_of_the_output_unless_kept():
    attrs = {"units": "K"}
    celsius = Rules(units={"t2m": "degC"})
    values, _ = cleaning.convert_and_bound(np.array([9999.0, 283.15]), plan_field("t2m", attrs, celsius))
    np.testing.assert_allclose(values, [NAN, 10])
    kept = plan_field("t2m", attrs, Rules(keep_implausible=True))
    values, _ = cleaning.convert_and_bound(np.array([9999, np.inf]), kept)
    np.testing.assert_equal(values, [9999, NAN])


def test_rain_just_below_zero_is_zero_and_far_below_is_missing():
    values, counts = cleaning.convert_and_bound(
        np.array([-1e-9, -1.0, 0.001], np.float32), plan_field("tp", {"units": "m"}, Rules())
    )
    np.testing.assert_equal(values, np.array([0, NAN, 0.001], np.float32))
    assert (counts.rounded, counts.outside) == (1, 1)


@pytest.mark.parametrize(
    ("dtype", "kept"), [("float32", "float32"), ("float64", "float64"), (">f4", "float32"), ("int32", "float64")]
)
def test_the_float_type_is_kept(dtype, kept):
    values, _ = cleaning.convert_and_bound(np.array([1, 2], dtype), plan_field("x", {"units": "1"}, Rules()))
    assert values.dtype == np.dtype(kept)
    assert values.tolist() == [1, 2]


# Coarser grids


def test_a_coarse_point_is_the_mean_of_its_points():
    grid = np.arange(16.0).reshape(4, 4)
    assert cleaning.coarsen(grid, np.ones(4), 2).tolist() == [[2.5, 4.5], [10.5, 12.5]]
    assert cleaning.coarsen_axis(np.array([0.0, 1, 2, 3, 4]), 2).tolist() == [0.5, 2.5]


def test_larger_areas_weigh_more():
    assert cleaning.coarsen(np.array([[0.0, 0], [4, 4]]), np.array([1.0, 3]), 2).tolist() == [[3]]


def test_a_coarse_point_needs_half_of_its_weight():
    half = np.array([[1.0, NAN], [3, NAN]])
    assert cleaning.coarsen(half, np.ones(2), 2).tolist() == [[2]]
    assert np.isnan(cleaning.coarsen(np.array([[1.0, NAN], [NAN, NAN]]), np.ones(2), 2)).all()
    lopsided = np.array([[1.0, 1], [NAN, NAN]])
    assert np.isnan(cleaning.coarsen(lopsided, np.array([1.0, 1.1]), 2)).all()
    assert cleaning.coarsen(lopsided, np.array([1.1, 1.0]), 2).tolist() == [[1]]


def test_points_left_over_are_dropped_in_the_north_and_east():
    assert cleaning.coarsen(np.arange(9.0).reshape(3, 3), np.ones(3), 2).tolist() == [[2]]


# Filling


def line(*values: float) -> np.ndarray:
    return np.array(values, float)[:, None, None]


def filled_in_time(values: np.ndarray, most: int, stretches=None) -> list[float]:
    stretches = np.zeros(len(values), int) if stretches is None else np.array(stretches)
    marks = cleaning.fill_time(values, stretches, most)
    assert marks.ravel().tolist() == (marks & ~np.isnan(values)).ravel().tolist()
    return values.ravel().tolist()


def test_the_last_observed_value_is_held_as_long_as_asked():
    np.testing.assert_equal(filled_in_time(line(0, NAN, 2, NAN, NAN, 5), 1), [0, 0, 2, 2, NAN, 5])
    assert filled_in_time(line(0, NAN, 2, NAN, NAN, 5), 2) == [0, 0, 2, 2, 2, 5]


def test_nothing_is_filled_before_the_first_value():
    np.testing.assert_equal(filled_in_time(line(NAN, 1, NAN, 3, NAN), 3), [NAN, 1, 1, 3, 3])


def test_what_is_filled_knows_nothing_of_what_comes_later():
    values = np.random.default_rng(0).normal(size=(40, 3, 2))
    values[np.random.default_rng(1).random(values.shape) < 0.4] = NAN
    whole = values.copy()
    cleaning.fill_time(whole, np.zeros(40, int), 2)
    for end in range(1, 40):
        known = values[:end].copy()
        cleaning.fill_time(known, np.zeros(end, int), 2)
        np.testing.assert_equal(known, whole[:end])


def test_nothing_is_held_over_an_irregular_step():
    np.testing.assert_equal(filled_in_time(line(0, NAN, 2, NAN, 4), 2, [0, 0, 0, 1, 1]), [0, 0, 2, NAN, 4])


def test_stretches_end_where_the_step_is_another():
    days = np.array(["2001-01-01", "2001-01-02", "2001-01-03", "2001-01-06", "2001-01-07"], "datetime64[ns]")
    assert cleaning.regular_stretches(days).tolist() == [0, 0, 0, 1, 1]


def test_each_point_is_filled_by_itself():
    values = np.array([[[0.0, 10]], [[NAN, 20]], [[4, NAN]]])
    marks = cleaning.fill_time(values, np.zeros(3, int), 1)
    np.testing.assert_equal(values, [[[0, 10]], [[0, 20]], [[4, 20]]])
    assert marks.tolist() == [[[False, False]], [[True, False]], [[False, True]]]


def test_space_is_filled_inwards_as_far_as_asked():
    field = np.array([[1.0, NAN, NAN, NAN, NAN]])
    marks = cleaning.fill_space(field, 2)
    np.testing.assert_equal(field, [[1, 1, 1, NAN, NAN]])
    assert marks.tolist() == [[False, True, True, False, False]]


def test_a_filled_point_is_the_mean_of_its_eight_neighbours():
    field = np.array([[1.0, 1, 1], [1, NAN, 1], [1, 1, 9]])
    cleaning.fill_space(field, 1)
    assert field[1, 1] == 2


def test_a_field_without_values_stays_without():
    field = np.full((2, 3, 3), NAN)
    assert not cleaning.fill_space(field, 5).any()


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 30])
def test_the_cut_into_stretches_changes_nothing(tmp_path, monkeypatch, rows):
    source = region(days=30, height=4, width=5)
    values = source["t2m"].values
    values[np.random.default_rng(0).random(values.shape) < 0.4] = NAN
    data = write(source, tmp_path / "gaps.nc")
    more = ["--fill-time", "2", "--fill-space", "1", "--coarsen", "2"]
    assert prepare(data, tmp_path / "whole.nc", *more) == 0
    monkeypatch.setattr(preparing, "_BLOCK_BYTES", 8 * 4 * 5 * rows)
    assert prepare(data, tmp_path / "cut.nc", *more) == 0
    with xr.open_dataset(tmp_path / "whole.nc") as whole, xr.open_dataset(tmp_path / "cut.nc") as cut:
        xr.testing.assert_equal(whole.load(), cut.load())
        assert whole.attrs["prepare_counts"] == cut.attrs["prepare_counts"]
        assert whole["t2m_filled"].values.any()


# Whole files


def prepare(data: Path | str, output: Path, *more: str) -> int:
    return main(["prepare", "--data", str(data), "--output", str(output), *more])


def same_values(one: xr.Dataset, other: xr.Dataset) -> None:
    assert set(one.data_vars) == set(other.data_vars)
    for name in [*one.data_vars, *one.dims]:
        np.testing.assert_array_equal(one[name].values, other[name].values, err_msg=str(name))
        assert one[name].dtype == other[name].dtype
    for name in one.data_vars:
        assert one[name].attrs["units"] == other[name].attrs["units"]
        assert one[name].dims == other[name].dims


@pytest.mark.parametrize("ending", ["nc", "zarr"])
def test_where_nothing_is_wrong_nothing_changes(tmp_path, capsys, ending):
    source = region(days=40, levels=(850, 500))
    source["orog"] = (("lat", "lon"), np.arange(63.0).reshape(7, 9), {"units": "m"})
    data = write(source, tmp_path / "region.nc")
    assert prepare(data, tmp_path / f"clean.{ending}") == 0
    before, after = open_dataset([data]), open_dataset([tmp_path / f"clean.{ending}"])
    same_values(before, after)
    assert before.attrs["lat_descending"] == after.attrs["lat_descending"] == 1
    assert capsys.readouterr().out.count("nothing changed; missing 0 %") == 4


@pytest.mark.real_data
@pytest.mark.slow
@pytest.mark.parametrize("name", REAL_FILES)
@pytest.mark.parametrize("ending", ["nc", "zarr"])
def test_real_files_are_the_same_afterwards(real_data, tmp_path, name, ending):
    assert prepare(real_data / f"{name}.nc", tmp_path / f"clean.{ending}") == 0
    same_values(open_dataset([real_data / f"{name}.nc"]), open_dataset([tmp_path / f"clean.{ending}"]))


@pytest.mark.real_data
def test_a_real_coast_is_filled_and_marked(real_data, tmp_path, capsys):
    data = real_data / "imd_india_1deg_daily_1991-2000_tmax_tmin.nc"
    assert prepare(data, tmp_path / "clean.nc", "--start", "1991", "--end", "1991-03", "--fill-space", "1") == 0
    with xr.open_dataset(tmp_path / "clean.nc") as made, xr.open_dataset(data) as own:
        before, after = np.isnan(own["tmax"][:90].values), np.isnan(made["tmax"].values)
        assert made["tmax_filled"].values.sum() == before.sum() - after.sum() > 0
        assert not made["tmax_filled"].values[~before].any()
    assert "filled in space" in capsys.readouterr().out


def test_filled_values_are_marked_as_cf_asks(tmp_path):
    source = region(days=10)
    source["t2m"][3, 2, 2] = NAN
    data = write(source, tmp_path / "gaps.nc")
    for name in ("clean.nc", "clean.zarr"):
        assert prepare(data, tmp_path / name, "--fill-time", "1") == 0
    with xr.open_dataset(tmp_path / "clean.nc") as made, xr.open_zarr(tmp_path / "clean.zarr") as other:
        xr.testing.assert_equal(made.load(), other.load())
        marks = made["t2m_filled"]
        assert marks.dtype == np.int8
        assert other["t2m_filled"].dtype == np.int8
        assert marks.dims == made["t2m"].dims
        assert np.argwhere(marks.values).tolist() == [[3, 2, 2]]
        assert made["t2m"].attrs["ancillary_variables"] == "t2m_filled"
        assert marks.attrs["standard_name"] == "status_flag"
        assert marks.attrs["flag_values"].tolist() == [0, 1]
        assert marks.attrs["flag_values"].dtype == np.int8
        assert marks.attrs["flag_meanings"] == "observed filled"
        assert float(made["t2m"][3, 2, 2]) == pytest.approx(float(source["t2m"][2, 2, 2]), rel=1e-6)


def test_marks_outlive_a_second_preparation(tmp_path):
    source = region(days=10)
    source["t2m"][3, 2, 2] = NAN
    write(source, tmp_path / "gaps.nc")
    prepare(tmp_path / "gaps.nc", tmp_path / "once.nc", "--fill-time", "1")
    prepare(tmp_path / "once.nc", tmp_path / "twice.nc")
    prepare(tmp_path / "once.nc", tmp_path / "coarse.nc", "--coarsen", "2")
    with xr.open_dataset(tmp_path / "twice.nc") as twice, xr.open_dataset(tmp_path / "coarse.nc") as coarse:
        assert np.argwhere(twice["t2m_filled"].values).tolist() == [[3, 2, 2]]
        assert coarse["t2m_filled"].values.sum() == 1
        assert set(twice.data_vars) == {"t2m", "tp", "t2m_filled", "tp_filled"}


def test_part_units_bounds_and_provenance(tmp_path, capsys):
    source = region(days=60, levels=(850, 500))
    source["t2m"][0, 0, 0] = 9999
    data = write(source, tmp_path / "region.nc")
    chosen = "--variables t2m tp z --levels 500 --region 50 58 -6 2 --start 2001-01 --end 2001-01-31"
    changes = "--units t2m=degC tp=mm --bounds tp=:1"
    assert prepare(data, tmp_path / "clean.nc", *chosen.split(), *changes.split()) == 0
    with xr.open_dataset(tmp_path / "clean.nc") as made:
        assert made.sizes == {"time": 31, "level": 1, "lat": 5, "lon": 5}
        assert made["lat"].values[0] > made["lat"].values[-1]
        part = source.sel(lat=slice(58, 50), lon=slice(-6, 2)).isel(time=slice(31))
        np.testing.assert_allclose(made["t2m"], part["t2m"].values - 273.15, atol=1e-4)
        rain = part["tp"].values * 1000
        np.testing.assert_allclose(made["tp"], np.where(rain > 1, NAN, rain), rtol=1e-5)
        assert made["t2m"].attrs["units"] == "degC"
        assert made["t2m"].attrs["standard_name"] == "air_temperature"
        assert made.attrs["Conventions"] == "CF-1.11"
        assert [made[name].attrs["axis"] for name in ("time", "level", "lat", "lon")] == ["T", "Z", "Y", "X"]
        counts = json.loads(made.attrs["prepare_counts"])
        assert counts["tp"]["outside"] == int((rain > 1).sum()) > 0
        assert json.loads(made.attrs["prepare_options"])["units"] == {"t2m": "degC", "tp": "mm"}
        assert made.attrs["source"] == "region.nc"
        assert str(tmp_path) not in str(made.attrs)
    said = capsys.readouterr().out
    assert "tp         m to mm; " in said
    assert "above 1 mm made missing" in said


def test_order_and_duplicates_are_mended_and_told(tmp_path, capsys):
    source = region(days=6)
    data = write(source.isel(time=[1, 0, 2, 2, 3, 4, 5]), tmp_path / "muddled.nc")
    assert prepare(data, tmp_path / "clean.nc") == 0
    with xr.open_dataset(tmp_path / "clean.nc") as made:
        np.testing.assert_array_equal(made["time"], source["time"])
        np.testing.assert_array_equal(made["t2m"], source["t2m"])
    said = capsys.readouterr().out
    assert "now sorted" in said
    assert "times      1 out of order, now sorted; 1 repeated, left out\n" in said


def test_coarsening_reaches_the_axes_the_static_fields_and_the_account(tmp_path, capsys):
    source = region(days=5)
    source["orog"] = (("lat", "lon"), np.broadcast_to(np.arange(9.0), (7, 9)).copy(), {"units": "m"})
    data = write(source, tmp_path / "region.nc")
    assert prepare(data, tmp_path / "clean.nc", "--coarsen", "2") == 0
    with xr.open_dataset(tmp_path / "clean.nc") as made:
        assert made["lat"].values.tolist() == [57, 53, 49]
        assert made["lon"].values.tolist() == [-9, -5, -1, 3]
        np.testing.assert_allclose(made["orog"][0], [0.5, 2.5, 4.5, 6.5])
    said = capsys.readouterr().out
    assert "2 x 2 points to one: 3 x 4 points; rows and columns left over and dropped: 1 in the north, 1 in the" in said


@pytest.mark.parametrize("ending", ["nc", "zarr"])
def test_a_projected_grid_keeps_its_rows_and_places(tmp_path, ending):
    values = np.arange(5 * 4 * 6.0).reshape(5, 4, 6)
    lat, lon = np.meshgrid(np.arange(53.0, 49, -1), np.arange(6.0), indexing="ij")
    source = xr.Dataset(
        {"t2m": (("time", "y", "x"), values + 200, {"units": "K"})},
        coords={
            "time": np.datetime64("2001-01-01", "ns") + np.arange(5) * np.timedelta64(1, "D"),
            "y": ("y", np.arange(40e3, 0, -10e3), {"units": "m", "standard_name": "projection_y_coordinate"}),
            "x": ("x", np.arange(6) * 10e3, {"units": "m", "standard_name": "projection_x_coordinate"}),
            "latitude": (("y", "x"), lat + lon / 10, {"units": "degrees_north"}),
            "longitude": (("y", "x"), lon - lat / 10, {"units": "degrees_east"}),
        },
    )
    data, output = write(source, tmp_path / "region.nc"), tmp_path / f"clean.{ending}"
    assert prepare(data, output) == 0
    before, after = open_dataset([data]), open_dataset([output])
    same_values(before, after)
    for place in ("latitude", "longitude"):
        np.testing.assert_array_equal(before[place], after[place])
    assert prepare(data, tmp_path / f"coarse.{ending}", "--coarsen", "2") == 0
    coarse = open_dataset([tmp_path / f"coarse.{ending}"])
    assert coarse["t2m"][0].values.ravel().tolist() == [215.5, 217.5, 219.5, 203.5, 205.5, 207.5]  # areas are equal
    assert coarse["latitude"].shape == (2, 3)


@pytest.mark.parametrize("ending", ["nc", "zarr"])
def test_an_existing_output_is_replaced_only_when_asked(tmp_path, capsys, ending):
    data, output = write(region(days=5), tmp_path / "region.nc"), tmp_path / f"clean.{ending}"
    assert prepare(data, output) == 0
    assert prepare(data, output, "--variables", "tp") == 2
    assert "exists already" in capsys.readouterr().err
    assert "t2m" in open_dataset([output])
    assert prepare(data, output, "--variables", "tp", "--overwrite") == 0
    assert "t2m" not in open_dataset([output])


@pytest.mark.parametrize("how", ["file", "glob", "link"])
def test_an_input_is_never_replaced(tmp_path, capsys, how):
    data = write(region(days=5), tmp_path / "region.nc")
    before = data.read_bytes()
    (tmp_path / "link.nc").symlink_to(data)
    given = {"file": data, "glob": tmp_path / "reg*.nc", "link": tmp_path / "link.nc"}[how]
    assert prepare(given, data, "--overwrite") == 2
    assert "is an input" in capsys.readouterr().err
    assert data.read_bytes() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--variables rain", "no variable rain; the file has"),
        ("--variables orog", "these have no time"),
        ("--levels 500", "no level 500 hPa"),
        ("--units t2m=mm", "'t2m' is in 'K', which cannot be converted to 'mm'"),
        ("--units t2m=banana", "cannot be converted to 'banana'"),
        ("--units rain=mm", "no variable rain in region.nc; there are t2m, tp, orog"),
        ("--units t2m", "--units t2m: write VAR=UNIT, such as t2m=degC"),
        ("--units t2m=K t2m=degC", "'t2m' is given twice"),
        ("--bounds t2m=5", "write LOW:HIGH"),
        ("--bounds t2m=5:1", "the first number must be the smaller one"),
        ("--bounds t2m=a:b", "write LOW:HIGH"),
        ("--bounds wind=1:2", "no variable wind"),
        ("--bounds t2m=1000:2000", "all values of 't2m' lie outside of that, so that none would be left"),
        ("--coarsen 8", "the grid has only 7 x 9 points"),
        ("--region 60 50 0 1", "LAT_MIN LAT_MAX"),
        ("--region 70 80 0 1", "-10 to 6 by 2 degrees east. Check --region.\n"),
        ("--start 2030", "no times between 2030 and its end; it covers 2001-01-01T00:00"),
        ("--start soon", "--start soon: is not a time"),
        ("--start 2001-01-05 --end 2001-01-02", "is before --start"),
        ("--output region.nc/clean.nc", "region.nc: cannot be written (it is a file); choose another folder"),
        ("--output clean.grib", "must end in .nc or .zarr"),
        ("--data nowhere.nc", "no such file"),
        ("--dask-scheduler nonsense", "no scheduler answers there"),
    ],
)
def test_mistakes_are_told_in_one_line_and_leave_nothing(tmp_path, monkeypatch, capsys, options, message):
    source = region(days=8).assign(orog=(("lat", "lon"), np.zeros((7, 9)), {"units": "m"}))
    write(source, tmp_path / "region.nc")
    monkeypatch.chdir(tmp_path)
    assert main(["prepare", "--data", "region.nc", "--output", "clean.nc", *options.split()]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["region.nc"]


@pytest.mark.parametrize("option", ["--data", "--output", "--variables", "--start", "--end", "--dask-scheduler"])
def test_an_empty_text_is_none(tmp_path, capsys, option):
    data = write(region(days=8), tmp_path / "region.nc")
    with pytest.raises(SystemExit) as stopped:
        prepare(data, tmp_path / "clean.nc", option, "")
    assert stopped.value.code == 2
    assert f"argument {option}: is empty" in capsys.readouterr().err


@pytest.mark.parametrize("output", ["region.zarr", "region.zarr/clean.nc", "outer.zarr"])
def test_a_store_that_is_read_is_not_written_to(tmp_path, monkeypatch, capsys, output):
    monkeypatch.chdir(tmp_path)
    region(days=8).to_zarr("region.zarr", zarr_format=2)
    region(days=8).to_zarr("outer.zarr", zarr_format=2)
    write(region(days=8), tmp_path / "outer.zarr" / "inner.nc")
    data = "outer.zarr/inner.nc" if output == "outer.zarr" else f"file://{tmp_path}/region.zarr"
    before = sorted(tmp_path.rglob("*"))
    assert prepare(data, Path(output), "--overwrite") == 2
    assert "an input of this command; choose another name" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_numbers_are_written_as_everywhere(tmp_path, capsys):
    source = region(days=1200)
    source["t2m"][:40] = np.nan
    source["t2m"][100, 0, 0] = -999
    data = write(source, tmp_path / "region.nc")
    assert prepare(data, tmp_path / "a b.nc") == 0
    said = capsys.readouterr().out
    assert "region.nc: 1,200 times, one each 1 d, " in said
    assert "t2m        1 (0.00137 %) outside of 170 to 340 K made missing; missing 3.33 %" in said
    assert f"next: convlstm-wx train --data '{tmp_path}/a b.nc'\n" in said
    assert prepare(data, tmp_path / "b.nc", "--start", "2001-06-01", "--end", "2001-06-01") == 0
    assert "region.nc: 1 time, from 2001-06-01T00:00" in capsys.readouterr().out


@pytest.mark.parametrize("ending", ["nc", "zarr"])
def test_what_the_source_says_of_itself_is_kept(tmp_path, ending):
    own = {
        "license": "CC BY 4.0", "source": "ERA5", "history": "made", "geospatial_lat_min": "-90",
        "Conventions": "CF-1.6", "title": "x/ü", "number": 1,
    }  # fmt: skip
    data = write(region(days=8).assign_attrs(own), tmp_path / "region.nc")
    output = tmp_path / f"clean.{ending}"
    assert prepare(data, output, "--region", "50", "60", "-10", "0", "--fill-time", "1", "--keep-implausible") == 0
    with xr.open_dataset(output) as made:
        assert (made.attrs["license"], made.attrs["source"], made.attrs["title"]) == ("CC BY 4.0", "ERA5", "x/ü")
        newest, oldest = made.attrs["history"].splitlines()
        assert newest.endswith("prepare, from region.nc")
        assert oldest == "made"
        assert made.attrs["Conventions"] == "CF-1.11"
        assert "geospatial_lat_min" not in made.attrs
        options = json.loads(made.attrs["prepare_options"])
        assert (options["fill_time"], options["keep_implausible"]) == (1, True)


def test_licences_of_several_files_are_all_kept(tmp_path):
    for name, licence in (("t2m", "CC BY"), ("tp", "public domain")):
        write(region(days=8)[[name]].assign_attrs(license=licence, institution="ECMWF"), tmp_path / f"{name}.nc")
    assert prepare(tmp_path / "t*.nc", tmp_path / "clean.nc") == 0
    with xr.open_dataset(tmp_path / "clean.nc") as made:
        assert made.attrs["license"].splitlines() == ["CC BY", "public domain"]
        assert made.attrs["institution"] == "ECMWF"


def test_one_open_bound_is_valid_json(tmp_path):
    data = write(region(days=8), tmp_path / "region.nc")
    assert prepare(data, tmp_path / "clean.nc", "--bounds", "tp=:0.003") == 0
    with xr.open_dataset(tmp_path / "clean.nc") as made:
        assert "Infinity" not in made.attrs["prepare_options"]


def test_a_variable_in_wrong_units_is_not_thrown_away(tmp_path, capsys):
    source = region(days=8)
    source["t2m"] = (source["t2m"] - 273.15).assign_attrs(units="K")
    data = write(source, tmp_path / "region.nc")
    assert prepare(data, tmp_path / "clean.nc") == 2
    said = capsys.readouterr().err
    assert "100 % of 't2m' lie outside of the plausible range 170 to 340 K; is it really in K?" in said
    assert not (tmp_path / "clean.nc").exists()
    assert prepare(data, tmp_path / "clean.nc", "--keep-implausible") == 0


def test_several_files_and_stores_are_one_record(tmp_path):
    source = region(days=40)
    parts = [source.isel(time=slice(0, 15)), source.isel(time=slice(15, 40))]
    files = [str(write(part, tmp_path / f"{index}.nc")) for index, part in enumerate(parts)]
    write(source, tmp_path / "whole.nc")
    assert main(["prepare", "--data", *files, "--output", str(tmp_path / "joined.zarr")]) == 0
    assert prepare(tmp_path / "joined.zarr", tmp_path / "again.nc") == 0
    same_values(open_dataset([tmp_path / "whole.nc"]), open_dataset([tmp_path / "again.nc"]))


def test_a_file_that_is_cut_short_leaves_nothing_half_written(tmp_path, capsys):
    data = write(region(days=2000), tmp_path / "region.nc")
    data.write_bytes(data.read_bytes()[:-50_000])
    assert prepare(data, tmp_path / "clean.nc") == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["region.nc"]


# A cluster


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["nc", "zarr"])
def test_a_cluster_gives_the_same_file(tmp_path, monkeypatch, ending):
    distributed = pytest.importorskip("distributed")
    source = region(days=60)
    source["t2m"].values[np.random.default_rng(0).random(source["t2m"].shape) < 0.1] = NAN
    write(source, tmp_path / "region.nc")
    monkeypatch.chdir(tmp_path)  # the workers must find a file that is named relative to where we are
    monkeypatch.setattr(preparing, "_BLOCK_BYTES", 8 * 7 * 9 * 4)
    more = ["--fill-time", "2", "--units", "tp=mm"]
    assert prepare("region.nc", Path(f"here.{ending}"), *more) == 0
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster:
        there = prepare("region.nc", Path(f"there.{ending}"), *more, "--dask-scheduler", cluster.scheduler_address)
    assert there == 0
    open_any = xr.open_zarr if ending == "zarr" else xr.open_dataset
    with open_any(f"here.{ending}") as here, open_any(f"there.{ending}") as there:
        xr.testing.assert_equal(here.load(), there.load())
        assert here.attrs["prepare_counts"] == there.attrs["prepare_counts"]


def test_a_scheduler_without_workers_is_told(tmp_path, monkeypatch, capsys):
    distributed = pytest.importorskip("distributed")
    from convlstm_wx.preparing import cluster as ours

    monkeypatch.setattr(ours, "_WAIT_S", 0.5)
    data = write(region(days=5), tmp_path / "region.nc")
    with distributed.LocalCluster(n_workers=0, processes=False, dashboard_address=None) as cluster:
        assert prepare(data, tmp_path / "clean.nc", "--dask-scheduler", cluster.scheduler_address) == 2
    assert "has no workers" in capsys.readouterr().err


def test_an_address_where_nobody_listens_is_told_in_seconds(tmp_path, monkeypatch, capsys):
    pytest.importorskip("distributed")
    from convlstm_wx.preparing import cluster as ours

    monkeypatch.setattr(ours, "_WAIT_S", 0.5)
    data = write(region(days=5), tmp_path / "region.nc")
    assert prepare(data, tmp_path / "clean.nc", "--dask-scheduler", "tcp://127.0.0.1:1") == 2
    assert "no scheduler answers there" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["region.nc"]


def test_without_the_package_the_extra_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "distributed", None)
    data = write(region(days=5), tmp_path / "region.nc")
    assert prepare(data, tmp_path / "clean.nc", "--dask-scheduler", "tcp://127.0.0.1:1") == 2
    assert "pip install 'convlstm_wx[cluster]'" in capsys.readouterr().err


# Memory

# On Linux ru_maxrss begins with the peak of the process that starts this one; VmHWM is the process's own.
_MEASURE = """
import pathlib, re, resource, sys
from convlstm_wx.cli import main
code = main(sys.argv[1:])
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)
status = pathlib.Path("/proc/self/status")
if status.exists():
    peak = int(re.search(r"VmHWM:\\s+(\\d+)", status.read_text())[1]) / 1e3
print("peak_mb", peak)
sys.exit(code)
"""


def peak_megabytes(*arguments: str) -> float:
    """The peak resident set of a command in a process of its own."""
    done = subprocess.run([sys.executable, "-c", _MEASURE, *arguments], capture_output=True, text=True, check=True)
    return float(done.stdout.split("peak_mb")[1])


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["nc", "zarr"])
def test_a_longer_record_needs_no_more_memory(tmp_path, ending):
    """320 MB of values are prepared in hardly more memory than 96 MB of them."""
    peaks = []
    for times in (6_000, 20_000):
        data = tmp_path / f"{times}.nc"
        values = np.zeros((times, 50, 80), np.float32) + np.arange(times, dtype=np.float32)[:, None, None] % 50
        values[::7, 3] = NAN
        axes = {"lat": np.linspace(30, 60, 50), "lon": np.linspace(0, 40, 80)}
        hours = np.datetime64("2000-01-01", "ns") + np.arange(times) * np.timedelta64(1, "h")
        source = xr.Dataset({"x": (("time", "lat", "lon"), values, {"units": "1"})}, coords={"time": hours} | axes)
        source.to_netcdf(data, encoding={"x": {"chunksizes": (100, 50, 80)}})
        del values, source
        more = ["--fill-time", "2", "--fill-space", "1", "--output", str(tmp_path / f"{times}_clean.{ending}")]
        peaks.append(peak_megabytes("prepare", "--data", str(data), *more))
    print(f"peak resident set, MB: {peaks[0]:.0f} for 96 MB of values, {peaks[1]:.0f} for 320 MB")
    assert peaks[1] < peaks[0] + 100
