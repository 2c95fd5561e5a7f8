"""What is known of an upload before anything is sent, and what is refused by then.

Of an indexed source that is everything: keys, part sizes, layout. Of a sequential one it is the prefix
alone; the rest is judged as its files come, and nothing becomes visible before (I16).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from staging.inspection import take_inventory
from staging.layout.inventory import Inventory
from staging.layout.policy import EVERY_RULE, Policy, require
from staging.layout.rule import Finding
from staging.layout.summary import section
from staging.source.ranges import FileAt
from staging.source.source import Source, SourceFile
from staging.transfer.sizing import Sizing, choose
from staging.vocabulary.digest import HashFamily
from staging.vocabulary.errors import UsageError
from staging.vocabulary.location import S3Location

_SEE_ALL: Final = "`staging check` shows all findings, --layout-check off skips the rules"


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadOptions:
    """How to upload. `memory` is a budget in bytes, `cores` the processors that may be used.

    `part_size` (bytes) and `concurrency` are chosen when None. `hash` is the digest family of a new
    publication; the family of what is published already wins. `layout` says which rules count, None that
    none does; with `early`, files that pass by are judged as soon as something is certain. With
    `abort_on_interrupt` nothing that was sent is kept for a later run, whatever stopped this one.
    """

    memory: int
    cores: int
    part_size: int | None = None
    concurrency: int | None = None
    hash: HashFamily = HashFamily.BLAKE3
    layout: Policy | None = EVERY_RULE
    early: bool = True
    allow_existing: bool = False
    abort_on_interrupt: bool = False
    tool: str = "checkpoint-staging"


@dataclass(frozen=True, slots=True)
class Plan:
    """Files (None while a sequential source has not told them), sizes of parts, and layout warnings."""

    files: tuple[SourceFile, ...] | None
    sizing: Sizing
    findings: tuple[Finding, ...] = ()
    layout: Mapping[str, Any] = field(default_factory=dict)
    """For the manifest's `layout` section."""

    @property
    def total_size(self) -> int | None:
        """Bytes of all files, as far as they are known."""
        return None if self.files is None else sum(file.size for file in self.files)


def plan(source: Source, location: S3Location, options: UploadOptions) -> Plan:
    """Judge what is known of a source. Sends nothing; reads headers of an indexed source.

    Raises UsageError for the bucket's root and impossible settings, MalformedInput for a key that is too
    long, LayoutInvalid when the files would not serve.
    """
    if not location.prefix:
        raise UsageError(
            f"a checkpoint needs a prefix of its own, not the root of the bucket: {location}",
            reference="uri",
            hint=f"for example {location}checkpoints/NAME/",
        )
    if source.sequential:
        return Plan(None, _sizing((), options))
    files = tuple(source.files())
    sizing = _sizing(files, options)
    for file in files:
        location.key(file.path)
    by_path = {str(file.path): file for file in files}
    sizes = ((path, file.size) for path, file in by_path.items())
    inventory = take_inventory(sizes, lambda path: FileAt(source, by_path[path]))
    return Plan(files, sizing, *judge(inventory, options))


def plan_known(
    files: Sequence[SourceFile], inventory: Inventory, location: S3Location, options: UploadOptions
) -> Plan:
    """The plan of a sequential source whose files have all passed by. Raises as `plan` does."""
    for file in files:
        location.key(file.path)
    return Plan(tuple(files), _sizing(files, options), *judge(inventory, options))


def judge(
    inventory: Inventory, options: UploadOptions
) -> tuple[tuple[Finding, ...], Mapping[str, Any]]:
    """Apply the rules; returns their warnings, and the `layout` section of the manifest.

    Raises LayoutInvalid when they find an error.
    """
    findings = [] if options.layout is None else options.layout.check(inventory)
    refuse(findings)
    return tuple(findings), section(inventory, options.layout, findings)


def refuse(findings: Sequence[Finding]) -> None:
    """Raise LayoutInvalid when there is an error among the findings of a source."""
    require(findings, "this", hint=_SEE_ALL, side="source")


def _sizing(files: Sequence[SourceFile], options: UploadOptions) -> Sizing:
    return choose(
        max((file.size for file in files), default=0),
        memory=options.memory,
        cores=options.cores,
        part_size=options.part_size,
        concurrency=options.concurrency,
    )
