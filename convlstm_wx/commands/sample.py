"""sample: the synthetic region of the quick start."""

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convlstm_wx.commands.options import DONE, add_command, positive, seed

if TYPE_CHECKING:
    pass

log = logging.getLogger(__name__)


def add(subparsers: Any) -> None:
    """Declare the command."""
    command = add_command(subparsers, "sample", run, "Simulate the sample region of the quick start.")
    command.add_argument(
        "--output", metavar="FILE", default="data/sample_region.nc", help="(default: data/sample_region.nc)"
    )
    command.add_argument("--years", metavar="N", type=positive, default=2, help="length of the record (default: 2)")
    command.add_argument("--seed", metavar="N", type=seed, default=0, help="of the simulation (default: 0)")


def run(options: argparse.Namespace) -> int:
    """Write the synthetic region."""
    from convlstm_wx.data.sample import write_sample

    path = write_sample(Path(options.output), years=options.years, seed=options.seed)
    log.info("written    %s", path)
    log.info("next: python train_convlstm.py --data %s --device auto --use-amp", path)
    return DONE
