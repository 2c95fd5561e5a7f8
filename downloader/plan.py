"""What a run would do for one order, as `--dry-run` tells it on stdout and in the JSON document."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from downloader.orders import Order
from staging.cli import quantity
from staging.sync import SyncResult
from staging.sync.preflight import Examination


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is `there` already, or what an `examination` without findings says of the rest.

    Nobody knows the id of what goes `unverified` before its bytes are read.
    """

    order: Order
    there: SyncResult | None
    examination: Examination | None
    unverified: bool

    def line(self) -> str:
        """The plan as it stands on stdout."""
        found = self.document()
        line = f"{found['directory']} {found['id'] or 'unverified'}"
        if found["already_present"]:
            return f"{line} already there"
        text = (
            f"{line} {found['fetch_files']} of {found['files']} files to fetch,"
            f" {quantity.size(found['fetch_bytes'])}"
        )
        if found["check_files"]:
            text += f"; {found['check_files']} to check, {quantity.size(found['check_bytes'])}"
        if found["remove_files"]:
            text += f"; {found['remove_files']} to remove"
        return f"{text}{room(found['needed_bytes'], found['free_bytes'])}"

    def document(self) -> dict[str, Any]:
        """The plan as it stands in the JSON document."""
        where = {"uri": str(self.order.location), "directory": str(self.order.directory)}
        if self.there is not None:
            return {
                **where,
                "id": self.there.id,
                "files": self.there.files,
                "total_size": self.there.total_size,
                "already_present": True,
                "fetch_files": 0,
                "fetch_bytes": 0,
                "partial_bytes": 0,
                "check_files": 0,
                "check_bytes": 0,
                "remove_files": 0,
                "needed_bytes": 0,
                "free_bytes": None,
            }
        found = self.examination
        assert found is not None  # noqa: S101 - asked for when all were examined
        manifest = found.preflight.require()
        return {
            **where,
            "id": None if self.unverified else manifest.id,
            "files": len(manifest.files),
            "total_size": manifest.total_size,
            "already_present": False,
            "fetch_files": found.fetched_files,
            "fetch_bytes": found.fetched_bytes,
            "partial_bytes": found.partial_bytes,
            "check_files": found.checked_files,
            "check_bytes": found.checked_bytes,
            "remove_files": found.removed_files,
            "needed_bytes": found.preflight.needed_bytes,
            "free_bytes": found.preflight.free_bytes,
        }


def room(needed: int | None, free: int | None) -> str:
    """What of a disk is needed and free, in bytes, at the end of a line; nothing of what nobody knows."""
    text = "" if needed is None else f"; {quantity.size(needed)} of disk needed"
    return text if free is None else f"{text}, {quantity.size(free)} free"
