"""When requests may go, and what is too slow: waits can be ended, streams are above the floor (I11)."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable

import pytest

from staging.store.s3 import S3Store
from staging.transfer.ranges import read_range
from staging.transfer.scheduler import Cancellation
from staging.vocabulary.errors import Stalled
from staging.wire.boto import BotoWire, Connection
from staging.wire.floor import Direction, Floor, Rates, TooSlow
from staging.wire.pace import Counts, Pace
from staging.wire.wire import Stopped
from tests.support.s3server import Fault, ScriptedS3, StallBody
from tests.support.stores import credentials


class Time:
    """A clock that goes on when somebody waits."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.waits: list[float] = []

    def clock(self) -> float:
        return self.now

    def wait(self, condition: threading.Condition, seconds: float | None) -> None:
        assert seconds is not None, "a wait that nothing would end"
        self.waits.append(seconds)
        self.now += seconds


def pace(
    time: Time, *, ceiling: int = 8, start: int | None = None, bandwidth: int | None = None
) -> Pace:
    """A pace with the longest hold-offs that chance may give."""
    return Pace(
        ceiling=ceiling,
        start=start,
        bandwidth=bandwidth,
        clock=time.clock,
        wait=time.wait,
        uniform=lambda low, high: high,
    )


def good(one: Pace, times: int) -> None:
    for _ in range(times):
        slot = one.enter()
        slot.good()
        slot.leave()


def busy(one: Pace, retry_after: float = 0.0) -> None:
    slot = one.enter()
    slot.busy(retry_after)
    slot.leave()


def test_good_answers_let_more_in_up_to_the_ceiling() -> None:
    one = pace(Time(), ceiling=4, start=1)
    seen = [one.limit]
    for _ in range(20):
        good(one, 1)
        seen.append(one.limit)
    assert seen[:2] == [1, 2]
    assert seen == sorted(seen)
    assert seen[-1] == 4


def test_a_busy_answer_halves_once_however_many_were_under_way() -> None:
    one = pace(Time(), ceiling=16)
    slots = [one.enter() for _ in range(16)]
    for slot in slots:
        slot.busy()
        slot.leave()
    assert one.limit == 8
    assert one.counts == Counts(requests=16, retries=0, busy=16, dropped=0)
    for expected in (4, 2, 1, 1):
        busy(one)
        assert one.limit == expected


def test_good_answers_to_what_went_before_the_trouble_change_nothing() -> None:
    time = Time()
    one = pace(time, ceiling=8)
    before, troubled = one.enter(), one.enter()
    troubled.busy()
    before.good()
    assert one.limit == 4
    good(one, 1)
    assert time.waits == pytest.approx([0.2])


def test_nobody_sends_during_a_hold_off_which_grows_and_has_a_cap() -> None:
    time = Time()
    one = pace(time)
    for _ in range(10):
        busy(one)
    assert time.waits[0] == pytest.approx(0.2)
    assert time.waits == pytest.approx([min(0.2 * 2**n, 20.0) for n in range(9)])
    good(one, 1)
    time.waits.clear()
    busy(one)
    good(one, 1)
    assert time.waits == pytest.approx([0.2])


@pytest.mark.parametrize(("asked", "waited"), [(3.0, 3.0), (1e9, 120.0), (0.0, 0.2), (-1.0, 0.2)])
def test_the_store_may_ask_for_more_quiet(asked: float, waited: float) -> None:
    time = Time()
    one = pace(time)
    busy(one, asked)
    good(one, 1)
    assert time.waits == pytest.approx([waited])


def test_bandwidth_is_kept_over_both_directions() -> None:
    time = Time()
    one = pace(time, bandwidth=1_000_000)
    began = time.now
    for _ in range(100):
        one.spend(50_000)
    assert time.now - began == pytest.approx(5_000_000 / 1_000_000, abs=0.11)
    assert one.block == 62_500
    assert pace(time).block is None


def test_silence_saves_no_bandwidth_up() -> None:
    time = Time()
    one = pace(time, bandwidth=1000)
    one.spend(1000)
    time.now += 3600
    began = time.now
    one.spend(1000)
    assert time.now - began == pytest.approx(0.9)


def hold_off(one: Pace) -> None:
    busy(one, 100.0)
    one.enter()


def full(one: Pace) -> None:
    one.enter()
    one.enter()


WAITS: dict[str, Callable[[Pace], None]] = {
    "hold-off": hold_off,
    "slot": full,
    "sleep": lambda one: one.sleep(100),
    "bandwidth": lambda one: one.spend(100_000),
}


@pytest.mark.parametrize("wait", WAITS.values(), ids=WAITS)
def test_every_wait_ends_at_once_when_the_work_is_called_off(wait: Callable[[Pace], None]) -> None:
    waiting = threading.Event()

    def watched(condition: threading.Condition, seconds: float | None) -> None:
        waiting.set()
        condition.wait(seconds)

    one = Pace(ceiling=1, bandwidth=1000, wait=watched)
    ended = []

    def run() -> None:
        try:
            wait(one)
        except Stopped:
            ended.append(True)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    waiting.wait()
    one.stop()
    thread.join()
    assert ended == [True]
    with pytest.raises(Stopped):
        one.enter()
    one.resume()
    one.sleep(0)


def test_room_goes_to_who_waits() -> None:
    waiting = threading.Event()

    def watched(condition: threading.Condition, seconds: float | None) -> None:
        waiting.set()
        condition.wait(seconds)

    one = Pace(ceiling=1, wait=watched)
    slot = one.enter()
    thread = threading.Thread(target=lambda: one.enter().leave(), daemon=True)
    thread.start()
    waiting.wait()
    slot.leave()
    slot.leave()
    thread.join()
    assert one.counts.requests == 2


class Crowd:
    """Three threads that wait for a place, and keep it."""

    def __init__(self, *, start: int, ceiling: int) -> None:
        self.woken = 0
        self.entered = threading.Semaphore(0)
        self._waiting = threading.Semaphore(0)
        self.pace = Pace(ceiling=ceiling, start=start, wait=self._wait)
        self.slot = self.pace.enter()
        for _ in range(3):
            threading.Thread(target=self._enter, daemon=True).start()
        for _ in range(3):
            self._waiting.acquire()

    def _wait(self, condition: threading.Condition, seconds: float | None) -> None:
        self._waiting.release()  # who is told that has to get the lock first, which this thread holds
        condition.wait(seconds)
        self.woken += 1

    def _enter(self) -> None:
        try:
            self.pace.enter()
        except Stopped:
            return
        self.entered.release()


def test_a_good_answer_lets_one_more_in_than_left() -> None:
    crowd = Crowd(start=1, ceiling=4)
    crowd.slot.good()
    assert crowd.entered.acquire(timeout=30)
    crowd.slot.leave()
    assert crowd.entered.acquire(timeout=30)
    assert crowd.pace.counts.requests == 3
    crowd.pace.stop()


def test_a_place_that_is_free_wakes_one() -> None:
    crowd = Crowd(start=1, ceiling=1)
    crowd.slot.leave()
    assert crowd.entered.acquire(timeout=30)
    time.sleep(0.05)  # for those who would have been woken as well
    assert crowd.woken == 1
    crowd.pace.stop()


@pytest.mark.parametrize("arguments", [{"ceiling": 0}, {"ceiling": 1, "start": 0}])
def test_nothing_at_all_is_refused(arguments: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least one"):
        Pace(**arguments)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="bandwidth"):
        Pace(ceiling=1, bandwidth=0)


KIB, MIB = 1024, 1024 * 1024


def feed(rates: Rates, rate: float, seconds: int, *, size: int = 64 * MIB, tag: str = "t") -> float:
    """Move bytes at a rate for that long; returns the second at which the stream was dropped, or 0."""
    meter = rates.meter("down", tag, size)
    for second in range(1, seconds + 1):
        try:
            meter.moved(int(rate), 1.0)
        except TooSlow:
            return second
    return 0


def test_a_stream_below_the_floor_is_dropped_when_it_was_for_long() -> None:
    rates = Rates(Floor())
    assert feed(rates, 15 * KIB, 100) == 30
    assert feed(rates, 0, 100) == 30
    assert feed(rates, 17 * KIB, 100) == 0
    assert rates.dropped == 2


def test_what_went_well_before_does_not_help() -> None:
    meter = Rates(Floor()).meter("down", "t", 640 * MIB)
    for count in [MIB] * 100 + [0] * 29:
        meter.moved(count, 1.0)
    with pytest.raises(TooSlow, match="over 30 seconds"):
        meter.moved(0, 1.0)


def test_waiting_that_the_network_is_not_to_blame_for_does_not_count() -> None:
    meter = Rates(Floor()).meter("down", "t", 64 * MIB)
    for _ in range(10_000):
        meter.moved(100, 0.0001)


def peers(rates: Rates, count: int, rate: float, direction: Direction = "down") -> None:
    for number in range(count):
        meter = rates.meter(direction, f"peer-{number}", 16 * MIB)
        meter.moved(16 * MIB, 16 * MIB / rate)
        meter.done()


def test_a_stream_far_behind_its_peers_is_dropped_once() -> None:
    rates = Rates(Floor())
    peers(rates, 8, 80 * MIB)
    assert feed(rates, 9 * MIB, 100, size=2000 * MIB) == 10
    assert feed(rates, 9 * MIB, 100, size=2000 * MIB) == 0
    assert feed(rates, 11 * MIB, 100, size=2000 * MIB, tag="other") == 0
    assert rates.dropped == 1


@pytest.mark.parametrize(
    ("count", "direction", "size"), [(7, "down", 16 * MIB), (8, "up", 16 * MIB), (8, "down", MIB)]
)
def test_who_has_no_peers_is_not_behind(count: int, direction: Direction, size: int) -> None:
    rates = Rates(Floor())
    peers(rates, count, 80 * MIB, direction)
    assert feed(rates, 20 * KIB, 40, size=size) == 0


def test_memory_of_dropped_requests_is_bounded() -> None:
    rates = Rates(Floor())
    assert all(rates.first_time(f"tag {number}") for number in range(5000))
    assert not rates.first_time("tag 4999")
    assert rates.first_time("tag 0")


def test_the_slowest_stream_is_one_that_is_under_way_and_was_waited_for() -> None:
    rates = Rates(Floor())
    assert rates.slowest() is None
    young, fast, slow = (rates.meter("down", tag, 64 * MIB) for tag in ("a", "b", "c"))
    young.moved(10, 0.5)
    fast.moved(8 * MIB, 2.0)
    slow.moved(2 * MIB, 2.0)
    assert rates.slowest() == MIB
    slow.done()
    assert rates.slowest() == 4 * MIB
    del fast  # one that broke off says nothing of its end
    assert rates.slowest() is None


def test_bytes_that_were_given_up_often_enough_are_hopeless() -> None:
    rates = Rates(Floor(patience=3))
    for _ in range(2):
        rates.stalled("t")
        assert not rates.is_hopeless("t")
    rates.stalled("t")
    assert rates.is_hopeless("t")
    assert not rates.is_hopeless("other")


def test_memory_of_stalls_is_bounded() -> None:
    rates = Rates(Floor(patience=1))
    for number in range(5000):
        rates.stalled(f"tag {number}")
    assert rates.is_hopeless("tag 4999")
    assert not rates.is_hopeless("tag 0")


def test_work_that_goes_on_after_it_was_called_off_waits_for_no_hold_off() -> None:
    time = Time()
    one = pace(time)
    busy(one, 77)
    one.stop()
    with pytest.raises(Stopped):
        one.enter()
    one.resume()
    one.enter().leave()
    assert time.waits == []
    # The next busy answer is the first one in a row.
    busy(one)
    good(one, 1)
    assert time.waits == pytest.approx([0.2])


@pytest.mark.parametrize("engine", ["raw", "crt"])
@pytest.mark.parametrize("after_bytes", [0, 100_000])
def test_a_server_that_stops_sending_for_good_is_a_stall(
    engine: str, after_bytes: int, scripted_s3: ScriptedS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bounded time, whether each attempt brings some bytes or none."""
    for name, value in credentials(scripted_s3).items():
        monkeypatch.setenv(name, value)
    scripted_s3.bucket("b").put("k", bytes(range(256)) * 4096)
    with StallBody(after_bytes) as stall:
        scripted_s3.script(Fault("GetObject", stall, occurrence=None))
        wire = BotoWire(
            Connection(endpoint_url=scripted_s3.endpoint_url, engine=engine),  # type: ignore[arg-type]
            Pace(
                ceiling=4, clock=lambda: time.monotonic() * 200
            ),  # half a second is a minute and more
        )
        store = S3Store(wire, "b")
        with pytest.raises(Stalled) as caught:
            read_range(
                store,
                "k",
                0,
                memoryview(bytearray(1024 * 1024)),
                etag=store.head("k").etag,
                cancelled=Cancellation(),
                rng=random.Random(1),
            )
        assert caught.value.reference == "stalled"
        assert scripted_s3.requests.count("GetObject") <= 5
    wire.close()
