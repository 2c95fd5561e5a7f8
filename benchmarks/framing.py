"""Chunked request bodies: HTTP's own framing and the one AWS clients put inside it.

Both are lines `SIZE[;EXTENSION]`, each followed by that many bytes and an empty line, down to a size of 0,
then trailers and an empty line. So one reader serves both; a body in both takes two of them, one feeding
the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

_MAX_LINE: Final = 8192


class MalformedFraming(ValueError):
    """The bytes are no chunked body."""


class Dechunker:
    """Takes a chunked body in pieces of any size, gives its payload in pieces. No copy of the payload.

    `done` turns true at the end of the trailers; `rest` then holds the bytes of the last piece behind it.
    """

    def __init__(self) -> None:
        self.done = False
        self.rest = b""
        self.payload = 0
        self._line = bytearray()
        self._left = 0  # bytes of the current chunk still to come
        self._state = "size"

    def feed(self, piece: memoryview) -> Iterator[memoryview]:
        """The payload in `piece`. The views are good until the caller reuses what `piece` is a view of."""
        at = 0
        while at < len(piece) and not self.done:
            if self._state == "data":
                take = min(self._left, len(piece) - at)
                yield piece[at : at + take]
                at += take
                self._left -= take
                self.payload += take
                if not self._left:
                    self._state = "end"
                continue
            line, at = self._read_line(piece, at)
            if line is not None:
                self._take(line)
        if self.done:
            self.rest = bytes(piece[at:])

    def _read_line(self, piece: memoryview, at: int) -> tuple[bytes | None, int]:
        """A whole line without its end, or None when the piece ended before it did."""
        window = bytes(piece[at : at + _MAX_LINE])
        end = window.find(b"\n")
        self._line += window if end < 0 else window[: end + 1]
        if len(self._line) > _MAX_LINE:
            raise MalformedFraming("a line of a chunked body has no end")
        if end < 0:
            return None, at + len(window)
        line = bytes(self._line).rstrip(b"\r\n")
        self._line.clear()
        return line, at + end + 1

    def _take(self, line: bytes) -> None:
        if self._state == "size":
            try:
                self._left = int(line.partition(b";")[0], 16)
            except ValueError as error:
                raise MalformedFraming(f"not the size of a chunk: {line[:40]!r}") from error
            self._state = "data" if self._left else "trailers"
        elif self._state == "end":
            if line:
                raise MalformedFraming("a chunk is longer than its size")
            self._state = "size"
        elif not line:
            self.done = True
