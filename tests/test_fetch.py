"""Fetching from local stores with the layout of the public ones: names, dimensions, chunks, attributes."""

import http.server
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from convlstm_wx.cli import main
from convlstm_wx.data.reading import open_dataset
from convlstm_wx.data.regions import Region
from convlstm_wx.pieces import Pieces
from convlstm_wx.preparing import fetching, planning, stores

HOUR = np.timedelta64(1, "h")


def arco(path: Path, **attrs: str) -> Path:
    """Four days of hours around a month's end, in a time axis that is longer; every value can be seen by eye.

    t2m is the hour of the record, tp 1 mm in each hour, geopotential the level plus the hour, the mask the longitude.
    """
    times = np.datetime64("2020-01-30", "ns") + np.arange(6 * 24) * HOUR
    lat, lon = np.arange(90, -91, -10, dtype=np.float32), np.arange(0, 360, 10, dtype=np.float32)
    hours = np.arange(len(times), dtype=np.float32)
    level = np.array([500, 850, 1000])
    surface = np.broadcast_to(hours[:, None, None], (len(times), len(lat), len(lon))).copy()
    aloft = hours[:, None, None, None] + level[None, :, None, None] + np.zeros((1, 1, len(lat), len(lon)))
    rain = np.full_like(surface, 0.001)
    for values in (surface, aloft, rain):
        values[4 * 24 :] = np.nan  # the axis goes on, the values do not
    dims = ("time", "latitude", "longitude")
    dataset = xr.Dataset(
        {
            "2m_temperature": (dims, surface, {"units": "K", "short_name": "t2m", "long_name": "2 metre temperature"}),
            "total_precipitation": (dims, rain, {"units": "m", "short_name": "tp", "long_name": "Total precipitation"}),
            "geopotential": (
                ("time", "level", "latitude", "longitude"),
                aloft.astype(np.float32),
                {"units": "m**2 s**-2", "short_name": "z", "standard_name": "geopotential"},
            ),
            "land_sea_mask": (dims[1:], np.broadcast_to(lon, (19, 36)).copy(), {"units": "(0 - 1)"}),
        },
        coords={
            "time": times,
            "level": level,
            "latitude": ("latitude", lat, {"units": "degrees_north"}),
            "longitude": ("longitude", lon, {"units": "degrees_east"}),
        },
        attrs={"valid_time_start": "2020-01-30", "valid_time_stop": "2020-02-02"} | attrs,
    )
    chunks = {name: {"chunks": (1, *values.shape[1:])} for name, values in dataset.data_vars.items() if values.ndim > 2}
    dataset.to_zarr(path, encoding=chunks, zarr_format=2, consolidated=True)
    return path


def wb2(path: Path) -> Path:
    """Three months of WeatherBench 2's coarse layout: 6-hourly, longitude before latitude, latitudes ascending."""
    times = np.datetime64("2020-01-01", "ns") + np.arange(91 * 4) * 6 * HOUR
    lat, lon = np.arange(-87.1875, 90, 5.625), np.arange(0, 360, 5.625)
    steps = np.arange(len(times), dtype=np.float32)[:, None, None] + np.zeros((1, len(lon), len(lat)), np.float32)
    dims = ("time", "longitude", "latitude")
    dataset = xr.Dataset(
        {
            "2m_temperature": (dims, steps + lat.astype(np.float32) / 1000, {"units": "K"}),
            "total_precipitation_6hr": (dims, np.full_like(steps, 0.006), {"units": "m"}),
            "total_precipitation": (dims, np.full_like(steps, 0.001), {"units": "m"}),
        },
        coords={"time": times, "latitude": lat, "longitude": lon},
    )
    chunks = {name: {"chunks": (10, *values.shape[1:])} for name, values in dataset.data_vars.items()}
    dataset.to_zarr(path, encoding=chunks, zarr_format=2, consolidated=True)
    return path


@pytest.fixture(scope="module")
def arco_store(tmp_path_factory) -> Path:
    return arco(tmp_path_factory.mktemp("stores") / "arco.zarr")


@pytest.fixture(scope="module")
def wb2_store(tmp_path_factory) -> Path:
    return wb2(tmp_path_factory.mktemp("stores") / "wb2.zarr")


def command(source, target: Path, *more: str, **options: str) -> list[str]:
    chosen = {
        "--variables": "t2m",
        "--region": "30 50 -20 10",
        "--start": "2020-01-30T06",
        "--end": "2020-02-01",
        "--store": str(source),
        "--output": str(target),
    } | {f"--{name.replace('_', '-')}": value for name, value in options.items()}
    words = [word for option, value in chosen.items() for word in (option, *value.split(" "))]
    return ["fetch", "era5", *words, *more]


def test_instantaneous_values_are_those_at_the_time_and_rain_is_summed_up_to_it(arco_store, tmp_path):
    output = tmp_path / "regional.nc"
    assert main(command(arco_store, output, variables="t2m tp z lsm", levels="500 1000")) == 0
    with xr.open_dataset(output) as made:
        assert made.sizes == {"time": 11, "level": 2, "lat": 3, "lon": 4}
        assert list(made["time"].values[:2]) == [np.datetime64("2020-01-30T06"), np.datetime64("2020-01-30T12")]
        assert made["t2m"][:, 0, 0].values.tolist() == [6 * step for step in range(1, 12)]
        np.testing.assert_allclose(made["tp"], 0.006, rtol=1e-6)
        assert made["z"][0, :, 0, 0].values.tolist() == [506, 1006]
        assert made["lat"].values.tolist() == [50, 40, 30]  # as in the store
        assert made["lon"].values.tolist() == [-20, -10, 0, 10]
        assert made["lsm"][0].values.tolist() == [340, 350, 0, 10]  # across Greenwich
        assert made["tp"].attrs["cell_methods"] == "time: sum"
        assert made["t2m"].attrs["units"] == "K"
        assert "Copernicus" in made.attrs["license"]
        assert json.loads(made.attrs["fetch_variables"])["z"] == "geopotential"
        assert str(tmp_path) not in str(made.attrs)
        assert str(arco_store.parent) not in str(made.attrs)
    assert list(tmp_path.iterdir()) == [output]


def test_the_file_is_read_by_everything_else(arco_store, tmp_path):
    output = tmp_path / "regional.nc"
    main(command(arco_store, output, variables="tp 2m_temperature z lsm"))
    dataset = open_dataset([output])
    assert set(dataset.data_vars) == {"tp", "2m_temperature", "z", "lsm"}
    assert dataset["z"].dims == ("time", "level", "lat", "lon")


def test_hourly_steps_need_no_sums_and_a_day_is_24_of_them(arco_store, tmp_path):
    main(command(arco_store, tmp_path / "hourly.nc", variables="tp", step="1h"))
    main(command(arco_store, tmp_path / "daily.nc", variables="tp", step="1d", start="2020-01-31"))
    with xr.open_dataset(tmp_path / "hourly.nc") as hourly, xr.open_dataset(tmp_path / "daily.nc") as daily:
        np.testing.assert_allclose(hourly["tp"], 0.001, rtol=1e-6)
        np.testing.assert_allclose(daily["tp"], 0.024, rtol=1e-6)


def test_zarr_holds_the_same_as_netcdf(arco_store, tmp_path):
    for name in ("regional.nc", "regional.zarr"):
        assert main(command(arco_store, tmp_path / name, variables="t2m z lsm")) == 0
    with xr.open_dataset(tmp_path / "regional.nc") as one, xr.open_zarr(tmp_path / "regional.zarr") as other:
        xr.testing.assert_equal(one.load(), other.load())


def test_weatherbench_layout_takes_the_sums_that_fit(wb2_store, tmp_path, capsys):
    output = tmp_path / "regional.nc"
    assert main(command(wb2_store, output, variables="t2m tp", start="2020-01-01T06", end="2020-01-02")) == 0
    with xr.open_dataset(output) as made:
        assert made["t2m"].dims == ("time", "lat", "lon")
        np.testing.assert_allclose(made["t2m"][:, 0, 0], np.arange(1, 8) + made["lat"].values[0] / 1000, rtol=1e-6)
        np.testing.assert_allclose(made["tp"], 0.006, rtol=1e-6)
        assert made["lat"].values[0] < made["lat"].values[-1]
    assert "total_precipitation_6hr, summed over the 6 h up to the time" in capsys.readouterr().out
    main(command(wb2_store, tmp_path / "daily.nc", variables="tp", step="1d", start="2020-01-02", end="2020-01-05"))
    with xr.open_dataset(tmp_path / "daily.nc") as made:
        np.testing.assert_allclose(made["tp"], 0.024, rtol=1e-6)


def plan_of(store: Path, **changes) -> planning.Plan:
    request = {
        "variables": ("t2m",),
        "region": Region(30, 50, -20, 10),
        "start": "2020-01-30T06",
        "end": "2020-02-01",
    }
    return planning.make_plan(stores.open_store(str(store)), planning.Request(**request | changes))


def test_estimate_counts_the_chunks_that_are_touched(arco_store, wb2_store):
    field = 19 * 36 * 4
    plan = plan_of(arco_store)
    assert (plan.chunks, plan.download_bytes) == (11, 11 * field)
    assert plan.output_bytes == 11 * 3 * 4 * 4
    plan = plan_of(arco_store, variables=("t2m", "tp"))  # the rain of 66 hours for 11 times
    assert plan.chunks == 11 + 66
    plan = plan_of(arco_store, variables=("z", "lsm"), levels=(500,))  # a chunk holds all levels
    assert (plan.chunks, plan.download_bytes) == (12, (11 * 3 + 1) * field)
    plan = plan_of(wb2_store, start="2020-01-01", end="2020-01-05T18")  # 20 times, 10 to a chunk
    assert plan.chunks == 2


def test_estimate_is_told_before_it_is_refused(arco_store, tmp_path, capsys):
    output = tmp_path / "regional.nc"
    assert main(command(arco_store, output, max_download="0.00001")) == 2
    said = capsys.readouterr()
    assert "download   at most 29 kB in 11 chunks" in said.out
    assert "--max-download" in said.err
    assert "coarser --store" in said.err
    assert list(tmp_path.iterdir()) == []


def test_a_month_is_a_piece_unless_it_is_too_large(arco_store, monkeypatch):
    assert [(p.start, p.stop) for p in plan_of(arco_store).pieces] == [(0, 7), (7, 11)]
    monkeypatch.setattr(planning, "_PIECE_BYTES", 3 * 3 * 4 * 4)
    assert [(p.start, p.stop) for p in plan_of(arco_store).pieces] == [(0, 3), (3, 6), (6, 7), (7, 10), (10, 11)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variables": "t3m"}, "no such variable; it has 2m_temperature"),
        ({"variables": "t2m 2m_temperature"}, "the same variable"),
        ({"variables": "lsm"}, "these have no time"),
        ({"levels": "700"}, "none of 2m_temperature has levels"),
        ({"variables": "z", "levels": "700"}, "has 500, 850, 1000 hPa"),
        ({"end": "2020-02-03"}, "holds values from 2020-01-30T00:00 to 2020-02-02T23:00"),
        ({"start": "2019-01-01"}, "holds values from 2020-01-30T00:00"),
        ({"end": "2020-01-01"}, "is before --start"),
        ({"start": "yesterday"}, "--start yesterday: is not a time"),
        ({"start": "2020-01-30", "variables": "tp"}, "start at 2020-01-30T05:00"),
        ({"start": "2020-01-30T06:30"}, "has one time each 1 h"),
        ({"region": "52 58 0 9"}, "by 10 degrees east. Check --region.\n"),
        ({"region": "50 30 0 9"}, "LAT_MIN LAT_MAX"),
        ({"store": "nowhere"}, "no such Zarr store; known are arco, wb2"),
        ({"start": "2020-01-30", "variables": "tp", "step": "2h"}, "sums need 1 step before it"),
        ({"output": "regional.grib"}, "must end in .nc or .zarr"),
    ],
)
def test_mistakes_are_told_in_one_line(arco_store, tmp_path, monkeypatch, capsys, changes, message):
    monkeypatch.chdir(tmp_path)
    assert main(command(arco_store, Path("regional.nc"), **changes)) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--step", "1000000d"),
        ("--step", "99999999999999999999h"),
        ("--max-download", "nan"),
        ("--max-download", "-1"),
        ("--variables", ""),
        ("--store", ""),
        ("--output", ""),
        ("--start", ""),
    ],
)
def test_a_senseless_option_is_named(arco_store, tmp_path, capsys, option, value):
    with pytest.raises(SystemExit) as stopped:
        main([*command(arco_store, tmp_path / "regional.nc"), option, value])
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert f"argument {option}: " in said
    assert said.count("\n") == 1


def test_the_store_itself_is_never_replaced(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arco(tmp_path / "arco.zarr")
    before = sorted(tmp_path.rglob("*"))
    for output in ("arco.zarr", "arco.zarr/regional.nc"):
        assert main(command("arco.zarr", Path(output), "--overwrite")) == 2
        assert "an input of this command; choose another name" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_pattern_is_no_store(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("a1.zarr", "a2.zarr"):
        (tmp_path / name).mkdir()
    assert main(command("a*", Path("regional.nc"))) == 2
    assert "--store a*: no such Zarr store" in capsys.readouterr().err


def test_a_stop_says_how_to_go_on(arco_store, tmp_path, monkeypatch, capsys):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(fetching, "_loaded", stop)
    assert main(command(arco_store, tmp_path / "regional.nc")) == 130
    assert "run the same command again to go on" in capsys.readouterr().out


def test_one_is_singular_and_the_next_command_can_be_pasted(arco_store, tmp_path, capsys):
    output = tmp_path / "my region.nc"
    once = command(arco_store, tmp_path / "x.nc", start="2020-01-30T06", end="2020-01-30T06")
    assert main([*once, "--output", str(output)]) == 0
    said = capsys.readouterr().out
    assert " in 1 chunk (the size before" in said
    assert "the file will have about 48 bytes" in said
    assert f"next: convlstm-wx train --data '{output}'" in said


def test_sums_that_do_not_add_up_are_refused(wb2_store, tmp_path, capsys):
    arguments = {"start": "2020-01-02", "end": "2020-01-05", "step": "1d", "variables": "total_precipitation"}
    assert main(command(wb2_store, tmp_path / "regional.nc", **arguments)) == 2
    assert "sums over 1 h, one each 6 h, which do not add up to --step 24h" in capsys.readouterr().err


def test_preliminary_values_are_allowed_with_a_warning(tmp_path, capsys):
    store = arco(tmp_path / "arco.zarr", valid_time_stop="2020-01-31", valid_time_stop_era5t="2020-02-02")
    assert main(command(store, tmp_path / "regional.nc")) == 0
    assert "from 2020-02-01T00:00 on the values are preliminary (ERA5T)" in capsys.readouterr().out


def test_an_existing_output_is_refused_unless_overwritten(arco_store, tmp_path, capsys):
    output = tmp_path / "regional.nc"
    output.write_text("mine")
    assert main(command(arco_store, output)) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert output.read_text() == "mine"
    assert main(command(arco_store, output, "--overwrite")) == 0
    xr.open_dataset(output).close()


def test_a_hole_in_the_store_is_told(tmp_path, capsys):
    store = arco(tmp_path / "arco.zarr")
    (store / "2m_temperature" / "12.0.0").unlink()
    assert main(command(store, tmp_path / "regional.nc")) == 0
    assert "t2m has no value at all at 1 of 11 times" in capsys.readouterr().out
    with xr.open_dataset(tmp_path / "regional.nc") as made:
        assert np.isnan(made["t2m"]).any(("lat", "lon")).values.tolist() == [False, True] + [False] * 9


def test_a_mask_that_is_stored_at_every_time_is_one_field(arco_store, tmp_path):
    source = xr.open_zarr(arco_store).load().drop_encoding()
    source["land_sea_mask"] = source["land_sea_mask"].expand_dims(time=source["time"])
    source.to_zarr(tmp_path / "store.zarr", zarr_format=2)
    assert main(command(tmp_path / "store.zarr", tmp_path / "regional.nc", variables="t2m lsm")) == 0
    with xr.open_dataset(tmp_path / "regional.nc") as made:
        assert made["lsm"].dims == ("lat", "lon")
        assert made["lsm"][0].values.tolist() == [340, 350, 0, 10]


# A store that is slow, or fails


class Server:
    """Serves a folder over http; `delay_s` slows every chunk, `failures` of the first chunk requests answer 503."""

    def __init__(self, folder: Path):
        self.delay_s, self.failures, self.chunks = 0.0, 0, 0
        outer = self

        class Handler(http.server.SimpleHTTPRequestHandler):
            def __init__(self, *arguments):
                super().__init__(*arguments, directory=str(folder))

            def do_GET(self):
                if "/2m_temperature/" in self.path and self.path.split("/")[-1][0].isdigit():
                    outer.chunks += 1
                    time.sleep(outer.delay_s)
                    if outer.failures > 0:
                        outer.failures -= 1
                        return self.send_error(503)
                return super().do_GET()

            def log_message(self, *_):
                """Say nothing."""

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self):
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server(arco_store, wb2_store):
    pytest.importorskip("aiohttp")
    made = Server(arco_store.parents[1])
    yield made
    made.close()


def url_of(server: Server, store: Path) -> str:
    return f"{server.url}/{store.relative_to(store.parents[1])}"


def test_a_url_gives_the_same_as_the_folder(server, arco_store, tmp_path):
    assert main(command(arco_store, tmp_path / "local.nc", variables="t2m tp")) == 0
    assert main(command(url_of(server, arco_store), tmp_path / "remote.nc", variables="t2m tp")) == 0
    with xr.open_dataset(tmp_path / "local.nc") as local, xr.open_dataset(tmp_path / "remote.nc") as remote:
        xr.testing.assert_equal(local.load(), remote.load())


def test_a_failing_network_is_tried_again(server, arco_store, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(fetching, "_FIRST_PAUSE_S", 0.01)
    server.failures = 1
    assert main(command(url_of(server, arco_store), tmp_path / "regional.nc")) == 0
    assert "trying again" in capsys.readouterr().out


def test_a_dead_network_keeps_what_is_there_and_the_same_command_goes_on(
    server, arco_store, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(fetching, "_FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(planning, "_PIECE_BYTES", 3 * 3 * 4 * 4)  # five pieces
    output, add = tmp_path / "regional.nc", Pieces.add

    def add_and_break(pieces, number, arrays):
        add(pieces, number, arrays)
        server.failures = 10**6

    monkeypatch.setattr(Pieces, "add", add_and_break)
    arguments = command(url_of(server, arco_store), output)
    assert main(arguments) == 2
    assert "run the same command again" in capsys.readouterr().err
    assert not output.exists()
    server.failures = 0
    monkeypatch.setattr(Pieces, "add", add)
    assert main(command(url_of(server, arco_store), output, end="2020-02-02")) == 2  # another request
    assert "holds an unfinished download with another end" in capsys.readouterr().err
    server.chunks = 0
    assert main(arguments) == 0
    assert "1 of 5 pieces are here already" in capsys.readouterr().out
    assert server.chunks == 8  # of 11
    assert list(tmp_path.iterdir()) == [output]


def test_overwrite_begins_another_request_anew(arco_store, tmp_path):
    output, folder = tmp_path / "regional.nc", tmp_path / ".regional.nc.partial"
    folder.mkdir()
    (folder / "request.json").write_text("{}")
    (folder / "00000.npz").write_text("of another request")
    assert main(command(arco_store, output)) == 2
    assert main(command(arco_store, output, "--overwrite")) == 0
    assert not folder.exists()


def test_no_store_behind_a_url_is_one_line(server, tmp_path, capsys):
    assert main(command(f"{server.url}/nothing.zarr", tmp_path / "regional.nc")) == 2
    said = capsys.readouterr().err
    assert "there is no Zarr store; check the address" in said
    assert said.count("\n") == 1


@pytest.mark.slow
def test_killed_in_the_middle_and_run_again_gives_the_same_file(server, wb2_store, tmp_path):
    period = {"variables": "t2m tp", "start": "2020-01-01T06", "end": "2020-03-31"}
    assert main(command(wb2_store, tmp_path / "whole.nc", **period)) == 0
    output = tmp_path / "regional.nc"
    arguments = [sys.executable, "-m", "convlstm_wx", *command(url_of(server, wb2_store), output, **period)]
    server.delay_s = 0.5
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL)
    until = time.monotonic() + 60
    while not (tmp_path / ".regional.nc.partial/00000.npz").exists() and time.monotonic() < until:
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not output.exists()
    assert not (tmp_path / ".regional.nc.partial/00002.npz").exists()
    server.delay_s = 0.0
    again = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert "of 3 pieces are here already" in again.stdout
    with xr.open_dataset(tmp_path / "whole.nc") as whole, xr.open_dataset(output) as made:
        xr.testing.assert_equal(whole.load(), made.load())
    assert not (tmp_path / ".regional.nc.partial").exists()


# Names


def test_known_stores_are_the_public_ones():
    assert stores.STORES["arco"] == "gs://gcp-public-data-arco-era5/ar/full_37-1h-0p25deg-chunk-1.zarr-v3"
    assert all(
        url.startswith("gs://weatherbench2/datasets/era5/") for name, url in stores.STORES.items() if "wb" in name
    )


def test_a_cloud_url_without_its_package_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    assert main(command("arco", tmp_path / "regional.nc")) == 2
    assert "pip install 'convlstm_wx[cloud]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("asked", "hours", "found"),
    [
        ("t2m", 6, "2m_temperature"),
        ("2t", 6, "2m_temperature"),
        ("T2M", 6, "2m_temperature"),
        ("2m_temperature", 6, "2m_temperature"),
        ("tp", 6, "total_precipitation_6hr"),
        ("tp", 24, "total_precipitation_6hr"),
        ("total_precipitation", 6, "total_precipitation"),
    ],
)
def test_short_and_long_names_find_the_variable(wb2_store, asked, hours, found):
    assert stores.find_variable(stores.open_store(str(wb2_store)), asked, hours) == found


@pytest.mark.parametrize(
    ("name", "units", "hours"),
    [
        ("total_precipitation", "m", 1),
        ("total_precipitation_24hr", "m", 24),
        ("surface_solar_radiation_downwards", "J m**-2", 1),
        ("2m_temperature", "K", None),
        ("snow_depth", "m of water equivalent", None),
    ],
)
def test_accumulations_are_known(name, units, hours):
    assert stores.hours_summed(name, {"units": units}) == hours
