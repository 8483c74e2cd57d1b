"""train: from a file to checkpoints."""

import argparse
import logging
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convlstm_wx.commands.members import Member, plan
from convlstm_wx.commands.options import DONE, STOPPED, add_command, add_settings, one_line, training_device
from convlstm_wx.config import AUTO, TrainConfig
from convlstm_wx.errors import ConvlstmWxError

if TYPE_CHECKING:
    from convlstm_wx.data.inputs import TrainingInputs
    from convlstm_wx.data.spec import DataSpec
    from convlstm_wx.device import DevicePolicy
    from convlstm_wx.distributed import Processes
    from convlstm_wx.training.logbook import Board
    from convlstm_wx.training.loop import Run

log = logging.getLogger(__name__)

LOGS = ("history.csv", "validation_rmse.csv")


def add(subparsers: Any) -> None:
    """Declare the command."""
    command = add_command(subparsers, "train", run, "Train a network, or an ensemble of them, on a regional grid.")
    output = add_settings(command)["Output"]
    output.add_argument(
        "--resume",
        metavar="PATH",
        help="go on from a checkpoint of this run, or its folder, with its settings unless given anew; auto takes the "
        "newest whole one of the output folder, if there is one",
    )
    output.add_argument("--overwrite", action="store_true", help="replace a run that is in the folder")


def run(options: argparse.Namespace) -> int:
    """Train, from the start or from a checkpoint; the members of an ensemble one after the other."""
    from convlstm_wx.data.inputs import prepare_training
    from convlstm_wx.distributed import joined
    from convlstm_wx.files import check_can_make
    from convlstm_wx.training.logbook import check_tensorboard

    said = _remember_what_is_said()
    with joined() as processes:
        if not processes.is_main:
            logging.getLogger("convlstm_wx").setLevel("ERROR")
        config, members = plan(options)
        result: Path | None = None
        is_stopped = is_unfinished = False
        if all(member.has_ended for member in members):
            _say_what_next(config, result)
            return DONE
        check_can_make(Path(config.output_dir or ""))
        if config.tensorboard:
            check_tensorboard()
        policy = training_device(config, local_rank=processes.local_rank)
        policy = policy.compiling() if config.compile else policy
        with processes.first_on_each_machine():  # it builds the data cache, if there is to be one
            inputs = prepare_training(config, processes=processes.local_size, known=_known(members))
        if config.members > 1:
            config, members = _alike(config, members, inputs, policy, processes)
        heard, overwrite = tuple(said.buffer), options.overwrite
        for number, member in enumerate(members, 1):
            if member.has_ended:
                continue
            if config.members > 1:
                _remember_what_is_said(heard)
                log.info("member       %d of %d, seed %d", number, config.members, member.config.seed)
            result, is_stopped = _train(member, config, inputs, policy, processes, overwrite=overwrite)
            overwrite = False  # all that was there is gone
            if is_stopped:
                left = [each for each in members[number:] if not each.has_ended]
                is_unfinished = result.name == "interrupted.pt" or bool(left)
                break
    _say_what_next(config, result, is_unfinished=is_unfinished)
    return STOPPED if is_stopped else DONE


def _known(members: Sequence[Member]) -> "DataSpec | None":
    """What a run that is resumed knows of its data; None where all start anew."""
    from convlstm_wx.checkpoint import load_checkpoint

    resumed = next((member.resume for member in members if member.resume), None)
    return load_checkpoint(resumed).spec if resumed else None


def _alike(
    config: TrainConfig,
    members: list[Member],
    inputs: "TrainingInputs",
    policy: "DevicePolicy",
    processes: "Processes",
) -> tuple[TrainConfig, list[Member]]:
    """Members that differ by their seed only: one batch size for all, if it is to be found.

    Raises:
        CheckpointError: if those that have ended already learned from other data, or with another network or loss.
    """
    from convlstm_wx.checkpoint import load_checkpoint
    from convlstm_wx.training.autobatch import find_batch_size
    from convlstm_wx.training.blueprint import blueprint
    from convlstm_wx.training.saving import check_same_run

    for member in members:
        if member.has_ended and member.resume:
            network = blueprint(member.config, inputs.spec, inputs.linear)
            check_same_run(load_checkpoint(member.resume), inputs.spec, network, member.config)
    if config.batch_size != AUTO:
        return config, members
    found = find_batch_size(config, inputs, policy, Path(config.output_dir or ""), processes)
    return replace(config, batch_size=found), [
        replace(member, config=replace(member.config, batch_size=found)) for member in members
    ]


def _train(
    member: Member,
    config: TrainConfig,
    inputs: "TrainingInputs",
    policy: "DevicePolicy",
    processes: "Processes",
    *,
    overwrite: bool,
) -> tuple[Path, bool]:
    """One network to its end: the checkpoint to use or interrupted.pt, and whether a stop was requested."""
    from convlstm_wx.checkpoint import load_checkpoint
    from convlstm_wx.files import make_folder
    from convlstm_wx.training.autobatch import tried_run
    from convlstm_wx.training.summary import summary

    resume = load_checkpoint(member.resume) if member.resume else None
    policy.free_memory()
    # What fails at the longest rollout fails now, before anything is written.
    run, probed = tried_run(member.config, inputs, policy, member.folder, processes, resume)
    make_folder(member.folder)
    with _alone(run, config, overwrite=overwrite) if processes.is_main else nullcontext():
        for line in summary(run, inputs, probed):
            log.info(line)
        with _board(run) as board:
            result = run.train(board), run.was_stopped
    log.info("memory used at most: %.1f GB", policy.peak_memory_bytes() / 2**30)
    del run
    policy.free_memory()
    return result


def _remove_runs(folder: Path) -> None:
    """Delete what an earlier run left, or the members of an ensemble, and nothing else."""
    from convlstm_wx.checkpoint import members_in
    from convlstm_wx.files import alone_in

    _remove_run(folder)
    for member in members_in(folder):
        with alone_in(member):
            _remove_run(member)
            (member / "config.json").unlink(missing_ok=True)
            for place in (member / "tensorboard", member):
                with suppress(OSError):  # it is not there, or somebody's own files are in it
                    place.rmdir()


def _remove_run(folder: Path) -> None:
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


def _remember_what_is_said(heard: Sequence[logging.LogRecord] = ()) -> MemoryHandler:
    """From now on, until there is a folder with a log, after what was heard before; the log so far ends."""
    logger = logging.getLogger("convlstm_wx")
    for handler in logger.handlers[:]:
        if isinstance(handler, _LogFile | MemoryHandler):
            logger.removeHandler(handler)
            handler.close()
    said = MemoryHandler(capacity=10_000, flushLevel=logging.CRITICAL + 1)
    said.buffer.extend(heard)
    logger.addHandler(said)
    return said


def _log_to_file(path: Path) -> logging.Handler:
    """What is said from now on, after what was said so far."""
    logger = logging.getLogger("convlstm_wx")
    handler = _LogFile(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%S"))
    for said in [said for said in logger.handlers if isinstance(said, MemoryHandler)]:
        said.setTarget(handler)
        logger.removeHandler(said)
        said.close()
    logger.addHandler(handler)
    return handler


@contextmanager
def _alone(run: "Run", config: TrainConfig, *, overwrite: bool) -> Iterator[None]:
    """The folder for this run alone, with its settings and a log that ends with the error, if there is one.

    A member of an ensemble holds the ensemble's folder too, where the settings of all of them are.
    """
    from convlstm_wx.checkpoint import RESUMABLE
    from convlstm_wx.files import alone_in, make_folder, remove_unfinished
    from convlstm_wx.training.saving import write_config

    folder = Path(config.output_dir or "")
    with ExitStack() as held:
        held.enter_context(alone_in(folder))
        if overwrite:
            _remove_runs(folder)
        if config.members > 1:
            write_config(folder / "config.json", config)
            make_folder(run.folder)
            held.enter_context(alone_in(run.folder))
        remove_unfinished(run.folder, (*RESUMABLE, *LOGS, "config.json"))
        file = _log_to_file(run.folder / "training.log")
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


def _say_what_next(config: TrainConfig, result: Path | None, *, is_unfinished: bool = False) -> None:
    """How to go on from the last run's result, or, if there was nothing to train, from what is in the folder."""
    from convlstm_wx.checkpoint import best_of

    folder = Path(config.output_dir or "")
    data, place = shlex.join(config.data), shlex.quote(str(folder))
    if is_unfinished:
        rest = f"--output-dir {place} --resume auto" if config.members > 1 else f"--resume {shlex.quote(str(result))}"
        log.info("stopped; go on with: python train_convlstm.py --data %s %s", data, rest)
        return
    log.info("done: %s", f"{config.members} members in {folder}" if config.members > 1 else result or best_of(folder))
    log.info("next: convlstm-wx forecast --checkpoint %s --data %s --output forecast.nc", place, data)
    log.info("      convlstm-wx evaluate --checkpoint %s --data %s --output evaluation/", place, data)
