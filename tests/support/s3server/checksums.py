"""Digests of a body as S3 knows them, and the checks of what a client says about its body."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce

from awscrt import checksums as crt

from tests.support.s3server.errors import S3Error, invalid_request

CRC64NVME = "CRC64NVME"
HEADER = "x-amz-checksum-crc64nvme"

_HEX_SHA256 = re.compile("[0-9a-f]{64}")

_ALGORITHMS: dict[str, Callable[[bytes], bytes]] = {
    "CRC32": lambda data: zlib.crc32(data).to_bytes(4, "big"),
    "CRC32C": lambda data: crt.crc32c(data).to_bytes(4, "big"),
    CRC64NVME: lambda data: crt.crc64nvme(data).to_bytes(8, "big"),
    "SHA1": lambda data: hashlib.sha1(data).digest(),
    "SHA256": lambda data: hashlib.sha256(data).digest(),
}


@dataclass(frozen=True, slots=True)
class Digests:
    """What is computed of every body: its MD5 in hex and its CRC-64/NVME in base64."""

    md5: str
    crc64nvme: str


def digests_of(data: bytes) -> Digests:
    return Digests(hashlib.md5(data).hexdigest(), checksum(CRC64NVME, data))


def checksum(algorithm: str, data: bytes) -> str:
    """A checksum in the base64 form of the headers."""
    return base64.b64encode(_ALGORITHMS[algorithm](data)).decode()


def combined_crc64nvme(parts: list[tuple[str, int]]) -> str:
    """CRC-64/NVME of a concatenation, from each piece's CRC in base64 and its length."""

    def join(left: tuple[int, int], right: tuple[int, int]) -> tuple[int, int]:
        return crt.combine_crc64nvme(left[0], right[0], right[1]), left[1] + right[1]

    pairs = [(int.from_bytes(base64.b64decode(text), "big"), length) for text, length in parts]
    return base64.b64encode(reduce(join, pairs, (0, 0))[0].to_bytes(8, "big")).decode()


def declared_algorithm(headers: Mapping[str, str]) -> str | None:
    """The algorithm whose `x-amz-checksum-...` value header the request carries."""
    for algorithm in _ALGORITHMS:
        if f"x-amz-checksum-{algorithm.lower()}" in headers:
            return algorithm
    return None


def check_payload(headers: Mapping[str, str], body: bytes) -> None:
    """Compare the body with the SHA-256 that the signature covers.

    Raises S3Error XAmzContentSHA256Mismatch; "UNSIGNED-PAYLOAD" and no header at all are accepted.
    """
    said = headers.get("x-amz-content-sha256", "")
    if _HEX_SHA256.fullmatch(said):
        computed = hashlib.sha256(body).hexdigest()
        if said != computed:
            raise S3Error(
                400,
                "XAmzContentSHA256Mismatch",
                "The provided 'x-amz-content-sha256' header does not match what was computed.",
                details={"ClientComputedContentSHA256": said, "S3ComputedContentSHA256": computed},
            )


def check_content_md5(headers: Mapping[str, str], digests: Digests) -> None:
    """Raises S3Error InvalidDigest or BadDigest."""
    if "content-md5" not in headers:
        return
    if len(_decoded(headers["content-md5"])) != 16:
        raise S3Error(400, "InvalidDigest", "The Content-MD5 you specified was invalid.")
    if base64.b64decode(headers["content-md5"]).hex() != digests.md5:
        raise S3Error(
            400, "BadDigest", "The Content-MD5 you specified did not match what we received."
        )


def check_checksum(headers: Mapping[str, str], body: bytes, digests: Digests) -> None:
    """Compare the body with every `x-amz-checksum-...` header. Raises S3Error BadDigest."""
    for algorithm in _ALGORITHMS:
        said = headers.get(f"x-amz-checksum-{algorithm.lower()}")
        if said is None:
            continue
        computed = digests.crc64nvme if algorithm == CRC64NVME else checksum(algorithm, body)
        if len(_decoded(said)) != len(base64.b64decode(computed)):
            raise invalid_request(
                f"Value for x-amz-checksum-{algorithm.lower()} header is invalid."
            )
        if said != computed:
            raise bad_digest(algorithm)


def bad_digest(algorithm: str) -> S3Error:
    return S3Error(
        400,
        "BadDigest",
        f"The {algorithm} you specified did not match the calculated checksum.",
    )


def _decoded(text: str) -> bytes:
    """The bytes of a base64 header, or none for what is not base64."""
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        return b""
