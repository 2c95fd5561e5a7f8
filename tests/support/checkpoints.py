"""Checkpoints with bytes that do not repeat, their archives, and a store that counts requests.

Checkpoints are mappings of names to bytes, seeded. `hugging_face` and `vendor` are the two layouts that
serve; their weights are whole safetensors files.
"""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy

from staging.store.memory import MemoryStore
from staging.store.store import unseen
from staging.vocabulary import crc64
from staging.vocabulary.digest import HashFamily, chunk_digests
from staging.vocabulary.location import S3Location
from staging.vocabulary.manifest import Manifest, ManifestFile
from staging.vocabulary.paths import SafePath
from tests.support.tars import END, member
from tests.support.tensors import framed

_HEADER = 256  # bytes; the room that `weights` gives to the header of a safetensors file


def random_bytes(size: int, seed: int) -> bytes:
    """Bytes that are the same every time and nowhere alike."""
    return random.Random(seed).randbytes(size)


def weights(size: int, seed: int) -> bytes:
    """A whole safetensors file of exactly `size` bytes, at least 264, with one tensor."""
    count = size - 8 - _HEADER
    entry = {"dtype": "U8", "shape": [count], "data_offsets": [0, count]}
    header = json.dumps({f"layers.{seed}.weight": entry}).encode().ljust(_HEADER)
    return framed(header, numpy.random.default_rng(seed).bytes(count))


def vendor(seed: int, size: int = 100_000) -> dict[str, bytes]:
    """A checkpoint as vendors ship it: a YAML config, one weights file of `size` bytes, a tokenizer."""
    return {
        "config.yaml": b"model:\n  kind: laguna\n  seed: %d\n" % seed,
        "generation_config.json": b'{"temperature": 0.7}',
        "model.safetensors": weights(size, seed),
        "tokenizer/tokenizer.json": json.dumps({"noise": random_bytes(900, seed).hex()}).encode(),
        "tokenizer/tokenizer_config.json": b'{"tokenizer_class": "PreTrainedTokenizerFast"}',
        "tokenizer/merges.txt": b"",
    }


def hugging_face(seed: int, shard_sizes: tuple[int, ...] = (60_000, 50_001)) -> dict[str, bytes]:
    """A checkpoint in the Hugging Face layout: shards of the given sizes and their index."""
    count = len(shard_sizes)
    names = [f"model-{number + 1:05d}-of-{count:05d}.safetensors" for number in range(count)]
    index = {
        "metadata": {"total_size": sum(shard_sizes) - count * (8 + _HEADER)},
        "weight_map": {f"layers.{seed + n}.weight": name for n, name in enumerate(names)},
    }
    return {
        "config.json": json.dumps({"model_type": "llama", "seed": seed}).encode(),
        "model.safetensors.index.json": json.dumps(index).encode(),
        "tokenizer.json": json.dumps({"noise": random_bytes(500, seed).hex()}).encode(),
        **{
            name: weights(size, seed + n)
            for n, (name, size) in enumerate(zip(names, shard_sizes, strict=True))
        },
    }


def tar_of(files: Mapping[str, bytes], top: str = "laguna-xs") -> bytes:
    """A plain archive of short names inside one top-level directory (none when `top` is empty)."""
    inside = f"{top}/" if top else ""
    return b"".join(member((inside + name).encode(), data) for name, data in files.items()) + END


def write_tree(directory: Path, files: Mapping[str, bytes]) -> Path:
    """Write the files below a directory."""
    for name, data in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return directory


def read_tree(directory: Path) -> dict[str, bytes]:
    """The files below a directory, but for what is about the checkpoint rather than of it."""
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.relative_to(directory).parts[0] != ".checkpoint"
    }


def manifest_of(files: Mapping[str, bytes], family: HashFamily = HashFamily.BLAKE3) -> Manifest:
    """The manifest of files given as bytes."""
    return Manifest.of(
        family,
        [
            ManifestFile.of(SafePath(path), len(data), family, chunk_digests(family, data))
            for path, data in files.items()
        ],
    )


class CountingStore(MemoryStore):
    """A memory store that counts requests and lets a test change what comes back."""

    def __init__(self) -> None:
        super().__init__()
        self.heads: list[str] = []
        self.reads: list[str] = []
        self.ranges: list[tuple[str, int, int]] = []
        self.before_range: Callable[[str, int], None] = lambda key, offset: None
        self.after_range: Callable[[str, int, memoryview], None] = lambda key, offset, view: None
        self._counting = threading.Lock()

    @property
    def requests(self) -> int:
        """Requests for single objects so far."""
        return len(self.heads) + len(self.reads) + len(self.ranges)

    @property
    def ranged_bytes(self) -> int:
        """Bytes asked for by ranges so far."""
        return sum(length for _, _, length in self.ranges)

    def forget(self) -> None:
        """Count from zero, and stop interfering."""
        self.heads, self.reads, self.ranges = [], [], []
        self.before_range = lambda key, offset: None
        self.after_range = lambda key, offset, view: None

    def head(self, key):  # type: ignore[no-untyped-def]
        with self._counting:
            self.heads.append(key)
        return super().head(key)

    def read(self, key, *, limit):  # type: ignore[no-untyped-def]
        self.reads.append(key)
        return super().read(key, limit=limit)

    def read_into(self, key, offset, buffer, *, etag, seen=unseen):  # type: ignore[no-untyped-def]
        with self._counting:
            self.ranges.append((key, offset, len(buffer)))
        self.before_range(key, offset)
        count = super().read_into(key, offset, buffer, etag=etag)
        self.after_range(key, offset, buffer)
        seen(buffer[:count])
        return count

    def put(self, key: str, data: bytes) -> None:
        """Create or replace an object."""
        if key in self._objects:
            self.delete(key, etag=self._objects[key].info.etag)
        self.create(key, data, crc64nvme=crc64.to_text(crc64.crc64(data)))

    def remove(self, key: str) -> None:
        """Delete an object."""
        self.delete(key, etag=self._objects[key].info.etag)

    def publish(
        self,
        location: S3Location,
        files: Mapping[str, bytes],
        family: HashFamily = HashFamily.BLAKE3,
    ) -> Manifest:
        """Put files and their manifest under a prefix."""
        manifest = manifest_of(files, family)
        for path, data in files.items():
            self.put(location.key(SafePath(path)), data)
        self.put(location.manifest_key, manifest.encode())
        return manifest
