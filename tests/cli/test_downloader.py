"""`model-downloader` as a pod meets it: its environment, requests and refusals (I1, I6, I7, I10, I14)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from downloader.program import read_orders
from staging.layout.documents import is_document
from staging.vocabulary.errors import UsageError
from staging.vocabulary.manifest import Manifest
from tests.cli.programs import Programs
from tests.support.checkpoints import hugging_face, manifest_of, read_tree, vendor
from tests.support.s3server import Bucket, CutBody, Fault, ScriptedS3
from tests.support.s3server.access import PERMISSIONS

MIB = 1024 * 1024
CHUNK = 16 * MIB
BUCKET = "models"
A, B = vendor(1, CHUNK + 5000), vendor(2, CHUNK + 5000)


def uri(name: str) -> str:
    return f"s3://{BUCKET}/checkpoints/{name}/"


@pytest.fixture
def bucket(scripted_s3: ScriptedS3) -> Bucket:
    return scripted_s3.bucket(BUCKET)


@pytest.fixture
def programs(tmp_path: Path, scripted_s3: ScriptedS3, bucket: Bucket) -> Programs:
    return Programs(tmp_path, scripted_s3)


def publish(bucket: Bucket, name: str, files: Mapping[str, bytes]) -> Manifest:
    """What `staging upload` leaves under checkpoints/NAME/."""
    manifest = manifest_of(files)
    for path, data in files.items():
        bucket.put(f"checkpoints/{name}/{path}", data)
    bucket.put(f"checkpoints/{name}/.checkpoint/manifest.json", manifest.encode())
    return manifest


def ranged(scripted_s3: ScriptedS3) -> Iterator[tuple[str, int]]:
    """Key and first byte of every range that was asked for, but for headers of weights."""
    for request in scripted_s3.requests.of("GetObject"):
        if request.range is not None:
            first, _, last = request.range.removeprefix("bytes=").partition("-")
            if int(last) >= MIB or not request.key.endswith(".safetensors"):
                yield request.key, int(first)


def test_a_pod_needs_nothing_but_its_environment(
    programs: Programs, scripted_s3: ScriptedS3, bucket: Bucket
) -> None:
    manifest = publish(bucket, "a", A)
    pod = {
        "MODEL_URI": uri("a").removesuffix("/"),
        "MODEL_DIR": str(programs.directory / "node"),
        "MODEL_EXPECT_ID": manifest.id,
        "MODEL_MEMORY": "192MiB",
        "MODEL_CONCURRENCY": "2",
    }
    first = programs.download(**pod)
    assert first.stdout == f"{pod['MODEL_DIR']} {manifest.id}\n"
    assert read_tree(programs.directory / "node") == A
    # A restarted pod that pins the id asks the store nothing.
    scripted_s3.requests.clear()
    again = programs.download(**pod, installed=True)
    assert again.stdout == first.stdout
    assert "already holds" in again.stderr
    assert len(scripted_s3.requests) == 0
    # One that does not, asks once.
    del pod["MODEL_EXPECT_ID"]
    assert programs.download(**pod).stdout == first.stdout
    assert [request.key for request in scripted_s3.requests] == [
        "checkpoints/a/.checkpoint/manifest.json"
    ]


def test_present_and_pinned_works_without_store_or_credentials(
    programs: Programs, bucket: Bucket, tmp_path: Path
) -> None:
    manifest = publish(bucket, "a", A)
    programs.download(uri("a"), "node")
    alone = Programs(tmp_path)
    alone.download(uri("a"), "node", "--expect-id", manifest.id)
    alone.download("verify", "node", "--level", "digest", MODEL_EXPECT_ID=manifest.id)


def test_several_pairs(programs: Programs, bucket: Bucket) -> None:
    ids = [publish(bucket, "a", A).id, publish(bucket, "b", hugging_face(3)).id]
    done = programs.download(
        uri("a"), "one", uri("b"), "two", "--expect-id", ids[0], "--expect-id", ids[1], "--json"
    )
    found = done.document["checkpoints"]
    assert [(entry["directory"], entry["id"]) for entry in found] == list(
        zip(("one", "two"), ids, strict=True)
    )
    assert [entry["fetched_bytes"] for entry in found] == [e["total_size"] for e in found]
    assert read_tree(programs.directory / "one") == A
    assert read_tree(programs.directory / "two") == hugging_face(3)
    # One environment variable pins both, in the order of the pairs.
    again = programs.download(uri("a"), "one", uri("b"), "two", MODEL_EXPECT_ID=" ".join(ids))
    assert again.stdout == f"one {ids[0]}\ntwo {ids[1]}\n"
    # The first failure ends it; what was done before is told and stays.
    failed = programs.download(uri("a"), "one", uri("none"), "three", "--json", expect=10)
    assert failed.document["error"]["reference"] == "prefix-empty"
    assert "one already holds" in failed.stderr


def test_a_read_only_role_is_enough(
    programs: Programs, scripted_s3: ScriptedS3, bucket: Bucket
) -> None:
    publish(bucket, "a", A)
    for permission in set(PERMISSIONS.values()) - {"ListBucket", "GetObject"}:
        scripted_s3.deny(permission)
    programs.download(uri("a"), "node")
    programs.download("verify", "node", "--level", "digest")
    refused = programs.download(uri("wrong"), "other", expect=10)
    assert refused.reference == "prefix-empty"
    assert set(scripted_s3.requests.operations()) <= {"GetObject", "HeadObject", "ListObjectsV2"}


def test_without_listing_only_what_is_there_can_be_told(
    programs: Programs, scripted_s3: ScriptedS3, bucket: Bucket
) -> None:
    publish(bucket, "a", A)
    scripted_s3.deny("ListBucket")
    programs.download(uri("a"), "node")
    refused = programs.download(uri("wrong"), "other", expect=12)
    assert "missing, or denied" in refused.error


def test_another_id_is_found_before_any_member_is_fetched(
    programs: Programs, scripted_s3: ScriptedS3, bucket: Bucket
) -> None:
    manifest = publish(bucket, "a", A)
    wrong = "sha256:" + "0" * 64
    refused = programs.download(uri("a"), "node", MODEL_EXPECT_ID=wrong, expect=11)
    assert refused.reference == "id-mismatch"
    assert manifest.id in refused.error
    assert wrong in refused.error
    assert [request.key for request in scripted_s3.requests] == [
        "checkpoints/a/.checkpoint/manifest.json"
    ]
    assert not (programs.directory / "node").exists()


def test_the_nearest_prefix_is_suggested_level_by_level(programs: Programs, bucket: Bucket) -> None:
    publish(bucket, "laguna-xs-2026-04", vendor(1))
    publish(bucket, "laguna-l-2026-04", vendor(2))
    right = uri("laguna-xs-2026-04")
    for wrong in ("checkpoints/laguna-sx-2026-04", "checkpoint/laguna-xs-2026-4"):
        refused = programs.download(f"s3://{BUCKET}/{wrong}", "node", expect=10)
        assert refused.hint == f"hint: did you mean {right}?"


def test_what_the_manifest_does_not_list_is_not_fetched(
    programs: Programs, scripted_s3: ScriptedS3, bucket: Bucket
) -> None:
    publish(bucket, "a", A)
    bucket.put("checkpoints/a/evil.safetensors", b"somebody's")
    bucket.put("checkpoints/a-2/model.safetensors", b"a sibling's")
    programs.download(uri("a"), "node")
    assert read_tree(programs.directory / "node") == A
    assert {
        request.key.removeprefix("checkpoints/a/")
        for request in scripted_s3.requests.of("GetObject", "HeadObject")
    } <= {*A, ".checkpoint/manifest.json"}


def test_foreign_weights_are_refused_until_they_are_gone(
    programs: Programs, scripted_s3: ScriptedS3, bucket: Bucket
) -> None:
    publish(bucket, "a", A)
    node = programs.directory / "node"
    node.mkdir()
    (node / "notes.txt").write_bytes(b"left alone")
    (node / "old.safetensors").write_bytes(b"somebody's")
    refused = programs.download(uri("a"), node, expect=15)
    assert refused.reference == "foreign-weights"
    assert "'old.safetensors'" in refused.error
    looked_at = {key.removeprefix("checkpoints/a/") for key, _ in ranged(scripted_s3)}
    assert all(is_document(path) for path in looked_at)
    assert {path.name for path in node.iterdir()} == {"notes.txt", "old.safetensors"}
    (node / "old.safetensors").unlink()
    programs.download(uri("a"), node)
    assert read_tree(node) == A | {"notes.txt": b"left alone"}
    # One that comes later is found too, although everything is there.
    (node / "late.safetensors").write_bytes(b"somebody's")
    assert programs.download(uri("a"), node, expect=15).reference == "foreign-weights"


def test_an_upgrade_in_place_fetches_only_what_differs(
    programs: Programs, scripted_s3: ScriptedS3, bucket: Bucket
) -> None:
    publish(bucket, "a", A | {"only-in-a.txt": b"goes"})
    newer = A | {"tokenizer/tokenizer.json": b"newer", "added.txt": b"comes"}
    upgraded = publish(bucket, "b", newer)
    node = programs.directory / "node"
    programs.download(uri("a"), node)
    (node / "mine.txt").write_bytes(b"stays")
    weights = (node / "model.safetensors").stat()
    scripted_s3.requests.clear()
    done = programs.download(uri("b"), node, "--json").document["checkpoints"][0]
    assert done["id"] == upgraded.id
    assert done["fetched_bytes"] == len(b"newer") + len(b"comes")
    assert {key for key, _ in ranged(scripted_s3)} == {
        "checkpoints/b/added.txt",
        "checkpoints/b/tokenizer/tokenizer.json",
    }
    assert read_tree(node) == newer | {"mine.txt": b"stays"}
    assert (node / "model.safetensors").stat().st_ino == weights.st_ino
    programs.download("verify", node, "--level", "digest", MODEL_EXPECT_ID=upgraded.id)
    # And back again.
    programs.download(uri("a"), node)
    assert read_tree(node) == A | {"only-in-a.txt": b"goes", "mine.txt": b"stays"}


def test_a_version_of_the_same_size_is_told_apart(programs: Programs, bucket: Bucket) -> None:
    publish(bucket, "a", A)
    publish(bucket, "b", B)
    assert len(A["model.safetensors"]) == len(B["model.safetensors"])
    programs.download(uri("a"), "node")
    programs.download(uri("b"), "node")
    assert read_tree(programs.directory / "node") == B


def test_a_failed_run_is_continued(
    programs: Programs, scripted_s3: ScriptedS3, bucket: Bucket
) -> None:
    publish(bucket, "a", A)
    bucket.flip_bit("checkpoints/a/model.safetensors", 8 * CHUNK + 1)  # in its second chunk
    programs.download(uri("a"), "node", "--concurrency", "1", expect=11)
    bucket.flip_bit("checkpoints/a/model.safetensors", 8 * CHUNK + 1)
    scripted_s3.requests.clear()
    programs.download(uri("a"), "node")
    fetched = list(ranged(scripted_s3))
    assert ("checkpoints/a/model.safetensors", CHUNK) in fetched
    assert ("checkpoints/a/model.safetensors", 0) not in fetched
    assert read_tree(programs.directory / "node") == A


def test_a_body_that_breaks_off_is_asked_for_again(
    programs: Programs, scripted_s3: ScriptedS3, bucket: Bucket
) -> None:
    publish(bucket, "a", A)
    cut = Fault("GetObject", CutBody(5 * MIB), key="checkpoints/a/model.safetensors")
    scripted_s3.script(cut)
    programs.download(uri("a"), "node")
    assert not scripted_s3.unfired_faults
    assert read_tree(programs.directory / "node") == A


def test_verify_finds_what_changed_on_the_node(programs: Programs, bucket: Bucket) -> None:
    publish(bucket, "a", A)
    programs.download(uri("a"), "node")
    passed = programs.download("verify", "node", "--json").document["verify"]
    assert (passed["passed"], passed["level"], passed["read_bytes"]) == (True, "size", 0)
    node = programs.directory / "node"
    (node / "config.yaml").write_bytes(b"longer than it was published, by a bit of text")
    (node / "generation_config.json").unlink()
    refused = programs.download("verify", "node", "--json", expect=11)
    findings = {f["path"]: f["kind"] for f in refused.document["verify"]["findings"]}
    assert findings == {"config.yaml": "size", "generation_config.json": "missing"}
    # The damaged file may be somebody's work by now, so the downloader does not overwrite it.
    refused = programs.download(uri("a"), "node", expect=15)
    assert refused.reference == "foreign-file"
    assert "delete it" in refused.hint
    (node / "config.yaml").unlink()
    programs.download(uri("a"), "node")
    assert read_tree(node) == A


def test_one_directory_in_two_spellings_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the second checkpoint would replace the first, and both would count as there."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path)
    for other in (str(tmp_path / "m"), "link/m", "./m"):
        with pytest.raises(UsageError, match="one directory"):
            read_orders([uri("a"), "m", uri("b"), other], [])
