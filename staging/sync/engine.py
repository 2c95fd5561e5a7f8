"""`sync`: make a local directory hold a published checkpoint, or say why not.

    ready marker of that id, files untouched      -> done, nothing is fetched
    manifest -> inspect -> plan -> refuse, or check the space -> fetch -> publish

Invariants: returns only when every byte the manifest names is in the directory, durable and
digest-equal, and the marker says so (I1, I5); run again after any interruption it ends in the same
files and fetches only what was in flight (I6); what is refused, is refused before the first byte is
fetched, all of it in one error.
Not guaranteed: anything about readers that ignore the ready marker.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from staging.directory.entry import Kind, Stamp
from staging.directory.fs import Fs
from staging.directory.local import LocalDirectory
from staging.directory.names import PARTIAL_DIRECTORY, partial_directory
from staging.directory.publish import Publication, publish
from staging.layout.inventory import is_loaded_weight
from staging.published import read_manifest
from staging.store.store import Store
from staging.sync.fetch import Fetching, missing_bytes
from staging.sync.inspection import inspect, read_marker
from staging.sync.plan import (
    Action,
    Fetch,
    Keep,
    Leave,
    LocalState,
    Refuse,
    Remove,
    emptied_directories,
    plan,
)
from staging.transfer.sizing import choose
from staging.vocabulary.errors import Conflict, MalformedInput, NoSpace, NotFound
from staging.vocabulary.events import Note, Reporter, silent
from staging.vocabulary.location import S3Location
from staging.vocabulary.manifest import Manifest

_JITTER: Final = random.SystemRandom()
_BLOCK: Final = 4096
_RESERVE: Final = 8 * 1024 * 1024
_SHOWN: Final = 5

_HINTS: Final = {
    "symlink": "replace the links by real directories and files, or give another directory",
    "foreign-file": "move these files away, or give a directory of its own; to have a damaged file"
    " fetched again, delete it",
    "foreign-weights": "move these files away, or give a directory of its own: a server loads every"
    " weight file it finds",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncOptions:
    """How to sync: the memory budget in bytes, the processors to use, and what to insist on.

    `part_size` (bytes, a multiple of 16 MiB) and `concurrency` are chosen when None. With `expect_id`
    any other version under the prefix is an IntegrityError.
    """

    memory: int
    cores: int
    part_size: int | None = None
    concurrency: int | None = None
    expect_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncResult:
    """What a directory holds now, and what this run did for it. Sizes in bytes.

    `fetched_files` were put in place by this run; of their bytes `fetched_bytes` came from the
    store and `resumed_bytes` lay there from an interrupted run. `already_present` means that the
    marker vouched for everything and nothing was changed.
    """

    id: str
    files: int
    total_size: int
    fetched_files: int = 0
    fetched_bytes: int = 0
    resumed_bytes: int = 0
    kept_files: int = 0
    removed_files: int = 0
    already_present: bool = False


def sync(
    store: Store,
    location: S3Location,
    directory: Path,
    options: SyncOptions,
    report: Reporter = silent,
    *,
    fs: Fs | None = None,
    rng: random.Random = _JITTER,
) -> SyncResult:
    """Make `directory` hold the checkpoint published at `location`.

    With `options.expect_id` and everything in place no request is sent, without it one. Raises
    NotFound, AccessDenied, StoreUnavailable and MalformedInput as `read_manifest`; IntegrityError when
    the store does not hold what the manifest says; NoSpace; Conflict when the directory holds what
    is not ours, is in use, or is reached through a symlink; UsageError for impossible options;
    StagingError (`local-io`, `local-permission`) for other failures of the disk.
    """
    fs = fs or Fs()
    if options.expect_id is not None:
        present = _present(directory, options.expect_id, fs, report)
        if present is not None:
            return _already_present(present)
    manifest = read_manifest(store, location, expect_id=options.expect_id)
    if options.expect_id is None and _present(directory, manifest.id, fs, report) is not None:
        return _already_present(manifest)
    sizing = choose(
        0,  # ranges may be of any size and number, whatever the file's
        memory=options.memory,
        cores=options.cores,
        part_size=options.part_size,
        concurrency=options.concurrency,
    )
    with LocalDirectory(directory, fs=fs, create=True) as local, local.locked():
        threads = max(1, min(options.cores, sizing.concurrency))
        state = inspect(local, manifest, threads=threads, report=report)
        actions = plan(manifest, state)
        _refuse(actions, directory)
        _drop_stale_partials(local, manifest)
        if _is_current(manifest, state, actions):  # another process came first
            return _already_present(manifest)
        for action in actions:
            if isinstance(action, Leave):
                report(
                    Note(
                        f"{action.path!r} is of an earlier version but was changed: it stays", True
                    )
                )
        fetches = [action for action in actions if isinstance(action, Fetch)]
        _check_space(local, fetches)
        fetching = Fetching(store, location, local.tree, manifest, sizing, report=report, rng=rng)
        placed = fetching.run(fetches) if fetches else {}
        outgoing: dict[str, Stamp] = {
            action.path: action.stamp for action in actions if isinstance(action, Remove)
        }
        replaced: dict[str, Stamp] = {
            action.file.path: action.replaces for action in fetches if action.replaces is not None
        }
        kept: dict[str, Stamp] = {
            action.file.path: action.stamp for action in actions if isinstance(action, Keep)
        }
        publish(
            local,
            Publication(
                manifest=manifest,
                kept=kept,
                placed=placed,
                outgoing={**outgoing, **replaced},
                emptied=emptied_directories(manifest, state),
            ),
        )
    fetched = sum(map(missing_bytes, fetches))
    return SyncResult(
        id=manifest.id,
        files=len(manifest.files),
        total_size=manifest.total_size,
        fetched_files=len(fetches),
        fetched_bytes=fetched,
        resumed_bytes=sum(action.file.size for action in fetches) - fetched,
        kept_files=len(kept),
        removed_files=len(outgoing),
    )


def _present(directory: Path, wanted: str, fs: Fs, report: Reporter) -> Manifest | None:
    """The manifest `wanted` when the directory holds it complete and untouched; reads no member."""
    try:
        local = LocalDirectory(directory, fs=fs)
    except NotFound:
        return None
    with local:
        marker = read_marker(local, report)
        if marker is None or marker.id != wanted:
            return None
        try:
            manifest = local.read_manifest()
        except MalformedInput:  # the full run reports it
            return None
        if manifest is None or not marker.covers(manifest) or not local.is_intact(marker):
            return None
        if any(
            is_loaded_weight(name)
            and name not in marker.files
            and (entry := local.tree.entry(name)) is not None
            and entry.kind is not Kind.DIRECTORY
            for name in local.tree.listing()
        ):
            return None  # somebody else's: the plan tells
        if local.tree.listing(PARTIAL_DIRECTORY):
            report(
                Note(
                    f"{str(directory / PARTIAL_DIRECTORY)!r} holds what an interrupted download of"
                    " another version left; it may be removed",
                    warning=True,
                )
            )
        return manifest


def _already_present(manifest: Manifest) -> SyncResult:
    return SyncResult(
        id=manifest.id,
        files=len(manifest.files),
        total_size=manifest.total_size,
        kept_files=len(manifest.files),
        already_present=True,
    )


def _is_current(manifest: Manifest, state: LocalState, actions: Iterable[Action]) -> bool:
    marker = state.marker
    return (
        marker is not None
        and marker.covers(manifest)
        and any(version.id == manifest.id for version in state.published)
        and all(
            isinstance(action, Keep) and marker.files[action.file.path] == action.stamp
            for action in actions
        )
    )


def _refuse(actions: Iterable[Action], directory: Path) -> None:
    refusals = [action for action in actions if isinstance(action, Refuse)]
    if not refusals:
        return
    shown = "; ".join(f"{refusal.path!r} {refusal.reason}" for refusal in refusals[:_SHOWN])
    more = f"; and {len(refusals) - _SHOWN} more" if len(refusals) > _SHOWN else ""
    reference = refusals[0].reference
    raise Conflict(
        f"{str(directory)!r} is not free for this checkpoint: {shown}{more}",
        reference=reference,
        hint=_HINTS[reference],
        side="local",
    )


def _drop_stale_partials(local: LocalDirectory, manifest: Manifest) -> None:
    current = partial_directory(manifest.id).rpartition("/")[2]
    for name in local.tree.listing(PARTIAL_DIRECTORY):
        if name != current:
            local.tree.remove_tree(f"{PARTIAL_DIRECTORY}/{name}")


def _check_space(local: LocalDirectory, fetches: Sequence[Fetch]) -> None:
    needed = sum(
        max(0, -(-action.file.size // _BLOCK) * _BLOCK - action.allocated) for action in fetches
    )
    free = local.tree.free_bytes()
    if free is None or not needed or needed + _RESERVE <= free:
        return
    raise NoSpace(
        f"{str(local.path)!r} needs {_gb(needed + _RESERVE)} more, {_gb(free)} are free",
        reference="no-space",
        hint="give a larger volume or free space on this one, then run again",
        side="local",
    )


def _gb(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 10_000_000 else f"{count / 1e9:.4f} GB"
