"""Several processes, through torchrun and the real command: one that fails ends the others, and all decide alike."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from convlstm_wx.checkpoint import load_checkpoint
from convlstm_wx.distributed import joined
from convlstm_wx.errors import ConfigError
from tests.region_files import region, write

ROOT = Path(__file__).parents[1]
SMALL = ["--hidden-channels", "4", "8", "--input-steps", "3", "--lead-steps", "2", "--device", "cpu", "--blend", "none"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
SECONDS = 60  # on a busy machine; most of it is for starting

# The real command, with something planted into the network of the second process.
PLANTED = """
import os, sys, torch
from convlstm_wx.cli import main
from convlstm_wx.errors import TrainingError
from convlstm_wx.models.build import NETWORKS

calls = []

def plant(module, inputs, output):
    if os.environ["RANK"] == "1" and isinstance(module, tuple(NETWORKS.values())):
        calls.append(1)
        {what}

torch.nn.modules.module.register_module_forward_hook(plant)
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write(region(days=160, height=5, width=6), tmp_path_factory.mktemp("data") / "region.nc")


def command(script: Path, data: Path, folder: Path, *options: object) -> list[str]:
    parts = [*TORCHRUN, script, "train", "--data", data, *SMALL, "--output-dir", folder, *options]
    return [str(part) for part in parts]


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def run_planted(what: str, data: Path, folder: Path, *options: object) -> subprocess.CompletedProcess:
    script = folder.with_suffix(".py")
    script.write_text(PLANTED.format(what=what))
    parts = command(script, data, folder, *options)
    return subprocess.run(parts, capture_output=True, text=True, env=environment(), timeout=SECONDS, check=False)


def our_lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("convlstm-wx")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("os.kill(os.getpid(), 9) if len(calls) > 20 else None", "another of the processes has failed or was killed"),
        ("if len(calls) > 20: raise TrainingError('this one alone')", "this one alone"),
    ],
)
def test_a_process_that_fails_ends_the_others_within_seconds(data, tmp_path, what, told):
    done = run_planted(what, data, tmp_path / "run", "--num-epochs", 30, "--save-every-minutes", 0.0005)
    assert done.returncode != 0
    lines = our_lines(done.stderr)
    assert any(told in line for line in lines)
    assert len(lines) <= 2  # the process's own, and that of the one that misses it
    assert "convlstm_wx/" not in done.stderr  # no traceback through our own files
    assert load_checkpoint(tmp_path / "run/last.pt").training["progress"]["global_step"] > 0


def test_half_of_what_torchrun_sets_is_told(monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with (
        pytest.raises(ConfigError, match="WORLD_SIZE is set, but not LOCAL_RANK, MASTER_ADDR, MASTER_PORT"),
        joined(),
    ):
        pass


@pytest.mark.slow
def test_a_mistake_that_all_processes_find_is_told_once(data, tmp_path):
    done = run_planted("pass", data, tmp_path / "run", "--resume", "none.pt")
    assert done.returncode != 0
    (line,) = our_lines(done.stderr)
    assert "none.pt: no such checkpoint" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_memory_that_runs_out_in_one_process_halves_the_micro_batch_of_all(data, tmp_path):
    what = "if len(inputs[0]) > 2: raise torch.OutOfMemoryError('CUDA out of memory')"
    halved = run_planted(what, data, tmp_path / "halved", "--num-epochs", 1, "--batch-size", 4)
    assert halved.returncode == 0, halved.stderr
    assert halved.stdout.count("out of memory with 4 windows at once: going on with 2") == 1
    options = ["--num-epochs", 1, "--batch-size", 2, "--gradient-accumulation-steps", 2]
    assert run_planted("pass", data, tmp_path / "small", *options).returncode == 0
    first, second = (load_checkpoint(tmp_path / name / "last.pt").training for name in ("halved", "small"))
    torch.testing.assert_close(first["weights"], second["weights"], rtol=0, atol=0)


@pytest.mark.slow
def test_processes_draw_noise_of_their_own_and_a_resumed_run_draws_the_same(data, tmp_path):
    """What two processes draw in a step differs, their weights do not; a second epoch from a checkpoint is exact."""
    what = "print('drew', torch.initial_seed(), file=open(os.environ['DREW'] + os.environ['RANK'], 'a'))"
    what = f"({what}) if module.training else None"
    drawn = {}
    for name, options in (
        ("whole", ["--num-epochs", 2, "--checkpoint-frequency", 1]),
        ("resumed", ["--num-epochs", 2, "--resume", tmp_path / "whole/epoch_0001.pt"]),
    ):
        script = tmp_path / f"{name}.py"
        planted = PLANTED.replace("calls.append(1)", f"calls.append(1); os.environ['DREW'] = '{tmp_path / name}-'")
        script.write_text(planted.format(what=what).replace('os.environ["RANK"] == "1" and ', "", 1))
        parts = command(script, data, tmp_path / name, *options)
        done = subprocess.run(parts, capture_output=True, text=True, env=environment(), timeout=SECONDS, check=False)
        assert done.returncode == 0, done.stderr
        drawn[name] = [(tmp_path / f"{name}-{rank}").read_text().split("\n")[2:-1] for rank in (0, 1)]
    first, second = drawn["whole"]  # the first two passes, left out above, were the probe's
    assert len(first) == len(second) > 20
    assert not set(first) & set(second)
    assert [one[len(one) // 2 :] for one in drawn["whole"]] == drawn["resumed"]
    whole, resumed = (load_checkpoint(tmp_path / name / "last.pt") for name in drawn)
    for name in ("weights", "averaged", "optimizer"):
        torch.testing.assert_close(whole.training[name], resumed.training[name], rtol=0, atol=0)


@pytest.mark.slow
def test_a_request_to_stop_stops_all_processes_at_the_same_step(data, tmp_path):
    script = tmp_path / "train.py"
    script.write_text(PLANTED.format(what="time.sleep(0.02)").replace("import os", "import time, os", 1))
    parts = command(script, data, tmp_path / "run", "--num-epochs", 200, "--early-stopping-patience", 0)
    process = subprocess.Popen(parts, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment())
    for line in process.stdout:
        if line.startswith("epoch"):
            break
    started = time.monotonic()
    process.send_signal(signal.SIGTERM)
    errors = process.communicate(timeout=SECONDS)[1]
    assert time.monotonic() - started < 25  # torchrun would kill after 30
    assert process.returncode != 0
    assert load_checkpoint(tmp_path / "run/interrupted.pt").training["progress"]["global_step"] > 0
    assert "another of the processes" not in errors


@pytest.mark.slow
def test_processes_build_the_data_cache_once(data, tmp_path):
    script, built = tmp_path / "train.py", tmp_path / "built"
    watch = f"""
def note(event, arguments):
    if event == "os.mkdir" and str(arguments[0]).endswith(".unfinished"):
        with open("{built}", "a") as file:
            print("process", os.environ["RANK"], file=file)

sys.addaudithook(note)
torch.nn"""
    script.write_text(PLANTED.format(what="pass").replace("torch.nn", watch, 1))
    cache = ["--memory-budget", 0.00001, "--cache-dir", tmp_path / "cache"]
    parts = command(script, data, tmp_path / "run", "--num-epochs", 1, *cache)
    done = subprocess.run(parts, capture_output=True, text=True, env=environment(), timeout=SECONDS, check=False)
    assert done.returncode == 0, done.stderr
    assert built.read_text() == "process 0\n"
