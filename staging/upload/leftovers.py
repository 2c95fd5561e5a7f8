"""Dropping what uploads leave open: multipart uploads and the records that name them.

Ours is what is recorded. An upload may also have been opened by a run that died before it could record it;
it is taken for ours only if all of this holds: it lies at a key of this checkpoint, it is not recorded, a run
had begun before it was opened (both by the store's clock), and nothing was ever sent into it. Nobody
else's upload is touched.

Nothing here fails for want of a permission: what could not be dropped is returned, described for people.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Final

from staging.store.store import ListedUpload, MultipartUpload, ObjectInfo, Store
from staging.transfer.scheduler import Scheduler
from staging.upload.records import FoundRuns, read_runs, run_token, runs_prefix
from staging.upload.staged import StagedFile
from staging.vocabulary.errors import AccessDenied, NotFound, StagingError, StoreUnavailable
from staging.vocabulary.location import S3Location

_CALLS_AT_ONCE: Final = 16


def abort_staged(store: Store, files: Iterable[StagedFile]) -> list[str]:
    """Abort the uploads of files that were given up. Returns what is left, described."""
    waiting = [staged for staged in files if staged.give_up()]
    return _each(
        [(_described(store, staged), functools.partial(staged.abort, store)) for staged in waiting]
    )


def _described(store: Store, staged: StagedFile) -> str:
    place = f"s3://{store.bucket}/{staged.key}"
    if staged.upload is None:
        return f"a multipart upload of {place}"
    return f"multipart upload {staged.upload.upload_id} of {place}"


def sweep(
    store: Store, location: S3Location, keys: Collection[str], settled: Collection[str]
) -> list[str]:
    """Drop the records of all runs under a published prefix, and every upload of ours that is open.

    Call it once nothing can be published there any more: whoever still uploads has lost. `keys` are the
    checkpoint's, `settled` the ids of uploads known to be completed or aborted.
    """
    try:
        objects = list(store.list_objects(runs_prefix(location)))
        if not objects:
            return []
        found = read_runs(store, location, objects)
        uploads = {record.record.upload for record in found.records}
        orphans = _orphans(store, location, found, keys)
    except StagingError as error:
        return [f"s3://{store.bucket}/{runs_prefix(location)} ({error.reference})"]
    left = abort_uploads(
        store, [upload for upload in uploads if upload.upload_id not in settled] + orphans
    )
    # What a record names and is open still must not lose it: it could not be found again.
    return left or delete_records(store, found)


def drop_records(
    store: Store,
    location: S3Location,
    uploads: Collection[MultipartUpload],
    token: str,
    keys: Collection[str],
) -> list[str]:
    """Delete the records of uploads that were aborted, and of their runs and the run `token` if done with.

    Uploads at `keys` that were opened and never recorded are aborted.

    Returns what is left, described.
    """
    try:
        found = read_runs(store, location, store.list_objects(runs_prefix(location)))
    except StagingError as error:
        return [f"s3://{store.bucket}/{runs_prefix(location)} ({error.reference})"]
    left = abort_uploads(store, _orphans(store, location, found, keys))
    if left:
        return left
    gone = [record for record in found.records if record.record.upload in uploads]
    kept = {record.token for record in found.records if record.record.upload not in uploads}
    ours = {run_token(run) for run in found.runs if run_token(run).partition("-")[0] == token}
    tokens = (ours | {record.token for record in gone}) - kept
    runs = [run for run in found.runs if run_token(run) in tokens]
    return delete_records(store, FoundRuns(tuple(gone), tuple(runs)))


def abort_uploads(store: Store, uploads: Sequence[MultipartUpload]) -> list[str]:
    """Abort open uploads. Returns what is left, described."""
    return _each(
        [
            (
                f"multipart upload {upload.upload_id} of s3://{store.bucket}/{upload.key}",
                functools.partial(store.abort_multipart_upload, upload),
            )
            for upload in uploads
        ]
    )


def delete_records(store: Store, found: FoundRuns) -> list[str]:
    """Delete records, those that name uploads first. Returns what is left, described."""
    records = [info for record in found.records for info in record.objects]
    return _delete(store, records) or _delete(store, found.runs)


def _delete(store: Store, objects: Sequence[ObjectInfo]) -> list[str]:
    left = _each(
        [
            (
                f"s3://{store.bucket}/{info.key}",
                functools.partial(store.delete, info.key, etag=info.etag),
            )
            for info in objects
        ]
    )
    if len(left) <= 1:
        return left
    return [f"{left[0]}, and {len(left) - 1} records of uploads beside it"]


def _orphans(
    store: Store, location: S3Location, found: FoundRuns, keys: Collection[str]
) -> list[MultipartUpload]:
    """Uploads that a run opened and died before it could record them."""
    began = min((run.modified for run in found.runs if run.modified is not None), default=None)
    if began is None:
        return []
    recorded = {record.record.upload for record in found.records}
    try:
        listed = list(store.list_multipart_uploads(location.prefix))
    except StagingError:
        return []  # a role need not be allowed to look, nor a store be able to: lifecycle rules end them

    def ours(open_: ListedUpload) -> bool:
        return (
            open_.upload not in recorded
            and open_.upload.key in keys
            and open_.initiated is not None
            # Clocks of listings tick in seconds at some stores.
            and open_.initiated >= began.replace(microsecond=0)
            and _is_empty(store, open_.upload)
        )

    return [open_.upload for open_ in listed if ours(open_)]


def _is_empty(store: Store, upload: MultipartUpload) -> bool:
    try:
        return next(iter(store.list_parts(upload)), None) is None
    except (NotFound, AccessDenied):
        return False


def _each(calls: Sequence[tuple[str, Callable[[], object]]]) -> list[str]:
    """Make calls in parallel. Returns what failed, described.

    Stops at the first sign that the store does not answer, for each try would take minutes, and at
    the first refusal, for the others would be refused as well.
    """
    left = {what: f"{what} (not tried)" for what, _ in calls}
    hopeless = threading.Event()

    def attempt(what: str, call: Callable[[], object]) -> None:
        if hopeless.is_set():
            return
        try:
            call()
        except StagingError as error:
            left[what] = f"{what} ({error.reference})"
            if isinstance(error, (StoreUnavailable, AccessDenied)):
                hopeless.set()
        else:
            left.pop(what, None)

    with Scheduler(_CALLS_AT_ONCE, name="clean-up") as scheduler:
        for what, call in calls:
            scheduler.submit(functools.partial(attempt, what, call))
        scheduler.finish()
    return list(left.values())
