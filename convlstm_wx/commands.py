"""The commands: each joins the rooms that it needs, which never import each other. Numbers are computed there.

Heavy imports stand inside the commands, so that --help and --version answer at once.
"""

import argparse
import logging
import tomllib
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convlstm_wx.config import TrainConfig
from convlstm_wx.errors import ConfigError, DataError

if TYPE_CHECKING:
    import numpy as np
    import xarray as xr

    from convlstm_wx.data.splits import Split

log = logging.getLogger(__name__)

DONE, STOPPED = 0, 130


# train


def train(options: argparse.Namespace) -> int:
    """Train, from the start or from a checkpoint."""
    from convlstm_wx.checkpoint import load_checkpoint
    from convlstm_wx.data.inputs import prepare_training
    from convlstm_wx.device import choose_device
    from convlstm_wx.distributed import joined
    from convlstm_wx.files import check_can_make, make_folder
    from convlstm_wx.training.loop import Run, write_config
    from convlstm_wx.training.summary import summary

    resume = load_checkpoint(options.resume) if options.resume else None
    config = _train_config(options, resume.config.to_dict() if resume else {})
    folder = Path(config.output_dir or "")
    _refuse_to_replace(folder, options)
    check_can_make(folder)
    with joined() as processes:
        if not processes.is_main:
            logging.getLogger("convlstm_wx").setLevel("WARNING")
        policy = choose_device(config.device, use_amp=config.use_amp, local_rank=processes.local_rank)
        inputs = prepare_training(config, cache_folder=Path())
        run = Run(config, inputs, policy, folder, processes, resume)
        make_folder(folder)
        if processes.is_main:
            if options.overwrite:
                _remove_run(folder)
            _log_to_file(folder / "training.log")
            write_config(folder / "config.json", config)
        for line in summary(run, inputs):
            log.info(line)
        result = run.train()
        log.info("memory used at most: %.1f GB", policy.peak_memory_bytes() / 2**30)
        policy.free_memory()
    return _say_what_next(result, config)


def _train_config(options: argparse.Namespace, resumed: dict[str, Any]) -> TrainConfig:
    """Defaults, then the resumed run's settings, then the TOML file, then the command line."""
    given = {entry.name: getattr(options, entry.name) for entry in fields(TrainConfig) if hasattr(options, entry.name)}
    entries = resumed | (_read_toml(Path(options.config)) if options.config else {}) | given
    if not entries.get("data"):
        raise ConfigError("--data is needed: one or more NetCDF files, a glob, or a Zarr directory")
    if options.resume and "output_dir" not in given:
        entries["output_dir"] = str(Path(options.resume).parent)
    if not entries.get("output_dir"):
        entries["output_dir"] = str(Path("checkpoints") / _run_name(entries["data"]))
    return TrainConfig.from_dict(entries, source="command line")


def _run_name(data: str | Sequence[str]) -> str:
    """The name of the (first) data file, without the signs of a glob."""
    first = data if isinstance(data, str) else data[0]
    return Path(first).stem.translate(str.maketrans("", "", "*?[]")).strip("_-. ") or "run"


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        entries = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--config {path}: cannot be read ({error.strerror})") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {path}: not TOML ({error})") from error
    return TrainConfig.typed(entries, source=f"--config {path}")


def _refuse_to_replace(folder: Path, options: argparse.Namespace) -> None:
    if options.resume and options.overwrite:
        raise ConfigError("--overwrite would delete what --resume goes on from; give one of the two")
    there = next((folder / name for name in ("last.pt", "interrupted.pt") if (folder / name).exists()), None)
    if there and not (options.resume or options.overwrite):
        raise ConfigError(
            f"{folder} holds a run already: go on with --resume {there}, choose another --output-dir, "
            f"or replace it with --overwrite"
        )


def _remove_run(folder: Path) -> None:
    """Delete what an earlier run left, and nothing else."""
    for pattern in ("best.pt", "last.pt", "interrupted.pt", "epoch_[0-9]*.pt", "history.csv", "training.log"):
        for file in folder.glob(pattern):
            file.unlink()


def _log_to_file(path: Path) -> None:
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%S"))
    logging.getLogger("convlstm_wx").addHandler(handler)


def _say_what_next(result: Path, config: TrainConfig) -> int:
    data = " ".join(config.data)
    if result.name == "interrupted.pt":
        log.info("stopped; go on with: python train_convlstm.py --data %s --resume %s", data, result)
        return STOPPED
    log.info("done: %s", result)
    log.info("next: convlstm-wx forecast --checkpoint %s --data %s --output forecast.nc", result, data)
    log.info("      convlstm-wx evaluate --checkpoint %s --data %s --output evaluation/", result, data)
    return DONE


# forecast


def forecast(options: argparse.Namespace) -> int:
    """Forecast from one or many init times into a file."""
    from convlstm_wx.checkpoint import load_checkpoint
    from convlstm_wx.data.reading import open_dataset
    from convlstm_wx.device import choose_device
    from convlstm_wx.forecast.rollout import choose_init_times, make_forecast
    from convlstm_wx.forecast.writing import check_output, write_forecast

    output = Path(options.output)
    checkpoint = load_checkpoint(options.checkpoint)
    policy = choose_device(options.device, use_amp=options.use_amp)
    dataset = open_dataset(options.data)
    checkpoint.spec.check(dataset)
    init_times = choose_init_times(checkpoint.spec, dataset, options.init_time or (), options.start, options.end)
    check_output(output, [*options.data, options.checkpoint])
    made = make_forecast(
        checkpoint,
        dataset,
        init_times,
        lead_steps=_lead_steps(options.lead_steps, checkpoint.spec.lead_steps),
        policy=policy,
        batch_size=options.batch_size,
    )
    write_forecast(made, output, layout=options.layout)
    log.info("device     %s", "; ".join(policy.reasons))
    _say_forecast(made)
    log.info("written    %s", output)
    return DONE


def _lead_steps(asked: int | None, trained: int) -> int:
    if asked is not None and asked > trained:
        log.warning("--lead-steps %d is beyond the %d of training: the later ones were never practised", asked, trained)
    return asked or trained


def _say_forecast(made: "xr.Dataset") -> None:
    init_times = made["init_time"].values.astype("datetime64[m]")
    hours = made["lead_time"].values.astype("timedelta64[s]").astype(int) / 3600
    several = f"{len(init_times)} from {init_times[0]} to {init_times[-1]}"
    log.info("init time  %s", several if len(init_times) > 1 else init_times[0])
    log.info("lead time  +%g h to +%g h, %d steps", hours[0], hours[-1], len(hours))
    log.info("variables  %s", ", ".join(map(str, made.data_vars)))


# evaluate


def evaluate(options: argparse.Namespace) -> int:
    """Score forecasts of months that training did not see."""
    from convlstm_wx.data.reading import open_dataset
    from convlstm_wx.files import check_can_make, make_folder
    from convlstm_wx.verification import evaluate as verification

    folder = Path(options.output)
    check_can_make(folder)
    dataset = open_dataset(options.data)
    made, truth, training_times, facts = (_score_file if options.forecast else _score_checkpoint)(options, dataset)
    scores = verification.evaluate(made, truth, training_times, confidence=options.confidence, seed=options.seed)
    log.info("\n%s\n", verification.table(scores))
    for sentence in verification.verdicts(scores):
        log.info(sentence)
    make_folder(folder)
    written = verification.write_scores(scores, folder)
    history = Path(options.checkpoint).parent / "history.csv" if options.checkpoint else None
    figures, page = _draw(folder, made, truth, scores, facts, history)
    log.info("written    %s, %d figures", ", ".join(str(path) for path in [*written, page]), len(figures))
    return DONE


def _score_checkpoint(
    options: argparse.Namespace, dataset: "xr.Dataset"
) -> tuple["xr.Dataset", "xr.Dataset", "np.ndarray", dict[str, str]]:
    """Forecasts of the chosen months, the truth, the training times, and facts for the page."""
    from convlstm_wx.checkpoint import load_checkpoint
    from convlstm_wx.data.regions import select_region
    from convlstm_wx.data.splits import TRAIN
    from convlstm_wx.device import choose_device
    from convlstm_wx.forecast.rollout import make_forecast, possible_init_times

    if not options.checkpoint:
        raise ConfigError("--checkpoint is needed, unless a --forecast file is scored")
    checkpoint = load_checkpoint(options.checkpoint)
    spec = checkpoint.spec
    policy = choose_device(options.device, use_amp=options.use_amp)
    spec.check(dataset)
    times = dataset["time"].values
    roles = spec.split.roles(times)
    if not (roles == TRAIN).any():
        raise DataError(
            f"{dataset.attrs['source']}: holds none of the training times, which the climatology is made of; "
            f"give that file too: --data TRAINING_FILE NEW_FILE"
        )
    allowed, months = _months_to_score(options, spec.split, times)
    lead_steps = _lead_steps(options.lead_steps, spec.lead_steps)
    init_times = possible_init_times(spec, times, allowed, lead_steps=lead_steps)
    if not init_times.size:
        raise ConfigError(
            f"{months}: no {spec.input_steps + lead_steps} consecutive times of them in {dataset.attrs['source']}, "
            f"which covers {str(times[0])[:16]} to {str(times[-1])[:16]}; choose other --months or fewer --lead-steps"
        )
    log.info("device     %s", "; ".join(policy.reasons))
    log.info("months     %s", months)
    made = make_forecast(
        checkpoint,
        dataset,
        init_times,
        lead_steps=lead_steps,
        policy=policy,
        batch_size=options.batch_size,
        skip_incomplete=True,
    )
    _say_forecast(made)
    facts = {
        "Checkpoint": str(options.checkpoint),
        "Trained on": f"{spec.source}, {spec.target.statistics.period[0]} to {spec.target.statistics.period[1]}",
        "Scored months": months,
        "Split": spec.split.method,
    }
    return made, select_region(dataset, spec.target.box), times[roles == TRAIN], facts


def _months_to_score(options: argparse.Namespace, split: "Split", times: "np.ndarray") -> tuple["np.ndarray", str]:
    """Which times may be forecast from and verified with, and what to call them."""
    from convlstm_wx.data.splits import HELD_OUT, parse_periods

    if not options.months:
        return split.roles(times) == HELD_OUT, "held out in training"
    periods = parse_periods(options.months)
    allowed = periods.contains(times)
    seen = _check_unseen(options, split, times[allowed])
    return allowed, periods.describe() + seen


def _check_unseen(options: argparse.Namespace, split: "Split", times: "np.ndarray") -> str:
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


def _score_file(
    options: argparse.Namespace, dataset: "xr.Dataset"
) -> tuple["xr.Dataset", "xr.Dataset", "np.ndarray", dict[str, str]]:
    """An existing forecast file; the climatology comes from the times outside of what it covers."""
    import numpy as np

    from convlstm_wx.checkpoint import load_checkpoint
    from convlstm_wx.data.reading import open_forecast
    from convlstm_wx.data.regions import Grid, Region, select_region
    from convlstm_wx.data.splits import TRAIN

    made = _chosen_part(options, open_forecast(options.forecast))
    times = dataset["time"].values
    scored = np.unique(np.concatenate([made["init_time"].values, made["valid_time"].values.ravel()]))
    remark = ""
    if options.checkpoint:
        split = load_checkpoint(options.checkpoint).spec.split
        remark = _check_unseen(options, split, scored)
        training, origin = times[split.roles(times) == TRAIN], "the checkpoint's training times"
    else:
        covered = (times >= scored.min()) & (times <= scored.max())
        training, origin = times[~covered], "the times that the forecasts do not cover"
    if not training.size:
        raise ConfigError(
            f"--forecast {options.forecast}: it covers all times of {dataset.attrs['source']}, so none is left for the "
            f"climatology; give a longer --data record, or the --checkpoint whose training times to use"
        )
    grid = Grid.from_dataset(made)
    box = Region(grid.lat[0], grid.lat[-1], grid.lon[0], grid.lon[-1])
    _say_forecast(made)
    log.info("climatology from %s", origin)
    facts = {"Forecast": str(options.forecast) + remark, "Climatology": origin}
    return made, select_region(dataset, box), training, facts


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
    facts: dict[str, str],
    history: Path | None,
) -> tuple[list[Path], Path]:
    """The figures and the page."""
    from convlstm_wx.report import page, plots
    from convlstm_wx.verification import evaluate as verification

    figures = plots.draw_all(folder / "figures", made, truth, scores, history)
    verdicts = verification.verdicts(scores)
    path = folder / "report.html"
    page.write_page(path, title="Forecast evaluation", verdicts=verdicts, scores=scores, figures=figures, facts=facts)
    return list(figures.values()), path


# compare and sample


def compare(options: argparse.Namespace) -> int:
    """Whether one evaluation is better than another."""
    from convlstm_wx.verification import compare as comparison

    gains = comparison.compare(
        comparison.open_scores(Path(options.a)),
        comparison.open_scores(Path(options.b)),
        confidence=options.confidence,
        seed=options.seed,
    )
    for sentence in comparison.sentences(gains):
        log.info(sentence)
    return DONE


def sample(options: argparse.Namespace) -> int:
    """Write the synthetic region."""
    from convlstm_wx.data.sample import write_sample

    path = write_sample(Path(options.output), years=options.years, seed=options.seed)
    log.info("written    %s", path)
    log.info("next: python train_convlstm.py --data %s --device auto --use-amp", path)
    return DONE
