"""Files in the making: preallocated, written at fixed offsets, the journal of a download (I6).

Only verified chunks are written, so a partial file holds right bytes, holes and what a crash left;
hashing tells them apart.

Invariants: `finish` returns only when the bytes are durable; after a failed fsync or close the file
is unlinked and never used again (I15); an inode that has another name, or is no regular file, is
never written to (I10).
"""

from __future__ import annotations

import contextlib
import threading

from staging.directory.entry import Kind, Stamp
from staging.directory.failure import changed_locally, local_failure, on_disk, symlink
from staging.directory.tree import FILE_MODE, Member, Tree, write_all
from staging.transfer.scheduler import Cancelled
from staging.vocabulary.errors import StagingError


class PartialFile:
    """One partial file, open for writing from several threads."""

    def __init__(self, tree: Tree, path: str, size: int, *, expected: Stamp | None = None) -> None:
        """Open the file at `path` below `tree`, or create it, with `size` bytes reserved.

        With `expected`, bytes in it are counted on: raises Conflict unless it is there with that stamp.
        """
        self._tree = tree
        self._path = path
        # One lock for writes and close: the kernel serialises writes to one inode anyway, and a thread
        # that was left behind must find the file closed, not the descriptor's next owner.
        self._lock = threading.Lock()
        self._fd: int | None = _open(tree, path, size, expected)

    def write(self, offset: int, view: memoryview) -> None:
        """Write all of `view` at `offset`. Raises Cancelled when the file was closed meanwhile."""
        with self._lock, on_disk(self._path):
            if self._fd is None:
                raise Cancelled
            write_all(self._tree.fs, self._fd, view, offset)

    def finish(self) -> Stamp:
        """Make the file durable, close it and return its stamp."""
        fs = self._tree.fs
        with self._lock:
            if self._fd is None:
                raise Cancelled
            fd, self._fd = self._fd, None
            try:
                try:
                    fs.add_mode(fd, FILE_MODE)
                    fs.fsync(fd)
                    stamp = Stamp.of(fs.fstat(fd))
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
                tree.fs.allocate(fd, size)
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
