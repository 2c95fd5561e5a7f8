"""What the botocore wire does beyond the store's contract: no needless copies and no secrets (I11, I13)."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator

import pytest

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
    ],
    ids=["profile", "endpoint", "region"],
)
def test_unusable_settings_are_usage_errors(connection: Connection) -> None:
    with pytest.raises(UsageError) as caught:
        S3Store(BotoWire(connection), BUCKET).read("m/a", limit=1)
    assert isinstance(caught.value, StagingError)
    assert caught.value.reference == "connection-settings"
