"""permute-upstream: whether a model uses its upstream region at all."""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convlstm_wx.commands.compare import say, truth_of, write
from convlstm_wx.commands.keeping import add_budget, kept
from convlstm_wx.commands.making import load_members, open_data, open_trained
from convlstm_wx.commands.options import (
    DONE,
    add_command,
    add_confidence,
    add_data_and_device,
    nonempty,
    positive,
    seed,
)
from convlstm_wx.commands.unseen import add_months, plan_unseen
from convlstm_wx.errors import ConfigError

if TYPE_CHECKING:
    import xarray as xr

    from convlstm_wx.forecast.rollout import Trained

log = logging.getLogger(__name__)

NAMES = ("upstream as it was", "upstream of other times")
TITLE = "Does the model use its upstream region?"
PERMUTATIONS = 5


def add(subparsers: Any) -> None:
    """Declare the command."""
    command = add_command(
        subparsers,
        "permute-upstream",
        run,
        "Does a model use its upstream region? See what forecasts lose with the upstream inputs of other times.",
    )
    add_data_and_device(command, checkpoint_required=True)
    command.add_argument("--output", metavar="FOLDER", type=nonempty, help="where tables and the page go")
    add_months(command)
    add_permutations(command)
    add_confidence(command)
    command.add_argument(
        "--seed", metavar="N", type=seed, default=0, help="of the shuffling and the resampling (default: 0)"
    )
    add_budget(command)


def add_permutations(command: Any) -> None:
    """How often the upstream inputs are shuffled."""
    command.add_argument(
        "--permutations",
        metavar="N",
        type=positive,
        default=PERMUTATIONS,
        help=f"how often upstream inputs are shuffled among init times of the same month and hour (default: "
        f"{PERMUTATIONS})",
    )


def run(options: argparse.Namespace) -> int:
    """Forecast as it was, and with shuffled upstream inputs."""
    from convlstm_wx.files import check_can_make
    from convlstm_wx.verification import permutation
    from convlstm_wx.verification.compare import compare

    members = load_members(options.checkpoint)
    if not members[0].spec.upstream:
        raise ConfigError(
            f"--checkpoint {options.checkpoint}: has no upstream region to shuffle; train with --include-upstream"
        )
    folder = Path(options.output) if options.output else None
    if folder:
        check_can_make(folder)
    dataset = open_data(options.data, members)
    trained = open_trained(members, dataset, options.upstream_data)
    forecast, months = plan_unseen(options, trained, dataset)
    with kept(forecast, folder, budget=options.memory_budget) as made:
        errors = errors_of_permutations(options, trained, dataset, made, folder)
    gains = compare(errors, confidence=options.confidence, seed=options.seed)
    said = permutation.sentences(gains)
    say(gains, said)
    if folder:
        facts = {
            "Checkpoint": str(options.checkpoint),
            "A": NAMES[0],
            "B": f"{NAMES[1]} of the same month and hour, {options.permutations} times shuffled",
            "Months": months,
        }
        written = write(gains, said, folder, title=TITLE, facts=facts, names=NAMES, stem="permutation")
        log.info("written    %s", ", ".join(map(str, written)))
    return DONE


def errors_of_permutations(
    options: argparse.Namespace,
    trained: Sequence["Trained"],
    dataset: "xr.Dataset",
    made: "xr.Dataset",
    folder: Path | None = None,
) -> "xr.Dataset":
    """Errors of forecasts (A) and of the same with shuffled upstream inputs (B), a run for each permutation.

    Args:
        options: permutations, seed, device, use_amp, batch_size, memory_budget.
        made: the forecasts as they were, latitudes ascending.
        folder: beside which those of one permutation wait if they are too many for memory, see keeping.kept.
    """
    import numpy as np
    import xarray as xr

    from convlstm_wx.device import choose_device
    from convlstm_wx.forecast.assembling import ensemble_of
    from convlstm_wx.forecast.rollout import Forecast
    from convlstm_wx.verification.pairing import errors_of_forecasts
    from convlstm_wx.verification.permutation import other_times

    generator = np.random.default_rng(options.seed)
    policy = choose_device(options.device, use_amp=options.use_amp)
    init_times, truth = made["init_time"].values, truth_of(dataset, made)
    runs = []
    for number in range(options.permutations):
        log.info("shuffling  %d of %d", number + 1, options.permutations)
        forecast = Forecast(
            trained,
            dataset,
            init_times,
            made.sizes["lead_time"],
            policy,
            ensemble=ensemble_of(trained),
            batch_size=options.batch_size,
            upstream_from=other_times(init_times, generator),
        )
        with kept(forecast, folder, budget=options.memory_budget) as shuffled:
            # Means over the region are enough, and of them the shufflings can be averaged.
            runs.append(errors_of_forecasts([made], [shuffled], truth)[["mse_a", "mse_b", "weight"]])
    return xr.concat(runs, "run", data_vars="minimal", coords="minimal", compat="override", join="override")
