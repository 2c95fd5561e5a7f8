"""A local file as an archive, and the tar in it as an indexed source: any part of any member by pread."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

from staging.source.archive import changed
from staging.source.indexed_tar import HeaderWindow, IndexedTar
from staging.source.source import LOCAL_READ_SIZE
from staging.vocabulary.errors import MalformedInput, NotFound, StagingError
from staging.vocabulary.redaction import file_name, one_line

LEAST_WINDOW: Final = 4096
"""Bytes read at once for the index: a page costs as much as a header, and nothing is far away."""


class LocalArchive:
    """A file on this machine as an `Archive`. Not for pipes or devices: those are sequential.

    It is one version as long as its size, its time of change and its inode stay the same.
    """

    kind = "tar"
    identity = None

    read_size = LOCAL_READ_SIZE

    def __init__(self, path: Path) -> None:
        """Open the file. Raises NotFound, or StagingError when it cannot be opened."""
        self.shown = _shown(path)
        self.name = file_name(path)
        self.argument = one_line(str(path))
        try:
            # A named pipe must be refused, not waited for; a regular file does not mind the flag.
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError as error:
            raise NotFound(
                f"there is no file {self.shown}",
                reference="source",
                hint="check the path",
                side="source",
            ) from error
        except OSError as error:
            raise _failed(self.shown, error) from error
        status = os.fstat(self._fd)
        if not stat.S_ISREG(status.st_mode):
            os.close(self._fd)
            raise MalformedInput(
                f"{self.shown} is not a regular file",
                reference="source",
                hint="give a tar file, or - and pipe the archive in",
                side="source",
            )
        self.size = status.st_size
        self._version = _version(status)

    def read_into(self, offset: int, view: memoryview) -> None:
        """Fill `view` with the bytes from `offset`."""
        done = 0
        while done < len(view):
            try:
                count = os.preadv(self._fd, [view[done:]], offset + done)
            except OSError as error:
                raise _failed(self.shown, error) from error
            if count == 0:
                raise changed(self.shown, f"ended at byte {offset + done} while it was read")
            done += count

    def finish(self) -> None:
        """Raise MalformedInput when the file was written to meanwhile."""
        if _version(os.fstat(self._fd)) != self._version:
            raise changed(self.shown)

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


class TarFile(IndexedTar):
    """A tar on this machine."""

    def __init__(
        self, path: Path, *, strip_components: int | None = None, target: str = ""
    ) -> None:
        """Open and index the archive; `target` is only named in hints.

        Raises NotFound or StagingError when it cannot be opened, MalformedInput when it is damaged or
        unsafe, and LayoutInvalid when its files cannot be placed at a checkpoint's root.
        """
        archive = LocalArchive(path)
        super().__init__(
            archive,
            strip_components=strip_components,
            target=target,
            headers=HeaderWindow(archive, least=LEAST_WINDOW),
        )


def _version(status: os.stat_result) -> tuple[int, ...]:
    # The time of the last change, too: the one of the last write can be set back.
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


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
