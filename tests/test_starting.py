"""Starting a run from the weights of another."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from convlstm_wx.checkpoint import load_checkpoint
from convlstm_wx.cli import main
from tests.region_files import region, write

SMALL = [
    "--hidden-channels",
    "3",
    "4",
    "--input-steps",
    "2",
    "--lead-steps",
    "2",
    "--batch-size",
    "8",
    "--device",
    "cpu",
]
ALONE = ["--blend", "none"]


def train(*arguments: object) -> int:
    return main(["train", *map(str, [*ALONE, *SMALL, *arguments])])


@pytest.fixture(scope="module")
def old(tmp_path_factory) -> Path:
    """The best checkpoint of a run over three epochs with one of the variables of region.nc."""
    folder = tmp_path_factory.mktemp("old run")
    data = region(days=160, levels=(500,))
    write(data, folder / "region.nc")
    given = ["--data", folder / "region.nc", "--variables", "t2m", "--learning-rate", "1e-2"]
    assert train(*given, "--num-epochs", 3, "--output-dir", folder / "run") == 0
    return folder / "run" / "best.pt"


@pytest.fixture
def other(old, tmp_path) -> Path:
    """Another grid, name and range of the variable."""
    data = region(days=160, height=5, width=6, seed=1)[["t2m"]]
    data["t2m"] += data["t2m"] - data["t2m"].mean("time")
    return write(data.rename(t2m="t850"), tmp_path / "other.nc")


def history(folder: Path) -> list[dict[str, float]]:
    return load_checkpoint(folder / "last.pt").training["progress"]["history"]


def test_a_run_begins_where_the_other_ended(old, other, tmp_path, capsys):
    given = ["--data", other, "--num-epochs", 1, "--learning-rate", 0, "--blend", "linear"]
    assert train(*given, "--output-dir", tmp_path / "a", "--init-from", old) == 0
    said = capsys.readouterr().out
    assert f"start        weights of {old}, after epoch 3 on region.nc, taken for other channels: t850 for t2m" in said
    theirs, ours = load_checkpoint(old), load_checkpoint(tmp_path / "a/last.pt")
    for name, weight in ours.network().named_parameters():
        torch.testing.assert_close(weight, theirs.weights[name])
    assert ours.spec.target.statistics.std_C == pytest.approx(2 * theirs.spec.target.statistics.std_C, rel=0.05)
    assert train(*given, "--output-dir", tmp_path / "b") == 0
    # Nothing is learned with a rate of 0: what the networks began with is compared.
    begun, random = (history(tmp_path / name)[0]["train_loss"] for name in "ab")
    assert begun < 0.7 * random


def test_the_start_is_recorded_and_a_run_goes_on_without_the_old_file(old, other, tmp_path, capsys):
    start = tmp_path / "start.pt"
    start.write_bytes(old.read_bytes())
    given = ["--data", other, "--output-dir", tmp_path / "run"]
    assert train(*given, "--num-epochs", 1, "--init-from", start) == 0
    assert json.loads((tmp_path / "run/config.json").read_text())["init_from"] == str(start)
    assert main(["info", str(tmp_path / "run")]) == 0
    assert f"started from the weights of {start}" in capsys.readouterr().out
    start.unlink()
    assert train(*given, "--num-epochs", 2, "--resume", "auto", "--init-from", start) == 0
    assert train(*given, "--num-epochs", 3, "--resume", tmp_path / "run/last.pt") == 0
    assert len(history(tmp_path / "run")) == 3


def test_a_run_s_folder_stands_for_its_checkpoint(old, other, tmp_path, capsys):
    given = ["--data", other, "--output-dir", tmp_path / "run"]
    assert train(*given, "--num-epochs", 1, "--init-from", old.parent) == 0
    assert f"weights of {old.parent}, after epoch 3" in capsys.readouterr().out
    assert main(["train", "--data", str(other), "--num-epochs", "2", "--resume", str(tmp_path / "run")]) == 0
    assert f"resuming from {tmp_path / 'run/last.pt'}" in capsys.readouterr().out
    assert len(history(tmp_path / "run")) == 2
    assert train("--data", other, "--resume", tmp_path) == 2
    assert f"--resume {tmp_path}: there is no checkpoint in this folder" in capsys.readouterr().err
    shutil.copytree(tmp_path / "run", tmp_path / "ensemble/member_1")
    shutil.copytree(tmp_path / "run", tmp_path / "ensemble/member_2")
    assert train("--data", other, "--resume", tmp_path / "ensemble") == 2
    assert "is an ensemble; go on with --output-dir" in capsys.readouterr().err
    assert train(*given, "--overwrite", "--init-from", tmp_path / "ensemble") == 2
    assert "is an ensemble of 2; name one of them" in capsys.readouterr().err


def test_a_run_that_goes_on_takes_no_other_start(old, other, tmp_path, capsys):
    given = ["--data", other, "--output-dir", tmp_path / "run"]
    assert train(*given, "--num-epochs", 1) == 0
    resumed = ["--num-epochs", 2, "--resume", tmp_path / "run/last.pt", "--init-from", old]
    assert train(*given, *resumed) == 2
    assert "is for a new run, but --resume goes on with one that began with random weights" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "unet"], "model encoder-forecaster there, unet here (--model encoder-forecaster)"),
        (["--hidden-channels", "4", "8"], "hidden_channels 3 4 there, 4 8 here (--hidden-channels 3 4)"),
        (["--kernel-size", "5"], "kernel_size 3 there, 5 here (--kernel-size 3)"),
        (["--variables", "t2m", "tp"], "input_channels 1 there, 2 here (--variables and --levels: it reads t2m)"),
        (
            ["--variables", "tp", "t2m", "--target-variables", "t2m"],
            "target_indices 0 there, 1 here (--target-variables: it forecasts t2m)",
        ),
        (["--target-region", "50", "60", "0", "6", "--include-upstream"], "upstream_channels none there, "),
    ],
)
def test_a_network_of_another_shape_is_refused_with_what_would_fit(old, tmp_path, capsys, options, message):
    data = ["--data", old.parents[1] / "region.nc", "--variables", "t2m", "--output-dir", tmp_path / "run"]
    assert train(*data, "--init-from", old, *options) == 2
    error = capsys.readouterr().err
    assert f"--init-from {old}: its network does not fit: " in error
    assert message in error
    assert not (tmp_path / "run").exists()


def test_channels_in_another_order_are_refused(old, tmp_path, capsys):
    data = ["--data", old.parents[1] / "region.nc", "--num-epochs", 1]
    assert train(*data, "--variables", "t2m", "tp", "--output-dir", tmp_path / "a") == 0
    turned = ["--variables", "tp", "t2m", "--output-dir", tmp_path / "b", "--init-from", tmp_path / "a/best.pt"]
    assert train(*data, *turned) == 2
    assert "channels t2m tp there, tp t2m here (their order is that of --variables)" in capsys.readouterr().err


def test_a_start_that_is_no_checkpoint_is_refused(other, tmp_path, capsys):
    (tmp_path / "torn.pt").write_bytes(b"torn")
    for name, message in (("torn.pt", "not a whole checkpoint"), ("none.pt", "no such checkpoint")):
        assert train("--data", other, "--output-dir", tmp_path / "run", "--init-from", tmp_path / name) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
