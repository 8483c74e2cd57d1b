"""Forecast files from the command line: which init times, how they are written, what outlives a stop."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from convlstm_wx.cli import main
from convlstm_wx.conventions import physical_limits, weatherbench_name
from convlstm_wx.data.reading import open_forecast
from convlstm_wx.forecast.choosing import parse_time
from convlstm_wx.pieces import Pieces
from tests.region_files import region, write

SMALL = ["--hidden-channels", "4", "8", "--input-steps", "3", "--lead-steps", "2", "--device", "cpu"]
TEXTS = {"license": "CC-BY 4.0", "institution": "Test Institute", "source": "simulated", "comment": "not handed on"}


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """region.nc, the same with gaps (gaps.nc), and a run of one epoch in run/."""
    folder = tmp_path_factory.mktemp("forecasting")
    whole = region(levels=(850, 500)).assign_attrs(TEXTS)
    write(whole, folder / "region.nc")
    # No 11 and 12 April, no 20 July 2001.
    write(whole.isel(time=[day for day in range(420) if day not in (100, 101, 200)]), folder / "gaps.nc")
    options = [*SMALL, "--num-epochs", 1, "--batch-size", 16]
    assert run("train", "--data", folder / "region.nc", "--output-dir", folder / "run", *options) == 0
    return folder


def forecast(folder: Path, output: Path, *options: object, data: str = "region.nc") -> int:
    return forecast_from(folder, folder / data, output, *options)


def forecast_from(folder: Path, data: Path, output: Path, *options: object) -> int:
    return run("forecast", "--checkpoint", folder / "run/best.pt", "--data", data, "--output", output, *options)


# Init times


def days(path: Path) -> list[str]:
    with xr.open_dataset(path) as made:
        return [str(time)[:10] for time in made["init_time"].values]


def test_latest_and_named_times_together(folder, tmp_path):
    assert forecast(folder, tmp_path / "f.nc", "--init-time", "latest", "2001-05-02", "2001-05-01") == 0
    assert days(tmp_path / "f.nc") == ["2001-05-01", "2001-05-02", "2002-02-24"]
    assert forecast(folder, tmp_path / "g.nc", "--init", "latest") == 0
    assert days(tmp_path / "g.nc") == ["2002-02-24"]


def test_the_end_of_a_period_is_all_of_it_as_in_prepare(folder, tmp_path):
    assert forecast(folder, tmp_path / "f.nc", "--start", "2001-05-30", "--end", "2001-05") == 0
    assert days(tmp_path / "f.nc") == ["2001-05-30", "2001-05-31"]
    assert parse_time("--end", "2008", last=True) == np.datetime64("2008-12-31T23:59:59")
    assert parse_time("--end", "2008-07-01T12:00:00.5Z", last=True) == np.datetime64("2008-07-01T12:00:00")


def test_a_file_too_short_to_start_from_is_not_told_to_have_a_gap(folder, tmp_path, capsys):
    write(region(levels=(850, 500)).isel(time=slice(2)), tmp_path / "short.nc")
    assert forecast_from(folder, tmp_path / "short.nc", tmp_path / "f.nc") == 2
    said = capsys.readouterr().err
    assert "short.nc: holds 2 times, but a forecast starts from 3, one each 1 d" in said
    assert "gap" not in said


def test_every_takes_the_start_and_each_so_much_later(folder, tmp_path):
    assert forecast(folder, tmp_path / "f.nc", "--start", "2001-05-01", "--end", "2001-05-14", "--every", "5d") == 0
    assert days(tmp_path / "f.nc") == ["2001-05-01", "2001-05-06", "2001-05-11"]


def test_init_times_far_apart_get_the_same_forecasts_as_alone(folder, tmp_path):
    assert forecast(folder, tmp_path / "far.nc", "--every", "100d") == 0
    assert days(tmp_path / "far.nc") == ["2001-01-03", "2001-04-13", "2001-07-22", "2001-10-30", "2002-02-07"]
    assert forecast(folder, tmp_path / "one.nc", "--init-time", "2001-07-22") == 0
    with xr.open_dataset(tmp_path / "far.nc") as far, xr.open_dataset(tmp_path / "one.nc") as one:
        xr.testing.assert_allclose(far.isel(init_time=[2]), one, rtol=1e-6)


def test_a_period_leaves_out_what_a_gap_makes_impossible_and_says_which(folder, tmp_path, capsys):
    assert forecast(folder, tmp_path / "f.nc", "--start", "2001-04-09", "--end", "2001-04-17", data="gaps.nc") == 0
    assert days(tmp_path / "f.nc") == ["2001-04-09", "2001-04-10", "2001-04-15", "2001-04-16", "2001-04-17"]
    said = capsys.readouterr().out
    assert "2 of 7 init times left out" in said
    assert "nothing between 2001-04-10T00:00 and 2001-04-13T00:00" in said
    assert "2001-07" not in said  # the other gap is none of this period's
    assert forecast(folder, tmp_path / "g.nc", "--every", "1d", data="gaps.nc") == 0
    assert "7 of 418 init times left out" in capsys.readouterr().out  # those that are not in the file, too


def test_init_times_with_missing_values_are_left_out_of_a_period_and_refused_by_name(folder, tmp_path, capsys):
    holed = region(levels=(850, 500))
    holed["t2m"][120, 2, 3] = np.nan
    write(holed, tmp_path / "holed.nc")
    data = ["--checkpoint", folder / "run/best.pt", "--data", tmp_path / "holed.nc", "--output", tmp_path / "f.nc"]
    assert run("forecast", *data, "--start", "2001-04-29", "--end", "2001-05-06") == 0
    assert "3 of 8 init times left out: their inputs have missing values" in capsys.readouterr().out
    assert days(tmp_path / "f.nc") == ["2001-04-29", "2001-04-30", "2001-05-04", "2001-05-05", "2001-05-06"]
    assert run("forecast", *data, "--init-time", "2001-04-01", "2001-05-02") == 2
    assert "inputs of init time 2001-05-02T00:00 have missing values that training had not, at 2001-05-01T00:00" in (
        capsys.readouterr().err
    )
    assert run("forecast", *data, "--start", "2001-05-01", "--end", "2001-05-03") == 2
    assert "the inputs of all 3 init times have missing values" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f.nc", "holed.nc"]  # the first one, nothing else


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--init-time", "2001-04-13"],
            "its 3 input times, one each 1 d, are not all in the file: missing are 2001-04-11",
        ),
        (
            ["--init-time", "2001-07-22"],
            "are not all in the file: missing is 2001-07-20T00:00; possible are 2001-01-03",
        ),
        (["--init-time", "2001-04-12"], "its times go from 2001-04-10T00:00 on to 2001-04-13T00:00"),
        (["--init-time", "2001-01-02"], "are not all in the file, which covers 2001-01-01T00:00 to 2002-02-24T00:00"),
        (["--init-time", "2001-05-01", "--every", "1d"], "--init-time goes alone"),
        (["--every", "36h"], "--every 36 h: not a multiple of the file's time step, 1 d"),
        (["--init-time", "2001-05-01T00:00+05:30"], "+05:30: not a time; write it as 2008-07-01 or"),
        (["--every", "often"], "'often' is not a step such as 1h, 6h or 1d"),
        (["--start", "2001-04-11", "--end", "2001-04-14"], "no init time between 2001-04-11 and 2001-04-14"),
        (
            ["--members", "3", "--perturbation", "0"],
            "--members 3 of 1 checkpoint without errors or perturbation are the same",
        ),
        (["--perturbation", "-1"], "'-1' is not a number of at least 0"),
        (["--statistics", "s.nc"], "--statistics: one forecast has no mean and spread"),
        (["--members", "2", "--statistics", "f.nc"], "--statistics f.nc: is the --output already"),
        (["--members", "2", "--statistics", "f.txt"], "--statistics f.txt: must end in .nc or .zarr"),
        (["--members", "2", "--statistics", "gaps.nc"], "--statistics gaps.nc: is an input of this command"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_forecast_is_one_line_and_nothing_is_written(folder, monkeypatch, capsys, options, message):
    monkeypatch.chdir(folder)
    before = sorted(os.walk("."))
    try:
        code = forecast(Path("."), Path("f.nc"), *options, data="gaps.nc")
    except SystemExit as error:
        code = error.code
    said = capsys.readouterr().err.strip()
    assert code == 2
    assert message in said
    assert len(said.splitlines()) == 1
    assert sorted(os.walk(".")) == before


def test_data_that_differ_are_refused_with_every_difference(folder, tmp_path, capsys):
    other = region(levels=(850,), step_hours=12, days=40, height=6).rename(t2m="temperature")
    other["tp"].attrs["units"] = "mm"
    path = write(other, tmp_path / "other.nc")
    data = ["--checkpoint", folder / "run/best.pt", "--data", path, "--output", tmp_path / "f.nc"]
    assert run("forecast", *data) == 2
    said = capsys.readouterr().err
    for difference in (
        "time step 12 h instead of 1 d",
        "no variable 't2m' (there are: temperature tp z)",
        "'tp' is in mm instead of m",
        "no level 500 hPa",
        "latitudes 50 to 60 by 2 (6) instead of 48 to 60 by 2 (7)",
        "can be brought in line with convlstm-wx prepare",
    ):
        assert difference in said
    assert [path.name for path in tmp_path.iterdir()] == ["other.nc"]


# What the checkpoint alone knows


def test_levels_upstream_masks_and_static_fields_come_from_the_checkpoint(tmp_path, capsys):
    rich = region(days=200, levels=(850, 500))
    rich["t2m"][:, 0] = np.nan
    rich["orog"] = (("lat", "lon"), np.arange(63.0).reshape(7, 9), {"units": "m"})
    path = write(rich, tmp_path / "rich.nc")
    boxes = ["--target-region", 48, 60, 0, 6, "--include-upstream", "--levels", 500, "--target-variables", "t2m", "z"]
    assert run("train", "--data", path, "--output-dir", tmp_path / "run", *SMALL, "--num-epochs", 1, *boxes) == 0
    shuffled = rich.isel(level=[1, 0], time=slice(150, None))[["z", "orog", "tp", "t2m"]]
    write(shuffled, tmp_path / "later.nc")
    made = tmp_path / "f.nc"
    assert (
        run("forecast", "--checkpoint", tmp_path / "run/best.pt", "--data", tmp_path / "later.nc", "--output", made)
        == 0
    )
    with xr.open_dataset(made) as forecasts:
        assert set(forecasts.data_vars) == {"t2m", "z"}
        assert forecasts["level"].values.tolist() == [500]
        assert forecasts["lon"].values.tolist() == [0, 2, 4, 6]
        assert np.isnan(forecasts["t2m"].sel(lat=60)).all()  # never observed
        assert np.isfinite(forecasts["t2m"].sel(lat=slice(58, None))).all()
    write(shuffled.drop_vars("orog"), tmp_path / "flat.nc")
    assert (
        run("forecast", "--checkpoint", tmp_path / "run/best.pt", "--data", tmp_path / "flat.nc", "--output", made) == 2
    )
    assert "static fields none instead of orog" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "units", "limits"),
    [
        ("tp", "m", (0, np.inf)),
        ("q", "g kg-1", (0, 100)),
        ("rh", "%", (0, 180)),
        ("tcc", "%", (0, 100)),
        ("tcc", "1", (0, 1)),
        ("siconc", "(0 - 1)", (0, 1)),
        ("vis", "km", (0, np.inf)),
        ("swvl1", "m**3 m**-3", (0, 1)),
        ("precipitationCal", "mm/hr", (0, np.inf)),
        ("t2m", "degC", None),
        ("u10", "m s-1", None),
        ("unheard_of", "1", None),
    ],
)
def test_quantities_that_have_limits(name, units, limits):
    found = physical_limits(name, {"units": units})
    assert found == limits


def test_humidity_stays_within_its_limits_whatever_it_starts_from(tmp_path):
    damp = region(days=200).drop_vars("tp")
    wave = (damp["t2m"] - damp["t2m"].mean()) / damp["t2m"].std()
    damp["rh"] = (90 + 40 * wave).assign_attrs(units="%", long_name="relative humidity")
    path = write(damp, tmp_path / "damp.nc")
    assert run("train", "--data", path, "--output-dir", tmp_path / "run", *SMALL, "--num-epochs", 1) == 0
    damp["rh"] = (3 * damp["rh"] - 200).assign_attrs(damp["rh"].attrs)
    assert float(damp["rh"].min()) < -50
    assert forecast_from(tmp_path, write(damp, tmp_path / "wild.nc"), tmp_path / "f.nc", "--start", "2001") == 0
    with xr.open_dataset(tmp_path / "f.nc") as forecasts:
        assert float(forecasts["rh"].min()) == 0
        assert float(forecasts["rh"].max()) == 180


# Layout


@pytest.mark.parametrize("ending", ["nc", "zarr"])
def test_the_layout_of_weatherbench_has_its_names_and_the_same_numbers(folder, tmp_path, ending):
    period = ["--start", "2001-05-01", "--end", "2001-05-20"]
    for layout in ("cf", "wb2"):
        assert forecast(folder, tmp_path / f"{layout}.{ending}", *period, "--layout", layout) == 0
    with xr.open_dataset(tmp_path / f"wb2.{ending}") as made:
        assert set(made.dims) == {"time", "prediction_timedelta", "level", "latitude", "longitude"}
        # tp keeps its name: WeatherBench 2's would tell over how many hours it is summed.
        assert set(made.data_vars) == {"2m_temperature", "geopotential", "tp"}
        assert made["prediction_timedelta"].dtype == "timedelta64[ns]"
        assert made["level"].dtype == "int64"
        assert made["time"].values[0] == np.datetime64("2001-05-01")
    back, own = open_forecast(tmp_path / f"wb2.{ending}"), open_forecast(tmp_path / f"cf.{ending}")
    xr.testing.assert_equal(back, own)
    assert back["t2m"].attrs["units"] == "K"


def test_only_variables_in_its_units_get_weatherbench_names():
    assert (
        weatherbench_name("air", {"units": "degK", "standard_name": "air_temperature"}, on_levels=True) == "temperature"
    )
    assert weatherbench_name("t2m", {"units": "degC"}, on_levels=False) == "t2m"
    assert weatherbench_name("z", {"units": "m"}, on_levels=True) == "z"  # a height, not a geopotential
    assert weatherbench_name("fog", {"units": "1"}, on_levels=False) == "fog"


@pytest.mark.parametrize("options", [[], ["--members", "3"]])
def test_the_cf_checker_finds_no_error(folder, tmp_path, options):
    """The names of WeatherBench 2 are not CF's: its 2m_temperature begins with a digit."""
    runner = pytest.importorskip("compliance_checker.runner")
    path = tmp_path / "f.nc"
    assert forecast(folder, path, "--start", "2001-05-01", "--end", "2001-05-03", *options) == 0
    suite = runner.CheckSuite()
    suite.load_all_available_checkers()
    results, raised = suite.run_all(suite.load_dataset(str(path)), ["cf:1.11"], skip_checks=[])["cf:1.11"]
    assert raised == {}
    wrong = {result.name: result.msgs for result in results if result.value[0] < result.value[1]}
    # A recommendation only, which no file with init and lead times can follow.
    assert set(wrong) <= {"§2.4 Dimensions"}
    assert all("recommended order" in message for messages in wrong.values() for message in messages)


def test_what_the_data_say_of_their_licence_is_handed_on(folder, tmp_path):
    assert forecast(folder, tmp_path / "f.nc") == 0
    with xr.open_dataset(tmp_path / "f.nc") as made:
        assert made.attrs["license"] == "CC-BY 4.0"
        assert made.attrs["data_institution"] == "Test Institute"
        assert made.attrs["data_source"] == "simulated"
        assert "comment" not in made.attrs
        assert made["t2m"].encoding["coordinates"] == "valid_time"


# Stops


def interrupt_after(pieces: int, monkeypatch) -> None:
    """Ctrl-C after so many pieces are kept."""
    add = Pieces.add

    def add_and_stop(self, number, arrays):
        add(self, number, arrays)
        if number + 1 == pieces:
            raise KeyboardInterrupt

    monkeypatch.setattr(Pieces, "add", add_and_stop)


@pytest.mark.parametrize("ending", ["nc", "zarr"])
def test_a_stopped_forecast_goes_on_and_equals_one_that_was_not(folder, tmp_path, monkeypatch, capsys, ending):
    request = ["--start", "2001-05-01", "--end", "2001-06-20", "--batch-size", 8]  # seven pieces
    assert forecast(folder, tmp_path / f"whole.{ending}", *request) == 0
    output, partial = tmp_path / f"f.{ending}", tmp_path / f".f.{ending}.partial"
    with monkeypatch.context() as patch:
        interrupt_after(3, patch)
        assert forecast(folder, output, *request) == 130
    assert "run the same command again to go on" in capsys.readouterr().out
    assert not output.exists()
    (partial / "00001.npz").write_bytes((partial / "00001.npz").read_bytes()[:100])  # the power went
    assert forecast(folder, output, *request, "--lead-steps", 3) == 2
    assert "holds an unfinished forecast with another lead steps" in capsys.readouterr().err
    assert forecast(folder, output, *request, data="gaps.nc") == 2
    assert "with another data" in capsys.readouterr().err.replace("init times, ", "")
    assert forecast(folder, output, *request) == 0
    assert "2 of 7 pieces are here already" in capsys.readouterr().out
    xr.testing.assert_identical(xr.open_dataset(output).load(), xr.open_dataset(tmp_path / f"whole.{ending}").load())
    assert not partial.exists()


def test_restart_throws_away_what_another_request_left(folder, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt_after(1, patch)
        assert forecast(folder, tmp_path / "f.nc", "--start", "2001-05-01", "--end", "2001-06-20") == 130
    assert forecast(folder, tmp_path / "f.nc") == 2
    assert forecast(folder, tmp_path / "f.nc", "--restart") == 0
    assert [path.name for path in tmp_path.iterdir()] == ["f.nc"]


CHILD = "import sys; from convlstm_wx.cli import main; code = main(sys.argv[1:]); "
PEAK = "print(next(line for line in open('/proc/self/status') if 'VmHWM' in line)); sys.exit(code)"


def child(*arguments: object) -> list[str]:
    return [sys.executable, "-c", CHILD + PEAK, *map(str, arguments)]


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["nc", "zarr"])
def test_a_killed_forecast_goes_on_bit_for_bit(folder, tmp_path, ending):
    request = [
        "--checkpoint",
        folder / "run/best.pt",
        "--data",
        folder / "region.nc",
        "--start",
        "2001",
        "--device",
        "cpu",
    ]
    request += ["--lead-steps", 40, "--batch-size", 32]
    assert run("forecast", *request, "--output", tmp_path / f"whole.{ending}") == 0
    output = tmp_path / f"f.{ending}"
    command = child("forecast", *request, "--output", output)
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    for number in (2, 5):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=env)
        while not (tmp_path / f".f.{ending}.partial/{number:05d}.npz").exists():
            assert process.poll() is None
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not output.exists()
    said = subprocess.run(command, capture_output=True, text=True, check=True, env=env).stdout
    assert "of 14 pieces are here already" in said
    xr.testing.assert_identical(xr.open_dataset(output).load(), xr.open_dataset(tmp_path / f"whole.{ending}").load())
    assert sorted(path.name for path in tmp_path.iterdir()) == [output.name, f"whole.{ending}"]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="tells its peak memory on Linux only")
def test_memory_does_not_grow_with_the_number_of_init_times(tmp_path):
    path = write(region(days=760, height=24, width=30), tmp_path / "region.nc")
    assert run("train", "--data", path, "--output-dir", tmp_path / "run", *SMALL, "--num-epochs", 1) == 0
    request = ["forecast", "--checkpoint", tmp_path / "run/best.pt", "--data", path, "--device", "cpu"]
    request += ["--lead-steps", 24, "--output", tmp_path / "f.nc", "--start", "2001-01-03", "--end"]
    peaks_mb = []
    for end in ("2001-02-15", "2002-12-31"):
        done = subprocess.run(child(*request, end), capture_output=True, text=True, check=True)
        peaks_mb.append(int(done.stdout.split("VmHWM:")[1].split()[0]) / 1024)
    with xr.open_dataset(tmp_path / "f.nc") as made:
        assert made.nbytes / 2**20 > 90
    assert peaks_mb[1] - peaks_mb[0] < 45, peaks_mb
