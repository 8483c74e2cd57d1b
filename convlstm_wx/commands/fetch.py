"""fetch: a region of ERA5 from a public store."""

import argparse
import logging
import re
import shlex
from pathlib import Path
from typing import Any

from convlstm_wx.commands.options import DONE, above_zero, add_command, nonempty, refuse_input

log = logging.getLogger(__name__)

_LONGEST_STEP_H = 366 * 24


def add(subparsers: Any) -> None:
    """Declare the command."""
    command = add_command(
        subparsers, "fetch", run, "Fetch a region of ERA5 from a public store, without an account; a stop is resumed."
    )
    command.add_argument("dataset", metavar="DATASET", choices=("era5",), help="era5")
    command.add_argument("--output", metavar="FILE", type=nonempty, required=True, help="regional.nc or regional.zarr")
    command.add_argument("--overwrite", action="store_true", help="replace the output, or another unfinished download")
    part = command.add_argument_group("Which part")
    part.add_argument(
        "--variables",
        metavar="NAME",
        type=nonempty,
        nargs="+",
        required=True,
        help="short or long names (t2m or 2m_temperature), as the file shall call them",
    )
    part.add_argument("--levels", metavar="HPA", type=float, nargs="+", default=[], help="(default: all of the store)")
    part.add_argument(
        "--region",
        metavar=("LAT_MIN", "LAT_MAX", "LON_MIN", "LON_MAX"),
        type=float,
        nargs=4,
        required=True,
        help="degrees, edges included; longitudes as you like (-10 15 or 350 15)",
    )
    part.add_argument(
        "--start", metavar="TIME", type=nonempty, required=True, help="such as 2018, 2018-07 or 2018-07-01T12"
    )
    part.add_argument("--end", metavar="TIME", type=nonempty, required=True, help="included: 2018-07 is all of July")
    part.add_argument(
        "--step",
        metavar="TEXT",
        type=step_hours,
        default=6,
        help="between two times, such as 1h, 6h or 1d; precipitation is summed over it (default: 6h)",
    )
    where = command.add_argument_group("Where from")
    where.add_argument(
        "--store",
        metavar="TEXT",
        type=nonempty,
        default="arco",
        help="arco (0.25 degrees, hourly), wb2 (0.25 degrees, 6-hourly, 1959 to 2023), wb2-1.5deg, wb2-5.6deg, a URL "
        "or a folder (default: arco)",
    )
    where.add_argument(
        "--max-download", metavar="GB", type=above_zero, default=50.0, help="refuse more than this (default: 50)"
    )


def step_hours(text: str) -> int:
    """Hours of "6h" or "1d"."""
    found = re.fullmatch(r"(\d+)(h|d)", text.strip().lower())
    hours = int(found[1]) * (24 if found[2] == "d" else 1) if found else 0
    if not 1 <= hours <= _LONGEST_STEP_H:
        raise argparse.ArgumentTypeError(f"'{text}' is not a step such as 1h, 6h or 1d, of at most 366d")
    return hours


def run(options: argparse.Namespace) -> int:
    """Plan, tell, fetch."""
    from convlstm_wx.data.regions import Region
    from convlstm_wx.gridfiles import check_output
    from convlstm_wx.preparing.fetching import fetch
    from convlstm_wx.preparing.planning import Request, check_size, make_plan
    from convlstm_wx.preparing.stores import STORES, open_store

    output = Path(options.output)
    refuse_input("--output", output, [STORES.get(options.store, options.store)])
    check_output(output, overwrite=options.overwrite)
    request = Request(
        variables=tuple(options.variables),
        region=Region(*options.region),
        start=options.start,
        end=options.end,
        levels=tuple(options.levels),
        step_hours=options.step,
    )
    plan = make_plan(open_store(options.store), request)
    for line in plan.lines():
        log.info(line)
    check_size(plan, options.max_download)
    try:
        for line in fetch(plan, output, overwrite=options.overwrite):
            log.info(line)
    except KeyboardInterrupt:
        log.info("what is here already is kept: run the same command again to go on")
        raise
    log.info("next: convlstm-wx train --data %s", shlex.quote(str(output)))
    return DONE
