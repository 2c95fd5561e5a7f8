"""Options that commands share, and what they are turned into."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

import click

from staging import __version__
from staging.cli.progress import Emit, reporting
from staging.cli.quantity import Size
from staging.cli.traffic import Traffic
from staging.store.s3 import S3Store
from staging.store.settings import ENCRYPTIONS, Encryption, S3Settings
from staging.transfer.memory import default_budget
from staging.vocabulary.errors import StagingError, UsageError
from staging.vocabulary.events import Reporter
from staging.vocabulary.location import S3Location
from staging.vocabulary.redaction import one_line

if TYPE_CHECKING:  # the SDK: slow to import, not always needed
    from staging.wire.boto import BotoWire, Connection
    from staging.wire.identity import Principal

DISTRIBUTION: Final = "checkpoint-staging"
CONTEXT: Final = {"help_option_names": ["-h", "--help"], "max_content_width": 100}

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True, kw_only=True)
class Writing:
    """The options of commands that create objects: how they are to be stored."""

    sse: Encryption | None
    kms_key_id: str | None
    bucket_key: Literal["on", "off"] | None
    storage_class: str | None
    tag: tuple[str, ...]

    def tags(self) -> dict[str, str]:
        """The tags by key. Raises UsageError for what is no KEY=VALUE, and for a key given twice."""
        found: dict[str, str] = {}
        for text in self.tag:
            key, equals, value = text.partition("=")
            if not equals or key in found:
                raise UsageError(
                    f"the tag {one_line(text)[:150]!r} {'is given twice' if equals else 'has no value'}",
                    reference="tags",
                    hint="give --tag KEY=VALUE once for each key",
                )
            found[key] = value
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Common:
    """The options every command has: how to reach the store and how to talk to people."""

    region: str | None
    profile: str | None
    endpoint_url: str | None
    ca_bundle: str | None
    path_style: Literal["on", "off"] | None
    sign_payload: bool
    engine: Literal["auto", "boto", "crt", "raw"]
    bandwidth: int | None
    expected_bucket_owner: str | None
    request_payer: str | None
    no_progress: bool
    quiet: bool
    verbose: bool
    as_json: bool

    def store(
        self,
        location: S3Location,
        *,
        connections: int = 10,
        writing: Writing | None = None,
        traffic: Traffic | None = None,
    ) -> S3Store:
        """The bucket of a location, over as many connections as are used at once.

        `writing` is how objects are to be stored that get created; `traffic` is told of what goes to and
        fro. Raises UsageError, and AccessDenied when requests would not come from whom the environment
        names.
        """
        self._require_offered()
        wire = self.wire(connections)
        if traffic is not None:
            traffic.watch(wire.pace, lambda: wire.region)
        return S3Store(wire, location.bucket, self.settings(writing))

    def settings(self, writing: Writing | None = None) -> S3Settings:
        """What these options put on requests. Raises UsageError."""
        owner, pays = self.expected_bucket_owner, self.request_payer is not None
        if writing is None:
            return S3Settings(expected_owner=owner, requester_pays=pays)
        return S3Settings(
            sse=writing.sse,
            kms_key_id=writing.kms_key_id,
            bucket_key=None if writing.bucket_key is None else writing.bucket_key == "on",
            storage_class=writing.storage_class,
            tags=writing.tags(),
            expected_owner=owner,
            requester_pays=pays,
        )

    def wire(self, connections: int = 10) -> BotoWire:
        """A wire of its own, with as many connections as are used at once. Raises UsageError."""
        from staging.wire.boto import BotoWire
        from staging.wire.pace import Pace

        pace = Pace(ceiling=connections, bandwidth=self.bandwidth)
        return BotoWire(self.connection(connections), pace)

    def connection(self, connections: int = 10) -> Connection:
        """How to reach S3."""
        from staging.wire.boto import Connection

        return Connection(
            region=self.region,
            profile=self.profile,
            endpoint_url=self.endpoint_url,
            ca_bundle=self.ca_bundle,
            connections=connections,
            user_agent=f"{DISTRIBUTION}/{__version__}",
            engine=self.engine,
            path_style=None if self.path_style is None else self.path_style == "on",
            sign_payload=self.sign_payload,
        )

    def principal(self) -> Principal:
        """Who the requests come from. Raises AccessDenied when that is not who the environment names."""
        from staging.wire.identity import principal
        from staging.wire.web_identity import Offered

        return principal(self.connection(), Offered.of(os.environ))

    def _require_offered(self) -> None:
        from staging.wire.web_identity import Offered

        offered = Offered.of(os.environ)
        if offered.web_identity or offered.container_agent:
            from staging.wire.identity import require_offered

            require_offered(self.connection(), offered)

    def explained(self, error: StagingError) -> StagingError:
        """The error, or a better one when it was STS that refused to give credentials."""
        from staging.wire.web_identity import Offered, explained

        return explained(error, Offered.of(os.environ), now=time.time())

    def reporting(
        self, *, emit: Emit | None = None, traffic: Traffic | None = None, bar: bool = True
    ) -> AbstractContextManager[Reporter]:
        """The reporter these options ask for; see `staging.cli.progress.reporting`."""
        return reporting(
            quiet=self.quiet,
            verbose=self.verbose,
            bar=bar and not self.no_progress,
            emit=emit,
            traffic=traffic,
        )


def common_options(twin: str, *, unattended: bool = False) -> Callable[[F], F]:
    """Add the common options to a command, which gets them as its first argument, a `Common`.

    `twin` is the prefix of the environment variables that stand in for options. What a program prints has
    them only where it is `unattended`: started by something that knows no other way to say it.
    """

    def printing(name: str) -> list[str]:
        return [f"{twin}_{name}"] if unattended else []

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
                    "--path-style",
                    type=click.Choice(["on", "off"]),
                    envvar=[f"{twin}_PATH_STYLE"],
                    show_default="on with --endpoint-url",
                    help="Address buckets by path instead of by host name.",
                ),
                click.option(
                    "--sign-payload",
                    is_flag=True,
                    envvar=[f"{twin}_SIGN_PAYLOAD"],
                    help="Hash every body for its signature, where a bucket's policy wants that; slow.",
                ),
                click.option(
                    "--engine",
                    type=click.Choice(["auto", "boto", "crt", "raw"]),
                    envvar=[f"{twin}_ENGINE"],
                    default="auto",
                    show_default=True,
                    help="What moves the bytes.",
                ),
                click.option(
                    "--bandwidth",
                    type=Rate(),
                    envvar=[f"{twin}_BANDWIDTH"],
                    help="Most bytes a second to and from the bucket together, such as 200MB.",
                ),
                click.option(
                    "--expected-bucket-owner",
                    metavar="ACCOUNT",
                    envvar=[f"{twin}_EXPECTED_BUCKET_OWNER"],
                    help="Account that must own the bucket, or S3 refuses every request.",
                ),
                click.option(
                    "--request-payer",
                    type=click.Choice(["requester"]),
                    envvar=[f"{twin}_REQUEST_PAYER"],
                    help="Pay for requests to a bucket of another account that asks for it.",
                ),
                click.option(
                    "--no-progress",
                    is_flag=True,
                    envvar=printing("NO_PROGRESS"),
                    help="Lines instead of a progress bar.",
                ),
                click.option(
                    "-q",
                    "--quiet",
                    is_flag=True,
                    envvar=printing("QUIET"),
                    help="Only warnings and errors.",
                ),
                click.option(
                    "-v",
                    "--verbose",
                    is_flag=True,
                    envvar=printing("VERBOSE"),
                    help="A line for each file.",
                ),
                click.option(
                    "--json",
                    "as_json",
                    is_flag=True,
                    envvar=printing("JSON"),
                    help="One JSON document on stdout.",
                ),
            ]
        ):
            command = option(command)
        return command  # type: ignore[return-value]

    return decorate


class Rate(Size):
    """Bytes a second with a unit: `200MB` or `200MB/s`."""

    name = "rate"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the bytes a second, at least one, or fail as click does."""
        text = value.strip().removesuffix("/s") if isinstance(value, str) else value
        return super().convert(text, param, ctx) or self.fail("nothing would move", param, ctx)


def write_options(twin: str) -> Callable[[F], F]:
    """Add `writing`, a `Writing`, to a command that creates objects."""

    def decorate(function: F) -> F:
        @functools.wraps(function)
        def command(*given: Any, **more: Any) -> Any:
            names = Writing.__dataclass_fields__
            writing = Writing(**{name: more.pop(name) for name in names})
            return function(*given, writing=writing, **more)

        for option in reversed(
            [
                click.option(
                    "--sse",
                    type=click.Choice(ENCRYPTIONS),
                    envvar=[f"{twin}_SSE"],
                    show_default="as the bucket has it",
                    help="Server-side encryption of what is created.",
                ),
                click.option(
                    "--kms-key-id",
                    metavar="KEY",
                    envvar=[f"{twin}_KMS_KEY_ID"],
                    help="Id or ARN of the KMS key, with --sse aws:kms or aws:kms:dsse.",
                ),
                click.option(
                    "--bucket-key",
                    type=click.Choice(["on", "off"]),
                    envvar=[f"{twin}_BUCKET_KEY"],
                    show_default="as the bucket has it",
                    help="Use a bucket key with --sse aws:kms: fewer requests to KMS.",
                ),
                click.option(
                    "--storage-class",
                    metavar="CLASS",
                    envvar=[f"{twin}_STORAGE_CLASS"],
                    show_default="STANDARD",
                    help="Storage class of what is created.",
                ),
                click.option(
                    "--tag",
                    multiple=True,
                    metavar="KEY=VALUE",
                    envvar=[f"{twin}_TAG"],
                    help="Tag of what is created; once for each, at most ten.",
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
