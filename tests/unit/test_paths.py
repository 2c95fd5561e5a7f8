"""Safe names: what is refused and why, what is fine, which names cannot live side by side (I3, I10)."""

from __future__ import annotations

import os.path
import unicodedata

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from staging.vocabulary.paths import (
    MAX_COMPONENT_BYTES,
    MAX_PATH_BYTES,
    NameSet,
    SafePath,
    UnsafePath,
    collisions,
    is_reserved,
    why_not_portable,
    why_unsafe,
)

HOSTILE = [
    ("", "it is empty"),
    # Out of the directory
    ("/etc/passwd", "it is absolute"),
    ("/", "it is absolute"),
    ("//server/share", "it is absolute"),
    ("..", "it has the component '..'"),
    ("../up", "it has the component '..'"),
    ("a/../../up", "it has the component '..'"),
    ("a/..", "it has the component '..'"),
    (".", "it has the component '.'"),
    ("./a", "it has the component '.'"),
    ("a/./b", "it has the component '.'"),
    ("a/.", "it has the component '.'"),
    ("a//b", "it has an empty component"),
    ("a/", "it has an empty component"),
    ("a/b//", "it has an empty component"),
    # Another system's paths
    ("a\\b", "it has a backslash"),
    ("..\\..\\up", "it has a backslash"),
    ("\\\\server\\share", "it has a backslash"),
    ("C:", "it starts with a drive letter"),
    ("c:a", "it starts with a drive letter"),
    ("C:/Windows", "it starts with a drive letter"),
    ("z:/", "it starts with a drive letter"),
    # What ends or splits a line or a string
    ("a\0b", "it has the control character U+0000"),
    ("\0", "it has the control character U+0000"),
    ("a\nb", "it has the control character U+000A"),
    ("a\rb", "it has the control character U+000D"),
    ("a\tb", "it has the control character U+0009"),
    ("a\x07", "it has the control character U+0007"),
    ("\x08a", "it has the control character U+0008"),
    ("a\x0bb", "it has the control character U+000B"),
    ("\x1b[2Ja", "it has the control character U+001B"),
    ("a\x1f", "it has the control character U+001F"),
    ("a\x7f", "it has the control character U+007F"),
    ("a\x80", "it has the control character U+0080"),
    ("a\x85b", "it has the control character U+0085"),
    ("a\x9b31m", "it has the control character U+009B"),
    ("a\u2028b", "it has the control character U+2028"),
    ("a\u2029b", "it has the control character U+2029"),
    # Bytes that were no UTF-8, and halves of characters
    ("a\udcff", "it has the control character U+DCFF"),
    ("\ud83d", "it has the control character U+D83D"),
    # What a terminal does not show, or shows elsewhere
    ("a\u202efdp.exe", "it has the invisible character U+202E"),
    ("a\u202a", "it has the invisible character U+202A"),
    ("a\u202b", "it has the invisible character U+202B"),
    ("a\u202c", "it has the invisible character U+202C"),
    ("a\u202d", "it has the invisible character U+202D"),
    ("a\u2066b", "it has the invisible character U+2066"),
    ("a\u2067b", "it has the invisible character U+2067"),
    ("a\u2068b", "it has the invisible character U+2068"),
    ("a\u2069b", "it has the invisible character U+2069"),
    ("a\u200eb", "it has the invisible character U+200E"),
    ("a\u200fb", "it has the invisible character U+200F"),
    ("a\u061cb", "it has the invisible character U+061C"),
    ("a\u200bb", "it has the invisible character U+200B"),
    ("a\u2060b", "it has the invisible character U+2060"),
    ("\ufeffa", "it has the invisible character U+FEFF"),
    # Another spelling of the same name
    ("a\u00adb", "it has the invisible character U+00AD"),
    ("a\u200db", "it has the invisible character U+200D"),
    ("a\u034fb", "it has the invisible character U+034F"),
    ("a\u3164", "it has the invisible character U+3164"),
    ("a\ufe0f", "it has the invisible character U+FE0F"),
    ("a\U000e0041", "it has the invisible character U+E0041"),
    ("a\ufffe", "it has the control character U+FFFE"),
    ("a\u0378", "it has the control character U+0378"),
    ("cafe\u0301", "it is not in Unicode normal form NFC"),
    ("a/\u212bngstrom", "it is not in Unicode normal form NFC"),
    ("\u2126", "it is not in Unicode normal form NFC"),
    ("\u1112\u1161\u11ab", "it is not in Unicode normal form NFC"),
    ("\ufb1d", "it is not in Unicode normal form NFC"),
    # Too long
    ("a" * 256, "a component is longer than 255 bytes"),
    ("d/" + "é" * 128, "a component is longer than 255 bytes"),
    ("/".join(["a" * 200] * 6), "it is longer than 1024 bytes"),
    ("a/" * 512 + "a", "it is longer than 1024 bytes"),
    ("é/" * 341 + "éé", "it is longer than 1024 bytes"),
    # Ours
    (".checkpoint", ".checkpoint/ and .checkpoint-complete are reserved"),
    (".checkpoint/manifest.json", ".checkpoint/ and .checkpoint-complete are reserved"),
    (".Checkpoint/a", ".checkpoint/ and .checkpoint-complete are reserved"),
    (".CHECKPOINT/manifest.json", ".checkpoint/ and .checkpoint-complete are reserved"),
    (".checkpoint-complete", ".checkpoint/ and .checkpoint-complete are reserved"),
    (".Checkpoint-Complete", ".checkpoint/ and .checkpoint-complete are reserved"),
]

FINE = [
    "config.json",
    "model-00001-of-00002.safetensors",
    "a b/c d.txt",
    " leading and trailing ",
    "a+b",
    "100%",
    "%2e%2e/%2f",
    "#1",
    "a?b",
    "a&b=c;d",
    "aa:b",
    "1:b",
    "*",
    "-rf",
    "~",
    "$HOME",
    "`x`",
    "'\"",
    "...",
    "..a",
    "a..",
    ".hidden/.file",
    "caf\u00e9/\u00c5.bin",
    "模型/配置.json",
    "モデル.bin",
    "\ud55c\uae00",
    "мoдeль",
    "a\u00a0b",
    "emoji-\U0001f600",
    "a/.checkpoint",
    "a/.checkpoint-complete",
    ".checkpoints/a",
    ".checkpoint-complete2",
    "checkpoint/manifest.json",
    "a" * 255,
    "/".join(["a" * 255] * 3 + ["b" * 250, "cc", "dd"]),
]


def test_the_table_is_a_table() -> None:
    assert len({name for name, _ in HOSTILE}) == len(HOSTILE) >= 60


@pytest.mark.parametrize(("name", "reason"), HOSTILE, ids=[ascii(name)[:40] for name, _ in HOSTILE])
def test_hostile_names_are_refused_with_the_reason(name: str, reason: str) -> None:
    assert why_unsafe(name) == reason
    with pytest.raises(UnsafePath) as caught:
        SafePath(name)
    assert caught.value.reason == reason
    assert caught.value.name == name
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 400


@pytest.mark.parametrize("name", FINE, ids=[ascii(name)[:40] for name in FINE])
def test_fine_names_are_kept_as_they_are(name: str) -> None:
    path = SafePath(name)
    assert (path, str(path)) == (name, name)
    assert "/".join(path.components) == name
    assert SafePath(path) is path


@pytest.mark.parametrize(("name", "reason"), HOSTILE, ids=[ascii(name)[:40] for name, _ in HOSTILE])
def test_an_archives_names_are_judged_alike_but_for_reservation(name: str, reason: str) -> None:
    assert why_not_portable(name) == (None if is_reserved(name) else reason)


def test_the_longest_names() -> None:
    assert why_unsafe("é" * 127 + "a") is None
    assert why_unsafe("é" * 128) is not None
    longest = "/".join(["a" * 255] * 4) + "a"
    assert len(longest.encode()) == MAX_PATH_BYTES
    assert why_unsafe(longest) == f"a component is longer than {MAX_COMPONENT_BYTES} bytes"
    assert why_unsafe("/".join(["a" * 255] * 4)) is None
    assert why_unsafe("a/" * 511 + "aa") is None
    assert why_unsafe("a/" * 511 + "aaa") == f"it is longer than {MAX_PATH_BYTES} bytes"


def test_names_sort_by_bytes_of_utf8() -> None:
    names = [SafePath(name) for name in ("\U0001f600", "\uff01", "é", "z", "a/b", "a.b", "a-b")]
    assert sorted(names, key=lambda path: path.sort_key) == [
        "a-b", "a.b", "a/b", "z", "é", "\uff01", "\U0001f600",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("earlier", "later"),
    [
        ("a", "a"),
        ("config.json", "Config.JSON"),
        ("caf\u00e9", "CAF\u00c9"),
        ("caf\u00e9", "cafe\u0301"),  # names that were never checked may still be compared
        ("stra\u00dfe", "STRASSE"),
        ("\u03c3", "\u03c2"),
        ("\u01c6", "\u01c4"),
        ("a", "a/b"),
        ("a/b", "a"),
        ("a/b", "a/b/c/d"),
        ("A", "a/b"),
        ("a/b", "A"),
        ("a/b/c", "A/B"),
        ("d/x", "D/y"),
        ("d/e/x", "d/E/y"),
        ("d/E/x", "d/e"),
    ],
)
def test_names_that_collide(earlier: str, later: str) -> None:
    assert collisions([earlier, later]) == [(earlier, later)]
    assert collisions([earlier, "between", later]) == [(earlier, later)]


@pytest.mark.parametrize(
    "names",
    [
        [],
        ["a"],
        ["a", "b"],
        ["a", "ab", "a.b", "a-b"],
        ["d/x", "d/y", "e/x"],
        ["x", "d/x", "d/d/x"],
        ["a b", "a_b", "a+b"],
        ["caf\u00e9", "cafe"],
        ["\u0430", "a"],  # alike to the eye only
    ],
)
def test_names_that_live_side_by_side(names: list[str]) -> None:
    assert collisions(names) == []
    assert collisions(reversed(names)) == []


def test_each_later_name_is_reported_once_beside_the_first_it_meets() -> None:
    assert collisions(["a", "b", "A", "a/x", "B", "c"]) == [("a", "A"), ("a", "a/x"), ("b", "B")]


def test_a_refused_name_leaves_nothing_behind() -> None:
    names = NameSet()
    assert names.add("a") is None
    assert names.add("A/b/c") == "a"
    assert names.add("b/c") is None
    assert names.add("a") == "a"


def test_directories_may_come_again_and_before_their_files() -> None:
    names = NameSet()
    assert names.add_directory("d") is None
    assert names.add_directory("d") is None
    assert names.add("d/e/x") is None
    assert names.add_directory("d/e") is None
    assert names.add_directory("D") == "d"
    assert names.add("d") == "d"
    assert names.add_directory("d/e/x") == "d/e/x"


BOUNDED = settings(max_examples=300, deadline=None, derandomize=True)

# Names that are likely to be nearly right: pieces that matter, and any character at all.
PIECES = st.sampled_from(
    [
        "a",
        "b.c",
        "..",
        ".",
        "",
        "/",
        "//",
        "\\",
        ".checkpoint",
        "C:",
        "e\u0301",
        "é",
        "\0",
        " ",
        "%",
    ]
)
NAMES = st.one_of(
    st.lists(st.one_of(PIECES, st.text(max_size=4)), max_size=8).map("/".join),
    st.text(max_size=40),
    st.text(st.sampled_from("a./é"), max_size=1500),
)


@BOUNDED
@given(NAMES)
@example("a/" * 511 + "aa")
def test_every_safe_path_stays_below_the_root_it_is_joined_to(name: str) -> None:
    try:
        path = SafePath(name)
    except UnsafePath:
        return
    joined = os.path.join("/srv/of it", path)
    assert os.path.normpath(joined) == joined
    assert joined.startswith("/srv/of it/")
    assert unicodedata.normalize("NFC", path) == path
    assert len(path.encode()) <= MAX_PATH_BYTES
    assert all(1 <= len(part.encode()) <= MAX_COMPONENT_BYTES for part in path.components)
    assert not path.casefold().startswith(".checkpoint/")


@BOUNDED
@given(st.lists(st.text(st.sampled_from("aAbBé/"), min_size=1, max_size=6), max_size=8))
def test_what_does_not_collide_can_be_laid_out_where_case_does_not_count(names: list[str]) -> None:
    seen = NameSet()
    fine = [name for name in names if why_unsafe(name) is None and seen.add(name) is None]
    files: set[str] = set()
    directories: dict[str, str] = {}
    for name in fine:
        parts = name.split("/")
        for depth in range(1, len(parts)):
            directory = "/".join(parts[:depth])
            assert directories.setdefault(directory.casefold(), directory) == directory
        assert name.casefold() not in files
        files.add(name.casefold())
    assert not files & directories.keys()
