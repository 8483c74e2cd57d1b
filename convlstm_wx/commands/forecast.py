"""forecast: from a checkpoint and a file to a CF NetCDF file."""

import argparse
import logging
from pathlib import Path
from typing import Any

from convlstm_wx.commands.making import choose_lead_steps, open_upstream, say_forecast
from convlstm_wx.commands.options import DONE, add_command, add_data_and_device, refuse_input

log = logging.getLogger(__name__)


def add(subparsers: Any) -> None:
    """Declare the command."""
    command = add_command(subparsers, "forecast", run, "Forecast from a checkpoint into a CF NetCDF file.")
    add_data_and_device(command, checkpoint_required=True)
    command.add_argument("--output", metavar="FILE", required=True, help="forecast.nc or forecast.zarr")
    when = command.add_argument_group("Init times (default: the newest possible)")
    when.add_argument("--init-time", metavar="TIME", nargs="+", help="one or more, such as 2008-07-01T12")
    when.add_argument("--start", metavar="TIME", help="all from here ...")
    when.add_argument("--end", metavar="TIME", help="... to here")
    command.add_argument(
        "--layout", default="cf", choices=("cf", "wb2"), help="dimension names: CF's, or WeatherBench 2's (default: cf)"
    )


def run(options: argparse.Namespace) -> int:
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
    upstream = open_upstream(checkpoint.spec, options.upstream_data)
    checkpoint.spec.check(dataset, upstream)
    init_times = choose_init_times(
        checkpoint.spec, dataset, options.init_time or (), options.start, options.end, upstream
    )
    refuse_input("--output", output, [*options.data, *(options.upstream_data or ()), options.checkpoint])
    check_output(output)
    made = make_forecast(
        checkpoint,
        dataset,
        init_times,
        lead_steps=choose_lead_steps(options.lead_steps, checkpoint.spec.lead_steps),
        policy=policy,
        upstream=upstream,
        batch_size=options.batch_size,
    )
    write_forecast(made, output, layout=options.layout)
    log.info("device     %s", "; ".join(policy.reasons))
    say_forecast(made)
    log.info("written    %s", output)
    return DONE
