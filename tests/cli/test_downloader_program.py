"""`model-downloader` in a pod: settings, log, plan, what is found before a byte moves (I13, I14)."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from downloader import termination
from downloader.ending import PodEnding
from downloader.log import Course, Log
from downloader.orders import environment_pairs, read_orders
from downloader.program import run_downloader
from staging.directory import access
from staging.vocabulary.errors import NotFound, UsageError
from staging.vocabulary.events import Moved, Started
from staging.vocabulary.manifest import Manifest
from tests.cli.programs import DOWNLOADER, Outcome, Programs
from tests.support.checkpoints import hugging_face, manifest_of, read_tree, vendor
from tests.support.s3server import Bucket, ScriptedS3

A, B = vendor(1, 3_000_000), vendor(2, 2_000_000)


@pytest.fixture
def bucket(scripted_s3: ScriptedS3) -> Bucket:
    return scripted_s3.bucket("models")


@pytest.fixture
def programs(tmp_path: Path, scripted_s3: ScriptedS3, bucket: Bucket) -> Programs:
    return Programs(tmp_path, scripted_s3)


def publish(bucket: Bucket, name: str, files: Mapping[str, bytes]) -> Manifest:
    manifest = manifest_of(files)
    for path, data in files.items():
        bucket.put(f"{name}/{path}", data)
    bucket.put(f"{name}/.checkpoint/manifest.json", manifest.encode())
    return manifest


def events(outcome: Outcome) -> list[dict[str, Any]]:
    """The lines on stderr, each of them one object with the members that all have."""
    lines = [json.loads(line) for line in outcome.stderr.splitlines()]
    for line in lines:
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", line["time"])
        assert line["level"] in ("INFO", "WARNING", "ERROR")
        assert line["event"]
        assert line["message"]
    return lines


def contents(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()
    }


# --- orders ---


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, ()),
        ({"MODEL_URI": "s3://b/a/", "MODEL_DIR": "/m"}, ("s3://b/a/", "/m")),
        ({"MODEL_PAIRS": " s3://b/a/ /a\n s3://b/b/\t/b "}, ("s3://b/a/", "/a", "s3://b/b/", "/b")),
        ({"MODEL_PAIRS": " "}, ()),
        ({"MODEL_PAIRS": "", "MODEL_URI": "s3://b/a/"}, ("s3://b/a/",)),
    ],
)
def test_pairs_come_from_the_environment(
    environment: dict[str, str], expected: tuple[str, ...]
) -> None:
    assert environment_pairs(environment) == expected


def test_two_ways_to_say_it_are_one_too_many() -> None:
    with pytest.raises(UsageError, match="both MODEL_PAIRS and MODEL_URI"):
        environment_pairs({"MODEL_PAIRS": "s3://b/a/ /a", "MODEL_DIR": "/b"})


def test_links_to_one_version_are_two_places(tmp_path: Path) -> None:
    (tmp_path / "version").mkdir()
    for name in ("one", "two"):
        (tmp_path / name).symlink_to("version")
    pairs = ["s3://models/a/", str(tmp_path / "one"), "s3://models/a/", str(tmp_path / "two")]
    assert len(read_orders(pairs, [])) == 2


# --- the log ---


def test_the_first_line_says_what_and_the_last_how_it_went(
    programs: Programs, bucket: Bucket
) -> None:
    manifest = publish(bucket, "a", A)
    done = programs.download(
        "s3://models/a", "node", "--log-format", "json", MODEL_REGION="eu-west-1"
    )
    lines = events(done)
    first, facts, last = lines[0], lines[2], lines[-1]
    assert first["event"] == "start"
    assert (first["uri"], first["directory"]) == ("s3://models/a/", "node")
    assert first["version"] in first["message"]
    assert facts["event"] == "checkpoint"
    assert facts["id"] == manifest.id
    assert facts["needed_bytes"] >= manifest.total_size
    assert facts["free_bytes"] > facts["needed_bytes"]
    assert (facts["principal_kind"], facts["region"]) == ("static-key", "eu-west-1")
    assert facts["principal"] in facts["message"]
    assert last["event"] == "done"
    assert (last["id"], last["fetched_bytes"]) == (manifest.id, manifest.total_size)
    assert (last["reused_bytes"], last["retries"], last["attempt"]) == (0, 0, 1)
    (moved,) = (line for line in lines if line.get("phase") == "download" and "retries" in line)
    assert moved["verified_bytes"] == moved["total_bytes"] == manifest.total_size
    # As text the same, a line each; a version that is pinned and there is told without asking anybody.
    again = programs.download("s3://models/a", "node", MODEL_EXPECT_ID=manifest.id)
    shown = again.stderr.splitlines()
    assert len(shown) == 2
    assert manifest.id in shown[0]
    assert "pinned" in shown[0]
    assert shown[1].endswith(f"node already holds {manifest.id}")


def test_a_failure_is_the_last_line_in_both_forms(programs: Programs, bucket: Bucket) -> None:
    bucket.put("other", b"")
    text = programs.download("s3://models/a", "node", expect=10).stderr.splitlines()
    assert text[-2].startswith("ERROR exit=10 prefix-empty store: no published checkpoint at s3://")
    assert text[-1].startswith("HINT ")
    for given in (["--log-format=json"], ["--log-format", "json"], []):
        # An option wins over its variable.
        variable = "text" if given else "json"
        outcome = programs.download(
            "s3://models/a", "node", *given, expect=10, MODEL_LOG_FORMAT=variable
        )
        last = events(outcome)[-1]
        assert (last["event"], last["level"]) == ("failed", "ERROR")
        assert (last["exit"], last["reference"], last["side"]) == (10, "prefix-empty", "store")
        assert last["message"] in text[-2]
        assert f"HINT {last['hint']}" == text[-1]


def test_usage_errors_and_verify_speak_json_too(programs: Programs, bucket: Bucket) -> None:
    wrong = programs.download("--log-format", "json", "--nonsense", expect=2)
    assert events(wrong)[-1]["reference"] == "usage"
    publish(bucket, "a", A)
    programs.download("s3://models/a", "node")
    (programs.directory / "node/config.yaml").unlink()
    changed = programs.download("verify", "node", expect=11, MODEL_LOG_FORMAT="json")
    assert changed.stderr.splitlines()[-1].startswith('{"time"')
    assert json.loads(changed.stderr.splitlines()[-1])["reference"] == "verify-differs"


def test_printing_can_be_set_by_variables(programs: Programs, bucket: Bucket) -> None:
    publish(bucket, "a", A)
    quiet = programs.download("s3://models/a", "node", MODEL_QUIET="1", MODEL_JSON="true")
    assert quiet.stderr == ""
    assert quiet.document["checkpoints"][0]["already_present"] is False
    failed = programs.download("s3://models/b", "node", MODEL_JSON="1", expect=10)
    assert failed.document["error"]["code"] == 10


def test_every_setting_but_help_has_a_variable() -> None:
    from downloader.program import download

    without = {
        name
        for parameter in download.params
        for name in parameter.opts
        if name.startswith("--") and not parameter.envvar
    }
    assert without == {"--version"}


def test_the_course_of_a_run_counts_the_phase_that_runs() -> None:
    course = Course()
    assert course.text() == "nothing was downloaded"
    for event in (Started("check", 5, 1), Moved(5), Started("download", 2000, 3), Moved(1500)):
        course(event)
    assert course.text() == "download: 1.5 kB of 2.0 kB verified"


# --- the termination message ---


def test_the_cause_goes_to_the_termination_log(programs: Programs, bucket: Bucket) -> None:
    bucket.put("other", b"")
    message = programs.directory / "message"
    message.write_text("x" * 10_000)
    command = ["s3://models/a", "node", "--termination-log", "message"]
    outcome = programs.download(*command, expect=10)
    assert message.read_text().splitlines() == outcome.stderr.splitlines()[-2:]
    manifest = publish(bucket, "a", A)
    programs.download(*command[:2], MODEL_TERMINATION_LOG="message")
    assert message.read_text() == f"node {manifest.id}"
    programs.download("--nonsense", *command, expect=2)
    assert message.read_text().startswith("ERROR exit=2 usage ")


def test_a_termination_message_is_short_and_never_an_error(tmp_path: Path) -> None:
    path = tmp_path / "message"
    termination.write(str(path), "ä" * 5000)
    data = path.read_bytes()
    assert len(data) <= termination.LIMIT
    assert data.decode().endswith("ä…")
    for hopeless in (tmp_path, tmp_path / "not/there", "\0", "/dev/full"):
        termination.write(str(hopeless), "text")
    os.mkfifo(tmp_path / "pipe")
    termination.write(str(tmp_path / "pipe"), "nobody reads")


def test_secrets_stay_out_of_every_form(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    secret = "?X-Amz-Signature=canary"
    error = NotFound(f"https://h/p{secret}\nx", reference="file", hint=f"see https://h/p{secret}")
    error.add_note(f"https://h/p{secret}")
    for form in ("text", "json"):
        path = tmp_path / form
        ending = PodEnding(Log(form), as_json=True, termination_log=str(path))
        ending.tell(error)
        ending.tell(error)  # the second one says nothing
        assert ending.tell_without_waiting(UsageError("x", reference="usage")) == 10
        assert "canary" not in path.read_text()
    printed = capfd.readouterr()
    assert "canary" not in printed.out + printed.err
    assert printed.err.count("\n") == 3 + 1


# --- everything is looked at before anything is fetched ---


def content(scripted_s3: ScriptedS3) -> set[str]:
    """Keys of which more than a header was asked for."""
    return {
        request.key
        for request in scripted_s3.requests.of("GetObject")
        if request.range is not None and int(request.range.rpartition("-")[2]) > 1_000_000
    }


def test_all_pairs_are_checked_before_the_first_byte_of_any(
    programs: Programs, scripted_s3: ScriptedS3, bucket: Bucket
) -> None:
    publish(bucket, "a", A)
    outcome = programs.download(
        "s3://models/a", "one", "s3://models/wrong", "no/where/two", "--json", expect=10
    )
    found = outcome.document["findings"]
    assert {finding["reference"] for finding in found} == {"destination", "prefix-empty"}
    notes = [line for line in outcome.stderr.splitlines() if line.startswith("NOTE ")]
    assert len(notes) == 1
    assert content(scripted_s3) == set()
    assert not (programs.directory / "one").exists()


@pytest.mark.parametrize("by", ["arguments", "variable"])
def test_several_pairs_are_carried_out(programs: Programs, bucket: Bucket, by: str) -> None:
    ids = [publish(bucket, "a", A).id, publish(bucket, "b", B).id]
    pairs = ["s3://models/a", "one", "s3://models/b", "two"]
    if by == "arguments":
        done = programs.download(*pairs)
    else:
        done = programs.download(MODEL_PAIRS=" ".join(pairs), MODEL_EXPECT_ID=" ".join(ids))
    assert done.stdout == f"one {ids[0]}\ntwo {ids[1]}\n"
    assert read_tree(programs.directory / "one") == A
    assert read_tree(programs.directory / "two") == B


def test_a_dry_run_shows_the_plan_and_changes_nothing(
    programs: Programs, scripted_s3: ScriptedS3, bucket: Bucket
) -> None:
    manifest = publish(bucket, "a", A)
    plan = programs.download("s3://models/a", "node", "--dry-run", "--json").document["plans"]
    assert [entry["id"] for entry in plan] == [manifest.id]
    assert plan[0]["fetch_files"] == plan[0]["files"] == len(A)
    assert plan[0]["fetch_bytes"] == plan[0]["total_size"] == manifest.total_size
    assert plan[0]["needed_bytes"] >= manifest.total_size
    assert plan[0]["already_present"] is False
    assert content(scripted_s3) == set()
    assert contents(programs.directory) == {}
    line = programs.download("s3://models/a", "node", MODEL_DRY_RUN="1").stdout
    assert line.startswith(f"node {manifest.id} {len(A)} of {len(A)} files to fetch, 3.0 MB")
    # Of a directory that holds an older version only what differs; it stays as it is.
    publish(bucket, "b", A | {"config.yaml": b"model: other\n"})
    programs.download("s3://models/a", "node")
    before = contents(programs.directory)
    (update,) = programs.download("s3://models/b", "node", "--dry-run", "--json").document["plans"]
    assert (update["fetch_files"], update["fetch_bytes"]) == (1, len(b"model: other\n"))
    (there,) = programs.download("s3://models/a", "node", "--dry-run", "--json").document["plans"]
    assert there["already_present"] is True
    assert contents(programs.directory) == before
    # Its exit codes are those of a real run.
    assert programs.download("s3://models/c", "node", "--dry-run", expect=10).stdout == ""
    assert contents(programs.directory) == before


def test_an_identity_that_was_lost_is_not_replaced_by_another(
    programs: Programs, scripted_s3: ScriptedS3, bucket: Bucket
) -> None:
    publish(bucket, "a", A)
    role = "arn:aws:iam::123456789012:role/inference"
    outcome = programs.download("s3://models/a", "node", expect=12, AWS_ROLE_ARN=role)
    assert outcome.reference == "identity-fallback"
    assert role in outcome.error
    assert len(scripted_s3.requests) == 0


# --- other ways to bring it ---


def test_a_cache_holds_versions_and_the_destination_is_a_link(
    programs: Programs, scripted_s3: ScriptedS3, bucket: Bucket
) -> None:
    manifest = publish(bucket, "a", A)
    once = ["s3://models/a", "node", "--cache", "cache"]
    assert programs.download(*once, "--dry-run").code == 0
    assert contents(programs.directory) == {}
    done = programs.download(*once, "s3://models/a", "other")
    assert done.stdout == f"node {manifest.id}\nother {manifest.id}\n"
    version = manifest.id.replace(":", "-")
    for name in ("node", "other"):
        assert os.readlink(programs.directory / name) == f"cache/{version}"
        assert read_tree(programs.directory / name) == A
    scripted_s3.requests.clear()
    programs.download(*once, "--expect-id", manifest.id)
    assert len(scripted_s3.requests) == 0
    refused = programs.download(*once, "--unverified", "allow", expect=2)
    assert refused.reference == "arguments"


def test_a_prefix_without_a_manifest_is_fetched_when_that_is_allowed(
    programs: Programs, bucket: Bucket
) -> None:
    for path, data in A.items():
        bucket.put(f"a/{path}", data)
    refused = programs.download("s3://models/a", "node", expect=10)
    assert refused.reference == "not-published"
    assert "--unverified allow" in refused.hint
    dry = programs.download("s3://models/a", "node", "--unverified", "allow", "--dry-run")
    assert dry.stdout.startswith(f"node unverified {len(A)} of {len(A)} files to fetch")
    done = programs.download("s3://models/a", "node", MODEL_UNVERIFIED="allow")
    assert done.stdout.endswith(" unverified\n")
    assert read_tree(programs.directory / "node") == A


def test_what_came_unverified_must_have_the_pinned_id(programs: Programs, bucket: Bucket) -> None:
    for path, data in A.items():
        bucket.put(f"a/{path}", data)
    command = ["s3://models/a", "node", "--unverified", "allow"]
    programs.download(*command)
    wrong = "sha256:" + "0" * 64
    for more in ([], ["--dry-run"]):
        refused = programs.download(*command, *more, "--expect-id", wrong, expect=11)
        assert refused.reference == "id-mismatch"
        assert refused.stdout == ""


@pytest.mark.parametrize("more", [[], ["--dry-run"], ["s3://models/b", "other"]], ids=str)
def test_a_copy_that_is_not_whole_is_refused_in_every_way(
    programs: Programs, bucket: Bucket, more: list[str]
) -> None:
    for path, data in hugging_face(1).items():
        if "00002-of" not in path:
            bucket.put(f"a/{path}", data)
    publish(bucket, "b", B)
    command = ["s3://models/a", "node", *more, "--unverified", "allow"]
    assert programs.download(*command, expect=17).reference == "shards-missing"
    bucket.open_upload("a/model-00002-of-00002.safetensors")
    assert programs.download(*command, expect=15).reference == "copy-unfinished"
    assert contents(programs.directory) == {}


def test_verify_says_that_a_directory_came_unverified(programs: Programs, bucket: Bucket) -> None:
    for path, data in A.items():
        bucket.put(f"a/{path}", data)
    programs.download("s3://models/a", "node", "--unverified", "allow")
    publish(bucket, "b", A)
    programs.download("s3://models/b", "proven")
    for verify in (programs.staging, programs.download):
        for name, unverified in (("node", True), ("proven", False)):
            shown = verify("verify", name, "--level", "digest").stdout
            assert shown.rstrip("\n").endswith(" ok, unverified" if unverified else " ok")
            found = verify("verify", name, "--json").document["verify"]
            assert (found["passed"], found["unverified"]) == (True, unverified)


@pytest.mark.parametrize("more", [[], ["--unverified", "allow"]], ids=str)
def test_after_adopting_the_mark_goes_without_a_byte(
    programs: Programs, scripted_s3: ScriptedS3, bucket: Bucket, more: list[str]
) -> None:
    for path, data in A.items():
        bucket.put(f"a/{path}", data)
    programs.download("s3://models/a", "node", "--unverified", "allow")
    inode = (programs.directory / "node/model.safetensors").stat().st_ino
    adopted = programs.staging("adopt", "s3://models/a/", "--json").document["adopt"]
    scripted_s3.requests.clear()
    done = programs.download("s3://models/a", "node", *more, "--json").document["checkpoints"][0]
    assert (done["id"], done["fetched_bytes"], done["unverified"]) == (adopted["id"], 0, False)
    read = {request.key for request in scripted_s3.requests.of("GetObject")}
    assert read == {"a/.checkpoint/manifest.json"}
    assert (programs.directory / "node/model.safetensors").stat().st_ino == inode
    found = programs.download("verify", "node", "--json").document["verify"]
    assert found["unverified"] is False


# --- caches ---


def test_what_else_lies_beside_the_versions_of_a_cache_is_in_nobodys_way(
    programs: Programs, bucket: Bucket
) -> None:
    ids = [publish(bucket, "a", A).id, publish(bucket, "b", B).id]
    volume = programs.directory / "volume"
    volume.mkdir()
    for name in ("config.yaml", "other.safetensors"):
        (volume / name).write_bytes(b"somebody's")
    plan = ["s3://models/a", "volume/a", "s3://models/b", "volume/b", "--cache", "volume"]
    plans = programs.download(*plan, "--dry-run", "--json").document["plans"]
    assert [entry["fetch_files"] for entry in plans] == [len(A), len(B)]
    assert [entry["check_files"] for entry in plans] == [0, 0]
    done = programs.download(*plan)
    assert done.stdout == f"volume/a {ids[0]}\nvolume/b {ids[1]}\n"
    assert read_tree(volume / "a") == A
    assert (volume / "other.safetensors").read_bytes() == b"somebody's"


def test_what_other_versions_have_needs_no_room(programs: Programs, bucket: Bucket) -> None:
    publish(bucket, "a", A)
    publish(bucket, "b", A | {"config.yaml": b"model: other\n"})
    programs.download("s3://models/a", "node", "--cache", "cache")
    done = programs.download("s3://models/b", "node", "--cache", "cache", "--log-format", "json")
    (facts,) = (line for line in events(done) if line["event"] == "checkpoint")
    assert facts["total_size"] > 3_000_000
    assert facts["needed_bytes"] < 1_000_000


def test_remains_of_a_replaced_version_are_in_nobodys_way(
    programs: Programs, bucket: Bucket
) -> None:
    """A kill right after a damaged version was replaced leaves it where the next one is filled."""
    manifest = publish(bucket, "a", A)
    command = ["s3://models/a", "node", "--cache", "cache"]
    programs.download(*command)
    version = manifest.id.replace(":", "-")
    work = programs.directory / "cache/.checkpoint-cache/filling" / version
    (programs.directory / "cache" / version).rename(work)
    (work / "config.yaml").write_bytes(b"damaged")
    programs.download(*command, "--dry-run")
    programs.download(*command)
    assert read_tree(programs.directory / "node") == A


def test_a_link_that_nobody_could_make_is_found_before_the_first_byte(
    tmp_path: Path,
    scripted_s3: ScriptedS3,
    bucket: Bucket,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    manifest = publish(bucket, "a", A)
    for name, value in Programs(tmp_path, scripted_s3).environment.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "pods").mkdir()
    locked = (tmp_path / "pods").stat().st_ino
    real = access.may_write

    def may_write(name: str, *, dir_fd: int) -> bool:
        return os.stat(name, dir_fd=dir_fd).st_ino != locked and real(name, dir_fd=dir_fd)

    monkeypatch.setattr(access, "may_write", may_write)
    link, cache = tmp_path / "pods/model", tmp_path / "cache"
    command = ["s3://models/a", str(link), "--cache", str(cache), "--quiet"]
    for more in ([], ["--dry-run"]):
        assert run_downloader([*command, *more]) != 0
        assert "local-permission" in capfd.readouterr().err
    assert content(scripted_s3) == set()
    assert not cache.exists()
    # Nothing has to be written where it points to the version already.
    monkeypatch.setattr(access, "may_write", real)
    assert run_downloader(command) == 0
    monkeypatch.setattr(access, "may_write", may_write)
    (cache / manifest.id.replace(":", "-") / "config.yaml").unlink()
    assert run_downloader(command) == 0
    assert read_tree(link) == A


def test_verify_and_show_follow_the_link_into_a_cache(programs: Programs, bucket: Bucket) -> None:
    manifest = publish(bucket, "a", A)
    programs.download("s3://models/a", "node", MODEL_CACHE="cache")
    assert (programs.directory / "node").is_symlink()
    for verify in (programs.staging, programs.download):
        shown = verify("verify", "node", "--level", "digest").stdout
        assert shown == f"node {manifest.id} digest ok\n"
    assert programs.staging("show", "node").stdout.rstrip().endswith(manifest.id)
    # Any other link is the operator's mistake, or somebody's trap.
    (programs.directory / "mine").symlink_to(".")
    programs.staging("verify", "mine", expect=15)
    programs.staging("show", "mine", expect=15)


# --- a pod's surroundings ---


def test_no_home_no_input_and_an_unknown_user_are_enough(
    programs: Programs, bucket: Bucket
) -> None:
    publish(bucket, "a", A)
    del programs.environment["HOME"]
    node = programs.directory / "node"
    node.mkdir()
    shell = ["sh", "-c", 'exec "$@" <&-', "sh"]
    programs.run([*shell, *DOWNLOADER, "s3://models/a", str(node)])
    assert read_tree(node) == A
