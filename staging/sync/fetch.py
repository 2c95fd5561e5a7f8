"""Fetching missing chunks into partial files: every byte verified before it is written.

Invariants: all ranges of a file carry the ETag of one HEAD, so bytes of two versions are never mixed
(I7); a chunk is written only after its digest matched (I1); a range that does not match is asked for
again at most `MAX_REPEATS` times (I11); memory is `concurrency` buffers of a part each.
Not guaranteed: that a file whose fetching ended by an error lacks chunks; a later run looks.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Final

from staging.directory.entry import Stamp
from staging.directory.names import partial_directory
from staging.directory.partial import PartialFile
from staging.directory.tree import Tree
from staging.store.store import Changed, ObjectInfo, Store
from staging.sync.plan import Fetch
from staging.transfer.budget import Budget
from staging.transfer.ranges import read_range
from staging.transfer.scheduler import Scheduler
from staging.transfer.sizing import Sizing
from staging.vocabulary.digest import CHUNK_SIZE, chunk_span
from staging.vocabulary.errors import IntegrityError, NotFound
from staging.vocabulary.events import FileDone, Moved, Reporter, Started
from staging.vocabulary.location import S3Location
from staging.vocabulary.manifest import Manifest, ManifestFile

MAX_REPEATS: Final = 2
"""Requests for a chunk whose bytes did not match, after the first."""

_SHOWN: Final = 3


@dataclass(frozen=True, slots=True)
class Part:
    """Consecutive missing chunks of a file, moved by one request: `first` is a chunk index."""

    first: int
    count: int

    def span(self, size: int) -> tuple[int, int]:
        """Offset and length in bytes, in a file of `size` bytes."""
        offset = self.first * CHUNK_SIZE
        return offset, min(size, (self.first + self.count) * CHUNK_SIZE) - offset


def parts_of(action: Fetch, part_size: int) -> Iterator[Part]:
    """Cut the missing chunks into parts of at most `part_size` bytes; an empty file has none."""
    if action.file.size == 0:
        return
    most = part_size // CHUNK_SIZE
    first = count = 0
    for index in action.missing:
        if count and (index != first + count or count == most):
            yield Part(first, count)
            count = 0
        if not count:
            first = index
        count += 1
    if count:
        yield Part(first, count)


def missing_bytes(action: Fetch) -> int:
    """Bytes that have to come from the store."""
    return sum(chunk_span(action.file.size, index)[1] for index in action.missing)


class Fetching:
    """One run of fetching files of one manifest into their partial files."""

    def __init__(
        self,
        store: Store,
        location: S3Location,
        tree: Tree,
        manifest: Manifest,
        sizing: Sizing,
        *,
        report: Reporter,
        rng: random.Random,
    ) -> None:
        self._store = store
        self._location = location
        self._tree = tree
        self._manifest = manifest
        self._sizing = sizing
        self._report = report
        self._rng = rng

    def run(self, actions: Sequence[Fetch]) -> dict[str, Stamp]:
        """Complete the partial files of `actions` and return their stamps; all of them are durable.

        Raises IntegrityError when an object is missing, has another size, has other bytes than the
        manifest names, or changes meanwhile; else what the store and the disk raise.
        """
        etags = self._pin([action.file for action in actions if missing_bytes(action)])
        self._report(Started("download", sum(map(missing_bytes, actions)), len(actions)))
        directory = partial_directory(self._manifest.id)
        files: list[_File] = []
        try:
            with Scheduler(self._sizing.concurrency, name="download") as scheduler:
                budget = Budget(self._sizing.concurrency * self._sizing.part_size)
                for action in actions:
                    parts = list(parts_of(action, self._sizing.part_size))
                    file = _File(
                        self._tree,
                        action.file,
                        f"{directory}/{action.file.path}",
                        len(parts),
                        action.partial,
                    )
                    files.append(file)
                    if not parts:
                        scheduler.submit(partial(self._complete, file))
                    for part in parts:
                        etag = etags[action.file.path]
                        scheduler.submit(partial(self._fetch, file, part, etag, budget, scheduler))
                scheduler.finish()
        finally:
            for file in files:
                file.close()
        return {file.entry.path: file.stamp for file in files if file.stamp is not None}

    def _pin(self, files: Sequence[ManifestFile]) -> dict[str, str]:
        """The ETag of every object, after comparing its size, so that a bad prefix fails early."""
        etags: dict[str, str] = {}
        wrong: dict[str, IntegrityError] = {}

        def look(file: ManifestFile) -> None:
            key = self._location.key(file.path)
            try:
                info = self._store.head(key)
            except NotFound as error:
                if error.reference == "bucket":
                    raise
                wrong[file.path] = _missing(file, self._location)
                return
            if info.size != file.size:
                wrong[file.path] = _wrong_size(file, info, self._location)
            etags[file.path] = info.etag

        with Scheduler(self._sizing.concurrency, name="head") as scheduler:
            for file in files:
                scheduler.submit(partial(look, file))
            scheduler.finish()
        if wrong:
            raise _first_of(wrong)
        return etags

    def _fetch(
        self, file: _File, part: Part, etag: str, budget: Budget, scheduler: Scheduler
    ) -> None:
        entry = file.entry
        offset, length = part.span(entry.size)
        buffer = budget.acquire(length, scheduler.cancelled)
        try:
            with memoryview(buffer) as view:
                self._read(file, offset, view, etag, scheduler)
                for index in range(part.first, part.first + part.count):
                    start, size = chunk_span(entry.size, index)
                    with view[start - offset : start - offset + size] as chunk:
                        self._verify(file, index, chunk, etag, scheduler)
                scheduler.cancelled.check()
                file.write(offset, view)
        finally:
            budget.release(buffer)
        self._report(Moved(length))
        if file.part_done():
            self._complete(file)

    def _verify(
        self, file: _File, index: int, chunk: memoryview, etag: str, scheduler: Scheduler
    ) -> None:
        """Leave the verified bytes of a chunk in `chunk`, asking again when they do not match."""
        entry = file.entry
        offset, size = chunk_span(entry.size, index)
        for _ in range(MAX_REPEATS):
            if self._manifest.hash.hash(chunk) == entry.chunks[index]:
                return
            self._read(file, offset, chunk, etag, scheduler)
        if self._manifest.hash.hash(chunk) != entry.chunks[index]:
            raise IntegrityError(
                f"{entry.path!r} in {self._location} is damaged: chunk {index} (bytes {offset} to"
                f" {offset + size - 1}) does not have the manifest's digest, in"
                f" {MAX_REPEATS + 1} requests",
                reference="chunk-digest",
                hint=f"run `staging verify {self._location}`; when the object is damaged in the store,"
                " upload the checkpoint again under a new prefix",
                side="store",
            )

    def _read(
        self, file: _File, offset: int, view: memoryview, etag: str, scheduler: Scheduler
    ) -> None:
        entry = file.entry
        try:
            read_range(
                self._store,
                self._location.key(entry.path),
                offset,
                view,
                etag=etag,
                cancelled=scheduler.cancelled,
                rng=self._rng,
            )
        except Changed as error:
            raise Changed(
                f"{entry.path!r} in {self._location} changed while it was read",
                reference="changed",
                hint="published objects must not be overwritten; run `staging verify"
                f" {self._location}`, and upload again under a new prefix",
                side="store",
            ) from error
        except NotFound as error:
            raise _missing(entry, self._location) from error

    def _complete(self, file: _File) -> None:
        file.finish()
        self._report(FileDone(file.entry.path, file.entry.size))


class _File:
    """A file that parts are written to: opened by the first, made durable and closed by the last."""

    def __init__(
        self, tree: Tree, entry: ManifestFile, name: str, parts: int, expected: Stamp | None
    ) -> None:
        self.entry = entry
        self._expected = expected
        self.stamp: Stamp | None = None
        self._tree = tree
        self._name = name
        self._parts = parts
        self._lock = threading.Lock()
        self._partial: PartialFile | None = None

    def write(self, offset: int, view: memoryview) -> None:
        """Write verified bytes."""
        self._opened().write(offset, view)

    def part_done(self) -> bool:
        """Count a part; True for the last."""
        with self._lock:
            self._parts -= 1
            return self._parts == 0

    def finish(self) -> None:
        """Make the file durable."""
        self.stamp = self._opened().finish()

    def close(self) -> None:
        """Close the file as far as it came."""
        with self._lock:
            if self._partial is not None:
                self._partial.close()

    def _opened(self) -> PartialFile:
        with self._lock:
            if self._partial is None:
                self._partial = PartialFile(
                    self._tree, self._name, self.entry.size, expected=self._expected
                )
            return self._partial


def _missing(file: ManifestFile, location: S3Location) -> IntegrityError:
    return IntegrityError(
        f"{file.path!r} is in the manifest of {location} but there is no such object",
        reference="object-missing",
        hint=f"run `staging verify {location}`, and upload the checkpoint again under a new prefix",
        side="store",
    )


def _wrong_size(file: ManifestFile, info: ObjectInfo, location: S3Location) -> IntegrityError:
    return IntegrityError(
        f"{file.path!r} in {location} has {info.size} bytes, the manifest says {file.size}",
        reference="object-size",
        hint=f"run `staging verify {location}`, and upload the checkpoint again under a new prefix",
        side="store",
    )


def _first_of(wrong: dict[str, IntegrityError]) -> IntegrityError:
    paths = sorted(wrong, key=lambda path: path.encode("utf-8"))
    first = wrong[paths[0]]
    if len(paths) == 1:
        return first
    others = ", ".join(repr(path) for path in islice(paths, 1, 1 + _SHOWN))
    if len(paths) > 1 + _SHOWN:
        others += f" and {len(paths) - 1 - _SHOWN} more"
    return IntegrityError(
        f"{first.message}; wrong as well: {others}",
        reference=first.reference,
        hint=first.hint,
        side="store",
    )
