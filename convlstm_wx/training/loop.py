"""The run: epochs of optimiser steps, validation, checkpoints, and an orderly end whatever happens."""

import logging
import math
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from convlstm_wx.checkpoint import Checkpoint, how_far
from convlstm_wx.config import TrainConfig, parse_rain_weights
from convlstm_wx.data.inputs import TrainingInputs
from convlstm_wx.data.loaders import TensorBatch, epoch_order, in_batches, load_batches
from convlstm_wx.data.rain import rain_emphasis
from convlstm_wx.data.records import channel_names
from convlstm_wx.data.spec import DataSpec
from convlstm_wx.data.splits import TRAIN, VALIDATION
from convlstm_wx.data.windows import Windows
from convlstm_wx.device import DevicePolicy
from convlstm_wx.distributed import Processes
from convlstm_wx.dressing import Residuals
from convlstm_wx.errors import ConfigError, DataError, TrainingError
from convlstm_wx.models.build import build, count_parameters
from convlstm_wx.models.compiling import compile_forward
from convlstm_wx.models.network import Network
from convlstm_wx.training.averaging import AveragedWeights
from convlstm_wx.training.blueprint import blueprint
from convlstm_wx.training.logbook import Board, postfix, write_rmse
from convlstm_wx.training.losses import make_loss, mean_loss
from convlstm_wx.training.memory import DoesNotFitError, told, too_little
from convlstm_wx.training.residuals import KeptResiduals
from convlstm_wx.training.saving import (
    HISTORY_COLUMNS,
    Progress,
    Saving,
    check_same_run,
    checkpoint_of,
    restore,
    why_ended,
    windows_per_step,
)
from convlstm_wx.training.schedule import EarlyStopping, Schedule, epochs_for
from convlstm_wx.training.skill import PhysicalErrors
from convlstm_wx.training.starting import check_same_start, start_from
from convlstm_wx.training.step import Learner, make_optimizer, seed_step

log = logging.getLogger(__name__)

MOST_SKIPPED_STEPS = 20
# The scaler of float16 begins too high on purpose, and halves itself with each step that is skipped.
MOST_SKIPPED_IN_HALF = {torch.bfloat16: 5, torch.float16: 10}

T = TypeVar("T")


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
        CheckpointError: if the checkpoint to resume was trained on other data, or its network or that of the checkpoint
            to start from has another shape.
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
        windows = _some_windows(inputs, TRAIN, "training")
        # Numbers, also where auto was asked for.
        epochs = config.num_epochs or (resume.config.num_epochs if resume else epochs_for(len(windows)))
        config = replace(config, lead_steps=inputs.spec.lead_steps, num_epochs=epochs)
        if config.num_workers is not None:
            policy = replace(policy, gathering_threads=config.num_workers)
        self.config, self.policy, self.folder, self.processes = config, policy, folder, processes
        self.spec = inputs.spec
        emphasis = rain_emphasis(parse_rain_weights(config.rain_weights), self.spec)
        self.training_windows = replace(windows, emphasis=emphasis)
        self.validation_windows = replace(_some_windows(inputs, VALIDATION, "validation"), emphasis=emphasis)
        self.blueprint = blueprint(config, self.spec, inputs.linear)
        torch.manual_seed(config.seed)
        network = build(*self.blueprint)
        if inputs.linear is not None and network.blend is not None:
            network.blend.fill(inputs.linear, channel_names(self.spec))
        self.start = ""  # in words, if it is not from random weights
        if config.init_from and resume is None:
            self.start = start_from(config.init_from, network, self.blueprint, self.spec)
        policy.place(network)
        if policy.compile_mode:
            leads = config.lead_steps if config.curriculum_epochs else 1
            compile_forward(network, policy.compile_mode, lead_counts=leads)
        self.parameters = count_parameters(network)
        self.learner = _make_learner(network, config, self.spec, policy, processes)
        self._windows_per_step = windows_per_step(config, processes)
        self.progress = Progress(windows_per_step=self._windows_per_step)
        self.steps_per_epoch = math.ceil(len(self.training_windows) / self._windows_per_step)
        self.schedule = Schedule(config, self.steps_per_epoch)
        self.resumed_at: tuple[int, int] | None = None
        self.counted_until = time.monotonic()
        self.saving = Saving(folder, config, processes, self.checkpoint)
        self.was_stopped = False  # by a signal, which may ask a run to stop that ends by itself
        self.board: Board | None = None
        self.residuals: Residuals | None = None  # of the latest validation
        if resume is not None:
            check_same_start(config, resume)
            check_same_run(resume, self.spec, self.blueprint, config)
            self.progress = restore(resume, self.learner, config, self.steps_per_epoch)
            self.resumed_at = how_far(resume)
            self.policy = self.learner.policy
            if ended := why_ended(config, resume):
                raise ConfigError(ended)

    @property
    def _windows_seen(self) -> int:
        """In the epoch under way."""
        return min(self.progress.step_in_epoch * self._windows_per_step, len(self.training_windows))

    def train(self, board: Board | None = None) -> Path:
        """Run to the end, or to a request to stop (Ctrl-C, SIGTERM).

        Args:
            board: of TensorBoard, to be written to.

        Returns:
            The checkpoint to use: best.pt (last.pt if a resumed run in a new folder found none better than before), or
            interrupted.pt after a request to stop.

        Raises:
            TrainingError: if the loss stays non-finite; earlier checkpoints are whole.
        """
        self.board = board
        with told(self.policy):
            return self._train()

    def _train(self) -> Path:
        persistence = self._adapting(self._persistence_loss)
        stopping = EarlyStopping(self.config.early_stopping_patience, self.progress.best, self.progress.waited)
        self.counted_until = time.monotonic()
        self.saving.start_clock()
        if self.resumed_at:
            self.saving.set_aside(self.resumed_at)
        with _stop_requests() as stop_requested:
            while self.progress.epoch <= self.config.num_epochs and not stopping.should_stop:
                windows_per_s = self._adapting(lambda: self._epoch(stop_requested))
                if windows_per_s is None:
                    self.was_stopped = True
                    return self.saving.save("interrupted.pt")
                self._finish_epoch(stopping, persistence, windows_per_s)
            self.was_stopped = self.processes.any(bool(stop_requested))  # in the last validation
        if stopping.should_stop:
            log.info("no better validation loss for %d epochs: stopped early", stopping.patience)
        best = self.folder / "best.pt"
        return best if best.exists() else self.folder / "last.pt"

    def _adapting(self, act: Callable[[], T]) -> T:
        """An act; as often as it runs out of memory it is taken up again with smaller micro-batches."""
        while True:
            with suppress(DoesNotFitError):
                return act()
            self.shrink()  # only now is what was tried out of memory

    @property
    def micro_batch(self) -> int:
        """Windows at once: as asked, or as many as were found to fit."""
        return self.progress.micro_batch or self.config.batch_size

    def shrink(self) -> None:
        """Half as many windows at once from now on; an optimiser step keeps its windows.

        Raises:
            TrainingError: if that is not wanted, or there is one window only.
        """
        self.learner.forget_gradients()
        self.policy.free_memory()
        size = self.micro_batch
        if size == 1 or not self.config.auto_batch:
            raise TrainingError(too_little(self.config, self.policy, size))
        self.progress.micro_batch = (size + 1) // 2
        log.warning(
            "out of memory with %d windows at once: going on with %d, in twice as many micro-batches "
            "(--no-auto-batch to stop instead)",
            *(size, self.progress.micro_batch),
        )

    def _use_float32(self, why: str) -> None:
        log.warning("%s: float32 instead of half precision for the rest of the run", why)
        self.progress.half_failed = True
        self.progress.skipped = 0
        self.learner.use_float32()
        self.policy = self.learner.policy

    def _epoch(self, stop_requested: list[int]) -> float | None:
        """The rest of the epoch under way; returns the windows per second, or None if a stop was requested."""
        progress, started = self.progress, time.monotonic()
        steps = self._micro_batches(progress.epoch)[progress.step_in_epoch :]
        batches = self.load(self.training_windows, [batch for step in steps for batch in step])
        bar = tqdm(
            total=len(self.training_windows),
            initial=self._windows_seen,
            desc=f"epoch {progress.epoch}/{self.config.num_epochs}",
            unit=" windows",
            disable=None if self.processes.is_main else True,
            leave=False,
        )
        seen_before = self._windows_seen
        with bar:
            for step in steps:
                sums = self._learn(islice(batches, len(step)))
                progress.step_in_epoch += 1
                progress.global_step += 1
                self._count_skipped(is_skipped=sums is None)
                error, points = sums or (0.0, 0.0)
                progress.error, progress.points = progress.error + error, progress.points + points
                bar.update(self._windows_seen - bar.n)
                if progress.points:
                    loss = progress.error / progress.points
                    bar.set_postfix_str(postfix(loss, self._learning_rate()), refresh=False)
                if self.board is not None:
                    norm = self.learner.gradient_norm
                    self.board.step(progress.global_step, error, points, self._learning_rate(), norm)
                if self.processes.any(bool(stop_requested)):
                    return None
                self.saving.save_now_and_then()
            return (self._windows_seen - seen_before) / (time.monotonic() - started)

    def _learn(self, batches: Iterable[TensorBatch]) -> tuple[float, float] | None:
        """One optimiser step, as the schedule has it."""
        step = self.progress.global_step
        seed_step(self.config.seed, step, self.processes.rank)
        lead_steps = self.schedule.lead_steps(step)
        return self.learner.learn(
            (batch.first_leads(lead_steps) for batch in batches),
            self._learning_rate(),
            truth_share=self.schedule.truth_share(step),
        )

    def _micro_batches(self, epoch: int) -> list[list[np.ndarray]]:
        """This process's micro-batches of each optimiser step of an epoch."""
        order = epoch_order(len(self.training_windows), seed=self.config.seed, epoch=epoch)
        rank, world_size = self.processes.rank, self.processes.world_size
        steps = in_batches(order, self._windows_per_step)
        return [in_batches(step[rank::world_size], self.micro_batch) for step in steps]

    def load(self, windows: Windows, batches: list[np.ndarray]) -> Iterator[TensorBatch]:
        """Batches of window numbers, on the device."""
        return load_batches(
            windows,
            batches,
            self.policy.device,
            num_workers=self.policy.gathering_threads,
            pin_memory=self.policy.pin_memory,
            fill_to=self.micro_batch if self.policy.constant_shapes else 0,
        )

    def _validation_batches(self) -> Iterator[TensorBatch]:
        return self.load(self.validation_windows, in_batches(self._validated_here, self.micro_batch))

    @property
    def _validated_here(self) -> np.ndarray:
        return np.arange(self.processes.rank, len(self.validation_windows), self.processes.world_size)

    def _physical_errors(self) -> PhysicalErrors:
        windows = self.validation_windows
        init_times = windows.times[windows.init_indices[self._validated_here]]
        return PhysicalErrors(self.spec, init_times, self.policy.device)

    def _learning_rate(self) -> float:
        losses = [row["validation_loss"] for row in self.progress.history]
        return self.schedule.learning_rate(self.progress.global_step, losses)

    def _count_skipped(self, *, is_skipped: bool) -> None:
        """Note that a step was skipped, or not; too many in a row end half precision, or else the run."""
        progress, half = self.progress, self.policy.amp_dtype
        progress.skipped = progress.skipped + 1 if is_skipped else 0
        if not is_skipped:
            return
        log.warning("step %d: loss or gradient not finite, step skipped", progress.global_step)
        if half is not None and progress.skipped >= MOST_SKIPPED_IN_HALF[half]:
            self._use_float32(f"{progress.skipped} steps skipped in a row")
        elif progress.skipped >= MOST_SKIPPED_STEPS:
            raise TrainingError(
                f"loss or gradient was not finite {progress.skipped} steps in a row: stopped at step "
                f"{progress.global_step}. Lower --learning-rate, or check the data's extremes with convlstm-wx "
                f"inspect; --resume auto goes on from the last checkpoint."
            )

    def _persistence_loss(self) -> float:
        errors, batches = self._physical_errors(), self._validation_batches()
        loss = self.learner.persistence_loss(batches, self.spec.target_indices, errors.add_persistence)
        self.progress.persistence_rmse = errors.rmse(self.processes)
        return loss

    def _validation_loss(self) -> float:
        errors = self._physical_errors()
        kept = KeptResiduals(self.spec, errors.init_times if self.processes.is_main else errors.init_times[:0])

        def watch(forecast_BLDHW: Tensor, batch: TensorBatch) -> None:
            errors.add(forecast_BLDHW, batch)
            kept.add(forecast_BLDHW, batch)
            if self.board is not None:
                self.board.watch(errors.init_times[0], forecast_BLDHW, batch)

        self.learner.fit_blend(self._validation_batches())
        loss = self.learner.validate(self._validation_batches(), watch)
        self.progress.rmse[self.progress.epoch], self.progress.rain = errors.with_rain_means(self.processes)
        self.residuals = kept.residuals()
        return loss

    def _finish_epoch(self, stopping: EarlyStopping, persistence: float, windows_per_s: float) -> None:
        """Validate, note, save."""
        progress = self.progress
        learning_rate = self._learning_rate()
        validation = self._adapting(self._validation_loss)
        if not math.isfinite(validation) and self.policy.amp_dtype is not None:
            self._use_float32(f"the validation loss is {validation}")
            validation = self._adapting(self._validation_loss)
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
        if self.board is not None:
            losses = {"training": row[1], "validation": validation, "persistence": persistence}
            self.board.epoch(progress.global_step, losses, progress.rmse[finished])
        if self.processes.is_main:
            write_rmse(self.folder / "validation_rmse.csv", self.spec, progress.rmse, progress.persistence_rmse)
        self.saving.write_epoch(finished, progress.history, self.residuals, is_best=is_best)

    def _count_time(self) -> None:
        now = time.monotonic()
        self.progress.elapsed_s += now - self.counted_until
        self.counted_until = now

    def checkpoint(self) -> Checkpoint:
        """The run as it stands."""
        self._count_time()
        return checkpoint_of(self.learner, self.progress, self.config, self.spec, self.blueprint)


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
    network: Network, config: TrainConfig, spec: DataSpec, policy: DevicePolicy, processes: Processes
) -> Learner:
    if config.scheduled_sampling and not network.feeds_back:
        raise ConfigError(f"--scheduled-sampling: {config.model} never sees its own forecast; leave it out")
    if config.scheduled_sampling and policy.compile_mode:
        raise ConfigError("--compile has no effect on training with --scheduled-sampling; drop one of the two")
    statistics = spec.target.statistics
    scale = torch.from_numpy(statistics.increment_std_C)
    masks = torch.zeros(spec.target.input_channels - len(scale))
    weights = torch.from_numpy(spec.target.grid.area_weights())
    return Learner(
        network=network,
        loss=make_loss(config, weights, scale[spec.target_indices], spec.targets).to(policy.device),
        optimizer=make_optimizer(network, config, policy),
        scaler=policy.make_scaler(),
        averaged=AveragedWeights(network, config.ema_decay),
        policy=policy,
        processes=processes,
        noise_C11=(config.input_noise * torch.cat([scale, masks]))[:, None, None].to(policy.device),
        clip_norm=config.gradient_clip_norm,
        lead_power=config.lead_weighting,
    )


@contextmanager
def _stop_requests() -> Iterator[list[int]]:
    """A list that a first SIGINT, SIGTERM or SIGHUP is noted in, so that the step ends well; a second one kills."""
    requested: list[int] = []

    def note(number: int, _frame: object) -> None:
        requested.append(number)
        signal.signal(number, previous[signal.Signals(number)])
        with suppress(OSError):  # the terminal may be what went away
            print("\nstopping after this step; once more to stop at once", file=sys.stderr)

    heard = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # under nohup it is
        heard.append(signal.SIGHUP)
    previous = {number: signal.signal(number, note) for number in heard}
    try:
        yield requested
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
