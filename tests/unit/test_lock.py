"""Several processes and one directory: waiting, adopting, and locks that lie (I1, I5, I6).

Without working locks several threads write to one directory at once, while a reader looks on.
"""

from __future__ import annotations

import errno
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from staging.directory.fs import Fs
from staging.directory.holder import INTERVAL, SIZE, Beacon, Holder
from staging.directory.local import LocalDirectory
from staging.directory.marker import Marker
from staging.store.memory import MemoryStore
from staging.sync import SyncOptions, SyncResult, present, sync, turn
from staging.transfer import scheduler
from staging.vocabulary.digest import CHUNK_SIZE
from staging.vocabulary.errors import Conflict, Interrupted, StagingError, StoreUnavailable
from staging.vocabulary.events import Event, Moved, Note, Started, Waiting, silent
from staging.vocabulary.location import S3Location
from tests.support.checkpoints import CountingStore, random_bytes
from tests.support.local_disk import FaultyFs, Killed, QuickFs

MIB = 1024 * 1024
PROBE = 512
OPTIONS = SyncOptions(memory=256 * MIB, cores=2, concurrency=3, layout_check=False, holder="pod-1")
A, B = (S3Location("memory", f"models/{name}/") for name in "ab")
FILES = {
    "config.json": random_bytes(900, 2),
    "model.safetensors": random_bytes(70_001, 1),
    "deep/er/vocab.json": random_bytes(3_000, 4),
    "empty": b"",
}
OTHERS = {
    "config.json": random_bytes(901, 5),
    "model.safetensors": FILES["model.safetensors"],
    "deep": random_bytes(77, 6),
}


@pytest.fixture
def store() -> CountingStore:
    return CountingStore()


@pytest.fixture
def dst(tmp_path: Path) -> Path:
    return tmp_path / "dst"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "_POLL", 0.002)
    monkeypatch.setattr(turn, "_POLL", 0.002)
    monkeypatch.setattr(turn, "_TELL", 0.004)
    monkeypatch.setattr(turn, "_QUIET", 0.02)


def run(
    store: MemoryStore,
    dst: Path,
    *,
    location: S3Location = A,
    fs: Fs | None = None,
    options: SyncOptions = OPTIONS,
    events: list[Event] | None = None,
) -> SyncResult:
    report = silent if events is None else events.append
    return sync(store, location, dst, options, report, fs=fs or QuickFs(), rng=random.Random())


def fetched_bytes(store: CountingStore) -> int:
    return sum(length for _, _, length in store.ranges if length != PROBE)


def visible(dst: Path, versions: dict[str, dict[str, bytes]]) -> str | None:
    """The version that a reader sees who honours the marker, which is whole."""
    try:
        marker = Marker.decode((dst / ".checkpoint/ready.json").read_bytes())
    except FileNotFoundError:
        return None
    assert {path: (dst / path).read_bytes() for path in marker.files} == versions[marker.id]
    return marker.id


# --- the line of the holder ---


def test_a_line_is_read_as_it_was_written() -> None:
    holder = Holder("pod/é\n" + "x" * 200, "0" * 16, 7, 10**15, None)
    line = holder.encode()
    assert len(line) == SIZE
    assert Holder.decode(line) == replace(holder, name="pod/?\n" + "x" * 200)
    assert Holder.decode(replace(holder, total=10**15).encode()) is not None


@pytest.mark.parametrize(
    "line",
    [b"", b" " * SIZE, b"{}", b"\xff", b"[1]", Holder("a", "b").encode()[:40]]
    + [
        Holder("a", "b").encode().replace(b'"beat": 0', b'"beat": %b' % value)
        for value in (b'"0"', b"true")
    ],
)
def test_anything_else_is_no_holder(line: bytes) -> None:
    assert Holder.decode(line) is None


def test_a_line_is_written_rarely_and_only_while_the_work_moves() -> None:
    lines: list[Holder | None] = []
    seen: list[Event] = []
    now = [0.0]
    beacon = Beacon(
        lambda line: lines.append(Holder.decode(line)), "x" * 500, seen.append, lambda: now[0]
    )
    events: list[Event] = [
        Started("check", 70, 2),
        *[Moved(1)] * 50,
        Note("x"),
        Waiting("y", 0, None, 1),
    ]
    for event in events:
        beacon(event)
    assert (lines, seen) == ([], events)
    now[0] = INTERVAL
    beacon(Note("nothing moved"))
    beacon(Moved(3))
    beacon(Moved(3))
    assert [(line.beat, line.done, line.total) for line in lines if line] == [(1, 53, 70)]
    beacon.end()
    assert lines[-1] is None


def test_nothing_is_said_after_the_end() -> None:
    lines: list[bytes] = []
    beacon = Beacon(lines.append, "x", silent)
    beacon.end()
    beacon.tell()
    assert lines == [b" " * (SIZE - 1) + b"\n"]


def test_a_lock_that_was_let_go_writes_into_no_other_file(dst: Path, tmp_path: Path) -> None:
    """A thread that was left behind ends late, when the descriptor's number may be another file's."""
    dst.mkdir()
    with LocalDirectory(dst, fs=Fs()) as local:
        with local.locked() as lock:
            lock.say(b"mine")
        others = [(tmp_path / f"other-{number}").open("w+b") for number in range(8)]
        try:
            lock.say(b"late")
            assert lock.holder() is None
            assert [file.read() for file in others] == [b""] * 8
        finally:
            for file in others:
                file.close()


def test_a_directory_that_goes_before_it_is_entered_is_made_again(dst: Path) -> None:
    """A run that leaves no trace removes it, while another one has just made it."""

    class Vanishing(QuickFs):
        left = 3

        def mkdir(self, name: str, *, dir_fd: int | None = None) -> None:
            super().mkdir(name, dir_fd=dir_fd)
            if name == ".checkpoint" and self.left:
                self.left -= 1
                self.rmdir(name, dir_fd=dir_fd if dir_fd is not None else -1)

    dst.mkdir()
    fs = Vanishing()
    with LocalDirectory(dst, fs=fs) as local, local.locked():
        assert fs.left == 0
        assert (dst / ".checkpoint/lock").exists()


# --- waiting ---


@contextmanager
def locked(dst: Path, line: bytes = b"") -> Iterator[None]:
    dst.mkdir()
    with LocalDirectory(dst) as local, local.locked() as lock:
        lock.say(line)
        yield


def test_who_waits_tells_for_whom_and_adopts_what_was_made(store: CountingStore, dst: Path) -> None:
    manifest = store.publish(A, FILES)
    at_work, waiting = threading.Event(), threading.Event()
    events: list[Event] = []

    def report(event: Event) -> None:
        events.append(event)
        if isinstance(event, Waiting) and event.holder == "pod-1":
            waiting.set()

    def slowly(key: str, offset: int) -> None:
        if (dst / ".checkpoint/lock").exists() and not at_work.is_set():
            at_work.set()
            assert waiting.wait(30)

    store.before_range = slowly
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(run, store, dst)
        assert at_work.wait(30)
        second = pool.submit(
            sync, store, A, dst, replace(OPTIONS, holder="pod-2"), report, fs=QuickFs()
        )
        assert first.result().fetched_bytes == manifest.total_size
        assert not first.result().adopted
        result = second.result()
    assert (result.adopted, result.already_present, result.fetched_bytes) == (True, True, 0)
    assert fetched_bytes(store) == manifest.total_size
    assert [event for event in events if isinstance(event, Started)] == []


@pytest.mark.parametrize("count", [8])
def test_of_many_one_downloads_and_the_others_adopt(
    store: CountingStore, dst: Path, count: int
) -> None:
    manifest = store.publish(A, FILES)
    with ThreadPoolExecutor(count) as pool:
        results = list(pool.map(lambda _: run(store, dst), range(count)))
    assert [result.already_present for result in results].count(False) == 1
    assert fetched_bytes(store) == manifest.total_size
    assert visible(dst, {manifest.id: FILES}) == manifest.id
    assert sorted(path.name for path in (dst / ".checkpoint").iterdir()) == [
        "lock",
        "manifest.json",
        "ready.json",
    ]


def test_a_holder_that_fails_hands_the_work_to_the_next(store: CountingStore, dst: Path) -> None:
    manifest = store.publish(A, FILES)
    failed: list[str] = []

    def once(key: str, offset: int) -> None:
        if (dst / ".checkpoint/lock").exists() and not failed:
            failed.append(key)
            raise StoreUnavailable("gone", reference="connection", side="store")

    store.before_range = once

    def attempt(_: int) -> str:
        try:
            return "adopted" if run(store, dst).already_present else "worked"
        except StoreUnavailable:
            return "failed"

    with ThreadPoolExecutor(4) as pool:
        outcomes = sorted(pool.map(attempt, range(4)))
    assert outcomes == ["adopted", "adopted", "failed", "worked"]
    assert visible(dst, {manifest.id: FILES}) == manifest.id


def test_a_wait_ends_with_a_signal(store: CountingStore, dst: Path) -> None:
    store.publish(A, FILES)

    def stop(number: int, frame: object) -> None:
        raise Interrupted("stopped", signal_number=number)

    before = signal.signal(signal.SIGALRM, stop)
    try:
        with locked(dst):
            signal.setitimer(signal.ITIMER_REAL, 0.3)
            with pytest.raises(Interrupted):
                run(store, dst)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert not (dst / ".checkpoint/ready.json").exists()


def test_without_waiting_it_is_a_conflict_that_names_the_holder(
    store: CountingStore, dst: Path
) -> None:
    store.publish(A, FILES)
    with locked(dst, Holder("pod-9", "1").encode()), pytest.raises(Conflict) as caught:
        run(store, dst, options=replace(OPTIONS, wait=False))
    assert (caught.value.reference, caught.value.exit_code) == ("locked", 15)
    assert "(pod-9)" in caught.value.message


class Ended(Exception):
    pass


def test_a_holder_that_does_not_move_is_told_once(
    store: CountingStore, dst: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turn, "_STUCK", 0.01)
    store.publish(A, FILES)
    notes: list[str] = []
    later = [0]

    def report(event: Event) -> None:
        if isinstance(event, Note):
            assert event.warning
            notes.append(event.text)
        elif isinstance(event, Waiting) and notes:
            assert (event.holder, event.done, event.total) == ("pod-9", 5, 70)
            later[0] += 1
            if later[0] == 5:
                raise Ended

    with locked(dst, Holder("pod-9", "1", 3, 5, 70).encode()), pytest.raises(Ended):
        sync(store, A, dst, OPTIONS, report)
    assert len(notes) == 1
    assert "pod-9 has the lock and has told of no progress for" in notes[0]


# --- no locks, and locks that lie ---


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_filesystem_without_locks_is_a_warning(
    store: CountingStore, dst: Path, number: int
) -> None:
    class NoLocks(QuickFs):
        def lock(self, fd: int) -> bool:
            raise OSError(number, os.strerror(number))

    manifest = store.publish(A, FILES)
    events: list[Event] = []
    run(store, dst, fs=NoLocks(), events=events)
    (note,) = [event for event in events if isinstance(event, Note)]
    assert note.warning
    assert "has no locks" in note.text
    assert visible(dst, {manifest.id: FILES}) == manifest.id


def test_another_error_of_the_lock_is_an_error(store: CountingStore, dst: Path) -> None:
    class Broken(QuickFs):
        def lock(self, fd: int) -> bool:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    store.publish(A, FILES)
    with pytest.raises(StagingError) as caught:
        run(store, dst, fs=Broken())
    assert caught.value.reference == "local-io"


class Lying(QuickFs):
    """Everybody gets the lock who asks for it."""

    def lock(self, fd: int) -> bool:
        return True


class LyingFaultyFs(FaultyFs):
    def lock(self, fd: int) -> bool:
        return True


@contextmanager
def reader(dst: Path, versions: dict[str, dict[str, bytes]]) -> Iterator[None]:
    """Somebody who honours the marker and looks all the time; fails when that was ever wrong."""
    ended = threading.Event()
    wrong: list[BaseException] = []

    def look() -> None:
        try:
            while not ended.is_set():
                visible(dst, versions)
                time.sleep(0.001)
        except BaseException as error:
            wrong.append(error)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    assert wrong == []


def shaken(store: CountingStore, seed: int) -> None:
    rng = random.Random(seed)
    pauses = [rng.random() / 100 for _ in range(300)]
    store.before_range = lambda key, offset: time.sleep(pauses.pop() if pauses else 0)


@pytest.mark.parametrize("seed", range(10))
def test_without_locks_several_end_in_the_same_right_bytes(
    store: CountingStore, dst: Path, seed: int
) -> None:
    manifest = store.publish(A, FILES)
    versions = {manifest.id: FILES}
    shaken(store, seed)
    with reader(dst, versions), ThreadPoolExecutor(5) as pool:
        results = list(pool.map(lambda _: run(store, dst, fs=Lying()), range(5)))
    assert {result.id for result in results} == {manifest.id}
    assert visible(dst, versions) in (manifest.id, None)
    assert not (dst / ".checkpoint/partial").exists()
    run(store, dst)
    assert visible(dst, versions) == manifest.id
    assert present(dst, manifest.id) is not None


@pytest.mark.parametrize("seed", range(3))
def test_without_locks_files_of_several_chunks_are_right_too(
    store: CountingStore, dst: Path, seed: int
) -> None:
    files = {**FILES, "a.safetensors": random_bytes(2 * CHUNK_SIZE + 77, 8)}
    manifest = store.publish(A, files)
    shaken(store, seed)
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda _: run(store, dst, fs=Lying()), range(3)))
    run(store, dst)
    assert visible(dst, {manifest.id: files}) == manifest.id


@pytest.mark.parametrize("seed", range(16))
def test_without_locks_a_kill_of_one_does_not_mislead_the_others(
    store: CountingStore, dst: Path, seed: int
) -> None:
    manifest = store.publish(A, FILES)
    versions = {manifest.id: FILES}
    shaken(store, seed)
    kill_at = random.Random(seed).randrange(1, 60)

    def victim() -> None:
        with suppress(Killed):
            run(store, dst, fs=LyingFaultyFs(kill_at=kill_at))

    with reader(dst, versions), ThreadPoolExecutor(4) as pool:
        ended = pool.submit(victim)
        others = [pool.submit(run, store, dst, fs=Lying()) for _ in range(2)]
        ended.result()
        for other in others:
            assert other.result().id == manifest.id
    run(store, dst)
    assert visible(dst, versions) == manifest.id


@pytest.mark.parametrize("seed", range(8))
def test_without_locks_two_versions_never_pass_for_each_other(
    store: CountingStore, dst: Path, seed: int
) -> None:
    """Who loses may be refused; what is marked at the end is whole, and a next run converges."""
    first = store.publish(A, FILES)
    second = store.publish(B, OTHERS)
    versions = {first.id: FILES, second.id: OTHERS}
    shaken(store, seed)

    def one(location: S3Location) -> str:
        try:
            return run(store, dst, location=location, fs=Lying()).id
        except Conflict as error:
            return error.reference

    with ThreadPoolExecutor(4) as pool:
        outcomes = set(pool.map(one, [A, B, A, B]))
    assert outcomes <= {first.id, second.id, "foreign-file", "changed-locally", "foreign-weights"}
    visible(dst, versions)
