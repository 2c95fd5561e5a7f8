"""A bounded set of worker threads that stop together: the only place that starts threads.

    with Scheduler(concurrency) as scheduler:
        for part in parts:
            scheduler.submit(partial(send, part))    # blocks while enough work is queued
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
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

GRACE: Final = 5.0
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
        self._concurrency = concurrency
        self._name = name
        # Threads are counted and not joined: on Python 3.11 and 3.12 a signal handler that raises during
        # `Thread.join` makes a running thread look ended, and its work would go on behind our back.
        self._running = 0
        self._changed = threading.Condition()

    def __enter__(self) -> Self:
        for number in range(self._concurrency):
            thread = threading.Thread(target=self._run, name=f"{self._name}-{number}", daemon=True)
            with self._changed:
                self._running += 1
            try:
                thread.start()
            except RuntimeError:  # no more threads are to be had: those that run end by themselves
                self._ended()
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
        self.wait(self.raise_error)

    def wait(self, watch: Callable[[], None]) -> None:
        """Wait like `drain`, calling `watch` all the while; it may raise."""
        while True:
            watch()
            self.raise_error()
            with self._tasks.all_tasks_done:
                if not self._tasks.unfinished_tasks:
                    return
                self._tasks.all_tasks_done.wait(_POLL)

    def finish(self) -> None:
        """Wait for all tasks. Raises the first error. No task can be submitted afterwards."""
        self._finished = True
        for _ in range(self._concurrency):
            self._put_last()
        with self._changed:
            while self._running:
                self.raise_error()
                self._changed.wait(_POLL)
        self.raise_error()

    def _put_last(self) -> None:
        while self._running:
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
        with self._changed:
            self._changed.wait_for(lambda: not self._running, GRACE)

    def _run(self) -> None:
        try:
            self._work()
        finally:
            self._ended()

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

    def _ended(self) -> None:
        with self._changed:
            self._running -= 1
            self._changed.notify_all()

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            # A task that was told to stop and does so has not failed.
            told_to_stop = isinstance(error, Cancelled) and bool(self.cancelled)
            if self._error is None and not told_to_stop:
                self._error = error
        self.cancelled.set()
