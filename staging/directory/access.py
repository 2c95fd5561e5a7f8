"""May this process write here? Asked of the kernel, without writing.

Not guaranteed: that a write succeeds which was found allowed. Disks fill and permissions change.
"""

from __future__ import annotations

import os
import stat

from staging.directory.failure import on_disk
from staging.directory.fs import Fs
from staging.directory.tree import Tree
from staging.vocabulary.errors import StagingError


def may_write(name: str, *, dir_fd: int) -> bool:
    """True when this process may write to a file, or create names in a directory."""
    # Without `effective_ids`, which some sandboxes refuse; the programs have no other ones.
    is_directory = stat.S_ISDIR(os.stat(name, dir_fd=dir_fd, follow_symlinks=False).st_mode)
    mode = os.W_OK | os.X_OK if is_directory else os.W_OK
    return os.access(name, mode, dir_fd=dir_fd)


def is_read_only(fd: int) -> bool:
    """True when the filesystem of an open file or directory is mounted read-only."""
    return bool(os.fstatvfs(fd).f_flag & os.ST_RDONLY)


def refusal_below(tree: Tree, path: str = "") -> StagingError | None:
    """The error of whoever would write to `path` below a directory; None when they may.

    The directory itself when `path` is empty. Nothing is wrong with what does not exist.
    """
    shown = str(tree.path / path)
    try:
        with on_disk(shown):
            if not path:
                with tree.directory("") as fd:
                    return write_refusal(tree.fs, fd, ".", shown)
            try:
                with tree.parent(path) as (fd, name):
                    return write_refusal(tree.fs, fd, name, shown)
            except (FileNotFoundError, NotADirectoryError):
                return None  # what is in the way here is another finding
    except StagingError as error:
        return error


def write_refusal(fs: Fs, fd: int, name: str, path: str) -> StagingError | None:
    """The error of whoever would write to `name` in the directory `fd`; None when they may.

    `path` is what the message calls it. A name that does not exist is no error. Raises StagingError when
    it cannot be looked at.
    """
    with on_disk(path):
        try:
            status = fs.stat(name, dir_fd=fd)
        except FileNotFoundError:
            return None
        if stat.S_ISLNK(status.st_mode) or may_write(name, dir_fd=fd):
            return None  # who meets a link, refuses it
        try:  # `access` says no, too, of what another process has just removed
            if fs.stat(name, dir_fd=fd).st_nlink == 0:
                return None
        except FileNotFoundError:
            return None
        read_only = is_read_only(fd)
    if read_only:
        return StagingError(
            f"{path!r} is on a filesystem that is mounted read-only",
            reference="local-permission",
            hint="mount the volume without readOnly; where only the container's root is read-only, mount a"
            " volume here; a disk with errors is remounted so as well: see dmesg",
            side="local",
        )
    owner = f", or runAsUser: {status.st_uid}" if status.st_uid else ""  # pods do not run as root
    groups = " ".join(str(group) for group in sorted({os.getegid(), *os.getgroups()}))
    return StagingError(
        f"{path!r} is not writable for user {os.geteuid()} with groups {groups}: it belongs to user"
        f" {status.st_uid}, group {status.st_gid}, mode {stat.S_IMODE(status.st_mode):04o}",
        reference="local-permission",
        hint=f"in a pod set securityContext.fsGroup, which makes the volume writable for the group{owner};"
        " on a host, and for a hostPath volume, `chown` the directory",
        side="local",
    )
