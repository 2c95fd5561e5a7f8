"""Rules of a deployment, their findings, and the facts about the bucket that they judge."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from staging.layout.gpus import Instance
from staging.values.deployment import Deployment
from staging.values.document import Value
from staging.vocabulary.errors import StagingError
from staging.vocabulary.location import S3Location

Severity = Literal["error", "warning", "advice"]


@dataclass(frozen=True, slots=True)
class Published:
    """What lies under a prefix: the manifest's facts, sizes in bytes, and what a listing lacks of it."""

    id: str
    files: int
    total_size: int
    layout: Mapping[str, Any]
    problems: tuple[str, ...] = ()


Checkpoint = Published | StagingError
"""What is known about a prefix: what is published there, or why that could not be read."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What a values file does not say: the bucket, the nodes, and whom the role trusts.

    A prefix that `checkpoints` does not name was not looked at. `nodes` is None where nobody told.
    """

    checkpoints: Mapping[S3Location, Checkpoint]
    instance: Instance
    nodes: int | None
    trusted: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that a rule found. `path` and `line` say where in the values file.

    `code` is the exit code that it stands for when it is an error; `cause` is the reference of what the
    store said, where that is the reason, and `notes` what it adds, such as the statement that a policy lacks.
    `model` is the key of the model that it is about.
    """

    rule: str
    severity: Severity
    code: int
    path: str
    line: int
    message: str
    hint: str
    model: str | None = None
    cause: str | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a rule's function yields: a place and words. The rest is the rule's, unless told here."""

    place: Value
    message: str
    hint: str | None = None
    model: str | None = None
    code: int | None = None
    cause: str | None = None
    notes: tuple[str, ...] = ()
    path: str | None = None


Look = Callable[[Deployment, Facts], Iterator[Found]]


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule as data: `reason` is one line, `fix` what to do, `source` where it comes from.

    `code` is the exit code that an error of this rule stands for: 2 for settings that are wrong, 10 to 18
    for what is wrong with the checkpoint.
    """

    id: str
    severity: Severity
    code: int
    reason: str
    fix: str
    source: str
    look: Look

    def findings(self, deployment: Deployment, facts: Facts) -> Iterator[Finding]:
        """Apply the rule."""
        for found in self.look(deployment, facts):
            yield Finding(
                rule=self.id,
                severity=self.severity,
                code=self.code if found.code is None else found.code,
                path=found.path or found.place.name,
                line=found.place.line,
                message=found.message,
                hint=found.hint or self.fix,
                model=found.model or deployment.key_above(found.place.path),
                cause=found.cause,
                notes=found.notes,
            )


def rule(
    name: str, severity: Severity, *, reason: str, fix: str, source: str, code: int = 2
) -> Callable[[Look], Rule]:
    """Make a rule of a generator function."""
    return lambda look: Rule(name, severity, code, reason, fix, source, look)
