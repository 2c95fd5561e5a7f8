"""The smallest IAM policies with which the staging box can publish and a pod can download.

The pod's is the one of the vendor's installation guide, to the letter. The upload's lets a role write
below one prefix alone. Its `s3:ListBucket` has no condition on the prefix: with one, S3 would answer 403
instead of 404 for every object that is not there yet.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

from staging.vocabulary.location import S3Location

Policy = dict[str, Any]
"""An IAM policy as JSON has it."""

_VERSION: Final = "2012-10-17"
_KEY_ID: Final = re.compile(r"(mrk-[0-9a-f]{32}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12})")
_SPECIAL: Final = re.compile(r"[$*?]")


def partition_of(region: str | None) -> str:
    """The part of AWS that a region belongs to, as ARNs name it."""
    if region is not None and region.startswith("cn-"):
        return "aws-cn"
    if region is not None and region.startswith("us-gov-"):
        return "aws-us-gov"
    return "aws"


def key_arn(key: str | None, *, region: str | None, account: str | None) -> str | None:
    """The ARN of a KMS key that is known by ARN or id; None for an alias, or when too little is known."""
    if key is None:
        return None
    if key.startswith("arn:"):
        return key if ":key/" in key else None
    if region is None or account is None or not _KEY_ID.fullmatch(key):
        return None
    return f"arn:{partition_of(region)}:kms:{region}:{account}:key/{key}"


def pod_policy(bucket: str, *, kms_key: str | None, partition: str = "aws") -> Policy:
    """What the role of the pods needs. `kms_key` is the ARN of the key that encrypts the checkpoints."""
    arn = f"arn:{partition}:s3:::{bucket}"
    return _policy(
        _allow("S3ListBucket", ["s3:ListBucket"], arn),
        _allow("S3ReadObjects", ["s3:GetObject", "s3:GetObjectTagging"], f"{arn}/*"),
        _allow("S3GetBucketLocation", ["s3:GetBucketLocation"], "*"),
        *(
            [_allow("KMSDecryptForS3", ["kms:Decrypt", "kms:DescribeKey"], kms_key)]
            if kms_key is not None
            else []
        ),
    )


def upload_policy(
    location: S3Location, *, kms_key: str | None, tags: bool = False, partition: str = "aws"
) -> Policy:
    """What the role of the staging box needs to publish at `location`, and to go on after a failure."""
    arn = f"arn:{partition}:s3:::{location.bucket}"
    actions = [
        "s3:GetObject",
        "s3:PutObject",
        *(["s3:PutObjectTagging"] if tags else []),
        "s3:AbortMultipartUpload",
        "s3:ListMultipartUploadParts",
        "s3:DeleteObject",
    ]
    return _policy(
        _allow("S3ListBucket", ["s3:ListBucket", "s3:ListBucketMultipartUploads"], arn),
        _allow("S3PublishCheckpoint", actions, f"{arn}/{_literally(location.prefix)}*"),
        *(
            [_allow("KMSEncryptForS3", ["kms:GenerateDataKey", "kms:Decrypt"], kms_key)]
            if kms_key is not None
            else []
        ),
    )


def dumps(policy: Mapping[str, Any]) -> str:
    """The policy as people write them: two spaces, and lists of words on one line."""
    lines = json.dumps(policy, indent=2, ensure_ascii=False).splitlines()
    out: list[str] = []
    words: list[str] | None = None
    for line in lines:
        if words is not None:
            if line.lstrip().startswith("]"):
                out[-1] += " ".join(words) + line.lstrip()
                words = None
            else:
                words.append(line.strip())
            continue
        out.append(line)
        if line.endswith('"Action": ['):
            words = []
    return "\n".join(out)


def _policy(*statements: Mapping[str, Any]) -> Policy:
    return {"Version": _VERSION, "Statement": list(statements)}


def _allow(sid: str, actions: list[str], resource: str) -> dict[str, Any]:
    return {"Sid": sid, "Effect": "Allow", "Action": actions, "Resource": resource}


def _literally(text: str) -> str:
    """A prefix in which nothing is a wildcard or a variable of IAM."""
    return _SPECIAL.sub(lambda found: "${" + found[0] + "}", text)
