"""What a pod needs for a checkpoint: the formulae at their boundaries, and as docs/kubernetes.md has them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from staging.kubernetes import (
    DEFAULT_RATE,
    GIB,
    PodSizing,
    deployment_patch,
    pod_sizing,
    quantity,
)
from staging.transfer.memory import default_budget
from staging.transfer.sizing import MIB, choose

GB = 10**9
DOCUMENT = Path(__file__).parents[2] / "docs/kubernetes.md"

SIZES = st.lists(st.integers(0, 10**13), min_size=1, max_size=5)


@pytest.mark.parametrize(
    ("size", "empty_dir", "download", "failures", "deadline"),
    [
        (67 * GB, 64, 536, 144, 3120),
        (225 * GB, 211, 1800, 270, 6900),
        (450 * GB, 421, 3600, 450, 12300),
    ],
)
def test_checkpoints_of_the_usual_sizes(
    size: int, empty_dir: int, download: int, failures: int, deadline: int
) -> None:
    assert pod_sizing([size]) == PodSizing(
        files=1,
        total_size=size,
        rate=125_000_000,
        download_seconds=download,
        load_seconds=download + 900,
        empty_dir=empty_dir * GIB,
        ephemeral_storage=(empty_dir + 16) * GIB,
        memory=4 * (96 + 128 * 16) * MIB,
        probe_period=10,
        probe_failures=failures,
        progress_deadline=deadline,
    )


def test_the_document_has_the_same_numbers() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    table = text.partition("<!-- sizing: begin -->")[2].partition("<!-- sizing: end -->")[0]
    head, _, *rows = [line.strip(" |").split(" | ") for line in table.strip().splitlines()]
    sizes = [int(cell.removesuffix(" GB")) * GB for cell in head[-3:]]
    sized = [pod_sizing([size]) for size in sizes]
    assert [row[-3:] for row in rows] == [
        [quantity(each.empty_dir) for each in sized],
        [quantity(each.ephemeral_storage) for each in sized],
        [quantity(each.memory) for each in sized],
        [str(each.download_seconds) for each in sized],
        [str(each.probe_failures) for each in sized],
        [str(each.progress_deadline) for each in sized],
    ]


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([1], 2),  # a block and the margin
        ([GIB], 2),
        ([GIB + 1], 3),  # one byte more takes a block, and that a GiB
        ([0], 1),  # an empty file has no block
        ([1] * 262_144, 2),  # a GiB of blocks with one byte in each
        ([1] * 262_145, 3),
    ],
)
def test_files_take_whole_blocks(sizes: list[int], expected: int) -> None:
    assert pod_sizing(sizes).empty_dir == expected * GIB


@pytest.mark.parametrize(
    ("size", "rate", "seconds"),
    [(1, 1000, 1), (1000, 1000, 1), (1001, 1000, 2), (0, 1000, 0), (67 * GB, 2 * GB, 34)],
)
def test_begun_seconds_count(size: int, rate: int, seconds: int) -> None:
    sizing = pod_sizing([size], rate=rate)
    assert (sizing.download_seconds, sizing.load_seconds) == (seconds, seconds + 900)


@pytest.mark.parametrize("sizes", [[20_000_000], [67 * GB], [64 * MIB] * 1000])
def test_the_downloader_makes_use_of_all_the_memory_and_of_no_more(
    sizes: list[int], tmp_path: Path
) -> None:
    sizing = pod_sizing(sizes)
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/memory.max").write_text(f"{sizing.memory}\n")
    budget = default_budget(tmp_path)
    assert budget == sizing.memory // 4
    full = choose(0, memory=4 * GIB, cores=192).concurrency
    chunks = sum(-(-size // (16 * MIB)) for size in sizes)
    at_once = choose(0, memory=budget, cores=192).concurrency
    assert at_once >= min(full, chunks)
    if budget > 192 * MIB:  # the least it ever takes
        assert choose(0, memory=budget - MIB, cores=192).concurrency < min(full, chunks)


@given(SIZES, st.integers(0, 10**12), st.integers(1, 10**11))
def test_more_bytes_never_need_less(sizes: list[int], more: int, rate: int) -> None:
    small, large = (
        pod_sizing(sizes, rate=rate),
        pod_sizing([*sizes[1:], sizes[0] + more], rate=rate),
    )
    assert all(
        before <= after
        for before, after in zip(
            dataclasses.astuple(small), dataclasses.astuple(large), strict=True
        )
    )


@given(SIZES, st.integers(1, 10**11), st.integers(1, 10**11))
def test_a_slower_rate_never_needs_less_time_and_changes_no_size(
    sizes: list[int], rate: int, more: int
) -> None:
    slow, fast = pod_sizing(sizes, rate=rate), pod_sizing(sizes, rate=rate + more)
    assert slow.progress_deadline >= fast.progress_deadline
    assert slow.probe_failures >= fast.probe_failures
    assert slow.empty_dir == fast.empty_dir
    assert slow.memory == fast.memory


@given(SIZES, st.integers(1, 10**11))
def test_everything_fits_into_what_is_reckoned(sizes: list[int], rate: int) -> None:
    sizing = pod_sizing(sizes, rate=rate)
    assert sizing.empty_dir >= sum(sizes) + GIB
    assert sizing.ephemeral_storage > sizing.empty_dir
    assert sizing.probe_failures * sizing.probe_period >= sizing.load_seconds
    assert sizing.progress_deadline >= 2 * sizing.download_seconds + sizing.load_seconds
    assert sizing.progress_deadline % 60 == 0
    patch = deployment_patch(sizing, identity="sha256:0", uri=None)  # all of it can be written
    assert patch["spec"]["progressDeadlineSeconds"] == sizing.progress_deadline


@pytest.mark.parametrize(("sizes", "rate"), [([], DEFAULT_RATE), ([1], 0), ([1], -1)])
def test_nothing_to_reckon_with(sizes: list[int], rate: int) -> None:
    with pytest.raises(ValueError, match="at least one file and a positive rate"):
        pod_sizing(sizes, rate=rate)


@pytest.mark.parametrize(("size", "text"), [(64 * GIB, "64Gi"), (768 * MIB, "768Mi"), (0, "0Gi")])
def test_quantities(size: int, text: str) -> None:
    assert quantity(size) == text


def test_a_quantity_is_never_rounded() -> None:
    with pytest.raises(ValueError, match="no whole MiB"):
        quantity(GIB + 1)
