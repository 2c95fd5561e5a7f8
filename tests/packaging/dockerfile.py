"""A reading of Dockerfiles that is strict enough to make claims about one.

Not understood, and refused: heredocs, parser directives, an escape character of one's own.
"""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Instruction:
    """One instruction; `flags` are its leading `--name=value` words."""

    keyword: str
    flags: tuple[tuple[str, str], ...]
    text: str

    def words(self) -> list[str]:
        return shlex.split(self.text)

    def pairs(self) -> dict[str, str]:
        """The `name=value` words of ENV, LABEL and ARG."""
        return {name: value for name, _, value in (word.partition("=") for word in self.words())}

    def exec_form(self) -> list[str]:
        """The words of an exec form. Raises ValueError for a shell form."""
        words = json.loads(self.text)
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise ValueError(f"not an exec form: {self.text}")
        return words

    def commands(self) -> list[list[str]]:
        """The simple commands of a RUN, operators between them included as one-word commands."""
        lexer = shlex.shlex(self.text, posix=True, punctuation_chars=";&|<>")
        lexer.whitespace_split = True
        commands: list[list[str]] = [[]]
        for word in lexer:
            if set(word) <= set(";&|"):
                commands += [[word], []]
            else:
                commands[-1].append(word)
        return [command for command in commands if command and command != [";"]]


@dataclass
class Stage:
    base: str
    name: str | None
    instructions: list[Instruction] = field(default_factory=list)

    def all(self, keyword: str) -> list[Instruction]:
        return [entry for entry in self.instructions if entry.keyword == keyword]

    def the(self, keyword: str) -> Instruction:
        """The only instruction of that kind. Raises ValueError when there is none or several."""
        (entry,) = self.all(keyword)
        return entry

    def environment(self) -> dict[str, str]:
        return {name: value for env in self.all("ENV") for name, value in env.pairs().items()}


@dataclass
class Dockerfile:
    arguments: dict[str, str]
    """ARGs before the first FROM."""
    stages: list[Stage]

    @classmethod
    def read(cls, path: Path = ROOT / "Dockerfile.downloader") -> Dockerfile:
        text = path.read_text(encoding="utf-8")
        if "<<" in text or re.match(r"#\s*\w+\s*=", text):
            raise ValueError("heredocs and parser directives are not understood here")
        lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
        joined = re.sub(r"\\\s*\n", " ", "\n".join(lines))
        found = cls({}, [])
        for line in filter(None, map(str.strip, joined.splitlines())):
            found._add(_instruction(line))
        return found

    def _add(self, entry: Instruction) -> None:
        if entry.keyword == "FROM":
            base, *alias = entry.words()
            self.stages.append(Stage(base, alias[1] if alias else None))
        elif self.stages:
            self.stages[-1].instructions.append(entry)
        elif entry.keyword == "ARG":
            self.arguments |= entry.pairs()
        else:
            raise ValueError(f"{entry.keyword} before the first FROM")


def _instruction(line: str) -> Instruction:
    keyword, _, rest = line.partition(" ")
    flags = []
    while match := re.match(r"\s*--([a-z-]+)=(\S+)\s*", rest):
        flags.append((match[1], match[2]))
        rest = rest[match.end() :]
    return Instruction(keyword.upper(), tuple(flags), rest.strip())
