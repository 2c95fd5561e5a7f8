"""`staging ls`: the published checkpoints below a prefix."""

from __future__ import annotations

import functools

import click

from staging.cli import quantity
from staging.cli.options import Common, common_options
from staging.cli.program import print_json
from staging.published import find_published, read_manifest
from staging.transfer.scheduler import Scheduler
from staging.vocabulary.errors import NotFound
from staging.vocabulary.location import S3Location
from staging.vocabulary.manifest import Manifest

_CONCURRENCY = 8


@click.command()
@click.argument("root", metavar="s3://BUCKET[/PREFIX/]")
@common_options("STAGING")
def ls(common: Common, *, root: str) -> None:
    """List the published checkpoints below a prefix: URI, id, size and time of publishing."""
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

    def read(location: S3Location) -> None:
        manifests[location] = read_manifest(store, location)

    with Scheduler(_CONCURRENCY, name="ls") as scheduler:
        for location in found:
            scheduler.submit(functools.partial(read, location))
    if common.as_json:
        print_json(
            {
                "checkpoints": [
                    {
                        "uri": str(location),
                        "id": manifests[location].id,
                        "files": len(manifests[location].files),
                        "total_size": manifests[location].total_size,
                        "created": manifests[location].created,
                    }
                    for location in found
                ]
            }
        )
        return
    for location in found:
        manifest = manifests[location]
        click.echo(
            f"{location}  {manifest.id}  {quantity.size(manifest.total_size)}  {manifest.created}"
        )
