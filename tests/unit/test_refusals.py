"""What an S3 error becomes: class, exit code, reference and hint, for every code the tables know."""

from __future__ import annotations

import pytest

from staging.store.refusals import translate
from staging.store.store import AlreadyExists, Changed
from staging.vocabulary.errors import (
    AccessDenied,
    Conflict,
    IntegrityError,
    NotFound,
    StagingError,
    StoreUnavailable,
    UsageError,
)
from staging.wire.wire import Cause, WireError

READS = ("GetObject", "HeadObject")
WRITES = ("PutObject", "UploadPart", "CreateMultipartUpload", "CompleteMultipartUpload")


def error_of(
    operation: str,
    code: str,
    status: int | None = None,
    *,
    cause: Cause = "answer",
    message: str = "said the store",
    skew: float | None = None,
    key: str | None = "m/a",
) -> StagingError:
    wire = WireError(operation, cause, code, message, status, skew)
    error = translate(wire, "bucket", key)
    assert error.message.isprintable()
    assert not error.message.endswith(".")
    return error


Row = tuple[str, str, int, type[StagingError], int, str]

TABLE: list[Row] = [
    ("GetObject", "NoSuchBucket", 404, NotFound, 10, "bucket"),
    ("ListObjectsV2", "NoSuchBucket", 404, NotFound, 10, "bucket"),
    # nothing that speaks S3, or a proxy in between
    ("ListObjectsV2", "404", 404, NotFound, 10, "bucket"),
    ("ListMultipartUploads", "NotFound", 404, NotFound, 10, "bucket"),
    ("CreateMultipartUpload", "404", 404, NotFound, 10, "bucket"),
    ("PutObject", "404", 404, NotFound, 10, "bucket"),
    ("GetObject", "NoSuchKey", 404, NotFound, 10, "object"),
    ("HeadObject", "404", 404, NotFound, 10, "object"),
    ("UploadPart", "NoSuchUpload", 404, NotFound, 10, "upload-gone"),
    ("CompleteMultipartUpload", "NoSuchUpload", 404, NotFound, 10, "upload-gone"),
    # who is asking
    ("GetObject", "ExpiredToken", 400, AccessDenied, 12, "credentials"),
    ("GetObject", "TokenRefreshRequired", 400, AccessDenied, 12, "credentials"),
    ("GetObject", "InvalidToken", 400, AccessDenied, 12, "credentials"),
    ("PutObject", "InvalidAccessKeyId", 403, AccessDenied, 12, "credentials"),
    ("PutObject", "SignatureDoesNotMatch", 403, AccessDenied, 12, "credentials"),
    ("GetObject", "RequestTimeTooSkewed", 403, AccessDenied, 12, "clock-skew"),
    ("GetObject", "RequestExpired", 400, AccessDenied, 12, "clock-skew"),
    # what they may do
    ("GetObject", "AccessDenied", 403, AccessDenied, 12, "denied"),
    ("HeadObject", "403", 403, AccessDenied, 12, "denied"),
    ("ListObjectsV2", "AccessDenied", 403, AccessDenied, 12, "denied"),
    ("ListMultipartUploads", "AccessDenied", 403, AccessDenied, 12, "denied"),
    ("PutObject", "AccessDenied", 403, AccessDenied, 12, "denied"),
    ("DeleteObject", "AccessDenied", 403, AccessDenied, 12, "denied"),
    ("GetObject", "Unauthorized", 401, AccessDenied, 12, "denied"),
    ("GetObject", "AuthorizationHeaderMalformed", 400, AccessDenied, 12, "region"),
    ("HeadObject", "301", 301, AccessDenied, 12, "region"),
    ("PutObject", "TemporaryRedirect", 307, AccessDenied, 12, "region"),
    # bytes
    *[
        (operation, code, 400, IntegrityError, 11, "checksum-refused")
        for operation in ("PutObject", "UploadPart", "CompleteMultipartUpload")
        for code in (
            "BadDigest", "InvalidDigest", "XAmzContentSHA256Mismatch",
            "XAmzContentChecksumMismatch", "InvalidPart", "InvalidPartOrder",
        )
    ],
    # conditions
    *[(operation, "PreconditionFailed", 412, AlreadyExists, 15, "exists") for operation in WRITES],
    *[(operation, "PreconditionFailed", 412, Changed, 11, "object-changed") for operation in READS],
    ("DeleteObject", "PreconditionFailed", 412, Changed, 11, "object-changed"),
    ("GetObject", "InvalidRange", 416, Changed, 11, "object-changed"),
    ("PutObject", "ConditionalRequestConflict", 409, Conflict, 15, "concurrent-write"),
    ("CompleteMultipartUpload", "ConditionalRequestConflict", 409, Conflict, 15, "concurrent-write"),
    # a store that is not well
    *[
        (operation, code, status, StoreUnavailable, 13, "store-busy")
        for operation in ("GetObject", "UploadPart")
        for code, status in (
            ("SlowDown", 503), ("ServiceUnavailable", 503), ("InternalError", 500),
            ("InternalError", 200), ("RequestTimeout", 400), ("Throttling", 400),
            ("ThrottlingException", 400), ("RequestLimitExceeded", 503),
            ("BandwidthLimitExceeded", 509), ("TooManyRequests", 429), ("429", 429), ("408", 408),
            ("500", 500), ("Unknown", 502), ("Unknown", 504),
        )
    ],
    # the rest
    ("PutObject", "NotImplemented", 501, StagingError, 1, "request"),
    ("PutObject", "InvalidArgument", 400, StagingError, 1, "request"),
    ("CompleteMultipartUpload", "EntityTooSmall", 400, StagingError, 1, "request"),
    ("PutObject", "MethodNotAllowed", 405, StagingError, 1, "request"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("operation", "code", "status", "kind", "exit_code", "reference"),
    TABLE,
    ids=[f"{row[0]}-{row[1]}-{row[2]}" for row in TABLE],
)
def test_every_code_has_its_class_and_reference(
    operation: str, code: str, status: int, kind: type[StagingError], exit_code: int, reference: str
) -> None:
    error = error_of(operation, code, status)
    assert type(error) is kind
    assert (error.code, error.reference) == (exit_code, reference)
    assert error.side == ("local" if reference == "clock-skew" else "store")
    if kind in (AccessDenied, Conflict, Changed, IntegrityError, StoreUnavailable):
        assert error.hint


@pytest.mark.parametrize(
    ("cause", "kind", "exit_code", "reference"),
    [
        ("connection", StoreUnavailable, 13, "connection"),
        ("credentials", AccessDenied, 12, "credentials"),
        ("configuration", UsageError, 2, "connection-settings"),
        ("request", StagingError, 1, "request"),
    ],
)
def test_requests_without_an_answer(
    cause: Cause, kind: type[StagingError], exit_code: int, reference: str
) -> None:
    error = error_of("GetObject", "SomeError", cause=cause)
    assert type(error) is kind
    assert (error.code, error.reference) == (exit_code, reference)
    assert error.side == (None if kind is UsageError else "store")
    assert error.hint
    assert "said the store" in error.message
    assert "s3://bucket/m/a" in error.message


@pytest.mark.parametrize(
    ("code", "status"),
    [("InvalidIdentityToken", 400), ("ExpiredTokenException", 400), ("AccessDenied", 403)],
)
def test_a_role_that_may_not_be_assumed_is_about_credentials(code: str, status: int) -> None:
    error = error_of("AssumeRoleWithWebIdentity", code, status, cause="credentials")
    assert type(error) is AccessDenied
    assert (error.code, error.reference) == (12, "credentials")
    assert f"AssumeRoleWithWebIdentity was refused: {code}" in error.message
    assert error.hint
    assert "annotation" in error.hint
    assert "trust policy names this namespace" in error.hint


@pytest.mark.parametrize(("code", "status"), [("Throttling", 400), ("InternalFailure", 500)])
def test_a_service_for_credentials_that_is_not_well_is_asked_again(code: str, status: int) -> None:
    error = error_of("AssumeRoleWithWebIdentity", code, status, cause="credentials")
    assert (error.code, error.reference) == (13, "store-busy")


def test_a_missing_address_is_no_missing_object() -> None:
    error = error_of("ListObjectsV2", "404", 404)
    assert "there is no object" not in error.message
    assert error.hint
    assert "--endpoint-url" in error.hint


@pytest.mark.parametrize(
    ("operation", "permission"),
    [
        ("GetObject", "s3:GetObject"),
        ("HeadObject", "s3:GetObject"),
        ("ListObjectsV2", "s3:ListBucket"),
        ("ListMultipartUploads", "s3:ListBucketMultipartUploads"),
        ("PutObject", "s3:PutObject"),
        ("UploadPart", "s3:PutObject"),
        ("AbortMultipartUpload", "s3:AbortMultipartUpload"),
        ("DeleteObject", "s3:DeleteObject"),
    ],
)
def test_a_denied_request_names_the_permission_it_needs(operation: str, permission: str) -> None:
    hint = error_of(operation, "AccessDenied", 403).hint
    assert hint
    assert permission in hint.replace(",", " ").split()


@pytest.mark.parametrize("operation", [*READS, "ListObjectsV2", *WRITES])
def test_only_of_a_single_object_a_refusal_may_hide_that_it_is_missing(operation: str) -> None:
    hides = "(missing, or denied)" in error_of(operation, "AccessDenied", 403).message
    assert hides == (operation in READS)


@pytest.mark.parametrize(
    ("skew", "said"),
    [(1234.0, " by 21 minutes"), (-3600.0, " by 60 minutes"), (None, "the store's")],
)
def test_a_wrong_clock_comes_with_the_minutes(skew: float | None, said: str) -> None:
    message = error_of("GetObject", "RequestTimeTooSkewed", 403, skew=skew).message
    assert message.endswith(said)


def test_messages_say_what_failed_and_where() -> None:
    assert error_of("PutObject", "InvalidArgument", 400).message == (
        "PutObject s3://bucket/m/a: InvalidArgument: said the store"
    )
    assert error_of("PutObject", "503", 503, message="").message == "PutObject s3://bucket/m/a: 503"
    assert error_of("PutObject", "503", 503, message="503").message.count("503") == 1
    listing = error_of("ListObjectsV2", "AccessDenied", 403, key=None)
    assert listing.message.startswith("ListObjectsV2 s3://bucket/: ")
