"""Running out of memory: found out in all processes alike, and told with what to do about it."""

from collections.abc import Iterator
from contextlib import contextmanager

from convlstm_wx.config import TrainConfig
from convlstm_wx.device import DevicePolicy, is_out_of_memory
from convlstm_wx.distributed import Processes
from convlstm_wx.errors import TrainingError


class DoesNotFitError(TrainingError):
    """What was tried did not fit, here or in a sibling process; nothing has changed, and less may fit."""


@contextmanager
def fitting(processes: Processes) -> Iterator[None]:
    """A block that fits into the memory of every process, or ends in all of them.

    Processes must not talk to each other inside.

    Raises:
        DoesNotFitError: in every process, if one ran out.
    """
    failure = ""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        failure = str(error) or "out of memory"  # the error itself would keep the batch in memory
    if processes.any(bool(failure)):
        raise DoesNotFitError(failure or "out of memory in another process")


@contextmanager
def told(policy: DevicePolicy) -> Iterator[None]:
    """Where nothing smaller can be tried: memory that runs out is one line, not a traceback.

    Raises:
        TrainingError: if it does.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise TrainingError(
            f"too little memory on {policy.device} for the network and its optimiser; use fewer --hidden-channels, "
            f"or close other programs"
        ) from error


def too_little(config: TrainConfig, policy: DevicePolicy, size: int) -> str:
    """That so many windows at once do not fit, and what to do."""
    windows = "one window" if size == 1 else f"{size} windows"
    found = f"too little memory on {policy.device} for {windows} of {config.lead_steps} lead steps at once"
    if size == 1:
        smaller = "a smaller --target-region, fewer --hidden-channels or fewer --lead-steps"
        return f"{found}; use {smaller}{'' if config.use_amp else ', or --use-amp'}"
    parts = 2 if size % 2 == 0 else size
    steps = parts * config.gradient_accumulation_steps
    return f"{found}; use --batch-size {size // parts} --gradient-accumulation-steps {steps}, which learns the same"
