"""A cache as a download meets it, before anything in it is changed.

Invariants: nothing is planned against the cache's own directory, where other things may lie; what lies in the
directory of a version that is being filled is ours, and refuses nobody; a link that could not be made is
found before the first byte.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from staging.directory.cache import version_name, work_path
from staging.directory.fs import Fs
from staging.store.store import Store
from staging.sync.cached import refusal_of_cache, spared_paths
from staging.sync.destination import Destination, look
from staging.sync.options import SyncOptions
from staging.sync.preflight import Examination, examine
from staging.vocabulary.errors import Conflict, StagingError, by_gravity
from staging.vocabulary.events import Reporter
from staging.vocabulary.location import S3Location
from staging.vocabulary.manifest import Manifest

_DISCARDED: Final = ("foreign-file", "foreign-weights")
"""Refusals for remains of a replaced version, which a run discards."""


@dataclass(frozen=True, slots=True)
class CacheView:
    """A cache, and the `link` that is to point to a version in it."""

    cache: Path
    link: Path

    def look(self, manifest: Manifest) -> Destination:
        """Look at the place where a version is filled. What other versions have counts as there."""
        try:
            spared = spared_paths(self.cache, manifest)
        except StagingError:  # the examination tells
            spared = frozenset()
        name = version_name(manifest.id)
        assert name is not None  # noqa: S101 - manifests have such ids
        return look(work_path(self.cache, name), manifest, fs=Fs(), spared=spared)

    def examine(
        self,
        store: Store,
        location: S3Location,
        options: SyncOptions,
        report: Reporter,
        *,
        manifest: Manifest | StagingError,
    ) -> Examination:
        """What would be done, as `staging.sync.preflight.examine` tells it, with the link's own troubles."""
        name = version_name(manifest.id) if isinstance(manifest, Manifest) else None
        known = manifest if isinstance(manifest, Manifest) else None
        findings = refusal_of_cache(self.cache, self.link, known)
        spared: Collection[str] = ()
        if isinstance(manifest, Manifest):
            try:
                spared = spared_paths(self.cache, manifest)
            except StagingError as error:
                findings.append(error)
        found = examine(
            store,
            location,
            self.cache if name is None else work_path(self.cache, name),
            options,
            report,
            manifest=manifest,
            spared=spared,
        )
        findings += [
            finding
            for finding in found.preflight.findings
            if not (isinstance(finding, Conflict) and finding.reference in _DISCARDED)
        ]
        checked = replace(found.preflight, findings=tuple(by_gravity(findings)))
        return replace(found, preflight=checked)
