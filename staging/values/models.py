"""Rules of single models: their names, URIs, types, GPUs and server flags."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from typing import Final

from staging.values.deployment import GPU_COUNTS, Deployment, Model, is_blank, is_placeholder
from staging.values.document import Value
from staging.values.finding import Facts, Found, Rule, rule
from staging.vocabulary.errors import UsageError
from staging.vocabulary.location import S3Location

MODEL_TYPES: Final = ("agent", "agent_small", "completion")

FIELDS: Final = (
    "model",
    "modelName",
    "modelType",
    "modelExtraArgs",
    "gpus",
    "replicas",
    "ingressHost",
    "routeHost",
)
"""Fields of a model that the guides document; charts have more."""

_LABEL: Final = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_LONGEST_LABEL: Final = 63
_LIKE: Final = 0.85  # `gpu` is that much like `gpus`, `modelArgs` is less like `modelExtraArgs`
_FIELDS_SOURCE: Final = "Model inference on EKS, Configure inference values: the table of fields"
_STEP_6: Final = "Install on Amazon EKS, step 6"
_SPLIT_FLAG: Final = "tensor-parallel-size"


@rule(
    "models-missing",
    "error",
    reason="there is at least one model, and models are a mapping by key",
    fix="add an entry under the key, as the guide of the chart shows",
    source=_FIELDS_SOURCE,
)
def models_missing(deployment: Deployment, facts: Facts) -> Iterator[Found]:
    """No models, or a list of them."""
    if deployment.models:
        return
    place = deployment.values.at(*deployment.models_path) or deployment.values
    name = ".".join(deployment.models_path)
    shape = "is no mapping" if place.data and not place.entries else "has no models"
    elsewhere = deployment.values.at("models") if deployment.chart == "inference-stack" else None
    hint = "move `models` below `inference`: this chart does not read it at the top"
    yield Found(
        place=elsewhere or place,
        message=f"{name} {shape}",
        hint=None if elsewhere is None else hint,
        path=name,
    )


@rule(
    "model-malformed",
    "error",
    reason="a model is a mapping of fields, and so are its server flags",
    fix="write one field per line, indented below the key",
    source=_FIELDS_SOURCE,
)
def model_malformed(deployment: Deployment, facts: Facts) -> Iterator[Found]:
    """A model, or its flags, that is text or a list."""
    for model in deployment.models:
        if not isinstance(model.entry.data, Mapping):
            yield _found(model, model.entry, "this is no mapping of fields")
        flags = model.entry.at("modelExtraArgs")
        if flags is not None and not isinstance(flags.data, Mapping):
            yield _found(model, flags, "modelExtraArgs is no mapping of flags")


@rule(
    "model-key-invalid",
    "error",
    reason="a key becomes part of names in Kubernetes: inference-<key>, at most 63 characters",
    fix="use a-z, 0-9 and -, with a letter or digit at both ends",
    source="Kubernetes, Object Names and IDs: RFC 1035 label names; Install on Amazon EKS, step 6",
)
def model_key_invalid(deployment: Deployment, facts: Facts) -> Iterator[Found]:
    """A key that cannot be part of a Service's name."""
    for model in deployment.models:
        if is_placeholder(model.key):
            continue
        if not _LABEL.fullmatch(model.key):
            yield _found(
                model, model.entry, f"{model.key[:80]!r} cannot be part of a Service's name"
            )
        elif len(model.deployment) > _LONGEST_LABEL:
            long = f"{model.deployment} has {len(model.deployment)} characters, more than {_LONGEST_LABEL}"
            yield _found(model, model.entry, long, "choose a shorter key")


@rule(
    "model-uri-missing",
    "error",
    reason="every model says where its checkpoint lies",
    fix="set `model` to the s3:// prefix that `staging upload` printed",
    source=_FIELDS_SOURCE,
)
def model_uri_missing(deployment: Deployment, facts: Facts) -> Iterator[Found]:
    """No `model`."""
    for model in _readable(deployment):
        if is_blank(model.entry.at("model")):
            yield _found(model, model.entry.at("model") or model.entry, "model is missing")


@rule(
    "model-uri-invalid",
    "error",
    reason="a checkpoint's place is s3://BUCKET/PREFIX/",
    fix="write the prefix as `staging upload` printed it",
    source=_FIELDS_SOURCE,
)
def model_uri_invalid(deployment: Deployment, facts: Facts) -> Iterator[Found]:
    """A `model` that is no prefix in S3."""
    for model in _readable(deployment):
        value = model.entry.at("model")
        if value is None or is_blank(value) or (value.text and is_placeholder(value.text)):
            continue
        if value.text is None:
            yield _found(model, value, "model is no text")
            continue
        try:
            S3Location.parse(value.text)
        except UsageError as error:
            yield _found(model, value, error.message, error.hint)


@rule(
    "model-name-missing",
    "error",
    reason="every model has the name under which it is served",
    fix='set modelName, such as "Laguna XS"; it is registered under this name',
    source=_FIELDS_SOURCE,
)
def model_name_missing(deployment: Deployment, facts: Facts) -> Iterator[Found]:
    """No `modelName`."""
    for model in _readable(deployment):
        if is_blank(model.entry.at("modelName")):
            place = model.entry.at("modelName") or model.entry
            yield _found(model, place, "modelName is missing")


@rule(
    "model-type-invalid",
    "error",
    reason="modelType is agent, agent_small or completion",
    fix="use the modelType that came with the checkpoint",
    source=f"{_STEP_6}: Model type",
)
def model_type_invalid(deployment: Deployment, facts: Facts) -> Iterator[Found]:
    """A preset that the chart does not have."""
    for model in deployment.models:
        value = model.entry.at("modelType")
        if value is None or value.data in MODEL_TYPES or is_placeholder(value.text or ""):
            continue
        near = difflib.get_close_matches(value.written, MODEL_TYPES, n=1)
        known = ", ".join(MODEL_TYPES)
        hint = f"did you mean {near[0]}?" if near else None
        yield _found(model, value, f"modelType {_shown(value)} is none of {known}", hint)


@rule(
    "gpus-invalid",
    "error",
    reason="gpus is a number that the server supports: 1, 2, 4 or 8",
    fix="use 1, 2, 4 or 8, without quotes",
    source=f"{_STEP_6}: GPU count and tensor parallelism",
)
def gpus_invalid(deployment: Deployment, facts: Facts) -> Iterator[Found]:
    """Another number of GPUs, or none."""
    for model in deployment.models:
        value = model.entry.at("gpus")
        if value is not None and model.gpus is None and not is_placeholder(value.text or ""):
            counts = ", ".join(map(str, GPU_COUNTS))
            yield _found(model, value, f"gpus {_shown(value)} is none of the numbers {counts}")


@rule(
    "replicas-invalid",
    "error",
    reason="replicas is a whole number",
    fix="use a whole number, without quotes",
    source=_FIELDS_SOURCE,
)
def replicas_invalid(deployment: Deployment, facts: Facts) -> Iterator[Found]:
    """Text, a fraction or a negative number."""
    for model in deployment.models:
        value = model.entry.at("replicas")
        if value is not None and model.replicas is None and not is_placeholder(value.text or ""):
            yield _found(model, value, f"replicas {_shown(value)} is no whole number")


@rule(
    "tensor-parallel-missing",
    "error",
    reason="under inference-stack a model on several GPUs needs the flag tensor-parallel-size",
    fix='set tensor-parallel-size under modelExtraArgs to the number of gpus, in quotes: "4"',
    source=_FIELDS_SOURCE,
)
def tensor_parallel_missing(deployment: Deployment, facts: Facts) -> Iterator[Found]:
    """Several GPUs of which the server would use one."""
    if deployment.chart != "inference-stack":
        return
    for model in _readable(deployment):
        if model.gpus is not None and model.gpus > 1 and _split_flag(model) is None:
            place = model.entry.at("modelExtraArgs") or model.entry.at("gpus") or model.entry
            message = f"{model.gpus} GPUs and no {_SPLIT_FLAG}: the server would use one of them"
            yield _found(model, place, message)


@rule(
    "tensor-parallel-differs",
    "error",
    reason="tensor-parallel-size is the number of gpus",
    fix="give both the same number",
    source=_FIELDS_SOURCE,
)
def tensor_parallel_differs(deployment: Deployment, facts: Facts) -> Iterator[Found]:
    """The server is told another number of GPUs than its pod gets."""
    if deployment.chart != "inference-stack":
        return
    for model in deployment.models:
        flag = _split_flag(model)
        if flag is None or model.gpus is None or is_placeholder(flag.text or ""):
            continue
        if flag.written.strip() != str(model.gpus):
            told = f"{_SPLIT_FLAG} is {_shown(flag)}, but the pod gets {_gpus(model.gpus)}"
            yield _found(model, flag, told)


@rule(
    "tensor-parallel-given",
    "error",
    reason="the chart inference counts a pod's GPUs itself; the flag tensor-parallel-size is not passed",
    fix="remove the flag; `gpus` is enough",
    source=f"{_STEP_6}: GPU count and tensor parallelism",
)
def tensor_parallel_given(deployment: Deployment, facts: Facts) -> Iterator[Found]:
    """A flag that the server already gets from the chart."""
    if deployment.chart != "inference":
        return
    for model in deployment.models:
        flag = _split_flag(model)
        if flag is not None:
            yield _found(model, flag, f"{_SPLIT_FLAG} is not passed with this chart")


@rule(
    "field-unknown",
    "warning",
    reason="a field that is nearly one of the documented ones has no effect",
    fix="correct the name, or ignore this rule when the chart has such a field",
    source=_FIELDS_SOURCE,
)
def field_unknown(deployment: Deployment, facts: Facts) -> Iterator[Found]:
    """A name that is likely misspelled: charts say nothing of keys that they do not know."""
    for model in deployment.models:
        for name, value in model.entry.entries.items():
            near = difflib.get_close_matches(name, FIELDS, n=1, cutoff=_LIKE)
            if name not in FIELDS and near:
                message = f"{name[:80]!r} is no field that the guides know"
                yield _found(model, value, message, f"did you mean {near[0]}?")


@rule(
    "prefix-shared",
    "warning",
    reason="every model has a prefix of its own",
    fix="point each model to its own checkpoint, unless serving one twice is what you want",
    source="Install on Amazon EKS, step 3",
)
def prefix_shared(deployment: Deployment, facts: Facts) -> Iterator[Found]:
    """Two models with one checkpoint: usually an entry that was copied and not changed."""
    first: dict[S3Location, Model] = {}
    for model in deployment.models:
        if model.uri is None:
            continue
        other = first.setdefault(model.uri, model)
        if other is not model:
            place = model.entry.at("model") or model.entry
            yield _found(model, place, f"the same prefix as {other.key}: {model.uri}")


def _readable(deployment: Deployment) -> Iterator[Model]:
    return (model for model in deployment.models if isinstance(model.entry.data, Mapping))


def _split_flag(model: Model) -> Value | None:
    flags = model.entry.at("modelExtraArgs")
    for name, value in (flags.entries if flags is not None else {}).items():
        if name.lstrip("-").replace("_", "-") in (_SPLIT_FLAG, "tp"):
            return value
    return None


def _shown(value: Value) -> str:
    if value.text is not None:
        return repr(value.text[:80])
    return value.written[:80] or "(a list or mapping)"


def _gpus(count: int) -> str:
    return "1 GPU" if count == 1 else f"{count} GPUs"


def _found(model: Model, place: Value, message: str, hint: str | None = None) -> Found:
    return Found(place=place, message=message, hint=hint, model=model.key)


RULES: Final[tuple[Rule, ...]] = (
    models_missing,
    model_malformed,
    model_key_invalid,
    model_uri_missing,
    model_uri_invalid,
    model_name_missing,
    model_type_invalid,
    gpus_invalid,
    replicas_invalid,
    tensor_parallel_missing,
    tensor_parallel_differs,
    tensor_parallel_given,
    field_unknown,
    prefix_shared,
)
