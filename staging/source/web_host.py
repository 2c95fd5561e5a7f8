"""Connections to the host of a URL, kept for reuse, each to an address that was checked.

This is plain HTTP/1.1 of the standard library and not a client with sessions, for three reasons: bodies
are received into the caller's buffer; nothing writes the request line, which is the secret here, to a log;
and a connection goes to the address that was checked, while certificate and `Host` are the name's.

Invariants: no connection is made to an address that `staging.source.web_address` refused; nothing raised
here holds a request's target or a server's text (I13), and no such error is chained to one that does.
Not guaranteed: with a proxy, that the address is public. The proxy looks the name up, where this machine
cannot see it.
"""

from __future__ import annotations

import base64
import http.client
import io
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from staging.source.web_address import Resolve, checked_addresses, look_up, may_name
from staging.source.web_url import WebUrl
from staging.vocabulary.errors import StagingError, UsageError

_GONE: Final = (ConnectionError, ssl.SSLEOFError, ssl.SSLZeroReturnError)
"""How it shows that the server closed a connection that was kept for reuse."""

_FAILURES: Final = (OSError, ValueError, http.client.HTTPException)
"""What can come of a connection; ValueError when another thread has closed it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WebSettings:
    """How URLs may be read.

    Plain `http` and addresses that are not public are refused unless they are allowed. `ca_bundle` is a
    file of certificates to trust instead of the system's. `proxy` is the URL of an HTTP proxy, for
    this library looks at no environment. Timeouts are in seconds; `read_timeout` is that without a
    single byte. An answer that brings less than `floor_rate` bytes per second while `floor_seconds`
    were waited for it is given up as well.
    """

    allow_http: bool = False
    allow_private_address: bool = False
    ca_bundle: str | None = None
    proxy: str | None = None
    user_agent: str = "checkpoint-staging"
    connect_timeout: float = 10
    read_timeout: float = 60
    floor_rate: float = 16 * 1024
    floor_seconds: float = 30
    clock: Callable[[], float] = time.monotonic
    resolve: Resolve = look_up

    def __repr__(self) -> str:
        return "WebSettings(...)"  # a proxy's URL may hold a password


class Unanswered(Exception):
    """There was no connection, or no answer on it; again may help."""


class BodyBroken(Exception):
    """An answer's body ended before its length was reached; again may help."""


class Answer:
    """One answer: its status and headers, and its body, to be read once. Close it in any case."""

    def __init__(
        self, host: WebHost, connection: _Connection, response: http.client.HTTPResponse
    ) -> None:
        self._host = host
        self._connection: _Connection | None = connection
        self._response = response
        self.status = response.status

    def header(self, name: str) -> str | None:
        """A header's value."""
        return self._response.headers.get(name)

    @property
    def length(self) -> int | None:
        """Bytes of the body that are still to come, None when the answer does not tell."""
        return self._response.length

    def read_into(self, view: memoryview) -> int:
        """Read bytes of the body; 0 at its end. Raises BodyBroken."""
        try:
            count = self._response.readinto(view)
        except _FAILURES as error:
            reason = _reason(error)
        else:
            if count or not view or not self._response.length:
                return count
            reason = "it ended early"
        raise BodyBroken(reason)

    def close(self) -> None:
        """Give the connection back, or drop it when the body was not read to its end."""
        connection, self._connection = self._connection, None
        if connection is not None:
            reusable = self._response.isclosed() and connection.sock is not None
            self._response.close()
            self._host.give_back(connection, reusable=reusable)


class WebHost:
    """The host of one URL. Safe to use from several threads."""

    def __init__(self, url: WebUrl, settings: WebSettings) -> None:
        """Look the host up and check its addresses; nothing is connected yet.

        Raises UsageError when the URL may not be read with these settings, StoreUnavailable when the
        name cannot be looked up.
        """
        if url.scheme != "https" and not settings.allow_http:
            raise UsageError(
                f"{url} is not encrypted: whoever is on the way could read and change it",
                reference="url-scheme",
                hint="ask for an https:// URL, or give --allow-http if the network is your own",
            )
        if not settings.allow_private_address and not may_name(url.host):
            raise UsageError(
                f"{url.host} is not an address of the public internet",
                reference="url-address",
                hint="if this is a server of your own network, give --allow-private-address",
            )
        self._url = url
        self._settings = settings
        self._tls = _tls(settings) if url.scheme == "https" else None
        self._proxy = None if settings.proxy is None else _Proxy(settings.proxy)
        self._lock = threading.Lock()
        self._idle: list[_Connection] = []
        self._busy: set[_Connection] = set()
        self._closed = False
        self._addresses = () if self._proxy is not None else self._look_up()
        self._next = 0

    def get(self, url: WebUrl, headers: Mapping[str, str]) -> Answer:
        """Send a GET for a URL of this origin and return the answer once its headers are here.

        Raises Unanswered, and UsageError when the host's certificate is not trusted.
        """
        while True:
            connection, used = self._take()
            stale = False
            try:
                connection.request("GET", self._target(url), headers=self._headers(url, headers))
                return Answer(self, connection, connection.getresponse())
            except _FAILURES as error:
                stale = used and isinstance(error, _GONE)
                reason = _reason(error)
            self.give_back(connection, reusable=False)
            if not stale:
                self._next += 1  # where there are several addresses, another one may do better
                raise Unanswered(reason)
            self._drop_idle()  # those kept as long have most likely been closed with it

    def give_back(self, connection: _Connection, *, reusable: bool) -> None:
        """Take a connection back from an answer."""
        with self._lock:
            self._busy.discard(connection)
            if reusable and not self._closed:
                self._idle.append(connection)
                return
        connection.close()

    def close(self) -> None:
        """Close all connections; reads that are under way end with an error."""
        with self._lock:
            self._closed = True
            busy = list(self._busy)
        for connection in busy:
            connection.cut()
        self._drop_idle()

    def _target(self, url: WebUrl) -> str:
        through = self._proxy is not None and self._tls is None
        return f"{url.scheme}://{url.authority}{url.target}" if through else url.target

    def _headers(self, url: WebUrl, headers: Mapping[str, str]) -> dict[str, str]:
        own = {
            "Host": url.authority,
            "Accept-Encoding": "identity",
            "User-Agent": self._settings.user_agent,
        }
        if self._proxy is not None and self._tls is None:
            own.update(self._proxy.headers)
        return {**own, **headers}

    def _take(self) -> tuple[_Connection, bool]:
        """A connection, and whether it was used before."""
        with self._lock:
            if self._closed:
                raise Unanswered("closed")
            if self._idle:
                connection = self._idle.pop()
                self._busy.add(connection)
                return connection, True
        return self._connect(), False

    def _connect(self) -> _Connection:
        """A new connection, to the first address that answers."""
        if self._proxy is not None:
            places = [(self._proxy.host, self._proxy.port)]
        else:
            with self._lock:
                addresses = self._addresses or self._look_up()
                self._addresses = addresses
            places = [
                (addresses[(self._next + index) % len(addresses)], self._url.port)
                for index in range(len(addresses))
            ]
        reason = "no address"
        for place in places:
            connection = _Connection(*place, self._url, self._settings, self._tls, self._proxy)
            with self._lock:
                self._busy.add(connection)
            try:
                connection.connect()
            except ssl.SSLCertVerificationError as error:
                self.give_back(connection, reusable=False)
                raise self._distrusted(error) from None
            except _FAILURES as error:
                reason = _reason(error)
            else:
                return connection
            self.give_back(connection, reusable=False)
            self._next += 1
        with self._lock:
            self._addresses = ()  # the name may lead elsewhere by now; checked anew
        raise Unanswered(reason)

    def _look_up(self) -> tuple[str, ...]:
        return checked_addresses(
            self._url.host,
            self._url.port,
            resolve=self._settings.resolve,
            allow_private=self._settings.allow_private_address,
        )

    def _drop_idle(self) -> None:
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _distrusted(self, error: ssl.SSLCertVerificationError) -> StagingError:
        return UsageError(
            f"the certificate of {self._url.host} is not trusted: {error.verify_message}",
            reference="certificate",
            hint="check the URL's host; give its authority's certificate with --ca-bundle",
        )


class _Metered(io.RawIOBase):
    """What a socket receives for one answer. Raises TimeoutError when that is too little (I11)."""

    def __init__(self, raw: io.RawIOBase, settings: WebSettings) -> None:
        self._raw = raw
        self._settings = settings
        self._waited = 0.0
        self._received = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int | None:
        begin = self._settings.clock()
        count: int | None = self._raw.readinto(buffer)
        self._waited += self._settings.clock() - begin
        self._received += count or 0
        if self._waited >= self._settings.floor_seconds:
            if self._received < self._settings.floor_rate * self._waited:
                raise TimeoutError
            self._waited, self._received = 0.0, 0
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Connection(http.client.HTTPConnection):
    """A connection to an address, or to a proxy, that speaks TLS with the name behind it."""

    def __init__(
        self,
        host: str,
        port: int,
        url: WebUrl,
        settings: WebSettings,
        tls: ssl.SSLContext | None,
        proxy: _Proxy | None,
    ) -> None:
        super().__init__(host, port, timeout=settings.connect_timeout)
        self._name = url.host
        self._settings = settings
        self._tls = tls
        self._wire: socket.socket | None = None
        if proxy is not None and tls is not None:
            self.set_tunnel(url.host, url.port, proxy.headers)

    def connect(self) -> None:
        super().connect()
        if self._tls is not None:
            plain: socket.socket = self.sock
            self.sock = self._tls.wrap_socket(plain, server_hostname=self._name)
        self.sock.settimeout(self._settings.read_timeout)
        self._wire = self.sock
        self.response_class = self._metered  # type: ignore[assignment]  # it is only ever called

    def _metered(self, *given: Any, **named: Any) -> http.client.HTTPResponse:
        response = http.client.HTTPResponse(*given, **named)
        response.fp = io.BufferedReader(_Metered(response.fp.detach(), self._settings))
        return response

    def cut(self) -> None:
        """End whatever another thread does on this connection."""
        if self._wire is not None:
            try:
                # The base class's own: that of TLS sockets takes the state away under a reader's feet.
                socket.socket.shutdown(self._wire, socket.SHUT_RDWR)
            except OSError:  # it ended by itself
                return


class _Proxy:
    """Where an HTTP proxy is, and what it wants to know of us."""

    def __init__(self, text: str) -> None:
        try:
            parts = urlsplit(text if "://" in text else f"http://{text}")
            self.host, self.port = parts.hostname or "", parts.port or 80
        except ValueError:
            self.host = ""
        if not self.host or parts.scheme != "http":
            raise UsageError(
                "the proxy's URL is not usable",
                reference="connection-settings",
                hint="give the proxy as http://HOST:PORT",
            )
        self.headers: dict[str, str] = {}
        if parts.username is not None:
            secret = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
            self.headers["Proxy-Authorization"] = f"Basic {base64.b64encode(secret).decode()}"


def _tls(settings: WebSettings) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=settings.ca_bundle)
    except OSError as error:
        raise UsageError(
            f"cannot use the certificates to trust: {error.strerror or type(error).__name__}",
            reference="connection-settings",
            hint="check --ca-bundle: a file of certificates in PEM form",
        ) from error
    context.set_alpn_protocols(["http/1.1"])
    return context


def _reason(error: Exception) -> str:
    """What happened, in words that are not the server's."""
    if isinstance(error, TimeoutError):
        return "it was too slow"
    if isinstance(error, ssl.SSLError):
        return f"TLS failed ({error.reason or type(error).__name__})"
    return getattr(error, "strerror", None) or type(error).__name__
