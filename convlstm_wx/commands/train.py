"""train: from a file to checkpoints."""

import argparse
import logging
import shlex
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from convlstm_wx.commands.options import DONE, STOPPED, add_command, add_settings, training_config
from convlstm_wx.config import TrainConfig
from convlstm_wx.errors import ConfigError

log = logging.getLogger(__name__)


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
    from convlstm_wx.checkpoint import load_checkpoint
    from convlstm_wx.data.inputs import prepare_training
    from convlstm_wx.device import choose_device
    from convlstm_wx.distributed import joined
    from convlstm_wx.files import alone_in, check_can_make, make_folder
    from convlstm_wx.training.loop import Run, write_config
    from convlstm_wx.training.probe import probe
    from convlstm_wx.training.summary import summary

    if options.resume == "auto":
        options.resume = _newest(options)
    resume = load_checkpoint(options.resume) if options.resume else None
    config = training_config(options, resume.config.to_dict() if resume else {})
    folder = Path(config.output_dir or "")
    _refuse_to_replace(folder, options)
    check_can_make(folder)
    with joined() as processes:
        if not processes.is_main:
            logging.getLogger("convlstm_wx").setLevel("WARNING")
        policy = choose_device(config.device, use_amp=config.use_amp, local_rank=processes.local_rank)
        inputs = prepare_training(config, processes=processes.local_size)
        run = Run(config, inputs, policy, folder, processes, resume)
        probed = probe(run)  # what fails at the longest rollout fails now, before anything is written
        make_folder(folder)
        with alone_in(folder) if processes.is_main else nullcontext():
            if processes.is_main:
                if options.overwrite:
                    _remove_run(folder)
                _log_to_file(folder / "training.log")
                write_config(folder / "config.json", config)
            for line in summary(run, inputs, probed):
                log.info(line)
            result = run.train()
        log.info("memory used at most: %.1f GB", policy.peak_memory_bytes() / 2**30)
        policy.free_memory()
    return _say_what_next(result, config)


def _newest(options: argparse.Namespace) -> str | None:
    """What --resume auto goes on from."""
    from convlstm_wx.checkpoint import newest_checkpoint

    options.resume = None
    folder = Path(training_config(options).output_dir or "")
    found = newest_checkpoint(folder)
    log.info("resuming from %s", found) if found else log.info("nothing to resume in %s: starting anew", folder)
    return str(found) if found else None


def _refuse_to_replace(folder: Path, options: argparse.Namespace) -> None:
    if options.resume and options.overwrite:
        raise ConfigError("--overwrite would delete what --resume goes on from; give one of the two")
    there = next((folder / name for name in ("last.pt", "interrupted.pt") if (folder / name).exists()), None)
    if there and not (options.resume or options.overwrite):
        raise ConfigError(
            f"{folder} holds a run already: go on with --resume {there}, choose another --output-dir, "
            f"or replace it with --overwrite"
        )


def _remove_run(folder: Path) -> None:
    """Delete what an earlier run left, and nothing else."""
    for pattern in ("best.pt", "last.pt", "interrupted.pt", "epoch_[0-9]*.pt", "history.csv", "training.log"):
        for file in folder.glob(pattern):
            file.unlink()


def _log_to_file(path: Path) -> None:
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%S"))
    logging.getLogger("convlstm_wx").addHandler(handler)


def _say_what_next(result: Path, config: TrainConfig) -> int:
    data, path = shlex.join(config.data), shlex.quote(str(result))
    if result.name == "interrupted.pt":
        log.info("stopped; go on with: python train_convlstm.py --data %s --resume %s", data, path)
        return STOPPED
    log.info("done: %s", result)
    log.info("next: convlstm-wx forecast --checkpoint %s --data %s --output forecast.nc", path, data)
    log.info("      convlstm-wx evaluate --checkpoint %s --data %s --output evaluation/", path, data)
    return DONE
