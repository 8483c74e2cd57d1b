"""doctor: what a machine has, whether it computes rightly, and what is fast on it."""

import argparse
import json
import logging
import secrets
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convlstm_wx.commands.options import DONE, add_command, seed
from convlstm_wx.errors import ConfigError

if TYPE_CHECKING:
    from convlstm_wx.training.checkup import Checkup, Outcome

log = logging.getLogger(__name__)

ILL = 1
_WIDTH = 27


def add(subparsers: Any) -> None:
    """Declare the command."""
    command = add_command(subparsers, "doctor", run, "See what this machine has, and whether it trains rightly.")
    command.add_argument(
        "--device", default="auto", help="auto (CUDA, else MPS, else CPU), cuda, cuda:N, mps or cpu (default: auto)"
    )
    command.add_argument("--seed", metavar="N", type=seed, help="of the weights (default: a new one, which is told)")
    command.add_argument("--json", metavar="FILE", help="the same for programs; - prints it, and nothing else")
    command.add_argument("--report", metavar="FILE.html", help="the same as one page to mail")


def run(options: argparse.Namespace) -> int:
    """Look, try, tell; 1 if something is wrong with the machine."""
    from tqdm import tqdm

    from convlstm_wx.device import choose_device
    from convlstm_wx.files import check_can_make
    from convlstm_wx.text import wrap
    from convlstm_wx.training.checkup import check_up, stages
    from convlstm_wx.training.machine import look

    if options.json == "-":
        logging.getLogger("convlstm_wx").setLevel(logging.ERROR)
    for file in (options.json, options.report):
        if file not in (None, "-"):
            if Path(file).is_dir():
                raise ConfigError(f"{file}: is a folder; name a file in it")
            check_can_make(Path(file).parent)
    policy = choose_device(options.device)
    device = str(policy.device)
    chance = secrets.randbelow(2**31) if options.seed is None else options.seed
    machine = look()
    chosen = {"device": "; ".join(policy.reasons), "in training": "; ".join(policy.training_choices())}
    machine = replace(machine, facts=chosen | machine.facts)
    for name, value in machine.facts.items():
        for index, line in enumerate(wrap([value], _WIDTH + 1)):
            log.info("%-*s %s", _WIDTH, "" if index else name, line)
    with tqdm(total=stages(device), desc="trying", unit="step", disable=None, leave=False) as bar:
        found = check_up(machine, device, chance, tick=bar.update)
    for line in told(found):
        log.info(line)
    _write(found, options)
    return ILL if found.problems else DONE


def told(found: "Checkup") -> Iterator[str]:
    """What came of the trial, line by line."""
    yield f"{'seed':<{_WIDTH}} {found.seed}"
    for outcome in found.outcomes:
        yield f"{outcome.contender.name:<{_WIDTH}} {'; '.join(_outcome(outcome))}"
    for name, lines in (("cannot tell", found.unknown), ("advice", found.advice)):
        yield from (f"{name:<{_WIDTH}} {line}" for line in lines)
    yield f"{'verdict':<{_WIDTH}} {found.verdict}"


def _outcome(outcome: "Outcome") -> Iterator[str]:
    from convlstm_wx.files import describe_bytes

    if outcome.failure:
        yield outcome.failure
    if outcome.difference is not None:
        shares = (f"{name} {getattr(outcome.difference, name):.0e}" for name in ("outputs", "gradients", "weights"))
        yield f"differs in {', '.join(shares)}"
    if outcome.windows_per_s is not None:
        yield f"{outcome.windows_per_s:.1f} windows/s"
    if outcome.memory_bytes is not None:
        yield f"{describe_bytes(outcome.memory_bytes)} for a step"


def _write(found: "Checkup", options: argparse.Namespace) -> None:
    from convlstm_wx.files import make_folder, write_text
    from convlstm_wx.report.health import write_health_page

    for file in (options.json, options.report):
        if file not in (None, "-"):
            make_folder(Path(file).parent)
    if options.json:
        text = json.dumps(found.to_dict(), indent=2, allow_nan=False) + "\n"
        print(text, end="") if options.json == "-" else write_text(Path(options.json), text)
    if options.report:
        log.info("written    %s", write_health_page(Path(options.report), found.to_dict()))
