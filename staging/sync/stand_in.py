"""A manifest in place of the one that is missing, and the record of what was downloaded without one.

The manifest of an unverified directory has in its annotations, under `unverified`, the prefix and, for
each file, its ETag and what vouched for its bytes. A file whose ETag is still the recorded one has known
digests. For any other a placeholder made of path, size and ETag stands in: nothing has such a digest, so a
plan fetches the file and refuses what is in its way, and partial files lie below a name that changes when
the listing does.

Invariants: equal listings and equal records give equal stand-ins; when every file is known, the stand-in has
the id of the directory's own manifest.
Not guaranteed: that a record is true; whoever may write into the directory may forge it, and the files too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from staging.directory.local import LocalDirectory
from staging.store.store import ObjectInfo
from staging.sync.plan import Action, Keep, Refuse
from staging.unpublished.content import Proof
from staging.unpublished.prefix import Unpublished, versions
from staging.vocabulary.digest import HashFamily, chunk_count
from staging.vocabulary.errors import MalformedInput
from staging.vocabulary.location import S3Location
from staging.vocabulary.manifest import UNVERIFIED, Manifest, ManifestFile
from staging.vocabulary.paths import SafePath

FAMILY: Final = HashFamily.BLAKE3
"""The digests of files that nobody published any of: the family of an upload that is told nothing."""

_OTHER_BYTES: Final = "has other bytes than the checkpoint's"
"""What a plan says of a file that a placeholder is compared with: untrue, it may be the same file."""

_UNKNOWN: Final = "is not known to have the checkpoint's bytes"
_PROOFS: Final[Mapping[str, Proof]] = {"crc64nvme": "crc64nvme", "md5": "md5"}


@dataclass(frozen=True, slots=True)
class Record:
    """Where the files of an unverified manifest are from.

    `files` has ETag and proof of each file, by path.
    """

    uri: str
    files: Mapping[str, tuple[str, Proof]]

    def annotations(self) -> dict[str, Any]:
        """The record as it stands in a manifest."""
        files = {path: {"etag": etag, "proof": proof} for path, (etag, proof) in self.files.items()}
        return {UNVERIFIED: {"uri": self.uri, "files": files}}

    @classmethod
    def of(cls, manifest: Manifest) -> Record | None:
        """The record in a manifest; None when there is none that can be read."""
        document: Any = manifest.annotations.get(UNVERIFIED)
        try:
            return cls(
                str(document["uri"]),
                {
                    str(path): (str(fields["etag"]), _PROOFS.get(fields["proof"], "nothing"))
                    for path, fields in document["files"].items()
                },
            )
        except (TypeError, KeyError, AttributeError):  # an open section: anything may be there
            return None


@dataclass(frozen=True, slots=True)
class StandIn:
    """A prefix without a manifest, and a manifest to plan with.

    `known` are the files whose digests a record has for the very version that is listed, with what
    vouched for them. `earlier` are the paths that the directory's manifests name.
    """

    found: Unpublished
    manifest: Manifest
    known: Mapping[SafePath, Proof]
    earlier: frozenset[str]


def stand_in_for(found: Unpublished, manifests: Iterable[Manifest]) -> StandIn:
    """Make the stand-in of a prefix; `manifests` are those that lie in the directory."""
    digests: dict[tuple[str, int, str], tuple[ManifestFile, Proof]] = {}
    earlier: set[str] = set()
    for manifest in manifests:
        earlier.update(file.path for file in manifest.files)
        record = Record.of(manifest)
        if record is None or record.uri != str(found.location) or manifest.hash is not FAMILY:
            continue
        for file in manifest.files:
            etag, proof = record.files.get(file.path, ("", "nothing"))
            if etag:
                digests[file.path, file.size, etag] = file, proof
    files: list[ManifestFile] = []
    known: dict[SafePath, Proof] = {}
    for path, info in found.files.items():
        match = digests.get((path, info.size, info.etag))
        if match is None:
            files.append(_placeholder(path, info, found.location))
        else:
            files.append(match[0])
            known[path] = match[1]
    manifest = Manifest.of(FAMILY, files, annotations={UNVERIFIED: {}})
    return StandIn(found, manifest, known, frozenset(earlier))


def refusals_in(actions: Iterable[Action], expected: StandIn) -> list[Refuse]:
    """What a plan for a stand-in refuses, saying no more of a file's bytes than anybody can know."""
    found: list[Refuse] = []
    for action in actions:
        if isinstance(action, Refuse):
            unknown = action.reason == _OTHER_BYTES and action.path not in expected.known
            found.append(replace(action, reason=_UNKNOWN) if unknown else action)
        elif isinstance(action, Keep):
            path = action.file.path
            if path not in expected.known and path not in expected.earlier:
                # Taken for the better by who has not hashed it; nothing has a placeholder's digest.
                found.append(Refuse(path, "foreign-file", _UNKNOWN))
    return found


def manifests_in(local: LocalDirectory) -> list[Manifest]:
    """The manifests in a directory that can be read: of versions that were published or begun."""
    found: list[Manifest] = []
    for name in (None, *local.begun_manifests()):
        try:
            manifest = local.read_manifest() if name is None else local.read_begun_manifest(name)
        except MalformedInput:  # the inspection tells of it
            continue
        if manifest is not None:
            found.append(manifest)
    return found


def is_recorded(manifest: Manifest, location: S3Location, objects: Sequence[ObjectInfo]) -> bool:
    """True when a listing shows exactly the files of an unverified manifest, in the recorded versions.

    Not beside anything that an upload has put there, a manifest above all.
    """
    record = Record.of(manifest)
    if record is None or record.uri != str(location):
        return False
    if any(info.key.startswith(location.control_prefix) for info in objects):
        return False
    then = {
        str(file.path): (file.size, record.files.get(file.path, ("", None))[0])
        for file in manifest.files
    }
    return all(etag for _, etag in then.values()) and versions(location, objects) == then


def _placeholder(path: SafePath, info: ObjectInfo, location: S3Location) -> ManifestFile:
    name = f"unverified\0{location}\0{path}\0{info.size}\0{info.etag}".encode()
    chunks = [
        FAMILY.hash(name + index.to_bytes(8, "little")) for index in range(chunk_count(info.size))
    ]
    return ManifestFile.of(path, info.size, FAMILY, chunks)
