"""The GETs that tell what a bucket is set up to do."""

from __future__ import annotations

from tests.support.s3server import xml
from tests.support.s3server.bucket_settings import Rule
from tests.support.s3server.call import Call, xml_response
from tests.support.s3server.errors import S3Error
from tests.support.s3server.http import Response
from tests.support.s3server.xml import Xml, element


def get_bucket_versioning(call: Call) -> Response:
    status = call.bucket.settings.versioning
    return _answer("VersioningConfiguration", *([element("Status", status)] if status else []))


def get_bucket_encryption(call: Call) -> Response:
    default = call.bucket.settings.encryption
    if default is None:
        raise _not_set("ServerSideEncryptionConfigurationNotFoundError", "encryption")
    algorithm, key, bucket_key = default
    return _answer(
        "ServerSideEncryptionConfiguration",
        element(
            "Rule",
            element(
                "ApplyServerSideEncryptionByDefault",
                element("SSEAlgorithm", algorithm),
                *([element("KMSMasterKeyID", key)] if key else []),
            ),
            element("BucketKeyEnabled", bucket_key),
        ),
    )


def get_bucket_lifecycle_configuration(call: Call) -> Response:
    rules = call.bucket.settings.lifecycle
    if not rules:
        raise _not_set("NoSuchLifecycleConfiguration", "lifecycle configuration")
    return _answer("LifecycleConfiguration", *map(_rule, rules))


def _rule(rule: Rule) -> Xml:
    prefix = element("Prefix", rule.prefix)
    tag = element("Tag", element("Key", rule.tag or ""), element("Value", "yes"))
    abort = element("DaysAfterInitiation", rule.abort_after or 0)
    glacier = [element("Days", rule.glacier_after or 0), element("StorageClass", "GLACIER")]
    return element(
        "Rule",
        element("Filter", element("And", prefix, tag) if rule.tag else prefix),
        element("Status", "Enabled" if rule.enabled else "Disabled"),
        *([element("AbortIncompleteMultipartUpload", abort)] if rule.abort_after else []),
        *([element("Expiration", element("Days", rule.expire_after))] if rule.expire_after else []),
        *([element("Transition", *glacier)] if rule.glacier_after else []),
    )


def get_object_lock_configuration(call: Call) -> Response:
    days = call.bucket.settings.lock_days
    if days is None:
        raise _not_set("ObjectLockConfigurationNotFoundError", "object lock configuration")
    retention = element("DefaultRetention", element("Mode", "GOVERNANCE"), element("Days", days))
    return _answer(
        "ObjectLockConfiguration",
        element("ObjectLockEnabled", "Enabled"),
        *([element("Rule", retention)] if days else []),
    )


def get_bucket_policy_status(call: Call) -> Response:
    public = call.bucket.settings.public
    if public is None:
        raise _not_set("NoSuchBucketPolicy", "policy")
    return _answer("PolicyStatus", element("IsPublic", public))


def _answer(name: str, *content: Xml) -> Response:
    return xml_response(xml.document(name, *content))


def _not_set(code: str, what: str) -> S3Error:
    return S3Error(404, code, f"The {what} does not exist")
