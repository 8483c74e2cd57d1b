"""train --members: several networks that differ by their seed, and their folder wherever a checkpoint is asked for."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

from convlstm_wx import load_forecaster
from convlstm_wx.checkpoint import load_checkpoint
from convlstm_wx.cli import main
from convlstm_wx.models.build import NETWORKS
from convlstm_wx.training import schedule
from convlstm_wx.training.loop import Run
from tests.region_files import region, write

ROOT = Path(__file__).parents[1]
SMALL = ["--hidden-channels", "4", "--input-steps", "3", "--lead-steps", "2", "--batch-size", "8", "--device", "cpu"]


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    dataset = region(days=150, height=5, width=6)[["t2m"]]
    return write(dataset, tmp_path_factory.mktemp("data") / "region.nc")


def train(data: Path, folder: Path, *options: object) -> int:
    return run("train", "--data", data, "--num-epochs", 1, *SMALL, "--output-dir", folder, *options)


@pytest.fixture(scope="module")
def ensemble(data, tmp_path_factory) -> Path:
    """Two members of seeds 5 and 6."""
    folder = tmp_path_factory.mktemp("runs") / "ensemble"
    assert train(data, folder, "--members", 2, "--seed", 5) == 0
    return folder


def weights(path: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(path).weights


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# Training


def test_a_member_is_the_run_of_its_seed(data, ensemble, tmp_path):
    assert train(data, tmp_path / "alone", "--seed", 6) == 0
    torch.testing.assert_close(
        weights(ensemble / "member_2/best.pt"), weights(tmp_path / "alone/best.pt"), rtol=0, atol=0
    )
    names = {"best.pt", "last.pt", "config.json", "history.csv", "training.log", "validation_rmse.csv"}
    assert {path.name for path in (ensemble / "member_2").iterdir()} == names
    assert {path.name for path in ensemble.iterdir()} == {"config.json", "member_1", "member_2"}


def test_each_log_is_of_its_member(ensemble):
    first, second = ((ensemble / f"member_{number}/training.log").read_text() for number in (1, 2))
    assert "1 of 2, seed 5" in first
    assert "member_2" not in first
    assert "2 of 2, seed 6" in second
    assert "member_1" not in second
    assert f"next: convlstm-wx forecast --checkpoint {ensemble} --data" in second


def test_members_come_from_toml_too_and_share_the_batch_size_that_was_found(data, tmp_path):
    toml = tmp_path / "run.toml"
    toml.write_text(f'data = "{data}"\nmembers = 2\nnum_epochs = 1\nbatch_size = "auto"\nhidden_channels = [4]\n')
    assert run("train", "--config", toml, "--output-dir", tmp_path / "e", "--device", "cpu") == 0
    sizes = {load_checkpoint(tmp_path / f"e/member_{number}/last.pt").config.batch_size for number in (1, 2)}
    assert len(sizes) == 1
    assert json.loads((tmp_path / "e/config.json").read_text())["batch_size"] in sizes


def interrupt_in(folder: Path):
    """Ctrl-C after some steps of the run in a folder."""
    steps = []

    def count(module, inputs, output):
        if isinstance(module, tuple(NETWORKS.values())) and module.training and (folder / "training.log").exists():
            steps.append(1)
            if len(steps) == 5:
                signal.raise_signal(signal.SIGINT)

    return torch.nn.modules.module.register_module_forward_hook(count)


def test_a_stopped_ensemble_goes_on_with_the_member_that_is_unfinished_and_the_rest(data, ensemble, tmp_path, capsys):
    folder = tmp_path / "e"
    hook = interrupt_in(folder / "member_2")
    try:
        assert train(data, folder, "--members", 3, "--seed", 5) == 130
    finally:
        hook.remove()
    assert f"stopped; go on with: python train_convlstm.py --data {data} --output-dir {folder} --resume auto" in (
        capsys.readouterr().out
    )
    assert (folder / "member_2/interrupted.pt").exists()
    assert not (folder / "member_3").exists()
    finished = contents(folder / "member_1")
    assert run("train", "--data", data, "--output-dir", folder, "--resume", "auto") == 0  # all settings are known
    assert contents(folder / "member_1") == finished
    assert load_checkpoint(folder / "member_3/best.pt").config.seed == 7
    for number in (1, 2):
        whole, stopped = (weights(path / f"member_{number}/best.pt") for path in (ensemble, folder))
        torch.testing.assert_close(whole, stopped, rtol=0, atol=0)
    assert run("train", "--data", data, "--output-dir", folder, "--resume", "auto") == 0
    assert f"done: 3 members in {folder}" in capsys.readouterr().out


@pytest.mark.parametrize("members", [1, 2])
def test_a_stop_in_the_last_validation_is_heard(data, tmp_path, capsys, monkeypatch, members):
    validation = Run._validation_loss
    asked = []

    def ask_once(self: Run) -> float:
        if not asked:
            asked.append(signal.raise_signal(signal.SIGTERM))
        return validation(self)

    monkeypatch.setattr(Run, "_validation_loss", ask_once)
    assert train(data, tmp_path, "--members", members) == 130
    said = capsys.readouterr().out
    assert ("stopped; go on with" in said) == (members == 2)  # of one network nothing is left to do
    assert (f"done: {tmp_path}/best.pt" in said) == (members == 1)
    assert len(list(tmp_path.rglob("best.pt"))) == 1
    assert not list(tmp_path.rglob("interrupted.pt"))
    assert train(data, tmp_path, "--members", members, "--resume", "auto") == 0
    assert len(list(tmp_path.rglob("best.pt"))) == members


def test_an_ensemble_begun_before_there_was_a_setting_goes_on_without_it(data, ensemble, tmp_path):
    folder = tmp_path / "e"
    shutil.copytree(ensemble, folder)
    settings = json.loads((folder / "config.json").read_text())
    for name in ("lead_weighting", "blend"):
        del settings[name]
    (folder / "config.json").write_text(json.dumps(settings | {"output_dir": str(folder)}))
    shutil.rmtree(folder / "member_1")
    shutil.rmtree(folder / "member_2")
    (folder / "member_1").mkdir()
    assert run("train", "--data", data, "--output-dir", folder, "--resume", "auto") == 0
    config = load_checkpoint(folder / "member_2/best.pt").config
    assert (config.lead_weighting, config.blend) == (0.0, "none")


@pytest.mark.parametrize("members", [1, 2])
def test_a_run_not_told_how_long_takes_it_from_the_record_and_knows_when_it_has_ended(
    data, tmp_path, capsys, monkeypatch, members
):
    monkeypatch.setattr(schedule, "MOST_EPOCHS", 2)
    asked = ["train", "--data", data, *SMALL, "--output-dir", tmp_path, "--members", members]
    assert run(*asked) == 0
    assert "2 epochs, or until 4 brought nothing better" in capsys.readouterr().out
    monkeypatch.setattr(schedule, "MOST_EPOCHS", 3)  # it goes on as it began
    before = contents(tmp_path)
    assert run(*asked, "--resume", "auto") == 0
    assert capsys.readouterr().out.count("all 2 epochs are done already") == members
    assert contents(tmp_path) == before
    assert run(*asked, "--resume", "auto", "--num-epochs", "auto") == 0
    assert contents(tmp_path) == before
    assert run(*asked, "--resume", "auto", "--num-epochs", 3) == 0
    assert all(len(load_checkpoint(path).training["progress"]["history"]) == 3 for path in tmp_path.rglob("last.pt"))


def test_more_members_and_more_epochs_may_be_asked_for_later(data, ensemble, tmp_path):
    shutil.copytree(ensemble, tmp_path / "e")
    assert train(data, tmp_path / "e", "--resume", "auto", "--members", 3, "--num-epochs", 2) == 0
    last = [load_checkpoint(tmp_path / f"e/member_{number}/last.pt") for number in (1, 2, 3)]
    assert [len(checkpoint.training["progress"]["history"]) for checkpoint in last] == [2, 2, 2]
    assert [checkpoint.config.seed for checkpoint in last] == [5, 6, 7]


def test_overwrite_replaces_all_that_members_left_and_nothing_else(data, ensemble, tmp_path):
    folder = tmp_path / "e"
    shutil.copytree(ensemble, folder)
    shutil.copytree(ensemble / "member_1", folder / "member_3")
    shutil.copytree(ensemble / "member_1", folder / "member_4")
    (folder / "member_3/notes.txt").write_text("mine")
    (folder / "notes.txt").write_text("mine")
    assert train(data, folder, "--members", 2, "--overwrite", "--seed", 9) == 0
    seeds = [load_checkpoint(folder / f"member_{number}/last.pt").config.seed for number in (1, 2)]
    assert seeds == [9, 10]
    assert [path.name for path in (folder / "member_3").iterdir()] == ["notes.txt"]
    assert not (folder / "member_4").exists()
    assert train(data, folder, "--overwrite") == 0  # by one network
    assert {path.name for path in folder.iterdir() if path.is_dir()} == {"member_3"}
    assert (folder / "best.pt").exists()
    assert (folder / "notes.txt").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--members", 2], "holds an ensemble of 2 members already: go on with --resume auto, choose another"),
        ([], "holds an ensemble of 2 members already: go on with --resume auto and its --members"),
        (["--members", 1, "--resume", "auto"], "--members 1: {ensemble} holds 2 members already; give at least as"),
        (["--resume", "auto", "--overwrite"], "give one of the two"),
        (["--members", 3, "--resume", "{ensemble}/member_1/last.pt"], "goes on with one network; with --members give"),
        (["--members", 3, "--resume", "auto", "--lead-steps", 3], "the checkpoint's run was another one"),
        (["--members", 0], "--members 0: must be at least 1"),
    ],
    ids=lambda value: " ".join(map(str, value))[:40] if isinstance(value, list) else "",
)
def test_what_would_mix_or_replace_members_is_refused(data, ensemble, capsys, options, message):
    before = contents(ensemble)
    assert train(data, ensemble, *(str(option).format(ensemble=ensemble) for option in options)) == 2
    assert message.format(ensemble=ensemble) in capsys.readouterr().err
    assert contents(ensemble) == before


def test_a_single_run_does_not_become_an_ensemble(data, tmp_path, capsys):
    assert train(data, tmp_path) == 0
    assert train(data, tmp_path, "--members", 2, "--resume", "auto") == 2
    assert "holds the run of one network (last.pt); choose another --output-dir" in capsys.readouterr().err


@pytest.mark.slow
def test_processes_train_the_members_together(data, tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    parts = [*torchrun, ROOT / "train_convlstm.py", "--data", data, "--num-epochs", 1, *SMALL, "--members", 2]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [str(part) for part in [*parts, "--output-dir", tmp_path / "e"]]
    for rest in ([], ["--resume", "auto"]):
        done = subprocess.run([*command, *rest], capture_output=True, text=True, env=env, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("done: 2 members") == 1
    assert load_checkpoint(tmp_path / "e/member_2/last.pt").config.seed == 1


# The folder as the checkpoint


def test_forecasts_of_the_folder_are_those_of_its_members(data, ensemble, tmp_path):
    given = ["--data", data, "--device", "cpu", "--init-time", "2001-05-01", "--output"]
    best = [ensemble / f"member_{number}/best.pt" for number in (1, 2)]
    assert run("forecast", "--checkpoint", ensemble, *given, tmp_path / "folder.nc") == 0
    assert run("forecast", "--checkpoint", *best, *given, tmp_path / "files.nc") == 0
    assert run("forecast", "--checkpoint", ensemble / "member_2", *given, tmp_path / "one.nc") == 0
    folder, files, one = (xr.load_dataset(tmp_path / f"{name}.nc") for name in ("folder", "files", "one"))
    xr.testing.assert_equal(folder, files)
    assert folder.sizes["realization"] == 2
    assert "realization" not in one.dims
    np.testing.assert_array_equal(folder["t2m"][:, 1], one["t2m"])
    made = load_forecaster(ensemble, device="cpu").forecast(data, init_time="2001-05-01")
    xr.testing.assert_equal(made, folder)


def test_the_folder_is_scored_as_an_ensemble(data, ensemble, tmp_path, capsys):
    given = ["--data", data, "--device", "cpu"]
    assert run("evaluate", "--checkpoint", ensemble, *given, "--output", tmp_path / "e") == 0
    with xr.open_dataset(tmp_path / "e/scores.nc") as scores:
        assert "crps" in scores
        assert np.isfinite(scores["crps"]).all()
    assert f"{ensemble}, ensemble of 2 members" in (tmp_path / "e/report.html").read_text()
    capsys.readouterr()
    assert run("compare", ensemble / "member_1", ensemble, *given) == 0
    assert f"ensemble of 2 members in {ensemble}, months held out" in capsys.readouterr().out


def test_info_and_plot_history_tell_of_all_members(ensemble, tmp_path, capsys):
    assert run("info", ensemble) == 0
    said = capsys.readouterr().out
    assert "2, an ensemble" in said
    assert "member_2     6  1 of 1" in said
    assert run("info", ensemble, "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert [member["config"]["seed"] for member in facts["members"]] == [5, 6]
    assert all(str(ensemble) in command for command in facts["next"])
    assert run("plot-history", ensemble, "--output", tmp_path / "h.svg") == 0
    assert "member_2 (best" in (tmp_path / "h.svg").read_text()


def test_members_of_different_data_are_not_scored_as_one(data, ensemble, tmp_path, capsys):
    (tmp_path / "mixed").mkdir()
    (tmp_path / "mixed/member_1").symlink_to(ensemble / "member_1")
    assert train(data, tmp_path / "mixed/member_2", "--held-out-months", "2001-03") == 0
    given = ["--data", data, "--device", "cpu", "--output", tmp_path / "e"]
    assert run("evaluate", "--checkpoint", tmp_path / "mixed", *given) == 2
    assert "its members learned from different data" in capsys.readouterr().err
    assert not (tmp_path / "e").exists()


def test_a_folder_without_a_checkpoint_is_told(data, tmp_path, capsys):
    for command in ("forecast", "evaluate"):
        assert run(command, "--checkpoint", tmp_path, "--data", data, "--output", tmp_path / "f.nc") == 2
        assert f"{tmp_path}: no checkpoint in this folder" in capsys.readouterr().err
