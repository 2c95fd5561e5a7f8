"""`staging check`: would these files serve, over how many GPUs, and do they fit?"""

from __future__ import annotations

from contextlib import closing
from typing import Any, Final

import click

from staging.cli.layout import policy_options
from staging.cli.options import Common, common_options
from staging.cli.program import print_json
from staging.cli.quantity import size
from staging.cli.source import (
    SourceOptions,
    names_archive,
    open_source,
    remarks,
    source_options,
)
from staging.cli.streams import say
from staging.inspection import read_through, take_inventory
from staging.layout.gpus import Fit, fits, gpus
from staging.layout.inventory import Inventory
from staging.layout.policy import Policy
from staging.layout.rule import Finding, Rule
from staging.layout.rules import RULES, advise
from staging.layout.summary import summarise
from staging.published import explain_absence
from staging.source.ranges import FileAt, ObjectAt
from staging.vocabulary.errors import LayoutInvalid
from staging.vocabulary.location import S3Location
from staging.vocabulary.paths import is_reserved
from staging.vocabulary.redaction import one_line

_CONCURRENCY: Final = 32  # headers of a prefix that are read at once


@click.command()
@click.argument("target", required=False)
@click.option(
    "--list-rules",
    is_flag=True,
    help="Print all rules and check nothing; with --json all that is known of them.",
)
@policy_options
@click.option(
    "--gpu",
    type=click.Choice(tuple(gpus()), case_sensitive=False),
    help="Say whether the weights fit into GPUs of this type.",
)
@source_options
@common_options("STAGING")
def check(
    common: Common,
    *,
    target: str | None,
    source_options: SourceOptions,
    list_rules: bool,
    policy: Policy,
    gpu: str | None,
) -> None:
    """Apply the rules of a servable checkpoint to TARGET: an S3 prefix, or any source of `upload`.

    Reads names, sizes, the headers of safetensors files and small documents, no weights. Exits with 17 when
    a rule finds an error. What is compressed or comes from a pipe is read from end to end.
    """
    if list_rules:
        _list_rules(common)
        return
    if target is None:
        raise click.UsageError("Missing argument 'TARGET'.")
    inventory = _take(common, target, source_options)
    target = one_line(target)  # from here on it is only shown
    findings = policy.check(inventory)
    errors = [finding for finding in findings if finding.severity == "error"]
    findings += advise(inventory, policy.ignore)
    model = summarise(inventory)
    room = _room(model, gpu)
    document = {
        "check": {
            "target": target,
            "files": len(inventory.files),
            "total_size": sum(inventory.files.values()),
            "passed": not errors,
            "findings": [_finding(finding) for finding in findings],
            "model": model,
            "fit": [_fit(fit) for fit in room],
        }
    }
    if not common.as_json:
        _print(findings, model, room)
    if errors:
        refusal = LayoutInvalid(
            f"{target} would not serve: {len(errors)} error{'s' if len(errors) > 1 else ''},"
            f" the first: {errors[0].message}",
            reference=errors[0].rule,
            hint=errors[0].hint,
            side="store" if target.startswith("s3://") else "source",
        )
        refusal.document = document
        raise refusal
    if common.as_json:
        print_json(document)
    else:
        click.echo(f"{target} ok: {len(inventory.files)} files")


def _list_rules(common: Common) -> None:
    if common.as_json:
        print_json({"rules": [_rule(rule) for rule in RULES.values()]})
        return
    for rule in RULES.values():
        severities = "/".join(rule.severities)
        click.echo(f"{rule.family:12}  {severities:13}  {rule.id:25}  {rule.reason}")


def _take(common: Common, target: str, options: SourceOptions) -> Inventory:
    if target.startswith("s3://") and not names_archive(target):
        return _of_prefix(common, S3Location.parse(target))
    with closing(open_source(target, common=common, options=options)) as source:
        if source.sequential:
            inventory = read_through(source)[1]
        else:
            files = {str(file.path): file for file in source.files()}
            sizes = ((path, file.size) for path, file in files.items())
            inventory = take_inventory(sizes, lambda path: FileAt(source, files[path]))
        source.finish()
    for remark in remarks(source):
        say(f"warning: {remark}")
    return inventory


def _of_prefix(common: Common, location: S3Location) -> Inventory:
    store = common.store(location, connections=_CONCURRENCY)
    objects = {
        info.key[len(location.prefix) :]: info
        for info in store.list_objects(location.prefix)
        if not (info.key.endswith("/") and info.size == 0)
    }
    objects = {name: info for name, info in objects.items() if not is_reserved(name)}
    if not objects:
        raise explain_absence(store, location)
    sizes = ((name, info.size) for name, info in objects.items())
    return take_inventory(
        sizes, lambda name: ObjectAt(store, objects[name]), concurrency=_CONCURRENCY
    )


def _room(model: Any, name: str | None) -> list[Fit]:
    """Whether the weights fit, for each number of GPUs that is possible or depends."""
    if name is None:
        return []
    split = model["tensor_parallel"]
    counts = sorted({*split.get("possible", (1,)), *split.get("depends", ())})
    held = split.get("weight_bytes_per_gpu", {})
    return [
        fits(model["weight_bytes"], gpus()[name], count, per_gpu=held.get(str(count)))
        for count in counts
    ]


def _print(findings: list[Finding], model: Any, room: list[Fit]) -> None:
    for finding in findings:
        click.echo(f"{finding.severity}: {one_line(finding.message)} [{finding.rule}]")
        if finding.hint:
            click.echo(f"  hint: {one_line(finding.hint)}")
    if model["weight_files"]:
        unread = f", {model['unread']} of them not readable" if model["unread"] else ""
        click.echo(f"model: {one_line(model['family'] or 'unknown')}")
        click.echo(
            f"weights: {size(model['weight_bytes'])} in {_count(model['weight_files'], 'file')}{unread},"
            f" {_count(model['tensors'], 'tensor')}, {_count(model['parameters'], 'parameter')}"
        )
        kinds = ", ".join(f"{kind} {size(held)}" for kind, held in model["dtypes"].items())
        click.echo(f"types: {kinds or 'none'}")
        click.echo(f"tensor-parallel sizes: {_sizes(model['tensor_parallel'])}")
    for fit in room:
        verdict = "fits" if fit.fits else "does not fit"
        least = "" if fit.exact else "at least "
        click.echo(
            f"{fit.count} x {fit.gpu.name}: {verdict}; {least}{size(fit.weights)} of weights on each,"
            f" {size(max(fit.left, 0))} left for the cache of keys and values"
        )


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def _sizes(split: Any) -> str:
    if "unknown" in split:
        return f"unknown: {one_line(split['unknown'])}"
    text = ", ".join(map(str, split["possible"])) or "none"
    if split["depends"]:
        text += f"; {', '.join(map(str, split['depends']))} with some servers"
    return text


def _finding(finding: Finding) -> dict[str, Any]:
    return {
        "rule": finding.rule,
        "severity": finding.severity,
        "path": finding.path,
        "field": finding.field,
        "value": finding.value,
        "message": finding.message,
        "hint": finding.hint,
    }


def _fit(fit: Fit) -> dict[str, Any]:
    return {
        "gpu": fit.gpu.name,
        "count": fit.count,
        "fits": fit.fits,
        "usable_bytes": fit.usable,
        "weight_bytes": fit.weights,
        "left_bytes": fit.left,
        "exact": fit.exact,
        "assumptions": list(fit.assumptions),
    }


def _rule(rule: Rule) -> dict[str, Any]:
    return {
        "id": rule.id,
        "family": rule.family,
        "severities": list(rule.severities),
        "reason": rule.reason,
        "fix": rule.fix,
        "source": rule.source,
    }
