"""Fetching: order, requests, memory and system calls (I1, I7, I11, I15); its outcomes are in `test_sync`."""

from __future__ import annotations

import errno
import os
import random
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from staging.directory.entry import Stamp
from staging.directory.fs import Fs
from staging.directory.names import partial_directory
from staging.directory.page_cache import PageCacheChoice
from staging.directory.partial import PIECE, PartialFile
from staging.directory.tree import Tree
from staging.sync.fetch import Fetching
from staging.sync.pins import pin
from staging.sync.plan import Fetch
from staging.transfer.sizing import Sizing
from staging.vocabulary.digest import CHUNK_SIZE, chunk_count
from staging.vocabulary.errors import IntegrityError, NoSpace, StagingError, StoreUnavailable
from staging.vocabulary.events import Event, FileDone, Moved, Started
from staging.vocabulary.location import S3Location
from staging.vocabulary.manifest import Manifest
from tests.support.checkpoints import CountingStore, random_bytes

MIB = 1024 * 1024
HERE = S3Location("memory", "models/a/")
THREE = Sizing(part_size=CHUNK_SIZE, concurrency=3, connections=3)
ONE = Sizing(part_size=CHUNK_SIZE, concurrency=1, connections=1)


class CountingFs(Fs):
    """The real file system, and how often each of its calls was made."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if callable(found) and not name.startswith("_"):
            super().__getattribute__("calls")[name] += 1
        return found


@pytest.fixture
def store() -> CountingStore:
    return CountingStore()


@pytest.fixture
def dst(tmp_path: Path) -> Path:
    (tmp_path / "dst").mkdir()
    return tmp_path / "dst"


@pytest.fixture(scope="module")
def large() -> dict[str, bytes]:
    """Files around the chunk size; one has three chunks."""
    return {
        "a.json": random_bytes(1_000, 1),
        "b.safetensors": random_bytes(CHUNK_SIZE + 5, 2),
        "c.safetensors": random_bytes(33 * MIB, 3),
        "d/empty": b"",
    }


def fetch(
    store: CountingStore,
    dst: Path,
    manifest: Manifest,
    *,
    sizing: Sizing = THREE,
    fs: Fs | None = None,
    etags: Mapping[str, str] | None = None,
    page_cache: PageCacheChoice = "auto",
    report: Callable[[Event], None] = lambda event: None,
    paths: Sequence[str] = (),
) -> dict[str, Stamp]:
    """Fetch all of a manifest, or `paths`, into a directory that has nothing of it."""
    actions = [
        Fetch(file, tuple(range(chunk_count(file.size))))
        for file in manifest.files
        if not paths or file.path in paths
    ]
    if etags is None:
        etags = pin(store, HERE, manifest.files, concurrency=3).etags
    tree = Tree.open(dst, fs=fs or Fs())
    try:
        return Fetching(
            store,
            HERE,
            tree,
            manifest,
            sizing,
            etags=etags,
            page_cache=page_cache,
            report=report,
            rng=random.Random(0),
        ).run(actions)
    finally:
        tree.close()


def partials(dst: Path, manifest: Manifest) -> dict[str, bytes]:
    top = dst / partial_directory(manifest.id)
    return {
        path.relative_to(top).as_posix(): path.read_bytes()
        for path in top.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("page_cache", ["keep", "drop", "auto"])
def test_every_byte_arrives_whatever_becomes_of_the_pages(
    store: CountingStore, dst: Path, large: dict[str, bytes], page_cache: PageCacheChoice
) -> None:
    manifest = store.publish(HERE, large)
    events: list[Event] = []
    stamps = fetch(store, dst, manifest, page_cache=page_cache, report=events.append)
    assert partials(dst, manifest) == large
    top = dst / partial_directory(manifest.id)
    assert stamps == {path: Stamp.of((top / path).stat()) for path in large}
    total = sum(map(len, large.values()))
    assert events[0] == Started("download", total, 4)
    assert sum(event.count for event in events if isinstance(event, Moved)) == total
    assert {event.path for event in events if isinstance(event, FileDone)} == set(large)
    assert store.heads == []


def test_large_files_come_first(store: CountingStore, dst: Path, large: dict[str, bytes]) -> None:
    manifest = store.publish(HERE, large)
    fetch(store, dst, manifest, sizing=ONE)
    assert [(key.removeprefix(HERE.prefix), offset) for key, offset, _ in store.ranges] == [
        ("c.safetensors", 0),
        ("c.safetensors", CHUNK_SIZE),
        ("c.safetensors", 2 * CHUNK_SIZE),
        ("b.safetensors", 0),
        ("b.safetensors", CHUNK_SIZE),
        ("a.json", 0),
    ]


def test_only_what_is_not_pinned_is_pinned(
    store: CountingStore, dst: Path, large: dict[str, bytes]
) -> None:
    manifest = store.publish(HERE, large)
    etags = dict(pin(store, HERE, manifest.files, concurrency=3).etags)
    old = etags.pop("a.json")
    store.put(HERE.prefix + "b.safetensors", large["b.safetensors"])  # equal bytes, another version
    with pytest.raises(IntegrityError) as caught:
        fetch(store, dst, manifest, etags=etags)
    assert caught.value.reference == "changed"  # the given pin counted
    assert fetch(store, dst, manifest, etags={"a.json": old}, paths=["a.json"])
    assert fetch(store, dst, manifest, etags={}, paths=["b.safetensors"])


def test_what_cannot_be_pinned_ends_it_before_any_range(
    store: CountingStore, dst: Path, large: dict[str, bytes]
) -> None:
    manifest = store.publish(HERE, large)
    store.remove(HERE.prefix + "a.json")
    with pytest.raises(IntegrityError) as caught:
        fetch(store, dst, manifest, etags={})
    assert caught.value.reference == "object-missing"
    assert store.ranges == []


class InFlight:
    """Bytes of ranges that were asked for and whose threads have not asked for another."""

    def __init__(self, store: CountingStore) -> None:
        self._lock = threading.Lock()
        self._by_thread: dict[int, int] = {}
        self.bytes = self.requests = 0
        self._lengths = lambda: store.ranges
        store.before_range = self._before
        store.after_range = self._after

    def _before(self, key: str, offset: int) -> None:
        with self._lock:
            length = next(
                entry[2] for entry in reversed(self._lengths()) if entry[:2] == (key, offset)
            )
            self._by_thread[threading.get_ident()] = length
            self.bytes = max(self.bytes, sum(self._by_thread.values()))
            self.requests = max(self.requests, len(self._by_thread))

    def _after(self, key: str, offset: int, view: memoryview) -> None:
        with self._lock:
            del self._by_thread[threading.get_ident()]


def test_memory_bounds_parts_and_connections_bound_small_files(
    store: CountingStore, dst: Path, large: dict[str, bytes]
) -> None:
    small = {f"small/{number:03d}": random_bytes(2_000, number) for number in range(60)}
    manifest = store.publish(HERE, {**large, **small})
    sizing = Sizing(part_size=CHUNK_SIZE, concurrency=2, connections=7)
    flight = InFlight(store)
    together = threading.Barrier(7)
    inner = store.before_range

    def meet(key: str, offset: int) -> None:
        inner(key, offset)
        if key.startswith(HERE.prefix + "small/00"):
            number = int(key[-3:])
            if number < 7:
                together.wait(30)  # broken unless seven are under way at once

    store.before_range = meet
    fetch(store, dst, manifest, sizing=sizing)
    assert partials(dst, manifest) == {**large, **small}
    assert flight.requests == 7
    assert flight.bytes <= 2 * CHUNK_SIZE


def test_a_file_of_one_part_costs_six_calls(store: CountingStore, dst: Path) -> None:
    """Beside what its directory costs once: no walk down to it, nothing reserved, nothing looked at."""

    def calls(count: int) -> Counter[str]:
        directory = dst / str(count)
        directory.mkdir()
        files = {f"tokenizer/{number:03d}": random_bytes(500, number) for number in range(count)}
        manifest = store.publish(HERE, files)
        fs = CountingFs()
        fetch(store, directory, manifest, fs=fs, sizing=ONE)
        assert partials(directory, manifest) == files
        return fs.calls

    few, many = calls(5), calls(25)
    assert many - few == Counter(
        dict.fromkeys(["create", "write", "add_mode", "fsync", "fstat", "close"], 20)
    )


def test_a_file_of_several_parts_is_reserved_first(
    store: CountingStore, dst: Path, large: dict[str, bytes]
) -> None:
    fs = CountingFs()
    fetch(store, dst, store.publish(HERE, large), fs=fs, sizing=ONE)
    pieces = [-(-len(data) // PIECE) for data in large.values() if len(data) > CHUNK_SIZE]
    assert (fs.calls["resize"], fs.calls["allocate"]) == (len(pieces), sum(pieces)) == (2, 3)
    assert fs.calls["start_write_back"] == 5


def test_directories_without_number_are_not_all_held_open(store: CountingStore, dst: Path) -> None:
    files = {f"{number:03d}/file": random_bytes(50, number) for number in range(100)}
    manifest = store.publish(HERE, files)
    most = 0

    def look(key: str, offset: int) -> None:
        nonlocal most
        most = max(most, len(os.listdir("/proc/self/fd")))

    store.before_range = look
    before = len(os.listdir("/proc/self/fd"))
    fetch(store, dst, manifest)
    assert partials(dst, manifest) == files
    assert most - before < 90
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("obstacle", ["short", "longer", "linked"])
def test_a_file_that_nobody_counted_on_is_made_anew(
    store: CountingStore, dst: Path, tmp_path: Path, large: dict[str, bytes], obstacle: str
) -> None:
    manifest = store.publish(HERE, large)
    other = tmp_path / "other"
    other.write_bytes(b"precious")
    planted = dst / partial_directory(manifest.id) / "a.json"
    planted.parent.mkdir(parents=True)
    if obstacle == "linked":
        os.link(other, planted)
    else:
        planted.write_bytes(bytes(10 if obstacle == "short" else 2_000))
    fetch(store, dst, manifest)
    assert partials(dst, manifest) == large
    assert other.read_bytes() == b"precious"


def test_a_directory_that_goes_meanwhile_is_made_again(store: CountingStore, dst: Path) -> None:
    files = {f"{number}": random_bytes(500 - number, number) for number in range(5)}
    manifest = store.publish(HERE, files)

    def remove(key: str, offset: int) -> None:
        if key == HERE.prefix + "3":
            shutil.rmtree(dst / partial_directory(manifest.id))

    store.before_range = remove
    fetch(store, dst, manifest, sizing=ONE)
    assert partials(dst, manifest) == {name: files[name] for name in ("3", "4")}


def test_a_symlink_in_the_directory_s_place_is_refused(
    store: CountingStore, dst: Path, tmp_path: Path, large: dict[str, bytes]
) -> None:
    manifest = store.publish(HERE, large)
    outside = tmp_path / "outside"
    outside.mkdir()
    planted = dst / partial_directory(manifest.id)
    planted.parent.mkdir(parents=True)
    planted.symlink_to(outside)
    with pytest.raises(StagingError) as caught:
        fetch(store, dst, manifest)
    assert caught.value.reference == "symlink"
    assert list(outside.iterdir()) == []


@pytest.fixture
def failing(store: CountingStore) -> Iterator[CountingStore]:
    def fail(key: str, offset: int) -> None:
        if key == HERE.prefix + "c.safetensors" and offset == CHUNK_SIZE:
            raise StoreUnavailable("gone", reference="connection", side="store")

    store.before_range = fail
    return store


@pytest.mark.parametrize("sizing", [ONE, THREE])
def test_the_error_of_a_part_is_what_is_raised_while_others_wait_for_memory(
    failing: CountingStore, dst: Path, large: dict[str, bytes], sizing: Sizing
) -> None:
    manifest = failing.publish(HERE, large)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(StoreUnavailable, match="gone"):
        fetch(failing, dst, manifest, sizing=sizing)
    assert len(os.listdir("/proc/self/fd")) == before
    if sizing is ONE:
        written = partials(dst, manifest)["c.safetensors"]
        assert written == large["c.safetensors"][:CHUNK_SIZE] + bytes(17 * MIB)


def test_files_that_cannot_be_closed_hide_no_error_and_no_other_file(
    dst: Path, store: CountingStore
) -> None:
    files = {f"{name}.safetensors": random_bytes(CHUNK_SIZE + 5, 7) for name in "abc"}
    manifest = store.publish(HERE, files)
    failed: list[int] = []

    class Stubborn(Fs):
        full = False

        def write(self, fd: int, view: memoryview, offset: int) -> int:
            if not offset:
                return super().write(fd, view, offset)
            self.full = True
            raise OSError(errno.ENOSPC, "full")

        def close(self, fd: int) -> None:
            name = os.readlink(f"/proc/self/fd/{fd}")
            super().close(fd)
            if self.full and name.endswith(".safetensors") and "partial" in name:
                failed.append(fd)
                raise OSError(errno.EIO, "close")

    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(NoSpace):
        fetch(store, dst, manifest, sizing=THREE, fs=Stubborn())
    assert failed
    assert len(os.listdir("/proc/self/fd")) == before


def test_every_file_is_closed_whatever_becomes_of_the_others(
    dst: Path, store: CountingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {f"{name}.safetensors": random_bytes(CHUNK_SIZE + 5, 7) for name in "abc"}
    manifest = store.publish(HERE, files)
    closed: list[int] = []
    real = PartialFile.close

    def close(self: PartialFile) -> None:
        real(self)
        closed.append(1)
        raise StagingError(f"close {len(closed)}", reference="local-io", side="local")

    monkeypatch.setattr(PartialFile, "close", close)
    with pytest.raises(StagingError) as caught:
        fetch(store, dst, manifest)
    assert len(closed) == 3
    assert caught.value.message == "close 1"
    assert [note.partition(":")[0] for note in caught.value.__notes__] == ["close 2", "close 3"]
