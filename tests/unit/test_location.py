"""Locations: one reading of an S3 URI, no sibling's keys (I14), nothing secret in a refusal (I13)."""

from __future__ import annotations

import pytest

from staging.vocabulary.errors import MalformedInput, UsageError
from staging.vocabulary.location import MANIFEST_NAME, S3Location
from staging.vocabulary.paths import MAX_PATH_BYTES, SafePath


@pytest.mark.parametrize(
    ("uri", "bucket", "prefix"),
    [
        ("s3://bucket", "bucket", ""),
        ("s3://bucket/", "bucket", ""),
        ("s3://bucket/laguna-xs", "bucket", "laguna-xs/"),
        ("s3://bucket/laguna-xs/", "bucket", "laguna-xs/"),
        ("s3://b.u-c.k3t/models/checkpoints/laguna-xs-2026-04/", "b.u-c.k3t",
         "models/checkpoints/laguna-xs-2026-04/"),
        ("s3://bucket/a b+c%20#1/é/模型", "bucket", "a b+c%20#1/é/模型/"),
        ("s3://abc/user@example.org/x", "abc", "user@example.org/x/"),
        ("s3://abc/aa:bb/c", "abc", "aa:bb/c/"),
    ],
)  # fmt: skip
def test_a_uri_is_read_with_and_without_slash_and_reads_back(
    uri: str, bucket: str, prefix: str
) -> None:
    location = S3Location.parse(uri)
    assert location == S3Location(bucket, prefix)
    assert S3Location.parse(str(location)) == location
    assert str(location).rstrip("/") == uri.rstrip("/")


SECRET = "X-Amz-Credential=AKIAEXAMPLE&X-Amz-Signature=5ec2e7"

REFUSED = [
    "",
    "bucket/prefix",
    "/models/laguna",
    "s3:/bucket/prefix",
    "S3://bucket/prefix",
    "s3a://bucket/prefix",
    "s3://",
    "s3:///prefix",
    "s3://ab/x",
    f"s3://{'a' * 64}/x",
    "s3://Bucket/x",
    "s3://buck_et/x",
    "s3://-bucket/x",
    "s3://bucket-/x",
    "s3://bucket\n/x",
    "s3://bucket//",
    "s3://bucket//x",
    "s3://bucket/x//",
    "s3://bucket/x//y",
    "s3://bucket/../other",
    "s3://bucket/x/..",
    "s3://bucket/./x",
    "s3://bucket/x\\y",
    "s3://bucket/x\ny",
    "s3://bucket/\x1b[31mred",
    "s3://bucket/\udcff",
    "s3://bucket/cafe\u0301",
    "s3://bucket/.checkpoint/manifest.json",
    "s3://my-bucket--use1-az4--x-s3/x",
    f"s3://bucket/x?{SECRET}",
    f"s3://bucket?{SECRET}",
    f"s3://bucket/../x?{SECRET}",
    f"https://bucket.s3.amazonaws.com/x?{SECRET}",
    f"file.tar?{SECRET}",
    "https://AKIAEXAMPLE:5ec2e7@host/x",
    "s3://AKIAEXAMPLE:5ec2e7@bucket/x",
    "s3://AKIAEXAMPLE:a/5ec2e7@bucket/x",
    f"s3://bucket/{'x' * 5000}",
]


@pytest.mark.parametrize("uri", REFUSED, ids=[ascii(uri)[:40] for uri in REFUSED])
def test_what_is_no_location_is_refused_in_one_line_without_secrets(uri: str) -> None:
    with pytest.raises(UsageError) as caught:
        S3Location.parse(uri)
    error = caught.value
    assert error.exit_code == 2
    assert error.reference in ("uri", "directory-bucket")
    assert error.hint
    for text in (error.message, error.hint):
        assert text.isprintable()
        assert len(text) < 400
        for secret in ("X-Amz", "AKIAEXAMPLE", "5ec2e7"):
            assert secret not in text


def test_a_refusal_shows_what_was_given() -> None:
    with pytest.raises(UsageError, match=r"'s3://bucket/x//y': it has an empty component"):
        S3Location.parse("s3://bucket/x//y")
    with pytest.raises(UsageError, match="'models/laguna'"):
        S3Location.parse("models/laguna")
    with pytest.raises(UsageError, match=r"'\.\.\.bucket/x'"):
        S3Location.parse("https://user:password@bucket/x?token=1")


def test_a_prefix_leaves_room_for_the_manifest() -> None:
    room = MAX_PATH_BYTES - len("/" + MANIFEST_NAME)
    longest = ("a" * 254 + "/") * 3 + "b" * (room - 3 * 255 - 2) + "/c"
    assert len(longest) == room
    location = S3Location.parse(f"s3://bucket/{longest}")
    assert len(location.manifest_key) == MAX_PATH_BYTES
    with pytest.raises(UsageError, match="manifest's key would be longer than 1024 bytes"):
        S3Location.parse(f"s3://bucket/{longest}c")


def test_a_prefix_is_empty_or_ends_in_a_slash() -> None:
    with pytest.raises(ValueError, match="ends in '/'"):
        S3Location("bucket", "models")


def test_keys_below_a_prefix_and_at_a_buckets_root() -> None:
    location = S3Location.parse("s3://bucket/m")
    assert location.key(SafePath("a/b c")) == "m/a/b c"
    assert location.manifest_key == "m/.checkpoint/manifest.json"
    assert location.control_prefix == "m/.checkpoint/"
    root = S3Location.parse("s3://bucket")
    assert root.key(SafePath("a")) == "a"
    assert root.manifest_key == ".checkpoint/manifest.json"


def test_a_key_longer_than_s3_allows_is_malformed_input() -> None:
    location = S3Location.parse("s3://bucket/" + "p" * 20)
    path = "/".join(["a" * 250] * 4)  # 1,003 bytes, and the prefix 21
    assert len(location.key(SafePath(path))) == MAX_PATH_BYTES
    with pytest.raises(MalformedInput) as caught:
        location.key(SafePath(path + "b"))
    assert caught.value.exit_code == 16
    assert caught.value.reference == "key-too-long"
    with pytest.raises(MalformedInput, match="1024 bytes"):
        location.key(SafePath("é" * 101 + path[201:]))  # the limit counts bytes


def test_up_and_down() -> None:
    location = S3Location.parse("s3://bucket/a/b/c/")
    assert location.parent == S3Location("bucket", "a/b/")
    assert location.parent.parent.parent == S3Location("bucket", "")
    assert S3Location("bucket", "").parent == S3Location("bucket", "")
    assert location.parent.child("c") == location.parent.child("c/") == location
