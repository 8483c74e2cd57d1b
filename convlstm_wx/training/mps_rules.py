"""What a training step must not do on Apple's MPS, rule by rule, each with its reason and PyTorch's issue (#n).

A rule gets one recorded call, or the whole recording, or a source file, and says what is wrong with it in a few words.
"""

import ast
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from convlstm_wx.training.mps_facts import REROUTED, has_mps_kernel, has_route, is_composite, operators, skips
from convlstm_wx.training.recording import Call, Recording

MOST_BATCH = 65536
MOST_SHAPES = 16
HALF = {"float16", "bfloat16"}
TOO_WIDE = {"float64", "complex128"}


@dataclass(frozen=True)
class Finding:
    """One thing that would go wrong on MPS.

    Attributes:
        rule: name of the rule.
        what: operator and tensors, or the source line.
        reason: why it goes wrong.
        where: module stack and line.
    """

    rule: str
    what: str
    reason: str
    where: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}: {self.reason} [{self.rule}]"


CallRule = Callable[[Call], str | None]
"""A reason against one call; None if there is none."""


# Rules about one call


def no_route(call: Call) -> str | None:
    """Every operator needs an MPS kernel, or parts that have one."""
    if call.name.startswith(("python:", "profiler::")):
        return None
    if not call.name.startswith("aten::"):
        return "an operator of our own or of another library, which MPS does not know"
    return None if has_route(call.operator) else "has no kernel for MPS (NotImplementedError on a Mac)"


def hidden_parts(call: Call) -> str | None:
    """A composite that the CPU runs as one kernel: on MPS it falls into parts that nobody has looked at."""
    name = call.operator
    if call.last_name in REROUTED or not is_composite(name) or has_mps_kernel(name):
        return None
    if "CPU" in operators()[name].backends:
        return "has a kernel of its own on the CPU, but falls into other operators on MPS, which were not seen"
    return None


def skipped_by_pytorch(call: Call) -> str | None:
    """PyTorch's own tests skip it on MPS, or expect it to fail there, for a dtype that we use."""
    name, backward = _name_in_tests(call)
    for skip in skips().get(name, ()):
        if skip.concerns(call.dtypes) and (not skip.in_backward or backward):
            dtypes = ", ".join(sorted(skip.dtypes)) if skip.dtypes else "every dtype"
            return f"PyTorch's own tests do not trust it on MPS for {dtypes} ({skip.source})"
    return None


def _name_in_tests(call: Call) -> tuple[str, bool]:
    """Last name of the operator in PyTorch's lists, and whether it is its gradient."""
    name = call.last_name
    if _is_convolution(call):
        weight = call.inputs[2 if name == "convolution_backward" else 1]
        transposed = "conv_transpose" if _is_transposed(call) else "conv"
        return f"{transposed}{len(weight.shape) - 2}d", name == "convolution_backward"
    plain = name.removesuffix("_backward").rstrip("_")
    return plain if plain in skips() else plain.lstrip("_"), name.endswith("_backward")


def too_wide(call: Call) -> str | None:
    """MPS has no 64-bit floating point numbers."""
    # GradScaler divides in float64 everywhere but on MPS (torch/amp/grad_scaler.py).
    wide = call.dtypes & TOO_WIDE
    if wide and not call.for_scaler:
        return f"MPS has no {', '.join(sorted(wide))}: cast on the CPU before"
    return None


def scattered_convolution(call: Call) -> str | None:
    """Inputs and weights of convolutions lie in memory as they are, channels second (#192212, #193349)."""
    if not _is_convolution(call) and call.last_name != "linear":
        return None
    entering = call.inputs[1:3] if call.last_name == "convolution_backward" else call.inputs
    if all(tensor.is_contiguous for tensor in entering):
        return None
    return "an input or weight that is not contiguous gives wrong numbers or is 30 times slower (#192212, #193349)"


def scattered_gradient(call: Call) -> str | None:
    """The gradient that comes back to a convolution: PyTorch copies it, or takes the slow way of channels_last."""
    if call.last_name != "convolution_backward" or call.inputs[0].is_contiguous:
        return None
    return "its gradient comes back not contiguous, which chooses the slow channels_last kernels (#193349)"


def scattered_attention(call: Call) -> str | None:
    """Query, key and value are contiguous (#163597, #181133)."""
    if call.name == "python:scaled_dot_product_attention" and not all(i.is_contiguous for i in call.inputs):
        return "attention on what is not contiguous gives wrong numbers (#163597, #181133)"
    return None


def large_batch(call: Call) -> str | None:
    """The first axis of a convolution, batch times time, has a limit (#96225)."""
    if _is_convolution(call) and call.inputs[0].shape[0] >= MOST_BATCH:
        return f"a first axis of {MOST_BATCH} or more fails (#96225)"
    return None


def layers_to_avoid(call: Call) -> str | None:
    """Layers that are slow or wrong on MPS."""
    if _is_convolution(call) and len(call.inputs[1].shape) == 5:
        return "3-d convolutions work on some Apple chips only"
    if _is_convolution(call) and _is_transposed(call) and "bfloat16" in call.dtypes:
        return "transposed convolutions have no bfloat16"
    if "batch_norm" in call.last_name:
        return "batch normalisation gives wrong gradients (#175189)"
    return None


def uneven_pooling(call: Call) -> str | None:
    """Adaptive pooling wants sizes that divide."""
    if "_adaptive_" not in f"_{call.last_name}" or "backward" in call.last_name or not call.outputs:
        return None
    before, after = call.inputs[0].shape[2:], call.outputs[0].shape[2:]
    return "adaptive pooling needs sizes that divide" if any(a % b for a, b in zip(before, after)) else None


def half_growth(call: Call) -> str | None:
    """Autocast leaves interpolation in half precision on MPS, unlike anywhere else."""
    if call.name == "python:interpolate" and (call.under_autocast or call.dtypes & HALF):
        return "runs in half precision under MPS autocast: turn autocast off and cast to float32"
    return None


def waiting_copies(call: Call) -> str | None:
    """Copies that do not wait are silently corrupted (#189690, #139550)."""
    options = dict(call.options)
    if call.last_name in ("python:to", "python:copy_", "_to_copy", "copy_") and options.get("non_blocking") == "True":
        return "a non-blocking copy is silently corrupted (#189690, #139550)"
    return None


CALL_RULES: tuple[CallRule, ...] = (
    no_route,
    hidden_parts,
    skipped_by_pytorch,
    too_wide,
    scattered_convolution,
    scattered_gradient,
    scattered_attention,
    large_batch,
    layers_to_avoid,
    uneven_pooling,
    half_growth,
    waiting_copies,
)


def _is_convolution(call: Call) -> bool:
    return call.last_name in ("convolution", "convolution_backward")


def _is_transposed(call: Call) -> bool:
    # The first plain yes or no among the arguments of both operators.
    return next((value for _, value in call.options if value in ("True", "False")), "") == "True"


# Rules about all calls together


def changing_shapes(calls: Iterable[Call]) -> Iterator[Finding]:
    """Every new shape is compiled and kept for ever (#132596, #164299)."""
    shapes = defaultdict(set)
    for call in calls:
        if call.last_name == "convolution":
            shapes[call.where].add(call.inputs[0].shape)
    for where, seen in shapes.items():
        if len(seen) > MOST_SHAPES:
            reason = "MPS compiles a graph for every shape and never forgets one (#132596, #164299)"
            yield Finding("changing_shapes", f"a convolution of {len(seen)} different shapes", reason, where)


# Rules about our source

SOURCE_RULES: dict[str, str] = {
    r"foreach=True": "clip_grad_norm_ with foreach=True raises on MPS",
    r"GradScaler\(\)": "without a device it is CUDA's, and silently does nothing elsewhere",
    r"torch\.cuda\.amp\b": "deprecated: torch.amp with the device",
    r"torch\.jit\.script|quantize_dynamic": "deprecated",
    r"ReduceLROnPlateau\(.*verbose=": "a TypeError since PyTorch 2.7",
    r"HIGH_WATERMARK_RATIO['\"]\]? ?[=,] ?['\"]?0": "removes the limit on memory: the whole system may fail",
}


def source_findings(path: Path, shown: str) -> Iterator[Finding]:
    """What a file of ours writes that no Mac should run; comments and strings that only tell are left out."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call | ast.Attribute | ast.Assign):
            text = ast.unparse(node)
            for pattern, reason in SOURCE_RULES.items():
                if re.search(pattern, text) and not _inner_has(node, pattern):
                    yield Finding("source", text[:80], reason, f"{shown}:{node.lineno}")


def _inner_has(node: ast.AST, pattern: str) -> bool:
    """Whether a smaller node tells the same."""
    inner = (each for each in ast.walk(node) if each is not node)
    return any(isinstance(each, ast.Call | ast.Attribute) and re.search(pattern, ast.unparse(each)) for each in inner)


# All of them


def findings(recording: Recording) -> list[Finding]:
    """What is wrong with a recording: of each rule, operator and place the first that was met."""
    found: dict[tuple[str, ...], Finding] = {}
    for call in recording.calls:
        for rule in CALL_RULES:
            reason = rule(call)
            if reason is not None:
                finding = Finding(rule.__name__, _told(call), reason, call.where)
                found.setdefault((rule.__name__, call.name, call.where), finding)
    return [*found.values(), *changing_shapes(recording.calls)]


def _told(call: Call) -> str:
    tensors = ", ".join(
        f"{tensor.dtype}{list(tensor.shape)}{'' if tensor.is_contiguous else ' not contiguous'}"
        for tensor in call.inputs[:4]
    )
    return f"{call.name.removeprefix('python:')}({tensors})"
