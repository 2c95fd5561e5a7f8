"""Some of a source's files: those that patterns include and none excludes.

A pattern is matched against the whole path below the checkpoint's root, upper and lower case apart.

    *          any characters of one component, none as well, a leading dot as well
    ?          one character of a component
    [a-z]      one of these characters; [!a-z] one that is none of them; [*] a star itself
    **         as a whole component: any number of directories, none as well; at the end everything below
    name/      everything below the directory, as name/**

So `*.safetensors` means files in the root, `**/*.safetensors` files anywhere, and a directory's bare name
nothing. Without `include` everything is included; what `exclude` matches is left out in any case.

Invariants: what is left out of a sequential source is read all the same, so that the source is judged whole
(I2). A selection of nothing is refused.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator, Sequence
from typing import Final

from staging.source.source import Source, SourceFile
from staging.vocabulary.errors import MalformedInput, UsageError

_ANY_DEPTH: Final = "**"
_BLOCK: Final = 1024 * 1024  # bytes read at once of what is left out


class Pattern:
    """One glob, as the module's docstring has it."""

    def __init__(self, text: str) -> None:
        """Raises UsageError for a text that could match no path."""
        self.text = text
        components = (text + _ANY_DEPTH if text.endswith("/") else text).split("/")
        wrong = None
        if "\\" in text:
            wrong = "it has a backslash; put a special character into brackets: [*]"
        elif not all(components) or {".", ".."} & set(components):
            wrong = "it is empty or absolute, or has an empty, `.` or `..` component"
        elif any(_ANY_DEPTH in name and name != _ANY_DEPTH for name in components):
            wrong = "`**` stands alone between slashes: a/**/b"
        if wrong is not None:
            raise UsageError(
                f"the pattern {text[:200]!r} cannot be used: {wrong}",
                reference="pattern",
                hint="patterns are paths below the root of the checkpoint, for example"
                " '**/*.safetensors'",
            )
        self._components = [
            None if name == _ANY_DEPTH else re.compile(fnmatch.translate(name))
            for name in components
        ]

    def matches(self, path: str) -> bool:
        """True when the pattern stands for this path."""
        at = self._with_skips(0)
        for name in path.split("/"):
            at = {after for position in at for after in self._after(position, name)}
        return len(self._components) in at

    def _after(self, position: int, name: str) -> set[int]:
        """Where in the pattern a component can lead to from a position."""
        if position == len(self._components):
            return set()
        component = self._components[position]
        if component is not None:
            return self._with_skips(position + 1) if component.match(name) else set()
        if position == len(self._components) - 1:
            return {position, position + 1}
        return self._with_skips(position)

    def _with_skips(self, position: int) -> set[int]:
        """A position, and those behind a `**` there, which may stand for no directory."""
        found = {position}
        while position < len(self._components) - 1 and self._components[position] is None:
            position += 1
            found.add(position)
        return found


class Selection:
    """A source with fewer files."""

    def __init__(
        self, source: Source, include: Sequence[str] = (), exclude: Sequence[str] = ()
    ) -> None:
        """The source becomes the selection's own. Raises UsageError for a pattern that cannot be one."""
        self.source = source
        self._include = [Pattern(text) for text in include]
        self._exclude = [Pattern(text) for text in exclude]
        self._matched: set[str] = set()
        self.kind = source.kind
        self.name = source.name
        self.size = source.size
        self.identity = source.identity
        self.memory = source.memory
        self.read_size = source.read_size
        self.sequential = source.sequential

    @property
    def unmatched(self) -> tuple[str, ...]:
        """Patterns that stood for no file, mistyped perhaps. Known when `files` has come to its end."""
        return tuple(
            pattern.text
            for pattern in (*self._include, *self._exclude)
            if pattern.text not in self._matched
        )

    def files(self) -> Iterator[SourceFile]:
        """The files that are selected, in the order of the source.

        Raises MalformedInput at the end when there was none.
        """
        found = False
        for file in self.source.files():
            if self._selects(file.path):
                found = True
                yield file
            elif self.sequential:
                self._read_through(file)
        if not found:
            raise MalformedInput(
                f"none of the files in {self.name} is selected",
                reference="nothing-selected",
                hint="patterns are paths below the root of the checkpoint, and * does not cross a slash:"
                " try '**/' in front",
                side="source",
            )

    def read_into(self, file: SourceFile, offset: int, view: memoryview) -> None:
        """Fill `view` with bytes of a file."""
        self.source.read_into(file, offset, view)

    def finish(self) -> None:
        """Finish the source."""
        self.source.finish()

    def close(self) -> None:
        """Close the source."""
        self.source.close()

    def _selects(self, path: str) -> bool:
        # All patterns are asked: one that another makes superfluous has matched all the same.
        included = self._any(self._include, path) or not self._include
        return not self._any(self._exclude, path) and included

    def _any(self, patterns: Sequence[Pattern], path: str) -> bool:
        matching = [pattern.text for pattern in patterns if pattern.matches(path)]
        self._matched.update(matching)
        return bool(matching)

    def _read_through(self, file: SourceFile) -> None:
        with memoryview(bytearray(min(_BLOCK, file.size))) as block:
            for offset in range(0, file.size, _BLOCK):
                self.source.read_into(file, offset, block[: min(_BLOCK, file.size - offset)])
