"""Fixtures that every test may use: S3 servers, bucket names, an environment without surprises."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import servers
from tests.support.s3server import ScriptedS3
from tests.support.servers import Endpoint

_AMBIENT = ("AWS_", "STAGING_", "MODEL_", "RCLONE_", "MOTO_")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes long comes first, so that no worker is left alone with it at the end."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(autouse=True)
def no_ambient_settings(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Nothing that is set up on this machine for AWS, proxies or the programs reaches a test."""
    for name in os.environ:
        if name.startswith(_AMBIENT) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    nowhere = Path(tmp_path_factory.getbasetemp(), "no-aws-configuration")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(nowhere))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(nowhere))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.fixture
def scripted_s3() -> Iterator[ScriptedS3]:
    """A scripted S3 of the test's own, without buckets."""
    with ScriptedS3() as server:
        yield server


@pytest.fixture(scope="session")
def moto_server() -> Iterator[Endpoint]:
    """moto's server, one per worker: use `unique_bucket`."""
    with servers.moto_server() as endpoint:
        yield endpoint


@pytest.fixture(scope="session")
def rclone_server() -> Iterator[Endpoint]:
    """`rclone serve s3`, one per worker: use `unique_bucket`."""
    with servers.rclone_server() as endpoint:
        yield endpoint


@pytest.fixture
def unique_bucket(request: pytest.FixtureRequest) -> str:
    """A bucket name that no other test of the run uses and that is the same in every run."""
    return f"test-{hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:20]}"
