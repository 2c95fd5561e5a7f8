"""What a download that starts again says of earlier attempts, and what it leaves for the next (I12)."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from downloader.attempts import KEPT, LIMIT, Attempts
from tests.cli.programs import DOWNLOADER, TIMEOUT, Programs
from tests.support.checkpoints import manifest_of, read_tree, vendor
from tests.support.local_disk import FaultyFs, Killed
from tests.support.s3server import ScriptedS3

NAME = ".checkpoint/attempts.json"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "node/.checkpoint").mkdir(parents=True)
    return tmp_path / "node"


def attempt(root: Path, *, host: str = "pod-1", pid: int | None = None) -> Attempts:
    return Attempts(root, ".checkpoint", host=host, pid=pid)


def on_record(root: Path) -> list[dict[str, Any]]:
    document = json.loads((root / NAME).read_bytes())
    assert document["schema"] == "checkpoint-attempts/1"
    entries: list[dict[str, Any]] = document["attempts"]
    return entries


def test_the_first_attempt_has_nothing_to_tell(root: Path) -> None:
    first = attempt(root)
    assert (first.number, first.told()) == (1, None)
    first.begin()
    first.succeed()
    again = attempt(root)
    assert (again.number, again.told()) == (1, None)


def test_attempts_are_counted_and_the_last_end_is_told(root: Path) -> None:
    for number, (code, cause) in enumerate(
        [(13, "connection"), (18, "deadline"), (1, "local-io")], 1
    ):
        one = attempt(root)
        assert one.number == number
        one.begin()
        one.end(code, cause)
        told = attempt(root).told()
        assert told is not None
        assert told.startswith(
            f"attempt {number + 1}; the previous one ended with exit {code} {cause} at 20"
        )
    assert [entry["exit"] for entry in on_record(root)] == [13, 18, 1]
    # A success forgets them all.
    last = attempt(root)
    last.begin()
    last.succeed()
    assert [(entry["number"], entry["exit"]) for entry in on_record(root)] == [(4, 0)]
    assert attempt(root).number == 1


def test_an_attempt_without_an_end_was_killed(root: Path) -> None:
    attempt(root).begin()  # and nothing more: in a container the next one has the same pid
    told = attempt(root).told()
    assert told is not None
    assert "attempt 2" in told
    assert "was killed" in told


def test_of_another_host_only_so_much_is_known(root: Path) -> None:
    attempt(root, host="pod-1").begin()
    told = attempt(root, host="pod-2").told()
    assert told is not None
    assert "on pod-1" in told
    assert "or still runs" in told


def test_a_neighbour_at_work_is_no_earlier_attempt(root: Path) -> None:
    attempt(root, pid=os.getppid()).begin()
    mine = attempt(root)
    assert (mine.number, mine.told()) == (1, None)
    mine.begin()
    mine.end(13, "connection")
    assert len(on_record(root)) == 2
    # One that has ended since is.
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait(TIMEOUT)
    attempt(root, pid=process.pid).begin()
    told = attempt(root).told()
    assert told is not None
    assert "was killed" in told


@pytest.mark.parametrize("shared", [False, True])
def test_a_success_forgets_no_neighbour_at_work(root: Path, shared: bool) -> None:
    """Two processes of one host: the first one that is done must not lose the other one's entry."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as neighbour:
        try:
            killed = Attempts(root, ".checkpoint", host="pod-1", pid=2**22 + 1, shared=shared)
            mine = Attempts(root, ".checkpoint", host="pod-1", shared=shared)
            theirs = Attempts(root, ".checkpoint", host="pod-1", pid=neighbour.pid, shared=shared)
            for each in (killed, theirs, mine):  # each was there before the others had begun
                each.begin()
            assert len(on_record(root)) == 3
            mine.succeed()
            assert [(entry["pid"], entry.get("exit")) for entry in on_record(root)] == [
                (neighbour.pid, None),
                (os.getpid(), 0),
            ]
        finally:
            neighbour.kill()
    # A success after its end forgets it, as it does all that were killed.
    after = Attempts(root, ".checkpoint", host="pod-1", shared=shared)
    after.begin()
    after.succeed()
    assert [entry["pid"] for entry in on_record(root)] == [os.getpid()]


@pytest.mark.parametrize("code", [2, 10, 11, 15, 16, 17])
def test_a_refused_run_leaves_a_directory_as_it_was(tmp_path: Path, code: int) -> None:
    one = attempt(tmp_path)
    one.begin()
    one.end(code, "refused")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("code", [12, 13, 18, 130, 143])
def test_what_may_pass_is_recorded_where_the_destination_is(tmp_path: Path, code: int) -> None:
    missing = attempt(tmp_path / "missing")
    missing.begin()
    missing.end(code, "passing")
    assert list(tmp_path.iterdir()) == []
    one = attempt(tmp_path)
    one.begin()
    one.end(code, "passing")
    assert [entry["exit"] for entry in on_record(tmp_path)] == [code]


def test_a_success_writes_nothing_where_nothing_was(root: Path) -> None:
    attempt(root).succeed()
    assert not (root / NAME).exists()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b'"text"',
        b"\xff\xfe",
        b"[" * 10_000,
        b'{"attempts": {}}',
        b" " * (LIMIT + 1),
    ],
    ids=lambda data: repr(data[:12]),
)
def test_garbage_counts_as_nothing_and_is_said(root: Path, data: bytes) -> None:
    (root / NAME).write_bytes(data)
    one = attempt(root)
    assert (one.number, one.told()) == (1, None)
    assert one.trouble is not None
    one.begin()
    one.end(13, "connection")
    assert [entry["exit"] for entry in on_record(root)] == [13]


@pytest.mark.parametrize(
    "entry",
    [
        None,
        [],
        {},
        {"number": "1", "pid": 1},
        {"number": 10**400, "pid": 1},
        {"number": 1, "pid": -1},
        {"number": -1, "pid": 1},
    ],
    ids=str,
)
def test_entries_that_make_no_sense_are_left_out(root: Path, entry: object) -> None:
    good = {"number": 4, "pid": 1, "host": "h\x1b[2J\n", "exit": 13, "cause": ["x"], "started": 5}
    (root / NAME).write_text(json.dumps({"attempts": [good, entry]}))
    told = attempt(root).told()
    assert told == "attempt 5; the previous one ended with exit 13 unknown at unknown"


def test_the_file_stays_small(root: Path) -> None:
    for _ in range(KEPT + 5):
        one = attempt(root, host="ü" * 500)
        one.begin()
        one.end(13, "é" * 500)
    assert (root / NAME).stat().st_size <= LIMIT
    assert on_record(root)[-1]["number"] == KEPT + 5
    assert attempt(root).trouble is None


@pytest.mark.parametrize("obstacle", ["directory", "symlink", "control-symlink", "control-file"])
def test_what_cannot_be_written_is_said_and_no_more(
    tmp_path: Path, root: Path, obstacle: str
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    if obstacle == "directory":
        (root / NAME).mkdir()
        (root / NAME / "x").touch()
    elif obstacle == "symlink":
        (elsewhere / "target").write_bytes(b"{}")
        (root / NAME).symlink_to(elsewhere / "target")
    else:
        (root / ".checkpoint").rmdir()
        if obstacle == "control-symlink":
            (root / ".checkpoint").symlink_to(elsewhere)
        else:
            (root / ".checkpoint").touch()
    before = {path: path.read_bytes() for path in elsewhere.iterdir()}
    one = attempt(root)
    one.begin()
    one.end(13, "connection")
    assert {path: path.read_bytes() for path in elsewhere.iterdir()} == before
    if obstacle != "symlink":  # a link is replaced by the file, and not followed
        assert one.trouble is not None


def test_a_kill_while_it_is_written_leaves_nothing_for_good(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torn = False
    for kill_at in itertools.count(1):
        fs = FaultyFs(kill_at=kill_at)
        with monkeypatch.context() as patch:
            patch.setattr("downloader.attempts.Fs", lambda fs=fs: fs)
            try:
                attempt(root).begin()
            except Killed:
                pass
            else:
                break
        torn |= any(path.name != "attempts.json" for path in (root / ".checkpoint").iterdir())
        attempt(root).begin()
        assert [path.name for path in (root / ".checkpoint").iterdir()] == ["attempts.json"]
    assert torn
    assert kill_at > 3


def test_a_download_that_was_killed_is_told_and_a_success_forgets_it(
    tmp_path: Path, scripted_s3: ScriptedS3
) -> None:
    bucket = scripted_s3.bucket("models")
    files = vendor(1, 20 * 1024 * 1024)
    for path, data in files.items():
        bucket.put(f"a/{path}", data)
    bucket.put("a/.checkpoint/manifest.json", manifest_of(files).encode())
    programs = Programs(tmp_path, scripted_s3)
    # When it is fetched, after the rules have looked at it.
    held = scripted_s3.hold("GetObject", key="a/tokenizer/tokenizer.json", occurrence=2)
    with programs.started([*DOWNLOADER, "s3://models/a/", "node"]) as running:
        assert held.arrived.wait(TIMEOUT)
        running.signal(signal.SIGKILL)
        running.outcome(-signal.SIGKILL)
    scripted_s3.clear_script()
    node = tmp_path / "node"
    entries = on_record(node)
    assert [entry["number"] for entry in entries] == [1]
    assert "exit" not in entries[0]

    again = programs.download("s3://models/a/", "node", "--log-format", "json")
    lines = [json.loads(line) for line in again.stderr.splitlines()]
    (told,) = (line for line in lines if line["event"] == "attempt")
    assert told["number"] == 2
    assert "was killed" in told["message"]
    assert lines[-1]["event"] == "done"
    assert lines[-1]["attempt"] == 2
    assert read_tree(node) == files
    assert [entry["exit"] for entry in on_record(node)] == [0]
    assert "attempt" not in programs.download("s3://models/a/", "node").stderr
