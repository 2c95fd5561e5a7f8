"""A tar in a bucket: parallel ranges of one version (I7), and a store's errors on the source's side."""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from staging.source.indexed_tar import IndexedTar
from staging.source.s3_object import S3Archive
from staging.source.tar_file import TarFile
from staging.store.s3 import S3Store
from staging.transfer.scheduler import Cancellation, Cancelled
from staging.vocabulary.errors import (
    AccessDenied,
    MalformedInput,
    NotFound,
    StagingError,
    StoreUnavailable,
)
from tests.support.checkpoints import hugging_face, tar_of, vendor
from tests.support.s3server import CutBody, Fault, IgnoreRange, Request, ScriptedS3, Status
from tests.support.shared_s3 import SharedS3, shared_s3
from tests.support.stores import s3_store

BUCKET = "vendor-drop"
KEY = "drops/2026/laguna-xs.tar"
FILES = vendor(1)
DATA = tar_of(FILES)


@pytest.fixture(scope="module")
def shared() -> Iterator[SharedS3]:
    with shared_s3(BUCKET) as opened:
        yield opened


@pytest.fixture
def server(shared: SharedS3) -> ScriptedS3:
    shared.reset()
    shared.server.bucket(BUCKET).put(KEY, DATA)
    return shared.server


@pytest.fixture
def store(shared: SharedS3, server: ScriptedS3) -> S3Store:
    return shared.store


class Patient(Cancellation):
    """Sleeps are not slept."""

    def sleep(self, seconds: float) -> None:
        self.check()


def archive(store: S3Store, key: str = KEY) -> S3Archive:
    return S3Archive(store, key, cancelled=Patient(), rng=random.Random(1))


def read(opened: S3Archive, offset: int, length: int) -> bytes:
    buffer = bytearray(length)
    opened.read_into(offset, memoryview(buffer))
    return bytes(buffer)


@pytest.mark.parametrize("make", [vendor, hugging_face])
def test_the_same_files_and_stamps_as_from_the_local_tar(
    server: ScriptedS3, store: S3Store, make: type, tmp_path: Path
) -> None:
    files = make(2)
    tar = tmp_path / "laguna-xs.tar"
    tar.write_bytes(tar_of(files))
    server.bucket(BUCKET).put(KEY, tar.read_bytes())
    with closing(IndexedTar(archive(store))) as source, closing(TarFile(tar)) as local:
        assert (source.kind, source.name) == ("s3", "laguna-xs.tar")
        assert source.size == local.size
        assert list(source.files()) == list(local.files())
        for file in source.files():
            ours, theirs = bytearray(file.size), bytearray(file.size)
            source.read_into(file, 0, memoryview(ours))
            local.read_into(file, 0, memoryview(theirs))
            assert ours == theirs == files[file.path]
        source.finish()


def test_requests_of_the_index_and_of_a_part(server: ScriptedS3, store: S3Store) -> None:
    with closing(IndexedTar(archive(store))) as source:
        assert server.requests.operations() == ["HeadObject", "GetObject", "GetObject"]
        (weights,) = (file for file in source.files() if file.path == "model.safetensors")
        buffer = bytearray(50_000)
        source.read_into(weights, 1000, memoryview(buffer))
    begin = weights.offset + 1000
    last = server.requests[-1]
    assert last.range == f"bytes={begin}-{begin + 49_999}"
    etag = server.requests.of("GetObject")[0].headers["if-match"]
    assert {request.headers["if-match"] for request in server.requests.of("GetObject")} == {etag}
    assert source.identity == f"{etag} {len(DATA)}"


def test_the_identity_is_that_of_the_bytes_wherever_they_lie(
    server: ScriptedS3, store: S3Store
) -> None:
    server.bucket(BUCKET).put("elsewhere/copy.tar", DATA)
    server.bucket(BUCKET).put("other.tar", tar_of(vendor(2)))
    first = archive(store).identity
    assert first == archive(store, "elsewhere/copy.tar").identity
    assert first != archive(store, "other.tar").identity
    with s3_store(server, "other-bucket") as second:
        server.bucket("other-bucket").put(KEY, DATA)
        assert archive(second).identity == first


def test_ranges_from_several_threads_over_broken_bodies(server: ScriptedS3, store: S3Store) -> None:
    server.script(Fault("GetObject", CutBody(100), occurrence=range(1, 5)))
    spans = [(offset, 5000) for offset in range(0, 100_000, 5000)]
    opened = archive(store)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda span: read(opened, *span), spans))
    assert found == [DATA[offset : offset + length] for offset, length in spans]
    assert server.requests.count("GetObject") == len(spans) + 4


def test_an_object_that_is_replaced_is_not_mixed(server: ScriptedS3, store: S3Store) -> None:
    opened = archive(store)
    assert read(opened, 0, 1000) == DATA[:1000]
    server.bucket(BUCKET).put(KEY, tar_of(vendor(2)))
    with pytest.raises(MalformedInput) as caught:
        read(opened, 1000, 1000)
    error = caught.value
    assert (error.exit_code, error.reference, error.side) == (16, "source-changed", "source")
    assert f"s3://{BUCKET}/{KEY}" in error.message


def test_a_store_that_ignores_ranges(server: ScriptedS3, store: S3Store) -> None:
    server.script(Fault("GetObject", IgnoreRange()))
    with pytest.raises(MalformedInput) as caught:
        read(archive(store), 1000, 1000)
    assert caught.value.reference == "source-changed"


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("drops/2026/laguna_xs.tar", f"did you mean s3://{BUCKET}/{KEY}?"),
        ("drops/2026", "this is a prefix, not an archive: give the key of a .tar below it"),
        ("drops/2026/nothing-like-it.zip", "check the bucket and the key"),
        ("empty/x.tar", "check the bucket and the key"),
    ],
)
def test_a_missing_object_is_named_with_the_nearest_one(
    server: ScriptedS3, store: S3Store, key: str, hint: str
) -> None:
    with pytest.raises(NotFound) as caught:
        archive(store, key)
    error = caught.value
    assert (error.reference, error.side, error.hint) == ("object", "source", hint)


def test_a_missing_object_where_nothing_may_be_listed(server: ScriptedS3, store: S3Store) -> None:
    server.deny("ListBucket")
    with pytest.raises(AccessDenied) as caught:
        archive(store, "drops/no.tar")
    assert (caught.value.reference, caught.value.side) == ("denied", "source")
    server.script(Fault("HeadObject", Status(404)))
    with pytest.raises(NotFound) as missing:
        archive(store, "drops/no.tar")
    assert missing.value.hint == "check the bucket and the key"


def test_a_missing_bucket(server: ScriptedS3) -> None:
    with s3_store(server, "passing") as store:
        gone = S3Store(store._wire, "no-such-bucket")
        with pytest.raises(NotFound) as caught:
            archive(gone)
    assert caught.value.side == "source"


@pytest.mark.parametrize(
    ("action", "kind", "reference"),
    [
        (Status(403, "InvalidObjectState"), AccessDenied, "archived"),
        (Status(403, "ExpiredToken"), AccessDenied, "credentials"),
        (Status(404), NotFound, "object"),
        (Status(400, "InvalidRequest"), StagingError, "request"),
    ],
)
def test_errors_are_those_of_the_source(
    server: ScriptedS3, store: S3Store, action: Status, kind: type[StagingError], reference: str
) -> None:
    opened = archive(store)
    server.script(Fault("GetObject", action, occurrence=None))
    with pytest.raises(kind) as caught:
        read(opened, 0, 100)
    assert (caught.value.reference, caught.value.side) == (reference, "source")


def test_bodies_that_keep_breaking_off(server: ScriptedS3, store: S3Store) -> None:
    opened = archive(store)
    server.script(Fault("GetObject", CutBody(0), occurrence=None))
    with pytest.raises(StoreUnavailable) as caught:
        read(opened, 0, 100)
    assert (caught.value.reference, caught.value.side) == ("connection", "source")


def test_a_weak_etag_names_nothing(server: ScriptedS3, store: S3Store) -> None:
    class Weak(S3Store):
        def head(self, key: str):  # type: ignore[no-untyped-def]
            from dataclasses import replace

            return replace(super().head(key), etag='W/"x"')

    opened = archive(Weak(store._wire, BUCKET))
    assert opened.identity is None
    with pytest.raises(StagingError) as caught:
        read(opened, 0, 100)
    assert (caught.value.reference, caught.value.side) == ("weak-etag", "source")


def test_closing_calls_off_what_waits(server: ScriptedS3, store: S3Store) -> None:
    opened = archive(store)

    def close_then_serve(request: Request) -> bool:
        opened.close()
        return True

    server.script(Fault("GetObject", CutBody(10), where=close_then_serve))
    with pytest.raises(Cancelled):
        read(opened, 0, 100)
    assert server.requests.count("GetObject") == 1
