"""How much memory this container or machine may use, and the default budget: a quarter of it.

Reads the limits of this process's cgroup and of those above it, v2 and v1, and the machine's memory, below a
root that tests replace.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Final

from staging.transfer.sizing import MIB

_LEAST: Final = 192 * MIB
_MOST: Final = 4096 * MIB
_V2: Final = ("sys/fs/cgroup", "memory.max")
_V1: Final = ("sys/fs/cgroup/memory", "memory.limit_in_bytes")


def default_budget(root: Path = Path("/")) -> int:
    """A quarter of the least known limit, between 192 MiB and 4 GiB, in bytes."""
    limit = memory_limit(root)
    return _LEAST if limit is None else min(_MOST, max(_LEAST, limit // 4))


def memory_limit(root: Path = Path("/")) -> int | None:
    """The least known limit in bytes: of a cgroup, or the machine's memory. None when there is none."""
    limits = [limit for path in _limit_files(root) if (limit := _number(path)) is not None]
    total = _total_memory(root / "proc/meminfo")
    if total is not None:
        limits.append(total)
    return min(limits, default=None)


def _limit_files(root: Path) -> Iterator[Path]:
    """Where limits may stand. In a container its own group is mostly mounted as the topmost one."""
    for mount, name in (_V2, _V1):
        yield root / mount / name
    for line in (_text(root / "proc/self/cgroup") or "").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if not controllers:
            mount, name = _V2
        elif "memory" in controllers.split(","):
            mount, name = _V1
        else:
            continue
        own = PurePosixPath(group.lstrip("/"))
        if ".." in own.parts:  # seen from inside a namespace that begins further down
            continue
        for above in (own, *own.parents):
            yield root / mount / above / name


def _number(path: Path) -> int | None:
    text = (_text(path) or "").strip()
    return int(text) if text.isdecimal() else None  # "max": no limit


def _total_memory(path: Path) -> int | None:
    for line in (_text(path) or "").splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    return None


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii")
    except OSError:  # this kind of limit is not known here
        return None
