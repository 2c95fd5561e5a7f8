"""How long it takes to find out that a checkpoint would not serve, and what is read for that.

A prefix of a hundred shards lies in the store with one mistake in it, or with none, and a manifest of exactly
what lies there, as an upload without the rules would have left it. `staging check` and `model-downloader
--dry-run` look at it. Headers and documents are those of a model that passes; the weights are few,
since nobody reads them.

Every run is proven, or it ends the benchmark: the exit code and the reference are the expected ones, there
were two requests per shard and a handful more, no more bytes were sent than headers and documents have, and
nothing was written. The server counts all requests together, so the two per shard are a bound on their sum;
the functional tests look at each.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.comparison import Comparison, WrongResult
from benchmarks.contenders import Tools, Transport
from benchmarks.data import KIB
from staging.vocabulary.digest import HashFamily, chunk_digests
from staging.vocabulary.manifest import Manifest, ManifestFile
from staging.vocabulary.paths import SafePath

SHARDS: Final = 100
ROUNDS: Final = 3
_SHARD: Final = 512 * KIB  # bytes
_TENSORS: Final = 64
"""Tensors of a shard; they make the header long: 6.5 kB."""
_INDEX: Final = "model.safetensors.index.json"
_BUCKET: Final = "keep"
_REFUSED: Final = 17
_DOCUMENTS: Final = 12
"""Most requests for anything but shards: listings, the manifest, small files."""
_LISTINGS: Final = 128 * KIB
"""Most bytes of answers that are no content: listings and errors."""
_REFERENCE: Final = re.compile(r"^error: .* \[([a-z0-9-]+)\]$|^ERROR exit=\d+ ([a-z0-9-]+) ", re.M)

Files = dict[str, bytes]


@dataclass(frozen=True, slots=True)
class Mistake:
    """What is wrong with a prefix, and the reference it must be refused with; empty when nothing is."""

    name: str
    reference: str
    make: Callable[[Files], None]


@dataclass(frozen=True, slots=True)
class Program:
    """One of ours that looks at a prefix: its command line for a URI and a directory to leave alone."""

    name: str
    command: Callable[[str, Path], list[str]]


@dataclass(frozen=True, slots=True)
class Look:
    """One measured run.

    Seconds; `requests` by operation and `sent` payload bytes as the server counted them; `size` bytes and
    `files` of the prefix. `reference` is empty when the prefix was found good.
    """

    case: str
    direction: str
    transport: Transport
    program: str
    round: int
    size: int
    files: int
    wall: float
    user: float
    system: float
    peak: int
    requests: Mapping[str, int]
    sent: int
    status: int
    reference: str

    def as_document(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def checkpoint(shards: int) -> Files:
    """A checkpoint in the layout of a Hugging Face model, that serves."""
    names = [f"model-{n:05d}-of-{shards:05d}.safetensors" for n in range(1, shards + 1)]
    places = {tensor: name for n, name in enumerate(names) for tensor in _tensors(n)}
    weights = {name: _weights(n) for n, name in enumerate(names)}
    total = sum(len(data) - header_size(data) for data in weights.values())
    index = {"metadata": {"total_size": total}, "weight_map": places}
    return {
        "config.json": json.dumps({"model_type": "llama"}).encode(),
        _INDEX: json.dumps(index).encode(),
        "tokenizer.json": json.dumps({"model": {"type": "BPE"}}).encode(),
        **weights,
    }


def header_size(shard: bytes) -> int:
    """Bytes of a safetensors file before its first weight."""
    return 8 + int.from_bytes(shard[:8], "little")


def _truncated(files: Files) -> None:
    """A download that broke off: the header is whole, the last weight is not."""
    name = _shards(files)[0]
    files[name] = files[name][:-1]


def _missing(files: Files) -> None:
    """A copy that left one out."""
    del files[_shards(files)[0]]


def _swapped(files: Files) -> None:
    """An index that looks for two tensors in each other's shard."""
    index = json.loads(files[_INDEX])
    places = index["weight_map"]
    first, last = next(iter(places)), next(reversed(places))
    places[first], places[last] = places[last], places[first]
    files[_INDEX] = json.dumps(index).encode()


def _nothing(_files: Files) -> None:
    """It serves."""


MISTAKES: Final = (
    Mistake("one shard truncated", "safetensors-broken", _truncated),
    Mistake("one shard missing", "index-shard-missing", _missing),
    Mistake("two index entries swapped", "index-tensor-elsewhere", _swapped),
    Mistake("nothing", "", _nothing),
)


def programs(tools: Tools) -> tuple[Program, ...]:
    """Both of ours, as a user would start them."""
    download = tools.downloader
    return (
        Program("staging check", lambda uri, _: [str(tools.staging), "check", uri]),
        Program(
            "model-downloader --dry-run",
            lambda uri, to: [str(download), uri, str(to), "--dry-run", *tools.download_options],
        ),
    )


def measured(
    comparison: Comparison,
    chosen: Sequence[Program],
    transports: Sequence[Transport],
    *,
    rounds: int = ROUNDS,
    shards: int = SHARDS,
) -> list[Look]:
    """Every mistake, looked at by every program over every transport.

    Raises WrongResult at the first run that went wrong, CommandFailed when one ended with another exit code.
    """
    found = []
    for number, mistake in enumerate(MISTAKES):
        prefix = Prefix.made(f"refusal-{number}/", mistake, shards)
        for key, data in prefix.objects.items():
            comparison.server.write(_BUCKET, key, data)
        for transport in transports:
            for turn in range(rounds):
                for program in chosen:
                    found.append(_look(comparison, prefix, program, transport, turn))
                    look = found[-1]
                    comparison.say(
                        f"  {mistake.name} {transport} {turn + 1}: {program.name}: {look.wall:.2f} s,"
                        f" CPU {look.user + look.system:.2f} s, {sum(look.requests.values())} requests"
                    )
        comparison.server.reset(prefix.name)
    return found


@dataclass(frozen=True, slots=True)
class Prefix:
    """What lies in the store: the files with a mistake, and a manifest that agrees with them."""

    name: str
    mistake: Mistake
    files: Files
    manifest: bytes

    @classmethod
    def made(cls, name: str, mistake: Mistake, shards: int) -> Prefix:
        """A checkpoint of so many shards, with this mistake in it."""
        files = checkpoint(shards)
        mistake.make(files)
        family = HashFamily.BLAKE3
        entries = [
            ManifestFile.of(SafePath(path), len(data), family, chunk_digests(family, data))
            for path, data in files.items()
        ]
        return cls(name, mistake, files, Manifest.of(family, entries).encode())

    @property
    def objects(self) -> Files:
        """Bytes by key."""
        files = {f"{self.name}{path}": data for path, data in self.files.items()}
        return files | {f"{self.name}.checkpoint/manifest.json": self.manifest}

    @property
    def enough(self) -> int:
        """Most bytes that a look at it takes: headers, documents, manifest and listings."""
        needed = len(self.manifest) + _LISTINGS
        for path, data in self.files.items():
            needed += header_size(data) if path.endswith(".safetensors") else len(data)
        return needed


def _look(
    comparison: Comparison, prefix: Prefix, program: Program, transport: Transport, turn: int
) -> Look:
    mistake, target = prefix.mistake, comparison.scratch / "refused"
    comparison.server.reset("nothing/")  # the counts alone
    command = program.command(f"s3://{_BUCKET}/{prefix.name}", target)
    command += ["-q", "--endpoint-url", comparison.server.url(transport)]
    command += ["--ca-bundle", str(comparison.certificate)] if transport == "https" else []
    status = _REFUSED if mistake.reference else 0
    usage = comparison.run(command, transport, expect=status)
    state = comparison.server.state(prefix.name)
    reference = reference_in(usage.output)
    if reference != mistake.reference:
        raise WrongResult(f"{program.name}: {mistake.name}: refused with {reference!r}")
    judge(prefix, program.name, state)
    if target.exists():
        raise WrongResult(f"{program.name} wrote to a directory that it was only to look at")
    return Look(
        case=mistake.name,
        direction="download",
        transport=transport,
        program=program.name,
        round=turn,
        size=sum(map(len, prefix.files.values())),
        files=len(prefix.files),
        wall=usage.wall,
        user=usage.user,
        system=usage.system,
        peak=usage.peak,
        requests=state["requests"],
        sent=state["sent"],
        status=status,
        reference=reference,
    )


def judge(prefix: Prefix, who: str, state: Mapping[str, Any]) -> None:
    """Raise WrongResult unless each shard can have been looked at, and nothing but its header was read."""
    asked, shards = sum(state["requests"].values()), len(_shards(prefix.files))
    if not 2 * shards <= asked <= 2 * shards + _DOCUMENTS:
        raise WrongResult(f"{who} made {asked} requests for {shards} shards")
    if state["sent"] > prefix.enough:
        raise WrongResult(f"{who} read {state['sent']} bytes, at most {prefix.enough} are needed")
    if state["received"]:
        raise WrongResult(f"{who} sent {state['received']} bytes to a store it only looks at")


def reference_in(output: str) -> str:
    """The reference of the last error line; empty when there is none."""
    found = _REFERENCE.findall(output)
    return "".join(found[-1]) if found else ""


def _shards(files: Files) -> list[str]:
    return [path for path in files if path.endswith(".safetensors")]


def _tensors(number: int) -> list[str]:
    return [f"model.layers.{number}.part_{n}.weight" for n in range(_TENSORS)]


def _weights(number: int) -> bytes:
    """A safetensors file: tensors of one size, all zero, after a header that tells them apart."""
    size = _SHARD // _TENSORS
    entries = {
        name: {"dtype": "BF16", "shape": [size // 2], "data_offsets": [n * size, (n + 1) * size]}
        for n, name in enumerate(_tensors(number))
    }
    header = json.dumps(entries).encode()
    header = header.ljust(-(-len(header) // 8) * 8)
    return len(header).to_bytes(8, "little") + header + bytes(_SHARD)
