"""Reporters: what they show where there is little to show, and that they never stop the work."""

from __future__ import annotations

import io

import pytest

from staging.cli.progress import reporting
from staging.vocabulary.events import Event, FileDone, Moved, Note, Started

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
    events = [Started("verify checksum", None, 3), *[FileDone(name, 10) for name in "abc"]]
    assert "3 of 3 files" in shown(*events, terminal=False)
    bar = shown(*events, terminal=True)
    assert "3/3" in bar
    assert "100%|" in bar


def test_quiet_keeps_warnings() -> None:
    text = shown(*EVENTS, terminal=False, quiet=True)
    assert [line.partition(" ")[2] for line in text.splitlines()] == ["WARNING something"]
