"""Part sizes and concurrency: what is chosen, what is refused and with which advice (I11)."""

from __future__ import annotations

from typing import Any

import pytest

from staging.transfer.sizing import BASE_MEMORY, MIN_MEMORY, Sizing, choose, part_size_for
from staging.vocabulary.digest import CHUNK_SIZE
from staging.vocabulary.errors import MalformedInput, StagingError, UsageError

MIB = 1024**2
GIB = 1024**3
TIB = 1024**4


@pytest.mark.parametrize(
    ("size", "part_mib"),
    [
        (0, 16),
        (1, 16),
        (67 * 10**9, 16),
        (16 * MIB * 10_000, 16),
        (16 * MIB * 10_000 + 1, 32),
        (450 * 10**9, 48),
        (5 * TIB, 528),
        (10_000 * 5 * GIB, 5120),
    ],
)
def test_part_sizes(size: int, part_mib: int) -> None:
    assert part_size_for(size) == part_mib * MIB


@pytest.mark.parametrize("size", [10_000 * 5 * GIB + 1, 2**53 - 1])
def test_a_file_that_no_object_can_hold_is_malformed_input(size: int) -> None:
    with pytest.raises(MalformedInput, match=f"a file of {size} bytes is too large") as caught:
        part_size_for(size)
    assert (caught.value.exit_code, caught.value.reference) == (16, "file-too-large")
    with pytest.raises(MalformedInput):
        choose(size, memory=64 * GIB, cores=2)


@pytest.mark.parametrize(
    ("memory", "cores", "expected"),
    [
        (MIN_MEMORY, 64, Sizing(part_size=16 * MIB, concurrency=1, connections=128)),
        (192 * MIB, 2, Sizing(part_size=16 * MIB, concurrency=6, connections=8)),
        (4 * GIB, 1, Sizing(part_size=16 * MIB, concurrency=8, connections=8)),
        (4 * GIB, 4, Sizing(part_size=16 * MIB, concurrency=16, connections=16)),
        (4 * GIB, 192, Sizing(part_size=16 * MIB, concurrency=128, connections=128)),
    ],
)
def test_what_is_chosen_for_a_machine(memory: int, cores: int, expected: Sizing) -> None:
    assert choose(67 * 10**9, memory=memory, cores=cores) == expected


def test_what_is_given_is_kept() -> None:
    assert choose(1, memory=GIB, cores=1, part_size=64 * MIB, concurrency=14) == Sizing(
        part_size=64 * MIB, concurrency=14, connections=14
    )


@pytest.mark.parametrize(
    ("given", "reference", "message", "hint"),
    [
        ({"memory": MIN_MEMORY - 1}, "memory", "111 MiB is too small", "at least 112MiB"),
        ({"concurrency": 0}, "concurrency", "at least 1", None),
        ({"concurrency": -3}, "concurrency", "at least 1", None),
        ({"part_size": 0}, "part-size", "not a whole number", "multiple of 16MiB"),
        ({"part_size": -CHUNK_SIZE}, "part-size", "not a whole number", "multiple of 16MiB"),
        ({"part_size": 8 * MIB}, "part-size", "not a whole number", "multiple of 16MiB"),
        ({"part_size": CHUNK_SIZE + 1}, "part-size", "not a whole number", "multiple of 16MiB"),
        ({"part_size": 5136 * MIB, "memory": 16 * GIB}, "part-size", "5136 MiB", "at most 5120MiB"),
        (
            {"part_size": 16 * MIB, "largest": 450 * 10**9},
            "part-size",
            "more than 10000 parts",
            "at least 48MiB",
        ),
        ({"part_size": 1024 * MIB}, "memory", "one part of 1024 MiB", "at least 1120MiB"),
        ({"largest": 5 * TIB, "memory": 256 * MIB}, "memory", "one part of 528 MiB", "624MiB"),
        (
            {"concurrency": 59},
            "memory",
            "59 parts of 16 MiB do not fit a memory budget of 1024 MiB",
            "give at most 58 at once, or at least 1040MiB of memory",
        ),
    ],
)
def test_what_is_impossible_is_refused_with_what_would_do(
    given: dict[str, Any], reference: str, message: str, hint: str | None
) -> None:
    arguments = {"largest": 1, "memory": GIB, "cores": 2, **given}
    with pytest.raises(UsageError, match=message) as caught:
        choose(arguments.pop("largest"), **arguments)
    assert (caught.value.exit_code, caught.value.reference) == (2, reference)
    if hint is not None:
        assert hint in (caught.value.hint or "")


def test_the_advice_works() -> None:
    with pytest.raises(StagingError):
        choose(1, memory=GIB, cores=2, concurrency=59)
    assert choose(1, memory=GIB, cores=2, concurrency=58).concurrency == 58
    assert choose(1, memory=1040 * MIB, cores=2, concurrency=59).concurrency == 59
    assert choose(1, memory=1120 * MIB, cores=2, part_size=1024 * MIB).concurrency == 1


@pytest.mark.parametrize("largest", [-1, 2**53])
def test_sizes_that_no_file_has_are_a_programming_error(largest: int) -> None:
    with pytest.raises(ValueError, match="no file has"):
        choose(largest, memory=GIB, cores=2)


def test_the_least_memory_is_one_buffer_beside_the_program() -> None:
    assert MIN_MEMORY == BASE_MEMORY + CHUNK_SIZE == 112 * MIB
