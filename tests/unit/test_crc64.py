"""CRC-64/NVME: the catalogue's known answer, combining, and the text form that S3 speaks."""

from __future__ import annotations

import base64
import random

import pytest

from staging.vocabulary import crc64

CHECK = 0xAE8B14860A799888
"""CRC-64/NVME of b"123456789", the check value of the CRC catalogue."""


def bit_by_bit(data: bytes) -> int:
    """The definition: reflected, polynomial 0xAD93D23594C93659, all ones in and out."""
    value = 0xFFFFFFFFFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = (value >> 1) ^ (0x9A6C9329AC4BC9B5 if value & 1 else 0)
    return value ^ 0xFFFFFFFFFFFFFFFF


def test_the_known_answer() -> None:
    assert crc64.crc64(b"123456789") == CHECK
    assert crc64.crc64(b"") == 0


@pytest.mark.parametrize("size", [1, 7, 8, 9, 1000])
def test_against_the_definition(size: int) -> None:
    data = random.Random(size).randbytes(size)
    for buffer in (data, bytearray(data), memoryview(data)):
        assert crc64.crc64(buffer) == bit_by_bit(data)


@pytest.mark.parametrize("cut", [0, 1, 4, 8, 9])
def test_parts_go_on_or_combine(cut: int) -> None:
    first, second = b"123456789"[:cut], b"123456789"[cut:]
    assert crc64.crc64(second, crc64.crc64(first)) == CHECK
    assert crc64.combine(crc64.crc64(first), crc64.crc64(second), len(second)) == CHECK


def test_combining_in_order_is_not_combining_in_another() -> None:
    first, second = crc64.crc64(b"a"), crc64.crc64(b"b")
    assert crc64.combine(first, second, 1) != crc64.combine(second, first, 1)


def test_combining_lengths_that_no_buffer_has() -> None:
    zeros = crc64.crc64(bytes(2**20))
    for exponent in range(20, 40):
        zeros = crc64.combine(zeros, zeros, 2**exponent)
    # zeros is now the CRC of 2**40 zero bytes; grouping must not matter
    tail = crc64.crc64(b"tail")
    left = crc64.combine(crc64.combine(CHECK, zeros, 2**40), tail, 4)
    right = crc64.combine(CHECK, crc64.combine(zeros, tail, 4), 2**40 + 4)
    assert left == right
    assert left != crc64.combine(CHECK, tail, 4)


@pytest.mark.parametrize("value", [0, 1, CHECK, 2**64 - 1])
def test_the_text_form_is_base64_of_eight_big_endian_bytes(value: int) -> None:
    text = crc64.to_text(value)
    assert base64.b64decode(text) == bytes((value >> shift) & 0xFF for shift in range(56, -1, -8))
    assert crc64.from_text(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "AAAAAAAAAAA",  # no padding
        "AAAAAAAAAAB=",  # bits beyond the eighth byte
        "AAAAAAAAAA==",  # seven bytes
        "AAAAAAAAAAAA",  # nine bytes
        "AAAAAAAAAAA=\n",
        "AAAA AAAAAAA=",
        "____________",
        "ÄAAAAAAAAAA=",
        "0" * 16,
    ],
)
def test_text_that_is_no_checksum(text: str) -> None:
    with pytest.raises(ValueError, match="not a CRC64NVME checksum"):
        crc64.from_text(text)
