"""Part sizes and concurrency for every file size and budget: legal parts within memory (I11)."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from staging.transfer.sizing import BASE_MEMORY, MIN_MEMORY, Sizing, choose, part_size_for
from staging.vocabulary.digest import CHUNK_SIZE, MAX_FILE_SIZE
from staging.vocabulary.errors import MalformedInput, StagingError, UsageError

BOUNDED = settings(max_examples=200, deadline=None, derandomize=True)

MIB = 1024**2
GIB = 1024**3

# The limits of S3, as its documentation states them.
LEAST_PART = 5 * MIB
MOST_PART = 5 * GIB
MOST_PARTS = 10_000
LARGEST = MOST_PARTS * MOST_PART

SIZES = st.one_of(
    st.integers(0, MAX_FILE_SIZE),
    st.integers(0, LARGEST),
    st.integers(0, 54).map(lambda bits: min(2**bits, MAX_FILE_SIZE)),
    st.integers(0, 400).map(lambda chunks: chunks * CHUNK_SIZE * MOST_PARTS + 1),
)
MEMORY = st.one_of(st.integers(MIN_MEMORY, 64 * GIB), st.integers(MIN_MEMORY, 1 * GIB))


def outcome(
    largest: int,
    *,
    memory: int,
    cores: int,
    part_size: int | None = None,
    concurrency: int | None = None,
) -> Sizing | StagingError:
    try:
        return choose(
            largest, memory=memory, cores=cores, part_size=part_size, concurrency=concurrency
        )
    except StagingError as error:
        return error


@BOUNDED
@given(SIZES, st.integers(1, 320).map(lambda chunks: chunks * CHUNK_SIZE))
@example(0, CHUNK_SIZE)
@example(LARGEST, CHUNK_SIZE)
@example(LARGEST - 1, CHUNK_SIZE)
@example(MAX_FILE_SIZE, CHUNK_SIZE)
def test_the_parts_of_every_file_are_legal(size: int, least: int) -> None:
    if size > LARGEST:
        with pytest.raises(MalformedInput):
            part_size_for(size, least)
        return
    part = part_size_for(size, least)
    assert part % CHUNK_SIZE == 0
    assert max(least, LEAST_PART) <= part <= MOST_PART
    assert -(-size // part) <= MOST_PARTS
    if part > least:  # no larger than it must be
        assert -(-size // (part - CHUNK_SIZE)) > MOST_PARTS


@BOUNDED
@given(SIZES, MEMORY, st.integers(1, 512))
@example(0, MIN_MEMORY, 1)
@example(LARGEST, 64 * GIB, 512)
def test_what_is_chosen_fits_the_memory(largest: int, memory: int, cores: int) -> None:
    sizing = outcome(largest, memory=memory, cores=cores)
    if isinstance(sizing, MalformedInput):
        assert largest > LARGEST
        return
    if isinstance(sizing, UsageError):
        assert sizing.reference == "memory"
        assert memory < BASE_MEMORY + part_size_for(largest)
        return
    assert isinstance(sizing, Sizing)
    assert sizing.part_size == part_size_for(largest)
    assert 1 <= sizing.concurrency <= sizing.connections <= 128
    assert BASE_MEMORY + sizing.concurrency * sizing.part_size <= memory


@BOUNDED
@given(
    SIZES,
    MEMORY,
    st.integers(1, 512),
    st.none()
    | st.integers(1, 2000).map(lambda chunks: chunks * CHUNK_SIZE)
    | st.integers(-1, 2**40),
    st.none() | st.integers(-1, 300),
)
@example(0, MIN_MEMORY, 1, CHUNK_SIZE, 1)
@example(0, MIN_MEMORY, 1, CHUNK_SIZE, 2)
@example(0, 64 * GIB, 1, MOST_PART, 1)
@example(0, 64 * GIB, 1, MOST_PART + CHUNK_SIZE, 1)
def test_what_is_given_is_kept_or_refused(
    largest: int, memory: int, cores: int, part_size: int | None, concurrency: int | None
) -> None:
    sizing = outcome(
        largest, memory=memory, cores=cores, part_size=part_size, concurrency=concurrency
    )
    if isinstance(sizing, MalformedInput):
        assert largest > LARGEST
        return
    if isinstance(sizing, UsageError):
        assert sizing.reference in ("memory", "part-size", "concurrency")
        return
    assert isinstance(sizing, Sizing)
    assert sizing.part_size == (part_size or part_size_for(largest))
    assert sizing.concurrency == concurrency if concurrency else sizing.concurrency >= 1
    assert sizing.connections == concurrency if concurrency else sizing.connections >= 8
    assert sizing.part_size % CHUNK_SIZE == 0
    assert sizing.part_size <= MOST_PART
    assert -(-largest // sizing.part_size) <= MOST_PARTS
    assert BASE_MEMORY + sizing.concurrency * sizing.part_size <= memory
