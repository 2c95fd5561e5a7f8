"""What is known of a prefix before its weights are read, and what is refused by then.

    list -> published already? -> names -> is a copy under way? -> headers, layout rules

Nothing is written. The prefix is listed before its manifest is looked for, so that one that appears in
between is seen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from staging.inspection import take_inventory
from staging.layout.policy import EVERY_RULE, Policy, require
from staging.layout.rule import Finding
from staging.layout.summary import section
from staging.published import read_if_published, require_id, require_usable_id
from staging.source.ranges import ObjectAt
from staging.store.store import Changed, ObjectInfo, Store
from staging.transfer.sizing import Sizing, choose
from staging.unpublished.prefix import (
    Unpublished,
    changed,
    examine,
    list_prefix,
)
from staging.unpublished.wholeness import refuse_missing_shards, refuse_unfinished_copy
from staging.upload import target
from staging.vocabulary.digest import HashFamily
from staging.vocabulary.errors import NotFound, UsageError
from staging.vocabulary.location import S3Location
from staging.vocabulary.manifest import Manifest

_MISSING_SHARDS: Final = {"index-shard-missing", "shards-incomplete"}
"""Rules that say of all what the listing says of the first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdoptOptions:
    """How to adopt: the memory budget in bytes, the processors to use, and what to insist on.

    `hash` is the digest family of the manifest. `layout` says which rules count, None that none does. With
    `expect_id` any other content is refused.
    """

    memory: int
    cores: int
    hash: HashFamily = HashFamily.BLAKE3
    layout: Policy | None = EVERY_RULE
    expect_id: str | None = None
    tool: str = "checkpoint-staging"


@dataclass(frozen=True, slots=True)
class AdoptPlan:
    """The files under a prefix and the layout's warnings, or the manifest that is there already."""

    location: S3Location
    sizing: Sizing
    found: Unpublished
    findings: tuple[Finding, ...] = ()
    layout: Mapping[str, Any] = field(default_factory=dict)
    published: Manifest | None = None


def plan(store: Store, location: S3Location, options: AdoptOptions) -> AdoptPlan:
    """Judge a prefix by its listing and by the headers of its safetensors files.

    Raises UsageError for the bucket's root and impossible settings; NotFound when there is nothing to
    take for a checkpoint, or an unfinished upload; MalformedInput for unsafe names; Conflict when it lies
    inside a published checkpoint, is being copied to, or is published and holds something else as well;
    IntegrityError when it is published and not whole; LayoutInvalid when the files would not serve.
    """
    if not location.prefix:
        raise UsageError(
            f"a checkpoint needs a prefix of its own, not the root of the bucket: {location}",
            reference="uri",
            hint=f"for example {location}checkpoints/NAME/",
        )
    require_usable_id(options.expect_id)
    sizing = choose(0, memory=options.memory, cores=options.cores)
    target.refuse_inside_published(store, location)
    objects = list_prefix(store, location)
    published = read_if_published(store, location)
    if published is not None:
        require_id(published, options.expect_id, str(location), side="store")
        target.require_complete(store, location, published)
        keys = frozenset(location.key(file.path) for file in published.files)
        _refuse_more(objects, location, published, keys)
        return AdoptPlan(location, sizing, Unpublished(location, {}), published=published)
    found = examine(store, location, objects)
    refuse_unfinished_copy(store, found)
    return AdoptPlan(location, sizing, found, *_judge(store, found, options))


def _refuse_more(
    objects: list[ObjectInfo], location: S3Location, published: Manifest, keys: frozenset[str]
) -> None:
    for info in objects:
        if info.key not in keys and not location.is_aside(info.key, info.size):
            name = info.key[len(location.prefix) :]
            what = f"{name[:200]!r} is not in its manifest"
            raise target.differs(location, published.id, what)


def _judge(
    store: Store, found: Unpublished, options: AdoptOptions
) -> tuple[tuple[Finding, ...], Mapping[str, Any]]:
    """Apply the rules; returns their warnings, and the `layout` section of the manifest.

    Raises LayoutInvalid when they find an error.
    """
    if options.layout is not None and not options.layout.ignore & _MISSING_SHARDS:
        refuse_missing_shards(found)
    by_name = {str(path): info for path, info in found.files.items()}
    sizes = ((name, info.size) for name, info in by_name.items())
    try:
        inventory = take_inventory(sizes, lambda name: ObjectAt(store, by_name[name]))
    except (Changed, NotFound) as error:
        if error.reference == "bucket":
            raise
        raise changed(error.message, store, found.location.prefix) from error
    findings = [] if options.layout is None else options.layout.check(inventory)
    require(
        findings,
        str(found.location),
        hint=f"`staging check {found.location}` shows all findings; copy the files to a new prefix as"
        " they should be, or --layout-check off skips the rules",
        side="store",
    )
    return tuple(findings), section(inventory, options.layout, findings)
