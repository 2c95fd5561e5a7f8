"""`staging doctor`: what this role may do with a bucket, and what the store can do."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Sequence
from typing import Any, Final

import click

from staging.cli.options import Common, Writing, common_options, write_options
from staging.cli.program import print_json
from staging.cli.streams import say
from staging.doctor import (
    Check,
    Group,
    ReadTest,
    Setup,
    WriteTest,
    look_at_setup,
    merged,
    missing_permissions,
)
from staging.doctor.policies import (
    Policy,
    dumps,
    key_arn,
    partition_of,
    pod_policy,
    upload_policy,
)
from staging.store.bucket import S3Bucket
from staging.store.s3 import S3Store
from staging.store.settings import S3Settings
from staging.vocabulary.errors import AccessDenied, StagingError
from staging.vocabulary.location import S3Location
from staging.vocabulary.redaction import one_line
from staging.wire.wire import WireError

_TITLES: Final[dict[Group, str]] = {
    "connection": "who and where",
    "bucket": "the bucket",
    "permission": "permissions",
    "store": "the store",
}


@click.command(epilog="See docs/scripting.md for exit codes and environment variables.")
@click.argument("target", metavar="s3://BUCKET/PREFIX/")
@click.option(
    "--write-test",
    is_flag=True,
    help="Also create, complete, abort and delete objects below PREFIX/.checkpoint/doctor-.../.",
)
@click.option(
    "--policy",
    type=click.Choice(["upload", "pod", "both"]),
    help="Print the IAM policies that this prefix needs, and nothing else.",
)
@write_options("STAGING")
@common_options("STAGING")
def doctor(
    common: Common, *, target: str, write_test: bool, policy: str | None, writing: Writing
) -> None:
    """Find out what these credentials may do with a bucket, and what the store can do.

    Reads alone, unless --write-test is given. Prints a line for each thing that was looked at: ok,
    missing or unknown, and what needs it. Exits with 12 when a permission is missing that uploading or
    downloading cannot do without.

    \b
    staging doctor s3://bucket/checkpoints/laguna-xs/ --write-test
    staging doctor s3://bucket/checkpoints/ --policy pod > inference-pod-policy.json
    """  # noqa: D301 - click reads this backspace
    if policy is not None and write_test:
        raise click.UsageError("--policy and --write-test exclude each other")
    location = S3Location.parse(target)
    settings = common.settings(writing)
    wire = common.wire()
    store = S3Store(wire, location.bucket, settings)
    bucket = S3Bucket(wire, location.bucket, settings)
    if policy is not None:
        _show_policies(common, location, settings, policy, bucket)
        return
    token = secrets.token_hex(8)
    reading = ReadTest(store, location, token=token)
    setup = look_at_setup(bucket, location)
    kms = setup.kms(settings)
    checks = [*_connection(common), *setup.checks, *reading.run(settings, kms=kms)]
    if not write_test:
        _conclude(common, location, checks)
        return
    test = WriteTest(store, location, settings, token=token, kms=kms)
    try:
        test.run()
    finally:
        for leftover in test.leftovers:
            say(f"left behind, safe to delete: {one_line(leftover)}")
    _conclude(common, location, merged(checks, test.checks), test)


def _connection(common: Common) -> list[Check]:
    """Who asks, and where: what is set up on this machine, and what STS says."""
    from staging.wire.identity import caller, surroundings

    connection = common.connection()
    try:
        here = surroundings(connection)
    except WireError as error:
        return [Check("connection", "credentials", "unknown", "", f"{error.code}: {error.message}")]
    try:
        who = caller(connection)
        identity = Check("connection", "identity", "ok", "", f"{who.arn}, account {who.account}")
    except WireError as error:
        text = f"STS does not tell: {error.code} {error.message}".rstrip()
        identity = Check("connection", "identity", "unknown", "", text)
    addressed = "by path" if here.path_style else "by host name"
    return [
        identity,
        Check("connection", "credentials", "ok", "", f"from {here.credentials or 'nowhere'}"),
        Check("connection", "endpoint", "ok", "", f"{here.endpoint_url}, buckets {addressed}"),
        Check(
            "connection",
            "region",
            "ok" if here.region else "unknown",
            "",
            here.region or "none is configured: the bucket tells",
        ),
    ]


def _conclude(
    common: Common, location: S3Location, checks: Sequence[Check], test: WriteTest | None = None
) -> None:
    """Print the report, and raise the error that it comes down to, if there is one."""
    document = _document(location, checks, test)
    missing = missing_permissions(checks)
    error: StagingError | None = test.failure if test is not None else None
    if error is None and missing:
        names = ", ".join(check.name for check in missing)
        error = AccessDenied(
            f"{location} needs what these credentials may not do: {names}",
            reference="permissions-missing",
            hint=f"{missing[0].hint or 'change the role'}; `staging doctor {location} --policy both` prints"
            " policies that are enough",
            side="store",
        )
    if not common.as_json:
        _print_table(location, checks)
        if error is None and not common.quiet:
            say(_summary(checks))
    if error is not None:
        error.document = document
        raise error
    if common.as_json:
        print_json(document)


def _summary(checks: Sequence[Check]) -> str:
    open_questions = [check.name for check in checks if check.required and check.state == "unknown"]
    if open_questions:
        return f"nothing that is needed is missing; not known: {', '.join(open_questions)}"
    return "everything that is needed is there"


def _print_table(location: S3Location, checks: Sequence[Check]) -> None:
    click.echo(one_line(str(location)))
    name_width = max(len(check.name) for check in checks)
    need_width = max(len(check.needed_for) for check in checks)
    for group, title in _TITLES.items():
        rows = [check for check in checks if check.group == group]
        if rows:
            click.echo(f"\n{title}")
        for row in rows:
            click.echo(
                f"  {row.name:<{name_width}}  {row.state:<7}  {row.needed_for:<{need_width}}"
                f"  {one_line(row.detail)}"
            )


def _document(
    location: S3Location, checks: Sequence[Check], test: WriteTest | None
) -> dict[str, Any]:
    return {
        "doctor": {
            "uri": str(location),
            "write_test": test is not None,
            "checks": [
                {**dataclasses.asdict(check), "detail": one_line(check.detail)} for check in checks
            ],
            "leftovers": [] if test is None else list(test.leftovers),
        }
    }


def _show_policies(
    common: Common, location: S3Location, settings: S3Settings, which: str, bucket: S3Bucket
) -> None:
    """Print policies for what can be found out about the bucket. A role that may not look is no error."""
    setup = Setup()
    try:
        setup = look_at_setup(bucket, location)
    except StagingError as error:
        say(f"warning: the bucket was not looked at: {one_line(error.message)}")
    region = setup.region or common.region
    key, kms = setup.kms_key(settings), setup.kms(settings)
    bare = key is not None and not key.startswith("arn:")
    arn = key_arn(key, region=region, account=_account(common) if bare else None)
    if kms is None or (key is not None and arn is None):
        say(
            "warning: the ARN of the KMS key is not known: where the bucket uses a key of your own, give it"
            " with --sse aws:kms --kms-key-id"
        )
    partition = partition_of(region)
    policies: dict[str, Policy] = {
        "upload": upload_policy(
            location, kms_key=arn, tags=bool(settings.tags), partition=partition
        ),
        "pod": pod_policy(location.bucket, kms_key=arn, partition=partition),
    }
    chosen = policies if which == "both" else {which: policies[which]}
    if common.as_json:
        print_json({"policies": chosen})
        return
    click.echo(dumps(chosen if which == "both" else policies[which]))


def _account(common: Common) -> str | None:
    from staging.wire.identity import caller

    try:
        return caller(common.connection()).account
    except WireError:
        return None
