"""Which forecasts of a checkpoint may be scored: those of months that training did not see."""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from convlstm_wx.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    import xarray as xr

    from convlstm_wx.data.spec import DataSpec
    from convlstm_wx.data.splits import Split
    from convlstm_wx.forecast.rollout import Ensemble, Forecast, Trained


def add_months(command: Any) -> None:
    """The options that choose the months."""
    command.add_argument(
        "--months", metavar="TEXT", nargs="+", help="2014-07, 07, 2014 or 2009-01:2010-12 (default: held out)"
    )
    command.add_argument("--allow-seen", action="store_true", help="allow months that training or validation saw")


def choose_unseen(
    options: argparse.Namespace, spec: "DataSpec", dataset: "xr.Dataset"
) -> tuple["np.ndarray", int, str]:
    """The init times to forecast from, the number of lead times, and what to call the months.

    Raises:
        ConfigError: for months that training or validation saw, or that hold no forecast.
    """
    from convlstm_wx.forecast.assembling import choose_lead_steps
    from convlstm_wx.forecast.choosing import possible_init_times

    times = dataset["time"].values
    allowed, months = _months_to_score(options, spec.split, times)
    lead_steps = choose_lead_steps(options.lead_steps, spec.lead_steps)
    init_times = possible_init_times(spec, times, allowed, lead_steps=lead_steps)
    if not init_times.size:
        raise ConfigError(
            f"{months}: no {spec.input_steps + lead_steps} consecutive times of them in {dataset.attrs['source']}, "
            f"which covers {str(times[0])[:16]} to {str(times[-1])[:16]}; choose other --months or fewer --lead-steps"
        )
    return init_times, lead_steps, months


def _months_to_score(options: argparse.Namespace, split: "Split", times: "np.ndarray") -> tuple["np.ndarray", str]:
    """Which times may be forecast from and verified with, and what to call them."""
    from convlstm_wx.data.splits import HELD_OUT, parse_periods

    if not options.months:
        return split.roles(times) == HELD_OUT, "held out in training"
    periods = parse_periods(options.months)
    allowed = periods.contains(times)
    seen = check_unseen(options, split, times[allowed])
    return allowed, periods.describe() + seen


def check_unseen(options: argparse.Namespace, split: "Split", times: "np.ndarray") -> str:
    """Refuse times that training or validation saw; with --allow-seen a remark to put beside the scores."""
    from convlstm_wx.data.splits import TRAIN, VALIDATION

    roles = split.roles(times)
    seen = (roles == TRAIN) | (roles == VALIDATION)
    if seen.any() and not options.allow_seen:
        raise ConfigError(
            f"{int(seen.sum())} of {len(times)} times to score were seen in training or validation, the first "
            f"{str(times[seen].min())[:16]}; scores would flatter. Choose other months, or add --allow-seen."
        )
    return " (seen in training: scores flatter)" if seen.any() else ""


def plan_unseen(
    options: argparse.Namespace,
    trained: Sequence["Trained"],
    dataset: "xr.Dataset",
    ensemble: "Ensemble | None" = None,
) -> tuple["Forecast", str]:
    """The forecast of a network or an ensemble for the chosen months, to be made, and what the months are called.

    Of several networks the members are their forecasts, unless told otherwise. Init times whose inputs have missing
    values are left out, with a warning.
    """
    from convlstm_wx.device import choose_device
    from convlstm_wx.forecast.assembling import ensemble_of
    from convlstm_wx.forecast.rollout import Forecast

    init_times, lead_steps, months = choose_unseen(options, trained[0].checkpoint.spec, dataset)
    forecast = Forecast(
        trained,
        dataset,
        init_times,
        lead_steps,
        choose_device(options.device, use_amp=options.use_amp),
        ensemble=ensemble or ensemble_of(trained),
        batch_size=options.batch_size,
        skip_incomplete=True,
    )
    return forecast, months
