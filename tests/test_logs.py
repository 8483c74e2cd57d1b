"""What is told about a run: errors in physical units, the progress bar, training.log, TensorBoard."""

import csv
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

from convlstm_wx.checkpoint import load_checkpoint, save_checkpoint
from convlstm_wx.cli import main
from convlstm_wx.config import TrainConfig
from convlstm_wx.data.inputs import prepare_training
from convlstm_wx.data.loaders import TensorBatch
from convlstm_wx.data.splits import VALIDATION
from convlstm_wx.distributed import Processes
from convlstm_wx.training.logbook import postfix, tensorboard
from convlstm_wx.training.skill import PhysicalErrors
from tests.region_files import region, write

ROOT = Path(__file__).parents[1]
SMALL = ["--hidden-channels", "4", "8", "--input-steps", "3", "--lead-steps", "2", "--device", "cpu"]
SMALL += ["--batch-size", "8"]
SPLIT = ["--validation-months", "2001-04", "--held-out-months", "2001-02"]


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.open()))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Temperature with a daily cycle, and rain."""
    path = tmp_path_factory.mktemp("data") / "region.nc"
    dataset = region(days=150, step_hours=12, height=5, width=6)
    dataset["t2m"] = dataset["t2m"] + 4 * (dataset["time"].dt.hour == 12)
    dataset["t2m"].attrs["units"] = "K"
    return write(dataset.transpose("time", "lat", "lon"), path)


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory) -> Path:
    """A run of three epochs with TensorBoard."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    options = ["--num-epochs", 3, "--checkpoint-frequency", 1, "--keep-checkpoints", 0, "--tensorboard"]
    options += ["--batch-size", 4]  # so many steps that its picture changes
    options += ["--blend", "none"]  # else the linear model is nearly all, and nothing to see changes
    assert run("train", "--data", data, "--output-dir", folder, *SMALL, *SPLIT, *options) == 0
    return folder


# Errors in physical units


def test_validation_rmse_is_what_evaluate_gives(data, trained, tmp_path):
    options = ["--months", "2001-04", "--allow-seen", "--device", "cpu"]
    last = trained / "last.pt"
    assert run("evaluate", "--checkpoint", last, "--data", data, "--output", tmp_path / "e", *options) == 0
    scores = xr.open_dataset(tmp_path / "e/scores.nc")
    noted = [row for row in rows(trained / "validation_rmse.csv") if row["epoch"] == "3"]
    assert len(noted) == 2 * 2
    for row in noted:
        lead = list(scores["lead_hours"].values).index(float(row["lead_hours"]))
        rmse = scores["rmse"].isel(lead_time=lead).sel(channel=row["variable"])
        assert float(row["rmse"]) == pytest.approx(float(rmse.sel(system="model")), rel=1e-4)
        assert float(row["persistence_rmse"]) == pytest.approx(float(rmse.sel(system="persistence")), rel=1e-4)
        assert row["unit"] == {"t2m": "K", "tp": "m"}[row["variable"]]


def test_where_the_last_input_is_missing_nothing_is_scored_as_in_evaluate(tmp_path):
    dataset = region(days=150, step_hours=12, height=5, width=6)
    fields = dataset["t2m"].values
    fields[3::7, :2, :3] = np.nan  # some of the sensors, every seventh time
    data, folder = write(dataset, tmp_path / "gaps.nc"), tmp_path / "run"
    options = ["--data", data, "--output-dir", folder, *SMALL, *SPLIT, "--num-epochs", 1]
    assert run("train", *options, "--target-variables", "t2m") == 0
    scored = ["--checkpoint", folder / "last.pt", "--data", data, "--output", tmp_path / "e", "--device", "cpu"]
    assert run("evaluate", *scored, "--months", "2001-04", "--allow-seen", "--baselines", "persistence") == 0
    scores = xr.open_dataset(tmp_path / "e/scores.nc")["rmse"].sel(channel="t2m")
    noted = rows(folder / "validation_rmse.csv")
    for row, lead in zip(noted, range(2), strict=True):
        for name, system in (("rmse", "model"), ("persistence_rmse", "persistence")):
            assert float(row[name]) == pytest.approx(float(scores.isel(lead_time=lead).sel(system=system)), rel=1e-4)


def test_a_constant_error_comes_back_in_the_files_units_and_missing_points_do_not_count(data):
    config = TrainConfig(data=(str(data),), input_steps=3, lead_steps=2, target_variables=("t2m",))
    inputs = prepare_training(config)
    windows = inputs.windows(VALIDATION)
    batch = windows.gather([0, 1])
    y = torch.from_numpy(batch.y_BLDHW)
    valid = torch.ones_like(y)
    valid[:, :, :, 0] = 0
    forecast = torch.where(valid > 0, y + 0.5, 1e9)
    errors = PhysicalErrors(inputs.spec, windows.times[windows.init_indices], torch.device("cpu"))
    x = torch.from_numpy(batch.x_BTCHW)
    errors.add(forecast, TensorBatch(x, torch.empty(0), [], [], y, valid))
    half = 0.5 * float(inputs.spec.target.statistics.std_C[0])
    assert errors.rmse(Processes()) == {"t2m": pytest.approx([half, half], rel=1e-4)}


def test_without_a_valid_point_the_rmse_is_no_number(data):
    inputs = prepare_training(TrainConfig(data=(str(data),), input_steps=3, lead_steps=2))
    errors = PhysicalErrors(inputs.spec, np.empty(0, "datetime64[ns]"), torch.device("cpu"))
    assert np.isnan(errors.rmse(Processes())["tp"]).all()


def test_the_file_holds_what_the_checkpoint_holds(trained):
    progress = load_checkpoint(trained / "last.pt").training["progress"]
    noted = rows(trained / "validation_rmse.csv")
    assert [row["epoch"] for row in noted] == ["1"] * 4 + ["2"] * 4 + ["3"] * 4
    assert [(row["variable"], row["lead_hours"]) for row in noted[:4]] == [
        *[("t2m", "12"), ("t2m", "24")],
        *[("tp", "12"), ("tp", "24")],
    ]
    for row in noted:
        at = int(float(row["lead_hours"]) / 12) - 1
        assert float(row["rmse"]) == pytest.approx(progress["rmse"][int(row["epoch"])][row["variable"]][at], rel=1e-5)


def test_resuming_goes_on_with_the_same_numbers(trained, tmp_path):
    assert (
        run("train", "--resume", trained / "epoch_0002.pt", "--output-dir", tmp_path / "run", "--no-tensorboard") == 0
    )
    assert rows(tmp_path / "run/validation_rmse.csv") == rows(trained / "validation_rmse.csv")
    assert not (tmp_path / "run/tensorboard").exists()


def test_a_checkpoint_of_an_earlier_version_can_be_resumed(trained, tmp_path):
    old = load_checkpoint(trained / "epoch_0002.pt")
    del old.training["progress"]["rmse"], old.training["progress"]["persistence_rmse"]
    save_checkpoint(tmp_path / "old.pt", old)
    assert run("train", "--resume", tmp_path / "old.pt", "--output-dir", tmp_path / "run", "--no-tensorboard") == 0
    assert {row["epoch"] for row in rows(tmp_path / "run/validation_rmse.csv")} == {"3"}


# The terminal and training.log


def test_behind_the_bar_stand_loss_and_learning_rate():
    assert postfix(0.5, 3e-4) == "loss=0.500, lr=3.0e-04"


def test_a_terminal_shows_loss_learning_rate_speed_and_time_left(data, tmp_path):
    termios = pytest.importorskip("termios", reason="a system without pseudo-terminals")
    reader, terminal = os.openpty()
    termios.tcsetwinsize(terminal, (40, 150))
    command = [sys.executable, ROOT / "train_convlstm.py", "--data", data, *SMALL, "--num-epochs", 1]
    process = subprocess.Popen(
        [str(part) for part in [*command, "--output-dir", tmp_path / "run", "--log-level", "error"]],
        stderr=terminal,
        env=os.environ | {"OMP_NUM_THREADS": "1", "TQDM_MININTERVAL": "0"},
    )
    os.close(terminal)
    shown = b""
    try:
        while piece := os.read(reader, 65536):
            shown += piece
    except OSError:  # how Linux says that the other end is closed
        pass
    os.close(reader)
    assert process.wait() == 0
    assert re.search(r"epoch 1/1.*\d/\d+ \[\d\d:\d\d<\d\d:\d\d, +[\d.]+ windows/s, loss=\d.\d+, lr=", shown.decode())


def test_the_log_holds_what_the_terminal_showed_from_the_first_line_on(data, tmp_path, capsys):
    options = ["--data", data, "--output-dir", tmp_path / "run", "--num-epochs", 1, *SMALL]
    assert run("train", *options, "--resume", "auto") == 0
    shown = capsys.readouterr().out.splitlines()
    logged = [
        re.sub(r"^\S+ (INFO|WARNING) ", "", line) for line in (tmp_path / "run/training.log").read_text().splitlines()
    ]
    assert "nothing to resume" in shown[0]
    assert logged == shown


def test_the_log_ends_with_the_error_that_ended_the_run(data, tmp_path, capsys):
    options = ["--learning-rate", 1e18, "--gradient-clip-norm", 0, "--num-epochs", 2]
    assert run("train", "--data", data, "--output-dir", tmp_path / "run", *SMALL, *options) == 2
    said = capsys.readouterr().err.strip().removeprefix("convlstm-wx train: ")
    assert (tmp_path / "run/training.log").read_text().splitlines()[-1].endswith(f"ERROR {said}")


# TensorBoard


def events(folder: Path):
    """What TensorBoard would show."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = accumulator.EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0})
    return found.Reload()


def curve(found, tag: str) -> dict[int, float]:
    points = found.Scalars(tag)
    assert len({point.step for point in points}) == len(points)
    return {point.step: point.value for point in points}


def test_tensorboard_has_losses_learning_rate_and_errors_in_physical_units(trained):
    found = events(trained / "tensorboard")
    history = rows(trained / "history.csv")
    last = load_checkpoint(trained / "last.pt").training["progress"]["global_step"]
    ends = [last // 3, 2 * last // 3, last]
    for name, column in (("training", "train"), ("validation", "validation"), ("persistence", "persistence")):
        noted = [float(row[f"{column}_loss"]) for row in history]
        assert curve(found, f"loss/{name}") == dict(zip(ends, [pytest.approx(value, rel=1e-4) for value in noted]))
    for row in rows(trained / "validation_rmse.csv"):
        points = curve(found, f"RMSE {row['variable']} ({row['unit']})/+{row['lead_hours']} h")
        assert points[ends[int(row["epoch"]) - 1]] == pytest.approx(float(row["rmse"]), rel=1e-4)
    for name in ("loss", "learning_rate", "gradient_norm"):
        assert sorted(curve(found, f"step/{name}")) == list(range(10, last + 1, 10))


def test_tensorboard_has_an_example_forecast_of_each_epoch(trained):
    found = events(trained / "tensorboard")
    assert found.Tags()["images"] == ["forecast/t2m", "forecast/tp"]
    for tag in found.Tags()["images"]:
        pictures = found.Images(tag)
        assert len(pictures) == 3
        assert pictures[0].encoded_image_string[:4] == b"\x89PNG"
        assert pictures[0].encoded_image_string != pictures[2].encoded_image_string  # of a network that learns


def test_a_resumed_run_shows_each_step_once(data, tmp_path):
    """Even if the run went further before it was killed than the checkpoint that it goes on from."""
    options = ["--variables", "t2m", "--checkpoint-frequency", 1, "--keep-checkpoints", 0, "--tensorboard"]
    given = ["--data", data, "--output-dir", tmp_path, *SMALL, *SPLIT, *options]
    assert run("train", *given, "--num-epochs", 3) == 0
    whole = events(tmp_path / "tensorboard")
    assert run("train", *given, "--num-epochs", 3, "--resume", tmp_path / "epoch_0001.pt") == 0
    resumed = events(tmp_path / "tensorboard")
    assert len(list((tmp_path / "tensorboard").iterdir())) == 2
    assert resumed.Tags()["scalars"] == whole.Tags()["scalars"]
    for tag in ("loss/validation", "RMSE t2m (K)/+12 h"):
        assert curve(resumed, tag) == curve(whole, tag)
    assert sorted(curve(resumed, "step/learning_rate")) == sorted(curve(whole, "step/learning_rate"))
    assert run("train", *given, "--num-epochs", 1, "--overwrite") == 0
    assert len(list((tmp_path / "tensorboard").iterdir())) == 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_curves_that_cannot_be_written_do_not_end_a_run(data, tmp_path, caplog, capsys):
    spec = prepare_training(TrainConfig(data=(str(data),), input_steps=3, lead_steps=2)).spec
    with caplog.at_level("WARNING"), tensorboard(tmp_path / "gone", spec, 0, lambda example: {}) as board:
        shutil.rmtree(tmp_path / "gone")
        for epoch in range(3):
            board.epoch(epoch, {"training": 1.0}, {"t2m": [1.0, 2.0], "tp": [1.0, 2.0]})
    assert [record.getMessage() for record in caplog.records] == [
        "TensorBoard: No such file or directory; its curves end here, the run goes on"
    ]
    assert "Traceback" not in capsys.readouterr().err


def test_without_the_package_nothing_begins(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert run("train", "--data", data, "--output-dir", tmp_path / "run", *SMALL, "--tensorboard") == 2
    said = capsys.readouterr()
    assert "pip install 'convlstm_wx[logs]'" in said.err
    assert len(said.err.strip().splitlines()) == 1
    assert said.out == ""
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_two_processes_find_the_errors_of_one_and_write_once(data, tmp_path):
    exact = ["--dropout", 0, "--input-noise", 0, "--num-epochs", 1, "--tensorboard", *SMALL, *SPLIT]
    one = [sys.executable, ROOT / "train_convlstm.py"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2]
    two = [*torchrun, ROOT / "train_convlstm.py"]
    for name, command, batch_size in (("one", one, 16), ("two", two, 8)):
        given = ["--data", data, *exact, "--batch-size", batch_size, "--output-dir", tmp_path / name]
        parts = [str(part) for part in [*command, *given]]
        env = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(parts, capture_output=True, text=True, env=env, check=False)
        assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "two/tensorboard").iterdir())) == 1
    for mine, theirs in zip(rows(tmp_path / "one/validation_rmse.csv"), rows(tmp_path / "two/validation_rmse.csv")):
        assert float(theirs["rmse"]) == pytest.approx(float(mine["rmse"]), rel=1e-4)
        assert theirs["persistence_rmse"] == mine["persistence_rmse"]
