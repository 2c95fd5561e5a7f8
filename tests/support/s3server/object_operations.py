"""Operations on buckets and single objects."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping

from tests.support.s3server import xml
from tests.support.s3server.call import SSE, Call, http_date, names_version, xml_response
from tests.support.s3server.checksums import HEADER
from tests.support.s3server.errors import (
    S3Error,
    invalid_argument,
    no_such_key,
    precondition_failed,
)
from tests.support.s3server.http import Response
from tests.support.s3server.objects import StoredObject
from tests.support.s3server.quirks import Quirk
from tests.support.s3server.xml import element

MAX_DELETIONS = 1000

_RANGE = re.compile(r"bytes=(\d*)-(\d*)")


def create_bucket(call: Call) -> Response:
    """Creating one's own bucket again is an error everywhere but in us-east-1."""
    name = call.request.bucket
    if not re.fullmatch("[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", name):
        raise S3Error(400, "InvalidBucketName", "The specified bucket is not valid.")
    in_the_first_region = call.access.region in (None, "us-east-1")
    if name in call.state.buckets and not in_the_first_region:
        raise S3Error(
            409,
            "BucketAlreadyOwnedByYou",
            "Your previous request to create the named bucket succeeded and you already own it.",
        )
    call.state.create(name)
    return Response(200, {"Location": f"/{name}"})


def head_bucket(call: Call) -> Response:
    call.check_bucket()
    return Response(200, {"x-amz-bucket-region": call.access.region or "us-east-1"})


def get_bucket_location(call: Call) -> Response:
    call.check_bucket()
    region = call.access.region or "us-east-1"
    return xml_response(xml.document("LocationConstraint", "" if region == "us-east-1" else region))


def get_object(call: Call) -> Response:
    """Also HeadObject: the body is left out where the answer is written."""
    version = call.existing
    with_checksum = call.headers.get("x-amz-checksum-mode", "").upper() == "ENABLED"
    if call.request.method == "GET" or with_checksum:
        call.check_key_use(version.headers, "kms:Decrypt")
    if "if-match" in call.headers and not names_version(call.headers["if-match"], version):
        raise precondition_failed("If-Match")
    headers = {
        "ETag": f'"{version.etag}"',
        "Last-Modified": http_date(version),
        "Accept-Ranges": "bytes",
    }
    if "if-none-match" in call.headers and names_version(call.headers["if-none-match"], version):
        return Response(304, headers)
    headers |= {"Content-Type": "binary/octet-stream"}
    headers |= {name.title(): value for name, value in version.headers.items()}
    headers |= {f"x-amz-meta-{name}": value for name, value in version.metadata.items()}
    span = _requested_range(call.headers.get("range", ""), version.size)
    if span is not None:
        first, last = span
        headers["Content-Range"] = f"bytes {first}-{last}/{version.size}"
        return Response(206, headers, version.slice(first, last + 1))
    if with_checksum:
        headers |= checksum_headers(call, version)
    return Response(200, headers, version.slice(0, version.size))


def _requested_range(header: str, size: int) -> tuple[int, int] | None:
    """First and last byte of a range, None for no range or one that S3 ignores."""
    match = _RANGE.fullmatch(header)
    if match is None or match[0] == "bytes=-":
        return None
    if match[1] == "":
        length = min(int(match[2]), size)
        first, last = size - length, size - 1
    else:
        first = int(match[1])
        last = min(int(match[2]), size - 1) if match[2] else size - 1
        if match[2] and int(match[2]) < first:
            return None
    if first > last:
        raise S3Error(
            416,
            "InvalidRange",
            "The requested range is not satisfiable",
            headers={"Content-Range": f"bytes */{size}"},
            details={"RangeRequested": header, "ActualObjectSize": str(size)},
        )
    return first, last


def checksum_headers(call: Call, version: StoredObject) -> dict[str, str]:
    if Quirk.IGNORES_CHECKSUMS in call.quirks:
        return {}
    return {HEADER: version.crc64nvme, "x-amz-checksum-type": "FULL_OBJECT"}


def put_object(call: Call) -> Response:
    call.check_key()
    call.check_settings()
    call.check_write_conditions()
    version = call.bucket.store(
        StoredObject(
            key=call.key,
            pieces=(call.body,),
            etag=etag_of(call, call.echoed_headers.get("x-amz-server-side-encryption")),
            crc64nvme=kept_checksum(call),
            last_modified=call.state.now(),
            metadata=call.metadata,
            headers=call.echoed_headers,
        )
    )
    return Response(
        200,
        {
            "ETag": f'"{version.etag}"',
            **checksum_headers(call, version),
            **encryption_headers(version.headers),
        },
    )


def encryption_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """What an answer to a create tells of the encryption."""
    return {name: value for name, value in headers.items() if name.startswith(SSE)}


def etag_of(call: Call, encryption: str | None) -> str:
    """The MD5 of the body, or something else for objects that are encrypted with KMS keys."""
    md5 = call.digests.md5
    if (encryption or "").startswith("aws:kms") or Quirk.ETAG_IS_NO_DIGEST in call.quirks:
        return hashlib.md5(f"opaque:{md5}".encode()).hexdigest()
    return md5


def kept_checksum(call: Call) -> str:
    """The checksum to store: computed, unless the server echoes what it was told."""
    if Quirk.ECHOES_CHECKSUMS in call.quirks:
        return call.headers.get(HEADER, call.digests.crc64nvme)
    return call.digests.crc64nvme


def delete_object(call: Call) -> Response:
    bucket = call.bucket
    current = bucket.find(call.key)
    ignored = {Quirk.IGNORES_CONDITIONS, Quirk.IGNORES_COMPLETE_AND_DELETE_CONDITIONS}
    if "if-match" in call.headers and not ignored & call.quirks:
        if current is None:
            raise no_such_key(call.key)
        if not names_version(call.headers["if-match"], current):
            raise precondition_failed("If-Match")
    if current is not None:
        bucket.remove(call.key)
    return Response(204)


def delete_objects(call: Call) -> Response:
    root = xml.parse(call.body)
    targets = root.findall("Object")
    if not 1 <= len(targets) <= MAX_DELETIONS:
        raise invalid_argument(f"between 1 and {MAX_DELETIONS} keys can be deleted at once")
    quiet = root.findtext("Quiet") == "true"
    answers: list[str] = []
    for target in targets:
        key, etag = target.findtext("Key", ""), target.findtext("ETag")
        current = call.bucket.find(key)
        if etag is not None and (current is None or not names_version(etag, current)):
            code = "NoSuchKey" if current is None else "PreconditionFailed"
            answers.append(element("Error", element("Key", key), element("Code", code)))
            continue
        if current is not None:
            call.bucket.remove(key)
        if not quiet:
            answers.append(element("Deleted", element("Key", key)))
    return xml_response(xml.document("DeleteResult", *answers))
