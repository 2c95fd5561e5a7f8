"""What the server can do: one function for each operation of S3 that the clients use.

Signatures and payload checksums are not looked at; conditions are, and the CRC64NVME of what lies under
`.checkpoint/`.
"""

from __future__ import annotations

import base64
import hashlib
import html
import itertools
import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Final
from xml.sax.saxutils import escape

from benchmarks.connection import Body, Refusal
from benchmarks.holdings import Content, Part, State, Stored, Upload
from staging.vocabulary import crc64

CONTROL: Final = ".checkpoint/"
SMALL: Final = 1024 * 1024
"""Kept bodies up to this many bytes stay in memory."""
_PAGE: Final = 1000


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


def operation_of(request: Request) -> str:
    """The S3 name of a request; "Unknown" for what this server does not do."""
    if request.bucket == "-":
        known = {"state": "State", "reset": "Reset", "pace": "Pace"}
        return known.get(request.key, "Unknown")
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
    text = request.body.read(4 * SMALL).decode()
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


def _pace(state: State, request: Request) -> Answer:
    state.network.rate = int(request.query["rate"])
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
    "Pace": _pace,
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
        if len(data) > SMALL:
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
