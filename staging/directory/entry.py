"""What a name in a directory is, as plain values."""

from __future__ import annotations

import enum
import os
import stat
from dataclasses import dataclass


class Kind(enum.Enum):
    """The kinds of directory entries that make a difference."""

    FILE = "regular file"
    DIRECTORY = "directory"
    SYMLINK = "symlink"
    OTHER = "special file"


@dataclass(frozen=True, slots=True)
class Stamp:
    """Tells an untouched file from a changed one without reading it: size in bytes, mtime, inode."""

    size: int
    mtime_ns: int
    inode: int

    @classmethod
    def of(cls, status: os.stat_result) -> Stamp:
        """Take the stamp of a stat result."""
        return cls(status.st_size, status.st_mtime_ns, status.st_ino)


@dataclass(frozen=True, slots=True)
class Entry:
    """A name's kind and stamp, its number of hard links and the bytes of disk it occupies."""

    kind: Kind
    stamp: Stamp
    links: int = 1
    allocated: int = 0

    @classmethod
    def of(cls, status: os.stat_result) -> Entry:
        """Describe the result of an lstat."""
        if stat.S_ISREG(status.st_mode):
            kind = Kind.FILE
        elif stat.S_ISDIR(status.st_mode):
            kind = Kind.DIRECTORY
        elif stat.S_ISLNK(status.st_mode):
            kind = Kind.SYMLINK
        else:
            kind = Kind.OTHER
        return cls(kind, Stamp.of(status), status.st_nlink, status.st_blocks * 512)
