"""10,000 safetensors headers: what passes, the library takes; what it takes besides is listed (I1, I3)."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import pytest
import safetensors

from staging.formats.safetensors import (
    DIFFERENCES,
    DTYPE_BITS,
    MAX_DIMENSIONS,
    SafetensorsError,
    read_header,
)
from staging.vocabulary.read_at import BytesAt
from tests.support.tensors import framed

HEADERS = 10_000
SLICES = 10
NAMES = ["a", "b", "model.layers.0.w", "", "é", "\U0001f600", '"', "\\", "\n", "\x7f", "A" * 300]
FIELDS = ("dtype", "shape", "data_offsets")


class Pairs(list[tuple[str, Any]]):
    """A JSON object that keeps what stands twice."""


def oddities(header: bytes) -> set[str]:
    """Which of the documented differences a header shows; shares nothing with the parser under test."""
    found = set()
    if not header.startswith(b"{"):
        found.add("leading-space")
    document = json.loads(header, object_pairs_hook=Pairs)
    names = [name for name, _ in document]
    if len(set(names)) < len(names):
        found.add("duplicate-name")
    for name, value in document:
        if name == "__metadata__":
            if value is None:
                found.add("metadata-null")
            elif len({key for key, _ in value}) < len(value):
                found.add("duplicate-name")
            continue
        if not isinstance(value, Pairs):
            found.add("tensor-as-list")
            dtype, shape, _ = value
        else:
            fields = dict(value)
            dtype, shape = fields["dtype"], fields["shape"]
            if set(fields) != set(FIELDS):
                found.add("unknown-field")
        if not isinstance(dtype, str):
            found.add("dtype-as-object")
        if len(shape) > MAX_DIMENSIONS:
            found.add("too-many-dimensions")
    return found


class Writer:
    """Writes headers in all the ways there are, and some that there are not."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._spaces = rng.random() < 0.3
        self._escapes = rng.random() < 0.3

    def maybe(self, chance: float) -> bool:
        return self._rng.random() < chance

    def space(self) -> str:
        if not self._spaces:
            return ""
        return self._rng.choice(["", "", " ", "  ", "\n", "\t", "\r\n"])

    def join(self, opening: str, parts: list[str], closing: str) -> str:
        inner = ",".join(self.space() + part + self.space() for part in parts)
        return opening + self.space() + inner + closing

    def text(self, value: str) -> str:
        if not self._escapes:
            return json.dumps(value, ensure_ascii=False)
        units = value.encode("utf-16-be")
        escaped = ["\\u" + units[n : n + 2].hex() for n in range(0, len(units), 2)]
        return '"' + "".join(escaped) + '"' if self.maybe(0.5) else json.dumps(value)

    def number(self, value: int) -> str:
        if self.maybe(0.004):
            forms = [
                f"{value}.0",
                f"-{value}",
                f"0{value}",
                f"+{value}",
                f"{value}e0",
                "null",
                "[]",
            ]
            return self._rng.choice([*forms, str(value + 2**64), str(value + 1), '"1"', "true", ""])
        return str(value)

    def numbers(self, values: list[int]) -> str:
        return self.join("[", [self.number(value) for value in values], "]")

    def pair(self, name: str, value: str) -> str:
        return self.text(name) + self.space() + ":" + self.space() + value

    def dtype(self, value: str) -> str:
        if self.maybe(0.02):
            form = self._rng.choice(["null", "null", "0"])
            return self.join("{", [self.pair(value, form)], "}")
        return self.text(value)

    def tensor(self, dtype: str, shape: list[int], offsets: list[int]) -> str:
        values = [self.dtype(dtype), self.numbers(shape), self.numbers(offsets)]
        if self.maybe(0.02):
            return self.join("[", values, "]")
        fields = [self.pair(name, value) for name, value in zip(FIELDS, values, strict=True)]
        if self.maybe(0.2):
            self._rng.shuffle(fields)
        if self.maybe(0.01):
            fields.append(self.pair("strides", self._rng.choice(["null", '{"a":[1e5]}', "[1]"])))
        if self.maybe(0.01):
            fields.append(self._rng.choice(fields))
        if self.maybe(0.01):
            fields.pop()
        return self.join("{", fields, "}")

    def metadata(self) -> str:
        if self.maybe(0.2):
            return self._rng.choice(
                ["null", "null", "[]", '{"a":1}', '{"a":null}', '""', "{}", '{"a":{}}']
            )
        names = self._rng.choices(NAMES, k=self._rng.randrange(4))
        return self.join("{", [self.pair(name, self.text(name + "x")) for name in names], "}")


def shape_of(rng: random.Random, bits: int) -> list[int]:
    if rng.random() < 0.03:
        return [1] * rng.choice([MAX_DIMENSIONS, MAX_DIMENSIONS + 1, 8 * MAX_DIMENSIONS]) + [8]
    if rng.random() < 0.02:
        return rng.choice([[0, 2**64 - 1], [2**32, 2**32, 0], [2**61, 8], [0, 2**64]])
    shape = [rng.randrange(5) for _ in range(rng.randrange(4))]
    return [*shape, 4] if bits < 8 and rng.random() < 0.8 else shape


def generated(rng: random.Random) -> tuple[bytes, bytes]:
    """A header and data, most of them whole."""
    writer = Writer(rng)
    entries, end = [], 0
    for name in (
        rng.choices(NAMES, k=rng.randrange(5)) if rng.random() < 0.2 else rng.sample(NAMES, 3)
    ):
        dtype = rng.choice([*DTYPE_BITS]) if rng.random() < 0.98 else rng.choice(["F7", "u8", ""])
        bits = DTYPE_BITS.get(dtype, 8)
        shape = shape_of(rng, bits)
        for dimension in shape:
            bits *= dimension
        size = bits // 8 if bits < 10_000 else 0
        offsets = [end, end + size]
        if rng.random() < 0.02:
            offsets[rng.randrange(2)] += rng.choice([-1, 1])
        end += size
        entries.append(writer.pair(name, writer.tensor(dtype, shape, offsets)))
    if rng.random() < 0.3:
        rng.shuffle(entries)
    for _ in range(rng.choice([0, 0, 1]) + (rng.random() < 0.01)):
        entries.insert(
            rng.randrange(len(entries) + 1), writer.pair("__metadata__", writer.metadata())
        )
    text = writer.join("{", entries, "}")
    text += " " * rng.choice([0, 0, -len(text) % 8]) + writer.space()
    if rng.random() < 0.04:
        text = rng.choice([" ", "\n", "\ufeff", "x"]) + text
    if rng.random() < 0.02:
        text += rng.choice(["{}", "\0", ",", "\x0b"])
    header = bytearray(text.encode())
    if rng.random() < 0.15:
        at = rng.randrange(len(header))
        header[at : at + rng.randrange(3)] = rng.choice(
            [b"", b" ", b'"', b"0", b",", b"\xff", b"\\"]
        )
    if rng.random() < 0.03:
        end += rng.choice([-1, 1])
    return bytes(header), rng.randbytes(max(0, end))


def verdict(read: Callable[[], Any], refusal: type[Exception]) -> Any:
    try:
        return read()
    except refusal:
        return None


@pytest.mark.parametrize("part", range(SLICES))
def test_the_differences_are_the_documented_ones(part: int) -> None:
    rng = random.Random(f"headers {part}")
    seen: dict[str, int] = dict.fromkeys(DIFFERENCES, 0)
    both = neither = 0
    for _ in range(HEADERS // SLICES):
        header, data = generated(rng)
        file = framed(header, data)
        theirs = verdict(
            lambda file=file: safetensors.deserialize(file), safetensors.SafetensorError
        )
        ours = verdict(lambda file=file: read_header(BytesAt(file)), SafetensorsError)
        if theirs is None:
            assert ours is None, header
            neither += 1
            continue
        odd = oddities(header)
        assert (ours is None) == bool(odd), (header, odd)
        for name in odd:
            seen[name] += 1
        if ours is not None:
            both += 1
            assert {
                name: (tensor.dtype, list(tensor.shape), data[tensor.start : tensor.end])
                for name, tensor in ours.tensors.items()
            } == {name: (of["dtype"], of["shape"], bytes(of["data"])) for name, of in theirs}
    generated_here = seen.keys() - {"too-many-names", "string-too-long"}  # those are large
    assert all(seen[name] for name in generated_here), seen
    assert both > HEADERS / SLICES / 4
    assert neither > HEADERS / SLICES / 8
