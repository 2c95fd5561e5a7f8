"""Rules about code that comes with a model: documents name its classes, and servers run it when told to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from staging.layout.architectures import is_known
from staging.layout.facts import CONFIG, Facts
from staging.layout.rule import Evidence, Family

FAMILY: Final = Family("custom-code")

_NAMING: Final = (
    CONFIG,
    "tokenizer_config.json",
    "preprocessor_config.json",
    "processor_config.json",
)
_MODEL_CODE: Final = ("auto_map.AutoConfig", "auto_map.AutoModel")
"""For an architecture that a server knows it has these itself, unless it is told to trust the others."""
_WITHOUT_CODE: Final = (
    "add the Python files to the checkpoint, or start the server without --trust-remote-code: it knows this"
    " architecture itself"
)
_LONGEST: Final = 500  # characters of a class with its module


@FAMILY.rule(
    "custom-code",
    "advice",
    reason="code that comes with a model runs on the server when it is started with --trust-remote-code",
    fix="read the code; the server may need --trust-remote-code in its arguments",
    source="https://github.com/InternLM/lmdeploy/pull/434",
)
def _custom_code(facts: Facts) -> Iterator[Evidence]:
    for path, field, target in _code(facts):
        if path == CONFIG:
            yield Evidence(path, f"{field} of {path!r} names code: {target[:100]}", field, target)
            return


@FAMILY.rule(
    "custom-code-missing",
    "error",
    milder="warning",
    reason="a model with code of its own does not start without that code",
    fix="add the Python files to the checkpoint; tools that copy *.json and *.safetensors leave them out",
    source="https://github.com/vllm-project/vllm/issues/11929, https://github.com/vllm-project/vllm/issues/13283",
)
def _custom_code_missing(facts: Facts) -> Iterator[Evidence]:
    known = any(map(is_known, facts.architectures))

    def is_spare(path: str, field: str) -> bool:
        return known and path == CONFIG and field.startswith(_MODEL_CODE)

    told = set()
    for path, field, target in sorted(_code(facts), key=lambda code: is_spare(*code[:2])):
        module = target.rpartition(".")[0]
        name = module.replace(".", "/") + ".py"
        if module and "--" not in target and name not in facts.files and name not in told:
            told.add(name)
            message = f"{name[:200]!r} is not there, and {field} of {path!r} needs it"
            if is_spare(path, field):
                yield Evidence(path, message, field, target, "warning", _WITHOUT_CODE)
            else:
                yield Evidence(path, message, field, target)


@FAMILY.rule(
    "custom-code-elsewhere",
    "warning",
    reason="code in another repository is fetched when the server starts, which fails without the Internet",
    fix="copy the code into the checkpoint and name it without the repository",
    source="https://github.com/huggingface/transformers/issues/34855",
)
def _custom_code_elsewhere(facts: Facts) -> Iterator[Evidence]:
    told = set()
    for path, field, target in _code(facts):
        repository, dashes, _ = target.partition("--")
        if dashes and repository not in told:
            told.add(repository)
            message = f"{field} of {path!r} names code in another repository: {repository[:100]}"
            yield Evidence(path, message, field, target)


def _code(facts: Facts) -> Iterator[tuple[str, str, str]]:
    """The classes that `auto_map`s name: document, field, `module.Class` or `repository--module.Class`."""
    for path in _NAMING:
        found = (facts.document(path) or {}).get("auto_map")
        if not isinstance(found, Mapping) or (path == CONFIG and facts.draft):
            continue
        for key, value in found.items():
            for target in value if isinstance(value, list) else [value]:
                if isinstance(target, str):
                    yield path, f"auto_map.{str(key)[:60]}", target[:_LONGEST]
