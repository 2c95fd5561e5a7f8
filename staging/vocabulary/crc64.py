"""CRC-64/NVME as S3 uses it for full-object checksums: per part, combined, in its base64 text form.

`Crc64` values are plain integers; the wire form is base64 of the eight big-endian bytes, as in
`x-amz-checksum-crc64nvme`. The arithmetic is `awscrt.checksums`, which releases the GIL.

A checksum finds accidents on the wire and at rest. It is no digest: content is named by
`staging.vocabulary.digest` alone.
"""

from __future__ import annotations

import base64

from awscrt.checksums import combine_crc64nvme, crc64nvme

from staging.vocabulary.digest import Bytes


def crc64(data: Bytes, previous: int = 0) -> int:
    """CRC-64/NVME of `data`, continuing from `previous`."""
    return int(crc64nvme(data, previous))


def combine(first: int, second: int, second_length: int) -> int:
    """CRC of the concatenation of two byte strings, the second of `second_length` bytes."""
    return int(combine_crc64nvme(first, second, second_length))


def to_text(value: int) -> str:
    """The base64 text form that S3 sends and stores."""
    return base64.b64encode(value.to_bytes(8, "big")).decode("ascii")


def from_text(text: str) -> int:
    """Inverse of `to_text`. Raises ValueError unless `text` is what `to_text` makes of some value."""
    try:
        raw = base64.b64decode(text, validate=True)
    except ValueError as error:  # also for characters that are not ASCII
        raise ValueError(f"not a CRC64NVME checksum: {text[:40]!r}") from error
    value = int.from_bytes(raw, "big")
    if len(raw) != 8 or to_text(value) != text:
        raise ValueError(f"not a CRC64NVME checksum: {text[:40]!r}")
    return value
