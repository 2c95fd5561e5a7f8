"""What the product relies on an S3 for when operators set encryption, classes, tags and owners.

As in `test_servers.py`: `S3` says what S3 answers, `LACKS` what another server was seen to answer instead,
and the test asserts exactly that. The doctor's findings about the same servers stand beside it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from unittest import mock

import pytest

from staging.doctor import ReadTest, WriteTest, look_at_setup, merged
from staging.store.bucket import S3Bucket
from staging.store.s3 import S3Store
from staging.store.settings import NO_SETTINGS
from staging.vocabulary.location import S3Location
from staging.wire.boto import BotoWire, Connection
from tests.conformance.subject import Subject, attempt, outcome, subject_on
from tests.support.s3server import OWNER, ScriptedS3
from tests.support.stores import credentials

KEY = "arn:aws:kms:us-east-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"

S3: dict[str, object] = {
    "sse-s3": "AES256",
    "sse-kms": ("aws:kms", KEY, True),
    "sse-dsse": "aws:kms:dsse",
    "sse-kms-multipart": ("aws:kms", KEY),
    "sse-unknown": "400 InvalidEncryptionAlgorithmError",
    "etag-under-kms": "other",
    "class": "STANDARD_IA",
    "class-multipart": "STANDARD_IA",
    "class-unknown": "400 InvalidStorageClass",
    "tags": 2,
    "tags-multipart": 2,
    "owner-right": "200",
    "owner-wrong": "403 AccessDenied",
    "owner-wrong-listing": "403 AccessDenied",
    "owner-malformed": "400 InvalidBucketOwnerAWSAccountID",
    "payer": "200",
    "versioning-never": None,
    "encryption-default": "AES256",
    "lifecycle-never": "404 NoSuchLifecycleConfiguration",
    "lock-never": "404 ObjectLockConfigurationNotFoundError",
    "policy-never": "404 NoSuchBucketPolicy",
    "location": None,
    "parts-of-nothing": "404 NoSuchUpload",
}
"""What S3 answers, by feature."""

LACKS: dict[str, dict[str, object]] = {
    "scripted": {},
    "moto": {
        "sse-unknown": "200",
        "etag-under-kms": "md5",
        "owner-wrong": "200",
        "owner-wrong-listing": "200",
        "owner-malformed": "200",
        "encryption-default": "404 ServerSideEncryptionConfigurationNotFoundError",
    },
    "rclone": {
        "sse-unknown": "200",
        "etag-under-kms": "md5",
        "class-unknown": "200",
        "tags": None,
        "tags-multipart": None,
        "owner-wrong": "200",
        "owner-wrong-listing": "200",
        "owner-malformed": "200",
        # These four are answered with a listing of the bucket.
        "encryption-default": "200",
        "lifecycle-never": "200",
        "lock-never": "200",
        "policy-never": "200",
    },
}
"""Where a server differs from S3: what it was seen to answer instead."""

CANNOT: dict[str, set[str]] = {
    "scripted": {"aborts unfinished uploads"},
    "moto": {
        "aborts unfinished uploads",
        "checks checksums of objects",
        "checks checksums of parts",
        "keeps checksums of objects",
        "lists parts with checksums",
    },
    "rclone": {
        "aborts unfinished uploads",
        "default encryption",
        "object lock",
        "private",
        "checks checksums of objects",
        "checks checksums of parts",
        "creates only what is not there",
        "completes only what is not there",
        "deletes only the version that is meant",
        "keeps checksums of multipart objects",
        "lists parts with checksums",
    },
}
"""What the doctor finds missing or unknown, by server."""


@pytest.fixture(params=["scripted", "moto", "rclone"])
def subject(request: pytest.FixtureRequest, unique_bucket: str) -> Iterator[Subject]:
    if request.param == "scripted":
        with ScriptedS3() as scripted, subject_on("scripted", scripted, unique_bucket) as made:
            yield made
    else:
        server = request.getfixturevalue(f"{request.param}_server")
        with subject_on(request.param, server, unique_bucket) as made:
            yield made


def expect(subject: Subject, feature: str, observed: object) -> None:
    expected = LACKS[subject.name].get(feature, S3[feature])
    assert observed == expected, f"{subject.name}: {feature}"


def test_the_table_names_known_features_and_real_differences() -> None:
    for server, differences in LACKS.items():
        for feature, answer in differences.items():
            assert feature in S3, f"{server}: {feature}"
            assert answer != S3[feature], f"{server}: {feature} is no difference"


def told(subject: Subject, key: str, *names: str) -> object:
    head = subject.client.head_object(Bucket=subject.bucket, Key=key)
    values = tuple(head.get(name) for name in names)
    return values[0] if len(values) == 1 else values


def test_encryption(subject: Subject) -> None:
    subject.put("s3", b"x", ServerSideEncryption="AES256")
    expect(subject, "sse-s3", told(subject, "s3", "ServerSideEncryption"))
    kms = {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": KEY}
    etag = subject.put("kms", b"x", **kms, BucketKeyEnabled=True)
    names = ("ServerSideEncryption", "SSEKMSKeyId", "BucketKeyEnabled")
    expect(subject, "sse-kms", told(subject, "kms", *names))
    is_md5 = etag == hashlib.md5(b"x").hexdigest()
    expect(subject, "etag-under-kms", "md5" if is_md5 else "other")
    subject.put("dsse", b"x", ServerSideEncryption="aws:kms:dsse")
    expect(subject, "sse-dsse", told(subject, "dsse", "ServerSideEncryption"))
    upload = subject.open("parts", **kms)
    subject.complete("parts", upload, [subject.part("parts", upload, 1, b"x")])
    expect(subject, "sse-kms-multipart", told(subject, "parts", *names[:2]))
    odd = {"Bucket": subject.bucket, "Key": "odd", "ServerSideEncryption": "rot13"}
    expect(subject, "sse-unknown", outcome(lambda: subject.client.put_object(**odd)))


def test_storage_classes(subject: Subject) -> None:
    subject.put("class", b"x", StorageClass="STANDARD_IA")
    expect(subject, "class", told(subject, "class", "StorageClass"))
    upload = subject.open("parts", StorageClass="STANDARD_IA")
    subject.complete("parts", upload, [subject.part("parts", upload, 1, b"x")])
    expect(subject, "class-multipart", told(subject, "parts", "StorageClass"))
    client, where = subject.client, {"Bucket": subject.bucket, "Key": "odd"}
    expect(subject, "class-unknown", outcome(lambda: client.put_object(**where, StorageClass="F")))


def tag_count(subject: Subject, key: str) -> object:
    answer = subject.client.get_object(Bucket=subject.bucket, Key=key)
    answer["Body"].close()
    return answer.get("TagCount")


def test_tags(subject: Subject) -> None:
    subject.put("tagged", b"x", Tagging="a=1&b=x%3Dy")
    expect(subject, "tags", tag_count(subject, "tagged"))
    upload = subject.open("parts", Tagging="a=1&b=x%3Dy")
    subject.complete("parts", upload, [subject.part("parts", upload, 1, b"x")])
    expect(subject, "tags-multipart", tag_count(subject, "parts"))


def test_owners_and_payers(subject: Subject) -> None:
    client, put = subject.client, {"Bucket": subject.bucket, "Key": "k", "Body": b"x"}
    owner = OWNER if subject.name == "scripted" else "123456789012"  # moto's own

    def as_owned_by(account: str) -> str:
        return outcome(lambda: client.put_object(**put, ExpectedBucketOwner=account))

    expect(subject, "owner-right", as_owned_by(owner))
    expect(subject, "owner-wrong", as_owned_by("999988887777"))
    expect(subject, "owner-malformed", as_owned_by("me"))
    listing = {"Bucket": subject.bucket, "ExpectedBucketOwner": "999988887777"}
    refused = outcome(lambda: client.list_objects_v2(**listing))
    expect(subject, "owner-wrong-listing", refused)
    expect(subject, "payer", outcome(lambda: client.put_object(**put, RequestPayer="requester")))


def test_settings_of_a_bucket(subject: Subject) -> None:
    client, where = subject.client, {"Bucket": subject.bucket}
    expect(subject, "versioning-never", client.get_bucket_versioning(**where).get("Status"))
    answer = attempt(lambda: client.get_bucket_encryption(**where))
    if not isinstance(answer, str):
        rules = answer.get("ServerSideEncryptionConfiguration", {}).get("Rules", [])
        answer = rules[0]["ApplyServerSideEncryptionByDefault"]["SSEAlgorithm"] if rules else "200"
    expect(subject, "encryption-default", answer)
    for feature, ask in [
        ("lifecycle-never", client.get_bucket_lifecycle_configuration),
        ("lock-never", client.get_object_lock_configuration),
        ("policy-never", client.get_bucket_policy_status),
    ]:
        expect(subject, feature, outcome(lambda ask=ask: ask(**where)))  # type: ignore[misc]
    location = attempt(lambda: client.get_bucket_location(**where).get("LocationConstraint"))
    expect(subject, "location", location or None)


def test_an_upload_that_never_was(subject: Subject) -> None:
    nowhere = {"Bucket": subject.bucket, "Key": "k", "UploadId": "0123456789abcdef"}
    expect(subject, "parts-of-nothing", outcome(lambda: subject.client.list_parts(**nowhere)))


def test_what_the_doctor_finds(subject: Subject) -> None:
    here = S3Location(subject.bucket, "m/")
    with mock.patch.dict(os.environ, credentials(subject.server)):
        wire = BotoWire(Connection(endpoint_url=subject.server.endpoint_url))
        try:
            store = S3Store(wire, subject.bucket)
            setup = look_at_setup(S3Bucket(wire, subject.bucket), here)
            read = ReadTest(store, here, token="0123abcd").run(NO_SETTINGS, kms=False)
            test = WriteTest(store, here, NO_SETTINGS, token="0123abcd", kms=False)
            test.run()
        finally:
            wire.close()
    checks = merged([*setup.checks, *read], test.checks)
    assert {check.name for check in checks if check.state != "ok"} == CANNOT[subject.name]
    assert (test.leftovers, test.failure) == ([], None)
    assert subject.keys() == []
