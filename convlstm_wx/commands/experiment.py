"""experiment upstream: the same training with and without upstream regions, scored, compared and put to the test."""

import argparse
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convlstm_wx.commands import variants
from convlstm_wx.commands.compare import say, truth_of, write
from convlstm_wx.commands.info import parameters_of
from convlstm_wx.commands.options import (
    DONE,
    STOPPED,
    Formatter,
    add_command,
    add_confidence,
    add_settings,
    nonempty,
    run_name,
    seed,
    training_config,
)
from convlstm_wx.commands.permute import add_permutations, errors_of_permutations
from convlstm_wx.commands.trainings import Training, choices, evaluate, forecast, is_newer, load, request, train
from convlstm_wx.config import AUTO, TrainConfig
from convlstm_wx.errors import ConfigError

if TYPE_CHECKING:
    import xarray as xr

log = logging.getLogger(__name__)

SEEDS = (0, 1, 2)
ARMS = {"without upstream": "without_upstream", "with upstream": "with_upstream"}
WITHOUT, WITH = ARMS
ONE_PAIR = "One pair of runs: the intervals know of the weather, not of the luck of training; give more --seeds."
OURS = {"seed": "give --seeds", "output_dir": "give --output", "members": "runs are repeated by --seeds"}
UPSTREAM = (
    "include_upstream", "upstream_region", "upstream_data", "upstream_variables", "upstream_fusion", "upstream_coarsen",
)  # fmt: skip


def add(subparsers: Any) -> None:
    """Declare the command and its experiments."""
    outer = subparsers.add_parser(
        "experiment",
        help="Train with and without upstream regions, or variants of your own, and say what is better.",
        formatter_class=Formatter,
    )
    experiments = outer.add_subparsers(dest="experiment", required=True, metavar="EXPERIMENT")
    command = add_command(
        experiments,
        "upstream",
        run,
        "Train with and without upstream regions under the same budget and seeds, score both on the held-out months, "
        "compare them, and shuffle the upstream inputs to see whether they are used. Given again, the same command "
        "goes on where it was.",
    )
    add_settings(command, without=("include_upstream", *OURS))
    group = command.add_argument_group("Experiment")
    group.add_argument("--seeds", metavar="N", type=seed, nargs="+", default=SEEDS, help="one training each (0 1 2)")
    group.add_argument(
        "--output", metavar="FOLDER", type=nonempty, help="of all results (default: experiments/<name of the data>)"
    )
    add_permutations(group)
    add_confidence(group)
    variants.add(experiments)


def run(options: argparse.Namespace) -> int:
    """Train, evaluate, compare, shuffle: what is there already is kept."""
    from convlstm_wx.data.inputs import masking_of, with_regions
    from convlstm_wx.data.reading import open_dataset
    from convlstm_wx.files import alone_in, check_can_make, make_folder

    if len(set(options.seeds)) < len(options.seeds):
        raise ConfigError(f"--seeds {' '.join(map(str, options.seeds))}: one is there twice; give different ones")
    options.include_upstream = True
    config = training_config(options, not_here=OURS)
    folder = Path(options.output or Path("experiments") / run_name(config.data))
    check_can_make(folder)
    dataset = open_dataset(config.data, masking=masking_of(config))
    config, notes = with_regions(config, dataset)  # the same target with and without upstream
    trainings = [_training(config, arm, one, folder) for one in options.seeds for arm in (WITH, WITHOUT)]
    _check_same(folder, config)
    make_folder(folder)
    with alone_in(folder, "--output"):
        _remember(folder, config)
        _say_plan(trainings, options)
        for note in notes:
            log.info("           %s", note)
        for number, training in enumerate(trainings, 1):
            log.info("\n%d of %d: %s, seed %d", number, len(trainings), training.name, training.config.seed)
            if not train(training):
                return STOPPED
            forecast(training, dataset)
            evaluate(training, confidence=options.confidence)
        _conclude(trainings, dataset, options, folder)
    return DONE


def _training(config: TrainConfig, arm: str, seed: int, folder: Path) -> Training:
    entries = config.to_dict()
    if arm == WITHOUT:
        defaults = TrainConfig().to_dict()
        entries |= {name: defaults[name] for name in UPSTREAM}
    entries |= {"seed": seed, "output_dir": str(folder / ARMS[arm] / f"seed_{seed}")}
    return Training(arm, TrainConfig.from_dict(entries))


def _say_plan(trainings: Sequence[Training], options: argparse.Namespace) -> None:
    done = sum(training.is_trained() for training in trainings)
    log.info(
        "experiment %d trainings%s: with and without upstream, seeds %s%s",
        len(trainings),
        f" of up to {trainings[0].config.num_epochs} epochs" if trainings[0].config.num_epochs != AUTO else "",
        " ".join(map(str, options.seeds)),
        f"; {done} of them are done already" if done else "",
    )
    log.info(
        "           then a forecast and an evaluation of each, one comparison, and %d forecasts with shuffled upstream",
        len(options.seeds) * options.permutations,
    )


# The same experiment


def _check_same(folder: Path, config: TrainConfig) -> None:
    """Refuse to mix results of different settings or data.

    Raises:
        ConfigError: naming what differs.
    """
    file = folder / "experiment.json"
    if not file.exists():
        return
    try:
        before = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file}: cannot be read ({error}); choose another --output") from error
    now = json.loads(json.dumps(request(config)))
    differ = [name.replace("_", "-") for name in now if before.get(name) != now[name]]
    if differ:
        raise ConfigError(
            f"{folder} holds an experiment with other settings ({', '.join(differ)}): choose another --output, or give "
            f"the same ones to go on"
        )


def _remember(folder: Path, config: TrainConfig) -> None:
    from convlstm_wx.files import write_text

    write_text(folder / "experiment.json", json.dumps(request(config), indent=1) + "\n")


# What all of them say


def _conclude(trainings: Sequence[Training], dataset: "xr.Dataset", options: argparse.Namespace, folder: Path) -> None:
    """Compare the two arms over all seeds, and shuffle the upstream inputs of those that have them."""
    from convlstm_wx.data.reading import open_forecast
    from convlstm_wx.verification import permutation
    from convlstm_wx.verification.compare import agreement, compare, sentences
    from convlstm_wx.verification.pairing import errors_of_forecasts

    arms = {arm: [training for training in trainings if training.name == arm] for arm in ARMS}
    given = {arm: [open_forecast(training.forecast) for training in arms[arm]] for arm in ARMS}
    errors = errors_of_forecasts(given[WITHOUT], given[WITH], truth_of(dataset, given[WITH][0]))
    gains = compare(errors, confidence=options.confidence)
    names = (WITHOUT, WITH)
    said = [*sentences(gains, names), *agreement(gains, names)]
    if len(arms[WITH]) == 1:
        said.append(ONE_PAIR)
    costs = compare(_permutation_errors(arms[WITH], dataset, options), confidence=options.confidence)
    tested = [*permutation.sentences(costs), *permutation.readings(gains, costs)]
    log.info("\ndoes the upstream region help?")
    say(gains, said)
    log.info("\nis it used? (upstream inputs of other times, %d times shuffled)", costs.attrs["runs"])
    for sentence in tested:
        log.info(sentence)
    written = write(
        gains,
        said,
        folder,
        title="Does the upstream region help?",
        facts=_facts(arms),
        names=names,
        further=[("Is it used? Forecasts with the upstream inputs of other times", tested)],
    )
    written += write(
        costs,
        tested,
        folder,
        title="Does the model use its upstream region?",
        facts={"A": "upstream inputs as they were", "B": "upstream inputs of other times of the same month and hour"},
        names=("upstream as it was", "upstream of other times"),
        stem="permutation",
    )
    log.info("written    %s", ", ".join(map(str, written)))


def _permutation_errors(
    trainings: Sequence[Training], dataset: "xr.Dataset", options: argparse.Namespace
) -> "xr.Dataset":
    """Of all seeds, a run for each permutation; kept beside the checkpoint, as they take long."""
    import xarray as xr

    from convlstm_wx.data.reading import open_forecast
    from convlstm_wx.files import library_errors, replacing

    every = []
    for training in trainings:
        kept = training.folder / f"permutations_{options.permutations}.nc"
        if not is_newer(kept, training.forecast):
            making = argparse.Namespace(
                **vars(choices(training.config)), permutations=options.permutations, seed=training.config.seed
            )
            made = open_forecast(training.forecast)
            errors = errors_of_permutations(making, load(training, dataset), dataset, made)
            with replacing(kept) as temporary, library_errors():
                errors.to_netcdf(temporary)
        with xr.open_dataset(kept, decode_timedelta=True) as opened:
            every.append(opened.load())
    return xr.concat(every, "run", data_vars="minimal", coords="minimal", compat="override", join="inner")


def _facts(arms: dict[str, list[Training]]) -> dict[str, str]:
    from convlstm_wx.checkpoint import load_checkpoint

    facts = {}
    for side, (arm, trainings) in zip("AB", arms.items()):
        checkpoint = load_checkpoint(trainings[0].best)
        numbers = parameters_of(checkpoint)
        regions = "; ".join(region.describe() for region in checkpoint.spec.upstream)
        epochs = ", ".join(str(_epochs(training)) for training in trainings)
        facts[side] = (
            f"{arm}{f' ({regions})' if regions else ''}: {numbers:,} weights, {epochs} epochs, "
            f"in {trainings[0].folder.parent}"
        )
    spec = checkpoint.spec
    facts["Data"] = f"{spec.source}, target {spec.target.describe()}"
    facts["Seeds"] = " ".join(str(training.config.seed) for training in arms[WITH])
    facts["Months"] = "held out in training"
    return facts


def _epochs(training: Training) -> int:
    """That were trained."""
    from convlstm_wx.checkpoint import load_checkpoint

    return len(load_checkpoint(training.folder / "last.pt").training["progress"]["history"])
