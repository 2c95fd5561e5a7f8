"""The memory budget: never exceeded, whatever the threads do, and waiters wake (I11)."""

from __future__ import annotations

import contextlib
import random
import threading
from functools import partial

import pytest

from staging.transfer.budget import Budget
from staging.transfer.scheduler import Cancellation, Cancelled, Scheduler


class Ledger:
    """What is taken at the moment and at most, as the takers see it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.taken = 0
        self.peak = 0

    def change(self, count: int) -> None:
        with self._lock:
            self.taken += count
            self.peak = max(self.peak, self.taken)


class Asker(Cancellation):
    """A thread that asks for a buffer, and the cancellation it looks at before every decision."""

    def __init__(self, budget: Budget, size: int) -> None:
        super().__init__()
        self.result: bytearray | Cancelled | None = None
        self._looks = threading.Semaphore(0)
        self._thread = threading.Thread(target=self._ask, args=(budget, size), daemon=True)
        self._thread.start()

    def check(self) -> None:
        self._looks.release()
        super().check()

    def assert_waits(self) -> None:
        """Two more looks: after the first of them it was not granted."""
        while self._looks.acquire(blocking=False):
            pass
        for _ in range(2):
            assert self._looks.acquire(timeout=30), "granted, or stuck"

    def outcome(self) -> bytearray | Cancelled | None:
        self._thread.join(30)
        return self.result

    def _ask(self, budget: Budget, size: int) -> None:
        try:
            self.result = budget.acquire(size, self)
        except Cancelled as error:
            self.result = error


@pytest.mark.parametrize("seed", range(3))
def test_threads_never_hold_more_than_the_budget(seed: int) -> None:
    total, sizes = 1000, (1, 10, 200, 333, 500, 1000)
    budget, ledger = Budget(total), Ledger()
    rng = random.Random(seed)
    orders = [rng.choice(sizes) for _ in range(400)]

    with Scheduler(8) as scheduler:

        def take(size: int) -> None:
            buffer = budget.acquire(size, scheduler.cancelled)
            ledger.change(size)
            assert len(buffer) == size
            buffer[:] = bytes([size % 251]) * size
            assert buffer.count(size % 251) == size  # nobody else writes to it
            ledger.change(-size)
            budget.release(buffer)

        for size in orders:
            scheduler.submit(partial(take, size))
    assert ledger.taken == 0
    assert max(sizes) <= ledger.peak <= total
    assert len(budget.acquire(total, Cancellation())) == total


def test_a_buffer_waits_until_there_is_room() -> None:
    budget, cancelled = Budget(100), Cancellation()
    first, second = budget.acquire(60, cancelled), budget.acquire(40, cancelled)
    asker = Asker(budget, 50)
    asker.assert_waits()
    budget.release(second)  # 40 are free: not enough
    asker.assert_waits()
    budget.release(first)
    assert asker.outcome() == bytearray(50)


def test_one_buffer_larger_than_the_budget_is_granted_alone() -> None:
    budget = Budget(100)
    small = budget.acquire(1, Cancellation())
    asker = Asker(budget, 250)
    asker.assert_waits()
    budget.release(small)
    large = asker.outcome()
    assert large == bytearray(250)
    beside = Asker(budget, 1)
    beside.assert_waits()
    budget.release(large)
    assert beside.outcome() == bytearray(1)


@pytest.mark.parametrize("size", [10, 100, 1000])
def test_calling_off_wakes_whoever_waits(size: int) -> None:
    budget = Budget(100)
    budget.acquire(95, Cancellation())
    askers = [Asker(budget, size) for _ in range(3)]
    for asker in askers:
        asker.assert_waits()
        asker.set()
    assert all(isinstance(asker.outcome(), Cancelled) for asker in askers)


def test_nothing_is_granted_after_calling_off() -> None:
    cancelled = Cancellation()
    cancelled.set()
    with pytest.raises(Cancelled):
        Budget(100).acquire(1, cancelled)


def test_large_buffers_of_one_size_are_used_again() -> None:
    size = 1024 * 1024
    budget, cancelled = Budget(2 * size), Cancellation()
    first, second = budget.acquire(size, cancelled), budget.acquire(size, cancelled)
    budget.release(first)
    budget.release(second)
    again = {id(budget.acquire(size, cancelled)) for _ in range(2)}
    assert again == {id(first), id(second)}


def test_a_lease_ends_however_its_block_ends() -> None:
    budget, cancelled = Budget(100), Cancellation()
    for _ in range(3):
        with contextlib.suppress(KeyError), budget.lease(100, cancelled) as buffer:
            assert len(buffer) == 100
            raise KeyError


def test_what_is_kept_for_reuse_makes_room_for_another_size() -> None:
    budget, cancelled = Budget(4 * 512 * 1024), Cancellation()
    for buffer in [budget.acquire(512 * 1024, cancelled) for _ in range(4)]:
        budget.release(buffer)
    # It would wait forever if kept buffers counted as taken.
    large = budget.acquire(3 * 512 * 1024, cancelled)
    assert len(large) == 3 * 512 * 1024
    budget.release(large)
    assert len(budget.acquire(512 * 1024, cancelled)) == 512 * 1024
