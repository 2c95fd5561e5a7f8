"""The server's side of one connection: heads and bodies in, answers out, with as few copies as can be."""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from benchmarks.framing import Dechunker
from benchmarks.holdings import Network

BLOCK: Final = 256 * 1024
"""Bytes per read of a socket: what stays in the core's own cache."""
_MAX_HEAD: Final = 64 * 1024


class Refusal(Exception):
    """An answer that is an error, as S3 words it."""

    def __init__(self, status: int, code: str) -> None:
        super().__init__(code)
        self.status = status
        self.code = code


class Gone(Exception):
    """The client closed the connection."""


class Body:
    """The body of one request. Whatever of it was not read is dropped by `discard`."""

    def __init__(self, connection: Connection, headers: Mapping[str, str]) -> None:
        self._connection = connection
        self._http = Dechunker() if "chunked" in headers.get("transfer-encoding", "") else None
        framed = "aws-chunked" in headers.get("content-encoding", "") or headers.get(
            "x-amz-content-sha256", ""
        ).startswith("STREAMING-")
        self._aws = Dechunker() if framed else None
        self._left = 0 if self._http else int(headers.get("content-length", "0"))
        self._expects = headers.get("expect", "").lower() == "100-continue"
        self.payload = 0

    def discard(self) -> None:
        """Read to the end and drop it."""
        self._begin()
        if self._http is None and self._aws is None:
            self._connection.drop(self._left)
            self.payload += self._left
            self._left = 0
            return
        for _ in self.views():
            pass

    def views(self) -> Iterator[memoryview]:
        """The payload, in views that are good until the next one is asked for."""
        self._begin()
        for piece in self._http_views():
            for view in (piece,) if self._aws is None else self._aws.feed(piece):
                self.payload += len(view)
                yield view

    def read(self, limit: int) -> bytes:
        """A small payload. Raises Refusal when it is longer than `limit`."""
        data = bytearray()
        for view in self.views():
            data += view
            if len(data) > limit:
                raise Refusal(400, "EntityTooLarge")
        return bytes(data)

    def _begin(self) -> None:
        if self._expects:
            self._connection.send(b"HTTP/1.1 100 Continue\r\n\r\n")
            self._expects = False

    def _http_views(self) -> Iterator[memoryview]:
        if self._http is None:
            while self._left:
                view = self._connection.receive(min(self._left, BLOCK))
                self._left -= len(view)
                yield view
            return
        while not self._http.done:
            view = self._connection.receive(BLOCK)
            yield from self._http.feed(view)
        self._connection.push_back(self._http.rest)
        self._http.rest = b""


class Connection:
    """One connection: bytes in, bytes out."""

    def __init__(self, sock: socket.socket, network: Network) -> None:
        self._socket = sock
        self._network = network
        self._plain = not isinstance(sock, ssl.SSLSocket)
        self._buffer = memoryview(bytearray(BLOCK))
        self._pending = memoryview(b"")

    def receive(self, limit: int) -> memoryview:
        """Some bytes, at most `limit`. Raises Gone at the end of the stream."""
        if self._pending:
            piece, self._pending = self._pending[:limit], self._pending[limit:]
            return piece
        count = self._socket.recv_into(self._buffer, min(limit, BLOCK))
        if not count:
            raise Gone
        return self._buffer[:count]

    def push_back(self, data: bytes) -> None:
        """Bytes that belong to what comes next."""
        if data:
            self._pending = memoryview(data + bytes(self._pending))

    def drop(self, count: int) -> None:
        """Drop exactly `count` bytes."""
        while count and self._pending:
            count -= len(self.receive(count))
        if self._plain:
            # The kernel throws them away without copying them here.
            while count:
                done = self._socket.recv_into(_NOWHERE, min(count, len(_NOWHERE)), socket.MSG_TRUNC)
                if not done:
                    raise Gone
                count -= done
        while count:
            count -= len(self.receive(count))

    def head(self) -> bytes:
        """A request head without its empty line. Raises Gone when there is none."""
        data = bytearray()
        while (end := data.find(b"\r\n\r\n")) < 0:
            if len(data) > _MAX_HEAD:
                raise Gone
            data += self.receive(BLOCK)
        self.push_back(bytes(data[end + 4 :]))
        return bytes(data[:end])

    def send(self, data: bytes | memoryview) -> None:
        """Send all of it."""
        self._socket.sendall(data)

    def send_file(self, path: Path, offset: int, count: int) -> None:
        """Send a range of a file; without copying it, where nothing is to be encrypted."""
        with path.open("rb") as file:
            if self._plain:
                end = offset + count
                most = BLOCK if self._network.rate else count
                while offset < end:
                    done = os.sendfile(
                        self._socket.fileno(), file.fileno(), offset, min(most, end - offset)
                    )
                    self._network.carry(done)
                    offset += done
                return
            # Read, not mapped: faulting pages in costs more than copying what stays in the cache.
            for start in range(offset, offset + count, BLOCK):
                wanted = min(BLOCK, offset + count - start)
                done = os.preadv(file.fileno(), [self._buffer[:wanted]], start)
                self._socket.sendall(self._buffer[:done])
                self._network.carry(done)


_NOWHERE: Final = memoryview(bytearray(16 * 1024 * 1024))
