"""Packed in any way and delivered in any pieces, an archive has the same bytes (I2, I4)."""

from __future__ import annotations

import gzip
import io
import struct

import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from staging.source.compressed import Unpacked
from staging.vocabulary.errors import MalformedInput


class Pieces:
    """A stream that comes in pieces of given lengths, over and over."""

    def __init__(self, data: bytes, lengths: list[int]) -> None:
        self._stream = io.BytesIO(data)
        self._lengths = lengths
        self._reads = 0

    def readinto(self, view: memoryview, /) -> int:
        self._reads += 1
        return self._stream.readinto(view[: self._lengths[self._reads % len(self._lengths)]])


def read(data: bytes, lengths: list[int], wanted: int) -> bytes:
    stream = Unpacked(Pieces(data, lengths))
    view = memoryview(bytearray(wanted))
    found = bytearray()
    while count := stream.readinto(view):
        found += view[:count]
    return bytes(found)


def skippable(data: bytes) -> bytes:
    return struct.pack("<II", 0x184D2A53, len(data)) + data


def frame(data: bytes, level: int, checksum: bool, known: bool, flush: bool) -> bytes:
    compressor = zstandard.ZstdCompressor(
        level=level, write_checksum=checksum, write_content_size=known
    )
    if known:
        return compressor.compress(data)
    streaming = compressor.compressobj()
    half = len(data) // 2
    packed = streaming.compress(data[:half])
    if flush:
        packed += streaming.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
    return packed + streaming.compress(data[half:]) + streaming.flush()


@st.composite
def contents(draw: st.DrawFn) -> bytes:
    """Bytes some of which pack well, of up to several blocks of either format."""
    pieces = draw(st.lists(st.tuples(st.binary(max_size=50), st.integers(1, 8000)), max_size=4))
    return b"".join(piece * count for piece, count in pieces)


LENGTHS = st.lists(
    st.sampled_from([1, 2, 3, 5, 100, 4096, 1_000_000]), min_size=1, max_size=5
).filter(lambda lengths: max(lengths) > 50)
WANTED = st.sampled_from([7, 1000, 1_048_576])


@settings(deadline=None, max_examples=60)
@given(st.lists(contents(), min_size=1, max_size=3), st.integers(0, 9), LENGTHS, WANTED)
def test_gzip_members_in_any_pieces(
    parts: list[bytes], level: int, lengths: list[int], wanted: int
) -> None:
    packed = b"".join(gzip.compress(part, level, mtime=0) for part in parts)
    assert read(packed, lengths, wanted) == b"".join(parts)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.tuples(
            contents(),
            st.sampled_from([-5, 1, 3, 19]),
            st.booleans(),
            st.booleans(),
            st.booleans(),
            st.binary(max_size=20),
        ),
        min_size=1,
        max_size=3,
    ),
    LENGTHS,
    WANTED,
)
def test_zstd_frames_in_any_pieces(
    parts: list[tuple[bytes, int, bool, bool, bool, bytes]], lengths: list[int], wanted: int
) -> None:
    packed = b"".join(frame(*part) + skippable(skipped) for *part, skipped in parts)  # type: ignore[arg-type]
    assert read(packed, lengths, wanted) == b"".join(part[0] for part in parts)


@settings(deadline=None, max_examples=300)
@given(
    st.sampled_from([b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd", b"\x50\x2a\x4d\x18"]),
    st.binary(max_size=200),
)
def test_noise_behind_a_magic_is_refused_and_nothing_worse(magic: bytes, noise: bytes) -> None:
    try:
        found = read(magic + noise, [1000], 4096)
    except MalformedInput:
        return
    # What is whole by chance: a short frame without a checksum, or nothing but skipped bytes.
    assert magic != b"\x1f\x8b\x08"
    decompressor = zstandard.ZstdDecompressor()
    with decompressor.stream_reader(io.BytesIO(magic + noise), read_across_frames=True) as reader:
        assert found == reader.read()
