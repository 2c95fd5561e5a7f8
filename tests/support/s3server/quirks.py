"""Ways in which S3-compatible stores fall short, for tests of what the product says it cannot prove."""

from __future__ import annotations

from enum import Enum, auto


class Quirk(Enum):
    """One shortcoming. A server without quirks does what S3 does."""

    IGNORES_CHECKSUMS = auto()
    """`x-amz-checksum-...` is accepted, not checked, not kept and never returned (Ceph RGW 16)."""

    ECHOES_CHECKSUMS = auto()
    """`x-amz-checksum-...` is not checked, but kept and returned as it was sent (rclone)."""

    LISTS_PARTS_WITHOUT_CHECKSUMS = auto()
    """ListParts returns ETags and sizes alone."""

    IGNORES_CONDITIONS = auto()
    """`If-None-Match` and `If-Match` mean nothing on PutObject, Complete and DeleteObject (rclone)."""

    IGNORES_COMPLETE_AND_DELETE_CONDITIONS = auto()
    """The same on Complete and DeleteObject alone (Ceph RGW 16)."""

    COMPLETE_WITHOUT_ETAG = auto()
    """Complete answers with an empty ETag; HEAD has it (Ceph RGW 16)."""

    ETAG_IS_NO_DIGEST = auto()
    """ETags are not MD5s, as with SSE-KMS on S3."""
