"""Streams of bytes as sources read them: from standard input, a file, a response's body, or one another.

A stream has `readinto`, which may come short and says 0 at the end. One that was opened for a source alone
also has `finish`, which says whether all that passed was one unchanged thing, and `close`; a stream that
wraps another passes both on. A stream without `finish`, such as standard input, belongs to the caller and
is left open.
"""

from __future__ import annotations

import select
from typing import BinaryIO, Protocol, cast, runtime_checkable


class Stream(Protocol):
    """Bytes in order."""

    def readinto(self, view: memoryview, /) -> int | None:
        """Put the next bytes into `view` and return how many came; 0 at the end.

        None when the stream does not block and has no bytes yet; it then has a `fileno` to wait for.
        """
        ...


@runtime_checkable
class OwnedStream(Protocol):
    """A stream that belongs to the source that reads it."""

    def readinto(self, view: memoryview, /) -> int | None:
        """As of `Stream`."""
        ...

    def finish(self) -> None:
        """Check that what was read was whole and one unchanged thing. Raises StagingError."""
        ...

    def close(self) -> None:
        """Release what the stream holds."""
        ...


def read_some(stream: Stream | BinaryIO, view: memoryview) -> int:
    """Read at least one byte into `view`, or 0 at the end, waiting for a stream that does not block."""
    source = cast(
        "Stream", stream
    )  # `BinaryIO` does not tell of `readinto`, every binary stream has it
    while (count := source.readinto(view)) is None:
        poll = select.poll()
        poll.register(cast("BinaryIO", stream), select.POLLIN)
        poll.poll()
    return count


def finish(stream: Stream | BinaryIO) -> None:
    """Finish a stream that has it; another one has nothing to say."""
    if isinstance(stream, OwnedStream):
        stream.finish()


def close(stream: Stream | BinaryIO) -> None:
    """Close a stream that is owned; another one belongs to the caller."""
    if isinstance(stream, OwnedStream):
        stream.close()
