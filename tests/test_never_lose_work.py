"""Runs that are killed, folders that are shared, checkpoints that are damaged: nothing is lost."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from convlstm_wx.checkpoint import load_checkpoint, newest_checkpoint
from convlstm_wx.cli import main
from convlstm_wx.errors import CheckpointError, ConfigError
from convlstm_wx.files import alone_in
from tests.region_files import region, write

ROOT = Path(__file__).parents[1]
KILLS = 25
SMALL = ["--hidden-channels", "4", "8", "--input-steps", "3", "--lead-steps", "2", "--device", "cpu"]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write(region(days=300, height=6, width=7), tmp_path_factory.mktemp("data") / "region.nc")


def train(data: Path, folder: Path, *options: object) -> int:
    given = [*SMALL, "--output-dir", folder, *options]
    return main(["train", "--data", str(data), *(str(option) for option in given)])


def assert_same_state(a: Path, b: Path) -> None:
    """Everything but the clock, to the last bit."""
    first, second = load_checkpoint(a), load_checkpoint(b)
    for checkpoint in (first, second):
        progress = checkpoint.training["progress"]
        del progress["elapsed_s"]
        for row in progress["history"]:
            del row["elapsed_s"], row["windows_per_s"]
    torch.testing.assert_close(first.training, second.training, rtol=0, atol=0)
    torch.testing.assert_close(first.weights, second.weights, rtol=0, atol=0)


@pytest.mark.slow
def test_a_run_killed_twenty_five_times_equals_one_that_was_never_stopped(data, tmp_path):
    """SIGKILL, SIGTERM and SIGINT at random moments, each time gone on with --resume auto."""
    options = ["--num-epochs", "40", "--early-stopping-patience", "0", "--checkpoint-frequency", "2"]
    often = ["--save-every-minutes", "0.002"]
    assert train(data, tmp_path / "whole", *options) == 0
    folder, rng = tmp_path / "killed", random.Random(0)
    command = [sys.executable, ROOT / "train_convlstm.py", "--data", data, *SMALL, *options, *often]
    command = [str(part) for part in [*command, "--output-dir", folder, "--resume", "auto"]]
    steps = []
    env = os.environ | {"OMP_NUM_THREADS": "1"}  # as in this process: sums depend on the number of threads
    for kill in range(KILLS):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env)
        for line in process.stdout:
            if line.startswith("output"):  # the last line before it trains
                break
        time.sleep(rng.uniform(0.05, 0.3))
        how = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)[kill % 3]
        process.send_signal(how)
        said = process.communicate(timeout=120)[0]
        assert process.returncode in (-how, 130), said
        newest = newest_checkpoint(folder)
        steps.append(load_checkpoint(newest).training["progress"]["global_step"] if newest else 0)
    assert steps == sorted(steps)
    assert 0 < steps[-1] < load_checkpoint(tmp_path / "whole/last.pt").training["progress"]["global_step"]
    finished = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert_same_state(tmp_path / "whole/last.pt", folder / "last.pt")
    assert_same_state(tmp_path / "whole/best.pt", folder / "best.pt")


def test_saves_inside_an_epoch_bound_what_a_kill_repeats(data, tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr("convlstm_wx.training.saving.save_checkpoint", lambda path, _: saved.append(path.name))
    assert train(data, tmp_path / "never", "--num-epochs", 1, "--save-every-minutes", 0) == 0
    assert saved == ["best.pt", "last.pt"]
    saved.clear()
    assert train(data, tmp_path / "often", "--num-epochs", 1, "--save-every-minutes", 1e-9) == 0
    steps = 51  # of four windows each
    assert saved == ["last.pt"] * steps + ["best.pt", "last.pt"]


def test_resume_auto_starts_anew_where_there_is_nothing_and_skips_what_is_damaged(data, tmp_path, capsys):
    folder = tmp_path / "run"
    assert train(data, folder, "--num-epochs", 2, "--checkpoint-frequency", 1, "--resume", "auto") == 0
    assert "nothing to resume in" in capsys.readouterr().out
    (folder / "last.pt").write_bytes((folder / "last.pt").read_bytes()[:1000])
    assert train(data, folder, "--num-epochs", 3, "--resume", "auto") == 0
    said = capsys.readouterr().out
    assert "last.pt: not a whole checkpoint" in said
    assert "resuming from" in said
    assert "epoch_0002.pt" in said
    assert train(data, tmp_path / "whole", "--num-epochs", 3) == 0
    first, second = (load_checkpoint(path / "last.pt") for path in (folder, tmp_path / "whole"))
    assert len(first.training["progress"]["history"]) == len(second.training["progress"]["history"]) == 3


def test_a_folder_of_damaged_checkpoints_is_told(tmp_path):
    for name in ("last.pt", "best.pt"):
        (tmp_path / name).write_bytes(b"PK\x03\x04")
    with pytest.raises(CheckpointError, match="none of its 2 checkpoints is whole; start anew with --overwrite"):
        newest_checkpoint(tmp_path)
    assert newest_checkpoint(tmp_path / "nowhere") is None


def test_a_second_run_in_the_same_folder_is_refused(tmp_path):
    holder = "import sys, time; from pathlib import Path; from convlstm_wx.files import alone_in\n"
    holder += "with alone_in(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", holder, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match="another run is writing here"), alone_in(tmp_path):
            pass
    finally:
        process.kill()
        process.wait()
    with alone_in(tmp_path):
        assert list(tmp_path.iterdir()) == []


# Disks


def on_a_full_disk(limit: int, *arguments: object) -> tuple[int, list[str]]:
    """Exit code and error lines of the real command that can write so many bytes into a file, and no more."""
    code = (
        "import resource, sys; from convlstm_wx.cli import main; "
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit})); sys.exit(main(sys.argv[1:]))"
    )
    parts = [sys.executable, "-c", code, *(str(argument) for argument in arguments)]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(parts, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False, env=env)
    return done.returncode, done.stderr.strip().splitlines()


@pytest.fixture(scope="module")
def one_epoch(data, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "one"
    assert train(data, folder, "--num-epochs", 1) == 0
    return folder


@pytest.mark.parametrize(
    ("limit", "file", "options"),
    [
        (100_000, "last.pt", ["--save-every-minutes", 1e-9]),
        (100_000, ".pt", []),
        (600, "config.json", []),  # training.log cannot be written either, and says nothing
    ],
)
def test_a_full_disk_is_one_line_and_leaves_the_last_good_checkpoint(data, one_epoch, tmp_path, limit, file, options):
    folder = tmp_path / "run"
    shutil.copytree(one_epoch, folder)
    before = {path.name: path.read_bytes() for path in folder.glob("*.pt")}
    arguments = ["train", "--data", data, *SMALL, "--resume", folder / "last.pt", "--num-epochs", 2, *options]
    code, errors = on_a_full_disk(limit, *arguments)
    assert code == 2
    (line,) = errors
    assert f"{file}: cannot be written (File too large); free some space or choose another folder" in line
    assert {path.name: path.read_bytes() for path in folder.glob("*.pt")} == before
    assert not list(folder.glob(".*"))
    assert train(data, folder, "--resume", "auto", "--num-epochs", 2) == 0  # with room again


def test_scores_and_figures_on_a_full_disk_are_one_line(data, one_epoch, tmp_path):
    arguments = ["evaluate", "--checkpoint", one_epoch / "best.pt", "--data", data, "--output"]
    for limit in (5_000, 40_000):  # scores.nc, or one of the figures
        code, errors = on_a_full_disk(limit, *arguments, tmp_path / str(limit))
        assert code == 2
        (line,) = errors
        assert "cannot be written" in line
        assert not [path for path in (tmp_path / str(limit)).iterdir() if path.name.startswith(".")]


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="what cannot be written as root is looked for in /proc"
)
def test_a_folder_that_cannot_be_written_is_one_line_before_anything_is_read(data, capsys):
    assert train(data, Path("/proc/1/run"), "--num-epochs", 1) == 2
    captured = capsys.readouterr()
    assert "/proc/1: cannot be written" in captured.err
    assert "choose another folder" in captured.err
    assert captured.out == ""


def test_a_read_only_folder_leaves_the_last_good_checkpoint(data, one_epoch, tmp_path):
    bound = []
    if not os.geteuid():  # root writes everywhere, unless that capability is taken away
        bound = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"]
        if not shutil.which("setpriv"):
            pytest.skip("as root this needs setpriv")
    folder = tmp_path / "run"
    shutil.copytree(one_epoch, folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    command = [*bound, sys.executable, ROOT / "train_convlstm.py", "--data", data, *SMALL, "--num-epochs", 2]
    parts = [str(part) for part in [*command, "--resume", folder / "last.pt"]]
    folder.chmod(0o555)
    try:
        done = subprocess.run(parts, capture_output=True, text=True, timeout=300, check=False)
    finally:
        folder.chmod(0o755)
    assert done.returncode == 2, done.stderr
    assert f"{folder}: cannot be written (Permission denied); choose another folder" in done.stderr
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
