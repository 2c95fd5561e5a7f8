"""Why a store said no: what a 401 or 403 means, and which setting a store does not take.

S3 names the permission only to callers of the bucket's own account; to others, and to every HEAD, it says
"Access Denied" and nothing else. Then the hint lists what else it may be, given the settings in use. The
statement that a policy lacks is a note of the error: one line of JSON, to be pasted.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Final, Self

from staging.store.settings import S3Settings
from staging.vocabulary.errors import AccessDenied, StagingError, UsageError
from staging.wire.wire import WireError

_ACTION: Final = re.compile(r"not authorized to perform: ([a-z0-9-]+:[A-Za-z]+)")
_PRINCIPAL: Final = re.compile(r"User: (arn:\S+) is not authorized")
_RESOURCE: Final = re.compile(r"on resource: (?:\"([^\"]+)\"|(arn:\S+))")
_EXPLICIT: Final = re.compile(r"with an explicit deny in an? ([A-Za-z -]+? (?:policy|boundary))")
_LACK: Final = re.compile(r"because no ([A-Za-z -]+? (?:policy|boundary)) allows")
_ASSUMED: Final = re.compile(r"arn:([a-z-]+):sts::(\d{12}):assumed-role/([^/]+)/.*")
_KEY_GONE: Final = "ciphertext refers to"  # "... a customer master key that does not exist"

_ACTIONS: Final = {
    "GetObject": "s3:GetObject",
    "HeadObject": "s3:GetObject",
    "ListObjectsV2": "s3:ListBucket",
    "HeadBucket": "s3:ListBucket",
    "PutObject": "s3:PutObject",
    "CreateMultipartUpload": "s3:PutObject",
    "UploadPart": "s3:PutObject",
    "CompleteMultipartUpload": "s3:PutObject",
    "AbortMultipartUpload": "s3:AbortMultipartUpload",
    "DeleteObject": "s3:DeleteObject",
    "ListMultipartUploads": "s3:ListBucketMultipartUploads",
    "ListParts": "s3:ListMultipartUploadParts",
}
"""The permission that an operation needs, as IAM names it."""

_IN_A_POD: Final = (
    "; in a pod also check the service account's role annotation and the namespace in the role's trust"
    " policy"
)
_BESIDES: Final = {
    "read": f", and kms:Decrypt where the bucket uses a KMS key{_IN_A_POD}",
    "list": _IN_A_POD,
    "write": ", s3:AbortMultipartUpload, and kms:GenerateDataKey and kms:Decrypt where the bucket uses a KMS"
    " key",
}
"""What else is worth a look when a store does not say what is missing, by the kind of request."""

_DENIERS: Final = {
    "service control policy": "it is the organization's: ask who runs it",
    "resource control policy": "it is the organization's: ask who runs it",
    "VPC endpoint policy": "it belongs to the VPC's endpoint for the service, which whoever runs the network"
    " can change",
    "resource-based policy": "it is the policy of the bucket, or of the key",
    "permissions boundary": "it is set on the role itself",
    "session policy": "it came with the session: see how the credentials are made",
}
"""Whose the policies are that deny, or do not allow."""

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


@dataclass(frozen=True, slots=True)
class Refusal:
    """What a refusal says: who wanted to do what with what, and which policy was against it.

    `explicit` is the kind of policy that denies, `lack` the one that does not allow; None is what the store
    did not say.
    """

    principal: str | None
    action: str | None
    resource: str | None
    explicit: str | None
    lack: str | None

    @classmethod
    def read(cls, message: str) -> Self:
        """Read a store's message."""
        resource = _RESOURCE.search(message)
        return cls(
            _found(_PRINCIPAL, message),
            _found(_ACTION, message),
            None if resource is None else resource[1] or resource[2],
            _found(_EXPLICIT, message),
            _found(_LACK, message),
        )

    @property
    def partition(self) -> str:
        """The part of AWS this is about, as ARNs name it."""
        for arn in (self.principal, self.resource):
            if arn is not None and arn.startswith("arn:"):
                return arn.split(":")[1]
        return "aws"

    @property
    def role(self) -> str | None:
        """The ARN of the role or user, for the policy of a bucket or key. A role's path is not known."""
        if self.principal is None:
            return None
        assumed = _ASSUMED.fullmatch(self.principal)
        return (
            f"arn:{assumed[1]}:iam::{assumed[2]}:role/{assumed[3]}" if assumed else self.principal
        )


def denied_action(message: str) -> str | None:
    """The permission that a refusal names, such as `kms:Decrypt`, if it names one."""
    return _found(_ACTION, message)


def gives_no_reason(error: StagingError) -> bool:
    """Whether it is a refusal to read with which the store named no permission.

    To who may not list, that is what S3 says of objects that do not exist.
    """
    cause = error.__cause__
    return (
        isinstance(error, AccessDenied)
        and error.reference == "denied"
        and isinstance(cause, WireError)
        and _reads(cause)
        and denied_action(cause.message) is None
    )


def denied(
    error: WireError, what: str, kind: str, settings: S3Settings, bucket: str
) -> AccessDenied:
    """The error for a 401 or 403; `what` says what failed, `kind` is the kind of request."""
    refusal = Refusal.read(error.message)
    told = refusal.action
    if (told is not None and told.startswith("kms:")) or _KEY_GONE in error.message:
        return kms_refused(error, what)
    action = told or _ACTIONS.get(error.operation)
    where = None if action is None else _arn(action, bucket, refusal.partition)
    needs = f"the role needs {action} on {where}"
    hidden = told is None and action == "s3:GetObject"  # maybe it is not there, and nobody may know
    listing = _arn("s3:ListBucket", bucket, refusal.partition)
    if hidden:
        needs = (
            f"there may be no such prefix or object: check the spelling; the role needs s3:ListBucket on"
            f" {listing}, or S3 does not tell what is missing from what is denied, and s3:GetObject on"
            f" {where}"
        )
    if action is None:
        hint = "the role may not see this setting of the bucket; nothing here needs it"
    elif refusal.explicit:
        hint = f"{_against(refusal.explicit, 'denies it, whatever else is allowed')}: ask for its conditions"
        if kind == "write":
            hint += "; often they want --sse, --kms-key-id, --tag, or --sign-payload"
    elif action == "s3:PutObjectTagging":
        hint = f"the role needs s3:PutObjectTagging, or leave --tag out: {needs}"
    elif told == "s3:ListBucket" and error.operation in ("GetObject", "HeadObject"):
        hint = f"most likely there is no such object: S3 tells that only to who may list; {needs}"
    elif refusal.lack and refusal.lack != "identity-based policy":
        hint = f"{needs}, and {_against(refusal.lack, 'does not allow it')}"
    elif told:
        hint = needs
    else:
        hint = needs + _BESIDES.get(kind, "") + _what_else(kind, settings)
    found = AccessDenied(what, reference="denied", hint=hint, side="store")
    if action is not None and where is not None and refusal.explicit is None:
        statement = (["s3:ListBucket", action], [listing, where]) if hidden else (action, where)
        found.add_note(_missing(refusal, *statement, of="bucket"))
    return found


def kms_refused(error: WireError, what: str) -> AccessDenied:
    """The error for a key that is not there, cannot be used, or may not be."""
    refusal = Refusal.read(error.message)
    hint = _KMS_HINTS.get(error.code)
    if hint is None and refusal.explicit is not None:
        hint = f"{_against(refusal.explicit, 'denies it, whatever else is allowed')}: ask for its conditions"
    elif hint is None and refusal.action is not None:
        where = "" if refusal.resource is None else f" on {refusal.resource}"
        hint = (
            f"the role needs {refusal.action}{where}, in its own policy and, for a key of another account,"
            " in the key's policy too"
        )
        if refusal.lack == "resource-based policy":
            hint += "; here the key's policy lacks it"
    found = AccessDenied(what, reference="kms-key", hint=hint or _KMS_HINT, side="store")
    if error.code not in _KMS_HINTS and refusal.explicit is None:
        action = refusal.action or ("kms:Decrypt" if _reads(error) else "kms:GenerateDataKey")
        resource = refusal.resource or "ARN-OF-THE-KEY"
        found.add_note(_missing(refusal, action, resource, of="key"))
    return found


def _missing(
    refusal: Refusal, action: str | list[str], resource: str | list[str], *, of: str
) -> str:
    """The statement that allows it, and where it belongs."""
    statement: dict[str, Any] = {"Effect": "Allow", "Action": action, "Resource": resource}
    if refusal.lack == "resource-based policy":
        place = f"the policy of the {of}"
        statement["Principal"] = {"AWS": refusal.role or "ARN-OF-THE-ROLE"}
        if of == "key":
            statement["Resource"] = "*"  # in a key's policy: this key
    elif refusal.lack == "VPC endpoint policy":
        place = "the policy of the VPC endpoint"
        statement["Principal"] = "*"
    else:
        own = refusal.lack in (None, "identity-based policy")
        place = "a policy of the role" if own else f"the {refusal.lack}"
    return f"to allow it: in {place} {json.dumps(statement, separators=(',', ':'))}"


def _arn(action: str, bucket: str, partition: str) -> str:
    """What a permission is given on: the bucket, or everything in it."""
    about_bucket = "Bucket" in action or "Configuration" in action
    return f"arn:{partition}:s3:::{bucket}" + ("" if about_bucket else "/*")


def _against(policy: str, does: str) -> str:
    whose = _DENIERS.get(policy)
    return f"{_article(policy)} {policy} {does}" + (f" ({whose})" if whose else "")


def _article(policy: str) -> str:
    return "an" if policy.startswith("identity") else "a"


def _reads(error: WireError) -> bool:
    return error.operation in ("GetObject", "HeadObject")


def _found(pattern: re.Pattern[str], message: str) -> str | None:
    found = pattern.search(message)
    return None if found is None else found[1]


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
