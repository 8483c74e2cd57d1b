"""plot-history: how one run or several learned, in one picture."""

import argparse
import logging
from pathlib import Path
from typing import Any

from convlstm_wx.commands.options import DONE, add_command, nonempty
from convlstm_wx.errors import ConfigError

log = logging.getLogger(__name__)

ENDINGS = (".png", ".pdf", ".svg")


def add(subparsers: Any) -> None:
    """Declare the command."""
    command = add_command(
        subparsers, "plot-history", run, "Draw losses, learning rate and validation errors of training runs."
    )
    command.add_argument(
        "runs",
        metavar="RUN",
        type=nonempty,
        nargs="+",
        help="folders of training runs or ensembles; several are drawn together",
    )
    command.add_argument(
        "--output", metavar="FILE", type=nonempty, required=True, help=f"the picture: {', '.join(ENDINGS)}"
    )


def run(options: argparse.Namespace) -> int:
    """Read what the runs wrote, draw it."""
    from convlstm_wx.files import check_can_make
    from convlstm_wx.report.curves import draw_history

    output = Path(options.output)
    if output.suffix.lower() not in ENDINGS:
        raise ConfigError(f"--output {output}: must end in {' or '.join(ENDINGS)}")
    if output.is_dir():
        raise ConfigError(f"--output {output}: is a folder; name a file")
    check_can_make(output.parent)
    draw_history([folder for run in options.runs for folder in _folders(Path(run))], output)
    log.info("written    %s", output)
    return DONE


def _folders(run: Path) -> list[Path]:
    """A run's folder, also from a file in it, such as its best.pt; those of all members of an ensemble."""
    from convlstm_wx.checkpoint import members_in

    if not run.exists():
        raise ConfigError(f"{run}: no such folder; give that of a training run, with its history.csv")
    folder = run if run.is_dir() else run.parent
    return members_in(folder) or [folder]
