"""`staging doctor` as an operator runs it, and the options it shares with other commands (I12, I13)."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.programs import STAGING, TIMEOUT, Programs
from tests.support.s3server import OWNER, Bucket, Fault, Rule, ScriptedS3, Status
from tests.support.servers import Endpoint, plain_client

BUCKET = "models"
URI = f"s3://{BUCKET}/checkpoints/laguna-xs/"
KEY = "arn:aws:kms:us-east-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"
WRITES = {"PutObject", "CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload"}


@pytest.fixture
def bucket(scripted_s3: ScriptedS3) -> Bucket:
    return scripted_s3.bucket(BUCKET)


@pytest.fixture
def programs(tmp_path: Path, scripted_s3: ScriptedS3, bucket: Bucket) -> Iterator[Programs]:
    yield Programs(tmp_path, scripted_s3)
    assert not bucket.uploads()


def rows(stdout: str) -> dict[str, str]:
    """The state of each line of the table, by name."""
    lines = [line.strip().split("  ") for line in stdout.splitlines() if line.startswith("  ")]
    cells = [[cell.strip() for cell in line if cell.strip()] for line in lines]
    return {line[0]: line[1] for line in cells}


def test_a_healthy_bucket(programs: Programs, scripted_s3: ScriptedS3, bucket: Bucket) -> None:
    bucket.settings.lifecycle = (Rule(abort_after=7),)
    outcome = programs.staging("doctor", URI)
    assert outcome.stdout.startswith(f"{URI}\n\nwho and where\n")
    found = rows(outcome.stdout)
    assert found["s3:GetObject"] == "ok"
    assert found["s3:PutObject"] == "unknown"
    assert found["identity"] == "unknown"  # this store has no STS
    assert "not known: s3:PutObject" in outcome.stderr
    assert {request.method for request in scripted_s3.requests} <= {"GET", "HEAD", "POST"}
    [post] = [request for request in scripted_s3.requests if request.method == "POST"]
    assert post.bucket == ""  # STS is asked at the store's address, never at AWS

    outcome = programs.staging("doctor", URI, "--write-test")
    found = rows(outcome.stdout)
    assert {state for name, state in found.items() if name != "identity"} == {"ok"}
    assert outcome.stderr == "everything that is needed is there\n"
    assert len(bucket) == 0


def test_who_asks(tmp_path: Path, moto_server: Endpoint, unique_bucket: str) -> None:
    with plain_client(moto_server) as client:
        client.create_bucket(Bucket=unique_bucket)
    outcome = Programs(tmp_path, moto_server).staging("doctor", f"s3://{unique_bucket}/m/")
    assert "arn:aws:sts::123456789012:user/moto, account 123456789012" in outcome.stdout
    assert "from environment variables" in outcome.stdout
    assert moto_server.secret_key not in outcome.stdout + outcome.stderr


def test_the_document(programs: Programs) -> None:
    document = programs.staging("doctor", URI, "--json").document["doctor"]
    assert (document["uri"], document["write_test"], document["leftovers"]) == (URI, False, [])
    [listing] = [check for check in document["checks"] if check["name"] == "s3:ListBucket"]
    assert listing == {
        "group": "permission",
        "name": "s3:ListBucket",
        "state": "ok",
        "needed_for": "upload, pod",
        "detail": "nothing is below the prefix",
        "required": True,
        "hint": None,
    }


def test_a_missing_permission(programs: Programs, scripted_s3: ScriptedS3) -> None:
    scripted_s3.deny("GetObject")
    outcome = programs.staging("doctor", URI, expect=12)
    assert rows(outcome.stdout)["s3:GetObject"] == "missing"
    assert outcome.reference == "permissions-missing"
    assert outcome.error.endswith("may not do: s3:GetObject [permissions-missing]")
    assert "--policy both" in outcome.hint
    document = programs.staging("doctor", URI, "--json", expect=12).document
    assert document["error"]["reference"] == "permissions-missing"
    assert document["doctor"]["uri"] == URI


def test_what_nothing_needs_may_be_missing(programs: Programs, scripted_s3: ScriptedS3) -> None:
    scripted_s3.deny("ListBucketMultipartUploads")
    scripted_s3.deny("ListMultipartUploadParts")
    found = rows(programs.staging("doctor", URI).stdout)
    assert found["s3:ListMultipartUploadParts"] == "missing"


def test_leftovers_are_listed(programs: Programs, scripted_s3: ScriptedS3, bucket: Bucket) -> None:
    scripted_s3.deny("DeleteObject")
    outcome = programs.staging("doctor", URI, "--write-test")
    left = [line for line in outcome.stderr.splitlines() if line.startswith("left behind")]
    assert len(left) == len(bucket) == 2
    for key, line in zip(bucket.keys(), left, strict=True):
        assert key.startswith("checkpoints/laguna-xs/.checkpoint/doctor-")
        assert f"s3://{BUCKET}/{key} (denied)" in " ".join(left), line


def test_no_bucket(programs: Programs) -> None:
    outcome = programs.staging("doctor", "s3://no-such-bucket/m/", expect=10)
    assert outcome.reference == "bucket"


def test_a_store_that_lacks_what_uploads_need(programs: Programs, scripted_s3: ScriptedS3) -> None:
    refusal = Status(400, "InvalidArgument", "Unsupported header 'x-amz-checksum-crc64nvme'")
    scripted_s3.script(Fault("PutObject", refusal, occurrence=None))
    outcome = programs.staging("doctor", URI, "--write-test", expect=1)
    assert outcome.reference == "checksum-unsupported"
    assert rows(outcome.stdout)["takes these requests"] == "missing"


@pytest.mark.parametrize("operation", ["PutObject", "UploadPart", "CompleteMultipartUpload"])
def test_interrupted_it_cleans_up(
    programs: Programs, scripted_s3: ScriptedS3, bucket: Bucket, operation: str
) -> None:
    with (
        scripted_s3.hold(operation, before=False, occurrence=2) as hold,
        programs.started([*STAGING, "doctor", URI, "--write-test"]) as running,
    ):
        assert hold.arrived.wait(TIMEOUT)
        running.process.send_signal(signal.SIGINT)
        hold.release()
        running.process.communicate(timeout=TIMEOUT)
        assert running.process.returncode == 130
    assert len(bucket) == 0


# Policies


def test_policies(programs: Programs, scripted_s3: ScriptedS3, bucket: Bucket) -> None:
    bucket.settings.encryption = ("aws:kms", KEY, True)
    pod = json.loads(programs.staging("doctor", URI, "--policy", "pod").stdout)
    upload = json.loads(programs.staging("doctor", URI, "--policy", "upload").stdout)
    both = json.loads(programs.staging("doctor", URI, "--policy", "both").stdout)
    assert both == {"upload": upload, "pod": pod}
    assert pod["Statement"][-1]["Resource"] == upload["Statement"][-1]["Resource"] == KEY
    assert upload["Statement"][1]["Resource"] == f"arn:aws:s3:::{BUCKET}/checkpoints/laguna-xs/*"
    document = programs.staging("doctor", URI, "--policy", "pod", "--json").document
    assert document["policies"] == {"pod": pod}
    assert {request.method for request in scripted_s3.requests} <= {"GET", "HEAD"}


def test_policies_for_who_may_do_nothing_yet(programs: Programs, scripted_s3: ScriptedS3) -> None:
    for permission in ("ListBucket", "GetBucketLocation", "GetEncryptionConfiguration"):
        scripted_s3.deny(permission)
    outcome = programs.staging("doctor", URI, "--policy", "pod")
    assert len(json.loads(outcome.stdout)["Statement"]) == 3
    assert "the ARN of the KMS key is not known" in outcome.stderr
    given = programs.staging(
        *("doctor", URI, "--policy", "pod", "--sse", "aws:kms", "--kms-key-id", KEY)
    )
    assert json.loads(given.stdout)["Statement"][-1]["Resource"] == KEY
    assert given.stderr == ""


def test_a_policy_and_a_test_are_two_things(programs: Programs) -> None:
    outcome = programs.staging("doctor", URI, "--policy", "pod", "--write-test", expect=2)
    assert outcome.reference == "usage"


# Options


def test_options_reach_the_requests(
    programs: Programs, scripted_s3: ScriptedS3, bucket: Bucket
) -> None:
    bucket.settings.requester_pays = True
    programs.staging(
        *("doctor", URI, "--write-test", "--sse", "aws:kms", "--kms-key-id", KEY),
        *("--bucket-key", "on", "--storage-class", "STANDARD_IA", "--tag", "a=1", "--tag", "b=x=y"),
        *("--expected-bucket-owner", OWNER, "--request-payer", "requester", "--sign-payload"),
    )
    [put, *_] = [request for request in scripted_s3.requests if request.operation == "PutObject"]
    assert put.headers["x-amz-server-side-encryption-aws-kms-key-id"] == KEY
    assert put.headers["x-amz-server-side-encryption-bucket-key-enabled"] == "true"
    assert put.headers["x-amz-storage-class"] == "STANDARD_IA"
    assert put.headers["x-amz-tagging"] == "a=1&b=x%3Dy"
    assert put.headers["x-amz-expected-bucket-owner"] == OWNER
    assert put.headers["x-amz-request-payer"] == "requester"
    assert put.content_sha256 != "UNSIGNED-PAYLOAD"
    for request in scripted_s3.requests:
        if request.operation.startswith("GetBucket"):
            assert request.headers["x-amz-expected-bucket-owner"] == OWNER


def test_variables_do_as_the_options_do(programs: Programs, scripted_s3: ScriptedS3) -> None:
    programs.staging(
        "doctor",
        URI,
        "--write-test",
        STAGING_SSE="aws:kms",
        STAGING_KMS_KEY_ID=KEY,
        STAGING_BUCKET_KEY="off",
        STAGING_STORAGE_CLASS="INTELLIGENT_TIERING",
        STAGING_TAG="a=1 b=2",
        STAGING_EXPECTED_BUCKET_OWNER=OWNER,
        STAGING_REQUEST_PAYER="requester",
        STAGING_SIGN_PAYLOAD="1",
        STAGING_ENGINE="boto",
        STAGING_BANDWIDTH="100MB/s",
        STAGING_PATH_STYLE="on",
    )
    [put, *_] = [request for request in scripted_s3.requests if request.operation == "PutObject"]
    assert put.headers["x-amz-server-side-encryption-bucket-key-enabled"] == "false"
    assert put.headers["x-amz-tagging"] == "a=1&b=2"
    assert put.headers["x-amz-storage-class"] == "INTELLIGENT_TIERING"
    assert put.content_sha256 != "UNSIGNED-PAYLOAD"


@pytest.mark.parametrize(
    ("options", "reference", "hint"),
    [
        (["--kms-key-id", KEY], "encryption", "--sse aws:kms"),
        (["--storage-class", "GLACIER"], "storage-class", "INTELLIGENT_TIERING"),
        (["--tag", "novalue"], "tags", "KEY=VALUE"),
        (["--tag", "a=1", "--tag", "a=2"], "tags", "once for each key"),
        (["--expected-bucket-owner", "me"], "expected-owner", "12 digits"),
        (["--bandwidth", "fast"], "usage", "--help"),
        (["--bandwidth", "0.0001K"], "usage", "--help"),
        (["--engine", "steam"], "usage", "--help"),
    ],
)
def test_options_that_cannot_be(
    programs: Programs, scripted_s3: ScriptedS3, options: list[str], reference: str, hint: str
) -> None:
    outcome = programs.staging("doctor", URI, *options, expect=2)
    assert outcome.reference == reference
    assert hint in outcome.hint
    assert len(scripted_s3.requests) == 0


def test_a_wrong_owner_is_named(programs: Programs) -> None:
    outcome = programs.staging("doctor", URI, "--expected-bucket-owner", "999988887777", expect=12)
    assert "999988887777" in outcome.hint


def test_a_class_the_store_does_not_have(programs: Programs, bucket: Bucket) -> None:
    outcome = programs.staging(
        *("doctor", URI, "--write-test", "--storage-class", "FAST"), expect=2
    )
    assert outcome.reference == "storage-class"
    assert len(bucket) == 0


def test_the_downloader_takes_what_concerns_reading(programs: Programs) -> None:
    refused = programs.download(URI, "node", expect=12, MODEL_EXPECTED_BUCKET_OWNER="999988887777")
    assert "999988887777" in refused.hint
    paid = programs.download(
        *(URI, "node", "--request-payer", "requester"), expect=10, MODEL_BANDWIDTH="1GB"
    )
    assert paid.reference == "prefix-empty"


def test_help_is_there() -> None:
    shown = subprocess.run([*STAGING, "doctor", "--help"], capture_output=True, check=True)
    assert b"--write-test" in shown.stdout
