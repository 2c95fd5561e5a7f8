"""How long one of our runs holds the interpreter's lock: what bounds one process on a fast network.

py-spy looks at the process, in a run of its own that is not timed, and counts the looks at which some
thread held the lock; their share of the looks, times the time, is the seconds it was held. py-spy
stops the process for each look, so the run itself is slower, but what it sees is not. The run has one
transfer at a time: with several on few cores a thread that holds the lock waits for a core that another
one is hashing on, and that would count as holding.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

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
    begin = time.monotonic()
    try:
        done = subprocess.run(  # noqa: S603 - our own program
            [*start, "--", *run],
            env=dict(environment),
            cwd=directory,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_PATIENCE,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise CannotLook(f"py-spy took longer than {_PATIENCE:.0f} s") from error
    wall = time.monotonic() - begin
    if done.returncode or not output.exists():
        raise CannotLook(f"py-spy ended with {done.returncode}: {_last_line(done.stderr)}")
    looks = count(output.read_text())
    output.unlink()
    return Held(looks / _RATE, wall)


def count(raw: str) -> int:
    """The looks in py-spy's raw format: one stack and its number a line."""
    return sum(int(match[1]) for match in re.finditer(r" (\d+)$", raw, re.MULTILINE))


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else "no message"
