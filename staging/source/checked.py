"""A stream whose bytes are held against a digest that came with the archive: the vendor's SHA-256.

Everything that passes is hashed, and at the end what nobody asked for as well, so that the digest is that of
the whole archive as it was delivered: compressed if it is, with what lies behind the end of the tar.

Not guaranteed: anything before `finish` has returned. Nothing made from the bytes may be published before.
SHA-256 knows no parallel form: an archive is read at one core's speed, 1 to 2 GB/s where the processor has
instructions for it and about 0.2 GB/s where it has not.
"""

from __future__ import annotations

import hashlib
import re
from typing import BinaryIO, Final

from staging.source import stream as streams
from staging.source.stream import Stream
from staging.vocabulary.errors import IntegrityError, UsageError

_SHA256: Final = re.compile(r"(?:sha256:)?([0-9a-f]{64})")
_BLOCK: Final = 1024 * 1024  # bytes read at once of what nobody asked for


def parse_sha256(text: str) -> str:
    """The 64 hexadecimal digits of a digest, with or without `sha256:` in front. Raises UsageError."""
    match = _SHA256.fullmatch(text.strip().lower())
    if match is None:
        raise UsageError(
            f"not a SHA-256 digest: {text[:100]!r}",
            reference="digest",
            hint="give the 64 hexadecimal digits that the vendor states for the archive",
        )
    return match[1]


class Checked:
    """The bytes of another stream, unchanged; `finish` raises unless they have the expected digest."""

    def __init__(self, stream: Stream | BinaryIO, expected: str) -> None:
        """`expected` is a SHA-256 as `parse_sha256` takes it. Raises UsageError."""
        self._stream = stream
        self._expected = parse_sha256(expected)
        self._hash = hashlib.sha256()
        self.length = 0
        """Bytes that have passed."""

    def readinto(self, view: memoryview, /) -> int:
        """Put the next bytes into `view`; 0 at the end."""
        count = streams.read_some(self._stream, view)
        self._hash.update(view[:count])
        self.length += count
        return count

    def finish(self) -> None:
        """Read the stream to its end, finish it, and compare. Raises IntegrityError."""
        with memoryview(bytearray(_BLOCK)) as rest:
            while self.readinto(rest):
                pass
        streams.finish(self._stream)
        found = self._hash.hexdigest()
        if found != self._expected:
            raise IntegrityError(
                f"the archive's SHA-256 is {found} over {self.length} bytes, expected {self._expected}",
                reference="archive-digest",
                hint="check that the digest belongs to this very file, compressed or not; if it does,"
                " download the archive again",
                side="source",
            )

    def close(self) -> None:
        """Close the stream, if it is owned."""
        streams.close(self._stream)
