"""Scripted faults: which requests an action is for.

A `Fault` names requests; every one that matches counts, whether or not the action fires on it.
Occurrences are counted in order of arrival, when the request's head was read and its body was not.
All actions that fire on a request apply, in the order they were scripted; the first that answers
in place of the operation wins.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass

from tests.support.s3server.actions import Action, Gate
from tests.support.s3server.log import KeyPattern, Request, key_matches


@dataclass(frozen=True)
class Fault:
    """An action and the requests it is for; None matches any.

    `occurrence` counts matching requests from 1: a number, several (`range(1, 4)`), or None for every
    one. `where` is a last predicate of the request.
    """

    operation: str | None
    action: Action
    occurrence: int | Collection[int] | None = 1
    key: KeyPattern = None
    access_key: str | None = None
    part_number: int | None = None
    where: Callable[[Request], bool] | None = None

    def matches(self, request: Request) -> bool:
        return (
            (self.operation is None or self.operation == request.operation)
            and key_matches(self.key, request.key)
            and (self.access_key is None or self.access_key == request.access_key)
            and (self.part_number is None or self.part_number == request.part_number)
            and (self.where is None or self.where(request))
        )

    def fires_on(self, occurrence: int) -> bool:
        if self.occurrence is None:
            return True
        if isinstance(self.occurrence, int):
            return self.occurrence == occurrence
        return occurrence in self.occurrence


@dataclass(slots=True)
class _Entry:
    fault: Fault
    seen: int = 0
    fired: int = 0


class Script:
    """The faults of a server and how often each has been met."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: list[_Entry] = []

    def add(self, fault: Fault) -> None:
        with self._lock:
            self._entries.append(_Entry(fault))

    def clear(self) -> None:
        """Forget all faults and let go whoever is held."""
        with self._lock:
            entries, self._entries = self._entries, []
        for entry in entries:
            if isinstance(entry.fault.action, Gate):
                entry.fault.action.release()

    def unfired(self) -> list[Fault]:
        """Faults that have not hit a request yet."""
        with self._lock:
            return [entry.fault for entry in self._entries if not entry.fired]

    def actions_for(self, request: Request) -> tuple[Action, ...]:
        """Count the request and return the actions that fire on it."""
        actions: list[Action] = []
        with self._lock:
            for entry in self._entries:
                if entry.fault.matches(request):
                    entry.seen += 1
                    if entry.fault.fires_on(entry.seen):
                        entry.fired += 1
                        actions.append(entry.fault.action)
        return tuple(actions)
