"""An archive as one stream from its first byte to its last, read ahead by several ranges at once.

For what must be seen in order: a compressed archive, or one whose SHA-256 is expected. One connection is
often slower than the wire; here a few ranges are in flight, and delivered in order.

Invariants: at most `memory` bytes are held, in blocks that are reused; the stream ends after exactly the
archive's size. The stream belongs to one reader; it owns the archive and closes it.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections import deque
from typing import Final

from staging.source.archive import Archive
from staging.transfer.scheduler import Cancelled, Scheduler
from staging.transfer.sizing import MIB

DEFAULT_MEMORY: Final = 64 * MIB

_BLOCK: Final = 8 * MIB
_LEAST_BLOCK: Final = 256 * 1024
_IN_FLIGHT: Final = 8
_POLL: Final = 0.2  # seconds between looks at whether reading failed


class ReadAhead:
    """The bytes of an archive in order, as a stream with `readinto`."""

    def __init__(
        self,
        archive: Archive,
        *,
        memory: int = DEFAULT_MEMORY,
        concurrency: int = _IN_FLIGHT,
    ) -> None:
        """Read nothing yet; `memory` bounds the blocks, `concurrency` the requests at once."""
        self._archive = archive
        self._length = max(_LEAST_BLOCK, min(_BLOCK, memory // max(concurrency, 1)))
        self._count = max(1, min(concurrency, memory // self._length))
        self._asked = 0  # offset of the next block to ask for
        self._at = 0
        self._blocks: deque[_Block] = deque()
        self._changed = threading.Condition()
        self._stack = contextlib.ExitStack()
        self._scheduler: Scheduler | None = None

    def readinto(self, view: memoryview, /) -> int:
        """Read some bytes into `view`; 0 at the end. Raises what reading the archive raises."""
        if not view or self._at == self._archive.size:
            return 0
        if self._scheduler is None:
            self._start()
        block = self._wait()
        count = min(len(view), block.length - block.taken)
        view[:count] = memoryview(block.buffer)[block.taken : block.taken + count]
        block.taken += count
        self._at += count
        if block.taken == block.length:
            self._blocks.popleft()
            self._ask(block)
        return count

    def finish(self) -> None:
        """Raise MalformedInput when the archive changed meanwhile."""
        self._archive.finish()

    def close(self) -> None:
        """Stop reading and close the archive."""
        self._archive.close()  # first, so that reads that are under way end
        self._stack.__exit__(Cancelled, Cancelled(), None)

    def _start(self) -> None:
        self._scheduler = self._stack.enter_context(Scheduler(self._count, name="read-ahead"))
        for _ in range(self._count):
            if self._asked < self._archive.size:
                self._ask(_Block(min(self._length, self._archive.size)))

    def _ask(self, block: _Block) -> None:
        """Have the next range of the archive read into a block that is free."""
        block.length = min(self._length, self._archive.size - self._asked)
        if not block.length or self._scheduler is None:
            return
        block.ready, block.taken = False, 0
        self._blocks.append(block)
        self._scheduler.submit(functools.partial(self._read, block, self._asked))
        self._asked += block.length

    def _read(self, block: _Block, offset: int) -> None:
        self._archive.read_into(offset, memoryview(block.buffer)[: block.length])
        with self._changed:
            block.ready = True
            self._changed.notify_all()

    def _wait(self) -> _Block:
        """The block that comes next, once it is here."""
        block = self._blocks[0]
        with self._changed:
            while not block.ready:
                if self._scheduler is not None:
                    self._scheduler.raise_error()
                self._changed.wait(_POLL)
        return block


class _Block:
    """A buffer, and how far it is filled and used."""

    def __init__(self, size: int) -> None:
        self.buffer = bytearray(size)
        self.length = size
        self.taken = 0
        self.ready = False
