"""Several processes that train together, as torchrun starts them; alone, everything here is a no-op."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import distributed

from convlstm_wx.errors import ConfigError, ConvlstmWxError, TrainingError

PATIENCE = timedelta(hours=12)  # the first process may have a large data cache to build
HEAD_START_S = 5.0
TORCHRUN_SETS = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


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
        """Each value summed over all processes.

        Raises:
            TrainingError: if one of them is no longer there.
        """
        if self.world_size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        with _together():
            distributed.all_reduce(total)
        return total.tolist()

    def any(self, holds: bool) -> bool:
        """Whether it holds in at least one process."""
        return self.sum(holds)[0] > 0

    def sum_gradients(self, parameters: list[torch.nn.Parameter]) -> None:
        """Replace every gradient by its sum over all processes; one that was not computed counts as zero."""
        if self.world_size == 1:
            return
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            with _together():
                distributed.all_reduce(parameter.grad)

    @contextmanager
    def first_on_each_machine(self) -> Iterator[None]:
        """A block that one process of each machine goes through before the others do."""
        if self.local_rank:
            self.sum(0)
        yield
        if not self.local_rank:
            self.sum(0)


@contextmanager
def _together() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise TrainingError(
            "another of the processes has failed or was killed, so this one ends too; the checkpoints are whole, "
            "go on with --resume auto"
        ) from error


@contextmanager
def joined() -> Iterator[Processes]:
    """The process group of torchrun's environment, left again at the end; a single process without one.

    PyTorch's own choice of backends: gloo for tensors on the CPU, nccl for those on GPUs. Most mistakes are found by
    all processes alike: the main one says so at once, and while the others wait torchrun ends them.

    Raises:
        ConfigError: if only a part of torchrun's environment is there.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Processes()
        return
    missing = [name for name in TORCHRUN_SETS if name not in os.environ]
    if missing:
        unset = ", ".join(missing)
        raise ConfigError(f"WORLD_SIZE is set, but not {unset}: start the processes with torchrun, or unset WORLD_SIZE")
    distributed.init_process_group(timeout=PATIENCE)
    try:
        here = int(os.environ["LOCAL_RANK"]), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        yield Processes(distributed.get_rank(), distributed.get_world_size(), *here)
    except ConvlstmWxError:
        if distributed.get_rank():
            time.sleep(HEAD_START_S)
        raise
    finally:
        distributed.destroy_process_group()
