"""How a bucket is set up, as far as the role may look: what surprises operators later.

A refusal to look is a line of the report, not an error, and so is a store that knows no such setting.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from staging.doctor.check import Check, State
from staging.store.bucket import DefaultEncryption, LifecycleRule, S3Bucket
from staging.store.settings import S3Settings
from staging.vocabulary.errors import (
    AccessDenied,
    NotFound,
    StagingError,
    Stalled,
    StoreUnavailable,
)
from staging.vocabulary.location import S3Location

_TOLERABLE_SKEW: Final = 5 * 60.0  # seconds; S3 refuses requests at 15 minutes


@dataclass(slots=True)
class Setup:
    """The lines, and what other parts of a report want to know.

    `encryption_known` says whether the role may look at the bucket's default, which is `encryption`.
    """

    checks: list[Check] = field(default_factory=list)
    region: str | None = None
    encryption: DefaultEncryption | None = None
    encryption_known: bool = False

    def kms(self, settings: S3Settings) -> bool | None:
        """Whether new objects get encrypted with a KMS key; None when nobody could tell."""
        if settings.sse is not None:
            return settings.uses_kms
        if not self.encryption_known:
            return None
        return self.encryption is not None and self.encryption.uses_kms

    def kms_key(self, settings: S3Settings) -> str | None:
        """The KMS key that new objects get encrypted with, as far as it has a name."""
        if settings.sse is not None:
            return settings.kms_key_id
        return None if self.encryption is None else self.encryption.kms_key_id


def look_at_setup(bucket: S3Bucket, location: S3Location) -> Setup:
    """Look at the bucket's own settings.

    Raises NotFound when there is no bucket, StoreUnavailable or Stalled when the store cannot be reached.
    """
    found = Setup()
    _greet(bucket, found)
    _ask(found, "versioning", lambda: _versioning(bucket))
    _encryption(bucket, found)
    _lifecycle(bucket, location, found)
    _ask(found, "object lock", lambda: _object_lock(bucket))
    _ask(found, "private", lambda: _private(bucket), _PRIVACY)
    return found


_PRIVACY: Final = "weights that are not for everybody"
_PERMANENCE: Final = "checkpoints that can be read for good"
_DEAD_PARTS: Final = "parts of a dead upload"


def _greet(bucket: S3Bucket, found: Setup) -> None:
    """The region and the clock. Who may not list a bucket may still be told where it is."""
    skew: float | None = None
    why = "the store does not tell"
    try:
        greeting = bucket.greet()
        found.region, skew = greeting.region, greeting.skew
        if found.region is None:
            found.region = bucket.location()
    except AccessDenied:
        try:
            found.region = bucket.location()
        except AccessDenied:
            why = "not allowed to look"
    except (NotFound, StoreUnavailable, Stalled):
        raise
    except StagingError as error:
        why = error.message
    found.checks += [_region(found.region, why), _clock(skew, why)]


def _region(region: str | None, why: str) -> Check:
    name, purpose = "bucket's region", "requests that go there at once"
    if region is None:
        return Check("bucket", name, "unknown", purpose, why)
    return Check("bucket", name, "ok", purpose, region)


def _clock(skew: float | None, why: str) -> Check:
    name, purpose = "clock", "signatures"
    if skew is None:
        return Check("bucket", name, "unknown", purpose, why)
    direction = "ahead of" if skew > 0 else "behind"
    seconds = abs(skew)
    text = f"{seconds:.0f} s {direction} the store's" if seconds >= 2 else "as the store's"
    state: State = "ok" if seconds < _TOLERABLE_SKEW else "missing"
    hint = "set the clock (for example `chronyc makestep`)"
    return Check("bucket", name, state, purpose, text, hint=hint)


def _ask(found: Setup, name: str, question: Callable[[], Check], needed_for: str = "") -> None:
    try:
        found.checks.append(question())
    except StagingError as error:
        found.checks.append(_not_told(name, error, needed_for))


def _not_told(name: str, error: StagingError, needed_for: str = "") -> Check:
    denied = isinstance(error, AccessDenied) and error.reference == "denied"
    why = "not allowed to look" if denied else error.message
    return Check("bucket", name, "unknown", needed_for, why)


def _versioning(bucket: S3Bucket) -> Check:
    status = bucket.versioning()
    text = {
        "Enabled": "on: what gets deleted stays, and is paid for, as an older version",
        None: "off; nothing here needs it",
    }.get(status, str(status).lower())
    return Check("bucket", "versioning", "ok", "", text)


def _encryption(bucket: S3Bucket, found: Setup) -> None:
    name = "default encryption"
    try:
        found.encryption = bucket.encryption()
    except StagingError as error:
        found.checks.append(_not_told(name, error))
        return
    found.encryption_known = True
    default = found.encryption
    if default is None:
        text = "none"
    elif default.uses_kms:
        key = default.kms_key_id or "the account's own key for S3"
        text = f"{default.algorithm}, {key}{', bucket key' if default.bucket_key else ''}"
    else:
        text = default.algorithm
    found.checks.append(Check("bucket", name, "ok", "", text))


def _lifecycle(bucket: S3Bucket, location: S3Location, found: Setup) -> None:
    name, purpose = "aborts unfinished uploads", _DEAD_PARTS
    try:
        rules = bucket.lifecycle()
    except StagingError as error:
        found.checks.append(_not_told(name, error, purpose))
        return
    days = min(
        (
            rule.aborts_after
            for rule in rules
            if rule.aborts_after is not None and rule.covers(location.prefix)
        ),
        default=None,
    )
    if days is None:
        found.checks.append(
            Check(
                "bucket",
                name,
                "missing",
                purpose,
                "no lifecycle rule does: parts stay, and are paid for, until somebody aborts them",
                hint="add a lifecycle rule with AbortIncompleteMultipartUpload, for example after 7 days",
            )
        )
    else:
        found.checks.append(
            Check("bucket", name, "ok", purpose, f"after {days} day{'s' if days != 1 else ''}")
        )
    found.checks += [_endangers(rule) for rule in rules if _is_danger(rule, location)]


def _is_danger(rule: LifecycleRule, location: S3Location) -> bool:
    acts = rule.expires_after is not None or rule.archives_after is not None
    return acts and rule.touches(location.prefix)


def _endangers(rule: LifecycleRule) -> Check:
    of = f"objects below {rule.prefix!r}" if rule.prefix else "all objects"
    some = " with certain tags or sizes" if rule.tagged else ""
    if rule.expires_after is not None:
        when = f"after {rule.expires_after} days" if rule.expires_after else "at a date"
        text = f"a lifecycle rule deletes {of}{some} {when}"
    else:
        text = f"a lifecycle rule archives {of}{some} after {rule.archives_after} days"
    return Check(
        "bucket",
        "objects stay",
        "unknown" if rule.tagged else "missing",
        _PERMANENCE,
        text,
        hint="have the rule leave the checkpoints alone",
    )


def _object_lock(bucket: S3Bucket) -> Check:
    lock = bucket.object_lock()
    if lock is None:
        text = "off; nothing here needs it"
    elif lock.days is None:
        text = "on, without a default time"
    else:
        text = f"on, {lock.mode or 'locked'} for {lock.days} days by default"
    return Check("bucket", "object lock", "ok", "", text)


def _private(bucket: S3Bucket) -> Check:
    public = bucket.public()
    if public:
        return Check(
            "bucket",
            "private",
            "missing",
            _PRIVACY,
            "the bucket's policy lets everybody in",
            hint="see the bucket's policy, and block public access",
        )
    text = "the bucket has no policy" if public is None else "the bucket's policy is not public"
    return Check("bucket", "private", "ok", _PRIVACY, text)
