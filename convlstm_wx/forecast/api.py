"""Forecasts in a notebook or a script."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeAlias

import numpy as np
import xarray as xr

from convlstm_wx.checkpoint import Checkpoint, checkpoints_of, load_checkpoint
from convlstm_wx.config import SPREADS
from convlstm_wx.data.masks import Masking, same_masking
from convlstm_wx.data.reading import adopt_dataset, open_dataset
from convlstm_wx.data.spec import DataSpec
from convlstm_wx.device import DevicePolicy, choose_device
from convlstm_wx.errors import ConfigError
from convlstm_wx.forecast.assembling import assemble
from convlstm_wx.forecast.choosing import LATEST
from convlstm_wx.forecast.labelling import data_texts
from convlstm_wx.forecast.rollout import Ensemble, Trained, check_members
from convlstm_wx.text import list_channels

Data: TypeAlias = xr.Dataset | str | Path | Sequence[str | Path]
Time: TypeAlias = str | datetime | np.datetime64


def load_forecaster(
    checkpoint: str | Path | Sequence[str | Path], device: str = "auto", *, use_amp: bool = False
) -> "Forecaster":
    """A trained network, ready to forecast.

    Example:
        >>> from convlstm_wx import load_forecaster
        >>> forecaster = load_forecaster("checkpoints/regional/best.pt")
        >>> made = forecaster.forecast("regional.nc", init_time="2008-07-01T12", lead_steps=8)
        >>> made["t2m"].isel(init_time=0).plot(col="lead_time")

    Args:
        checkpoint: the folder of a training run, or its best.pt; several make an ensemble, and so do the members of
            one folder.
        device: auto, cuda, cuda:N, mps or cpu.
        use_amp: half precision where the device has it natively.

    Raises:
        CheckpointError: if there is no such checkpoint, or those of an ensemble do not fit each other.
        DeviceError: if the device is not there.
    """
    paths = [checkpoint] if isinstance(checkpoint, str | Path) else list(checkpoint)
    if not paths:
        raise ConfigError("no checkpoint given; name the folder of a training run, or its best.pt")
    files = [file for path in paths for file in checkpoints_of(path)]
    return Forecaster([load_checkpoint(file) for file in files], choose_device(device, use_amp=use_amp))


class Forecaster:
    """What :func:`load_forecaster` gives.

    Attributes:
        checkpoints: one, or those of an ensemble.
        policy: device and precision, with reasons.
    """

    def __init__(self, checkpoints: Sequence[Checkpoint], policy: DevicePolicy):
        check_members(checkpoints, Ensemble(len(checkpoints)))
        self.checkpoints, self.policy = tuple(checkpoints), policy

    def __repr__(self) -> str:
        spec = self.spec
        hours, grid = spec.step_s / 3600, spec.target.grid
        return (
            f"Forecaster of {list_channels(spec.targets)} on {len(grid.lat)} x {len(grid.lon)} points, from "
            f"{spec.input_steps} times {hours:g} h apart to +{spec.lead_steps * hours:g} h; on {self.policy.device}"
        )

    @property
    def spec(self) -> DataSpec:
        """What is known of the data: variables, units, grid, step, split (of the first checkpoint)."""
        return self.checkpoints[0].spec

    def forecast(
        self,
        data: Data,
        *,
        init_time: Time | Sequence[Time] = LATEST,
        lead_steps: int | None = None,
        members: int | None = None,
        spread: str = "auto",
        perturbation: float | None = None,
        seed: int = 0,
        upstream: Sequence[Data] | None = None,
        batch_size: int = 16,
    ) -> xr.Dataset:
        """Forecasts in the data's own units: the numbers that `convlstm-wx forecast` writes, in memory.

        Args:
            data: an xarray Dataset, a NetCDF file, a pattern, a Zarr store, or several of these.
            init_time: the last input time of a forecast, or several; "latest" is the newest possible.
            lead_steps: in steps of the data; None: as trained.
            members: of an ensemble; None: one for each checkpoint.
            spread: where members differ: errors, states, none or auto, as for the command.
            perturbation: of initial states, in units of a typical change in one step; None: the usual one.
            seed: of errors or perturbations.
            upstream: the data of upstream regions that training read from files of their own; None: those files.
            batch_size: forecasts at once.

        Returns:
            Dimensions init_time, [realization,] lead_time (timedelta, the first is one step), [level,] lat, lon, with
            valid_time (init_time, lead_time) and CF attributes.

        Raises:
            CheckpointError: for data that differ from those of training, naming every difference.
            DataError: for an init time whose inputs are not all there, naming what is missing.
            ConfigError: for arguments that cannot be.
        """
        _check_at_least(1, lead_steps=lead_steps, members=members, batch_size=batch_size)
        _check_at_least(0, seed=seed, perturbation=perturbation)
        if spread not in SPREADS:
            raise ConfigError(f"spread={spread}: must be one of {', '.join(SPREADS)}")
        dataset = _open(data, same_masking([each.spec.target.masking for each in self.checkpoints]))
        trained = [Trained(each, _open_upstream(each.spec, upstream)) for each in self.checkpoints]
        forecast = assemble(
            trained,
            dataset,
            self.policy,
            named=_texts(init_time),
            lead_steps=lead_steps,
            members=members,
            spread=spread,
            perturbation=perturbation,
            seed=seed,
            batch_size=batch_size,
        )
        return forecast.collect().assign_attrs(data_texts(dataset))


def _check_at_least(lowest: int, **arguments: float | None) -> None:
    for name, value in arguments.items():
        if value is not None and not lowest <= value < float("inf"):
            raise ConfigError(f"{name}={value}: must be at least {lowest}")


def _open(data: Data, masking: Masking) -> xr.Dataset:
    if isinstance(data, xr.Dataset):
        return adopt_dataset(data, masking=masking)
    return open_dataset(data, masking=masking)  # type: ignore[arg-type]


def _open_upstream(spec: DataSpec, given: Sequence[Data] | None) -> list[xr.Dataset]:
    wanted = spec.upstream_files
    if given is not None and len(given) != len(wanted):
        raise ConfigError(f"upstream: {len(given)} given, but training read {len(wanted)} from files of their own")
    regions = spec.upstream_of_files
    return [_open(data, region.masking) for data, region in zip(wanted if given is None else given, regions)]


def _texts(init_time: Time | Sequence[Time]) -> list[str]:
    """As the command line has them."""
    times = np.atleast_1d(np.asarray(init_time)).ravel()
    if not times.size:
        raise ConfigError("init_time=[]: no time given; leave it out for the newest possible")
    return [_text(time) for time in times]


def _text(time: Time) -> str:
    if isinstance(time, str):
        return time
    if isinstance(time, datetime):  # pandas' too
        return (time.astimezone(UTC).replace(tzinfo=None) if time.tzinfo else time).isoformat()
    if isinstance(time, np.datetime64) and not np.isnat(time):
        return str(time.astype("datetime64[s]"))
    raise ConfigError(f"init_time={time}: not a time; give a text such as '2008-07-01T12', a datetime or a datetime64")
