"""`staging verify`: is a prefix or a directory still what was published?"""

from __future__ import annotations

import click

from staging.cli.options import Common, common_options, cores, memory_option
from staging.cli.paths import local_path
from staging.cli.verification import conclude, verify_local
from staging.published import read_manifest
from staging.transfer.sizing import choose
from staging.verify import Level, verify_prefix
from staging.vocabulary.location import S3Location


@click.command()
@click.argument("target")
@click.option(
    "--level",
    type=click.Choice([level.value for level in Level]),
    help="What to compare: sizes, the store's checksums (one HEAD per file; extra objects are not"
    " looked for), or every byte.  [default: checksum for a prefix, digest for a directory]",
)
@click.option("--expect-id", metavar="sha256:...", help="Id the checkpoint must have.")
@memory_option("STAGING")
@common_options("STAGING")
def verify(
    common: Common, *, target: str, level: str | None, expect_id: str | None, memory: int
) -> None:
    """Compare TARGET, a prefix s3://BUCKET/PREFIX/ or a local directory, with its manifest.

    Prints all findings and exits with 11 when there are any. What a store cannot prove is a finding.
    """
    if not target.startswith("s3://"):
        verify_local(
            common, local_path(target), Level(level or "digest"), memory=memory, expect_id=expect_id
        )
        return
    location = S3Location.parse(target)
    concurrency = choose(0, memory=memory, cores=cores()).concurrency
    store = common.store(location, connections=concurrency)
    manifest = read_manifest(store, location, expect_id=expect_id)
    with common.reporting() as report:
        outcome = verify_prefix(
            store,
            location,
            manifest,
            Level(level or "checksum"),
            memory=memory,
            cores=cores(),
            report=report,
        )
    conclude(common, str(location), manifest, outcome)
