"""A file server on a loopback port that presigned URLs lead to, and that misbehaves as scripted.

    with WebServer({"/laguna.tar": data}) as web:
        web.script(Once(Refuse(503)))
        read(web.url("/laguna.tar", "X-Amz-Signature=secret"))
        assert web.requests[0].range == "bytes=0-0"

It does as S3 does with a presigned GET: ranges, a strong ETag, `If-Match`; any other method is refused, for
it was not signed. The log holds every request with its answer's status, in the order of arrival.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path
from types import TracebackType
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.support.s3server.actions import Gate
from tests.support.s3server.http import Head, MalformedHead, read_head

_RANGE = re.compile(r"bytes=(\d+)-(\d+)")
_GONE = (ConnectionError, asyncio.IncompleteReadError, ssl.SSLError)
_PIECE = 64 * 1024

EXPIRED = b"<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>"
TOKEN_EXPIRED = (
    b"<Error><Code>ExpiredToken</Code><Message>The provided token has expired.</Message></Error>"
)


@dataclass(frozen=True, slots=True)
class Asked:
    """One request: its method, path and query, headers in lower case, and the status of the answer."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    connection: int
    status: int | None = None

    @property
    def range(self) -> str | None:
        return self.headers.get("range")


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer, with a Content-Length unless it is `chunked`.

    `cut_after` closes the connection after that many bytes of the body. `gate` is waited for before, or,
    where nothing is cut, before anything is sent.
    """

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    cut_after: int | None = None
    gate: Gate | None = None
    chunked: bool = False


Change = Callable[[Asked, Reply], Reply | None]
"""What a fault makes of an answer; None closes the connection without one."""


@dataclass(slots=True)
class Once:
    """A change for the next request that it is for, or the next `times` of them (None: all).

    `after` requests that it would be for are let through before. The first fault in the script that is
    for a request is the only one to see it.
    """

    change: Change
    times: int | None = 1
    after: int = 0
    where: Callable[[Asked], bool] = lambda asked: True

    def take(self, asked: Asked) -> bool:
        if self.times == 0 or not self.where(asked):
            return False
        if self.after:
            self.after -= 1
            return False
        if self.times is not None:
            self.times -= 1
        return True


def refuse(status: int, body: bytes = b"", **headers: str) -> Change:
    """Answer with a status instead. Underscores in names of headers stand for hyphens."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda asked, reply: Reply(status, named, body)


def with_headers(**headers: str | None) -> Change:
    """Change headers of the answer, or leave them out (None)."""

    def change(asked: Asked, reply: Reply) -> Reply:
        merged: dict[str, str | None] = {**reply.headers}
        merged.update({name.replace("_", "-"): value for name, value in headers.items()})
        return replace(reply, headers={k: v for k, v in merged.items() if v is not None})

    return change


def cut(after: int) -> Change:
    """Close the connection after that many bytes of the body."""
    return lambda asked, reply: replace(reply, cut_after=after)


def stall(after: int, gate: Gate) -> Change:
    """Send that many bytes of the body, then nothing until the gate opens."""
    return lambda asked, reply: replace(reply, cut_after=after, gate=gate)


def hold(gate: Gate) -> Change:
    """Answer when the gate opens."""
    return lambda asked, reply: replace(reply, gate=gate)


def drop(asked: Asked, reply: Reply) -> None:
    """Close the connection without an answer."""


def shorten(by: int) -> Change:
    """Claim and send a body that is shorter than the range."""
    return lambda asked, reply: replace(reply, body=reply.body[:-by])


class WebServer:
    """Files by path.

    `ranges=False` answers every GET with all of it, `chunked` does so without telling the length, `weak`
    makes all ETags weak. `tls` is a server context, to speak HTTPS.
    """

    def __init__(
        self,
        files: Mapping[str, bytes],
        *,
        ranges: bool = True,
        weak: bool = False,
        chunked: bool = False,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.files = dict(files)
        self.port = 0
        self.connections = 0
        self._ranges = ranges
        self._weak = weak
        self._chunked = chunked
        self._tls = tls
        self._lock = threading.Lock()
        self._log: list[Asked] = []
        self._script: list[Once] = []
        self._thread = threading.Thread(target=self._run, name="web-server", daemon=True)
        self._started: Future[int] = Future()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._failures: list[Exception] = []

    @property
    def scheme(self) -> str:
        return "http" if self._tls is None else "https"

    def url(self, path: str, query: str = "", *, host: str = "127.0.0.1") -> str:
        return f"{self.scheme}://{host}:{self.port}{path}" + (f"?{query}" if query else "")

    @property
    def requests(self) -> Sequence[Asked]:
        with self._lock:
            return tuple(self._log)

    def clear(self) -> None:
        """Forget the requests so far."""
        with self._lock:
            self._log.clear()

    def script(self, *faults: Once) -> None:
        with self._lock:
            self._script.extend(faults)

    def hang_up(self) -> None:
        """Close all connections, as servers do with those that were idle for long."""
        assert self._loop is not None
        asyncio.run_coroutine_threadsafe(self._hang_up(), self._loop).result()

    async def _hang_up(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def unmet(self) -> int:
        """Faults that were to happen and did not: a test that scripted them tested nothing."""
        with self._lock:
            return sum(fault.times or 0 for fault in self._script)

    def __enter__(self) -> Self:
        self._thread.start()
        self.port = self._started.result()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        if self._failures:
            raise ExceptionGroup("defects of the web server", self._failures)

    def _run(self) -> None:
        asyncio.run(self._main())

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0, ssl=self._tls)
        self._started.set_result(server.sockets[0].getsockname()[1])
        await self._stop.wait()
        server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if isinstance(error, Exception):
            self._failures.append(error)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        number = self.connections
        try:
            while (head := await read_head(reader)) is not None:
                if not await self._exchange(writer, head, number):
                    break
        except (*_GONE, MalformedHead):
            pass
        finally:
            writer.close()

    async def _exchange(self, writer: asyncio.StreamWriter, head: Head, connection: int) -> bool:
        path, _, query = head.target.partition("?")
        asked = Asked(head.method, path, query, head.headers, connection)
        with self._lock:
            index = len(self._log)
            self._log.append(asked)
            fault = next((fault for fault in self._script if fault.take(asked)), None)
        reply: Reply | None = self._answer(asked)
        if fault is not None and reply is not None:
            reply = fault.change(asked, reply)
        if reply is None:
            return False
        with self._lock:
            if index < len(self._log):
                self._log[index] = replace(asked, status=reply.status)
        if reply.gate is not None and reply.cut_after is None:
            await reply.gate.wait()
        await _send(writer, head.method, reply)
        return reply.cut_after is None

    def _answer(self, asked: Asked) -> Reply:
        if asked.method != "GET":
            return Reply(403, {}, b"<Error><Code>SignatureDoesNotMatch</Code></Error>")
        data = self.files.get(asked.path)
        if data is None:
            return Reply(404, {}, b"<Error><Code>NoSuchKey</Code></Error>")
        etag = f'"{hashlib.md5(data).hexdigest()}"'
        if self._weak:
            etag = f"W/{etag}"
        wanted = asked.headers.get("if-match")
        if wanted is not None and wanted != etag:
            return Reply(412, {}, b"<Error><Code>PreconditionFailed</Code></Error>")
        match = _RANGE.fullmatch(asked.range or "")
        if match is None or not self._ranges:
            return Reply(200, {"ETag": etag}, data, chunked=self._chunked)
        first, last = int(match[1]), min(int(match[2]), len(data) - 1)
        if first > last:
            return Reply(416, {"Content-Range": f"bytes */{len(data)}"})
        headers = {"ETag": etag, "Content-Range": f"bytes {first}-{last}/{len(data)}"}
        return Reply(206, headers, data[first : last + 1])


async def _send(writer: asyncio.StreamWriter, method: str, reply: Reply) -> None:
    length = (
        {"Transfer-Encoding": "chunked"}
        if reply.chunked
        else {"Content-Length": str(len(reply.body))}
    )
    lines = [f"HTTP/1.1 {reply.status} Scripted"]
    lines += [f"{name}: {value}" for name, value in {**length, **reply.headers}.items()]
    writer.write("\r\n".join([*lines, "", ""]).encode("latin-1"))
    if method != "HEAD":
        end = len(reply.body) if reply.cut_after is None else reply.cut_after
        for start in range(0, end, _PIECE):
            piece = reply.body[start : min(start + _PIECE, end)]
            writer.write(b"%x\r\n%b\r\n" % (len(piece), piece) if reply.chunked else piece)
            await writer.drain()
        if reply.chunked and reply.cut_after is None:
            writer.write(b"0\r\n\r\n")
    await writer.drain()
    if reply.gate is not None and reply.cut_after is not None:
        await reply.gate.wait()


@contextlib.contextmanager
def tunnel(port: int) -> Iterator[tuple[str, list[bytes]]]:
    """A proxy that leads every CONNECT to one port of this machine: its address, and the heads it saw."""
    heads: list[bytes] = []

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while piece := await reader.read(_PIECE):
                writer.write(piece)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        there, back = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"HTTP/1.0 200 Connected\r\n\r\n")
        await asyncio.gather(pump(reader, back), pump(there, writer))

    async def main() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server:
            started.set_result((asyncio.get_running_loop(), server.sockets[0].getsockname()[1]))
            await stop.wait()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.gather(task, return_exceptions=True)

    stop = asyncio.Event()
    started: Future[tuple[asyncio.AbstractEventLoop, int]] = Future()
    thread = threading.Thread(target=lambda: asyncio.run(main()), name="tunnel", daemon=True)
    thread.start()
    loop, here = started.result()
    try:
        yield f"127.0.0.1:{here}", heads
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()


def certificate(directory: Path, *names: str) -> tuple[Path, ssl.SSLContext]:
    """A certificate for host names and addresses that is its own authority, and a server context."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tests")])
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(datetime(2020, 1, 1, tzinfo=UTC))
        .not_valid_after(datetime(2120, 1, 1, tzinfo=UTC))
        .add_extension(
            x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    encoding = serialization.Encoding.PEM
    bundle, secret = directory / "web-certificate.pem", directory / "web-key.pem"
    bundle.write_bytes(made.public_bytes(encoding))
    secret.write_bytes(
        key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(bundle, secret)
    return bundle, context


def _general_name(name: str) -> x509.GeneralName:
    with contextlib.suppress(ValueError):
        return x509.IPAddress(ip_address(name))
    return x509.DNSName(name)


def chain(error: BaseException) -> Iterator[BaseException]:
    """An error and all that it is chained to, shown or not."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        current = waiting.pop()
        if current is not None and id(current) not in seen:
            seen.add(id(current))
            yield current
            waiting += [current.__cause__, current.__context__]
