"""What a bucket is set up to do, read from its own settings.

No engine needs any of it; an operator who wonders does. Every method makes one request and raises a
`StagingError`: AccessDenied where the role may not look, which is common, NotFound where there is no bucket.
What a bucket was never told is None or empty, not an error.

Not guaranteed: that a compatible store has these settings at all; most answer that they do not know them.
"""

from __future__ import annotations

import datetime
import email.utils
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from staging.store.refusals import translate
from staging.store.settings import NO_SETTINGS, S3Settings
from staging.vocabulary.errors import StagingError
from staging.wire.wire import Wire, WireError

_NOT_SET: Final = frozenset(
    {
        "ServerSideEncryptionConfigurationNotFoundError",
        "NoSuchLifecycleConfiguration",
        "ObjectLockConfigurationNotFoundError",
        "NoSuchBucketPolicy",
    }
)
_OLD_NAMES: Final = {None: "us-east-1", "": "us-east-1", "EU": "eu-west-1"}
"""Regions that GetBucketLocation has other words for."""


@dataclass(frozen=True, slots=True)
class Greeting:
    """What the first answer of a bucket tells.

    `skew` is this machine's clock minus the store's, in seconds, to the second; None where not told.
    """

    region: str | None
    skew: float | None


@dataclass(frozen=True, slots=True)
class DefaultEncryption:
    """How objects are encrypted that are created without a word about it."""

    algorithm: str
    kms_key_id: str | None
    bucket_key: bool

    @property
    def uses_kms(self) -> bool:
        """True when a KMS key is used."""
        return self.algorithm.startswith("aws:kms")


@dataclass(frozen=True, slots=True)
class LifecycleRule:
    """A rule that is switched on. Days are None for what it does not do.

    `tagged` says that it is only for objects with certain tags or sizes.
    """

    prefix: str
    tagged: bool
    aborts_after: int | None
    expires_after: int | None
    archives_after: int | None

    def covers(self, prefix: str) -> bool:
        """True when the rule is about everything below `prefix`, whatever it is tagged with."""
        return prefix.startswith(self.prefix)

    def touches(self, prefix: str) -> bool:
        """True when the rule is about something below `prefix`."""
        return prefix.startswith(self.prefix) or self.prefix.startswith(prefix)


@dataclass(frozen=True, slots=True)
class ObjectLock:
    """Versions that are locked can be neither deleted nor replaced until their time has come."""

    mode: str | None
    days: int | None


class S3Bucket:
    """The settings of one bucket."""

    def __init__(self, wire: Wire, bucket: str, settings: S3Settings = NO_SETTINGS) -> None:
        self._wire = wire
        self._bucket = bucket
        self._settings = settings

    def greet(self) -> Greeting:
        """The bucket's region, and how the clocks differ."""
        answer = self._call("HeadBucket")
        headers = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {})
        region = answer.get("BucketRegion") or headers.get("x-amz-bucket-region")
        return Greeting(region, _skew(headers.get("date")))

    def location(self) -> str:
        """The bucket's region, for who may not list it."""
        constraint = self._call("GetBucketLocation").get("LocationConstraint")
        return _OLD_NAMES.get(constraint, str(constraint))

    def versioning(self) -> str | None:
        """Enabled or Suspended; None when it was never switched on."""
        return self._call("GetBucketVersioning").get("Status")

    def encryption(self) -> DefaultEncryption | None:
        """The encryption of objects that come without one."""
        found = self._ask("GetBucketEncryption", "ServerSideEncryptionConfiguration")
        rules = [] if found is None else found.get("Rules", [])
        if not rules:
            return None
        default = rules[0].get("ApplyServerSideEncryptionByDefault", {})
        return DefaultEncryption(
            algorithm=str(default.get("SSEAlgorithm", "")),
            kms_key_id=default.get("KMSMasterKeyID") or None,
            bucket_key=bool(rules[0].get("BucketKeyEnabled")),
        )

    def lifecycle(self) -> tuple[LifecycleRule, ...]:
        """The rules that are switched on."""
        rules = self._ask("GetBucketLifecycleConfiguration", "Rules") or ()
        return tuple(_rule(rule) for rule in rules if rule.get("Status") == "Enabled")

    def object_lock(self) -> ObjectLock | None:
        """How long new objects are locked; None when versions are never locked."""
        found = self._ask("GetObjectLockConfiguration", "ObjectLockConfiguration")
        if found is None or found.get("ObjectLockEnabled") != "Enabled":
            return None
        default = found.get("Rule", {}).get("DefaultRetention", {})
        days, years = default.get("Days"), default.get("Years")
        return ObjectLock(default.get("Mode"), days if years is None else years * 365)

    def public(self) -> bool | None:
        """Whether the bucket's policy lets everybody in; None when there is no policy."""
        found = self._ask("GetBucketPolicyStatus", "PolicyStatus")
        return None if found is None else bool(found.get("IsPublic"))

    def _ask(self, operation: str, member: str) -> Any:
        """The one member of the answer, None when the bucket was never told.

        Raises StagingError for an answer without it: there are stores that answer any question about a
        bucket with a listing.
        """
        try:
            answer = self._request(operation)
        except WireError as error:
            if error.code in _NOT_SET:
                return None
            raise translate(error, self._bucket, None, self._settings) from error
        if not answer.get(member):
            raise StagingError(
                f"{operation} s3://{self._bucket}/: the answer is about something else",
                reference="request",
                hint="this store does not know the setting; nothing here needs it",
                side="store",
            )
        return answer[member]

    def _call(self, operation: str) -> Mapping[str, Any]:
        try:
            return self._request(operation)
        except WireError as error:
            raise translate(error, self._bucket, None, self._settings) from error

    def _request(self, operation: str) -> Mapping[str, Any]:
        settings = self._settings.bucket_parameters()
        return self._wire.call(operation, {"Bucket": self._bucket, **settings})


def _rule(rule: Mapping[str, Any]) -> LifecycleRule:
    given = rule.get("Filter", {})
    both = given.get("And", {})
    archives = [
        int(transition.get("Days", 0))
        for transition in rule.get("Transitions", [])
        if transition.get("StorageClass") in ("GLACIER", "DEEP_ARCHIVE")
    ]
    expiration = rule.get("Expiration", {})
    expires = 0 if "Date" in expiration else expiration.get("Days")
    return LifecycleRule(
        prefix=str(given.get("Prefix") or both.get("Prefix") or rule.get("Prefix") or ""),
        tagged=bool(both) or bool(given.keys() - {"Prefix"}),
        aborts_after=rule.get("AbortIncompleteMultipartUpload", {}).get("DaysAfterInitiation"),
        expires_after=expires,
        archives_after=min(archives, default=None),
    )


def _skew(date: str | None) -> float | None:
    if not date:
        return None
    try:
        then = email.utils.parsedate_to_datetime(date)
    except ValueError:
        return None
    if then.tzinfo is None:
        then = then.replace(tzinfo=datetime.UTC)
    return (datetime.datetime.now(datetime.UTC) - then).total_seconds()
