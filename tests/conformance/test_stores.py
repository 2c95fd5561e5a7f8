"""The contract of `Store`, asked of every implementation over every server (I4, I7, I8, I14).

A server that cannot keep a clause is listed in `LACKS` with what happens instead, and the test asserts
exactly that.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator

import pytest

from staging.store.memory import MemoryStore
from staging.store.s3 import S3Store
from staging.store.store import AlreadyExists, Changed, Store
from staging.vocabulary import crc64
from staging.vocabulary.errors import (
    Conflict,
    IntegrityError,
    MalformedInput,
    NotFound,
    StagingError,
    StoreUnavailable,
)
from tests.support.s3server import CutBody, Fault, ScriptedS3, Status
from tests.support.servers import Server
from tests.support.stores import s3_store

MIB = 1024 * 1024

LACKS: dict[tuple[str, str], str] = {
    ("moto", "checks-crc"): "accepts a wrong CRC64NVME",
    ("rclone", "checks-crc"): "accepts a wrong CRC64NVME",
    ("rclone", "conditional-create"): "overwrites",
    ("rclone", "conditional-complete"): "overwrites",
    ("rclone", "conditional-delete"): "deletes another version",
    ("rclone", "keeps-crc"): "keeps no checksum of a multipart object",
    ("rclone", "lists-uploads"): "lists no uploads",
    ("moto", "lists-part-checksums"): "tells number, size and ETag alone",
    ("rclone", "lists-part-checksums"): "tells number, size and ETag alone",
    ("rclone", "replaces-parts"): "refuses a part that was sent before",
    ("moto", "upload-gone"): "answers 500 to Complete",
}


def lacks(server: str, feature: str) -> bool:
    return (server, feature) in LACKS


@pytest.fixture(params=["memory", "scripted", "moto", "rclone"])
def server(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def store(server: str, request: pytest.FixtureRequest, unique_bucket: str) -> Iterator[Store]:
    if server == "memory":
        yield MemoryStore(unique_bucket)
        return
    endpoint: Server = request.getfixturevalue(
        {"scripted": "scripted_s3", "moto": "moto_server", "rclone": "rclone_server"}[server]
    )
    with s3_store(endpoint, unique_bucket) as opened:
        yield opened


def body(size: int, seed: int = 1) -> bytearray:
    return bytearray(random.Random(seed).randbytes(size))


def put(store: Store, key: str, data: bytes | bytearray) -> str:
    return store.create(key, data, crc64nvme=checksum(data)).etag


def checksum(data: bytes | bytearray) -> str:
    return crc64.to_text(crc64.crc64(data))


def test_a_created_object_is_there_whole(store: Store) -> None:
    data = body(1000)
    put(store, "m/a", data)
    info = store.head("m/a")
    assert (info.key, info.size) == ("m/a", 1000)
    read, same = store.read("m/a", limit=1000)
    assert read == data
    assert same.etag == info.etag


def test_an_empty_object_is_an_object(store: Store) -> None:
    put(store, "m/empty", b"")
    assert store.head("m/empty").size == 0
    assert store.read("m/empty", limit=0)[0] == b""


def test_create_meets_an_object(store: Store, server: str) -> None:
    put(store, "m/a", b"first")
    if lacks(server, "conditional-create"):
        put(store, "m/a", b"other")
        return
    with pytest.raises(AlreadyExists):
        put(store, "m/a", b"other")
    assert store.read("m/a", limit=10)[0] == b"first"


def test_create_with_a_wrong_checksum(store: Store, server: str) -> None:
    if lacks(server, "checks-crc"):
        store.create("m/a", b"bytes", crc64nvme=checksum(b"other"))
        return
    with pytest.raises(IntegrityError):
        store.create("m/a", b"bytes", crc64nvme=checksum(b"other"))
    with pytest.raises(NotFound):
        store.head("m/a")


def test_missing_objects_and_too_large_ones(store: Store) -> None:
    with pytest.raises(NotFound):
        store.head("m/none")
    with pytest.raises(NotFound):
        store.read("m/none", limit=10)
    put(store, "m/a", b"four")
    with pytest.raises(MalformedInput, match="4 bytes, more than 3"):
        store.read("m/a", limit=3)


@pytest.mark.parametrize(("offset", "length"), [(0, 1), (0, 1000), (999, 1), (123, 456)])
def test_a_range_of_one_version(store: Store, offset: int, length: int) -> None:
    data = body(1000)
    etag = store.head("m/a").etag if put(store, "m/a", data) else ""
    buffer = bytearray(length)
    assert store.read_into("m/a", offset, memoryview(buffer), etag=etag) == length
    assert buffer == data[offset : offset + length]


def test_a_range_of_another_version(store: Store) -> None:
    # Also refused where the server ignores the condition (rclone): its answer names the version.
    put(store, "m/a", b"0123456789")
    buffer = bytearray(4)
    with pytest.raises(Changed):
        store.read_into("m/a", 0, memoryview(buffer), etag="0" * 32)


@pytest.mark.parametrize("offset", [8, 10, 500])
def test_a_range_past_the_end(store: Store, offset: int) -> None:
    put(store, "m/a", b"0123456789")
    etag = store.head("m/a").etag
    with pytest.raises(Changed):
        store.read_into("m/a", offset, memoryview(bytearray(4)), etag=etag)


def test_parts_become_an_object_at_complete(store: Store, server: str) -> None:
    first, second = body(5 * MIB), body(1234, seed=2)
    upload = store.create_multipart_upload("m/big")
    parts = [
        store.upload_part(upload, number, part, crc64nvme=checksum(part))
        for number, part in ((2, second), (1, first))
    ]
    with pytest.raises(NotFound):
        store.head("m/big")
    assert not list(store.list_objects("m/"))
    parts.sort(key=lambda part: part.number)
    store.complete_multipart_upload(upload, parts, crc64nvme=checksum(first + second))
    info = store.head("m/big")
    assert info.size == len(first) + len(second)
    if not lacks(server, "keeps-crc"):
        assert info.crc64nvme == checksum(first + second)
    buffer = bytearray(20)
    assert store.read_into("m/big", 5 * MIB - 10, memoryview(buffer), etag=info.etag) == 20
    assert buffer == first[-10:] + second[:10]


def test_a_part_sent_again_replaces_the_first(store: Store, server: str) -> None:
    upload = store.create_multipart_upload("m/a")
    for data in (body(100), body(100, seed=2)):
        if lacks(server, "replaces-parts") and data != body(100):
            with pytest.raises(StagingError, match="cannot be replaced"):
                store.upload_part(upload, 1, data, crc64nvme=checksum(data))
            return
        part = store.upload_part(upload, 1, data, crc64nvme=checksum(data))
    store.complete_multipart_upload(upload, [part], crc64nvme=checksum(data))
    assert store.read("m/a", limit=100)[0] == data


def test_a_part_with_a_wrong_checksum(store: Store, server: str) -> None:
    upload = store.create_multipart_upload("m/a")
    if lacks(server, "checks-crc"):
        store.upload_part(upload, 1, body(10), crc64nvme=checksum(b"other"))
    else:
        with pytest.raises(IntegrityError):
            store.upload_part(upload, 1, body(10), crc64nvme=checksum(b"other"))
    store.abort_multipart_upload(upload)


def test_complete_with_a_wrong_checksum(store: Store, server: str) -> None:
    upload = store.create_multipart_upload("m/a")
    part = store.upload_part(upload, 1, body(10), crc64nvme=checksum(body(10)))
    if lacks(server, "checks-crc"):
        store.complete_multipart_upload(upload, [part], crc64nvme=checksum(b"other"))
        return
    with pytest.raises(IntegrityError):
        store.complete_multipart_upload(upload, [part], crc64nvme=checksum(b"other"))
    with pytest.raises(NotFound):
        store.head("m/a")


def test_complete_meets_an_object(store: Store, server: str) -> None:
    upload = store.create_multipart_upload("m/a")
    part = store.upload_part(upload, 1, body(10), crc64nvme=checksum(body(10)))
    put(store, "m/a", b"first")
    if lacks(server, "conditional-complete"):
        store.complete_multipart_upload(upload, [part], crc64nvme=checksum(body(10)))
        return
    with pytest.raises(AlreadyExists):
        store.complete_multipart_upload(upload, [part], crc64nvme=checksum(body(10)))
    assert store.read("m/a", limit=10)[0] == b"first"


def test_an_aborted_upload_is_gone(store: Store, server: str) -> None:
    upload = store.create_multipart_upload("m/a")
    part = store.upload_part(upload, 1, body(10), crc64nvme=checksum(body(10)))
    if not lacks(server, "lists-uploads"):
        assert [listed.upload for listed in store.list_multipart_uploads("m/")] == [upload]
        assert not list(store.list_multipart_uploads("other/"))
    store.abort_multipart_upload(upload)
    store.abort_multipart_upload(upload)
    refusal = StoreUnavailable if lacks(server, "upload-gone") else NotFound
    with pytest.raises(refusal):
        store.complete_multipart_upload(upload, [part], crc64nvme=checksum(body(10)))
    assert not list(store.list_multipart_uploads("m/"))


def test_waiting_parts_are_listed_with_their_checksums(store: Store, server: str) -> None:
    upload = store.create_multipart_upload("m/a")
    assert list(store.list_parts(upload)) == []
    parts = []
    for number, size in ((3, 10), (1, 5 * MIB)):
        data = body(size, number)
        parts.append(store.upload_part(upload, number, data, crc64nvme=checksum(data)))
    listed = list(store.list_parts(upload))
    assert [(part.number, part.size) for part in listed] == [(1, 5 * MIB), (3, 10)]
    if server != "memory":
        md5 = hashlib.md5(body(10, 3), usedforsecurity=False).hexdigest()
        assert listed[1].etag == md5
    assert [part.etag for part in listed] == [parts[1].etag, parts[0].etag]
    told = [part.crc64nvme for part in listed]
    expected = [parts[1].crc64nvme, parts[0].crc64nvme]
    assert told == ([None, None] if lacks(server, "lists-part-checksums") else expected)
    store.abort_multipart_upload(upload)
    with pytest.raises(NotFound) as caught:
        list(store.list_parts(upload))
    assert caught.value.reference == "upload-gone"


def test_many_parts_take_many_pages(scripted_s3: ScriptedS3, unique_bucket: str) -> None:
    with s3_store(scripted_s3, unique_bucket) as store:
        upload = store.create_multipart_upload("m/a")
        data = body(10)
        for number in range(1, 1003):
            store.upload_part(upload, number, data, crc64nvme=checksum(data))
        assert [part.number for part in store.list_parts(upload)] == list(range(1, 1003))


def test_a_prefix_never_meets_its_siblings(store: Store) -> None:
    for key in ("m/a", "m/b/c", "m-2/a", "n"):
        put(store, key, b"x")
    assert [info.key for info in store.list_objects("m/")] == ["m/a", "m/b/c"]
    level = store.list_level("m/")
    assert [info.key for info in level.objects] == ["m/a"]
    assert level.prefixes == ("b/",)
    assert store.list_level("").prefixes == ("m-2/", "m/")


def test_keys_come_back_as_they_went(store: Store) -> None:
    keys = sorted(["m/a b", "m/a+b", "m/a%b", "m/a#b", "m/a%20b", "m/é", "m/日本"], key=str.encode)
    for key in keys:
        put(store, key, key.encode())
    assert [info.key for info in store.list_objects("m/")] == keys
    for key in keys:
        assert store.read(key, limit=100)[0] == key.encode()


def test_deleting_one_version(store: Store, server: str) -> None:
    put(store, "m/a", b"x")
    if lacks(server, "conditional-delete"):
        store.delete("m/a", etag="0" * 32)
    else:
        with pytest.raises(Changed):
            store.delete("m/a", etag="0" * 32)
        store.delete("m/a", etag=store.head("m/a").etag)
    with pytest.raises(NotFound):
        store.head("m/a")
    store.delete("m/a", etag="0" * 32)


@pytest.mark.parametrize("server", ["scripted", "moto", "rclone"], indirect=True)
def test_a_missing_bucket_is_not_a_missing_object(store: S3Store) -> None:
    elsewhere = S3Store(store._wire, "no-such-bucket-here")
    with pytest.raises(NotFound) as caught:
        elsewhere.read("m/a", limit=10)
    assert caught.value.reference == "bucket"


@pytest.mark.parametrize("cut", [0, 1, 500, 999])
def test_a_body_that_breaks_off_tells_how_far_it_came(
    scripted_s3: ScriptedS3, unique_bucket: str, cut: int
) -> None:
    data = body(1000)
    with s3_store(scripted_s3, unique_bucket) as store:
        etag = put(store, "m/a", data)
        scripted_s3.script(Fault("GetObject", CutBody(cut), occurrence=1))
        buffer = bytearray(1000)
        done = store.read_into("m/a", 0, memoryview(buffer), etag=etag)
        assert done <= cut
        done += store.read_into("m/a", done, memoryview(buffer)[done:], etag=etag)
        assert (done, bytes(buffer)) == (1000, bytes(data))


def test_a_conditional_request_that_met_another_is_sent_again(
    scripted_s3: ScriptedS3, unique_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("staging.store.s3._CONFLICT_PAUSE", 0)
    met = Status(409, "ConditionalRequestConflict")
    with s3_store(scripted_s3, unique_bucket) as store:
        scripted_s3.script(
            Fault("PutObject", met, occurrence=(1, 2, 3)),
        )
        put(store, "m/a", b"x")
        assert [info.key for info in store.list_objects("m/")] == ["m/a"]


def test_conditional_requests_are_sent_again_a_few_times_only(
    scripted_s3: ScriptedS3, unique_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("staging.store.s3._CONFLICT_PAUSE", 0)
    met = Status(409, "ConditionalRequestConflict")
    scripted_s3.script(
        Fault("PutObject", met, occurrence=None),
        Fault("CompleteMultipartUpload", met, occurrence=None),
    )
    with s3_store(scripted_s3, unique_bucket) as store:
        with pytest.raises(Conflict) as caught:
            put(store, "m/a", b"x")
        assert caught.value.reference == "concurrent-write"
        upload = store.create_multipart_upload("m/b")
        part = store.upload_part(upload, 1, body(10), crc64nvme=checksum(body(10)))
        with pytest.raises(Conflict) as caught:
            store.complete_multipart_upload(upload, [part], crc64nvme=checksum(body(10)))
        assert caught.value.reference == "concurrent-write"
    assert scripted_s3.requests.count("PutObject") == 4
    # Whoever meets this has to send the parts again.
    assert scripted_s3.requests.count("CompleteMultipartUpload") == 1


def test_payloads_are_neither_hashed_nor_chunked_on_the_wire(
    scripted_s3: ScriptedS3, unique_bucket: str
) -> None:
    with s3_store(scripted_s3, unique_bucket) as store:
        put(store, "m/a", b"x")
        upload = store.create_multipart_upload("m/b")
        part = store.upload_part(upload, 1, body(10), crc64nvme=checksum(body(10)))
        store.complete_multipart_upload(upload, [part], crc64nvme=checksum(body(10)))
    sent = [r for r in scripted_s3.requests if r.operation in ("PutObject", "UploadPart")]
    assert len(sent) == 2
    for request in sent:
        assert request.headers["x-amz-content-sha256"] == "UNSIGNED-PAYLOAD"
        assert "x-amz-checksum-crc64nvme" in request.headers
        for header in ("content-encoding", "x-amz-trailer", "content-md5", "expect"):
            assert header not in request.headers
