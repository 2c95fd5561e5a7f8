"""How long one of our runs holds the interpreter's lock: what bounds one process on a fast network.

py-spy looks at the process, in a run of its own that is not timed, and counts the looks at which some
thread held the lock; looks over their rate are the seconds it was held. It does not stop the process for a
look: that would add to the time it is holding. Of a program that keeps the count itself this finds what it
counted, within a tenth. The run has one transfer at a time: with several on few cores a thread that holds the
lock waits for a core that another one is hashing on, and that would count as holding.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.process import CommandFailed, measure

_RATE: Final = 200  # looks a second
_PATIENCE: Final = 300.0  # seconds
_PINNED: Final = (
    "import os, runpy, sys; os.sched_setaffinity(0, {cpus});"
    " sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
)


class CannotLook(Exception):
    """py-spy is not there, may not look, or saw nothing."""


@dataclass(frozen=True, slots=True)
class Held:
    """Seconds the lock was held in a run of `wall` seconds."""

    held: float
    wall: float


def held(
    command: Sequence[str],
    *,
    environment: Mapping[str, str],
    directory: Path,
    cpus: Sequence[int],
) -> Held:
    """Run a Python program of ours under py-spy. Raises CannotLook."""
    spy = shutil.which("py-spy", path=str(Path(sys.executable).parent)) or shutil.which("py-spy")
    if spy is None:
        raise CannotLook("py-spy is not installed")
    output = directory / "looks"
    start = [
        spy,
        "record",
        "--gil",
        "--nonblocking",
        "--rate",
        str(_RATE),
        "--format",
        "raw",
        "--output",
        str(output),
    ]
    # Its own core is not ours: py-spy may run anywhere.
    run = [sys.executable, "-c", _PINNED.format(cpus=set(cpus))] if cpus else [sys.executable]
    run += [*command, "--concurrency", "1"]
    try:
        usage = measure(
            [*start, "--", *run],
            environment=environment,
            directory=directory,
            timeout=_PATIENCE,
        )
    except CommandFailed as error:
        raise CannotLook(str(error).strip().splitlines()[-1]) from error
    looks = count(output.read_text())
    output.unlink()
    return Held(looks / _RATE, usage.wall)


def count(raw: str) -> int:
    """The looks in py-spy's raw format: one stack and its number a line."""
    return sum(int(match[1]) for match in re.finditer(r" (\d+)$", raw, re.MULTILINE))
