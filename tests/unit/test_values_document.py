"""Values files as YAML: one meaning or a refusal, lines and paths that are right, bounded work (I3, I11)."""

from __future__ import annotations

import random
from typing import Any

import pytest
import yaml

from staging.values.document import MAX_BYTES, Value, lines_of, read_values
from staging.vocabulary.errors import MalformedInput


def read(text: str | bytes) -> Value:
    return read_values(text if isinstance(text, bytes) else text.encode(), "v.yaml")


def plain(value: Value) -> Any:
    if isinstance(value.data, tuple):
        return [plain(entry) for entry in value.data]
    if value.entries or isinstance(value.data, dict):
        return {key: plain(entry) for key, entry in value.entries.items()}
    return value.data


def refusal(text: str | bytes) -> MalformedInput:
    with pytest.raises(MalformedInput) as refused:
        read(text)
    assert "\n" not in refused.value.message
    return refused.value


def test_paths_and_lines() -> None:
    values = read('# top\na:\n  b.c: 1\n\n  d: [x, {e: y}]\n"f": &z\n  g: |\n    two\n    lines\n')
    assert [(value.name, value.line) for value in values.walk()][1:] == [
        ("a", 2),
        ('a."b.c"', 3),
        ("a.d", 5),
        ("a.d.0", 5),
        ("a.d.1", 5),
        ("a.d.1.e", 5),
        ("f", 6),
        ("f.g", 7),
    ]


@pytest.mark.parametrize(
    ("text", "data"),
    [
        ("1", 1),
        ("-7", -7),
        ("0", 0),
        ("true", True),
        ("Off", False),
        ("~", None),
        ("", None),
        ("null", None),
        ("1.5", 1.5),
        ('"1"', "1"),
        ("'true'", "true"),
        # What YAML 1.1 and its successors read differently stays text.
        ("010", "010"),
        ("0x10", "0x10"),
        ("1_000", "1_000"),
        ("12:30:45", "12:30:45"),
        ("2026-04-01", "2026-04-01"),
        ("1" * 30, "1" * 30),
        ("!!str 1", "1"),
    ],
)
def test_scalars(text: str, data: Any) -> None:
    found = read(f"key: {text}\n").entries["key"].data
    assert (found, type(found)) == (data, type(data))


def test_null_is_as_missing() -> None:
    assert read("a: null\nb: {c: ~}\n").at("a") is None
    assert read("a: null\nb: {c: ~}\n").at("b", "c") is None
    assert read("a: 1\n").at("a", "b") is None


def test_anchors_and_merges_stand_where_they_are_written() -> None:
    values = read("base: &base\n  gpus: 1\n  type: a\nm:\n  <<: *base\n  type: b\nn: *base\n")
    assert plain(values)["m"] == {"gpus": 1, "type": "b"}
    merged = values.at("m", "gpus")
    assert merged is not None
    assert (merged.name, merged.line) == ("m.gpus", 2)
    assert plain(values)["n"] == {"gpus": 1, "type": "a"}


def test_a_list_of_merges_prefers_the_first() -> None:
    assert plain(read("a: &a {x: 1}\nb: &b {x: 2, y: 2}\nc: {<<: [*a, *b]}\n"))["c"] == {
        "x": 1,
        "y": 2,
    }


def test_what_is_read_is_what_pyyaml_reads() -> None:
    rng = random.Random(5)

    def made(depth: int) -> Any:
        kind = rng.randrange(6 if depth else 4)
        if kind == 0:
            return rng.randrange(-9, 10**6)
        if kind == 1:
            return rng.choice([True, False])
        if kind < 4:
            return "".join(rng.choice("ab :#-é'\"\n{[&*!|>%@,?") for _ in range(rng.randrange(12)))
        if kind == 4:
            return [made(depth - 1) for _ in range(rng.randrange(4))]
        return {f"k{number}": made(depth - 1) for number in range(rng.randrange(4))}

    for _ in range(200):
        data = {f"k{number}": made(3) for number in range(3)}
        text = yaml.safe_dump(data, allow_unicode=rng.choice([True, False]))
        assert plain(read(text)) == yaml.safe_load(text)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: 1\nb: [\n", 3),
        ("a: 1\n---\nb: 2\n", 2),
        ("a: 1\nb: *c\n", 2),
        ("a:\n  b: !Ref x\n", 2),
        ("a: !!python/object:os.system {}\n", 1),
        ("a: &a\n  b: *a\n", 2),
        ("a: &a [*a]\n", 1),
        ("a:\n  ? [b]\n  : c\n", 2),
        ("a:\n  <<: text\n", 2),
        ("a: " + "[" * 60 + "]" * 60, 1),
        ("a:\n\tc: d\n", 2),
        (b"a: 1\nb: \xff\n", 2),
    ],
)
def test_what_has_no_one_meaning_is_refused(text: str | bytes, line: int) -> None:
    error = refusal(text)
    assert error.reference == "values-malformed"
    assert error.message.startswith(f"v.yaml, line {line}: "), error.message


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("a:\n\tc: d\n", "indent with spaces"),
        ("a:\n  b: '{{ x }}'\n\tc: d\n", "indent with spaces"),
        ("a:\n  b: {{ .Values.b }}\n", "a chart's template"),
        ("a:\n  {{- if .Values.b }}\n  b: 1\n  {{- end }}\n", "a chart's template"),
        ("a: 1\nb: [\n", "give the values file"),
        ("a: '{{ messages }}'\nb: !foo 1\n", "give the values file"),
        ("a: ['--t', '{{ x }}']\n b: 1\n", "give the values file"),
    ],
)
def test_the_hint_knows_what_people_mistake_for_a_values_file(text: str, hint: str) -> None:
    assert hint in (refusal(text).hint or "")


def test_a_second_document_is_told_in_a_whole_sentence() -> None:
    said = refusal("a: 1\n---\nb: 2\n").message
    assert (
        said
        == "v.yaml, line 2: expected a single document in the stream, but found another document"
    )


@pytest.mark.parametrize(
    "text", ["", "# nothing\n", "- a\n", "text", b"a: \x00\n", "a" * (MAX_BYTES + 1)]
)
def test_what_is_no_mapping_is_refused(text: str | bytes) -> None:
    assert refusal(text).reference == "values-malformed"


def test_a_key_that_stands_twice_is_refused_with_both_lines() -> None:
    error = refusal("models:\n  a:\n    gpus: 1\n    gpus: 2\n")
    assert error.reference == "values-duplicate-key"
    assert "line 4: the key 'models.a.gpus' stands twice, first in line 3" in error.message


def test_aliases_that_multiply_are_refused() -> None:
    laughs = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    for number in range(1, 9):
        laughs += f"a{number}: &a{number} [{', '.join([f'*a{number - 1}'] * 10)}]\n"
    assert "20000 values" in refusal(laughs).message


def test_more_than_any_values_file_has_is_refused_early() -> None:
    assert "20000 keys and values" in refusal("a: [" + "[]," * 300_000 + "]\n").message


def test_lines_are_those_of_the_parser() -> None:
    for ending in ("\n", "\r\n", "\r", "\x85", "\u2028"):
        text = ending.join(["a: 1", "", "# c", "b:", "  c: 2", "d: 3"])
        lines = lines_of(text)
        assert "".join(lines) == text
        for value in [*read(text).walk()][1:]:
            assert lines[value.line - 1].lstrip().startswith(value.path[-1]), repr(ending)


def test_a_byte_order_mark_is_no_text() -> None:
    assert plain(read("\ufeffa: 1\n".encode())) == {"a": 1}
