"""Uploads that are killed at random requests and run again elsewhere, from every kind of source (I6, I12).

The server says when a request has arrived, the upload is killed with SIGKILL at that instant, and another
process, in another directory, with nothing of the first one's, runs the same command. It must end with the
same id; parts are sent twice at most as often as parts were in flight; no upload and no record is left.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import json
import random
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import zstandard

from tests.cli.programs import STAGING, TIMEOUT, Programs
from tests.support.archives import tar_bytes, weights
from tests.support.checkpoints import manifest_of, write_tree
from tests.support.hub import StandInHub
from tests.support.s3server import ScriptedS3
from tests.support.web import WebServer

MIB: Final = 1024 * 1024
CONCURRENCY: Final = 4
"""Parts in flight at most."""

KINDS: Final = ("tar", "pipe", "tar.gz", "tar.zst", "url", "s3", "directory", "hub")
PREFIX: Final = "checkpoints/m/"
FILES: Final = {
    "config.json": b'{"model_type": "llama"}',
    "empty.txt": b"",
    "model-00001-of-00002.safetensors": weights(2 * 16 * MIB + 12345, seed=1),
    "model-00002-of-00002.safetensors": weights(6 * MIB, seed=2),
    "tokenizer.json": b'{"model": {}}',
}


@dataclass(frozen=True)
class Source:
    """How a program is given the files."""

    argument: str
    stdin: Path | None = None
    options: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Tally:
    """What the kills of one kind of source came to."""

    kind: str
    kills: int = 0
    ended_before: int = 0
    parts: int = 0
    sent_twice: int = 0
    most_sent_twice: int = 0


@contextlib.contextmanager
def sources(directory: Path, s3: ScriptedS3) -> Iterator[dict[str, Source]]:
    """The same files as every kind of source."""
    files = dict(FILES)
    archive = tar_bytes(files)
    tar = directory / "model.tar"
    tar.write_bytes(archive)
    packed = directory / "model.tar.gz"
    packed.write_bytes(gzip.compress(archive, 1))
    zst = directory / "model.tar.zst"
    zst.write_bytes(zstandard.compress(archive, 1))
    tree = write_tree(directory / "tree", files)
    s3.bucket("vendor").put("model.tar", archive)
    with WebServer({"/model.tar": archive}) as web, StandInHub() as hub:
        hub.commit("org/model", files)
        yield {
            "tar": Source(str(tar)),
            "pipe": Source("-", stdin=tar),
            "tar.gz": Source(str(packed)),
            "tar.zst": Source("-", stdin=zst),
            "url": Source(
                "https://",
                options=("--allow-http", "--allow-private-address"),
                environment={"STAGING_SOURCE_URL": web.url("/model.tar", "X-Amz-Signature=s")},
            ),
            "s3": Source("s3://vendor/model.tar"),
            "directory": Source(str(tree)),
            "hub": Source("hf://org/model", environment={"HF_ENDPOINT": hub.endpoint}),
        }


def command(source: Source) -> list[str]:
    """The program with its arguments."""
    return [
        *STAGING,
        "upload",
        source.argument,
        f"s3://models/{PREFIX}",
        "--json",
        "--concurrency",
        str(CONCURRENCY),
        "--memory",
        "256MiB",
        *source.options,
    ]


def run(kinds: Sequence[str], kills: int, seed: int, directory: Path) -> list[Tally]:
    """Kill uploads from each kind of source; raises AssertionError when anything is not as it must be."""
    rng = random.Random(seed)
    expected = manifest_of(FILES).id
    tallies = []
    with ScriptedS3(buckets=["models", "vendor"]) as s3, sources(directory, s3) as opened:
        for kind in kinds:
            tally = Tally(kind)
            source = opened[kind]
            requests = _clean_run(s3, source, directory, expected)
            for number in range(kills):
                first, second = directory / f"{kind}-{number}-a", directory / f"{kind}-{number}-b"
                _kill_once(s3, source, (first, second), rng, requests, expected, tally)
            tallies.append(tally)
    return tallies


def _programs(s3: ScriptedS3, source: Source, directory: Path) -> Programs:
    directory.mkdir()
    return Programs(directory, s3, **source.environment)


def _clean_run(s3: ScriptedS3, source: Source, directory: Path, expected: str) -> int:
    """Requests of an upload that nothing disturbs."""
    home = Path(tempfile.mkdtemp(dir=directory)) / "home"
    _empty(s3)
    outcome = _programs(s3, source, home).run(command(source), stdin=source.stdin)
    assert outcome.document["upload"]["id"] == expected
    return len(s3.requests)


def _kill_once(
    s3: ScriptedS3,
    source: Source,
    homes: tuple[Path, Path],
    rng: random.Random,
    requests: int,
    expected: str,
    tally: Tally,
) -> None:
    _empty(s3)
    hold = s3.hold(None, before=rng.random() < 0.5, occurrence=rng.randint(1, requests))
    programs = _programs(s3, source, homes[0])
    with contextlib.ExitStack() as stack:
        stdin = None
        if source.stdin is not None:
            stdin = stack.enter_context(source.stdin.open("rb"))
        running = stack.enter_context(programs.started(command(source), stdin=stdin))
        while not hold.arrived.wait(0.01) and running.process.poll() is None:
            pass
        if hold.arrived.is_set():
            tally.kills += 1
            running.signal(signal.SIGKILL)
        else:
            tally.ended_before += 1
        running.process.communicate(timeout=TIMEOUT)
    hold.release()
    s3.clear_script()
    outcome = _programs(s3, source, homes[1]).run(command(source), stdin=source.stdin)
    assert outcome.document["upload"]["id"] == expected
    assert outcome.document["upload"]["leftovers"] == []
    _check(s3, tally)


def _check(s3: ScriptedS3, tally: Tally) -> None:
    bucket = s3.bucket("models")
    assert {key.removeprefix(PREFIX) for key in bucket} == {*FILES, ".checkpoint/manifest.json"}
    for name, data in FILES.items():
        assert bucket.get(PREFIX + name) == data, name
    assert bucket.uploads() == []
    sent = [
        (request.key, request.query["partNumber"])
        for request in s3.requests.of("UploadPart", status=200)
    ]
    twice = len(sent) - len(set(sent))
    tally.parts += len(set(sent))
    tally.sent_twice += twice
    tally.most_sent_twice = max(tally.most_sent_twice, twice)
    assert twice <= CONCURRENCY, f"{twice} parts were sent twice"


def _empty(s3: ScriptedS3) -> None:
    s3.clear_script()
    bucket = s3.bucket("models")
    for key in list(bucket):
        bucket.remove(key)
    for waiting in bucket.uploads():
        bucket.close_upload(waiting.upload_id)
    s3.requests.clear()


def main() -> None:
    """Run and print a JSON document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50, help="for each kind of source")
    parser.add_argument("--kind", choices=KINDS, action="append", help="default: all")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        tallies = run(given.kind or KINDS, given.kills, given.seed, Path(directory))
    documents: list[dict[str, Any]] = [vars(tally) for tally in tallies]
    sys.stdout.write(json.dumps(documents, indent=1) + "\n")


if __name__ == "__main__":
    main()
