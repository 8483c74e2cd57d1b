"""What train is to train: one network or the members of an ensemble, each from the start or from a checkpoint."""

import argparse
import json
import logging
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from convlstm_wx.commands.options import training_config
from convlstm_wx.config import AUTO, BEFORE_THERE_WAS_A_SETTING, TrainConfig
from convlstm_wx.errors import ConfigError

if TYPE_CHECKING:
    from convlstm_wx.checkpoint import Checkpoint

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Member:
    """One network of a training.

    Attributes:
        config: of its run alone, with its seed and its folder.
        resume: the checkpoint that it goes on from; None: from the start.
        has_ended: whether nothing is left to train.
    """

    config: TrainConfig
    resume: Path | None = None
    has_ended: bool = False

    @property
    def folder(self) -> Path:
        """Of its run."""
        return Path(self.config.output_dir or "")


def plan(options: argparse.Namespace) -> tuple[TrainConfig, list[Member]]:
    """The settings of a training, and its members: one, or those of an ensemble, by number.

    Raises:
        ConfigError: for wrong settings, or a run in the folder that would be replaced or mixed with another.
        CheckpointError: for a checkpoint that cannot be read.
    """
    from convlstm_wx.checkpoint import load_checkpoint, members_in, newest_checkpoint

    if options.resume and options.overwrite:
        raise ConfigError("--overwrite would delete what --resume goes on from; give one of the two")
    is_auto = options.resume == "auto"
    if is_auto:
        options.resume = None
        folder = Path(training_config(options).output_dir or "")
        config = _ensemble_config(options, folder)
        if config.members > 1 or members_in(folder):
            _refuse_to_mix(folder, config.members)
            return config, [_going_on(each) for each in _configs(config)]
        options.resume = newest_checkpoint(folder)
        _say_where_from(options.resume, folder)
    elif options.resume and os.path.isdir(options.resume):  # unlike Path.is_dir it raises nothing
        options.resume = _furthest_in(Path(options.resume))
    resume = load_checkpoint(options.resume) if options.resume else None
    config = training_config(options, resume.config.to_dict() if resume else {})
    if config.members > 1 and resume:
        raise ConfigError(f"--resume {options.resume}: goes on with one network; with --members give --resume auto")
    folder = Path(config.output_dir or "")
    if not options.overwrite:
        _refuse_to_replace(folder, config, options.resume)
    path = Path(options.resume) if options.resume else None
    has_ended = bool(is_auto and resume and _has_ended(resume, config))
    return config, [Member(each, path, has_ended) for each in _configs(config)]


def _furthest_in(folder: Path) -> Path:
    """The checkpoint of a run's folder to go on from.

    Raises:
        ConfigError: if the folder is an ensemble's, or nobody's.
        CheckpointError: if there are checkpoints, and none can be read.
    """
    from convlstm_wx.checkpoint import members_in, newest_checkpoint

    if members_in(folder):
        raise ConfigError(f"--resume {folder}: is an ensemble; go on with --output-dir {folder} --resume auto")
    found = newest_checkpoint(folder)
    if found is None:
        raise ConfigError(f"--resume {folder}: there is no checkpoint in this folder; name that of a run")
    _say_where_from(found, folder)
    return found


def _configs(config: TrainConfig) -> list[TrainConfig]:
    """Of each member's run."""
    from convlstm_wx.checkpoint import member_folder

    if config.members == 1:
        return [config]
    folder = Path(config.output_dir or "")
    return [
        replace(config, members=1, seed=config.seed + number, output_dir=str(member_folder(folder, number + 1)))
        for number in range(config.members)
    ]


def _going_on(config: TrainConfig) -> Member:
    """A member of an ensemble, from the newest checkpoint of its folder."""
    from convlstm_wx.checkpoint import load_checkpoint, newest_checkpoint

    folder = Path(config.output_dir or "")
    found = newest_checkpoint(folder)
    _say_where_from(found, folder)
    return Member(config, found, found is not None and _has_ended(load_checkpoint(found), config))


def _say_where_from(found: Path | None, folder: Path) -> None:
    log.info("resuming from %s", found) if found else log.info("nothing to resume in %s: starting anew", folder)


def _has_ended(resume: "Checkpoint", config: TrainConfig) -> bool:
    """Whether nothing is left to train, which is told; for a job that a queue starts again that is no mistake."""
    from convlstm_wx.training.saving import why_ended

    ended = why_ended(config, resume)
    if ended:
        log.info("%s", ended)
    return bool(ended)


def _ensemble_config(options: argparse.Namespace, folder: Path) -> TrainConfig:
    """What is asked for now, on top of what an ensemble in the folder was begun with, if there is one.

    Raises:
        ConfigError: if the file that says so cannot be read.
    """
    from convlstm_wx.checkpoint import members_in

    file = folder / "config.json"
    if not members_in(folder) or not file.exists():
        return training_config(options)
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
        before = BEFORE_THERE_WAS_A_SETTING | said | {"output_dir": str(folder)}
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{file}: cannot be read ({error}); start anew with --overwrite") from error
    config = training_config(options, before)
    is_found = config.batch_size == AUTO and before.get("batch_size") != "auto"
    return replace(config, batch_size=before["batch_size"]) if is_found else config


def _refuse_to_mix(folder: Path, members: int) -> None:
    """An ensemble does not go on as a smaller one, and a single run not as an ensemble."""
    from convlstm_wx.checkpoint import members_in

    there = members_in(folder)
    if len(there) > members or (there and members == 1):
        raise ConfigError(
            f"--members {members}: {folder} holds {len(there)} members already; give at least as many, choose another "
            f"--output-dir, or replace them with --overwrite"
        )
    single = _of_single_run(folder)
    if single:
        raise ConfigError(
            f"--members {members}: {folder} holds the run of one network ({single.name}); choose another --output-dir, "
            f"or replace it with --overwrite"
        )


def _refuse_to_replace(folder: Path, config: TrainConfig, resume: str | Path | None) -> None:
    from convlstm_wx.checkpoint import members_in

    there = _of_single_run(folder)
    is_its_own = bool(resume) and Path(resume or "").resolve().parent == folder.resolve()
    remedy = "" if resume else ", or replace it with --overwrite"
    if there and not is_its_own:
        raise ConfigError(
            f"{folder} holds a run already: go on with --resume {there}, choose another --output-dir{remedy}"
        )
    if members_in(folder):
        raise ConfigError(
            f"{folder} holds an ensemble of {len(members_in(folder))} members already: go on with --resume auto"
            f"{'' if config.members > 1 else ' and its --members'}, choose another --output-dir{remedy}"
        )


def _of_single_run(folder: Path) -> Path | None:
    return next((folder / name for name in ("last.pt", "interrupted.pt") if (folder / name).exists()), None)
