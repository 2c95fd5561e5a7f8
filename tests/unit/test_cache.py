"""Versions in a cache that pods share, and the link to one of them: I1, I5, I6, I10, I12 and I15.

Kills and disk errors are tried at every single change, power losses behind each.
"""

from __future__ import annotations

import errno
import os
import random
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from staging.directory import access
from staging.directory.cache import work_path
from staging.directory.fs import Fs
from staging.directory.marker import Marker
from staging.store.store import Store
from staging.sync import SyncOptions, SyncResult, turn
from staging.sync.cached import present_cached, refusal_of_cache, spared_paths, sync_cached
from staging.sync.destination import look
from staging.sync.plan import Fetch
from staging.sync.preflight import preflight
from staging.sync.space import RESERVE
from staging.transfer import scheduler
from staging.transfer.budget import Budget
from staging.transfer.sizing import BASE_MEMORY
from staging.vocabulary.errors import (
    Conflict,
    IntegrityError,
    NoSpace,
    NotFound,
    StagingError,
    StoreUnavailable,
)
from staging.vocabulary.events import Event, Moved, Note, Started
from staging.vocabulary.location import S3Location
from staging.vocabulary.manifest import Manifest
from tests.support.checkpoints import CountingStore, random_bytes
from tests.support.local_disk import CrashState, FaultyFs, Killed, QuickFs, crash_states

MIB = 1024 * 1024
PROBE = 512
OPTIONS = SyncOptions(memory=256 * MIB, cores=2, concurrency=3, layout_check=False)
ONE_BY_ONE = replace(OPTIONS, cores=1, concurrency=1)
A, B = (S3Location("memory", f"models/{name}/") for name in "ab")

SHARED = random_bytes(70_001, 1)
FILES_A = {
    "config.json": random_bytes(900, 2),
    "model.safetensors": SHARED,
    "deep/er/vocab.json": random_bytes(3_000, 4),
    "empty": b"",
}
FILES_B = {
    "config.json": random_bytes(901, 7),
    "weights/renamed.safetensors": SHARED,
    "deep/er/vocab.json": FILES_A["deep/er/vocab.json"],
}


@pytest.fixture
def store() -> CountingStore:
    return CountingStore()


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def link(tmp_path: Path) -> Path:
    return tmp_path / "model"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "_POLL", 0.002)
    monkeypatch.setattr(turn, "_POLL", 0.002)
    monkeypatch.setattr(turn, "_QUIET", 0.01)


def run(
    store: Store,
    location: S3Location,
    cache: Path,
    link: Path,
    *,
    fs: Fs | None = None,
    options: SyncOptions = OPTIONS,
    events: list[Event] | None = None,
) -> SyncResult:
    report = (lambda event: None) if events is None else events.append
    return sync_cached(
        store, location, cache, link, options, report, fs=fs or QuickFs(), rng=random.Random(0)
    )


def name_of(manifest: Manifest) -> str:
    return manifest.id.replace(":", "-")


def fetched(store: CountingStore) -> set[str]:
    """Keys that were read for more than the few bytes of a preflight."""
    return {key for key, offset, length in store.ranges if (offset, length) != (0, PROBE)}


def files_below(directory: Path) -> dict[str, bytes]:
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and ".checkpoint" not in path.parts
    }


def visible(link: Path, versions: Mapping[str, Mapping[str, bytes]]) -> str | None:
    """What a reader sees that follows the link and honours the marker."""
    try:
        marker = Marker.decode((link / ".checkpoint/ready.json").read_bytes())
    except FileNotFoundError:
        return None
    files = versions[marker.id]
    assert {path: (link / path).read_bytes() for path in marker.files} == dict(files)
    return marker.id


def assert_tidy(cache: Path, manifests: list[Manifest]) -> None:
    control = cache / ".checkpoint-cache"
    assert {path.name for path in cache.iterdir()} == {
        control.name,
        *(name_of(manifest) for manifest in manifests),
    }
    assert sorted(path.name for path in control.iterdir()) == ["filling", "locks", "trash"]
    assert list((control / "filling").iterdir()) == []
    assert list((control / "trash").iterdir()) == []


# --- the straight way ---


def test_a_version_is_filled_and_the_link_points_to_it(
    store: CountingStore, cache: Path, link: Path
) -> None:
    manifest = store.publish(A, FILES_A)
    result = run(store, A, cache, link)
    assert (result.fetched_files, result.already_present) == (4, False)
    assert os.readlink(link) == f"cache/{name_of(manifest)}"
    assert files_below(link) == FILES_A
    assert visible(link, {manifest.id: FILES_A}) == manifest.id
    assert_tidy(cache, [manifest])


def test_the_link_holds_wherever_the_volume_is_mounted(
    store: CountingStore, cache: Path, tmp_path: Path
) -> None:
    store.publish(A, FILES_A)
    (tmp_path / "links").mkdir()
    run(store, A, cache, tmp_path / "links/model")
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    cache.rename(moved / "cache")
    (tmp_path / "links").rename(moved / "links")
    assert files_below(moved / "links/model") == FILES_A


def test_again_is_no_request_and_no_change_when_pinned(
    store: CountingStore, cache: Path, link: Path
) -> None:
    manifest = store.publish(A, FILES_A)
    run(store, A, cache, link)
    store.forget()
    fs = FaultyFs()
    pinned = replace(OPTIONS, expect_id=manifest.id)
    assert run(store, A, cache, link, options=pinned, fs=fs).already_present
    assert store.requests == 0
    assert run(store, A, cache, link, fs=fs).already_present
    assert store.requests == 1
    assert fs.changes == 0


def test_a_second_link_needs_no_store_when_pinned(
    store: CountingStore, cache: Path, link: Path, tmp_path: Path
) -> None:
    manifest = store.publish(A, FILES_A)
    run(store, A, cache, link)
    other = tmp_path / "other"
    result = present_cached(cache, other, manifest.id, change=False)
    assert result is not None
    assert not other.is_symlink()
    assert present_cached(cache, other, manifest.id) == result
    assert files_below(other) == FILES_A
    assert present_cached(cache, other, "sha256:" + "0" * 64) is None
    assert present_cached(cache, other, "../model") is None
    assert present_cached(tmp_path / "none", other, manifest.id) is None


# --- equal files ---


def test_equal_files_are_linked_not_fetched_and_not_hashed(
    store: CountingStore, cache: Path, link: Path
) -> None:
    first = store.publish(A, FILES_A)
    second = store.publish(B, FILES_B)
    run(store, A, cache, link)
    store.forget()
    events: list[Event] = []
    result = run(store, B, cache, link, events=events)
    assert fetched(store) == {"models/b/config.json"}
    assert (result.kept_files, result.fetched_files) == (2, 1)
    assert [event.phase for event in events if isinstance(event, Started)] == ["download"]
    assert files_below(link) == FILES_B
    old, new = cache / name_of(first), cache / name_of(second)
    assert (old / "model.safetensors").stat().st_ino == (
        new / "weights/renamed.safetensors"
    ).stat().st_ino
    assert files_below(old) == FILES_A
    store.forget()
    assert run(store, A, cache, link, options=replace(OPTIONS, expect_id=first.id)).already_present
    assert os.readlink(link) == f"cache/{name_of(first)}"
    assert_tidy(cache, [first, second])


class NoLinks(QuickFs):
    def __init__(self, number: int) -> None:
        self._number = number

    def link(self, old: str, new: str, *, old_dir_fd: int, new_dir_fd: int) -> None:
        raise OSError(self._number, os.strerror(self._number))


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EMLINK, errno.EPERM])
def test_where_links_are_refused_files_are_copied_and_verified(
    store: CountingStore, cache: Path, link: Path, number: int
) -> None:
    first = store.publish(A, FILES_A)
    second = store.publish(B, FILES_B)
    run(store, A, cache, link)
    store.forget()
    result = run(store, B, cache, link, fs=NoLinks(number))
    assert fetched(store) == {"models/b/config.json"}
    assert result.resumed_bytes == len(SHARED) + 3_000
    assert files_below(link) == FILES_B
    inode = (cache / name_of(first) / "model.safetensors").stat().st_ino
    assert (link / "weights/renamed.safetensors").stat().st_ino != inode
    assert_tidy(cache, [first, second])


def test_a_copy_of_bytes_that_rotted_is_fetched(
    store: CountingStore, cache: Path, link: Path
) -> None:
    first = store.publish(A, FILES_A)
    store.publish(B, FILES_B)
    run(store, A, cache, link)
    weights = cache / name_of(first) / "model.safetensors"
    before = weights.stat()
    with weights.open("r+b") as file:
        file.write(b"rot")
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    store.forget()
    run(store, B, cache, link, fs=NoLinks(errno.EXDEV))
    assert files_below(link) == FILES_B
    assert "models/b/weights/renamed.safetensors" in fetched(store)


# --- damage ---


def test_a_damaged_version_is_replaced_by_a_whole_one_and_never_written_to(
    store: CountingStore, cache: Path, link: Path
) -> None:
    manifest = store.publish(A, FILES_A)
    run(store, A, cache, link)
    place = cache / name_of(manifest)
    (place / "config.json").write_bytes(bytes(900))
    os.utime(place / "model.safetensors", ns=(1, 1))
    before = place.stat().st_ino
    weights = (place / "model.safetensors").stat().st_ino
    held = os.open(place, os.O_RDONLY)
    try:
        store.forget()
        result = run(store, A, cache, link)
        assert os.fstat(held).st_ino == before
    finally:
        os.close(held)
    assert place.stat().st_ino != before
    assert fetched(store) == {"models/a/config.json"}
    assert result.fetched_bytes == 900
    assert (place / "model.safetensors").stat().st_ino == weights  # hashed, and linked
    assert visible(link, {manifest.id: FILES_A}) == manifest.id
    assert_tidy(cache, [manifest])


def test_without_an_exchange_of_names_the_damaged_version_steps_aside(
    store: CountingStore, cache: Path, link: Path
) -> None:
    class NoExchange(QuickFs):
        def exchange(self, one: str, other: str, *, one_dir_fd: int, other_dir_fd: int) -> bool:
            return False

    manifest = store.publish(A, FILES_A)
    run(store, A, cache, link)
    (cache / name_of(manifest) / ".checkpoint/ready.json").unlink()
    store.forget()
    run(store, A, cache, link, fs=NoExchange())
    assert fetched(store) == set()
    assert visible(link, {manifest.id: FILES_A}) == manifest.id
    assert_tidy(cache, [manifest])


def test_remains_of_a_replaced_version_do_not_stand_in_the_way(
    store: CountingStore, cache: Path, link: Path
) -> None:
    """Killed right after the exchange, what was damaged lies in the work directory."""
    manifest = store.publish(A, FILES_A)
    work = cache / ".checkpoint-cache/filling" / name_of(manifest)
    work.mkdir(parents=True)
    (work / "config.json").write_bytes(bytes(900))
    run(store, A, cache, link)
    assert files_below(link) == FILES_A
    assert_tidy(cache, [manifest])


# --- refusals ---


def _directory(path: Path, cache: Path) -> None:
    path.mkdir()


def _file(path: Path, cache: Path) -> None:
    path.write_bytes(b"precious")


def _elsewhere(path: Path, cache: Path) -> None:
    path.symlink_to("/nowhere/sha256-" + "0" * 64)


def _into_the_control_directory(path: Path, cache: Path) -> None:
    path.symlink_to("cache/.checkpoint-cache")


@pytest.mark.parametrize("plant", [_directory, _file, _elsewhere, _into_the_control_directory])
def test_what_is_no_link_of_ours_is_refused_before_anything_is_fetched(
    store: CountingStore, cache: Path, link: Path, plant: Callable[[Path, Path], None]
) -> None:
    manifest = store.publish(A, FILES_A)
    plant(link, cache)
    before = link.lstat()
    with pytest.raises(Conflict) as caught:
        run(store, A, cache, link)
    assert (caught.value.reference, caught.value.side) == ("not-a-version-link", "local")
    assert "mount point" in str(caught.value.hint)
    assert fetched(store) == set()
    run(store, A, cache, link.with_name("free"))
    for options in (OPTIONS, replace(OPTIONS, expect_id=manifest.id)):
        with pytest.raises(Conflict):
            run(store, A, cache, link, options=options)
    after = link.lstat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_names_of_versions_are_no_names_for_links(store: CountingStore, cache: Path) -> None:
    store.publish(A, FILES_A)
    cache.mkdir()
    for name in ("sha256-" + "1" * 64, ".checkpoint-cache"):
        with pytest.raises(Conflict):
            run(store, A, cache, cache / name)


def test_a_missing_parent_is_a_volume_that_is_not_mounted(
    store: CountingStore, cache: Path, link: Path, tmp_path: Path
) -> None:
    store.publish(A, FILES_A)
    for where, name in ((tmp_path / "no/cache", link), (cache, tmp_path / "no/model")):
        with pytest.raises(NotFound) as caught:
            run(store, A, where, name)
        assert caught.value.reference == "destination"
    assert not (tmp_path / "no").exists()


def test_everything_that_is_wrong_is_told_at_once(
    store: CountingStore, cache: Path, link: Path
) -> None:
    store.publish(A, FILES_A)
    store.remove(A.prefix + "config.json")
    link.mkdir()
    with pytest.raises(StagingError) as caught:
        run(store, A, cache, link)
    told = {finding["reference"] for finding in caught.value.document["findings"]}
    assert told == {"object-missing", "not-a-version-link"}


def test_a_refused_checkpoint_leaves_no_version_and_no_work(
    store: CountingStore, cache: Path, link: Path
) -> None:
    first = store.publish(A, FILES_A)
    store.publish(B, FILES_B)
    run(store, A, cache, link)
    store.remove(B.prefix + "config.json")
    with pytest.raises(IntegrityError):
        run(store, B, cache, link)
    assert_tidy(cache, [first])
    assert files_below(link) == FILES_A


def test_an_interrupted_fill_goes_on_where_it_was(
    store: CountingStore, cache: Path, link: Path
) -> None:
    store.publish(A, FILES_A)
    manifest = store.publish(B, FILES_B)

    def gone(key: str, offset: int) -> None:
        if len(fetched(store)) > 1:
            raise StoreUnavailable("gone", reference="connection", side="store")

    store.before_range = gone
    with pytest.raises(StoreUnavailable):
        run(store, B, cache, link, options=ONE_BY_ONE)
    assert not link.is_symlink()
    first = fetched(store)
    store.forget()
    result = run(store, B, cache, link)
    assert result.resumed_bytes > 0
    assert len(first & fetched(store)) <= 1
    assert_tidy(cache, [manifest])


def test_without_waiting_a_version_in_the_making_is_a_conflict(
    store: CountingStore, cache: Path, link: Path
) -> None:
    store.publish(A, FILES_A)
    caught: list[StagingError] = []

    def another(key: str, offset: int) -> None:
        if not caught:
            with pytest.raises(Conflict) as found:
                run(store, A, cache, link, options=replace(OPTIONS, wait=False))
            caught.append(found.value)

    store.before_range = another
    run(store, A, cache, link, options=replace(OPTIONS, holder="pod-7"))
    assert caught[0].reference == "locked"
    assert "(pod-7)" in caught[0].message


# --- several at once ---


def test_many_links_make_one_download(store: CountingStore, cache: Path, tmp_path: Path) -> None:
    manifest = store.publish(A, FILES_A)
    links = [tmp_path / f"model-{number}" for number in range(6)]
    with ThreadPoolExecutor(6) as pool:
        results = list(pool.map(lambda link: run(store, A, cache, link), links))
    assert sorted(result.fetched_bytes for result in results)[-2:] == [0, manifest.total_size]
    assert sum(length for _, offset, length in store.ranges if length != PROBE) == (
        manifest.total_size
    )
    for link in links:
        assert visible(link, {manifest.id: FILES_A}) == manifest.id
    assert_tidy(cache, [manifest])


def test_two_versions_are_filled_at_the_same_time(
    store: CountingStore, cache: Path, tmp_path: Path
) -> None:
    first = store.publish(A, FILES_A)
    second = store.publish(B, FILES_B)
    done: list[SyncResult] = []

    def another(key: str, offset: int) -> None:
        if key.startswith(A.prefix) and not done:
            done.append(run(store, B, cache, tmp_path / "b"))

    store.before_range = another
    run(store, A, cache, tmp_path / "a")
    assert files_below(tmp_path / "a") == FILES_A
    assert files_below(tmp_path / "b") == FILES_B
    assert_tidy(cache, [first, second])


class Lying(QuickFs):
    """Everybody gets the lock who asks for it."""

    def lock(self, fd: int) -> bool:
        return True


@pytest.mark.parametrize("seed", range(8))
def test_without_locks_the_versions_are_right_all_the_same(
    store: CountingStore, cache: Path, tmp_path: Path, seed: int
) -> None:
    first = store.publish(A, FILES_A)
    second = store.publish(B, FILES_B)
    versions = {first.id: FILES_A, second.id: FILES_B}
    rng = random.Random(seed)
    pauses = [rng.random() / 200 for _ in range(200)]
    store.before_range = lambda key, offset: time.sleep(pauses.pop() if pauses else 0)

    def one(number: int) -> SyncResult:
        location = A if number % 3 else B
        return run(store, location, cache, tmp_path / f"model-{number}", fs=Lying())

    with ThreadPoolExecutor(5) as pool:
        results = list(pool.map(one, range(5)))
    for number, result in enumerate(results):
        assert result.id == (first if number % 3 else second).id
        assert not (cache / result.id.replace(":", "-") / ".checkpoint/partial").exists()
        run(store, A if number % 3 else B, cache, tmp_path / f"model-{number}")
        assert visible(tmp_path / f"model-{number}", versions) == result.id
        assert files_below(tmp_path / f"model-{number}") == versions[result.id]


# --- kills, errors and power losses, everywhere ---


def _changes(store: CountingStore, root: Path) -> int:
    root.mkdir()
    run(store, A, root / "cache", root / "model", options=ONE_BY_ONE)
    fs = FaultyFs()
    run(store, B, root / "cache", root / "model", fs=fs, options=ONE_BY_ONE)
    return fs.changes


def test_a_kill_at_any_change_shows_the_old_version_or_the_new_and_converges(
    store: CountingStore, tmp_path: Path
) -> None:
    first = store.publish(A, FILES_A)
    second = store.publish(B, FILES_B)
    versions = {first.id: FILES_A, second.id: FILES_B}
    seen = set()
    for kill_at in range(1, _changes(store, tmp_path / "count") + 1):
        root = tmp_path / f"at-{kill_at}"
        root.mkdir()
        cache, link = root / "cache", root / "model"
        run(store, A, cache, link, options=ONE_BY_ONE)
        store.forget()
        with pytest.raises(Killed):
            run(store, B, cache, link, fs=FaultyFs(kill_at=kill_at), options=ONE_BY_ONE)
        seen.add(visible(link, versions))
        run(store, B, cache, link, options=ONE_BY_ONE)
        assert visible(link, versions) == second.id
        assert files_below(cache / name_of(first)) == FILES_A
        assert sum(length for _, _, length in store.ranges if length != PROBE) <= 2 * 901
        assert [path.name for path in root.iterdir() if path.name.startswith(".")] == []
    assert seen == {first.id, second.id}


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_an_error_at_any_change_is_typed_and_leaves_the_old_version(
    store: CountingStore, tmp_path: Path, code: int
) -> None:
    first = store.publish(A, FILES_A)
    second = store.publish(B, FILES_B)
    versions = {first.id: FILES_A, second.id: FILES_B}
    failed = set()
    for fail_at in range(1, _changes(store, tmp_path / "count") + 1):
        root = tmp_path / f"at-{fail_at}"
        root.mkdir()
        cache, link = root / "cache", root / "model"
        run(store, A, cache, link, options=ONE_BY_ONE)
        fs = FaultyFs(fail_at=fail_at, error=code)
        with pytest.raises(StagingError) as caught:
            run(store, B, cache, link, fs=fs, options=ONE_BY_ONE)
        assert caught.value.reference == ("no-space" if code == errno.ENOSPC else "local-io")
        failed.add(fs.failed)
        assert visible(link, versions) in {first.id, second.id}
        run(store, B, cache, link, options=ONE_BY_ONE)
        assert visible(link, versions) == second.id
    assert failed >= {"link", "symlink", "rename", "fsync", "create", "write", "mkdir"}


def _traced(store: CountingStore, root: Path) -> tuple[FaultyFs, dict[str, Mapping[str, bytes]]]:
    first = store.publish(A, FILES_A)
    second = store.publish(B, FILES_B)
    root.mkdir()
    fs = FaultyFs(root=str(root))
    for location in (A, B):
        run(store, location, root / "cache", root / "model", fs=fs, options=ONE_BY_ONE)
    return fs, {first.id: FILES_A, second.id: FILES_B}


def _seen(state: CrashState, versions: Mapping[str, Mapping[str, bytes]]) -> str | bool:
    """What a reader finds who follows the link: nothing, a version's id, or False for anything else."""
    target = state.read("model")
    if target is None:
        return True
    place = target.decode()
    data = state.read(f"{place}/.checkpoint/ready.json")
    if data is None:
        return False  # a link to nothing: it is made when the version is durable
    try:
        marker = Marker.decode(data)
    except StagingError:
        return False
    if place != "cache/" + marker.id.replace(":", "-"):
        return False
    files = versions[marker.id]
    whole = all(state.read(f"{place}/{path}") == data for path, data in files.items())
    return marker.id if whole else False


def test_a_power_loss_behind_any_change_leaves_nothing_or_a_version(
    store: CountingStore, tmp_path: Path
) -> None:
    fs, versions = _traced(store, tmp_path / "root")
    seen = {_seen(state, versions) for state in crash_states(fs.trace, random.Random(1), 60)}
    assert seen == {True, *versions}
    *_, nothing_more, everything = crash_states(fs.trace, random.Random(2), 0)
    newest = list(versions)[1]
    assert _seen(nothing_more, versions) == _seen(everything, versions) == newest


@pytest.mark.parametrize("kind", ["fsync-file", "fsync-dir"])
def test_the_power_loss_model_notices_when_fsyncs_are_left_out(
    store: CountingStore, tmp_path: Path, kind: str
) -> None:
    fs, versions = _traced(store, tmp_path / "root")
    links = {
        op.target
        for op in fs.trace
        if op.kind == "link" and (op.name.endswith(".link") or op.name == "model")
    }
    trace = [op for op in fs.trace if op.kind != kind or op.node in links]
    assert False in {_seen(state, versions) for state in crash_states(trace, random.Random(1), 60)}


# --- what lies there already, and what may not be written to ---


class Recorder(QuickFs):
    """Notes syncs of directories and the links that are made."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def fsync(self, fd: int) -> None:
        self.calls.append(f"fsync {Path(os.readlink(f'/proc/self/fd/{fd}')).name}")

    def symlink(self, target: str, name: str, *, dir_fd: int) -> None:
        self.calls.append("symlink")
        super().symlink(target, name, dir_fd=dir_fd)


def test_the_name_of_a_version_is_durable_before_a_link_points_to_it(
    store: CountingStore, cache: Path, link: Path
) -> None:
    """Another process may have been killed right after it gave the version its name."""
    manifest = store.publish(A, FILES_A)
    run(store, A, cache, link)
    link.unlink()
    fs = Recorder()
    assert present_cached(cache, link, manifest.id, fs=fs) is not None
    assert fs.calls.index("fsync cache") < fs.calls.index("symlink")


def test_weights_that_somebody_put_into_a_complete_version_are_refused(
    store: CountingStore, cache: Path, link: Path
) -> None:
    manifest = store.publish(A, FILES_A)
    run(store, A, cache, link)
    place = cache / name_of(manifest)
    (place / "adapter.safetensors").write_bytes(b"mine")
    (place / "notes.txt").write_bytes(b"mine too")
    store.forget()
    with pytest.raises(Conflict) as caught:
        run(store, A, cache, link)
    assert caught.value.reference == "foreign-weights"
    assert "adapter.safetensors" in str(caught.value)
    assert (place / "notes.txt").read_bytes() == b"mine too"
    assert fetched(store) == set()
    found = refusal_of_cache(cache, link, manifest)
    assert [finding.reference for finding in found] == ["foreign-weights"]
    (place / "adapter.safetensors").unlink()
    assert refusal_of_cache(cache, link, manifest) == []
    assert run(store, A, cache, link).already_present


def test_what_goes_with_a_damaged_version_is_named(
    store: CountingStore, cache: Path, link: Path
) -> None:
    manifest = store.publish(A, FILES_A)
    run(store, A, cache, link)
    place = cache / name_of(manifest)
    (place / "config.json").write_bytes(b"damaged")
    (place / "deep/notes.txt").write_bytes(b"mine")
    events: list[Event] = []
    run(store, A, cache, link, events=events)
    told = [event.text for event in events if isinstance(event, Note) and event.warning]
    assert len(told) == 1
    assert "'deep/notes.txt'" in told[0]
    assert "config.json" not in told[0]


def test_a_link_that_cannot_be_made_is_told_before_anything_is_fetched(
    store: CountingStore, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = store.publish(A, FILES_A)
    links = tmp_path / "links"
    links.mkdir()
    real = access.may_write

    def may_write(name: str, *, dir_fd: int) -> bool:
        return not os.path.samefile(f"/proc/self/fd/{dir_fd}", links) and real(name, dir_fd=dir_fd)

    monkeypatch.setattr(access, "may_write", may_write)
    with pytest.raises(StagingError) as caught:
        run(store, A, cache, links / "model")
    assert caught.value.reference == "local-permission"
    assert str(links) in str(caught.value)
    assert fetched(store) == set()
    found = refusal_of_cache(cache, links / "model", manifest)
    assert [finding.reference for finding in found] == ["local-permission"]
    monkeypatch.setattr(access, "may_write", real)
    run(store, A, cache, links / "model")
    monkeypatch.setattr(access, "may_write", may_write)
    assert refusal_of_cache(cache, links / "model", manifest) == []  # it points there already


def test_what_is_hashed_again_keeps_to_the_memory_budget(
    store: CountingStore, cache: Path, link: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = store.publish(A, FILES_A)
    run(store, A, cache, link)
    os.utime(cache / name_of(manifest) / "model.safetensors", ns=(1, 1))
    totals: list[int] = []
    real = Budget.__init__

    def noted(self: Budget, total: int) -> None:
        totals.append(total)
        real(self, total)

    monkeypatch.setattr(Budget, "__init__", noted)
    options = SyncOptions(memory=192 * MIB, cores=192, layout_check=False)
    run(store, A, cache, link, options=options)
    assert totals
    assert max(totals) <= 192 * MIB - BASE_MEMORY


def test_copies_in_place_of_links_are_told_and_need_room_first(
    store: CountingStore, cache: Path, link: Path
) -> None:
    first = store.publish(A, FILES_A)
    second = store.publish(B, FILES_B)
    run(store, A, cache, link)

    class Full(NoLinks):
        def free_bytes(self, fd: int) -> int | None:
            return RESERVE + 4096  # enough for what has to be fetched

        def write(self, fd: int, view: memoryview, offset: int) -> int:
            raise AssertionError("nothing is written before there is room for all of it")

    with pytest.raises(NoSpace):
        run(store, B, cache, link, fs=Full(errno.EPERM))
    assert_tidy(cache, [first])  # the preflight tells, before anything is made
    checked = preflight(
        store,
        B,
        work_path(cache, name_of(second)),
        OPTIONS,
        manifest=second,
        spared=spared_paths(cache, second),
    )
    with pytest.raises(NoSpace):
        sync_cached(store, B, cache, link, OPTIONS, checked=checked, fs=Full(errno.EPERM))
    assert os.readlink(link) == f"cache/{name_of(first)}"
    events: list[Event] = []
    run(store, B, cache, link, fs=NoLinks(errno.EPERM), events=events)
    began = next(i for i, event in enumerate(events) if event == Started("copy", 73_001, 2))
    moved = [event for event in events[began + 1 : began + 5] if isinstance(event, Moved)]
    assert sum(event.count for event in moved) == 73_001


def test_a_link_with_the_name_of_a_version_is_in_nobody_s_way(
    store: CountingStore, cache: Path, link: Path, tmp_path: Path
) -> None:
    manifest = store.publish(A, FILES_A)
    cache.mkdir()
    (cache / f"sha256-{'0' * 64}").symlink_to(tmp_path)
    assert spared_paths(cache, manifest) == frozenset()
    run(store, A, cache, link)
    assert files_below(link) == FILES_A


@pytest.mark.parametrize("there", [False, True])
def test_a_file_that_takes_the_link_s_name_meanwhile_stays(
    store: CountingStore, cache: Path, link: Path, there: bool
) -> None:
    store.publish(A, FILES_A)
    store.publish(B, FILES_B)
    run(store, A, cache, link)
    if not there:
        link.unlink()

    class Quicker(QuickFs):
        def symlink(self, target: str, name: str, *, dir_fd: int) -> None:
            link.unlink(missing_ok=True)
            link.write_bytes(b"precious")
            super().symlink(target, name, dir_fd=dir_fd)

    with pytest.raises(Conflict) as caught:
        run(store, B, cache, link, fs=Quicker())
    assert caught.value.reference == "not-a-version-link"
    assert link.read_bytes() == b"precious"
    assert {path.name for path in link.parent.iterdir()} == {"cache", "model"}


def test_the_place_of_a_version_is_looked_at_before_there_is_a_cache(
    store: CountingStore, cache: Path
) -> None:
    manifest = store.publish(A, FILES_A)
    work = work_path(cache, name_of(manifest))
    for directory in (None, cache, work.parent):
        if directory is not None:
            directory.mkdir(parents=True)
            (directory / "config.json").write_bytes(b"of somebody else")
            (directory / "other.safetensors").write_bytes(b"of somebody else")
        found = look(work, manifest, fs=Fs())
        assert found.findings == ()
        assert found.free_bytes is not None
        assert found.needed_bytes == 72 * 1024 + 2 * 4096
        assert all(isinstance(action, Fetch) for action in found.actions)
    nowhere = look(work_path(cache / "a/b", name_of(manifest)), manifest, fs=Fs())
    assert [finding.reference for finding in nowhere.findings] == ["destination"]
