"""Programs that are told to stop, while the store holds their requests (I5, I6, I12, I16).

Nothing here waits for a time to pass: the store says when a request has arrived, and a second hold keeps
a program from going on should it be told late.
"""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest

from tests.cli.programs import DOWNLOADER, INSTALLED_DOWNLOADER, STAGING, TIMEOUT, Outcome, Programs
from tests.support.checkpoints import manifest_of, read_tree, tar_of, vendor
from tests.support.s3server import Bucket, Fault, Hold, Request, ScriptedS3

MIB = 1024 * 1024
CHUNK = 16 * MIB
BUCKET = "models"
URI = f"s3://{BUCKET}/laguna-xs/"
PREFIX = "laguna-xs/"
FILES = vendor(1, 2 * CHUNK + 1000)
SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}


@pytest.fixture
def bucket(scripted_s3: ScriptedS3) -> Bucket:
    return scripted_s3.bucket(BUCKET)


@pytest.fixture
def programs(tmp_path: Path, scripted_s3: ScriptedS3, bucket: Bucket) -> Programs:
    (tmp_path / "laguna-xs.tar").write_bytes(tar_of(FILES))
    return Programs(tmp_path, scripted_s3)


def publish(bucket: Bucket) -> str:
    manifest = manifest_of(FILES)
    for name, data in FILES.items():
        bucket.put(PREFIX + name, data)
    bucket.put(f"{PREFIX}.checkpoint/manifest.json", manifest.encode())
    return manifest.id


@pytest.mark.parametrize("kind", ["file", "pipe"])
@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_an_upload_that_is_stopped_goes_on_where_it_was(
    programs: Programs, scripted_s3: ScriptedS3, bucket: Bucket, number: signal.Signals, kind: str
) -> None:
    outcome = stop_upload(programs, scripted_s3, number, kind)
    keep, drop = outcome.stderr.splitlines()[-2:]
    assert keep.startswith("to continue: run the same command again")
    assert drop == f"to drop it: staging gc --uploads {URI} --older-than 0s --yes"
    assert all("/.checkpoint/upload/" in key for key in bucket)
    (waiting,) = bucket.uploads()
    assert {1, 2} <= waiting.parts.keys()
    # Running it again, as the hint says, is all it takes.
    scripted_s3.requests.clear()
    archive = programs.directory / "laguna-xs.tar"
    if kind == "file":
        programs.staging("upload", archive, URI)
    else:
        programs.staging("upload", "-", URI, stdin=archive)
    assert scripted_s3.requests.count("UploadPart") <= 1
    assert {key for key in bucket if "/." not in key} == {PREFIX + name for name in FILES}
    assert bucket.uploads() == []
    assert f"{PREFIX}.checkpoint/manifest.json" in bucket
    assert not any("/.checkpoint/upload/" in key for key in bucket)


@pytest.mark.parametrize("yes", [True, False])
def test_an_upload_that_is_stopped_can_be_dropped(
    programs: Programs, scripted_s3: ScriptedS3, bucket: Bucket, yes: bool
) -> None:
    outcome = stop_upload(programs, scripted_s3, signal.SIGINT, "file")
    drop = outcome.stderr.splitlines()[-1].removeprefix("to drop it: staging ").split()
    listed = programs.staging(*(word for word in drop if yes or word != "--yes"))
    assert URI in listed.stdout
    assert ("dropped 1 of 1" if yes else "give --yes") in listed.stderr
    assert (bucket.keys() == []) is yes
    assert (bucket.uploads() == []) is yes


def test_an_upload_that_is_to_keep_nothing_leaves_nothing_when_stopped(
    programs: Programs, scripted_s3: ScriptedS3, bucket: Bucket
) -> None:
    stop_upload(programs, scripted_s3, signal.SIGTERM, "file", "--abort-on-interrupt")
    assert bucket.keys() == []
    assert bucket.uploads() == []


def test_a_signal_that_was_ignored_stays_ignored(
    programs: Programs, scripted_s3: ScriptedS3, bucket: Bucket
) -> None:
    """As with `nohup`, over a connection that goes away meanwhile."""
    first = scripted_s3.hold("UploadPart", part_number=1)
    command = ["sh", "-c", 'trap "" HUP; exec "$@"', "sh", *STAGING, "upload", "laguna-xs.tar", URI]
    with programs.started(command) as running:
        assert first.arrived.wait(TIMEOUT)
        running.signal(signal.SIGHUP)
        first.release()
        running.outcome(0)
    assert f"{PREFIX}.checkpoint/manifest.json" in bucket


def stop_upload(
    programs: Programs, scripted_s3: ScriptedS3, number: signal.Signals, kind: str, *options: str
) -> Outcome:
    """Stop an upload by a signal while its second part is on its way."""
    second = scripted_s3.hold("UploadPart", part_number=2)
    scripted_s3.hold("UploadPart", part_number=3)  # nobody gets past it
    archive = programs.directory / "laguna-xs.tar"
    source = "-" if kind == "pipe" else archive
    command = [*STAGING, "upload", source, URI, "--concurrency", "1", *options]
    with archive.open("rb") as stream, programs.started(command, stdin=stream) as running:
        assert second.arrived.wait(TIMEOUT)
        running.signal(number)
        second.release()
        outcome = running.outcome(CODES[number])
    scripted_s3.clear_script()
    assert outcome.reference == "interrupted"
    assert number.name in outcome.error
    assert "again" in outcome.hint
    assert outcome.stdout == ""
    return outcome


def test_an_upload_that_is_stopped_while_it_commits_says_so(
    programs: Programs, scripted_s3: ScriptedS3, bucket: Bucket
) -> None:
    held = scripted_s3.hold("CompleteMultipartUpload", before=False)
    scripted_s3.hold("PutObject", key=f"{PREFIX}.checkpoint/manifest.json")
    with programs.started([*STAGING, "upload", "laguna-xs.tar", URI, "--json"]) as running:
        assert held.arrived.wait(TIMEOUT)
        running.signal(signal.SIGTERM)
        held.release()
        outcome = running.outcome(143)
    assert outcome.document["error"]["reference"] == "interrupted"
    assert "the same command finishes the upload" in outcome.stderr
    assert f"{PREFIX}.checkpoint/manifest.json" not in bucket
    assert bucket.uploads() == []
    # A pod is told, and the same command finishes.
    assert programs.download(URI, "node", expect=10).reference == "upload-unfinished"
    scripted_s3.clear_script()
    programs.staging("upload", "laguna-xs.tar", URI)
    programs.download(URI, "node")
    assert read_tree(programs.directory / "node") == FILES


def insist(process: subprocess.Popen[bytes], number: int) -> None:
    """Send a signal until the process has ended; how often that takes does not matter."""
    while process.poll() is None:
        process.send_signal(number)
        try:
            process.wait(0.05)
        except subprocess.TimeoutExpired:
            continue


def test_a_second_signal_ends_an_upload_at_once(
    programs: Programs, scripted_s3: ScriptedS3, bucket: Bucket
) -> None:
    parts = scripted_s3.hold("UploadPart")  # never released
    with programs.started([*STAGING, "upload", "laguna-xs.tar", URI]) as running:
        assert parts.arrived.wait(TIMEOUT)
        insist(running.process, signal.SIGTERM)
        running.outcome(143)
    # It did not wait for the requests, so it could not clean up either; nothing is visible all the same.
    assert scripted_s3.requests.count("AbortMultipartUpload") == 0
    assert all("/.checkpoint/upload/" in key for key in bucket)
    assert bucket.uploads() != []


def is_content(request: Request) -> bool:
    """Whether a request asks for a range that is more than a header or a small file."""
    return request.range is not None and int(request.range.rpartition("-")[2]) >= MIB


def ranges(scripted_s3: ScriptedS3) -> set[tuple[str, str | None]]:
    return {(r.key, r.range) for r in scripted_s3.requests.of("GetObject") if is_content(r)}


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_download_that_is_stopped_goes_on_where_it_was(
    programs: Programs, scripted_s3: ScriptedS3, bucket: Bucket, number: signal.Signals
) -> None:
    checkpoint = publish(bucket)
    model = f"{PREFIX}model.safetensors"
    third = Hold()
    scripted_s3.script(Fault("GetObject", third, occurrence=3, key=model, where=is_content))
    # Nobody gets past it; the rules have looked at it before.
    tokenizer = f"{PREFIX}tokenizer/tokenizer.json"
    scripted_s3.hold("GetObject", key=tokenizer, occurrence=2)
    command = [*DOWNLOADER, URI, "node", "--concurrency", "1"]
    with programs.started(command) as running:
        assert third.arrived.wait(TIMEOUT)
        # One at a time, so the chunks before this one are verified and written.
        before = ranges(scripted_s3)
        running.signal(number)
        third.release()
        outcome = running.outcome(CODES[number])
    assert outcome.reference == "interrupted"
    node = programs.directory / "node"
    assert not (node / ".checkpoint/ready.json").exists()
    assert read_tree(node) == {}
    kept = node / ".checkpoint/partial" / checkpoint.replace(":", "-") / "model.safetensors"
    assert kept.read_bytes()[: 2 * CHUNK] == FILES["model.safetensors"][: 2 * CHUNK]
    assert programs.download("verify", node, expect=10).reference == "not-published"

    scripted_s3.clear_script()
    scripted_s3.requests.clear()
    again = programs.download(URI, "node", "--json")
    (result,) = again.document["checkpoints"]
    whole = {(model, f"bytes={2 * CHUNK}-{len(FILES['model.safetensors']) - 1}")}
    assert len(before) == 3  # the model's chunks; small files come after large ones
    assert ranges(scripted_s3).isdisjoint(before - whole)
    assert result["fetched_bytes"] <= result["total_size"] - 2 * CHUNK
    assert read_tree(node) == FILES


def test_a_second_signal_ends_a_download_at_once(
    programs: Programs, scripted_s3: ScriptedS3, bucket: Bucket
) -> None:
    publish(bucket)
    held = scripted_s3.hold("GetObject", key=f"{PREFIX}model.safetensors")  # never released
    with programs.started([*INSTALLED_DOWNLOADER, URI, "node"]) as running:
        assert held.arrived.wait(TIMEOUT)
        insist(running.process, signal.SIGTERM)
        running.outcome(143)
    assert not (programs.directory / "node/.checkpoint/ready.json").exists()
    scripted_s3.clear_script()
    programs.download(URI, "node")  # the lock went with the process
    assert read_tree(programs.directory / "node") == FILES


def test_a_signal_before_the_first_request_is_answered(
    programs: Programs, scripted_s3: ScriptedS3, bucket: Bucket
) -> None:
    publish(bucket)
    held = scripted_s3.hold("GetObject")
    with programs.started([*DOWNLOADER, URI, "node"]) as running:
        assert held.arrived.wait(TIMEOUT)
        running.signal(signal.SIGTERM)
        outcome = running.outcome(143)  # the main thread waits for the answer: interrupted there
    assert outcome.reference == "interrupted"
    assert not (programs.directory / "node").exists()


def test_other_findings_outlive_an_interruption(
    programs: Programs, scripted_s3: ScriptedS3, bucket: Bucket
) -> None:
    """`verify` that is stopped never looks as if it had passed."""
    publish(bucket)
    held = scripted_s3.hold("GetObject", key=f"{PREFIX}model.safetensors", occurrence=2)
    command = [*STAGING, "verify", URI, "--level", "digest", "--json"]
    with programs.started(command) as running:
        assert held.arrived.wait(TIMEOUT)
        running.signal(signal.SIGINT)
        held.release()
        outcome = running.outcome(130)
    assert "verify" not in outcome.document
    assert outcome.document["error"]["code"] == 130
