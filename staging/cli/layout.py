"""Options about the layout rules, shared by the commands that apply them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import click

from staging.layout.policy import Policy
from staging.layout.rules import RULES, near_misses
from staging.vocabulary.redaction import one_line

Command = TypeVar("Command", bound=Callable[..., Any])


class RuleName(click.ParamType[str]):
    """The id of a layout rule."""

    name = "RULE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the id; ends with a usage error that names those that look like it."""
        if value not in RULES:
            near = near_misses(str(value))
            meant = (
                f"did you mean {', '.join(near)}?"
                if near
                else "see --list-rules of `staging check`"
            )
            self.fail(f"there is no rule {one_line(str(value))[:100]!r}; {meant}", param, ctx)
        return str(value)


def policy_options(command: Command) -> Command:
    """Add --ignore, --allow-file and --strict; the command gets them as `policy`."""

    @click.option(
        "--ignore", multiple=True, type=RuleName(), help="Leave this rule out; may be repeated."
    )
    @click.option(
        "--allow-file",
        multiple=True,
        metavar="PATH",
        help="Let this pickle or program pass, by its whole path; may be repeated.",
    )
    @click.option("--strict", is_flag=True, help="Take warnings for errors.")
    @functools.wraps(command)
    def wrapped(
        *args: Any, ignore: tuple[str, ...], allow_file: tuple[str, ...], strict: bool, **rest: Any
    ) -> Any:
        policy = Policy(ignore=frozenset(ignore), allow=frozenset(allow_file), strict=strict)
        return command(*args, policy=policy, **rest)

    return wrapped  # type: ignore[return-value]
