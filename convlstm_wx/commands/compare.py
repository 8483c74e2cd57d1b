"""compare: whether one evaluation is better than another."""

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convlstm_wx.commands.options import DONE, add_command, seed, share

if TYPE_CHECKING:
    pass

log = logging.getLogger(__name__)


def add(subparsers: Any) -> None:
    """Declare the command."""
    command = add_command(subparsers, "compare", run, "Is evaluation A better than B on their common forecasts?")
    command.add_argument("a", metavar="A", help="scores.nc, or the folder of an evaluation")
    command.add_argument("b", metavar="B", help="what it is compared with")
    command.add_argument("--confidence", metavar="X", type=share, default=0.95, help="of the intervals (default: 0.95)")
    command.add_argument("--seed", metavar="N", type=seed, default=0, help="of the resampling (default: 0)")


def run(options: argparse.Namespace) -> int:
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
