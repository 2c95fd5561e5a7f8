"""Digests of file content: plain hashes of 16 MiB chunks, and one digest over them per file.

A file of at most one chunk has that chunk's plain hash as its digest, so `b3sum` or `sha256sum`
agree. A longer file has `H("checkpoint-file/1" || NUL || u64le size || chunk digests)`. The text form is
`<family>:<hex>`; the family's name states every parameter that changes the value.

Invariants: equality of content is (size, digest); chunk digests may be computed in any order and
checked alone; `Digest.parse(str(d)) == d`.
Not guaranteed: that the producer's bytes were right, only that they are the same bytes.
"""

from __future__ import annotations

import enum
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from blake3 import blake3

Bytes = bytes | bytearray | memoryview
"""Any contiguous buffer of bytes."""

CHUNK_SIZE: Final = 16 * 1024 * 1024
"""Bytes per chunk, always; only the last chunk of a file may be shorter."""

DIGEST_SIZE: Final = 32
"""Bytes of every chunk and file digest, in both hash families."""

MAX_FILE_SIZE: Final = 2**53 - 1
"""Largest file a manifest can name: what every JSON reader holds exactly."""

_FILE_TAG: Final = b"checkpoint-file/1\0"
_TEXT = re.compile(r"([a-z0-9-]+):([0-9a-f]{64})")


class HashFamily(enum.Enum):
    """The hash of a checkpoint's chunks and files. The value is its name in digests and manifests."""

    BLAKE3 = "blake3-16m"
    SHA256 = "sha256-16m"

    def hash(self, data: Bytes) -> bytes:
        """Return the plain hash of `data` (32 bytes). Releases the GIL for large buffers."""
        if self is HashFamily.BLAKE3:
            return blake3(data).digest()
        return hashlib.sha256(data).digest()

    def hasher(self) -> Hasher:
        """A hash that is fed piece by piece."""
        return blake3() if self is HashFamily.BLAKE3 else hashlib.sha256()


class Hasher(Protocol):
    """A running hash."""

    def update(self, data: Bytes, /) -> object:
        """Feed more bytes. Releases the GIL for large buffers."""
        ...

    def digest(self) -> bytes:
        """The hash of what was fed so far (32 bytes)."""
        ...


@dataclass(frozen=True, slots=True)
class Digest:
    """The digest of one file: a hash family and 32 bytes."""

    family: HashFamily
    value: bytes

    def __post_init__(self) -> None:
        if len(self.value) != DIGEST_SIZE:
            raise ValueError(f"a digest has {DIGEST_SIZE} bytes, not {len(self.value)}")

    def __str__(self) -> str:
        return f"{self.family.value}:{self.value.hex()}"

    @classmethod
    def parse(cls, text: str) -> Digest:
        """Read `<family>:<64 lower-case hex digits>`. Raises ValueError on anything else."""
        match = _TEXT.fullmatch(text)
        if match is None:
            raise ValueError(f"not a digest: {text[:100]!r}")
        return cls(HashFamily(match[1]), bytes.fromhex(match[2]))


def chunk_count(size: int) -> int:
    """Number of chunks of a file of `size` bytes. An empty file has one empty chunk."""
    return max(1, -(-size // CHUNK_SIZE))


def chunk_span(size: int, index: int) -> tuple[int, int]:
    """Offset and length in bytes of chunk `index` in a file of `size` bytes."""
    if not 0 <= index < chunk_count(size):
        raise ValueError(f"a file of {size} bytes has no chunk {index}")
    offset = index * CHUNK_SIZE
    return offset, min(CHUNK_SIZE, size - offset)


def chunk_digests(family: HashFamily, data: Bytes) -> list[bytes]:
    """Digests of the consecutive chunks in `data`, which starts on a chunk boundary of its file."""
    view = memoryview(data)
    return [
        family.hash(view[start : start + CHUNK_SIZE])
        for start in range(0, max(1, len(view)), CHUNK_SIZE)
    ]


class ChunkDigests:
    """Digests of consecutive chunks whose bytes come in pieces of any size, the first at a chunk's start.

    Fed with pieces that are still in the processor's cache, hashing reads no memory of its own.
    """

    def __init__(self, family: HashFamily) -> None:
        self._family = family
        self._done: list[bytes] = []
        self._hasher = family.hasher()
        self._room = CHUNK_SIZE

    def update(self, data: Bytes) -> None:
        """Take the next bytes."""
        with memoryview(data) as view:
            start = 0
            while start < len(view):
                with view[start : start + self._room] as piece:
                    self._hasher.update(piece)
                    start += len(piece)
                    self._room -= len(piece)
                if not self._room:
                    self._done.append(self._hasher.digest())
                    self._hasher, self._room = self._family.hasher(), CHUNK_SIZE

    def chunks(self) -> list[bytes]:
        """Digests of the chunks so far; the last one may be shorter than the others."""
        return self._done if self._room == CHUNK_SIZE else [*self._done, self._hasher.digest()]


def file_digest(family: HashFamily, size: int, chunks: Sequence[bytes]) -> Digest:
    """Combine the chunk digests of a file of `size` bytes, in order, into the file's digest.

    Raises ValueError when their number or the length of one is wrong.
    """
    if len(chunks) != chunk_count(size):
        raise ValueError(
            f"a file of {size} bytes has {chunk_count(size)} chunks, not {len(chunks)}"
        )
    if len(chunks) == 1:
        return Digest(family, chunks[0])
    if any(len(chunk) != DIGEST_SIZE for chunk in chunks):
        raise ValueError(f"a chunk digest has {DIGEST_SIZE} bytes")
    message = b"".join([_FILE_TAG, size.to_bytes(8, "little"), *chunks])
    return Digest(family, family.hash(message))
