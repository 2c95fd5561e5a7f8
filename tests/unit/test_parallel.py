"""Which tensor-parallel sizes a model has, and what one GPU holds: real configurations, no guesses.

Covers no numbered invariant; the layout section of the manifest is advice.
"""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from staging.formats.safetensors import SafetensorsHeader, Tensor
from staging.layout.architectures import ARCHITECTURES
from staging.layout.parallel import RULES, SIZES, Split, split

FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}


def config(architecture: str, **fields: Any) -> dict[str, Any]:
    return {"architectures": [architecture], **fields}


LLAMA = config(
    "LlamaForCausalLM",
    hidden_size=8192,
    num_attention_heads=64,
    num_key_value_heads=8,
    intermediate_size=28672,
)
QWEN_SMALL = config(
    "Qwen2ForCausalLM",
    hidden_size=896,
    num_attention_heads=14,
    num_key_value_heads=2,
    intermediate_size=4864,
)
QWEN_AWQ = config(
    "Qwen2ForCausalLM",
    hidden_size=8192,
    num_attention_heads=64,
    num_key_value_heads=8,
    intermediate_size=29568,
    quantization_config={"quant_method": "awq", "bits": 4, "group_size": 128},
)
MINIMAX = config(
    "MiniMaxM2ForCausalLM",
    hidden_size=3072,
    head_dim=128,
    num_attention_heads=48,
    num_key_value_heads=8,
    num_local_experts=256,
    intermediate_size=1536,
    quantization_config=FP8,
)
DEEPSEEK = config(
    "DeepseekV3ForCausalLM",
    model_type="deepseek_v3",
    hidden_size=7168,
    num_attention_heads=128,
    num_key_value_heads=128,
    kv_lora_rank=512,
    qk_nope_head_dim=128,
    qk_rope_head_dim=64,
    v_head_dim=128,
    n_routed_experts=256,
    n_shared_experts=1,
    moe_intermediate_size=2048,
    intermediate_size=18432,
    first_k_dense_replace=3,
    quantization_config=FP8,
)
LAGUNA = config(
    "LagunaForCausalLM",
    model_type="laguna",
    hidden_size=2048,
    head_dim=128,
    num_attention_heads=48,
    num_key_value_heads=8,
    num_experts=256,
    moe_intermediate_size=512,
    shared_expert_intermediate_size=512,
    intermediate_size=8192,
    mlp_only_layers=[0],
    decoder_sparse_step=1,
)
GPT_OSS = config(
    "GptOssForCausalLM",
    hidden_size=2880,
    head_dim=64,
    num_attention_heads=64,
    num_key_value_heads=8,
    num_local_experts=32,
    intermediate_size=2880,
    quantization_config={"quant_method": "mxfp4"},
)
QWEN_MOE = config(
    "Qwen3MoeForCausalLM",
    hidden_size=2048,
    num_attention_heads=32,
    num_key_value_heads=4,
    num_experts=128,
    moe_intermediate_size=768,
    intermediate_size=6144,
    mlp_only_layers=[],
    decoder_sparse_step=1,
)


def changed(base: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """A configuration with other values; None takes a field away."""
    return {key: value for key, value in {**base, **fields}.items() if value is not None}


@pytest.mark.parametrize(
    ("model", "possible", "depends", "rules"),
    [
        (LLAMA, SIZES, (), set()),
        (QWEN_SMALL, (1, 2), (), {"attention-heads"}),
        (QWEN_AWQ, (1,), (), {"quantisation-groups"}),
        (MINIMAX, (1, 2, 4), (8, 16), {"fp8-blocks"}),
        (DEEPSEEK, SIZES, (), set()),
        (LAGUNA, SIZES, (), set()),
        (
            changed(LAGUNA, num_attention_heads_per_layer=[48, 72, 72]),
            (1, 2, 4, 8),
            (),
            {"attention-heads"},
        ),
        (GPT_OSS, SIZES, (), set()),
        (QWEN_MOE, SIZES, (), set()),
        # one rule each
        (changed(LLAMA, num_key_value_heads=6), (1, 2), (), {"kv-heads"}),
        (changed(LLAMA, num_key_value_heads=1), SIZES, (), set()),
        (
            changed(LLAMA, num_key_value_heads=None, num_attention_heads=12),
            (1, 2, 4),
            (),
            {"attention-heads", "kv-heads"},
        ),
        (changed(LLAMA, intermediate_size=28676), (1, 2, 4), (), {"intermediate-size"}),
        (changed(QWEN_MOE, num_experts=4), (1, 2, 4), (), {"experts"}),
        (changed(QWEN_MOE, moe_intermediate_size=772), (1, 2, 4), (), {"expert-size"}),
        (changed(QWEN_MOE, intermediate_size=6145), SIZES, (), set()),  # it has no dense layers
        (
            changed(QWEN_MOE, intermediate_size=6145, mlp_only_layers=[1]),
            (1,),
            (),
            {"intermediate-size"},
        ),
        (
            changed(LAGUNA, shared_expert_intermediate_size=516),
            (1, 2, 4),
            (),
            {"shared-expert-size"},
        ),
        (changed(LAGUNA, shared_expert_intermediate_size=0), SIZES, (), set()),
        # quantised
        (changed(DEEPSEEK, intermediate_size=18432 + 1024), (1, 2, 4, 8), (), {"fp8-blocks"}),
        (
            changed(DEEPSEEK, moe_intermediate_size=768),
            (1, 2),
            (),
            {"fp8-blocks"},
        ),  # shared ones refuse
        (changed(MINIMAX, intermediate_size=1552), (), (), {"fp8-blocks"}),
        (changed(DEEPSEEK, num_attention_heads=16), (1, 2, 4, 8), (), {"fp8-blocks"}),
        (
            changed(LLAMA, quantization_config={"quant_method": "gptq", "group_size": -1}),
            SIZES,
            (),
            set(),
        ),
        (
            changed(LLAMA, quantization_config={"quant_method": "gptq", "group_size": 1024}),
            (1, 2, 4),
            (),
            {"quantisation-groups"},
        ),
        (
            changed(
                LLAMA,
                quantization_config={
                    "quant_method": "compressed-tensors",
                    "config_groups": {"group_0": {"weights": {"type": "int", "group_size": 4096}}},
                },
            ),
            (1,),
            (),
            {"quantisation-groups"},
        ),
    ],
)
def test_sizes(model: dict[str, Any], possible: Any, depends: Any, rules: set[str]) -> None:
    result = split(model)
    assert result.unknown is None
    assert {limit.rule for limit in result.limits} == rules
    assert (result.possible, result.depends) == (tuple(possible), tuple(depends))
    excluded = {size for limit in result.limits for size in limit.excludes}
    assert excluded == set(SIZES) - set(possible)
    for limit in result.limits:
        assert limit.source
        assert limit.field
        assert "\n" not in limit.message


def test_a_limit_names_rule_field_and_value() -> None:
    (limit,) = split(MINIMAX).limits
    assert limit.field == "quantization_config.weight_block_size, intermediate_size"
    assert limit.value == [[128, 128], 1536]
    assert limit.excludes == (8, 16)
    assert not limit.certain
    assert "1536/8 = 192" in limit.message
    heads = split(changed(LAGUNA, num_attention_heads_per_layer=[48, 72])).limits[0]
    assert (heads.rule, heads.field, heads.value) == (
        "attention-heads",
        "num_attention_heads_per_layer",
        72,
    )


def inside(architecture: str, model_type: str, base: dict[str, Any]) -> dict[str, Any]:
    text = changed(base, architectures=None, model_type=model_type)
    return config(architecture, text_config=text, vision_config={"num_heads": 16})


@pytest.mark.parametrize(
    ("architecture", "model_type", "base"),
    [
        ("Gemma3ForConditionalGeneration", "gemma3_text", LLAMA),
        ("KimiK25ForConditionalGeneration", "kimi_k2", DEEPSEEK),
        ("Mistral3ForConditionalGeneration", "mistral", LLAMA),
        ("Qwen2_5_VLForConditionalGeneration", "qwen2_5_vl_text", QWEN_SMALL),
        ("Qwen3VLForConditionalGeneration", "qwen3_vl_text", LLAMA),
        ("Qwen3VLMoeForConditionalGeneration", "qwen3_vl_moe_text", QWEN_MOE),
    ],
)
def test_a_language_model_inside(architecture: str, model_type: str, base: dict[str, Any]) -> None:
    whole = inside(architecture, model_type, base)
    assert split(whole).possible == split(base).possible
    whole["text_config"]["num_attention_heads"] = 6
    whole["text_config"]["kv_lora_rank"] = 512
    fields = {limit.field for limit in split(whole).limits}
    assert "text_config.num_attention_heads" in fields
    assert split(inside(architecture, "something_else", base)).unknown is not None


@pytest.mark.parametrize(
    ("model", "why"),
    [
        ({}, "no architecture"),
        ({"architectures": []}, "no architecture"),
        ({"architectures": [1]}, "no architecture"),
        (config("NemotronHForCausalLM"), "how NemotronHForCausalLM is split is not known here"),
        (changed(LLAMA, num_attention_heads=None), "num_attention_heads of config.json is missing"),
        (changed(LLAMA, num_attention_heads=0), "num_attention_heads of config.json is 0"),
        (changed(LLAMA, num_attention_heads=True), "num_attention_heads of config.json is True"),
        (changed(LLAMA, num_attention_heads="64"), "num_attention_heads of config.json is '64'"),
        (changed(LLAMA, num_attention_heads=10**300), "num_attention_heads of config.json is 1000"),
        (
            changed(QWEN_SMALL, num_key_value_heads=None),
            "num_key_value_heads of config.json is missing",
        ),
        (changed(LLAMA, intermediate_size=None), "intermediate_size of config.json is missing"),
        (changed(LAGUNA, num_experts=None), "num_experts of config.json is missing"),
        (
            changed(LAGUNA, num_attention_heads_per_layer=[48, "72"]),
            "num_attention_heads_per_layer",
        ),
        (changed(LAGUNA, num_attention_heads_per_layer=48), "num_attention_heads_per_layer"),
        (
            changed(LAGUNA, num_attention_heads_per_layer=list(range(1, 40))),
            "num_attention_heads_per_layer",
        ),
        (config("Qwen3VLForConditionalGeneration"), "text_config of config.json is missing"),
    ],
)
def test_unknown_with_the_reason_and_never_a_guess(model: dict[str, Any], why: str) -> None:
    result = split(model)
    assert result.unknown is not None
    assert why in result.unknown
    assert result == Split(result.architecture, result.unknown)


def test_quantisation_that_is_not_known_is_said() -> None:
    result = split(changed(LLAMA, quantization_config={"quant_method": "bitsandbytes"}))
    assert result.possible == SIZES
    assert result.notes == (
        "quantization_config: what quantisation 'bitsandbytes' calls for is not known here",
    )


def test_quantisation_beside_the_configuration() -> None:
    beside = {"bits": 4, "group_size": 4096}
    assert (
        split(LLAMA, quantisation=beside)
        .limits[0]
        .field.startswith("quantize_config.json.group_size")
    )


def weights(**tensors: tuple[int, ...]) -> SafetensorsHeader:
    """BF16 tensors by name, `__` for a dot."""
    found, at = {}, 0
    for name, shape in tensors.items():
        size = 2
        for dimension in shape:
            size *= dimension
        found[name.replace("__", ".")] = Tensor("BF16", shape, at, at + size)
        at += size
    return SafetensorsHeader(found, {}, 0)


def test_layers_that_are_not_quantised_set_no_limit() -> None:
    only_experts = weights(
        model__layers__0__mlp__experts__0__down_proj__weight_scale_inv=(8, 8),
        model__layers__0__self_attn__o_proj__weight=(64, 64),
    )
    model = changed(DEEPSEEK, intermediate_size=18432 + 1024)
    assert split(model).possible == (1, 2, 4, 8)
    assert split(model, [only_experts]).possible == SIZES


def test_weights_per_gpu() -> None:
    model = config(
        "LlamaForCausalLM",
        hidden_size=64,
        num_attention_heads=8,
        num_key_value_heads=2,
        intermediate_size=128,
    )
    header = weights(
        model__embed_tokens__weight=(100, 64),
        model__layers__0__self_attn__q_proj__weight=(64, 64),
        model__layers__0__self_attn__q_proj__bias=(64,),
        model__layers__0__self_attn__k_proj__weight=(16, 64),
        model__layers__0__self_attn__v_proj__weight=(16, 64),
        model__layers__0__self_attn__o_proj__weight=(64, 64),
        model__layers__0__mlp__down_proj__weight=(64, 128),
        model__layers__0__input_layernorm__weight=(64,),
        model__vision_tower__q_proj__weight=(10, 10),
    )
    held = split(model, [header]).weights
    cut, keys, whole = 2 * (100 * 64 + 64 * 64 * 2 + 64 * 128), 2 * 2 * 16 * 64, 2 * (64 + 64 + 100)
    assert held == {
        1: cut + keys + whole,
        2: cut // 2 + keys // 2 + whole,
        4: cut // 4 + keys // 2 + whole,  # two heads are copied, not cut
        8: cut // 8 + keys // 2 + whole,
    }
    assert held[1] == sum(tensor.end - tensor.start for tensor in header.tensors.values())


def test_merged_projections_keep_whole_heads() -> None:
    model = config(
        "Phi3ForCausalLM",
        hidden_size=64,
        num_attention_heads=8,
        num_key_value_heads=2,
        intermediate_size=128,
    )
    header = weights(model__layers__0__self_attn__qkv_proj__weight=(8 * 8 + 2 * 2 * 8, 64))
    held = split(model, [header]).weights
    assert held[8] == 2 * 64 * (8 + 2 * 8)


def test_nothing_in_a_configuration_ends_in_an_exception() -> None:
    rng = random.Random(17)
    junk = [
        None,
        0,
        -1,
        True,
        1.5,
        10**30,
        "8",
        [],
        [1],
        [128, 128],
        {},
        {"weights": 1},
        {"a": {"weights": {}}},
    ]
    known = 0
    for _ in range(3000):
        model = json.loads(
            json.dumps(rng.choice([LLAMA, QWEN_AWQ, MINIMAX, DEEPSEEK, LAGUNA, QWEN_MOE]))
        )
        if rng.random() < 0.3:
            model = inside("KimiK25ForConditionalGeneration", "kimi_k2", model)
        for part in (model, model.get("text_config", {}), model.get("quantization_config", {})):
            if part and rng.random() < 0.5:
                part[rng.choice([*part, "config_groups", "head_dim", "quant_method"])] = rng.choice(
                    junk
                )
        if isinstance(model.get("quantization_config"), dict) and rng.random() < 0.2:
            model["quantization_config"]["quant_method"] = "compressed-tensors"
        result = split(model)
        known += result.unknown is None
        assert set(result.possible) | set(result.depends) <= set(SIZES)
        json.dumps([limit.value for limit in result.limits])
    assert 300 < known < 2700


def test_every_row_has_its_file_and_every_rule_its_source() -> None:
    assert all(known.source.endswith(".py") for known in ARCHITECTURES.values())
    assert all(reason and source for reason, source in RULES.values())
