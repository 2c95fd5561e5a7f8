"""`staging adopt`: publish what another tool put under a prefix."""

from __future__ import annotations

from typing import Literal

import click

from staging import __version__
from staging.adopt import AdoptOptions, AdoptPlan, AdoptResult, plan
from staging.adopt import adopt as publish
from staging.cli import quantity
from staging.cli.layout import layout_options
from staging.cli.options import (
    DISTRIBUTION,
    Common,
    Writing,
    common_options,
    cores,
    memory_option,
    write_options,
)
from staging.cli.program import print_json
from staging.cli.streams import say
from staging.layout.policy import Policy
from staging.transfer.sizing import choose
from staging.vocabulary.digest import HashFamily
from staging.vocabulary.location import S3Location
from staging.vocabulary.redaction import one_line


@click.command(epilog="See docs/scripting.md for exit codes and environment variables.")
@click.argument("target", metavar="s3://BUCKET/PREFIX/")
@click.option("--expect-id", metavar="sha256:...", help="Id the checkpoint must have.")
@click.option(
    "--hash",
    "family",
    type=click.Choice(["blake3", "sha256"]),
    default="blake3",
    show_default=True,
    envvar="STAGING_HASH",
    help="Digest family; sha256 for sites that need approved hashing.",
)
@click.option("--dry-run", is_flag=True, help="Show what would be done; read no weights.")
@layout_options
@write_options("STAGING")
@memory_option("STAGING")
@common_options("STAGING")
def adopt(
    common: Common,
    *,
    target: str,
    writing: Writing,
    expect_id: str | None,
    layout: Policy | None,
    early: bool,
    family: Literal["blake3", "sha256"],
    dry_run: bool,
    memory: int,
) -> None:
    """Publish the objects that another tool put under an S3 prefix.

    Reads and hashes every object once, compares with the checksums that the store keeps, and adds a
    manifest. No object is moved, changed or deleted. Best run close to the bucket: all bytes come here.
    Prints the prefix and the checkpoint's id. A prefix that is published already is no error.

    \b
    aws s3 cp ./laguna-xs s3://bucket/checkpoints/laguna-xs/ --recursive
    staging adopt s3://bucket/checkpoints/laguna-xs/
    """  # noqa: D301 - click reads this backspace
    location = S3Location.parse(target)
    options = AdoptOptions(
        memory=memory,
        cores=cores(),
        hash=HashFamily.BLAKE3 if family == "blake3" else HashFamily.SHA256,
        layout=layout,
        expect_id=expect_id,
        tool=f"{DISTRIBUTION}/{__version__}",
    )
    connections = choose(0, memory=memory, cores=cores()).connections + 2
    store = common.store(location, connections=connections, writing=writing)
    planned = plan(store, location, options)
    if dry_run:
        _show_plan(common, planned)
        return
    with common.reporting() as report:
        result = publish(store, location, options, report, planned=planned)
    _show_result(common, result)


def _show_plan(common: Common, planned: AdoptPlan) -> None:
    there = planned.published
    if there is not None:
        sizes = {str(file.path): file.size for file in there.files}
    else:
        sizes = {str(path): info.size for path, info in planned.found.files.items()}
    total = sum(sizes.values())
    to_read = 0 if there is not None else total
    if common.as_json:
        print_json(
            {
                "plan": {
                    "uri": str(planned.location),
                    "files": len(sizes),
                    "total_size": total,
                    "already_published": there is not None,
                    "bytes_to_read": to_read,
                    "warnings": [finding.message for finding in planned.findings],
                }
            }
        )
        return
    for name, size in sizes.items():
        click.echo(f"{quantity.size(size):>10}  {name}")
    for finding in planned.findings:
        say(f"warning: {one_line(finding.message)}")
    files = f"{len(sizes)} files, {quantity.size(total)} in {planned.location}"
    if there is not None:
        click.echo(f"{files}: already published as {there.id}")
    else:
        click.echo(f"{files}: all would be read, and a manifest created")


def _show_result(common: Common, result: AdoptResult) -> None:
    manifest = result.manifest
    if common.as_json:
        print_json(
            {
                "adopt": {
                    "uri": str(result.location),
                    "id": manifest.id,
                    "files": len(manifest.files),
                    "total_size": manifest.total_size,
                    "already_published": result.already_published,
                    "read_bytes": result.read_bytes,
                    "not_proven": list(result.not_proven),
                    "archive_sha256": result.archive_sha256,
                    "warnings": [finding.message for finding in result.findings],
                }
            }
        )
    else:
        click.echo(f"{result.location} {manifest.id}")
    for finding in result.findings:
        say(f"warning: {one_line(finding.message)}")
    if result.not_proven:
        say(
            f"warning: of {len(result.not_proven)} of {len(manifest.files)} files the store keeps no"
            " checksum: published as they were read"
        )
    if common.quiet:
        return
    verb = "already published" if result.already_published else "published"
    say(
        f"{verb}: {len(manifest.files)} files, {quantity.size(manifest.total_size)}\n"
        f"To pin it in the pod: MODEL_EXPECT_ID={manifest.id}"
    )
