"""Networks that believe to be on MPS while their tensors are on the CPU: they then take the way that they take there.

Networks choose between ways by `x.device.type`, such as a function written for CPUs or a memory layout.
"""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch.overrides import TorchFunctionMode

MODELS = Path(__file__).parents[1] / "models"
_MPS = torch.device("mps")
_DEVICE_OF_TENSOR = torch.Tensor.device.__get__
# Functions and classes that are asked for a kind of device by its name, as their first argument.
_BY_NAME = ("autocast", "is_autocast_enabled", "get_autocast_dtype")


@contextmanager
def as_on_mps() -> Iterator[None]:
    """Inside, tensors say to the files of `models` that they are on MPS, and what is made there is made on the CPU.

    To be entered last: another mode around the question would stand between it and the file that asks.
    """
    with ExitStack() as stack:
        for name in _BY_NAME:
            stack.enter_context(patch.object(torch, name, _on_cpu(getattr(torch, name))))
        stack.enter_context(_Pretence())
        yield


class _Pretence(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func == _DEVICE_OF_TENSOR and Path(sys._getframe(1).f_code.co_filename).parent == MODELS:
            return _MPS
        kwargs = {name: _true_device(value) for name, value in (kwargs or {}).items()}
        return func(*map(_true_device, args), **kwargs)


def _true_device(argument: Any) -> Any:
    return torch.device("cpu") if isinstance(argument, torch.device) and argument.type == "mps" else argument


def _on_cpu(function: Callable) -> Callable:
    def asked(device_type: Any = "cpu", *args: Any, **kwargs: Any) -> Any:
        return function("cpu" if device_type == "mps" else device_type, *args, **kwargs)

    return asked
