"""The notebook's way: load_forecaster(checkpoint).forecast(dataset)."""

import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from convlstm_wx import load_forecaster
from convlstm_wx.cli import main
from convlstm_wx.errors import CheckpointError, ConfigError, DataError
from tests.region_files import region, write

SMALL = ["--hidden-channels", "4", "8", "--input-steps", "3", "--lead-steps", "2", "--device", "cpu"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("api")
    write(region(days=200, levels=(850, 500)).assign_attrs(license="CC-BY"), folder / "region.nc")
    options = ["--data", folder / "region.nc", "--output-dir", folder / "run", *SMALL, "--num-epochs", 1]
    assert main(["train", *map(str, options)]) == 0
    return folder


@pytest.fixture(scope="module")
def forecaster(folder):
    return load_forecaster(folder / "run/best.pt", device="cpu")


def test_the_numbers_are_those_of_the_command_line(folder, forecaster, tmp_path):
    path = tmp_path / "f.nc"
    command = ["forecast", "--checkpoint", folder / "run/best.pt", "--data", folder / "region.nc", "--output", path]
    more = ["--device", "cpu", "--init-time", "2001-05-01", "latest", "--lead-steps", "3", "--members", "2"]
    assert main([*map(str, command), *more]) == 0
    arguments = {"init_time": ["2001-05-01", "latest"], "lead_steps": 3, "members": 2}
    from_path = forecaster.forecast(folder / "region.nc", **arguments)
    with xr.open_dataset(folder / "region.nc") as dataset:
        from_memory = forecaster.forecast(dataset.load(), **arguments)
    with xr.open_dataset(path) as written:
        for made in (from_path, from_memory):
            xr.testing.assert_equal(made, written.load())
            assert made.attrs["license"] == "CC-BY"
            assert made["t2m"].attrs["units"] == "K"


@pytest.mark.parametrize(
    "init_time",
    [
        "2001-05-01T00",
        np.datetime64("2001-05-01"),
        datetime(2001, 5, 1),
        datetime(2001, 5, 1, tzinfo=UTC),
        pd.Timestamp("2001-05-01T02:00+02:00"),
        pd.DatetimeIndex(["2001-05-01"]),
        xr.DataArray(np.array("2001-05-01", "datetime64[ns]")),
    ],
    ids=str,
)
def test_init_times_of_every_kind(folder, forecaster, init_time):
    made = forecaster.forecast(folder / "region.nc", init_time=init_time)
    assert made["init_time"].values.tolist() == [np.datetime64("2001-05-01", "ns").astype(int)]


def test_a_dataset_with_other_names_axes_and_calendar_is_read_like_a_file(folder, forecaster):
    expected = forecaster.forecast(folder / "region.nc", init_time="2001-05-01")
    with xr.open_dataset(folder / "region.nc") as dataset:
        renamed = dataset.rename(lat="latitude", lon="longitude", time="valid_time").isel(
            latitude=slice(None, None, -1)
        )
        xr.testing.assert_equal(forecaster.forecast(renamed, init_time="2001-05-01"), expected)
        noleap = dataset.convert_calendar("noleap")
        xr.testing.assert_equal(forecaster.forecast(noleap, init_time="2001-05-01"), expected)
        chunked = dataset.chunk(time=10)
        xr.testing.assert_equal(forecaster.forecast(chunked, init_time="2001-05-01"), expected)


def test_the_forecaster_says_what_it_is(forecaster):
    said = "Forecaster of t2m, tp, z@850hPa, z@500hPa on 7 x 9 points, from 3 times 24 h apart to +48 h; on cpu"
    assert repr(forecaster) == said


def test_mistakes_are_named(folder, forecaster):
    data = folder / "region.nc"
    with pytest.raises(DataError, match="the dataset: init time 2001-01-02T00:00: its 3 input times"):
        forecaster.forecast(xr.open_dataset(data), init_time="2001-01-02")
    with pytest.raises(ConfigError, match="noon: not a time"):
        forecaster.forecast(data, init_time="noon")
    with pytest.raises(ConfigError, match="lead_steps=0: must be at least 1"):
        forecaster.forecast(data, lead_steps=0)
    for name, value in {"batch_size": 0, "members": 0, "seed": -1, "perturbation": float("nan")}.items():
        with pytest.raises(ConfigError, match=f"^{name}={value}: must be at least"):
            forecaster.forecast(data, **{"members": 2, name: value})
    for time in (None, 20080101, np.datetime64("NaT")):
        with pytest.raises(ConfigError, match=r"^init_time=.*: not a time; give a text such as"):
            forecaster.forecast(data, init_time=time)
    with pytest.raises(ConfigError, match=r"init_time=\[\]: no time given"):
        forecaster.forecast(data, init_time=[])
    with pytest.raises(ConfigError, match="upstream: 1 given, but training read 0"):
        forecaster.forecast(data, upstream=[data])
    with pytest.raises(CheckpointError, match=r"the dataset does not fit the checkpoint.*no variable 'tp'"):
        forecaster.forecast(xr.open_dataset(data).drop_vars("tp"))
    with pytest.raises(DataError, match="the dataset: no time axis"):
        forecaster.forecast(xr.open_dataset(data).isel(time=0, drop=True))
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        load_forecaster(folder / "none.pt")
    with pytest.raises(ConfigError, match="no checkpoint given"):
        load_forecaster([])


def test_importing_the_package_loads_nothing_heavy():
    code = "import sys, convlstm_wx; sys.exit(any(name in sys.modules for name in ('torch', 'xarray', 'numpy')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    with pytest.raises(ImportError):
        from convlstm_wx import no_such_thing  # noqa: F401
