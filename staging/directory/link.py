"""A symlink to a version in a cache: what a server follows, swapped in one step.

Invariants: whoever follows it finds a complete version, the old one or the new, or nothing before the first
(I5); only links that point into the cache are replaced; nothing but links of ours is removed.
The link is relative, so that it holds wherever the volume is mounted that has both.
"""

from __future__ import annotations

import os
import re
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Final

from staging.directory.access import refusal_below
from staging.directory.cache import CONTROL, is_version
from staging.directory.entry import Kind
from staging.directory.failure import changed_locally, met_another
from staging.directory.fs import Fs
from staging.directory.tree import Tree
from staging.vocabulary.errors import Conflict, StagingError

_ATTEMPTS: Final = 10


def followed(path: Path) -> Path:
    """The directory of the version that `path` is a link to; `path` itself when it is no such link."""
    if not path.is_symlink():
        return path
    target = Path(os.path.realpath(path))
    return target if is_version(target.name) and (target.parent / CONTROL).is_dir() else path


class VersionLink:
    """The name `path`, which is, or is to be, a link to a version in `cache`."""

    def __init__(self, path: Path, cache: Path, *, fs: Fs) -> None:
        self._path = path
        self._cache = os.path.realpath(cache)
        self._above = os.path.realpath(path.parent)  # links on the way are the operator's
        self._fs = fs

    def version(self) -> str | None:
        """The name of the version it points to; None when it does not exist yet.

        Raises NotFound when the directory above it does not exist, Conflict (`not-a-version-link`) when
        something else has the name.
        """
        tree = self._open()
        try:
            return self._version(tree)
        finally:
            tree.close()

    def refusal(self, version: str | None) -> StagingError | None:
        """Why it could not be made to point to `version`; None when it could, as far as can be told.

        Changes nothing. Without a `version` it is taken for one that it does not point to yet.
        """
        try:
            tree = self._open()
            try:
                there = self._version(tree)
                return None if there is not None and there == version else refusal_below(tree)
            finally:
                tree.close()
        except StagingError as error:
            return error

    def point(self, version: str) -> bool:
        """Make it point to a version, durably. False when it did already. Raises as `version`.

        The version's own name is made durable first: whoever gave it that may have been killed before.
        """
        target = os.path.relpath(os.path.join(self._cache, version), self._above)
        tree = self._open()
        try:
            if self._version(tree) == version:
                with suppress(StagingError):  # what a killed run left there is in nobody's way
                    self._clean(tree)
                return False
            cache = Tree.open(Path(self._cache), fs=self._fs)
            try:
                cache.fsync_directory()
            finally:
                cache.close()
            self._clean(tree)
            for _ in range(_ATTEMPTS):
                try:
                    if self._version(tree) is None:
                        tree.symlink(target, self._path.name)
                    else:
                        self._replace(tree, target)
                except StagingError as error:
                    if not met_another(error):
                        raise
                    continue
                tree.fsync_directory()
                return True
            raise changed_locally(self._path)
        finally:
            tree.close()

    def _open(self) -> Tree:
        return Tree.open(Path(self._above), fs=self._fs)

    def _replace(self, tree: Tree, target: str) -> None:
        """Swap the link for one to `target`; what turns out to be no link of ours gets its name back."""
        name = self._path.name
        temporary = f".{name}.{secrets.token_hex(4)}.link"
        try:
            tree.symlink(target, temporary)
            if not tree.exchange(temporary, name):
                tree.rename(temporary, name)
                return
            try:
                self._version(tree, temporary)
            except StagingError:
                tree.exchange(temporary, name)
                raise
        finally:
            if tree.target(temporary) is not None:
                tree.unlink(temporary)

    def _version(self, tree: Tree, at: str | None = None) -> str | None:
        """Where the link points, or what has the name `at` in its stead."""
        name = self._path.name
        if name in ("", "..") or (
            self._above == self._cache and (is_version(name) or name == CONTROL)
        ):
            raise self._in_the_way("is no name for a link")
        name = at or name
        entry = tree.entry(name)
        if entry is None:
            return None
        if entry.kind is Kind.DIRECTORY:
            raise self._in_the_way("is a directory")
        target = tree.target(name)
        if target is None:
            raise self._in_the_way("is not a symlink")
        directory, _, version = target.rpartition("/")
        if not is_version(version) or (
            os.path.realpath(os.path.join(self._above, directory)) != self._cache
        ):
            raise self._in_the_way(f"points to {target!r}")
        return version

    def _in_the_way(self, what: str) -> Conflict:
        return Conflict(
            f"{str(self._path)!r} {what}; with a cache it has to be a link into {self._cache!r}",
            reference="not-a-version-link",
            hint="remove it, or give a name that does not exist yet; a mount point cannot become a link:"
            " give a name below it, on the volume that has the cache",
            side="local",
        )

    def _clean(self, tree: Tree) -> None:
        """Remove what a killed run left."""
        ours = re.compile(re.escape(f".{self._path.name}.") + r"[0-9a-f]{8}\.link")
        for name in tree.listing():
            if ours.fullmatch(name) and tree.target(name) is not None:
                tree.unlink(name)
