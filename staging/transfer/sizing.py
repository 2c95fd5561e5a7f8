"""How large parts are and how many are in flight, from file sizes and a memory budget.

    memory >= BASE_MEMORY + concurrency x part size          (what a transfer holds at most)

Invariants: a part is a whole number of chunks; a file never has more than 10,000 parts; the plan
never exceeds the stated memory, except that one part is always in flight.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from staging.store.store import MAX_PARTS
from staging.vocabulary.digest import CHUNK_SIZE, MAX_FILE_SIZE
from staging.vocabulary.errors import UsageError

MIB: Final = 1024 * 1024

BASE_MEMORY: Final = 96 * MIB
"""What the interpreter, the libraries and the connections take before the first buffer, in bytes."""

MIN_MEMORY: Final = BASE_MEMORY + CHUNK_SIZE
"""Least memory a transfer can be told to live with: one buffer of one chunk."""

_MAX_DEFAULT_CONCURRENCY: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizing:
    """`concurrency` parts of at most `part_size` bytes are in flight at once."""

    part_size: int
    concurrency: int


def part_size_for(size: int, least: int = CHUNK_SIZE) -> int:
    """Smallest legal part size, at least `least`, for a file of `size` bytes."""
    return _whole_chunks(max(least, -(-size // MAX_PARTS), 1))


def choose(
    largest: int,
    *,
    memory: int,
    cores: int,
    part_size: int | None = None,
    concurrency: int | None = None,
) -> Sizing:
    """Choose part size and concurrency for files of at most `largest` bytes.

    `memory` is the budget in bytes, `cores` the processors that may be used. A given `part_size` or
    `concurrency` is kept or refused, never adjusted silently: raises UsageError when a part size
    is no whole number of chunks, too small for `largest`, or too large for the budget.
    """
    if not 0 <= largest <= MAX_FILE_SIZE:
        raise ValueError(f"no file has {largest} bytes")
    if memory < MIN_MEMORY:
        raise UsageError(
            f"a memory budget of {memory // MIB} MiB is too small",
            reference="memory",
            hint=f"give at least {MIN_MEMORY // MIB} MiB",
        )
    if concurrency is not None and concurrency < 1:
        raise UsageError("concurrency is at least 1", reference="concurrency")
    least = part_size_for(largest)
    buffers = memory - BASE_MEMORY
    if part_size is None:
        part_size = least
    elif part_size <= 0 or part_size % CHUNK_SIZE:
        raise UsageError(
            f"a part size of {part_size} bytes is not a whole number of 16 MiB chunks",
            reference="part-size",
            hint="give a multiple of 16MiB",
        )
    elif part_size < least:
        raise UsageError(
            f"with parts of {part_size // MIB} MiB a file of {largest} bytes has more than"
            f" {MAX_PARTS} parts",
            reference="part-size",
            hint=f"give at least {least // MIB}MiB",
        )
    if part_size > buffers:
        raise UsageError(
            f"one part of {part_size // MIB} MiB does not fit a memory budget of {memory // MIB} MiB",
            reference="memory",
            hint=f"give at least {(BASE_MEMORY + part_size) // MIB}MiB of memory",
        )
    fitting = buffers // part_size
    wanted = concurrency or min(_MAX_DEFAULT_CONCURRENCY, max(8, 4 * cores))
    return Sizing(part_size=part_size, concurrency=max(1, min(wanted, fitting)))


def _whole_chunks(count: int) -> int:
    return -(-count // CHUNK_SIZE) * CHUNK_SIZE
