"""`sync_cached`: have a shared cache hold a published checkpoint, and a symlink point to it.

    version complete in the cache                      -> the link, done
    manifest -> lock of that version, or wait          -> another process filled it: the link, done
             -> files that other versions have -> preflight -> links to them
             -> as `sync`, in the work directory -> rename to its name -> the link

Invariants: whoever follows the link finds nothing or a complete version, at every instant (I5); a version
is filled once, however many want it at once, and two versions at the same time; equal files are not fetched
and not hashed again: the marker of a complete version vouches for them.
Not guaranteed: that the version stays as long as something points to it; nothing removes versions yet.
"""

from __future__ import annotations

import random
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

from staging.directory.cache import Cache, version_name, versions_below, work_path
from staging.directory.fs import Fs
from staging.directory.link import VersionLink
from staging.directory.local import LocalDirectory
from staging.store.store import Store
from staging.sync.engine import present_manifest, published_or_why_not
from staging.sync.filling import already_present, sizing_of
from staging.sync.options import SyncOptions, SyncResult
from staging.sync.preflight import Preflight, preflight
from staging.sync.sources import Wanted, vouched, wanted_of
from staging.sync.turn import turn
from staging.sync.version import VersionFilling, foreign_weights
from staging.vocabulary.errors import NotFound, StagingError, together
from staging.vocabulary.events import Reporter, silent
from staging.vocabulary.location import S3Location
from staging.vocabulary.manifest import Manifest

_JITTER: Final = random.SystemRandom()


def present_cached(
    cache: Path,
    link: Path,
    expect_id: str,
    report: Reporter = silent,
    *,
    fs: Fs | None = None,
    change: bool = True,
) -> SyncResult | None:
    """What a cache holds when that is the checkpoint `expect_id`, complete and untouched; else None.

    The link is made to point to it unless told not to `change` anything. Needs no store. Raises as
    `present`, and Conflict (`not-a-version-link`) when something else is in the link's place.
    """
    fs = fs or Fs()
    name = version_name(expect_id)
    if name is None:
        return None
    manifest = present_manifest(cache / name, expect_id, report, fs=fs)
    if manifest is None:
        return None
    where = VersionLink(link, cache, fs=fs)
    if change:
        where.point(name)
    else:
        where.version()
    return already_present(manifest)


def sync_cached(
    store: Store,
    location: S3Location,
    cache: Path,
    link: Path,
    options: SyncOptions,
    report: Reporter = silent,
    *,
    checked: Preflight | None = None,
    fs: Fs | None = None,
    rng: random.Random = _JITTER,
) -> SyncResult:
    """Have `cache` hold the checkpoint published at `location`, and `link` point to it.

    What a preflight of this very download has `checked` a moment ago is not asked for again.

    Raises as `sync`; Conflict (`not-a-version-link`) when something else than a link into the cache has
    the link's name.
    """
    fs = fs or Fs()
    sizing_of(options)
    published: Manifest | StagingError
    if checked is not None:
        published = checked.require()
    else:
        if options.expect_id is not None:
            found = present_cached(cache, link, options.expect_id, report, fs=fs)
            if found is not None:
                return found
        published = published_or_why_not(store, location, options)
        if options.expect_id is None and isinstance(published, Manifest):
            found = present_cached(cache, link, published.id, report, fs=fs)
            if found is not None:
                return found
    where = VersionLink(link, cache, fs=fs)
    try:
        if isinstance(published, StagingError):
            raise published
        name = published.id.replace(":", "-")
        if (refusal := where.refusal(name)) is not None:
            raise refusal
        with Cache(cache, fs=fs) as shared:
            shared.prepare()
    except StagingError as error:
        known = published if isinstance(published, Manifest) else None
        place = cache if known is None else work_path(cache, known.id.replace(":", "-"))
        others = preflight(store, location, place, options, report, manifest=published, fs=fs)
        raise together(_with(error, others)) from error
    with (
        Cache(cache, fs=fs) as shared,
        turn(partial(shared.locked, name), options, report, rng) as mine,
    ):
        job = VersionFilling(store, location, shared, published, checked, options, fs, rng)
        result = mine.persist(lambda: job.attempt(mine), job.is_complete)
    where.point(name)
    return replace(result, adopted=result.already_present and mine.waited)


def _with(error: StagingError, checked: Preflight) -> list[StagingError]:
    same = {(found.reference, found.message) for found in checked.findings}
    others = list(checked.findings)
    return others if (error.reference, error.message) in same else [error, *others]


def spared_paths(cache: Path, manifest: Manifest, *, fs: Fs | None = None) -> frozenset[str]:
    """The files of a checkpoint that complete versions in a cache have, and that need not be fetched.

    Changes nothing. Raises as `LocalDirectory`.
    """
    fs = fs or Fs()
    try:
        with LocalDirectory(cache, fs=fs) as local:
            versions = versions_below(local.tree)
    except NotFound:
        return frozenset()
    wanted = wanted_of(manifest)
    there: set[Wanted] = set()
    for version in versions:
        with LocalDirectory(cache / version, fs=fs) as local:
            there.update(vouched(local, version, wanted, silent))
    return frozenset(file.path for file in manifest.files if (file.size, file.digest) in there)


def refusal_of_cache(
    cache: Path, link: Path, manifest: Manifest | None, *, fs: Fs | None = None
) -> list[StagingError]:
    """Why `cache` and `link` could not serve for a checkpoint: what no look at its work directory tells.

    The link cannot be made or moved; files that are somebody else's lie in the version. Changes nothing.
    """
    fs = fs or Fs()
    name = None if manifest is None else version_name(manifest.id)
    findings = [VersionLink(link, cache, fs=fs).refusal(name)]
    if manifest is not None and name is not None:
        findings.append(foreign_weights(cache / name, manifest, fs))
    return [finding for finding in findings if finding is not None]
