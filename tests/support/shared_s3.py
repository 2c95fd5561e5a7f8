"""One scripted S3 and one store on it for all tests of a module: making a client costs more than they do.

    @pytest.fixture(scope="module")
    def shared() -> Iterator[SharedS3]:
        with shared_s3("models") as opened:
            yield opened

A test's own fixture calls `reset` first.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from unittest import mock

from staging.store.s3 import S3Store
from tests.support.s3server import ScriptedS3
from tests.support.stores import s3_store


@dataclass(frozen=True, slots=True)
class SharedS3:
    """A server with one bucket, and a store on that bucket."""

    server: ScriptedS3
    store: S3Store

    def reset(self) -> None:
        """No objects, no faults, no refused permission that a test may have left, an empty log."""
        self.server.clear_script()
        self.server.allow("ListBucket")
        bucket = self.server.bucket(self.store.bucket)
        for key in bucket.keys():  # noqa: SIM118 - a copy: the bucket shrinks meanwhile
            bucket.remove(key)
        self.server.requests.clear()


@contextmanager
def shared_s3(bucket: str) -> Iterator[SharedS3]:
    """Open both. What is set up on this machine for AWS or for proxies is out of reach meanwhile."""
    clean = {
        "NO_PROXY": "127.0.0.1",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    with (
        mock.patch.dict(os.environ, clean),
        ScriptedS3() as server,
        s3_store(server, bucket) as store,
    ):
        yield SharedS3(server, store)
