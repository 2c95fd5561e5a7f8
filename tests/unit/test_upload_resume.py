"""Resuming an upload: what is recorded and proven, what is sent again, what is left (I6, I7, I8, I12)."""

from __future__ import annotations

import concurrent.futures
import contextlib
import datetime
import io
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from staging.source.pipe import Pipe
from staging.source.source import Source, SourceFile
from staging.source.tar_file import TarFile
from staging.store.s3 import S3Store
from staging.transfer.sizing import MIB
from staging.upload import UploadOptions, UploadResult, upload
from staging.upload.unfinished import drop, find_unfinished
from staging.vocabulary import crc64
from staging.vocabulary.digest import CHUNK_SIZE
from staging.vocabulary.errors import (
    AccessDenied,
    Conflict,
    IntegrityError,
    MalformedInput,
    NotFound,
    StagingError,
    StoreUnavailable,
)
from staging.vocabulary.events import Event, Note
from staging.vocabulary.location import S3Location
from staging.vocabulary.manifest import Manifest
from staging.vocabulary.paths import SafePath
from tests.support.archives import tar_bytes, tar_on_disk, weights
from tests.support.s3server import DropAfter, Fault, ScriptedS3, Status
from tests.support.s3server.quirks import Quirk
from tests.support.stores import s3_store

BUCKET = "models"
LOCATION = S3Location(BUCKET, "checkpoints/m/")
RECORDS = LOCATION.control_prefix + "upload/"
CLAIM = LOCATION.control_prefix + "claim.json"
PARTS = 4
FILES = {
    "config.json": b'{"model_type": "tiny"}',
    "model.safetensors": weights((PARTS - 1) * CHUNK_SIZE + 4567),
    "second.safetensors": weights(6 * MIB, seed=2),
}
"""One file of four parts, one of one part, and one that the commit creates whole."""


@pytest.fixture
def s3() -> Iterator[ScriptedS3]:
    with ScriptedS3(buckets=[BUCKET]) as server:
        yield server


@pytest.fixture
def store(s3: ScriptedS3) -> Iterator[S3Store]:
    with s3_store(s3, BUCKET) as opened:
        s3.requests.clear()
        yield opened


@pytest.fixture(scope="module")
def tar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tar_on_disk(tmp_path_factory.mktemp("tar"), FILES)


def publish(
    source: Path | bytes | Source, store: S3Store, notes: list[str] | None = None, **changes: Any
) -> UploadResult:
    opened: Any = source
    if isinstance(source, Path):
        opened = TarFile(source)
    elif isinstance(source, bytes):
        opened = Pipe(io.BytesIO(source))

    def report(event: Event) -> None:
        if notes is not None and isinstance(event, Note):
            notes.append(event.text)

    options = UploadOptions(**{"memory": 256 * MIB, "cores": 1, "concurrency": 1, **changes})
    with contextlib.closing(opened):
        return upload(opened, store, LOCATION, options, report)


def interrupted(s3: ScriptedS3, source: Path | bytes, store: S3Store, after: int) -> StagingError:
    """An upload that is denied everything after so many parts; what it had sent is kept."""
    s3.script(Fault("UploadPart", Status(403), occurrence=after + 1))
    with pytest.raises(AccessDenied) as caught:
        publish(source, store)
    s3.clear_script()
    s3.requests.clear()
    return caught.value


def check_published(s3: ScriptedS3, files: dict[str, bytes] | None = None) -> Manifest:
    """Exactly the files and the manifest are there; no upload is open, no record is left."""
    files = FILES if files is None else files
    bucket = s3.bucket(BUCKET)
    for name, data in files.items():
        assert bucket.get(LOCATION.prefix + name) == data, name
    names = {key.removeprefix(LOCATION.prefix) for key in bucket}
    assert names == {*files, ".checkpoint/manifest.json"}
    assert not bucket.uploads()
    return Manifest.decode(bucket.get(LOCATION.manifest_key))


def sent_parts(s3: ScriptedS3) -> list[tuple[str, int]]:
    return [
        (request.key.removeprefix(LOCATION.prefix), int(request.query["partNumber"]))
        for request in s3.requests.of("UploadPart")
    ]


def records(s3: ScriptedS3) -> dict[str, dict[str, Any]]:
    bucket = s3.bucket(BUCKET)
    return {key: json.loads(bucket.get(key)) for key in bucket if key.startswith(RECORDS)}


@pytest.mark.parametrize("piped", [False, True], ids=["file", "pipe"])
@pytest.mark.parametrize("after", [0, 1, 3, 4])
def test_what_is_in_the_store_is_not_sent_again(
    s3: ScriptedS3, store: S3Store, tar: Path, piped: bool, after: int
) -> None:
    source = tar.read_bytes() if piped else tar
    interrupted(s3, source, store, after)
    notes: list[str] = []
    result = publish(source, store, notes)
    assert len(sent_parts(s3)) == PARTS + 1 - after
    assert result.resumed_bytes == min(after, PARTS) * CHUNK_SIZE - (
        CHUNK_SIZE * PARTS - len(FILES["model.safetensors"]) if after >= PARTS else 0
    )
    assert any("again" in note for note in notes)
    check_published(s3)


def test_every_upload_is_recorded_before_its_first_part(
    s3: ScriptedS3, store: S3Store, tar: Path
) -> None:
    publish(tar, store, concurrency=4, memory=512 * MIB)
    log = [(request.operation, request.key) for request in s3.requests]
    begun = next(i for i, (_, key) in enumerate(log) if key.endswith("/run.json"))
    for name in ("model.safetensors", "second.safetensors"):
        key = LOCATION.prefix + name
        opened = log.index(("CreateMultipartUpload", key))
        part = log.index(("UploadPart", key))
        between = [k for op, k in log[opened:part] if op == "PutObject"]
        assert begun < opened
        assert any(k.startswith(RECORDS) and not k.endswith("run.json") for k in between)


def test_a_record_names_what_another_machine_needs(
    s3: ScriptedS3, store: S3Store, tar: Path
) -> None:
    interrupted(s3, tar, store, 1)
    documents = [document for document in records(s3).values() if "path" in document]
    (waiting,) = s3.bucket(BUCKET).uploads()
    (document,) = documents
    assert document["schema"] == "checkpoint-upload/1"
    assert document["upload_id"] == waiting.upload_id
    assert document["key"] == LOCATION.prefix + "model.safetensors"
    assert (document["size"], document["part_size"]) == (
        len(FILES["model.safetensors"]),
        CHUNK_SIZE,
    )


@pytest.mark.parametrize(
    "quirk", [Quirk.LISTS_PARTS_WITHOUT_CHECKSUMS, Quirk.IGNORES_CHECKSUMS], ids=lambda q: q.name
)
def test_without_listed_checksums_an_etag_that_is_the_md5_proves_a_part(
    tar: Path, quirk: Quirk
) -> None:
    with ScriptedS3(buckets=[BUCKET], quirks=[quirk]) as s3, s3_store(s3, BUCKET) as store:
        interrupted(s3, tar, store, 2)
        publish(tar, store)
        assert len(sent_parts(s3)) == PARTS + 1 - 2
        check_published(s3)


def test_what_cannot_be_proven_is_sent_again(tar: Path) -> None:
    quirks = [Quirk.LISTS_PARTS_WITHOUT_CHECKSUMS, Quirk.ETAG_IS_NO_DIGEST]
    with ScriptedS3(buckets=[BUCKET], quirks=quirks) as s3, s3_store(s3, BUCKET) as store:
        interrupted(s3, tar, store, 2)
        assert publish(tar, store).resumed_bytes == 0
        assert len(sent_parts(s3)) == PARTS + 1
        check_published(s3)


def test_a_part_of_other_bytes_is_sent_again(
    s3: ScriptedS3, store: S3Store, tar: Path, tmp_path: Path
) -> None:
    """The source changed between the runs in one part; the size and the names did not."""
    changed = dict(FILES)
    data = bytearray(FILES["model.safetensors"])
    data[CHUNK_SIZE + 5] ^= 1
    changed["model.safetensors"] = bytes(data)
    interrupted(s3, tar_on_disk(tmp_path, changed, name="changed.tar"), store, 3)
    publish(tar, store)
    assert ("model.safetensors", 1) not in sent_parts(s3)
    assert ("model.safetensors", 2) in sent_parts(s3)
    assert ("model.safetensors", 3) not in sent_parts(s3)
    check_published(s3)


def test_another_part_size_continues_with_the_recorded_one(
    s3: ScriptedS3, store: S3Store, tar: Path
) -> None:
    interrupted(s3, tar, store, 2)
    publish(tar, store, part_size=2 * CHUNK_SIZE)
    assert len(sent_parts(s3)) == PARTS + 1 - 2
    check_published(s3)


def test_an_upload_whose_parts_do_not_fit_the_memory_starts_again_and_is_dropped(
    s3: ScriptedS3, store: S3Store, tar: Path
) -> None:
    s3.script(Fault("UploadPart", Status(403), occurrence=2))
    with pytest.raises(AccessDenied):
        publish(tar, store, part_size=3 * CHUNK_SIZE)
    assert publish(tar, store, memory=128 * MIB).resumed_bytes == 0
    check_published(s3)


def test_an_upload_that_a_lifecycle_rule_ended_starts_again(
    s3: ScriptedS3, store: S3Store, tar: Path
) -> None:
    interrupted(s3, tar, store, 2)
    for waiting in s3.bucket(BUCKET).uploads():
        s3.bucket(BUCKET).close_upload(waiting.upload_id)
    publish(tar, store)
    assert len(sent_parts(s3)) == PARTS + 1
    check_published(s3)


@pytest.mark.parametrize("piped", [False, True], ids=["file", "pipe"])
def test_an_upload_that_vanishes_while_it_is_sent(
    s3: ScriptedS3, store: S3Store, tar: Path, piped: bool
) -> None:
    source = tar.read_bytes() if piped else tar
    with s3.hold("UploadPart", occurrence=2) as hold:
        outcome = _in_thread(lambda: publish(source, store))
        assert hold.arrived.wait(30)
        for waiting in s3.bucket(BUCKET).uploads():
            s3.bucket(BUCKET).close_upload(waiting.upload_id)
        hold.release()
        result = outcome.result(60) if not piped else outcome.exception(60)
    if piped:  # cannot be read again
        assert isinstance(result, Conflict)
        assert result.reference == "upload-gone"
        assert not s3.bucket(BUCKET).uploads()
        assert not records(s3)
    else:
        check_published(s3)


def test_objects_that_a_dead_commit_completed_are_not_sent_again(
    s3: ScriptedS3, store: S3Store, tar: Path
) -> None:
    s3.script(Fault("CompleteMultipartUpload", Status(403), occurrence=2))
    with pytest.raises(AccessDenied):
        publish(tar, store)
    s3.requests.clear()
    publish(tar, store)
    assert sent_parts(s3) == []
    check_published(s3)


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Fault("UploadPart", Status(403), occurrence=2), AccessDenied),
        (Fault("UploadPart", Status(503), occurrence=range(2, 99)), StoreUnavailable),
    ],
)
def test_what_a_later_run_may_not_meet_keeps_parts_and_says_how_to_go_on(
    s3: ScriptedS3, store: S3Store, tar: Path, fault: Fault, error: type[StagingError]
) -> None:
    s3.script(fault)
    with pytest.raises(error) as caught:
        publish(tar, store)
    (waiting,) = s3.bucket(BUCKET).uploads()
    assert len(waiting.parts) == 1
    *_, keep, drop = caught.value.__notes__
    assert keep.startswith("to continue: ")
    assert drop == f"to drop it: staging gc --uploads {LOCATION} --older-than 0s --yes"
    assert caught.value.document["kept_uploads"] == 1


@pytest.mark.parametrize("abort_on_interrupt", [False, True])
def test_an_interruption_keeps_what_was_sent_unless_told_otherwise(
    s3: ScriptedS3, store: S3Store, tar: Path, abort_on_interrupt: bool
) -> None:
    class Interrupting(TarFile):
        def read_into(self, file: SourceFile, offset: int, view: memoryview) -> None:
            if offset == 2 * CHUNK_SIZE:
                raise KeyboardInterrupt
            super().read_into(file, offset, view)

    with pytest.raises(KeyboardInterrupt) as caught:
        publish(Interrupting(tar), store, abort_on_interrupt=abort_on_interrupt)
    assert len(s3.bucket(BUCKET).uploads()) == (0 if abort_on_interrupt else 1)
    assert len(getattr(caught.value, "__notes__", [])) == (0 if abort_on_interrupt else 2)
    assert bool(records(s3)) is not abort_on_interrupt


def test_a_refusal_leaves_nothing_even_of_the_run_before(
    s3: ScriptedS3, store: S3Store, tar: Path
) -> None:
    interrupted(s3, tar, store, 2)
    cut = tar.read_bytes()[:-10240]
    with pytest.raises(MalformedInput):
        publish(cut, store)
    assert not s3.bucket(BUCKET).uploads()
    assert not list(s3.bucket(BUCKET))


def test_bytes_that_are_refused_leave_nothing(s3: ScriptedS3, store: S3Store, tar: Path) -> None:
    s3.script(Fault("UploadPart", Status(400, "BadDigest"), occurrence=range(2, 99)))
    with pytest.raises(IntegrityError):
        publish(tar, store)
    assert not s3.bucket(BUCKET).uploads()
    assert not list(s3.bucket(BUCKET))


def test_other_peoples_uploads_are_never_touched(s3: ScriptedS3, store: S3Store, tar: Path) -> None:
    """Not at our keys before we began, not beside them, not with parts in them."""
    before = store.create_multipart_upload(LOCATION.prefix + "model.safetensors")
    s3.clock_offset_seconds = 10
    interrupted(s3, tar, store, 2)
    beside = store.create_multipart_upload(LOCATION.prefix + "not-of-ours.bin")
    at_ours = store.create_multipart_upload(LOCATION.prefix + "model.safetensors")
    store.upload_part(at_ours, 1, bytearray(b"x"), crc64nvme=crc64.to_text(crc64.crc64(b"x")))
    empty_at_ours = store.create_multipart_upload(LOCATION.prefix + "second.safetensors")
    publish(tar, store)
    open_ids = {waiting.upload_id for waiting in s3.bucket(BUCKET).uploads()}
    assert open_ids == {before.upload_id, beside.upload_id, at_ours.upload_id}
    assert (
        empty_at_ours.upload_id not in open_ids
    )  # as a run leaves it that dies before recording it


def test_without_the_right_to_list_uploads_an_upload_succeeds(
    s3: ScriptedS3, store: S3Store, tar: Path
) -> None:
    s3.deny("ListBucketMultipartUploads")
    assert publish(tar, store).leftovers == ()
    check_published(s3)


def record_with(**changes: Any) -> bytes:
    document = {
        "schema": "checkpoint-upload/1",
        "key": LOCATION.prefix + "a",
        "upload_id": "u",
        "path": "a",
        "size": 1,
        "part_size": CHUNK_SIZE,
        "stamp": "",
        "source": None,
    }
    return json.dumps(document | changes).encode()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b'{"schema": "checkpoint-upload/2"}',
        record_with(key="elsewhere"),
        record_with(part_size=5),
        record_with(size=-1),
        record_with(path="../a", key=LOCATION.prefix + "../a"),
        record_with(finished={"hash": "blake3-16m", "chunks": "AAAA", "crc64nvme": "AAAAAAAAAAA="}),
        b"\xff\xfe",
    ],
)
def test_a_record_that_cannot_be_read_is_left_alone(
    s3: ScriptedS3, store: S3Store, tar: Path, data: bytes
) -> None:
    key = f"{RECORDS}0123456789abcdef/00112233445566778899aabbccddeeff.json"
    s3.bucket(BUCKET).put(key, data)
    publish(tar, store)
    assert s3.bucket(BUCKET).get(key) == data


class Vouched(TarFile):
    """A tar that vouches for its bytes, and counts what is read of its files."""

    def __init__(self, path: Path, identity: str = "etag-1") -> None:
        super().__init__(path)
        self.identity = identity
        self.read_size = None
        self.ranges: list[tuple[SafePath, int]] = []

    def read_into(self, file: SourceFile, offset: int, view: memoryview) -> None:
        if len(view) > MIB:
            self.ranges.append((file.path, offset))
        super().read_into(file, offset, view)


@pytest.mark.parametrize("same", [True, False])
def test_a_file_that_was_sent_whole_is_not_even_read_when_the_source_vouches_for_it(
    s3: ScriptedS3, store: S3Store, tar: Path, same: bool
) -> None:
    s3.script(Fault("UploadPart", Status(403), key=LOCATION.prefix + "second.safetensors"))
    with pytest.raises(AccessDenied):
        publish(Vouched(tar), store)
    s3.requests.clear()
    source = Vouched(tar, "etag-1" if same else "etag-2")
    notes: list[str] = []
    manifest = publish(source, store, notes).manifest
    assert sent_parts(s3) == [("second.safetensors", 1)]
    read = {str(path) for path, _ in source.ranges}
    assert read == ({"second.safetensors"} if same else {"model.safetensors", "second.safetensors"})
    assert check_published(s3) == manifest
    again = "0.01 GB" if same else "0.06 GB"
    assert any(f": {again} of the source's 0.06 GB are read again" in note for note in notes)


def test_a_recorded_digest_does_not_stand_against_the_store(
    s3: ScriptedS3, store: S3Store, tar: Path
) -> None:
    """Somebody replaced a waiting part: its checksum no longer combines to the recorded one."""
    s3.script(Fault("UploadPart", Status(403), key=LOCATION.prefix + "second.safetensors"))
    with pytest.raises(AccessDenied):
        publish(Vouched(tar), store)
    (waiting,) = (u for u in s3.bucket(BUCKET).uploads() if u.key.endswith("model.safetensors"))
    other = bytearray(random.Random(1).randbytes(CHUNK_SIZE))
    upload_ = store.list_multipart_uploads(waiting.key)
    store.upload_part(
        next(iter(upload_)).upload, 2, other, crc64nvme=crc64.to_text(crc64.crc64(other))
    )
    s3.requests.clear()
    publish(Vouched(tar), store)
    assert sorted(sent_parts(s3)) == [("model.safetensors", 2), ("second.safetensors", 1)]
    check_published(s3)


def test_small_files_are_created_whole_and_last(s3: ScriptedS3, store: S3Store) -> None:
    files = {f"small-{number}.txt": b"%d" % number for number in range(20)} | {
        "empty.txt": b"",
        **FILES,
    }
    publish(tar_bytes(files), store)
    creates = s3.requests.of("CreateMultipartUpload")
    assert len(creates) == 2
    claimed = next(r.sequence for r in s3.requests.of("PutObject", key=CLAIM, status=200))
    for name in files:
        for request in s3.requests.of("PutObject", key=LOCATION.prefix + name):
            assert request.sequence > claimed
            assert request.headers["if-none-match"] == "*"
            assert "x-amz-checksum-crc64nvme" in request.headers
    check_published(s3, files)


def test_small_files_of_a_pipe_beyond_the_memory_for_them_go_as_parts(
    s3: ScriptedS3, store: S3Store
) -> None:
    files = {f"{number}.bin": weights(3 * MIB, number) for number in range(12)}
    files |= {"config.json": b'{"model_type": "tiny"}', "model.safetensors": weights(1000)}
    publish(tar_bytes(files), store, memory=(96 + 64) * MIB)  # 16 MiB may be held
    assert 5 < len(s3.requests.of("CreateMultipartUpload")) < 12
    check_published(s3, files)


def test_a_small_file_that_changes_before_the_commit_is_refused(
    s3: ScriptedS3, store: S3Store, tmp_path: Path
) -> None:
    class Changing(TarFile):
        reads = 0

        def read_into(self, file: SourceFile, offset: int, view: memoryview) -> None:
            super().read_into(file, offset, view)
            if file.path == "config.json":
                self.reads += 1
                if self.reads > 2:  # the rules have looked at it, and it was hashed
                    view[0] ^= 1

    tar = tar_on_disk(
        tmp_path, {"config.json": b'{"model_type": "tiny"}', "model.safetensors": weights(1000)}
    )
    with pytest.raises(MalformedInput) as caught:
        publish(Changing(tar), store)
    assert caught.value.reference == "source-changed"
    assert LOCATION.prefix + "config.json" not in s3.bucket(BUCKET)


def test_a_file_that_the_store_asks_for_again_is_sent_again_and_said(
    s3: ScriptedS3, store: S3Store, tar: Path
) -> None:
    s3.script(Fault("CompleteMultipartUpload", Status(409, "ConditionalRequestConflict")))
    notes: list[str] = []
    publish(tar, store, notes)
    check_published(s3)
    assert any("again, into a new upload" in note for note in notes)
    assert len(s3.requests.of("CreateMultipartUpload")) == 3


def test_a_pipe_cannot_be_asked_again(s3: ScriptedS3, store: S3Store, tar: Path) -> None:
    s3.script(Fault("CompleteMultipartUpload", Status(409, "ConditionalRequestConflict")))
    with pytest.raises(Conflict) as caught:
        publish(tar.read_bytes(), store)
    assert caught.value.reference == "concurrent-write"
    s3.clear_script()
    publish(tar.read_bytes(), store)
    check_published(s3)


def test_a_twin_that_sends_parts_into_the_same_upload_does_no_harm(tar: Path) -> None:
    """ETags that change with every request, as with SSE-KMS: the store refuses the older ones."""
    with (
        ScriptedS3(buckets=[BUCKET], quirks=[Quirk.ETAG_IS_NO_DIGEST]) as s3,
        s3_store(s3, BUCKET) as store,
    ):
        with s3.hold("CompleteMultipartUpload", occurrence=1) as hold:
            outcome = _in_thread(lambda: publish(tar, store))
            assert hold.arrived.wait(30)
            (upload_,) = [
                listed.upload for listed in store.list_multipart_uploads(LOCATION.prefix + "model")
            ]
            body = bytearray(FILES["model.safetensors"][:CHUNK_SIZE])
            store.upload_part(upload_, 1, body, crc64nvme=crc64.to_text(crc64.crc64(body)))
            hold.release()
            outcome.result(60)
        check_published(s3)


def test_a_stranger_in_our_upload_is_found_out(s3: ScriptedS3, store: S3Store, tar: Path) -> None:
    """Another checkpoint's run took our upload for its own: the file is sent again, apart from it."""
    interrupted(s3, tar, store, 1)
    with s3.hold("CompleteMultipartUpload", occurrence=1) as hold:
        outcome = _in_thread(lambda: publish(tar, store))
        assert hold.arrived.wait(30)
        (upload_,) = [
            listed.upload for listed in store.list_multipart_uploads(LOCATION.prefix + "model")
        ]
        body = bytearray(random.Random(2).randbytes(CHUNK_SIZE))
        store.upload_part(upload_, 1, body, crc64nvme=crc64.to_text(crc64.crc64(body)))
        hold.release()
        outcome.result(60)
    check_published(s3)


def _in_thread(work: Any) -> Any:
    executor = concurrent.futures.ThreadPoolExecutor(1)
    future = executor.submit(work)
    executor.shutdown(wait=False)
    return future


def test_a_file_that_is_sent_again_twice_is_recorded_each_time(
    s3: ScriptedS3, store: S3Store, tar: Path
) -> None:
    met = Status(409, "ConditionalRequestConflict")
    key = LOCATION.prefix + "model.safetensors"
    s3.script(Fault("CompleteMultipartUpload", met, key=key, occurrence=(1, 2)))
    s3.script(Fault("CompleteMultipartUpload", Status(403), key=key, occurrence=3))
    with pytest.raises(AccessDenied):
        publish(tar, store)
    recorded = {document.get("upload_id") for document in records(s3).values()}
    assert {waiting.upload_id for waiting in s3.bucket(BUCKET).uploads()} <= recorded
    s3.clear_script()
    s3.requests.clear()
    publish(tar, store)
    assert sent_parts(s3) == []
    check_published(s3)


def test_a_refusal_after_a_file_was_sent_again_leaves_nothing_open(
    s3: ScriptedS3, store: S3Store, tar: Path
) -> None:
    met = Status(409, "ConditionalRequestConflict")
    s3.script(Fault("CompleteMultipartUpload", met, occurrence=None))
    with pytest.raises(Conflict):
        publish(tar, store)
    assert not s3.bucket(BUCKET).uploads()
    assert not records(s3)


def test_without_the_right_to_list_parts_they_are_sent_again(
    s3: ScriptedS3, store: S3Store, tar: Path
) -> None:
    interrupted(s3, tar, store, 2)
    s3.deny("ListMultipartUploadParts")
    (unfinished,) = find_unfinished(store, LOCATION)
    assert (unfinished.files, unfinished.waiting_bytes) == (1, 0)
    publish(tar, store)
    assert len(sent_parts(s3)) == PARTS + 1
    check_published(s3)


def test_age_zero_is_whatever_the_clocks_say(s3: ScriptedS3, store: S3Store, tar: Path) -> None:
    interrupted(s3, tar, store, 2)
    (unfinished,) = find_unfinished(store, LOCATION)
    assert unfinished.last_moved is not None
    before = unfinished.last_moved - datetime.timedelta(seconds=5)
    assert unfinished.is_stale(before, datetime.timedelta(0))
    assert not unfinished.is_stale(before, datetime.timedelta(seconds=1))
    assert drop(store, unfinished) == []
    assert not list(s3.bucket(BUCKET))
    assert not s3.bucket(BUCKET).uploads()


def small_files(count: int, size: int) -> dict[str, bytes]:
    files = {f"{number:03}.bin": weights(size, number) for number in range(count)}
    return {"config.json": b'{"model_type": "tiny"}', "model.safetensors": weights(1000), **files}


def test_lost_answers_to_small_files_do_not_use_the_memory_up(
    s3: ScriptedS3, store: S3Store, tmp_path: Path
) -> None:
    files = small_files(40, MIB)
    tar = tar_on_disk(tmp_path, files)
    s3.script(*(Fault("PutObject", DropAfter(), key=LOCATION.prefix + name) for name in files))
    publish(tar, store, memory=112 * MIB)  # room for 16 of them
    check_published(s3, files)


def test_a_commit_that_dies_before_its_claim_leaves_the_claim_of_the_one_before(
    s3: ScriptedS3, store: S3Store, tar: Path
) -> None:
    s3.script(Fault("PutObject", Status(403), key=LOCATION.manifest_key))
    with pytest.raises(AccessDenied):
        publish(tar, store)
    s3.script(Fault("PutObject", Status(403), key=CLAIM))
    with pytest.raises(AccessDenied):
        publish(tar, store)
    assert CLAIM in s3.bucket(BUCKET)
    publish(tar, store)
    check_published(s3)


def test_a_source_that_goes_away_during_the_commit_is_what_it_is_called(
    s3: ScriptedS3, store: S3Store, tar: Path
) -> None:
    class Leaving(TarFile):
        reads = 0

        def read_into(self, file: SourceFile, offset: int, view: memoryview) -> None:
            self.reads += file.path == "config.json"
            if self.reads > 2:  # the rules have looked at it, and it was hashed
                raise NotFound("the archive is gone", reference="source", side="source")
            super().read_into(file, offset, view)

    with pytest.raises(NotFound) as caught:
        publish(Leaving(tar), store)
    assert caught.value.reference == "source"
    assert caught.value.__notes__[0].startswith("to continue")
    s3.requests.clear()
    publish(tar, store)
    assert sent_parts(s3) == []
    check_published(s3)


def test_a_record_of_an_upload_that_may_not_be_aborted_stays(
    s3: ScriptedS3, store: S3Store, tar: Path
) -> None:
    interrupted(s3, tar, store, 2)
    s3.deny("AbortMultipartUpload")
    result = publish(tar, store, part_size=2 * CHUNK_SIZE, memory=512 * MIB)
    assert result.leftovers == ()  # it was continued
    other = store.create_multipart_upload(LOCATION.prefix + "gone.bin")
    key = f"{RECORDS}0123456789abcdef/00112233445566778899aabbccddeeff.json"
    record = record_with(key=other.key, upload_id=other.upload_id, path="gone.bin")
    s3.bucket(BUCKET).put(key, record)
    assert publish(tar, store).leftovers != ()
    assert key in s3.bucket(BUCKET)
    (unfinished,) = find_unfinished(store, LOCATION)
    s3.allow("AbortMultipartUpload")
    assert drop(store, unfinished) == []
    check_published(s3)


def test_a_run_that_cannot_be_seen_is_not_called_stale(
    s3: ScriptedS3, store: S3Store, tar: Path
) -> None:
    interrupted(s3, tar, store, 2)
    s3.deny("ListMultipartUploadParts")
    (unfinished,) = find_unfinished(store, LOCATION)
    later = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=30)
    assert not unfinished.is_stale(later, datetime.timedelta(hours=24))
    assert unfinished.is_stale(later, datetime.timedelta(0))


def test_a_complete_whose_answer_was_lost_needs_no_abort(
    s3: ScriptedS3, store: S3Store, tar: Path
) -> None:
    s3.deny("AbortMultipartUpload")
    s3.script(Fault("CompleteMultipartUpload", DropAfter(), occurrence=1))
    assert publish(tar, store).leftovers == ()
    check_published(s3)


def test_records_and_manifests_that_arrive_damaged_are_sent_again(
    s3: ScriptedS3, store: S3Store, tar: Path
) -> None:
    damaged = Status(400, "BadDigest")
    s3.script(Fault("PutObject", damaged, key=LOCATION.manifest_key))
    s3.script(Fault("PutObject", damaged, key=lambda key: key.endswith("/run.json")))
    publish(tar, store)
    check_published(s3)


def test_a_store_that_lists_no_uploads_keeps_no_records(
    s3: ScriptedS3, store: S3Store, tar: Path
) -> None:
    s3.script(Fault("ListMultipartUploads", Status(501), occurrence=None))
    assert publish(tar, store).leftovers == ()
    check_published(s3)


def test_an_interruption_during_the_clean_up_loses_nothing(
    s3: ScriptedS3, store: S3Store, tar: Path
) -> None:
    """It ends before it is known what is kept, so no line says so; the next run goes on all the same."""

    def report(event: Event) -> None:
        if isinstance(event, Note) and event.text.startswith("stopping"):
            raise KeyboardInterrupt

    s3.script(Fault("UploadPart", Status(403), occurrence=2))
    options = UploadOptions(memory=256 * MIB, cores=1, concurrency=1)
    with contextlib.closing(TarFile(tar)) as source, pytest.raises(KeyboardInterrupt) as caught:
        upload(source, store, LOCATION, options, report)
    assert isinstance(caught.value.__context__, AccessDenied)
    s3.requests.clear()
    publish(tar, store)
    assert len(sent_parts(s3)) == PARTS + 1 - 1
    check_published(s3)
