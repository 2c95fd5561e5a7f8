"""Rules about the index of sharded weights, held against the headers of the shards in both directions."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

from staging.layout.facts import INDEXES, MISTRAL_CONFIG, Facts
from staging.layout.families.weights import several
from staging.layout.inventory import INDEX_NAME
from staging.layout.rule import Evidence, Family, Severity
from staging.layout.shards import Index

FAMILY: Final = Family("index")

_AGAIN: Final = "write the index again from the shards, or get shards and index of one version"


@FAMILY.rule(
    "index-broken",
    "error",
    reason="an index that names no files gives a server no weights",
    fix="get the index again from where the checkpoint came from",
    source="https://github.com/oobabooga/textgen/issues/276",
    lasting=True,
)
def _index_broken(facts: Facts) -> Iterator[Evidence]:
    for name in INDEXES:
        if name in facts.fresh and isinstance(reason := facts.index(name), str):
            yield Evidence(name, f"{name!r} is no index of shards: {reason}", "weight_map")


@FAMILY.rule(
    "index-shard-missing",
    "error",
    milder="warning",
    reason="weights of a shard that is not there stay uninitialised, and the server starts all the same",
    fix="get the missing shards, and pack the checkpoint again",
    source="https://github.com/sgl-project/sglang/pull/32279, https://github.com/vllm-project/vllm/issues/34859",
)
def _index_shard_missing(facts: Facts) -> Iterator[Evidence]:
    for name, index in facts.indexes():
        missing = sorted(path for path in index.by_file if path not in facts.files)
        if missing:
            verb = "and " + str(len(missing) - 1) + " more are" if len(missing) > 1 else "is"
            message = f"{missing[0][:200]!r} {verb} not there, of {len(index.by_file)} that {name!r} names"
            unused = len(missing) == len(index.by_file) and _is_of_the_other_format(facts, name)
            severity: Severity | None = "warning" if unused else None
            yield Evidence(name, message, "weight_map", missing[0][:200], severity=severity)


def _is_of_the_other_format(facts: Facts, name: str) -> bool:
    """True when nobody reads an index, since all weights there are in the other of two formats."""
    if name == INDEX_NAME:
        return bool(facts.consolidated) and not facts.usual and MISTRAL_CONFIG in facts.files
    return bool(facts.usual) and not facts.consolidated


@FAMILY.rule(
    "index-tensor-elsewhere",
    "error",
    reason="a loader that asks a shard for a tensor of another one ends, or leaves it uninitialised",
    fix=_AGAIN,
    source="https://github.com/vllm-project/vllm/issues/54230",
    lasting=True,
)
def _index_tensor_elsewhere(facts: Facts) -> Iterator[Evidence]:
    for name, index, path in facts.fresh_shards():
        header = facts.header(path)
        if header is None:
            continue
        wrong: dict[str, list[str]] = {}
        for tensor in header.tensors:
            place = index.places.get(tensor)
            if place is None or place == path:
                continue
            other = facts.header(place)
            if (other is None and facts.partial) or (
                other is not None and tensor not in other.tensors
            ):
                wrong.setdefault(place, []).append(tensor)
        for place, tensors in wrong.items():
            message = (
                f"{several(tensors)} in {path[:100]!r}, not in {place[:100]!r} as {name!r} says"
            )
            yield Evidence(path, message, f"weight_map.{tensors[0][:200]}", place)


@FAMILY.rule(
    "index-tensor-missing",
    "error",
    reason="a tensor that the index promises and no shard has stays uninitialised",
    fix=_AGAIN,
    source="https://github.com/Blaizzy/mlx-vlm/pull/1827",
    lasting=True,
)
def _index_tensor_missing(facts: Facts) -> Iterator[Evidence]:
    for name, index, path in facts.fresh_shards():
        header = facts.header(path)
        if header is None:
            continue
        missing = [tensor for tensor in index.by_file[path] if tensor not in header.tensors]
        if missing:  # what another file has is another rule's
            missing = [tensor for tensor in missing if tensor not in facts.held]
        if missing:
            message = f"{several(missing)} not in {path[:100]!r}, where {name!r} looks for it"
            yield Evidence(path, message, f"weight_map.{missing[0][:200]}", path)


@FAMILY.rule(
    "index-tensor-unmapped",
    "warning",
    reason="a tensor that the index does not name is loaded by some servers and left out by others",
    fix=_AGAIN,
    source="https://github.com/Blaizzy/mlx-vlm/issues/624",
)
def _index_tensor_unmapped(facts: Facts) -> Iterator[Evidence]:
    for name, index in facts.indexes():
        for path in sorted(index.by_file):
            header = facts.header(path)
            if header is None:
                continue
            extra = [tensor for tensor in header.tensors if tensor not in index.places]
            if extra:
                message = f"{several(extra)} in {path[:100]!r}, and {name!r} does not say so"
                yield Evidence(path, message, extra[0][:200])


@FAMILY.rule(
    "index-total-size",
    "warning",
    reason="an index with another size was written for another version of the weights",
    fix=_AGAIN,
    source="https://github.com/Blaizzy/nativ/pull/370",
)
def _index_total_size(facts: Facts) -> Iterator[Evidence]:
    for name, index in facts.indexes():
        told = index.total_size
        if not isinstance(told, (int, float)) or isinstance(told, bool):
            continue
        if isinstance(told, float) and not math.isfinite(told):
            continue
        sizes = _sizes(facts, index)
        if sizes and told not in sizes:
            message = (
                f"{name!r} says that all tensors have {str(told)[:40]} bytes; they have {sizes[0]}"
            )
            yield Evidence(name, message, "metadata.total_size", told)


def _sizes(facts: Facts, index: Index) -> tuple[int, ...]:
    """Bytes of what the shards hold, as tools count it; empty when that is not known.

    Some count what the index names, some all tensors, some the files with their headers.
    """
    named = everything = files = 0
    seen: set[str] = set()
    for path in sorted(index.by_file):
        header = facts.header(path)
        if header is None:
            return ()
        files += facts.files.get(path, 0)
        for tensor, entry in header.tensors.items():
            size = entry.end - entry.start
            everything += size
            if tensor in index.places and tensor not in seen:
                seen.add(tensor)
                named += size
    return named, everything, files
