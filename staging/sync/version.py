"""The filling of one version in a cache, under its lock.

    files that other versions have -> preflight -> links to them, or copies -> as `sync` -> its name

Invariants: a complete version is never written to, and never replaced for what somebody put beside it; what
goes with a damaged one is told; what has to be copied is not begun without room for all of it.
Not guaranteed: that what somebody put into a damaged version survives.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from staging.directory.cache import Cache
from staging.directory.entry import Kind, Stamp
from staging.directory.fs import Fs
from staging.directory.local import LocalDirectory
from staging.directory.names import PARTIAL_DIRECTORY
from staging.store.store import Store
from staging.sync.destination import look
from staging.sync.engine import present_manifest
from staging.sync.filling import Filling, already_present, sizing_of
from staging.sync.options import SyncOptions, SyncResult
from staging.sync.plan import Fetch, Refuse
from staging.sync.preflight import Preflight, preflight
from staging.sync.refusal import refusal_of
from staging.sync.sources import Source, Wanted, salvaged, vouched, wanted_of
from staging.sync.space import check_space, to_allocate
from staging.sync.turn import Turn
from staging.vocabulary.digest import Digest
from staging.vocabulary.errors import Conflict, StagingError
from staging.vocabulary.events import FileDone, Note, Reporter, Started
from staging.vocabulary.location import S3Location
from staging.vocabulary.manifest import Manifest, ManifestFile
from staging.vocabulary.paths import CONTROL_DIRECTORY

_SHOWN: Final = 5


def foreign_weights(place: Path, manifest: Manifest, fs: Fs) -> StagingError | None:
    """The refusal of a complete version that somebody put weights into; None for any other place."""
    there = look(place, manifest, fs=fs)
    refusals = [action for action in there.actions if isinstance(action, Refuse)]
    if len(there.vouched) < len(manifest.files) or not all(
        refusal.reference == "foreign-weights" for refusal in refusals
    ):
        return None
    return refusal_of(refusals, place)


class VersionFilling:
    """The filling of one version, under its lock."""

    def __init__(
        self,
        store: Store,
        location: S3Location,
        cache: Cache,
        manifest: Manifest,
        checked: Preflight | None,
        options: SyncOptions,
        fs: Fs,
        rng: random.Random,
    ) -> None:
        self._store = store
        self._location = location
        self._cache = cache
        self._manifest = manifest
        self._options = options
        self._fs = fs
        self._rng = rng
        self._name = manifest.id.replace(":", "-")
        self._work = cache.work_of(self._name)
        self._checked = checked

    def is_complete(self) -> bool:
        """True when the version has its name and is as its marker says."""
        place = self._cache.place_of(self._name)
        return present_manifest(place, self._manifest.id, fs=self._fs) is not None

    def attempt(self, mine: Turn) -> SyncResult:
        """Fill it and give it its name, unless it is there."""
        if self.is_complete():
            self._cache.discard(self._name)
            self._cache.tidy(self._name)
            return already_present(self._manifest)
        foreign = foreign_weights(self._cache.place_of(self._name), self._manifest, self._fs)
        if foreign is not None:
            raise foreign
        sources = self._sources(mine.report)
        checked = self._preflight(sources, mine.report)
        try:
            result = self._fill(sources, checked, mine.report)
        except Conflict as error:
            if error.reference not in ("foreign-file", "foreign-weights"):
                raise
            # All that lies there is ours: the remains of a version that was replaced.
            self._cache.discard(self._name)
            result = self._fill(sources, checked, mine.report)
        self._cache.place(self._name, self.is_complete)
        return result

    def _preflight(self, sources: Mapping[str, Source], report: Reporter) -> Preflight:
        if self._checked is None:
            first = next(iter(sources.values()), None)
            refused = first is not None and self._cache.refuses_links(first.version, first.path)
            checked = preflight(
                self._store,
                self._location,
                self._work,
                self._options,
                report,
                manifest=self._manifest,
                fs=self._fs,
                spared=frozenset() if refused else sources.keys(),
            )
            try:
                checked.require()
            except StagingError:
                self._cache.discard_links(self._name)
                raise
            self._checked = checked
        return self._checked

    def _fill(
        self, sources: Mapping[str, Source], checked: Preflight, report: Reporter
    ) -> SyncResult:
        with LocalDirectory(self._work, fs=self._fs, create=True) as local:
            filling = Filling(
                store=self._store,
                location=self._location,
                manifest=self._manifest,
                etags=checked.etags,
                options=self._options,
                rng=self._rng,
                known=self._shared(local, sources, report),
            )
            return filling.fill(local, report)

    def _shared(
        self, local: LocalDirectory, sources: Mapping[str, Source], report: Reporter
    ) -> Mapping[Stamp, frozenset[Digest]]:
        """Link what other versions have; copy what cannot be linked, when there is room for all of it."""
        known: dict[Stamp, frozenset[Digest]] = {}
        refused: list[ManifestFile] = []
        for file in self._manifest.files:
            source = sources.get(file.path)
            if source is None:
                continue
            if self._cache.share(source.version, source.path, source.stamp, self._name, file.path):
                known[source.stamp] = frozenset({file.digest})
            elif not self._cache.has_copy(self._name, file.path):
                refused.append(file)
        if refused:
            needed = to_allocate(Fetch(file, ()) for file in refused)
            check_space(needed, local.tree.free_bytes(), local.path)
            report(Started("copy", sum(file.size for file in refused), len(refused)))
        for file in refused:
            source = sources[file.path]
            self._cache.copy(source.version, source.path, self._name, file.path, report)
            report(FileDone(file.path, file.size))
        return known

    def _sources(self, report: Reporter) -> Mapping[str, Source]:
        """For each wanted path a file that has its bytes, where there is one."""
        wanted = wanted_of(self._manifest)
        there: dict[Wanted, Source] = {}
        sizing = sizing_of(self._options)
        for version in self._cache.versions():
            with LocalDirectory(self._cache.place_of(version), fs=self._fs) as local:
                there.update(vouched(local, version, wanted, report))
                if version == self._name:
                    threads = max(1, min(self._options.cores, sizing.concurrency))
                    found = salvaged(
                        local, version, self._manifest, there, threads=threads, report=report
                    )
                    there.update(found)
                    self._warn_of_strangers(local, report)
        return {
            file.path: there[file.size, file.digest]
            for file in self._manifest.files
            if (file.size, file.digest) in there
        }

    def _warn_of_strangers(self, local: LocalDirectory, report: Reporter) -> None:
        """A damaged version goes with all that is in it: say so when that is more than the version's."""
        ours = {*(file.path for file in self._manifest.files), CONTROL_DIRECTORY, PARTIAL_DIRECTORY}
        strangers = [
            path
            for path, entry in local.tree.walk()
            if entry.kind is not Kind.DIRECTORY
            and path not in ours
            and path.partition("/")[0] not in ours
        ]
        if strangers:
            shown = ", ".join(map(repr, strangers[:_SHOWN]))
            more = f" and {len(strangers) - _SHOWN} more" if len(strangers) > _SHOWN else ""
            text = (
                f"{str(local.path)!r} is damaged and is replaced by a whole one; what somebody put there"
                f" goes with it: {shown}{more}"
            )
            report(Note(text, warning=True))
