"""Making a fetched version the one that a directory holds, so that the marker never lies (I5).

    1. compare: everything is still as it was when the version was planned, and nobody published it meanwhile
    2. the new manifest, as "begun"              from here on its files are known as ours
    3. ready marker away, fsync                  from here on a reader sees nothing
    4. remove files of earlier versions, rename new ones into place, fsync their directories
    5. the new manifest takes the old one's place, fsync
    6. drop what interrupted runs left, and the emptied partial files
    7. compare again, then the ready marker, last, and compare once more

From step 7 on a reader sees the new version. The comparisons are for filesystems whose locks keep nobody out:
another process may have moved, removed or finished any of the files. Killed between any two steps, the next
run finds new and old files side by side, knows both by the manifests that lie here, and ends in the same
tree. Files that were fsynced before step 1 are never written again.

Not guaranteed: anything for a reader that looked at the marker before step 3 and reads on; a directory
that is swapped in place belongs to one pod. Without working locks, two that publish different versions at
the same moment: the marker may stand for an instant where the other's files are.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace

from staging.directory.entry import Kind, Stamp
from staging.directory.failure import changed_locally
from staging.directory.local import LocalDirectory
from staging.directory.marker import Marker
from staging.directory.names import (
    PARTIAL_DIRECTORY,
    READY_NAME,
    begun_name,
    is_leftover,
    parents,
    partial_directory,
)
from staging.vocabulary.errors import MalformedInput, StagingError
from staging.vocabulary.location import MANIFEST_NAME
from staging.vocabulary.manifest import Manifest
from staging.vocabulary.paths import CONTROL_DIRECTORY


@dataclass(frozen=True, slots=True, kw_only=True)
class Publication:
    """What makes a directory hold `manifest`.

    `kept` are files that stay, `placed` files whose complete, durable bytes wait as partial files;
    `outgoing` are files of earlier versions that are removed or replaced. Each path has the stamp of
    the file that was checked. `emptied` are directories that only earlier versions needed.
    """

    manifest: Manifest
    kept: Mapping[str, Stamp]
    placed: Mapping[str, Stamp]
    outgoing: Mapping[str, Stamp]
    emptied: frozenset[str] = frozenset()


def publish(local: LocalDirectory, publication: Publication) -> None:
    """Publish a version under the held lock. Raises Conflict when files changed meanwhile."""
    tree = local.tree
    manifest = publication.manifest
    marker = Marker(manifest.id, {**publication.kept, **publication.placed})
    _check_unchanged(local, publication)
    tree.make_directory(CONTROL_DIRECTORY)
    begun = begun_name(manifest.id)
    tree.write_document(begun, manifest.encode())
    tree.unlink(READY_NAME)
    # Also when there was none: an interrupted run may have removed it without coming this far.
    tree.fsync_directory(CONTROL_DIRECTORY)
    tree.fsync_directory()  # in a new directory, so that the manifests survive what they account for
    _swap(local, publication)
    tree.rename(begun, MANIFEST_NAME)
    tree.fsync_directory(CONTROL_DIRECTORY)
    for name in filter(is_leftover, tree.listing(CONTROL_DIRECTORY)):
        tree.unlink(f"{CONTROL_DIRECTORY}/{name}")
    tree.remove_tree(PARTIAL_DIRECTORY)
    _check_in_place(local, marker)
    try:
        tree.write_document(READY_NAME, marker.encode())
        _check_in_place(local, marker, by_time=False)
    except StagingError:
        tree.unlink(READY_NAME)  # it may be in place but not durable (I15), or not true
        raise


def _check_unchanged(local: LocalDirectory, publication: Publication) -> None:
    waiting = partial_directory(publication.manifest.id)
    # Without either there is nothing to do but the documents: what another process may have done.
    if (publication.placed or not publication.outgoing) and _is_published(
        local, publication.manifest
    ):
        raise changed_locally(READY_NAME)
    expected: dict[str, Stamp | None] = dict.fromkeys(publication.placed)
    expected.update(publication.outgoing)
    expected.update(publication.kept)
    for path, stamp in expected.items():
        entry = local.tree.entry(path)
        if entry is not None and entry.kind is Kind.DIRECTORY and stamp is None:
            continue  # a directory of ours whose files are outgoing
        if (None if entry is None else entry.stamp) != stamp:
            raise changed_locally(path)
    if not publication.placed:
        return
    with local.tree.below(waiting) as partials:
        for path, stamp in publication.placed.items():
            entry = partials.entry(path)
            if entry is None or entry.stamp != stamp:
                raise changed_locally(f"{waiting}/{path}")


def _is_published(local: LocalDirectory, manifest: Manifest) -> bool:
    """True when somebody published this very version here: its marker is not taken away."""
    try:
        marker, held = local.read_marker(), local.read_manifest()
    except MalformedInput:
        return False
    return (
        marker is not None
        and marker.covers(manifest)
        and held is not None
        and held.id == manifest.id
        and (manifest.is_unverified or not held.is_unverified)  # a published one takes its place
        and local.is_intact(marker)
    )


def _check_in_place(local: LocalDirectory, marker: Marker, *, by_time: bool = True) -> None:
    """Compare files with the marker; not `by_time`, the same file may have got the same bytes again."""
    for path, stamp in marker.files.items():
        entry = local.tree.entry(path)
        found = None if entry is None or entry.kind is not Kind.FILE else entry.stamp
        if found is not None and not by_time:
            found = replace(found, mtime_ns=stamp.mtime_ns)
        if found != stamp:
            raise changed_locally(path)


def _swap(local: LocalDirectory, publication: Publication) -> None:
    tree = local.tree
    waiting = partial_directory(publication.manifest.id)
    needed = {directory for file in publication.manifest.files for directory in parents(file.path)}
    for path in publication.outgoing:
        if path not in publication.placed:
            tree.unlink(path)
    for directory in sorted(publication.emptied, reverse=True):  # what is inside comes first
        tree.remove_if_empty(directory)
    for directory in sorted({path.rpartition("/")[0] for path in publication.placed}):
        tree.make_directory(directory)
    with ExitStack() as held:
        partials = held.enter_context(tree.below(waiting)) if publication.placed else tree
        for path, stamp in publication.placed.items():
            entry = partials.entry(path)
            if (
                entry is None or entry.stamp != stamp
            ):  # in its place may be one that is being written
                raise changed_locally(path)
            partials.rename(path, path, into=tree)
    survivors = {directory for directory in publication.emptied if _is_directory(local, directory)}
    for directory in sorted({"", *needed, *survivors}):
        tree.fsync_directory(directory)


def _is_directory(local: LocalDirectory, path: str) -> bool:
    entry = local.tree.entry(path)
    return entry is not None and entry.kind is Kind.DIRECTORY
