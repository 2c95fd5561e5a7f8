"""What the program says on stderr: lines for people, or one JSON object per line.

The last lines of a run that failed, as text:

    ERROR exit=12 kms-decrypt-denied store: what failed and where
    HINT what to do next
    NOTE a further finding, one line each

As JSON they are one object. Nothing here raises, and nobody who does work waits for a line.
"""

from __future__ import annotations

import json
import sys
import threading
from typing import Final, Literal, TextIO

from staging.cli import progress, quantity
from staging.cli.program import notes
from staging.cli.progress import Level, LineWriter, stamped, utc_now
from staging.vocabulary.errors import StagingError
from staging.vocabulary.events import Event, Moved, Reporter, Started
from staging.vocabulary.redaction import one_line

Format = Literal["text", "json"]
FORMATS: Final = ("text", "json")


class Log:
    """Writes lines. Safe to use from several threads."""

    def __init__(self, form: Format, out: TextIO | None = None) -> None:
        self.form = form
        self.quiet = False
        self._writer = LineWriter(out if out is not None else sys.stderr)

    def emit(self, level: Level, event: str, text: str, **fields: object) -> None:
        """Write one line: an `Emit` for reporters."""
        if self.form == "json":
            line: dict[str, object] = {"time": utc_now(), "level": level, "event": event}
            self._writer.write(json.dumps({**line, "message": text, **fields}, default=str))
        else:
            self._writer.write(stamped(one_line(text), level))

    def info(self, event: str, text: str, **fields: object) -> None:
        """Write a line, unless only warnings are wanted."""
        if not self.quiet:
            self.emit("INFO", event, text, **fields)

    def warning(self, text: str) -> None:
        """Write a line that an operator should look at."""
        self.emit("WARNING", "note", text)

    def trace(self, lines: str) -> None:
        """Show where a defect was met."""
        if self.form == "json":
            self.emit("ERROR", "traceback", lines)
        else:
            self._writer.write(lines.rstrip("\n"))

    def failed(self, error: StagingError) -> None:
        """Write the last lines of a run that failed."""
        for line in self.failure(error):
            self._writer.write(line)

    def failure(self, error: StagingError) -> list[str]:
        """The last lines of a run that failed, without writing them."""
        if self.form == "text":
            return [*cause(error), *(f"NOTE {note}" for note in notes(error))]
        document = {
            "time": utc_now(),
            "level": "ERROR",
            "event": "failed",
            "message": one_line(error.message),
            "exit": error.code,
            "reference": error.reference,
            "side": error.side,
            "hint": None if error.hint is None else one_line(error.hint),
            "notes": notes(error),
        }
        return [json.dumps(document)]


def cause(error: StagingError) -> list[str]:
    """The line that says why a run failed, and the one that says what to do."""
    side = f"{error.side}: " if error.side else ""
    lines = [f"ERROR exit={error.code} {error.reference} {side}{one_line(error.message)}"]
    if error.hint:
        lines.append(f"HINT {one_line(error.hint)}")
    return lines


class Course:
    """How far a run came: a reporter that looks at what it hands on. Safe to use from several threads."""

    def __init__(self) -> None:
        self.report: Reporter | None = None
        self._lock = threading.Lock()
        self._phase: Started | None = None
        self._done = 0

    def __call__(self, event: Event) -> None:
        """Look at an event and hand it on."""
        with self._lock:
            if isinstance(event, Moved):
                self._done += event.count
            elif isinstance(event, Started):
                self._phase, self._done = event, 0
        if self.report is not None:
            self.report(event)

    def text(self) -> str:
        """How far the run came, in words."""
        phase, done = self._phase, self._done  # no lock: this is asked for when others may hang
        if phase is None or phase.total_bytes is None:
            return "nothing was downloaded"
        return (
            f"{phase.phase}: {quantity.size(done)} of {quantity.size(phase.total_bytes)}"
            f" {progress.done(phase.phase)}"
        )
