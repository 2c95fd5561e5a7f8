"""How many requests a fault costs: at most 1/(1-p) + 0.1 at rate p, and 1.1 when everything fails (I11)."""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import get_args

import pytest

from staging.wire.boto import BotoWire, Connection
from staging.wire.engine import Engine
from staging.wire.pace import Pace
from staging.wire.wire import WireError
from tests.support.s3server import DropAfter, DropBefore, Fault, ScriptedS3, Status

ENGINES: tuple[Engine, ...] = get_args(Engine)
THREADS = 4


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "known")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "right")


@contextmanager
def impatient(url: str, engine: Engine) -> Iterator[BotoWire]:
    """A wire whose waits pass at once."""
    lock, now = threading.Lock(), [0.0]

    def wait(condition: threading.Condition, seconds: float | None) -> None:
        if seconds is None:
            condition.wait()
        else:
            with lock:
                now[0] += seconds

    wire = BotoWire(
        Connection(endpoint_url=url, engine=engine, connections=THREADS),
        Pace(ceiling=THREADS, clock=lambda: now[0], wait=wait),
    )
    try:
        yield wire
    finally:
        wire.close()


def many_requests(wire: BotoWire, count: int) -> int:
    """Make requests of every kind from several threads; returns how many failed for good."""
    numbers, lock, failed = iter(range(count)), threading.Lock(), []

    def run() -> None:
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            where = {"Bucket": "b", "Key": f"k{number % 50}"}
            operation, more = (
                ("PutObject", {"Body": bytearray(b"x" * 100)}),
                ("GetObject", {}),
                ("HeadObject", {}),
                ("CreateMultipartUpload", {}),
            )[number % 4]
            try:
                if operation == "GetObject":
                    _, body = wire.get(where)
                    body.close()
                else:
                    wire.call(operation, {**where, **more})
            except WireError:
                failed.append(number)

    threads = [threading.Thread(target=run, daemon=True) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(failed)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_tenth_of_everything_fails(engine: Engine) -> None:
    count, rate = 800, 0.1
    ordinals = range(1, 2 * count)
    faulty = random.Random(engine).sample(ordinals, int(rate * len(ordinals)))
    kinds = [set(faulty[start::3]) for start in range(3)]
    with ScriptedS3(buckets=["b"]) as s3, impatient(s3.endpoint_url, engine) as wire:
        for number in range(50):
            s3.bucket("b").put(f"k{number}", b"x")
        s3.script(
            Fault(None, Status(503), occurrence=kinds[0]),
            Fault(None, DropBefore(), occurrence=kinds[1]),
            Fault(None, DropAfter(), occurrence=kinds[2]),
        )
        failed = many_requests(wire, count)
        sent = len(s3.requests)
        hit = sum(1 for request in s3.requests if request.faults)
        assert hit > 0.07 * count
        assert failed <= 2  # five times in a row: once in a hundred thousand
        assert sent <= (1 / (1 - rate) + 0.1) * count
        assert wire.pace.counts.requests == sent
        assert wire.pace.counts.retries == sent - count


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("fault", ["busy", "reset", "both"])
def test_everything_fails(engine: Engine, fault: str) -> None:
    count = 1200
    with ScriptedS3(buckets=["b"]) as s3, impatient(s3.endpoint_url, engine) as wire:
        busy, reset = Status(503), DropBefore()
        if fault == "both":
            s3.script(
                Fault(None, busy, occurrence=range(1, 9999, 2)),
                Fault(None, reset, occurrence=range(2, 9999, 2)),
            )
        else:
            s3.script(Fault(None, busy if fault == "busy" else reset, occurrence=None))
        assert many_requests(wire, count) == count
        assert count < len(s3.requests) <= 1.1 * count


def test_the_store_recovers_and_so_do_we() -> None:
    with ScriptedS3(buckets=["b"]) as s3, impatient(s3.endpoint_url, "auto") as wire:
        s3.script(Fault(None, Status(503), occurrence=range(1, 5)))
        many_requests(wire, 1)
        limits = [wire.pace.limit]
        for _ in range(20):
            many_requests(wire, 4)
            limits.append(wire.pace.limit)
        assert limits[0] < THREADS == limits[-1]
        assert s3.unfired_faults == []


def test_a_repeat_has_the_same_body_and_a_fresh_signature() -> None:
    with (
        ScriptedS3(buckets=["b"], credentials={"known": "right"}) as s3,
        impatient(s3.endpoint_url, "auto") as wire,
    ):
        s3.script(Fault("PutObject", Status(500), occurrence=range(1, 4)))
        body = bytearray(itertools.islice(itertools.cycle(range(251)), 100_000))
        wire.call("PutObject", {"Bucket": "b", "Key": "k", "Body": body})
        found = s3.bucket("b").find("k")
        assert found is not None
        assert found.data == body
        said = [request.headers["amz-sdk-request"] for request in s3.requests]
        assert [text.partition("attempt=")[2] for text in said] == [
            f"{number}; max=5" for number in range(1, 5)
        ]
