"""Whether a disk can hold what is still missing: by what files occupy, no byte is read.

The blocks of a partial file are reserved before most of them are written, so those that an interrupted run
left count as there, whatever they hold. A file that is replaced keeps its blocks until the new one is in
place: for a while both are there.

Not guaranteed: that what is free stays free, or that quotas and a volume's `sizeLimit`, of which the
filesystem says nothing, allow as much.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

from staging.sync.plan import Fetch
from staging.vocabulary.errors import NoSpace

_BLOCK: Final = 4096

RESERVE: Final = 8 * 1024 * 1024
"""Bytes beyond the files' own: documents, directories, and the filesystem's own lists of blocks."""


def to_allocate(fetches: Iterable[Fetch]) -> int:
    """Bytes of disk that these files still need, in whole blocks; 0 when all of them have their blocks."""
    return sum(
        max(0, -(-action.file.size // _BLOCK) * _BLOCK - action.allocated) for action in fetches
    )


def check_space(needed: int, free: int | None, where: Path) -> None:
    """Raise NoSpace unless `needed` bytes and the reserve fit; `free` is None where nobody can tell."""
    if free is None or not needed or needed + RESERVE <= free:
        return
    unit, name = (10**9, "GB") if needed + RESERVE >= 10**9 else (10**6, "MB")
    step = unit // 100
    # Rounded so that they add up and nobody makes too little room.
    wanted, there = -(-(needed + RESERVE) // step), free // step
    raise NoSpace(
        f"{str(where)!r} needs {wanted / 100:.2f} {name} more, {there / 100:.2f} {name} are free:"
        f" {(wanted - there) / 100:.2f} {name} too few",
        reference="no-space",
        hint="give a larger volume or free space on this one, then run again; in a pod raise the request"
        " for ephemeral-storage, or the size of the volume",
        side="local",
    )
