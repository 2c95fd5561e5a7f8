"""What an S3 error means for a person: the class, the reference and the hint for each code.

Stores disagree on codes; what is not in the tables is decided by the HTTP status.
"""

from __future__ import annotations

from typing import Final

from staging.store.denials import denied, denied_action, kms_refused, setting_refused
from staging.store.settings import NO_SETTINGS, S3Settings
from staging.store.store import AlreadyExists, Changed
from staging.vocabulary.errors import (
    AccessDenied,
    Conflict,
    IntegrityError,
    NotFound,
    StagingError,
    Stalled,
    StoreUnavailable,
    UsageError,
)
from staging.wire.wire import WireError

_CREDENTIAL_CODES: Final = {
    "ExpiredToken": "the credentials have expired; get new ones and run again",
    "TokenRefreshRequired": "the credentials have expired; get new ones and run again",
    "InvalidAccessKeyId": "the access key does not exist at this store; check --profile and the"
    " AWS_* variables",
    "InvalidToken": "the session token does not belong to the access key; check the AWS_* variables",
    "SignatureDoesNotMatch": "the secret key does not belong to the access key; check the AWS_*"
    " variables",
}
_CHECKSUM_CODES: Final = {
    "BadDigest",
    "InvalidDigest",
    "XAmzContentSHA256Mismatch",
    "XAmzContentChecksumMismatch",
    "InvalidPart",
    "InvalidPartOrder",
}
_BUSY_CODES: Final = {
    "SlowDown",
    "ServiceUnavailable",
    "InternalError",
    "RequestTimeout",
    "ThrottlingException",
    "Throttling",
    "RequestLimitExceeded",
    "TooManyRequests",
    "BandwidthLimitExceeded",
}
_REQUEST_HINT: Final = (
    "the store understood the request otherwise: check --endpoint-url and that it speaks S3; `staging"
    " doctor --write-test` tells what a store takes"
)
_KINDS: Final = {
    "HeadObject": "read",
    "GetObject": "read",
    "ListObjectsV2": "list",
    "DeleteObject": "delete",
    "ListMultipartUploads": "list-uploads",
    "ListParts": "list-parts",
    "HeadBucket": "read",
    "GetBucketLocation": "bucket",
    "GetBucketVersioning": "bucket",
    "GetBucketEncryption": "bucket",
    "GetBucketLifecycleConfiguration": "bucket",
    "GetBucketPolicyStatus": "bucket",
    "GetObjectLockConfiguration": "bucket",
}
_BESIDE_A_KEY: Final = {
    "HeadBucket",
    "GetBucketLocation",
    "ListObjectsV2",
    "ListMultipartUploads",
    "CreateMultipartUpload",
    "PutObject",
}
"""Operations that need no object to be there: for them 404 is about the bucket or the address."""


def translate(
    error: WireError, bucket: str, key: str | None, settings: S3Settings = NO_SETTINGS
) -> StagingError:
    """The error to raise for a failed request on `key` (or a listing of it) in `bucket`.

    `settings` are those that were on the request.
    """
    place = f"s3://{bucket}/{key or ''}"
    what = f"{error.operation} {place}: {error.code}"
    if error.message and error.message != error.code:
        what += f": {error.message}"
    kind = _KINDS.get(error.operation, "write")
    if error.cause == "credentials" and error.status is not None:
        if _is_busy(error):
            return _busy(what)
        return AccessDenied(
            f"no credentials for {place}: {error.operation} was refused:"
            f" {error.code}: {error.message}",
            reference="credentials",
            hint="in a pod check the service account's role annotation, that the role's trust policy"
            " names this namespace and service account, and that the token file is fresh",
            side="store",
        )
    if error.cause == "credentials":
        return AccessDenied(
            f"no usable credentials for {place}: {error.message}",
            reference="credentials",
            hint="set AWS_PROFILE or --profile, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; in a"
            " pod check the service account's role annotation",
            side="store",
        )
    if error.cause == "connection":
        return StoreUnavailable(
            what,
            reference="connection",
            hint="check --endpoint-url, the network, proxies and --ca-bundle, then run again",
            side="store",
        )
    if error.cause == "stalled":
        return Stalled(
            what,
            reference="stalled",
            hint="the connection was there, but next to nothing came through: run again, and check the"
            " network and proxies if it repeats",
            side="store",
        )
    if error.cause == "configuration":
        return UsageError(
            what,
            reference="connection-settings",
            hint="check --region, --endpoint-url, the bucket's name and the AWS_* variables",
        )
    if error.cause == "request":
        return StagingError(what, reference="request", hint=_REQUEST_HINT, side="store")
    refused = setting_refused(error, what, settings)
    return refused or _answer(error, bucket, place, what, kind, settings)


def _answer(
    error: WireError, bucket: str, place: str, what: str, kind: str, settings: S3Settings
) -> StagingError:
    code = error.code
    if code == "NoSuchBucket":
        return NotFound(
            f"there is no bucket {bucket!r}",
            reference="bucket",
            hint="check the spelling, --endpoint-url and the account of the credentials",
            side="store",
        )
    if code == "NoSuchUpload":
        return NotFound(what, reference="upload-gone", side="store")
    if code in ("RequestTimeTooSkewed", "RequestExpired"):
        skew = error.server_time_skew
        minutes = f" by {abs(skew) / 60:.0f} minutes" if skew is not None else ""
        return AccessDenied(
            f"this machine's clock differs from the store's{minutes}",
            reference="clock-skew",
            hint="set the clock (for example `chronyc makestep`) and run again",
            side="local",
        )
    if code in _CREDENTIAL_CODES:
        return AccessDenied(
            what, reference="credentials", hint=_CREDENTIAL_CODES[code], side="store"
        )
    if code == "InvalidObjectState":
        return AccessDenied(
            what,
            reference="archived",
            hint="the object is in an archive tier: restore it, and keep checkpoints in a tier that"
            " can be read at once",
            side="store",
        )
    if code.startswith("KMS."):
        return kms_refused(error, what)
    if code == "400" and error.operation == "HeadObject":
        return AccessDenied(
            f"{what} (S3 gives no reason to a HEAD)",
            reference="credentials",
            hint="most often the credentials have expired: get new ones and run again; a store that"
            " does not know checksums of whole objects may answer so as well",
            side="store",
        )
    if code in _CHECKSUM_CODES:
        return IntegrityError(
            what,
            reference="checksum-refused",
            hint="bytes changed between here and the store; run again, and check this machine's"
            " memory if it repeats",
            side="store",
        )
    if code == "ConditionalRequestConflict":
        return Conflict(
            what,
            reference="concurrent-write",
            hint="another writer is at work on this key; see who, then run again",
            side="store",
        )
    if _is_busy(error):
        return _busy(what)
    return _by_status(error, bucket, place, what, kind, settings)


def _is_busy(error: WireError) -> bool:
    status = error.status or 0
    return error.code in _BUSY_CODES or status in (408, 429) or (status >= 500 and status != 501)


def _busy(what: str) -> StoreUnavailable:
    return StoreUnavailable(
        what, reference="store-busy", hint="run again in a few minutes", side="store"
    )


def _by_status(
    error: WireError, bucket: str, place: str, what: str, kind: str, settings: S3Settings
) -> StagingError:
    status = error.status
    if status == 404 and error.operation in _BESIDE_A_KEY:
        return NotFound(
            f"the store knows no bucket {bucket!r}, or is none: {what}",
            reference="bucket",
            hint="check the spelling, and that --endpoint-url is the address of an S3 store",
            side="store",
        )
    if status == 404:
        return NotFound(f"there is no object {place}", reference="object", side="store")
    if status in (401, 403):
        # Who may not list is refused for an object that is not there; a permission that S3 names is one.
        hidden = error.operation in ("GetObject", "HeadObject")
        named = denied_action(error.message) not in (None, "s3:ListBucket")
        told = f"{what} (missing, or denied)" if hidden and not named else what
        return denied(error, told, kind, settings, bucket)
    if status == 412 and kind == "write":
        return AlreadyExists(
            f"there is already an object {place}", reference="exists", side="store"
        )
    if status in (412, 416):
        return Changed(
            f"{place} is not the version it was",
            reference="object-changed",
            hint="nothing may rewrite a published object; see who did, then run again",
            side="store",
        )
    if status in (301, 307) or error.code == "AuthorizationHeaderMalformed":
        return AccessDenied(
            what,
            reference="region",
            hint="the bucket is in another region: give --region",
            side="store",
        )
    return StagingError(what, reference="request", hint=_REQUEST_HINT, side="store")
