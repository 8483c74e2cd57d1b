"""The exponential moving average of the weights: what is validated, saved as best and forecast with."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class AveragedWeights:
    """A moving average of a network's parameters [Polyak and Juditsky 1992].

    Early on the average is short, (1 + n) / (10 + n) at update n, so that it forgets the random start.

    Args:
        network: whose weights are averaged.
        decay: share that stays at each update; 0 follows the weights exactly.
    """

    def __init__(self, network: nn.Module, decay: float):
        self.network = network
        self.decay = decay
        self.updates = 0
        self.shadow = {name: p.detach().clone() for name, p in network.named_parameters()}

    @torch.no_grad()
    def update(self) -> None:
        """Move towards the present weights."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates)) if self.decay else 0.0
        mine, theirs = list(self.shadow.values()), [p.detach() for p in self.network.parameters()]
        torch._foreach_lerp_(mine, theirs, 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The network with the averaged weights inside the block, with its own afterwards."""
        own = {name: p.detach().clone() for name, p in self.network.named_parameters()}
        self._load(self.shadow)
        try:
            yield
        finally:
            self._load(own)

    @torch.no_grad()
    def _load(self, weights: dict[str, Tensor]) -> None:
        for name, parameter in self.network.named_parameters():
            parameter.copy_(weights[name])

    def state_dict(self) -> dict[str, object]:
        """For a checkpoint."""
        return {"updates": self.updates, "shadow": self.shadow}

    def load_state_dict(self, state: dict) -> None:
        """Back from :meth:`state_dict`."""
        self.updates = state["updates"]
        for name, value in state["shadow"].items():
            self.shadow[name].copy_(value)
