"""Credentials that expire in the middle of a transfer are renewed, and shown nowhere (I13)."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import get_args

import pytest

from staging.wire.boto import BotoWire, Connection
from staging.wire.engine import Engine
from staging.wire.wire import WireError
from tests.support.s3server import Fault, Request, ScriptedS3, Status

ENGINES: tuple[Engine, ...] = get_args(Engine)
SECRETS = {"first": "canary-one", "second": "canary-two"}


class Vendor:
    """A container credentials endpoint; `key` is what it gives now, for `minutes`."""

    def __init__(self) -> None:
        self.key = "first"
        self.minutes = 5  # botocore asks anew for each request when fewer than ten are left
        self.asked = 0

    @contextmanager
    def listening(self) -> Iterator[str]:
        vendor = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                vendor.asked += 1
                until = datetime.now(UTC) + timedelta(minutes=vendor.minutes)
                answer = {
                    "AccessKeyId": vendor.key,
                    "SecretAccessKey": SECRETS[vendor.key],
                    "Token": "token",
                    "Expiration": until.strftime("%Y-%m-%dT%H:%M:%SZ"),
                }
                body = json.dumps(answer).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Nobody reads it."""

        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
            thread.start()
            try:
                yield f"http://127.0.0.1:{server.server_port}/"
            finally:
                server.shutdown()
                thread.join()


def part(wire: BotoWire, number: int) -> None:
    wire.call("PutObject", {"Bucket": "b", "Key": f"k{number}", "Body": bytearray(b"%d" % number)})


@pytest.mark.parametrize("engine", ENGINES)
def test_keys_that_expire_meanwhile_are_renewed(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    vendor = Vendor()
    with vendor.listening() as url, ScriptedS3(buckets=["b"], credentials=SECRETS) as s3:
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", url)
        wire = BotoWire(Connection(endpoint_url=s3.endpoint_url, engine=engine))
        for number in range(4):
            part(wire, number)
        vendor.key, vendor.minutes = "second", 600
        assert s3.access.credentials is not None
        del s3.access.credentials["first"]
        for number in range(4, 8):
            part(wire, number)
        wire.close()
        assert [request.access_key for request in s3.requests] == ["first"] * 4 + ["second"] * 4
        assert {request.status for request in s3.requests} == {200}
        assert vendor.asked >= 5


def test_a_repeat_is_signed_with_the_keys_of_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    vendor = Vendor()
    with vendor.listening() as url, ScriptedS3(buckets=["b"], credentials=SECRETS) as s3:
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", url)
        wire = BotoWire(Connection(endpoint_url=s3.endpoint_url))

        def renewed(_: Request) -> bool:
            vendor.key = "second"
            return True

        s3.script(Fault("PutObject", Status(500), where=renewed))
        part(wire, 0)
        wire.close()
        assert [request.access_key for request in s3.requests] == ["first", "second"]


def test_keys_that_the_store_refuses_are_named_without_their_secret(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    vendor = Vendor()
    with vendor.listening() as url, ScriptedS3(buckets=["b"], credentials={"other": "x"}) as s3:
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", url)
        wire = BotoWire(Connection(endpoint_url=s3.endpoint_url))
        with pytest.raises(WireError) as caught:
            part(wire, 0)
        wire.close()
    assert caught.value.code == "InvalidAccessKeyId"
    assert "canary" not in f"{caught.value!r} {caught.value}"
