"""An archive as a stream: the same bytes in order, read ahead in parallel, within its memory (I11)."""

from __future__ import annotations

import io
import random
import threading
from collections.abc import Callable
from contextlib import closing

import pytest

from staging.source.pipe import Pipe
from staging.source.read_ahead import ReadAhead
from staging.source.stream import OwnedStream
from staging.vocabulary.errors import MalformedInput, StoreUnavailable
from tests.support.checkpoints import random_bytes, tar_of, vendor

KIB = 1024
DATA = random_bytes(3 * 1024 * KIB + 77, 1)


class Memory:
    """Bytes in memory as an archive; `on_read` is called with each range, in the thread that reads."""

    kind, name, shown, argument = "tar", "x.tar", "x.tar", "ARCHIVE"
    identity = None
    read_size = None

    def __init__(
        self, data: bytes, on_read: Callable[[int, int], None] = lambda offset, length: None
    ) -> None:
        self._data = data
        self._on_read = on_read
        self.size = len(data)
        self.finished = self.closed = 0

    def read_into(self, offset: int, view: memoryview) -> None:
        self._on_read(offset, len(view))
        view[:] = self._data[offset : offset + len(view)]

    def finish(self) -> None:
        self.finished += 1

    def close(self) -> None:
        self.closed += 1


def drained(stream: ReadAhead, lengths: Callable[[], int]) -> bytes:
    data = io.BytesIO()
    while True:
        buffer = bytearray(lengths())
        count = stream.readinto(memoryview(buffer))
        if not count:
            assert stream.readinto(memoryview(buffer)) == 0
            return data.getvalue()
        data.write(buffer[:count])


@pytest.mark.parametrize("memory", [1, 256 * KIB, 1024 * KIB, 64 * 1024 * KIB])
@pytest.mark.parametrize("concurrency", [1, 3, 8])
@pytest.mark.parametrize("size", [0, 1, 256 * KIB, 256 * KIB + 1, len(DATA)])
def test_the_bytes_come_in_order(size: int, concurrency: int, memory: int) -> None:
    archive = Memory(DATA[:size])
    rng = random.Random(memory)
    with closing(ReadAhead(archive, memory=memory, concurrency=concurrency)) as stream:
        assert isinstance(stream, OwnedStream)
        found = drained(stream, lambda: rng.choice([1000, 256 * KIB, 600_000]))
        assert found == DATA[:size]
        stream.finish()
    assert (archive.finished, archive.closed) == (1, 1)


def test_ranges_are_read_in_parallel_and_never_more_than_memory_holds() -> None:
    everybody = threading.Barrier(4)
    taken = 0
    asked: list[tuple[int, int]] = []

    def on_read(offset: int, length: int) -> None:
        asked.append((offset, length))
        assert offset + length <= taken + 1024 * KIB
        if offset < 1024 * KIB:
            everybody.wait(60)  # the first four are in flight at once

    with closing(ReadAhead(Memory(DATA, on_read), memory=1024 * KIB, concurrency=4)) as stream:
        buffer = bytearray(10_000)
        found = io.BytesIO()
        while count := stream.readinto(memoryview(buffer)):
            found.write(buffer[:count])
            taken += count
    assert found.getvalue() == DATA
    assert sorted(asked) == [
        (offset, min(256 * KIB, len(DATA) - offset)) for offset in range(0, len(DATA), 256 * KIB)
    ]


def test_nothing_is_read_before_it_is_asked_for() -> None:
    asked: list[int] = []
    with closing(ReadAhead(Memory(DATA, lambda offset, length: asked.append(offset)))):
        pass
    assert asked == []


def test_what_reading_raises_is_raised_here() -> None:
    def on_read(offset: int, length: int) -> None:
        if offset == 512 * KIB:
            raise StoreUnavailable("broke off", reference="connection", side="source")

    archive = Memory(DATA, on_read)
    with (
        closing(ReadAhead(archive, memory=512 * KIB, concurrency=2)) as stream,
        pytest.raises(StoreUnavailable),
    ):
        drained(stream, lambda: 100_000)
    assert archive.closed == 1


def test_closing_in_the_middle_starts_nothing_more() -> None:
    asked: list[int] = []
    stream = ReadAhead(
        Memory(DATA, lambda offset, length: asked.append(offset)), memory=512 * KIB, concurrency=2
    )
    stream.readinto(memoryview(bytearray(10)))
    stream.close()
    assert set(asked) <= {0, 256 * KIB}


def contents(source: Pipe) -> dict[str, bytes]:
    found = {}
    for file in source.files():
        buffer = bytearray(file.size)
        source.read_into(file, 0, memoryview(buffer))
        found[str(file.path)] = bytes(buffer)
    source.finish()
    return found


def test_a_tar_through_a_stream() -> None:
    archive = Memory(tar_of(vendor(1)))
    with closing(Pipe(ReadAhead(archive), kind="s3", size=1)) as source:
        assert contents(source) == vendor(1)
    assert (archive.finished, archive.closed) == (1, 1)


def test_a_tar_that_is_cut_is_refused() -> None:
    cut = Memory(tar_of(vendor(1))[:-700])
    with closing(Pipe(ReadAhead(cut))) as source, pytest.raises(MalformedInput):
        contents(source)
