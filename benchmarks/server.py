"""An S3 for measuring: as little work per byte as there can be, and a count of everything.

    python -m benchmarks.server --scratch DIRECTORY [--certificate FILE --key FILE] [--cpus 0,1]

Prints one JSON line with its ports, serves until standard input closes. Anybody may do anything: no
signature is looked at. Two buckets are there:

    sink   bodies are counted and dropped; objects have a name and a size
    keep   bodies go to files in the scratch directory and can be read back

Whatever lies under `.checkpoint/` is kept in both, and its CRC64NVME is checked, as are conditions
(`If-None-Match`, `If-Match`) everywhere. Payload checksums are taken on trust: checking them is the
server's work and would be measured as the client's waiting. So a run proves nothing about integrity;
the tests do that, with a server that checks everything.

`GET /-/state?prefix=P` tells objects, open uploads and counts; `POST /-/reset?prefix=P` drops them.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import html
import itertools
import json
import os
import re
import socket
import ssl
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

from benchmarks.framing import Dechunker, MalformedFraming
from staging.vocabulary import crc64

CONTROL: Final = ".checkpoint/"
_BLOCK: Final = 256 * 1024
"""Bytes per read of a socket: what stays in the core's own cache."""
_SMALL: Final = 1024 * 1024
"""Kept bodies up to this size stay in memory."""
_IDLE: Final = 300  # seconds a connection may say nothing
_MAX_HEAD: Final = 64 * 1024
_PAGE: Final = 1000
_REASONS: Final = {
    200: "OK",
    204: "No Content",
    206: "Partial Content",
    400: "Bad Request",
    404: "Not Found",
    412: "Precondition Failed",
    416: "Range Not Satisfiable",
    501: "Not Implemented",
}


class Refusal(Exception):
    """An answer that is an error, as S3 words it."""

    def __init__(self, status: int, code: str) -> None:
        super().__init__(code)
        self.status = status
        self.code = code


class Gone(Exception):
    """The client closed the connection."""


@dataclass(frozen=True, slots=True)
class Content:
    """The bytes of a part or an object; `data` and `path` are both None when they were dropped."""

    size: int
    data: bytes | None = None
    path: Path | None = None


@dataclass(frozen=True, slots=True)
class Part:
    """An uploaded part."""

    content: Content
    etag: str
    crc64nvme: str | None
    modified: str


@dataclass(frozen=True, slots=True)
class Stored:
    """An object: what it consists of, in order."""

    pieces: tuple[Content, ...]
    etag: str
    crc64nvme: str | None
    metadata: Mapping[str, str]
    modified: str

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(piece.size for piece in self.pieces)


@dataclass(slots=True)
class Upload:
    """An open multipart upload."""

    key: str
    metadata: Mapping[str, str]
    initiated: str
    parts: dict[int, Part] = field(default_factory=dict)


@dataclass(slots=True)
class Request:
    """A request head, and how to get its body."""

    method: str
    bucket: str
    key: str
    query: dict[str, str]
    headers: dict[str, str]
    body: Body

    def wants(self, name: str) -> bool:
        """True when the query has this parameter, with or without a value."""
        return name in self.query


@dataclass(frozen=True, slots=True)
class Answer:
    """A response; `pieces` are sent instead of `body` when there are any."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    pieces: tuple[tuple[Content, int, int], ...] = ()
    length: int | None = None


class State:
    """Everything in the store. Its methods are short and hold one lock."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self.lock = threading.Lock()
        self.objects: dict[tuple[str, str], Stored] = {}
        self.uploads: dict[str, Upload] = {}
        self.requests: Counter[str] = Counter()
        self.received = 0
        self.sent = 0
        self._numbers = itertools.count(1)

    def number(self) -> int:
        """A number nobody else got."""
        return next(self._numbers)

    def opaque_etag(self, parts: int) -> str:
        """An ETag that looks like no MD5, so that no client compares it with one."""
        return f"{self.number():032x}-{parts}"

    def count(self, operation: str, received: int = 0, sent: int = 0) -> None:
        """Take note of a request and its payload bytes."""
        with self.lock:
            self.requests[operation] += 1
            self.received += received
            self.sent += sent

    def describe(self, prefix: str) -> dict[str, Any]:
        """What lies under a prefix, and all counts."""
        with self.lock:
            return {
                "objects": {
                    key: stored.size
                    for (_, key), stored in sorted(self.objects.items())
                    if key.startswith(prefix)
                },
                "uploads": [
                    upload.key for upload in self.uploads.values() if upload.key.startswith(prefix)
                ],
                "requests": dict(self.requests),
                "received": self.received,
                "sent": self.sent,
            }

    def reset(self, prefix: str) -> None:
        """Drop what lies under a prefix, and all counts."""
        with self.lock:
            gone = [name for name in self.objects if name[1].startswith(prefix)]
            pieces = [piece for name in gone for piece in self.objects.pop(name).pieces]
            for upload_id, upload in list(self.uploads.items()):
                if upload.key.startswith(prefix):
                    del self.uploads[upload_id]
                    pieces.extend(part.content for part in upload.parts.values())
            self.requests.clear()
            self.received = self.sent = 0
        for piece in pieces:
            if piece.path is not None:
                piece.path.unlink(missing_ok=True)


class Body:
    """The body of one request. Whatever of it was not read is dropped by `discard`."""

    def __init__(self, connection: Connection, headers: Mapping[str, str]) -> None:
        self._connection = connection
        self._http = Dechunker() if "chunked" in headers.get("transfer-encoding", "") else None
        framed = "aws-chunked" in headers.get("content-encoding", "") or headers.get(
            "x-amz-content-sha256", ""
        ).startswith("STREAMING-")
        self._aws = Dechunker() if framed else None
        self._left = 0 if self._http else int(headers.get("content-length", "0"))
        self._expects = headers.get("expect", "").lower() == "100-continue"
        self.payload = 0

    def discard(self) -> None:
        """Read to the end and drop it."""
        self._begin()
        if self._http is None and self._aws is None:
            self._connection.drop(self._left)
            self.payload += self._left
            self._left = 0
            return
        for _ in self.views():
            pass

    def views(self) -> Iterator[memoryview]:
        """The payload, in views that are good until the next one is asked for."""
        self._begin()
        for piece in self._http_views():
            for view in (piece,) if self._aws is None else self._aws.feed(piece):
                self.payload += len(view)
                yield view

    def read(self, limit: int) -> bytes:
        """A small payload. Raises Refusal when it is longer than `limit`."""
        data = bytearray()
        for view in self.views():
            data += view
            if len(data) > limit:
                raise Refusal(400, "EntityTooLarge")
        return bytes(data)

    def _begin(self) -> None:
        if self._expects:
            self._connection.send(b"HTTP/1.1 100 Continue\r\n\r\n")
            self._expects = False

    def _http_views(self) -> Iterator[memoryview]:
        if self._http is None:
            while self._left:
                view = self._connection.receive(min(self._left, _BLOCK))
                self._left -= len(view)
                yield view
            return
        while not self._http.done:
            view = self._connection.receive(_BLOCK)
            yield from self._http.feed(view)
        self._connection.push_back(self._http.rest)
        self._http.rest = b""


class Connection:
    """One connection: bytes in, bytes out."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._plain = not isinstance(sock, ssl.SSLSocket)
        self._buffer = memoryview(bytearray(_BLOCK))
        self._pending = memoryview(b"")

    def receive(self, limit: int) -> memoryview:
        """Some bytes, at most `limit`. Raises Gone at the end of the stream."""
        if self._pending:
            piece, self._pending = self._pending[:limit], self._pending[limit:]
            return piece
        count = self._socket.recv_into(self._buffer, min(limit, _BLOCK))
        if not count:
            raise Gone
        return self._buffer[:count]

    def push_back(self, data: bytes) -> None:
        """Bytes that belong to what comes next."""
        if data:
            self._pending = memoryview(data + bytes(self._pending))

    def drop(self, count: int) -> None:
        """Drop exactly `count` bytes."""
        while count and self._pending:
            count -= len(self.receive(count))
        if self._plain:
            # The kernel throws them away without copying them here.
            while count:
                done = self._socket.recv_into(_NOWHERE, min(count, len(_NOWHERE)), socket.MSG_TRUNC)
                if not done:
                    raise Gone
                count -= done
        while count:
            count -= len(self.receive(count))

    def head(self) -> bytes:
        """A request head without its empty line. Raises Gone when there is none."""
        data = bytearray()
        while (end := data.find(b"\r\n\r\n")) < 0:
            if len(data) > _MAX_HEAD:
                raise Gone
            data += self.receive(_BLOCK)
        self.push_back(bytes(data[end + 4 :]))
        return bytes(data[:end])

    def send(self, data: bytes | memoryview) -> None:
        """Send all of it."""
        self._socket.sendall(data)

    def send_file(self, path: Path, offset: int, count: int) -> None:
        """Send a range of a file; without copying it, where nothing is to be encrypted."""
        with path.open("rb") as file:
            if self._plain:
                end = offset + count
                while offset < end:
                    offset += os.sendfile(
                        self._socket.fileno(), file.fileno(), offset, end - offset
                    )
                return
            # Read, not mapped: faulting pages in costs more than copying what stays in the cache.
            for start in range(offset, offset + count, _BLOCK):
                wanted = min(_BLOCK, offset + count - start)
                done = os.preadv(file.fileno(), [self._buffer[:wanted]], start)
                self._socket.sendall(self._buffer[:done])


_NOWHERE: Final = memoryview(bytearray(16 * 1024 * 1024))


class Server:
    """Accepts connections on loopback, one thread each."""

    def __init__(self, state: State, context: ssl.SSLContext | None = None) -> None:
        self._state = state
        self._context = context
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.port: int = self._listener.getsockname()[1]

    def start(self) -> None:
        """Begin to accept, in the background."""
        threading.Thread(target=self._accept, name="accept", daemon=True).start()

    def close(self) -> None:
        """Accept no more connections."""
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return  # closed
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        try:
            sock.settimeout(_IDLE)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._context is not None:
                sock = self._context.wrap_socket(sock, server_side=True)
            # Without a timeout a read is one system call; keep-alive ends what is dead.
            sock.settimeout(None)
            connection = Connection(sock)
            while self._answer(connection):
                pass
        except (Gone, OSError, MalformedFraming):
            return  # the client went away, or speaks something else; its run fails by itself
        finally:
            sock.close()

    def _answer(self, connection: Connection) -> bool:
        """Answer one request. False when the connection is over."""
        lines = connection.head().decode("latin-1").split("\r\n")
        method, target, _ = lines[0].split(" ", 2)
        headers = {}
        for line in lines[1:]:
            name, _, value = line.partition(":")
            headers[name.strip().lower()] = value.strip()
        parts = urlsplit(target)
        bucket, _, key = unquote(parts.path).lstrip("/").partition("/")
        query = {name: values[0] for name, values in parse_qs(parts.query, True).items()}
        body = Body(connection, headers)
        request = Request(method, bucket, key, query, headers, body)
        operation = operation_of(request)
        try:
            answer = OPERATIONS[operation](self._state, request)
        except Refusal as refusal:
            code = escape(refusal.code)
            text = f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()
            answer = Answer(refusal.status, b"" if method == "HEAD" else text)
        body.discard()
        length = len(answer.body) if answer.length is None else answer.length
        if operation not in ("State", "Reset"):
            self._state.count(operation, body.payload, 0 if method == "HEAD" else length)
        head = [
            f"HTTP/1.1 {answer.status} {_REASONS[answer.status]}",
            f"Content-Length: {length}",
            f"Date: {formatdate(usegmt=True)}",
            "x-amz-request-id: 0",
            *(f"{name}: {value}" for name, value in answer.headers.items()),
        ]
        if answer.body and "Content-Type" not in answer.headers:
            head.append("Content-Type: application/xml")
        connection.send("\r\n".join([*head, "", ""]).encode("latin-1") + answer.body)
        if method != "HEAD":
            for content, offset, count in answer.pieces:
                if content.data is not None:
                    connection.send(memoryview(content.data)[offset : offset + count])
                elif content.path is not None:
                    connection.send_file(content.path, offset, count)
        return headers.get("connection", "").lower() != "close"


def operation_of(request: Request) -> str:
    """The S3 name of a request; "Unknown" for what this server does not do."""
    if request.bucket == "-":
        return {"state": "State", "reset": "Reset"}.get(request.key, "Unknown")
    level = "object" if request.key else "bucket"
    for (method, where, parameter), name in _ROUTES.items():
        if (
            method == request.method
            and where == level
            and (not parameter or request.wants(parameter))
        ):
            return name
    return "Unknown"


def _get(state: State, request: Request) -> Answer:
    stored = _find(state, request)
    headers = {
        "ETag": f'"{stored.etag}"',
        "Last-Modified": stored.modified,
        "Accept-Ranges": "bytes",
        "Content-Type": "binary/octet-stream",
        **{f"x-amz-meta-{name}": value for name, value in stored.metadata.items()},
    }
    if request.headers.get("if-match", headers["ETag"]) not in (headers["ETag"], "*"):
        raise Refusal(412, "PreconditionFailed")
    whole = stored.size
    first, last = _range(request.headers.get("range"), whole)
    if (
        request.headers.get("x-amz-checksum-mode")
        and stored.crc64nvme
        and last - first + 1 == whole
    ):
        headers["x-amz-checksum-crc64nvme"] = stored.crc64nvme
        headers["x-amz-checksum-type"] = "FULL_OBJECT"
    partial = "range" in request.headers
    if partial:
        headers["Content-Range"] = f"bytes {first}-{last}/{whole}"
    pieces, at = [], 0
    for content in stored.pieces:
        start, end = max(first, at), min(last + 1, at + content.size)
        if start < end:
            if content.data is None and content.path is None and request.method == "GET":
                raise Refusal(501, "NotImplemented")  # dropped
            pieces.append((content, start - at, end - start))
        at += content.size
    return Answer(206 if partial else 200, b"", headers, tuple(pieces), last + 1 - first)


def _range(text: str | None, size: int) -> tuple[int, int]:
    if text is None:
        return 0, size - 1
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", text)
    if match is None:
        raise Refusal(416, "InvalidRange")
    first, last = match.groups()
    if not first:
        return max(0, size - int(last or 0)), size - 1
    if int(first) >= size:
        raise Refusal(416, "InvalidRange")
    return int(first), min(int(last or size), size - 1)


def _put(state: State, request: Request) -> Answer:
    if request.wants("x-amz-copy-source") or "x-amz-copy-source" in request.headers:
        raise Refusal(501, "NotImplemented")
    _refuse_existing(state, request)
    content, checksum, etag = _store(state, request)
    stored = Stored((content,), etag, checksum, _metadata(request), _now())
    _create(state, request, stored)
    headers = {"ETag": f'"{etag}"'}
    if checksum:
        headers["x-amz-checksum-crc64nvme"] = checksum
        headers["x-amz-checksum-type"] = "FULL_OBJECT"
    return Answer(200, b"", headers)


def _create_upload(state: State, request: Request) -> Answer:
    upload_id = f"upload-{state.number()}"
    request.body.discard()
    with state.lock:
        state.uploads[upload_id] = Upload(request.key, _metadata(request), _now())
    return _xml(
        "InitiateMultipartUploadResult",
        f"<Bucket>{request.bucket}</Bucket><Key>{escape(request.key)}</Key>"
        f"<UploadId>{upload_id}</UploadId>",
    )


def _upload_part(state: State, request: Request) -> Answer:
    upload = _upload(state, request)
    content, checksum, etag = _store(state, request)
    with state.lock:
        upload.parts[int(request.query["partNumber"])] = Part(content, etag, checksum, _now())
    headers = {"ETag": f'"{etag}"'}
    if checksum:
        headers["x-amz-checksum-crc64nvme"] = checksum
    return Answer(200, b"", headers)


def _complete(state: State, request: Request) -> Answer:
    upload = _upload(state, request)
    text = request.body.read(4 * _SMALL).decode()
    numbers = [int(number) for number in re.findall(r"<PartNumber>(\d+)</PartNumber>", text)]
    etags = [html.unescape(etag).strip('"') for etag in re.findall(r"<ETag>(.*?)</ETag>", text)]
    with state.lock:
        parts = [upload.parts.get(number) for number in numbers]
    if not parts or [part.etag for part in parts if part] != etags or numbers != sorted(numbers):
        raise Refusal(400, "InvalidPart")
    whole = [part for part in parts if part]
    checksum = request.headers.get("x-amz-checksum-crc64nvme")
    stored = Stored(
        tuple(part.content for part in whole),
        _whole_etag(state, whole),
        checksum,
        upload.metadata,
        upload.initiated,
    )
    _create(state, request, stored)
    with state.lock:
        state.uploads.pop(request.query["uploadId"], None)
    return _xml(
        "CompleteMultipartUploadResult",
        f"<Bucket>{request.bucket}</Bucket><Key>{escape(request.key)}</Key>"
        f"<ETag>&quot;{stored.etag}&quot;</ETag>"
        + (
            f"<ChecksumCRC64NVME>{checksum}</ChecksumCRC64NVME>"
            "<ChecksumType>FULL_OBJECT</ChecksumType>"
            if checksum
            else ""
        ),
    )


def _abort(state: State, request: Request) -> Answer:
    upload = _upload(state, request)
    with state.lock:
        state.uploads.pop(request.query["uploadId"], None)
    for part in upload.parts.values():
        if part.content.path is not None:
            part.content.path.unlink(missing_ok=True)
    return Answer(204)


def _list_parts(state: State, request: Request) -> Answer:
    upload = _upload(state, request)
    marker = int(request.query.get("part-number-marker", "0"))
    with state.lock:
        parts = sorted(item for item in upload.parts.items() if item[0] > marker)
    page = parts[:_PAGE]
    text = "".join(
        f"<Part><PartNumber>{number}</PartNumber><Size>{part.content.size}</Size>"
        f"<ETag>&quot;{part.etag}&quot;</ETag><LastModified>{_iso(part.modified)}</LastModified>"
        + (f"<ChecksumCRC64NVME>{part.crc64nvme}</ChecksumCRC64NVME>" if part.crc64nvme else "")
        + "</Part>"
        for number, part in page
    )
    more = len(parts) > len(page)
    last = page[-1][0] if page else 0
    return _xml(
        "ListPartsResult",
        f"<IsTruncated>{str(more).lower()}</IsTruncated>"
        f"<NextPartNumberMarker>{last}</NextPartNumberMarker>{text}",
    )


def _list_uploads(state: State, request: Request) -> Answer:
    prefix = request.query.get("prefix", "")
    with state.lock:
        uploads = [(i, u) for i, u in state.uploads.items() if u.key.startswith(prefix)]
    text = "".join(
        f"<Upload><Key>{escape(upload.key)}</Key><UploadId>{upload_id}</UploadId>"
        f"<Initiated>{_iso(upload.initiated)}</Initiated></Upload>"
        for upload_id, upload in sorted(uploads, key=lambda item: item[1].key)
    )
    return _xml("ListMultipartUploadsResult", f"<IsTruncated>false</IsTruncated>{text}")


def _list(state: State, request: Request) -> Answer:
    """ListObjectsV2. Common prefixes count as keys, and are not split over pages."""
    prefix, delimiter = request.query.get("prefix", ""), request.query.get("delimiter", "")
    after = request.query.get("continuation-token") or request.query.get("start-after", "")
    limit = min(_PAGE, int(request.query.get("max-keys", _PAGE)))
    with state.lock:
        found = sorted(
            (key, stored)
            for (bucket, key), stored in state.objects.items()
            if bucket == request.bucket and key.startswith(prefix) and key > after
        )
    text: list[str] = []
    groups: set[str] = set()
    last, more = "", False
    for key, stored in found:
        group = ""
        if delimiter and delimiter in key[len(prefix) :]:
            group = prefix + key[len(prefix) :].partition(delimiter)[0] + delimiter
        if group in groups:
            last = key
            continue
        if len(text) == limit:
            more = True
            break
        if group:
            groups.add(group)
            text.append(f"<CommonPrefixes><Prefix>{escape(group)}</Prefix></CommonPrefixes>")
        else:
            text.append(
                f"<Contents><Key>{escape(key)}</Key><Size>{stored.size}</Size>"
                f"<ETag>&quot;{stored.etag}&quot;</ETag>"
                f"<LastModified>{_iso(stored.modified)}</LastModified>"
                "<StorageClass>STANDARD</StorageClass></Contents>"
            )
        last = key
    token = f"<NextContinuationToken>{escape(last)}</NextContinuationToken>" if more else ""
    return _xml(
        "ListBucketResult",
        f"<Name>{request.bucket}</Name><Prefix>{escape(prefix)}</Prefix>"
        f"<KeyCount>{len(text)}</KeyCount><MaxKeys>{limit}</MaxKeys>"
        f"<IsTruncated>{str(more).lower()}</IsTruncated>{token}{''.join(text)}",
    )


def _delete(state: State, request: Request) -> Answer:
    condition = request.headers.get("if-match")
    with state.lock:
        stored = state.objects.get((request.bucket, request.key))
        if stored is not None and condition not in (None, "*", f'"{stored.etag}"'):
            raise Refusal(412, "PreconditionFailed")
        state.objects.pop((request.bucket, request.key), None)
    for piece in stored.pieces if stored else ():
        if piece.path is not None:
            piece.path.unlink(missing_ok=True)
    return Answer(204)


def _bucket(state: State, request: Request) -> Answer:
    return Answer(200, b"", {"x-amz-bucket-region": "us-east-1"})


def _location(state: State, request: Request) -> Answer:
    return _xml("LocationConstraint", "")


def _describe(state: State, request: Request) -> Answer:
    text = json.dumps(state.describe(request.query.get("prefix", ""))).encode()
    return Answer(200, text, {"Content-Type": "application/json"})


def _reset(state: State, request: Request) -> Answer:
    state.reset(request.query.get("prefix", ""))
    return Answer(204)


def _unknown(state: State, request: Request) -> Answer:
    raise Refusal(501, "NotImplemented")


_ROUTES: Final = {
    ("PUT", "object", "partNumber"): "UploadPart",
    ("PUT", "object", ""): "PutObject",
    ("POST", "object", "uploads"): "CreateMultipartUpload",
    ("POST", "object", "uploadId"): "CompleteMultipartUpload",
    ("DELETE", "object", "uploadId"): "AbortMultipartUpload",
    ("DELETE", "object", ""): "DeleteObject",
    ("GET", "object", "uploadId"): "ListParts",
    ("GET", "object", ""): "GetObject",
    ("HEAD", "object", ""): "HeadObject",
    ("HEAD", "bucket", ""): "HeadBucket",
    ("GET", "bucket", "uploads"): "ListMultipartUploads",
    ("GET", "bucket", "location"): "GetBucketLocation",
    ("GET", "bucket", "list-type"): "ListObjectsV2",
}
"""Method, level, and the parameter that tells; the more special ones come first."""

OPERATIONS: Final[Mapping[str, Callable[[State, Request], Answer]]] = {
    "AbortMultipartUpload": _abort,
    "CompleteMultipartUpload": _complete,
    "CreateMultipartUpload": _create_upload,
    "DeleteObject": _delete,
    "GetBucketLocation": _location,
    "GetObject": _get,
    "HeadBucket": _bucket,
    "HeadObject": _get,
    "ListMultipartUploads": _list_uploads,
    "ListObjectsV2": _list,
    "ListParts": _list_parts,
    "PutObject": _put,
    "Reset": _reset,
    "State": _describe,
    "Unknown": _unknown,
    "UploadPart": _upload_part,
}


def _find(state: State, request: Request) -> Stored:
    with state.lock:
        stored = state.objects.get((request.bucket, request.key))
    if stored is None:
        raise Refusal(404, "NoSuchKey")
    return stored


def _upload(state: State, request: Request) -> Upload:
    with state.lock:
        upload = state.uploads.get(request.query["uploadId"])
    if upload is None or upload.key != request.key:
        raise Refusal(404, "NoSuchUpload")
    return upload


def _create(state: State, request: Request, stored: Stored) -> None:
    with state.lock:
        if "if-none-match" in request.headers and (request.bucket, request.key) in state.objects:
            raise Refusal(412, "PreconditionFailed")
        state.objects[request.bucket, request.key] = stored


def _refuse_existing(state: State, request: Request) -> None:
    """A condition that fails is said before the body is asked for."""
    with state.lock:
        if "if-none-match" in request.headers and (request.bucket, request.key) in state.objects:
            raise Refusal(412, "PreconditionFailed")


def _store(state: State, request: Request) -> tuple[Content, str | None, str]:
    """Take the body of a PUT. Returns it, the CRC64NVME it came with, and its ETag.

    Where the client sent the body's MD5 the ETag is that MD5, unchecked, as S3's would be.
    """
    checksum = request.headers.get("x-amz-checksum-crc64nvme")
    checked = f"/{CONTROL}" in f"/{request.key}"
    if checked or request.bucket == "keep":
        content = _keep(state, request)
    else:
        request.body.discard()
        content = Content(request.body.payload)
    known = content.data if checked and checksum else None
    if known is not None and crc64.to_text(crc64.crc64(known)) != checksum:
        raise Refusal(400, "BadDigest")
    sent_md5 = request.headers.get("content-md5")
    etag = base64.b64decode(sent_md5).hex() if sent_md5 else state.opaque_etag(1)
    return content, checksum, etag


def _keep(state: State, request: Request) -> Content:
    data = bytearray()
    views = request.body.views()
    for view in views:
        data += view
        if len(data) > _SMALL:
            break
    else:
        return Content(len(data), bytes(data))
    path = state.scratch / f"body-{state.number()}"
    size = 0
    with path.open("wb", buffering=0) as file:
        for view in itertools.chain((memoryview(data),), views):
            done = 0
            while done < len(view):
                done += file.write(view[done:]) or 0
            size += done
    return Content(size, path=path)


def _whole_etag(state: State, parts: list[Part]) -> str:
    if any("-" in part.etag for part in parts):
        return state.opaque_etag(len(parts))
    joined = b"".join(bytes.fromhex(part.etag) for part in parts)
    return f"{hashlib.md5(joined, usedforsecurity=False).hexdigest()}-{len(parts)}"


def _metadata(request: Request) -> dict[str, str]:
    start = "x-amz-meta-"
    return {
        name[len(start) :]: value
        for name, value in request.headers.items()
        if name.startswith(start)
    }


def _xml(root: str, inner: str) -> Answer:
    text = f'<?xml version="1.0" encoding="UTF-8"?>\n<{root}>{inner}</{root}>'
    return Answer(200, text.encode())


def _now() -> str:
    return formatdate(usegmt=True)


def _iso(date: str) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.strptime(date, "%a, %d %b %Y %H:%M:%S GMT"))


def main() -> None:
    """Serve until standard input closes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--scratch", type=Path, required=True, help="where kept bodies go")
    parser.add_argument("--certificate", type=Path)
    parser.add_argument("--key", type=Path)
    parser.add_argument("--cpus", help="cores to stay on, as 0,1")
    options = parser.parse_args()
    if options.cpus:
        os.sched_setaffinity(0, {int(cpu) for cpu in options.cpus.split(",")})
    state = State(options.scratch)
    plain = Server(state)
    plain.start()
    ports = {"http": plain.port}
    if options.certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(options.certificate, options.key)
        secure = Server(state, context)
        secure.start()
        ports["https"] = secure.port
    sys.stdout.write(json.dumps(ports) + "\n")
    sys.stdout.flush()
    sys.stdin.read()


if __name__ == "__main__":
    main()
