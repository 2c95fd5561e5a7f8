"""Comparing a prefix in a store with its manifest, at three levels of proof.

    size      one listing: every file is there with its size, and nothing else is
    checksum  one HEAD per file: the store's own full-object checksum equals the manifest's; no bytes
    digest    every byte is read and every chunk digest compared; no other weights are beside them

All findings are collected; nothing stops at the first. A file whose store keeps no checksum is a
finding at level `checksum`, for what cannot be proven has not passed (I1).
Level `checksum` lists nothing, so it sees no object that the manifest does not name; level `digest`
reports those that a server would load from the root.

Not guaranteed: anything about bytes at the levels `size` and `checksum` on stores that keep checksums
they never checked; `staging upload` says which do.
"""

from __future__ import annotations

import functools
import random
import threading

from staging.layout.inventory import is_loaded_weight
from staging.store.store import Changed, Store
from staging.transfer.budget import Budget
from staging.transfer.ranges import read_range
from staging.transfer.scheduler import Scheduler
from staging.transfer.sizing import choose
from staging.verify.verification import (
    Level,
    Problem,
    Verification,
    extra_weight,
    missing,
    wrong_chunk,
    wrong_size,
)
from staging.vocabulary.digest import CHUNK_SIZE, chunk_count, chunk_span
from staging.vocabulary.errors import NotFound
from staging.vocabulary.events import FileDone, Moved, Reporter, Started, silent
from staging.vocabulary.location import S3Location
from staging.vocabulary.manifest import Manifest, ManifestFile


def verify_prefix(
    store: Store,
    location: S3Location,
    manifest: Manifest,
    level: Level,
    *,
    memory: int,
    cores: int,
    concurrency: int | None = None,
    report: Reporter = silent,
    rng: random.Random | None = None,
) -> Verification:
    """Compare the objects under a prefix with its manifest.

    Raises what the store raises when it cannot be asked; differences are findings, not errors.
    """
    if level is Level.SIZE:
        problems = _compare_listing(store, location, manifest)
        return Verification(level, len(manifest.files), 0, tuple(problems))
    sizing = choose(0, memory=memory, cores=cores, concurrency=concurrency)
    check = _PrefixCheck(
        store,
        location,
        manifest,
        level,
        sizing.concurrency,
        report,
        rng or random.Random(),  # noqa: S311
    )
    total = manifest.total_size if level is Level.DIGEST else None
    report(Started(f"verify {level.value}", total, len(manifest.files)))
    with Scheduler(sizing.concurrency, name="verify") as scheduler:
        check.run(scheduler)
    problems = check.problems()
    if level is Level.DIGEST:
        extra = _extra_weights(store, location, manifest)
        problems = sorted([*problems, *extra], key=lambda problem: problem.path)
    return Verification(level, len(manifest.files), check.read_bytes, tuple(problems))


def _compare_listing(store: Store, location: S3Location, manifest: Manifest) -> list[Problem]:
    wanted = {location.key(file.path): file for file in manifest.files}
    problems = []
    seen = set()
    for info in store.list_objects(location.prefix):
        seen.add(info.key)
        file = wanted.get(info.key)
        name = info.key[len(location.prefix) :]
        if file is not None and info.size != file.size:
            problems.append(wrong_size(file, info.size))
        elif file is None and not location.is_aside(info.key, info.size):
            problems.append(
                Problem(name, "extra", f"{name}: not in the manifest ({info.size} bytes)")
            )
    problems.extend(missing(file) for key, file in wanted.items() if key not in seen)
    return sorted(problems, key=lambda problem: problem.path)


def _extra_weights(store: Store, location: S3Location, manifest: Manifest) -> list[Problem]:
    known = {location.key(file.path) for file in manifest.files}
    return [
        extra_weight(info.key[len(location.prefix) :])
        for info in store.list_objects(location.prefix)
        if info.key not in known and is_loaded_weight(info.key[len(location.prefix) :])
    ]


class _PrefixCheck:
    """HEADs, and at level `digest` all bytes, from several threads."""

    def __init__(
        self,
        store: Store,
        location: S3Location,
        manifest: Manifest,
        level: Level,
        concurrency: int,
        report: Reporter,
        rng: random.Random,
    ) -> None:
        self._store = store
        self._location = location
        self._manifest = manifest
        self._level = level
        self._report = report
        self._rng = rng
        self._budget = Budget(concurrency * CHUNK_SIZE)
        self._lock = threading.Lock()
        self._problems: list[tuple[str, int, Problem]] = []
        self.read_bytes = 0

    def run(self, scheduler: Scheduler) -> None:
        etags: dict[str, str] = {}
        for file in self._manifest.files:
            scheduler.submit(functools.partial(self._head, file, etags))
        if self._level is not Level.DIGEST:
            return
        # HEADs are quick and come first, so that a missing file is known before bytes are read.
        scheduler.drain()
        for file in self._manifest.files:
            if file.path in etags:
                for index in range(chunk_count(file.size) if file.size else 0):
                    scheduler.submit(
                        functools.partial(self._read, scheduler, file, index, etags[file.path])
                    )

    def problems(self) -> list[Problem]:
        return [problem for _, _, problem in sorted(self._problems, key=lambda entry: entry[:2])]

    def _head(self, file: ManifestFile, etags: dict[str, str]) -> None:
        try:
            info = self._store.head(self._location.key(file.path))
        except NotFound as error:
            if error.reference == "bucket":
                raise
            self._found(missing(file))
            return
        if info.size != file.size:
            self._found(wrong_size(file, info.size))
        elif self._level is Level.DIGEST:
            with self._lock:
                etags[file.path] = info.etag
            return
        else:
            self._compare_checksum(file, info.crc64nvme)
        self._report(FileDone(file.path, file.size))

    def _compare_checksum(self, file: ManifestFile, stored: str | None) -> None:
        expected = file.checksums.get("crc64nvme")
        if expected is None:
            text = f"{file.path}: the manifest has no CRC64NVME to compare with"
            self._found(Problem(file.path, "not-provable", text))
        elif stored is None:
            text = f"{file.path}: not provable on this store, it keeps no CRC64NVME"
            self._found(Problem(file.path, "not-provable", text))
        elif stored != expected:
            text = f"{file.path}: the store's CRC64NVME is {stored}, the manifest's {expected}"
            self._found(Problem(file.path, "checksum", text))

    def _read(self, scheduler: Scheduler, file: ManifestFile, index: int, etag: str) -> None:
        offset, length = chunk_span(file.size, index)
        buffer = self._budget.acquire(length, scheduler.cancelled)
        try:
            with memoryview(buffer) as view:
                read_range(
                    self._store,
                    self._location.key(file.path),
                    offset,
                    view,
                    etag=etag,
                    cancelled=scheduler.cancelled,
                    rng=self._rng,
                )
                good = self._manifest.hash.hash(view) == file.chunks[index]
        except Changed:
            self._found(
                Problem(file.path, "changed", f"{file.path}: was rewritten while it was read"),
                index,
            )
            return
        finally:
            self._budget.release(buffer)
        with self._lock:
            self.read_bytes += length
        if not good:
            self._found(wrong_chunk(file, index), index)
        self._report(Moved(length))
        if index == chunk_count(file.size) - 1:
            self._report(FileDone(file.path, file.size))

    def _found(self, problem: Problem, order: int = 0) -> None:
        with self._lock:
            self._problems.append((problem.path, order, problem))
