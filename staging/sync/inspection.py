"""The facts about a directory that a plan needs: names, documents, and hashes where nothing less tells.

Bytes are hashed as the disk has them: a file is made durable and dropped from memory first, so that
what is trusted here survives a power loss (I5, I6). Holes are not read. Nothing is changed, except that
a partial file which cannot be made durable goes (I15).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

from staging.directory.entry import Entry, Kind, Stamp
from staging.directory.failure import changed_locally, symlink
from staging.directory.local import LocalDirectory
from staging.directory.marker import Marker
from staging.directory.names import parents, partial_directory
from staging.directory.partial import settle
from staging.directory.tree import Tree
from staging.layout.inventory import is_loaded_weight
from staging.sync.plan import Fetch, LocalState, PartialState, plan, undecided
from staging.transfer.budget import Budget
from staging.transfer.scheduler import Scheduler
from staging.vocabulary.digest import (
    CHUNK_SIZE,
    Digest,
    HashFamily,
    chunk_count,
    chunk_span,
    file_digest,
)
from staging.vocabulary.errors import MalformedInput
from staging.vocabulary.events import Moved, Note, Reporter, Started
from staging.vocabulary.manifest import Manifest, ManifestFile


def inspect(
    local: LocalDirectory,
    manifest: Manifest,
    *,
    threads: int,
    report: Reporter,
    known: Mapping[Stamp, frozenset[Digest]] | None = None,
) -> LocalState:
    """Look at a directory, under its lock, for a plan of `manifest`. Hashes on `threads` threads.

    `known` are digests of the bytes of files with these stamps, which are not hashed again.
    """
    published = published_here(local, report)
    state = LocalState(
        entries=look_up(local.tree, manifest, published),
        marker=read_marker(local, report),
        published=published,
    )
    hashed: dict[str, frozenset[Digest]] = {}
    for path, entry in state.entries.items():
        if known and entry.kind is Kind.FILE and entry.stamp in known:
            hashed[path] = known[entry.stamp]
    state = replace(state, hashed=hashed)
    hashings = [
        Hashing(path, state.entries[path].stamp.size, family)
        for path, families in undecided(manifest, state).items()
        for family in sorted(families, key=lambda family: family.value)
    ]
    hash_chunks(local.tree, hashings, threads=threads, report=report)
    for hashing in hashings:
        hashed[hashing.path] = hashed.get(hashing.path, frozenset()) | {hashing.digest}
    state = replace(state, hashed=hashed)
    fetches = [action.file for action in plan(manifest, state) if isinstance(action, Fetch)]
    partials = _partials(local.tree, manifest, fetches, threads=threads, report=report)
    return replace(state, partial=partials)


def read_marker(local: LocalDirectory, report: Reporter) -> Marker | None:
    """The ready marker; one that cannot be read counts as none."""
    try:
        return local.read_marker()
    except MalformedInput as error:
        report(Note(f"{error.message}; it is ignored", warning=True))
        return None


def published_here(local: LocalDirectory, report: Reporter) -> tuple[Manifest, ...]:
    """The manifests that lie in a directory; one that cannot be read is reported and left out."""
    found: list[Manifest] = []
    readers: list[Callable[[], Manifest | None]] = [
        local.read_manifest,
        *(partial(local.read_begun_manifest, name) for name in local.begun_manifests()),
    ]
    for read in readers:
        try:
            manifest = read()
        except MalformedInput as error:
            report(Note(f"{error.message}; this local copy is ignored", warning=True))
            continue
        if manifest is not None:
            found.append(manifest)
    return tuple(found)


def look_up(tree: Tree, manifest: Manifest, published: Iterable[Manifest]) -> dict[str, Entry]:
    """The names that a plan depends on, as `LocalState.entries` has them."""
    looked: dict[str, Entry | None] = {}
    for version in (manifest, *published):
        for file in version.files:
            for name in (*parents(file.path), file.path):
                if name not in looked:
                    looked[name] = tree.entry(name)
                above = looked[name]
                if above is None or above.kind is not Kind.DIRECTORY:
                    break  # nothing is looked for below a file or a link
    for file in manifest.files:
        entry = looked.get(file.path)
        if entry is not None and entry.kind is Kind.DIRECTORY:
            looked.update(tree.walk(file.path))
    for name in tree.listing():
        if is_loaded_weight(name):
            looked[name] = tree.entry(name)
    return {name: entry for name, entry in looked.items() if entry is not None}


def _partials(
    tree: Tree,
    manifest: Manifest,
    files: Iterable[ManifestFile],
    *,
    threads: int,
    report: Reporter,
) -> dict[str, PartialState]:
    found: list[tuple[ManifestFile, Entry, Hashing]] = []
    short: dict[str, PartialState] = {}
    directory = partial_directory(manifest.id)
    if tree.entry(directory) is None:
        return {}
    for file in files:
        name = f"{directory}/{file.path}"
        entry = tree.entry(name)
        if entry is None:
            continue
        if entry.kind is Kind.SYMLINK:
            raise symlink(name)
        if entry.kind is not Kind.FILE or entry.links != 1 or entry.stamp.size > file.size:
            continue  # nothing to go on from; it is made anew
        # A file has its length before anything is written to it, unless one write is to fill it.
        if entry.stamp.size < file.size:
            short[file.path] = PartialState(frozenset(), entry.allocated)
            continue
        found.append((file, entry, Hashing(name, file.size, manifest.hash, is_partial=True)))
    hash_chunks(tree, [hashing for _, _, hashing in found], threads=threads, report=report)
    whole = {
        file.path: PartialState(
            frozenset(
                index for index, value in hashing.chunks.items() if value == file.chunks[index]
            ),
            entry.allocated,
            hashing.stamp,
        )
        for file, entry, hashing in found
    }
    return whole | short


@dataclass(slots=True)
class Hashing:
    """One file to hash in one family.

    `chunks` receives the digests of chunks that are not holes, `stamp` what a partial file had when it
    was durable and its hashing began.
    """

    path: str
    size: int
    family: HashFamily
    is_partial: bool = False
    stamp: Stamp | None = None
    chunks: dict[int, bytes] = field(default_factory=dict)

    @property
    def digest(self) -> Digest:
        """The file's digest, once all chunks are hashed."""
        values = [self.chunks[index] for index in range(chunk_count(self.size))]
        return file_digest(self.family, self.size, values)


def hash_chunks(
    tree: Tree, hashings: Collection[Hashing], *, threads: int, report: Reporter
) -> None:
    """Fill in the chunk digests of files below `tree`, on `threads` threads with a buffer each.

    Of a partial file, chunks that are nothing but holes are left out.
    """
    if not hashings:
        return
    report(Started("check", sum(hashing.size for hashing in hashings), len(hashings)))
    stored: dict[int, list[int]] = {}

    def look(number: int, hashing: Hashing) -> None:
        with tree.open_member(hashing.path) as member:
            if hashing.is_partial:
                settle(tree, member)
                entry = tree.entry(hashing.path)
                hashing.stamp = None if entry is None else entry.stamp
                stored[number] = _chunks_with_data(member.data_extents(), hashing.size)
            else:
                member.settle()
                stored[number] = list(range(chunk_count(hashing.size)))

    with Scheduler(threads, name="check") as scheduler:
        for number, hashing in enumerate(hashings):
            scheduler.submit(partial(look, number, hashing))
        scheduler.finish()
    budget = Budget(threads * CHUNK_SIZE)
    with Scheduler(threads, name="check") as scheduler:
        cancelled = scheduler.cancelled

        def hash_chunk(hashing: Hashing, index: int) -> None:
            offset, length = chunk_span(hashing.size, index)
            buffer = budget.acquire(length, cancelled)
            try:
                with memoryview(buffer) as view:
                    with tree.open_member(hashing.path) as member:
                        if member.size != hashing.size:
                            raise changed_locally(hashing.path)
                        member.read_into(offset, view)
                    hashing.chunks[index] = hashing.family.hash(view)
            finally:
                budget.release(buffer)
            report(Moved(length))

        for number, hashing in enumerate(hashings):
            indexes = stored[number]
            skipped = hashing.size - sum(chunk_span(hashing.size, index)[1] for index in indexes)
            if skipped:
                report(Moved(skipped))
            for index in indexes:
                scheduler.submit(partial(hash_chunk, hashing, index))
        scheduler.finish()


def _chunks_with_data(extents: Iterable[tuple[int, int]], size: int) -> list[int]:
    if size == 0:
        return [0]
    found: set[int] = set()
    for start, end in extents:
        found.update(range(start // CHUNK_SIZE, -(-end // CHUNK_SIZE)))
    return sorted(found)
