"""What forecast and evaluate have in common: what they open, and how they tell of the forecasts that they make."""

import argparse
import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from convlstm_wx.commands.options import at_least_zero, positive
from convlstm_wx.config import PERTURBATION, SPREADS
from convlstm_wx.errors import CheckpointError, ConfigError, DataError

if TYPE_CHECKING:
    import numpy as np
    import xarray as xr

    from convlstm_wx.checkpoint import Checkpoint
    from convlstm_wx.data.spec import DataSpec
    from convlstm_wx.forecast.rollout import Forecast, Trained

log = logging.getLogger(__name__)


def add_ensemble(group: Any) -> None:
    """The options that say how many members there are, and how they differ."""
    group.add_argument(
        "--members",
        metavar="N",
        type=positive,
        help="of an ensemble, at least as many as trained networks (default: one a network)",
    )
    group.add_argument(
        "--spread",
        default="auto",
        choices=SPREADS,
        help="members differ as the networks were wrong on validation (errors), as they start from perturbed initial "
        "states (states), or only as networks do (none) (default: none without --members, else errors, states where a "
        "checkpoint holds no errors)",
    )
    group.add_argument(
        "--perturbation",
        metavar="X",
        type=at_least_zero,
        help=f"of initial states, in units of a typical change in one step (default: {PERTURBATION} with states)",
    )


def load_members(path: str) -> list["Checkpoint"]:
    """The network of a checkpoint or of a run's folder, or the members of an ensemble's folder, to be scored as one.

    Raises:
        CheckpointError: if there is none, or members learned from different data: some would know what is scored.
    """
    from convlstm_wx.checkpoint import checkpoints_of, load_checkpoint

    members = [load_checkpoint(file) for file in checkpoints_of(path)]
    found = [change for other in members[1:] for change in members[0].spec.changes(other.spec)]
    if found:
        raise CheckpointError(f"{path}: its members learned from different data ({found[0]}); score them one by one")
    return members


def open_data(paths: Sequence[str], members: Sequence["Checkpoint"], also: "xr.Dataset | None" = None) -> "xr.Dataset":
    """The data to forecast from or to score with, whose masks mean what they meant in training.

    Args:
        paths: files.
        members: the networks.
        also: a forecast whose variables are to be scored.

    Raises:
        CheckpointError: if the networks learned with different meanings.
        DataError: for data that cannot be read.
    """
    from convlstm_wx.data.masks import same_masking
    from convlstm_wx.data.reading import open_dataset

    masking = same_masking([member.spec.target.masking for member in members])
    return open_dataset(paths, masking=replace(masking, wanted=(*masking.wanted, *map(str, also or ()))))


def open_trained(
    members: Sequence["Checkpoint"], dataset: "xr.Dataset", upstream_data: Sequence[str] | None
) -> list["Trained"]:
    """Networks with their upstream data, see :func:`open_upstream`, that fit the data.

    Raises:
        CheckpointError: if they do not fit, naming every difference.
    """
    from convlstm_wx.forecast.rollout import Trained

    trained = [Trained(each, open_upstream(each.spec, upstream_data)) for each in members]
    for each in trained:
        each.checkpoint.spec.check(dataset, each.upstream)
    return trained


def open_upstream(spec: "DataSpec", given: Sequence[str] | None) -> list["xr.Dataset"]:
    """The data of upstream regions that are read from files: those given, or those of training.

    Raises:
        ConfigError: for another number of them than training had.
        DataError: if one of those of training is not there any more.
    """
    from convlstm_wx.data.reading import open_dataset

    wanted = spec.upstream_files
    if given:
        if len(given) != len(wanted):
            trained = f"training read {len(wanted)} ({', '.join(' '.join(files) for files in wanted) or 'none'})"
            raise ConfigError(f"--upstream-data: {len(given)} given, but {trained}; give one for each, in that order")
        return [open_dataset([path], masking=region.masking) for path, region in zip(given, spec.upstream_of_files)]
    try:
        return [open_dataset(region.files, masking=region.masking) for region in spec.upstream_of_files]
    except DataError as error:
        raise DataError(f"upstream data of training: {error}. Say with --upstream-data where they are.") from error


def data_files(options: argparse.Namespace, specs: Sequence["DataSpec"]) -> list[str]:
    """All files that forecasts are made from: the data, and what :func:`open_upstream` opens."""
    trained = [path for spec in specs for files in spec.upstream_files for path in files]
    return [*options.data, *(options.upstream_data or dict.fromkeys(trained))]


def say_ensemble(forecast: "Forecast") -> None:
    """How many members there are, and where they differ, in one line."""
    from convlstm_wx.text import count

    ensemble, networks = forecast.ensemble, len(forecast.trained)
    if ensemble is None:
        return
    perturbed = ensemble.members - networks
    if ensemble.is_dressed:
        how = "dressed with errors of validation"
    else:
        alike = "alike but for their network; --members 50 makes them as different as forecasts are wrong"
        how = f"{perturbed} of them from perturbed initial states" if perturbed else alike
    log.info("ensemble   %s of %s, %s", count(ensemble.members, "member"), count(networks, "network"), how)


def say_forecast(made: "xr.Dataset") -> None:
    """What was forecast, in three lines."""
    from convlstm_wx.text import list_channels
    from convlstm_wx.verification.pairs import channels_of

    say_times(made["init_time"].values, made["lead_time"].values)
    log.info("variables  %s", list_channels(channels_of(made)))


def say_times(init_times: "np.ndarray", lead_times: "np.ndarray") -> None:
    """When forecasts start and how far they go, in two lines."""
    first, last = init_times[[0, -1]].astype("datetime64[m]")
    hours = lead_times.astype("timedelta64[s]").astype(int) / 3600
    log.info("init time  %s", f"{len(init_times)} from {first} to {last}" if len(init_times) > 1 else first)
    log.info("lead time  +%g h to +%g h, %d steps", hours[0], hours[-1], len(hours))
