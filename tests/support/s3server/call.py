"""What an operation gets to see: the request, its body and digests, and the state it works on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import format_datetime
from urllib.parse import parse_qsl

from tests.support.s3server import xml
from tests.support.s3server.access import Access
from tests.support.s3server.bucket_settings import OWNER
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
    "x-amz-server-side-encryption-bucket-key-enabled",
    "x-amz-storage-class",
)

SSE = "x-amz-server-side-encryption"
_ENCRYPTIONS = ("AES256", "aws:kms", "aws:kms:dsse")
_STORAGE_CLASSES = (
    "STANDARD",
    "REDUCED_REDUNDANCY",
    "STANDARD_IA",
    "ONEZONE_IA",
    "INTELLIGENT_TIERING",
    "GLACIER_IR",
    "GLACIER",
    "DEEP_ARCHIVE",
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
        """Headers of a create that GET and HEAD return, the bucket's KMS encryption included."""
        echoed = {name: self.headers[name] for name in _ECHOED if name in self.headers}
        default = self.bucket.settings.encryption
        if SSE not in echoed and default is not None and default[0].startswith("aws:kms"):
            echoed[SSE] = default[0]
            if default[1] is not None:
                echoed[f"{SSE}-aws-kms-key-id"] = default[1]
        tags = parse_qsl(self.headers.get("x-amz-tagging", ""), keep_blank_values=True)
        return {**echoed, **({"x-amz-tagging-count": str(len(tags))} if tags else {})}

    def check_account(self) -> None:
        """Whose bucket it is, and who pays. Raises S3Error as unspecific as S3's."""
        expected = self.headers.get("x-amz-expected-bucket-owner")
        if expected is not None and not (len(expected) == 12 and expected.isdecimal()):
            raise S3Error(
                400,
                "InvalidBucketOwnerAWSAccountID",
                "The value of the expected bucket owner parameter must be an AWS Account ID",
            )
        found = self.state.buckets.get(self.request.bucket)
        if found is None:
            return
        if expected not in (None, OWNER):
            raise access_denied()
        if found.settings.requester_pays and "x-amz-request-payer" not in self.headers:
            raise access_denied()

    def check_settings(self) -> None:
        """What a create says of encryption, storage class and tags. Raises S3Error."""
        if self.headers.get(SSE, "AES256") not in _ENCRYPTIONS:
            raise S3Error(
                400,
                "InvalidEncryptionAlgorithmError",
                "The encryption request you specified is not valid. Supported value: AES256.",
            )
        if self.headers.get("x-amz-storage-class", "STANDARD") not in _STORAGE_CLASSES:
            raise S3Error(
                400, "InvalidStorageClass", "The storage class you specified is not valid"
            )
        if "x-amz-tagging" in self.headers:
            self.access.require("PutObjectTagging", self.request)
        self.check_key_use(self.echoed_headers, "kms:GenerateDataKey")

    def check_key_use(self, headers: Mapping[str, str], permission: str) -> None:
        """Raises S3Error when what has these headers is under a KMS key that may not be used so."""
        if headers.get(SSE, "").startswith("aws:kms"):
            self.access.require(permission, self.request)

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
