"""Compressed archives: whole or refused, bounded, and the same checkpoint as plain ones (I1, I2, I4, I11)."""

from __future__ import annotations

import gzip
import io
import os
import random
import struct
import sys
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zstandard

from staging.formats.stranger import recognise
from staging.source.compressed import Compression, Limits, Unpacked, compression_of
from staging.source.directory import Directory
from staging.source.pipe import Pipe
from staging.source.source import Source
from staging.source.stream import Stream
from staging.source.tar_file import TarFile
from staging.store.memory import MemoryStore
from staging.transfer.sizing import MIB
from staging.upload import UploadOptions, upload
from staging.vocabulary.digest import CHUNK_SIZE
from staging.vocabulary.errors import MalformedInput, UsageError
from staging.vocabulary.location import S3Location
from tests.support.checkpoints import random_bytes, tar_of, vendor, write_tree

DATA = random_bytes(300_000, 1) + bytes(300_000) + random_bytes(1000, 2) * 100
BZIP2_OF_NOTHING = b"BZh9\x17\x72\x45\x38\x50\x90\x00\x00\x00\x00"


def gz(data: bytes) -> bytes:
    return gzip.compress(data, mtime=0)


def zst(data: bytes, *, checksum: bool = True, known_size: bool = True) -> bytes:
    compressor = zstandard.ZstdCompressor(write_checksum=checksum, write_content_size=known_size)
    if known_size:
        return compressor.compress(data)
    streaming = compressor.compressobj()
    return streaming.compress(data) + streaming.flush()


def skippable(data: bytes, number: int = 0) -> bytes:
    return struct.pack("<II", 0x184D2A50 + number, len(data)) + data


def blocks(*packed: bytes, window_log: int = 17, checksum: bytes = b"") -> bytes:
    """A zstd frame made by hand, of blocks with their headers."""
    descriptor = 4 if checksum else 0
    return (
        b"\x28\xb5\x2f\xfd"
        + bytes([descriptor, (window_log - 10) << 3])
        + b"".join(packed)
        + checksum
    )


def block(kind: int, size: int, data: bytes, *, last: bool = False) -> bytes:
    return (size << 3 | kind << 1 | last).to_bytes(3, "little") + data


class Ragged:
    """A stream whose reads come short, as they please."""

    def __init__(self, data: bytes, seed: int = 1) -> None:
        self._stream = io.BytesIO(data)
        self._random = random.Random(seed)

    def readinto(self, view: memoryview, /) -> int:
        return self._stream.readinto(view[: self._random.choice((1, 2, 3, 7, 100, 5000))])


def unpacked(data: bytes | Stream, *, limits: Limits | None = None, piece: int = 65_536) -> bytes:
    stream = Unpacked(io.BytesIO(data) if isinstance(data, bytes) else data, limits=limits)
    found = bytearray()
    view = memoryview(bytearray(piece))
    while count := stream.readinto(view):
        found += view[:count]
    assert stream.readinto(view) == 0  # the end stays the end
    return bytes(found)


def drain(stream: Unpacked, view: memoryview) -> None:
    while stream.readinto(view):
        pass


def refused(data: bytes, *, limits: Limits | None = None) -> MalformedInput:
    """The error that reading ends with; it stays, and the end is never said."""
    stream = Unpacked(io.BytesIO(data), limits=limits)
    view = memoryview(bytearray(65_536))
    with pytest.raises(MalformedInput) as raised:
        drain(stream, view)
    for _ in range(2):
        with pytest.raises(MalformedInput) as again:
            stream.readinto(view)
        assert again.value is raised.value
    assert raised.value.side == "source"
    assert raised.value.hint
    assert raised.value.message.isprintable()
    return raised.value


WHOLE = {
    "plain": DATA,
    "gzip": gz(DATA),
    "gzip-of-nothing-and-more": gz(b"") + gz(DATA) + gz(b""),
    "gzip-members": b"".join(gz(DATA[at : at + 9999]) for at in range(0, len(DATA), 9999)),
    "zstd": zst(DATA),
    "zstd-without-checksum": zst(DATA, checksum=False),
    "zstd-streamed": zst(DATA, known_size=False),
    "zstd-frames": b"".join(zst(DATA[at : at + 99_999]) for at in range(0, len(DATA), 99_999)),
    "zstd-skippable": skippable(b"x" * 70_000, 15) + zst(DATA) + skippable(b"") + skippable(b"y"),
    "zstd-empty-frames": zst(b"") + zst(DATA) + zst(b"", known_size=False),
}


@pytest.mark.parametrize("packed", WHOLE.values(), ids=WHOLE.keys())
def test_what_is_whole_is_unpacked_to_its_end(packed: bytes) -> None:
    assert unpacked(packed) == DATA
    assert unpacked(packed, piece=999) == DATA
    assert unpacked(Ragged(packed)) == DATA


@pytest.mark.parametrize("data", [b"", b"x", b"\x1f", b"\x28\xb5\x2f", DATA[:5]])
def test_what_is_too_short_to_tell_is_plain(data: bytes) -> None:
    assert unpacked(data) == data
    assert unpacked(Ragged(data)) == data


SMALL = random_bytes(400, 3) + bytes(400)
PACKED = {
    "gzip": gz(SMALL),
    "gzip-members": gz(SMALL[:300]) + gz(SMALL[300:]),
    "zstd": zst(SMALL),
    "zstd-without-checksum": zst(SMALL, checksum=False),
    "zstd-streamed": zst(SMALL, known_size=False),
    "zstd-frames": zst(SMALL[:300]) + zst(SMALL[300:]),
    "zstd-skippable": zst(SMALL) + skippable(b"index"),
}
WHOLE_AT = {
    "gzip-members": (len(gz(SMALL[:300])), SMALL[:300]),
    "zstd-frames": (len(zst(SMALL[:300])), SMALL[:300]),
    "zstd-skippable": (len(zst(SMALL)), SMALL),
}
"""Where a cut leaves something whole, and what that is."""


@pytest.mark.parametrize("name", PACKED)
def test_every_cut_is_refused_but_between_whole_members(name: str) -> None:
    packed = PACKED[name]
    whole, before = WHOLE_AT.get(name, (None, b""))
    for end in range(4, len(packed)):
        if end == whole:
            assert unpacked(packed[:end]) == before
        else:
            assert refused(packed[:end]).reference == "compressed-truncated", end


@pytest.mark.parametrize("name", PACKED)
def test_no_flipped_bit_gives_other_bytes(name: str) -> None:
    """Of zstd without checksums that cannot be said; there a flip may only change bytes of data."""
    packed = PACKED[name]
    unproven = name == "zstd-without-checksum"
    references = set()
    for bit in range(32, 8 * len(packed)):
        damaged = bytearray(packed)
        damaged[bit // 8] ^= 1 << bit % 8
        try:
            found = unpacked(bytes(damaged))
        except MalformedInput as error:
            references.add(error.reference)
        else:
            assert found == SMALL or (unproven and len(found) == len(SMALL)), bit
    assert "compressed-damaged" in references
    assert references <= {
        "compressed-damaged",
        "compressed-truncated",
        "compressed-trailing",
        "compression-unsupported",
        "zstd-window",
    }


DAMAGED: dict[str, tuple[bytes, str]] = {
    "gzip-crc": (gz(DATA)[:-8] + bytes(4) + gz(DATA)[-4:], "compressed-damaged"),
    "gzip-length": (gz(DATA)[:-4] + bytes(4), "compressed-damaged"),
    "gzip-method": (b"\x1f\x8b\x07" + bytes(20), "compressed-damaged"),
    "gzip-then-text": (gz(DATA) + b"more", "compressed-trailing"),
    "gzip-then-zeros": (gz(DATA) + bytes(512), "compressed-trailing"),
    "gzip-then-zstd": (gz(DATA) + zst(DATA), "compressed-trailing"),
    "gzip-then-one-byte": (gz(DATA) + b"\x1f", "compressed-truncated"),
    "gzip-then-another-byte": (gz(DATA) + b"\x20", "compressed-trailing"),
    "zstd-checksum": (zst(DATA)[:-1] + bytes([zst(DATA)[-1] ^ 1]), "compressed-damaged"),
    "zstd-then-text": (zst(DATA) + b"more", "compressed-trailing"),
    "zstd-then-zeros": (zst(DATA) + bytes(512), "compressed-trailing"),
    "zstd-then-gzip": (zst(DATA) + gz(DATA), "compressed-trailing"),
    "zstd-then-three-bytes": (zst(DATA) + b"\x28\xb5\x2f", "compressed-truncated"),
    "zstd-then-another-byte": (zst(DATA) + b"\x20", "compressed-trailing"),
    "zstd-block-kind": (blocks(block(3, 1, b"x", last=True)), "compressed-damaged"),
    "zstd-block-size": (blocks(block(1, 128 * 1024 + 1, b"x", last=True)), "compressed-damaged"),
    "zstd-block-above-window": (
        blocks(block(1, 4096, b"x", last=True), window_log=10),
        "compressed-damaged",
    ),
    "zstd-reserved-bit": (b"\x28\xb5\x2f\xfd\x08\x38" + bytes(20), "compressed-damaged"),
}


@pytest.mark.parametrize(("packed", "reference"), DAMAGED.values(), ids=DAMAGED.keys())
def test_what_is_damaged_is_refused(packed: bytes, reference: str) -> None:
    assert refused(packed).reference == reference


def test_a_frame_made_by_hand_is_read() -> None:
    frame = blocks(block(0, 2, b"ab"), block(1, 3, b"c"), block(0, 0, b"", last=True))
    assert unpacked(frame) == b"abccc"


@pytest.mark.parametrize(
    ("start", "name"),
    [
        (b"\xfd7zXZ\0\0\4", "xz"),
        (BZIP2_OF_NOTHING, "bzip2"),
        (b"BZh11AY&SY", "bzip2"),
        (b"\x04\x22\x4d\x18", "lz4"),
        (b"7z\xbc\xaf\x27\x1c", "7z"),
        (b"PK\x03\x04", "zip"),
        (b"PK\x05\x06", "zip"),
    ],
)
def test_other_ways_to_pack_are_refused_by_name(start: bytes, name: str) -> None:
    error = refused(start + bytes(100))
    assert error.reference == "compression-unsupported"
    assert name in error.message
    assert ".tar.gz" in (error.hint or "")
    stranger = recognise(start)
    assert stranger is not None
    assert (stranger.unpack or "staging upload DIR") in (error.hint or "")


@pytest.mark.parametrize("name", ["BZh9/model.safetensors", "PK/a", "7z/a", "P*M/a"])
def test_a_plain_tar_is_never_taken_for_a_packed_one(name: str) -> None:
    tar = tar_of({name: b"x"}, top="")
    assert compression_of(tar[:16]) is None
    assert unpacked(tar) == tar


def test_a_name_tells_nothing_and_the_first_bytes_all() -> None:
    assert compression_of(gz(b"")) is Compression.GZIP
    assert compression_of(zst(b"")) is Compression.ZSTD
    assert compression_of(skippable(b"x")) is Compression.ZSTD
    assert compression_of(b"") is None


# --- bounds ---


def test_a_window_above_the_limit_is_refused_and_named() -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=28, enable_ldm=True)
    compressing = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    error = refused(compressing.compress(b"x" * 100) + compressing.flush())
    assert error.reference == "zstd-window"
    assert "256 MiB" in error.message
    assert "128 MiB" in error.message
    assert "--long" in (error.hint or "")


def test_the_window_of_long_27_is_read() -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=27)
    compressing = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    assert unpacked(compressing.compress(DATA) + compressing.flush()) == DATA


def test_a_dictionary_is_refused() -> None:
    dictionary = zstandard.ZstdCompressionDict(random_bytes(5000, 1), dict_type=1)
    samples = [random_bytes(200, seed) * 5 for seed in range(200)]
    dictionary = zstandard.train_dictionary(2000, samples)
    packed = zstandard.ZstdCompressor(dict_data=dictionary).compress(samples[0])
    assert refused(packed).reference == "compression-unsupported"


BOMBS: dict[str, Callable[[bytes], bytes]] = {"gzip": gz, "zstd": zst}


@pytest.mark.parametrize("pack", BOMBS.values(), ids=BOMBS.keys())
def test_more_than_the_ratio_allows_is_refused(pack: Callable[[bytes], bytes]) -> None:
    bomb = pack(bytes(8 * MIB))
    limits = Limits(ratio=100, slack=MIB)
    assert refused(bomb, limits=limits).reference == "compressed-bomb"
    # Zeros that fit in are no bomb, nor are those between real bytes, again and again.
    some = b"".join(random_bytes(30_000, seed) + bytes(MIB) for seed in range(5))
    assert unpacked(pack(some), limits=limits) == some


def test_the_ratio_is_held_against_what_came_last_too() -> None:
    """Much real data at the beginning earns nothing for the zeros at the end."""
    packed = gz(random_bytes(MIB, 1)) + gz(bytes(8 * MIB))
    assert refused(packed, limits=Limits(ratio=100, slack=MIB)).reference == "compressed-bomb"


def test_all_that_is_unpacked_is_bounded() -> None:
    limits = Limits(total=len(DATA))
    assert unpacked(gz(DATA), limits=limits) == DATA
    for packed in (gz(DATA + b"x"), zst(DATA) + zst(b"x")):
        assert refused(packed, limits=limits).reference == "compressed-too-large"


@pytest.mark.parametrize(
    "piece",
    [
        gz(b""),
        zst(b""),
        skippable(b""),
        skippable(bytes(50_000)),
        blocks(*[block(0, 0, b"")] * 10_000, block(0, 0, b"", last=True)),
        b"\x1f\x8b\x08\x08" + bytes(6) + b"name" * 50_000,
    ],
    ids=["gzip-members", "frames", "skipped", "long-skipped", "blocks", "gzip-name"],
)
def test_bytes_that_hold_nothing_are_bounded(piece: bytes) -> None:
    packed = piece * (200_000 // len(piece) + 1)
    assert refused(packed, limits=Limits(idle=100_000)).reference == "compressed-bomb"


@pytest.mark.parametrize(
    "packed",
    [
        struct.pack("<II", 0x184D2A50, 2**32 - 1) + bytes(MIB),
        blocks(*[block(0, 0, b"")] * 300_000),
        b"\x1f\x8b\x08\x08" + bytes(6) + b"n" * MIB,
    ],
    ids=["skipped", "blocks", "gzip-name"],
)
def test_what_holds_nothing_is_given_up_before_it_ends(packed: bytes) -> None:
    """None of these ends: it is the bound that is met, not the end of the stream."""
    assert refused(packed, limits=Limits(idle=100_000)).reference == "compressed-bomb"


@pytest.mark.parametrize("pack", BOMBS.values(), ids=BOMBS.keys())
def test_a_bomb_is_unpacked_in_small_pieces(pack: Callable[[bytes], bytes]) -> None:
    bomb = pack(bytes(64 * MIB))
    stream = Unpacked(io.BytesIO(bomb))
    view = memoryview(bytearray(4 * MIB))
    tracemalloc.start()
    try:
        drain(stream, view)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 8 * MIB


# --- what lies below ---


class Failing:
    """A stream that breaks off with an error of its own."""

    def __init__(self, data: bytes) -> None:
        self._stream = io.BytesIO(data)

    def readinto(self, view: memoryview, /) -> int:
        count = self._stream.readinto(view[:1000])
        if count == 0:
            raise OSError(5, os.strerror(5))
        return count


@pytest.mark.parametrize("length", [5, 100_000])
def test_a_stream_that_failed_below_never_ends_well(length: int) -> None:
    stream = Unpacked(Failing(gz(DATA)[:length]))
    view = memoryview(bytearray(65_536))
    with pytest.raises(OSError, match="error"):
        drain(stream, view)
    with pytest.raises(RuntimeError):
        stream.readinto(view)


def test_nothing_is_read_before_it_is_asked_for() -> None:
    stream = io.BytesIO(gz(DATA))
    Unpacked(stream)
    assert stream.tell() == 0


def test_zstd_that_is_not_installed_is_a_matter_of_usage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(UsageError) as raised:
        unpacked(zst(DATA))
    assert raised.value.reference == "extra-missing"
    assert unpacked(gz(DATA)) == DATA


# --- one checkpoint, whatever it comes in ---


def sources(directory: Path, files: dict[str, bytes]) -> Iterator[tuple[str, Source]]:
    tar = tar_of(files)
    path = directory / "laguna-xs.tar"
    path.write_bytes(tar)
    yield "tar", TarFile(path)
    yield "pipe", Pipe(io.BytesIO(tar))
    yield "pipe", Pipe(Unpacked(io.BytesIO(tar)))
    yield "tar", Pipe(Unpacked(io.BytesIO(gz(tar))), kind="tar")
    yield "url", Pipe(Unpacked(Ragged(zst(tar))), kind="url")
    yield "directory", Directory(write_tree(directory / "unpacked", files))


def test_the_id_is_the_same_from_every_kind_of_source(tmp_path: Path) -> None:
    files = {**vendor(1), "exact.bin": random_bytes(CHUNK_SIZE, 2), "é/空.txt": b"x"}
    store = MemoryStore()
    ids = set()
    for number, (kind, source) in enumerate(sources(tmp_path, files)):
        location = S3Location("models", f"m{number}/")
        result = upload(source, store, location, UploadOptions(memory=256 * MIB, cores=2))
        source.close()
        assert result.manifest.source["kind"] == kind
        assert {str(file.path): file.size for file in result.manifest.files} == {
            name: len(data) for name, data in files.items()
        }
        ids.add(result.manifest.id)
    assert len(ids) == 1


def test_a_damaged_archive_leaves_nothing(tmp_path: Path) -> None:
    store = MemoryStore()
    packed = gz(tar_of(vendor(1)))
    damaged = packed[:-8] + struct.pack("<I", zlib.crc32(b"other")) + packed[-4:]
    with pytest.raises(MalformedInput) as raised:
        upload(
            Pipe(Unpacked(io.BytesIO(damaged))),
            store,
            S3Location("models", "m/"),
            UploadOptions(memory=256 * MIB, cores=2),
        )
    assert raised.value.reference == "compressed-damaged"
    assert not list(store.list_objects(""))
    assert not list(store.list_multipart_uploads(""))
