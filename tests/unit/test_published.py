"""What is published under a prefix, or why nothing is: each cause by its reference, with a hint that helps.

Explaining reads only: no request of these tests writes (I4). Keys of strangers stay quoted, one line.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from staging.cli.source import names_archive
from staging.published import find_published, read_if_published, read_manifest, require_id
from staging.store.s3 import S3Store
from staging.vocabulary.errors import (
    AccessDenied,
    IntegrityError,
    MalformedInput,
    NotFound,
    StagingError,
    UsageError,
)
from staging.vocabulary.location import S3Location
from staging.vocabulary.manifest import Manifest
from tests.support.checkpoints import manifest_of
from tests.support.s3server import Fault, ScriptedS3, Status
from tests.support.shared_s3 import SharedS3, shared_s3

BUCKET = "models"
LOCATION = S3Location.parse("s3://models/checkpoints/laguna-xs/")
MANIFEST = manifest_of({"config.json": b"{}", "model.safetensors": b"weights"})


@pytest.fixture(scope="module")
def shared() -> Iterator[SharedS3]:
    with shared_s3(BUCKET) as opened:
        yield opened


@pytest.fixture
def server(shared: SharedS3) -> Iterator[ScriptedS3]:
    shared.reset()
    yield shared.server
    assert {request.method for request in shared.server.requests} <= {"GET", "HEAD"}
    assert set(shared.server.requests.operations()) <= {"GetObject", "HeadObject", "ListObjectsV2"}


@pytest.fixture
def store(shared: SharedS3, server: ScriptedS3) -> S3Store:
    return shared.store


def fill(server: ScriptedS3, *keys: str, data: bytes = b"x") -> None:
    for key in keys:
        server.bucket(BUCKET).put(key, data)


def refusal(store: S3Store, location: S3Location = LOCATION) -> NotFound:
    """The error that explains why nothing is published there."""
    with pytest.raises(NotFound) as caught:
        read_manifest(store, location)
    error = caught.value
    assert_presentable(error)
    assert error.code == 10
    assert error.side == "store"
    return error


def assert_presentable(error: StagingError) -> None:
    assert error.message.isprintable()
    assert error.hint
    assert error.hint.isprintable()
    assert not error.message.endswith(".")


def test_a_published_checkpoint_takes_one_request(server: ScriptedS3, store: S3Store) -> None:
    fill(server, LOCATION.manifest_key, data=MANIFEST.encode())
    assert read_manifest(store, LOCATION) == MANIFEST
    assert read_manifest(store, LOCATION, expect_id=MANIFEST.id) == MANIFEST
    assert server.requests.operations() == ["GetObject", "GetObject"]


def test_whether_anything_is_published_takes_one_request(
    server: ScriptedS3, store: S3Store
) -> None:
    assert read_if_published(store, LOCATION) is None
    fill(server, LOCATION.manifest_key, data=MANIFEST.encode())
    assert read_if_published(store, LOCATION) == MANIFEST
    assert server.requests.operations() == ["GetObject", "GetObject"]


def test_a_manifest_that_is_none_is_told_with_its_place(server: ScriptedS3, store: S3Store) -> None:
    fill(server, LOCATION.manifest_key, data=b'{"files": []}')
    for read in (read_if_published, read_manifest):
        with pytest.raises(MalformedInput) as caught:
            read(store, LOCATION)
        assert str(LOCATION) in caught.value.message
        assert (caught.value.reference, caught.value.side) == ("manifest-malformed", "store")


def test_no_bucket(server: ScriptedS3, store: S3Store) -> None:
    elsewhere = S3Store(store._wire, "no-such-bucket")
    with pytest.raises(NotFound, match="there is no bucket 'no-such-bucket'") as caught:
        read_manifest(elsewhere, S3Location("no-such-bucket", "laguna-xs/"))
    assert caught.value.reference == "bucket"
    assert_presentable(caught.value)
    assert server.requests.operations() == ["GetObject"]


@pytest.mark.parametrize(
    ("keys", "meant"),
    [
        (["checkpoints/laguna-xs-2/config.json"], "s3://models/checkpoints/laguna-xs-2/"),
        (["checkpoint/laguna-xs/config.json"], "s3://models/checkpoint/laguna-xs/"),
        (["Checkpoints/laguna_xs/config.json"], "s3://models/Checkpoints/laguna_xs/"),
        (
            ["checkpoints/lagoon-xs/a", "checkpoints/laguna-x/a", "checkpoints/other/a"],
            "s3://models/checkpoints/laguna-x/",
        ),
        (["checkpoints/laguna-xs-2/a", "checkpoints/laguna-xs/"], "s3://models/checkpoints/laguna-xs-2/"),
        (["checkpoints/LAGUNA-XS/a", "checkpoints/other/a"], "s3://models/checkpoints/LAGUNA-XS/"),
        (["CHECKPOINTS/LAGUNA-XS/a", "other/a"], "s3://models/CHECKPOINTS/LAGUNA-XS/"),
        (["Checkpoints/laguna-xs/a", "checkpoints/laguna-x/a"], "s3://models/checkpoints/laguna-x/"),
    ],
)  # fmt: skip
def test_an_empty_prefix_with_the_one_that_was_meant(
    server: ScriptedS3, store: S3Store, keys: list[str], meant: str
) -> None:
    for key in keys:
        fill(server, key, data=b"" if key.endswith("/") else b"x")
    error = refusal(store)
    assert error.reference == "prefix-empty"
    assert error.message == (
        "no published checkpoint at s3://models/checkpoints/laguna-xs/:"
        " there is nothing under this prefix"
    )
    assert error.hint == f"did you mean {meant}?"


@pytest.mark.parametrize(
    "keys",
    [
        [],
        ["checkpoints/laguna-xs/"],  # the placeholder of a folder: nothing, and not what was meant
        ["checkpoints/laguna-xs/.checkpoint-complete"],
        ["checkpoints/laguna-xs\n/config.json"],  # cannot be typed
    ],
)
def test_an_empty_prefix_with_nothing_near(
    server: ScriptedS3, store: S3Store, keys: list[str]
) -> None:
    fill(server, *keys, data=b"")
    error = refusal(store)
    assert error.reference == "prefix-empty"
    assert error.hint == "check the spelling; `staging ls s3://models/` lists what is published"


@pytest.mark.parametrize(
    ("keys", "there"),
    [
        (["checkpoints/quite-different/a"], "s3://models/checkpoints/quite-different/"),
        (
            ["checkpoints/point/a", "checkpoints/malibu/a", "checkpoints/.checkpoint/a"],
            "s3://models/checkpoints/malibu/ and s3://models/checkpoints/point/",
        ),
        (
            [f"checkpoints/{name}/a" for name in ("zzz", "malibu", "yyy", "point", "xxx")],
            "{0}malibu/, {0}xxx/, {0}point/ and 2 more".format("s3://models/checkpoints/"),
        ),
        (["elsewhere/x/a", "checkpoints"], "s3://models/elsewhere/"),
    ],
)
def test_where_nothing_is_near_what_is_there_is_named(
    server: ScriptedS3, store: S3Store, keys: list[str], there: str
) -> None:
    fill(server, *keys)
    assert refusal(store).hint == (
        f"check the spelling; there is {there}; `staging ls s3://models/` lists what is published"
    )
    # The prefix itself, its object, and each level once.
    assert len(server.requests) <= 6


def test_an_empty_bucket_at_its_root(store: S3Store) -> None:
    assert refusal(store, S3Location(BUCKET, "")).reference == "prefix-empty"


def test_a_sibling_with_the_same_beginning_is_not_under_the_prefix(
    server: ScriptedS3, store: S3Store
) -> None:
    fill(server, "checkpoints/laguna-xs-old/.checkpoint/manifest.json", data=MANIFEST.encode())
    assert refusal(store).reference == "prefix-empty"
    asked = [request.query["prefix"] for request in server.requests.of("ListObjectsV2")]
    assert all(prefix == "" or prefix.endswith("/") for prefix in asked)


def test_where_the_levels_above_may_not_be_listed_the_finding_stands(
    server: ScriptedS3, store: S3Store
) -> None:
    fill(server, "checkpoints/laguna-xs-2/config.json")
    server.script(
        Fault(
            "ListObjectsV2",
            Status(403),
            occurrence=None,
            where=lambda request: request.query["prefix"] != LOCATION.prefix,
        )
    )
    error = refusal(store)
    assert error.reference == "prefix-empty"
    assert server.unfired_faults == []


@pytest.mark.parametrize("name", ["laguna-xs.tar", "laguna.tar.gz", "a.tgz", "A.TAR", "a.tar.zst"])
def test_a_prefix_that_holds_the_archive_itself(
    server: ScriptedS3, store: S3Store, name: str
) -> None:
    fill(server, LOCATION.prefix + name, LOCATION.prefix + "README.md")
    error = refusal(store)
    assert error.reference == "prefix-holds-tar"
    assert repr(name) in error.message
    command = f"staging upload {LOCATION}{name} s3://models/NEW-PREFIX/"
    assert f"`{command}`" in str(error.hint)
    assert names_archive(command.split()[2])  # a source as it is


def test_an_archive_that_no_upload_unpacks(server: ScriptedS3, store: S3Store) -> None:
    fill(server, LOCATION.prefix + "a.zip")
    error = refusal(store)
    assert error.reference == "prefix-holds-tar"
    assert "get and unpack it, and run `staging upload DIRECTORY s3://models/NEW-PREFIX/`" in str(
        error.hint
    )


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("x\x1b[2J\n.tar", f"{LOCATION}ARCHIVE"),
        ("a b; rm -rf.tar", f"'{LOCATION}a b; rm -rf.tar'"),
    ],
)
def test_a_strangers_archive_name_is_harmless(
    server: ScriptedS3, store: S3Store, name: str, shown: str
) -> None:
    fill(server, LOCATION.prefix + name)
    error = refusal(store)
    assert error.reference == "prefix-holds-tar"
    assert f"staging upload {shown} s3://" in str(error.hint)


@pytest.mark.parametrize("uri", ["s3://models/in/laguna.tar", "s3://models/in/laguna.tar/"])
def test_an_object_where_a_prefix_is_expected(server: ScriptedS3, store: S3Store, uri: str) -> None:
    fill(server, "in/laguna.tar")
    error = refusal(store, S3Location.parse(uri))
    assert error.reference == "prefix-is-object"
    assert "staging ls" in (error.hint or "")


def test_a_nested_prefix(server: ScriptedS3, store: S3Store) -> None:
    fill(server, *(f"{LOCATION.prefix}laguna-xs/{name}" for name in ("config.json", "a/b")))
    error = refusal(store)
    assert error.reference == "prefix-nested"
    assert error.message.endswith("there is no file at its root, only 'laguna-xs/'")
    assert error.hint == "did you mean s3://models/checkpoints/laguna-xs/laguna-xs/?"


def test_a_prefix_of_prefixes(server: ScriptedS3, store: S3Store) -> None:
    fill(server, *(f"checkpoints/m{number}/config.json" for number in range(5)))
    error = refusal(store, S3Location.parse("s3://models/checkpoints"))
    assert error.reference == "prefix-nested"
    assert error.message.endswith("only 'm0/', 'm1/', 'm2/' and 2 more")
    assert "staging ls" in str(error.hint)


@pytest.mark.parametrize("name", ["x\n\x1b[31m", "..", "", "\u202e"])
def test_a_nested_prefix_with_a_strangers_name(
    server: ScriptedS3, store: S3Store, name: str
) -> None:
    fill(server, f"{LOCATION.prefix}{name}/config.json")
    error = refusal(store)
    assert error.reference == "prefix-nested"
    assert "did you mean" not in str(error.hint)


@pytest.mark.parametrize(
    "key", [".checkpoint/upload/token/a.json", ".checkpoint/claim.json", ".checkpoint/x"]
)
@pytest.mark.parametrize("beside", [[], ["config.json"], ["a.tar"], ["d/config.json"]])
def test_an_upload_that_has_not_finished(
    server: ScriptedS3, store: S3Store, key: str, beside: list[str]
) -> None:
    fill(server, *(LOCATION.prefix + name for name in [key, *beside]))
    error = refusal(store)
    assert error.reference == "upload-unfinished"
    assert "run the same `staging upload` again" in str(error.hint)


@pytest.mark.parametrize(
    ("names", "count"),
    [
        (["config.json"], "1 object"),
        (["config.json", "model.safetensors", ".checkpoint-complete"], "3 objects"),
        (["model.safetensors", "original.tar"], "2 objects"),
        (["config.json", "d/x"], "1 object"),
        ([f"shard-{number:03}" for number in range(250)], "200+ objects"),
        ([f"d{number:03}/x" for number in range(150)] + [f"e{number:03}" for number in range(150)],
            "50+ objects"),
    ],
)  # fmt: skip
def test_files_that_nobody_published(
    server: ScriptedS3, store: S3Store, names: list[str], count: str
) -> None:
    fill(server, *(LOCATION.prefix + name for name in names))
    error = refusal(store)
    assert error.reference == "not-published"
    assert error.message.endswith(f"it holds {count} but no .checkpoint/manifest.json")
    assert f"`staging adopt {LOCATION}`" in str(error.hint)
    assert "`model-downloader --unverified allow`" in str(error.hint)
    assert "`staging upload`" in str(error.hint)


def test_the_command_that_publishes_a_prefix_can_be_pasted(
    server: ScriptedS3, store: S3Store
) -> None:
    location = S3Location(BUCKET, "a b/$(x)/")
    fill(server, f"{location.prefix}config.json")
    assert "`staging adopt 's3://models/a b/$(x)/'`" in str(refusal(store, location).hint)


def test_another_version_than_the_pinned_one(server: ScriptedS3, store: S3Store) -> None:
    fill(server, LOCATION.manifest_key, data=MANIFEST.encode())
    wanted = "sha256:" + "0" * 64
    with pytest.raises(IntegrityError) as caught:
        read_manifest(store, LOCATION, expect_id=wanted)
    assert_presentable(caught.value)
    assert (caught.value.code, caught.value.reference) == (11, "id-mismatch")
    assert caught.value.message == f"{LOCATION} holds {MANIFEST.id}, expected {wanted}"


@pytest.mark.parametrize(
    "text", ["", "latest", MANIFEST.id[:-1], MANIFEST.id.upper(), MANIFEST.id + "\n"]
)
def test_a_pin_that_is_no_id(text: str) -> None:
    with pytest.raises(UsageError, match="not a checkpoint id") as caught:
        require_id(MANIFEST, text, "anywhere", side="local")
    assert_presentable(caught.value)
    assert caught.value.reference == "id"


@pytest.mark.parametrize("data", [b"", b"{}", MANIFEST.encode()[:-10], b"\xff"])
def test_a_damaged_manifest_says_where_it_is(
    server: ScriptedS3, store: S3Store, data: bytes
) -> None:
    fill(server, LOCATION.manifest_key, data=data)
    with pytest.raises(MalformedInput, match=f"{LOCATION}: the manifest is not valid") as caught:
        read_manifest(store, LOCATION)
    assert_presentable(caught.value)
    assert (caught.value.code, caught.value.reference) == (16, "manifest-malformed")


def test_without_the_right_to_list_it_is_missing_or_denied(
    server: ScriptedS3, store: S3Store
) -> None:
    server.deny("ListBucket")
    with pytest.raises(AccessDenied, match="missing, or denied") as caught:
        read_manifest(store, LOCATION)
    assert_presentable(caught.value)
    assert caught.value.code == 12
    assert server.requests.operations() == ["GetObject"]


def test_finding_what_is_published(server: ScriptedS3, store: S3Store) -> None:
    for prefix in ("", "a/", "a/b/", "a b/é/"):
        fill(server, f"{prefix}.checkpoint/manifest.json", data=Manifest.encode(MANIFEST))
    fill(
        server,
        "c/x.checkpoint/manifest.json",
        "d/.checkpoint/manifest.json/x",
        "e/.checkpoint/manifest.json2",
        "f/manifest.json",
    )
    root = S3Location(BUCKET, "")
    assert [location.prefix for location in find_published(store, root)] == [
        "", "a b/é/", "a/", "a/b/",
    ]  # fmt: skip
    assert [str(location) for location in find_published(store, root.child("a"))] == [
        "s3://models/a/",
        "s3://models/a/b/",
    ]
    assert find_published(store, root.child("zzz")) == []
