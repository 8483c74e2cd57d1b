"""Does the upstream region help, and is it used at all? The permutation test, and the whole experiment."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

from convlstm_wx.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from convlstm_wx.cli import main
from convlstm_wx.data.reading import open_dataset
from convlstm_wx.data.windows import Windows
from convlstm_wx.device import choose_device
from convlstm_wx.errors import DataError
from convlstm_wx.forecast.assembling import make_forecast
from convlstm_wx.forecast.rollout import Trained
from convlstm_wx.verification.compare import compare
from convlstm_wx.verification.permutation import other_times, readings, sentences
from tests.region_files import region, write
from tests.test_windows import source_of
from tests.weather import times

SMALL = ["--hidden-channels", "4", "8", "--input-steps", "3", "--lead-steps", "2", "--batch-size", "16"]
SMALL += ["--device", "cpu", "--blend", "none"]
BOX = ["--target-region", "48", "60", "0", "6", "--variables", "t2m"]


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


# whose upstream inputs


def test_upstream_inputs_come_from_another_init_time_of_the_same_month_and_hour():
    at = times("2001-01-15", "2002-03-15", step_hours=6)
    taken = other_times(at, np.random.default_rng(0))
    for unit in (
        lambda t: t.astype("datetime64[M]").astype(int) % 12,
        lambda t: t.astype("datetime64[h]").astype(int) % 24,
    ):
        np.testing.assert_array_equal(unit(taken), unit(at))
    assert (taken != at).all()
    np.testing.assert_array_equal(np.sort(taken), at)
    assert (taken != other_times(at, np.random.default_rng(1))).any()


def test_a_lone_init_time_cannot_be_shuffled():
    with pytest.raises(DataError, match="no two init times are of the same month and hour"):
        other_times(times("2001-01-01", "2001-12-31")[::40][:4], np.random.default_rng(0))


def test_windows_take_upstream_fields_from_elsewhere_and_all_else_from_themselves():
    at = times("2001-01-01", "2001-01-11")
    values = np.arange(10.0, dtype=np.float32)[:, None, None, None]
    source, upstream = source_of(values), source_of(100 + values)
    windows = Windows(
        source, (upstream,), at, np.timedelta64(24, "h"), np.array([2, 3]), 2, 1, [0], [-1],
        upstream_indices=np.array([7, 5]),
    )  # fmt: skip
    batch = windows.gather([1, 0])
    assert batch.upstream[0].ravel().tolist() == [104, 105, 106, 107]
    assert batch.x_BTCHW.ravel().tolist() == [2, 3, 1, 2]
    assert batch.y_BLDHW.ravel().tolist() == [4, 3]


# trained once


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write(region()[["t2m"]], tmp_path_factory.mktemp("data") / "region.nc")


@pytest.fixture(scope="module")
def experiment(data, tmp_path_factory) -> Path:
    """The folder of an experiment of one seed, begun with one epoch of the training with upstream."""
    folder = tmp_path_factory.mktemp("experiment") / "e"
    begun = ["--output-dir", folder / "with_upstream/seed_0", "--include-upstream", "--num-epochs", 1]
    assert run("train", "--data", data, *SMALL, *BOX, *begun) == 0
    assert run(*command(data, folder)) == 0
    return folder


def command(data: Path, folder: Path, *options: object, seeds: tuple[int, ...] = (0,)) -> list[object]:
    given = ["--num-epochs", 2, "--permutations", 2, "--output", folder, "--seeds", *seeds]
    return ["experiment", "upstream", "--data", data, *SMALL, *BOX, *given, *options]


def best(experiment: Path, arm: str = "with_upstream", seed: int = 0) -> Path:
    return experiment / arm / f"seed_{seed}/best.pt"


# the permutation test


def outspoken(path: Path) -> Checkpoint:
    """The checkpoint with louder weights: after two epochs a forecast hardly differs from persistence."""
    checkpoint = load_checkpoint(path)
    generator = torch.Generator().manual_seed(0)
    for weight in checkpoint.weights.values():
        weight += 0.3 * torch.randn(weight.shape, generator=generator)
    return checkpoint


def test_forecasts_change_with_the_upstream_inputs_of_other_times_only(data, experiment):
    checkpoint, dataset = outspoken(best(experiment)), open_dataset([data])
    at = dataset["time"].values[380:400]

    def made(upstream_from: np.ndarray | None) -> np.ndarray:
        options = {"lead_steps": 2, "policy": choose_device("cpu"), "batch_size": 8, "upstream_from": upstream_from}
        return make_forecast([Trained(checkpoint)], dataset, at, **options)["t2m"].values

    own = made(None)
    np.testing.assert_array_equal(made(at), own)
    swapped = at.copy()
    swapped[[0, 1]] = at[[1, 0]]
    changed = (made(swapped) != own).any(axis=(1, 2, 3))
    assert changed.tolist() == [True, True] + [False] * 18


def test_a_model_that_does_not_hear_its_upstream_region_is_found_out(data, experiment, tmp_path, capsys):
    permute = ["permute-upstream", "--data", data, "--permutations", 2, "--device", "cpu"]
    save_checkpoint(tmp_path / "loud.pt", outspoken(best(experiment)))
    assert run(*permute, "--checkpoint", tmp_path / "loud.pt", "--output", tmp_path / "p") == 0
    assert "shuffled upstream inputs change no forecast" not in capsys.readouterr().out
    names = sorted(path.name for path in (tmp_path / "p").iterdir())
    assert names == [f"permutation.{ending}" for ending in ("csv", "html", "json", "nc")]
    deaf = load_checkpoint(best(experiment))
    for name, weight in deaf.weights.items():
        if "upstream" in name:
            weight.zero_()
    save_checkpoint(tmp_path / "deaf.pt", deaf)
    assert run(*permute, "--checkpoint", tmp_path / "deaf.pt") == 0
    said = capsys.readouterr().out
    assert "The model does not use its upstream region" in said
    assert "t2m: shuffled upstream inputs change no forecast." in said


def test_seed_and_number_of_permutations_change_what_is_shuffled(data, experiment, tmp_path):
    found = {}
    save_checkpoint(tmp_path / "loud.pt", outspoken(best(experiment)))
    for name, options in {"a": [], "b": ["--seed", 1], "c": ["--permutations", 3]}.items():
        where = ["--output", tmp_path / name, "--checkpoint", tmp_path / "loud.pt", "--data", data, "--device", "cpu"]
        assert run("permute-upstream", *where, "--permutations", 2, *options) == 0
        found[name] = xr.open_dataset(tmp_path / name / "permutation.nc", decode_timedelta=True)
    assert (found["a"]["mse_b"] != found["b"]["mse_b"]).any()
    assert found["c"].sizes["run"] == 3
    xr.testing.assert_allclose(found["a"]["mse_a"], found["b"]["mse_a"])


def test_a_checkpoint_without_upstream_region_has_nothing_to_shuffle(data, experiment, tmp_path, capsys):
    where = ["--checkpoint", best(experiment, "without_upstream"), "--data", data, "--output", tmp_path / "p"]
    assert run("permute-upstream", *where) == 2
    assert "has no upstream region to shuffle; train with --include-upstream" in capsys.readouterr().err
    assert not (tmp_path / "p").exists()


def gains(cost: float, n: int = 300) -> xr.Dataset:
    """Of shuffling that makes the MSE larger by this on average, beside noise of 0.1."""
    mse = 10 + np.random.default_rng(0).standard_normal((1, 1, 1, n))
    dims = ("run", "channel", "lead_time", "init_time")
    shuffled = mse + cost + 0.1 * np.random.default_rng(2).standard_normal(mse.shape)
    coords = {
        "channel": ["t2m"], "units": ("channel", ["K"]), "init_time": times("2001-01-01", "2003-01-01")[:n],
        "lead_time": [np.timedelta64(24, "h").astype("timedelta64[ns]")], "lead_hours": ("lead_time", [24.0]),
    }  # fmt: skip
    errors = xr.Dataset({"mse_a": (dims, mse), "mse_b": (dims, shuffled)}, coords)
    return compare(errors.assign(weight=xr.ones_like(errors["mse_a"].isel(run=0))))


def test_what_shuffling_costs_is_said_with_its_interval():
    said = sentences(gains(1.0))
    assert said[0] == "The model uses its upstream region, for t2m."
    assert said[1].startswith("t2m: shuffled upstream inputs raise the MSE at +24 h by 10.0 % (")
    said = sentences(gains(0.0))
    assert said[0].startswith("The model does not use its upstream region")
    assert said[1] == "t2m: shuffled upstream inputs cost nothing that stands out from chance."
    assert sentences(gains(1.0, n=5))[0].startswith("Too few independent init times to tell")


def test_a_gain_that_shuffling_does_not_touch_is_not_credited_to_the_upstream_region():
    better, same, costly = gains(-1.0), gains(0.0), gains(1.0)
    assert "not by its upstream inputs" in readings(better, same)[0]
    assert "are used, but the forecasts are not better" in readings(same, costly)[0]
    assert readings(better, costly) == readings(same, same) == []


# the experiment


def test_both_are_trained_alike_but_for_the_upstream_region(experiment):
    a, b = (load_checkpoint(best(experiment, arm)) for arm in ("without_upstream", "with_upstream"))
    differ = {name for name, value in a.config.to_dict().items() if b.config.to_dict()[name] != value}
    assert differ == {"include_upstream", "output_dir"}
    assert not a.spec.upstream
    assert len(b.spec.upstream) == 1


def test_the_folder_holds_runs_evaluations_and_one_page_about_both(experiment):
    for arm in ("without_upstream", "with_upstream"):
        for name in ("best.pt", "forecast.nc", "evaluation/report.html", "evaluation/scores.nc", "training.log"):
            assert (experiment / arm / "seed_0" / name).exists()
    text = (experiment / "comparison.html").read_text()
    for words in (
        "Does the upstream region help?",
        "Is it used?",
        "One pair of runs",
        "without upstream",
        "weights, 2 epochs",
    ):
        assert words in text
    assert json.loads((experiment / "permutation.json").read_text())["method"]["runs"] == 2
    with xr.open_dataset(experiment / "comparison.nc", decode_timedelta=True) as found:
        assert {"gain", "gain_map", "significant_map", "gain_by_month"} <= set(found)


def test_each_training_has_its_own_log(experiment):
    logs = [(experiment / arm / "seed_0/training.log").read_text() for arm in ("with_upstream", "without_upstream")]
    assert "without_upstream" not in logs[0]
    assert "with_upstream" not in logs[1]


def test_a_training_that_was_begun_goes_on(experiment):
    assert "resuming from" in (experiment / "with_upstream/seed_0/training.log").read_text()
    rows = list(csv.DictReader((experiment / "with_upstream/seed_0/history.csv").open()))
    assert [row["epoch"] for row in rows] == ["1", "2"]


def test_what_is_done_is_not_done_again_and_a_seed_is_added(data, experiment, capsys):
    before = {path: path.stat().st_mtime_ns for path in experiment.rglob("seed_0/**/*") if path.is_file()}
    assert run(*command(data, experiment, seeds=(0, 1))) == 0
    assert before == {path: path.stat().st_mtime_ns for path in before}
    said = capsys.readouterr().out
    assert "4 trainings of up to 2 epochs: with and without upstream, seeds 0 1; 2 of them are done already" in said
    assert "of 2 pairs of runs" in said
    weights = [load_checkpoint(best(experiment, seed=seed)).weights for seed in (0, 1)]
    assert not all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--learning-rate", "1e-4"], "holds an experiment with other settings (learning-rate)"),
        (["--seeds", "1", "1"], "--seeds 1 1: one is there twice"),
        (["--model", "shi2015"], "--model shi2015 reads no upstream regions"),
    ],
)
def test_mistakes_are_told_before_anything_is_trained(data, experiment, capsys, options, message):
    before = sorted(experiment.rglob("*"))
    assert run(*command(data, experiment), *options) == 2
    assert message in capsys.readouterr().err
    assert sorted(experiment.rglob("*")) == before


def test_confidence_changes_the_intervals(data, experiment):
    def low() -> float:
        with xr.open_dataset(experiment / "comparison.nc", decode_timedelta=True) as found:
            return float(found["gain_low"].isel(channel=0, lead_time=0))

    seeds = tuple(int(path.name[5:]) for path in sorted((experiment / "with_upstream").iterdir()))
    assert run(*command(data, experiment, seeds=seeds)) == 0
    usual = low()
    assert run(*command(data, experiment, "--confidence", 0.5, seeds=seeds)) == 0
    assert low() > usual


@pytest.mark.parametrize(
    ("setting", "instead"),
    [("members = 3", "--seeds"), ("seed = 1", "give --seeds"), ("output_dir = 'x'", "give --output")],
)
def test_settings_of_the_experiment_s_own_are_refused_in_the_file(data, tmp_path, capsys, setting, instead):
    (tmp_path / "run.toml").write_text(setting)
    asked = ["experiment", "upstream", "--data", data, *SMALL, *BOX, "--config", tmp_path / "run.toml"]
    assert run(*asked, "--output", tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert "is for the experiment to set" in said
    assert instead in said
    assert not (tmp_path / "out").exists()
