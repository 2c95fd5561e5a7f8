"""Which versions of the objects are fetched: one listing pins every ETag and compares every size (I7).

A listing of 1,000 keys costs one request, where a HEAD for each would cost 1,000. Objects are looked at one
by one only where listing is denied, where the prefix holds far more than the manifest names, and where a
listing gives no ETag that pins a version.

Invariants: a listing is given up after a number of keys that follows from the manifest's; nothing but
objects that the manifest names is pinned (I14).
Not guaranteed: right answers from stores whose listings lag behind; those of S3 do not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Final

from staging.store.store import ObjectInfo, Store
from staging.transfer.scheduler import Scheduler
from staging.vocabulary.digest import chunk_span
from staging.vocabulary.errors import AccessDenied, IntegrityError, NotFound
from staging.vocabulary.location import S3Location
from staging.vocabulary.manifest import ManifestFile

_SHOWN: Final = 3
_OTHERS: Final = 2000
"""Keys of a listing that may be others than the wanted ones, besides as many as those are."""

MAX_REPEATS: Final = 2
"""Requests for bytes that did not match, after the first."""


@dataclass(frozen=True, slots=True)
class Pins:
    """The versions to fetch. `etags` has no quotes; `wrong` says what cannot be fetched, and why.

    Both are by path; a file is in one of them.
    """

    etags: Mapping[str, str]
    wrong: Mapping[str, IntegrityError]


def pin(
    store: Store, location: S3Location, files: Sequence[ManifestFile], *, concurrency: int
) -> Pins:
    """Pin the objects of `files`; requests for single objects go `concurrency` at once.

    `wrong` has what is missing (`object-missing`) or has another size (`object-size`). Raises what the
    store raises otherwise.
    """
    if not files:
        return Pins({}, {})
    listed = _listed(store, location, files)
    if listed is None:
        found, unsure = {}, list(files)
    else:
        found = listed
        unsure = [file for file in files if file.path in found and not _pins(found[file.path])]
    found |= _looked_at(store, location, unsure, concurrency)
    etags: dict[str, str] = {}
    wrong: dict[str, IntegrityError] = {}
    for file in files:
        info = found.get(file.path)
        if info is None:
            wrong[file.path] = missing(file, location)
        elif info.size != file.size:
            wrong[file.path] = _wrong_size(file, info, location)
        else:
            etags[file.path] = info.etag
    return Pins(etags, wrong)


def first_of(wrong: Mapping[str, IntegrityError]) -> IntegrityError:
    """One error for all that is wrong, which names the first few in order of their paths."""
    paths = sorted(wrong, key=lambda path: path.encode("utf-8"))
    first = wrong[paths[0]]
    if len(paths) == 1:
        return first
    others = ", ".join(repr(path) for path in islice(paths, 1, 1 + _SHOWN))
    if len(paths) > 1 + _SHOWN:
        others += f" and {len(paths) - 1 - _SHOWN} more"
    return IntegrityError(
        f"{first.message}; wrong as well: {others}",
        reference=first.reference,
        hint=first.hint,
        side="store",
    )


def missing(file: ManifestFile, location: S3Location) -> IntegrityError:
    """The error for an object that the manifest names and the store does not have."""
    return IntegrityError(
        f"{file.path!r} is in the manifest of {location} but there is no such object",
        reference="object-missing",
        hint=f"run `staging verify {location}`, and upload the checkpoint again under a new prefix",
        side="store",
    )


def damaged(
    file: ManifestFile, index: int, location: S3Location, *, requests: int
) -> IntegrityError:
    """The error for a chunk that does not have the manifest's bytes, however often it is asked for."""
    offset, size = chunk_span(file.size, index)
    return IntegrityError(
        f"{file.path!r} in {location} is damaged: chunk {index} (bytes {offset} to"
        f" {offset + size - 1}) does not have the manifest's digest, in {requests} requests",
        reference="chunk-digest",
        hint=f"run `staging verify {location}`; when the object is damaged in the store,"
        " upload the checkpoint again under a new prefix",
        side="store",
    )


def _wrong_size(file: ManifestFile, info: ObjectInfo, location: S3Location) -> IntegrityError:
    return IntegrityError(
        f"{file.path!r} in {location} has {info.size} bytes, the manifest says {file.size}",
        reference="object-size",
        hint=f"run `staging verify {location}`, and upload the checkpoint again under a new prefix",
        side="store",
    )


def _listed(
    store: Store, location: S3Location, files: Sequence[ManifestFile]
) -> dict[str, ObjectInfo] | None:
    """What a listing has of `files`, by path; None when it cannot be had or has too much else."""
    wanted = {location.key(file.path): file.path for file in files}
    found: dict[str, ObjectInfo] = {}
    try:
        for count, info in enumerate(store.list_objects(location.prefix)):
            if count >= 2 * len(wanted) + _OTHERS:
                return None
            if info.key in wanted:
                found[wanted[info.key]] = info
            if len(found) == len(wanted):
                break
    except AccessDenied as error:
        if error.reference != "denied":
            raise
        return None
    return found


def _pins(info: ObjectInfo) -> bool:
    return bool(info.etag) and not info.etag.startswith("W/")


def _looked_at(
    store: Store, location: S3Location, files: Sequence[ManifestFile], concurrency: int
) -> dict[str, ObjectInfo]:
    found: dict[str, ObjectInfo] = {}

    def look(file: ManifestFile) -> None:
        try:
            found[file.path] = store.head(location.key(file.path))
        except NotFound as error:
            if error.reference == "bucket":
                raise

    if files:
        with Scheduler(min(concurrency, len(files)), name="head") as scheduler:
            for file in files:
                scheduler.submit(partial(look, file))
            scheduler.finish()
    return found
