"""`sync_unverified`: a prefix that nobody published into a local directory, with what proof there is.

    list -> a manifest is there after all: an ordinary `sync`
         -> the listing that is recorded here, files untouched: done, nothing is fetched
    look -> preflight of a stand-in -> lock, or wait -> `staging.sync.learning`

The directory gets a manifest of its own, which says `unverified` in its annotations, with the prefix and, for
each file, its ETag and what vouched for its bytes (`staging.sync.stand_in`).

Invariants: every byte is of a version in the listing that is recorded (I7); the directory is published as by
`sync`, so a reader sees nothing or one whole version (I5); a partial file is taken over only when the store's
checksum, or an ETag that is its MD5, proves all of its bytes (I6).
Not guaranteed: that the files are a whole checkpoint; that bytes without a stored checksum are those that
were put there.
"""

from __future__ import annotations

import datetime
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from staging.directory.fs import Fs
from staging.directory.local import LocalDirectory
from staging.published import require_id, require_usable_id
from staging.store.store import ObjectInfo, Store
from staging.sync.destination import look
from staging.sync.engine import present, present_manifest, sync
from staging.sync.filling import already_present
from staging.sync.learning import Learning
from staging.sync.options import SyncOptions, SyncResult
from staging.sync.plan import Refuse
from staging.sync.preflight import Examination, Preflight, preflight
from staging.sync.preflight import examine as examine_plan
from staging.sync.refusal import refusal_of
from staging.sync.stand_in import StandIn, is_recorded, manifests_in, refusals_in, stand_in_for
from staging.sync.turn import turn
from staging.unpublished.prefix import (
    changed,
    examine,
    list_prefix,
)
from staging.unpublished.wholeness import refuse_missing_shards, refuse_unfinished_copy
from staging.vocabulary.errors import (
    AccessDenied,
    Conflict,
    IntegrityError,
    MalformedInput,
    NotFound,
    StagingError,
    by_gravity,
)
from staging.vocabulary.events import Reporter, silent
from staging.vocabulary.location import S3Location

_JITTER: Final = random.SystemRandom()
_CHANGED: Final = "an object was replaced or is gone"
_REFERENCES: Final = ("changed", "object-missing", "object-size")
"""Of what a preflight finds: an object that is not the version in the listing."""


def present_unverified(
    store: Store,
    location: S3Location,
    directory: Path,
    report: Reporter = silent,
    *,
    expect_id: str | None = None,
    fs: Fs | None = None,
) -> SyncResult | None:
    """What `directory` holds, if that is what lies under `location`: one listing, no byte.

    None when anything differs, when a manifest is there, or when nothing may be listed. Raises
    IntegrityError when it is what lies there and has not the expected id; with that id it counts as
    verified. Raises UsageError for an expected id that is none.
    """
    require_usable_id(expect_id)
    try:
        objects = list_prefix(store, location)
    except AccessDenied:
        return None
    return _held(objects, location, directory, expect_id, fs or Fs(), report)


def stand_in(
    store: Store,
    location: S3Location,
    directory: Path,
    options: SyncOptions,
    *,
    fs: Fs | None = None,
) -> StandIn:
    """Look at a prefix without a manifest; what it returns has a manifest for `preflight` and `examine`.

    Raises NotFound when there is nothing to take for a checkpoint, or an unfinished upload; Conflict when a
    copy to it is under way or other checkpoints lie below; MalformedInput for unsafe names; LayoutInvalid
    when shards are missing.
    """
    objects = list_prefix(store, location)
    return _look(store, location, objects, directory, options, fs or Fs())


def examine_unverified(
    store: Store,
    location: S3Location,
    directory: Path,
    options: SyncOptions,
    report: Reporter = silent,
    *,
    fs: Fs | None = None,
) -> Examination:
    """What `sync_unverified` would do, as `staging.sync.preflight.examine` tells it; changes nothing.

    The errors that `stand_in` raises are among the findings.
    """
    fs = fs or Fs()
    try:
        expected = stand_in(store, location, directory, options, fs=fs)
    except StagingError as error:
        return examine_plan(store, location, directory, options, report, manifest=error, fs=fs)
    planned = expected.manifest
    found = examine_plan(store, location, directory, options, report, manifest=planned, fs=fs)
    checked = _in_terms_of_listings(found.preflight, store, location)
    actions = look(directory, planned, fs=fs).actions
    told = refusal_of([action for action in actions if isinstance(action, Refuse)], directory)
    better = refusal_of(refusals_in(actions, expected), directory)
    findings = [each for each in checked.findings if told is None or each.message != told.message]
    if better is not None:
        findings.append(better)
    return replace(found, preflight=replace(checked, findings=tuple(by_gravity(findings))))


def sync_unverified(
    store: Store,
    location: S3Location,
    directory: Path,
    options: SyncOptions,
    report: Reporter = silent,
    *,
    fs: Fs | None = None,
    now: Callable[[], datetime.datetime] = lambda: datetime.datetime.now(datetime.UTC),
    rng: random.Random = _JITTER,
) -> SyncResult:
    """Make `directory` hold what lies under `location`, published or not.

    When it is published, or may not be listed, this is `sync`. With `options.expect_id` that id is the
    proof, and the result is not called unverified. Raises what `sync` and `stand_in` raise; Conflict
    (`prefix-changed`) when the prefix is written to meanwhile; IntegrityError when the bytes of an object
    have another checksum than the store keeps, or the id is not the expected one.
    """
    fs = fs or Fs()
    require_usable_id(options.expect_id)
    if options.expect_id is not None:
        found = present(directory, options.expect_id, report, fs=fs)
        if found is not None:
            return found
    try:
        objects = list_prefix(store, location)
    except AccessDenied:
        return sync(store, location, directory, options, report, fs=fs, rng=rng)
    if any(info.key == location.manifest_key for info in objects):
        return sync(store, location, directory, options, report, fs=fs, rng=rng)

    def held(report: Reporter = silent) -> SyncResult | None:
        return _held(objects, location, directory, options.expect_id, fs, report)

    found = held(report)
    if found is not None:
        return found
    expected = _look(store, location, objects, directory, options, fs)
    checked = preflight(
        store, location, directory, options, report, manifest=expected.manifest, fs=fs
    )
    _in_terms_of_listings(checked, store, location).require()
    with (
        LocalDirectory(directory, fs=fs, create=True) as local,
        turn(local.locked, options, report, rng) as mine,
    ):

        def attempt() -> SyncResult:
            made = held()
            if made is not None:  # by another process
                return made
            planned = stand_in_for(expected.found, manifests_in(local))
            return Learning(store, local, planned, options, mine.report, rng).fill(now())

        result = mine.persist(attempt, lambda: held() is not None)
    return replace(result, adopted=result.already_present and mine.waited)


def _look(
    store: Store,
    location: S3Location,
    objects: Sequence[ObjectInfo],
    directory: Path,
    options: SyncOptions,
    fs: Fs,
) -> StandIn:
    found = examine(store, location, objects)
    refuse_unfinished_copy(store, found)
    if options.layout_check:
        refuse_missing_shards(found)
    try:
        with LocalDirectory(directory, fs=fs) as local:
            return stand_in_for(found, manifests_in(local))
    except (NotFound, Conflict):  # what is wrong with the directory is told by whoever looks at it
        return stand_in_for(found, ())


def _in_terms_of_listings(checked: Preflight, store: Store, location: S3Location) -> Preflight:
    """The same findings; of objects that are not what was listed a moment ago no manifest says anything."""
    return replace(
        checked,
        findings=tuple(
            changed(_CHANGED, store, location.prefix)
            if isinstance(finding, IntegrityError) and finding.reference in _REFERENCES
            else finding
            for finding in checked.findings
        ),
    )


def _held(
    objects: Sequence[ObjectInfo],
    location: S3Location,
    directory: Path,
    expect_id: str | None,
    fs: Fs,
    report: Reporter,
) -> SyncResult | None:
    """What a directory has that holds exactly what is listed, complete and untouched."""
    try:
        with LocalDirectory(directory, fs=fs) as local:
            manifest = local.read_manifest()
    except (NotFound, MalformedInput):
        return None
    if manifest is None or not is_recorded(manifest, location, objects):
        return None
    manifest = present_manifest(directory, manifest.id, report, fs=fs)
    if manifest is None:
        return None
    require_id(manifest, expect_id, str(location), side="store")
    return replace(already_present(manifest), unverified=expect_id is None)
