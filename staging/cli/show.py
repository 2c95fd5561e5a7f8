"""`staging show`: what is published under a prefix, or lies in a directory."""

from __future__ import annotations

from typing import Any

import click

from staging.cli import quantity
from staging.cli.options import Common, common_options
from staging.cli.paths import local_path
from staging.cli.program import print_json
from staging.cli.verification import local_manifest
from staging.directory.local import LocalDirectory
from staging.published import read_manifest
from staging.vocabulary.location import S3Location
from staging.vocabulary.manifest import Manifest


@click.command()
@click.argument("target")
@common_options("STAGING")
def show(common: Common, *, target: str) -> None:
    """Show the manifest of TARGET, a prefix s3://BUCKET/PREFIX/ or a local directory.

    Prints digest, size and name of each file, then the id.
    """
    manifest = manifest_of(common, target)
    if common.as_json:
        print_json({"checkpoint": document(manifest, target)})
        return
    width = max(len(str(file.size)) for file in manifest.files)
    for file in manifest.files:
        click.echo(f"{file.digest}  {file.size:>{width}}  {file.path}")
    origin = " ".join(
        str(manifest.source[key]) for key in ("kind", "name") if key in manifest.source
    )
    click.echo(
        f"{len(manifest.files)} files, {quantity.size(manifest.total_size)}"
        f" ({manifest.total_size} bytes), {manifest.hash.value}, created {manifest.created}"
        f" from {origin}\n{manifest.id}"
    )


def manifest_of(common: Common, target: str) -> Manifest:
    """Read the manifest of a prefix or of a local directory."""
    if target.startswith("s3://"):
        location = S3Location.parse(target)
        return read_manifest(common.store(location), location)
    with LocalDirectory(local_path(target)) as local:
        return local_manifest(local)


def document(manifest: Manifest, target: str) -> dict[str, Any]:
    """A manifest as it stands in JSON documents."""
    return {
        "target": target,
        "id": manifest.id,
        "hash": manifest.hash.value,
        "files": [
            {
                "path": file.path,
                "size": file.size,
                "digest": str(file.digest),
                "checksums": dict(file.checksums),
            }
            for file in manifest.files
        ],
        "total_size": manifest.total_size,
        "created": manifest.created,
        "tool": manifest.tool,
        "source": dict(manifest.source),
        "layout": dict(manifest.layout),
        "annotations": dict(manifest.annotations),
    }
