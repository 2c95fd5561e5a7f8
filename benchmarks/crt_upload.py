"""A bare uploader on awscrt's own S3 client: the fastest thing there is, and it proves least.

    python -m benchmarks.crt_upload TAR BUCKET PREFIX ENDPOINT [CERTIFICATE]

Every file of a plain POSIX tar becomes an object; awscrt splits and sends it, with a CRC64NVME in the
trailer, reading the file through Python. No digests, no manifest, no conditions, no resume, and the tar is
believed. Credentials come from the environment. To compare with, not to use.
"""

from __future__ import annotations

import io
import os
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any, BinaryIO
from urllib.parse import quote, urlsplit

from awscrt.auth import AwsCredentialsProvider
from awscrt.http import HttpHeaders, HttpRequest
from awscrt.io import (
    ClientBootstrap,
    ClientTlsContext,
    DefaultHostResolver,
    EventLoopGroup,
    TlsContextOptions,
)
from awscrt.s3 import (
    S3ChecksumAlgorithm,
    S3ChecksumConfig,
    S3ChecksumLocation,
    S3Client,
    S3RequestTlsMode,
    S3RequestType,
    create_default_s3_signing_config,
)

_REGION = "us-east-1"
_PART_SIZE = 16 * 1024 * 1024
_MEMORY = 1024 * 1024 * 1024  # bytes; the least awscrt accepts
_FILES_AT_ONCE = 8


class Slice(io.RawIOBase):
    """A range of a file as a stream."""

    def __init__(self, descriptor: int, offset: int, size: int) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._at = offset
        self._end = offset + size

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer as far as the range goes."""
        with memoryview(buffer) as view:
            wanted = min(len(view), self._end - self._at)
            done = os.preadv(self._descriptor, [view[:wanted]], self._at) if wanted else 0
        self._at += done
        return done


def members(tar: BinaryIO) -> Iterator[tuple[str, int, int]]:
    """Name without its first directory, offset and size of each file of a plain archive."""
    at = 0
    while (block := os.pread(tar.fileno(), 512, at)).strip(b"\0"):
        name = block[:100].rstrip(b"\0").decode()
        size = int(block[124:136].rstrip(b"\0 ") or b"0", 8)
        if block[156:157] == b"0":
            yield name.partition("/")[2], at + 512, size
        at += 512 + size + -size % 512


def upload(path: str, bucket: str, prefix: str, endpoint: str, certificate: str | None) -> None:
    """Send every file. Raises what awscrt raises."""
    url = urlsplit(endpoint)
    group = EventLoopGroup()
    bootstrap = ClientBootstrap(group, DefaultHostResolver(group))
    provider = AwsCredentialsProvider.new_environment()
    tls = None
    if url.scheme == "https":
        options = TlsContextOptions()
        if certificate:
            options.override_default_trust_store_from_path(ca_filepath=certificate)
        tls = ClientTlsContext(options).new_connection_options()
    client = S3Client(
        bootstrap=bootstrap,
        region=_REGION,
        signing_config=create_default_s3_signing_config(
            region=_REGION, credential_provider=provider
        ),
        tls_mode=S3RequestTlsMode.ENABLED if tls else S3RequestTlsMode.DISABLED,
        tls_connection_options=tls,
        part_size=_PART_SIZE,
        memory_limit=_MEMORY,
    )
    room = threading.Semaphore(_FILES_AT_ONCE)
    pending: list[Future[None]] = []
    with open(path, "rb") as tar:
        for name, offset, size in members(tar):
            room.acquire()
            headers = HttpHeaders(
                [
                    ("Host", url.netloc),
                    ("Content-Length", str(size)),
                    ("Content-Type", "binary/octet-stream"),
                ]
            )
            stream = Slice(tar.fileno(), offset, size)
            target = f"/{bucket}/{quote(prefix + name)}"
            request = client.make_request(
                request=HttpRequest("PUT", target, headers, stream),
                type=S3RequestType.PUT_OBJECT,
                checksum_config=S3ChecksumConfig(
                    algorithm=S3ChecksumAlgorithm.CRC64NVME, location=S3ChecksumLocation.TRAILER
                ),
            )
            request.finished_future.add_done_callback(lambda _: room.release())
            pending.append(request.finished_future)
        for future in pending:
            future.result()


if __name__ == "__main__":
    tar, bucket, prefix, endpoint, *rest = sys.argv[1:]
    upload(tar, bucket, prefix, endpoint, rest[0] if rest else None)
