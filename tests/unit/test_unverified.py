"""Downloads of prefixes that nobody published (I1, I5, I6, I7, I10, I12, I15).

Kills and disk errors are tried at every single change, as for published checkpoints.
"""

from __future__ import annotations

import errno
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from staging.directory.fs import Fs
from staging.directory.local import LocalDirectory
from staging.directory.marker import Marker
from staging.store.store import ObjectInfo
from staging.sync import SyncOptions, SyncResult, sync
from staging.sync.preflight import preflight
from staging.sync.stand_in import Record
from staging.sync.unverified import (
    examine_unverified,
    present_unverified,
    stand_in,
    sync_unverified,
)
from staging.transfer import scheduler
from staging.unpublished import content
from staging.verify import Level, verify_directory
from staging.vocabulary.digest import CHUNK_SIZE
from staging.vocabulary.errors import (
    AccessDenied,
    Conflict,
    IntegrityError,
    LayoutInvalid,
    MalformedInput,
    NotFound,
    StagingError,
    UsageError,
)
from staging.vocabulary.events import Event, Moved, Note, Started, Waiting
from staging.vocabulary.location import S3Location
from staging.vocabulary.manifest import UNVERIFIED, Manifest
from tests.support.archives import weights
from tests.support.checkpoints import CountingStore, manifest_of, random_bytes
from tests.support.local_disk import FaultyFs, Killed, QuickFs
from tests.support.s3server import ScriptedS3
from tests.support.shared_s3 import shared_s3
from tests.support.stores import s3_store

MIB = 1024 * 1024
OPTIONS = SyncOptions(memory=256 * MIB, cores=2, concurrency=3)
ONE_BY_ONE = SyncOptions(memory=256 * MIB, cores=1, concurrency=1)
PEEK = 512
"""Bytes that a look at the start of a file asks for; no file here has a longer header."""
A = S3Location("memory", "models/a/")
FILES = {
    "config.yaml": b"",
    "notes.txt": random_bytes(900, 2),
    "model.safetensors": weights(70_001, 1),
    "tokenizer/words.txt": random_bytes(3_000, 4),
    "empty": b"",
}
CHANGED = {
    "config.yaml": b"",
    "notes.txt": random_bytes(900, 5),
    "model.safetensors": FILES["model.safetensors"],
    "tokenizer": random_bytes(1_500, 6),
}
LARGE = {
    "config.yaml": b"",
    "notes.txt": FILES["notes.txt"],
    "a.safetensors": weights(2 * CHUNK_SIZE + 7777, 3),
    "b.safetensors": weights(CHUNK_SIZE + 5555, 4),
}


class Bucket(CountingStore):
    """Objects that another tool put there. `checksums` is whether the store keeps any."""

    def __init__(self, files: Mapping[str, bytes] = FILES, *, checksums: bool = True) -> None:
        super().__init__()
        self.checksums = checksums
        self.lists = 0
        self.after_first_list: Callable[[], None] | None = None
        self.fill(files)

    def fill(self, files: Mapping[str, bytes]) -> None:
        """Make the prefix hold exactly these; what is equal stays the version it is."""
        there = {key: found.data for key, found in self._objects.items()}
        for key in there.keys() - {A.prefix + name for name in files}:
            self.remove(key)
        for name, data in files.items():
            if there.get(A.prefix + name) != data:
                self.put(A.prefix + name, data)

    def rot(self, name: str) -> None:
        """Turn over a bit of an object; what the store keeps about it stays."""
        found = self._objects[A.prefix + name]
        found.data = found.data[:-1] + bytes([found.data[-1] ^ 1])

    def head(self, key: str) -> ObjectInfo:
        info: ObjectInfo = super().head(key)  # type: ignore[no-untyped-call]
        return info if self.checksums else replace(info, crc64nvme=None)

    def list_objects(self, prefix: str) -> Iterator[ObjectInfo]:
        self.lists += 1
        listed = list(super().list_objects(prefix))
        if self.after_first_list is not None:
            act, self.after_first_list = self.after_first_list, None
            act()
        return iter(listed)


@pytest.fixture
def bucket() -> Bucket:
    return Bucket()


@pytest.fixture
def dst(tmp_path: Path) -> Path:
    return tmp_path / "dst"


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have threads notice at once that another one failed; for sweeps of hundreds of failures."""
    monkeypatch.setattr(scheduler, "_POLL", 0.002)


def run(
    store: Any,
    dst: Path,
    *,
    fs: Fs | None = None,
    options: SyncOptions = OPTIONS,
    events: list[Event] | None = None,
    location: S3Location = A,
) -> SyncResult:
    report = (lambda event: None) if events is None else events.append
    return sync_unverified(
        store, location, dst, options, report, fs=fs or QuickFs(), rng=random.Random(0)
    )


def tree(dst: Path) -> dict[str, bytes]:
    return {
        path.relative_to(dst).as_posix(): path.read_bytes()
        for path in sorted(dst.rglob("*"))
        if path.is_file() and path.relative_to(dst).parts[0] != ".checkpoint"
    }


def visible(dst: Path, *versions: Mapping[str, bytes]) -> str | None:
    """What a reader sees that honours the marker; fails unless that is nothing or a whole version."""
    try:
        marker = Marker.decode((dst / ".checkpoint/ready.json").read_bytes())
    except FileNotFoundError:
        return None
    (files,) = (files for files in versions if manifest_of(files).id == marker.id)
    assert {path: (dst / path).read_bytes() for path in marker.files} == dict(files)
    return marker.id


def check_complete(dst: Path, files: Mapping[str, bytes] = FILES) -> Manifest:
    assert visible(dst, files) == manifest_of(files).id
    assert tree(dst) == dict(files)
    control = sorted(path.name for path in (dst / ".checkpoint").iterdir())
    assert control == ["lock", "manifest.json", "ready.json"]
    manifest = Manifest.decode((dst / ".checkpoint/manifest.json").read_bytes())
    assert manifest.id == manifest_of(files).id
    return manifest


def ranged(store: Bucket) -> dict[str, int]:
    """Bytes asked for, by file, without what only looks at the start of one."""
    found: dict[str, int] = {}
    for key, offset, length in store.ranges:
        if offset == 0 and length <= PEEK < store.head(key).size:
            continue
        name = key.removeprefix(A.prefix)
        found[name] = found.get(name, 0) + length
    return found


# --- the straight way ---


@pytest.mark.parametrize("files", [FILES, LARGE], ids=["small", "large"])
def test_every_file_arrives_and_the_directory_says_unverified(
    dst: Path, files: dict[str, bytes]
) -> None:
    bucket = Bucket(files)
    events: list[Event] = []
    result = run(bucket, dst, events=events)
    manifest = check_complete(dst, files)
    total = sum(map(len, files.values()))
    assert result == SyncResult(
        id=manifest.id,
        files=len(files),
        total_size=total,
        fetched_files=len(files),
        fetched_bytes=total,
        unverified=True,
    )
    assert manifest.source == {"kind": "prefix", "name": "a", "size": total}
    record = Record.of(manifest)
    assert record is not None
    assert record.uri == str(A)
    assert record.files == {
        name: (bucket.head(A.prefix + name).etag, "crc64nvme") for name in files
    }
    for file in manifest.files:
        assert file.checksums["crc64nvme"] == bucket.head(A.prefix + file.path).crc64nvme
    warnings = [event.text for event in events if isinstance(event, Note) and event.warning]
    assert len(warnings) == 1
    assert f"prove {len(files)} of {len(files)}" in warnings[0]
    with LocalDirectory(dst) as local:
        outcome = verify_directory(local, manifest, Level.DIGEST, memory=256 * MIB, cores=1)
    assert outcome.passed


def test_a_second_run_lists_once_and_reads_nothing(dst: Path, bucket: Bucket) -> None:
    first = run(bucket, dst)
    bucket.forget()
    bucket.lists = 0
    for again in (run(bucket, dst), present_unverified(bucket, A, dst)):
        assert again == SyncResult(
            id=first.id,
            files=len(FILES),
            total_size=first.total_size,
            kept_files=len(FILES),
            already_present=True,
            unverified=True,
        )
    assert (bucket.lists, bucket.requests) == (2, 0)
    check_complete(dst)


def test_the_requests_of_a_first_and_a_second_run(tmp_path: Path) -> None:
    with shared_s3("models") as shared:
        location = S3Location("models", "a/")
        for name, data in LARGE.items():
            shared.server.bucket("models").put(location.prefix + name, data)
        shared.server.requests.clear()
        run(shared.store, tmp_path / "dst", location=location)
        reads = shared.server.requests.of("GetObject")
        assert all("if-match" in read.headers for read in reads)
        assert {r.method for r in shared.server.requests} <= {"GET", "HEAD"}
        shared.server.requests.clear()
        run(shared.store, tmp_path / "dst", location=location)
        assert shared.server.requests.operations() == ["ListObjectsV2"]


def test_only_other_versions_are_fetched_again(dst: Path, bucket: Bucket) -> None:
    run(bucket, dst)
    bucket.fill(CHANGED)
    assert present_unverified(bucket, A, dst) is None
    bucket.forget()
    result = run(bucket, dst)
    check_complete(dst, CHANGED)
    assert ranged(bucket) == {"notes.txt": 900, "tokenizer": 1_500}
    assert (result.fetched_files, result.kept_files, result.removed_files) == (2, 2, 2)


def test_an_equal_object_in_another_version_is_fetched_again(dst: Path, bucket: Bucket) -> None:
    first = run(bucket, dst)
    bucket.put(A.prefix + "notes.txt", FILES["notes.txt"])
    bucket.forget()
    result = run(bucket, dst)
    assert ranged(bucket) == {"notes.txt": 900}
    assert result.id == first.id
    check_complete(dst)
    assert run(bucket, dst).already_present


def test_a_file_that_got_lost_is_fetched_against_its_recorded_digests(
    dst: Path, bucket: Bucket
) -> None:
    run(bucket, dst)
    (dst / "notes.txt").unlink()
    bucket.forget()
    bucket.after_range = lambda key, offset, view: _flip(view)
    with pytest.raises(IntegrityError) as caught:
        run(bucket, dst)
    assert caught.value.reference == "chunk-digest"
    bucket.forget()
    run(bucket, dst)
    assert ranged(bucket) == {"notes.txt": 900}
    check_complete(dst)


def _flip(view: memoryview) -> None:
    view[0] ^= 1


def test_a_manifest_that_has_come_wins(dst: Path, bucket: Bucket) -> None:
    run(bucket, dst)
    manifest = manifest_of(FILES)
    bucket.put(A.manifest_key, manifest.encode())
    assert present_unverified(bucket, A, dst) is None
    bucket.forget()
    result = run(bucket, dst)
    assert (result.id, result.fetched_bytes, result.unverified) == (manifest.id, 0, False)
    assert bucket.ranges == []
    assert UNVERIFIED not in check_complete(dst).annotations
    assert run(bucket, dst).already_present
    other = Bucket({})
    other.publish(A, CHANGED)
    result = run(other, dst)
    assert not result.unverified
    check_complete(dst, CHANGED)


def test_a_manifest_that_comes_during_a_download_wins(dst: Path, bucket: Bucket) -> None:
    manifest = manifest_of(FILES)

    def act(key: str, offset: int) -> None:
        if (dst / ".checkpoint").exists():
            bucket.before_range = lambda key, offset: None
            bucket.put(A.manifest_key, manifest.encode())

    bucket.before_range = act
    events: list[Event] = []
    result = run(bucket, dst, options=ONE_BY_ONE, events=events)
    assert (result.id, result.unverified) == (manifest.id, False)
    assert result.fetched_bytes == sum(map(len, FILES.values()))
    assert check_complete(dst) == manifest
    assert not [event for event in events if isinstance(event, Note) and event.warning]
    bucket.forget()
    assert sync(bucket, A, dst, OPTIONS).already_present


def test_a_manifest_of_other_bytes_that_comes_during_a_download_is_a_change(
    dst: Path, bucket: Bucket
) -> None:
    def act(key: str, offset: int) -> None:
        if (dst / ".checkpoint").exists():
            bucket.put(A.manifest_key, manifest_of(CHANGED).encode())

    bucket.before_range = act
    with pytest.raises(Conflict) as caught:
        run(bucket, dst, options=ONE_BY_ONE)
    assert caught.value.reference == "prefix-changed"
    assert manifest_of(CHANGED).id in caught.value.message
    assert visible(dst, FILES, CHANGED) is None


def test_who_may_not_list_gets_what_is_published(dst: Path, bucket: Bucket) -> None:
    def denied(prefix: str) -> Iterator[ObjectInfo]:
        raise AccessDenied("no", reference="denied", side="store")

    manifest = bucket.publish(A, FILES)
    bucket.list_objects = denied  # type: ignore[method-assign]
    assert run(bucket, dst).id == manifest.id
    assert present_unverified(bucket, A, dst) is None


def test_a_published_directory_turns_unverified_and_back(dst: Path) -> None:
    published, copied = Bucket({}), Bucket(CHANGED)
    published.publish(A, FILES)
    sync(published, A, dst, OPTIONS)
    result = run(copied, dst)
    assert result.unverified
    check_complete(dst, CHANGED)
    result = sync(published, A, dst, OPTIONS)
    assert not result.unverified
    manifest = check_complete(dst)
    assert UNVERIFIED not in manifest.annotations


def test_an_expected_id_is_the_proof(dst: Path, bucket: Bucket) -> None:
    wanted = manifest_of(FILES).id
    other = replace(OPTIONS, expect_id="sha256:" + "0" * 64)
    with pytest.raises(IntegrityError) as caught:
        run(bucket, dst, options=other)
    assert caught.value.reference == "id-mismatch"
    assert visible(dst, FILES) is None
    events: list[Event] = []
    result = run(bucket, dst, options=replace(OPTIONS, expect_id=wanted), events=events)
    assert (result.id, result.unverified) == (wanted, False)
    assert not [event for event in events if isinstance(event, Note) and event.warning]
    check_complete(dst)
    bucket.forget()
    bucket.lists = 0
    again = run(bucket, dst, options=replace(OPTIONS, expect_id=wanted))
    assert again.already_present
    assert (bucket.lists, bucket.requests) == (0, 0)
    with pytest.raises(IntegrityError):
        run(bucket, dst, options=other)


def test_what_is_there_must_have_the_expected_id(dst: Path, bucket: Bucket) -> None:
    held = run(bucket, dst)
    found = present_unverified(bucket, A, dst, expect_id=held.id)
    assert found is not None
    assert (found.already_present, found.unverified) == (True, False)
    with pytest.raises(IntegrityError) as caught:
        present_unverified(bucket, A, dst, expect_id="sha256:" + "0" * 64)
    assert caught.value.reference == "id-mismatch"
    with pytest.raises(UsageError):
        present_unverified(bucket, A, dst, expect_id="laguna")


def test_an_expected_id_that_is_none_is_refused_at_once(dst: Path, bucket: Bucket) -> None:
    with pytest.raises(UsageError):
        run(bucket, dst, options=replace(OPTIONS, expect_id="laguna"))
    assert (bucket.lists, bucket.requests) == (0, 0)


def test_a_manifest_that_would_be_too_large_is_not_published(
    dst: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("staging.vocabulary.manifest.MAX_MANIFEST_BYTES", 1000)
    with pytest.raises(MalformedInput) as caught:
        run(bucket, dst)
    assert caught.value.reference == "manifest-too-large"
    assert visible(dst, FILES) is None


# --- what is refused before a weight is read ---


@pytest.mark.parametrize(
    ("name", "kind", "reference"),
    [
        (".checkpoint/claim.json", NotFound, "upload-unfinished"),
        ("a//b", MalformedInput, "unsafe-name"),
        ("NOTES.txt", MalformedInput, "name-collision"),
        ("inner/.checkpoint/manifest.json", Conflict, "holds-published"),
        ("m-00001-of-00002.safetensors", LayoutInvalid, "shards-missing"),
        ("other.tar", LayoutInvalid, "archive-inside"),
    ],
)
def test_what_is_no_whole_checkpoint_is_refused(
    dst: Path, bucket: Bucket, name: str, kind: type[StagingError], reference: str
) -> None:
    bucket.put(A.prefix + name, weights(50_000, 9))
    with pytest.raises(kind) as caught:
        run(bucket, dst)
    assert caught.value.reference == reference
    assert bucket.ranged_bytes < 20_000
    assert not dst.exists()


def test_nothing_there(dst: Path) -> None:
    with pytest.raises(NotFound) as caught:
        run(Bucket({}), dst)
    assert caught.value.reference == "prefix-empty"
    assert not dst.exists()


def test_a_broken_layout_may_be_wanted(dst: Path) -> None:
    files = {**FILES, "model.safetensors": FILES["model.safetensors"][:-1]}
    bucket = Bucket(files)
    with pytest.raises(LayoutInvalid) as caught:
        run(bucket, dst)
    assert caught.value.reference == "safetensors-broken"
    assert bucket.ranged_bytes < len(files["model.safetensors"])
    assert not dst.exists()
    run(bucket, dst, options=replace(OPTIONS, layout_check=False))
    assert check_complete(dst, files).layout == {"checked": False, "warnings": []}


@pytest.mark.parametrize("name", ["notes.txt", "tokenizer", "other.safetensors"])
def test_what_is_not_ours_is_left_alone(dst: Path, bucket: Bucket, name: str) -> None:
    dst.mkdir()
    (dst / name).write_bytes(FILES.get(name, b"theirs"))
    before = tree(dst)
    with pytest.raises(Conflict) as caught:
        run(bucket, dst)
    assert caught.value.reference in ("foreign-file", "foreign-weights")
    assert bucket.ranged_bytes < 20_000
    assert tree(dst) == before
    assert not (dst / ".checkpoint").exists()


def test_of_a_file_that_may_be_the_same_nothing_untrue_is_said(dst: Path, bucket: Bucket) -> None:
    dst.mkdir()
    (dst / "notes.txt").write_bytes(FILES["notes.txt"])
    text = "'notes.txt' is not known to have the checkpoint's bytes"
    with pytest.raises(Conflict, match=text):
        run(bucket, dst)
    with pytest.raises(Conflict, match=text):
        examine_unverified(bucket, A, dst, OPTIONS, fs=QuickFs()).preflight.require()
    # Of one whose digest is on record, more can be said.
    (dst / "notes.txt").unlink()
    run(bucket, dst)
    (dst / "notes.txt").write_bytes(b"edited".ljust(900))
    with pytest.raises(Conflict, match=r"'notes\.txt' has other bytes than the checkpoint's"):
        run(bucket, dst)


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        (".checkpoint/claim.json", "upload-unfinished"),
        ("m-00001-of-00002.safetensors", "shards-missing"),
    ],
)
def test_an_examination_finds_what_a_run_would_refuse(
    dst: Path, bucket: Bucket, name: str, reference: str
) -> None:
    clean = examine_unverified(bucket, A, dst, OPTIONS, fs=QuickFs())
    assert clean.preflight.findings == ()
    assert clean.fetched_files == len(FILES)
    bucket.put(A.prefix + name, weights(50_000, 9))
    found = examine_unverified(bucket, A, dst, OPTIONS, fs=QuickFs()).preflight.findings
    assert reference in {finding.reference for finding in found}
    assert not dst.exists()


def test_an_examination_knows_what_is_on_record(dst: Path, bucket: Bucket) -> None:
    run(bucket, dst)
    bucket.fill(CHANGED)
    found = examine_unverified(bucket, A, dst, OPTIONS, fs=QuickFs())
    assert found.preflight.findings == ()
    assert (found.fetched_files, found.kept_files, found.removed_files) == (2, 2, 2)


@pytest.mark.parametrize("change", ["gone", "longer"])
def test_an_object_that_changes_after_it_was_listed_is_a_change_of_the_prefix(
    dst: Path, bucket: Bucket, change: str
) -> None:
    def act() -> None:
        if change == "gone":
            bucket.remove(A.prefix + "notes.txt")
        else:
            bucket.put(A.prefix + "notes.txt", b"longer".ljust(2_000))

    for call in (run, _examined):
        bucket.fill(FILES)
        bucket.after_first_list = act
        with pytest.raises(Conflict) as caught:
            call(bucket, dst)
        assert caught.value.reference == "prefix-changed"
        assert "manifest" not in caught.value.message
        assert not dst.exists()


def _examined(bucket: Bucket, dst: Path) -> object:
    return examine_unverified(bucket, A, dst, OPTIONS, fs=QuickFs()).preflight.require()


def test_a_stand_in_is_enough_for_a_preflight(dst: Path, bucket: Bucket) -> None:
    expected = stand_in(bucket, A, dst, OPTIONS)
    found = preflight(bucket, A, dst, OPTIONS, manifest=expected.manifest)
    assert found.findings == ()
    assert found.require().total_size == sum(map(len, FILES.values()))
    assert found.needed_bytes is not None
    assert found.needed_bytes >= sum(map(len, FILES.values()))
    assert not dst.exists()


# --- what the store keeps of the bytes ---


@pytest.mark.parametrize("files", [FILES, LARGE], ids=["small", "large"])
def test_bytes_that_rotted_in_the_store_are_not_published(
    dst: Path, files: dict[str, bytes]
) -> None:
    bucket = Bucket(files)
    weight = next(name for name in files if name.endswith(".safetensors"))
    bucket.rot(weight)
    with pytest.raises(IntegrityError) as caught:
        run(bucket, dst)
    assert caught.value.reference == "stored-checksum"
    assert weight in caught.value.message
    assert visible(dst, files) is None
    bucket.rot(weight)
    run(bucket, dst)
    check_complete(dst, files)


def test_bytes_that_flipped_on_the_way_are_not_published(dst: Path, bucket: Bucket) -> None:
    bucket.after_range = lambda key, offset, view: (
        _flip(view) if key.endswith("words.txt") else None
    )
    with pytest.raises(IntegrityError) as caught:
        run(bucket, dst)
    assert caught.value.reference == "stored-checksum"
    bucket.forget()
    run(bucket, dst)
    check_complete(dst)


def test_without_checksums_nothing_is_proven_and_that_is_said(dst: Path) -> None:
    bucket = Bucket(checksums=False)
    events: list[Event] = []
    run(bucket, dst, events=events)
    record = Record.of(check_complete(dst))
    assert record is not None
    assert {proof for _, proof in record.files.values()} == {"nothing"}
    assert any(isinstance(event, Note) and "prove 0 of 5" in event.text for event in events)


def test_the_library_of_crc64nvme_need_not_be_installed() -> None:
    code = (
        "import sys; sys.modules['awscrt'] = None\n"
        "import staging.sync.unverified\n"
        "from staging.unpublished.content import Content, installed_crc64\n"
        "from staging.vocabulary.digest import HashFamily\n"
        "from staging.vocabulary.paths import SafePath\n"
        "assert installed_crc64() is None\n"
        "found = Content(SafePath('a'), 1, '0cc175b9c0f1b6a831c399e269772661', HashFamily.BLAKE3)\n"
        "found.take(0, b'a')\n"
        "print(found.proof('AAAAAAAAAAA='), found.file().checksums)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "md5 {}\n"


def test_an_etag_that_is_the_md5_is_a_proof(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the library of CRC64NVME is not installed, as in the pod's image."""
    monkeypatch.setattr(content, "installed_crc64", lambda: None)
    monkeypatch.setattr("staging.sync.learning.installed_crc64", lambda: None)
    location = S3Location("models", "a/")
    events: list[Event] = []
    with ScriptedS3(buckets=["models"]) as server, s3_store(server, "models") as store:
        for name, data in LARGE.items():
            server.bucket("models").put(location.prefix + name, data)
        run(store, tmp_path / "dst", location=location, events=events)
    manifest = check_complete(tmp_path / "dst", LARGE)
    record = Record.of(manifest)
    assert record is not None
    proofs = {name: proof for name, (_, proof) in record.files.items()}
    assert proofs == {
        "a.safetensors": "nothing",
        "b.safetensors": "nothing",
        "config.yaml": "md5",
        "notes.txt": "md5",
    }
    assert all(not file.checksums for file in manifest.files)
    assert any(isinstance(event, Note) and "awscrt" in event.text for event in events)


# --- what happens meanwhile ---


@pytest.mark.parametrize(
    "change", ["replaced", "gone", "replaced-before", "gone-before", "new", "upload"]
)
def test_a_prefix_that_does_not_hold_still_is_not_published(
    dst: Path, bucket: Bucket, change: str
) -> None:
    seen: list[str] = []

    def act(key: str, offset: int) -> None:
        seen.append(key)
        if not key.endswith("words.txt") or seen.count(key) > 1:
            return
        if change == "replaced":
            bucket.put(A.prefix + "empty", b"full")
        elif change == "gone":
            bucket.remove(A.prefix + "empty")
        elif change == "replaced-before":
            bucket.put(key, FILES["tokenizer/words.txt"])
        elif change == "gone-before":
            bucket.remove(key)
        elif change == "new":
            bucket.put(A.prefix + "new.json", b"{}")
        else:
            bucket.put(A.control_prefix + "claim.json", b"{}")

    bucket.before_range = act
    with pytest.raises(Conflict) as caught:
        run(bucket, dst, options=ONE_BY_ONE)
    assert caught.value.reference == "prefix-changed"
    assert visible(dst, FILES) is None
    bucket.forget()
    bucket.fill(FILES)
    run(bucket, dst)
    check_complete(dst)


def test_another_process_adopts_what_the_first_one_made(dst: Path, bucket: Bucket) -> None:
    waiting = threading.Event()
    results: list[SyncResult] = []

    def report(event: Event) -> None:
        if isinstance(event, Waiting):
            waiting.set()

    def second() -> None:
        results.append(sync_unverified(bucket, A, dst, OPTIONS, report, fs=QuickFs()))

    other = threading.Thread(target=second)

    def before(key: str, offset: int) -> None:
        if (dst / ".checkpoint").exists() and not other.is_alive() and not results:
            other.start()
            assert waiting.wait(30)

    bucket.before_range = before
    first = run(bucket, dst, options=ONE_BY_ONE)
    other.join(30)
    assert (first.adopted, first.already_present) == (False, False)
    assert [(r.adopted, r.already_present, r.unverified) for r in results] == [(True, True, True)]
    assert sum(ranged(bucket).values()) == sum(map(len, FILES.values()))
    check_complete(dst)


# --- interruptions ---


def interrupt(bucket: Bucket, dst: Path, at: str) -> None:
    """Fail at the last range of a file."""

    def fail(key: str, offset: int) -> None:
        if key.endswith(at) and offset >= CHUNK_SIZE:
            raise StagingError("stopped here", reference="request", side="store")

    bucket.before_range = fail
    with pytest.raises(StagingError, match="stopped here"):
        run(bucket, dst, options=ONE_BY_ONE)
    bucket.forget()


@pytest.mark.parametrize("checksums", [True, False])
def test_what_the_store_can_prove_is_kept(dst: Path, checksums: bool) -> None:
    bucket = Bucket(LARGE, checksums=checksums)
    interrupt(bucket, dst, "b.safetensors")
    events: list[Event] = []
    result = run(bucket, dst, events=events)
    check_complete(dst, LARGE)
    weight = len(LARGE["a.safetensors"])
    kept = weight if checksums else 0
    assert result.resumed_bytes == kept
    assert result.fetched_bytes == sum(map(len, LARGE.values())) - kept
    fetched = ranged(bucket)
    assert fetched.get("a.safetensors", 0) == weight - kept
    assert fetched["b.safetensors"] == len(LARGE["b.safetensors"])
    notes = [event.text for event in events if isinstance(event, Note)]
    assert any("that an interrupted run began" in text for text in notes)


def test_a_partial_file_with_other_bytes_is_fetched_again(dst: Path) -> None:
    bucket = Bucket(LARGE)
    interrupt(bucket, dst, "b.safetensors")
    (partial,) = dst.glob(".checkpoint/partial/*/a.safetensors")
    with partial.open("r+b") as file:
        file.seek(CHUNK_SIZE + 3)
        file.write(b"\0\1\2")
    result = run(bucket, dst)
    assert result.resumed_bytes == 0
    check_complete(dst, LARGE)


def test_partial_files_of_another_listing_are_dropped(dst: Path) -> None:
    bucket = Bucket(LARGE)
    interrupt(bucket, dst, "b.safetensors")
    bucket.put(A.prefix + "notes.txt", b'{"model_type": "tiny"}')
    (stale,) = (dst / ".checkpoint/partial").iterdir()
    there: list[bool] = []
    bucket.before_range = lambda key, offset: there.append(offset > 0 and stale.exists())
    result = run(bucket, dst)
    assert len(there) > 4
    assert not any(there)
    assert result.resumed_bytes == 0
    check_complete(dst, {**LARGE, "notes.txt": b'{"model_type": "tiny"}'})


def test_killed_at_every_change(tmp_path: Path, impatient: None) -> None:
    """From nothing, and from an earlier version: never a ready marker over wrong bytes."""
    for earlier in (None, FILES):
        changes = 1
        while True:
            dst = tmp_path / f"{earlier is None}-{changes}"
            bucket = Bucket(FILES if earlier else CHANGED)
            if earlier:
                run(bucket, dst)
                bucket.fill(CHANGED)
            fs = FaultyFs(kill_at=changes)
            try:
                run(bucket, dst, fs=fs, options=ONE_BY_ONE)
            except Killed:
                pass
            else:
                assert fs.changes < changes
                break
            if dst.exists():
                visible(dst, FILES, CHANGED)
            run(bucket, dst)
            check_complete(dst, CHANGED)
            changes += 1
        assert changes > 20


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_any_change_may_fail(tmp_path: Path, impatient: None, code: int) -> None:
    changes = 1
    sides: set[str | None] = set()
    while True:
        dst = tmp_path / str(changes)
        bucket = Bucket(FILES)
        run(bucket, dst)
        bucket.fill(CHANGED)
        fs = FaultyFs(fail_at=changes, error=code)
        try:
            run(bucket, dst, fs=fs, options=ONE_BY_ONE)
        except StagingError as error:
            sides.add(error.side)
        else:
            if fs.failed is None:
                break
        visible(dst, FILES, CHANGED)
        run(bucket, dst)
        check_complete(dst, CHANGED)
        changes += 1
    assert changes > 20
    assert sides == {"local"}


# --- records ---


@pytest.mark.parametrize(
    "annotation",
    [
        None,
        "x",
        {},
        {"uri": str(A)},
        {"uri": str(A), "files": []},
        {"uri": str(A), "files": {"notes.txt": {}}},
        {"uri": str(A), "files": {"notes.txt": {"etag": "1"}}},
        {"uri": "s3://other/a/", "files": {}},
        {"uri": str(A), "files": {}},
        {"uri": str(A), "files": {name: {"etag": "", "proof": "md5"} for name in FILES}},
    ],
)
def test_a_record_that_makes_no_sense_vouches_for_nothing(
    dst: Path, bucket: Bucket, annotation: Any
) -> None:
    run(bucket, dst)
    path = dst / ".checkpoint/manifest.json"
    manifest = Manifest.decode(path.read_bytes())
    path.write_bytes(replace(manifest, annotations={UNVERIFIED: annotation}).encode())
    assert present_unverified(bucket, A, dst) is None
    result = run(bucket, dst)
    assert result.fetched_files == len(FILES)
    check_complete(dst)
    assert run(bucket, dst).already_present


def test_progress_is_told(dst: Path) -> None:
    bucket = Bucket(LARGE)
    interrupt(bucket, dst, "b.safetensors")
    events: list[Event] = []
    run(bucket, dst, events=events)
    phases = [event.phase for event in events if isinstance(event, Started)]
    assert phases[-1] == "download"
    last = max(index for index, event in enumerate(events) if isinstance(event, Started))
    moved = sum(event.count for event in events[last:] if isinstance(event, Moved))
    assert moved == len(LARGE["b.safetensors"]) + len(LARGE["notes.txt"])
