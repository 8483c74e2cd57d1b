"""Several processes that train together, as torchrun starts them; alone, everything here is a no-op."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import distributed


@dataclass(frozen=True)
class Processes:
    """This process among its siblings.

    Attributes:
        rank: 0 .. world_size - 1; rank 0 alone writes and prints.
        world_size: number of processes.
        local_rank: number on this machine; None without torchrun.
        local_size: number of processes on this machine.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int | None = None
    local_size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def sum(self, *values: float) -> list[float]:
        """Each value summed over all processes."""
        if self.world_size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        distributed.all_reduce(total)
        return total.tolist()

    def sum_gradients(self, parameters: list[torch.nn.Parameter]) -> None:
        """Replace every gradient by its sum over all processes; one that was not computed counts as zero."""
        if self.world_size == 1:
            return
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            distributed.all_reduce(parameter.grad)


@contextmanager
def joined() -> Iterator[Processes]:
    """The process group of torchrun's environment, left again at the end; a single process without one.

    PyTorch's own choice of backends: gloo for tensors on the CPU, nccl for those on GPUs.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Processes()
        return
    distributed.init_process_group()
    try:
        here = int(os.environ["LOCAL_RANK"]), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        yield Processes(distributed.get_rank(), distributed.get_world_size(), *here)
    finally:
        distributed.destroy_process_group()
