"""What is to be brought where, and how: pairs of prefix and directory, from arguments or the environment."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from staging.cli.paths import directory_path
from staging.published import require_usable_id
from staging.vocabulary.errors import UsageError
from staging.vocabulary.location import S3Location


@dataclass(frozen=True, slots=True)
class Order:
    """One checkpoint to bring to one directory; `expect_id` pins its id.

    With a cache `directory` is where the symlink to the version goes.
    """

    location: S3Location
    directory: Path
    expect_id: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How all pairs are to be carried out; sizes in bytes. A `dry_run` changes nothing on disk."""

    memory: int
    part_size: int | None
    concurrency: int | None
    cache: Path | None
    unverified: bool
    page_cache: Literal["keep", "drop", "auto"]
    layout_check: bool
    wait: bool
    dry_run: bool


def environment_pairs(environment: Mapping[str, str]) -> tuple[str, ...]:
    """SRC DST... from MODEL_PAIRS, or SRC and DST from MODEL_URI and MODEL_DIR, as far as they are set.

    Raises UsageError when both are set: one of them would be ignored.
    """
    pairs = environment.get("MODEL_PAIRS", "").split()
    single = [value for name in ("MODEL_URI", "MODEL_DIR") if (value := environment.get(name))]
    if pairs and single:
        raise UsageError(
            "both MODEL_PAIRS and MODEL_URI or MODEL_DIR are set",
            reference="arguments",
            hint="set MODEL_URI and MODEL_DIR for one checkpoint, or MODEL_PAIRS for several",
        )
    return tuple(pairs or single)


def read_orders(pairs: Sequence[str], expect_ids: Sequence[str]) -> list[Order]:
    """Turn pairs into orders. Raises UsageError when they do not pair up, and for what cannot be an id."""
    if not pairs:
        raise UsageError(
            "nothing to download: neither SRC DST nor MODEL_URI and MODEL_DIR are given",
            reference="arguments",
            hint="set MODEL_URI=s3://BUCKET/PREFIX/ and MODEL_DIR=/models/NAME",
        )
    if pairs[0] == "verify":
        raise UsageError(
            "`verify` is no prefix, and a command only as the first word",
            reference="arguments",
            hint="put the options after it: `model-downloader verify DIR -q`",
        )
    if len(pairs) % 2:
        raise UsageError(
            f"arguments come in pairs SRC DST, {len(pairs)} are given",
            reference="arguments",
            hint="give a directory for each prefix; from the environment set both MODEL_URI and"
            " MODEL_DIR, or MODEL_PAIRS='SRC DST SRC DST'",
        )
    count = len(pairs) // 2
    if expect_ids and len(expect_ids) != count:
        raise UsageError(
            f"{len(expect_ids)} expected ids for {count} checkpoints",
            reference="arguments",
            hint="give --expect-id once per pair, in their order",
        )
    for expect_id in expect_ids:
        require_usable_id(expect_id)
    ids: Sequence[str | None] = expect_ids or [None] * count
    orders = [
        Order(S3Location.parse(source), directory_path(target), expect_id)
        for source, target, expect_id in zip(pairs[::2], pairs[1::2], ids, strict=True)
    ]
    if len({_place(order.directory) for order in orders}) < count:
        raise UsageError(
            "two checkpoints for one directory",
            reference="arguments",
            hint="give each checkpoint a directory of its own",
        )
    return orders


def _place(directory: Path) -> str:
    """One spelling for a directory. Its own name may be a link of ours: it is not followed."""
    if directory.name in ("", ".."):
        return os.path.realpath(directory)
    return os.path.join(os.path.realpath(directory.parent), directory.name)
