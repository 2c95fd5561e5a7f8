"""Downloads that are killed, at random moments and at every change they make to the disk (I1, I5, I6).

After each SIGKILL a ready marker, if there is one, vouches for nothing but right bytes; the same command
run again ends with exactly the version, and the store has sent no part twice but those that were in flight.

    first          a first download
    update         a version over another one, in place
    cache          a first download through a cache, the destination a link
    cache-update   the link goes from one version in the cache to another

Kills at changes happen in the kernel, before the change (see `tests.support.stopped_calls`).
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from staging.vocabulary.digest import CHUNK_SIZE
from tests.support.downloads import (
    CONCURRENCY,
    KILLED,
    VERSIONS,
    Node,
    part_bytes,
    publish_versions,
    sizes,
    slow,
)
from tests.support.s3server import ScriptedS3
from tests.support.stopped_calls import KILL, Change, run_stopped

KINDS: Final = ("first", "update", "cache", "cache-update")
TIMEOUT: Final = 90.0
"""Seconds a program may take; a guard against hanging, no expectation."""

_DOCUMENTS: Final = 1024 * 1024
"""Bytes that manifests, markers and locks may take in a cache, and small documents on the wire."""

_DAWDLING: Final = 0.15
"""Seconds the server takes over a body, so that moments differ."""


@dataclass
class Tally:
    """What the kills of one kind came to; bytes are of parts, of files."""

    kind: str
    kills: int = 0
    ended_before: int = 0
    needed_bytes: int = 0
    most_sent_bytes: int = 0
    seen_after: dict[str, int] = field(default_factory=dict)
    changes: int = 0


class Crashes:
    """One kind of download, ready to be killed."""

    def __init__(self, kind: str, s3: ScriptedS3, directory: Path) -> None:
        self.tally = Tally(kind)
        self.s3 = s3
        self._directory = directory
        self._cached = kind.startswith("cache")
        self._before: Node | None = None
        self._number = 0
        self.version = "a"
        if kind.endswith("update"):
            self._before = self.node()
            self._before.programs.run(self._before.command("a"))
            self._before.assert_holds("a")
            self.version = "b"

    @property
    def before_version(self) -> str | None:
        """The version that is there before the download, None when there is none."""
        return "a" if self._before is not None else None

    def node(self) -> Node:
        """A node in the state that the download finds."""
        self._number += 1
        home = self._directory / f"{self.tally.kind}-{self._number:04}"
        node = Node(home, self.s3, cached=self._cached)
        if self._before is not None:
            node.snapshot(self._before)
        return node

    def clean_run(self) -> tuple[Change, ...]:
        """Measure a download that nothing disturbs; returns its changes."""
        node = self.node()
        self.s3.requests.clear()
        changes = self.stopped(node, lambda change: False)
        node.assert_holds(self.version)
        self.tally.needed_bytes = part_bytes(self.s3.requests, sizes(self.version))
        assert self.tally.needed_bytes >= CHUNK_SIZE
        self.tally.changes = len(changes)
        node.remove()
        return changes

    def stopped(self, node: Node, kill: Callable[[Change], bool]) -> tuple[Change, ...]:
        """Run the program and kill it at the first change for which `kill` says so."""
        watched = run_stopped(
            node.command(self.version),
            below=node.home,
            decide=lambda change: KILL if kill(change) else None,
            cwd=node.home,
            environment=node.programs.environment,
            timeout=TIMEOUT,
        )
        self._count(watched.code)
        assert watched.code in (0, KILLED), str(watched)
        return watched.changes

    def at_change(self, number: int) -> None:
        """Kill a download when it asks for its change `number`, and check what follows."""
        node = self.node()
        self.s3.requests.clear()
        changes = self.stopped(node, lambda change: change.number == number)
        self._check(node, str(changes[-1]))

    def at_moment(self, share: float, seconds: float) -> None:
        """Kill a slow download `share` of `seconds` after its first request, and check what follows."""
        node = self.node()
        self.s3.requests.clear()
        slow(self.s3, _DAWDLING)
        with node.programs.started(node.command(self.version)) as running:
            while not len(self.s3.requests) and running.process.poll() is None:
                time.sleep(0.002)
            time.sleep(share * seconds)
            running.process.kill()
            running.process.communicate(timeout=TIMEOUT)
            self._count(running.process.returncode)
            assert running.process.returncode in (0, KILLED)
        self.s3.clear_script()
        self._check(node, f"{share:.3f} of {seconds:.2f} s")

    def duration(self) -> float:
        """Seconds from the first request of a slow download to its end."""
        node = self.node()
        self.s3.requests.clear()
        slow(self.s3, _DAWDLING)
        with node.programs.started(node.command(self.version)) as running:
            while not len(self.s3.requests) and running.process.poll() is None:
                time.sleep(0.002)
            began = time.monotonic()
            running.outcome(0)
            seconds = time.monotonic() - began
        self.s3.clear_script()
        node.remove()
        return seconds

    def _count(self, code: int) -> None:
        if code == KILLED:
            self.tally.kills += 1
        else:
            self.tally.ended_before += 1

    def _check(self, node: Node, where: str) -> None:
        seen = node.visible()
        assert seen in {None, self.version, self.before_version}, (where, seen)
        self.tally.seen_after[str(seen)] = self.tally.seen_after.get(str(seen), 0) + 1
        node.programs.run(node.command(self.version))
        node.assert_holds(self.version)
        sent = part_bytes(self.s3.requests, sizes(self.version))
        self.tally.most_sent_bytes = max(self.tally.most_sent_bytes, sent)
        most = self.tally.needed_bytes + CONCURRENCY * CHUNK_SIZE + _DOCUMENTS
        assert sent <= most, (where, sent)
        if node.cached:
            assert node.cached_bytes() <= self._distinct_bytes() + _DOCUMENTS, where
        if self._before is not None:
            self._before.assert_holds("a")  # a published file is never written again
        node.remove()

    def _distinct_bytes(self) -> int:
        """What the versions take that are in the cache, equal files counted once."""
        names = {self.version, self.before_version or self.version}
        return sum(map(len, {data for name in names for data in VERSIONS[name].values()}))


def run(
    kinds: Sequence[str],
    *,
    moments: int,
    changes: int | None,
    seed: int,
    directory: Path,
) -> list[Tally]:
    """Kill downloads of each kind at `moments` moments and at `changes` changes (None: at every one).

    Raises AssertionError when anything is not as it must be.
    """
    tallies = []
    with ScriptedS3() as s3:
        publish_versions(s3)
        for kind in kinds:
            rng = random.Random(f"{seed}/{kind}")
            crashes = Crashes(kind, s3, directory)
            numbers = [change.number for change in crashes.clean_run()]
            if changes is not None:
                numbers = sorted(rng.sample(numbers, min(changes, len(numbers))))
            crashes.tally.ended_before = 0
            for number in numbers:
                crashes.at_change(number)
            seconds = crashes.duration() if moments else 0.0
            for _ in range(moments):
                crashes.at_moment(rng.random(), seconds)
            tallies.append(crashes.tally)
    return tallies


def main() -> None:
    """Run and print a JSON document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kind", choices=KINDS, action="append", help="default: all")
    parser.add_argument("--moments", type=int, default=200, help="random ones, for each kind")
    parser.add_argument("--changes", type=int, help="for each kind; default: every one")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        tallies = run(
            given.kind or KINDS,
            moments=given.moments,
            changes=given.changes,
            seed=given.seed,
            directory=Path(directory),
        )
    sys.stdout.write(json.dumps([vars(tally) for tally in tallies], indent=1) + "\n")


if __name__ == "__main__":
    main()
