"""Multipart uploads: open, send parts, list, complete, abort."""

from __future__ import annotations

from xml.etree.ElementTree import Element

from tests.support.s3server import xml
from tests.support.s3server.call import Call, xml_response
from tests.support.s3server.checksums import CRC64NVME, HEADER, bad_digest, declared_algorithm
from tests.support.s3server.errors import (
    S3Error,
    invalid_argument,
    invalid_request,
    not_implemented,
)
from tests.support.s3server.http import Response
from tests.support.s3server.listing_operations import encoder, page_limit, timestamp
from tests.support.s3server.object_operations import (
    encryption_headers,
    etag_of,
    kept_checksum,
)
from tests.support.s3server.objects import Part, Upload
from tests.support.s3server.quirks import Quirk
from tests.support.s3server.xml import element

MAX_PARTS = 10_000

_UNCHECKED = frozenset({Quirk.IGNORES_CHECKSUMS, Quirk.ECHOES_CHECKSUMS})


def create_multipart_upload(call: Call) -> Response:
    call.check_key()
    call.check_settings()
    algorithm = call.headers.get("x-amz-checksum-algorithm")
    default_type = "FULL_OBJECT" if algorithm in (None, CRC64NVME) else "COMPOSITE"
    checksum_type = call.headers.get("x-amz-checksum-type", default_type)
    if algorithm == CRC64NVME and checksum_type != "FULL_OBJECT":
        raise invalid_request(
            "The COMPOSITE checksum type cannot be used with the crc64nvme checksum algorithm."
        )
    upload = call.bucket.open_upload(
        call.key,
        algorithm=algorithm,
        checksum_type=checksum_type,
        metadata=call.metadata,
        headers=call.echoed_headers,
    )
    headers = encryption_headers(upload.headers)
    if algorithm is not None and Quirk.IGNORES_CHECKSUMS not in call.quirks:
        headers |= {"x-amz-checksum-algorithm": algorithm, "x-amz-checksum-type": checksum_type}
    return xml_response(
        xml.document(
            "InitiateMultipartUploadResult",
            element("Bucket", call.bucket.name),
            element("Key", upload.key),
            element("UploadId", upload.upload_id),
        ),
        headers,
    )


def upload_part(call: Call) -> Response:
    upload = call.upload
    call.check_key_use(upload.headers, "kms:Decrypt")
    text = call.query["partNumber"]
    if not text.isdecimal() or not 1 <= int(text) <= MAX_PARTS:
        raise invalid_argument("Part number must be an integer between 1 and 10000, inclusive")
    sent = declared_algorithm(call.headers)
    if sent not in (None, upload.algorithm) and not _UNCHECKED & call.quirks:
        raise invalid_request(
            f"Checksum Type mismatch occurred, expected checksum Type: {upload.algorithm}, "
            f"actual checksum Type: {sent}"
        )
    part = Part(
        number=int(text),
        data=call.body,
        etag=etag_of(call, upload.headers.get("x-amz-server-side-encryption")),
        crc64nvme=kept_checksum(call),
        last_modified=call.state.now(),
    )
    upload.parts[part.number] = part
    headers = {"ETag": f'"{part.etag}"'}
    if upload.algorithm == CRC64NVME and Quirk.IGNORES_CHECKSUMS not in call.quirks:
        headers[HEADER] = part.crc64nvme
    return Response(200, headers)


def list_parts(call: Call) -> Response:
    upload = call.upload
    marker = call.query.get("part-number-marker", "0")
    if not marker.isdecimal():
        raise invalid_argument("Provided part-number-marker not an integer or within integer range")
    limit = page_limit(call, "max-parts")
    later = [part for number, part in sorted(upload.parts.items()) if number > int(marker)]
    page = later[:limit]
    hidden = {Quirk.IGNORES_CHECKSUMS, Quirk.LISTS_PARTS_WITHOUT_CHECKSUMS} & call.quirks
    with_checksums = upload.algorithm == CRC64NVME and not hidden
    described = upload.algorithm is not None and not hidden
    return xml_response(
        xml.document(
            "ListPartsResult",
            element("Bucket", call.bucket.name),
            element("Key", upload.key),
            element("UploadId", upload.upload_id),
            element("PartNumberMarker", int(marker)),
            element("NextPartNumberMarker", page[-1].number if page else 0),
            element("MaxParts", limit),
            element("IsTruncated", len(later) > len(page) > 0),
            *([element("ChecksumAlgorithm", upload.algorithm or "")] if described else []),
            *([element("ChecksumType", upload.checksum_type)] if described else []),
            *(
                element(
                    "Part",
                    element("PartNumber", part.number),
                    element("LastModified", timestamp(part.last_modified)),
                    element("ETag", f'"{part.etag}"'),
                    *([element("ChecksumCRC64NVME", part.crc64nvme)] if with_checksums else []),
                    element("Size", len(part.data)),
                )
                for part in page
            ),
        )
    )


def list_multipart_uploads(call: Call) -> Response:
    query = call.query
    if "delimiter" in query:
        raise not_implemented("ListMultipartUploads with a delimiter")
    limit = page_limit(call, "max-uploads")
    key_marker, id_marker = query.get("key-marker", ""), query.get("upload-id-marker", "")
    later = [
        upload
        for upload in call.bucket.uploads(query.get("prefix", ""))
        if upload.key.encode() > key_marker.encode()
        or (id_marker and upload.key == key_marker and upload.upload_id > id_marker)
    ]
    page = later[:limit]
    more = len(later) > len(page) > 0
    encode = encoder(call)
    return xml_response(
        xml.document(
            "ListMultipartUploadsResult",
            element("Bucket", call.bucket.name),
            element("KeyMarker", encode(key_marker)),
            element("UploadIdMarker", id_marker),
            *([element("NextKeyMarker", encode(page[-1].key))] if more else []),
            *([element("NextUploadIdMarker", page[-1].upload_id)] if more else []),
            *([element("EncodingType", "url")] if "encoding-type" in query else []),
            element("Prefix", encode(query.get("prefix", ""))),
            element("MaxUploads", limit),
            element("IsTruncated", more),
            *(
                element(
                    "Upload",
                    element("UploadId", upload.upload_id),
                    element("Key", encode(upload.key)),
                    element("Initiated", timestamp(upload.initiated)),
                    element("StorageClass", "STANDARD"),
                )
                for upload in page
            ),
        )
    )


def complete_multipart_upload(call: Call) -> Response:
    upload = call.upload
    call.check_key_use(upload.headers, "kms:Decrypt")
    unchecked = bool(_UNCHECKED & call.quirks)
    parts = _chosen_parts(upload, xml.parse(call.body), check_checksums=not unchecked)
    for part in parts[:-1]:
        if len(part.data) < call.limits.min_part_size:
            raise S3Error(
                400,
                "EntityTooSmall",
                "Your proposed upload is smaller than the minimum allowed size",
                details={
                    "PartNumber": str(part.number),
                    "ProposedSize": str(len(part.data)),
                    "MinSizeAllowed": str(call.limits.min_part_size),
                    "ETag": part.etag,
                },
            )
    call.check_write_conditions(ignored_by=Quirk.IGNORES_COMPLETE_AND_DELETE_CONDITIONS)
    version = call.bucket.assemble(upload, parts)
    if not unchecked:
        _check_whole(call, upload, version.size, version.crc64nvme)
    call.bucket.store(version)
    call.bucket.close_upload(upload.upload_id)
    etag = "" if Quirk.COMPLETE_WITHOUT_ETAG in call.quirks else f'"{version.etag}"'
    checksums = [
        element("ChecksumCRC64NVME", version.crc64nvme),
        element("ChecksumType", "FULL_OBJECT"),
    ]
    return xml_response(
        xml.document(
            "CompleteMultipartUploadResult",
            element("Location", f"/{call.bucket.name}/{upload.key}"),
            element("Bucket", call.bucket.name),
            element("Key", upload.key),
            element("ETag", etag),
            *([] if Quirk.IGNORES_CHECKSUMS in call.quirks else checksums),
        )
    )


def _chosen_parts(upload: Upload, root: Element, *, check_checksums: bool) -> list[Part]:
    """The parts that Complete names, in its order. Raises S3Error InvalidPart, InvalidPartOrder."""
    chosen: list[Part] = []
    for node in root.findall("Part"):
        number = int(node.findtext("PartNumber", "0"))
        part = upload.parts.get(number)
        said = node.findtext("ChecksumCRC64NVME")
        if (
            part is None
            or node.findtext("ETag", "").strip('"') != part.etag
            or (check_checksums and said not in (None, part.crc64nvme))
        ):
            raise S3Error(
                400,
                "InvalidPart",
                "One or more of the specified parts could not be found. The part may not have been "
                "uploaded, or the specified entity tag may not match the part's entity tag.",
                details={"UploadId": upload.upload_id, "PartNumber": str(number)},
            )
        if chosen and number <= chosen[-1].number:
            raise S3Error(
                400,
                "InvalidPartOrder",
                "The list of parts was not in ascending order. Parts must be ordered by part number.",
            )
        chosen.append(part)
    if not chosen:
        raise S3Error(400, "MalformedXML", "You must specify at least one part")
    return chosen


def _check_whole(call: Call, upload: Upload, size: int, crc64nvme: str) -> None:
    """Compare what Complete says of the whole object with the object. Raises S3Error."""
    said_type = call.headers.get("x-amz-checksum-type", upload.checksum_type)
    if said_type != upload.checksum_type:
        raise invalid_request(
            f"The upload was created with the {upload.checksum_type} checksum type, but the complete "
            f"request says {said_type}."
        )
    said_size = call.headers.get("x-amz-mp-object-size")
    if said_size is not None and said_size != str(size):
        raise invalid_request(
            "The provided 'x-amz-mp-object-size' header does not match the object."
        )
    if call.headers.get(HEADER, crc64nvme) != crc64nvme:
        raise bad_digest(CRC64NVME)


def abort_multipart_upload(call: Call) -> Response:
    call.bucket.close_upload(call.upload.upload_id)
    return Response(204)
