"""A presigned URL: whoever has it may read, until it expires. So it is a secret, and shows little of itself.

Invariants: neither `str` nor `repr` of a `WebUrl` holds its query, and no error raised here repeats what
was given (I13). Only `target` holds all of it, for the request line.
Not guaranteed: that a secret in the path is recognised; the path is shown in messages.
"""

from __future__ import annotations

import datetime
import re
from pathlib import Path
from typing import Final
from urllib.parse import parse_qs, quote, unquote, urljoin, urlsplit

from staging.vocabulary.errors import UsageError
from staging.vocabulary.redaction import file_name, one_line

MAX_URL_BYTES: Final = 32 * 1024
"""Longest URL that is taken; presigned ones with a session token have two or three KiB."""

_PORTS: Final = {"https": 443, "http": 80}
_SHOWN_LENGTH: Final = 300
_COMPACT: Final = "%Y%m%dT%H%M%S%z"
_KEPT: Final = "%/?:@!$&'()*+,;=~-._[]|{}^"
"""Characters of a request target that are sent as they are: an escape added would break a signature."""


class WebUrl:
    """An absolute `https` or `http` URL, taken apart.

    `scheme`, `host` (lower case, without brackets) and `port` say where to connect, `authority` is the
    value of `Host`, `target` the path and query of the request line, which is the secret.
    """

    __slots__ = ("authority", "host", "path", "port", "scheme", "target")

    def __init__(self, text: str) -> None:
        """Parse a URL. Raises UsageError, with nothing of the text in it but a host."""
        if len(text) > MAX_URL_BYTES:
            raise _unusable(f"is longer than {MAX_URL_BYTES} bytes")
        if not text.isprintable() or " " in text:
            raise _unusable("holds spaces, line breaks or control characters")
        try:
            parts = urlsplit(text)
            port = parts.port
            self.host = (parts.hostname or "").encode("idna").decode("ascii").lower()
        except ValueError:  # its text may hold what was taken for a port, so it is no cause to show
            parts = None
        if parts is None or parts.scheme not in _PORTS or not self.host:
            raise _unusable("is no https://HOST/PATH")
        if "@" in parts.netloc:
            raise _unusable("holds a user name or password")
        self.scheme = parts.scheme
        self.port = port or _PORTS[parts.scheme]
        bracketed = f"[{self.host}]" if ":" in self.host else self.host
        usual = self.port == _PORTS[self.scheme]
        self.authority = bracketed if usual else f"{bracketed}:{self.port}"
        self.path = quote(parts.path or "/", safe=_KEPT)
        self.target = self.path + ("?" + quote(parts.query, safe=_KEPT) if parts.query else "")

    def __str__(self) -> str:
        return one_line(f"{self.scheme}://{self.authority}{self.path}")[:_SHOWN_LENGTH]

    def __repr__(self) -> str:
        return f"WebUrl({str(self)!r})"

    @property
    def name(self) -> str:
        """The last component of the path, as it may be published."""
        return file_name(Path(unquote(self.path)))

    @property
    def origin(self) -> tuple[str, str, int]:
        """Scheme, host and port: what a redirect must not leave."""
        return self.scheme, self.host, self.port

    def redirected(self, location: str) -> WebUrl:
        """The URL that a `Location` leads to. Raises UsageError when it is none."""
        return WebUrl(urljoin(f"{self.scheme}://{self.authority}{self.target}", location))

    def expires(self) -> datetime.datetime | None:
        """When the signature in the query ends, as far as the query says so.

        Knows the ways of AWS (both versions of signatures), Google, CloudFront and Azure.
        """
        fields = {
            name.lower(): values[0]
            for name, values in parse_qs(self.target.partition("?")[2]).items()
        }
        try:
            for vendor in ("x-amz", "x-goog"):
                if f"{vendor}-date" in fields and f"{vendor}-expires" in fields:
                    signed = datetime.datetime.strptime(
                        re.sub("Z$", "+0000", fields[f"{vendor}-date"]), _COMPACT
                    )
                    return signed + datetime.timedelta(seconds=int(fields[f"{vendor}-expires"]))
            if "expires" in fields:
                return datetime.datetime.fromtimestamp(int(fields["expires"]), datetime.UTC)
            if "se" in fields and "sig" in fields:
                end = datetime.datetime.fromisoformat(fields["se"])
                return end if end.tzinfo is not None else end.replace(tzinfo=datetime.UTC)
        except (ValueError, OverflowError, OSError):  # numbers and times that are none
            return None
        return None


def _unusable(why: str) -> UsageError:
    return UsageError(
        f"the source's URL {why}",
        reference="url",
        hint="give the whole presigned URL, quoted: https://HOST/PATH?QUERY",
    )
