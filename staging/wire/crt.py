"""A transport over awscrt: its HTTP connections and its TLS, with requests of our own.

Not its S3 client, which splits, retries and signs by itself. Its event loop's threads move the bytes, through
Python's buffers: 16 KiB at a time, under the GIL. Only imported when it is asked for: a pod has no awscrt.

Invariants: as those of `staging.wire.raw`. Do not fork after making one.
Not guaranteed: that the bandwidth limit holds within one request body; it is paid for as a whole.
"""

from __future__ import annotations

import concurrent.futures
import threading
from collections import defaultdict, deque
from typing import Any, Final

from awscrt.exceptions import AwsCrtError
from awscrt.http import HttpClientConnection, HttpHeaders, HttpRequest
from awscrt.io import ClientTlsContext, SocketOptions, TlsContextOptions

from staging.wire.floor import Meter, TooSlow
from staging.wire.pace import Pace
from staging.wire.transport import (
    CONNECT_TIMEOUT,
    READ_TIMEOUT,
    TICK,
    Answer,
    BodyReader,
    Closed,
    ConnectTimedOut,
    NotConnected,
    Origin,
    Request,
    TimedOut,
    TransportError,
    Untrusted,
    head_of,
)
from staging.wire.wire import BodyBroken, BodyStalled, Stopped

_WINDOW: Final = 4 * 1024 * 1024  # bytes of an answer that may wait in memory for their reader


class CrtTransport:
    """Requests over awscrt. `certificates` is a file of what to trust; `idle` connections are kept."""

    def __init__(self, *, pace: Pace, certificates: str, idle: int) -> None:
        self._pace = pace
        self._certificates = certificates
        self._idle_limit = idle
        self._lock = threading.Lock()
        self._idle: defaultdict[Origin, list[_Kept]] = defaultdict(list)
        self._tls: Any = None
        self._closed = False

    def send(self, request: Request) -> Answer:
        """Send a request and return its answer. Raises TransportError, Stopped."""
        self._pace.spend(len(request.body))
        kept = self._take(request.origin)
        if kept is not None:
            try:
                return self._exchange(kept, request)
            except Closed as error:
                if not (error.silent and kept.good):
                    raise
            self._pace.resent()
        return self._exchange(self._connect(request.origin), request)

    def close(self) -> None:
        """Close idle connections, and those in use when they are given back."""
        with self._lock:
            self._closed = True
            idle = [kept for some in self._idle.values() for kept in some]
            self._idle.clear()
        for kept in idle:
            kept.connection.close()

    def keep(self, kept: _Kept) -> None:
        """Take a connection back whose answer was read to its last byte."""
        with self._lock:
            some = self._idle[kept.origin]
            if not self._closed and len(some) < self._idle_limit and kept.connection.is_open():
                some.append(kept)
                return
        kept.connection.close()

    def _take(self, origin: Origin) -> _Kept | None:
        while True:
            with self._lock:
                some = self._idle[origin]
                if not some:
                    return None
                kept = some.pop()
            if kept.connection.is_open():
                return kept

    def _connect(self, origin: Origin) -> _Kept:
        options = SocketOptions()
        options.connect_timeout_ms = int(CONNECT_TIMEOUT * 1000)
        options.keep_alive = True
        connecting = HttpClientConnection.new(
            origin.host,
            origin.port,
            socket_options=options,
            tls_connection_options=self._tls_options(origin) if origin.tls else None,
            manual_window_management=True,
            initial_window_size=_WINDOW,
        )
        try:
            # DNS and TLS have timeouts of their own; this one is for what they forget.
            return _Kept(origin, connecting.result(3 * CONNECT_TIMEOUT))
        except concurrent.futures.TimeoutError as error:
            raise ConnectTimedOut(f"no connection in {3 * CONNECT_TIMEOUT:.0f} seconds") from error
        except AwsCrtError as error:
            raise _in_our_words(error) from error

    def _tls_options(self, origin: Origin) -> Any:
        with self._lock:
            if self._tls is None:
                options = TlsContextOptions()
                try:
                    options.override_default_trust_store_from_path(None, self._certificates)
                    self._tls = ClientTlsContext(options)
                except (
                    OSError,
                    RuntimeError,
                ) as error:  # awscrt has no class for all of its errors
                    raise Untrusted(f"the certificates to trust cannot be used: {error}") from error
        options = self._tls.new_connection_options()
        options.set_server_name(origin.host)
        return options

    def _exchange(self, kept: _Kept, request: Request) -> Answer:
        try:
            answer = _Exchange(self, kept, request, self._pace).answer()
        except BaseException:
            kept.connection.close()
            raise
        kept.good = answer.status < 500
        return answer


def _is_closed(error: BaseException | None) -> bool:
    """True when the connection was closed, rather than used for what is no HTTP."""
    return str(getattr(error, "name", "")).endswith("CLOSED")


class _Kept:
    """A connection."""

    def __init__(self, origin: Origin, connection: Any) -> None:
        self.origin = origin
        self.connection = connection
        self.good = False  # whether its last answer was one that a working server gives


class _Exchange:
    """A request on its way and the answer as it comes; also the answer's body.

    The event loop's thread writes right into the buffer of who reads, while that one waits.
    """

    def __init__(self, transport: CrtTransport, kept: _Kept, request: Request, pace: Pace) -> None:
        self._transport = transport
        self._kept = kept
        self._request = request
        self._pace = pace
        self._changed = threading.Condition()
        self._head: tuple[int, list[tuple[str, str]]] | None = None
        self._error: BaseException | None = None
        self._done = False
        self._target: memoryview | None = None
        self._filled = 0
        self._spare: deque[memoryview] = deque()
        self._meter: Meter | None = None
        self._left: int | None = None  # of the body, where the answer told its length
        self._over = False
        self._body = BodyReader(request.body)
        message = HttpRequest(
            request.method,
            request.target,
            HttpHeaders(head_of(request)),
            self._body if request.body else None,
        )
        try:
            self._stream = kept.connection.request(message, self._on_response, self._on_body)
            self._stream.completion_future.add_done_callback(self._on_done)
            self._stream.activate()
        except AwsCrtError as error:
            raise Closed(str(error), silent=True) from error

    # On the event loop's thread

    def _on_response(
        self, *, status_code: int, headers: list[tuple[str, str]], **_: object
    ) -> None:
        with self._changed:
            self._head = status_code, headers
            self._changed.notify()

    def _on_body(self, *, chunk: bytes, **_: object) -> None:
        with self._changed:
            piece = memoryview(chunk)
            if self._target is not None:
                count = min(len(self._target) - self._filled, len(piece))
                self._target[self._filled : self._filled + count] = piece[:count]
                self._filled += count
                piece = piece[count:]
                if self._filled == len(self._target):
                    self._changed.notify()
            if piece:
                self._spare.append(piece)

    def _on_done(self, future: concurrent.futures.Future[int]) -> None:
        with self._changed:
            self._done = True
            self._error = future.exception()
            self._changed.notify()

    # On the thread of who asked

    def answer(self) -> Answer:
        """Wait for the head of the answer. Raises TransportError, Stopped."""
        request = self._request
        meter = self._pace.meter("up", request.tag, len(request.body))
        waited, sent = 0.0, 0
        while True:
            self._pace.check()
            began = self._pace.clock()
            with self._changed:
                if self._head is None and not self._done:
                    self._changed.wait(TICK)
                head, done, error = self._head, self._done, self._error
            spent = self._pace.clock() - began
            moved, sent = self._body.tell() - sent, self._body.tell()
            if head is not None:
                break
            if done:
                raise Closed(str(error), silent=_is_closed(error))
            waited = 0.0 if moved else waited + spent
            if waited >= READ_TIMEOUT:
                raise TimedOut(f"no answer in {READ_TIMEOUT:.0f} seconds")
            try:
                if sent < len(request.body):
                    meter.moved(moved, spent)
            except TooSlow as slow:
                raise TimedOut(f"sending was too slow: {slow}") from slow
        status, headers = head
        given = {name.lower(): value for name, value in headers}
        framed = "content-length" in given or "transfer-encoding" in given
        if not framed and request.method != "HEAD" and status not in (204, 304):
            # awscrt reads a body that only the connection's end delimits as none at all.
            raise Closed("an answer without a length")
        length = given.get("content-length", "")
        size = int(length) if length.isdigit() else 0
        if request.streams and size:
            self._left = size
            self._meter = self._pace.meter("down", request.tag, size)
        return Answer(status, headers, self)

    def read_into(self, view: memoryview) -> int:
        """Read some bytes into `view`; 0 means the body is over. Raises BodyBroken, Stopped."""
        if self._over or not view:
            return 0
        try:
            count = self._read(view[: self._pace.block])
            self._pace.spend(count)
        except (BodyBroken, Stopped):
            self.close()
            raise
        except TooSlow as error:
            self.close()
            raise BodyStalled(f"the body came too slowly: {error}") from error
        if count:
            self._stream.update_window(count)
            if self._left is not None:
                self._left -= count
        return count

    def _read(self, view: memoryview) -> int:
        count = 0
        while self._spare and count < len(view):
            with self._changed:
                piece = self._spare.popleft()
                fits = min(len(piece), len(view) - count)
                if fits < len(piece):
                    self._spare.appendleft(piece[fits:])
            view[count : count + fits] = piece[:fits]
            count += fits
        waited = 0.0
        while not count:
            self._pace.check()
            began = self._pace.clock()
            with self._changed:
                if self._spare:
                    return self._read(view)
                if self._done:
                    break
                self._target, self._filled = view, 0
                self._changed.wait(TICK)
                count, self._target = self._filled, None
            spent = self._pace.clock() - began
            if self._meter is not None:
                self._meter.moved(count, spent)
            waited += spent
            if not count and waited >= READ_TIMEOUT:
                raise BodyStalled(f"nothing came for {waited:.0f} seconds")
        if count:
            return count
        if self._error is not None:
            raise BodyBroken(f"the body broke off: {self._error}")
        self._over = True
        if self._meter is not None:
            self._meter.done()
        self._transport.keep(self._kept)
        return 0

    def close(self) -> None:
        """Keep the connection if the body was read to its end, or else drop it."""
        if self._over:
            return
        with self._changed:
            if self._left == 0 and not self._done:  # the last byte is here before the news of it
                self._changed.wait(TICK)
            whole = self._done and self._error is None and not self._spare
        self._over = True
        if whole:
            self._transport.keep(self._kept)
        else:
            self._kept.connection.close()


def _in_our_words(error: AwsCrtError) -> TransportError:
    text = f"{error.name}: {error.message}"
    if "_TLS_" in error.name:
        return Untrusted(text)
    if "TIMEOUT" in error.name:
        return ConnectTimedOut(text)
    return NotConnected(text)
