"""experiment variants: a comparison of settings from one small TOML file, chosen by validation alone."""

import argparse
import csv
import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convlstm_wx.commands.info import parameters_of
from convlstm_wx.commands.options import DONE, STOPPED, add_command, nonempty, read_toml, training_device
from convlstm_wx.commands.trainings import Training, evaluate, forecast, request, train
from convlstm_wx.config import BEFORE_THERE_WAS_A_SETTING, TrainConfig
from convlstm_wx.errors import ConfigError, TrainingError

if TYPE_CHECKING:
    import xarray as xr

    from convlstm_wx.report.variants import Result

log = logging.getLogger(__name__)

KEYS: dict[str, tuple[type, ...]] = {
    "output_dir": (str,),
    "seeds": (list,),
    "minutes": (int, float),
    "evaluate": (bool,),
}
SEEDS = (0, 1, 2)
OURS = {
    "seed": "give seeds under [experiment]",
    "output_dir": "give it under [experiment]",
    "members": "runs are repeated by seeds under [experiment]",
}
NAME = re.compile(r"\w[\w .,=+-]*")
PROBES = 3  # of a batch, to know how long an epoch takes


def add(experiments: Any) -> None:
    """Declare the command."""
    command = add_command(
        experiments,
        "variants",
        run,
        "Train variants of the settings with several seeds each, as a small TOML file says, and tell by the validation "
        "months which is better. Given again, the same command goes on where it was.",
    )
    command.add_argument("file", metavar="FILE", type=nonempty, help="such as scripts/experiments/width.toml")


@dataclass(frozen=True)
class Experiment:
    """What a file asks for.

    Attributes:
        title: the name of the file.
        folder: of all results.
        seeds: of each variant.
        minutes: about so long may a run train; None: as many epochs as the settings say.
        evaluate: whether the held-out months are scored too.
        variants: settings by name, without seed and folder.
        own: what each variant sets itself, in words.
    """

    title: str
    folder: Path
    seeds: Sequence[int]
    minutes: float | None
    evaluate: bool
    variants: Mapping[str, TrainConfig]
    own: Mapping[str, str]


# The file


def read(path: Path) -> Experiment:
    """The experiment of a TOML file.

    Raises:
        ConfigError: naming the file and what is wrong in it.
    """
    entries = read_toml(path, str(path))
    asked = _table(entries, "experiment", path)
    settings = _table(entries, "settings", path)
    given = entries.pop("variant", [])
    if not isinstance(given, list) or not all(isinstance(each, dict) for each in given):
        raise ConfigError(f"{path}: write each variant as [[variant]]")
    if entries:
        raise ConfigError(
            f"{path}: unknown '{next(iter(entries))}'; there are [experiment], [settings] and [[variant]]"
        )
    _check_asked(asked, path)
    shared = _typed(settings, f"{path}: [settings]")
    variants: dict[str, TrainConfig] = {}
    own: dict[str, str] = {}
    for entry in given:
        name = _name(entry, variants, path)
        apart = {key: value for key, value in entry.items() if key != "name"}
        own[name] = ", ".join(f"{key} {_words(value)}" for key, value in apart.items()) or "as they are"
        variants[name] = _config(shared | _typed(apart, f"{path}: variant '{name}'"), f"{path}: variant '{name}'")
    if not variants:
        raise ConfigError(f'{path}: no variant; give at least one: [[variant]], under it name = "..." and its settings')
    _check_differ(variants, path)
    return Experiment(
        title=path.stem,
        folder=Path(asked.get("output_dir") or Path("experiments") / path.stem),
        seeds=asked.get("seeds", SEEDS),
        minutes=asked.get("minutes"),
        evaluate=asked.get("evaluate", False),
        variants=variants,
        own=own,
    )


def _table(entries: dict[str, Any], name: str, path: Path) -> dict[str, Any]:
    """A part of the file, taken out of it."""
    found = entries.pop(name, {})
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: write {name} as [{name}]")
    return found


def _check_asked(asked: Mapping[str, Any], path: Path) -> None:
    for key, value in asked.items():
        if key not in KEYS:
            raise ConfigError(f"{path}: [experiment] has no '{key}'; it takes {', '.join(KEYS)}")
        if type(value) not in KEYS[key]:
            wanted = " or ".join(kind.__name__ for kind in KEYS[key])
            raise ConfigError(f"{path}: [experiment] {key}: expected {wanted}, found {value!r}")
    seeds: Sequence[Any] = asked.get("seeds", SEEDS)
    minutes = asked.get("minutes", 1)
    whole = all(type(seed) is int and 0 <= seed < 2**63 for seed in seeds)
    if not seeds or not whole or len(set(seeds)) < len(seeds):
        raise ConfigError(f"{path}: seeds = {seeds}: give one or more different whole numbers of at least 0")
    if not 0 < minutes < float("inf"):
        raise ConfigError(f"{path}: minutes = {minutes}: must be above 0")


def _typed(entries: Mapping[str, Any], source: str) -> dict[str, Any]:
    values = TrainConfig.typed(entries, source)
    for name in OURS.keys() & values.keys():
        raise ConfigError(f"{source}: {name} is for the experiment to set; {OURS[name]}")
    return values


def _name(entry: Mapping[str, Any], before: Mapping[str, Any], path: Path) -> str:
    name = entry.get("name")
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise ConfigError(f"{path}: a variant needs a name of letters, digits, blanks and . , = + - _; found {name!r}")
    if name.lower() in (other.lower() for other in before):  # folders are named so, and some systems see no case
        raise ConfigError(f"{path}: two variants are called '{name}'; give each a name of its own")
    return name


def _config(entries: Mapping[str, Any], source: str) -> TrainConfig:
    if not entries.get("data"):
        raise ConfigError(f"{source}: no data; give it under [settings]")
    try:
        return TrainConfig(**entries)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from error


def _check_differ(variants: Mapping[str, TrainConfig], path: Path) -> None:
    seen: dict[TrainConfig, str] = {}
    for name, config in variants.items():
        if config in seen:
            raise ConfigError(
                f"{path}: variants '{seen[config]}' and '{name}' have the same settings; give '{name}' one that differs"
            )
        seen[config] = name


def _words(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(_words, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


# The runs


def run(options: argparse.Namespace) -> int:
    """Train what is not trained yet, keep the tables up to date, score the held-out months if asked to."""
    from convlstm_wx.data.inputs import masking_of
    from convlstm_wx.data.reading import open_dataset
    from convlstm_wx.files import alone_in, check_can_make, make_folder

    experiment = read(Path(options.file))
    check_can_make(experiment.folder)
    opened = {config.data: masking_of(config) for config in experiment.variants.values()}
    datasets = {data: open_dataset(data, masking=masking) for data, masking in opened.items()}
    experiment = replace(experiment, variants=_on_one_target(experiment.variants, datasets))
    _check_same(experiment)
    make_folder(experiment.folder)
    with alone_in(experiment.folder, "output_dir"):
        return _run(experiment)


def _on_one_target(
    variants: Mapping[str, TrainConfig], datasets: Mapping[tuple[str, ...], "xr.Dataset"]
) -> dict[str, TrainConfig]:
    """The variants with the lee third of their data as target, where one of them divides the file."""
    from convlstm_wx.data.inputs import with_regions

    divided = {name: with_regions(config, datasets[config.data])[0] for name, config in variants.items()}
    targets = {one.data: one.target_region for one in divided.values() if one not in variants.values()}
    return {
        name: config if config.target_region else replace(config, target_region=targets.get(config.data))
        for name, config in divided.items()
    }


def _run(experiment: Experiment) -> int:
    epochs = {name: _epochs(experiment, name) for name in experiment.variants}
    trainings = [
        _training(experiment, name, seed, epochs[name]) for seed in experiment.seeds for name in experiment.variants
    ]
    done = {training: _result(training) for training in trainings if training.is_trained()}
    failed: dict[Training, str] = {}
    log.info("experiment   %d variants, seeds %s", len(experiment.variants), " ".join(map(str, experiment.seeds)))
    log.info("             %d runs, %d of them done already", len(trainings), len(done))
    for number, training in enumerate(trainings, 1):
        if training in done:
            continue
        log.info(
            "\nrun %d of %d: %s%s", number, len(trainings), _title(training), _time_left(trainings[number - 1 :], done)
        )
        try:
            if not train(training):
                return STOPPED
        except TrainingError as error:
            log.error("%s: %s", _title(training), error)
            failed[training] = str(error)
            continue
        done[training] = _result(training)
        _write(experiment, trainings, done, failed)
    if experiment.evaluate:
        done = _evaluated(done)
    text = _write(experiment, trainings, done, failed)
    log.info("\n%s", text)
    log.info("written    %s", experiment.folder / "table.md")
    if failed:
        raise TrainingError(f"{len(failed)} of {len(trainings)} runs failed, see {experiment.folder / 'table.md'}")
    return DONE


def _title(training: Training) -> str:
    return f"{training.name}, seed {training.config.seed}"


def _time_left(left: Sequence[Training], done: "Mapping[Training, Result]") -> str:
    """By what runs of the same variant took, or those of all; nothing before the first is done."""
    if not done:
        return ""
    took = {training: each.epochs * each.seconds_per_epoch for training, each in done.items()}

    def expected(training: Training) -> float:
        own = [seconds for other, seconds in took.items() if other.name == training.name]
        known = own or list(took.values())
        return sum(known) / len(known)

    seconds = sum(expected(training) for training in left if training not in done)
    return f"; all that is left takes about {seconds / 60:.0f} minutes" if seconds >= 90 else "; little is left"


def _evaluated(done: "Mapping[Training, Result]") -> "dict[Training, Result]":
    """With the scores of the held-out months."""
    from convlstm_wx.data.inputs import masking_of
    from convlstm_wx.data.reading import open_dataset

    for number, training in enumerate(done, 1):
        log.info("\nheld-out months, %d of %d: %s", number, len(done), _title(training))
        forecast(training, open_dataset(training.config.data, masking=masking_of(training.config)))
        evaluate(training)
    return {training: replace(result, held_out=_scores(training)) for training, result in done.items()}


def _scores(training: Training) -> list[dict[str, str]]:
    with (training.report.parent / "scores.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _result(training: Training) -> "Result":
    from convlstm_wx.checkpoint import load_checkpoint
    from convlstm_wx.report.variants import Result
    from convlstm_wx.training.logbook import channel_units, lead_hours

    checkpoint = load_checkpoint(training.last)
    progress = checkpoint.training["progress"]
    history = progress["history"]
    best = min(history, key=lambda row: row["validation_loss"])
    return Result(
        variant=training.name,
        seed=training.config.seed,
        folder=str(training.folder),
        parameters=parameters_of(checkpoint),
        epochs=len(history),
        best_epoch=best["epoch"],
        seconds_per_epoch=history[-1]["elapsed_s"] / len(history),
        training_loss=best["train_loss"],
        validation_loss=best["validation_loss"],
        persistence_loss=best["persistence_loss"],
        rmse=progress["rmse"][best["epoch"]],
        persistence_rmse=progress["persistence_rmse"],
        units=channel_units(checkpoint.spec),
        lead_hours=lead_hours(checkpoint.spec),
    )


def _write(
    experiment: Experiment,
    trainings: Sequence[Training],
    done: "Mapping[Training, Result]",
    failed: Mapping[Training, str],
) -> str:
    """All tables as they stand; returns the page."""
    from convlstm_wx.files import write_text
    from convlstm_wx.report.variants import compared, markdown, tables

    results = [done[training] for training in trainings if training in done]
    variants = compared(results, experiment.own)
    remarks = [f"{len(done)} of {len(trainings)} runs are done."]
    remarks += [f"Failed: {_title(training)}: {error}" for training, error in failed.items()]
    text = markdown(experiment.title, variants, remarks)
    write_text(experiment.folder / "table.md", text)
    for name, rows in tables(variants).items():
        write_text(experiment.folder / name, rows)
    return text


# The same experiment


def _memory(experiment: Experiment, name: str) -> Path:
    return experiment.folder / name / "variant.json"


def _asked(experiment: Experiment, name: str) -> dict[str, Any]:
    """What the results of a variant depend on but the seed."""
    return json.loads(json.dumps(request(experiment.variants[name]) | {"minutes": experiment.minutes}))


def _remembered(experiment: Experiment, name: str) -> dict[str, Any]:
    """What was asked before, and how many epochs were found to fit; nothing of a variant without any checkpoint.

    Raises:
        ConfigError: if it cannot be read.
    """
    file = _memory(experiment, name)
    if not any(file.parent.glob("seed_*/*.pt")):
        return {}
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file}: cannot be read ({error}); delete {file.parent} to train it anew") from error


def _check_same(experiment: Experiment) -> None:
    """Refuse to mix runs of different settings or data under one name.

    Raises:
        ConfigError: naming what differs.
    """
    defaults = TrainConfig().to_dict() | BEFORE_THERE_WAS_A_SETTING
    for name in experiment.variants:
        before, now = _remembered(experiment, name), _asked(experiment, name)
        if not before:
            continue
        before = defaults | before  # an option that came later had its default
        differ = [key for key in now if before.get(key) != now[key]]
        if differ:
            raise ConfigError(
                f"{_memory(experiment, name).parent} was trained with other settings ({', '.join(differ)}): give them "
                f"back, call the variant otherwise, choose another output_dir, or delete that folder"
            )


def _training(experiment: Experiment, name: str, seed: int, epochs: int) -> Training:
    folder = experiment.folder / name / f"seed_{seed}"
    return Training(name, replace(experiment.variants[name], num_epochs=epochs, seed=seed, output_dir=str(folder)))


def _epochs(experiment: Experiment, name: str) -> int:
    """How many each run of a variant trains: as many as fit is found once, and remembered with what was asked."""
    from convlstm_wx.files import make_folder, write_text

    config, file = experiment.variants[name], _memory(experiment, name)
    epochs = _remembered(experiment, name).get("epochs that fit")
    if epochs is None:
        epochs = _epochs_that_fit(name, config, experiment.minutes) if experiment.minutes else config.num_epochs
        make_folder(file.parent)
        write_text(file, json.dumps(_asked(experiment, name) | {"epochs that fit": epochs}, indent=1) + "\n")
    return epochs


def _epochs_that_fit(name: str, config: TrainConfig, minutes: float) -> int:
    """At most those of the settings, at least one: so the learning rate falls to its end within the time."""
    from convlstm_wx.data.inputs import prepare_training
    from convlstm_wx.distributed import Processes
    from convlstm_wx.training.autobatch import tried_run
    from convlstm_wx.training.plan import make_plan
    from convlstm_wx.training.probe import probe

    inputs, policy = prepare_training(config), training_device(config)
    run, _ = tried_run(config, inputs, policy, Path(), Processes())
    seconds = make_plan(run, inputs, probe(run, repeats=PROBES)).epoch_seconds
    epochs = min(run.config.num_epochs, max(1, int(60 * minutes / seconds)))
    log.info("%s: an epoch takes about %.3g s, %d fit into %g minutes", name, seconds, epochs, minutes)
    return epochs
