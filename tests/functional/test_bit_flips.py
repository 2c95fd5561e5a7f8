"""One bit turned over behind the store's back never becomes ready (I1, I5, I14).

The checkpoint is published by the program; the many flips are downloaded by the library, one by the program.
Stored ETags and checksums stay as they were, as when a disk rots.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from staging.directory.names import READY_NAME
from staging.store.store import Store
from staging.sync import SyncOptions, sync
from staging.vocabulary.digest import CHUNK_SIZE, chunk_count, chunk_span
from staging.vocabulary.errors import IntegrityError, MalformedInput
from staging.vocabulary.location import S3Location
from staging.vocabulary.manifest import Manifest
from tests.cli.programs import Programs
from tests.support.checkpoints import read_tree, tar_of, vendor
from tests.support.s3server import Bucket, ScriptedS3
from tests.support.s3server.objects import flipped
from tests.support.stores import s3_store

MIB = 1024 * 1024
BUCKET = "models"
LOCATION = S3Location(BUCKET, "laguna-xs/")
URI = str(LOCATION)
FILES = vendor(11, 2 * CHUNK_SIZE + 12_345)
OPTIONS = SyncOptions(memory=256 * MIB, cores=2, concurrency=3)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ScriptedS3]:
    """A store with the checkpoint, published once; every test leaves it as it was."""
    directory = tmp_path_factory.mktemp("publish")
    (directory / "a.tar").write_bytes(tar_of(FILES))
    with ScriptedS3(buckets=[BUCKET]) as scripted:
        Programs(directory, scripted).staging("upload", "a.tar", URI)
        yield scripted


@pytest.fixture
def bucket(server: ScriptedS3) -> Bucket:
    return server.bucket(BUCKET)


@pytest.fixture
def store(server: ScriptedS3) -> Iterator[Store]:
    with s3_store(server, BUCKET) as opened:
        yield opened


def flips() -> Iterator[tuple[str, int, int]]:
    """File, bit and the chunk it is in: the first and last bit of every chunk, and one between."""
    for path, data in FILES.items():
        for chunk in range(chunk_count(len(data)) if data else 0):
            offset, length = chunk_span(len(data), chunk)
            for bit in (offset * 8, offset * 8 + length * 4 + 3, (offset + length) * 8 - 1):
                yield path, bit, chunk


@pytest.mark.parametrize(("path", "bit", "chunk"), list(flips()))
def test_a_flipped_bit_is_found_and_named(
    store: Store, bucket: Bucket, tmp_path: Path, path: str, bit: int, chunk: int
) -> None:
    node = tmp_path / "node"
    bucket.flip_bit(LOCATION.prefix + path, bit)
    try:
        with pytest.raises(IntegrityError) as caught:
            sync(store, LOCATION, node, OPTIONS)
    finally:
        bucket.flip_bit(LOCATION.prefix + path, bit)
    assert caught.value.code == 11
    assert repr(path) in caught.value.message
    if bit < 64 and path.endswith(
        ".safetensors"
    ):  # the length of the header, which is looked at first
        assert caught.value.reference == "header-damaged"
    else:
        assert caught.value.reference == "chunk-digest"
        assert f"chunk {chunk} " in caught.value.message
    assert not (node / READY_NAME).exists()
    assert read_tree(node) == {}  # nothing reached its place
    sync(store, LOCATION, node, OPTIONS)
    assert read_tree(node) == FILES


def test_the_programs_say_so(server: ScriptedS3, bucket: Bucket, tmp_path: Path) -> None:
    programs = Programs(tmp_path, server)
    path, chunk, bit = "model.safetensors", 1, 8 * CHUNK_SIZE + 5
    bucket.flip_bit(LOCATION.prefix + path, bit)
    try:
        refused = programs.download(URI, "node", "--json", expect=11)
        verified = programs.staging("verify", URI, "--level", "digest", expect=11)
    finally:
        bucket.flip_bit(LOCATION.prefix + path, bit)
    assert refused.reference == "chunk-digest"
    assert path in refused.error
    assert f"chunk {chunk} " in refused.error
    assert refused.document["error"]["code"] == 11
    assert not (tmp_path / "node" / READY_NAME).exists()
    assert f"{path}: chunk {chunk} (bytes {CHUNK_SIZE} to" in verified.stdout
    assert verified.stdout.count("\n") == 1
    # A damaged local copy is told apart from a damaged store.
    programs.download(URI, "node")
    local = tmp_path / "node" / path
    status = local.stat()
    local.write_bytes(flipped(local.read_bytes(), bit))
    refused = programs.download("verify", "node", "--level", "digest", expect=11)
    assert f"{path}: chunk {chunk} " in refused.stdout
    assert status.st_size == local.stat().st_size


def test_a_flipped_bit_of_the_manifest_never_makes_another_checkpoint(bucket: Bucket) -> None:
    data = bucket.get(LOCATION.manifest_key)
    published = Manifest.decode(data)
    refused = 0
    for bit in range(len(data) * 8):
        try:
            found = Manifest.decode(flipped(data, bit))
        except MalformedInput:
            refused += 1
            continue
        # Only what is about the checkpoint may differ, such as the time of publishing.
        assert found.id == published.id
        assert [(f.path, f.size, f.digest, f.chunks) for f in found.files] == [
            (f.path, f.size, f.digest, f.chunks) for f in published.files
        ]
    assert refused > len(data) * 8 // 2


@pytest.mark.parametrize("where", [b'"model.safetensors"', b"blake3-16m:", b'"id"', b'"chunks"'])
def test_a_flipped_bit_of_the_manifest_is_refused_before_any_member_is_fetched(
    server: ScriptedS3, store: Store, bucket: Bucket, tmp_path: Path, where: bytes
) -> None:
    data = bucket.get(LOCATION.manifest_key)
    bit = (data.index(where) + len(where) + 3) * 8
    bucket.flip_bit(LOCATION.manifest_key, bit)
    server.requests.clear()
    try:
        with pytest.raises(MalformedInput):
            sync(store, LOCATION, tmp_path / "node", OPTIONS)
    finally:
        bucket.flip_bit(LOCATION.manifest_key, bit)
    assert {request.key for request in server.requests} == {LOCATION.manifest_key}
    assert not (tmp_path / "node").exists()
