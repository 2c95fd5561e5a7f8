"""Every layout rule has a checkpoint that breaks it and no other, one that passes, and its documentation.

Covers no numbered invariant but for the bound on what is looked at twice (I11).
"""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest

from staging.formats.safetensors import SafetensorsHeader
from staging.layout.inventory import INDEX_NAME, Inventory
from staging.layout.rule import SEVERITIES, Finding
from staging.layout.rules import FAMILIES, RULES, Gradual, advise, check, near_misses
from tests.support.layouts import (
    ALONGSIDE,
    BASES,
    FIRST,
    FIXTURES,
    NEAR,
    SECOND,
    adding,
    broken,
    encoder,
    inventory,
    mapped,
    sharded,
    single,
    tensors,
)
from tests.support.tensors import safetensors_file

DOCUMENT = Path(__file__).parents[2] / "docs/layout-rules.md"
LASTING = sorted(rule.id for rule in RULES.values() if rule.lasting)


def everything(found: Inventory) -> list[Finding]:
    return check(found) + advise(found)


def test_no_rule_lacks_a_checkpoint_that_breaks_it() -> None:
    assert set(FIXTURES) == set(RULES)


@pytest.mark.parametrize("base", BASES)
def test_a_base_passes_without_a_word(base: str) -> None:
    assert everything(inventory(BASES[base]())) == []


@pytest.mark.parametrize("case", NEAR)
def test_what_looks_wrong_and_is_not(case: str) -> None:
    base, change = NEAR[case]
    files = BASES[base]()
    change(files)
    assert everything(inventory(files)) == []


def test_numbers_may_begin_with_zero() -> None:
    files = encoder()
    weights = files.pop("model.safetensors")
    files["model-00000-of-00002.safetensors"] = weights
    files["model-00001-of-00002.safetensors"] = safetensors_file(tensors("b"))
    assert [one.rule for one in check(inventory(files))] == ["shards-without-index"]


@pytest.mark.parametrize("rule", RULES)
def test_a_fixture_breaks_its_rule_and_no_other(rule: str) -> None:
    findings = everything(inventory(broken(rule)))
    assert {finding.rule for finding in findings} - ALONGSIDE.get(rule, frozenset()) == {rule}
    assert findings[0].severity == RULES[rule].severity or rule in ALONGSIDE
    for finding in findings:
        assert finding.severity in RULES[finding.rule].severities
        assert finding.message
        assert finding.hint
        assert "\n" not in finding.message + finding.hint
        assert not finding.message.endswith(".")


@pytest.mark.parametrize("rule", RULES)
def test_an_ignored_rule_says_nothing(rule: str) -> None:
    found = inventory(broken(rule))
    assert rule not in {one.rule for one in check(found, {rule}) + advise(found, {rule})}


def test_a_rule_that_does_not_exist_cannot_be_ignored() -> None:
    with pytest.raises(ValueError, match="there is no rule 'pickels'"):
        check(Inventory({}), {"pickels"})
    assert near_misses("pickels") == ["pickle"]
    assert near_misses("INDEX_SHARD_MISSING")[0] == "index-shard-missing"
    assert near_misses("qqqqqqqq") == []


def test_strict_makes_errors_of_warnings_but_not_of_advice() -> None:
    found = inventory(broken("chat-template-missing"))
    assert [one.severity for one in check(found)] == ["warning"]
    assert [one.severity for one in check(found, strict=True)] == ["error"]
    assert check(inventory(broken("generation-config-missing")), strict=True) == []


@pytest.mark.parametrize("rule", ["pickle", "executable-content", "training-state"])
def test_what_is_allowed_by_name_passes(rule: str) -> None:
    files = broken(rule)
    [path] = {finding.path for finding in check(inventory(files))}
    assert path is not None
    assert [one for one in check(inventory(files), allow=[path]) if one.severity == "error"] == []
    assert check(inventory(files), allow=[path.upper(), "*"])[0].rule == rule


def test_milder_findings() -> None:
    for name, rule in {
        ".DS_Store": "macos-leftover",
        "convert.sh": "executable-content",
        "trainer_state.json": "training-state",
    }.items():
        files = single()
        adding(name)(files)
        [finding] = check(inventory(files))
        assert (finding.rule, finding.severity, RULES[rule].milder) == (rule, "warning", "warning")


def test_errors_come_first() -> None:
    files = broken("chat-template-missing")
    adding("laguna.tar")(files)
    adding(".DS_Store")(files)
    severities = [SEVERITIES.index(one.severity) for one in everything(inventory(files))]
    assert severities == sorted(severities)
    assert len(set(severities)) == 2


# Evidence.


def test_the_evidence_names_field_and_value() -> None:
    [finding] = check(inventory(broken("config-of-another-model")))
    assert (finding.path, finding.field, finding.value) == ("config.json", "vocab_size", 16)
    [finding] = check(inventory(broken("index-tensor-elsewhere")))
    assert finding.path == FIRST
    assert finding.field == "weight_map.model.layers.0.mlp.down_proj.weight"
    assert finding.value == SECOND


def test_thousands_of_wrong_tensors_are_one_finding() -> None:
    files = sharded()
    files[FIRST] = safetensors_file(tensors(*(f"layers.{n}.w" for n in range(5_000))))
    rules = [finding.rule for finding in check(inventory(files))]
    assert len(rules) == len(set(rules)) <= 4


# While files pass by.


@pytest.mark.parametrize("rule", LASTING)
def test_what_lasts_is_certain_on_a_part_of_the_checkpoint(rule: str) -> None:
    """The file with the mistake alone, with the index where there is one, is enough, or both such files."""
    whole = broken(rule)
    [found] = [one for one in check(inventory(whole)) if one.rule == rule]
    assert found.path is not None
    needed = {INDEX_NAME, found.path, *(found.value if isinstance(found.value, list) else ())}
    part = {name: data for name, data in whole.items() if name in needed}
    assert rule in {one.rule for one in check(inventory(part), partial=True)}


@pytest.mark.parametrize("base", BASES)
def test_a_part_of_what_serves_breaks_no_lasting_rule(base: str) -> None:
    files = BASES[base]()
    for path in files:
        rest = {name: data for name, data in files.items() if name != path}
        assert check(inventory(rest), partial=True) == []
        assert check(inventory({path: files[path]}), partial=True) == []


@pytest.mark.parametrize("index_first", [True, False])
def test_gradual_tells_a_swapped_entry_with_the_first_header_that_proves_it(
    index_first: bool,
) -> None:
    files = sharded()
    mapped(model__layers__0__mlp__down_proj__weight=SECOND)(files)
    order = [INDEX_NAME, FIRST, SECOND] if index_first else [FIRST, SECOND, INDEX_NAME]
    gradual = Gradual()
    seen: dict[str, bytes] = {}
    told = []
    for path in order:
        seen[path] = files[path]
        told.append([finding.rule for finding in gradual.judge(inventory(seen), [path])])
    certain = ["index-tensor-elsewhere"]
    assert told == ([[], certain, []] if index_first else [[], [], certain])


@pytest.mark.parametrize("order", [*itertools.permutations([INDEX_NAME, FIRST, SECOND])])
def test_gradual_tells_a_tensor_in_two_shards_as_soon_as_the_index_and_a_header_do(
    order: tuple[str, ...],
) -> None:
    """The index has it in the first shard: the second one alone contradicts that, both say what it is."""
    files = broken("tensor-twice")
    gradual = Gradual()
    seen: dict[str, bytes] = {}
    told = []
    for path in order:
        seen[path] = files[path]
        told.append([finding.rule for finding in gradual.judge(inventory(seen), [path])])
    last = max(order.index(INDEX_NAME), order.index(SECOND))
    rule = "tensor-twice" if order.index(FIRST) < last else "index-tensor-elsewhere"
    assert told == [[rule] if number == last else [] for number in range(3)]


def test_gradual_says_nothing_of_what_an_index_may_still_leave_out() -> None:
    """Without the index, or in the other format's, nobody knows which of the files are loaded."""
    files = broken("tensor-twice")
    shards = {path: files[path] for path in (FIRST, SECOND)}
    assert Gradual().judge(inventory(shards), shards) == []
    renamed = shards | {"consolidated.safetensors.index.json": files[INDEX_NAME]}
    assert Gradual().judge(inventory(renamed), renamed) == []


@pytest.mark.parametrize("name", [".DS_Store", "convert.sh", "trainer_state.json", "a.part"])
def test_gradual_may_be_strict(name: str) -> None:
    found = inventory({name: b"x"})
    assert [one.severity for one in Gradual().judge(found, [name])] == ["warning"]
    strict = Gradual(strict=True).judge(found, [name])
    assert [one.severity for one in strict] == ["error"]
    assert strict[0].rule in {one.rule for one in check(found, strict=True)}


def test_gradual_tells_nothing_twice() -> None:
    gradual = Gradual()
    found = inventory({"a.pt": b"x"})
    assert [one.rule for one in gradual.judge(found, ["a.pt"])] == ["pickle"]
    assert gradual.judge(found, ["a.pt"]) == []
    assert Gradual(["pickle"]).judge(found, ["a.pt"]) == []
    assert Gradual(allow=["a.pt"]).judge(found, ["a.pt"]) == []


class _Counted(dict[str, object]):
    """A mapping that counts how often it was asked, and refuses to be walked through."""

    asked = 0

    def get(self, key: str, default: object = None) -> object:  # type: ignore[override]
        self.asked += 1
        return super().get(key, default)

    def __iter__(self):  # type: ignore[no-untyped-def]
        raise AssertionError("all files were walked through for a few")


def test_gradual_looks_at_what_is_fresh_alone() -> None:
    header = inventory({"a.safetensors": safetensors_file(tensors("w"))}).headers["a.safetensors"]
    assert isinstance(header, SafetensorsHeader)
    names = [f"part-{n}.safetensors" for n in range(2_000)]
    headers = _Counted(dict.fromkeys(names, header))
    sizes = _Counted(dict.fromkeys(names, 100))
    gradual = Gradual()
    found = Inventory(sizes, headers, _Counted())  # type: ignore[arg-type]
    for name in names:
        assert gradual.judge(found, [name]) == []
    assert headers.asked <= 3 * len(names)


# Documentation.


INTRODUCTION = """# Layout rules

What `staging check`, uploads and downloads know about checkpoints that serve. An **error** refuses, a
**warning** is worth a look, **advice** is what to know before a server is started. `staging check` leaves a
rule out with `--ignore RULE`; `--strict` makes errors of warnings. Rules read names, sizes, the headers of
safetensors files and small documents, never a weight.

A rule that is *certain early* ends an upload as soon as its file has passed by; the others need all files.

This file is written by `tests/unit/test_rules.py`, which also says how."""


def manual() -> str:
    """docs/layout-rules.md, from the rules and what their fixtures say."""
    lines = [INTRODUCTION]
    for family in FAMILIES:
        lines += ["", f"## {family.name}"]
        for rule in family.rules:
            [*_, finding] = [
                one for one in everything(inventory(broken(rule.id))) if one.rule == rule.id
            ]
            early = ", certain early" if rule.lasting else ""
            source = re.sub(r"(https://[^\s,:]+(?::(?=//))?[^\s,:]*)", r"<\1>", rule.source)
            lines += [
                "",
                f"### {rule.id}",
                "",
                f"{' or '.join(rule.severities).capitalize()}{early}: {rule.reason}.",
                "",
                f"- Example: {finding.message}",
                f"- Fix: {rule.fix}",
                f"- Source: {source}",
            ]
    return "\n".join(lines) + "\n"


def test_the_manual_is_what_the_rules_say() -> None:
    hint = (
        "docs/layout-rules.md is stale; write it again:"
        " python -c 'from tests.unit.test_rules import DOCUMENT, manual; DOCUMENT.write_text(manual())'"
    )
    assert DOCUMENT.is_file(), hint
    assert DOCUMENT.read_text(encoding="utf-8") == manual(), hint


def test_rules_are_named_and_described_as_all_others() -> None:
    for rule in RULES.values():
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", rule.id)
        for text in (rule.reason, rule.fix, rule.source):
            assert text
            assert "\n" not in text
            assert not text.endswith(".")
            assert "simply" not in text
