import numpy as np
import pytest
import xarray as xr

from convlstm_wx.data.reading import open_dataset
from convlstm_wx.data.regions import Grid, Region, area_weights, select_region
from convlstm_wx.data.upstream import choose_upstream
from convlstm_wx.errors import ConfigError, DataError

TIMES = np.datetime64("2001-01-01", "ns") + np.arange(4) * np.timedelta64(1, "D")
ALL = np.ones(4, bool)


def field(lat, lon, **variables) -> xr.Dataset:
    """Each column holds its own number 0, 1, 2 ..., so that a wrong one is seen."""
    columns = np.broadcast_to(np.arange(len(lon), dtype=float), (4, len(lat), len(lon)))
    dims = ("time", "lat", "lon")
    fields = {"t2m": (dims, columns, {"units": "K"})}
    fields |= {
        name: (dims, np.full(columns.shape, value, float), {"units": "m s-1"}) for name, value in variables.items()
    }
    coords = {"time": TIMES, "lat": np.array(lat, float), "lon": np.array(lon, float)}
    return xr.Dataset(fields, coords, {"source": "x.nc", "lat_descending": 0})


GLOBE_0_360 = np.arange(0, 360, 10)
GLOBE_180 = np.arange(-180, 180, 10)
EUROPE = np.arange(-20, 21, 10)


@pytest.mark.parametrize(
    ("lon", "box", "expected", "columns"),
    [
        (EUROPE, (-10, 10), [-10, 0, 10], [1, 2, 3]),
        (EUROPE, (350, 10), [-10, 0, 10], [1, 2, 3]),
        (EUROPE, (-14, 6), [-10, 0], [1, 2]),
        (EUROPE, (0, 0), [0], [2]),
        (GLOBE_0_360, (-20, 20), [-20, -10, 0, 10, 20], [34, 35, 0, 1, 2]),
        (GLOBE_0_360, (340, 20), [-20, -10, 0, 10, 20], [34, 35, 0, 1, 2]),
        (GLOBE_0_360, (170, 190), [170, 180, 190], [17, 18, 19]),
        (GLOBE_180, (170, -170), [170, 180, 190], [35, 0, 1]),
        (GLOBE_180, (170, 190), [170, 180, 190], [35, 0, 1]),
        (GLOBE_180, (-10, 10), [-10, 0, 10], [17, 18, 19]),
        (GLOBE_180, (-180, 180), GLOBE_180, range(36)),
        (GLOBE_0_360, (-180, 180), GLOBE_0_360, range(36)),
        (np.array([200, 210, 220]), (-160, -150), [200, 210], [0, 1]),
    ],
)
def test_a_box_takes_its_columns_in_any_longitude_convention(lon, box, expected, columns):
    part = select_region(field([0, 1, 2], lon), Region(0, 1, *box))
    assert part["lon"].values.tolist() == list(expected)
    assert part["t2m"][0, 0].values.tolist() == list(columns)
    assert part["lat"].values.tolist() == [0, 1]
    assert part.attrs["source"] == "x.nc"


def test_no_box_is_the_whole_file():
    whole = field([0, 1], EUROPE)
    assert select_region(whole, None) is whole


def test_edges_find_the_grid_lines_that_float32_rounds():
    rounded = field([0, 1], np.array([10.1, 10.2, 10.3], np.float32).astype(float))
    assert select_region(rounded, Region(0, 1, 10.1, 10.3)).sizes["lon"] == 3


def test_a_box_works_on_forecasts_too():
    forecast = field([0, 1], EUROPE).rename(time="init_time").expand_dims(lead_time=2)
    assert select_region(forecast, Region(0, 0, -10, 10)).sizes == {"lead_time": 2, "init_time": 4, "lat": 1, "lon": 3}


def test_selecting_reads_nothing(tmp_path):
    field([0, 1], GLOBE_0_360).to_netcdf(tmp_path / "x.nc")
    assert not select_region(open_dataset([tmp_path / "x.nc"]), Region(0, 1, -20, 20))["t2m"].variable._in_memory


@pytest.mark.parametrize(
    ("box", "fragment"),
    [
        (
            (50, 60, 0, 10),
            "x.nc: no grid points in the region 50 to 60 degrees north.*covers 0 to 2 by 1 degrees north",
        ),
        ((0, 1, 90, 100), "no grid points.*-20 to 20 by 10 degrees east. Check --this."),
        ((0.2, 0.8, 0, 10), "no grid points"),
        ((0, 1, 10, -10), "two separate pieces"),
    ],
)
def test_boxes_that_the_file_cannot_fill_are_refused(box, fragment):
    with pytest.raises(DataError, match=fragment):
        select_region(field([0, 1, 2], EUROPE), Region(*box), option="--this")


def test_a_box_that_reaches_far_beyond_the_file_is_cut_aloud(caplog):
    assert select_region(field([0, 1, 2], EUROPE), Region(0, 2, -20, 90)).sizes["lon"] == 5
    assert "reaches beyond the file; taken are 0 to 2 by 1 degrees north, -20 to 20 by 10 degrees east" in caplog.text


@pytest.mark.parametrize(
    "numbers",
    [(60, 30, 0, 10), (-100, 0, 0, 10), (0, 100, 0, 10), (float("nan"), 1, 0, 10), (0, 1, 0, 900), (0, 1, -300, 300)],
)
def test_boxes_that_make_no_sense_are_refused(numbers):
    with pytest.raises(ConfigError, match=r"^region "):
        Region(*numbers)


def test_a_region_is_told_in_words_and_numbers():
    region = Region(40, 55, -5.5, 10)
    assert str(region) == "40 to 55 degrees north, -5.5 to 10 degrees east"
    assert Region(*region.as_tuple()) == region


# Upstream


def test_upstream_is_west_where_the_file_has_no_wind():
    region, reason = choose_upstream(field([0, 1, 2, 3], EUROPE), Region(1, 2, 10, 20), ALL)
    assert region == Region(1, 2, -20, 0)
    assert "no zonal wind" in reason


@pytest.mark.parametrize(("wind", "side", "box"), [(5, "west", (-20, -10)), (-5, "east", (10, 20))])
def test_upstream_is_where_the_mean_wind_comes_from(wind, side, box):
    region, reason = choose_upstream(field([0, 1], EUROPE, u10=wind), Region(0, 1, 0, 0), ALL)
    assert region == Region(0, 1, *box)
    assert (
        reason == f"the mean 'u10' over the target in training is {wind}.0 m s-1, so the weather comes from the {side}"
    )


def test_the_wind_of_the_steering_level_is_asked_first():
    levels = field([0, 1], EUROPE, u10=-1)
    levels["u"] = levels["u10"].expand_dims(level=[1000.0, 500.0, 850.0]).transpose("time", "level", "lat", "lon")
    levels["u"] = levels["u"] * xr.DataArray([-1.0, -1.0, 9.0], dims="level")
    levels["u"].attrs["units"] = "m s-1"
    _, reason = choose_upstream(levels, Region(0, 1, 0, 0), ALL)
    assert "'u' at 850 hPa over the target in training is -9.0 m s-1" in reason


def test_only_the_masked_times_and_valid_points_decide_the_side():
    windy = field([0, 1], EUROPE, u10=-5)
    windy["u10"] = windy["u10"].copy()
    windy["u10"][0] = 3
    windy["u10"][0, 0] = np.nan
    region, reason = choose_upstream(windy, Region(0, 1, 0, 0), np.array([True, False, False, False]))
    assert region.lon_max == -10
    assert "3.0 m s-1" in reason


@pytest.mark.parametrize(
    ("lon", "target", "expected"),
    [(GLOBE_0_360, (0, 20), (330, 350)), (GLOBE_180, (-180, -170), (160, 170)), (GLOBE_0_360, (100, 110), (80, 90))],
)
def test_around_the_globe_upstream_is_as_wide_as_the_target(lon, target, expected):
    globe = field([0, 1], lon)
    region, _ = choose_upstream(globe, Region(0, 1, *target), ALL)
    assert (region.lon_min, region.lon_max) == expected
    assert select_region(globe, region).sizes["lon"] == select_region(globe, Region(0, 1, *target)).sizes["lon"]


def test_a_target_at_the_edge_has_no_upstream():
    with pytest.raises(DataError, match=r"x\.nc: no grid points west of the target region.*--upstream-region"):
        choose_upstream(field([0, 1], EUROPE), Region(0, 1, -20, 0), ALL)


# Grid


def test_a_grid_goes_there_and_back():
    grid = Grid.from_dataset(field([0, 1], EUROPE))
    assert grid == Grid((0.0, 1.0), (-20.0, -10.0, 0.0, 10.0, 20.0))
    assert Grid.from_dict(grid.to_dict()) == grid


def test_grids_differ_by_places_not_by_how_they_are_written():
    grid = Grid((0.0, 1.0), (350.0, 360.0))
    assert grid.differences(Grid((0.0, 1.00001), (-10.0, 0.0))) == []
    assert grid.differences(Grid((0.0, 1.0, 2.0), (-9.0, 1.0))) == [
        "latitudes 0 to 2 by 1 (3) instead of 0 to 1 by 1 (2)",
        "longitudes -9 to 1 by 10 (2) instead of 350 to 360 by 10 (2)",
    ]


# Area weights


def test_area_weights_are_the_true_areas_of_the_rows():
    lat = np.array([0.0, 30.0, 60.0])
    edges = np.sin(np.deg2rad([-15, 15, 45, 75]))
    assert area_weights(lat) == pytest.approx(3 * np.diff(edges) / (edges[-1] - edges[0]))
    assert area_weights(lat[::-1]) == pytest.approx(area_weights(lat)[::-1])


def test_edge_rows_of_a_region_do_not_stand_for_the_rest_of_the_globe():
    lat = np.arange(10, 30.1, 1.0)
    weights = area_weights(lat)
    assert weights == pytest.approx(np.cos(np.deg2rad(lat)) / np.cos(np.deg2rad(lat)).mean(), rel=1e-3)
    assert weights[[0, -1]].sum() / weights.sum() < 0.1  # weights that run to the poles would give 0.85


def test_rows_at_the_poles_are_half_cells():
    weights = area_weights(np.array([-90.0, 0.0, 90.0]))
    assert weights == pytest.approx(3 * np.diff(np.sin(np.deg2rad([-90, -45, 45, 90]))) / 2)


def test_weights_have_mean_1_and_one_row_is_1():
    assert area_weights(np.linspace(-80, 70, 16)).mean() == pytest.approx(1)
    assert area_weights(np.array([45.0])).tolist() == [1]


@pytest.mark.real_data
def test_a_real_file_gives_its_west_as_upstream(real_data):
    file = next(real_data.glob("erainterim*.nc"))
    dataset = open_dataset([file])
    region, _ = choose_upstream(dataset, Region(40, 55, 0, 14.5), np.ones(dataset.sizes["time"], bool))
    assert region.as_tuple() == (40, 55, -20, -0.5)
    assert select_region(dataset, region).sizes["lon"] == 14
