"""A prefix of a hundred shards with one mistake is refused before a byte of a weight is read (I11, I14).

Both programs, as processes over real HTTP: `staging check` on the box and `model-downloader` in the pod. The
log of requests tells what it took: at most two requests per shard, which end where the header ends, and one
for each document.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from staging.layout.inventory import INDEX_NAME
from tests.cli.programs import Programs
from tests.support.checkpoints import manifest_of
from tests.support.models import Blob, Layout, contents, golden, sharded
from tests.support.s3server import Bucket, ScriptedS3

BUCKET = "models"
PREFIX = "checkpoints/laguna/"
URI = f"s3://{BUCKET}/{PREFIX}"
SHARDS = 100
DOCUMENTS = 12
"""Most requests that are about anything else than a shard: listings, the manifest, small files."""

ONE = "model-00042-of-00100.safetensors"
ANOTHER = "model-00077-of-00100.safetensors"


def truncated(files: Layout) -> None:
    """A download that broke off: the header is whole, the last weight is not."""
    files[ONE] = files[ONE].cut(files[ONE].size - 1)


def missing(files: Layout) -> None:
    """A copy that left one out."""
    del files[ONE]


def swapped(files: Layout) -> None:
    """Two tensors that the index looks for in each other's shard."""
    index = files[INDEX_NAME].document
    places = index["weight_map"]
    first = next(name for name, place in places.items() if place == ONE)
    second = next(name for name, place in places.items() if place == ANOTHER)
    places[first], places[second] = places[second], places[first]
    files[INDEX_NAME] = Blob.json(index)


MISTAKES: list[tuple[Callable[[Layout], None], str]] = [
    (truncated, "safetensors-broken"),
    (missing, "index-shard-missing"),
    (swapped, "index-tensor-elsewhere"),
]


@pytest.fixture
def bucket(scripted_s3: ScriptedS3) -> Bucket:
    return scripted_s3.bucket(BUCKET)


@pytest.fixture
def programs(tmp_path: Path, scripted_s3: ScriptedS3, bucket: Bucket) -> Programs:
    return Programs(tmp_path, scripted_s3)


@pytest.fixture
def files() -> Layout:
    return sharded(golden("laguna-single"), SHARDS)


def publish(bucket: Bucket, files: Layout) -> None:
    """What an upload without the rules would leave."""
    whole = contents(files)
    for path, data in whole.items():
        bucket.put(PREFIX + path, data)
    bucket.put(f"{PREFIX}.checkpoint/manifest.json", manifest_of(whole).encode())


def assert_frugal(server: ScriptedS3, files: Layout) -> None:
    """Two requests per shard within its header, one per document, no more."""
    asked: Counter[str] = Counter()
    others = 0
    for request in server.requests:
        path = request.key.removeprefix(PREFIX)
        if not path.endswith(".safetensors"):
            others += 1
            assert request.operation in ("GetObject", "ListObjectsV2"), request
            continue
        asked[path] += 1
        assert request.operation == "GetObject", request
        assert request.range is not None, request
        last = int(request.range.rpartition("-")[2])
        assert last < len(files[path].head), f"weights of {path} were read: {request.range}"
    assert set(asked) == {path for path in files if path.endswith(".safetensors")}
    assert max(asked.values()) == 2
    assert others <= DOCUMENTS, server.requests.operations()


def test_a_whole_one_passes(
    programs: Programs, scripted_s3: ScriptedS3, bucket: Bucket, files: Layout
) -> None:
    publish(bucket, files)
    found = programs.staging("check", URI, "--json").document["check"]
    assert found["passed"]
    assert [finding for finding in found["findings"] if finding["severity"] == "error"] == []
    assert_frugal(scripted_s3, files)


@pytest.mark.parametrize(
    ("mistake", "rule"), MISTAKES, ids=[mistake.__name__ for mistake, _ in MISTAKES]
)
def test_the_staging_box_refuses_it(
    programs: Programs,
    scripted_s3: ScriptedS3,
    bucket: Bucket,
    files: Layout,
    mistake: Callable[[Layout], None],
    rule: str,
) -> None:
    mistake(files)
    publish(bucket, files)
    refused = programs.staging("check", URI, expect=17)
    assert refused.reference == rule
    assert_frugal(scripted_s3, files)


@pytest.mark.parametrize(
    ("mistake", "rule"), MISTAKES, ids=[mistake.__name__ for mistake, _ in MISTAKES]
)
def test_the_pod_refuses_it(
    programs: Programs,
    scripted_s3: ScriptedS3,
    bucket: Bucket,
    files: Layout,
    mistake: Callable[[Layout], None],
    rule: str,
) -> None:
    mistake(files)
    publish(bucket, files)
    refused = programs.download(URI, programs.directory / "node", expect=17)
    assert refused.reference == rule
    assert_frugal(scripted_s3, files)
    assert not (programs.directory / "node").exists()
