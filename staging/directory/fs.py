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
# sync_file_range(2). Sandboxes refuse calls they do not know with EPERM; pipes with ESPIPE.
_WAIT_BEFORE, _WRITE, _WAIT_AFTER = 1, 2, 4
_EXCHANGE: Final = 2  # RENAME_EXCHANGE of renameat2(2)
_FICLONE: Final = 0x40049409  # ioctl_ficlone(2)
_NO_CLONE: Final = _UNSUPPORTED | {
    errno.EXDEV,
    errno.ENOTTY,
    errno.EPERM,
    errno.EBADF,
    errno.ETXTBSY,
}
_NO_WRITE_BACK: Final = _UNSUPPORTED | {errno.EPERM, errno.ESPIPE}


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

    def readlink(self, name: str, *, dir_fd: int) -> str:
        """What a symlink points to."""
        return os.readlink(name, dir_fd=dir_fd)

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

    def drop_cache(self, fd: int, offset: int = 0, length: int = 0) -> None:
        """Ask the kernel to forget clean pages, so that the next read comes from the disk.

        A `length` of 0 reaches to the end of the file.
        """
        with contextlib.suppress(OSError):  # advice: a filesystem may decline it
            os.posix_fadvise(fd, offset, length, os.POSIX_FADV_DONTNEED)

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

    def start_write_back(self, fd: int, offset: int, length: int) -> None:
        """Have the kernel begin to write a range to the disk; not a word about durability."""
        _sync_file_range(fd, offset, length, _WRITE)

    def await_write_back(self, fd: int, offset: int, length: int) -> None:
        """Return when a range was handed to the disk, so that its pages are clean.

        An error is one that fsync would have told, and will not tell again.
        """
        _sync_file_range(fd, offset, length, _WAIT_BEFORE | _WRITE | _WAIT_AFTER)

    def resize(self, fd: int, size: int) -> None:
        """Make a file `size` bytes long: what is new is a hole."""
        os.ftruncate(fd, size)

    def allocate(self, fd: int, offset: int, length: int) -> bool:
        """Reserve the blocks of a range; False where the filesystem cannot."""
        # Not posix_fallocate: where the filesystem cannot, glibc writes a byte into every block instead.
        while _LIBC.fallocate(fd, 0, ctypes.c_int64(offset), ctypes.c_int64(length)) != 0:
            number = ctypes.get_errno()
            if number in _UNSUPPORTED:
                return False
            if number != errno.EINTR:
                raise OSError(number, os.strerror(number))
        return True

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

    def link(self, old: str, new: str, *, old_dir_fd: int, new_dir_fd: int) -> None:
        """Give a file a second name, which must not exist."""
        os.link(old, new, src_dir_fd=old_dir_fd, dst_dir_fd=new_dir_fd, follow_symlinks=False)

    def symlink(self, target: str, name: str, *, dir_fd: int) -> None:
        """Create a symlink, whose name must not exist."""
        os.symlink(target, name, dir_fd=dir_fd)

    def exchange(self, one: str, other: str, *, one_dir_fd: int, other_dir_fd: int) -> bool:
        """Swap what two names mean, atomically; False where the kernel or the filesystem cannot."""
        call = getattr(_LIBC, "renameat2", None)
        if call is None:
            return False
        names = os.fsencode(one), os.fsencode(other)
        if call(one_dir_fd, names[0], other_dir_fd, names[1], _EXCHANGE) != 0:
            number = ctypes.get_errno()
            if number in _UNSUPPORTED:
                return False
            raise OSError(number, os.strerror(number))
        return True

    def clone(self, source_fd: int, fd: int) -> bool:
        """Let a file share the blocks of another, copied when written; False where that is impossible."""
        try:
            fcntl.ioctl(fd, _FICLONE, source_fd)
        except OSError as error:
            if error.errno in _NO_CLONE:
                return False
            raise
        return True

    # --- courtesies ---

    def remark(self, fd: int, data: bytes) -> None:
        """Leave a remark at the start of a file, for others to see: no change that anything relies on."""
        with contextlib.suppress(OSError):
            os.pwrite(fd, data, 0)


def _sync_file_range(fd: int, offset: int, length: int, flags: int) -> None:
    """Call sync_file_range(2) where there is one."""
    call = getattr(_LIBC, "sync_file_range", None)
    if call is None:
        return
    while call(fd, ctypes.c_int64(offset), ctypes.c_int64(length), flags) != 0:
        number = ctypes.get_errno()
        if number in _NO_WRITE_BACK:
            return
        if number != errno.EINTR:
            raise OSError(number, os.strerror(number))
