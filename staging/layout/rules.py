"""Rules of a servable checkpoint: pure functions from an inventory to findings.

An error means that the files would not serve, or not as meant; a warning is worth a look; advice is what to
know before a server is started. Rules judge names, sizes, headers and small documents only, so they can run
before any weight is read. They are data, in `RULES`, and live by family in `staging.layout.families`.

Two layouts are known to serve, and pass: Hugging Face's (`config.json`, `tokenizer.json`, shards and
their index) and the vendor's (`config.yaml`, `model.safetensors`, `tokenizer/`), whose configuration has no
published meaning and is not judged. What was not looked into breaks no rule.

`check` judges a whole checkpoint; `Gradual` one whose files pass by, as soon as something is certain.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Final

from staging.layout.facts import Facts
from staging.layout.families import (
    custom_code,
    hugging_face,
    index,
    names,
    others,
    parallel,
    quantisation,
    training,
    weights,
)
from staging.layout.inventory import Inventory
from staging.layout.rule import SEVERITIES, Family, Finding, Rule
from staging.layout.shards import Index

__all__ = ["FAMILIES", "RULES", "Finding", "Gradual", "advise", "check", "near_misses"]

FAMILIES: Final[tuple[Family, ...]] = (
    names.FAMILY,
    training.FAMILY,
    weights.FAMILY,
    index.FAMILY,
    hugging_face.FAMILY,
    custom_code.FAMILY,
    quantisation.FAMILY,
    others.MISTRAL,
    others.BUNDLE,
    others.DRAFT,
    others.ADAPTER,
    parallel.FAMILY,
)

RULES: Final[Mapping[str, Rule]] = {rule.id: rule for family in FAMILIES for rule in family.rules}
"""All rules by id, in the order of their findings."""

_NONE: Final[frozenset[str]] = frozenset()


def check(
    inventory: Inventory,
    ignore: Collection[str] = _NONE,
    *,
    strict: bool = False,
    allow: Iterable[str] = (),
    partial: bool = False,
) -> list[Finding]:
    """Errors and warnings of a checkpoint; errors come first, otherwise in the order of `RULES` and of paths.

    Rules in `ignore` are left out. `strict` makes warnings errors. `allow` are paths of pickles and programs
    that somebody wants to have. `partial` says that more files may follow: only what stays true is told.
    Raises ValueError for a rule in `ignore` that does not exist.
    """
    facts = Facts(inventory, allow=allow, partial=partial)
    return _apply(facts, ignore, lasting=partial, strict=strict)


def advise(inventory: Inventory, ignore: Collection[str] = _NONE) -> list[Finding]:
    """What to know about a checkpoint that serves: findings that are advice. Raises as `check` does."""
    return _apply(Facts(inventory), ignore, advice=True)


class Gradual:
    """Judges a checkpoint while its files pass by: what is certain whatever files follow, and no sooner.

    Each call looks at a few files alone, so that thousands of them cost no more than once each.
    """

    def __init__(
        self,
        ignore: Collection[str] = _NONE,
        *,
        strict: bool = False,
        allow: Iterable[str] = (),
    ) -> None:
        """`ignore`, `strict` and `allow` are those of `check`. Raises ValueError as it does."""
        _require_known(ignore)
        self._ignore = frozenset(ignore)
        self._strict = strict
        self._allow = frozenset(allow)
        self._indexes: dict[str, Index | str] = {}
        self._told: set[tuple[str, str | None, str]] = set()

    def judge(self, inventory: Inventory, fresh: Iterable[str]) -> list[Finding]:
        """Findings that are new, errors first; `fresh` are files of which more is known than before.

        A file comes with its name first, and again with its header or document.
        """
        facts = Facts(
            inventory, allow=self._allow, fresh=fresh, partial=True, indexes=self._indexes
        )
        found = []
        for finding in _apply(facts, self._ignore, lasting=True, strict=self._strict):
            key = finding.rule, finding.path, finding.message
            if key not in self._told:
                self._told.add(key)
                found.append(finding)
        return found


def near_misses(name: str) -> list[str]:
    """Ids of rules that look like `name`, the most alike first."""
    return difflib.get_close_matches(name.lower().replace("_", "-"), RULES, n=3, cutoff=0.5)


def _apply(
    facts: Facts,
    ignore: Collection[str],
    *,
    advice: bool = False,
    lasting: bool = False,
    strict: bool = False,
) -> list[Finding]:
    _require_known(ignore)
    findings = [
        finding
        for rule in RULES.values()
        if rule.id not in ignore
        and (rule.severity == "advice") is advice
        and (rule.lasting or not lasting)
        for finding in rule.findings(facts)
    ]
    if strict:
        findings = [replace(finding, severity="error") for finding in findings]
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))


def _require_known(ignore: Collection[str]) -> None:
    for name in ignore:
        if name not in RULES:
            raise ValueError(f"there is no rule {name!r}")
