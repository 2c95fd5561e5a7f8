"""A values file: YAML as Helm reads it, every value with its path and its line.

Invariants: a file has one meaning, or is refused: a key that stands twice, a tag of its own, several
documents, an anchor that contains itself. Depth, size and number of values are capped before anything is
built, also where aliases multiply them; an alias is a value of its own at each place. Merge keys (`<<`) are
followed. Text stays text: only what is plainly a number, a truth value or null is one.
Not guaranteed: that a chart knows the keys. Templates (`{{ ... }}`) are text like any other.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, NoReturn

import yaml

from staging.vocabulary.errors import MalformedInput

MAX_BYTES: Final = 1024 * 1024
"""Largest values file: Helm keeps a release in a Secret, which holds no more."""

_MAX_DEPTH: Final = 40
_MAX_NODES: Final = 20_000
_MAX_VALUES: Final = 20_000  # aliases counted at each place
_MERGE: Final = "tag:yaml.org,2002:merge"
_STANDARD: Final = "tag:yaml.org,2002:"
_KINDS: Final = frozenset(
    f"{_STANDARD}{kind}"
    for kind in (
        *("map", "seq", "str", "null", "bool", "int", "float"),
        *("timestamp", "value", "merge"),  # text, for a chart
    )
)
_INTEGER: Final = re.compile(r"[-+]?(0|[1-9][0-9]{0,17})")
_FLOAT: Final = re.compile(r"[-+]?[0-9]+\.[0-9]*([eE][-+]?[0-9]+)?")
_TEMPLATE: Final = re.compile(r"\s*(- +)*([^\s:#'\"{\[][^:#'\"{\[]*:\s+)?\{\{")  # not in quotes
_LINE_END: Final = re.compile("\r\n|[\n\r\x85\u2028\u2029]")

Data = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class Value:
    """A value and where it stands: its path of keys from the top, and its line, counted from 1.

    `data` is a scalar, a mapping by key, or a list. In a mapping the line is that of the key. `written` is
    how a scalar stands in the file, without quotes.
    """

    path: tuple[str, ...]
    line: int
    data: Data | Mapping[str, Value] | tuple[Value, ...]
    written: str = ""

    @property
    def name(self) -> str:
        """The path in dots, a key with dots of its own in quotes."""
        return dotted(self.path)

    @property
    def text(self) -> str | None:
        """The text; None for everything that is no text."""
        return self.data if isinstance(self.data, str) else None

    @property
    def entries(self) -> Mapping[str, Value]:
        """The entries of a mapping; none for everything else."""
        return self.data if isinstance(self.data, Mapping) else {}

    def at(self, *keys: str) -> Value | None:
        """The value below these keys; None where there is none, or null, which Helm takes for the same."""
        found: Value | None = self
        for key in keys:
            found = found.entries.get(key) if found is not None else None
        return None if found is None or found.data is None else found

    def walk(self) -> Iterator[Value]:
        """The value itself and all below it, in the order of the file."""
        yield self
        if isinstance(self.data, Mapping):
            for value in self.data.values():
                yield from value.walk()
        elif isinstance(self.data, tuple):
            for value in self.data:
                yield from value.walk()


def dotted(path: tuple[str, ...]) -> str:
    """A path as people write it: `ingress.annotations."alb.ingress.kubernetes.io/scheme"`."""
    return ".".join(f'"{part}"' if "." in part else part for part in path)


def read_values(data: bytes, name: str) -> Value:
    """Read a values file; `name` stands in messages. Raises MalformedInput."""
    if len(data) > MAX_BYTES:
        _refuse(name, None, f"{len(data)} bytes are more than any values file has")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        _refuse(name, line, "not UTF-8", "save the file as UTF-8")
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = None if mark is None else mark.line + 1
        _refuse(name, place, _reason(error), _hint(text, place))
    except yaml.YAMLError as error:  # characters that YAML does not allow
        _refuse(name, None, str(error).splitlines()[0])
    if not isinstance(node, yaml.MappingNode):
        _refuse(name, None, "no mapping of keys at the top")
    return _Builder(name, text).build(node, (), 1)


def lines_of(text: str) -> list[str]:
    """The lines of a text as YAML counts them, each with its line end."""
    lines, start = [], 0
    for match in _LINE_END.finditer(text):
        lines.append(text[start : match.end()])
        start = match.end()
    return [*lines, text[start:]] if start < len(text) else lines


class _Loader(yaml.SafeLoader):
    """Makes nodes, as deep and as many as values files have."""

    _depth = 0
    _made = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self._depth >= _MAX_DEPTH:
            self._refuse(f"nested deeper than {_MAX_DEPTH} levels")
        self._made += 1
        if self._made > _MAX_NODES:
            self._refuse(f"more than {_MAX_NODES} keys and values")
        self._depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1

    def _refuse(self, problem: str) -> NoReturn:
        mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
        raise yaml.MarkedYAMLError(problem=problem, problem_mark=mark)


class _Builder:
    def __init__(self, name: str, text: str) -> None:
        self._name = name
        self._text = text
        self._built = 0
        self._inside: set[int] = set()

    def build(self, node: yaml.Node, path: tuple[str, ...], line: int) -> Value:
        self._built += 1
        if self._built > _MAX_VALUES:
            self._refuse(line, f"more than {_MAX_VALUES} values, aliases counted at each place")
        if node.tag not in _KINDS:
            self._refuse(line, f"the tag {node.tag[:80]!r} means nothing to a chart")
        if isinstance(node, yaml.ScalarNode):
            return Value(path, line, _scalar(node), node.value)
        if id(node) in self._inside:
            self._refuse(line, "an anchor that contains itself")
        self._inside.add(id(node))
        if isinstance(node, yaml.MappingNode):
            mapping = self._mapping(node, path)
            built = Value(path, line, mapping)
        else:
            entries = enumerate(node.value)
            built = Value(
                path,
                line,
                tuple(
                    self.build(entry, (*path, str(number)), _line(entry))
                    for number, entry in entries
                ),
            )
        self._inside.discard(id(node))
        return built

    def _mapping(self, node: yaml.MappingNode, path: tuple[str, ...]) -> Mapping[str, Value]:
        own: dict[str, Value] = {}
        merged: dict[str, Value] = {}
        for key, entry in node.value:
            line = _line(key)
            if key.tag == _MERGE:
                for name, value in self._merged(entry, path, line):
                    merged.setdefault(name, value)
                continue
            if not isinstance(key, yaml.ScalarNode):
                self._refuse(line, "a key that is no text")
            if key.value in own:
                raise MalformedInput(
                    f"{self._name}, line {line}: the key {dotted((*path, key.value))[:200]!r} stands"
                    f" twice, first in line {own[key.value].line}",
                    reference="values-duplicate-key",
                    hint="keep one of them; programs differ in which one they take",
                    side="local",
                )
            own[key.value] = self.build(entry, (*path, key.value), line)
        return {**merged, **own}

    def _merged(
        self, node: yaml.Node, path: tuple[str, ...], line: int
    ) -> Iterator[tuple[str, Value]]:
        sources = node.value if isinstance(node, yaml.SequenceNode) else [node]
        for source in sources:
            if not isinstance(source, yaml.MappingNode):
                self._refuse(line, "`<<` merges mappings only")
            if id(source) in self._inside:
                self._refuse(line, "an anchor that contains itself")
            yield from self.build(source, path, line).entries.items()

    def _refuse(self, line: int, reason: str) -> NoReturn:
        _refuse(self._name, line, reason, _hint(self._text, line))


def _scalar(node: yaml.ScalarNode) -> Data:
    kind, text = node.tag.removeprefix(_STANDARD), str(node.value)
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() in ("true", "yes", "on")
    if kind == "int" and _INTEGER.fullmatch(text):
        return int(text)
    if kind == "float" and _FLOAT.fullmatch(text):
        return float(text)
    return text


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _reason(error: yaml.MarkedYAMLError) -> str:
    """What a parser says, in one piece: some problems are the second half of a sentence."""
    if error.problem is None:
        return error.context or "not YAML"
    if error.context is not None and error.problem.startswith("but "):
        return f"{error.context}, {error.problem}"
    return error.problem


def _hint(text: str, line: int | None) -> str | None:
    """What to do about a line that cannot be read; None where nothing is known of it."""
    lines = lines_of(text)
    if line is None or line > len(lines):
        return None
    wrong = lines[line - 1]
    if "\t" in wrong[: len(wrong) - len(wrong.lstrip())]:
        return "indent with spaces: YAML allows no tabs there"
    # A template's error often shows only where the text goes on below it.
    if any(_TEMPLATE.match(near) for near in lines[max(0, line - 2) : line]):
        return "a chart's template is no values file: give the one that goes to `helm install -f`"
    return None


def _refuse(name: str, line: int | None, reason: str, hint: str | None = None) -> NoReturn:
    place = name if line is None else f"{name}, line {line}"
    raise MalformedInput(
        f"{place}: {reason}",
        reference="values-malformed",
        hint=hint or "give the values file that goes to `helm install -f`",
        side="local",
    )
