"""`model-downloader` in a process whose circumstances are altered; a program, for tests to start.

python -P tests/support/altered.py [--data-limit BYTES] [--locks-lie] [--tell FILE] -- ARGUMENT...

--data-limit   RLIMIT_DATA: heap, stacks of threads and all other memory of the process's own
--locks-lie    everybody gets the lock who asks for it, as on a network filesystem that ignores locks
--tell         writes a JSON document: the most memory the process ever had, in bytes
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
from pathlib import Path
from typing import Final

PROGRAM: Final = (sys.executable, "-P", str(Path(__file__).resolve()))
"""The start of the command; wants `PYTHONPATH` to name `ROOT`."""

ROOT: Final = Path(__file__).resolve().parents[2]


def peak_bytes() -> int:
    """The most memory this process has had in RAM; what `getrusage` tells may be its parent's."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise LookupError("VmHWM")


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data-limit", type=int)
    parser.add_argument("--locks-lie", action="store_true")
    parser.add_argument("--tell", type=Path)
    parser.add_argument("arguments", nargs="*")
    given = parser.parse_args()
    if given.data_limit is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (given.data_limit, given.data_limit))
    from downloader.program import run_downloader  # under the limit, as all of it

    if given.locks_lie:
        from staging.directory.fs import Fs

        Fs.lock = lambda self, fd: True  # type: ignore[method-assign]
    code = run_downloader(given.arguments)
    if given.tell is not None:
        given.tell.write_text(json.dumps({"peak_bytes": peak_bytes()}))
    return code


if __name__ == "__main__":
    sys.exit(main())
