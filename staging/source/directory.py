"""An already extracted checkpoint as an indexed source: the directory is the root, nothing is stripped.

Links are followed only inside the directory, or inside the Hugging Face cache of the model that it is a
snapshot of. What is neither a file nor a directory is refused, and so are names that an archive may not
have (I3, I10). What downloads and clones leave beside a model's files is skipped and named in `skipped`.

Invariants: a file's bytes are those of one version, or reading it raises (I7): size, times and inode are
looked at when it is found, when it is opened, after each read, and for all files together by `finish`,
which also finds files that were added or removed.
Memory: about 1 KB per file, of which there are at most 100,000; at most `MAX_OPEN` stay open between reads.
Not guaranteed: that a change is noticed which comes within the same tick of the file system's clock as
another one, or through a mapping that was not synchronised.
"""

from __future__ import annotations

import errno
import os
import shlex
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from staging.formats.tar import MAX_DEPTH, MAX_ENTRIES, MAX_NAME_BYTES
from staging.layout.inventory import directory_of, is_other_weights, is_safetensors
from staging.layout.root import find_root
from staging.source.enclosure import Enclosure, OpenFiles, Outside
from staging.source.source import LOCAL_READ_SIZE, SourceFile
from staging.vocabulary.errors import LayoutInvalid, MalformedInput, NotFound, StagingError
from staging.vocabulary.paths import NameSet, SafePath, UnsafePath, is_reserved
from staging.vocabulary.redaction import file_name, one_line

MAX_OPEN: Final = 64
"""Files that stay open between reads."""

_LEFT_BESIDE: Final = frozenset({".cache/huggingface", ".git", ".gitattributes"})
_GONE: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ESTALE})
_SHOWN: Final = 3
_SHOWN_LENGTH: Final = 200

Version = tuple[int, int, int, int, int]
"""Size in bytes, time of change of the content and of the inode in ns, inode, device."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a file's bytes are in the enclosure, and in which version."""

    path: str
    version: Version


class Directory:
    """The files below a directory of this machine."""

    kind = "directory"
    identity = None
    sequential = False
    memory = 0
    read_size = LOCAL_READ_SIZE

    def __init__(self, path: Path, *, target: str = "") -> None:
        """Walk the directory; `target` is only named in hints. Links on the way to it are followed.

        Raises NotFound, or StagingError when it cannot be read; MalformedInput for what is unsafe or no
        file, and LayoutInvalid when the checkpoint is not at its root.
        """
        self.name = file_name(Path(os.path.abspath(path)))
        self._shown = one_line(repr(str(path)))
        root = os.path.realpath(path)
        limit = _limit_of(root)
        self._root = "/".join(PurePosixPath(root).relative_to(limit).parts)
        try:
            os.close(os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
            self._enclosure = Enclosure(limit)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise NotFound(
                f"there is no directory {self._shown}",
                reference="source",
                hint="check the path",
                side="source",
            ) from error
        except OSError as error:
            raise self._failed("", error) from error
        self._open_files = OpenFiles(MAX_OPEN)
        self.skipped: tuple[str, ...] = ()
        """Names in the root that are no part of the checkpoint."""
        try:
            walk = self._walk()
            places = sorted(walk.places(), key=lambda item: item[0].sort_key)
            self.skipped = tuple(sorted(walk.skipped))
            self._places = dict(places)
            self._require_checkpoint(one_line(str(path)), target)
        except BaseException:
            self._enclosure.close()
            raise
        self.size = sum(place.version[0] for place in self._places.values())

    def files(self) -> Iterator[SourceFile]:
        """All files, in order of the bytes of their paths."""
        for path, place in self._places.items():
            size, modified, *_ = place.version
            yield SourceFile(path, size, 0, f"{size}-{modified}")

    def read_into(self, file: SourceFile, offset: int, view: memoryview) -> None:
        """Fill `view` with bytes of a file. Raises MalformedInput when it is not the one that was found."""
        place = self._places[file.path]
        try:
            with self._open_files.use(file.path, lambda: self._open(file.path, place)) as fd:
                done = 0
                while done < len(view):
                    count = os.preadv(fd, [view[done:]], offset + done)
                    if count == 0:
                        raise self._changed(file.path)
                    done += count
                if _version(os.fstat(fd)) != place.version:
                    raise self._changed(file.path)
        except OSError as error:
            raise self._failed(file.path, error) from error

    def finish(self) -> None:
        """Raise MalformedInput when a file was changed, replaced, added or removed meanwhile."""
        missing = dict(self._places)
        for path, place in self._walk().places():
            if missing.pop(path, None) != place:
                raise self._changed(path)
        for path in missing:
            raise self._changed(path)

    def close(self) -> None:
        """Close all files."""
        self._open_files.close()
        self._enclosure.close()

    def _walk(self) -> _Walk:
        return _Walk(self._enclosure, self._root, self._failed)

    def _open(self, path: str, place: Place) -> int:
        fd = self._enclosure.open(place.path)
        if _version(os.fstat(fd)) != place.version:
            os.close(fd)
            raise self._changed(path)
        return fd

    def _require_checkpoint(self, argument: str, target: str) -> None:
        """Raise MalformedInput for a directory without files, LayoutInvalid for files in the wrong place.

        The rules are those of archives, as if this directory were the one at their top.
        """
        if not self._places:
            raise MalformedInput(
                f"there are no files in {self._shown}",
                reference="no-files",
                hint="check that this is the checkpoint's directory, and that its volume is mounted",
                side="source",
            )
        try:
            find_root(f"m/{path}" for path in self._places)
        except LayoutInvalid as error:
            inner = _directories_of_weights(self._places)
            if not inner or error.reference == "deployment-bundle":
                raise
            upload = f"staging upload {shlex.quote(f'{argument}/{inner[0]}')} {shlex.quote(target)}"
            if len(inner) == 1:
                raise LayoutInvalid(
                    f"the weights are in the folder {inner[0][:_SHOWN_LENGTH]!r} of {self._shown}, not in it",
                    reference="layout-nested",
                    hint=upload,
                    side="source",
                ) from error
            shown = ", ".join(repr(name[:_SHOWN_LENGTH]) for name in inner[:_SHOWN])
            more = f" and {len(inner) - _SHOWN} more" if len(inner) > _SHOWN else ""
            raise LayoutInvalid(
                f"{self._shown} has several directories where one checkpoint is expected: {shown}{more}",
                reference="layout-several",
                hint=f"upload each to a prefix of its own: {upload}",
                side="source",
            ) from error

    def _changed(self, path: str) -> MalformedInput:
        return MalformedInput(
            f"{path[:_SHOWN_LENGTH]!r} in {self._shown} changed while it was read",
            reference="source-changed",
            hint="let whatever writes to the directory finish, then run again",
            side="source",
        )

    def _failed(self, path: str, error: OSError) -> StagingError:
        if path and error.errno in _GONE:
            return self._changed(path)
        where = f"{path[:_SHOWN_LENGTH]!r} in {self._shown}" if path else self._shown
        return StagingError(
            f"cannot read {where}: {error.strerror}",
            reference="source-io",
            hint="check permissions and the disk it lies on",
            side="source",
        )


class _Walk:
    """One walk over the files of a directory, links resolved and names judged."""

    def __init__(
        self, enclosure: Enclosure, root: str, failed: Callable[[str, OSError], StagingError]
    ) -> None:
        self._enclosure = enclosure
        self._root = root
        self._failed = failed
        self._names = NameSet()
        self._entries = 0
        self._name_bytes = 0
        self._at = ""  # the name that is looked at, for errors
        self.skipped: list[str] = []

    def places(self) -> Iterator[tuple[SafePath, Place]]:
        """Every file below the root, in no particular order."""
        try:
            yield from self._directory("", self._root, ())
        except OSError as error:
            raise self._failed(self._at, error) from error

    def _directory(
        self, path: str, place: str, above: tuple[tuple[int, int], ...]
    ) -> Iterator[tuple[SafePath, Place]]:
        fd = self._enclosure.open(place, os.O_DIRECTORY)
        try:
            status = os.fstat(fd)
            here = status.st_dev, status.st_ino
            if here in above:
                raise self._refused_loop(path)
            for name in sorted(os.listdir(fd)):
                self._at = below = f"{path}/{name}" if path else name
                if is_reserved(below) or below in _LEFT_BESIDE:
                    self.skipped.append(one_line(below))
                    continue
                self._count(below)
                status = os.stat(name, dir_fd=fd, follow_symlinks=False)
                inner = f"{place}/{name}" if place else name
                if stat.S_ISLNK(status.st_mode):
                    inner, status = self._follow(below, inner)
                if stat.S_ISDIR(status.st_mode):
                    yield from self._directory(below, inner, (*above, here))
                elif stat.S_ISREG(status.st_mode):
                    yield self._accept(below), Place(inner, _version(status))
                else:
                    raise MalformedInput(
                        f"{below[:_SHOWN_LENGTH]!r} is neither a file nor a directory",
                        reference="special-file",
                        hint="remove it: a checkpoint has plain files only",
                        side="source",
                    )
        finally:
            os.close(fd)

    def _follow(self, path: str, place: str) -> tuple[str, os.stat_result]:
        try:
            return self._enclosure.resolve(place)
        except Outside as error:
            raise MalformedInput(
                f"{path[:_SHOWN_LENGTH]!r} is a symbolic link to something outside the directory",
                reference="symlink-outside",
                hint="replace it by the file: cp -rL DIR PLAIN, then upload PLAIN",
                side="source",
            ) from error
        except FileNotFoundError as error:
            raise MalformedInput(
                f"{path[:_SHOWN_LENGTH]!r} is a symbolic link to nothing",
                reference="symlink-broken",
                hint="let the download finish, or remove the link",
                side="source",
            ) from error
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            raise self._refused_loop(path) from error

    def _refused_loop(self, path: str) -> MalformedInput:
        return MalformedInput(
            f"{path[:_SHOWN_LENGTH]!r} is a symbolic link that leads back to itself",
            reference="symlink-loop",
            hint="remove the link",
            side="source",
        )

    def _count(self, name: str) -> None:
        """Count an entry. Raises MalformedInput when there are more than an archive may have."""
        self._entries += 1
        self._name_bytes += len(os.fsencode(name))
        if self._entries > MAX_ENTRIES or self._name_bytes > MAX_NAME_BYTES:
            raise MalformedInput(
                f"more than {MAX_ENTRIES} files and directories, or {MAX_NAME_BYTES} bytes of names",
                reference="too-many-files",
                hint="check that this is a checkpoint's directory",
                side="source",
            )
        if name.count("/") >= MAX_DEPTH:
            raise MalformedInput(
                f"{name[:_SHOWN_LENGTH]!r} has more than {MAX_DEPTH} components",
                reference="unsafe-name",
                hint="check that this is a checkpoint's directory",
                side="source",
            )

    def _accept(self, name: str) -> SafePath:
        """Check a file's name alone and beside all names before it."""
        try:
            path = SafePath(name)
        except UnsafePath as error:
            raise MalformedInput(
                str(error), reference="unsafe-name", hint="rename the file", side="source"
            ) from error
        other = self._names.add(path)
        if other is not None:
            raise MalformedInput(
                f"{path[:_SHOWN_LENGTH]!r} cannot live beside {other[:_SHOWN_LENGTH]!r} everywhere",
                reference="name-collision",
                hint="rename or remove one of them",
                side="source",
            )
        return path


def _limit_of(root: str) -> str:
    """What links in a directory may not leave: itself, or the cache of the model it is a snapshot of."""
    parts = PurePosixPath(root).parts
    for count in range(len(parts) - 2, 0, -1):
        if parts[count - 1].startswith("models--") and parts[count] == "snapshots":
            return str(PurePosixPath(*parts[:count]))
    return root


def _version(status: os.stat_result) -> Version:
    return (
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
        status.st_ino,
        status.st_dev,
    )


def _directories_of_weights(paths: Iterable[str]) -> list[str]:
    """Directories that hold weights, without those that lie inside another one of them."""
    names = list(paths)
    for holds in (is_safetensors, is_other_weights):
        holding = list(dict.fromkeys(directory_of(name) for name in names if holds(name)))
        if holding:
            return [
                path
                for path in holding
                if not any(path.startswith(f"{outer}/") for outer in holding)
            ]
    return []
