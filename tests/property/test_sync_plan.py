"""Plans are pure, converge and spare what is not ours (I6, I10, I14): any directory, any versions.

A directory is modelled as a dict of paths to bytes; the model carries out plans and is looked at by
an observer that knows nothing of how plans are made.
"""

from __future__ import annotations

import copy
import itertools
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import replace

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from staging.directory.entry import Entry, Kind, Stamp
from staging.directory.marker import Marker
from staging.directory.names import parents
from staging.sync.fetch import Part, missing_bytes, parts_of
from staging.sync.plan import (
    Action,
    Fetch,
    Keep,
    Leave,
    LocalState,
    PartialState,
    Refuse,
    Remove,
    emptied_directories,
    plan,
    undecided,
)
from staging.vocabulary.digest import CHUNK_SIZE, Digest, HashFamily, chunk_count
from staging.vocabulary.manifest import Manifest, ManifestFile
from staging.vocabulary.paths import SafePath, collisions
from tests.support.checkpoints import manifest_of

World = dict[str, bytes]

PATHS = [
    "a",
    "a/b",
    "a/b/c",
    "a/d",
    "e",
    "f/g",
    "w.safetensors",
    "x.safetensors",
    "consolidated.pt",
]
CONTENTS = [b"", b"one", b"two", b"other size"]
FAMILIES = st.sampled_from(HashFamily)
BOUNDED = settings(max_examples=150, deadline=None, derandomize=True)


def _fits(world: Iterable[str], path: str) -> bool:
    return not collisions([*world, path])


@st.composite
def worlds(draw: st.DrawFn, least: int = 0) -> World:
    world: World = {}
    for path in draw(st.lists(st.sampled_from(PATHS), min_size=least, unique=True)):
        if _fits(world, path):
            world[path] = draw(st.sampled_from(CONTENTS))
    return world


@st.composite
def scenes(draw: st.DrawFn) -> tuple[Manifest, World, World, tuple[Manifest, ...], bool]:
    """A wanted version, its files, a directory, the manifests that lie there, and a valid marker?"""
    files = draw(worlds(least=1))
    earlier = draw(st.lists(worlds(least=1), max_size=2))
    published = tuple(manifest_of(version, draw(FAMILIES)) for version in earlier)
    marked = bool(earlier) and draw(st.booleans())
    world: World = dict(earlier[0]) if marked else {}
    sources = [*earlier, files, draw(worlds())]
    for path in draw(st.lists(st.sampled_from(PATHS), unique=True)):
        known = [source[path] for source in sources if path in source]
        data = draw(st.sampled_from([*known, *CONTENTS]))
        if path in world and marked:
            continue  # a marker with untouched stamps goes with untouched files
        if path in world or _fits(world, path):
            world[path] = data
    return manifest_of(files, draw(FAMILIES)), files, world, published, marked


def _stamp(path: str, data: bytes) -> Stamp:
    return Stamp(len(data), 1, zlib.crc32(path.encode() + b"\0" + data))


def observe(
    manifest: Manifest,
    world: Mapping[str, bytes],
    published: tuple[Manifest, ...],
    *,
    marked: bool,
    partial: Mapping[str, PartialState] | None = None,
    directories: Iterable[str] = (),
) -> LocalState:
    entries = {path: Entry(Kind.FILE, _stamp(path, data)) for path, data in world.items()}
    for directory in {*directories, *(above for path in world for above in parents(path))}:
        entries[directory] = Entry(Kind.DIRECTORY, Stamp(0, 1, 1))
    marker = None
    if marked:
        files = {
            file.path: entries[file.path].stamp
            for file in published[0].files
            if file.path in entries
        }
        marker = Marker(published[0].id, dict(files))
    state = LocalState(entries=entries, marker=marker, published=published, partial=partial or {})
    hashed: dict[str, frozenset[Digest]] = {}
    for path, families in undecided(manifest, state).items():
        hashed[path] = frozenset(Digest(family, family.hash(world[path])) for family in families)
    return replace(state, hashed=hashed)


def carry_out(actions: Iterable[Action], world: World, files: Mapping[str, bytes]) -> World:
    after = dict(world)
    for action in actions:
        if isinstance(action, Remove):
            del after[action.path]
    for action in actions:
        if isinstance(action, Fetch):
            assert (action.replaces is not None) == (action.file.path in after)
            after[action.file.path] = files[action.file.path]
    return after


def _refused(actions: Iterable[Action]) -> bool:
    return any(isinstance(action, Refuse) for action in actions)


@BOUNDED
@given(scenes())
def test_a_plan_is_a_function_of_its_arguments(
    scene: tuple[Manifest, World, World, tuple[Manifest, ...], bool],
) -> None:
    manifest, _, world, published, marked = scene
    state = observe(manifest, world, published, marked=marked)
    before = copy.deepcopy((manifest, state))
    first = plan(manifest, state)
    backwards = replace(
        state,
        entries=dict(reversed(state.entries.items())),
        published=tuple(reversed(state.published)),
    )
    assert plan(manifest, backwards) == plan(manifest, state) == first
    assert (manifest, state) == before


@BOUNDED
@given(scenes())
def test_carried_out_it_gives_the_version_and_nothing_more_to_do(
    scene: tuple[Manifest, World, World, tuple[Manifest, ...], bool],
) -> None:
    manifest, files, world, published, marked = scene
    actions = plan(manifest, observe(manifest, world, published, marked=marked))
    assume(not _refused(actions))
    after = carry_out(actions, world, files)
    assert {path: after[path] for path in files} == files
    assert not collisions(after)
    for marked_after in (True, False):
        again = plan(manifest, observe(manifest, after, (manifest,), marked=marked_after))
        assert [type(action) for action in again] == [Keep] * len(files)


@BOUNDED
@given(scenes())
def test_only_what_an_earlier_version_named_is_removed_or_replaced(
    scene: tuple[Manifest, World, World, tuple[Manifest, ...], bool],
) -> None:
    manifest, files, world, published, marked = scene
    actions = plan(manifest, observe(manifest, world, published, marked=marked))
    ours = {
        path
        for path, data in world.items()
        for version in published
        for file in version.files
        if file.path == path and file.digest.value == version.hash.hash(data)
    }
    for action in actions:
        if isinstance(action, Remove):
            assert action.path in ours - set(files)
        elif isinstance(action, Fetch) and action.replaces is not None:
            assert action.file.path in ours
        elif isinstance(action, Keep):
            assert world[action.file.path] == files[action.file.path]
        elif isinstance(action, Leave):
            assert action.path not in ours
    if not _refused(actions):
        weights = {path for path in world if "/" not in path and len(path) > 1}
        assert weights <= ours | set(files)


@BOUNDED
@given(scenes())
def test_what_is_refused_is_foreign_and_in_the_way(
    scene: tuple[Manifest, World, World, tuple[Manifest, ...], bool],
) -> None:
    manifest, files, world, published, marked = scene
    actions = plan(manifest, observe(manifest, world, published, marked=marked))
    for action in actions:
        if not isinstance(action, Refuse):
            continue
        if action.reference == "foreign-weights":
            assert action.path in world
            assert action.path not in files
        else:
            assert action.reference == "foreign-file"
            clash = collisions([*files, action.path]) or action.path in files
            assert clash or any(path.startswith(f"{action.path}/") for path in files)


@BOUNDED
@given(scenes(), st.data())
def test_interrupted_anywhere_it_converges(
    scene: tuple[Manifest, World, World, tuple[Manifest, ...], bool], data: st.DataObject
) -> None:
    manifest, files, world, published, marked = scene
    state = observe(manifest, world, published, marked=marked)
    actions = plan(manifest, state)
    assume(not _refused(actions))
    steps = [
        *(action for action in actions if isinstance(action, Remove)),
        *(action for action in actions if isinstance(action, Fetch)),
    ]
    done = data.draw(st.integers(0, len(steps)))
    midway = carry_out(steps[:done], world, files)
    # The marker went first, the new manifest lies beside the old ones, emptied directories may linger.
    state = observe(
        manifest,
        midway,
        (*published, manifest),
        marked=False,
        directories=emptied_directories(manifest, state) - set(midway),
    )
    resumed = plan(manifest, state)
    assert not _refused(resumed)
    assert carry_out(resumed, midway, files) == carry_out(actions, world, files)
    assert sum(isinstance(action, Fetch | Remove) for action in resumed) == len(steps) - done


@BOUNDED
@given(
    size=st.integers(0, 40 * CHUNK_SIZE),
    part_chunks=st.integers(1, 7),
    data=st.data(),
)
def test_parts_cover_the_missing_chunks_exactly(
    size: int, part_chunks: int, data: st.DataObject
) -> None:
    count = chunk_count(size)
    present = data.draw(st.frozensets(st.integers(0, count - 1)))
    missing = tuple(index for index in range(count) if index not in present)
    family = HashFamily.BLAKE3
    file = ManifestFile.of(SafePath("f"), size, family, [family.hash(b"")] * count)
    action = Fetch(file, missing)
    parts = list(parts_of(action, part_chunks * CHUNK_SIZE))
    covered = [index for part in parts for index in range(part.first, part.first + part.count)]
    assert covered == ([] if size == 0 else list(missing))
    assert sum(part.span(size)[1] for part in parts) == missing_bytes(action)
    assert all(1 <= part.count <= part_chunks for part in parts)
    for before, after in itertools.pairwise(parts):
        assert before.count == part_chunks or before.first + before.count < after.first


def test_a_part_ends_with_its_file() -> None:
    assert Part(1, 2).span(2 * CHUNK_SIZE + 5) == (CHUNK_SIZE, CHUNK_SIZE + 5)
