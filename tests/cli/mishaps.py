"""What can go wrong, as a table: each case of `CASES` arranges a mishap and returns the command to run.

Interruptions are in test_signals.py.
"""

from __future__ import annotations

import fcntl
import gzip
import lzma
import os
import shutil
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from staging.vocabulary.digest import HashFamily, chunk_count
from staging.vocabulary.manifest import Manifest, ManifestFile
from staging.vocabulary.paths import SafePath
from tests.cli.programs import DOWNLOADER, INSTALLED_DOWNLOADER, STAGING, Programs
from tests.support import tars
from tests.support.checkpoints import manifest_of, tar_of, vendor, write_tree
from tests.support.s3server import Bucket, Fault, ReplaceBody, ScriptedS3, Status

BUCKET = "models"
URI = f"s3://{BUCKET}/checkpoints/laguna-xs/"
PREFIX = "checkpoints/laguna-xs/"
MULTIPART = 6 * 1024 * 1024
"""Bytes of a file that is sent as a multipart upload."""


class Scene:
    """A store, a directory and what a command is to meet there."""

    def __init__(self, directory: Path, server: ScriptedS3) -> None:
        self.directory = directory
        self.server = server
        self.bucket: Bucket = server.bucket(BUCKET)
        self.programs = Programs(directory, server)
        self.stdin: bytes | None = None
        self.pass_fds: list[int] = []

    @property
    def environment(self) -> dict[str, str]:
        return self.programs.environment

    def tar(self, files: dict[str, bytes] | None = None, *, top: str = "laguna-xs") -> Path:
        return self.file(tar_of(vendor(1) if files is None else files, top))

    def file(self, data: bytes, name: str = "laguna-xs.tar") -> Path:
        path = self.directory / name
        path.write_bytes(data)
        return path

    def publish(self, files: dict[str, bytes] | None = None) -> Manifest:
        files = vendor(1) if files is None else files
        manifest = manifest_of(files)
        for name, data in files.items():
            self.bucket.put(PREFIX + name, data)
        self.bucket.put(f"{PREFIX}.checkpoint/manifest.json", manifest.encode())
        return manifest

    def node(self, files: dict[str, bytes]) -> Path:
        return write_tree(self.directory / "node", files)


Command = list[str | Path]
Arrange = Callable[[Scene], Command]


@dataclass(frozen=True)
class Case:
    code: int
    reference: str
    arrange: Arrange
    hint: str


CASES: dict[str, Case] = {}


def case(code: int, reference: str, hint: str = "") -> Callable[[Arrange], Arrange]:
    """The case: what the decorated function arranges ends like this, with `hint` in the hint."""

    def register(arrange: Arrange) -> Arrange:
        CASES[f"{code}-{arrange.__name__.replace('_', '-')}"] = Case(code, reference, arrange, hint)
        return arrange

    return register


def staging(*arguments: str | Path) -> Command:
    return [*STAGING, *arguments]


def download(*arguments: str | Path) -> Command:
    return [*DOWNLOADER, *(arguments or (URI, "node"))]


# 1: unclassified


@case(1, "request")
def store_that_lacks_an_operation(scene: Scene) -> Command:
    scene.server.script(Fault("CreateMultipartUpload", Status(501), occurrence=None))
    return staging("upload", scene.tar(vendor(1, MULTIPART)), URI)


@case(1, "source-io")
def unreadable_pipe(scene: Scene) -> Command:
    # The program's standard input is a descriptor that is only open for writing.
    return ["sh", "-c", 'exec "$@" 0>written', "sh", *staging("upload", "-", URI)]


# 2: usage


@case(2, "url-scheme", hint="--allow-http")
def url_without_encryption(scene: Scene) -> Command:
    return staging("upload", "http://127.0.0.1:9/laguna-xs.tar?X-Amz-Signature=x", URI)


@case(2, "url-address", hint="--allow-private-address")
def url_into_a_private_network(scene: Scene) -> Command:
    return staging("check", "https://169.254.169.254/latest/laguna-xs.tar")


@case(2, "source-options")
def url_that_is_given_nowhere(scene: Scene) -> Command:
    return staging("upload", "https://", URI)


@case(2, "storage-class")
def another_kind_of_setting(scene: Scene) -> Command:
    return staging("upload", scene.tar(), URI, "--storage-class", "EXPRESS_ONEZONE")


@case(2, "arguments", hint="--uploads")
def nothing_to_collect(scene: Scene) -> Command:
    return staging("gc", URI)


@case(2, "usage", hint="--help")
def unknown_option(scene: Scene) -> Command:
    return staging("upload", "--partsize", "64MiB", "x.tar", URI)


@case(2, "usage", hint="--help")
def unknown_command(scene: Scene) -> Command:
    return staging("uplaod", "x.tar", URI)


@case(2, "usage", hint="--help")
def missing_argument(scene: Scene) -> Command:
    return staging("upload", "x.tar")


@case(2, "usage", hint="--help")
def size_without_a_unit(scene: Scene) -> Command:
    return download(URI, "node", "--memory", "512")


@case(2, "uri", hint="s3://BUCKET/PREFIX/")
def url_of_a_store(scene: Scene) -> Command:
    return download("https://models.s3.amazonaws.com/laguna-xs/", "node")


@case(2, "uri")
def root_of_the_bucket(scene: Scene) -> Command:
    return staging("upload", scene.tar(), f"s3://{BUCKET}/")


@case(2, "uri", hint="path")
def url_as_the_destination(scene: Scene) -> Command:
    return download(URI, f"s3://{BUCKET}/node/")


@case(2, "directory-bucket")
def directory_bucket(scene: Scene) -> Command:
    return download("s3://models--use1-az4--x-s3/laguna-xs/", "node")


@case(2, "arguments", hint="MODEL_URI")
def nothing_to_download(scene: Scene) -> Command:
    return [*INSTALLED_DOWNLOADER]


@case(2, "arguments")
def half_a_pair(scene: Scene) -> Command:
    return download(URI, "node", URI)


@case(2, "arguments")
def more_ids_than_pairs(scene: Scene) -> Command:
    return download(URI, "node", "--expect-id", "sha256:1", "--expect-id", "sha256:2")


@case(2, "id", hint="staging show")
def not_an_id(scene: Scene) -> Command:
    scene.publish()
    return download(URI, "node", "--expect-id", "v1.2")


@case(2, "level")
def checksums_of_a_directory(scene: Scene) -> Command:
    node = scene.node(vendor(1))
    scene.file(manifest_of(vendor(1)).encode(), "m.json")
    (node / ".checkpoint").mkdir()
    (scene.directory / "m.json").rename(node / ".checkpoint/manifest.json")
    return staging("verify", node, "--level", "checksum")


@case(2, "memory", hint="at least")
def too_little_memory(scene: Scene) -> Command:
    return staging("upload", scene.tar(), URI, "--memory", "64MiB")


@case(2, "part-size", hint="16MiB")
def part_that_is_no_multiple_of_a_chunk(scene: Scene) -> Command:
    return staging("upload", scene.tar(), URI, "--part-size", "10MiB")


@case(2, "connection-settings", hint="--profile")
def unknown_profile(scene: Scene) -> Command:
    return download(URI, "node", "--profile", "nobody")


@case(2, "connection-settings", hint="http://HOST:PORT")
def endpoint_that_is_no_url(scene: Scene) -> Command:
    return download(URI, "node", "--endpoint-url", "http://[::1")


# 10: not found


@case(10, "bucket", hint="spelling")
def misspelled_bucket(scene: Scene) -> Command:
    return download(f"s3://{BUCKET}s/checkpoints/laguna-xs/", "node")


@case(10, "bucket", hint="--endpoint-url")
def address_of_something_else(scene: Scene) -> Command:
    scene.server.script(Fault(None, Status(404, "NotFound"), occurrence=None))
    return staging("ls", f"s3://{BUCKET}/")


@case(10, "prefix-empty", hint=f"did you mean {URI}?")
def misspelled_prefix(scene: Scene) -> Command:
    scene.publish()
    return download(f"s3://{BUCKET}/checkpoints/laguna-sx/", "node")


@case(10, "prefix-empty", hint=f"did you mean {URI}?")
def misspelled_parent(scene: Scene) -> Command:
    scene.publish()
    return staging("verify", f"s3://{BUCKET}/checkpoint/laguna-xs/")


@case(10, "prefix-holds-tar", hint="laguna-xs/laguna-xs.tar s3://models/NEW-PREFIX/")
def prefix_that_holds_the_tar(scene: Scene) -> Command:
    scene.bucket.put(PREFIX + "laguna-xs.tar", tar_of(vendor(1)))
    return download()


@case(10, "prefix-nested", hint=f"{URI}laguna-xs/")
def nested_prefix(scene: Scene) -> Command:
    for name, data in vendor(1).items():
        scene.bucket.put(f"{PREFIX}laguna-xs/{name}", data)
    return download()


@case(10, "not-published", hint="staging upload")
def files_without_a_manifest(scene: Scene) -> Command:
    for name, data in vendor(1).items():
        scene.bucket.put(PREFIX + name, data)
    return download()


@case(10, "upload-unfinished", hint="staging upload")
def unfinished_upload(scene: Scene) -> Command:
    scene.bucket.put(PREFIX + "config.yaml", vendor(1)["config.yaml"])
    claim = b'{"schema": "checkpoint-claim/1", "id": "sha256:' + b"0" * 64 + b'"}'
    scene.bucket.put(f"{PREFIX}.checkpoint/claim.json", claim)
    return download()


@case(10, "nothing-published")
def nothing_to_list(scene: Scene) -> Command:
    return staging("ls", f"s3://{BUCKET}/")


@case(10, "source")
def missing_tar(scene: Scene) -> Command:
    return staging("upload", "none.tar", URI)


@case(10, "destination")
def missing_parent_of_the_destination(scene: Scene) -> Command:
    scene.publish()
    return download(URI, "not/mounted/node")


@case(10, "not-published", hint="model-downloader")
def directory_without_a_manifest(scene: Scene) -> Command:
    return staging("verify", scene.node(vendor(1)))


# 11: integrity


@case(11, "id-mismatch", hint="staging show")
def another_id(scene: Scene) -> Command:
    scene.publish()
    return download(URI, "node", "--expect-id", "sha256:" + "0" * 64)


@case(11, "chunk-digest", hint="staging verify")
def damaged_object(scene: Scene) -> Command:
    scene.publish()
    scene.bucket.flip_bit(PREFIX + "model.safetensors", 5000)
    return download()


@case(11, "object-missing")
def missing_object(scene: Scene) -> Command:
    scene.publish()
    scene.bucket.remove(PREFIX + "model.safetensors")
    return download()


@case(11, "object-size")
def cut_object(scene: Scene) -> Command:
    scene.publish()
    scene.bucket.put(PREFIX + "model.safetensors", vendor(1)["model.safetensors"][:-1])
    return download()


@case(11, "verify-differs")
def damaged_directory(scene: Scene) -> Command:
    node = scene.node(vendor(1) | {"config.yaml": b"other: yes"})
    (node / ".checkpoint").mkdir()
    (node / ".checkpoint/manifest.json").write_bytes(manifest_of(vendor(1)).encode())
    return staging("verify", node)


@case(11, "not-ready", hint="model-downloader")
def directory_without_a_marker(scene: Scene) -> Command:
    node = scene.node(vendor(1))
    (node / ".checkpoint").mkdir()
    (node / ".checkpoint/manifest.json").write_bytes(manifest_of(vendor(1)).encode())
    return download("verify", node)


@case(11, "not-provable", hint="--level digest")
def store_without_checksums(scene: Scene) -> Command:
    scene.publish()
    return staging("verify", URI)  # the manifest has none to compare with


@case(11, "checksum-refused")
def bytes_that_never_arrive_whole(scene: Scene) -> Command:
    scene.server.script(Fault("UploadPart", Status(400, "BadDigest"), occurrence=None))
    return staging("upload", scene.tar(vendor(1, MULTIPART)), URI)


@case(11, "archive-digest", hint="download")
def another_archive_than_the_vendor_states(scene: Scene) -> Command:
    return staging("upload", scene.tar(), URI, "--expect-sha256", "0" * 64)


# 12: access


@case(12, "credentials", hint="AWS_PROFILE")
def no_credentials(scene: Scene) -> Command:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        del scene.environment[name]
    return download()


@case(12, "credentials", hint="does not exist")
def unknown_access_key(scene: Scene) -> Command:
    scene.environment["AWS_ACCESS_KEY_ID"] = "AKIAUNKNOWN"
    return download()


@case(12, "credentials", hint="secret key")
def wrong_secret(scene: Scene) -> Command:
    scene.environment["AWS_SECRET_ACCESS_KEY"] = "another"
    return staging("upload", scene.tar(), URI)


@case(12, "credentials", hint="expired")
def expired_token(scene: Scene) -> Command:
    scene.server.script(Fault(None, Status(400, "ExpiredToken"), occurrence=None))
    return download()


@case(12, "denied", hint="s3:GetObject")
def no_permission_to_read(scene: Scene) -> Command:
    scene.publish()
    scene.server.deny("GetObject")
    return download()


@case(12, "denied", hint="check the spelling of the prefix")
def no_permission_to_list(scene: Scene) -> Command:
    scene.server.deny("ListBucket")  # a missing key is 403 then
    return download()


@case(12, "identity-fallback", hint="AWS_*")
def keys_beside_a_role(scene: Scene) -> Command:
    scene.publish()
    scene.environment["AWS_ROLE_ARN"] = "arn:aws:iam::111122223333:role/inference-pod-role"
    scene.environment["AWS_WEB_IDENTITY_TOKEN_FILE"] = str(scene.file(b"x.y.z", "token"))
    return download()


@case(12, "web-identity-token")
def token_without_a_role(scene: Scene) -> Command:
    scene.publish()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        scene.environment.pop(name, None)
    scene.environment["AWS_WEB_IDENTITY_TOKEN_FILE"] = str(scene.file(b"x.y.z", "token"))
    return download()


@case(12, "credentials")
def key_without_its_secret(scene: Scene) -> Command:
    scene.publish()
    del scene.environment["AWS_SECRET_ACCESS_KEY"]
    return download()


@case(12, "web-identity-token")
def role_whose_token_is_not_there(scene: Scene) -> Command:
    scene.publish()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        scene.environment.pop(name, None)
    scene.environment["AWS_ROLE_ARN"] = "arn:aws:iam::111122223333:role/inference-pod-role"
    scene.environment["AWS_WEB_IDENTITY_TOKEN_FILE"] = str(scene.directory / "no-token")
    return download()


@case(12, "denied", hint="s3:PutObject")
def no_permission_to_write(scene: Scene) -> Command:
    scene.server.deny("PutObject")
    return staging("upload", scene.tar(), URI)


@case(12, "region", hint="--region")
def another_region(scene: Scene) -> Command:
    refusal = Status(400, "AuthorizationHeaderMalformed")
    scene.server.script(Fault(None, refusal, occurrence=None))
    return download()


# 13: the store is not available


@case(13, "connection", hint="--endpoint-url")
def nobody_listens(scene: Scene) -> Command:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    scene.environment["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{port}"
    return download()


@case(13, "store-busy", hint="run again")
def busy_for_ever(scene: Scene) -> Command:
    scene.publish()
    scene.server.script(Fault("GetObject", Status(503), occurrence=None))
    return download()


# 14: no space


@case(14, "no-space", hint="larger volume")
def more_than_the_disk_has(scene: Scene) -> Command:
    size = shutil.disk_usage(scene.directory).free + 2**30
    digests = [bytes(32)] * chunk_count(size)
    entry = ManifestFile.of(SafePath("model.safetensors"), size, HashFamily.BLAKE3, digests)
    manifest = Manifest.of(HashFamily.BLAKE3, [entry])
    scene.bucket.put(f"{PREFIX}.checkpoint/manifest.json", manifest.encode())
    # An object as large as that, as far as its listing tells.
    scene.bucket.put(f"{PREFIX}model.safetensors", bytes(777))
    listed = ReplaceBody(lambda body: body.replace(b"<Size>777</Size>", b"<Size>%d</Size>" % size))
    scene.server.script(Fault("ListObjectsV2", listed, occurrence=range(1, 99)))
    return download(URI, "node", "--layout-check", "off")


# 15: conflict


@case(15, "published-differs", hint="new prefix")
def another_version_is_published(scene: Scene) -> Command:
    scene.publish(vendor(2))
    return staging("upload", scene.tar(), URI)


@case(15, "foreign-objects", hint="--allow-existing")
def objects_of_somebody_else(scene: Scene) -> Command:
    scene.bucket.put(PREFIX + "notes.txt", b"somebody's")
    return staging("upload", scene.tar(), URI)


@case(15, "claimed", hint="another prefix")
def claimed_by_another_upload(scene: Scene) -> Command:
    claim = b'{"schema": "checkpoint-claim/1", "id": "sha256:' + b"0" * 64 + b'"}'
    scene.bucket.put(f"{PREFIX}.checkpoint/claim.json", claim)
    return staging("upload", scene.tar(), URI)


@case(15, "foreign-weights", hint="every weight file")
def weights_of_somebody_else(scene: Scene) -> Command:
    scene.publish()
    scene.node({"finetuned.safetensors": b"somebody's"})
    return download()


@case(15, "foreign-file", hint="directory of its own")
def file_in_the_way(scene: Scene) -> Command:
    scene.publish()
    scene.node({"config.yaml": b"somebody's"})
    return download()


@case(15, "symlink", hint="link")
def link_in_the_way(scene: Scene) -> Command:
    scene.publish()
    (scene.directory / "elsewhere").mkdir()
    (scene.directory / "node").mkdir()
    (scene.directory / "node/tokenizer").symlink_to("../elsewhere")
    return download()


@case(15, "locked")
def directory_in_use(scene: Scene) -> Command:
    scene.publish()
    node = scene.node({".checkpoint/lock": b""})
    fd = os.open(node / ".checkpoint/lock", os.O_RDWR)
    scene.pass_fds.append(fd)
    fcntl.flock(fd, fcntl.LOCK_EX)
    return download(URI, "node", "--no-wait")


@case(15, "not-a-version-link", hint="mount point")
def directory_where_a_link_belongs(scene: Scene) -> Command:
    scene.publish()
    scene.node({"config.json": b'{"model_type": "tiny"}'})
    return download(URI, "node", "--cache", "cache")


@case(15, "destination")
def destination_is_a_file(scene: Scene) -> Command:
    scene.publish()
    scene.file(b"", "node")
    return download()


# 16: refused input


@case(16, "compression-unsupported", hint="xz -dc")
def tar_compressed_by_what_nobody_reads(scene: Scene) -> Command:
    return staging("upload", scene.file(lzma.compress(tar_of(vendor(1)))), URI)


@case(16, "compressed-truncated")
def compressed_tar_that_was_cut(scene: Scene) -> Command:
    return staging("upload", scene.file(gzip.compress(tar_of(vendor(1)))[:-100]), URI)


@case(16, "nothing-selected", hint="**/")
def patterns_that_leave_nothing(scene: Scene) -> Command:
    return staging("upload", scene.tar(), URI, "--include", "*.bin")


@case(16, "symlink-outside")
def link_out_of_a_directory(scene: Scene) -> Command:
    node = scene.node(vendor(1))
    (node / "passwd").symlink_to("/etc/passwd")
    return staging("upload", node, URI)


@case(16, "tar-truncated", hint="again")
def truncated_tar(scene: Scene) -> Command:
    return staging("upload", scene.file(tar_of(vendor(1))[:50_000]), URI)


@case(16, "tar-no-end")
def tar_without_an_end(scene: Scene) -> Command:
    return staging("check", scene.file(tar_of(vendor(1))[:-1024]))


@case(16, "tar-link", hint="")
def link_in_a_tar(scene: Scene) -> Command:
    link = tars.header(b"laguna-xs/model.safetensors", kind=b"2", linkname=b"../blobs/0123")
    return staging("upload", scene.file(link + tar_of(vendor(1))), URI)


@case(16, "tar-name")
def hostile_name(scene: Scene) -> Command:
    scene.stdin = tars.member(b"laguna-xs/../../etc/passwd") + tar_of(vendor(1))
    return staging("upload", "-", URI)


@case(16, "tar-duplicate")
def two_members_of_one_name(scene: Scene) -> Command:
    twice = tars.member(b"laguna-xs/CONFIG.yaml", b"x") + tar_of(vendor(1))
    return staging("check", scene.file(twice))


@case(16, "no-files")
def empty_directory_as_the_source(scene: Scene) -> Command:
    (scene.directory / "node").mkdir()
    return staging("upload", "node", URI)


@case(16, "source", hint="pipe")
def named_pipe_as_the_source(scene: Scene) -> Command:
    os.mkfifo(scene.directory / "laguna-xs.tar")
    return staging("upload", "laguna-xs.tar", URI)


@case(16, "manifest-malformed")
def manifest_that_is_none(scene: Scene) -> Command:
    scene.bucket.put(f"{PREFIX}.checkpoint/manifest.json", b'{"files": []}')
    return download()


# 17: layout


@case(17, "weights-missing")
def no_weights(scene: Scene) -> Command:
    return staging("upload", scene.tar({"config.json": b'{"model_type": "tiny"}'}), URI)


@case(17, "safetensors-broken", hint="get this file again")
def cut_weights(scene: Scene) -> Command:
    files = vendor(1)
    files["model.safetensors"] = files["model.safetensors"][:-1]
    return staging("check", scene.tar(files))


@case(17, "safetensors-broken", hint="publish")
def published_weights_that_are_none(scene: Scene) -> Command:
    scene.publish({**vendor(1), "model.safetensors": b"<html>404</html>" * 99})
    return download()


@case(17, "layout-nested", hint="--strip-components 2")
def folder_in_a_folder(scene: Scene) -> Command:
    return staging("upload", scene.tar(top="export/laguna-xs"), URI)


@case(17, "layout-top-files", hint="--strip-components 0")
def files_at_the_top(scene: Scene) -> Command:
    return staging("upload", scene.tar(top=""), URI)


@case(17, "layout-several")
def several_checkpoints(scene: Scene) -> Command:
    both = tar_of(vendor(1), "one")[:-1024] + tar_of(vendor(2), "two")
    return staging("upload", scene.file(both), URI)


@case(17, "deployment-bundle", hint="checkpoint's own")
def deployment_bundle(scene: Scene) -> Command:
    names = ("charts/vllm/Chart.yaml", "containers/vllm.tar", "scripts/install.sh")
    return staging("upload", scene.tar(dict.fromkeys(names, b"x"), top="bundle"), URI)
