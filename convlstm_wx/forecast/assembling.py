"""From checkpoints, data and what is asked for to a forecast: one way for the command line, notebooks and scoring."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from convlstm_wx.config import PERTURBATION
from convlstm_wx.device import DevicePolicy
from convlstm_wx.errors import ConfigError
from convlstm_wx.forecast.choosing import choose_init_times
from convlstm_wx.forecast.rollout import Ensemble, Forecast, Trained, lacks_to_dress

log = logging.getLogger(__name__)


def assemble(
    trained: Sequence[Trained],
    dataset: xr.Dataset,
    policy: DevicePolicy,
    *,
    named: Sequence[str] = (),
    start: str | None = None,
    end: str | None = None,
    every: np.timedelta64 | None = None,
    lead_steps: int | None = None,
    members: int | None = None,
    spread: str = "auto",
    perturbation: float | None = None,
    seed: int = 0,
    batch_size: int = 16,
) -> Forecast:
    """A forecast as it is asked for.

    Args:
        trained: one network, or those of an ensemble.
        dataset: canonical.
        policy: device and precision.
        named, start, end, every: which init times, see :func:`~convlstm_wx.forecast.choosing.choose_init_times`.
        lead_steps: None: as trained; beyond that with a warning.
        members, spread, perturbation, seed: see :func:`ensemble_of`.
        batch_size: forecasts at once.

    Raises:
        CheckpointError: for data that a network was not trained for, or networks that make no ensemble.
        ConfigError: for what cannot be asked for.
        DataError: for init times whose inputs are not there.
    """
    for each in trained:
        each.checkpoint.spec.check(dataset, each.upstream)
    demanding = max(trained, key=lambda each: each.checkpoint.spec.input_steps)
    spec = demanding.checkpoint.spec
    return Forecast(
        trained,
        dataset,
        choose_init_times(spec, dataset, named, start, end, demanding.upstream, every=every),
        choose_lead_steps(lead_steps, min(each.checkpoint.spec.lead_steps for each in trained)),
        policy,
        ensemble=ensemble_of(trained, members, spread=spread, perturbation=perturbation, seed=seed),
        batch_size=batch_size,
        skip_incomplete=not named and any(value is not None for value in (start, end, every)),
    )


def ensemble_of(
    trained: Sequence[Trained],
    members: int | None = None,
    *,
    spread: str = "auto",
    perturbation: float | None = None,
    seed: int = 0,
) -> Ensemble | None:
    """How the members are to differ; None for one forecast of one network.

    Args:
        members: None: one for each network.
        spread: errors: as the networks' mean was wrong on validation; states: from perturbed initial states; none: only
            as the networks differ; auto: none if no number of members is given, else errors if the checkpoints hold
            them and no perturbation is given, else states.
        perturbation: of initial states; None: the usual one. The first member of each network starts unperturbed.
        seed: of errors or perturbations.

    Raises:
        ConfigError: for what would be without effect.
    """
    if members is None and len(trained) == 1:
        if spread != "auto" or perturbation is not None:
            raise ConfigError("--spread and --perturbation are of members: say how many with --members")
        return None
    if spread in ("errors", "none") and perturbation is not None:
        raise ConfigError(f"--perturbation has no effect with --spread {spread}; leave one of the two out")
    count, networks = members or len(trained), len(trained)
    if (spread == "states" or perturbation is not None) and count <= networks:
        raise ConfigError(
            f"--spread states and --perturbation have no effect on {count} member{'s' if count > 1 else ''} of "
            f"{networks} network{'s' if networks > 1 else ''}, as the first of each starts unperturbed; give more "
            "--members than there are networks"
        )
    if spread == "auto" and perturbation is None:
        lacking = "" if members is None else lacks_to_dress([each.checkpoint for each in trained])
        if lacking and count > networks:
            log.warning("perturbed initial states, which alone are too alike: %s", lacking)
        spread = "none" if members is None else "states" if lacking else "errors"
    usual = PERTURBATION if perturbation is None else perturbation
    return Ensemble(count, spread == "errors", 0.0 if spread == "none" else usual, seed)


def choose_lead_steps(asked: int | None, trained: int) -> int:
    """The number of lead times; beyond the trained one with a warning."""
    if asked is not None and asked > trained:
        log.warning("%d lead steps are beyond the %d of training: the later ones were never practised", asked, trained)
    return asked or trained


def make_forecast(trained: Sequence[Trained], dataset: xr.Dataset, init_times: np.ndarray, **rest: Any) -> xr.Dataset:
    """The forecasts of one network, or of an ensemble of several, in memory; arguments and errors of Forecast.

    Returns:
        Dimensions init_time, [realization,] lead_time, [level,] lat, lon; see
        :func:`~convlstm_wx.forecast.labelling.to_dataset`.
    """
    return Forecast(trained, dataset, init_times, ensemble=ensemble_of(trained), **rest).collect()
