"""What is read of a checkpoint before its weights: their headers, and the small files that rules judge.

A safetensors file that was cut off, padded or replaced before it was published has the right digest and
serves garbage; an index that names tensors where they are not does so too. The first bytes of a file and its
size tell: two requests per shard, one per document, all at once.

Invariants: every range is pinned to the listed version (I7); a document that is read whole has the digest of
the manifest, or is an error (I1); at most `MOST_REQUESTS` requests per file as long as connections hold and
the bytes are right; what is read and parsed at once, and what is kept of it, stays within a share each of the
memory budget (I11): what may need more is not looked into, which is a note, not a finding.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from staging.formats.safetensors import HeaderCapture, SafetensorsError, SafetensorsHeader
from staging.layout.documents import MAX_INDEX_BYTES, DocumentCapture, is_document
from staging.layout.inventory import is_safetensors
from staging.store.store import Store
from staging.sync.pins import MAX_REPEATS, damaged
from staging.transfer.ranges import read_range
from staging.transfer.scheduler import Cancellation, Scheduler
from staging.vocabulary.digest import CHUNK_SIZE, HashFamily
from staging.vocabulary.errors import (
    AccessDenied,
    IntegrityError,
    MalformedInput,
    NotFound,
    StagingError,
)
from staging.vocabulary.events import Note, Reporter
from staging.vocabulary.location import S3Location
from staging.vocabulary.manifest import ManifestFile

MOST_REQUESTS: Final = 2
"""Requests for one header: its length with the first bytes, then the rest."""

_MOST_AT_ONCE: Final = 32
_PARSED: Final = 20  # what is parsed takes up to about that many times its length
_TENSOR: Final = 640  # bytes that a tensor of a parsed header takes, with a long name
_KEPT: Final = 2  # one part in so many of the memory is for what was parsed
_JITTER: Final = random.SystemRandom()
_PASSING: Final = (AccessDenied, IntegrityError, MalformedInput, NotFound)
"""What may be wrong with one object alone; after anything else the others are not asked for."""


@dataclass(frozen=True, slots=True)
class Excerpts:
    """What was read, by path: `headers` and `documents` as an `Inventory` has them.

    `wrong` is what the store answered instead.
    """

    headers: Mapping[str, SafetensorsHeader | str | None] = field(default_factory=dict)
    documents: Mapping[str, Any] = field(default_factory=dict)
    wrong: Mapping[str, StagingError] = field(default_factory=dict)


def is_looked_into(path: str) -> bool:
    """True for the files of which something is read."""
    return is_safetensors(path) or is_document(path)


def read_excerpts(
    store: Store,
    location: S3Location,
    files: Sequence[ManifestFile],
    etags: Mapping[str, str],
    *,
    family: HashFamily | None,
    memory: int,
    concurrency: int | None,
    report: Reporter,
) -> Excerpts:
    """Read what there is to know of files, in the versions that `etags` (by path) pin.

    Of a file that is neither weights nor a document the first bytes are asked for, to see whether that may
    be done. `memory` is the budget in bytes. `family` is the hash of the files' digests, None where these
    are not known. Raises what the store raises for the first request that fails
    for a reason that would fail all others too.
    """
    threads = min(concurrency or _MOST_AT_ONCE, _MOST_AT_ONCE, max(1, len(files)))
    most = max(memory // _PARSED, 1)
    reading = _Reading(
        store, location, etags, family, most=most, small=most // threads, kept=memory // _KEPT
    )
    if files:
        with Scheduler(threads, name="headers") as scheduler:
            for file in files:
                scheduler.submit(partial(reading.read, file, scheduler.cancelled))
            scheduler.finish()
    for path in sorted(reading.skipped):
        report(
            Note(
                f"{path!r} has too much in it to be looked into with this much memory; its bytes are"
                " verified all the same",
                warning=True,
            )
        )
    return Excerpts(reading.headers, reading.documents, reading.wrong)


class _Reading:
    def __init__(
        self,
        store: Store,
        location: S3Location,
        etags: Mapping[str, str],
        family: HashFamily | None,
        *,
        most: int,
        small: int,
        kept: int,
    ) -> None:
        self.headers: dict[str, SafetensorsHeader | str | None] = {}
        self.documents: dict[str, Any] = {}
        self.wrong: dict[str, StagingError] = {}
        self.skipped: list[str] = []
        self._store = store
        self._location = location
        self._etags = etags
        self._family = family
        self._most = most
        self._small = small
        self._room = kept
        self._lock = threading.Lock()
        self._large = threading.Lock()  # held while something is read that is not small

    def read(self, file: ManifestFile, cancelled: Cancellation) -> None:
        """Read what there is to know of one file."""
        try:
            if is_document(file.path):
                self._read_document(file, cancelled)
                return
            capture = HeaderCapture(file.size)
            if self._feed(capture, file, cancelled) and is_safetensors(file.path):
                self._take(file.path, capture)
        except _PASSING as error:
            if isinstance(error, AccessDenied) and error.reference not in ("denied", "kms-key"):
                raise
            self.wrong[file.path] = error

    def _read_document(self, file: ManifestFile, cancelled: Cancellation) -> None:
        """Read a document, again when it is not the one of the manifest. Raises IntegrityError."""
        for _ in range(MAX_REPEATS + 1):
            capture = DocumentCapture(file.path, file.size, index_limit=MAX_INDEX_BYTES)
            if not self._feed(capture, file, cancelled):
                return
            if self._is_right(file, capture):
                parsed = capture.result()
                if parsed.known:
                    self.documents[file.path] = parsed.value
                return
        raise damaged(file, 0, self._location, requests=MAX_REPEATS + 1)

    def _is_right(self, file: ManifestFile, capture: DocumentCapture) -> bool:
        """False when a whole chunk was read and has another digest; a part of one has none."""
        if self._family is None or not file.size or capture.held < min(file.size, CHUNK_SIZE):
            return True
        return self._family.hash(capture.start(CHUNK_SIZE)) == file.chunks[0]

    def _feed(
        self,
        capture: HeaderCapture | DocumentCapture,
        file: ManifestFile,
        cancelled: Cancellation,
    ) -> bool:
        """Give a capture what it needs; False when that is more than there is memory for."""
        document = isinstance(capture, DocumentCapture)
        while count := capture.missing:
            if count > self._most and (document or capture.held):
                self.skipped.append(file.path)
                return False
            with ExitStack() as turn:
                if count > self._small and (document or capture.held):
                    turn.enter_context(self._large)
                data = bytearray(count)
                with memoryview(data) as view:
                    read_range(
                        self._store,
                        self._location.key(file.path),
                        capture.held,
                        view,
                        etag=self._etags[file.path],
                        cancelled=cancelled,
                        rng=_JITTER,
                    )
                capture.feed(data)
        return True

    def _take(self, path: str, capture: HeaderCapture) -> None:
        """Keep a header as long as there is room; of others it is only known that they are whole."""
        try:
            header = capture.result()
        except SafetensorsError as error:
            self.headers[path] = error.reason
            return
        with self._lock:
            self._room -= len(header.tensors) * _TENSOR
            fits = self._room >= 0
        self.headers[path] = header if fits else None
        if not fits:
            self.skipped.append(path)
