"""Ways in which the bytes of an object arrive wrong, each as something a scripted S3 does to an answer.

`KINDS` has for each what a verified download may end with: exit codes when every answer is wrong (persistent)
and when one is (transient). Exit code 0 always means right bytes; whoever uses these looks.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from tests.support.s3server import (
    Action,
    Bucket,
    IgnoreRange,
    ReplaceBody,
    Request,
)
from tests.support.s3server.http import Response

Change = Callable[[bytes], bytes]


@dataclass(frozen=True, slots=True)
class Kind:
    """What a download may end with; `transient` is None for what cannot happen once only."""

    persistent: frozenset[int]
    transient: frozenset[int] | None


def _codes(*codes: int) -> frozenset[int]:
    return frozenset(codes)


KINDS: Final[dict[str, Kind]] = {
    # Of the right length, under the right headers: only a digest tells.
    "flipped-bit": Kind(_codes(11), _codes(0)),
    "noise": Kind(_codes(11), _codes(0)),
    "zeroed": Kind(_codes(11), _codes(0)),
    "swapped": Kind(_codes(11), _codes(0)),
    "shifted": Kind(_codes(11), _codes(0)),
    "foreign": Kind(_codes(11), _codes(0)),
    "wrong-offset": Kind(_codes(11), _codes(0)),
    # Where it meets the header of a shard, that is found before any weight is fetched, and no digest of it
    # is at hand: it is told as what it looks like.
    "rotten": Kind(_codes(11, 16, 17), None),
    "header": Kind(_codes(0, 11, 16, 17), _codes(0, 11, 16, 17)),
    # What HTTP tells. A body that always breaks off comes whole when each answer has enough of the rest.
    "cut-off": Kind(_codes(0, 13), _codes(0)),
    "short": Kind(_codes(0, 11, 13), _codes(0, 11)),
    "longer": Kind(_codes(0, 11, 13), _codes(0, 11)),
    "other-range": Kind(_codes(11), _codes(0, 11)),
    "whole-object": Kind(_codes(0, 11), _codes(0, 11)),
    "replaced": Kind(_codes(11), None),
}


class Replace(Action):
    """Puts another object in the place of the one that is asked for, before the answer."""

    def __init__(self, bucket: Bucket, data: bytes) -> None:
        self._bucket = bucket
        self._data = data

    async def before(self, request: Request) -> Response | None:
        self._bucket.put(request.key, self._data)
        return None


def damage(kind: str, rng: random.Random, *, size: int, bucket: Bucket) -> Action:
    """An action that damages answers about an object of `size` bytes, at least 2.

    "rotten" is no action: `rot` changes the stored bytes. "header" is for looks at the start of a shard.
    """
    if kind == "header":
        kind = rng.choice(("noise", "zeroed", "swapped", "foreign"))
    if kind in _CHANGES:
        return ReplaceBody(_CHANGES[kind](rng))
    if kind == "cut-off":
        return CutOff(rng.random() ** 3)
    if kind in ("wrong-offset", "other-range"):
        return Elsewhere(size, rng.randint(1, 4096), honest=kind == "other-range")
    if kind == "whole-object":
        return IgnoreRange()
    if kind == "replaced":
        return Replace(bucket, rng.randbytes(size))
    raise ValueError(kind)


def rot(rng: random.Random) -> Change:
    """A change for `Bucket.corrupt`: the ETag stays, as when a disk rots."""
    return _CHANGES[rng.choice(("flipped-bit", "noise", "zeroed", "swapped"))](rng)


@dataclass(frozen=True, slots=True)
class CutOff(Action):
    """Promises the whole body and closes the connection after a share of it."""

    share: float

    async def after(self, request: Request, response: Response) -> Response:
        return replace(response, cut_after=int(self.share * response.body_length))


@dataclass(frozen=True, slots=True)
class Elsewhere(Action):
    """Answers a ranged GET with bytes from beside the range, `by` at most.

    Content-Range claims the range that was asked for, or, when `honest`, tells what is served. What is
    asked for as one range has nothing beside it and is turned round instead.
    """

    size: int
    by: int
    honest: bool

    def rewrite(self, headers: Mapping[str, str]) -> Mapping[str, str]:
        first, last = self._span(headers)
        shift = self._shift(first, last)
        return {**headers, "range": f"bytes={first + shift}-{last + shift}"}

    async def after(self, request: Request, response: Response) -> Response:
        first, last = self._span(request.headers)
        if self._shift(first, last) == 0:
            data = response.data()
            return replace(response, body=(_turned(data, self.by),))
        if self.honest:
            return response
        claimed = f"bytes {first}-{last}/{self.size}"
        return replace(response, headers={**response.headers, "Content-Range": claimed})

    def _shift(self, first: int, last: int) -> int:
        return min(self.by, self.size - 1 - last) or -min(self.by, first)

    def _span(self, headers: Mapping[str, str]) -> tuple[int, int]:
        first, last = headers["range"].removeprefix("bytes=").split("-")
        return int(first), min(int(last), self.size - 1)


def _flipped(rng: random.Random) -> Change:
    share, bit = rng.random(), rng.randrange(8)

    def change(data: bytes) -> bytes:
        at = int(share * len(data))
        return data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]

    return change


def _stretch(rng: random.Random, fill: Callable[[int, int], bytes]) -> Change:
    """Change a stretch of at least one byte; `fill` makes it from its length and its first byte."""
    share, length = rng.random(), rng.choice((1, 512, 4096, 65_536, 1 << 20))

    def change(data: bytes) -> bytes:
        at = int(share * len(data))
        end = min(len(data), at + length)
        filled = fill(end - at, data[at])
        return data[:at] + filled + data[end:] if filled != data[at:end] else _inverted(data, at)

    return change


def _noise(rng: random.Random) -> Change:
    seed = rng.randrange(1 << 32)
    return _stretch(rng, lambda length, first: random.Random(seed).randbytes(length))


def _zeroed(rng: random.Random) -> Change:
    return _stretch(rng, lambda length, first: bytes(length))


def _swapped(rng: random.Random) -> Change:
    """Two stretches of one length in each other's place."""
    share = rng.uniform(0.05, 0.5)

    def change(data: bytes) -> bytes:
        length = max(1, int(share * len(data)))
        a, rest, b = data[:length], data[length:-length], data[-length:]
        swapped = b + rest + a
        return swapped if swapped != data and len(swapped) == len(data) else _inverted(data, 0)

    return change


def _shifted(rng: random.Random) -> Change:
    by = rng.randint(1, 4096)

    return lambda data: _turned(data, by)


def _foreign(rng: random.Random) -> Change:
    """The bytes of something else, as many."""
    seed = rng.randrange(1 << 32)
    return lambda data: random.Random(seed).randbytes(len(data))


def _short(rng: random.Random) -> Change:
    share = rng.random() ** 3
    return lambda data: data[: int(share * len(data))]


def _longer(rng: random.Random) -> Change:
    extra = rng.randbytes(rng.randint(1, 5000))
    return lambda data: data + extra


def _turned(data: bytes, by: int) -> bytes:
    at = by % len(data)
    turned = data[at:] + data[:at]
    return turned if turned != data else _inverted(data, 0)


def _inverted(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]


_CHANGES: Final[dict[str, Callable[[random.Random], Change]]] = {
    "flipped-bit": _flipped,
    "noise": _noise,
    "zeroed": _zeroed,
    "swapped": _swapped,
    "shifted": _shifted,
    "foreign": _foreign,
    "short": _short,
    "longer": _longer,
}
