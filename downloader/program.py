"""The command line of `model-downloader`; its environment twins are listed in docs/scripting.md."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from downloader.verification import verify
from staging.cli import quantity
from staging.cli.options import CONTEXT, DISTRIBUTION, Common, common_options, cores, tuning_options
from staging.cli.paths import local_path
from staging.cli.program import print_json, run
from staging.cli.progress import stamped
from staging.cli.streams import say
from staging.sync import SyncOptions, SyncResult, sync
from staging.transfer.sizing import choose
from staging.vocabulary.errors import UsageError
from staging.vocabulary.location import S3Location


@dataclass(frozen=True, slots=True)
class Order:
    """One checkpoint to bring to one directory; `expect_id` pins its id."""

    location: S3Location
    directory: Path
    expect_id: str | None


@click.command(
    context_settings=CONTEXT,
    epilog="`model-downloader verify DIR` checks a directory. Exit codes: docs/scripting.md.",
)
@click.argument("pairs", nargs=-1, metavar="[SRC DST]...")
@click.option(
    "--expect-id",
    multiple=True,
    envvar="MODEL_EXPECT_ID",
    metavar="sha256:...",
    help="Id the checkpoint must have; once per pair, in their order.",
)
@click.version_option(package_name=DISTRIBUTION, prog_name="model-downloader")
@tuning_options("MODEL")
@common_options("MODEL")
def download(
    common: Common,
    *,
    pairs: tuple[str, ...],
    expect_id: tuple[str, ...],
    part_size: int | None,
    concurrency: int | None,
    memory: int,
) -> None:
    """Bring published checkpoints from S3 to local directories, proven byte by byte.

    SRC is s3://BUCKET/PREFIX/, DST a directory; without them MODEL_URI and MODEL_DIR are used. Does
    nothing when the version is there already, and fetches only what differs otherwise.

    \b
    model-downloader s3://bucket/checkpoints/laguna-xs/ /models/laguna-xs
    """  # noqa: D301 - click reads this backspace
    orders = read_orders(pairs or environment_pair(os.environ), expect_id)
    results = []
    for order in orders:
        sizing = choose(
            0, memory=memory, cores=cores(), part_size=part_size, concurrency=concurrency
        )
        options = SyncOptions(
            memory=memory,
            cores=cores(),
            part_size=part_size,
            concurrency=concurrency,
            expect_id=order.expect_id,
        )
        store = common.store(order.location, connections=sizing.concurrency + 2)
        with common.reporting() as report:
            result = sync(store, order.location, order.directory, options, report)
        if not common.quiet:
            say(stamped(_summary(order, result)))
        results.append((order, result))
        if not common.as_json:
            click.echo(f"{order.directory} {result.id}")
    if common.as_json:
        print_json({"checkpoints": [_document(order, result) for order, result in results]})


def environment_pair(environment: Mapping[str, str]) -> tuple[str, ...]:
    """SRC and DST from MODEL_URI and MODEL_DIR, as far as they are set."""
    values = (environment.get("MODEL_URI"), environment.get("MODEL_DIR"))
    return tuple(value for value in values if value)


def read_orders(pairs: Sequence[str], expect_ids: Sequence[str]) -> list[Order]:
    """Turn arguments into orders. Raises UsageError when they do not pair up."""
    if not pairs:
        raise UsageError(
            "nothing to download: neither SRC DST nor MODEL_URI and MODEL_DIR are given",
            reference="arguments",
            hint="set MODEL_URI=s3://BUCKET/PREFIX/ and MODEL_DIR=/models/NAME",
        )
    if len(pairs) % 2:
        raise UsageError(
            f"arguments come in pairs SRC DST, {len(pairs)} are given",
            reference="arguments",
            hint="give a directory for each prefix; from the environment set both MODEL_URI and"
            " MODEL_DIR",
        )
    count = len(pairs) // 2
    if expect_ids and len(expect_ids) != count:
        raise UsageError(
            f"{len(expect_ids)} expected ids for {count} checkpoints",
            reference="arguments",
            hint="give --expect-id once per pair, in their order",
        )
    ids: Sequence[str | None] = expect_ids or [None] * count
    orders = [
        Order(S3Location.parse(source), local_path(target), expect_id)
        for source, target, expect_id in zip(pairs[::2], pairs[1::2], ids, strict=True)
    ]
    if len({os.path.realpath(order.directory) for order in orders}) < count:
        raise UsageError(
            "two checkpoints for one directory",
            reference="arguments",
            hint="give each checkpoint a directory of its own",
        )
    return orders


def run_downloader(arguments: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["verify"]:
        return run(verify, given[1:], name="model-downloader verify")
    return run(download, given, name="model-downloader")


def _summary(order: Order, result: SyncResult) -> str:
    if result.already_present:
        return f"{order.directory} already holds {result.id}"
    return (
        f"{order.directory} holds {result.id}: {result.files} files,"
        f" {quantity.size(result.total_size)}, {quantity.size(result.fetched_bytes)} fetched"
    )


def _document(order: Order, result: SyncResult) -> dict[str, Any]:
    return {
        "uri": str(order.location),
        "directory": str(order.directory),
        "id": result.id,
        "files": result.files,
        "total_size": result.total_size,
        "fetched_files": result.fetched_files,
        "fetched_bytes": result.fetched_bytes,
        "already_present": result.already_present,
    }
