"""When the requests of a wire may go: how many at once, after a busy answer, how many bytes a second.

One `Pace` is shared by all threads, and by all wires that talk to the same store:

- Requests in flight follow the store: each good answer lets a little more in, a busy one (503, 429,
  SlowDown) halves their number, once per hold-off, never below one.
- After a busy answer nobody sends until the hold-off is over: a random time, longer after each one in a row,
  and never shorter than what the store asks for.
- Bytes of bodies, sent and received, are paid for out of one allowance.
- Bodies that crawl are dropped; see `staging.wire.floor`.

Invariants: every wait ends at once when `stop` is called, with Stopped. Clock, waiting and randomness are
passed in. Whether a request is made again is not decided here.
Not guaranteed: fairness between threads. A thread that keeps an answer's body open and waits for another
request of its own may wait for itself.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from staging.wire.floor import Direction, Floor, Meter, Rates
from staging.wire.wire import Stopped

_HOLD_BASE: Final = (
    0.2  # most seconds of the first hold-off; the bound doubles with each one in a row
)
_HOLD_CAP: Final = 20.0  # seconds
_RETRY_AFTER_CAP: Final = 120.0  # seconds; a store that asks for more is asked again before
_BURST: Final = 0.1  # seconds' worth of bytes that may go at once after silence
_BLOCKS: Final = (4 * 1024, 256 * 1024)  # least and most bytes that are paid for at once


@dataclass(frozen=True, slots=True)
class Counts:
    """What happened so far: requests sent, how many of them again, busy answers, slow streams dropped."""

    requests: int
    retries: int
    busy: int
    dropped: int


class Pace:
    """Lets requests go. Safe to use from several threads."""

    def __init__(
        self,
        *,
        ceiling: int,
        start: int | None = None,
        bandwidth: int | None = None,
        floor: Floor | None = None,
        clock: Callable[[], float] = time.monotonic,
        wait: Callable[[threading.Condition, float | None], object] = threading.Condition.wait,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        """Begin with `start` requests in flight and never have more than `ceiling`.

        `bandwidth` is in bytes per second, both directions together; None is no limit. `wait` waits
        for a condition it holds, at most that many seconds.
        """
        if ceiling < 1 or (start is not None and start < 1):
            raise ValueError("at least one request has to be allowed")
        if bandwidth is not None and bandwidth < 1:
            raise ValueError("no bytes per second is no bandwidth")
        self.clock = clock
        self._wait = wait
        self._uniform = uniform
        lock = threading.RLock()  # a signal may call the work off while this thread has it
        self._changed = threading.Condition(lock)
        # Of its own, so that a place that is free wakes one of those who wait for it, and nobody else.
        self._room = threading.Condition(lock)
        self._stopped = False
        self._ceiling = ceiling
        self._limit = float(min(start or ceiling, ceiling))
        self._in_flight = 0
        self._hold_until = float("-inf")
        self._in_a_row = 0
        self._bandwidth = bandwidth
        self._paid_until = float("-inf")
        self._rates = Rates(floor or Floor())
        self._requests = self._retries = self._busy = 0

    @property
    def counts(self) -> Counts:
        """What happened so far."""
        with self._changed:
            return Counts(self._requests, self._retries, self._busy, self._rates.dropped)

    @property
    def limit(self) -> int:
        """Requests that may be in flight now."""
        return int(self._limit)

    @property
    def block(self) -> int | None:
        """Bytes to move between two payments, or None when bytes cost nothing."""
        if self._bandwidth is None:
            return None
        least, most = _BLOCKS
        return min(max(self._bandwidth // 16, least), most)

    def enter(self, *, again: bool = False) -> Slot:
        """Wait until one more request may go. The slot is held until its answer was read. Raises Stopped."""
        with self._changed:
            while True:
                self._check()
                now = self.clock()
                if now < self._hold_until:
                    self._wait(self._room, self._hold_until - now)
                elif self._in_flight >= int(self._limit):
                    self._wait(self._room, None)
                else:
                    break
            self._in_flight += 1
            self._requests += 1
            self._retries += again
            return Slot(self, now)

    def resent(self) -> None:
        """Count a request that had to be sent again at once, over another connection."""
        with self._changed:
            self._requests += 1
            self._retries += 1

    def sleep(self, seconds: float) -> None:
        """Sleep. Raises Stopped."""
        with self._changed:
            end = self.clock() + seconds
            while True:
                self._check()
                left = end - self.clock()
                if left <= 0:
                    return
                self._wait(self._changed, left)

    def spend(self, count: int) -> None:
        """Pay for bytes that go or came, and wait as long as they cost. Raises Stopped."""
        if self._bandwidth is None:
            return
        with self._changed:
            now = self.clock()
            self._paid_until = max(self._paid_until, now - _BURST) + count / self._bandwidth
            due = self._paid_until - now
        self.sleep(due)

    def check(self) -> None:
        """Raise Stopped when the work was called off."""
        if self._stopped:
            raise Stopped

    def meter(self, direction: Direction, tag: str, size: int) -> Meter:
        """Measure a body of `size` bytes; see `staging.wire.floor.Rates.meter`."""
        return self._rates.meter(direction, tag, size)

    def slowest(self) -> float | None:
        """Bytes per second of the slowest body that is on its way; see `staging.wire.floor.Rates.slowest`."""
        return self._rates.slowest()

    def stalled(self, tag: str) -> None:
        """Count a body that was given up because nothing of it came any more, or next to nothing."""
        self._rates.stalled(tag)

    def is_hopeless(self, tag: str) -> bool:
        """Whether these bytes were given up so often that asking for them again is no use."""
        return self._rates.is_hopeless(tag)

    def stop(self) -> None:
        """Call the work off: who waits, and who would, gets Stopped, until `resume`."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
            self._room.notify_all()

    def resume(self) -> None:
        """Let requests go again, such as those that clean up after work that was called off.

        They go at once: whoever was told to end has no time for a hold-off that was meant for the work.
        """
        with self._changed:
            self._stopped = False
            self._hold_until = float("-inf")
            self._in_a_row = 0

    def _check(self) -> None:
        if self._stopped:
            raise Stopped

    def _left(self) -> None:
        with self._changed:
            self._in_flight -= 1
            self._room.notify()

    def _answered(self, entered: float) -> None:
        with self._changed:
            # What was sent before the trouble began says nothing about now.
            if entered >= self._hold_until:
                self._in_a_row = 0
                if self._limit < self._ceiling:
                    self._limit = min(self._limit + 1 / self._limit, self._ceiling)
                    self._room.notify()

    def _refused(self, entered: float, retry_after: float) -> None:
        with self._changed:
            self._busy += 1
            seconds = min(max(retry_after, 0.0), _RETRY_AFTER_CAP)
            if entered >= self._hold_until:
                self._limit = max(self._limit / 2, 1.0)
                bound = min(_HOLD_BASE * 2.0 ** min(self._in_a_row, 16), _HOLD_CAP)
                self._in_a_row += 1
                seconds = max(seconds, self._uniform(0, bound))
            self._hold_until = max(self._hold_until, self.clock() + seconds)


class Slot:
    """A request's place among those in flight."""

    __slots__ = ("_entered", "_pace")

    def __init__(self, pace: Pace, entered: float) -> None:
        self._pace: Pace | None = pace
        self._entered = entered

    def good(self) -> None:
        """The store answered, and was not busy."""
        if self._pace is not None:
            self._pace._answered(self._entered)

    def busy(self, retry_after: float = 0.0) -> None:
        """The store was busy, and asked for `retry_after` seconds of quiet."""
        if self._pace is not None:
            self._pace._refused(self._entered, retry_after)

    def leave(self) -> None:
        """Make room. Once is enough; more often does no harm."""
        pace, self._pace = self._pace, None
        if pace is not None:
            pace._left()
