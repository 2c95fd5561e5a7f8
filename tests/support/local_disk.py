"""Disks that fail: errors and kills at any change, and the states a power loss may leave behind."""

from __future__ import annotations

import errno
import os
import random
import stat
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

from staging.directory.fs import Fs

T = TypeVar("T")


class Killed(BaseException):
    """The process ended here."""


@dataclass
class Op:
    """One change, on nodes that are numbered from 0, the root, in order of appearance."""

    kind: str
    node: int
    name: str = ""
    target: int = -1
    data: bytes = b""
    offset: int = 0
    source: str = ""


class QuickFs(Fs):
    """The real file system, but for the waiting: nothing here survives a power loss."""

    def fsync(self, fd: int) -> None:
        os.fstat(fd)


class FaultyFs(QuickFs):
    """The real file system, whose `kill_at`-th change is the process's last, or `fail_at`-th fails.

    Changes are counted from 1. A killed write is torn: half of it arrives. `trace` records what was
    done, for `crash_states`.
    """

    def __init__(
        self, *, kill_at: int = 0, fail_at: int = 0, error: int = errno.EIO, root: str | None = None
    ) -> None:
        self.changes = 0
        self.failed: str | None = None
        self.trace: list[Op] = []
        self._kill_at = kill_at
        self._fail_at = fail_at
        self._error = error
        self._dead = False
        self._lock = threading.Lock()
        self._written: set[int] = set()
        self._nodes: dict[int, int] = {} if root is None else {os.stat(root).st_ino: 0}
        self._numbers = 1

    def _change(
        self, what: str, call: Callable[[], T], torn: Callable[[], object] | None = None
    ) -> T:
        with self._lock:
            if self._dead:
                raise Killed
            self.changes += 1
            if self.changes == self._fail_at:
                self.failed = what
                raise OSError(self._error, os.strerror(self._error))
            if self.changes == self._kill_at:
                self._dead = True
                (torn or call)()
                raise Killed
            return call()

    def _node(self, fd: int) -> int:
        return self._nodes.get(os.fstat(fd).st_ino, -1)

    def _new_node(self, inode: int) -> int:
        number = self._nodes[inode] = self._numbers
        self._numbers += 1
        return number

    def close(self, fd: int) -> None:
        """Closing is a change only behind a write, whose error it may report."""
        written = fd in self._written
        self._written.discard(fd)
        super().close(fd)
        if written and not self._dead:
            self._change("close", lambda: None)

    def create(self, name: str, *, dir_fd: int) -> int:
        def create() -> int:
            fd = Fs.create(self, name, dir_fd=dir_fd)
            self.trace.append(
                Op("link", self._node(dir_fd), name, self._new_node(os.fstat(fd).st_ino))
            )
            self.trace.append(Op("write", self._node(fd)))  # of nothing: a file from the start
            return fd

        return self._change("create", create, torn=lambda: os.close(create()))

    def mkdir(self, name: str, *, dir_fd: int | None = None) -> None:
        def mkdir() -> None:
            Fs.mkdir(self, name, dir_fd=dir_fd)
            inode = os.stat(name, dir_fd=dir_fd).st_ino
            above = None if dir_fd is not None else os.stat(os.path.dirname(name)).st_ino
            if above in self._nodes:
                self.trace.append(
                    Op("link", self._nodes[above], os.path.basename(name), self._new_node(inode))
                )
            elif dir_fd is None:
                self._nodes[inode] = 0
            else:
                self.trace.append(Op("link", self._node(dir_fd), name, self._new_node(inode)))

        self._change("mkdir", mkdir)

    def write(self, fd: int, view: memoryview, offset: int) -> int:
        def write(view: memoryview) -> int:
            count = Fs.write(self, fd, view, offset)
            self._written.add(fd)
            data = bytes(view[:count]) if count < 1 << 20 else b""
            self.trace.append(Op("write", self._node(fd), data=data, offset=offset))
            return count

        return self._change("write", lambda: write(view), lambda: write(view[: len(view) // 2]))

    def resize(self, fd: int, size: int) -> None:
        def resize() -> None:
            Fs.resize(self, fd, size)
            self.trace.append(Op("resize", self._node(fd), offset=size))

        self._change("resize", resize)

    def allocate(self, fd: int, offset: int, length: int) -> bool:
        return self._change("allocate", lambda: Fs.allocate(self, fd, offset, length))

    def add_mode(self, fd: int, bits: int) -> None:
        self._change("chmod", lambda: Fs.add_mode(self, fd, bits))

    def fsync(self, fd: int) -> None:
        def fsync() -> None:
            kind = "fsync-dir" if stat.S_ISDIR(os.fstat(fd).st_mode) else "fsync-file"
            self.trace.append(Op(kind, self._node(fd)))

        self._change("fsync", fsync)

    def rename(self, old: str, new: str, *, old_dir_fd: int, new_dir_fd: int) -> None:
        def rename() -> None:
            status = os.stat(old, dir_fd=old_dir_fd, follow_symlinks=False)
            node = self._nodes.get(status.st_ino, -1)
            Fs.rename(self, old, new, old_dir_fd=old_dir_fd, new_dir_fd=new_dir_fd)
            if self._node(new_dir_fd) == self._node(old_dir_fd):
                self.trace.append(Op("rename", self._node(new_dir_fd), new, node, source=old))
                return
            self.trace.append(Op("link", self._node(new_dir_fd), new, node))
            self.trace.append(Op("unlink", self._node(old_dir_fd), old))

        self._change("rename", rename)

    def link(self, old: str, new: str, *, old_dir_fd: int, new_dir_fd: int) -> None:
        def link() -> None:
            Fs.link(self, old, new, old_dir_fd=old_dir_fd, new_dir_fd=new_dir_fd)
            node = self._nodes.get(os.stat(old, dir_fd=old_dir_fd).st_ino, -1)
            self.trace.append(Op("link", self._node(new_dir_fd), new, node))

        self._change("link", link)

    def symlink(self, target: str, name: str, *, dir_fd: int) -> None:
        def symlink() -> None:
            Fs.symlink(self, target, name, dir_fd=dir_fd)
            inode = os.stat(name, dir_fd=dir_fd, follow_symlinks=False).st_ino
            node = self._new_node(inode)
            # Where it points to comes with its name: an inode, no data.
            self.trace.append(Op("write", node, data=os.fsencode(target)))
            self.trace.append(Op("fsync-file", node))
            self.trace.append(Op("link", self._node(dir_fd), name, node))

        self._change("symlink", symlink)

    def exchange(self, one: str, other: str, *, one_dir_fd: int, other_dir_fd: int) -> bool:
        def exchange() -> bool:
            if not Fs.exchange(self, one, other, one_dir_fd=one_dir_fd, other_dir_fd=other_dir_fd):
                return False
            for name, dir_fd in ((one, one_dir_fd), (other, other_dir_fd)):
                node = self._nodes.get(
                    os.stat(name, dir_fd=dir_fd, follow_symlinks=False).st_ino, -1
                )
                self.trace.append(Op("link", self._node(dir_fd), name, node))
            return True

        return self._change("exchange", exchange)

    def unlink(self, name: str, *, dir_fd: int) -> None:
        def unlink() -> None:
            Fs.unlink(self, name, dir_fd=dir_fd)
            self.trace.append(Op("unlink", self._node(dir_fd), name))

        self._change("unlink", unlink)

    def rmdir(self, name: str, *, dir_fd: int) -> None:
        def rmdir() -> None:
            Fs.rmdir(self, name, dir_fd=dir_fd)
            self.trace.append(Op("unlink", self._node(dir_fd), name))

        self._change("rmdir", rmdir)


@dataclass
class _File:
    data: bytearray = field(default_factory=bytearray)
    durable: bytes = b""
    dirty: bool = False


class CrashState:
    """What the disk holds after the power went: names and bytes."""

    def __init__(self, names: dict[int, dict[str, int]], contents: dict[int, bytes]) -> None:
        self._names = names
        self._contents = contents

    def is_directory(self, path: str) -> bool:
        """True when something may lie below a name."""
        node = self._node(path)
        return node is not None and node not in self._contents

    def read(self, path: str) -> bytes | None:
        """The bytes of a file, or None when its name or a directory above it is lost."""
        node = self._node(path)
        return None if node is None else self._contents.get(node, b"")

    def _node(self, path: str) -> int | None:
        node = 0
        for name in path.split("/"):
            found = self._names.get(node, {}).get(name)
            if found is None:
                return None
            node = found
        return node


def crash_states(trace: list[Op], rng: random.Random, samples: int) -> Iterator[CrashState]:
    """States after a power loss behind each change: any subset of what was not fsynced may be lost.

    Harsher than a journaling filesystem: changes of one directory are kept or lost one by one, though
    a rename within it is one change; moved between two, a name may be in both or in neither; a file
    that was written since its last fsync has the old bytes, the new ones, or half of them.
    """
    files: dict[int, _File] = {}
    durable: dict[int, dict[str, int]] = {}
    pending: dict[int, list[Op]] = {}
    for op in trace:
        if op.kind in ("link", "unlink", "rename"):
            pending.setdefault(op.node, []).append(op)
        elif op.kind == "fsync-dir":
            _apply(durable.setdefault(op.node, {}), pending.pop(op.node, []))
        else:
            file = files.setdefault(op.node, _File())
            if op.kind == "fsync-file":
                file.durable, file.dirty = bytes(file.data), False
            else:
                end = op.offset + len(op.data)
                file.data.extend(bytes(max(0, end - len(file.data))))
                file.data[op.offset : end] = op.data
                file.dirty = True
        for sample in range(samples + 2):
            share = {0: 0.0, 1: 1.0}.get(sample, rng.random())
            names = {node: dict(entries) for node, entries in durable.items()}
            for node, ops in pending.items():
                kept = [op for op in ops if rng.random() < share]
                _apply(names.setdefault(node, {}), kept)
            contents = {
                node: rng.choice(
                    [file.durable, bytes(file.data), bytes(file.data[: len(file.data) // 2])]
                )
                if file.dirty
                else file.durable
                for node, file in files.items()
            }
            yield CrashState(names, contents)


def _apply(entries: dict[str, int], ops: list[Op]) -> None:
    for op in ops:
        if op.kind != "link":
            entries.pop(op.name if op.kind == "unlink" else op.source, None)
        if op.kind != "unlink":
            entries[op.name] = op.target
