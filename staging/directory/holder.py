"""Who holds a lock and how far it came: one line in the lock file, for those who wait.

Invariants: what it says is never relied on; a line that cannot be written or read is no error and counts as
none. It is not made durable and is written at most every `INTERVAL` seconds, and only while the work moves.
Not guaranteed: that the line is of the present holder. One that was killed leaves its last line.
"""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from staging.vocabulary import strict_json
from staging.vocabulary.events import Event, Moved, Reporter, Started

SIZE: Final = 512
"""Bytes of the line, filled up with spaces: it is overwritten in place by one call."""

INTERVAL: Final = 2.0

_LONGEST_NAME: Final = 200
_FIELDS: Final = {"name": str, "run": str, "beat": int, "done": int}


@dataclass(frozen=True, slots=True)
class Holder:
    """A run that holds a lock. Sizes in bytes, of the phase it is in; `total` is None when unknown.

    `run` tells runs apart; `beat` rises with every line that a run writes.
    """

    name: str
    run: str
    beat: int = 0
    done: int = 0
    total: int | None = None

    def encode(self) -> bytes:
        """The line, `SIZE` bytes long."""
        fields = {field: getattr(self, field) for field in (*_FIELDS, "total")}
        line = json.dumps({**fields, "name": self.name.encode("ascii", "replace").decode()})
        return line.encode("ascii").ljust(SIZE - 1) + b"\n"

    @classmethod
    def decode(cls, data: bytes) -> Holder | None:
        """Read a line; None for anything that is not one."""
        try:
            found = strict_json.loads(data, limit=SIZE)
        except ValueError:
            return None
        if not isinstance(found, dict) or set(found) != {*_FIELDS, "total"}:
            return None
        total = found["total"]
        if any(type(found[field]) is not kind for field, kind in _FIELDS.items()) or not (
            total is None or type(total) is int
        ):
            return None
        return cls(**found)


class Beacon:
    """A reporter that hands events on, and tells others from time to time how far its own run came.

    `say` puts a line where they look.
    """

    def __init__(
        self,
        say: Callable[[bytes], None],
        name: str,
        report: Reporter,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.run = secrets.token_hex(8)
        self._say = say
        self._name = name[:_LONGEST_NAME]
        self._report = report
        self._clock = clock
        self._lock = threading.Lock()
        self._saying = threading.Lock()  # so that no line comes after the end
        self._ended = False
        self._last = clock()
        self._beat = self._done = 0
        self._total: int | None = None

    def __call__(self, event: Event) -> None:
        """Count an event and hand it on."""
        self._report(event)
        if not isinstance(event, (Started, Moved)):
            return
        with self._lock:
            if isinstance(event, Started):
                self._done, self._total = 0, event.total_bytes
            else:
                self._done += event.count
            due = self._clock() - self._last >= INTERVAL
        if due:
            self.tell()

    def tell(self) -> None:
        """Put a line there now; nothing after the end."""
        with self._saying:
            if self._ended:
                return
            with self._lock:
                self._beat += 1
                self._last = self._clock()
                holder = Holder(self._name, self.run, self._beat, self._done, self._total)
            self._say(holder.encode())

    def end(self) -> None:
        """Take the line away: this run has ended. A thread it left behind says nothing any more."""
        with self._saying:
            self._ended = True
            self._say(b" " * (SIZE - 1) + b"\n")
