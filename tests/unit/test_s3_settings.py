"""Settings of operators reach the requests they belong to, and refusals of them say what to do."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import botocore.session
import pytest

from staging.store.denials import denied_action
from staging.store.refusals import translate
from staging.store.s3 import S3Store
from staging.store.settings import NO_SETTINGS, S3Settings
from staging.vocabulary import crc64
from staging.vocabulary.errors import AccessDenied, StagingError, Stalled, UsageError
from staging.wire.boto import BotoWire, Connection
from staging.wire.wire import WireError
from tests.support.s3server import OWNER, Fault, Request, ScriptedS3, Status
from tests.support.stores import credentials

BUCKET = "settings"
KEY = "arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"
BODY = b"of a checkpoint"
CRC = crc64.to_text(crc64.crc64(BODY))
ALL_OPERATIONS = {
    "HeadObject",
    "GetObject",
    "ListObjectsV2",
    "PutObject",
    "DeleteObject",
    "CreateMultipartUpload",
    "UploadPart",
    "CompleteMultipartUpload",
    "AbortMultipartUpload",
    "ListMultipartUploads",
    "ListParts",
}
"""What `S3Store` asks for."""

EVERYTHING = S3Settings(
    sse="aws:kms",
    kms_key_id=KEY,
    bucket_key=True,
    storage_class="INTELLIGENT_TIERING",
    tags={"team": "inference + co", "model": "laguna/xs=2"},
    expected_owner=OWNER,
    requester_pays=True,
)


@contextmanager
def store_with(server: ScriptedS3, settings: S3Settings) -> Iterator[S3Store]:
    server.bucket(BUCKET)
    with mock.patch.dict(os.environ, credentials(server)):
        wire = BotoWire(Connection(endpoint_url=server.endpoint_url))
        try:
            yield S3Store(wire, BUCKET, settings)
        finally:
            wire.close()


def use_everything(store: S3Store) -> None:
    """Every operation of the store at least once."""
    etag = store.create("m/a", BODY, crc64nvme=CRC).etag
    store.head("m/a")
    store.read("m/a", limit=100)
    store.read_into("m/a", 0, memoryview(bytearray(4)), etag=store.head("m/a").etag)
    list(store.list_objects("m/"))
    store.list_level("m/")
    upload = store.create_multipart_upload("m/b")
    part = store.upload_part(upload, 1, bytearray(BODY), crc64nvme=CRC)
    list(store.list_parts(upload))
    list(store.list_multipart_uploads("m/"))
    store.complete_multipart_upload(upload, [part], crc64nvme=CRC)
    store.abort_multipart_upload(store.create_multipart_upload("m/c"))
    store.delete("m/a", etag=etag)


CREATION = {
    "x-amz-server-side-encryption": "aws:kms",
    "x-amz-server-side-encryption-aws-kms-key-id": KEY,
    "x-amz-server-side-encryption-bucket-key-enabled": "true",
    "x-amz-storage-class": "INTELLIGENT_TIERING",
    "x-amz-tagging": "team=inference%20%2B%20co&model=laguna%2Fxs%3D2",
}


def given(request: Request, *names: str) -> dict[str, str]:
    return {name: request.headers[name] for name in names if name in request.headers}


def test_every_setting_is_on_the_requests_it_belongs_to(scripted_s3: ScriptedS3) -> None:
    scripted_s3.bucket(BUCKET).settings.requester_pays = True
    with store_with(scripted_s3, EVERYTHING) as store:
        use_everything(store)
    requests = list(scripted_s3.requests)
    assert {request.operation for request in requests} == ALL_OPERATIONS
    for request in requests:
        assert request.status is not None
        assert request.status < 300
        assert given(request, "x-amz-expected-bucket-owner", "x-amz-request-payer") == {
            "x-amz-expected-bucket-owner": OWNER,
            "x-amz-request-payer": "requester",
        }
        creates = request.operation in ("PutObject", "CreateMultipartUpload")
        assert given(request, *CREATION) == (CREATION if creates else {}), request.operation
    kept = scripted_s3.bucket(BUCKET).object("m/b").headers
    assert {name: kept.get(name) for name in CREATION if name != "x-amz-tagging"} == {
        name: value for name, value in CREATION.items() if name != "x-amz-tagging"
    }
    assert kept["x-amz-tagging-count"] == "2"


def test_without_settings_nothing_is_added(scripted_s3: ScriptedS3) -> None:
    with store_with(scripted_s3, NO_SETTINGS) as store:
        use_everything(store)
    for request in scripted_s3.requests:
        extra = [*CREATION, "x-amz-expected-bucket-owner", "x-amz-request-payer"]
        assert given(request, *extra) == {}


def test_the_api_knows_every_parameter_where_it_is_used() -> None:
    service = botocore.session.get_session().get_service_model("s3")

    def known(operation: str) -> set[str]:
        shape = service.operation_model(operation).input_shape
        return set() if shape is None else set(shape.members)

    for operation in ALL_OPERATIONS:
        assert EVERYTHING.parameters(operation).keys() <= known(operation), operation
    for operation in ("HeadBucket", "GetBucketVersioning", "GetBucketPolicyStatus"):
        assert EVERYTHING.bucket_parameters().keys() <= known(operation), operation


# Values


@pytest.mark.parametrize(
    ("values", "reference"),
    [
        ({"sse": "rot13"}, "encryption"),
        ({"kms_key_id": KEY}, "encryption"),
        ({"sse": "AES256", "kms_key_id": KEY}, "encryption"),
        ({"sse": "aws:kms", "kms_key_id": ""}, "encryption"),
        ({"sse": "aws:kms", "kms_key_id": "two words"}, "encryption"),
        ({"sse": "aws:kms", "kms_key_id": "arn:aws:s3:::bucket"}, "encryption"),
        ({"bucket_key": True}, "encryption"),
        ({"sse": "aws:kms:dsse", "bucket_key": False}, "encryption"),
        ({"storage_class": "GLACIER"}, "storage-class"),
        ({"storage_class": "DEEP_ARCHIVE"}, "storage-class"),
        ({"storage_class": "deep_archive"}, "storage-class"),
        ({"storage_class": "EXPRESS_ONEZONE"}, "storage-class"),
        ({"storage_class": "no class"}, "storage-class"),
        ({"storage_class": ""}, "storage-class"),
        ({"tags": {str(n): "" for n in range(11)}}, "tags"),
        ({"tags": {"": "v"}}, "tags"),
        ({"tags": {"k" * 129: "v"}}, "tags"),
        ({"tags": {"k": "v" * 257}}, "tags"),
        ({"tags": {"aws:team": "v"}}, "tags"),
        ({"tags": {"AWS:team": "v"}}, "tags"),
        ({"tags": {"k": "a,b"}}, "tags"),
        ({"tags": {"k": "a\nb"}}, "tags"),
        ({"expected_owner": "1111-2222-3333"}, "expected-owner"),
        ({"expected_owner": ""}, "expected-owner"),
    ],
)
def test_what_cannot_be_is_refused_before_any_request(
    values: dict[str, Any], reference: str
) -> None:
    with pytest.raises(UsageError) as caught:
        S3Settings(**values)
    assert caught.value.reference == reference
    assert caught.value.hint
    assert caught.value.message.isprintable()


@pytest.mark.parametrize(
    "values",
    [
        {"sse": "AES256"},
        {"sse": "aws:kms"},
        {"sse": "aws:kms", "kms_key_id": "alias/models", "bucket_key": False},
        {"sse": "aws:kms:dsse", "kms_key_id": "1234abcd-12ab-34cd-56ef-1234567890ab"},
        {"sse": "aws:kms", "kms_key_id": "arn:aws-cn:kms:cn-north-1:111122223333:alias/models"},
        {"storage_class": "GLACIER_IR"},
        {"storage_class": "a-class-of-ceph"},
        {"tags": {"équipe": "modèles 日本", "k": "_.:/=+-@"}},
        {"tags": {"k" * 128: "v" * 256}},
    ],
)
def test_what_can_be_is_taken(values: dict[str, Any]) -> None:
    S3Settings(**values)


def test_tags_cannot_change_behind_the_settings() -> None:
    tags = {"a": "1"}
    settings = S3Settings(tags=tags)
    tags["b"] = "2"
    assert dict(settings.tags) == {"a": "1"}


# Refusals


def refused(
    code: str,
    status: int,
    message: str = "",
    *,
    operation: str = "PutObject",
    settings: S3Settings = NO_SETTINGS,
) -> StagingError:
    error = WireError(operation, "answer", code, message, status)
    found = translate(error, "bucket", "m/a", settings)
    assert found.side == "store"
    assert found.hint
    return found


NOT_ALLOWED = "User: arn:aws:iam::111122223333:user/u is not authorized to perform: {}"
DENY = NOT_ALLOWED + ' on resource: "arn" with an explicit deny in a resource-based policy'


@pytest.mark.parametrize(
    ("code", "status", "message", "kind", "reference", "hint"),
    [
        # a KMS key
        ("AccessDenied", 403, NOT_ALLOWED.format("kms:GenerateDataKey"), AccessDenied, "kms-key",
         "kms:GenerateDataKey"),
        ("AccessDenied", 403, NOT_ALLOWED.format("kms:Decrypt"), AccessDenied, "kms-key",
         "kms:Decrypt"),
        ("AccessDenied", 403, "The ciphertext refers to a customer master key that does not exist",
         AccessDenied, "kms-key", "kms:Decrypt"),
        ("KMS.DisabledException", 400, "arn is disabled.", AccessDenied, "kms-key", "disabled"),
        ("KMS.KMSInvalidStateException", 400, "pending deletion", AccessDenied, "kms-key",
         "deleted"),
        ("KMS.NotFoundException", 400, "Invalid arn us-west-2", AccessDenied, "kms-key", "region"),
        ("KMS.SomethingElse", 400, "", AccessDenied, "kms-key", "kms:GenerateDataKey"),
        # permissions and policies
        ("AccessDenied", 403, NOT_ALLOWED.format("s3:PutObjectTagging"), AccessDenied, "denied",
         "s3:PutObjectTagging, or leave --tag out"),
        ("AccessDenied", 403, DENY.format("s3:PutObject"), AccessDenied, "denied",
         "a resource-based policy denies it"),
        ("AccessDenied", 403, DENY.format("s3:PutObject"), AccessDenied, "denied",
         "--sign-payload"),
        ("AccessDenied", 403, NOT_ALLOWED.format("s3:PutObject"), AccessDenied, "denied",
         "the role needs s3:PutObject"),
        ("AccessDenied", 403, "Access Denied", AccessDenied, "denied", "--request-payer"),
        ("AccessDenied", 403, "Access Denied", AccessDenied, "denied",
         "--sse, --kms-key-id or --sign-payload"),
        # settings
        ("InvalidStorageClass", 400, "", UsageError, "storage-class", "--storage-class"),
        ("InvalidTag", 400, "", UsageError, "tags", "--tag"),
        ("InvalidEncryptionAlgorithmError", 400, "", UsageError, "encryption", "--sse"),
        ("InvalidBucketOwnerAWSAccountID", 400, "", UsageError, "expected-owner",
         "--expected-bucket-owner"),
        # what other stores do not know
        ("InvalidArgument", 400, "Unsupported header 'x-amz-checksum-algorithm' received for this call.",
         StagingError, "checksum-unsupported", "doctor --write-test"),
        ("NotImplemented", 501, "Header 'x-amz-checksum-crc64nvme' with value 'x' not implemented",
         StagingError, "checksum-unsupported", "CRC64NVME"),
        ("MissingContentLength", 411, "You must provide the Content-Length HTTP header.",
         StagingError, "length-required", "proxy"),
        ("411", 411, "", StagingError, "length-required", "proxy"),
        ("NotImplemented", 501, "A header you provided implies functionality that is not implemented",
         StagingError, "request", "doctor --write-test"),
    ],
)  # fmt: skip
def test_a_refusal_says_what_to_do(
    code: str, status: int, message: str, kind: type[StagingError], reference: str, hint: str
) -> None:
    error = refused(code, status, message)
    assert type(error) is kind
    assert error.reference == reference
    assert hint in str(error.hint)


@pytest.mark.parametrize("code", ["InvalidArgument", "NotImplemented", "InvalidRequest"])
def test_a_store_that_knows_no_such_setting(code: str) -> None:
    settings = S3Settings(storage_class="STANDARD_IA", sse="aws:kms", tags={"a": "b"})
    error = refused(code, 501 if code == "NotImplemented" else 400, settings=settings)
    assert (type(error), error.reference) == (UsageError, "store-settings")
    assert "--sse aws:kms, --storage-class STANDARD_IA, --tag" in str(error.hint)
    later = refused(code, 400, operation="CompleteMultipartUpload", settings=settings)
    assert later.reference == "request"


def test_a_wrong_owner_is_among_the_doubts_when_one_is_expected() -> None:
    settings = S3Settings(expected_owner=OWNER)
    for operation in ("ListObjectsV2", "GetObject", "HeadObject", "PutObject"):
        error = refused(
            "AccessDenied", 403, "Access Denied", operation=operation, settings=settings
        )
        assert f"{OWNER} (--expected-bucket-owner)" in str(error.hint)
    named = refused("AccessDenied", 403, NOT_ALLOWED.format("s3:PutObject"), settings=settings)
    assert "--expected-bucket-owner" not in str(named.hint)


def test_who_pays_already_is_not_told_to() -> None:
    error = refused("AccessDenied", 403, settings=S3Settings(requester_pays=True))
    assert "--request-payer" not in str(error.hint)


def test_a_stalled_connection_has_a_code_of_its_own() -> None:
    error = translate(WireError("GetObject", "stalled", "ReadTimeoutError", "slow"), "b", "m/a")
    assert isinstance(error, Stalled)
    assert (error.code, error.reference, error.side) == (18, "stalled", "store")
    assert "run again" in str(error.hint)


@pytest.mark.parametrize(
    ("message", "action"),
    [
        (NOT_ALLOWED.format("kms:GenerateDataKey on resource: arn"), "kms:GenerateDataKey"),
        (DENY.format("s3:PutObject"), "s3:PutObject"),
        ("Access Denied", None),
    ],
)
def test_the_permission_a_refusal_names(message: str, action: str | None) -> None:
    assert denied_action(message) == action


# Over the wire


def test_a_wrong_owner_is_refused_everything(scripted_s3: ScriptedS3) -> None:
    with store_with(scripted_s3, S3Settings(expected_owner="999988887777")) as store:
        for ask in (lambda: store.list_level("m/"), lambda: store.read("m/a", limit=1)):
            with pytest.raises(AccessDenied) as caught:
                ask()
            assert "999988887777" in str(caught.value.hint)


def test_a_bucket_where_the_requester_pays(scripted_s3: ScriptedS3) -> None:
    scripted_s3.bucket(BUCKET).settings.requester_pays = True
    with store_with(scripted_s3, NO_SETTINGS) as store:
        with pytest.raises(AccessDenied) as caught:
            store.list_level("m/")
        assert "--request-payer" in str(caught.value.hint)
    with store_with(scripted_s3, S3Settings(requester_pays=True)) as store:
        assert store.list_level("m/").objects == ()


def test_a_key_that_may_not_be_used(scripted_s3: ScriptedS3) -> None:
    scripted_s3.deny("kms:GenerateDataKey")
    with store_with(scripted_s3, S3Settings(sse="aws:kms")) as store:
        with pytest.raises(AccessDenied) as caught:
            store.create("m/a", BODY, crc64nvme=CRC)
        assert caught.value.reference == "kms-key"
        scripted_s3.allow("kms:GenerateDataKey")
        scripted_s3.deny("kms:Decrypt")
        store.create("m/a", BODY, crc64nvme=CRC)
        with pytest.raises(AccessDenied) as caught:
            store.read("m/a", limit=100)
        assert caught.value.reference == "kms-key"
        upload = store.create_multipart_upload("m/b")
        with pytest.raises(AccessDenied) as caught:
            store.upload_part(upload, 1, bytearray(BODY), crc64nvme=CRC)
        assert caught.value.reference == "kms-key"


def test_a_storage_class_the_store_does_not_have(scripted_s3: ScriptedS3) -> None:
    with store_with(scripted_s3, S3Settings(storage_class="FAST")) as store:
        with pytest.raises(UsageError) as caught:
            store.create("m/a", BODY, crc64nvme=CRC)
        with pytest.raises(UsageError):
            store.create_multipart_upload("m/b")
    assert (caught.value.reference, caught.value.code) == ("storage-class", 2)


def test_tags_without_the_permission_to_tag(scripted_s3: ScriptedS3) -> None:
    scripted_s3.deny("PutObjectTagging")
    settings = S3Settings(tags={"a": "b"})
    with store_with(scripted_s3, settings) as store, pytest.raises(AccessDenied) as caught:
        store.create_multipart_upload("m/b")
    assert "s3:PutObjectTagging" in str(caught.value.hint)


def test_a_policy_that_wants_signed_bodies(scripted_s3: ScriptedS3) -> None:
    unsigned = Fault(
        "PutObject",
        Status(403, "AccessDenied", DENY.format("s3:PutObject")),
        occurrence=None,
        where=lambda request: request.content_sha256 == "UNSIGNED-PAYLOAD",
    )
    scripted_s3.script(unsigned)
    with store_with(scripted_s3, NO_SETTINGS) as store, pytest.raises(AccessDenied) as caught:
        store.create("m/a", BODY, crc64nvme=CRC)
    assert "--sign-payload" in str(caught.value.hint)
    with mock.patch.dict(os.environ, credentials(scripted_s3)):
        wire = BotoWire(Connection(endpoint_url=scripted_s3.endpoint_url, sign_payload=True))
        S3Store(wire, BUCKET).create("m/a", BODY, crc64nvme=CRC)
        wire.close()
    assert scripted_s3.bucket(BUCKET).get("m/a") == BODY
