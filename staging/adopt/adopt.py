"""Adopting a prefix: a manifest for objects that another tool put there, readable from top to bottom.

    plan                      names, layout, is a copy under way: before any weight is read
    ask for checksums         what the store keeps of every object
    read                      all bytes, in parallel ranges of the listed versions (I7): digests, CRC64NVME
    compare                   with the store's checksums
    list again                the same objects in the same versions, and no others
    commit                    the manifest, conditionally: the only object that is written (I4, I9)

Invariants: no object is moved, changed or deleted; whatever stops this before the commit leaves nothing
behind (I12); the same files have the same id as after an upload.
Not guaranteed: that an object stays what it was from the second listing on; readers pin versions and
verify digests. That another tool's copy was whole: see `staging.unpublished.wholeness`.
"""

from __future__ import annotations

import datetime
import functools
import random
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from staging.adopt.plan import AdoptOptions, AdoptPlan, plan
from staging.layout.rules import Finding
from staging.published import read_if_published, require_id
from staging.store.store import AlreadyExists, Changed, ObjectInfo, Store
from staging.transfer.budget import Budget
from staging.transfer.ranges import read_range
from staging.transfer.scheduler import Scheduler
from staging.transfer.sizing import BASE_MEMORY
from staging.unpublished.content import Content, encode
from staging.unpublished.prefix import (
    archive_sha256,
    changed,
    require_unchanged,
    stored_checksums,
)
from staging.upload import target
from staging.upload.checked import send_checked
from staging.vocabulary import crc64
from staging.vocabulary.digest import chunk_count, chunk_span
from staging.vocabulary.errors import NotFound
from staging.vocabulary.events import FileDone, Moved, Note, Reporter, Started, silent
from staging.vocabulary.location import S3Location
from staging.vocabulary.manifest import Manifest
from staging.vocabulary.paths import SafePath

SOURCE_KIND: Final = "prefix"
"""What `source.kind` is in the manifest of an adopted prefix."""


@dataclass(frozen=True, slots=True)
class AdoptResult:
    """What adopting came to. `read_bytes` is 0 when the prefix was published already.

    `not_proven` are the files of which neither the store's checksum nor its ETag showed that the bytes
    that were read are those that were put there. `archive_sha256` is what the reference uploader's
    marker says of the archive the files are from.
    """

    manifest: Manifest
    location: S3Location
    already_published: bool
    read_bytes: int = 0
    not_proven: tuple[SafePath, ...] = ()
    archive_sha256: str | None = None
    findings: tuple[Finding, ...] = ()


def adopt(
    store: Store,
    location: S3Location,
    options: AdoptOptions,
    report: Reporter = silent,
    *,
    planned: AdoptPlan | None = None,
    now: Callable[[], datetime.datetime] = lambda: datetime.datetime.now(datetime.UTC),
    rng: random.Random | None = None,
) -> AdoptResult:
    """Publish what lies under `location`; `planned` is `plan` of the same, if it was made.

    Raises what `plan` raises; Conflict when the prefix is written to meanwhile or another manifest is
    there first; IntegrityError when the store keeps another checksum of an object than its bytes have,
    or the id is not the expected one; and what the store raises.
    """
    known = planned or plan(store, location, options)
    if known.published is not None:
        return AdoptResult(known.published, location, already_published=True)
    found = known.found
    concurrency = known.sizing.concurrency
    checksums = stored_checksums(store, found.files, concurrency=concurrency)
    archive = archive_sha256(store, location) if found.marked else None
    if archive is not None:
        report(Note(f"the marker there says: from an archive with the SHA-256 {archive}"))
    reading = _Reading(store, found.files, options, report, rng)
    reading.run(concurrency)
    proofs = {
        path: content.require(checksums[path], f"s3://{store.bucket}/{found.files[path].key}")
        for path, content in reading.contents.items()
    }
    manifest = Manifest.of(
        options.hash,
        [content.file() for content in reading.contents.values()],
        layout=known.layout,
        source=_source(location, found.total_size, archive),
        created=now().astimezone(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        tool=options.tool,
    )
    require_id(manifest, options.expect_id, str(location), side="store")
    data = encode(manifest)
    require_unchanged(store, found)
    twin = _publish(store, location, manifest, data)
    return AdoptResult(
        manifest,
        location,
        already_published=twin,
        read_bytes=found.total_size,
        not_proven=tuple(path for path, proof in proofs.items() if proof == "nothing"),
        archive_sha256=archive,
        findings=known.findings,
    )


class _Reading:
    """All bytes of all files, each file in its listed version."""

    def __init__(
        self,
        store: Store,
        files: Mapping[SafePath, ObjectInfo],
        options: AdoptOptions,
        report: Reporter,
        rng: random.Random | None,
    ) -> None:
        self._store = store
        self._files = files
        self._report = report
        self._rng = rng or random.Random()  # noqa: S311 - jitter, not secrets
        self._budget = Budget(options.memory - BASE_MEMORY)
        self._lock = threading.Lock()
        self._left = {path: chunk_count(info.size) for path, info in files.items()}
        self.contents = {
            path: Content(path, info.size, info.etag, options.hash) for path, info in files.items()
        }

    def run(self, concurrency: int) -> None:
        """Read them. Raises Conflict when an object is not the listed version any more."""
        total = sum(info.size for info in self._files.values())
        self._report(Started("adopt", total, len(self._files)))
        with Scheduler(concurrency, name="adopt") as scheduler:
            for path, info in self._files.items():
                if info.size == 0:
                    self._report(FileDone(path, 0))
                    continue
                for index in range(chunk_count(info.size)):
                    scheduler.submit(functools.partial(self._read, scheduler, path, index))

    def _read(self, scheduler: Scheduler, path: SafePath, index: int) -> None:
        info = self._files[path]
        offset, length = chunk_span(info.size, index)
        with (
            self._budget.lease(length, scheduler.cancelled) as buffer,
            memoryview(buffer) as view,
        ):
            try:
                read_range(
                    self._store,
                    info.key,
                    offset,
                    view,
                    etag=info.etag,
                    cancelled=scheduler.cancelled,
                    rng=self._rng,
                )
            except (Changed, NotFound) as error:
                if error.reference == "bucket":
                    raise
                what = "is gone" if isinstance(error, NotFound) else "was replaced"
                raise changed(f"{path[:200]!r} {what}", self._store, info.key) from error
            self.contents[path].take(index, view)
        self._report(Moved(length))
        with self._lock:
            self._left[path] -= 1
            last = not self._left[path]
        if last:
            self._report(FileDone(path, info.size))


def _source(location: S3Location, size: int, archive: str | None) -> dict[str, Any]:
    name = location.prefix.rstrip("/").rpartition("/")[2]
    about: dict[str, Any] = {"kind": SOURCE_KIND, "name": name, "size": size}
    if archive is not None:
        about["archive_sha256"] = archive
    return about


def _publish(store: Store, location: S3Location, manifest: Manifest, data: bytes) -> bool:
    """Create the manifest. True when a twin's was there first; raises Conflict for another one."""
    checksum = crc64.to_text(crc64.crc64(data))
    try:
        send_checked(
            functools.partial(store.create, location.manifest_key, data, crc64nvme=checksum)
        )
    except AlreadyExists:
        there = read_if_published(store, location)
        if there is None or there.id != manifest.id:
            holder = "something that is gone again" if there is None else there.id
            what = f"what was read is {manifest.id}"
            raise target.differs(location, holder, what) from None
        # Equal to the byte: this run's own PUT, its answer lost and the request repeated.
        return there != manifest
    return False
