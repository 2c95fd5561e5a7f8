"""The memory a transfer may hold in buffers: bytes are taken before they are filled, and given back.

Invariants: the buffers taken and those kept for reuse never exceed the budget, except that one buffer
larger than the whole budget is granted when nothing else is held; buffers come out at the size asked for.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Final

from staging.transfer.scheduler import Cancellation

_LEAST_KEPT: Final = 256 * 1024  # bytes; a smaller buffer costs less to make than to find again
_POLL: Final = 0.2  # seconds between looks at the cancellation


class Budget:
    """`total` bytes of buffers, shared by all threads of a transfer."""

    def __init__(self, total: int) -> None:
        self.total = total
        self._taken = 0
        self._kept: list[bytearray] = []
        self._held = 0  # bytes of those
        self._changed = threading.Condition()

    def acquire(self, size: int, cancelled: Cancellation) -> bytearray:
        """Take a buffer of `size` bytes, waiting for room. Its content is arbitrary.

        Raises Cancelled when the work is called off meanwhile.
        """
        with self._changed:
            while True:
                cancelled.check()
                # The one that was given back last is the likeliest to be in the processor's cache.
                for index in range(len(self._kept) - 1, -1, -1):
                    if len(self._kept[index]) == size:
                        self._taken += size
                        self._held -= size
                        return self._kept.pop(index)
                while self._kept and self._taken + self._held + size > self.total:
                    self._held -= len(self._kept.pop(0))
                if not self._taken or self._taken + self._held + size <= self.total:
                    self._taken += size
                    return bytearray(size)
                self._changed.wait(_POLL)

    def release(self, buffer: bytearray) -> None:
        """Give a buffer back, at the size it came."""
        with self._changed:
            self._taken -= len(buffer)
            if len(buffer) >= _LEAST_KEPT:
                self._kept.append(buffer)
                self._held += len(buffer)
            self._changed.notify_all()

    @contextlib.contextmanager
    def lease(self, size: int, cancelled: Cancellation) -> Iterator[bytearray]:
        """A buffer for as long as the block runs, however it ends."""
        buffer = self.acquire(size, cancelled)
        try:
            yield buffer
        finally:
            self.release(buffer)
