"""The documents agree with the code: references, exit codes, options, variables, JSON, formats, invariants.

What the code has and `docs/` does not name fails here, and the other way round. Nothing is read off the
documents but their tables: how something is worded is nobody's business here.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import pkgutil
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

import staging.cli
from staging.cli import main, program
from staging.layout.rules import RULES
from staging.store import store
from staging.vocabulary import crc64, errors
from staging.vocabulary.digest import HashFamily, chunk_digests, file_digest
from staging.vocabulary.manifest import Manifest
from tests.cli.programs import Programs
from tests.support.archives import small_checkpoint, tar_on_disk
from tests.support.s3server import ScriptedS3

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
SCRIPTING = (DOCS / "scripting.md").read_text(encoding="utf-8")
FORMAT = (DOCS / "format.md").read_text(encoding="utf-8")
INVARIANTS = (DOCS / "invariants.md").read_text(encoding="utf-8")
SOURCES = sorted([*(ROOT / "staging").rglob("*.py"), *(ROOT / "downloader").rglob("*.py")])
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in SOURCES}

SIGNAL_CODES = {128 + number for number in program._SIGNALS}


def error_classes() -> dict[str, int]:
    """Every class of error with its exit code; for `Interrupted` the signal tells."""
    return {
        name: value.exit_code
        for module in (errors, store)
        for name, value in vars(module).items()
        if inspect.isclass(value) and issubclass(value, errors.StagingError)
    }


# --- references ---

POSITIONAL = {"TarRefused": 0, "Refuse": 1, "_not_found": 1}
"""Functions and classes that take a reference by position, and where."""

FIXED = {"TarRefused": 16, "_octal": 16, "Refuse": 15, "_not_found": 10}
"""Exit codes of references that reach an error through something else than its class."""

HANDED_ON = {
    "reference",
    "self.reference",
    "first.reference",
    "error.reference",
    "errors[0].rule",
    "*REFUSED_TYPES[header.type]",
}
"""Expressions that pass a reference on which stands as a constant somewhere else."""


def references() -> dict[str, set[int]]:
    """Every reference and rule in the code, with the exit codes it can have."""
    classes = error_classes()
    found: dict[str, set[int]] = defaultdict(set)
    unknown = []
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            for name, expression in _mentions(node):
                constants = _constants(expression)
                if not constants and ast.unparse(expression) not in HANDED_ON:
                    unknown.append(f"{path}:{expression.lineno}: {ast.unparse(expression)}")
                for constant in constants:
                    if name == "__init__":
                        found[constant] |= SIGNAL_CODES
                    elif name == "usage":
                        found[constant].add(click.UsageError.exit_code)
                    else:
                        found[constant].add(FIXED[name] if name in FIXED else classes[name])
    assert unknown == []
    from staging.formats.tar_refusals import REFUSED_TYPES

    for reference, _ in REFUSED_TYPES.values():
        found[reference].add(16)
    for rule in RULES.values():
        found[rule.id] |= {17 if severity == "error" else 0 for severity in rule.severities}
    return found


def _mentions(node: ast.AST) -> Iterator[tuple[str, ast.expr]]:
    """What has a reference here: the name of what is called, and the expression."""
    if isinstance(node, ast.Call):
        name = ast.unparse(node.func).rpartition(".")[2]
        for keyword in node.keywords:
            if keyword.arg == "reference":
                yield name, keyword.value
        position = POSITIONAL.get(name)
        if position is not None and len(node.args) > position:
            yield name, node.args[position]
    elif isinstance(node, ast.Dict):
        for key, value in zip(node.keys, node.values, strict=True):
            if isinstance(key, ast.Constant) and key.value == "reference":
                yield "usage", value


def _constants(expression: ast.expr) -> set[str]:
    if isinstance(expression, ast.IfExp):
        return _constants(expression.body) | _constants(expression.orelse)
    if isinstance(expression, ast.Constant) and isinstance(expression.value, str):
        return {expression.value}
    return set()


def documented_references() -> dict[str, set[int]]:
    rows = re.findall(r"^\| `([a-z0-9-]+)` \| ([\d, ]+) \|", SCRIPTING, re.MULTILINE)
    names = [name for name, _ in rows]
    assert len(names) == len(set(names)), "a reference is documented twice"
    return {name: {int(code) for code in codes.split(",")} for name, codes in rows}


def test_every_reference_is_documented_with_its_exit_codes() -> None:
    code, documents = references(), documented_references()
    assert len(code) > 80
    assert sorted(code.keys() - documents.keys()) == []
    assert sorted(documents.keys() - code.keys()) == []
    assert {name: codes for name, codes in code.items() if documents[name] != codes} == {}


def test_references_are_kebab_case() -> None:
    assert [
        name for name in references() if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name)
    ] == []


# --- exit codes ---


def test_every_exit_code_is_documented_with_the_version_it_came_with() -> None:
    rows = re.findall(r"^\| (\d+) \| (\d+\.\d+) \|", SCRIPTING, re.MULTILINE)
    documented = [int(code) for code, _ in rows]
    assert sorted(documented) == documented
    assert set(documented) == {0, *error_classes().values(), *SIGNAL_CODES}


# --- options and variables ---


def commands() -> dict[str, click.Command]:
    """Every command of both programs, by the words that call it."""
    found: dict[str, click.Command] = {"staging": main.staging}
    modules = [
        *(f"staging.cli.{module.name}" for module in pkgutil.iter_modules(staging.cli.__path__)),
        "downloader.program",
        "downloader.verification",
    ]
    for name in modules:
        for value in vars(importlib.import_module(name)).values():
            if not isinstance(value, click.Command) or isinstance(value, click.Group):
                continue
            if value.callback is None or value.callback.__module__ != name:
                continue
            program = "staging" if name.startswith("staging.") else "model-downloader"
            found[f"{program} {value.name}"] = value
    return found


def option_rows(program: str) -> dict[str, tuple[set[str], set[str]]]:
    """The table of a program: each option with the commands and the variables it is said to have."""
    section = SCRIPTING.partition(f"### `{program}`\n")[2].partition("\n### ")[0]
    rows: dict[str, tuple[set[str], set[str]]] = {}
    for names, users, variables in re.findall(
        r"^\|([^|]*`-[^|]*)\|([^|]*)\|([^|]*)\|", section, re.MULTILINE
    ):
        for name in re.findall(r"`(-[^`]+)`", names):
            known = set(re.split(r", (?:and )?", users.strip()))
            rows[name] = known, set(re.findall(r"`(\w+)`", variables))
    return rows


def test_all_commands_are_known() -> None:
    assert set(commands()) == {
        "staging",
        *(
            f"staging {name}"
            for name in (
                *("adopt", "check", "doctor", "gc", "ls", "preflight", "show", "upload", "verify"),
            )
        ),
        "model-downloader download",
        "model-downloader verify",
    }


@pytest.mark.parametrize("name", sorted(commands()))
def test_every_option_is_documented_with_its_variables(name: str) -> None:
    program, _, command = name.partition(" ")
    rows = option_rows(program)
    parameters = [p for p in commands()[name].params if isinstance(p, click.Option)]
    assert parameters
    for parameter in parameters:
        variables = [parameter.envvar] if isinstance(parameter.envvar, str) else parameter.envvar
        for option in parameter.opts:
            users, documented = rows[option]
            assert users & {"all", command or "`staging` itself"}, option
            assert documented == set(variables or ()), option


@pytest.mark.parametrize("program", ["staging", "model-downloader"])
def test_no_option_is_documented_that_does_not_exist(program: str) -> None:
    known = commands()
    for option, (users, _) in option_rows(program).items():
        for user in users - {"all"}:
            if option in ("-h", "--help"):
                continue
            words = program if user == "`staging` itself" else f"{program} {user}"
            options = [name for p in known[words].params for name in p.opts]
            assert option in options, (option, user)


def test_every_command_has_help() -> None:
    assert [name for name, command in commands().items() if not command.help] == []
    for name, command in commands().items():
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert parameter.help, (name, parameter.name)


def test_every_variable_in_the_code_is_documented() -> None:
    wanted = set()
    for path, tree in TREES.items():
        if "cli" in path.parts or "downloader" in path.parts:
            for node in ast.walk(tree):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    wanted |= set(
                        re.findall(r"\b(?:STAGING|MODEL|AWS)_[A-Z0-9_]*[A-Z0-9]\b", node.value)
                    )
    assert wanted >= {"MODEL_URI", "MODEL_DIR", "AWS_REGION"}
    assert sorted(name for name in wanted if f"`{name}`" not in SCRIPTING) == []


# --- JSON ---


def shown_documents() -> list[tuple[str, Any]]:
    """The JSON documents in docs/scripting.md, each with the heading above it."""
    found = []
    heading = ""
    for part in re.split(r"^(#{2,3} .*)$", SCRIPTING, flags=re.MULTILINE):
        if part.startswith("#"):
            heading = part.lstrip("# ")
        for text in re.findall(r"^```json\n(.*?)^```$", part, re.DOTALL | re.MULTILINE):
            found.append((heading, json.loads(text)))
    return found


def shape(value: Any) -> Any:
    """Names without values; of a list what its first entry looks like."""
    if isinstance(value, dict):
        return {name: shape(inner) for name, inner in value.items()}
    return [shape(value[0])] if isinstance(value, list) and value else None


def test_the_programs_print_documents_of_the_shape_that_is_shown(tmp_path: Path) -> None:
    shown = {heading: shape(document) for heading, document in shown_documents()}
    tar_on_disk(tmp_path, small_checkpoint())
    uri = "s3://models/m/"
    with ScriptedS3(buckets=["models"]) as server:
        # What a run leaves that was killed right after it began.
        left = f"stopped/.checkpoint/upload/{'0' * 16}/run.json"
        server.bucket("models").put(left, b'{"schema": "checkpoint-upload-run/1"}')
        run = Programs(tmp_path, server)
        printed = {
            "JSON": run.staging("show", uri, "--json", expect=10),
            "`staging check --json`": run.staging("check", "model.tar", "--json"),
            "`staging upload --dry-run --json`": run.staging(
                "upload", "model.tar", uri, "--dry-run", "--json"
            ),
            "`staging upload --json`": run.staging("upload", "model.tar", uri, "--json"),
            "`staging show --json`": run.staging("show", uri, "--json"),
            "`staging ls --json`": run.staging("ls", "s3://models/", "--json"),
            "`staging gc --json`": run.staging("gc", "--uploads", "s3://models/", "--json"),
            "`staging doctor --json`": run.staging("doctor", uri, "--json"),
            "`staging doctor --policy both --json`": run.staging(
                "doctor", uri, "--policy", "both", "--json"
            ),
            "`model-downloader --json`": run.download(uri, "node", "--json"),
        }
        bucket = server.bucket("models")
        for key in bucket.keys("m/"):
            if not key.startswith("m/.checkpoint/"):
                bucket.put(f"copied/{key.removeprefix('m/')}", bucket.get(key))
        printed["`staging adopt --dry-run --json`"] = run.staging(
            "adopt", "s3://models/copied/", "--dry-run", "--json"
        )
        printed["`staging adopt --json`"] = run.staging("adopt", "s3://models/copied/", "--json")
        (tmp_path / "node" / "config.json").write_bytes(b"{} ")
        printed["`staging verify --json` and `model-downloader verify --json`"] = run.staging(
            "verify", "node", "--json", expect=11
        )
    assert {heading: shape(outcome.document) for heading, outcome in printed.items()} == shown


# --- formats ---


def between(text: str, name: str) -> str:
    match = re.search(rf"<!-- {name}: begin -->\n(.*?)<!-- {name}: end -->", text, re.DOTALL)
    assert match is not None, name
    return match[1]


def pattern(size: int) -> bytes:
    return (bytes(range(251)) * (size // 251 + 1))[:size]


def test_the_digest_vectors_are_right() -> None:
    rows = re.findall(
        r"^\| `P\((\d+)\)` \| `([\w-]+)` \| `(\w+)` \|", between(FORMAT, "vectors"), re.M
    )
    assert len(rows) == 10
    for size, name, value in rows:
        family, data = HashFamily(name), pattern(int(size))
        digest = file_digest(family, len(data), chunk_digests(family, data))
        assert str(digest) == f"{name}:{value}"


def test_the_worked_example_is_the_message_that_is_hashed() -> None:
    text = FORMAT.partition("90 bytes:\n")[2].partition("\n## ")[0]
    message = bytes.fromhex(
        "".join(re.findall(r"^ {4}([0-9a-f ]+?)(?:  .*)?$", text, re.MULTILINE))
    )
    assert len(message) == 90
    digest = HashFamily.BLAKE3.hash(message).hex()
    assert f"| `P(16777217)` | `blake3-16m` | `{digest}` |" in FORMAT


def test_the_check_value_of_the_checksum() -> None:
    assert f"{crc64.crc64(b'123456789'):#x}" in FORMAT


def test_the_example_manifest_is_the_one_of_its_files() -> None:
    text = between(FORMAT, "manifest").removeprefix("```json\n").removesuffix("```\n")
    manifest = Manifest.decode(text.encode())
    assert manifest.encode().decode() == text
    contents = {
        "config.json": b"{}\n",
        "empty": b"",
        "model.bin": pattern(16777217),
        "tokenizer/é.txt": "é\n".encode(),
    }
    assert {file.path: list(file.chunks) for file in manifest.files} == {
        path: chunk_digests(manifest.hash, data) for path, data in contents.items()
    }
    assert {file.path: file.checksums["crc64nvme"] for file in manifest.files} == {
        path: crc64.to_text(crc64.crc64(data)) for path, data in contents.items()
    }
    canonical = "".join(line.strip() for line in between(FORMAT, "canonical").splitlines())
    assert manifest.id == f"sha256:{HashFamily.SHA256.hash(canonical.encode()).hex()}"


# --- invariants, links ---


def invariant_sections() -> dict[int, str]:
    parts = re.split(r"^## I(\d+): .*$", INVARIANTS, flags=re.MULTILINE)
    return {int(number): text for number, text in zip(parts[1::2], parts[2::2], strict=True)}


def test_every_invariant_is_stated_with_what_keeps_it_and_what_it_leaves_open() -> None:
    sections = invariant_sections()
    assert list(sections) == list(range(1, 17))
    for number, text in sections.items():
        assert "- Kept by: " in text, number
        assert "- Not guaranteed" in text, number


def test_every_invariant_names_the_tests_that_hold_it() -> None:
    docstrings = {
        path.relative_to(ROOT / "tests").as_posix(): ast.get_docstring(ast.parse(path.read_text()))
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
    }
    stale = []
    for number, text in invariant_sections().items():
        holding = [
            f"`{name}`"
            for name, words in docstrings.items()
            if re.search(rf"\bI{number}\b", words or "")
        ]
        assert holding, f"no test holds I{number}"
        line = f"- Tests: {', '.join(holding)}."
        if line not in " ".join(text.split()):
            stale.append(f"I{number}\n{line}")
    assert not stale, "lines for docs/invariants.md:\n" + "\n".join(stale)


def test_files_and_links_named_in_the_documents_exist() -> None:
    missing = []
    for document in [*ROOT.glob("*.md"), *DOCS.rglob("*.md")]:
        text = document.read_text(encoding="utf-8")
        for link in re.findall(r"\]\((?!https?://|#)([^)#]+)(?:#[^)]*)?\)", text):
            if not (document.parent / link).exists():
                missing.append(f"{document.name}: {link}")
        for name in re.findall(r"`((?:staging|downloader|tests|scripts|docs)/[\w./-]+)`", text):
            if not (ROOT / name).exists():
                missing.append(f"{document.name}: {name}")
    assert missing == []


def test_every_decision_is_in_the_index() -> None:
    decisions = DOCS / "decisions"
    index = (decisions / "README.md").read_text(encoding="utf-8")
    files = sorted(path.name for path in decisions.glob("[0-9]*.md"))
    assert files
    assert re.findall(r"\((\d{4}-[\w-]+\.md)\)", index) == files
    for name in files:
        text = (decisions / name).read_text(encoding="utf-8")
        for heading in ("Context", "Decision", "Consequences", "Rejected"):
            assert f"\n## {heading}\n" in text, (name, heading)
