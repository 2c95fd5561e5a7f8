"""The headers of a checkpoint's weights, read from the store before anything else of them is.

A safetensors file that was cut off, padded or replaced before it was published has the right digest and
serves garbage. Its first bytes and its size tell: two requests per shard, all shards at once.

Invariants: every range is pinned to the listed version (I7); at most `MOST_REQUESTS` requests per file as
long as connections hold; what is read and parsed at once stays within a share of the memory budget (I11): a
header that may need more is not looked into, which is a note, not a finding.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from staging.formats.safetensors import HeaderCapture
from staging.store.store import Store
from staging.transfer.ranges import read_range
from staging.transfer.scheduler import Cancellation, Scheduler
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
_PARSED: Final = 32  # a parsed header takes up to about that many times its length
_JITTER: Final = random.SystemRandom()
_PASSING: Final = (AccessDenied, IntegrityError, MalformedInput, NotFound)
"""What may be wrong with one object alone; after anything else the others are not asked for."""


@dataclass(frozen=True, slots=True)
class Headers:
    """What the headers say, by path: `broken` in words, or `wrong` as an error of the store."""

    broken: Mapping[str, str] = field(default_factory=dict)
    wrong: Mapping[str, StagingError] = field(default_factory=dict)


def read_headers(
    store: Store,
    location: S3Location,
    files: Sequence[ManifestFile],
    etags: Mapping[str, str],
    *,
    memory: int,
    concurrency: int | None,
    report: Reporter,
) -> Headers:
    """Read the headers of safetensors files, in the versions that `etags` (by path) pin.

    `memory` is the budget in bytes. Raises what the store raises for the first request that fails for a
    reason that would fail all others too.
    """
    threads = min(concurrency or _MOST_AT_ONCE, _MOST_AT_ONCE, max(1, len(files)))
    most = max(memory // _PARSED, 1)
    reading = _Reading(store, location, etags, most=most, small=most // threads)
    if files:
        with Scheduler(threads, name="headers") as scheduler:
            for file in files:
                scheduler.submit(partial(reading.read, file, scheduler.cancelled))
            scheduler.finish()
    for path in sorted(reading.skipped):
        report(
            Note(
                f"the header of {path!r} is too long to look into with this much memory; its bytes are"
                " verified all the same",
                warning=True,
            )
        )
    return Headers(reading.broken, reading.wrong)


class _Reading:
    def __init__(
        self, store: Store, location: S3Location, etags: Mapping[str, str], *, most: int, small: int
    ) -> None:
        self.broken: dict[str, str] = {}
        self.wrong: dict[str, StagingError] = {}
        self.skipped: list[str] = []
        self._store = store
        self._location = location
        self._etags = etags
        self._most = most
        self._small = small
        self._large = threading.Lock()  # held while a header is read that is not small

    def read(self, file: ManifestFile, cancelled: Cancellation) -> None:
        """Read one header."""
        capture = HeaderCapture(file.size)
        try:
            while count := capture.missing:
                if capture.held and count > self._most:
                    self.skipped.append(file.path)
                    return
                with ExitStack() as turn:
                    if capture.held and count > self._small:
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
        except _PASSING as error:
            if isinstance(error, AccessDenied) and error.reference not in ("denied", "kms-key"):
                raise
            self.wrong[file.path] = error
            return
        if capture.failure is not None:
            self.broken[file.path] = capture.failure.reason
