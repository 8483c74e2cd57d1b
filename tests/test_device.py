"""The device policy; what needs a GPU is skipped without one."""

import platform

import pytest
import torch

from convlstm_wx import device
from convlstm_wx.device import choose_device
from convlstm_wx.errors import DeviceError


def test_auto_takes_cuda_then_mps_then_the_cpu():
    expected = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    assert choose_device("auto").device.type == expected


def test_the_cpu_computes_in_bfloat16_only_where_it_has_it(monkeypatch):
    for native, dtype in ((True, torch.bfloat16), (False, None)):
        monkeypatch.setattr(device, "cpu_has_bf16", lambda native=native: native)
        policy = choose_device("cpu", use_amp=True)
        assert policy.amp_dtype is dtype
        assert not policy.use_grad_scaler
        assert ("no effect" in " ".join(policy.reasons)) == (not native)
    assert choose_device("cpu").amp_dtype is None


def test_autocast_follows_the_policy(monkeypatch):
    monkeypatch.setattr(device, "cpu_has_bf16", lambda: True)
    conv, x = torch.nn.Conv2d(1, 1, 1), torch.ones(1, 1, 2, 2)
    for use_amp, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        with choose_device("cpu", use_amp=use_amp).autocast():
            assert conv(x).dtype is dtype


def test_random_states_come_back():
    policy = choose_device("cpu")
    states = policy.random_states()
    first = torch.rand(3)
    policy.set_random_states(states)
    assert torch.equal(torch.rand(3), first)


def test_peak_memory_is_that_of_a_process_with_torch():
    assert 50 * 2**20 < choose_device("cpu").peak_memory_bytes() < 2**40


@pytest.mark.parametrize("name", ["tpu", "cuda:x", "cpu:1", ""])
def test_an_unknown_device_is_refused(name):
    with pytest.raises(DeviceError, match="unknown device; choose auto, cuda, cuda:N, mps or cpu"):
        choose_device(name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_cuda_without_cuda_is_refused():
    with pytest.raises(DeviceError, match=r"finds no CUDA GPU\. Use --device auto or cpu"):
        choose_device("cuda")


@pytest.mark.skipif(platform.system() == "Darwin", reason="this machine may have MPS")
def test_mps_without_mps_is_refused():
    with pytest.raises(DeviceError, match=r"--device mps: PyTorch .* was built without MPS"):
        choose_device("mps")
