"""The doctor looks without a trace, writes below a prefix of its own, and cleans up (I10, I12, I14)."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest

from staging.doctor import Check, ReadTest, Setup, WriteTest, look_at_setup, merged
from staging.doctor.policies import dumps, key_arn, partition_of, pod_policy, upload_policy
from staging.store.bucket import S3Bucket
from staging.store.s3 import S3Store
from staging.store.settings import NO_SETTINGS, S3Settings
from staging.vocabulary import crc64
from staging.vocabulary.errors import AccessDenied, NotFound, StagingError
from staging.vocabulary.location import S3Location
from staging.wire.boto import BotoWire, Connection
from tests.support.s3server import (
    BucketSettings,
    Fault,
    Quirk,
    Rule,
    ScriptedS3,
    Status,
)
from tests.support.stores import credentials

BUCKET = "models"
HERE = S3Location(BUCKET, "checkpoints/laguna-xs/")
TOKEN = "0123456789abcdef"
OURS = f"{HERE.prefix}.checkpoint/doctor-{TOKEN}/"
KEY = "arn:aws:kms:us-east-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"

READING = {
    "HeadBucket",
    "GetBucketLocation",
    "GetBucketVersioning",
    "GetBucketEncryption",
    "GetBucketLifecycleConfiguration",
    "GetObjectLockConfiguration",
    "GetBucketPolicyStatus",
    "ListObjectsV2",
    "GetObject",
    "HeadObject",
    "ListMultipartUploads",
    "ListParts",
}


@pytest.fixture
def s3(scripted_s3: ScriptedS3) -> ScriptedS3:
    scripted_s3.bucket(BUCKET)
    return scripted_s3


@contextmanager
def wire_to(server: ScriptedS3) -> Iterator[BotoWire]:
    with mock.patch.dict(os.environ, credentials(server)):
        wire = BotoWire(Connection(endpoint_url=server.endpoint_url))
        try:
            yield wire
        finally:
            wire.close()


def look(server: ScriptedS3, settings: S3Settings = NO_SETTINGS) -> dict[str, Check]:
    """The lines that reading gives, by name."""
    with wire_to(server) as wire:
        test = ReadTest(S3Store(wire, BUCKET, settings), HERE, token=TOKEN)
        setup = look_at_setup(S3Bucket(wire, BUCKET, settings), HERE)
        checks = [*setup.checks, *test.run(settings, kms=setup.kms(settings))]
    return {check.name: check for check in checks}


def write(
    server: ScriptedS3, settings: S3Settings = NO_SETTINGS, *, kms: bool | None = False
) -> tuple[dict[str, Check], WriteTest]:
    with wire_to(server) as wire:
        store = S3Store(wire, BUCKET, settings)
        test = WriteTest(store, HERE, settings, token=TOKEN, kms=kms)
        test.run()
    return {check.name: check for check in merged([], test.checks)}, test


def states(checks: dict[str, Check], prefix: str = "") -> dict[str, str]:
    return {name: check.state for name, check in checks.items() if name.startswith(prefix)}


# Reading


def test_reading_is_all_that_happens(s3: ScriptedS3) -> None:
    s3.bucket(BUCKET).put(HERE.manifest_key, b"{}")
    s3.bucket(BUCKET).open_upload(f"{HERE.prefix}model.safetensors")
    checks = look(s3)
    assert set(s3.requests.operations()) <= READING
    assert all(request.status is not None for request in s3.requests)
    assert states(checks, "s3:") == {
        "s3:ListBucket": "ok",
        "s3:GetObject": "ok",
        "s3:ListBucketMultipartUploads": "ok",
        "s3:ListMultipartUploadParts": "ok",
        "s3:PutObject": "unknown",
        "s3:AbortMultipartUpload": "unknown",
        "s3:DeleteObject": "unknown",
    }
    assert s3.bucket(BUCKET).keys() == [HERE.manifest_key]
    assert len(s3.bucket(BUCKET).uploads()) == 1


def test_nothing_is_read_of_an_object_but_that_it_may_be(s3: ScriptedS3) -> None:
    s3.bucket(BUCKET).put(f"{HERE.prefix}model.safetensors", bytes(1024))
    assert look(s3)["s3:GetObject"].detail == f"'{HERE.prefix}model.safetensors' may be read"
    [listing] = [request for request in s3.requests if request.operation == "ListObjectsV2"]
    assert listing.query["prefix"] == HERE.prefix
    assert listing.query["max-keys"] == "1"


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize(
    ("denied", "missing"),
    [
        ("GetObject", "s3:GetObject"),
        ("ListBucketMultipartUploads", "s3:ListBucketMultipartUploads"),
        ("ListMultipartUploadParts", "s3:ListMultipartUploadParts"),
    ],
)
def test_a_refused_read_is_a_missing_permission(
    s3: ScriptedS3, there: bool, denied: str, missing: str
) -> None:
    if there:
        s3.bucket(BUCKET).put(HERE.manifest_key, b"{}")
    s3.deny(denied)
    checks = look(s3)
    assert [name for name, check in checks.items() if check.state == "missing"] == [
        "aborts unfinished uploads",
        missing,
    ]
    assert checks[missing].required == (missing == "s3:GetObject")
    assert missing in str(checks[missing].hint)


def test_without_listing_a_missing_key_proves_nothing(s3: ScriptedS3) -> None:
    s3.deny("ListBucket")
    checks = look(s3)
    assert states(checks, "s3:ListBucket")["s3:ListBucket"] == "missing"
    assert checks["s3:GetObject"].state == "unknown"
    assert checks["bucket's region"].detail == "us-east-1"
    s3.bucket(BUCKET).put(HERE.manifest_key, b"{}")
    assert look(s3)["s3:GetObject"].state == "ok"


def test_a_role_that_may_look_at_nothing_gets_lines_all_the_same(s3: ScriptedS3) -> None:
    for permission in (
        "ListBucket",
        "GetObject",
        "GetBucketLocation",
        "GetBucketVersioning",
        "GetEncryptionConfiguration",
        "GetLifecycleConfiguration",
        "GetBucketObjectLockConfiguration",
        "GetBucketPolicyStatus",
        "ListBucketMultipartUploads",
        "ListMultipartUploadParts",
    ):
        s3.deny(permission)
    checks = look(s3)
    assert "ok" not in states(checks).values()
    settings = [check for check in checks.values() if check.group == "bucket"]
    assert {check.detail for check in settings} == {"not allowed to look"}
    assert checks["kms:Decrypt"].state == checks["kms:GenerateDataKey"].state == "unknown"


def test_a_key_that_may_not_be_used_is_told_from_a_refused_read(s3: ScriptedS3) -> None:
    bucket = s3.bucket(BUCKET)
    bucket.settings.encryption = ("aws:kms", KEY, True)
    checks = look(s3)
    assert checks["default encryption"].detail == f"aws:kms, {KEY}, bucket key"
    assert states(checks, "kms:") == {"kms:Decrypt": "unknown", "kms:GenerateDataKey": "unknown"}
    with wire_to(s3) as wire:
        crc = crc64.to_text(crc64.crc64(b"{}"))
        S3Store(wire, BUCKET).create(HERE.manifest_key, b"{}", crc64nvme=crc)
    assert look(s3)["kms:Decrypt"].state == "ok"
    s3.deny("kms:Decrypt")
    checks = look(s3)
    assert checks["s3:GetObject"].state == "ok"
    assert checks["kms:Decrypt"].state == "missing"
    assert checks["kms:Decrypt"].required
    assert "key's policy" in str(checks["kms:Decrypt"].hint)


def test_what_is_set_for_the_upload_decides_over_the_buckets_default() -> None:
    setup = Setup()
    assert setup.kms(NO_SETTINGS) is None
    assert setup.kms(S3Settings(sse="AES256")) is False
    assert setup.kms(S3Settings(sse="aws:kms")) is True
    assert setup.kms_key(S3Settings(sse="aws:kms", kms_key_id=KEY)) == KEY


def test_no_bucket(s3: ScriptedS3) -> None:
    with wire_to(s3) as wire, pytest.raises(NotFound) as caught:
        ReadTest(S3Store(wire, "no-such-bucket"), HERE, token=TOKEN)
    assert caught.value.reference == "bucket"


def test_credentials_that_are_good_for_nothing_end_it() -> None:
    with ScriptedS3(buckets=[BUCKET], credentials={"other": "secret"}) as server:
        wrong = {"AWS_ACCESS_KEY_ID": "unknown", "AWS_SECRET_ACCESS_KEY": "secret"}
        with wire_to(server) as wire, mock.patch.dict(os.environ, wrong):
            wire = BotoWire(Connection(endpoint_url=server.endpoint_url))
            with pytest.raises(AccessDenied) as caught:
                ReadTest(S3Store(wire, BUCKET), HERE, token=TOKEN)
            wire.close()
    assert caught.value.reference == "credentials"
    assert len(server.requests) == 1


def test_a_store_that_knows_no_settings_of_buckets(s3: ScriptedS3) -> None:
    for operation in READING:
        if operation.startswith("GetBucket") or operation == "GetObjectLockConfiguration":
            s3.script(Fault(operation, Status(501), occurrence=None))
    checks = look(s3)
    told = {
        name for name, check in checks.items() if check.group == "bucket" and check.state == "ok"
    }
    assert told == {"bucket's region", "clock"}
    assert "NotImplemented" in checks["versioning"].detail


# The bucket


@pytest.mark.parametrize(
    ("settings", "name", "state", "text"),
    [
        (BucketSettings(versioning="Enabled"), "versioning", "ok", "on: what gets deleted stays"),
        (BucketSettings(versioning="Suspended"), "versioning", "ok", "suspended"),
        (BucketSettings(), "versioning", "ok", "off"),
        (BucketSettings(), "default encryption", "ok", "AES256"),
        (BucketSettings(encryption=None), "default encryption", "ok", "none"),
        (
            BucketSettings(encryption=("aws:kms", None, False)),
            "default encryption",
            "ok",
            "aws:kms, the account's own key for S3",
        ),
        (BucketSettings(), "object lock", "ok", "off"),
        (BucketSettings(lock_days=0), "object lock", "ok", "on, without a default time"),
        (BucketSettings(lock_days=30), "object lock", "ok", "on, GOVERNANCE for 30 days"),
        (BucketSettings(), "private", "ok", "the bucket has no policy"),
        (BucketSettings(public=False), "private", "ok", "the bucket's policy is not public"),
        (BucketSettings(public=True), "private", "missing", "lets everybody in"),
    ],
)
def test_a_setting_of_the_bucket(
    s3: ScriptedS3, settings: BucketSettings, name: str, state: str, text: str
) -> None:
    s3.bucket(BUCKET).settings = settings
    check = look(s3)[name]
    assert check.state == state
    assert check.detail.startswith(text) or text in check.detail
    assert not check.required


@pytest.mark.parametrize(
    ("rules", "state", "text"),
    [
        ((), "missing", "no lifecycle rule does"),
        ((Rule(abort_after=7),), "ok", "after 7 days"),
        ((Rule(abort_after=7), Rule("checkpoints/", abort_after=1)), "ok", "after 1 day"),
        ((Rule("checkpoints/other/", abort_after=7),), "missing", "no lifecycle rule does"),
        ((Rule(abort_after=7, enabled=False),), "missing", "no lifecycle rule does"),
        ((Rule(expire_after=7),), "missing", "no lifecycle rule does"),
    ],
)
def test_who_aborts_dead_uploads(
    s3: ScriptedS3, rules: tuple[Rule, ...], state: str, text: str
) -> None:
    s3.bucket(BUCKET).settings.lifecycle = rules
    check = look(s3)["aborts unfinished uploads"]
    assert (check.state, check.detail.startswith(text)) == (state, True)


@pytest.mark.parametrize(
    ("rule", "state", "text"),
    [
        (Rule(expire_after=30), "missing", "deletes all objects after 30 days"),
        (
            Rule("checkpoints/", expire_after=30),
            "missing",
            "deletes objects below 'checkpoints/' after 30 days",
        ),
        (
            Rule("checkpoints/laguna-xs/old/", glacier_after=9),
            "missing",
            "archives objects below 'checkpoints/laguna-xs/old/' after 9 days",
        ),
        (
            Rule(expire_after=30, tag="temporary"),
            "unknown",
            "deletes all objects with certain tags or sizes after 30 days",
        ),
        (Rule("logs/", expire_after=30), None, ""),
        (Rule(abort_after=7), None, ""),
    ],
)
def test_a_rule_that_would_take_checkpoints_away(
    s3: ScriptedS3, rule: Rule, state: str | None, text: str
) -> None:
    s3.bucket(BUCKET).settings.lifecycle = (rule,)
    check = look(s3).get("objects stay")
    assert (check.state if check else None) == state
    assert text in (check.detail if check else "")


@pytest.mark.parametrize(
    ("offset", "state", "text"),
    [(0.0, "ok", "as the store's"), (-120.0, "ok", "ahead of"), (600.0, "missing", "behind")],
)
def test_the_clock(s3: ScriptedS3, offset: float, state: str, text: str) -> None:
    s3.clock_offset_seconds = offset
    check = look(s3)["clock"]
    assert check.state == state
    assert text in check.detail


def test_the_region_is_the_buckets() -> None:
    with ScriptedS3(buckets=[BUCKET], region="eu-central-1") as server:
        assert look(server)["bucket's region"].detail == "eu-central-1"
        server.deny("ListBucket")
        assert look(server)["bucket's region"].detail == "eu-central-1"


# Writing


STORE = {
    "checks checksums of objects": "ok",
    "creates only what is not there": "ok",
    "keeps checksums of objects": "ok",
    "gives back what it got": "ok",
    "checks checksums of parts": "ok",
    "lists parts with checksums": "ok",
    "names parts by their MD5": "ok",
    "lists open uploads": "ok",
    "completes only what is not there": "ok",
    "keeps checksums of multipart objects": "ok",
    "deletes only the version that is meant": "ok",
}
PERMISSIONS = {
    "s3:PutObject": "ok",
    "s3:GetObject": "ok",
    "s3:AbortMultipartUpload": "ok",
    "s3:ListMultipartUploadParts": "ok",
    "s3:ListBucketMultipartUploads": "ok",
    "s3:DeleteObject": "ok",
}


def assert_clean(server: ScriptedS3, before: list[str] | None = None) -> None:
    bucket = server.bucket(BUCKET)
    assert bucket.keys() == (before or [])
    assert bucket.uploads() == []


def test_a_write_test_finds_everything_and_leaves_nothing(s3: ScriptedS3) -> None:
    bucket = s3.bucket(BUCKET)
    bucket.put(f"{HERE.prefix}model.safetensors", b"somebody's")
    checks, test = write(s3)
    assert states(checks) == STORE | PERMISSIONS
    assert (test.leftovers, test.failure) == ([], None)
    assert_clean(s3, [f"{HERE.prefix}model.safetensors"])
    for request in s3.requests:
        if request.operation == "ListMultipartUploads":
            assert request.query["prefix"] == OURS
        else:
            assert request.key.startswith(OURS), request.operation


@pytest.mark.parametrize(
    ("quirk", "lacking"),
    [
        (
            Quirk.IGNORES_CHECKSUMS,
            {
                "checks checksums of objects",
                "checks checksums of parts",
                "keeps checksums of objects",
                "keeps checksums of multipart objects",
                "lists parts with checksums",
            },
        ),
        (Quirk.LISTS_PARTS_WITHOUT_CHECKSUMS, {"lists parts with checksums"}),
        (Quirk.ETAG_IS_NO_DIGEST, {"names parts by their MD5"}),
        (
            Quirk.IGNORES_CONDITIONS,
            {
                "creates only what is not there",
                "completes only what is not there",
                "deletes only the version that is meant",
            },
        ),
        (
            Quirk.IGNORES_COMPLETE_AND_DELETE_CONDITIONS,
            {"completes only what is not there", "deletes only the version that is meant"},
        ),
    ],
    ids=lambda value: value.name if isinstance(value, Quirk) else "",
)
def test_what_a_store_cannot_do(quirk: Quirk, lacking: set[str]) -> None:
    with ScriptedS3(buckets=[BUCKET], quirks=[quirk]) as server:
        checks, test = write(server)
        assert {name for name, check in checks.items() if check.state != "ok"} == lacking
        assert all(checks[name].detail.startswith("no: ") for name in lacking)
        assert not any(checks[name].required for name in lacking)
        assert_clean(server)
    assert test.leftovers == []


def test_an_echo_is_no_check() -> None:
    with ScriptedS3(buckets=[BUCKET], quirks=[Quirk.ECHOES_CHECKSUMS]) as server:
        checks, _ = write(server)
        assert checks["checks checksums of objects"].state == "missing"
        assert checks["checks checksums of parts"].state == "missing"
        assert_clean(server)


@pytest.mark.parametrize(
    ("denied", "missing", "required", "left"),
    [
        ("PutObject", "s3:PutObject", True, []),
        ("GetObject", "s3:GetObject", True, ["multipart"]),
        ("AbortMultipartUpload", "s3:AbortMultipartUpload", True, []),
        ("ListMultipartUploadParts", "s3:ListMultipartUploadParts", False, []),
        ("ListBucketMultipartUploads", "s3:ListBucketMultipartUploads", False, []),
        ("DeleteObject", "s3:DeleteObject", False, ["object", "multipart"]),
    ],
)
def test_a_refused_write_is_a_missing_permission(
    s3: ScriptedS3, denied: str, missing: str, required: bool, left: list[str]
) -> None:
    s3.deny(denied)
    checks, test = write(s3)
    assert checks[missing].state == "missing"
    assert checks[missing].required == required
    assert [name for name in states(checks, "s3:") if checks[name].state == "missing"] == [missing]
    objects = [text for text in test.leftovers if not text.startswith("multipart upload")]
    assert objects == [f"s3://{BUCKET}/{OURS}{name} (denied)" for name in left]
    uploads = [text for text in test.leftovers if text.startswith("multipart upload")]
    assert len(uploads) == len(s3.bucket(BUCKET).uploads())
    assert bool(uploads) == (denied == "AbortMultipartUpload")


@pytest.mark.parametrize(
    ("denied", "settings"),
    [
        ("kms:GenerateDataKey", S3Settings(sse="aws:kms")),
        ("kms:Decrypt", S3Settings(sse="aws:kms")),
        ("PutObjectTagging", S3Settings(tags={"a": "b"})),
    ],
)
def test_what_the_settings_need_on_top(s3: ScriptedS3, denied: str, settings: S3Settings) -> None:
    name = denied if ":" in denied else f"s3:{denied}"
    checks, _ = write(s3, settings, kms=settings.uses_kms)
    assert checks[name].state == "ok"
    s3.deny(denied)
    checks, test = write(s3, settings, kms=settings.uses_kms)
    missing = [check.name for check in checks.values() if check.state == "missing"]
    assert name in missing
    assert {found for found in missing if ":" in found} == {name}
    assert checks[name].required
    s3.allow(denied)
    assert test.leftovers == [] or denied == "kms:Decrypt"


def test_a_kms_key_makes_etags_no_digests(s3: ScriptedS3) -> None:
    s3.bucket(BUCKET).settings.encryption = ("aws:kms", KEY, False)
    checks, _ = write(s3, kms=True)
    assert {name for name, check in checks.items() if check.state != "ok"} == {
        "names parts by their MD5"
    }
    assert states(checks, "kms:") == {"kms:GenerateDataKey": "ok", "kms:Decrypt": "ok"}


def test_a_store_that_does_not_take_checksums(s3: ScriptedS3) -> None:
    refusal = Status(501, "NotImplemented", "Header 'x-amz-checksum-crc64nvme' not implemented")
    s3.script(Fault("PutObject", refusal, occurrence=None))
    checks, test = write(s3)
    assert isinstance(test.failure, StagingError)
    assert test.failure.reference == "checksum-unsupported"
    assert checks["takes these requests"].state == "missing"
    assert_clean(s3)


@pytest.mark.parametrize(
    "operation",
    [
        "PutObject",
        "HeadObject",
        "GetObject",
        "CreateMultipartUpload",
        "UploadPart",
        "ListParts",
        "CompleteMultipartUpload",
        "DeleteObject",
    ],
)
@pytest.mark.parametrize("executed", [True, False])
def test_an_interruption_anywhere_leaves_nothing(
    s3: ScriptedS3, operation: str, executed: bool
) -> None:
    """As a signal does it: an exception that is no `Exception`, out of the middle of a request."""

    class Signalled(BaseException):
        pass

    met: list[str] = []

    def interrupting(real: Callable[..., Any], name: str, *given: Any) -> Any:
        if name != operation or met:
            return real(*given)
        if executed:
            answer = real(*given)  # what is refused on purpose is no place to be interrupted at
            if isinstance(answer, tuple):
                answer[1].close()
        met.append(name)
        raise Signalled

    with wire_to(s3) as wire:
        between = mock.Mock(
            call=lambda name, parameters: interrupting(wire.call, name, name, parameters),
            get=lambda parameters: interrupting(wire.get, "GetObject", parameters),
        )
        test = WriteTest(S3Store(between, BUCKET), HERE, NO_SETTINGS, token=TOKEN, kms=False)
        with pytest.raises(Signalled):
            test.run()
    assert met == [operation]
    assert test.leftovers == []
    assert_clean(s3)


# Policies

GUIDE = """\
{
  "Version": "2012-10-17",
  "Statement": [
    {
      "Sid": "S3ListBucket",
      "Effect": "Allow",
      "Action": ["s3:ListBucket"],
      "Resource": "arn:aws:s3:::<bucket-name>"
    },
    {
      "Sid": "S3ReadObjects",
      "Effect": "Allow",
      "Action": ["s3:GetObject", "s3:GetObjectTagging"],
      "Resource": "arn:aws:s3:::<bucket-name>/*"
    },
    {
      "Sid": "S3GetBucketLocation",
      "Effect": "Allow",
      "Action": ["s3:GetBucketLocation"],
      "Resource": "*"
    },
    {
      "Sid": "KMSDecryptForS3",
      "Effect": "Allow",
      "Action": ["kms:Decrypt", "kms:DescribeKey"],
      "Resource": "<s3-kms-key-arn>"
    }
  ]
}"""
"""The permissions policy of the vendor's installation guide, `inference-pod-policy.json`."""


def test_the_pods_policy_is_the_guides_to_the_letter() -> None:
    expected = GUIDE.replace("<bucket-name>", "models").replace("<s3-kms-key-arn>", KEY)
    assert dumps(pod_policy("models", kms_key=KEY)) == expected
    assert json.loads(expected) == pod_policy("models", kms_key=KEY)


def test_without_a_kms_key_the_guide_says_to_leave_its_statement_out() -> None:
    expected = json.loads(GUIDE.replace("<bucket-name>", "models"))
    expected["Statement"] = [
        statement for statement in expected["Statement"] if statement["Sid"] != "KMSDecryptForS3"
    ]
    assert pod_policy("models", kms_key=None) == expected


def test_the_uploads_policy_writes_below_the_prefix_alone() -> None:
    policy = upload_policy(HERE, kms_key=KEY, tags=True)
    listing, publishing, key = policy["Statement"]
    assert listing["Resource"] == "arn:aws:s3:::models"
    assert "Condition" not in listing
    assert publishing["Resource"] == "arn:aws:s3:::models/checkpoints/laguna-xs/*"
    assert set(publishing["Action"]) >= {"s3:PutObject", "s3:GetObject", "s3:PutObjectTagging"}
    assert (key["Action"], key["Resource"]) == (["kms:GenerateDataKey", "kms:Decrypt"], KEY)
    plain = upload_policy(HERE, kms_key=None)
    assert len(plain["Statement"]) == 2
    assert "s3:PutObjectTagging" not in plain["Statement"][1]["Action"]


def test_the_uploads_policy_has_what_the_doctor_looks_for(s3: ScriptedS3) -> None:
    s3.bucket(BUCKET).settings.encryption = ("aws:kms", KEY, False)
    settings = S3Settings(tags={"a": "b"})
    written, _ = write(s3, settings, kms=True)
    names = {
        name
        for name, check in (look(s3, settings) | written).items()
        if check.group == "permission"
    }
    policy = upload_policy(HERE, kms_key=KEY, tags=True)
    granted = {action for statement in policy["Statement"] for action in statement["Action"]}
    assert names == granted


def test_a_prefix_is_no_pattern_of_iam() -> None:
    location = S3Location.parse("s3://models/a*b/${x}/")
    resource = upload_policy(location, kms_key=None)["Statement"][1]["Resource"]
    assert resource == "arn:aws:s3:::models/a${*}b/${$}{x}/*"
    root = upload_policy(S3Location("models", ""), kms_key=None)
    assert root["Statement"][1]["Resource"] == "arn:aws:s3:::models/*"


@pytest.mark.parametrize(
    ("region", "partition"),
    [
        (None, "aws"),
        ("us-east-1", "aws"),
        ("cn-north-1", "aws-cn"),
        ("us-gov-west-1", "aws-us-gov"),
    ],
)
def test_partitions(region: str | None, partition: str) -> None:
    assert partition_of(region) == partition
    policy = pod_policy("models", kms_key=None, partition=partition)
    assert policy["Statement"][0]["Resource"] == f"arn:{partition}:s3:::models"


@pytest.mark.parametrize(
    ("key", "region", "account", "arn"),
    [
        (KEY, None, None, KEY),
        (KEY.rpartition("/")[2], "us-east-1", "111122223333", KEY),
        (KEY.rpartition("/")[2], "us-east-1", None, None),
        ("alias/models", "us-east-1", "111122223333", None),
        ("arn:aws:kms:us-east-1:111122223333:alias/models", None, None, None),
        (None, "us-east-1", "111122223333", None),
    ],
)
def test_the_arn_of_a_key(
    key: str | None, region: str | None, account: str | None, arn: str | None
) -> None:
    assert key_arn(key, region=region, account=account) == arn


def test_policies_are_json_whatever_is_in_them() -> None:
    odd = S3Location.parse('s3://models/"Action": [/x/')
    policy = upload_policy(odd, kms_key=KEY)
    assert json.loads(dumps(policy)) == policy
    both = {"upload": policy, "pod": pod_policy("models", kms_key=None)}
    assert json.loads(dumps(both)) == both
    assert re.search(r'"Action": \["s3:ListBucket"\]', dumps(both))


# Lines


def test_a_line_that_says_missing_wins_and_one_that_knows_nothing_loses() -> None:
    def line(state: str, text: str) -> Check:
        return Check("permission", "s3:X", state, "", text)  # type: ignore[arg-type]

    for read, written, left in [
        ("unknown", "ok", "written"),
        ("unknown", "missing", "written"),
        ("ok", "missing", "written"),
        ("missing", "ok", "read"),
        ("ok", "ok", "read"),
    ]:
        assert [
            check.detail for check in merged([line(read, "read")], [line(written, "written")])
        ] == [left]
