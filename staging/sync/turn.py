"""Several processes and one directory: one works, the others wait for their turn and look at what it left.

    with turn(local.locked, options, report) as mine:
        result = mine.persist(attempt, finished)

Where locks work, that is all. Where they keep nobody out, two work at once, on the same bytes at the same
offsets: whoever finds something moved, removed or finished by another stands back while that one moves, and
looks again.

Invariants: waits are short sleeps on the calling thread, which signals end; a wait has no limit of its own;
looking again without a sign of another process happens a bounded number of times.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Final, Protocol, TypeVar

from staging.directory.failure import met_another
from staging.directory.holder import INTERVAL, Beacon, Holder
from staging.directory.lock import Lock, Pause
from staging.sync.options import SyncOptions
from staging.vocabulary.errors import StagingError
from staging.vocabulary.events import Note, Reporter, Waiting

_POLL: Final = 0.2
_TELL: Final = 2.0
_STUCK: Final = 60.0
_QUIET: Final = 1.25 * INTERVAL
"""Seconds without a new line after which another run counts as gone; up to twice as many, by chance."""

_LOOKS: Final = 5
_MOST_LOOKS: Final = 100

T = TypeVar("T")


class Holding(Protocol):
    """Something that can be locked: `LocalDirectory.locked`."""

    def __call__(self, *, wait: Pause | None, report: Reporter) -> AbstractContextManager[Lock]:
        """Hold the lock, calling `wait` while another process has it."""
        ...


class Watch:
    """Looks on while another process works, one poll at a time, and tells how far that one is."""

    def __init__(self, report: Reporter) -> None:
        self.waited = False
        self._report = report
        self._began = self._moved = time.monotonic()
        self._told: float | None = None
        self._said_stuck = False
        self._seen: Holder | None = None

    def __call__(self, holder: Holder | None) -> None:
        """Tell about the holder and let a little time pass."""
        now = time.monotonic()
        if not self.waited:
            self.waited, self._began, self._moved = True, now, now
        if holder != self._seen:
            self._seen, self._moved, self._said_stuck = holder, now, False
        name = holder.name if holder is not None and holder.name else "another process"
        if self._told is None or now - self._told >= _TELL:
            self._told = now
            done, total = (0, None) if holder is None else (holder.done, holder.total)
            self._report(Waiting(name, done, total, now - self._began))
        if now - self._moved >= _STUCK and not self._said_stuck:
            self._said_stuck = True
            text = f"{name} has the lock and has told of no progress for {now - self._moved:.0f} s"
            self._report(Note(text, warning=True))
        time.sleep(_POLL)


class Turn:
    """A lock that is held. `report` hands events on and lets those who wait see how far this run is."""

    def __init__(self, lock: Lock, beacon: Beacon, watch: Watch, rng: random.Random) -> None:
        self.report: Reporter = beacon
        self._lock = lock
        self._beacon = beacon
        self._watch = watch
        self._rng = rng

    @property
    def waited(self) -> bool:
        """True when another process was at work while this one waited."""
        return self._watch.waited

    def persist(self, attempt: Callable[[], T], finished: Callable[[], bool]) -> T:
        """Make attempts until one ends with anything else than another process in its way.

        `finished` says whether that one has completed the work meanwhile. Raises what the last
        attempt raises.
        """
        looks = 0
        for _ in range(_MOST_LOOKS):
            try:
                return attempt()
            except StagingError as error:
                if not met_another(error) or looks == _LOOKS:
                    raise
                self.report(Note(f"{error.message}; looking again"))
                if not self._stand_back(finished):
                    looks += 1
                self._beacon.tell()
        return attempt()

    def _stand_back(self, finished: Callable[[], bool]) -> bool:
        """Wait while another run shows signs of life; True when there was any."""
        seen: Holder | None = None
        patience = _QUIET * (1 + self._rng.random())  # or both would wait for each other, for ever
        since = time.monotonic()
        while time.monotonic() - since < patience:
            if finished():
                return True
            holder = self._lock.holder()
            if holder is None or holder.run == self._beacon.run:
                time.sleep(_POLL)
                continue
            if holder != seen:
                seen, since = holder, time.monotonic()
            self._watch(holder)
        return seen is not None


@contextmanager
def turn(
    holding: Holding, options: SyncOptions, report: Reporter, rng: random.Random
) -> Iterator[Turn]:
    """Hold a lock when its turn has come. Raises Conflict (`locked`) when that is not to be waited for."""
    watch = Watch(report)
    with holding(wait=watch if options.wait else None, report=report) as lock:
        beacon = Beacon(lock.say, options.holder, report)
        beacon.tell()
        try:
            yield Turn(lock, beacon, watch, rng)
        finally:
            beacon.end()
