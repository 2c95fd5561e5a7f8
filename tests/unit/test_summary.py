"""The manifest's layout section: the same files give the same summary, in JSON types alone.

Covers no numbered invariant; readers ignore what they do not know in an open section.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from staging.formats.safetensors import SafetensorsHeader, read_header
from staging.layout.inventory import INDEX_NAME, Inventory
from staging.layout.summary import summarise
from staging.vocabulary.read_at import BytesAt
from tests.support.tensors import SMALL, safetensors_file

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 4,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "intermediate_size": 16,
}
WEIGHTS = safetensors_file(
    {
        "model.layers.0.self_attn.q_proj.weight": ("BF16", [4, 4], bytes(32)),
        "model.layers.0.self_attn.k_proj.weight": ("BF16", [2, 4], bytes(16)),
        "model.norm.weight": ("F32", [4], bytes(16)),
    }
)


@dataclass(frozen=True)
class Facts:
    files: Mapping[str, int]
    headers: Mapping[str, SafetensorsHeader | str | None] = field(default_factory=dict)
    documents: Mapping[str, Any] = field(default_factory=dict)


def inventory(
    *paths: str, documents: Mapping[str, Any] | None = None, data: bytes = WEIGHTS, broken: str = ""
) -> Inventory:
    """A checkpoint of files with the same weights in each, and documents."""
    headers: dict[str, SafetensorsHeader | str | None] = {
        path: "it is truncated" if path == broken else read_header(BytesAt(data))
        for path in paths
        if path.endswith(".safetensors")
    }
    documents = documents or {}
    files = {path: len(data) for path in (*paths, *documents)}
    return cast(Inventory, Facts(files, headers, documents))


def test_the_whole_section() -> None:
    section = summarise(inventory("model.safetensors", documents={"config.json": CONFIG}))
    assert json.loads(json.dumps(section)) == section
    limits = section["tensor_parallel"].pop("limits")
    assert section == {
        "family": "LlamaForCausalLM",
        "weight_files": 1,
        "unread": 0,
        "tensors": 3,
        "parameters": 16 + 8 + 4,
        "weight_bytes": 64,
        "dtypes": {"BF16": 48, "F32": 16},
        "tensor_parallel": {
            "possible": [1, 2, 4],
            "depends": [],
            "weight_bytes_per_gpu": {"1": 64, "2": 40, "4": 28},
            "notes": [],
        },
    }
    assert limits == [
        {
            "rule": "attention-heads",
            "field": "num_attention_heads",
            "value": 12,
            "excludes": [8, 16],
            "certain": True,
            "message": "num_attention_heads is 12: it has to divide by the number of GPUs",
            "source": "vLLM 0.33.0, vllm/config/model.py, verify_with_parallel_config",
        }
    ]


def test_the_same_files_in_another_order_give_the_same_text() -> None:
    names = [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
    first = summarise(inventory(*names, documents={"config.json": CONFIG}))
    second = summarise(inventory(*reversed(names), documents={"config.json": CONFIG}))
    assert json.dumps(first) == json.dumps(second)


@pytest.mark.parametrize(
    ("paths", "documents", "why"),
    [
        (["config.yaml", "model.safetensors"], {}, "what config.yaml means is not published"),
        (["model.safetensors"], {}, "there is no config.json"),
        (["config.json", "model.safetensors"], {}, "config.json could not be read"),
        (
            ["model.safetensors"],
            {"config.json": "a git-LFS pointer"},
            "config.json could not be read",
        ),
        (["model.safetensors"], {"config.json": [1]}, "config.json could not be read"),
        (["params.json", "consolidated.safetensors"], {}, "params.json"),
        (
            ["model.safetensors"],
            {"config.json": {"architectures": ["X"]}},
            "how X is split is not known",
        ),
    ],
)
def test_unknown_has_a_reason_and_no_sizes(
    paths: list[str], documents: dict[str, Any], why: str
) -> None:
    section = summarise(inventory(*paths, documents=documents))
    assert list(section["tensor_parallel"]) == ["unknown"]
    assert why in section["tensor_parallel"]["unknown"]
    assert section["weight_bytes"] == 64


def test_weights_that_could_not_be_read_are_told() -> None:
    names = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    section = summarise(inventory(*names, documents={"config.json": CONFIG}, broken=names[1]))
    assert (section["weight_files"], section["unread"], section["tensors"]) == (2, 1, 3)
    assert section["tensor_parallel"]["weight_bytes_per_gpu"] == {}  # half of it would mislead
    assert section["tensor_parallel"]["possible"] == [1, 2, 4]


def test_half_of_a_model_is_summed_up_and_not_divided() -> None:
    """Names of files that are not there, in the index or by number: what one GPU holds is not known."""
    config = {"config.json": CONFIG}
    index = {"weight_map": {"a": "shard-1.safetensors", "b": "shard-2.safetensors"}}
    for section in (
        summarise(inventory("model-00001-of-00002.safetensors", documents=config)),
        summarise(inventory("shard-1.safetensors", documents={**config, INDEX_NAME: index})),
    ):
        assert (section["weight_files"], section["unread"], section["weight_bytes"]) == (1, 0, 64)
        assert section["tensor_parallel"]["weight_bytes_per_gpu"] == {}


def test_half_of_another_format_beside_whole_weights_changes_nothing() -> None:
    files = ("model.safetensors", "config.json")
    whole = summarise(inventory(*files, documents={"config.json": CONFIG}))
    beside = summarise(
        inventory(*files, "q4-00001-of-00002.gguf", documents={"config.json": CONFIG})
    )
    assert beside == whole
    assert whole["tensor_parallel"]["weight_bytes_per_gpu"]


def test_quantisation_beside_the_configuration() -> None:
    documents = {
        "config.json": {**CONFIG, "num_attention_heads": 4},
        "quantize_config.json": {"bits": 4, "group_size": 8},
    }
    section = summarise(inventory(documents=documents))
    rules = {limit["rule"] for limit in section["tensor_parallel"]["limits"]}
    assert rules == {"attention-heads", "quantisation-groups"}


def test_an_inventory_without_documents() -> None:
    section = summarise(
        Inventory(
            {"model.safetensors": len(SMALL)}, {"model.safetensors": read_header(BytesAt(SMALL))}
        )
    )
    assert section["tensors"] == 3
    assert section["family"] is None
