"""The device policy; what needs a GPU is skipped without one."""

import os
import platform
import sys
from dataclasses import replace

import pytest
import torch

from convlstm_wx import device
from convlstm_wx.cli import main
from convlstm_wx.device import _cuda_dtype, _mps_choices, choose_device, cpu_has_bf16, is_out_of_memory
from convlstm_wx.errors import DeviceError
from tests.region_files import region, write


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


def test_peak_memory_is_that_of_a_process_with_torch():
    assert 50 * 2**20 < choose_device("cpu").peak_memory_bytes() < 2**40


def test_float16_on_a_cpu_is_refused():
    with pytest.raises(DeviceError, match="--amp-dtype float16: not on a CPU; use --amp-dtype bfloat16 or auto"):
        choose_device("cpu", use_amp=True, amp_dtype="float16")
    assert choose_device("cpu", amp_dtype="float16").amp_dtype is None


@pytest.mark.parametrize("answer", ["1", "0", ""])
def test_a_mac_is_asked_whether_its_cpu_has_bfloat16(tmp_path, monkeypatch, answer):
    """A sysctl that answers as one does there, in a machine without /proc/cpuinfo."""
    sysctl = tmp_path / "sysctl"
    sysctl.write_text(f'#!/bin/sh\n[ "$*" = "-n hw.optional.arm.FEAT_BF16" ] && echo {answer}\n')
    sysctl.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(device, "CPUINFO", tmp_path / "none")
    assert cpu_has_bf16() == (answer == "1")


def test_half_precision_on_mps_is_bfloat16_unless_float16_is_asked_for():
    for asked, dtype, is_scaled in (("auto", torch.bfloat16, False), ("float16", torch.float16, True)):
        policy = _mps_choices(asked, "")
        assert (policy.amp_dtype, policy.use_grad_scaler) == (dtype, is_scaled)
        assert ("Apple's library may end the process" in " ".join(policy.reasons)) == is_scaled
    assert _mps_choices("none", "").amp_dtype is None


@pytest.mark.parametrize(
    ("asked", "has_bf16", "dtype"),
    [
        ("none", True, None),
        ("auto", True, torch.bfloat16),
        ("auto", False, torch.float16),
        ("float16", True, torch.float16),
        ("bfloat16", True, torch.bfloat16),
    ],
)
def test_half_precision_on_cuda_is_bfloat16_where_the_gpu_has_it(asked, has_bf16, dtype):
    assert _cuda_dtype(asked, has_bf16, "a GPU") is dtype


def test_bfloat16_on_a_gpu_without_it_is_refused():
    with pytest.raises(DeviceError, match="--amp-dtype bfloat16: a GPU has none; use --amp-dtype float16 or auto"):
        _cuda_dtype("bfloat16", False, "a GPU")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here")
@pytest.mark.parametrize("tf32", [True, False])
def test_tf32_is_a_choice(tf32):
    policy = choose_device("cuda", tf32=tf32)
    assert torch.backends.cudnn.allow_tf32 is torch.backends.cuda.matmul.allow_tf32 is tf32
    assert ("no TF32, as asked" in policy.reasons[1]) == (not tf32)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here")
@pytest.mark.parametrize(("dtype", "scaled"), [("float16", True), ("bfloat16", False)])
def test_on_cuda_only_float16_is_scaled(dtype, scaled):
    policy = choose_device("cuda", use_amp=True, amp_dtype=dtype)
    assert str(policy.amp_dtype) == f"torch.{dtype}"
    assert policy.make_scaler().is_enabled() == scaled


def test_without_half_precision_a_policy_is_float32(monkeypatch):
    monkeypatch.setattr(device, "cpu_has_bf16", lambda: True)
    policy = choose_device("cpu", use_amp=True).in_float32()
    assert policy.amp_dtype is None
    assert "half precision failed" in policy.reasons[1]
    assert choose_device("cpu").in_float32() == choose_device("cpu")


@pytest.mark.parametrize(
    ("variable", "value", "warning"),
    [
        ("PYTORCH_ENABLE_MPS_FALLBACK", "1", "unsupported operators will run slowly on the CPU"),
        ("PYTORCH_MPS_HIGH_WATERMARK_RATIO", "0.0", "memory has no limit, and the system may fail; unset it"),
    ],
)
def test_what_is_set_against_mps_is_told(monkeypatch, variable, value, warning):
    monkeypatch.delenv(variable, raising=False)
    assert warning not in " ".join(_mps_choices("none", "").reasons)
    monkeypatch.setenv(variable, value)
    assert warning in " ".join(_mps_choices("none", "").reasons)


@pytest.mark.parametrize("cap", [True, False])
def test_memory_on_mps_is_capped_unless_that_is_refused(monkeypatch, cap):
    shares = []
    monkeypatch.delenv("PYTORCH_MPS_HIGH_WATERMARK_RATIO", raising=False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.mps, "set_per_process_memory_fraction", shares.append)
    (told,) = choose_device("mps", cap_memory=cap).reasons[2:]
    assert shares == ([1.0] if cap else [])
    assert told.startswith("memory capped at what Apple" if cap else "memory not capped, as asked")
    monkeypatch.setenv("PYTORCH_MPS_HIGH_WATERMARK_RATIO", "1.2")
    assert choose_device("mps", cap_memory=cap).reasons[2].endswith("not capped")
    assert len(shares) == cap


@pytest.mark.parametrize(
    ("name", "chosen", "told", "otherwise"),
    [
        ("channels_last", True, "channels-last layout", "contiguous layout"),
        ("pin_memory", True, "copied from pinned memory", "copied from ordinary memory"),
        ("gathering_threads", 1, "1 thread gathers", "gathered between steps"),
        ("gathering_threads", 3, "3 threads gather batches ahead", "gathered between steps"),
        ("fused_optimizer", True, "one fused kernel", "not fused"),
    ],
)
def test_every_choice_for_training_is_told(name, chosen, told, otherwise):
    policy = _mps_choices("none", "")
    assert told in "; ".join(replace(policy, **{name: chosen}).training_choices())
    assert otherwise in "; ".join(replace(policy, **{name: type(chosen)(0)}).training_choices())


def test_memory_is_freed_around_training_on_a_gpu_and_that_is_told():
    assert "freed before and after training" in "; ".join(_mps_choices("none", "").training_choices())
    assert "freed" not in "; ".join(choose_device("cpu").training_choices())


def test_shapes_are_constant_on_mps_alone_and_that_is_told():
    assert "batches of fewer windows filled up" in "; ".join(_mps_choices("none", "").training_choices())
    assert "filled up" not in "; ".join(choose_device("cpu").training_choices())


def test_the_commands_pass_on_what_is_chosen(tmp_path, monkeypatch, capsys):
    data = str(write(region(days=60), tmp_path / "region.nc"))
    for name in ("train", "inspect"):
        assert main([name, "--data", data, "--device", "cpu", "--use-amp", "--amp-dtype", "float16"]) == 2
        said = capsys.readouterr()
        assert "--amp-dtype float16: not on a CPU" in said.out + said.err
        assert main([name, "--data", data, "--amp-dtype", "float16"]) == 2
        assert "--amp-dtype float16 does nothing without --use-amp; add it" in capsys.readouterr().err
    shares = []
    monkeypatch.delenv("PYTORCH_MPS_HIGH_WATERMARK_RATIO", raising=False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.mps, "set_per_process_memory_fraction", shares.append)
    for options in (["--no-memory-cap"], []):
        with pytest.raises(Exception, match=r"MPS|mps"):  # there is none behind that
            main(["train", "--data", data, "--device", "mps", "--output-dir", str(tmp_path / "run"), *options])
    assert shares == [1.0]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here")
def test_the_command_trains_without_tf32_when_told_to(tmp_path, capsys):
    data = str(write(region(days=60), tmp_path / "region.nc"))
    options = ["--device", "cuda", "--num-epochs", "1", "--no-tf32", "--output-dir", str(tmp_path / "run")]
    assert main(["train", "--data", data, *options]) == 0
    assert "no TF32, as asked" in capsys.readouterr().out
    assert not torch.backends.cudnn.allow_tf32


def test_several_processes_on_a_mac_are_refused_with_the_reason(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name in ("mps", "auto"):
        with pytest.raises(DeviceError, match="one process per Mac; several cannot share the GPU"):
            choose_device(name, local_rank=0)


def test_one_gpu_for_all_processes_is_refused():
    with pytest.raises(
        DeviceError, match="--device cuda:0: all processes would share one GPU; with --device cuda each"
    ):
        choose_device("cuda:0", local_rank=1)


def test_each_process_works_on_a_gpu_of_its_own(monkeypatch):
    """On a machine that PyTorch believes to have two."""
    at_work = []
    for name, answer in (("is_available", True), ("device_count", 2), ("is_bf16_supported", True)):
        monkeypatch.setattr(torch.cuda, name, lambda *_, answer=answer, **__: answer)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"GPU {index}")
    monkeypatch.setattr(torch.cuda, "set_device", at_work.append)
    for local_rank in (0, 1):
        assert choose_device("cuda", local_rank=local_rank).device == torch.device("cuda", local_rank)
    assert choose_device("cuda:1").device == torch.device("cuda", 1)
    assert at_work == [0, 1, 1]


@pytest.mark.parametrize(
    ("error", "is_it"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:75] DefaultCPUAllocator: can't allocate memory: you tried"),
            True,
        ),
        (RuntimeError("MPS backend out of memory (MPS allocated: 1.0 GB)"), True),
        (RuntimeError("could not create a primitive"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("GET was unable to find an engine to execute this computation"), True),
        (MemoryError(), True),
        (RuntimeError("sizes of tensors must match"), False),
    ],
)
def test_out_of_memory_is_recognised_on_every_device(error, is_it):
    assert is_out_of_memory(error) == is_it


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
