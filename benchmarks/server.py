"""An S3 for measuring: as little work per byte as there can be, and a count of everything.

    python -m benchmarks.server --scratch DIRECTORY [--certificate FILE --key FILE] [--cpus 0,1]

Prints one JSON line with its ports, serves until standard input closes. Anybody may do anything: no
signature is looked at. Two buckets are there:

    sink   bodies are counted and dropped; objects have a name and a size
    keep   bodies go to files in the scratch directory and can be read back

Whatever lies under `.checkpoint/` is kept in both, and its CRC64NVME is checked, as are conditions
(`If-None-Match`, `If-Match`) everywhere. Payload checksums are taken on trust: checking them is the
server's work and would be measured as the client's waiting. So a run proves nothing about integrity;
the tests do that, with a server that checks everything.

`GET /-/state?prefix=P` tells objects, open uploads and counts; `POST /-/reset?prefix=P` drops them;
`POST /-/pace?rate=N` lets the contents of objects out at N bytes per second together, 0 at any speed.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import ssl
import sys
import threading
from email.utils import formatdate
from pathlib import Path
from typing import Final
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

from benchmarks.connection import Body, Connection, Gone, Refusal
from benchmarks.framing import MalformedFraming
from benchmarks.holdings import State
from benchmarks.operations import OPERATIONS, Answer, Request, operation_of

_IDLE: Final = 300  # seconds a connection may take to say its first word
_REASONS: Final = {
    200: "OK",
    204: "No Content",
    206: "Partial Content",
    400: "Bad Request",
    404: "Not Found",
    412: "Precondition Failed",
    416: "Range Not Satisfiable",
    501: "Not Implemented",
}


class Server:
    """Accepts connections on loopback, one thread each."""

    def __init__(self, state: State, context: ssl.SSLContext | None = None) -> None:
        self._state = state
        self._context = context
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.port: int = self._listener.getsockname()[1]

    def start(self) -> None:
        """Begin to accept, in the background."""
        threading.Thread(target=self._accept, name="accept", daemon=True).start()

    def close(self) -> None:
        """Accept no more connections."""
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return  # closed
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        try:
            sock.settimeout(_IDLE)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._context is not None:
                sock = self._context.wrap_socket(sock, server_side=True)
            # Without a timeout a read is one system call; keep-alive ends what is dead.
            sock.settimeout(None)
            connection = Connection(sock, self._state.network)
            while self._answer(connection):
                pass
        except (Gone, OSError, MalformedFraming):
            return  # the client went away, or speaks something else; its run fails by itself
        finally:
            sock.close()

    def _answer(self, connection: Connection) -> bool:
        """Answer one request. False when the connection is over."""
        lines = connection.head().decode("latin-1").split("\r\n")
        method, target, _ = lines[0].split(" ", 2)
        headers = {}
        for line in lines[1:]:
            name, _, value = line.partition(":")
            headers[name.strip().lower()] = value.strip()
        parts = urlsplit(target)
        bucket, _, key = unquote(parts.path).lstrip("/").partition("/")
        query = {name: values[0] for name, values in parse_qs(parts.query, True).items()}
        body = Body(connection, headers)
        request = Request(method, bucket, key, query, headers, body)
        operation = operation_of(request)
        try:
            answer = OPERATIONS[operation](self._state, request)
        except Refusal as refusal:
            code = escape(refusal.code)
            text = f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()
            answer = Answer(refusal.status, b"" if method == "HEAD" else text)
        body.discard()
        length = len(answer.body) if answer.length is None else answer.length
        if request.bucket != "-":
            self._state.count(operation, body.payload, 0 if method == "HEAD" else length)
        head = [
            f"HTTP/1.1 {answer.status} {_REASONS[answer.status]}",
            f"Content-Length: {length}",
            f"Date: {formatdate(usegmt=True)}",
            "x-amz-request-id: 0",
            *(f"{name}: {value}" for name, value in answer.headers.items()),
        ]
        if answer.body and "Content-Type" not in answer.headers:
            head.append("Content-Type: application/xml")
        connection.send("\r\n".join([*head, "", ""]).encode("latin-1") + answer.body)
        if method != "HEAD":
            for content, offset, count in answer.pieces:
                if content.data is not None:
                    self._state.network.carry(count)
                    connection.send(memoryview(content.data)[offset : offset + count])
                elif content.path is not None:
                    connection.send_file(content.path, offset, count)
        return headers.get("connection", "").lower() != "close"


def main() -> None:
    """Serve until standard input closes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--scratch", type=Path, required=True, help="where kept bodies go")
    parser.add_argument("--certificate", type=Path)
    parser.add_argument("--key", type=Path)
    parser.add_argument("--cpus", help="cores to stay on, as 0,1")
    options = parser.parse_args()
    if options.cpus:
        os.sched_setaffinity(0, {int(cpu) for cpu in options.cpus.split(",")})
    state = State(options.scratch)
    plain = Server(state)
    plain.start()
    ports = {"http": plain.port}
    if options.certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(options.certificate, options.key)
        secure = Server(state, context)
        secure.start()
        ports["https"] = secure.port
    sys.stdout.write(json.dumps(ports) + "\n")
    sys.stdout.flush()
    sys.stdin.read()


if __name__ == "__main__":
    main()
