"""The real command line, end to end: train, forecast, evaluate, and every mistake that a user can make."""

import csv
import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

from convlstm_wx.checkpoint import load_checkpoint
from convlstm_wx.cli import main
from convlstm_wx.commands import train
from convlstm_wx.config import TrainConfig
from tests.region_files import region, write

ROOT = Path(__file__).parents[1]
SMALL = ["--hidden-channels", "4", "8", "--input-steps", "3", "--lead-steps", "2", "--device", "cpu"]
SMALL += ["--batch-size", "8"]


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder with region.nc and a run of three epochs in run/."""
    folder = tmp_path_factory.mktemp("trained")
    path = write(region(levels=(850, 500)), folder / "region.nc")
    options = [*SMALL, "--num-epochs", 3, "--checkpoint-frequency", 1, "--keep-checkpoints", 2]
    assert run("train", "--data", path, "--output-dir", folder / "run", *options) == 0
    return folder


@pytest.fixture(scope="module")
def short(tmp_path_factory) -> list[object]:
    """Options that train one quick epoch on one variable of five months."""
    path = write(region(days=150, height=5, width=6)[["t2m"]], tmp_path_factory.mktemp("short") / "short.nc")
    return ["--data", path, "--num-epochs", 1, *SMALL]


@pytest.fixture(scope="module")
def reference(short, tmp_path_factory) -> Path:
    """The run of these options alone."""
    folder = tmp_path_factory.mktemp("reference") / "run"
    assert run("train", *short, "--output-dir", folder) == 0
    return folder


@pytest.fixture(scope="module")
def scored(trained) -> Path:
    """Its evaluation, only to be looked at."""
    assert evaluation(trained, trained / "evaluation") == 0
    return trained / "evaluation"


def evaluation(trained: Path, output: Path, *options: object) -> int:
    data = ["--data", trained / "region.nc", "--output", output]
    return run("evaluate", "--checkpoint", trained / "run/best.pt", *data, *options)


# train


def test_training_leaves_what_it_promises(trained):
    names = sorted(path.name for path in (trained / "run").iterdir())
    periodic = ["epoch_0002.pt", "epoch_0003.pt"]  # of three, the newest two are kept
    logs = ["history.csv", "last.pt", "training.log", "validation_rmse.csv"]
    assert names == ["best.pt", "config.json", *periodic, *logs]
    assert json.loads((trained / "run/config.json").read_text())["hidden_channels"] == [4, 8]
    rows = list(csv.DictReader((trained / "run/history.csv").open()))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert float(rows[-1]["train_loss"]) < float(rows[0]["train_loss"])
    assert "held out" in (trained / "run/training.log").read_text()


def test_best_is_the_epoch_with_the_lowest_validation_loss(trained):
    rows = list(csv.DictReader((trained / "run/history.csv").open()))
    best = min(rows, key=lambda row: float(row["validation_loss"]))
    progress = load_checkpoint(trained / "run/best.pt").training["progress"]
    assert progress["epoch"] - 1 == int(best["epoch"])


def test_training_says_what_it_decided(trained, tmp_path, capsys):
    path = trained / "region.nc"
    assert run("train", "--data", path, "--output-dir", tmp_path / "run", *SMALL, "--num-epochs", 1) == 0
    said = capsys.readouterr().out
    for word in ("CPU", "float32", "7 x 9 points", "z@500hPa", "held out", "parameters", "memory", "best.pt", "next:"):
        assert word in said


def weights_after(path: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(path).training["weights"]


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    "change",
    [
        ["--seed", 1],
        ["--learning-rate", 1e-4],
        ["--weight-decay", 0.9],
        ["--gradient-clip-norm", 0.01],
        ["--batch-size", 2],
        ["--gradient-accumulation-steps", 2],
        ["--dropout", 0.0],
        ["--input-noise", 0.0],
        ["--held-out-months", "2001-02"],
        ["--validation-months", "2001-03"],
    ],
    ids=lambda change: change[0],
)
def test_each_option_changes_what_is_learned(short, reference, tmp_path, change):
    assert run("train", *short, "--output-dir", tmp_path / "run", *change) == 0
    assert not same(weights_after(reference / "last.pt"), weights_after(tmp_path / "run/last.pt"))


def test_ema_decay_zero_forecasts_with_the_last_weights(short, tmp_path):
    assert run("train", *short, "--output-dir", tmp_path / "run", "--ema-decay", 0) == 0
    last = load_checkpoint(tmp_path / "run/last.pt")
    assert same(last.weights, last.training["weights"])


def test_kernel_size_and_width_change_the_network(short, tmp_path):
    assert run("train", *short, "--output-dir", tmp_path / "run", "--kernel-size", 5, "--hidden-channels", 2, 3, 4) == 0
    weights = weights_after(tmp_path / "run/last.pt")
    assert weights["encoder.cells.2.hidden_conv.weight"].shape == (16, 4, 5, 5)


def test_workers_change_nothing_but_who_gathers(short, reference, tmp_path):
    assert run("train", *short, "--output-dir", tmp_path / "run", "--num-workers", 1) == 0
    assert same(weights_after(reference / "last.pt"), weights_after(tmp_path / "run/last.pt"))


def test_settings_come_from_toml_and_the_command_line_wins(trained, tmp_path):
    toml = tmp_path / "run.toml"
    boxes = "upstream_region = [[50, 60, -10, -2]]\n"
    numbers = "num-epochs = 1\nhidden_channels = [4, 8]\ninput_steps = 2\n"
    toml.write_text(f'data = "{trained / "region.nc"}"\n' + boxes + numbers)
    assert (
        run("train", "--config", toml, "--output-dir", tmp_path / "run", "--input-steps", 3, "--include-upstream") == 0
    )
    config = load_checkpoint(tmp_path / "run/last.pt").config
    assert (config.num_epochs, config.input_steps, config.hidden_channels) == (1, 3, (4, 8))


def test_patience_stops_early(short, tmp_path, capsys):
    options = ["--learning-rate", 0, "--num-epochs", 9, "--early-stopping-patience", 2]
    assert run("train", *short, "--output-dir", tmp_path / "run", *options) == 0
    rows = list(csv.DictReader((tmp_path / "run/history.csv").open()))
    assert len(rows) == 3
    assert "stopped early" in capsys.readouterr().out


def test_a_run_in_the_folder_is_not_replaced_unasked(trained, capsys):
    before = (trained / "run/last.pt").read_bytes()
    data = ["--data", trained / "region.nc", "--output-dir", trained / "run", *SMALL]
    assert run("train", *data) == 2
    assert "holds a run already: go on with --resume" in capsys.readouterr().err
    assert (trained / "run/last.pt").read_bytes() == before


def test_overwrite_replaces_the_old_run_whole(reference, short, tmp_path):
    folder = tmp_path / "run"
    assert run("train", *short, "--output-dir", folder, "--num-epochs", 2, "--checkpoint-frequency", 1) == 0
    (folder / "notes.txt").write_text("mine")
    assert run("train", *short, "--output-dir", folder, "--overwrite") == 0
    names = {path.name for path in folder.iterdir()}
    logs = {"config.json", "history.csv", "validation_rmse.csv", "training.log"}
    assert names == {"best.pt", "last.pt", "notes.txt", *logs}
    assert same(weights_after(folder / "last.pt"), weights_after(reference / "last.pt"))


# resume


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(short, tmp_path):
    options = ["--num-epochs", 3, "--checkpoint-frequency", 1, "--output-dir", tmp_path / "a"]
    assert run("train", *short, *options) == 0
    whole = load_checkpoint(tmp_path / "a/last.pt")
    assert run("train", *short[:2], "--resume", tmp_path / "a/epoch_0001.pt", "--output-dir", tmp_path / "b") == 0
    resumed = load_checkpoint(tmp_path / "b/last.pt")
    assert same(whole.training["weights"], resumed.training["weights"])
    assert same(whole.weights, resumed.weights)
    assert losses(whole) == losses(resumed)


def losses(checkpoint) -> list[tuple[float, float]]:
    return [(row["train_loss"], row["validation_loss"]) for row in checkpoint.training["progress"]["history"]]


def test_an_option_given_with_resume_holds_from_there_on(short, tmp_path):
    assert run("train", *short, "--num-epochs", 2, "--checkpoint-frequency", 1, "--output-dir", tmp_path / "a") == 0
    resume = [
        "train",
        *short[:2],
        "--resume",
        tmp_path / "a/epoch_0001.pt",
        "--weight-decay",
        0.9,
        "--learning-rate",
        0.01,
    ]
    assert run(*resume, "--output-dir", tmp_path / "b") == 0
    assert run(*resume, "--output-dir", tmp_path / "c", "--weight-decay", 0.1) == 0
    b, c = (load_checkpoint(tmp_path / name / "last.pt").training for name in "bc")
    assert b["optimizer"]["param_groups"][0]["weight_decay"] == 0.9
    assert not same(b["weights"], c["weights"])


def test_a_run_that_stopped_early_goes_on_with_more_patience_only(short, tmp_path, capsys):
    options = ["--learning-rate", 0, "--num-epochs", 9, "--early-stopping-patience", 1, "--output-dir", tmp_path / "a"]
    assert run("train", *short, *options) == 0
    resume = ["train", *short[:2], "--resume", tmp_path / "a/last.pt"]
    assert run(*resume, "--num-epochs", 12) == 2
    assert "give a longer --early-stopping-patience" in capsys.readouterr().err
    assert run(*resume, "--early-stopping-patience", 3) == 0


@pytest.mark.slow
def test_ctrl_c_leaves_a_checkpoint_that_goes_on_exactly(short, tmp_path):
    command = [sys.executable, ROOT / "train_convlstm.py", *short, "--batch-size", "4", "--num-epochs", "6"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    cut = [*command, "--output-dir", tmp_path / "cut"]
    process = subprocess.Popen([str(part) for part in cut], **pipes)
    history = tmp_path / "cut/history.csv"
    while not history.exists():
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 130, said
    interrupted = tmp_path / "cut/interrupted.pt"
    assert f"--resume {interrupted}" in said
    assert load_checkpoint(interrupted).training["progress"]["step_in_epoch"] > 0
    for rest in (["--output-dir", tmp_path / "whole"], ["--resume", interrupted]):
        subprocess.run([str(part) for part in [*command, *rest]], check=True, capture_output=True)
    assert same(weights_after(tmp_path / "whole/last.pt"), weights_after(tmp_path / "cut/last.pt"))


# forecast


def test_the_newest_forecast_has_units_coordinates_and_times(trained, tmp_path):
    output = tmp_path / "forecast.nc"
    data = ["--data", trained / "region.nc", "--output", output]
    assert run("forecast", "--checkpoint", trained / "run/best.pt", *data) == 0
    truth = xr.open_dataset(trained / "region.nc")
    with xr.open_dataset(output) as forecast:
        assert forecast.sizes == {"init_time": 1, "lead_time": 2, "level": 2, "lat": 7, "lon": 9}
        assert forecast["init_time"].values[0] == truth["time"].values[-1]
        assert forecast["lead_time"].values.tolist() == [86_400 * 10**9, 2 * 86_400 * 10**9]
        assert (forecast["valid_time"] == forecast["init_time"] + forecast["lead_time"]).all()
        np.testing.assert_array_equal(forecast["lat"], truth["lat"])  # descending, as the file has them
        np.testing.assert_array_equal(forecast["lon"], truth["lon"])
        assert forecast["z"].dims == ("init_time", "lead_time", "level", "lat", "lon")
        for name in ("t2m", "tp", "z"):
            assert forecast[name].attrs["units"] == truth[name].attrs["units"]
        assert forecast["tp"].min() >= 0
        assert 250 < forecast["t2m"].min() < forecast["t2m"].max() < 310
        assert forecast.attrs["Conventions"] == "CF-1.11"
        assert forecast["init_time"].attrs["standard_name"] == "forecast_reference_time"
        assert forecast["lead_time"].attrs["standard_name"] == "forecast_period"


def test_a_saved_and_loaded_network_gives_the_same_forecast_twice(trained, tmp_path):
    data = ["--checkpoint", trained / "run/best.pt", "--data", trained / "region.nc", "--init-time", "2001-06-01"]
    assert run("forecast", *data, "--output", tmp_path / "a.nc") == 0
    assert run("forecast", *data, "--output", tmp_path / "b.nc", "--batch-size", 1) == 0
    xr.testing.assert_identical(xr.open_dataset(tmp_path / "a.nc"), xr.open_dataset(tmp_path / "b.nc"))


def test_init_times_of_a_period_and_more_leads(trained, tmp_path, capsys):
    data = ["--checkpoint", trained / "run/best.pt", "--data", trained / "region.nc", "--output", tmp_path / "f.nc"]
    assert run("forecast", *data, "--start", "2001-06-01", "--end", "2001-06-05", "--lead-steps", 4) == 0
    with xr.open_dataset(tmp_path / "f.nc") as forecast:
        assert forecast.sizes["init_time"] == 5
        assert forecast.sizes["lead_time"] == 4
    assert "beyond the 2 of training" in capsys.readouterr().out


def test_a_forecast_as_zarr_in_the_layout_of_weatherbench(trained, tmp_path):
    pytest.importorskip("zarr")
    output = tmp_path / "f.zarr"
    data = ["--checkpoint", trained / "run/best.pt", "--data", trained / "region.nc", "--output", output]
    assert run("forecast", *data, "--layout", "wb2") == 0
    assert run("forecast", *data, "--layout", "wb2") == 0  # replaced as a whole
    forecast = xr.open_zarr(output)
    assert set(forecast["geopotential"].dims) == {"time", "prediction_timedelta", "level", "latitude", "longitude"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f.zarr"]


# evaluate


def test_evaluation_scores_the_held_out_months_and_draws(trained, tmp_path, capsys):
    assert evaluation(trained, tmp_path / "evaluation") == 0
    said = capsys.readouterr().out
    assert "persistence" in said
    assert "climatology" in said
    names = {path.name for path in (tmp_path / "evaluation").rglob("*") if path.is_file()}
    assert {"scores.nc", "scores.csv", "report.html"} <= names
    assert sum(name.endswith(".png") for name in names) >= 4
    scores = xr.open_dataset(tmp_path / "evaluation/scores.nc")
    split = load_checkpoint(trained / "run/best.pt").spec.split
    assert scores["init_time"].values.min() >= np.datetime64(split.held_out[0][0])
    rivals = ["persistence", "damped_persistence", "climatology", "linear_inverse_model"]
    assert scores["system"].values.tolist() == ["model", *rivals]
    page = (tmp_path / "evaluation/report.html").read_text()
    for part in ("encoder-forecaster, ", " parameters", "held out in training", split.fingerprint, "Regions. target: "):
        assert part in page, part


def test_months_seen_in_training_are_refused_unless_allowed(trained, tmp_path, capsys):
    assert evaluation(trained, tmp_path / "e", "--months", "2001-03") == 2
    assert "were seen in training or validation" in capsys.readouterr().err
    assert not (tmp_path / "e").exists()
    assert evaluation(trained, tmp_path / "e", "--months", "2001-03", "--allow-seen") == 0


def test_a_forecast_file_is_scored_like_the_forecasts_themselves(trained, scored, tmp_path):
    a = xr.open_dataset(scored / "scores.nc")
    held_out = a["init_time"].values
    span = ["--start", str(held_out[0])[:19], "--end", str(held_out[-1])[:19], "--output", tmp_path / "f.nc"]
    data = ["--data", trained / "region.nc"]
    assert run("forecast", "--checkpoint", trained / "run/best.pt", *data, *span) == 0
    assert evaluation(trained, tmp_path / "b", "--forecast", tmp_path / "f.nc") == 0
    np.testing.assert_allclose(a["rmse"], xr.open_dataset(tmp_path / "b/scores.nc")["rmse"], rtol=1e-4)
    alone = ["--forecast", tmp_path / "f.nc", "--output", tmp_path / "c"]
    assert run("evaluate", *data, *alone) == 0  # without a checkpoint: climatology from the other times
    c = xr.open_dataset(tmp_path / "c/scores.nc")
    np.testing.assert_allclose(a["rmse"].sel(system="model"), c["rmse"].sel(system="model"), rtol=1e-4)


def test_forecasts_of_seen_months_in_a_file_are_refused_and_its_months_and_leads_chosen(trained, tmp_path, capsys):
    data = ["--data", trained / "region.nc", "--checkpoint", trained / "run/best.pt"]
    span = ["--start", "2001-01-10", "--end", "2001-02-20"]
    assert run("forecast", *data, *span, "--output", tmp_path / "f.nc") == 0
    score = ["evaluate", *data, "--forecast", tmp_path / "f.nc", "--output", tmp_path / "e"]
    assert run(*score) == 2
    assert "were seen in training or validation" in capsys.readouterr().err
    assert run(*score, "--allow-seen", "--months", "2001-02", "--lead-steps", 1) == 0
    scores = xr.open_dataset(tmp_path / "e/scores.nc")
    assert scores.sizes["lead_time"] == 1
    assert scores["init_time"].values.min() == np.datetime64("2001-02-01")
    assert run(*score, "--allow-seen", "--months", "2002-01") == 2
    assert "no forecast lies inside 2002-01" in capsys.readouterr().err


def test_confidence_and_seed_change_the_intervals(trained, tmp_path):
    changes = {"a": [], "b": ["--confidence", 0.5], "c": ["--seed", 1]}
    for name, options in changes.items():
        assert evaluation(trained, tmp_path / name, "--months", "2002", "--lead-steps", 1, *options) == 0
    a, b, c = (xr.open_dataset(tmp_path / name / "scores.nc")["skill_low"] for name in changes)
    assert (b > a).any()
    assert (c != a).any()


def test_baselines_thresholds_and_boxes_are_those_asked_for(trained, tmp_path):
    options = ["--baselines", "damped_persistence", "--thresholds", "tp=1,3", "t2m=p80", "--box", 50, 56, -6, 2]
    assert evaluation(trained, tmp_path / "e", *options) == 0
    scores = xr.open_dataset(tmp_path / "e/scores.nc")
    assert scores["reference"].values.tolist() == ["persistence", "damped_persistence", "climatology"]
    assert scores["threshold_label"].sel(channel="tp").values.tolist() == ["1 mm", "3 mm"]
    assert scores["threshold_label"].sel(channel="t2m").values.tolist() == ["p80", ""]
    assert scores["box"].values.tolist() == ["50..56N -6..2E"]
    told = json.loads((tmp_path / "e/scores.json").read_text())
    assert {row["threshold_label"] for row in told["events"]} == {"1 mm", "3 mm", "p80", "p90", "p95"}
    assert "damped persistence" in (tmp_path / "e/report.html").read_text()


def test_the_training_file_is_asked_for_before_hours_of_forecasts(trained, tmp_path, capsys):
    later = write(region(levels=(850, 500)).isel(time=slice(370, None)), tmp_path / "later.nc")
    data = ["--checkpoint", trained / "run/best.pt", "--data", later, "--output", tmp_path / "e"]
    assert run("evaluate", *data) == 2
    assert "holds none of the training times" in capsys.readouterr().err


def test_targets_on_different_levels_are_forecast_and_scored_at_their_own(trained, short, tmp_path):
    options = [*short[2:], "--target-variables", "z@500hPa", "t2m", "--data", trained / "region.nc"]
    assert run("train", *options, "--output-dir", tmp_path / "run") == 0
    data = ["--checkpoint", tmp_path / "run/best.pt", "--data", trained / "region.nc"]
    assert run("evaluate", *data, "--output", tmp_path / "e") == 0
    assert xr.open_dataset(tmp_path / "e/scores.nc")["channel"].values.tolist() == ["t2m", "z@500hPa"]


def test_an_evaluation_is_no_better_than_itself(scored, capsys):
    assert run("compare", scored, scored / "scores.nc") == 0
    assert "B makes the same errors as A at every lead time" in capsys.readouterr().out


# upstream and masks


def test_upstream_regions_need_no_flag_after_training(trained, tmp_path):
    boxes = ["--target-region", 48, 60, 0, 6, "--include-upstream", "--variables", "t2m", "--num-epochs", 1]
    path = trained / "region.nc"
    assert run("train", "--data", path, "--output-dir", tmp_path / "run", *SMALL, *boxes) == 0
    data = ["--checkpoint", tmp_path / "run/best.pt", "--data", path]
    assert run("forecast", *data, "--output", tmp_path / "f.nc") == 0
    with xr.open_dataset(tmp_path / "f.nc") as forecast:
        assert forecast["lon"].values.tolist() == [0, 2, 4, 6]
    assert run("evaluate", *data, "--output", tmp_path / "e") == 0


def test_points_that_training_never_saw_stay_missing(tmp_path):
    dataset = region()
    dataset["t2m"][:, :2] = np.nan
    path = write(dataset, tmp_path / "masked.nc")
    assert run("train", "--data", path, "--output-dir", tmp_path / "run", *SMALL, "--num-epochs", 1) == 0
    data = ["--checkpoint", tmp_path / "run/best.pt", "--data", path]
    assert run("forecast", *data, "--output", tmp_path / "f.nc") == 0
    with xr.open_dataset(tmp_path / "f.nc") as forecast:
        missing = np.isnan(forecast["t2m"].values[0, 0])
        assert missing[:2].all()
        assert not missing[2:].any()
        assert np.isfinite(forecast["tp"]).all()
    assert run("evaluate", *data, "--output", tmp_path / "e") == 0


# mistakes

EVALUATE = ["evaluate", "--checkpoint", "run/best.pt", "--output", "e"]
RESUME = ["--data", "region.nc", "--resume", "run/last.pt", "--num-epochs", "2"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data", "none.nc"], "none.nc: no such file"),
        (["--data", "n" * 300 + ".nc"], "nnn.nc: File name too long; check the path"),
        (["--data", "text.nc"], "text.nc: not a NetCDF file"),
        (["--data", "no_time.nc"], "no_time.nc: no time axis: its dimensions are lat (7), lon (9)"),
        (["--data", "no_lat.nc"], "no_lat.nc: no latitude axis"),
        (["--data", "backwards.nc"], "time is not increasing: 2001-04-29T00:00 (step 1) comes after"),
        (["--data", "twice.nc"], "twice.nc: time 2001-01-03T00:00 occurs twice, at steps 2 and 3"),
        (["--data", "short.nc"], "leave no window of 8 steps for training; at least 38 times"),
        (["--data", "empty.nc"], "empty.nc: all values of 't2m' are missing"),
        (["--data", "region.nc", "--variables", "rain"], "no variable rain; the file has t2m, tp"),
        (["--data", "region.nc", "--levels", "850"], "no level 850 hPa; the file has no levels"),
        (["--data", "region.nc", "--held-out-months", "1999"], "no time of the data lies there; it covers 2001-01-01"),
        (["--data", "region.nc", "--held-out-months", "soon"], "'soon' is not a period; write 2014-07"),
        (["--data", "region.nc", "--device", "tpu"], "--device tpu: unknown device"),
        (["--data", "region.nc", "--device", "cuda:99"], "--device cuda"),
        (["--data", "region.nc", "--target-region", "0", "9", "0", "9"], "no grid points in the region 0 to 9"),
        (["--data", "region.nc", "--target-region", "50.1", "50.2", "0", "6"], "no grid points in the region 50.1"),
        (["--data", "region.nc", "--target-region", "60", "50", "0", "6"], "the first two are LAT_MIN LAT_MAX"),
        (["--data", "region.nc", "--input-steps", "0"], "--input-steps 0: must be at least 1"),
        (["--data", "region.nc", "--input-steps", "many"], "invalid int value: 'many'"),
        (["--data", "region.nc", "--input-steps", "400"], "leave no window of 404 steps"),
        (["--data", "region.nc", "--kernel-size", "2"], "--kernel-size 2: must be odd"),
        (["--data", "region.nc", "--colour", "red"], "unrecognized arguments: --colour red"),
        (["--data", "region.nc", "--output-dir", "text.nc/run"], "cannot be written"),
        (["--data", "region.nc", "--config", "none.toml"], "none.toml: cannot be read"),
        (["--data", "region.nc", "--config", "text.nc"], "text.nc: not TOML"),
        (["--data", "region.nc", "--config", "wrong.toml"], "wrong.toml: unknown setting 'epochs'"),
        (["--data", "region.nc", "--resume", "text.nc"], "text.nc: not a whole checkpoint"),
        (["--data", "region.nc", "--seed", str(2**70)], "must be at least 0 and less than 2^63"),
        (["--data", "region.nc", "--memory-budget", "inf"], "--memory-budget inf: must be"),
        ([*RESUME, "--hidden-channels", "4"], "hidden_channels 4 8 there, 4 here"),
        ([*RESUME, "--variables", "t2m"], "inputs t2m tp there, t2m here"),
        ([*RESUME, "--target-variables", "tp"], "targets t2m tp there, tp here"),
        ([*RESUME, "--target-region", "50", "58", "0", "6"], "another one: "),
        ([*RESUME, "--held-out-months", "2001-02"], "another split"),
        ([*RESUME, "--overwrite"], "--overwrite would delete what --resume goes on from"),
        (["--data", "region.nc", "--resume", "run/last.pt"], "all 1 epochs are done already"),
        ([], "--data is needed"),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else "",
)
def test_a_mistake_in_training_is_one_line_and_nothing_is_written(mistakes, monkeypatch, capsys, options, message):
    monkeypatch.chdir(mistakes)
    before = sorted(os.walk("."))
    assert _exit_code(["train", "--num-epochs", "1", *options]) == 2
    said = capsys.readouterr().err.strip()
    assert message in said
    assert len(said.splitlines()) == 1
    assert sorted(os.walk(".")) == before


@pytest.fixture(scope="module")
def mistakes(tmp_path_factory) -> Path:
    """A folder of files with one fault each, a good one, and a run."""
    folder = tmp_path_factory.mktemp("mistakes")
    good = region(days=120)
    write(good, folder / "region.nc")
    (folder / "text.nc").write_text("not NetCDF\n")
    (folder / "wrong.toml").write_text("epochs = 3\n")
    good.isel(time=0, drop=True).to_netcdf(folder / "no_time.nc")
    good.isel(lat=0, drop=True).to_netcdf(folder / "no_lat.nc")
    write(good.isel(time=slice(None, None, -1)), folder / "backwards.nc")
    write(good.isel(time=[0, 1, 2, 2, 3, 4]), folder / "twice.nc")
    write(good.isel(time=slice(0, 5)), folder / "short.nc")
    empty = good.copy(deep=True)
    empty["t2m"][:] = np.nan
    write(empty, folder / "empty.nc")
    (folder / "mine.zarr").mkdir()
    (folder / "mine.zarr/notes.txt").write_text("mine")
    options = ["--output-dir", folder / "run", "--num-epochs", 1, *SMALL]
    assert run("train", "--data", folder / "region.nc", *options) == 0
    return folder


def _exit_code(arguments: list[str]) -> int:
    try:
        return main(arguments)
    except SystemExit as error:
        return int(error.code or 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["forecast", "--checkpoint", "none.pt", "--output", "f.nc"], "none.pt: no such checkpoint"),
        (["forecast", "--checkpoint", "run/best.pt", "--output", "f.txt"], "must end in .nc or .zarr"),
        (["forecast", "--checkpoint", "run/best.pt", "--output", "text.nc/f.nc"], "cannot be written"),
        (["forecast", "--checkpoint", "run/best.pt", "--output", "region.nc"], "is an input of this command"),
        (["forecast", "--checkpoint", "run/best.pt", "--output", "mine.zarr"], "is a folder that is not a Zarr store"),
        (
            ["forecast", "--checkpoint", "run/best.pt", "--output", "a/b/f.nc", "--init-time", "2031-01-01"],
            "not a time of",
        ),
        (["forecast", "--checkpoint", "run/best.pt", "--output", "f.nc", "--init-time", "3000-01-01"], "out of range"),
        (["forecast", "--checkpoint", "run/best.pt", "--output", "f.nc", "--init-time", "2031-01-01"], "not a time of"),
        (["forecast", "--checkpoint", "run/best.pt", "--output", "f.nc", "--init-time", "2001-01-02"], "input times"),
        (["forecast", "--checkpoint", "run/best.pt", "--output", "f.nc", "--init-time", "noon"], "noon: not a time"),
        (["forecast", "--checkpoint", "run/best.pt", "--output", "f.nc", "--start", "2031"], "no init time between"),
        (["forecast", "--checkpoint", "run/best.pt", "--output", "f.nc", "--lead-steps", "0"], "at least 1"),
        (["forecast", "--output", "f.nc"], "--checkpoint"),
        (["evaluate", "--output", "e"], "--checkpoint is needed, unless"),
        (
            ["evaluate", "--checkpoint", "run/best.pt", "--output", "e", "--months", "1999"],
            "1999: no 5 consecutive times of them in region.nc",
        ),
        (["evaluate", "--checkpoint", "run/best.pt", "--output", "text.nc/e"], "cannot be written"),
        (["evaluate", "--forecast", "text.nc", "--output", "e"], "text.nc: not a NetCDF file"),
        ([*EVALUATE, "--baselines", "luck"], "invalid choice: 'luck'"),
        ([*EVALUATE, "--thresholds", "snow=1"], "snow is not forecast"),
        ([*EVALUATE, "--thresholds", "tp=x"], "write NAME=VALUE,VALUE"),
        ([*EVALUATE, "--box", "0", "5", "0", "5"], "Check --box"),
        ([*EVALUATE, "--box", "9", "5", "0", "5"], "the smaller first"),
        (["evaluate", "--checkpoint", "run/best.pt", "--output", "e", "--confidence", "95"], "between 0 and 1"),
        (["evaluate", "--checkpoint", "run/best.pt", "--output", "e", "--seed", "-1"], "whole number from 0"),
        (["evaluate", "--checkpoint", "run/best.pt", "--output", "e", "--device", "cuda:99"], "--device cuda"),
    ],
    ids=lambda value: " ".join(value)[-60:] if isinstance(value, list) else "",
)
def test_a_mistake_later_is_one_line_and_nothing_is_written(mistakes, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(mistakes)
    before = sorted(os.walk("."))
    assert _exit_code([*arguments, "--data", "region.nc"]) == 2
    said = capsys.readouterr().err.strip()
    assert message in said
    assert len(said.splitlines()) == 1
    assert sorted(os.walk(".")) == before


def test_an_input_found_by_a_glob_is_not_replaced_either(mistakes, capsys):
    before = (mistakes / "region.nc").read_bytes()
    data = ["--data", mistakes / "regio[n].nc", "--output", mistakes / "region.nc"]
    assert run("forecast", "--checkpoint", mistakes / "run/best.pt", *data) == 2
    assert "is an input of this command" in capsys.readouterr().err
    assert (mistakes / "region.nc").read_bytes() == before


def test_help_is_grouped_and_shows_defaults(capsys):
    assert _exit_code(["train", "--help"]) == 0
    said = capsys.readouterr().out
    for word in (
        "Data:",
        "Regions:",
        "Network:",
        "Training:",
        "Device:",
        "Output:",
        "(default: 4)",
        "(default: 32 64 96)",
    ):
        assert word in said


def test_a_louder_log_level_says_less(trained, tmp_path, capsys):
    data = ["--data", trained / "region.nc", "--output", tmp_path / "f.nc", "--log-level", "error"]
    assert run("forecast", "--checkpoint", trained / "run/best.pt", *data) == 0
    assert capsys.readouterr().out == ""
    assert logging.getLogger("convlstm_wx").handlers == []


def test_module_and_script_are_the_same_command():
    for command in (["-m", "convlstm_wx", "train"], ["train_convlstm.py"]):
        result = subprocess.run(
            [sys.executable, *command, "--help"], cwd=ROOT, capture_output=True, text=True, check=True
        )
        assert "--include-upstream" in result.stdout


@pytest.mark.slow
def test_two_processes_teach_the_same_as_one(short, tmp_path):
    exact = ["--dropout", "0", "--input-noise", "0", "--gradient-clip-norm", "0.1"]
    one = [sys.executable, ROOT / "train_convlstm.py", *short, *exact, "--batch-size", 4]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2]
    two = [*torchrun, ROOT / "train_convlstm.py", *short, *exact, "--batch-size", 2]
    for name, command in (("one", one), ("two", two)):
        parts = [str(part) for part in [*command, "--output-dir", tmp_path / name]]
        done = subprocess.run(
            parts, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False
        )
        assert done.returncode == 0, done.stderr
    a, b = (load_checkpoint(tmp_path / name / "last.pt") for name in ("one", "two"))
    for name, weight in a.training["weights"].items():
        torch.testing.assert_close(b.training["weights"][name], weight, rtol=0, atol=1e-5)
    assert losses(a) == [pytest.approx(row, rel=1e-5) for row in losses(b)]


def test_what_to_run_next_can_be_pasted(caplog):
    with caplog.at_level("INFO"):
        config = TrainConfig(data=("my data.nc",), output_dir="my run")
        train._say_what_next(config, Path("my run/best.pt"))
        train._say_what_next(config, Path("my run/interrupted.pt"), is_unfinished=True)
    assert "forecast --checkpoint 'my run' --data 'my data.nc'" in caplog.text
    assert "evaluate --checkpoint 'my run' --data 'my data.nc'" in caplog.text
    assert "--data 'my data.nc' --resume 'my run/interrupted.pt'" in caplog.text
