"""Small tar archives of checkpoints, in memory and on disk."""

from __future__ import annotations

import io
import random
import tarfile  # noqa: TID251 - writes what our own reader is to read
from collections.abc import Mapping
from pathlib import Path

from tests.support.tensors import safetensors_file


def weights(size: int, seed: int = 1) -> bytes:
    """A valid safetensors file of about `size` random bytes."""
    return safetensors_file({f"w{seed % 10}": ("U8", [size], random.Random(seed).randbytes(size))})


def small_checkpoint(seed: int = 1) -> dict[str, bytes]:
    """A servable checkpoint of four files, one of them empty; the seed changes the weights."""
    return {
        "config.json": b'{"model_type": "tiny"}',
        "model.safetensors": weights(1000, seed),
        "tokenizer/empty.txt": b"",
        "tokenizer/tokenizer.json": b'{"model": {}}',
    }


def tar_bytes(files: Mapping[str, bytes], *, top: str = "model") -> bytes:
    """An archive of the files, in their order, below one top-level directory."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(f"{top}/{name}" if top else name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return stream.getvalue()


def tar_on_disk(directory: Path, files: Mapping[str, bytes], *, name: str = "model.tar") -> Path:
    """The same as a file."""
    path = directory / name
    path.write_bytes(tar_bytes(files))
    return path
