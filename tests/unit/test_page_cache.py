"""Pages that were written: kept or dropped, never more than a window, errors never lost (I11, I15)."""

from __future__ import annotations

import ctypes
import errno
import random
import threading
from functools import partial
from pathlib import Path

import pytest

from staging.directory import fs as fs_module
from staging.directory.fs import Fs
from staging.directory.page_cache import PageCache, PageCacheChoice, page_cache_policy
from staging.directory.partial import PartialFile
from staging.directory.tree import Tree
from staging.transfer.scheduler import Cancelled, Scheduler
from staging.vocabulary.errors import NoSpace, StagingError

GIB = 1024**3


class Ranges:
    """A file that records what it is told, and how much of it is written and not dropped."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int, int]] = []
        self.held = self.peak = 0
        self._lock = threading.Lock()

    def start_write_back(self, offset: int, length: int) -> None:
        with self._lock:
            self.calls.append(("start", offset, length))
            self.held += length
            self.peak = max(self.peak, self.held)

    def drop(self, offset: int, length: int) -> None:
        with self._lock:
            self.calls.append(("drop", offset, length))
            self.held -= length


@pytest.mark.parametrize(
    ("choice", "size", "limit", "policy"),
    [
        ("keep", 400 * GIB, GIB // 2, "keep"),
        ("drop", 1, 2048 * GIB, "drop"),
        ("auto", 400 * GIB, 2048 * GIB, "keep"),
        ("auto", 400 * GIB, GIB // 2, "drop"),
        ("auto", GIB, 2 * GIB, "keep"),
        ("auto", GIB + 1, 2 * GIB, "drop"),
        ("auto", 1, None, "drop"),
    ],
)
def test_what_is_done_where(
    choice: PageCacheChoice, size: int, limit: int | None, policy: str
) -> None:
    assert page_cache_policy(choice, size, limit) == policy


def test_what_is_kept_is_sent_to_the_disk_at_once_and_stays() -> None:
    file = Ranges()
    cache = PageCache("keep", 10)
    for number in range(5):
        cache.written(file, number * 8, 8)
    assert file.calls == [("start", number * 8, 8) for number in range(5)]


def test_what_is_dropped_goes_oldest_first_behind_a_window() -> None:
    first, second = Ranges(), Ranges()
    cache = PageCache("drop", 16)
    cache.written(first, 0, 8)
    cache.written(second, 100, 8)
    assert [call for call in first.calls + second.calls if call[0] == "drop"] == []
    cache.written(first, 8, 8)
    assert first.calls[-1] == ("drop", 0, 8)
    cache.written(first, 16, 12)
    assert second.calls[-1] == ("drop", 100, 8)
    assert first.calls[-1] == ("drop", 8, 8)
    assert first.held == 12


def test_threads_hold_a_window_and_a_range_each_at_most() -> None:
    file, rng = Ranges(), random.Random(1)
    cache = PageCache("drop", 100)
    lengths = [rng.randint(1, 20) for _ in range(300)]
    with Scheduler(4) as scheduler:
        for number, length in enumerate(lengths):
            scheduler.submit(partial(cache.written, file, number, length))
    assert file.peak <= 100 + 2 * 4 * 20  # a new range, and old ones on their way out, per thread
    assert file.held <= 100
    assert sum(1 for call in file.calls if call[0] == "start") == len(lengths)


def test_the_window_and_the_policy_fit_this_machine() -> None:
    assert PageCache.here("auto", 1).policy == "keep"
    assert PageCache.here("auto", 2**60).policy == "drop"


# --- on a file ---


class Recorded(Fs):
    """A file system that writes down its calls, and fails one kind of them."""

    def __init__(self, fails: str = "", error: int = errno.EIO) -> None:
        self.calls: list[str] = []
        self._fails = fails
        self._error = error

    def _note(self, call: str) -> None:
        self.calls.append(call)
        if call == self._fails:
            raise OSError(self._error, "scripted")

    def start_write_back(self, fd: int, offset: int, length: int) -> None:
        super().start_write_back(fd, offset, length)
        self._note("start")

    def await_write_back(self, fd: int, offset: int, length: int) -> None:
        super().await_write_back(fd, offset, length)
        self._note("await")

    def drop_cache(self, fd: int, offset: int = 0, length: int = 0) -> None:
        super().drop_cache(fd, offset, length)
        self._note("drop")

    def fsync(self, fd: int) -> None:
        super().fsync(fd)
        self._note("fsync")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "dst").mkdir()
    return tmp_path / "dst"


def in_pages(path: Path, fs: Fs, *, drop: bool) -> PartialFile:
    """A file of 3 MiB with a page of bytes in it that went through everything."""
    tree = Tree.open(path, fs=fs)
    file = PartialFile(tree, "file", 3 << 20)
    try:
        with memoryview(bytes(range(256)) * 16) as view:
            file.write(1 << 20, view)
        file.start_write_back(1 << 20, 4096)
        if drop:
            file.drop(1 << 20, 4096)
        file.finish(drop=drop)
    finally:
        file.close()
        tree.close()
    return file


@pytest.mark.parametrize("drop", [True, False])
def test_bytes_are_the_same_whatever_becomes_of_their_pages(directory: Path, drop: bool) -> None:
    fs = Recorded()
    file = in_pages(directory, fs, drop=drop)
    whole = bytes(1 << 20) + bytes(range(256)) * 16 + bytes((2 << 20) - 4096)
    assert (directory / "file").read_bytes() == whole
    assert fs.calls == (["start", "await", "drop", "fsync", "drop"] if drop else ["start", "fsync"])
    fs.calls.clear()
    file.start_write_back(0, 4096)
    file.drop(0, 4096)
    assert fs.calls == []  # it is closed: the number may be somebody else's


@pytest.mark.parametrize("call", ["start", "await"])
@pytest.mark.parametrize(("error", "kind"), [(errno.EIO, StagingError), (errno.ENOSPC, NoSpace)])
def test_a_file_whose_write_back_failed_is_never_used_again(
    directory: Path, call: str, error: int, kind: type[StagingError]
) -> None:
    """The kernel tells such an error once: an fsync that follows would say that all is well."""
    fs = Recorded(fails=call, error=error)
    with pytest.raises(kind) as caught:
        in_pages(directory, fs, drop=True)
    assert caught.value.reference == ("no-space" if error == errno.ENOSPC else "local-io")
    assert "fsync" not in fs.calls
    assert list(directory.iterdir()) == []


def test_whoever_comes_after_a_failed_write_back_is_told_of_it(directory: Path) -> None:
    """Not that the work was called off: that would hide why."""
    tree = Tree.open(directory, fs=Recorded(fails="start"))
    file = PartialFile(tree, "file", 4096)
    with pytest.raises(StagingError):
        file.start_write_back(0, 4096)
    for after in (lambda: file.write(0, memoryview(b"x")), file.finish):
        with pytest.raises(StagingError) as caught:
            after()
        assert not isinstance(caught.value, Cancelled)
        assert caught.value.reference == "local-io"
    tree.close()


class _Libc:
    """A C library without the call, or with one that fails."""

    def __init__(self, number: int | None) -> None:
        if number is not None:
            self.sync_file_range = partial(self._fail, number)

    @staticmethod
    def _fail(number: int, *arguments: object) -> int:
        ctypes.set_errno(number)
        return -1


@pytest.mark.parametrize("number", [None, errno.ENOSYS, errno.EPERM, errno.EINVAL, errno.ESPIPE])
def test_where_there_is_no_write_back_fsync_does_it_all(
    directory: Path, monkeypatch: pytest.MonkeyPatch, number: int | None
) -> None:
    fs = Fs()
    with (directory / "file").open("wb") as file:
        monkeypatch.setattr(fs_module, "_LIBC", _Libc(number))
        fs.start_write_back(file.fileno(), 0, 4096)
        fs.await_write_back(file.fileno(), 0, 4096)


def test_an_error_of_the_disk_is_raised(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (directory / "file").open("wb") as file:
        monkeypatch.setattr(fs_module, "_LIBC", _Libc(errno.EIO))
        with pytest.raises(OSError, match="Input/output"):
            Fs().await_write_back(file.fileno(), 0, 4096)
