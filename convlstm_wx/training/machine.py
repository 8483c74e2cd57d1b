"""What a machine has that matters to training: hardware, PyTorch's build, versions and environment."""

import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from convlstm_wx.device import FALLBACK, WATERMARK, cpu_has_bf16, mps_surroundings
from convlstm_wx.files import describe_bytes
from convlstm_wx.memory import memory_bytes

PACKAGE = "convlstm_wx"
COMPILERS = ("cc", "gcc", "clang", "cl")
HALF_FLAGS = {"avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_tile", "bf16", "asimd"}
LITTLE_MEMORY = 4 * 2**30


@dataclass(frozen=True)
class Machine:
    """What is there.

    Attributes:
        facts: name -> value, for people.
        advice: what could be better, in plain words.
    """

    facts: dict[str, str]
    advice: tuple[str, ...]


def look() -> Machine:
    """Everything, without starting any computation on a GPU."""
    facts = {
        "Python": f"{platform.python_version()} ({platform.machine()})",
        "system": _system(),
        "processor": f"{_processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} of them for PyTorch",
        "processor's half precision": _half_flags(),
        "memory": describe_bytes(memory_bytes()),
        "PyTorch": f"{torch.__version__}, {_build()}",
        "CUDA": _cuda(),
        "MPS": _mps(),
        "MPS environment": "; ".join(_mps_environment()),
        "C compiler": next((found for name in COMPILERS if (found := shutil.which(name))), "none"),
        **_versions(),
    }
    return Machine(facts, tuple(_advice()))


def _system() -> str:
    mac = platform.mac_ver()[0]
    return f"macOS {mac}" if mac else f"{platform.system()} {platform.release()}"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    named = re.search(r"^model name\s*: (.+)$", info.read_text(), re.M) if info.exists() else None
    return (
        named[1] if named else _asked("sysctl", "-n", "machdep.cpu.brand_string") or platform.processor() or "unknown"
    )


def _half_flags() -> str:
    info = Path("/proc/cpuinfo")
    found = sorted(HALF_FLAGS & set(info.read_text().split())) if info.exists() else []
    if _asked("sysctl", "-n", "hw.optional.arm.FEAT_BF16") == "1":
        found.append("bf16")
    native = "bfloat16 native" if cpu_has_bf16() else "no native bfloat16 in use"
    return f"{native} ({' '.join(found) or 'no flags found'})"


def _asked(*command: str) -> str:
    """What a small system command answers; nothing where there is none."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def _build() -> str:
    cuda = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
    mps = "with MPS" if torch.backends.mps.is_built() else "without MPS"
    return f"built {cuda}, {mps}, processor kernels {torch.backends.cpu.get_cpu_capability()}"


def _cuda() -> str:
    if not torch.cuda.is_available():
        return "not available"
    gpus = (torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count()))
    return "; ".join(f"{gpu.name}, {describe_bytes(gpu.total_memory)}" for gpu in gpus)


def _mps() -> str:
    if not torch.backends.mps.is_available():
        return "not available"
    return f"available, {describe_bytes(torch.mps.recommended_max_memory())} recommended at most"


def _mps_environment() -> Iterator[str]:
    """The variables that PyTorch's MPS backend reads when it loads, and what they do: best left unset."""
    meanings = {
        FALLBACK: "1 computes operators without an MPS kernel on the CPU, slowly; training needs none",
        WATERMARK: "the most memory, as a share of what Apple recommends; training sets 1 itself",
    }
    for name, meaning in meanings.items():
        yield f"{name} {os.environ.get(name) or 'not set'} ({meaning})"


def _versions() -> dict[str, str]:
    """Of every package that ours names, in one line each for what it needs and what is optional."""
    needed: list[str] = []
    optional: list[str] = []
    for requirement in sorted(set(importlib.metadata.requires(PACKAGE) or [])):
        name = re.split(r"[^A-Za-z0-9_.-]", requirement)[0]
        group = optional if "extra ==" in requirement else needed
        text = f"{name} {_version(name)}"
        if text not in group and name != "torch":
            group.append(text)
    return {"packages": ", ".join(needed), "optional packages": ", ".join(optional)}


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


def _advice() -> list[str]:
    checks = {
        "a graphics card of NVIDIA seems to be there, but this PyTorch does not see it: install a CUDA build "
        "(pytorch.org) or mend the driver": shutil.which("nvidia-smi") is not None and not torch.cuda.is_available(),
        "this Python is built for Intel and runs translated on an Apple chip, without MPS: install an arm64 "
        "Python": platform.system() == "Darwin" and _asked("sysctl", "-n", "sysctl.proc_translated") == "1",
        **dict.fromkeys(mps_surroundings(), True),
        "PyTorch uses one thread of several cores: unset OMP_NUM_THREADS unless that is meant": torch.get_num_threads()
        == 1
        and (os.cpu_count() or 1) > 1,
        f"{describe_bytes(memory_bytes())} of memory is little: use a small region, or --memory-budget "
        "and a cache on disk": memory_bytes() < LITTLE_MEMORY,
    }
    return [text for text, holds in checks.items() if holds]
