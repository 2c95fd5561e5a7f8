"""Real layouts pass the rules; each, damaged in twelve ways or more, breaks the rule that is meant for it.

Models that transformers saved, a trained model as it was published, the vendor's bundle. No rule looks at a
weight: reading one fails. What is summed up equals what other libraries said of the same files.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest
from safetensors import safe_open

from staging.inspection import Passing
from staging.layout.inventory import INDEX_NAME, Inventory
from staging.layout.rules import RULES, Finding, Gradual, check
from staging.layout.summary import summarise
from staging.source.source import SourceFile
from staging.vocabulary.paths import SafePath
from tests.support import damages
from tests.support.models import (
    FACTS,
    GOLDEN,
    NAMES,
    Blob,
    Layout,
    bundle,
    golden,
    inventory,
    minilm,
    safetensors,
    shards,
    write,
)

LAYOUTS: dict[str, Callable[[], Layout]] = {
    **{name: (lambda name=name: golden(name)) for name in NAMES},  # type: ignore[misc]
    "minilm": minilm,
    "bundle": bundle,
}
SHARDED = tuple(name for name in NAMES if name.endswith("-sharded"))
HUGGING_FACE = (*NAMES, "minilm")


@pytest.fixture(params=LAYOUTS)
def layout(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def found(files: Layout, *severities: str) -> set[str]:
    """Rules that a layout breaks."""
    wanted = severities or ("error", "warning")
    return {item.rule for item in check(inventory(files)) if item.severity in wanted}


def test_it_passes(layout: str) -> None:
    assert found(LAYOUTS[layout]()) == set()


# What is unusual and serves all the same


def without_tokenizer(files: Layout) -> None:
    for name in ("tokenizer.json", "chat_template.jinja"):
        files.pop(name, None)


def infinity(files: Layout) -> None:
    """What transformers 4 wrote for models with a time step; Python's decoder reads it.

    huggingface/transformers#42959, ai-dynamo/dynamo#3043
    """
    text = files["config.json"].head.replace(b"{", b'{"time_step_limit": [0.0, Infinity],', 1)
    files["config.json"] = Blob.of(text)


def kimi_tokenizer(files: Layout) -> None:
    """Kimi K2: no tokenizer.json; its code reads tiktoken.model. exo-explore/exo#1024"""
    without_tokenizer(files)
    files["tiktoken.model"] = Blob.of(b"IQ== 0\nIg== 1\n")
    files["tokenization_kimi.py"] = Blob.of("class TikTokenTokenizer: ...\n")
    files["tokenizer_config.json"] = Blob.json(
        {
            "auto_map": {"AutoTokenizer": ["tokenization_kimi.TikTokenTokenizer", None]},
            "chat_template": "{{ messages }}",
        }
    )


def sentencepiece_tokenizer(files: Layout) -> None:
    """As the first Llamas had it."""
    files["tokenizer.model"] = Blob.of(bytes(500))
    del files["tokenizer.json"]


def byte_pair_tokenizer(files: Layout) -> None:
    """As GPT-2 had it."""
    files["vocab.json"] = Blob.of("{}")
    files["merges.txt"] = Blob.of("#version: 0.2\n")
    del files["tokenizer.json"]


def template_in_json(files: Layout) -> None:
    """Processors of transformers 4 wrote the template that way."""
    damages.chat_template_missing(files)
    files["chat_template.json"] = Blob.json({"chat_template": "{{ messages }}"})


def several_templates(files: Layout) -> None:
    """One for tools and one without, as Command R has them."""
    damages.chat_template_missing(files)
    config = files["tokenizer_config.json"].document
    config["chat_template"] = [{"name": "default", "template": "{{ messages }}"}]
    files["tokenizer_config.json"] = Blob.json(config)


def shards_in_a_folder(files: Layout) -> None:
    """The index may point below the root."""
    index = files[INDEX_NAME].document
    index["weight_map"] = {name: f"weights/{path}" for name, path in index["weight_map"].items()}
    for path in shards(files):
        files[f"weights/{path}"] = files.pop(path)
    files[INDEX_NAME] = Blob.json(index)


def index_without_metadata(files: Layout) -> None:
    """Not every converter writes the total."""
    files[INDEX_NAME] = Blob.json({"weight_map": files[INDEX_NAME].document["weight_map"]})


def total_as_a_float(files: Layout) -> None:
    """Older libraries computed it with fractions of bytes."""
    index = files[INDEX_NAME].document
    index["metadata"]["total_size"] = float(index["metadata"]["total_size"])
    files[INDEX_NAME] = Blob.json(index)


def single_file_with_an_index(files: Layout) -> None:
    """Some converters write an index for one file too."""
    header = files["model.safetensors"].header
    names = [name for name in header if name != "__metadata__"]
    files[INDEX_NAME] = Blob.json({"weight_map": dict.fromkeys(names, "model.safetensors")})


def prediction_layer(files: Layout) -> None:
    """DeepSeek-V3 has a layer more than `num_hidden_layers` says, for predicting several tokens."""
    path = shards(files)[-1]
    count = files["config.json"].document["num_hidden_layers"]
    name = f"model.layers.{count}.eh_proj.weight"
    entry = {"dtype": "BF16", "shape": [64, 128], "data_offsets": [0, 64 * 128 * 2]}
    files[path] = safetensors({**files[path].header, name: entry})
    if INDEX_NAME in files:
        index = files[INDEX_NAME].document
        index["weight_map"][name] = path
        index["metadata"]["total_size"] += 64 * 128 * 2
        files[INDEX_NAME] = Blob.json(index)


def packed_embeddings(files: Layout) -> None:
    """Eight 4-bit weights in each U32, as MLX has them: narrower than `hidden_size` says."""
    for path in shards(files):
        header = files[path].header
        if "model.embed_tokens.weight" in header:
            entry = {"dtype": "U32", "shape": [320, 8], "data_offsets": [0, 320 * 8 * 4]}
            files[path] = safetensors({**header, "model.embed_tokens.weight": entry})
    if INDEX_NAME in files:
        index_without_metadata(files)


def more_rows_than_words(files: Layout) -> None:
    """The text model of Llama 3.2 Vision embeds eight words more than `vocab_size` says: images."""
    config = files["config.json"].document
    config |= {"architectures": ["MllamaForCausalLM"], "model_type": "mllama_text_model"}
    files["config.json"] = Blob.json(config)
    for path in shards(files):
        header = files[path].header
        if "model.embed_tokens.weight" in header:
            entry = {"dtype": "BF16", "shape": [328, 64], "data_offsets": [0, 328 * 64 * 2]}
            files[path] = safetensors({**header, "model.embed_tokens.weight": entry})
    if INDEX_NAME in files:
        index_without_metadata(files)


def documents_beside(files: Layout) -> None:
    """What people put beside a model."""
    files["README.md"] = Blob.of("# A model\n")
    files["LICENSE"] = Blob.of("Apache\n")
    files[".gitattributes"] = Blob.of("*.safetensors filter=lfs diff=lfs merge=lfs -text\n")
    files["assets/chart.png"] = Blob.of(b"\x89PNG\r\n\x1a\n" + bytes(300))
    files["inference/model.py"] = Blob.of("import torch\n")
    files["inference/configs/config_671B.json"] = Blob.of('{"vocab_size": 129280}\n')


VARIATIONS: list[tuple[Callable[[Layout], None], tuple[str, ...]]] = [
    (infinity, NAMES),
    (kimi_tokenizer, NAMES),
    (sentencepiece_tokenizer, NAMES),
    (byte_pair_tokenizer, NAMES),
    (template_in_json, NAMES),
    (several_templates, NAMES),
    (shards_in_a_folder, SHARDED),
    (index_without_metadata, SHARDED),
    (total_as_a_float, SHARDED),
    (single_file_with_an_index, tuple(name for name in NAMES if name not in SHARDED)),
    (prediction_layer, ("deepseek-v3-single", "deepseek-v3-sharded")),
    (packed_embeddings, NAMES),
    (more_rows_than_words, ("llama-single", "llama-sharded")),
    (documents_beside, tuple(LAYOUTS)),
]


@pytest.mark.parametrize(
    ("name", "change"),
    [
        pytest.param(name, change, id=f"{name}-{change.__name__}")
        for change, names in VARIATIONS
        for name in names
    ],
)
def test_what_is_unusual_passes(name: str, change: Callable[[Layout], None]) -> None:
    files = LAYOUTS[name]()
    before = dict(files)
    change(files)
    assert files != before
    assert found(files, "error") == set()
    quantised = {"quantisation-undeclared"} if change is packed_embeddings else set()
    assert found(files) <= quantised


# What is broken

ANY = tuple(LAYOUTS)
GENERATIVE = NAMES
SINGLE = tuple(name for name in LAYOUTS if name not in SHARDED)

DAMAGES: list[tuple[Callable[[Layout], None], tuple[str, ...], tuple[str, ...]]] = [
    (damages.truncated, ANY, ("safetensors-broken",)),
    (damages.cut_in_the_header, ANY, ("safetensors-broken",)),
    (damages.never_written, ANY, ("safetensors-broken",)),
    (damages.lfs_weights, ANY, ("safetensors-broken",)),
    (damages.web_page_weights, ANY, ("safetensors-broken",)),
    (damages.pickle_in_place, ANY, ("safetensors-broken",)),
    (damages.twice_in_the_header, ANY, ("safetensors-broken",)),
    (damages.weights_missing, SHARDED, ("index-shard-missing",)),
    (damages.weights_missing, SINGLE, ("weights-missing",)),
    (damages.pickles_instead, ANY, ("pickle", "weights-not-safetensors")),
    (damages.pickle_beside, ANY, ("pickle",)),
    (damages.gguf_beside, ANY, ("weights-other-format",)),
    (damages.training_checkpoint_beside, ANY, ("training-checkpoint",)),
    (damages.training_checkpoint_instead, ANY, ("training-checkpoint", "weights-missing")),
    (damages.optimizer_beside, ANY, ("training-state",)),
    (damages.consolidated_beside, ANY, ("consolidated-beside-shards",)),
    (damages.two_in_another_case, ANY, ("name-collision",)),
    (damages.nested, ANY, ("weights-nested", "config-nested")),
    (damages.archive_inside, ANY, ("archive-inside",)),
    (damages.apple_double, ANY, ("macos-leftover",)),
    (damages.unsafe_name, ANY, ("name-unsafe",)),
    (damages.web_page_config, ANY, ("web-page",)),
    (damages.lfs_config, ANY, ("lfs-pointer",)),
    (damages.cut_config, HUGGING_FACE, ("json-broken",)),
    (damages.empty_config, HUGGING_FACE, ("config-no-architecture",)),
    (damages.config_missing, (*NAMES, "bundle"), ("config-missing",)),
    (damages.config_missing, ("minilm",), ("config-nested",)),  # a module of it has one
    (damages.config_of_another_model, GENERATIVE, ("config-of-another-model",)),
    (damages.layer_missing, GENERATIVE, ("layers-missing",)),
    (damages.tokenizer_missing, GENERATIVE, ("tokenizer-missing",)),
    (damages.tokenizer_folder_missing, ("bundle",), ("bundle-tokenizer-missing",)),
    (damages.lfs_tokenizer, ANY, ("lfs-pointer",)),
    (damages.chat_template_missing, GENERATIVE, ("chat-template-missing",)),
    (damages.code_missing, HUGGING_FACE, ("custom-code-missing",)),
    (damages.gguf_instead, ANY, ("weights-not-safetensors",)),
    (damages.leftover_shard, SHARDED, ("weights-unlisted",)),
    (damages.leftover_shard, SINGLE, ("tensor-twice",)),
    (damages.index_missing, SHARDED, ("shards-without-index",)),
    (damages.index_and_shard_missing, SHARDED, ("shards-incomplete",)),
    (damages.index_and_shard_of_another, SHARDED, ("shards-mixed",)),
    (damages.lfs_index, SHARDED, ("lfs-pointer",)),
    (damages.index_without_a_map, SHARDED, ("index-broken",)),
    (damages.swapped_index_entries, SHARDED, ("index-tensor-elsewhere",)),
    (damages.index_names_what_is_nowhere, SHARDED, ("index-tensor-missing",)),
    (damages.index_forgets_a_tensor, SHARDED, ("index-tensor-unmapped",)),
    (damages.index_of_another_size, SHARDED, ("index-total-size",)),
    (damages.tensor_in_two_shards, SHARDED, ("tensor-twice",)),
]
"""What is done to which layouts, and the rules that it breaks then: all of them, the first one first."""

CASES = [
    pytest.param(name, damage, rules, id=f"{name}-{damage.__name__}")
    for damage, names, rules in DAMAGES
    for name in names
]


@pytest.mark.parametrize(("name", "damage", "rules"), CASES)
def test_damaged_it_breaks_the_rule(
    name: str, damage: Callable[[Layout], None], rules: tuple[str, ...]
) -> None:
    files = LAYOUTS[name]()
    before = dict(files)
    damage(files)
    assert files != before
    findings = check(inventory(files))
    assert {item.rule for item in findings} == set(rules), findings
    assert findings[0].rule == rules[0], findings
    assert findings[0].hint


def test_each_layout_is_damaged_in_twelve_ways_that_are_refused(layout: str) -> None:
    refused = set()
    for damage, names, _ in DAMAGES:
        if layout in names:
            files = LAYOUTS[layout]()
            damage(files)
            if found(files, "error"):
                refused.add(damage)
    assert len(refused) >= 12


# While it passes by

MISPLACED = dict.fromkeys(
    ("index-tensor-elsewhere", "index-tensor-missing", "tensor-twice"), "a tensor misplaced"
)
"""One mistake: what it is called depends on which of the shards have come."""


def passing_by(files: Layout, order: int) -> tuple[list[Finding], Inventory]:
    """What becomes certain while the files come in some order, and their inventory at the end."""
    paths = sorted(files)
    random.Random(order).shuffle(paths)
    passing = Passing(Gradual())
    certain: list[Finding] = []
    for path in paths:
        file = SourceFile(cast(SafePath, path), files[path].size, 0)
        passing.note(file)
        certain += passing.certain()
        passing.watch(file, memoryview(files[path].start))
        certain += passing.certain()
    return certain, passing.inventory()


@pytest.mark.parametrize("order", range(3))
def test_passing_by_it_looks_the_same(layout: str, order: int) -> None:
    files = LAYOUTS[layout]()
    certain, found = passing_by(files, order)
    assert certain == []
    assert found == inventory(files)


@pytest.mark.parametrize(("name", "damage", "rules"), CASES)
def test_what_is_certain_before_the_end_is_true_at_the_end(
    name: str, damage: Callable[[Layout], None], rules: tuple[str, ...]
) -> None:
    files = LAYOUTS[name]()
    damage(files)
    for order in range(3):
        certain, found = passing_by(files, order)
        assert found == inventory(files)
        told = {MISPLACED.get(item.rule, item.rule) for item in certain}
        at_the_end = {MISPLACED.get(item.rule, item.rule) for item in check(found)}
        assert told <= at_the_end
        # whatever comes last, what lasts has been told by then; without an index nobody knows what is loaded
        lasting = {rule for rule in rules if RULES[rule].lasting}
        if INDEX_NAME not in files:
            lasting -= {"tensor-twice"}
        assert {MISPLACED.get(rule, rule) for rule in lasting} <= told


# What is summed up


@pytest.mark.parametrize("name", NAMES)
def test_the_summary_is_what_other_libraries_said_of_the_files(name: str) -> None:
    facts = FACTS["models"][name]
    files = golden(name)
    summary = summarise(inventory(files))
    assert summary["weight_files"] == len(shards(files))
    assert summary["unread"] == 0
    assert summary["tensors"] == facts["tensors"]
    assert summary["parameters"] == facts["parameters"]
    assert summary["dtypes"] == facts["dtypes"]
    assert summary["weight_bytes"] == sum(facts["dtypes"].values())
    # transformers does not count buffers: here the correction of 8 experts in 2 layers
    buffers = 16 if name.startswith("deepseek") else 0
    assert summary["parameters"] - buffers == facts["transformers_parameters"]
    assert summary["family"] == files["config.json"].document["architectures"][0]
    if INDEX_NAME in files:
        metadata = files[INDEX_NAME].document["metadata"]
        assert summary["weight_bytes"] == metadata["total_size"]


TENSOR_PARALLEL: dict[str, tuple[list[int], dict[str, list[int]]]] = {
    # 8 heads, and 4 of keys and values: on 8 GPUs each of these is copied once
    "llama": ([1, 2, 4, 8], {"attention-heads": [16]}),
    # 4 heads
    "mixtral": ([1, 2, 4], {"attention-heads": [8, 16]}),
    # 16 heads; 8 experts, and vLLM refuses more GPUs than these
    "qwen3-moe": ([1, 2, 4, 8], {"experts": [16]}),
    # 16 latent heads; experts, and the shared one, have 36 inner columns, which 8 does not divide
    "deepseek-v3": ([1, 2, 4], {"expert-size": [8, 16], "shared-expert-size": [8, 16]}),
    # layers of 8 and of 12 heads
    "laguna": ([1, 2, 4], {"attention-heads": [8, 16]}),
}
"""By hand, from the numbers in `scripts/golden-models`."""


@pytest.mark.parametrize("name", NAMES)
def test_the_sizes_it_splits_into(name: str) -> None:
    found = summarise(inventory(golden(name)))["tensor_parallel"]
    possible, limits = TENSOR_PARALLEL[name.rpartition("-")[0]]
    assert found.get("unknown") is None
    assert found["possible"] == possible
    assert found["depends"] == []
    excluded: dict[str, set[int]] = {}
    for limit in found["limits"]:
        excluded.setdefault(limit["rule"], set()).update(limit["excludes"])
    assert {rule: sorted(sizes) for rule, sizes in excluded.items()} == limits
    whole = sum(FACTS["models"][name]["dtypes"].values())
    held = found["weight_bytes_per_gpu"]
    assert list(map(int, held)) == possible
    assert held["1"] == whole
    for size in possible[1:]:
        # nothing is lost; what is not cut is on every GPU
        assert whole / size <= held[str(size)] < whole


def test_what_is_not_known_is_not_guessed() -> None:
    vendor = summarise(inventory(bundle()))
    assert vendor["family"] is None
    assert list(vendor["tensor_parallel"]) == ["unknown"]
    assert vendor["parameters"] == FACTS["models"]["laguna-single"]["parameters"]
    encoder = summarise(inventory(minilm()))
    assert encoder["family"] == "BertModel"
    assert list(encoder["tensor_parallel"]) == ["unknown"]
    # counted by hand from its config.json: 30,522 words, 512 places, 2 kinds, 384 wide, 6 layers of 1,536
    embeddings = (30_522 + 512 + 2) * 384 + 2 * 384
    layer = 4 * (384 + 1) * 384 + (384 + 1) * 1_536 + (1_536 + 1) * 384 + 4 * 384
    pooler = (384 + 1) * 384
    places = 512  # their numbers are stored too
    assert encoder["parameters"] == embeddings + 6 * layer + pooler + places


# What the tests rest on


def test_files_made_of_a_golden_model_open(tmp_path: Path) -> None:
    """The kept headers are those of whole files: the library they came from opens what is made of them."""
    for name in ("llama-single", "deepseek-v3-sharded"):
        files = golden(name)
        directory = write(files, tmp_path / name)
        tensors = 0
        for path, blob in files.items():
            assert (directory / path).stat().st_size == blob.size == len(blob.data)
            if path in shards(files):
                with safe_open(directory / path, framework="numpy") as opened:
                    tensors += len(opened.keys())
        assert tensors == FACTS["models"][name]["tensors"]


def test_the_document_tells_who_wrote_them() -> None:
    told = (GOLDEN / "README.md").read_text()
    for library, version in FACTS["written_by"].items():
        assert f"{library} {version.partition('+')[0]}" in told
