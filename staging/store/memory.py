"""A bucket in memory: the whole contract of `Store`, for examples and for tests of the engines.

It honours conditions and checks checksums on arrival, as S3 does. Every object that is created has a
new ETag, even when the bytes are equal. Nothing outlives the process.
"""

from __future__ import annotations

import datetime
import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from staging.store.store import (
    MAX_PART_SIZE,
    MAX_PARTS,
    MIN_PART_SIZE,
    AlreadyExists,
    Changed,
    ListedPart,
    ListedUpload,
    Listing,
    MultipartUpload,
    ObjectInfo,
    Seen,
    UploadedPart,
    unseen,
)
from staging.vocabulary import crc64
from staging.vocabulary.digest import Bytes
from staging.vocabulary.errors import IntegrityError, MalformedInput, NotFound, UsageError


@dataclass(slots=True)
class _Object:
    data: bytes
    info: ObjectInfo


@dataclass(slots=True)
class _Upload:
    upload: MultipartUpload
    initiated: datetime.datetime
    parts: dict[int, tuple[bytes, UploadedPart, datetime.datetime]] = field(default_factory=dict)


class MemoryStore:
    """A `Store` that holds its objects in memory. Safe to use from several threads."""

    def __init__(
        self,
        bucket: str = "memory",
        *,
        now: Callable[[], datetime.datetime] = lambda: datetime.datetime.now(datetime.UTC),
    ) -> None:
        self._bucket = bucket
        self._now = now
        self._lock = threading.RLock()
        self._objects: dict[str, _Object] = {}
        self._uploads: dict[str, _Upload] = {}
        self._versions = itertools.count(1)

    @property
    def bucket(self) -> str:
        """The bucket's name."""
        return self._bucket

    def head(self, key: str) -> ObjectInfo:
        """Describe an object. Raises NotFound."""
        with self._lock:
            return self._get(key).info

    def read(self, key: str, *, limit: int) -> tuple[bytes, ObjectInfo]:
        """Return a whole object of at most `limit` bytes. Raises NotFound, MalformedInput."""
        with self._lock:
            found = self._get(key)
        if len(found.data) > limit:
            raise MalformedInput(
                f"{self._uri(key)} has {len(found.data)} bytes, more than {limit}",
                reference="object-too-large",
                side="store",
            )
        return found.data, found.info

    def read_into(
        self, key: str, offset: int, buffer: memoryview, *, etag: str, seen: Seen = unseen
    ) -> int:
        """Fill `buffer` from `offset` of the version `etag`. Raises NotFound, Changed."""
        with self._lock:
            found = self._get(key)
        if found.info.etag != etag or offset < 0 or offset + len(buffer) > len(found.data):
            raise Changed(
                f"{self._uri(key)} is not the version {etag} with {offset + len(buffer)} bytes",
                reference="changed",
                side="store",
            )
        buffer[:] = found.data[offset : offset + len(buffer)]
        seen(buffer)
        return len(buffer)

    def list_objects(self, prefix: str) -> Iterator[ObjectInfo]:
        """All objects below `prefix` in byte order of their keys, as they were at the call."""
        with self._lock:
            keys = sorted((key for key in self._objects if key.startswith(prefix)), key=str.encode)
            infos = [self._objects[key].info for key in keys]
        return (
            ObjectInfo(info.key, info.size, info.etag, modified=info.modified) for info in infos
        )

    def list_level(self, prefix: str, *, limit: int = 1000) -> Listing:
        """At most `limit` entries of one level below `prefix`."""
        objects: list[ObjectInfo] = []
        prefixes: list[str] = []
        for info in self.list_objects(prefix):
            name, slash, _ = info.key[len(prefix) :].partition("/")
            if slash and prefixes[-1:] == [name + slash]:
                continue
            if len(objects) + len(prefixes) == limit:
                break
            if slash:
                prefixes.append(name + slash)
            else:
                objects.append(info)
        return Listing(tuple(objects), tuple(prefixes))

    def create(self, key: str, body: Bytes, *, crc64nvme: str) -> ObjectInfo:
        """Create an object. Raises AlreadyExists, and IntegrityError for a wrong checksum."""
        data = bytes(body)
        self._check(key, data, crc64nvme)
        with self._lock:
            return self._put(key, data, crc64nvme, self._etag())

    def create_multipart_upload(self, key: str) -> MultipartUpload:
        """Open a multipart upload."""
        with self._lock:
            upload = MultipartUpload(key, f"upload-{next(self._versions)}")
            self._uploads[upload.upload_id] = _Upload(upload, self._now())
            return upload

    def upload_part(
        self, upload: MultipartUpload, number: int, body: bytearray, *, crc64nvme: str
    ) -> UploadedPart:
        """Take one part. Raises NotFound, UsageError, and IntegrityError for a wrong checksum."""
        data = bytes(body)
        if not 1 <= number <= MAX_PARTS or len(data) > MAX_PART_SIZE:
            raise _part_refused(upload, f"part {number} of {len(data)} bytes")
        self._check(upload.key, data, crc64nvme)
        with self._lock:
            part = UploadedPart(number, self._etag(), crc64nvme)
            self._open(upload).parts[number] = (data, part, self._now())
            return part

    def complete_multipart_upload(
        self, upload: MultipartUpload, parts: Sequence[UploadedPart], *, crc64nvme: str
    ) -> None:
        """Make the object. Raises AlreadyExists, NotFound, UsageError, IntegrityError."""
        with self._lock:
            waiting = self._open(upload).parts
            pieces: list[bytes] = []
            for before, part in zip([None, *parts], parts, strict=False):
                data, known, _ = waiting.get(part.number, (b"", None, None))
                if known != part or (before is not None and before.number >= part.number):
                    raise _part_refused(upload, f"part {part.number}, unknown or out of order")
                pieces.append(data)
            if not pieces or any(len(piece) < MIN_PART_SIZE for piece in pieces[:-1]):
                raise _part_refused(upload, "no parts, or one that is too small")
            whole = b"".join(pieces)
            self._check(upload.key, whole, crc64nvme)
            self._put(upload.key, whole, crc64nvme, f"{self._etag()}-{len(pieces)}")
            del self._uploads[upload.upload_id]

    def abort_multipart_upload(self, upload: MultipartUpload) -> None:
        """Drop an open upload, if it is open."""
        with self._lock:
            self._uploads.pop(upload.upload_id, None)

    def list_multipart_uploads(self, prefix: str) -> Iterator[ListedUpload]:
        """All open uploads below `prefix`, as they were at the call."""
        with self._lock:
            found = [
                ListedUpload(open_.upload, open_.initiated)
                for open_ in self._uploads.values()
                if open_.upload.key.startswith(prefix)
            ]
        found.sort(key=lambda listed: (listed.upload.key.encode(), listed.upload.upload_id))
        return iter(found)

    def list_parts(self, upload: MultipartUpload) -> Iterator[ListedPart]:
        """The parts that wait in an upload, as they were at the call. Raises NotFound."""
        with self._lock:
            waiting = sorted(self._open(upload).parts.items())
        return (
            ListedPart(number, len(data), part.etag, part.crc64nvme, modified)
            for number, (data, part, modified) in waiting
        )

    def delete(self, key: str, *, etag: str) -> None:
        """Delete the version `etag`, if there is an object. Raises Changed for another version."""
        with self._lock:
            found = self._objects.get(key)
            if found is not None and found.info.etag != etag:
                raise Changed(
                    f"{self._uri(key)} is not the version {etag}", reference="changed", side="store"
                )
            self._objects.pop(key, None)

    def _uri(self, key: str) -> str:
        return f"s3://{self._bucket}/{key}"

    def _etag(self) -> str:
        return f"{next(self._versions):032x}"

    def _get(self, key: str) -> _Object:
        try:
            return self._objects[key]
        except KeyError:
            raise NotFound(
                f"there is no object {self._uri(key)}", reference="object", side="store"
            ) from None

    def _put(self, key: str, data: bytes, checksum: str, etag: str) -> ObjectInfo:
        if key in self._objects:
            raise AlreadyExists(
                f"there is already an object {self._uri(key)}", reference="exists", side="store"
            )
        info = ObjectInfo(key, len(data), etag, checksum, modified=self._now())
        self._objects[key] = _Object(data, info)
        return info

    def _open(self, upload: MultipartUpload) -> _Upload:
        found = self._uploads.get(upload.upload_id)
        if found is None or found.upload != upload:
            raise NotFound(
                f"there is no open upload {upload.upload_id} of {self._uri(upload.key)}",
                reference="upload-gone",
                side="store",
            )
        return found

    def _check(self, key: str, data: bytes, checksum: str) -> None:
        if crc64.to_text(crc64.crc64(data)) != checksum:
            raise IntegrityError(
                f"the CRC64NVME of the bytes for {self._uri(key)} is not {checksum[:20]!r}",
                reference="checksum",
                side="store",
            )


def _part_refused(upload: MultipartUpload, what: str) -> UsageError:
    return UsageError(
        f"the upload of {upload.key!r} cannot have {what}", reference="part", side="store"
    )
