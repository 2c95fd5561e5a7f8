"""The request log: every request in the order of arrival, with what became of it.

An entry is complete before the first byte of its answer is sent, so a client that holds an answer
finds it in the log. Entries never change; the log replaces an entry when its answer is known.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, overload

if TYPE_CHECKING:
    from tests.support.s3server.actions import Action

KeyPattern = str | Callable[[str], bool] | None
"""A key, a predicate of keys, or None for any."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request.

    `sequence` counts arrivals from 0. `status` is None while the request is held, and for good when
    the connection was dropped without an answer. `sent` counts body bytes of the answer. `executed`
    says whether the operation ran; `faults` are the scripted actions that applied.
    """

    sequence: int
    operation: str
    method: str
    bucket: str
    key: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    access_key: str | None
    region: str | None
    body_length: int
    status: int | None = None
    sent: int = 0
    executed: bool = False
    faults: tuple[Action, ...] = field(default=())

    @property
    def content_sha256(self) -> str | None:
        """What the client says about its body: a digest or UNSIGNED-PAYLOAD."""
        return self.headers.get("x-amz-content-sha256")

    @property
    def part_number(self) -> int | None:
        return int(self.query["partNumber"]) if "partNumber" in self.query else None

    @property
    def range(self) -> str | None:
        return self.headers.get("range")

    @property
    def user_agent(self) -> str:
        return self.headers.get("user-agent", "")


def key_matches(pattern: KeyPattern, key: str) -> bool:
    if pattern is None:
        return True
    return pattern == key if isinstance(pattern, str) else pattern(key)


class RequestLog(Sequence[Request]):
    """The requests so far. Indexing and iteration work on what there is at that moment."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: list[Request] = []
        self._first = 0

    def snapshot(self) -> tuple[Request, ...]:
        with self._lock:
            return tuple(self._entries)

    def __len__(self) -> int:
        return len(self.snapshot())

    def __iter__(self) -> Iterator[Request]:
        return iter(self.snapshot())

    @overload
    def __getitem__(self, index: int) -> Request: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Request, ...]: ...
    def __getitem__(self, index: int | slice) -> Request | tuple[Request, ...]:
        return self.snapshot()[index]

    def of(
        self,
        *operations: str,
        key: KeyPattern = None,
        access_key: str | None = None,
        status: int | None = None,
    ) -> tuple[Request, ...]:
        """Requests of these operations (of any, when none is named) that match all that is given."""
        return tuple(
            entry
            for entry in self.snapshot()
            if (not operations or entry.operation in operations)
            and key_matches(key, entry.key)
            and (access_key is None or entry.access_key == access_key)
            and (status is None or entry.status == status)
        )

    def count(
        self,
        *operations: str,
        key: KeyPattern = None,
        access_key: str | None = None,
        status: int | None = None,
    ) -> int:
        return len(self.of(*operations, key=key, access_key=access_key, status=status))

    def operations(self) -> list[str]:
        """Names of the operations in order of arrival."""
        return [entry.operation for entry in self.snapshot()]

    def received(self, *operations: str) -> int:
        """Bytes of request bodies."""
        return sum(entry.body_length for entry in self.of(*operations))

    def sent(self, *operations: str) -> int:
        """Bytes of response bodies."""
        return sum(entry.sent for entry in self.of(*operations))

    def clear(self) -> None:
        """Forget the requests so far. Sequence numbers go on."""
        with self._lock:
            self._first += len(self._entries)
            self._entries.clear()

    def arrived(self, make: Callable[[int], Request]) -> Request:
        """Append the request that `make` returns for its sequence number."""
        with self._lock:
            entry = make(self._first + len(self._entries))
            self._entries.append(entry)
            return entry

    def amend(self, sequence: int, **changes: object) -> None:
        """Replace fields of an entry, unless the log was cleared since it arrived."""
        with self._lock:
            index = sequence - self._first
            if index >= 0:
                self._entries[index] = replace(self._entries[index], **changes)  # type: ignore[arg-type]
