"""The contract of a source: files in order, and their bytes.

A source is either indexed, when all files are known up front and any range of any file can be read
from several threads, or sequential, when each file must be read once, in order, before the next is
known. The engine asks `sequential` and otherwise treats both alike.

Failures are `MalformedInput` (damaged, unsafe or changed input), `LayoutInvalid` (files that cannot be
placed at a checkpoint's root) and `StagingError` for the machine's own trouble, with `side="source"`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Protocol

from staging.vocabulary.paths import SafePath

LOCAL_READ_SIZE: Final = 256 * 1024
"""`Source.read_size` of local disks: measured, larger and smaller pieces cost more CPU time."""


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file the source holds: its path below the version prefix and its size in bytes.

    `offset` is where its data begins in the source, in bytes, for the source's own use. `stamp` is a
    short text that is another one when the file's bytes are likely others (of a tar, the digest of the
    member's header, which holds its time): it tells whether an interrupted upload is worth a look, and
    proves nothing.
    """

    path: SafePath
    size: int
    offset: int
    stamp: str = ""


class Source(Protocol):
    """Files and their bytes. See the module's docstring."""

    @property
    def kind(self) -> str:
        """The kind as manifests record it: `tar`, `pipe`."""
        ...

    @property
    def name(self) -> str:
        """A base name for people, without directories or queries."""
        ...

    @property
    def size(self) -> int | None:
        """Bytes of the whole source, or None when it does not tell before its end."""
        ...

    @property
    def identity(self) -> str | None:
        """A text that is equal only if every byte of the source is, such as an object's strong ETag.

        None where nothing vouches for the bytes: a local file may be anything the next time.
        """
        ...

    @property
    def read_size(self) -> int | None:
        """Bytes that are best read at once, of an indexed source; None: the more the better.

        What is far away takes a request for each read; a local disk is best read in pieces that are
        still in the processor's cache when they are hashed.
        """
        ...

    @property
    def memory(self) -> int:
        """Bytes it holds at most, besides the views it fills."""
        ...

    @property
    def sequential(self) -> bool:
        """True when files come one after another and each must be read to its end."""
        ...

    def files(self) -> Iterator[SourceFile]:
        """All files. Ends without an error only when the whole source is accounted for (I2)."""
        ...

    def read_into(self, file: SourceFile, offset: int, view: memoryview) -> None:
        """Fill `view` with bytes of `file` from `offset`; sequentially when the source is sequential.

        Raises MalformedInput when the source ends before.
        """
        ...

    def finish(self) -> None:
        """Check that what was read was one unchanged source. Raises MalformedInput."""
        ...

    def close(self) -> None:
        """Release what the source holds."""
        ...
