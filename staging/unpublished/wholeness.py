"""Whether a copy that another tool made came to its end, as far as a prefix shows it.

Not guaranteed: more than that. A copy that was broken off between two files, whose names do not tell how many
there should be, looks whole.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import islice
from typing import Final

from staging.store.store import Store
from staging.unpublished.prefix import MAX_OBJECTS, SHOWN, Unpublished, shown
from staging.vocabulary.errors import Conflict, LayoutInvalid, StagingError, StoreUnavailable
from staging.vocabulary.paths import is_reserved

_SHARD: Final = re.compile(r"(.*-)([0-9]{5})-of-([0-9]{5})\.safetensors")


def refuse_unfinished_copy(store: Store, found: Unpublished) -> None:
    """Raise Conflict when a multipart upload is open for a file that is not there yet.

    One at a key that has an object is a leftover. Nothing is said where this role may not list open
    uploads, or the store cannot.
    """
    there = {info.key for info in found.files.values()}
    missing: set[str] = set()  # no more than are shown: anybody may begin uploads without number
    try:
        for listed in islice(store.list_multipart_uploads(found.location.prefix), MAX_OBJECTS):
            name = listed.upload.key[len(found.location.prefix) :]
            if listed.upload.key not in there and not is_reserved(name):
                missing.add(name)
                if len(missing) > SHOWN:
                    break
    except StoreUnavailable:
        raise
    except StagingError:
        return
    if missing:
        names = shown(sorted(missing)[:SHOWN]) + (" and others" if len(missing) > SHOWN else "")
        raise Conflict(
            f"{found.location} is not whole: a multipart upload is open for {names}",
            reference="copy-unfinished",
            hint="let the copy end; when nobody copies any more, copy these files again, or abort their"
            " uploads with `aws s3api abort-multipart-upload`",
            side="store",
        )


def refuse_missing_shards(found: Unpublished) -> None:
    """Raise LayoutInvalid when `missing_shards` finds any."""
    count, missing = missing_shards(found.files)
    if count:
        raise LayoutInvalid(
            f"{found.location} is not whole: there is no {shown(missing, count)}",
            reference="shards-missing",
            hint="copy what is missing, then run again; --layout-check off skips the rules",
            side="store",
        )


def missing_shards(paths: Iterable[str]) -> tuple[int, list[str]]:
    """Files that the numbered names of others, such as `model-00001-of-00004.safetensors`, promise.

    How many are missing, and the names of the first few: a single name may promise 99,999 of them.
    """
    series: dict[tuple[str, str], set[int]] = {}
    for match in filter(None, map(_SHARD.fullmatch, paths)):
        stem, number, promised = match.groups()
        there = series.setdefault((stem, promised), set())
        if 0 < int(number) <= int(promised):
            there.add(int(number))
    count = sum(int(promised) - len(there) for (_, promised), there in series.items())
    names = (
        f"{stem}{number:05d}-of-{promised}.safetensors"
        for (stem, promised), there in sorted(series.items())
        for number in range(1, int(promised) + 1)
        if number not in there
    )
    return count, list(islice(names, SHOWN))
