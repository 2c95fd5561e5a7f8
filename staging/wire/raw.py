"""A transport of our own: HTTP/1.1 over bare sockets, as thin as it goes.

A body goes from the caller's buffer to the socket and from the socket into the caller's buffer; nothing in
between copies or keeps it. Connections are kept and used again. Plain sockets block in the kernel for whole
blocks with the GIL released; TLS goes record by record, as `ssl` has it.

Invariants: a connection is used again only when the answer on it was read to its last byte; a request is sent
twice only if the first time was over a kept connection that was good before, and on which not one byte of an
answer came; who waits for bytes looks every `TICK` whether the work was called off.
Not guaranteed: proxies, redirects, HTTP/2, content encodings: nobody asks for them here. Looking up a name
and connecting end with their timeouts, and do not look.
"""

from __future__ import annotations

import select
import socket
import ssl
import struct
import threading
from collections import defaultdict
from collections.abc import Callable
from typing import Final

from staging.wire.floor import Meter, TooSlow
from staging.wire.http1 import Head, request_head
from staging.wire.pace import Pace
from staging.wire.transport import (
    CONNECT_TIMEOUT,
    READ_TIMEOUT,
    TICK,
    Answer,
    Closed,
    ConnectTimedOut,
    HandshakeFailed,
    NotConnected,
    Origin,
    Request,
    TimedOut,
    Untrusted,
)
from staging.wire.wire import BodyBroken, BodyStalled

_HEAD_LIMIT: Final = 64 * 1024  # bytes of an answer's head, or of one line of chunked framing
_READ_SIZE: Final = 16 * 1024  # bytes to read while looking for the end of a head
_TOGETHER: Final = 16 * 1024  # a body up to here goes out in one piece with its head

_RECORD: Final = 16 * 1024
"""Bytes that one record of TLS holds at most, and one read brings."""

_INTERIM: Final = 10  # answers of kind 1xx before the real one


class RawTransport:
    """Requests over sockets. `tls` is the context for https; `idle` connections are kept per origin."""

    def __init__(self, *, pace: Pace, tls: Callable[[], ssl.SSLContext], idle: int) -> None:
        self._pace = pace
        self._make_tls = tls
        self._tls: ssl.SSLContext | None = None
        self._idle_limit = idle
        self._lock = threading.Lock()
        self._idle: defaultdict[Origin, list[_Connection]] = defaultdict(list)
        self._closed = False

    def send(self, request: Request) -> Answer:
        """Send a request and return its answer. Raises TransportError, Stopped."""
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
            idle = [connection for kept in self._idle.values() for connection in kept]
            self._idle.clear()
        for connection in idle:
            connection.close()

    def keep(self, connection: _Connection) -> None:
        """Take a connection back whose answer was read to its last byte."""
        with self._lock:
            kept = self._idle[connection.origin]
            if not self._closed and len(kept) < self._idle_limit:
                kept.append(connection)
                return
        connection.close()

    def _take(self, origin: Origin) -> _Connection | None:
        while True:
            with self._lock:
                kept = self._idle[origin]
                if not kept:
                    return None
                connection = kept.pop()
            if not connection.has_something_to_read():
                return connection
            connection.close()  # nothing was asked: it is the end, or nothing that could be trusted

    def _connect(self, origin: Origin) -> _Connection:
        try:
            plain = socket.create_connection((origin.host, origin.port), CONNECT_TIMEOUT)
        except TimeoutError as error:
            raise ConnectTimedOut(str(error)) from error
        except (OSError, UnicodeError) as error:  # a name may be none that DNS can be asked for
            raise NotConnected(str(error)) from error
        try:
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            if not origin.tls:
                return _Connection(self, origin, _Plain(plain), self._pace)
            return _Connection(
                self, origin, _Tls(self._wrap(plain, origin), self._pace), self._pace
            )
        except BaseException:
            plain.close()
            raise

    def _wrap(self, plain: socket.socket, origin: Origin) -> ssl.SSLSocket:
        with self._lock:
            if self._tls is None:
                try:
                    self._tls = self._make_tls()
                except OSError as error:
                    raise Untrusted(f"the certificates to trust cannot be read: {error}") from error
            context = self._tls
        try:
            # Without its parting word an end is none: anybody on the way could cut a body without a length.
            return context.wrap_socket(
                plain, server_hostname=origin.host, suppress_ragged_eofs=False
            )
        except TimeoutError as error:
            raise ConnectTimedOut(str(error)) from error
        except ssl.SSLCertVerificationError as error:
            raise Untrusted(str(error)) from error
        except ssl.SSLError as error:
            raise HandshakeFailed(str(error)) from error
        except OSError as error:
            raise Closed(str(error)) from error

    def _exchange(self, connection: _Connection, request: Request) -> Answer:
        try:
            whole = connection.write(request)
            return connection.read_answer(request, reusable=whole)
        except BaseException:
            connection.close()
            raise


class _Plain:
    """A socket that blocks in the kernel, and comes back every tick to tell how far it got."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        tick = struct.pack("ll", int(TICK), int(TICK % 1 * 1_000_000))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, tick)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, tick)
        sock.settimeout(None)

    def has_more(self) -> bool:
        """Whether bytes were taken from the kernel that nobody has read."""
        return False

    def send(self, view: memoryview) -> int:
        """Send from the view; returns bytes sent, 0 after a tick without any."""
        try:
            return self.socket.send(view)
        except BlockingIOError:
            return 0

    def receive(self, view: memoryview, *, fill: bool) -> int | None:
        """Read into the view; returns bytes read, 0 at the end, None after a tick without any."""
        try:
            return self.socket.recv_into(view, len(view), socket.MSG_WAITALL if fill else 0)
        except BlockingIOError:
            return None


class _Tls:
    """The same over TLS. A read or write that timed out is made again with the same bytes, as TLS wants."""

    def __init__(self, sock: ssl.SSLSocket, pace: Pace) -> None:
        self.socket = sock
        self._clock = pace.clock
        sock.settimeout(TICK)

    def has_more(self) -> bool:
        return self.socket.pending() > 0

    def send(self, view: memoryview) -> int:
        done = 0
        until = self._clock() + TICK
        try:
            while done < len(view):
                done += self.socket.send(view[done:])
                if self._clock() > until:
                    break
        except TimeoutError:
            return done
        return done

    def receive(self, view: memoryview, *, fill: bool) -> int | None:
        done = 0
        until = self._clock() + TICK
        try:
            while done < len(view):
                # Told how many bytes, `ssl` need not make a view of the view to find out.
                count = self.socket.recv_into(view[done:], len(view) - done)
                done += count
                # Whole records mean that bytes flow: the view is full before anybody has to look around.
                if not fill or (count < _RECORD and (not count or self._clock() > until)):
                    break
        except TimeoutError:
            return done or None
        except OSError:
            if not done:
                raise  # else what was whole is good, and the next read meets the error again
        return done


class _Connection:
    """One connection, used by one thread at a time."""

    def __init__(
        self, transport: RawTransport, origin: Origin, link: _Plain | _Tls, pace: Pace
    ) -> None:
        self.origin = origin
        self.good = False  # whether its last answer was one that a working server gives
        self._transport = transport
        self._link = link
        self.pace = pace
        self._rest = b""  # what came and was not read yet
        self._closed = False

    def has_something_to_read(self) -> bool:
        """Whether bytes, or the end, wait."""
        poll = select.poll()
        poll.register(self._link.socket, select.POLLIN)
        return bool(poll.poll(0))

    def close(self) -> None:
        """Close the socket."""
        self._closed = True
        self._link.socket.close()

    def finish(self, *, reusable: bool) -> None:
        """The answer was read to its end."""
        if self._closed:
            return
        if reusable and not self._rest and not self._link.has_more():
            self._transport.keep(self)
        else:
            self.close()

    def write(self, request: Request) -> bool:
        """Send a request; returns whether all of it went. Raises Closed, TimedOut, Stopped."""
        head = memoryview(request_head(request))
        body = memoryview(request.body)
        meter = self.pace.meter("up", request.tag, len(head) + len(body))
        block = self.pace.block
        try:
            if len(body) <= _TOGETHER and block is None:
                self._write(memoryview(b"".join((head, body))), meter)
            else:
                self._write(head, meter)
                for at in range(0, len(body), block or max(len(body), 1)):
                    piece = body[at : at + block] if block else body
                    self.pace.spend(len(piece))
                    self._write(piece, meter)
        except TooSlow as error:
            raise TimedOut(f"sending was too slow: {error}") from error
        except (BrokenPipeError, ConnectionResetError):
            return False  # who refuses a request may answer and hang up before all was read
        except OSError as error:
            raise Closed(str(error), silent=True) from error
        meter.done()
        return True

    def _write(self, view: memoryview, meter: Meter) -> None:
        waited = 0.0
        while view:
            self.pace.check()
            began = self.pace.clock()
            count = self._link.send(view)
            spent = self.pace.clock() - began
            waited = 0.0 if count else waited + spent
            if waited >= READ_TIMEOUT:
                raise TooSlow(f"nothing went out for {waited:.0f} seconds")
            meter.moved(count, spent)
            view = view[count:]

    def read_answer(self, request: Request, *, reusable: bool) -> Answer:
        """Read an answer up to its body. Raises Closed, TimedOut, Stopped."""
        for _ in range(_INTERIM + 1):
            head = Head.parse(self._read_to(b"\r\n\r\n"))
            if head.status >= 200:  # before it come 100 Continue, 103 Early Hints
                self.good = head.status < 500
                body = head.body(self, request, reusable=reusable)
                return Answer(head.status, head.headers, body)
        raise Closed("an answer that does not begin")

    def _read_to(self, end: bytes) -> bytes:
        """Read up to and with `end`, which is not part of what is returned. Raises Closed, TimedOut."""
        scratch = bytearray(_READ_SIZE)
        while (at := self._rest.find(end)) < 0:
            if len(self._rest) > _HEAD_LIMIT:
                raise Closed("an answer whose head does not end")
            try:
                count = self._receive(memoryview(scratch), fill=False, meter=None)
            except BodyStalled as error:
                raise TimedOut(f"no answer in {READ_TIMEOUT:.0f} seconds") from error
            except OSError as error:
                raise Closed(str(error), silent=not self._rest) from error
            if not count:
                raise Closed("the connection ended without an answer", silent=not self._rest)
            self._rest += scratch[:count]
        found, self._rest = self._rest[:at], self._rest[at + len(end) :]
        return found

    def read_line(self) -> bytes:
        """A line of chunked framing. Raises BodyBroken."""
        try:
            return self._read_to(b"\r\n")
        except TimedOut as error:
            raise BodyStalled(str(error)) from error
        except Closed as error:
            raise BodyBroken(str(error)) from error

    def receive(self, view: memoryview, *, meter: Meter | None) -> int:
        """Read some bytes; 0 is the end. Raises BodyStalled, TooSlow, Stopped, OSError."""
        if self._rest:
            count = min(len(self._rest), len(view))
            view[:count], self._rest = self._rest[:count], self._rest[count:]
            return count
        return self._receive(view, fill=True, meter=meter)

    def _receive(self, view: memoryview, *, fill: bool, meter: Meter | None) -> int:
        waited = 0.0
        while True:
            self.pace.check()
            began = self.pace.clock()
            got = self._link.receive(view, fill=fill)
            spent = self.pace.clock() - began
            if meter is not None:
                meter.moved(got or 0, spent)
            if got is not None:
                return got
            waited += spent
            if waited >= READ_TIMEOUT:
                raise BodyStalled(f"nothing came for {waited:.0f} seconds")
