"""What is told about a run while it learns: the progress bar's words, validation_rmse.csv, TensorBoard."""

import csv
import io
import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from convlstm_wx.data.loaders import TensorBatch
from convlstm_wx.data.spec import DataSpec
from convlstm_wx.errors import ConfigError
from convlstm_wx.files import write_text
from convlstm_wx.training.skill import Rmse

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

log = logging.getLogger(__name__)

RMSE_COLUMNS = ("epoch", "variable", "unit", "lead_hours", "rmse", "persistence_rmse")
STEPS_PER_POINT = 10  # of TensorBoard's curves inside an epoch; each point is the mean of so many steps


def postfix(loss: float, learning_rate: float) -> str:
    """What stands behind the progress bar: the epoch's mean loss so far, and the learning rate."""
    return f"loss={loss:.3f}, lr={learning_rate:.1e}"


def write_rmse(path: Path, spec: DataSpec, by_epoch: Mapping[int, Rmse], persistence: Rmse) -> None:
    """validation_rmse.csv, one row for each epoch, variable and lead time, replaced as a whole.

    Raises:
        ConfigError: if it cannot be written.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(RMSE_COLUMNS)
    units, hours = channel_units(spec), lead_hours(spec)
    for epoch, rmse in by_epoch.items():
        for name, values in rmse.items():
            for each in zip(hours, values, persistence[name]):
                writer.writerow([epoch, name, units[name], *(f"{number:.6g}" for number in each)])
    write_text(path, text.getvalue())


def channel_units(spec: DataSpec) -> dict[str, str]:
    """The unit of each target channel, as the file writes it."""
    return {channel.name: spec.target.attributes[channel.variable]["units"] for channel in spec.targets}


def lead_hours(spec: DataSpec) -> list[float]:
    """The lead times of training."""
    return [step * spec.step_s / 3600 for step in range(1, spec.lead_steps + 1)]


# TensorBoard


@dataclass(frozen=True)
class Example:
    """One window's forecast, normalised.

    Attributes:
        init_time: its last input time.
        forecast_LDHW, truth_LDHW: the truth is NaN where missing.
    """

    init_time: np.datetime64
    forecast_LDHW: np.ndarray
    truth_LDHW: np.ndarray


Draw = Callable[[Example], dict[str, np.ndarray]]  # pictures [height, width, 3], uint8, by title


def check_tensorboard() -> None:
    """See that TensorBoard can be written to.

    Raises:
        ConfigError: naming what to install.
    """
    try:
        import torch.utils.tensorboard  # noqa: F401 - an optional package, asked for only here
    except ImportError as error:
        raise ConfigError(
            "--tensorboard needs the tensorboard package, not installed here: pip install 'convlstm_wx[logs]'"
        ) from error


@contextmanager
def tensorboard(folder: Path, spec: DataSpec, next_step: int, draw: Draw) -> Iterator["Board"]:
    """A board that writes event files into a folder, until the end of the block.

    Args:
        folder: made if need be.
        spec: names and units.
        next_step: what stands there of this optimiser step and later ones, of a run that went further before it was
            killed, is hidden.
        draw: makes pictures of a forecast.
    """
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder), purge_step=next_step)
    with _failing_quietly():
        try:
            yield Board(writer, spec, draw)
        finally:
            with suppress(OSError):
                writer.close()


@contextmanager
def _failing_quietly() -> Iterator[None]:
    """TensorBoard writes in a thread, whose error its next call gives us: no traceback on the screen before that."""
    usual = threading.excepthook

    def hook(failure: threading.ExceptHookArgs) -> None:
        if not issubclass(failure.exc_type, OSError):
            usual(failure)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = usual


class Board:
    """Curves and pictures over optimiser steps.

    Args:
        writer: of TensorBoard.
        spec: names and units.
        draw: makes pictures of a forecast.
    """

    def __init__(self, writer: "SummaryWriter", spec: DataSpec, draw: Draw):
        self.writer, self.spec, self.draw = writer, spec, draw
        self.has_failed = False
        self.error = self.points = 0.0
        self.example: Example | None = None

    def step(self, global_step: int, error: float, points: float, learning_rate: float, gradient_norm: float) -> None:
        """An optimiser step has been taken."""
        self.error, self.points = self.error + error, self.points + points
        if global_step % STEPS_PER_POINT == 0 and self.points:
            values = {"loss": self.error / self.points, "learning_rate": learning_rate, "gradient_norm": gradient_norm}
            self._add({f"step/{name}": value for name, value in values.items()}, global_step)
            self.error = self.points = 0.0

    def watch(self, init_time: np.datetime64, forecast_BLDHW: Tensor, batch: TensorBatch) -> None:
        """Keep the first forecast of a validation pass."""
        if self.example is None:
            truth = batch.y_BLDHW[0].masked_fill(batch.valid_BLDHW[0] == 0, float("nan"))
            fields = (tensor.float().cpu().numpy() for tensor in (forecast_BLDHW[0], truth))
            self.example = Example(init_time, *fields)

    def epoch(self, global_step: int, losses: Mapping[str, float], rmse: Rmse) -> None:
        """An epoch has been validated."""
        self._add({f"loss/{name}": value for name, value in losses.items()}, global_step)
        units, hours = channel_units(self.spec), lead_hours(self.spec)
        for name, values in rmse.items():
            self._add({f"RMSE {name} ({units[name]})/+{h:g} h": v for h, v in zip(hours, values)}, global_step)
        pictures = self.draw(self.example) if self.example is not None else {}
        self.example = None
        with self._writing():
            for title, pixels in pictures.items():
                self.writer.add_image(f"forecast/{title}", pixels, global_step, dataformats="HWC")
            self.writer.flush()  # before the checkpoint: what is resumed from is never further on than the curves

    def _add(self, values: Mapping[str, float], global_step: int) -> None:
        with self._writing():
            for name, value in values.items():
                self.writer.add_scalar(name, value, global_step)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Curves are not worth a run: what cannot be written is told once."""
        try:
            yield
        except OSError as error:
            if not self.has_failed:
                log.warning("TensorBoard: %s; its curves end here, the run goes on", error.strerror or error)
            self.has_failed = True
