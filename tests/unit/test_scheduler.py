"""The scheduler: every task runs or an error is raised; then nothing starts, nothing leaks (I1, I11)."""

# ruff: noqa: PT012 - a whole `with Scheduler` block is what must raise

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from staging.transfer import scheduler as module
from staging.transfer.scheduler import Cancellation, Cancelled, Scheduler

PATIENCE = 30.0
"""Seconds after which a wait has failed; no passing test waits that long."""


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    left = [thread for thread in threading.enumerate() if thread not in before]
    for thread in left:
        thread.join(PATIENCE)
    assert not any(thread.is_alive() for thread in left)


def wait(event: threading.Event) -> None:
    assert event.wait(PATIENCE)


def until_cancelled(scheduler: Scheduler) -> None:
    """What a long task does: it watches the cancellation."""
    scheduler.cancelled.sleep(PATIENCE)
    raise AssertionError("nobody called this off")


class Boom(Exception):
    pass


def boom() -> None:
    raise Boom


@pytest.mark.parametrize("concurrency", [1, 2, 7])
def test_every_task_runs_once(concurrency: int) -> None:
    done: list[int] = []
    with Scheduler(concurrency) as scheduler:
        for number in range(200):
            scheduler.submit(partial(done.append, number))
    assert sorted(done) == list(range(200))


def test_no_task_at_all() -> None:
    with Scheduler(3):
        pass
    with Scheduler(3) as scheduler:
        scheduler.drain()
        scheduler.finish()


def test_tasks_run_side_by_side() -> None:
    together = threading.Barrier(4, timeout=PATIENCE)

    def meet() -> None:
        together.wait()

    with Scheduler(4) as scheduler:
        for _ in range(4):
            scheduler.submit(meet)
    assert not together.broken


def test_no_more_tasks_run_at_once_than_there_are_threads() -> None:
    lock, running, most = threading.Lock(), 0, 0
    together = threading.Barrier(3, timeout=PATIENCE)

    def task() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        together.wait()
        with lock:
            running -= 1

    with Scheduler(3) as scheduler:
        for _ in range(30):
            scheduler.submit(task)
    assert most == 3


def test_submit_blocks_while_as_many_wait_as_run() -> None:
    gate, started = threading.Event(), threading.Semaphore(0)
    submitted = threading.Semaphore(0)

    def task() -> None:
        started.release()
        wait(gate)

    with Scheduler(2) as scheduler:

        def submit_all() -> None:
            for _ in range(10):
                scheduler.submit(task)
                submitted.release()

        submitter = threading.Thread(target=submit_all)
        submitter.start()
        for _ in range(2):
            assert started.acquire(timeout=PATIENCE)
        for _ in range(4):  # two run and two wait; the fifth has no place
            assert submitted.acquire(timeout=PATIENCE)
        assert scheduler._tasks.full()
        assert not submitted.acquire(blocking=False)
        gate.set()
        submitter.join(PATIENCE)
        assert not submitter.is_alive()


@pytest.mark.parametrize("concurrency", [1, 3])
def test_the_first_error_is_raised_and_no_further_task_starts(concurrency: int) -> None:
    started: list[str] = []
    ready = threading.Barrier(concurrency, timeout=PATIENCE)

    def fails() -> None:
        ready.wait()
        raise Boom("first")

    def runs() -> None:
        ready.wait()
        until_cancelled(scheduler)

    with pytest.raises(Boom, match="first"), Scheduler(concurrency) as scheduler:
        scheduler.submit(fails)
        for _ in range(concurrency - 1):
            scheduler.submit(runs)
        while True:  # fills the queue, then blocks, then is told
            scheduler.submit(lambda: started.append("late"))
    assert not started


def test_queued_tasks_do_not_start_after_an_error() -> None:
    started: list[int] = []
    gate = threading.Event()

    def fails() -> None:
        wait(gate)
        raise Boom

    with pytest.raises(Boom), Scheduler(1) as scheduler:
        scheduler.submit(fails)
        scheduler.submit(lambda: started.append(1))
        gate.set()
        scheduler.finish()
    assert not started


def test_a_later_error_does_not_replace_the_first() -> None:
    def second() -> None:
        try:
            until_cancelled(scheduler)
        except Cancelled:
            raise ValueError("on the way out") from None

    with pytest.raises(Boom), Scheduler(2) as scheduler:
        scheduler.submit(second)
        scheduler.submit(boom)
        scheduler.finish()


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, MemoryError, StopIteration])
def test_errors_of_every_kind_are_raised(kind: type[BaseException]) -> None:
    def task() -> None:
        raise kind

    with pytest.raises(kind), Scheduler(2) as scheduler:
        scheduler.submit(task)


@pytest.mark.parametrize("how", ["submit", "drain", "finish", "leave", "raise_error"])
def test_wherever_the_caller_is_it_gets_the_error(how: str) -> None:
    def act(scheduler: Scheduler) -> None:
        if how == "submit":
            while True:
                scheduler.submit(lambda: None)
        elif how == "drain":
            scheduler.drain()
        elif how == "finish":
            scheduler.finish()
        elif how == "raise_error":
            with pytest.raises(Cancelled):
                scheduler.cancelled.sleep(PATIENCE)
            scheduler.raise_error()

    with pytest.raises(Boom), Scheduler(2) as scheduler:
        scheduler.submit(boom)
        act(scheduler)


def test_leaving_the_block_waits_for_running_tasks_after_an_error() -> None:
    ended = threading.Event()

    def long() -> None:
        try:
            until_cancelled(scheduler)
        finally:
            threading.Event().wait(0.5)  # time for a caller that does not wait to be found out
            ended.set()

    with pytest.raises(Boom), Scheduler(2) as scheduler:
        scheduler.submit(long)
        scheduler.submit(boom)
        # no finish(): the block's end waits, raises, and leaves no task behind
    assert ended.is_set()


def test_an_error_in_the_block_calls_everything_off() -> None:
    running, ended = threading.Event(), threading.Event()
    started: list[int] = []

    def long() -> None:
        running.set()
        try:
            until_cancelled(scheduler)
        finally:
            ended.set()

    with pytest.raises(Boom), Scheduler(1) as scheduler:
        scheduler.submit(long)
        scheduler.submit(lambda: started.append(1))
        wait(running)
        raise Boom
    assert ended.is_set()
    assert not started


def test_a_task_that_does_not_end_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GRACE", 0.1)
    stuck, gate = threading.Event(), threading.Event()

    def blocked() -> None:  # in a system call, say: it watches nothing
        stuck.set()
        wait(gate)

    try:
        with pytest.raises(Boom), Scheduler(1, name="stuck") as scheduler:
            scheduler.submit(blocked)
            wait(stuck)
            raise Boom
        (thread,) = (thread for thread in threading.enumerate() if thread.name == "stuck-0")
        assert thread.is_alive()
        assert thread.daemon
    finally:
        gate.set()


def test_drain_waits_for_all_and_more_may_follow() -> None:
    done: list[int] = []
    with Scheduler(3) as scheduler:
        for round_ in range(3):
            for number in range(20):
                scheduler.submit(partial(done.append, number))
            scheduler.drain()
            assert len(done) == 20 * (round_ + 1)


def test_a_task_after_finish_is_refused() -> None:
    with Scheduler(1) as scheduler:
        scheduler.finish()
        with pytest.raises(RuntimeError, match="would never run"):
            scheduler.submit(lambda: None)


@pytest.mark.parametrize("act", [Scheduler.drain, Scheduler.finish, lambda scheduler: None])
def test_work_that_was_called_off_does_not_pass_for_done(act: Callable[[Scheduler], None]) -> None:
    done: list[int] = []
    running, gate = threading.Event(), threading.Event()

    def first() -> None:
        running.set()
        wait(gate)

    with pytest.raises(Cancelled), Scheduler(1) as scheduler:
        scheduler.submit(first)
        scheduler.submit(lambda: done.append(1))
        wait(running)
        scheduler.cancelled.set()
        gate.set()
        act(scheduler)
    assert not done


@pytest.mark.parametrize("act", [Scheduler.drain, Scheduler.finish, lambda scheduler: None])
def test_a_task_that_gives_up_by_itself_does_not_pass_for_done(
    act: Callable[[Scheduler], None],
) -> None:
    other = Cancellation()
    other.set()
    with pytest.raises(Cancelled), Scheduler(1) as scheduler:
        scheduler.submit(other.check)
        act(scheduler)


@pytest.mark.parametrize("concurrency", [0, -1])
def test_no_threads_would_do_no_work(concurrency: int) -> None:
    with pytest.raises(ValueError, match="do no work"):
        Scheduler(concurrency)


def test_threads_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    real = threading.Thread.start
    started: list[threading.Thread] = []

    def start(self: threading.Thread) -> None:
        if len(started) == 2:
            raise RuntimeError("can't start new thread")
        started.append(self)
        real(self)

    scheduler = Scheduler(5)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        with pytest.raises(RuntimeError, match="can't start"):
            scheduler.__enter__()
    for thread in started:
        thread.join(PATIENCE)
        assert not thread.is_alive()


def test_cancellation() -> None:
    cancelled = Cancellation()
    assert not cancelled
    cancelled.check()
    cancelled.sleep(0)
    cancelled.set()
    assert cancelled
    with pytest.raises(Cancelled):
        cancelled.check()
    with pytest.raises(Cancelled):
        cancelled.sleep(PATIENCE)


def test_cancellation_ends_a_sleep() -> None:
    cancelled, asleep = Cancellation(), threading.Event()
    woken: list[str] = []

    def sleeper() -> None:
        asleep.set()
        try:
            cancelled.sleep(PATIENCE)
        except Cancelled:
            woken.append("woken")

    thread = threading.Thread(target=sleeper)
    thread.start()
    wait(asleep)
    cancelled.set()
    thread.join(PATIENCE)
    assert woken == ["woken"]


def test_a_signal_while_waiting_does_not_lose_sight_of_running_tasks() -> None:
    """On Python 3.11 and 3.12 such a signal makes `Thread.join` take a running thread for ended."""
    done = threading.Event()

    def interrupted(number: int, frame: object) -> None:
        raise Boom

    def work(scheduler: Scheduler) -> None:
        os.kill(os.getpid(), signal.SIGUSR1)
        while not scheduler.cancelled:  # set when the waiting thread was interrupted and gives up
            time.sleep(0.01)
        time.sleep(0.1)
        done.set()

    before = signal.signal(signal.SIGUSR1, interrupted)
    try:
        with pytest.raises(Boom), Scheduler(1) as scheduler:
            scheduler.submit(partial(work, scheduler))
            scheduler.finish()
        assert done.is_set()
    finally:
        signal.signal(signal.SIGUSR1, before)
