"""Verifying a directory and telling the outcome: what `staging verify` and the downloader share."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click

from staging.cli import quantity
from staging.cli.options import Common, cores
from staging.cli.program import print_json
from staging.cli.streams import say
from staging.directory.link import followed
from staging.directory.local import LocalDirectory
from staging.published import require_id
from staging.verify import Level, Verification, verify_directory
from staging.vocabulary.errors import IntegrityError, NotFound
from staging.vocabulary.location import MANIFEST_NAME
from staging.vocabulary.manifest import Manifest
from staging.vocabulary.redaction import one_line

_SHOWN: Final = 1000


def verify_local(
    common: Common,
    path: Path,
    level: Level,
    *,
    memory: int,
    expect_id: str | None = None,
    ready: bool = False,
) -> None:
    """Verify a local directory against the manifest in it. Raises IntegrityError when it differs.

    With `ready` the ready marker must be there too, and be for this manifest.
    """
    with LocalDirectory(followed(path)) as local, common.reporting() as report:
        manifest = local_manifest(local)
        require_id(manifest, expect_id, str(path), side="local")
        marker = local.read_marker() if ready else None
        if ready and (marker is None or not marker.covers(manifest)):
            raise IntegrityError(
                f"{str(path)!r} is not ready: a download began and did not finish",
                reference="not-ready",
                hint="run `model-downloader` on it again",
                side="local",
            )
        outcome = verify_directory(
            local, manifest, level, memory=memory, cores=cores(), report=report
        )
    conclude(common, str(path), manifest, outcome)


def local_manifest(local: LocalDirectory) -> Manifest:
    """The manifest in a directory. Raises NotFound when there is none."""
    manifest = local.read_manifest()
    if manifest is None:
        raise NotFound(
            f"{str(local.path)!r} holds no {MANIFEST_NAME}",
            reference="not-published",
            hint="fill it with `model-downloader`, or sync the whole prefix, .checkpoint/ included",
            side="local",
        )
    return manifest


def conclude(common: Common, target: str, manifest: Manifest, outcome: Verification) -> None:
    """Print the outcome. Raises IntegrityError, after all findings, when it is not a pass."""
    if outcome.passed:
        if common.as_json:
            print_json(_document(target, manifest, outcome))
        else:
            mark = ", unverified" if manifest.is_unverified else ""
            click.echo(f"{target} {manifest.id} {outcome.level.value} ok{mark}")
        if not common.quiet:
            say(
                f"{outcome.files} files, {quantity.size(manifest.total_size)},"
                f" {quantity.size(outcome.read_bytes)} read"
            )
        return
    if not common.as_json:
        for problem in outcome.problems[:_SHOWN]:
            click.echo(one_line(problem.message))
    kinds = {problem.kind for problem in outcome.problems}
    count = len(outcome.problems)
    only_unproven = kinds == {"not-provable"}
    error = IntegrityError(
        f"{target} is not proven to be {manifest.id}: {count} finding{'s' if count > 1 else ''},"
        f" the first: {outcome.problems[0].message}",
        reference="not-provable" if only_unproven else "verify-differs",
        hint="--level digest reads every byte and proves it on any store"
        if only_unproven
        else _mend(target),
        side="local" if not target.startswith("s3://") else "store",
    )
    error.document = _document(target, manifest, outcome)
    raise error


def _mend(target: str) -> str:
    if target.startswith("s3://"):
        return "publish the checkpoint again under a new prefix"
    return (
        "delete the files that differ and run `model-downloader` again: it fetches what is missing"
    )


def _document(target: str, manifest: Manifest, outcome: Verification) -> dict[str, object]:
    return {
        "verify": {
            "target": target,
            "id": manifest.id,
            "level": outcome.level.value,
            "unverified": manifest.is_unverified,
            "passed": outcome.passed,
            "files": outcome.files,
            "read_bytes": outcome.read_bytes,
            "findings": [
                {"path": problem.path, "kind": problem.kind, "message": problem.message}
                for problem in outcome.problems
            ],
        }
    }
