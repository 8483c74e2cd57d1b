"""How many windows at once: found by trying, and fewer where memory runs out."""

import logging
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from convlstm_wx.checkpoint import Checkpoint
from convlstm_wx.config import AUTO, TrainConfig
from convlstm_wx.data.inputs import TrainingInputs
from convlstm_wx.device import DevicePolicy
from convlstm_wx.distributed import Processes
from convlstm_wx.errors import ConfigError, TrainingError
from convlstm_wx.files import describe_bytes
from convlstm_wx.training.loop import Run
from convlstm_wx.training.memory import DoesNotFitError, told, too_little
from convlstm_wx.training.plan import free_bytes
from convlstm_wx.training.probe import Probe, probe

log = logging.getLogger(__name__)

FEWEST_STEPS = 20  # of an epoch: with a handful of steps a network learns nothing, however fast they are
LARGEST_ON_CPU = 32
WORTHWHILE = 1.05  # times as many windows a second; a CPU has no need of large batches otherwise


def tried_run(
    config: TrainConfig,
    inputs: TrainingInputs,
    policy: DevicePolicy,
    folder: Path,
    processes: Processes,
    resume: Checkpoint | None = None,
) -> tuple[Run, Probe]:
    """A run whose micro-batches fit into memory, and what the first of them costs.

    With batch_size AUTO the run's settings have the number that was found, or that of the checkpoint.

    Raises:
        TrainingError: if one window is too much, or fewer than asked for are not wanted.
    """
    if config.batch_size == AUTO:
        found = resume.config.batch_size if resume else find_batch_size(config, inputs, policy, folder, processes)
        config = replace(config, batch_size=found)
    with told(policy):
        run = Run(config, inputs, policy, folder, processes, resume)
    if policy.most_images:
        _lower(run, policy.most_images // config.input_steps)
    while True:
        with suppress(DoesNotFitError):
            return run, probe(run, repeats=2)  # the first pass also warms up, and would make an epoch seem long
        run.shrink()


def _lower(run: Run, most: int) -> None:
    """To what the device takes at once.

    Raises:
        ConfigError: if fewer windows than asked for are not wanted.
    """
    size, on = run.micro_batch, run.policy.device.type
    if size <= most:
        return
    if not run.config.auto_batch:
        raise ConfigError(f"--batch-size {size}: {on} takes at most {most} windows at once; give no more")
    run.progress.micro_batch = most
    log.warning("%s takes at most %d windows at once: that many, not %d, in more micro-batches", on, most, size)


def find_batch_size(
    config: TrainConfig, inputs: TrainingInputs, policy: DevicePolicy, folder: Path, processes: Processes
) -> int:
    """The largest power of two of windows that fits, by trial steps at all lead times; on a CPU the fastest.

    Raises:
        TrainingError: if one window is too much.
    """
    with told(policy):
        run = Run(replace(config, batch_size=1), inputs, policy, folder, processes)
    usable = free_bytes(policy, processes)
    best: Probe | None = None
    most, why = _limit(run)
    for size in (2**power for power in range(most.bit_length())):
        if best and processes.any(_expected_bytes(best, size) > usable):
            why = f"{size} would need more than the {describe_bytes(usable)} that may be used"
            break
        try:
            tried = probe(run, size=size, repeats=2)
        except DoesNotFitError:
            policy.free_memory()
            why = f"{size} do not fit into memory"
            break
        seconds = processes.sum(tried.seconds)[0] / processes.world_size
        tried = replace(tried, seconds=seconds)
        if best and policy.device.type == "cpu" and size / seconds < WORTHWHILE * best.windows / best.seconds:
            why = f"{size} are no faster"
            break
        best = tried
    if best is None:
        raise TrainingError(too_little(run.config, policy, 1))
    speed = best.windows / best.seconds
    log.info("batch size %d found: %.3g windows/s in the trial; %s", best.windows, speed, why)
    return best.windows


def _limit(run: Run) -> tuple[int, str]:
    """The most windows that may be tried, and why no more."""
    config, on = run.config, run.policy.device.type
    in_step = config.gradient_accumulation_steps * run.processes.world_size
    fewest = f"more would leave fewer than {FEWEST_STEPS} optimiser steps to an epoch"
    limits = [(max(1, len(run.training_windows) // (FEWEST_STEPS * in_step)), fewest)]
    if on == "cpu":
        limits.append((LARGEST_ON_CPU, "a CPU needs no more"))
    if run.policy.most_images:
        limits.append((run.policy.most_images // config.input_steps, f"{on} takes no more"))
    return min(limits)


def _expected_bytes(best: Probe, size: int) -> float:
    return best.network_bytes + best.batch_bytes * size / best.windows
