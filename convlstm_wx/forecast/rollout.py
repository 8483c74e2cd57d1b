"""Forecasts from a checkpoint and a data file, for any init times.

Shapes: N init times, B batch, L lead times, D target channels, H lat, W lon.
"""

import logging
from collections.abc import Iterator, Sequence

import numpy as np
import torch
import xarray as xr
from tqdm import tqdm

from convlstm_wx.checkpoint import Checkpoint
from convlstm_wx.data.inputs import Sources, open_sources
from convlstm_wx.data.loaders import TensorBatch, in_batches, load_batches
from convlstm_wx.data.spec import DataSpec
from convlstm_wx.data.windows import Windows, init_indices
from convlstm_wx.device import DevicePolicy
from convlstm_wx.errors import ConfigError, DataError
from convlstm_wx.forecast.writing import to_dataset
from convlstm_wx.models.forecaster import EncoderForecaster

log = logging.getLogger(__name__)

NEWEST_TRIES = 64


def possible_init_times(
    spec: DataSpec, times: np.ndarray, allowed_N: np.ndarray | None = None, *, lead_steps: int = 0
) -> np.ndarray:
    """The init times whose input times (and first `lead_steps` lead times) are in the file, allowed and without gap."""
    allowed = np.ones(len(times), bool) if allowed_N is None else allowed_N
    at = init_indices(times, spec.step, allowed, input_steps=spec.input_steps, lead_steps=lead_steps)
    return times[at]


def choose_init_times(
    spec: DataSpec,
    dataset: xr.Dataset,
    named: Sequence[str],
    start: str | None,
    end: str | None,
    upstream: Sequence[xr.Dataset] = (),
) -> np.ndarray:
    """The init times that a user asked for: named ones, all of a period, or by default the newest possible.

    Raises:
        ConfigError: for a time that cannot be read, or named times together with a period.
        DataError: if the period holds no possible init time.
    """
    if named and (start or end):
        raise ConfigError("--init-time goes alone; for all init times of a period give --start and --end")
    if named:
        return np.unique([_parse_time("--init-time", text) for text in named])
    if not (start or end):
        return _newest_init_time(spec, dataset, upstream)
    possible = possible_init_times(spec, dataset["time"].values)
    after = possible >= _parse_time("--start", start) if start else np.ones(len(possible), bool)
    before = possible <= _parse_time("--end", end) if end else np.ones(len(possible), bool)
    if not (after & before).any():
        ends = f"it has some from {_text(possible[0])} to {_text(possible[-1])}" if possible.size else "it has none"
        raise DataError(
            f"{dataset.attrs['source']}: no init time between {start or 'its start'} and {end or 'its end'}; {ends}"
        )
    return possible[after & before]


def _parse_time(option: str, text: str) -> np.datetime64:
    try:
        time = np.datetime64(text.removesuffix("Z"), "s")
    except ValueError as error:
        raise ConfigError(f"{option} {text}: not a time; write it as 2008-07-01 or 2008-07-01T12:00") from error
    if not np.datetime64("1678") < time < np.datetime64("2262"):
        raise ConfigError(f"{option} {text}: out of range; files hold times from 1678 to 2261")
    return time.astype("datetime64[ns]")


def _newest_init_time(spec: DataSpec, dataset: xr.Dataset, upstream: Sequence[xr.Dataset]) -> np.ndarray:
    tail = dataset.isel(time=slice(-(spec.input_steps + NEWEST_TRIES), None))
    windows = open_sources(spec, tail, upstream).windows(spec, lead_steps=0)
    if len(windows) == 0:
        raise DataError(
            f"{dataset.attrs['source']}: its last {tail.sizes['time']} times hold no {spec.input_steps} consecutive "
            f"complete ones to start from; name an --init-time before the gap"
        )
    return windows.times[windows.init_indices[-1:]]


def make_forecast(
    checkpoint: Checkpoint,
    dataset: xr.Dataset,
    init_times: np.ndarray,
    *,
    lead_steps: int,
    policy: DevicePolicy,
    upstream: Sequence[xr.Dataset] = (),
    batch_size: int = 16,
    skip_incomplete: bool = False,
) -> xr.Dataset:
    """Forecasts in physical units.

    Args:
        checkpoint: the trained network and its data's description.
        dataset: canonical, fitting the checkpoint (see :meth:`DataSpec.check`).
        init_times: the last input time of each forecast, N of them, increasing.
        lead_steps: number of lead times, in steps of the file.
        policy: device and precision.
        upstream: one dataset for each of the spec's `upstream_files`.
        batch_size: init times at once.
        skip_incomplete: leave out init times whose inputs have missing values, instead of refusing.

    Returns:
        Dimensions init_time, lead_time, [level,] lat, lon; see :func:`~convlstm_wx.forecast.writing.to_dataset`.

    Raises:
        DataError: for an init time that the file does not have, or whose inputs are not there.
    """
    spec = checkpoint.spec
    all_times = dataset["time"].values
    _check_init_times(spec, all_times, init_times)
    first = int(np.searchsorted(all_times, init_times[0])) - spec.input_steps + 1
    last = int(np.searchsorted(all_times, init_times[-1]))
    sources = open_sources(spec, dataset.isel(time=slice(first, last + 1)), upstream)
    at = np.searchsorted(sources.times, init_times)
    complete = _inputs_complete(spec, sources, at)
    if (not complete.all() and not skip_incomplete) or not complete.any():
        raise DataError(
            f"{dataset.attrs['source']}: inputs of init time {_text(init_times[~complete][0])} have missing values "
            f"that training had not; choose another --init-time"
        )
    if not complete.all():
        log.warning("%d of %d init times left out: their inputs have missing values", (~complete).sum(), complete.size)
    windows = sources.windows_at(spec, at[complete], lead_steps=lead_steps, with_targets=False)
    fields_NLDHW = np.concatenate(list(_batches(checkpoint.network(), windows, policy, batch_size)))
    return to_dataset(spec, init_times[complete], fields_NLDHW)


def _check_init_times(spec: DataSpec, times: np.ndarray, init_times: np.ndarray) -> None:
    possible = possible_init_times(spec, times)
    wrong = init_times[~np.isin(init_times, possible)]
    if not wrong.size:
        return
    if wrong[0] in times:
        reason = f"the {spec.input_steps} input times up to it are not all in the file, one step apart"
    else:
        reason = f"it is not a time of the file, which covers {_text(times[0])} to {_text(times[-1])}"
    ends = f"; possible are {_text(possible[0])} to {_text(possible[-1])}" if possible.size else ""
    raise DataError(f"init time {_text(wrong[0])}: {reason}{ends}")


def _inputs_complete(spec: DataSpec, sources: Sources, at: np.ndarray) -> np.ndarray:
    past = at[:, None] + np.arange(1 - spec.input_steps, 1)
    return np.all(sources.complete_N[past], axis=1)


def _batches(
    network: EncoderForecaster, windows: Windows, policy: DevicePolicy, batch_size: int
) -> Iterator[np.ndarray]:
    """Normalised fields [B, L, D, H, W] of one batch of init times after the other."""
    policy.place(network)
    batches = in_batches(np.arange(len(windows)), batch_size)
    loaded = load_batches(windows, batches, policy.device)
    several = None if len(batches) > 1 else True
    for batch in tqdm(loaded, total=len(batches), desc="forecasting", unit="batch", leave=False, disable=several):
        yield _roll_out(network, batch, policy)


@torch.inference_mode()
def _roll_out(network: EncoderForecaster, batch: TensorBatch, policy: DevicePolicy) -> np.ndarray:
    with policy.autocast():
        leads = [y.float().cpu() for y in network.rollout(batch.x_BTCHW, batch.forcing_BSFHW, batch.upstream)]
    return torch.stack(leads, dim=1).numpy()


def _text(time: np.datetime64) -> str:
    return str(time.astype("datetime64[m]"))
