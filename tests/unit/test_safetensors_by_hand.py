"""Safetensors files made by hand, each for one rule of the format, held against the library (I1, I3, I11).

`BOTH` take it, `NEITHER` does, or the library alone: then the case names the documented difference.
"""

from __future__ import annotations

import tracemalloc
from typing import Final

import pytest
import safetensors

from staging.formats import safetensors_json
from staging.formats.safetensors import (
    DIFFERENCES,
    MAX_DIMENSIONS,
    MAX_HEADER_BYTES,
    MAX_NAMES,
    MAX_STRING_BYTES,
    HeaderCapture,
    SafetensorsError,
    parse_header,
    read_header,
)
from staging.vocabulary.read_at import BytesAt
from tests.support.tensors import framed

BOTH: Final = "both"
NEITHER: Final = "neither"


def one(entry: str, data: bytes = b"xy") -> bytes:
    """A file of one tensor `w`."""
    return framed(b'{"w":' + entry.encode() + b"}", data)


def shaped(shape: str, data: bytes = b"xy", dtype: str = "U8", end: int | None = None) -> bytes:
    end = len(data) if end is None else end
    return one(f'{{"dtype":"{dtype}","shape":{shape},"data_offsets":[0,{end}]}}', data)


def named(name: bytes) -> bytes:
    """A file of an empty tensor with a name as it is written in JSON."""
    return framed(b'{"' + name + b'":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}')


def with_metadata(value: bytes) -> bytes:
    return framed(b'{"__metadata__":' + value + b"}")


A: Final = '"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}'
B: Final = '"b":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}'
EMPTY: Final = '"e":{"dtype":"F64","shape":[0],"data_offsets":[%d,%d]}'
W: Final = '"dtype":"U8","shape":[2],"data_offsets":[0,2]'


def several(*entries: str, data: bytes = b"xy") -> bytes:
    return framed(b"{" + ",".join(entries).encode() + b"}", data)


FILES: Final[dict[str, tuple[bytes, str]]] = {
    # the frame
    "no tensors": (framed(b"{}"), BOTH),
    "no tensors, data": (framed(b"{}", b"x"), NEITHER),
    "padded with spaces": (framed(b"{}" + b" " * 14), BOTH),
    "padded with other white space": (framed(b"{}\n\t\r "), BOTH),
    "padded with NUL": (framed(b"{}\0"), NEITHER),
    "padded with a form feed": (framed(b"{}\x0c"), NEITHER),
    "space first": (framed(b" {}"), "leading-space"),
    "line feed first": (framed(b"\n{}"), "leading-space"),
    "byte order mark": (framed(b"\xef\xbb\xbf{}"), NEITHER),
    "UTF-16": (framed("{}".encode("utf-16-le")), NEITHER),
    "header is null": (framed(b"null"), NEITHER),
    "header is a list": (framed(b"[]"), NEITHER),
    "length cuts the brace": ((1).to_bytes(8, "little") + b"{}", NEITHER),
    "length as big endian": ((2).to_bytes(8, "big") + b"{}", NEITHER),
    "not closed": (framed(b"{"), NEITHER),
    "closed twice": (framed(b"{}}"), NEITHER),
    "comma at the end": (framed(b"{" + A.encode() + b",}", b"x"), NEITHER),
    "comma at the start": (framed(b"{," + A.encode() + b"}", b"x"), NEITHER),
    "no comma": (framed(b"{" + A.encode() + b" " + B.encode() + b"}", b"xy"), NEITHER),
    "comment": (framed(b"{}/**/"), NEITHER),
    "single quotes": (framed(b"{'a':{}}"), NEITHER),
    # offsets
    "two tensors": (several(A, B), BOTH),
    "in the other order": (several(B, A), BOTH),
    "empty in front": (several(EMPTY % (0, 0), A, B), BOTH),
    "empty in between": (several(A, B, EMPTY % (1, 1)), BOTH),
    "empty behind": (several(A, B, EMPTY % (2, 2)), BOTH),
    "empty past the end": (several(A, B, EMPTY % (3, 3)), NEITHER),
    "empty inside another": (several(EMPTY % (1, 1), f'"w":{{{W}}}'), NEITHER),
    "the same bytes twice": (several(A, A.replace('"a"', '"b"'), data=b"x"), NEITHER),
    "data one byte longer": (several(A, B, data=b"xyz"), NEITHER),
    "data one byte shorter": (several(A, B, data=b"x"), NEITHER),
    "offsets beyond 64 bits": (shaped("[0]", b"", end=2**64), NEITHER),
    # shapes
    "a scalar": (shaped("[]", b"x"), BOTH),
    "spaces in a shape": (shaped("[ 1 ,\n2 ]"), BOTH),
    "nothing, of the largest size": (shaped(f"[0,{2**64 - 1}]", b""), BOTH),
    "too large before the zero": (shaped(f"[{2**64 - 1},2,0]", b""), NEITHER),
    "bits beyond 64 bits": (shaped(f"[{2**61}]", b"", end=0), NEITHER),
    "size as a text": (shaped('["2"]'), NEITHER),
    "size with a point": (shaped("[2.0]"), NEITHER),
    "size with an exponent": (shaped("[2e0]"), NEITHER),
    "size with a zero in front": (shaped("[02]"), NEITHER),
    "size with a plus": (shaped("[+2]"), NEITHER),
    "minus zero": (shaped("[-0]", b""), NEITHER),
    "shape is null": (shaped("null"), NEITHER),
    "comma in an empty shape": (shaped("[,]", b"x"), NEITHER),
    "as many dimensions as there are": (shaped(f"[2{',1' * (MAX_DIMENSIONS - 1)}]"), BOTH),
    "one dimension more": (shaped(f"[2{',1' * MAX_DIMENSIONS}]"), "too-many-dimensions"),
    # types
    "three quarters of bytes": (shaped("[4]", b"xyz", "F6_E2M3"), BOTH),
    "half a byte too many": (shaped("[5]", b"xy", "F4"), NEITHER),
    "two bits too many": (shaped("[3]", b"xy", "F6_E3M2"), NEITHER),
    "the type in lower case": (shaped("[2]", b"xy", "u8"), NEITHER),
    "the type with a space": (shaped("[2]", b"xy", "U8 "), NEITHER),
    "the type with an escape": (shaped("[2]", b"xy", "\\u00558"), BOTH),
    "the type as an object": (
        one('{"dtype":{"U8":null},"shape":[2],"data_offsets":[0,2]}'),
        "dtype-as-object",
    ),
    "the type as a number": (one('{"dtype":3,"shape":[2],"data_offsets":[0,2]}'), NEITHER),
    # fields
    "a field's name with an escape": (one("{" + W.replace("dtype", "\\u0064type") + "}"), BOTH),
    "fields in another order": (one('{"data_offsets":[0,2],"dtype":"U8","shape":[2]}'), BOTH),
    "a field more": (one("{" + W + ',"strides":[1]}'), "unknown-field"),
    "a field less": (one('{"dtype":"U8","shape":[2]}'), NEITHER),
    "a field twice": (one("{" + W + ',"dtype":"U8"}'), NEITHER),
    "an unknown field twice": (one("{" + W + ',"x":1,"x":2}'), "unknown-field"),
    "the tensor as a list": (one('["U8",[2],[0,2]]'), "tensor-as-list"),
    "the tensor is null": (one("null"), NEITHER),
    # names
    "no name": (named(b""), BOTH),
    "a name of two code units": (named(rb"\ud83d\ude00"), BOTH),
    "half a pair": (named(rb"\ud83d"), NEITHER),
    "the other half": (named(rb"\ude00"), NEITHER),
    "a pair the wrong way round": (named(rb"\ude00\ud83d"), NEITHER),
    "a NUL, escaped": (named(rb"\u0000"), BOTH),
    "a tab, not escaped": (named(b"\t"), NEITHER),
    "the last control character, not escaped": (named(b"\x1f"), NEITHER),
    "DEL": (named(b"\x7f"), BOTH),
    "an unknown escape": (named(rb"\x41"), NEITHER),
    "an escape cut short": (named(rb"\u12"), NEITHER),
    "an escape with a sign": (named(rb"\u+123"), NEITHER),
    "overlong UTF-8": (named(b"\xc0\xaf"), NEITHER),
    "a surrogate in UTF-8": (named(b"\xed\xa0\x80"), NEITHER),
    "Latin-1": (named(b"\xe9"), NEITHER),
    "a name twice": (several(A, A, data=b"x"), "duplicate-name"),
    "a name twice, once with an escape": (
        several(A, A.replace('"a"', '"\\u0061"'), data=b"x"),
        "duplicate-name",
    ),
    "a name twice, in other cases": (several(A, B.replace('"b"', '"A"')), BOTH),
    # metadata
    "metadata": (with_metadata(b'{"format":"pt"}'), BOTH),
    "metadata with escapes": (with_metadata(rb'{"a":"\"\\\/\b\f\n\r\t\u00e9"}'), BOTH),
    "metadata are null": (with_metadata(b"null"), "metadata-null"),
    "metadata are a text": (with_metadata(b'"pt"'), NEITHER),
    "metadata with a number": (with_metadata(b'{"a":1}'), NEITHER),
    "metadata with null": (with_metadata(b'{"a":null}'), NEITHER),
    "metadata with an object": (with_metadata(b'{"a":{}}'), NEITHER),
    "metadata twice": (framed(b'{"__metadata__":{},"__metadata__":{}}'), NEITHER),
    "a name in metadata twice": (with_metadata(b'{"a":"1","a":"2"}'), "duplicate-name"),
    "metadata like a tensor's fields": (with_metadata(b'{"dtype":"U8","shape":"[]"}'), BOTH),
    "metadata that are a tensor": (with_metadata(b"{" + W.encode() + b"}"), NEITHER),
    "metadata under an escaped name": (framed(rb'{"__metadata\u005f_":{"a":1}}'), NEITHER),
}


def taken_by_the_library(data: bytes) -> bool:
    try:
        safetensors.deserialize(data)
    except safetensors.SafetensorError:
        return False
    return True


@pytest.mark.parametrize("name", FILES)
def test_each_is_judged_as_documented(name: str) -> None:
    data, verdict = FILES[name]
    assert taken_by_the_library(data) == (verdict != NEITHER)
    if verdict == BOTH:
        read_header(BytesAt(data))
    else:
        with pytest.raises(SafetensorsError):
            read_header(BytesAt(data))


def test_there_are_enough_and_every_difference_has_one() -> None:
    assert len(FILES) >= 60
    large = {"too-many-names", "string-too-long"}  # below
    assert {verdict for _, verdict in FILES.values()} - {
        BOTH,
        NEITHER,
    } == DIFFERENCES.keys() - large


def test_more_names_than_the_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_NAMES == 2**20
    monkeypatch.setattr(safetensors_json, "MAX_NAMES", 1000)  # the true one takes seconds
    tensors = b",".join(
        b'"%d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}' % number for number in range(500)
    )
    for excess in (0, 1):
        texts = b",".join(b'"%d":""' % number for number in range(500 + excess))
        data = framed(b'{"__metadata__":{' + texts + b"}," + tensors + b"}")
        assert taken_by_the_library(data)
        if excess:
            with pytest.raises(SafetensorsError, match="more than 1000 names"):
                read_header(BytesAt(data))
        else:
            assert len(read_header(BytesAt(data)).metadata) == 500


@pytest.mark.parametrize("unit", [b"x", rb"\n"])
def test_a_longer_text_than_the_cap(unit: bytes) -> None:
    for excess in (0, 1):
        name = unit * (MAX_STRING_BYTES // len(unit)) + b"x" * excess
        data = with_metadata(b'{"a":"' + name + b'"}')
        assert taken_by_the_library(data)
        if excess:
            with pytest.raises(SafetensorsError, match="longer than 8388608 bytes"):
                read_header(BytesAt(data))
        else:
            assert len(read_header(BytesAt(data)).metadata["a"]) == MAX_STRING_BYTES // len(unit)


HOSTILE: Final[dict[str, bytes]] = {
    "tensors": b",".join(
        b'"%05x":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}' % n for n in range(5_000)
    ),
    "metadata": b'"__metadata__":{' + b",".join(b'"%04x":""' % n for n in range(10_000)) + b"}",
    "depth": b'"a":' + b"[" * 200_000,
    "dimensions": b'"a":{"shape":[' + b"1," * 100_000,
    "escapes": b'"' + rb"\n" * 100_000 + b'":0',
    "space": b" " * 200_000,
    "numbers": b'"a":{"shape":[' + b"1" * 200_000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_header_takes_a_bounded_multiple_of_its_length(name: str) -> None:
    header = b"{" + HOSTILE[name] + b"}"
    tracemalloc.start()
    try:
        parse_header(header, len(header) + 8)
    except SafetensorsError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 20 * len(header)


def test_a_failure_lets_go_of_the_header() -> None:
    size = 4_000_000
    header = b"{" + b" " * (size - 1)
    tracemalloc.start()
    try:
        capture = HeaderCapture(MAX_HEADER_BYTES)
        capture.feed(framed(header))
        assert capture.failure is not None
        with pytest.raises(SafetensorsError):
            capture.result()
        held = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert held < 2 * size  # the test's own bytes, and no copy of them
