"""The command line: the parser, the log on the screen, and exit codes."""

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import Field, fields
from typing import Any

from tqdm import tqdm

from convlstm_wx import __version__, commands
from convlstm_wx.config import TrainConfig, as_flag
from convlstm_wx.errors import ConvlstmWxError

log = logging.getLogger("convlstm_wx")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0 done, 2 a mistake of the user's, 130 stopped by Ctrl-C."""
    options = _parser().parse_args(arguments)
    _start_log(options.log_level)
    try:
        return options.run(options)
    except ConvlstmWxError as error:
        print(f"convlstm-wx {options.command}: {_one_line(str(error))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130
    finally:
        _stop_log()


def _one_line(text: str) -> str:
    return " ".join(text.split())


# Parser


class _Formatter(argparse.HelpFormatter):
    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=34, width=110)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        """One line and exit code 2, as for every other mistake."""
        self.exit(2, f"{self.prog}: {_one_line(message)}; see {self.prog} --help\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="convlstm-wx",
        formatter_class=_Formatter,
        description="Regional weather forecasting with ConvLSTM: train, forecast and evaluate from one NetCDF file.",
    )
    parser.add_argument("--version", action="version", version=f"convlstm-wx {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)
    for add in (_add_train, _add_forecast, _add_evaluate, _add_compare, _add_sample):
        add(subparsers)
    return parser


def _add_command(subparsers: Any, name: str, run: Any, summary: str) -> argparse.ArgumentParser:
    command = subparsers.add_parser(name, help=summary, description=summary, formatter_class=_Formatter)
    command.set_defaults(run=run)
    command.add_argument(
        "--log-level", default="info", choices=("debug", "info", "warning", "error"), help="how much to say (info)"
    )
    return command


def _add_train(subparsers: Any) -> None:
    command = _add_command(subparsers, "train", commands.train, "Train a network on a regional grid.")
    groups: dict[str, Any] = {}
    for entry in fields(TrainConfig):
        name = entry.metadata["group"]
        group = groups.setdefault(name, command.add_argument_group(name) if name not in groups else None)
        _add_option(group, entry)
    groups["Output"].add_argument(
        "--resume", metavar="PATH", help="go on from a checkpoint of this run, with its settings unless given anew"
    )
    groups["Output"].add_argument("--overwrite", action="store_true", help="replace a run that is in the folder")
    groups["Output"].add_argument("--config", metavar="FILE", help="settings from a TOML file, under the same names")


def _add_option(group: Any, entry: Field) -> None:
    """One setting as an option that is absent unless given: a TOML file or a checkpoint then decides."""
    metadata, flag = entry.metadata, as_flag(entry.name)
    text = metadata["help"].replace("%", "%%")
    common: dict[str, Any] = {"dest": entry.name, "default": argparse.SUPPRESS}
    if metadata["kind"] is bool:
        if entry.name == "use_amp":
            _add_amp(group, text, argparse.SUPPRESS)
        else:
            group.add_argument(flag, action=argparse.BooleanOptionalAction, help=text + " (default: off)", **common)
        return
    common["type"] = metadata["kind"]
    if metadata["shape"] in ("box", "boxes"):
        common |= {"nargs": 4, "metavar": ("LAT_MIN", "LAT_MAX", "LON_MIN", "LON_MAX")}
        common |= {"action": "append"} if metadata["shape"] == "boxes" else {}
    else:
        is_path = entry.name in ("data", "output_dir")
        common |= {"metavar": "PATH" if is_path else {int: "N", float: "X", str: "TEXT"}[metadata["kind"]]}
        common |= {"nargs": "+"} if metadata["shape"] == "many" else {}
    group.add_argument(flag, help=text + _default_text(entry), **common)


def _add_amp(group: Any, text: str, default: Any) -> None:
    group.add_argument("--use-amp", action="store_true", default=default, help=text + " (default: off)")
    group.add_argument("--no-amp", action="store_false", dest="use_amp", default=default, help="float32 throughout")


def _default_text(entry: Field) -> str:
    """The default, unless there is none or the help says what it means."""
    default = entry.default
    if default in (None, ()) or "default:" in entry.metadata["help"]:
        return ""
    return f" (default: {' '.join(map(str, default)) if isinstance(default, tuple) else default})"


def _add_data_and_device(command: argparse.ArgumentParser, *, checkpoint_required: bool) -> None:
    command.add_argument("--checkpoint", metavar="PATH", required=checkpoint_required, help="best.pt of a training run")
    command.add_argument(
        "--data", metavar="PATH", nargs="+", required=True, help="NetCDF files, a glob, or a Zarr directory"
    )
    making = command.add_argument_group("Making forecasts")
    making.add_argument("--lead-steps", metavar="N", type=_positive, help="lead times, in steps (default: as trained)")
    making.add_argument(
        "--batch-size", metavar="N", type=_positive, default=16, help="init times at once (default: 16)"
    )
    making.add_argument(
        "--device", default="auto", metavar="TEXT", help="auto, cuda, cuda:N, mps or cpu (default: auto)"
    )
    _add_amp(making, "half precision where the device has it natively", False)


def _positive(text: str) -> int:
    number = int(text) if text.isdigit() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number of at least 1")
    return number


def _share(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number between 0 and 1")
    return number


def _seed(text: str) -> int:
    if not (text.isdigit() and int(text) < 2**63):
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number from 0 to 2^63 - 1")
    return int(text)


def _add_forecast(subparsers: Any) -> None:
    command = _add_command(
        subparsers, "forecast", commands.forecast, "Forecast from a checkpoint into a CF NetCDF file."
    )
    _add_data_and_device(command, checkpoint_required=True)
    command.add_argument("--output", metavar="FILE", required=True, help="forecast.nc or forecast.zarr")
    when = command.add_argument_group("Init times (default: the newest possible)")
    when.add_argument("--init-time", metavar="TIME", nargs="+", help="one or more, such as 2008-07-01T12")
    when.add_argument("--start", metavar="TIME", help="all from here ...")
    when.add_argument("--end", metavar="TIME", help="... to here")
    command.add_argument(
        "--layout", default="cf", choices=("cf", "wb2"), help="dimension names: CF's, or WeatherBench 2's (default: cf)"
    )


def _add_evaluate(subparsers: Any) -> None:
    command = _add_command(
        subparsers,
        "evaluate",
        commands.evaluate,
        "Score forecasts of the held-out months beside persistence and climatology.",
    )
    _add_data_and_device(command, checkpoint_required=False)
    command.add_argument("--output", metavar="FOLDER", required=True, help="where scores, figures and the page go")
    command.add_argument(
        "--forecast",
        metavar="FILE",
        help="score this forecast file instead of making forecasts; months and lead steps may be chosen",
    )
    command.add_argument(
        "--months", metavar="TEXT", nargs="+", help="2014-07, 07, 2014 or 2009-01:2010-12 (default: held out)"
    )
    command.add_argument("--allow-seen", action="store_true", help="allow months that training or validation saw")
    command.add_argument(
        "--confidence", metavar="X", type=_share, default=0.95, help="of the intervals (default: 0.95)"
    )
    command.add_argument("--seed", metavar="N", type=_seed, default=0, help="of the resampling (default: 0)")


def _add_compare(subparsers: Any) -> None:
    command = _add_command(
        subparsers, "compare", commands.compare, "Is evaluation A better than B on their common forecasts?"
    )
    command.add_argument("a", metavar="A", help="scores.nc, or the folder of an evaluation")
    command.add_argument("b", metavar="B", help="what it is compared with")
    command.add_argument(
        "--confidence", metavar="X", type=_share, default=0.95, help="of the intervals (default: 0.95)"
    )
    command.add_argument("--seed", metavar="N", type=_seed, default=0, help="of the resampling (default: 0)")


def _add_sample(subparsers: Any) -> None:
    command = _add_command(subparsers, "sample", commands.sample, "Simulate the sample region of the quick start.")
    command.add_argument(
        "--output", metavar="FILE", default="data/sample_region.nc", help="(default: data/sample_region.nc)"
    )
    command.add_argument("--years", metavar="N", type=_positive, default=2, help="length of the record (default: 2)")
    command.add_argument("--seed", metavar="N", type=_seed, default=0, help="of the simulation (default: 0)")


# Log


class _TqdmHandler(logging.StreamHandler):
    """Lines that do not break a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stdout)
        sys.stdout.flush()


def _start_log(level: str) -> None:
    log.setLevel(level.upper())
    log.propagate = False
    handler = _TqdmHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    log.addHandler(handler)


def _stop_log() -> None:
    for handler in log.handlers[:]:
        log.removeHandler(handler)
        handler.close()
    log.setLevel(logging.NOTSET)
    log.propagate = True


if __name__ == "__main__":
    sys.exit(main())
