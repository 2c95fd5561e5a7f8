"""What is found before the first byte of a weight: I7, I11, I12 and I14 over real HTTP.

Everything that is wrong is told at once, with requests that are counted, and nothing is put on the disk.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from staging.directory import access
from staging.directory.fs import Fs
from staging.directory.names import partial_directory
from staging.layout.documents import is_document
from staging.published import read_manifest
from staging.store.s3 import S3Store
from staging.sync import SyncOptions, destination, inspection, sync
from staging.sync.preflight import Examination, Preflight, examine, preflight
from staging.vocabulary.errors import IntegrityError, StagingError
from staging.vocabulary.events import Event, Note
from staging.vocabulary.location import S3Location
from staging.vocabulary.manifest import Manifest
from tests.support.checkpoints import hugging_face, manifest_of, random_bytes, vendor, weights
from tests.support.s3server import Fault, FlipBit, ReplaceBody, ScriptedS3, Status
from tests.support.shared_s3 import SharedS3, shared_s3
from tests.support.tensors import framed

MIB = 1024 * 1024
BUCKET = "models"
LOCATION = S3Location.parse("s3://models/checkpoints/laguna-xs/")
OPTIONS = SyncOptions(memory=256 * MIB, cores=2, concurrency=8)


@pytest.fixture(scope="module")
def shared() -> Iterator[SharedS3]:
    with shared_s3(BUCKET) as opened:
        yield opened


@pytest.fixture
def server(shared: SharedS3) -> Iterator[ScriptedS3]:
    shared.reset()
    yield shared.server
    for permission in ("ListBucket", "GetObject", "kms:Decrypt"):
        shared.server.allow(permission)
    assert set(shared.server.requests.operations()) <= {"GetObject", "HeadObject", "ListObjectsV2"}


@pytest.fixture
def store(shared: SharedS3, server: ScriptedS3) -> S3Store:
    return shared.store


@pytest.fixture
def dst(tmp_path: Path) -> Path:
    return tmp_path / "dst"


def publish(
    server: ScriptedS3,
    files: Mapping[str, bytes],
    *,
    layout: Mapping[str, Any] | None = None,
    kms: bool = False,
) -> Manifest:
    """Put a checkpoint there as an upload would, encrypted with a KMS key if told to."""
    plain = manifest_of(files)
    manifest = Manifest.of(plain.hash, plain.files, layout=layout or {})
    headers = {"x-amz-server-side-encryption": "aws:kms"} if kms else {}
    bucket = server.bucket(BUCKET)
    for path, data in files.items():
        bucket.store(replace(bucket.put(LOCATION.prefix + path, data), headers=headers))
    bucket.put(LOCATION.manifest_key, manifest.encode())
    return manifest


def look(
    store: S3Store,
    dst: Path,
    *,
    options: SyncOptions = OPTIONS,
    expect_id: str | None = None,
    fs: Fs | None = None,
    events: list[Event] | None = None,
    spared: tuple[str, ...] = (),
) -> Preflight:
    report = (lambda event: None) if events is None else events.append
    known: Manifest | StagingError
    try:
        known = read_manifest(store, LOCATION, expect_id=expect_id)
    except StagingError as error:
        known = error
    found = preflight(store, LOCATION, dst, options, report, manifest=known, fs=fs, spared=spared)
    for finding in found.findings:
        assert finding.message.isprintable()
        assert finding.hint is None or finding.hint.isprintable()
    return found


def references(found: Preflight) -> list[str]:
    return [error.reference for error in found.findings]


def shards(count: int, size: int = 5_000) -> dict[str, bytes]:
    return hugging_face(7, (size,) * count)


class Full(Fs):
    """A disk with that many bytes free."""

    def __init__(self, free: int | None) -> None:
        self.free = free

    def free_bytes(self, fd: int) -> int | None:
        return self.free


# What a whole checkpoint costs


def test_a_whole_checkpoint_passes_with_few_requests(
    server: ScriptedS3, store: S3Store, dst: Path
) -> None:
    files = shards(20)
    manifest = publish(server, files)
    found = look(store, dst)
    assert found.findings == ()
    assert found.require() == found.manifest == manifest
    assert set(found.etags) == {path for path, data in files.items() if data}
    assert server.requests.count("ListObjectsV2") == 1
    for path in files:
        asked = server.requests.of("GetObject", key=LOCATION.prefix + path)
        assert len(asked) <= (2 if path.endswith(".safetensors") else is_document(path))
        for request in asked:
            assert request.headers["if-match"] == f'"{found.etags[path]}"'
    assert not dst.exists()


def test_one_truncated_shard_of_a_hundred_is_refused_without_a_weight(
    server: ScriptedS3, store: S3Store, dst: Path
) -> None:
    files = shards(100)
    cut = "model-00042-of-00100.safetensors"
    files[cut] = files[cut][:-1]
    publish(server, files)
    found = look(store, dst)
    assert references(found) == ["safetensors-broken"]
    with pytest.raises(StagingError, match="it is truncated") as caught:
        found.require()
    assert (caught.value.code, caught.value.side) == (17, "store")
    assert cut in caught.value.message
    requests = server.requests.operations()
    assert requests.count("ListObjectsV2") == 1
    assert requests.count("HeadObject") == 0
    documents = sum(map(is_document, files))
    assert requests.count("GetObject") <= 1 + documents + 2 * 100
    read = server.requests.of("GetObject", key=LOCATION.prefix + cut)
    assert len(read) <= 2
    # the header has its place in the first 264 bytes; 512 are asked for
    weights = [get for get in server.requests.of("GetObject") if get.key.endswith(".safetensors")]
    assert all(request.sent <= 512 for request in weights)


def test_a_long_header_takes_a_second_request_and_no_third(
    server: ScriptedS3, store: S3Store, dst: Path
) -> None:
    entry = {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}
    header = json.dumps({"w": entry}).encode().ljust(3_000)
    publish(server, {**vendor(1), "model.safetensors": framed(header, b"abcd")})
    assert look(store, dst).findings == ()
    asked = server.requests.of("GetObject", key=LOCATION.prefix + "model.safetensors")
    assert [request.range for request in asked] == ["bytes=0-511", "bytes=512-3007"]


def test_a_header_that_memory_has_no_room_for_is_not_looked_into(
    server: ScriptedS3, store: S3Store, dst: Path
) -> None:
    header = b"{}".ljust(3_000)
    publish(server, {**vendor(1), "model.safetensors": framed(header, b"too much")})
    events: list[Event] = []
    small = SyncOptions(memory=20 * 2_000, cores=1)
    assert look(store, dst, options=small, events=events).findings == ()
    [note] = [event for event in events if isinstance(event, Note)]
    assert note.warning
    assert "'model.safetensors' has too much in it" in note.text
    assert references(look(store, dst)) == ["safetensors-broken"]


def test_where_no_rule_looks_into_anything_one_object_is_read_for_the_permission(
    server: ScriptedS3, store: S3Store, dst: Path
) -> None:
    publish(server, {"a.bin": random_bytes(3_000, 1), "README.md": b"a model"})
    assert references(look(store, dst)) == ["weights-not-safetensors"]
    asked = server.requests.of("GetObject")[1:]
    assert [(request.key, request.range) for request in asked] == [
        (f"{LOCATION.prefix}a.bin", "bytes=0-511")
    ]


def test_without_the_layout_check_no_object_is_read(
    server: ScriptedS3, store: S3Store, dst: Path
) -> None:
    publish(server, {"a.bin": random_bytes(3_000, 1), "b/model.safetensors": b"no such thing"})
    unchecked = SyncOptions(memory=256 * MIB, cores=1, layout_check=False)
    found = look(store, dst, options=unchecked)
    assert found.findings == ()
    assert set(found.etags) == {"a.bin", "b/model.safetensors"}
    assert server.requests.operations() == ["GetObject", "ListObjectsV2"]
    found = look(store, dst)
    assert references(found) == ["safetensors-broken", "weights-nested", "config-missing"]


def test_rules_that_the_publisher_switched_off_only_warn(
    server: ScriptedS3, store: S3Store, dst: Path
) -> None:
    publish(server, {"adapter.bin": b"weights"}, layout={"checked": False})
    events: list[Event] = []
    assert look(store, dst, events=events).findings == ()
    [note] = [event for event in events if isinstance(event, Note)]
    assert note.warning
    assert "published with --layout-check off" in note.text


@pytest.mark.parametrize(
    "more",
    [{"adapter.bin": b"weights"}, {"config.json": b"{}"}, {"extra/tool.so": b"a program"}],
    ids=["weights", "configuration", "program"],
)
def test_what_passed_when_it_was_published_is_not_refused_by_other_rules(
    server: ScriptedS3, store: S3Store, dst: Path, more: dict[str, bytes]
) -> None:
    """The bytes are those that were judged then: only the rules can have changed since (decision 21)."""
    files = more if "adapter.bin" in more else {**shards(2), **more}
    publish(server, files)
    [refused] = look(store, dst).findings
    assert refused.code == 17
    publish(server, files, layout={"checked": True})
    events: list[Event] = []
    assert look(store, dst, events=events).findings == ()
    [note] = [event for event in events if isinstance(event, Note)]
    assert note.warning
    assert note.text.startswith(f"{refused.message}; ")
    assert "let it pass" in note.text


def test_a_header_that_is_damaged_and_still_one_is_refused_by_its_digest(
    server: ScriptedS3, store: S3Store, dst: Path
) -> None:
    """To the rules it looks like other weights than the index was written for; they alone cannot tell."""
    files = shards(3)
    name = "model-00002-of-00003.safetensors"
    publish(server, files, layout={"checked": True})
    server.bucket(BUCKET).put(
        LOCATION.prefix + name, files[name].replace(b"layers.", b"lavers.", 1)
    )
    events: list[Event] = []
    assert look(store, dst, events=events).findings == ()
    assert any(isinstance(event, Note) and "let it pass" in event.text for event in events)
    with pytest.raises(IntegrityError) as caught:
        sync(store, LOCATION, dst, OPTIONS)
    assert caught.value.reference == "chunk-digest"
    assert not (dst / name).exists()


def test_what_was_decided_about_rules_when_it_was_published_holds_here_too(
    server: ScriptedS3, store: S3Store, dst: Path
) -> None:
    files = {**shards(2), "extra/tool.so": b"a program"}
    for layout, told in (
        ({"ignored": ["no-such-rule", 7]}, True),
        ({"allowed": ["extra/tool.so"]}, False),
        ({"ignored": ["executable-content"]}, False),
    ):
        publish(server, files, layout=layout)
        assert references(look(store, dst)) == (["executable-content"] if told else [])
        publish(server, files, layout={"checked": True, **layout})
        events: list[Event] = []
        assert look(store, dst, events=events).findings == ()
        assert any(isinstance(event, Note) for event in events) is told


@pytest.mark.parametrize("path", ["config.json", "model-00002-of-00003.safetensors"])
def test_what_is_damaged_on_the_way_is_read_again_when_it_was_in_order_once(
    server: ScriptedS3, store: S3Store, dst: Path, path: str
) -> None:
    publish(server, shards(3), layout={"checked": True})
    damaged = Fault("GetObject", FlipBit(9 * 8 + 6), key=LOCATION.prefix + path)
    server.script(damaged)
    assert look(store, dst).findings == ()
    assert server.requests.count("GetObject", key=LOCATION.prefix + path) >= 2
    publish(server, shards(3))  # of which nobody knows that it was in order
    server.script(damaged)
    # Documents are small enough to be held against the manifest at once; headers are not.
    codes = [17] if path.endswith(".safetensors") else []
    assert [error.code for error in look(store, dst).findings] == codes


def test_a_document_that_is_damaged_in_the_store_is_damaged_and_not_badly_made(
    server: ScriptedS3, store: S3Store, dst: Path
) -> None:
    files = shards(2)
    publish(server, files)
    server.bucket(BUCKET).put(LOCATION.prefix + "config.json", b"x" * len(files["config.json"]))
    assert references(look(store, dst)) == ["chunk-digest"]


# What lies there already


def test_files_that_the_marker_vouches_for_are_not_looked_at(
    server: ScriptedS3, store: S3Store, dst: Path
) -> None:
    old = vendor(1)
    manifest = publish(server, old)
    sync(store, LOCATION, dst, OPTIONS)
    new = {**old, "config.yaml": b"another\n", "extra.safetensors": weights(3_000, 9)}
    publish(server, new)
    server.requests.clear()
    found = look(store, dst)
    assert found.findings == ()
    assert set(found.etags) == {"config.yaml", "extra.safetensors"}
    assert {request.key for request in server.requests.of("GetObject")} == {
        LOCATION.manifest_key,
        f"{LOCATION.prefix}config.yaml",
        f"{LOCATION.prefix}extra.safetensors",
    }
    assert found.needed_bytes == 2 * 4096
    # A file that changed since is nobody's word.
    os.utime(dst / "model.safetensors", ns=(1, 1))
    assert "model.safetensors" in look(store, dst).etags
    assert manifest.id != found.require().id


def test_a_file_in_place_without_a_marker_is_looked_at_but_needs_no_space(
    server: ScriptedS3, store: S3Store, dst: Path
) -> None:
    files = vendor(1)
    publish(server, files)
    sync(store, LOCATION, dst, OPTIONS)
    (dst / ".checkpoint" / "ready.json").unlink()
    found = look(store, dst)
    assert found.needed_bytes == 0
    assert "model.safetensors" in found.etags


def test_blocks_of_partial_files_count_as_there(
    server: ScriptedS3, store: S3Store, dst: Path
) -> None:
    files = {"config.json": b'{"model_type": "tiny"}', "model.safetensors": weights(3 * MIB, 1)}
    manifest = publish(server, files)
    whole = look(store, dst)
    assert whole.needed_bytes == 3 * MIB + 4096
    partial = dst / partial_directory(manifest.id) / "model.safetensors"
    partial.parent.mkdir(parents=True)
    with partial.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, 2 * MIB)
    assert look(store, dst).needed_bytes == MIB + 4096
    # Bytes of something else are no help.
    (dst / "link").hardlink_to(partial)
    assert look(store, dst).needed_bytes == 3 * MIB + 4096


def test_what_is_spared_needs_neither_space_nor_a_look(
    server: ScriptedS3, store: S3Store, dst: Path
) -> None:
    publish(
        server, {"config.json": b'{"model_type": "tiny"}', "model.safetensors": weights(3 * MIB, 1)}
    )
    found = look(store, dst, spared=("model.safetensors",))
    assert (found.needed_bytes, set(found.etags)) == (4096, {"config.json"})


@pytest.mark.parametrize("exists", [False, True])
@pytest.mark.parametrize(
    ("free", "expected"),
    [(0, ["no-space"]), (11 * MIB, ["no-space"]), (12 * MIB, []), (None, [])],
)
def test_a_disk_that_is_too_small_with_the_numbers(
    server: ScriptedS3,
    store: S3Store,
    dst: Path,
    free: int | None,
    expected: list[str],
    exists: bool,
) -> None:
    publish(
        server, {"config.json": b'{"model_type": "tiny"}', "model.safetensors": weights(3 * MIB, 1)}
    )
    if exists:
        dst.mkdir()
    found = look(store, dst, fs=Full(free))
    assert references(found) == expected
    assert (found.needed_bytes, found.free_bytes) == (3 * MIB + 4096, free)
    for error in found.findings:
        assert error.code == 14
        assert repr(str(dst)) in error.message
        shown = f"{(free or 0) // 10_000 / 100:.2f} MB are free"
        assert f" needs 11.54 MB more, {shown}: " in error.message
        assert "ephemeral-storage" in str(error.hint)


# What is wrong with the prefix


def test_everything_is_told_at_once(server: ScriptedS3, store: S3Store, tmp_path: Path) -> None:
    files = shards(4)
    broken = "model-00001-of-00004.safetensors"
    files[broken] = b"<html>"
    publish(server, files)
    bucket = server.bucket(BUCKET)
    bucket.remove(f"{LOCATION.prefix}config.json")
    bucket.remove(f"{LOCATION.prefix}tokenizer.json")
    shard = f"{LOCATION.prefix}model-00002-of-00004.safetensors"
    bucket.put(shard, b"cut")
    target = tmp_path / "file"
    target.write_bytes(b"in the way")
    found = look(store, target)
    assert references(found) == [
        "object-missing",
        "object-size",
        "safetensors-broken",
        "destination",
    ]
    with pytest.raises(StagingError) as caught:
        found.require()
    error = caught.value
    assert (error.code, error.reference) == (11, "object-missing")
    assert "'config.json' is in the manifest" in error.message
    assert "the same of 'tokenizer.json'" in error.message
    assert len(error.__notes__) == 3
    assert [finding["code"] for finding in error.document["findings"]] == [11, 11, 17, 15]


def test_a_missing_prefix_and_a_missing_parent(
    server: ScriptedS3, store: S3Store, tmp_path: Path
) -> None:
    found = look(store, tmp_path / "no" / "such")
    assert references(found) == ["prefix-empty", "destination"]
    assert found.manifest is None
    assert (found.needed_bytes, found.free_bytes) == (None, None)
    with pytest.raises(StagingError) as caught:
        found.require()
    assert caught.value.code == 10
    assert f"{str(tmp_path / 'no')!r} to make 'such' in" in found.findings[1].message


def test_another_id_than_expected(server: ScriptedS3, store: S3Store, dst: Path) -> None:
    publish(server, vendor(1))
    found = look(store, dst, expect_id="sha256:" + "0" * 64)
    assert references(found) == ["id-mismatch"]
    assert found.free_bytes is not None


def test_an_object_that_changes_meanwhile(server: ScriptedS3, store: S3Store, dst: Path) -> None:
    publish(server, vendor(1))
    key = f"{LOCATION.prefix}model.safetensors"

    def replaced(data: bytes) -> bytes:
        server.bucket(BUCKET).put(key, weights(100_000, 77))
        return data

    server.script(Fault("ListObjectsV2", ReplaceBody(replaced)))
    assert references(look(store, dst)) == ["object-changed"]


def test_a_store_that_is_not_well_is_asked_no_further(
    server: ScriptedS3, store: S3Store, dst: Path
) -> None:
    publish(server, shards(60))
    server.script(
        Fault("GetObject", Status(500), occurrence=None, where=lambda request: bool(request.range))
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store._wire.pace, "sleep", lambda seconds: None)  # type: ignore[attr-defined]
        found = look(store, dst)
    assert references(found) == ["store-busy"]
    assert found.findings[0].code == 13
    assert server.requests.count("GetObject", status=500) < 60 * 2


# Permissions


def test_a_manifest_and_a_prefix_that_may_not_be_read_are_both_told(
    server: ScriptedS3, store: S3Store, dst: Path
) -> None:
    publish(server, vendor(1))
    server.deny("GetObject")
    server.deny("ListBucket")
    found = look(store, dst)
    assert references(found) == ["denied", "denied"]
    read, listed = found.findings
    assert "s3:GetObject on arn:aws:s3:::models/*" in str(read.hint)
    assert "s3:ListBucket on arn:aws:s3:::models" in str(listed.hint)
    assert '"Resource":"arn:aws:s3:::models/*"' in "".join(read.__notes__)
    assert '"Resource":"arn:aws:s3:::models"' in "".join(listed.__notes__)


def test_a_misspelled_prefix_that_may_not_be_listed_is_not_taken_for_one_that_may_not_be_read(
    server: ScriptedS3, store: S3Store, dst: Path
) -> None:
    """Nothing is there; S3 says no more than "Access Denied", as it does to other accounts."""
    denied = Status(403, "AccessDenied", "Access Denied")
    server.script(
        Fault("GetObject", denied, occurrence=None), Fault("ListObjectsV2", denied, occurrence=None)
    )
    found = look(store, dst)
    assert references(found) == ["denied"]
    [error] = found.findings
    assert error.message.startswith("there is no such prefix, or it may not be read: ")
    hint = str(error.hint)
    assert hint.startswith("check the spelling of the prefix")
    assert hint.index("s3:ListBucket on arn:aws:s3:::models") < hint.index("s3:GetObject")
    assert "kms:" not in hint
    [note] = error.__notes__
    assert '"Action":"s3:ListBucket","Resource":"arn:aws:s3:::models"' in note


def test_without_the_right_to_list_objects_are_looked_at_one_by_one(
    server: ScriptedS3, store: S3Store, dst: Path
) -> None:
    files = vendor(1)
    publish(server, files)
    server.deny("ListBucket")
    found = look(store, dst)
    assert found.findings == ()
    assert server.requests.count("HeadObject") == sum(1 for data in files.values() if data)


def test_a_refused_head_is_explained_by_a_get(
    server: ScriptedS3, store: S3Store, dst: Path
) -> None:
    publish(server, vendor(1))
    server.deny("ListBucket")
    manifest = read_manifest(store, LOCATION)
    server.deny("GetObject")
    found = preflight(store, LOCATION, dst, OPTIONS, manifest=manifest)
    assert references(found) == ["denied"]
    assert "is not authorized to perform: s3:GetObject" in found.findings[0].message


def test_a_key_that_may_not_be_used_is_told_once_for_all_shards(
    server: ScriptedS3, store: S3Store, dst: Path
) -> None:
    publish(server, shards(5), kms=True)
    server.deny("kms:Decrypt")
    found = look(store, dst)
    assert references(found) == ["kms-key"]
    [error] = found.findings
    assert "kms:Decrypt" in error.message
    assert "'model-00002-of-00005.safetensors'" in error.message
    assert "and 4 more" in error.message
    assert "kms:Decrypt" in "".join(error.__notes__)
    assert error.code == 12


def test_credentials_that_are_no_good_are_tried_once(
    server: ScriptedS3, store: S3Store, dst: Path
) -> None:
    publish(server, shards(30))
    expired = Status(400, "ExpiredToken", "The provided token has expired.")
    server.script(Fault(None, expired, occurrence=None))
    found = look(store, dst)
    assert references(found) == ["credentials"]
    assert len(server.requests) == 1


def test_what_would_not_serve_has_a_hint_that_reads_as_a_sentence(
    server: ScriptedS3, store: S3Store, dst: Path
) -> None:
    publish(server, {"config.json": b'{"model_type": "tiny"}', "model.safetensors": b"cut off"})
    [error] = [found for found in look(store, dst).findings if found.code == 17]
    advice, _, more = str(error.hint).partition("; ")
    assert advice.startswith("get this file again")
    assert more == (
        "then publish the checkpoint under a new prefix, or fetch this one as it is with --layout-check off"
    )


# The destination


def test_a_symlink_and_a_file_are_no_destination(
    server: ScriptedS3, store: S3Store, tmp_path: Path
) -> None:
    publish(server, vendor(1))
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "file").write_bytes(b"")
    assert references(look(store, tmp_path / "link")) == ["symlink"]
    assert references(look(store, tmp_path / "file")) == ["destination"]
    assert references(look(store, tmp_path / "file" / "below")) == ["destination"]
    assert references(look(store, tmp_path / "link" / "below")) == []


@pytest.mark.parametrize("denied", ["", ".checkpoint", ".checkpoint/lock", ".checkpoint/partial"])
def test_a_directory_that_this_user_may_not_write_to(
    server: ScriptedS3,
    store: S3Store,
    dst: Path,
    monkeypatch: pytest.MonkeyPatch,
    denied: str,
) -> None:
    publish(server, vendor(1))
    (dst / ".checkpoint" / "partial").mkdir(parents=True)
    (dst / ".checkpoint" / "lock").write_bytes(b"")
    where = dst / denied
    where.chmod(0o2750)
    status = where.stat()
    real = access.may_write

    def may_write(name: str, *, dir_fd: int) -> bool:
        found = os.stat(name, dir_fd=dir_fd)
        return found.st_ino != status.st_ino and real(name, dir_fd=dir_fd)

    monkeypatch.setattr(access, "may_write", may_write)
    found = look(store, dst)
    assert references(found) == ["local-permission"]
    [error] = found.findings
    assert error.code == 1
    assert error.message == (
        f"{str(where)!r} is not writable for user {os.geteuid()} with groups"
        f" {' '.join(map(str, sorted({os.getegid(), *os.getgroups()})))}:"
        f" it belongs to user {status.st_uid}, group {status.st_gid}, mode 2750"
    )
    assert "fsGroup" in str(error.hint)


@pytest.mark.parametrize(("owner", "named"), [(0, False), (4321, True)])
def test_nobody_is_told_to_run_as_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: int, named: bool
) -> None:
    """Pods have runAsNonRoot: with `runAsUser: 0` they would not start."""
    monkeypatch.setattr(access, "may_write", lambda name, *, dir_fd: False)
    status = os.stat_result((0o40755, 7, 7, 2, owner, 7, 0, 0, 0, 0))
    monkeypatch.setattr(Fs, "stat", lambda self, name, *, dir_fd: status)
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        error = access.write_refusal(Fs(), fd, ".", "/models")
    finally:
        os.close(fd)
    assert error is not None
    assert f"belongs to user {owner}, group 7" in error.message
    assert ("runAsUser" in str(error.hint)) is named
    assert ("runAsUser: 4321" in str(error.hint)) is named


def test_a_parent_that_this_user_may_not_write_to(
    server: ScriptedS3, store: S3Store, dst: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(server, vendor(1))
    monkeypatch.setattr(access, "may_write", lambda name, *, dir_fd: False)
    [error] = look(store, dst).findings
    assert error.reference == "local-permission"
    assert error.message.startswith(f"{str(dst.parent)!r} is not writable")


def test_a_filesystem_that_is_read_only(
    server: ScriptedS3, store: S3Store, dst: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(server, vendor(1))
    dst.mkdir()
    monkeypatch.setattr(access, "may_write", lambda name, *, dir_fd: False)
    monkeypatch.setattr(access, "is_read_only", lambda fd: True)
    [error] = look(store, dst).findings
    assert error.reference == "local-permission"
    assert "mounted read-only" in error.message
    assert "readOnly" in str(error.hint)


def test_what_the_kernel_says_of_writing(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        assert access.may_write(".", dir_fd=fd)
        assert access.may_write("file", dir_fd=fd)
        assert not access.is_read_only(fd)
        assert access.write_refusal(Fs(), fd, "nothing", "nothing") is None
        os.chmod(tmp_path / "file", 0o444)
        os.chmod(tmp_path, 0o555)
        privileged = os.access(tmp_path / "file", os.W_OK)  # root may do anything
        assert access.may_write("file", dir_fd=fd) is privileged
        assert access.may_write(".", dir_fd=fd) is privileged
    finally:
        os.chmod(tmp_path, 0o755)
        os.close(fd)


# The plan


def examined(store: S3Store, dst: Path, fs: Fs | None = None) -> Examination:
    manifest = read_manifest(store, LOCATION)
    return examine(store, LOCATION, dst, OPTIONS, manifest=manifest, fs=fs)


def plan_of(found: Examination) -> tuple[int, ...]:
    return (found.fetched_files, found.kept_files, found.checked_files, found.removed_files)


def test_an_examination_changes_nothing_on_the_disk(
    server: ScriptedS3, store: S3Store, dst: Path
) -> None:
    files = vendor(1)
    publish(server, files)
    fresh = examined(store, dst)
    assert plan_of(fresh) == (len(files), 0, 0, 0)
    assert fresh.fetched_bytes == sum(map(len, files.values()))
    assert not dst.exists()
    sync(store, LOCATION, dst, OPTIONS)
    assert plan_of(examined(store, dst)) == (0, len(files), 0, 0)
    new = {**files, "config.yaml": b"other\n"}
    del new["tokenizer/merges.txt"]
    publish(server, new)
    before = {path: path.lstat().st_ctime_ns for path in [dst, *dst.rglob("*")]}
    updated = examined(store, dst)
    assert plan_of(updated) == (1, len(new) - 1, 0, 1)
    assert updated.fetched_bytes == len(new["config.yaml"])
    (dst / ".checkpoint" / "ready.json").rename(dst.parent / "ready.json")
    doubtful = examined(store, dst)
    assert plan_of(doubtful) == (1, 0, len(new) - 1, 1)
    assert doubtful.checked_bytes == sum(map(len, new.values())) - len(new["config.yaml"])
    (dst.parent / "ready.json").rename(dst / ".checkpoint" / "ready.json")
    after = {path: path.lstat().st_ctime_ns for path in [dst, *dst.rglob("*")]}
    moved = {dst / ".checkpoint", dst / ".checkpoint" / "ready.json"}
    assert {path for path in after if after[path] != before.get(path)} <= moved
    assert set(after) == set(before)


def test_an_examination_tells_what_is_in_the_way(
    server: ScriptedS3, store: S3Store, dst: Path
) -> None:
    publish(server, vendor(1))
    dst.mkdir()
    (dst / "config.yaml").symlink_to("elsewhere")
    (dst / "other.safetensors").write_bytes(b"x")
    found = examined(store, dst, Full(0)).preflight
    assert references(found) == ["symlink", "no-space"]
    assert "'other.safetensors' would be loaded" in found.findings[0].message
    with pytest.raises(StagingError) as caught:
        found.require()
    assert caught.value.code == 15


def test_an_examination_knows_what_partial_files_hold(
    server: ScriptedS3, store: S3Store, dst: Path
) -> None:
    manifest = publish(
        server, {"config.json": b'{"model_type": "tiny"}', "model.safetensors": weights(3 * MIB, 1)}
    )
    partial = dst / partial_directory(manifest.id) / "model.safetensors"
    partial.parent.mkdir(parents=True)
    with partial.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, 3 * MIB)
    found = examined(store, dst)
    assert (found.fetched_bytes, found.partial_bytes) == (3 * MIB + 22, 3 * MIB)


def test_files_that_another_process_puts_in_place_meanwhile_need_no_room(
    dst: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are seen in one of the two places, whichever moment is looked at."""
    manifest = manifest_of({"a.bin": random_bytes(5_000, 1)})
    waiting = dst / partial_directory(manifest.id)
    waiting.mkdir(parents=True)
    (waiting / "a.bin").write_bytes(random_bytes(5_000, 1))
    real = inspection.look_up

    def look_up(*given: Any) -> Any:
        found = real(*given)
        (waiting / "a.bin").rename(dst / "a.bin")
        return found

    monkeypatch.setattr(destination, "look_up", look_up)
    assert destination.look(dst, manifest, fs=Fs()).needed_bytes == 0
