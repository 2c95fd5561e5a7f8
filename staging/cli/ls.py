"""`staging ls`: the published checkpoints below a prefix."""

from __future__ import annotations

import functools
from typing import Any, Final

import click

from staging.cli import quantity
from staging.cli.options import Common, common_options
from staging.cli.program import describe, error_line, print_json
from staging.cli.streams import say
from staging.published import find_published, read_manifest
from staging.transfer.scheduler import Scheduler
from staging.vocabulary.errors import AccessDenied, MalformedInput, NotFound, StagingError
from staging.vocabulary.location import S3Location
from staging.vocabulary.manifest import Manifest
from staging.vocabulary.redaction import one_line

_CONCURRENCY: Final = 8
_OF_ONE_ALONE: Final = (NotFound, AccessDenied, MalformedInput)
"""Failures that say nothing about the other manifests."""


@click.command()
@click.argument("root", metavar="s3://BUCKET[/PREFIX/]")
@common_options("STAGING")
def ls(common: Common, *, root: str) -> None:
    """List the published checkpoints below a prefix: URI, id, size and time of publishing.

    One whose manifest cannot be read hides no other; the exit code is that of the first such failure.
    """
    top = S3Location.parse(root)
    store = common.store(top, connections=_CONCURRENCY)
    found = find_published(store, top)
    if not found:
        raise NotFound(
            f"no published checkpoint below {top}",
            reference="nothing-published",
            hint="check the spelling, or publish one with `staging upload`",
            side="store",
        )
    manifests: dict[S3Location, Manifest] = {}
    failures: dict[S3Location, StagingError] = {}

    def read(location: S3Location) -> None:
        try:
            manifests[location] = read_manifest(store, location)
        except _OF_ONE_ALONE as error:
            failures[location] = error

    with Scheduler(_CONCURRENCY, name="ls") as scheduler:
        for location in found:
            scheduler.submit(functools.partial(read, location))
    readable = {place: manifests[place] for place in found if place in manifests}
    broken = {place: failures[place] for place in found if place in failures}
    document = _document(readable, broken)
    if not common.as_json:
        for location, manifest in readable.items():
            click.echo(
                f"{one_line(str(location))}  {manifest.id}  {quantity.size(manifest.total_size)}"
                f"  {manifest.created}"
            )
    if broken:
        first, *others = broken.values()
        for error in others:
            say(error_line(error))
        first.document = document
        raise first
    if common.as_json:
        print_json(document)


def _document(
    readable: dict[S3Location, Manifest], broken: dict[S3Location, StagingError]
) -> dict[str, Any]:
    return {
        "checkpoints": [
            {
                "uri": str(location),
                "id": manifest.id,
                "files": len(manifest.files),
                "total_size": manifest.total_size,
                "created": manifest.created,
            }
            for location, manifest in readable.items()
        ],
        "errors": [{"uri": str(location), **describe(error)} for location, error in broken.items()],
    }
