"""A directory that pods share: complete versions side by side, each under its id.

    CACHE/sha256-<hex>/                            a complete version with its manifest and marker
    CACHE/.checkpoint-cache/filling/sha256-<hex>/  the same, while it is being filled
    CACHE/.checkpoint-cache/locks/sha256-<hex>     held by whoever fills that version
    CACHE/.checkpoint-cache/trash/                 what was taken out and is being removed

A version is filled like any directory, all of it durable, and then gets its name by one rename. Equal
files of two versions are one file with two names.

Invariants: no file below a version's name is written ever again; a name appears with everything below it
(I5); what was filled is put in the place of a damaged version, never into it; a file with several names is
never written to.
Not guaranteed: room. Nothing is evicted; docs/decisions/0013-shared-directories.md says what an evictor
has to look at.
"""

from __future__ import annotations

import errno
import re
import secrets
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from staging.directory.entry import Kind, Stamp
from staging.directory.failure import changed_locally, met_another, on_disk
from staging.directory.fs import Fs
from staging.directory.lock import Lock, Pause, held
from staging.directory.names import PARTIAL_DIRECTORY, parents, partial_directory
from staging.directory.tree import FILE_MODE, Tree, write_all
from staging.vocabulary.digest import CHUNK_SIZE
from staging.vocabulary.errors import StagingError
from staging.vocabulary.events import Moved, Reporter

CONTROL: Final = ".checkpoint-cache"
_WORK: Final = f"{CONTROL}/filling"
_LOCKS: Final = f"{CONTROL}/locks"
_TRASH: Final = f"{CONTROL}/trash"

_ATTEMPTS: Final = 10
_VERSION = re.compile(r"sha256-[0-9a-f]{64}")
_ID = re.compile(r"sha256:[0-9a-f]{64}")
_NO_LINKS: Final = frozenset(
    {errno.EXDEV, errno.EMLINK, errno.EPERM, errno.EACCES, errno.EOPNOTSUPP, errno.ENOSYS}
)


def version_name(checkpoint_id: str) -> str | None:
    """The name of a version in a cache; None for what is no id."""
    return checkpoint_id.replace(":", "-") if _ID.fullmatch(checkpoint_id) else None


def is_version(name: str) -> bool:
    """True for the names that `version_name` makes."""
    return _VERSION.fullmatch(name) is not None


def work_path(cache: Path, name: str) -> Path:
    """Where the version `name` of a cache is filled, which need not exist yet, nor the cache."""
    return cache / _WORK / name


def cache_of(work: Path) -> Path | None:
    """The cache that `work` is a path of `work_path` in; None for any other path."""
    cache = work.parents[2] if len(work.parents) > 2 else None
    return cache if cache is not None and work_path(cache, work.name) == work else None


def versions_below(tree: Tree) -> list[str]:
    """Names of the versions in an open cache. A link or a file with such a name is none."""
    return [
        name
        for name in tree.listing()
        if is_version(name)
        and (entry := tree.entry(name)) is not None
        and entry.kind is Kind.DIRECTORY
    ]


class Cache:
    """One such directory, held open. Close it, or use `with`.

    Raises as `LocalDirectory`; the directory itself is created, never its parents.
    """

    def __init__(self, path: Path, *, fs: Fs) -> None:
        self.path = path
        self.tree = Tree.open(path, fs=fs, create=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.tree.close()

    def prepare(self) -> None:
        """Make the directories that a version is filled in."""
        for directory in (_WORK, _LOCKS, _TRASH):
            self.tree.make_directory(directory)

    def versions(self) -> list[str]:
        """Names of the versions, complete or damaged."""
        return versions_below(self.tree)

    def place_of(self, name: str) -> Path:
        """Where a version lies."""
        return self.path / name

    def work_of(self, name: str) -> Path:
        """Where a version is filled."""
        return work_path(self.path, name)

    def locked(
        self, name: str, *, wait: Pause | None, report: Reporter
    ) -> AbstractContextManager[Lock]:
        """Hold the lock of one version, as `staging.directory.lock.held` does."""
        return held(self.tree, f"{_LOCKS}/{name}", wait=wait, report=report)

    def share(self, name: str, path: str, stamp: Stamp, version: str, wanted: str) -> bool:
        """Give the file `path` of the version `name` a second name in the work directory of `version`.

        True when it is there as `wanted`; False when that was refused, or something else lies there.
        """
        work = f"{_WORK}/{version}"
        there = self.tree.entry(f"{work}/{wanted}")
        if there is not None:
            return there.stamp == stamp
        for directory in (work, *(f"{work}/{above}" for above in parents(wanted))):
            self.tree.make_directory(directory)
        try:
            self.tree.link(f"{name}/{path}", f"{work}/{wanted}")
        except StagingError as error:
            cause = error.__cause__
            if not isinstance(cause, OSError) or cause.errno not in _NO_LINKS:
                raise
            return False
        return True

    def refuses_links(self, name: str, path: str) -> bool:
        """True when the file `path` of the version `name` cannot have a second name: tried, and undone."""
        probe = f"{_TRASH}/{name}.{secrets.token_hex(4)}"
        try:
            self.tree.link(f"{name}/{path}", probe)
        except StagingError as error:
            cause = error.__cause__
            if not isinstance(cause, OSError) or cause.errno not in _NO_LINKS:
                raise
            return True
        self.tree.unlink(probe)
        return False

    def has_copy(self, version: str, wanted: str) -> bool:
        """True when something lies where `wanted` would be filled, or copied to."""
        work = f"{_WORK}/{version}"
        names = f"{work}/{wanted}", f"{work}/{partial_directory(version)}/{wanted}"
        return any(self.tree.entry(name) is not None for name in names)

    def copy(self, name: str, path: str, version: str, wanted: str, report: Reporter) -> None:
        """Copy the file `path` of the version `name` to the partial files of `version`, as `wanted`.

        The copy is neither verified nor durable.
        """
        self._copy(
            f"{name}/{path}", f"{_WORK}/{version}/{partial_directory(version)}/{wanted}", report
        )

    def place(self, name: str, is_complete: Callable[[], bool]) -> None:
        """Give a filled version its name, durably; a damaged version that has it goes.

        `is_complete` tells whether what has the name is complete: then another process came first.
        """
        tree, work = self.tree, f"{_WORK}/{name}"
        for _ in range(_ATTEMPTS):
            there = tree.entry(name)
            if there is not None and there.kind is Kind.DIRECTORY and is_complete():
                break
            if tree.entry(work) is None:
                raise changed_locally(self.work_of(name))
            try:
                if there is None:
                    tree.rename(work, name)
                    break
                # At once where that can be: whoever follows a link to it finds the old one or the new.
                if tree.exchange(work, name):
                    break
                tree.rename(name, f"{_TRASH}/{name}.{secrets.token_hex(4)}")
            except StagingError as error:
                if not met_another(error):
                    raise
        else:
            raise changed_locally(self.place_of(name))
        tree.fsync_directory()
        tree.fsync_directory(_WORK)
        self.discard(name)

    def discard(self, name: str) -> None:
        """Remove what lies in a version's work directory, and the trash."""
        if self.tree.entry(f"{_WORK}/{name}") is not None:
            # Renamed first: another process may take it for its own, which it is not any more.
            aside = f"{_TRASH}/{name}.{secrets.token_hex(4)}"
            self.tree.rename(f"{_WORK}/{name}", aside)
        for leftover in self.tree.listing(_TRASH):
            self.tree.remove_tree(f"{_TRASH}/{leftover}")

    def tidy(self, name: str) -> None:
        """Remove partial files from a complete version: of runs that no lock kept from filling it too."""
        self.tree.remove_tree(f"{name}/{PARTIAL_DIRECTORY}")

    def discard_links(self, name: str) -> None:
        """Remove a work directory that holds nothing an interrupted download could go on with."""
        if not self.tree.listing(f"{_WORK}/{name}/{partial_directory(name)}"):
            self.discard(name)

    def _copy(self, old: str, new: str, report: Reporter) -> None:
        self.tree.make_directory(new.rpartition("/")[0])
        fs = self.tree.fs
        with self.tree.open_member(old) as source:
            fd = self.tree.create(new)
            try:
                with on_disk(new), memoryview(bytearray(CHUNK_SIZE)) as buffer:
                    fs.add_mode(fd, FILE_MODE)
                    if source.clone_to(fd):
                        report(Moved(source.size))
                        return
                    for offset in range(0, source.size, CHUNK_SIZE):
                        with buffer[: min(CHUNK_SIZE, source.size - offset)] as view:
                            source.read_into(offset, view)
                            write_all(fs, fd, view, offset)
                            report(Moved(len(view)))
            finally:
                with on_disk(new):
                    fs.close(fd)
