"""A tar on a stream: waiting, order, ownership, and what failing streams come to (I2, I12)."""

from __future__ import annotations

import errno
import io
import os
from pathlib import Path
from typing import BinaryIO, cast

import pytest

from staging.source.compressed import Unpacked
from staging.source.pipe import Pipe
from staging.source.source import Source
from staging.source.tar_file import TarFile
from staging.vocabulary.errors import LayoutInvalid, MalformedInput, StagingError
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


class Body:
    """A stream that a source owns, as those of responses are."""

    def __init__(self, data: bytes, *, error: Exception | None = None) -> None:
        self._stream = io.BytesIO(data)
        self._error = error
        self.events: list[str] = []

    def readinto(self, view: memoryview, /) -> int:
        count = self._stream.readinto(view)
        if count == 0 and self._error is not None:
            raise self._error
        return count

    def finish(self) -> None:
        self.events.append("finish")

    def close(self) -> None:
        self.events.append("close")


def content(source: Source) -> dict[str, bytes]:
    found = {}
    for file in source.files():
        buffer = bytearray(file.size)
        source.read_into(file, 0, memoryview(buffer))
        found[str(file.path)] = bytes(buffer)
    return found


@pytest.mark.parametrize("wrapped", [False, True], ids=["bare", "wrapped"])
def test_a_pipe_that_does_not_block_is_waited_for(wrapped: bool) -> None:
    files = vendor(1)
    with Trickling(tar_of(files)) as stream:
        binary = cast("BinaryIO", stream)
        assert content(Pipe(Unpacked(binary) if wrapped else binary)) == files
        assert stream.waits > len(tar_of(files)) // PIECE


def test_the_caller_says_what_the_stream_is() -> None:
    plain = Pipe(io.BytesIO())
    assert (plain.kind, plain.name, plain.size, plain.identity) == ("pipe", "-", None, None)
    told = Pipe(io.BytesIO(), kind="url", name="m.tar.gz", size=7, identity='"abc" 7')
    assert (told.kind, told.name, told.size, told.identity) == ("url", "m.tar.gz", 7, '"abc" 7')
    assert told.sequential


def test_hints_name_the_source_as_the_caller_does() -> None:
    nested = tar_of({"inner/model.safetensors": b"x"})
    piped = Pipe(io.BytesIO(nested), target="s3://b/m/")
    local = Pipe(io.BytesIO(nested), argument="m.tar.gz", target="s3://b/m/")
    hints = []
    for source in (piped, local):
        with pytest.raises(LayoutInvalid) as raised:
            content(source)
        hints.append(raised.value.hint or "")
    assert hints == [
        "cat ARCHIVE | staging upload - s3://b/m/ --strip-components 2",
        "staging upload m.tar.gz s3://b/m/ --strip-components 2",
    ]


def test_stamps_are_those_of_the_same_archive_on_disk(tmp_path: Path) -> None:
    data = tar_of(vendor(1))
    path = tmp_path / "m.tar"
    path.write_bytes(data)
    indexed = TarFile(path)
    piped = Pipe(io.BytesIO(data))
    stamps = []
    for file in piped.files():
        piped.read_into(file, 0, memoryview(bytearray(file.size)))
        stamps.append((file.path, file.stamp))
    assert stamps == [(file.path, file.stamp) for file in indexed.files()]
    assert all(stamp for _, stamp in stamps)
    indexed.close()


def test_a_stream_with_a_finish_is_finished_and_closed_once() -> None:
    body = Body(tar_of(vendor(1)))
    source = Pipe(Unpacked(body))
    content(source)
    source.finish()
    source.close()
    assert body.events == ["finish", "close"]


def test_a_stream_without_a_finish_is_left_open() -> None:
    stream = io.BytesIO(tar_of(vendor(1)))
    for opened in (Pipe(stream), Pipe(Unpacked(stream))):
        opened.finish()
        opened.close()
    assert not stream.closed


@pytest.mark.parametrize(
    ("kind", "message"),
    [("pipe", "cannot read the pipe at byte"), ("url", "cannot read m.tar at byte")],
)
def test_a_stream_that_fails_is_trouble_of_the_source(kind: str, message: str) -> None:
    data = tar_of(vendor(1))[:2000]
    body = Body(data, error=OSError(errno.EIO, os.strerror(errno.EIO)))
    source = Pipe(body, kind=kind, name="m.tar")
    with pytest.raises(StagingError, match=message) as raised:
        content(source)
    assert (raised.value.reference, raised.value.side) == ("source-io", "source")
    assert "2000" in raised.value.message


def test_a_cut_stream_is_refused_at_every_block() -> None:
    data = tar_of({"a.txt": b"one", "b.txt": b"two"})
    for end in range(0, len(data), 512):
        with pytest.raises(MalformedInput):
            content(Pipe(io.BytesIO(data[:end])))


def test_files_are_read_in_order_or_not_at_all() -> None:
    source = Pipe(io.BytesIO(tar_of(vendor(1))))
    files = source.files()
    first = next(files)
    with pytest.raises(RuntimeError, match="in order"):
        source.read_into(first, 1, memoryview(bytearray(1)))
    with pytest.raises(RuntimeError, match="to its end"):
        next(files)
