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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, TextIO

from staging.cli import quantity
from staging.cli.streams import UNHEARD
from staging.vocabulary.events import Event, FileDone, Moved, Note, Reporter, Started
from staging.vocabulary.redaction import one_line

HEARTBEAT: Final = 10.0
"""Seconds between two lines of progress off a terminal."""


@contextmanager
def reporting(
    *, quiet: bool, verbose: bool, bar: bool, stream: TextIO | None = None
) -> Iterator[Reporter]:
    """A reporter for one command; what it started ends with the block.

    `bar` asks for a progress bar, which needs a terminal and tqdm; `quiet` leaves only warnings.
    """
    out = stream if stream is not None else sys.stderr
    if bar and not quiet and out.isatty() and (tqdm_bar := _bar(out, verbose)) is not None:
        with tqdm_bar as reporter:
            yield reporter
        return
    lines = _Lines(out, quiet=quiet, verbose=verbose)
    try:
        yield lines
    finally:
        lines.close()


def stamped(text: str, level: str = "INFO") -> str:
    """A line of a log: UTC time, level, text."""
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return f"{now} {level} {text}"


class _Lines:
    def __init__(self, out: TextIO, *, quiet: bool, verbose: bool) -> None:
        self._out = out
        self._quiet = quiet
        self._verbose = verbose
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._phase: Started | None = None
        self._done = self._files = 0
        self._since = 0.0
        self._unheard = False
        self._thread: threading.Thread | None = None

    def __call__(self, event: Event) -> None:
        with self._lock:
            if isinstance(event, Moved):
                self._done += event.count
            elif isinstance(event, FileDone):
                self._files += 1
                if self._verbose:
                    self._log(f"done {event.path} ({quantity.size(event.size)})")
            elif isinstance(event, Note):
                self._log(one_line(event.text), warning=event.warning)
            else:
                self._begin(event)

    def close(self) -> None:
        self._closed.set()
        if self._thread is not None:
            self._thread.join()
        with self._lock:
            if self._phase is not None:
                self._log(self._line())

    def _begin(self, phase: Started) -> None:
        if self._phase is not None:
            self._log(self._line())
        self._phase, self._done, self._files, self._since = phase, 0, 0, time.monotonic()
        files = (
            f"{phase.total_files} files" if phase.total_files is not None else "files as they come"
        )
        total = f", {quantity.size(phase.total_bytes)}" if phase.total_bytes is not None else ""
        self._log(f"{phase.phase}: {files}{total}")
        if self._thread is None and not self._quiet:
            self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
            self._thread.start()

    def _beat(self) -> None:
        while not self._closed.wait(HEARTBEAT):
            with self._lock:
                if self._phase is not None:
                    self._log(self._line())

    def _line(self) -> str:
        assert self._phase is not None  # noqa: S101 - callers looked
        seconds = max(time.monotonic() - self._since, 1e-3)
        rate = self._done / seconds
        total = self._phase.total_bytes
        if total is None and not self._done:
            if self._phase.total_files is None:
                return f"{self._phase.phase}: nothing has come so far"
            return f"{self._phase.phase}: {self._files} of {self._phase.total_files} files"
        text = f"{self._phase.phase}: {quantity.size(self._done)}"
        if total:
            text += f" of {quantity.size(total)} ({100 * self._done / total:.0f} %)"
        if self._files:
            text += f", {self._files} files"
        if self._done:
            text += f", {rate / 1e9:.2f} GB/s"
        if total and 0 < self._done < total:
            text += f", about {quantity.duration((total - self._done) / rate)} left"
        return text

    def _log(self, text: str, *, warning: bool = False) -> None:
        if self._unheard or (self._quiet and not warning):
            return
        try:
            self._out.write(stamped(text, "WARNING" if warning else "INFO") + "\n")
            self._out.flush()
        except UNHEARD:
            self._unheard = True


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
