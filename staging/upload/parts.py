"""Sending a source's bytes as parts that wait, invisible, in open multipart uploads.

    for each file, for each part:  take memory -> read -> chunk digests + CRC -> UploadPart

An indexed source is read by the worker threads, a sequential one by the caller's thread; hashing and
sending always happen in the workers. Nothing becomes visible here: completing is the commit's business
(I16), so giving up needs nothing but `abort`.

Not guaranteed: that `abort` succeeds. What could not be aborted is returned, for people to see.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from typing import Final

from staging.inspection import Passing
from staging.source.source import Source, SourceFile
from staging.store.store import MultipartUpload, Store, UploadedPart
from staging.transfer.budget import Budget
from staging.transfer.scheduler import Cancelled, Scheduler
from staging.transfer.sizing import part_size_for
from staging.vocabulary import crc64
from staging.vocabulary.digest import CHUNK_SIZE, Digest, HashFamily, chunk_digests, file_digest
from staging.vocabulary.errors import IntegrityError, StagingError, UsageError
from staging.vocabulary.events import FileDone, Moved, Reporter
from staging.vocabulary.location import S3Location
from staging.vocabulary.manifest import ManifestFile
from staging.vocabulary.paths import SafePath

_OPENING_GRACE: Final = 0.5
"""Seconds that giving a file up waits for the answer that would tell its upload's id."""

_ABORTS_AT_ONCE: Final = 16
_UNREACHABLE: Final = ("(connection)", "(store-busy)")
"""How descriptions of leftovers end when the store does not answer."""

_SEND_ATTEMPTS: Final = 3
"""Times a part is sent when the store says its checksum does not match: bytes flipped on the way."""


class StagedFile:
    """One file while its parts arrive, in any order, from several threads."""

    def __init__(self, file: SourceFile, key: str, part_size: int) -> None:
        self.path: SafePath = file.path
        self.size = file.size
        self.key = key
        self.part_size = part_size
        self.upload: MultipartUpload | None = None
        self._opening = threading.Lock()
        self._given_up = False
        self._recording = threading.Lock()
        count = -(-file.size // part_size)
        self._chunks: list[list[bytes]] = [[] for _ in range(count)]
        self._crcs: list[int] = [0] * count
        self._parts: dict[int, UploadedPart] = {}
        self._missing = count

    def spans(self) -> Iterator[tuple[int, int, int]]:
        """Number (from 1), offset and length in bytes of each part. An empty file has none."""
        for index in range(len(self._chunks)):
            offset = index * self.part_size
            yield index + 1, offset, min(self.part_size, self.size - offset)

    def open(self, store: Store) -> MultipartUpload:
        """The multipart upload of this file, opened when first asked for.

        Raises Cancelled once the file was given up.
        """
        with self._opening:
            if self._given_up:
                raise Cancelled
            if self.upload is None:
                self.upload = store.create_multipart_upload(self.key)
            return self.upload

    def give_up(self) -> bool:
        """Open no upload from now on. True when one is open, or its opening was not answered yet."""
        self._given_up = True
        return self.upload is not None or self._opening.locked()

    def abort(self, store: Store) -> str | None:
        """Abort the upload, if one is open. Returns what is left in the store, described."""
        place = f"s3://{store.bucket}/{self.key}"
        if not self._opening.acquire(timeout=_OPENING_GRACE):
            return f"a multipart upload of {place} (not answered)"
        self._opening.release()
        if self.upload is None:
            return None
        try:
            store.abort_multipart_upload(self.upload)
        except StagingError as error:
            return f"multipart upload {self.upload.upload_id} of {place} ({error.reference})"
        self.upload = None
        return None

    def record(self, number: int, chunks: list[bytes], crc: int, part: UploadedPart | None) -> bool:
        """Note a part that is done. True when it was the last one missing."""
        with self._recording:
            self._chunks[number - 1] = chunks
            self._crcs[number - 1] = crc
            if part is not None:
                self._parts[number] = part
            self._missing -= 1
            return self._missing == 0

    @property
    def parts(self) -> list[UploadedPart]:
        """The confirmed parts, in order."""
        return [self._parts[number] for number in sorted(self._parts)]

    @property
    def crc64nvme(self) -> str:
        """Base64 checksum of the whole file, combined from its parts."""
        value = 0
        for (_, _, length), crc in zip(self.spans(), self._crcs, strict=True):
            value = crc64.combine(value, crc, length)
        return crc64.to_text(value)

    def digest(self, family: HashFamily) -> Digest:
        """The file's digest. Only call it when all parts are done."""
        return file_digest(family, self.size, self._digests(family))

    def manifest_file(self, family: HashFamily) -> ManifestFile:
        """The manifest's entry. Only call it when all parts are done."""
        checksums = {"crc64nvme": self.crc64nvme}
        return ManifestFile.of(self.path, self.size, family, self._digests(family), checksums)

    def _digests(self, family: HashFamily) -> list[bytes]:
        if self._missing:
            raise RuntimeError(f"{self._missing} parts of {self.path!r} are missing")
        return [digest for part in self._chunks for digest in part] or [family.hash(b"")]


class PartSender:
    """Reads a source once and sends its parts; with `store=None` it only computes the digests."""

    def __init__(
        self,
        source: Source,
        location: S3Location,
        store: Store | None,
        *,
        family: HashFamily,
        least_part_size: int,
        budget: Budget,
        report: Reporter,
    ) -> None:
        self._source = source
        self._location = location
        self._store = store
        self._family = family
        self._least_part_size = least_part_size
        self._budget = budget
        self._report = report
        self.files: list[StagedFile] = []
        self.passing = Passing()
        """What is known of a sequential source's files so far, for the layout rules."""

    def send(self, scheduler: Scheduler) -> None:
        """Send every part of every file. Returns when the source is read and all parts are confirmed.

        Raises the first error of any part.
        """
        if not self._source.sequential:
            self._submit_all(scheduler)
        else:
            # On a thread of its own, so that an error elsewhere is not kept waiting by a stalled pipe.
            with Scheduler(1, name="read") as reader:
                reader.submit(functools.partial(self._submit_all, scheduler))
                reader.wait(scheduler.raise_error)
        scheduler.finish()

    def _submit_all(self, scheduler: Scheduler) -> None:
        for file in self._source.files():
            staged = StagedFile(
                file,
                self._location.key(file.path),
                part_size_for(file.size, self._least_part_size),
            )
            require_room(file, staged.part_size, self._budget.total)
            self.files.append(staged)
            if self._source.sequential:
                self.passing.note(file)
            if file.size == 0:
                self._report(FileDone(file.path, 0))
            for number, offset, length in staged.spans():
                if self._source.sequential:
                    buffer = self._read(scheduler, file, offset, length)
                    task = functools.partial(self._send, scheduler, staged, number, buffer)
                else:
                    task = functools.partial(
                        self._read_and_send, scheduler, file, staged, number, offset, length
                    )
                scheduler.submit(task)

    def abort(self) -> list[str]:
        """Abort all uploads that are open; returns what is left in the store, described.

        Stops at the first sign that the store does not answer, for each try would take minutes.
        """
        store = self._store
        if store is None:
            return []
        waiting = [staged for staged in self.files if staged.give_up()]
        left = {staged.key: f"multipart upload of {staged.key} (not tried)" for staged in waiting}
        unreachable = threading.Event()

        def abort(staged: StagedFile) -> None:
            if unreachable.is_set():
                return
            what = staged.abort(store)
            if what is None:
                del left[staged.key]
                return
            left[staged.key] = what
            if what.endswith(_UNREACHABLE):
                unreachable.set()

        with Scheduler(_ABORTS_AT_ONCE, name="abort") as scheduler:
            for staged in waiting:
                scheduler.submit(functools.partial(abort, staged))
        return list(left.values())

    def _read(self, scheduler: Scheduler, file: SourceFile, offset: int, length: int) -> bytearray:
        """Read a part of a sequential source, chunk by chunk so that an error elsewhere is seen soon."""
        scheduler.raise_error()
        buffer = self._budget.acquire(length, scheduler.cancelled)
        for start in range(0, length, CHUNK_SIZE):
            with memoryview(buffer)[start : start + CHUNK_SIZE] as view:
                self._source.read_into(file, offset + start, view)
                self.passing.watch(file, view)
            scheduler.raise_error()
        return buffer

    def _read_and_send(
        self,
        scheduler: Scheduler,
        file: SourceFile,
        staged: StagedFile,
        number: int,
        offset: int,
        length: int,
    ) -> None:
        buffer = self._budget.acquire(length, scheduler.cancelled)
        with memoryview(buffer) as view:
            self._source.read_into(file, offset, view)
        self._send(scheduler, staged, number, buffer)

    def _send(
        self, scheduler: Scheduler, staged: StagedFile, number: int, buffer: bytearray
    ) -> None:
        chunks = chunk_digests(self._family, buffer)
        crc = 0
        part = None
        if self._store is not None:
            crc = crc64.crc64(buffer)
            scheduler.cancelled.check()
            upload = staged.open(self._store)
            part = _upload(self._store, scheduler, upload, number, buffer, crc64.to_text(crc))
        length = len(buffer)
        self._budget.release(buffer)
        last = staged.record(number, chunks, crc, part)
        self._report(Moved(length))
        if last:
            self._report(FileDone(staged.path, staged.size))


def require_room(file: SourceFile, part_size: int, room: int) -> None:
    """Raise UsageError when one part of a file is larger than the memory there is for buffers (bytes)."""
    if min(part_size, file.size) > room:
        raise UsageError(
            f"{file.path!r} of {file.size} bytes needs parts of {part_size} bytes, the memory budget"
            f" has room for {room}",
            reference="memory",
            hint="give more --memory",
        )


def _upload(
    store: Store,
    scheduler: Scheduler,
    upload: MultipartUpload,
    number: int,
    body: bytearray,
    checksum: str,
) -> UploadedPart:
    for _ in range(_SEND_ATTEMPTS - 1):
        try:
            return store.upload_part(upload, number, body, crc64nvme=checksum)
        except IntegrityError:
            scheduler.cancelled.check()  # flipped on the way: what lies in memory is sent again
    return store.upload_part(upload, number, body, crc64nvme=checksum)
