"""The lock of those who write to a directory: flock on a file in it, polled by those who wait.

    with held(tree, ".checkpoint/lock", wait=pause, report=report) as lock: ...

Invariants: a lock whose file was removed or replaced meanwhile is not taken for one; a signal is heard
between two polls; the lock goes with the process, however that ends.
Not guaranteed: that it keeps anybody out. On some network filesystems everybody gets the lock who asks, or
nobody can, and then it is done without. Whoever writes checks that what it relies on is as it was: the lock
only saves work.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Final

from staging.directory.failure import on_disk, vanished
from staging.directory.holder import SIZE, Holder
from staging.directory.tree import Tree
from staging.vocabulary.errors import Conflict, StagingError
from staging.vocabulary.events import Note, Reporter, silent

_ATTEMPTS: Final = 10
_NO_LOCKS: Final = frozenset({errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS})

Pause = Callable[[Holder | None], None]
"""Lets time pass before the next attempt; is given the line of the holder, and may raise."""


class Lock:
    """A lock that is held, and the line in it that tells others who holds it.

    A thread that was left behind may outlive it: what it says then goes nowhere, and never to another file
    that got the number of the descriptor.
    """

    def __init__(self, tree: Tree, fd: int) -> None:
        self._tree = tree
        self._fd: int | None = fd
        self._mutex = threading.Lock()

    def say(self, line: bytes) -> None:
        """Replace the line; never an error, and nothing once the lock is let go."""
        with self._mutex:
            if self._fd is not None:
                self._tree.fs.remark(self._fd, line)

    def holder(self) -> Holder | None:
        """Who wrote the line last: another run, when locks keep nobody out."""
        with self._mutex:
            return None if self._fd is None else _read(self._tree, self._fd)

    def close(self) -> None:
        """Let go of it. Closing twice does nothing."""
        with self._mutex:
            if self._fd is not None:
                fd, self._fd = self._fd, None
                with suppress(OSError):  # nothing that matters was written, and the lock is gone
                    self._tree.fs.close(fd)


@contextmanager
def held(
    tree: Tree, name: str, *, wait: Pause | None = None, report: Reporter = silent
) -> Iterator[Lock]:
    """Hold the lock file `name` below `tree`, made where there is none, with the directories above it.

    While somebody else holds it, `wait` is called between attempts; without `wait` that is a Conflict
    (`locked`) at once. Where the filesystem has no locks a warning is reported and nobody is kept out.
    """
    lock = Lock(tree, _acquire(tree, name, wait, report))
    try:
        yield lock
    finally:
        lock.close()


def _acquire(tree: Tree, name: str, wait: Pause | None, report: Reporter) -> int:
    holder: Holder | None = None
    missed = 0
    while missed < _ATTEMPTS:
        try:
            tree.make_directory(name.rpartition("/")[0])
            fd = tree.open_or_create(name)
        except StagingError as error:
            if not vanished(error):
                raise
            missed += 1
            continue
        with ExitStack() as unless_returned:
            unless_returned.callback(tree.fs.close, fd)
            with on_disk(name):
                taken = _take(tree, fd, name, report)
                inode = tree.fs.fstat(fd).st_ino
            entry = tree.entry(name)
            if taken and entry is not None and entry.stamp.inode == inode:
                unless_returned.pop_all()
                return fd
            holder = None if taken else _read(tree, fd)
        if (
            taken
        ):  # its last holder removed the file between our open and our lock: take the new one
            missed += 1
        elif wait is None:
            break
        else:
            wait(holder)
    who = f" ({holder.name})" if holder is not None and holder.name else ""
    raise Conflict(
        f"another process{who} is writing to {str(tree.path)!r}",
        reference="locked",
        hint="let it finish, or stop it, then run again; `model-downloader` waits unless told not to",
        side="local",
    )


def _take(tree: Tree, fd: int, name: str, report: Reporter) -> bool:
    try:
        return tree.fs.lock(fd)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        text = (
            f"{str(tree.path / name)!r} cannot be locked, the filesystem has no locks: several processes at"
            " once end in the same files, but each fetches them"
        )
        report(Note(text, warning=True))
        return True


def _read(tree: Tree, fd: int) -> Holder | None:
    buffer = bytearray(SIZE)
    with suppress(OSError), memoryview(buffer) as view:
        count = tree.fs.read_into(fd, view, 0)
        return Holder.decode(bytes(buffer[:count]))
    return None
