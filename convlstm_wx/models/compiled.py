"""pointwise.c as a function of tensors: built once with the system's compiler, kept in the user's cache, or absent.

Nothing here is needed for right results. Without a compiler, a writable cache or a platform that it knows,
:func:`library` gives None and the caller computes the same in PyTorch. CONVLSTM_WX_NO_COMPILER=1 has that effect too.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor

NO_COMPILER = "CONVLSTM_WX_NO_COMPILER"
MOST_CHANNELS = 512
"""Hidden channels that pointwise.c has room for."""
PIECES_PER_THREAD = 4
SOURCE = Path(__file__).with_name("pointwise.c")
# No -ffast-math: its sigmoid of an extreme value is NaN. -fno-trapping-math only lets both sides of a `?:` be computed.
FLAGS = ("-O3", "-std=gnu11", "-fPIC", "-shared", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast")
NATIVE_FLAGS = {
    "x86_64": ("-march=native", "-mprefer-vector-width=512"),
    "aarch64": ("-mcpu=native",),
    "arm64": ("-mcpu=native",),
}
ELEMENT_FLAGS = {torch.float32: (), torch.bfloat16: ("-DELEMENT_BF16",)}

_SIZES = ("samples", "rows", "channels", "chunks", "next")
_ARRAYS = (
    *("gates", "hidden_gates", "c_before", "c", "h", "inverse_deviation", "minus_mean_over_deviation"),
    *("gamma", "beta", "grad_h", "grad_h_recurrent", "grad_c", "grad_c_before", "grad_gates"),
    *("on_grad", "on_gates", "constant", "origin", "sums"),
)


class _Step(ctypes.Structure):
    """`struct step` of pointwise.c, field by field."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in _SIZES),
        *((name, ctypes.c_void_p) for name in _ARRAYS),
        ("keep", ctypes.c_int64),
        ("planes", ctypes.c_void_p),
        ("sample_stride", ctypes.c_int64),
        ("plane_stride", ctypes.c_int64),
    )


class Library:
    """The four passes of pointwise.c for one element type."""

    def __init__(self, path: Path):
        self._functions = ctypes.CDLL(str(path))
        self._fork = _openmp_fork()

    def pieces(self, samples: int, rows: int) -> int:
        """Into how many pieces to cut each sample so that all threads have work, none of them tiny."""
        threads = torch.get_num_threads() if self._fork else 1
        return max(1, min(-(-threads * PIECES_PER_THREAD // samples), rows // 64))

    def run(self, name: str, channels: int, chunks: int, keep: bool = True, **arrays: Tensor | None) -> None:
        """One pass over the arrays, which are dense channels_last; `arrays` are the fields of `struct step`."""
        gates = arrays["gates"]
        assert gates is not None
        pointers = {field: array.data_ptr() for field, array in arrays.items() if array is not None}
        self._call(name, gates, channels=channels, chunks=chunks, keep=keep, **pointers)

    def lay_out(self, planes_BCHW: Tensor, out_BCHW: Tensor) -> None:
        """Copy float32 features whose grids are contiguous into a dense channels_last array."""
        samples, channels, height, width = planes_BCHW.shape
        self._call(
            *("lay_out", planes_BCHW),
            channels=channels,
            chunks=self.pieces(samples, height * width),
            planes=planes_BCHW.data_ptr(),
            sample_stride=planes_BCHW.stride(0),
            plane_stride=planes_BCHW.stride(1),
            h=out_BCHW.data_ptr(),
        )

    def _call(self, name: str, like_BCHW: Tensor, **fields: int) -> None:
        samples, _, height, width = like_BCHW.shape
        step = _Step(samples=samples, rows=height * width, next=0, **fields)
        getattr(self._functions, f"convlstm_{name}")(ctypes.byref(step), self._fork, torch.get_num_threads())


def library(dtype: torch.dtype) -> Library | None:
    """The passes for features of that type (float32, bfloat16), or None where they cannot be had."""
    if dtype not in ELEMENT_FLAGS or os.environ.get(NO_COMPILER, "0") not in ("", "0"):
        return None
    return _load(dtype)


@functools.cache
def _load(dtype: torch.dtype) -> Library | None:
    try:
        path = _build(ELEMENT_FLAGS[dtype])
        return Library(path) if path else None
    except (OSError, subprocess.SubprocessError, RuntimeError):  # RuntimeError: no home folder
        return None


def _build(element_flags: tuple[str, ...]) -> Path | None:
    """The shared library, from the cache or fresh; None without a compiler."""
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler is None or sys.platform not in ("linux", "darwin") or not SOURCE.exists():
        return None
    flags = (*FLAGS, *NATIVE_FLAGS.get(platform.machine(), ()), *element_flags)
    version = subprocess.run([compiler, "--version"], capture_output=True, check=True, timeout=60).stdout
    parts = (SOURCE.read_bytes(), compiler.encode(), version, " ".join(flags).encode(), _processor().encode())
    path = _cache_folder() / f"pointwise-{hashlib.sha256(b'|'.join(parts)).hexdigest()[:20]}.so"
    if not path.exists():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            fresh = Path(folder) / path.name
            command = [compiler, *flags, "-o", str(fresh), str(SOURCE)]
            subprocess.run(command, capture_output=True, check=True, timeout=300)
            os.replace(fresh, path)  # at once, for processes that start together
    return path


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "convlstm_wx"


def _processor() -> str:
    """What -march=native depends on: a home folder may be shared by unlike machines."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    chosen = [line for line in lines if line.startswith(("flags", "Features", "model name", "CPU part"))]
    return "|".join([platform.machine(), platform.processor(), *sorted(set(chosen))])


def _openmp_fork() -> ctypes.c_void_p | None:
    """GOMP_parallel of the one OpenMP runtime in this process; None (one thread) if there is none, or a choice.

    PyTorch has brought the runtime; it is only looked up, never loaded: a second one would have threads of its own.
    """
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return None
    names = ("libgomp", "libomp", "libiomp5")
    mapped = {line.split()[-1] for line in maps.read_text().splitlines() if len(line.split()) > 5}
    runtimes = {path for path in mapped if Path(path).name.startswith(names)}
    own = {path for path in runtimes if Path(path).parent.name in ("lib", "torch.libs") and "torch" in path}
    candidates = runtimes if len(runtimes) == 1 else own
    if len(candidates) != 1:
        return None
    try:
        runtime = ctypes.CDLL(candidates.pop(), mode=os.RTLD_NOLOAD | os.RTLD_NOW)
        return ctypes.cast(runtime.GOMP_parallel, ctypes.c_void_p)
    except (OSError, AttributeError):
        return None
