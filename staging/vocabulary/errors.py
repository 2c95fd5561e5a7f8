"""Errors of the library: one class per kind of outcome, each owning its exit code.

    StagingError                 1   unclassified
    +-- UsageError               2   the command line or the configuration is wrong
    +-- NotFound                10   bucket, prefix, file or manifest is not there
    +-- IntegrityError          11   bytes differ from what the manifest names
    +-- AccessDenied            12   credentials are missing, wrong, expired or too weak
    +-- StoreUnavailable        13   the store did not answer after retries; run again as it is
    +-- NoSpace                 14   the local disk cannot hold the result
    +-- Conflict                15   something else is already there
    +-- MalformedInput          16   unsafe, ambiguous or damaged input is refused
    +-- LayoutInvalid           17   the files would not serve
    +-- Stalled                 18   no progress, or a deadline passed
    +-- Interrupted        130/143   a signal asked to stop

Invariants: a code never changes its meaning; the message is one line and says what failed and where;
`reference` is a kebab-case name for the cause, listed in docs/scripting.md; neither message nor hint
ever carries a credential, a signature or a query string (I13).
"""

from __future__ import annotations

import signal
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Final, Literal

from staging.vocabulary.redaction import one_line

Side = Literal["source", "store", "local"]


class StagingError(Exception):
    """Base of every error an operator can meet.

    `reference` names the cause for scripts and documentation, `hint` says what to do next, and
    `side` tells where it happened: the source, the store, or the local machine. `document` holds what
    a program with `--json` shows beside the error, such as all findings of a check.
    """

    exit_code: ClassVar[int] = 1

    def __init__(
        self,
        message: str,
        *,
        reference: str,
        hint: str | None = None,
        side: Side | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reference = reference
        self.hint = hint
        self.side = side
        self.document: dict[str, Any] = {}

    @property
    def code(self) -> int:
        """The exit code of a program that ends with this error."""
        return self.exit_code


class UsageError(StagingError):
    """The command line, the configuration or an argument is wrong."""

    exit_code = 2


class NotFound(StagingError):
    """A bucket, prefix, file or manifest does not exist."""

    exit_code = 10


class IntegrityError(StagingError):
    """Bytes differ from the digest, size or checksum that names them."""

    exit_code = 11


class AccessDenied(StagingError):
    """The store refused the credentials, or there are none."""

    exit_code = 12


class StoreUnavailable(StagingError):
    """The store could not be reached or kept failing; running again as it is helps."""

    exit_code = 13


class NoSpace(StagingError):
    """The local filesystem cannot hold the result."""

    exit_code = 14


class Conflict(StagingError):
    """Something that is not ours, or a different version, is already there."""

    exit_code = 15


class MalformedInput(StagingError):
    """Input is unsafe, ambiguous or damaged and was refused."""

    exit_code = 16


class LayoutInvalid(StagingError):
    """The files are intact but would not serve as a checkpoint."""

    exit_code = 17


class Stalled(StagingError):
    """No progress for too long, or a deadline passed; running again as it is helps."""

    exit_code = 18


class Interrupted(StagingError):
    """A signal asked the program to stop."""

    def __init__(
        self, message: str, *, signal_number: int = signal.SIGINT, hint: str | None = None
    ) -> None:
        super().__init__(message, reference="interrupted", hint=hint, side="local")
        self.signal_number = signal_number

    @property
    def code(self) -> int:
        """128 plus the signal's number, the convention of shells."""
        return 128 + self.signal_number


GRAVITY: Final = (2, 12, 10, 11, 16, 17, 15, 14, 1, 18, 13)
"""Exit codes, the gravest first: which of several failures a program ends with.

What has to be mended before the others can be seen comes first: settings, then access, then what is there.
Next comes what is wrong with the checkpoint, for no change on this machine helps there, and then this
machine. Last come the two that promise that running again as it is helps: with anything else to mend it
does not.
"""

_MOST_NOTES: Final = 20


def by_gravity(errors: Iterable[StagingError]) -> list[StagingError]:
    """The errors, the gravest first, without those that say the same again."""
    ranks = {code: rank for rank, code in enumerate(GRAVITY)}
    distinct: dict[tuple[str, str], StagingError] = {}
    for error in errors:
        distinct.setdefault((error.reference, error.message), error)
    return sorted(distinct.values(), key=lambda error: ranks.get(error.code, -1))


def together(errors: Sequence[StagingError]) -> StagingError:
    """One error for several: the gravest, with the others as notes and all as `document["findings"]`.

    The gravest is the first in the order of `GRAVITY` (an interruption comes before everything). A single
    error comes back as it is. Raises ValueError when there is none.
    """
    if not errors:
        raise ValueError("no error to raise")
    gravest, *others = by_gravity(errors)
    if not others:
        return gravest
    kind = type(gravest)
    whole = kind.__new__(kind, gravest.message)  # subclasses have arguments of their own
    whole.__dict__.update(vars(gravest))
    whole.__cause__ = gravest.__cause__ or gravest
    whole.document = {
        **gravest.document,
        "findings": [finding(error) for error in (gravest, *others)],
    }
    whole.__notes__ = [
        *getattr(gravest, "__notes__", ()),
        *(_in_one_line(error) for error in others[:_MOST_NOTES]),
    ]
    if len(others) > _MOST_NOTES:
        whole.add_note(f"and {len(others) - _MOST_NOTES} more")
    return whole


def finding(error: StagingError) -> dict[str, Any]:
    """An error as one of several stands in JSON documents."""
    return {
        "code": error.code,
        "reference": error.reference,
        "side": error.side,
        "message": one_line(error.message),
        "hint": None if error.hint is None else one_line(error.hint),
    }


def _in_one_line(error: StagingError) -> str:
    side = f"{error.side}: " if error.side else ""
    advice = f"; hint: {error.hint}" if error.hint else ""
    more = "".join(f"; {note}" for note in getattr(error, "__notes__", ()))
    return one_line(
        f"also exit {error.code}: {side}{error.message} [{error.reference}]{advice}{more}"
    )
