"""Where the network runs and how: one policy object, decided once, that can say why.

The facts behind each choice (why no non-blocking copies on MPS, why bf16 ...) belong to PyTorch's issue tracker: see
the numbers beside them.
"""

import gc
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from convlstm_wx.errors import DeviceError

# Beside PyTorch's own words those of oneDNN, cuBLAS and cuDNN.
_NO_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "could not create a primitive",
    "alloc_failed",
    "unable to find an engine",
)
CPUINFO = Path("/proc/cpuinfo")
MPS_TORCH = (2, 13)
FALLBACK = "PYTORCH_ENABLE_MPS_FALLBACK"
WATERMARK = "PYTORCH_MPS_HIGH_WATERMARK_RATIO"
_HALF = {"bfloat16": torch.bfloat16, "float16": torch.float16}

# Mode of torch.compile and why, by kind of device.
_COMPILING: dict[str, tuple[str | None, str]] = {
    # No CUDA graphs (mode reduce-overhead): a gradient of the first micro-batch would live in their memory, which the
    # second writes over (pytorch#169545, pytorch#96693).
    "cuda": ("default", "torch.compile, as asked"),
    "mps": (None, "--compile has no effect: compiled training is slower on MPS (pytorch#150121)"),
    "cpu": ("default", "torch.compile, as asked; on a CPU the layers' own passes are mostly as fast"),
}


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
        reasons: one line each: why this device and precision, and what a user should hear of.
        compile_mode: of torch.compile for training; None: not compiled.
        constant_shapes: a batch of fewer windows is filled up: MPS keeps a graph for each shape that it ever saw
            (pytorch#132596, pytorch#164299).
        most_images: that one convolution may get, which are windows times their input times: MPS fails beyond
            (pytorch#96225). None: any number.
    """

    device: torch.device
    amp_dtype: torch.dtype | None
    use_grad_scaler: bool
    pin_memory: bool
    gathering_threads: int
    channels_last: bool
    fused_optimizer: bool
    reasons: tuple[str, ...]
    compile_mode: str | None = None
    constant_shapes: bool = False
    most_images: int | None = None

    def autocast(self) -> AbstractContextManager[None]:
        """The precision of the forward pass; weights, cell state, loss and metrics stay float32."""
        return torch.autocast(
            self.device.type, dtype=self.amp_dtype or torch.bfloat16, enabled=self.amp_dtype is not None
        )

    def make_scaler(self) -> torch.amp.GradScaler:
        """The gradient scaler of float16; for other types one that does nothing."""
        return torch.amp.GradScaler(self.device.type, enabled=self.use_grad_scaler)

    def training_choices(self) -> Iterator[str]:
        """One line for each choice that concerns training alone."""
        on = self.device.type
        yield (
            "channels-last layout, in which convolutions are fastest"
            if self.channels_last
            else ("contiguous layout: channels last has a backward pass 30 times slower here")
        )
        if self.pin_memory:
            yield "batches copied from pinned memory, beside the computation"
        elif on != "cpu":
            yield "batches copied from ordinary memory: copies from pinned memory may be wrong here"
        if self.gathering_threads:
            gather = "thread gathers" if self.gathering_threads == 1 else "threads gather"
            yield f"{self.gathering_threads} {gather} batches ahead"
        else:
            yield "batches gathered between steps: threads would take turns with the network"
        if on != "cpu":
            yield "the device's cached memory is freed before and after training"
        if self.constant_shapes:
            yield "batches of fewer windows filled up: here every shape that was seen stays in memory"
        yield "AdamW as one fused kernel" if self.fused_optimizer else "AdamW in PyTorch's default form, not fused"

    def compiling(self) -> "DevicePolicy":
        """The same with torch.compile where it can be of use, and why."""
        mode, reason = _COMPILING[self.device.type]
        return replace(self, compile_mode=mode, reasons=(*self.reasons, reason))

    def in_float32(self) -> "DevicePolicy":
        """The same without half precision."""
        if self.amp_dtype is None:
            return self
        reasons = (self.reasons[0], "float32: half precision failed in this run", *self.reasons[2:])
        return replace(self, amp_dtype=None, use_grad_scaler=False, reasons=reasons)

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


def choose_device(
    name: str = "auto",
    *,
    use_amp: bool = False,
    amp_dtype: str = "auto",
    tf32: bool = True,
    cap_memory: bool = True,
    local_rank: int | None = None,
) -> DevicePolicy:
    """The policy for a device: 'auto' takes CUDA, else MPS, else the CPU.

    Args:
        name: auto, cuda, cuda:N, mps or cpu.
        use_amp: half precision where the device has it natively.
        amp_dtype: which: bfloat16, float16, or auto for the one that suits the device.
        tf32: on CUDA, float32 products with TF32's short mantissa.
        cap_memory: on MPS, no more memory than Apple recommends, so that a run says that it is out of memory before the
            system starts to swap.
        local_rank: this process's number on its machine when several train together; each takes its own GPU.

    Raises:
        DeviceError: if the device that was asked for is not there, its name is unknown, or it has no such half
            precision.
    """
    kind, _, index = name.partition(":")
    if kind not in ("auto", "cuda", "mps", "cpu") or (index and (kind != "cuda" or not index.isdigit())):
        raise DeviceError(f"--device {name}: unknown device; choose auto, cuda, cuda:N, mps or cpu")
    if index and local_rank is not None:
        raise DeviceError(f"--device {name}: all processes would share one GPU; with --device cuda each takes its own")
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        why = {"cuda": "CUDA found", "mps": "no CUDA, MPS found", "cpu": "neither CUDA nor MPS found"}[kind]
    else:
        why = "as asked"
    asked = amp_dtype if use_amp else "none"
    if kind == "cuda":
        return _cuda(int(index) if index else local_rank or 0, asked, why, tf32=tf32)
    if kind == "mps":
        return _mps(asked, why, several=local_rank is not None, cap_memory=cap_memory)
    return _cpu(asked, why)


def _cuda(index: int, asked: str, why: str, *, tf32: bool) -> DevicePolicy:
    if not torch.cuda.is_available():
        raise DeviceError(
            f"--device cuda: PyTorch {torch.__version__} finds no CUDA GPU. Use --device auto or cpu, "
            f"or install a CUDA build of PyTorch."
        )
    if index >= torch.cuda.device_count():
        raise DeviceError(f"--device cuda:{index}: there are {torch.cuda.device_count()} CUDA GPUs, numbered from 0")
    # TF32 keeps float32's range with 10 bits of mantissa: enough for weather fields, several times faster.
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32
    torch.cuda.set_device(index)  # what names no GPU, as NCCL's barriers, would all meet on the first
    native = torch.cuda.is_bf16_supported(including_emulation=False)
    dtype = _cuda_dtype(asked, native, torch.cuda.get_device_name(index))
    plain = "TF32 in convolutions, --no-tf32 for all digits" if tf32 else "no TF32, as asked"
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
            f"{_autocast_name(dtype)}; the rest float32 ({plain})"
            if dtype
            else f"float32 ({plain}; --use-amp for half precision)",
        ),
    )


def _cuda_dtype(asked: str, has_bf16: bool, name: str) -> torch.dtype | None:
    if asked == "bfloat16" and not has_bf16:
        raise DeviceError(f"--amp-dtype bfloat16: {name} has none; use --amp-dtype float16 or auto")
    return _HALF.get("bfloat16" if asked == "auto" and has_bf16 else "float16" if asked == "auto" else asked)


def _mps(asked: str, why: str, *, several: bool, cap_memory: bool) -> DevicePolicy:
    if not torch.backends.mps.is_available():
        built = torch.backends.mps.is_built()
        found = "needs macOS 14 and Apple silicon" if built else "was built without MPS"
        raise DeviceError(f"--device mps: PyTorch {torch.__version__} {found}. Use --device auto or cpu.")
    if several:
        raise DeviceError("--device mps: one process per Mac; several cannot share the GPU. Run without torchrun.")
    policy = _mps_choices(asked, why)
    if WATERMARK in os.environ:
        return replace(policy, reasons=(*policy.reasons, f"memory limited by {WATERMARK}, not capped"))
    if not cap_memory:
        return replace(policy, reasons=(*policy.reasons, "memory not capped, as asked"))
    # PyTorch's own limit is 1.7 times what Apple recommends: by then the whole system swaps.
    torch.mps.set_per_process_memory_fraction(1.0)
    return replace(policy, reasons=(*policy.reasons, "memory capped at what Apple recommends (--no-memory-cap)"))


def rehearsal_of_mps(*, use_amp: bool = False) -> DevicePolicy:
    """All the choices of MPS with tensors on the CPU, on any machine: what the operator audit trains with."""
    return replace(_mps_choices("auto" if use_amp else "none", "rehearsed on the CPU"), device=torch.device("cpu"))


def _mps_choices(asked: str, why: str) -> DevicePolicy:
    # bfloat16: PyTorch's own tests leave out float16 gradients of convolutions on MPS.
    dtype = _HALF.get("bfloat16" if asked == "auto" else asked)
    scaled = dtype is torch.float16
    return DevicePolicy(
        device=torch.device("mps"),
        amp_dtype=dtype,
        use_grad_scaler=scaled,
        pin_memory=False,
        gathering_threads=1,
        channels_last=False,
        fused_optimizer=False,
        constant_shapes=True,
        most_images=65535,
        reasons=(
            f"Apple GPU through MPS ({why})",
            _autocast_name(dtype) if dtype else "float32 (--use-amp for bfloat16)",
            *(("float16 gradients are untested on MPS: Apple's library may end the process",) if scaled else ()),
            *mps_surroundings(),
        ),
    )


def mps_surroundings() -> Iterator[str]:
    """What a user of MPS should hear of PyTorch's version and of the environment."""
    if os.environ.get(FALLBACK, "0") not in ("", "0"):
        yield f"{FALLBACK} is set: unsupported operators will run slowly on the CPU; unset it"
    if WATERMARK in os.environ and not os.environ[WATERMARK].strip("0."):
        yield f"{WATERMARK} is 0: memory has no limit, and the system may fail; unset it"
    is_old = tuple(int(part) for part in torch.__version__.split(".")[:2]) < MPS_TORCH
    if is_old and torch.backends.mps.is_available():
        yield f"PyTorch {torch.__version__}: {'.'.join(map(str, MPS_TORCH))} or newer mends wrong results of MPS"


def _cpu(asked: str, why: str) -> DevicePolicy:
    if asked == "float16":
        raise DeviceError("--amp-dtype float16: not on a CPU; use --amp-dtype bfloat16 or auto")
    native = cpu_has_bf16()
    dtype = torch.bfloat16 if native and asked != "none" else None
    if asked == "none":
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
    if CPUINFO.exists():
        words = set(CPUINFO.read_text().split())
        return bool(words & {"avx512_bf16", "amx_bf16"}) or (platform.machine() == "aarch64" and "bf16" in words)
    if sys.platform == "darwin":
        asked = ["sysctl", "-n", "hw.optional.arm.FEAT_BF16"]
        return subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip() == "1"
    return False


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says so: PyTorch has a class of its own for CUDA only, for the CPU and MPS just words."""
    words = str(error).lower()
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(said in words for said in _NO_MEMORY)


def _autocast_name(dtype: torch.dtype) -> str:
    name = str(dtype).removeprefix("torch.")
    return f"{name} autocast" + (" with scaled gradients" if dtype is torch.float16 else "")
