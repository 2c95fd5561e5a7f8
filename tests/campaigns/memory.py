"""A download far larger than the memory its process may have (I11).

The object is made of one piece of memory, over and over, so that the server holds next to nothing; no two
of its chunks are equal. The limit is RLIMIT_DATA, which the kernel enforces on all that the process
allocates and which needs no privilege. Unlike a cgroup's it does not count the page cache, which the kernel
takes back before it kills anybody. The peak of resident memory is measured beside it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from staging.vocabulary.digest import CHUNK_SIZE, HashFamily
from staging.vocabulary.manifest import Manifest, ManifestFile
from staging.vocabulary.paths import SafePath
from tests.cli.programs import Programs
from tests.support.altered import PROGRAM, ROOT
from tests.support.downloads import BUCKET, CONTROL
from tests.support.s3server import ScriptedS3, StoredObject
from tests.support.tensors import framed

MIB: Final = 1024 * 1024
GIB: Final = 1024 * MIB
WEIGHTS: Final = SafePath("model.safetensors")
TIMEOUT: Final = 3600.0
"""Seconds; a guard against hanging, no expectation."""

_PATTERN: Final = 8 * MIB + 13
"""Bytes that the data repeats: no multiple of anything, so that no two chunks are equal."""

CONFIG = b'{"model_type": "tiny"}'


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a download took. `peak_bytes` is resident memory."""

    bytes: int
    data_limit_bytes: int
    peak_bytes: int
    seconds: float


def weights(size: int) -> StoredObject:
    """A whole safetensors file of `size` bytes, in one tensor, that takes little memory."""
    count = size - 8 - 256
    entry = {"dtype": "U8", "shape": [count], "data_offsets": [0, count]}
    head = framed(json.dumps({"w": entry}).encode().ljust(256))
    pattern = random.Random(size).randbytes(_PATTERN)
    whole, rest = divmod(count, _PATTERN)
    return StoredObject(
        key=f"large/{WEIGHTS}",
        pieces=(head, *itertools.repeat(pattern, whole), pattern[:rest]),
        etag=f"{size:032x}-1",
        crc64nvme="",
        last_modified=datetime.now(UTC),
    )


def run(size: int, *, limit: int, memory: int, directory: Path) -> Outcome:
    """Download `size` bytes within `limit` bytes, with a budget of `memory`.

    Raises AssertionError when the program fails or the files are not right.
    """
    stored = weights(size)
    with ScriptedS3() as s3:
        bucket = s3.bucket(BUCKET)
        bucket.store(stored)
        bucket.put("large/config.json", CONFIG)
        bucket.put(f"large/{CONTROL}/manifest.json", _manifest(stored).encode())
        told = directory / "told.json"
        node = directory / "node"
        command = [*PROGRAM, "--data-limit", str(limit), "--tell", str(told), "--"]
        command += [f"s3://{BUCKET}/large/", str(node), "--memory", f"{memory // MIB}MiB"]
        environment = Programs(directory, s3, PYTHONPATH=str(ROOT)).environment
        began = time.monotonic()
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=TIMEOUT, check=False
        )
        seconds = time.monotonic() - began
        assert done.returncode == 0, done.stderr
    assert (node / CONTROL / "ready.json").exists()
    _compare(node / WEIGHTS, stored)
    peak = int(json.loads(told.read_text())["peak_bytes"])
    return Outcome(size, limit, peak, round(seconds, 1))


def _manifest(stored: StoredObject) -> Manifest:
    family = HashFamily.BLAKE3
    digests = []
    for start in range(0, stored.size, CHUNK_SIZE):
        hasher = family.hasher()
        for view in stored.slice(start, min(stored.size, start + CHUNK_SIZE)):
            hasher.update(view)
        digests.append(hasher.digest())
    config = ManifestFile.of(SafePath("config.json"), len(CONFIG), family, [family.hash(CONFIG)])
    large = ManifestFile.of(WEIGHTS, stored.size, family, digests)
    return Manifest.of(family, [config, large])


def _compare(path: Path, stored: StoredObject) -> None:
    assert path.stat().st_size == stored.size
    with path.open("rb") as file:
        for number, piece in enumerate(stored.pieces):
            assert file.read(len(piece)) == piece, f"piece {number}"


def main() -> None:
    """Run and print a JSON document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gib", type=float, default=8, help="size of the object")
    parser.add_argument("--limit-mib", type=int, default=512, help="what the kernel enforces")
    parser.add_argument("--memory-mib", type=int, default=192, help="what the program is told")
    parser.add_argument("--directory", type=Path, help="where the files go; default: the temporary")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.directory) as directory:
        outcome = run(
            int(given.gib * GIB),
            limit=given.limit_mib * MIB,
            memory=given.memory_mib * MIB,
            directory=Path(directory),
        )
    document = {name: getattr(outcome, name) for name in outcome.__slots__}
    sys.stdout.write(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
