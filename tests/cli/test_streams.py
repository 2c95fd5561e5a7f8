"""Streams that cannot be written to, and names that would forge lines of a log."""

from __future__ import annotations

import io
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import downloader
from downloader.log import Log
from tests.cli.programs import DOWNLOADER, STAGING, Programs
from tests.support.checkpoints import tar_of, vendor
from tests.support.s3server import ScriptedS3

URI = "s3://models/laguna-xs/"


@pytest.fixture
def programs(tmp_path: Path) -> Iterator[Programs]:
    with ScriptedS3(buckets=["models"]) as server:
        (tmp_path / "model.tar").write_bytes(tar_of(vendor(1)))
        programs = Programs(tmp_path, server)
        programs.staging("upload", "model.tar", URI)
        yield programs


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
@pytest.mark.parametrize("more", [(), ("--json",)])
@pytest.mark.parametrize(
    "command", [[*DOWNLOADER, URI, "node"], [*STAGING, "show", URI]], ids=["download", "show"]
)
def test_a_result_that_cannot_be_written_is_told_in_a_line(
    programs: Programs, command: list[str], more: tuple[str, ...]
) -> None:
    with open("/dev/full", "wb") as full:
        process = subprocess.run(
            [*command, *more],
            cwd=programs.directory,
            env=programs.environment,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=100,
            check=False,
        )
    assert process.returncode == 1
    assert "Traceback" not in process.stderr
    assert "the result cannot be written to stdout: No space left on device" in process.stderr
    assert "defect" not in process.stderr
    if "node" in command:
        assert (programs.directory / "node/.checkpoint/ready.json").exists()


def test_a_name_does_not_forge_a_line(programs: Programs) -> None:
    for forged in ("node\n2026-01-01T00:00:00Z ERROR exit=0 fake", "node\x1b[2J", "node\u2028x"):
        outcome = programs.download(URI, forged, expect=2)
        assert outcome.reference == "arguments"
        assert len(outcome.stderr.splitlines()) == 2  # ERROR and HINT
        assert outcome.stderr.replace("\n", "").isprintable()
    assert sorted(path.name for path in programs.directory.iterdir()) == ["model.tar"]


def test_a_line_stays_one_line() -> None:
    out = io.StringIO()
    Log("text", out).emit("INFO", "start", "to node\n2026-01-01T00:00:00Z ERROR exit=0 fake")
    assert len(out.getvalue().splitlines()) == 1


@pytest.mark.parametrize("program", ["download", "verify", "staging"])
def test_a_relative_path_where_the_working_directory_is_gone(
    programs: Programs, program: str
) -> None:
    command = {
        "download": [*DOWNLOADER, URI, "node"],
        "verify": [*DOWNLOADER, "verify", "node"],
        "staging": [*STAGING, "upload", "model.tar", URI],
    }[program]
    gone = programs.directory / "gone"
    gone.mkdir()
    outcome = programs.run(
        ["/bin/sh", "-c", f'cd {gone} && rmdir {gone} && exec "$@"', "sh", *command],
        expect=2,
        environment={"PYTHONPATH": str(Path(downloader.__file__).parent.parent)},
    )
    assert outcome.reference == "arguments"
    assert "the working directory cannot be found" in outcome.error
