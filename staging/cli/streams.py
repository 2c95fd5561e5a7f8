"""Standard error, on which nothing may depend: results go to stdout, and work goes on unheard."""

from __future__ import annotations

import os
import sys
from typing import Final

import click

UNHEARD: Final = (OSError, ValueError)
"""What writing raises when nobody can be told: a closed pipe or file, a terminal that has gone."""


def say(text: str) -> None:
    """Write lines to stderr, if anybody can be told."""
    try:
        click.echo(text, err=True)
    except UNHEARD:
        settle_stderr()


def settle_stderr() -> None:
    """Lead stderr nowhere when it cannot be written to.

    What is still in its buffer would fail again as the interpreter ends, and change the exit code.
    """
    try:
        sys.stderr.flush()
    except UNHEARD:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 2)
        os.close(nowhere)
