"""The index of a tar far away: a few requests, next to no weights, and the same members as read at hand.

I2 (the whole archive is accounted for), I11 (the window is bounded), and what a local file is held to.
"""

from __future__ import annotations

import os
import random
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

import pytest

from staging.source.archive import Archive
from staging.source.indexed_tar import LEAST_WINDOW, MOST_WINDOW, HeaderWindow, IndexedTar
from staging.source.pipe import Pipe
from staging.source.tar_file import LocalArchive, TarFile
from staging.vocabulary.errors import LayoutInvalid, MalformedInput, NotFound, StagingError
from tests.support.checkpoints import random_bytes, tar_of, vendor
from tests.support.tars import END, HOSTILE, VALID, member, pax, record

KIB = 1024
MIB = 1024 * KIB


class Noted:
    """Bytes in memory as an archive that notes what is read."""

    kind, name, shown, argument = "tar", "noted.tar", "noted.tar", "ARCHIVE"
    identity = None
    read_size = None

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.size = len(data)
        self.reads: list[tuple[int, int]] = []
        self.closed = 0

    def read_into(self, offset: int, view: memoryview) -> None:
        assert 0 <= offset < offset + len(view) <= self.size
        self.reads.append((offset, len(view)))
        view[:] = self._data[offset : offset + len(view)]

    def finish(self) -> None: ...

    def close(self) -> None:
        self.closed += 1


class Zeros(Noted):
    """An archive far larger than memory: headers at their places, zeros between."""

    def __init__(self, pieces: Mapping[int, bytes], size: int) -> None:
        super().__init__(b"")
        self.size = size
        self._pieces = pieces

    def read_into(self, offset: int, view: memoryview) -> None:
        self.reads.append((offset, len(view)))
        view[:] = bytes(len(view))
        for start, piece in self._pieces.items():
            low, high = max(start, offset), min(start + len(piece), offset + len(view))
            if low < high:
                view[low - offset : high - offset] = piece[low - start : high - start]


def members(sizes: Sequence[int]) -> bytes:
    rng = random.Random(1)
    return tar_of({f"model-{n:05d}.bin": rng.randbytes(size) for n, size in enumerate(sizes)})


def indexed(sizes: Sequence[int]) -> list[tuple[int, int]]:
    archive = Noted(members(sizes))
    with closing(IndexedTar(archive)) as source:
        assert [file.size for file in source.files()] == list(sizes)
    assert archive.closed == 1
    ends = [offset + length for offset, length in archive.reads]
    assert all(end <= offset for end, (offset, _) in zip(ends, archive.reads[1:], strict=False))
    assert max(length for _, length in archive.reads) <= MOST_WINDOW
    return archive.reads


@pytest.mark.parametrize(
    ("sizes", "requests"),
    [
        pytest.param([1000], 1, id="one-small"),
        pytest.param([5 * MIB], 2, id="one-large"),  # its header, and the end
        pytest.param([MIB] * 20, 21, id="large"),
        pytest.param([1000] * 40, 1, id="in-one-window"),
        pytest.param([1000] * 600, 4, id="small"),  # 64, 128, 256, 512 KiB
        pytest.param([64 * KIB] * 64, 8, id="medium"),  # and then 1 MiB at a time
        pytest.param([*[2000] * 10, 4 * MIB, *[2000] * 10], 2, id="mixed"),
    ],
)
def test_requests_for_the_index(sizes: list[int], requests: int) -> None:
    assert len(indexed(sizes)) == requests


def test_weights_are_not_read_for_the_index() -> None:
    sizes = [*[1500] * 8, *[3 * MIB] * 10, *[1500] * 8]
    read = sum(length for _, length in indexed(sizes))
    assert read <= (len(sizes) + 1) * LEAST_WINDOW < sum(sizes) / 10


def test_a_member_of_half_a_terabyte() -> None:
    size = 500 * 1000**3
    first = pax(record(b"path", b"m/model.safetensors"), record(b"size", b"%d" % size))
    first += member(b"x")
    end = len(first) + size + -size % 512
    archive = Zeros({0: first, end: END}, end + len(END))
    with closing(IndexedTar(archive)) as source:
        (file,) = source.files()
    assert (file.size, file.offset) == (size, len(first))
    assert archive.reads == [(0, LEAST_WINDOW), (end, len(END))]


def test_an_extension_longer_than_any_window() -> None:
    comment = record(b"comment", b"a" * (MOST_WINDOW - 100))
    data = member(b"m/a", b"x") + pax(comment) + member(b"m/b", b"y") + END
    archive = Noted(data)
    with closing(IndexedTar(archive)) as source:
        assert [file.path for file in source.files()] == ["a", "b"]
    assert sum(length for _, length in archive.reads) == len(data)


@pytest.mark.parametrize("least", [1, 512, 700, 4096, LEAST_WINDOW])
def test_the_window_says_what_is_there(least: int) -> None:
    data = random_bytes(300_000, 4)
    rng = random.Random(least)
    window = HeaderWindow(Noted(data), least=least)
    at = 0
    while at < len(data):
        length = min(rng.choice([0, 1, 512, 512, 1024, 70_000]), len(data) - at)
        assert window.read_at(at, length) == data[at : at + length]
        at += length + rng.choice([0, 0, 0, 1, 512, 10_000])
    assert window.read_at(0, 512) == data[:512]  # backwards too


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_archives_are_refused_and_closed(name: str) -> None:
    attack = HOSTILE[name]
    archive = Noted(attack.data)
    with pytest.raises(MalformedInput) as caught:
        IndexedTar(archive)
    assert caught.value.reference == attack.reference
    assert archive.closed == 1


def test_an_archive_that_cannot_be_placed_is_closed() -> None:
    archive = Noted(tar_of({"a/config.json": b"{}"}, top="") + b"")
    with closing(IndexedTar(archive)):
        pass
    several = Noted(member(b"a/x") + member(b"b/x") + END)
    with pytest.raises(LayoutInvalid) as caught:
        IndexedTar(several, target="s3://b/p/")
    assert several.closed == 1
    assert "s3://b/p/" in (caught.value.hint or "")


@pytest.mark.parametrize("name", VALID)
def test_stamps_are_the_same_from_a_file_and_from_a_pipe(name: str, tmp_path: Path) -> None:
    tar = tmp_path / "model.tar"
    tar.write_bytes(VALID[name]())
    with closing(TarFile(tar)) as source, open(tar, "rb") as stream:
        indexed_files = list(source.files())
        piped = Pipe(stream)
        found = []
        for file in piped.files():
            piped.read_into(file, 0, memoryview(bytearray(file.size)))
            found.append(file)
    assert found == indexed_files
    assert all(len(file.stamp) == 16 for file in found)


# --- a local file ---


def test_a_local_file_that_changes(tmp_path: Path) -> None:
    tar = tmp_path / "model.tar"
    files = vendor(1)
    tar.write_bytes(tar_of(files))
    with closing(TarFile(tar)) as source:
        source.finish()
        file = next(found for found in source.files() if found.path == "model.safetensors")
        os.truncate(tar, file.offset + 100)
        with pytest.raises(MalformedInput) as caught:
            source.read_into(file, 0, memoryview(bytearray(200)))
        assert caught.value.reference == "source-changed"
        assert f"ended at byte {file.offset + 100}" in caught.value.message
        with pytest.raises(MalformedInput) as caught:
            source.finish()
        assert (caught.value.reference, caught.value.side) == ("source-changed", "source")


def test_what_is_no_local_file(tmp_path: Path) -> None:
    with pytest.raises(NotFound) as missing:
        LocalArchive(tmp_path / "no.tar?X-Amz-Signature=secret")
    assert missing.value.reference == "source"
    assert "secret" not in missing.value.message
    os.mkfifo(tmp_path / "pipe.tar")
    for path in (tmp_path / "pipe.tar", tmp_path):
        with pytest.raises(MalformedInput) as caught:
            LocalArchive(path)
        assert caught.value.reference == "source"
    loop = tmp_path / "loop.tar"
    loop.symlink_to(loop)
    with pytest.raises(StagingError) as broken:
        LocalArchive(loop)
    assert broken.value.reference == "source-io"


def test_an_archive_is_what_the_contract_says(tmp_path: Path) -> None:
    tar = tmp_path / "model.tar"
    tar.write_bytes(tar_of(vendor(1)))
    archive: Archive = LocalArchive(tar)
    with closing(archive):
        assert (archive.kind, archive.name, archive.identity) == ("tar", "model.tar", None)
        assert archive.argument == str(tar)
        assert archive.size == tar.stat().st_size
