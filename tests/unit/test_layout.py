"""What becomes the root of a checkpoint, and what would not serve: refused with the command to run (I14).

No member is ever dropped on the way to the root; both known layouts pass; every rule has a checkpoint
that breaks it and no other.
"""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import pytest

from staging.formats.safetensors import read_header
from staging.layout.inventory import Inventory
from staging.layout.root import Root, RootTracker, find_root
from staging.layout.rules import check
from staging.vocabulary.errors import LayoutInvalid, MalformedInput
from staging.vocabulary.paths import SafePath
from staging.vocabulary.read_at import BytesAt
from tests.support.tensors import safetensors_file

HUGGING_FACE = [
    "config.json",
    "generation_config.json",
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
    "model.safetensors.index.json",
    "modeling_laguna.py",
    "tokenizer.json",
    "tokenizer_config.json",
]
VENDOR = ["config.yaml", "generation_config.json", "model.safetensors", "tokenizer/vocab.txt"]


def below(top: str, names: list[str]) -> list[str]:
    return [f"{top}/{name}" for name in names]


def refused(names: list[str], strip_components: int | None = None) -> LayoutInvalid:
    """The refusal of a whole archive, which a stream must meet too, at the latest at its end."""
    with pytest.raises(LayoutInvalid) as caught:
        find_root(
            names, strip_components=strip_components, source="a b.tar", target="s3://b/laguna/"
        )
    with pytest.raises(LayoutInvalid):
        streamed(names, strip_components)
    assert caught.value.exit_code == 17
    assert caught.value.hint
    assert "\n" not in caught.value.message + caught.value.hint
    return caught.value


def streamed(names: list[str], strip_components: int | None = None) -> list[str]:
    tracker = RootTracker(strip_components=strip_components)
    paths = [tracker.add(name) for name in names]
    tracker.finish()
    return list(map(str, paths))


@pytest.mark.parametrize("files", [HUGGING_FACE, VENDOR])
@pytest.mark.parametrize("backwards", [False, True])
def test_one_top_level_directory_is_stripped(files: list[str], backwards: bool) -> None:
    files = sorted(files, reverse=backwards)
    root = find_root(below("laguna_xs-1", files))
    assert root == Root(("laguna_xs-1",))
    assert [root.strip(f"laguna_xs-1/{name}") for name in files] == files
    assert streamed(below("laguna_xs-1", files)) == files


def test_stripped_names_are_safe_paths() -> None:
    (path,) = map(Root(("m",)).strip, ["m/config.json"])
    assert type(path) is SafePath
    assert type(RootTracker().add("m/config.json")) is SafePath


@pytest.mark.parametrize(("count", "top"), [(0, ""), (1, "m/"), (2, "a/m/"), (3, "a/b/m/")])
def test_a_given_count_is_followed(count: int, top: str) -> None:
    names = [top + name for name in VENDOR]
    root = find_root(names, strip_components=count)
    assert [root.strip(name) for name in names] == VENDOR
    assert streamed(names, count) == VENDOR


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(["m/x/a", "m/b"], id="too-short-later"),
        pytest.param(["m/b", "m/x/a"], id="too-short-first"),
        pytest.param(["m/x/a", "m/y/a"], id="two-files-would-become-one"),
        pytest.param(["m/x/a", "n/x/b"], id="another-top"),
        pytest.param(["config.json"], id="no-directory"),
    ],
)
def test_a_count_that_does_not_fit_every_member_is_refused(names: list[str]) -> None:
    error = refused(names, 2)
    assert error.reference == "layout-strip"
    assert error.hint is not None
    assert "--strip-components" in error.hint


@pytest.mark.parametrize("count", [None, 0, 1])
@pytest.mark.parametrize(
    "name", [".checkpoint/manifest.json", ".Checkpoint/x", ".checkpoint-complete"]
)
def test_reserved_names_are_refused_below_the_root(name: str, count: int | None) -> None:
    names = [name] if count == 0 else ["m/config.json", f"m/{name}"]
    with pytest.raises(MalformedInput, match="reserved") as caught:
        find_root(names, strip_components=count)
    assert caught.value.exit_code == 16
    with pytest.raises(MalformedInput, match="reserved"):
        streamed(names, count)


def test_a_checkpoint_without_a_top_directory() -> None:
    error = refused(VENDOR)
    assert error.reference == "layout-top-files"
    assert error.hint == "staging upload 'a b.tar' s3://b/laguna/ --strip-components 0"
    assert streamed(VENDOR, 0) == VENDOR


def test_a_stray_file_beside_the_top_directory() -> None:
    error = refused([*below("m", VENDOR), "README"])
    assert error.reference == "layout-top-files"
    assert "README" in error.message
    assert "--strip-components" not in (error.hint or "")


@pytest.mark.parametrize("top", ["", "bundle-1.2/"])
def test_a_deployment_bundle(top: str) -> None:
    names = [
        top + name for name in ("scripts/upload.sh", "containers/atlas/index.json", "charts/x/a")
    ]
    error = refused(names)
    assert error.reference == "deployment-bundle"
    tracker = RootTracker()
    tracker.add(names[0])
    with pytest.raises(LayoutInvalid, match="deployment bundle"):  # at once, not after 20 GB
        tracker.add(names[1])


def test_a_checkpoint_with_one_directory_named_as_in_a_bundle() -> None:
    assert streamed(below("m", [*VENDOR, "scripts/convert.py"]))[-1] == "scripts/convert.py"


def test_several_top_level_directories() -> None:
    error = refused(below("laguna-m", VENDOR) + below("laguna-xs", VENDOR))
    assert error.reference == "layout-several"
    assert "'laguna-m', 'laguna-xs'" in error.message


def test_several_checkpoints_below_one_directory() -> None:
    names = [name for top in "abcde" for name in below(f"all/{top}", VENDOR)]
    error = refused(names)
    assert error.reference == "layout-several"
    assert "'all/a', 'all/b', 'all/c' and 2 more" in error.message


def test_a_nested_folder() -> None:
    error = refused(below("m/inner", HUGGING_FACE))
    assert error.reference == "layout-nested"
    assert error.hint == "staging upload 'a b.tar' s3://b/laguna/ --strip-components 2"
    assert streamed(below("m/inner", HUGGING_FACE), 2) == HUGGING_FACE


def test_the_hint_of_a_stream_reads_the_stream_again() -> None:
    tracker = RootTracker(source="-", target="s3://b/x/")
    tracker.note("m/inner/model.safetensors")
    with pytest.raises(LayoutInvalid) as caught:
        tracker.finish()
    assert caught.value.hint == ("cat ARCHIVE | staging upload - s3://b/x/ --strip-components 2")


def test_a_nested_folder_that_stripping_cannot_reach(tmp_path: Path) -> None:
    """The commands of the hint are run, up to the upload, to see what they would send."""
    names = [*below("m/inner", VENDOR), "m/README.md"]
    for name in names:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    subprocess.run(["tar", "-cf", "a b.tar", "m"], cwd=tmp_path, check=True)
    error = refused(names)
    assert error.reference == "layout-nested"
    assert error.hint is not None
    commands, upload = error.hint.rsplit(" | ", 1)
    assert shlex.split(upload) == ["staging", "upload", "-", "s3://b/laguna/"]
    listed = subprocess.run(
        ["bash", "-euc", f"{commands} | tar -t"], cwd=tmp_path, capture_output=True, check=True
    )
    files = [name for name in listed.stdout.decode().split() if not name.endswith("/")]
    assert sorted(streamed(files)) == VENDOR


@pytest.mark.parametrize(
    "names",
    [
        ["m/model.safetensors.index.json", "m/shards/a.safetensors", "m/config.json"],
        ["m/model.safetensors", "m/2_Dense/model.safetensors"],
        ["m/model.safetensors", "m/original/consolidated.00.pth"],
        ["m/config.json", "m/README.md"],
        ["m/pytorch_model.bin", "m/config.json"],
        ["m/a/model.safetensors.index.json", "m/a/shards/x.safetensors"],
    ],
)
def test_folders_with_more_weights_and_folders_with_none(names: list[str]) -> None:
    if names[0].count("/") == 2:
        assert refused(names).reference == "layout-nested"  # one checkpoint, not two
    else:
        assert find_root(names) == Root(("m",))


@pytest.mark.parametrize(
    "names",
    [
        ["._m", "m/config.json"],
        ["m/config.json", "__MACOSX/m/._config.json"],
        ["m/config.json", ".DS_Store"],
    ],
)
def test_macos_leftovers_beside_the_root(names: list[str]) -> None:
    error = refused(names)
    assert error.reference == "layout-macos"
    assert "COPYFILE_DISABLE=1" in (error.hint or "")


def test_no_members_have_no_root() -> None:
    assert find_root([]) == Root()


# Rules.


def inventory(*names: str, broken: dict[str, str] | None = None) -> Inventory:
    """Files with one tensor in each that is weights, named after it."""
    return Inventory(
        dict.fromkeys(names, 100),
        {
            name: read_header(BytesAt(safetensors_file({name: ("U8", [1], b"x")})))
            for name in names
            if name.endswith(".safetensors")
        }
        | (broken or {}),
    )


def found(*names: str, broken: dict[str, str] | None = None) -> list[tuple[str, str, str | None]]:
    findings = check(inventory(*names, broken=broken))
    assert all(finding.message and finding.hint for finding in findings)
    assert not any("\n" in finding.message + finding.hint for finding in findings)
    return [(finding.severity, finding.rule, finding.path) for finding in findings]


@pytest.mark.parametrize(
    "files",
    [
        HUGGING_FACE,
        VENDOR,
        ["params.json", "consolidated.safetensors", "tekken.json"],
        ["config.json", "model.safetensors.index.json", "shards/a.safetensors"],
        ["config.json", "model.safetensors", "2_Dense/model.safetensors", "2_Dense/config.json"],
    ],
)
def test_layouts_that_serve_pass_without_a_word(files: list[str]) -> None:
    assert found(*files) == []


def test_files_that_were_not_looked_into_are_no_finding() -> None:
    assert check(Inventory(dict.fromkeys(VENDOR, 1))) == []
    assert check(Inventory(dict.fromkeys(VENDOR, 1), {"model.safetensors": None})) == []


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["CON\x07FIG"], ("error", "name-unsafe", "CON\x07FIG")),
        ([".checkpoint/x"], ("error", "name-unsafe", ".checkpoint/x")),
        (["tokenizer/Vocab.txt"], ("error", "name-collision", "tokenizer/vocab.txt")),
        (["config.yaml/a"], ("error", "name-collision", "config.yaml/a")),
        (["._model.safetensors"], ("error", "macos-leftover", "._model.safetensors")),
        (["tokenizer/._x"], ("error", "macos-leftover", "tokenizer/._x")),
        (["__MACOSX/x"], ("error", "macos-leftover", "__MACOSX/x")),
        ([".DS_Store"], ("warning", "macos-leftover", ".DS_Store")),
        (["laguna.tar"], ("error", "archive-inside", "laguna.tar")),
        (["x/laguna.TAR.GZ"], ("error", "archive-inside", "x/laguna.TAR.GZ")),
        (["a.tgz"], ("error", "archive-inside", "a.tgz")),
        (["a.tar.zst"], ("error", "archive-inside", "a.tar.zst")),
        (["weights.bin"], ("warning", "weights-other-format", "weights.bin")),
        (["original/a.gguf"], ("warning", "weights-other-format", "original/a.gguf")),
        (["pytorch_model.bin"], ("error", "pickle", "pytorch_model.bin")),
        (["original/a.pth"], ("error", "pickle", "original/a.pth")),
    ],
)
def test_one_file_more_than_serves(names: list[str], expected: tuple[str, str, str]) -> None:
    assert found(*VENDOR, *names) == [expected]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["config.json"], ("error", "weights-missing", None)),
        (["config.json", "._a.safetensors"], ("error", "weights-missing", None)),
        (["config.json", "model.safetensors.index.json"], ("error", "weights-missing", None)),
        (["config.json", "a.bin"], ("error", "weights-not-safetensors", "a.bin")),
        (["config.json", "a.gguf"], ("error", "weights-not-safetensors", "a.gguf")),
        (["config.json", "in/a.safetensors"], ("error", "weights-nested", "in/a.safetensors")),
        (["a.safetensors", "in/config.json"], ("error", "config-nested", "in/config.json")),
        (["a.safetensors"], ("error", "config-missing", None)),
        (["a.SafeTensors", "config.json"], ("error", "weights-missing", None)),
    ],
)
def test_something_less_than_serves(
    names: list[str], expected: tuple[str, str, str | None]
) -> None:
    assert expected in found(*names)
    assert {finding[1] for finding in found(*names)} - {"macos-leftover"} == {expected[1]}


def test_a_broken_header_is_told_with_its_reason() -> None:
    findings = check(inventory(*VENDOR, broken={"model.safetensors": "it is a git-LFS pointer"}))
    assert [(one.rule, one.severity) for one in findings] == [("safetensors-broken", "error")]
    assert "'model.safetensors'" in findings[0].message
    assert "it is a git-LFS pointer" in findings[0].message


def test_a_leftover_is_not_told_of_a_second_time_as_broken() -> None:
    leftover = "._model.safetensors"
    assert found(*VENDOR, leftover, broken={leftover: "it does not start as one"}) == [
        ("error", "macos-leftover", leftover)
    ]


def test_errors_come_before_warnings() -> None:
    severities = [
        finding[0]
        for finding in found(".DS_Store", "a.tar", "b.bin", "c.safetensors", "._d", "C.safetensors")
    ]
    assert severities == sorted(severities)
    assert set(severities) == {"error", "warning"}
