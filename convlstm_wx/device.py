"""Where the network runs and how: one policy object, decided once, that can say why.

The facts behind each choice (why no non-blocking copies on MPS, why bf16 ...) belong to PyTorch's issue tracker: see
the numbers beside them.
"""

import gc
import os
import platform
import resource
import sys
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from convlstm_wx.errors import DeviceError


@dataclass(frozen=True)
class DevicePolicy:
    """Everything that depends on the device.

    Attributes:
        device: where tensors live.
        amp_dtype: half-precision type of autocast; None computes in float32.
        use_grad_scaler: float16 needs scaled gradients, bfloat16 does not.
        pin_memory: only CUDA may copy from pinned memory without waiting; MPS corrupts such copies
            (pytorch#139550).
        gathering_threads: that gather batches ahead; on a CPU they would only take turns with the network.
        channels_last: memory layout of network and batches; on MPS its backward is 30 times slower (pytorch#193349).
        fused_optimizer: AdamW as one kernel.
        reasons: one line for each choice.
    """

    device: torch.device
    amp_dtype: torch.dtype | None
    use_grad_scaler: bool
    pin_memory: bool
    gathering_threads: int
    channels_last: bool
    fused_optimizer: bool
    reasons: tuple[str, ...]

    def autocast(self) -> AbstractContextManager[None]:
        """The precision of the forward pass; weights, cell state, loss and metrics stay float32."""
        return torch.autocast(
            self.device.type, dtype=self.amp_dtype or torch.bfloat16, enabled=self.amp_dtype is not None
        )

    def place(self, network: torch.nn.Module) -> torch.nn.Module:
        """The network on the device, in the memory layout that suits it."""
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        return network.to(self.device).to(memory_format=layout)  # type: ignore[call-overload]

    def free_memory(self) -> None:
        """Hand cached memory back to the system."""
        gc.collect()
        if self.device.type == "mps":
            torch.mps.empty_cache()
        elif self.device.type == "cuda":
            torch.cuda.empty_cache()

    def peak_memory_bytes(self) -> int:
        """The most memory used so far: the allocator's peak on CUDA, the driver's share on MPS, else the process's."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        if self.device.type == "mps":
            return torch.mps.driver_allocated_memory()
        status = Path("/proc/self/status")
        # Linux: ru_maxrss begins with the peak of the process that started this one.
        lines = status.read_text().splitlines() if status.exists() else []
        for line in lines:
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024
        kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return kilobytes if sys.platform == "darwin" else kilobytes * 1024

    def random_states(self) -> dict[str, torch.Tensor]:
        """Generator states, for a checkpoint."""
        states = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            states["cuda"] = torch.cuda.get_rng_state(self.device)
        elif self.device.type == "mps":
            states["mps"] = torch.mps.get_rng_state()
        return states

    def set_random_states(self, states: dict[str, torch.Tensor]) -> None:
        """Put back what :meth:`random_states` gave; a state of a device that is not in use is passed over."""
        torch.set_rng_state(states["cpu"])
        if self.device.type == "cuda" and "cuda" in states:
            torch.cuda.set_rng_state(states["cuda"], self.device)
        elif self.device.type == "mps" and "mps" in states:
            torch.mps.set_rng_state(states["mps"])


def choose_device(name: str = "auto", *, use_amp: bool = False, local_rank: int | None = None) -> DevicePolicy:
    """The policy for a device: 'auto' takes CUDA, else MPS, else the CPU.

    Args:
        name: auto, cuda, cuda:N, mps or cpu.
        use_amp: half precision where the device has it natively.
        local_rank: this process's number on its machine when several train together; each takes its own GPU.

    Raises:
        DeviceError: if the device that was asked for is not there, or its name is unknown.
    """
    kind, _, index = name.partition(":")
    if kind not in ("auto", "cuda", "mps", "cpu") or (index and (kind != "cuda" or not index.isdigit())):
        raise DeviceError(f"--device {name}: unknown device; choose auto, cuda, cuda:N, mps or cpu")
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        why = {"cuda": "CUDA found", "mps": "no CUDA, MPS found", "cpu": "neither CUDA nor MPS found"}[kind]
    else:
        why = "as asked"
    if kind == "cuda":
        return _cuda(int(index) if index else local_rank or 0, use_amp, why)
    if kind == "mps":
        return _mps(use_amp, why, several=local_rank is not None)
    return _cpu(use_amp, why)


def _cuda(index: int, use_amp: bool, why: str) -> DevicePolicy:
    if not torch.cuda.is_available():
        raise DeviceError(
            f"--device cuda: PyTorch {torch.__version__} finds no CUDA GPU. Use --device auto or cpu, "
            f"or install a CUDA build of PyTorch."
        )
    if index >= torch.cuda.device_count():
        raise DeviceError(f"--device cuda:{index}: there are {torch.cuda.device_count()} CUDA GPUs, numbered from 0")
    # TF32 keeps float32's range with 10 bits of mantissa: enough for weather fields, several times faster.
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    with torch.cuda.device(index):
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    dtype = None if not use_amp else torch.bfloat16 if native else torch.float16
    return DevicePolicy(
        device=torch.device("cuda", index),
        amp_dtype=dtype,
        use_grad_scaler=dtype is torch.float16,
        pin_memory=True,
        gathering_threads=1,
        channels_last=True,
        fused_optimizer=True,
        reasons=(
            f"{torch.cuda.get_device_name(index)} ({why})",
            f"{_dtype_name(dtype)} autocast"
            if dtype
            else "float32 (TF32 in convolutions; --use-amp for half precision)",
        ),
    )


def _mps(use_amp: bool, why: str, *, several: bool) -> DevicePolicy:
    if not torch.backends.mps.is_available():
        built = torch.backends.mps.is_built()
        found = "needs macOS 14 and Apple silicon" if built else "was built without MPS"
        raise DeviceError(f"--device mps: PyTorch {torch.__version__} {found}. Use --device auto or cpu.")
    if several:
        raise DeviceError("--device mps: one process per Mac; several cannot share the GPU. Run without torchrun.")
    return _mps_choices(use_amp, why)


def rehearsal_of_mps(*, use_amp: bool = False) -> DevicePolicy:
    """All the choices of MPS with tensors on the CPU, on any machine: what the operator audit trains with."""
    return replace(_mps_choices(use_amp, "rehearsed on the CPU"), device=torch.device("cpu"))


def _mps_choices(use_amp: bool, why: str) -> DevicePolicy:
    fallback = os.environ.get("PYTORCH_ENABLE_MPS_FALLBACK", "0") not in ("", "0")
    warning = (
        ("PYTORCH_ENABLE_MPS_FALLBACK is set: unsupported operators will run slowly on the CPU",) if fallback else ()
    )
    return DevicePolicy(
        device=torch.device("mps"),
        amp_dtype=torch.bfloat16 if use_amp else None,
        use_grad_scaler=False,
        pin_memory=False,
        gathering_threads=1,
        channels_last=False,
        fused_optimizer=False,
        reasons=(
            f"Apple GPU through MPS ({why})",
            "bfloat16 autocast" if use_amp else "float32 (--use-amp for bfloat16)",
            *warning,
        ),
    )


def _cpu(use_amp: bool, why: str) -> DevicePolicy:
    native = cpu_has_bf16()
    dtype = torch.bfloat16 if use_amp and native else None
    if not use_amp:
        precision = "float32" + (" (--use-amp for bfloat16, which this CPU has)" if native else "")
    else:
        precision = (
            "bfloat16 autocast" if native else "float32: --use-amp has no effect, this CPU has no native bfloat16"
        )
    return DevicePolicy(
        device=torch.device("cpu"),
        amp_dtype=dtype,
        use_grad_scaler=False,
        pin_memory=False,
        gathering_threads=0,
        channels_last=True,
        fused_optimizer=True,
        reasons=(f"CPU, {torch.get_num_threads()} threads ({why})", precision),
    )


def cpu_has_bf16() -> bool:
    """Whether the CPU computes in bfloat16 natively (avx512_bf16 or AMX on x86, bf16 on Arm); emulated it is slower."""
    flags = Path("/proc/cpuinfo")
    if flags.exists():
        words = set(flags.read_text().split())
        return bool(words & {"avx512_bf16", "amx_bf16"}) or (platform.machine() == "aarch64" and "bf16" in words)
    return False


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
