"""Why a plan is refused: one error for all that stands in the way."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from staging.sync.plan import Refuse
from staging.vocabulary.errors import Conflict

_SHOWN: Final = 5

_HINTS: Final = {
    "symlink": "replace the links by real directories and files, or give another directory",
    "foreign-file": "move these files away, or give a directory of its own; to have a damaged file"
    " fetched again, delete it",
    "foreign-weights": "move these files away, or give a directory of its own: a server loads every"
    " weight file it finds",
}


def refusal_of(refusals: Sequence[Refuse], directory: Path) -> Conflict | None:
    """The error for a plan with these refusals; None when there is none."""
    if not refusals:
        return None
    shown = "; ".join(f"{refusal.path!r} {refusal.reason}" for refusal in refusals[:_SHOWN])
    more = f"; and {len(refusals) - _SHOWN} more" if len(refusals) > _SHOWN else ""
    reference = refusals[0].reference
    return Conflict(
        f"{str(directory)!r} is not free for this checkpoint: {shown}{more}",
        reference=reference,
        hint=_HINTS[reference],
        side="local",
    )
