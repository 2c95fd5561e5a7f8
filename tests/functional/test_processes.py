"""Many processes and one directory or one cache, and runs that have nothing to do (I1, I5, I6)."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from staging.layout.documents import is_document
from tests.cli.programs import DOWNLOADER, TIMEOUT, Outcome, Programs
from tests.support.altered import PROGRAM, ROOT
from tests.support.checkpoints import hugging_face, random_bytes, read_tree
from tests.support.downloads import (
    BUCKET,
    MEMORY,
    assert_holds,
    part_bytes,
    publish,
    slow,
    visible,
)
from tests.support.s3server import ScriptedS3

PROCESSES = 8
CHUNK = 16 * 1024 * 1024
MODEL = hugging_face(1, (CHUNK + 70_000, 4_000_000))
TOTAL = sum(map(len, MODEL.values()))
LOOKS = 8 * sum(len(data) for path, data in MODEL.items() if is_document(path))
"""Bytes of small documents that eight processes may look at before they wait for one of them."""

KEYS = {f"model/{path}": len(data) for path, data in MODEL.items()}
URI = f"s3://{BUCKET}/model/"
LYING = (*PROGRAM, "--locks-lie", "--")


@pytest.fixture
def s3() -> Iterator[ScriptedS3]:
    with ScriptedS3() as server:
        yield server


@pytest.fixture
def programs(tmp_path: Path, s3: ScriptedS3) -> Programs:
    return Programs(tmp_path, s3, PYTHONPATH=str(ROOT))


@pytest.fixture
def checkpoint_id(s3: ScriptedS3) -> str:
    return publish(s3, "model", MODEL)


def together(
    programs: Programs,
    program: Sequence[str],
    targets: Sequence[Path],
    *options: str,
    expect: frozenset[int] = frozenset({0}),
) -> list[Outcome]:
    """Start a process for each target at once, and wait for all."""
    with contextlib.ExitStack() as stack:
        started = [
            stack.enter_context(
                programs.started([*program, URI, target, "--memory", MEMORY, *options])
            )
            for target in targets
        ]
        outcomes = []
        for running in started:
            stdout, stderr = running.process.communicate(timeout=TIMEOUT)
            outcome = Outcome(URI, running.process.returncode, stdout.decode(), stderr.decode())
            assert outcome.code in expect, outcome
            assert "Traceback" not in outcome.stderr, outcome
            outcomes.append(outcome)
        return outcomes


# --- a private directory ---


@pytest.mark.slow
def test_of_many_processes_one_downloads_and_the_others_adopt(
    programs: Programs, s3: ScriptedS3, checkpoint_id: str, tmp_path: Path
) -> None:
    slow(s3, 0.3)
    target = tmp_path / "model"
    for outcome in together(programs, DOWNLOADER, [target] * PROCESSES):
        assert outcome.stdout == f"{target} {checkpoint_id}\n"
    assert_holds(target, checkpoint_id, MODEL)
    assert 0 <= part_bytes(s3.requests, KEYS) - TOTAL <= LOOKS


@pytest.mark.slow
def test_without_locks_the_result_is_right_all_the_same(
    programs: Programs, s3: ScriptedS3, checkpoint_id: str, tmp_path: Path
) -> None:
    """Some may find that others changed what they worked on; nobody publishes anything wrong.

    What they had not finished may stay beside it: nobody knows that nobody works on it.
    """
    slow(s3, 0.3)
    target = tmp_path / "model"
    outcomes = together(programs, LYING, [target] * PROCESSES, expect=frozenset({0, 1, 15}))
    assert 0 in {outcome.code for outcome in outcomes}
    assert visible(target, {checkpoint_id: MODEL}) in {None, checkpoint_id}
    s3.clear_script()
    together(programs, DOWNLOADER, [target])
    assert visible(target, {checkpoint_id: MODEL}) == checkpoint_id
    assert read_tree(target) == MODEL


# --- a shared cache ---


@pytest.mark.slow
@pytest.mark.parametrize("program", [DOWNLOADER, LYING], ids=["locks", "locks-lie"])
def test_many_directories_on_one_cache(
    programs: Programs,
    s3: ScriptedS3,
    checkpoint_id: str,
    tmp_path: Path,
    program: tuple[str, ...],
) -> None:
    slow(s3, 0.3)
    cache = tmp_path / "cache"
    targets = [tmp_path / f"model-{number}" for number in range(PROCESSES)]
    outcomes = together(programs, program, targets, "--cache", str(cache))
    for target, outcome in zip(targets, outcomes, strict=True):
        assert outcome.stdout == f"{target} {checkpoint_id}\n"
        assert target.is_symlink()
        assert_holds(target, checkpoint_id, MODEL)
    assert len({os.path.realpath(target) for target in targets}) == 1
    if program is DOWNLOADER:
        assert 0 <= part_bytes(s3.requests, KEYS) - TOTAL <= LOOKS


# --- nothing to do ---

MANY = {
    **hugging_face(2),
    **{f"extra/{number:03}.txt": random_bytes(500, number) for number in range(195)},
}


def test_a_run_with_nothing_to_do_asks_little_and_loads_little(
    programs: Programs, s3: ScriptedS3, tmp_path: Path
) -> None:
    assert len(MANY) == 200
    checkpoint_id = publish(s3, "model", MANY)
    target = tmp_path / "model"
    first = programs.download(URI, target)

    s3.requests.clear()
    assert programs.download(URI, target).stdout == first.stdout
    assert len(s3.requests) <= 2
    assert all(".checkpoint" in request.key for request in s3.requests)

    s3.requests.clear()
    command = [DOWNLOADER[0], "-X", "importtime", *DOWNLOADER[1:]]
    pinned = programs.run([*command, URI, target, "--expect-id", checkpoint_id])
    assert pinned.stdout == first.stdout
    assert len(s3.requests) == 0
    loaded = set(re.findall(r"^import time:.*\| +([\w.]+)$", pinned.stderr, re.MULTILINE))
    assert "downloader.program" in loaded
    assert not {name for name in loaded if name.partition(".")[0] in SDK}


SDK = {"boto3", "botocore", "s3transfer", "awscrt", "urllib3"}
