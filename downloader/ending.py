"""How the program ends when it failed: last lines, termination message, the document on stdout.

Two threads may want to say it: the main thread, and after a signal the one that does not wait for it any
longer (`downloader.halt`). Whoever comes first does, and the other one says nothing.
"""

from __future__ import annotations

import json
import os
import select
import threading
from contextlib import suppress
from typing import Final

from downloader import termination
from downloader.log import Log, cause
from staging.cli.program import JSON_SCHEMA, Ending, describe
from staging.vocabulary.errors import StagingError

_AT_ONCE: Final = 4096
"""Bytes that a pipe takes as a whole when it takes any: PIPE_BUF."""


class PodEnding(Ending):
    """Tells of failures in a pod's way."""

    def __init__(self, log: Log, *, as_json: bool, termination_log: str | None) -> None:
        super().__init__(as_json=as_json)
        self.termination_log = termination_log
        self._log = log
        self._lock = threading.Lock()
        self._code: int | None = None

    def tell(self, error: StagingError) -> None:
        """Tell of the error that ends the program, unless that has been done."""
        if self._first(error) is None:
            self._leave_message(error)
            super().tell(error)

    def say(self, error: StagingError) -> None:
        """Tell people, on stderr."""
        self._log.failed(error)

    def trace(self, lines: str) -> None:
        """Show where a defect was met."""
        self._log.trace(lines)

    def tell_without_waiting(self, error: StagingError) -> int:
        """The same for when anything may hang: nothing is written that would not be taken at once.

        Returns the exit code of what was told, now or before.
        """
        before = self._first(error)
        if before is not None:
            return before
        self._leave_message(error)
        _offer(2, "\n".join(self._log.failure(error)))
        if self.as_json:
            document = {"schema": JSON_SCHEMA, **error.document, "error": describe(error)}
            _offer(1, json.dumps(document, ensure_ascii=False))
        return error.code

    def _first(self, error: StagingError) -> int | None:
        """The code of the error that was told before; None when this is the first."""
        with self._lock:
            before = self._code
            if before is None:
                self._code = error.code
            return before

    def _leave_message(self, error: StagingError) -> None:
        if self.termination_log is not None:
            termination.write(self.termination_log, "\n".join(cause(error)))


def _offer(descriptor: int, text: str) -> None:
    """Write as much of the text as a descriptor takes at once."""
    poll = select.poll()
    with suppress(OSError):
        poll.register(descriptor, select.POLLOUT)
        if any(flags & select.POLLOUT for _, flags in poll.poll(0)):
            os.write(descriptor, text.encode("utf-8", "backslashreplace")[: _AT_ONCE - 1] + b"\n")
