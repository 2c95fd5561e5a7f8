"""A destination directory: its documents, its files, its lock.

    with LocalDirectory(path) as local:
        manifest = local.read_manifest()
        with local.open_member("config.json") as member: ...

Invariants: reading changes nothing on disk; everything is reached without following symlinks (I10).
Not guaranteed: that the lock keeps out programs other than ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from staging.directory.entry import Kind, Stamp
from staging.directory.fs import Fs
from staging.directory.lock import Lock, Pause, held
from staging.directory.marker import MAX_MARKER_BYTES, Marker
from staging.directory.names import LOCK_NAME, READY_NAME, is_begun
from staging.directory.tree import Member, Tree
from staging.vocabulary.errors import StagingError
from staging.vocabulary.events import Reporter, silent
from staging.vocabulary.location import MANIFEST_NAME
from staging.vocabulary.manifest import MAX_MANIFEST_BYTES, Manifest
from staging.vocabulary.paths import CONTROL_DIRECTORY, SafePath, is_reserved, why_unsafe


class LocalDirectory:
    """One directory that holds, or is to hold, one checkpoint. Close it, or use `with`.

    Raises NotFound (`destination`) when it does not exist, Conflict when it is something else or a
    symlink. `create` makes the directory itself, never its parents.
    """

    def __init__(self, path: Path, *, fs: Fs | None = None, create: bool = False) -> None:
        self.path = path
        self.tree = Tree.open(path, fs=fs or Fs(), create=create)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the directory."""
        self.tree.close()

    def read_marker(self) -> Marker | None:
        """The ready marker, or None when there is none. Raises MalformedInput."""
        data = self.tree.read_document(READY_NAME, limit=MAX_MARKER_BYTES)
        return None if data is None else Marker.decode(data)

    def read_manifest(self) -> Manifest | None:
        """The manifest published here last, or None when there is none. Raises MalformedInput."""
        return self._read_manifest(MANIFEST_NAME)

    def begun_manifests(self) -> list[str]:
        """Names of the manifests whose publishing began here and did not end."""
        return [
            f"{CONTROL_DIRECTORY}/{name}"
            for name in self.tree.listing(CONTROL_DIRECTORY)
            if is_begun(name)
        ]

    def read_begun_manifest(self, name: str) -> Manifest | None:
        """One of `begun_manifests`. Raises MalformedInput."""
        return self._read_manifest(name)

    def is_intact(self, marker: Marker) -> bool:
        """True when every file has the stamp that the marker holds: no byte is read."""
        for path, stamp in marker.files.items():
            entry = self.tree.entry(path)
            if entry is None or entry.kind is not Kind.FILE or entry.stamp != stamp:
                return False
        return True

    def files(self) -> dict[SafePath, Stamp]:
        """Regular files with safe names, outside the reserved ones; links are not followed."""
        return {
            SafePath(path): entry.stamp
            for path, entry in self.tree.walk()
            if entry.kind is Kind.FILE and not is_reserved(path) and why_unsafe(path) is None
        }

    def open_member(self, path: SafePath) -> Member:
        """Open a file for reading, as a `ReadAt`. Raises NotFound, Conflict."""
        return self.tree.open_member(path)

    @contextmanager
    def locked(self, *, wait: Pause | None = None, report: Reporter = silent) -> Iterator[Lock]:
        """Hold the lock that writers take, as `staging.directory.lock.held` does.

        When the body is refused before anything was put here, the control directory goes again.
        """
        with held(self.tree, LOCK_NAME, wait=wait, report=report) as lock:
            try:
                yield lock
            except StagingError as error:
                try:
                    self._leave_no_trace()
                except StagingError as second:
                    error.add_note(second.message)
                raise

    def _leave_no_trace(self) -> None:
        if self.tree.listing(CONTROL_DIRECTORY) == [LOCK_NAME.rpartition("/")[2]]:
            self.tree.unlink(LOCK_NAME)
            self.tree.remove_if_empty(CONTROL_DIRECTORY)

    def _read_manifest(self, name: str) -> Manifest | None:
        data = self.tree.read_document(name, limit=MAX_MANIFEST_BYTES)
        return None if data is None else Manifest.decode(data)
