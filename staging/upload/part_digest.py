"""What is computed of a part while its bytes are at hand: a digest of each chunk, and the CRC-64/NVME of all.

Fed in pieces that stay in the processor's cache, reading and hashing touch memory once less: that saves
about a tenth of the CPU time of an upload from a local disk.
"""

from __future__ import annotations

from staging.vocabulary import crc64
from staging.vocabulary.digest import Bytes, ChunkDigests, HashFamily


class PartDigest:
    """The digests of one part, which starts on a chunk boundary of its file."""

    def __init__(self, family: HashFamily) -> None:
        self._chunks = ChunkDigests(family)
        self.crc = 0
        """CRC-64/NVME of the bytes so far."""

    def update(self, data: Bytes) -> None:
        """Take the next bytes of the part."""
        self.crc = crc64.crc64(data, self.crc)
        self._chunks.update(data)

    def chunks(self) -> list[bytes]:
        """Digests of the chunks; the last one may be shorter than the others."""
        return self._chunks.chunks()
