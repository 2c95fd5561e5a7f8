"""Small checkpoints of every family, and for each layout rule one that breaks it and no other.

    files = BASES["sharded"]()         bytes by path; passes without error, warning or advice
    files = broken("lfs-pointer")      the same with one thing wrong
    found = inventory(files)           its inventory, as the product takes it

`FIXTURES` has the bases and what is done to them, by rule; `NEAR` has what looks wrong to some rule and is
not.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Final

from staging.inspection import take_inventory
from staging.layout.inventory import INDEX_NAME, Inventory
from staging.vocabulary.read_at import BytesAt
from tests.support.tensors import safetensors_file

Files = dict[str, bytes]

LFS_POINTER: Final = (
    b"version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize 17078330\n" % (b"5" * 64)
)
WEB_PAGE: Final = b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>\n"

CONFIG: Final[Mapping[str, Any]] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "vocab_size": 8,
    "intermediate_size": 64,
    "num_attention_heads": 16,
    "num_hidden_layers": 2,
    "num_key_value_heads": 16,
}
FIRST: Final = "model-00001-of-00002.safetensors"
SECOND: Final = "model-00002-of-00002.safetensors"


def tensors(*names: str, dtype: str = "U8") -> dict[str, tuple[str, list[int], bytes]]:
    """Tensors of two bytes."""
    return {name: (dtype, [2], b"ab") for name in names}


def layer(number: int) -> tuple[str, ...]:
    """Names of the weights of a layer."""
    parts = ("self_attn.q_proj", "self_attn.o_proj", "mlp.down_proj")
    return tuple(f"model.layers.{number}.{part}.weight" for part in parts)


EMBEDDING: Final = {"model.embed_tokens.weight": ("BF16", [8, 64], bytes(1024))}


def encoded(document: object) -> bytes:
    """A JSON document."""
    return json.dumps(document).encode()


def beside(config: Mapping[str, Any] = CONFIG) -> Files:
    """What lies beside the weights in Hugging Face's layout."""
    return {
        "config.json": encoded(config),
        "generation_config.json": b'{"temperature": 0.7}',
        "tokenizer.json": b'{"model": {}}',
        "tokenizer_config.json": b'{"chat_template": "{{ messages }}"}',
    }


def single(config: Mapping[str, Any] = CONFIG) -> Files:
    """Hugging Face's layout with one file of weights."""
    content = EMBEDDING | tensors(*layer(0), *layer(1))
    return beside(config) | {"model.safetensors": safetensors_file(content)}


def sharded() -> Files:
    """Hugging Face's layout with two shards and their index."""
    first = EMBEDDING | tensors(*layer(0))
    second = tensors(*layer(1))
    places = dict.fromkeys(first, FIRST) | dict.fromkeys(second, SECOND)
    index = {"metadata": {"total_size": 1024 + 6 + 6}, "weight_map": places}
    return beside() | {
        INDEX_NAME: encoded(index),
        FIRST: safetensors_file(first),
        SECOND: safetensors_file(second),
    }


def bundle() -> Files:
    """The vendor's layout."""
    return {
        "config.yaml": b"model:\n  name: laguna\n",
        "generation_config.json": b"{}",
        "model.safetensors": safetensors_file(tensors("a.weight")),
        "tokenizer/tokenizer.json": b'{"model": {}}',
    }


def mistral() -> Files:
    """Mistral's layout."""
    return {
        "params.json": b'{"dim": 64}',
        "consolidated.safetensors": safetensors_file(tensors("layers.0.attention.wq.weight")),
        "tekken.json": b'{"vocab": []}',
    }


def experts() -> Files:
    """A model of experts that splits over sixteen GPUs."""
    return single(
        CONFIG
        | {
            "architectures": ["Qwen2MoeForCausalLM"],
            "num_experts": 16,
            "moe_intermediate_size": 64,
            "shared_expert_intermediate_size": 64,
            "mlp_only_layers": [],
            "decoder_sparse_step": 1,
        }
    )


def speculator() -> Files:
    """A draft model that names its target."""
    config = {
        "architectures": ["Eagle3Speculator"],
        "speculators_config": {"verifier": {"name_or_path": "poolside/laguna"}},
    }
    return {
        "config.json": encoded(config),
        "model.safetensors": safetensors_file(tensors("fc.weight")),
    }


def encoder() -> Files:
    """A model that writes no text."""
    config = {"architectures": ["BertModel"], "model_type": "bert"}
    return {
        "config.json": encoded(config),
        "model.safetensors": safetensors_file(tensors("pooler.dense.weight")),
    }


BASES: Final[Mapping[str, Callable[[], Files]]] = {
    "single": single,
    "sharded": sharded,
    "bundle": bundle,
    "mistral": mistral,
    "experts": experts,
    "encoder": encoder,
}
"""Checkpoints that no rule has a word for."""

Change = Callable[[Files], object]


def adding(path: str, data: bytes = b"x") -> Change:
    """Another file, or another content of one."""
    return lambda files: files.update({path: data})


def without(*paths: str) -> Change:
    """Fewer files."""
    return lambda files: [files.pop(path) for path in paths]


def both(*changes: Change) -> Change:
    """One change after the other."""
    return lambda files: [change(files) for change in changes]


def edited(path: str, **fields: Any) -> Change:
    """Fields of a JSON document replaced; those that are None removed."""

    def change(files: Files) -> None:
        document = json.loads(files[path]) | fields
        files[path] = encoded({key: value for key, value in document.items() if value is not None})

    return change


def mapped(**places: str) -> Change:
    """Entries of the index replaced or added; dots are written as two underscores."""

    def change(files: Files) -> None:
        index = json.loads(files[INDEX_NAME])
        index["weight_map"] |= {name.replace("__", "."): path for name, path in places.items()}
        files[INDEX_NAME] = encoded(index)

    return change


def nested(files: Files) -> None:
    """Weights one folder deeper."""
    for path in [path for path in files if path.endswith(".safetensors")]:
        files[f"inner/{path}"] = files.pop(path)


def other_format(files: Files) -> None:
    """Weights of another format in place of safetensors."""
    del files["model.safetensors"]
    files["model.bin"] = b"\0" * 8


def empty_weights(files: Files) -> None:
    """A whole file with no tensor in it."""
    files["model.safetensors"] = safetensors_file({})


def forgotten(files: Files) -> None:
    """An index without one of the tensors."""
    index = json.loads(files[INDEX_NAME])
    index["weight_map"].pop(layer(1)[0])
    files[INDEX_NAME] = encoded(index)


def quantised(files: Files) -> None:
    """Scales beside the weights, and nobody says so."""
    scales = tensors("model.layers.0.mlp.down_proj.weight_scale")
    files["model.safetensors"] = safetensors_file(
        EMBEDDING | tensors(*layer(0), *layer(1)) | scales
    )


def without_a_layer(files: Files) -> None:
    """Weights of the first layer alone."""
    files["model.safetensors"] = safetensors_file(EMBEDDING | tensors(*layer(0)))


def adapter(files: Files) -> None:
    """What a fine-tuning of low rank leaves."""
    files.clear()
    files["adapter_config.json"] = b'{"base_model_name_or_path": "poolside/laguna"}'
    files["adapter_model.safetensors"] = safetensors_file(tensors("lora_A.weight"))


def speculator_without_target(files: Files) -> None:
    """A draft model that does not say whose."""
    files.clear()
    files.update(speculator())
    edited("config.json", speculators_config={"verifier": {}})(files)


def twice(files: Files) -> None:
    """A tensor of the first shard in the second one as well."""
    files[SECOND] = safetensors_file(tensors(*layer(1), layer(0)[0]))


FP8: Final = {"quant_method": "fp8", "weight_block_size": [128, 128]}
AWQ: Final = {"quant_method": "awq", "group_size": 128, "bits": 4}
SCALED: Final = safetensors_file(
    EMBEDDING | tensors(*layer(0), *layer(1), "model.layers.0.mlp.down_proj.weight_scale_inv")
)

FIXTURES: Final[Mapping[str, tuple[str, Change]]] = {
    "name-unsafe": ("single", adding("../config.json")),
    "name-collision": ("single", adding("Config.json")),
    "macos-leftover": ("single", adding("._model.safetensors")),
    "archive-inside": ("bundle", adding("laguna_xs.tar")),
    "lfs-pointer": ("single", adding("tokenizer.json", LFS_POINTER)),
    "web-page": ("single", adding("tokenizer_config.json", WEB_PAGE)),
    "json-broken": ("single", adding("config.json", b'{"model_type": "lla')),
    "document-unread": ("single", adding("hf_quant_config.json", b" " * (8 * 2**20 + 1))),
    "executable-content": ("single", adding("lib/kernel.so")),
    "pickle": ("single", adding("pytorch_model.bin")),
    "download-leftover": ("single", adding("model.safetensors.aria2")),
    "training-checkpoint": ("single", adding("__0_0.distcp")),
    "training-state": ("single", adding("optimizer.pt")),
    "safetensors-broken": (
        "single",
        lambda files: files.update({"model.safetensors": files["model.safetensors"][:-1]}),
    ),
    "weights-missing": ("single", without("model.safetensors")),
    "weights-nested": ("single", nested),
    "weights-not-safetensors": ("encoder", other_format),
    "weights-other-format": ("single", adding("model.gguf")),
    "weights-empty": ("encoder", empty_weights),
    "weights-two-sets": ("sharded", lambda files: files.update(encoder() | files)),
    "weights-unlisted": (
        "sharded",
        adding("model-00001-of-00003.safetensors", safetensors_file(tensors("old"))),
    ),
    "shards-mixed": (
        "sharded",
        both(
            without(INDEX_NAME),
            adding("model-00001-of-00003.safetensors", safetensors_file(tensors("old"))),
        ),
    ),
    "shards-incomplete": ("sharded", without(INDEX_NAME, SECOND)),
    "shards-without-index": ("sharded", without(INDEX_NAME)),
    "tensor-twice": ("sharded", twice),
    "index-broken": ("sharded", edited(INDEX_NAME, weight_map=None)),
    "index-shard-missing": ("sharded", without(SECOND)),
    "index-tensor-elsewhere": ("sharded", mapped(model__layers__0__mlp__down_proj__weight=SECOND)),
    "index-tensor-missing": ("sharded", mapped(model__layers__2__mlp__down_proj__weight=SECOND)),
    "index-tensor-unmapped": ("sharded", forgotten),
    "index-total-size": ("sharded", edited(INDEX_NAME, metadata={"total_size": 1})),
    "config-missing": ("encoder", without("config.json")),
    "config-nested": (
        "encoder",
        lambda files: files.update({"inner/config.json": files.pop("config.json")}),
    ),
    "config-no-architecture": ("single", adding("config.json", b"{}")),
    "config-of-another-model": ("single", edited("config.json", vocab_size=16)),
    "layers-missing": ("single", without_a_layer),
    "tokenizer-missing": ("single", without("tokenizer.json")),
    "tokenizer-incomplete": (
        "single",
        both(without("tokenizer.json"), adding("vocab.json", b"{}")),
    ),
    "tokenizer-config-missing": ("single", without("tokenizer_config.json")),
    "chat-template-missing": ("single", adding("tokenizer_config.json", b"{}")),
    "generation-config-missing": ("single", without("generation_config.json")),
    "custom-code": (
        "single",
        both(edited("config.json", auto_map={"AutoConfig": "code.C"}), adding("code.py")),
    ),
    "custom-code-missing": (
        "single",
        edited("tokenizer_config.json", auto_map={"AutoTokenizer": ["code.T", None]}),
    ),
    "custom-code-elsewhere": (
        "single",
        edited("tokenizer_config.json", auto_map={"AutoTokenizer": ["org/name--code.T", None]}),
    ),
    "processor-missing": ("single", edited("config.json", vision_config={"depth": 1})),
    "quantisation-undeclared": ("single", quantised),
    "quantisation-absent": ("encoder", edited("config.json", quantization_config=FP8)),
    "quantisation-twice": (
        "encoder",
        both(
            edited("config.json", quantization_config={"quant_method": "bitsandbytes"}),
            adding("quantize_config.json", b'{"quant_method": "gptq"}'),
        ),
    ),
    "consolidated-beside-shards": (
        "single",
        both(adding("params.json", b"{}"), lambda files: files.update(mistral())),
    ),
    "consolidated-without-params": (
        "mistral",
        lambda files: files.update(
            {"config.json": encoder()["config.json"], "x": files.pop("params.json")}
        ),
    ),
    "mistral-tokenizer-missing": ("mistral", without("tekken.json")),
    "bundle-tokenizer-missing": ("bundle", without("tokenizer/tokenizer.json")),
    "bundle-weights": (
        "bundle",
        lambda files: files.update({"laguna.safetensors": files.pop("model.safetensors")}),
    ),
    "draft-model": (
        "encoder",
        lambda files: (files.clear(), files.update(speculator())),
    ),
    "draft-target-missing": ("encoder", speculator_without_target),
    "adapter-only": ("encoder", adapter),
    "attention-heads": (
        "single",
        edited("config.json", num_attention_heads=24, num_key_value_heads=1),
    ),
    "kv-heads": ("single", edited("config.json", num_key_value_heads=3)),
    "experts": ("experts", edited("config.json", num_experts=8)),
    "intermediate-size": ("single", edited("config.json", intermediate_size=24)),
    "expert-size": ("experts", edited("config.json", moe_intermediate_size=24)),
    "shared-expert-size": ("experts", edited("config.json", shared_expert_intermediate_size=24)),
    "fp8-blocks": (
        "single",
        both(edited("config.json", quantization_config=FP8), adding("model.safetensors", SCALED)),
    ),
    "quantisation-groups": (
        "single",
        both(
            edited("config.json", quantization_config=AWQ),
            adding("model.safetensors", SCALED),
        ),
    ),
}
"""For each rule a base that passes, and what makes it break this rule."""

ALONGSIDE: Final[Mapping[str, frozenset[str]]] = {
    "draft-target-missing": frozenset({"draft-model"}),
}
"""Advice that comes with a fixture and cannot be had without."""

NEAR: Final[Mapping[str, tuple[str, Change]]] = {
    "vocabulary and merges": (
        "single",
        both(
            without("tokenizer.json"),
            adding("vocab.json", b"{}"),
            adding("merges.txt"),
        ),
    ),
    "a chat template in a file": (
        "single",
        both(adding("tokenizer_config.json", b"{}"), adding("chat_template.jinja")),
    ),
    "a total that counts the files": (
        "sharded",
        lambda files: edited(
            INDEX_NAME, metadata={"total_size": len(files[FIRST]) + len(files[SECOND])}
        )(files),
    ),
    "no total": ("sharded", edited(INDEX_NAME, metadata=None)),
    "infinity in a configuration": (
        "encoder",
        adding("config.json", b'{"model_type": "bamba", "time_step_limit": [0.0, Infinity]}'),
    ),
    "one layer more than configured": ("single", edited("config.json", num_hidden_layers=1)),
    "Python files nobody asks for": ("single", adding("modeling_laguna.py")),
    "a processor beside a vision model": (
        "single",
        both(
            edited("config.json", vision_config={"depth": 1}),
            adding("preprocessor_config.json", b"{}"),
        ),
    ),
    "quantisation declared": (
        "encoder",
        both(
            edited("config.json", quantization_config={"quant_method": "modelopt"}),
            adding("hf_quant_config.json", b"{}"),
        ),
    ),
    "an adapter beside its base": ("encoder", adding("adapter_config.json", b"{}")),
}
"""What looks wrong and is not: no rule has a word for it."""


def broken(rule: str) -> Files:
    """The checkpoint that breaks a rule."""
    base, change = FIXTURES[rule]
    files = BASES[base]()
    change(files)
    return files


def inventory(files: Mapping[str, bytes]) -> Inventory:
    """What the product finds in files."""
    return take_inventory(
        [(path, len(data)) for path, data in files.items()], lambda path: BytesAt(files[path])
    )
