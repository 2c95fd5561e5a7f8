"""Small checkpoints with bytes that do not repeat, published in a store that counts."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Mapping

from staging.store.memory import MemoryStore
from staging.vocabulary import crc64
from staging.vocabulary.digest import HashFamily, chunk_digests
from staging.vocabulary.location import S3Location
from staging.vocabulary.manifest import Manifest, ManifestFile
from staging.vocabulary.paths import SafePath


def random_bytes(size: int, seed: int) -> bytes:
    """Bytes that are the same every time and nowhere alike."""
    return random.Random(seed).randbytes(size)


def manifest_of(files: Mapping[str, bytes], family: HashFamily = HashFamily.BLAKE3) -> Manifest:
    """The manifest of files given as bytes."""
    return Manifest.of(
        family,
        [
            ManifestFile.of(SafePath(path), len(data), family, chunk_digests(family, data))
            for path, data in files.items()
        ],
    )


class CountingStore(MemoryStore):
    """A memory store that counts requests and lets a test change what comes back."""

    def __init__(self) -> None:
        super().__init__()
        self.heads: list[str] = []
        self.reads: list[str] = []
        self.ranges: list[tuple[str, int, int]] = []
        self.before_range: Callable[[str, int], None] = lambda key, offset: None
        self.after_range: Callable[[str, int, memoryview], None] = lambda key, offset, view: None
        self._counting = threading.Lock()

    @property
    def requests(self) -> int:
        """Requests for single objects so far."""
        return len(self.heads) + len(self.reads) + len(self.ranges)

    @property
    def ranged_bytes(self) -> int:
        """Bytes asked for by ranges so far."""
        return sum(length for _, _, length in self.ranges)

    def forget(self) -> None:
        """Count from zero, and stop interfering."""
        self.heads, self.reads, self.ranges = [], [], []
        self.before_range = lambda key, offset: None
        self.after_range = lambda key, offset, view: None

    def head(self, key):  # type: ignore[no-untyped-def]
        with self._counting:
            self.heads.append(key)
        return super().head(key)

    def read(self, key, *, limit):  # type: ignore[no-untyped-def]
        self.reads.append(key)
        return super().read(key, limit=limit)

    def read_into(self, key, offset, buffer, *, etag):  # type: ignore[no-untyped-def]
        with self._counting:
            self.ranges.append((key, offset, len(buffer)))
        self.before_range(key, offset)
        count = super().read_into(key, offset, buffer, etag=etag)
        self.after_range(key, offset, buffer)
        return count

    def put(self, key: str, data: bytes) -> None:
        """Create or replace an object."""
        if key in self._objects:
            self.delete(key, etag=self._objects[key].info.etag)
        self.create(key, data, crc64nvme=crc64.to_text(crc64.crc64(data)))

    def remove(self, key: str) -> None:
        """Delete an object."""
        self.delete(key, etag=self._objects[key].info.etag)

    def publish(
        self,
        location: S3Location,
        files: Mapping[str, bytes],
        family: HashFamily = HashFamily.BLAKE3,
    ) -> Manifest:
        """Put files and their manifest under a prefix."""
        manifest = manifest_of(files, family)
        for path, data in files.items():
            self.put(location.key(SafePath(path)), data)
        self.put(location.manifest_key, manifest.encode())
        return manifest
