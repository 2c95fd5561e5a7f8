"""What rules ask of an inventory: which files would be loaded, what an index says, what kind of model it is.

Everything is derived once, when it is first asked for, so that rules share it. Facts are of one moment; a
checkpoint whose files pass by has `Facts` of its own for every moment, and shares the indexes between them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from staging.formats.safetensors import SafetensorsHeader, Tensor
from staging.layout.inventory import (
    CONSOLIDATED_INDEX_NAME,
    INDEX_NAME,
    Inventory,
    directory_of,
    is_safetensors,
    json_object,
)
from staging.layout.parallel import Split, split
from staging.vocabulary.paths import why_unsafe

CONFIG: Final = "config.json"
VENDOR_CONFIG: Final = "config.yaml"
MISTRAL_CONFIG: Final = "params.json"
INDEXES: Final = (INDEX_NAME, CONSOLIDATED_INDEX_NAME)

_GENERATIVE: Final = ("ForCausalLM", "ForConditionalGeneration", "LMHeadModel")
_DRAFT: Final = re.compile(
    r"(?i)^eagle3?(model)?$|^eagle\d?[a-z0-9]*(causallm|draft)|causallmeagle3?$"
    r"|medusa|mlpspeculator|speculator|mtpmodel$|dflash|hydra"
)
SINGLE: Final = "model.safetensors"
_VARIANT: Final = re.compile(r"model\.[A-Za-z]\w*(-\d+-of-\d+)?\.safetensors")
"""The same weights in another precision, such as `model.fp32-00001-of-00002.safetensors`."""
_ADAPTER: Final = re.compile(r"adapter_model.*\.safetensors")


@dataclass(frozen=True, slots=True)
class Index:
    """An index: for each tensor the file it is in. Files are named from the root."""

    places: Mapping[str, str]
    by_file: Mapping[str, tuple[str, ...]]
    total_size: object

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> Index:
        """Read the JSON of an index. Raises ValueError with a reason when it is none."""
        places = document.get("weight_map")
        if not isinstance(places, dict):
            raise ValueError("it has no weight_map")
        if not places:
            raise ValueError("its weight_map is empty")
        by_file: dict[str, list[str]] = {}
        for tensor, path in places.items():
            if not isinstance(path, str):
                raise ValueError(f"its weight_map has no file for {tensor[:100]!r}")
            by_file.setdefault(path, []).append(tensor)
        for path in by_file:
            reason = why_unsafe(path)
            if reason is not None:
                raise ValueError(f"it names the file {path[:100]!r}, which is unsafe: {reason}")
        metadata = document.get("metadata")
        total = metadata.get("total_size") if isinstance(metadata, dict) else None
        return cls(places, {path: tuple(names) for path, names in by_file.items()}, total)


class Facts:
    """An inventory as rules see it.

    `fresh` are the files that lasting rules look at: all, or those that have just come. `allow` are paths of
    pickles and programs that somebody wants to have, or of folders, which end in a slash. `partial` is True
    while files are still coming. `indexes` may be shared by facts of later moments; it holds what was read of
    each index.
    """

    def __init__(
        self,
        inventory: Inventory,
        *,
        allow: Iterable[str] = (),
        fresh: Iterable[str] | None = None,
        partial: bool = False,
        indexes: dict[str, Index | str] | None = None,
    ) -> None:
        self.inventory = inventory
        self.allow = frozenset(allow)
        self.partial = partial
        self._fresh = fresh
        self._indexes = {} if indexes is None else indexes

    def allows(self, path: str) -> bool:
        """True when somebody wants to have a file, by its path or by a folder that it lies in."""
        return path in self.allow or any(
            path.startswith(folder) for folder in self.allow if folder.endswith("/")
        )

    @property
    def files(self) -> Mapping[str, int]:
        """Sizes in bytes by path."""
        return self.inventory.files

    @cached_property
    def paths(self) -> tuple[str, ...]:
        """All paths, in order."""
        return tuple(sorted(self.files))

    @cached_property
    def fresh(self) -> tuple[str, ...]:
        """The files that lasting rules look at, in order."""
        return self.paths if self._fresh is None else tuple(sorted(self._fresh))

    def header(self, path: str) -> SafetensorsHeader | None:
        """The header of a safetensors file; None where it is broken or was not looked at."""
        found = self.inventory.headers.get(path)
        return found if isinstance(found, SafetensorsHeader) else None

    def document(self, path: str) -> Mapping[str, Any] | None:
        """A JSON object; None where there is none, or it could not be read."""
        return json_object(self.inventory.documents, path)

    # Weights.

    @cached_property
    def root_safetensors(self) -> tuple[str, ...]:
        """Safetensors files in the root, in order."""
        return tuple(p for p in self.paths if is_safetensors(p) and directory_of(p) == "")

    @cached_property
    def consolidated(self) -> tuple[str, ...]:
        """Weights in Mistral's format, in order."""
        return tuple(p for p in self.root_safetensors if p.startswith("consolidated"))

    @cached_property
    def usual(self) -> tuple[str, ...]:
        """Weights in the root that are in no other format or precision, and no adapter's, in order."""
        return tuple(
            path
            for path in self.root_safetensors
            if not path.startswith("consolidated")
            and not _ADAPTER.fullmatch(path)
            and not (SINGLE in self.files and _VARIANT.fullmatch(path))
        )

    def index(self, name: str) -> Index | str | None:
        """What an index says, or why it is none; None where it is missing or no JSON object."""
        if name not in self._indexes:
            document = self.document(name)
            if document is None:
                return None
            try:
                self._indexes[name] = Index.read(document)
            except ValueError as error:
                self._indexes[name] = str(error)
        return self._indexes[name]

    def indexes(self) -> Iterator[tuple[str, Index]]:
        """The indexes that could be read."""
        for name in INDEXES:
            found = self.index(name)
            if isinstance(found, Index):
                yield name, found

    @cached_property
    def index_unread(self) -> bool:
        """True when nobody knows what an index says that is there: then what is loaded is not known."""
        return any(
            name in self.files and not isinstance(self.index(name), Index) for name in INDEXES
        )

    @cached_property
    def held(self) -> frozenset[str]:
        """Names of the tensors in all files whose headers are known."""
        headers = map(self.header, self.inventory.headers)
        return frozenset().union(*(header.tensors for header in headers if header is not None))

    @cached_property
    def loaded(self) -> tuple[str, ...]:
        """Weights that a server loads, in order: those its index names, else one format in the root."""
        found = self.index(INDEX_NAME)
        if isinstance(found, Index):
            named = sorted(path for path in found.by_file if path in self.files)
            if named:
                return tuple(named)
        if self.usual:
            return self.usual
        found = self.index(CONSOLIDATED_INDEX_NAME)
        if isinstance(found, Index):
            return tuple(sorted(path for path in found.by_file if path in self.files))
        return self.consolidated

    @cached_property
    def tensors(self) -> Mapping[str, Tensor]:
        """All tensors that a server loads, by name, as far as headers are known."""
        return {
            name: tensor
            for path in self.loaded
            if (header := self.header(path)) is not None
            for name, tensor in header.tensors.items()
        }

    @cached_property
    def whole(self) -> bool:
        """True when all weights that should be there are, and all their headers are known."""
        if self.index_unread:
            return False
        for _, index in self.indexes():
            if any(path not in self.files for path in index.by_file):
                return False
        if any(numbering.first_missing or numbering.mixed for numbering in self.numberings):
            return False
        return bool(self.loaded) and all(self.header(path) is not None for path in self.loaded)

    @cached_property
    def numberings(self) -> tuple[Numbering, ...]:
        """The numbered files in the root that no index names; none while an index is not read."""
        if self.index_unread:
            return ()
        named = {path for _, index in self.indexes() for path in index.by_file}
        groups: dict[tuple[str, str], dict[int, dict[int, str]]] = {}
        known = set()
        for path in self.paths:
            match = _NUMBERED.fullmatch(path)
            if match is not None:
                key = (match["stem"], match["kind"])
                totals = groups.setdefault(key, {})
                totals.setdefault(int(match["total"]), {})[int(match["number"])] = path
                if path in named:
                    known.add(key)
        return tuple(
            Numbering(stem, kind, totals)
            for (stem, kind), totals in sorted(groups.items())
            if (stem, kind) not in known
        )

    # The kind of model.

    @cached_property
    def config(self) -> Mapping[str, Any] | None:
        """`config.json`, where it could be read."""
        return self.document(CONFIG)

    @cached_property
    def architectures(self) -> tuple[str, ...]:
        """Architectures that `config.json` names."""
        found = (self.config or {}).get("architectures")
        return (
            tuple(name for name in found if isinstance(name, str))
            if isinstance(found, list)
            else ()
        )

    @cached_property
    def draft(self) -> bool:
        """True for a model that proposes tokens to another one."""
        config = self.config or {}
        if "speculators_config" in config or any(map(_DRAFT.search, self.architectures)):
            return True
        # The first EAGLE heads call themselves what their target is called.
        names = self.tensors.keys()
        return "d2t" in names or (
            "fc.weight" in names and not any(name.startswith("model.") for name in names)
        )

    @cached_property
    def generative(self) -> bool:
        """True for a model that is known to write text, and is served by itself."""
        return not self.draft and any(name.endswith(_GENERATIVE) for name in self.architectures)

    @cached_property
    def split(self) -> Split | None:
        """Over how many GPUs the model splits; None without a configuration."""
        if self.config is None:
            return None
        found = [self.header(path) for path in self.loaded] if self.whole else []
        headers = [header for header in found if header is not None]
        beside = self.document("quantize_config.json")
        return split(self.config, headers, quantisation=beside)

    @cached_property
    def bundle(self) -> bool:
        """True for the layout of the vendor's bundles: `config.yaml` and no other configuration."""
        return (
            VENDOR_CONFIG in self.files
            and CONFIG not in self.files
            and MISTRAL_CONFIG not in self.files
        )


_NUMBERED: Final = re.compile(
    r"(?P<stem>[^/]+)-(?P<number>\d{1,6})-of-(?P<total>\d{1,6})\.(?P<kind>safetensors|gguf)"
)


@dataclass(frozen=True, slots=True)
class Numbering:
    """Files of one stem that are numbered `-NUMBER-of-TOTAL`: for each total, paths by number."""

    stem: str
    kind: str
    totals: Mapping[int, Mapping[int, str]]

    @property
    def mixed(self) -> bool:
        """True when the files do not agree on how many there are."""
        return len(self.totals) > 1

    @property
    def total(self) -> int:
        """How many files there should be; the most, when they do not agree."""
        return max(self.totals)

    @property
    def there(self) -> int:
        """How many of them are there."""
        return len(self.totals[self.total])

    @property
    def paths(self) -> frozenset[str]:
        """All files of this stem."""
        return frozenset(path for numbered in self.totals.values() for path in numbered.values())

    @property
    def first_missing(self) -> str | None:
        """The name of the first file that is not there; numbers begin with 1, or with 0."""
        numbered = self.totals[self.total]
        start = 0 if 0 in numbered else 1
        for number in range(start, start + self.total):
            if number not in numbered:
                match = _NUMBERED.fullmatch(next(iter(numbered.values())))
                width, of = (len(match["number"]), match["total"]) if match else (5, self.total)
                return f"{self.stem}-{number:0{width}d}-of-{of}.{self.kind}"
        return None
