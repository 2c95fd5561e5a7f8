"""Every engine gives the same answers, errors and bodies, plain and over TLS, without copies (I1, I11)."""

from __future__ import annotations

import ast
import gc
import hashlib
import socket
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import pytest

from staging.store.s3 import S3Store
from staging.transfer.sizing import MIB
from staging.vocabulary import crc64
from staging.vocabulary.errors import StoreUnavailable, UsageError
from staging.wire.boto import BotoWire, Connection
from staging.wire.engine import Engine
from staging.wire.wire import Body, BodyBroken, WireError
from tests.support.s3server import CutBody, DropBefore, ErrorIn200, Fault, ScriptedS3, Status
from tests.support.servers import self_signed
from tests.support.stores import hurried

# The server's event loop may end while TLS connections are still saying goodbye to each other.
BUCKET = "wire"
ENGINES: tuple[Engine, ...] = get_args(Engine)
ROOT = Path(__file__).parents[2]


def data_of(size: int) -> bytearray:
    """Bytes that do not repeat."""
    return bytearray(b"".join(number.to_bytes(8, "big") for number in range(size // 8 + 1))[:size])


def checksum(body: bytes | bytearray) -> str:
    return crc64.to_text(crc64.crc64(body))


def drained(body: Body) -> tuple[bytes, bool]:
    """What came of a body, and whether that was all."""
    found, view = b"", memoryview(bytearray(100_000))
    try:
        while count := body.read_into(view):
            found += view[:count]
    except BodyBroken:
        return found, False
    return found, True


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "known")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "right")


@contextmanager
def opened(engine: Engine, url: str, **settings: Any) -> Iterator[BotoWire]:
    wire = BotoWire(Connection(endpoint_url=url, engine=engine, **settings), hurried(10))
    try:
        yield wire
    finally:
        wire.close()


@pytest.fixture(params=["http", "https"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[ScriptedS3, Any]]:
    """A server that verifies signatures, and what a connection needs to trust it."""
    bundle, tls = self_signed(tmp_path)
    secure = request.param == "https"
    with ScriptedS3(
        buckets=[BUCKET], credentials={"known": "right"}, tls=tls if secure else None
    ) as s3:
        yield s3, {"ca_bundle": str(bundle)} if secure else {}
    gc.collect()


@pytest.mark.parametrize("engine", ENGINES)
def test_whole_lives_of_objects(engine: Engine, server: tuple[ScriptedS3, Any]) -> None:
    s3, trust = server
    body = data_of(6 * MIB + 17)
    with opened(engine, s3.endpoint_url, **trust) as wire:
        store = S3Store(wire, BUCKET)
        for key in ("a b/+%#é.bin", "plain", "ünï/~ñ&=?;.x"):
            upload = store.create_multipart_upload(key)
            parts = [
                store.upload_part(upload, number, piece, crc64nvme=checksum(piece))
                for number, piece in enumerate((body[: 5 * MIB], body[5 * MIB :]), 1)
            ]
            store.complete_multipart_upload(upload, parts, crc64nvme=checksum(body))
            info = store.head(key)
            assert (info.size, info.crc64nvme) == (len(body), checksum(body))
            buffer = bytearray(len(body) - 5)
            assert store.read_into(key, 5, memoryview(buffer), etag=info.etag) == len(buffer)
            assert buffer == body[5:]
            assert [found.key for found in store.list_objects(key)] == [key]
            store.delete(key, etag=info.etag)
        store.create("empty", b"", crc64nvme=checksum(b""))
        assert store.read("empty", limit=9)[0] == b""
    assert s3.bucket(BUCKET).keys() == ["empty"]


@pytest.mark.parametrize("engine", ENGINES)
def test_errors_are_the_same(engine: Engine, server: tuple[ScriptedS3, Any]) -> None:
    s3, trust = server
    s3.script(
        Fault("HeadObject", Status(403), key="denied"),
        Fault("GetObject", Status(400, "Odd"), key="odd"),
        Fault("GetObject", Status(307), key="moved", occurrence=None),
    )
    with opened(engine, s3.endpoint_url, **trust) as wire:
        seen = []
        for operation, key in (
            ("GetObject", "missing"),
            ("HeadObject", "missing"),
            ("HeadObject", "denied"),
            ("GetObject", "odd"),
            ("GetObject", "moved"),
        ):
            with pytest.raises(WireError) as caught:
                wire.call(operation, {"Bucket": BUCKET, "Key": key})
            error = caught.value
            seen.append((error.operation, error.cause, error.status, error.code))
            assert error.server_time_skew is not None
    assert seen == [
        ("GetObject", "answer", 404, "NoSuchKey"),
        ("HeadObject", "answer", 404, "404"),
        ("HeadObject", "answer", 403, "403"),
        ("GetObject", "answer", 400, "Odd"),
        ("GetObject", "answer", 307, "TemporaryRedirect"),
    ]


@pytest.mark.parametrize("engine", ENGINES)
def test_what_fails_is_made_again(engine: Engine, server: tuple[ScriptedS3, Any]) -> None:
    s3, trust = server
    s3.bucket(BUCKET).put("a", b"0123456789")
    s3.script(
        Fault("HeadObject", Status(500), occurrence=1),
        Fault("HeadObject", DropBefore(), occurrence=3),
        Fault("CompleteMultipartUpload", ErrorIn200(), occurrence=1),
        Fault("ListObjectsV2", CutBody(10), occurrence=1),
    )
    with opened(engine, s3.endpoint_url, **trust) as wire:
        store = S3Store(wire, BUCKET)
        assert store.head("a").size == store.head("a").size == 10
        assert [found.key for found in store.list_objects("")] == ["a"]
        upload = store.create_multipart_upload("b")
        part = store.upload_part(upload, 1, bytearray(b"x"), crc64nvme=checksum(b"x"))
        store.complete_multipart_upload(upload, [part], crc64nvme=checksum(b"x"))
        assert wire.pace.counts.requests == len(s3.requests)
        assert wire.pace.counts.retries == 4
    assert s3.unfired_faults == []


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("after", [1, 1000])
def test_a_body_that_breaks_off_is_broken(
    engine: Engine, server: tuple[ScriptedS3, Any], after: int
) -> None:
    s3, trust = server
    data = data_of(200_000)
    s3.bucket(BUCKET).put("a", bytes(data))
    s3.script(Fault("GetObject", CutBody(after), occurrence=1))
    with opened(engine, s3.endpoint_url, **trust) as wire:
        _, body = wire.get({"Bucket": BUCKET, "Key": "a"})
        found, whole = drained(body)
        body.close()
        assert not whole
        assert len(found) <= after
        _, body = wire.get({"Bucket": BUCKET, "Key": "a", "Range": f"bytes={len(found)}-"})
        rest, whole = drained(body)
        body.close()
    assert whole
    assert found + rest == data


@pytest.mark.parametrize("engine", ENGINES)
def test_a_body_left_in_the_middle_harms_no_later_one(
    engine: Engine, server: tuple[ScriptedS3, Any]
) -> None:
    s3, trust = server
    data = data_of(3 * MIB)
    s3.bucket(BUCKET).put("a", bytes(data))
    with opened(engine, s3.endpoint_url, connections=1, **trust) as wire:
        for _ in range(3):
            _, body = wire.get({"Bucket": BUCKET, "Key": "a"})
            start = bytearray(100)
            assert body.read_into(memoryview(start)) > 0
            body.close()
        assert S3Store(wire, BUCKET).read("a", limit=4 * MIB)[0] == data


@pytest.mark.parametrize("engine", ENGINES)
def test_nobody_listens(engine: Engine) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with opened(engine, f"http://127.0.0.1:{port}") as wire:
        with pytest.raises(WireError) as caught:
            wire.call("HeadObject", {"Bucket": BUCKET, "Key": "a"})
        assert (caught.value.cause, caught.value.code) == ("connection", "EndpointConnectionError")
        assert wire.pace.counts.requests == 5


@pytest.mark.parametrize("engine", ENGINES)
def test_a_name_that_is_nobodys(engine: Engine) -> None:
    with opened(engine, "http://nobody.invalid") as wire:
        with pytest.raises(WireError) as caught:
            wire.call("HeadObject", {"Bucket": BUCKET, "Key": "a"})
        assert caught.value.cause == "connection"


# awscrt takes many seconds to say that a handshake failed, each time.
@pytest.mark.parametrize(
    ("engine", "wrong"),
    [
        *(
            (engine, wrong)
            for engine in ENGINES
            for wrong in ("authority", "name")
            if engine != "crt"
        ),
        pytest.param("crt", "authority", marks=pytest.mark.slow),
    ],
)
def test_who_is_not_trusted_gets_nothing(
    engine: Engine, wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if engine == "crt":
        monkeypatch.setattr("staging.wire.boto._MAX_ATTEMPTS", 1)
    bundle, tls = self_signed(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    stranger, _ = self_signed(other)
    with ScriptedS3(buckets=[BUCKET], tls=tls) as s3:
        url, trusted = s3.endpoint_url, bundle
        if wrong == "authority":
            trusted = stranger
        else:
            url = url.replace("127.0.0.1", "localhost")
        with opened(engine, url, ca_bundle=str(trusted)) as wire, pytest.raises(WireError) as error:
            wire.call("HeadObject", {"Bucket": BUCKET, "Key": "a"})
        assert error.value.cause == "connection"
        assert len(s3.requests) == 0


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("variable", ["AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE"])
def test_certificates_named_by_the_environment(
    engine: Engine, variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, tls = self_signed(tmp_path)
    monkeypatch.setenv(variable, str(bundle))
    with ScriptedS3(buckets=[BUCKET], tls=tls) as s3, opened(engine, s3.endpoint_url) as wire:
        wire.call("HeadBucket", {"Bucket": BUCKET})


@pytest.mark.parametrize("engine", ENGINES)
def test_certificates_that_are_none(engine: Engine, tmp_path: Path) -> None:
    nothing = tmp_path / "nothing.pem"
    nothing.write_text("no certificate")
    with opened(engine, "https://127.0.0.1:9", ca_bundle=str(nothing)) as wire:
        with pytest.raises(WireError) as caught:
            wire.call("HeadBucket", {"Bucket": BUCKET})
        assert caught.value.cause == "connection"


@pytest.mark.parametrize("engine", ENGINES)
def test_a_proxy_is_used(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def proxy() -> None:
            connection, _ = listener.accept()
            with connection:
                asked.append(connection.recv(65536).split(b"\r\n")[0])
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

        thread = threading.Thread(target=proxy, daemon=True)
        thread.start()
        monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{listener.getsockname()[1]}")
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{listener.getsockname()[1]}")
        with opened(engine, "http://store.invalid") as wire:
            wire.call("HeadBucket", {"Bucket": BUCKET})
        thread.join()
    assert asked == [f"HEAD http://store.invalid/{BUCKET} HTTP/1.1".encode()]


SINK = r"""
import re, socket, ssl, sys
size = int(sys.argv[1])
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
while True:
    connection, _ = listener.accept()
    if len(sys.argv) > 2:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*sys.argv[2:])
        connection = context.wrap_socket(connection, server_side=True)
    rest = b""
    while got := connection.recv(65536):
        rest += got
        if b"\r\n\r\n" not in rest:
            continue
        head, _, rest = rest.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: ([0-9]+)", head)
        left = int(length[1]) - len(rest) if length else 0
        while left:
            left -= len(connection.recv(min(left, 1 << 20)))
        rest = b""
        sent = size if head.startswith(b"GET") else 0
        connection.sendall(b"HTTP/1.1 200 OK\r\nETag: x\r\nContent-Length: %d\r\n\r\n" % sent)
        for _ in range(sent >> 20):
            connection.sendall(bytes(1 << 20))
    connection.close()
"""
# In a process of its own, so that nothing of it is traced: it drops what it gets, and serves zeros.


@contextmanager
def sink(size: int, certificate: str | None) -> Iterator[str]:
    arguments = [str(size)]
    if certificate is not None:
        arguments += [certificate, str(Path(certificate).with_name("key.pem"))]
    with subprocess.Popen(
        [sys.executable, "-c", SINK, *arguments], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            yield f"http{'s' if certificate else ''}://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.terminate()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("sign_payload", [False, True])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_64_mib_go_and_come_without_a_copy(
    engine: Engine, sign_payload: bool, scheme: str, tmp_path: Path
) -> None:
    body = bytearray(64 * MIB)
    certificate = str(self_signed(tmp_path)[0]) if scheme == "https" else None
    with (
        sink(len(body), certificate) as url,
        opened(engine, url, sign_payload=sign_payload, ca_bundle=certificate) as wire,
    ):
        where = {"Bucket": BUCKET, "Key": "a"}
        wire.call("HeadObject", where)  # what is made once is made now
        tracemalloc.start()
        try:
            wire.call("PutObject", {**where, "Body": body, "ChecksumCRC64NVME": "AAAAAAAAAAA="})
            _, answer = wire.get(where)
            view, done = memoryview(body), 0
            while count := answer.read_into(view[done : done + MIB]):
                done += count
            answer.close()
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert done == len(body)
    assert peak < 8 * MIB


def test_crt_is_asked_for_by_name_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    importers = [
        path.name
        for path in (ROOT / "staging/wire").glob("*.py")
        if "awscrt" in {name.split(".")[0] for name in imported(path)}
    ]
    assert importers == ["crt.py"]
    code = "import sys, staging.wire.boto; print('staging.wire.crt' in sys.modules)"
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert ran.stdout.strip() == "False"
    monkeypatch.delitem(sys.modules, "staging.wire.crt", raising=False)
    for name in ("awscrt.exceptions", "awscrt.http", "awscrt.io"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UsageError) as caught:
        BotoWire(Connection(endpoint_url="http://127.0.0.1:9", engine="crt"))
    assert (caught.value.code, caught.value.reference) == (2, "engine")


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def test_a_store_that_is_gone_is_exit_13(scripted_s3: ScriptedS3) -> None:
    scripted_s3.script(Fault(None, DropBefore(), occurrence=None))
    with opened("raw", scripted_s3.endpoint_url) as wire, pytest.raises(StoreUnavailable) as caught:
        S3Store(wire, BUCKET).head("a")
    assert caught.value.reference == "connection"
    assert len(scripted_s3.requests) == 5


WITHOUT_AWSCRT = """
import sys
sys.modules["awscrt"] = None
from staging.wire.boto import BotoWire, Connection
for sign_payload in (False, True):
    wire = BotoWire(Connection(endpoint_url=sys.argv[1], sign_payload=sign_payload))
    wire.call("PutObject", {"Bucket": "wire", "Key": "a b", "Body": bytearray(range(256)) * 999})
    wire.close()
"""


def test_where_awscrt_is_not_installed_requests_are_signed_as_well() -> None:
    with ScriptedS3(buckets=[BUCKET], credentials={"known": "right"}, region="us-east-1") as s3:
        subprocess.run(
            [sys.executable, "-c", WITHOUT_AWSCRT, s3.endpoint_url],
            cwd=ROOT,
            check=True,
            timeout=60,
        )
        unsigned, signed = s3.requests
    assert unsigned.content_sha256 == "UNSIGNED-PAYLOAD"
    assert signed.content_sha256 == hashlib.sha256(bytes(range(256)) * 999).hexdigest()
    assert unsigned.status == signed.status == 200
