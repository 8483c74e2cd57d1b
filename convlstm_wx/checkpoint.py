"""Checkpoints: all that is needed to forecast from a data file, or to go on training.

A checkpoint holds tensors and plain types only and is loaded with `weights_only=True`: no code of a foreign file ever
runs. It is written to a temporary name, synced and renamed, so that what bears its name is always whole.
"""

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from convlstm_wx import __version__
from convlstm_wx.config import BEFORE_THERE_WAS_A_SETTING, TrainConfig
from convlstm_wx.data.rain import RainMeans
from convlstm_wx.data.spec import DataSpec
from convlstm_wx.dressing import Residuals
from convlstm_wx.errors import CheckpointError, ConfigError
from convlstm_wx.files import library_errors, replacing
from convlstm_wx.models.build import build
from convlstm_wx.models.network import Network

log = logging.getLogger(__name__)

FORMAT = "convlstm_wx checkpoint"
RESUMABLE = ("interrupted.pt", "last.pt", "epoch_[0-9]*.pt", "best.pt")  # of equally far ones the first is taken
FORMAT_VERSION = 2


class DamagedError(CheckpointError):
    """A checkpoint that holds nothing to go on from."""


@dataclass(frozen=True)
class Checkpoint:
    """A run at one moment.

    Attributes:
        config: the settings of the run.
        spec: its data: channels, units, grids, split, statistics.
        model_name, model_options: what :func:`~convlstm_wx.models.build.build` needs.
        weights: to forecast with (the moving average).
        training: all that training needs to go on exactly: own weights, optimiser, moving average, progress and
            history.
        versions: of the software that wrote it.
        residuals: errors of the weights on windows of validation, for dressed ensembles; None where none were kept.
        written: when that was, UTC; "" if it is not in a file yet, or in one of an earlier version.
    """

    config: TrainConfig
    spec: DataSpec
    model_name: str
    model_options: dict[str, Any]
    weights: dict[str, Tensor]
    training: dict[str, Any]
    versions: dict[str, str]
    residuals: Residuals | None = None
    written: str = ""

    @property
    def rain(self) -> RainMeans:
        """What it rained on average where the network forecast so much; empty in checkpoints of earlier versions."""
        return RainMeans(self.training["progress"].get("rain", {}))

    def network(self) -> Network:
        """The trained network, on the CPU and ready to forecast."""
        network = build(self.model_name, self.model_options)
        network.load_state_dict(self.weights)
        return network.eval()


def versions() -> dict[str, str]:
    """Of this package and of PyTorch."""
    return {"convlstm_wx": __version__, "torch": str(torch.__version__)}


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint atomically.

    Raises:
        ConfigError: if the folder cannot be written or is full; what was there before is untouched.
    """
    contents = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "versions": checkpoint.versions,
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "config": checkpoint.config.to_dict(),
        "spec": _arrays_to_tensors(checkpoint.spec.to_dict()),
        "model_name": checkpoint.model_name,
        "model_options": checkpoint.model_options,
        "weights": _to_cpu(checkpoint.weights),
        "training": _to_cpu(checkpoint.training),
        "residuals": _residuals_to_tensors(checkpoint.residuals),
    }
    with replacing(path) as temporary, library_errors(), temporary.open("wb") as file:
        torch.save(contents, file)


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint onto the CPU, whatever device it was trained on.

    Raises:
        CheckpointError: if there is none, if it is truncated, another program's, or of a newer format.
    """
    path = Path(path)
    try:
        is_there = path.is_file()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    if not is_there:
        raise CheckpointError(f"{path}: no such checkpoint; training writes best.pt and last.pt into its output folder")
    try:
        contents = torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    except Exception as error:  # torch.load raises a dozen types, from EOFError to UnpicklingError
        raise DamagedError(
            f"{path}: not a whole checkpoint ({type(error).__name__}); it is truncated, damaged or another program's"
        ) from error
    if not isinstance(contents, dict) or contents.get("format") != FORMAT:
        raise CheckpointError(f"{path}: a file of PyTorch, but not a checkpoint of convlstm_wx")
    if contents["format_version"] > FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: format {contents['format_version']} of convlstm_wx {contents['versions']['convlstm_wx']} is "
            f"newer than this version reads ({FORMAT_VERSION}); update convlstm_wx"
        )
    return _from_contents(path, contents)


def newest_checkpoint(folder: Path) -> Path | None:
    """The whole checkpoint that is furthest on in a run's folder, None if there is none; damaged ones are told.

    Raises:
        CheckpointError: if there are some, and none can be read.
    """
    found, errors = reached_in(folder)
    for error in errors:
        log.warning("%s; looking for another", error)
    if errors and not found:
        for error in errors:
            if not isinstance(error, DamagedError):
                raise error  # to start anew would throw away what can be saved
        raise CheckpointError(f"{folder}: none of its {len(errors)} checkpoints is whole; start anew with --overwrite")
    return max(found, key=found.__getitem__, default=None)


def reached_in(folder: Path) -> tuple[dict[Path, tuple[int, int]], list[CheckpointError]]:
    """How far each whole checkpoint of a run's folder is, and what is wrong with the others."""
    found: dict[Path, tuple[int, int]] = {}
    errors: list[CheckpointError] = []
    for file in (file for pattern in RESUMABLE for file in folder.glob(pattern)):
        try:
            found[file] = how_far(load_checkpoint(file))
        except CheckpointError as error:
            errors.append(error)
    return found, errors


def how_far(checkpoint: Checkpoint) -> tuple[int, int]:
    """The epoch under way and its windows so far; steps would not do, their size may change when a run goes on."""
    progress, config = checkpoint.training["progress"], checkpoint.config
    per_step = progress.get("windows_per_step") or config.batch_size * config.gradient_accumulation_steps
    return progress["epoch"], progress["step_in_epoch"] * per_step


def best_of(folder: Path) -> Path:
    """The checkpoint of a finished run to forecast with: best.pt, or last.pt where none was better than before."""
    best = folder / "best.pt"
    return best if best.exists() else folder / "last.pt"


# Folders of runs, and of ensembles of runs


def member_folder(folder: Path, number: int) -> Path:
    """Where a member of an ensemble is trained, numbered from 1: a run of its own."""
    return folder / f"member_{number}"


def members_in(folder: Path) -> list[Path]:
    """The members' folders of an ensemble, by number; none in the folder of a single run."""
    numbers = (place.name.removeprefix("member_") for place in folder.glob("member_*") if place.is_dir())
    return [member_folder(folder, number) for number in sorted(int(text) for text in numbers if text.isdigit())]


def is_run(folder: Path) -> bool:
    """Whether there is a checkpoint to forecast with, of a run or of an ensemble's member."""
    return any(best_of(place).exists() for place in (folder, *members_in(folder)))


def checkpoints_of(path: str | Path) -> list[Path]:
    """What to forecast with: a file itself, or the best checkpoint of a run's folder, of each member of an ensemble.

    Raises:
        CheckpointError: for a folder without any.
    """
    path = Path(path)
    if not os.path.isdir(path):  # unlike Path.is_dir it raises nothing; a file is told of where it is read
        return [path]
    best = [best_of(place) for place in members_in(path) or [path]]
    found = [file for file in best if file.exists()]
    if not found:
        raise CheckpointError(f"{path}: no checkpoint in this folder; training writes best.pt and last.pt into its own")
    for file in best:
        if file not in found:
            log.warning("%s has no checkpoint to forecast with yet: left out", file.parent)
    return found


def _from_contents(path: Path, contents: Mapping[str, Any]) -> Checkpoint:
    try:
        return Checkpoint(
            config=TrainConfig.from_dict(BEFORE_THERE_WAS_A_SETTING | contents["config"], source=str(path)),
            spec=DataSpec.from_dict(_tensors_to_arrays(contents["spec"])),
            model_name=contents["model_name"],
            model_options=contents["model_options"],
            weights=contents["weights"],
            training=_with_progress(contents["training"]),
            versions=contents["versions"],
            residuals=_tensors_to_residuals(contents.get("residuals")),
            written=contents.get("written", ""),
        )
    except (KeyError, TypeError, ValueError, ConfigError) as error:
        raise DamagedError(f"{path}: an entry is missing or malformed ({error}); the file is damaged") from error


def _residuals_to_tensors(residuals: Residuals | None) -> dict[str, Tensor] | None:
    if residuals is None:
        return None
    seconds = residuals.init_times.astype("datetime64[s]").astype(np.int64)
    return {"init_times_s": torch.from_numpy(seconds), "fields": torch.from_numpy(residuals.fields_NLDHW)}


def _tensors_to_residuals(entry: Mapping[str, Tensor] | None) -> Residuals | None:
    if entry is None:
        return None
    return Residuals(entry["init_times_s"].numpy().astype("datetime64[s]"), entry["fields"].numpy())


def _with_progress(training: dict[str, Any]) -> dict[str, Any]:
    """What training needs to go on, seen to say where that is."""
    missing = {"epoch", "step_in_epoch", "global_step", "elapsed_s", "history"} - set(training["progress"])
    if missing:
        raise KeyError(f"progress: {', '.join(sorted(missing))}")
    return training


def _map_leaves(entry: Any, change: Any) -> Any:
    if isinstance(entry, Mapping):
        return {key: _map_leaves(value, change) for key, value in entry.items()}
    if isinstance(entry, list | tuple):
        return type(entry)(_map_leaves(value, change) for value in entry)
    return change(entry)


def _to_cpu(entry: Any) -> Any:
    return _map_leaves(entry, lambda leaf: leaf.detach().cpu() if isinstance(leaf, Tensor) else leaf)


def _arrays_to_tensors(entry: Any) -> Any:
    return _map_leaves(entry, lambda leaf: torch.from_numpy(leaf.copy()) if isinstance(leaf, np.ndarray) else leaf)


def _tensors_to_arrays(entry: Any) -> Any:
    return _map_leaves(entry, lambda leaf: leaf.numpy() if isinstance(leaf, Tensor) else leaf)
