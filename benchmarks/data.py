"""Checkpoints to move: bytes that do not repeat, in layouts that serve, as a tar and as a tree.

The bytes come from BLAKE3's output stream: the same for the same seed, nowhere alike, so that nothing
on the way can compress or share them, and made faster than a disk takes them. Weights are whole
safetensors files of one tensor, since our side looks at their headers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from blake3 import blake3

KIB: Final = 1024
MIB: Final = 1024 * KIB
GIB: Final = 1024 * MIB

_BLOCK: Final = 512
_PIECE: Final = 16 * MIB
_TOP: Final = "checkpoint"
_HEADER_ROOM: Final = 256
_LARGEST: Final = 8 * GIB - 1
"""What eleven octal digits of a tar header can say."""
_NETWORK: Final = 312_500_000
"""2.5 Gb/s in bytes per second."""


@dataclass(frozen=True, slots=True)
class Case:
    """A checkpoint of `count` weight files of `size` bytes each, beside three small files.

    `rate` is what the network between store and clients gives, in bytes per second; 0 is no limit. It
    limits what the server sends, so such a case is downloaded only.
    """

    name: str
    count: int
    size: int
    rate: int = 0

    def scaled(self, factor: float) -> Case:
        """The same shape with fewer or smaller files, of about `factor` times the bytes."""
        if self.size <= MIB:
            return replace(self, count=max(1, round(self.count * factor)))
        size = max(MIB, round(self.size * factor))
        return replace(self, size=min(_LARGEST, size))

    @property
    def title(self) -> str:
        """What a table calls it."""
        network = f" over {self.rate * 8 / 1e9:.3g} Gb/s" if self.rate else ""
        return f"{self.count:,} x {binary(self.size)}{network}"

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weight files."""
        return self.count * self.size


CASES: Final = (
    Case("one", 1, 4 * GIB),
    Case("shards", 64, 64 * MIB),
    Case("small", 2000, 64 * KIB),
    Case("network", 1, 4 * GIB, rate=_NETWORK),
    Case("network-shards", 64, 64 * MIB, rate=_NETWORK),
)


@dataclass(frozen=True, slots=True)
class Entry:
    """A file of a checkpoint; `digest` is the plain BLAKE3 of its bytes."""

    size: int
    digest: str


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A case on disk: the tar, and what must come out of it."""

    case: Case
    tar: Path
    files: dict[str, Entry]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(entry.size for entry in self.files.values())


def binary(size: int) -> str:
    """A number of bytes in the largest unit that divides it well."""
    for unit, name in ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if size >= unit:
            return f"{size / unit:.4g} {name}"
    return f"{size} B"


def build(case: Case, directory: Path, seed: int) -> Checkpoint:
    """Write `directory/CASE.tar`."""
    path = directory / f"{case.name}.tar"
    files = {}
    with path.open("wb") as tar:
        tar.write(_tar_header(f"{_TOP}/", 0, b"5"))
        for name, pieces in _contents(case, seed):
            size, head = 0, tar.tell()
            tar.write(bytes(_BLOCK))
            hasher = blake3()
            for piece in pieces:
                tar.write(piece)
                hasher.update(piece)
                size += len(piece)
            tar.write(bytes(-size % _BLOCK))
            end = tar.tell()
            tar.seek(head)
            tar.write(_tar_header(f"{_TOP}/{name}", size, b"0"))
            tar.seek(end)
            files[name] = Entry(size, hasher.hexdigest())
        tar.write(bytes(2 * _BLOCK))
    return Checkpoint(case, path, files)


def compare(directory: Path, checkpoint: Checkpoint) -> list[str]:
    """What is missing, too much or different in a directory; `.checkpoint` is not looked at."""
    found = {
        path.relative_to(directory).as_posix(): path
        for path in directory.rglob("*")
        if path.is_file() and path.relative_to(directory).parts[0] != ".checkpoint"
    }
    wrong = [f"{name} is missing" for name in checkpoint.files.keys() - found.keys()]
    wrong += [f"{name} does not belong there" for name in found.keys() - checkpoint.files.keys()]
    for name in sorted(found.keys() & checkpoint.files.keys()):
        entry = checkpoint.files[name]
        if found[name].stat().st_size != entry.size:
            wrong.append(f"{name} has another size")
        elif blake3(max_threads=blake3.AUTO).update_mmap(found[name]).hexdigest() != entry.digest:
            wrong.append(f"{name} has other bytes")
    return sorted(wrong)


def _contents(case: Case, seed: int) -> Iterator[tuple[str, Iterator[bytes]]]:
    """Names and bytes: the layout of a Hugging Face model, sharded when there are several files."""
    names = ["model.safetensors"]
    yield "config.json", iter([json.dumps({"model_type": "llama", "seed": seed}).encode()])
    if case.count > 1:
        last = case.count
        names = [f"model-{i:05d}-of-{last:05d}.safetensors" for i in range(1, last + 1)]
        index = {
            "metadata": {"total_size": case.count * _tensor_size(case.size)},
            "weight_map": {_tensor(i): name for i, name in enumerate(names)},
        }
        yield "model.safetensors.index.json", iter([json.dumps(index).encode()])
    yield "tokenizer.json", iter([json.dumps({"model": {"type": "BPE"}}).encode()])
    for number, name in enumerate(names):
        yield name, _weights(case, seed, number)


def _tensor(number: int) -> str:
    return f"layers.{number}.weight"


def _tensor_size(size: int) -> int:
    return size - 8 - _HEADER_ROOM


def _weights(case: Case, seed: int, number: int) -> Iterator[bytes]:
    """A safetensors file of exactly the case's size."""
    left = _tensor_size(case.size)
    entry = {"dtype": "U8", "shape": [left], "data_offsets": [0, left]}
    header = json.dumps({_tensor(number): entry}).encode().ljust(_HEADER_ROOM)
    yield len(header).to_bytes(8, "little") + header
    stream = blake3(f"{seed}/{case.name}/{number}".encode())
    at = 0
    while left:
        piece = stream.digest(length=min(left, _PIECE), seek=at)
        yield piece
        at += len(piece)
        left -= len(piece)


def _tar_header(name: str, size: int, kind: bytes) -> bytes:
    """A POSIX header of a short name."""
    block = b"".join(
        [
            name.encode().ljust(100, b"\0"),
            b"0000755\0" if kind == b"5" else b"0000644\0",
            b"0000000\0" * 2,
            b"%011o\0" % size,
            b"00000000000\0",
            b" " * 8,
            kind.ljust(101, b"\0"),
            b"ustar\x0000",
            bytes(32 + 32 + 8 + 8 + 155 + 12),
        ]
    )
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]
