"""Rules of what the models' prefixes hold: there, complete, the pinned one, and fit for the GPUs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final, TypeGuard

from staging.layout.gpus import fits
from staging.values.deployment import Deployment, Model
from staging.values.finding import Facts, Found, Published, Rule, rule
from staging.vocabulary.errors import StagingError

_GB: Final = 10**9


@rule(
    "checkpoint-unavailable",
    "error",
    code=10,
    reason="the prefix of every model holds a published checkpoint that can be read",
    fix="publish it with `staging upload`, or correct the prefix",
    source="Install on Amazon EKS, Troubleshooting: a misspelled path syncs nothing and the pod never starts",
)
def checkpoint_unavailable(deployment: Deployment, facts: Facts) -> Iterator[Found]:
    """What the store said; the exit code is that of its error."""
    for model in deployment.models:
        known = None if model.uri is None else facts.checkpoints.get(model.uri)
        if isinstance(known, StagingError):
            yield Found(
                place=model.entry.at("model") or model.entry,
                message=known.message,
                hint=known.hint,
                model=model.key,
                code=known.code,
                cause=known.reference,
                notes=tuple(getattr(known, "__notes__", ())),
            )


@rule(
    "checkpoint-incomplete",
    "error",
    code=11,
    reason="every object that the manifest names is there, in its size",
    fix="upload the checkpoint again under a new prefix and point to that",
    source="docs/scripting.md: verify-differs",
)
def checkpoint_incomplete(deployment: Deployment, facts: Facts) -> Iterator[Found]:
    """Objects that went, or were replaced, after publishing."""
    for model, published in _published(deployment, facts):
        if published.problems:
            first, *more = published.problems
            others = f", and {len(more)} more" if more else ""
            message = f"{model.uri} is no longer what was published: {first}{others}"
            yield _found(model, message)


@rule(
    "id-differs",
    "error",
    code=11,
    reason="a checkpoint that is pinned in a comment is the one under the prefix",
    fix="point to the prefix of the pinned checkpoint, or pin anew with `staging preflight --pin`",
    source="docs/preflight.md: pins",
)
def id_differs(deployment: Deployment, facts: Facts) -> Iterator[Found]:
    """Another checkpoint than the one that was checked and pinned."""
    for model, published in _published(deployment, facts):
        if model.pin is not None and model.pin != published.id:
            yield _found(model, f"{model.uri} holds {published.id}, pinned is {model.pin}")


@rule(
    "split-impossible",
    "warning",
    code=17,
    reason="the model can be cut over the number of gpus",
    fix="use one of the numbers of GPUs that are possible",
    source="docs/decisions/0017-what-fits.md",
)
def split_impossible(deployment: Deployment, facts: Facts) -> Iterator[Found]:
    """A number of GPUs over which vLLM cannot cut the model. No error: other servers cut differently."""
    for model, split in _splits(deployment, facts):
        if model.gpus in split["possible"] or model.gpus in split["depends"]:
            continue
        why = _limit(split, model.gpus)
        possible = ", ".join(map(str, split["possible"])) or "none"
        message = f"cannot be cut over {model.gpus} GPUs{why}"
        yield _found(model, message, f"possible are: {possible}", field="gpus")


@rule(
    "split-depends",
    "advice",
    code=17,
    reason="every version of the server can cut the model over the number of gpus",
    fix="try it with your version of the server, or use a number of GPUs that is always possible",
    source="docs/decisions/0017-what-fits.md",
)
def split_depends(deployment: Deployment, facts: Facts) -> Iterator[Found]:
    """A number of GPUs that some versions and kernels take and others refuse."""
    for model, split in _splits(deployment, facts):
        if model.gpus in split["depends"]:
            why = _limit(split, model.gpus)
            yield _found(
                model, f"not every server can cut it over {model.gpus} GPUs{why}", field="gpus"
            )


@rule(
    "weights-too-large",
    "warning",
    code=17,
    reason="the weights fit into the memory of the gpus, and something is left for requests",
    fix="use more GPUs, or GPUs with more memory",
    source="docs/decisions/0017-what-fits.md",
)
def weights_too_large(deployment: Deployment, facts: Facts) -> Iterator[Found]:
    """More bytes per GPU than its memory has."""
    for model, published in _published(deployment, facts):
        total = published.layout.get("weight_bytes")
        if model.gpus is None or not _is_count(total):
            continue
        split = published.layout.get("tensor_parallel")
        held = split.get("weight_bytes_per_gpu") if isinstance(split, Mapping) else None
        exact = held.get(str(model.gpus)) if isinstance(held, Mapping) else None
        per_gpu = exact if _is_count(exact) else None
        fit = fits(total, facts.instance.gpu, model.gpus, per_gpu=per_gpu)
        if not fit.fits:
            message = (
                f"{fit.weights / _GB:.1f} GB of weights for each of {model.gpus} {fit.gpu.name},"
                f" where {fit.usable / _GB:.1f} GB can be used"
            )
            yield _found(model, message, field="gpus")


def possible_sizes(published: Published) -> tuple[int, ...] | None:
    """The numbers of GPUs over which a checkpoint can be cut; None where that is not known."""
    split = _split(published)
    return None if split is None else split["possible"]


def _published(deployment: Deployment, facts: Facts) -> Iterator[tuple[Model, Published]]:
    for model in deployment.models:
        known = None if model.uri is None else facts.checkpoints.get(model.uri)
        if isinstance(known, Published):
            yield model, known


def _splits(deployment: Deployment, facts: Facts) -> Iterator[tuple[Model, dict[str, Any]]]:
    for model, published in _published(deployment, facts):
        split = _split(published)
        if split is not None and model.gpus is not None:
            yield model, split


def _split(published: Published) -> dict[str, Any] | None:
    """The section `tensor_parallel` of the manifest's layout, where it has the shape that we write."""
    section = published.layout.get("tensor_parallel")
    if not isinstance(section, Mapping) or "unknown" in section:
        return None
    possible, depends = section.get("possible"), section.get("depends", [])
    if not (isinstance(possible, list) and isinstance(depends, list)):
        return None
    if not all(map(_is_count, [*possible, *depends])):
        return None
    limits = section.get("limits")
    return {
        "possible": tuple(possible),
        "depends": tuple(depends),
        "limits": limits if isinstance(limits, list) else [],
    }


def _limit(split: Mapping[str, Any], gpus: int | None) -> str:
    for limit in filter(lambda one: isinstance(one, Mapping), split["limits"]):
        excludes, message = limit.get("excludes"), limit.get("message")
        if isinstance(excludes, list) and gpus in excludes and isinstance(message, str):
            return f": {message[:300]}"
    return ""


def _is_count(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _found(model: Model, message: str, hint: str | None = None, *, field: str = "model") -> Found:
    place = model.entry.at(field) or model.entry.at("model") or model.entry
    return Found(place=place, message=message, hint=hint, model=model.key)


RULES: Final[tuple[Rule, ...]] = (
    checkpoint_unavailable,
    checkpoint_incomplete,
    id_differs,
    split_impossible,
    split_depends,
    weights_too_large,
)
