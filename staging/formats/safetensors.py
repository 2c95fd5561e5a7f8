"""The header of a safetensors file: enough to know that a loader will take the file, from its first bytes.

Layout: a little-endian 64-bit length, that many bytes of JSON, then the tensors' data. Since the
tensors must tile the data without hole or overlap, header and file size together tell a truncated
file from a whole one; no weight is read.

Invariants: nothing passes that the safetensors library (0.8) refuses. What it takes and this module refuses
is exactly `DIFFERENCES`: what its own specification forbids, what two readers could read as two documents,
and sizes that no checkpoint has. The header's length is checked against the cap and the file's size before
it is read (I11); the JSON is scanned in place, without a tree of it: a hostile header takes at most some
twenty times its length in memory, and one of 100 MB less than 800 MB in all.
Not guaranteed: that the data is right, only that it is as long as it must be.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from staging.formats.safetensors_json import (
    DIFFERENCES,
    DTYPE_BITS,
    MAX_DIMENSIONS,
    MAX_NAMES,
    MAX_STRING_BYTES,
    SafetensorsError,
    Tensor,
    scan,
    shown,
)
from staging.formats.stranger import SAFETENSORS, SNIFF_BYTES, recognise
from staging.vocabulary.digest import Bytes
from staging.vocabulary.read_at import ReadAt

__all__ = [
    "DIFFERENCES",
    "DTYPE_BITS",
    "MAX_DIMENSIONS",
    "MAX_HEADER_BYTES",
    "MAX_NAMES",
    "MAX_STRING_BYTES",
    "HeaderCapture",
    "SafetensorsError",
    "SafetensorsHeader",
    "Tensor",
    "Totals",
    "parse_header",
    "read_header",
    "total",
]

MAX_HEADER_BYTES: Final = 100_000_000
"""Longest JSON header, in bytes: the library's own limit."""

_LENGTH_BYTES: Final = 8


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


@dataclass(frozen=True, slots=True)
class Totals:
    """What is in some files together: tensors, elements, and bytes of data without headers.

    `dtypes` has the bytes of each type that occurs, the largest first. Elements are parameters unless
    weights are packed: eight 4-bit weights in one I32 count as one element.
    """

    tensors: int
    elements: int
    data_bytes: int
    dtypes: Mapping[str, int]


def total(headers: Iterable[SafetensorsHeader]) -> Totals:
    """Add up what files hold."""
    tensors = elements = 0
    dtypes: dict[str, int] = {}
    for header in headers:
        tensors += len(header.tensors)
        for tensor in header.tensors.values():
            elements += tensor.elements
            dtypes[tensor.dtype] = dtypes.get(tensor.dtype, 0) + tensor.end - tensor.start
    largest_first = sorted(dtypes.items(), key=lambda item: (-item[1], item[0]))
    return Totals(tensors, elements, sum(dtypes.values()), dict(largest_first))


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
                self._outcome = _parse(self._held, _LENGTH_BYTES, end, self._size)
        except SafetensorsError as error:
            self._outcome = error.with_traceback(None)  # its frames would hold on to the header
        else:
            self._needed = end
        if self._outcome is not None:
            self._held = bytearray()


def parse_header(data: bytes, size: int) -> SafetensorsHeader:
    """Read the JSON header of a file of `size` bytes. Raises SafetensorsError."""
    return _parse(data, 0, len(data), size)


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


def _parse(data: bytes | bytearray, start: int, end: int, size: int) -> SafetensorsHeader:
    """Read the header between two offsets of `data` and hold it against the file's size."""
    tensors, metadata = scan(data, start, end)
    last = _check_tiles(tensors)
    length = end - start
    expected = _LENGTH_BYTES + length + last
    if size < expected:
        raise SafetensorsError(
            f"it is truncated: it has {size} bytes, its header calls for {expected}"
        )
    if size > expected:
        raise SafetensorsError(f"it has {size} bytes, its header only calls for {expected}")
    return SafetensorsHeader(tensors, metadata, length)


def _check_tiles(tensors: Mapping[str, Tensor]) -> int:
    """Where the data end, in bytes. Raises SafetensorsError when the tensors do not tile them."""
    end = 0
    for name in sorted(tensors, key=lambda name: (tensors[name].start, tensors[name].end)):
        tensor = tensors[name]
        if tensor.start != end:
            what = "overlaps with" if tensor.start < end else "leaves a hole behind"
            raise SafetensorsError(f"the data of tensor {shown(name)} {what} the tensor before it")
        end = tensor.end
    return end
