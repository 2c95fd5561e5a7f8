"""TLS below HTTP/1.1 of our own: records as the network cuts them, ends that are none (I1, I7, I11)."""

from __future__ import annotations

import random
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from staging.wire import raw
from staging.wire.pace import Pace
from staging.wire.raw import RawTransport
from staging.wire.transport import (
    Answer,
    HandshakeFailed,
    Origin,
    Request,
    TransportError,
    Untrusted,
)
from staging.wire.wire import BodyBroken, BodyStalled, Stopped
from tests.support.servers import self_signed

RECORD = 16 * 1024
BODY = random.Random(5).randbytes(3 * RECORD + 77)
SIZED = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(BODY)
OPEN = b"HTTP/1.1 200 OK\r\n\r\n"
EMPTY = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


@pytest.fixture(autouse=True)
def ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raw, "TICK", 0.01)


class Peer:
    """The other side of one connection, which has its records in hand before they go."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext) -> None:
        self.sock = sock
        self.incoming = ssl.MemoryBIO()
        self.outgoing = ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_side=True)

    def greet(self, *, hold_tickets: bool = False) -> None:
        """Shake hands; what comes after it, session tickets, may be kept until there is more to send."""
        while True:
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                self.sock.sendall(self.outgoing.read())
                self.take()
            else:
                break
        if not hold_tickets:
            self.sock.sendall(self.outgoing.read())

    def take(self) -> None:
        got = self.sock.recv(65536)
        if not got:
            raise ConnectionResetError
        self.incoming.write(got)

    def read(self, size: int) -> bytes:
        while True:
            try:
                return self.tls.read(size)
            except ssl.SSLWantReadError:
                self.take()

    def request(self) -> bytes:
        got = b""
        while b"\r\n\r\n" not in got:
            got += self.read(65536)
        return got

    def encrypted(self, *pieces: bytes) -> bytes:
        """Each piece in records of its own."""
        for piece in pieces:
            self.tls.write(piece)
        return self.outgoing.read()

    def farewell(self) -> bytes:
        with suppress(ssl.SSLWantReadError):
            self.tls.unwrap()
        return self.outgoing.read()


class Narrow(socket.socket):
    """A socket that takes and gives a few bytes at a time, and every other time none."""

    most = 1 << 20
    stutters = False

    def recv_into(self, buffer, nbytes=0, flags=0):  # type: ignore[no-untyped-def]  # as the real one
        return super().recv_into(buffer, min(nbytes or len(buffer), self.most), flags)

    def send(self, data, flags=0):  # type: ignore[no-untyped-def]
        self.stutters = not self.stutters
        if self.stutters:
            raise BlockingIOError
        return super().send(data[: self.most], flags)


@contextmanager
def serving(
    directory: Path,
    *conversations: Callable[[Peer], None],
    pace: Pace | None = None,
    trusted: Path | None = None,
) -> Iterator[Callable[..., Answer]]:
    """One conversation for each connection that comes; the caller gets what sends a request."""
    bundle, server = self_signed(directory)
    failures: list[BaseException] = []

    def serve() -> None:
        for conversation in conversations:
            try:
                sock, _ = listener.accept()
            except OSError:  # the test is over
                return
            with sock:
                try:
                    conversation(Peer(sock, server))
                except AssertionError as error:
                    failures.append(error)
                except OSError:
                    continue  # the client had enough

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        client = ssl.create_default_context(cafile=str(trusted or bundle))
        transport = RawTransport(pace=pace or Pace(ceiling=4), tls=lambda: client, idle=4)
        origin = Origin(True, "127.0.0.1", listener.getsockname()[1])

        def send(body: bytes = b"") -> Answer:
            return transport.send(
                Request(
                    method="PUT" if body else "GET",
                    origin=origin,
                    target="/b/k",
                    headers=[("Content-Length", str(len(body)))] if body else [],
                    body=body,
                    streams=True,
                    tag="tag",
                )
            )

        try:
            yield send
        finally:
            transport.close()
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            thread.join()
    assert not failures, failures


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Have connections made of narrow sockets."""

    def make(most: int) -> None:
        connect = socket.create_connection

        def narrowed(address: tuple[str, int], timeout: float) -> socket.socket:
            sock = connect(address, timeout)
            other = Narrow(sock.family, sock.type, sock.proto, sock.detach())
            other.settimeout(timeout)
            other.most = most
            return other

        monkeypatch.setattr(socket, "create_connection", narrowed)

    return make


def whole(answer: Answer, size: int = 1 << 20) -> bytes:
    """The rest of a body, in reads of at most `size` bytes."""
    got = bytearray()
    view = memoryview(bytearray(size))
    while count := answer.body.read_into(view):
        got += view[:count]
    return bytes(got)


def until_broken(answer: Answer, kind: type[Exception] = BodyBroken) -> bytes:
    """What comes of a body that breaks off."""
    got = bytearray()
    view = memoryview(bytearray(1 << 20))

    def read() -> bool:
        count = answer.body.read_into(view)
        got.extend(view[:count])
        return count > 0

    with pytest.raises(kind):
        all(iter(read, False))
    return bytes(got)


def answering(*pieces: bytes) -> Callable[[Peer], None]:
    """Answers every request with the same records."""

    def converse(peer: Peer) -> None:
        peer.greet()
        while True:
            peer.request()
            peer.sock.sendall(peer.encrypted(*pieces))

    return converse


@pytest.mark.parametrize(
    "most", [1, 2, 4, 5, 6, 22, 23, RECORD + 21, RECORD + 22, RECORD + 23, 1 << 20]
)
def test_records_may_be_cut_anywhere(
    most: int, narrow: Callable[[int], None], tmp_path: Path
) -> None:
    narrow(most)
    with serving(tmp_path, answering(SIZED + BODY[:9], BODY[9:10], BODY[10:])) as send:
        for _ in range(2):  # over the same connection: there is one conversation
            assert whole(send()) == BODY


@pytest.mark.parametrize(
    "size", [7, 4096, RECORD - 1, RECORD, RECORD + 1, 2 * RECORD, len(BODY), 1 << 20]
)
def test_reads_may_be_of_any_size(size: int, tmp_path: Path) -> None:
    with serving(tmp_path, answering(SIZED, BODY)) as send:
        for _ in range(2):
            assert whole(send(), size) == BODY


def test_a_body_of_single_bytes(tmp_path: Path) -> None:
    pieces = [BODY[at : at + 1] for at in range(300)]
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 300\r\n\r\n"
    with serving(tmp_path, answering(head, *pieces)) as send:
        assert whole(send(), 1) == whole(send()) == BODY[:300]


def test_a_body_larger_than_every_buffer(tmp_path: Path) -> None:
    body = random.Random(6).randbytes(5_000_003)
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body)
    with serving(tmp_path, answering(head, body)) as send:
        for _ in range(2):
            assert whole(send()) == body


@pytest.mark.parametrize("most", [1, 5, 1 << 20])
def test_session_tickets_with_an_answer_are_no_part_of_it(
    most: int, narrow: Callable[[int], None], tmp_path: Path
) -> None:
    def converse(peer: Peer) -> None:
        peer.greet(hold_tickets=True)
        peer.request()
        assert peer.outgoing.pending > 100  # tickets
        peer.sock.sendall(peer.encrypted(SIZED, BODY))
        peer.request()
        peer.sock.sendall(peer.encrypted(EMPTY))

    narrow(most)
    with serving(tmp_path, converse) as send:
        assert whole(send()) == BODY
        assert whole(send()) == b""


CUTS = {
    "before a record": (1, 0),
    "in its header": (1, 3),
    "behind its header": (1, 5),
    "in it": (2, 5000),
    "before its last byte": (2, RECORD + 21),
}


@pytest.mark.parametrize(("good", "more"), CUTS.values(), ids=CUTS)
@pytest.mark.parametrize("head", [SIZED, OPEN], ids=["sized", "to the end"])
def test_a_connection_that_ends_within_a_body_breaks_it(
    head: bytes, good: int, more: int, tmp_path: Path
) -> None:
    """Whether the body has a length or not: an end that the other side did not sign is none."""

    def converse(peer: Peer) -> None:
        peer.greet()
        peer.request()
        whole_records = peer.encrypted(head, *(BODY[n * RECORD :][:RECORD] for n in range(good)))
        part = peer.encrypted(BODY[good * RECORD :][:RECORD])[:more]
        peer.sock.sendall(whole_records + part)
        peer.sock.shutdown(socket.SHUT_WR)
        peer.take()

    with serving(tmp_path, converse) as send:
        assert until_broken(send()) == BODY[: good * RECORD]


def test_a_body_without_a_length_ends_where_the_other_side_says(tmp_path: Path) -> None:
    def converse(peer: Peer) -> None:
        peer.greet()
        peer.request()
        peer.sock.sendall(peer.encrypted(OPEN, BODY) + peer.farewell())

    with serving(tmp_path, converse) as send:
        assert whole(send()) == BODY


@pytest.mark.parametrize("at", [0, 5, 1000, -1])
def test_a_damaged_record_breaks_a_body_behind_those_that_were_whole(
    at: int, tmp_path: Path
) -> None:
    def converse(peer: Peer) -> None:
        peer.greet()
        peer.request()
        good = peer.encrypted(SIZED, BODY[:RECORD])
        bad = bytearray(peer.encrypted(BODY[RECORD : 2 * RECORD]))
        bad[at] ^= 1
        peer.sock.sendall(good + bad + peer.encrypted(BODY[2 * RECORD :]))
        peer.take()

    with serving(tmp_path, converse) as send:
        assert until_broken(send()) == BODY[:RECORD]


BEHIND: dict[str, Callable[[Peer], bytes]] = {
    "an answer nobody asked for": lambda peer: peer.encrypted(EMPTY),
    "the end": Peer.farewell,
    "half a record": lambda peer: peer.encrypted(EMPTY)[:30],
}


@pytest.mark.parametrize("behind", BEHIND.values(), ids=BEHIND)
def test_what_comes_behind_an_answer_ends_its_connection(
    behind: Callable[[Peer], bytes], tmp_path: Path
) -> None:
    def converse(peer: Peer) -> None:
        peer.greet()
        peer.request()
        peer.sock.sendall(peer.encrypted(SIZED, BODY) + behind(peer))
        peer.sock.shutdown(socket.SHUT_WR)
        peer.take()  # nothing more is asked here: this is the end

    pace = Pace(ceiling=4)
    with serving(tmp_path, converse, answering(EMPTY), pace=pace) as send:
        assert whole(send()) == BODY
        assert whole(send()) == b""
    assert pace.counts.retries == 0


def held(release: threading.Event) -> Callable[[Peer], None]:
    """Sends a whole record of a body and half of another, and no more."""

    def converse(peer: Peer) -> None:
        peer.greet()
        peer.request()
        records = peer.encrypted(SIZED, BODY)
        peer.sock.sendall(records[: RECORD + RECORD // 2])
        release.wait()

    return converse


def test_half_a_record_is_waited_for_until_the_work_is_called_off(tmp_path: Path) -> None:
    pace, release = Pace(ceiling=4), threading.Event()
    with serving(tmp_path, held(release), pace=pace) as send:
        answer = send()
        view = memoryview(bytearray(len(BODY)))
        got = 0
        while got < RECORD:
            got += answer.body.read_into(view[got:])
        assert view[:got] == BODY[:RECORD]
        pace.stop()
        with pytest.raises(Stopped):
            answer.body.read_into(view)
        release.set()


def test_half_a_record_is_not_waited_for_for_ever(tmp_path: Path) -> None:
    now = [0.0]

    def clock() -> float:
        now[0] += 1.0
        return now[0]

    release = threading.Event()
    with serving(tmp_path, held(release), pace=Pace(ceiling=4, clock=clock)) as send:
        assert until_broken(send(), BodyStalled) == BODY[:RECORD]
        release.set()


@pytest.mark.parametrize("most", [777, 30_000, 1 << 20])
def test_a_body_goes_out_whole_however_little_is_taken_at_a_time(
    most: int, narrow: Callable[[int], None], tmp_path: Path
) -> None:
    body = random.Random(7).randbytes(400_003)
    got = bytearray()

    def converse(peer: Peer) -> None:
        peer.greet()
        for number in range(1, 3):
            got.extend(peer.request().partition(b"\r\n\r\n")[2])
            while len(got) < number * len(body):
                got.extend(peer.read(65536))
            peer.sock.sendall(peer.encrypted(EMPTY))

    narrow(most)
    with serving(tmp_path, converse) as send:
        for _ in range(2):
            assert whole(send(body)) == b""
    assert got == body + body


def test_who_is_not_trusted_hears_why(tmp_path: Path) -> None:
    heard: list[str] = []

    def converse(peer: Peer) -> None:
        try:
            peer.greet()
            peer.read(1)
        except ssl.SSLError as error:
            heard.append(error.reason)

    other = tmp_path / "other"
    other.mkdir()
    stranger, _ = self_signed(other)
    with serving(tmp_path, converse, trusted=stranger) as send, pytest.raises(Untrusted):
        send()
    assert len(heard) == 1
    assert heard[0].endswith(("UNKNOWN_CA", "BAD_CERTIFICATE"))


HANDSHAKES: dict[str, Sequence[bytes]] = {
    "nothing": [],
    "half a record": [b"\x16\x03\x03\x01\x00\x02"],
    "no TLS": [b"HTTP/1.1 400 Bad Request\r\n\r\n"],
}


@pytest.mark.parametrize("said", HANDSHAKES.values(), ids=HANDSHAKES)
def test_a_handshake_that_is_none(said: Sequence[bytes], tmp_path: Path) -> None:
    def converse(peer: Peer) -> None:
        peer.take()
        for piece in said:
            peer.sock.sendall(piece)
        peer.sock.shutdown(socket.SHUT_WR)
        peer.sock.recv(65536)

    with serving(tmp_path, converse) as send, pytest.raises(TransportError) as caught:
        send()
    assert type(caught.value) is HandshakeFailed
