"""`staging gc`: drop what interrupted uploads left."""

from __future__ import annotations

import datetime
from typing import Any, Final

import click

from staging.cli import quantity
from staging.cli.options import Common, common_options
from staging.cli.program import print_json
from staging.cli.streams import say
from staging.upload.unfinished import Unfinished, drop, find_unfinished
from staging.vocabulary.errors import StagingError, UsageError
from staging.vocabulary.location import S3Location
from staging.vocabulary.redaction import one_line

_CONNECTIONS: Final = 18
_SHOWN: Final = 3


@click.command()
@click.argument("root", metavar="s3://BUCKET[/PREFIX/]")
@click.option(
    "--uploads", is_flag=True, help="Multipart uploads that interrupted uploads left open."
)
@click.option(
    "--older-than",
    type=quantity.Age(),
    default="24h",
    show_default=True,
    metavar="AGE",
    help="Leave alone what has moved within this time: it may be at work.",
)
@click.option("--yes", is_flag=True, help="Drop them. Without it they are only listed.")
@common_options("STAGING")
def gc(
    common: Common, *, root: str, uploads: bool, older_than: datetime.timedelta, yes: bool
) -> None:
    """List, and with --yes drop, what interrupted uploads left below a prefix.

    Only uploads that `staging upload` recorded are touched, never other people's. Dropping one that is
    still at work makes it send its files again, or fail.
    """
    if not uploads:
        raise UsageError(
            "nothing to collect was named",
            reference="arguments",
            hint="give --uploads for the multipart uploads that interrupted uploads left open",
        )
    top = S3Location.parse(root)
    store = common.store(top, connections=_CONNECTIONS)
    now = datetime.datetime.now(datetime.UTC)
    runs = find_unfinished(store, top)
    stale = [run for run in runs if run.is_stale(now, older_than)]
    left: list[str] = []
    if yes:
        for run in stale:
            left += drop(store, run)
    document = {
        "gc": {
            "uploads": [_describe(run, now, stale=run in stale) for run in runs],
            "dropped": yes,
            "leftovers": left,
        }
    }
    if not common.as_json:
        for run in runs:
            click.echo(_line(run, now, stale=run in stale))
    if left:
        refusal = StagingError(
            f"not everything could be dropped: {'; '.join(map(one_line, left[:_SHOWN]))}",
            reference="gc-incomplete",
            hint="the role needs s3:AbortMultipartUpload and s3:DeleteObject under the prefix; run again",
            side="store",
        )
        refusal.document = document
        raise refusal
    if common.as_json:
        print_json(document)
    if not common.quiet:
        say(_summary(runs, stale, yes=yes))


def _line(run: Unfinished, now: datetime.datetime, *, stale: bool) -> str:
    files = f"{run.files} file{'' if run.files == 1 else 's'}"
    return (
        f"{one_line(str(run.location))}  {one_line(run.token)}  {files}"
        f"  {quantity.size(run.waiting_bytes)}  {_idle(run, now)}{'' if stale else '  (too young)'}"
    )


def _idle(run: Unfinished, now: datetime.datetime) -> str:
    if run.last_moved is None:
        return "idle for an unknown time"
    return f"idle for {quantity.duration(max(0.0, (now - run.last_moved).total_seconds()))}"


def _summary(runs: list[Unfinished], stale: list[Unfinished], *, yes: bool) -> str:
    if not runs:
        return "no unfinished uploads"
    size = quantity.size(sum(run.waiting_bytes for run in stale))
    if yes:
        return f"dropped {len(stale)} of {len(runs)} unfinished uploads, {size}"
    return f"{len(stale)} of {len(runs)} unfinished uploads, {size}, would be dropped: give --yes"


def _describe(run: Unfinished, now: datetime.datetime, *, stale: bool) -> dict[str, Any]:
    moved = run.last_moved
    return {
        "uri": str(run.location),
        "token": run.token,
        "files": run.files,
        "waiting_bytes": run.waiting_bytes,
        "idle_seconds": None if moved is None else max(0, int((now - moved).total_seconds())),
        "stale": stale,
    }
