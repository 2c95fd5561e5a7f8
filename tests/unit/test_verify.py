"""Which objects beside a checkpoint's own each level of `verify_prefix` sees, and what it asks for (I1)."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from staging.store.s3 import S3Store
from staging.verify import Level, Verification, verify_prefix
from staging.vocabulary.location import S3Location
from tests.support.checkpoints import manifest_of, vendor
from tests.support.s3server import ScriptedS3
from tests.support.shared_s3 import SharedS3, shared_s3

BUCKET = "models"
LOCATION = S3Location.parse("s3://models/laguna-xs/")
FILES = vendor(1)
MANIFEST = manifest_of(FILES)
LOADED = ("consolidated.00.pth", "model-00002-of-00002.safetensors", "x.safetensors.index.json")
HARMLESS = ("old/model.safetensors", "notes.txt")


@pytest.fixture(scope="module")
def shared() -> Iterator[SharedS3]:
    with shared_s3(BUCKET) as opened:
        yield opened


@pytest.fixture
def server(shared: SharedS3) -> ScriptedS3:
    shared.reset()
    bucket = shared.server.bucket(BUCKET)
    for name, data in FILES.items():
        bucket.put(LOCATION.prefix + name, data)
    bucket.put(LOCATION.manifest_key, MANIFEST.encode())
    bucket.put(f"{LOCATION.prefix}folder/", b"")
    for name in LOADED + HARMLESS:
        bucket.put(LOCATION.prefix + name, b"somebody's")
    return shared.server


def verified(store: S3Store, level: Level) -> Verification:
    return verify_prefix(
        store, LOCATION, MANIFEST, level, memory=2**28, cores=2, rng=random.Random(1)
    )


def extras(outcome: Verification) -> list[str]:
    return [problem.path for problem in outcome.problems if problem.kind == "extra"]


def test_digests_come_with_the_weights_that_a_server_would_load_too(
    server: ScriptedS3, shared: SharedS3
) -> None:
    outcome = verified(shared.store, Level.DIGEST)
    assert [problem.path for problem in outcome.problems] == sorted(LOADED)
    assert extras(outcome) == sorted(LOADED)
    assert not outcome.passed
    assert outcome.read_bytes == sum(map(len, FILES.values()))
    for name in LOADED:
        server.bucket(BUCKET).remove(LOCATION.prefix + name)
    assert verified(shared.store, Level.DIGEST).passed


def test_findings_of_both_kinds_are_in_one_order(server: ScriptedS3, shared: SharedS3) -> None:
    server.bucket(BUCKET).flip_bit(f"{LOCATION.prefix}config.yaml", 0)
    server.bucket(BUCKET).remove(f"{LOCATION.prefix}model.safetensors")
    found = [(p.path, p.kind) for p in verified(shared.store, Level.DIGEST).problems]
    assert found == sorted(found)
    assert {("config.yaml", "digest"), ("model.safetensors", "missing")} <= set(found)


def test_sizes_come_with_everything_that_is_too_much(server: ScriptedS3, shared: SharedS3) -> None:
    assert extras(verified(shared.store, Level.SIZE)) == sorted(LOADED + HARMLESS)
    assert set(server.requests.operations()) == {"ListObjectsV2"}


def test_checksums_are_asked_for_with_heads_alone(server: ScriptedS3, shared: SharedS3) -> None:
    assert extras(verified(shared.store, Level.CHECKSUM)) == []
    assert server.requests.operations() == ["HeadObject"] * len(FILES)
