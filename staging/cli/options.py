"""Options that commands share, and what they are turned into."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Final, TypeVar

import click

from staging.cli.progress import reporting
from staging.cli.quantity import Size
from staging.store.s3 import S3Store
from staging.transfer.memory import default_budget
from staging.vocabulary.events import Reporter
from staging.vocabulary.location import S3Location

DISTRIBUTION: Final = "checkpoint-staging"
CONTEXT: Final = {"help_option_names": ["-h", "--help"], "max_content_width": 100}

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True, kw_only=True)
class Common:
    """The options every command has: how to reach the store and how to talk to people."""

    region: str | None
    profile: str | None
    endpoint_url: str | None
    ca_bundle: str | None
    no_progress: bool
    quiet: bool
    verbose: bool
    as_json: bool

    def store(self, location: S3Location, *, connections: int = 10) -> S3Store:
        """The bucket of a location, over as many connections as are used at once."""
        from staging.wire.boto import (  # the SDK: slow to import, not always needed
            BotoWire,
            Connection,
        )

        return S3Store(
            BotoWire(
                Connection(
                    region=self.region,
                    profile=self.profile,
                    endpoint_url=self.endpoint_url,
                    ca_bundle=self.ca_bundle,
                    connections=connections,
                    user_agent=f"{DISTRIBUTION}/{version(DISTRIBUTION)}",
                )
            ),
            location.bucket,
        )

    def reporting(self) -> AbstractContextManager[Reporter]:
        """The reporter these options ask for."""
        return reporting(quiet=self.quiet, verbose=self.verbose, bar=not self.no_progress)


def common_options(twin: str) -> Callable[[F], F]:
    """Add the common options to a command, which gets them as its first argument, a `Common`.

    `twin` is the prefix of the environment variables that stand in for options.
    """

    def decorate(function: F) -> F:
        @functools.wraps(function)
        def command(**given: Any) -> Any:
            names = Common.__dataclass_fields__
            common = Common(**{name: given.pop(name) for name in names})
            return function(common, **given)

        for option in reversed(
            [
                click.option(
                    "--region",
                    envvar=[f"{twin}_REGION", "AWS_REGION", "AWS_DEFAULT_REGION"],
                    help="Region of the bucket. Found out from the bucket when not given.",
                ),
                click.option(
                    "--profile",
                    envvar=[f"{twin}_PROFILE"],
                    help="Profile of the AWS configuration files.",
                ),
                click.option(
                    "--endpoint-url",
                    metavar="URL",
                    envvar=[f"{twin}_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"],
                    help="Address of an S3-compatible store.",
                ),
                click.option(
                    "--ca-bundle",
                    type=click.Path(exists=True, dir_okay=False),
                    envvar=[f"{twin}_CA_BUNDLE", "AWS_CA_BUNDLE"],
                    help="Certificates to trust instead of the system's.",
                ),
                click.option(
                    "--no-progress", is_flag=True, help="Lines instead of a progress bar."
                ),
                click.option("-q", "--quiet", is_flag=True, help="Only warnings and errors."),
                click.option("-v", "--verbose", is_flag=True, help="A line for each file."),
                click.option(
                    "--json", "as_json", is_flag=True, help="One JSON document on stdout."
                ),
            ]
        ):
            command = option(command)
        return command  # type: ignore[return-value]

    return decorate


def memory_option(twin: str) -> Callable[[F], F]:
    """Add `memory` (bytes) to a command."""
    return click.option(
        "--memory",
        type=Size(),
        envvar=[f"{twin}_MEMORY"],
        default=default_budget,
        show_default="a quarter of the machine's or container's, 192MiB to 4GiB",
        help="Memory to use, such as 512MiB.",
    )


def tuning_options(twin: str) -> Callable[[F], F]:
    """Add `part_size` (bytes), `concurrency` and `memory` (bytes) to a command."""

    def decorate(function: F) -> F:
        for option in (
            memory_option(twin),
            click.option(
                "--concurrency",
                type=click.IntRange(min=1),
                envvar=[f"{twin}_CONCURRENCY"],
                show_default="from cores and memory",
                help="Parts in flight at once.",
            ),
            click.option(
                "--part-size",
                type=Size(),
                envvar=[f"{twin}_PART_SIZE"],
                show_default="from file sizes",
                help="Bytes per request, a multiple of 16MiB.",
            ),
        ):
            function = option(function)
        return function

    return decorate


def cores() -> int:
    """Processors this process may use."""
    return len(os.sched_getaffinity(0))
