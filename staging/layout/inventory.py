"""What the rules of a checkpoint are judged on: names, sizes, headers, small documents. No weights."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from staging.formats.safetensors import SafetensorsHeader
from staging.formats.stranger import Stranger

INDEX_NAME: Final = "model.safetensors.index.json"
"""Names the shards of a checkpoint, in its root."""

CONSOLIDATED_INDEX_NAME: Final = "consolidated.safetensors.index.json"
"""Names the shards of a checkpoint in Mistral's format, in its root."""

_PICKLED_OR_FOREIGN: Final = (".bin", ".pt", ".pth", ".ckpt", ".gguf")

_LOADED_FROM_THE_ROOT: Final = ("*.safetensors", "*.safetensors.index.json", "consolidated*")


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A document that could not be read: `reason` in a few words, `stranger` what it is instead."""

    stranger: Stranger | None
    reason: str
    too_long: bool = False


@dataclass(frozen=True, slots=True)
class Inventory:
    """The files of a checkpoint below its root.

    `files` maps paths to sizes in bytes. `headers` tells of `*.safetensors` files what was found at
    their start: a header that fits the file, or in words why it is broken. A file it does not name,
    or names with None, was not looked into. `documents` has the JSON of small files by path, or an
    `Unreadable`; a document it does not name was not looked into, or has no JSON.
    """

    files: Mapping[str, int]
    headers: Mapping[str, SafetensorsHeader | str | None] = field(default_factory=dict)
    documents: Mapping[str, Any] = field(default_factory=dict)


def is_safetensors(path: str) -> bool:
    """True for what model servers load by the pattern `*.safetensors`."""
    return path.endswith(".safetensors") and not is_leftover(path)


def is_other_weights(path: str) -> bool:
    """True for weights in another format than safetensors, by their names."""
    return path.endswith(_PICKLED_OR_FOREIGN) and not is_leftover(path)


def is_gguf(path: str) -> bool:
    """True for weights in the format of llama.cpp, by their names."""
    return path.endswith(".gguf") and not is_leftover(path)


def is_config(path: str) -> bool:
    """True for a model's configuration: Hugging Face's, the vendor's own, or Mistral's."""
    return path.rpartition("/")[2] in ("config.json", "config.yaml", "params.json")


def is_loaded_weight(path: str) -> bool:
    """True when a server loads a file of this name from the root, whether or not an index names it."""
    return "/" not in path and any(
        fnmatch.fnmatchcase(path, pattern) for pattern in _LOADED_FROM_THE_ROOT
    )


def is_leftover(path: str) -> bool:
    """True for what macOS adds to archives: AppleDouble files, which even match `*.safetensors`."""
    components = path.split("/")
    return "__MACOSX" in components[:2] or any(name.startswith("._") for name in components)


def directory_of(path: str) -> str:
    """The directory a file lies in; empty for the root."""
    return path.rpartition("/")[0]
