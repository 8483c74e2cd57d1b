"""A network's forward pass under torch.compile, with a way on where that cannot be had."""

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch._dynamo.exc import TorchDynamoException

from convlstm_wx.models.network import Network

log = logging.getLogger(__name__)


SIZES_OF_BATCH = 8  # of whole and last micro-batches, in training and validation, after memory ran out or not


def compile_forward(network: Network, mode: str, *, lead_counts: int = 1) -> None:
    """Compile `forward` in place, at its first call; parameters and their names stay as they are.

    The layers take their plain path, which is what a compiler can read. Where compiling fails, as on a machine without
    a C compiler, one warning says so, and the network goes on as it was written. `encode`, `advance` and `rollout` are
    not compiled: a forecast would wait longer for the compiler than it takes.

    Args:
        network: on its device already.
        mode: of torch.compile.
        lead_counts: how many numbers of lead times it is to forecast.
    """
    # Beyond its limits PyTorch stops compiling; the names are those of 2.6, which later versions know too.
    limits, graphs = torch._dynamo.config, SIZES_OF_BATCH * lead_counts
    limits.cache_size_limit = max(limits.cache_size_limit, graphs)
    limits.accumulated_cache_size_limit = max(limits.accumulated_cache_size_limit, graphs)
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
            reason = "; ".join(filter(None, str(error).splitlines()[:2])) or type(error).__name__
            log.warning("--compile: %s; going on without", reason)
            self.now = self.plain
            return self.plain(*arguments)
