"""`staging preflight` as a process: bucket, findings, exit codes, pins and the report (I1, I13).

The two values files are the guides' examples, filled in; the bucket is a scripted S3 over HTTP.
"""

from __future__ import annotations

import os
import re
import stat
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from staging.cli.preflight import _write
from staging.vocabulary.errors import Conflict
from tests.cli.programs import STAGING, Programs
from tests.support.checkpoints import tar_of, vendor
from tests.support.s3server import Bucket, Fault, ScriptedS3, Status

GOLDEN = Path(__file__).parents[1] / "golden" / "values"
KEYS = ("laguna-m", "laguna-xs", "point")
BUCKET = "my-models"
READS = {"GetObject", "ListObjectsV2"}


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The objects of the three checkpoints that the example names, as `staging upload` leaves them."""
    directory = tmp_path_factory.mktemp("published")
    with ScriptedS3(buckets=[BUCKET]) as server:
        run = Programs(directory, server)
        for number, key in enumerate(KEYS):
            (directory / "model.tar").write_bytes(tar_of(vendor(number)))
            run.staging("upload", "model.tar", f"s3://{BUCKET}/checkpoints/{key}")
        bucket = server.bucket(BUCKET)
        return {key: bucket.get(key) for key in bucket.keys()}  # noqa: SIM118 - no mapping


@pytest.fixture
def bucket(scripted_s3: ScriptedS3, published: dict[str, bytes]) -> Bucket:
    bucket = scripted_s3.bucket(BUCKET)
    for key, data in published.items():
        bucket.put(key, data)
    return bucket


@pytest.fixture
def programs(tmp_path: Path, scripted_s3: ScriptedS3, bucket: Bucket) -> Programs:
    """Programs beside `values.yaml`, the example of the chart `inference`, and what it names published."""
    (tmp_path / "values.yaml").write_bytes((GOLDEN / "inference.yaml").read_bytes())
    return Programs(tmp_path, scripted_s3)


def change(programs: Programs, before: str, after: str) -> None:
    path = programs.directory / "values.yaml"
    text = path.read_text()
    assert text.count(before) == 1
    path.write_text(text.replace(before, after))


def ids(programs: Programs) -> dict[str, str]:
    found = programs.staging("ls", f"s3://{BUCKET}/", "--json").document["checkpoints"]
    return {entry["uri"].rstrip("/").rpartition("/")[2]: entry["id"] for entry in found}


def test_a_deployment_that_is_ready(programs: Programs, scripted_s3: ScriptedS3) -> None:
    outcome = programs.staging("preflight", "values.yaml")
    assert set(scripted_s3.requests.operations()) == READS
    assert outcome.stderr == ""
    first, head, *rows = outcome.stdout.splitlines()
    assert first == "values.yaml: chart inference, 3 models"
    assert head.split()[:3] == ["model", "state", "type"]
    assert [row.split()[:4] for row in rows[:3]] == [
        ["laguna-m", "ok", "agent", "4"],
        ["laguna-xs", "ok", "agent_small", "1"],
        ["point", "ok", "completion", "1"],
    ]
    assert (
        rows[3] == "6 GPUs in 3 pods: 1 node of p5e.48xlarge (8 H200) when packed well, 2 GPUs left"
    )
    assert "deploy/preflight-job.yaml" in rows[-1]


def test_the_values_of_a_release_come_through_a_pipe(programs: Programs) -> None:
    values = programs.directory / "values.yaml"
    outcome = programs.staging("preflight", "-", stdin=values)
    assert outcome.stdout.startswith("standard input: chart inference, 3 models\n")
    shown = programs.staging("preflight", "-", "--pin", "--dry-run", stdin=values)
    assert shown.stdout.count("# checkpoint id: sha256:") == len(KEYS)
    refused = programs.staging("preflight", "-", "--pin", stdin=values, expect=2)
    assert "--pin writes to VALUES" in refused.error
    command = ["sh", "-c", 'exec "$@" 0>write-only', "sh", *STAGING, "preflight", "-"]
    assert programs.run(command, expect=1).reference == "values-file"


def test_a_pipe_that_does_not_block_is_read_to_its_end(programs: Programs) -> None:
    values = (programs.directory / "values.yaml").read_bytes()
    mine, theirs = os.pipe()
    os.set_blocking(mine, False)
    with (
        os.fdopen(mine, "rb") as end,
        os.fdopen(theirs, "wb", buffering=0) as pipe,
        programs.started([*STAGING, "preflight", "-"], stdin=end) as running,
    ):
        time.sleep(1)  # it reads before there is anything, and between the halves
        pipe.write(values[: len(values) // 2])
        time.sleep(1)
        pipe.write(values[len(values) // 2 :])
        pipe.close()
        outcome = running.outcome(0)
    assert outcome.stdout.startswith("standard input: chart inference, 3 models\n")


def test_no_weights_are_read_and_nothing_is_written(
    programs: Programs, scripted_s3: ScriptedS3
) -> None:
    programs.staging("preflight", "values.yaml")
    read = [entry.key for entry in scripted_s3.requests if entry.operation == "GetObject"]
    assert sorted(read) == [f"checkpoints/{key}/.checkpoint/manifest.json" for key in KEYS]


def test_a_misspelled_prefix_is_told_with_the_one_that_was_meant(programs: Programs) -> None:
    change(programs, "checkpoints/laguna-xs\n", "checkpoints/laguna-sx\n")
    refused = programs.staging("preflight", "values.yaml", expect=10)
    assert refused.reference == "prefix-empty"
    assert refused.hint == f"hint: did you mean s3://{BUCKET}/checkpoints/laguna-xs/?"
    assert (
        "values.yaml is not ready to be deployed: 1 error: models.laguna-xs.model" in refused.error
    )
    assert "[checkpoint-unavailable, prefix-empty]" in refused.stdout


def test_the_code_is_that_of_the_gravest_error_and_all_are_shown(programs: Programs) -> None:
    change(programs, "checkpoints/laguna-xs\n", "checkpoints/laguna-sx\n")
    change(programs, "gpus: 4", "gpus: 3")
    change(programs, "secretName: vllm-auth", 'secretName: ""')
    refused = programs.staging("preflight", "values.yaml", "--json", expect=2)
    document = refused.document
    assert document["error"]["reference"] == "gpus-invalid"
    assert "2 errors, the gravest" in document["error"]["message"]
    told = document["preflight"]
    assert not told["passed"]
    assert [(one["rule"], one["severity"], one["code"]) for one in told["findings"]] == [
        ("gpus-invalid", "error", 2),
        ("checkpoint-unavailable", "error", 10),
        ("public-without-key", "warning", 2),
    ]
    assert [model["state"] for model in told["models"]] == ["error", "error", "ok"]
    assert told["capacity"]["not_counted"] == ["laguna-m"]


def test_warnings_pass_unless_strict_and_rules_can_be_ignored(programs: Programs) -> None:
    change(programs, "secretName: vllm-auth", 'secretName: ""')
    warned = programs.staging("preflight", "values.yaml")
    assert "warning: authentication.secretName, line " in warned.stdout
    refused = programs.staging("preflight", "values.yaml", "--strict", expect=2)
    assert refused.reference == "public-without-key"
    programs.staging("preflight", "values.yaml", "--strict", "--ignore", "public-without-key")


def test_an_object_that_went_after_publishing(programs: Programs, bucket: Bucket) -> None:
    bucket.remove("checkpoints/point/model.safetensors")
    refused = programs.staging("preflight", "values.yaml", expect=11)
    assert refused.reference == "checkpoint-incomplete"
    assert "model.safetensors: missing" in refused.error


def test_a_refusal_of_access_is_one_finding_per_model(
    programs: Programs, scripted_s3: ScriptedS3
) -> None:
    key = "checkpoints/point/.checkpoint/manifest.json"
    denied = Fault("GetObject", Status(403, "AccessDenied"), occurrence=None, key=key)
    scripted_s3.script(denied)
    refused = programs.staging("preflight", "values.yaml", "--json", expect=12)
    (found,) = refused.document["preflight"]["findings"]
    assert (found["rule"], found["cause"], found["model"]) == (
        "checkpoint-unavailable",
        "denied",
        "point",
    )
    assert any("s3:GetObject" in note for note in found["notes"])


def test_nodes_are_held_against_what_is_deployed(programs: Programs) -> None:
    blocked = programs.staging("preflight", "values.yaml", "--nodes", "1", "--json").document
    found = blocked["preflight"]["findings"]
    assert [(one["rule"], one["model"]) for one in found] == [("update-blocked", "laguna-m")]
    change(programs, "gpus: 4", "gpus: 8")
    refused = programs.staging("preflight", "values.yaml", "--nodes", "1", expect=2)
    assert refused.reference == "nodes-too-few"


def test_the_umbrella_chart(programs: Programs) -> None:
    text = (GOLDEN / "inference-stack.yaml").read_text()
    text = text.replace("models/checkpoints/", "checkpoints/").replace("-2026-04", "")
    (programs.directory / "stack.yaml").write_text(text)
    told = programs.staging("preflight", "stack.yaml", "--json").document["preflight"]
    assert (told["chart"], told["findings"]) == ("inference-stack", [])
    assert [model["deployment"] for model in told["models"]] == [
        "inference-laguna-xs",
        "inference-point",
    ]


@pytest.mark.parametrize(
    ("text", "code", "reference"),
    [
        ("models: [\n", 16, "values-malformed"),
        ("models: {}\nmodels: {}\n", 16, "values-duplicate-key"),
        ("replicaCount: 1\n", 2, "chart-unknown"),
        (None, 10, "values-file"),
    ],
)
def test_files_that_are_no_values_files(
    tmp_path: Path, text: str | None, code: int, reference: str
) -> None:
    if text is not None:
        (tmp_path / "values.yaml").write_text(text)
    refused = Programs(tmp_path).staging("preflight", "values.yaml", expect=code)
    assert refused.reference == reference
    assert "values.yaml" in refused.error


@pytest.mark.parametrize(
    "arguments",
    [[], ["values.yaml", "--dry-run"], ["values.yaml", "--ignore", "gpu"], ["s3://bucket/values"]],
)
def test_misuse(tmp_path: Path, arguments: list[str]) -> None:
    Programs(tmp_path).staging("preflight", *arguments, expect=2)


def test_the_rules_are_listed(tmp_path: Path) -> None:
    shown = Programs(tmp_path).staging("preflight", "--list-rules")
    listed = Programs(tmp_path).staging("preflight", "--list-rules", "--json").document["rules"]
    assert [line.split()[0] for line in shown.stdout.splitlines()] == [
        rule["id"] for rule in listed
    ]
    assert all(rule["reason"] and rule["fix"] and rule["source"] for rule in listed)


# Pins


def test_pins_are_printed_and_kept_as_comments(programs: Programs) -> None:
    path = programs.directory / "values.yaml"
    path.chmod(0o640)
    before = path.read_text()
    outcome = programs.staging("preflight", "values.yaml", "--pin")
    wanted = ids(programs)
    patches = list(yaml.safe_load_all(outcome.stdout))
    assert [patch["metadata"]["name"] for patch in patches] == [f"inference-{key}" for key in KEYS]
    for patch, key in zip(patches, KEYS, strict=True):
        (container,) = patch["spec"]["template"]["spec"]["initContainers"]
        assert container["name"] == "model-downloader"
        assert container["env"] == [{"name": "MODEL_EXPECT_ID", "value": wanted[key]}]
    after = path.read_text()
    added = [line for line in after.splitlines() if "checkpoint id" in line]
    assert added == [f"    # checkpoint id: {wanted[key]}" for key in KEYS]
    assert (
        "".join(line for line in after.splitlines(keepends=True) if "checkpoint id" not in line)
        == before
    )
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert sorted(programs.directory.glob(".values*")) == []

    again = programs.staging("preflight", "values.yaml", "--pin")
    assert (again.stdout, path.read_text()) == (outcome.stdout, after)
    told = programs.staging("preflight", "values.yaml", "--json").document["preflight"]
    assert [model["pinned"] for model in told["models"]] == [True, True, True]


def test_a_dry_run_shows_the_change_and_makes_none(programs: Programs) -> None:
    path = programs.directory / "values.yaml"
    before = path.read_bytes()
    outcome = programs.staging("preflight", "values.yaml", "--pin", "--dry-run")
    assert path.read_bytes() == before
    added = [line for line in outcome.stdout.splitlines() if line.startswith("+  ")]
    assert added == [f"+    # checkpoint id: {identity}" for identity in ids(programs).values()]


def test_a_stale_pin_is_refused_and_replaced(programs: Programs) -> None:
    programs.staging("preflight", "values.yaml", "--pin")
    change(programs, "checkpoints/point\n", "checkpoints/laguna-m\n")
    wanted = ids(programs)
    refused = programs.staging("preflight", "values.yaml", expect=11)
    assert refused.reference == "id-differs"
    programs.staging("preflight", "values.yaml", "--pin")
    text = (programs.directory / "values.yaml").read_text()
    assert wanted["point"] not in text
    assert text.count(wanted["laguna-m"]) == 2


def test_nothing_is_pinned_that_is_not_ready(programs: Programs) -> None:
    change(programs, "gpus: 4", "gpus: 3")
    path = programs.directory / "values.yaml"
    before = path.read_bytes()
    refused = programs.staging("preflight", "values.yaml", "--pin", expect=2)
    assert refused.stdout == ""
    assert path.read_bytes() == before


# The report


def test_the_report_is_written_for_good_and_for_bad(programs: Programs) -> None:
    programs.staging("preflight", "values.yaml", "--html", "report.html")
    assert "Ready to be deployed" in (programs.directory / "report.html").read_text()
    change(programs, "gpus: 4", "gpus: 3")
    programs.staging("preflight", "values.yaml", "--html", "report.html", expect=2)
    assert "Not ready to be deployed: 1 error" in (programs.directory / "report.html").read_text()


def test_a_query_in_a_uri_is_shown_nowhere(programs: Programs) -> None:
    secret = "X-Amz-Signature=0123456789abcdef"
    change(programs, "checkpoints/point\n", f"checkpoints/point?{secret}\n")
    outcome: Any = programs.staging("preflight", "values.yaml", "--html", "report.html", expect=2)
    page = (programs.directory / "report.html").read_text()
    for text in (outcome.stdout, outcome.stderr, page):
        assert not re.search("0123456789abcdef", text)


def test_a_report_that_cannot_be_written_hides_no_finding(programs: Programs) -> None:
    change(programs, "gpus: 4", "gpus: 3")
    arguments = ("preflight", "values.yaml", "--html", "missing/report.html")
    shown = programs.staging(*arguments, expect=1)
    assert shown.reference == "values-file"
    assert "[gpus-invalid]" in shown.stdout
    told = programs.staging(*arguments, "--json", expect=1).document
    assert [one["rule"] for one in told["preflight"]["findings"]] == ["gpus-invalid"]


def test_a_link_stays_one_when_ids_are_pinned(programs: Programs) -> None:
    (programs.directory / "values.yaml").rename(programs.directory / "real.yaml")
    link = programs.directory / "values.yaml"
    link.symlink_to("real.yaml")
    told = programs.staging("preflight", "values.yaml", "--pin", "--json").document["pin"]
    assert (told["changed"], told["written"], len(told["patches"])) == (True, True, 3)
    assert link.is_symlink()
    assert link.read_text().count("# checkpoint id: ") == 3


def test_what_somebody_else_wrote_meanwhile_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "values.yaml"
    path.write_bytes(b"theirs")
    with pytest.raises(Conflict) as refused:
        _write(path, b"ours", instead_of=b"what was read")
    assert refused.value.reference == "values-changed"
    assert path.read_bytes() == b"theirs"
    assert [entry.name for entry in tmp_path.iterdir()] == ["values.yaml"]
