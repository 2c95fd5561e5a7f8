"""Reading a range of an object to its end, over broken connections, in one version (I7, I11)."""

from __future__ import annotations

import random
from typing import Final

from staging.store.store import Seen, Store, unseen
from staging.transfer.scheduler import Cancellation
from staging.vocabulary.errors import StoreUnavailable

MAX_ATTEMPTS: Final = 6
"""Requests per range: the first and at most five that go on where a body broke off."""

_BACKOFF: Final = 0.1  # most seconds before the first repeat; the bound doubles each time


def read_range(
    store: Store,
    key: str,
    offset: int,
    view: memoryview,
    *,
    etag: str,
    cancelled: Cancellation,
    rng: random.Random,
    seen: Seen = unseen,
) -> None:
    """Fill `view` with the bytes from `offset` of the version `etag` of an object.

    `seen` is shown each piece of `view` as it is filled, in order and once. An empty `view` needs no
    request: HTTP has no empty range. Raises what `Store.read_into` raises,
    and StoreUnavailable when the body keeps breaking off.
    """
    if not view:
        return
    done = 0
    for attempt in range(MAX_ATTEMPTS):
        if attempt:
            cancelled.sleep(rng.uniform(0, _BACKOFF * 2 ** (attempt - 1)))
        cancelled.check()
        done += store.read_into(key, offset + done, view[done:], etag=etag, seen=seen)
        if done == len(view):
            return
    raise StoreUnavailable(
        f"the body of s3://{store.bucket}/{key} broke off {MAX_ATTEMPTS} times,"
        f" last at byte {offset + done}",
        reference="connection",
        hint="check the network between here and the store, then run again",
        side="store",
    )
