"""HTTP/1.1 as an S3 client speaks it: request heads, bodies with a length, responses with a length.

Chunked and aws-chunked request bodies are read to their end and then refused: a client that sends
them does not stream its payload the way the product promises, and a test has to notice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

STREAM_LIMIT = 1 << 20
"""Bytes a connection buffers before the socket is left alone; also the longest request head."""

WRITE_SIZE = 1 << 20
"""Bytes of a response body that are handed to the socket at a time."""

REASONS = {
    100: "Continue",
    200: "OK",
    204: "No Content",
    206: "Partial Content",
    301: "Moved Permanently",
    304: "Not Modified",
    307: "Temporary Redirect",
    400: "Bad Request",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    409: "Conflict",
    411: "Length Required",
    412: "Precondition Failed",
    416: "Requested Range Not Satisfiable",
    429: "Too Many Requests",
    500: "Internal Server Error",
    501: "Not Implemented",
    503: "Service Unavailable",
}

BODILESS = frozenset({204, 304})


class MalformedHead(ValueError):
    """The bytes on the connection are no HTTP/1.1 request."""


class ChunkedBody(Exception):
    """The request body came in a chunked encoding; it has been read and thrown away."""


@dataclass(frozen=True, slots=True)
class Head:
    """The first lines of a request. Header names are in lower case; the target is as it was sent."""

    method: str
    target: str
    headers: Mapping[str, str]

    @property
    def content_length(self) -> int:
        return int(self.headers.get("content-length", "0"))

    @property
    def is_chunked(self) -> bool:
        return "transfer-encoding" in self.headers

    @property
    def is_aws_chunked(self) -> bool:
        return (
            "aws-chunked" in self.headers.get("content-encoding", "")
            or "x-amz-trailer" in self.headers
            or self.headers.get("x-amz-content-sha256", "").startswith("STREAMING-")
        )


class Pause(Protocol):
    """Something a response waits for in the middle of its body."""

    async def wait(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Response:
    """An answer, its body in pieces. To a HEAD only the length of the body goes out.

    `cut_after` sends that many body bytes and closes the connection; `pause` is waited for after
    `pause_after` body bytes. Neither changes the headers: the client is promised the whole body.
    """

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Sequence[bytes | memoryview] = ()
    cut_after: int | None = None
    pause_after: int = 0
    pause: Pause | None = None

    @property
    def body_length(self) -> int:
        return sum(memoryview(piece).nbytes for piece in self.body)

    @property
    def sent_length(self) -> int:
        """Body bytes that go on the wire."""
        whole = self.body_length
        return whole if self.cut_after is None else min(whole, self.cut_after)

    def data(self) -> bytes:
        return b"".join(self.body)


async def read_head(reader: asyncio.StreamReader) -> Head | None:
    """The next request of a connection, or None at its end. Raises MalformedHead."""
    try:
        raw = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise MalformedHead(
                f"connection ended within a request head: {error.partial[:80]!r}"
            ) from None
        return None
    first, *lines = raw[:-4].decode("latin-1").split("\r\n")
    words = first.split(" ")
    if len(words) != 3 or words[2] != "HTTP/1.1":
        raise MalformedHead(f"not an HTTP/1.1 request line: {first[:80]!r}")
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon:
            raise MalformedHead(f"not a header line: {line[:80]!r}")
        headers[name.lower()] = value.strip()
    return Head(words[0], words[1], headers)


def invite_body(writer: asyncio.StreamWriter, head: Head) -> None:
    """Tell a client that waits for `100 Continue` to go on."""
    if head.headers.get("expect", "").lower() == "100-continue":
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")


async def read_body(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: Head
) -> bytes:
    """The request's body. Raises ChunkedBody, after reading it, when it has a chunked encoding."""
    invite_body(writer, head)
    if head.is_chunked:
        await _skip_chunks(reader)
        raise ChunkedBody
    body = await reader.readexactly(head.content_length)
    if head.is_aws_chunked:
        raise ChunkedBody
    return body


async def _skip_chunks(reader: asyncio.StreamReader) -> None:
    while True:
        line = await reader.readuntil(b"\r\n")
        size = int(line.split(b";")[0], 16)
        if size == 0:
            break
        await reader.readexactly(size + 2)
    while await reader.readuntil(b"\r\n") != b"\r\n":
        pass


async def write_response(
    writer: asyncio.StreamWriter, method: str, response: Response, *, close: bool
) -> None:
    """Send an answer, or as much of it as `cut_after` allows."""
    headers = dict(response.headers)
    if response.status not in BODILESS:
        headers["Content-Length"] = str(response.body_length)
    if close:
        headers["Connection"] = "close"
    lines = [f"HTTP/1.1 {response.status} {REASONS.get(response.status, 'Status')}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    writer.write("\r\n".join([*lines, "", ""]).encode("latin-1"))
    if method != "HEAD" and response.status not in BODILESS:
        end = response.sent_length
        if response.pause is None:
            await _write_pieces(writer, response.body, 0, end)
        else:
            middle = min(response.pause_after, end)
            await _write_pieces(writer, response.body, 0, middle)
            await response.pause.wait()
            await _write_pieces(writer, response.body, middle, end)
    await writer.drain()


async def _write_pieces(
    writer: asyncio.StreamWriter, pieces: Sequence[bytes | memoryview], start: int, stop: int
) -> None:
    position = 0
    for piece in pieces:
        view = memoryview(piece)
        low, high = max(start - position, 0), min(stop - position, view.nbytes)
        for offset in range(low, high, WRITE_SIZE):
            writer.write(view[offset : min(offset + WRITE_SIZE, high)])
            await writer.drain()
        position += view.nbytes
