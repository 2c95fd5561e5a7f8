"""System calls on files, one method each: the only place that touches the disk.

Everything above goes through an `Fs`, so that tests can fail or end the process at any single call.
Names are taken relative to a directory descriptor, and a symlink as their last component is never
followed (I10); walking down to that directory is the business of `staging.directory.tree`.
All methods raise OSError.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
from collections.abc import Iterator
from typing import Final

# A FIFO must not block whoever opens it; for regular files and directories the flag means nothing.
_ALWAYS: Final = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_UNSUPPORTED: Final = frozenset({errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS})


class Fs:
    """The real file system. Methods under "changes" are the ones that alter what is on disk."""

    # --- looks ---

    def open(self, name: str, flags: int, *, dir_fd: int | None = None) -> int:
        """Open something that exists, without following a symlink."""
        return os.open(name, flags | _ALWAYS, dir_fd=dir_fd)

    def close(self, fd: int) -> None:
        """Close a descriptor. It is gone even when this raises."""
        os.close(fd)

    def stat(self, name: str, *, dir_fd: int) -> os.stat_result:
        """Describe `name` itself, not what a symlink points to."""
        return os.stat(name, dir_fd=dir_fd, follow_symlinks=False)

    def fstat(self, fd: int) -> os.stat_result:
        """Describe an open file."""
        return os.fstat(fd)

    def listdir(self, fd: int) -> list[str]:
        """Names in an open directory, sorted."""
        return sorted(os.listdir(fd))

    def read_into(self, fd: int, view: memoryview, offset: int) -> int:
        """Read at `offset` and return how many bytes came; 0 at the end of the file."""
        return os.preadv(fd, [view], offset)

    def free_bytes(self, fd: int) -> int | None:
        """Bytes this user may still write on the filesystem of `fd`, or None when it does not tell."""
        status = os.fstatvfs(fd)
        return status.f_bavail * status.f_frsize if status.f_blocks else None

    def data_extents(self, fd: int, size: int) -> Iterator[tuple[int, int]]:
        """Start and end of the stretches of a file that are not holes; all of it where unknown."""
        at = 0
        while at < size:
            try:
                start = os.lseek(fd, at, os.SEEK_DATA)
                end = os.lseek(fd, start, os.SEEK_HOLE)
            except OSError as error:
                if error.errno == errno.ENXIO:  # nothing but a hole from here on
                    return
                if error.errno not in _UNSUPPORTED:
                    raise
                start, end = at, size
            yield start, min(end, size)
            at = end

    def drop_cache(self, fd: int) -> None:
        """Ask the kernel to forget clean pages, so that the next read comes from the disk."""
        with contextlib.suppress(OSError):  # advice: a filesystem may decline it
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def lock(self, fd: int) -> bool:
        """Take the exclusive lock of an open file; False when somebody else holds it."""
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    # --- changes ---

    def create(self, name: str, *, dir_fd: int) -> int:
        """Create a file that must not exist, open for reading and writing."""
        return os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | _ALWAYS, 0o644, dir_fd=dir_fd)

    def mkdir(self, name: str, *, dir_fd: int | None = None) -> None:
        """Create a directory."""
        os.mkdir(name, 0o755, dir_fd=dir_fd)

    def write(self, fd: int, view: memoryview, offset: int) -> int:
        """Write at `offset` and return how many bytes were taken."""
        return os.pwrite(fd, view, offset)

    def allocate(self, fd: int, size: int) -> None:
        """Make a file `size` bytes long and reserve its blocks where the filesystem can."""
        # Not posix_fallocate: where the filesystem cannot, glibc writes a byte into every block instead.
        while _LIBC.fallocate(fd, 0, ctypes.c_int64(0), ctypes.c_int64(size)) != 0:
            number = ctypes.get_errno()
            if number in _UNSUPPORTED:
                os.ftruncate(fd, size)
                return
            if number != errno.EINTR:
                raise OSError(number, os.strerror(number))

    def add_mode(self, fd: int, bits: int) -> None:
        """Grant permissions without taking any away: a volume's setgid bit has to survive."""
        mode = os.fstat(fd).st_mode & 0o7777
        if mode & bits != bits:
            os.fchmod(fd, mode | bits)

    def fsync(self, fd: int) -> None:
        """Make a file or directory durable."""
        os.fsync(fd)

    def rename(self, old: str, new: str, *, old_dir_fd: int, new_dir_fd: int) -> None:
        """Move a name, atomically replacing a file that has the new one."""
        os.rename(old, new, src_dir_fd=old_dir_fd, dst_dir_fd=new_dir_fd)

    def unlink(self, name: str, *, dir_fd: int) -> None:
        """Remove a name of a file; a symlink is removed, not followed."""
        os.unlink(name, dir_fd=dir_fd)

    def rmdir(self, name: str, *, dir_fd: int) -> None:
        """Remove an empty directory."""
        os.rmdir(name, dir_fd=dir_fd)
