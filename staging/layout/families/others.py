"""Rules about other kinds of checkpoints: Mistral's, the vendor's bundles, drafts, adapters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from staging.layout.facts import CONFIG, MISTRAL_CONFIG, SINGLE, VENDOR_CONFIG, Facts
from staging.layout.inventory import INDEX_NAME
from staging.layout.rule import Evidence, Family

MISTRAL: Final = Family("mistral")
BUNDLE: Final = Family("bundle")
DRAFT: Final = Family("draft")
ADAPTER: Final = Family("adapter")


@MISTRAL.rule(
    "consolidated-beside-shards",
    "warning",
    reason="vLLM loads consolidated*.safetensors where there is one, instead of the shards beside it",
    fix="pack the checkpoint with one of the two formats; every node downloads both",
    source="https://github.com/vllm-project/vllm/issues/40765, https://github.com/sgl-project/sglang/pull/33671",
)
def _consolidated_beside_shards(facts: Facts) -> Iterator[Evidence]:
    if facts.consolidated and facts.usual:
        first = facts.consolidated[0]
        yield Evidence(first, f"{first[:200]!r} lies beside {facts.usual[0][:200]!r}: two formats")


@MISTRAL.rule(
    "consolidated-without-params",
    "warning",
    reason="vLLM takes weights of this name for Mistral's format, whose configuration is params.json",
    fix="get params.json, or give the weights the name that config.json expects",
    source="https://github.com/vllm-project/vllm/pull/33253",
)
def _consolidated_without_params(facts: Facts) -> Iterator[Evidence]:
    if facts.consolidated and not facts.usual and MISTRAL_CONFIG not in facts.files:
        first = facts.consolidated[0]
        yield Evidence(
            first, f"{first[:200]!r} is in Mistral's format, and there is no {MISTRAL_CONFIG}"
        )


@MISTRAL.rule(
    "mistral-tokenizer-missing",
    "error",
    reason="a server in Mistral's mode ends without a tokenizer of that format",
    fix="get tekken.json or tokenizer.model.v* from where the checkpoint came from",
    source="https://github.com/vllm-project/vllm/issues/17210",
)
def _mistral_tokenizer_missing(facts: Facts) -> Iterator[Evidence]:
    if facts.consolidated and MISTRAL_CONFIG in facts.files:
        names = ("tekken.json", "tokenizer.")
        if not any(path.startswith(names) for path in facts.paths):
            yield Evidence(None, "there is no tokenizer: neither tekken.json nor tokenizer.model")


@BUNDLE.rule(
    "bundle-tokenizer-missing",
    "warning",
    reason="the vendor's checkpoints have their tokenizer in tokenizer/",
    fix="check that the archive is whole",
    source="the vendor's deployment guide: config.yaml generation_config.json model.safetensors tokenizer/",
)
def _bundle_tokenizer_missing(facts: Facts) -> Iterator[Evidence]:
    tokenizers = any(path.startswith("tokenizer") for path in facts.paths)
    if facts.bundle and facts.root_safetensors and not tokenizers:
        yield Evidence(None, f"there is a {VENDOR_CONFIG} and no tokenizer/")


@BUNDLE.rule(
    "bundle-weights",
    "warning",
    reason="the vendor's checkpoints have their weights in model.safetensors",
    fix="check that the files have the names they came with",
    source="the vendor's deployment guide: config.yaml generation_config.json model.safetensors tokenizer/",
)
def _bundle_weights(facts: Facts) -> Iterator[Evidence]:
    if not facts.bundle or INDEX_NAME in facts.files or not facts.root_safetensors:
        return
    if SINGLE not in facts.files:
        first = facts.root_safetensors[0]
        message = (
            f"there is a {VENDOR_CONFIG}, and the weights are not {SINGLE} but {first[:200]!r}"
        )
        yield Evidence(first, message)


@DRAFT.rule(
    "draft-model",
    "advice",
    reason="a draft model proposes tokens to another one and is not served by itself",
    fix="name it in the speculative configuration of the model it was trained for",
    source="https://github.com/vllm-project/vllm/pull/21345",
)
def _draft_model(facts: Facts) -> Iterator[Evidence]:
    if facts.draft:
        name = facts.architectures[0] if facts.architectures else "speculators_config"
        message = f"{name[:100]} of {CONFIG!r} is a draft model, served beside the model it was trained for"
        yield Evidence(CONFIG, message, "architectures", name[:100])


@DRAFT.rule(
    "draft-target-missing",
    "warning",
    reason="a server reads from a draft model which model it belongs to",
    fix="name the target model in speculators_config.verifier.name_or_path",
    source="https://github.com/vllm-project/speculators/pull/53",
)
def _draft_target_missing(facts: Facts) -> Iterator[Evidence]:
    found = (facts.config or {}).get("speculators_config")
    if found is None:
        return
    verifier = found.get("verifier") if isinstance(found, Mapping) else None
    name = verifier.get("name_or_path") if isinstance(verifier, Mapping) else None
    if not isinstance(name, str) or not name:
        field = "speculators_config.verifier.name_or_path"
        yield Evidence(CONFIG, f"{field} of {CONFIG!r} names no target model", field)


@ADAPTER.rule(
    "adapter-only",
    "error",
    reason="an adapter is a small part of a model; a server needs the model it belongs to",
    fix="merge the adapter into its base model, or publish it as an adapter beside a base model",
    source="https://github.com/huggingface/transformers/issues/30513",
)
def _adapter_only(facts: Facts) -> Iterator[Evidence]:
    if (
        "adapter_config.json" in facts.files
        and facts.root_safetensors
        and not facts.usual
        and not facts.consolidated
    ):
        config = facts.document("adapter_config.json") or {}
        base = config.get("base_model_name_or_path")
        base = base[:100] if isinstance(base, str) else None
        of = f" of {base}" if base else ""
        message = (
            f"{facts.root_safetensors[0][:200]!r} is an adapter{of}, and no base model is there"
        )
        yield Evidence(facts.root_safetensors[0], message, "base_model_name_or_path", base)
