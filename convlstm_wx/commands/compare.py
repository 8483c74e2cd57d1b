"""compare: whether one forecast is better than another, when and where."""

import argparse
import logging
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convlstm_wx.commands.keeping import add_budget, kept
from convlstm_wx.commands.making import load_members, open_data, open_trained
from convlstm_wx.commands.options import DONE, add_command, add_confidence, add_making, nonempty, seed
from convlstm_wx.commands.unseen import add_months, plan_unseen
from convlstm_wx.errors import ConfigError, DataError

if TYPE_CHECKING:
    import xarray as xr

    from convlstm_wx.checkpoint import Checkpoint

log = logging.getLogger(__name__)

NO_MAPS = "maps: none, as scores.nc keeps no errors by point and time; give two checkpoints or forecast files for them"


def add(subparsers: Any) -> None:
    """Declare the command."""
    command = add_command(subparsers, "compare", run, "Is B better than A on the forecasts that both made?")
    command.add_argument(
        "a",
        metavar="A",
        type=nonempty,
        help="an evaluation (its folder or scores.nc), a checkpoint or a run's folder, or a forecast file",
    )
    command.add_argument("b", metavar="B", type=nonempty, help="what is compared with it, of any of these kinds")
    command.add_argument("--output", metavar="FOLDER", type=nonempty, help="where tables, maps and the page go")
    command.add_argument(
        "--data", metavar="PATH", type=nonempty, nargs="+", help="what checkpoints and forecast files are scored with"
    )
    add_months(command)
    add_making(command)
    add_confidence(command)
    command.add_argument("--seed", metavar="N", type=seed, default=0, help="of the resampling (default: 0)")
    add_budget(command)


@dataclass(frozen=True)
class Side:
    """A or B: the scores of an evaluation, or else forecasts.

    Attributes:
        described: for people.
        scores: of evaluate, if it is an evaluation.
        forecast: otherwise.
    """

    described: str
    scores: "xr.Dataset | None" = None
    forecast: "xr.Dataset | None" = None


def run(options: argparse.Namespace) -> int:
    """Whether B is better than A."""
    from convlstm_wx.files import check_can_make
    from convlstm_wx.verification import compare as comparison

    paths = [Path(options.a), Path(options.b)]
    kinds = [_kind(path) for path in paths]
    _check_options(options, kinds)
    if options.output:
        check_can_make(Path(options.output))
    members = [load_members(str(path)) if kind == "checkpoint" else [] for path, kind in zip(paths, kinds)]
    dataset = open_data(options.data, [each for side in members for each in side]) if options.data else None
    with ExitStack() as stack:
        a, b = (_open(options, *side, dataset, stack) for side in zip(paths, kinds, members))
        errors = _errors(a, b, dataset)
    gains = comparison.compare(errors, confidence=options.confidence, seed=options.seed)
    log.info("A          %s", a.described)
    log.info("B          %s", b.described)
    said = comparison.sentences(gains)
    say(gains, said)
    if "gain_map" not in gains:
        log.info(NO_MAPS)
    if options.output:
        facts = {"A": a.described, "B": b.described} | ({} if "gain_map" in gains else {"Maps": NO_MAPS[6:]})
        written = write(gains, said, Path(options.output), title="Is B better than A?", facts=facts)
        log.info("written    %s", ", ".join(map(str, written)))
    return DONE


def say(gains: "xr.Dataset", said: Sequence[str]) -> None:
    """How many pairs there were, and what they say; of many channels, of some of each variable."""
    from convlstm_wx.conventions import Channel
    from convlstm_wx.text import MOST_CHANNELS, choose_some

    known = gains.attrs
    log.info(
        "pairs      %d in common of init and lead time, of %d in A and %d in B; init times %s to %s",
        *(known[name] for name in ("pairs_common", "pairs_a", "pairs_b", "first_init_time", "last_init_time")),
    )
    channels = [Channel.parse(str(name)) for name in gains["channel"].values]
    left_out = {channel.name for channel in channels} - {each.name for each in choose_some(channels, MOST_CHANNELS)}
    for sentence in said:
        if sentence.partition(":")[0] not in left_out:
            log.info(sentence)
    if left_out:
        log.info("sentences on %d of %d channels; --output FOLDER writes all", MOST_CHANNELS, len(channels))


def write(
    gains: "xr.Dataset",
    said: Sequence[str],
    folder: Path,
    *,
    title: str,
    facts: dict[str, str],
    names: tuple[str, str] = ("A", "B"),
    further: Sequence[tuple[str, Sequence[str]]] = (),
    stem: str = "comparison",
) -> list[Path]:
    """The files and the page of a comparison, see report.comparison.write_page."""
    from convlstm_wx.files import make_folder
    from convlstm_wx.report import comparison as report
    from convlstm_wx.verification.recording import write_comparison

    make_folder(folder)
    written = write_comparison(gains, said, folder, stem)
    page = report.write_page(
        folder / f"{stem}.html",
        title=title,
        said=said,
        gains=gains,
        figures=report.draw(gains, names),
        facts=facts,
        further=further,
    )
    return [*written, page]


# What A and B are


def _kind(path: Path) -> str:
    """ "evaluation", "checkpoint" or "forecast file".

    Raises:
        DataError: if there is nothing.
    """
    import xarray as xr

    from convlstm_wx.checkpoint import is_run

    if not path.exists():
        raise DataError(f"{path}: no such file or folder; give an evaluation, a checkpoint or a forecast file")
    if path.suffix == ".pt" or (is_run(path) and not (path / "scores.nc").exists()):
        return "checkpoint"
    if path.is_dir():
        return "forecast file" if path.suffix == ".zarr" else "evaluation"
    try:
        with xr.open_dataset(path, decode_times=False) as opened:
            return "evaluation" if "mse_by_init" in opened or "init_time" not in opened.sizes else "forecast file"
    except (OSError, ValueError):
        return "forecast file"  # whose reader says what is wrong with it


def _check_options(options: argparse.Namespace, kinds: Sequence[str]) -> None:
    """Refuse options that are missing, or do nothing.

    Raises:
        ConfigError: naming them.
    """
    others = [f"{name} is a {kind}" for name, kind in zip("AB", kinds) if kind != "evaluation"]
    if others and not options.data:
        raise ConfigError(f"--data is needed, as {' and '.join(others)}: give the data to score with")
    given = {"--data": options.data} if not others else {}
    if "checkpoint" not in kinds:
        given |= {
            "--months": options.months,
            "--allow-seen": options.allow_seen,
            "--upstream-data": options.upstream_data,
            "--lead-steps": options.lead_steps,
            "--memory-budget": options.memory_budget,
        }
    idle = [name for name, value in given.items() if value]
    if idle:
        raise ConfigError(f"{' '.join(idle)}: does nothing here, as A is a {kinds[0]} and B a {kinds[1]}; leave it out")


def _open(
    options: argparse.Namespace,
    path: Path,
    kind: str,
    members: list["Checkpoint"],
    dataset: "xr.Dataset | None",
    stack: ExitStack,
) -> Side:
    """What a path holds; forecasts are there until the stack is closed."""
    from convlstm_wx.data.reading import open_forecast
    from convlstm_wx.verification.compare import open_scores

    if kind == "evaluation":
        return Side(f"evaluation {path}", scores=open_scores(path))
    if kind == "forecast file" or dataset is None:
        return Side(f"forecast file {path}", forecast=open_forecast(path))
    trained = open_trained(members, dataset, options.upstream_data if members[0].spec.upstream_files else None)
    forecast, months = plan_unseen(options, trained, dataset)
    folder = Path(options.output) if options.output else None
    made = stack.enter_context(kept(forecast, folder, budget=options.memory_budget))
    what = f"ensemble of {len(members)} members in" if len(members) > 1 else "checkpoint"
    return Side(f"{what} {path}, months {months}", forecast=made)


def _errors(a: Side, b: Side, dataset: "xr.Dataset | None") -> "xr.Dataset":
    """Of both on common pairs; with maps if both are forecasts."""
    from convlstm_wx.verification.compare import errors_of_scores
    from convlstm_wx.verification.pairing import errors_of_forecasts, points_of, scores_of_forecast

    if a.forecast is not None and b.forecast is not None and dataset is not None:
        smaller = min(a.forecast, b.forecast, key=points_of)
        return errors_of_forecasts([a.forecast], [b.forecast], truth_of(dataset, smaller))
    evaluated = next((side.scores["system"].values for side in (a, b) if side.scores is not None), ())
    scores = []
    for side in (a, b):
        if side.scores is not None:
            scores.append(side.scores)
        elif side.forecast is not None and dataset is not None:
            scores.append(scores_of_forecast(side.forecast, truth_of(dataset, side.forecast), evaluated))
    return errors_of_scores(*scores)


def truth_of(dataset: "xr.Dataset", forecast: "xr.Dataset") -> "xr.Dataset":
    """The part of the data where a forecast is."""
    from convlstm_wx.data.regions import Grid, select_region

    return select_region(dataset, Grid.from_dataset(forecast.sortby("lat")).box())
