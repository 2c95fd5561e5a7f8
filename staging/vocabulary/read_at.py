"""Ranges of anything: the seam between formats and whatever holds their bytes."""

from __future__ import annotations

from typing import Protocol


class ReadAt(Protocol):
    """Bytes of a known size that can be read anywhere, from several threads at once."""

    @property
    def size(self) -> int:
        """Length in bytes."""
        ...

    def read_at(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes from `offset`.

        Raises a `StagingError` when they cannot be had; ValueError when the range lies outside.
        """
        ...


class BytesAt:
    """A byte string as `ReadAt`."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    @property
    def size(self) -> int:
        """Length in bytes."""
        return len(self._data)

    def read_at(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes from `offset`. Raises ValueError outside the data."""
        if offset < 0 or length < 0 or offset + length > len(self._data):
            raise ValueError(f"range {offset}+{length} lies outside {len(self._data)} bytes")
        return self._data[offset : offset + length]
