"""Asking for what is behind a URL, until there is an answer of use or an error that says why there is none.

A request is repeated when there was no answer or the server is busy, within `MAX_ATTEMPTS` for one range
(I11). Redirects are followed a few times within one origin, and nowhere else: a signed URL that leads to
strangers is not what was given. Every other answer is one of the library's errors.

Invariants: no message, exception chain or `repr` holds the URL's query or a server's text, but for the code
of an S3 error (I13): what S3 says about a signature repeats it.
"""

from __future__ import annotations

import datetime
import email.utils
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from staging.source.web_host import Answer, BodyBroken, Unanswered, WebHost, WebSettings
from staging.source.web_url import WebUrl
from staging.transfer.ranges import MAX_ATTEMPTS
from staging.transfer.scheduler import Cancellation
from staging.vocabulary.errors import (
    AccessDenied,
    MalformedInput,
    NotFound,
    StagingError,
    StoreUnavailable,
    UsageError,
)

MAX_REDIRECTS: Final = 3

_BACKOFF: Final = 0.1  # most seconds before the first repeat; the bound doubles each time
_LONGEST_WAIT: Final = 20.0  # seconds that a server's Retry-After is heeded
_ERROR_BODY: Final = 16 * 1024  # bytes of a refusal that are looked at

_CODE: Final = re.compile(rb"<Code>([A-Za-z]{1,60})</Code>")
_EXPIRED: Final = re.compile(
    rb"(?i)\bexpired\b|<Code>\w*Expired\w*</Code>|not valid in the specified time frame"
)
_BUSY_STATUSES: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})


@dataclass(frozen=True, slots=True)
class Again:
    """Why a request is worth repeating: `busy` when the server said so, and the seconds it asked for."""

    reason: str
    busy: bool = False
    wait: float = 0


class Retry:
    """The attempts at one range."""

    def __init__(self, resource: Resource) -> None:
        self._resource = resource
        self._failures = 0

    def again(self, why: Again) -> None:
        """Wait before the next attempt. Raises StoreUnavailable after the last one."""
        self._failures += 1
        if self._failures >= MAX_ATTEMPTS:
            raise self._resource.given_up(why)
        bound = _BACKOFF * 2 ** (self._failures - 1)
        self._resource.cancelled.sleep(max(why.wait, self._resource.rng.uniform(0, bound)))


class Resource:
    """A URL and the connections to its host: requests go out, and answers that are of use come back."""

    def __init__(
        self,
        url: WebUrl,
        settings: WebSettings,
        cancelled: Cancellation,
        rng: random.Random,
        clock: Callable[[], datetime.datetime],
    ) -> None:
        self.url = url
        self.cancelled = cancelled
        self.rng = rng
        self._clock = clock
        self._host = WebHost(url, settings)

    def retry(self) -> Retry:
        """A fresh count of attempts."""
        return Retry(self)

    def ask(self, headers: dict[str, str], retry: Retry | None = None) -> Answer:
        """Send a GET until there is an answer of status 200, 206, 412 or 416.

        Raises the error that any other answer stands for.
        """
        retry = self.retry() if retry is None else retry
        while True:
            self.cancelled.check()
            answer = self._follow(headers)
            if isinstance(answer, Answer):
                return answer
            retry.again(answer)

    def close(self) -> None:
        """Call off what waits and close all connections."""
        self.cancelled.set()
        self._host.close()

    def _follow(self, headers: dict[str, str]) -> Answer | Again:
        url = self.url
        for _ in range(MAX_REDIRECTS + 1):
            try:
                answer = self._host.get(url, headers)
            except Unanswered as unanswered:
                return Again(str(unanswered))
            if answer.status not in _REDIRECTS:
                return self._judge(url, answer)
            location = answer.header("Location")
            drain(answer)
            url = self._redirected(url, location)
        raise self._misled(f"redirects more than {MAX_REDIRECTS} times")

    def _redirected(self, url: WebUrl, location: str | None) -> WebUrl:
        if location is None:
            raise self._misled("redirects without saying where to")
        try:
            there = url.redirected(location)
        except UsageError:
            there = None
        if there is None:
            raise self._misled("redirects to what is no URL")
        if there.origin != url.origin:
            raise self._misled(f"redirects to another place, {there.scheme}://{there.authority}")
        return there

    def _judge(self, url: WebUrl, answer: Answer) -> Answer | Again:
        """The answer if it is of use, and the reason to repeat the request if one may come."""
        status = answer.status
        if status in (200, 206):
            encoding = (answer.header("Content-Encoding") or "identity").strip().lower()
            if encoding == "identity":
                return answer
            answer.close()
            raise MalformedInput(
                f"{self.url} is sent with a Content-Encoding, so its bytes are not the archive's",
                reference="url-encoding",
                hint="have it stored without Content-Encoding, or download it and give the file",
                side="source",
            )
        if status in (412, 416):
            return answer
        if status in _BUSY_STATUSES:
            wait = answer.header("Retry-After") or ""
            drain(answer)
            seconds = min(float(wait), _LONGEST_WAIT) if wait.isdecimal() else 0
            return Again(f"it answered {status}", busy=True, wait=seconds)
        body = drain(answer)
        raise self._refused(url, answer, body)

    def _refused(self, url: WebUrl, answer: Answer, body: bytes) -> StagingError:
        status = answer.status
        code = _CODE.search(body)
        said = f"{status} {code[1].decode()}" if code else str(status)
        if status in (400, 401, 403) and (_EXPIRED.search(body) or self._is_over(url, answer)):
            return AccessDenied(
                f"the URL has expired: {self.url} answered {said}",
                reference="url-expired",
                hint="get a fresh URL and run again; what was sent is kept",
                side="source",
            )
        if code and code[1] == b"InvalidObjectState":
            return AccessDenied(
                f"{self.url} is in an archive tier: it answered {said}",
                reference="archived",
                hint="ask whoever made the URL to restore the object first",
                side="source",
            )
        if status in (400, 401, 403):
            return AccessDenied(
                f"the server refuses the URL: {self.url} answered {said}",
                reference="url-denied",
                hint="check that the URL is whole, with everything behind the ?; else get a fresh one",
                side="source",
            )
        if status in (404, 410):
            return NotFound(
                f"there is nothing at {self.url}: it answered {said}",
                reference="source",
                hint="check the URL; it may have been deleted or moved",
                side="source",
            )
        return MalformedInput(
            f"{self.url} answered {said} to a plain GET",
            reference="url-answer",
            hint="check that the URL leads to the archive itself, not to a page about it",
            side="source",
        )

    def _is_over(self, url: WebUrl, answer: Answer) -> bool:
        """True when the query's own end has passed, by the server's clock if it tells the time."""
        end = url.expires()
        if end is None:
            return False
        now = None
        try:
            now = email.utils.parsedate_to_datetime(answer.header("Date") or "")
        except ValueError:
            return end <= self._clock()
        return end <= (now if now.tzinfo is not None else now.replace(tzinfo=datetime.UTC))

    def not_in_range(self, how: str) -> MalformedInput:
        """The error of a server that does not keep to what was asked for."""
        return MalformedInput(
            f"{self.url} answered {how}",
            reference="url-range",
            hint="this server cannot be read in parts: download the archive and give the file",
            side="source",
        )

    def given_up(self, why: Again) -> StoreUnavailable:
        """The error when the last attempt has failed."""
        what = f"{self.url} could not be read in {MAX_ATTEMPTS} attempts: {why.reason}"
        if why.busy:
            return StoreUnavailable(
                what, reference="source-busy", hint="run again in a few minutes", side="source"
            )
        return StoreUnavailable(
            what,
            reference="connection",
            hint="check the network between here and the URL's host, then run again",
            side="source",
        )

    def _misled(self, how: str) -> UsageError:
        return UsageError(
            f"{self.url} {how}",
            reference="url-redirect",
            hint="if you trust where it leads, give that URL instead",
        )


def drain(answer: Answer) -> bytes:
    """The first bytes of a body nobody needs for its own sake; the connection is free then."""
    body = bytearray(_ERROR_BODY)
    try:
        count = answer.read_into(memoryview(body))
    except BodyBroken:
        count = 0
    finally:
        answer.close()
    return bytes(body[:count])
