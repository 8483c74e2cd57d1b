"""The command line: the parser, the log on the screen, and exit codes."""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from contextlib import suppress

from tqdm import tqdm

from convlstm_wx import __version__
from convlstm_wx.commands import (
    compare,
    doctor,
    evaluate,
    experiment,
    fetch,
    forecast,
    info,
    inspection,
    permute,
    plot_history,
    prepare,
    sample,
    train,
)
from convlstm_wx.commands.options import Formatter, Parser, one_line
from convlstm_wx.errors import ConvlstmWxError

log = logging.getLogger("convlstm_wx")

COMMANDS = (
    fetch,
    prepare,
    inspection,
    train,
    info,
    plot_history,
    forecast,
    evaluate,
    compare,
    permute,
    experiment,
    sample,
    doctor,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns 0 done, 1 the doctor found a fault, 2 a mistake of the user, 130 stopped by Ctrl-C."""
    options = _parser().parse_args(arguments)
    _start_log(options.log_level)
    try:
        return options.run(options)
    except ConvlstmWxError as error:
        print(f"convlstm-wx {options.command}: {one_line(str(error))}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.filename is None:
            raise
        print(f"convlstm-wx {options.command}: {error.filename}: {error.strerror}; check the path", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130
    except (MemoryError, RuntimeError) as error:
        from convlstm_wx.device import is_out_of_memory

        if not is_out_of_memory(error):
            raise
        remedy = "ask for less at once (fewer init times or months, a smaller --batch-size) or close other programs"
        print(f"convlstm-wx {options.command}: out of memory ({one_line(str(error))[:200]}); {remedy}", file=sys.stderr)
        return 2
    finally:
        _stop_log()


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="convlstm-wx",
        formatter_class=Formatter,
        description="Regional weather forecasting with ConvLSTM: train, forecast and evaluate from one NetCDF file.",
    )
    parser.add_argument("--version", action="version", version=f"convlstm-wx {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)
    for command in COMMANDS:
        command.add(subparsers)
    return parser


class _TqdmHandler(logging.StreamHandler):
    """Lines that do not break a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            tqdm.write(self.format(record), file=sys.stdout)
            sys.stdout.flush()
        except OSError:  # nobody reads on (`| head -1`), or the disk is full: a run of days must not end for that
            self.setLevel(logging.CRITICAL + 1)
            with suppress(OSError, ValueError):  # what is still buffered goes nowhere when Python ends
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


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
