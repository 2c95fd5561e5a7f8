"""What lies under a prefix before an upload, and the claim that makes one upload the only one.

Two uploads of different content must never mix (I9). Before anything becomes visible an upload
creates `<prefix>/.checkpoint/claim.json`, conditionally; it holds nothing but the id of what is being
published. Whoever finds another id there has lost; whoever finds its own id goes on, because the
same id means the same bytes. The claim goes once the manifest is there, or when no object of its
content can be there.

Creating the claim also shows what the store can prove: a wrong checksum must be refused, and so must
creating the claim twice. An echo proves nothing.
"""

from __future__ import annotations

import json
from collections.abc import Container, Iterable
from dataclasses import dataclass
from typing import Final

from staging.store.store import AlreadyExists, ObjectInfo, Store
from staging.vocabulary import crc64, strict_json
from staging.vocabulary.errors import (
    AccessDenied,
    Conflict,
    IntegrityError,
    NotFound,
    StagingError,
)
from staging.vocabulary.location import S3Location
from staging.vocabulary.manifest import Manifest

CLAIM_SCHEMA: Final = "checkpoint-claim/1"
_MAX_CLAIM_BYTES: Final = 64 * 1024
_SHOWN: Final = 5


@dataclass(frozen=True, slots=True)
class Proven:
    """What claiming the prefix showed.

    The store enforces conditions on creating (`exclusive`), and checks checksums on arrival
    (`checksums`).
    """

    exclusive: bool
    checksums: bool


@dataclass(frozen=True, slots=True)
class Claim:
    """A claim that lies in the store: the id it is for, and its version."""

    id: str
    etag: str


def claim_key(location: S3Location) -> str:
    """Key of the claim of a version prefix."""
    return f"{location.control_prefix}claim.json"


def claimed(store: Store, location: S3Location) -> Claim | None:
    """The claim under the prefix, or None. Raises Conflict when it cannot be understood."""
    try:
        data, info = store.read(claim_key(location), limit=_MAX_CLAIM_BYTES)
    except NotFound as error:
        if error.reference == "bucket":
            raise
        return None
    try:
        document = strict_json.loads(data, limit=_MAX_CLAIM_BYTES)
        if document["schema"] != CLAIM_SCHEMA:
            raise ValueError("another schema")
        return Claim(str(document["id"]), info.etag)
    except (ValueError, TypeError, KeyError) as error:
        raise Conflict(
            f"the claim s3://{store.bucket}/{claim_key(location)} is not one this version knows",
            reference="claimed",
            hint="use a newer version, or another prefix",
            side="store",
        ) from error


def refuse_foreign(
    objects: Iterable[ObjectInfo], location: S3Location, expected: Container[str]
) -> None:
    """Raise Conflict when there are objects under the prefix that are neither ours nor `expected` keys."""
    foreign = [
        repr(info.key[len(location.prefix) :])
        for info in objects
        if info.key not in expected and not location.is_aside(info.key, info.size)
    ]
    if not foreign:
        return
    more = f" and {len(foreign) - _SHOWN} more" if len(foreign) > _SHOWN else ""
    raise Conflict(
        f"{location} already holds objects that are not of this upload:"
        f" {', '.join(foreign[:_SHOWN])}{more}",
        reference="foreign-objects",
        hint="use a new prefix, remove these objects, or give --allow-existing to leave them there",
        side="store",
    )


def refuse_inside_published(store: Store, location: S3Location) -> None:
    """Raise Conflict when the prefix lies inside another published checkpoint's.

    Where a level above may not be read, nothing is said about it.
    """
    above = location.parent
    while above.prefix:
        try:
            store.head(above.manifest_key)
        except (NotFound, AccessDenied) as error:
            if error.reference == "bucket":
                raise
        else:
            raise Conflict(
                f"{location} lies inside the published checkpoint {above}",
                reference="inside-published",
                hint=f"use a prefix beside it, such as {above.parent}NAME/",
                side="store",
            )
        above = above.parent


def require_complete(store: Store, location: S3Location, manifest: Manifest) -> None:
    """Raise IntegrityError when an object of a published checkpoint is not listed with its size."""
    sizes = {info.key: info.size for info in store.list_objects(location.prefix)}
    broken = [
        repr(str(file.path))
        for file in manifest.files
        if sizes.get(location.key(file.path)) != file.size
    ]
    if not broken:
        return
    more = f" and {len(broken) - _SHOWN} more" if len(broken) > _SHOWN else ""
    raise IntegrityError(
        f"{location} is published, but objects are missing or have another size:"
        f" {', '.join(broken[:_SHOWN])}{more}",
        reference="published-incomplete",
        hint="keep the source and upload it to a new prefix: a published one is never repaired",
        side="store",
    )


def differs(location: S3Location, there: str, what: str) -> Conflict:
    """The error for other content under a published prefix; `there` is the id it has."""
    return Conflict(
        f"{location} already holds other content, {there}: {what}",
        reference="published-differs",
        hint="published prefixes never change: upload to a new prefix and point the values file to it",
        side="store",
    )


def claim(store: Store, location: S3Location, own_id: str) -> Proven:
    """Claim the prefix for `own_id`, and learn what the store enforces.

    Raises Conflict when it is claimed for another id.
    """
    key = claim_key(location)
    body = json.dumps({"schema": CLAIM_SCHEMA, "id": own_id}).encode("ascii")
    checksum = crc64.crc64(body)
    checksums = exclusive = False
    try:
        store.create(key, body, crc64nvme=crc64.to_text(checksum ^ 1))
    except IntegrityError:
        checksums = True
    except AlreadyExists:
        exclusive = True  # of a claim that may be ours from an earlier run; looked at below
    for _ in range(2):
        # Once to be sure that it is there, once more to see the second one refused.
        try:
            store.create(key, body, crc64nvme=crc64.to_text(checksum))
        except AlreadyExists:
            exclusive = True
            break
    is_unclaimed(store, location, own_id)
    return Proven(exclusive=exclusive, checksums=checksums)


def release(store: Store, location: S3Location, own_id: str) -> list[str]:
    """Delete the claim if it is still for `own_id`.

    Returns it, described, when the store refuses: a claim beside a manifest hurts nobody.
    """
    try:
        holder = claimed(store, location)
        if holder is not None and holder.id == own_id:
            store.delete(claim_key(location), etag=holder.etag)
    except StagingError as error:
        return [f"s3://{store.bucket}/{claim_key(location)} ({error.reference})"]
    return []


def is_unclaimed(store: Store, location: S3Location, own_id: str) -> bool:
    """True when nobody has claimed the prefix, so that no object there is of this content.

    Raises Conflict when it is claimed for another id.
    """
    holder = claimed(store, location)
    if holder is None or holder.id == own_id:
        return holder is None
    raise Conflict(
        f"{location} is claimed by an upload of {holder.id}, this one is {own_id}",
        reference="claimed",
        hint="use another prefix; if that upload is dead, running it again finishes it, and deleting"
        f" everything under the prefix with s3://{store.bucket}/{claim_key(location)} drops it",
        side="store",
    )
