"""A directory held open, and everything below it reached from its descriptor.

Invariants: every component of every name is opened without following symlinks, so nothing outside
the directory is read or written whatever lies in it and whoever changes it meanwhile (I10); documents
appear whole or not at all and are durable when `write_document` returns (I5).
Not guaranteed: that a name still means the same file at the next call; callers hold the lock and
compare stamps. Errors are StagingErrors that name the path.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from staging.directory.entry import Entry, Kind, Stamp
from staging.directory.failure import changed_locally, on_disk, symlink
from staging.directory.fs import Fs
from staging.directory.names import parents
from staging.vocabulary.errors import (
    Conflict,
    MalformedInput,
    NotFound,
    StagingError,
)

FILE_MODE: Final = 0o644
DIRECTORY_MODE: Final = 0o755
"""Least permissions of what is created, whatever the umask: another user serves the files."""


class Member:
    """One regular file, open for reading: a `ReadAt`."""

    def __init__(self, fs: Fs, fd: int, path: str) -> None:
        self._fs = fs
        self._fd = fd
        self.path = path
        self.stamp = Stamp.of(fs.fstat(fd))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def size(self) -> int:
        """Length in bytes when it was opened."""
        return self.stamp.size

    def read_at(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes from `offset`. Raises ValueError outside the file."""
        buffer = bytearray(length)
        with memoryview(buffer) as view:
            self.read_into(offset, view)
        return bytes(buffer)

    def read_into(self, offset: int, view: memoryview) -> None:
        """Fill `view` from `offset`. Raises ValueError outside the file, StagingError on failure."""
        if offset < 0 or offset + len(view) > self.size:
            raise ValueError(f"range {offset}+{len(view)} lies outside {self.size} bytes")
        done = 0
        with on_disk(self.path):
            while done < len(view):
                count = self._fs.read_into(self._fd, view[done:], offset + done)
                if count == 0:
                    raise changed_locally(self.path)
                done += count

    def data_extents(self) -> list[tuple[int, int]]:
        """Start and end of the stretches that are not holes, as far as the filesystem tells."""
        with on_disk(self.path):
            return list(self._fs.data_extents(self._fd, self.size))

    def settle(self) -> None:
        """Make the file durable and have it read from the disk next, not from memory."""
        with on_disk(self.path):
            self._fs.fsync(self._fd)
            self._fs.drop_cache(self._fd)

    def clone_to(self, fd: int) -> bool:
        """Let another open file share this one's blocks; False where that is impossible."""
        with on_disk(self.path):
            return self._fs.clone(self._fd, fd)

    def close(self) -> None:
        """Close the file."""
        with on_disk(self.path):
            self._fs.close(self._fd)


class Tree:
    """A directory and what lies below it. Paths are relative, with `/` between components."""

    def __init__(self, fs: Fs, fd: int, path: Path) -> None:
        self.fs = fs
        self.path = path
        self._fd = fd

    @classmethod
    def open(cls, path: Path, *, fs: Fs, create: bool = False) -> Tree:
        """Hold an existing directory open; `create` makes it, but not its parents.

        Links on the way to `path` are the operator's and are followed, a link at its end is refused.
        Raises NotFound, or Conflict when something else is there.
        """
        name = os.fspath(path)
        with on_disk(path):
            try:
                return cls(fs, _open_root(fs, name, create=create), path)
            except FileNotFoundError as error:
                raise NotFound(
                    f"there is no directory {name!r}",
                    reference="destination",
                    hint="check the path and that its volume is mounted; only the last component is"
                    " created",
                    side="local",
                ) from error
            except NotADirectoryError as error:
                if path.is_symlink():
                    raise symlink(path) from error
                raise Conflict(
                    f"{name!r} is not a directory",
                    reference="destination",
                    hint="give a directory as the destination",
                    side="local",
                ) from error

    def close(self) -> None:
        """Let go of the directory."""
        with on_disk(self.path):
            self.fs.close(self._fd)

    # --- looks ---

    @contextlib.contextmanager
    def below(self, path: str) -> Iterator[Tree]:
        """Hold a directory below open, for looks at many names in it."""
        with on_disk(path), self.directory(path) as fd:
            yield Tree(self.fs, fd, self.path / path)

    def entry(self, path: str) -> Entry | None:
        """Describe a name without following links. None when it, or a directory above, is not there."""
        with on_disk(path):
            try:
                with self.parent(path) as (fd, name):
                    return Entry.of(self.fs.stat(name, dir_fd=fd))
            except (FileNotFoundError, NotADirectoryError):
                return None

    def target(self, path: str) -> str | None:
        """What a symlink points to; None for anything else, and for a name that is not there."""
        with on_disk(path):
            try:
                with self.parent(path) as (fd, name):
                    return self.fs.readlink(name, dir_fd=fd)
            except OSError as error:
                if error.errno in (errno.EINVAL, errno.ENOENT, errno.ENOTDIR):
                    return None
                raise

    def listing(self, path: str = "") -> list[str]:
        """Names in a directory, sorted; none when it does not exist."""
        with on_disk(path or self.path):
            try:
                with self.directory(path) as fd:
                    return self.fs.listdir(fd)
            except FileNotFoundError:
                return []

    def walk(self, path: str = "") -> Iterator[tuple[str, Entry]]:
        """Everything below a directory, parents before children, in order of names."""
        prefix = f"{path}/" if path else ""
        waiting = [f"{prefix}{name}" for name in reversed(self.listing(path))]
        while waiting:  # not a call for each level: others decide how deep it goes
            below = waiting.pop()
            entry = self.entry(below)
            if entry is None:
                continue
            yield below, entry
            if entry.kind is Kind.DIRECTORY:
                waiting += [f"{below}/{name}" for name in reversed(self.listing(below))]

    def open_member(self, path: str) -> Member:
        """Open a regular file for reading. Raises NotFound, or Conflict for anything else."""
        with on_disk(path):
            try:
                with self.parent(path) as (dir_fd, name):
                    fd = self.fs.open(name, os.O_RDONLY, dir_fd=dir_fd)
            except FileNotFoundError as error:
                raise NotFound(
                    f"there is no file {path!r} in {str(self.path)!r}",
                    reference="file",
                    side="local",
                ) from error
            self._check_regular(fd, path)
            return Member(self.fs, fd, path)

    def read_document(self, path: str, *, limit: int) -> bytes | None:
        """A small file's bytes, or None when it does not exist. MalformedInput above `limit` bytes."""
        if self.entry(path) is None:
            return None
        try:
            opened = self.open_member(path)
        except NotFound:  # it went this very moment
            return None
        with opened as member:
            if member.size > limit:
                raise MalformedInput(
                    f"{path!r} has {member.size} bytes, at most {limit} are read",
                    reference="document-too-long",
                    side="local",
                )
            return member.read_at(0, member.size)

    def free_bytes(self) -> int | None:
        """Bytes that may still be written here, or None when the filesystem does not tell."""
        with on_disk(self.path):
            return self.fs.free_bytes(self._fd)

    # --- changes ---

    def open_writable(self, path: str) -> int:
        """Open an existing regular file for reading and writing. The caller closes the descriptor."""
        with on_disk(path), self.parent(path) as (dir_fd, name):
            fd = self.fs.open(name, os.O_RDWR, dir_fd=dir_fd)
            self._check_regular(fd, path)
            return fd

    def create(self, path: str) -> int:
        """Create a file that must not exist. The caller closes the descriptor."""
        with on_disk(path), self.parent(path) as (dir_fd, name):
            return self.fs.create(name, dir_fd=dir_fd)

    def open_or_create(self, path: str) -> int:
        """Open a regular file for reading and writing, made when there is none."""
        with on_disk(path), self.parent(path) as (dir_fd, name):
            try:
                return self.fs.create(name, dir_fd=dir_fd)
            except FileExistsError:
                fd = self.fs.open(name, os.O_RDWR, dir_fd=dir_fd)
            self._check_regular(fd, path)
            return fd

    def make_directory(self, path: str) -> None:
        """Create a directory and those above it, where they do not exist. The root is there."""
        for directory in [*parents(path), path] if path else ():
            with on_disk(directory), self.parent(directory) as (dir_fd, name):
                try:
                    self.fs.mkdir(name, dir_fd=dir_fd)
                except FileExistsError:
                    continue
                fd = self._enter(dir_fd, name, directory)
                try:
                    self.fs.add_mode(fd, DIRECTORY_MODE)
                finally:
                    self.fs.close(fd)

    def rename(self, old: str, new: str, *, into: Tree | None = None) -> None:
        """Move a file to a name in an existing directory, replacing a file that is there.

        The new name is below `into`, when that is given.
        """
        with (
            on_disk(new),
            self.parent(old) as (old_fd, old_name),
            (into or self).parent(new) as (new_fd, new_name),
        ):
            self.fs.rename(old_name, new_name, old_dir_fd=old_fd, new_dir_fd=new_fd)

    def exchange(self, one: str, other: str) -> bool:
        """Swap what two names mean, atomically; False where that is impossible."""
        with (
            on_disk(other),
            self.parent(one) as (one_fd, one_name),
            self.parent(other) as (other_fd, other_name),
        ):
            return self.fs.exchange(one_name, other_name, one_dir_fd=one_fd, other_dir_fd=other_fd)

    def link(self, old: str, new: str) -> None:
        """Give a file a second name in an existing directory."""
        with (
            on_disk(new),
            self.parent(old) as (old_fd, old_name),
            self.parent(new) as (new_fd, new_name),
        ):
            self.fs.link(old_name, new_name, old_dir_fd=old_fd, new_dir_fd=new_fd)

    def symlink(self, target: str, path: str) -> None:
        """Create a symlink, whose name must not exist."""
        with on_disk(path), self.parent(path) as (fd, name):
            self.fs.symlink(target, name, dir_fd=fd)

    def unlink(self, path: str) -> None:
        """Remove a file's name; one that is gone already is no error."""
        with on_disk(path):
            try:
                with self.parent(path) as (fd, name):
                    self.fs.unlink(name, dir_fd=fd)
            except FileNotFoundError:
                return

    def remove_if_empty(self, path: str) -> None:
        """Remove a directory unless something is in it."""
        with on_disk(path):
            try:
                with self.parent(path) as (fd, name):
                    self.fs.rmdir(name, dir_fd=fd)
            except FileNotFoundError:
                return
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise

    def remove_tree(self, path: str) -> None:
        """Remove a name and everything below it; links are removed, not followed."""
        entry = self.entry(path)
        if entry is None:
            return
        if entry.kind is not Kind.DIRECTORY:
            self.unlink(path)
            return
        for below, found in reversed(list(self.walk(path))):  # what is inside comes first
            if found.kind is Kind.DIRECTORY:
                self.remove_if_empty(below)
            else:
                self.unlink(below)
        self.remove_if_empty(path)

    def fsync_directory(self, path: str = "") -> None:
        """Make the names in a directory durable."""
        with on_disk(path or self.path), self.directory(path) as fd:
            self.fs.fsync(fd)

    def write_document(self, path: str, data: bytes) -> None:
        """Replace a small file by `data`, atomically and durably, through a temporary name."""
        # Of its own, so that two who write at once never rename each other's half of a document.
        temporary = f"{path}.{secrets.token_hex(4)}.tmp"
        fd = self.create(temporary)
        try:
            with on_disk(temporary):
                try:
                    with memoryview(data) as view:
                        write_all(self.fs, fd, view, 0)
                    self.fs.add_mode(fd, FILE_MODE)
                    self.fs.fsync(fd)
                finally:
                    self.fs.close(fd)
            self.rename(temporary, path)
        except StagingError:
            self.unlink(temporary)  # never used again after a failed fsync or close (I15)
            raise
        self.fsync_directory(path.rpartition("/")[0])

    # --- walking down ---

    @contextlib.contextmanager
    def parent(self, path: str) -> Iterator[tuple[int, str]]:
        """The descriptor of the directory that `path` is in, and its name there. Raises OSError."""
        directory, _, name = path.rpartition("/")
        with self.directory(directory) as fd:
            yield fd, name

    @contextlib.contextmanager
    def directory(self, path: str) -> Iterator[int]:
        """The descriptor of a directory, for as long as the block runs. Raises OSError."""
        fd = self._fd
        try:
            for name in path.split("/") if path else ():
                inner = self._enter(fd, name, path)
                if fd != self._fd:
                    self.fs.close(fd)
                fd = inner
            yield fd
        finally:
            if fd != self._fd:
                self.fs.close(fd)

    def _enter(self, dir_fd: int, name: str, path: str) -> int:
        try:
            return self.fs.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=dir_fd)
        except OSError as error:
            # Linux answers ENOTDIR for a link that O_DIRECTORY and O_NOFOLLOW meet.
            if error.errno in (errno.ENOTDIR, errno.ELOOP) and stat.S_ISLNK(
                self.fs.stat(name, dir_fd=dir_fd).st_mode
            ):
                raise symlink(path) from error
            raise

    def _check_regular(self, fd: int, path: str) -> None:
        if not stat.S_ISREG(self.fs.fstat(fd).st_mode):
            self.fs.close(fd)
            raise Conflict(
                f"{path!r} is not a regular file",
                reference="foreign-file",
                hint="move it out of the directory",
                side="local",
            )


def _open_root(fs: Fs, name: str, *, create: bool) -> int:
    flags = os.O_RDONLY | os.O_DIRECTORY
    try:
        return fs.open(name, flags)
    except FileNotFoundError:
        if not create:
            raise
    with contextlib.suppress(FileExistsError):  # another process was quicker
        fs.mkdir(name)
    with contextlib.ExitStack() as unless_returned:
        fd = fs.open(name, flags)
        unless_returned.callback(fs.close, fd)
        fs.add_mode(fd, DIRECTORY_MODE)
        above = fs.open("..", flags, dir_fd=fd)
        try:
            fs.fsync(above)  # the new directory's own name has to be durable as well
        finally:
            fs.close(above)
        unless_returned.pop_all()
    return fd


def write_all(fs: Fs, fd: int, view: memoryview, offset: int) -> None:
    """Write all of `view` at `offset`, however many calls that takes. Raises OSError."""
    done = 0
    while done < len(view):
        done += fs.write(fd, view[done:], offset + done)
