"""Architectures whose layers are known: which fields of the configuration give the sizes that are cut.

A row is added by reading the model's file in vLLM, not by likeness. What is not here is unknown.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final


class Unknown(Exception):
    """What is missing for a judgement."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """How vLLM cuts a model; fields of the configuration by their names there.

    `source` is the file below `vllm/model_executor/models`. `feed_forward` is the inner size of dense layers,
    None where all layers have experts. `experts_also` is another name that configurations have for `experts`.
    `gate_apart`: gate and up projections are two layers, not one.
    `latent`: attention is multi-head latent attention where the configuration has `kv_lora_rank`.
    """

    source: str
    feed_forward: str | None = "intermediate_size"
    experts: str | None = None
    experts_also: str | None = None
    expert_size: str = "moe_intermediate_size"
    refuses_more_than_experts: bool = False
    shared_experts: str | None = None
    shared_expert_size: str | None = None
    heads_by_layer: str | None = None
    gate_apart: bool = False
    latent: bool = False
    kv_heads_default_to_heads: bool = False


_QWEN_MOE: Final = Architecture(
    "qwen2_moe.py",
    experts="num_experts",
    refuses_more_than_experts=True,
    shared_expert_size="shared_expert_intermediate_size",
)
_DEEPSEEK: Final = Architecture(
    "deepseek_v2.py", experts="n_routed_experts", shared_experts="n_shared_experts", latent=True
)

ARCHITECTURES: Final[Mapping[str, Architecture]] = {
    "LlamaForCausalLM": Architecture("llama.py", kv_heads_default_to_heads=True),
    "MistralForCausalLM": Architecture("mistral.py"),
    "Ministral3ForCausalLM": Architecture("mistral.py"),
    "Phi3ForCausalLM": Architecture("phi3.py", kv_heads_default_to_heads=True),
    "Qwen2ForCausalLM": Architecture("qwen2.py"),
    "Qwen3ForCausalLM": Architecture("qwen3.py"),
    "Gemma2ForCausalLM": Architecture("gemma2.py"),
    "Gemma3ForCausalLM": Architecture("gemma3.py"),
    "Glm4ForCausalLM": Architecture("glm4.py"),
    "GraniteForCausalLM": Architecture("granite.py", kv_heads_default_to_heads=True),
    "CohereForCausalLM": Architecture("commandr.py", kv_heads_default_to_heads=True),
    "Cohere2ForCausalLM": Architecture("commandr.py", kv_heads_default_to_heads=True),
    "MixtralForCausalLM": Architecture(
        "mixtral.py",
        feed_forward=None,
        experts="num_local_experts",
        expert_size="intermediate_size",
    ),
    "GptOssForCausalLM": Architecture(
        "gpt_oss.py",
        feed_forward=None,
        experts="num_local_experts",
        expert_size="intermediate_size",
    ),
    "MiniMaxM2ForCausalLM": Architecture(
        "minimax_m2.py",
        feed_forward=None,
        experts="num_local_experts",
        expert_size="intermediate_size",
        refuses_more_than_experts=True,
    ),
    "Qwen2MoeForCausalLM": _QWEN_MOE,
    "Qwen3MoeForCausalLM": Architecture(
        "qwen3_moe.py",
        experts="num_experts",
        experts_also="num_local_experts",  # as transformers 5 writes it
        refuses_more_than_experts=True,
    ),
    "LagunaForCausalLM": Architecture(
        "laguna.py",
        experts="num_experts",
        refuses_more_than_experts=True,
        shared_expert_size="shared_expert_intermediate_size",
        heads_by_layer="num_attention_heads_per_layer",
        gate_apart=True,
    ),
    "Glm4MoeForCausalLM": Architecture(
        "glm4_moe.py", experts="n_routed_experts", shared_experts="n_shared_experts"
    ),
    "DeepseekV2ForCausalLM": _DEEPSEEK,
    "DeepseekV3ForCausalLM": _DEEPSEEK,
}
"""Architectures whose layers are known, by the name in `config.json`."""

_INSIDE: Final[Mapping[str, tuple[str, tuple[str, ...]]]] = {
    "Gemma3ForConditionalGeneration": ("Gemma3ForCausalLM", ("gemma3_text",)),
    "KimiK25ForConditionalGeneration": ("DeepseekV3ForCausalLM", ("kimi_k2", "deepseek_v3")),
    "Mistral3ForConditionalGeneration": ("MistralForCausalLM", ("mistral", "ministral3")),
    "Qwen2_5_VLForConditionalGeneration": ("Qwen2ForCausalLM", ("qwen2_5_vl_text", "qwen2_5_vl")),
    "Qwen3VLForConditionalGeneration": ("Qwen3ForCausalLM", ("qwen3_vl_text",)),
    "Qwen3VLMoeForConditionalGeneration": ("Qwen3MoeForCausalLM", ("qwen3_vl_moe_text",)),
}
"""Models that hold a language model: which one, when its `model_type` is one of these."""


def is_known(name: str) -> bool:
    """True for an architecture that vLLM has code of its own for, as far as it is known here."""
    return name in ARCHITECTURES or name in _INSIDE


def language_model(
    name: str, config: Mapping[str, Any]
) -> tuple[Mapping[str, Any], str, Architecture]:
    """The part of a configuration that describes the language model, its prefix, and its layers."""
    known = ARCHITECTURES.get(name)
    if known is not None:
        return config, "", known
    if name not in _INSIDE:
        raise Unknown(f"how {name[:100]} is split is not known here")
    inner, types = _INSIDE[name]
    text = config.get("text_config")
    if text is None and config.get("model_type") in types:
        return config, "", ARCHITECTURES[inner]  # as older files have it
    if not isinstance(text, dict):
        raise Unknown(f"text_config of config.json is {told(text)}")
    if text.get("model_type") not in types:
        raise Unknown(f"text_config.model_type of config.json is {told(text.get('model_type'))}")
    return text, "text_config.", ARCHITECTURES[inner]


def told(value: object) -> str:
    """A value from a file as messages show it."""
    return "missing" if value is None else repr(value)[:60]
