"""Is the disk large enough: whole blocks, a reserve, and the numbers in the message."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from staging.sync.plan import Fetch
from staging.sync.space import RESERVE, check_space, to_allocate
from staging.vocabulary.errors import NoSpace
from staging.vocabulary.manifest import ManifestFile
from tests.support.checkpoints import manifest_of

HERE = Path("/models/laguna-xs")


def file_of(size: int) -> ManifestFile:
    return manifest_of({"a": bytes(size)}).files[0]


@pytest.mark.parametrize(
    ("size", "allocated", "expected"),
    [
        (0, 0, 0),
        (1, 0, 4096),
        (4096, 0, 4096),
        (4097, 0, 8192),
        (4097, 4096, 4096),
        (4097, 8192, 0),
        (4097, 1 << 20, 0),
    ],
)
def test_files_take_whole_blocks(size: int, allocated: int, expected: int) -> None:
    assert to_allocate([Fetch(file_of(size), (0,), allocated=allocated)]) == expected


def test_no_file_makes_up_for_another() -> None:
    roomy = Fetch(file_of(1), (0,), allocated=1 << 30)
    assert to_allocate([roomy, Fetch(file_of(4096), (0,))]) == 4096
    assert to_allocate([]) == 0


@pytest.mark.parametrize(
    ("needed", "free"),
    [(0, 0), (1, None), (1, RESERVE + 1), (10**12, 10**12 + RESERVE)],
)
def test_what_fits(needed: int, free: int | None) -> None:
    check_space(needed, free, HERE)


def test_what_does_not_fit_says_how_much_is_missing() -> None:
    with pytest.raises(NoSpace) as caught:
        check_space(67_000_000_000, 40_000_000_000, HERE)
    error = caught.value
    assert error.message == (
        "'/models/laguna-xs' needs 67.01 GB more, 40.00 GB are free: 27.01 GB too few"
    )
    assert (error.code, error.reference, error.side) == (14, "no-space", "local")
    with pytest.raises(NoSpace):
        check_space(1, RESERVE, HERE)


@pytest.mark.parametrize(
    ("needed", "free"),
    [(3_000_000, 2_100_000), (1, RESERVE), (10**9, 999_999_999), (991_611_392, 1), (1 << 40, 5)],
)
def test_the_numbers_add_up(needed: int, free: int) -> None:
    with pytest.raises(NoSpace) as caught:
        check_space(needed, free, HERE)
    found = re.search(
        r"needs ([\d.]+) (\w+) more, ([\d.]+) (\w+) are free: ([\d.]+) (\w+) too few",
        caught.value.message,
    )
    assert found is not None
    more, there, less = (round(100 * float(found[place])) for place in (1, 3, 5))
    assert found[2] == found[4] == found[6]
    assert more - there == less > 0
