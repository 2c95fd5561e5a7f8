"""`staging show`: what is published under a prefix, or lies in a directory."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from typing import Any, Final

import click

from staging.cli import quantity
from staging.cli.options import Common, Rate, common_options
from staging.cli.paths import local_path
from staging.cli.program import print_json
from staging.cli.verification import local_manifest
from staging.directory.link import followed
from staging.directory.local import LocalDirectory
from staging.kubernetes import DEFAULT_RATE, PodSizing, deployment_patch, pod_sizing
from staging.published import read_manifest
from staging.vocabulary.location import S3Location
from staging.vocabulary.manifest import Manifest
from staging.vocabulary.redaction import one_line

_PLAIN: Final = re.compile(r"[A-Za-z][A-Za-z0-9_-]*|[0-9]+[GM]i")
"""Texts that YAML does not take for anything else when they stand without quotes."""


@click.command()
@click.argument("target")
@click.option(
    "--kubernetes",
    is_flag=True,
    help="Print what a pod needs for it: storage, memory, deadlines.",
)
@click.option(
    "--rate",
    type=Rate(),
    show_default=f"{DEFAULT_RATE // 10**6}MB",
    help="With --kubernetes: bytes a second that network and disk keep up.",
)
@common_options("STAGING")
def show(common: Common, *, target: str, kubernetes: bool, rate: int | None) -> None:
    """Show the manifest of TARGET, a prefix s3://BUCKET/PREFIX/ or a local directory.

    Prints digest, size and name of each file, then the id. With --kubernetes a part of a Deployment
    instead, to be merged into yours.
    """
    if rate is not None and not kubernetes:
        raise click.UsageError("--rate is only for --kubernetes")
    manifest = manifest_of(common, target)
    if kubernetes:
        _show_pod(common, manifest, target, rate or DEFAULT_RATE)
        return
    if common.as_json:
        print_json({"checkpoint": document(manifest, target)})
        return
    width = max(len(str(file.size)) for file in manifest.files)
    for file in manifest.files:
        click.echo(f"{file.digest}  {file.size:>{width}}  {file.path}")
    origin = " ".join(
        str(manifest.source[key]) for key in ("kind", "name") if key in manifest.source
    )
    click.echo(
        f"{len(manifest.files)} files, {quantity.size(manifest.total_size)}"
        f" ({manifest.total_size} bytes), {manifest.hash.value}, created {manifest.created}"
        f" from {origin}\n{manifest.id}"
    )


def manifest_of(common: Common, target: str) -> Manifest:
    """Read the manifest of a prefix or of a local directory."""
    if target.startswith("s3://"):
        location = S3Location.parse(target)
        return read_manifest(common.store(location), location)
    with LocalDirectory(followed(local_path(target))) as local:
        return local_manifest(local)


def document(manifest: Manifest, target: str) -> dict[str, Any]:
    """A manifest as it stands in JSON documents."""
    return {
        "target": target,
        "id": manifest.id,
        "hash": manifest.hash.value,
        "files": [
            {
                "path": file.path,
                "size": file.size,
                "digest": str(file.digest),
                "checksums": dict(file.checksums),
            }
            for file in manifest.files
        ],
        "total_size": manifest.total_size,
        "created": manifest.created,
        "tool": manifest.tool,
        "source": dict(manifest.source),
        "layout": dict(manifest.layout),
        "annotations": dict(manifest.annotations),
    }


def _show_pod(common: Common, manifest: Manifest, target: str, rate: int) -> None:
    sizing = pod_sizing((file.size for file in manifest.files), rate=rate)
    uri = str(S3Location.parse(target)) if target.startswith("s3://") else None
    patch = deployment_patch(sizing, identity=manifest.id, uri=uri)
    if common.as_json:
        about = {"target": target, "id": manifest.id, **dataclasses.asdict(sizing)}
        print_json({"kubernetes": {**about, "patch": patch}})
        return
    click.echo("\n".join([*_assumptions(target, sizing), *_yaml(patch)]))


def _assumptions(target: str, sizing: PodSizing) -> Iterator[str]:
    yield f"# {one_line(target)}: {sizing.files} files, {quantity.size(sizing.total_size)}"
    yield (
        f"# Assumed: {quantity.size(sizing.rate)}/s from the bucket to the disk and from the disk to"
        " the GPUs (--rate)"
    )
    yield (
        f"# Then: downloaded in {quantity.duration(sizing.download_seconds)}, serving within"
        f" {quantity.duration(sizing.load_seconds)} of that"
    )
    yield "# The names vllm and models are those of deploy/: change them to yours"


def _yaml(value: dict[str, Any], indent: str = "") -> Iterator[str]:
    """Mappings, lists of mappings, texts and numbers as YAML in block style."""
    for key, inner in value.items():
        if isinstance(inner, dict):
            yield f"{indent}{key}:"
            yield from _yaml(inner, f"{indent}  ")
        elif isinstance(inner, list):
            yield f"{indent}{key}:"
            for entry in inner:
                first, *rest = _yaml(entry, f"{indent}    ")
                yield f"{indent}  - {first.lstrip()}"
                yield from rest
        else:
            yield f"{indent}{key}: {_scalar(inner)}"


def _scalar(value: str | int) -> str:
    if isinstance(value, str) and _PLAIN.fullmatch(value):
        return value
    return json.dumps(value, ensure_ascii=False)
