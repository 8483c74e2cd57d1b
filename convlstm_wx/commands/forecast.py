"""forecast: from checkpoints and data to a CF NetCDF file or a Zarr store."""

import argparse
import logging
from pathlib import Path
from typing import Any

from convlstm_wx.commands.fetch import step_hours
from convlstm_wx.commands.making import add_ensemble, data_files, open_data, open_upstream, say_ensemble, say_times
from convlstm_wx.commands.options import DONE, add_command, add_data_and_device, refuse_input, seed
from convlstm_wx.errors import ConfigError

log = logging.getLogger(__name__)


def add(subparsers: Any) -> None:
    """Declare the command."""
    command = add_command(
        subparsers, "forecast", run, "Forecast from a checkpoint into a CF NetCDF file or a Zarr store."
    )
    add_data_and_device(command, checkpoint_required=True, several_checkpoints=True)
    command.add_argument("--output", metavar="FILE", required=True, help="forecast.nc or forecast.zarr")
    command.add_argument(
        "--layout", default="cf", choices=("cf", "wb2"), help="names: CF's, or WeatherBench 2's (default: cf)"
    )
    command.add_argument(
        "--restart", action="store_true", help="throw away an unfinished forecast of another request in the same place"
    )
    when = command.add_argument_group("Init times (default: latest)")
    when.add_argument(
        "--init-time",
        "--init",
        metavar="TIME",
        nargs="+",
        help="one or more, such as 2008-07-01T12; latest is the newest possible",
    )
    when.add_argument("--start", metavar="TIME", help="all from here ...")
    when.add_argument("--end", metavar="TIME", help="... to here")
    when.add_argument("--every", metavar="STEP", type=step_hours, help="only every 6h, 1d ... (default: every time)")
    ensemble = command.add_argument_group("Ensembles")
    add_ensemble(ensemble)
    ensemble.add_argument("--seed", metavar="N", type=seed, default=0, help="of errors or perturbations (default: 0)")
    ensemble.add_argument("--statistics", metavar="FILE", help="write the ensemble's mean and spread here too")


def run(options: argparse.Namespace) -> int:
    """Forecast from one or many init times into a file."""
    import numpy as np

    from convlstm_wx.checkpoint import checkpoints_of, load_checkpoint
    from convlstm_wx.data.cache import fingerprint
    from convlstm_wx.device import choose_device
    from convlstm_wx.forecast.assembling import assemble
    from convlstm_wx.forecast.labelling import lead_times
    from convlstm_wx.forecast.rollout import Trained
    from convlstm_wx.forecast.writing import forecast_to_file
    from convlstm_wx.text import list_channels

    options.checkpoint = [str(file) for path in options.checkpoint for file in checkpoints_of(path)]
    output, statistics = _outputs(options, members=options.members or len(options.checkpoint))
    checkpoints = [load_checkpoint(path) for path in options.checkpoint]
    policy = choose_device(options.device, use_amp=options.use_amp)
    dataset = open_data(options.data, checkpoints)
    trained = [Trained(each, open_upstream(each.spec, options.upstream_data)) for each in checkpoints]
    forecast = assemble(
        trained,
        dataset,
        policy,
        named=options.init_time or (),
        start=options.start,
        end=options.end,
        every=None if options.every is None else np.timedelta64(options.every, "h"),
        lead_steps=options.lead_steps,
        members=options.members,
        spread=options.spread,
        perturbation=options.perturbation,
        seed=options.seed,
        batch_size=options.batch_size,
    )
    log.info("device     %s", "; ".join(policy.reasons))
    say_ensemble(forecast)
    try:
        kept = forecast_to_file(
            forecast,
            output,
            data_files=fingerprint(data_files(options, [each.spec for each in checkpoints])),
            layout=options.layout,
            statistics=statistics,
            restart=options.restart,
            tell=lambda line: log.info("going on   %s", line),
        )
    except KeyboardInterrupt:
        log.info("what is here already is kept: run the same command again to go on")
        raise
    spec = forecast.spec
    say_times(kept, lead_times(spec, forecast.lead_steps))
    log.info("variables  %s", list_channels(spec.targets))
    log.info("written    %s", ", ".join(str(path) for path in (output, statistics) if path is not None))
    return DONE


def _outputs(options: argparse.Namespace, *, members: int) -> tuple[Path, Path | None]:
    """Where the forecast and the statistics go.

    Raises:
        ConfigError: for a place that cannot be written, is an input, or is the same for both.
    """
    from convlstm_wx.gridfiles import check_output

    if options.statistics and members < 2:
        raise ConfigError("--statistics: one forecast has no mean and spread; give --members or several --checkpoint")
    places = {"--output": options.output} | ({"--statistics": options.statistics} if options.statistics else {})
    inputs = [*options.data, *(options.upstream_data or ()), *options.checkpoint]
    for option, text in places.items():
        check_output(Path(text), overwrite=True, option=option)
        if all(Path(path).exists() for path in options.checkpoint):  # else that is what must be told
            refuse_input(option, Path(text), inputs)
    if options.statistics and Path(options.statistics).resolve() == Path(options.output).resolve():
        raise ConfigError(f"--statistics {options.statistics}: is the --output already; choose another name")
    return Path(options.output), Path(options.statistics) if options.statistics else None
