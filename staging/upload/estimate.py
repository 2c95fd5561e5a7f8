"""What an upload will cost, before it starts: parts, requests and hours on links of usual speed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from staging.transfer.sizing import part_size_for
from staging.upload.parts import HELD_BELOW

LINKS_GBPS: Final = (1, 5, 10, 25)
"""Link speeds in Gb/s that estimates are given for."""

_FIXED_REQUESTS: Final = 22
"""Looking at the target, the claim, the listings, the run's record and the manifest, of one page each."""

_PER_UPLOAD: Final = 4
"""Opening and completing an upload, and its record, which goes again."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """Sizes in bytes; `hours` maps a link speed in Gb/s to the hours all bytes take on it."""

    files: int
    total_size: int
    parts: int
    requests: int
    hours: dict[int, float]


def estimate(sizes: Iterable[int], least_part_size: int) -> Estimate:
    """Estimate the upload of files of the given sizes in bytes."""
    files = total = parts = requests = 0
    for size in sizes:
        count = -(-size // part_size_for(size, least_part_size))
        files += 1
        total += size
        if size < HELD_BELOW:
            requests += 1
        else:
            parts += count
            requests += count + _PER_UPLOAD
    return Estimate(
        files=files,
        total_size=total,
        parts=parts,
        requests=requests + _FIXED_REQUESTS,
        hours={speed: total * 8 / (speed * 1e9) / 3600 for speed in LINKS_GBPS},
    )
