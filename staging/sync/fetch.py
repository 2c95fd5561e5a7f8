"""Fetching missing chunks into partial files: every byte verified before it is written.

Parts of large files come first, so that their way to the disk is covered by what follows; then the small
files, each with one request. Memory is taken before a request is handed to a thread: as many parts as fit
are in flight, or as many small files as there are connections.

Invariants: all ranges of a file carry one ETag, pinned before the first byte, so bytes of two versions are
never mixed (I7); a chunk is written only after its digest matched (I1); a range that does not match is asked
for again at most `MAX_REPEATS` times (I11); buffers never exceed `concurrency` parts.
Not guaranteed: that a file whose fetching ended by an error lacks chunks; a later run looks.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from staging.directory.entry import Stamp
from staging.directory.failure import all_closed
from staging.directory.names import partial_directory
from staging.directory.page_cache import PageCache, PageCacheChoice
from staging.directory.partial import PartialDirectory, PartialFile
from staging.directory.tree import Tree
from staging.store.store import Changed, Seen, Store, unseen
from staging.sync.pins import MAX_REPEATS, damaged, first_of, missing, pin
from staging.sync.plan import Fetch
from staging.transfer.budget import Budget
from staging.transfer.ranges import read_range
from staging.transfer.scheduler import Cancellation, Cancelled, Scheduler
from staging.transfer.sizing import Sizing
from staging.vocabulary.digest import CHUNK_SIZE, ChunkDigests, chunk_span
from staging.vocabulary.errors import NotFound
from staging.vocabulary.events import FileDone, Moved, Reporter, Started
from staging.vocabulary.location import S3Location
from staging.vocabulary.manifest import Manifest, ManifestFile

_EXACT: Final = 256 * 1024
"""Buffers up to here are made at their size, larger ones at a power of two: those are used again."""


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
        etags: Mapping[str, str] | None = None,
        page_cache: PageCacheChoice = "auto",
        report: Reporter,
        rng: random.Random,
    ) -> None:
        """Prepare; `etags` are those that `staging.sync.pins` found, by path, as far as they are known."""
        self._store = store
        self._location = location
        self._tree = tree
        self._manifest = manifest
        self._sizing = sizing
        self._etags = etags or {}
        self._page_cache = PageCache.here(page_cache, manifest.total_size)
        self._budget = Budget(sizing.concurrency * sizing.part_size)
        self._report = report
        self._rng = rng

    def run(self, actions: Sequence[Fetch]) -> dict[str, Stamp]:
        """Complete the partial files of `actions` and return their stamps; all of them are durable.

        Objects without an ETag are pinned first. Raises IntegrityError when an object is missing, has
        another size, has other bytes than the manifest names, or changes meanwhile; else what the
        store and the disk raise.
        """
        sizes = {action.file.path: missing_bytes(action) for action in actions}
        etags = self._pinned([action.file for action in actions if sizes[action.file.path]])
        self._report(Started("download", sum(sizes.values()), len(actions)))
        largest_first = sorted(actions, key=lambda action: -sizes[action.file.path])
        work = [
            (action, list(parts_of(action, self._sizing.part_size))) for action in largest_first
        ]
        directory = PartialDirectory(self._tree, partial_directory(self._manifest.id))
        files: list[_File] = []
        with (
            all_closed() as closers,
            Scheduler(self._threads(work), name="download") as scheduler,
        ):
            closers.append(directory.close)
            for action, parts in work:
                file = _File(directory, action, len(parts), self._page_cache)
                files.append(file)
                closers.append(file.close)
                if not parts:
                    scheduler.submit(partial(self._complete, file))
                for part in parts:
                    length = part.span(action.file.size)[1]
                    buffer = self._buffer(length, scheduler)
                    etag = etags[action.file.path]
                    scheduler.submit(partial(self._fetch, file, part, etag, buffer, scheduler))
            scheduler.finish()
        return {file.entry.path: file.stamp for file in files if file.stamp is not None}

    def _pinned(self, files: Sequence[ManifestFile]) -> Mapping[str, str]:
        unpinned = [file for file in files if file.path not in self._etags]
        pins = pin(self._store, self._location, unpinned, concurrency=self._sizing.concurrency)
        if pins.wrong:
            raise first_of(pins.wrong)
        return {**self._etags, **pins.etags}

    def _threads(self, work: Sequence[tuple[Fetch, Sequence[Part]]]) -> int:
        """Threads that will have something to do: parts wait for memory, small files for answers."""
        tasks = sum(max(1, len(parts)) for _, parts in work)
        if all(self._room(action.file.size) == self._sizing.part_size for action, _ in work):
            return min(self._sizing.concurrency, max(1, tasks))
        return min(self._sizing.connections, max(1, tasks))

    def _room(self, length: int) -> int:
        """The size of the buffer for `length` bytes."""
        if length <= _EXACT:
            return length
        return min(self._sizing.part_size, 1 << (length - 1).bit_length())

    def _buffer(self, length: int, scheduler: Scheduler) -> bytearray:
        """Take memory for a part, on the submitting thread: whoever has a thread can go."""
        try:
            return self._budget.acquire(self._room(length), scheduler.cancelled)
        except Cancelled:
            scheduler.raise_error()
            raise

    def _fetch(
        self, file: _File, part: Part, etag: str, buffer: bytearray, scheduler: Scheduler
    ) -> None:
        entry = file.entry
        offset, length = part.span(entry.size)
        try:
            with memoryview(buffer) as whole, whole[:length] as view:
                digests = ChunkDigests(self._manifest.hash)
                self._read(file, offset, view, etag, scheduler, digests.update)
                for index, digest in enumerate(digests.chunks(), part.first):
                    start, size = chunk_span(entry.size, index)
                    with view[start - offset : start - offset + size] as chunk:
                        self._verify(file, index, chunk, digest, etag, scheduler)
                scheduler.cancelled.check()
                file.write(offset, view, scheduler.cancelled)
        finally:
            self._budget.release(buffer)
        self._report(Moved(length))
        if file.part_done():
            self._complete(file)

    def _verify(
        self,
        file: _File,
        index: int,
        chunk: memoryview,
        digest: bytes,
        etag: str,
        scheduler: Scheduler,
    ) -> None:
        """Leave the verified bytes of a chunk in `chunk`, asking again when they do not match."""
        entry = file.entry
        offset = chunk_span(entry.size, index)[0]
        for _ in range(MAX_REPEATS):
            if self.is_right(entry, index, chunk, digest):
                return
            self._read(file, offset, chunk, etag, scheduler)
            digest = self._manifest.hash.hash(chunk)
        if not self.is_right(entry, index, chunk, digest):
            raise damaged(entry, index, self._location, requests=MAX_REPEATS + 1)

    def is_right(self, entry: ManifestFile, index: int, chunk: memoryview, digest: bytes) -> bool:
        """Whether `chunk`, whose digest is `digest`, has the bytes of chunk `index`.

        Who fetches files that no digest is known of replaces this. Called from several threads.
        """
        return digest == entry.chunks[index]

    def _read(
        self,
        file: _File,
        offset: int,
        view: memoryview,
        etag: str,
        scheduler: Scheduler,
        seen: Seen = unseen,
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
                seen=seen,
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
            raise missing(entry, self._location) from error

    def _complete(self, file: _File) -> None:
        file.finish()
        self._report(FileDone(file.entry.path, file.entry.size))


class _File:
    """A file that parts are written to: opened by the first, made durable and closed by the last."""

    def __init__(
        self, directory: PartialDirectory, action: Fetch, parts: int, page_cache: PageCache
    ) -> None:
        self.entry = action.file
        self.stamp: Stamp | None = None
        self._directory = directory
        self._expected = action.partial
        self._in_parts = parts > 1
        self._parts = parts
        self._page_cache = page_cache
        self._lock = threading.Lock()
        self._partial: PartialFile | None = None

    def write(self, offset: int, view: memoryview, cancelled: Cancellation) -> None:
        """Write verified bytes."""
        file, is_first = self._opened()
        if self._in_parts and is_first:
            file.reserve(cancelled)
        file.write(offset, view)
        if self._in_parts:  # else it is made durable right away
            self._page_cache.written(file, offset, len(view))

    def part_done(self) -> bool:
        """Count a part; True for the last."""
        with self._lock:
            self._parts -= 1
            return self._parts == 0

    def finish(self) -> None:
        """Make the file durable."""
        file, _ = self._opened()
        self.stamp = file.finish(drop=self._page_cache.policy == "drop")

    def close(self) -> None:
        """Close the file as far as it came."""
        with self._lock:
            if self._partial is not None:
                self._partial.close()

    def _opened(self) -> tuple[PartialFile, bool]:
        """The open file, and whether this call opened it."""
        with self._lock:
            if self._partial is not None:
                return self._partial, False
            self._partial = self._directory.open(
                self.entry.path,
                self.entry.size,
                expected=self._expected,
                resize=self._in_parts,
            )
            return self._partial, True
