"""Who may do what: known keys, signatures, the clock, the region, denied permissions.

All of it is off until configured, but for the clock and the list of signed headers: those are
checked on every signed request, since a request that fails there never reaches S3's operations.
"""

from __future__ import annotations

import calendar
import hashlib
import hmac
import re
import threading
import time
from collections.abc import Callable, Mapping
from urllib.parse import parse_qsl, quote, unquote

from tests.support.s3server.errors import S3Error, access_denied
from tests.support.s3server.http import Head
from tests.support.s3server.log import Request

MAX_SKEW_SECONDS = 15 * 60

PERMISSIONS = {
    "CreateBucket": "CreateBucket",
    "HeadBucket": "ListBucket",
    "GetBucketLocation": "GetBucketLocation",
    "ListObjectsV2": "ListBucket",
    "HeadObject": "GetObject",
    "GetObject": "GetObject",
    "PutObject": "PutObject",
    "DeleteObject": "DeleteObject",
    "DeleteObjects": "DeleteObject",
    "CreateMultipartUpload": "PutObject",
    "UploadPart": "PutObject",
    "CompleteMultipartUpload": "PutObject",
    "ListParts": "ListMultipartUploadParts",
    "ListMultipartUploads": "ListBucketMultipartUploads",
    "AbortMultipartUpload": "AbortMultipartUpload",
    "GetBucketVersioning": "GetBucketVersioning",
    "GetBucketEncryption": "GetEncryptionConfiguration",
    "GetBucketLifecycleConfiguration": "GetLifecycleConfiguration",
    "GetObjectLockConfiguration": "GetBucketObjectLockConfiguration",
    "GetBucketPolicyStatus": "GetBucketPolicyStatus",
}
"""The permission of each operation, as IAM names it."""

BESIDES = frozenset({"PutObjectTagging", "kms:GenerateDataKey", "kms:Decrypt"})
"""What some requests need on top: those with tags, and those on objects under a KMS key."""


class Access:
    """The rules of a server. `credentials` maps access key ids to secrets, None lets anybody in."""

    def __init__(
        self,
        *,
        credentials: Mapping[str, str] | None,
        region: str | None,
        clock: Callable[[], float],
    ) -> None:
        self.credentials = None if credentials is None else dict(credentials)
        self.region = region
        self._clock = clock
        self._lock = threading.Lock()
        self._denied: set[tuple[str, str | None]] = set()

    def deny(self, permission: str, access_key: str | None) -> None:
        if permission not in {*PERMISSIONS.values(), *BESIDES}:
            raise ValueError(f"no such permission: {permission}")
        with self._lock:
            self._denied.add((permission, access_key))

    def allow(self, permission: str, access_key: str | None) -> None:
        with self._lock:
            self._denied.discard((permission, access_key))

    def allows(self, permission: str, access_key: str | None) -> bool:
        with self._lock:
            return not {(permission, None), (permission, access_key)} & self._denied

    def check(self, request: Request, head: Head) -> None:
        """Raises S3Error unless the request may be executed."""
        if self.region is not None and request.region not in (None, self.region):
            raise S3Error(
                400,
                "AuthorizationHeaderMalformed",
                f"The authorization header is malformed; the region '{request.region}' is wrong; "
                f"expecting '{self.region}'",
                headers={"x-amz-bucket-region": self.region},
                details={"Region": self.region},
            )
        if request.access_key is None:
            if self.credentials is not None:
                raise access_denied()
        else:
            self._check_signer(request, head)
        permission = PERMISSIONS.get(request.operation)
        if permission is not None:
            self.require(permission, request)

    def require(self, permission: str, request: Request) -> None:
        """Raises S3Error unless whoever signed the request has the permission."""
        if not self.allows(permission, request.access_key):
            action = permission if ":" in permission else f"s3:{permission}"
            raise access_denied(
                f"User: arn:aws:iam::000000000000:user/{request.access_key} is not authorized to "
                f"perform: {action}"
            )

    def _check_signer(self, request: Request, head: Head) -> None:
        assert request.access_key is not None
        if self.credentials is not None and request.access_key not in self.credentials:
            raise S3Error(
                403,
                "InvalidAccessKeyId",
                "The AWS Access Key Id you provided does not exist in our records.",
                details={"AWSAccessKeyId": request.access_key},
            )
        presigned = "X-Amz-Signature" in request.query
        said = request.query["X-Amz-Date"] if presigned else request.headers.get("x-amz-date", "")
        self._check_time(said, int(request.query["X-Amz-Expires"]) if presigned else None)
        if presigned:
            names = request.query["X-Amz-SignedHeaders"].split(";")
            signature = request.query["X-Amz-Signature"]
        else:
            names = _authorization_field(head, "SignedHeaders").split(";")
            signature = _authorization_field(head, "Signature")
            self._check_signed_headers(head, names)
        if self.credentials is not None:
            secret = self.credentials[request.access_key]
            if not hmac.compare_digest(signature, _signature(secret, head, request, names, said)):
                raise S3Error(
                    403,
                    "SignatureDoesNotMatch",
                    "The request signature we calculated does not match the signature you provided. "
                    "Check your key and signing method.",
                )

    def _check_time(self, said: str, expires: int | None) -> None:
        try:
            then = calendar.timegm(time.strptime(said, "%Y%m%dT%H%M%SZ"))
        except ValueError:
            raise access_denied(
                "AWS authentication requires a valid Date or x-amz-date header"
            ) from None
        now = self._clock()
        if expires is not None and then - MAX_SKEW_SECONDS <= now:
            if now > then + expires:
                raise access_denied("Request has expired")
            return
        if abs(now - then) > MAX_SKEW_SECONDS:
            raise S3Error(
                403,
                "RequestTimeTooSkewed",
                "The difference between the request time and the current time is too large.",
                details={
                    "RequestTime": said,
                    "ServerTime": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now)),
                    "MaxAllowedSkewMilliseconds": str(MAX_SKEW_SECONDS * 1000),
                },
            )

    def _check_signed_headers(self, head: Head, names: list[str]) -> None:
        unsigned = sorted(
            name for name in head.headers if name.startswith("x-amz-") and name not in names
        )
        if "host" not in names or unsigned:
            raise S3Error(
                403,
                "AccessDenied",
                "There were headers present in the request which were not signed",
                details={"HeadersNotSigned": ", ".join(unsigned or ["host"])},
            )


def _authorization_field(head: Head, name: str) -> str:
    match = re.search(rf"{name}=([^, ]+)", head.headers.get("authorization", ""))
    if match is None:
        raise S3Error(
            400, "AuthorizationHeaderMalformed", f"The authorization header lacks {name}."
        )
    return match[1]


def _signature(secret: str, head: Head, request: Request, names: list[str], timestamp: str) -> str:
    """Signature version 4 of the request as it came in, computed with our copy of the secret."""
    path, _, raw_query = head.target.partition("?")
    pairs = sorted(
        (quote(name, safe="-_.~"), quote(value, safe="-_.~"))
        for name, value in parse_qsl(raw_query, keep_blank_values=True)
        if name != "X-Amz-Signature"
    )
    canonical = "\n".join(
        [
            head.method,
            quote(unquote(path), safe="/-_.~"),
            "&".join(f"{name}={value}" for name, value in pairs),
            *(f"{name}:{' '.join(head.headers.get(name, '').split())}" for name in names),
            "",
            ";".join(names),
            head.headers.get("x-amz-content-sha256", "UNSIGNED-PAYLOAD"),
        ]
    )
    date, region = timestamp[:8], request.region or ""
    key = f"AWS4{secret}".encode()
    for step in (date, region, "s3", "aws4_request"):
        key = hmac.digest(key, step.encode(), "sha256")
    to_sign = "\n".join(
        [
            "AWS4-HMAC-SHA256",
            timestamp,
            f"{date}/{region}/s3/aws4_request",
            hashlib.sha256(canonical.encode()).hexdigest(),
        ]
    )
    return hmac.digest(key, to_sign.encode(), "sha256").hex()
