"""`staging preflight`: would a values file deploy what it says, from this bucket onto these nodes?"""

from __future__ import annotations

import contextlib
import difflib
import functools
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click

from staging.cli.options import Common, common_options, cores
from staging.cli.paths import local_path, standard_input
from staging.cli.program import print_json
from staging.cli.report import report, table, told
from staging.cli.streams import say
from staging.layout.gpus import instances
from staging.published import read_manifest
from staging.source.stream import read_some
from staging.transfer.memory import default_budget
from staging.transfer.scheduler import Scheduler
from staging.values.deployment import Deployment, read_deployment
from staging.values.document import MAX_BYTES, lines_of, read_values
from staging.values.finding import Checkpoint, Facts, Finding, Published
from staging.values.pins import as_yaml, pin_patch, with_pins
from staging.values.rules import RULES, check
from staging.values.summary import summarise
from staging.verify import Level, verify_prefix
from staging.vocabulary.errors import (
    GRAVITY,
    AccessDenied,
    Conflict,
    IntegrityError,
    LayoutInvalid,
    MalformedInput,
    NoSpace,
    NotFound,
    StagingError,
    Stalled,
    StoreUnavailable,
    UsageError,
)
from staging.vocabulary.location import S3Location
from staging.vocabulary.redaction import one_line

_CONCURRENCY: Final = 8
_TRUSTED: Final = "system:serviceaccount:poolside-models:inference"
_CLASSES: Final = {
    kind.exit_code: kind
    for kind in (
        StagingError,
        UsageError,
        NotFound,
        IntegrityError,
        AccessDenied,
        StoreUnavailable,
        NoSpace,
        Conflict,
        MalformedInput,
        LayoutInvalid,
        Stalled,
    )
}


@dataclass(frozen=True, slots=True)
class _File:
    """A values file: where it is, if anywhere, what is in it, and what that means."""

    path: Path | None
    name: str
    text: str
    deployment: Deployment


@click.command()
@click.argument("values", required=False)
@click.option(
    "--nodes",
    type=click.IntRange(min=1),
    help="GPU nodes that the cluster has: whether all pods fit, and updates too.",
)
@click.option(
    "--instance",
    type=click.Choice(sorted(instances())),
    metavar="TYPE",
    default="p5e.48xlarge",
    show_default=True,
    help="EC2 type of the GPU nodes.",
)
@click.option(
    "--trust",
    metavar="SUB",
    default=_TRUSTED,
    show_default=True,
    help="Service account that the role trusts, as its trust policy names it.",
)
@click.option("--ignore", metavar="RULE", multiple=True, help="Leave a rule out; may be repeated.")
@click.option("--strict", is_flag=True, help="Treat warnings as errors.")
@click.option("--list-rules", is_flag=True, help="Print all rules, and nothing else.")
@click.option(
    "--pin",
    is_flag=True,
    help="Print the patches that pin the ids, and keep the ids in VALUES as comments.",
)
@click.option(
    "--dry-run", is_flag=True, help="With --pin: show the change of VALUES, write nothing."
)
@click.option("--html", metavar="FILE", help="Write a report that stands alone, for people.")
@common_options("STAGING")
def preflight(
    common: Common,
    *,
    values: str | None,
    nodes: int | None,
    instance: str,
    trust: str,
    ignore: tuple[str, ...],
    strict: bool,
    list_rules: bool,
    pin: bool,
    dry_run: bool,
    html: str | None,
) -> None:
    """Check VALUES, the values file of the chart inference or inference-stack, against the bucket.

    VALUES may be - for what `helm get values RELEASE --all -o yaml` prints. Looks at every model's prefix,
    and reads manifests and listings, no weights. Changes nothing, unless --pin or --html is given. Exits
    with the code of the gravest error.
    """
    if list_rules:
        _print_rules(common)
        return
    if values is None:
        raise click.UsageError("give the VALUES file")
    if dry_run and not pin:
        raise click.UsageError("--dry-run is only for --pin")
    unknown = [name for name in ignore if name not in {rule.id for rule in RULES}]
    if unknown:
        raise click.UsageError(f"there is no rule {unknown[0]!r}; --list-rules shows them")
    if pin and values == "-" and not dry_run:
        raise click.UsageError("--pin writes to VALUES: give a file, or --dry-run as well")
    file = _read(values)
    checkpoints = _ask(common, file.deployment)
    facts = Facts(checkpoints, instances()[instance], nodes, trust)
    # A pin that is about to be replaced cannot be wrong.
    left_out = {*ignore, "id-differs"} if pin else set(ignore)
    findings = check(file.deployment, facts, ignore=left_out, strict=strict)
    summary = summarise(file.deployment, facts, findings, file.name)
    document: dict[str, Any] = {"preflight": summary}
    if not common.as_json:
        _say(summary, aside=pin)
    try:
        if html is not None:
            _write(local_path(html), report(summary).encode("utf-8"))
        if any(finding.severity == "error" for finding in findings):
            raise _refusal(file.name, findings)
        if pin:
            document["pin"] = _pin(common, file, checkpoints, dry_run=dry_run)
    except StagingError as error:
        error.document = document
        raise
    if common.as_json:
        print_json(document)


def _read(given: str) -> _File:
    if given == "-":
        path, name = None, "standard input"
        try:
            data = _piped()
        except OSError as error:
            raise _unusable(name, "read", error) from error
    else:
        path = local_path(given)
        name = one_line(str(path))
        data = _content(path, name)
    values = read_values(data, name)
    text = data.decode("utf-8")
    return _File(path, name, text, read_deployment(values, lines_of(text), name))


def _piped() -> bytes:
    """What comes through the pipe to its end, or as much as shows that it is too long."""
    data = bytearray(MAX_BYTES + 1)
    done = 0
    with standard_input() as opened, memoryview(data) as view:
        while done < len(data) and (count := read_some(opened, view[done:])):
            done += count
    return bytes(data[:done])


def _content(path: Path, name: str) -> bytes:
    try:
        with path.open("rb") as opened:
            return opened.read(MAX_BYTES + 1)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise NotFound(
            f"no values file at {name}: {error.strerror}",
            reference="values-file",
            hint="give the file that goes to `helm install -f`",
            side="local",
        ) from error
    except OSError as error:
        raise _unusable(name, "read", error) from error


def _ask(common: Common, deployment: Deployment) -> dict[S3Location, Checkpoint]:
    """What is known about the prefixes of all models, each looked at once."""
    found: dict[S3Location, Checkpoint] = {}
    locations = {model.uri for model in deployment.models if model.uri is not None}
    stores = {
        bucket: common.store(S3Location(bucket, ""), connections=_CONCURRENCY)
        for bucket in sorted({location.bucket for location in locations})
    }

    def look(location: S3Location) -> None:
        store = stores[location.bucket]
        try:
            manifest = read_manifest(store, location)
            outcome = verify_prefix(
                store, location, manifest, Level.SIZE, memory=default_budget(), cores=cores()
            )
        except StagingError as error:
            found[location] = common.explained(error)
            return
        found[location] = Published(
            manifest.id,
            len(manifest.files),
            manifest.total_size,
            manifest.layout,
            tuple(problem.message for problem in outcome.problems),
        )

    if locations:
        with Scheduler(min(_CONCURRENCY, len(locations)), name="preflight") as scheduler:
            for location in sorted(locations, key=str):
                scheduler.submit(functools.partial(look, location))
    return found


def _refusal(name: str, findings: Sequence[Finding]) -> StagingError:
    errors = [finding for finding in findings if finding.severity == "error"]
    gravest = min(errors, key=lambda finding: GRAVITY.index(finding.code))
    count = "1 error" if len(errors) == 1 else f"{len(errors)} errors, the gravest"
    reference = gravest.cause or gravest.rule
    return _CLASSES[gravest.code](
        f"{name} is not ready to be deployed: {count}: {gravest.path}, line {gravest.line}:"
        f" {gravest.message}",
        reference=reference,
        hint=gravest.hint,
        side="store" if gravest.code != UsageError.exit_code else "local",
    )


# Printing


def _print_rules(common: Common) -> None:
    if common.as_json:
        rules = [
            {
                "id": rule.id,
                "severity": rule.severity,
                "code": rule.code,
                "reason": rule.reason,
                "fix": rule.fix,
                "source": rule.source,
            }
            for rule in RULES
        ]
        print_json({"rules": rules})
        return
    width = max(len(rule.id) for rule in RULES)
    for rule in RULES:
        click.echo(f"{rule.id:<{width}}  {rule.severity:<7}  {rule.reason}")


def _say(summary: Mapping[str, Any], *, aside: bool) -> None:
    """Print the table, or, when stdout is for something else, say what was found."""
    for line in told(summary) if aside else table(summary):
        (say if aside else click.echo)(line)


# Pins


def _pin(
    common: Common, file: _File, checkpoints: Mapping[S3Location, Checkpoint], *, dry_run: bool
) -> dict[str, Any]:
    """Pin what is published; returns what JSON says of it."""
    ids = {
        model.key: known.id
        for model in file.deployment.models
        if model.uri is not None and isinstance(known := checkpoints[model.uri], Published)
    }
    pinned = with_pins(file.text, file.deployment, ids, file.name)
    patches = [
        pin_patch(model.deployment, ids[model.key])
        for model in file.deployment.models
        if model.key in ids
    ]
    changed = pinned != file.text
    if changed and file.path is not None and not dry_run:
        _write(file.path, pinned.encode("utf-8"), instead_of=file.text.encode("utf-8"))
    outcome = {"changed": changed, "written": changed and not dry_run, "patches": patches}
    if common.as_json:
        return outcome
    if dry_run:
        for line in difflib.unified_diff(
            file.text.splitlines(), pinned.splitlines(), file.name, file.name, lineterm=""
        ):
            indent = len(line) - len(line[1:].lstrip(" "))
            click.echo(line[:indent] + one_line(line[indent:]))
    else:
        click.echo(as_yaml(patches), nl=False)
        if not common.quiet:
            done = "the ids stand above the URIs" if changed else "has these ids already"
            say(f"{file.name}: {done}")
    return outcome


def _write(path: Path, data: bytes, *, instead_of: bytes | None = None) -> None:
    """Write a file as a whole or not at all, through links, with the mode that it has.

    Raises Conflict when it no longer holds `instead_of`.
    """
    name = one_line(str(path))
    target = Path(os.path.realpath(path))
    try:
        if instead_of is not None and target.read_bytes() != instead_of:
            raise Conflict(
                f"{name} was changed by somebody else meanwhile",
                reference="values-changed",
                hint="run again",
                side="local",
            )
        mode = target.stat().st_mode & 0o7777 if target.exists() else 0o666 & ~_umask()
        descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        try:
            with os.fdopen(descriptor, "wb") as opened:
                opened.write(data)
                opened.flush()
                os.fchmod(opened.fileno(), mode)
                os.fsync(opened.fileno())
            os.replace(temporary, target)
        except BaseException:
            with contextlib.suppress(
                FileNotFoundError
            ):  # a signal may come right after it was moved
                os.unlink(temporary)
            raise
    except OSError as error:
        raise _unusable(name, "written", error) from error


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _unusable(name: str, what: str, error: OSError) -> StagingError:
    return StagingError(
        f"{name} cannot be {what}: {error.strerror}",
        reference="values-file",
        hint="check the path, and permissions of the file and its directory",
        side="local",
    )
