"""One file while it is staged: what becomes of its bytes, and what is known of its parts so far.

Parts are done in any order, by several threads. An upload is recorded before its first part is sent.
"""

from __future__ import annotations

import contextlib
import enum
import hashlib
import threading
from collections.abc import Iterator, Sequence
from typing import Final

from staging.source.source import SourceFile
from staging.store.store import ListedPart, MultipartUpload, Store, UploadedPart
from staging.transfer.scheduler import Cancelled
from staging.upload.records import Finished, Record, Records
from staging.vocabulary import crc64
from staging.vocabulary.digest import CHUNK_SIZE, Digest, HashFamily, file_digest
from staging.vocabulary.errors import AccessDenied, NotFound, Stalled
from staging.vocabulary.manifest import ManifestFile

_OPENING_GRACE: Final = 0.5
"""Seconds that giving a file up waits for the answer that would tell its upload's id."""


class Fate(enum.Enum):
    """What becomes of a file's bytes once they were read and hashed."""

    MULTIPART = enum.auto()
    """They are sent as parts at once, into an upload of this run or one that an earlier run left."""

    HELD = enum.auto()
    """The commit creates a small object of them: kept in memory, or read again."""

    COMPARED = enum.auto()
    """Nothing is sent: their digests are compared with what is there."""


class StagedFile:
    """One file of an upload.

    `left` are the records of uploads that earlier runs opened for it, of one part size, the most
    promising first; all but one of them may be gone.
    """

    def __init__(
        self,
        file: SourceFile,
        key: str,
        part_size: int,
        fate: Fate,
        left: Sequence[Record] = (),
    ) -> None:
        self.file = file
        self.path = file.path
        self.size = file.size
        self.key = key
        self.part_size = left[0].part_size if left else part_size
        self.fate = fate
        self.held: bytes | None = None
        """The bytes of a small file of a source that cannot be read again."""
        self.upload: MultipartUpload | None = None
        self.recorded = False
        self.abandoned: list[MultipartUpload] = []
        """Uploads that were aborted because the file started again."""
        self.lost = False
        """Somebody aborted the upload: the commit has to send the file again."""
        self.shared = False
        """An earlier run opened the upload; that run, or another one, may still be at it."""
        self._left = list(left)
        self._waiting: dict[int, ListedPart] = {}
        self._opening = threading.Lock()
        self._given_up = False
        self._recording = threading.Lock()
        count = -(-file.size // self.part_size)
        self._chunks: list[list[bytes]] = [[] for _ in range(count)]
        self._crcs: list[int] = [0] * count
        self._parts: dict[int, UploadedPart] = {}
        self._missing = count

    def spans(self) -> Iterator[tuple[int, int, int]]:
        """Number (from 1), offset and length in bytes of each part. An empty file has none."""
        for index in range(len(self._chunks)):
            offset = index * self.part_size
            yield index + 1, offset, min(self.part_size, self.size - offset)

    def open(self, store: Store, records: Records, source: str | None) -> MultipartUpload:
        """The multipart upload of this file: continued, or opened and recorded, when first asked for.

        `source` is the source's identity. Raises Cancelled once the file was given up.
        """
        with self._opening:
            if self._given_up:
                raise Cancelled
            while self.upload is None and self._left:
                self._go_on(store, self._left.pop(0))
            if self.upload is None:
                records.begin()
                self.upload = store.create_multipart_upload(self.key)
            if not self.recorded:
                records.opened(self.record(source))
                self.recorded = True
            return self.upload

    def adopt(self, store: Store, family: HashFamily, source: str | None) -> bool:
        """Take over a file that an earlier run sent completely, without reading it. True when done.

        Only for a source that vouches for its bytes (`source` is its identity) and a store that
        lists the checksums of parts, which must combine to the recorded one.
        """
        finished = None
        with self._opening:
            for left in list(self._left):
                if left.finished is None or source is None or left.source != source:
                    continue
                self._left.remove(left)
                self._go_on(store, left)
                if self.upload is not None:
                    finished = left.finished
                    break
        if finished is None or finished.family is not family:
            return False
        found: list[tuple[int, UploadedPart]] = []
        value = 0
        for number, _, length in self.spans():
            part = self._waiting.get(number)
            if part is None or part.size != length or part.crc64nvme is None:
                return False
            try:
                crc = crc64.from_text(part.crc64nvme)
            except ValueError:  # whatever that is, it proves nothing
                return False
            value = crc64.combine(value, crc, length)
            found.append((crc, UploadedPart(number, part.etag, part.crc64nvme)))
        if crc64.to_text(value) != finished.crc64nvme:
            return False
        each = self.part_size // CHUNK_SIZE
        for crc, uploaded in found:
            first = (uploaded.number - 1) * each
            chunks = finished.chunks[first : first + each]
            self.part_done(uploaded.number, list(chunks), crc, uploaded)
        return True

    def _go_on(self, store: Store, left: Record) -> None:
        """Continue the upload that was left, unless it is gone, or its parts may not be looked at."""
        try:
            self._waiting = {part.number: part for part in store.list_parts(left.upload)}
        except (NotFound, AccessDenied) as error:
            if error.reference == "bucket":
                raise
        else:
            self.upload = left.upload
            self.recorded = self.shared = True

    def waiting(self, number: int, body: bytearray, checksum: str) -> UploadedPart | None:
        """The part as it waits in the store, if that is proven equal to `body`, else None.

        Proof is the store's CRC-64/NVME, or an ETag that is the MD5 of these very bytes.
        """
        part = self._waiting.get(number)
        if part is None or part.size != len(body):
            return None
        if part.crc64nvme is None:
            equal = part.etag == hashlib.md5(body, usedforsecurity=False).hexdigest()
        else:
            equal = part.crc64nvme == checksum
        return UploadedPart(number, part.etag, checksum) if equal else None

    def refresh(self, store: Store) -> bool:
        """Take over the parts as the store lists them now. True when all are proven to be ours.

        Somebody who continues the same upload may have sent a part again: of equal bytes, with another
        ETag, or of others. Raises NotFound when the upload is gone.
        """
        assert self.upload is not None  # noqa: S101 - it has parts
        listed = {part.number: part for part in store.list_parts(self.upload)}
        for number, part in self._parts.items():
            found = listed.get(number)
            if found is None:
                return False
            if found.etag != part.etag and found.crc64nvme != part.crc64nvme:
                return False
        for number, part in self._parts.items():
            self._parts[number] = UploadedPart(number, listed[number].etag, part.crc64nvme)
        return True

    def start_again(self, store: Store) -> None:
        """Drop the upload, so that every part is sent again into a new one. Digests stay."""
        with self._opening:
            if self.upload is not None:
                with contextlib.suppress(AccessDenied):  # told at the end, when it is tried again
                    store.abort_multipart_upload(self.upload)
                self.abandoned.append(self.upload)
            self.upload = None
            self.recorded = self.shared = self.lost = False
            self._waiting = {}
            self._parts = {}

    def give_up(self) -> bool:
        """Open no upload from now on. True when one is open, or its opening was not answered yet."""
        self._given_up = True
        return self.upload is not None or self._opening.locked()

    def abort(self, store: Store) -> None:
        """Abort the upload, if one is open. Raises Stalled while its opening is not answered."""
        if not self._opening.acquire(timeout=_OPENING_GRACE):
            raise Stalled("the upload's opening is not answered", reference="not-answered")
        self._opening.release()
        if self.upload is not None:
            store.abort_multipart_upload(self.upload)
            self.upload = None

    def part_done(
        self, number: int, chunks: list[bytes], crc: int, part: UploadedPart | None
    ) -> bool:
        """Note a part that is done. True when it was the last one missing."""
        with self._recording:
            self._chunks[number - 1] = chunks
            self._crcs[number - 1] = crc
            if part is not None:
                self._parts[number] = part
            self._missing -= 1
            return self._missing == 0

    def part_sent_again(self, part: UploadedPart) -> None:
        """Note a part of a file that started again."""
        with self._recording:
            self._parts[part.number] = part

    def record(self, source: str | None, finished: Finished | None = None) -> Record:
        """The record of this file's upload."""
        assert self.upload is not None  # noqa: S101 - only open uploads are recorded
        return Record(
            upload=self.upload,
            path=self.path,
            size=self.size,
            part_size=self.part_size,
            stamp=self.file.stamp,
            source=source,
            finished=finished,
        )

    def finished(self, family: HashFamily) -> Finished:
        """What a record tells of the file when all its parts are done."""
        return Finished(family, tuple(self._digests(family)), self.crc64nvme)

    @property
    def parts(self) -> Sequence[UploadedPart]:
        """The confirmed parts, in order."""
        return [self._parts[number] for number in sorted(self._parts)]

    def crc(self, number: int) -> int:
        """CRC-64/NVME of a part that is done."""
        return self._crcs[number - 1]

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
