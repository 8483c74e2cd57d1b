"""What the commands' options share: how they are added, their types, and the settings of training among them."""

import argparse
import os
import sys
import tomllib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import Field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from convlstm_wx.config import TrainConfig, as_flag
from convlstm_wx.errors import ConfigError

if TYPE_CHECKING:
    from convlstm_wx.device import DevicePolicy

DONE, STOPPED = 0, 130
PERIOD_HELP = "2014-07, 07, 2014 or 2009-01:2010-12"


class Formatter(argparse.HelpFormatter):
    """Help as wide as a terminal of today."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=34, width=110)


class Parser(argparse.ArgumentParser):
    """A parser that answers mistakes as everything else does."""

    def error(self, message: str) -> NoReturn:
        """One line and exit code 2."""
        self.exit(2, f"{self.prog}: {one_line(message)}; see {self.prog} --help\n")


def nonempty(given: str) -> str:
    """A text that says something: "" is most often a variable of a script that was never set."""
    if not given.strip():
        raise argparse.ArgumentTypeError("is empty")
    return given


def one_line(text: str) -> str:
    """The same words with single blanks between them."""
    return " ".join(text.split())


def add_command(subparsers: Any, name: str, run: Any, summary: str) -> argparse.ArgumentParser:
    """A command and the option that all of them have."""
    command = subparsers.add_parser(name, help=summary, description=summary, formatter_class=Formatter)
    command.set_defaults(run=run)
    command.add_argument(
        "--log-level", default="info", choices=("debug", "info", "warning", "error"), help="how much to say (info)"
    )
    return command


def print_out(text: str) -> None:
    """Print a document; where nobody reads on (`| head -1`) the rest goes nowhere."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        with suppress(OSError, ValueError):  # what is still buffered goes there too when Python ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


# The settings of training


def add_settings(command: argparse.ArgumentParser, *, without: Sequence[str] = ()) -> dict[str, Any]:
    """Every setting of TrainConfig but those named, and --config; returns the groups by name."""
    groups: dict[str, Any] = {}
    for entry in fields(TrainConfig):
        if entry.name in without:
            continue
        name = entry.metadata["group"]
        groups.setdefault(name, command.add_argument_group(name) if name not in groups else None)
        _add_setting(groups[name], entry)
    command.add_argument(
        "--config", metavar="FILE", type=nonempty, help="settings from a TOML file, under the same names"
    )
    return groups


def add_setting(group: Any, name: str) -> None:
    """One setting of training, with its default, in another command."""
    entry = next(entry for entry in fields(TrainConfig) if entry.name == name)
    _add_setting(group, entry)
    group.set_defaults(**{name: entry.default})


def _add_setting(group: Any, entry: Field) -> None:
    """One setting as an option that is absent unless given: a TOML file or a checkpoint then decides."""
    metadata, flag = entry.metadata, as_flag(entry.name)
    text = metadata["help"].replace("%", "%%")
    common: dict[str, Any] = {"dest": entry.name, "default": argparse.SUPPRESS}
    if metadata["kind"] is bool:
        if entry.name == "use_amp":
            add_amp(group, text, argparse.SUPPRESS)
        else:
            group.add_argument(flag, action=argparse.BooleanOptionalAction, help=text + _on_or_off(entry), **common)
        return
    common["type"] = nonempty if metadata["kind"] is str else whole_or_auto if metadata["auto"] else metadata["kind"]
    if metadata["shape"] in ("box", "boxes"):
        common |= {"nargs": 4, "metavar": ("LAT_MIN", "LAT_MAX", "LON_MIN", "LON_MAX")}
        common |= {"action": "append"} if metadata["shape"] == "boxes" else {}
    else:
        is_path = entry.name in ("data", "upstream_data", "output_dir", "cache_dir", "init_from")
        choices = f"{{{','.join(metadata['choices'])}}}" if metadata["choices"] else ""
        metavar = "PATH" if is_path else {int: "N", float: "X", str: "TEXT"}[metadata["kind"]]
        common |= {"metavar": choices or metavar}
        common |= {"nargs": "+"} if metadata["shape"] == "many" else {}
    group.add_argument(flag, help=text + _default_text(entry), **common)


def _on_or_off(entry: Field) -> str:
    return f" (default: {'on' if entry.default else 'off'})"


def _default_text(entry: Field) -> str:
    """The default, unless there is none or the help says what it means."""
    default = entry.default
    if default in (None, ()) or "default:" in entry.metadata["help"]:
        return ""
    return f" (default: {' '.join(map(str, default)) if isinstance(default, tuple) else default})"


def training_config(
    options: argparse.Namespace, resumed: Mapping[str, Any] | None = None, *, not_here: Mapping[str, str] | None = None
) -> TrainConfig:
    """Defaults, then the resumed run's settings, then the TOML file, then the command line.

    Args:
        options: the command line.
        resumed: settings of the run that goes on.
        not_here: settings that the command makes itself, so that the file must not, each with what to do instead.

    Raises:
        ConfigError: for a file that cannot be read, a wrong setting, or no data.
    """
    in_file = _read_settings(Path(options.config)) if options.config else {}
    for name, instead in (not_here or {}).items():
        if name in in_file:
            raise ConfigError(f"--config {options.config}: {name} is for the experiment to set; {instead}")
    given = {entry.name: getattr(options, entry.name) for entry in fields(TrainConfig) if hasattr(options, entry.name)}
    entries = dict(resumed or {}) | in_file | given
    if not entries.get("data"):
        raise ConfigError("--data is needed: one or more NetCDF files, a glob, or a Zarr store")
    resume = getattr(options, "resume", None)
    if resume and "output_dir" not in given:
        entries["output_dir"] = str(Path(resume).parent)
    if not entries.get("output_dir"):
        entries["output_dir"] = str(Path("checkpoints") / run_name(entries["data"]))
    return TrainConfig.from_dict(entries, source="command line")


def training_device(config: TrainConfig, *, local_rank: int | None = None) -> "DevicePolicy":
    """The device and precision that the settings of training ask for.

    Raises:
        DeviceError: if they cannot be had.
    """
    from convlstm_wx.device import choose_device

    return choose_device(
        config.device,
        use_amp=config.use_amp,
        amp_dtype=config.amp_dtype,
        tf32=config.tf32,
        cap_memory=config.memory_cap,
        local_rank=local_rank,
    )


def run_name(data: str | Sequence[str]) -> str:
    """The name of the (first) data file, without the signs of a glob."""
    first = data if isinstance(data, str) else data[0]
    return Path(first).stem.translate(str.maketrans("", "", "*?[]")).strip("_-. ") or "run"


def read_toml(path: Path, called: str) -> dict[str, Any]:
    """The entries of a TOML file.

    Raises:
        ConfigError: with what the file is called, if it cannot be read or is none.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{called}: cannot be read ({error.strerror})") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{called}: not TOML ({error})") from error


def _read_settings(path: Path) -> dict[str, Any]:
    entries = read_toml(path, f"--config {path}")
    TrainConfig.typed(entries, source=f"--config {path}")  # whose mistakes are told with the file's name
    return {key.replace("-", "_"): value for key, value in entries.items()}


# Options of several commands


def add_amp(group: Any, text: str, default: Any) -> None:
    """--use-amp and --no-amp."""
    group.add_argument("--use-amp", action="store_true", default=default, help=text + " (default: off)")
    group.add_argument("--no-amp", action="store_false", dest="use_amp", default=default, help="float32 throughout")


def add_confidence(group: Any) -> None:
    """--confidence of intervals."""
    group.add_argument("--confidence", metavar="X", type=share, default=0.95, help="of the intervals (default: 0.95)")


def add_dask_scheduler(group: Any) -> None:
    """--dask-scheduler of a cluster that is there already."""
    group.add_argument(
        "--dask-scheduler", metavar="ADDRESS", type=nonempty, help="work on this dask cluster: tcp://10.0.0.1:8786"
    )


def add_data_and_device(
    command: argparse.ArgumentParser, *, checkpoint_required: bool, several_checkpoints: bool = False
) -> None:
    """What every command that makes forecasts asks for."""
    several: dict[str, Any] = {"nargs": "+"} if several_checkpoints else {}
    command.add_argument(
        "--checkpoint",
        metavar="PATH",
        type=nonempty,
        required=checkpoint_required,
        help="the folder of a training run, or its best.pt; the members in a folder make an ensemble"
        + (", and so do several" if several_checkpoints else ""),
        **several,
    )
    command.add_argument(
        "--data", metavar="PATH", type=nonempty, nargs="+", required=True, help="NetCDF files, a glob, or a Zarr store"
    )
    add_making(command)


def add_making(command: argparse.ArgumentParser) -> None:
    """How forecasts are made."""
    making = command.add_argument_group("Making forecasts")
    making.add_argument(
        "--upstream-data",
        metavar="PATH",
        type=nonempty,
        nargs="+",
        help="other files for the upstream regions that training read from files (default: those of training)",
    )
    making.add_argument("--lead-steps", metavar="N", type=positive, help="lead times, in steps (default: as trained)")
    making.add_argument("--batch-size", metavar="N", type=positive, default=16, help="init times at once (default: 16)")
    making.add_argument(
        "--device", default="auto", metavar="TEXT", help="auto, cuda, cuda:N, mps or cpu (default: auto)"
    )
    add_amp(making, "half precision where the device has it natively", False)


def refuse_input(option: str, output: Path, inputs: Sequence[str]) -> None:
    """Refuse to write to what is read: the file itself, a store around it, or a place inside a store.

    Raises:
        ConfigError: naming the option.
        DataError: for inputs that are not there.
    """
    from convlstm_wx.data.locations import expand

    place = output.resolve()
    for read in (location.path.resolve() for location in expand(inputs) if not location.scheme):
        inside = read in place.parents and any((read / mark).exists() for mark in (".zgroup", "zarr.json"))
        if place == read or (place in read.parents and place.suffix == ".zarr") or inside:
            what = "lies inside" if inside else "is"
            raise ConfigError(f"{option} {output}: {what} an input of this command; choose another name")


def whole_or_auto(text: str) -> int | str:
    """A whole number, or the word auto."""
    try:
        return text if text == "auto" else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is neither a whole number nor auto") from None


def positive(text: str) -> int:
    """A whole number of at least 1."""
    number = int(text) if text.isdigit() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number of at least 1")
    return number


def share(text: str) -> float:
    """A number between 0 and 1, both excluded."""
    return _number(text, "between 0 and 1", lambda number: 0 < number < 1)


def above_zero(text: str) -> float:
    """A number above 0, not infinite."""
    return _number(text, "above 0", lambda number: 0 < number < float("inf"))


def at_least_zero(text: str) -> float:
    """A number of at least 0, not infinite."""
    return _number(text, "of at least 0", lambda number: 0 <= number < float("inf"))


def _number(text: str, wanted: str, suits: Callable[[float], bool]) -> float:
    try:
        number = float(text)
    except ValueError:
        number = float("nan")  # suits nothing
    if not suits(number):
        raise argparse.ArgumentTypeError(f"'{text}' is not a number {wanted}")
    return number


def seed(text: str) -> int:
    """A whole number that seeds a generator."""
    if not (text.isdigit() and int(text) < 2**63):
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number from 0 to 2^63 - 1")
    return int(text)
