"""`staging show --kubernetes`: text and JSON say the same, as docs/kubernetes.md shows it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from staging.vocabulary.digest import HashFamily, chunk_count
from staging.vocabulary.manifest import Manifest, ManifestFile
from staging.vocabulary.paths import SafePath
from tests.cli.programs import Programs
from tests.support.checkpoints import manifest_of, vendor, write_tree
from tests.support.s3server import ScriptedS3

URI = "s3://my-models/checkpoints/laguna-xs-2026-04/"
DOCUMENT = (Path(__file__).parents[2] / "docs/kubernetes.md").read_text(encoding="utf-8")
SIZES = {
    "config.yaml": 22,
    "generation_config.json": 21,
    "model.safetensors": 67 * 10**9 - 68,
    "tokenizer/tokenizer.json": 25,
}


def large() -> Manifest:
    """A manifest of 67 GB; nobody has the bytes."""
    family = HashFamily.BLAKE3
    return Manifest.of(
        family,
        (
            ManifestFile.of(SafePath(path), size, family, [bytes(32)] * chunk_count(size))
            for path, size in SIZES.items()
        ),
    )


@pytest.fixture(scope="module")
def server() -> Iterator[ScriptedS3]:
    with ScriptedS3(buckets=["my-models"]) as server:
        key = "checkpoints/laguna-xs-2026-04/.checkpoint/manifest.json"
        server.bucket("my-models").put(key, large().encode())
        yield server


@pytest.fixture
def programs(tmp_path: Path, server: ScriptedS3) -> Programs:
    return Programs(tmp_path, server)


def without_id(text: str) -> str:
    return re.sub(r"sha256:[0-9a-f]{64}", "sha256:...", text)


def test_the_document_shows_what_is_printed(programs: Programs) -> None:
    shown = re.search(
        r"<!-- fragment: begin -->\n```console\n\$ (.*?)\n(.*?)```\n", DOCUMENT, re.DOTALL
    )
    assert shown is not None
    program, *arguments = shown[1].split()
    assert program == "staging"
    assert without_id(programs.staging(*arguments).stdout) == without_id(shown[2])


def test_the_text_is_the_patch(programs: Programs) -> None:
    text = programs.staging("show", URI, "--kubernetes").stdout
    found = programs.staging("show", URI, "--kubernetes", "--json").document["kubernetes"]
    assert yaml.safe_load(text) == found["patch"]
    assert (found["target"], found["id"]) == (URI, large().id)
    pod = found["patch"]["spec"]["template"]["spec"]
    assert {entry["name"]: entry["value"] for entry in pod["initContainers"][0]["env"]} == {
        "MODEL_URI": URI,
        "MODEL_EXPECT_ID": large().id,
    }


def test_the_document_names_every_member(programs: Programs) -> None:
    found = programs.staging("show", URI, "--kubernetes", "--json").document["kubernetes"]
    table = DOCUMENT.partition("| member |")[2]
    rows = re.findall(r"^\| (`.*?`) \|", table, re.MULTILINE)
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == found.keys()


def test_the_slash_at_the_end_makes_no_difference(programs: Programs) -> None:
    text = programs.staging("show", URI.removesuffix("/"), "--kubernetes").stdout
    assert json.dumps(URI) in text


def test_a_rate_changes_times_and_is_said(programs: Programs) -> None:
    def sized(*options: str) -> dict[str, int]:
        found = programs.staging("show", URI, "--kubernetes", "--json", *options).document
        return found["kubernetes"]  # type: ignore[no-any-return]

    slow, fast = sized(), sized("--rate", "2GB/s")
    assert (slow["rate"], fast["rate"]) == (125_000_000, 2_000_000_000)
    assert (slow["download_seconds"], fast["download_seconds"]) == (536, 34)
    assert slow["empty_dir"] == fast["empty_dir"]
    text = programs.staging("show", URI, "--kubernetes", "--rate", "2GB/s").stdout
    assert text.splitlines()[1].startswith("# Assumed: 2.0 GB/s")


def test_a_directory_has_no_uri(programs: Programs) -> None:
    files = vendor(1)
    manifest = manifest_of(files)
    write_tree(
        programs.directory / "node", {**files, ".checkpoint/manifest.json": manifest.encode()}
    )
    pod = yaml.safe_load(programs.staging("show", "node", "--kubernetes").stdout)["spec"]
    (downloader,) = pod["template"]["spec"]["initContainers"]
    assert downloader["env"] == [{"name": "MODEL_EXPECT_ID", "value": manifest.id}]


@pytest.mark.parametrize(
    "options",
    [["--rate", "1GB"], ["--kubernetes", "--rate", "0B"], ["--kubernetes", "--rate", "fast"]],
)
def test_rates_that_make_no_sense(programs: Programs, options: list[str]) -> None:
    assert programs.staging("show", URI, *options, expect=2).reference == "usage"


def test_nothing_published(programs: Programs) -> None:
    wrong = URI.replace("laguna-xs", "laguna-sx")
    assert programs.staging("show", wrong, "--kubernetes", expect=10).reference == "prefix-empty"
