"""The program `staging` and its commands."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

from staging.cli.options import CONTEXT, DISTRIBUTION
from staging.cli.program import run


@click.group(context_settings=CONTEXT, no_args_is_help=False)
@click.version_option(package_name=DISTRIBUTION, prog_name="staging")
def staging() -> None:
    r"""Publish model checkpoints to S3, and check what is published.

    \b
    staging check model.tar                       would it serve?
    staging upload model.tar s3://bucket/prefix/  publish it
    staging verify s3://bucket/prefix/            is it still what was published?
    """


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the program and exit."""
    from staging.cli.check import check
    from staging.cli.ls import ls
    from staging.cli.show import show
    from staging.cli.upload import upload
    from staging.cli.verify import verify

    for command in (check, upload, show, verify, ls):
        staging.add_command(command)
    sys.exit(run(staging, arguments, name="staging"))
