"""The bytes on the wire: unsigned payloads as they are, nothing around them, for every engine (I11, I13)."""

from __future__ import annotations

import hashlib
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import get_args

import pytest

from staging.wire.boto import BotoWire, Connection
from staging.wire.engine import Engine
from staging.wire.wire import WireError
from tests.support.servers import self_signed

ENGINES: tuple[Engine, ...] = get_args(Engine)
CRC = "AAAAAAAAAAA="


class Recorder:
    """A server that keeps what it gets, byte by byte, and answers 200 to each request."""

    def __init__(self, listener: socket.socket, tls: ssl.SSLContext | None) -> None:
        self.requests: list[tuple[bytes, bytes]] = []
        self._listener = listener
        self._tls = tls

    def serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:  # the test is over
                return
            if self._tls is not None:
                connection = self._tls.wrap_socket(connection, server_side=True)
            with connection:
                self._converse(connection)

    def _converse(self, connection: socket.socket) -> None:
        got = b""
        while True:
            while b"\r\n\r\n" not in got:
                if not (more := connection.recv(65536)):
                    assert not got, "bytes that belong to no request"
                    return
                got += more
            head, _, got = got.partition(b"\r\n\r\n")
            length = int(fields(head).get("content-length", "0"))
            while len(got) < length:
                got += connection.recv(65536)
            self.requests.append((head, got[:length]))
            got = got[length:]
            connection.sendall(b'HTTP/1.1 200 OK\r\nETag: "x"\r\nContent-Length: 0\r\n\r\n')


def fields(head: bytes) -> dict[str, str]:
    lines = head.decode("latin-1").split("\r\n")[1:]
    names = [line.partition(":")[0].lower() for line in lines]
    assert len(names) == len(set(names)), "a header twice"
    return {line.partition(":")[0].lower(): line.partition(":")[2].strip() for line in lines}


@contextmanager
def recording(tls: ssl.SSLContext | None) -> Iterator[tuple[str, Recorder]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        recorder = Recorder(listener, tls)
        thread = threading.Thread(target=recorder.serve, daemon=True)
        thread.start()
        port = listener.getsockname()[1]
        try:
            yield f"http{'s' if tls else ''}://127.0.0.1:{port}", recorder
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def sent(
    engine: Engine, scheme: str, directory: Path, *, sign_payload: bool, body: bytearray
) -> list[tuple[bytes, bytes]]:
    """What goes over the wire for a part and for an object."""
    bundle, tls = self_signed(directory)
    with recording(tls if scheme == "https" else None) as (url, recorder):
        wire = BotoWire(
            Connection(
                endpoint_url=url,
                region="us-east-1",
                ca_bundle=str(bundle),
                engine=engine,
                connections=1,
                sign_payload=sign_payload,
            )
        )
        where = {"Bucket": "b", "Key": "a b+%#é", "Body": body, "ChecksumCRC64NVME": CRC}
        wire.call("UploadPart", {**where, "PartNumber": 3, "UploadId": "u+/="})
        wire.call("PutObject", {**where, "IfNoneMatch": "*"})
        wire.close()
    return recorder.requests


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "known")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary-secret")


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("size", [3, 300_000])
@pytest.mark.parametrize("sign_payload", [False, True])
def test_a_payload_goes_as_it_is(
    engine: Engine, scheme: str, size: int, sign_payload: bool, tmp_path: Path
) -> None:
    body = bytearray(number * number % 251 for number in range(size))
    requests = sent(engine, scheme, tmp_path, sign_payload=sign_payload, body=body)
    assert [head.split(b"\r\n")[0] for head, _ in requests] == [
        b"PUT /b/a%20b%2B%25%23%C3%A9?partNumber=3&uploadId=u%2B%2F%3D HTTP/1.1",
        b"PUT /b/a%20b%2B%25%23%C3%A9 HTTP/1.1",
    ]
    for head, got in requests:
        assert got == body
        headers = fields(head)
        assert headers["x-amz-content-sha256"] == (
            hashlib.sha256(body).hexdigest() if sign_payload else "UNSIGNED-PAYLOAD"
        )
        assert headers["content-length"] == str(len(body))
        assert headers["x-amz-checksum-crc64nvme"] == CRC
        assert [name for name in headers if name.startswith("x-amz-checksum-")] == [
            "x-amz-checksum-crc64nvme"
        ]
        assert headers.keys().isdisjoint(
            {"expect", "transfer-encoding", "content-encoding", "x-amz-trailer", "content-md5"}
        )
        assert "x-amz-content-sha256" in headers["authorization"]
        assert b"canary" not in head


def test_engines_send_the_same_headers(tmp_path: Path) -> None:
    bodies = bytearray(b"0123456789")
    varying = {"authorization", "x-amz-date", "amz-sdk-invocation-id", "host", "connection"}
    seen = {}
    for engine in ENGINES:
        directory = tmp_path / engine
        directory.mkdir()
        requests = sent(engine, "http", directory, sign_payload=False, body=bodies)
        seen[engine] = [
            {name: value for name, value in fields(head).items() if name not in varying}
            for head, _ in requests
        ]
    assert len({str([sorted(one.items()) for one in both]) for both in seen.values()}) == 1, seen


@pytest.mark.parametrize(
    ("path_style", "url"),
    [
        (True, b"http://store.invalid/bucket/k"),
        (None, b"http://store.invalid/bucket/k"),
        (False, b"http://bucket.store.invalid/k"),
    ],
)
def test_where_the_bucket_goes(
    path_style: bool | None, url: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen by a proxy, since such a name has no address here."""
    with recording(None) as (proxy, recorder):
        monkeypatch.setenv("http_proxy", proxy)
        wire = BotoWire(
            Connection(endpoint_url="http://store.invalid", region="x", path_style=path_style)
        )
        wire.call("HeadObject", {"Bucket": "bucket", "Key": "k"})
        wire.close()
    [(head, _)] = recorder.requests
    assert head.split()[:2] == [b"HEAD", url]


@pytest.mark.parametrize("engine", ["raw", "crt"])
def test_nothing_breaks_out_of_a_header(engine: Engine) -> None:
    with recording(None) as (url, recorder):
        wire = BotoWire(Connection(endpoint_url=url, region="x", engine=engine))
        with pytest.raises(WireError) as caught:
            wire.call(
                "PutObject",
                {
                    "Bucket": "bucket",
                    "Key": "k",
                    "Body": bytearray(9),
                    "ContentType": "a\r\nX-Evil: yes",
                },
            )
        wire.close()
    assert caught.value.cause == "request"
    assert recorder.requests == []
