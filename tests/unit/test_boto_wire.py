"""What the botocore wire does beyond the store's contract: no needless copies and no secrets (I11, I13)."""

from __future__ import annotations

import os
import re
import socket
import ssl
import threading
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from staging.store.s3 import S3Store
from staging.transfer.sizing import MIB
from staging.vocabulary import crc64
from staging.vocabulary.errors import AccessDenied, StagingError, StoreUnavailable, UsageError
from staging.wire.boto import BotoWire, Connection
from tests.support.s3server import ScriptedS3
from tests.support.servers import Endpoint
from tests.support.stores import s3_store

BUCKET = "wire"


@pytest.fixture
def store(scripted_s3: ScriptedS3) -> Iterator[S3Store]:
    with s3_store(scripted_s3, BUCKET) as opened:
        yield opened


def test_a_part_is_sent_without_a_copy(moto_server: Endpoint, unique_bucket: str) -> None:
    body = bytearray(32 * MIB)
    checksum = crc64.to_text(crc64.crc64(body))
    with s3_store(moto_server, unique_bucket) as store:
        upload = store.create_multipart_upload("m/a")
        tracemalloc.start()
        try:
            store.upload_part(upload, 1, body, crc64nvme=checksum)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        store.abort_multipart_upload(upload)
    assert peak < len(body) / 4


def test_a_wrong_secret_is_named_and_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    with ScriptedS3(buckets=[BUCKET], credentials={"known": "right"}) as s3:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "known")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary-secret")
        store = S3Store(BotoWire(Connection(endpoint_url=s3.endpoint_url)), BUCKET)
        with pytest.raises(AccessDenied) as caught:
            store.read("m/a", limit=1)
    assert caught.value.reference == "credentials"
    assert "canary" not in f"{caught.value!r} {caught.value} {caught.value.hint}"


def test_no_credentials_at_all(scripted_s3: ScriptedS3) -> None:
    store = S3Store(BotoWire(Connection(endpoint_url=scripted_s3.endpoint_url)), BUCKET)
    with pytest.raises(AccessDenied) as caught:
        store.read("m/a", limit=1)
    assert caught.value.reference == "credentials"


def test_a_clock_that_is_off_is_named_with_the_minutes(
    scripted_s3: ScriptedS3, store: S3Store
) -> None:
    scripted_s3.clock_offset_seconds = 20 * 60
    with pytest.raises(AccessDenied, match="20 minutes") as caught:
        store.read("m/a", limit=1)
    assert (caught.value.reference, caught.value.side) == ("clock-skew", "local")


def test_a_bucket_in_another_region_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    with ScriptedS3(buckets=[BUCKET], region="eu-central-1") as s3:
        s3.bucket(BUCKET).put("m/a", b"x")
        for region in (None, "us-west-2"):
            wire = BotoWire(Connection(endpoint_url=s3.endpoint_url, region=region))
            assert S3Store(wire, BUCKET).read("m/a", limit=1)[0] == b"x"
            wire.close()


def test_nobody_listens(monkeypatch: pytest.MonkeyPatch, scripted_s3: ScriptedS3) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    with ScriptedS3() as s3:
        url = s3.endpoint_url
    store = S3Store(BotoWire(Connection(endpoint_url=url)), BUCKET)
    with pytest.raises(StoreUnavailable) as caught:
        store.read("m/a", limit=1)
    assert (caught.value.code, caught.value.reference) == (13, "connection")


@pytest.mark.parametrize(
    "connection",
    [
        Connection(profile="no-such-profile"),
        Connection(endpoint_url="not a url"),
        Connection(region="not a region!"),
        Connection(endpoint_url="http://[::1"),
        Connection(endpoint_url="http://127.0.0.1:99999"),
        Connection(endpoint_url="http://127.0.0.1:canary"),
        Connection(endpoint_url="http://canary:canary@127.0.0.1:1"),
    ],
    ids=["profile", "endpoint", "region", "brackets", "port", "no-port", "password"],
)
def test_unusable_settings_are_usage_errors(connection: Connection) -> None:
    with pytest.raises(UsageError) as caught:
        S3Store(BotoWire(connection), BUCKET).read("m/a", limit=1)
    assert isinstance(caught.value, StagingError)
    assert caught.value.reference == "connection-settings"
    assert "canary" not in f"{caught.value.message} {caught.value.hint}"


@contextmanager
def answering(status: int, body: bytes = b"", **headers: str) -> Iterator[str]:
    """The URL of a server that gives every request the same answer."""

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            self.rfile.read(int(self.headers.get("content-length", 0)))
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_HEAD = do_POST = _answer  # noqa: N815 - names of the base class

        def log_message(self, *_: object) -> None:
            """Nobody reads it."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (400, "InvalidIdentityToken", (12, "credentials")),
        (400, "ExpiredTokenException", (12, "credentials")),
        (403, "AccessDenied", (12, "credentials")),
    ],
)
def test_a_role_that_may_not_be_assumed(
    monkeypatch: pytest.MonkeyPatch,
    scripted_s3: ScriptedS3,
    tmp_path: Path,
    status: int,
    code: str,
    expected: tuple[int, str],
) -> None:
    (tmp_path / "token").write_text("canary-token")
    refusal = (
        f"<ErrorResponse><Error><Code>{code}</Code><Message>no</Message></Error></ErrorResponse>"
    )
    with answering(status, refusal.encode(), content_type="text/xml") as sts:
        monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/reader")
        monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path / "token"))
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", sts)
        wire = BotoWire(Connection(endpoint_url=scripted_s3.endpoint_url))
        with pytest.raises(StagingError) as caught:
            S3Store(wire, BUCKET).read("m/a", limit=1)
        wire.close()
    assert (caught.value.code, caught.value.reference) == expected
    assert f"AssumeRoleWithWebIdentity was refused: {code}" in caught.value.message
    assert "s3:GetObject" not in (caught.value.hint or "")
    assert "trust policy" in (caught.value.hint or "")
    assert len(scripted_s3.requests) == 0


def test_a_weak_etag_pins_nothing_and_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    with answering(206, b"0123", ETag='W/"abc"', Content_Range="bytes 0-3/10") as url:
        wire = BotoWire(Connection(endpoint_url=url))
        store = S3Store(wire, BUCKET)
        etag = store.head("m/a").etag
        for pinned in (etag, "abc"):  # the listing may have told the strong one
            with pytest.raises(StagingError) as caught:
                store.read_into("m/a", 0, memoryview(bytearray(4)), etag=pinned)
            assert (caught.value.code, caught.value.reference) == (1, "weak-etag")
            assert "rewrote" not in caught.value.message
        with pytest.raises(StagingError, match="weak ETag"):
            store.delete("m/a", etag=etag)
        wire.close()


def certificate(path: Path) -> Path:
    """A key and its own certificate for 127.0.0.1, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    path.write_bytes(private + made.public_bytes(serialization.Encoding.PEM))
    return path


def serve_with_a_damaged_record(listener: socket.socket, pem: Path, data: bytes) -> None:
    """Answer a range twice: at first a TLS record that nobody sealed follows the first four bytes."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    for damaged in (True, False):
        connection, _ = listener.accept()
        with context.wrap_socket(connection, server_side=True) as tls:
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                head += tls.recv(65536)
            match = re.search(rb"(?i)range: bytes=(\d+)-(\d+)", head)
            assert match is not None
            first, last = int(match[1]), int(match[2])
            answer = (
                f'HTTP/1.1 206 Partial Content\r\nETag: "v1"\r\nConnection: close\r\n'
                f"Content-Range: bytes {first}-{last}/{len(data)}\r\n"
                f"Content-Length: {last - first + 1}\r\n\r\n"
            ).encode()
            body = data[first : last + 1]
            tls.sendall(answer + (body[:4] if damaged else body))
            if damaged:
                os.write(tls.fileno(), b"\x17\x03\x03\x00\x20" + bytes(32))
                with suppress(OSError):  # until the client has complained and hung up
                    tls.recv(1)


def test_a_damaged_tls_record_breaks_the_body_off(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    pem, data = certificate(tmp_path / "server.pem"), bytes(range(100))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = threading.Thread(target=serve_with_a_damaged_record, args=(listener, pem, data))
        server.start()
        url = f"https://127.0.0.1:{listener.getsockname()[1]}"
        wire = BotoWire(Connection(endpoint_url=url, ca_bundle=str(pem)))
        store = S3Store(wire, BUCKET)
        buffer = bytearray(100)
        done = store.read_into("m/a", 0, memoryview(buffer), etag="v1")
        assert done <= 4
        done += store.read_into("m/a", done, memoryview(buffer)[done:], etag="v1")
        wire.close()
        server.join()
    assert (done, bytes(buffer)) == (100, data)
