"""The server: connections on a loopback port, on a thread and an event loop of their own.

    with ScriptedS3() as s3:
        client = boto3.client("s3", endpoint_url=s3.endpoint_url, ...)
        s3.script(Fault("UploadPart", Status(503), occurrence=2))

A defect of the server itself (an exception nobody meant) drops the connection and is raised again
when the `with` block ends.
"""

from __future__ import annotations

import asyncio
import ssl
import threading
import time
import weakref
from collections.abc import Collection, Mapping
from concurrent.futures import Future
from dataclasses import replace
from email.utils import formatdate
from types import TracebackType
from typing import Self

from tests.support.s3server import api
from tests.support.s3server.access import Access
from tests.support.s3server.actions import Action, Dropped, Hold
from tests.support.s3server.call import Call, Limits, error_response, request_id
from tests.support.s3server.errors import S3Error, not_implemented
from tests.support.s3server.faults import Fault, Script
from tests.support.s3server.http import (
    STREAM_LIMIT,
    ChunkedBody,
    Head,
    MalformedHead,
    Response,
    invite_body,
    read_body,
    read_head,
    write_response,
)
from tests.support.s3server.log import KeyPattern, Request, RequestLog
from tests.support.s3server.objects import Bucket, State
from tests.support.s3server.quirks import Quirk
from tests.support.s3server.route import route

_INLINE_BODY = 64 * 1024
"""Bodies up to this many bytes are digested on the event loop; a thread would cost more."""

_GONE = (ConnectionError, asyncio.IncompleteReadError, ssl.SSLError)
"""How it shows that a client went away."""


class ScriptedS3:
    """An S3 that does as S3 does, and what a test scripts.

    Parameters:
        buckets: names of buckets to begin with.
        min_part_size: least bytes of every part but the last.
        page_size: most entries of a page of any listing.
        credentials: access key ids and their secrets; given, other keys are refused and signatures
            are verified. Without, anybody may do anything.
        region: the region of all buckets; given, requests signed for another one are refused.
        quirks: shortcomings to show.
        tls: a server context, to speak HTTPS.
    """

    def __init__(
        self,
        *,
        buckets: Collection[str] = (),
        min_part_size: int = 5 * 1024 * 1024,
        page_size: int = 1000,
        credentials: Mapping[str, str] | None = None,
        region: str | None = None,
        quirks: Collection[Quirk] = (),
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.clock_offset_seconds = 0.0
        self.limits = Limits(min_part_size, page_size)
        self.quirks = frozenset(quirks)
        self.access = Access(credentials=credentials, region=region, clock=self.clock)
        self.port = 0
        self._tls = tls
        self._state = State(self.clock)
        self._script = Script()
        self._log = RequestLog()
        self._thread = threading.Thread(target=self._run, name="scripted-s3", daemon=True)
        self._started: Future[int] = Future()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop = asyncio.Event()
        self._connections: set[asyncio.Task[None]] = set()
        self._writers: weakref.WeakSet[asyncio.StreamWriter] = weakref.WeakSet()
        self._failures: list[Exception] = []
        for name in buckets:
            self._state.create(name)

    # For tests

    @property
    def endpoint_url(self) -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"

    @property
    def access_key(self) -> str:
        """The first known access key id; any will do when none was configured."""
        return next(iter(self.access.credentials or {}), "scripted-access-key")

    @property
    def secret_key(self) -> str:
        """The secret of `access_key`."""
        return (self.access.credentials or {}).get(self.access_key, "scripted-secret-key")

    @property
    def requests(self) -> RequestLog:
        return self._log

    def clock(self) -> float:
        """The server's idea of the time, in seconds since the epoch."""
        return time.time() + self.clock_offset_seconds

    def bucket(self, name: str) -> Bucket:
        """The bucket of that name, behind the store's back; made if there is none."""
        return self._state.create(name)

    def has_bucket(self, name: str) -> bool:
        return name in self._state.buckets

    def script(self, *faults: Fault) -> None:
        """Add faults to those that are scripted already."""
        for fault in faults:
            self._script.add(fault)

    def hold(
        self,
        operation: str | None,
        *,
        before: bool = True,
        parties: int = 1,
        occurrence: int | Collection[int] | None = None,
        key: KeyPattern = None,
        access_key: str | None = None,
        part_number: int | None = None,
    ) -> Hold:
        """Hold every matching request (or some occurrences) until the returned `Hold` is released."""
        hold = Hold(before=before, parties=parties)
        self.script(Fault(operation, hold, occurrence, key, access_key, part_number))
        return hold

    def clear_script(self) -> None:
        """Forget all faults; whoever is held goes on."""
        self._script.clear()

    @property
    def unfired_faults(self) -> list[Fault]:
        """Faults that no request has met: a test that scripted them tested nothing."""
        return self._script.unfired()

    def deny(self, permission: str, *, access_key: str | None = None) -> None:
        """Refuse a permission (IAM's name without "s3:") to everybody or to one access key.

        Without ListBucket a missing key is 403 rather than 404.
        """
        self.access.deny(permission, access_key)

    def allow(self, permission: str, *, access_key: str | None = None) -> None:
        """Take a `deny` with the same arguments back."""
        self.access.allow(permission, access_key)

    # Life

    def start(self) -> Self:
        self._thread.start()
        self.port = self._started.result()
        return self

    def stop(self) -> None:
        """Close every connection and end the thread. Raises what went wrong in the server itself."""
        self._script.clear()
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        if self._failures:
            raise ExceptionGroup("defects of the scripted S3 server", self._failures)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def _run(self) -> None:
        asyncio.run(self._main())

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        try:
            server = await asyncio.start_server(
                self._connected, "127.0.0.1", 0, limit=STREAM_LIMIT, ssl=self._tls, backlog=512
            )
        except OSError as error:
            self._started.set_exception(error)
            return
        self._started.set_result(server.sockets[0].getsockname()[1])
        await self._stop.wait()
        server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        for writer in self._writers:
            writer.transport.abort()
        await asyncio.sleep(0)  # what the tasks closed is let go in the loop's next round

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._connections.add(task)
        self._writers.add(writer)
        task.add_done_callback(self._disconnected)

    def _disconnected(self, task: asyncio.Task[None]) -> None:
        self._connections.discard(task)
        error = None if task.cancelled() else task.exception()
        if isinstance(error, Exception):
            self._failures.append(error)

    # Requests

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while (head := await read_head(reader)) is not None:
                if not await self._exchange(reader, writer, head):
                    break
        except (*_GONE, Dropped):
            pass  # the client went away, or the script says that the server does
        except MalformedHead as error:
            refusal = Response(400, {"Content-Type": "text/plain"}, (str(error).encode(),))
            await write_response(writer, "GET", refusal, close=True)
        finally:
            writer.close()

    async def _exchange(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: Head
    ) -> bool:
        """Serve one request; returns whether the connection goes on."""
        target = route(head)
        request = self._log.arrived(
            lambda sequence: Request(
                sequence=sequence,
                operation=target.operation,
                method=head.method,
                bucket=target.bucket,
                key=target.key,
                query=target.query,
                headers=head.headers,
                access_key=target.access_key,
                region=target.region,
                body_length=head.content_length,
            )
        )
        actions = self._script.actions_for(request)
        if actions:
            self._log.amend(request.sequence, faults=actions)
        for action in actions:
            if action.upload_limit is not None:
                invite_body(writer, head)
                await reader.readexactly(min(action.upload_limit, head.content_length))
                raise Dropped
        try:
            body = await read_body(reader, writer, head)
        except ChunkedBody:
            refused = not_implemented("Request bodies in chunked or aws-chunked encoding")
            response = error_response(refused, request)
        else:
            response = await self._answer(request, head, body, actions)
        headers = {
            "Server": "ScriptedS3",
            "Date": formatdate(self.clock(), usegmt=True),
            "x-amz-request-id": request_id(request),
            **response.headers,
        }
        response = _with_headers(response, head.method, headers)
        close = response.cut_after is not None or head.headers.get("connection", "") == "close"
        sent = 0 if head.method == "HEAD" else response.sent_length
        self._log.amend(request.sequence, status=response.status, sent=sent)
        await write_response(writer, head.method, response, close=close)
        return not close

    async def _answer(
        self, request: Request, head: Head, body: bytes, actions: tuple[Action, ...]
    ) -> Response:
        """The operation's answer as the script changes it. Raises Dropped."""
        for action in actions:
            scripted = await action.before(request)
            if scripted is not None:
                return scripted
        headers: Mapping[str, str] = head.headers
        for action in actions:
            headers = action.rewrite(headers)
        try:
            response = await self._execute(request, head, headers, body)
        except S3Error as error:
            response = error_response(error, request)
        for action in actions:
            response = await action.after(request, response)
        return response

    async def _execute(
        self, request: Request, head: Head, headers: Mapping[str, str], body: bytes
    ) -> Response:
        self.access.check(request, head)
        if len(body) <= _INLINE_BODY:
            digests = api.examine_body(request, body, self.quirks)
        else:
            digests = await asyncio.to_thread(api.examine_body, request, body, self.quirks)
        self._log.amend(request.sequence, executed=True)
        return api.execute(
            Call(
                request=request,
                headers=headers,
                body=body,
                digests=digests,
                state=self._state,
                access=self.access,
                quirks=self.quirks,
                limits=self.limits,
            )
        )


def _with_headers(response: Response, method: str, headers: Mapping[str, str]) -> Response:
    """The response with all its headers. A refusal of a HEAD has no body to speak of."""
    body = () if method == "HEAD" and response.status >= 300 else response.body
    return replace(response, headers=headers, body=body)
