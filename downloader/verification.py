"""`model-downloader verify`: is a directory still what was downloaded into it?"""

from __future__ import annotations

import click

from staging.cli.options import CONTEXT, Common, common_options, memory_option
from staging.cli.paths import directory_path
from staging.cli.verification import verify_local
from staging.published import require_usable_id
from staging.verify import Level
from staging.vocabulary.errors import UsageError


@click.command(context_settings=CONTEXT)
@click.argument("directory")
@click.option(
    "--level",
    type=click.Choice([Level.SIZE.value, Level.DIGEST.value]),
    default=Level.SIZE.value,
    show_default=True,
    help="What to compare: sizes, or every byte.",
)
@click.option(
    "--expect-id", envvar="MODEL_EXPECT_ID", metavar="sha256:...", help="Id it must have."
)
@memory_option("MODEL")
@common_options("MODEL", unattended=True)
def verify(
    common: Common, *, directory: str, level: str, expect_id: str | None, memory: int
) -> None:
    """Compare DIRECTORY with the manifest that was downloaded into it; exits with 11 if it differs."""
    if expect_id is not None and len(ids := expect_id.split()) > 1:
        raise UsageError(
            f"MODEL_EXPECT_ID or --expect-id has {len(ids)} ids, and this is about one directory",
            reference="arguments",
            hint="give --expect-id the id of this directory, which wins over the variable",
        )
    require_usable_id(expect_id)
    verify_local(
        common,
        directory_path(directory),
        Level(level),
        memory=memory,
        expect_id=expect_id,
        ready=True,
    )
