"""The digests of a part, whatever the pieces it comes in (I1)."""

from __future__ import annotations

import random

import pytest

from staging.upload.part_digest import PartDigest
from staging.vocabulary import crc64
from staging.vocabulary.digest import CHUNK_SIZE, HashFamily, chunk_digests


@pytest.mark.parametrize("family", list(HashFamily))
@pytest.mark.parametrize("size", [1, CHUNK_SIZE - 1, CHUNK_SIZE, CHUNK_SIZE + 1, 2 * CHUNK_SIZE])
@pytest.mark.parametrize("piece", [256 * 1024, 5_000_011, 40 * 1024 * 1024])
def test_pieces_of_any_size_give_the_same(family: HashFamily, size: int, piece: int) -> None:
    data = random.Random(size).randbytes(size)
    digest = PartDigest(family)
    for start in range(0, size, piece):
        digest.update(data[start : start + piece])
    assert digest.chunks() == chunk_digests(family, data)
    assert digest.crc == crc64.crc64(data)
