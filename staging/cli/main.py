"""The program `staging` and its commands."""

from __future__ import annotations

import gc
import importlib
import sys
from collections.abc import Sequence
from typing import Final

import click

from staging.cli.options import CONTEXT, DISTRIBUTION
from staging.cli.program import run
from staging.vocabulary.errors import UsageError

_COMMANDS: Final = ("check", "upload", "adopt", "show", "verify", "ls", "preflight", "doctor", "gc")
"""In the order of the job; each is a function in a module of its own name beside this one."""


_OF_THE_EXTRA: Final = ("awscrt", "yaml")
"""What comes with the extra, and without which a command cannot be loaded."""


class _Commands(click.Group):
    """Loads a command when it is asked for, so that none pays for what another needs."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of all commands."""
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Load a command. Raises UsageError when the distribution's extra is not installed."""
        if cmd_name not in _COMMANDS:
            return None
        try:
            module = importlib.import_module(f"staging.cli.{cmd_name}")
        except ModuleNotFoundError as error:
            if error.name is None or error.name.partition(".")[0] not in _OF_THE_EXTRA:
                raise
            raise UsageError(
                "`staging` was installed without what it needs",
                reference="extra-missing",
                hint=f"pip install '{DISTRIBUTION}[stage]', or '.[stage]' in a checkout",
            ) from error
        command: click.Command = getattr(module, cmd_name)
        return command


@click.group(cls=_Commands, context_settings=CONTEXT, no_args_is_help=False)
@click.version_option(package_name=DISTRIBUTION, prog_name="staging")
def staging() -> None:
    """Publish model checkpoints to S3, and check what is published.

    \b
    staging check model.tar                       would it serve?
    staging upload model.tar s3://bucket/prefix/  publish it
    staging verify s3://bucket/prefix/            is it still what was published?
    """  # noqa: D301 - click reads this backspace


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the program and exit."""
    # The SDK's objects stay as long as the process; looking through them again and again costs a third of
    # the time to start.
    gc.set_threshold(100_000, 20, 20)
    code = run(staging, arguments, name="staging")
    gc.freeze()
    sys.exit(code)
