"""From a request head to an operation, a bucket and a key. Path-style addressing only."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import parse_qsl, unquote

from tests.support.s3server.http import Head

_CREDENTIAL = re.compile(r"Credential=([^/,]+)/(\d{8})/([^/]+)/([^/]+)/aws4_request")
_PRESIGNED_CREDENTIAL = re.compile(r"([^/]+)/(\d{8})/([^/]+)/([^/]+)/aws4_request")

_SUBRESOURCES = frozenset(
    {
        *(
            "acl",
            "attributes",
            "cors",
            "delete",
            "encryption",
            "legal-hold",
            "lifecycle",
            "list-type",
        ),
        *("location", "logging", "notification", "object-lock", "partNumber", "policy"),
        "policyStatus",
        *(
            "publicAccessBlock",
            "replication",
            "restore",
            "retention",
            "select",
            "tagging",
            "torrent",
        ),
        *("uploadId", "uploads", "versionId", "versioning", "versions", "website"),
    }
)
"""Query names that make another operation of a request."""


class Target(NamedTuple):
    """What a request is about. `operation` is "Unknown" when the server does not have it."""

    operation: str
    bucket: str
    key: str
    query: Mapping[str, str]
    access_key: str | None
    region: str | None


def route(head: Head) -> Target:
    path, _, raw_query = head.target.partition("?")
    bucket, _, key = path.removeprefix("/").partition("/")
    query = dict(parse_qsl(raw_query, keep_blank_values=True))
    names = frozenset(query) & _SUBRESOURCES
    if not bucket:
        operation = "Unknown"
    elif not key:
        operation = _bucket_operation(head.method, names)
    else:
        operation = _object_operation(
            head.method, names, copies="x-amz-copy-source" in head.headers
        )
    return Target(operation, unquote(bucket), unquote(key), query, *_signer(head, query))


def _bucket_operation(method: str, names: frozenset[str]) -> str:
    return {
        ("PUT", frozenset()): "CreateBucket",
        ("HEAD", frozenset()): "HeadBucket",
        ("GET", frozenset({"location"})): "GetBucketLocation",
        ("GET", frozenset({"uploads"})): "ListMultipartUploads",
        ("GET", frozenset({"list-type"})): "ListObjectsV2",
        ("POST", frozenset({"delete"})): "DeleteObjects",
        ("GET", frozenset({"versioning"})): "GetBucketVersioning",
        ("GET", frozenset({"encryption"})): "GetBucketEncryption",
        ("GET", frozenset({"lifecycle"})): "GetBucketLifecycleConfiguration",
        ("GET", frozenset({"object-lock"})): "GetObjectLockConfiguration",
        ("GET", frozenset({"policyStatus"})): "GetBucketPolicyStatus",
    }.get((method, names), "Unknown")


def _object_operation(method: str, names: frozenset[str], *, copies: bool) -> str:
    operation = {
        ("HEAD", frozenset()): "HeadObject",
        ("GET", frozenset()): "GetObject",
        ("PUT", frozenset()): "PutObject",
        ("DELETE", frozenset()): "DeleteObject",
        ("POST", frozenset({"uploads"})): "CreateMultipartUpload",
        ("PUT", frozenset({"partNumber", "uploadId"})): "UploadPart",
        ("GET", frozenset({"uploadId"})): "ListParts",
        ("POST", frozenset({"uploadId"})): "CompleteMultipartUpload",
        ("DELETE", frozenset({"uploadId"})): "AbortMultipartUpload",
    }.get((method, names), "Unknown")
    if copies:
        return {"PutObject": "CopyObject", "UploadPart": "UploadPartCopy"}.get(operation, "Unknown")
    return operation


def _signer(head: Head, query: Mapping[str, str]) -> tuple[str | None, str | None]:
    """Access key id and region of the signature, in the header or in a presigned query."""
    match = _CREDENTIAL.search(head.headers.get("authorization", ""))
    if match is None:
        match = _PRESIGNED_CREDENTIAL.fullmatch(query.get("X-Amz-Credential", ""))
    return (match[1], match[3]) if match else (None, None)
