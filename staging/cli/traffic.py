"""The requests of a run, over however many wires they go: what they came to, and how they are called off."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from staging.wire.pace import Pace


@dataclass(frozen=True, slots=True)
class Sums:
    """Requests that were sent, how many of them again, and the slowest body under way in bytes per second."""

    requests: int
    retries: int
    slowest: float | None


class Traffic:
    """All paces of a run. Safe to use from several threads."""

    def __init__(self) -> None:
        self._paces: list[Pace] = []
        self._regions: list[Callable[[], str | None]] = []
        self._stopped = False
        self._lock = threading.Lock()

    def watch(self, pace: Pace, region: Callable[[], str | None] = lambda: None) -> None:
        """Count what goes at this pace, too; it is stopped at once when all others have been.

        `region` tells where its requests go.
        """
        with self._lock:
            self._paces.append(pace)
            self._regions.append(region)
            stopped = self._stopped
        if stopped:
            pace.stop()

    @property
    def region(self) -> str | None:
        """Where the requests of the wire that came last go, as far as that is known."""
        with self._lock:
            return self._regions[-1]() if self._regions else None

    def sums(self) -> Sums:
        """What the requests came to so far."""
        with self._lock:
            paces = list(self._paces)
        counts = [pace.counts for pace in paces]
        rates = [rate for pace in paces if (rate := pace.slowest()) is not None]
        return Sums(
            requests=sum(each.requests for each in counts),
            retries=sum(each.retries for each in counts),
            slowest=min(rates, default=None),
        )

    def stop(self) -> None:
        """Call all work off, for good: every wait ends, and no request goes any more."""
        with self._lock:
            self._stopped = True
            paces = list(self._paces)
        for pace in paces:
            pace.stop()
