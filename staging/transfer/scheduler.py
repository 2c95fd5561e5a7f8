"""A bounded set of worker threads that stop together: the only place that starts threads.

    with Scheduler(concurrency) as scheduler:
        for part in parts:
            scheduler.submit(lambda: send(part))     # blocks while enough work is queued
        scheduler.finish()                           # waits; raises the first error

Invariants: at most `concurrency` tasks run and as many wait; after the first error, or when the
`with` block is left by an exception, no further task starts; a task that watches
`scheduler.cancelled` ends soon. The error that came first is the one that is raised; work that was
called off without an error raises Cancelled and never passes for done.
Not guaranteed: that a task blocked in a system call ends. Leaving the block on an error waits
`GRACE` seconds for running tasks and then leaves them behind as daemon threads.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

GRACE: Final = 10.0
"""Seconds that running tasks get to end after an error or an interruption."""

_POLL: Final = 0.2  # seconds; bounds how long a signal waits for the main thread


class Cancelled(Exception):
    """The work this task belongs to was called off."""


class Cancellation:
    """A flag that many threads watch, and a sleep that ends when it is raised."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def __bool__(self) -> bool:
        return self._event.is_set()

    def set(self) -> None:
        """Call the work off."""
        self._event.set()

    def check(self) -> None:
        """Raise Cancelled when the work was called off."""
        if self._event.is_set():
            raise Cancelled

    def sleep(self, seconds: float) -> None:
        """Sleep, or raise Cancelled as soon as the work is called off."""
        if self._event.wait(seconds):
            raise Cancelled


class Scheduler:
    """Runs tasks on `concurrency` threads, at least one, until the first error."""

    def __init__(self, concurrency: int, *, name: str = "transfer") -> None:
        if concurrency < 1:
            raise ValueError(f"{concurrency} threads do no work")
        self.cancelled = Cancellation()
        self._tasks: queue.Queue[Callable[[], None] | None] = queue.Queue(concurrency)
        self._error: BaseException | None = None
        self._finished = False
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._work, name=f"{name}-{number}", daemon=True)
            for number in range(concurrency)
        ]

    def __enter__(self) -> Self:
        try:
            for thread in self._threads:
                thread.start()
        except RuntimeError:  # no more threads are to be had: those that run end by themselves
            self.cancelled.set()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None:
            self._give_up()
            return
        try:
            self.finish()
        except BaseException:
            self._give_up()
            raise

    def submit(self, task: Callable[[], None]) -> None:
        """Queue a task; blocks while the queue is full. Raises the first error of any task."""
        if self._finished:
            raise RuntimeError("a task submitted after finish would never run")
        while True:
            self.raise_error()
            try:
                self._tasks.put(task, timeout=_POLL)
            except queue.Full:
                continue
            return

    def drain(self) -> None:
        """Wait until all submitted tasks are done; more may follow. Raises the first error."""
        while True:
            self.raise_error()
            with self._tasks.all_tasks_done:
                if not self._tasks.unfinished_tasks:
                    return
                self._tasks.all_tasks_done.wait(_POLL)

    def finish(self) -> None:
        """Wait for all tasks. Raises the first error. No task can be submitted afterwards."""
        self._finished = True
        for _ in self._threads:
            self._put_last()
        while any(thread.is_alive() for thread in self._threads):
            self.raise_error()
            for thread in self._threads:
                thread.join(_POLL)
                if thread.is_alive():
                    break
        self.raise_error()

    def _put_last(self) -> None:
        while any(thread.is_alive() for thread in self._threads):
            self.raise_error()
            try:
                self._tasks.put(None, timeout=_POLL)
            except queue.Full:
                continue
            return

    def raise_error(self) -> None:
        """Raise the first error of any task, or Cancelled when the work was called off."""
        called_off = bool(self.cancelled)  # looked at first: an error is stored before it cancels
        if self._error is not None:
            raise self._error
        if called_off:
            raise Cancelled

    def _give_up(self) -> None:
        self.cancelled.set()
        deadline = time.monotonic() + GRACE
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _work(self) -> None:
        while not self.cancelled:
            try:
                task = self._tasks.get(timeout=_POLL)
            except queue.Empty:
                continue
            if task is None or self.cancelled:
                return
            try:
                task()
            except BaseException as error:
                self._fail(error)
                return
            self._tasks.task_done()

    def _fail(self, error: BaseException) -> None:
        with self._lock:
            # A task that was told to stop and does so has not failed.
            told_to_stop = isinstance(error, Cancelled) and bool(self.cancelled)
            if self._error is None and not told_to_stop:
                self._error = error
        self.cancelled.set()
