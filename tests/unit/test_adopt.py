"""Publishing what another tool copied: refusals, changes meanwhile, lost answers.

Covers I1, I4, I7, I8, I9, I10 and I12.
"""

from __future__ import annotations

import threading
import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from staging.adopt import AdoptOptions, AdoptResult, adopt, plan
from staging.layout.documents import is_document
from staging.layout.inventory import is_safetensors
from staging.source.tar_file import TarFile
from staging.store.s3 import S3Store
from staging.store.store import Store
from staging.transfer.sizing import MIB
from staging.unpublished.wholeness import missing_shards
from staging.upload import UploadOptions, upload
from staging.vocabulary.digest import CHUNK_SIZE, HashFamily
from staging.vocabulary.errors import (
    AccessDenied,
    Conflict,
    IntegrityError,
    LayoutInvalid,
    MalformedInput,
    NotFound,
    StagingError,
    StoreUnavailable,
    UsageError,
)
from staging.vocabulary.events import Event, FileDone, Moved, Started
from staging.vocabulary.location import S3Location
from staging.vocabulary.manifest import Manifest
from tests.support.archives import small_checkpoint, tar_on_disk, weights
from tests.support.checkpoints import CountingStore, hugging_face, vendor
from tests.support.s3server import DropAfter, DropBefore, Fault, Quirk, ScriptedS3, Status
from tests.support.shared_s3 import SharedS3, shared_s3
from tests.support.stores import s3_store

BUCKET = "models"
LOCATION = S3Location(BUCKET, "checkpoints/m/")
UPLOADED = S3Location(BUCKET, "checkpoints/uploaded/")
FILES = small_checkpoint()
ARCHIVE = "5e" * 32
REQUESTS = range(1, 20)
"""Positions of requests to disturb; adopting `FILES` sends fewer (asserted below)."""


@pytest.fixture(scope="module")
def shared() -> Iterator[SharedS3]:
    with shared_s3(BUCKET) as opened:
        yield opened


@pytest.fixture
def s3(shared: SharedS3) -> ScriptedS3:
    shared.reset()
    shared.server.allow("ListBucketMultipartUploads")
    bucket = shared.server.bucket(BUCKET)
    for left in bucket.uploads():
        bucket.close_upload(left.upload_id)
    return shared.server


@pytest.fixture
def store(shared: SharedS3) -> S3Store:
    return shared.store


def options(**changes: Any) -> AdoptOptions:
    return AdoptOptions(**{"memory": 256 * MIB, "cores": 1, **changes})


def copy(
    s3: ScriptedS3, files: Mapping[str, bytes] = FILES, location: S3Location = LOCATION
) -> dict[str, bytes]:
    """Put files there as another tool does. Returns the bucket's objects."""
    for name, data in files.items():
        s3.bucket(BUCKET).put(location.prefix + name, data)
    return snapshot(s3)


def snapshot(s3: ScriptedS3) -> dict[str, bytes]:
    bucket = s3.bucket(BUCKET)
    return {key: bucket.get(key) for key in bucket}


def check_adopted(s3: ScriptedS3, before: Mapping[str, bytes]) -> Manifest:
    """Nothing changed but that the manifest is there."""
    after = snapshot(s3)
    manifest = Manifest.decode(after.pop(LOCATION.manifest_key))
    assert after == before
    return manifest


def refused(store: Store, kind: type[StagingError], reference: str, **changes: Any) -> StagingError:
    with pytest.raises(kind) as caught:
        adopt(store, LOCATION, options(**changes))
    assert caught.value.reference == reference
    return caught.value


# --- what it comes to ---


@pytest.mark.parametrize("family", list(HashFamily))
def test_the_same_files_have_the_same_id_as_after_an_upload(
    s3: ScriptedS3, store: S3Store, tmp_path: Path, family: HashFamily
) -> None:
    files = {
        "model.safetensors": weights(2 * CHUNK_SIZE + 12345),
        "config.json": b'{"model_type": "tiny"}',
        "exact.bin": weights(CHUNK_SIZE, 2)[:CHUNK_SIZE],
        "tokenizer/é + %.txt": b"x",
        "tokenizer/empty.txt": b"",
    }
    source = TarFile(tar_on_disk(tmp_path, files))
    published = upload(
        source, store, UPLOADED, UploadOptions(memory=256 * MIB, cores=1, hash=family)
    )
    source.close()
    before = copy(s3, files)
    events: list[Event] = []
    result = adopt(store, LOCATION, options(hash=family), events.append)
    assert result.manifest.files == published.manifest.files
    assert result.manifest.id == published.manifest.id
    assert check_adopted(s3, before) == result.manifest
    assert (result.already_published, result.not_proven) == (False, ())
    total = sum(map(len, files.values()))
    assert result.read_bytes == total
    assert sum(event.count for event in events if isinstance(event, Moved)) == total
    assert {event.path for event in events if isinstance(event, FileDone)} == set(files)
    assert Started("adopt", total, len(files)) in events


def test_one_object_is_created_conditionally_and_every_byte_is_pinned(
    s3: ScriptedS3, store: S3Store
) -> None:
    before = copy(s3, vendor(1, 2 * CHUNK_SIZE))
    adopt(store, LOCATION, options())
    written = [r for r in s3.requests if r.method not in ("GET", "HEAD")]
    assert [(r.operation, r.key) for r in written] == [("PutObject", LOCATION.manifest_key)]
    assert written[0].headers["if-none-match"] == "*"
    assert s3.requests[-1] == written[0]
    reads = [r for r in s3.requests.of("GetObject") if r.key != LOCATION.manifest_key]
    assert reads
    for read in reads:
        etag = s3.bucket(BUCKET).object(read.key).etag
        assert read.headers["if-match"].strip('"') == etag
    paths = [key.removeprefix(LOCATION.prefix) for key, data in before.items() if data]
    looks = sum(is_safetensors(path) or is_document(path) for path in paths)
    whole = sum(-(-len(data) // CHUNK_SIZE) for data in before.values())
    assert len(reads) == whole + looks
    # Everything is read before the second listing, and the manifest comes after it.
    operations = s3.requests.operations()
    assert operations[-2:] == ["ListObjectsV2", "PutObject"]


def test_what_is_recorded_about_the_source(s3: ScriptedS3, store: S3Store) -> None:
    before = copy(s3)
    result = adopt(store, LOCATION, options(tool="test/1"))
    manifest = check_adopted(s3, before)
    assert manifest.source == {
        "kind": "prefix",
        "name": "m",
        "size": sum(map(len, FILES.values())),
    }
    layout = manifest.layout
    assert (layout["checked"], layout["weight_files"], layout["tensors"]) == (True, 1, 1)
    assert layout["weight_bytes"] == layout["dtypes"]["U8"] == 1000
    assert manifest.tool == "test/1"
    assert result.archive_sha256 is None


@pytest.mark.parametrize("name", ["sha256", "tarball-sha256", "Source_SHA256", "archive-sha-256"])
def test_the_reference_uploaders_marker_tells_the_archive(
    s3: ScriptedS3, store: S3Store, name: str
) -> None:
    before = copy(s3)
    key = LOCATION.prefix + ".checkpoint-complete"
    metadata = {"bytes": "1" * 64, name.lower(): ARCHIVE.upper()}
    s3.bucket(BUCKET).put(key, b"", metadata=metadata)
    result = adopt(store, LOCATION, options())
    assert result.archive_sha256 == ARCHIVE
    assert check_adopted(s3, {**before, key: b""}).source["archive_sha256"] == ARCHIVE


@pytest.mark.parametrize("metadata", [{}, {"sha256": "none"}, {"digest": ARCHIVE}])
def test_a_marker_that_says_nothing_is_no_obstacle(
    s3: ScriptedS3, store: S3Store, metadata: dict[str, str]
) -> None:
    copy(s3)
    s3.bucket(BUCKET).put(LOCATION.prefix + ".checkpoint-complete", b"", metadata=metadata)
    result = adopt(store, LOCATION, options())
    assert result.archive_sha256 is None
    assert "archive_sha256" not in result.manifest.source


def test_placeholders_and_reserved_names_are_no_files(s3: ScriptedS3, store: S3Store) -> None:
    copy(s3)
    for name in ("", "tokenizer/", "empty-folder/", ".Checkpoint-Complete"):
        s3.bucket(BUCKET).put(LOCATION.prefix + name, b"")
    s3.bucket(BUCKET).put("checkpoints/m-2/sibling.safetensors", b"not ours to see")
    before = snapshot(s3)
    result = adopt(store, LOCATION, options())
    assert {str(file.path) for file in result.manifest.files} == set(FILES)
    check_adopted(s3, before)


def test_listings_have_pages() -> None:
    files = {**FILES, **{f"extra/{number}.json": b"{}" for number in range(25)}}
    with ScriptedS3(buckets=[BUCKET], page_size=7) as s3, s3_store(s3, BUCKET) as store:
        before = copy(s3, files)
        result = adopt(store, LOCATION, options())
        assert check_adopted(s3, before) == result.manifest
        assert {str(file.path) for file in result.manifest.files} == set(files)


def test_what_is_planned_is_not_looked_at_again(s3: ScriptedS3, store: S3Store) -> None:
    before = copy(s3)
    planned = plan(store, LOCATION, options())
    assert snapshot(s3) == before
    assert set(planned.found.files) == set(FILES)
    assert s3.requests.sent("GetObject") < len(FILES["model.safetensors"])
    s3.requests.clear()
    adopt(store, LOCATION, options(), planned=planned)
    assert s3.requests.count("ListObjectsV2") == 1
    check_adopted(s3, before)


# --- published already ---


def test_a_second_time_reads_and_writes_nothing(s3: ScriptedS3, store: S3Store) -> None:
    copy(s3)
    first = adopt(store, LOCATION, options())
    before = snapshot(s3)
    s3.requests.clear()
    again = adopt(store, LOCATION, options(hash=HashFamily.SHA256))
    assert again.already_published
    assert (again.read_bytes, again.manifest) == (0, first.manifest)
    assert {r.key for r in s3.requests.of("GetObject")} == {LOCATION.manifest_key}
    assert {r.method for r in s3.requests} <= {"GET", "HEAD"}
    assert snapshot(s3) == before


def test_what_was_added_to_a_published_prefix_is_not_published(
    s3: ScriptedS3, store: S3Store
) -> None:
    copy(s3)
    adopt(store, LOCATION, options())
    s3.bucket(BUCKET).put(LOCATION.prefix + "late.json", b"{}")
    before = snapshot(s3)
    assert "late.json" in refused(store, Conflict, "published-differs").message
    assert snapshot(s3) == before


def test_a_published_prefix_that_lost_an_object_is_not_whole(
    s3: ScriptedS3, store: S3Store
) -> None:
    copy(s3)
    adopt(store, LOCATION, options())
    s3.bucket(BUCKET).remove(LOCATION.prefix + "config.json")
    refused(store, IntegrityError, "published-incomplete")


def test_an_expected_id_is_insisted_on(s3: ScriptedS3, store: S3Store) -> None:
    before = copy(s3)
    refused(store, IntegrityError, "id-mismatch", expect_id="sha256:" + "0" * 64)
    assert snapshot(s3) == before
    expected = adopt(store, LOCATION, options()).manifest.id
    refused(store, IntegrityError, "id-mismatch", expect_id="sha256:" + "0" * 64)
    assert adopt(store, LOCATION, options(expect_id=expected)).already_published
    s3.bucket(BUCKET).remove(LOCATION.manifest_key)
    assert adopt(store, LOCATION, options(expect_id=expected)).manifest.id == expected


def test_an_expected_id_that_is_none_is_refused_at_once(s3: ScriptedS3, store: S3Store) -> None:
    copy(s3)
    refused(store, UsageError, "id", expect_id="laguna")
    assert not list(s3.requests)


# --- what is refused before weights are read ---


def check_refused_early(
    s3: ScriptedS3, store: S3Store, kind: type[StagingError], reference: str
) -> StagingError:
    before = snapshot(s3)
    s3.requests.clear()
    error = refused(store, kind, reference)
    assert snapshot(s3) == before
    assert s3.requests.sent("GetObject") < 1000
    assert error.hint
    return error


@pytest.mark.parametrize(
    "name",
    [
        "a//b.json",
        "/absolute.json",
        "../escape.json",
        "back\\slash.json",
        "e\u0301.json",
        "line\nbreak.json",
        "C:/drive.json",
        "x" * 256,
        "folder/",
    ],
)
def test_unsafe_names(s3: ScriptedS3, store: S3Store, name: str) -> None:
    copy(s3, {**FILES, name: b"bytes"})
    check_refused_early(s3, store, MalformedInput, "unsafe-name")


@pytest.mark.parametrize("name", ["CONFIG.json", "config.json/inside", "Tokenizer/other.json"])
def test_names_that_cannot_live_side_by_side(s3: ScriptedS3, store: S3Store, name: str) -> None:
    copy(s3, {**FILES, name: b"bytes"})
    check_refused_early(s3, store, MalformedInput, "name-collision")


@pytest.mark.parametrize(
    "name",
    [
        "claim.json",
        "upload/0000000000000000/run.json",
        "upload/0000000000000000/ffffffffffffffffffffffffffffffff.json",
    ],
)
def test_an_unfinished_upload(s3: ScriptedS3, store: S3Store, name: str) -> None:
    copy(s3, {**FILES, f".checkpoint/{name}": b"{}"})
    check_refused_early(s3, store, NotFound, "upload-unfinished")


@pytest.mark.parametrize(
    ("files", "reference"),
    [
        ({}, "prefix-empty"),
        ({"": b""}, "prefix-empty"),
        ({"laguna-xs.tar": b"tar"}, "prefix-holds-tar"),
        ({f"laguna/{name}": data for name, data in FILES.items()}, "prefix-nested"),
    ],
)
def test_nothing_to_take_for_a_checkpoint(
    s3: ScriptedS3, store: S3Store, files: dict[str, bytes], reference: str
) -> None:
    copy(s3, files)
    check_refused_early(s3, store, NotFound, reference)


def test_other_checkpoints_below_and_above(s3: ScriptedS3, store: S3Store) -> None:
    inner = LOCATION.child("inner")
    copy(s3)
    copy(s3, FILES, inner)
    adopt(store, inner, options())
    check_refused_early(s3, store, Conflict, "holds-published")
    bucket = s3.bucket(BUCKET)
    for key in bucket.keys(inner.prefix):
        bucket.remove(key)
    adopt(store, LOCATION, options())
    copy(s3, FILES, inner)
    with pytest.raises(Conflict) as caught:
        adopt(store, inner, options())
    assert caught.value.reference == "inside-published"


def test_the_root_of_the_bucket(store: S3Store) -> None:
    with pytest.raises(UsageError):
        adopt(store, S3Location(BUCKET, ""), options())


def test_a_layout_that_would_not_serve(s3: ScriptedS3, store: S3Store) -> None:
    before = copy(s3, {**FILES, "model.safetensors": FILES["model.safetensors"][:-1]})
    error = check_refused_early(s3, store, LayoutInvalid, "safetensors-broken")
    assert "model.safetensors" in error.message
    result = adopt(store, LOCATION, options(layout=None))
    assert check_adopted(s3, before).layout["checked"] is False
    assert result.findings == ()


def test_warnings_of_the_layout_are_kept(s3: ScriptedS3, store: S3Store) -> None:
    before = copy(s3, FILES | {".DS_Store": b"of a desktop"})
    result = adopt(store, LOCATION, options())
    assert [finding.rule for finding in result.findings] == ["macos-leftover"]
    assert check_adopted(s3, before).layout["warnings"] == ["macos-leftover"]


def test_shards_that_were_not_copied(s3: ScriptedS3, store: S3Store) -> None:
    files = hugging_face(1, (400, 400, 400))
    del files["model-00002-of-00003.safetensors"]
    copy(s3, files)
    error = check_refused_early(s3, store, LayoutInvalid, "shards-missing")
    assert "'model-00002-of-00003.safetensors'" in error.message
    adopt(store, LOCATION, options(layout=None))


@pytest.mark.parametrize(
    ("names", "missing"),
    [
        (["model.safetensors", "tokenizer.json"], []),
        (["model-00001-of-00001.safetensors"], []),
        (["a-00002-of-00002.safetensors"], ["a-00001-of-00002.safetensors"]),
        (
            ["a-00001-of-00002.safetensors", "x/a-00002-of-00002.safetensors"],
            ["a-00002-of-00002.safetensors", "x/a-00001-of-00002.safetensors"],
        ),
        (
            ["a-00003-of-00002.safetensors"],
            ["a-00001-of-00002.safetensors", "a-00002-of-00002.safetensors"],
        ),
        (["a-1-of-2.safetensors", "a-00001-of-00002.bin"], []),
    ],
)
def test_numbered_names_promise_others(names: list[str], missing: list[str]) -> None:
    assert missing_shards(names) == (len(missing), missing)


def test_what_names_promise_takes_no_memory() -> None:
    """A listing may hold 100,000 names, each of which promises 99,999 others."""
    names = [f"{stem:05d}-00001-of-99999.safetensors" for stem in range(1000)]
    tracemalloc.start()
    try:
        count, shown = missing_shards(names)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert count == 1000 * 99_998
    assert shown == [f"00000-{number:05d}-of-99999.safetensors" for number in range(2, 7)]
    assert peak < 10_000_000


def test_a_copy_that_is_still_under_way(s3: ScriptedS3, store: S3Store) -> None:
    before = copy(s3)
    bucket = s3.bucket(BUCKET)
    bucket.open_upload("checkpoints/m-2/model.safetensors")
    bucket.open_upload(LOCATION.prefix + "config.json")  # was copied again since
    bucket.open_upload(LOCATION.prefix + "more.safetensors")
    error = check_refused_early(s3, store, Conflict, "copy-unfinished")
    assert "'more.safetensors'" in error.message
    assert "config.json" not in error.message
    for number in range(10):
        bucket.open_upload(LOCATION.prefix + f"file-{number}.safetensors")
    error = check_refused_early(s3, store, Conflict, "copy-unfinished")
    assert error.message.endswith("'file-4.safetensors' and others")
    s3.deny("ListBucketMultipartUploads")
    adopt(store, LOCATION, options())
    check_adopted(s3, before)


def test_open_uploads_that_cannot_be_listed(s3: ScriptedS3, store: S3Store) -> None:
    before = copy(s3)
    s3.script(Fault("ListMultipartUploads", Status(503), occurrence=None))
    refused(store, StoreUnavailable, "store-busy")
    assert snapshot(s3) == before
    s3.clear_script()
    s3.script(Fault("ListMultipartUploads", Status(501), occurrence=None))
    adopt(store, LOCATION, options())
    check_adopted(s3, before)


# --- what the store keeps of the bytes ---


@pytest.mark.parametrize("size", [1000, CHUNK_SIZE + 1000])
def test_bytes_that_rotted_in_the_store(s3: ScriptedS3, store: S3Store, size: int) -> None:
    files = {**FILES, "model.safetensors": weights(size)}
    copy(s3, files)
    s3.bucket(BUCKET).flip_bit(LOCATION.prefix + "model.safetensors", 8 * size)
    before = snapshot(s3)
    error = refused(store, IntegrityError, "stored-checksum")
    assert "model.safetensors" in error.message
    assert snapshot(s3) == before


def test_what_no_store_vouches_for_is_named(tmp_path: Path) -> None:
    files = {**FILES, "model.safetensors": weights(CHUNK_SIZE + 1000)}
    with (
        ScriptedS3(buckets=[BUCKET], quirks=[Quirk.IGNORES_CHECKSUMS]) as s3,
        s3_store(s3, BUCKET) as store,
    ):
        copy(s3, files)
        bucket = s3.bucket(BUCKET)
        other = bucket.object(LOCATION.prefix + "tokenizer/tokenizer.json")
        bucket.store(replace(other, etag="0" * 32))  # as with encryption: no MD5
        before = snapshot(s3)
        result = adopt(store, LOCATION, options())
        # The ETag of an object that came in one piece is its MD5.
        assert result.not_proven == ("model.safetensors", "tokenizer/tokenizer.json")
        check_adopted(s3, before)


# --- what happens meanwhile ---


class Meanwhile(CountingStore):
    """Calls `act` once, before the last file is read: the rules have looked at its start by then."""

    def __init__(self, act: Callable[[Meanwhile], None]) -> None:
        super().__init__()
        for name, data in FILES.items():
            self.put(LOCATION.prefix + name, data)
        self.before_range = self._before_range
        self._act = act
        self._looks = 0

    def _before_range(self, key: str, offset: int) -> None:
        self._looks += key.endswith("tokenizer.json")
        if self._looks == 2:
            self.before_range = lambda key, offset: None
            self._act(self)

    def list_multipart_uploads(self, prefix: str) -> Any:
        return iter(())

    @property
    def keys(self) -> set[str]:
        return set(self._objects)

    @property
    def manifest(self) -> Manifest:
        return Manifest.decode(self._objects[LOCATION.manifest_key].data)


@pytest.mark.parametrize(
    ("act", "told"),
    [
        (
            lambda s: s.put(LOCATION.prefix + "config.json", b'["model_type", "tiny"]'),
            "'config.json' was replaced",
        ),
        (lambda s: s.put(LOCATION.prefix + "config.json", b"{ }"), "'config.json' was replaced"),
        (lambda s: s.put(LOCATION.prefix + "tokenizer/tokenizer.json", b"{}"), "was replaced"),
        (lambda s: s.put(LOCATION.prefix + "new.json", b"[]"), "'new.json' is new"),
        (lambda s: s.remove(LOCATION.prefix + "config.json"), "'config.json' is gone"),
        (lambda s: s.remove(LOCATION.prefix + "tokenizer/tokenizer.json"), "is gone"),
        (lambda s: s.put(LOCATION.control_prefix + "claim.json", b"{}"), "an upload began"),
    ],
)
def test_a_prefix_that_does_not_hold_still_is_not_published(
    act: Callable[[Meanwhile], None], told: str
) -> None:
    store = Meanwhile(act)
    error = refused(store, Conflict, "prefix-changed")
    assert told in error.message
    assert LOCATION.manifest_key not in store.keys


def test_a_twin_that_was_faster_is_no_error() -> None:
    found: list[AdoptResult] = []
    store = Meanwhile(lambda s: found.append(adopt(s, LOCATION, options(tool="twin"))))
    result = adopt(store, LOCATION, options(tool="ours"))
    assert not found[0].already_published
    assert result.already_published
    assert result.manifest.id == found[0].manifest.id
    assert store.manifest.tool == "twin"


def test_another_manifest_that_was_faster_is_a_conflict() -> None:
    store = Meanwhile(lambda s: s.put(LOCATION.manifest_key, other.encode()))
    other = CountingStore().publish(LOCATION, {"config.json": b"other"})
    assert other.id in refused(store, Conflict, "published-differs").message
    assert store.manifest == other


def test_several_at_once_publish_one_manifest(s3: ScriptedS3, store: S3Store) -> None:
    before = copy(s3)
    results: list[AdoptResult] = []

    def run(number: int) -> None:
        results.append(adopt(store, LOCATION, options(tool=f"twin/{number}")))

    with s3.hold("PutObject", parties=4) as hold:
        threads = [threading.Thread(target=run, args=[number]) for number in range(4)]
        for thread in threads:
            thread.start()
        assert hold.arrived.wait(60)
        hold.release()
        for thread in threads:
            thread.join(60)
    assert sorted(result.already_published for result in results) == [False, True, True, True]
    manifest = check_adopted(s3, before)
    assert {result.manifest.id for result in results} == {manifest.id}


# --- requests that fail ---


def test_a_lost_answer_to_the_commit_is_settled(s3: ScriptedS3, store: S3Store) -> None:
    before = copy(s3)
    s3.script(Fault("PutObject", DropAfter()))
    result = adopt(store, LOCATION, options())
    assert not s3.unfired_faults
    assert not result.already_published
    assert check_adopted(s3, before) == result.manifest


@pytest.mark.parametrize("position", REQUESTS)
def test_any_request_may_be_refused_and_nothing_is_left(
    s3: ScriptedS3, store: S3Store, position: int
) -> None:
    before = copy(s3)
    s3.script(Fault(None, Status(403), position))
    try:
        adopt(store, LOCATION, options())
    except AccessDenied:
        assert snapshot(s3) == before
    else:
        check_adopted(s3, before)
    if position == max(REQUESTS):
        assert s3.unfired_faults
        return
    s3.clear_script()
    adopt(store, LOCATION, options())
    check_adopted(s3, before)


@pytest.mark.parametrize("position", REQUESTS)
@pytest.mark.parametrize("drop", [DropBefore(), DropAfter()], ids=["before", "after"])
def test_any_request_may_get_lost_once(
    s3: ScriptedS3, store: S3Store, position: int, drop: DropBefore | DropAfter
) -> None:
    before = copy(s3)
    s3.script(Fault(None, drop, position))
    result = adopt(store, LOCATION, options())
    assert check_adopted(s3, before) == result.manifest
    assert not result.already_published


def test_without_the_right_to_write_everything_is_as_it_was(s3: ScriptedS3, store: S3Store) -> None:
    before = copy(s3)
    s3.script(Fault("PutObject", Status(403), occurrence=None))
    refused(store, AccessDenied, "denied")
    assert snapshot(s3) == before


def test_nobody_elses_upload_is_touched(s3: ScriptedS3, store: S3Store) -> None:
    copy(s3)
    theirs = s3.bucket(BUCKET).open_upload(LOCATION.prefix + "model.safetensors")
    adopt(store, LOCATION, options())
    assert s3.bucket(BUCKET).find_upload(theirs.upload_id) is theirs
