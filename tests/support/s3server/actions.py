"""What can happen to a request: refusals, lost answers, damaged bodies, holds.

`Hold` is the primitive of race tests: it stops a request before or after its execution until the
test lets it go. Nothing here waits for a time to pass.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Self

from tests.support.s3server import xml
from tests.support.s3server.errors import S3Error
from tests.support.s3server.http import Response
from tests.support.s3server.log import Request
from tests.support.s3server.objects import flipped


class Dropped(Exception):
    """The connection is to be closed without an answer."""


class Action:
    """What a fault does. The hooks run in the order of their definition here."""

    @property
    def upload_limit(self) -> int | None:
        """Body bytes to read before the connection breaks, None to read all."""
        return None

    async def before(self, request: Request) -> Response | None:
        """Called when the body was read. An answer replaces the operation; may raise Dropped."""
        return None

    def rewrite(self, headers: Mapping[str, str]) -> Mapping[str, str]:
        """The headers that the operation is to see."""
        return headers

    async def after(self, request: Request, response: Response) -> Response:
        """Called when the operation was executed. May raise Dropped."""
        return response


@dataclass(frozen=True, slots=True)
class Status(Action):
    """Answers with an error and does not execute."""

    status: int
    code: str = ""
    message: str = "scripted"
    headers: Mapping[str, str] = field(default_factory=dict)

    async def before(self, request: Request) -> Response:
        body = b""
        if request.method != "HEAD":
            error = S3Error(self.status, self.code or _CODES[self.status], self.message)
            body = xml.error_document(error, f"/{request.bucket}/{request.key}", "scripted")
        headers = {"Content-Type": "application/xml", **self.headers}
        return Response(self.status, headers, (body,))


_CODES = {
    301: "PermanentRedirect",
    307: "TemporaryRedirect",
    400: "BadRequest",
    403: "AccessDenied",
    404: "NoSuchKey",
    409: "ConditionalRequestConflict",
    412: "PreconditionFailed",
    416: "InvalidRange",
    429: "TooManyRequests",
    500: "InternalError",
    501: "NotImplemented",
    503: "SlowDown",
}
"""The code S3 most often sends with a status."""


@dataclass(frozen=True, slots=True)
class DropBefore(Action):
    """Closes the connection without executing the request."""

    async def before(self, request: Request) -> Response | None:
        raise Dropped


@dataclass(frozen=True, slots=True)
class DropAfter(Action):
    """Executes the request and closes the connection: the answer is lost."""

    async def after(self, request: Request, response: Response) -> Response:
        raise Dropped


@dataclass(frozen=True, slots=True)
class CutUpload(Action):
    """Reads that many bytes of the request's body and closes the connection."""

    after_bytes: int

    @property
    def upload_limit(self) -> int:
        return self.after_bytes


@dataclass(frozen=True, slots=True)
class CutBody(Action):
    """Promises the whole response body, sends that many bytes of it and closes the connection."""

    after_bytes: int

    async def after(self, request: Request, response: Response) -> Response:
        return replace(response, cut_after=self.after_bytes)


@dataclass(frozen=True, slots=True)
class ReplaceBody(Action):
    """Changes the response body under way; a change of length changes Content-Length."""

    change: Callable[[bytes], bytes]

    async def after(self, request: Request, response: Response) -> Response:
        return replace(response, body=(self.change(response.data()),))


@dataclass(frozen=True, slots=True)
class FlipBit(Action):
    """Turns one bit of the response body over, counted from the first byte's least significant."""

    bit_index: int

    async def after(self, request: Request, response: Response) -> Response:
        return replace(response, body=(flipped(response.data(), self.bit_index),))


@dataclass(frozen=True, slots=True)
class IgnoreRange(Action):
    """Answers a ranged GET with 200 and the whole object."""

    def rewrite(self, headers: Mapping[str, str]) -> Mapping[str, str]:
        return {name: value for name, value in headers.items() if name != "range"}


@dataclass(frozen=True, slots=True)
class WrongRange(Action):
    """Serves the bytes `shift` further on than the range asked for.

    Content-Range claims the range that was asked for, or, with `honest`, tells what is served.
    """

    shift: int
    honest: bool = False

    def rewrite(self, headers: Mapping[str, str]) -> Mapping[str, str]:
        first, last = map(int, headers["range"].removeprefix("bytes=").split("-"))
        return {**headers, "range": f"bytes={first + self.shift}-{last + self.shift}"}

    async def after(self, request: Request, response: Response) -> Response:
        served, total = response.headers["Content-Range"].split("/")
        if self.honest:
            return response
        first, last = map(int, served.removeprefix("bytes ").split("-"))
        claimed = f"bytes {first - self.shift}-{last - self.shift}/{total}"
        return replace(response, headers={**response.headers, "Content-Range": claimed})


@dataclass(frozen=True, slots=True)
class ErrorIn200(Action):
    """Answers 200 with an error document as its body, as Complete may; executes only if told to."""

    code: str = "InternalError"
    message: str = "We encountered an internal error. Please try again."
    execute: bool = False

    def _answer(self, request: Request) -> Response:
        error = S3Error(200, self.code, self.message)
        body = xml.error_document(error, f"/{request.bucket}/{request.key}", "scripted")
        return Response(200, {"Content-Type": "application/xml"}, (body,))

    async def before(self, request: Request) -> Response | None:
        return None if self.execute else self._answer(request)

    async def after(self, request: Request, response: Response) -> Response:
        return self._answer(request)


class Gate:
    """A gate that requests wait at, on the server's thread, until a test opens it from another.

    `arrived` is set when `parties` requests wait. Once released, it stays open. Leaving the `with`
    block releases it.
    """

    def __init__(self, *, parties: int = 1) -> None:
        self.arrived = threading.Event()
        self._parties = parties
        self._lock = threading.Lock()
        self._open = False
        self._waiting: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    def release(self) -> None:
        """Let go whoever waits, and whoever comes from now on."""
        with self._lock:
            self._open = True
            waiting, self._waiting = self._waiting, []
        for loop, event in waiting:
            loop.call_soon_threadsafe(event.set)

    async def wait(self) -> None:
        event = asyncio.Event()
        with self._lock:
            if self._open:
                event.set()
            else:
                self._waiting.append((asyncio.get_running_loop(), event))
            if self._open or len(self._waiting) >= self._parties:
                self.arrived.set()
        await event.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()


class Hold(Gate, Action):
    """Holds a request before its execution, or after it and before its answer, until `release()`."""

    def __init__(self, *, before: bool = True, parties: int = 1) -> None:
        super().__init__(parties=parties)
        self.holds_before = before

    async def before(self, request: Request) -> Response | None:
        if self.holds_before:
            await self.wait()
        return None

    async def after(self, request: Request, response: Response) -> Response:
        if not self.holds_before:
            await self.wait()
        return response


class StallBody(Gate, Action):
    """Sends that many bytes of the response body, then nothing until `release()`, then the rest."""

    def __init__(self, after_bytes: int) -> None:
        super().__init__()
        self.after_bytes = after_bytes

    async def after(self, request: Request, response: Response) -> Response:
        return replace(response, pause=self, pause_after=self.after_bytes)
