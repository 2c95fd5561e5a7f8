"""The server's own limits, so that nobody takes them for a client's.

Clients that do next to nothing: the kernel sends a file, and throws away what it receives; over TLS
OpenSSL has to work on both sides, so there the client is as much in the way as the server. Requests are sent
a thousand at a time without waiting for answers.
"""

from __future__ import annotations

import os
import socket
import ssl
import time
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

_BLOCK: Final = 1024 * 1024
_REQUESTS: Final = 1000


def upload_speed(endpoint: str, certificate: Path, path: Path) -> float:
    """Bytes a second of one PUT of a file into the sink."""
    size = path.stat().st_size
    with _connect(endpoint, certificate) as sock, path.open("rb") as file:
        start = time.monotonic()
        sock.sendall(_head("PUT", "/sink/ceiling", f"Content-Length: {size}\r\n"))
        if isinstance(sock, ssl.SSLSocket):
            while block := file.read(_BLOCK):
                sock.sendall(block)
        else:
            sent = 0
            while sent < size:
                sent += os.sendfile(sock.fileno(), file.fileno(), sent, size - sent)
        _skip_head(sock)
        return size / (time.monotonic() - start)


def download_speed(endpoint: str, certificate: Path, key: str) -> float:
    """Bytes a second of one GET of a kept object."""
    with _connect(endpoint, certificate) as sock:
        start = time.monotonic()
        sock.sendall(_head("GET", f"/keep/{key}"))
        size, done = _skip_head(sock)
        buffer = bytearray(_BLOCK)
        flags = 0 if isinstance(sock, ssl.SSLSocket) else socket.MSG_TRUNC
        while done < size:
            count = sock.recv_into(buffer, min(_BLOCK, size - done), flags)
            if not count:
                raise ConnectionError("the server closed the connection")
            done += count
        return size / (time.monotonic() - start)


def request_speed(endpoint: str, certificate: Path) -> float:
    """Requests a second on one connection."""
    with _connect(endpoint, certificate) as sock:
        start = time.monotonic()
        sock.sendall(_head("HEAD", "/sink/none") * _REQUESTS)
        answers, tail = 0, b""
        while answers < _REQUESTS:
            data = sock.recv(_BLOCK)
            if not data:
                raise ConnectionError("the server closed the connection")
            joined = tail + data
            answers += joined.count(b"\r\n\r\n")
            end = joined.rfind(b"\r\n\r\n")
            tail = joined[end + 4 :] if end >= 0 else joined
        return _REQUESTS / (time.monotonic() - start)


def _connect(endpoint: str, certificate: Path) -> socket.socket:
    url = urlsplit(endpoint)
    sock = socket.create_connection((url.hostname or "", url.port or 0), timeout=60)
    if url.scheme == "https":
        context = ssl.create_default_context(cafile=str(certificate))
        sock = context.wrap_socket(sock, server_hostname=url.hostname)
    sock.settimeout(None)
    return sock


def _head(method: str, target: str, more: str = "") -> bytes:
    return f"{method} {target} HTTP/1.1\r\nHost: ceiling\r\n{more}\r\n".encode()


def _skip_head(sock: socket.socket) -> tuple[int, int]:
    """Read an answer's head. Returns the length it announces, and how much of the body came along."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = sock.recv(_BLOCK)
        if not piece:
            raise ConnectionError("the server closed the connection")
        data += piece
    head, _, rest = data.partition(b"\r\n\r\n")
    if b" 200 " not in head.partition(b"\r\n")[0]:
        raise ConnectionError(f"the server answered {head[:60]!r}")
    lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    return int(lengths[0].partition(b":")[2]), len(rest)
