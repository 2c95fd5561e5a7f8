"""What the store holds: buckets, objects, open multipart uploads.

`Bucket` is also the way behind the store's back: tests put, read, damage and remove objects without a
request. Every method takes the store's lock, so it may be called while the server works.

Objects are immutable; a new version replaces the old one in one step. A body is kept as the pieces
it came in (one per part) and never joined for serving.
"""

from __future__ import annotations

import hashlib
import itertools
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from tests.support.s3server.bucket_settings import BucketSettings
from tests.support.s3server.checksums import combined_crc64nvme, digests_of


@dataclass(frozen=True, slots=True)
class StoredObject:
    """One version of an object. `etag` has no quotes; `headers` are echoed on GET and HEAD."""

    key: str
    pieces: tuple[bytes, ...]
    etag: str
    crc64nvme: str
    last_modified: datetime
    metadata: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def size(self) -> int:
        return sum(map(len, self.pieces))

    @property
    def data(self) -> bytes:
        return b"".join(self.pieces)

    def slice(self, start: int, stop: int) -> list[memoryview]:
        """The bytes from `start` up to `stop`, without copying them."""
        views: list[memoryview] = []
        position = 0
        for piece in self.pieces:
            low, high = max(start - position, 0), min(stop - position, len(piece))
            if low < high:
                views.append(memoryview(piece)[low:high])
            position += len(piece)
        return views


@dataclass(frozen=True, slots=True)
class Part:
    """An uploaded part. `etag` has no quotes; it is the MD5 unless the upload is encrypted by KMS."""

    number: int
    data: bytes
    etag: str
    crc64nvme: str
    last_modified: datetime


@dataclass(slots=True)
class Upload:
    """An open multipart upload. `algorithm` is what Create named, None when it named nothing."""

    key: str
    upload_id: str
    initiated: datetime
    algorithm: str | None
    checksum_type: str
    metadata: Mapping[str, str]
    headers: Mapping[str, str]
    parts: dict[int, Part] = field(default_factory=dict)


class Bucket:
    """One bucket. Everything public may be called by tests at any time."""

    def __init__(self, name: str, lock: threading.RLock, clock: Callable[[], datetime]) -> None:
        self.name = name
        self.settings = BucketSettings()
        self._lock = lock
        self._clock = clock
        self._objects: dict[str, StoredObject] = {}
        self._uploads: dict[str, Upload] = {}
        self._numbers = itertools.count(1)

    def __contains__(self, key: object) -> bool:
        with self._lock:
            return key in self._objects

    def __len__(self) -> int:
        with self._lock:
            return len(self._objects)

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def keys(self, prefix: str = "") -> list[str]:
        """Keys in the byte order of their UTF-8 form."""
        with self._lock:
            return sorted((key for key in self._objects if key.startswith(prefix)), key=str.encode)

    def find(self, key: str) -> StoredObject | None:
        with self._lock:
            return self._objects.get(key)

    def object(self, key: str) -> StoredObject:
        """The current version of an object. Raises KeyError."""
        with self._lock:
            return self._objects[key]

    def get(self, key: str) -> bytes:
        """The bytes of an object. Raises KeyError."""
        return self.object(key).data

    def put(
        self, key: str, data: bytes, *, metadata: Mapping[str, str] | None = None
    ) -> StoredObject:
        """Store an object as a PutObject would, whatever is there."""
        digests = digests_of(data)
        return self.store(
            StoredObject(
                key, (data,), digests.md5, digests.crc64nvme, self._clock(), dict(metadata or {})
            )
        )

    def store(self, version: StoredObject) -> StoredObject:
        """Make `version` the current one."""
        with self._lock:
            self._objects[version.key] = version
            return version

    def remove(self, key: str) -> None:
        """Remove an object. Raises KeyError."""
        with self._lock:
            del self._objects[key]

    def corrupt(self, key: str, change: Callable[[bytes], bytes]) -> None:
        """Change the stored bytes; ETag, checksum and time stay, as when a disk rots.

        With a change of length, Content-Length and listings tell the new one.
        """
        with self._lock:
            version = self.object(key)
            self._objects[key] = replace(version, pieces=(change(version.data),))

    def flip_bit(self, key: str, bit: int) -> None:
        """Corrupt one bit, counted from the first byte's least significant one."""
        self.corrupt(key, lambda data: flipped(data, bit))

    def uploads(self, prefix: str = "") -> list[Upload]:
        """Open multipart uploads by key, then in the order they were opened."""
        with self._lock:
            found = [upload for upload in self._uploads.values() if upload.key.startswith(prefix)]
        return sorted(found, key=lambda upload: (upload.key.encode(), upload.upload_id))

    def find_upload(self, upload_id: str) -> Upload | None:
        with self._lock:
            return self._uploads.get(upload_id)

    def open_upload(
        self,
        key: str,
        *,
        algorithm: str | None = None,
        checksum_type: str = "FULL_OBJECT",
        metadata: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Upload:
        """Open an upload, as somebody else might. Ids are deterministic and sort in order of opening."""
        with self._lock:
            number = next(self._numbers)
            name = hashlib.sha256(f"{self.name}/{number}".encode()).hexdigest()[:16]
            upload = Upload(
                key=key,
                upload_id=f"{number:06d}.{name}",
                initiated=self._clock(),
                algorithm=algorithm,
                checksum_type=checksum_type,
                metadata=dict(metadata or {}),
                headers=dict(headers or {}),
            )
            self._uploads[upload.upload_id] = upload
            return upload

    def close_upload(self, upload_id: str) -> None:
        """Drop an open upload and its parts, as a lifecycle rule might. Raises KeyError."""
        with self._lock:
            del self._uploads[upload_id]

    def assemble(self, upload: Upload, parts: list[Part]) -> StoredObject:
        """The object that these parts of an upload make. It is not stored yet."""
        md5s = b"".join(bytes.fromhex(part.etag) for part in parts)
        return StoredObject(
            key=upload.key,
            pieces=tuple(part.data for part in parts),
            etag=f"{hashlib.md5(md5s).hexdigest()}-{len(parts)}",
            crc64nvme=combined_crc64nvme([(part.crc64nvme, len(part.data)) for part in parts]),
            last_modified=self._clock(),
            metadata=upload.metadata,
            headers=upload.headers,
        )


class State:
    """All buckets, one lock over them, and the store's clock."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.lock = threading.RLock()
        self.buckets: dict[str, Bucket] = {}
        self._clock = clock

    def now(self) -> datetime:
        return datetime.fromtimestamp(self._clock(), UTC)

    def create(self, name: str) -> Bucket:
        """The bucket of that name, made if need be."""
        with self.lock:
            if name not in self.buckets:
                self.buckets[name] = Bucket(name, self.lock, self.now)
            return self.buckets[name]


def flipped(data: bytes, bit: int) -> bytes:
    """A copy of `data` with one bit turned over. Raises IndexError past the end."""
    copy = bytearray(data)
    copy[bit // 8] ^= 1 << bit % 8
    return bytes(copy)
