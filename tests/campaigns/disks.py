"""Downloads onto disks that fail once, at every change: full, broken, read-only (I1, I5, I6, I15).

The kernel refuses one change of a run with ENOSPC, EIO or EROFS (see `tests.support.stopped_calls`). The
program ends as documented, or well when it can do without that change; a ready marker vouches for
nothing but right bytes; the same command run again ends with exactly the version.
"""

from __future__ import annotations

import argparse
import errno
import json
import random
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.campaigns.crashes import KINDS, TIMEOUT, Crashes
from tests.support.downloads import publish_versions
from tests.support.s3server import ScriptedS3
from tests.support.stopped_calls import Change, run_stopped

ERRORS: Final = (errno.ENOSPC, errno.EIO, errno.EROFS)
ALLOWED: Final = {
    errno.ENOSPC: {(14, "no-space")},
    errno.EIO: {(1, "local-io")},
    errno.EROFS: {(1, "local-permission")},
}
"""Exit codes and references that tell what happened."""


@dataclass
class Tally:
    """What the failures of one kind of download came to, by exit code and reference."""

    kind: str
    failures: int = 0
    ended: dict[str, int] = field(default_factory=dict)
    done_without: dict[str, int] = field(default_factory=dict)


def run(
    kinds: Sequence[str],
    *,
    errors: Sequence[int],
    changes: int | None,
    seed: int,
    directory: Path,
) -> list[Tally]:
    """Fail each of `changes` changes (None: every one) of each kind of download once with each error.

    Raises AssertionError when anything is not as it must be.
    """
    tallies = []
    with ScriptedS3() as s3:
        publish_versions(s3)
        for kind in kinds:
            rng = random.Random(f"{seed}/{kind}")
            downloads = Crashes(kind, s3, directory)
            numbers = [change.number for change in downloads.clean_run()]
            cases = [(number, error) for number in numbers for error in errors]
            if changes is not None:
                cases = sorted(rng.sample(cases, min(changes, len(cases))))
            tally = Tally(kind)
            for number, error in cases:
                _fail_once(downloads, number, error, tally)
            tallies.append(tally)
    return tallies


def _fail_once(downloads: Crashes, number: int, error: int, tally: Tally) -> None:
    node = downloads.node()
    failed: list[Change] = []

    def decide(change: Change) -> int | None:
        if change.number != number:
            return None
        failed.append(change)
        return error

    watched = run_stopped(
        node.command(downloads.version, "--json"),
        below=node.home,
        decide=decide,
        cwd=node.home,
        environment=node.programs.environment,
        timeout=TIMEOUT,
    )
    where = f"{errno.errorcode[error]} from {failed}: {watched}"
    assert "Traceback" not in watched.stderr, where
    tally.failures += len(failed)
    seen = node.visible()
    if watched.code == 0:
        node.assert_holds(downloads.version)
        for change in failed:
            _count(tally.done_without, change.call)
    else:
        reference = json.loads(watched.stdout)["error"]["reference"]
        assert (watched.code, reference) in ALLOWED[error], where
        # In place, a download that failed shows nothing new. A link to a version that is whole may have
        # changed already when it could not be made durable.
        allowed = {None, downloads.before_version, *([downloads.version] if node.cached else [])}
        assert seen in allowed, where
        _count(tally.ended, f"{watched.code} {reference}")
    node.programs.run(node.command(downloads.version))
    node.assert_holds(downloads.version)
    node.remove()


def _count(counts: dict[str, int], name: str) -> None:
    counts[name] = counts.get(name, 0) + 1


def main() -> None:
    """Run and print a JSON document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kind", choices=KINDS, action="append", help="default: all")
    parser.add_argument(
        "--changes", type=int, help="for each kind; default: every one, every error"
    )
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        tallies = run(
            given.kind or KINDS,
            errors=ERRORS,
            changes=given.changes,
            seed=given.seed,
            directory=Path(directory),
        )
    sys.stdout.write(json.dumps([vars(tally) for tally in tallies], indent=1) + "\n")


if __name__ == "__main__":
    main()
