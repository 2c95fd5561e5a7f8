"""A member of hundreds of gigabytes, made on the fly, through the upload engine into a store that discards.

Nothing is written to disk and nothing is kept: what this shows is that the part plan is legal, that memory
stays flat, and that the digests are those of the bytes.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from staging.source.pipe import Pipe
from staging.store.memory import MemoryStore
from staging.store.store import (
    MAX_PART_SIZE,
    MAX_PARTS,
    MIN_PART_SIZE,
    ListedPart,
    MultipartUpload,
    ObjectInfo,
    UploadedPart,
)
from staging.transfer.sizing import MIB
from staging.upload import UploadOptions, upload
from staging.vocabulary import crc64
from staging.vocabulary.location import S3Location
from tests.support.tars import BLOCK, END, base256, header

GB = 10**9
_PATTERN = 8 * MIB + 13
"""Bytes of the pattern that the data repeats: no multiple of anything, so that no two chunks are equal."""


class SyntheticTar:
    """A tar of one member of `size` bytes as a stream that is made while it is read."""

    def __init__(self, size: int) -> None:
        self._head = header(b"model/weights.bin", base256(size, 12))
        self._size = size
        self._tail = bytes(-size % BLOCK) + END
        pattern = random.Random(size).randbytes(_PATTERN)
        self._pattern = memoryview(pattern + pattern)
        self._at = 0

    def readinto(self, view: memoryview) -> int:
        """Fill as much of `view` as one piece of the stream goes."""
        at = self._at
        head = len(self._head)
        if at < head:
            piece = memoryview(self._head)[at:]
        elif at < head + self._size:
            start = (at - head) % _PATTERN
            left = head + self._size - at
            piece = self._pattern[start : start + min(left, _PATTERN)]
        else:
            piece = memoryview(self._tail)[at - head - self._size :]
        count = min(len(piece), len(view))
        view[:count] = piece[:count]
        self._at += count
        return count


class Sink(MemoryStore):
    """A store that checks what parts are legal and keeps nothing of them but their checksums."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: dict[str, dict[int, tuple[int, UploadedPart]]] = {}
        self.objects: dict[str, int] = {}

    def create_multipart_upload(self, key: str) -> MultipartUpload:
        upload_ = super().create_multipart_upload(key)
        self.parts[upload_.upload_id] = {}
        return upload_

    def upload_part(
        self, upload: MultipartUpload, number: int, body: bytearray, *, crc64nvme: str
    ) -> UploadedPart:
        assert 1 <= number <= MAX_PARTS
        assert len(body) <= MAX_PART_SIZE
        assert crc64.to_text(crc64.crc64(body)) == crc64nvme
        part = UploadedPart(number, f"{number:032x}", crc64nvme)
        self.parts[upload.upload_id][number] = (len(body), part)
        return part

    def list_parts(self, upload: MultipartUpload):  # type: ignore[no-untyped-def]
        return iter(
            ListedPart(number, size, part.etag, part.crc64nvme, None)
            for number, (size, part) in sorted(self.parts[upload.upload_id].items())
        )

    def complete_multipart_upload(
        self, upload: MultipartUpload, parts: Sequence[UploadedPart], *, crc64nvme: str
    ) -> None:
        known = self.parts.pop(upload.upload_id)
        sizes = [known[part.number][0] for part in parts]
        assert [part.number for part in parts] == list(range(1, len(known) + 1))
        assert all(size >= MIN_PART_SIZE for size in sizes[:-1])
        value = 0
        for size, part in zip(sizes, parts, strict=True):
            value = crc64.combine(value, crc64.from_text(part.crc64nvme), size)
        assert crc64.to_text(value) == crc64nvme
        self.objects[upload.key] = sum(sizes)

    def list_objects(self, prefix: str):  # type: ignore[no-untyped-def]
        there = [ObjectInfo(key, size, "0" * 32) for key, size in self.objects.items()]
        return iter([*super().list_objects(prefix), *there])


def run(size: int, memory: int) -> dict[str, float]:
    """Upload a member of `size` bytes within `memory` bytes; raises when anything is not as it must be."""
    store = Sink()
    location = S3Location("memory", "checkpoints/huge/")
    options = UploadOptions(memory=memory, cores=2, layout=None)
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF)
    source = Pipe(SyntheticTar(size))  # type: ignore[arg-type]
    result = upload(source, store, location, options)
    after = resource.getrusage(resource.RUSAGE_SELF)
    assert store.objects == {location.prefix + "weights.bin": size}
    assert [file.size for file in result.manifest.files] == [size]
    return {
        "bytes": size,
        "wall_seconds": round(time.monotonic() - began, 1),
        "cpu_seconds": round(
            after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1
        ),
        "peak_rss_mib": _peak_kib() // 1024,
    }


def _peak_kib() -> int:
    """The most memory this program has had; what `getrusage` tells may be its parent's."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1])
    raise LookupError("VmHWM")


def main() -> None:
    """Run with a size in GB."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=450)
    parser.add_argument("--memory-mib", type=int, default=256)
    given = parser.parse_args()
    json.dump(run(int(given.gigabytes * GB), given.memory_mib * MIB), sys.stdout)
    print()


if __name__ == "__main__":
    main()
