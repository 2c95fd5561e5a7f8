"""Making an upload visible: everything at the end, in an order that leaves one winner.

    claim the prefix -> look again for a manifest and for foreign objects
    -> settle the objects that are there already -> complete the other uploads, conditionally
    -> list equals plan -> manifest, conditionally (the commit) -> drop the claim

A create or Complete that meets an object, or an upload that is gone, may be this run's own lost answer,
or a twin publishing the same id: the object is settled by size and checksum, or by its bytes where
the store proves no checksum, never by existence (I8). Objects are never overwritten or deleted (I4); a
twin may already count on those this run completed.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Sequence
from typing import Final

from staging.published import read_if_published
from staging.store.store import AlreadyExists, ObjectInfo, Store
from staging.transfer.budget import Budget
from staging.transfer.ranges import read_range
from staging.transfer.scheduler import Cancellation, Scheduler
from staging.upload import target
from staging.upload.checked import send_checked
from staging.upload.parts import PartSender
from staging.upload.staged import Fate, StagedFile
from staging.upload.target import Proven
from staging.vocabulary import crc64
from staging.vocabulary.digest import chunk_span
from staging.vocabulary.errors import (
    AccessDenied,
    Conflict,
    IntegrityError,
    MalformedInput,
    NotFound,
    StagingError,
)
from staging.vocabulary.events import FileDone, Moved, Note, Reporter
from staging.vocabulary.location import S3Location
from staging.vocabulary.manifest import Manifest, ManifestFile

_COMPLETIONS: Final = 3
"""Times a file's upload is completed: parts may have to be looked at, or sent, again."""


class Commit:
    """One attempt to publish staged files. Use it once."""

    def __init__(
        self,
        store: Store,
        location: S3Location,
        manifest: Manifest,
        sender: PartSender,
        *,
        budget: Budget,
        concurrency: int,
        allow_existing: bool,
        report: Reporter,
        rng: random.Random,
    ) -> None:
        self._store = store
        self._location = location
        self.manifest = manifest
        self._sender = sender
        self._files: Sequence[StagedFile] = sender.files
        self._budget = budget
        self._concurrency = concurrency
        self._allow_existing = allow_existing
        self._report = report
        self._rng = rng
        self._entries = {file.path: file for file in manifest.files}
        self._proven: Proven | None = None
        self._visible = False
        self._fresh: bool | None = None
        self.settled: set[str] = set()
        """Ids of uploads that were completed, or are gone because the object is there."""

    @property
    def started(self) -> bool:
        """True when objects of this content may be there: this run's, or those of one before it."""
        return self._visible or self._fresh is False

    @property
    def owns_claim(self) -> bool:
        """True when the claim can only be this run's, and no object relies on it."""
        return self._fresh is True and not self._visible

    def run(self) -> tuple[Proven, bool]:
        """Publish. Returns what the store proved, and True when a twin's manifest was there first.

        Raises Conflict when something else is there; `started` then tells whether objects remain.
        """
        data = self._encode()
        own_id = self.manifest.id
        self._fresh = target.is_unclaimed(self._store, self._location, own_id)
        proven = self._proven = target.claim(self._store, self._location, own_id)
        if self._published_by_twin():
            return proven, True
        there = {info.key for info in self._refuse_foreign()}
        self._each(self._settle, [staged for staged in self._files if staged.key in there])
        self._visible = True
        self._each(self._complete, [staged for staged in self._files if staged.key not in there])
        self._list_equals_plan()
        twin = self._publish(data)
        return proven, twin

    def release(self) -> list[str]:
        """Drop the claim; see `target.release`."""
        return target.release(self._store, self._location, self.manifest.id)

    def _published_by_twin(self) -> bool:
        manifest = read_if_published(self._store, self._location)
        if manifest is None:
            return False
        if manifest.id != self.manifest.id:
            raise target.differs(self._location, manifest.id, f"this upload is {self.manifest.id}")
        target.require_complete(self._store, self._location, manifest)
        return True

    def _each(
        self,
        act: Callable[[StagedFile, Cancellation], None],
        files: Sequence[StagedFile],
    ) -> None:
        with Scheduler(self._concurrency, name="commit") as scheduler:
            for staged in files:
                scheduler.submit(functools.partial(act, staged, scheduler.cancelled))

    def _refuse_foreign(self) -> list[ObjectInfo]:
        objects = list(self._store.list_objects(self._location.prefix))
        if not self._allow_existing:
            keys = frozenset(staged.key for staged in self._files)
            target.refuse_foreign(objects, self._location, keys)
        return objects

    def _complete(self, staged: StagedFile, cancelled: Cancellation) -> None:
        cancelled.check()
        try:
            if staged.fate is Fate.MULTIPART:
                self._complete_upload(staged, cancelled)
            elif staged.fate is Fate.HELD:
                self._create(staged, cancelled)
            else:
                raise self._removed(staged)
        except (AlreadyExists, NotFound) as error:
            if error.side == "source":  # it is read again here, and may be gone
                raise
            self._settle(staged, cancelled, error)

    def _create(self, staged: StagedFile, cancelled: Cancellation) -> None:
        if staged.size == 0:
            self._store.create(staged.key, b"", crc64nvme=staged.crc64nvme)
            return
        with self._sender.whole(staged, cancelled) as buffer:
            create = functools.partial(
                self._store.create, staged.key, buffer, crc64nvme=staged.crc64nvme
            )
            send_checked(create, cancelled.check)
        self._held_file_done(staged)

    def _held_file_done(self, staged: StagedFile) -> None:
        if staged.fate is Fate.HELD and staged.size:
            self._report(Moved(staged.size))
            self._report(FileDone(staged.path, staged.size))

    def _complete_upload(self, staged: StagedFile, cancelled: Cancellation) -> None:
        """Complete a file's upload, sending the file again where that takes a new one."""
        for _ in range(_COMPLETIONS):
            try:
                if staged.lost or (staged.shared and not self._refresh(staged)):
                    raise self._taken_over(staged)
                self._complete_once(staged)
            except AlreadyExists:
                raise
            except (Conflict, IntegrityError, NotFound) as error:
                if error.reference == "bucket":
                    raise
                if isinstance(error, IntegrityError) and self._refresh(staged):
                    continue
                if self._is_there(staged):
                    self._settle(staged, cancelled, error)
                    return
                failure: StagingError = error
            else:
                return
            self._send_again(staged, cancelled, failure)
        self._complete_once(staged)

    def _complete_once(self, staged: StagedFile) -> None:
        assert staged.upload is not None  # noqa: S101 - it has parts
        self._store.complete_multipart_upload(
            staged.upload, staged.parts, crc64nvme=staged.crc64nvme
        )
        self.settled.add(staged.upload.upload_id)
        staged.upload = None

    def _send_again(self, staged: StagedFile, cancelled: Cancellation, cause: StagingError) -> None:
        """Send a file again, since its upload is of no use. Raises `cause` when that cannot be done."""
        self._report(
            Note(f"sending {staged.path!r} again, into a new upload: {cause.message}", warning=True)
        )
        if not self._sender.send_again(staged, cancelled):
            raise cause

    def _refresh(self, staged: StagedFile) -> bool:
        try:
            return staged.refresh(self._store)
        except (NotFound, AccessDenied):
            return False

    def _taken_over(self, staged: StagedFile) -> Conflict:
        return Conflict(
            f"somebody else is using the multipart upload of {staged.path!r}",
            reference="concurrent-write",
            hint="another writer is at work under this prefix; see who, then run again",
            side="store",
        )

    def _is_there(self, staged: StagedFile) -> bool:
        try:
            self._store.head(staged.key)
        except NotFound:
            return False
        return True

    def _removed(self, staged: StagedFile) -> Conflict:
        return Conflict(
            f"the object {staged.key!r} was removed while it was looked at",
            reference="concurrent-write",
            hint="another writer is at work under this prefix; see who, then run again",
            side="store",
        )

    def _settle(
        self, staged: StagedFile, cancelled: Cancellation, cause: StagingError | None = None
    ) -> None:
        """Accept an object that is there already if it is proven equal. Raises Conflict otherwise.

        `cause` is what completing the file's upload met.
        """
        if cause is not None and cause.reference == "bucket":
            raise cause
        try:
            info = self._store.head(staged.key)
        except NotFound:
            if cause is None:
                raise self._removed(staged) from None
            if not isinstance(cause, NotFound):
                raise cause from None  # somebody's write that came to nothing
            raise Conflict(
                f"the multipart upload of {staged.path!r} was aborted by somebody else",
                reference="upload-gone",
                hint="look for lifecycle rules and clean-up jobs on this bucket, then run again",
                side="store",
            ) from cause
        if info.size != staged.size or not self._equal(staged, info, cancelled):
            raise Conflict(
                f"another object is at s3://{self._store.bucket}/{staged.key} already",
                reference="foreign-objects",
                hint="use a new prefix, or remove that object if nothing needs it",
                side="store",
            ) from cause
        if staged.upload is not None and cause is not None and cause.reference == "upload-gone":
            self.settled.add(staged.upload.upload_id)
            staged.upload = None
        self._held_file_done(staged)

    def _equal(self, staged: StagedFile, info: ObjectInfo, cancelled: Cancellation) -> bool:
        if self._proven is not None and self._proven.checksums and info.crc64nvme is not None:
            return info.crc64nvme == staged.crc64nvme
        self._report(Note(f"the store proves no checksum: reading {staged.path} to compare"))
        entry: ManifestFile = self._entries[staged.path]
        for index, digest in enumerate(entry.chunks if staged.size else ()):
            offset, length = chunk_span(staged.size, index)
            with self._budget.lease(length, cancelled) as buffer, memoryview(buffer) as view:
                read_range(
                    self._store,
                    staged.key,
                    offset,
                    view,
                    etag=info.etag,
                    cancelled=cancelled,
                    rng=self._rng,
                )
                equal = self.manifest.hash.hash(view) == digest
            if not equal:
                return False
        return True

    def _list_equals_plan(self) -> None:
        found = {info.key: info.size for info in self._refuse_foreign()}
        for staged in self._files:
            if found.get(staged.key) != staged.size:
                raise IntegrityError(
                    f"{staged.path!r} is not listed with its {staged.size} bytes after it was completed"
                    f" (listed: {found.get(staged.key)})",
                    reference="list-differs",
                    hint="somebody removed it, or the store lists late; run again",
                    side="store",
                )

    def _encode(self) -> bytes:
        try:
            return self.manifest.encode()
        except ValueError as error:
            raise MalformedInput(
                f"the manifest of this checkpoint cannot be written: {error}",
                reference="manifest-too-large",
                hint="publish it in several checkpoints",
                side="source",
            ) from error

    def _publish(self, data: bytes) -> bool:
        checksum = crc64.to_text(crc64.crc64(data))
        try:
            create = functools.partial(
                self._store.create, self._location.manifest_key, data, crc64nvme=checksum
            )
            send_checked(create)
        except AlreadyExists:
            there = read_if_published(self._store, self._location)
            if there is None or there.id != self.manifest.id:
                holder = "something that is gone again" if there is None else there.id
                what = f"this upload is {self.manifest.id}"
                raise target.differs(self._location, holder, what) from None
            # Equal to the byte: this run's own PUT, its answer lost and the request repeated.
            return there != self.manifest
        return False
