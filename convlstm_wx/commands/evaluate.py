"""evaluate: held-out months scored beside persistence, climatology and statistical rivals."""

import argparse
import logging
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convlstm_wx.commands.keeping import add_budget, kept
from convlstm_wx.commands.making import add_ensemble, load_members, open_data, open_trained, say_ensemble, say_forecast
from convlstm_wx.commands.options import (
    DONE,
    add_command,
    add_confidence,
    add_dask_scheduler,
    add_data_and_device,
    seed,
)
from convlstm_wx.commands.unseen import add_months, check_unseen, plan_unseen
from convlstm_wx.errors import ConfigError, DataError

if TYPE_CHECKING:
    import numpy as np
    import xarray as xr

    from convlstm_wx.checkpoint import Checkpoint
    from convlstm_wx.data.regions import Region
    from convlstm_wx.report.card import Card

log = logging.getLogger(__name__)

BASELINES = ("persistence", "climatology", "diurnal_persistence", "damped_persistence", "linear_inverse_model")


def add(subparsers: Any) -> None:
    """Declare the command."""
    command = add_command(
        subparsers,
        "evaluate",
        run,
        "Score forecasts of the held-out months beside persistence, climatology and statistical rivals.",
    )
    add_data_and_device(command, checkpoint_required=False)
    command.add_argument("--output", metavar="FOLDER", required=True, help="where scores, figures and the page go")
    command.add_argument(
        "--forecast",
        metavar="FILE",
        help="score this forecast file instead of making forecasts; months and lead steps may be chosen",
    )
    add_months(command)
    add_ensemble(command.add_argument_group("Ensembles (of a checkpoint)"))
    scoring = command.add_argument_group("Scoring")
    scoring.add_argument(
        "--baselines",
        metavar="NAME",
        nargs="+",
        choices=BASELINES,
        help=f"rivals beside persistence and climatology, of {', '.join(BASELINES)} (default: all that apply)",
    )
    scoring.add_argument(
        "--thresholds",
        metavar="NAME=VALUE,...",
        nargs="+",
        help="events: values (of precipitation in mm) or percentiles of the training anomalies, such as tp=1,5,10 "
        "t2m=p90,p99 (default: precipitation 0.1,1,5,10,25,50, others p90,p95)",
    )
    scoring.add_argument(
        "--box",
        metavar=("LAT_MIN", "LAT_MAX", "LON_MIN", "LON_MAX"),
        type=float,
        nargs=4,
        action="append",
        default=[],
        help="a part of the region to score on its own too; may be repeated",
    )
    add_confidence(command)
    command.add_argument(
        "--seed", metavar="N", type=seed, default=0, help="of the resampling and of members (default: 0)"
    )
    add_budget(command)
    add_dask_scheduler(command)


def run(options: argparse.Namespace) -> int:
    """Score forecasts of months that training did not see."""
    from convlstm_wx.data.reading import open_forecast
    from convlstm_wx.files import check_can_make
    from convlstm_wx.preparing.cluster import check_cluster

    check_can_make(Path(options.output))
    members = load_members(options.checkpoint) if options.checkpoint else []
    forecast = open_forecast(options.forecast) if options.forecast else None
    dataset = open_data(options.data, members, forecast)
    if options.dask_scheduler:
        check_cluster(options.dask_scheduler)
    with ExitStack() as stack:
        if forecast is not None:
            return _score(options, *_of_file(options, forecast, dataset, members))
        return _score(options, *_of_checkpoint(options, dataset, members, stack))


def _score(
    options: argparse.Namespace,
    made: "xr.Dataset",
    truth: "xr.Dataset",
    training_times: "np.ndarray",
    card: "Card",
) -> int:
    """Scores, sentences, figures and the page."""
    from convlstm_wx.files import make_folder
    from convlstm_wx.preparing.cluster import run_on
    from convlstm_wx.text import MOST_CHANNELS, select_some
    from convlstm_wx.verification import summary
    from convlstm_wx.verification.evaluate import evaluate
    from convlstm_wx.verification.gathering import one_by_one

    folder = Path(options.output)
    scores = evaluate(
        made,
        truth,
        training_times,
        baselines=options.baselines,
        thresholds=options.thresholds,
        boxes=_boxes(options),
        confidence=options.confidence,
        seed=options.seed,
        runner=partial(run_on, options.dask_scheduler) if options.dask_scheduler else one_by_one,
    )
    log.info("\n%s\n", summary.table(scores))
    some = select_some(scores, MOST_CHANNELS)
    for sentence in [*summary.verdicts(some), *summary.event_verdicts(some)]:
        log.info(sentence)
    make_folder(folder)
    written = summary.write_scores(scores, folder)
    figures, page = _draw(folder, made, truth, scores, card, _history(options))
    log.info("written    %s, %d figures", ", ".join(str(path) for path in [*written, page]), len(figures))
    return DONE


def _history(options: argparse.Namespace) -> Path | None:
    """Of the run that is scored; the members of an ensemble have one each, and their folder none."""
    if not options.checkpoint:
        return None
    path = Path(options.checkpoint)
    return (path if path.is_dir() else path.parent) / "history.csv"


def _of_checkpoint(
    options: argparse.Namespace, dataset: "xr.Dataset", members: list["Checkpoint"], stack: ExitStack
) -> tuple["xr.Dataset", "xr.Dataset", "np.ndarray", "Card"]:
    """Forecasts of the chosen months, the truth, the training times, and what the page tells of the model.

    The forecasts are there until the stack is closed.
    """
    from convlstm_wx.commands.card import card_of
    from convlstm_wx.data.regions import select_region
    from convlstm_wx.data.splits import TRAIN
    from convlstm_wx.forecast.assembling import ensemble_of
    from convlstm_wx.verification import events
    from convlstm_wx.verification.breakdowns import places_in

    if not members:
        raise ConfigError("--checkpoint is needed, unless a --forecast file is scored")
    spec = members[0].spec
    trained = open_trained(members, dataset, options.upstream_data)
    times = dataset["time"].values
    roles = spec.split.roles(times)
    if not (roles == TRAIN).any():
        raise DataError(
            f"{dataset.attrs['source']}: holds none of the training times, which the climatology is made of; "
            f"give that file too: --data TRAINING_FILE NEW_FILE"
        )
    ensemble = ensemble_of(
        trained, options.members, spread=options.spread, perturbation=options.perturbation, seed=options.seed
    )
    forecast, months = plan_unseen(options, trained, dataset, ensemble)
    truth = select_region(dataset, spec.target.box)
    events.parse(options.thresholds, spec.targets)  # before forecasts are made that may take long
    for box in _boxes(options):
        places_in(truth, box)
    log.info("device     %s", "; ".join(forecast.policy.reasons))
    log.info("months     %s", months)
    say_ensemble(forecast)
    in_file = bool(options.dask_scheduler)
    made = stack.enter_context(kept(forecast, Path(options.output), budget=options.memory_budget, in_file=in_file))
    say_forecast(made)
    card = card_of(members, Path(options.checkpoint), months, made["init_time"].values)
    return made, truth, times[roles == TRAIN], card


def _boxes(options: argparse.Namespace) -> list["Region"]:
    from convlstm_wx.data.regions import Region

    return [Region(*box) for box in options.box]


def _of_file(
    options: argparse.Namespace, forecast: "xr.Dataset", dataset: "xr.Dataset", members: list["Checkpoint"]
) -> tuple["xr.Dataset", "xr.Dataset", "np.ndarray", "Card"]:
    """An existing forecast file; the climatology comes from the times outside of what it covers."""
    import numpy as np

    from convlstm_wx.commands.card import card_of
    from convlstm_wx.data.regions import Grid, select_region
    from convlstm_wx.data.splits import TRAIN
    from convlstm_wx.report.card import Card

    if options.members or options.spread != "auto" or options.perturbation is not None:
        raise ConfigError("--members, --spread and --perturbation are for forecasts to be made: --forecast has its own")
    made = _chosen_part(options, forecast)
    times = dataset["time"].values
    scored = np.unique(np.concatenate([made["init_time"].values, made["valid_time"].values.ravel()]))
    grid = Grid.from_dataset(made)
    if members:
        split = members[0].spec.split
        remark = check_unseen(options, split, scored)
        training, origin = times[split.roles(times) == TRAIN], "the checkpoint's training times"
        card = card_of(members, Path(options.checkpoint), f"of the forecast file{remark}", made["init_time"].values)
    else:
        covered = (times >= scored.min()) & (times <= scored.max())
        training, origin = times[~covered], "the times that the forecasts do not cover"
        card = Card({}, {"target": grid})
    if not training.size:
        raise ConfigError(
            f"--forecast {options.forecast}: it covers all times of {dataset.attrs['source']}, so none is left for the "
            f"climatology; give a longer --data record, or the --checkpoint whose training times to use"
        )
    say_forecast(made)
    log.info("climatology from %s", origin)
    facts = {"Forecast": str(options.forecast), "Climatology": origin, **card.facts}
    return made, select_region(dataset, grid.box()), training, replace(card, facts=facts)


def _chosen_part(options: argparse.Namespace, made: "xr.Dataset") -> "xr.Dataset":
    """The --months and --lead-steps of a forecast file."""
    from convlstm_wx.data.splits import parse_periods

    if options.lead_steps:
        made = made.isel(lead_time=slice(options.lead_steps))
    if not options.months:
        return made
    periods = parse_periods(options.months)
    valid = made["valid_time"].values
    inside = periods.contains(made["init_time"].values) & periods.contains(valid.ravel()).reshape(valid.shape).all(
        axis=1
    )
    if not inside.any():
        raise ConfigError(f"--forecast {options.forecast}: no forecast lies inside {periods.describe()}")
    return made.isel(init_time=inside)


def _draw(
    folder: Path,
    made: "xr.Dataset",
    truth: "xr.Dataset",
    scores: "xr.Dataset",
    card: "Card",
    history: Path | None,
) -> tuple[list[Path], Path]:
    """The figures and the page."""
    from convlstm_wx.report import page, plots
    from convlstm_wx.verification.describing import in_shown_units
    from convlstm_wx.verification.summary import event_verdicts, verdicts

    shown = in_shown_units(scores)
    figures = plots.draw_all(folder / "figures", made, truth, shown, history)
    path = page.write_page(
        folder / "report.html",
        title="Forecast evaluation",
        verdicts=verdicts(scores),
        event_verdicts=event_verdicts(scores),
        scores=shown,
        forecast=made,
        truth=truth,
        card=card,
        history=history,
    )
    return list(figures.values()), path
