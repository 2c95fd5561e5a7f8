"""A tar on a pipe as a sequential source: one pass, no seeking, no scratch disk."""

from __future__ import annotations

import select
from collections.abc import Iterator
from typing import BinaryIO

from staging.formats.tar import TarReader
from staging.layout.root import RootTracker
from staging.source.source import SourceFile
from staging.vocabulary.errors import StagingError


class Pipe:
    """A tar read from a stream such as standard input."""

    kind = "pipe"
    identity = None
    sequential = True
    size = None

    def __init__(
        self,
        stream: BinaryIO,
        *,
        name: str = "-",
        strip_components: int | None = None,
        target: str = "",
    ) -> None:
        """Wrap a binary stream; `target` is only named in hints.

        Its `readinto` may come short, and may say None when it does not block: then it is waited for.
        """
        self._stream = stream
        self.name = name
        self._reader = TarReader()
        self._root = RootTracker(strip_components=strip_components, source="-", target=target)
        self._at = 0
        self._file: SourceFile | None = None

    def files(self) -> Iterator[SourceFile]:
        """All files in order; each must be read to its end before the next is asked for."""
        while (wanted := self._reader.wanted) is not None:
            if wanted.offset != self._at:
                raise RuntimeError(f"{self._file} was not read to its end")
            data = bytearray(wanted.length)
            length = self._read(memoryview(data))
            member = self._reader.feed(bytes(data[:length]))
            if member is not None:
                path = self._root.add(member.name)
                self._file = SourceFile(path, member.size, member.data_offset)
                yield self._file
        self._root.finish()

    def read_into(self, file: SourceFile, offset: int, view: memoryview) -> None:
        """Fill `view` with the next bytes of the file that came last."""
        if file is not self._file or file.offset + offset != self._at:
            raise RuntimeError(f"{file.path} is not read in order")
        if self._read(view) < len(view):
            raise self._reader.truncated(self._at)

    def finish(self) -> None:
        """Nothing to check: a pipe is read once."""

    def close(self) -> None:
        """Leave the stream open: it belongs to the caller."""

    def _read(self, view: memoryview) -> int:
        done = 0
        while done < len(view):
            try:
                count: int | None = self._stream.readinto(view[done:])  # type: ignore[attr-defined]
                if count is None:
                    _wait(self._stream)
                    continue
            except OSError as error:
                raise StagingError(
                    f"cannot read the pipe at byte {self._at + done}: {error.strerror}",
                    reference="source-io",
                    hint="look at the command before the pipe, then run again",
                    side="source",
                ) from error
            if count == 0:
                break
            done += count
        self._at += done
        return done


def _wait(stream: BinaryIO) -> None:
    """Return once a stream that does not block has bytes, or its end."""
    poll = select.poll()
    poll.register(stream, select.POLLIN)
    poll.poll()
