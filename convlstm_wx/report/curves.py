"""How runs learned: losses, learning rate and validation errors by epoch, one run or several over each other.

Colour and marker tell runs apart; line styles tell what a line shows. Colours are Okabe and Ito's, safe for
colour-blind readers.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from convlstm_wx.conventions import Channel
from convlstm_wx.errors import ConfigError, DataError
from convlstm_wx.files import make_folder, replacing
from convlstm_wx.report.maps import pretty_units
from convlstm_wx.text import choose_some

DPI = 130
HISTORY, RMSE = "history.csv", "validation_rmse.csv"
RUN_STYLES: tuple[dict[str, Any], ...] = (
    {"color": "#0072B2", "marker": "o"},
    {"color": "#D55E00", "marker": "s"},
    {"color": "#009E73", "marker": "^"},
    {"color": "#CC79A7", "marker": "D"},
    {"color": "#E69F00", "marker": "v"},
    {"color": "#56B4E9", "marker": "P"},
    {"color": "#000000", "marker": "X"},
)
LOSS_LINES: dict[str, Any] = {"validation_loss": "-", "train_loss": "--", "persistence_loss": ":"}
GREY = "#7f7f7f"
MOST_VARIABLES = 6  # on one picture
MOST_MARKED = 30  # epochs; the lines of longer runs have no markers


@dataclass(frozen=True)
class RmseCurve:
    """RMSE of one variable at one lead time.

    Attributes:
        variable, unit, lead_hours: of what.
        epochs, rmse: one value for each epoch.
        persistence: the same for all epochs.
    """

    variable: str
    unit: str
    lead_hours: float
    epochs: np.ndarray
    rmse: np.ndarray
    persistence: float


@dataclass(frozen=True)
class History:
    """What a run wrote of itself.

    Attributes:
        name: for the legend.
        columns: of history.csv.
        rmse: of validation_rmse.csv, in the order of the file; none where there is no such file.
    """

    name: str
    columns: dict[str, np.ndarray]
    rmse: tuple[RmseCurve, ...]

    @property
    def best(self) -> int | None:
        """Row of the lowest validation loss."""
        losses = self.columns["validation_loss"]
        return int(np.nanargmin(losses)) if np.isfinite(losses).any() else None


def read_histories(folders: Sequence[Path]) -> list[History]:
    """What some runs wrote, with names that differ.

    Raises:
        DataError: if one has no history yet, or a file is not what training writes.
        ConfigError: for more runs than can be told apart.
    """
    if len(folders) > len(RUN_STYLES):
        raise ConfigError(f"{len(folders)} runs in one picture: at most {len(RUN_STYLES)} can be told apart")
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        names = [str(folder) for folder in folders]
    return [History(name, _columns(folder / HISTORY), _rmse(folder / RMSE)) for name, folder in zip(names, folders)]


def _columns(path: Path) -> dict[str, np.ndarray]:
    rows = _rows(path, ("epoch", "validation_loss", "learning_rate"))
    if not rows:
        raise DataError(f"{path}: no epoch is finished yet; try again after the first")
    return {name: np.array([_number(path, row[name]) for row in rows]) for name in rows[0]}


def _rmse(path: Path) -> tuple[RmseCurve, ...]:
    if not path.exists():  # a run of an earlier version
        return ()
    rows = _rows(path, ("epoch", "variable", "unit", "lead_hours", "rmse", "persistence_rmse"))
    grouped: dict[tuple[str, str, float], list[list[float]]] = {}
    for row in rows:
        numbers = [_number(path, row[name]) for name in ("lead_hours", "epoch", "rmse", "persistence_rmse")]
        grouped.setdefault((row["variable"], row["unit"], numbers[0]), []).append(numbers[1:])
    curves = []
    for key, values in grouped.items():
        epochs, rmse, persistence = np.array(values).T
        curves.append(RmseCurve(*key, epochs, rmse, float(persistence[-1])))
    return tuple(curves)


def _rows(path: Path, needed: Sequence[str]) -> list[dict[str, str]]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise DataError(f"{path}: cannot be read ({reason}); give the folder of a training run") from error
    missing = [name for name in needed if name not in (reader.fieldnames or ())]
    if missing:
        raise DataError(f"{path}: has no column {', '.join(missing)}; it is not what training writes")
    return rows


def _number(path: Path, text: str | None) -> float:
    try:
        return float(text or "")
    except ValueError as error:
        raise DataError(f"{path}: '{text}' is not a number; the file is damaged") from error


# Drawing


def draw_history(folders: Sequence[Path], path: Path) -> Path:
    """One picture of some runs' histories; its ending decides the format.

    Raises:
        DataError: if a run has no history yet, or a file is not what training writes.
        ConfigError: for more runs than can be told apart, or a path that cannot be written.
    """
    figure = history_figure(read_histories(folders))
    make_folder(path.parent)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=DPI, facecolor="white")
    return path


def history_figure(histories: Sequence[History]) -> Figure:
    """Losses and learning rate; beside them RMSE by epoch, a panel per variable, where the runs have it."""
    variables = list(dict.fromkeys((curve.variable, curve.unit) for history in histories for curve in history.rmse))
    n_all = len(variables)
    chosen = {channel.name for channel in choose_some([Channel.parse(name) for name, _ in variables], MOST_VARIABLES)}
    variables = [(name, unit) for name, unit in variables if name in chosen]
    n_columns = min(2, -(-len(variables) // 3))
    n_rows = -(-len(variables) // max(1, n_columns))
    figure = Figure(figsize=(6.6 + 4.2 * n_columns, max(5.4, 2.5 * n_rows)), layout="constrained")
    widths = [6.6, 4.2 * n_columns] if variables else [6.6]
    left, *right = figure.subfigures(1, len(widths), squeeze=False, width_ratios=widths)[0]
    upper, lower = left.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    _draw_losses(upper, lower, histories)
    panels = [upper, lower]
    n_epochs = max(len(history.columns["epoch"]) for history in histories)
    if variables:
        grid = right[0].subplots(n_rows, n_columns, squeeze=False, sharex=True).T.ravel()
        for panel, (variable, unit) in zip(grid, variables):
            _draw_rmse(panel, variable, unit, histories)
        for panel in grid[len(variables) :]:
            panel.set_axis_off()
        if len(variables) < n_all:
            right[0].suptitle(f"{len(variables)} of {n_all} variables; {RMSE} has all", fontsize=9)
        panels += grid[: len(variables)].tolist()
    for panel in panels:
        panel.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        if n_epochs == 1:
            panel.set_xlim(0.5, 1.5)
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
        if panel.get_subplotspec().is_last_row() or panel is panels[-1]:
            panel.set_xlabel("epoch")
    return figure


def _draw_losses(upper: Axes, lower: Axes, histories: Sequence[History]) -> None:
    for history, style in zip(histories, RUN_STYLES):
        epochs, columns = history.columns["epoch"], history.columns
        look = style if len(epochs) <= MOST_MARKED else style | {"marker": ""}
        for name, line in LOSS_LINES.items():
            if name in columns:
                upper.plot(
                    epochs, columns[name], linestyle=line, markersize=4, **(look if line == "-" else _bare(style))
                )
        if history.best is not None:
            at = epochs[history.best], columns["validation_loss"][history.best]
            upper.plot(*at, "o", color=style["color"], markersize=12, fillstyle="none")
        lower.plot(epochs, columns["learning_rate"], markersize=4, **look)
    upper.set(title="Loss", ylabel="loss (no unit)")
    lower.set(ylabel="learning rate")
    upper.legend(handles=_handles(histories), frameon=False, fontsize=8)


def _handles(histories: Sequence[History]) -> list[Line2D]:
    """Runs with their best epoch, and what the line styles mean."""
    runs = []
    for history, style in zip(histories, RUN_STYLES):
        best = "" if history.best is None else f" (best: epoch {history.columns['epoch'][history.best]:g})"
        runs.append(Line2D([], [], label=history.name + best, **style))
    names = {name.removesuffix("_loss").replace("train", "training"): line for name, line in LOSS_LINES.items()}
    lines = [Line2D([], [], color=GREY, linestyle=line, label=name) for name, line in names.items()]
    circle = Line2D([], [], color=GREY, linestyle="", marker="o", markersize=10, fillstyle="none", label="best epoch")
    return [*runs, *lines, circle]


def _draw_rmse(panel: Axes, variable: str, unit: str, histories: Sequence[History]) -> None:
    """One variable at the first and the last lead time of each run, and persistence at both."""
    leads: dict[Any, list[str]] = {}
    for history, style in zip(histories, RUN_STYLES):
        curves = [curve for curve in history.rmse if (curve.variable, curve.unit) == (variable, unit)]
        for curve, line in zip(curves[:1] + curves[1:][-1:], ("-", "--")):
            look = style if len(curve.epochs) <= MOST_MARKED else _bare(style)
            panel.plot(curve.epochs, curve.rmse, linestyle=line, markersize=3.5, **look)
            panel.axhline(curve.persistence, linestyle=":", linewidth=1.2, color=style["color"])
            leads.setdefault(line, []).append(f"+{curve.lead_hours:g} h")
    handles = [
        Line2D([], [], color=GREY, linestyle=line, label=", ".join(dict.fromkeys(names)))
        for line, names in leads.items()
    ]
    handles.append(Line2D([], [], color=GREY, linestyle=":", linewidth=1.2, label="persistence"))
    panel.legend(handles=handles, framealpha=0.8, edgecolor="none", fontsize=7, ncols=3)
    panel.set_title(f"{variable}, validation", fontsize=10)
    panel.set_ylabel(f"RMSE ({pretty_units(unit)})")


def _bare(style: dict[str, Any]) -> dict[str, Any]:
    return style | {"marker": ""}
