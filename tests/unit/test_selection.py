"""Choosing files by patterns: what they mean, and that the rest is judged all the same (I2, I4)."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from staging.source.directory import Directory
from staging.source.pipe import Pipe
from staging.source.selection import Pattern, Selection
from staging.source.source import Source
from staging.source.tar_file import TarFile
from staging.store.memory import MemoryStore
from staging.transfer.sizing import MIB
from staging.upload import UploadOptions, upload
from staging.vocabulary.errors import MalformedInput, UsageError
from staging.vocabulary.location import S3Location
from tests.support.checkpoints import random_bytes, tar_of, vendor, write_tree
from tests.unit.test_pipe import Body

FILES = {
    **vendor(1),
    "original/notes.txt": random_bytes(3 * MIB, 3),
    "README.md": b"read me",
}
OPTIONS = UploadOptions(memory=256 * MIB, cores=2)


@pytest.mark.parametrize(
    ("pattern", "matching", "others"),
    [
        ("*.bin", ["a.bin", ".bin"], ["sub/a.bin", "a.binary", "a.BIN"]),
        ("**/*.bin", ["a.bin", "sub/a.bin", "a/b/c.bin"], ["a.binary"]),
        ("sub/*", ["sub/a", "sub/.hidden"], ["sub/a/b", "sub", "a/sub/b", "subs/a"]),
        ("sub/**", ["sub/a", "sub/a/b"], ["sub", "a/sub/b"]),
        ("sub/", ["sub/a", "sub/a/b"], ["sub", "a/sub/b"]),
        ("**", ["a", "a/b", "a/b/c"], []),
        ("**/", ["a/b", "a", "a/b/c"], []),
        ("a/**/b", ["a/b", "a/x/b", "a/x/y/b"], ["a", "b", "a/b/c", "x/a/b", "a/xb"]),
        ("**/a/**", ["a/b", "x/a/b", "x/a/b/c"], ["a", "x/a", "b/c"]),
        ("**/**/b", ["b", "a/b"], ["a"]),
        ("a?c", ["abc", "a.c"], ["ac", "a/c", "abbc"]),
        ("[ab].txt", ["a.txt", "b.txt"], ["c.txt", "ab.txt"]),
        ("[!ab].txt", ["c.txt"], ["a.txt", "x/a.txt"]),
        ("[a-c]*", ["a", "c9"], ["d", "b/x"]),
        ("[*].txt", ["*.txt"], ["a.txt"]),
        ("a.b", ["a.b"], ["axb", "a.b/c"]),
        ("a+(b)|c", ["a+(b)|c"], ["ab", "c"]),
        ("é/*", ["é/x"], ["e/x"]),
        ("sub", ["sub"], ["sub/a"]),
    ],
)
def test_patterns_mean_what_is_said(pattern: str, matching: list[str], others: list[str]) -> None:
    compiled = Pattern(pattern)
    assert [path for path in (*matching, *others) if compiled.matches(path)] == matching


@pytest.mark.parametrize(
    "pattern", ["", "/", "/a", "a//b", "./a", "a/../b", "a\\b", "a**", "**.bin", "a/x**y/b", "//"]
)
def test_patterns_that_stand_for_nothing_are_refused(pattern: str) -> None:
    with pytest.raises(UsageError) as raised:
        Selection(Pipe(io.BytesIO()), exclude=[pattern])
    assert raised.value.reference == "pattern"


def test_a_hostile_pattern_takes_no_long_time() -> None:
    assert not Pattern("**/" * 30 + "*a" * 30 + "b").matches("a/" * 400 + "a" * 200)
    assert not Pattern("*a" * 100 + "b").matches("a" * 1000)


def source_of(kind: str, directory: Path) -> Source:
    if kind == "pipe":
        return Pipe(io.BytesIO(tar_of(FILES)))
    if kind == "tar":
        path = directory / "m.tar"
        path.write_bytes(tar_of(FILES))
        return TarFile(path)
    return Directory(write_tree(directory / "m", FILES))


KINDS = ["pipe", "tar", "directory"]


def select(
    source: Source, *, include: tuple[str, ...] = (), exclude: tuple[str, ...] = ()
) -> set[str]:
    """Names of the selected files, each of which is read and compared."""
    selection = Selection(source, include, exclude)
    names = set()
    try:
        for file in selection.files():
            buffer = bytearray(file.size)
            selection.read_into(file, 0, memoryview(buffer))
            assert bytes(buffer) == FILES[file.path]
            names.add(str(file.path))
        selection.finish()
    finally:
        selection.close()
    return names


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_excluded_is_left_out_and_wins(kind: str, tmp_path: Path) -> None:
    all_names = set(FILES)
    assert select(source_of(kind, tmp_path)) == all_names
    assert select(source_of(kind, tmp_path), exclude=("original/**",)) == all_names - {
        "original/notes.txt"
    }
    assert select(source_of(kind, tmp_path), include=("*", "tokenizer/*"), exclude=("*.md",)) == {
        name for name in all_names if not name.startswith("original/") and name != "README.md"
    }
    assert select(source_of(kind, tmp_path), include=("*.yaml",)) == {"config.yaml"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("include", "exclude"), [(("nothing-like-it",), ()), ((), ("**",)), (("*.md",), ("*.md",))]
)
def test_nothing_selected_is_refused(
    kind: str, tmp_path: Path, include: tuple[str, ...], exclude: tuple[str, ...]
) -> None:
    with pytest.raises(MalformedInput) as raised:
        select(source_of(kind, tmp_path), include=include, exclude=exclude)
    assert raised.value.reference == "nothing-selected"
    assert raised.value.hint


def test_a_pattern_that_stands_for_no_file_is_told(tmp_path: Path) -> None:
    source = source_of("tar", tmp_path)
    # Matched although another pattern matches the same, and although the other side decides.
    selection = Selection(source, ["*", "*.yaml", "*.yml"], ["config.yaml", "orginal/**", "*.md"])
    assert len(list(selection.files())) > 1
    assert selection.unmatched == ("*.yml", "orginal/**")
    list(selection.files())  # asked for twice, answered the same
    assert selection.unmatched == ("*.yml", "orginal/**")
    selection.close()


def test_a_selection_passes_for_its_source(tmp_path: Path) -> None:
    body = Body(tar_of(FILES))
    pipe = Pipe(body, kind="url", name="m.tar", identity='"e" 1', size=1)
    selection = Selection(pipe, ["*.md"])
    assert selection.sequential
    assert (selection.kind, selection.name, selection.identity, selection.size) == (
        "url",
        "m.tar",
        '"e" 1',
        1,
    )
    select(pipe, include=("*.md",))
    assert body.events == ["finish", "close"]


def test_what_is_left_out_of_a_pipe_is_judged_all_the_same() -> None:
    cut = tar_of({"z.bin": random_bytes(5000, 1)})[:-3000]
    with pytest.raises(MalformedInput) as raised:
        list(Selection(Pipe(io.BytesIO(cut)), ["*.txt"]).files())
    assert raised.value.reference == "tar-truncated"


@pytest.mark.parametrize("exclude", [(), ("original/**", "README.md")])
def test_the_id_of_a_selection_is_that_of_its_files(
    tmp_path: Path, exclude: tuple[str, ...]
) -> None:
    store = MemoryStore()
    ids = set()
    for number, kind in enumerate(KINDS):
        source = Selection(source_of(kind, tmp_path), exclude=exclude)
        location = S3Location("models", f"m{number}/")
        ids.add(upload(source, store, location, OPTIONS).manifest.id)
        source.close()
    left = {name: data for name, data in FILES.items() if not exclude or name in vendor(1)}
    alone = Pipe(io.BytesIO(tar_of(left)))
    ids.add(upload(alone, store, S3Location("models", "alone/"), OPTIONS).manifest.id)
    assert len(ids) == 1
