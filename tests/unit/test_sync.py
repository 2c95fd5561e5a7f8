"""The download engine: I1, I5, I6, I7, I10, I12, I14 and I15 over a real directory and a memory store.

Kills and disk errors are tried at every single change the engine makes, power losses behind each.
"""

from __future__ import annotations

import errno
import fcntl
import functools
import os
import random
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from staging.directory.fs import Fs
from staging.directory.local import LocalDirectory
from staging.directory.marker import Marker
from staging.directory.names import READY_NAME, begun_name, partial_directory
from staging.directory.publish import Publication, publish
from staging.store.store import Changed
from staging.sync import SyncOptions, SyncResult, sync, turn
from staging.transfer import scheduler
from staging.verify import Level, verify_directory
from staging.vocabulary.digest import CHUNK_SIZE, HashFamily
from staging.vocabulary.errors import (
    Conflict,
    IntegrityError,
    NoSpace,
    NotFound,
    StagingError,
    StoreUnavailable,
    UsageError,
)
from staging.vocabulary.events import Event, FileDone, Moved, Note, Started
from staging.vocabulary.location import MANIFEST_NAME, S3Location
from staging.vocabulary.manifest import Manifest
from tests.support.checkpoints import CountingStore, random_bytes
from tests.support.local_disk import CrashState, FaultyFs, Killed, QuickFs, crash_states

MIB = 1024 * 1024
PROBE = 512
OPTIONS = SyncOptions(memory=256 * MIB, cores=2, concurrency=3, layout_check=False)
ONE_BY_ONE = replace(OPTIONS, cores=1, concurrency=1)
A, B, C = (S3Location("memory", f"models/{name}/") for name in "abc")

SHARED = random_bytes(70_001, 1)
FILES_A = {
    "config.json": random_bytes(900, 2),
    "model.safetensors": SHARED,
    "old.safetensors": random_bytes(5_000, 3),
    "tokenizer/vocab.json": random_bytes(3_000, 4),
    "tokenizer/deep/merges.txt": random_bytes(2_000, 5),
    "turns": random_bytes(100, 6),
    "empty": b"",
}
FILES_B = {
    "config.json": random_bytes(901, 7),
    "model.safetensors": SHARED,
    "new/model-2.safetensors": random_bytes(6_000, 8),
    "tokenizer": random_bytes(1_500, 9),
    "turns/into/directory.json": random_bytes(200, 10),
    "empty": b"",
}
FILES_C = {"config.json": random_bytes(902, 11), "turns": random_bytes(100, 12)}


@pytest.fixture
def store() -> CountingStore:
    return CountingStore()


@pytest.fixture
def dst(tmp_path: Path) -> Path:
    return tmp_path / "dst"


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have threads notice at once that another one failed; for sweeps of hundreds of failures."""
    monkeypatch.setattr(scheduler, "_POLL", 0.002)
    monkeypatch.setattr(turn, "_POLL", 0.002)
    monkeypatch.setattr(turn, "_QUIET", 0.01)


@pytest.fixture(scope="module")
def large() -> dict[str, bytes]:
    """Files around the chunk size; one has three chunks."""
    return {
        "a.safetensors": random_bytes(33 * MIB, 20),
        "b.safetensors": random_bytes(CHUNK_SIZE + 5, 21),
        "config.json": random_bytes(1_000, 22),
    }


def run(
    store: CountingStore,
    location: S3Location,
    dst: Path,
    *,
    fs: Fs | None = None,
    options: SyncOptions = OPTIONS,
    events: list[Event] | None = None,
) -> SyncResult:
    report = (lambda event: None) if events is None else events.append
    return sync(store, location, dst, options, report, fs=fs, rng=random.Random(0))


def fetched(store: CountingStore) -> list[tuple[str, int, int]]:
    """Ranges that were read to be kept: not the few bytes by which a preflight finds out what it may."""
    return [item for item in store.ranges if item[1:] != (0, PROBE)]


def fetched_bytes(store: CountingStore) -> int:
    return sum(length for _, _, length in fetched(store))


def tree(dst: Path) -> dict[str, bytes | None]:
    """Files and directories (None) below a directory, without the control directory."""
    found: dict[str, bytes | None] = {}
    for path in sorted(dst.rglob("*")):
        name = path.relative_to(dst).as_posix()
        if name.split("/")[0] != ".checkpoint":
            found[name] = None if path.is_dir() else path.read_bytes()
    return found


def whole_tree(files: Mapping[str, bytes]) -> dict[str, bytes | None]:
    found: dict[str, bytes | None] = dict(files)
    for path in files:
        for above in Path(path).parents[:-1]:
            found[above.as_posix()] = None
    return found


def control(dst: Path) -> list[str]:
    return sorted(path.name for path in (dst / ".checkpoint").iterdir())


def visible(dst: Path, versions: Mapping[str, Mapping[str, bytes]]) -> str | None:
    """What a reader sees that honours the marker; fails unless that is nothing or a whole version."""
    try:
        marker = Marker.decode((dst / ".checkpoint/ready.json").read_bytes())
    except FileNotFoundError:
        return None
    files = versions[marker.id]
    assert set(marker.files) == set(files)
    assert {path: (dst / path).read_bytes() for path in files} == dict(files)
    return marker.id


def assert_complete(dst: Path, manifest: Manifest, files: Mapping[str, bytes]) -> None:
    assert visible(dst, {manifest.id: files}) == manifest.id
    assert tree(dst) == whole_tree(files)
    assert control(dst) == ["lock", "manifest.json", "ready.json"]
    assert Manifest.decode((dst / ".checkpoint/manifest.json").read_bytes()).id == manifest.id


# --- the straight way ---


def test_a_fresh_directory_gets_every_byte_with_one_range_per_part(
    store: CountingStore, dst: Path, large: dict[str, bytes]
) -> None:
    files = {**large, "empty": b"", "sub/x.txt": b"x"}
    manifest = store.publish(A, files)
    events: list[Event] = []
    result = run(store, A, dst, events=events)
    assert_complete(dst, manifest, files)
    total = sum(map(len, files.values()))
    assert result == SyncResult(
        id=manifest.id,
        files=5,
        total_size=total,
        fetched_files=5,
        fetched_bytes=total,
    )
    assert (store.reads, store.heads) == ([A.manifest_key], [])
    assert sorted(fetched(store)) == [
        ("models/a/a.safetensors", 0, CHUNK_SIZE),
        ("models/a/a.safetensors", CHUNK_SIZE, CHUNK_SIZE),
        ("models/a/a.safetensors", 2 * CHUNK_SIZE, MIB),
        ("models/a/b.safetensors", 0, CHUNK_SIZE),
        ("models/a/b.safetensors", CHUNK_SIZE, 5),
        ("models/a/config.json", 0, 1_000),
        ("models/a/sub/x.txt", 0, 1),
    ]
    assert events[0] == Started("download", total, 5)
    assert sum(event.count for event in events if isinstance(event, Moved)) == total
    assert sorted(event.path for event in events if isinstance(event, FileDone)) == sorted(files)


def test_parts_of_several_chunks_are_one_request(
    store: CountingStore, dst: Path, large: dict[str, bytes]
) -> None:
    manifest = store.publish(A, large)
    options = replace(OPTIONS, part_size=2 * CHUNK_SIZE, concurrency=2)
    run(store, A, dst, options=options)
    assert_complete(dst, manifest, large)
    assert sorted(length for _, _, length in fetched(store)) == [
        1_000,
        MIB,
        CHUNK_SIZE + 5,
        2 * CHUNK_SIZE,
    ]


@pytest.mark.parametrize("family", HashFamily)
def test_both_hash_families(store: CountingStore, dst: Path, family: HashFamily) -> None:
    manifest = store.publish(A, FILES_A, family)
    run(store, A, dst)
    assert_complete(dst, manifest, FILES_A)


def test_again_is_no_request_when_pinned_and_one_when_not(store: CountingStore, dst: Path) -> None:
    manifest = store.publish(A, FILES_A)
    run(store, A, dst)
    before = (dst / ".checkpoint/ready.json").stat()
    store.forget()
    fs = FaultyFs()
    pinned = replace(OPTIONS, expect_id=manifest.id)
    result = run(store, A, dst, options=pinned, fs=fs)
    assert result.already_present
    assert (result.id, result.files) == (manifest.id, len(FILES_A))
    assert store.requests == 0
    assert run(store, A, dst, fs=fs).already_present
    assert (store.reads, store.requests) == ([A.manifest_key], 1)
    assert fs.changes == 0
    after = (dst / ".checkpoint/ready.json").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_another_id_than_the_pinned_one_is_refused(store: CountingStore, dst: Path) -> None:
    store.publish(A, FILES_A)
    options = replace(OPTIONS, expect_id="sha256:" + "0" * 64)
    with pytest.raises(IntegrityError) as caught:
        run(store, A, dst, options=options)
    assert caught.value.reference == "id-mismatch"
    assert not dst.exists()


def test_a_touched_file_is_hashed_not_fetched(store: CountingStore, dst: Path) -> None:
    manifest = store.publish(A, FILES_A)
    run(store, A, dst)
    store.forget()
    os.utime(dst / "config.json", ns=(1, 1))
    result = run(store, A, dst)
    assert (result.already_present, result.fetched_files) == (False, 0)
    assert fetched(store) == []
    assert_complete(dst, manifest, FILES_A)
    assert run(store, A, dst).already_present


def test_a_directory_filled_by_another_tool_is_adopted(
    store: CountingStore, dst: Path, large: dict[str, bytes]
) -> None:
    manifest = store.publish(A, large)
    dst.mkdir()
    for path, data in large.items():
        (dst / path).write_bytes(data)
    result = run(store, A, dst)
    assert (result.kept_files, result.fetched_files) == (3, 0)
    assert fetched(store) == []
    assert_complete(dst, manifest, large)


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b'{"schema": "checkpoint-ready/2"}'])
def test_a_malformed_marker_counts_as_none(store: CountingStore, dst: Path, content: bytes) -> None:
    manifest = store.publish(A, FILES_A)
    run(store, A, dst)
    (dst / ".checkpoint/ready.json").write_bytes(content)
    events: list[Event] = []
    result = run(store, A, dst, events=events)
    assert (result.already_present, result.fetched_files) == (False, 0)
    assert any(isinstance(event, Note) and "marker" in event.text for event in events)
    assert_complete(dst, manifest, FILES_A)


def test_a_marker_without_its_manifest_vouches_for_nothing(store: CountingStore, dst: Path) -> None:
    manifest = store.publish(A, FILES_A)
    run(store, A, dst)
    (dst / ".checkpoint/manifest.json").unlink()
    pinned = replace(OPTIONS, expect_id=manifest.id)
    assert not run(store, A, dst, options=pinned).already_present
    assert_complete(dst, manifest, FILES_A)


def test_files_are_readable_for_other_users_whatever_the_umask(
    store: CountingStore, dst: Path
) -> None:
    store.publish(A, FILES_A)
    before = os.umask(0o077)
    try:
        run(store, A, dst)
    finally:
        os.umask(before)
    assert {
        path.stat().st_mode & 0o777 for path in (dst, *dst.rglob("*")) if path.name != "lock"
    } == {
        0o644,
        0o755,
    }
    assert (dst / "tokenizer/vocab.json").stat().st_mode & 0o777 == 0o644


# --- damage in the store ---


def test_a_flipped_bit_is_named_by_file_and_chunk_and_never_published(
    store: CountingStore, dst: Path, large: dict[str, bytes]
) -> None:
    manifest = store.publish(A, large)
    damaged = bytearray(large["a.safetensors"])
    damaged[CHUNK_SIZE + 77] ^= 4
    store.put(A.prefix + "a.safetensors", bytes(damaged))
    with pytest.raises(IntegrityError) as caught:
        run(store, A, dst, options=ONE_BY_ONE)
    error = caught.value
    assert (error.reference, error.side) == ("chunk-digest", "store")
    assert "'a.safetensors'" in error.message
    assert f"chunk 1 (bytes {CHUNK_SIZE} to {2 * CHUNK_SIZE - 1})" in error.message
    assert "staging verify" in str(error.hint)
    asked = [item for item in store.ranges if item[1] == CHUNK_SIZE and "a.saf" in item[0]]
    assert len(asked) == 3
    assert visible(dst, {}) is None
    assert tree(dst) == {}

    store.put(A.prefix + "a.safetensors", large["a.safetensors"])
    store.forget()
    result = run(store, A, dst)
    assert_complete(dst, manifest, large)
    assert ("models/a/a.safetensors", 0, CHUNK_SIZE) not in store.ranges
    assert result.resumed_bytes >= CHUNK_SIZE


@pytest.mark.usefixtures("impatient")
def test_no_flipped_bit_is_ever_published(store: CountingStore, tmp_path: Path) -> None:
    store.publish(A, FILES_A)
    rng = random.Random(9)
    for number in range(60):
        path = rng.choice([path for path, data in FILES_A.items() if data])
        data = bytearray(FILES_A[path])
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        store.put(A.prefix + path, bytes(data))
        dst = tmp_path / f"dst-{number}"
        with pytest.raises(IntegrityError) as caught:
            run(store, A, dst, fs=QuickFs())
        assert caught.value.reference == "chunk-digest"
        assert f"'{path}'" in caught.value.message
        assert "chunk 0" in caught.value.message
        assert visible(dst, {}) is None
        assert tree(dst) == {}
        store.put(A.prefix + path, FILES_A[path])


def test_bytes_that_are_wrong_once_are_asked_for_again(
    store: CountingStore, dst: Path, large: dict[str, bytes]
) -> None:
    manifest = store.publish(A, large)
    wrong: list[int] = []

    def damage(key: str, offset: int, view: memoryview) -> None:
        if key.endswith("a.safetensors") and len(wrong) < 2:
            wrong.append(offset)
            view[-1] ^= 1

    store.after_range = damage
    run(store, A, dst, options=ONE_BY_ONE)
    assert wrong == [0, 0]
    assert_complete(dst, manifest, large)


def test_missing_and_short_objects_are_listed_before_any_byte(
    store: CountingStore, dst: Path
) -> None:
    store.publish(A, FILES_A)
    store.remove(A.prefix + "old.safetensors")
    store.put(A.prefix + "config.json", FILES_A["config.json"][:-1])
    with pytest.raises(IntegrityError) as caught:
        run(store, A, dst)
    assert caught.value.reference == "object-size"
    assert "899 bytes, the manifest says 900" in caught.value.message
    assert "'old.safetensors'" in "".join(caught.value.__notes__)
    assert fetched(store) == []
    assert not dst.exists()


def test_a_missing_object_is_an_integrity_error(store: CountingStore, dst: Path) -> None:
    store.publish(A, FILES_A)
    store.remove(A.prefix + "config.json")
    with pytest.raises(IntegrityError, match=r"'config\.json'") as caught:
        run(store, A, dst)
    assert (caught.value.reference, caught.value.side) == ("object-missing", "store")


def test_an_object_that_changes_while_it_is_read_is_refused(
    store: CountingStore, dst: Path, large: dict[str, bytes]
) -> None:
    store.publish(A, large)

    def replace(key: str, offset: int) -> None:
        if key.endswith("a.safetensors") and offset == CHUNK_SIZE:
            store.put(key, large["a.safetensors"])  # equal bytes, yet another version

    store.before_range = replace
    with pytest.raises(Changed, match="changed while it was read") as caught:
        run(store, A, dst, options=ONE_BY_ONE)
    assert caught.value.exit_code == 11
    assert visible(dst, {}) is None


def test_a_store_that_goes_away_loses_nothing_that_was_fetched(
    store: CountingStore, dst: Path, large: dict[str, bytes]
) -> None:
    manifest = store.publish(A, large)

    def gone(key: str, offset: int) -> None:
        if len(fetched(store)) > 3:
            raise StoreUnavailable("gone", reference="connection", side="store")

    store.before_range = gone
    with pytest.raises(StoreUnavailable):
        run(store, A, dst, options=ONE_BY_ONE)
    first = fetched(store)[:3]
    store.forget()
    result = run(store, A, dst)
    assert_complete(dst, manifest, large)
    assert not set(first) & set(fetched(store))
    assert fetched_bytes(store) + sum(length for _, _, length in first) == manifest.total_size
    assert result.fetched_bytes == fetched_bytes(store)
    assert result.fetched_bytes + result.resumed_bytes == manifest.total_size


def test_garbage_in_a_partial_file_is_found_and_fetched_again(
    store: CountingStore, dst: Path, large: dict[str, bytes]
) -> None:
    manifest = store.publish(A, large)
    partial = dst / partial_directory(manifest.id) / "a.safetensors"
    partial.parent.mkdir(parents=True)
    damaged = bytearray(large["a.safetensors"])
    damaged[3] ^= 1
    partial.write_bytes(damaged)
    result = run(store, A, dst)
    assert_complete(dst, manifest, large)
    assert result.resumed_bytes == 33 * MIB - CHUNK_SIZE
    assert ("models/a/a.safetensors", 0, CHUNK_SIZE) in store.ranges


@pytest.mark.parametrize("complete", [False, True], ids=["partly", "complete"])
@pytest.mark.parametrize("replaced", [False, True], ids=["gone", "replaced"])
@pytest.mark.usefixtures("impatient")
def test_a_partial_file_that_goes_after_it_was_hashed_is_not_counted_on(
    store: CountingStore, dst: Path, large: dict[str, bytes], complete: bool, replaced: bool
) -> None:
    """Somebody frees a full disk while a resumed download runs: no file of zeros may result.

    What was counted on is looked at again, and found to be missing.
    """
    manifest = store.publish(A, large)
    data = large["b.safetensors"]
    partial = dst / partial_directory(manifest.id) / "b.safetensors"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(data if complete else data[:CHUNK_SIZE] + bytes(5))

    looks: list[Event] = []
    removed: list[str] = []

    def remove(key: str, offset: int) -> None:  # while the file before it is fetched
        if key.endswith("a.safetensors") and offset == 2 * CHUNK_SIZE and not removed:
            removed.append(key)
            partial.unlink()
            if replaced:
                partial.write_bytes(bytes(len(data)))

    store.before_range = remove
    run(store, A, dst, options=ONE_BY_ONE, events=looks)
    assert_complete(dst, manifest, large)
    assert removed
    assert ("models/a/b.safetensors", 0, CHUNK_SIZE) in store.ranges
    assert [event for event in looks if isinstance(event, Note) and "looking again" in event.text]


def test_what_an_interrupted_upgrade_left_is_told_after_a_rollback(
    store: CountingStore, dst: Path
) -> None:
    store.publish(A, FILES_A)
    run(store, A, dst)
    leftover = dst / partial_directory("sha256:" + "0" * 64) / "model.safetensors"
    leftover.parent.mkdir(parents=True)
    leftover.write_bytes(b"x")
    events: list[Event] = []
    assert run(store, A, dst, events=events).already_present
    (note,) = [event for event in events if isinstance(event, Note)]
    assert note.warning
    assert ".checkpoint/partial" in note.text


def test_a_directory_of_the_checkpoint_is_no_foreign_weight(
    store: CountingStore, dst: Path
) -> None:
    files = {**FILES_A, "consolidated/params.json": b"{}"}
    manifest = store.publish(A, files)
    run(store, A, dst)
    assert run(store, A, dst).already_present
    with LocalDirectory(dst) as local:
        outcome = verify_directory(local, manifest, Level.SIZE, memory=256 * MIB, cores=2)
    assert outcome.passed


def test_a_partial_file_with_another_name_is_never_written_to(
    store: CountingStore, dst: Path, tmp_path: Path
) -> None:
    manifest = store.publish(A, FILES_A)
    outside = tmp_path / "outside"
    outside.write_bytes(bytes(900))
    planted = dst / partial_directory(manifest.id) / "config.json"
    planted.parent.mkdir(parents=True)
    os.link(outside, planted)
    run(store, A, dst)
    assert outside.read_bytes() == bytes(900)
    assert_complete(dst, manifest, FILES_A)


# --- another version ---


def test_an_upgrade_keeps_what_is_shared_and_what_is_foreign(
    store: CountingStore, dst: Path
) -> None:
    store.publish(A, FILES_A)
    manifest = store.publish(B, FILES_B)
    run(store, A, dst)
    shared = (dst / "model.safetensors").stat().st_ino
    (dst / "notes.txt").write_bytes(b"mine")
    (dst / "tokenizer.bak").mkdir()
    store.forget()
    result = run(store, B, dst)
    assert tree(dst) == {**whole_tree(FILES_B), "notes.txt": b"mine", "tokenizer.bak": None}
    assert visible(dst, {manifest.id: FILES_B}) == manifest.id
    assert (dst / "model.safetensors").stat().st_ino == shared
    assert "models/b/model.safetensors" not in store.heads
    assert (result.kept_files, result.fetched_files, result.removed_files) == (2, 4, 4)
    store.forget()
    assert run(store, B, dst).already_present


def test_an_upgrade_to_another_hash_family_keeps_equal_bytes(
    store: CountingStore, dst: Path
) -> None:
    store.publish(A, FILES_A)
    manifest = store.publish(B, FILES_A, HashFamily.SHA256)
    run(store, A, dst)
    store.forget()
    assert run(store, B, dst).fetched_files == 0
    assert fetched(store) == []
    assert_complete(dst, manifest, FILES_A)


def test_an_earlier_file_that_somebody_changed_stays(store: CountingStore, dst: Path) -> None:
    store.publish(A, {**FILES_A, "notes.txt": b"ours"})
    store.publish(B, FILES_B)
    run(store, A, dst)
    (dst / "notes.txt").write_bytes(b"edited")
    events: list[Event] = []
    run(store, B, dst, events=events)
    assert tree(dst) == {**whole_tree(FILES_B), "notes.txt": b"edited"}
    assert any(isinstance(event, Note) and "'notes.txt'" in event.text for event in events)


def test_partial_files_of_another_version_go(store: CountingStore, dst: Path) -> None:
    store.publish(A, FILES_A)
    manifest = store.publish(C, FILES_C)

    def gone(key: str, offset: int) -> None:
        if len(fetched(store)) > 2:
            raise StoreUnavailable("gone", reference="connection", side="store")

    store.before_range = gone
    with pytest.raises(StoreUnavailable):
        run(store, A, dst, options=ONE_BY_ONE)
    partials = dst / ".checkpoint/partial"
    assert len(list(partials.iterdir())) == 1
    store.forget()
    during: set[str] = set()

    def look(key: str, offset: int) -> None:
        if fetched(store):
            during.update(path.name for path in partials.iterdir())

    store.before_range = look
    run(store, C, dst)
    assert during <= {Path(partial_directory(manifest.id)).name}  # gone before more is written
    assert_complete(dst, manifest, FILES_C)


@pytest.mark.usefixtures("impatient")
def test_a_third_version_after_a_kill_in_the_middle_of_a_swap(
    store: CountingStore, dst: Path, tmp_path: Path
) -> None:
    store.publish(A, FILES_A)
    store.publish(B, FILES_B)
    manifest = store.publish(C, FILES_C)
    count = _changes(store, B, tmp_path / "count", before=A)
    for kill_at in range(count // 3, count + 1, 2):
        here = tmp_path / f"dst-{kill_at}"
        quickly(store, A, here)
        with pytest.raises(Killed):
            run(store, B, here, fs=FaultyFs(kill_at=kill_at), options=ONE_BY_ONE)
        quickly(store, C, here)
        assert_complete(here, manifest, FILES_C)


# --- what is not ours ---


def test_everything_in_the_way_is_listed_and_nothing_is_fetched_or_left(
    store: CountingStore, dst: Path
) -> None:
    store.publish(A, FILES_A)
    dst.mkdir()
    (dst / "config.json").write_bytes(b"foreign")
    (dst / "tokenizer").write_bytes(b"a file where a directory is needed")
    (dst / "turns").mkdir()
    (dst / "model-00001.safetensors").write_bytes(b"stale weights")
    before = tree(dst)
    with pytest.raises(Conflict) as caught:
        run(store, A, dst)
    error = caught.value
    assert (error.exit_code, error.side) == (15, "local")
    for name in ("config.json", "tokenizer", "turns", "model-00001.safetensors"):
        assert f"'{name}'" in error.message
    assert store.requests == 1
    assert tree(dst) == before
    assert not (dst / ".checkpoint").exists()


def test_many_obstacles_are_counted(store: CountingStore, dst: Path) -> None:
    files = {f"file-{number:02}": random_bytes(10, number) for number in range(12)}
    store.publish(A, files)
    dst.mkdir()
    for path in files:
        (dst / path).write_bytes(b"foreign")
    with pytest.raises(Conflict, match="and 7 more") as caught:
        run(store, A, dst)
    assert caught.value.reference == "foreign-file"


@pytest.mark.parametrize(
    "name",
    ["other.safetensors", "model.safetensors.index.json", "consolidated.00.pth", "b.safetensors"],
)
def test_foreign_weights_are_refused_even_beside_a_complete_version(
    store: CountingStore, dst: Path, name: str
) -> None:
    manifest = store.publish(A, FILES_A)
    run(store, A, dst)
    (dst / name).write_bytes(b"stale")
    for options in (OPTIONS, replace(OPTIONS, expect_id=manifest.id)):
        with pytest.raises(Conflict) as caught:
            run(store, A, dst, options=options)
        assert caught.value.reference == "foreign-weights"
        assert f"'{name}'" in caught.value.message
    (dst / name).unlink()
    assert run(store, A, dst).already_present


def test_a_published_file_that_somebody_edited_is_not_overwritten(
    store: CountingStore, dst: Path
) -> None:
    store.publish(A, FILES_A)
    run(store, A, dst)
    (dst / "config.json").write_bytes(b"edited")
    with pytest.raises(Conflict) as caught:
        run(store, A, dst)
    assert caught.value.reference == "foreign-file"
    assert (dst / "config.json").read_bytes() == b"edited"


@pytest.mark.usefixtures("impatient")
def test_a_file_that_appears_while_fetching_is_not_overwritten(
    store: CountingStore, dst: Path
) -> None:
    first = store.publish(A, FILES_A)
    manifest = store.publish(B, FILES_B)
    run(store, A, dst)
    store.forget()

    def plant(key: str, offset: int) -> None:
        if not fetched(store):
            return
        (dst / "new").mkdir(exist_ok=True)
        (dst / "new/model-2.safetensors").write_bytes(b"foreign")

    store.before_range = plant
    with pytest.raises(Conflict) as caught:
        run(store, B, dst)
    assert caught.value.reference == "foreign-file"
    assert visible(dst, {first.id: FILES_A}) == first.id
    store.forget()
    (dst / "new/model-2.safetensors").unlink()
    assert run(store, B, dst).fetched_bytes == 0
    assert_complete(dst, manifest, FILES_B)


def _plant(link: Path, target: Path) -> None:
    link.parent.mkdir(parents=True, exist_ok=True)
    if link.is_dir() and not link.is_symlink():
        link.rename(link.with_name(link.name + ".moved"))
    elif link.exists():
        link.unlink()
    link.symlink_to(target)


@pytest.mark.parametrize(
    "role",
    [
        "",
        ".checkpoint",
        ".checkpoint/lock",
        ".checkpoint/ready.json",
        ".checkpoint/manifest.json",
        ".checkpoint/partial",
        ".checkpoint/partial/ID",
        ".checkpoint/partial/ID/config.json",
        ".checkpoint/partial/ID/tokenizer",
        ".checkpoint/partial/ID/tokenizer/vocab.json",
        "config.json",
        "tokenizer",
        "tokenizer/vocab.json",
        "stale.safetensors",
    ],
)
@pytest.mark.parametrize("dangling", [True, False])
def test_a_symlink_at_any_role_is_refused(
    store: CountingStore, dst: Path, tmp_path: Path, role: str, dangling: bool
) -> None:
    manifest = store.publish(A, FILES_A)
    outside = tmp_path / "outside"
    if not dangling:
        if Path(role).suffix or role.endswith("lock"):
            outside.write_bytes(b"precious")
        else:
            outside.mkdir()
    _plant(dst / role.replace("ID", manifest.id.replace(":", "-")), outside)
    with pytest.raises(Conflict) as caught:
        run(store, A, dst)
    assert caught.value.reference == (
        "foreign-weights" if role == "stale.safetensors" else "symlink"
    )
    if dangling:
        assert not outside.exists()
    elif outside.is_dir():
        assert list(outside.iterdir()) == []
    else:
        assert outside.read_bytes() == b"precious"


@pytest.mark.parametrize("name", ["manifest.json", "ready.json"])
def test_a_fifo_in_a_document_s_place_does_not_block(
    store: CountingStore, dst: Path, name: str
) -> None:
    store.publish(A, FILES_A)
    (dst / ".checkpoint").mkdir(parents=True)
    os.mkfifo(dst / ".checkpoint" / name)
    with pytest.raises(Conflict, match="not a regular file"):
        run(store, A, dst)


def test_two_processes_do_not_write_to_one_directory(store: CountingStore, dst: Path) -> None:
    manifest = store.publish(A, FILES_A)
    (dst / ".checkpoint").mkdir(parents=True)
    with (dst / ".checkpoint/lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(Conflict) as caught:
            run(store, A, dst, options=replace(OPTIONS, wait=False))
        assert caught.value.reference == "locked"
        assert (dst / ".checkpoint/lock").exists()
    run(store, A, dst)
    assert_complete(dst, manifest, FILES_A)


def test_of_several_at_once_one_writes_and_the_others_say_so(
    store: CountingStore, dst: Path
) -> None:
    manifest = store.publish(A, FILES_A)
    dst.mkdir()

    def attempt(_: int) -> str:
        try:
            run(store, A, dst, options=replace(OPTIONS, wait=False))
        except Conflict as error:
            return error.reference
        return "done"

    with ThreadPoolExecutor(6) as pool:
        outcomes = list(pool.map(attempt, range(6)))
    assert "done" in outcomes
    assert set(outcomes) <= {"done", "locked"}
    assert_complete(dst, manifest, FILES_A)
    assert fetched_bytes(store) == manifest.total_size


# --- the destination ---


def test_the_destination_is_created_but_not_its_parents(store: CountingStore, dst: Path) -> None:
    store.publish(A, FILES_A)
    with pytest.raises(NotFound) as caught:
        run(store, A, dst / "deeper")
    assert (caught.value.reference, caught.value.side) == ("destination", "local")
    assert not dst.exists()


def test_a_file_as_the_destination_is_a_conflict(store: CountingStore, dst: Path) -> None:
    store.publish(A, FILES_A)
    dst.write_bytes(b"file")
    with pytest.raises(Conflict) as caught:
        run(store, A, dst)
    assert caught.value.reference == "destination"


def test_impossible_options_are_refused_before_the_disk_is_touched(
    store: CountingStore, dst: Path
) -> None:
    store.publish(A, FILES_A)
    with pytest.raises(UsageError):
        run(store, A, dst, options=SyncOptions(memory=MIB, cores=1))
    assert not dst.exists()


class SmallDisk(Fs):
    def __init__(self, free: int | None) -> None:
        self._free = free

    def free_bytes(self, fd: int) -> int | None:
        return self._free


def test_space_is_checked_before_any_byte_is_fetched(store: CountingStore, dst: Path) -> None:
    store.publish(A, FILES_A)
    with pytest.raises(NoSpace) as caught:
        run(store, A, dst, fs=SmallDisk(8 * MIB))
    assert (caught.value.exit_code, caught.value.reference) == (14, "no-space")
    assert "8.49 MB more, 8.38 MB are free" in caught.value.message
    assert fetched(store) == []
    assert run(store, A, dst, fs=SmallDisk(9 * MIB)).fetched_files == len(FILES_A)
    assert run(store, A, dst, fs=SmallDisk(0)).already_present


def test_a_filesystem_that_does_not_tell_its_space_is_no_obstacle(
    store: CountingStore, dst: Path
) -> None:
    store.publish(A, FILES_A)
    assert run(store, A, dst, fs=SmallDisk(None)).fetched_files == len(FILES_A)


def test_space_of_partial_files_counts_as_there(
    store: CountingStore, dst: Path, large: dict[str, bytes]
) -> None:
    store.publish(A, large)

    def gone(key: str, offset: int) -> None:
        if offset:
            raise StoreUnavailable("gone", reference="connection", side="store")

    store.before_range = gone
    with pytest.raises(StoreUnavailable):
        run(store, A, dst, options=ONE_BY_ONE)
    store.forget()
    run(store, A, dst, fs=SmallDisk(26 * MIB))  # 33 MiB are preallocated already


# --- kills, errors and power losses, everywhere ---


def quickly(store: CountingStore, location: S3Location, dst: Path) -> SyncResult:
    return run(store, location, dst, fs=QuickFs(), options=ONE_BY_ONE)


def _changes(
    store: CountingStore, location: S3Location, dst: Path, *, before: S3Location | None
) -> int:
    if before is not None:
        quickly(store, before, dst)
    fs = FaultyFs()
    run(store, location, dst, fs=fs, options=ONE_BY_ONE)
    return fs.changes


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("before", [None, A], ids=["fresh", "upgrade"])
def test_a_kill_at_any_change_shows_nothing_or_a_version_and_converges(
    store: CountingStore, tmp_path: Path, before: S3Location | None
) -> None:
    first = store.publish(A, FILES_A)
    manifest = store.publish(B, FILES_B)
    versions = {first.id: FILES_A, manifest.id: FILES_B}
    seen = set()
    count = _changes(store, B, tmp_path / "count", before=before)
    needed = fetched_bytes(store) if before is None else manifest.total_size - len(SHARED)
    assert count > 60
    for kill_at in range(1, count + 1):
        dst = tmp_path / f"dst-{kill_at}"
        if before is not None:
            quickly(store, before, dst)
        store.forget()
        with pytest.raises(Killed):
            run(store, B, dst, fs=FaultyFs(kill_at=kill_at), options=ONE_BY_ONE)
        seen.add(visible(dst, versions))
        quickly(store, B, dst)
        assert_complete(dst, manifest, FILES_B)
        in_flight = max((length for _, _, length in fetched(store)), default=0)
        assert needed <= fetched_bytes(store) <= needed + in_flight
    assert seen == {None, manifest.id} if before is None else {None, first.id, manifest.id}


@pytest.mark.usefixtures("impatient")
def test_a_kill_during_recovery_from_a_kill_converges(store: CountingStore, tmp_path: Path) -> None:
    first = store.publish(A, FILES_A)
    manifest = store.publish(B, FILES_B)
    versions = {first.id: FILES_A, manifest.id: FILES_B}
    count = _changes(store, B, tmp_path / "count", before=A)
    rng = random.Random(5)
    for number in range(20):
        dst = tmp_path / f"dst-{number}"
        quickly(store, A, dst)
        for _ in range(3):
            fs = FaultyFs(kill_at=rng.randint(count // 3, count))
            try:
                run(store, B, dst, fs=fs, options=ONE_BY_ONE)
            except Killed:
                visible(dst, versions)
        quickly(store, B, dst)
        assert_complete(dst, manifest, FILES_B)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    ("before", "code"), [(None, errno.ENOSPC), (A, errno.EIO)], ids=["fresh", "upgrade"]
)
def test_an_error_at_any_change_is_typed_and_publishes_nothing(
    store: CountingStore, tmp_path: Path, code: int, before: S3Location | None
) -> None:
    first = store.publish(A, FILES_A)
    manifest = store.publish(B, FILES_B)
    count = _changes(store, B, tmp_path / "count", before=before)
    failed = set()
    for fail_at in range(1, count + 1):
        dst = tmp_path / f"dst-{fail_at}"
        if before is not None:
            quickly(store, before, dst)
        fs = FaultyFs(fail_at=fail_at, error=code)
        with pytest.raises(StagingError) as caught:
            run(store, B, dst, fs=fs, options=ONE_BY_ONE)
        failed.add(fs.failed)
        assert (type(caught.value), caught.value.reference) == (
            (NoSpace, "no-space") if code == errno.ENOSPC else (StagingError, "local-io")
        )
        assert visible(dst, {first.id: FILES_A}) in ({first.id, None} if before else {None})
        if fs.failed != "unlink" and (dst / ".checkpoint").exists():
            assert [name for name in control(dst) if name.endswith(".tmp")] == []
        quickly(store, B, dst)
        assert_complete(dst, manifest, FILES_B)
    expected = {"create", "mkdir", "write", "chmod", "fsync", "close", "rename"}
    assert failed >= expected | {"unlink", "rmdir"}


@pytest.mark.parametrize("what", ["fsync", "close"])
def test_a_file_whose_fsync_or_close_failed_is_never_used_again(
    store: CountingStore, dst: Path, what: str
) -> None:
    manifest = store.publish(A, {"config.json": FILES_A["config.json"]})
    partial = dst / partial_directory(manifest.id) / "config.json"

    class FailsOnce(FaultyFs):
        def _change(self, name, call, torn=None):  # type: ignore[no-untyped-def]
            if name == what and partial.exists() and self.failed is None:
                self._fail_at = self.changes + 1
            return super()._change(name, call, torn)

    with pytest.raises(StagingError) as caught:
        run(store, A, dst, fs=FailsOnce(), options=ONE_BY_ONE)
    assert caught.value.reference == "local-io"
    assert not partial.exists()
    store.forget()
    assert run(store, A, dst).fetched_bytes == 900


def test_a_read_only_destination_has_a_reference_of_its_own(
    store: CountingStore, dst: Path
) -> None:
    store.publish(A, FILES_A)
    dst.mkdir()
    with pytest.raises(StagingError) as caught:
        run(store, A, dst, fs=FaultyFs(fail_at=1, error=errno.EROFS))
    assert (caught.value.exit_code, caught.value.reference) == (1, "local-permission")


def _traced(store: CountingStore, dst: Path) -> tuple[FaultyFs, dict[str, Mapping[str, bytes]]]:
    first = store.publish(A, FILES_A)
    second = store.publish(B, FILES_B)
    dst.mkdir()
    fs = FaultyFs(root=str(dst))
    run(store, A, dst, fs=fs, options=ONE_BY_ONE)
    run(store, B, dst, fs=fs, options=ONE_BY_ONE)
    return fs, {first.id: FILES_A, second.id: FILES_B}


@functools.cache
def _id_of(manifest: bytes) -> str:
    return Manifest.decode(manifest).id


def _is_sound(state: CrashState, versions: Mapping[str, Mapping[str, bytes]]) -> str | bool:
    """True for nothing, the id of a whole version, False for anything else.

    Anything else is also a member that no manifest accounts for: the next run would call it foreign.
    """
    known: set[tuple[str, bytes]] = set()
    for name in (MANIFEST_NAME, *map(begun_name, versions)):
        data = state.read(name)
        if data is not None:
            try:
                known.update(versions[_id_of(data)].items())
            except StagingError:
                return False
    for path in {path for files in versions.values() for path in files}:
        data = None if state.is_directory(path) else state.read(path)
        if data is not None and (path, data) not in known:
            return False
    data = state.read(READY_NAME)
    if data is None:
        return True
    try:
        marker = Marker.decode(data)
    except StagingError:
        return False
    manifest = state.read(MANIFEST_NAME)
    if manifest is None or _id_of(manifest) != marker.id:
        return False
    files = versions[marker.id]
    return marker.id if all(state.read(path) == data for path, data in files.items()) else False


def test_a_power_loss_behind_any_change_leaves_nothing_or_a_version(
    store: CountingStore, dst: Path
) -> None:
    fs, versions = _traced(store, dst)
    seen = {_is_sound(state, versions) for state in crash_states(fs.trace, random.Random(1), 60)}
    assert seen == {True, *versions}


def test_a_power_loss_after_success_takes_nothing_away(store: CountingStore, dst: Path) -> None:
    fs, versions = _traced(store, dst)
    *_, nothing_more, everything = crash_states(fs.trace, random.Random(2), 0)
    newest = list(versions)[1]
    assert _is_sound(nothing_more, versions) == newest
    assert _is_sound(everything, versions) == newest


@pytest.mark.parametrize("kind", ["fsync-file", "fsync-dir"])
def test_the_power_loss_model_notices_when_fsyncs_are_left_out(
    store: CountingStore, dst: Path, kind: str
) -> None:
    fs, versions = _traced(store, dst)
    trace = [op for op in fs.trace if op.kind != kind]
    assert False in {
        _is_sound(state, versions) for state in crash_states(trace, random.Random(1), 60)
    }


def test_the_marker_s_removal_is_durable_before_anything_moves(
    store: CountingStore, dst: Path
) -> None:
    fs, versions = _traced(store, dst)
    removed = next(
        index for index, op in enumerate(fs.trace) if (op.kind, op.name) == ("unlink", "ready.json")
    )
    synced = next(
        index for index in range(removed, len(fs.trace)) if fs.trace[index].kind == "fsync-dir"
    )
    trace = fs.trace[:synced] + fs.trace[synced + 1 :]
    assert False in {
        _is_sound(state, versions) for state in crash_states(trace, random.Random(1), 60)
    }


# --- the pod's image ---


def test_nothing_here_imports_an_sdk() -> None:
    code = (
        "import sys, staging.sync, staging.directory.local\n"
        "heavy = {'boto3', 'botocore', 'awscrt', 's3transfer', 'staging.vocabulary.crc64'}\n"
        "found = heavy & set(sys.modules)\n"
        "sys.exit(', '.join(sorted(found)) or 0)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_version_that_another_process_published_is_not_taken_down(
    store: CountingStore, dst: Path
) -> None:
    """Without locks: all its files lay there when it was planned, and nothing has to be fetched."""
    manifest = store.publish(A, FILES_A)
    run(store, A, dst)
    with LocalDirectory(dst, fs=QuickFs()) as local:
        marker = local.read_marker()
        assert marker is not None
        late = Publication(manifest=manifest, kept=marker.files, placed={}, outgoing={})
        before = (dst / READY_NAME).stat()
        with pytest.raises(Conflict) as caught:
            publish(local, late)
        assert caught.value.reference == "changed-locally"
        assert (dst / READY_NAME).stat().st_ino == before.st_ino
        (dst / MANIFEST_NAME).unlink()
        publish(local, late)  # nobody published: without its manifest it is nothing
    assert (dst / MANIFEST_NAME).read_bytes() == manifest.encode()
