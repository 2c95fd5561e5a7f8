"""The commands of `staging` as processes: what they send, print and leave behind (I4, I12, I13, I16)."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.programs import INSTALLED_DOWNLOADER, STAGING, TIMEOUT, Programs
from tests.support.checkpoints import hugging_face, tar_of, vendor, weights, write_tree
from tests.support.s3server import Bucket, Fault, Quirk, ScriptedS3, Status
from tests.support.tars import member

BUCKET = "models"
URI = f"s3://{BUCKET}/checkpoints/laguna-xs/"
PREFIX = "checkpoints/laguna-xs/"
READS = {"GetObject", "HeadObject", "ListObjectsV2", "HeadBucket"}
COMMANDS = ("check", "upload", "show", "verify", "ls")


@pytest.fixture
def bucket(scripted_s3: ScriptedS3) -> Bucket:
    return scripted_s3.bucket(BUCKET)


@pytest.fixture
def programs(tmp_path: Path, scripted_s3: ScriptedS3, bucket: Bucket) -> Programs:
    (tmp_path / "laguna-xs.tar").write_bytes(tar_of(vendor(1)))
    return Programs(tmp_path, scripted_s3)


@pytest.fixture
def published(programs: Programs, scripted_s3: ScriptedS3) -> str:
    """The id of what `laguna-xs.tar` holds, published at URI; the request log begins after it."""
    outcome = programs.staging("upload", "laguna-xs.tar", URI)
    scripted_s3.requests.clear()
    uri, found = outcome.stdout.split()
    assert uri == URI
    return found


def snapshot(bucket: Bucket) -> dict[str, bytes]:
    return {key: bucket.get(key) for key in bucket.keys()}  # noqa: SIM118 - no mapping


# Uploading


def test_an_upload_says_what_to_do_next(programs: Programs, bucket: Bucket) -> None:
    outcome = programs.staging("upload", "laguna-xs.tar", URI)
    found = json.loads(bucket.get(PREFIX + ".checkpoint/manifest.json"))
    assert outcome.stdout == f"{URI} {found['id']}\n"
    assert f"  laguna-xs:\n    model: {URI}\n    modelName: laguna-xs " in outcome.stderr
    assert f"MODEL_EXPECT_ID={found['id']}" in outcome.stderr
    assert outcome.stderr.splitlines()[-1] == "The local copy is no longer needed"
    assert found["source"] == {
        "kind": "tar",
        "name": "laguna-xs.tar",
        "size": (programs.directory / "laguna-xs.tar").stat().st_size,
    }


@pytest.mark.parametrize("kind", ["file", "pipe"])
def test_the_same_content_again_sends_nothing(
    programs: Programs, scripted_s3: ScriptedS3, bucket: Bucket, published: str, kind: str
) -> None:
    before = snapshot(bucket)
    archive = programs.directory / "laguna-xs.tar"
    source, stdin = ("-", archive) if kind == "pipe" else (archive, None)
    outcome = programs.staging("upload", source, URI, stdin=stdin)
    assert outcome.stdout == f"{URI} {published}\n"
    assert "already published" in outcome.stderr
    assert set(scripted_s3.requests.operations()) <= READS
    assert snapshot(bucket) == before


@pytest.mark.parametrize("kind", ["file", "pipe"])
@pytest.mark.parametrize("change", ["another file", "another byte"])
def test_other_content_is_a_conflict_before_anything_is_sent(
    programs: Programs,
    scripted_s3: ScriptedS3,
    bucket: Bucket,
    published: str,
    kind: str,
    change: str,
) -> None:
    before = snapshot(bucket)
    files = vendor(1)
    if change == "another file":
        files["vocab.txt"] = b"new"
    else:
        files["model.safetensors"] = vendor(2)["model.safetensors"]
    archive = programs.directory / "other.tar"
    archive.write_bytes(tar_of(files))
    source, stdin = ("-", archive) if kind == "pipe" else (archive, None)
    refused = programs.staging("upload", source, URI, stdin=stdin, expect=15)
    assert refused.reference == "published-differs"
    assert published in refused.error
    assert "new prefix" in refused.hint
    assert set(scripted_s3.requests.operations()) <= READS
    assert snapshot(bucket) == before


@pytest.mark.parametrize("kind", ["file", "pipe"])
def test_foreign_objects_are_listed_before_anything_is_sent(
    programs: Programs, scripted_s3: ScriptedS3, bucket: Bucket, kind: str
) -> None:
    bucket.put(PREFIX + "old/model.safetensors", b"somebody's")
    bucket.put(PREFIX + "folder/", b"")  # what consoles make of a directory is nobody's file
    bucket.put("checkpoints/laguna-xs-2/model.safetensors", b"a sibling's")
    before = snapshot(bucket)
    archive = programs.directory / "laguna-xs.tar"
    source, stdin = ("-", archive) if kind == "pipe" else (archive, None)
    refused = programs.staging("upload", source, URI, stdin=stdin, expect=15)
    assert refused.reference == "foreign-objects"
    assert "old/model.safetensors" in refused.error
    assert "folder" not in refused.error
    assert "laguna-xs-2" not in refused.error
    assert "--allow-existing" in refused.hint
    assert set(scripted_s3.requests.operations()) <= READS
    assert snapshot(bucket) == before
    programs.staging("upload", source, URI, "--allow-existing", stdin=stdin)
    assert before.items() <= snapshot(bucket).items()
    assert PREFIX + ".checkpoint/manifest.json" in bucket
    assert f"{PREFIX}.checkpoint/claim.json" not in bucket


def test_a_foreign_object_in_a_members_place_is_never_overwritten(
    programs: Programs, bucket: Bucket
) -> None:
    bucket.put(PREFIX + "config.yaml", b"somebody's")
    refused = programs.staging("upload", "laguna-xs.tar", URI, "--allow-existing", expect=15)
    assert refused.reference == "foreign-objects"
    assert bucket.get(PREFIX + "config.yaml") == b"somebody's"
    assert PREFIX + ".checkpoint/manifest.json" not in bucket
    assert not bucket.uploads()


REFUSED_FILES = {
    **hugging_face(4, (17 * 2**20, 300)),
    "tokenizer/merges.txt": b"",
}


def refused_archives() -> Iterator[tuple[str, bytes, int, str]]:
    """Archives that a pipe tells the truth about late: name, bytes, exit code, reference."""
    whole = tar_of(REFUSED_FILES)
    for name, at in (
        ("in a header", 512 * 3 + 100),
        ("between members", len(whole) - 1024),
        ("half an end", len(whole) - 512),
        ("in a large member", 10 * 2**20),
        ("in the second part", 17 * 2**20 + 512 * 4),
        ("in the last padding", len(whole) - 1024 - 300),
    ):
        reference = "tar-no-end" if name in ("between members", "half an end") else "tar-truncated"
        yield f"cut {name}", whole[:at], 16, reference
    yield "not a tar", b"<!DOCTYPE html>" * 100, 16, "not-a-tar"
    yield "empty", b"", 16, "tar-empty"
    late = whole[:-1024] + member(b"laguna-xs/../evil") + whole[-1024:]
    yield "hostile at the end", late, 16, "tar-name"
    second = whole[:-1024] + member(b"other/config.json", b"{}") + whole[-1024:]
    yield "a second directory at the end", second, 17, "layout-several"
    broken = tar_of(REFUSED_FILES | {"z.safetensors": weights(1000, 9)[:-1]})
    yield "a cut shard at the end", broken, 17, "safetensors-broken"
    yield "no weights", tar_of({"config.json": b'{"model_type": "tiny"}'}), 17, "weights-missing"


@pytest.mark.parametrize(
    ("data", "code", "reference"),
    [pytest.param(*case, id=name) for name, *case in refused_archives()],
)
def test_a_refused_archive_on_a_pipe_leaves_nothing(
    programs: Programs,
    scripted_s3: ScriptedS3,
    bucket: Bucket,
    data: bytes,
    code: int,
    reference: str,
) -> None:
    refused = programs.staging("upload", "-", URI, stdin=data, expect=code)
    assert refused.reference == reference
    assert refused.error.startswith("error: source: ")
    assert snapshot(bucket) == {}
    assert not bucket.uploads()
    assert not scripted_s3.requests.count("CompleteMultipartUpload")
    visible = [
        request.key
        for request in scripted_s3.requests.of("PutObject")
        if "/.checkpoint/upload/" not in request.key
    ]
    assert visible == []


# Dry runs, documents and what is printed where


@pytest.mark.parametrize("kind", ["file", "pipe"])
def test_a_dry_run_sends_nothing(
    programs: Programs, scripted_s3: ScriptedS3, bucket: Bucket, kind: str
) -> None:
    archive = programs.directory / "laguna-xs.tar"
    source, stdin = ("-", archive) if kind == "pipe" else (archive, None)
    plan = programs.staging("upload", source, URI, "--dry-run", "--json", stdin=stdin)
    assert plan.document["plan"]["uri"] == URI
    assert plan.document["plan"]["files"] == 6
    assert plan.document["plan"]["total_size"] == sum(map(len, vendor(1).values()))
    assert plan.document["plan"]["parts"] == 0
    assert set(plan.document["plan"]["hours"]) == {"1 Gb/s", "5 Gb/s", "10 Gb/s", "25 Gb/s"}
    shown = programs.staging("upload", source, URI, "--dry-run", stdin=stdin).stdout
    for name in vendor(1):
        assert name in shown
    assert "at 25 Gb/s" in shown
    assert len(scripted_s3.requests) == 0
    assert snapshot(bucket) == {}


def test_the_plan_counts_requests_as_they_come(
    programs: Programs, scripted_s3: ScriptedS3, bucket: Bucket
) -> None:
    (programs.directory / "big.tar").write_bytes(tar_of(vendor(3, 40 * 2**20)))
    plan = programs.staging("upload", "big.tar", URI, "--dry-run", "--json").document["plan"]
    assert len(scripted_s3.requests) == 0
    programs.staging("upload", "big.tar", URI)
    assert scripted_s3.requests.count("UploadPart") == plan["parts"]
    assert 0 <= plan["requests"] - len(scripted_s3.requests) <= 10


def test_every_document_is_one(programs: Programs, published: str) -> None:
    node = write_tree(programs.directory / "plain", vendor(1))
    shown = programs.staging("show", URI, "--json").document["checkpoint"]
    assert shown["id"] == published
    assert [file["path"] for file in shown["files"]] == sorted(vendor(1))
    assert programs.staging("check", URI, "--json").document["check"]["passed"] is True
    assert programs.staging("check", node, "--json").document["check"]["files"] == 6
    verified = programs.staging("verify", URI, "--json").document["verify"]
    assert (verified["passed"], verified["level"], verified["read_bytes"]) == (True, "checksum", 0)
    (listed,) = programs.staging("ls", f"s3://{BUCKET}/", "--json").document["checkpoints"]
    assert (listed["uri"], listed["id"], listed["files"]) == (URI, published, 6)


def test_verify_at_checksum_level_sends_nothing_but_heads(
    programs: Programs, scripted_s3: ScriptedS3, published: str
) -> None:
    programs.staging("verify", URI)
    members = [r for r in scripted_s3.requests if "/.checkpoint/" not in r.key]
    assert {request.operation for request in members} <= {"HeadObject", "ListObjectsV2"}
    assert scripted_s3.requests.count("HeadObject") == 6


def test_verify_tells_all_findings_at_once(
    programs: Programs, bucket: Bucket, published: str
) -> None:
    bucket.remove(PREFIX + "config.yaml")
    bucket.put(PREFIX + "tokenizer/merges.txt", b"not empty")
    bucket.put(PREFIX + "model.safetensors", vendor(2)["model.safetensors"])
    refused = programs.staging("verify", URI, "--json", expect=11)
    findings = {f["path"]: f["kind"] for f in refused.document["verify"]["findings"]}
    assert findings == {
        "config.yaml": "missing",
        "tokenizer/merges.txt": "size",
        "model.safetensors": "checksum",
    }
    assert refused.document["error"]["reference"] == "verify-differs"


def test_check_finds_the_same_everywhere(programs: Programs, bucket: Bucket) -> None:
    files = vendor(1) | {
        "inner.tar": b"x",
        "model.safetensors": vendor(1)["model.safetensors"][:-9],
    }
    del files["config.yaml"]
    archive = programs.directory / "bad.tar"
    archive.write_bytes(tar_of(files))
    write_tree(programs.directory / "bad", files)
    for name, data in files.items():
        bucket.put(f"bad/{name}", data)
    documents = [
        programs.staging("check", "bad.tar", "--json", expect=17).document,
        programs.staging("check", "-", "--json", stdin=archive, expect=17).document,
        programs.staging("check", "bad", "--json", expect=17).document,
        programs.staging("check", f"s3://{BUCKET}/bad/", "--json", expect=17).document,
    ]
    rules = [[f["rule"] for f in document["check"]["findings"]] for document in documents]
    assert rules == [["archive-inside", "safetensors-broken", "config-missing"]] * 4
    assert {document["error"]["reference"] for document in documents} == {"archive-inside"}
    # The same rules stop an upload, and can be switched off.
    refused = programs.staging("upload", "bad.tar", URI, expect=17)
    assert refused.reference == "archive-inside"
    assert snapshot(bucket).keys() == {f"bad/{name}" for name in files}
    programs.staging("upload", "bad.tar", URI, "--layout-check", "off")


def test_off_a_terminal_every_line_has_time_and_level(programs: Programs) -> None:
    outcome = programs.staging("upload", "laguna-xs.tar", URI, "-v", "--json")
    lines = outcome.stderr.splitlines()
    logged = [line for line in lines if re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ INFO ", line)]
    assert any("upload: 6 files" in line for line in logged)
    for name in vendor(1):
        assert any(f"done {name} " in line for line in logged)
    assert "\r" not in outcome.stderr
    assert "\x1b" not in outcome.stderr


def test_quiet_prints_results_alone(programs: Programs) -> None:
    uploaded = programs.staging("upload", "laguna-xs.tar", URI, "-q")
    assert (uploaded.stderr, uploaded.stdout.count("\n")) == ("", 1)
    verified = programs.staging("verify", URI, "-q")
    assert (verified.stderr, verified.stdout.count("\n")) == ("", 1)
    fetched = programs.download(URI, "node", "-q")
    assert (fetched.stderr, fetched.stdout.count("\n")) == ("", 1)


def test_quiet_hides_information_alone(tmp_path: Path) -> None:
    files = vendor(1) | {".DS_Store": b"of a desktop"}
    (tmp_path / "laguna-xs.tar").write_bytes(tar_of(files))
    with ScriptedS3(buckets=[BUCKET], quirks=[Quirk.IGNORES_CHECKSUMS]) as server:
        server.deny("DeleteObject")
        outcome = Programs(tmp_path, server).staging("upload", "laguna-xs.tar", URI, "-q")
    told = outcome.stderr.splitlines()
    assert any(line.startswith("warning: ") and ".DS_Store" in line for line in told)
    assert "warning: checksums: not proven by this store" in told
    assert any(line.startswith("left behind, safe to delete: ") for line in told)
    assert "published" not in outcome.stderr
    assert outcome.stdout.startswith(f"{URI} sha256:")


@pytest.mark.parametrize("options", [[], ["-v"], ["--json"]], ids=["plain", "verbose", "json"])
def test_nobody_reads_standard_error(programs: Programs, options: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    for command in (
        [*STAGING, "upload", "laguna-xs.tar", URI, *options],
        [*STAGING, "verify", URI, "--level", "digest", *options],
        [*INSTALLED_DOWNLOADER, URI, "node", *options],
    ):
        process = subprocess.run(
            command,
            cwd=programs.directory,
            env=programs.environment,
            stdout=subprocess.PIPE,
            stderr=write,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )
        assert process.returncode == 0, command
        assert "sha256:" in process.stdout
    os.close(write)


def test_one_broken_manifest_hides_no_other(
    programs: Programs, scripted_s3: ScriptedS3, bucket: Bucket, published: str
) -> None:
    manifest = bucket.get(f"{PREFIX}.checkpoint/manifest.json")
    bucket.put("a/.checkpoint/manifest.json", b'{"files": []}')
    bucket.put("b/.checkpoint/manifest.json", manifest)
    bucket.put("z/.checkpoint/manifest.json", manifest)
    denied = Fault(
        "GetObject", Status(403, "AccessDenied"), key="z/.checkpoint/manifest.json", occurrence=None
    )
    scripted_s3.script(denied)
    outcome = programs.staging("ls", f"s3://{BUCKET}/", expect=16)
    assert [line.split()[0] for line in outcome.stdout.splitlines()] == [f"s3://{BUCKET}/b/", URI]
    errors = [line for line in outcome.stderr.splitlines() if line.startswith("error: ")]
    assert [line.rpartition("[")[2] for line in errors] == ["denied]", "manifest-malformed]"]
    assert f"s3://{BUCKET}/a/" in errors[1]
    found = programs.staging("ls", f"s3://{BUCKET}/", "--json", expect=16).document
    assert [entry["uri"] for entry in found["checkpoints"]] == [f"s3://{BUCKET}/b/", URI]
    assert [(entry["uri"], entry["code"]) for entry in found["errors"]] == [
        (f"s3://{BUCKET}/a/", 16),
        (f"s3://{BUCKET}/z/", 12),
    ]
    assert found["error"]["reference"] == "manifest-malformed"


def on_a_terminal(programs: Programs, *command: str) -> tuple[int, str]:
    """Run a command with a terminal of 100 columns as its standard error."""
    master, slave = pty.openpty()
    try:
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
        with subprocess.Popen(
            command,
            cwd=programs.directory,
            env=programs.environment | {"TERM": "xterm"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=slave,
        ) as process:
            os.close(slave)
            seen = b""
            try:
                while data := os.read(master, 65536):
                    seen += data
            except OSError:  # how Linux says that the other side was closed
                pass
            return process.wait(TIMEOUT), seen.decode()
    finally:
        os.close(master)


def test_on_a_terminal_there_is_one_bar(programs: Programs) -> None:
    code, seen = on_a_terminal(programs, *STAGING, "upload", "laguna-xs.tar", URI)
    assert code == 0
    assert re.search(r"\rupload: *100%\|.*\|", seen)
    assert "INFO" not in seen
    code, seen = on_a_terminal(programs, *INSTALLED_DOWNLOADER, URI, "node")
    assert code == 0
    assert re.search(r"\rdownload: *100%\|.*\|", seen)
    code, seen = on_a_terminal(
        programs, *STAGING, "verify", URI, "--level", "digest", "--no-progress"
    )
    assert code == 0
    assert " INFO verify" in seen
    assert "%|" not in seen


def test_a_reader_who_has_gone_is_no_traceback(programs: Programs, published: str) -> None:
    absent = f"s3://{BUCKET}/nothing/"
    for arguments in (["show", URI], ["show", absent, "--json"], ["upload", "--help"]):
        read, write = os.pipe()
        os.close(read)
        process = subprocess.run(
            [*STAGING, *arguments],
            cwd=programs.directory,
            env=programs.environment,
            stdout=write,
            stderr=subprocess.PIPE,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )
        os.close(write)
        assert process.returncode == 1
        assert "Traceback" not in process.stderr
        assert "Exception ignored" not in process.stderr


# Help


@pytest.mark.parametrize("command", COMMANDS)
def test_help_mentions_every_option(programs: Programs, command: str) -> None:
    import importlib

    found = getattr(importlib.import_module(f"staging.cli.{command}"), command)
    shown = programs.staging(command, "-h").stdout

    options = [name for parameter in found.params for name in parameter.opts if name[0] == "-"]
    assert len(options) >= 8
    for option in options:
        assert re.search(rf"(^|[ ,]){re.escape(option)}\b", shown, re.MULTILINE), option


def test_help_of_the_programs(programs: Programs) -> None:
    shown = programs.staging("-h").stdout
    for command in COMMANDS:
        assert re.search(rf"^  {command} +\w", shown, re.MULTILINE)
    assert programs.staging("--version").stdout.startswith("staging, version 0.")
    shown = programs.download("-h").stdout
    for option in ("--expect-id", "--endpoint-url", "--memory", "--concurrency", "--part-size"):
        assert option in shown
    assert "--level" in programs.download("verify", "-h").stdout
    assert programs.download("--version", installed=True).stdout.startswith("model-downloader, ")
