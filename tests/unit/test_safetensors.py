"""Safetensors headers: what passes, the library takes too (I1); header and memory are bounded (I11)."""

from __future__ import annotations

import json
from typing import Any

import pytest
import safetensors
from hypothesis import given, settings
from hypothesis import strategies as st

from staging.formats.safetensors import (
    DTYPE_BITS,
    MAX_HEADER_BYTES,
    HeaderCapture,
    SafetensorsError,
    SafetensorsHeader,
    Tensor,
    Totals,
    read_header,
    total,
)
from staging.vocabulary.read_at import BytesAt
from tests.support.tensors import BROKEN, SMALL, framed, safetensors_file


class Counting(BytesAt):
    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.reads: list[tuple[int, int]] = []

    def read_at(self, offset: int, length: int) -> bytes:
        self.reads.append((offset, length))
        return super().read_at(offset, length)


def captured(data: bytes, piece: int) -> SafetensorsHeader:
    capture = HeaderCapture(len(data))
    for start in range(0, len(data), piece):
        capture.feed(data[start : start + piece])
    return capture.result()


def test_a_valid_header() -> None:
    header = read_header(BytesAt(SMALL))
    assert header.tensors == {
        "embed": Tensor("BF16", (2, 3), 0, 12),
        "bias": Tensor("F32", (1,), 12, 16),
        "none": Tensor("I8", (0,), 16, 16),
    }
    assert header.metadata == {"format": "pt"}
    assert header.data_offset == len(SMALL) - 16


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files(name: str) -> None:
    data, reason = BROKEN[name]
    with pytest.raises(SafetensorsError) as caught:
        read_header(BytesAt(data))
    assert reason in caught.value.reason
    assert "\n" not in caught.value.reason
    assert len(caught.value.reason) < 400
    for piece in (1000, 7, 1):
        if len(data) < 5000 * piece:
            with pytest.raises(SafetensorsError) as again:
                captured(data, piece)
            assert again.value.reason == caught.value.reason


@pytest.mark.parametrize(
    "data",
    [
        framed(b"{}"),
        framed(b'{"__metadata__":{}}'),
        framed(b'{"a":{"dtype":"U8","shape":[],"data_offsets":[0,1]}}', b"x"),
        framed(b'{"a-0":{"dtype":"U8","shape":[0,18446744073709551615],"data_offsets":[0,0]}}'),
        framed(b'{"a":{"shape":[2],"data_offsets":[0,1],"dtype":"F4"}}   \n', b"x"),
        safetensors_file({f"layer.{n}": ("U8", [1], b"x") for n in range(500)}),
    ],
)
def test_unusual_but_whole_files(data: bytes) -> None:
    header = read_header(BytesAt(data))
    assert dict(safetensors.deserialize(data)).keys() == header.tensors.keys()
    assert captured(data, 1) == header


@pytest.mark.parametrize(("dtype", "bits"), DTYPE_BITS.items())
def test_every_type_has_the_library_s_size(dtype: str, bits: int) -> None:
    data = safetensors_file({"w": (dtype, [8], bytes(bits))})
    safetensors.deserialize(data)
    assert read_header(BytesAt(data)).tensors["w"].end == bits


def test_two_reads_at_most_and_never_more_than_the_header() -> None:
    small = Counting(SMALL)
    read_header(small)
    assert small.reads == [(0, len(SMALL))]
    data = safetensors_file({f"layer.{n}": ("U8", [100], bytes(100)) for n in range(100)})
    large = Counting(data)
    header = read_header(large)
    assert large.reads == [(0, 512), (512, header.data_offset - 512)]


def test_a_header_above_the_cap_or_the_file_is_never_read() -> None:
    for claimed in (MAX_HEADER_BYTES + 1, 2**63, 5000):
        source = Counting(claimed.to_bytes(8, "little") + b"{" + b" " * 4000)
        with pytest.raises(SafetensorsError):
            read_header(source)
        assert source.reads == [(0, 512)]


def test_a_capture_holds_the_header_and_knows_failure_early() -> None:
    data = safetensors_file({"w": ("U8", [100_000], bytes(100_000))})
    capture = HeaderCapture(len(data))
    capture.feed(data[:300])
    with pytest.raises(SafetensorsError, match="only 300 bytes"):
        capture.result()
    capture.feed(data[300:])
    assert capture.missing == 0
    assert capture.held == 0
    assert capture.result().tensors["w"].end == 100_000

    broken = HeaderCapture(10**9)
    broken.feed(b"<html>" + b" " * 506)
    assert broken.failure is not None
    assert "web page" in broken.failure.reason
    broken.feed(bytes(1000))
    assert broken.held == 0


sizes = st.integers(0, 4)
entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from([*DTYPE_BITS, "U8", "U8", "U8", "F7", "u8"]),
        "shape": st.lists(sizes | st.sampled_from([8, 2**32, 2**64 - 1, 2**64, -1]), max_size=3),
        "data_offsets": st.lists(sizes, min_size=2, max_size=2),
    }
)


def tiled(tensors: dict[str, dict[str, Any]], fix: bool) -> tuple[dict[str, dict[str, Any]], int]:
    """Give each tensor the place it calls for, so that not all examples die at that."""
    end = 0
    for entry in tensors.values():
        bits = DTYPE_BITS.get(entry["dtype"], 8)
        for dimension in entry["shape"]:
            bits *= dimension
        if fix and 0 <= bits <= 10_000:
            entry["data_offsets"] = [end, end + bits // 8]
            end += bits // 8
    return tensors, end


@settings(max_examples=500, deadline=None)
@given(
    st.dictionaries(st.text(max_size=3) | st.sampled_from("abc"), entries, max_size=4),
    st.booleans(),
    st.sampled_from([0, 0, 0, 0, 1, -1]),
    st.binary(max_size=2) | st.just(b" "),
)
def test_never_looser_than_the_library(
    tensors: dict[str, dict[str, Any]], fix: bool, error: int, padding: bytes
) -> None:
    document, end = tiled(tensors, fix)
    data = framed(json.dumps(document).encode() + padding, bytes(max(0, end + error)))
    try:
        header = read_header(BytesAt(data))
    except SafetensorsError:
        return
    assert {name: list(tensor.shape) for name, tensor in header.tensors.items()} == {
        name: view["shape"] for name, view in safetensors.deserialize(data)
    }


def test_no_flipped_bit_is_taken_by_us_alone() -> None:
    mutant = bytearray(SMALL)
    taken = 0
    for position in range(len(SMALL) - 16):
        for bit in range(8):
            mutant[position] ^= 1 << bit
            try:
                read_header(BytesAt(bytes(mutant)))
            except SafetensorsError:
                pass
            else:
                safetensors.deserialize(bytes(mutant))
                taken += 1
            mutant[position] ^= 1 << bit
    assert 0 < taken < 1000  # names and metadata have no check


def test_every_cut_is_found() -> None:
    for length in range(len(SMALL)):
        with pytest.raises(SafetensorsError):
            read_header(BytesAt(SMALL[:length]))


def test_totals() -> None:
    packed = safetensors_file({"w": ("F4", [3, 4], bytes(6)), "s": ("F32", [], bytes(4))})
    headers = [read_header(BytesAt(data)) for data in (SMALL, packed)]
    assert total(headers) == Totals(
        tensors=5,
        elements=6 + 1 + 0 + 12 + 1,
        data_bytes=26,
        dtypes={"BF16": 12, "F32": 8, "F4": 6, "I8": 0},
    )
    assert list(total(headers).dtypes) == ["BF16", "F32", "F4", "I8"]
    assert total([]) == Totals(tensors=0, elements=0, data_bytes=0, dtypes={})
