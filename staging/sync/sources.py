"""Files in a cache that have bytes which are wanted: not fetched again, but given a second name.

Invariants: only a marker that still fits vouches for bytes unread; what it does not vouch for, in the version
that is to be made anew, is hashed within the memory of a run (I11).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from staging.directory.entry import Kind, Stamp
from staging.directory.local import LocalDirectory
from staging.sync.inspection import Hashing, hash_chunks, read_marker
from staging.vocabulary.digest import Digest
from staging.vocabulary.errors import MalformedInput
from staging.vocabulary.events import Reporter
from staging.vocabulary.manifest import Manifest

Wanted = tuple[int, Digest]
"""Size and digest of a file."""


@dataclass(frozen=True, slots=True)
class Source:
    """A file of a version in the cache that has bytes which are wanted."""

    version: str
    path: str
    stamp: Stamp


def wanted_of(manifest: Manifest) -> set[Wanted]:
    """What a checkpoint consists of; an empty file is made sooner than linked."""
    return {(file.size, file.digest) for file in manifest.files if file.size}


def vouched(
    local: LocalDirectory, version: str, wanted: Collection[Wanted], report: Reporter
) -> dict[Wanted, Source]:
    """Of what is wanted, that which a version has and its marker still vouches for."""
    marker = read_marker(local, report)
    try:
        manifest = local.read_manifest()
    except MalformedInput:
        return {}
    if marker is None or manifest is None or not marker.covers(manifest):
        return {}
    found: dict[Wanted, Source] = {}
    for file in manifest.files:
        if (file.size, file.digest) in wanted:
            stamp = marker.files[file.path]
            entry = local.tree.entry(file.path)
            if entry is not None and entry.kind is Kind.FILE and entry.stamp == stamp:
                found[file.size, file.digest] = Source(version, file.path, stamp)
    return found


def salvaged(
    local: LocalDirectory,
    version: str,
    manifest: Manifest,
    there: Collection[Wanted],
    *,
    threads: int,
    report: Reporter,
) -> dict[Wanted, Source]:
    """What a damaged version has beyond what is `there`, hashed on `threads` threads: most may be right."""
    stamps: dict[str, Stamp] = {}
    for file in manifest.files:
        entry = local.tree.entry(file.path)
        if (
            (file.size, file.digest) not in there
            and entry is not None
            and entry.kind is Kind.FILE
            and entry.stamp.size == file.size > 0
        ):
            stamps[file.path] = entry.stamp
    hashings = [Hashing(path, stamp.size, manifest.hash) for path, stamp in stamps.items()]
    hash_chunks(local.tree, hashings, threads=threads, report=report)
    digests = {hashing.path: hashing.digest for hashing in hashings}
    found: dict[Wanted, Source] = {}
    for file in manifest.files:
        entry = local.tree.entry(file.path)
        if (
            digests.get(file.path) == file.digest
            and entry is not None
            and entry.stamp == stamps[file.path]
        ):
            found[file.size, file.digest] = Source(version, file.path, entry.stamp)
    return found
