"""What experiments are made of: trainings that go on after a stop, are never repeated, and are scored."""

import argparse
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convlstm_wx.commands import evaluate as evaluation
from convlstm_wx.commands import train as training_command
from convlstm_wx.commands.making import load_members, open_trained
from convlstm_wx.commands.options import DONE
from convlstm_wx.commands.unseen import plan_unseen
from convlstm_wx.config import TrainConfig

if TYPE_CHECKING:
    import xarray as xr

    from convlstm_wx.forecast.rollout import Trained

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Training:
    """One training of an experiment.

    Attributes:
        name: of its settings among the others'.
        config: these settings, with seed and folder.
    """

    name: str
    config: TrainConfig

    @property
    def folder(self) -> Path:
        """Of checkpoints, forecast and evaluation."""
        return Path(self.config.output_dir or "")

    @property
    def best(self) -> Path:
        """The checkpoint to score."""
        return self.folder / "best.pt"

    @property
    def last(self) -> Path:
        """The checkpoint with the whole history."""
        return self.folder / "last.pt"

    @property
    def forecast(self) -> Path:
        """Of the held-out months."""
        return self.folder / "forecast.nc"

    @property
    def report(self) -> Path:
        """What evaluate writes last."""
        return self.folder / "evaluation" / "report.html"

    def is_trained(self) -> bool:
        """Whether all epochs are done, or training stopped early."""
        from convlstm_wx.checkpoint import load_checkpoint
        from convlstm_wx.training.saving import why_ended

        return self.best.exists() and self.last.exists() and bool(why_ended(self.config, load_checkpoint(self.last)))


def request(config: TrainConfig) -> dict[str, Any]:
    """All that results depend on but the seed, of which more may be asked for later, and the machine."""
    from convlstm_wx.data.cache import fingerprint

    apart = {entry.name for entry in fields(TrainConfig) if entry.metadata["group"] in ("Device", "Output")} | {"seed"}
    entries = {name: value for name, value in config.to_dict().items() if name not in apart}
    return entries | {"data files": fingerprint([*config.data, *config.upstream_data])}


def train(training: Training) -> bool:
    """Train, or go on; False if it was stopped."""
    if training.is_trained():
        log.info("trained already: %s", training.best)
        return True
    options = _options(training_command, ["train"])
    for name, value in training.config.to_dict().items():
        setattr(options, name, value)
    options.resume = "auto"
    with _own_log():
        if training_command.run(options) == DONE:
            return True
    log.info("what is here already is kept: run the same command again to go on")
    return False


@contextmanager
def _own_log() -> Iterator[None]:
    """A training's log file ends with the training."""
    logger = logging.getLogger("convlstm_wx")
    before = logger.handlers[:]
    try:
        yield
    finally:
        for handler in logger.handlers[:]:
            if handler not in before:
                logger.removeHandler(handler)
                handler.close()


def _options(command: Any, arguments: Sequence[str]) -> argparse.Namespace:
    """Those of another command, as its own parser gives them."""
    parser = argparse.ArgumentParser()
    command.add(parser.add_subparsers())
    return parser.parse_args(arguments)


def choices(config: TrainConfig) -> argparse.Namespace:
    """Of making forecasts: the held-out months, on the device of training."""
    return argparse.Namespace(
        months=None,
        allow_seen=False,
        lead_steps=None,
        batch_size=16,
        device=config.device,
        use_amp=config.use_amp,
        memory_budget=None,
    )


def is_newer(made: Path, source: Path) -> bool:
    """Whether something is there, and made after its source."""
    return made.exists() and made.stat().st_mtime >= source.stat().st_mtime


def forecast(training: Training, dataset: "xr.Dataset") -> None:
    """The held-out months, by the best checkpoint; stopped, the same call goes on."""
    from convlstm_wx.forecast.writing import forecast_to_file

    if is_newer(training.forecast, training.best):
        log.info("forecast already: %s", training.forecast)
        return
    plan, _ = plan_unseen(choices(training.config), load(training, dataset), dataset)
    forecast_to_file(plan, training.forecast, data_files=request(training.config)["data files"], restart=True)


def load(training: Training, dataset: "xr.Dataset") -> list["Trained"]:
    """The best checkpoint, and the data of its upstream regions."""
    return open_trained(load_members(str(training.best)), dataset, None)


def evaluate(training: Training, *, confidence: float = 0.95) -> None:
    """Score the forecast."""
    if is_newer(training.report, training.forecast):
        log.info("evaluated already: %s", training.report.parent)
        return
    arguments = ["evaluate", "--checkpoint", str(training.best), "--forecast", str(training.forecast)]
    arguments += ["--output", str(training.report.parent), "--confidence", str(confidence)]
    evaluation.run(_options(evaluation, [*arguments, "--data", *training.config.data]))
