"""Pinning: one listing tells every version and size, single looks only where it cannot (I7, I11, I14)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import replace

import pytest

from staging.store.store import ObjectInfo, Store
from staging.sync.pins import Pins, first_of, pin
from staging.vocabulary import crc64
from staging.vocabulary.errors import AccessDenied, NotFound
from staging.vocabulary.location import S3Location
from tests.support.checkpoints import CountingStore, manifest_of, random_bytes
from tests.support.shared_s3 import SharedS3, shared_s3

FILES = {
    "config.json": b'{"model_type": "tiny"}',
    "empty": b"",
    "model.safetensors": random_bytes(5_000, 1),
    "tokenizer/with space+%é.txt": random_bytes(300, 2),
}
HERE = S3Location("memory", "models/a/")


@pytest.fixture(scope="module")
def opened() -> Iterator[SharedS3]:
    with shared_s3("models") as shared:
        yield shared


@pytest.fixture
def s3(opened: SharedS3) -> SharedS3:
    opened.reset()
    return opened


class Lists(CountingStore):
    """A store whose listings a test can change; `listed` counts what was taken of them."""

    def __init__(self) -> None:
        super().__init__()
        self.listed = 0

    def change(self, infos: Iterator[ObjectInfo]) -> Iterator[ObjectInfo]:
        return infos

    def list_objects(self, prefix: str) -> Iterator[ObjectInfo]:
        for info in self.change(super().list_objects(prefix)):
            self.listed += 1
            yield info


def pinned(store: Store, location: S3Location, files: Mapping[str, bytes] = FILES) -> Pins:
    return pin(store, location, manifest_of(files).files, concurrency=3)


def etags(store: Store, location: S3Location, files: Mapping[str, bytes] = FILES) -> dict[str, str]:
    return {path: store.head(location.prefix + path).etag for path in files}


def test_one_request_pins_everything(s3: SharedS3) -> None:
    location = S3Location("models", "checkpoints/a/")
    for path, data in FILES.items():
        create(s3, location.prefix + path, data)
        create(s3, "checkpoints/a-sibling/" + path, data)
    s3.server.requests.clear()
    pins = pinned(s3.store, location)
    assert s3.server.requests.operations() == ["ListObjectsV2"]
    assert pins == Pins(etags(s3.store, location), {})


def test_where_listing_is_denied_each_object_is_looked_at(s3: SharedS3) -> None:
    location = S3Location("models", "checkpoints/a/")
    for path, data in FILES.items():
        create(s3, location.prefix + path, data)
    s3.server.deny("ListBucket")
    s3.server.requests.clear()
    pins = pinned(s3.store, location)
    assert sorted(s3.server.requests.operations()) == ["HeadObject"] * 4 + ["ListObjectsV2"]
    assert pins == Pins(etags(s3.store, location), {})


def test_where_listing_is_denied_a_missing_object_is_missing_or_denied(s3: SharedS3) -> None:
    s3.server.deny("ListBucket")
    with pytest.raises(AccessDenied):
        pinned(s3.store, S3Location("models", "checkpoints/a/"))


def create(s3: SharedS3, key: str, data: bytes) -> None:
    s3.store.create(key, data, crc64nvme=crc64.to_text(crc64.crc64(data)))


def test_refused_credentials_are_no_denied_listing() -> None:
    class Refuses(CountingStore):
        def list_objects(self, prefix: str) -> Iterator[ObjectInfo]:
            raise AccessDenied("expired", reference="credentials", side="store")

    store = Refuses()
    with pytest.raises(AccessDenied, match="expired"):
        pinned(store, HERE)
    assert store.heads == []


def test_a_bucket_that_is_not_there_is_said() -> None:
    class NoBucket(CountingStore):
        def list_objects(self, prefix: str) -> Iterator[ObjectInfo]:
            raise NotFound("no bucket", reference="bucket", side="store")

    with pytest.raises(NotFound, match="no bucket"):
        pinned(NoBucket(), HERE)


def test_what_is_missing_or_has_another_size_is_wrong_and_not_pinned() -> None:
    store = Lists()
    store.publish(HERE, FILES)
    store.remove(HERE.prefix + "config.json")
    store.put(HERE.prefix + "model.safetensors", bytes(4_999))
    pins = pinned(store, HERE)
    assert set(pins.etags) == {"empty", "tokenizer/with space+%é.txt"}
    assert {path: error.reference for path, error in pins.wrong.items()} == {
        "config.json": "object-missing",
        "model.safetensors": "object-size",
    }
    assert "4999 bytes, the manifest says 5000" in pins.wrong["model.safetensors"].message
    assert store.heads == []
    both = first_of(pins.wrong)
    assert (both.exit_code, both.reference) == (11, "object-missing")
    assert both.message.endswith("; wrong as well: 'model.safetensors'")
    assert first_of({"config.json": pins.wrong["config.json"]}) is pins.wrong["config.json"]


def test_many_wrong_objects_are_counted() -> None:
    files = {f"{number:02d}": b"x" for number in range(20)}
    error = first_of(pinned(CountingStore(), HERE, files).wrong)
    assert error.message.startswith("'00' is in the manifest of s3://memory/models/a/")
    assert error.message.endswith("; wrong as well: '01', '02', '03' and 16 more")


def test_nothing_to_pin_is_no_request() -> None:
    store = Lists()
    assert pin(store, HERE, [], concurrency=3) == Pins({}, {})
    assert (store.listed, store.heads) == (0, [])


def test_a_listing_is_read_no_further_than_the_last_wanted_object() -> None:
    store = Lists()
    store.publish(HERE, FILES)
    for number in range(50):
        store.put(f"{HERE.prefix}zzz/{number}", b"")
    assert pinned(store, HERE) == Pins(etags(store, HERE), {})
    assert store.listed <= len(FILES) + 1  # and the manifest


@pytest.mark.parametrize("kind", ["others", "again"])
def test_an_endless_listing_is_given_up(kind: str) -> None:
    class Endless(Lists):
        def change(self, infos: Iterator[ObjectInfo]) -> Iterator[ObjectInfo]:
            first = next(infos)
            for number in itertools.count():
                key = f"{HERE.prefix}{number:09d}" if kind == "others" else first.key
                yield replace(first, key=key)

    store = Endless()
    store.publish(HERE, FILES)
    assert pinned(store, HERE) == Pins(etags(store, HERE), {})
    assert store.listed < 3_000
    assert set(store.heads) == {HERE.prefix + path for path in FILES}


@pytest.mark.parametrize("etag", ["", 'W/"weak"'])
def test_an_etag_that_names_no_version_is_asked_for_again(etag: str) -> None:
    class Weak(Lists):
        def change(self, infos: Iterator[ObjectInfo]) -> Iterator[ObjectInfo]:
            for info in infos:
                yield replace(info, etag=etag) if info.key.endswith("config.json") else info

    store = Weak()
    store.publish(HERE, FILES)
    pins = pinned(store, HERE)
    assert store.heads == [HERE.prefix + "config.json"]
    assert pins == Pins(etags(store, HERE), {})
