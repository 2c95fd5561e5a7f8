"""HTTP/1.1 of our own against servers that do as they like (I1, I7, I11)."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import pytest

from staging.wire import raw
from staging.wire.boto import BotoWire, Connection
from staging.wire.pace import Pace
from staging.wire.wire import BodyStalled, Stopped, WireError
from tests.support.s3server import Fault, Hold, ScriptedS3, StallBody, Status

OK = b"HTTP/1.1 200 OK\r\nETag: x\r\n"
EMPTY = OK + b"Content-Length: 0\r\n\r\n"
LISTING = (
    b'<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
    b"<Name>b</Name><KeyCount>0</KeyCount></ListBucketResult>"
)


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "known")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "right")
    monkeypatch.setattr(raw, "TICK", 0.01)


class Server:
    """Takes connections one after the other; each has its answers, one per request, and is then closed."""

    def __init__(self, listener: socket.socket, connections: Sequence[Sequence[bytes]]) -> None:
        self.listener = listener
        self.requests: list[tuple[int, bytes]] = []
        self._connections = connections

    def serve(self) -> None:
        for number, answers in enumerate(self._connections):
            try:
                connection, _ = self.listener.accept()
            except OSError:  # the test is over
                return
            with connection:
                for answer in answers:
                    got = b""
                    while b"\r\n\r\n" not in got:
                        more = connection.recv(65536)
                        if not more:
                            break
                        got += more
                    if not got:
                        break
                    self.requests.append((number, got))
                    connection.sendall(answer)


@contextmanager
def served(*connections: Sequence[bytes], **settings: object) -> Iterator[tuple[BotoWire, Server]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = Server(listener, connections)
        thread = threading.Thread(target=server.serve, daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        wire = BotoWire(
            Connection(endpoint_url=url, region="x", engine="raw", **settings),  # type: ignore[arg-type]
            fast(),
        )
        try:
            yield wire, server
        finally:
            wire.close()
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def fast(step: float = 0.001) -> Pace:
    """A pace whose waits pass at once, by a clock that goes on by `step` seconds when it is looked at."""
    now = [0.0]

    def clock() -> float:
        now[0] += step
        return now[0]

    def wait(condition: threading.Condition, seconds: float | None) -> None:
        assert seconds is not None, "more than there is room for"
        now[0] += seconds

    return Pace(ceiling=4, clock=clock, wait=wait)


def listed(wire: BotoWire) -> int:
    return int(wire.call("ListObjectsV2", {"Bucket": "b"})["KeyCount"])


def head(wire: BotoWire) -> str:
    return str(wire.call("HeadObject", {"Bucket": "b", "Key": "k"})["ETag"])


def chunked(*pieces: bytes, end: bytes = b"0\r\n\r\n") -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + end


WHOLE = {
    "length": OK + b"Content-Length: %d\r\n\r\n" % len(LISTING) + LISTING,
    "chunked": OK + b"Transfer-Encoding: chunked\r\n\r\n" + chunked(LISTING[:7], LISTING[7:]),
    "trailers": OK
    + b"Transfer-Encoding: Chunked\r\n\r\n"
    + chunked(LISTING, end=b"0;x=y\r\nA: b\r\n\r\n"),
    "blanks": OK
    + b"Transfer-Encoding: chunked\r\n\r\n"
    + chunked(LISTING[:21], b" ", b" ", LISTING[21:]),
    "continue": b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nLink: x\r\n\r\n"
    + OK
    + b"Content-Length: %d\r\n\r\n" % len(LISTING)
    + LISTING,
    "twice the same length": OK
    + (b"content-length: %d\r\n" % len(LISTING)) * 2
    + b"\r\n"
    + LISTING,
}


@pytest.mark.parametrize("answer", WHOLE.values(), ids=WHOLE)
def test_answers_in_every_framing_and_the_connection_after(answer: bytes) -> None:
    with served([answer, answer, EMPTY]) as (wire, server):
        assert listed(wire) == listed(wire) == 0
        assert head(wire) == "x"
        assert [number for number, _ in server.requests] == [0, 0, 0]


ONCE = {
    "close": OK + b"Connection: Close\r\nContent-Length: %d\r\n\r\n" % len(LISTING) + LISTING,
    "to the end": OK + b"\r\n" + LISTING,
    "1.0": WHOLE["length"].replace(b"HTTP/1.1", b"HTTP/1.0"),
    "more than was said": WHOLE["length"] + b"HTTP/1.1 200 OK",
}


@pytest.mark.parametrize("answer", ONCE.values(), ids=ONCE)
def test_a_connection_that_cannot_be_trusted_is_not_used_again(answer: bytes) -> None:
    with served([answer], [EMPTY]) as (wire, server):
        assert listed(wire) == 0
        assert head(wire) == "x"
        assert [number for number, _ in server.requests] == [0, 1]


BROKEN = {
    "nothing": b"",
    "garbage": b"SSH-2.0-OpenSSH\r\n\r\n",
    "half a head": b"HTTP/1.1 200 OK\r\nETag",
    "no colon": b"HTTP/1.1 200 OK\r\nETag\r\n\r\n",
    "folded": b"HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n",
    "lengths": OK
    + b"Content-Length: %d\r\nContent-Length: %d\r\n\r\n" % (len(LISTING), len(LISTING) + 1)
    + LISTING,
    "length": OK + b"Content-Length: +%d\r\n\r\n" % len(LISTING) + LISTING,
    "encoding": OK + b"Transfer-Encoding: gzip\r\n\r\n" + LISTING,
    "nameless": OK + b": x\r\nContent-Length: %d\r\n\r\n" % len(LISTING) + LISTING,
    "endless": OK + b"A: b\r\n" * 20_000,
    "short": OK + b"Content-Length: 999\r\n\r\n" + LISTING,
    "chunk cut": OK + b"Transfer-Encoding: chunked\r\n\r\n" + chunked(LISTING, end=b""),
    "chunk too long": OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nabcdefg\r\n0\r\n\r\n",
    "chunk without length": OK + b"Transfer-Encoding: chunked\r\n\r\n-1\r\nabc\r\n",
}


@pytest.mark.parametrize("answer", BROKEN.values(), ids=BROKEN)
def test_an_answer_that_is_none_is_asked_for_again(answer: bytes) -> None:
    with served([answer], [WHOLE["length"]]) as (wire, server):
        assert listed(wire) == 0
        assert [number for number, _ in server.requests] == [0, 1]
        assert (wire.pace.counts.requests, wire.pace.counts.retries) == (2, 1)


def test_a_kept_connection_that_was_closed_is_replaced() -> None:
    with served([EMPTY], [EMPTY], [EMPTY]) as (wire, server):
        for _ in range(3):
            assert head(wire) == "x"
        assert [number for number, _ in server.requests] == [0, 1, 2]
        # However the end was noticed: before sending, or by sending and hearing nothing.
        assert wire.pace.counts.requests == 3 + wire.pace.counts.retries


FORGED = b"HTTP/1.1 200 OK\r\nETag: forged\r\nContent-Length: 0\r\n\r\n"


def test_an_answer_that_nobody_asked_for_is_no_answer() -> None:
    with served([EMPTY + FORGED, EMPTY], [EMPTY]) as (wire, server):
        assert head(wire) == head(wire) == "x"
        assert [number for number, _ in server.requests] == [0, 1]


def test_an_answer_that_comes_before_its_question_is_no_answer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        taken: list[socket.socket] = []

        def serve() -> None:
            for _ in range(2):
                connection, _ = listener.accept()
                taken.append(connection)
                assert connection.recv(65536)
                connection.sendall(EMPTY)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        wire = BotoWire(Connection(endpoint_url=url, region="x", engine="raw"), fast())
        assert head(wire) == "x"
        taken[0].sendall(FORGED)
        assert head(wire) == "x"
        thread.join()
        wire.close()
        for connection in taken:
            connection.close()


def test_a_kept_connection_that_hangs_up_on_a_request_is_replaced_once() -> None:
    with served([EMPTY, b""], [EMPTY], [EMPTY]) as (wire, server):
        assert head(wire) == head(wire) == "x"
        assert [number for number, _ in server.requests] == [0, 0, 1]
        assert b"attempt=1; max=5" in server.requests[-1][1]
        assert (wire.pace.counts.requests, wire.pace.counts.retries) == (3, 1)


def test_a_server_in_trouble_is_not_asked_twice_at_once() -> None:
    busy = b"HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n"
    with served([busy, b""], [EMPTY]) as (wire, server):
        assert head(wire) == "x"
        assert [number for number, _ in server.requests] == [0, 0, 1]
        assert b"attempt=3; max=5" in server.requests[-1][1]  # botocore's decision, with a pause


def test_a_refusal_is_heard_by_who_is_still_sending() -> None:
    """The server answers without reading the body, and hangs up."""
    refusal = b"<Error><Code>EntityTooLarge</Code></Error>"
    answer = b"HTTP/1.1 400 Bad\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(refusal)

    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                got = connection.recv(1000)
                connection.sendall(answer + refusal)
                connection.shutdown(socket.SHUT_WR)
                while got:
                    got = connection.recv(1 << 20)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        wire = BotoWire(Connection(endpoint_url=url, region="x", engine="raw"), fast())
        with pytest.raises(WireError) as caught:
            wire.call("PutObject", {"Bucket": "b", "Key": "k", "Body": bytearray(8 << 20)})
        wire.close()
        thread.join()
    assert (caught.value.cause, caught.value.code) == ("answer", "EntityTooLarge")


def test_a_body_that_stands_still_is_given_up_and_asked_for_again(scripted_s3: ScriptedS3) -> None:
    data = bytes(range(256)) * 4096
    scripted_s3.bucket("b").put("k", data)
    with StallBody(1000) as stall:
        scripted_s3.script(Fault("GetObject", stall, occurrence=1))
        wire = BotoWire(
            Connection(endpoint_url=scripted_s3.endpoint_url, engine="raw"),
            fast(1.0),
        )
        _, body = wire.get({"Bucket": "b", "Key": "k"})
        buffer, done = memoryview(bytearray(len(data))), 0
        done += body.read_into(buffer)
        with pytest.raises(BodyStalled):
            body.read_into(buffer[done:])
        body.close()
        _, body = wire.get({"Bucket": "b", "Key": "k", "Range": f"bytes={done}-"})
        while count := body.read_into(buffer[done:]):
            done += count
        body.close()
    assert buffer == data
    assert wire.pace.counts.dropped == 1
    wire.close()


@pytest.mark.parametrize("engine", ["raw", "crt"])
def test_no_answer_for_good_is_stalled(engine: str, scripted_s3: ScriptedS3) -> None:
    if engine == "crt":
        from staging.wire import crt

        pytest.MonkeyPatch().setattr(crt, "TICK", 0.01)
    with Hold() as hold:
        scripted_s3.script(Fault("UploadPart", hold, occurrence=None))
        wire = BotoWire(
            Connection(endpoint_url=scripted_s3.endpoint_url, engine=engine),  # type: ignore[arg-type]
            fast(10.0),
        )
        with pytest.raises(WireError) as caught:
            wire.call(
                "UploadPart",
                {"Bucket": "b", "Key": "k", "UploadId": "u", "PartNumber": 1, "Body": bytearray(9)},
            )
        wire.close()
    assert caught.value.cause == "stalled"
    assert "no answer in 60 seconds" in caught.value.message
    assert len(scripted_s3.requests) == 5


def test_sending_that_stands_still_is_given_up() -> None:
    """The server takes connections and reads nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        wire = BotoWire(
            Connection(endpoint_url=url, region="x", engine="raw"),
            fast(1.0),
        )
        with pytest.raises(WireError) as caught:
            wire.call("PutObject", {"Bucket": "b", "Key": "k", "Body": bytearray(32 << 20)})
        wire.close()
    assert caught.value.cause == "stalled"
    assert wire.pace.counts.dropped == 5


@pytest.mark.parametrize("size", [9, 32 << 20], ids=["answering", "sending"])
def test_a_request_under_way_ends_when_the_work_is_called_off(size: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        wire = BotoWire(Connection(endpoint_url=url, region="x", engine="raw"))
        ended = []

        def run() -> None:
            try:
                wire.call("PutObject", {"Bucket": "b", "Key": "k", "Body": bytearray(size)})
            except Stopped:
                ended.append(True)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        connection, _ = listener.accept()
        with connection:
            connection.recv(1)
            wire.pace.stop()
            thread.join()
        wire.close()
    assert ended == [True]


def test_a_body_under_way_ends_when_the_work_is_called_off(scripted_s3: ScriptedS3) -> None:
    scripted_s3.bucket("b").put("k", bytes(100))
    with StallBody(10) as stall:
        scripted_s3.script(Fault("GetObject", stall, occurrence=1))
        wire = BotoWire(Connection(endpoint_url=scripted_s3.endpoint_url, engine="raw"))
        _, body = wire.get({"Bucket": "b", "Key": "k"})
        assert body.read_into(memoryview(bytearray(100))) == 10
        wire.pace.stop()
        with pytest.raises(Stopped):
            body.read_into(memoryview(bytearray(100)))
        body.close()
        wire.close()


@pytest.mark.parametrize("engine", ["auto", "boto", "crt", "raw"])
@pytest.mark.parametrize("status", [500, 503])
def test_a_wait_before_a_repeat_ends_when_the_work_is_called_off(
    engine: str, status: int, scripted_s3: ScriptedS3
) -> None:
    waits: list[float | None] = []

    def watched(condition: threading.Condition, seconds: float | None) -> None:
        waits.append(seconds)
        wire.pace.stop()

    scripted_s3.script(Fault(None, Status(status, headers={"Retry-After": "77"}), occurrence=None))
    wire = BotoWire(
        Connection(endpoint_url=scripted_s3.endpoint_url, engine=engine),  # type: ignore[arg-type]
        Pace(ceiling=4, wait=watched, uniform=lambda low, high: 0.0),
    )
    with pytest.raises(Stopped):
        wire.call("ListObjectsV2", {"Bucket": "b"})
    assert len(scripted_s3.requests) == len(waits) == 1
    if status == 503:
        wire.pace.resume()  # who cleans up does not wait for what the work was told to wait for
        with pytest.raises(Stopped):
            wire.call("ListObjectsV2", {"Bucket": "b"})
        assert len(scripted_s3.requests) == 2
    wire.close()


@pytest.mark.parametrize("engine", ["auto", "boto", "crt", "raw"])
def test_bytes_are_paid_for_in_both_directions(engine: str, scripted_s3: ScriptedS3) -> None:
    now = [0.0]

    def wait(condition: threading.Condition, seconds: float | None) -> None:
        assert seconds is not None
        now[0] += seconds

    size = 1_000_000
    scripted_s3.bucket("b")
    wire = BotoWire(
        Connection(endpoint_url=scripted_s3.endpoint_url, engine=engine),  # type: ignore[arg-type]
        Pace(ceiling=4, bandwidth=100_000, clock=lambda: now[0], wait=wait),
    )
    wire.call("PutObject", {"Bucket": "b", "Key": "k", "Body": bytearray(size)})
    assert now[0] == pytest.approx(10, abs=0.2)
    _, body = wire.get({"Bucket": "b", "Key": "k"})
    buffer, done = memoryview(bytearray(size)), 0
    while count := body.read_into(buffer[done:]):
        done += count
    body.close()
    assert done == size
    assert now[0] == pytest.approx(20, abs=0.4)
    wire.close()


def test_a_body_holds_its_place_until_it_is_closed(scripted_s3: ScriptedS3) -> None:
    scripted_s3.bucket("b").put("k", bytes(1_000_000))
    waiting = threading.Event()

    def watched(condition: threading.Condition, seconds: float | None) -> None:
        waiting.set()
        condition.wait(seconds)

    wire = BotoWire(
        Connection(endpoint_url=scripted_s3.endpoint_url), Pace(ceiling=1, wait=watched)
    )
    _, body = wire.get({"Bucket": "b", "Key": "k"})
    thread = threading.Thread(
        target=wire.call, args=("HeadObject", {"Bucket": "b", "Key": "k"}), daemon=True
    )
    thread.start()
    waiting.wait()
    assert len(scripted_s3.requests) == 1
    body.close()
    thread.join()
    assert len(scripted_s3.requests) == 2
    wire.close()


def test_an_answer_that_cannot_be_read_gives_its_place_back() -> None:
    """botocore's parser fails after its events, but for more answers than there are places."""
    answer = OK + b"Content-Length: 0\r\nx-amz-missing-meta: many\r\n\r\n"
    with served([answer] * 6) as (wire, _):
        for _ in range(6):
            with pytest.raises(WireError) as caught:
                head(wire)
            assert (caught.value.cause, caught.value.code) == ("request", "UnreadableAnswer")
