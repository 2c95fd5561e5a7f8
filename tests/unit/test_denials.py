"""What a refusal names: the action, the resource, who asked, and the statement that a policy lacks."""

from __future__ import annotations

import json
from typing import Any

import pytest

from staging.store.denials import Refusal
from staging.store.refusals import translate
from staging.vocabulary.errors import AccessDenied, StagingError
from staging.wire.boto import BotoWire, Connection
from staging.wire.wire import WireError
from tests.support.s3server import Fault, ScriptedS3, Status

SESSION = "arn:aws:sts::111122223333:assumed-role/inference-pod-role/botocore-session-1"
ROLE = "arn:aws:iam::111122223333:role/inference-pod-role"
KEY = "arn:aws:kms:eu-west-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"
BUCKET = "arn:aws:s3:::models"
OBJECT = f"{BUCKET}/laguna-xs/.checkpoint/manifest.json"


def said(action: str, resource: str, why: str, principal: str = SESSION) -> str:
    """A refusal in S3's words of today."""
    return (
        f'User: {principal} is not authorized to perform: {action} on resource: "{resource}" {why}'
    )


def lacking(policy: str, action: str) -> str:
    return f"because no {policy} allows the {action} action"


def refused(operation: str, message: str, *, status: int = 403, code: str = "AccessDenied") -> Any:
    wire = WireError(operation, "answer", code, message, status)
    error = translate(wire, "models", "laguna-xs/a")
    assert isinstance(error, AccessDenied)
    for text in (error.message, str(error.hint), *getattr(error, "__notes__", ())):
        assert text.isprintable()
    return error


def statement(error: StagingError) -> dict[str, Any]:
    """The statement of the one note."""
    [note] = error.__notes__
    found: dict[str, Any] = json.loads(note[note.index("{") :])
    return found


def test_a_refusal_is_read_whole() -> None:
    lack = lacking("identity-based policy", "s3:GetObject")
    assert Refusal.read(said("s3:GetObject", f"{BUCKET}/a b", lack)) == Refusal(
        SESSION, "s3:GetObject", f"{BUCKET}/a b", None, "identity-based policy"
    )
    deny = "with an explicit deny in a service control policy"
    plain = f"User: {SESSION} is not authorized to perform: kms:Decrypt on resource: {KEY} {deny}"
    assert Refusal.read(plain) == Refusal(
        SESSION, "kms:Decrypt", KEY, "service control policy", None
    )
    nothing = Refusal.read("Access Denied")
    assert nothing == Refusal(None, None, None, None, None)
    assert (nothing.partition, nothing.role) == ("aws", None)


@pytest.mark.parametrize(
    ("principal", "role", "partition"),
    [
        (SESSION, ROLE, "aws"),
        ("arn:aws:iam::111122223333:user/ops/ann", "arn:aws:iam::111122223333:user/ops/ann", "aws"),
        ("arn:aws-cn:sts::111122223333:assumed-role/r/s", "arn:aws-cn:iam::111122223333:role/r", "aws-cn"),
    ],
)  # fmt: skip
def test_the_role_behind_a_session(principal: str, role: str, partition: str) -> None:
    found = Refusal.read(said("s3:GetObject", "x", "", principal))
    assert (found.role, found.partition) == (role, partition)


@pytest.mark.parametrize(
    ("operation", "action", "resource"),
    [
        ("GetObject", "s3:GetObject", f"{BUCKET}/*"),
        ("HeadObject", "s3:GetObject", f"{BUCKET}/*"),
        ("ListObjectsV2", "s3:ListBucket", BUCKET),
        ("ListMultipartUploads", "s3:ListBucketMultipartUploads", BUCKET),
        ("ListParts", "s3:ListMultipartUploadParts", f"{BUCKET}/*"),
        ("PutObject", "s3:PutObject", f"{BUCKET}/*"),
        ("CompleteMultipartUpload", "s3:PutObject", f"{BUCKET}/*"),
        ("AbortMultipartUpload", "s3:AbortMultipartUpload", f"{BUCKET}/*"),
        ("DeleteObject", "s3:DeleteObject", f"{BUCKET}/*"),
    ],
)
@pytest.mark.parametrize("told", [True, False])
def test_the_statement_is_there_whether_the_store_names_it_or_not(
    operation: str, action: str, resource: str, told: bool
) -> None:
    lack = lacking("identity-based policy", action)
    error = refused(operation, said(action, OBJECT, lack) if told else "Access Denied")
    assert error.reference == "denied"
    if told or action != "s3:GetObject":
        assert f"the role needs {action} on {resource}" in str(error.hint)
        assert statement(error) == {"Effect": "Allow", "Action": action, "Resource": resource}
    else:  # without a reason it may also be an object that is not there
        assert str(error.hint).startswith(
            "there may be no such prefix or object: check the spelling"
        )
        assert f"the role needs s3:ListBucket on {BUCKET}, " in str(error.hint)
        assert f"s3:GetObject on {resource}" in str(error.hint)
        assert statement(error) == {
            "Effect": "Allow",
            "Action": ["s3:ListBucket", action],
            "Resource": [BUCKET, resource],
        }
    assert error.__notes__[0].startswith("to allow it: in a policy of the role {")
    if told:
        assert SESSION in error.message
        assert action in error.message
        assert "missing, or denied" not in error.message


def test_a_missing_object_that_only_who_may_list_is_told_of() -> None:
    lack = lacking("identity-based policy", "s3:ListBucket")
    error = refused("GetObject", said("s3:ListBucket", BUCKET, lack))
    assert "there is no such object" in str(error.hint)
    assert f"s3:ListBucket on {BUCKET}" in str(error.hint)
    assert statement(error)["Resource"] == BUCKET
    assert "missing, or denied" in error.message


@pytest.mark.parametrize(
    ("policy", "hint"),
    [
        ("service control policy", "the organization's"),
        ("resource-based policy", "the policy of the bucket"),
        ("VPC endpoint policy", "runs the network"),
        ("permissions boundary", "on the role itself"),
        ("session policy", "how the credentials are made"),
        ("identity-based policy", "an identity-based policy denies it"),
    ],
)
def test_an_explicit_deny_is_not_mended_by_a_statement(policy: str, hint: str) -> None:
    article = "an" if policy.startswith("i") else "a"
    deny = f"with an explicit deny in {article} {policy}"
    for operation, action, resource in (
        ("GetObject", "s3:GetObject", OBJECT),
        ("GetObject", "kms:Decrypt", KEY),
    ):
        error = refused(operation, said(action, resource, deny))
        assert f"{policy} denies it, whatever else is allowed" in str(error.hint)
        assert hint in str(error.hint)
        assert not hasattr(error, "__notes__")
        assert error.reference == ("kms-key" if action.startswith("kms") else "denied")


def test_a_bucket_of_another_account_has_to_let_the_role_in() -> None:
    lack = lacking("resource-based policy", "s3:GetObject")
    error = refused("GetObject", said("s3:GetObject", OBJECT, lack))
    assert "in the policy of the bucket" in error.__notes__[0]
    assert statement(error)["Principal"] == {"AWS": ROLE}


def test_an_endpoint_that_lets_only_some_requests_through() -> None:
    lack = lacking("VPC endpoint policy", "s3:ListBucket")
    error = refused("ListObjectsV2", said("s3:ListBucket", BUCKET, lack))
    assert "VPC endpoint policy does not allow it" in str(error.hint)
    assert "in the policy of the VPC endpoint" in error.__notes__[0]
    assert statement(error)["Principal"] == "*"


def test_an_organization_that_does_not_allow_it() -> None:
    lack = lacking("service control policy", "s3:GetObject")
    error = refused("GetObject", said("s3:GetObject", OBJECT, lack))
    assert "in the service control policy" in error.__notes__[0]
    assert "Principal" not in statement(error)


@pytest.mark.parametrize("action", ["kms:Decrypt", "kms:GenerateDataKey"])
def test_a_key_is_named(action: str) -> None:
    operation = "GetObject" if action == "kms:Decrypt" else "PutObject"
    lack = lacking("identity-based policy", action)
    error = refused(operation, said(action, KEY, lack))
    assert error.reference == "kms-key"
    assert f"{action} on {KEY}" in str(error.hint)
    assert statement(error) == {"Effect": "Allow", "Action": action, "Resource": KEY}


def test_a_statement_for_nobody_in_particular_opens_nothing_to_the_world() -> None:
    said_of_nobody = (
        f'User: anonymous is not authorized to perform: s3:GetObject on resource: "{OBJECT}" because'
        " no resource-based policy allows the s3:GetObject action"
    )
    error = refused("GetObject", said_of_nobody)
    assert statement(error)["Principal"] == {"AWS": "ARN-OF-THE-ROLE"}


def test_a_keys_own_policy() -> None:
    lack = lacking("resource-based policy", "kms:Decrypt")
    error = refused("GetObject", said("kms:Decrypt", KEY, lack))
    assert "here the key's policy lacks it" in str(error.hint)
    assert "in the policy of the key" in error.__notes__[0]
    assert statement(error) == {
        "Effect": "Allow",
        "Action": "kms:Decrypt",
        "Resource": "*",
        "Principal": {"AWS": ROLE},
    }


def test_a_key_without_a_name_has_a_place_to_fill_in() -> None:
    gone = "The ciphertext refers to a customer master key that does not exist"
    error = refused("GetObject", gone)
    assert statement(error)["Resource"] == "ARN-OF-THE-KEY"
    disabled = refused("GetObject", f"{KEY} is disabled.", status=400, code="KMS.DisabledException")
    assert "disabled" in str(disabled.hint)
    assert not hasattr(disabled, "__notes__")


def test_a_setting_that_may_not_be_seen_needs_no_statement() -> None:
    error = refused("GetBucketVersioning", "Access Denied")
    assert "nothing here needs it" in str(error.hint)
    assert not hasattr(error, "__notes__")


def test_the_reason_survives_the_wire(
    scripted_s3: ScriptedS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Messages of stores are cut, but not those with two ARNs and the reason at their end."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    long = f"{BUCKET}/{'deep/' * 80}model.safetensors"
    lack = lacking("VPC endpoint policy", "s3:GetObject")
    refusal = Status(403, "AccessDenied", said("s3:GetObject", long, lack))
    scripted_s3.script(
        Fault("GetObject", refusal), Fault("GetObject", Status(500, "X", "y" * 5000))
    )
    wire = BotoWire(Connection(endpoint_url=scripted_s3.endpoint_url))
    try:
        with pytest.raises(WireError) as caught:
            wire.get({"Bucket": "models", "Key": "a"})
    finally:
        wire.close()
    assert caught.value.message.endswith(lack)
    assert Refusal.read(caught.value.message).lack == "VPC endpoint policy"
