"""The JSON of a safetensors header, read strictly and in place.

A general decoder builds a tree of all it reads, some thirty times the size of the text, lets the last of
two equal names win, and knows nothing of what may stand where. This one reads the few shapes that a header
may have and nothing else, and never holds more than the tensors it returns.

Invariants: at most `MAX_NAMES` tensors and texts, so that a header of 100 MB takes less than 800 MB of
memory in all (I11); no name means two things (I3); what passes, the library takes.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, NoReturn

MAX_NAMES: Final = 2**20
"""Most names in one header, of tensors and of metadata: five times what 384 experts in 60 layers need."""

MAX_DIMENSIONS: Final = 64
"""Most dimensions of a tensor: what NumPy can hold."""

MAX_STRING_BYTES: Final = 8 * 1024 * 1024
"""Longest name or text in a header, in bytes as written there."""

DIFFERENCES: Final[Mapping[str, str]] = {
    "duplicate-name": "a name twice, of a tensor or in metadata: the specification forbids it, the library"
    " takes the last one",
    "leading-space": "white space before the first brace, which the specification forbids",
    "unknown-field": "a tensor with a field besides dtype, shape and data_offsets, which the library skips",
    "tensor-as-list": "a tensor written as a list of its three fields instead of an object",
    "dtype-as-object": 'a type written as an object, {"U8": null}, instead of a string',
    "metadata-null": "null instead of metadata",
    "too-many-names": f"more than {MAX_NAMES} names in one header",
    "too-many-dimensions": f"a tensor of more than {MAX_DIMENSIONS} dimensions",
    "string-too-long": f"a name or text of more than {MAX_STRING_BYTES} bytes",
}
"""All that the library takes and this module refuses, and why."""

DTYPE_BITS: Final[Mapping[str, int]] = {
    **dict.fromkeys(("F4",), 4),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8"), 8),
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
}
"""Bits of one element of each type the library knows."""

_MAX_U64: Final = 2**64 - 1
_METADATA: Final = "__metadata__"
_FIELDS: Final = ("data_offsets", "dtype", "shape")


class SafetensorsError(ValueError):
    """Why a file is no whole safetensors file; `reason` says it in a few words."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor. `start` and `end` are in bytes from the start of the data, behind the header."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def elements(self) -> int:
        """How many numbers of its type it holds; a packed type's are counted as they are stored."""
        count = 1
        for dimension in self.shape:
            count *= dimension
        return count


# Patterns of the scanner. None repeats a group without a bound: the engine keeps a record per repetition.
_SPACE: Final = rb"[ \t\n\r]*+"
_PLAIN: Final = rb'[^"\\\x00-\x1f]'
_ESCAPE: Final = rb'\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})'
_NUMBER: Final = rb"(?:0|[1-9][0-9]{0,19}+)"

_SKIP: Final = re.compile(_SPACE)
_SIMPLE_TEXT: Final = re.compile(rb'"(' + _PLAIN + rb'*+)"')
_PIECES: Final = re.compile(rb"(?:" + _PLAIN + rb"++|" + _ESCAPE + rb"){1,4096}+")
_INTEGER: Final = re.compile(_NUMBER)
_AS_WRITTEN_BY_THE_LIBRARY: Final = re.compile(
    _SPACE.join(
        (
            rb'"(' + _PLAIN + rb'*+)"',
            rb":",
            rb"\{",
            rb'"dtype"',
            rb":",
            rb'"([A-Z0-9_]{1,16}+)"',
            rb",",
            rb'"shape"',
            rb":",
            rb"\[([0-9, ]{0,1024}+)\]",
            rb",",
            rb'"data_offsets"',
            rb":",
            rb"\[",
            rb"(" + _NUMBER + rb")",
            rb",",
            rb"(" + _NUMBER + rb")",
            rb"\]",
            rb"\}",
        )
    )
)


_PAIR_OF_TEXTS: Final = re.compile(
    _SPACE.join((rb'"(' + _PLAIN + rb'*+)"', rb":", rb'"(' + _PLAIN + rb'*+)"'))
)


def scan(data: bytes | bytearray, start: int, end: int) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read the JSON of a header, which lies between two offsets of `data`: tensors and metadata by name.

    Raises SafetensorsError. Whether the tensors tile the file's data is not looked at.
    """
    return _Scanner(data, start, end).scan()


class _Scanner:
    """Reads the JSON between two offsets of `data`, once, from left to right."""

    def __init__(self, data: bytes | bytearray, start: int, end: int) -> None:
        self._data = data
        self._start = start
        self._at = start
        self._end = end
        self._names = 0
        self._shapes: dict[bytes, tuple[int, ...]] = {}  # many tensors share a shape

    def scan(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Return tensors and metadata by name."""
        if self._data[self._start : self._start + 1] != b"{":
            raise SafetensorsError("its header is not a JSON object")
        self._at += 1
        tensors: dict[str, Tensor] = {}
        metadata: dict[str, str] | None = None
        more = not self._take(b"}")
        while more:
            name, tensor = self._tensor_as_usual() or (self._text(), None)
            if tensor is None:
                self._expect(b":")
            if name in tensors or (name == _METADATA and metadata is not None):
                self._fail(f"duplicate key {shown(name)}")
            if name == _METADATA:
                metadata = self._texts()
            else:
                tensors[name] = tensor or self._tensor(name)
                self._count_name()
            more = self._take(b",")
            if not more:
                self._expect(b"}")
        self._skip()
        if self._at != self._end:
            self._fail("something follows its end")
        return tensors, metadata or {}

    def _tensor_as_usual(self) -> tuple[str, Tensor] | None:
        """A name and its tensor in one go; None where they are written in another way, or wrong."""
        self._skip()
        match = _AS_WRITTEN_BY_THE_LIBRARY.match(self._data, self._at, self._end)
        if match is None:
            return None
        raw, dtype, sizes, start, end = match.groups()
        shape = self._shape_as_usual(bytes(sizes))
        if shape is None or len(raw) > MAX_STRING_BYTES:
            return None
        name = self._decoded(raw)
        if name == _METADATA:
            return None
        self._at = match.end()
        return name, _tensor(name, dtype.decode("ascii"), shape, [int(start), int(end)])

    def _shape_as_usual(self, text: bytes) -> tuple[int, ...] | None:
        shape = self._shapes.get(text)
        if shape is None:
            numbers = (
                [number.strip(b" ") for number in text.split(b",")] if text.strip(b" ") else []
            )
            if len(numbers) > MAX_DIMENSIONS or not all(map(_INTEGER.fullmatch, numbers)):
                return None
            shape = tuple(map(int, numbers))
            if len(self._shapes) < 1024:
                self._shapes[text] = shape
        return shape

    def _tensor(self, name: str) -> Tensor:
        """A tensor's fields in any order and spelling."""
        if not self._take(b"{"):
            raise SafetensorsError(f"tensor {shown(name)} is no JSON object of exactly {_FIELDS}")
        dtype: str | None = None
        lists: dict[str, list[int]] = {}
        more = not self._take(b"}")
        while more:
            field = self._text()
            self._expect(b":")
            if field in lists or (field == "dtype" and dtype is not None):
                self._fail(f"duplicate key {field!r} of tensor {shown(name)}")
            if field == "dtype":
                if not self._sees_text():
                    raise SafetensorsError(
                        f"tensor {shown(name)} is of an unknown type, not a text"
                    )
                dtype = self._text()
            elif field in _FIELDS:
                lists[field] = self._integers(name)
            else:
                raise SafetensorsError(
                    f"tensor {shown(name)} has the field {shown(field)}, not exactly {_FIELDS}"
                )
            more = self._take(b",")
            if not more:
                self._expect(b"}")
        if dtype is None or len(lists) != 2:
            raise SafetensorsError(f"tensor {shown(name)} does not have exactly {_FIELDS}")
        return _tensor(name, dtype, tuple(lists["shape"]), lists["data_offsets"])

    def _integers(self, name: str) -> list[int]:
        """A list of a tensor's: a few integers."""
        numbers: list[int] = []
        whole = self._take(b"[")
        more = whole and not self._take(b"]")
        while more:
            self._skip()
            match = _INTEGER.match(self._data, self._at, self._end)
            if match is None:
                whole = False
                break
            self._at = match.end()
            numbers.append(int(match.group()))
            if len(numbers) > MAX_DIMENSIONS:
                raise SafetensorsError(
                    f"tensor {shown(name)} has more than {MAX_DIMENSIONS} dimensions"
                )
            more = self._take(b",")
            whole = more or self._take(b"]")
        if not whole:
            raise SafetensorsError(f"tensor {shown(name)} has an {_IMPOSSIBLE}")
        return numbers

    def _texts(self) -> dict[str, str]:
        """The metadata: texts by name."""
        texts: dict[str, str] = {}
        if not self._take(b"{"):
            raise SafetensorsError("its metadata are not a JSON object of texts")
        more = not self._take(b"}")
        while more:
            name, text = self._pair_as_usual() or (self._text(), None)
            if name in texts:
                self._fail(f"duplicate key {shown(name)} in its metadata")
            if text is None:
                self._expect(b":")
                if not self._sees_text():
                    raise SafetensorsError(f"its metadata {shown(name)} is not a JSON text")
                text = self._text()
            texts[name] = text
            self._count_name()
            more = self._take(b",")
            if not more:
                self._expect(b"}")
        return texts

    def _pair_as_usual(self) -> tuple[str, str] | None:
        """A name and its text in one go; None where they have escapes, or are wrong."""
        self._skip()
        match = _PAIR_OF_TEXTS.match(self._data, self._at, self._end)
        if match is None or max(map(len, match.groups())) > MAX_STRING_BYTES:
            return None
        self._at = match.end()
        return self._decoded(match.group(1)), self._decoded(match.group(2))

    def _sees_text(self) -> bool:
        """True when a JSON string comes next."""
        self._skip()
        return self._at < self._end and self._data[self._at] == ord('"')

    def _text(self) -> str:
        """One JSON string."""
        self._skip()
        begin = self._at
        match = _SIMPLE_TEXT.match(self._data, begin, self._end)
        if match is not None:
            self._at = match.end()
            if self._at - begin - 2 > MAX_STRING_BYTES:
                raise SafetensorsError(
                    f"a text in its header is longer than {MAX_STRING_BYTES} bytes"
                )
            return self._decoded(match.group(1))
        self._expect(b'"')
        while piece := _PIECES.match(self._data, self._at, self._end):
            self._at = piece.end()
            if self._at - begin - 1 > MAX_STRING_BYTES:
                raise SafetensorsError(
                    f"a text in its header is longer than {MAX_STRING_BYTES} bytes"
                )
        if self._at >= self._end or self._data[self._at] != ord('"'):
            self._fail("a text does not end, or has a character that must be escaped")
        self._at += 1
        text = json.loads(self._decoded(self._data[begin : self._at]))
        assert isinstance(text, str)  # noqa: S101
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            self._fail("a text has half of a surrogate pair")
        return text

    def _decoded(self, raw: bytes | bytearray) -> str:
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            self._fail("a text is not UTF-8")

    def _count_name(self) -> None:
        self._names += 1
        if self._names > MAX_NAMES:
            raise SafetensorsError(f"its header has more than {MAX_NAMES} names")

    def _skip(self) -> None:
        match = _SKIP.match(self._data, self._at, self._end)
        if match is not None:
            self._at = match.end()

    def _take(self, character: bytes) -> bool:
        """Step over white space, and over the character if it comes next."""
        self._skip()
        found = self._at < self._end and self._data[self._at] == character[0]
        self._at += found
        return found

    def _expect(self, character: bytes) -> None:
        if not self._take(character):
            self._fail(f"{character.decode()} is missing")

    def _fail(self, why: str) -> NoReturn:
        raise SafetensorsError(
            f"its header is not valid JSON: {why}, at byte {self._at - self._start}"
        )


_IMPOSSIBLE: Final = "impossible shape or place, not JSON integers from 0 to 2^64-1"


def _tensor(name: str, dtype: str, shape: tuple[int, ...], offsets: list[int]) -> Tensor:
    if dtype not in DTYPE_BITS:
        raise SafetensorsError(f"tensor {shown(name)} is of the unknown type {dtype[:40]!r}")
    if len(offsets) != 2 or max(*shape, *offsets) > _MAX_U64:
        raise SafetensorsError(f"tensor {shown(name)} has an {_IMPOSSIBLE}")
    start, end = offsets
    count = 1
    for dimension in shape:
        count *= dimension
        if count > _MAX_U64:  # also where a later dimension is 0: the library stops here
            raise SafetensorsError(f"tensor {shown(name)} has an impossible shape or place")
    bits = count * DTYPE_BITS[dtype]
    if bits > _MAX_U64 or bits % 8 or end - start != bits // 8:
        raise SafetensorsError(
            f"tensor {shown(name)} has {end - start} bytes, its type and shape call for {bits} bits"
        )
    return Tensor(sys.intern(dtype), shape, start, end)


def shown(name: str) -> str:
    """A name as messages show it."""
    return repr(name[:100])
