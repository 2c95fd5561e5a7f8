"""Where a checkpoint lives in a store: a bucket and a version prefix.

Invariants: the prefix is empty or ends in `/`, so a listing never meets a sibling's keys (I14);
`S3Location.parse(str(location)) == location`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from staging.vocabulary.errors import MalformedInput, UsageError
from staging.vocabulary.paths import (
    CONTROL_DIRECTORY,
    LEGACY_MARKER,
    MAX_PATH_BYTES,
    SafePath,
    why_unsafe,
)

MANIFEST_NAME: Final = f"{CONTROL_DIRECTORY}/manifest.json"
"""Where the manifest lies, below a version prefix and below a local directory alike."""

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")


@dataclass(frozen=True, slots=True)
class S3Location:
    """A bucket and a prefix in it, the prefix ending in `/` unless it is the bucket's root."""

    bucket: str
    prefix: str

    def __post_init__(self) -> None:
        if self.prefix and not self.prefix.endswith("/"):
            raise ValueError(f"a prefix ends in '/': {self.prefix!r}")

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}"

    @classmethod
    def parse(cls, uri: str) -> S3Location:
        """Read `s3://bucket/prefix` with or without a trailing slash. Raises UsageError."""
        scheme, separator, rest = uri.partition("://")
        if scheme != "s3" or not separator:
            raise UsageError(
                f"not an S3 URI: {_without_secrets(uri)!r}",
                reference="uri",
                hint="write s3://BUCKET/PREFIX/",
            )
        bucket, _, prefix = rest.partition("/")
        if not _BUCKET.fullmatch(bucket):
            raise UsageError(
                f"no usable bucket name in {_without_secrets(uri)!r}",
                reference="uri",
                hint="write s3://BUCKET/PREFIX/ with a bucket name of 3 to 63 characters a-z, 0-9, '.', '-'",
            )
        if bucket.endswith("--x-s3"):
            raise UsageError(
                f"directory buckets are not supported so far: {bucket}",
                reference="directory-bucket",
                hint="use a general purpose bucket",
            )
        if not prefix:
            return cls(bucket, "")
        reason = _why_not_usable(prefix.removesuffix("/"))
        if reason is not None:
            raise UsageError(
                f"no usable prefix in {_without_secrets(uri)!r}: {reason}",
                reference="uri",
                hint="a prefix has plain components between single slashes",
            )
        return cls(bucket, prefix.removesuffix("/") + "/")

    @property
    def manifest_key(self) -> str:
        """Key of the manifest, whose existence is the commit."""
        return self.prefix + MANIFEST_NAME

    @property
    def control_prefix(self) -> str:
        """Prefix of everything that is about the checkpoint rather than of it."""
        return f"{self.prefix}{CONTROL_DIRECTORY}/"

    def key(self, path: SafePath) -> str:
        """Key of a member. Raises MalformedInput when it exceeds an S3 key's 1,024 bytes."""
        key = self.prefix + path
        if len(key.encode("utf-8")) > MAX_PATH_BYTES:
            raise MalformedInput(
                f"the key of {path[:100]!r}... under this prefix is longer than {MAX_PATH_BYTES} bytes",
                reference="key-too-long",
                hint="use a shorter prefix",
            )
        return key

    def is_aside(self, key: str, size: int) -> bool:
        """True for an object under this prefix that is no file of a checkpoint.

        That is the control directory, the legacy marker, and empty placeholders of folders.
        """
        return (
            key.startswith(self.control_prefix)
            or key == self.prefix + LEGACY_MARKER
            or (key.endswith("/") and size == 0)
        )

    def child(self, name: str) -> S3Location:
        """The prefix `name` below this one."""
        return S3Location(self.bucket, f"{self.prefix}{name.strip('/')}/")

    @property
    def parent(self) -> S3Location:
        """The prefix above this one; the bucket's root is its own parent."""
        above = self.prefix.rstrip("/").rpartition("/")[0]
        return S3Location(self.bucket, above + "/" if above else "")


def _why_not_usable(prefix: str) -> str | None:
    if "?" in prefix:  # of a presigned URL, most likely: it would be repeated in every message
        return "it has a query"
    if any(name.casefold() == CONTROL_DIRECTORY for name in prefix.split("/")):
        return f"it is inside a {CONTROL_DIRECTORY}/"
    if len(f"{prefix}/{MANIFEST_NAME}".encode("utf-8", "replace")) > MAX_PATH_BYTES:
        return f"the manifest's key would be longer than {MAX_PATH_BYTES} bytes"
    return why_unsafe(prefix)


def _without_secrets(uri: str) -> str:
    """What of a would-be URI may be shown: no query, and nothing before a host (I13)."""
    _, at, tail = (shown := uri.partition("?")[0]).rpartition("@")
    return f"...{tail}"[:200] if at else shown[:200]
