"""What came of one order, as the log, stdout and the JSON document tell it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from downloader.orders import Order
from staging.cli import quantity
from staging.sync import SyncResult


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A result, the `seconds` that fetching took, and how often requests were repeated for it.

    `attempt` is the number of the attempt that did it.
    """

    order: Order
    result: SyncResult
    seconds: float
    retries: int
    attempt: int

    def line(self) -> str:
        """The result as it stands on stdout."""
        mark = " unverified" if self.result.unverified else ""
        return f"{self.order.directory} {self.result.id}{mark}"

    def text(self) -> str:
        """The result as the log tells it to people."""
        result, directory = self.result, self.order.directory
        if result.already_present:
            text = f"{directory} already holds {result.id}"
        else:
            text = (
                f"{directory} holds {result.id}: {result.files} files,"
                f" {quantity.size(result.total_size)}; {quantity.size(result.fetched_bytes)} fetched in"
                f" {self.seconds:.1f} s, {self._rate / 1e9:.2f} GB/s;"
                f" {quantity.size(self._reused)} reused; {quantity.retries(self.retries)}"
            )
        if result.unverified:
            text += "; unverified: no published manifest vouches for it"
        if self.attempt > 1:
            text += f"; at attempt {self.attempt}"
        return text

    def fields(self) -> dict[str, Any]:
        """The same as members of the log's line."""
        return {
            **self.document(),
            "reused_bytes": self._reused,
            "seconds": round(self.seconds, 3),
            "bytes_per_second": round(self._rate),
            "retries": self.retries,
            "attempt": self.attempt,
        }

    def document(self) -> dict[str, Any]:
        """The result as it stands in the JSON document."""
        result = self.result
        return {
            "uri": str(self.order.location),
            "directory": str(self.order.directory),
            "id": result.id,
            "files": result.files,
            "total_size": result.total_size,
            "fetched_files": result.fetched_files,
            "fetched_bytes": result.fetched_bytes,
            "already_present": result.already_present,
            "unverified": result.unverified,
        }

    @property
    def _reused(self) -> int:
        """Bytes that were here already: of files that stayed, and of files that were begun."""
        return self.result.total_size - self.result.fetched_bytes

    @property
    def _rate(self) -> float:
        return self.result.fetched_bytes / max(self.seconds, 1e-3)
