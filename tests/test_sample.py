"""The simulated sample region: its numerics, its climate, its file."""

import numpy as np
import pytest
import xarray as xr

from convlstm_wx.data import sample
from convlstm_wx.data.reading import open_dataset
from convlstm_wx.errors import ConfigError

# Another machine rounds differently and gets other weather, as from another seed: the bounds on the weather are wide
# enough for any of them.
JANUARY, JULY = np.datetime64("2001-01-01", "ns"), np.datetime64("2001-07-01", "ns")


@pytest.fixture(scope="module")
def winter() -> xr.Dataset:
    return sample.simulate(JANUARY, 90, spin_up_days=30)


@pytest.fixture(scope="module")
def summer() -> xr.Dataset:
    return sample.simulate(JULY, 25, spin_up_days=25)


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float((a * b).mean() / np.sqrt((a**2).mean() * (b**2).mean()))


def departures(field: xr.DataArray) -> np.ndarray:
    """From the mean of each place over time: [time, lat, lon]."""
    return (field - field.mean("time")).values


# The numerics, each against an answer that is known beforehand.


def test_inversion_finds_the_stream_function_that_a_vorticity_came_from():
    random = np.random.default_rng(0)
    psi = 1e7 * random.standard_normal((2, sample.ROWS, sample.COLUMNS))
    mirrored = np.concatenate([-psi[:, :1], psi, -psi[:, -1:]], axis=1)  # 0 on the walls, half a row outside
    in_y = (mirrored[:, 2:] - 2 * psi + mirrored[:, :-2]) / sample.DY**2
    in_x = (np.roll(psi, 1, -1) - 2 * psi + np.roll(psi, -1, -1)) / sample.DX**2
    tau = psi[0] - psi[1]
    q = in_x + in_y + sample.F * np.stack([-tau, tau])
    np.testing.assert_allclose(sample.Inversion()(q.astype(np.float32)), psi, atol=1e3)


def test_a_steady_west_wind_carries_a_hill_ten_columns_east():
    columns_per_step = 0.25
    wind = columns_per_step * sample.DX / sample.TIME_STEP
    stream = np.broadcast_to(-wind * sample.Y, (sample.ROWS, sample.COLUMNS)).astype(np.float32)
    hill = np.exp(-(((np.arange(sample.COLUMNS) - 40) / 5) ** 2) - (sample.Y / 7e5) ** 2)
    field = hill[None].astype(np.float32)
    for step in range(40):
        field = sample.carry(field, stream, x_first=step % 2 == 0)
    np.testing.assert_allclose(field[0], np.roll(hill, 10, axis=-1), atol=0.015)
    assert field.sum() == pytest.approx(hill.sum(), rel=1e-4)


def test_a_uniform_field_stays_uniform_in_any_wind():
    x = 2 * np.pi * np.arange(sample.COLUMNS) / sample.COLUMNS
    stream = (4e7 * np.cos(3 * x) * np.cos(sample.Y / 1e6)).astype(np.float32)
    ones = np.ones((1, sample.ROWS, sample.COLUMNS), np.float32)
    np.testing.assert_allclose(sample.carry(ones, stream, x_first=True), ones, rtol=1e-5)


def test_saturation_follows_published_vapour_pressures():
    # 6.11 hPa at 0 degrees and 23.4 hPa at 20 degrees Celsius (World Meteorological Organization tables).
    vapour = np.array([6.11, 23.4]) * 0.622 / 850 * sample.MOIST_MASS
    np.testing.assert_allclose(sample.saturation(np.array([273.15, 293.15], np.float32)), vapour, rtol=2e-3)


def test_it_rains_where_air_rises():
    atmosphere = sample.Atmosphere(JANUARY, np.random.default_rng(0))
    for _ in range(20 * sample.STEPS_PER_DAY):
        atmosphere.run()
    inner = slice(8, 40)  # clear of the walls
    wet = atmosphere.rain[inner] > 0.5
    assert 0.02 < wet.mean() < 0.5
    assert atmosphere.w[inner][wet].mean() > 3 * np.abs(atmosphere.w[inner][~wet].mean())


# The climate and the weather.


def test_values_stay_within_those_of_the_middle_latitudes(winter, summer):
    for dataset in (winter, summer):
        z, t = dataset["z"], dataset["t"]
        assert z.sel(level=500).min() > 45_000
        assert z.sel(level=500).max() < 61_000
        assert z.sel(level=850).min() > 9_000
        assert z.sel(level=850).max() < 19_000
        assert t.sel(level=850).min() > 240
        assert t.sel(level=850).max() < 310
        assert np.abs(dataset["u"]).max() < 80
        assert np.abs(dataset["v"]).max() < 80
        assert dataset["msl"].min() > 94_000
        assert dataset["msl"].max() < 108_000
        assert dataset["tp"].min() >= 0
        assert 0.005 < dataset["tp"].max() < 0.05


def test_every_value_is_there_every_six_hours(winter):
    assert winter.sizes == {"time": 360, "level": 2, "lat": 32, "lon": 48}
    assert (np.diff(winter["time"]) == np.timedelta64(6, "h")).all()
    assert all(bool(np.isfinite(field).all()) for field in winter.values())
    assert {field.dtype for field in winter.values()} == {np.dtype("float32")}


def test_winds_are_westerly_and_stronger_aloft(winter):
    u = winter["u"].mean(("time", "lat", "lon"))
    assert u.sel(level=500) > u.sel(level=850) > 2


def test_winter_storms_are_stronger_than_summer_ones(winter, summer):
    v_winter, v_summer = (dataset["v"].sel(level=500).std() for dataset in (winter, summer))
    assert v_winter > 1.1 * v_summer


def test_weather_enters_from_the_west(winter):
    """A day's change at one place is seen 21 degrees further east 36 hours later; in the east none comes back."""
    z = winter["z"].sel(level=500).values
    change = z[4:] - z[:-4]
    west, east = change[:, :, :-12], change[:, :, 12:]
    eastward, westward = correlation(west[:-6], east[6:]), correlation(east[:-6], west[6:])
    assert eastward > 0.35
    assert eastward > abs(westward) + 0.2
    assert eastward > correlation(west, east) + 0.2


def test_moving_the_map_east_beats_leaving_it_where_it_is(winter):
    """For a day ahead, by 5 columns of 1.75 degrees: the plainest forecast there is, and far from a perfect one."""
    t = departures(winter["t"].sel(level=850))
    moved, left = t[:-4, :, :-5] - t[4:, :, 5:], t[:-4, :, 5:] - t[4:, :, 5:]
    assert np.sqrt((moved**2).mean()) < 0.85 * np.sqrt((left**2).mean())


def test_persistence_helps_for_a_day_and_not_for_four(winter):
    z = departures(winter["z"].sel(level=500))
    error = {hours: np.sqrt(((z[hours // 6 :] - z[: -hours // 6]) ** 2).mean()) / z.std() for hours in (6, 24, 96)}
    assert error[6] < 0.4
    assert 0.4 < error[24] < 0.95
    assert error[96] > 0.95


def test_summer_is_warmer_most_of_all_over_land(winter, summer):
    warming = summer["t2m"].mean("time") - winter["t2m"].isel(time=slice(120)).mean("time")
    land, sea = (float(warming.where(where).mean()) for where in (winter["lsm"] > 0.9, winter["lsm"] < 0.1))
    assert 10 < sea < land < 25


def test_land_is_warmest_in_the_afternoon_and_sea_does_not_notice(summer):
    by_hour = summer["t2m"].groupby("time.hour").mean("time")
    land, sea = (by_hour.where(where).mean(("lat", "lon")) for where in (summer["lsm"] > 0.9, summer["lsm"] < 0.1))
    assert int(land["hour"][land.values.argmax()]) == 12  # of 0, 6, 12, 18 UTC, near 1 p.m. local time
    assert 2 < float(land.max() - land.min()) < 12
    assert float(sea.max() - sea.min()) < 0.5


# The file.


def test_the_same_seed_gives_the_same_values_and_another_one_other_weather():
    first, again, other = (sample.simulate(JANUARY, 2, seed=seed, spin_up_days=3) for seed in (5, 5, 6))
    xr.testing.assert_identical(first, again)
    assert not first["z"].equals(other["z"])


def test_the_file_is_cf_and_reads_back_as_it_was_written(tmp_path):
    written = sample.simulate(JANUARY, 2, spin_up_days=2)
    sample._write(written, tmp_path / "region.nc")
    assert [path.name for path in tmp_path.iterdir()] == ["region.nc"]
    with xr.open_dataset(tmp_path / "region.nc") as read:
        xr.testing.assert_identical(read.load(), written)
        assert read.attrs["Conventions"] == "CF-1.11"
        assert "".join(read[name].attrs["axis"] for name in ("time", "level", "lat", "lon")) == "TZYX"
        assert all({"standard_name", "long_name", "units"} <= set(field.attrs) for field in read.values())


def test_our_reader_takes_the_file_as_it_is(tmp_path):
    written = sample.simulate(JANUARY, 2, spin_up_days=2)
    sample._write(written, tmp_path / "region.nc")
    read = open_dataset([tmp_path / "region.nc"])
    assert read["z"].dims == ("time", "level", "lat", "lon")
    assert read["lsm"].dims == ("lat", "lon")
    np.testing.assert_array_equal(read["z"], written["z"])


@pytest.mark.parametrize(
    ("name", "years", "message"),
    [
        ("region.nc", 0, "years is 0; the sample region needs at least 1"),
        ("occupied/region.nc", 1, "cannot be written"),
        ("folder", 1, "is a folder; give the name of the file"),
    ],
)
def test_what_cannot_be_written_is_refused_before_the_simulation(tmp_path, name, years, message):
    (tmp_path / "occupied").write_text("a file, not a folder")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigError, match=message):
        sample.write_sample(tmp_path / name, years=years)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "occupied"]
