"""What a bucket is set up to do; for tests to change behind the store's back, no operation does."""

from __future__ import annotations

from dataclasses import dataclass

OWNER = "111122223333"
"""The account that owns every bucket; no access key belongs to it."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A lifecycle rule that is switched on; numbers are days."""

    prefix: str = ""
    abort_after: int | None = None
    expire_after: int | None = None
    glacier_after: int | None = None
    tag: str | None = None
    enabled: bool = True


@dataclass(slots=True)
class BucketSettings:
    """None is what a bucket was never told.

    `encryption` is the default's algorithm, key and whether there is a bucket key; `lock_days` is the
    default time of an object lock, 0 for none; `public` is what the status of the policy says.
    """

    versioning: str | None = None
    encryption: tuple[str, str | None, bool] | None = ("AES256", None, False)
    lifecycle: tuple[Rule, ...] = ()
    lock_days: int | None = None
    public: bool | None = None
    requester_pays: bool = False
