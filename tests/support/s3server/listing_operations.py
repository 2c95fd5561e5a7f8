"""Listings of objects: pages in the byte order of keys, rolled up at a delimiter."""

from __future__ import annotations

import base64
import binascii
from bisect import bisect_left, bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from urllib.parse import quote_plus

from tests.support.s3server import xml
from tests.support.s3server.call import Call, xml_response
from tests.support.s3server.errors import invalid_argument
from tests.support.s3server.http import Response
from tests.support.s3server.objects import StoredObject
from tests.support.s3server.xml import Xml, element


@dataclass(frozen=True, slots=True)
class _Entry:
    """A key, or a prefix that stands for all keys below it."""

    name: str
    is_prefix: bool

    def token(self) -> str:
        return base64.urlsafe_b64encode(
            f"{'p' if self.is_prefix else 'k'}{self.name}".encode()
        ).decode()

    @classmethod
    def from_token(cls, token: str) -> _Entry:
        try:
            text = base64.b64decode(token, altchars=b"-_", validate=True).decode()
        except (binascii.Error, UnicodeDecodeError):
            text = ""
        if text[:1] not in ("k", "p"):
            raise invalid_argument("The continuation token provided is incorrect")
        return cls(text[1:], text[0] == "p")


def list_objects_v2(call: Call) -> Response:
    query = call.query
    prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
    limit = page_limit(call, "max-keys")
    keys = [key.encode() for key in call.bucket.keys(prefix)]
    if "continuation-token" in query:
        start = _after(keys, _Entry.from_token(query["continuation-token"]))
    else:
        start = _after(keys, _Entry(query.get("start-after", ""), is_prefix=False))
    entries, more = _page(keys, start, prefix.encode(), delimiter.encode(), limit)
    encode = encoder(call)
    return xml_response(
        xml.document(
            "ListBucketResult",
            element("Name", call.bucket.name),
            element("Prefix", encode(prefix)),
            *([element("Delimiter", encode(delimiter))] if delimiter else []),
            *(
                [element("StartAfter", encode(query["start-after"]))]
                if "start-after" in query
                else []
            ),
            *([element("EncodingType", "url")] if "encoding-type" in query else []),
            element("MaxKeys", limit),
            element("KeyCount", len(entries)),
            element("IsTruncated", more),
            *([element("NextContinuationToken", entries[-1].token())] if more else []),
            *(
                _contents(call.bucket.object(entry.name), encode)
                for entry in entries
                if not entry.is_prefix
            ),
            *(
                element("CommonPrefixes", element("Prefix", encode(entry.name)))
                for entry in entries
                if entry.is_prefix
            ),
        )
    )


def page_limit(call: Call, parameter: str) -> int:
    """How many entries a page may have. Raises S3Error InvalidArgument."""
    text = call.query.get(parameter, "1000")
    if not text.isdecimal():
        raise invalid_argument(f"Provided {parameter} not an integer or within integer range")
    return min(int(text), call.limits.page_size)


def encoder(call: Call) -> Callable[[str], str]:
    """How names go into the document: as they are, or URL-encoded with `+` for a space, as S3 does."""
    kind = call.query.get("encoding-type")
    if kind is None:
        return str
    if kind != "url":
        raise invalid_argument("Invalid Encoding Method specified in Request")
    return lambda name: quote_plus(name, safe="/*-._")


def timestamp(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%S.000Z")


def _contents(version: StoredObject, encode: Callable[[str], str]) -> Xml:
    return element(
        "Contents",
        element("Key", encode(version.key)),
        element("LastModified", timestamp(version.last_modified)),
        element("ETag", f'"{version.etag}"'),
        element("ChecksumAlgorithm", "CRC64NVME"),
        element("ChecksumType", "FULL_OBJECT"),
        element("Size", version.size),
        element("StorageClass", version.headers.get("x-amz-storage-class", "STANDARD")),
    )


def _after(keys: list[bytes], entry: _Entry) -> int:
    """Index of the first key after an entry: after all of its keys, for a prefix."""
    name = entry.name.encode()
    return _past_prefix(keys, name) if entry.is_prefix else bisect_right(keys, name)


def _past_prefix(keys: list[bytes], prefix: bytes) -> int:
    return bisect_left(keys, True, key=lambda key: key[: len(prefix)] > prefix)


def _page(
    keys: list[bytes], start: int, prefix: bytes, delimiter: bytes, limit: int
) -> tuple[list[_Entry], bool]:
    """At most `limit` entries from an index on, and whether there are more. Sorted, as `keys` is."""
    entries: list[_Entry] = []
    index = start
    while index < len(keys) and len(entries) < limit:
        key = keys[index]
        cut = key.find(delimiter, len(prefix)) if delimiter else -1
        if cut < 0:
            entries.append(_Entry(key.decode(), is_prefix=False))
            index += 1
        else:
            common = key[: cut + len(delimiter)]
            entries.append(_Entry(common.decode(), is_prefix=True))
            index = _past_prefix(keys, common)
    return entries, index < len(keys) and limit > 0
