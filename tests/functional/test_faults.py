"""Every tenth request fails: the work ends all the same, with few requests more (I6, I8, I11)."""

from __future__ import annotations

import contextlib
import math
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from staging.source.tar_file import TarFile
from staging.sync import SyncOptions, sync
from staging.transfer.sizing import MIB
from staging.upload import UploadOptions, upload
from staging.vocabulary.location import S3Location
from staging.vocabulary.manifest import Manifest
from tests.support.archives import tar_on_disk, weights
from tests.support.checkpoints import read_tree
from tests.support.s3server import DropAfter, DropBefore, Fault, ScriptedS3, Status
from tests.support.stores import s3_store

BUCKET = "models"
LOCATION = S3Location(BUCKET, "checkpoints/m/")
RATE = 0.1
FILES = {
    "config.json": b'{"model_type": "tiny"}',
    "model.safetensors": weights(3 * 16 * MIB + 5, seed=1),
    "second.safetensors": weights(6 * MIB, seed=2),
    **{f"tokenizer/{number:03}.txt": b"%d" % number for number in range(300)},
}


@pytest.fixture
def s3() -> Iterator[ScriptedS3]:
    with ScriptedS3(buckets=[BUCKET]) as server:
        yield server


def every_tenth(s3: ScriptedS3, seed: int) -> None:
    """Let a tenth of all requests fail: refused, cut off before they are done, or with their answer lost."""
    rng = random.Random(seed)
    chosen = [number for number in range(1, 3000) if rng.random() < RATE]
    for kind, action in enumerate((Status(503, "SlowDown"), DropBefore(), DropAfter())):
        s3.script(Fault(None, action, occurrence=chosen[kind::3]))


def most(requests: int) -> int:
    return math.ceil(requests * (1 / (1 - RATE) + 0.1))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_a_tenth_of_all_requests_fails(s3: ScriptedS3, tmp_path: Path, seed: int) -> None:
    tar = tar_on_disk(tmp_path, FILES)
    options = UploadOptions(memory=256 * MIB, cores=2, concurrency=8)
    with s3_store(s3, BUCKET) as store:

        def publish() -> Manifest:
            s3.requests.clear()
            with contextlib.closing(TarFile(tar)) as source:
                return upload(source, store, LOCATION, options).manifest

        def fetch(name: str) -> None:
            s3.requests.clear()
            sync(store, LOCATION, tmp_path / name, SyncOptions(memory=256 * MIB, cores=2))

        manifest = publish()
        clean = len(s3.requests)
        fetch("clean")
        clean_fetch = len(s3.requests)
        bucket = s3.bucket(BUCKET)
        for key in list(bucket):
            bucket.remove(key)

        every_tenth(s3, seed)
        assert publish().id == manifest.id
        assert clean < len(s3.requests) <= most(clean)
        fetch("disturbed")
        assert clean_fetch < len(s3.requests) <= most(clean_fetch)

        assert bucket.uploads() == []
        assert not any("/.checkpoint/upload/" in key for key in bucket)
        assert read_tree(tmp_path / "disturbed") == FILES
