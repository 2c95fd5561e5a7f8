"""The progress floor: no stream crawls for longer than stated, and none far behind its peers (I11).

A stream is the body of one request or one answer. Time counts only while a socket was waited for, so that
what our own bandwidth limit holds back, or a slow disk, never looks like a slow network.

Not guaranteed: anything about the time until an answer begins; that has its timeout in the transports.
"""

from __future__ import annotations

import statistics
import threading
import weakref
from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import Final, Literal

Direction = Literal["up", "down"]

_MARK: Final = 1.0  # seconds between two looks at a stream
_REMEMBERED: Final = 4096  # requests of which is known that they were dropped before
_YOUNG: Final = 1.0  # seconds of waiting before a stream's rate means anything


@dataclass(frozen=True, slots=True, kw_only=True)
class Floor:
    """What is too slow.

    Under `rate` bytes per second over `seconds` is, always. Under `share` of what the last streams
    of the same direction did (their median, when there are at least `peers`) over `share_seconds`
    is too, once per request, for streams of more than `share_size` bytes: the same bytes over
    another connection, most likely to another server, are often there sooner. Bytes that were given up
    `patience` times are not asked for again.
    """

    rate: float = 16 * 1024
    seconds: float = 30.0
    share: float = 1 / 8
    share_seconds: float = 10.0
    share_size: int = 1024 * 1024
    peers: int = 8
    patience: int = 4


class TooSlow(Exception):
    """A stream is below the floor."""


class Rates:
    """What the streams of a wire do. Safe to use from several threads."""

    def __init__(self, floor: Floor) -> None:
        self.floor = floor
        self.dropped = 0
        self._lock = threading.Lock()
        self._recent: dict[Direction, deque[float]] = {
            "up": deque(maxlen=32),
            "down": deque(maxlen=32),
        }
        self._known: OrderedDict[str, None] = OrderedDict()
        self._stalls: OrderedDict[str, int] = OrderedDict()
        # A stream that breaks off tells nobody: its meter goes with it.
        self._running: weakref.WeakSet[Meter] = weakref.WeakSet()

    def meter(self, direction: Direction, tag: str, size: int) -> Meter:
        """Measure a stream of `size` bytes. `tag` is the same for each attempt at the same bytes."""
        meter = Meter(self, direction, tag, size)
        with self._lock:
            self._running.add(meter)
        return meter

    def slowest(self) -> float | None:
        """Bytes per second of the slowest stream under way, while it was waited for; None for none.

        Streams that were waited for only a moment are left out.
        """
        with self._lock:
            running = list(self._running)
        return min((rate for meter in running if (rate := meter.rate()) is not None), default=None)

    def stalled(self, tag: str) -> None:
        """Count a stream that was given up."""
        with self._lock:
            self._stalls[tag] = self._stalls.pop(tag, 0) + 1
            if len(self._stalls) > _REMEMBERED:
                self._stalls.popitem(last=False)

    def is_hopeless(self, tag: str) -> bool:
        """Whether these bytes were given up as often as there is patience for."""
        with self._lock:
            return self._stalls.get(tag, 0) >= self.floor.patience

    def finished(self, meter: Meter, direction: Direction, size: int, seconds: float) -> None:
        """Remember a stream that came to its end, if it was large enough to tell anything."""
        with self._lock:
            self._running.discard(meter)
        if size > self.floor.share_size and seconds > 0:
            with self._lock:
                self._recent[direction].append(size / seconds)

    def behind(self, direction: Direction, rate: float) -> float | None:
        """The median rate of the peers of a stream, if `rate` is far below it."""
        with self._lock:
            recent = list(self._recent[direction])
        if len(recent) < self.floor.peers:
            return None
        median = statistics.median(recent)
        return median if rate < median * self.floor.share else None

    def drop(self) -> None:
        """Count a stream that is given up."""
        with self._lock:
            self.dropped += 1

    def first_time(self, tag: str) -> bool:
        """Whether a request was never dropped for its peers' sake; from now on it was."""
        with self._lock:
            if tag in self._known:
                return False
            self._known[tag] = None
            if len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
            return True


class Meter:
    """One stream; used by one thread."""

    def __init__(self, rates: Rates, direction: Direction, tag: str, size: int) -> None:
        self._rates = rates
        self._direction = direction
        self._tag = tag
        self._size = size
        self._seconds = 0.0
        self._bytes = 0
        self._marks: deque[tuple[float, int]] = deque([(0.0, 0)])

    def moved(self, count: int, seconds: float) -> None:
        """`count` bytes went through, and `seconds` were waited for them. Raises TooSlow."""
        self._bytes += count
        self._seconds += seconds
        if self._bytes < self._size and self._seconds - self._marks[-1][0] >= _MARK:
            self._look()

    def done(self) -> None:
        """The stream came to its end."""
        self._rates.finished(self, self._direction, self._bytes, self._seconds)

    def rate(self) -> float | None:
        """Bytes per second since it began, or None while it is too young; any thread may ask."""
        seconds = self._seconds
        return self._bytes / seconds if seconds >= _YOUNG else None

    def _look(self) -> None:
        floor = self._rates.floor
        self._marks.append((self._seconds, self._bytes))
        rate = self._rate_over(floor.seconds)
        if rate is not None and rate < floor.rate:
            self._rates.drop()
            raise TooSlow(f"{rate:.0f} bytes per second over {floor.seconds:.0f} seconds")
        rate = self._rate_over(floor.share_seconds)
        if rate is not None and self._size > floor.share_size:
            median = self._rates.behind(self._direction, rate)
            if median is not None and self._rates.first_time(self._tag):
                self._rates.drop()
                raise TooSlow(f"{rate:.0f} bytes per second while others have {median:.0f}")
        while len(self._marks) > 2 and self._seconds - self._marks[1][0] >= floor.seconds:
            self._marks.popleft()

    def _rate_over(self, seconds: float) -> float | None:
        """Bytes per second over the last `seconds`, or None while the stream is younger."""
        for then, count in reversed(self._marks):
            if self._seconds - then >= seconds:
                return (self._bytes - count) / (self._seconds - then)
        return None
