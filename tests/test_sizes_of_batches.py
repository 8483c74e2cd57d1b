"""Batches filled up to a constant shape, of windows that overlap, that a device cannot take or memory does not hold."""

import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from convlstm_wx.checkpoint import load_checkpoint
from convlstm_wx.cli import main
from convlstm_wx.config import TrainConfig
from convlstm_wx.data.inputs import TrainingInputs, prepare_training
from convlstm_wx.data.reading import open_dataset
from convlstm_wx.device import DevicePolicy, choose_device, rehearsal_of_mps
from convlstm_wx.distributed import Processes
from convlstm_wx.errors import ConfigError, DeviceError
from convlstm_wx.forecast.rollout import Ensemble, Forecast, Trained
from convlstm_wx.training.autobatch import tried_run
from tests.region_files import region, write

PLAIN = replace(rehearsal_of_mps(), constant_shapes=False)
CONSTANT = rehearsal_of_mps()


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> TrainConfig:
    """Nothing in it is drawn at random: what fills a batch up would draw too."""
    holed = region(days=120, height=6, width=7)
    holed["t2m"][::5, 2, 3] = np.nan
    path = write(holed, tmp_path_factory.mktemp("data") / "region.nc")
    sizes = {"input_steps": 3, "lead_steps": 2, "hidden_channels": (4, 8), "batch_size": 8, "num_epochs": 1}
    return TrainConfig(data=(str(path),), dropout=0.0, input_noise=0.0, **sizes)


@pytest.fixture(scope="module")
def inputs(config) -> TrainingInputs:
    return prepare_training(config)


@pytest.fixture(scope="module")
def trained(config, inputs, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    return train(config, inputs, PLAIN, folder)


def train(config: TrainConfig, inputs: TrainingInputs, policy: DevicePolicy, folder: Path) -> Path:
    run, _ = tried_run(config, inputs, policy, folder, Processes())
    return run.train()


@contextmanager
def convolutions_that(act: Callable[[Tensor], None]) -> Iterator[None]:
    """Each convolution does so with its input; those of a whole window get all its times at once."""
    hook = nn.modules.module.register_module_forward_pre_hook(
        lambda module, given: act(given[0]) if isinstance(module, nn.Conv2d) else None
    )
    try:
        yield
    finally:
        hook.remove()


def forecast(path: Path, config: TrainConfig, policy: DevicePolicy, *, members: int = 1, **options) -> Forecast:
    dataset = open_dataset(config.data)
    several = Ensemble(members) if members > 1 else None
    return Forecast(
        [Trained(load_checkpoint(path))], dataset, dataset["time"].values[40:45], 3, policy, ensemble=several, **options
    )


# Constant shapes


def test_what_fills_a_batch_up_changes_nothing_that_is_learned_or_scored(config, inputs, trained, tmp_path):
    sizes = set()
    with convolutions_that(lambda x: sizes.add(len(x))):
        filled = load_checkpoint(train(config, inputs, CONSTANT, tmp_path))
    plain = load_checkpoint(trained)
    assert sizes == {8, 24}  # one lead time, or all three input times, of eight windows
    torch.testing.assert_close(filled.training["weights"], plain.training["weights"], rtol=0, atol=1e-5)
    first, second = (checkpoint.training["progress"] for checkpoint in (filled, plain))
    for name in ("train_loss", "validation_loss", "persistence_loss"):
        assert first["history"][0][name] == pytest.approx(second["history"][0][name], rel=1e-5)
    for name, values in first["rmse"][1].items():
        assert values == pytest.approx(second["rmse"][1][name], rel=1e-4)
    assert first["persistence_rmse"] == second["persistence_rmse"]


def test_a_smaller_last_batch_is_what_is_filled_up(config, inputs, trained, tmp_path):
    """Else the test above would show nothing."""
    sizes = set()
    with convolutions_that(lambda x: sizes.add(len(x))):
        train(config, inputs, PLAIN, tmp_path)
    assert len(sizes) > 2


@pytest.mark.parametrize("members", [1, 3])
def test_what_fills_a_forecast_up_is_not_in_it(config, trained, members):
    with convolutions_that(lambda x: sizes.add(len(x))):
        sizes: set[int] = set()
        filled = forecast(trained, config, CONSTANT, members=members, batch_size=2).collect()
        assert sizes == {2, 6}
        sizes = set()
        plain = forecast(trained, config, PLAIN, members=members, batch_size=2).collect()
        assert sizes > {2, 6}
    for name in filled:
        np.testing.assert_allclose(filled[name], plain[name], rtol=1e-5, atol=1e-8)


def test_a_single_forecast_is_not_filled_up(config, trained):
    sizes = set()
    with convolutions_that(lambda x: sizes.add(len(x))):
        one = forecast(trained, config, CONSTANT)
        replace(one, init_times=one.init_times[:1]).collect()
    assert sizes == {1, 3}


# Windows that overlap


def sizes_of(made: Forecast) -> set[int]:
    """Of what its convolutions get."""
    sizes: set[int] = set()
    with convolutions_that(lambda x: sizes.add(len(x))):
        made.collect()
    return sizes


@pytest.mark.parametrize(
    ("days", "sizes"),
    [
        ((40, 41, 42, 43, 44), {5, 7, 15}),  # seven times, and what is behind the first layer for fifteen
        ((40, 42, 44), {3, 7, 9}),
        ((40, 43, 46), {3, 9}),  # nothing in common
        ((40, 41, 43), {3, 9}),  # at no constant distance
        ((40,), {1, 3}),
    ],
)
def test_input_times_that_windows_have_in_common_are_convolved_once(config, trained, days, sizes):
    several = forecast(trained, config, PLAIN)
    several = replace(several, init_times=several.dataset["time"].values[list(days)])
    assert sizes_of(several) == sizes
    together, each = several.collect(), replace(several, batch_size=1).collect()
    for name in each:
        resolution = np.spacing(np.abs(each[name]).max().values)
        np.testing.assert_allclose(together[name], each[name], rtol=0, atol=1e-5 * float(each[name].std()) + resolution)


def test_every_checkpoint_of_an_ensemble_shares_but_no_perturbed_member(config, trained):
    one = forecast(trained, config, PLAIN, members=2)
    assert sizes_of(one) == {10, 30}
    assert sizes_of(replace(one, trained=one.trained * 2)) == {5, 7, 15}


def test_upstream_inputs_of_other_init_times_and_constant_shapes_share_nothing(config, trained):
    assert sizes_of(forecast(trained, config, CONSTANT)) == {5, 15}
    plain = forecast(trained, config, PLAIN)
    assert sizes_of(replace(plain, upstream_from=plain.init_times[::-1])) == {5, 15}


# What a device takes


def test_more_windows_than_the_device_takes_at_once_are_learned_in_smaller_parts(
    config, inputs, trained, tmp_path, caplog
):
    few = replace(PLAIN, most_images=11)
    with caplog.at_level(logging.WARNING):
        made = train(config, inputs, few, tmp_path)
    assert "cpu takes at most 3 windows at once: that many, not 8, in more micro-batches" in caplog.text
    weights = [load_checkpoint(path).training["weights"] for path in (made, trained)]
    torch.testing.assert_close(*weights, rtol=0, atol=1e-5)
    with pytest.raises(ConfigError, match="--batch-size 8: cpu takes at most 3 windows at once; give no more"):
        train(replace(config, auto_batch=False), inputs, few, tmp_path / "other")
    assert forecast(trained, config, few, batch_size=8).batch_size == 3


# What memory holds


def hold_at_most(images: int, error: BaseException):
    def check(x_NCHW: Tensor) -> None:
        if len(x_NCHW) > images:
            raise error

    return convolutions_that(check)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()], ids=repr)
@pytest.mark.parametrize("members", [1, 4])
def test_a_forecast_goes_on_with_fewer_at_once_where_memory_runs_out(config, trained, caplog, error, members):
    whole = forecast(trained, config, PLAIN, members=members).collect()
    with hold_at_most(6, error), caplog.at_level(logging.WARNING):
        halved = forecast(trained, config, PLAIN, members=members).collect()
    assert "going on with --batch-size 2" in caplog.text
    for name in whole:
        np.testing.assert_allclose(halved[name], whole[name], rtol=1e-5, atol=1e-8)


def test_too_little_memory_for_one_forecast_is_one_line(config, trained, tmp_path, capsys):
    output = ["--output", str(tmp_path / "f.nc"), "--device", "cpu"]
    with hold_at_most(2, torch.OutOfMemoryError("CUDA out of memory")):
        assert main(["forecast", "--checkpoint", str(trained), "--data", *config.data, *output]) == 2
        with pytest.raises(DeviceError, match="too little memory on cpu for one forecast; close other"):
            forecast(trained, config, choose_device("cpu")).collect()
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "too little memory on cpu for one forecast" in line
    assert list(tmp_path.iterdir()) == []


def test_memory_that_runs_out_elsewhere_is_one_line_too(config, trained, tmp_path, capsys, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise MemoryError("Unable to allocate 80.0 GiB for an array")

    monkeypatch.setattr("convlstm_wx.verification.evaluate.evaluate", fail)
    output = ["--output", str(tmp_path / "e"), "--device", "cpu"]
    assert main(["evaluate", "--checkpoint", str(trained), "--data", *config.data, *output]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith(
        "convlstm-wx evaluate: out of memory (Unable to allocate 80.0 GiB for an array); ask for less"
    )
    assert not (tmp_path / "e").exists()


def test_a_document_that_nobody_reads_to_its_end_is_no_mistake(trained):
    command = f"{sys.executable} -m convlstm_wx info {trained} --json | head -1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr, done.returncode) == ("{\n", "", 0)
