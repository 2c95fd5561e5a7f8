"""The README says what the programs do: its sessions are run line by line, its Python example as it is.

Covers I1 and I4 as a newcomer meets them, over the scripted S3: what is shown is what is printed, up to
times, rates and the number of parts in flight.
"""

from __future__ import annotations

import os
import random
import re
import shlex
import subprocess
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.archives import tar_bytes
from tests.support.checkpoints import hugging_face, read_tree, write_tree
from tests.support.s3server import ScriptedS3
from tests.support.stores import credentials
from tests.support.tensors import safetensors_file

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PROGRAMS = Path(sysconfig.get_path("scripts"))
BUCKET = "my-models"

EXAMPLE = re.compile(
    r"<!-- example: begin -->\n```python\n(.*?)```\n<!-- example: end -->", re.DOTALL
)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
CODE_SPAN = re.compile(r"`([^`\n]+)`")

MASKS = (
    (re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"), "TIME"),
    (re.compile(r"\d+\.\d\d GB/s"), "RATE"),
    (re.compile(r"[\d.]+ [GT]B free"), "SPACE free"),
    (re.compile(r"access key \S+,"), "access key KEY,"),
    (re.compile(r"fetched in \d+\.\d s"), "fetched in SECONDS"),
    (re.compile(r"\d+ at once"), "N at once"),  # depends on the machine's cores and memory
)


@dataclass(frozen=True)
class Step:
    """One command of a session in the README, and what it is said to print."""

    command: str
    output: str


def sessions() -> list[Step]:
    steps: list[Step] = []
    for language, text in FENCE.findall(README):
        if language != "console":
            continue
        for piece in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
            command, _, output = piece.replace("\\\n", "").partition("\n")
            steps.append(Step(command.strip(), output))
    return steps


def laguna_xs() -> dict[str, bytes]:
    """A stand-in in the shape of the vendor's checkpoint; the README shows its names, sizes and digests."""
    seeded = random.Random(20260401)
    return {
        "config.yaml": b"model:\n  kind: laguna\n",
        "generation_config.json": b'{"temperature": 0.7}\n',
        "model.safetensors": safetensors_file(
            {"blocks.0.w": ("U8", [20_000_000], seeded.randbytes(20_000_000))}
        ),
        "tokenizer/tokenizer.json": b'{"model": {"vocab": {}}}\n',
    }


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[tuple[Path, dict[str, str]]]:
    """An operator's directory with the vendor's tar in it, and an environment that reaches a bucket."""
    (tmp_path / "models").mkdir()
    archive = tar_bytes(laguna_xs(), top="laguna_xs")
    (tmp_path / "laguna_xs.tar").write_bytes(archive)
    (tmp_path / "cut.tar").write_bytes(archive[: len(archive) * 2 // 3])
    with ScriptedS3(buckets=[BUCKET]) as server:
        yield (
            tmp_path,
            {
                **credentials(server),
                "AWS_ENDPOINT_URL": server.endpoint_url,
                "AWS_EC2_METADATA_DISABLED": "true",
                "HOME": str(tmp_path),
                "PATH": f"{PROGRAMS}:{os.defpath}",
            },
        )


def run(command: str, directory: Path, environment: dict[str, str]) -> tuple[str, int]:
    """Run a line as typed; the node's `/models` is a directory of the test."""
    here = command.replace(" /models/", f" {directory}/models/")
    process = subprocess.run(
        ["/bin/sh", "-c", here],
        cwd=directory,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        check=False,
        timeout=100,
    )
    return process.stdout.replace(f"{directory}/models/", "/models/"), process.returncode


def masked(text: str) -> str:
    for pattern, mask in MASKS:
        text = pattern.sub(mask, text)
    return text.strip()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_sessions_print_what_the_readme_shows(desk: tuple[Path, dict[str, str]]) -> None:
    directory, environment = desk
    steps = sessions()
    assert len(steps) >= 8
    code = 0
    for step in steps:
        if step.command == "echo $?":
            assert str(code) == step.output.strip()
            continue
        output, code = run(step.command, directory, environment)
        assert masked(output) == masked(step.output), step.command


@pytest.mark.slow
def test_the_choice_of_files_that_the_readme_shows_is_a_checkpoint(
    desk: tuple[Path, dict[str, str]],
) -> None:
    directory, environment = desk
    (choice,) = (span for span in CODE_SPAN.findall(README) if span.startswith("--include "))
    chosen = hugging_face(1)
    write_tree(directory / "tree", {**chosen, "original/params.json": b"{}", "notes.md": b"-"})
    target = f"s3://{BUCKET}/chosen/"
    output, code = run(f"staging upload tree {target} {choice}", directory, environment)
    assert code == 0, output
    output, code = run(f"model-downloader {target} {directory}/came", directory, environment)
    assert code == 0, output
    assert read_tree(directory / "came") == chosen


def test_every_failure_in_a_session_is_followed_by_its_exit_code() -> None:
    steps = sessions()
    for step, after in zip(steps, [*steps[1:], None], strict=True):
        if re.search(r"^(error:|ERROR )", step.output, re.MULTILINE):
            assert after is not None
            assert after.command == "echo $?", step.command


def test_the_python_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    match = EXAMPLE.search(README)
    assert match is not None
    lines = [line for line in match[1].splitlines() if line and not line.startswith(("from", "im"))]
    assert len(lines) <= 15
    files = laguna_xs()
    (tmp_path / "laguna_xs.tar").write_bytes(tar_bytes(files, top="laguna_xs"))
    monkeypatch.chdir(tmp_path)
    with ScriptedS3(buckets=[BUCKET]) as server:
        for name, value in credentials(server).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint_url)
        exec(compile(match[1], "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert re.search(r"sha256:[0-9a-f]{64}", printed)
    for name, data in files.items():
        assert (tmp_path / "laguna-xs" / name).read_bytes() == data


def shown_commands() -> list[list[str]]:
    """Every command line of our programs in the README, in sessions, scripts and running text."""
    lines: list[str] = [step.command for step in sessions()]
    for language, text in FENCE.findall(README):
        if language == "sh":
            lines += text.replace("\\\n", "").splitlines()
    lines += CODE_SPAN.findall(FENCE.sub("", README))
    commands = [
        command.strip() for line in lines for command in re.split(r"&&|\|", line) if command.strip()
    ]
    return [
        shlex.split(command, comments=True)
        for command in commands
        if re.match(r"(staging|model-downloader)( |$)", command)
    ]


def helped(*words: str) -> str:
    process = subprocess.run(
        [str(PROGRAMS / words[0]), *words[1:], "--help"],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=60,
    )
    return process.stdout


def test_every_command_and_option_that_is_shown_exists() -> None:
    commands = shown_commands()
    programs = {" ".join(_program(words)) for words in commands}
    assert programs >= {"staging check", "staging upload", "staging verify", "model-downloader"}
    help_of = {program: helped(*program.split()) for program in programs}
    for words in commands:
        text = help_of[" ".join(_program(words))]
        for word in words:
            if word.startswith("--") and word not in ("--help", "--version"):
                assert re.search(rf"{re.escape(word.split('=')[0])}\b", text), words


def _program(words: list[str]) -> list[str]:
    """The words that name a command: a subcommand is a plain word behind the program's name."""
    if words[0] == "staging" and len(words) > 1 and not words[1].startswith("-"):
        return words[:2]
    return words[:2] if words[:2] == ["model-downloader", "verify"] else words[:1]


def test_links_lead_somewhere() -> None:
    targets = re.findall(r"\]\((?!https?://|#)([^)#]+)", README)
    assert targets
    assert [target for target in targets if not (ROOT / target).exists()] == []
