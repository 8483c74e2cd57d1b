"""prepare: a cleaned copy of a record, with an account of what was changed."""

import argparse
import logging
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from convlstm_wx.commands.options import (
    DONE,
    add_command,
    add_dask_scheduler,
    add_setting,
    nonempty,
    positive,
    refuse_input,
)
from convlstm_wx.config import check_ignored
from convlstm_wx.errors import ConfigError

log = logging.getLogger(__name__)


def add(subparsers: Any) -> None:
    """Declare the command."""
    command = add_command(subparsers, "prepare", run, "Clean a record into a file that is ready for training.")
    command.add_argument(
        "--data", metavar="PATH", type=nonempty, nargs="+", required=True, help="NetCDF files, a glob, or Zarr stores"
    )
    command.add_argument("--output", metavar="FILE", type=nonempty, required=True, help="clean.nc or clean.zarr")
    command.add_argument("--overwrite", action="store_true", help="replace the output if it exists")
    part = command.add_argument_group("Which part")
    add_part(part)
    for name in ("ignore_variables", "mask_values"):
        add_setting(part, name)
    changes = command.add_argument_group("What is done, in this order")
    changes.add_argument(
        "--derive",
        metavar=("u", "v"),
        nargs=2,
        help="eastward and northward wind from the file's wind speed and wind direction; the direction is left out",
    )
    changes.add_argument("--units", metavar="VAR=UNIT", nargs="+", default=[], help="such as tp=mm t2m=degC")
    changes.add_argument(
        "--bounds",
        metavar="VAR=LOW:HIGH",
        nargs="+",
        default=[],
        help="in the output's units, one side may be empty; values outside become missing "
        "(default: the plausible range of variables that are recognised)",
    )
    changes.add_argument(
        "--keep-implausible", action="store_true", help="no bounds but those given; infinite values still go"
    )
    changes.add_argument(
        "--coarsen", metavar="N", type=positive, default=1, help="mean over N x N points, weighted by area (default: 1)"
    )
    changes.add_argument(
        "--fill-time",
        metavar="N",
        type=positive,
        default=0,
        help="fill gaps with the last observed value, if it is at most N steps old (a line to the next one would tell "
        "forecasts what is to come); a time that the data do not have at all is not made up (default: off)",
    )
    changes.add_argument(
        "--fill-space",
        metavar="N",
        type=positive,
        default=0,
        help="fill up to N points inwards with the mean of neighbours (default: off)",
    )
    add_dask_scheduler(command)


def add_part(group: Any) -> None:
    """Options that choose variables, levels, a box and a period."""
    group.add_argument("--variables", metavar="NAME", type=nonempty, nargs="+", default=[], help="(default: all)")
    group.add_argument("--levels", metavar="HPA", type=float, nargs="+", default=[], help="(default: all)")
    group.add_argument(
        "--region",
        metavar=("LAT_MIN", "LAT_MAX", "LON_MIN", "LON_MAX"),
        type=float,
        nargs=4,
        help="degrees, edges included (default: all)",
    )
    group.add_argument(
        "--start", metavar="TIME", type=nonempty, help="such as 2008, 2008-07 or 2008-07-01T12 (default: the first)"
    )
    group.add_argument(
        "--end", metavar="TIME", type=nonempty, help="included: 2008-07 is all of July (default: the last)"
    )


def run(options: argparse.Namespace) -> int:
    """Clean the data into the output."""
    from convlstm_wx.data.regions import Region
    from convlstm_wx.gridfiles import check_output
    from convlstm_wx.preparing.cleaning import Rules
    from convlstm_wx.preparing.prepare import Request, prepare

    if options.derive and set(options.derive) != {"u", "v"}:
        raise ConfigError(f"--derive {' '.join(options.derive)}: only the wind can be derived; write --derive u v")
    output = Path(options.output)
    refuse_input("--output", output, options.data)
    check_output(output, overwrite=options.overwrite)
    bounds = parse_pairs("--bounds", options.bounds, "VAR=LOW:HIGH, such as t2m=-60:60")
    rules = Rules(
        coarsen=options.coarsen,
        units=parse_pairs("--units", options.units, "VAR=UNIT, such as t2m=degC"),
        bounds={name: _bounds(name, limits) for name, limits in bounds.items()},
        keep_implausible=options.keep_implausible,
        fill_time=options.fill_time,
        fill_space=options.fill_space,
    )
    check_ignored(options.ignore_variables, options.variables)
    request = Request(
        paths=tuple(options.data),
        variables=tuple(options.variables),
        levels=tuple(options.levels),
        region=Region(*options.region) if options.region else None,
        start=options.start,
        end=options.end,
        derive=tuple(options.derive or ()),
        rules=rules,
        ignore_variables=tuple(options.ignore_variables),
        mask_values=tuple(options.mask_values),
    )
    for line in prepare(request, output, scheduler=options.dask_scheduler):
        log.info(line)
    log.info("next: convlstm-wx train --data %s", shlex.quote(str(output)))
    return DONE


def parse_pairs(option: str, texts: Sequence[str], form: str) -> dict[str, str]:
    """NAME=TEXT as a dictionary; the form says how it is to be written.

    Raises:
        ConfigError: for a text without =, or a name that is given twice.
    """
    pairs: dict[str, str] = {}
    for given in texts:
        name, equals, value = given.partition("=")
        if not (equals and name and value):
            raise ConfigError(f"{option} {given}: write {form}")
        if name in pairs:
            raise ConfigError(f"{option}: '{name}' is given twice")
        pairs[name] = value
    return pairs


def _bounds(name: str, limits: str) -> tuple[float, float]:
    low, colon, high = limits.partition(":")
    try:
        if not colon or limits == ":":
            raise ValueError(limits)
        return float(low or "-inf"), float(high or "inf")
    except ValueError:
        raise ConfigError(
            f"--bounds {name}={limits}: write LOW:HIGH, or LOW: or :HIGH, in the units of the output"
        ) from None
