"""--layout-check, --ignore, --allow-file and --strict of `upload` and `adopt`: refused or recorded (I16)."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from staging.vocabulary.manifest import Manifest
from tests.cli.programs import Outcome, Programs
from tests.support.checkpoints import tar_of
from tests.support.layouts import Files, broken, sharded
from tests.support.s3server import Bucket, ScriptedS3

BUCKET = "models"
URI = f"s3://{BUCKET}/checkpoints/m/"
PREFIX = "checkpoints/m/"
MANIFEST = PREFIX + ".checkpoint/manifest.json"
SUMMARY = (
    "family",
    "weight_files",
    "unread",
    "tensors",
    "parameters",
    "weight_bytes",
    "dtypes",
    "tensor_parallel",
)
"""What `layout` has of every checkpoint, behind `checked`, `warnings` and what was decided."""

Publish = Callable[..., Outcome]


@pytest.fixture
def bucket(scripted_s3: ScriptedS3) -> Bucket:
    return scripted_s3.bucket(BUCKET)


@pytest.fixture
def programs(tmp_path: Path, scripted_s3: ScriptedS3, bucket: Bucket) -> Programs:
    return Programs(tmp_path, scripted_s3)


@pytest.fixture(params=["file", "pipe", "adopt"])
def publish(request: pytest.FixtureRequest, programs: Programs, bucket: Bucket) -> Publish:
    """Publishes files: from an archive, from a pipe, or where another tool has put them."""

    def run(files: Files, *arguments: str, expect: int = 0) -> Outcome:
        archive = programs.directory / "model.tar"
        archive.write_bytes(tar_of(files))
        if request.param == "adopt":
            for name, data in files.items():
                bucket.put(PREFIX + name, data)
            command = ["adopt", URI, *arguments]
            return programs.staging(*command, expect=expect)
        piped = request.param == "pipe"
        return programs.staging(
            "upload",
            "-" if piped else "model.tar",
            URI,
            *arguments,
            expect=expect,
            stdin=archive if piped else None,
        )

    return run


def layout(bucket: Bucket) -> dict[str, Any]:
    return dict(Manifest.decode(bucket.get(MANIFEST)).layout)


def check_refused(bucket: Bucket, outcome: Outcome, rule: str) -> None:
    assert outcome.reference == rule
    assert MANIFEST not in bucket
    assert not bucket.uploads()


def test_the_summary_is_in_the_manifest_and_the_same_from_everywhere(
    programs: Programs, bucket: Bucket
) -> None:
    files = sharded()
    (programs.directory / "model.tar").write_bytes(tar_of(files))
    archive = programs.directory / "model.tar"
    found = []
    for number, (source, stdin) in enumerate([("model.tar", None), ("-", archive)]):
        programs.staging("upload", source, f"s3://{BUCKET}/m{number}/", stdin=stdin)
        key = f"m{number}/.checkpoint/manifest.json"
        found.append(Manifest.decode(bucket.get(key)).layout)
    for name, data in files.items():
        bucket.put(PREFIX + name, data)
    programs.staging("adopt", URI)
    found.append(layout(bucket))
    assert found[0] == found[1] == found[2]
    assert {tuple(one) for one in found} == {("checked", "warnings", *SUMMARY)}
    assert found[0]["checked"] is True
    assert found[0]["warnings"] == []
    assert (found[0]["family"], found[0]["weight_files"]) == ("LlamaForCausalLM", 2)
    assert found[0]["weight_bytes"] == 1024 + 6 + 6


def test_a_rule_that_is_left_out_stands_in_the_manifest(publish: Publish, bucket: Bucket) -> None:
    files = broken("index-tensor-elsewhere")
    check_refused(bucket, publish(files, expect=17), "index-tensor-elsewhere")
    publish(files, "--ignore", "json-broken", expect=17)
    publish(files, "--ignore", "index-tensor-elsewhere", "--ignore", "json-broken")
    found = layout(bucket)
    assert tuple(found) == ("checked", "warnings", "ignored", *SUMMARY)
    assert found["checked"] is True
    assert found["ignored"] == ["index-tensor-elsewhere", "json-broken"]


def test_a_warning_that_is_left_out_is_not_told(publish: Publish, bucket: Bucket) -> None:
    outcome = publish(
        broken("chat-template-missing"), "--ignore", "chat-template-missing", "--strict"
    )
    assert "warning" not in outcome.stderr
    found = layout(bucket)
    assert (found["warnings"], found["ignored"]) == ([], ["chat-template-missing"])


def test_a_file_that_is_allowed_stands_in_the_manifest(publish: Publish, bucket: Bucket) -> None:
    files = broken("pickle") | {"lib/kernel.so": b"x"}
    refused = publish(files, "--allow-file", "pytorch_model.bin", expect=17)
    check_refused(bucket, refused, "executable-content")
    assert "'lib/kernel.so'" in refused.error
    # Only the whole path allows a file.
    check_refused(
        bucket,
        publish(files, "--allow-file", "pytorch_model.bin", "--allow-file", "kernel.so", expect=17),
        "executable-content",
    )
    publish(files, "--allow-file", "pytorch_model.bin", "--allow-file", "lib/kernel.so")
    found = layout(bucket)
    assert found["allowed"] == ["lib/kernel.so", "pytorch_model.bin"]
    assert "ignored" not in found


def test_strict_refuses_a_warning(publish: Publish, bucket: Bucket) -> None:
    files = broken("chat-template-missing")
    check_refused(bucket, publish(files, "--strict", expect=17), "chat-template-missing")
    outcome = publish(files, "--json")
    [result] = [value for key, value in outcome.document.items() if key in ("upload", "adopt")]
    assert len(result["warnings"]) == 1
    assert "chat template" in result["warnings"][0]
    found = layout(bucket)
    assert found["warnings"] == ["chat-template-missing"]
    assert "strict" not in found


def test_strict_lets_advice_pass(publish: Publish, bucket: Bucket) -> None:
    publish(broken("generation-config-missing"), "--strict")
    assert layout(bucket)["checked"] is True


def test_off_publishes_and_says_so(publish: Publish, bucket: Bucket) -> None:
    outcome = publish(broken("safetensors-broken"), "--layout-check", "off")
    assert "warning" not in outcome.stderr
    found = layout(bucket)
    assert tuple(found) == ("checked", "warnings", *SUMMARY)
    assert (found["checked"], found["warnings"], found["unread"]) == (False, [], 1)


def test_a_decision_of_the_publisher_holds_on_the_node(
    publish: Publish, programs: Programs, bucket: Bucket
) -> None:
    files = broken("index-tensor-elsewhere") | {"pytorch_model.bin": b"x"}
    publish(files, "--ignore", "index-tensor-elsewhere", "--allow-file", "pytorch_model.bin")
    programs.download(URI, "node")
    assert (programs.directory / "node/pytorch_model.bin").read_bytes() == b"x"


@pytest.mark.parametrize("command", ["upload", "adopt"])
@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("pickles", "did you mean pickle"),
        ("Index_Shards_Missing", "did you mean index-shard-missing"),
        ("zzzzzzzzzz", "see --list-rules of `staging check`"),
        ("a\nb\x1b[31m", "--list-rules"),
    ],
)
def test_an_unknown_rule_is_a_usage_error_with_what_was_meant(
    programs: Programs, scripted_s3: ScriptedS3, command: str, name: str, meant: str
) -> None:
    (programs.directory / "model.tar").write_bytes(tar_of(sharded()))
    before = len(scripted_s3.requests)
    source = ["model.tar"] if command == "upload" else []
    refused = programs.staging(command, *source, URI, "--ignore", name, expect=2)
    assert meant in refused.stderr
    assert "\x1b" not in refused.stderr
    assert "there is no rule" in refused.error
    assert len(scripted_s3.requests) == before


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        (os.fsdecode(b"a\xff.pkl"), "control character U+DCFF"),
        ("./pytorch_model.bin", "."),
        ("/pytorch_model.bin", "absolute"),
        ("", "empty"),
    ],
)
def test_a_path_that_no_file_has_is_a_usage_error(
    programs: Programs, scripted_s3: ScriptedS3, path: str, reason: str
) -> None:
    """Not found out when all is sent and the manifest is to be written."""
    (programs.directory / "model.tar").write_bytes(tar_of(broken("pickle")))
    refused = programs.staging("upload", "model.tar", URI, "--allow-file", path, expect=2)
    assert "no file of a checkpoint has the path" in refused.error
    assert reason in refused.error
    assert list(scripted_s3.requests) == []


def test_a_dry_run_applies_the_same_rules(programs: Programs, scripted_s3: ScriptedS3) -> None:
    archive = programs.directory / "model.tar"
    archive.write_bytes(tar_of(broken("pickle")))
    for source, stdin in (("model.tar", None), ("-", archive)):
        command = ["upload", source, URI, "--dry-run"]
        refused = programs.staging(*command, stdin=stdin, expect=17)
        assert refused.reference == "pickle"
        programs.staging(*command, "--allow-file", "pytorch_model.bin", stdin=stdin)
    assert list(scripted_s3.requests) == []


@pytest.mark.parametrize("how", ["flag", "variable"])
@pytest.mark.parametrize("when", ["early", "end"])
def test_when_a_pipe_is_judged(
    programs: Programs, scripted_s3: ScriptedS3, bucket: Bucket, when: str, how: str
) -> None:
    """Weights behind what is wrong are sent when it is judged at the end, and only then."""
    shard = bytes(6 * 1024 * 1024)  # large enough to go as parts
    files = {"config.json": b"<!DOCTYPE html><html></html>", "model.safetensors": shard}
    archive = programs.directory / "model.tar"
    archive.write_bytes(tar_of(files))
    command = ["upload", "-", URI]
    if how == "flag":
        refused = programs.staging(*command, "--layout-check", when, stdin=archive, expect=17)
    else:
        refused = programs.staging(*command, stdin=archive, expect=17, STAGING_LAYOUT_CHECK=when)
    assert refused.reference == "web-page"
    assert "staging check" in refused.hint
    keys = {request.key for request in scripted_s3.requests.of("UploadPart")}
    assert keys == (set() if when == "early" else {PREFIX + "model.safetensors"})
    assert not list(bucket)
    assert not bucket.uploads()
