"""A fixed number of equal buffers that are used again and again: the memory a transfer holds."""

from __future__ import annotations

import queue
from typing import Final

from staging.transfer.scheduler import Cancellation

_POLL: Final = 0.2  # seconds


class Buffers:
    """`count` buffers of `size` bytes, made when first needed.

    Whoever acquires a buffer may shrink it, and gives it back; it comes out full-sized again.
    """

    def __init__(self, count: int, size: int) -> None:
        self._size = size
        self._free: queue.LifoQueue[bytearray | None] = queue.LifoQueue()
        for _ in range(count):
            self._free.put(None)

    def acquire(self, cancelled: Cancellation) -> bytearray:
        """Take a free buffer, waiting for one. Raises Cancelled when the work is called off."""
        while True:
            cancelled.check()
            try:
                buffer = self._free.get(timeout=_POLL)
            except queue.Empty:
                continue
            if buffer is None:
                return bytearray(self._size)
            if len(buffer) < self._size:
                buffer.extend(bytes(self._size - len(buffer)))
            return buffer

    def release(self, buffer: bytearray) -> None:
        """Give a buffer back."""
        self._free.put(buffer)
