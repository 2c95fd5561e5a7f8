"""Digests of chunks and files: known answers, the construction spelled out, boundaries (I1, I4)."""

from __future__ import annotations

import hashlib

import pytest
from blake3 import blake3

from staging.vocabulary.digest import (
    CHUNK_SIZE,
    Digest,
    HashFamily,
    chunk_count,
    chunk_digests,
    chunk_span,
    file_digest,
)

FAMILIES = list(HashFamily)
MIB = 1024 * 1024

# Answers of `b3sum` and `sha256sum`; the last input is the bytes 0, 1, ..., 250, 0, 1, ... of the
# BLAKE3 specification's test vectors.
KNOWN = [
    (
        b"",
        "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262",
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    ),
    (
        b"abc",
        "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85",
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
    ),
    (
        bytes(number % 251 for number in range(1025)),
        "d00278ae47eb27b34faecf67b4fe263f82d5412916c1ffd97c8cb7fb814b8444",
        "bc0b6b10b89b9487a12fda2a8cc13194e7091c217aabf8b92846274026f4bcd0",
    ),
]


def whole(family: HashFamily, data: bytes) -> str:
    return str(file_digest(family, len(data), chunk_digests(family, data)))


@pytest.mark.parametrize(("data", "b3", "sha"), KNOWN, ids=["empty", "abc", "1025 bytes"])
def test_a_file_of_one_chunk_has_the_plain_hash_that_b3sum_and_sha256sum_print(
    data: bytes, b3: str, sha: str
) -> None:
    assert whole(HashFamily.BLAKE3, data) == f"blake3-16m:{b3}"
    assert whole(HashFamily.SHA256, data) == f"sha256-16m:{sha}"


def test_a_file_of_two_chunks_spelled_out() -> None:
    first, second = b"\x01" * 16_777_216, b"\x02" * 5
    tail = b"\x05\x00\x00\x01\x00\x00\x00\x00"  # 16,777,221, little-endian
    by_hand = b"checkpoint-file/1" + b"\x00" + tail
    b3 = blake3(by_hand + blake3(first).digest() + blake3(second).digest()).hexdigest()
    sha = hashlib.sha256(
        by_hand + hashlib.sha256(first).digest() + hashlib.sha256(second).digest()
    ).hexdigest()
    assert whole(HashFamily.BLAKE3, first + second) == f"blake3-16m:{b3}"
    assert whole(HashFamily.SHA256, first + second) == f"sha256-16m:{sha}"


@pytest.mark.parametrize(
    ("size", "lengths"),
    [
        (0, [0]),
        (1, [1]),
        (16 * MIB - 1, [16 * MIB - 1]),
        (16 * MIB, [16 * MIB]),
        (16 * MIB + 1, [16 * MIB, 1]),
        (32 * MIB, [16 * MIB, 16 * MIB]),
    ],
)
def test_chunks_at_their_boundaries(size: int, lengths: list[int]) -> None:
    assert chunk_count(size) == len(lengths)
    spans = [chunk_span(size, index) for index in range(len(lengths))]
    assert spans == [(sum(lengths[:index]), length) for index, length in enumerate(lengths)]
    data = bytes(size)
    for buffer in (data, bytearray(data), memoryview(data)):
        assert chunk_digests(HashFamily.BLAKE3, buffer) == [
            blake3(bytes(length)).digest() for length in lengths
        ]
    if size <= 16 * MIB:
        assert whole(HashFamily.BLAKE3, data) == f"blake3-16m:{blake3(data).hexdigest()}"
    else:
        assert whole(HashFamily.BLAKE3, data) != f"blake3-16m:{blake3(data).hexdigest()}"


@pytest.mark.parametrize(("size", "index"), [(0, 1), (0, -1), (CHUNK_SIZE, 1), (CHUNK_SIZE + 1, 2)])
def test_a_chunk_that_a_file_does_not_have(size: int, index: int) -> None:
    with pytest.raises(ValueError, match="has no chunk"):
        chunk_span(size, index)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_size_is_part_of_a_long_files_digest(family: HashFamily) -> None:
    chunks = [bytes([1]) * 32, bytes([2]) * 32]
    sizes = (CHUNK_SIZE + 1, CHUNK_SIZE + 2, 2 * CHUNK_SIZE)
    assert len({file_digest(family, size, chunks) for size in sizes}) == 3
    assert file_digest(family, sizes[0], chunks) != file_digest(family, sizes[0], chunks[::-1])


@pytest.mark.parametrize(
    ("size", "chunks"),
    [
        (0, []),
        (1, [bytes(32), bytes(32)]),
        (1, [bytes(31)]),
        (CHUNK_SIZE + 1, [bytes(32)]),
        (CHUNK_SIZE + 1, [bytes(31), bytes(33)]),
        (CHUNK_SIZE + 1, [b"", bytes(64)]),
    ],
)
def test_chunk_digests_that_cannot_be_a_files(size: int, chunks: list[bytes]) -> None:
    with pytest.raises(ValueError, match=r"chunks, not|32 bytes"):
        file_digest(HashFamily.BLAKE3, size, chunks)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_digest_reads_back(family: HashFamily) -> None:
    digest = Digest(family, bytes(range(32)))
    assert Digest.parse(str(digest)) == digest
    assert str(digest) == f"{family.value}:{bytes(range(32)).hex()}"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "blake3-16m",
        "blake3-16m:",
        "blake3-16m:" + "0" * 63,
        "blake3-16m:" + "0" * 65,
        "blake3-16m:" + "A" * 64,
        "blake3-16m:" + "0" * 64 + "\n",
        " blake3-16m:" + "0" * 64,
        "blake3-16m:" + "٠" * 64,
        "BLAKE3-16m:" + "0" * 64,
        "blake3:" + "0" * 64,
        "md5-16m:" + "0" * 64,
        "blake3-16m:0x" + "0" * 62,
    ],
)
def test_text_that_is_no_digest(text: str) -> None:
    with pytest.raises(ValueError, match=r"digest|HashFamily"):
        Digest.parse(text)


@pytest.mark.parametrize("length", [0, 31, 33])
def test_a_digest_has_32_bytes(length: int) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        Digest(HashFamily.BLAKE3, bytes(length))
