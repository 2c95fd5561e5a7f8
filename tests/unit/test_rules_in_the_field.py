"""Layouts as they are met, which rules once judged wrongly: refused although they serve, or let pass."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from staging.formats.safetensors import SafetensorsHeader, Tensor
from staging.layout.architectures import ARCHITECTURES
from staging.layout.facts import Facts
from staging.layout.inventory import Inventory
from staging.layout.rules import check
from staging.layout.summary import summarise

INDEX = "model.safetensors.index.json"
LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
BESIDE = (
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
    "chat_template.jinja",
)


def header(*names: str) -> SafetensorsHeader:
    found = {name: Tensor("F16", (1,), 2 * at, 2 * at + 2) for at, name in enumerate(names)}
    return SafetensorsHeader(found, {}, 0)


def layout(
    weights: Mapping[str, SafetensorsHeader],
    documents: Mapping[str, Any],
    *others: str,
) -> Inventory:
    files = dict.fromkeys((*weights, *documents, *others, *BESIDE), 100)
    return Inventory(files, dict(weights), dict(documents))


def errors(inventory: Inventory) -> list[str]:
    return [finding.rule for finding in check(inventory) if finding.severity == "error"]


def rules(inventory: Inventory) -> set[str]:
    return {finding.rule for finding in check(inventory)}


SHARD = "model-00001-of-00001.safetensors"
MAPPED = {"weight_map": {"a": SHARD}}


@pytest.mark.parametrize(
    ("names", "places", "loaded"),
    [
        (["one", "stale", "in/two"], ["one", "in/two", "gone"], ["in/two", "one"]),
        (["one", "stale"], None, ["one", "stale"]),
        (["one", "stale"], [], ["one", "stale"]),  # an index that says nothing
        (["one", "stale"], ["gone"], ["one", "stale"]),
        (["consolidated", "model"], None, ["model"]),
        (["consolidated"], None, ["consolidated"]),
        (["adapter_model", "model"], None, ["model"]),
        (["model", "model.fp32-00001-of-00002"], None, ["model"]),
        (["._model", "in/model"], None, []),
    ],
)
def test_which_weights_are_loaded(
    names: list[str], places: list[str] | None, loaded: list[str]
) -> None:
    """One notion: what rules look at is what the manifest counts."""
    weights = {f"{name}.safetensors": header(name) for name in names}
    index = {name: f"{name}.safetensors" for name in places or []}
    documents = {} if places is None else {INDEX: {"weight_map": index}}
    found = layout(weights, documents)
    expected = [f"{name}.safetensors" for name in loaded]
    assert list(Facts(found).loaded) == expected
    assert summarise(found)["weight_files"] == len(expected)


def test_adapters_alone_are_counted_and_are_no_model() -> None:
    both = {
        name: header("a") for name in ("adapter_model.safetensors", "adapter_model_b.safetensors")
    }
    found = layout(
        both, {"config.json": {**LLAMA, "quantization_config": {"quant_method": "gptq"}}}
    )
    assert Facts(found).loaded == ()
    assert summarise(found)["weight_files"] == 2
    assert not rules(found) & {"tensor-twice", "quantisation-absent"}


@pytest.mark.parametrize("told", [10**400, 10**4000, float("inf"), float("nan"), True, "1", None])
def test_a_total_size_that_is_no_size_is_no_crash(told: Any) -> None:
    documents = {"config.json": LLAMA, INDEX: {**MAPPED, "metadata": {"total_size": told}}}
    found = layout({SHARD: header("a")}, documents)
    assert errors(found) == []
    assert all(len(finding.message) < 400 for finding in check(found))


def test_while_an_index_is_not_read_nothing_is_said_of_what_would_be_loaded() -> None:
    weights = {SHARD: header("a"), "model-00001-of-00002.safetensors": header("a")}
    read = layout(weights, {"config.json": LLAMA, INDEX: MAPPED})
    assert rules(read) == {"weights-unlisted"}
    unread = Inventory(read.files, read.headers, {"config.json": LLAMA})
    assert errors(unread) == []


def test_another_precision_beside_the_weights_is_not_loaded_with_them() -> None:
    weights = {
        "model.safetensors": header("a", "b"),
        "model.fp32-00001-of-00002.safetensors": header("a"),
        "model.fp32-00002-of-00002.safetensors": header("b"),
    }
    found = layout(weights, {"config.json": LLAMA}, "model.safetensors.index.fp32.json")
    assert errors(found) == []
    same = {"model.safetensors": header("a"), "model.fp16.safetensors": header("a")}
    assert errors(layout(same, {"config.json": LLAMA})) == []
    # Alone they are what there is.
    alone = {name: found for name, found in weights.items() if "fp32" in name}
    assert "shards-incomplete" in errors(
        layout({"model.fp32-00001-of-00002.safetensors": header("a")}, {"config.json": LLAMA})
    )
    assert errors(layout(alone, {"config.json": LLAMA})) == []


def test_files_that_no_server_loads_may_be_incomplete() -> None:
    documents = {"config.json": LLAMA, INDEX: MAPPED}
    found = layout({SHARD: header("a")}, documents, "q4-00001-of-00002.gguf")
    assert errors(found) == []
    assert "shards-incomplete" in rules(found)


@pytest.mark.parametrize(
    ("name", "missing", "more"),
    [
        ("model-1-of-61.safetensors", "model-2-of-61.safetensors", 59),
        ("model-00001-of-000163.safetensors", "model-00002-of-000163.safetensors", 161),
    ],
)
def test_missing_shards_are_named_as_the_others_are_and_counted(
    name: str, missing: str, more: int
) -> None:
    found = check(layout({name: header("a")}, {"config.json": LLAMA}))
    (finding,) = (finding for finding in found if finding.rule == "shards-incomplete")
    assert finding.severity == "error"
    assert f"{missing!r} and {more} more" in finding.message


def test_a_configuration_that_is_null_is_none() -> None:
    found = layout({"model.safetensors": header("a")}, {"config.json": None})
    assert errors(found) == ["json-broken"]


def test_an_index_is_held_against_many_shards_in_one_pass() -> None:
    """Counted, not timed: how often the names of all tensors are put together."""
    looked = 0

    class Counted(dict[str, Any]):
        def __iter__(self) -> Any:
            nonlocal looked
            looked += 1
            return super().__iter__()

    shards = {f"model-{number:05d}-of-00300.safetensors": header("z") for number in range(1, 301)}
    places = {f"t{number}": name for number, name in enumerate(shards)}
    found = layout(shards, {"config.json": LLAMA, INDEX: {"weight_map": places}})
    counted = Inventory(found.files, Counted(found.headers), found.documents)
    assert "index-tensor-missing" in errors(counted)
    assert looked < 50


def test_the_index_of_a_format_that_was_left_out_refuses_nothing() -> None:
    left = {"weight_map": {"x": "consolidated-00001-of-00001.safetensors"}}
    theirs = {"config.json": LLAMA, INDEX: MAPPED, "consolidated.safetensors.index.json": left}
    found = layout({SHARD: header("a")}, theirs)
    assert errors(found) == []
    assert "index-shard-missing" in rules(found)
    mistral = {"params.json": {"dim": 1}, "config.json": LLAMA, INDEX: MAPPED}
    assert errors(layout({"consolidated.safetensors": header("a")}, mistral, "tekken.json")) == []
    # Nothing else would be loaded here.
    alone = layout({"other.safetensors": header("a")}, {"config.json": LLAMA, INDEX: MAPPED})
    assert "index-shard-missing" in errors(alone)


@pytest.mark.parametrize(
    ("architecture", "draft"),
    [
        ("EagleLlamaForCausalLM", True),
        ("Eagle3LlamaForCausalLM", True),
        ("LlamaForCausalLMEagle3", True),
        ("EAGLEModel", True),
        ("EagleDeepSeekMTPModel", True),
        ("MedusaModel", True),
        ("Eagle2_5_VLForConditionalGeneration", False),
        ("Eagle25VLForConditionalGeneration", False),
        ("LlamaForCausalLM", False),
    ],
)
def test_drafts_are_told_from_models_by_their_names(architecture: str, draft: bool) -> None:
    config = {"architectures": [architecture], "model_type": "x"}
    found = Inventory(
        {"config.json": 100, "model.safetensors": 100},
        {"model.safetensors": header("model.embed_tokens.weight")},
        {"config.json": config},
    )
    assert ("tokenizer-missing" in errors(found)) is not draft


def test_a_draft_that_calls_itself_what_its_target_is_called() -> None:
    found = Inventory(
        {"config.json": 100, "model.safetensors": 100},
        {"model.safetensors": header("fc.weight", "layers.0.mlp.up_proj.weight")},
        {"config.json": LLAMA},
    )
    assert errors(found) == []


CODE = {
    "AutoConfig": "configuration_deepseek.DeepseekV3Config",
    "AutoModel": "modeling_deepseek.DeepseekV3Model",
    "AutoModelForCausalLM": "modeling_deepseek.DeepseekV3ForCausalLM",
}


def coded(architecture: str, auto_map: Mapping[str, Any], path: str = "config.json") -> Inventory:
    """A model whose configuration, or another document, names code that is not there."""
    config: dict[str, Any] = {"architectures": [architecture], "model_type": "x"}
    documents = {"config.json": config}
    documents.setdefault(path, {})["auto_map"] = auto_map
    return layout({"model.safetensors": header("a")}, documents)


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "KimiK25ForConditionalGeneration"])
def test_code_of_a_model_that_servers_know_may_be_left_out(architecture: str) -> None:
    """Quantised again: the names of the code were copied, the code was not."""
    found = check(coded(architecture, CODE))
    assert [(one.rule, one.severity) for one in found] == [("custom-code-missing", "warning")] * 2
    assert all("without --trust-remote-code" in one.hint for one in found)


@pytest.mark.parametrize(
    ("architecture", "auto_map", "path"),
    [
        ("KimiLinearForCausalLM", CODE, "config.json"),  # nobody here knows it
        ("DeepseekV3ForCausalLM", {"AutoTokenizer": ["code.T", None]}, "tokenizer_config.json"),
        ("DeepseekV3ForCausalLM", {"AutoTokenizer": ["code.T", None]}, "config.json"),
        (
            "Qwen2_5_VLForConditionalGeneration",
            {"AutoProcessor": "code.P"},
            "processor_config.json",
        ),
    ],
)
def test_code_that_nothing_replaces_is_needed(
    architecture: str, auto_map: Mapping[str, Any], path: str
) -> None:
    found = coded(architecture, auto_map, path)
    assert set(errors(found)) == {"custom-code-missing"}
    assert not any("without --trust-remote-code" in one.hint for one in check(found))


def test_code_that_a_tokenizer_needs_too_is_needed() -> None:
    both = {"AutoConfig": "code.C", "AutoModel": "code.M", "AutoTokenizer": ["code.T", None]}
    [finding] = check(coded("DeepseekV3ForCausalLM", both))
    assert (finding.severity, finding.field) == ("error", "auto_map.AutoTokenizer")


@pytest.mark.parametrize(
    "names",
    [["q4.gguf"], ["q4-00001-of-00002.gguf", "q4-00002-of-00002.gguf"], ["a.gguf", "b.gguf"]],
)
def test_gguf_alone_is_called_by_its_name(names: list[str]) -> None:
    """It has its configuration inside, and a server takes one file of it, by its path."""
    [finding] = check(Inventory(dict.fromkeys(names, 100)))
    assert (finding.rule, finding.severity, finding.path) == (
        "weights-not-safetensors",
        "error",
        names[0],
    )
    assert "GGUF" in finding.message
    assert "the path of a single file" in finding.hint
    assert check(Inventory(dict.fromkeys(names, 100)), {finding.rule}) == []


def test_gguf_beside_pickles_is_not_what_the_checkpoint_is() -> None:
    [finding] = check(Inventory(dict.fromkeys(("a.gguf", "model.bin", "config.json"), 100)))
    assert finding.rule == "weights-not-safetensors"
    assert "GGUF" not in finding.message + finding.hint


def test_the_index_of_a_format_that_is_not_loaded_hides_nothing() -> None:
    """An index of Mistral's format, unread or of nothing there, and half of a GGUF: the weights are known."""
    config = {**LLAMA, "num_hidden_layers": 2}
    weights = {SHARD: header("a", "model.layers.0.w"), "other.safetensors": header("a")}
    index = {"weight_map": {"a": SHARD, "model.layers.0.w": SHARD}}
    documents = {"config.json": config, INDEX: index}
    others = ("consolidated.safetensors.index.json", "q4-00001-of-00002.gguf")
    assert "layers-missing" in rules(layout(weights, documents))
    assert "layers-missing" in rules(layout(weights, documents, *others))
    documents[others[0]] = {
        "weight_map": {"layers.0.wq": "consolidated-00001-of-00001.safetensors"}
    }
    assert "layers-missing" in rules(layout(weights, documents))


def test_a_folder_of_pickles_may_be_wanted() -> None:
    found = layout(
        {"model.safetensors": header("a")},
        {"config.json": LLAMA},
        "original/consolidated.00.pth",
        "original/consolidated.01.pth",
    )
    assert errors(found) == ["pickle", "pickle"]
    assert [f for f in check(found, allow={"original/"}) if f.severity == "error"] == []
    assert len([f for f in check(found, allow={"original"}) if f.severity == "error"]) == 2
