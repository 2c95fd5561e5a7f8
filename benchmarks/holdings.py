"""What the server holds: objects, open uploads, and the count of what came and went."""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

_SLACK: Final = 0.01
"""Seconds that the network may catch up: a sleep ends late, and nobody is to pay for that."""


@dataclass(frozen=True, slots=True)
class Content:
    """The bytes of a part or an object; `data` and `path` are both None when they were dropped."""

    size: int
    data: bytes | None = None
    path: Path | None = None


@dataclass(frozen=True, slots=True)
class Part:
    """An uploaded part."""

    content: Content
    etag: str
    crc64nvme: str | None
    modified: str


@dataclass(frozen=True, slots=True)
class Stored:
    """An object: what it consists of, in order."""

    pieces: tuple[Content, ...]
    etag: str
    crc64nvme: str | None
    metadata: Mapping[str, str]
    modified: str

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(piece.size for piece in self.pieces)


@dataclass(slots=True)
class Upload:
    """An open multipart upload."""

    key: str
    metadata: Mapping[str, str]
    initiated: str
    parts: dict[int, Part] = field(default_factory=dict)


class Network:
    """The way to all clients together: it passes `rate` bytes per second, or all there is for 0."""

    def __init__(self) -> None:
        self.rate = 0
        self._lock = threading.Lock()
        self._free = 0.0  # when all that was handed to it will have passed

    def carry(self, count: int) -> None:
        """Wait until `count` bytes more have passed."""
        if not self.rate:
            return
        with self._lock:
            now = time.monotonic()
            self._free = max(self._free, now - _SLACK) + count / self.rate
            wait = self._free - now
        if wait > 0:
            time.sleep(wait)


class State:
    """Everything in the store. Its methods are short and hold one lock."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self.lock = threading.Lock()
        self.network = Network()
        self.objects: dict[tuple[str, str], Stored] = {}
        self.uploads: dict[str, Upload] = {}
        self.requests: Counter[str] = Counter()
        self.received = 0
        self.sent = 0
        self._numbers = itertools.count(1)

    def number(self) -> int:
        """A number nobody else got."""
        return next(self._numbers)

    def opaque_etag(self, parts: int) -> str:
        """An ETag that looks like no MD5, so that no client compares it with one."""
        return f"{self.number():032x}-{parts}"

    def count(self, operation: str, received: int = 0, sent: int = 0) -> None:
        """Take note of a request and its payload bytes."""
        with self.lock:
            self.requests[operation] += 1
            self.received += received
            self.sent += sent

    def describe(self, prefix: str) -> dict[str, Any]:
        """What lies under a prefix, and all counts."""
        with self.lock:
            return {
                "objects": {
                    key: stored.size
                    for (_, key), stored in sorted(self.objects.items())
                    if key.startswith(prefix)
                },
                "uploads": [
                    upload.key for upload in self.uploads.values() if upload.key.startswith(prefix)
                ],
                "requests": dict(self.requests),
                "received": self.received,
                "sent": self.sent,
            }

    def reset(self, prefix: str) -> None:
        """Drop what lies under a prefix, and all counts."""
        with self.lock:
            gone = [name for name in self.objects if name[1].startswith(prefix)]
            pieces = [piece for name in gone for piece in self.objects.pop(name).pieces]
            for upload_id, upload in list(self.uploads.items()):
                if upload.key.startswith(prefix):
                    del self.uploads[upload_id]
                    pieces.extend(part.content for part in upload.parts.values())
            self.requests.clear()
            self.received = self.sent = 0
        for piece in pieces:
            if piece.path is not None:
                piece.path.unlink(missing_ok=True)
