"""The run: epochs of optimiser steps, validation, checkpoints, and an orderly end whatever happens."""

import csv
import io
import json
import logging
import math
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from convlstm_wx.checkpoint import Checkpoint, save_checkpoint, versions
from convlstm_wx.config import TrainConfig
from convlstm_wx.data.inputs import TrainingInputs
from convlstm_wx.data.loaders import TensorBatch, epoch_order, in_batches, load_batches
from convlstm_wx.data.spec import DataSpec
from convlstm_wx.data.splits import TRAIN, VALIDATION
from convlstm_wx.data.windows import Windows
from convlstm_wx.device import DevicePolicy
from convlstm_wx.distributed import Processes
from convlstm_wx.errors import CheckpointError, ConfigError, DataError, TrainingError
from convlstm_wx.files import write_text
from convlstm_wx.models.build import build, count_parameters
from convlstm_wx.training.averaging import AveragedWeights
from convlstm_wx.training.losses import WeightedSquaredError, mean_loss
from convlstm_wx.training.schedule import EarlyStopping, learning_rate_at
from convlstm_wx.training.step import Learner, make_optimizer

log = logging.getLogger(__name__)

MODEL_NAME = "encoder-forecaster"
MOST_SKIPPED_STEPS = 20
WARMUP_SHARE = 0.05
HISTORY_COLUMNS = (
    "epoch",
    "train_loss",
    "validation_loss",
    "persistence_loss",
    "learning_rate",
    "windows_per_s",
    "elapsed_s",
)


def model_options(config: TrainConfig, spec: DataSpec) -> dict[str, Any]:
    """The network's numbers, from the settings and the data."""
    masks = int(spec.target.statistics.gaps_C.sum())
    scale = spec.target.statistics.increment_std_C[spec.target_indices]
    return {
        "input_channels": spec.target.input_channels,
        "target_indices": spec.target_indices,
        "target_mask_indices": spec.target_mask_indices,
        "mask_channels": masks,
        "forcing_channels": spec.target.forcing_channels,
        "upstream_channels": [region.input_channels + region.forcing_channels for region in spec.upstream],
        "increment_scale": [float(value) for value in scale],
        "hidden_channels": list(config.hidden_channels),
        "kernel_size": config.kernel_size,
        "dropout": config.dropout,
    }


@dataclass
class Progress:
    """Where a run stands; saved with every checkpoint.

    Attributes:
        epoch: the epoch under way, from 1.
        step_in_epoch: optimiser steps already taken in it.
        global_step: optimiser steps since the start.
        error, points: sums of the epoch's loss so far.
        best, waited: of early stopping.
        elapsed_s: training time of all parts of the run.
        history: one row per finished epoch.
    """

    epoch: int = 1
    step_in_epoch: int = 0
    global_step: int = 0
    error: float = 0.0
    points: float = 0.0
    best: float = math.inf
    waited: int = 0
    elapsed_s: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)


class Run:
    """One training run in its output folder.

    Args:
        config: settings.
        inputs: data.
        policy: device.
        folder: where checkpoints, history and log go; must exist.
        processes: this process among its siblings.
        resume: a checkpoint to go on from.

    Raises:
        DataError: if there is not one window to train or validate with.
        CheckpointError: if the checkpoint to resume was trained on other data, or its network has another shape.
        ConfigError: if it has no epoch left to train.
    """

    def __init__(
        self,
        config: TrainConfig,
        inputs: TrainingInputs,
        policy: DevicePolicy,
        folder: Path,
        processes: Processes,
        resume: Checkpoint | None = None,
    ):
        self.config, self.policy, self.folder, self.processes = config, policy, folder, processes
        self.spec = inputs.spec
        self.training_windows = _some_windows(inputs, TRAIN, "training")
        self.validation_windows = _some_windows(inputs, VALIDATION, "validation")
        self.options = model_options(config, self.spec)
        torch.manual_seed(config.seed)
        network = policy.place(build(MODEL_NAME, self.options))
        self.parameters = count_parameters(network)
        self.learner = _make_learner(network, config, self.spec, policy, processes)
        self.progress = Progress()
        self.steps_per_epoch = math.ceil(len(self.training_windows) / self._windows_per_step)
        self.counted_until = self.saved_at = time.monotonic()
        if resume is not None:
            self._restore(resume)

    @property
    def _windows_per_step(self) -> int:
        return self.config.batch_size * self.config.gradient_accumulation_steps * self.processes.world_size

    def train(self) -> Path:
        """Run to the end, or to a request to stop (Ctrl-C, SIGTERM).

        Returns:
            The checkpoint to use: best.pt (last.pt if a resumed run in a new folder found none better than before), or
            interrupted.pt after a request to stop.

        Raises:
            TrainingError: if the loss stays non-finite; earlier checkpoints are whole.
        """
        persistence = self._persistence_loss()
        stopping = EarlyStopping(self.config.early_stopping_patience, self.progress.best, self.progress.waited)
        self.counted_until = self.saved_at = time.monotonic()
        with _stop_requests() as stop_requested:
            while self.progress.epoch <= self.config.num_epochs and not stopping.should_stop:
                windows_per_s = self._epoch(stop_requested)
                if windows_per_s is None:
                    return self._save("interrupted.pt")
                self._finish_epoch(stopping, persistence, windows_per_s)
        if stopping.should_stop:
            log.info("no better validation loss for %d epochs: stopped early", stopping.patience)
        best = self.folder / "best.pt"
        return best if best.exists() else self.folder / "last.pt"

    def _epoch(self, stop_requested: list[int]) -> float | None:
        """The rest of the epoch under way; returns the windows per second, or None if a stop was requested."""
        progress, started = self.progress, time.monotonic()
        steps = self._micro_batches(progress.epoch)[progress.step_in_epoch :]
        batches = self.load(self.training_windows, [batch for step in steps for batch in step])
        bar = tqdm(
            total=len(self.training_windows),
            initial=progress.step_in_epoch * self._windows_per_step,
            desc=f"epoch {progress.epoch}/{self.config.num_epochs}",
            unit="window",
            disable=None if self.processes.is_main else True,
            leave=False,
        )
        skipped, before = 0, bar.n
        with bar:
            for step in steps:
                sums = self.learner.learn(list(islice(batches, len(step))), self._learning_rate())
                progress.step_in_epoch += 1
                progress.global_step += 1
                skipped = self._count_skipped(skipped) if sums is None else 0
                error, points = sums or (0.0, 0.0)
                progress.error, progress.points = progress.error + error, progress.points + points
                bar.update(min(self._windows_per_step, len(self.training_windows) - bar.n))
                if progress.points:
                    bar.set_postfix(loss=f"{progress.error / progress.points:.3f}", refresh=False)
                if stop_requested:
                    return None
                self._save_now_and_then()
            return (bar.n - before) / (time.monotonic() - started)

    def _save_now_and_then(self) -> None:
        """Inside an epoch, so that a killed run repeats minutes at most."""
        every_s = 60 * self.config.save_every_minutes
        if every_s and time.monotonic() - self.saved_at >= every_s:
            self._save("last.pt")

    def _micro_batches(self, epoch: int) -> list[list[np.ndarray]]:
        """This process's micro-batches of each optimiser step of an epoch."""
        order = epoch_order(len(self.training_windows), seed=self.config.seed, epoch=epoch)
        rank, world_size = self.processes.rank, self.processes.world_size
        steps = in_batches(order, self._windows_per_step)
        return [in_batches(step[rank::world_size], self.config.batch_size) for step in steps]

    def load(self, windows: Windows, batches: list[np.ndarray]) -> Iterator[TensorBatch]:
        """Batches of window numbers, on the device."""
        asked = self.config.num_workers
        return load_batches(
            windows,
            batches,
            self.policy.device,
            num_workers=self.policy.gathering_threads if asked is None else asked,
            pin_memory=self.policy.pin_memory,
        )

    def _validation_batches(self) -> Iterator[TensorBatch]:
        mine = np.arange(self.processes.rank, len(self.validation_windows), self.processes.world_size)
        return self.load(self.validation_windows, in_batches(mine, self.config.batch_size))

    def _learning_rate(self) -> float:
        total = self.steps_per_epoch * self.config.num_epochs
        warmup = min(self.steps_per_epoch, max(1, int(WARMUP_SHARE * total)))
        return learning_rate_at(
            self.progress.global_step, total_steps=total, warmup_steps=warmup, peak=self.config.learning_rate
        )

    def _count_skipped(self, skipped: int) -> int:
        if skipped + 1 >= MOST_SKIPPED_STEPS:
            raise TrainingError(
                f"the gradient was not finite {skipped + 1} steps in a row: stopped at step "
                f"{self.progress.global_step}. Lower --learning-rate, try --no-amp, or check the data's extremes."
            )
        log.warning("step %d: gradient not finite, step skipped", self.progress.global_step)
        return skipped + 1

    def _persistence_loss(self) -> float:
        return self.learner.persistence_loss(self._validation_batches(), self.spec.target_indices)

    def _finish_epoch(self, stopping: EarlyStopping, persistence: float, windows_per_s: float) -> None:
        """Validate, note, save."""
        progress = self.progress
        learning_rate = self._learning_rate()
        validation = self.learner.validate(self._validation_batches())
        if not math.isfinite(validation):
            raise TrainingError(f"epoch {progress.epoch}: the validation loss is {validation}; lower --learning-rate")
        is_best = stopping.update(validation)
        progress.best, progress.waited = stopping.best, stopping.waited
        self._count_time()
        row = (
            progress.epoch,
            mean_loss(progress.error, progress.points),
            validation,
            persistence,
            learning_rate,
            windows_per_s,
            progress.elapsed_s,
        )
        progress.history.append(dict(zip(HISTORY_COLUMNS, row)))
        log.info(
            "epoch %2d  training loss %.4f  validation loss %.4f (persistence %.4f)%s  %.0f windows/s",
            *(row[0], row[1], row[2], persistence, "  best" if is_best else "", row[5]),
        )
        finished = progress.epoch
        progress.epoch, progress.step_in_epoch, progress.error, progress.points = finished + 1, 0, 0.0, 0.0
        if self.processes.is_main:
            self._write_epoch(finished, is_best)

    def _write_epoch(self, finished: int, is_best: bool) -> None:
        # last.pt comes last: a run killed in between goes on from the epoch before and writes the others once more.
        if is_best:
            self._save("best.pt")
        frequency = self.config.checkpoint_frequency
        if frequency and finished % frequency == 0:
            self._save(f"epoch_{finished:04d}.pt")
            _keep_newest(self.folder, self.config.keep_checkpoints)
        write_history(self.folder / "history.csv", self.progress.history)
        self._save("last.pt")
        (self.folder / "interrupted.pt").unlink(missing_ok=True)  # last.pt is further on

    def _save(self, name: str) -> Path:
        path = self.folder / name
        self._count_time()
        if self.processes.is_main:
            save_checkpoint(path, self.checkpoint())
        self.saved_at = time.monotonic()
        return path

    def _count_time(self) -> None:
        now = time.monotonic()
        self.progress.elapsed_s += now - self.counted_until
        self.counted_until = now

    def checkpoint(self) -> Checkpoint:
        """The run as it stands."""
        learner = self.learner
        return Checkpoint(
            config=self.config,
            spec=self.spec,
            model_name=MODEL_NAME,
            model_options=self.options,
            weights=learner.averaged.shadow,
            training={
                "weights": learner.network.state_dict(),
                "optimizer": learner.optimizer.state_dict(),
                "scaler": learner.scaler.state_dict(),
                "averaged": learner.averaged.state_dict(),
                "random": self.policy.random_states(),
                "progress": vars(self.progress).copy(),
            },
            versions=versions(),
        )

    def _restore(self, resume: Checkpoint) -> None:
        """Go on exactly where the checkpoint stands; what changed on the command line since then holds from now on."""
        found = resume.spec.changes(self.spec) + _option_differences(resume.model_options, self.options)
        if found:
            raise CheckpointError(f"--resume: the checkpoint's run was another one: {'; '.join(found)}")
        learner, saved = self.learner, resume.training
        fresh = [{name: group[name] for name in ("weight_decay", "fused")} for group in learner.optimizer.param_groups]
        learner.network.load_state_dict(saved["weights"])
        learner.optimizer.load_state_dict(saved["optimizer"])
        for group, settings in zip(learner.optimizer.param_groups, fresh):
            group.update(settings)
        if saved["scaler"]:  # empty where the run so far needed no scaler
            learner.scaler.load_state_dict(saved["scaler"])
        learner.averaged.load_state_dict(saved["averaged"])
        self.policy.set_random_states(saved["random"])
        self.progress = Progress(**saved["progress"])
        self._check_something_left()

    def _check_something_left(self) -> None:
        config, progress = self.config, self.progress
        if progress.epoch > config.num_epochs:
            raise ConfigError(
                f"--resume: all {config.num_epochs} epochs are done already; give more with --num-epochs to go on"
            )
        if EarlyStopping(config.early_stopping_patience, progress.best, progress.waited).should_stop:
            raise ConfigError(
                f"--resume: the run stopped early, {progress.waited} epochs after its best; "
                f"give a longer --early-stopping-patience to go on"
            )


def _option_differences(theirs: dict[str, Any], ours: dict[str, Any]) -> list[str]:
    """What makes the two networks different; dropout may change on the way."""
    names = [name for name in ours if name not in ("dropout", "increment_scale")]
    return [f"{name} {theirs.get(name)} there, {ours[name]} here" for name in names if theirs.get(name) != ours[name]]


def _some_windows(inputs: TrainingInputs, role: int, name: str) -> Windows:
    windows = inputs.windows(role)
    if len(windows) == 0:
        length = inputs.spec.input_steps + inputs.spec.lead_steps
        raise DataError(
            f"{inputs.spec.source}: no {name} window of {length} consecutive complete times; "
            f"lower --input-steps or --lead-steps, choose other months, or mend the gaps"
            + "".join(f" ({note})" for note in inputs.notes if "are missing there" in note)
        )
    return windows


def _make_learner(
    network: torch.nn.Module, config: TrainConfig, spec: DataSpec, policy: DevicePolicy, processes: Processes
) -> Learner:
    statistics = spec.target.statistics
    scale = torch.from_numpy(statistics.increment_std_C)
    masks = torch.zeros(spec.target.input_channels - len(scale))
    weights = torch.from_numpy(spec.target.grid.area_weights())
    return Learner(
        network=network,
        loss=WeightedSquaredError(weights, scale[spec.target_indices]).to(policy.device),
        optimizer=make_optimizer(network, config, policy),
        scaler=torch.amp.GradScaler(policy.device.type, enabled=policy.use_grad_scaler),
        averaged=AveragedWeights(network, config.ema_decay),
        policy=policy,
        processes=processes,
        noise_C11=(config.input_noise * torch.cat([scale, masks]))[:, None, None].to(policy.device),
        clip_norm=config.gradient_clip_norm,
    )


@contextmanager
def _stop_requests() -> Iterator[list[int]]:
    """A list that a first SIGINT or SIGTERM is noted in, so that the step under way ends well; a second one kills."""
    requested: list[int] = []

    def note(number: int, _frame: object) -> None:
        requested.append(number)
        signal.signal(number, previous[signal.Signals(number)])
        print("\nstopping after this step; once more to stop at once", file=sys.stderr)

    previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield requested
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def write_history(path: Path, history: list[dict[str, float]]) -> None:
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
