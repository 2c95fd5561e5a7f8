"""Ranges of one file of an indexed source, or of one object, as `ReadAt`: what header checks read."""

from __future__ import annotations

import random

from staging.source.source import Source, SourceFile
from staging.store.store import ObjectInfo, Store
from staging.transfer.ranges import read_range
from staging.transfer.scheduler import Cancellation


class FileAt:
    """A file of an indexed source."""

    def __init__(self, source: Source, file: SourceFile) -> None:
        self._source = source
        self._file = file
        self.size = file.size

    def read_at(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes from `offset`."""
        data = bytearray(length)
        self._source.read_into(self._file, offset, memoryview(data))
        return bytes(data)


class ObjectAt:
    """One version of an object in a store."""

    def __init__(self, store: Store, info: ObjectInfo) -> None:
        self._store = store
        self._info = info
        self.size = info.size

    def read_at(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes from `offset`."""
        data = bytearray(length)
        read_range(
            self._store,
            self._info.key,
            offset,
            memoryview(data),
            etag=self._info.etag,
            cancelled=Cancellation(),
            rng=random.Random(),  # noqa: S311 - jitter, not secrets
        )
        return bytes(data)
