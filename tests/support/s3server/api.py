"""The table of operations and the execution of one request."""

from __future__ import annotations

from collections.abc import Callable

from tests.support.s3server import (
    bucket_operations,
    listing_operations,
    multipart_operations,
    object_operations,
)
from tests.support.s3server.call import Call
from tests.support.s3server.checksums import (
    Digests,
    check_checksum,
    check_content_md5,
    check_payload,
    digests_of,
)
from tests.support.s3server.errors import not_implemented
from tests.support.s3server.http import Response
from tests.support.s3server.log import Request
from tests.support.s3server.quirks import Quirk

OPERATIONS: dict[str, Callable[[Call], Response]] = {
    "CreateBucket": object_operations.create_bucket,
    "HeadBucket": object_operations.head_bucket,
    "GetBucketLocation": object_operations.get_bucket_location,
    "GetBucketVersioning": bucket_operations.get_bucket_versioning,
    "GetBucketEncryption": bucket_operations.get_bucket_encryption,
    "GetBucketLifecycleConfiguration": bucket_operations.get_bucket_lifecycle_configuration,
    "GetObjectLockConfiguration": bucket_operations.get_object_lock_configuration,
    "GetBucketPolicyStatus": bucket_operations.get_bucket_policy_status,
    "ListObjectsV2": listing_operations.list_objects_v2,
    "HeadObject": object_operations.get_object,
    "GetObject": object_operations.get_object,
    "PutObject": object_operations.put_object,
    "DeleteObject": object_operations.delete_object,
    "DeleteObjects": object_operations.delete_objects,
    "CreateMultipartUpload": multipart_operations.create_multipart_upload,
    "UploadPart": multipart_operations.upload_part,
    "ListParts": multipart_operations.list_parts,
    "ListMultipartUploads": multipart_operations.list_multipart_uploads,
    "CompleteMultipartUpload": multipart_operations.complete_multipart_upload,
    "AbortMultipartUpload": multipart_operations.abort_multipart_upload,
}

_WITHOUT_BODY_CHECKSUM = frozenset({"CompleteMultipartUpload"})
"""Here `x-amz-checksum-...` speaks of the object, not of the request's body."""


def examine_body(request: Request, body: bytes, quirks: frozenset[Quirk]) -> Digests:
    """Compute the digests of a body and compare them with what the request says. Raises S3Error.

    This is the work per byte; it touches no state, so that it may run on a thread of its own.
    """
    check_payload(request.headers, body)
    digests = digests_of(body)
    check_content_md5(request.headers, digests)
    unchecked = {Quirk.IGNORES_CHECKSUMS, Quirk.ECHOES_CHECKSUMS} & quirks
    if request.operation not in _WITHOUT_BODY_CHECKSUM and not unchecked:
        check_checksum(request.headers, body, digests)
    return digests


def execute(call: Call) -> Response:
    """Run an operation under the store's lock. Raises S3Error."""
    operation = OPERATIONS.get(call.request.operation)
    if operation is None:
        raise not_implemented(
            f"{call.request.method} with {sorted(call.query)}: {call.request.operation}"
        )
    with call.state.lock:
        call.check_account()
        return operation(call)
