"""Reading a range over broken connections: to its end, in one version (I7), in bounded requests (I11)."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest

from staging.store.s3 import S3Store
from staging.transfer.ranges import MAX_ATTEMPTS, read_range
from staging.transfer.scheduler import Cancellation, Cancelled
from staging.vocabulary.errors import IntegrityError, NotFound, StoreUnavailable
from tests.support.s3server import (
    Action,
    CutBody,
    Fault,
    IgnoreRange,
    Request,
    ScriptedS3,
    Status,
    WrongRange,
)
from tests.support.shared_s3 import SharedS3, shared_s3

BUCKET = "models"
KEY = "m/model.safetensors"
SIZE = 100_000
DATA = random.Random(1).randbytes(SIZE)
OTHER = random.Random(2).randbytes(SIZE)


@pytest.fixture(scope="module")
def shared() -> Iterator[SharedS3]:
    with shared_s3(BUCKET) as opened:
        yield opened


@pytest.fixture
def server(shared: SharedS3) -> ScriptedS3:
    shared.reset()
    shared.server.bucket(BUCKET).put(KEY, DATA)
    return shared.server


@pytest.fixture
def store(shared: SharedS3) -> S3Store:
    return shared.store


class Patient(Cancellation):
    """Sleeps are noted, not slept."""

    def __init__(self) -> None:
        super().__init__()
        self.slept: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.check()


def read(store: S3Store, offset: int, length: int, cancelled: Cancellation | None = None) -> bytes:
    buffer = bytearray(length)
    read_range(
        store,
        KEY,
        offset,
        memoryview(buffer),
        etag=store.head(KEY).etag,
        cancelled=Patient() if cancelled is None else cancelled,
        rng=random.Random(3),
    )
    return bytes(buffer)


def test_each_byte_is_shown_once_and_in_order_over_bodies_that_break_off(
    server: ScriptedS3, store: S3Store
) -> None:
    server.script(Fault("GetObject", CutBody(12_345), occurrence=range(1, 3)))
    shown = bytearray()
    read_range(
        store,
        KEY,
        1000,
        memoryview(bytearray(50_000)),
        etag=store.head(KEY).etag,
        cancelled=Patient(),
        rng=random.Random(3),
        seen=shown.extend,
    )
    assert shown == DATA[1000:51_000]


def ranges(server: ScriptedS3) -> list[str | None]:
    return [request.range for request in server.requests.of("GetObject")]


@pytest.mark.parametrize(("offset", "length"), [(0, SIZE), (0, 1), (SIZE - 1, 1), (777, 50_000)])
def test_one_request_when_nothing_breaks(
    server: ScriptedS3, store: S3Store, offset: int, length: int
) -> None:
    assert read(store, offset, length) == DATA[offset : offset + length]
    assert ranges(server) == [f"bytes={offset}-{offset + length - 1}"]


def test_nothing_is_asked_for_an_empty_range(server: ScriptedS3, store: S3Store) -> None:
    assert read(store, 0, 0) == b""
    assert read(store, SIZE, 0) == b""
    assert ranges(server) == []


@pytest.mark.parametrize("cut", [0, 1, 12_345, 49_999])
def test_it_goes_on_where_a_body_broke_off(server: ScriptedS3, store: S3Store, cut: int) -> None:
    server.script(Fault("GetObject", CutBody(cut)))
    assert read(store, 1000, 50_000) == DATA[1000:51_000]
    assert ranges(server) == ["bytes=1000-50999", f"bytes={1000 + cut}-50999"]
    sent = server.requests.sent("GetObject")
    assert sent <= 50_000 + cut


def test_it_goes_on_as_often_as_it_may(server: ScriptedS3, store: S3Store) -> None:
    server.script(Fault("GetObject", CutBody(10_000), occurrence=range(1, MAX_ATTEMPTS)))
    cancelled = Patient()
    assert read(store, 0, SIZE, cancelled) == DATA
    assert ranges(server) == [
        f"bytes={10_000 * attempt}-{SIZE - 1}" for attempt in range(MAX_ATTEMPTS)
    ]
    bounds = [0.1 * 2**repeat for repeat in range(MAX_ATTEMPTS - 1)]
    assert len(cancelled.slept) == len(bounds)
    assert all(0 <= slept <= bound for slept, bound in zip(cancelled.slept, bounds, strict=True))
    assert server.unfired_faults == []


@pytest.mark.parametrize("cut", [0, 100])
def test_it_gives_up_after_a_bounded_number_of_requests(
    server: ScriptedS3, store: S3Store, cut: int
) -> None:
    server.script(Fault("GetObject", CutBody(cut), occurrence=None))
    with pytest.raises(StoreUnavailable) as caught:
        read(store, 5000, 50_000)
    assert len(ranges(server)) == MAX_ATTEMPTS == 6
    error = caught.value
    assert (error.exit_code, error.reference, error.side) == (13, "connection", "store")
    assert f"s3://{BUCKET}/{KEY} broke off 6 times, last at byte {5000 + 6 * cut}" in error.message


def test_an_object_replaced_between_two_requests_is_not_mixed(
    server: ScriptedS3, store: S3Store
) -> None:
    def replace_then_serve(request: Request) -> bool:
        if request.range == f"bytes=40000-{SIZE - 1}":
            server.bucket(BUCKET).put(KEY, OTHER)
        return False

    server.script(
        Fault("GetObject", CutBody(40_000)),
        Fault("GetObject", Status(500), where=replace_then_serve),
    )
    with pytest.raises(IntegrityError) as caught:
        read(store, 0, SIZE)
    assert caught.value.reference == "object-changed"
    assert [request.status for request in server.requests.of("GetObject")] == [206, 412]
    assert all("if-match" in request.headers for request in server.requests.of("GetObject"))


def test_an_object_that_goes_away_between_two_requests(server: ScriptedS3, store: S3Store) -> None:
    server.script(
        Fault("GetObject", CutBody(40_000)), Fault("GetObject", Status(404), occurrence=2)
    )
    with pytest.raises(NotFound):
        read(store, 0, SIZE)
    assert len(ranges(server)) == 2


@pytest.mark.parametrize("action", [IgnoreRange(), WrongRange(5, honest=True)])
def test_another_range_than_the_one_asked_for_is_refused(
    server: ScriptedS3, store: S3Store, action: Action
) -> None:
    server.script(Fault("GetObject", CutBody(100)), Fault("GetObject", action, occurrence=2))
    with pytest.raises(IntegrityError):
        read(store, 0, 1000)
    assert len(ranges(server)) == 2


class Stopping(Patient):
    """Called off when a pause begins."""

    def sleep(self, seconds: float) -> None:
        self.set()
        super().sleep(seconds)


def stopped() -> Cancellation:
    cancelled = Cancellation()
    cancelled.set()
    return cancelled


@pytest.mark.parametrize(("make", "requests"), [(Stopping, 1), (stopped, 0)])
def test_no_request_follows_when_the_work_is_called_off(
    server: ScriptedS3, store: S3Store, make: Callable[[], Cancellation], requests: int
) -> None:
    server.script(Fault("GetObject", CutBody(100), occurrence=None))
    with pytest.raises(Cancelled):
        read(store, 0, SIZE, make())
    assert len(ranges(server)) == requests
