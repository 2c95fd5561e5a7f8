"""A tar behind a presigned URL: an archive that can be read anywhere, or one stream.

The URL is asked for one byte, for a HEAD is another request than the one that was signed. A server that
keeps to ranges and names the version by a strong ETag gives a `WebArchive`: every range is pinned with
`If-Match`, and the answer's ETag, range and length are held against what was asked for (I7). Any other
server gives a `WebStream`, read from end to end over one connection.

Invariants: a body that breaks off is continued where it broke, within `MAX_ATTEMPTS` requests for a range
(I11); `identity` holds a digest of the path beside ETag and size, for an ETag names a version of one
resource only.
Not guaranteed: that a server changes a strong ETag with every byte; it promises to.
"""

from __future__ import annotations

import datetime
import random
import re
from collections.abc import Callable
from typing import Final

from staging.source.archive import changed
from staging.source.web_host import Answer, BodyBroken, WebSettings
from staging.source.web_resource import Again, Resource, drain
from staging.source.web_url import WebUrl
from staging.transfer.scheduler import Cancellation
from staging.vocabulary.digest import HashFamily
from staging.vocabulary.errors import MalformedInput, StoreUnavailable

_READ_BLOCK: Final = 256 * 1024  # bytes per read of a body: the most that a stalled one loses

_STRONG_ETAG: Final = re.compile(r'"[\x21\x23-\x7e]+"')
_CONTENT_RANGE: Final = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19})")


def open_web(
    url: WebUrl,
    settings: WebSettings,
    *,
    cancelled: Cancellation | None = None,
    rng: random.Random | None = None,
    clock: Callable[[], datetime.datetime] = lambda: datetime.datetime.now(datetime.UTC),
) -> WebArchive | WebStream:
    """Ask the server what it can do and open the archive accordingly.

    Raises UsageError for a URL that may not be read (`url`, `url-scheme`, `url-address`,
    `url-redirect`, `certificate`), AccessDenied (`url-expired`, `url-denied`, `archived`), NotFound,
    MalformedInput for an answer that cannot be used, and StoreUnavailable when there is none.
    """
    resource = Resource(
        url,
        settings,
        Cancellation() if cancelled is None else cancelled,
        rng or random.Random(),  # noqa: S311 - jitter, not secrets
        clock,
    )
    try:
        return _open(resource)
    except BaseException:
        resource.close()
        raise


def _open(resource: Resource) -> WebArchive | WebStream:
    answer = resource.ask({"Range": "bytes=0-0"})
    if answer.status == 200:
        return WebStream(resource, answer)
    etag = answer.header("ETag") or ""
    found = _CONTENT_RANGE.fullmatch(answer.header("Content-Range") or "")
    drain(answer)
    if answer.status == 416:
        raise MalformedInput(
            f"{resource.url} is empty",
            reference="tar-empty",
            hint="ask for the archive again",
            side="source",
        )
    if found is not None and found[1] == found[2] == "0" and _STRONG_ETAG.fullmatch(etag):
        return WebArchive(resource, etag, int(found[3]))
    answer = resource.ask({})
    if answer.status != 200:
        answer.close()
        raise resource.not_in_range(f"with {answer.status} when asked for all of it")
    return WebStream(resource, answer)


class WebArchive:
    """One version of what a URL leads to, as an `Archive`."""

    kind = "url"
    read_size = None
    argument = "ARCHIVE"  # the URL itself must not stand in a command line that is shown

    def __init__(self, resource: Resource, etag: str, size: int) -> None:
        """Use `open_web`. `etag` is a strong one, with its quotes; `size` is in bytes."""
        self._resource = resource
        self._etag = etag
        self.size = size
        self.name = resource.url.name
        self.shown = str(resource.url)
        path = HashFamily.BLAKE3.hash(resource.url.path.encode()).hex()[:16]
        self.identity = f"{etag} {size} {path}"

    def read_into(self, offset: int, view: memoryview) -> None:
        """Fill `view` with the bytes from `offset`, over broken connections."""
        done = 0
        last = offset + len(view) - 1
        retry = self._resource.retry()
        while done < len(view):
            begin = offset + done
            answer = self._resource.ask(
                {"Range": f"bytes={begin}-{last}", "If-Match": self._etag}, retry
            )
            try:
                self._check(answer, begin, last)
                while done < len(view):
                    count = answer.read_into(view[done : done + _READ_BLOCK])
                    if not count:
                        raise BodyBroken("it is too short")
                    done += count
                    self._resource.cancelled.check()
            except BodyBroken as broken:
                reason = str(broken)
            else:
                continue
            finally:
                answer.close()
            retry.again(Again(f"the body broke off: {reason}"))

    def finish(self) -> None:
        """Nothing to check: every range was pinned."""

    def close(self) -> None:
        """Close all connections."""
        self._resource.close()

    def _check(self, answer: Answer, begin: int, last: int) -> None:
        """Raise MalformedInput unless the answer is that range of this version."""
        if answer.status in (412, 416) or answer.header("ETag") != self._etag:
            raise changed(self.shown)
        found = answer.header("Content-Range") or ""
        if answer.status != 206 or found != f"bytes {begin}-{last}/{self.size}":
            raise self._resource.not_in_range(f"with another range than bytes {begin}-{last}")


class WebStream:
    """What a URL leads to, once, from its first byte to its last: a stream for a sequential source.

    For servers that cannot continue a body that broke off, or not surely with the same version.
    """

    identity = None

    def __init__(self, resource: Resource, answer: Answer) -> None:
        """Use `open_web`. `size` is in bytes, None when the server does not tell."""
        self._resource = resource
        self._answer = answer
        self._at = 0
        self.size = answer.length
        self.name = resource.url.name
        self.shown = str(resource.url)

    def readinto(self, buffer: bytearray | memoryview) -> int:
        """Read some bytes; 0 at the end. Raises StoreUnavailable when the body breaks off."""
        with memoryview(buffer) as view:
            try:
                count = self._answer.read_into(view[:_READ_BLOCK])
            except BodyBroken as broken:
                reason = str(broken)
            else:
                self._at += count
                return count
        raise StoreUnavailable(
            f"{self.shown} broke off behind byte {self._at} ({reason}), and its server does not offer"
            " to go on from there",
            reference="connection",
            hint="run again; if it repeats, download the archive and give the file",
            side="source",
        )

    def finish(self) -> None:
        """Nothing to check: it came in one piece."""

    def close(self) -> None:
        """Close the connection."""
        self._answer.close()
        self._resource.close()
