"""Reporters: what they show where there is little to show, and that they never stop the work."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable
from typing import Any

import pytest

from downloader.log import Course
from staging.cli import progress
from staging.cli.progress import reporting
from staging.cli.traffic import Traffic
from staging.vocabulary.events import Event, FileDone, Moved, Note, Started, Waiting
from staging.wire.pace import Pace
from staging.wire.wire import Stopped

EVENTS: list[Event] = [
    Started("upload", 100, 2),
    Moved(50),
    FileDone("a", 50),
    Note("something", warning=True),
    Started("commit", None, 2),
    FileDone("b", 50),
]


class Stream(io.StringIO):
    """Takes so many writes and fails then; a terminal or not."""

    def __init__(self, *, terminal: bool, writes: int = 10**9, error: Exception | None = None):
        super().__init__()
        self._terminal = terminal
        self._left = writes
        self._error = error
        self.failures = 0

    def isatty(self) -> bool:
        return self._terminal

    def write(self, text: str) -> int:
        self._left -= 1
        if self._left < 0 and self._error is not None:
            self.failures += 1
            raise self._error
        return super().write(text)


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("writes", range(5))
@pytest.mark.parametrize(
    "error",
    [BrokenPipeError(32, "Broken pipe"), OSError(5, "Input/output error"), ValueError("closed")],
    ids=lambda error: type(error).__name__,
)
def test_a_reporter_falls_silent_when_nobody_listens(
    terminal: bool, writes: int, error: Exception
) -> None:
    stream = Stream(terminal=terminal, writes=writes, error=error)
    with reporting(quiet=False, verbose=True, bar=True, stream=stream) as report:
        for event in EVENTS:
            report(event)
    # The library that draws the bar swallows some errors itself and tries a few times more.
    assert stream.failures == 1 or (terminal and stream.failures > 1)


def shown(*events: Event, terminal: bool, quiet: bool = False) -> str:
    stream = Stream(terminal=terminal)
    with reporting(quiet=quiet, verbose=False, bar=True, stream=stream) as report:
        for event in events:
            report(event)
    return stream.getvalue()


def test_a_pipe_from_which_nothing_has_come() -> None:
    text = shown(Started("upload", None, None), terminal=False)
    assert "None" not in text
    assert text.splitlines()[-1].endswith("upload: nothing has come so far")


def test_a_phase_without_bytes_counts_files() -> None:
    events: list[Event] = [Started("verify checksum", None, 3)]
    events += [FileDone(name, 10) for name in "abc"]
    assert "3 of 3 files" in shown(*events, terminal=False)
    bar = shown(*events, terminal=True)
    assert "3/3" in bar
    assert "100%|" in bar


def test_quiet_keeps_warnings() -> None:
    text = shown(*EVENTS, terminal=False, quiet=True)
    assert [line.partition(" ")[2] for line in text.splitlines()] == ["WARNING something"]


class Lines:
    """Lines with their fields, as a program that shows JSON gets them."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str, dict[str, Any]]] = []
        self._more = threading.Condition()

    def __call__(self, level: str, event: str, text: str, **fields: object) -> None:
        with self._more:
            self.lines.append((event, text, fields))
            self._more.notify_all()

    def wait_for(self, found: Callable[[str, str], bool]) -> dict[str, Any]:
        """The fields of the first line of which that is true."""
        with self._more:
            assert self._more.wait_for(lambda: any(found(e, t) for e, t, _ in self.lines), 60)
            return next(fields for event, text, fields in self.lines if found(event, text))


def test_a_heartbeat_tells_of_bytes_requests_and_the_slowest_stream(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(progress, "HEARTBEAT", 0.01)
    traffic, pace, lines = Traffic(), Pace(ceiling=4), Lines()
    traffic.watch(pace)
    pace.enter().leave()
    pace.enter(again=True).leave()
    meter = pace.meter("down", "t", 10**9)
    meter.moved(6_000_000, 2.0)
    with reporting(quiet=False, verbose=False, bar=False, emit=lines, traffic=traffic) as report:
        report(Started("preflight", None, None))
        waiting = lines.wait_for(lambda event, text: event == "progress")
        assert (waiting["requests"], waiting["retries"]) == (2, 1)
        report(Started("download", 1000, 3))
        report(Moved(250))
        moved = lines.wait_for(lambda event, text: "250 B of 1.0 kB (25 %) verified" in text)
        assert moved["verified_bytes"] == 250
        assert moved["slowest_bytes_per_second"] == 3_000_000
        assert moved["bytes_per_second"] > 0
        assert moved["eta_seconds"] is not None
        lines.wait_for(lambda event, text: "slowest stream 3.0 MB/s" in text and "1 retry" in text)


@pytest.mark.parametrize(
    ("phase", "word", "field"),
    [
        ("download", "verified", "verified_bytes"),
        ("check", "read", "done_bytes"),
        ("copy", "copied", "done_bytes"),
    ],
)
def test_only_what_is_proven_is_called_verified(phase: str, word: str, field: str) -> None:
    lines, course = Lines(), Course()
    with reporting(
        quiet=False, verbose=False, bar=False, emit=lines, traffic=Traffic()
    ) as course.report:
        course(Started(phase, 1000, 3))
        course(Moved(1000))
    event, text, fields = lines.lines[-1]
    assert event == "progress"
    assert text.startswith(f"{phase}: 1.0 kB of 1.0 kB (100 %) {word}, ")
    assert {name for name in fields if name.endswith("_bytes")} == {field, "total_bytes"}
    assert fields[field] == 1000
    assert course.text() == f"{phase}: 1.0 kB of 1.0 kB {word}"


def test_a_wait_for_another_process_is_told_at_once_and_by_the_heartbeat(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(progress, "HEARTBEAT", 0.01)
    lines = Lines()
    with reporting(quiet=False, verbose=False, bar=False, emit=lines) as report:
        report(Waiting("pod-7 pid 1", 0, None, 0.0))
        assert lines.lines[0][1] == "waiting for pod-7 pid 1"
        report(Waiting("pod-7 pid 1", 2000, 4000, 65.0))
        text = "waiting for pod-7 pid 1, which has 2.0 kB of 4.0 kB; 1 min 5 s so far"
        told = lines.wait_for(lambda event, line: line == text)
        assert (told["done_bytes"], told["total_bytes"]) == (2000, 4000)
        report(Started("check", 10, 1))
        report(Moved(10))
    assert lines.lines[-1][0] == "progress"


def test_traffic_that_was_stopped_stays_so_for_who_comes_later() -> None:
    traffic = Traffic()
    early, late = Pace(ceiling=1), Pace(ceiling=1)
    traffic.watch(early)
    traffic.stop()
    traffic.watch(late)
    for pace in (early, late):
        with pytest.raises(Stopped):
            pace.enter()


def test_a_bar_tells_of_a_wait_above_itself() -> None:
    assert "waiting for somebody: 1 B of 2 B" in shown(
        Started("download", 2, 1), Waiting("somebody", 1, 2, 3.0), terminal=True
    )
