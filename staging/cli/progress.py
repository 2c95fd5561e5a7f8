"""Progress for people: one bar on a terminal, otherwise lines with time and level, on stderr.

Off a terminal a heartbeat comes every ten seconds, whether bytes moved or not: silence would look the
same as a transfer that hangs.

A reporter does not raise: when nobody can be told any more, a pipe that was closed or a terminal that has
gone, it falls silent for good and the work goes on.
"""

from __future__ import annotations

import datetime
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, Literal, Protocol, TextIO

from staging.cli import quantity
from staging.cli.streams import UNHEARD
from staging.cli.traffic import Traffic
from staging.vocabulary.events import Event, FileDone, Moved, Note, Reporter, Started, Waiting
from staging.vocabulary.redaction import one_line

Level = Literal["INFO", "WARNING", "ERROR"]

HEARTBEAT: Final = 10.0
"""Seconds between two lines of progress off a terminal."""

_DONE: Final = {"download": "verified", "copy": "copied"}
"""What may be said of a phase's bytes when they are done; those of other phases were read, no more."""

_MARKS: Final = 4  # heartbeats over which a rate is taken: the last half minute
_PATIENCE: Final = 1.0  # seconds for the heartbeat to end: its line may go to a pipe nobody reads


class Emit(Protocol):
    """Shows one line of a log: as text, or as the fields that the text was made of. Never raises."""

    def __call__(self, level: Level, event: str, text: str, **fields: object) -> None:
        """Show a line. `event` names its kind for programs, `text` is for people."""
        ...


@contextmanager
def reporting(
    *,
    quiet: bool,
    verbose: bool,
    bar: bool,
    stream: TextIO | None = None,
    emit: Emit | None = None,
    traffic: Traffic | None = None,
) -> Iterator[Reporter]:
    """A reporter for one command; what it started ends with the block.

    `bar` asks for a progress bar, which needs a terminal and tqdm; `quiet` leaves only warnings. Without
    a bar lines go through `emit`, or else to `stream`; with `traffic` they tell of requests as well.
    """
    out = stream if stream is not None else sys.stderr
    if bar and not quiet and out.isatty() and (tqdm_bar := _bar(out, verbose)) is not None:
        with tqdm_bar as reporter:
            yield reporter
        return
    lines = _Lines(emit or TextLines(out), quiet=quiet, verbose=verbose, traffic=traffic)
    try:
        yield lines
    finally:
        lines.close()


def stamped(text: str, level: Level = "INFO") -> str:
    """A line of a log: UTC time, level, text."""
    return f"{utc_now()} {level} {text}"


def done(phase: str) -> str:
    """What the bytes are that a phase of a download is done with, in a word."""
    return _DONE.get(phase, "read")


def utc_now() -> str:
    """The time as logs have it, to the second."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class LineWriter:
    """Writes whole lines to a stream, one at a time; falls silent for good when that fails."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._lock = threading.Lock()
        self._unheard = False

    def write(self, line: str) -> None:
        """Write a line and its end, if anybody can be told."""
        with self._lock:
            if self._unheard:
                return
            try:
                self._out.write(line + "\n")
                self._out.flush()
            except UNHEARD:
                self._unheard = True


class TextLines:
    """Lines with time and level, for people."""

    def __init__(self, out: TextIO) -> None:
        self._writer = LineWriter(out)

    def __call__(self, level: Level, event: str, text: str, **fields: object) -> None:
        """Write the text; its fields are in it."""
        self._writer.write(stamped(text, level))


class _Phase:
    """What one phase has come to, and how fast."""

    def __init__(self, started: Started, now: float) -> None:
        self.started = started
        self.done = self.files = 0
        self.since = now
        self._marks: deque[tuple[float, int]] = deque([(now, 0)], maxlen=_MARKS)

    def rate(self, now: float) -> float:
        """Bytes per second over the last few heartbeats."""
        then, count = self._marks[0]
        return (self.done - count) / max(now - then, 1e-3)

    def mark(self, now: float) -> None:
        """Remember how far it has come."""
        self._marks.append((now, self.done))

    def average(self, now: float) -> float:
        """Bytes per second since the phase began."""
        return self.done / max(now - self.since, 1e-3)


class _Lines:
    """Counts events, which is quick, and tells of them every `HEARTBEAT` seconds.

    The lock is for counting alone: nobody who does work waits while a line is written. With `traffic` a
    download is told of: the bytes that it fetches count when they are verified.
    """

    def __init__(
        self, emit: Emit, *, quiet: bool, verbose: bool, traffic: Traffic | None = None
    ) -> None:
        self._emit = emit
        self._quiet = quiet
        self._verbose = verbose
        self._traffic = traffic
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._phase: _Phase | None = None
        self._waiting: Waiting | None = None
        self._thread: threading.Thread | None = None

    def __call__(self, event: Event) -> None:
        if isinstance(event, Moved):
            with self._lock:
                if self._phase is not None:
                    self._phase.done += event.count
        elif isinstance(event, FileDone):
            with self._lock:
                if self._phase is not None:
                    self._phase.files += 1
            if self._verbose:
                text = f"done {event.path} ({quantity.size(event.size)})"
                self._tell("INFO", "file", text, path=event.path, size=event.size)
        elif isinstance(event, Note):
            self._tell("WARNING" if event.warning else "INFO", "note", one_line(event.text))
        elif isinstance(event, Waiting):
            with self._lock:
                first, self._waiting = self._waiting is None, event
            if first:
                self._tell_waiting(event)
            self._start_beating()
        else:
            self._begin(event)

    def close(self) -> None:
        self._closed.set()
        if self._thread is not None:
            self._thread.join(_PATIENCE)
        self._tell_phase(last=True)

    def _begin(self, started: Started) -> None:
        now = time.monotonic()
        with self._lock:
            before, self._phase = self._phase, _Phase(started, now)
            self._waiting = None
        if before is not None and (before.done or before.files):
            self._tell_progress(before, now, last=True)
        files, size = started.total_files, started.total_bytes
        text = f"{started.phase}: {'files as they come' if files is None else f'{files} files'}"
        if size is not None:
            text += f", {quantity.size(size)}"
        elif files is None and self._traffic is not None:
            text = f"{started.phase}: asking the store"
        self._tell("INFO", "phase", text, phase=started.phase, total_files=files, total_bytes=size)
        self._start_beating()

    def _start_beating(self) -> None:
        with self._lock:
            if self._thread is not None or self._quiet or self._closed.is_set():
                return
            self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
            self._thread.start()

    def _beat(self) -> None:
        while not self._closed.wait(HEARTBEAT):
            self._tell_phase(last=False)

    def _tell_phase(self, *, last: bool) -> None:
        with self._lock:
            phase, waiting = self._phase, self._waiting
        if waiting is not None and not last:
            self._tell_waiting(waiting)
        elif phase is not None:
            self._tell_progress(phase, time.monotonic(), last=last)

    def _tell_waiting(self, waiting: Waiting) -> None:
        text = f"waiting for {one_line(waiting.holder)}"
        if waiting.total:
            text += f", which has {quantity.size(waiting.done)} of {quantity.size(waiting.total)}"
        if waiting.seconds >= 1:
            text += f"; {quantity.duration(waiting.seconds)} so far"
        self._tell(
            "INFO",
            "waiting",
            text,
            holder=one_line(waiting.holder),
            done_bytes=waiting.done,
            total_bytes=waiting.total,
            seconds=round(waiting.seconds, 1),
        )

    def _tell_progress(self, phase: _Phase, now: float, *, last: bool) -> None:
        with self._lock:
            count, files = phase.done, phase.files
            rate = phase.average(now) if last else phase.rate(now)
            phase.mark(now)
        started = phase.started
        is_verified = self._traffic is not None and done(started.phase) == "verified"
        total, total_files = started.total_bytes, started.total_files
        left = (total - count) / rate if total and 0 < count < total and rate > 0 else None
        fields: dict[str, object] = {
            "phase": started.phase,
            "verified_bytes" if is_verified else "done_bytes": count,
            "total_bytes": total,
            "files": files,
            "total_files": total_files,
            "bytes_per_second": round(rate),
            "eta_seconds": None if left is None else round(left),
        }
        if total is None and not count:
            if total_files is not None:
                words = [f"{files} of {total_files} files"]
            else:
                words = [] if self._traffic is not None else ["nothing has come so far"]
        else:
            words = [quantity.size(count)]
            if total:
                words[0] += f" of {quantity.size(total)} ({100 * count / total:.0f} %)"
            if self._traffic is not None:
                words[0] += f" {done(started.phase)}"
            if files:
                words.append(f"{files} files")
            if count:
                words.append(f"{rate / 1e9:.2f} GB/s")
            if left is not None:
                words.append(f"about {quantity.duration(left)} left")
        if self._traffic is not None:
            sums = self._traffic.sums()
            if sums.slowest is not None and not last:
                words.append(f"slowest stream {quantity.size(sums.slowest)}/s")
            words.append(f"{sums.requests} request{'' if sums.requests == 1 else 's'}")
            words.append(quantity.retries(sums.retries))
            fields["slowest_bytes_per_second"] = (
                None if sums.slowest is None else round(sums.slowest)
            )
            fields |= {"requests": sums.requests, "retries": sums.retries}
        self._tell("INFO", "progress", f"{started.phase}: {', '.join(words)}", **fields)

    def _tell(self, level: Level, event: str, text: str, **fields: object) -> None:
        if level != "INFO" or not self._quiet:
            self._emit(level, event, text, **fields)


def _bar(out: TextIO, verbose: bool) -> _Bar | None:
    try:
        from tqdm import tqdm
    except ImportError:  # an optional dependency: lines do without it
        return None
    return _Bar(
        lambda phase: tqdm(
            desc=phase.phase,
            total=phase.total_files if _counts_files(phase) else phase.total_bytes,
            unit=" files" if _counts_files(phase) else "B",
            unit_scale=not _counts_files(phase),
            file=out,
            dynamic_ncols=True,
            mininterval=0.2,
        ),
        out,
        verbose,
    )


def _counts_files(phase: Started) -> bool:
    """True for a phase that moves no bytes, such as one that asks the store about each file."""
    return phase.total_bytes is None and phase.total_files is not None


class _Bar:
    """One bar for all bytes of a phase, or its files; notes are written above it."""

    def __init__(self, make: Callable[[Started], Any], out: TextIO, verbose: bool) -> None:
        self._make = make
        self._out = out
        self._verbose = verbose
        self._lock = threading.Lock()
        self._tqdm: Any = None
        self._by_files = False
        self._unheard = False

    def __enter__(self) -> Reporter:
        return self._report

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._attempt(self._close)

    def _report(self, event: Event) -> None:
        with self._lock:
            self._attempt(lambda: self._show(event))

    def _attempt(self, action: Callable[[], None]) -> None:
        if self._unheard:
            return
        try:
            action()
        except UNHEARD:
            self._unheard = True
            if self._tqdm is not None:
                self._tqdm.disable = True  # nor may it try again when it is collected

    def _show(self, event: Event) -> None:
        if isinstance(event, Started):
            self._close()
            self._by_files = _counts_files(event)
            self._tqdm = self._make(event)
        elif isinstance(event, Moved):
            if self._tqdm is not None and not self._by_files:
                self._tqdm.update(event.count)
        elif isinstance(event, FileDone):
            if self._tqdm is not None and self._by_files:
                self._tqdm.update(1)
            if self._verbose:
                self._write(f"done {event.path} ({quantity.size(event.size)})")
        elif isinstance(event, Waiting):
            about = ""
            if event.total:
                about = f": {quantity.size(event.done)} of {quantity.size(event.total)}"
            self._write(f"waiting for {one_line(event.holder)}{about}")
        else:
            self._write(("warning: " if event.warning else "") + one_line(event.text))

    def _write(self, text: str) -> None:
        if self._tqdm is not None:
            self._tqdm.write(text, file=self._out)
        else:
            self._out.write(text + "\n")

    def _close(self) -> None:
        if self._tqdm is not None:
            self._tqdm.close()
            self._tqdm = None
