"""The default memory budget: a quarter of what this machine or container may use.

Reads the limits of cgroup v2 and v1 and the machine's memory, below a root that tests replace.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from staging.transfer.sizing import MIB

_LEAST: Final = 192 * MIB
_MOST: Final = 4096 * MIB
_LIMIT_FILES: Final = (
    "sys/fs/cgroup/memory.max",
    "sys/fs/cgroup/memory/memory.limit_in_bytes",
)


def default_budget(root: Path = Path("/")) -> int:
    """A quarter of the least known limit, between 192 MiB and 4 GiB, in bytes."""
    limits = [limit for name in _LIMIT_FILES if (limit := _number(root / name)) is not None]
    total = _total_memory(root / "proc/meminfo")
    if total is not None:
        limits.append(total)
    return min(_MOST, max(_LEAST, min(limits) // 4)) if limits else _LEAST


def _number(path: Path) -> int | None:
    try:
        text = path.read_text(encoding="ascii").strip()
    except OSError:  # this kind of limit is not known here
        return None
    return int(text) if text.isdecimal() else None  # "max": no limit


def _total_memory(path: Path) -> int | None:
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    return None
