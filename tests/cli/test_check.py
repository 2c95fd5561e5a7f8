"""`staging check` as people and scripts meet it: what it reads, prints and refuses (I13).

Nothing but headers and small documents is read of a prefix: at most two requests per shard, one per document.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from staging.layout.rules import RULES
from tests.cli.programs import Programs
from tests.support.layouts import BASES, broken, sharded
from tests.support.s3server import Bucket, ScriptedS3

BUCKET = "models"
PREFIX = "checkpoints/laguna/"
URI = f"s3://{BUCKET}/{PREFIX}"


@pytest.fixture
def bucket(scripted_s3: ScriptedS3) -> Bucket:
    return scripted_s3.bucket(BUCKET)


@pytest.fixture
def programs(tmp_path: Path, scripted_s3: ScriptedS3, bucket: Bucket) -> Programs:
    return Programs(tmp_path, scripted_s3)


def put(bucket: Bucket, files: dict[str, bytes]) -> None:
    for path, data in files.items():
        bucket.put(PREFIX + path, data)


def test_of_a_prefix_headers_and_documents_are_read_and_no_more(
    programs: Programs, scripted_s3: ScriptedS3, bucket: Bucket
) -> None:
    files = sharded() | {"README.md": b"words", "modeling.py": b"code"}
    put(bucket, files)
    programs.staging("check", URI)
    asked = Counter(
        request.key.removeprefix(PREFIX)
        for request in scripted_s3.requests
        if request.operation == "GetObject"
    )
    assert asked.keys() == set(sharded())
    assert all(
        count <= (2 if path.endswith(".safetensors") else 1) for path, count in asked.items()
    )


def test_the_report_in_words(programs: Programs, bucket: Bucket) -> None:
    put(bucket, sharded())
    lines = programs.staging("check", URI, "--gpu", "h200").stdout.splitlines()
    assert lines == [
        "model: LlamaForCausalLM",
        "weights: 1.0 kB in 2 files, 7 tensors, 524 parameters",
        "types: BF16 1.0 kB, U8 12 B",
        "tensor-parallel sizes: 1, 2, 4, 8, 16",
        *(line for line in lines if " x H200: fits; " in line),
        f"{URI} ok: 7 files",
    ]
    assert len(lines) == 10


def test_the_report_for_scripts(programs: Programs, bucket: Bucket) -> None:
    put(bucket, sharded())
    found = programs.staging("check", URI, "--gpu", "H200", "--json").document["check"]
    assert found["findings"] == []
    assert found["model"]["family"] == "LlamaForCausalLM"
    assert found["model"]["tensors"] == 7
    assert found["model"]["dtypes"] == {"BF16": 1024, "U8": 12}
    assert [fit["count"] for fit in found["fit"]] == [1, 2, 4, 8, 16]
    assert all(fit["fits"] and fit["assumptions"] for fit in found["fit"])
    assert programs.staging("check", URI, "--json").document["check"]["fit"] == []


def test_the_vendors_configuration_is_unknown_not_guessed(
    programs: Programs, bucket: Bucket
) -> None:
    put(bucket, BASES["bundle"]())
    outcome = programs.staging("check", URI)
    assert "model: unknown" in outcome.stdout
    assert "sizes: unknown: what config.yaml means is not published" in outcome.stdout


def test_a_refusal_names_the_first_rule_and_shows_all(programs: Programs, bucket: Bucket) -> None:
    files = broken("index-shard-missing")
    files["laguna.tar"] = b"x"
    put(bucket, files)
    refused = programs.staging("check", URI, expect=17)
    assert refused.reference == "archive-inside"
    assert "[index-shard-missing]" in refused.stdout
    document = programs.staging("check", URI, "--json", expect=17).document
    assert document["check"]["passed"] is False
    found = {finding["rule"]: finding for finding in document["check"]["findings"]}
    assert found["index-shard-missing"]["field"] == "weight_map"
    assert found["index-shard-missing"]["value"] == "model-00002-of-00002.safetensors"


def test_rules_are_left_out_by_name(programs: Programs, bucket: Bucket) -> None:
    put(bucket, broken("index-shard-missing"))
    programs.staging("check", URI, "--ignore", "index-shard-missing")


def test_a_rule_that_does_not_exist_is_a_usage_error_with_the_one_that_was_meant(
    programs: Programs,
) -> None:
    refused = programs.staging("check", URI, "--ignore", "index-shards-missing", expect=2)
    assert "did you mean index-shard-missing" in refused.stderr


def test_strict_refuses_warnings_and_not_advice(programs: Programs, bucket: Bucket) -> None:
    put(bucket, broken("generation-config-missing"))
    assert "advice: " in programs.staging("check", URI, "--strict").stdout
    put(bucket, broken("chat-template-missing"))
    assert "warning: " in programs.staging("check", URI).stdout
    assert (
        programs.staging("check", URI, "--strict", expect=17).reference == "chat-template-missing"
    )


def test_a_pickle_passes_when_it_is_allowed_by_name(programs: Programs, bucket: Bucket) -> None:
    put(bucket, broken("pickle"))
    assert programs.staging("check", URI, expect=17).reference == "pickle"
    programs.staging("check", URI, "--allow-file", "pytorch_model.bin")


def test_all_rules_are_listed_without_a_target(programs: Programs) -> None:
    lines = programs.staging("check", "--list-rules").stdout.splitlines()
    assert [line.split()[2] for line in lines] == list(RULES)
    rules = programs.staging("check", "--list-rules", "--json").document["rules"]
    assert [rule["id"] for rule in rules] == list(RULES)
    assert {"family", "severities", "reason", "fix", "source"} < rules[0].keys()


def test_a_target_is_needed_for_anything_else(programs: Programs) -> None:
    assert "TARGET" in programs.staging("check", expect=2).stderr
