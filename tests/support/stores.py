"""The product's `Store` over any test server."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

from staging.store.s3 import S3Store
from staging.wire.boto import BotoWire, Connection
from staging.wire.wire import WireError
from tests.support.servers import REGION, Server


def credentials(server: Server) -> dict[str, str]:
    """The environment with which a program may use a server."""
    return {
        "AWS_ACCESS_KEY_ID": server.access_key,
        "AWS_SECRET_ACCESS_KEY": server.secret_key,
        "AWS_DEFAULT_REGION": REGION,
    }


@contextmanager
def s3_store(server: Server, bucket: str, *, access_key: str | None = None) -> Iterator[S3Store]:
    """An `S3Store` on a bucket, which is made when there is none.

    With an `access_key` of its own a writer can be told from others in a server's log.
    """
    environment = credentials(server)
    if access_key is not None:
        environment["AWS_ACCESS_KEY_ID"] = access_key
    with mock.patch.dict(os.environ, environment):
        wire = BotoWire(Connection(endpoint_url=server.endpoint_url, connections=16))
        try:
            wire.call("CreateBucket", {"Bucket": bucket})
        except WireError as error:
            if error.code != "BucketAlreadyOwnedByYou":
                raise
        try:
            yield S3Store(wire, bucket)
        finally:
            wire.close()
