"""Forecasts beyond memory, and a cluster: the same scores, nothing left behind, never the whole archive in memory."""

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from convlstm_wx.checkpoint import load_checkpoint
from convlstm_wx.cli import main
from convlstm_wx.commands.keeping import kept
from convlstm_wx.commands.trainings import Training, forecast
from convlstm_wx.data.reading import open_dataset
from convlstm_wx.device import choose_device
from convlstm_wx.forecast.rollout import Forecast, Trained
from tests.region_files import region, write

LITTLE = ["--memory-budget", "1e-9"]


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder with region.nc and a run of one epoch in run/."""
    folder = tmp_path_factory.mktemp("trained")
    path = write(region(days=240, height=5, width=6)[["t2m"]], folder / "region.nc")
    options = ["--hidden-channels", 4, "--input-steps", 2, "--lead-steps", 2, "--num-epochs", 1, "--device", "cpu"]
    assert run("train", "--data", path, "--output-dir", folder / "run", *options) == 0
    return folder


@pytest.fixture(scope="module")
def scored(trained) -> Path:
    """Its evaluation, with the forecasts in memory."""
    assert evaluation(trained, trained / "evaluation") == 0
    return trained / "evaluation"


def evaluation(trained: Path, output: Path, *options: object) -> int:
    made_of = ["--checkpoint", trained / "run/best.pt", "--data", trained / "region.nc"]
    return run("evaluate", *made_of, "--output", output, *options)


def same_scores(a: Path, b: Path) -> None:
    with xr.open_dataset(a / "scores.nc") as ours, xr.open_dataset(b / "scores.nc") as theirs:
        xr.testing.assert_allclose(ours.load(), theirs.load(), rtol=1e-9)


def test_forecasts_that_do_not_fit_into_memory_give_the_same_scores_and_leave_nothing(
    trained, scored, tmp_path, capsys
):
    assert evaluation(trained, tmp_path / "evaluation", *LITTLE) == 0
    assert "until they are scored" in capsys.readouterr().out
    same_scores(scored, tmp_path / "evaluation")
    assert [path.name for path in tmp_path.iterdir()] == ["evaluation"]


def test_comparisons_of_forecasts_that_do_not_fit_are_the_same_too(trained, tmp_path):
    pair = [trained / "run/best.pt", trained / "run/last.pt", "--data", trained / "region.nc"]
    for name, options in (("memory", []), ("file", LITTLE)):
        assert run("compare", *pair, "--output", tmp_path / name, *options) == 0
    with (
        xr.open_dataset(tmp_path / "memory/comparison.nc") as ours,
        xr.open_dataset(tmp_path / "file/comparison.nc") as theirs,
    ):
        xr.testing.assert_allclose(ours.load(), theirs.load(), rtol=1e-9)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "memory"]


def test_permutations_of_forecasts_that_do_not_fit_are_the_same_too(trained, tmp_path, capsys):
    data = ["--data", trained / "region.nc", "--device", "cpu"]
    sizes = ["--hidden-channels", 4, 8, "--input-steps", 2, "--lead-steps", 2, "--num-epochs", 1]
    region = ["--target-region", 50, 54, 0, 4, "--include-upstream"]
    assert run("train", *data, *sizes, *region, "--output-dir", tmp_path / "run") == 0
    for name, options in (("memory", []), ("file", LITTLE)):
        permute = ["permute-upstream", *data, "--checkpoint", tmp_path / "run", "--permutations", 2]
        assert run(*permute, "--output", tmp_path / name, *options) == 0
        assert capsys.readouterr().out.count("until they are scored") == (3 if options else 0)
    with (
        xr.open_dataset(tmp_path / "memory/permutation.nc") as ours,
        xr.open_dataset(tmp_path / "file/permutation.nc") as theirs,
    ):
        xr.testing.assert_allclose(ours.load(), theirs.load(), rtol=1e-6)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "memory", "run"]


def test_forecasts_of_an_experiment_are_written_piece_by_piece(trained, tmp_path, monkeypatch):
    config = load_checkpoint(trained / "run/best.pt").config
    training = Training("usual", replace(config, output_dir=str(tmp_path)))
    shutil.copy(trained / "run/best.pt", training.best)
    monkeypatch.delattr(Forecast, "collect")  # what has all of them in memory
    forecast(training, open_dataset(config.data))
    with xr.open_dataset(training.forecast) as made:
        assert made.sizes["init_time"] > 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.pt", "forecast.nc"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_the_temporary_file_goes_however_scoring_ends(trained, tmp_path, error):
    dataset = open_dataset([trained / "region.nc"])
    policy = choose_device("cpu", use_amp=False)
    some = dataset["time"].values[10:13]
    planned = Forecast([Trained(load_checkpoint(trained / "run/best.pt"))], dataset, some, 2, policy)

    def score() -> None:
        with kept(planned, tmp_path / "out", budget=1e-9) as made:
            assert made["t2m"].sizes["init_time"] == 3
            assert len(list(tmp_path.iterdir())) == 1
            raise error

    with pytest.raises(error):
        score()
    assert not list(tmp_path.iterdir())


def test_a_memory_budget_that_is_none_is_refused(trained, tmp_path, capsys):
    with pytest.raises(SystemExit):
        evaluation(trained, tmp_path / "evaluation", "--memory-budget", "-1")
    assert "'-1' is not a number above 0" in capsys.readouterr().err


# An archive of forecasts

PEAKS = """
import sys
import netCDF4
from convlstm_wx.data.reading import open_dataset, open_forecast
from convlstm_wx.verification import pairs
from convlstm_wx.verification.evaluate import evaluate

pairs.BLOCK_BYTES, pairs.LEAD_BYTES = 8e6, 4e6
netCDF4.set_chunk_cache(1_000_000)  # its own: 64 MB for each variable
truth = open_dataset(["truth.nc"])
for name in sys.argv[1:]:
    evaluate(open_forecast(name), truth, truth["time"].values[:400], baselines=["persistence"], thresholds=["t2m=280"])
    print(next(line for line in open("/proc/self/status") if "VmHWM" in line).split()[1])
"""


def write_archive(path: Path, truth: xr.Dataset, n_inits: int, leads: int, members: int) -> None:
    at = 420 + np.arange(n_inits)[:, None] + np.arange(1, leads + 1)
    values = truth["t2m"].values[at][:, None].repeat(members, axis=1)
    values += np.arange(members, dtype=np.float32)[:, None, None, None]
    coords = {"init_time": truth["time"].values[420:][:n_inits], "lat": truth["lat"], "lon": truth["lon"]}
    coords["lead_time"] = np.arange(1, leads + 1) * np.timedelta64(24, "h").astype("timedelta64[ns]")
    coords["realization"] = ("realization", np.arange(members), {"standard_name": "realization"})
    dims = ("init_time", "realization", "lead_time", "lat", "lon")
    archive = xr.Dataset({"t2m": (dims, values, {"units": "K"})}, coords)
    chunks = (20, 1, leads, truth.sizes["lat"], truth.sizes["lon"])
    if path.suffix == ".zarr":
        archive.to_zarr(path, encoding={"t2m": {"chunks": chunks}}, zarr_format=2)
    else:
        archive.to_netcdf(path, encoding={"t2m": {"chunksizes": chunks}})


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="tells its peak memory on Linux only")
@pytest.mark.parametrize("ending", ["nc", "zarr"])
def test_an_archive_of_forecasts_is_never_in_memory_as_a_whole(tmp_path, ending):
    truth = region(days=640, height=40, width=50)[["t2m"]]
    write(truth, tmp_path / "truth.nc")
    write_archive(tmp_path / f"small.{ending}", truth, 40, 4, 10)
    write_archive(tmp_path / f"large.{ending}", truth, 200, 4, 10)  # 64 MB
    names = [f"small.{ending}", f"large.{ending}"]
    command = [sys.executable, "-c", PEAKS, *names]
    said = subprocess.run(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True, check=True).stdout
    small, large = (1024 * int(line) for line in said.split())
    assert large - small < 64e6 / 2


# A cluster


@pytest.mark.slow
def test_a_cluster_gives_the_same_scores(trained, scored, tmp_path):
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster:
        address = ["--dask-scheduler", cluster.scheduler_address]
        assert evaluation(trained, tmp_path / "evaluation", *address) == 0
    same_scores(scored, tmp_path / "evaluation")
    assert [path.name for path in tmp_path.iterdir()] == ["evaluation"]


def test_a_cluster_that_is_not_there_is_told_before_any_work(trained, tmp_path, monkeypatch, capsys):
    pytest.importorskip("distributed")
    from convlstm_wx.preparing import cluster

    monkeypatch.setattr(cluster, "_WAIT_S", 0.5)
    assert evaluation(trained, tmp_path / "evaluation", "--dask-scheduler", "tcp://127.0.0.1:1") == 2
    said = capsys.readouterr()
    assert "no scheduler answers there" in said.err
    assert said.err.count("\n") == 1
    assert "device" not in said.out
    assert not list(tmp_path.iterdir())
