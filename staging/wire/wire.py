"""What the S3 store needs of a wire: requests go out, answers or one kind of error come back.

A wire signs, sends, and repeats single requests that failed in ways a repeat can mend. It knows
nothing of checkpoints, and its errors are facts, not advice: `staging.store.s3` turns them into
errors for people.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

Cause = Literal["answer", "connection", "stalled", "credentials", "configuration", "request"]
"""The store's answer; no connection; a connection on which nothing moves, or next to nothing; no
credentials; unusable settings; a request never sent."""


@dataclass(slots=True)
class WireError(Exception):
    """A request that failed for good.

    `cause` tells what kind of failure it was; for an `answer`, `status` and `code` are the store's.
    For `credentials` they may be those of the service that gives them, and `operation` is its then.
    `server_time_skew` is local time minus the store's clock in seconds, where the answer told it.
    """

    operation: str
    cause: Cause
    code: str
    message: str
    status: int | None = None
    server_time_skew: float | None = None

    def __str__(self) -> str:
        return f"{self.operation}: {self.code}: {self.message}"


class BodyBroken(Exception):
    """A response body ended before its length was reached."""


class BodyStalled(BodyBroken):
    """A response body was given up because nothing of it came any more, or next to nothing."""


class Stopped(Exception):
    """The work was called off while a request waited, or was on its way."""


class Body(Protocol):
    """The body of an answer, to be read once and closed."""

    def read_into(self, view: memoryview) -> int:
        """Read some bytes into `view`; 0 means the body is over. Raises BodyBroken, Stopped."""
        ...

    def close(self) -> None:
        """Give the connection back, or drop it when the body was not read to its end."""
        ...


class Wire(Protocol):
    """Sends S3 requests. Safe to use from several threads."""

    def call(self, operation: str, parameters: Mapping[str, Any]) -> Mapping[str, Any]:
        """Perform an S3 operation by its API name and return the parsed answer. Raises WireError, Stopped."""
        ...

    def get(self, parameters: Mapping[str, Any]) -> tuple[Mapping[str, Any], Body]:
        """Perform GetObject and return the parsed answer and its body. Raises WireError, Stopped."""
        ...
