"""The end after a signal: in a few seconds, whatever the threads of the program do.

    with Halt(stop, farewell) as halt:
        code = run(...)                 # a signal unwinds the main thread; see staging.cli.program

A signal wakes a thread of its own, through the descriptor that Python writes the signal's number to. It is
there even while the main thread sits in a system call that no signal ends, such as an fsync on a volume that
has gone. That thread calls the work off at once, so that no request is waited for; then it gives the main
thread `GRACE` seconds to unwind, which closes files and says the last lines. When they are over it says the
last lines itself and ends the process. What was verified is on disk, or on its way there: a file is never
written to before its bytes are verified, and the next run looks again.

Not guaranteed: that the kernel lets go of a process whose disk does not answer.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Final, Self

from staging.cli.streams import UNHEARD

GRACE: Final = 4.0
"""Seconds from a signal until the process ends in any case."""

_ENDING: Final = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM})


class Halt:
    """Watches for the first signal, until the block is left.

    `stop` calls the work off and returns at once. `farewell` gets the signal's number when the main thread
    did not get around to its last lines; it says them without waiting for anybody, and returns the exit code.
    """

    def __init__(
        self,
        stop: Callable[[], None],
        farewell: Callable[[int], int],
        *,
        grace: float = GRACE,
        leave: Callable[[int], None] = os._exit,
    ) -> None:
        self.number: int | None = None
        self._stop = stop
        self._farewell = farewell
        self._grace = grace
        self._leave = leave
        self._ends = (-1, -1)
        self._before = -1
        self._thread = threading.Thread(target=self._watch, name="halt", daemon=True)

    def __enter__(self) -> Self:
        self._ends = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._before = signal.set_wakeup_fd(self._ends[1], warn_on_full_buffer=False)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        signal.set_wakeup_fd(self._before)
        os.close(self._ends[1])
        self._thread.join()
        os.close(self._ends[0])

    def leave_if_told(self, code: int) -> None:
        """End the process with `code` after a signal, without waiting for threads that were left behind."""
        if self.number is not None:
            for stream in (sys.stdout, sys.stderr):
                with suppress(*UNHEARD):
                    stream.flush()
            self._leave(code)

    def _watch(self) -> None:
        self.number = self._next(None)
        if self.number is None:
            return
        self._stop()
        again = self._next(self._grace)
        if again is not None:
            self._leave(128 + again)
        elif not self._is_over():
            self._leave(self._farewell(self.number))

    def _next(self, seconds: float | None) -> int | None:
        """The next signal that ends the program; None when there is none in time, or the block was left."""
        poll = select.poll()
        poll.register(self._ends[0], select.POLLIN)
        while poll.poll(None if seconds is None else seconds * 1000):
            told = os.read(self._ends[0], 1)
            if not told:
                return None
            if told[0] in _ENDING:
                return told[0]
        return None

    def _is_over(self) -> bool:
        poll = select.poll()
        poll.register(self._ends[0], select.POLLIN)
        return any(flags & select.POLLHUP for _, flags in poll.poll(0))
