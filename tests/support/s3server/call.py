"""What an operation gets to see: the request, its body and digests, and the state it works on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import format_datetime

from tests.support.s3server import xml
from tests.support.s3server.access import Access
from tests.support.s3server.checksums import Digests
from tests.support.s3server.errors import (
    S3Error,
    access_denied,
    no_such_bucket,
    no_such_key,
    no_such_upload,
    not_implemented,
    precondition_failed,
)
from tests.support.s3server.http import Response
from tests.support.s3server.log import Request
from tests.support.s3server.objects import Bucket, State, StoredObject, Upload
from tests.support.s3server.quirks import Quirk

MAX_KEY_LENGTH = 1024
MAX_METADATA_LENGTH = 2048

_ECHOED = (
    "content-type",
    "cache-control",
    "content-disposition",
    "content-encoding",
    "content-language",
    "x-amz-server-side-encryption",
    "x-amz-server-side-encryption-aws-kms-key-id",
    "x-amz-storage-class",
)


@dataclass(frozen=True, slots=True)
class Limits:
    """Numbers that tests make smaller than S3 has them."""

    min_part_size: int
    page_size: int


@dataclass(frozen=True, slots=True)
class Call:
    """One execution of an operation. `headers` are the request's, as a fault may have changed them."""

    request: Request
    headers: Mapping[str, str]
    body: bytes
    digests: Digests
    state: State
    access: Access
    quirks: frozenset[Quirk]
    limits: Limits

    @property
    def key(self) -> str:
        return self.request.key

    @property
    def query(self) -> Mapping[str, str]:
        return self.request.query

    @property
    def bucket(self) -> Bucket:
        """Raises S3Error NoSuchBucket."""
        try:
            return self.state.buckets[self.request.bucket]
        except KeyError:
            raise no_such_bucket(self.request.bucket) from None

    @property
    def existing(self) -> StoredObject:
        """Raises S3Error NoSuchKey, or AccessDenied for who may not know whether a key exists."""
        found = self.bucket.find(self.key)
        if found is None:
            if not self.access.allows("ListBucket", self.request.access_key):
                raise access_denied()
            raise no_such_key(self.key)
        return found

    @property
    def upload(self) -> Upload:
        """Raises S3Error NoSuchUpload."""
        found = self.bucket.find_upload(self.query["uploadId"])
        if found is None or found.key != self.key:
            raise no_such_upload(self.query["uploadId"])
        return found

    @property
    def metadata(self) -> dict[str, str]:
        """The user metadata of a create. Raises S3Error MetadataTooLarge."""
        found = {
            name.removeprefix("x-amz-meta-"): value
            for name, value in self.headers.items()
            if name.startswith("x-amz-meta-")
        }
        if sum(len(name) + len(value) for name, value in found.items()) > MAX_METADATA_LENGTH:
            raise S3Error(
                400, "MetadataTooLarge", "Your metadata headers exceed the maximum allowed."
            )
        return found

    @property
    def echoed_headers(self) -> dict[str, str]:
        """Headers of a create that GET and HEAD return."""
        return {name: self.headers[name] for name in _ECHOED if name in self.headers}

    def check_bucket(self) -> None:
        """Raises S3Error NoSuchBucket."""
        _ = self.bucket

    def check_key(self) -> None:
        """Raises S3Error KeyTooLongError."""
        if len(self.key.encode()) > MAX_KEY_LENGTH:
            raise S3Error(400, "KeyTooLongError", "Your key is too long")

    def check_write_conditions(self, *, ignored_by: Quirk | None = None) -> None:
        """Raises S3Error PreconditionFailed, or NoSuchKey for an If-Match without an object."""
        if Quirk.IGNORES_CONDITIONS in self.quirks or ignored_by in self.quirks:
            return
        current = self.bucket.find(self.key)
        if "if-none-match" in self.headers:
            if self.headers["if-none-match"] != "*":
                raise not_implemented("If-None-Match on a write takes * alone")
            if current is not None:
                raise precondition_failed("If-None-Match")
        if "if-match" in self.headers:
            if current is None:
                raise no_such_key(self.key)
            if not names_version(self.headers["if-match"], current):
                raise precondition_failed("If-Match")


def names_version(header: str, version: StoredObject) -> bool:
    """Whether an If-Match or If-None-Match header matches a version. Weak ETags never do."""
    return header == "*" or version.etag in [tag.strip().strip('"') for tag in header.split(",")]


def xml_response(body: bytes, headers: Mapping[str, str] | None = None) -> Response:
    return Response(200, {"Content-Type": "application/xml", **(headers or {})}, (body,))


def error_response(error: S3Error, request: Request) -> Response:
    resource = f"/{request.bucket}/{request.key}".rstrip("/")
    body = xml.error_document(error, resource, request_id(request))
    return Response(error.status, {"Content-Type": "application/xml", **error.headers}, (body,))


def request_id(request: Request) -> str:
    return f"{request.sequence:016X}"


def http_date(version: StoredObject) -> str:
    return format_datetime(version.last_modified, usegmt=True)
