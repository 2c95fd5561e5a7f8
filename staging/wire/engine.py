"""What moves the bytes below botocore: the choice of a transport, and botocore's words around it.

botocore asks its `before-send` handlers for an answer before it sends a request itself; `send` is what such
a handler does. What it raises is botocore's own, so that its retries treat it as any failure of HTTP.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from typing import Literal
from urllib.parse import urlsplit

from botocore import exceptions as boto
from botocore.awsrequest import AWSPreparedRequest, AWSResponse
from botocore.httpsession import create_urllib3_context, get_cert_path

from staging.vocabulary.errors import UsageError
from staging.wire.failure import Stalled, UntrustedError
from staging.wire.pace import Pace
from staging.wire.raw import RawTransport
from staging.wire.transport import (
    AnswerBody,
    ConnectTimedOut,
    HandshakeFailed,
    NotConnected,
    Origin,
    Request,
    TimedOut,
    Transport,
    TransportError,
    Untrusted,
)
from staging.wire.wire import BodyBroken, BodyStalled

Engine = Literal["auto", "boto", "crt", "raw"]
"""What moves the bytes; `auto` is what `docs/decisions/0008-engines.md` found best."""


class _RawBody:
    """An answer's body as botocore reads it."""

    def __init__(self, body: AnswerBody) -> None:
        self._body = body
        self.readinto = body.read_into
        self.close = body.close

    def stream(self) -> Iterator[bytes]:
        scratch = memoryview(bytearray(64 * 1024))
        while count := self.readinto(scratch):
            yield bytes(scratch[:count])

    def read(self, size: int | None = None) -> bytes:
        if size is None or size < 0:
            return b"".join(self.stream())
        scratch = memoryview(bytearray(size))
        return bytes(scratch[: self.readinto(scratch)])


def transport_for(
    engine: Engine, pace: Pace, trusted: str | bool, *, idle: int
) -> Transport | None:
    """The transport of an engine, or None for botocore's own way.

    `trusted` is botocore's `verify`: a file of certificates, or True for those it comes with.
    `idle` connections are kept. Raises UsageError for an engine that is not installed.
    """
    if engine == "boto":
        return None
    certificates = get_cert_path(trusted)  # type: ignore[arg-type]  # stubs know no file here
    if engine == "crt":
        try:
            from staging.wire.crt import CrtTransport  # not everywhere, and slow to import
        except ImportError as error:
            raise UsageError(
                "the engine `crt` needs the package awscrt, which is not installed here",
                reference="engine",
                hint="leave --engine out, or install checkpoint-staging with the extra `stage`",
            ) from error
        transport: Transport = CrtTransport(pace=pace, certificates=str(certificates), idle=idle)
        return transport

    def tls() -> ssl.SSLContext:
        # botocore's own settings, so that both engines trust, and log keys for, the same.
        context: ssl.SSLContext = create_urllib3_context()
        context.check_hostname = True
        context.load_verify_locations(certificates)
        return context

    return RawTransport(pace=pace, tls=tls, idle=idle)


def send(transport: Transport, request: AWSPreparedRequest, body: bytes | bytearray) -> AWSResponse:
    """Send a request through a transport. Raises what botocore raises for its own sending."""
    url = urlsplit(request.url)
    tls = url.scheme == "https"
    target = (url.path or "/") + (f"?{url.query}" if url.query else "")
    headers = [(str(name), _text(value)) for name, value in request.headers.items()]
    wanted = dict(headers).get("Range", "").rpartition("-")[2]
    try:
        answer = transport.send(
            Request(
                method=str(request.method),
                origin=Origin(tls, url.hostname or "", url.port or (443 if tls else 80)),
                target=target,
                headers=headers,
                body=body,
                streams=bool(request.stream_output),
                # What is left of a range keeps its end.
                tag=f"{request.method} {target} {wanted}",
            )
        )
        merged: dict[str, str] = {}
        for name, value in answer.headers:
            key = name.lower()
            merged[key] = f"{merged[key]}, {value}" if key in merged else value
        response = AWSResponse(
            request.url,
            answer.status,
            merged,  # type: ignore[arg-type]  # any mapping does
            _RawBody(answer.body),
        )
        if answer.status >= 300 or not request.stream_output:
            _ = response.content  # read now: what breaks here is repeated
    except (TransportError, BodyBroken) as error:
        raise _in_botocores_words(error, request) from error
    except ValueError as error:
        raise boto.ParamValidationError(report=str(error)) from error
    return response


def _in_botocores_words(error: Exception, request: AWSPreparedRequest) -> boto.BotoCoreError:
    url = request.url
    if isinstance(error, NotConnected):
        return boto.EndpointConnectionError(endpoint_url=url, error=error)
    if isinstance(error, ConnectTimedOut):
        return boto.ConnectTimeoutError(endpoint_url=url, error=error)
    if isinstance(error, Untrusted):
        return UntrustedError(endpoint_url=url, error=error)
    if isinstance(error, HandshakeFailed):
        return boto.SSLError(endpoint_url=url, error=error)
    if isinstance(error, (TimedOut, BodyStalled)):
        return Stalled(endpoint_url=url, error=error)
    return boto.ConnectionClosedError(endpoint_url=url, error=error, request=request)


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
