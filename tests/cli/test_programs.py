"""The tests' own way to run programs: a fork ends and prints as a start does, from every entry."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.cli import programs as module
from tests.cli.programs import DOWNLOADER, INSTALLED_DOWNLOADER, STAGING, Outcome, Programs
from tests.support.checkpoints import tar_of, vendor
from tests.support.s3server import ScriptedS3

URI = "s3://models/laguna-xs/"
ENTRIES = {"staging": STAGING, "module": DOWNLOADER, "installed": INSTALLED_DOWNLOADER}


@pytest.fixture
def programs(tmp_path: Path, scripted_s3: ScriptedS3) -> Programs:
    scripted_s3.bucket("models")
    (tmp_path / "laguna-xs.tar").write_bytes(tar_of(vendor(1)))
    return Programs(tmp_path, scripted_s3)


def ended(outcome: Outcome) -> tuple[int, str, str]:
    return outcome.code, outcome.stdout, outcome.stderr


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES)
@pytest.mark.parametrize(
    ("arguments", "code"), [(["--help"], 0), (["--no-such-option"], 2), (["verify", "é\udcff"], 10)]
)
def test_a_fork_does_what_a_start_does(
    programs: Programs,
    monkeypatch: pytest.MonkeyPatch,
    entry: tuple[str, ...],
    arguments: list[str],
    code: int,
) -> None:
    started = programs.run(["env", *entry, *arguments], expect=code)  # `env` makes it a start
    monkeypatch.setattr(module.subprocess, "run", None)
    assert ended(programs.run([*entry, *arguments], expect=code)) == ended(started)


def test_a_started_program_does_the_whole_job(programs: Programs) -> None:
    archive = programs.directory / "laguna-xs.tar"
    programs.run(["env", *STAGING, "upload", "-", URI], stdin=archive)
    for number, entry in enumerate((DOWNLOADER, INSTALLED_DOWNLOADER)):
        programs.run(["env", *entry, URI, f"node-{number}"])
        programs.run(["env", *STAGING, "verify", f"node-{number}", "--level", "digest"])


def test_what_is_piped_in_arrives_whole(programs: Programs) -> None:
    data = tar_of(vendor(2, 1_000_000))
    programs.staging("upload", "-", URI, stdin=data)
    shown = programs.staging("show", URI, "--json").document["checkpoint"]
    assert max(file["size"] for file in shown["files"]) == 1_000_000


def test_a_program_that_hangs_is_killed(
    programs: Programs, scripted_s3: ScriptedS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TIMEOUT", 0.5)
    with scripted_s3.hold(None), pytest.raises(subprocess.TimeoutExpired):
        programs.staging("ls", URI)
