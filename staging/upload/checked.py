"""Sending bytes again that arrived damaged: what lies in memory is still right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

from staging.store.store import Changed
from staging.vocabulary.errors import IntegrityError

Result = TypeVar("Result")

ATTEMPTS: Final = 3
"""Times something is sent when the store says that the checksum of its bytes does not match."""


def send_checked(send: Callable[[], Result], check: Callable[[], None] = lambda: None) -> Result:
    """Call `send`, and again when the store refuses the checksum: bytes flipped on the way, most likely.

    `check` is called in between and may raise. Raises IntegrityError when sending again does not help.
    """
    for _ in range(ATTEMPTS - 1):
        try:
            return send()
        except Changed:
            raise
        except IntegrityError:
            check()
    return send()
