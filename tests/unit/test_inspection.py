"""Facts for layout rules come from any source, bounded, and are the same however files come (I11)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

import pytest

from staging.formats.stranger import LFS_POINTER as POINTER
from staging.formats.stranger import SNIFF_BYTES
from staging.inspection import Passing, read_through, take_inventory
from staging.layout.documents import (
    MAX_DOCUMENT_BYTES,
    MAX_INDEX_BYTES,
    MAX_PASSING_INDEX_BYTES,
    MAX_VALUES,
    DocumentCapture,
    is_document,
    read_document,
)
from staging.layout.inventory import INDEX_NAME, Inventory, Unreadable
from staging.layout.rules import Gradual, check
from staging.source.source import SourceFile
from staging.vocabulary.paths import SafePath
from staging.vocabulary.read_at import BytesAt
from tests.support.layouts import BASES, FIXTURES, LFS_POINTER, WEB_PAGE, broken, inventory


def file(path: str, size: int) -> SourceFile:
    return SourceFile(SafePath(path), size, 0)


def passed(files: Mapping[str, bytes], step: int) -> Inventory:
    """The inventory of files that came in pieces of `step` bytes."""
    passing = Passing()
    for path, data in files.items():
        noted = file(path, len(data))
        passing.note(noted)
        for offset in range(0, len(data), step):
            passing.watch(noted, memoryview(data)[offset : offset + step])
    return passing.inventory()


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("step", [1, 37, 10**6])
def test_the_facts_are_the_same_however_files_come(base: str, step: int) -> None:
    files = BASES[base]()
    assert passed(files, step) == inventory(files)


def test_broken_files_give_the_same_findings_however_they_come() -> None:
    for rule in FIXTURES:
        files = broken(rule)
        if rule in ("name-unsafe", "document-unread"):
            continue  # no source yields such a name; one has megabytes of nothing
        assert check(passed(files, 101)) == check(inventory(files)), rule


class _Reads:
    """Bytes as `ReadAt`, with a log."""

    def __init__(self, data: bytes, size: int | None = None) -> None:
        self.size = len(data) if size is None else size
        self.log: list[tuple[int, int]] = []
        self._data = data

    def read_at(self, offset: int, length: int) -> bytes:
        self.log.append((offset, length))
        return self._data[offset : offset + length].ljust(length)


def test_one_read_for_a_document_and_two_for_a_header() -> None:
    files = BASES["sharded"]()
    reads = {path: _Reads(data) for path, data in files.items()}
    take_inventory([(path, len(data)) for path, data in files.items()], reads.__getitem__)
    for path, read in reads.items():
        assert len(read.log) <= (2 if path.endswith(".safetensors") else 1), path
    assert {path for path, read in reads.items() if read.log} == set(files)


def test_what_is_no_document_is_not_read() -> None:
    reads = {path: _Reads(b"x" * 100) for path in ("README.md", "modeling.py", "a/config.json")}
    assert take_inventory([(path, 100) for path in reads], reads.__getitem__).documents == {}
    assert [read.log for read in reads.values()] == [[], [], []]


@pytest.mark.parametrize(
    ("path", "limit"), [("config.json", MAX_DOCUMENT_BYTES), (INDEX_NAME, MAX_INDEX_BYTES)]
)
def test_a_document_that_is_too_long_is_looked_at_and_not_read(path: str, limit: int) -> None:
    read = _Reads(b"{", limit + 1)
    found = read_document(path, read).value
    assert isinstance(found, Unreadable)
    assert found.too_long
    assert read.log == [(0, SNIFF_BYTES)]
    assert [
        one.rule for one in check(Inventory({path: limit + 1}, {}, {path: found}), partial=True)
    ] == ["document-unread"]


def test_an_index_that_passes_by_has_a_lower_limit() -> None:
    assert DocumentCapture(INDEX_NAME, MAX_PASSING_INDEX_BYTES).missing == MAX_PASSING_INDEX_BYTES
    assert DocumentCapture(INDEX_NAME, MAX_PASSING_INDEX_BYTES + 1).missing == SNIFF_BYTES


def test_a_capture_keeps_no_more_than_it_needs() -> None:
    capture = DocumentCapture("tokenizer.json", 10_000)
    for _ in range(10):
        capture.feed(b"{" * 1_000)
    assert capture.held == SNIFF_BYTES
    assert not capture.result().known


def test_tokenizers_are_looked_at_from_the_start_alone() -> None:
    for path in ("tokenizer.json", "tokenizer/tokenizer.json", "tokenizer.model", "config.yaml"):
        assert is_document(path)
        assert not read_document(path, BytesAt(b"{" * 5_000)).known
        for content, name in ((LFS_POINTER, "git-LFS"), (WEB_PAGE, "web page")):
            found = read_document(path, BytesAt(content)).value
            assert isinstance(found, Unreadable)
            assert name in found.reason
    assert read_document("config.yaml", BytesAt(LFS_POINTER)).value.stranger is POINTER


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b'{"a": 1', "too early"),
        (b'{"a" 1}', "no JSON: Expecting ':' delimiter at line 1 column 6"),
        (b"\xff\xfe{}", "UTF-8"),
        (b"\x80\x02}q\0.", "pickle"),
        (b'{"a": 1, "b": 2, "a": 3}', "'a' comes twice"),
        (b'{"a": "\\uD83D"}', "half a character"),
        (b'{"a": ' + b"1" * 5_000 + b"}", "limit"),
        (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
    ],
)
def test_why_a_document_cannot_be_read(data: bytes, reason: str) -> None:
    found = read_document("config.json", BytesAt(data)).value
    assert isinstance(found, Unreadable)
    assert reason in found.reason
    assert [
        one.rule
        for one in check(Inventory({"config.json": 1}, {}, {"config.json": found}), partial=True)
    ] == ["json-broken"]


def test_a_document_of_too_many_values_is_not_decoded() -> None:
    data = b'{"a": [' + b"{}," * (MAX_VALUES // 2) + b"{}]}"
    found = read_document("config.json", BytesAt(data)).value
    assert isinstance(found, Unreadable)
    assert found.too_long
    assert read_document("config.json", BytesAt(b'{"a": "\\ud83d\\ude00"}')).value == {
        "a": "\U0001f600"
    }


@pytest.mark.parametrize("value", [[], 1, "text", True])
def test_a_document_that_is_no_object(value: object) -> None:
    found = read_document("config.json", BytesAt(json.dumps(value).encode())).value
    assert found == value
    [finding] = check(Inventory({"config.json": 1}, {}, {"config.json": found}), partial=True)
    assert finding.rule == "json-broken"


def test_certain_is_told_as_soon_as_the_bytes_tell_it_and_once() -> None:
    passing = Passing(Gradual())
    noted = file("model.safetensors", 1_000)
    passing.note(noted)
    assert passing.certain() == []
    passing.watch(noted, memoryview(LFS_POINTER)[:100])
    assert passing.certain() == []
    passing.watch(noted, memoryview(LFS_POINTER.ljust(SNIFF_BYTES))[100:])
    assert [one.rule for one in passing.certain()] == ["safetensors-broken"]
    assert passing.certain() == []
    passing.note(file("a.pt", 5))
    assert [one.rule for one in passing.certain()] == ["pickle"]


def test_without_anybody_to_judge_nothing_is_certain() -> None:
    passing = Passing()
    passing.note(file("a.pt", 5))
    assert passing.certain() == []


def test_an_empty_document_is_certain_at_once() -> None:
    passing = Passing(Gradual())
    passing.note(file("config.json", 0))
    assert [one.rule for one in passing.certain()] == ["json-broken"]


def test_a_source_is_read_to_its_end() -> None:
    content = BASES["single"]()

    class Sequential:
        def files(self) -> Iterator[SourceFile]:
            for path, data in content.items():
                yield file(path, len(data))

        def read_into(self, noted: SourceFile, offset: int, view: memoryview) -> None:
            view[:] = content[noted.path][offset : offset + len(view)]

    files, found = read_through(Sequential())  # type: ignore[arg-type]
    assert [one.path for one in files] == list(content)
    assert found == inventory(content)
