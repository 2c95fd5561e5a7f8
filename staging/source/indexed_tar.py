"""A tar in an archive that can be read anywhere, as an indexed source: any part of any member in any order.

The index is read through a small window that moves over the headers. Where a member is larger than the
window the next window begins at the next header, so weights stay unread but for the few that share a
window with a header; where members are small the window grows and one read brings many headers.

Invariants: one window is held, two while it moves; windows never overlap, so the index costs no more bytes
than the archive has; a window is longer than `MOST_WINDOW` only for an extension header that is.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from staging.formats.tar import read_index
from staging.layout.root import Root, find_root
from staging.source.archive import Archive
from staging.source.source import SourceFile

LEAST_WINDOW: Final = 64 * 1024
"""Bytes read at once where headers lie far apart."""

MOST_WINDOW: Final = 1024 * 1024
"""Bytes read at once where headers lie close together."""


class HeaderWindow:
    """Ranges of an archive as `ReadAt`, for one reader that only goes forward, mostly in small steps."""

    def __init__(self, archive: Archive, *, least: int = LEAST_WINDOW) -> None:
        self.size = archive.size
        self._archive = archive
        self._least = least
        self._length = least
        self._start = 0
        self._window = memoryview(b"")

    def read_at(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes from `offset`, which lie inside the archive."""
        end = self._start + len(self._window)
        if not (self._start <= offset and offset + length <= end):
            self._move(offset, length, end)
        begin = offset - self._start
        return bytes(self._window[begin : begin + length])

    def _move(self, offset: int, length: int, end: int) -> None:
        if end:
            near = offset - end <= self._least
            self._length = min(2 * self._length, MOST_WINDOW) if near else self._least
        # What the old window has of the range is not read twice.
        kept = bytes(self._window[offset - self._start :]) if self._start <= offset < end else b""
        wanted = min(max(self._length, length), self.size - offset)
        window = bytearray(wanted)
        window[: len(kept)] = kept
        if len(kept) < wanted:
            self._archive.read_into(offset + len(kept), memoryview(window)[len(kept) :])
        self._start, self._window = offset, memoryview(window)


class IndexedTar:
    """The members of a tar in an `Archive`, which it owns from here on."""

    sequential = False
    memory = 0

    def __init__(
        self,
        archive: Archive,
        *,
        strip_components: int | None = None,
        target: str = "",
        headers: HeaderWindow | None = None,
    ) -> None:
        """Read the index; `target` is only named in hints, `headers` is a window that was used already.

        Raises MalformedInput when the archive is damaged or unsafe, LayoutInvalid when its files cannot
        be placed at a checkpoint's root, and what reading raises; the archive is closed then.
        """
        self._archive = archive
        try:
            members = read_index(headers or HeaderWindow(archive))
            self.root: Root = find_root(
                [member.name for member in members],
                strip_components=strip_components,
                source=archive.argument,
                target=target,
            )
            self._files = [
                SourceFile(
                    self.root.strip(member.name), member.size, member.data_offset, member.stamp
                )
                for member in members
            ]
        except BaseException:
            archive.close()
            raise
        self.kind = archive.kind
        self.name = archive.name
        self.size = archive.size
        self.identity = archive.identity
        self.read_size = archive.read_size

    def files(self) -> Iterator[SourceFile]:
        """All files, in the order of the archive."""
        return iter(self._files)

    def read_into(self, file: SourceFile, offset: int, view: memoryview) -> None:
        """Fill `view` with bytes of a file."""
        self._archive.read_into(file.offset + offset, view)

    def finish(self) -> None:
        """Raise MalformedInput when the archive changed meanwhile."""
        self._archive.finish()

    def close(self) -> None:
        """Close the archive."""
        self._archive.close()
