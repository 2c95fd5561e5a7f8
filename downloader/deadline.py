"""The time a run may take: an alarm that ends it the way a signal does."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from staging.cli import quantity
from staging.cli.program import interrupt
from staging.vocabulary.errors import Stalled


@contextmanager
def deadline(seconds: float | None) -> Iterator[None]:
    """Raise `Signalled` with SIGALRM in the main thread when the block takes longer; None is for ever."""
    if seconds is None:
        yield
        return
    signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def passed(seconds: float, progress: str) -> Stalled:
    """The error for a deadline that passed; `progress` says how far the run came."""
    return Stalled(
        f"not done within the deadline of {quantity.duration(seconds)}; {progress}",
        reference="deadline",
        hint="run again: it goes on where it was; give a longer --deadline, or none, where the network"
        " is this slow",
        side="local",
    )
