"""Measured runs, side by side, each of them proven to have done its job.

For each case and transport there are rounds; in a round everybody runs once, in turn, and in the other
order every second time, so that what changes on the machine meanwhile hits all alike. A run that did
not do its job is an error and ends the benchmark: after an upload the server must hold exactly the
expected names with the expected sizes, and no open upload; after a download the files are compared
byte by byte. Before anything is measured everybody's small upload is read back and compared as well.

Client and server get cores of their own where there are two. Memory that a run will take anew is
touched right before it: a virtual machine that has given it back to its host would otherwise wait for it,
sometimes, and for the first command that comes along.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

from benchmarks import process
from benchmarks.contenders import (
    ALL_ROUNDS,
    OURS,
    Contender,
    Direction,
    Job,
    Transport,
    environment,
)
from benchmarks.data import MIB, Case, Checkpoint, build, compare
from benchmarks.process import Usage

_START: Final = 60.0  # seconds the server may take to start
_PATIENCE: Final = 600.0  # seconds a single run may take
_TICKS: Final = os.sysconf("SC_CLK_TCK")
_AHEAD: Final = 1536 * MIB
"""Most that is touched beyond what a run takes: what it takes last, many seconds later, may have been given
back by then.

With 64 MiB runs through a slow network stood still for up to half a second near their ends, those who take
more memory more often.
"""


class WrongResult(Exception):
    """A command said that it succeeded, and the result is not what it must be."""


@dataclass(frozen=True, slots=True)
class Run:
    """One measured run.

    Seconds; bytes; `requests` by operation, `received` and `sent` payload bytes as the server counted
    them, and `server_cpu` seconds that it needed. `masked`: the processor's SHA instructions were kept
    from it. `size` and `files` are what had to be moved.
    """

    case: str
    direction: Direction
    transport: Transport
    contender: str
    round: int
    size: int
    files: int
    wall: float
    user: float
    system: float
    peak: int
    requests: Mapping[str, int]
    received: int
    sent: int
    server_cpu: float
    masked: bool

    @property
    def cpu(self) -> float:
        """CPU seconds of the client."""
        return self.user + self.system

    @property
    def request_count(self) -> int:
        """All requests."""
        return sum(self.requests.values())

    def as_document(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Cores:
    """Which cores the server is on, and which the clients; empty for no pinning."""

    server: tuple[int, ...]
    client: tuple[int, ...]

    @classmethod
    def split(cls) -> Cores:
        """Half and half; the larger half is the clients'."""
        usable = sorted(os.sched_getaffinity(0))
        half = len(usable) // 2
        return cls(tuple(usable[:half]), tuple(usable[half:])) if half else cls((), ())


class Endpoint:
    """The server, in a process of its own, on its own cores."""

    def __init__(self, server: subprocess.Popen[str], ports: Mapping[Transport, int]) -> None:
        self._process = server
        self._ports = ports

    def url(self, transport: Transport) -> str:
        """Where clients find it."""
        return f"{transport}://127.0.0.1:{self._ports[transport]}"

    def state(self, prefix: str = "") -> dict[str, Any]:
        """What lies under a prefix, and the counts since the last reset."""
        state: dict[str, Any] = json.loads(self._ask("GET", "state", prefix))
        return state

    def reset(self, prefix: str) -> None:
        """Drop what lies under a prefix, and the counts."""
        self._ask("POST", "reset", prefix)

    @contextmanager
    def pace(self, rate: int) -> Iterator[None]:
        """Let contents out at `rate` bytes per second meanwhile; 0 is no limit."""
        self._request("POST", f"/-/pace?rate={rate}")
        try:
            yield
        finally:
            self._request("POST", "/-/pace?rate=0")

    def read(self, bucket: str, key: str) -> bytes:
        """A whole kept object."""
        return self._request("GET", f"/{bucket}/{key}")

    def write(self, bucket: str, key: str, body: bytes) -> None:
        """Create an object, or put it in the place of another."""
        self._request("PUT", f"/{bucket}/{key}", body)

    def cpu(self) -> float:
        """CPU seconds it took so far."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    def _ask(self, method: str, what: str, prefix: str) -> bytes:
        return self._request(method, f"/-/{what}?{urlencode({'prefix': prefix})}")

    def _request(self, method: str, target: str, body: bytes | None = None) -> bytes:
        connection = HTTPConnection("127.0.0.1", self._ports["http"], timeout=_START)
        try:
            connection.request(method, target, body)
            answer = connection.getresponse()
            content = answer.read()
        finally:
            connection.close()
        if answer.status >= 300:
            raise RuntimeError(f"the server answered {answer.status} to {method} {target}")
        return content


@contextmanager
def serving(scratch: Path, certificate: Path, key: Path, cores: Cores) -> Iterator[Endpoint]:
    """Run the server until the block ends."""
    kept = scratch / "kept"
    kept.mkdir()
    # The cipher that S3 chooses, and that all clients here can do; else each would use its favourite.
    settings = scratch / "openssl.cnf"
    settings.write_text(
        "openssl_conf = top\n[top]\nssl_conf = ssl\n[ssl]\nsystem_default = tls\n"
        "[tls]\nCiphersuites = TLS_AES_128_GCM_SHA256\n"
    )
    command = [sys.executable, "-m", "benchmarks.server", "--scratch", str(kept)]
    command += ["--certificate", str(certificate), "--key", str(key)]
    command += ["--cpus", ",".join(map(str, cores.server))] if cores.server else []
    with subprocess.Popen(  # noqa: S603 - our own server
        command,
        cwd=Path(__file__).parent.parent,
        env={**os.environ, "OPENSSL_CONF": str(settings)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        assert server.stdout is not None  # noqa: S101 - it is a pipe
        try:
            yield Endpoint(server, json.loads(server.stdout.readline()))
        finally:
            server.terminate()
            server.wait()


@dataclass(frozen=True, slots=True)
class Comparison:
    """Everything a run needs to be started and judged."""

    server: Endpoint
    scratch: Path
    certificate: Path
    cores: Cores
    contenders: Sequence[Contender]
    say: Callable[[str], None]
    without_sha_ni: bool = False

    def prove(self, case: Case, transport: Transport) -> None:
        """Everybody uploads `case` once, and what the server then holds is compared byte by byte."""
        checkpoint = build(case, self.scratch, seed=0)
        for contender in self.contenders:
            if contender.direction != "upload":
                continue
            prefix = f"proof-{transport}-{contender.name}/"
            job = self.job(checkpoint, transport, "keep", prefix)
            self.measure(contender, job, transport, 0)
            read_back = self.scratch / "read-back"
            for name in checkpoint.files:
                path = read_back / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(self.server.read("keep", f"{prefix}{contender.inside}{name}"))
            wrong = compare(read_back, checkpoint)
            shutil.rmtree(read_back)
            self.server.reset(prefix)
            if wrong:
                raise WrongResult(f"{contender.title} uploaded something else: {wrong[0]}")
        checkpoint.tar.unlink()

    def rounds(
        self,
        checkpoint: Checkpoint,
        direction: Direction,
        transport: Transport,
        *,
        at_most: int,
        until: float,
        stored: str = "",
    ) -> list[Run]:
        """Everybody against everybody else; `stored` is the prefix to download.

        No round is started after `until` (monotonic seconds), but for the first.
        """
        field = [contender for contender in self.contenders if contender.direction == direction]
        runs: list[Run] = []
        for number in range(at_most):
            if number and time.monotonic() > until:
                self.say(f"  no time for more than {number} rounds")
                break
            turn = [contender for contender in field if number < _share(contender, at_most)]
            for contender in turn if number % 2 == 0 else reversed(turn):
                prefix = stored or f"{direction}-{transport}-{contender.name}-{number}/"
                bucket = "keep" if stored else "sink"
                job = self.job(checkpoint, transport, bucket, prefix)
                runs.append(self.measure(contender, job, transport, number))
                run = runs[-1]
                self.say(
                    f"  {run.case} {direction} {transport} {number + 1}: {contender.title}:"
                    f" {run.wall:.2f} s, CPU {run.cpu:.2f} s, {run.peak / 1e6:.0f} MB"
                )
                if not stored:
                    self.server.reset(prefix)
        return runs

    def job(self, checkpoint: Checkpoint, transport: Transport, bucket: str, prefix: str) -> Job:
        """A job with an empty tree."""
        tree = self.scratch / "tree"
        shutil.rmtree(tree, ignore_errors=True)
        tree.mkdir()
        certificate = self.certificate if transport == "https" else None
        return Job(checkpoint, tree, self.server.url(transport), bucket, prefix, certificate)

    def measure(
        self,
        contender: Contender,
        job: Job,
        transport: Transport,
        number: int,
        *,
        again: bool = False,
    ) -> Run:
        """Run it once, and look at what it did. Raises WrongResult, and CommandFailed.

        `again`: the job was done before, and bytes may well be there.
        """
        checkpoint = job.checkpoint
        touch(self.scratch, contender.scratch(checkpoint) + min(checkpoint.size, _AHEAD))
        self.server.reset("nothing/")  # the counts alone
        before = self.server.cpu()
        usage = self.run(contender.command(job), transport)
        spent = self.server.cpu() - before
        state = self.server.state(job.prefix)
        if contender.direction == "upload":
            _judge_upload(contender, checkpoint, job.prefix, state)
            sent_again = state["received"] < checkpoint.size
            if sent_again and not again:
                raise WrongResult(f"{contender.title} sent only {state['received']} bytes")
        else:
            wrong = compare(job.tree, checkpoint)
            if wrong:
                raise WrongResult(f"{contender.title} downloaded something else: {wrong[0]}")
            if not again:
                shutil.rmtree(job.tree)
        return Run(
            case=checkpoint.case.name,
            direction=contender.direction,
            transport=transport,
            contender=contender.name,
            round=number,
            size=checkpoint.size,
            files=len(checkpoint.files),
            wall=usage.wall,
            user=usage.user,
            system=usage.system,
            peak=usage.peak,
            requests=state["requests"],
            received=state["received"],
            sent=state["sent"],
            server_cpu=spent,
            masked=self.without_sha_ni,
        )

    def run(self, command: Sequence[str], transport: Transport, *, expect: int = 0) -> Usage:
        """Run a command in the environment that everybody gets. Raises CommandFailed."""
        variables = environment(
            self.scratch,
            self.server.url(transport),
            self.certificate if transport == "https" else None,
            without_sha_ni=self.without_sha_ni,
        )
        return process.measure(
            command,
            environment=variables,
            directory=self.scratch,
            cpus=self.cores.client,
            timeout=_PATIENCE,
            expect=expect,
        )

    def again(self, checkpoint: Checkpoint, transport: Transport, stored: str) -> list[Run]:
        """Our no-ops: a download that is there already, and an upload that is published already."""
        runs = []
        for contender in self.contenders:
            if contender.name != OURS:
                continue
            job = self.job(checkpoint, transport, "keep", stored)
            if contender.direction == "download":
                self.measure(contender, job, transport, 0, again=True)
            runs.append(self.measure(contender, job, transport, 1, again=True))
        return runs


def _share(contender: Contender, at_most: int) -> int:
    """How many of the rounds a contender takes part in: fewer for the slow ones."""
    return max(1, at_most * contender.rounds // ALL_ROUNDS)


def touch(scratch: Path, size: int) -> None:
    """Take `size` bytes of memory and give them back, so that they are at hand.

    Does nothing where the scratch directory is no memory, or has too little left.
    """
    if not in_memory(scratch) or shutil.disk_usage(scratch).free < size:
        return
    block = bytes(4 * MIB)
    path = scratch / "touched"
    with path.open("wb", buffering=0) as file:
        for _ in range(size // len(block)):
            file.write(block)
    path.unlink()


def in_memory(directory: Path) -> bool:
    """True for a tmpfs."""
    best = ("", "")
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, where, kind, *_ = line.split()
        if directory.resolve().is_relative_to(where) and len(where) >= len(best[0]):
            best = (where, kind)
    return best[1] == "tmpfs"


def _judge_upload(
    contender: Contender, checkpoint: Checkpoint, prefix: str, state: Mapping[str, Any]
) -> None:
    """Raise WrongResult unless the server holds exactly what it must."""
    start = prefix + contender.inside
    expected = {start + name: entry.size for name, entry in checkpoint.files.items()}
    found = {
        key: size
        for key, size in state["objects"].items()
        if not key.startswith(f"{prefix}.checkpoint/")
    }
    if found != expected:
        odd = sorted(found.items() ^ expected.items())[0]
        raise WrongResult(f"{contender.title} uploaded something else: {odd[0]} of {odd[1]} bytes")
    if contender.name == OURS and f"{prefix}.checkpoint/manifest.json" not in state["objects"]:
        raise WrongResult("our upload left no manifest")
    if state["uploads"]:
        raise WrongResult(f"{contender.title} left an open upload of {state['uploads'][0]}")
