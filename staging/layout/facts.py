"""What rules ask of an inventory: which files would be loaded, what an index says, what kind of model it is.

Everything is derived once, when it is first asked for, so that rules share it. Facts are of one moment; a
checkpoint whose files pass by has `Facts` of its own for every moment, and shares the indexes between them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any, Final

from staging.formats.safetensors import SafetensorsHeader, Tensor
from staging.layout.inventory import (
    CONSOLIDATED_INDEX_NAME,
    INDEX_NAME,
    Inventory,
    directory_of,
    is_safetensors,
)
from staging.layout.parallel import Split, split
from staging.layout.shards import Index, Numbering, numbered

CONFIG: Final = "config.json"
VENDOR_CONFIG: Final = "config.yaml"
MISTRAL_CONFIG: Final = "params.json"
SINGLE: Final = "model.safetensors"
INDEXES: Final = (INDEX_NAME, CONSOLIDATED_INDEX_NAME)

_GENERATIVE: Final = ("ForCausalLM", "ForConditionalGeneration", "LMHeadModel")
_DRAFT: Final = re.compile(
    r"(?i)^eagle3?(model)?$|^eagle\d?[a-z0-9]*(causallm|draft)|causallmeagle3?$"
    r"|medusa|mlpspeculator|speculator|mtpmodel$|dflash|hydra"
)
_VARIANT: Final = re.compile(r"model\.[A-Za-z]\w*(-\d+-of-\d+)?\.safetensors")
"""The same weights in another precision, such as `model.fp32-00001-of-00002.safetensors`."""
_ADAPTER: Final = re.compile(r"adapter_model.*\.safetensors")


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
        found = self.inventory.documents.get(path)
        return found if isinstance(found, Mapping) else None

    # Weights.

    @cached_property
    def safetensors(self) -> tuple[str, ...]:
        """Safetensors files anywhere, in order."""
        return tuple(filter(is_safetensors, self.paths))

    @cached_property
    def root_safetensors(self) -> tuple[str, ...]:
        """Those in the root."""
        return tuple(path for path in self.safetensors if directory_of(path) == "")

    @cached_property
    def consolidated(self) -> tuple[str, ...]:
        """Those in Mistral's format."""
        return tuple(p for p in self.root_safetensors if p.startswith("consolidated"))

    @cached_property
    def usual(self) -> tuple[str, ...]:
        """Those in the root that are in no other format or precision, and no adapter's."""
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

    def fresh_shards(self) -> Iterator[tuple[str, Index, str]]:
        """The shards to look at, each with its index: of a fresh index all, else those that are fresh."""
        for name, index in self.indexes():
            for path in sorted(index.by_file) if name in self.fresh else self.fresh:
                if path in index.by_file:
                    yield name, index, path

    @cached_property
    def index_unread(self) -> bool:
        """True when the index that decides what is loaded is there and could not be read."""
        name = INDEX_NAME if INDEX_NAME in self.files else CONSOLIDATED_INDEX_NAME
        return name in self.files and not isinstance(self.index(name), Index)

    @cached_property
    def held(self) -> frozenset[str]:
        """Names of the tensors in all files whose headers are known."""
        headers = map(self.header, self.inventory.headers)
        return frozenset().union(*(header.tensors for header in headers if header is not None))

    @cached_property
    def loaded(self) -> tuple[str, ...]:
        """Weights that a server loads, in order: those its index names, else one format in the root.

        Of two formats that is the usual one, whichever a server takes: they are one model written twice.
        Adapters are no model's weights.
        """
        return (
            self._named(INDEX_NAME)
            or self.usual
            or self._named(CONSOLIDATED_INDEX_NAME)
            or self.consolidated
        )

    def _named(self, name: str) -> tuple[str, ...]:
        """The files that an index names and that are there, in order."""
        found = self.index(name)
        if not isinstance(found, Index):
            return ()
        return tuple(sorted(path for path in found.by_file if path in self.files))

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
        """True when all weights that belong to the loaded ones are there, and all their headers are known."""
        loaded = frozenset(self.loaded)
        if self.index_unread or not loaded:
            return False
        for _, index in self.indexes():
            if loaded & index.by_file.keys() and not index.by_file.keys() <= self.files.keys():
                return False
        for numbering in self.numberings:
            if loaded & numbering.paths and (numbering.first_missing or numbering.mixed):
                return False
        return all(self.header(path) is not None for path in self.loaded)

    @cached_property
    def numberings(self) -> tuple[Numbering, ...]:
        """The numbered files in the root that no index names; none while an index is not read."""
        if self.index_unread:
            return ()
        named = {path for _, index in self.indexes() for path in index.by_file}
        return tuple(found for found in numbered(self.paths) if not found.paths & named)

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
