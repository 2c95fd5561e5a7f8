"""`staging check`: would these files serve?"""

from __future__ import annotations

from contextlib import closing
from typing import Any

import click

from staging.cli.options import Common, common_options
from staging.cli.program import print_json
from staging.cli.source import (
    SourceOptions,
    names_archive,
    open_source,
    remarks,
    source_options,
)
from staging.cli.streams import say
from staging.inspection import read_through, take_inventory
from staging.layout.inventory import Inventory
from staging.layout.rules import Finding
from staging.layout.rules import check as judge
from staging.published import explain_absence
from staging.source.ranges import FileAt, ObjectAt
from staging.vocabulary.errors import LayoutInvalid
from staging.vocabulary.location import S3Location
from staging.vocabulary.paths import is_reserved
from staging.vocabulary.redaction import one_line


@click.command()
@click.argument("target")
@source_options
@common_options("STAGING")
def check(common: Common, *, target: str, source_options: SourceOptions) -> None:
    """Apply the rules of a servable checkpoint to TARGET: an S3 prefix, or any source of `upload`.

    Reads names, sizes and the headers of safetensors files, no weights. Exits with 17 when a rule finds
    an error. What is compressed or comes from a pipe is read from end to end.
    """
    inventory = _take(common, target, source_options)
    target = one_line(target)  # from here on it is only shown
    findings = judge(inventory)
    errors = [finding for finding in findings if finding.severity == "error"]
    document = {
        "check": {
            "target": target,
            "files": len(inventory.files),
            "total_size": sum(inventory.files.values()),
            "passed": not errors,
            "findings": [_finding(finding) for finding in findings],
        }
    }
    if not common.as_json:
        for finding in findings:
            click.echo(f"{finding.severity}: {one_line(finding.message)} [{finding.rule}]")
            if finding.hint:
                click.echo(f"  hint: {one_line(finding.hint)}")
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
    store = common.store(location)
    objects = {
        info.key[len(location.prefix) :]: info
        for info in store.list_objects(location.prefix)
        if not (info.key.endswith("/") and info.size == 0)
    }
    objects = {name: info for name, info in objects.items() if not is_reserved(name)}
    if not objects:
        raise explain_absence(store, location)
    sizes = ((name, info.size) for name, info in objects.items())
    return take_inventory(sizes, lambda name: ObjectAt(store, objects[name]))


def _finding(finding: Finding) -> dict[str, Any]:
    return {
        "rule": finding.rule,
        "severity": finding.severity,
        "path": finding.path,
        "message": finding.message,
        "hint": finding.hint,
    }
