"""What PyTorch says about its own MPS backend, read from the files that its wheel brings along, on any machine.

Two files: the table of all operators (which kernel belongs to which backend), and the lists of operators that PyTorch's
own tests skip on MPS or expect to fail there.
"""

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import torch

from convlstm_wx.errors import DeviceError

OPERATOR_TABLE = Path("torchgen/packaged/ATen/native/native_functions.yaml")
SKIP_LISTS = Path("torch/testing/_internal/common_mps.py")

# Operators whose composite kernel asks for the device and hands over to an operator of that device: what stands in
# the table beside them is not what runs (aten/src/ATen/native/Convolution.cpp, select_conv_backend).
REROUTED = {
    "convolution": "_mps_convolution",
    "_convolution": "_mps_convolution",
    "convolution_overrideable": "_mps_convolution",
    "convolution_backward": "mps_convolution_backward",
    "_fused_sdp_choice": "_scaled_dot_product_attention_math",  # MPS has no fused attention with gradients
}


# The table of operators


@dataclass
class Operator:
    """One entry of the table.

    Attributes:
        backends: that have a kernel of their own (CPU, CUDA, MPS, CompositeExplicitAutograd ...).
        delegate: the operator whose structured kernel does the work, if there is one.
    """

    backends: set[str] = field(default_factory=set)
    delegate: str | None = None


def site_packages() -> Path:
    """The folder that torch was installed into."""
    return Path(torch.__file__).parents[1]


@cache
def operators() -> Mapping[str, Operator]:
    """Every operator by its full name (`add.Tensor`).

    Raises:
        DeviceError: if this build of PyTorch came without the table.
    """
    path = site_packages() / OPERATOR_TABLE
    if not path.is_file():
        raise DeviceError(f"{path}: not there; the audit needs a PyTorch from pip, which brings the table of operators")
    return parse_operators(path.read_text(encoding="utf-8").splitlines())


def parse_operators(lines: Iterable[str]) -> dict[str, Operator]:
    """The table from its lines.

    A reader of all of YAML takes ten seconds for these 15,000 lines, and three keys matter here.
    """
    table: dict[str, Operator] = {}
    now, in_dispatch = Operator(), False
    for line in lines:
        if found := re.match(r"- func: ([\w.]+)\(", line):
            now, in_dispatch = Operator(), False
            table[found[1]] = now
        elif found := re.match(r"  structured_delegate: ([\w.]+)", line):
            now.delegate = found[1]
        elif found := re.match(r"  autogen: (.+)", line):
            # Made from this one by the code generator: a kernel that calls it.
            table |= {name.strip(): Operator({"CompositeExplicitAutograd"}) for name in found[1].split(",")}
        elif re.match(r"  dispatch:", line):
            in_dispatch = True
        elif in_dispatch and (found := re.match(r"    ([\w, ]+):", line)):
            now.backends |= {name.strip() for name in found[1].split(",")}
        elif re.match(r"  \w", line):
            in_dispatch = False
    return table


def has_mps_kernel(name: str) -> bool:
    """Whether MPS has a kernel of its own for an operator, in its own name or its delegate's."""
    entry = operators().get(name)
    if entry is None:
        return False
    return "MPS" in entry.backends or (entry.delegate is not None and has_mps_kernel(entry.delegate))


def is_composite(name: str) -> bool:
    """Whether the operator is made of others, which then need a route themselves."""
    entry = operators().get(name)
    if entry is None or entry.delegate is not None:
        return False
    return not entry.backends or any(backend.startswith("Composite") for backend in entry.backends)


def has_route(name: str) -> bool:
    """Whether an operator can run on MPS, as far as it alone can tell: a composite is as good as its parts."""
    target = REROUTED.get(name.partition(".")[0])
    if target is not None:
        return has_mps_kernel(target) or is_composite(target)
    return has_mps_kernel(name) or is_composite(name)


# The lists of skipped operators


@dataclass(frozen=True)
class Skip:
    """One entry of PyTorch's lists.

    Attributes:
        operator: name in PyTorch's tests (`nn.functional.conv2d`).
        dtypes: that it is about; None for all.
        in_backward: it is about the gradient only.
        source: the list that it stands in.
    """

    operator: str
    dtypes: frozenset[str] | None
    in_backward: bool
    source: str

    def concerns(self, dtypes: Iterable[str]) -> bool:
        """Whether one of these dtypes is meant."""
        return self.dtypes is None or not self.dtypes.isdisjoint(dtypes)


# Entries that say nothing against using the operator: comments of that file, in our words.
HARMLESS = {
    "empty": "holds no values yet, so there is nothing to compare",
    "empty_like": "the same",
    "empty_strided": "the same",
    "empty_permuted": "the same",
    "new_empty": "the same",
    "new_empty_strided": "the same",
    "dropout": "MPS draws other random numbers than the CPU, so the two cannot be compared",
    "scaled_dot_product_attention": "is listed for the random numbers of its dropout, which differ on CUDA too",
    "adaptive_avg_pool1d": "fails for sizes that do not divide, which the audit asks for itself",
    "adaptive_avg_pool2d": "the same",
    "randn": "has no input to differentiate by",
    "item": "has no gradient anywhere",
    "equal": "has no gradient anywhere",
    "to": "stands for torch.double, which MPS lacks: the audit looks for float64 itself",
    "norm": "is listed as nn.functional.norm, which is not a function of PyTorch; norms have their own entries",
}


@cache
def skips() -> Mapping[str, tuple[Skip, ...]]:
    """PyTorch's lists by the operator's name (`conv2d`, `linalg_eigh`); empty where the wheel has none."""
    path = site_packages() / SKIP_LISTS
    return parse_skips(path.read_text(encoding="utf-8")) if path.is_file() else {}


def parse_skips(text: str) -> dict[str, tuple[Skip, ...]]:
    """The lists from the source of the file: it cannot be imported to any use without MPS."""
    found: dict[str, tuple[Skip, ...]] = {}
    for function, name, table in _tables(ast.parse(text)):
        for skip in _entries(table, f"{function}: {name}", in_backward="grad" in function):
            plain = skip.operator.removeprefix("nn.functional.").replace(".", "_")
            if plain not in HARMLESS:
                found[plain] = (*found.get(plain, ()), skip)
    return found


def _tables(tree: ast.Module) -> Iterator[tuple[str, str, ast.Dict]]:
    """Function, name and value of every dictionary whose name says that it is such a list."""
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef) or "error_inputs" in function.name:
            continue
        for node in ast.walk(function):
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            value, name = getattr(node, "value", None), getattr(targets[0], "id", "")
            if isinstance(value, ast.Dict) and re.search(r"XFAILLIST|SKIPLIST", name):
                yield function.name, name, value


def _entries(table: ast.Dict, source: str, *, in_backward: bool) -> Iterator[Skip]:
    for key, value in zip(table.keys, table.values):
        if isinstance(key, ast.Constant) and isinstance(key.value, str):
            named = {node.attr for node in ast.walk(value) if isinstance(node, ast.Attribute)}
            yield Skip(key.value, frozenset(named) or None, in_backward, source)
