"""Every exit code and the usual causes behind it, provoked for real, and what is printed (I1, I12, I13)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.mishaps import CASES, URI, Case, Command, Scene, download, staging
from tests.cli.programs import Outcome
from tests.support.checkpoints import read_tree, tar_of, vendor
from tests.support.s3server import ScriptedS3

ACCESS_KEY = "AKIATHEACCESSKEYOFIT"
SECRET_KEY = "canary-secret/0123456789abcdef"
DOCUMENTED = Path(__file__, "../../../docs/scripting.md").resolve()


def meet(scene: Scene, arranged: Case, *more: str) -> Outcome:
    command = [*arranged.arrange(scene), *more]
    try:
        return scene.programs.run(command, stdin=scene.stdin, expect=arranged.code)
    finally:
        for fd in scene.pass_fds:
            os.close(fd)


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    """With secrets that no test may find anywhere."""
    with ScriptedS3(credentials={ACCESS_KEY: SECRET_KEY}) as server:
        scene = Scene(tmp_path, server)
        scene.environment["AWS_SESSION_TOKEN"] = "canary-token/0123456789abcdef"
        yield scene


@pytest.mark.parametrize("name", CASES)
def test_a_failure_is_one_line_one_hint_and_one_document(scene: Scene, name: str) -> None:
    arranged = CASES[name]
    outcome = meet(scene, arranged, "--json", "-v")
    assert outcome.error.endswith(f" [{arranged.reference}]")
    assert outcome.hint
    assert arranged.hint in outcome.hint
    error = outcome.document["error"]
    assert (error["code"], error["reference"]) == (arranged.code, arranged.reference)
    assert error["message"] in outcome.error
    assert outcome.hint == (f"hint: {error['hint']}" if error["hint"] else "") or (
        arranged.reference == "usage"
    )
    assert error["side"] in ("source", "store", "local", None)
    assert f"`{arranged.reference}`" in DOCUMENTED.read_text(encoding="utf-8")
    # Nothing that failed looks finished, and nothing waits in the store to be paid for.
    assert not (scene.directory / "node/.checkpoint/ready.json").exists()
    assert not scene.bucket.uploads()
    assert_no_canary(scene, outcome)


@pytest.mark.parametrize(
    "name",
    [
        "1-store-that-lacks-an-operation",
        "2-unknown-option",
        "10-misspelled-prefix",
        "11-damaged-object",
        "12-wrong-secret",
        "14-more-than-the-disk-has",
        "15-weights-of-somebody-else",
        "16-truncated-tar",
        "17-folder-in-a-folder",
    ],
)
def test_without_json_nothing_is_on_stdout(scene: Scene, name: str) -> None:
    arranged = CASES[name]
    outcome = meet(scene, arranged)
    assert outcome.stdout == ""
    assert outcome.reference == arranged.reference
    assert arranged.hint in outcome.hint
    log = re.compile(r"[0-9T:-]+Z (INFO|WARNING) ")
    plain = [line for line in outcome.lines if not log.match(line)]
    assert plain == [line for line in (outcome.error, outcome.hint) if line]


def test_a_wrong_clock_is_named_with_its_minutes(scene: Scene) -> None:
    scene.publish()
    scene.server.clock_offset_seconds = -47 * 60
    refused = scene.programs.download(URI, "node", expect=12)
    assert refused.reference == "clock-skew"
    assert "by 47 minutes" in refused.error
    assert refused.error.startswith("error: local: ")


def test_success_is_zero_and_prints_no_error(scene: Scene) -> None:
    scene.publish()
    outcome = scene.programs.download(URI, "node", installed=True)
    assert outcome.stdout.startswith("node sha256:")
    assert "error" not in outcome.stderr


def test_a_closed_standard_input_is_no_archive(scene: Scene) -> None:
    command = ["sh", "-c", 'exec "$@" <&-', "sh", *staging("upload", "-", URI)]
    refused = scene.programs.run(command, expect=1)
    assert refused.reference == "source-io"
    assert "standard input is closed" in refused.error


@pytest.mark.parametrize("closed", ["1>&-", "2>&-", "<&-", "1>&- 2>&- <&-"])
def test_closed_standard_streams_end_up_in_no_file(scene: Scene, closed: str) -> None:
    scene.publish()
    command = ["sh", "-c", f'exec "$@" {closed}', "sh"]
    scene.programs.run([*command, *download()])
    assert read_tree(scene.directory / "node") == vendor(1)
    scene.programs.run([*command, *download("verify", "node", "--level", "digest")])
    refused = scene.programs.run([*command, *download(f"{URI}wrong/", "other")], expect=10)
    assert "2>" in closed or refused.reference == "prefix-empty"


def test_no_arguments_show_the_usage(scene: Scene) -> None:
    shown = scene.programs.staging(expect=2)
    assert shown.reference == "usage"
    assert "--help" in shown.hint


# Secrets

PRESIGNED = "?X-Amz-Credential=canary-credential&X-Amz-Signature=canary-signature"


def assert_no_canary(scene: Scene, outcome: Outcome) -> None:
    """No credential was printed, or written to disk or store."""
    places = {"stdout": outcome.stdout.encode(), "stderr": outcome.stderr.encode()}
    files = (path for path in scene.directory.rglob("*") if path.is_file())
    places |= {str(path): path.read_bytes() for path in files}
    places |= {key: scene.bucket.get(key) for key in scene.bucket}
    for place, data in places.items():
        assert b"canary" not in data, (place, outcome)
        # In a denial the store names the user, which in the scripted one is the access key.
        told = outcome.stdout + outcome.stderr
        assert ACCESS_KEY.encode() not in data or "is not authorized" in told, outcome


def test_no_secret_is_printed_or_written_by_a_whole_job(scene: Scene) -> None:
    for command in (
        staging("upload", scene.tar(), URI, "-v"),
        staging("verify", URI, "-v"),
        download(URI, "node", "-v"),
    ):
        assert_no_canary(scene, scene.programs.run(command))


@pytest.mark.parametrize(
    "command",
    [
        staging("show", f"https://vendor.example/laguna-xs.tar{PRESIGNED}"),
        staging("verify", f"https://vendor.example/laguna-xs.tar{PRESIGNED}"),
        staging("upload", "laguna-xs.tar", f"https://models.example/laguna-xs/{PRESIGNED}"),
        download(f"https://models.example/laguna-xs/{PRESIGNED}", "node"),
        download(f"s3://models/laguna-xs/{PRESIGNED}", "node"),
        download("verify", f"https://models.example/laguna-xs/{PRESIGNED}"),
    ],
    ids=lambda command: "-".join(map(str, command[-3:]))[:30],
)
def test_a_presigned_url_in_the_wrong_place_is_not_repeated(scene: Scene, command: Command) -> None:
    scene.tar()
    outcome = scene.programs.run([*command, "-v", "--json"], expect=2)
    assert outcome.reference == "uri"
    assert_no_canary(scene, outcome)


@pytest.mark.parametrize(
    "command",
    [
        staging("upload", "a.tar", URI, f"https://vendor.example/laguna-xs.tar{PRESIGNED}"),
        staging(f"https://vendor.example/laguna-xs.tar{PRESIGNED}"),
        staging("upload", "a.tar", URI, "--memory", f"https://vendor.example/a{PRESIGNED}"),
        download("verify", "node", f"https://vendor.example/laguna-xs.tar{PRESIGNED}"),
    ],
    ids=["argument", "command", "value", "downloader"],
)
def test_a_presigned_url_that_is_not_understood_is_not_repeated(
    scene: Scene, command: Command
) -> None:
    outcome = scene.programs.run([*command, "--json"], expect=2)
    assert outcome.reference == "usage"
    assert_no_canary(scene, outcome)


@pytest.mark.parametrize("kind", ["argument", "environment", "file"])
def test_a_presigned_url_as_the_source_is_not_repeated(scene: Scene, kind: str) -> None:
    url = f"https://127.0.0.1:9/laguna-xs.tar{PRESIGNED}"
    options: list[str] = []
    if kind == "environment":
        scene.environment["STAGING_SOURCE_URL"] = url
    elif kind == "file":
        (scene.directory / "url").write_text(url)
        options = ["--source-url-file", "url"]
    source = url if kind == "argument" else "https://"
    for allowed, code in (([], 2), (["--allow-private-address"], 13)):
        command = staging("upload", source, URI, "-v", *options, *allowed)
        outcome = scene.programs.run(command, expect=code)
        assert outcome.reference == ("connection" if allowed else "url-address")
        # A URL on a command line is the caller's; ours is what is printed.
        assert "canary" not in outcome.stdout + outcome.stderr


def test_a_terminal_obeys_no_argument(scene: Scene) -> None:
    outcome = scene.programs.staging("up\x1b[31m\nload", "--json", expect=2)
    assert outcome.reference == "usage"
    assert "\x1b" not in outcome.stdout + outcome.stderr
    assert "\x1b" not in outcome.document["error"]["message"]


DOWNLOADED = f"laguna-xs.tar{PRESIGNED}"  # how `wget` names a file


def test_the_query_in_the_name_of_a_tar_is_not_published(scene: Scene) -> None:
    scene.tar().rename(scene.directory / DOWNLOADED)
    for command in (
        staging("check", DOWNLOADED, "--json"),
        staging("check", DOWNLOADED),
        staging("upload", DOWNLOADED, URI, "-v"),
        staging("show", URI, "--json"),
    ):
        outcome = scene.programs.run(command)
        assert_no_canary(scene, outcome)
    assert outcome.document["checkpoint"]["source"]["name"] == "laguna-xs.tar"


@pytest.mark.parametrize("make", ["nothing", "cut", "nested", "directory", "unservable"])
def test_the_query_in_the_name_of_a_tar_is_in_no_refusal(scene: Scene, make: str) -> None:
    if make == "cut":
        scene.file(tar_of(vendor(1))[:50_000], DOWNLOADED)
    elif make == "nested":
        scene.tar(top="export/laguna-xs").rename(scene.directory / DOWNLOADED)
    elif make == "unservable":
        scene.tar({"config.json": b'{"model_type": "tiny"}'}).rename(scene.directory / DOWNLOADED)
    elif make == "directory":
        (scene.directory / DOWNLOADED).mkdir()
    for command in ("check", "upload"):
        where = [URI] if command == "upload" else []
        codes = {"nothing": 10, "cut": 16, "nested": 17, "unservable": 17, "directory": 16}
        outcome = scene.programs.staging(command, DOWNLOADED, *where, "--json", expect=codes[make])
        assert_no_canary(scene, outcome)


def test_a_name_that_is_no_utf_8_is_published_as_what_can_be_read(scene: Scene) -> None:
    name = os.fsdecode(b"laguna\xff\x1b-xs.tar")
    scene.tar().rename(scene.directory / name)
    scene.programs.staging("upload", name, URI)
    shown = scene.programs.staging("show", URI, "--json").document["checkpoint"]
    assert shown["source"]["name"] == "laguna\ufffd -xs.tar"


def test_a_password_in_the_endpoint_is_not_repeated(scene: Scene) -> None:
    scene.environment["AWS_ENDPOINT_URL"] = "http://canary:canary@127.0.0.1:1"
    refused = scene.programs.download(URI, "node", "--json", expect=2)
    assert refused.reference == "connection-settings"
    assert "AWS_ACCESS_KEY_ID" in refused.hint
    assert_no_canary(scene, refused)
