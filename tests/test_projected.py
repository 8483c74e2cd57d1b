"""Projected grids, all the way: read, cut, remembered, scored, drawn and written.

The grid: 4 rows (y = 0, 10, 20, 30 km), 5 columns; latitude rises by 1 a row and 0.1 a column, longitude by 1 a column
and falls by 0.1 a row. The field counts its columns.
"""

import logging

import numpy as np
import pytest
import xarray as xr

from convlstm_wx.config import TrainConfig
from convlstm_wx.data.inputs import prepare_training
from convlstm_wx.data.reading import is_projected, open_dataset, open_forecast
from convlstm_wx.data.regions import Grid, Region, row_weights, select_region
from convlstm_wx.data.upstream import choose_upstream
from convlstm_wx.errors import DataError
from convlstm_wx.forecast.labelling import to_dataset
from convlstm_wx.forecast.writing import write_forecast
from convlstm_wx.report import plots
from convlstm_wx.report.maps import corners
from convlstm_wx.verification.evaluate import evaluate

DAY = np.timedelta64(24, "h").astype("timedelta64[ns]")
LAT = 40 + np.arange(4.0)[:, None] + 0.1 * np.arange(5.0)
LON = 5 + np.arange(5.0) - 0.1 * np.arange(4.0)[:, None]
KM = {"units": "km"}


def lambert(days: int = 4, lat: np.ndarray = LAT, lon: np.ndarray = LON) -> xr.Dataset:
    """As a file has it."""
    columns = np.broadcast_to(np.arange(5.0), (days, 4, 5)).copy()
    places = {"lat": (("y", "x"), lat), "lon": (("y", "x"), lon)}
    return xr.Dataset(
        {"t2m": (("time", "y", "x"), columns, {"units": "K"})},
        {
            "time": np.datetime64("2001-01-01", "ns") + np.arange(days) * DAY,
            "y": ("y", np.arange(4) * 10.0, {**KM, "standard_name": "projection_y_coordinate"}),
            "x": ("x", np.arange(5) * 10.0, {**KM, "standard_name": "projection_x_coordinate"}),
            **places,
        },
    )


@pytest.fixture
def opened(tmp_path):
    def write_and_open(*datasets: xr.Dataset) -> xr.Dataset:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        for number, dataset in enumerate(datasets):
            dataset.to_netcdf(folder / f"{number}.nc")
        return open_dataset([folder / "*.nc"])

    return write_and_open


def test_it_is_said_when_areas_are_taken_as_equal(opened, caplog):
    with caplog.at_level(logging.INFO):
        dataset = opened(lambert())
    assert "0.nc: a projected grid; its cells are taken as equal in area" in caplog.text
    assert is_projected(dataset)
    assert row_weights(dataset).tolist() == [1, 1, 1, 1]


def test_longitudes_run_on_over_the_date_line(opened):
    seam = np.where(LON + 172.5 > 180, LON + 172.5 - 360, LON + 172.5)
    dataset = opened(lambert(lon=seam))
    assert np.abs(np.diff(dataset["longitude"].values, axis=1) - 1).max() < 1e-9


def test_files_of_several_periods_are_joined_and_other_places_refused(opened):
    later = lambert().assign_coords(time=lambert()["time"].values + 4 * DAY)
    whole = opened(lambert(), later)
    assert whole.sizes["time"] == 8
    assert whole["latitude"].values.tolist() == LAT.tolist()
    with pytest.raises(DataError, match=r"1\.nc: its two-dimensional latitude differs from that of 0\.nc"):
        opened(lambert(), later.assign_coords(lat=later["lat"] + 0.5))


# Regions


def test_a_box_takes_the_smallest_block_that_holds_its_points(opened):
    part = select_region(opened(lambert()), Region(40.9, 42.3, 5.85, 7.05))
    assert part["lat"].values.tolist() == [10, 20]
    assert part["lon"].values.tolist() == [10, 20]
    assert part["t2m"][0].values.tolist() == [[1, 2], [1, 2]]
    assert part["latitude"].values.tolist() == LAT[1:3, 1:3].tolist()


def test_a_box_may_be_written_in_another_convention_of_longitudes(opened):
    turned = select_region(opened(lambert(lon=LON - 8)), Region(40, 44, 358.9, 359.5))
    assert turned["lon"].values.tolist() == [20]


def test_a_box_beside_the_grid_is_refused_and_one_beyond_it_is_cut_aloud(opened, caplog):
    dataset = opened(lambert())
    with pytest.raises(DataError, match=r"no grid points.*covers 40 to 43.4 degrees north and 4.7 to 9 degrees east"):
        select_region(dataset, Region(50, 60, 0, 10))
    select_region(dataset, Region(30, 60, 0, 20))
    assert "reaches beyond the file; taken are 40 to 43.4 degrees north" in caplog.text


@pytest.mark.parametrize(("wind", "columns"), [(5.0, [0, 1]), (-5.0, [3, 4])])
def test_upstream_is_beside_the_block_where_the_wind_comes_from(opened, wind, columns):
    windy = lambert().assign(u10=lambert()["t2m"] * 0 + wind)
    windy["u10"].attrs["units"] = "m s-1"
    dataset = opened(windy)
    box, _ = choose_upstream(dataset, Region(40, 44, 6.7, 7.0), np.ones(4, bool))  # column 2
    assert (box.lat_min, box.lat_max) == (40, 44)
    assert select_region(dataset, box)["t2m"][0, 0].values.tolist() == columns


def test_upstream_is_west_also_where_columns_run_westward(opened):
    mirrored = opened(lambert(lon=LON[:, ::-1]))
    box, _ = choose_upstream(mirrored, Region(40, 44, 6.7, 7.0), np.ones(4, bool))
    assert select_region(mirrored, box)["t2m"][0, 0].values.tolist() == [3, 4]


def test_a_target_at_the_edge_has_no_upstream(opened):
    with pytest.raises(DataError, match="no grid points west of the target region"):
        choose_upstream(opened(lambert()), Region(40, 44, 4, 6), np.ones(4, bool))


# Grid


def test_a_grid_knows_its_places_and_goes_there_and_back(opened):
    grid = Grid.from_dataset(opened(lambert()))
    assert grid.projected
    assert grid.lat == (0, 10, 20, 30)
    assert grid.units == "km"
    assert [places.tolist() for places in grid.places()] == [LAT.tolist(), LON.tolist()]
    assert grid.area_weights().tolist() == [1, 1, 1, 1]
    assert grid.box().as_tuple() == (40, 43.4, 4.7, 9)
    assert Grid.from_dict(grid.to_dict()) == grid


def test_a_plain_grid_has_places_too_and_old_checkpoints_are_understood():
    grid = Grid.from_dict({"lat": [0.0, 1.0], "lon": [5.0, 6.0, 7.0]})
    assert not grid.projected
    assert [places.tolist() for places in grid.places()] == [[[0, 0, 0], [1, 1, 1]], [[5, 6, 7], [5, 6, 7]]]
    assert grid.box() == Region(0, 1, 5, 7)
    assert grid.to_dict() == {"lat": [0.0, 1.0], "lon": [5.0, 6.0, 7.0]}
    assert grid.area_weights().mean() == pytest.approx(1)


def test_grids_differ_by_their_places(opened):
    grid = Grid.from_dataset(opened(lambert()))
    assert grid.differences(Grid.from_dataset(opened(lambert(lon=LON + 360)))) == []
    assert grid != Grid.from_dataset(opened(lambert(lat=LAT + 1)))
    assert grid.differences(Grid.from_dataset(opened(lambert(lat=LAT + 1)))) == [
        "latitudes of the projected grid 41 to 44.4 instead of 40 to 43.4"
    ]
    assert grid.differences(Grid.from_dataset(opened(lambert().isel(x=slice(3))))) == [
        "a projected grid of 4 x 3 points instead of 4 x 5"
    ]
    assert grid.differences(Grid((0.0,), (0.0,))) == ["latitudes and longitudes instead of a projected grid"]


# Scores and figures


@pytest.fixture
def truth(opened) -> xr.Dataset:
    daily = lambert(800)
    daily["t2m"] = daily["t2m"] + 280 + np.random.default_rng(0).standard_normal(daily["t2m"].shape)
    daily["t2m"].attrs["units"] = "K"
    return opened(daily).load()


def forecast_of(truth: xr.Dataset) -> xr.Dataset:
    """Two lead times, right but for the last row, which is 2 K too warm."""
    inits, leads = truth["time"].values[700:760], np.arange(1, 3) * DAY
    valid = xr.DataArray(np.add.outer(inits, leads), dims=("init_time", "lead_time"))
    given = truth.sel(time=valid).drop_vars("time")
    given["t2m"] = given["t2m"] + xr.DataArray([0.0, 0, 0, 2], dims="lat")
    given["t2m"].attrs["units"] = "K"
    return given.assign_coords(init_time=inits, lead_time=leads)


def test_scores_weigh_all_rows_alike_and_say_so(truth):
    scored = evaluate(forecast_of(truth), truth, truth["time"].values[:600])
    np.testing.assert_allclose(scored["rmse"].sel(system="model"), 1.0)  # a quarter of 2 K squared
    assert "cells of a projected grid are taken as equal in area" in scored.attrs["weights"]
    assert scored["latitude"].values.tolist() == LAT.tolist()


def test_a_block_is_scored_against_the_whole_grid(truth):
    block = forecast_of(truth).isel(lat=slice(2, 4), lon=slice(1, 3))
    scored = evaluate(block, truth, truth["time"].values[:600])
    np.testing.assert_allclose(scored["rmse"].sel(system="model"), np.sqrt(2.0))
    assert scored["rmse_map"].sel(system="model").isel(channel=0, lead_time=0).values == pytest.approx(
        np.array([[0, 0], [2, 2]])
    )


@pytest.mark.parametrize(
    ("change", "fragment"),
    [
        (lambda t: t.assign_coords(latitude=t["latitude"] + 0.5), "its projected grid lies up to 0.5 degrees away"),
        (lambda t: t.assign_coords(lat=t["lat"] + 5), "4 of the forecast's 4 lat values are not on its grid"),
        (
            lambda t: t.drop_vars(["latitude", "longitude"]),
            "the forecast is on a projected grid, the truth on latitudes and longitudes",
        ),
    ],
)
def test_another_projected_grid_is_refused(truth, change, fragment):
    with pytest.raises(DataError, match=fragment):
        evaluate(forecast_of(truth), change(truth), truth["time"].values[:600])


def test_figures_show_the_places_and_not_rows_and_columns(truth, tmp_path, monkeypatch):
    drawn = []
    save = plots._save

    def keep(figure, path):
        drawn.append(figure)
        return save(figure, path)

    monkeypatch.setattr(plots, "_save", keep)
    given = forecast_of(truth)
    scored = evaluate(given, truth, truth["time"].values[:600])
    figures = plots.draw_all(tmp_path, given, truth, scored)
    assert all(path.exists() for path in figures.values())
    case, bias = drawn[1], drawn[2]
    for figure in (case, bias):
        low, high = figure.axes[0].get_ylim()
        assert (low, high) == pytest.approx((LAT.min() - 0.55, LAT.max() + 0.55))
    assert "°N" in bias.axes[0].yaxis.get_major_formatter()(41)
    assert "RMSE 1" in [text.get_text() for panel in case.axes for text in panel.texts]


def test_corners_of_cells_are_midway_and_half_a_cell_out():
    assert corners(np.array([[0.0, 1], [0, 1]])).tolist() == [[-0.5, 0.5, 1.5]] * 3
    assert corners(np.array([[1.0]])).tolist() == [[1, 1], [1, 1]]


@pytest.mark.parametrize(("ending", "layout"), [("nc", "cf"), ("zarr", "cf"), ("nc", "wb2")])
def test_forecasts_are_written_on_y_and_x_and_come_back(tmp_path, ending, layout):
    south = lambert(60).isel(y=slice(None, None, -1))  # rows from north to south, as many files have them
    south["t2m"] = south["t2m"] + np.random.default_rng(0).standard_normal(south["t2m"].shape)
    south["t2m"].attrs["units"] = "K"
    south.to_netcdf(tmp_path / "x.nc")
    spec = prepare_training(TrainConfig(data=(str(tmp_path / "x.nc"),), input_steps=2, lead_steps=2)).spec
    inits = south["time"].values[:1]
    steps = np.arange(4.0)[:, None] + np.zeros((1, 2, 1, 4, 5))  # every row holds its own number
    made = to_dataset(spec, inits, steps.astype(np.float32))
    path = tmp_path / f"f.{ending}"
    write_forecast([made], path, inits, layout=layout)
    lat, lon = ("latitude", "longitude") if layout == "wb2" else ("lat", "lon")
    with xr.open_dataset(path) as written:
        name = "2m_temperature" if layout == "wb2" else "t2m"
        assert written[name].dims[-2:] == ("y", "x")
        assert written["y"].values.tolist() == [30, 20, 10, 0]
        assert written["y"].attrs == {"standard_name": "projection_y_coordinate", "units": "km", "axis": "Y"}
        assert {lat, lon} <= set(written[name].coords)
        assert written[lat].values.tolist() == LAT[::-1].tolist()
    back = open_forecast(path)
    assert Grid.from_dataset(back) == spec.target.grid
    rows = back["t2m"].values[0, 0, :, 0]
    assert (np.diff(rows) > 0).all()
