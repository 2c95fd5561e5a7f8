"""A bare downloader on Python's own sockets: what any program in this language pays at least.

    python -m benchmarks.bare_download BUCKET PREFIX DIRECTORY ENDPOINT [CERTIFICATE]

Ranges of 16 MiB go from the socket into buffers that are used again and from there into the files: no
signature, no digest, no retry, no sync, and the server is believed. To compare with, not to use.
"""

from __future__ import annotations

import os
import queue
import socket
import ssl
import sys
import threading
from pathlib import Path
from typing import Final
from urllib.parse import quote, urlsplit
from xml.etree import ElementTree

_RANGE: Final = 16 * 1024 * 1024
_BLOCK: Final = 1024 * 1024
_THREADS: Final = 8

_Work = tuple[str, int, int, int]
"""The target of a request, a file descriptor, an offset and a length in bytes."""


class Connection:
    """One connection that is kept."""

    def __init__(self, endpoint: str, certificate: str | None) -> None:
        url = urlsplit(endpoint)
        self._host = url.netloc
        sock = socket.create_connection((url.hostname or "", url.port or 80))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if url.scheme == "https":
            context = ssl.create_default_context(cafile=certificate)
            sock = context.wrap_socket(sock, server_hostname=url.hostname)
        self._sock = sock

    def get(self, target: str, offset: int, view: memoryview) -> int:
        """Read a range into the view; the last byte is the view's, or the object's. Returns how many came."""
        last = offset + len(view) - 1
        head = (
            f"GET {target} HTTP/1.1\r\nHost: {self._host}\r\nRange: bytes={offset}-{last}\r\n\r\n"
        )
        self._sock.sendall(head.encode())
        answer = b""
        while b"\r\n\r\n" not in answer:
            piece = self._sock.recv(16 * 1024)
            if not piece:
                raise SystemExit(f"no answer to GET {target}")
            answer += piece
        text, _, rest = answer.partition(b"\r\n\r\n")
        status, *lines = text.decode("latin-1").split("\r\n")
        fields = dict(line.lower().split(": ", 1) for line in lines)
        if status.split()[1] not in ("200", "206"):
            raise SystemExit(f"GET {target}: {status}")
        length = int(fields["content-length"])
        view[: len(rest)] = rest
        done = len(rest)
        whole = 0 if isinstance(self._sock, ssl.SSLSocket) else socket.MSG_WAITALL
        while done < length:
            wanted = min(_BLOCK, length - done)
            count = self._sock.recv_into(view[done:], wanted, whole)
            if not count:
                raise SystemExit(f"GET {target} ended early")
            done += count
        return length


def listing(connection: Connection, bucket: str, prefix: str) -> list[tuple[str, int]]:
    """Keys and sizes below a prefix."""
    found: list[tuple[str, int]] = []
    more = ""
    buffer = memoryview(bytearray(_RANGE))
    while True:
        target = f"/{bucket}?list-type=2&prefix={quote(prefix, safe='')}{more}"
        text = bytes(buffer[: connection.get(target, 0, buffer)])
        page = ElementTree.fromstring(text)  # noqa: S314 - our own server's
        for entry in page.findall("{*}Contents"):
            key, size = entry.findtext("{*}Key"), entry.findtext("{*}Size")
            found.append((key or "", int(size or 0)))
        token = page.findtext("{*}NextContinuationToken")
        if not token:
            return found
        more = f"&continuation-token={quote(token, safe='')}"


def download(
    bucket: str, prefix: str, directory: Path, endpoint: str, certificate: str | None
) -> None:
    """Fetch every object below a prefix."""
    work: queue.SimpleQueue[_Work | None] = queue.SimpleQueue()
    descriptors = []
    for key, size in listing(Connection(endpoint, certificate), bucket, prefix):
        path = directory / key.removeprefix(prefix)
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        descriptors.append(descriptor)
        for offset in range(0, size, _RANGE):
            work.put((f"/{bucket}/{quote(key)}", descriptor, offset, min(_RANGE, size - offset)))
    failed: list[BaseException] = []

    def run() -> None:
        try:
            connection = Connection(endpoint, certificate)
            buffer = memoryview(bytearray(_RANGE))
            while (item := work.get()) is not None:
                target, descriptor, offset, length = item
                view = buffer[:length]
                connection.get(target, offset, view)
                os.pwrite(descriptor, view, offset)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=run) for _ in range(_THREADS)]
    for thread in threads:
        work.put(None)
        thread.start()
    for thread in threads:
        thread.join()
    for descriptor in descriptors:
        os.close(descriptor)
    if failed:
        raise failed[0]


if __name__ == "__main__":
    bucket, prefix, directory, endpoint, *rest = sys.argv[1:]
    download(bucket, prefix, Path(directory), endpoint, rest[0] if rest else None)
