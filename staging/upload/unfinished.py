"""Unfinished uploads below a prefix: finding them by their records, and dropping those nobody works on.

    list records -> read them -> list the parts that wait -> age is the time since anything moved

All times are the store's. A run that is alive shows itself by the parts it sends; a source that stalls for
longer than the age given makes its run look dead, and dropping it then costs what it had sent.
"""

from __future__ import annotations

import datetime
import functools
from collections.abc import Iterable
from dataclasses import dataclass

from staging.store.store import ObjectInfo, Store
from staging.transfer.scheduler import Scheduler
from staging.upload.leftovers import abort_uploads, delete_records
from staging.upload.records import FoundRecord, FoundRuns, read_runs, run_token
from staging.vocabulary.errors import AccessDenied, NotFound
from staging.vocabulary.location import S3Location
from staging.vocabulary.paths import CONTROL_DIRECTORY

_CALLS_AT_ONCE = 16
_RECORDS = f"{CONTROL_DIRECTORY}/upload/"


@dataclass(frozen=True, slots=True)
class Unfinished:
    """One run that has not finished: its uploads and the bytes that wait in them.

    `last_moved` is the store's time of the last thing that it did, None where the store tells no times.
    """

    location: S3Location
    token: str
    files: int
    waiting_bytes: int
    last_moved: datetime.datetime | None
    found: FoundRuns

    def is_stale(self, now: datetime.datetime, age: datetime.timedelta) -> bool:
        """True when nothing has moved for `age`. A run that tells no times is stale only at age zero."""
        if self.last_moved is None or not age:
            return not age
        return now - self.last_moved >= age


def find_unfinished(store: Store, root: S3Location) -> list[Unfinished]:
    """The unfinished uploads below `root`, itself included, in byte order of their prefixes."""
    by_prefix: dict[str, list[ObjectInfo]] = {}
    for info in store.list_objects(root.prefix):
        above, separator, _ = info.key.rpartition(_RECORDS)
        if separator and (not above or above.endswith("/")):
            by_prefix.setdefault(above, []).append(info)
    return [
        unfinished
        for prefix, objects in by_prefix.items()
        for unfinished in _runs(store, S3Location(root.bucket, prefix), objects)
    ]


def drop(store: Store, unfinished: Unfinished) -> list[str]:
    """Abort the uploads of a run and delete its records. Returns what is left, described."""
    uploads = [found.record.upload for found in unfinished.found.records]
    return abort_uploads(store, uploads) or delete_records(store, unfinished.found)


def _runs(store: Store, location: S3Location, objects: Iterable[ObjectInfo]) -> list[Unfinished]:
    found = read_runs(store, location, objects)
    tokens = {record.token for record in found.records} | {run_token(run) for run in found.runs}
    return [
        _measure(
            store,
            location,
            token,
            FoundRuns(
                tuple(record for record in found.records if record.token == token),
                tuple(run for run in found.runs if run_token(run) == token),
            ),
        )
        for token in sorted(tokens)
    ]


def _measure(store: Store, location: S3Location, token: str, found: FoundRuns) -> Unfinished:
    times = [run.modified for run in found.runs]
    sizes: list[int] = []

    def look(record: FoundRecord) -> None:
        times.extend(info.modified for info in record.objects)
        try:
            parts = list(store.list_parts(record.record.upload))
        except NotFound:
            return  # completed, or aborted by somebody else
        except AccessDenied:
            times.append(None)  # a run may be at work unseen
            return
        sizes.extend(part.size for part in parts)
        times.extend(part.modified for part in parts)

    with Scheduler(_CALLS_AT_ONCE, name="unfinished") as scheduler:
        for record in found.records:
            scheduler.submit(functools.partial(look, record))
        scheduler.finish()
    known = [time for time in times if time is not None]
    last = max(known) if known and len(known) == len(times) else None
    return Unfinished(location, token, len(found.records), sum(sizes), last, found)
