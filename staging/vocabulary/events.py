"""What the library tells while it works: plain values, handed to one callable.

The library prints nothing; a `Reporter` turns events into a progress bar, log lines or nothing at all.
A reporter is called from worker threads and must be thread-safe, quick and must not raise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Started:
    """A phase began. `total_bytes` is None when the source does not tell its length."""

    phase: str
    total_bytes: int | None
    total_files: int | None


@dataclass(frozen=True, slots=True)
class Moved:
    """`count` more bytes of the running phase are done. Negative when work has to be done again."""

    count: int


@dataclass(frozen=True, slots=True)
class FileDone:
    """One file of the running phase is complete."""

    path: str
    size: int


@dataclass(frozen=True, slots=True)
class Note:
    """One line worth logging. `warning` marks what an operator should look at."""

    text: str
    warning: bool = False


@dataclass(frozen=True, slots=True)
class Waiting:
    """Another process does the work meanwhile: who, how many bytes it verified, and the wait so far.

    `total` is None while that is not known; `seconds` is how long this process has waited. Told again
    and again as long as the wait lasts.
    """

    holder: str
    done: int
    total: int | None
    seconds: float


Event = Started | Moved | FileDone | Note | Waiting
Reporter = Callable[[Event], None]


def silent(event: Event) -> None:
    """A reporter that reports nothing."""
