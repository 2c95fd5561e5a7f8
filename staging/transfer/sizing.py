"""How large parts are and how many are in flight, from file sizes and a memory budget.

    memory >= BASE_MEMORY + concurrency x part size          (what a transfer holds at most)

Invariants: a part is a whole number of chunks and at most 5 GiB; a file never has more than 10,000
parts; what is given is kept or refused; the plan never exceeds the stated memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from staging.store.store import MAX_PART_SIZE, MAX_PARTS
from staging.vocabulary.digest import CHUNK_SIZE, MAX_FILE_SIZE
from staging.vocabulary.errors import MalformedInput, UsageError

MIB: Final = 1024 * 1024

BASE_MEMORY: Final = 96 * MIB
"""What the interpreter, the libraries and the connections take before the first buffer, in bytes."""

MIN_MEMORY: Final = BASE_MEMORY + CHUNK_SIZE
"""Least memory a transfer can be told to live with: one buffer of one chunk."""

_MAX_DEFAULT_CONCURRENCY: Final = 128
"""Enough for 100 Gb/s from S3, which gives some 85 MB/s to a connection."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizing:
    """`concurrency` parts of at most `part_size` bytes are in flight at once.

    `connections` is how many requests may be, when what they move is smaller: never fewer. Small files
    wait for answers, not for memory.
    """

    part_size: int
    concurrency: int
    connections: int


def part_size_for(size: int, least: int = CHUNK_SIZE) -> int:
    """Smallest legal part size, at least `least`, for a file of `size` bytes.

    Raises MalformedInput for a file that no number of parts can carry.
    """
    if size > MAX_PARTS * MAX_PART_SIZE:
        raise MalformedInput(
            f"a file of {size} bytes is too large for one object: that has at most {MAX_PARTS} parts"
            f" of {MAX_PART_SIZE // MIB} MiB",
            reference="file-too-large",
            hint="split the weights into several files",
        )
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
    is no whole number of chunks, too small for `largest`, larger than a store takes, or when that
    many parts of it exceed the budget. Raises MalformedInput when `largest` is too large for a store.
    """
    if not 0 <= largest <= MAX_FILE_SIZE:
        raise ValueError(f"no file has {largest} bytes")
    if memory < MIN_MEMORY:
        raise UsageError(
            f"a memory budget of {memory // MIB} MiB is too small",
            reference="memory",
            hint=f"give at least {MIN_MEMORY // MIB}MiB",
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
    elif part_size > MAX_PART_SIZE:
        raise UsageError(
            f"a part size of {part_size // MIB} MiB is more than a store takes",
            reference="part-size",
            hint=f"give at most {MAX_PART_SIZE // MIB}MiB",
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
    if concurrency is None:
        connections = min(_MAX_DEFAULT_CONCURRENCY, max(8, 4 * cores))
        concurrency = min(connections, fitting)
    elif concurrency > fitting:
        raise UsageError(
            f"{concurrency} parts of {part_size // MIB} MiB do not fit a memory budget of"
            f" {memory // MIB} MiB",
            reference="memory",
            hint=f"give at most {fitting} at once, or at least"
            f" {(BASE_MEMORY + concurrency * part_size) // MIB}MiB of memory",
        )
    else:
        connections = concurrency
    return Sizing(part_size=part_size, concurrency=concurrency, connections=connections)


def _whole_chunks(count: int) -> int:
    return -(-count // CHUNK_SIZE) * CHUNK_SIZE
