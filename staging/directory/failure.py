"""What the local disk can do to us, as errors an operator can act on: the one mapping of OSError."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from staging.vocabulary.errors import Conflict, NoSpace, StagingError

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_FORBIDDEN: Final = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_VANISHED: Final = frozenset({errno.ENOENT, errno.ESTALE})
_MOVED: Final = _VANISHED | {errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR, errno.EISDIR}


@contextmanager
def on_disk(path: str | Path) -> Iterator[None]:
    """Turn an OSError of the body into a StagingError that names `path`."""
    try:
        yield
    except OSError as error:
        raise local_failure(error, path) from error


@contextmanager
def all_closed() -> Iterator[list[Callable[[], None]]]:
    """Make the calls that were put on the list, the last one first; one that fails stops no other.

    An error of the body is the one that is raised, else the first of a call; the others are its notes.
    """
    closers: list[Callable[[], None]] = []
    try:
        yield closers
    except BaseException as error:
        for failure in _failures(closers):
            error.add_note(str(failure))
        raise
    failures = _failures(closers)
    for failure in failures[1:]:
        failures[0].add_note(str(failure))
    if failures:
        raise failures[0]


def _failures(closers: Sequence[Callable[[], None]]) -> list[StagingError]:
    failed: list[StagingError] = []
    for close in reversed(closers):
        try:
            close()
        except StagingError as error:
            failed.append(error)
    return failed


def local_failure(error: OSError, path: str | Path) -> StagingError:
    """NoSpace for a full disk or quota, Conflict for a symlink, else a StagingError."""
    reason = os.strerror(error.errno) if error.errno else str(error)
    message = f"{str(path)!r}: {reason}"
    if error.errno in _FULL:
        return NoSpace(
            message,
            reference="no-space",
            hint="free space on the destination's filesystem or raise the quota, then run again:"
            " what was fetched is kept",
            side="local",
        )
    if error.errno == errno.ELOOP:
        return symlink(path)
    if error.errno in _FORBIDDEN:
        return StagingError(
            message,
            reference="local-permission",
            hint="the destination must be writable for this user; in a pod set securityContext.fsGroup"
            " and mount the volume without readOnly",
            side="local",
        )
    return StagingError(
        message,
        reference="local-io",
        hint="check the disk (dmesg, kubectl describe node), then run again",
        side="local",
    )


def changed_locally(path: str | Path) -> Conflict:
    """The refusal to go on after somebody else wrote to a file."""
    return Conflict(
        f"{str(path)!r} was changed by somebody else meanwhile",
        reference="changed-locally",
        hint="let nothing else write to the directory, then run again: what was fetched is kept",
        side="local",
    )


def symlink(path: str | Path) -> Conflict:
    """The refusal of a symlink where a file or directory of ours belongs."""
    return Conflict(
        f"{str(path)!r} is a symlink, which is not followed",
        reference="symlink",
        hint="remove the link, or give the real directory as the destination",
        side="local",
    )


def vanished(error: StagingError) -> bool:
    """True when a name was gone that had to be there."""
    cause = error.__cause__
    return isinstance(cause, OSError) and cause.errno in _VANISHED


def met_another(error: StagingError) -> bool:
    """True when something was not as it was a moment ago: another look may find it complete."""
    cause = error.__cause__
    if error.reference == "symlink":  # it stays, however often one looks
        return False
    return error.reference == "changed-locally" or (
        isinstance(cause, OSError) and cause.errno in _MOVED
    )
