"""The command line of `model-downloader`; its environment twins are listed in docs/scripting.md."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import click

from downloader import termination
from downloader.deadline import deadline, passed
from downloader.delivery import Delivery, Identity
from downloader.ending import PodEnding
from downloader.halt import Halt
from downloader.log import FORMATS, Course, Log
from downloader.orders import Settings, environment_pairs, read_orders
from downloader.verification import verify
from staging.cli.options import CONTEXT, DISTRIBUTION, Common, common_options, tuning_options
from staging.cli.paths import local_path
from staging.cli.program import (
    Signalled,
    fill_standard_streams,
    interruption,
    print_json,
    run,
)
from staging.cli.quantity import Duration
from staging.cli.traffic import Traffic
from staging.vocabulary.errors import AccessDenied, StagingError, UsageError, together
from staging.vocabulary.events import Started


@dataclass(frozen=True, slots=True)
class Run:
    """What one run of the program has of its own, besides options."""

    log: Log
    ending: PodEnding
    traffic: Traffic
    course: Course
    limit: list[float]
    """Seconds that the run may take, when there is a deadline."""

    def stopped(self, signalled: Signalled) -> StagingError:
        """The error for a signal, or for the alarm of the deadline."""
        if signalled.number == signal.SIGALRM:
            return passed(self.limit[-1], self.course.text())
        interrupted = interruption(signalled)
        interrupted.message += f"; {self.course.text()}"
        return interrupted


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
@click.option(
    "--cache",
    metavar="DIR",
    envvar="MODEL_CACHE",
    help="Directory that pods share: versions go there, and DST becomes a symlink to one.",
)
@click.option(
    "--dry-run",
    is_flag=True,
    envvar="MODEL_DRY_RUN",
    help="Check all that can be checked and show the plan; change nothing.",
)
@click.option(
    "--unverified",
    type=click.Choice(["refuse", "allow"]),
    default="refuse",
    show_default=True,
    envvar="MODEL_UNVERIFIED",
    help="What to do with a prefix that has no manifest.",
)
@click.option(
    "--page-cache",
    type=click.Choice(["keep", "drop", "auto"]),
    default="auto",
    show_default=True,
    envvar="MODEL_PAGE_CACHE",
    help="Whether files stay in memory for the server that reads them next.",
)
@click.option(
    "--layout-check",
    type=click.Choice(["on", "off"]),
    default="on",
    show_default=True,
    envvar="MODEL_LAYOUT_CHECK",
    help="Look at the weights' headers first, and refuse what would not serve.",
)
@click.option(
    "--deadline",
    "limit",
    type=Duration(),
    metavar="TIME",
    envvar="MODEL_DEADLINE",
    help="End with 18 when it takes longer than this, such as 30m or 1h30m.",
)
@click.option(
    "--wait/--no-wait",
    default=True,
    show_default=True,
    envvar="MODEL_WAIT",
    help="Wait for another process that fills the same directory, or end with 15.",
)
@click.option(
    "--log-format",
    type=click.Choice(FORMATS),
    default="text",
    show_default=True,
    envvar="MODEL_LOG_FORMAT",
    help="Lines on stderr: text, or one JSON object each.",
)
@click.option(
    "--termination-log",
    metavar="FILE",
    envvar="MODEL_TERMINATION_LOG",
    show_default=f"{termination.DEFAULT_PATH}, where there is one",
    help="File for the cause of a failure.",
)
@click.version_option(package_name=DISTRIBUTION, prog_name="model-downloader")
@tuning_options("MODEL")
@common_options("MODEL", unattended=True)
@click.pass_obj
def download(
    this: Run,
    common: Common,
    *,
    pairs: tuple[str, ...],
    expect_id: tuple[str, ...],
    cache: str | None,
    dry_run: bool,
    unverified: Literal["refuse", "allow"],
    page_cache: Literal["keep", "drop", "auto"],
    layout_check: Literal["on", "off"],
    limit: float | None,
    wait: bool,
    log_format: str,
    termination_log: str | None,
    part_size: int | None,
    concurrency: int | None,
    memory: int,
) -> None:
    """Bring published checkpoints from S3 to local directories, proven byte by byte.

    SRC is s3://BUCKET/PREFIX/, DST a directory; without them MODEL_PAIRS, or MODEL_URI and MODEL_DIR are
    used. Does nothing when the version is there already, and fetches only what differs otherwise. All that
    can be known of all pairs is checked before the first byte of any is fetched.

    \b
    model-downloader s3://bucket/checkpoints/laguna-xs/ /models/laguna-xs
    """  # noqa: D301 - click reads this backspace
    this.log.quiet = common.quiet
    orders = read_orders(pairs or environment_pairs(os.environ), expect_id)
    if cache is not None and unverified == "allow":
        raise UsageError(
            "a cache holds verified checkpoints alone: --cache and --unverified allow are both given",
            reference="arguments",
            hint="publish a manifest with `staging adopt`, or download without --cache",
        )
    settings = Settings(
        memory=memory,
        part_size=part_size,
        concurrency=concurrency,
        cache=None if cache is None else local_path(cache),
        unverified=unverified == "allow",
        page_cache=page_cache,
        layout_check=layout_check == "on",
        wait=wait,
        dry_run=dry_run,
    )
    if limit is not None:
        this.limit.append(limit)
    deliveries = [
        Delivery(order, common, settings, this.log, this.traffic, this.course) for order in orders
    ]
    try:
        with (
            deadline(limit),
            common.reporting(
                emit=this.log.emit, traffic=this.traffic, bar=this.log.form == "text"
            ) as this.course.report,
        ):
            carry_out(deliveries, common, this, dry_run=dry_run)
    except (StagingError, Signalled) as error:
        ended = this.stopped(error) if isinstance(error, Signalled) else common.explained(error)
        for delivery in deliveries:
            delivery.failed(ended)
        raise ended from ended.__cause__
    finally:
        for delivery in deliveries:
            delivery.summarise()
    conclude(deliveries, this, as_json=common.as_json, dry_run=dry_run)


def carry_out(deliveries: Sequence[Delivery], common: Common, this: Run, *, dry_run: bool) -> None:
    """Bring everything where it belongs; what is wrong with any pair is found before any is begun."""
    for delivery in deliveries:
        delivery.announce()
    waiting = [delivery for delivery in deliveries if not delivery.is_there_already()]
    if not waiting:
        return
    this.course(Started("preflight", None, None))
    identity = identify(common, this.log)
    waiting = [delivery for delivery in waiting if not delivery.is_there_by_manifest(identity)]
    findings: list[StagingError] = []
    for delivery in waiting:
        # Without a manifest one that is alone finds out as it begins.
        if dry_run or len(waiting) > 1 or not delivery.goes_unverified():
            findings += delivery.examine()
    if findings:
        raise together(findings)
    for delivery in waiting if not dry_run else ():
        delivery.fetch()


def identify(common: Common, log: Log) -> Identity:
    """Who the requests will come from; an error when that is not who they should come from."""
    try:
        principal = common.principal()
    except AccessDenied as error:
        return error
    if principal.warning is not None:
        log.warning(principal.warning)
    return principal


def conclude(deliveries: Sequence[Delivery], this: Run, *, as_json: bool, dry_run: bool) -> None:
    """Print the results."""
    if dry_run:
        if as_json:
            print_json({"plans": [delivery.plan().document() for delivery in deliveries]})
        else:
            for delivery in deliveries:
                click.echo(delivery.plan().line())
        return
    if as_json:
        print_json({"checkpoints": [delivery.outcome().document() for delivery in deliveries]})
    else:
        for delivery in deliveries:
            click.echo(delivery.outcome().line())
    if this.ending.termination_log is not None:
        termination.write(
            this.ending.termination_log,
            "\n".join(delivery.outcome().line() for delivery in deliveries),
        )


def run_downloader(
    arguments: Sequence[str] | None = None, environment: Mapping[str, str] | None = None
) -> int:
    """Run the program and return its exit code; after a signal end the process."""
    fill_standard_streams()
    given = list(sys.argv[1:] if arguments is None else arguments)
    environment = os.environ if environment is None else environment
    log = Log("json" if _early(given, environment, "--log-format") == "json" else "text")
    ending = PodEnding(
        log,
        as_json="--json" in given or _is_on(environment.get("MODEL_JSON", "")),
        termination_log=_early(given, environment, "--termination-log")
        or termination.default_path(),
    )
    this = Run(log, ending, Traffic(), Course(), [])

    def farewell(number: int) -> int:
        return ending.tell_without_waiting(this.stopped(Signalled(number)))

    with Halt(this.traffic.stop, farewell) as halt:
        if given[:1] == ["verify"]:
            name = "model-downloader verify"
            code = run(verify, given[1:], name=name, ending=ending, context=this)
        else:
            code = run(download, given, name="model-downloader", ending=ending, context=this)
        halt.leave_if_told(code)
    return code


def _early(given: Sequence[str], environment: Mapping[str, str], option: str) -> str | None:
    """An option's value as it is needed before all of them are read, to say what is wrong with them."""
    variable = "MODEL_" + option.removeprefix("--").replace("-", "_").upper()
    found = environment.get(variable)
    for at, word in enumerate(given):
        if word == option and at + 1 < len(given):
            found = given[at + 1]
        elif word.startswith(f"{option}="):
            found = word.partition("=")[2]
    return found or None


def _is_on(value: str) -> bool:
    """Whether a variable switches a flag on, as click reads it."""
    return value.strip().lower() in ("1", "true", "t", "yes", "y", "on")
