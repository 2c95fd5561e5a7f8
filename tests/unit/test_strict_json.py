"""Strict JSON: one reading of a stranger's document (I3), within bounds (I11)."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from staging.vocabulary.strict_json import MAX_DEPTH, loads


def read(text: str | bytes) -> Any:
    data = text if isinstance(text, bytes) else text.encode("utf-8")
    return loads(data, limit=len(data))


@pytest.mark.parametrize(
    "text",
    [
        "null",
        "true",
        '"text é \\u00e9 \\ud83d\\ude00 模"',
        "[]",
        "{}",
        "0",
        "-1",
        "9007199254740993",
        "1.5e300",
        ' {"a": [1, {"b": "c"}], "A": 1, "": 2} ',
        '{"a": {"a": {"a": 1}}, "b": [{"a": 1}, {"a": 1}]}',
    ],
)
def test_plain_documents(text: str) -> None:
    assert read(text) == json.loads(text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"a": 1, "a": 1}', "duplicate key 'a'"),
        ('{"a": 1, "\\u0061": 2}', "duplicate key 'a'"),
        ('{"x": [{"y": {"k": 1, "b": 2, "k": 3}}]}', "duplicate key 'k'"),
        ('[[[{"": 1, "": 2}]]]', "duplicate key ''"),
        ('{"\\u001b": 1, "\\u001b": 2}', r"duplicate key '\\x1b'"),
        ("NaN", "NaN is not JSON"),
        ('{"a": [NaN]}', "NaN is not JSON"),
        ("Infinity", "Infinity is not JSON"),
        ("[-Infinity]", "-Infinity is not JSON"),
        ("1e999", "1e999 is too large a number"),
        ('{"a": -1e999}', "-1e999 is too large a number"),
        ('"\\ud800"', "surrogates not allowed"),
        ('{"a": ["x\\udfff"]}', "surrogates not allowed"),
        ('{"\\udc00": 1}', "surrogates not allowed"),
        (b"\xef\xbb\xbf{}", "BOM"),
        (b'"\xff"', "codec can't decode"),
        (b'"\xc0\xaf"', "codec can't decode"),
        (b'"\xed\xa0\x80"', "codec can't decode"),
        ("{}".encode("utf-16"), "codec can't decode"),
        (b'{\0"a": 1}', "Expecting property name"),
        ("", "Expecting value"),
        ("{} {}", "Extra data"),
        ("{}]", "Extra data"),
        ("[1,]", "Expecting value|Illegal trailing comma"),
        ("{'a': 1}", "Expecting property name"),
        ('{"a": 1} // so', "Extra data"),
        ("01", "Extra data"),
        ("+1", "Expecting value"),
        (".5", "Expecting value"),
        ("0x10", "Extra data"),
        ('"a\nb"', "control character"),
        ('"\\x41"', "escape"),
        ('{"a"', "delimiter"),
    ],
)
def test_what_two_readers_might_read_differently(text: str | bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as caught:
        read(text)
    assert str(caught.value).isprintable()


def test_a_document_has_its_limit_in_bytes() -> None:
    data = '"é"'.encode()
    assert loads(data, limit=4) == "é"
    with pytest.raises(ValueError, match="longer than 3 bytes"):
        loads(data, limit=3)


def test_a_huge_integer_is_refused_before_it_is_computed() -> None:
    assert sys.get_int_max_str_digits() == 4300
    assert read("1" * 4300) == int("1" * 4300)
    with pytest.raises(ValueError, match="limit"):
        read("[" + "1" * 1_000_000 + "]")


@pytest.mark.parametrize(("opening", "inside", "closing"), [("[", "", "]"), ('{"a":', "1", "}")])
def test_nesting_is_bounded(opening: str, inside: str, closing: str) -> None:
    def nested(depth: int) -> str:
        return opening * depth + inside + closing * depth

    deepest = read(nested(MAX_DEPTH))
    assert json.loads(json.dumps(deepest, indent=1)) == deepest
    for depth in (MAX_DEPTH + 1, 900, 100_000):
        with pytest.raises(ValueError, match="nested too deeply"):
            read(nested(depth))
    with pytest.raises(ValueError, match="nested too deeply"):
        read('{"a": [], "b": ' + nested(MAX_DEPTH) + ', "c": {}}')
