"""A bucket of S3, or of a store that speaks its protocol, over a `Wire`.

Objects are created with a FULL_OBJECT CRC64NVME that the store checks on arrival, and only where
there is none (`If-None-Match: *`); ranges are pinned to one version (`If-Match`).

Not guaranteed: that a store which answers 200 honoured the condition or the checksum; AWS does.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from staging.store.refusals import translate
from staging.store.settings import NO_SETTINGS, S3Settings
from staging.store.store import (
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
from staging.vocabulary.digest import Bytes
from staging.vocabulary.errors import (
    Conflict,
    MalformedInput,
    NotFound,
    StagingError,
    StoreUnavailable,
)
from staging.wire.wire import Body, BodyBroken, Wire, WireError

_READ_ATTEMPTS: Final = 5
_EMPTY_PAGES: Final = 1000
"""Empty pages in a row after which a listing is given up; S3 has some where many objects were deleted."""

_CONFLICT_ATTEMPTS: Final = 4
_CONFLICT_PAUSE: Final = 0.2  # seconds before the first repeat; doubles each time


class S3Store:
    """One bucket as a `Store`; see `staging.store.store` for the contract.

    `settings` are on the requests besides what the contract says.
    """

    def __init__(self, wire: Wire, bucket: str, settings: S3Settings = NO_SETTINGS) -> None:
        self._wire = wire
        self._bucket = bucket
        self._settings = settings

    @property
    def bucket(self) -> str:
        """The bucket's name."""
        return self._bucket

    def head(self, key: str) -> ObjectInfo:
        """Describe an object, with its stored checksum."""
        answer = self._call("HeadObject", key, ChecksumMode="ENABLED")
        return _info(key, answer, size=answer["ContentLength"])

    def read(self, key: str, *, limit: int) -> tuple[bytes, ObjectInfo]:
        """Return a whole small object."""
        for _ in range(_READ_ATTEMPTS):
            answer, body = self._get(key)
            try:
                size = int(answer["ContentLength"])
                if size > limit:
                    raise MalformedInput(
                        f"s3://{self._bucket}/{key} has {size} bytes, more than {limit}",
                        reference="object-too-large",
                        hint="this is not a file that `staging` wrote; publish under a new prefix",
                        side="store",
                    )
                data = bytearray(size)
                if _fill(body, memoryview(data)) == size:
                    return bytes(data), _info(key, answer, size=size)
            finally:
                body.close()
        raise StoreUnavailable(
            f"the body of s3://{self._bucket}/{key} broke off {_READ_ATTEMPTS} times",
            reference="connection",
            hint="check the network between here and the store, then run again",
            side="store",
        )

    def read_into(
        self, key: str, offset: int, buffer: memoryview, *, etag: str, seen: Seen = unseen
    ) -> int:
        """Read a range of one version."""
        last = offset + len(buffer) - 1
        condition = self._pin(key, etag)
        answer, body = self._get(key, Range=f"bytes={offset}-{last}", IfMatch=condition)
        try:
            expected = f"bytes {offset}-{last}/"
            given = str(answer.get("ContentRange", "the whole object"))
            found = _etag(answer)
            self._pin(key, found)
            if not given.startswith(expected) or found != etag:
                raise Changed(
                    f"s3://{self._bucket}/{key} answered {given} of version {found},"
                    f" asked for {expected}* of version {etag}",
                    reference="object-changed",
                    hint="nothing may rewrite a published object; see who did, then run again",
                    side="store",
                )
            return _fill(body, buffer, seen)
        finally:
            body.close()

    def list_objects(self, prefix: str) -> Iterator[ObjectInfo]:
        """All objects below `prefix`, page by page."""
        pages = _Pages(f"the listing of s3://{self._bucket}/{prefix}")
        more: dict[str, Any] | None = {}
        while more is not None:
            answer = self._call("ListObjectsV2", None, Prefix=prefix, **more)
            if "IsTruncated" not in answer:  # an empty answer must not pass for an empty bucket
                raise pages.refusal("does not say whether it is whole")
            for entry in answer.get("Contents", []):
                yield _info(entry["Key"], entry, size=entry["Size"])
            more = pages.after(answer, "Contents", ContinuationToken="NextContinuationToken")

    def list_level(self, prefix: str, *, limit: int = 1000) -> Listing:
        """One level below `prefix`."""
        answer = self._call("ListObjectsV2", None, Prefix=prefix, Delimiter="/", MaxKeys=limit)
        return Listing(
            tuple(
                _info(entry["Key"], entry, size=entry["Size"])
                for entry in answer.get("Contents", [])
            ),
            tuple(entry["Prefix"][len(prefix) :] for entry in answer.get("CommonPrefixes", [])),
        )

    def create(self, key: str, body: Bytes, *, crc64nvme: str) -> ObjectInfo:
        """Create an object with one conditional PUT."""
        answer = self._create(
            "PutObject",
            key,
            # bytes would cost a round trip for Expect
            Body=body if isinstance(body, bytearray) else bytearray(body),
            ChecksumCRC64NVME=crc64nvme,
        )
        return _info(key, answer, size=len(body))

    def create_multipart_upload(self, key: str) -> MultipartUpload:
        """Open a multipart upload."""
        answer = self._call(
            "CreateMultipartUpload",
            key,
            ChecksumAlgorithm="CRC64NVME",
            ChecksumType="FULL_OBJECT",
        )
        return MultipartUpload(key, answer["UploadId"])

    def upload_part(
        self, upload: MultipartUpload, number: int, body: bytearray, *, crc64nvme: str
    ) -> UploadedPart:
        """Send one part."""
        answer = self._call(
            "UploadPart",
            upload.key,
            UploadId=upload.upload_id,
            PartNumber=number,
            Body=body,
            ChecksumCRC64NVME=crc64nvme,
        )
        return UploadedPart(number, _etag(answer), crc64nvme)

    def complete_multipart_upload(
        self, upload: MultipartUpload, parts: Sequence[UploadedPart], *, crc64nvme: str
    ) -> None:
        """Make the object from its parts, conditionally."""
        # Not repeated after a 409, which means that the parts have to be sent again.
        self._call(
            "CompleteMultipartUpload",
            upload.key,
            IfNoneMatch="*",
            UploadId=upload.upload_id,
            MultipartUpload={
                "Parts": [
                    {
                        "PartNumber": part.number,
                        "ETag": f'"{part.etag}"',
                        "ChecksumCRC64NVME": part.crc64nvme,
                    }
                    for part in parts
                ]
            },
            ChecksumCRC64NVME=crc64nvme,
            ChecksumType="FULL_OBJECT",
        )

    def abort_multipart_upload(self, upload: MultipartUpload) -> None:
        """Drop an open upload."""
        try:
            self._call("AbortMultipartUpload", upload.key, UploadId=upload.upload_id)
        except NotFound as error:
            if error.reference == "bucket":
                raise

    def list_multipart_uploads(self, prefix: str) -> Iterator[ListedUpload]:
        """All open uploads below `prefix`, page by page."""
        pages = _Pages(f"the listing of uploads below s3://{self._bucket}/{prefix}")
        more: dict[str, Any] | None = {}
        while more is not None:
            answer = self._call("ListMultipartUploads", None, Prefix=prefix, **more)
            for entry in answer.get("Uploads", []):
                yield ListedUpload(
                    MultipartUpload(entry["Key"], entry["UploadId"]), entry.get("Initiated")
                )
            more = pages.after(
                answer, "Uploads", KeyMarker="NextKeyMarker", UploadIdMarker="NextUploadIdMarker"
            )

    def list_parts(self, upload: MultipartUpload) -> Iterator[ListedPart]:
        """The parts that wait in an upload, page by page."""
        pages = _Pages(f"the listing of parts for s3://{self._bucket}/{upload.key}")
        more: dict[str, Any] | None = {}
        while more is not None:
            answer = self._call("ListParts", upload.key, UploadId=upload.upload_id, **more)
            for entry in answer.get("Parts", []):
                yield ListedPart(
                    number=entry["PartNumber"],
                    size=entry["Size"],
                    etag=_etag(entry),
                    crc64nvme=entry.get("ChecksumCRC64NVME"),
                    modified=entry.get("LastModified"),
                )
            if answer.get("NextPartNumberMarker") is None:
                return  # some stores say that there is more of what ends here
            more = pages.after(answer, "Parts", PartNumberMarker="NextPartNumberMarker")

    def delete(self, key: str, *, etag: str) -> None:
        """Delete one version of an object."""
        condition = self._pin(key, etag)
        try:
            self._call("DeleteObject", key, IfMatch=condition)
        except (NotFound, Changed) as error:
            # Stores answer 404, 412 or 204 for an object that is gone.
            if error.reference == "bucket" or self._exists(key):
                raise

    def _exists(self, key: str) -> bool:
        try:
            self.head(key)
        except NotFound:
            return False
        return True

    def _pin(self, key: str, etag: str) -> str:
        """The condition that holds for this version alone. Raises StagingError for a weak ETag."""
        if etag.startswith("W/"):
            raise StagingError(
                f"s3://{self._bucket}/{key} has the weak ETag {etag[:100]!r}, which names no version",
                reference="weak-etag",
                hint="something between here and the store rewrites answers, a proxy that compresses"
                " them for instance: switch that off, or give the store's own --endpoint-url",
                side="store",
            )
        return f'"{etag}"'

    def _create(self, operation: str, key: str, **parameters: Any) -> Mapping[str, Any]:
        """Perform what makes an object, where there is none, and again while S3 asks for that."""
        for attempt in range(_CONFLICT_ATTEMPTS - 1):
            try:
                return self._call(operation, key, IfNoneMatch="*", **parameters)
            except Conflict as error:
                # Another conditional request for the key was in flight.
                if error.reference != "concurrent-write":
                    raise
            time.sleep(_CONFLICT_PAUSE * 2**attempt)
        return self._call(operation, key, IfNoneMatch="*", **parameters)

    def _get(self, key: str, **parameters: Any) -> tuple[Mapping[str, Any], Body]:
        where = {"Bucket": self._bucket, "Key": key}
        try:
            return self._wire.get({**where, **self._settings.parameters("GetObject"), **parameters})
        except WireError as error:
            raise translate(error, self._bucket, key, self._settings) from error

    def _call(self, operation: str, key: str | None, **parameters: Any) -> Mapping[str, Any]:
        where = {"Bucket": self._bucket} if key is None else {"Bucket": self._bucket, "Key": key}
        settings = self._settings.parameters(operation)
        try:
            return self._wire.call(operation, {**where, **settings, **parameters})
        except WireError as error:
            about = key or parameters.get("Prefix")
            raise translate(error, self._bucket, about, self._settings) from error


class _Pages:
    """Leads through a listing page by page, and refuses one that would never end."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._seen: set[tuple[str, ...]] = set()
        self._empty = 0  # pages without an entry in a row

    def after(
        self, answer: Mapping[str, Any], entries: str, **markers: str
    ) -> dict[str, Any] | None:
        """The parameters that ask for the next page; None when this is the last.

        `markers` names, for each of those parameters, where the answer has its value. Raises StagingError
        when the answer has none, has one that led here before, or is one of too many empty ones.
        """
        if not answer.get("IsTruncated"):
            return None
        following = {parameter: answer.get(name) for parameter, name in markers.items()}
        if None in following.values():
            raise self.refusal("goes on, but does not say where")
        place = tuple(map(str, following.values()))
        if place in self._seen:
            raise self.refusal("leads in a circle")
        self._seen.add(place)
        self._empty = 0 if answer.get(entries) else self._empty + 1
        if self._empty >= _EMPTY_PAGES:
            raise self.refusal(f"goes on after {self._empty} empty pages")
        return following

    def refusal(self, what: str) -> StagingError:
        """The error for a listing that does `what`."""
        return StagingError(
            f"{self._what} {what}",
            reference="request",
            hint="something between here and the store cuts or repeats answers, or it is no S3 store",
            side="store",
        )


def _fill(body: Any, view: memoryview, seen: Seen = unseen) -> int:
    done = 0
    try:
        while done < len(view):
            count = body.read_into(view[done : done + _READ_BLOCK])
            if count == 0:
                break
            with view[done : done + count] as piece:
                seen(piece)
            done += count
    except BodyBroken:
        return done
    return done


_READ_BLOCK: Final = 1024 * 1024
"""Bytes per read of a body: the SDK copies each read once, so a block should stay in the cache."""


def _etag(answer: Mapping[str, Any]) -> str:
    """An ETag without its quotes; a weak one stays as it is, `W/"..."`."""
    etag = str(answer.get("ETag", ""))
    return etag if etag.startswith("W/") else etag.strip('"')


def _info(key: str, answer: Mapping[str, Any], *, size: int) -> ObjectInfo:
    return ObjectInfo(
        key=key,
        size=size,
        etag=_etag(answer),
        crc64nvme=answer.get("ChecksumCRC64NVME"),
        metadata=dict(answer.get("Metadata", {})),
        modified=answer.get("LastModified"),
    )
