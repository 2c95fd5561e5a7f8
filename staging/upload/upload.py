"""Publishing a source under a prefix: the whole flow, readable from top to bottom.

    look at the target          a conflict is found before anything is sent
    same id published already?  digests only, nothing is sent
    send parts                  into open multipart uploads, invisible
    source ended, rules passed  or everything is aborted: no manifest, no object (I16)
    commit                      claim, complete, list equals plan, manifest (I4, I9)

Not guaranteed: that an aborted upload leaves nothing when the store refuses to abort; what is left is
named in the error's hint or in the result.
"""

from __future__ import annotations

import datetime
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from staging.inspection import take_inventory
from staging.layout.inventory import Inventory
from staging.layout.rules import Finding, check
from staging.source.ranges import FileAt
from staging.source.source import Source, SourceFile
from staging.store.store import ObjectInfo, Store
from staging.transfer.budget import Budget
from staging.transfer.scheduler import Scheduler
from staging.transfer.sizing import BASE_MEMORY, Sizing, choose
from staging.upload import target
from staging.upload.commit import Commit
from staging.upload.parts import PartSender, StagedFile
from staging.vocabulary.digest import HashFamily
from staging.vocabulary.errors import Conflict, LayoutInvalid, UsageError
from staging.vocabulary.events import Note, Reporter, Started, silent
from staging.vocabulary.location import S3Location
from staging.vocabulary.manifest import Manifest

_SHOWN_FINDINGS: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadOptions:
    """How to upload. `memory` is a budget in bytes, `cores` the processors that may be used.

    `part_size` (bytes) and `concurrency` are chosen when None. `hash` is the digest family of a new
    publication; the family of what is published already wins.
    """

    memory: int
    cores: int
    part_size: int | None = None
    concurrency: int | None = None
    hash: HashFamily = HashFamily.BLAKE3
    check_layout: bool = True
    allow_existing: bool = False
    tool: str = "checkpoint-staging"


@dataclass(frozen=True, slots=True)
class UploadResult:
    """What an upload came to.

    `sent_bytes` is 0 when the same id was published already. `exclusive` and `checksums` tell whether
    the store proved that it honours conditions and checks checksums; None when nothing was sent.
    `leftovers` describe what may be deleted in the store and could not be deleted by this run.
    """

    manifest: Manifest
    location: S3Location
    already_published: bool
    sent_bytes: int
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
    now: Callable[[], datetime.datetime] = lambda: datetime.datetime.now(datetime.UTC),
    rng: random.Random | None = None,
) -> UploadResult:
    """Publish the files of `source` under `location`.

    Raises UsageError for the bucket's root and impossible settings, Conflict when something else is
    there, MalformedInput and LayoutInvalid when the source is refused, and what source and store
    raise. After an error nothing is visible, unless the error's hint says what is and how to go on.
    """
    if not location.prefix:
        raise UsageError(
            f"a checkpoint needs a prefix of its own, not the root of the bucket: {location}",
            reference="uri",
            hint=f"for example {location}checkpoints/NAME/",
        )
    known = None if source.sequential else list(source.files())
    sizing = size_up(known, options)
    findings = [] if known is None else _require_layout(_inventory(source, known), options)
    # In this order, so that a twin that publishes meanwhile is never taken for a stranger: its objects
    # come before its manifest, and its claim goes after it.
    objects = list(store.list_objects(location.prefix))
    holder = target.claimed(store, location)
    there = target.published(store, location)
    if there is not None:
        result = _compare(source, known, there, location, sizing, options, report)
        if holder is None or holder.id != there.id:
            return result
        # Left by a run that ended right after it published.
        return replace(result, leftovers=tuple(target.release(store, location, there.id)))
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
    report(Started("upload", _total(known), None if known is None else len(known)))
    sender = _sender(source, location, store, options.hash, sizing, options, report)
    commit = None
    try:
        with Scheduler(sizing.concurrency) as scheduler:
            sender.send(scheduler)
        source.finish()
        if known is None:
            findings = _require_layout(sender.passing.inventory(), options)
        commit = Commit(
            store,
            location,
            _manifest(source, sender.files, options, findings, now()),
            sender.files,
            concurrency=sizing.concurrency,
            allow_existing=options.allow_existing,
            report=report,
            rng=rng or random.Random(),  # noqa: S311 - jitter, not secrets
        )
        proven, twin = commit.run()
    except BaseException:
        _give_up(sender, commit, report)
        raise
    return UploadResult(
        manifest=commit.manifest,
        location=location,
        already_published=twin,
        sent_bytes=commit.manifest.total_size,
        exclusive=proven.exclusive,
        checksums=proven.checksums,
        findings=tuple(findings),
        leftovers=(*sender.abort(), *commit.release()),
    )


def size_up(known: Sequence[SourceFile] | None, options: UploadOptions) -> Sizing:
    """Choose part size and concurrency; of a sequential source no file size is known yet."""
    return choose(
        max((file.size for file in known), default=0) if known is not None else 0,
        memory=options.memory,
        cores=options.cores,
        part_size=options.part_size,
        concurrency=options.concurrency,
    )


def _compare(
    source: Source,
    known: Sequence[SourceFile] | None,
    there: Manifest,
    location: S3Location,
    sizing: Sizing,
    options: UploadOptions,
    report: Reporter,
) -> UploadResult:
    """Find out whether the source is what is published; sends nothing. Raises Conflict if not."""
    if known is not None:
        ours = {file.path: file.size for file in known}
        theirs = {file.path: file.size for file in there.files}
        differing = sorted(
            path for path in ours.keys() | theirs.keys() if ours.get(path) != theirs.get(path)
        )
        if differing:
            raise _differs(
                location, there, f"{differing[0]!r} differs in size or is on one side only"
            )
    report(Note(f"{location} already holds {there.id}: comparing digests, sending nothing"))
    report(Started("compare", _total(known), None if known is None else len(known)))
    sender = _sender(source, location, None, there.hash, sizing, options, report)
    with Scheduler(sizing.concurrency) as scheduler:
        sender.send(scheduler)
    source.finish()
    digests = {file.path: file.digest for file in there.files}
    found = {staged.path: staged.digest(there.hash) for staged in sender.files}
    if digests != found:
        first = min(
            path for path in digests.keys() | found.keys() if digests.get(path) != found.get(path)
        )
        raise _differs(location, there, f"{first!r} differs")
    return UploadResult(
        manifest=there,
        location=location,
        already_published=True,
        sent_bytes=0,
        exclusive=None,
        checksums=None,
    )


def _refuse_foreign(
    objects: Sequence[ObjectInfo],
    holder: target.Claim | None,
    location: S3Location,
    known: Sequence[SourceFile] | None,
) -> None:
    """Refuse foreign objects before anything is sent.

    Objects under a claim may be this very content, completed by a run that was stopped; of a sequential
    source that is only known at its end, and decided by the commit.
    """
    if holder is None:
        target.refuse_foreign(objects, location, frozenset())
    elif known is not None:
        target.refuse_foreign(
            objects, location, frozenset(location.key(file.path) for file in known)
        )


def _sender(
    source: Source,
    location: S3Location,
    store: Store | None,
    family: HashFamily,
    sizing: Sizing,
    options: UploadOptions,
    report: Reporter,
) -> PartSender:
    return PartSender(
        source,
        location,
        store,
        family=family,
        least_part_size=sizing.part_size,
        budget=Budget(options.memory - BASE_MEMORY),
        report=report,
    )


def _inventory(source: Source, known: Sequence[SourceFile]) -> Inventory:
    files = {str(file.path): file for file in known}
    sizes = ((path, file.size) for path, file in files.items())
    return take_inventory(sizes, lambda path: FileAt(source, files[path]))


def _require_layout(inventory: Inventory, options: UploadOptions) -> list[Finding]:
    """Apply the rules to what is known so far. Raises LayoutInvalid when they find an error."""
    if not options.check_layout:
        return []
    findings = check(inventory)
    errors = [finding for finding in findings if finding.severity == "error"]
    if errors:
        shown = "; ".join(finding.message for finding in errors[:_SHOWN_FINDINGS])
        more = (
            f"; and {len(errors) - _SHOWN_FINDINGS} more" if len(errors) > _SHOWN_FINDINGS else ""
        )
        raise LayoutInvalid(
            f"this would not serve: {shown}{more}",
            reference=errors[0].rule,
            hint=f"{errors[0].hint}; `staging check` shows all findings, --layout-check off skips the rules",
            side="source",
        )
    return findings


def _manifest(
    source: Source,
    files: Sequence[StagedFile],
    options: UploadOptions,
    findings: Sequence[Finding],
    now: datetime.datetime,
) -> Manifest:
    about: dict[str, Any] = {"kind": source.kind, "name": source.name}
    if source.size is not None:
        about["size"] = source.size
    return Manifest.of(
        options.hash,
        [staged.manifest_file(options.hash) for staged in files],
        layout={
            "checked": options.check_layout,
            "warnings": [finding.rule for finding in findings],
        },
        source=about,
        created=now.astimezone(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        tool=options.tool,
    )


def _give_up(sender: PartSender, commit: Commit | None, report: Reporter) -> None:
    """Abort what is open, drop the claim when nothing is visible, and say what remains."""
    left = list(sender.abort())
    if commit is not None and commit.visible:
        report(
            Note(
                "stopped while objects were becoming visible: the same command finishes the upload;"
                " until then nobody uses them, for there is no manifest",
                warning=True,
            )
        )
    elif commit is not None:
        left.extend(commit.release())
    if left:
        report(Note(f"the store refused to clean up: {', '.join(left)}", warning=True))


def _differs(location: S3Location, there: Manifest, what: str) -> Conflict:
    return Conflict(
        f"{location} already holds other content, {there.id}: {what}",
        reference="published-differs",
        hint="published prefixes never change: upload to a new prefix and point the values file to it",
        side="store",
    )


def _total(known: Sequence[SourceFile] | None) -> int | None:
    return None if known is None else sum(file.size for file in known)
