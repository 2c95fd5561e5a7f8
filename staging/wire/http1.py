"""HTTP/1.1: the head of a request as bytes, and answers in every framing that servers use.

Invariants: a body ends where its framing says, or is BodyBroken; its connection is told that it may be used
again only when nothing of the answer is left on it. Answers that two readers could understand differently
are refused: several lengths, unknown encodings, headers without a name.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections import defaultdict
from dataclasses import dataclass
from typing import Final, Protocol

from staging.wire.floor import Meter, TooSlow
from staging.wire.pace import Pace
from staging.wire.transport import AnswerBody, Closed, Request, head_of
from staging.wire.wire import BodyBroken, BodyStalled, Stopped

_TRAILERS: Final = 100  # lines after the last piece of a chunked body

_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9]{2})(?: [^\r\n]*)?")
_CHUNK_SIZE = re.compile(rb"[0-9A-Fa-f]{1,16}")
_LENGTH = re.compile(r"[0-9]{1,19}")


class Connection(Protocol):
    """What bodies are read from."""

    @property
    def pace(self) -> Pace:
        """Pays for what is read."""
        ...

    def receive(self, view: memoryview, *, meter: Meter | None) -> int:
        """Read some bytes; 0 is the end. Raises BodyStalled, TooSlow, Stopped, OSError."""
        ...

    def read_line(self) -> bytes:
        """Read a line. Raises BodyBroken, Stopped."""
        ...

    def finish(self, *, reusable: bool) -> None:
        """The answer was read to its end."""
        ...

    def close(self) -> None:
        """The answer is given up."""
        ...


@dataclass(frozen=True, slots=True)
class Head:
    """The head of an answer."""

    version: int  # the 1 of HTTP/1.1
    status: int
    headers: list[tuple[str, str]]

    @classmethod
    def parse(cls, data: bytes) -> Head:
        """Read a head without its last, empty line. Raises Closed for what is none."""
        first, *lines = data.split(b"\r\n")
        match = _STATUS_LINE.fullmatch(first)
        if match is None:
            raise Closed("an answer that is no HTTP/1.1")
        headers = []
        for line in lines:
            name, colon, value = line.decode("latin-1").partition(":")
            if not colon or not name or name != name.strip():
                raise Closed("an answer with a broken header")
            headers.append((name, value.strip()))
        return cls(int(match[1]), int(match[2]), headers)

    def body(self, connection: Connection, request: Request, *, reusable: bool) -> AnswerBody:
        """The body that follows. Raises Closed for a framing that is none."""
        values: defaultdict[str, list[str]] = defaultdict(list)
        for name, value in self.headers:
            values[name.lower()].append(value)
        options = ",".join(values["connection"]).lower()
        reusable = reusable and "close" not in options
        reusable = reusable and (self.version == 1 or "keep-alive" in options)
        if request.method == "HEAD" or self.status in (204, 304):
            return _Sized(connection, request, 0, reusable)
        if values["transfer-encoding"]:
            if ",".join(values["transfer-encoding"]).lower() != "chunked":
                raise Closed("an answer in a transfer encoding that nobody asked for")
            return _Chunked(connection, request, reusable)
        if values["content-length"]:
            lengths = set(values["content-length"])
            if len(lengths) > 1 or not _LENGTH.fullmatch(min(lengths)):
                raise Closed("an answer without one valid Content-Length")
            return _Sized(connection, request, int(min(lengths)), reusable)
        return _ToTheEnd(connection, request)


def request_head(request: Request) -> bytes:
    """The first lines of a request. Raises ValueError for what would break out of its line."""
    lines = [f"{request.method} {request.target} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in head_of(request)]
    return "\r\n".join([*lines, "", ""]).encode()


class _Body(ABC):
    """The body of an answer; what its end is, subclasses know."""

    def __init__(self, connection: Connection, request: Request, size: int | None) -> None:
        self._connection = connection
        self._pace = connection.pace
        # S3 keeps a long Complete alive with a few blanks now and then: only data has to flow.
        self._meter = (
            self._pace.meter("down", request.tag, size) if size and request.streams else None
        )
        self._over = False

    def read_into(self, view: memoryview) -> int:
        if self._over or not view:
            return 0
        try:
            return self._read(view[: self._pace.block])
        except (BodyBroken, Stopped):
            self.close()
            raise
        except TooSlow as error:
            self.close()
            raise BodyStalled(f"the body came too slowly: {error}") from error
        except OSError as error:
            self.close()
            raise BodyBroken(str(error)) from error

    def close(self) -> None:
        if not self._over:
            self._over = True
            self._connection.close()

    @abstractmethod
    def _read(self, view: memoryview) -> int:
        """Read some bytes of what is left; 0 is the end."""

    def _receive(self, view: memoryview) -> int:
        count = self._connection.receive(view, meter=self._meter)
        self._pace.spend(count)
        return count

    def _finished(self, *, reusable: bool) -> None:
        self._over = True
        if self._meter is not None:
            self._meter.done()
        self._connection.finish(reusable=reusable)


class _Sized(_Body):
    """A body of a length that is known."""

    def __init__(self, connection: Connection, request: Request, size: int, reusable: bool) -> None:
        super().__init__(connection, request, size)
        self._left = size
        self._reusable = reusable
        if not size:
            self._finished(reusable=reusable)

    def _read(self, view: memoryview) -> int:
        count = self._receive(view[: self._left])
        if not count:
            raise BodyBroken(f"the connection ended {self._left} bytes before the body did")
        self._left -= count
        if not self._left:
            self._finished(reusable=self._reusable)
        return count


class _Chunked(_Body):
    """A body in pieces that say how long they are."""

    def __init__(self, connection: Connection, request: Request, reusable: bool) -> None:
        super().__init__(connection, request, None)
        self._left = 0  # of the piece that is being read
        self._reusable = reusable
        self._first = True

    def _read(self, view: memoryview) -> int:
        if not self._left:
            if not self._first and self._connection.read_line():
                raise BodyBroken("a piece of a chunked body is longer than it said")
            self._first = False
            size = self._connection.read_line().partition(b";")[0].strip()
            if not _CHUNK_SIZE.fullmatch(size):
                raise BodyBroken("a piece of a chunked body does not say its length")
            self._left = int(size, 16)
            if not self._left:
                if all(self._connection.read_line() for _ in range(_TRAILERS)):
                    raise BodyBroken("a chunked body whose trailers do not end")
                self._finished(reusable=self._reusable)
                return 0
        count = self._receive(view[: self._left])
        if not count:
            raise BodyBroken("the connection ended in the middle of a chunked body")
        self._left -= count
        return count


class _ToTheEnd(_Body):
    """A body that ends with its connection."""

    def __init__(self, connection: Connection, request: Request) -> None:
        super().__init__(connection, request, None)

    def _read(self, view: memoryview) -> int:
        count = self._receive(view)
        if not count:
            self._finished(reusable=False)
        return count
