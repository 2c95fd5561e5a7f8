"""The contract of an archive: the bytes of one tar, readable anywhere.

An archive knows nothing of tar. It is a local file, an object in S3 or one behind a URL, in one version:
whatever was read from it belongs together, or reading raised (I7). What its members are is the business
of `staging.source.indexed_tar`; reading it from end to end that of `staging.source.read_ahead`.

Failures are those of `staging.source.source`, with `side="source"`.
"""

from __future__ import annotations

from typing import Final, Protocol

from staging.vocabulary.errors import MalformedInput

_HINT_CHANGED: Final = "let whatever writes it finish, then run again"


class Archive(Protocol):
    """Bytes of a known size in one version. Safe to read from several threads."""

    @property
    def kind(self) -> str:
        """The kind as manifests record it: `tar`, `url`, `s3`."""
        ...

    @property
    def name(self) -> str:
        """A base name for people, without directories or queries."""
        ...

    @property
    def shown(self) -> str:
        """Where it is, as messages say it: without query, user or password."""
        ...

    @property
    def argument(self) -> str:
        """What stands for it in commands that are proposed to people."""
        ...

    @property
    def size(self) -> int:
        """Length in bytes."""
        ...

    @property
    def identity(self) -> str | None:
        """A text that is equal only if every byte is; None where nothing vouches for that."""
        ...

    @property
    def read_size(self) -> int | None:
        """Bytes that are best read at once; None: the more the better. See `Source.read_size`."""
        ...

    def read_into(self, offset: int, view: memoryview) -> None:
        """Fill `view` with the bytes from `offset`; the range lies inside the archive.

        Raises MalformedInput (`source-changed`) when the archive is no longer what it was.
        """
        ...

    def finish(self) -> None:
        """Check that what was read was one unchanged archive. Raises MalformedInput."""
        ...

    def close(self) -> None:
        """Release what the archive holds; reads that are under way end with an error."""
        ...


def changed(shown: str, how: str = "changed while it was read") -> MalformedInput:
    """The error of an archive that is not what it was."""
    return MalformedInput(
        f"{shown} {how}", reference="source-changed", hint=_HINT_CHANGED, side="source"
    )
