"""What `Dockerfile.downloader`, `.dockerignore` and `scripts/image` promise, read from the files themselves.

Covers I13 for images (no credential in a layer, the history or the environment) and the supply chain: the
image holds the locked packages and the project, and nothing came unproven over the network.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from staging import __version__
from tests.packaging.dockerfile import ROOT, Dockerfile, Instruction
from tests.packaging.pod import kept_services

VENV = "/opt/model-downloader"

SECRET_NAME = re.compile(r"(?i)token|secret|passw|credential|(^|_)key|index_?url|proxy|netrc")
HOST = re.compile(
    r"(?i)\b[a-z0-9-]+\.(com|org|net|io|dev|cloud|ai|co|internal|local|me|sh)\b(?!\.)"
)
FETCHERS = {"apt", "apt-get", "apk", "curl", "dnf", "git", "microdnf", "uv", "wget", "yum"}
SHELLS = {"sh", "bash", "dash", "eval", "source", "."}


@pytest.fixture(scope="module")
def dockerfile() -> Dockerfile:
    return Dockerfile.read()


def pip_commands(dockerfile: Dockerfile) -> list[tuple[Instruction, list[str]]]:
    return [
        (run, command)
        for stage in dockerfile.stages
        for run in stage.all("RUN")
        for command in run.commands()
        if any(Path(word).name in {"pip", "pip3"} for word in command)
    ]


def option(command: list[str], name: str) -> str | None:
    return command[command.index(name) + 1] if name in command else None


def locked(name: str) -> dict[str, tuple[str, frozenset[str]]]:
    """Names, versions and hashes of a lock file."""
    text = (ROOT / "requirements" / name).read_text().replace("\\\n", " ")
    entries: dict[str, tuple[str, frozenset[str]]] = {}
    for line in text.splitlines():
        match = re.match(r"([A-Za-z0-9._-]+)==([^ ;]+)", line)
        assert match, f"{name}: {line[:80]!r} is not pinned"
        entries[canonicalize_name(match[1])] = (
            match[2],
            frozenset(re.findall(r"--hash=(sha256:[0-9a-f]{64})\b", line)),
        )
    return entries


# The Dockerfile


def test_two_stages_on_one_base_named_by_tag(dockerfile: Dockerfile) -> None:
    assert dockerfile.arguments.keys() == {"BASE"}
    assert re.fullmatch(r"[a-z]+:[0-9][0-9a-z.-]+", dockerfile.arguments["BASE"])
    assert [stage.base for stage in dockerfile.stages] == ["${BASE}"] * 2


def test_runtime_stage_is_the_virtual_environment_alone(dockerfile: Dockerfile) -> None:
    build, runtime = dockerfile.stages
    copy = runtime.the("COPY")
    assert copy.flags == (("from", build.name),)
    assert copy.words() == [VENV, VENV]
    assert {entry.keyword for entry in runtime.instructions} <= {
        *("LABEL", "COPY", "ENV", "USER", "WORKDIR", "STOPSIGNAL", "ENTRYPOINT", "CMD")
    }


def test_user_is_a_number_and_not_root(dockerfile: Dockerfile) -> None:
    user, group = dockerfile.stages[-1].the("USER").text.split(":")
    assert int(user) > 0
    assert int(group) > 0


def test_started_without_a_shell(dockerfile: Dockerfile) -> None:
    runtime = dockerfile.stages[-1]
    assert runtime.the("ENTRYPOINT").exec_form() == [f"{VENV}/bin/python3", "-m", "downloader"]
    assert runtime.the("CMD").exec_form() == []
    assert runtime.the("STOPSIGNAL").text == "SIGTERM"


def test_runtime_environment(dockerfile: Dockerfile) -> None:
    assert dockerfile.stages[-1].environment() == {
        "PATH": f"{VENV}/bin:${{PATH}}",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONNOUSERSITE": "1",
        "PYTHONPYCACHEPREFIX": f"{VENV}/pycache",
        "PYTHONSAFEPATH": "1",
    }


def test_nothing_in_the_image_or_its_history_can_be_a_credential(dockerfile: Dockerfile) -> None:
    for stage in dockerfile.stages:
        assert not stage.all("ARG"), "values of build arguments stay in the history"
        for name, value in stage.environment().items():
            assert not SECRET_NAME.search(name), name
            assert "://" not in value, name
            assert "@" not in value, name


def test_packages_come_hash_checked_or_from_the_build_itself(dockerfile: Dockerfile) -> None:
    installs = [entry for entry in pip_commands(dockerfile) if "install" in entry[1]]
    assert len(installs) == 3
    for run, command in installs:
        if "--no-index" in command:
            assert "--no-deps" in command
            assert command[-1] == "checkpoint-staging"
            assert not run.flags, "no network, no configuration"
        else:
            assert "--require-hashes" in command
            assert option(command, "--only-binary") == ":all:"
            lock = option(command, "--requirement")
            assert lock in {"downloader.txt", "build.txt"}
            assert command[-1] == lock, "nothing is named beside the lock"
            assert run.flags == (("mount", "type=secret,id=pip.conf,target=/etc/pip.conf"),)


def test_nothing_else_fetches_and_nothing_fetched_is_run(dockerfile: Dockerfile) -> None:
    for stage in dockerfile.stages:
        assert not stage.all("ADD")
        for run in stage.all("RUN"):
            for command in run.commands():
                assert command not in (["|"], ["|&"]), run.text
                assert Path(command[0]).name not in FETCHERS | SHELLS, command
    verbs = {
        next(w for w in command if w in {"install", "check"})
        for _, command in pip_commands(dockerfile)
    }
    assert verbs == {"install", "check"}


def test_every_run_makes_files_that_any_user_can_read(dockerfile: Dockerfile) -> None:
    for run in dockerfile.stages[0].all("RUN"):
        assert run.commands()[:2] == [["set", "-eu"], ["umask", "022"]]


def test_sdk_keeps_s3_and_all_that_finds_credentials() -> None:
    # credentials of its chain come from these: roles of service accounts, SSO, `aws login`
    assert kept_services() == {"s3", "sts", "sso", "sso-oidc", "signin"}


def test_no_host_is_named() -> None:
    for name in ("Dockerfile.downloader", ".dockerignore", "scripts/image"):
        text = (ROOT / name).read_text()
        assert not HOST.search(text), name
        assert "://" not in text, name


def test_labels(dockerfile: Dockerfile) -> None:
    prefix = "org.opencontainers.image."
    labels = dockerfile.stages[-1].the("LABEL").pairs()
    assert labels.keys() == {prefix + name for name in ("title", "description", "licenses")}
    assert f'license = "{labels[prefix + "licenses"]}"' in (ROOT / "pyproject.toml").read_text()


# What goes in


def test_lock_of_the_image_is_a_part_of_the_lock_of_the_tests() -> None:
    tested, shipped = locked("test.txt"), locked("downloader.txt")
    assert {name: tested.get(name) for name in shipped} == shipped
    assert all(hashes for _, hashes in shipped.values())


def test_lock_of_the_image_has_nothing_of_the_staging_box() -> None:
    assert not locked("downloader.txt").keys() & {"awscrt", "tqdm", "pip", "setuptools", "moto"}


def test_lock_of_the_build_is_whole() -> None:
    needed: set[str] = set()
    waiting = ["hatchling"]
    while waiting:
        name = waiting.pop()
        if name not in needed:
            needed.add(name)
            wanted = [Requirement(line) for line in requires(name) or []]
            waiting += [
                canonicalize_name(entry.name)
                for entry in wanted
                if entry.marker is None or entry.marker.evaluate({"extra": ""})
            ]
    assert needed <= locked("build.txt").keys()


def test_builder_is_shown_what_it_copies_and_no_more(dockerfile: Dockerfile) -> None:
    copied = {source for copy in dockerfile.stages[0].all("COPY") for source in copy.words()[:-1]}
    lines = [
        line
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    assert lines[0] == "*"
    shown = {line.removeprefix("!") for line in lines if line.startswith("!")}
    assert shown - {"requirements"} == copied
    # The directory is shown for two of its files; the rest is hidden again before those are named.
    hidden = lines.index("requirements/*")
    assert lines.index("!requirements") < hidden
    assert all(hidden < lines.index(f"!{name}") for name in copied if "/" in name)
    assert "**/__pycache__" in lines[hidden:]


# scripts/image


@pytest.fixture
def engines(tmp_path: Path) -> Path:
    """A directory to be PATH, with what the script uses and no engine."""
    path = tmp_path / "bin"
    path.mkdir()
    for tool in ("basename", "cat", "dirname", "git", "sed", "sh"):
        found = shutil.which(tool)
        if found:
            (path / tool).symlink_to(found)
    return path


def add_engine(path: Path, name: str, *, works: bool = True) -> None:
    """A program that tells its arguments instead of building."""
    program = path / name
    program.write_text(
        "#!/bin/sh\n"
        f'if [ "$1" = info ]; then exit {0 if works else 1}; fi\n'
        f'printf "%s\\n" {name} "$@"\n'
    )
    program.chmod(0o755)


def image(path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", str(ROOT / "scripts/image"), *arguments],
        env={"PATH": str(path)},
        cwd=path,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("there", "broken", "chosen"),
    [
        (["docker", "podman", "buildah"], [], "docker"),
        (["podman", "buildah"], ["docker"], "podman"),
        (["buildah"], ["docker", "podman"], "buildah"),
        (["buildah"], [], "buildah"),
    ],
)
def test_first_engine_that_works_is_used(
    engines: Path, there: list[str], broken: list[str], chosen: str
) -> None:
    for name in there:
        add_engine(engines, name)
    for name in broken:
        add_engine(engines, name, works=False)
    process = image(engines)
    assert process.returncode == 0, process.stderr
    words = process.stdout.splitlines()
    assert words[:2] == [chosen, "build"]
    assert words[words.index("--tag") + 1] == f"model-downloader:{__version__}"
    assert f"org.opencontainers.image.version={__version__}" in words


def test_without_an_engine_there_is_a_hint(engines: Path) -> None:
    add_engine(engines, "docker", works=False)
    process = image(engines)
    assert process.returncode == 1
    assert process.stdout == ""
    assert process.stderr.startswith("error: no working docker, podman or buildah")
    assert "\nhint: " in process.stderr


def test_arguments_reach_the_engine(engines: Path) -> None:
    add_engine(engines, "docker")
    add_engine(engines, "buildah")
    (engines / "pip conf").write_text("[global]\n")
    process = image(
        engines,
        *("--engine", "buildah", "--base", "localhost/python:3.12", "--tag", "pods/loader:9"),
        *("--pip-conf", "pip conf", "--", "--no-cache", "two words"),
    )
    assert process.returncode == 0, process.stderr
    words = process.stdout.splitlines()
    assert words[0] == "buildah"
    assert words[words.index("--file") + 1] == "Dockerfile.downloader"
    assert words[words.index("--tag") + 1] == "pods/loader:9"
    assert words[words.index("--build-arg") + 1] == "BASE=localhost/python:3.12"
    assert words[words.index("--secret") + 1] == f"id=pip.conf,src={engines}/pip conf"
    assert words[-3:] == ["--no-cache", "two words", "."]


@pytest.mark.parametrize(
    "arguments", [["--base"], ["--bogus"], ["--pip-conf", "missing"], ["stray"]]
)
def test_wrong_arguments_build_nothing(engines: Path, arguments: list[str]) -> None:
    add_engine(engines, "docker")
    process = image(engines, *arguments)
    assert process.returncode == 2
    assert process.stdout == ""
    assert process.stderr.startswith("error: ")


def test_script_can_be_run() -> None:
    assert os.access(ROOT / "scripts/image", os.X_OK)
