"""A tar that lies in a bucket, as an archive: parallel ranges of one version of an object (I7).

The bucket is a `Store` of its own, so it may be in another region, account or kind of store than the one
that is written to. Its errors are handed on with `side="source"`.
"""

from __future__ import annotations

import difflib
import random
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from staging.source.archive import changed
from staging.store.store import Changed, ObjectInfo, Store
from staging.transfer.ranges import read_range
from staging.transfer.scheduler import Cancellation
from staging.vocabulary.digest import HashFamily
from staging.vocabulary.errors import AccessDenied, NotFound, StagingError
from staging.vocabulary.paths import why_unsafe
from staging.vocabulary.redaction import one_line

_MD5: Final = re.compile(r"[0-9a-f]{32}")
_LISTED: Final = 1000
"""Entries of a prefix that are looked at to find the name that was meant."""


def _identity(info: ObjectInfo, bucket: str, key: str) -> str | None:
    """What names the bytes. A weak ETag names no version; the store refuses to read by one.

    An ETag that looks like an MD5 is one, or is random where objects are encrypted. Others may be anything
    that tells versions of one object apart, so the object's place goes with them.
    """
    if info.etag.startswith("W/"):
        return None
    place = HashFamily.BLAKE3.hash(f"{bucket}/{key}".encode()).hex()[:16]
    alone = _MD5.fullmatch(info.etag) is not None
    return f'"{info.etag}" {info.size}' + ("" if alone else f" {place}")


class S3Archive:
    """One version of an object in a store, as an `Archive`."""

    kind = "s3"
    read_size = None

    def __init__(
        self,
        store: Store,
        key: str,
        *,
        cancelled: Cancellation | None = None,
        rng: random.Random | None = None,
    ) -> None:
        """Look the object up.

        Raises NotFound with the nearest name when there is none, and what the store raises.
        """
        self._store = store
        self._key = key
        self._cancelled = Cancellation() if cancelled is None else cancelled
        self._rng = rng or random.Random()  # noqa: S311 - jitter, not secrets
        self.shown = self.argument = one_line(f"s3://{store.bucket}/{key}")
        self.name = one_line(key.rpartition("/")[2]) or "unnamed"
        with _as_source():
            try:
                info = store.head(key)
            except NotFound as error:
                if error.reference == "bucket":
                    raise
                raise _missing(store, key, self.shown) from error
        self._etag = info.etag
        self.size = info.size
        # A weak ETag names no version; the store refuses to read by one.
        self.identity = _identity(info, store.bucket, key)

    def read_into(self, offset: int, view: memoryview) -> None:
        """Fill `view` with the bytes from `offset`, over broken connections."""
        with _as_source():
            try:
                read_range(
                    self._store,
                    self._key,
                    offset,
                    view,
                    etag=self._etag,
                    cancelled=self._cancelled,
                    rng=self._rng,
                )
            except Changed as error:
                raise changed(self.shown) from error

    def finish(self) -> None:
        """Nothing to check: every range was pinned."""

    def close(self) -> None:
        """Call off what waits. The store belongs to the caller."""
        self._cancelled.set()


@contextmanager
def _as_source() -> Iterator[None]:
    """Errors of the store happen on the source's side here."""
    try:
        yield
    except StagingError as error:
        if error.side == "store":
            error.side = "source"
        raise


def _missing(store: Store, key: str, shown: str) -> NotFound:
    folder, _, name = key.rpartition("/")
    prefix = folder + "/" if folder else ""
    hint = "check the bucket and the key"
    try:
        level = store.list_level(prefix, limit=_LISTED)
    except AccessDenied:  # reading one object is enough for everything else
        level = None
    if level is not None:
        names = [info.key[len(prefix) :] for info in level.objects]
        close = difflib.get_close_matches(name, filter(_can_be_named, names), n=1)
        if f"{name}/" in level.prefixes:
            hint = "this is a prefix, not an archive: give the key of a .tar below it"
        elif close:
            hint = f"did you mean s3://{store.bucket}/{prefix}{close[0]}?"
    return NotFound(f"there is no object {shown}", reference="object", hint=hint, side="source")


def _can_be_named(name: str) -> bool:
    """True for a stranger's name that a person can be told to type."""
    return bool(name) and why_unsafe(name) is None
