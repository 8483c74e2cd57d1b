"""On an Apple GPU: layer, training step, half precision, checkpoint and forecast against the CPU."""

import platform

import pytest
import torch

from convlstm_wx.checkpoint import load_checkpoint, save_checkpoint
from convlstm_wx.commands.auditing import SMALL
from convlstm_wx.data.reading import open_dataset
from convlstm_wx.device import choose_device
from convlstm_wx.forecast.assembling import make_forecast
from convlstm_wx.forecast.choosing import choose_init_times
from convlstm_wx.forecast.rollout import Trained
from convlstm_wx.models.convlstm import ConvLSTM
from convlstm_wx.training.checkup import Contender, Outcome, check_up, step_apart
from convlstm_wx.training.machine import look
from convlstm_wx.training.mps_facts import has_mps_kernel, operators
from convlstm_wx.training.trial import difference, one_step, trial

WHY_NOT = f"no MPS: {platform.system()} {platform.machine()}, PyTorch {torch.__version__}"
pytestmark = [pytest.mark.mps, pytest.mark.skipif(not torch.backends.mps.is_available(), reason=WHY_NOT)]


@pytest.fixture(scope="module")
def small():
    with trial(days=30, include_upstream=True, dropout=0.0, input_noise=0.0, **SMALL) as made:
        yield made


def test_the_layer_and_its_gradients_are_those_of_the_cpu():
    torch.manual_seed(0)
    layer, x = ConvLSTM(3, 8), torch.randn(2, 4, 3, 9, 11)
    results = []
    for device in ("cpu", "mps"):
        layer.to(device).zero_grad()
        x_here = x.to(device).requires_grad_()
        h, (_, c) = layer(x_here)
        (h.square().sum() + c.square().sum()).backward()
        tensors = (h, c, x_here.grad, *(p.grad for p in layer.parameters()))
        results.append([t.detach().cpu() for t in tensors])
    for mine, theirs in zip(*results):
        torch.testing.assert_close(theirs, mine, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("use_amp", [False, True])
def test_a_training_step_is_that_of_the_cpu(small, use_amp):
    reference = one_step(small.run(choose_device("cpu"), seed=7))
    contender = Contender("mps", use_amp=use_amp)
    found = difference(reference, one_step(small.run(contender.policy(), seed=7)))
    assert Outcome(contender, found).problems == []


def test_half_precision_ends_well_in_a_process_of_its_own():
    assert step_apart(Contender("mps", use_amp=True), seed=7).failure == ""


def test_a_model_trained_on_mps_loads_and_forecasts_the_same_on_the_cpu(small, tmp_path):
    run = small.run(choose_device("mps"), seed=7)
    one_step(run)
    path = tmp_path / "last.pt"
    save_checkpoint(path, run.checkpoint())
    checkpoint = load_checkpoint(path)
    every = [*checkpoint.weights.values(), *checkpoint.training["weights"].values()]
    assert {tensor.device.type for tensor in every} == {"cpu"}
    for name, parameter in run.learner.network.named_parameters():
        assert torch.equal(parameter.detach().cpu(), checkpoint.training["weights"][name]), name
    dataset = open_dataset(small.config.data)
    times = choose_init_times(checkpoint.spec, dataset, [], None, None)
    mine, theirs = (
        make_forecast([Trained(checkpoint)], dataset, times, lead_steps=2, policy=choose_device(device))
        for device in ("cpu", "mps")
    )
    for name in mine.data_vars:
        scale = float(abs(mine[name]).max())
        assert float(abs(mine[name] - theirs[name]).max()) <= 1e-4 * scale, name


def test_a_run_goes_on_from_mps_to_the_cpu(small, tmp_path):
    run = small.run(choose_device("mps"), seed=7)
    one_step(run)
    save_checkpoint(tmp_path / "last.pt", run.checkpoint())
    resumed = type(run)(
        run.config,
        small.inputs,
        choose_device("cpu"),
        tmp_path,
        run.processes,
        load_checkpoint(tmp_path / "last.pt"),
    )
    states = resumed.learner.optimizer.state.values()
    assert all(state["exp_avg"].device.type == "cpu" for state in states)
    assert one_step(resumed).is_finite


def test_the_check_up_finds_this_mac_healthy():
    found = check_up(look(), "mps", seed=7)
    assert found.problems == []
    assert {outcome.contender.name for outcome in found.outcomes} >= {"mps, float32", "mps, bfloat16"}


def test_this_build_has_every_kernel_that_the_table_of_operators_promises():
    registered = torch._C._dispatch_has_kernel_for_dispatch_key
    promised = [name for name in operators() if has_mps_kernel(name) and torch._C._dispatch_has_kernel(f"aten::{name}")]
    assert len(promised) > 500
    assert [name for name in promised if not registered(f"aten::{name}", "MPS")] == []
