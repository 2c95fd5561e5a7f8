"""One line of a doctor's report."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "missing", "unknown"]
"""It is there; it is not; nobody could tell."""

Group = Literal["connection", "bucket", "permission", "store"]
"""Who asks and where, how the bucket is set up, what the role may do, what the store can do."""


@dataclass(frozen=True, slots=True)
class Check:
    """What was looked at, how it is, what needs it, and what was seen, in one line each.

    `required` marks what an upload or a download cannot do without; the rest makes them better.
    """

    group: Group
    name: str
    state: State
    needed_for: str
    detail: str
    required: bool = False
    hint: str | None = None


def missing_permissions(checks: Iterable[Check]) -> list[Check]:
    """The permissions that something cannot do without and that the role does not have."""
    return [
        check
        for check in checks
        if check.required and check.group == "permission" and check.state == "missing"
    ]


def merged(read: Iterable[Check], written: Iterable[Check]) -> list[Check]:
    """The lines of both tests, one for each name. What is missing anywhere is missing."""
    found: dict[tuple[Group, str], Check] = {}
    for check in [*read, *written]:
        before = found.get((check.group, check.name))
        if before is None or before.state == "unknown" or check.state == "missing":
            found[check.group, check.name] = check
    return list(found.values())
