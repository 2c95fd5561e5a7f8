"""The vendor's digest of an archive: nothing is published of one that has another (I1, I16)."""

from __future__ import annotations

import gzip
import hashlib
import io

import pytest

from staging.source.checked import Checked, parse_sha256
from staging.source.compressed import Unpacked
from staging.source.pipe import Pipe
from staging.store.memory import MemoryStore
from staging.transfer.sizing import MIB
from staging.upload import UploadOptions, upload
from staging.vocabulary.errors import IntegrityError, UsageError
from staging.vocabulary.location import S3Location
from tests.support.checkpoints import tar_of, vendor
from tests.unit.test_pipe import Body

LOCATION = S3Location("models", "m/")
OPTIONS = UploadOptions(memory=256 * MIB, cores=2)
PLAIN = tar_of(vendor(1))
PACKED = gzip.compress(PLAIN, mtime=0)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("data", [PLAIN, PACKED], ids=["plain", "gzip"])
def test_the_digest_is_that_of_the_bytes_as_delivered(data: bytes) -> None:
    store = MemoryStore()
    source = Pipe(Unpacked(Checked(io.BytesIO(data), sha256(data))))
    result = upload(source, store, LOCATION, OPTIONS)
    assert result.manifest.total_size == sum(map(len, vendor(1).values()))


@pytest.mark.parametrize(
    ("data", "digest"),
    [(PLAIN, sha256(PACKED)), (PACKED, sha256(PLAIN)), (PLAIN, sha256(b""))],
    ids=["of-the-packed-one", "of-the-plain-one", "of-nothing"],
)
def test_nothing_is_published_of_an_archive_with_another_digest(data: bytes, digest: str) -> None:
    store = MemoryStore()
    source = Pipe(Unpacked(Checked(io.BytesIO(data), digest)))
    with pytest.raises(IntegrityError) as raised:
        upload(source, store, LOCATION, OPTIONS)
    assert raised.value.reference == "archive-digest"
    assert sha256(data) in raised.value.message
    assert digest in raised.value.message
    assert not list(store.list_objects(""))
    assert not list(store.list_multipart_uploads(""))


def test_what_nobody_read_is_part_of_the_archive() -> None:
    data = bytes(range(256)) * 10_000
    checked = Checked(io.BytesIO(data), sha256(data))
    assert checked.readinto(memoryview(bytearray(100))) == 100
    checked.finish()
    assert checked.length == len(data)
    checked.finish()  # a second look says the same


def test_a_stream_of_its_own_is_finished_and_closed() -> None:
    body = Body(PLAIN)
    checked = Checked(body, sha256(PLAIN))
    checked.finish()
    checked.close()
    assert body.events == ["finish", "close"]


@pytest.mark.parametrize("text", [sha256(b"x"), "sha256:" + sha256(b"x"), sha256(b"x").upper()])
def test_digests_are_given_with_or_without_their_name(text: str) -> None:
    assert parse_sha256(f" {text}\n") == sha256(b"x")


@pytest.mark.parametrize("text", ["", "sha256:", "0" * 63, "0" * 65, "g" * 64, "md5:" + "0" * 64])
def test_what_is_no_digest_is_refused_before_anything_is_read(text: str) -> None:
    with pytest.raises(UsageError) as raised:
        Checked(io.BytesIO(PLAIN), text)
    assert raised.value.reference == "digest"
