"""`sync`: make a local directory hold a published checkpoint, or say why not.

    ready marker of that id, files untouched           -> done, nothing is fetched
    manifest -> preflight -> lock, or wait for whoever has it
             -> inspect -> plan -> refuse, or check the space -> fetch -> publish

Invariants: returns only when every byte the manifest names is in the directory, durable and
digest-equal, and the marker says so (I1, I5); run again after any interruption it ends in the same
files and fetches only what was in flight (I6); what is refused, is refused before the first byte of a weight
is fetched, all of it in one error; several processes at once end in the same files, with locks that work
after one download.
Not guaranteed: anything about readers that ignore the ready marker.
"""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Final

from staging.directory.entry import Kind
from staging.directory.fs import Fs
from staging.directory.local import LocalDirectory
from staging.directory.names import PARTIAL_DIRECTORY
from staging.layout.inventory import is_loaded_weight
from staging.published import read_manifest
from staging.store.store import Store
from staging.sync.filling import Filling, already_present, sizing_of
from staging.sync.inspection import read_marker
from staging.sync.options import SyncOptions, SyncResult
from staging.sync.preflight import Preflight, preflight
from staging.sync.turn import turn
from staging.vocabulary.errors import MalformedInput, NotFound, StagingError
from staging.vocabulary.events import Note, Reporter, silent
from staging.vocabulary.location import S3Location
from staging.vocabulary.manifest import Manifest

_JITTER: Final = random.SystemRandom()


def sync(
    store: Store,
    location: S3Location,
    directory: Path,
    options: SyncOptions,
    report: Reporter = silent,
    *,
    checked: Preflight | None = None,
    fs: Fs | None = None,
    rng: random.Random = _JITTER,
) -> SyncResult:
    """Make `directory` hold the checkpoint published at `location`.

    With `options.expect_id` and everything in place no request is sent, without it one. What a preflight of
    this very download has `checked` a moment ago is neither asked for nor looked at again. While another
    process writes to the directory this one waits, reports `Waiting`, and adopts what the other made.
    Raises NotFound, AccessDenied, StoreUnavailable and MalformedInput as `read_manifest`; IntegrityError
    when the store does not hold what the manifest says; LayoutInvalid when the files would not serve;
    NoSpace; Conflict when the directory holds what is not ours, is in use (without `options.wait`), or
    is reached through a symlink; UsageError for impossible options; StagingError (`local-io`,
    `local-permission`) for other failures of the disk. An error of the preflight stands for all that
    was found.
    """
    fs = fs or Fs()
    sizing_of(options)  # raises before anything is asked for or touched
    if checked is None:
        if options.expect_id is not None:
            found = present(directory, options.expect_id, report, fs=fs)
            if found is not None:
                return found
        published = published_or_why_not(store, location, options)
        if options.expect_id is None and isinstance(published, Manifest):
            found = present_published(directory, published, report, fs=fs)
            if found is not None:
                return found
        checked = preflight(store, location, directory, options, report, manifest=published, fs=fs)
    manifest = checked.require()
    filling = Filling(
        store=store,
        location=location,
        manifest=manifest,
        etags=checked.etags,
        options=options,
        rng=rng,
    )
    with (
        LocalDirectory(directory, fs=fs, create=True) as local,
        turn(local.locked, options, report, rng) as mine,
    ):
        result = mine.persist(
            lambda: filling.fill(local, mine.report),
            lambda: present(directory, manifest.id, silent, fs=fs) is not None,
        )
    return replace(result, adopted=result.already_present and mine.waited)


def published_or_why_not(
    store: Store, location: S3Location, options: SyncOptions
) -> Manifest | StagingError:
    """What `read_manifest` returns or raises, for a preflight to tell with everything else."""
    try:
        return read_manifest(store, location, expect_id=options.expect_id)
    except StagingError as error:
        return error


def present(
    directory: Path, expect_id: str, report: Reporter = silent, *, fs: Fs | None = None
) -> SyncResult | None:
    """What a directory holds when that is the checkpoint `expect_id`, complete and untouched; else None.

    Looks at the marker and the files' stamps, reads no member and needs no store. Raises Conflict and
    StagingError for a destination that cannot be looked at.
    """
    manifest = present_manifest(directory, expect_id, report, fs=fs)
    return None if manifest is None else already_present(manifest)


def present_published(
    directory: Path, manifest: Manifest, report: Reporter = silent, *, fs: Fs | None = None
) -> SyncResult | None:
    """As `present`, for a manifest that was read from the store.

    It takes the place of one that a download of an unpublished prefix made of the same files.
    """
    held = present_manifest(directory, manifest.id, report, fs=fs)
    return None if held is None or held.is_unverified else already_present(held)


def present_manifest(
    directory: Path, expect_id: str, report: Reporter = silent, *, fs: Fs | None = None
) -> Manifest | None:
    """The manifest of what `present` finds."""
    try:
        local = LocalDirectory(directory, fs=fs or Fs())
    except NotFound:
        return None
    with local:
        marker = read_marker(local, report)
        if marker is None or marker.id != expect_id:
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
            text = (
                f"{str(directory / PARTIAL_DIRECTORY)!r} holds what an interrupted download of another"
                " version left; it may be removed"
            )
            report(Note(text, warning=True))
        return manifest
