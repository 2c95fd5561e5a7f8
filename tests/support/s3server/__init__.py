"""An S3 server for tests, over real HTTP, that can be told to misbehave.

It does what S3 does on every path the product uses (conditional writes, checksums verified on
arrival and combined at Complete, ranges, pages, multipart rules), logs every request, and applies
scripted faults. It keeps everything in memory.

Not guaranteed: versioning, copies, ACLs and reading tags (501); other checksums than CRC64NVME are verified
on arrival but not stored.
"""

from tests.support.s3server.actions import (
    Action,
    CutBody,
    CutUpload,
    DropAfter,
    DropBefore,
    ErrorIn200,
    FlipBit,
    Hold,
    IgnoreRange,
    ReplaceBody,
    StallBody,
    Status,
    WrongRange,
)
from tests.support.s3server.bucket_settings import OWNER, BucketSettings, Rule
from tests.support.s3server.errors import S3Error
from tests.support.s3server.faults import Fault
from tests.support.s3server.log import Request, RequestLog
from tests.support.s3server.objects import Bucket, StoredObject, Upload
from tests.support.s3server.quirks import Quirk
from tests.support.s3server.server import ScriptedS3

__all__ = [
    "OWNER",
    "Action",
    "Bucket",
    "BucketSettings",
    "CutBody",
    "CutUpload",
    "DropAfter",
    "DropBefore",
    "ErrorIn200",
    "Fault",
    "FlipBit",
    "Hold",
    "IgnoreRange",
    "Quirk",
    "ReplaceBody",
    "Request",
    "RequestLog",
    "Rule",
    "S3Error",
    "ScriptedS3",
    "StallBody",
    "Status",
    "StoredObject",
    "Upload",
    "WrongRange",
]
