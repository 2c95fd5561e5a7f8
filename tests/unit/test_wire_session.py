"""What is done otherwise than botocore does it has the same outcome."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from botocore.utils import parse_timestamp
from hypothesis import given
from hypothesis import strategies as st

from staging.wire.boto import BotoWire, Connection
from staging.wire.session import timestamp
from tests.support.s3server import ScriptedS3

BUCKET = "wire"

MOMENTS = st.datetimes(
    min_value=datetime(1970, 1, 1),
    max_value=datetime(2100, 1, 1),
    timezones=st.just(UTC),
)


@given(MOMENTS)
def test_times_are_read_as_botocore_reads_them(moment: datetime) -> None:
    whole = moment.replace(microsecond=0)
    for text, expected in [
        (format_datetime(whole, usegmt=True), whole),
        (whole.strftime("%Y-%m-%dT%H:%M:%S.000Z"), whole),
        (whole.strftime("%Y-%m-%dT%H:%M:%SZ"), whole),
        (moment.isoformat(), moment),
        (str(int(whole.timestamp())), whole),
    ]:
        assert timestamp(text) == parse_timestamp(text) == expected
        assert timestamp(text).utcoffset() == timedelta(0)
    assert timestamp(whole.timestamp()) == whole


@pytest.mark.parametrize(
    "text",
    [
        "",
        "yesterday",
        "Mon, 99 Nov 2026 05:55:37 GMT",
        "2026-13-01T00:00:00Z",
        "Wed, 12 Oct 99999999999999 17:50:00 GMT",
    ],
)
def test_what_is_no_time_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match="timestamp"):
        timestamp(text)


def test_requests_say_what_they_come_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "any")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "any")

    def sent(s3: ScriptedS3) -> str:
        wire = BotoWire(Connection(endpoint_url=s3.endpoint_url, user_agent="product/7"))
        wire.call("ListObjectsV2", {"Bucket": BUCKET})
        wire.close()
        return s3.requests[-1].user_agent

    with ScriptedS3(buckets=[BUCKET]) as s3:
        assert sent(s3).startswith("Botocore/")
        assert sent(s3).endswith(" product/7")
        monkeypatch.setenv("AWS_EXECUTION_ENV", "x\r\nX-Evil: 1 \u2013 pod")
        assert {"exec-env/x--X-Evil--1---pod", "product/7"} <= set(sent(s3).split())
        monkeypatch.delenv("AWS_EXECUTION_ENV")
        monkeypatch.setenv("AWS_SDK_UA_APP_ID", "staging-box")
        assert {"app/staging-box", "product/7"} <= set(sent(s3).split())
