"""Runs that are killed, folders that are shared, checkpoints that are damaged: nothing is lost."""

import errno
import io
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from convlstm_wx.checkpoint import Checkpoint, load_checkpoint, newest_checkpoint, save_checkpoint
from convlstm_wx.cli import main
from convlstm_wx.data.inputs import prepare_training
from convlstm_wx.device import DevicePolicy, choose_device, rehearsal_of_mps
from convlstm_wx.distributed import Processes
from convlstm_wx.errors import CheckpointError, ConfigError
from convlstm_wx.files import alone_in
from convlstm_wx.training.loop import Run, _stop_requests
from convlstm_wx.training.trial import trial
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
    options = ["--num-epochs", "20", "--early-stopping-patience", "0", "--checkpoint-frequency", "2"]
    options += ["--hidden-channels", "4", "--variables", "t2m"]
    often = ["--save-every-minutes", "0.002"]
    assert train(data, tmp_path / "whole", *options) == 0
    folder, rng = tmp_path / "killed", random.Random(0)
    command = [sys.executable, ROOT / "train_convlstm.py", "--data", data, *SMALL, *options, *often]
    command = [str(part) for part in [*command, "--output-dir", folder, "--resume", "auto"]]
    steps = []
    env = os.environ | {"OMP_NUM_THREADS": "1"}  # as in this process: sums depend on the number of threads
    # A job in the background ignores it, and so would its children.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for kill in range(KILLS):
        how = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)[kill % 3]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env)
        for line in process.stdout:
            if line.startswith("output"):  # the last line before it trains
                break
        time.sleep(rng.uniform(0.02, 0.2))
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


def save_often(folder: Path, monkeypatch) -> None:
    """Every save of a run is also kept as the folder's NNNN.pt."""
    folder.mkdir()

    def save(path: Path, checkpoint: Checkpoint) -> None:
        save_checkpoint(path, checkpoint)
        shutil.copy(path, folder / f"{checkpoint.training['progress']['global_step']:04}.pt")

    monkeypatch.setattr("convlstm_wx.training.saving.save_checkpoint", save)


def test_a_run_goes_on_exactly_from_the_middle_of_an_epoch(data, tmp_path, monkeypatch):
    """With nothing restored that dropout, noise and told truth are drawn from."""
    options = ["--num-epochs", 1, "--scheduled-sampling", 0.5]
    with monkeypatch.context() as watched:
        save_often(tmp_path / "steps", watched)
        assert train(data, tmp_path / "whole", *options, "--save-every-minutes", 1e-9) == 0
    middle = tmp_path / "steps/0020.pt"
    assert "random" not in load_checkpoint(middle).training
    torch.manual_seed(123)
    assert train(data, tmp_path / "resumed", *options, "--resume", middle) == 0
    assert_same_state(tmp_path / "whole/last.pt", tmp_path / "resumed/last.pt")


def test_a_checkpoint_with_random_states_of_an_earlier_version_is_gone_on_from(data, one_epoch, tmp_path):
    contents = torch.load(one_epoch / "last.pt", weights_only=True)
    contents["training"]["random"] = {"cpu": torch.get_rng_state()}
    del contents["training"]["progress"]["windows_per_step"]
    torch.save(contents, tmp_path / "old.pt")
    for name, path in (("old", tmp_path / "old.pt"), ("new", one_epoch / "last.pt")):
        assert train(data, tmp_path / name, "--num-epochs", 2, "--resume", path) == 0
    assert_same_state(tmp_path / "old/last.pt", tmp_path / "new/last.pt")


@pytest.mark.parametrize(
    ("changes", "processes", "is_old"),
    [
        ({"batch_size": 8}, 1, False),
        ({"batch_size": 8}, 1, True),  # of an earlier version, which did not save how many there were
        ({"batch_size": 2}, 1, False),
        ({"batch_size": 3}, 1, False),
        ({"gradient_accumulation_steps": 2}, 1, False),
        ({}, 4, False),
        ({"batch_size": 1}, 4, False),
    ],
)
def test_with_another_number_of_windows_a_step_the_run_stays_where_it_is(
    data, steps, tmp_path, changes, processes, is_old
):
    """In the epoch no window is left out, and the learning rate goes on from where it was."""
    middle = load_checkpoint(steps / "0090.pt")  # of two epochs of 51 steps
    if is_old:
        del middle.training["progress"]["windows_per_step"]
    inputs, policy = prepare_training(middle.config), choose_device("cpu")
    longer = replace(middle.config, num_epochs=4)
    now = replace(longer, **changes)
    before, after = (
        Run(config, inputs, policy, tmp_path, Processes(world_size=world_size), middle)
        for config, world_size in ((longer, 1), (now, processes))
    )
    per_step = now.batch_size * now.gradient_accumulation_steps * processes
    seen = before.progress.step_in_epoch * 4
    assert seen == 39 * 4
    assert 0 <= seen - after.progress.step_in_epoch * per_step < per_step
    rates = [run.schedule.learning_rate(run.progress.global_step, []) for run in (before, after)]
    assert rates[1] == pytest.approx(rates[0], abs=0.05 * now.learning_rate)
    ends = [run.progress.global_step + run.steps_per_epoch - run.progress.step_in_epoch for run in (before, after)]
    assert [end / run.schedule.total_steps for end, run in zip(ends, (before, after))] == [0.5, 0.5]
    assert before.progress.global_step == 90


def test_the_newest_checkpoint_is_not_told_by_steps_of_another_size(data, one_epoch, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(one_epoch, folder)
    shutil.copy(folder / "last.pt", folder / "epoch_0001.pt")
    assert train(data, folder, "--resume", "auto", "--num-epochs", 2, "--batch-size", 32) == 0
    reached = [load_checkpoint(folder / name).training["progress"] for name in ("epoch_0001.pt", "last.pt")]
    assert [progress["global_step"] for progress in reached] == [51, 14]
    capsys.readouterr()
    assert train(data, folder, "--resume", "auto", "--num-epochs", 3) == 0
    said = capsys.readouterr().out
    assert f"resuming from {folder / 'last.pt'}" in said
    assert ".old" not in said


def test_who_goes_back_to_an_older_checkpoint_is_not_returned_to_the_branch_given_up(data, tmp_path, capsys):
    options = ["--checkpoint-frequency", 1]
    assert train(data, tmp_path, *options, "--num-epochs", 3, "--learning-rate", 1e-2) == 0
    first = tmp_path / "epoch_0001.pt"
    before = (tmp_path / "last.pt").read_bytes()
    capsys.readouterr()
    assert train(data, tmp_path, *options, "--resume", first, "--num-epochs", 2, "--learning-rate", 1e-4) == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if ".old" in line)
    assert "epoch_0002.pt epoch_0003.pt last.pt" in line
    assert (tmp_path / "last.pt.old").read_bytes() == before
    newest = load_checkpoint(newest_checkpoint(tmp_path))
    assert newest.config.learning_rate == 1e-4
    assert newest.training["progress"]["epoch"] == 3
    assert train(data, tmp_path, *options, "--overwrite", "--num-epochs", 1) == 0
    assert not list(tmp_path.glob("*.old"))


@pytest.mark.parametrize(("times", "said"), [((2, 3), "--input-steps 3 there, 2 here; --lead-steps 2 there, 3 here")])
def test_other_numbers_of_times_are_another_run(data, one_epoch, tmp_path, capsys, times, said):
    """Even where a window is as long as before."""
    options = ["--resume", one_epoch / "last.pt", "--num-epochs", 2]
    changed = ["--input-steps", times[0], "--lead-steps", times[1]]
    assert train(data, tmp_path / "run", *options, *changed) == 2
    assert said in capsys.readouterr().err


def test_the_optimiser_keeps_its_step_count_as_it_wants_it_on_the_device_of_now(data, one_epoch, tmp_path):
    """The fused one on its device in float32, whatever wrote it."""
    last = load_checkpoint(one_epoch / "last.pt")
    saved = last.training["optimizer"]
    for group in saved["param_groups"]:
        group["fused"] = None
    for state in saved["state"].values():
        state["step"] = state["step"].double()
    config = replace(last.config, num_epochs=2)
    run = Run(config, prepare_training(config), choose_device("cpu"), tmp_path, Processes(), last)
    assert all(group["fused"] for group in run.learner.optimizer.param_groups)
    assert {state["step"].dtype for state in run.learner.optimizer.state.values()} == {torch.float32}


def test_moments_are_laid_out_as_the_weights_are_on_the_device_of_now(data, tmp_path):
    """Fused steps walk through memory: moments in the order of another device would be those of other weights."""
    with trial(days=60, hidden_channels=(4, 8), lead_steps=2, num_epochs=2, include_upstream=False) as made:

        def run(policy: DevicePolicy, resume: Checkpoint | None = None) -> Run:
            return Run(made.config, made.inputs, policy, tmp_path, Processes(), resume)

        there = run(rehearsal_of_mps())
        for step in range(3):
            there._learn(there.load(there.training_windows, [np.arange(4) + 4 * step]))
        save_checkpoint(tmp_path / "last.pt", there.checkpoint())
        here = run(choose_device("cpu"), load_checkpoint(tmp_path / "last.pt"))
    moments = there.learner.optimizer.state
    states = list(here.learner.optimizer.state.items())
    assert any(weight.is_contiguous(memory_format=torch.channels_last) for weight, _ in states if weight.ndim == 4)
    for (weight, state), before in zip(states, moments.values()):
        for name in ("exp_avg", "exp_avg_sq"):
            assert state[name].stride() == weight.stride()
            torch.testing.assert_close(state[name], before[name], rtol=0, atol=0)


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


def test_resume_auto_on_a_run_that_has_ended_says_so_and_is_no_mistake(data, one_epoch, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(one_epoch, folder)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    assert train(data, folder, "--resume", "auto", "--num-epochs", 1) == 0
    said = capsys.readouterr().out
    assert "all 1 epochs are done already" in said
    assert f"done: {folder}/best.pt" in said
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    assert train(data, folder, "--resume", "auto", "--overwrite", "--num-epochs", 1) == 2
    assert train(data, tmp_path / "new", "--resume", "auto", "--overwrite") == 2  # before there is a run as after
    assert "give one of the two" in capsys.readouterr().err


def test_resuming_into_the_folder_of_another_run_is_refused(data, one_epoch, tmp_path, capsys):
    folder = tmp_path / "other"
    shutil.copytree(one_epoch, folder)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    assert train(data, folder, "--resume", one_epoch / "last.pt", "--num-epochs", 2) == 2
    assert f"{folder} holds a run already: go on with --resume {folder}/last.pt" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_what_a_kill_left_of_a_save_is_removed_and_nothing_else(data, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    left = [".last.pt.77.tmp.pt", ".epoch_0003.pt.77.tmp.pt", ".history.csv.77.tmp.csv"]
    for name in (*left, ".forecast.nc.77.tmp.nc", ".last.pt"):
        (folder / name).write_bytes(b"half")
    assert train(data, folder, "--num-epochs", 1) == 0
    assert {path.name for path in folder.glob(".*")} == {".forecast.nc.77.tmp.nc", ".last.pt"}


class Closed(io.StringIO):
    """A pipe whose reader has gone."""

    def write(self, text: str) -> int:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")


def test_a_closed_pipe_ends_the_log_on_the_screen_and_not_the_run(data, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdout", Closed())
    assert train(data, tmp_path, "--num-epochs", 1) == 0
    assert "done: " in (tmp_path / "training.log").read_text()


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="a signal of Unix")
def test_a_terminal_that_is_closed_is_a_request_to_stop_unless_nohup_says_otherwise(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Closed())
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # these tests may run under nohup themselves
    try:
        with _stop_requests() as requested:
            signal.raise_signal(signal.SIGHUP)
            assert requested == [signal.SIGHUP]
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with _stop_requests() as requested:
            signal.raise_signal(signal.SIGHUP)
            assert requested == []
    finally:
        signal.signal(signal.SIGHUP, before)


def test_our_own_mistakes_are_in_the_log_with_their_traceback(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("convlstm_wx.training.saving.save_checkpoint", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(data, tmp_path, "--num-epochs", 1)
    told = (tmp_path / "training.log").read_text()
    assert "Traceback" in told
    assert "ZeroDivisionError: division by zero" in told
    assert "Traceback" not in capsys.readouterr().out


def test_a_folder_of_checkpoints_of_a_newer_version_is_not_to_be_overwritten(one_epoch, tmp_path):
    contents = torch.load(one_epoch / "last.pt", weights_only=True)
    torch.save(contents | {"format_version": 99}, tmp_path / "last.pt")
    (tmp_path / "best.pt").write_bytes(b"PK\x03\x04")
    with pytest.raises(CheckpointError, match="update convlstm_wx"):
        newest_checkpoint(tmp_path)


def test_a_checkpoint_that_does_not_say_where_it_stands_is_damaged(one_epoch, tmp_path, capsys):
    contents = torch.load(one_epoch / "last.pt", weights_only=True)
    del contents["training"]["progress"]
    torch.save(contents, tmp_path / "last.pt")
    assert main(["info", str(tmp_path / "last.pt")]) == 2
    assert "an entry is missing or malformed ('progress'); the file is damaged" in capsys.readouterr().err


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


@pytest.fixture(scope="module")
def one_epoch(data, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "one"
    assert train(data, folder, "--num-epochs", 1) == 0
    return folder


@pytest.fixture(scope="module")
def steps(data, tmp_path_factory) -> Path:
    """Every step of a run of two epochs."""
    folder = tmp_path_factory.mktemp("steps")
    with pytest.MonkeyPatch.context() as watched:
        save_often(folder / "steps", watched)
        assert train(data, folder / "run", "--num-epochs", 2, "--save-every-minutes", 1e-9) == 0
    return folder / "steps"


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
