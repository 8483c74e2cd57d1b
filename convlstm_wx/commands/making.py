"""What forecast and evaluate have in common: what they open, and how they tell of the forecasts that they make."""

import argparse
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from convlstm_wx.errors import CheckpointError, ConfigError, DataError

if TYPE_CHECKING:
    import numpy as np
    import xarray as xr

    from convlstm_wx.checkpoint import Checkpoint
    from convlstm_wx.data.spec import DataSpec
    from convlstm_wx.forecast.rollout import Trained

log = logging.getLogger(__name__)


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
        return [open_dataset([path]) for path in given]
    try:
        return [open_dataset(files) for files in wanted]
    except DataError as error:
        raise DataError(f"upstream data of training: {error}. Say with --upstream-data where they are.") from error


def data_files(options: argparse.Namespace, specs: Sequence["DataSpec"]) -> list[str]:
    """All files that forecasts are made from: the data, and what :func:`open_upstream` opens."""
    trained = [path for spec in specs for files in spec.upstream_files for path in files]
    return [*options.data, *(options.upstream_data or dict.fromkeys(trained))]


def say_forecast(made: "xr.Dataset") -> None:
    """What was forecast, in three lines."""
    say_times(made["init_time"].values, made["lead_time"].values)
    log.info("variables  %s", ", ".join(map(str, made.data_vars)))


def say_times(init_times: "np.ndarray", lead_times: "np.ndarray") -> None:
    """When forecasts start and how far they go, in two lines."""
    first, last = init_times[[0, -1]].astype("datetime64[m]")
    hours = lead_times.astype("timedelta64[s]").astype(int) / 3600
    log.info("init time  %s", f"{len(init_times)} from {first} to {last}" if len(init_times) > 1 else first)
    log.info("lead time  +%g h to +%g h, %d steps", hours[0], hours[-1], len(hours))
