"""A directory that no name leads out of: the way to files through whatever links lie in it.

The kernel follows links anywhere. Here every component is opened without following, and where a link is to
be followed it is read and walked by hand, so that `..` and absolute targets meet the limit (I10).

Invariants: whatever is opened lies below the directory that was opened first, whoever moves or replaces
names meanwhile. Methods raise OSError, and `Outside` for a link that leads out.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath
from threading import Lock
from typing import Final

MAX_LINKS: Final = 40
"""Links followed for one name, as in Linux."""

# A FIFO must not block whoever opens it; for regular files and directories the flag means nothing.
_FLAGS: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


class Outside(Exception):
    """A link leads out of the enclosure."""


class Enclosure:
    """An open directory. Places in it are relative paths without `.`, `..` and links; empty for itself."""

    def __init__(self, path: str) -> None:
        """Open the directory `path`, an absolute name without links. Raises OSError."""
        self._path = PurePosixPath(path)
        self._fd = os.open(path, _FLAGS | os.O_DIRECTORY)

    def close(self) -> None:
        """Let go of the directory."""
        os.close(self._fd)

    def open(self, place: str, flags: int = 0) -> int:
        """Open a file, or a directory with `O_DIRECTORY`. The caller closes the descriptor."""
        with self._parent(place) as (fd, name):
            return os.open(name, _FLAGS | flags, dir_fd=fd)

    def resolve(self, place: str) -> tuple[str, os.stat_result]:
        """Follow the links in `place`; return where that is, and what is there."""
        todo = place.split("/")[::-1]
        here: list[str] = []
        links = 0
        while todo:
            name = todo.pop()
            if name == "..":
                if not here:
                    raise Outside
                here.pop()
            elif name not in ("", "."):
                here.append(name)
                target = self._link("/".join(here))
                if target is None:
                    continue
                links += 1
                if links > MAX_LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
                here.pop()
                if target.startswith("/"):
                    here.clear()
                    target = self._below(target)
                todo += target.split("/")[::-1]
        found = "/".join(here)
        with self._parent(found) as (fd, name):
            return found, os.stat(name, dir_fd=fd, follow_symlinks=False)

    def _link(self, place: str) -> str | None:
        """Where a link leads; None for anything that is none."""
        with self._parent(place) as (fd, name):
            if not stat.S_ISLNK(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode):
                return None
            return os.readlink(name, dir_fd=fd)

    def _below(self, target: str) -> str:
        try:
            return str(PurePosixPath(target).relative_to(self._path))
        except ValueError:
            raise Outside from None

    @contextmanager
    def _parent(self, place: str) -> Iterator[tuple[int, str]]:
        *directories, name = place.split("/")
        fd = self._fd
        try:
            for directory in directories:
                inner = os.open(directory, _FLAGS | os.O_DIRECTORY, dir_fd=fd)
                if fd != self._fd:
                    os.close(fd)
                fd = inner
            yield fd, name or "."
        finally:
            if fd != self._fd:
                os.close(fd)


class _OpenFile:
    """A descriptor, how many reads use it now, and whether it stays open after them."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.users = 1
        self.kept = False


class OpenFiles:
    """Descriptors by name, opened when they are asked for; the last few used stay open. For threads."""

    def __init__(self, most: int) -> None:
        """Keep at most `most` open between uses."""
        self._most = most
        self._lock = Lock()
        self._kept: OrderedDict[str, _OpenFile] = OrderedDict()

    @contextmanager
    def use(self, name: str, open_file: Callable[[], int]) -> Iterator[int]:
        """The descriptor of `name`, made by `open_file` when none is open, for the body's reads."""
        with self._lock:
            file = self._kept.get(name)
            if file is not None:
                file.users += 1
                self._kept.move_to_end(name)
        if file is None:
            file = _OpenFile(open_file())  # outside the lock: it may take long on a network's disk
            self._keep(name, file)
        try:
            yield file.fd
        finally:
            with self._lock:
                file.users -= 1
                unused = not file.users and not file.kept
            if unused:
                os.close(file.fd)

    def close(self) -> None:
        """Close what is not in use; a read that is under way closes its own file."""
        with self._lock:
            self._drop(len(self._kept))

    def _keep(self, name: str, file: _OpenFile) -> None:
        with self._lock:
            if name not in self._kept:  # another thread may have opened it meanwhile
                file.kept = True
                self._kept[name] = file
                self._drop(len(self._kept) - self._most)

    def _drop(self, count: int) -> None:
        for _ in range(count):
            _, file = self._kept.popitem(last=False)
            file.kept = False
            if not file.users:
                os.close(file.fd)
