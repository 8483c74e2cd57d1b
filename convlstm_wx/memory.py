"""How much memory there is: of the machine, or of a container or a job of a queue inside it."""

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

CGROUP, OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


@dataclass(frozen=True)
class MemoryLimit:
    """What a container, or a job of a queue, may take, and what of that is left."""

    bytes: int
    left_bytes: int


def memory_bytes(root: Path = CGROUP, own: Path = OWN) -> int:
    """Memory of the machine, or as much of it as a container gives."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([physical, *(limit.bytes for limit in memory_limits(root, own))])


def memory_limits(root: Path = CGROUP, own: Path = OWN) -> list[MemoryLimit]:
    """Of this process's control group and those around it [Linux kernel, cgroup v2]; files that were read and can be
    forgotten do not count as taken."""
    lines = own.read_text().splitlines() if own.exists() else []
    (place,) = [line[3:].strip("/") for line in lines if line.startswith("0::")] or [""]
    limits = []
    for group in (root / place, *(root / place).parents):
        with suppress(OSError, ValueError, KeyError):  # no such file, "max", or another kernel's words
            limit, used = (int((group / f"memory.{name}").read_text()) for name in ("max", "current"))
            statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            limits.append(MemoryLimit(limit, max(0, limit - used + int(statistics["inactive_file"]))))
    return limits
