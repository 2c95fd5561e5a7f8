"""What a command's SOURCE may be: every kind gives the same files, and nothing shows a URL's query (I13)."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import io
import os
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import click
import pytest
import zstandard
from click.testing import CliRunner

from staging.cli import source as sources
from staging.cli.options import Common
from staging.cli.source import (
    SourceOptions,
    names_archive,
    open_source,
    remarks,
    source_options,
)
from staging.source.source import Source
from staging.vocabulary.errors import (
    IntegrityError,
    MalformedInput,
    NotFound,
    StagingError,
    UsageError,
)
from tests.support.checkpoints import tar_of, vendor, write_tree
from tests.support.s3server import ScriptedS3
from tests.support.stores import credentials
from tests.support.web import WebServer, chain

FILES = vendor(1)
TAR = tar_of(FILES)
SECRET = "c4na4ry"
QUERY = f"X-Amz-Signature={SECRET}"
BUCKET = "vendor-drop"

PACKED = {
    "laguna.tar": TAR,
    "laguna.tar.gz": gzip.compress(TAR),
    "laguna.tar.zst": zstandard.ZstdCompressor().compress(TAR),
    "named-as-if-plain.tar": gzip.compress(TAR),  # the bytes tell, not the name
}


@pytest.fixture(scope="module")
def web() -> Iterator[WebServer]:
    with WebServer({f"/{name}": data for name, data in PACKED.items()}) as server:
        yield server


@pytest.fixture(scope="module")
def s3() -> Iterator[ScriptedS3]:
    with ScriptedS3(buckets=[BUCKET]) as server:
        for name, data in PACKED.items():
            server.bucket(BUCKET).put(f"drop/{name}", data)
        yield server


def common(**changes: Any) -> Common:
    fields: dict[str, Any] = dict.fromkeys(Common.__dataclass_fields__)
    return Common(**{**fields, "engine": "auto", "sign_payload": False, **changes})


def opened(text: str, endpoint_url: str | None = None, **options: Any) -> Source:
    given = {"allow_http": True, "allow_private_address": True, **options}
    return open_source(
        text, common=common(endpoint_url=endpoint_url), options=SourceOptions(**given)
    )


def contents(source: Source) -> dict[str, bytes]:
    found = {}
    with closing(source):
        for file in source.files():
            buffer = bytearray(file.size)
            source.read_into(file, 0, memoryview(buffer))
            found[str(file.path)] = bytes(buffer)
        source.finish()
    return found


@pytest.fixture
def place(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    web: WebServer,
    s3: ScriptedS3,
) -> Callable[..., Source]:
    """Opens an archive of a name where the test's parameter says it lies."""

    def open_at(name: str, where: str, **options: Any) -> Source:
        if where == "url":
            return opened(web.url(f"/{name}", QUERY), **options)
        if where == "s3":
            for variable, value in credentials(s3).items():
                monkeypatch.setenv(variable, value)
            return opened(f"s3://{BUCKET}/drop/{name}", s3.endpoint_url, **options)
        if where == "pipe":
            stream = io.BytesIO(PACKED[name])
            monkeypatch.setattr(sources, "standard_input", lambda: stream)
            return opened("-", **options)
        path = tmp_path / name
        path.write_bytes(PACKED[name])
        return opened(str(path), **options)

    return open_at


WHERE = ["file", "pipe", "url", "s3"]


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("name", PACKED)
def test_the_same_files_from_everywhere(
    place: Callable[..., Source], name: str, where: str
) -> None:
    source = place(name, where)
    plain = PACKED[name] is TAR
    assert source.sequential is (where == "pipe" or not plain)
    kind = {"file": "tar"}.get(where, where)
    assert source.kind == kind
    assert source.name == ("standard input" if where == "pipe" else name)
    assert source.size == (None if where == "pipe" else len(PACKED[name]))
    assert (source.identity is None) is (where in ("file", "pipe"))
    stamps = []
    with closing(source):
        found = {}
        for file in source.files():
            stamps.append(file.stamp)
            buffer = bytearray(file.size)
            source.read_into(file, 0, memoryview(buffer))
            found[str(file.path)] = bytes(buffer)
        source.finish()
    assert found == FILES
    assert stamps == [file.stamp for file in place("laguna.tar", "file").files()]


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("name", PACKED)
def test_the_digest_of_an_archive(place: Callable[..., Source], name: str, where: str) -> None:
    digest = hashlib.sha256(PACKED[name]).hexdigest()
    source = place(name, where, expect_sha256=digest)
    assert source.sequential
    assert contents(source) == FILES
    with pytest.raises(IntegrityError) as caught:
        contents(place(name, where, expect_sha256="0" * 64))
    assert caught.value.reference == "archive-digest"


@pytest.mark.parametrize("where", WHERE)
def test_a_selection(place: Callable[..., Source], where: str) -> None:
    include, exclude = ("tokenizer/", "*.yaml", "nothing"), ("**/*.txt",)
    source = place("laguna.tar", where, include=include, exclude=exclude)
    found = contents(source)
    assert remarks(source) == ["the pattern 'nothing' met no file"]
    assert set(found) == {
        "config.yaml",
        "tokenizer/tokenizer.json",
        "tokenizer/tokenizer_config.json",
    }


@pytest.mark.parametrize("where", WHERE)
def test_components_to_strip(place: Callable[..., Source], where: str) -> None:
    found = contents(place("laguna.tar", where, strip_components=0))
    assert found == {f"laguna-xs/{name}": data for name, data in FILES.items()}


def test_a_directory(tmp_path: Path) -> None:
    write_tree(tmp_path / "laguna", FILES)
    source = opened(str(tmp_path / "laguna"))
    assert source.kind == "directory"
    assert contents(source) == FILES
    assert remarks(source) == []


# --- where a URL may come from ---


def test_a_url_from_the_environment(web: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAGING_SOURCE_URL", web.url("/laguna.tar", QUERY) + "\n")
    assert contents(opened("https://")) == FILES


def test_a_url_from_a_file(web: WebServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAGING_SOURCE_URL", "https://another.test/x.tar")
    file = tmp_path / "url"
    file.write_text(web.url("/laguna.tar.gz", QUERY) + "\r\n")
    assert contents(opened("https://", source_url_file=str(file))) == FILES


def test_a_url_from_standard_input(web: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    with open(writer, "wb") as stream:
        stream.write(web.url("/laguna.tar", QUERY).encode())
    with open(reader, "rb", buffering=0) as stdin:
        monkeypatch.setattr(sources, "standard_input", lambda: stdin)
        assert contents(opened("https://", source_url_file="-")) == FILES


def test_a_url_that_is_given_nowhere() -> None:
    with pytest.raises(UsageError) as caught:
        opened("https://")
    assert caught.value.reference == "source-options"
    assert "STAGING_SOURCE_URL" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("", "url"),
        (f"https://vendor.test/?{SECRET}\nhttps://vendor.test/?{SECRET}", "url"),
        (f"https://vendor.test/?{SECRET}{'x' * 40_000}", "url"),
        (f"/no/url?{SECRET}", "url"),
    ],
)
def test_a_file_without_a_url(tmp_path: Path, text: str, reference: str) -> None:
    file = tmp_path / "url"
    file.write_text(text)
    with pytest.raises(UsageError) as caught:
        opened("https://", source_url_file=str(file))
    assert caught.value.reference == reference
    assert SECRET not in str(caught.value)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(StagingError) as caught:
        opened("https://", source_url_file=str(tmp_path / "none"))
    assert caught.value.reference == "source-io"


def test_a_proxy_of_the_environment(web: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert contents(opened(web.url("/laguna.tar", QUERY))) == FILES
    # The name is nobody's: only the proxy can know it.
    monkeypatch.setenv("http_proxy", web.url("", ""))
    web.files["http://vendor.test/laguna.tar"] = TAR
    assert contents(opened(f"http://vendor.test/laguna.tar?{QUERY}")) == FILES


# --- what is refused ---


@pytest.mark.parametrize(
    ("text", "options", "kind", "reference"),
    [
        (f"ftp://vendor.test/x.tar?{SECRET}", {}, UsageError, "uri"),
        (f"https://u:{SECRET}@vendor.test/x.tar", {}, UsageError, "url"),
        (f"http://127.0.0.1:9/?{SECRET}", {"allow_http": False}, UsageError, "url-scheme"),
        (
            f"https://127.0.0.1:9/?{SECRET}",
            {"allow_private_address": False},
            UsageError,
            "url-address",
        ),
        ("s3://bucket", {}, UsageError, "uri"),
        ("s3://bucket/prefix/", {}, UsageError, "uri"),
        (f"s3://bucket/x.tar?{SECRET}", {}, UsageError, "uri"),
        ("hf://org", {}, UsageError, "uri"),
        ("hf://org/name", {"strip_components": 1}, UsageError, "source-options"),
        ("hf://org/name", {"expect_sha256": "0" * 64}, UsageError, "source-options"),
        (".", {"strip_components": 1}, UsageError, "source-options"),
        (".", {"expect_sha256": "0" * 64}, UsageError, "source-options"),
        ("x.tar", {"source_url_file": "file"}, UsageError, "source-options"),
        ("x.tar", {"expect_sha256": "123"}, UsageError, "digest"),
        ("x.tar", {"include": ("a//b",)}, UsageError, "pattern"),
        ("x.tar", {"exclude": ("/a",)}, UsageError, "pattern"),
        ("no-such-file.tar", {}, NotFound, "source"),
        ("/dev/null", {}, MalformedInput, "source"),
    ],
)
def test_refusals(
    text: str, options: dict[str, Any], kind: type[StagingError], reference: str
) -> None:
    with pytest.raises(kind) as caught:
        opened(text, **options)
    assert caught.value.reference == reference
    for error in chain(caught.value):
        assert SECRET not in f"{error} {error!r} {vars(error)}"


@pytest.mark.parametrize("where", ["file", "url", "s3"])
def test_what_is_no_archive_is_refused_and_closed(
    place: Callable[..., Source], web: WebServer, s3: ScriptedS3, where: str
) -> None:
    """A socket that is left open fails the test by its warning, a descriptor by their count."""
    before = len(os.listdir("/proc/self/fd"))
    for data in (b"<html>" * 200, b"\xfd7zXZ\0" + bytes(600), b"", b"x"):
        PACKED["page.tar"] = web.files["/page.tar"] = data
        s3.bucket(BUCKET).put("drop/page.tar", data)
        try:
            with pytest.raises(MalformedInput):
                place("page.tar", where)
        finally:
            del PACKED["page.tar"]
    if where == "file":
        assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("s3://b/x.tar", True),
        ("s3://b/p/x.TAR.GZ", True),
        ("s3://b/x.tgz", True),
        ("s3://b/x.tar.zst", True),
        ("s3://b/x.tar/", False),
        ("s3://b/laguna-xs", False),
        ("x.tar", False),
        ("https://h/x.tar", False),
    ],
)
def test_archives_by_name(uri: str, expected: bool) -> None:
    assert names_archive(uri) is expected


def test_the_options_of_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[SourceOptions] = []

    @click.command()
    @click.argument("source")
    @source_options
    def command(source: str, *, source_options: SourceOptions) -> None:
        seen.append(source_options)

    run = CliRunner()
    assert run.invoke(command, ["x"], catch_exceptions=False).exit_code == 0
    assert seen.pop() == SourceOptions()
    arguments = [
        *("--strip-components", "2", "--include", "a", "--include", "b", "--exclude", "c"),
        *("--expect-sha256", "0" * 64, "--source-url-file", "-", "--allow-http"),
        *("--allow-private-address", "--source-region", "r", "--source-profile", "p"),
        *("--source-endpoint-url", "https://e", "x"),
    ]
    assert run.invoke(command, arguments, catch_exceptions=False).exit_code == 0
    assert dataclasses.asdict(seen.pop()) == {
        "strip_components": 2,
        "include": ("a", "b"),
        "exclude": ("c",),
        "expect_sha256": "0" * 64,
        "source_url_file": "-",
        "allow_private_address": True,
        "allow_http": True,
        "source_region": "r",
        "source_profile": "p",
        "source_endpoint_url": "https://e",
    }
    monkeypatch.setenv("STAGING_SOURCE_REGION", "eu-west-1")
    assert run.invoke(command, ["x"], catch_exceptions=False).exit_code == 0
    assert seen.pop().source_region == "eu-west-1"
