"""One self-contained HTML page about a machine: it can be mailed, and opens without a network."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convlstm_wx.files import describe_bytes, write_text
from convlstm_wx.report.embedding import render

COMPARED = ("outputs", "gradients", "weights")


def write_health_page(path: Path, found: Mapping[str, Any]) -> Path:
    """Write the page and return its path.

    Args:
        found: as `convlstm-wx doctor --json` gives it.

    Raises:
        ConfigError: if the page cannot be written.
    """
    rows = [_row(outcome) for outcome in found["outcomes"]]
    write_text(path, render("health.html", found=found, rows=rows))
    return path


def _row(outcome: Mapping[str, Any]) -> dict[str, Any]:
    """What the table shows of one way of computing."""
    difference, memory, speed = outcome["difference"], outcome["memory_bytes"], outcome["windows_per_s"]
    return {
        "name": outcome["name"],
        "failure": outcome["failure"],
        "shares": [_share(difference, outcome["tolerance"], name) for name in COMPARED],
        "speed": "-" if speed is None else f"{speed:.1f}",
        "memory": "-" if memory is None else describe_bytes(memory),
    }


def _share(difference: Mapping[str, Any] | None, tolerance: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = None if difference is None else difference[name]
    text = "-" if difference is None else "not finite" if value is None else f"{value:.0e}"
    is_wrong = difference is not None and (value is None or value > tolerance[name])
    return {"text": f"{text} (at most {tolerance[name]:.0e})", "is_wrong": is_wrong}
