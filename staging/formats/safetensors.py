"""The header of a safetensors file: enough to know that a loader will take the file, from its first bytes.

Layout: a little-endian 64-bit length, that many bytes of JSON, then the tensors' data. Since the
tensors must tile the data without hole or overlap, header and file size together tell a truncated
file from a whole one; no weight is read.

Invariants: nothing passes that the safetensors library (0.8) refuses; some of what it takes is refused,
where two readers could differ: duplicate names, unknown fields, space in front of the JSON. The
header's length is checked against the cap and the file's size before it is read (I11); parsing a hostile
one takes up to some thirty times its length in memory.
Not guaranteed: that the data is right, only that it is as long as it must be.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from staging.formats.stranger import SAFETENSORS, SNIFF_BYTES, recognise
from staging.vocabulary import strict_json
from staging.vocabulary.digest import Bytes
from staging.vocabulary.read_at import ReadAt

MAX_HEADER_BYTES: Final = 100_000_000
"""Longest JSON header, in bytes: the library's own limit."""

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

_LENGTH_BYTES: Final = 8
_MAX_U64: Final = 2**64 - 1
_FIELDS: Final = {"dtype", "shape", "data_offsets"}


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


@dataclass(frozen=True, slots=True)
class SafetensorsHeader:
    """A header that fits its file. `header_size` is the length of its JSON in bytes."""

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]
    header_size: int

    @property
    def data_offset(self) -> int:
        """Offset in bytes of the first tensor's data in the file."""
        return _LENGTH_BYTES + self.header_size


def read_header(source: ReadAt) -> SafetensorsHeader:
    """Read the header of a file with at most two reads.

    Raises SafetensorsError when the file is not whole, and what `source` raises.
    """
    capture = HeaderCapture(source.size)
    while capture.missing:
        capture.feed(source.read_at(capture.held, capture.missing))
    return capture.result()


class HeaderCapture:
    """Keeps of a file that passes by no more than its header; bytes are fed in order from offset 0.

    `size` is the file's size in bytes. What follows the header may be fed and is ignored.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._held = bytearray()
        self._needed = min(size, SNIFF_BYTES)
        self._outcome: SafetensorsHeader | SafetensorsError | None = None
        if size == 0:
            self._outcome = SafetensorsError("it is empty")

    @property
    def held(self) -> int:
        """Bytes of the file that are known so far."""
        return len(self._held)

    @property
    def missing(self) -> int:
        """Bytes still needed before there is more to say; 0 when the outcome is known."""
        return self._needed - len(self._held) if self._outcome is None else 0

    @property
    def failure(self) -> SafetensorsError | None:
        """Why the file is broken, as soon as that is known; None while it is not."""
        return self._outcome if isinstance(self._outcome, SafetensorsError) else None

    def feed(self, data: Bytes) -> None:
        """Take the next bytes of the file. Never raises for their content: see `failure`."""
        view = memoryview(data)
        while self.missing and len(view):
            taken = view[: self.missing]
            self._held += taken
            view = view[len(taken) :]
            if not self.missing:
                self._advance()

    def result(self) -> SafetensorsHeader:
        """Return the header. Raises SafetensorsError when the file is broken or has not come so far."""
        if self._outcome is None:
            raise SafetensorsError(f"only {len(self._held)} bytes of it are there")
        if isinstance(self._outcome, SafetensorsError):
            raise self._outcome
        return self._outcome

    def _advance(self) -> None:
        try:
            end = _LENGTH_BYTES + _header_length(self._held, self._size)
            if end <= len(self._held):
                self._outcome = parse_header(bytes(self._held[_LENGTH_BYTES:end]), self._size)
        except SafetensorsError as error:
            self._outcome = error
        else:
            self._needed = end
        if self._outcome is not None:
            self._held.clear()


def parse_header(data: bytes, size: int) -> SafetensorsHeader:
    """Read the JSON header of a file of `size` bytes. Raises SafetensorsError."""
    if not data.startswith(b"{"):
        raise SafetensorsError("its header is not a JSON object")
    try:
        document = strict_json.loads(data, limit=MAX_HEADER_BYTES)
        if b"-0" in data:  # zero for this decoder, no integer for others
            json.loads(data, parse_int=_not_minus_zero)
    except ValueError as error:
        raise SafetensorsError(f"its header is not valid JSON: {str(error)[:200]}") from error
    metadata = document.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise SafetensorsError("its metadata are not strings")
    tensors = {name: _tensor(name, fields) for name, fields in document.items()}
    end = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)):
        if tensor.start != end:
            what = "overlaps with" if tensor.start < end else "leaves a hole behind"
            raise SafetensorsError(f"the data of tensor {_shown(name)} {what} the tensor before it")
        end = tensor.end
    expected = _LENGTH_BYTES + len(data) + end
    if size < expected:
        raise SafetensorsError(
            f"it is truncated: it has {size} bytes, its header calls for {expected}"
        )
    if size > expected:
        raise SafetensorsError(f"it has {size} bytes, its header only calls for {expected}")
    return SafetensorsHeader(tensors, metadata, len(data))


def _header_length(start: bytes | bytearray, size: int) -> int:
    """The length of the JSON, from the first bytes of a file of `size` bytes."""
    length = int.from_bytes(start[:_LENGTH_BYTES], "little")
    if size >= _LENGTH_BYTES + 2 and start[_LENGTH_BYTES] == ord("{"):
        if 2 <= length <= min(MAX_HEADER_BYTES, size - _LENGTH_BYTES):
            return length
        if length <= MAX_HEADER_BYTES:
            raise SafetensorsError(f"its header claims {length} bytes, the file has {size} in all")
        raise SafetensorsError(
            f"its header claims {length} bytes, more than the {MAX_HEADER_BYTES} allowed"
        )
    if not any(start):
        raise SafetensorsError("it starts with zeros, as a file that was never written")
    stranger = recognise(bytes(start))
    if stranger is None or stranger is SAFETENSORS:
        raise SafetensorsError("it does not start as a safetensors file does")
    raise SafetensorsError(f"it is {stranger.name}, not a safetensors file")


def _tensor(name: str, fields: object) -> Tensor:
    if not isinstance(fields, dict) or set(fields) != _FIELDS:
        raise SafetensorsError(f"tensor {_shown(name)} does not have exactly {sorted(_FIELDS)}")
    dtype, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise SafetensorsError(f"tensor {_shown(name)} is of the unknown type {str(dtype)[:40]!r}")
    if not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != 2:
        raise SafetensorsError(f"tensor {_shown(name)} has an impossible shape or place")
    start, end = offsets
    count = 1
    for dimension in shape:
        count *= dimension
        if count > _MAX_U64:  # also where a later dimension is 0: the library stops here
            raise SafetensorsError(f"tensor {_shown(name)} has an impossible shape or place")
    bits = count * DTYPE_BITS[dtype]
    if bits > _MAX_U64 or bits % 8 or end - start != bits // 8:
        raise SafetensorsError(
            f"tensor {_shown(name)} has {end - start} bytes, its type and shape call for {bits} bits"
        )
    return Tensor(dtype, tuple(shape), start, end)


def _are_sizes(value: object) -> bool:
    return isinstance(value, list) and all(
        type(number) is int and 0 <= number <= _MAX_U64 for number in value
    )


def _not_minus_zero(text: str) -> int:
    if text == "-0":
        raise ValueError("-0 is not an integer")
    return int(text)


def _shown(name: str) -> str:
    return repr(name[:100])
