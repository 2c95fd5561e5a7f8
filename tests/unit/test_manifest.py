"""Manifests against a hostile editor: one reading (I3), content bound to the id (I4), bounds (I11).

What one flipped bit can do is stated exactly in `test_one_flipped_bit`: the content and the chunk lists
are bound to the id, the id to what a pod pins; checksums and the open records are not.
"""

from __future__ import annotations

import base64
import copy
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from staging.vocabulary.digest import CHUNK_SIZE, HashFamily
from staging.vocabulary.errors import MalformedInput
from staging.vocabulary.manifest import MAX_MANIFEST_BYTES, Manifest, ManifestFile
from staging.vocabulary.paths import SafePath

GOLDEN = Path(__file__).parents[1] / "golden" / "v1"
FAMILY = HashFamily.BLAKE3

Document = dict[str, Any]


def entry(path: str, size: int = 3, *, seed: int = 1, **checksums: str) -> ManifestFile:
    count = max(1, -(-size // CHUNK_SIZE))
    chunks = [hashlib.sha256(f"{seed}/{index}".encode()).digest() for index in range(count)]
    return ManifestFile.of(SafePath(path), size, FAMILY, chunks, checksums)


def sample() -> Manifest:
    return Manifest.of(
        FAMILY,
        [
            entry("config.json", crc64nvme="AAAAAAAAAAA="),
            entry("model.safetensors", 2 * CHUNK_SIZE + 1, seed=2),
            entry("a/tokenizer.json", seed=3),
        ],
        tool="a tool",
        annotations={"k": "v"},
    )


def document() -> Document:
    loaded: Document = json.loads(sample().encode())
    return loaded


def encoded(changed: Document, *, with_its_id: bool = True) -> bytes:
    """A document as bytes; `with_its_id` gives it the id that its content really makes."""
    if with_its_id:
        text = json.dumps(
            changed["content"], sort_keys=True, separators=(",", ":"), ensure_ascii=False
        )
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
        changed = {**changed, "id": f"sha256:{digest}"}
    return json.dumps(changed).encode()


def files(changed: Document) -> list[Document]:
    entries: list[Document] = changed["content"]["files"]
    return entries


def rename(old: str, new: str) -> Callable[[Document], None]:
    """Rename a file everywhere, keeping the order of names."""

    def edit(changed: Document) -> None:
        for file in files(changed):
            if file["path"] == old:
                file["path"] = new
        files(changed).sort(key=lambda file: file["path"].encode("utf-8", "surrogatepass"))
        for table in ("chunks", "checksums"):
            if old in changed[table]:
                changed[table][new] = changed[table].pop(old)

    return edit


def put(*keys: Any, value: Any) -> Callable[[Document], None]:
    """Set the value at a path of keys and indexes."""

    def edit(changed: Document) -> None:
        at: Any = changed
        for key in keys[:-1]:
            at = at[key]
        at[keys[-1]] = value

    return edit


def drop(*keys: Any) -> Callable[[Document], None]:
    def edit(changed: Document) -> None:
        at: Any = changed
        for key in keys[:-1]:
            at = at[key]
        del at[keys[-1]]

    return edit


def duplicate(index: int) -> Callable[[Document], None]:
    return lambda changed: files(changed).insert(index, copy.deepcopy(files(changed)[index]))


def swap(changed: Document) -> None:
    entries = files(changed)
    entries[0], entries[1] = entries[1], entries[0]


def swap_digests(changed: Document) -> None:
    """Of two files of one size: each is well-formed, only the id can tell."""
    first, second = files(changed)[0], files(changed)[1]
    first["digest"], second["digest"] = second["digest"], first["digest"]


def reverse_chunks(changed: Document) -> None:
    packed = base64.b64decode(changed["chunks"]["model.safetensors"])
    chunks = [packed[start : start + 32] for start in range(0, len(packed), 32)]
    reversed_ = b"".join(reversed(chunks))
    changed["chunks"]["model.safetensors"] = base64.b64encode(reversed_).decode()


def chunk_list(length: int) -> str:
    return base64.b64encode(bytes(length)).decode()


BIG = "model.safetensors"
ATTACKS: list[tuple[str, Callable[[Document], None], str]] = [
    # The set of files
    ("reorder", swap, "not sorted"),
    ("duplicate path", duplicate(1), "not sorted"),
    ("no files", put("content", "files", value=[]), "chunks has|at least one file"),
    ("files is no list", put("content", "files", value={}), "files is not a list"),
    ("a file is no object", put("content", "files", 0, value="config.json"), "not an object"),
    ("a file is null", put("content", "files", 0, value=None), "not an object"),
    # Names
    ("case collision", rename("a/tokenizer.json", "Config.json"), "collide"),
    ("file and directory", rename("a/tokenizer.json", "config.json/x"), "collide"),
    ("unsafe path", rename("config.json", "../config.json"), "unsafe name"),
    ("absolute path", rename("config.json", "/etc/passwd"), "unsafe name"),
    ("path with an escape", rename("config.json", "a\x1b[2J"), "unsafe name"),
    ("path not NFC", rename("config.json", "cafe\u0301"), "unsafe name"),
    ("lone surrogate", rename("config.json", "a\ud800"), "surrogates not allowed"),
    ("reserved path", rename("config.json", ".checkpoint/ready.json"), "reserved"),
    ("reserved marker", rename("config.json", ".Checkpoint-Complete"), "reserved"),
    ("empty path", rename("config.json", ""), "it is empty"),
    ("path is a number", put("content", "files", 0, "path", value=1), "path is not a string"),
    # Sizes
    ("size as float", put("content", "files", 0, "size", value=3.0), "impossible size"),
    ("size as text", put("content", "files", 0, "size", value="3"), "impossible size"),
    ("size as bool", put("content", "files", 0, "size", value=True), "impossible size"),
    ("size null", put("content", "files", 0, "size", value=None), "impossible size"),
    ("negative size", put("content", "files", 0, "size", value=-1), "impossible size"),
    ("size 2^53", put("content", "files", 0, "size", value=2**53), "impossible size"),
    ("size 2^64", put("content", "files", 0, "size", value=2**64), "impossible size"),
    ("largest size", put("content", "files", 0, "size", value=2**53 - 1), "not a string"),
    ("a chunk more", put("content", "files", 2, "size", value=3 * CHUNK_SIZE + 1), "has 4 chunks"),
    ("a byte less", put("content", "files", 2, "size", value=2 * CHUNK_SIZE), "has 2 chunks"),
    ("a byte more", put("content", "files", 2, "size", value=2 * CHUNK_SIZE + 2), "do not make"),
    # Digests
    ("edited digest of a long file", put("content", "files", 2, "digest",
        value="blake3-16m:" + "0" * 64), "do not make"),
    ("other family in a file", put("content", "files", 0, "digest",
        value="sha256-16m:" + "0" * 64), "not of the family"),
    ("other family at the top", put("content", "hash", value="sha256-16m"), "not of the family"),
    ("unknown family", put("content", "hash", value="md5-16m"), "md5-16m"),
    ("family is null", put("content", "hash", value=None), "hash is not a string"),
    ("digest is no digest", put("content", "files", 0, "digest", value="cafe"), "not a digest"),
    ("digest is null", put("content", "files", 0, "digest", value=None), "digest is not a string"),
    # Fields of the strict parts
    ("unknown content field", put("content", "mode", value=1), "odd one: 'mode'"),
    ("unknown file field", put("content", "files", 0, "mode", value=1), "odd one: 'mode'"),
    ("missing file field", drop("content", "files", 0, "size"), "odd one: 'size'"),
    ("missing content field", drop("content", "hash"), "odd one: 'hash'"),
    ("unknown format", put("content", "format", value="checkpoint/2"), "'checkpoint/2'"),
    # Chunk lists
    ("missing chunk list", drop("chunks", BIG), "not a string"),
    ("chunk list null", put("chunks", BIG, value=None), "not a string"),
    ("no chunk lists", drop("chunks"), "chunks is not an object"),
    ("chunk lists as list", put("chunks", value=[]), "chunks is not an object"),
    ("list for a short file", put("chunks", "config.json", value=chunk_list(32)), "not a file it is for"),
    ("list for no file", put("chunks", "other", value=chunk_list(64)), "not a file it is for"),
    ("list too short", put("chunks", BIG, value=chunk_list(64)), "its list 64 bytes"),
    ("list too long", put("chunks", BIG, value=chunk_list(128)), "its list 128 bytes"),
    ("list not of whole digests", put("chunks", BIG, value=chunk_list(95)), "its list 95 bytes"),
    ("empty list", put("chunks", BIG, value=""), "its list 0 bytes"),
    ("list of zeros", put("chunks", BIG, value=chunk_list(96)), "do not make"),
    ("list in another order", reverse_chunks, "do not make"),
    ("list with a newline", put("chunks", BIG, value=chunk_list(96) + "\n"), "base64"),
    ("list in the other alphabet", put("chunks", BIG, value="-_" * 64), "base64"),
    ("list without padding", put("chunks", BIG, value=chunk_list(95)[:-1]), "base64"),
    ("list beyond ASCII", put("chunks", BIG, value="é" * 128), "chunk digests of 'model.saf.*base64"),
    # Checksums
    ("unknown checksum", put("checksums", "config.json", value={"md5": "AAAA"}), "unknown checksum: 'md5'"),
    ("checksum for no file", put("checksums", "other", value={}), "not a file it is for"),
    ("checksum too long", put("checksums", "config.json", "crc64nvme", value="A" * 12), "wrong length"),
    ("checksum too short", put("checksums", "config.json", "sha256", value=chunk_list(31)), "wrong length"),
    ("checksum not canonical", put("checksums", "config.json", "crc64nvme", value="AAAAAAAAAAB="),
        "canonical"),
    ("checksum a number", put("checksums", "config.json", "crc64nvme", value=0), "not a string"),
    ("checksums of a file as text", put("checksums", "config.json", value="x"), "not an object"),
    ("no checksums", drop("checksums"), "checksums is not an object"),
    # The frame
    ("unknown schema", put("schema", value="checkpoint-manifest/2"), "'checkpoint-manifest/2'"),
    ("no schema", drop("schema"), "this version reads 'checkpoint-manifest/1'"),
    ("schema is a list", put("schema", value=[["x"] * 1000]), "this version reads"),
    ("no content", drop("content"), "content is not an object"),
    ("layout is text", put("layout", value="fine"), "layout is not an object"),
    ("source is null", put("source", value=None), "source is not an object"),
    ("annotations is a list", put("annotations", value=[]), "annotations is not an object"),
    ("created is a number", put("created", value=1), "created is not a string"),
    ("tool is null", put("tool", value=None), "tool is not a string"),
]  # fmt: skip


@pytest.mark.parametrize(("edit", "reason"), [a[1:] for a in ATTACKS], ids=[a[0] for a in ATTACKS])
def test_an_edited_manifest_is_refused_even_with_the_id_its_content_makes(
    edit: Callable[[Document], None], reason: str
) -> None:
    changed = document()
    edit(changed)
    with pytest.raises(MalformedInput, match=reason) as caught:
        Manifest.decode(encoded(changed, with_its_id="content" in changed))
    error = caught.value
    assert (error.exit_code, error.reference, error.side) == (16, "manifest-malformed", "store")
    assert error.hint
    assert error.message.isprintable()
    assert len(error.message) < 500


CONTENT_EDITS: list[tuple[str, Callable[[Document], None]]] = [
    ("digest", put("content", "files", 1, "digest", value="blake3-16m:" + "0" * 64)),
    ("digests exchanged", swap_digests),
    ("size", put("content", "files", 1, "size", value=4)),
    ("name", rename("config.json", "config2.json")),
    ("file dropped", drop("content", "files", 0)),
]


@pytest.mark.parametrize("edit", [e[1] for e in CONTENT_EDITS], ids=[e[0] for e in CONTENT_EDITS])
def test_a_consistent_edit_of_the_content_is_another_id(edit: Callable[[Document], None]) -> None:
    changed = document()
    edit(changed)
    with pytest.raises(MalformedInput, match=r"its id is 'sha256:\w+', its content makes sha256:"):
        Manifest.decode(encoded(changed, with_its_id=False))
    # Whoever may write to the bucket may write another manifest; its id is not the one that is pinned.
    assert Manifest.decode(encoded(changed)).id != sample().id


@pytest.mark.parametrize(
    "value",
    [None, "", 1, "sha256:", "sha256:" + "0" * 64, lambda real: real.upper(), lambda r: r[7:]],
)
def test_a_wrong_id(value: Any) -> None:
    changed = document()
    changed["id"] = value(changed["id"]) if callable(value) else value
    with pytest.raises(MalformedInput, match="its id is"):
        Manifest.decode(encoded(changed, with_its_id=False))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b'"manifest"',
        b"{}",
        b"\0",
        b"\x1f\x8b\x08\0",
        b"<Error/>",
        b"[" * 100_000,
    ],
)
def test_bytes_that_are_no_manifest(data: bytes) -> None:
    with pytest.raises(MalformedInput, match="the manifest is not valid"):
        Manifest.decode(data)


def test_duplicate_keys_anywhere() -> None:
    text = sample().encode().decode()
    for old, new in (
        ('"tool": "a tool"', '"tool": "a tool", "tool": "a tool"'),
        ('"size": 3,', '"size": 3, "size": 3,'),
        ('"k": "v"', '"k": "v", "k": "w"'),
    ):
        assert old in text
        with pytest.raises(MalformedInput, match="duplicate key"):
            Manifest.decode(text.replace(old, new, 1).encode())


def test_unknown_keys_at_the_top_are_left_to_later_versions() -> None:
    changed = document()
    changed["signatures"] = [{"by": "somebody"}]
    changed["zzz"] = None
    assert Manifest.decode(encoded(changed)) == sample()


def test_open_records_may_be_missing() -> None:
    changed = document()
    for name in ("layout", "source", "created", "tool", "annotations"):
        del changed[name]
    read = Manifest.decode(encoded(changed))
    assert read.id == sample().id
    assert (read.layout, read.source, read.created, read.tool, read.annotations) == (
        {}, {}, "", "", {},
    )  # fmt: skip


def test_a_manifest_has_its_cap_when_written_and_when_read() -> None:
    def padded(length: int) -> Manifest:
        return Manifest.of(FAMILY, [entry("a")], annotations={"padding": "x" * length})

    room = MAX_MANIFEST_BYTES - len(padded(0).encode())
    largest = padded(room).encode()
    assert len(largest) == MAX_MANIFEST_BYTES
    assert Manifest.decode(largest).id == padded(0).id
    with pytest.raises(ValueError, match="at most 67108864 bytes"):
        padded(room + 1).encode()
    with pytest.raises(MalformedInput, match="longer than 67108864 bytes"):
        Manifest.decode(largest + b" ")


@pytest.mark.parametrize(
    "value", [{"a": float("inf")}, {"a": float("nan")}, {"a": "\ud800"}], ids=["inf", "nan", "half"]
)
def test_records_that_could_not_be_read_back_are_not_written(value: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"JSON compliant|surrogates not allowed"):
        Manifest.of(FAMILY, [entry("a")], annotations=value).encode()


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ([], "at least one file"),
        ([entry("a"), entry("A")], "collide"),
        ([entry("a"), entry("a")], "not sorted"),
        ([entry("a", md5="AAAA")], "unknown checksum"),
        ([entry("a", crc64nvme="AAAA")], "wrong length"),
        (
            [ManifestFile(SafePath("a"), -1, entry("a").digest, entry("a").chunks)],
            "impossible size",
        ),
        (
            [ManifestFile(SafePath("a"), 3, entry("a").digest, (bytes(32),))],
            "do not make its digest",
        ),
        ([ManifestFile(SafePath("a"), 3, entry("a").digest, ())], "chunks, not 0"),
    ],
)
def test_manifests_that_cannot_be_made(files: list[ManifestFile], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Manifest.of(FAMILY, files)


def test_the_family_is_part_of_the_content() -> None:
    chunk = bytes(32)
    ids = {
        Manifest.of(family, [ManifestFile.of(SafePath("a"), 1, family, [chunk])]).id
        for family in HashFamily
    }
    assert len(ids) == 2


def flips(data: bytes) -> Iterator[tuple[int, bytes]]:
    changed = bytearray(data)
    for index in range(len(data)):
        for bit in range(8):
            changed[index] ^= 1 << bit
            yield index, bytes(changed)
            changed[index] ^= 1 << bit


def test_one_flipped_bit() -> None:
    """Any one bit of a manifest with a long file: refused, or the same id, content and chunk lists.

    So no flip ever passes for another checkpoint, and what decodes is what a pin of the id names.
    What may change unnoticed is what the id does not bind: checksums, and the open records.
    """
    data = (GOLDEN / "sha256.json").read_bytes()
    original = Manifest.decode(data)
    content = [(file.path, file.size, file.digest, file.chunks) for file in original.files]
    start = data.index(b'"checksums"')
    survived = 0
    for index, flipped in flips(data):
        try:
            read = Manifest.decode(flipped)
        except MalformedInput:
            continue
        survived += 1
        assert read.id == original.id, index
        assert read.hash is original.hash, index
        assert [(f.path, f.size, f.digest, f.chunks) for f in read.files] == content, index
        if index < start:
            assert read == original, index  # between tokens: one kind of white space for another
    assert survived > 100


def test_a_manifest_that_was_cut() -> None:
    data = (GOLDEN / "small.json").read_bytes()
    for length in range(len(data) - 1):
        with pytest.raises(MalformedInput):
            Manifest.decode(data[:length])
    assert Manifest.decode(data[:-1]) == Manifest.decode(data)  # the last line end
