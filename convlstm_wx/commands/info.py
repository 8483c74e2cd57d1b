"""info: what a checkpoint is, what it was trained on, and how good it is."""

import argparse
import json
import logging
import math
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from convlstm_wx.commands.options import DONE, add_command, nonempty, print_out
from convlstm_wx.errors import CheckpointError

if TYPE_CHECKING:
    from convlstm_wx.checkpoint import Checkpoint
    from convlstm_wx.data.spec import RegionSpec

log = logging.getLogger(__name__)

MOST_LEADS = 6  # in the table; --json has all


def add(subparsers: Any) -> None:
    """Declare the command."""
    command = add_command(subparsers, "info", run, "Tell what a checkpoint is, trained on what, and how good.")
    command.add_argument(
        "checkpoint", metavar="CHECKPOINT", type=nonempty, help="a .pt file, or the folder of a run or an ensemble"
    )
    command.add_argument("--json", action="store_true", help="print a JSON document, and nothing else")


def run(options: argparse.Namespace) -> int:
    """Load, tell."""
    from convlstm_wx.checkpoint import checkpoints_of, load_checkpoint, members_in

    if options.json:
        logging.getLogger("convlstm_wx").setLevel(logging.ERROR)
    path = Path(options.checkpoint)
    members: list[dict[str, Any]] = []
    if members_in(path):
        files = checkpoints_of(path)
        members = [facts_of(load_checkpoint(file), file) for file in files]
        checkpoint = load_checkpoint(files[0])
        facts = members[0] | {"next": list(_next_commands(checkpoint, path))}
    else:
        path = _file(path)
        checkpoint = load_checkpoint(path)
        facts = facts_of(checkpoint, path)
    if options.json:
        document = {"members": members, "next": facts["next"]} if members else facts
        print_out(json.dumps(document, indent=2, allow_nan=False))
        return DONE
    for line in told(facts, checkpoint, members):
        log.info(line)
    return DONE


def _file(path: Path) -> Path:
    """The checkpoint of a run's folder: best.pt, or the one furthest on."""
    from convlstm_wx.checkpoint import newest_checkpoint

    if not path.is_dir():
        return path
    best = path / "best.pt"
    found = best if best.exists() else newest_checkpoint(path)
    if found is None:
        raise CheckpointError(f"{path}: no checkpoint in this folder; training writes best.pt and last.pt into its own")
    log.info("%s is a folder: this is its %s", path, found.name)
    return found


# What there is to know


def facts_of(checkpoint: "Checkpoint", path: Path) -> dict[str, Any]:
    """Everything as plain types; numbers that are not finite are None."""
    spec, config = checkpoint.spec, checkpoint.config
    facts = {
        "file": {"path": str(path), "bytes": path.stat().st_size, "written": checkpoint.written or None},
        "versions": checkpoint.versions,
        "network": {
            "name": checkpoint.model_name,
            "hidden_channels": list(config.hidden_channels),
            "parameters": parameters_of(checkpoint),
            "blend": _blend(checkpoint),
            "windows_to_dress_from": 0 if checkpoint.residuals is None else len(checkpoint.residuals.init_times),
        },
        "inputs": _channels(spec.target, [channel.name for channel in spec.channels]),
        "targets": _channels(spec.target, [channel.name for channel in spec.targets]),
        "step_hours": spec.step_s / 3600,
        "input_steps": spec.input_steps,
        "lead_steps": spec.lead_steps,
        "trained_on": {
            "source": spec.source,
            "data": list(config.data),
            "period": list(spec.target.statistics.period),
            "region": _region(spec.target),
            "upstream": [_region(region) for region in spec.upstream],
        },
        "split": spec.split.to_dict(),
        "progress": _progress(checkpoint),
        "validation_rmse": _skill(checkpoint),
        "config": config.to_dict(),
        "next": list(_next_commands(checkpoint, path)),
    }
    return _finite(facts)


def parameters_of(checkpoint: "Checkpoint") -> int:
    """How many numbers were learned; those of the linear model of a blend are not among them."""
    return sum(weight.numel() for weight in checkpoint.training["averaged"]["shadow"].values())


def _blend(checkpoint: "Checkpoint") -> list[dict[str, float]] | None:
    """How much network and linear model count, mean over the targets, by lead time; None if the network is alone."""
    from convlstm_wx.training.logbook import lead_hours

    weights_2LD = checkpoint.weights.get("blend.weights_2LD")
    if weights_2LD is None:
        return None
    leads = zip(lead_hours(checkpoint.spec), *weights_2LD.mean(dim=-1).tolist())
    return [{"lead_hours": hours, "network": network, "linear": linear} for hours, network, linear in leads]


def _channels(region: "RegionSpec", names: Sequence[str]) -> list[dict[str, str]]:
    from convlstm_wx.conventions import Channel

    return [{"name": name, "units": region.attributes[Channel.parse(name).variable]["units"]} for name in names]


def _region(region: "RegionSpec") -> dict[str, Any]:
    lat, lon = region.grid.places()
    return {
        "box": region.describe(),
        "points": [len(region.grid.lat), len(region.grid.lon)],
        "lat": [float(lat.min()), float(lat.max())],
        "lon": [float(lon.min()), float(lon.max())],
        "channels": _channels(region, [channel.name for channel in region.statistics.channels]),
        "static_fields": list(region.static_names),
    }


def _progress(checkpoint: "Checkpoint") -> dict[str, Any]:
    """How far the run was, and its losses."""
    progress = checkpoint.training["progress"]
    history = progress["history"]
    best = min(history, key=lambda row: row["validation_loss"], default=None)
    return {
        "epochs_done": len(history),
        "epochs_asked": checkpoint.config.num_epochs,
        "optimiser_steps": progress["global_step"],
        "training_hours": progress["elapsed_s"] / 3600,
        "best_epoch": None if best is None else best["epoch"],
        "best_validation_loss": None if best is None else best["validation_loss"],
        "persistence_loss": None if best is None else best["persistence_loss"],
        "history": history,
    }


def _skill(checkpoint: "Checkpoint") -> dict[str, Any] | None:
    """RMSE of the newest validated epoch by variable and lead time; None in checkpoints of earlier versions."""
    from convlstm_wx.training.logbook import channel_units, lead_hours

    progress = checkpoint.training["progress"]
    if not progress.get("rmse"):
        return None
    epoch, rmse = max(progress["rmse"].items())
    hours, units = lead_hours(checkpoint.spec), channel_units(checkpoint.spec)
    scores = [
        {"variable": name, "unit": units[name], "lead_hours": lead, "rmse": value, "persistence_rmse": rival}
        for name, values in rmse.items()
        for lead, value, rival in zip(hours, values, progress["persistence_rmse"][name])
    ]
    return {"epoch": epoch, "scores": scores}


def _next_commands(checkpoint: "Checkpoint", path: Path) -> Iterator[str]:
    """What to do with it, or with the ensemble in a folder, ready to be pasted."""
    from convlstm_wx.checkpoint import members_in
    from convlstm_wx.training.saving import why_ended

    file, data = shlex.quote(str(path)), shlex.join(checkpoint.config.data)
    folder = path if path.is_dir() else path.parent
    if path.name != "best.pt" and not path.is_dir() and not why_ended(checkpoint.config, checkpoint):
        yield f"convlstm-wx train --data {data} --resume {file}"
    yield f"convlstm-wx forecast --checkpoint {file} --data {data} --output forecast.nc"
    yield f"convlstm-wx evaluate --checkpoint {file} --data {data} --output evaluation/"
    if (folder / "history.csv").exists() or members_in(folder):
        yield f"convlstm-wx plot-history {shlex.quote(str(folder))} --output history.png"


def _finite(entry: Any) -> Any:
    if isinstance(entry, dict):
        return {key: _finite(value) for key, value in entry.items()}
    if isinstance(entry, list):
        return [_finite(value) for value in entry]
    return None if isinstance(entry, float) and not math.isfinite(entry) else entry


# For people


def told(facts: dict[str, Any], checkpoint: "Checkpoint", members: Sequence[dict[str, Any]] = ()) -> Iterator[str]:
    """The same in lines, after those of the members, if it is the first of an ensemble."""
    sections = {
        "members": _about_members(members),
        "checkpoint": _about_file(facts),
        "network": _about_network(facts),
        "trained on": _about_data(facts),
        "split": checkpoint.spec.split.lines(),
        "training": _about_training(facts),
        "skill": _about_skill(facts),
        "next": facts["next"],
    }
    for name, lines in sections.items():
        for index, line in enumerate(lines):
            yield f"{'' if index else name:<13}{line}"


def _about_members(members: Sequence[dict[str, Any]]) -> Iterator[str]:
    """How each learned, in a table."""
    from convlstm_wx.text import aligned

    if not members:
        return
    rows = [["", "seed", "epochs", "best", "validation loss (persistence)"]]
    for facts in members:
        progress = facts["progress"]
        losses = f"{_loss(progress['best_validation_loss'])} ({_loss(progress['persistence_loss'])})"
        done = f"{progress['epochs_done']} of {progress['epochs_asked']}"
        name = Path(facts["file"]["path"]).parent.name
        rows.append([name, str(facts["config"]["seed"]), done, str(progress["best_epoch"] or "-"), losses])
    yield f"{len(members)}, an ensemble; what follows is of the first"
    yield from aligned(rows, right=range(1, len(rows[0])))


def _about_file(facts: dict[str, Any]) -> Iterator[str]:
    from convlstm_wx.files import describe_bytes

    versions, written = facts["versions"], facts["file"]["written"]
    when = f", written {written[:16].replace('T', ' ')} UTC" if written else ""
    yield f"{facts['file']['path']}, {describe_bytes(facts['file']['bytes'])}{when}"
    yield f"by convlstm_wx {versions['convlstm_wx']} with PyTorch {versions['torch']}"


def _about_network(facts: dict[str, Any]) -> Iterator[str]:
    from convlstm_wx.data.reading import describe_step

    network, step = facts["network"], np.timedelta64(round(3600 * facts["step_hours"]), "s")
    width = " ".join(map(str, network["hidden_channels"]))
    yield f"{network['name']}, {width} hidden channels, {network['parameters']:,} parameters"
    yield f"reads {facts['input_steps']} steps of {describe_step(step)}: {named(facts['inputs'])}"
    leads = f"+{describe_step(step)} to +{describe_step(facts['lead_steps'] * step)}"
    yield f"forecasts {facts['lead_steps']} steps ({leads}): {named(facts['targets'])}"
    if network["blend"]:
        yield from _about_blend(network["blend"])
    if network["windows_to_dress_from"]:
        yield f"ensembles are dressed with its errors on {network['windows_to_dress_from']} windows of validation"


def _about_blend(blend: Sequence[dict[str, float]]) -> Iterator[str]:
    """A table of what both count at some lead times."""
    from convlstm_wx.text import aligned

    shown = spread(blend, MOST_LEADS)
    rows = [["", *(f"+{at['lead_hours']:g} h" for at in shown)]]
    rows += [[name, *(f"{at[name]:.2f}" for at in shown)] for name in ("network", "linear")]
    yield "blended with a linear inverse model; how much both count, mean over the variables:"
    yield from aligned(rows, right=range(1, len(rows[0])))


def _about_data(facts: dict[str, Any]) -> Iterator[str]:
    trained_on = facts["trained_on"]
    first, last = (time[:16].replace("T", " ") for time in trained_on["period"])
    yield f"{trained_on['source']}, {first} to {last}"
    yield f"target region: {_placed(trained_on['region'])}"
    for region in trained_on["upstream"]:
        yield f"upstream region: {_placed(region)}: {named(region['channels'])}"


def _about_training(facts: dict[str, Any]) -> Iterator[str]:
    progress = facts["progress"]
    if facts["config"]["init_from"]:
        yield f"started from the weights of {facts['config']['init_from']}"
    yield (
        f"{progress['epochs_done']} of {progress['epochs_asked']} epochs, {progress['optimiser_steps']:,} optimiser "
        f"steps, {_duration(progress['training_hours'])}"
    )
    if progress["best_epoch"] is not None:
        yield (
            f"best so far: epoch {progress['best_epoch']}, validation loss {_loss(progress['best_validation_loss'])} "
            f"(persistence {_loss(progress['persistence_loss'])})"
        )


def _about_skill(facts: dict[str, Any]) -> Iterator[str]:
    """A table of RMSE at some lead times, each beside what persistence has; of many channels some of each variable."""
    from convlstm_wx.conventions import Channel
    from convlstm_wx.text import MOST_CHANNELS, aligned, choose_some

    skill = facts["validation_rmse"]
    if skill is None:
        yield "none stored; convlstm-wx evaluate scores it"
        return
    hours = sorted({score["lead_hours"] for score in skill["scores"]})
    shown = spread(hours, MOST_LEADS)
    rows = [["", "", *(f"+{lead:g} h" for lead in shown)]]
    targets = [Channel.parse(target["name"]) for target in facts["targets"]]
    shown_names = {channel.name for channel in choose_some(targets, MOST_CHANNELS)}
    for target in facts["targets"]:
        if target["name"] not in shown_names:
            continue
        scores = {each["lead_hours"]: each for each in skill["scores"] if each["variable"] == target["name"]}
        cells = [f"{_short(scores[lead]['rmse'])} ({_short(scores[lead]['persistence_rmse'])})" for lead in shown]
        rows.append([target["name"], target["units"], *cells])
    yield f"validation RMSE (persistence) after epoch {skill['epoch']}:"
    yield from aligned(rows, right=range(2, len(rows[0])))
    if len(shown_names) < len(targets):
        yield f"{len(shown_names)} of {len(targets)} channels; --json and validation_rmse.csv have all"


def spread(entries: Sequence[Any], most: int) -> list[Any]:
    """At most so many of them, the first and the last included."""
    return [entries[at] for at in np.unique(np.linspace(0, len(entries) - 1, most).round().astype(int))]


def named(channels: Sequence[dict[str, str]]) -> str:
    """Channels in a line, with their units where they are few."""
    from convlstm_wx.conventions import Channel
    from convlstm_wx.text import MOST_CHANNELS, list_channels

    if len(channels) > MOST_CHANNELS:
        return list_channels([Channel.parse(channel["name"]) for channel in channels])
    return ", ".join(f"{channel['name']} ({channel['units']})" for channel in channels)


def _placed(region: dict[str, Any]) -> str:
    (south, north), (west, east) = region["lat"], region["lon"]
    edges = f"{south:g} to {north:g} degrees north, {west:g} to {east:g} degrees east"
    return f"{' x '.join(map(str, region['points']))} points, {edges}"


def _duration(hours: float) -> str:
    return f"{hours:.1f} hours" if hours >= 1 else f"{60 * hours:.1f} minutes"


def _short(value: float | None) -> str:
    """Three digits, or more of a large number."""
    return "-" if value is None else f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _loss(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
