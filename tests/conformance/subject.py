"""A server under test and the few requests from which the tests are made."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from awscrt.checksums import combine_crc64nvme, crc64nvme
from botocore.exceptions import ClientError

from tests.conformance.answers import LACKS, S3
from tests.support.servers import Server, plain_client

T = TypeVar("T")


def attempt(call: Callable[[], T]) -> T | str:
    """What a call returns or, for a refusal, its status and code."""
    try:
        return call()
    except ClientError as error:
        status = error.response["ResponseMetadata"]["HTTPStatusCode"]
        return f"{status} {error.response['Error']['Code']}"


def outcome(call: Callable[[], Any]) -> str:
    """The status of an answer and, for a refusal, its code."""
    answer = attempt(call)
    if isinstance(answer, str):
        return answer
    if "Body" in answer:
        answer["Body"].close()
    return str(answer["ResponseMetadata"]["HTTPStatusCode"])


def crc(*pieces: bytes) -> str:
    """CRC-64/NVME of a concatenation, as S3 writes it."""
    value = 0
    for piece in pieces:
        value = combine_crc64nvme(value, crc64nvme(piece), len(piece))
    return base64.b64encode(value.to_bytes(8, "big")).decode()


def told(checksum: str | None, *pieces: bytes) -> str | None:
    """ "value" for the right CRC of the pieces, "another value" for a wrong one, None for none."""
    if checksum is None:
        return None
    return "value" if checksum == crc(*pieces) else "another value"


@dataclass(frozen=True)
class Subject:
    """A server under test, with a client and an empty bucket of the test's own."""

    name: str
    server: Server
    client: Any
    bucket: str

    def expect(self, feature: str, observed: object) -> None:
        expected = LACKS[self.name].get(feature, S3[feature])
        assert observed == expected, f"{self.name}: {feature}"

    def put(self, key: str, body: bytes | bytearray = b"", **more: Any) -> str:
        """Create an object and return its ETag, without quotes."""
        answer = self.client.put_object(Bucket=self.bucket, Key=key, Body=body, **more)
        return str(answer["ETag"]).strip('"')

    def get(self, key: str, **more: Any) -> bytes:
        with self.client.get_object(Bucket=self.bucket, Key=key, **more)["Body"] as body:
            return bytes(body.read())

    def exists(self, key: str) -> bool:
        return outcome(lambda: self.client.head_object(Bucket=self.bucket, Key=key)) == "200"

    def open(self, key: str, **more: Any) -> str:
        """Open an upload with full-object CRC64NVME and return its id."""
        answer = self.client.create_multipart_upload(
            Bucket=self.bucket,
            Key=key,
            ChecksumAlgorithm="CRC64NVME",
            ChecksumType="FULL_OBJECT",
            **more,
        )
        return str(answer["UploadId"])

    def part(self, key: str, upload: str, number: int, body: bytes, **more: Any) -> dict[str, Any]:
        """Send a part and return how Complete names it."""
        answer = self.client.upload_part(
            Bucket=self.bucket,
            Key=key,
            UploadId=upload,
            PartNumber=number,
            Body=bytearray(body),
            **({"ChecksumCRC64NVME": crc(body)} | more),
        )
        return {"PartNumber": number, "ETag": answer["ETag"], "ChecksumCRC64NVME": crc(body)}

    def complete(self, key: str, upload: str, parts: list[dict[str, Any]], **more: Any) -> Any:
        return self.client.complete_multipart_upload(
            Bucket=self.bucket,
            Key=key,
            UploadId=upload,
            MultipartUpload={"Parts": parts},
            ChecksumType="FULL_OBJECT",
            **more,
        )

    def keys(self, **more: Any) -> list[str]:
        answer = self.client.list_objects_v2(Bucket=self.bucket, **more)
        return [entry["Key"] for entry in answer.get("Contents", [])]


@contextmanager
def subject_on(name: str, server: Server, bucket: str) -> Iterator[Subject]:
    """A subject with a new bucket."""
    with plain_client(server) as client:
        client.create_bucket(Bucket=bucket)
        yield Subject(name, server, client, bucket)
