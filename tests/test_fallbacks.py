"""What a run does when memory runs out or numbers are no longer finite: it goes on with less, and says so."""

import gc
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from convlstm_wx import device
from convlstm_wx.checkpoint import load_checkpoint
from convlstm_wx.cli import main
from convlstm_wx.commands.findings import _batch_advice
from convlstm_wx.config import TrainConfig
from convlstm_wx.data.inputs import prepare_training
from convlstm_wx.device import choose_device
from convlstm_wx.distributed import Processes
from convlstm_wx.errors import ConfigError
from convlstm_wx.memory import MemoryLimit, memory_bytes, memory_limits
from convlstm_wx.models.build import NETWORKS
from convlstm_wx.training.loop import MOST_SKIPPED_IN_HALF, MOST_SKIPPED_STEPS, Run
from convlstm_wx.training.memory import DoesNotFitError
from convlstm_wx.training.plan import free_bytes
from convlstm_wx.training.probe import probe
from tests.region_files import region, write

SMALL = ["--hidden-channels", "4", "8", "--input-steps", "3", "--lead-steps", "2", "--device", "cpu"]
CUDA_SAYS = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
CPU_SAYS = RuntimeError("[enforce fail at alloc_cpu.cpp:75] DefaultCPUAllocator: can't allocate memory: you tried")
MPS_SAYS = RuntimeError("MPS backend out of memory (MPS allocated: 1.0 GB)")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write(region(days=200, height=6, width=7), tmp_path_factory.mktemp("data") / "region.nc")


def train(data: Path, folder: Path, *options: object) -> int:
    given = [*SMALL, "--output-dir", folder, *options]
    return main(["train", "--data", str(data), "--num-epochs", "1", *(str(option) for option in given)])


@contextmanager
def networks_that(hook: Callable[[nn.Module, Tensor, Tensor], Tensor | None]) -> Iterator[None]:
    """Every network does so with its input and output; what it returns, if anything, is the output."""

    def after(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        return hook(module, inputs[0], output) if isinstance(module, tuple(NETWORKS.values())) else None

    handle = nn.modules.module.register_module_forward_hook(after)
    try:
        yield
    finally:
        handle.remove()


def hold_at_most(windows: int, *, error: BaseException = CUDA_SAYS, when: Callable[[nn.Module], bool] = bool):
    """Networks that run out of memory with more windows at once."""

    def check(network: nn.Module, x_BTCHW: Tensor, _: Tensor) -> None:
        if len(x_BTCHW) > windows and when(network):
            raise error

    return networks_that(check)


def assert_same_run(a: Path, b: Path) -> None:
    """Weights, moments, moving average and losses to the last bit."""
    first, second = (load_checkpoint(path / "last.pt") for path in (a, b))
    for name in ("weights", "averaged", "optimizer"):
        torch.testing.assert_close(first.training[name], second.training[name], rtol=0, atol=0)
    assert all(row["windows_per_s"] > 0 for row in first.training["progress"]["history"])
    losses = [[row["train_loss"] for row in each.training["progress"]["history"]] for each in (first, second)]
    assert losses[0] == losses[1]


# Memory


@pytest.mark.parametrize("error", [CUDA_SAYS, CPU_SAYS, MPS_SAYS])
def test_out_of_memory_halves_the_micro_batch_and_learns_the_same(data, tmp_path, capsys, error):
    with hold_at_most(2, error=error):
        assert train(data, tmp_path / "halved", "--batch-size", 8) == 0
    said = capsys.readouterr().out
    assert said.count("out of memory with") == 2
    assert "out of memory with 8 windows at once: going on with 4" in said
    assert "out of memory with 4 windows at once: going on with 2" in said
    assert train(data, tmp_path / "small", "--batch-size", 2, "--gradient-accumulation-steps", 4) == 0
    assert_same_run(tmp_path / "halved", tmp_path / "small")


def test_memory_that_runs_out_in_the_middle_costs_no_step(data, tmp_path, capsys):
    """The step under way is repeated from a gradient of zero, with the dropout and noise that it had."""
    calls = []
    options = ["--batch-size", 8, "--gradient-accumulation-steps", 2, "--dropout", 0, "--input-noise", 0]
    with hold_at_most(4, when=lambda network: calls.append(1) or len(calls) > 7):
        assert train(data, tmp_path / "halved", *options) == 0
    assert "going on with 4" in capsys.readouterr().out
    assert train(data, tmp_path / "whole", *options) == 0
    halved, whole = (load_checkpoint(tmp_path / name / "last.pt").training for name in ("halved", "whole"))
    assert halved["progress"]["global_step"] == whole["progress"]["global_step"]
    torch.testing.assert_close(halved["weights"], whole["weights"], rtol=0, atol=1e-5)


def test_validation_that_does_not_fit_is_done_in_smaller_pieces(data, tmp_path, capsys):
    with hold_at_most(3, when=lambda network: not network.training):
        assert train(data, tmp_path / "halved", "--batch-size", 8) == 0
    assert "going on with 2" in capsys.readouterr().out
    assert train(data, tmp_path / "whole", "--batch-size", 8) == 0
    halved, whole = (load_checkpoint(tmp_path / name / "last.pt").training["progress"] for name in ("halved", "whole"))
    assert halved["history"][0]["train_loss"] == whole["history"][0]["train_loss"]
    assert halved["history"][0]["validation_loss"] == pytest.approx(whole["history"][0]["validation_loss"], rel=1e-6)


def test_a_resumed_run_keeps_the_micro_batch_that_fits(data, tmp_path, capsys):
    with hold_at_most(2):
        assert train(data, tmp_path, "--batch-size", 8) == 0
        capsys.readouterr()
        assert train(data, tmp_path, "--resume", "auto", "--num-epochs", 2) == 0
        assert "out of memory" not in capsys.readouterr().out
        assert load_checkpoint(tmp_path / "last.pt").training["progress"]["micro_batch"] == 2
        again = ["--resume", "auto", "--num-epochs", 3, "--batch-size", 6]
        assert train(data, tmp_path, *again) == 0  # what is given anew is tried anew
    said = capsys.readouterr().out
    assert "out of memory with 6 windows at once: going on with 3" in said
    assert "out of memory with 3 windows at once: going on with 2" in said


def test_what_did_not_fit_is_out_of_memory_before_less_is_tried(data, tmp_path):
    """The graph of a batch that failed half way, in the trial and later: seven windows, as nothing else here has."""
    config = TrainConfig(data=(str(data),), batch_size=7, input_steps=3, lead_steps=2, hidden_channels=(4, 8))
    run = Run(config, prepare_training(config), choose_device("cpu"), tmp_path, Processes())
    left = []

    def fail_late(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if module is run.learner.network.head and len(inputs[0]) == 7:
            raise torch.OutOfMemoryError("CUDA out of memory")  # a new one: it holds the frames that it went through

    handle = nn.modules.module.register_module_forward_hook(fail_late)
    learn = partial(run.learner.learn, run.load(run.training_windows, [np.arange(7)]), 1e-3)
    try:
        for attempt in (partial(probe, run), learn):
            with pytest.raises(DoesNotFitError):
                attempt()
            gc.collect()
            left += [t.shape for t in gc.get_objects() if type(t) is Tensor and t.ndim > 3 and len(t) == 7]
    finally:
        handle.remove()
    assert left == []


def test_one_window_that_does_not_fit_is_one_line(data, tmp_path, capsys):
    with hold_at_most(0):
        assert train(data, tmp_path / "run") == 2
    told = capsys.readouterr().err.strip()
    assert "too little memory on cpu for one window of 2 lead steps at once; use a smaller --target-region" in told
    assert "\n" not in told
    assert not (tmp_path / "run").exists()


def test_no_auto_batch_stops_at_once(data, tmp_path, capsys):
    with hold_at_most(2):
        assert train(data, tmp_path / "run", "--no-auto-batch") == 2
    captured = capsys.readouterr()
    assert "for 4 windows of 2 lead steps at once; use --batch-size 2 --gradient-accumulation-steps 2" in captured.err
    assert "going on" not in captured.out


def test_memory_that_no_smaller_batch_saves_is_one_line(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda *_, **__: (_ for _ in ()).throw(CUDA_SAYS))
    assert train(data, tmp_path / "run") == 2
    assert "too little memory on cpu for the network and its optimiser" in capsys.readouterr().err


@pytest.mark.parametrize("size", ["4", "auto"])
def test_a_network_that_does_not_fit_is_one_line(data, tmp_path, capsys, monkeypatch, size):
    monkeypatch.setattr("convlstm_wx.training.loop.build", lambda *_: (_ for _ in ()).throw(CPU_SAYS))
    assert train(data, tmp_path / "run", "--batch-size", size) == 2
    assert "too little memory on cpu for the network and its optimiser" in capsys.readouterr().err


# --batch-size auto


def test_memory_that_is_free_is_no_more_than_a_container_gives(tmp_path, monkeypatch):
    job = tmp_path / "group/job"
    job.mkdir(parents=True)
    (tmp_path / "own").write_text("3:cpu:/elsewhere\n0::/group/job\n")
    (job / "memory.max").write_text("max\n")
    for name, text in {"max": "1000", "current": "700", "stat": "anon 500\ninactive_file 150"}.items():
        (job.parent / f"memory.{name}").write_text(f"{text}\n")
    limits = memory_limits(tmp_path, tmp_path / "own")
    assert limits == [MemoryLimit(1000, 450)]
    assert memory_limits(tmp_path / "none", tmp_path / "none/own") == []
    assert memory_bytes(tmp_path, tmp_path / "own") == 1000
    monkeypatch.setattr("convlstm_wx.training.plan.memory_limits", lambda: limits)
    assert free_bytes(choose_device("cpu"), Processes(local_size=2)) == 180  # four fifths of it, for each of two


def test_batch_size_auto_takes_the_largest_that_fits_and_keeps_it(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("convlstm_wx.training.autobatch.WORTHWHILE", 0.0)  # however slow this machine is just now
    monkeypatch.setattr("convlstm_wx.training.autobatch.FEWEST_STEPS", 5)
    with hold_at_most(5):
        assert train(data, tmp_path / "auto", "--batch-size", "auto") == 0
    assert "batch size 4 found" in (said := capsys.readouterr().out)
    assert "8 do not fit into memory" in said
    assert "batch        4 windows, 4 per optimiser step" in said
    assert json.loads((tmp_path / "auto/config.json").read_text())["batch_size"] == 4
    assert load_checkpoint(tmp_path / "auto/last.pt").config.batch_size == 4
    assert train(data, tmp_path / "four", "--batch-size", 4) == 0
    assert_same_run(tmp_path / "auto", tmp_path / "four")
    capsys.readouterr()
    # The same command once more, as a job that was killed is started again: with the number of the checkpoint.
    assert train(data, tmp_path / "auto", "--batch-size", "auto", "--resume", "auto", "--num-epochs", 2) == 0
    assert "found" not in capsys.readouterr().out
    assert load_checkpoint(tmp_path / "auto/last.pt").config.batch_size == 4


def test_batch_size_auto_leaves_enough_optimiser_steps(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("convlstm_wx.training.autobatch.WORTHWHILE", 0.0)
    options = ["--batch-size", "auto", "--gradient-accumulation-steps", 2]
    assert train(data, tmp_path, *options) == 0
    assert "batch size 2 found" in (said := capsys.readouterr().out)  # of 143 windows, 4 in each step
    assert "more would leave fewer than 20 optimiser steps to an epoch" in said


def test_batch_size_auto_stays_below_the_memory_that_is_free(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("convlstm_wx.training.autobatch.free_bytes", lambda *_: 1)
    assert train(data, tmp_path, "--batch-size", "auto") == 0
    assert "batch size 1 found" in (said := capsys.readouterr().out)
    assert "2 would need more than the 1 bytes that may be used" in said


def test_batch_size_auto_stops_on_a_cpu_where_more_are_no_faster(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("convlstm_wx.training.autobatch.WORTHWHILE", 1000.0)
    assert train(data, tmp_path, "--batch-size", "auto") == 0
    assert "batch size 1 found" in (said := capsys.readouterr().out)
    assert "2 are no faster" in said


def test_inspect_finds_a_batch_size_too(data, tmp_path, capsys):
    assert main(["inspect", "--data", str(data), *SMALL, "--batch-size", "auto"]) == 0
    assert "batch size " in (said := capsys.readouterr().out)
    assert "--batch-size auto" in said.splitlines()[-1]


def test_a_batch_size_is_a_number_or_auto():
    assert (
        TrainConfig.from_dict(TrainConfig.from_dict({"batch_size": "auto"}).to_dict()).to_dict()["batch_size"] == "auto"
    )
    for value, message in ((0, "--batch-size 0: must be at least 1, or auto"), ("all", "expected int, found 'all'")):
        with pytest.raises(ConfigError, match=message):
            TrainConfig.from_dict({"batch_size": value})


# Numbers that are not finite


@pytest.fixture
def _bf16(monkeypatch):
    monkeypatch.setattr(device, "cpu_has_bf16", lambda: True)


def fail_in_half(*, training: bool = True, after: int = 0):
    """Networks whose output is NaN under autocast, from the given call on."""
    calls = []

    def spoil(network: nn.Module, _: Tensor, output: Tensor) -> Tensor | None:
        calls.append(network.training)
        is_meant = network.training == training and len(calls) > after
        return output * torch.nan if is_meant and torch.is_autocast_enabled("cpu") else None

    return networks_that(spoil)


@pytest.mark.usefixtures("_bf16")
def test_half_precision_that_fails_repeatedly_is_given_up_for_float32(data, tmp_path, capsys):
    limit = MOST_SKIPPED_IN_HALF[torch.bfloat16]
    with fail_in_half(after=3):
        assert train(data, tmp_path, "--use-amp") == 0
        said = capsys.readouterr().out
        assert "bfloat16 autocast" in said
        assert said.count("loss or gradient not finite, step skipped") == limit
        given_up = f"{limit} steps skipped in a row: float32 instead of half precision for the rest of the run"
        assert said.count(given_up) == 1
        assert given_up in (tmp_path / "training.log").read_text()
        assert all(weight.isfinite().all() for weight in load_checkpoint(tmp_path / "best.pt").weights.values())
        assert train(data, tmp_path, "--use-amp", "--resume", "auto", "--num-epochs", 2) == 0
    said = capsys.readouterr().out
    assert "skipped" not in said
    assert "float32: half precision failed in this run" in said


def test_float16_with_its_scaler_gets_more_patience_and_is_given_up_too(data, tmp_path, caplog):
    """As on an older GPU, here on the CPU: the scaler halves itself at each skipped step before that helps no more."""
    config = TrainConfig(data=(str(data),), num_epochs=1, input_steps=3, lead_steps=2, hidden_channels=(4, 8))
    policy = replace(choose_device("cpu"), amp_dtype=torch.float16, use_grad_scaler=True)
    limit = MOST_SKIPPED_IN_HALF[torch.float16]
    run = Run(config, prepare_training(config), policy, tmp_path, Processes())
    with caplog.at_level(logging.WARNING), fail_in_half(after=3):
        run.train()
    assert caplog.text.count("step skipped") == limit
    assert f"{limit} steps skipped in a row: float32 instead of half precision" in caplog.text
    assert not run.learner.scaler.is_enabled()
    longer = replace(config, num_epochs=2)
    again = Run(longer, prepare_training(config), policy, tmp_path, Processes(), load_checkpoint(tmp_path / "last.pt"))
    assert again.policy.amp_dtype is None
    assert not again.learner.scaler.is_enabled()


@pytest.mark.usefixtures("_bf16")
def test_a_validation_that_fails_in_half_precision_is_done_in_float32(data, tmp_path, capsys):
    with fail_in_half(training=False):
        assert train(data, tmp_path, "--use-amp") == 0
    said = capsys.readouterr().out
    assert "the validation loss is nan: float32 instead of half precision for the rest of the run" in said
    assert load_checkpoint(tmp_path / "last.pt").training["progress"]["half_failed"]


def test_float32_that_fails_stops_the_run_and_leaves_the_last_good_checkpoint(data, tmp_path, capsys):
    assert train(data, tmp_path) == 0
    before = {name: (tmp_path / name).read_bytes() for name in ("best.pt", "last.pt")}
    calls = []

    def spoil(network: nn.Module, _: Tensor, output: Tensor) -> Tensor | None:
        calls.append(1)
        return output * torch.nan if len(calls) > 3 else None

    capsys.readouterr()
    with networks_that(spoil):
        assert train(data, tmp_path, "--resume", "auto", "--num-epochs", 2) == 2
    told = capsys.readouterr().err.strip()
    assert f"loss or gradient was not finite {MOST_SKIPPED_STEPS} steps in a row" in told
    assert "\n" not in told
    assert {name: (tmp_path / name).read_bytes() for name in before} == before


def test_steps_are_counted_over_the_ends_of_epochs(data, tmp_path, caplog):
    """An epoch of fewer steps than may be skipped must not start the count anew."""
    config = TrainConfig(data=(str(data),), batch_size=32, input_steps=3, lead_steps=2, hidden_channels=(4, 8))
    run = Run(config, prepare_training(config), choose_device("cpu"), tmp_path, Processes())
    assert run.steps_per_epoch < MOST_SKIPPED_STEPS
    with caplog.at_level(logging.WARNING):
        for _ in range(MOST_SKIPPED_STEPS - 1):
            run._count_skipped(is_skipped=True)
    assert run.checkpoint().training["progress"]["skipped"] == MOST_SKIPPED_STEPS - 1
    run._count_skipped(is_skipped=False)
    assert run.progress.skipped == 0


def test_a_loss_that_is_not_finite_skips_the_step_even_if_its_gradient_is(data, tmp_path):
    config = TrainConfig(data=(str(data),), input_steps=3, lead_steps=2, hidden_channels=(4, 8), loss="mae")
    run = Run(config, prepare_training(config), choose_device("cpu"), tmp_path, Processes())
    (batch,) = run.load(run.training_windows, [range(4)])
    weights = [p.detach().clone() for p in run.learner.network.parameters()]
    shadow = {name: weight.clone() for name, weight in run.learner.averaged.shadow.items()}
    endless = batch._replace(y_BLDHW=torch.full_like(batch.y_BLDHW, 3e38))
    assert run.learner.learn([endless], 1e-3) is None
    assert all(torch.equal(a, b) for a, b in zip(weights, run.learner.network.parameters()))
    assert all(torch.equal(run.learner.averaged.shadow[name], weight) for name, weight in shadow.items())


@pytest.mark.parametrize(
    ("size", "fits", "advice"),
    [
        (6, 4, "--batch-size 3 --gradient-accumulation-steps 4 learns the same"),
        (12, 8, "--batch-size 6 --gradient-accumulation-steps 4 learns the same"),
        (7, 4, "--batch-size 1 --gradient-accumulation-steps 14 learns the same"),
        (4, 4, "--batch-size 4 fits"),
        (4, 0, "hardly one window; choose a smaller --target-region"),
    ],
)
def test_what_inspect_advises_learns_the_same(size, fits, advice):
    plan = SimpleNamespace(batch_size=size, largest_batch_size=fits, probe=SimpleNamespace(windows=size))
    assert advice in _batch_advice(plan, TrainConfig(batch_size=size, gradient_accumulation_steps=2))
