"""What a run writes into its folder, and how a checkpoint is made of it and put back."""

import csv
import io
import json
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from convlstm_wx.checkpoint import Checkpoint, reached_in, save_checkpoint, versions
from convlstm_wx.config import TrainConfig, as_flag
from convlstm_wx.data.spec import DataSpec
from convlstm_wx.distributed import Processes
from convlstm_wx.dressing import Residuals
from convlstm_wx.errors import CheckpointError
from convlstm_wx.files import write_text
from convlstm_wx.training.blueprint import Blueprint, network_changes
from convlstm_wx.training.schedule import EarlyStopping
from convlstm_wx.training.skill import Rmse
from convlstm_wx.training.step import Learner

log = logging.getLogger(__name__)

HISTORY_COLUMNS = (
    "epoch",
    "train_loss",
    "validation_loss",
    "persistence_loss",
    "learning_rate",
    "windows_per_s",
    "elapsed_s",
)


@dataclass
class Progress:
    """Where a run stands; saved with every checkpoint.

    Attributes:
        epoch: the epoch under way, from 1.
        step_in_epoch: optimiser steps already taken in it.
        global_step: optimiser steps since the start.
        error, points: sums of the epoch's loss so far.
        best, waited: of early stopping.
        skipped: steps in a row whose loss or gradient was not finite.
        half_failed: whether half precision was given up.
        windows_per_step: of all micro-batches and processes; 0 in checkpoints of earlier versions.
        micro_batch: windows at once, where fewer fit than were asked for; else 0.
        elapsed_s: training time of all parts of the run.
        history: one row per finished epoch.
        rmse: of the validation windows, by finished epoch, channel and lead time, in the file's units.
        persistence_rmse: the same of persistence.
        rain: what it rained on average, found in the latest validation; see
            :attr:`~convlstm_wx.data.rain.RainMeans.by_channel`.
    """

    epoch: int = 1
    step_in_epoch: int = 0
    global_step: int = 0
    error: float = 0.0
    points: float = 0.0
    best: float = math.inf
    waited: int = 0
    skipped: int = 0
    half_failed: bool = False
    windows_per_step: int = 0
    micro_batch: int = 0
    elapsed_s: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)
    rmse: dict[int, Rmse] = field(default_factory=dict)
    persistence_rmse: Rmse = field(default_factory=dict)
    rain: dict[str, list[list[float]]] = field(default_factory=dict)


# Checkpoints of a run


def checkpoint_of(
    learner: Learner,
    progress: Progress,
    config: TrainConfig,
    spec: DataSpec,
    network: Blueprint,
) -> Checkpoint:
    """A run as it stands."""
    weights = {name: value.cpu() for name, value in learner.network.state_dict().items()}  # the file holds each once
    return Checkpoint(
        config=config,
        spec=spec,
        model_name=network.name,
        model_options=network.options,
        weights=weights | learner.averaged.shadow,
        training={
            "weights": weights,
            "optimizer": learner.optimizer.state_dict(),
            "scaler": learner.scaler.state_dict(),
            "averaged": learner.averaged.state_dict(),
            "progress": vars(progress).copy(),
        },
        versions=versions(),
    )


def check_same_run(resume: Checkpoint, spec: DataSpec, network: Blueprint, config: TrainConfig) -> None:
    """Refuse to go on with other data, another network, or another loss: its best epoch could not be told.

    Raises:
        CheckpointError: naming what differs.
    """
    found = resume.spec.changes(spec) + network_changes(resume, network)
    for name in ("loss", "huber_delta", "variable_weights", "rain_weights"):
        theirs, ours = getattr(resume.config, name), getattr(config, name)
        found += [f"{as_flag(name)} {_words(theirs)} there, {_words(ours)} here"] if theirs != ours else []
    if found:
        raise CheckpointError(f"--resume: the checkpoint's run was another one: {'; '.join(found)}")


def _words(value: Any) -> str:
    return " ".join(value) or "none" if isinstance(value, tuple) else str(value)


def restore(resume: Checkpoint, learner: Learner, config: TrainConfig, steps_per_epoch: int) -> Progress:
    """Go on exactly where the checkpoint stands; what changed on the command line since then holds from now on.

    Where an optimiser step has another number of windows now, steps are counted anew: the run stays where it is in the
    epoch and in the schedule.
    """
    saved = resume.training
    learner.network.load_state_dict(saved["weights"])
    # The settings of now come first: where the optimiser puts its step count depends on them.
    groups = [
        theirs | {name: ours[name] for name in ("weight_decay", "fused")}
        for theirs, ours in zip(saved["optimizer"]["param_groups"], learner.optimizer.param_groups)
    ]
    learner.optimizer.load_state_dict(saved["optimizer"] | {"param_groups": groups})
    _lay_out_like_weights(learner.optimizer)
    if saved["scaler"]:  # empty where the run so far needed no scaler
        learner.scaler.load_state_dict(saved["scaler"])
    learner.averaged.load_state_dict(saved["averaged"])
    progress = Progress(**saved["progress"])
    if progress.half_failed:
        learner.use_float32()
    if config.batch_size != resume.config.batch_size:
        progress.micro_batch = 0
    before = progress.windows_per_step or windows_per_step(resume.config, learner.processes)
    progress.windows_per_step = windows_per_step(config, learner.processes)
    if progress.windows_per_step != before:
        # Rounded down: some windows may come twice, none is left out.
        progress.step_in_epoch = progress.step_in_epoch * before // progress.windows_per_step
        progress.global_step = (progress.epoch - 1) * steps_per_epoch + progress.step_in_epoch
    return progress


def _lay_out_like_weights(optimizer: torch.optim.Optimizer) -> None:
    """Moments in the order of memory of their weights: another device's may be another, and a fused step minds none."""
    for weight, state in optimizer.state.items():
        for name, values in state.items():
            if values.ndim and values.shape == weight.shape:
                state[name] = torch.empty_like(weight).copy_(values)


def windows_per_step(config: TrainConfig, processes: Processes) -> int:
    """Of all micro-batches and processes."""
    return config.batch_size * config.gradient_accumulation_steps * processes.world_size


def why_ended(config: TrainConfig, resume: Checkpoint) -> str:
    """Why a run has nothing left to train, with the option that would prolong it; "" if it has."""
    progress = Progress(**resume.training["progress"])
    epochs = config.num_epochs or resume.config.num_epochs  # AUTO is what it was when the run began
    if progress.epoch > epochs:
        return f"--resume: all {epochs} epochs are done already; give more with --num-epochs to go on"
    if EarlyStopping(config.early_stopping_patience, progress.best, progress.waited).should_stop:
        return (
            f"--resume: the run stopped early, {progress.waited} epochs after its best; "
            f"give a longer --early-stopping-patience to go on"
        )
    return ""


# Files of a run


class Saving:
    """Writes a run's files; does nothing in any process but the main one.

    Args:
        folder: where they go; must exist when the first is written.
        config: how many checkpoints, and how often.
        processes: this process among its siblings.
        checkpoint: makes one of the run as it stands.
    """

    def __init__(self, folder: Path, config: TrainConfig, processes: Processes, checkpoint: Callable[[], Checkpoint]):
        self.folder, self.config, self.processes, self.checkpoint = folder, config, processes, checkpoint
        self.start_clock()

    def start_clock(self) -> None:
        """Count the minutes to the next save from now on."""
        self.saved_at = time.monotonic()

    def save(self, name: str, residuals: Residuals | None = None) -> Path:
        """A checkpoint of the run as it stands, with errors on validation where they are its own.

        Raises:
            ConfigError: if it cannot be written; what bore the name before is whole.
        """
        path = self.folder / name
        if self.processes.is_main:
            save_checkpoint(path, replace(self.checkpoint(), residuals=residuals))
        self.start_clock()
        return path

    def save_now_and_then(self) -> None:
        """Inside an epoch, so that a killed run repeats minutes at most."""
        every_s = 60 * self.config.save_every_minutes
        if every_s and time.monotonic() - self.saved_at >= every_s:
            self.save("last.pt")

    def set_aside(self, resumed_at: tuple[int, int]) -> None:
        """Rename the folder's checkpoints that are further on than where the run goes on from.

        Its user went back; --resume auto must not return to what was given up.
        """
        if not self.processes.is_main:
            return
        given_up = [file for file, reached in reached_in(self.folder)[0].items() if reached > resumed_at]
        for file in given_up:
            file.replace(file.with_name(f"{file.name}.old"))
        if given_up:
            names = " ".join(sorted(file.name for file in given_up))
            log.info("gone back: what was further on has .old after its name now (%s)", names)

    def write_epoch(
        self, finished: int, history: Sequence[dict[str, float]], residuals: Residuals | None, *, is_best: bool
    ) -> None:
        """The checkpoints and the history after an epoch."""
        if not self.processes.is_main:
            return
        # last.pt comes last: a run killed in between goes on from the epoch before and writes the others once more.
        if is_best:
            self.save("best.pt", residuals)
        frequency = self.config.checkpoint_frequency
        if frequency and finished % frequency == 0:
            self.save(f"epoch_{finished:04d}.pt")
            _keep_newest(self.folder, self.config.keep_checkpoints)
        write_history(self.folder / "history.csv", history)
        self.save("last.pt")
        (self.folder / "interrupted.pt").unlink(missing_ok=True)  # last.pt is further on


def write_history(path: Path, history: Sequence[dict[str, float]]) -> None:
    """history.csv, one row per epoch, replaced as a whole."""
    text = io.StringIO()
    writer = csv.DictWriter(text, HISTORY_COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: f"{value:.6g}" for name, value in row.items()} for row in history)
    write_text(path, text.getvalue())


def write_config(path: Path, config: TrainConfig) -> None:
    """config.json: the settings of the run."""
    write_text(path, json.dumps(config.to_dict(), indent=2) + "\n")


def _keep_newest(folder: Path, keep: int) -> None:
    """Remove all but the newest periodic checkpoints; 0 keeps all."""
    for old in sorted(folder.glob("epoch_[0-9]*.pt"))[: -keep or None] if keep else []:
        old.unlink()
