"""Two versions of a checkpoint on a scripted S3, a node to download them to, and what must hold there.

What is looked at is behaviour: exit codes, the tree that a server of models would read, the ready marker,
the requests. How the program gets there is its own business.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from staging.vocabulary.digest import CHUNK_SIZE
from tests.cli.programs import DOWNLOADER, Programs
from tests.support.altered import ROOT
from tests.support.checkpoints import hugging_face, manifest_of, read_tree, weights
from tests.support.s3server import Action, Fault, Request, ScriptedS3
from tests.support.s3server.http import Response

BUCKET: Final = "models"
CONCURRENCY: Final = 2
"""Parts in flight at most."""

MEMORY: Final = "192MiB"
CONTROL: Final = ".checkpoint"

Files = Mapping[str, bytes]


def _versions() -> dict[str, Files]:
    """`a` and `b`: a shard of three chunks in common, one that differs, files that come and go."""
    shared = 2 * CHUNK_SIZE + 12_345
    a = hugging_face(1, (shared, CHUNK_SIZE + 5))
    b = dict(a)
    index = json.loads(a["model.safetensors.index.json"])
    index["weight_map"] = {
        ("layers.9.weight" if shard.startswith("model-00002") else tensor): shard
        for tensor, shard in index["weight_map"].items()
    }
    b["model.safetensors.index.json"] = json.dumps(index).encode()
    b["model-00002-of-00002.safetensors"] = weights(CHUNK_SIZE + 5, 9)
    a |= {"generation_config.json": b"{}", "old/notes.txt": b"of version a", "empty.txt": b""}
    b |= {"generation_config.json": b'{"top_k": 1}', "new/deep/notes.txt": b"of version b"}
    return {"a": a, "b": b}


VERSIONS: Final = _versions()
IDS: Final = {name: manifest_of(files).id for name, files in VERSIONS.items()}


@dataclass(frozen=True, slots=True)
class Dawdle(Action):
    """Sends half of a body at once and the rest `seconds` later."""

    seconds: float

    async def after(self, request: Request, response: Response) -> Response:
        return replace(
            response, pause=_Nap(self.seconds), pause_after=max(1, response.body_length // 2)
        )


@dataclass(frozen=True, slots=True)
class _Nap:
    seconds: float

    async def wait(self) -> None:
        await asyncio.sleep(self.seconds)


def slow(s3: ScriptedS3, seconds: float) -> None:
    """Have the server dawdle over each file's bytes."""
    s3.script(Fault("GetObject", Dawdle(seconds), occurrence=None, key=is_file_key))


def publish(s3: ScriptedS3, name: str, files: Files) -> str:
    """Put a version under the prefix of its name, and return its id."""
    bucket = s3.bucket(BUCKET)
    for path, data in files.items():
        bucket.put(f"{name}/{path}", data)
    manifest = manifest_of(files)
    bucket.put(f"{name}/{CONTROL}/manifest.json", manifest.encode())
    return manifest.id


def publish_versions(s3: ScriptedS3) -> None:
    """Both versions, as `s3://models/a/` and `s3://models/b/`."""
    for name, files in VERSIONS.items():
        publish(s3, name, files)


def is_file_key(key: str) -> bool:
    """True for what a manifest lists."""
    return f"/{CONTROL}/" not in key


def part_bytes(requests: Sequence[Request], sizes: Mapping[str, int]) -> int:
    """Bytes of files that a server sent as parts: whole chunks, or the last ones of a file.

    Looks at the first bytes of a shard, for its header, are no parts. `sizes` is by key.
    """
    total = 0
    for request in requests:
        size = sizes.get(request.key)
        if request.operation == "GetObject" and size is not None and is_part(request, size):
            total += request.sent
    return total


def is_part(request: Request, size: int) -> bool:
    """True when a request's range ends where a chunk ends, or where a file of `size` bytes does."""
    span = re.fullmatch(r"bytes=(\d+)-(\d+)", request.range or "")
    if span is None:
        return request.range is None
    first, end = int(span[1]), int(span[2]) + 1
    return first % CHUNK_SIZE == 0 and (end == size or (end < size and end % CHUNK_SIZE == 0))


@dataclass
class Node:
    """A directory of files, below `home`, that one version is brought to; with a cache if wanted.

    `snapshot` begins with what another node holds, by hard links: the files have the very stamps that
    the marker names.
    """

    home: Path
    s3: ScriptedS3
    cached: bool = False

    def __post_init__(self) -> None:
        self.home.mkdir(parents=True)
        self.programs = Programs(
            self.home, self.s3, PYTHONDONTWRITEBYTECODE="1", PYTHONPATH=str(ROOT)
        )

    @property
    def directory(self) -> Path:
        """The destination."""
        return self.home / "model"

    @property
    def cache(self) -> Path:
        """The cache that the node has if `cached`."""
        return self.home / "cache"

    def command(self, version: str, *options: str) -> list[str]:
        """The program that brings a version here."""
        command = [*DOWNLOADER, f"s3://{BUCKET}/{version}/", str(self.directory)]
        command += ["--memory", MEMORY, "--concurrency", str(CONCURRENCY), *options]
        return [*command, "--cache", str(self.cache)] if self.cached else command

    def snapshot(self, other: Node) -> None:
        """Begin with what another node holds."""
        if other.cached:
            _linked(other.cache, self.cache)
        if other.directory.is_symlink():
            target = os.readlink(other.directory)
            self.directory.symlink_to(target.replace(str(other.home), str(self.home)))
        elif other.directory.exists():
            _linked(other.directory, self.directory)

    def visible(self) -> str | None:
        """The name of the version that the marker vouches for; fails unless it is all there."""
        found = visible(self.directory, {IDS[name]: files for name, files in VERSIONS.items()})
        return next((name for name in IDS if IDS[name] == found), None)

    def assert_holds(self, version: str) -> None:
        """Exactly a version, ready, and nothing left of interrupted runs."""
        assert_holds(self.directory, IDS[version], VERSIONS[version])
        if self.cached:
            assert self.directory.is_symlink()
            names = [path.name for path in self.cache.rglob("*")]
            assert not list(filter(is_unfinished, names)), names

    def cached_bytes(self) -> int:
        """Bytes of all files in the cache; one that has several names counts once."""
        entries = [path.lstat() for path in self.cache.rglob("*") if path.is_file()]
        return sum({entry.st_ino: entry.st_size for entry in entries}.values())

    def remove(self) -> None:
        """Drop all of it."""
        shutil.rmtree(self.home)


def _linked(source: Path, target: Path) -> None:
    def link(old: str, new: str) -> None:
        # Locks are of the node; what is rewritten is written anew and renamed, so links are safe.
        if os.path.basename(old) == "lock":
            shutil.copy2(old, new)
        else:
            os.link(old, new)

    shutil.copytree(source, target, symlinks=True, copy_function=link)


def visible(directory: Path, versions: Mapping[str, Files]) -> str | None:
    """The id that a directory's marker vouches for, None without a marker. `versions` is by id.

    Fails unless every byte of that version is there. What else is there is not looked at: during an
    update files of both versions may be.
    """
    try:
        marker = json.loads((directory / CONTROL / "ready.json").read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    found = str(marker["id"])
    for path, data in versions[found].items():
        assert (directory / path).read_bytes() == data, f"{path} is not of {found}"
    return found


def assert_holds(directory: Path, checkpoint_id: str, files: Files) -> None:
    """Exactly these files, ready, and nothing left of interrupted runs."""
    assert visible(directory, {checkpoint_id: files}) == checkpoint_id
    assert read_tree(directory) == files
    control = sorted(path.name for path in (directory / CONTROL).iterdir())
    assert "partial" not in control, control
    assert not list(filter(is_unfinished, control)), control


def is_unfinished(name: str) -> bool:
    """True for a document that was not written to its end; what is told of attempts may stay so."""
    return name.endswith(".tmp") and not name.startswith("attempts.")


def sizes(version: str) -> dict[str, int]:
    """Sizes of a version's files by key."""
    return {f"{version}/{path}": len(data) for path, data in VERSIONS[version].items()}


KILLED: Final = -signal.SIGKILL
"""The return code of a process that ended so."""
