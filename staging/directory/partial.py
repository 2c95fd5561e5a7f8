"""Files in the making: preallocated, written at fixed offsets, the journal of a download (I6).

A file has its length at once; its blocks are reserved piece by piece, since nobody can write to it
meanwhile, and four gigabytes on a filesystem in memory take a second. Only verified chunks are written, so
a partial file holds right bytes, holes and what a crash left; hashing tells them apart.

Invariants: `finish` returns only when the bytes are durable; after a failed fsync or close, or a write-back
that failed, the file is unlinked and never used again (I15); an inode that has another name, or is no regular
file, is never written to (I10).
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Final

from staging.directory.entry import Kind, Stamp
from staging.directory.failure import changed_locally, local_failure, on_disk, symlink
from staging.directory.tree import FILE_MODE, Member, Tree, write_all
from staging.transfer.scheduler import Cancellation, Cancelled
from staging.vocabulary.errors import StagingError

_MOST_OPEN: Final = 64  # directories that are held open
PIECE: Final = 32 * 1024 * 1024
"""Bytes to reserve at once: milliseconds, even where a page has to be found for each."""

_TURN: Final = 0.001
"""Seconds between two pieces, for those who wait with bytes to write: a lock alone is not fair."""


class PartialFile:
    """One partial file, open for writing from several threads."""

    def __init__(
        self,
        tree: Tree,
        path: str,
        size: int,
        *,
        expected: Stamp | None = None,
        descriptor: int | None = None,
    ) -> None:
        """Open the file at `path` below `tree`, or create it, `size` bytes long.

        With `expected`, bytes in it are counted on: raises Conflict unless it is there with that stamp.
        A `descriptor` is the file's own, and is taken over.
        """
        self._tree = tree
        self._path = path
        self._size = size
        # One lock for writes and close: the kernel serialises writes to one inode anyway, and a thread
        # that was left behind must find the file closed, not the descriptor's next owner.
        self._lock = threading.Lock()
        self._failure: StagingError | None = None
        self._fd: int | None = (
            _open(tree, path, size, expected) if descriptor is None else descriptor
        )

    def reserve(self, cancelled: Cancellation) -> None:
        """Reserve the blocks of the whole file, where the filesystem can; others may write meanwhile.

        Raises NoSpace, and Cancelled when the work was called off or the file closed meanwhile.
        """
        for offset in range(0, self._size, PIECE):
            if offset:
                cancelled.sleep(_TURN)
            with self._lock, on_disk(self._path):
                if self._fd is None:
                    raise self._failure or Cancelled
                length = min(PIECE, self._size - offset)
                if not self._tree.fs.allocate(self._fd, offset, length):
                    return

    def write(self, offset: int, view: memoryview) -> None:
        """Write all of `view` at `offset`. Raises Cancelled when the file was closed meanwhile."""
        with self._lock, on_disk(self._path):
            if self._fd is None:
                raise self._failure or Cancelled
            write_all(self._tree.fs, self._fd, view, offset)

    def start_write_back(self, offset: int, length: int) -> None:
        """Have a range written to the disk from now on, for `finish` to have less to wait for."""
        with self._lock:
            if self._fd is not None:
                with self._discarded_on_error():
                    self._tree.fs.start_write_back(self._fd, offset, length)

    def drop(self, offset: int, length: int) -> None:
        """Wait until a range is with the disk, and have the kernel forget it; not once it is closed."""
        with self._lock:
            if self._fd is not None:
                with self._discarded_on_error():
                    self._tree.fs.await_write_back(self._fd, offset, length)
                    self._tree.fs.drop_cache(self._fd, offset, length)

    def finish(self, *, drop: bool = False) -> Stamp:
        """Make the file durable, close it and return its stamp; `drop` has its pages forgotten."""
        fs = self._tree.fs
        with self._lock:
            if self._fd is None:
                raise self._failure or Cancelled
            fd, self._fd = self._fd, None
            try:
                try:
                    fs.add_mode(fd, FILE_MODE)
                    fs.fsync(fd)
                    stamp = Stamp.of(fs.fstat(fd))
                    if drop:
                        fs.drop_cache(fd)
                finally:
                    fs.close(fd)
            except OSError as error:
                raise discarded(self._tree, self._path, error) from error
        return stamp

    def close(self) -> None:
        """Close the file as it is, for a later run to go on with. Closing twice does nothing."""
        with self._lock:
            if self._fd is not None:
                fd, self._fd = self._fd, None
                try:
                    self._tree.fs.close(fd)
                except OSError as error:
                    raise discarded(self._tree, self._path, error) from error

    @contextlib.contextmanager
    def _discarded_on_error(self) -> Iterator[None]:
        """For calls whose error means what an fsync's means. The lock is held."""
        try:
            yield
        except OSError as error:
            fd, self._fd = self._fd, None
            if fd is not None:
                with contextlib.suppress(OSError):  # the file goes in any case
                    self._tree.fs.close(fd)
            self._failure = discarded(self._tree, self._path, error)
            raise self._failure from error


class PartialDirectory:
    """Where the partial files of one version lie.

    Its directories are held open, so that a small file costs no walk down to it: they are reached
    once, without following links, and whoever moves one away gets no more than files in it (I10).
    """

    def __init__(self, tree: Tree, path: str) -> None:
        self._tree = tree
        self._path = path
        self._lock = threading.Lock()
        self._held: dict[str, Tree] = {}
        self._open = contextlib.ExitStack()
        self._users = 0
        self._closed = False

    def open(
        self, name: str, size: int, *, expected: Stamp | None = None, resize: bool = True
    ) -> PartialFile:
        """Open or create the file `name`, as `PartialFile` does. Raises Cancelled once it is closed.

        Without `resize` a file that is not there yet is created empty: one write will fill it, and
        giving it its length before would only be another call.
        """
        path = f"{self._path}/{name}"
        descriptor = None if expected is not None else self._create(path)
        if descriptor is not None and resize:
            with contextlib.ExitStack() as unless_resized:
                unless_resized.callback(self._tree.fs.close, descriptor)
                with on_disk(path):
                    self._tree.fs.resize(descriptor, size)
                unless_resized.pop_all()
        return PartialFile(self._tree, path, size, expected=expected, descriptor=descriptor)

    def close(self) -> None:
        """Let go of the directories, as soon as nobody creates a file in them any more."""
        with self._lock:
            self._closed = True
            self._close_unused()

    def _create(self, path: str) -> int | None:
        """A new file, or None when that wants a closer look."""
        directory, _, name = path.rpartition("/")
        with self._directory(directory) as held:
            if held is None:
                return None
            try:
                return held.create(name)
            except StagingError as error:
                # Something has the name, or somebody removed the directory that is held.
                if isinstance(error.__cause__, (FileExistsError, FileNotFoundError)):
                    return None
                raise

    @contextlib.contextmanager
    def _directory(self, path: str) -> Iterator[Tree | None]:
        with self._lock:
            if self._closed:
                raise Cancelled
            if path not in self._held and len(self._held) < _MOST_OPEN:
                self._tree.make_directory(path)
                self._held[path] = self._open.enter_context(self._tree.below(path))
            self._users += 1
        try:
            yield self._held.get(path)
        finally:
            with self._lock:
                self._users -= 1
                self._close_unused()

    def _close_unused(self) -> None:
        """Close everything after `close`, when nobody uses it. The lock is held."""
        if self._closed and not self._users:
            self._held.clear()
            self._open.close()


def settle(tree: Tree, member: Member) -> None:
    """Make an existing partial file durable before it is trusted; when that fails, the file goes."""
    try:
        member.settle()
    except StagingError as error:
        _discard(tree, member.path, error)
        raise


def discarded(tree: Tree, path: str, error: OSError) -> StagingError:
    """Unlink a file after a failed fsync or close, and return the error to raise."""
    failure = local_failure(error, path)
    _discard(tree, path, failure)
    return failure


def _discard(tree: Tree, path: str, failure: StagingError) -> None:
    try:
        tree.unlink(path)
    except StagingError as second:
        failure.add_note(f"it could not be removed either: {second.message}")


def _open(tree: Tree, path: str, size: int, expected: Stamp | None) -> int:
    if expected is not None:
        return _open_as_it_was(tree, path, expected)
    tree.make_directory(path.rpartition("/")[0])
    entry = tree.entry(path)
    if entry is not None and entry.kind is Kind.SYMLINK:
        raise symlink(path)
    if entry is not None and not _usable(entry.kind, entry.links, entry.stamp.size, size):
        tree.remove_tree(path)
        entry = None
    with contextlib.ExitStack() as unless_returned:
        fd = tree.create(path) if entry is None else tree.open_writable(path)
        unless_returned.callback(tree.fs.close, fd)
        if (0 if entry is None else entry.stamp.size) < size:
            with on_disk(path):
                tree.fs.resize(fd, size)
        unless_returned.pop_all()
    return fd


def _open_as_it_was(tree: Tree, path: str, expected: Stamp) -> int:
    """Open a file whose bytes are counted on; a new one in its place would be full of zeros."""
    entry = tree.entry(path)
    if entry is None or entry.kind is not Kind.FILE or entry.links != 1:
        raise changed_locally(path)
    with contextlib.ExitStack() as unless_returned:
        fd = tree.open_writable(path)
        unless_returned.callback(tree.fs.close, fd)
        with on_disk(path):
            if Stamp.of(tree.fs.fstat(fd)) != expected:
                raise changed_locally(path)
        unless_returned.pop_all()
    return fd


def _usable(kind: Kind, links: int, size: int, wanted: int) -> bool:
    return kind is Kind.FILE and links == 1 and size <= wanted
