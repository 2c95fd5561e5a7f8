"""What somebody decided about the rules: which do not count, and which files are wanted all the same.

A decision made when a checkpoint is published travels in its manifest (`layout.ignored`, `layout.allowed`),
so that a pod does not refuse what was let pass on purpose.

Invariants: `Policy.of(p.document()) == p`, but for `strict`, which is a matter of the moment.
Not guaranteed: that the rules which a manifest names are known here; those of other versions are passed over.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from staging.layout.inventory import Inventory
from staging.layout.rules import RULES, Finding, Gradual, check
from staging.vocabulary.errors import LayoutInvalid, Side

_SHOWN: Final = 3

_SETTLED_AS: Final = {
    "index-tensor-elsewhere": "tensor-twice",
    "index-tensor-missing": "index-tensor-elsewhere",
}
"""What a mistake may be once more shards have come: certain as one rule's while the other one counts too."""


@dataclass(frozen=True, slots=True)
class Policy:
    """Rules that are left out, and paths of pickles and programs that may be there.

    With `strict`, warnings are errors.
    """

    ignore: frozenset[str] = frozenset()
    allow: frozenset[str] = frozenset()
    strict: bool = False

    @classmethod
    def of(cls, layout: Mapping[str, Any]) -> Policy:
        """The decisions in the `layout` section of a manifest; whatever is not understood is none."""
        return cls(
            ignore=frozenset(_texts(layout.get("ignored"))) & RULES.keys(),
            allow=frozenset(_texts(layout.get("allowed"))),
        )

    def document(self) -> dict[str, list[str]]:
        """What goes into the `layout` section of a manifest; nothing where nothing was decided."""
        decided = {"ignored": sorted(self.ignore), "allowed": sorted(self.allow)}
        return {name: values for name, values in decided.items() if values}

    def check(self, inventory: Inventory) -> list[Finding]:
        """Errors and warnings of a checkpoint, errors first."""
        return check(inventory, self.ignore, strict=self.strict, allow=self.allow)

    def gradual(self) -> Gradual:
        """The same, of a checkpoint whose files pass by."""
        unsure = {early for early, later in _SETTLED_AS.items() if later in self.ignore}
        return Gradual(self.ignore | unsure, strict=self.strict, allow=self.allow)


EVERY_RULE: Final = Policy()
"""All rules count, and nothing is allowed that they refuse."""


def require(findings: Sequence[Finding], what: str, *, hint: str, side: Side) -> None:
    """Raise LayoutInvalid when there is an error among the findings of `what`.

    `hint` follows the fix of the first one.
    """
    errors = [finding for finding in findings if finding.severity == "error"]
    if not errors:
        return
    shown = "; ".join(finding.message for finding in errors[:_SHOWN])
    more = f"; and {len(errors) - _SHOWN} more" if len(errors) > _SHOWN else ""
    raise LayoutInvalid(
        f"{what} would not serve: {shown}{more}",
        reference=errors[0].rule,
        hint=f"{errors[0].hint}; {hint}",
        side=side,
    )


def _texts(values: object) -> Iterable[str]:
    return [v for v in values if isinstance(v, str)] if isinstance(values, list) else []
