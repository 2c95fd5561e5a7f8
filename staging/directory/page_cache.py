"""What becomes of pages that were written: they stay for whoever reads next, or they make room.

    keep   the file's pages stay in memory: a server that maps the weights finds them warm
    drop   written ranges go to the disk at once and leave memory behind the writer
    auto   keep, where the checkpoint fills at most half of what this container or machine has

Either way the disk begins to work with the first part, not when the kernel thinks it is time or with the
fsync at the end (docs/decisions/0012-reading-to-disk.md).

Invariants: with `drop`, pages of unfinished files that may be dirty are at most `window` bytes and one range
per thread; an error of the disk that shows here is treated like that of an fsync (I15).
Not guaranteed: that pages which are kept stay: the kernel takes them when it needs memory, and a cgroup's
limit counts them. Filesystems in memory have nothing to write to and keep everything.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import Final, Literal, Protocol

from staging.transfer.memory import memory_limit
from staging.transfer.sizing import MIB

PageCachePolicy = Literal["keep", "drop"]
PageCacheChoice = Literal["keep", "drop", "auto"]

_LEAST_WINDOW: Final = 64 * MIB
_MOST_WINDOW: Final = 1024 * MIB


class Written(Protocol):
    """A file whose ranges are written: `staging.directory.partial.PartialFile`."""

    def start_write_back(self, offset: int, length: int) -> None:
        """Have a range written to the disk from now on."""
        ...

    def drop(self, offset: int, length: int) -> None:
        """Wait until a range is on its way no more, and forget its pages."""
        ...


def page_cache_policy(choice: PageCacheChoice, size: int, limit: int | None) -> PageCachePolicy:
    """What to do for a checkpoint of `size` bytes where `limit` bytes of memory may be used.

    When nothing is known of the memory, pages are dropped.
    """
    if choice != "auto":
        return choice
    return "keep" if limit is not None and 2 * size <= limit else "drop"


class PageCache:
    """The pages of one download, written by several threads."""

    def __init__(self, policy: PageCachePolicy, window: int) -> None:
        self.policy = policy
        self._window = window
        self._lock = threading.Lock()
        self._ranges: deque[tuple[Written, int, int]] = deque()
        self._held = 0

    @classmethod
    def here(cls, choice: PageCacheChoice, size: int) -> PageCache:
        """The one for a checkpoint of `size` bytes on this machine."""
        limit = memory_limit()
        window = min(max(_LEAST_WINDOW, (limit or 0) // 8), _MOST_WINDOW)
        return cls(page_cache_policy(choice, size, limit), window)

    def written(self, file: Written, offset: int, length: int) -> None:
        """Take note of a range that was written. Raises what a failed fsync raises.

        With `drop` this waits for the oldest ranges when there are too many: the writer goes as fast
        as the disk.
        """
        file.start_write_back(offset, length)
        if self.policy == "keep":
            return
        due: list[tuple[Written, int, int]] = []
        with self._lock:
            self._ranges.append((file, offset, length))
            self._held += length
            while self._held > self._window:
                oldest = self._ranges.popleft()
                self._held -= oldest[2]
                due.append(oldest)
        for old, start, count in due:
            old.drop(start, count)
