"""A tar on a stream as a sequential source: one pass, no seeking, no scratch disk."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

from staging.formats.tar import TarReader
from staging.layout.root import RootTracker
from staging.source import stream as streams
from staging.source.source import SourceFile
from staging.source.stream import Stream
from staging.vocabulary.errors import StagingError


class Pipe:
    """A tar read from a stream such as standard input, a response's body, or what unpacks one."""

    sequential = True
    read_size = None

    def __init__(
        self,
        stream: Stream | BinaryIO,
        *,
        name: str = "-",
        kind: str = "pipe",
        identity: str | None = None,
        size: int | None = None,
        argument: str = "-",
        memory: int = 0,
        strip_components: int | None = None,
        target: str = "",
    ) -> None:
        """Read a binary stream, which becomes the pipe's own if it has a `finish` (see `stream`).

        Its `readinto` may come short, and may say None when it does not block: then it is waited for.
        `name`, `kind`, `identity` and `size` are those of the source; `argument` is what a command names
        it by, without queries. That and `target` are only named in hints. `memory` is what the stream
        holds ahead, in bytes.
        """
        self._stream = stream
        self.name = name
        self.kind = kind
        self.identity = identity
        self.size = size
        self.memory = memory
        self._reader = TarReader()
        self._root = RootTracker(strip_components=strip_components, source=argument, target=target)
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
                self._file = SourceFile(path, member.size, member.data_offset, member.stamp)
                yield self._file
        self._root.finish()

    def read_into(self, file: SourceFile, offset: int, view: memoryview) -> None:
        """Fill `view` with the next bytes of the file that came last."""
        if file is not self._file or file.offset + offset != self._at:
            raise RuntimeError(f"{file.path} is not read in order")
        if self._read(view) < len(view):
            raise self._reader.truncated(self._at)

    def finish(self) -> None:
        """Raise what the stream has against its bytes. Otherwise nothing to check: they came once."""
        try:
            streams.finish(self._stream)
        except OSError as error:
            raise self._failed(error, self._at) from error

    def close(self) -> None:
        """Close a stream of the pipe's own; one without `finish` is left open for the caller."""
        streams.close(self._stream)

    def _read(self, view: memoryview) -> int:
        done = 0
        while done < len(view):
            try:
                count = streams.read_some(self._stream, view[done:])
            except OSError as error:
                raise self._failed(error, self._at + done) from error
            if count == 0:
                break
            done += count
        self._at += done
        return done

    def _failed(self, error: OSError, at: int) -> StagingError:
        piped = self.kind == "pipe"
        return StagingError(
            f"cannot read {'the pipe' if piped else self.name} at byte {at}: {error.strerror}",
            reference="source-io",
            hint="look at the command before the pipe, then run again"
            if piped
            else "check where the archive lies, then run again",
            side="source",
        )
