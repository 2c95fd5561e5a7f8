"""A tar on standard input that does not block: nothing yet is not the end."""

from __future__ import annotations

import io
import os
from typing import BinaryIO, cast

from staging.source.pipe import Pipe
from tests.support.checkpoints import tar_of, vendor

PIECE = 10_000


class Trickling(io.RawIOBase):
    """A pipe in which the next bytes come only after a reader was told that there are none."""

    def __init__(self, data: bytes) -> None:
        self._rest = memoryview(data)
        reader, self._writer = os.pipe()
        os.set_blocking(reader, False)
        self._raw = io.FileIO(reader, "rb")
        self.waits = 0

    def fileno(self) -> int:
        return self._raw.fileno()

    def readinto(self, view: memoryview) -> int | None:
        count = self._raw.readinto(view)
        if count is None:
            self.waits += 1
            if self._rest:
                sent = os.write(self._writer, self._rest[:PIECE])
                self._rest = self._rest[sent:]
            else:
                os.close(self._writer)
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()


def test_a_pipe_that_does_not_block_is_waited_for() -> None:
    files = vendor(1)
    with Trickling(tar_of(files)) as stream:
        source = Pipe(cast("BinaryIO", stream))
        found = {}
        for file in source.files():
            buffer = bytearray(file.size)
            source.read_into(file, 0, memoryview(buffer))
            found[str(file.path)] = bytes(buffer)
        assert found == files
        assert stream.waits > len(tar_of(files)) // PIECE
