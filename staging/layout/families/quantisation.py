"""Rules about quantisation: what is declared has to be what the weights are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from staging.layout.facts import CONFIG, Facts
from staging.layout.rule import Evidence, Family

FAMILY: Final = Family("quantisation")

_BESIDE: Final = ("hf_quant_config.json", "quantize_config.json", "quant_config.json")
_SCALES: Final = ("qweight", "weight_packed", "weight_scale", "weight_scale_inv")
_DECLARED: Final = ("quantization_config", "compression_config")


@FAMILY.rule(
    "quantisation-undeclared",
    "warning",
    reason="a server that is not told of scales loads quantised weights as if they were plain, or ends",
    fix="get the config.json that was written together with the quantised weights",
    source="https://github.com/vllm-project/vllm/pull/10120",
)
def _quantisation_undeclared(facts: Facts) -> Iterator[Evidence]:
    if facts.config is None or any(name in facts.files for name in _BESIDE):
        return
    if _declares(facts.config):
        return
    for name in facts.tensors:
        if name.rpartition(".")[2] in _SCALES:
            message = (
                f"{name[:200]!r} belongs to quantised weights, and {CONFIG!r} does not declare any"
            )
            yield Evidence(CONFIG, message, "quantization_config")
            return


@FAMILY.rule(
    "quantisation-absent",
    "warning",
    reason="a server that is told of quantisation looks for scales, and ends when there are none",
    fix="get config.json and weights of the same version",
    source="https://github.com/vllm-project/llm-compressor/issues/870",
)
def _quantisation_absent(facts: Facts) -> Iterator[Evidence]:
    found = (facts.config or {}).get("quantization_config")
    if not isinstance(found, Mapping) or not facts.whole or not facts.tensors:
        return
    method = found.get("quant_method")
    stored = method in ("awq", "gptq") or (method == "fp8" and found.get("weight_block_size"))
    if stored and not any(name.rpartition(".")[2] in _SCALES for name in facts.tensors):
        message = f"{CONFIG!r} declares {method}, and the weights have no scales"
        yield Evidence(CONFIG, message, "quantization_config.quant_method", method)


@FAMILY.rule(
    "quantisation-twice",
    "warning",
    reason="two files that declare different quantisation leave it to the server which one counts",
    fix="pack the checkpoint with the declaration that belongs to its weights",
    source="https://github.com/vllm-project/vllm/issues/19050",
)
def _quantisation_twice(facts: Facts) -> Iterator[Evidence]:
    found = (facts.config or {}).get("quantization_config")
    method = found.get("quant_method") if isinstance(found, Mapping) else None
    if not isinstance(method, str):
        return
    for path in _BESIDE:
        other = _method(path, facts.document(path))
        if other is not None and not method.lower().startswith(other):
            message = f"{CONFIG!r} declares {method[:60]}, {path!r} declares {other[:60]}"
            yield Evidence(path, message, "quant_method", other[:60])


def _method(path: str, document: Mapping[str, Any] | None) -> str | None:
    if document is None:
        return None
    if path == "hf_quant_config.json":
        return "modelopt"
    found = document.get("quant_method")
    return found.lower() if isinstance(found, str) else None


def _declares(config: Mapping[str, Any]) -> bool:
    return any(
        key in _DECLARED or (isinstance(value, Mapping) and _declares_inside(value))
        for key, value in config.items()
    )


def _declares_inside(config: Mapping[str, Any]) -> bool:
    return any(key in config for key in _DECLARED)
