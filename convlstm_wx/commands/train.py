"""train: from a file to checkpoints."""

import argparse
import logging
import shlex
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import partial
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convlstm_wx.commands.options import (
    DONE,
    STOPPED,
    add_command,
    add_settings,
    one_line,
    training_config,
    training_device,
)
from convlstm_wx.config import TrainConfig
from convlstm_wx.errors import ConfigError, ConvlstmWxError

if TYPE_CHECKING:
    from convlstm_wx.checkpoint import Checkpoint
    from convlstm_wx.training.logbook import Board
    from convlstm_wx.training.loop import Run

log = logging.getLogger(__name__)

LOGS = ("history.csv", "validation_rmse.csv")


def add(subparsers: Any) -> None:
    """Declare the command."""
    command = add_command(subparsers, "train", run, "Train a network on a regional grid.")
    output = add_settings(command)["Output"]
    output.add_argument(
        "--resume",
        metavar="PATH",
        help="go on from a checkpoint of this run, with its settings unless given anew; auto takes the newest whole "
        "one of the output folder, if there is one",
    )
    output.add_argument("--overwrite", action="store_true", help="replace a run that is in the folder")


def run(options: argparse.Namespace) -> int:
    """Train, from the start or from a checkpoint."""
    from convlstm_wx.checkpoint import best_of, load_checkpoint
    from convlstm_wx.data.inputs import prepare_training
    from convlstm_wx.distributed import joined
    from convlstm_wx.files import check_can_make, make_folder
    from convlstm_wx.training.autobatch import tried_run
    from convlstm_wx.training.logbook import check_tensorboard
    from convlstm_wx.training.summary import summary

    said = _remember_what_is_said()
    with joined() as processes:
        if not processes.is_main:
            logging.getLogger("convlstm_wx").setLevel("ERROR")
        is_auto = options.resume == "auto"
        if is_auto:
            options.resume = _newest(options)
        resume = load_checkpoint(options.resume) if options.resume else None
        config = training_config(options, resume.config.to_dict() if resume else {})
        folder = Path(config.output_dir or "")
        if is_auto and resume and _has_ended(resume, config):
            return _say_what_next(best_of(folder), config)
        _refuse_to_replace(folder, options)
        check_can_make(folder)
        if config.tensorboard:
            check_tensorboard()
        policy = training_device(config, local_rank=processes.local_rank)
        policy = policy.compiling() if config.compile else policy
        with processes.first_on_each_machine():  # it builds the data cache, if there is to be one
            inputs = prepare_training(config, processes=processes.local_size)
        # What fails at the longest rollout fails now, before anything is written.
        run, probed = tried_run(config, inputs, policy, folder, processes, resume)
        make_folder(folder)
        with _alone(run, said, overwrite=options.overwrite) if processes.is_main else nullcontext():
            for line in summary(run, inputs, probed):
                log.info(line)
            with _board(run) as board:
                result = run.train(board)
        log.info("memory used at most: %.1f GB", policy.peak_memory_bytes() / 2**30)
        policy.free_memory()
    return _say_what_next(result, config)


def _newest(options: argparse.Namespace) -> str | None:
    """What --resume auto goes on from."""
    from convlstm_wx.checkpoint import newest_checkpoint

    _refuse_both(options)
    options.resume = None
    folder = Path(training_config(options).output_dir or "")
    found = newest_checkpoint(folder)
    log.info("resuming from %s", found) if found else log.info("nothing to resume in %s: starting anew", folder)
    return str(found) if found else None


def _has_ended(resume: "Checkpoint", config: TrainConfig) -> bool:
    """Whether nothing is left to train, which is told; for a job that a queue starts again that is no mistake."""
    from convlstm_wx.training.saving import Progress, check_something_left

    try:
        check_something_left(config, Progress(**resume.training["progress"]))
    except ConfigError as ended:
        log.info("%s", ended)
        return True
    return False


def _refuse_both(options: argparse.Namespace) -> None:
    if options.resume and options.overwrite:
        raise ConfigError("--overwrite would delete what --resume goes on from; give one of the two")


def _refuse_to_replace(folder: Path, options: argparse.Namespace) -> None:
    _refuse_both(options)
    there = next((folder / name for name in ("last.pt", "interrupted.pt") if (folder / name).exists()), None)
    is_its_own = bool(options.resume) and Path(options.resume).resolve().parent == folder.resolve()
    if there and not (is_its_own or options.overwrite):
        remedy = "" if options.resume else ", or replace it with --overwrite"
        raise ConfigError(
            f"{folder} holds a run already: go on with --resume {there}, choose another --output-dir{remedy}"
        )


def _remove_run(folder: Path) -> None:
    """Delete what an earlier run left, and nothing else."""
    from convlstm_wx.checkpoint import RESUMABLE

    for pattern in (*RESUMABLE, "*.pt.old", *LOGS, "training.log", "tensorboard/events.out.tfevents.*"):
        for file in folder.glob(pattern):
            file.unlink()


# training.log


class _LogFile(logging.FileHandler):
    """A full disk is told once, where the checkpoint cannot be written, and not at every line."""

    def handleError(self, record: logging.LogRecord) -> None:
        pass

    def close(self) -> None:
        with suppress(OSError):
            super().close()


def _remember_what_is_said() -> MemoryHandler:
    """From now on, until there is a folder with a log."""
    said = MemoryHandler(capacity=10_000, flushLevel=logging.CRITICAL + 1)
    logging.getLogger("convlstm_wx").addHandler(said)
    return said


def _log_to_file(path: Path, said: MemoryHandler) -> logging.Handler:
    """What is said from now on, after what was said so far."""
    handler = _LogFile(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%S"))
    said.setTarget(handler)
    logging.getLogger("convlstm_wx").removeHandler(said)
    said.close()
    logging.getLogger("convlstm_wx").addHandler(handler)
    return handler


@contextmanager
def _alone(run: "Run", said: MemoryHandler, *, overwrite: bool) -> Iterator[None]:
    """The folder for this run alone, with its settings and a log that ends with the error, if there is one."""
    from convlstm_wx.checkpoint import RESUMABLE
    from convlstm_wx.files import alone_in, remove_unfinished
    from convlstm_wx.training.saving import write_config

    with alone_in(run.folder):
        remove_unfinished(run.folder, (*RESUMABLE, *LOGS, "config.json"))
        if overwrite:
            _remove_run(run.folder)
        file = _log_to_file(run.folder / "training.log", said)
        write_config(run.folder / "config.json", run.config)
        try:
            yield
        except ConvlstmWxError as error:
            file.handle(log.makeRecord(log.name, logging.ERROR, __file__, 0, one_line(str(error)), (), None))
            raise
        except Exception:
            file.handle(log.makeRecord(log.name, logging.ERROR, __file__, 0, "unexpected", (), sys.exc_info()))
            raise


def _board(run: "Run") -> "AbstractContextManager[Board | None]":
    """What TensorBoard shows; None if it was not asked for, or another process shows it."""
    if not (run.config.tensorboard and run.processes.is_main):
        return nullcontext()
    from convlstm_wx.commands.pictures import draw_example
    from convlstm_wx.training.logbook import tensorboard

    progress = run.progress
    is_validated = progress.step_in_epoch < run.steps_per_epoch  # else the last step's validation comes once more
    next_step = progress.global_step + is_validated
    return tensorboard(run.folder / "tensorboard", run.spec, next_step, partial(draw_example, run.spec))


def _say_what_next(result: Path, config: TrainConfig) -> int:
    data, path = shlex.join(config.data), shlex.quote(str(result))
    if result.name == "interrupted.pt":
        log.info("stopped; go on with: python train_convlstm.py --data %s --resume %s", data, path)
        return STOPPED
    log.info("done: %s", result)
    log.info("next: convlstm-wx forecast --checkpoint %s --data %s --output forecast.nc", path, data)
    log.info("      convlstm-wx evaluate --checkpoint %s --data %s --output evaluation/", path, data)
    return DONE
