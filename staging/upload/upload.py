"""Publishing a source under a prefix: the whole flow, readable from top to bottom.

    plan                        what can be refused without a request is
    look at the target          a conflict is found before anything is sent
    same id published already?  digests only, nothing is sent
    send parts                  into open multipart uploads, recorded and invisible; what an interrupted
                                run left there is not sent again (I6)
    source ended, rules passed  or everything is aborted: no manifest, no object (I16)
    commit                      claim, complete, list equals plan, manifest (I4, I9)
    sweep                       no record and no upload of ours is left (I12)

An interruption, and an error that a later run may not meet, keeps what is recorded; a refusal drops it.

Not guaranteed: that an aborted upload leaves nothing when the store refuses to abort, or does not answer;
what is left is reported, and named in the result or the error's document.
"""

from __future__ import annotations

import datetime
import random
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from staging.inspection import Passing
from staging.layout.rule import Finding
from staging.published import read_if_published
from staging.source.source import Source
from staging.store.store import ObjectInfo, Store
from staging.transfer.budget import Budget
from staging.transfer.scheduler import Scheduler
from staging.transfer.sizing import BASE_MEMORY
from staging.upload import target
from staging.upload.commit import Commit
from staging.upload.leftovers import abort_staged, drop_records, sweep
from staging.upload.parts import PartSender
from staging.upload.plan import Plan, UploadOptions, judge, plan
from staging.upload.records import Records, read_runs
from staging.upload.staged import StagedFile
from staging.vocabulary.errors import (
    AccessDenied,
    Conflict,
    IntegrityError,
    NotFound,
    StagingError,
    Stalled,
    StoreUnavailable,
)
from staging.vocabulary.events import Note, Reporter, Started, silent
from staging.vocabulary.location import S3Location
from staging.vocabulary.manifest import Manifest
from staging.vocabulary.paths import SafePath

_SHOWN: Final = 5
_HELD_SHARE: Final = 4
"""One part in so many of the memory for buffers may hold small files of a pipe until the commit."""

_UNFINISHED: Final = (
    "stopped while objects were becoming visible: the same command finishes the upload; until then"
    " nobody uses them, for there is no manifest"
)
_RESUMABLE: Final = (AccessDenied, StoreUnavailable, Stalled)
"""Errors that a later run may not meet: what was sent is kept for it."""

_PASSING: Final = ("checksum-refused", "list-differs")
"""References of what running again mends."""

_STUCK: Final = (
    "objects of this upload lie under the prefix without a manifest: nobody uses them; use another"
    " prefix, or remove everything under this one"
)


@dataclass(frozen=True, slots=True)
class UploadResult:
    """What an upload came to.

    `sent_bytes` is 0 when the same id was found published before anything was sent; `resumed_bytes`
    lay in the store from an interrupted run, proven equal. `exclusive` and `checksums` tell whether the
    store proved that it honours conditions and checks checksums; None when nothing was sent.
    `leftovers` describe what may be deleted in the store and could not be deleted by this run.
    """

    manifest: Manifest
    location: S3Location
    already_published: bool
    sent_bytes: int
    resumed_bytes: int
    exclusive: bool | None
    checksums: bool | None
    findings: tuple[Finding, ...] = ()
    leftovers: tuple[str, ...] = ()


def upload(
    source: Source,
    store: Store,
    location: S3Location,
    options: UploadOptions,
    report: Reporter = silent,
    *,
    planned: Plan | None = None,
    now: Callable[[], datetime.datetime] = lambda: datetime.datetime.now(datetime.UTC),
    rng: random.Random | None = None,
) -> UploadResult:
    """Publish the files of `source` under `location`; `planned` is `plan` of the same, if it was made.

    Raises what `plan` raises, Conflict when something else is there, IntegrityError when this very
    content is published there and damaged, and what source and store raise. After an error nothing
    is visible unless a Note says so and how to go on; what could not be cleaned up is reported, and
    listed under `leftovers` in the error's document.
    """
    known = planned or plan(source, location, options)
    target.refuse_inside_published(store, location)
    # In this order, so that a twin that publishes meanwhile is never taken for a stranger: its objects
    # come before its manifest, and its claim goes after it.
    objects = list(store.list_objects(location.prefix))
    holder = target.claimed(store, location)
    there = read_if_published(store, location)
    if there is not None:
        result = _compare(source, store, known, there, location, options, report)
        # What a run left that ended right after it published.
        keys = frozenset(location.key(file.path) for file in there.files)
        leftovers = sweep(store, location, keys, ())
        if holder is not None and holder.id == there.id:
            leftovers += target.release(store, location, there.id)
        return replace(result, leftovers=tuple(leftovers))
    if holder is not None:
        report(
            Note(
                f"{location} is claimed by an unfinished upload of {holder.id}; going on, since this"
                " may be the same content",
                warning=True,
            )
        )
    if not options.allow_existing:
        _refuse_foreign(objects, holder, location, known)
    report(_started("upload", known))
    rng = rng or random.Random()  # noqa: S311 - jitter and a name, not secrets
    records = Records(store, location, f"{rng.getrandbits(64):016x}")
    buffers = options.memory - BASE_MEMORY
    held_room = 0
    if source.sequential:
        held_room = max(0, min(buffers // _HELD_SHARE, buffers - known.sizing.part_size))
    budget = Budget(buffers - held_room)
    sender = PartSender(
        source,
        location,
        store,
        family=options.hash,
        least_part_size=known.sizing.part_size,
        budget=budget,
        report=report,
        records=records,
        left=read_runs(store, location, objects).records,
        there={info.key: info.size for info in objects},
        held_room=held_room,
        passing=_watched(source, options),
    )
    commit = None
    try:
        with Scheduler(known.sizing.concurrency) as scheduler:
            sender.send(scheduler)
        source.finish()
        findings, layout = known.findings, known.layout
        if sender.passing is not None:
            findings, layout = judge(sender.passing.inventory(), options)
        commit = Commit(
            store,
            location,
            _manifest(source, sender.files, options, layout, now()),
            sender,
            budget=budget,
            concurrency=known.sizing.concurrency,
            allow_existing=options.allow_existing,
            report=report,
            rng=rng,
        )
        proven, twin = commit.run()
    except BaseException as error:
        _give_up(sender, records, commit, error, store, location, options, report)
        raise
    leftovers = abort_staged(store, sender.files)
    keys = frozenset(staged.key for staged in sender.files)
    leftovers += sweep(store, location, keys, commit.settled)
    leftovers += commit.release()
    return UploadResult(
        manifest=commit.manifest,
        location=location,
        already_published=twin,
        sent_bytes=sender.sent_bytes,
        resumed_bytes=sender.resumed_bytes,
        exclusive=proven.exclusive,
        checksums=proven.checksums,
        findings=findings,
        leftovers=tuple(leftovers),
    )


def _compare(
    source: Source,
    store: Store,
    known: Plan,
    there: Manifest,
    location: S3Location,
    options: UploadOptions,
    report: Reporter,
) -> UploadResult:
    """Find out whether the source is what is published; sends nothing.

    Of the published objects names and sizes are looked at, no bytes: `staging verify` proves those.
    Raises Conflict if it is not, and IntegrityError when what is published is not whole.
    """
    target.require_complete(store, location, there)
    if known.files is not None:
        ours = {file.path: file.size for file in known.files}
        theirs = {file.path: file.size for file in there.files}
        if name := _first_difference(ours, theirs):
            what = f"{name!r} differs in size or is on one side only"
            raise target.differs(location, there.id, what)
    report(Note(f"{location} already holds {there.id}: comparing digests, sending nothing"))
    report(_started("compare", known))
    sender = PartSender(
        source,
        location,
        None,  # nothing is sent, only the digests are wanted
        family=there.hash,
        least_part_size=known.sizing.part_size,
        budget=Budget(options.memory - BASE_MEMORY),
        report=report,
    )
    with Scheduler(known.sizing.concurrency) as scheduler:
        sender.send(scheduler)
    source.finish()
    digests = {file.path: file.digest for file in there.files}
    found = {staged.path: staged.digest(there.hash) for staged in sender.files}
    if name := _first_difference(digests, found):
        raise target.differs(location, there.id, f"{name!r} differs")
    return UploadResult(
        manifest=there,
        location=location,
        already_published=True,
        sent_bytes=0,
        resumed_bytes=0,
        exclusive=None,
        checksums=None,
    )


def _first_difference(ours: Mapping[SafePath, object], theirs: Mapping[SafePath, object]) -> str:
    """The first path that has not the same value on both sides; empty when there is none."""
    return min(
        (path for path in ours.keys() | theirs.keys() if ours.get(path) != theirs.get(path)),
        default="",
    )


def _watched(source: Source, options: UploadOptions) -> Passing | None:
    """What is to be learned of a source while it is read; an indexed one is known before."""
    if not source.sequential:
        return None
    if options.layout is None or not options.early:
        return Passing()
    return Passing(options.layout.gradual())


def _refuse_foreign(
    objects: Sequence[ObjectInfo],
    holder: target.Claim | None,
    location: S3Location,
    known: Plan,
) -> None:
    """Refuse foreign objects before anything is sent.

    Objects under a claim may be this very content, completed by a run that was stopped; of a sequential
    source that is only known at its end, and decided by the commit.
    """
    if holder is None:
        target.refuse_foreign(objects, location, ())
    elif known.files is not None:
        keys = {location.key(file.path) for file in known.files}
        target.refuse_foreign(objects, location, keys)


def _started(phase: str, known: Plan) -> Started:
    return Started(phase, known.total_size, None if known.files is None else len(known.files))


def _manifest(
    source: Source,
    files: Sequence[StagedFile],
    options: UploadOptions,
    layout: Mapping[str, Any],
    now: datetime.datetime,
) -> Manifest:
    about: dict[str, Any] = {"kind": source.kind, "name": source.name}
    if source.size is not None:
        about["size"] = source.size
    return Manifest.of(
        options.hash,
        [staged.manifest_file(options.hash) for staged in files],
        layout=layout,
        source=about,
        created=now.astimezone(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        tool=options.tool,
    )


def _give_up(
    sender: PartSender,
    records: Records,
    commit: Commit | None,
    error: BaseException,
    store: Store,
    location: S3Location,
    options: UploadOptions,
    report: Reporter,
) -> None:
    """Keep or drop what is open, drop the claim when no object of ours can be there, and say what remains."""
    reason = error.message if isinstance(error, StagingError) else "interrupted"
    left = ["multipart uploads (the clean-up was interrupted)"]
    kept = 0
    try:
        report(Note(f"stopping: {reason}", warning=True))
        open_ones = [staged for staged in sender.files if staged.give_up()]
        if _is_worth_keeping(error) and not options.abort_on_interrupt:
            kept = sum(staged.recorded for staged in open_ones)
        if kept:
            left = abort_staged(store, [staged for staged in open_ones if not staged.recorded])
        else:
            left = _drop(sender.files, records, store, location)
            left += [f"parts of {path!r} that an earlier run sent" for path in sender.not_reached()]
        if commit is not None and commit.owns_claim:
            left.extend(commit.release())
    finally:
        if left:
            more = f" and {len(left) - _SHOWN} more" if len(left) > _SHOWN else ""
            text = "; ".join(left[:_SHOWN])
            report(Note(f"left in the store: {text}{more}", warning=True))
        # A signal during the clean-up takes the error's place, and is what people are told of.
        told: set[Any] = {error, sys.exc_info()[1] or error}
        for each in told:
            if isinstance(getattr(each, "document", None), dict):
                each.document = {**each.document, "leftovers": left, "kept_uploads": kept}
        if commit is not None and commit.started:
            # Running again does not help where something else is in the way or was damaged.
            stuck = isinstance(error, (Conflict, IntegrityError)) and (
                error.reference not in _PASSING
            )
            report(Note(_STUCK if stuck else _UNFINISHED, warning=True))
        for each in told if kept else ():
            each.add_note(
                "to continue: run the same command again; what was sent is not sent again"
            )
            target_uri = shlex.quote(str(location))
            each.add_note(f"to drop it: staging gc --uploads {target_uri} --older-than 0s --yes")


def _is_worth_keeping(error: BaseException) -> bool:
    """True when the same command may succeed later: after a signal, and when store or source went away."""
    if not isinstance(error, StagingError):
        return True
    gone = isinstance(error, NotFound) and error.side == "source"
    return isinstance(error, _RESUMABLE) or gone or error.code == StagingError.exit_code


def _drop(
    files: Sequence[StagedFile], records: Records, store: Store, location: S3Location
) -> list[str]:
    """Abort the uploads of this run and delete their records. Returns what is left, described."""
    open_ones = [staged for staged in files if staged.give_up()]
    uploads = [staged.upload for staged in open_ones if staged.upload is not None]
    uploads += [upload for staged in files for upload in staged.abandoned]
    left = abort_staged(store, open_ones)
    if left or not (uploads or records.begun):
        return left
    keys = {staged.key for staged in files}
    return drop_records(store, location, uploads, records.token, keys)
