"""How a bucket's owner wants it to be used: encryption, storage class, tags, and who pays.

Invariants: settings that S3 would refuse, or that would leave a checkpoint unreadable, are refused here,
before any request; `expected_owner` and `requester_pays` are on every request, the rest on those that
create an object, parts inherit it.

Not guaranteed: that a store which answers 200 heeded them. S3 does; others ignore what they do not know.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, Literal, get_args
from urllib.parse import quote, urlencode

from staging.vocabulary.errors import UsageError
from staging.vocabulary.redaction import one_line

Encryption = Literal["AES256", "aws:kms", "aws:kms:dsse"]
"""Server-side encryption as S3 names it: S3's own keys, a KMS key, a KMS key in two layers."""

ENCRYPTIONS: Final[tuple[Encryption, ...]] = get_args(Encryption)

_CREATES: Final = frozenset({"PutObject", "CreateMultipartUpload"})

_ARCHIVES: Final = frozenset({"GLACIER", "DEEP_ARCHIVE"})
"""Classes whose objects have to be restored, for hours, before anybody can read them."""

_ELSEWHERE: Final = frozenset({"EXPRESS_ONEZONE", "OUTPOSTS", "SNOW"})
"""Classes of other kinds of buckets."""

_STORAGE_CLASS: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")  # stores have names of their own
_KMS_KEY: Final = re.compile(r"[\x21-\x7e]{1,2048}")
_KMS_ARN: Final = re.compile(r"arn:aws[a-z-]*:kms:[a-z0-9-]+:\d{12}:(key|alias)/.+")
_ACCOUNT: Final = re.compile(r"\d{12}")

_MAX_TAGS: Final = 10
_MAX_TAG_KEY: Final = 128  # characters
_MAX_TAG_VALUE: Final = 256  # characters
_TAG_MARKS: Final = frozenset("_.:/=+-@")


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Settings:
    """What goes on requests besides their purpose. None and nothing leave it to the bucket.

    `kms_key_id` is a key's id, ARN or alias, and belongs to one of the two KMS encryptions; `bucket_key`
    belongs to `aws:kms`. `expected_owner` is the id of the account that must own the bucket, or S3
    refuses every request. Raises UsageError for what cannot be.
    """

    sse: Encryption | None = None
    kms_key_id: str | None = None
    bucket_key: bool | None = None
    storage_class: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    expected_owner: str | None = None
    requester_pays: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "tags", MappingProxyType(dict(self.tags)))
        _check_encryption(self.sse, self.kms_key_id, self.bucket_key)
        _check_storage_class(self.storage_class)
        _check_tags(self.tags)
        if self.expected_owner is not None and not _ACCOUNT.fullmatch(self.expected_owner):
            raise UsageError(
                f"no account id: {one_line(self.expected_owner)[:100]!r}",
                reference="expected-owner",
                hint="give the 12 digits of the account that owns the bucket, without dashes",
            )

    @property
    def uses_kms(self) -> bool:
        """True when objects are to be encrypted with a KMS key, whatever the bucket's default is."""
        return self.sse in ("aws:kms", "aws:kms:dsse")

    def parameters(self, operation: str) -> dict[str, Any]:
        """What these settings add to an S3 operation, under the names of the API."""
        found = {
            **self._of_owner(),
            **({"RequestPayer": "requester"} if self.requester_pays else {}),
        }
        return {**found, **self._of_creation()} if operation in _CREATES else found

    def bucket_parameters(self) -> dict[str, Any]:
        """What these settings add to an operation on the bucket itself, for which nobody pays."""
        return self._of_owner()

    def _of_owner(self) -> dict[str, Any]:
        return {"ExpectedBucketOwner": self.expected_owner} if self.expected_owner else {}

    def _of_creation(self) -> dict[str, Any]:
        values = {
            "ServerSideEncryption": self.sse,
            "SSEKMSKeyId": self.kms_key_id,
            "BucketKeyEnabled": self.bucket_key,
            "StorageClass": self.storage_class,
            "Tagging": urlencode(self.tags, quote_via=quote, safe="") or None,
        }
        return {name: value for name, value in values.items() if value is not None}

    def describe_creation(self) -> str:
        """The options that are on what creates an object, as somebody would type them."""
        options = {
            "--sse": self.sse,
            "--kms-key-id": self.kms_key_id,
            "--bucket-key": None if self.bucket_key is None else "on" if self.bucket_key else "off",
            "--storage-class": self.storage_class,
        }
        words = [f"{name} {value}" for name, value in options.items() if value is not None]
        return ", ".join([*words, *(["--tag"] if self.tags else [])])


def _check_encryption(
    sse: Encryption | None, kms_key_id: str | None, bucket_key: bool | None
) -> None:
    if sse is not None and sse not in ENCRYPTIONS:
        raise UsageError(
            f"no server-side encryption of S3: {one_line(str(sse))[:100]!r}",
            reference="encryption",
            hint=f"one of {', '.join(ENCRYPTIONS)}",
        )
    if kms_key_id is not None and sse not in ("aws:kms", "aws:kms:dsse"):
        raise UsageError(
            "a KMS key is given, but the encryption is not one that uses it",
            reference="encryption",
            hint="add --sse aws:kms",
        )
    if bucket_key is not None and sse != "aws:kms":
        raise UsageError(
            "a bucket key is a setting of the encryption aws:kms alone",
            reference="encryption",
            hint="add --sse aws:kms, or leave --bucket-key out: the bucket's default decides then",
        )
    if kms_key_id is None:
        return
    if not _KMS_KEY.fullmatch(kms_key_id) or (
        kms_key_id.startswith("arn:") and not _KMS_ARN.fullmatch(kms_key_id)
    ):
        raise UsageError(
            f"no KMS key: {one_line(kms_key_id)[:100]!r}",
            reference="encryption",
            hint="give the key's id, or its ARN, arn:aws:kms:REGION:ACCOUNT:key/ID; for a key of another"
            " account it has to be the ARN",
        )


def _check_storage_class(name: str | None) -> None:
    if name is None:
        return
    if not _STORAGE_CLASS.fullmatch(name):
        raise UsageError(
            f"no storage class: {one_line(name)[:100]!r}",
            reference="storage-class",
            hint="for example STANDARD, INTELLIGENT_TIERING or STANDARD_IA",
        )
    if name.upper() in _ARCHIVES:
        raise UsageError(
            f"objects of the storage class {name} cannot be read until they are restored",
            reference="storage-class",
            hint="a checkpoint is read whenever a pod starts: use STANDARD or INTELLIGENT_TIERING;"
            " GLACIER_IR is the archive class that can be read at once",
        )
    if name.upper() in _ELSEWHERE:
        raise UsageError(
            f"the storage class {name} is not one of general purpose buckets",
            reference="storage-class",
            hint="for example STANDARD, INTELLIGENT_TIERING or STANDARD_IA",
        )


def _check_tags(tags: Mapping[str, str]) -> None:
    if len(tags) > _MAX_TAGS:
        raise UsageError(
            f"{len(tags)} tags, S3 takes at most {_MAX_TAGS} for an object",
            reference="tags",
            hint="leave some --tag out",
        )
    for key, value in tags.items():
        reason = _why_no_tag(key, value)
        if reason is not None:
            raise UsageError(
                f"the tag {one_line(key)[:150]!r} {reason}",
                reference="tags",
                hint=f"a tag has a key of 1 to {_MAX_TAG_KEY} and a value of at most {_MAX_TAG_VALUE}"
                " letters, digits, spaces and _ . : / = + - @",
            )


def _why_no_tag(key: str, value: str) -> str | None:
    if not 1 <= len(key) <= _MAX_TAG_KEY:
        return f"has a key of {len(key)} characters"
    if len(value) > _MAX_TAG_VALUE:
        return f"has a value of {len(value)} characters"
    if key.casefold().startswith("aws:"):
        return "begins with aws:, which is reserved"
    for character in key + value:
        # Letters, numbers and separators of any script; line and paragraph ends are no header's.
        kind = unicodedata.category(character)
        if kind[0] not in "LN" and kind != "Zs" and character not in _TAG_MARKS:
            return f"holds the character {character!r}"
    return None


NO_SETTINGS: Final = S3Settings()
"""Leaves everything to the bucket."""
