"""The contract of an object store: what the engines may rely on, and what they may not.

A `Store` is one bucket. Its methods are safe to call from several threads at once. Every failure is a
`StagingError` with `side="store"`:

    NotFound          the bucket, key or upload does not exist
    AccessDenied      the request was refused, or a missing key is hidden behind a refusal
    AlreadyExists     a conditional create met an object (a kind of Conflict)
    Changed           an object is no longer the version that was asked for (a kind of IntegrityError)
    IntegrityError    the store refused bytes because a checksum did not match
    StoreUnavailable  retries are used up, or there was no connection

Retries of single requests belong to the store (to botocore, in `S3Store`); callers never repeat a call
that raised. The one exception is a body that breaks off: `read_into` returns how far it came, and
the caller goes on from there.

An unknown outcome (a create or Complete whose answer was lost) is not settled here: after a repeat the
store may answer AlreadyExists for an object that this very caller made, or NotFound for an upload that
was completed. Callers settle it by size, checksum and their own record, never by existence (I8).

Not guaranteed: that conditions are honoured and checksums checked on arrival. AWS does both; an upload
finds out from its own requests what a store does (`staging.upload.target`), for an echo proves nothing.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from staging.vocabulary.digest import Bytes
from staging.vocabulary.errors import Conflict, IntegrityError

MIN_PART_SIZE = 5 * 1024 * 1024
"""Least bytes of every part but the last."""

MAX_PART_SIZE = 5 * 1024**3
"""Most bytes of one part, and of one single PUT."""

MAX_PARTS = 10_000
"""Most parts of one multipart upload, numbered from 1."""


class AlreadyExists(Conflict):
    """A conditional create met an object under its key."""


class Changed(IntegrityError):
    """The object is not the version that was asked for."""


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What a HEAD or a listing tells of an object.

    `etag` has no quotes and is the version's name for `If-Match`; it is not a digest.
    `crc64nvme` is the stored full-object checksum as base64, where the store has one; a listing
    never has it. `metadata` is user metadata, from HEAD only. `modified` is the store's time of it,
    where the answer told it.
    """

    key: str
    size: int
    etag: str
    crc64nvme: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    modified: datetime.datetime | None = None


@dataclass(frozen=True, slots=True)
class MultipartUpload:
    """An open multipart upload: parts wait in it, invisible, until it is completed or aborted."""

    key: str
    upload_id: str


@dataclass(frozen=True, slots=True)
class ListedUpload:
    """An open multipart upload as a listing tells of it.

    `initiated` is by the store's clock; None where the store does not tell.
    """

    upload: MultipartUpload
    initiated: datetime.datetime | None


@dataclass(frozen=True, slots=True)
class ListedPart:
    """A part that waits in an open upload, as a listing tells of it.

    `size` is in bytes; `crc64nvme` is base64 where the store tells it; `etag` has no quotes and is the
    MD5 of the part at some stores and in some settings; `modified` is by the store's clock, where told.
    """

    number: int
    size: int
    etag: str
    crc64nvme: str | None
    modified: datetime.datetime | None


@dataclass(frozen=True, slots=True)
class UploadedPart:
    """A part the store has confirmed: its number from 1, its ETag and its CRC-64/NVME as base64."""

    number: int
    etag: str
    crc64nvme: str


@dataclass(frozen=True, slots=True)
class Listing:
    """One level of a prefix: the objects directly below it and the names of prefixes below it."""

    objects: tuple[ObjectInfo, ...]
    prefixes: tuple[str, ...]


Seen = Callable[[memoryview], object]
"""Is shown bytes that have just come, while they are in the processor's cache."""


def unseen(_piece: memoryview) -> None:
    """For whom the buffer is enough."""


class Store(Protocol):
    """One bucket of objects. See the module's docstring for the rules all methods share."""

    @property
    def bucket(self) -> str:
        """The bucket's name."""
        ...

    def head(self, key: str) -> ObjectInfo:
        """Describe an object, with its stored checksum. Raises NotFound, AccessDenied."""
        ...

    def read(self, key: str, *, limit: int) -> tuple[bytes, ObjectInfo]:
        """Return a whole small object of at most `limit` bytes, in one version.

        Raises MalformedInput when it is longer, before reading it; StoreUnavailable when its body
        keeps breaking off.
        """
        ...

    def read_into(
        self, key: str, offset: int, buffer: memoryview, *, etag: str, seen: Seen = unseen
    ) -> int:
        """Read bytes from `offset` of the version `etag` into `buffer` and return how many came.

        `seen` is shown each piece of the buffer as it is filled, in order, the whole of what is counted.
        Returns less than the buffer holds only when the connection broke mid-body, never because the
        object is shorter. Raises Changed when the object is no longer `etag` (I7), when it ends
        before the range does, or when the answer is another range than the one asked for.
        """
        ...

    def list_objects(self, prefix: str) -> Iterator[ObjectInfo]:
        """All objects below `prefix` in byte order of their keys, however many pages that takes."""
        ...

    def list_level(self, prefix: str, *, limit: int = 1000) -> Listing:
        """At most `limit` entries of one level below `prefix`, split at `/`."""
        ...

    def create(self, key: str, body: Bytes, *, crc64nvme: str) -> ObjectInfo:
        """Create an object with one PUT and `If-None-Match: *`; the store checks `crc64nvme`.

        Raises AlreadyExists when there is an object, IntegrityError when the checksum is refused.
        """
        ...

    def create_multipart_upload(self, key: str) -> MultipartUpload:
        """Open a multipart upload with full-object CRC-64/NVME."""
        ...

    def upload_part(
        self, upload: MultipartUpload, number: int, body: bytearray, *, crc64nvme: str
    ) -> UploadedPart:
        """Send one part. Sending a number again replaces it.

        Raises IntegrityError when the checksum is refused, NotFound when the upload is gone.
        """
        ...

    def complete_multipart_upload(
        self, upload: MultipartUpload, parts: Sequence[UploadedPart], *, crc64nvme: str
    ) -> None:
        """Make the object from its parts with `If-None-Match: *`; the store checks the combined CRC.

        Raises AlreadyExists when there is an object, NotFound when the upload is gone (perhaps
        because it was completed), IntegrityError when the checksum or a part is refused, and Conflict
        `concurrent-write` when the store wants a new upload because another write was under way.
        """
        ...

    def abort_multipart_upload(self, upload: MultipartUpload) -> None:
        """Drop an open upload and its parts. An upload that is gone already is no error."""
        ...

    def list_multipart_uploads(self, prefix: str) -> Iterator[ListedUpload]:
        """All open uploads below `prefix`, whoever opened them."""
        ...

    def list_parts(self, upload: MultipartUpload) -> Iterator[ListedPart]:
        """The parts that wait in an upload, in order. Raises NotFound when the upload is gone."""
        ...

    def delete(self, key: str, *, etag: str) -> None:
        """Delete the version `etag` of an object. An object that is gone already is no error.

        Stores that ignore the condition delete whatever is there: only call this for objects whose
        every version is this caller's own.
        """
        ...
