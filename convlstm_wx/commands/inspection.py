"""inspect: what a file holds, and whether and how it can be trained with, before anything is written."""

import argparse
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convlstm_wx.commands.findings import OUTPUT_SETTINGS, Findings, as_dict, last_line, told
from convlstm_wx.commands.options import (
    DONE,
    add_command,
    add_settings,
    nonempty,
    one_line,
    print_out,
    refuse_input,
    training_config,
    training_device,
)
from convlstm_wx.config import AUTO, TrainConfig
from convlstm_wx.errors import ConfigError, ConvlstmWxError, DataError

if TYPE_CHECKING:
    import xarray as xr

    from convlstm_wx.conventions import Channel
    from convlstm_wx.data.account import Account
    from convlstm_wx.device import DevicePolicy

log = logging.getLogger(__name__)

NOT_READY = 2


def add(subparsers: Any) -> None:
    """Declare the command."""
    command = add_command(subparsers, "inspect", run, "See what a file holds, and whether it can be trained with.")
    add_settings(command, without=OUTPUT_SETTINGS)
    output = command.add_argument_group("Output")
    output.add_argument(
        "--channels", action="store_true", help="a row for each channel, also where there are more than 8"
    )
    output.add_argument(
        "--json", metavar="FILE", type=nonempty, help="the same for programs; - prints it, and nothing else"
    )
    output.add_argument("--plot", metavar="FOLDER", type=nonempty, help="draw a map and a time series of each variable")


def run(options: argparse.Namespace) -> int:
    """Read all, try one batch, tell; nothing is written but what is asked for."""
    from convlstm_wx.files import check_can_make, write_text

    config = training_config(options)
    if options.json == "-":
        logging.getLogger("convlstm_wx").setLevel(logging.ERROR)
    if options.json not in (None, "-"):
        _check_json(Path(options.json), config, options.config)
    if options.plot:
        check_can_make(Path(options.plot))
    findings = _find_out(config)
    for line in told(findings, config, each_channel=options.channels):
        log.info(line)
    if options.plot:
        _draw(Path(options.plot), config, findings)
    log.info(last_line(findings, config))
    if options.json:
        text = json.dumps(as_dict(findings, config), indent=2, allow_nan=False) + "\n"
        print_out(text.rstrip()) if options.json == "-" else write_text(Path(options.json), text)
    return NOT_READY if findings.problem else DONE


def _check_json(path: Path, config: TrainConfig, settings: str | None) -> None:
    """Refuse a file that cannot be written, or that is read: JSON would take the place of the data."""
    from convlstm_wx.files import check_can_make

    with suppress(DataError):  # that an input is not there is told where it is opened
        refuse_input("--json", path, [*config.data, *config.upstream_data, *([settings] if settings else [])])
    if path.is_dir():
        raise ConfigError(f"--json {path}: is a folder; name a file")
    check_can_make(path.parent)


# Finding out


def _find_out(config: TrainConfig) -> Findings:
    """As far as it goes: the data as training gets them, else a look at the file alone."""
    from convlstm_wx.data.inputs import prepare_training

    findings = Findings()
    try:
        policy = training_device(config)  # first: reading may take long
        findings.inputs = prepare_training(config)
        findings.account = findings.inputs.account
        _try_training(findings, config, policy)
    except ConvlstmWxError as error:
        findings.problem = one_line(str(error))
        if findings.account is None:
            findings.account = _account_alone(config)
    return findings


def _try_training(findings: Findings, config: TrainConfig, policy: "DevicePolicy") -> None:
    """Windows, network and one batch."""
    from convlstm_wx.distributed import joined
    from convlstm_wx.training.autobatch import find_batch_size
    from convlstm_wx.training.loop import Run
    from convlstm_wx.training.plan import make_plan, role_plans
    from convlstm_wx.training.probe import probe

    assert findings.inputs is not None
    findings.roles = role_plans(findings.inputs)
    with joined() as processes:
        folder = Path(config.output_dir or "")
        if config.batch_size == AUTO:
            config = replace(config, batch_size=find_batch_size(config, findings.inputs, policy, folder, processes))
        training = Run(config, findings.inputs, policy, folder, processes)
        findings.plan = make_plan(training, findings.inputs, probe(training, repeats=2))
        policy.free_memory()


def _account_alone(config: TrainConfig) -> "Account | None":
    """What the file holds, although it cannot be trained with; None if it cannot even be read.

    Where there is no such region, variable or level in it, the account is of all that is.
    """
    from convlstm_wx.data.quality import check

    for settings in (config, replace(config, target_region=None, variables=(), levels=())):
        with suppress(ConvlstmWxError), _said_before():
            return check(*_open(settings))
    return None


def _open(config: TrainConfig) -> "tuple[xr.Dataset, tuple[Channel, ...]]":
    """The target region, duplicate and unsorted times mended, and the channels to look at."""
    from convlstm_wx.data.channels import choose_channels
    from convlstm_wx.data.inputs import masking_of
    from convlstm_wx.data.reading import open_dataset
    from convlstm_wx.data.regions import Region, select_region

    dataset = open_dataset(config.data, mend=True, masking=masking_of(config))
    box = None if config.target_region is None else Region(*config.target_region)
    return select_region(dataset, box, option="--target-region"), choose_channels(
        dataset, config.variables, config.levels
    )


@contextmanager
def _said_before() -> Iterator[None]:
    """Opens again what was opened before, without saying again what was noticed then."""
    reading = logging.getLogger("convlstm_wx.data")
    level = reading.level
    reading.setLevel(logging.ERROR)
    try:
        yield
    finally:
        reading.setLevel(level)


def _draw(folder: Path, config: TrainConfig, findings: Findings) -> None:
    from convlstm_wx.report import survey

    if findings.inputs is not None and (box := findings.inputs.spec.target.box) is not None:
        config = replace(config, target_region=box.as_tuple())
    try:
        with _said_before():
            opened = _open(config)
    except ConvlstmWxError as error:
        findings.problem = findings.problem or one_line(str(error))
        return
    figures = survey.draw_all(folder, *opened)
    log.info("figures: %d in %s", len(figures), folder)
