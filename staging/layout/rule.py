"""Rules as data: what each is called, how grave it is, why it exists, and the function that looks for it.

A family is a group of rules about one kind of checkpoint. A rule is a generator function from `Facts` to
`Evidence`, registered in its family under its id:

    @FAMILY.rule("config-missing", "warning", reason="...", fix="...", source="...")
    def _config_missing(facts: Facts) -> Iterator[Evidence]: ...

Invariants: an id never changes its meaning; `fix` is what a finding advises unless its evidence knows better.
A `lasting` rule only looks at the files in `facts.fresh`, and what it finds there stays true whatever files
come later; all others need the whole checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal

from staging.layout.facts import Facts

Severity = Literal["error", "warning", "advice"]
"""An error: the files would not serve, or not as meant. A warning is worth a look. Advice is what to know."""

SEVERITIES: Final[tuple[Severity, ...]] = ("error", "warning", "advice")
"""The gravest first."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing a rule found. `path` is the file it is about, None when it is about the whole.

    `field` and `value` are the evidence inside that file, where there is some: a key of a document, the name
    of a tensor.
    """

    rule: str
    severity: Severity
    path: str | None
    message: str
    hint: str
    field: str | None = None
    value: Any = None


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a rule's function found; `severity` and `hint` only where they are not those of the rule."""

    path: str | None
    message: str
    field: str | None = None
    value: Any = None
    severity: Severity | None = None
    hint: str | None = None


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule. `severity` is that of its gravest findings, `milder` one that others have.

    `source` is where the failure it prevents was seen, or where a server's code shows it.
    """

    id: str
    severity: Severity
    family: str
    reason: str
    fix: str
    source: str
    judge: Callable[[Facts], Iterator[Evidence]]
    lasting: bool = False
    milder: Severity | None = None

    @property
    def severities(self) -> tuple[Severity, ...]:
        """All severities that findings of this rule can have, the gravest first."""
        return (self.severity,) if self.milder is None else (self.severity, self.milder)

    def findings(self, facts: Facts) -> Iterator[Finding]:
        """Apply the rule."""
        for found in self.judge(facts):
            yield Finding(
                self.id,
                found.severity or self.severity,
                found.path,
                found.message,
                found.hint or self.fix,
                found.field,
                found.value,
            )


class Family:
    """The rules about one kind of checkpoint, in the order of their findings."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.rules: list[Rule] = []

    def rule(
        self,
        id: str,  # noqa: A002 - what it is called everywhere
        severity: Severity,
        *,
        reason: str,
        fix: str,
        source: str,
        lasting: bool = False,
        milder: Severity | None = None,
    ) -> Callable[[Callable[[Facts], Iterator[Evidence]]], Rule]:
        """Register a function as a rule of this family."""

        def register(judge: Callable[[Facts], Iterator[Evidence]]) -> Rule:
            made = Rule(id, severity, self.name, reason, fix, source, judge, lasting, milder)
            self.rules.append(made)
            return made

        return register
