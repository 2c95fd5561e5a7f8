"""`staging adopt` as a process: what it prints, sends and leaves (I4, I12); and a node without it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.programs import Programs
from tests.support.checkpoints import read_tree, vendor
from tests.support.s3server import Bucket, ScriptedS3

BUCKET = "models"
URI = f"s3://{BUCKET}/checkpoints/laguna-xs/"
PREFIX = "checkpoints/laguna-xs/"
FILES = vendor(1, 3_000_000)
TOTAL = sum(map(len, FILES.values()))


@pytest.fixture
def bucket(scripted_s3: ScriptedS3) -> Bucket:
    found = scripted_s3.bucket(BUCKET)
    for name, data in FILES.items():
        found.put(PREFIX + name, data)
    return found


@pytest.fixture
def programs(tmp_path: Path, scripted_s3: ScriptedS3, bucket: Bucket) -> Programs:
    return Programs(tmp_path, scripted_s3)


def snapshot(bucket: Bucket) -> dict[str, bytes]:
    return {key: bucket.get(key) for key in bucket}


def test_from_a_copied_prefix_to_a_node(programs: Programs, bucket: Bucket) -> None:
    before = snapshot(bucket)
    refused = programs.download(URI, "node", expect=10)
    assert refused.reference == "not-published"
    outcome = programs.staging("adopt", URI)
    manifest = json.loads(bucket.get(PREFIX + ".checkpoint/manifest.json"))
    assert outcome.stdout == f"{URI} {manifest['id']}\n"
    assert f"MODEL_EXPECT_ID={manifest['id']}" in outcome.stderr.splitlines()[-1]
    assert "warning" not in outcome.stderr
    after = snapshot(bucket)
    del after[PREFIX + ".checkpoint/manifest.json"]
    assert after == before
    programs.staging("verify", URI)
    programs.staging("verify", URI, "--level", "digest")
    programs.download(URI, "node", "--expect-id", manifest["id"])
    assert read_tree(programs.directory / "node") == FILES
    again = programs.staging("adopt", URI)
    assert again.stdout == outcome.stdout
    assert "already published" in again.stderr


def test_without_adopting_a_node_is_unverified(programs: Programs, scripted_s3: ScriptedS3) -> None:
    outcome = programs.download(URI, "node", "--unverified", "allow")
    assert outcome.stdout.endswith(" unverified\n")
    assert read_tree(programs.directory / "node") == FILES
    programs.download("verify", "node", "--level", "digest")
    adopted = programs.staging("adopt", URI, "--json").document["adopt"]
    assert adopted["id"] == outcome.stdout.split()[1]
    scripted_s3.requests.clear()
    outcome = programs.download(URI, "node", "--expect-id", adopted["id"])
    assert outcome.stdout == f"node {adopted['id']}\n"
    assert not list(scripted_s3.requests)


def test_json(programs: Programs, scripted_s3: ScriptedS3) -> None:
    planned = programs.staging("adopt", URI, "--dry-run", "--json").document
    assert planned["plan"] == {
        "uri": URI,
        "files": len(FILES),
        "total_size": TOTAL,
        "already_published": False,
        "bytes_to_read": TOTAL,
        "warnings": [],
    }
    result = programs.staging("adopt", URI, "--hash", "sha256", "--json").document["adopt"]
    assert result == {
        "uri": URI,
        "id": result["id"],
        "files": len(FILES),
        "total_size": TOTAL,
        "already_published": False,
        "read_bytes": TOTAL,
        "not_proven": [],
        "archive_sha256": None,
        "warnings": [],
    }
    shown = programs.staging("show", URI, "--json").document["checkpoint"]
    assert (shown["id"], shown["hash"]) == (result["id"], "sha256-16m")
    assert shown["source"]["kind"] == "prefix"
    planned = programs.staging("adopt", URI, "--dry-run", "--json").document
    assert planned["plan"]["already_published"]
    assert planned["plan"]["bytes_to_read"] == 0


def test_a_dry_run_lists_the_files_and_reads_no_weights(
    programs: Programs, scripted_s3: ScriptedS3, bucket: Bucket
) -> None:
    before = snapshot(bucket)
    outcome = programs.staging("adopt", URI, "--dry-run")
    assert snapshot(bucket) == before
    assert scripted_s3.requests.sent("GetObject") < 10_000
    assert {request.method for request in scripted_s3.requests} <= {"GET", "HEAD"}
    for name in FILES:
        assert any(line.endswith(f"  {name}") for line in outcome.stdout.splitlines())
    assert "3.0 MB" in outcome.stdout


def test_a_broken_copy_is_refused_before_its_weights_are_read(
    programs: Programs, scripted_s3: ScriptedS3, bucket: Bucket
) -> None:
    bucket.put(PREFIX + "model.safetensors", FILES["model.safetensors"][:-1])
    before = snapshot(bucket)
    outcome = programs.staging("adopt", URI, expect=17)
    assert outcome.reference == "safetensors-broken"
    assert f"`staging check {URI}`" in outcome.hint
    assert snapshot(bucket) == before
    assert scripted_s3.requests.sent("GetObject") < 10_000
    programs.staging("check", URI, expect=17)


def test_settings_of_objects_are_on_the_manifest(
    programs: Programs, scripted_s3: ScriptedS3
) -> None:
    programs.staging("adopt", URI, "--sse", "aws:kms", "--kms-key-id", "key-1", "--tag", "team=ml")
    (written,) = scripted_s3.requests.of("PutObject")
    assert written.headers["x-amz-server-side-encryption"] == "aws:kms"
    assert written.headers["x-amz-server-side-encryption-aws-kms-key-id"] == "key-1"
    assert written.headers["x-amz-tagging"] == "team=ml"
