"""A network's forward pass under torch.compile, with a way on where that cannot be had."""

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch._dynamo.exc import TorchDynamoException

from convlstm_wx.models.network import Network

log = logging.getLogger(__name__)


def compile_forward(network: Network, mode: str) -> None:
    """Compile `forward` in place, at its first call; parameters and their names stay as they are.

    The layers take their plain path, which is what a compiler can read. Where compiling fails, as on a machine without
    a C compiler, one warning says so, and the network goes on as it was written. `encode`, `advance` and `rollout` are
    not compiled: a forecast would wait longer for the compiler than it takes.

    Args:
        network: on its device already.
        mode: of torch.compile.
    """
    network.forward = _Compiled(network.forward, mode)  # type: ignore[method-assign, assignment]


class _Compiled:
    """A function that is compiled when it is first called, or stays as it is."""

    def __init__(self, plain: Callable[..., Any], mode: str):
        self.plain = plain
        # Sizes as they are: a run has few, and graphs of unknown sizes are slower, and fail on some.
        self.now = torch.compile(plain, mode=mode, dynamic=False)

    def __call__(self, *arguments: Any) -> Any:
        try:
            return self.now(*arguments)
        except TorchDynamoException as error:
            reason = next(filter(None, str(error).splitlines()), type(error).__name__)
            log.warning("--compile: %s; going on without", reason)
            self.now = self.plain
            return self.plain(*arguments)
