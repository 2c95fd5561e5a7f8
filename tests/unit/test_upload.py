"""Publishing: order of requests, refusals, lost answers, failures at every request (I4, I6, I8, I12, I16)."""

from __future__ import annotations

import contextlib
import io
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from staging.source.pipe import Pipe
from staging.source.source import Source
from staging.source.tar_file import TarFile
from staging.store.s3 import S3Store
from staging.store.store import Store
from staging.transfer import scheduler
from staging.transfer.sizing import MIB
from staging.upload import UploadOptions, UploadResult, upload
from staging.vocabulary.digest import CHUNK_SIZE, HashFamily
from staging.vocabulary.errors import (
    AccessDenied,
    Conflict,
    IntegrityError,
    LayoutInvalid,
    MalformedInput,
    StagingError,
    UsageError,
)
from staging.vocabulary.events import Note
from staging.vocabulary.location import S3Location
from staging.vocabulary.manifest import Manifest
from tests.support.archives import small_checkpoint, tar_bytes, tar_on_disk, weights
from tests.support.s3server import DropAfter, DropBefore, Fault, ScriptedS3, Status
from tests.support.s3server.quirks import Quirk
from tests.support.stores import s3_store

BUCKET = "models"
LOCATION = S3Location(BUCKET, "checkpoints/m/")
CLAIM = LOCATION.control_prefix + "claim.json"
RECORDS = LOCATION.control_prefix + "upload/"
FILES = small_checkpoint()
REQUESTS = range(1, 42)
"""Positions of requests to disturb; one upload of `FILES` sends fewer (asserted below)."""


def options(**changes: Any) -> UploadOptions:
    return UploadOptions(**{"memory": 256 * MIB, "cores": 1, **changes})


@pytest.fixture(autouse=True)
def every_file_goes_as_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The files here are small, and are to take the way of large ones."""
    monkeypatch.setattr("staging.upload.parts.HELD_BELOW", 1)


@pytest.fixture
def s3() -> Iterator[ScriptedS3]:
    with ScriptedS3(buckets=[BUCKET]) as server:
        yield server


@pytest.fixture
def store(s3: ScriptedS3) -> Iterator[S3Store]:
    with s3_store(s3, BUCKET) as opened:
        s3.requests.clear()
        yield opened


@pytest.fixture
def tar(tmp_path: Path) -> Path:
    return tar_on_disk(tmp_path, FILES)


def publish(source: Path | bytes, store: Store, **changes: Any) -> UploadResult:
    opened: Source = TarFile(source) if isinstance(source, Path) else Pipe(io.BytesIO(source))
    try:
        return upload(opened, store, LOCATION, options(**changes))
    finally:
        opened.close()


def check_published(s3: ScriptedS3, files: dict[str, bytes], *, only: bool = True) -> Manifest:
    """The manifest and exactly its objects are there, byte for byte, and no upload is open."""
    bucket = s3.bucket(BUCKET)
    manifest = Manifest.decode(bucket.get(LOCATION.manifest_key))
    assert {str(file.path) for file in manifest.files} == set(files)
    for name, data in files.items():
        assert bucket.get(LOCATION.prefix + name) == data, name
    if only:
        names = {key.removeprefix(LOCATION.prefix) for key in bucket}
        assert names == {*files, ".checkpoint/manifest.json"}
        assert not bucket.uploads()
    return manifest


def check_untouched(s3: ScriptedS3) -> None:
    assert not list(s3.bucket(BUCKET))
    assert not s3.bucket(BUCKET).uploads()


@pytest.mark.parametrize("piped", [False, True], ids=["file", "pipe"])
def test_objects_are_the_members_and_the_manifest_names_them(
    s3: ScriptedS3, store: S3Store, tar: Path, piped: bool
) -> None:
    result = publish(tar.read_bytes() if piped else tar, store)
    manifest = check_published(s3, FILES)
    assert result.manifest == manifest
    assert (result.exclusive, result.checksums, result.leftovers) == (True, True, ())
    assert manifest.source["kind"] == ("pipe" if piped else "tar")
    for file in manifest.files:
        assert file.checksums["crc64nvme"] == store.head(LOCATION.key(file.path)).crc64nvme


def test_nothing_is_completed_before_everything_was_sent_and_the_manifest_comes_last(
    s3: ScriptedS3, store: S3Store, tar: Path
) -> None:
    publish(tar, store)
    log = [r for r in s3.requests if r.status == 200 and r.method in ("PUT", "POST")]
    operations = [r.operation for r in log]
    last_part = max(i for i, name in enumerate(operations) if name == "UploadPart")
    first_visible = min(
        i
        for i, request in enumerate(log)
        if request.operation in ("PutObject", "CompleteMultipartUpload")
        and not request.key.startswith(RECORDS)
    )
    assert last_part < first_visible
    assert log[first_visible].key == LOCATION.prefix + ".checkpoint/claim.json"
    assert log[-1].key == LOCATION.manifest_key
    for request in log:
        if request.operation in ("PutObject", "CompleteMultipartUpload"):
            assert request.headers["if-none-match"] == "*"


@pytest.mark.parametrize("family", list(HashFamily))
def test_the_id_is_the_same_from_any_source_with_any_tuning(
    s3: ScriptedS3, store: S3Store, tmp_path: Path, family: HashFamily
) -> None:
    files = {
        "model.safetensors": weights(2 * CHUNK_SIZE + 12345),
        "config.json": b'{"model_type": "tiny"}',
        "exact.bin": weights(CHUNK_SIZE, 2)[:CHUNK_SIZE],
    }
    tar = tar_on_disk(tmp_path, files)
    reordered = tar_bytes(dict(reversed(files.items())), top="other-name")
    ids = set()
    for number, (source, tuning) in enumerate(
        [
            (tar, {}),
            (tar, {"concurrency": 1}),
            (tar, {"concurrency": 7, "memory": 1024 * MIB, "part_size": 2 * CHUNK_SIZE}),
            (tar.read_bytes(), {}),
            (reordered, {"concurrency": 2, "part_size": 3 * CHUNK_SIZE}),
        ]
    ):
        location = S3Location(BUCKET, f"m{number}/")
        opened: Source = TarFile(source) if isinstance(source, Path) else Pipe(io.BytesIO(source))
        result = upload(opened, store, location, options(hash=family, **tuning))
        opened.close()
        ids.add(result.manifest.id)
        for name, data in files.items():
            assert s3.bucket(BUCKET).get(location.prefix + name) == data
    assert len(ids) == 1


@pytest.mark.parametrize("piped", [False, True], ids=["file", "pipe"])
def test_the_same_content_again_sends_nothing(
    s3: ScriptedS3, store: S3Store, tar: Path, piped: bool
) -> None:
    first = publish(tar, store, hash=HashFamily.SHA256)
    s3.requests.clear()
    again = publish(tar.read_bytes() if piped else tar, store)
    assert again.already_published
    assert again.sent_bytes == 0
    assert again.manifest == first.manifest
    assert {request.method for request in s3.requests} <= {"GET", "HEAD"}


@pytest.mark.parametrize("piped", [False, True], ids=["file", "pipe"])
@pytest.mark.parametrize("change", ["byte", "size", "name"])
def test_other_content_under_a_published_prefix_is_a_conflict_before_anything_is_sent(
    s3: ScriptedS3, store: S3Store, tar: Path, change: str, piped: bool
) -> None:
    publish(tar, store)
    other = dict(FILES)
    if change == "byte":
        other["config.json"] = b'{"model_type": "TINY"}'
    elif change == "size":
        other["config.json"] = b'{"model_type": "tiny" }'
    else:
        other["extra.txt"] = b"x"
    s3.requests.clear()
    data = tar_bytes(other)
    tar.write_bytes(data)
    with pytest.raises(Conflict, match="already holds other content") as caught:
        publish(data if piped else tar, store)
    assert caught.value.reference == "published-differs"
    assert {request.method for request in s3.requests} <= {"GET", "HEAD"}
    check_published(s3, FILES)


def test_foreign_objects_are_a_conflict_before_anything_is_sent(
    s3: ScriptedS3, store: S3Store, tar: Path
) -> None:
    s3.bucket(BUCKET).put(LOCATION.prefix + "old.safetensors", b"old")
    s3.bucket(BUCKET).put("checkpoints/m-2/sibling", b"not ours to see")
    with pytest.raises(Conflict, match=r"old\.safetensors") as caught:
        publish(tar, store)
    assert caught.value.reference == "foreign-objects"
    assert {request.method for request in s3.requests} <= {"GET", "HEAD"}
    result = publish(tar, store, allow_existing=True)
    assert not result.already_published
    bucket = s3.bucket(BUCKET)
    assert bucket.get(LOCATION.prefix + "old.safetensors") == b"old"
    bucket.remove(LOCATION.prefix + "old.safetensors")
    bucket.remove("checkpoints/m-2/sibling")
    check_published(s3, FILES)


def failure(source: Path, store: Store) -> list[StagingError]:
    """What an upload ends with."""
    try:
        publish(source, store)
    except StagingError as error:
        return [error]
    return []


def test_a_foreign_object_under_a_key_of_ours_is_never_overwritten(
    s3: ScriptedS3, store: S3Store, tar: Path
) -> None:
    s3.bucket(BUCKET).put(LOCATION.prefix + "config.json", b'["model_type", "tiny"]')
    # It comes after the commit has looked.
    ours = LOCATION.prefix + "config.json"
    with s3.hold("CompleteMultipartUpload", key=ours) as hold:
        s3.bucket(BUCKET).remove(LOCATION.prefix + "config.json")
        outcome: list[StagingError] = []
        thread = threading.Thread(target=lambda: outcome.extend(failure(tar, store)))
        thread.start()
        assert hold.arrived.wait(30)
        s3.bucket(BUCKET).put(LOCATION.prefix + "config.json", b'["model_type", "tiny"]')
        hold.release()
        thread.join(30)
    assert [error.reference for error in outcome] == ["foreign-objects"]
    assert s3.bucket(BUCKET).get(LOCATION.prefix + "config.json") == b'["model_type", "tiny"]'
    assert LOCATION.manifest_key not in s3.bucket(BUCKET)
    assert LOCATION.prefix + ".checkpoint/claim.json" in s3.bucket(BUCKET)


@pytest.mark.parametrize(
    "quirk", [None, Quirk.IGNORES_CONDITIONS, Quirk.IGNORES_COMPLETE_AND_DELETE_CONDITIONS]
)
@pytest.mark.parametrize("data", [b'["model_type", "tiny"]', b"other size"])
def test_an_object_in_the_way_is_met_before_anything_is_visible(
    tar: Path, quirk: Quirk | None, data: bytes
) -> None:
    """Also on stores that would overwrite it: conditions are not what protects it."""
    quirks = [] if quirk is None else [quirk]
    with ScriptedS3(buckets=[BUCKET], quirks=quirks) as s3, s3_store(s3, BUCKET) as store:
        s3.bucket(BUCKET).put(LOCATION.prefix + "config.json", data)
        with pytest.raises(Conflict, match="another object"):
            publish(tar, store, allow_existing=True)
        assert s3.bucket(BUCKET).get(LOCATION.prefix + "config.json") == data
        assert set(s3.bucket(BUCKET)) == {LOCATION.prefix + "config.json"}
        assert not s3.bucket(BUCKET).uploads()


@pytest.mark.parametrize("piped", [False, True], ids=["file", "pipe"])
def test_a_published_checkpoint_that_lost_an_object_is_not_taken_for_published(
    s3: ScriptedS3, store: S3Store, tar: Path, piped: bool
) -> None:
    publish(tar, store)
    s3.bucket(BUCKET).remove(LOCATION.prefix + "model.safetensors")
    with pytest.raises(IntegrityError, match=r"model\.safetensors") as caught:
        publish(tar.read_bytes() if piped else tar, store)
    assert caught.value.reference == "published-incomplete"


@pytest.mark.parametrize("below", ["new/", "tokenizer/", "a/b/c/"])
def test_nothing_is_published_inside_a_published_prefix(
    s3: ScriptedS3, store: S3Store, tar: Path, below: str
) -> None:
    publish(tar, store)
    source = TarFile(tar)
    with pytest.raises(Conflict) as caught:
        upload(source, store, S3Location(BUCKET, LOCATION.prefix + below), options())
    source.close()
    assert caught.value.reference == "inside-published"
    check_published(s3, FILES)


def test_a_key_that_is_too_long_is_refused_before_anything_is_sent(
    s3: ScriptedS3, store: S3Store, tmp_path: Path
) -> None:
    tar = tar_on_disk(tmp_path, {**FILES, "/".join(["d" * 202] * 5): b"x"})
    for source in (tar, tar.read_bytes()):
        s3.requests.clear()
        with pytest.raises(MalformedInput) as caught:
            publish(source, store)
        assert caught.value.reference == "key-too-long"
        check_untouched(s3)
        assert isinstance(source, bytes) or not list(s3.requests)


class Stalled(io.RawIOBase):
    """A pipe that brings some bytes and then nothing, until it is released."""

    def __init__(self, data: bytes) -> None:
        self._data = io.BytesIO(data)
        self.released = threading.Event()

    def readable(self) -> bool:
        return True

    def readinto(self, view: Any) -> int:
        count = self._data.readinto(view)
        if count == 0:
            self.released.wait(60)
        return count


def test_a_failure_is_not_kept_waiting_by_a_stalled_pipe(
    s3: ScriptedS3, store: S3Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "GRACE", 0.2)
    data = tar_bytes(FILES)
    stream = Stalled(data[: data.index(b"tokenizer/empty.txt")])
    s3.deny("PutObject")
    try:
        with pytest.raises(AccessDenied):
            upload(Pipe(stream), store, LOCATION, options())  # type: ignore[arg-type]
        assert not stream.released.is_set()
    finally:
        stream.released.set()
    check_untouched(s3)


def test_what_a_store_will_not_abort_is_told(s3: ScriptedS3, store: S3Store, tar: Path) -> None:
    s3.deny("AbortMultipartUpload")
    s3.script(Fault("PutObject", Status(409), occurrence=None, key=CLAIM))
    notes: list[str] = []
    with pytest.raises(Conflict) as caught, contextlib.closing(TarFile(tar)) as source:
        upload(
            source,
            store,
            LOCATION,
            options(),
            lambda event: notes.append(event.text) if isinstance(event, Note) else None,
        )
    left = caught.value.document["leftovers"]
    assert len(left) == 3
    assert len(s3.bucket(BUCKET).uploads()) == 3
    assert all(upload.upload_id in " ".join(left) for upload in s3.bucket(BUCKET).uploads())
    assert any(note.startswith("left in the store: ") for note in notes)


def test_an_upload_that_is_opened_while_giving_up_is_told(
    s3: ScriptedS3, store: S3Store, tar: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "GRACE", 0.2)
    key = LOCATION.prefix + "config.json"
    s3.script(Fault("UploadPart", Status(403), occurrence=1))
    with s3.hold("CreateMultipartUpload", key=key) as hold:
        with pytest.raises(AccessDenied) as caught:
            publish(tar, store, concurrency=2)
        assert hold.arrived.is_set()
    (left,) = caught.value.document["leftovers"]
    assert "config.json" in left
    assert "not-answered" in left


def test_one_conflict_at_complete_is_no_other_writer(
    s3: ScriptedS3, store: S3Store, tar: Path
) -> None:
    s3.script(Fault("CompleteMultipartUpload", Status(409), occurrence=2))
    publish(tar, store)
    check_published(s3, FILES)


@pytest.mark.parametrize("quirk", [None, Quirk.IGNORES_CHECKSUMS, Quirk.ECHOES_CHECKSUMS])
@pytest.mark.parametrize("equal", [True, False])
def test_an_object_in_the_way_is_settled_by_what_the_store_can_prove(
    tar: Path, quirk: Quirk | None, equal: bool
) -> None:
    quirks = [] if quirk is None else [quirk]
    data = FILES["model.safetensors"] if equal else weights(1000, 2)
    assert len(data) == len(FILES["model.safetensors"])
    with ScriptedS3(buckets=[BUCKET], quirks=quirks) as s3, s3_store(s3, BUCKET) as store:
        s3.bucket(BUCKET).put(LOCATION.prefix + "model.safetensors", data)
        if equal:
            publish(tar, store, allow_existing=True)
            check_published(s3, FILES)
        else:
            with pytest.raises(Conflict, match="another object"):
                publish(tar, store, allow_existing=True)
        # Only where no checksum is proven are bytes read to compare.
        ranged = [r for r in s3.requests.of("GetObject") if "range" in r.headers]
        assert bool(ranged) == (quirk is not None)


def test_markers_and_folder_objects_are_not_foreign(
    s3: ScriptedS3, store: S3Store, tar: Path
) -> None:
    s3.bucket(BUCKET).put(LOCATION.prefix, b"")
    s3.bucket(BUCKET).put(LOCATION.prefix + "tokenizer/", b"")
    s3.bucket(BUCKET).put(LOCATION.prefix + ".checkpoint-complete", b"")
    publish(tar, store)
    check_published(s3, FILES, only=False)


def clear(s3: ScriptedS3) -> None:
    """Empty the bucket, the script and the log."""
    bucket = s3.bucket(BUCKET)
    for key in list(bucket):
        bucket.remove(key)
    for orphan in bucket.uploads():
        bucket.close_upload(orphan.upload_id)
    s3.clear_script()
    s3.requests.clear()


@pytest.mark.parametrize("action", [DropBefore(), DropAfter()], ids=["before", "after"])
def test_a_lost_request_or_answer_at_any_point_is_settled(
    s3: ScriptedS3, store: S3Store, tar: Path, action: Any
) -> None:
    for position in REQUESTS:
        clear(s3)
        s3.script(Fault(None, action, occurrence=position))
        publish(tar, store, concurrency=1)
        check_published(s3, FILES)
        if s3.unfired_faults:
            break  # past the last request


@pytest.mark.parametrize("piped", [False, True], ids=["file", "pipe"])
def test_a_failure_at_any_request_leaves_nothing_undocumented_and_a_re_run_publishes(
    s3: ScriptedS3, store: S3Store, tar: Path, piped: bool
) -> None:
    source = tar.read_bytes() if piped else tar
    failures = 0
    for position in REQUESTS:
        clear(s3)
        s3.script(Fault(None, Status(403), occurrence=position))
        try:
            publish(source, store, concurrency=1)
        except AccessDenied:
            failures += 1
            bucket = s3.bucket(BUCKET)
            assert LOCATION.manifest_key not in bucket
            # What waits for the next run is recorded, every upload of it.
            records = [bucket.get(key).decode() for key in bucket if key.startswith(RECORDS)]
            for waiting in bucket.uploads():
                assert sum(waiting.upload_id in record for record in records) == 1
            if any(not key.startswith(RECORDS) for key in bucket):
                # Objects may only remain once completing began, and then under the claim.
                assert CLAIM in bucket
        past_the_last = bool(s3.unfired_faults)
        # Also after a success: only cleaning up may fail without failing the upload.
        s3.clear_script()
        publish(source, store, concurrency=1)
        check_published(s3, FILES)
        if past_the_last:
            break
    assert failures > 20


def test_the_sweeps_above_reach_past_the_last_request(
    s3: ScriptedS3, store: S3Store, tar: Path
) -> None:
    publish(tar, store, concurrency=1)
    assert 20 < len(s3.requests) < max(REQUESTS)


class Killed(BaseException):
    """The process is gone: nothing more reaches the store."""


class Mortal:
    """A store whose user is killed at the k-th call (of one method), before or after it got there."""

    def __init__(self, store: Store, calls: int, *, after: bool, method: str | None = None) -> None:
        self._store = store
        self._left = calls
        self._after = after
        self._method = method

    @property
    def bucket(self) -> str:
        return self._store.bucket

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            counts = self._method in (None, name)
            if self._left <= 0 or (self._left == 1 and counts and not self._after):
                self._left = 0
                raise Killed
            self._left -= counts
            try:
                result = method(*args, **kwargs)
                return iter(list(result)) if name == "list_objects" else result
            finally:
                if self._left == 0:
                    raise Killed

        return call


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_re_run_after_a_kill_at_any_call_publishes(
    s3: ScriptedS3, store: S3Store, tar: Path, after: bool
) -> None:
    kills = 0
    for calls in REQUESTS:
        clear(s3)
        killed = True
        with contextlib.suppress(Killed):
            publish(tar, Mortal(store, calls, after=after), concurrency=1)
            killed = False
        if LOCATION.manifest_key in s3.bucket(BUCKET):
            check_published(s3, FILES, only=False)
        publish(tar, store)
        check_published(s3, FILES)
        if not killed:
            break  # past the last call
        kills += 1
    assert kills > 20


@pytest.mark.parametrize("completed", [0, 1, 2])
def test_a_claim_of_a_dead_upload_keeps_other_content_out(
    s3: ScriptedS3, store: S3Store, tar: Path, tmp_path: Path, completed: int
) -> None:
    dying = Mortal(store, completed + 1, after=False, method="complete_multipart_upload")
    with pytest.raises(Killed):
        publish(tar, dying, concurrency=1)
    assert LOCATION.prefix + ".checkpoint/claim.json" in s3.bucket(BUCKET)
    files = {"other-name.txt": b"x", **small_checkpoint(2)}
    other = tar_on_disk(tmp_path, files, name="other.tar")
    with pytest.raises(Conflict) as caught:
        publish(other, store)
    assert caught.value.reference == "claimed"
    assert caught.value.hint
    publish(tar, store)


def test_a_part_whose_checksum_is_refused_is_sent_again(
    s3: ScriptedS3, store: S3Store, tar: Path
) -> None:
    s3.script(Fault("UploadPart", Status(400, "BadDigest"), occurrence=[1, 2]))
    publish(tar, store, concurrency=1)
    check_published(s3, FILES)


def test_a_part_that_never_arrives_whole_is_an_integrity_error(
    s3: ScriptedS3, store: S3Store, tar: Path
) -> None:
    s3.script(Fault("UploadPart", Status(400, "BadDigest"), occurrence=None))
    with pytest.raises(IntegrityError):
        publish(tar, store)
    check_untouched(s3)


def test_an_object_removed_before_the_manifest_is_noticed(
    s3: ScriptedS3, store: S3Store, tar: Path
) -> None:
    with s3.hold("ListObjectsV2", occurrence=3) as hold:
        outcome: list[BaseException] = []

        def work() -> None:
            try:
                publish(tar, store)
            except StagingError as error:
                outcome.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        assert hold.arrived.wait(30)
        s3.bucket(BUCKET).remove(LOCATION.prefix + "config.json")
        hold.release()
        thread.join(30)
    assert [getattr(error, "reference", None) for error in outcome] == ["list-differs"]
    assert LOCATION.manifest_key not in s3.bucket(BUCKET)


@pytest.mark.parametrize("denied", ["DeleteObject", "AbortMultipartUpload"])
def test_what_may_not_be_cleaned_up_is_told(
    s3: ScriptedS3, store: S3Store, tar: Path, denied: str
) -> None:
    s3.deny(denied)
    result = publish(tar, store)
    if denied == "DeleteObject":
        (records, claim) = result.leftovers
        assert RECORDS in records
        assert records.endswith("and 2 records of uploads beside it")
        assert CLAIM in claim
    else:
        assert result.leftovers == ()
    check_published(s3, FILES, only=False)
    assert publish(tar, store).already_published


@pytest.mark.parametrize(
    ("quirk", "exclusive", "checksums"),
    [
        (Quirk.IGNORES_CONDITIONS, False, True),
        (Quirk.IGNORES_CHECKSUMS, True, False),
        (Quirk.ECHOES_CHECKSUMS, True, False),
        (Quirk.COMPLETE_WITHOUT_ETAG, True, True),
        (Quirk.ETAG_IS_NO_DIGEST, True, True),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_what_a_store_does_not_enforce_is_told(
    tar: Path, quirk: Quirk, exclusive: bool, checksums: bool
) -> None:
    with ScriptedS3(buckets=[BUCKET], quirks=[quirk]) as s3, s3_store(s3, BUCKET) as store:
        result = publish(tar, store)
        assert (result.exclusive, result.checksums) == (exclusive, checksums)
        check_published(s3, FILES)


@pytest.mark.parametrize("length", [0, 511, 700, 5000, -1, -513, -1025])
def test_a_pipe_that_ends_early_leaves_nothing(
    s3: ScriptedS3, store: S3Store, tar: Path, length: int
) -> None:
    whole = tar_bytes(FILES).rstrip(b"\0") + bytes(1024 + 512)
    with pytest.raises(MalformedInput):
        publish(whole[:length], store)
    check_untouched(s3)


def test_a_refused_layout_leaves_nothing_even_from_a_pipe(s3: ScriptedS3, store: S3Store) -> None:
    broken = dict(FILES)
    broken["model.safetensors"] = FILES["model.safetensors"][:-1]
    with pytest.raises(LayoutInvalid) as caught:
        publish(tar_bytes(broken), store)
    assert caught.value.reference == "safetensors-broken"
    assert s3.requests.count("UploadPart") > 0
    check_untouched(s3)
    publish(tar_bytes(broken), store, layout=None)
    assert check_published(s3, broken).layout["checked"] is False


def test_a_tar_that_changes_while_it_is_read_is_refused(
    s3: ScriptedS3, store: S3Store, tar: Path
) -> None:
    source = TarFile(tar)
    tar.write_bytes(tar.read_bytes()[:-1024] + bytes(2048))
    with pytest.raises(MalformedInput) as caught:
        upload(source, store, LOCATION, options())
    source.close()
    assert caught.value.reference == "source-changed"
    check_untouched(s3)


def test_the_root_of_a_bucket_is_no_prefix(store: S3Store, tar: Path) -> None:
    source = TarFile(tar)
    with pytest.raises(UsageError):
        upload(source, store, S3Location(BUCKET, ""), options())
    source.close()


def test_a_missing_bucket_is_named_before_anything_is_read(s3: ScriptedS3, tar: Path) -> None:
    with s3_store(s3, BUCKET) as store:
        elsewhere = S3Store(store._wire, "no-such-bucket")
        source = TarFile(tar)
        with pytest.raises(StagingError) as caught:
            upload(source, elsewhere, S3Location("no-such-bucket", "m/"), options())
        source.close()
    assert (caught.value.code, caught.value.reference) == (10, "bucket")


def test_members_and_parts_are_in_flight_together(
    s3: ScriptedS3, store: S3Store, tar: Path
) -> None:
    with s3.hold("UploadPart", parties=3) as hold:
        thread = threading.Thread(target=lambda: publish(tar, store, concurrency=3))
        thread.start()
        assert hold.arrived.wait(30), "three parts of different members are never under way at once"
        hold.release()
        thread.join(30)
    check_published(s3, FILES)


def test_keys_with_awkward_characters_arrive_as_they_are(s3: ScriptedS3, store: S3Store) -> None:
    files: dict[str, bytes] = {
        **FILES,
        **{name: name.encode() for name in ("a b", "a+b", "a%20b", "a#b", "é", "日本/語.txt")},
    }
    publish(tar_bytes(files), store)
    check_published(s3, files)
