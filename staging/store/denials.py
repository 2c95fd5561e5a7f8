"""Why a store said no: what a 401 or 403 means, and which setting a store does not take.

S3 names the permission only to callers of the bucket's own account; to others, and to every HEAD, it says
"Access Denied" and nothing else. Then the hint lists what else it may be, given the settings in use.
"""

from __future__ import annotations

import re
from typing import Final

from staging.store.settings import S3Settings
from staging.vocabulary.errors import AccessDenied, StagingError, UsageError
from staging.wire.wire import WireError

_ACTION: Final = re.compile(r"not authorized to perform: ([a-z0-9-]+:[A-Za-z]+)")
_EXPLICIT: Final = re.compile(r"with an explicit deny in an? ([A-Za-z -]+? (?:policy|boundary))")
_KEY_GONE: Final = "ciphertext refers to"  # "... a customer master key that does not exist"

_NEEDS: Final = {
    "read": "the role needs s3:GetObject and s3:ListBucket, and kms:Decrypt where the bucket uses a"
    " KMS key; in a pod also check the service account's role annotation and the namespace in"
    " the role's trust policy",
    "write": "the role needs s3:PutObject and s3:AbortMultipartUpload, and kms:GenerateDataKey and"
    " kms:Decrypt where the bucket uses a KMS key",
    "delete": "the role needs s3:DeleteObject",
    "list-uploads": "the role needs s3:ListBucketMultipartUploads",
    "list-parts": "the role needs s3:ListMultipartUploadParts",
    "bucket": "the role may not see this setting of the bucket; nothing here needs it",
}
"""What a request needs, by its kind."""

_KMS_HINTS: Final = {
    "KMS.NotFoundException": "there is no such key in the bucket's region: give the key's whole ARN, and"
    " one of the region the bucket is in",
    "KMS.DisabledException": "the KMS key is disabled: have it enabled, or give another one with"
    " --kms-key-id",
    "KMS.KMSInvalidStateException": "the KMS key cannot be used as it is, most often because it is to be"
    " deleted: have that cancelled, or give another one with --kms-key-id",
}
_KMS_HINT: Final = (
    "the role needs kms:GenerateDataKey and kms:Decrypt to write and kms:Decrypt to read, in its own policy"
    " and, for a key of another account, in the key's policy too"
)

_NOT_TAKEN: Final = frozenset(
    {"InvalidArgument", "InvalidRequest", "NotImplemented", "XNotImplemented", "NotSupported"}
)
"""How stores say that they do not know a header, or its value."""

_SENDS: Final = frozenset(
    {
        "PutObject",
        "CreateMultipartUpload",
        "UploadPart",
        "CompleteMultipartUpload",
        "HeadObject",
    }
)
_CREATES: Final = frozenset({"PutObject", "CreateMultipartUpload"})


def denied_action(message: str) -> str | None:
    """The permission that a refusal names, such as `kms:Decrypt`, if it names one."""
    found = _ACTION.search(message)
    return found[1] if found else None


def denied(error: WireError, what: str, kind: str, settings: S3Settings) -> AccessDenied:
    """The error for a 401 or 403; `what` says what failed, `kind` is the kind of request."""
    action = denied_action(error.message)
    if (action is not None and action.startswith("kms:")) or _KEY_GONE in error.message:
        return kms_refused(error, what)
    explicit = _EXPLICIT.search(error.message)
    if action == "s3:PutObjectTagging":
        hint = "the role needs s3:PutObjectTagging, or leave --tag out"
    elif explicit:
        hint = f"a {explicit[1]} denies it, whatever else is allowed: ask for its conditions"
        if kind == "write":
            hint += "; often they want --sse, --kms-key-id, --tag, or --sign-payload"
    elif action:
        hint = f"the role needs {action}"
    else:
        hint = _NEEDS[kind] + _what_else(kind, settings)
    return AccessDenied(what, reference="denied", hint=hint, side="store")


def kms_refused(error: WireError, what: str) -> AccessDenied:
    """The error for a key that is not there, cannot be used, or may not be."""
    hint = _KMS_HINTS.get(error.code, _KMS_HINT)
    return AccessDenied(what, reference="kms-key", hint=hint, side="store")


def setting_refused(error: WireError, what: str, settings: S3Settings) -> StagingError | None:
    """The error for a setting, or a header of ours, that the store does not take. None for others."""
    code = error.code
    if code == "InvalidStorageClass":
        return UsageError(
            what,
            reference="storage-class",
            hint="this store has no such class: give one of its own, or leave --storage-class out",
            side="store",
        )
    if code == "InvalidTag":
        return UsageError(what, reference="tags", hint="check the --tag options", side="store")
    if code == "InvalidEncryptionAlgorithmError":
        return UsageError(
            what,
            reference="encryption",
            hint="this store has no such encryption: give another --sse, or leave it to the bucket",
            side="store",
        )
    if code == "InvalidBucketOwnerAWSAccountID":
        return UsageError(
            what,
            reference="expected-owner",
            hint="give --expected-bucket-owner the 12 digits of the account that owns the bucket",
            side="store",
        )
    if code == "MissingContentLength" or error.status == 411:
        return StagingError(
            what,
            reference="length-required",
            hint="something between here and the store drops the length of bodies, most often a proxy:"
            " give --endpoint-url the store's own address, or check NO_PROXY",
            side="store",
        )
    if (code in _NOT_TAKEN or error.status == 501) and error.operation in _SENDS:
        return _not_taken(error, what, settings)
    return None


def _not_taken(error: WireError, what: str, settings: S3Settings) -> StagingError | None:
    said = error.message.casefold()
    if "checksum" in said or "crc64" in said:
        return StagingError(
            what,
            reference="checksum-unsupported",
            hint="this store does not take CRC64NVME checksums of whole objects, which are what proves an"
            " upload: use a newer version of it, or another store; `staging doctor --write-test`"
            " tells what a store takes",
            side="store",
        )
    given = settings.describe_creation()
    if given and error.operation in _CREATES:
        return UsageError(
            what,
            reference="store-settings",
            hint=f"the store may not take what is set here: {given}; try again with fewer of them",
            side="store",
        )
    return None


def _what_else(kind: str, settings: S3Settings) -> str:
    """What a refusal without a reason may be about besides permissions."""
    if kind == "bucket":
        return ""
    also = []
    if settings.expected_owner is not None:
        also.append(
            f"that the bucket belongs to the account {settings.expected_owner}"
            " (--expected-bucket-owner): if not, S3 refuses everything"
        )
    if kind == "write":
        also.append("whether the bucket's policy wants --sse, --kms-key-id or --sign-payload")
    if not settings.requester_pays:
        also.append("whether it is another account's and requester pays (--request-payer)")
    return f", and check {', and '.join(also)}" if also else ""
