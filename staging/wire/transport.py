"""What moves the bytes of a request that is signed already: the contract of the modules `raw` and `crt`.

A transport sends what it is given, byte by byte, and hands the answer back; it knows neither S3 nor an
SDK. It follows no redirect and repeats nothing, but for one case: a kept connection that the server has
closed in the meantime is replaced by a new one, once, when nothing of an answer came. Whether a request
that failed is made again is for others to say.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

CONNECT_TIMEOUT: Final = 10.0  # seconds
READ_TIMEOUT: Final = 60.0  # seconds without a single byte

TICK: Final = 0.5
"""Seconds after which a blocked transport looks whether its work was called off or is too slow."""


class TransportError(Exception):
    """A request without an answer."""


class NotConnected(TransportError):
    """Nobody listens at the address, or it has none."""


class ConnectTimedOut(TransportError):
    """The address did not answer in `CONNECT_TIMEOUT` seconds."""


class Untrusted(TransportError):
    """The other side's certificate is not to be trusted, or ours say nothing: no repeat mends that."""


class HandshakeFailed(TransportError):
    """TLS did not come about, for another reason."""


class Closed(TransportError):
    """The connection ended before the answer did, or what came was no HTTP.

    `silent` says that not one byte of an answer came.
    """

    def __init__(self, message: str, *, silent: bool = False) -> None:
        super().__init__(message)
        self.silent = silent


class TimedOut(TransportError):
    """Nothing moved for `READ_TIMEOUT` seconds, or too little for the progress floor."""


class Origin(NamedTuple):
    """Where connections go to."""

    tls: bool
    host: str
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A signed request.

    `headers` are complete but for what HTTP itself needs; `streams` says that the caller reads the
    body of a good answer. `tag` is the same for every attempt at the same bytes.
    """

    method: str
    origin: Origin
    target: str
    headers: Sequence[tuple[str, str]]
    body: bytes | bytearray
    streams: bool
    tag: str


class AnswerBody(Protocol):
    """The body of an answer, read by one thread."""

    def read_into(self, view: memoryview) -> int:
        """Read some bytes into `view`; 0 means the body is over. Raises BodyBroken."""
        ...

    def close(self) -> None:
        """Keep the connection if the body was read to its end, or else drop it."""
        ...


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer whose head has come. Names of headers are as they were sent."""

    status: int
    headers: Sequence[tuple[str, str]]
    body: AnswerBody


class Transport(Protocol):
    """Sends requests. Safe to use from several threads."""

    def send(self, request: Request) -> Answer:
        """Send a request and return its answer. Raises TransportError, Stopped."""
        ...

    def close(self) -> None:
        """Close idle connections. No request may follow."""
        ...


class BodyReader:
    """A buffer as a file to read: for those who take a body in pieces, without a copy of it."""

    def __init__(self, body: bytes | bytearray) -> None:
        self._view = memoryview(body)
        self._at = 0

    def read(self, size: int = -1) -> memoryview:
        """The next bytes, at most `size`, as a view of the buffer."""
        end = len(self._view) if size < 0 else self._at + size
        piece = self._view[self._at : end]
        self._at += len(piece)
        return piece

    def readinto(self, buffer: memoryview) -> int:
        """Copy the next bytes into `buffer`; returns how many."""
        piece = self.read(len(buffer))
        buffer[: len(piece)] = piece
        return len(piece)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to an offset; returns it from the start."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: len(self._view)}[whence]
        self._at = min(max(base + offset, 0), len(self._view))
        return self._at

    def tell(self) -> int:
        """Where the next read begins."""
        return self._at


def head_of(request: Request) -> list[tuple[str, str]]:
    """The headers of a request, with what HTTP needs.

    Raises ValueError for what would break out of its line.
    """
    host = f"[{request.origin.host}]" if ":" in request.origin.host else request.origin.host
    if request.origin.port != (443 if request.origin.tls else 80):
        host += f":{request.origin.port}"
    given = {name.lower() for name, _ in request.headers}
    added = {"Host": host, "Accept-Encoding": "identity"}
    headers = [(name, value) for name, value in added.items() if name.lower() not in given]
    headers += request.headers
    if _BREAKS.search(f"{request.method}{request.target}") or any(
        _BREAKS_LINE.search(text) for pair in headers for text in pair
    ):
        raise ValueError("a request with a line break in its head")
    return headers


_BREAKS: Final = re.compile(r"[\x00-\x20\x7f]")
_BREAKS_LINE: Final = re.compile(r"[\x00\r\n]")
