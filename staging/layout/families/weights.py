"""Rules about weights: where they lie, in which format, whether each file is whole and all are there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from staging.layout.facts import SINGLE, Facts
from staging.layout.families.names import is_pickle
from staging.layout.families.training import is_training_file
from staging.layout.inventory import (
    INDEX_NAME,
    directory_of,
    is_gguf,
    is_leftover,
    is_other_weights,
)
from staging.layout.rule import Evidence, Family, Severity
from staging.layout.shards import Index, Numbering

FAMILY: Final = Family("weights")

FOLDER: Final = "give --strip-components so that the files of this folder land at the root"
"""What to do about files that lie too deep."""

_GGUF: Final = (
    "ask for the checkpoint as safetensors; a server may load GGUF when it is given the path of a single file"
    " (gguf-split --merge makes one of parts) and a tokenizer: for that, leave this rule out with --ignore"
)


@FAMILY.rule(
    "safetensors-broken",
    "error",
    reason="a loader maps a cut file and reads zeros or noise where weights should be",
    fix="get this file again: it was cut or replaced before the archive was packed",
    source="https://github.com/osaurus-ai/vmlx-swift/pull/217: 8 of 102 shards were short, one start in five"
    " gave gibberish",
    lasting=True,
)
def _safetensors_broken(facts: Facts) -> Iterator[Evidence]:
    for path in facts.fresh:
        outcome = facts.inventory.headers.get(path)
        if isinstance(outcome, str) and not is_leftover(path):
            yield Evidence(path, f"{path[:200]!r} is no whole safetensors file: {outcome}")


@FAMILY.rule(
    "weights-missing",
    "error",
    reason="without weights a server does not start",
    fix="check that this is the model's archive, and whole",
    source="https://github.com/vllm-project/vllm/issues/7953",
)
def _weights_missing(facts: Facts) -> Iterator[Evidence]:
    if not facts.safetensors and not _others(facts):
        yield Evidence(None, "there are no weights: no *.safetensors file")


@FAMILY.rule(
    "weights-nested",
    "error",
    reason="servers look for weights in the root of a checkpoint, not in its folders",
    fix=FOLDER,
    source="the vendor's deployment guide: confirm that the files sit at the root, not under a subfolder",
)
def _weights_nested(facts: Facts) -> Iterator[Evidence]:
    if facts.safetensors and not _in_the_root(facts):
        first = facts.safetensors[0]
        folder = directory_of(first)
        yield Evidence(first, f"the weights are in the folder {folder[:200]!r}, not at the root")


@FAMILY.rule(
    "weights-not-safetensors",
    "error",
    reason="pickles run code when they are loaded, and the downloaders in use fetch *.safetensors only",
    fix="ask for the checkpoint as safetensors, or convert it",
    source="https://github.com/vllm-project/vllm/pull/12366,"
    " https://docs.vllm.ai/en/latest/features/quantization/gguf/",
)
def _weights_not_safetensors(facts: Facts) -> Iterator[Evidence]:
    found = _others(facts)
    if not found or facts.safetensors:
        return
    if all(map(is_gguf, found)):
        what = "GGUF, the format of llama.cpp"
        hint: str | None = _GGUF
    else:
        what, hint = "not safetensors", None
    message = f"{found[0][:200]!r} is {what}, and there are no other weights"
    yield Evidence(found[0], message, hint=hint)


@FAMILY.rule(
    "weights-other-format",
    "warning",
    reason="weights in a second format are downloaded to every node and loaded by none",
    fix="leave it out unless the model's code needs it; every node downloads it",
    source="https://github.com/gpustack/gpustack/issues/2257: both formats are downloaded and counted",
)
def _weights_other_format(facts: Facts) -> Iterator[Evidence]:
    if _in_the_root(facts):
        for path in _others(facts):
            if facts.allows(path) or not is_pickle(path):
                message = f"{path[:200]!r} holds weights beside the safetensors files"
                yield Evidence(path, message)


@FAMILY.rule(
    "weights-empty",
    "error",
    reason="a conversion that failed leaves whole files without a tensor in them",
    fix="convert the model again; these files hold nothing",
    source="https://github.com/ServerlessLLM/ServerlessLLM/issues/322: empty files were saved successfully",
)
def _weights_empty(facts: Facts) -> Iterator[Evidence]:
    if facts.whole and not facts.tensors:
        what = repr(facts.loaded[0][:200]) if len(facts.loaded) == 1 else "the weights"
        yield Evidence(facts.loaded[0], f"there is no tensor in {what}", "tensors", 0)


@FAMILY.rule(
    "weights-two-sets",
    "error",
    reason="of two sets of weights, one server loads the single file and another one the shards",
    fix="pack the checkpoint with one set of weights",
    source="https://github.com/Blaizzy/mlx-vlm/pull/1464: a 4-bit model.safetensors beside BF16 shards",
)
def _weights_two_sets(facts: Facts) -> Iterator[Evidence]:
    if SINGLE not in facts.files:
        return
    index = facts.index(INDEX_NAME)
    if isinstance(index, Index):
        if SINGLE not in index.by_file:
            yield Evidence(SINGLE, f"{SINGLE!r} lies beside the shards that {INDEX_NAME!r} names")
    elif (
        INDEX_NAME not in facts.files
        and any(numbering.paths & set(facts.usual) for numbering in facts.numberings)
        and not any(True for _ in _twice(facts))
    ):
        yield Evidence(SINGLE, f"{SINGLE!r} lies beside numbered shards")


@FAMILY.rule(
    "weights-unlisted",
    "warning",
    reason="weights that the index does not name were left behind by another version",
    fix="pack the checkpoint without this file, or write its index again",
    source="https://github.com/Blaizzy/mlx-vlm/pull/1464",
)
def _weights_unlisted(facts: Facts) -> Iterator[Evidence]:
    index = facts.index(INDEX_NAME)
    if not isinstance(index, Index):
        return
    for path in facts.usual:
        header = facts.header(path)
        if path not in index.by_file and path != SINGLE and not (header and not header.tensors):
            message = f"{path[:200]!r} is not named by {INDEX_NAME!r}: left by another version?"
            yield Evidence(path, message)


@FAMILY.rule(
    "shards-mixed",
    "error",
    milder="warning",
    reason="shards of two versions under one name are loaded together, where no index tells them apart",
    fix="pack the shards of one version only, with their index",
    source="https://github.com/Blaizzy/nativ/pull/370: shards of 13 were named, those of 4 were there",
)
def _shards_mixed(facts: Facts) -> Iterator[Evidence]:
    for numbering in _numberings(facts):
        if numbering.mixed:
            totals = ", ".join(f"-of-{total:05d}" for total in sorted(numbering.totals))
            message = f"shards named {numbering.stem[:100]!r} are of several versions: {totals}"
            yield Evidence(
                None,
                message,
                "total",
                sorted(numbering.totals),
                severity=_as_loaded(facts, numbering),
            )


@FAMILY.rule(
    "shards-incomplete",
    "error",
    milder="warning",
    reason="weights of a shard that is not there stay uninitialised, and the server starts all the same",
    fix="get the missing shards, and pack the checkpoint again",
    source="https://github.com/sgl-project/sglang/pull/32279",
)
def _shards_incomplete(facts: Facts) -> Iterator[Evidence]:
    for numbering in _numberings(facts):
        missing = numbering.first_missing
        if missing is not None and not numbering.mixed:
            count = numbering.total - numbering.there
            more, verb = (f" and {count - 1} more", "are") if count > 1 else ("", "is")
            message = f"{missing[:200]!r}{more} of {numbering.total} shards {verb} not there"
            yield Evidence(
                None, message, "shards", numbering.there, severity=_as_loaded(facts, numbering)
            )


@FAMILY.rule(
    "shards-without-index",
    "warning",
    reason="without an index some loaders find no weights, and none can tell which are missing",
    fix=f"get {INDEX_NAME} from where the checkpoint came from",
    source="https://github.com/shuaijiang/Ke-Omni-R/issues/4",
)
def _shards_without_index(facts: Facts) -> Iterator[Evidence]:
    for numbering in _numberings(facts):
        if (
            numbering.kind == "safetensors"
            and not numbering.stem.startswith("consolidated")
            and numbering.total > 1
            and not numbering.mixed
            and numbering.first_missing is None
            and INDEX_NAME not in facts.files
        ):
            message = (
                f"{numbering.total} shards named {numbering.stem[:100]!r} have no {INDEX_NAME}"
            )
            yield Evidence(None, message)


@FAMILY.rule(
    "tensor-twice",
    "error",
    reason="of two tensors of one name the one that is loaded last wins, and nobody says which that is",
    fix="pack the checkpoint with one set of weights; one of these files belongs to another version",
    source="https://github.com/vllm-project/vllm/issues/40765: both sets of weights were loaded",
    lasting=True,
)
def _tensor_twice(facts: Facts) -> Iterator[Evidence]:
    yield from _twice_as_indexed(facts) if facts.partial else _twice(facts)


def _twice_as_indexed(facts: Facts) -> Iterator[Evidence]:
    """What is certain while files are coming: the index names both files, so that both are loaded."""
    for index_name, index, path in facts.fresh_shards():
        header = facts.header(path)
        if index_name != INDEX_NAME or header is None:
            continue
        shared: dict[str, list[str]] = {}
        for name in header.tensors:
            place = index.places.get(name, path)
            other = facts.header(place)
            if place != path and other is not None and name in other.tensors:
                shared.setdefault(place, []).append(name)
        for place, names in shared.items():
            yield _shared(names, place, path)


def _twice(facts: Facts) -> Iterator[Evidence]:
    """All tensors of one name in several files that are loaded."""
    if facts.index_unread:
        return
    first: dict[str, str] = {}
    for path in facts.loaded:
        header = facts.header(path)
        if header is None:
            continue
        shared: dict[str, list[str]] = {}
        for name in header.tensors:
            other = first.setdefault(name, path)
            if other != path:
                shared.setdefault(other, []).append(name)
        for other, names in shared.items():
            yield _shared(names, other, path)


def _shared(names: list[str], one: str, another: str) -> Evidence:
    first, second = sorted((one, another))
    message = f"{several(names)} in {first[:100]!r} and in {second[:100]!r}"
    return Evidence(second, message, names[0][:200], [first, second])


def several(names: list[str] | tuple[str, ...]) -> str:
    """The first of some tensors, and how many more, with a verb."""
    if len(names) == 1:
        return f"{names[0][:200]!r} is"
    return f"{names[0][:200]!r} and {len(names) - 1} more are"


def _as_loaded(facts: Facts, numbering: Numbering) -> Severity | None:
    """A warning about files that no server loads, such as half of a GGUF beside whole weights."""
    return None if not facts.loaded or numbering.paths & set(facts.loaded) else "warning"


def _numberings(facts: Facts) -> Iterator[Numbering]:
    if SINGLE not in facts.files:
        yield from facts.numberings


def _in_the_root(facts: Facts) -> bool:
    return bool(facts.root_safetensors or (INDEX_NAME in facts.files and facts.safetensors))


def _others(facts: Facts) -> list[str]:
    return [path for path in facts.paths if is_other_weights(path) and not is_training_file(path)]
