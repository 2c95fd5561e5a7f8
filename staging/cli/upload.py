"""`staging upload`: publish the files of a source under a prefix."""

from __future__ import annotations

import re
from typing import Any, Final, Literal

import click

from staging import __version__
from staging.cli import quantity
from staging.cli.layout import layout_options
from staging.cli.options import (
    DISTRIBUTION,
    Common,
    Writing,
    common_options,
    cores,
    tuning_options,
    write_options,
)
from staging.cli.program import print_json
from staging.cli.source import SourceOptions, open_source, remarks, source_options
from staging.cli.streams import say
from staging.inspection import read_through
from staging.layout.policy import Policy
from staging.source.source import Source
from staging.transfer.sizing import BASE_MEMORY, MIB
from staging.upload import Estimate, UploadOptions, UploadResult, estimate, plan, plan_known
from staging.upload import upload as publish
from staging.vocabulary.digest import HashFamily
from staging.vocabulary.location import S3Location
from staging.vocabulary.redaction import one_line

_AHEAD_SHARE: Final = 4
"""One part in so many of the memory for buffers is for reading a source ahead, where that is needed."""


@click.command(epilog="See docs/scripting.md for exit codes and environment variables.")
@click.argument("source")
@click.argument("target", metavar="s3://BUCKET/PREFIX/")
@click.option(
    "--hash",
    "family",
    type=click.Choice(["blake3", "sha256"]),
    default="blake3",
    show_default=True,
    envvar="STAGING_HASH",
    help="Digest family; sha256 for sites that need approved hashing.",
)
@click.option(
    "--allow-existing",
    is_flag=True,
    help="Leave foreign objects under the prefix and go on.",
)
@click.option(
    "--abort-on-interrupt",
    is_flag=True,
    help="Keep nothing of what was sent when the upload is stopped or fails.",
)
@click.option("--dry-run", is_flag=True, help="Show what would be done; send nothing.")
@layout_options
@source_options
@write_options("STAGING")
@tuning_options("STAGING")
@common_options("STAGING")
def upload(
    common: Common,
    *,
    source: str,
    target: str,
    source_options: SourceOptions,
    writing: Writing,
    layout: Policy | None,
    early: bool,
    family: Literal["blake3", "sha256"],
    allow_existing: bool,
    abort_on_interrupt: bool,
    dry_run: bool,
    part_size: int | None,
    concurrency: int | None,
    memory: int,
) -> None:
    """Publish the checkpoint in SOURCE under an S3 prefix.

    SOURCE is a tar, plain or compressed with gzip or zstd: a file, - for a pipe, a presigned https://
    URL, or s3://BUCKET/KEY; or a directory; or hf://ORG/NAME@REVISION. An archive's one top-level
    directory is removed from the names. Prints the prefix and the checkpoint's id. The same content
    again is no error; other content under a published prefix is. What an interrupted upload has sent
    is not sent again.

    \b
    staging upload laguna_xs.tar s3://bucket/checkpoints/laguna-xs/
    STAGING_SOURCE_URL="$URL" staging upload https:// s3://bucket/checkpoints/laguna-xs/
    """  # noqa: D301 - click reads this backspace
    location = S3Location.parse(target)
    opened = open_source(
        source,
        common=common,
        options=source_options,
        target=target,
        memory=max(MIB, (memory - BASE_MEMORY) // _AHEAD_SHARE),
    )
    options = UploadOptions(
        memory=memory - opened.memory,
        cores=cores(),
        part_size=part_size,
        concurrency=concurrency,
        hash=HashFamily.BLAKE3 if family == "blake3" else HashFamily.SHA256,
        layout=layout,
        early=early,
        allow_existing=allow_existing,
        abort_on_interrupt=abort_on_interrupt,
        tool=f"{DISTRIBUTION}/{__version__}",
    )
    try:
        if dry_run:
            _show_plan(common, opened, location, options)
            return
        planned = plan(opened, location, options)
        connections = planned.sizing.concurrency + 2
        store = common.store(location, connections=connections, writing=writing)
        with common.reporting() as report:
            result = publish(opened, store, location, options, report, planned=planned)
    finally:
        opened.close()
    for remark in remarks(opened):
        say(f"warning: {remark}")
    _show_result(common, result)


def _show_plan(
    common: Common, source: Source, location: S3Location, options: UploadOptions
) -> None:
    planned = plan(source, location, options)
    if planned.files is None:
        planned = plan_known(*read_through(source), location, options)
    source.finish()
    files, sizing = planned.files or (), planned.sizing
    cost = estimate((file.size for file in files), sizing.part_size)
    if common.as_json:
        print_json({"plan": _plan_document(cost, location, sizing.part_size, sizing.concurrency)})
        return
    for file in files:
        click.echo(f"{quantity.size(file.size):>10}  {file.path}")
    click.echo(
        f"{cost.files} files, {quantity.size(cost.total_size)} to {location}\n"
        f"{cost.parts} parts of at most {sizing.part_size // MIB} MiB, {sizing.concurrency} at once,"
        f" about {cost.requests} requests"
    )
    for speed, hours in cost.hours.items():
        click.echo(f"at {speed} Gb/s: {quantity.duration(hours * 3600)}")


def _plan_document(
    plan: Estimate, location: S3Location, part_size: int, concurrency: int
) -> dict[str, Any]:
    return {
        "uri": str(location),
        "files": plan.files,
        "total_size": plan.total_size,
        "part_size": part_size,
        "concurrency": concurrency,
        "parts": plan.parts,
        "requests": plan.requests,
        "hours": {f"{speed} Gb/s": hours for speed, hours in plan.hours.items()},
    }


def _show_result(common: Common, result: UploadResult) -> None:
    manifest = result.manifest
    unproven = [
        what
        for what, proven in (("exclusive", result.exclusive), ("checksums", result.checksums))
        if proven is False
    ]
    if common.as_json:
        print_json(
            {
                "upload": {
                    "uri": str(result.location),
                    "id": manifest.id,
                    "files": len(manifest.files),
                    "total_size": manifest.total_size,
                    "already_published": result.already_published,
                    "sent_bytes": result.sent_bytes,
                    "resumed_bytes": result.resumed_bytes,
                    "not_proven": unproven,
                    "warnings": [finding.message for finding in result.findings],
                    "leftovers": list(result.leftovers),
                }
            }
        )
    else:
        click.echo(f"{result.location} {manifest.id}")
    for finding in result.findings:
        say(f"warning: {one_line(finding.message)}")
    for what in unproven:
        say(f"warning: {what}: not proven by this store")
    for leftover in result.leftovers:
        say(f"left behind, safe to delete: {one_line(leftover)}")
    if common.quiet:
        return
    if result.resumed_bytes:
        say(f"{quantity.size(result.resumed_bytes)} were in the store and not sent again")
    verb = "already published" if result.already_published else "published"
    say(
        f"{verb}: {len(manifest.files)} files, {quantity.size(manifest.total_size)}\n"
        f"{_snippet(result.location, manifest.id)}"
        "The local copy is no longer needed"
    )


def _snippet(location: S3Location, checkpoint_id: str) -> str:
    """The entry of a values file that serves this checkpoint; what we cannot know is marked."""
    name = location.prefix.rstrip("/").rpartition("/")[2]
    key = re.sub(r"[^a-z0-9-]+", "-", name.lower()).strip("-") or "model"
    return (
        "For the values file:\n"
        "\n"
        "models:\n"
        f"  {key}:\n"
        f"    model: {location}\n"
        f"    modelName: {name}  # the name clients ask for\n"
        "    modelType: agent  # agent, agent_small or completion\n"
        "    gpus: 1  # 1, 2, 4 or 8\n"
        "\n"
        f"To pin it in the pod: MODEL_EXPECT_ID={checkpoint_id}\n"
    )
