"""Manifests of any content: they read back equal, and the id is the content's alone (I4)."""

from __future__ import annotations

import base64
import json
import random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from staging.vocabulary.digest import CHUNK_SIZE, Digest, HashFamily, chunk_count
from staging.vocabulary.manifest import Manifest, ManifestFile
from staging.vocabulary.paths import NameSet, SafePath, why_unsafe

BOUNDED = settings(max_examples=60, deadline=None, derandomize=True)

CHARACTERS = st.one_of(
    st.sampled_from("abAB.-_ +%#?é模/"), st.characters(exclude_categories=["Cs"])
)
NAMES = st.text(CHARACTERS, min_size=1, max_size=20).filter(lambda name: why_unsafe(name) is None)
SIZES = st.one_of(
    st.integers(0, 3 * CHUNK_SIZE),
    st.sampled_from([0, 1, CHUNK_SIZE - 1, CHUNK_SIZE, CHUNK_SIZE + 1, 2 * CHUNK_SIZE]),
)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=10),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.text(st.characters(exclude_categories=["Cs"]), max_size=5), inner, max_size=3
        )
    ),
    max_leaves=6,
)
RECORDS = st.dictionaries(st.sampled_from(["kind", "name", "x"]), JSON, max_size=3)
ABOUT = st.fixed_dictionaries(
    {},
    optional={
        "layout": RECORDS,
        "source": RECORDS,
        "created": st.text(st.characters(exclude_categories=["Cs"]), max_size=10),
        "tool": st.text(st.characters(exclude_categories=["Cs"]), max_size=10),
        "annotations": RECORDS,
    },
)


@st.composite
def contents(draw: st.DrawFn) -> tuple[HashFamily, list[ManifestFile]]:
    """Files with names that live side by side; random chunk digests stand for real bytes."""
    family = draw(st.sampled_from(HashFamily))
    rng = random.Random(draw(st.integers(0, 2**32)))
    seen = NameSet()
    names = [
        name for name in draw(st.lists(NAMES, min_size=1, max_size=6)) if seen.add(name) is None
    ]
    files = []
    for name in names:
        size = draw(SIZES)
        checksums = {
            kind: base64.b64encode(rng.randbytes(length)).decode()
            for kind, length in (("sha256", 32), ("crc64nvme", 8))
            if draw(st.booleans())
        }
        chunks = [rng.randbytes(32) for _ in range(chunk_count(size))]
        files.append(ManifestFile.of(SafePath(name), size, family, chunks, checksums))
    return family, files


@BOUNDED
@given(contents(), ABOUT)
def test_a_manifest_reads_back_equal(
    content: tuple[HashFamily, list[ManifestFile]], about: dict[str, Any]
) -> None:
    manifest = Manifest.of(*content, **about)
    data = manifest.encode()
    read = Manifest.decode(data)
    assert read == manifest
    assert read.id == manifest.id
    assert read.encode() == data
    document = json.loads(data)
    shuffled = dict(reversed(document.items()))  # the order of an object's keys means nothing
    assert Manifest.decode(json.dumps(shuffled).encode()) == manifest


@BOUNDED
@given(contents(), ABOUT, st.randoms(use_true_random=False))
def test_the_id_is_the_contents_alone(
    content: tuple[HashFamily, list[ManifestFile]], about: dict[str, Any], rng: random.Random
) -> None:
    family, files = content
    shuffled = rng.sample(files, len(files))
    bare = [ManifestFile(file.path, file.size, file.digest, file.chunks) for file in shuffled]
    assert Manifest.of(family, bare, **about).id == Manifest.of(family, files).id


@BOUNDED
@given(contents(), st.integers(0, 5), st.sampled_from(["name", "size", "digest"]))
def test_any_change_of_the_content_is_another_id(
    content: tuple[HashFamily, list[ManifestFile]], number: int, what: str
) -> None:
    family, files = content
    before = Manifest.of(family, files)
    index = number % len(files)
    file = files[index]
    if what == "name":
        name = SafePath(file.path + "x" * 30)  # longer than any name that is drawn
        changed = ManifestFile(name, file.size, file.digest, file.chunks)
    elif what == "size":
        size = (file.size + 1) % CHUNK_SIZE
        changed = ManifestFile.of(file.path, size, family, file.chunks[:1])
    else:
        flipped = bytes([file.digest.value[0] ^ 1]) + file.digest.value[1:]
        changed = ManifestFile(file.path, min(file.size, 9), Digest(family, flipped), (flipped,))
    after = Manifest.of(family, [*files[:index], changed, *files[index + 1 :]])
    assert after.id != before.id
