"""The whole job with the real programs: a tar in, the same tree out, proven on both ends (I1, I2, I4, I16).

The large test has members of every size that has a boundary in it, in both dialects in use, from a file
and from a pipe. The others compare stores, tunings and tools of other people.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile  # noqa: TID251 - packs where there is no GNU tar
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Literal

import pytest

from staging.sync.excerpts import is_looked_into
from tests.cli.programs import Programs
from tests.support.checkpoints import hugging_face, read_tree, tar_of, vendor, weights, write_tree
from tests.support.s3server import Bucket, Quirk, ScriptedS3
from tests.support.servers import Endpoint, Server, plain_client

MIB = 1024 * 1024
GIB = 1024 * MIB
CHUNK = 16 * MIB
BUCKET = "models"

Dialect = Literal["gnu", "pax"]

LONG = "tokenizer/" + "long-name-" * 12 + ".json"
"""Over 100 bytes: past the name field of every dialect."""
LONGER = "/".join(["code", "d" * 120, "e" * 120, "é" * 60 + ".py"])
"""Over 255 bytes: past what ustar's prefix field could carry."""


def many_sizes() -> dict[str, bytes]:
    """A gigabyte of members around every boundary."""
    assert len(LONG) > 100
    assert len(LONGER.encode()) > 255
    files = {
        "config.yaml": b"model:\n  kind: laguna\n",
        "generation_config.json": b"{}",
        "empty": b"",
        "tokenizer/empty.json": b"",
        "one-byte": b"1",
        "tokenizer/one-byte": b"2",
        "a name with spaces + % # é.txt": b"every character",
        LONG: b"long name" * 100,
        LONGER: b"longer name" * 1000,
    }
    seed = 0
    for chunks in (1, 2):
        for more in (-1, 0, 1):
            seed += 1
            files[f"shard-{chunks}-{more:+}.safetensors"] = weights(chunks * CHUNK + more, seed)
    for number in range(150):
        files[f"extra/{number:03d}.bin"] = weights(300 + number * 97, 1000 + number)
    rest = GIB - sum(map(len, files.values())) - 300 * MIB
    files["model-00001-of-00002.safetensors"] = weights(300 * MIB, 100)
    files["model-00002-of-00002.safetensors"] = weights(rest, 101)
    return files


def pack_command(dialect: Dialect, directory: Path, top: str) -> list[str] | None:
    """The command that packs with GNU tar to standard output, None when there is no GNU tar."""
    tar = shutil.which("tar")
    if tar is None:
        return None
    version = subprocess.run([tar, "--version"], capture_output=True, text=True, check=True)
    if "GNU tar" not in version.stdout:
        return None
    return [tar, f"--format={dialect}", "-c", "-C", str(directory), top]


def pack_into(dialect: Dialect, directory: Path, descriptor: int) -> None:
    """Pack a directory with the standard library, into a descriptor that is closed afterwards."""
    formats = {"gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
    with (
        os.fdopen(descriptor, "wb") as out,
        tarfile.open(fileobj=out, mode="w|", format=formats[dialect]) as archive,
    ):
        archive.add(directory, arcname=directory.name)


@contextmanager
def packed(dialect: Dialect, directory: Path, top: str) -> Iterator[IO[bytes]]:
    """The archive of a directory as it is being packed: a real pipe."""
    command = pack_command(dialect, directory, top)
    if command is None:
        reader, writer = os.pipe()
        with os.fdopen(reader, "rb") as stream:
            arguments = (dialect, directory / top, writer)
            thread = threading.Thread(target=pack_into, args=arguments, name="tar")
            thread.start()
            yield stream
        thread.join()
        return
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        yield process.stdout
        assert process.wait() == 0


def identity(outcome: str) -> str:
    """The id in what `staging upload` and `model-downloader` print."""
    _, _, found = outcome.strip().rpartition(" ")
    assert found.startswith("sha256:"), outcome
    return found


def assert_objects(bucket: Bucket, prefix: str, files: dict[str, bytes]) -> None:
    """The objects under a prefix are the files and the manifest, byte for byte."""
    expected = {prefix + name for name in files} | {f"{prefix}.checkpoint/manifest.json"}
    assert set(bucket.keys(prefix)) == expected
    for name, data in files.items():
        stored = bucket.object(prefix + name)
        assert stored.size == len(data), name
        position = 0
        for piece in stored.pieces:
            assert memoryview(data)[position : position + len(piece)] == piece, name
            position += len(piece)
    assert not bucket.uploads()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_gibibyte_of_many_sizes(tmp_path: Path, scripted_s3: ScriptedS3) -> None:
    files = many_sizes()
    assert sum(map(len, files.values())) == GIB
    write_tree(tmp_path / "laguna-xs", files)
    bucket = scripted_s3.bucket(BUCKET)
    programs = Programs(tmp_path, scripted_s3)

    archive = tmp_path / "gnu.tar"
    with packed("gnu", tmp_path, "laguna-xs") as stream, archive.open("wb") as out:
        shutil.copyfileobj(stream, out, MIB)
    from_file = programs.staging("upload", archive, f"s3://{BUCKET}/from-file/")
    archive.unlink()
    assert_objects(bucket, "from-file/", files)
    for key in bucket.keys("from-file/"):
        if ".checkpoint" not in key:
            bucket.remove(key)  # two gibibytes at once are more than a small machine has

    with packed("pax", tmp_path, "laguna-xs") as stream:
        from_pipe = programs.staging("upload", "-", f"s3://{BUCKET}/from-pipe/", stdin=stream)
    assert identity(from_pipe.stdout) == identity(from_file.stdout)
    assert_objects(bucket, "from-pipe/", files)

    fetched = programs.download(f"s3://{BUCKET}/from-pipe/", "node")
    assert identity(fetched.stdout) == identity(from_file.stdout)
    got = {
        path.relative_to(tmp_path / "node").as_posix()
        for path in (tmp_path / "node").rglob("*")
        if path.is_file() and ".checkpoint" not in path.parts
    }
    assert got == files.keys()
    for name, data in files.items():
        assert (tmp_path / "node" / name).read_bytes() == data, name

    for target in (f"s3://{BUCKET}/from-pipe/", "node"):
        proven = programs.staging("verify", target, "--level", "digest", "--json")
        assert proven.document["verify"]["passed"] is True
        assert proven.document["verify"]["read_bytes"] == GIB


@pytest.fixture(scope="module")
def medium() -> dict[str, bytes]:
    """A checkpoint with files of one, two and three chunks and around their boundaries."""
    return {
        **hugging_face(7, (2 * CHUNK + 5, CHUNK)),
        "empty": b"",
        "one-byte": b"1",
        "more.safetensors": weights(CHUNK + 1, 20),
    }


@pytest.mark.parametrize("kind", ["file", "pipe"])
def test_the_id_does_not_depend_on_tuning_order_or_kind(
    tmp_path: Path, scripted_s3: ScriptedS3, medium: dict[str, bytes], kind: str
) -> None:
    bucket = scripted_s3.bucket(BUCKET)
    programs = Programs(tmp_path, scripted_s3)
    forwards, backwards = tmp_path / "forwards.tar", tmp_path / "backwards.tar"
    forwards.write_bytes(tar_of(medium))
    backwards.write_bytes(tar_of(dict(reversed(medium.items())), top="other-name"))
    tunings: Sequence[tuple[Path, Sequence[str]]] = [
        (forwards, ["--part-size", "16MiB", "--concurrency", "1"]),
        (backwards, ["--part-size", "32MiB", "--concurrency", "3"]),
        (forwards, ["--part-size", "48MiB", "--concurrency", "2", "--memory", "256MiB"]),
    ]
    ids = set()
    for number, (archive, tuning) in enumerate(tunings):
        source = ("-", archive) if kind == "pipe" else (str(archive), None)
        uploaded = programs.staging(
            "upload", source[0], f"s3://{BUCKET}/{number}/", *tuning, stdin=source[1]
        )
        ids.add(identity(uploaded.stdout))
        assert_objects(bucket, f"{number}/", medium)
    assert len(ids) == 1
    assert scripted_s3.requests.count("UploadPart", key="0/more.safetensors") == 2
    assert scripted_s3.requests.count("UploadPart", key="1/more.safetensors") == 1


def test_file_and_pipe_have_one_id(tmp_path: Path, scripted_s3: ScriptedS3) -> None:
    scripted_s3.bucket(BUCKET)
    programs = Programs(tmp_path, scripted_s3)
    archive = tmp_path / "a.tar"
    archive.write_bytes(tar_of(vendor(1)))
    of_file = programs.staging("upload", archive, f"s3://{BUCKET}/file/")
    of_pipe = programs.staging("upload", "-", f"s3://{BUCKET}/pipe/", stdin=archive)
    assert identity(of_file.stdout) == identity(of_pipe.stdout)
    listed = programs.staging("ls", f"s3://{BUCKET}/", "--json").document["checkpoints"]
    assert [entry["uri"] for entry in listed] == [f"s3://{BUCKET}/file/", f"s3://{BUCKET}/pipe/"]
    assert {entry["id"] for entry in listed} == {identity(of_file.stdout)}


def test_sha256_is_another_id_of_the_same_files(tmp_path: Path, scripted_s3: ScriptedS3) -> None:
    scripted_s3.bucket(BUCKET)
    programs = Programs(tmp_path, scripted_s3)
    (tmp_path / "a.tar").write_bytes(tar_of(vendor(1)))
    blake3 = programs.staging("upload", "a.tar", f"s3://{BUCKET}/blake3/")
    sha256 = programs.staging("upload", "a.tar", f"s3://{BUCKET}/sha256/", "--hash", "sha256")
    assert identity(blake3.stdout) != identity(sha256.stdout)
    again = programs.staging("upload", "a.tar", f"s3://{BUCKET}/sha256/")  # as it is published
    assert identity(again.stdout) == identity(sha256.stdout)
    programs.download(f"s3://{BUCKET}/sha256/", "node")
    assert read_tree(tmp_path / "node") == vendor(1)
    programs.staging("verify", "node", "--level", "digest")


# What another tool does with a published prefix.


def aws_s3_sync(server: Server, prefix: str, directory: Path) -> None:
    """What `aws s3 sync s3://BUCKET/PREFIX DIRECTORY` does into an empty directory: every key a file."""
    with plain_client(server) as client:
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        for entry in (entry for page in pages for entry in page.get("Contents", [])):
            name = entry["Key"][len(prefix) :]
            if not name or name.endswith("/"):
                continue
            path = directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            client.download_file(BUCKET, entry["Key"], str(path))


def real_aws() -> list[str] | None:
    """The AWS command line, where there is one that starts."""
    aws = shutil.which("aws")
    if aws is None or subprocess.run([aws, "--version"], capture_output=True).returncode != 0:
        return None
    return [aws]


@pytest.mark.parametrize(
    ("make", "tool"), [(vendor, "emulated"), (hugging_face, "emulated"), (vendor, "aws")]
)
def test_a_plain_sync_of_a_published_prefix_serves(
    tmp_path: Path,
    scripted_s3: ScriptedS3,
    make: Callable[[int], dict[str, bytes]],
    tool: str,
) -> None:
    aws = real_aws()
    if tool == "aws" and aws is None:
        pytest.skip("there is no AWS command line on this machine; it is emulated above")
    files = make(3)
    bucket = scripted_s3.bucket(BUCKET)
    programs = Programs(tmp_path, scripted_s3)
    (tmp_path / "a.tar").write_bytes(tar_of(files))
    uploaded = programs.staging("upload", "a.tar", f"s3://{BUCKET}/laguna-xs/")
    bucket.put("laguna-xs-2/model.safetensors", b"a sibling's")
    node = tmp_path / "node"
    if tool == "emulated":
        aws_s3_sync(scripted_s3, "laguna-xs/", node)
    else:
        assert aws is not None
        environment = {**os.environ, **programs.environment, "HOME": os.environ.get("HOME", "/")}
        subprocess.run(
            [*aws, "s3", "sync", f"s3://{BUCKET}/laguna-xs", str(node), "--no-progress"],
            env=environment,
            check=True,
            capture_output=True,
        )
    # What a server sees: exactly the files, and no weights at the root but the checkpoint's.
    assert read_tree(node) == files
    assert sorted(path.name for path in node.glob("*.safetensors")) == sorted(
        name for name in files if "/" not in name and name.endswith(".safetensors")
    )
    assert [path.name for path in node.iterdir() if path.name.startswith(".")] == [".checkpoint"]
    assert not list((node / ".checkpoint").rglob("*.safetensors*"))
    programs.staging("verify", node)
    programs.staging("check", node)
    # Not ready for a pod yet, and adopted without fetching a byte of it.
    programs.download("verify", node, expect=11)
    scripted_s3.requests.clear()
    adopted = programs.download(f"s3://{BUCKET}/laguna-xs/", node, "--json")
    (result,) = adopted.document["checkpoints"]
    assert (result["id"], result["fetched_bytes"]) == (identity(uploaded.stdout), 0)
    # Besides the manifest nothing but headers and small documents was looked at.
    looked = list(scripted_s3.requests.of("GetObject"))
    assert {request.key for request in looked if "range" not in request.headers} == {
        "laguna-xs/.checkpoint/manifest.json"
    }
    assert {request.key for request in looked if "range" in request.headers} == {
        f"laguna-xs/{name}" for name in files if is_looked_into(name) and files[name]
    }
    programs.download("verify", node, "--level", "digest")
    assert read_tree(node) == files


# Other people's stores.


@pytest.mark.parametrize("name", ["moto", "rclone"])
@pytest.mark.parametrize("kind", ["file", "pipe"])
def test_the_whole_job_on_other_stores(
    tmp_path: Path, request: pytest.FixtureRequest, unique_bucket: str, name: str, kind: str
) -> None:
    server: Endpoint = request.getfixturevalue(f"{name}_server")
    with plain_client(server) as client:
        client.create_bucket(Bucket=unique_bucket)
    programs = Programs(tmp_path, server)
    uri = f"s3://{unique_bucket}/checkpoints/laguna-xs/"
    files = {**vendor(5, 2 * CHUNK + 1), "tokenizer/a b+c%20é.txt": b"odd characters"}
    archive = tmp_path / "laguna-xs.tar"
    archive.write_bytes(tar_of(files))
    source, stdin = ("-", archive) if kind == "pipe" else (archive, None)
    uploaded = programs.staging("upload", source, uri, stdin=stdin)
    warned = [line for line in uploaded.stderr.splitlines() if "not proven" in line]
    # Neither refuses a wrong checksum, and rclone would overwrite: people are told.
    expected = {"moto": ["checksums"], "rclone": ["exclusive", "checksums"]}[name]
    assert [line.split(":")[1].strip() for line in warned] == expected
    again = programs.staging("upload", source, uri, "--json", stdin=stdin).document["upload"]
    assert again["already_published"] is True
    assert again["id"] == identity(uploaded.stdout)
    # rclone keeps no checksum of what came in parts, moto none of a PutObject: never a pass.
    refused = programs.staging("verify", uri, "--level", "checksum", "--json", expect=11)
    assert refused.reference == "not-provable"
    findings = refused.document["verify"]["findings"]
    assert {finding["kind"] for finding in findings} == {"not-provable"}
    in_parts = {"model.safetensors"}
    expected_findings = files.keys() - in_parts if name == "moto" else in_parts
    assert {finding["path"] for finding in findings} == expected_findings
    programs.staging("verify", uri, "--level", "digest")
    if kind == "file":
        programs.staging("check", uri)
        assert identity(uploaded.stdout) in programs.staging("show", uri).stdout
        assert uri in programs.staging("ls", f"s3://{unique_bucket}/checkpoints/").stdout
    programs.download(uri, "node", MODEL_EXPECT_ID=identity(uploaded.stdout))
    assert read_tree(tmp_path / "node") == files
    programs.staging("verify", "node")


@pytest.mark.parametrize(
    ("quirk", "unproven"),
    [
        (Quirk.IGNORES_CHECKSUMS, ["checksums"]),
        (Quirk.ECHOES_CHECKSUMS, ["checksums"]),
        (Quirk.IGNORES_CONDITIONS, ["exclusive"]),
        (None, []),
    ],
)
def test_what_a_store_does_not_enforce_is_said(
    tmp_path: Path, quirk: Quirk | None, unproven: list[str]
) -> None:
    with ScriptedS3(buckets=[BUCKET], quirks=[quirk] if quirk else []) as server:
        programs = Programs(tmp_path, server)
        (tmp_path / "a.tar").write_bytes(tar_of(vendor(6)))
        uploaded = programs.staging("upload", "a.tar", f"s3://{BUCKET}/m/", "--json")
        assert uploaded.document["upload"]["not_proven"] == unproven
        assert uploaded.stderr.count("not proven") == len(unproven)
        if quirk is Quirk.IGNORES_CHECKSUMS:
            refused = programs.staging("verify", f"s3://{BUCKET}/m/", expect=11)
            assert refused.reference == "not-provable"
        programs.staging("verify", f"s3://{BUCKET}/m/", "--level", "digest")
        assert_objects(server.bucket(BUCKET), "m/", vendor(6))
