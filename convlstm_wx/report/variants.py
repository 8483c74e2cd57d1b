"""Tables of an experiment: variants of a training, each with several seeds, beside the first of them."""

import csv
import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev

from convlstm_wx.conventions import Channel
from convlstm_wx.text import MOST_CHANNELS, choose_some

LIKE_PERSISTENCE = 0.02  # beyond it losses are of other windows or of another kind, and say nothing of each other
MOST_LEADS = 6  # of a table to read; the CSV has all

Row = dict[str, object]


@dataclass(frozen=True)
class Result:
    """What a finished training gave; losses and errors are those of validation, at the epoch with the lowest loss.

    Attributes:
        variant, seed, folder: which training.
        parameters: that were learned.
        epochs: that were trained.
        best_epoch: the one that counts.
        seconds_per_epoch: validation included.
        training_loss, validation_loss, persistence_loss: without unit.
        rmse, persistence_rmse: by channel, one number for each lead time, in its unit.
        units: of each channel.
        lead_hours: of the lead times.
        held_out: rows of the run's scores.csv, if it was evaluated.
    """

    variant: str
    seed: int
    folder: str
    parameters: int
    epochs: int
    best_epoch: int
    seconds_per_epoch: float
    training_loss: float
    validation_loss: float
    persistence_loss: float
    rmse: Mapping[str, Sequence[float]]
    persistence_rmse: Mapping[str, Sequence[float]]
    units: Mapping[str, str]
    lead_hours: Sequence[float]
    held_out: Sequence[Mapping[str, str]] = ()


@dataclass(frozen=True)
class Variant:
    """All results of one variant, beside the first.

    Attributes:
        name: of the variant.
        settings: that it has of its own, in words.
        results: of its seeds.
        is_comparable: whether its losses are of about the same windows, and of the same kind, as the first variant's.
        differences: of its losses to those of the first variant, seed by seed; where its windows are not quite the
            same, they are scaled to the first one's persistence before.
    """

    name: str
    settings: str
    results: Sequence[Result]
    is_comparable: bool = True
    differences: Sequence[float] = field(default=())

    @property
    def mean_loss(self) -> float:
        """Over the seeds."""
        return fmean(each.validation_loss for each in self.results)

    @property
    def difference(self) -> float | None:
        """Mean over the seeds that both have; below 0 this variant is better."""
        return fmean(self.differences) if self.differences else None

    @property
    def standard_error(self) -> float | None:
        """Of that mean: what the luck of seeds leaves open; None with less than two pairs."""
        n = len(self.differences)
        return stdev(self.differences) / math.sqrt(n) if n > 1 else None


def compared(results: Sequence[Result], settings: Mapping[str, str]) -> list[Variant]:
    """Those variants of which there are results, in the order of their settings; the first one is what others are
    compared with.
    """
    found = {name: [each for each in results if each.variant == name] for name in settings}
    first = found[next(iter(settings))]
    before = {each.seed: each for each in first}
    variants = []
    for name, own in found.items():
        pairs = [(before[each.seed], each) for each in own if each.seed in before]
        is_comparable = all(_like_persistence(a, b) for a, b in pairs)
        differences = [_difference_of(a, b) for a, b in pairs if is_comparable and own is not first]
        if own:
            variants.append(Variant(name, settings[name], own, is_comparable, differences))
    return variants


def _like_persistence(a: Result, b: Result) -> bool:
    return abs(b.persistence_loss - a.persistence_loss) <= LIKE_PERSISTENCE * a.persistence_loss


def _difference_of(a: Result, b: Result) -> float:
    return b.validation_loss * (a.persistence_loss / b.persistence_loss) - a.validation_loss


# To read


def markdown(title: str, variants: Sequence[Variant], remarks: Sequence[str]) -> str:
    """The page: what to choose by, and after it the held-out months, if there are any."""
    parts = [f"# {title}", *remarks]
    if variants:
        parts += ["## Validation: to choose by", _table(_loss_rows(variants)), *_notes(variants)]
        parts += [
            f"RMSE over the validation windows at the best epoch, mean over the seeds{_left_out(variants)}:",
            _table(_rmse_rows(variants)),
        ]
    if any(each.held_out for variant in variants for each in variant.results):
        parts += [
            "## Held out, not for choosing",
            "RMSE over the held-out months, mean over the seeds. Who chooses by these has nothing left to test on.",
            _table(_held_out_rows(variants)),
        ]
    return "\n\n".join(parts) + "\n"


def _table(given: Iterable[Sequence[str]]) -> str:
    """The first row is the head; straight columns for those who read it as text."""
    rows = list(given)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def _loss_rows(variants: Sequence[Variant]) -> Iterator[Sequence[str]]:
    seeds = sorted({each.seed for variant in variants for each in variant.results})
    first = variants[0]
    yield [
        *("variant", "settings", f"loss, seeds {', '.join(map(str, seeds))}", "mean", f"to {first.name}"),
        *("persistence", "epochs (best)", "s per epoch", "parameters"),
    ]
    whole = [each for each in variants if each.is_comparable and len(each.results) == len(seeds)]
    lowest = min(whole, key=lambda each: each.difference or 0.0) if len(whole) > 1 else None
    for each in variants:
        losses = {one.seed: f"{one.validation_loss:.4f}" for one in each.results}
        mean = f"{each.mean_loss:.4f}"
        yield [
            each.name + ("" if each.is_comparable else " *"),
            each.settings,
            ", ".join(losses.get(seed, "-") for seed in seeds),
            f"**{mean}**" if each is lowest else mean,
            _difference(each, first),
            f"{fmean(one.persistence_loss for one in each.results):.4f}",
            ", ".join(f"{one.epochs} ({one.best_epoch})" for one in each.results),
            f"{fmean(one.seconds_per_epoch for one in each.results):.3g}",
            f"{each.results[0].parameters:,}",
        ]


def _difference(variant: Variant, first: Variant) -> str:
    """With its standard error, and in percent."""
    if variant.difference is None:
        return ""
    error = "" if variant.standard_error is None else f" ± {variant.standard_error:.4f}"
    return f"{variant.difference:+.4f}{error} ({100 * variant.difference / first.mean_loss:+.2g} %)"


def _notes(variants: Sequence[Variant]) -> Iterator[str]:
    if len(variants) > 1:
        pairs = min((len(each.differences) for each in variants if each.differences), default=0)
        said = "± is the standard error of the difference over pairs of runs with the same seed"
        if pairs == 1:
            said = "One pair of runs does not tell a difference from the luck of a seed: give more seeds"
        elif pairs <= 3:
            said += "; with so few pairs a difference below four of them may well be luck"
        yield said + "."
    losses = [one.persistence_loss for each in variants if each.is_comparable for one in each.results]
    if max(losses) - min(losses) > 1e-4 * min(losses):
        yield "Where persistence differs a little, so do the windows: losses are scaled to the same one to be compared."
    others = [each.name for each in variants if not each.is_comparable]
    if others:
        yield (
            f"\\* {', '.join(others)}: persistence has another loss there, so that the windows or the loss are others, "
            f"and the losses cannot be compared with those of {variants[0].name}; the RMSE only roughly."
        )


def _rmse_rows(variants: Sequence[Variant]) -> Iterator[Sequence[str]]:
    """A row for each channel, or for some of many, and some lead times; a column for each variant."""
    first = variants[0].results[0]
    yield ["variable", "lead time", "persistence", *(each.name for each in variants)]
    for name in _some(first.units):
        unit = first.units[name]
        for place in _shown(len(first.lead_hours)):
            hours = first.lead_hours[place]
            cells = [_mean([_at(one.rmse, one, name, hours) for one in each.results]) for each in variants]
            rival = _mean([_at(first.persistence_rmse, first, name, hours)])
            yield [f"{name}, {unit}", f"+{hours:g} h", rival, *cells]


def _some(names: Iterable[str]) -> list[str]:
    """All channels, or of many some of each variable."""
    return [channel.name for channel in choose_some([Channel.parse(name) for name in names], MOST_CHANNELS)]


def _left_out(variants: Sequence[Variant]) -> str:
    names = variants[0].results[0].units
    return f"; {MOST_CHANNELS} of {len(names)} channels, rmse.csv has all" if len(names) > MOST_CHANNELS else ""


def _shown(leads: int) -> list[int]:
    """Places of some lead times, the first and the last among them."""
    shown = min(leads, MOST_LEADS)
    return [round(place * (leads - 1) / max(1, shown - 1)) for place in range(shown)]


def _at(rmse: Mapping[str, Sequence[float]], result: Result, name: str, hours: float) -> float | None:
    return rmse[name][list(result.lead_hours).index(hours)] if name in rmse and hours in result.lead_hours else None


def _mean(values: Sequence[float | None]) -> str:
    """Four digits; nothing where one is missing."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    if not known or len(known) < len(values):
        return "-"
    mean = fmean(known)
    return f"{mean:.0f}" if abs(mean) >= 1000 else f"{mean:#.4g}"


def _held_out_rows(variants: Sequence[Variant]) -> Iterator[Sequence[str]]:
    """As for validation; the rivals are those of the first run that was evaluated."""
    scored = [each for each in variants if any(one.held_out for one in each.results)]
    tables = {each.name: [_by_place(one.held_out) for one in each.results if one.held_out] for each in scored}
    first = tables[scored[0].name][0]
    rivals = list(dict.fromkeys(system for *_, system in first if system != "model"))
    yield ["variable", "lead time", *(name.replace("_", " ") for name in rivals), *tables]
    places = list(dict.fromkeys(place[:-1] for place in first))
    for name in _some(dict.fromkeys(channel for channel, _, _ in places)):
        own = [place for place in places if place[0] == name]
        for place in (own[shown] for shown in _shown(len(own))):
            cells = [_mean([first.get((*place, rival))]) for rival in rivals]
            cells += [_mean([table.get((*place, "model")) for table in tables[each]]) for each in tables]
            yield [f"{name}, {place[1]}", f"+{place[2]:g} h", *cells]


def _by_place(rows: Sequence[Mapping[str, str]]) -> dict[tuple[str, str, float, str], float]:
    """RMSE by channel, unit, lead time and system."""
    return {
        (row["channel"], row["units"], float(row["lead_hours"]), row["system"]): float(row["rmse"] or "nan")
        for row in rows
    }


# For programs


def tables(variants: Sequence[Variant]) -> dict[str, str]:
    """The text of each CSV file, by name: nothing is rounded to fit, and every lead time is there."""
    files = {
        "table.csv": [_summary(each) for each in variants],
        "runs.csv": [_run(one) for each in variants for one in each.results],
        "rmse.csv": [row for each in variants for one in each.results for row in _rmse(one)],
        "held_out.csv": [
            {"variant": one.variant, "seed": one.seed, **row}
            for each in variants
            for one in each.results
            for row in one.held_out
        ],
    }
    return {name: _csv(rows) for name, rows in files.items() if rows}


def _summary(variant: Variant) -> Row:
    return {
        "variant": variant.name,
        "runs": len(variant.results),
        "validation_loss": variant.mean_loss,
        "difference": variant.difference,
        "standard_error": variant.standard_error,
        "pairs": len(variant.differences),
        "persistence_loss": fmean(one.persistence_loss for one in variant.results),
        "seconds_per_epoch": fmean(one.seconds_per_epoch for one in variant.results),
        "parameters": variant.results[0].parameters,
    }


def _run(result: Result) -> Row:
    names = ("variant", "seed", "validation_loss", "training_loss", "persistence_loss", "best_epoch", "epochs")
    return {name: getattr(result, name) for name in (*names, "seconds_per_epoch", "parameters", "folder")}


def _rmse(result: Result) -> Iterator[Row]:
    for name, values in result.rmse.items():
        for hours, value, rival in zip(result.lead_hours, values, result.persistence_rmse[name]):
            yield {
                "variant": result.variant,
                "seed": result.seed,
                "epoch": result.best_epoch,
                "variable": name,
                "unit": result.units[name],
                "lead_hours": hours,
                "rmse": value,
                "persistence_rmse": rival,
            }


def _csv(rows: Sequence[Row]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(
        {name: f"{value:.6g}" if isinstance(value, float) else value for name, value in row.items()} for row in rows
    )
    return text.getvalue()
