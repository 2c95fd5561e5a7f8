"""Rules about Hugging Face's layout: `config.json` and what has to lie beside it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Final

from staging.layout.facts import CONFIG, MISTRAL_CONFIG, Facts
from staging.layout.families.weights import FOLDER
from staging.layout.inventory import directory_of, is_config, is_leftover
from staging.layout.rule import Evidence, Family

FAMILY: Final = Family("hugging-face")

_TOKENIZER_CONFIG: Final = "tokenizer_config.json"
_TOKENIZER: Final = re.compile(
    r"tokenizer\.(?!py$).+|tekken\.json|vocab\.txt|.*\.tiktoken|.*\.model|.*sentencepiece.*|.*spiece.*"
    r"|tokenization_.*\.py|.*bpe.*"
)
_CHAT_TEMPLATES: Final = ("chat_template.jinja", "chat_template.json")
_MOST_LAYERS: Final = 10_000
_FLOATS: Final = ("BF16", "F16", "F32")


@FAMILY.rule(
    "config-missing",
    "error",
    reason="a server that is not told what the weights are does not start",
    fix="check that the archive is whole and that --include takes the configuration, or get config.json"
    " from where the checkpoint came from",
    source="https://github.com/vllm-project/vllm/issues/13724",
)
def _config_missing(facts: Facts) -> Iterator[Evidence]:
    if facts.safetensors and "adapter_config.json" not in facts.files and not _configs(facts):
        yield Evidence(None, "there is no config.json, config.yaml or params.json")


@FAMILY.rule(
    "config-nested",
    "error",
    reason="servers look for the configuration in the root, where the weights are",
    fix=FOLDER,
    source="the vendor's deployment guide: confirm that the files sit at the root, not under a subfolder",
)
def _config_nested(facts: Facts) -> Iterator[Evidence]:
    configs = _configs(facts)
    if configs and not any(directory_of(path) == "" for path in configs):
        folder = directory_of(configs[0])
        message = f"the configuration is in the folder {folder[:200]!r}, not at the root"
        yield Evidence(configs[0], message)


@FAMILY.rule(
    "config-no-architecture",
    "error",
    reason="a configuration that does not name its model belongs to something else",
    fix="get the model's own config.json",
    source="https://github.com/huggingface/transformers/issues/42381",
    lasting=True,
)
def _config_no_architecture(facts: Facts) -> Iterator[Evidence]:
    config = facts.config
    if CONFIG not in facts.fresh or config is None:
        return
    if not any(config.get(key) for key in ("model_type", "architectures", "speculators_config")):
        message = f"{CONFIG!r} names neither model_type nor architectures"
        yield Evidence(CONFIG, message, "model_type")


@FAMILY.rule(
    "config-of-another-model",
    "error",
    reason="a server that finds a matrix of another shape than configured ends while it loads",
    fix="get config.json and weights of the same version",
    source="https://github.com/vllm-project/vllm/issues/6443",
)
def _config_of_another_model(facts: Facts) -> Iterator[Evidence]:
    config = facts.config
    if config is None or facts.draft:
        return
    text = config.get("text_config")
    if isinstance(text, Mapping):
        name, prefix = "model.language_model.embed_tokens.weight", "text_config."
    else:
        text, name, prefix = config, "model.embed_tokens.weight", ""
    tensor = facts.tensors.get(name)
    if tensor is None or tensor.dtype not in _FLOATS or len(tensor.shape) != 2:
        return
    for field, actual in zip(("vocab_size", "hidden_size"), tensor.shape, strict=True):
        told = text.get(field)
        # Some have rows more than words, for images (transformers#33819).
        spare = field == "vocab_size" and isinstance(told, int) and actual > told
        if isinstance(told, int) and told != actual and not spare:
            message = f"{prefix}{field} of {CONFIG!r} is {told}, {name!r} has {actual}"
            yield Evidence(CONFIG, message, prefix + field, told)


@FAMILY.rule(
    "layers-missing",
    "warning",
    reason="a layer without weights is served uninitialised, or ends the server",
    fix="convert the model again, or get config.json and weights of the same version",
    source="https://github.com/vllm-project/vllm/issues/11802",
)
def _layers_missing(facts: Facts) -> Iterator[Evidence]:
    config = facts.config
    if config is None or facts.draft or not facts.whole:
        return
    text = config.get("text_config")
    prefix = "text_config." if isinstance(text, Mapping) else ""
    count = (text if isinstance(text, Mapping) else config).get("num_hidden_layers")
    if not isinstance(count, int) or not 0 < count <= _MOST_LAYERS:
        return
    stem = re.compile(r"(?:model\.language_model|language_model\.model|model)\.layers\.(\d{1,5})\.")
    found = {int(match[1]) for name in facts.tensors if (match := stem.match(name)) is not None}
    missing = [number for number in range(count) if number not in found]
    if found and missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        field = f"{prefix}num_hidden_layers"
        message = f"{field} of {CONFIG!r} is {count}, and layer {missing[0]}{more} has no weights"
        yield Evidence(CONFIG, message, field, count)


@FAMILY.rule(
    "tokenizer-missing",
    "error",
    reason="a server that generates text does not start without its tokenizer",
    fix="get the tokenizer's files from where the checkpoint came from",
    source="https://github.com/vllm-project/vllm/issues/569",
)
def _tokenizer_missing(facts: Facts) -> Iterator[Evidence]:
    if facts.generative and not _tokenizers(facts) and not _pieces(facts):
        yield Evidence(
            None,
            "there is no tokenizer: no tokenizer.json, tokenizer.model, or vocab.json with merges.txt",
        )


@FAMILY.rule(
    "tokenizer-incomplete",
    "error",
    reason="a vocabulary without its merges, or merges without vocabulary, is no tokenizer",
    fix="get the missing file, or tokenizer.json, from where the checkpoint came from",
    source="https://github.com/ggml-org/llama.cpp/issues/3732",
)
def _tokenizer_incomplete(facts: Facts) -> Iterator[Evidence]:
    pieces = _pieces(facts)
    if facts.generative and len(pieces) == 1 and not _tokenizers(facts):
        [other] = {"vocab.json", "merges.txt"} - set(pieces)
        yield Evidence(pieces[0], f"{pieces[0]!r} is there, {other!r} is not")


@FAMILY.rule(
    "tokenizer-config-missing",
    "warning",
    reason="without its settings a tokenizer of the wrong class is chosen, with other special tokens",
    fix=f"get {_TOKENIZER_CONFIG} from where the checkpoint came from",
    source="https://github.com/vllm-project/vllm/issues/31444",
)
def _tokenizer_config_missing(facts: Facts) -> Iterator[Evidence]:
    if (
        facts.generative
        and (_tokenizers(facts) or len(_pieces(facts)) == 2)
        and _TOKENIZER_CONFIG not in facts.files
        and "tekken.json" not in facts.files
    ):
        yield Evidence(None, f"there is a tokenizer and no {_TOKENIZER_CONFIG}")


@FAMILY.rule(
    "chat-template-missing",
    "warning",
    reason="the server starts, and answers every chat request with an error",
    fix="get chat_template.jinja from where the checkpoint came from; a base model has none and needs none",
    source="https://github.com/vllm-project/vllm/issues/18140, https://github.com/vllm-project/vllm/issues/29849",
)
def _chat_template_missing(facts: Facts) -> Iterator[Evidence]:
    config = facts.document(_TOKENIZER_CONFIG)
    if not facts.generative or config is None or "tekken.json" in facts.files:
        return
    folders = ("additional_chat_templates/", "chat_templates/")
    if not config.get("chat_template") and not any(
        path in _CHAT_TEMPLATES or path.startswith(folders) for path in facts.paths
    ):
        message = f"there is no chat template, neither in {_TOKENIZER_CONFIG!r} nor in a file"
        yield Evidence(_TOKENIZER_CONFIG, message, "chat_template")


@FAMILY.rule(
    "generation-config-missing",
    "advice",
    reason="servers take the defaults of sampling from generation_config.json; without it answers differ",
    fix="get generation_config.json from where the checkpoint came from, or set the defaults at the server",
    source="https://github.com/vllm-project/vllm/issues/15241",
)
def _generation_config_missing(facts: Facts) -> Iterator[Evidence]:
    if facts.generative and "generation_config.json" not in facts.files:
        yield Evidence(
            None, "there is no generation_config.json, so the server's own defaults count"
        )


@FAMILY.rule(
    "processor-missing",
    "warning",
    reason="a model of images or sound does not start without the settings of its processor",
    fix="get preprocessor_config.json and processor_config.json from where the checkpoint came from",
    source="https://github.com/vllm-project/llm-compressor/issues/1305",
)
def _processor_missing(facts: Facts) -> Iterator[Evidence]:
    config = facts.config
    if config is None or not facts.generative or MISTRAL_CONFIG in facts.files:
        return
    for field in ("vision_config", "audio_config"):
        if isinstance(config.get(field), Mapping) and not any(
            directory_of(path) == "" and path.endswith("processor_config.json")
            for path in facts.paths
        ):
            message = f"{CONFIG!r} has a {field}, and there is no processor_config.json"
            yield Evidence(CONFIG, message, field)
            return


def _configs(facts: Facts) -> list[str]:
    return [path for path in facts.paths if is_config(path) and not is_leftover(path)]


def _tokenizers(facts: Facts) -> bool:
    return any("/" not in path and _TOKENIZER.fullmatch(path) for path in facts.paths)


def _pieces(facts: Facts) -> list[str]:
    return [name for name in ("vocab.json", "merges.txt") if name in facts.files]
