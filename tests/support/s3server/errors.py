"""Errors an S3 answers with: a status, a code, a sentence, and what some of them add."""

from __future__ import annotations

from collections.abc import Mapping


class S3Error(Exception):
    """Ends an operation with an XML error document."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        headers: Mapping[str, str] | None = None,
        details: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(f"{status} {code}: {message}")
        self.status = status
        self.code = code
        self.message = message
        self.headers = dict(headers or {})
        self.details = dict(details or {})


def access_denied(message: str = "Access Denied") -> S3Error:
    return S3Error(403, "AccessDenied", message)


def no_such_bucket(name: str) -> S3Error:
    return S3Error(
        404, "NoSuchBucket", "The specified bucket does not exist", details={"BucketName": name}
    )


def no_such_key(key: str) -> S3Error:
    return S3Error(404, "NoSuchKey", "The specified key does not exist.", details={"Key": key})


def no_such_upload(upload_id: str) -> S3Error:
    return S3Error(
        404,
        "NoSuchUpload",
        "The specified upload does not exist. The upload ID may be invalid, or the upload may have "
        "been aborted or completed.",
        details={"UploadId": upload_id},
    )


def precondition_failed(condition: str) -> S3Error:
    return S3Error(
        412,
        "PreconditionFailed",
        "At least one of the pre-conditions you specified did not hold",
        details={"Condition": condition},
    )


def invalid_argument(message: str) -> S3Error:
    return S3Error(400, "InvalidArgument", message)


def invalid_request(message: str) -> S3Error:
    return S3Error(400, "InvalidRequest", message)


def not_implemented(message: str) -> S3Error:
    return S3Error(501, "NotImplemented", message)
