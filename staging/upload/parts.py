"""Reading a source once and sending its bytes as parts that wait, invisible, in open multipart uploads.

    for each file, for each part:  take memory -> read -> chunk digests + CRC -> UploadPart

An indexed source is read by the worker threads, a sequential one by a thread of its own; hashing and
sending always happen in the workers. Nothing becomes visible here: completing is the commit's business
(I16), so giving up needs nothing but aborts. A part that an interrupted run left in the store, proven
equal by its checksum, is not sent again (I6); nor is anything of a file whose object is there already.

Files smaller than the least part size gain nothing by a multipart upload: the commit creates them whole.

Not guaranteed: that a source which cannot be read again can serve a store that asks for a file again.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from staging.inspection import Passing
from staging.published import read_if_published
from staging.source.source import Source, SourceFile
from staging.store.store import MIN_PART_SIZE, Store, UploadedPart
from staging.transfer.budget import Budget
from staging.transfer.scheduler import Cancellation, Scheduler
from staging.transfer.sizing import part_size_for
from staging.upload.checked import send_checked
from staging.upload.part_digest import PartDigest
from staging.upload.plan import refuse
from staging.upload.records import FoundRecord, Record, Records
from staging.upload.staged import Fate, StagedFile
from staging.vocabulary import crc64
from staging.vocabulary.digest import CHUNK_SIZE, HashFamily
from staging.vocabulary.errors import (
    Conflict,
    MalformedInput,
    NotFound,
    UsageError,
)
from staging.vocabulary.events import FileDone, Moved, Note, Reporter
from staging.vocabulary.location import S3Location

HELD_BELOW: Final = MIN_PART_SIZE
"""Files with fewer bytes are created whole by the commit."""

_CALLS_AT_ONCE: Final = 16


class PartSender:
    """Reads a source once and sends its parts; with `store=None` it only computes the digests.

    `there` are the objects below the prefix, key to size in bytes; `left` the records of earlier
    runs; `held_room` the bytes of small files that may be kept for the commit, when the source cannot
    be read again. `passing` sees a sequential source before anything of what it sees is sent.
    """

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
        records: Records | None = None,
        left: Sequence[FoundRecord] = (),
        there: Mapping[str, int] | None = None,
        held_room: int = 0,
        passing: Passing | None = None,
    ) -> None:
        self._source = source
        self._location = location
        self._store = store
        self._family = family
        self._least_part_size = least_part_size
        self._budget = budget
        self._report = report
        self._records = records
        self._left = left
        self._there = {} if there is None else there
        self._held_room = held_room
        self._counting = threading.Lock()
        self.sent_bytes = 0
        """Bytes of files that went to the store, or go there with the commit."""
        self.resumed_bytes = 0
        """Bytes of parts that an earlier run had sent, proven equal and not sent again."""
        self.overtaken = False
        """True when somebody else has published under the prefix meanwhile: only digests are computed."""
        self.files: list[StagedFile] = []
        self.passing = passing
        """Sees the files of a sequential source, for the layout rules; may refuse before they are sent."""

    def send(self, scheduler: Scheduler) -> None:
        """Send every part of every file. Returns when the source is read and all parts are confirmed.

        Raises the first error of any part.
        """
        if self._source.sequential:
            if self._left:
                self._report(
                    Note(
                        f"continuing an interrupted upload of {self._left_files()} files: the whole source"
                        " is read again, what the store has is not sent again"
                    )
                )
            # On a thread of its own, so that an error elsewhere is not kept waiting by a stalled pipe.
            with Scheduler(1, name="read") as reader:
                reader.submit(functools.partial(self._pass, scheduler))
                reader.wait(scheduler.raise_error)
        else:
            self._submit_all(scheduler)
        scheduler.finish()

    def _pass(self, scheduler: Scheduler) -> None:
        """Read a sequential source, and hand its parts to the workers."""
        for file in self._source.files():
            staged = self._stage(file)
            self._note(file)
            for number, offset, length in staged.spans():
                buffer = self._read(scheduler, file, offset, length)
                scheduler.submit(
                    functools.partial(
                        self._digest_and_send, scheduler.cancelled, staged, number, buffer
                    )
                )

    def _note(self, file: SourceFile) -> None:
        if self.passing is not None:
            self.passing.note(file)
            refuse(self.passing.certain())

    def _submit_all(self, scheduler: Scheduler) -> None:
        """Hand the parts of an indexed source to the workers, which read them."""
        todo = [self._stage(file) for file in self._source.files()]
        if self._left:
            todo = self._adopt(todo)
            again = sum(staged.size for staged in todo)
            whole = sum(staged.size for staged in self.files)
            self._report(
                Note(
                    f"continuing an interrupted upload of {self._left_files()} files:"
                    f" {again / 1e9:.2f} GB of the source's {whole / 1e9:.2f} GB are read again,"
                    " what the store has is not sent again"
                )
            )
        for staged in todo:
            for number, offset, length in staged.spans():
                scheduler.submit(
                    functools.partial(
                        self._read_and_send, scheduler.cancelled, staged, number, offset, length
                    )
                )

    def _stage(self, file: SourceFile) -> StagedFile:
        key = self._location.key(file.path)
        least = part_size_for(file.size, self._least_part_size)
        there = self._there.get(key)
        if self._store is not None and there not in (None, file.size):
            raise Conflict(
                f"another object is at s3://{self._store.bucket}/{key} already, of {there} bytes"
                f" instead of {file.size}",
                reference="foreign-objects",
                hint="use a new prefix, or remove that object if nothing needs it",
                side="store",
            )
        if self._store is None or there is not None:
            staged = StagedFile(file, key, least, Fate.COMPARED)
        elif self._is_held(file):
            staged = StagedFile(file, key, least, Fate.HELD)
        else:
            staged = StagedFile(file, key, least, Fate.MULTIPART, self._find_left(file))
        require_room(file, staged.part_size, self._budget.total)
        self.files.append(staged)
        if file.size == 0:
            self._report(FileDone(file.path, 0))
        return staged

    def _is_held(self, file: SourceFile) -> bool:
        """True for a small file that the commit creates whole. What has to be kept is accounted for."""
        if file.size >= HELD_BELOW:
            return False
        if not self._source.sequential:
            return True
        if file.size > self._held_room:
            return False
        self._held_room -= file.size
        return True

    def not_reached(self) -> list[str]:
        """Files that earlier runs sent parts of, and this one has not come to."""
        reached = {staged.path for staged in self.files}
        return sorted({found.record.path for found in self._left} - reached)

    def _left_files(self) -> int:
        return len({found.record.path for found in self._left})

    def _find_left(self, file: SourceFile) -> list[Record]:
        """Uploads that earlier runs left for this file, if their parts are of use here, newest first."""
        fitting = [
            found
            for found in self._left
            if found.record.path == file.path
            and found.record.size == file.size
            and found.record.stamp == file.stamp
            and min(found.record.part_size, file.size) <= self._budget.total
        ]
        fitting.sort(key=lambda found: str(found.objects[0].modified), reverse=True)
        records = [found.record for found in fitting]
        return [record for record in records if record.part_size == records[0].part_size]

    def _adopt(self, files: list[StagedFile]) -> list[StagedFile]:
        """Take over files that an earlier run sent completely. Returns the others."""
        store, identity = self._store, self._source.identity
        if store is None or identity is None:
            return files
        adopted: set[str] = set()

        def look(staged: StagedFile) -> None:
            if staged.adopt(store, self._family, identity):
                adopted.add(staged.key)
                self._count(resumed=staged.size)
                self._report(Moved(staged.size))
                self._report(FileDone(staged.path, staged.size))

        with Scheduler(_CALLS_AT_ONCE, name="adopt") as scheduler:
            for staged in files:
                if staged.fate is Fate.MULTIPART:
                    scheduler.submit(functools.partial(look, staged))
            scheduler.finish()
        return [staged for staged in files if staged.key not in adopted]

    @contextlib.contextmanager
    def whole(self, staged: StagedFile, cancelled: Cancellation) -> Iterator[bytearray]:
        """The bytes of a small file, in a buffer of the budget: read again, or as they were kept.

        Raises MalformedInput when the source has other bytes than before.
        """
        with self._budget.lease(staged.size, cancelled) as buffer:
            if staged.held is not None:
                buffer[:] = staged.held
            else:
                self._fill(staged, 1, 0, buffer)
            yield buffer

    def send_again(self, staged: StagedFile, cancelled: Cancellation) -> bool:
        """Send a file once more, into a new upload. False when the source cannot be read again.

        Raises MalformedInput when the source has other bytes than before.
        """
        store, records = self._store, self._records
        if store is None or records is None or self._source.sequential:
            return False
        staged.start_again(store)
        upload = staged.open(store, records.successor(), self._source.identity)
        for number, offset, length in staged.spans():
            with self._budget.lease(length, cancelled) as buffer:
                self._fill(staged, number, offset, buffer)
                checksum = crc64.to_text(staged.crc(number))
                cancelled.check()
                send = functools.partial(
                    store.upload_part, upload, number, buffer, crc64nvme=checksum
                )
                staged.part_sent_again(send_checked(send, cancelled.check))
        return True

    def _fill(self, staged: StagedFile, number: int, offset: int, buffer: bytearray) -> None:
        """Read a part that was read before. Raises MalformedInput when its bytes are others now."""
        with memoryview(buffer) as view:
            self._source.read_into(staged.file, offset, view)
        if crc64.crc64(buffer) != staged.crc(number):
            raise MalformedInput(
                f"{staged.path!r} changed while it was read",
                reference="source-changed",
                hint="let whatever writes the source finish, then run again",
                side="source",
            )

    def _read(self, scheduler: Scheduler, file: SourceFile, offset: int, length: int) -> bytearray:
        """Read a part of a sequential source, chunk by chunk so that an error elsewhere is seen soon."""
        scheduler.raise_error()
        buffer = self._budget.acquire(length, scheduler.cancelled)
        for start in range(0, length, CHUNK_SIZE):
            with memoryview(buffer)[start : start + CHUNK_SIZE] as view:
                self._source.read_into(file, offset + start, view)
                if self.passing is not None:
                    self.passing.watch(file, view)
                    refuse(self.passing.certain())
            scheduler.raise_error()
        return buffer

    def _read_and_send(
        self, cancelled: Cancellation, staged: StagedFile, number: int, offset: int, length: int
    ) -> None:
        buffer = self._budget.acquire(length, cancelled)
        digest = PartDigest(self._family)
        step = self._source.read_size or length
        with memoryview(buffer) as view:
            for start in range(0, length, step):
                with view[start : start + step] as piece:
                    self._source.read_into(staged.file, offset + start, piece)
                    digest.update(piece)
        self._send(cancelled, staged, number, buffer, digest)

    def _digest_and_send(
        self, cancelled: Cancellation, staged: StagedFile, number: int, buffer: bytearray
    ) -> None:
        digest = PartDigest(self._family)
        digest.update(buffer)
        self._send(cancelled, staged, number, buffer, digest)

    def _send(
        self,
        cancelled: Cancellation,
        staged: StagedFile,
        number: int,
        buffer: bytearray,
        digest: PartDigest,
    ) -> None:
        part = None
        if staged.fate is Fate.MULTIPART:
            part = self._deliver(cancelled, staged, number, buffer, crc64.to_text(digest.crc))
        elif staged.fate is Fate.HELD and self._source.sequential:
            staged.held = bytes(buffer)
        length = len(buffer)
        self._budget.release(buffer)
        last = staged.part_done(number, digest.chunks(), digest.crc, part)
        if staged.fate is Fate.HELD:
            self._count(sent=length)
            return  # done when the commit has created it
        self._report(Moved(length))
        if last:
            self._finish(staged)

    def _finish(self, staged: StagedFile) -> None:
        identity = self._source.identity
        sent = staged.fate is Fate.MULTIPART and not (self.overtaken or staged.lost)
        if sent and identity is not None and self._records is not None:
            self._records.finished(staged.record(identity, staged.finished(self._family)))
        self._report(FileDone(staged.path, staged.size))

    def _deliver(
        self,
        cancelled: Cancellation,
        staged: StagedFile,
        number: int,
        buffer: bytearray,
        checksum: str,
    ) -> UploadedPart | None:
        assert self._store is not None and self._records is not None  # noqa: S101, PT018
        cancelled.check()
        if self.overtaken or staged.lost:
            return None
        try:
            upload = staged.open(self._store, self._records, self._source.identity)
            part = staged.waiting(number, buffer, checksum)
            if part is not None:
                self._count(resumed=len(buffer))
                return part
            send = functools.partial(
                self._store.upload_part, upload, number, buffer, crc64nvme=checksum
            )
            part = send_checked(send, cancelled.check)
        except NotFound as error:
            if error.reference != "upload-gone":
                raise
            self._upload_is_gone(self._store, staged, error)
            return None
        self._count(sent=len(buffer))
        return part

    def _upload_is_gone(self, store: Store, staged: StagedFile, error: NotFound) -> None:
        """Somebody else has published here, or aborted the upload. Raises Conflict if that is the end."""
        if read_if_published(store, self._location) is not None:
            self.overtaken = True
        elif self._source.sequential and self._is_there(store, staged):
            staged.lost = True  # a twin is about to publish: the commit compares
        elif self._source.sequential:
            raise Conflict(
                f"{error.message}: it was aborted by somebody else",
                reference="upload-gone",
                hint="look for lifecycle rules and clean-up jobs on this bucket, then run again",
                side="store",
            ) from error
        else:
            staged.lost = True
            self._report(
                Note(
                    f"the multipart upload of {staged.path!r} was aborted by somebody else: the file"
                    " will be sent again",
                    warning=True,
                )
            )

    def _is_there(self, store: Store, staged: StagedFile) -> bool:
        try:
            return store.head(staged.key).size == staged.size
        except NotFound:
            return False

    def _count(self, *, sent: int = 0, resumed: int = 0) -> None:
        with self._counting:
            self.sent_bytes += sent
            self.resumed_bytes += resumed


def require_room(file: SourceFile, part_size: int, room: int) -> None:
    """Raise UsageError when one part of a file is larger than the memory there is for buffers (bytes)."""
    if min(part_size, file.size) > room:
        raise UsageError(
            f"{file.path!r} of {file.size} bytes needs parts of {part_size} bytes, the memory budget"
            f" has room for {room}",
            reference="memory",
            hint="give more --memory",
        )
