"""The S3 servers that tests talk to, each on a loopback port of its own choosing.

    ScriptedS3      ours: does as S3 does, can be told to misbehave, logs requests (in this process)
    moto_server     moto's HTTP server, in a process of its own
    rclone_server   `rclone serve s3` over a temporary directory, in a process of its own

The last two are other people's reading of S3; they keep the first one honest. Each launcher is a
context manager that ends its process by its id. Ports are chosen by the kernel when the server
binds and are read from what it prints, so parallel runs cannot collide.
"""

from __future__ import annotations

import os
import re
import ssl
import subprocess
import sys
import sysconfig
import tempfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path
from typing import IO, Any, Protocol

import boto3
from botocore.config import Config
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.support.s3server import ScriptedS3

__all__ = [
    "REGION",
    "Endpoint",
    "ScriptedS3",
    "Server",
    "moto_server",
    "plain_client",
    "rclone_server",
    "self_signed",
]

REGION = "us-east-1"

START_TIMEOUT = 60.0
"""Seconds a server may take to print its address; a guard against hanging, no expectation."""


class Server(Protocol):
    """Where a server is and how to get in. `ScriptedS3` is one too."""

    @property
    def endpoint_url(self) -> str: ...
    @property
    def access_key(self) -> str: ...
    @property
    def secret_key(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A `Server` that runs somewhere else."""

    endpoint_url: str
    access_key: str
    secret_key: str


@contextmanager
def moto_server() -> Iterator[Endpoint]:
    """moto's server. It lets anybody in."""
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
    with tempfile.TemporaryDirectory(prefix="moto-") as home, _running(command, home) as port:
        yield Endpoint(f"http://127.0.0.1:{port}", "moto-access-key", "moto-secret-key")


@contextmanager
def rclone_server() -> Iterator[Endpoint]:
    """`rclone serve s3` with one pair of keys, serving an empty directory that goes away after."""
    keys = "rclone-access-key", "rclone-secret-key"
    binary = Path(sysconfig.get_path("scripts"), "rclone")
    with tempfile.TemporaryDirectory(prefix="rclone-") as home:
        served = Path(home, "served")
        served.mkdir()
        command = [str(binary), "serve", "s3", "--config", "", "--addr", "127.0.0.1:0"]
        command += ["--auth-key", ",".join(keys), str(served)]
        with _running(command, home) as port:
            yield Endpoint(f"http://127.0.0.1:{port}", *keys)


def self_signed(directory: Path) -> tuple[Path, ssl.SSLContext]:
    """A certificate for 127.0.0.1 that is its own authority, as a file, and a server context with it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tests")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(datetime(2020, 1, 1, tzinfo=UTC))
        .not_valid_after(datetime(2120, 1, 1, tzinfo=UTC))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    encoding = serialization.Encoding.PEM
    bundle, secret = directory / "certificate.pem", directory / "key.pem"
    bundle.write_bytes(certificate.public_bytes(encoding))
    secret.write_bytes(
        key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(bundle, secret)
    return bundle, context


@contextmanager
def plain_client(
    server: Server,
    *,
    access_key: str | None = None,
    secret_key: str | None = None,
    region: str = REGION,
    attempts: int = 1,
    sign_payload: bool = False,
    ca_bundle: Path | None = None,
) -> Iterator[Any]:
    """A boto3 client as plain as the product's requests are: no aws-chunked, payloads
    unsigned unless `sign_payload` says otherwise.

    It makes each request once unless `attempts` says otherwise, and reads no configuration.
    """
    client = boto3.client(
        "s3",
        endpoint_url=server.endpoint_url,
        aws_access_key_id=access_key or server.access_key,
        aws_secret_access_key=secret_key or server.secret_key,
        region_name=region,
        verify=None if ca_bundle is None else str(ca_bundle),
        config=Config(
            signature_version="s3v4",
            s3={"addressing_style": "path", "payload_signing_enabled": sign_payload},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            retries={"total_max_attempts": attempts, "mode": "standard"},
            proxies={},
        ),
    )
    with closing(client):
        yield client


@contextmanager
def _running(command: Sequence[str], home: str) -> Iterator[int]:
    """Run a server until the block ends; yields the port that it prints on its standard error."""
    environment = {
        "HOME": home,
        "PATH": os.environ.get("PATH", os.defpath),
        "LANG": "C.UTF-8",
        "PYTHONUNBUFFERED": "1",
        "NO_COLOR": "1",
    }
    with subprocess.Popen(
        command,
        env=environment,
        cwd=home,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    ) as process:
        assert process.stderr is not None
        port: Future[int] = Future()
        # The pipe has to be read to the end, or a server that logs its requests would block on it.
        reader = threading.Thread(
            target=_watch, args=(process.stderr, port), name=f"{command[0]} log", daemon=True
        )
        reader.start()
        try:
            yield port.result(START_TIMEOUT)
        finally:
            process.terminate()
            process.wait()
            reader.join()


def _watch(log: IO[str], port: Future[int]) -> None:
    """Read a server's log to its end, and report the port it tells or that it ended without one."""
    head: list[str] = []
    for line in log:
        if port.done():
            continue
        head.append(line)
        match = re.search(r"http://127\.0\.0\.1:(\d+)", line)
        if match:
            port.set_result(int(match[1]))
    if not port.done():
        port.set_exception(RuntimeError(f"the server ended without an address:\n{''.join(head)}"))
