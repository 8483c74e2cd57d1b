"""What a piece of code asks of PyTorch: every operator with its tensors, and which module and line it came from.

Operators that others are made of are opened, so that what they hide is seen too.
"""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.module_tracker import ModuleTracker

from convlstm_wx.training.mps_facts import REROUTED, has_mps_kernel

PACKAGE = Path(__file__).parents[1]
WATCHERS = {Path(__file__), Path(__file__).with_name("rehearsal.py")}


@dataclass(frozen=True)
class Argument:
    """A tensor that goes into an operator or comes out of it."""

    dtype: str
    shape: tuple[int, ...]
    is_contiguous: bool

    @classmethod
    def of(cls, tensor: Tensor) -> "Argument":
        """What matters of a tensor; one that is not dense counts as not contiguous."""
        dense = tensor.layout == torch.strided
        name = str(tensor.dtype).removeprefix("torch.")
        return cls(name, tuple(tensor.shape), dense and tensor.is_contiguous())


@dataclass(frozen=True)
class Call:
    """One operator, or one function of PyTorch's Python side, as it was called.

    Attributes:
        name: `aten::add.Tensor`, or `python:interpolate` for a function.
        inputs, outputs: its tensors.
        options: its other arguments, as Python wrote them.
        where: module stack and line of this package.
        in_backward: inside a backward pass.
        under_autocast: a function called where autocast is on.
        for_scaler: on behalf of PyTorch's gradient scaler, which computes otherwise on MPS.
    """

    name: str
    inputs: tuple[Argument, ...] = ()
    outputs: tuple[Argument, ...] = ()
    options: tuple[tuple[str, str], ...] = ()
    where: str = ""
    in_backward: bool = False
    under_autocast: bool = False
    for_scaler: bool = False

    @property
    def operator(self) -> str:
        """The full name in PyTorch's table: `add.Tensor`."""
        return self.name.removeprefix("aten::")

    @property
    def last_name(self) -> str:
        """Without overload: `add`."""
        return self.operator.partition(".")[0]

    @property
    def dtypes(self) -> set[str]:
        """Of all its tensors."""
        return {argument.dtype for argument in (*self.inputs, *self.outputs)}


@dataclass
class Recording:
    """Calls, each kind once: a recurrent network repeats itself at every time.

    Attributes:
        calls: in the order of their first appearance.
        modules: classes of the networks that ran.
    """

    calls: dict[Call, None] = field(default_factory=dict)
    modules: set[type] = field(default_factory=set)

    def add(self, call: Call) -> None:
        """Note a call."""
        self.calls.setdefault(call)


@contextmanager
def recording() -> Iterator[Recording]:
    """Everything inside is recorded; attention goes the way that MPS takes in training, through its plain formula."""
    kept = Recording()

    def note(module: nn.Module, _: Any) -> None:
        kept.modules.add(type(module))

    handle = nn.modules.module.register_module_forward_pre_hook(note)
    try:
        with ExitStack() as stack:
            places = _Places(stack.enter_context(ModuleTracker()))
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            stack.enter_context(_Functions(kept, places))
            stack.enter_context(_Operators(kept, places))
            yield kept
    finally:
        handle.remove()


class _Operators(TorchDispatchMode):
    """Sees operators below autograd; a composite is run once more from within, so that its parts are seen."""

    def __init__(self, kept: Recording, places: "_Places"):
        super().__init__()
        self.kept, self.places = kept, places
        self.opened: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = self._open(func, args, kwargs) if self._hides_others(func) else func(*args, **kwargs)
        self.kept.add(_call(func.name(), args, kwargs, result, self.places.here()))
        return result

    def _hides_others(self, func: Any) -> bool:
        return func.name() not in self.opened and _falls_apart(func.name())

    def _open(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        self.opened.append(func.name())
        try:
            with self:
                return func.redispatch(torch._C.DispatchKeySet(torch._C.DispatchKey.CPU), *args, **kwargs)
        finally:
            self.opened.pop()


@cache
def _falls_apart(name: str) -> bool:
    """Whether an operator is made of others that have to be seen: neither MPS nor the CPU has a kernel of its own."""
    short = name.removeprefix("aten::")
    if short == name or short.partition(".")[0] in REROUTED or has_mps_kernel(short):
        return False
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    return has_kernel(name, "CompositeExplicitAutograd") and not has_kernel(name, "CPU")


# Functions whose way on MPS cannot be told from the operators that a CPU makes of them.
WATCHED = ("interpolate", "scaled_dot_product_attention", "to", "copy_")


class _Functions(TorchFunctionMode):
    """Sees some functions of PyTorch's Python side."""

    def __init__(self, kept: Recording, places: "_Places"):
        super().__init__()
        self.kept, self.places = kept, places

    def __torch_function__(
        self, func: Callable, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in WATCHED:
            self.kept.add(_call(f"python:{name}", args, kwargs, None, self.places.here()))
        return func(*args, **kwargs)


def _call(name: str, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any, place: "_Place") -> Call:
    return Call(
        name=name,
        inputs=tuple(Argument.of(tensor) for tensor in _tensors([args, kwargs])),
        outputs=tuple(Argument.of(tensor) for tensor in _tensors(result)),
        options=_options(args, kwargs),
        where=str(place),
        in_backward=place.in_backward,
        under_autocast=torch.is_autocast_enabled("cpu"),
        for_scaler=place.for_scaler,
    )


def _options(args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """Arguments that are no tensors, those without a name under their place."""
    named = {**{str(place): value for place, value in enumerate(args)}, **kwargs}
    plain = (bool, int, str, torch.dtype)
    wanted = {name: value for name, value in named.items() if isinstance(value, plain) or _are_numbers(value)}
    return tuple((name, str(value)) for name, value in wanted.items())


def _are_numbers(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(each, int) for each in value)


def _tensors(entry: Any) -> Iterator[Tensor]:
    if isinstance(entry, Tensor):
        yield entry
    elif isinstance(entry, list | tuple):
        for each in entry:
            yield from _tensors(each)
    elif isinstance(entry, dict):
        yield from _tensors(list(entry.values()))


# Where


@dataclass(frozen=True)
class _Place:
    """Innermost module and line of this package; of a gradient, those of what it is the gradient of."""

    module: str
    line: str
    for_scaler: bool = False
    in_backward: bool = False

    def __str__(self) -> str:
        return ", ".join([*filter(None, [self.module]), self.line, *["gradient"] * self.in_backward])


class _Places:
    """Knows where the code is, in the backward pass by autograd's numbers of what was done forward."""

    def __init__(self, tracker: ModuleTracker):
        self.tracker = tracker
        self.forward: dict[int, _Place] = {}

    def here(self) -> _Place:
        """Where the operator under way was called."""
        node = torch._C._current_autograd_node()
        if node is not None:
            known = self.forward.get(node._sequence_nr())
            return replace(known, in_backward=True) if known else _Place(node.name(), _line()[0], in_backward=True)
        place = _Place(self._module(), *_line())
        if torch.is_grad_enabled():
            self.forward[torch.autograd._get_sequence_nr() - 1] = place  # autograd counts before it calls
        return place

    def _module(self) -> str:
        names = self.tracker.parents - {"Global"}
        return max(sorted(names), key=lambda name: name.count("."), default="")


@dataclass(frozen=True)
class _File:
    """What matters of a source file: how it is told, whether it is ours, of torch, or the gradient scaler's."""

    shown: str
    is_ours: bool
    is_other: bool
    is_scaler: bool


@cache  # asked for every frame of every operator
def _file(name: str) -> _File:
    path = Path(name)
    is_watcher = path in WATCHERS
    is_ours = path.is_relative_to(PACKAGE) and not is_watcher
    return _File(
        shown=str(path.relative_to(PACKAGE.parent)) if is_ours else path.name,
        is_ours=is_ours,
        is_other="torch" not in path.parts and not is_watcher,
        is_scaler=path.parts[-2:] == ("amp", "grad_scaler.py"),
    )


def _line() -> tuple[str, bool]:
    """The innermost line of this package, or else of any but torch; and whether the gradient scaler lies in between."""
    frame, for_scaler, fallback = sys._getframe(1), False, ""
    while frame is not None:
        file = _file(frame.f_code.co_filename)
        for_scaler |= file.is_scaler
        if file.is_ours:
            return f"{file.shown}:{frame.f_lineno}", for_scaler
        if not fallback and file.is_other:
            fallback = f"{file.shown}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return fallback, for_scaler
