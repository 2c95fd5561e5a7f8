"""What has to happen in a directory for it to hold a manifest: a pure function of what is there.

    undecided(manifest, state)   files whose bytes have to be hashed before there is a plan
    plan(manifest, state)        the actions, in order of paths

Whose is a file? The wanted one, when its bytes have the wanted digest. Ours, when they have the digest
that an earlier version of ours named at this path. Anybody else's otherwise: it is never removed
and never overwritten, and where it stands in the way the plan refuses.

Invariants: no I/O; equal arguments give equal plans; once a plan is carried out, planning again gives
nothing but `Keep` and `Leave`; a plan with a `Refuse` is not to be carried out in part.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from staging.directory.entry import Entry, Kind, Stamp
from staging.directory.marker import Marker
from staging.directory.names import parents
from staging.layout.inventory import is_loaded_weight
from staging.vocabulary.digest import Digest, HashFamily, chunk_count
from staging.vocabulary.manifest import Manifest, ManifestFile
from staging.vocabulary.paths import SafePath


@dataclass(frozen=True, slots=True)
class PartialState:
    """A partial file: the indexes of its chunks that have the wanted digest, and its bytes of disk.

    `stamp` is what it had when it was hashed: the chunks are only there as long as it has that stamp.
    """

    chunks: frozenset[int]
    allocated: int
    stamp: Stamp | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalState:
    """The facts about a directory that a plan depends on.

    `entries` has every name that the manifest or an earlier version uses, the directories above them,
    what lies below a directory in a file's place, and the weights at the root. `published` are the
    manifests that lie here: of versions that were published or begun. `hashed` are digests of
    the bytes at a path, `partial` what an interrupted run of this version left.
    """

    entries: Mapping[str, Entry]
    marker: Marker | None = None
    published: tuple[Manifest, ...] = ()
    hashed: Mapping[str, frozenset[Digest]] = field(default_factory=dict)
    partial: Mapping[str, PartialState] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Keep:
    """The wanted file is in place."""

    file: ManifestFile
    stamp: Stamp


@dataclass(frozen=True, slots=True)
class Fetch:
    """Complete the file's partial file and put it in place.

    `missing` are chunk indexes, none when an interrupted run left it complete; `replaces` is the stamp
    of an earlier version's file, where there is one; `allocated` the bytes of disk it already has;
    `partial` the stamp of the partial file that holds the chunks which are not missing.
    """

    file: ManifestFile
    missing: tuple[int, ...]
    replaces: Stamp | None = None
    allocated: int = 0
    partial: Stamp | None = None


@dataclass(frozen=True, slots=True)
class Remove:
    """An earlier version's file that this one does not have."""

    path: SafePath
    stamp: Stamp


@dataclass(frozen=True, slots=True)
class Leave:
    """An earlier version's file that somebody changed since: no longer ours to remove."""

    path: SafePath


@dataclass(frozen=True, slots=True)
class Refuse:
    """Something that is not ours stands in the way. `reference` is the error's."""

    path: str
    reference: str
    reason: str


Action = Keep | Fetch | Remove | Leave | Refuse


def undecided(manifest: Manifest, state: LocalState) -> dict[SafePath, frozenset[HashFamily]]:
    """Files that a plan depends on and nothing but hashing, in these families, can tell."""
    facts = _Facts(state)
    found: dict[SafePath, frozenset[HashFamily]] = {}
    for version in (manifest, *state.published):
        for file in version.files:
            entry = state.entries.get(file.path)
            if entry is None or entry.kind is not Kind.FILE or file.size != entry.stamp.size:
                continue
            if all(digest.family is not version.hash for digest in facts.known(file.path)):
                found[file.path] = found.get(file.path, frozenset()) | {version.hash}
    return found


def plan(manifest: Manifest, state: LocalState) -> tuple[Action, ...]:
    """Decide what to do. `state.hashed` must hold what `undecided` asked for."""
    facts = _Facts(state)
    wanted = {file.path for file in manifest.files}
    removable: dict[str, Stamp] = {}
    actions: list[Action] = []
    for path in facts.earlier:
        entry = state.entries.get(path)
        if path in wanted or entry is None or entry.kind is not Kind.FILE:
            continue
        if facts.is_ours(path, entry.stamp):
            removable[path] = entry.stamp
            actions.append(Remove(path, entry.stamp))
        else:
            actions.append(Leave(path))
    for file in manifest.files:
        obstacle = _obstacle(file.path, state, removable)
        actions.append(obstacle or _settle(file, state, facts, removable))
    actions.extend(_strangers(state, {*wanted, *removable}))
    # One per path, the last: an obstacle may stand in the way of many files, and a refusal outweighs.
    by_path = {_path_of(action): action for action in actions}
    return tuple(by_path[path] for path in sorted(by_path))


def emptied_directories(manifest: Manifest, state: LocalState) -> frozenset[str]:
    """Directories that earlier versions made and this one does not need."""
    needed = {directory for file in manifest.files for directory in parents(file.path)}
    return frozenset(
        directory
        for directory in _Facts(state).directories - needed
        if (entry := state.entries.get(directory)) is not None and entry.kind is Kind.DIRECTORY
    )


class _Facts:
    """What a state says about earlier versions, looked up by path."""

    def __init__(self, state: LocalState) -> None:
        self._hashed = state.hashed
        self._vouched: dict[str, Digest] = {}
        self.earlier: dict[SafePath, list[ManifestFile]] = {}
        for version in state.published:
            for file in version.files:
                self.earlier.setdefault(file.path, []).append(file)
        self.directories = {above for path in self.earlier for above in parents(path)}
        marker = state.marker
        if marker is None:
            return
        for version in state.published:
            if marker.covers(version):
                for file in version.files:
                    entry = state.entries.get(file.path)
                    if entry is not None and entry.stamp == marker.files[file.path]:
                        self._vouched[file.path] = file.digest

    def known(self, path: str) -> frozenset[Digest]:
        """Digests of the bytes at `path`: hashed, or vouched for by the marker."""
        hashed = self._hashed.get(path, frozenset())
        vouched = self._vouched.get(path)
        return hashed if vouched is None else hashed | {vouched}

    def is_ours(self, path: SafePath, stamp: Stamp) -> bool:
        """True when the bytes at `path` are what an earlier version named there."""
        known = self.known(path)
        return any(
            file.size == stamp.size and file.digest in known for file in self.earlier.get(path, ())
        )


def _obstacle(path: SafePath, state: LocalState, removable: Mapping[str, Stamp]) -> Refuse | None:
    for directory in parents(path):
        entry = state.entries.get(directory)
        if entry is None or directory in removable:
            return None
        if entry.kind is Kind.SYMLINK:
            return Refuse(directory, "symlink", "is a symlink")
        if entry.kind is not Kind.DIRECTORY:
            return Refuse(directory, "foreign-file", "is a file where a directory is needed")
    return None


def _settle(
    file: ManifestFile, state: LocalState, facts: _Facts, removable: Mapping[str, Stamp]
) -> Keep | Fetch | Refuse:
    path, entry = file.path, state.entries.get(file.path)
    replaces: Stamp | None = None
    if entry is not None and entry.kind is Kind.FILE:
        if entry.stamp.size == file.size and file.digest in facts.known(path):
            return Keep(file, entry.stamp)
        if not facts.is_ours(path, entry.stamp):
            return Refuse(path, "foreign-file", "has other bytes than the checkpoint's")
        replaces = entry.stamp
    elif entry is not None and entry.kind is Kind.DIRECTORY:
        if not _goes_away(path, state, facts, removable):
            return Refuse(path, "foreign-file", "is a directory where a file is needed")
    elif entry is not None and entry.kind is Kind.SYMLINK:
        return Refuse(path, "symlink", "is a symlink")
    elif entry is not None:
        return Refuse(path, "foreign-file", "is not a regular file")
    partial = state.partial.get(path, PartialState(frozenset(), 0))
    missing = tuple(index for index in range(chunk_count(file.size)) if index not in partial.chunks)
    relied_on = partial.stamp if partial.chunks else None
    return Fetch(file, missing, replaces, partial.allocated, relied_on)


def _goes_away(
    directory: str, state: LocalState, facts: _Facts, removable: Mapping[str, Stamp]
) -> bool:
    """True when a directory in a file's place holds nothing but what goes with an earlier version."""
    return directory in facts.directories and all(
        below in facts.directories if entry.kind is Kind.DIRECTORY else below in removable
        for below, entry in state.entries.items()
        if below.startswith(f"{directory}/")
    )


def _strangers(state: LocalState, accounted: set[str]) -> Iterable[Refuse]:
    for path, entry in state.entries.items():
        if entry.kind is not Kind.DIRECTORY and is_loaded_weight(path) and path not in accounted:
            yield Refuse(path, "foreign-weights", "would be loaded beside the checkpoint's weights")


def _path_of(action: Action) -> bytes:
    path = action.file.path if isinstance(action, Keep | Fetch) else action.path
    return path.encode("utf-8", "surrogateescape")
