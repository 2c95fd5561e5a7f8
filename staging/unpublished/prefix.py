"""A prefix without a manifest: what lies there, in which versions, and whether it has stayed so.

Another tool filled it, and nothing says which files belong together or whether the copy came to its end.
So every file is pinned to the version that one listing tells, and the listing is compared with a second
one when the work is done. `staging.unpublished.wholeness` refuses what shows that a copy is under way.

Invariants: a file is one version of one object, and what is said of it holds for that version (I7); names
are safe and can live side by side (I10); nothing is written.
Not guaranteed: that the files are what somebody meant to put there.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final

from staging.published import explain_absence
from staging.store.store import ObjectInfo, Store
from staging.transfer.scheduler import Scheduler
from staging.vocabulary.errors import (
    Conflict,
    MalformedInput,
    NotFound,
)
from staging.vocabulary.location import S3Location
from staging.vocabulary.paths import (
    CONTROL_DIRECTORY,
    LEGACY_MARKER,
    NameSet,
    SafePath,
    UnsafePath,
    is_reserved,
)

MAX_OBJECTS: Final = 100_000
"""Most objects below a prefix that is looked at as one checkpoint."""

SHOWN: Final = 5
"""Most names in one message."""

_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_SHOWN_LENGTH: Final = 200


@dataclass(frozen=True, slots=True)
class Unpublished:
    """The files below a prefix, each with its object's size and ETag, in byte order of their paths.

    `marked` tells that the reference uploader's marker is there.
    """

    location: S3Location
    files: Mapping[SafePath, ObjectInfo]
    marked: bool = False

    @property
    def total_size(self) -> int:
        """Bytes of all files."""
        return sum(info.size for info in self.files.values())


def list_prefix(store: Store, location: S3Location) -> list[ObjectInfo]:
    """All objects below a prefix. Raises MalformedInput when there are more than a checkpoint has."""
    objects = list(islice(store.list_objects(location.prefix), MAX_OBJECTS + 1))
    if len(objects) > MAX_OBJECTS:
        raise MalformedInput(
            f"{location} holds more than {MAX_OBJECTS} objects",
            reference="too-many-files",
            hint="give the prefix of one checkpoint",
            side="store",
        )
    return objects


def examine(store: Store, location: S3Location, objects: Sequence[ObjectInfo]) -> Unpublished:
    """Judge the listing of a prefix that has no manifest.

    Folders' empty placeholders and reserved names are left out. Raises NotFound as `read_manifest` does
    when there is nothing to take for a checkpoint, and beside what an upload of ours left; Conflict when
    other checkpoints lie below; MalformedInput for a name that is unsafe or cannot live beside another.
    """
    if has_upload(location, objects):
        raise NotFound(
            f"no published checkpoint at {location}: an upload began here and has not finished",
            reference="upload-unfinished",
            hint="wait for the upload to end, or run the same `staging upload` again",
            side="store",
        )
    names = NameSet()
    files: dict[SafePath, ObjectInfo] = {}
    marked = False
    for info in objects:
        name = _name(location, info.key)
        marked |= name == LEGACY_MARKER
        if not _is_aside(location, info):
            files[_accept(name, location, names)] = info
    absence = explain_absence(store, location)
    if not files or absence.reference != "not-published":
        raise absence
    ordered = sorted(files, key=lambda path: path.sort_key)
    return Unpublished(location, {path: files[path] for path in ordered}, marked)


def stored_checksums(
    store: Store, files: Mapping[SafePath, ObjectInfo], *, concurrency: int
) -> dict[SafePath, str | None]:
    """The CRC64NVME that the store keeps of each file, in base64; None where it keeps none.

    One HEAD per file. Raises Conflict when an object is not the listed version any more.
    """
    found: dict[SafePath, str | None] = {}

    def look(path: SafePath, listed: ObjectInfo) -> None:
        try:
            info = store.head(listed.key)
        except NotFound as error:
            if error.reference == "bucket":
                raise
            raise changed(f"{path[:_SHOWN_LENGTH]!r} is gone", store, listed.key) from error
        if _version(info) != _version(listed):
            raise changed(f"{path[:_SHOWN_LENGTH]!r} was replaced", store, listed.key)
        found[path] = info.crc64nvme

    with Scheduler(concurrency, name="head") as scheduler:
        for path, listed in files.items():
            scheduler.submit(functools.partial(look, path, listed))
    return found


def archive_sha256(store: Store, location: S3Location) -> str | None:
    """The SHA-256 of the archive, in hex, that the reference uploader's marker tells of; None without.

    It is in the marker's user metadata. Its name there is specified nowhere: any that speaks of SHA-256,
    with a value that can be one, will do.
    """
    try:
        info = store.head(location.prefix + LEGACY_MARKER)
    except NotFound as error:
        if error.reference == "bucket":
            raise
        return None
    for name, value in sorted(info.metadata.items()):
        plain = name.lower().replace("-", "").replace("_", "")
        if "sha256" in plain and _SHA256.fullmatch(value.lower()):
            return value.lower()
    return None


def require_unchanged(store: Store, before: Unpublished) -> bool:
    """List again. Raises Conflict unless the same files are there in the same versions, and no others.

    That a manifest has come meanwhile is no change: True tells of it.
    """
    location = before.location
    objects = list_prefix(store, location)
    then = {str(path): _version(info) for path, info in before.files.items()}
    now = versions(location, objects)
    differences = [
        f"{_shown(names)} {what}"
        for what, names in (
            ("was replaced", {name for name in then if now.get(name, then[name]) != then[name]}),
            ("is new", now.keys() - then.keys()),
            ("is gone", then.keys() - now.keys()),
        )
        if names
    ]
    if has_upload(location, objects):
        differences.append("an upload began")
    if differences:
        raise changed("; ".join(differences), store, location.prefix)
    return any(info.key == location.manifest_key for info in objects)


def versions(location: S3Location, objects: Iterable[ObjectInfo]) -> dict[str, tuple[int, str]]:
    """Size and ETag of the files in a listing, by names that nobody has judged."""
    return {
        _name(location, info.key): _version(info)
        for info in objects
        if not _is_aside(location, info)
    }


def has_upload(location: S3Location, objects: Iterable[ObjectInfo]) -> bool:
    """True when a listing shows what an upload of ours leaves before it is published."""
    return any(
        info.key.startswith(location.control_prefix) and info.key != location.manifest_key
        for info in objects
    )


def changed(what: str, store: Store, key: str) -> Conflict:
    """The error for a prefix that does not hold still; `what` says what was seen of that."""
    return Conflict(
        f"s3://{store.bucket}/{key} was written to while it was read: {what}",
        reference="prefix-changed",
        hint="let whoever writes there finish, then run again",
        side="store",
    )


def shown(names: Sequence[str], count: int = 0) -> str:
    """The first of `count` names, for people; they are strangers' and may be long."""
    text = ", ".join(repr(name[:_SHOWN_LENGTH]) for name in names)
    return text + (f" and {count - len(names)} more" if count > len(names) else "")


def _name(location: S3Location, key: str) -> str:
    return key[len(location.prefix) :]


def _version(info: ObjectInfo) -> tuple[int, str]:
    return info.size, info.etag


def _is_aside(location: S3Location, info: ObjectInfo) -> bool:
    return location.is_aside(info.key, info.size) or is_reserved(_name(location, info.key))


def _accept(name: str, location: S3Location, names: NameSet) -> SafePath:
    if CONTROL_DIRECTORY in name.casefold().split("/")[:-1]:
        raise Conflict(
            f"{location} holds other checkpoints: {name[:_SHOWN_LENGTH]!r} is about one",
            reference="holds-published",
            hint="give the prefix of one checkpoint; `staging ls` lists those that are published",
            side="store",
        )
    try:
        path = SafePath(name)
    except UnsafePath as error:
        raise MalformedInput(
            f"{location}: {error}",
            reference="unsafe-name",
            hint="copy the checkpoint to a new prefix, this file under another name",
            side="store",
        ) from error
    location.key(path)
    other = names.add(path)
    if other is not None:
        raise MalformedInput(
            f"{location}: {path[:_SHOWN_LENGTH]!r} cannot live beside {other[:_SHOWN_LENGTH]!r}"
            " everywhere",
            reference="name-collision",
            hint="copy the checkpoint to a new prefix, without one of them",
            side="store",
        )
    return path


def _shown(names: Iterable[str]) -> str:
    ordered = sorted(names)
    return shown(ordered[:SHOWN], len(ordered))
