"""The product's `Store` over any test server."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final
from unittest import mock

from staging.store.s3 import S3Store
from staging.wire.boto import BotoWire, Connection
from staging.wire.pace import Pace
from staging.wire.wire import WireError
from tests.support.servers import REGION, Server


def credentials(server: Server) -> dict[str, str]:
    """The environment with which a program may use a server."""
    return {
        "AWS_ACCESS_KEY_ID": server.access_key,
        "AWS_SECRET_ACCESS_KEY": server.secret_key,
        "AWS_DEFAULT_REGION": REGION,
    }


_CONNECTIONS: Final = 16


class _Ahead(threading.local):
    """A clock for each thread that goes on by what the thread waits.

    One for all would have bodies that other threads receive meanwhile look slow.
    """

    seconds = 0.0

    def clock(self) -> float:
        return time.monotonic() + self.seconds

    def wait(self, condition: threading.Condition, seconds: float | None) -> None:
        if seconds is None:
            condition.wait()
        else:
            self.seconds += seconds


def hurried(ceiling: int) -> Pace:
    """A pace whose hold-offs, and times between attempts, pass at once; what others do is waited for."""
    ahead = _Ahead()
    return Pace(ceiling=ceiling, clock=ahead.clock, wait=ahead.wait)


@contextmanager
def s3_store(server: Server, bucket: str, *, access_key: str | None = None) -> Iterator[S3Store]:
    """An `S3Store` on a bucket, which is made when there is none.

    With an `access_key` of its own a writer can be told from others in a server's log. Requests are made
    again as often as they are in earnest, without the time between.
    """
    environment = credentials(server)
    if access_key is not None:
        environment["AWS_ACCESS_KEY_ID"] = access_key
    with mock.patch.dict(os.environ, environment):
        wire = BotoWire(
            Connection(endpoint_url=server.endpoint_url, connections=_CONNECTIONS),
            hurried(_CONNECTIONS),
        )
        try:
            wire.call("CreateBucket", {"Bucket": bucket})
        except WireError as error:
            if error.code != "BucketAlreadyOwnedByYou":
                raise
        try:
            yield S3Store(wire, bucket)
        finally:
            wire.close()
