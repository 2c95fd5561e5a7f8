"""Requests to a Hub, and to the storage that it redirects to.

Proxies and certificates are those of the environment. Of huggingface_hub this uses what is set up for it,
and neither its HTTP session, whose hooks log URLs, nor its own calls: those look for a token on this machine,
ask the public Hub about the calling program and cache the answer in HF_HOME, log what they retry, and wait as
long as a server says.

Invariants: the token goes to the Hub's own origin and nowhere else, and is in no message; neither is the
query of a storage URL, which is as good as a password (I13). Nothing is written to disk. A name of a
branch is asked about once: everything after that is asked by commit. A request is repeated at most
`MAX_ATTEMPTS` - 1 times, and a body that broke off is continued where it ended (I11). A range is taken
from one version of what the storage holds, as far as its ETags tell (I7).
Not guaranteed: that the bytes are right; the digests that `HubFile` carries tell.
"""

from __future__ import annotations

import contextlib
import logging
import random
import re
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar
from urllib.parse import urljoin, urlsplit

from staging.transfer.scheduler import Cancellation
from staging.vocabulary import strict_json
from staging.vocabulary.errors import (
    AccessDenied,
    MalformedInput,
    NotFound,
    StagingError,
    StoreUnavailable,
    UsageError,
)
from staging.vocabulary.redaction import one_line

if TYPE_CHECKING:
    import httpx2

DEFAULT_ENDPOINT: Final = "https://huggingface.co"

MAX_ATTEMPTS: Final = 6
"""Times a request is sent before the Hub counts as unavailable."""

_MAX_JSON_BYTES: Final = 16 * 1024 * 1024
_MAX_REDIRECTS: Final = 5
_MAX_WAIT: Final = 60.0  # most seconds that a Retry-After is obeyed for
_CONNECT_TIMEOUT: Final = 10.0  # seconds
_WINDOW: Final = 60.0  # seconds in which a body
_FLOOR: Final = 1024 * 1024  # has to bring so many bytes
_MOST_WITHOUT_RANGES: Final = (
    64 * 1024 * 1024
)  # bytes of a file that may be read from its beginning again
_SHOWN: Final = 200  # characters of what a stranger says
_PASSING: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
_LINK_SPENT: Final = frozenset({400, 401, 403, 404, 410})
"""How storage says that a signed URL has expired."""

_CONTENT_RANGE: Final = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19})")
_TOKEN: Final = re.compile(r"[!-~]+")

_HINT_ACCESS: Final = (
    "check the name, accept the model's licence on its page, and set HF_TOKEN to a token of who did"
)
_HINT_AGAIN: Final = (
    "run again; the Hub limits requests without a token more than those with HF_TOKEN"
)
_HINT_CHANGED: Final = "run again; if it stays, the Hub or the mirror in HF_ENDPOINT is at fault"

_T = TypeVar("_T")


@dataclass(slots=True)
class HubFile:
    """A file of one commit: its size in bytes, and the digest that the Hub names it by.

    `digest` is the SHA-256 of the content when `is_lfs`, else the SHA-1 of git's blob. `location` is where
    the last bytes came from, with a strong ETag if it gave one.
    """

    name: str
    size: int
    digest: str
    is_lfs: bool
    url: str
    commit: str
    location: tuple[str, str | None] | None = field(default=None, compare=False)


class _Passing(Exception):
    """A failure that may be gone the next time; `wait` is the seconds that the server asked for."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


class HubHttp:
    """A Hub at `endpoint`, asked in the name of `token`, or of nobody. Safe for several threads."""

    def __init__(
        self,
        *,
        endpoint: str = DEFAULT_ENDPOINT,
        token: str | None = None,
        read_timeout: float = 60.0,
        backoff: float = 0.5,
        rng: random.Random | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Check the settings; no request is sent.

        `read_timeout` is the seconds without a single byte after which a request counts as failed,
        `backoff` the most seconds before its first repeat, which doubles each time. Raises UsageError
        for unusable settings, and when huggingface_hub is not installed.
        """
        self.endpoint = _checked_endpoint(endpoint, has_token=token is not None)
        self._origin = _origin(self.endpoint)
        self.host = urlsplit(self.endpoint).hostname or ""
        if token is not None and not _TOKEN.fullmatch(token):
            raise UsageError(
                "the Hub's token is empty or has characters that no token has",
                reference="hub-token",
                hint="set HF_TOKEN to the token alone, without quotes or line breaks",
            )
        self._token = token
        self._read_timeout = read_timeout
        self._backoff = backoff
        self._rng = rng or random.Random()  # noqa: S311 - jitter, not secrets
        self._clock = clock
        self._httpx, self._hub = _library()
        # A client of our own: huggingface_hub's has hooks that log the URLs of requests, and write them
        # to stderr when its debugging is on. Those of the storage are signed (I13).
        for name in ("httpx2", "httpcore2", "httpcore"):
            logging.getLogger(name).setLevel(logging.WARNING)
        self._client = self._httpx.Client(follow_redirects=False, timeout=None)
        weakref.finalize(self, self._client.close)

    def close(self) -> None:
        """Close connections. No request may follow."""
        self._client.close()

    def read_into(
        self, file: HubFile, offset: int, view: memoryview, cancelled: Cancellation
    ) -> None:
        """Fill `view` with the bytes of a file from `offset`. An empty `view` needs no request.

        Raises MalformedInput when the file is not the one that was listed, NotFound, AccessDenied,
        StoreUnavailable when the Hub or its storage keep failing, and Cancelled.
        """
        done = 0

        def go_on() -> None:
            nonlocal done
            since, then = self._clock(), done
            start, end = offset + done, offset + len(view)
            with self._range(file, start, end) as response:
                # A server that ignores ranges sends the file from its beginning, and past our end.
                whole = response.status_code == 200
                skip = start if whole else 0
                for data in response.iter_raw():
                    cancelled.check()
                    if (now := self._clock()) > since + _WINDOW:
                        if done < then + _FLOOR:
                            raise _Passing(f"less than {_FLOOR} bytes in {_WINDOW:.0f} s")
                        since, then = now, done
                    wanted = data[skip:]
                    skip = max(0, skip - len(data))
                    room = len(view) - done
                    if len(wanted) > room and (not whole or end == file.size):
                        raise _changed(file, "is longer than it was listed")
                    wanted = wanted[:room]
                    view[done : done + len(wanted)] = wanted
                    done += len(wanted)
                    if whole and done == len(view) and end < file.size:
                        break
            if done < len(view):
                raise _Passing("the body ended early")

        if view:
            self._persist(go_on, _shown(file), cancelled)

    @contextlib.contextmanager
    def _range(self, file: HubFile, start: int, end: int) -> Iterator[httpx2.Response]:
        """The answer whose body is the bytes from `start` to before `end`, wherever they lie."""
        known = file.location
        url, etag = known or (file.url, None)
        headers = {}
        if (start, end) != (0, file.size):
            headers["Range"] = f"bytes={start}-{end - 1}"
        with self._request(url, headers, file=file, if_match=etag) as response:
            if not self._is_ours(str(response.url)) and response.status_code in _LINK_SPENT:
                file.location = None
                if known is not None:
                    raise _Passing("the storage's link has expired")
            if response.status_code not in (200, 206):
                self._refuse(response, _shown(file), file)
            _check_range(response, file, start, end)
            found = response.headers.get("etag", "")
            if etag is not None and found and found != etag:
                raise _changed(file, "has another ETag than before")
            strong = found if found.startswith('"') else None
            file.location = (str(response.url), strong)
            yield response

    def json(self, path: str, what: str) -> tuple[Any, Mapping[str, str]]:
        """A document below the endpoint, and the headers that came with it; `what` names it in errors.

        Raises NotFound, AccessDenied, StoreUnavailable, and MalformedInput when it is not JSON.
        """

        def ask() -> tuple[bytes, Mapping[str, str]]:
            with self._request(f"{self.endpoint}/{path}", {}) as response:
                if response.status_code != 200:
                    self._refuse(response, what, None)
                data = bytearray()
                for piece in response.iter_raw():
                    data += piece
                    if len(data) > _MAX_JSON_BYTES:
                        raise malformed(what, f"is longer than {_MAX_JSON_BYTES} bytes")
                return bytes(data), response.headers

        data, headers = self._persist(ask, what, Cancellation())
        try:
            return strict_json.loads(data, limit=_MAX_JSON_BYTES), headers
        except ValueError as error:
            raise malformed(what, "is not JSON") from error

    def _persist(self, action: Callable[[], _T], what: str, cancelled: Cancellation) -> _T:
        """Do it, again when it fails in a way that may pass. The only place that repeats anything."""
        transient = (_Passing, self._httpx.TransportError)
        for attempt in range(MAX_ATTEMPTS):
            cancelled.check()
            try:
                return action()
            except transient as error:
                failure = error
            except self._hub.errors.OfflineModeIsEnabled:
                raise UsageError(
                    "huggingface_hub is set to work without the network",
                    reference="hub-offline",
                    hint="unset HF_HUB_OFFLINE and TRANSFORMERS_OFFLINE",
                ) from None  # whose text holds the URL
            if attempt + 1 < MAX_ATTEMPTS:
                asked = min(getattr(failure, "wait", 0.0), _MAX_WAIT)
                cancelled.sleep(max(asked, self._rng.uniform(0, self._backoff * 2**attempt)))
        # Without its cause: a library's exceptions hold the whole request.
        raise StoreUnavailable(
            f"{self.host} did not give {what} in {MAX_ATTEMPTS} attempts: {self._clean(_reason(failure))}",
            reference="hub-unavailable",
            hint=_HINT_AGAIN,
            side="source",
        ) from None

    @contextlib.contextmanager
    def _request(
        self,
        url: str,
        headers: Mapping[str, str],
        *,
        file: HubFile | None = None,
        if_match: str | None = None,
    ) -> Iterator[httpx2.Response]:
        """Send a GET and follow redirects by hand; the token stays with the Hub."""
        if self._hub.constants.HF_HUB_OFFLINE:
            raise self._hub.errors.OfflineModeIsEnabled
        timeout = self._httpx.Timeout(self._read_timeout, connect=_CONNECT_TIMEOUT)
        for _ in range(_MAX_REDIRECTS + 1):
            sent = {**headers, "Accept-Encoding": "identity", "User-Agent": "checkpoint-staging"}
            if if_match is not None:
                sent["If-Match"], if_match = if_match, None
            if self._token is not None and self._is_ours(url):
                sent["Authorization"] = f"Bearer {self._token}"
            with self._client.stream(
                "GET", url, headers=sent, follow_redirects=False, timeout=timeout
            ) as response:
                if file is not None and self._is_ours(url):
                    _check_promise(response, file)
                if not response.has_redirect_location:
                    yield response
                    return
                url = self._redirected(url, response.headers["location"])
        raise StagingError(
            f"{self.host} redirects in circles",
            reference="hub-answer",
            hint="check HF_ENDPOINT",
            side="source",
        )

    def _redirected(self, url: str, location: str) -> str:
        """Where a redirect leads. Raises MalformedInput for what is no URL, or gives up encryption."""
        try:
            target = urljoin(url, location)
            self._httpx.URL(target)
            scheme, host, _ = _origin(target)
        except (ValueError, self._httpx.InvalidURL):
            raise malformed(f"a redirect of {self.host}", "leads to no URL") from None
        if not host or scheme not in ("https", urlsplit(url).scheme):
            raise malformed(f"a redirect of {self.host}", "leads away from https")
        return target

    def _is_ours(self, url: str) -> bool:
        """True for URLs of the Hub itself, which may see the token."""
        return _origin(url) == self._origin

    def _refuse(self, response: httpx2.Response, what: str, file: HubFile | None) -> NoReturn:
        """Raise what an answer that is no success means."""
        status = response.status_code
        if status in _PASSING or status >= 500:
            raise _Passing(f"HTTP {status}", _retry_after(response.headers.get("retry-after")))
        if file is not None and status in (412, 416):
            raise _changed(file, f"is another one now (HTTP {status})")
        ours = self._is_ours(str(response.url))
        cause = response.headers.get("x-error-code", "") if ours else ""
        said = self._clean(response.headers.get("x-error-message", "")) if ours else ""
        tail = f": {said}" if said else ""
        if cause == "RevisionNotFound":
            raise NotFound(
                f"{self.host} has the repository but not the revision of {what}{tail}",
                reference="hub-not-found",
                hint="check the branch, tag or commit after @",
                side="source",
            )
        if cause == "EntryNotFound" or (file is not None and status in (404, 410)):
            raise NotFound(
                f"{self.host} lists {what} but does not have it{tail}",
                reference="hub-not-found",
                hint=_HINT_CHANGED,
                side="source",
            )
        if cause == "RepoNotFound" or status in (404, 410):
            hint = "check the name; a private repository needs HF_TOKEN"
            if self._token is not None:
                hint = "check the name, and that the token in HF_TOKEN may read this repository"
            raise NotFound(
                f"{self.host} has no repository for {what}, or does not show it{tail}",
                reference="hub-not-found",
                hint=hint,
                side="source",
            )
        if status in (401, 403):
            where = self.host if ours else f"the storage of {self.host}"
            raise AccessDenied(
                f"{where} denies {what} (HTTP {status}){tail}",
                reference="hub-denied",
                hint=_HINT_ACCESS,
                side="source",
            )
        raise StagingError(
            f"{self.host} answers HTTP {status} to {what}{tail}",
            reference="hub-answer",
            hint="check the name and HF_ENDPOINT",
            side="source",
        )

    def _clean(self, text: str) -> str:
        """What a server or a library says, as it may be shown (I13)."""
        if self._token is not None:
            text = text.replace(self._token, "...")
        return one_line(text)[:_SHOWN]


def _library() -> tuple[Any, Any]:
    """The HTTP library and huggingface_hub. They take their time to import."""
    try:
        import httpx2
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.errors
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("httpx2", "huggingface_hub"):
            raise
        raise UsageError(
            "reading from a Hub needs huggingface_hub",
            reference="extra-missing",
            hint="pip install 'checkpoint-staging[stage]', or '.[stage]' in a checkout",
        ) from error
    return httpx2, huggingface_hub


def _checked_endpoint(endpoint: str, *, has_token: bool) -> str:
    """The endpoint without its last slash. Raises UsageError when it is of no use, or not safe."""
    try:
        parts = urlsplit(endpoint)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        usable = usable and "@" not in parts.netloc and not parts.query and not parts.fragment
    except ValueError:
        usable = False
    if not usable:
        raise UsageError(
            "the Hub's endpoint is no plain http or https URL",
            reference="hub-endpoint",
            hint=f"set HF_ENDPOINT to a URL such as {DEFAULT_ENDPOINT}, without a user or query",
        )
    if (
        has_token
        and parts.scheme == "http"
        and parts.hostname not in ("127.0.0.1", "::1", "localhost")
    ):
        raise UsageError(
            "the token would travel unencrypted to the Hub's endpoint",
            reference="hub-endpoint",
            hint="use an https endpoint, or none of HF_TOKEN",
        )
    return endpoint.rstrip("/")


def _origin(url: str) -> tuple[str, str, int | None]:
    parts = urlsplit(url)
    default = {"http": 80, "https": 443}.get(parts.scheme)
    return parts.scheme, (parts.hostname or "").lower(), parts.port or default


def _check_promise(response: httpx2.Response, file: HubFile) -> None:
    """Compare what the Hub says of a file beside its bytes, or beside the way to them."""
    headers = response.headers
    if headers.get("x-repo-commit", file.commit) != file.commit:
        raise _changed(file, "comes from another commit")
    if headers.get("x-linked-size", str(file.size)) != str(file.size):
        raise _changed(file, "has another size than it was listed with")
    linked = headers.get("x-linked-etag", "").strip('"')
    if file.is_lfs and linked and linked != file.digest:
        raise _changed(file, "has another digest than it was listed with")


def _check_range(response: httpx2.Response, file: HubFile, start: int, end: int) -> None:
    """Make sure that the body is the asked range of a file of the listed size."""
    if response.status_code == 206:
        found = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", ""))
        if found is not None and int(found[3]) != file.size:
            raise _changed(file, f"has {found[3]} bytes instead of {file.size}")
        if found is None or (int(found[1]), int(found[2])) != (start, end - 1):
            raise _Passing("another range came than was asked for")
        return
    length = response.headers.get("content-length")
    if length is not None and length != str(file.size):
        raise _changed(file, f"has {one_line(length)[:20]} bytes instead of {file.size}")
    if (start, end) != (0, file.size) and file.size > _MOST_WITHOUT_RANGES:
        raise StagingError(
            f"{_shown(file)} cannot be had in ranges",
            reference="hub-answer",
            hint="the mirror in HF_ENDPOINT is of no use here: unset it",
            side="source",
        )


def _retry_after(value: str | None) -> float:
    """Seconds that a server asks to wait; its dates are not read."""
    return float(value) if value is not None and value.isascii() and value.isdecimal() else 0.0


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, _Passing) else f"{type(error).__name__} {error}"


def _shown(file: HubFile) -> str:
    return one_line(repr(file.name))[:_SHOWN]


def _changed(file: HubFile, how: str) -> MalformedInput:
    return MalformedInput(
        f"{_shown(file)} of the repository {how}",
        reference="source-changed",
        hint=_HINT_CHANGED,
        side="source",
    )


def malformed(what: str, how: str) -> MalformedInput:
    """What a Hub said cannot be what it meant."""
    return MalformedInput(
        f"{what} {how}", reference="hub-malformed", hint=_HINT_CHANGED, side="source"
    )
