"""What the product relies on an S3 for (the contract in `staging.store.store`), asked of three servers.

Covers the store's side of I4, I7, I8, I9 and I14: conditions on writes, reads pinned to a version,
checksums verified on arrival, multipart rules, pages, keys with awkward characters.

Every test makes observations, and `answers.S3` says what S3 answers. Where a server is known to differ,
`answers.LACKS` says what it does instead, and the test asserts exactly that: when the server learns
the right answer, its test fails and the entry goes.
"""

from __future__ import annotations

import hashlib
import urllib.error
import urllib.request
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from tests.conformance.answers import LACKS, S3
from tests.conformance.subject import Subject, attempt, crc, outcome, subject_on, told
from tests.support.s3server import ScriptedS3
from tests.support.servers import plain_client

MIB = 1024 * 1024
PART = 5 * MIB
"""The least size of a part that is not the last."""

AWKWARD_KEYS = [
    "m/with space.bin",
    "m/with+plus.bin",
    "m/with%percent.bin",
    "m/with%20escape.bin",
    "m/with#hash.bin",
    "m/with?question=1&and.bin",
    "m/with'quote\"and<xml>&amp;.bin",
    "m/é/ü.bin",
    "m/日本.bin",
    "m/~tilde*(star)!.bin",
]


@pytest.fixture(params=["scripted", "moto", "rclone"])
def subject(request: pytest.FixtureRequest, unique_bucket: str) -> Iterator[Subject]:
    if request.param == "scripted":
        scripted = ScriptedS3(credentials={"access-key": "secret-key"})
        with scripted, subject_on("scripted", scripted, unique_bucket) as made:
            yield made
    else:
        server = request.getfixturevalue(f"{request.param}_server")
        with subject_on(request.param, server, unique_bucket) as made:
            yield made


def test_tables_name_known_features_and_real_differences() -> None:
    for server, differences in LACKS.items():
        for feature, answer in differences.items():
            assert feature in S3, f"{server}: {feature}"
            assert answer != S3[feature], f"{server}: {feature} is no difference"


# Keys, objects, errors


def test_awkward_keys_round_trip(subject: Subject) -> None:
    def round_trips(key: str) -> bool:
        subject.put(key, key.encode())
        return subject.exists(key) and subject.get(key) == key.encode()

    lost = [key for key in AWKWARD_KEYS if attempt(partial(round_trips, key)) is not True]
    listed = set(subject.keys(Prefix="m/"))
    subject.expect("awkward-keys", sorted({*lost, *(set(AWKWARD_KEYS) - listed)}))
    for key in set(AWKWARD_KEYS) - set(lost):
        subject.client.delete_object(Bucket=subject.bucket, Key=key)
    assert not set(subject.keys()) - set(lost)


def test_what_is_missing_is_named(subject: Subject) -> None:
    client, nowhere = subject.client, f"{subject.bucket}-not"
    missing = {"Bucket": subject.bucket, "Key": "missing"}
    subject.expect("head-missing-key", outcome(lambda: client.head_object(**missing)))
    subject.expect("get-missing-key", outcome(lambda: client.get_object(**missing)))
    in_nowhere = outcome(lambda: client.get_object(Bucket=nowhere, Key="k"))
    subject.expect("get-missing-bucket", in_nowhere)
    subject.expect("head-missing-bucket", outcome(lambda: client.head_bucket(Bucket=nowhere)))
    listing = outcome(lambda: client.list_objects_v2(Bucket=nowhere))
    subject.expect("list-missing-bucket", listing)


def test_an_etag_names_the_version_wherever_it_is_told(subject: Subject) -> None:
    told_by_put = subject.put("k", b"content")
    is_md5 = told_by_put == hashlib.md5(b"content").hexdigest()
    subject.expect("etag-of-put", "md5" if is_md5 else "other")
    head = subject.client.head_object(Bucket=subject.bucket, Key="k")
    listed = subject.client.list_objects_v2(Bucket=subject.bucket)["Contents"][0]
    assert head["ContentLength"] == listed["Size"] == 7
    forms = {f'"{told_by_put}"': "quoted", told_by_put: "without quotes"}
    subject.expect("etag-of-head", forms.get(head["ETag"], "another"))
    subject.expect("etag-of-listing", forms.get(listed["ETag"], "another"))


def test_user_metadata_is_kept(subject: Subject) -> None:
    subject.put("k", b"content", Metadata={"Source": "laguna.tar"})
    head = subject.client.head_object(Bucket=subject.bucket, Key="k")
    subject.expect("metadata", head["Metadata"])


def test_the_bucket_tells_its_region(subject: Subject) -> None:
    head = subject.client.head_bucket(Bucket=subject.bucket)
    headers = head["ResponseMetadata"]["HTTPHeaders"]
    subject.expect("bucket-region-header", headers.get("x-amz-bucket-region"))


# Conditional writes (I4, I9)


def test_create_never_replaces(subject: Subject) -> None:
    def create(body: bytes) -> str:
        return outcome(
            lambda: subject.client.put_object(
                Bucket=subject.bucket, Key="k", Body=bytearray(body), IfNoneMatch="*"
            )
        )

    subject.expect("put-if-none-match-new", create(b"first"))
    second = create(b"second")
    subject.expect("put-if-none-match-existing", second)
    assert subject.get("k") == (b"second" if second == "200" else b"first")


def test_replace_only_the_version_that_was_read(subject: Subject) -> None:
    def replace(key: str, etag: str) -> str:
        return outcome(
            lambda: subject.client.put_object(
                Bucket=subject.bucket, Key=key, Body=b"new", IfMatch=f'"{etag}"'
            )
        )

    old = subject.put("k", b"old")
    subject.expect("put-if-match-right", replace("k", old))
    subject.expect("put-if-match-wrong", replace("k", old))
    subject.expect("put-if-match-missing", replace("missing", old))


def test_delete(subject: Subject) -> None:
    def delete(**condition: str) -> str:
        return outcome(
            lambda: subject.client.delete_object(Bucket=subject.bucket, Key="k", **condition)
        )

    old = subject.put("k", b"old")
    current = subject.put("k", b"current")
    wrong = delete(IfMatch=f'"{old}"')
    subject.expect("delete-if-match-wrong", wrong)
    assert subject.exists("k") == (not wrong.startswith("2"))
    current = subject.put("k", b"current")
    subject.expect("delete-if-match-right", delete(IfMatch=f'"{current}"'))
    subject.put("k", b"again")
    subject.expect("delete-existing", delete())
    assert not subject.exists("k")
    subject.expect("delete-missing", delete())
    subject.expect("delete-if-match-missing", delete(IfMatch=f'"{current}"'))


def test_delete_several(subject: Subject) -> None:
    for key in ("a", "b", "c"):
        subject.put(key)
    answer = subject.client.delete_objects(
        Bucket=subject.bucket, Delete={"Objects": [{"Key": "a"}, {"Key": "b"}]}
    )
    subject.expect("delete-objects", sorted(entry["Key"] for entry in answer["Deleted"]))
    assert subject.keys() == ["c"]


# Ranges and pinned reads (I7)


@pytest.mark.parametrize(
    ("feature", "span"),
    [
        ("range-middle", "bytes=2-4"),
        ("range-open", "bytes=7-"),
        ("range-suffix", "bytes=-4"),
        ("range-across-the-end", "bytes=8-20"),
    ],
)
def test_ranges(subject: Subject, feature: str, span: str) -> None:
    subject.put("k", b"0123456789")
    answer = subject.client.get_object(Bucket=subject.bucket, Key="k", Range=span)
    status = str(answer["ResponseMetadata"]["HTTPStatusCode"])
    with answer["Body"] as body:
        subject.expect(feature, (status, answer.get("ContentRange"), body.read()))


def test_ranges_outside_the_object(subject: Subject) -> None:
    def ranged(key: str, span: str) -> str:
        return outcome(
            lambda: subject.client.get_object(Bucket=subject.bucket, Key=key, Range=span)
        )

    subject.put("k", b"0123456789")
    subject.put("empty", b"")
    subject.expect("range-past-the-end", ranged("k", "bytes=10-12"))
    subject.expect("range-of-empty", ranged("empty", "bytes=0-0"))


def test_reads_are_pinned_to_a_version(subject: Subject) -> None:
    def read(**condition: str) -> str:
        return outcome(
            lambda: subject.client.get_object(
                Bucket=subject.bucket, Key="k", Range="bytes=1-2", **condition
            )
        )

    old = subject.put("k", b"old")
    subject.expect("get-if-match-right", read(IfMatch=f'"{old}"'))
    subject.expect("get-if-match-unquoted", read(IfMatch=old))
    current = subject.put("k", b"new")
    subject.expect("get-if-match-replaced", read(IfMatch=f'"{old}"'))
    subject.expect("get-if-none-match-same", read(IfNoneMatch=f'"{current}"'))


def test_a_presigned_get_is_for_get_alone(subject: Subject) -> None:
    subject.put("a b+c", b"0123456789")
    url = subject.client.generate_presigned_url(
        "get_object", Params={"Bucket": subject.bucket, "Key": "a b+c"}
    )
    ranged = urllib.request.Request(url, headers={"Range": "bytes=2-4"})
    with urllib.request.urlopen(ranged) as answer:
        subject.expect("presigned-range", (answer.status, answer.read()))
    subject.expect("presigned-head", _status(urllib.request.Request(url, method="HEAD")))


def _status(request: urllib.request.Request) -> int:
    try:
        with urllib.request.urlopen(request) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


# Integrity on arrival


def test_put_with_checksum(subject: Subject) -> None:
    def create(key: str, checksum: str) -> str:
        return outcome(
            lambda: subject.client.put_object(
                Bucket=subject.bucket,
                Key=key,
                Body=bytearray(b"content"),
                ChecksumCRC64NVME=checksum,
            )
        )

    subject.expect("put-right-crc64nvme", create("right", crc(b"content")))
    subject.expect("put-wrong-crc64nvme", create("wrong", crc(b"something else")))
    subject.expect("put-wrong-crc64nvme-stored", subject.exists("wrong"))


def test_put_with_content_md5(subject: Subject) -> None:
    def create(value: str) -> str:
        return outcome(
            lambda: subject.client.put_object(
                Bucket=subject.bucket, Key="k", Body=b"content", ContentMD5=value
            )
        )

    subject.expect("put-wrong-md5", create("AAAAAAAAAAAAAAAAAAAAAA=="))
    subject.expect("put-malformed-md5", create("AAAA"))


def test_a_signed_payload_that_changed_under_way_is_refused(subject: Subject) -> None:
    def damage(request: Any, **_: Any) -> None:
        request.body = b"c0ntent"

    with plain_client(subject.server, sign_payload=True) as client:
        client.meta.events.register("before-send.s3.PutObject", damage)
        refused = outcome(
            lambda: client.put_object(Bucket=subject.bucket, Key="k", Body=b"content")
        )
    subject.expect("put-wrong-sha256-signed", refused)


def test_stored_checksum_is_told_when_asked_for(subject: Subject) -> None:
    content = b"0123456789"
    subject.put("said", content, ChecksumCRC64NVME=crc(content))
    subject.put("unsaid", content)
    client, said = subject.client, {"Bucket": subject.bucket, "Key": "said"}
    head = client.head_object(**said, ChecksumMode="ENABLED")
    checksum = told(head.get("ChecksumCRC64NVME"), content)
    subject.expect("head-checksum", (checksum, head.get("ChecksumType")))
    unasked = client.head_object(**said)
    subject.expect("head-checksum-unasked", told(unasked.get("ChecksumCRC64NVME"), content))
    unsaid = client.head_object(Bucket=subject.bucket, Key="unsaid", ChecksumMode="ENABLED")
    subject.expect("checksum-computed-by-store", told(unsaid.get("ChecksumCRC64NVME"), content))
    whole = client.get_object(**said, ChecksumMode="ENABLED")
    whole["Body"].close()
    subject.expect("get-whole-checksum", told(whole.get("ChecksumCRC64NVME"), content))
    ranged = client.get_object(**said, ChecksumMode="ENABLED", Range="bytes=0-3")
    ranged["Body"].close()
    subject.expect("get-range-checksum", told(ranged.get("ChecksumCRC64NVME"), content))


# Multipart uploads


def test_parts_sent_in_any_order_make_one_object(subject: Subject) -> None:
    first, second = b"a" * PART, b"tail"
    upload = subject.open("m/k", Metadata={"source": "laguna.tar"})
    parts = [subject.part("m/k", upload, 2, second), subject.part("m/k", upload, 1, first)][::-1]
    assert not subject.exists("m/k")
    answer = subject.complete(
        "m/k", upload, parts, IfNoneMatch="*", ChecksumCRC64NVME=crc(first, second)
    )
    subject.expect("complete", str(answer["ResponseMetadata"]["HTTPStatusCode"]))
    subject.expect("complete-out-of-order-upload", subject.get("m/k") == first + second)
    md5s = b"".join(hashlib.md5(piece).digest() for piece in (first, second))
    expected = f'"{hashlib.md5(md5s).hexdigest()}-2"'
    head = subject.client.head_object(Bucket=subject.bucket, Key="m/k", ChecksumMode="ENABLED")
    subject.expect("complete-etag", "md5-of-md5s" if head["ETag"] == expected else "other")
    subject.expect("complete-etag-is-heads", answer["ETag"] == head["ETag"])
    subject.expect("complete-checksum", told(answer.get("ChecksumCRC64NVME"), first, second))
    checksum = told(head.get("ChecksumCRC64NVME"), first, second)
    subject.expect("complete-head-checksum", (checksum, head.get("ChecksumType")))
    subject.expect("complete-metadata", head["Metadata"])


def test_part_with_checksum(subject: Subject) -> None:
    upload = subject.open("k")

    def send(checksum: str) -> Any:
        return subject.client.upload_part(
            Bucket=subject.bucket,
            Key="k",
            UploadId=upload,
            PartNumber=1,
            Body=bytearray(b"content"),
            ChecksumCRC64NVME=checksum,
        )

    subject.expect("part-wrong-crc64nvme", outcome(lambda: send(crc(b"something else"))))
    returned = send(crc(b"content")).get("ChecksumCRC64NVME")
    subject.expect("part-crc64nvme-returned", returned == crc(b"content"))


def test_complete_never_replaces(subject: Subject) -> None:
    subject.put("k", b"published")
    upload = subject.open("k")
    part = subject.part("k", upload, 1, b"late")
    refused = outcome(lambda: subject.complete("k", upload, [part], IfNoneMatch="*"))
    subject.expect("complete-if-none-match-existing", refused)
    open_uploads = subject.client.list_multipart_uploads(Bucket=subject.bucket).get("Uploads", [])
    stays = [entry["UploadId"] for entry in open_uploads] == [upload]
    subject.expect("complete-if-none-match-upload-stays", stays)
    assert subject.get("k") == (b"late" if refused == "200" else b"published")


def test_complete_with_a_wrong_checksum_of_the_whole(subject: Subject) -> None:
    upload = subject.open("k")
    part = subject.part("k", upload, 1, b"content")
    wrong = crc(b"something else")
    refused = outcome(lambda: subject.complete("k", upload, [part], ChecksumCRC64NVME=wrong))
    subject.expect("complete-wrong-crc64nvme", refused)
    subject.expect("complete-wrong-crc64nvme-stored", subject.exists("k"))


@pytest.mark.parametrize(
    ("feature", "change"),
    [
        ("complete-wrong-part-crc64nvme", {"ChecksumCRC64NVME": crc(b"something else")}),
        ("complete-wrong-part-etag", {"ETag": '"00000000000000000000000000000000"'}),
        ("complete-missing-part", {"PartNumber": 2}),
    ],
)
def test_complete_names_parts_exactly(subject: Subject, feature: str, change: Any) -> None:
    upload = subject.open("k")
    part = subject.part("k", upload, 1, b"content") | change
    subject.expect(feature, outcome(lambda: subject.complete("k", upload, [part])))


def test_complete_names_parts_in_order(subject: Subject) -> None:
    upload = subject.open("k")
    parts = [subject.part("k", upload, number, b"x" * PART) for number in (2, 1)]
    subject.expect("complete-descending", outcome(lambda: subject.complete("k", upload, parts)))


def test_every_part_but_the_last_has_five_mebibytes(subject: Subject) -> None:
    upload = subject.open("k")
    parts = [subject.part("k", upload, number, b"small") for number in (1, 2)]
    subject.expect("complete-small-part", outcome(lambda: subject.complete("k", upload, parts)))


def test_one_small_part_is_enough(subject: Subject) -> None:
    upload = subject.open("k")
    subject.complete("k", upload, [subject.part("k", upload, 1, b"tiny")])
    subject.expect("complete-one-small-part", subject.get("k"))


def test_parts_that_complete_leaves_out_are_dropped(subject: Subject) -> None:
    upload = subject.open("k")
    first = subject.part("k", upload, 1, b"first")
    subject.part("k", upload, 2, b"second")

    def complete_and_read() -> bytes:
        subject.complete("k", upload, [first])
        return subject.get("k")

    subject.expect("complete-subset", attempt(complete_and_read))


def test_a_part_that_is_sent_again_replaces_the_first(subject: Subject) -> None:
    upload = subject.open("k")
    subject.part("k", upload, 1, b"first try")

    def send_again_and_read() -> bytes:
        subject.complete("k", upload, [subject.part("k", upload, 1, b"second try")])
        return subject.get("k")

    subject.expect("part-sent-again", attempt(send_again_and_read))


def test_an_upload_is_completed_once(subject: Subject) -> None:
    upload = subject.open("k")
    parts = [subject.part("k", upload, 1, b"content")]
    subject.complete("k", upload, parts)
    subject.expect("complete-twice", outcome(lambda: subject.complete("k", upload, parts)))
    late = attempt(lambda: subject.part("k", upload, 2, b"late"))
    subject.expect("part-of-gone-upload", late)


def test_abort_leaves_nothing(subject: Subject) -> None:
    def abort() -> str:
        return outcome(
            lambda: subject.client.abort_multipart_upload(
                Bucket=subject.bucket, Key="k", UploadId=upload
            )
        )

    upload = subject.open("k")
    subject.part("k", upload, 1, b"content")
    subject.expect("abort-open", abort())
    uploads = subject.client.list_multipart_uploads(Bucket=subject.bucket).get("Uploads", [])
    subject.expect("abort-leaves", (uploads, subject.keys()))
    subject.expect("abort-gone", abort())


def test_parts_are_listed_in_pages(subject: Subject) -> None:
    upload = subject.open("k")
    sent = [subject.part("k", upload, number, b"x" * number) for number in range(1, 6)]
    pages: list[list[int]] = []
    listed: list[Any] = []
    marker, more = 0, True
    while more:
        page = subject.client.list_parts(
            Bucket=subject.bucket, Key="k", UploadId=upload, MaxParts=2, PartNumberMarker=marker
        )
        pages.append([part["PartNumber"] for part in page["Parts"]])
        listed += page["Parts"]
        marker, more = page["NextPartNumberMarker"], page.get("IsTruncated", False)
    subject.expect("parts-last-page-says-so", page.get("IsTruncated") is False)
    subject.expect("parts-pages", pages)
    subject.expect("parts-sizes", [part["Size"] for part in listed])
    etags = [part["ETag"] for part in listed] == [part["ETag"] for part in sent]
    subject.expect("parts-etags", etags)
    checksums = [part.get("ChecksumCRC64NVME") for part in listed]
    subject.expect("parts-checksums", checksums == [part["ChecksumCRC64NVME"] for part in sent])


def test_open_uploads_are_listed_below_a_prefix(subject: Subject) -> None:
    for key in ("m/b", "m/a", "m/a", "other/a", "m.bak/a"):
        subject.open(key)
    listed: list[str] = []
    pages, more = 0, True
    markers: dict[str, str] = {}
    while more:
        page = subject.client.list_multipart_uploads(
            Bucket=subject.bucket, Prefix="m/", MaxUploads=2, **markers
        )
        listed += [upload["Key"] for upload in page.get("Uploads", [])]
        pages += 1
        more = page.get("IsTruncated", False)
        markers = {
            "KeyMarker": page.get("NextKeyMarker", ""),
            "UploadIdMarker": page.get("NextUploadIdMarker", ""),
        }
    subject.expect("uploads-below-prefix", listed)
    subject.expect("uploads-pages", pages)


# Listings (I14)


def test_keys_are_listed_in_byte_order(subject: Subject) -> None:
    keys = ["A", "Z", "a b", "a+b", "a-b", "a/b", "aa", "é", "\uff5e", "\U00010000"]
    for key in reversed(keys):
        subject.put(key)
    subject.expect("list-order", subject.keys())


def test_a_key_may_go_on_where_another_ends(subject: Subject) -> None:
    for key in ("a", "a/b"):
        attempt(partial(subject.put, key))
    subject.expect("key-below-a-key", subject.keys())


def test_listings_come_in_pages(subject: Subject) -> None:
    keys = [f"k{number}" for number in range(7)]
    for key in keys:
        subject.put(key)
    pages = list(
        subject.client.get_paginator("list_objects_v2").paginate(
            Bucket=subject.bucket, PaginationConfig={"PageSize": 3}
        )
    )
    assert [entry["Key"] for page in pages for entry in page["Contents"]] == keys
    subject.expect("list-pages", [len(page["Contents"]) for page in pages])
    subject.expect("list-start-after", subject.keys(StartAfter="k3"))


def test_a_prefix_that_ends_in_a_slash_has_no_siblings(subject: Subject) -> None:
    for key in ("m/a", "m-2/a", "m2/a", "ma"):
        subject.put(key)
    subject.expect("list-sibling", subject.keys(Prefix="m/"))
    empty = subject.client.list_objects_v2(Bucket=subject.bucket, Prefix="none/")
    assert "Contents" not in empty
    assert not empty["IsTruncated"]
    subject.expect("list-key-count", empty.get("KeyCount"))


def test_one_level_of_a_prefix(subject: Subject) -> None:
    for key in ("m/wide/a", "m/wide/b", "m/deep/er/a", "m/config.json", "other"):
        subject.put(key)
    level = {"Bucket": subject.bucket, "Prefix": "m/", "Delimiter": "/"}
    answer = subject.client.list_objects_v2(**level)
    keys = [entry["Key"] for entry in answer.get("Contents", [])]
    prefixes = [entry["Prefix"] for entry in answer.get("CommonPrefixes", [])]
    subject.expect("list-level", (keys, prefixes))
    pages = subject.client.get_paginator("list_objects_v2").paginate(
        **level, PaginationConfig={"PageSize": 1}
    )
    entries = [
        [entry["Key"] for entry in page.get("Contents", [])]
        + [entry["Prefix"] for entry in page.get("CommonPrefixes", [])]
        for page in pages
    ]
    subject.expect("list-level-pages", entries)


# Credentials


def test_strangers_are_refused(subject: Subject) -> None:
    with plain_client(subject.server, access_key="nobody") as stranger:
        refused = outcome(lambda: stranger.list_objects_v2(Bucket=subject.bucket))
        subject.expect("unknown-access-key", refused)
    with plain_client(subject.server, secret_key="guessed") as guesser:
        refused = outcome(lambda: guesser.list_objects_v2(Bucket=subject.bucket))
        subject.expect("wrong-secret", refused)
