"""Rules of a servable checkpoint: pure functions from an inventory to findings.

An error means that the files would not serve, or not as meant; a warning is worth a look. Rules judge
names, sizes and headers only, so they can run before any weight is read. A new rule is one function
and its place in `RULES`.

Two layouts are known to serve, and pass: Hugging Face's (`config.json`, `tokenizer.json`, shards and
their index) and the vendor's (`config.yaml`, `model.safetensors`, `tokenizer/`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Literal

from staging.layout.inventory import (
    INDEX_NAME,
    Inventory,
    directory_of,
    is_config,
    is_leftover,
    is_other_weights,
    is_safetensors,
)
from staging.vocabulary.paths import collisions, why_unsafe

_ARCHIVES: Final = (".tar", ".tgz", ".tar.gz", ".tar.zst", ".tar.xz", ".tar.bz2", ".tar.lz4")
_FOLDER_HINT: Final = "give --strip-components so that the files of this folder land at the root"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing a rule found. `path` is the file it is about, None when it is about the whole."""

    rule: str
    severity: Literal["error", "warning"]
    path: str | None
    message: str
    hint: str


Rule = Callable[[Inventory], Iterator[Finding]]


def check(inventory: Inventory) -> list[Finding]:
    """Apply all rules; errors come first, otherwise the order is that of `RULES` and of paths."""
    findings = [finding for rule in RULES for finding in rule(inventory)]
    return sorted(findings, key=lambda finding: finding.severity != "error")


def _names(inventory: Inventory) -> Iterator[Finding]:
    """Every name means one file, everywhere, beside all others."""
    hint = "rename the file and pack the checkpoint again"
    for path in sorted(inventory.files):
        reason = why_unsafe(path)
        if reason is not None:
            message = f"the name {path[:200]!r} is unsafe: {reason}"
            yield Finding("name-unsafe", "error", path, message, hint)
    for first, second in collisions(sorted(inventory.files)):
        message = f"{second[:200]!r} cannot live beside {first[:200]!r} on every filesystem"
        yield Finding("name-collision", "error", second, message, hint)


def _leftovers(inventory: Inventory) -> Iterator[Finding]:
    """No AppleDouble file: `._model.safetensors` would be loaded as weights."""
    for path in sorted(inventory.files):
        name = path.rpartition("/")[2]
        if is_leftover(path) or name == ".DS_Store":
            yield Finding(
                "macos-leftover",
                "error" if is_leftover(path) else "warning",
                path,
                f"{path[:200]!r} was added by macOS and is no part of a checkpoint",
                "pack the directory again with COPYFILE_DISABLE=1 and without .DS_Store",
            )


def _archives(inventory: Inventory) -> Iterator[Finding]:
    """No archive inside: nodes fetch unpacked files and would start without what is in it."""
    for path in sorted(inventory.files):
        if path.lower().endswith(_ARCHIVES):
            yield Finding(
                "archive-inside",
                "error",
                path,
                f"{path[:200]!r} is an archive; a prefix holds the unpacked files",
                "upload the inner archive itself, or pack the checkpoint without it",
            )


def _weights(inventory: Inventory) -> Iterator[Finding]:
    """Weights lie at the root, as safetensors.

    Servers read other formats too, but pickles run code when they are loaded, and the downloaders in
    use fetch `*.safetensors`: a checkpoint of nothing else would reach no node.
    """
    paths = sorted(inventory.files)
    safetensors = [path for path in paths if is_safetensors(path)]
    others = [path for path in paths if is_other_weights(path)]
    if any(directory_of(path) == "" for path in safetensors) or (
        safetensors and INDEX_NAME in inventory.files
    ):
        for path in others:
            yield Finding(
                "weights-other-format",
                "warning",
                path,
                f"{path[:200]!r} holds weights beside the safetensors files",
                "leave it out unless the model's code needs it; every node downloads it",
            )
    elif safetensors:
        folder = directory_of(safetensors[0])
        yield Finding(
            "weights-nested",
            "error",
            safetensors[0],
            f"the weights are in the folder {folder[:200]!r}, not at the root",
            _FOLDER_HINT,
        )
    elif others:
        yield Finding(
            "weights-not-safetensors",
            "error",
            others[0],
            f"{others[0][:200]!r} is not safetensors, and there are no other weights",
            "ask for the checkpoint as safetensors, or convert it",
        )
    else:
        yield Finding(
            "weights-missing",
            "error",
            None,
            "there are no weights: no *.safetensors file",
            "check that this is the model's archive, and whole",
        )


def _config(inventory: Inventory) -> Iterator[Finding]:
    """The configuration lies at the root, where the weights are."""
    configs = [path for path in sorted(inventory.files) if is_config(path)]
    if any(directory_of(path) == "" for path in configs):
        return
    if configs:
        folder = directory_of(configs[0])
        yield Finding(
            "config-nested",
            "error",
            configs[0],
            f"the configuration is in the folder {folder[:200]!r}, not at the root",
            _FOLDER_HINT,
        )
    else:
        yield Finding(
            "config-missing",
            "warning",
            None,
            "there is no config.json, config.yaml or params.json",
            "check that the archive is whole",
        )


def _headers(inventory: Inventory) -> Iterator[Finding]:
    """Every safetensors file is as long as its header says, and none is another kind of file."""
    for path in sorted(inventory.headers):
        outcome = inventory.headers[path]
        if isinstance(outcome, str) and not is_leftover(path):
            yield Finding(
                "safetensors-broken",
                "error",
                path,
                f"{path[:200]!r} is no whole safetensors file: {outcome}",
                "get this file again: it was cut or replaced before the archive was packed",
            )


RULES: Final[tuple[Rule, ...]] = (_names, _leftovers, _archives, _weights, _config, _headers)
"""All rules, in the order of their findings."""
