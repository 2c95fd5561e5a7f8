"""Options about the layout rules, shared by the commands that apply them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import click

from staging.layout.policy import EVERY_RULE, Policy
from staging.layout.rules import RULES, near_misses
from staging.vocabulary.paths import why_unsafe
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


class FilePath(click.ParamType[str]):
    """The whole path of a file in a checkpoint, or of a folder, with a slash behind it."""

    name = "PATH"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the path; ends with a usage error for one that no file of a checkpoint has."""
        reason = why_unsafe(str(value).removesuffix("/"))
        if reason is not None:
            shown = one_line(ascii(str(value)))[:100]
            self.fail(f"no file of a checkpoint has the path {shown}: {reason}", param, ctx)
        return str(value)


def policy_options(command: Command) -> Command:
    """Add --ignore, --allow-file and --strict; the command gets them as `policy`."""

    @click.option(
        "--ignore", multiple=True, type=RuleName(), help="Leave this rule out; may be repeated."
    )
    @click.option(
        "--allow-file",
        multiple=True,
        type=FilePath(),
        help="Let this pickle or program pass, by its whole path, or a folder of them (original/); may be"
        " repeated.",
    )
    @click.option("--strict", is_flag=True, help="Take warnings for errors.")
    @functools.wraps(command)
    def wrapped(
        *args: Any, ignore: tuple[str, ...], allow_file: tuple[str, ...], strict: bool, **rest: Any
    ) -> Any:
        policy = Policy(ignore=frozenset(ignore), allow=frozenset(allow_file), strict=strict)
        return command(*args, policy=policy, **rest)

    return wrapped  # type: ignore[return-value]


def layout_options(command: Command) -> Command:
    """Add --layout-check to those of `policy_options`.

    The command gets `layout`, the rules that count or None, and `early`, whether to judge files as they pass.
    """

    @click.option(
        "--layout-check",
        type=click.Choice(["early", "end", "off"]),
        default="early",
        show_default=True,
        envvar="STAGING_LAYOUT_CHECK",
        help="Apply the rules of a servable checkpoint: as soon as something is certain, or when all of a"
        " source that passes by is read. What can be looked at anywhere is judged before anything is sent.",
    )
    @policy_options
    @functools.wraps(command)
    def wrapped(*args: Any, layout_check: str, policy: Policy, **rest: Any) -> Any:
        off = layout_check == "off"
        if off and policy != EVERY_RULE:
            raise click.UsageError(
                "--layout-check off applies no rule: --ignore, --allow-file and --strict mean nothing with it"
            )
        layout = None if off else policy
        return command(*args, layout=layout, early=layout_check == "early", **rest)

    return wrapped  # type: ignore[return-value]
