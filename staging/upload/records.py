"""Records of open multipart uploads, so that another process, on another machine, can continue or drop them.

    <prefix>/.checkpoint/upload/<token>/run.json               a run began; it may have opened uploads
    <prefix>/.checkpoint/upload/<token>/<path hash>.json       this upload is ours: written before its part 1
    <prefix>/.checkpoint/upload/<token>/<path hash>.done.json  all its parts are sent; the file's digests

Each run has a token of its own and creates its objects conditionally, so no record ever changes. An
upload is *ours* when it is recorded; nobody else's is touched.

Not guaranteed: that a record tells the truth. It is a hint where to look: a part counts as sent only when
the store's checksum of it equals the source's.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import json
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from staging.store.store import (
    MAX_PART_SIZE,
    MAX_PARTS,
    AlreadyExists,
    MultipartUpload,
    ObjectInfo,
    Store,
)
from staging.transfer.scheduler import Scheduler
from staging.upload.checked import send_checked
from staging.vocabulary import crc64, strict_json
from staging.vocabulary.digest import (
    CHUNK_SIZE,
    DIGEST_SIZE,
    MAX_FILE_SIZE,
    HashFamily,
    chunk_count,
)
from staging.vocabulary.errors import MalformedInput, NotFound
from staging.vocabulary.location import S3Location
from staging.vocabulary.paths import SafePath

SCHEMA: Final = "checkpoint-upload/1"
RUN_SCHEMA: Final = "checkpoint-upload-run/1"
RUN_NAME: Final = "run.json"
MAX_RECORD_BYTES: Final = 16 * 1024 * 1024
"""Most bytes of a record; one of a file with more chunks than that holds is not written when done."""

_READERS: Final = 16
_DONE: Final = ".done.json"


@dataclass(frozen=True, slots=True)
class Finished:
    """The digests of a file whose parts are all sent, and its CRC-64/NVME as base64."""

    family: HashFamily
    chunks: tuple[bytes, ...]
    crc64nvme: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One open upload of one file: sizes in bytes, `stamp` and `source` as `Source` gives them.

    `finished` is only told when the source can vouch for its bytes, and only then of use.
    """

    upload: MultipartUpload
    path: SafePath
    size: int
    part_size: int
    stamp: str
    source: str | None
    finished: Finished | None = None

    def encode(self) -> bytes:
        """The record as a JSON document."""
        document: dict[str, Any] = {
            "schema": SCHEMA,
            "key": self.upload.key,
            "upload_id": self.upload.upload_id,
            "path": self.path,
            "size": self.size,
            "part_size": self.part_size,
            "stamp": self.stamp,
            "source": self.source,
        }
        if self.finished is not None:
            document["finished"] = {
                "hash": self.finished.family.value,
                "chunks": base64.b64encode(b"".join(self.finished.chunks)).decode("ascii"),
                "crc64nvme": self.finished.crc64nvme,
            }
        return json.dumps(document, ensure_ascii=False).encode("utf-8")

    @classmethod
    def decode(cls, data: bytes, location: S3Location) -> Record:
        """Read a record of an upload under `location`. Raises ValueError when it is not one."""
        document = strict_json.loads(data, limit=MAX_RECORD_BYTES)
        if not isinstance(document, dict) or document.get("schema") != SCHEMA:
            raise ValueError("another schema")
        path = SafePath(_text(document, "path"))
        record = cls(
            upload=MultipartUpload(_text(document, "key"), _text(document, "upload_id")),
            path=path,
            size=_number(document, "size", MAX_FILE_SIZE),
            part_size=_number(document, "part_size", MAX_PART_SIZE),
            stamp=_text(document, "stamp"),
            source=None if document.get("source") is None else _text(document, "source"),
        )
        if record.upload.key != location.key(path):
            raise ValueError("its key is not that of its path")
        if record.part_size % CHUNK_SIZE or record.size > MAX_PARTS * record.part_size:
            raise ValueError("its parts are not whole chunks, or too many")
        finished = document.get("finished")
        return record if finished is None else replace(record, finished=_finished(finished, record))


@dataclass(frozen=True, slots=True)
class FoundRecord:
    """A record as it lies in the store. It has a second object, `done`, when it is finished."""

    record: Record
    objects: tuple[ObjectInfo, ...]
    token: str


@dataclass(frozen=True, slots=True)
class FoundRuns:
    """All that runs have left below one version prefix."""

    records: tuple[FoundRecord, ...] = ()
    runs: tuple[ObjectInfo, ...] = ()
    unknown: tuple[ObjectInfo, ...] = ()
    """Objects there that this version cannot read; they are left alone."""


class Records:
    """The records one run writes. Safe to use from several threads."""

    def __init__(self, store: Store, location: S3Location, token: str) -> None:
        self._store = store
        self._location = location
        self.token = token
        self._beginning = threading.Lock()
        self._begun = False
        self._successors = 0

    @property
    def begun(self) -> bool:
        """True when this run has written anything."""
        return self._begun

    def successor(self) -> Records:
        """Records of the same run for a file that starts again, beside that of its upload before."""
        with self._beginning:
            self._successors += 1
            return Records(self._store, self._location, f"{self.token}-{self._successors}")

    def begin(self) -> None:
        """Say once that this run begins to open uploads, before it opens the first."""
        with self._beginning:
            if not self._begun:
                self._create(RUN_NAME, json.dumps({"schema": RUN_SCHEMA}).encode("ascii"))
                self._begun = True

    def opened(self, record: Record) -> None:
        """Record an upload, before its first part is sent."""
        self._create(f"{path_hash(record.path)}.json", record.encode())

    def finished(self, record: Record) -> None:
        """Record the digests of a file whose parts are all sent; nothing when they are too many."""
        data = record.encode()
        if len(data) <= MAX_RECORD_BYTES:
            self._create(f"{path_hash(record.path)}{_DONE}", data)

    def _create(self, name: str, data: bytes) -> None:
        # The token is this run's own: what exists is its own request, repeated after a lost answer.
        with contextlib.suppress(AlreadyExists):
            send_checked(
                functools.partial(
                    self._store.create,
                    f"{runs_prefix(self._location)}{self.token}/{name}",
                    data,
                    crc64nvme=crc64.to_text(crc64.crc64(data)),
                )
            )


def runs_prefix(location: S3Location) -> str:
    """Prefix of the records of all runs below a version prefix."""
    return f"{location.control_prefix}upload/"


def run_token(run: ObjectInfo) -> str:
    """The token of a run, from the object that says that it began."""
    return run.key.split("/")[-2]


def path_hash(path: SafePath) -> str:
    """The name of a file's records: 32 hex digits."""
    return HashFamily.BLAKE3.hash(path.encode("utf-8")).hex()[:32]


def read_runs(store: Store, location: S3Location, objects: Iterable[ObjectInfo]) -> FoundRuns:
    """Read the records among `objects`, a listing of the version prefix or of its records.

    What is gone meanwhile is left out.
    """
    prefix = runs_prefix(location)
    by_file: dict[tuple[str, str], list[ObjectInfo]] = {}
    runs: list[ObjectInfo] = []
    unknown: list[ObjectInfo] = []
    for info in objects:
        token, slash, name = info.key.removeprefix(prefix).partition("/")
        if not info.key.startswith(prefix):
            continue
        if name == RUN_NAME:
            runs.append(info)
        elif slash and name.endswith(".json") and info.size <= MAX_RECORD_BYTES:
            by_file.setdefault((token, name.partition(".")[0]), []).append(info)
        else:
            unknown.append(info)
    found: list[FoundRecord] = []

    def read(token: str, infos: Sequence[ObjectInfo]) -> None:
        fullest = max(infos, key=lambda info: info.key.endswith(_DONE))
        try:
            data, _ = store.read(fullest.key, limit=MAX_RECORD_BYTES)
            record = Record.decode(data, location)
        except NotFound:
            return
        except (ValueError, MalformedInput):
            unknown.extend(infos)
            return
        found.append(FoundRecord(record, tuple(infos), token))

    with Scheduler(_READERS, name="records") as scheduler:
        for (token, _), infos in by_file.items():
            scheduler.submit(functools.partial(read, token, infos))
        scheduler.finish()
    return FoundRuns(tuple(found), tuple(runs), tuple(unknown))


def _text(document: dict[str, Any], name: str) -> str:
    value = document.get(name)
    if not isinstance(value, str):
        raise ValueError(f"{name} is no text")
    return value


def _number(document: dict[str, Any], name: str, most: int) -> int:
    value = document.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= most:
        raise ValueError(f"{name} is no number in its range")
    return value


def _finished(document: object, record: Record) -> Finished:
    if not isinstance(document, dict):
        raise ValueError("finished is no object")
    packed = base64.b64decode(_text(document, "chunks"), validate=True)
    if len(packed) != chunk_count(record.size) * DIGEST_SIZE:
        raise ValueError("another number of chunks")
    checksum = _text(document, "crc64nvme")
    crc64.from_text(checksum)
    return Finished(
        HashFamily(_text(document, "hash")),
        tuple(packed[at : at + DIGEST_SIZE] for at in range(0, len(packed), DIGEST_SIZE)),
        checksum,
    )
