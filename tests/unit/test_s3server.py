"""The scripted S3 does what its script says: the instrument of the tests for I4, I7, I8, I9, I11 and I12.

What it has in common with other servers is in `tests/conformance`; here is what only it can do.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from awscrt.checksums import crc64nvme
from botocore.exceptions import ClientError, ConnectionClosedError, ResponseStreamingError

from tests.support.s3server import (
    Action,
    CutBody,
    CutUpload,
    DropAfter,
    DropBefore,
    ErrorIn200,
    Fault,
    FlipBit,
    IgnoreRange,
    Quirk,
    ReplaceBody,
    ScriptedS3,
    StallBody,
    Status,
    WrongRange,
)
from tests.support.servers import plain_client, self_signed

GUARD = 60.0
"""Seconds after which a wait has hung; no test depends on how long anything takes."""

DIGITS = b"0123456789"


def crc(data: bytes) -> str:
    return base64.b64encode(crc64nvme(data).to_bytes(8, "big")).decode()


def code_of(error: pytest.ExceptionInfo[ClientError]) -> tuple[int, str]:
    response = error.value.response
    return response["ResponseMetadata"]["HTTPStatusCode"], response["Error"]["Code"]


@pytest.fixture
def s3(scripted_s3: ScriptedS3) -> ScriptedS3:
    scripted_s3.bucket("b").put("k", DIGITS)
    return scripted_s3


@pytest.fixture
def client(s3: ScriptedS3) -> Iterator[Any]:
    with plain_client(s3) as made:
        yield made


@contextmanager
def serving(**options: Any) -> Iterator[tuple[ScriptedS3, Any]]:
    """A server with options, with a bucket `b` and a client."""
    with ScriptedS3(buckets=["b"], **options) as server, plain_client(server) as made:
        yield server, made


def read(client: Any, key: str = "k", **more: Any) -> bytes:
    with client.get_object(Bucket="b", Key=key, **more)["Body"] as body:
        return bytes(body.read())


# Which requests a fault hits


def statuses(client: Any, requests: list[tuple[str, str]]) -> list[int]:
    """Status of each request of (key, method of the client)."""
    found = []
    for key, method in requests:
        try:
            answer = getattr(client, method)(Bucket="b", Key=key)
        except ClientError as error:
            answer = error.response
        else:
            if "Body" in answer:
                answer["Body"].close()
        found.append(answer["ResponseMetadata"]["HTTPStatusCode"])
    return found


@pytest.mark.parametrize(
    ("occurrence", "expected"),
    [
        (1, [503, 200, 200, 200]),
        (3, [200, 200, 503, 200]),
        (range(2, 4), [200, 503, 503, 200]),
        (None, [503, 503, 503, 503]),
    ],
)
def test_a_fault_hits_its_occurrences(
    s3: ScriptedS3, client: Any, occurrence: Any, expected: list[int]
) -> None:
    s3.script(Fault("GetObject", Status(503), occurrence=occurrence))
    assert statuses(client, [("k", "get_object")] * 4) == expected
    assert s3.unfired_faults == []


def test_a_fault_counts_only_what_it_names(s3: ScriptedS3, client: Any) -> None:
    s3.bucket("b").put("other", b"")
    s3.script(Fault("HeadObject", Status(500), occurrence=2, key="k"))
    s3.script(Fault(None, Status(403), occurrence=1, key=lambda key: key.startswith("o")))
    requests = [("k", "get_object"), ("k", "head_object"), ("other", "head_object")]
    assert statuses(client, [*requests, ("k", "head_object")]) == [200, 200, 403, 500]


def test_a_fault_names_parts_writers_and_anything_else(s3: ScriptedS3, client: Any) -> None:
    upload = client.create_multipart_upload(Bucket="b", Key="m")["UploadId"]
    part = {"Bucket": "b", "Key": "m", "UploadId": upload, "Body": b"x"}
    s3.script(
        Fault("UploadPart", Status(500), part_number=2),
        Fault("HeadObject", Status(500), access_key="somebody"),
        Fault("GetObject", Status(500), where=lambda request: request.range == "bytes=5-6"),
    )
    client.upload_part(PartNumber=1, **part)
    with pytest.raises(ClientError):
        client.upload_part(PartNumber=2, **part)
    client.head_object(Bucket="b", Key="k")
    with plain_client(s3, access_key="somebody") as other, pytest.raises(ClientError):
        other.head_object(Bucket="b", Key="k")
    assert read(client, Range="bytes=4-6") == b"456"
    with pytest.raises(ClientError):
        read(client, Range="bytes=5-6")
    assert s3.unfired_faults == []


def test_unfired_faults_are_told_and_forgotten_with_the_script(s3: ScriptedS3, client: Any) -> None:
    fault = Fault("GetObject", Status(503), occurrence=2)
    s3.script(fault)
    assert read(client) == DIGITS
    assert s3.unfired_faults == [fault]
    s3.clear_script()
    assert read(client) == DIGITS
    assert s3.unfired_faults == []


# What a fault does


def test_status_answers_in_place_of_the_operation(s3: ScriptedS3, client: Any) -> None:
    s3.script(Fault("PutObject", Status(503, "SlowDown", "easy", {"Retry-After": "7"})))
    with pytest.raises(ClientError, match="easy") as refused:
        client.put_object(Bucket="b", Key="new", Body=b"x")
    assert code_of(refused) == (503, "SlowDown")
    assert refused.value.response["ResponseMetadata"]["HTTPHeaders"]["retry-after"] == "7"
    assert "new" not in s3.bucket("b")
    [entry] = s3.requests.of("PutObject")
    assert (entry.status, entry.executed) == (503, False)
    assert isinstance(entry.faults[0], Status)


def test_drop_before_executes_nothing(s3: ScriptedS3, client: Any) -> None:
    s3.script(Fault("PutObject", DropBefore()))
    with pytest.raises(ConnectionClosedError):
        client.put_object(Bucket="b", Key="new", Body=b"x")
    assert "new" not in s3.bucket("b")
    [entry] = s3.requests.of("PutObject")
    assert (entry.status, entry.executed) == (None, False)


def test_drop_after_loses_the_answer_of_what_was_done(s3: ScriptedS3, client: Any) -> None:
    s3.script(Fault("PutObject", DropAfter()))
    with pytest.raises(ConnectionClosedError):
        client.put_object(Bucket="b", Key="new", Body=b"x", IfNoneMatch="*")
    assert s3.bucket("b").get("new") == b"x"
    [entry] = s3.requests.of("PutObject")
    assert (entry.status, entry.executed) == (None, True)
    with pytest.raises(ClientError) as refused:
        client.put_object(Bucket="b", Key="new", Body=b"x", IfNoneMatch="*")
    assert code_of(refused) == (412, "PreconditionFailed")


def test_cut_upload_breaks_the_connection_within_the_body(s3: ScriptedS3, client: Any) -> None:
    s3.script(Fault("PutObject", CutUpload(1000)))
    with pytest.raises(ConnectionClosedError):
        client.put_object(Bucket="b", Key="new", Body=b"x" * 1001)
    assert "new" not in s3.bucket("b")


def test_cut_body_promises_more_than_it_sends(s3: ScriptedS3, client: Any) -> None:
    s3.script(Fault("GetObject", CutBody(4)))
    answer = client.get_object(Bucket="b", Key="k")
    assert answer["ContentLength"] == 10
    with closing(answer["Body"]) as body:
        assert body.read(4) == b"0123"
        with pytest.raises(ResponseStreamingError):
            body.read()
    assert s3.requests.sent("GetObject") == 4
    assert read(client) == DIGITS


@pytest.mark.parametrize(
    ("action", "expected"),
    [
        (FlipBit(0), b"1123456789"),
        (FlipBit(9 * 8 + 1), b"012345678;"),
        (ReplaceBody(bytes.upper), DIGITS),
        (ReplaceBody(lambda data: data[:3]), b"012"),
    ],
)
def test_bodies_change_under_way(
    s3: ScriptedS3, client: Any, action: Action, expected: bytes
) -> None:
    s3.script(Fault("GetObject", action))
    assert read(client) == expected
    assert s3.bucket("b").get("k") == DIGITS


@pytest.mark.parametrize(
    ("action", "status", "content_range", "expected"),
    [
        (WrongRange(3), 206, "bytes 2-4/10", b"567"),
        (WrongRange(3, honest=True), 206, "bytes 5-7/10", b"567"),
        (IgnoreRange(), 200, None, DIGITS),
    ],
)
def test_ranges_come_out_wrong(
    s3: ScriptedS3, client: Any, action: Action, status: int, content_range: Any, expected: bytes
) -> None:
    s3.script(Fault("GetObject", action))
    answer = client.get_object(Bucket="b", Key="k", Range="bytes=2-4")
    assert answer["ResponseMetadata"]["HTTPStatusCode"] == status
    assert answer.get("ContentRange") == content_range
    with answer["Body"] as body:
        assert body.read() == expected


@pytest.mark.parametrize("execute", [False, True])
def test_complete_fails_within_a_200(s3: ScriptedS3, client: Any, execute: bool) -> None:
    upload = client.create_multipart_upload(Bucket="b", Key="m")["UploadId"]
    target = {"Bucket": "b", "Key": "m", "UploadId": upload}
    etag = client.upload_part(PartNumber=1, Body=b"x", **target)["ETag"]
    s3.script(Fault("CompleteMultipartUpload", ErrorIn200(execute=execute)))
    with pytest.raises(ClientError) as refused:
        client.complete_multipart_upload(
            MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": etag}]}, **target
        )
    assert refused.value.response["Error"]["Code"] == "InternalError"
    [entry] = s3.requests.of("CompleteMultipartUpload")
    assert entry.status == 200
    assert ("m" in s3.bucket("b")) == entry.executed == execute


def test_several_actions_apply_to_one_request(s3: ScriptedS3, client: Any) -> None:
    s3.script(Fault("GetObject", FlipBit(0)), Fault("GetObject", CutBody(2)))
    answer = client.get_object(Bucket="b", Key="k")
    with answer["Body"] as body:
        assert body.read(2) == b"11"
    [entry] = s3.requests.of("GetObject")
    assert [type(action) for action in entry.faults] == [FlipBit, CutBody]


# Holds


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as pool:
        yield pool


@pytest.mark.parametrize("before", [True, False])
def test_a_hold_stops_a_request_on_one_side_of_its_execution(
    s3: ScriptedS3, client: Any, threads: ThreadPoolExecutor, before: bool
) -> None:
    with s3.hold("PutObject", before=before) as hold:
        put = threads.submit(client.put_object, Bucket="b", Key="new", Body=b"x")
        assert hold.arrived.wait(GUARD)
        assert ("new" in s3.bucket("b")) == (not before)
        [entry] = s3.requests.of("PutObject")
        assert (entry.status, entry.executed) == (None, not before)
        assert read(client) == DIGITS  # others go on
        assert not put.done()
    put.result(GUARD)
    assert s3.bucket("b").get("new") == b"x"


def test_a_hold_stops_one_writer_of_two(
    s3: ScriptedS3, client: Any, threads: ThreadPoolExecutor
) -> None:
    create = {"Bucket": "b", "Key": "new", "IfNoneMatch": "*"}
    with plain_client(s3, access_key="late") as late:
        with s3.hold("PutObject", access_key="late") as hold:
            slow = threads.submit(late.put_object, Body=b"late", **create)
            assert hold.arrived.wait(GUARD)
            client.put_object(Body=b"early", **create)
        with pytest.raises(ClientError) as refused:
            slow.result(GUARD)
    assert code_of(refused) == (412, "PreconditionFailed")
    assert s3.bucket("b").get("new") == b"early"
    assert [entry.status for entry in s3.requests.of("PutObject", access_key="late")] == [412]


def test_writers_that_arrive_together_have_one_winner(
    s3: ScriptedS3, threads: ThreadPoolExecutor
) -> None:
    def create(number: int) -> str:
        try:
            clients[number].put_object(Bucket="b", Key="new", Body=b"%d" % number, IfNoneMatch="*")
        except ClientError as error:
            return str(error.response["Error"]["Code"])
        return "won"

    with ExitStack() as stack:
        clients = [
            stack.enter_context(plain_client(s3, access_key=f"writer-{number}"))
            for number in range(8)
        ]
        with s3.hold("PutObject", parties=8) as hold:
            results = threads.map(create, range(8))
            assert hold.arrived.wait(GUARD)
        found = list(results)
    assert sorted(found) == ["PreconditionFailed"] * 7 + ["won"]
    assert s3.bucket("b").get("new") == b"%d" % found.index("won")


def test_a_body_stalls_until_it_is_released(
    s3: ScriptedS3, client: Any, threads: ThreadPoolExecutor
) -> None:
    with StallBody(3) as stall:
        s3.script(Fault("GetObject", stall))
        with client.get_object(Bucket="b", Key="k")["Body"] as body:
            assert body.read(3) == b"012"
            assert stall.arrived.wait(GUARD)
            rest = threads.submit(body.read)
            assert not rest.done()
            stall.release()
            assert rest.result(GUARD) == b"3456789"


def test_the_end_of_the_server_releases_whoever_is_held(threads: ThreadPoolExecutor) -> None:
    with plain_client(server := ScriptedS3(buckets=["b"]).start()) as client:
        hold = server.hold("HeadBucket")
        held = threads.submit(client.head_bucket, Bucket="b")
        assert hold.arrived.wait(GUARD)
        server.stop()
        assert held.exception(GUARD) is None or isinstance(held.exception(), ConnectionClosedError)


# Behind the store's back


def test_rot_changes_bytes_and_nothing_else(s3: ScriptedS3, client: Any) -> None:
    before = client.head_object(Bucket="b", Key="k", ChecksumMode="ENABLED")
    s3.bucket("b").flip_bit("k", 8)
    after = client.head_object(Bucket="b", Key="k", ChecksumMode="ENABLED")
    assert read(client, IfMatch=before["ETag"]) == b"0023456789"
    names = ("ETag", "ChecksumCRC64NVME", "ContentLength", "LastModified")
    assert {name: after[name] for name in names} == {name: before[name] for name in names}
    assert after["ChecksumCRC64NVME"] == crc(DIGITS)


def test_the_bucket_is_open_to_the_test(s3: ScriptedS3, client: Any) -> None:
    bucket = s3.bucket("b")
    client.put_object(Bucket="b", Key="m/\uff5e", Body=b"x", Metadata={"a": "1"})
    client.put_object(Bucket="b", Key="m/\U00010000", Body=b"y", ContentType="text/plain")
    assert bucket.keys("m/") == ["m/\uff5e", "m/\U00010000"]
    assert bucket.object("m/\uff5e").metadata == {"a": "1"}
    assert bucket.object("m/\U00010000").headers["content-type"] == "text/plain"
    upload = client.create_multipart_upload(Bucket="b", Key="m/u")["UploadId"]
    client.upload_part(Bucket="b", Key="m/u", UploadId=upload, PartNumber=3, Body=b"part")
    [open_upload] = bucket.uploads("m/")
    assert open_upload.parts[3].data == b"part"
    bucket.close_upload(upload)
    bucket.remove("k")
    assert bucket.uploads() == []
    assert len(bucket) == 2
    assert not s3.has_bucket("another")


# The request log


def test_the_log_tells_what_was_asked_and_answered(s3: ScriptedS3, client: Any) -> None:
    client.put_object(Bucket="b", Key="new é", Body=bytearray(b"content"), IfNoneMatch="*")
    read(client, Range="bytes=0-3")
    client.head_object(Bucket="b", Key="k")
    put, get, head = s3.requests
    assert s3.requests.operations() == ["PutObject", "GetObject", "HeadObject"]
    assert (put.bucket, put.key, put.method, put.status) == ("b", "new é", "PUT", 200)
    assert (put.body_length, put.content_sha256) == (7, "UNSIGNED-PAYLOAD")
    assert put.headers["if-none-match"] == "*"
    assert (put.access_key, put.region) == (s3.access_key, "us-east-1")
    assert put.user_agent.startswith("Boto3/")
    assert (get.range, get.sent, get.status) == ("bytes=0-3", 4, 206)
    assert (head.sent, head.sequence) == (0, 2)
    assert s3.requests.received() == 7
    assert s3.requests.sent() == 4
    assert s3.requests.count("GetObject", "HeadObject", key="k") == 2
    assert s3.requests.of(status=206) == (get,)
    s3.requests.clear()
    client.head_object(Bucket="b", Key="k")
    assert [entry.sequence for entry in s3.requests] == [3]


# Who may do what


def test_denied_permissions(s3: ScriptedS3, client: Any) -> None:
    s3.deny("DeleteObject")
    with pytest.raises(ClientError) as refused:
        client.delete_object(Bucket="b", Key="k")
    assert code_of(refused) == (403, "AccessDenied")
    assert "k" in s3.bucket("b")
    s3.allow("DeleteObject")
    client.delete_object(Bucket="b", Key="k")
    assert "k" not in s3.bucket("b")
    with pytest.raises(ValueError, match="no such permission"):
        s3.deny("DeleteObjects")


def test_denied_to_one_key(s3: ScriptedS3, client: Any) -> None:
    s3.deny("ListBucketMultipartUploads", access_key="pod")
    client.list_multipart_uploads(Bucket="b")
    with (
        plain_client(s3, access_key="pod") as pod,
        pytest.raises(ClientError, match="AccessDenied"),
    ):
        pod.list_multipart_uploads(Bucket="b")


def test_without_list_bucket_a_missing_key_is_hidden(s3: ScriptedS3, client: Any) -> None:
    s3.deny("ListBucket")
    assert statuses(client, [("k", "head_object"), ("k", "get_object")]) == [200, 200]
    assert statuses(client, [("no", "head_object"), ("no", "get_object")]) == [403, 403]
    with pytest.raises(ClientError, match="AccessDenied"):
        client.list_objects_v2(Bucket="b")


@pytest.mark.parametrize(("minutes", "status"), [(14, 200), (-14, 200), (16, 403), (-16, 403)])
def test_clocks_may_differ_by_a_quarter_of_an_hour(
    s3: ScriptedS3, client: Any, minutes: int, status: int
) -> None:
    s3.clock_offset_seconds = 60.0 * minutes
    assert statuses(client, [("k", "get_object")]) == [status]
    if status == 403:
        with pytest.raises(ClientError, match="RequestTimeTooSkewed"):
            read(client)


def test_a_presigned_url_expires(s3: ScriptedS3, client: Any) -> None:
    url = client.generate_presigned_url(
        "get_object", Params={"Bucket": "b", "Key": "k"}, ExpiresIn=3600
    )
    s3.clock_offset_seconds = 3500
    with urllib.request.urlopen(url) as answer:
        assert answer.read() == DIGITS
    s3.clock_offset_seconds = 3700
    with pytest.raises(urllib.error.HTTPError, match="403") as refused:
        urllib.request.urlopen(url)
    with refused.value:
        assert b"Request has expired" in refused.value.read()


def test_a_request_for_another_region_is_told_the_right_one() -> None:
    with (
        serving(region="eu-west-1") as (server, _),
        plain_client(server, region="eu-west-1") as near,
    ):
        assert near.get_bucket_location(Bucket="b")["LocationConstraint"] == "eu-west-1"
        connection = http.client.HTTPConnection("127.0.0.1", server.port)
        connection.request("HEAD", "/b", headers=signed_headers(region="us-east-1"))
        head = connection.getresponse()
        head.read()
        assert (head.status, head.headers["x-amz-bucket-region"]) == (400, "eu-west-1")
        connection.request("GET", "/b/k", headers=signed_headers(region="us-east-1"))
        get = connection.getresponse()
        body = get.read()
        connection.close()
        assert (get.status, get.headers["x-amz-bucket-region"]) == (400, "eu-west-1")
        assert b"<Code>AuthorizationHeaderMalformed</Code>" in body
        assert b"<Region>eu-west-1</Region>" in body


def signed_headers(*, region: str = "us-east-1", names: str = "host;x-amz-date") -> dict[str, str]:
    """Headers of a request that looks signed; without configured credentials nobody verifies it."""
    now = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    scope = f"key/{now[:8]}/{region}/s3/aws4_request"
    return {
        "X-Amz-Date": now,
        "Authorization": f"AWS4-HMAC-SHA256 Credential={scope}, SignedHeaders={names}, Signature=0",
    }


def test_amz_headers_have_to_be_signed(s3: ScriptedS3) -> None:
    headers = {**signed_headers(), "x-amz-checksum-mode": "ENABLED"}
    assert exchange(s3, "GET", "/b/k", headers)[0] == 403
    names = "host;x-amz-checksum-mode;x-amz-date"
    assert exchange(s3, "GET", "/b/k", headers | signed_headers(names=names))[0] == 200


def exchange(
    s3: ScriptedS3, method: str, target: str, headers: dict[str, str], body: Any = None, **more: Any
) -> tuple[int, bytes]:
    """Status and body of one request that no SDK had a hand in."""
    connection = http.client.HTTPConnection("127.0.0.1", s3.port)
    try:
        connection.request(method, target, body, headers, **more)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def test_a_bucket_is_created_again_in_us_east_1_alone(s3: ScriptedS3, client: Any) -> None:
    client.create_bucket(Bucket="bucket")
    s3.bucket("bucket").put("k", b"x")
    client.create_bucket(Bucket="bucket")
    assert "k" in s3.bucket("bucket")
    with ScriptedS3(region="eu-west-1") as far, plain_client(far, region="eu-west-1") as other:
        where = {"LocationConstraint": "eu-west-1"}
        other.create_bucket(Bucket="bucket", CreateBucketConfiguration=where)
        with pytest.raises(ClientError) as refused:
            other.create_bucket(Bucket="bucket", CreateBucketConfiguration=where)
        assert code_of(refused) == (409, "BucketAlreadyOwnedByYou")


# What is asked for badly


def test_chunked_bodies_are_refused(s3: ScriptedS3) -> None:
    for headers in (
        {"Content-Encoding": "aws-chunked", "x-amz-trailer": "x-amz-checksum-crc32"},
        {"x-amz-content-sha256": "STREAMING-UNSIGNED-PAYLOAD-TRAILER"},
    ):
        status, body = exchange(s3, "PUT", "/b/new", headers, b"1\r\nx\r\n0\r\n\r\n")
        assert (status, b"aws-chunked" in body) == (501, True)
    status, _ = exchange(s3, "PUT", "/b/new", {}, iter([b"x", b"yz"]), encode_chunked=True)
    assert status == 501
    assert "new" not in s3.bucket("b")


@pytest.mark.parametrize(
    ("method", "target"),
    [("GET", "/"), ("GET", "/b/k?acl"), ("GET", "/b?versions"), ("GET", "/b"), ("POST", "/b/k")],
)
def test_other_operations_are_refused(s3: ScriptedS3, method: str, target: str) -> None:
    status, body = exchange(s3, method, target, {})
    assert (status, b"NotImplemented" in body) == (501, True)
    assert s3.requests[-1].operation == "Unknown"


def test_copies_are_refused(s3: ScriptedS3, client: Any) -> None:
    with pytest.raises(ClientError) as refused:
        client.copy_object(Bucket="b", Key="copy", CopySource="b/k")
    assert code_of(refused) == (501, "NotImplemented")


def test_a_client_may_wait_for_continue(s3: ScriptedS3) -> None:
    head = b"PUT /b/new HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n"
    with socket.create_connection(("127.0.0.1", s3.port)) as connection:
        connection.sendall(head)
        assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(b"body")
        assert connection.recv(100).startswith(b"HTTP/1.1 200 OK\r\n")
    assert s3.bucket("b").get("new") == b"body"


def test_what_is_no_http_is_refused(s3: ScriptedS3) -> None:
    with socket.create_connection(("127.0.0.1", s3.port)) as connection:
        connection.sendall(b"HELO store\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize(
    ("operation", "headers", "code"),
    [
        ("PutObject", {"x-amz-checksum-crc64nvme": "AAAA"}, b"InvalidRequest"),
        ("PutObject", {"x-amz-checksum-sha256": crc(b"")}, b"InvalidRequest"),
        ("PutObject", {"x-amz-checksum-crc32": "AAAAAA=="}, b"BadDigest"),
        ("PutObject", {"x-amz-meta-m": "x" * 2048}, b"MetadataTooLarge"),
        ("PutObject", {"x-amz-content-sha256": "0" * 64}, b"XAmzContentSHA256Mismatch"),
    ],
)
def test_bad_headers(s3: ScriptedS3, operation: str, headers: dict[str, str], code: bytes) -> None:
    status, body = exchange(s3, "PUT", "/b/new", headers, b"body")
    assert (status, code in body) == (400, True)
    assert s3.requests[-1].operation == operation
    assert "new" not in s3.bucket("b")


def test_a_key_has_at_most_1024_bytes(s3: ScriptedS3, client: Any) -> None:
    client.put_object(Bucket="b", Key="é" * 512, Body=b"")
    with pytest.raises(ClientError, match="KeyTooLong"):
        client.put_object(Bucket="b", Key="é" * 512 + "x", Body=b"")


def test_a_defect_of_the_server_fails_its_test() -> None:
    server = ScriptedS3(buckets=["b"]).start()
    server.bucket("b").put("k", DIGITS)
    server.script(Fault("GetObject", WrongRange(1)))  # meets a request that has no range
    with plain_client(server) as client, pytest.raises(ConnectionClosedError):
        read(client)
    with pytest.raises(ExceptionGroup, match="defects of the scripted S3 server") as failed:
        server.stop()
    assert failed.group_contains(KeyError)


# Multipart rules that only this server checks


def test_parts_carry_the_checksum_that_create_named(s3: ScriptedS3, client: Any) -> None:
    upload = client.create_multipart_upload(Bucket="b", Key="m")["UploadId"]
    part = {"Bucket": "b", "Key": "m", "UploadId": upload, "PartNumber": 1, "Body": b"x"}
    with pytest.raises(ClientError, match="Checksum Type mismatch"):
        client.upload_part(ChecksumCRC64NVME=crc(b"x"), **part)
    client.upload_part(**part)
    with pytest.raises(ClientError, match="COMPOSITE checksum type cannot be used"):
        client.create_multipart_upload(
            Bucket="b", Key="m", ChecksumAlgorithm="CRC64NVME", ChecksumType="COMPOSITE"
        )


def test_small_parts_for_tests_that_want_many() -> None:
    with serving(min_part_size=4, page_size=2) as (server, client):
        target = {"Bucket": "b", "Key": "m"}
        target["UploadId"] = client.create_multipart_upload(**target)["UploadId"]
        etags = [
            client.upload_part(PartNumber=number, Body=body, **target)["ETag"]
            for number, body in enumerate([b"0123", b"4567", b"89"], 1)
        ]
        first = client.list_parts(**target)
        assert [part["PartNumber"] for part in first["Parts"]] == [1, 2]
        assert first["IsTruncated"]
        parts = [{"PartNumber": number, "ETag": etag} for number, etag in enumerate(etags, 1)]
        client.complete_multipart_upload(MultipartUpload={"Parts": parts}, **target)
        version = server.bucket("b").object("m")
        assert version.data == DIGITS
        assert version.crc64nvme == crc(DIGITS)
        assert read(client, "m", Range="bytes=3-8") == b"345678"


def test_a_page_has_at_most_a_thousand_keys(s3: ScriptedS3, client: Any) -> None:
    keys = [f"m/{number:04d}" for number in range(2001)]
    for key in keys:
        s3.bucket("b").put(key, b"")
    listing = client.get_paginator("list_objects_v2").paginate(
        Bucket="b", Prefix="m/", PaginationConfig={"PageSize": 5000}
    )
    pages = [[entry["Key"] for entry in page["Contents"]] for page in listing]
    assert [len(page) for page in pages] == [1000, 1000, 1]
    assert [key for page in pages for key in page] == keys


def test_an_etag_under_kms_is_no_digest(s3: ScriptedS3, client: Any) -> None:
    put = client.put_object(Bucket="b", Key="new", Body=b"x", ServerSideEncryption="aws:kms")
    assert put["ETag"] != f'"{hashlib.md5(b"x").hexdigest()}"'
    head = client.head_object(Bucket="b", Key="new")
    assert (head["ETag"], head["ServerSideEncryption"]) == (put["ETag"], "aws:kms")


# Shortcomings of other stores


def test_a_store_that_ignores_checksums() -> None:
    with serving(quirks=[Quirk.IGNORES_CHECKSUMS]) as (_, client):
        put = client.put_object(Bucket="b", Key="k", Body=b"x", ChecksumCRC64NVME=crc(b"wrong"))
        head = client.head_object(Bucket="b", Key="k", ChecksumMode="ENABLED")
        assert "ChecksumCRC64NVME" not in put.keys() | head.keys()


def test_a_store_that_echoes_checksums() -> None:
    with serving(quirks=[Quirk.ECHOES_CHECKSUMS]) as (_, client):
        client.put_object(Bucket="b", Key="k", Body=b"x", ChecksumCRC64NVME=crc(b"wrong"))
        head = client.head_object(Bucket="b", Key="k", ChecksumMode="ENABLED")
        assert head["ChecksumCRC64NVME"] == crc(b"wrong")


@pytest.mark.parametrize(
    ("quirks", "put", "complete", "delete"),
    [
        ([], 412, 412, 412),
        ([Quirk.IGNORES_COMPLETE_AND_DELETE_CONDITIONS], 412, 200, 204),
        ([Quirk.IGNORES_CONDITIONS], 200, 200, 204),
    ],
)
def test_a_store_that_ignores_conditions(
    quirks: list[Quirk], put: int, complete: int, delete: int
) -> None:
    with serving(quirks=[*quirks, Quirk.COMPLETE_WITHOUT_ETAG]) as (server, client):
        server.bucket("b").put("k", DIGITS)
        upload = client.create_multipart_upload(Bucket="b", Key="k")["UploadId"]
        target = {"Bucket": "b", "Key": "k"}
        etag = client.upload_part(UploadId=upload, PartNumber=1, Body=b"x", **target)["ETag"]
        parts = {"Parts": [{"PartNumber": 1, "ETag": etag}]}
        attempts: list[Callable[[], Any]] = [
            lambda: client.put_object(Body=b"x", IfNoneMatch="*", **target),
            lambda: client.complete_multipart_upload(
                UploadId=upload, MultipartUpload=parts, IfNoneMatch="*", **target
            ),
            lambda: client.delete_object(IfMatch='"0"', **target),
        ]
        for attempt, status in zip(attempts, (put, complete, delete), strict=True):
            try:
                answer = attempt()
            except ClientError as error:
                answer = error.response
            assert answer["ResponseMetadata"]["HTTPStatusCode"] == status
            assert answer.get("ETag") != '""'


def test_a_store_whose_part_listing_has_no_checksums() -> None:
    with serving(quirks=[Quirk.LISTS_PARTS_WITHOUT_CHECKSUMS, Quirk.ETAG_IS_NO_DIGEST]) as (
        _,
        client,
    ):
        target = {"Bucket": "b", "Key": "m"}
        target["UploadId"] = client.create_multipart_upload(
            ChecksumAlgorithm="CRC64NVME", ChecksumType="FULL_OBJECT", **target
        )["UploadId"]
        sent = client.upload_part(PartNumber=1, Body=b"x", ChecksumCRC64NVME=crc(b"x"), **target)
        [part] = client.list_parts(**target)["Parts"]
        assert "ChecksumCRC64NVME" not in part
        assert part["ETag"] == sent["ETag"] != f'"{hashlib.md5(b"x").hexdigest()}"'


# TLS


def test_https(tmp_path: Path) -> None:
    bundle, context = self_signed(tmp_path)
    with (
        ScriptedS3(buckets=["b"], tls=context) as server,
        plain_client(server, ca_bundle=bundle) as client,
    ):
        assert server.endpoint_url.startswith("https://")
        body = b"x" * 3_000_000
        client.put_object(Bucket="b", Key="k", Body=bytearray(body))
        assert read(client) == body
