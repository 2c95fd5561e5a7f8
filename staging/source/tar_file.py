"""A local tar as an indexed source: headers by pread, any part of any member in any order."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from staging.formats.tar import read_index
from staging.layout.root import Root, find_root
from staging.source.source import SourceFile
from staging.vocabulary.errors import MalformedInput, NotFound, StagingError
from staging.vocabulary.redaction import file_name, one_line

_HINT_CHANGED: Final = "let whatever writes the file finish, then run again"


class TarFile:
    """A tar on this machine. Not for pipes or devices: those are sequential."""

    kind = "tar"
    identity = None
    sequential = False

    def __init__(
        self, path: Path, *, strip_components: int | None = None, target: str = ""
    ) -> None:
        """Open and index the archive; `target` is only named in hints.

        Raises NotFound or StagingError when it cannot be opened, MalformedInput when it is damaged or
        unsafe, and LayoutInvalid when its files cannot be placed at a checkpoint's root.
        """
        self._shown = _shown(path)
        self.name = file_name(path)
        try:
            # A named pipe must be refused, not waited for; a regular file does not mind the flag.
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError as error:
            raise NotFound(
                f"there is no file {self._shown}",
                reference="source",
                hint="check the path",
                side="source",
            ) from error
        except OSError as error:
            raise _failed(self._shown, error) from error
        try:
            status = os.fstat(self._fd)
            if not stat.S_ISREG(status.st_mode):
                raise MalformedInput(
                    f"{self._shown} is not a regular file",
                    reference="source",
                    hint="give a tar file, or - and pipe the archive in",
                    side="source",
                )
            self.size = status.st_size
            self._identity = _identity(status)
            members = read_index(self)
            self.root: Root = find_root(
                [member.name for member in members],
                strip_components=strip_components,
                source=one_line(str(path)),
                target=target,
            )
            self._files = [
                SourceFile(self.root.strip(member.name), member.size, member.data_offset)
                for member in members
            ]
        except BaseException:
            os.close(self._fd)
            raise

    def read_at(self, offset: int, length: int) -> bytes:
        """Bytes of the archive itself, for its index."""
        data = bytearray(length)
        self._pread(offset, memoryview(data))
        return bytes(data)

    def files(self) -> Iterator[SourceFile]:
        """All files, in the order of the archive."""
        return iter(self._files)

    def read_into(self, file: SourceFile, offset: int, view: memoryview) -> None:
        """Fill `view` with bytes of a file."""
        self._pread(file.offset + offset, view)

    def finish(self) -> None:
        """Raise MalformedInput when the archive was written to meanwhile."""
        if _identity(os.fstat(self._fd)) != self._identity:
            raise MalformedInput(
                f"{self._shown} changed while it was read",
                reference="source-changed",
                hint=_HINT_CHANGED,
                side="source",
            )

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def _pread(self, offset: int, view: memoryview) -> None:
        done = 0
        while done < len(view):
            try:
                count = os.preadv(self._fd, [view[done:]], offset + done)
            except OSError as error:
                raise _failed(self._shown, error) from error
            if count == 0:
                raise MalformedInput(
                    f"{self._shown} ended at byte {offset + done} while it was read",
                    reference="source-changed",
                    hint=_HINT_CHANGED,
                    side="source",
                )
            done += count


def _identity(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_size, status.st_mtime_ns, status.st_ino


def _shown(path: Path) -> str:
    """A path in messages: quoted, on one line, and without the query of a URL it was named after."""
    return one_line(repr(str(path)))


def _failed(shown: str, error: OSError) -> StagingError:
    return StagingError(
        f"cannot read {shown}: {error.strerror}",
        reference="source-io",
        hint="check the file's permissions and the disk it lies on",
        side="source",
    )
