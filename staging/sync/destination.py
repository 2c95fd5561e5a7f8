"""A destination before anything is put there: what is wrong with it, and what it lacks. By stat alone.

No byte of a member is read, and nothing is created, changed or locked. What only hashing can tell is taken
for the better: a file of the right size for the right one. So what is called missing is missing, and what is
in the way is in the way, but there may be more of both.

Not guaranteed: a consistent look while another process writes there.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from staging.directory.access import refusal_below, write_refusal
from staging.directory.cache import CONTROL as CACHE_CONTROL
from staging.directory.cache import cache_of
from staging.directory.entry import Kind
from staging.directory.failure import on_disk
from staging.directory.fs import Fs
from staging.directory.local import LocalDirectory
from staging.directory.marker import Marker
from staging.directory.names import LOCK_NAME, PARTIAL_DIRECTORY, partial_directory
from staging.sync.inspection import look_up, published_here, read_marker
from staging.sync.plan import Action, Fetch, Keep, LocalState, PartialState, plan, undecided
from staging.sync.space import to_allocate
from staging.vocabulary.digest import Digest
from staging.vocabulary.errors import NotFound, StagingError
from staging.vocabulary.events import silent
from staging.vocabulary.manifest import Manifest
from staging.vocabulary.paths import CONTROL_DIRECTORY

_LOOK: Final = os.O_RDONLY | os.O_DIRECTORY


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination:
    """What is known of a directory, or of the place where it is to be made.

    `findings` is why nothing can be put there. `free_bytes` is None where nobody can tell, `needed_bytes`
    (what has to be allocated still, at least) without a manifest, and where the directory cannot be
    looked at. `vouched` are paths of wanted files that the ready marker stands for; `actions` is the plan
    as far as stat can tell.
    """

    directory: Path
    findings: tuple[StagingError, ...] = ()
    free_bytes: int | None = None
    needed_bytes: int | None = None
    vouched: frozenset[str] = frozenset()
    actions: tuple[Action, ...] = ()


def look(
    directory: Path, manifest: Manifest | None, *, fs: Fs, spared: Collection[str] = ()
) -> Destination:
    """Look at a directory, for `manifest` if one is known.

    `spared` are paths whose bytes are elsewhere on this disk already and will be linked. The place where
    a version of a cache is filled is looked at like any other; what is above it is made with it, up to
    the cache itself.
    """
    try:
        with LocalDirectory(directory, fs=fs) as local:
            return _existing(local, manifest, spared)
    except NotFound as error:
        if error.reference != "destination":
            return Destination(directory=directory, findings=(error,))
        return _to_be_made(directory, manifest, fs=fs, spared=spared)
    except StagingError as error:
        return Destination(directory=directory, findings=(error,))


def _existing(
    local: LocalDirectory, manifest: Manifest | None, spared: Collection[str]
) -> Destination:
    free = local.tree.free_bytes()  # before the files: another process may be reserving space
    ours = [CONTROL_DIRECTORY, LOCK_NAME, PARTIAL_DIRECTORY]
    if manifest is not None:
        ours.append(partial_directory(manifest.id))
    refusals = (refusal_below(local.tree, name) for name in ("", *ours))
    refusal = next((refusal for refusal in refusals if refusal is not None), None)
    found = Destination(
        directory=local.path, findings=() if refusal is None else (refusal,), free_bytes=free
    )
    if manifest is None:
        return found
    state, marker = _state(local, manifest)
    actions = plan(manifest, state)
    return replace(
        found,
        needed_bytes=_needed(actions, spared),
        vouched=frozenset(
            action.file.path
            for action in actions
            if isinstance(action, Keep)
            and marker is not None
            and marker.files.get(action.file.path) == action.stamp
            and action.file.path not in state.hashed
        ),
        actions=actions,
    )


def _to_be_made(
    directory: Path, manifest: Manifest | None, *, fs: Fs, spared: Collection[str]
) -> Destination:
    """Look at the directory that one which does not exist is to be made in."""
    above = directory.parent
    finding: StagingError | None
    free: int | None = None
    try:
        with ExitStack() as opened, on_disk(above):
            fd, above = _open_above(directory, fs)
            opened.callback(fs.close, fd)
            free = fs.free_bytes(fd)
            finding = write_refusal(fs, fd, ".", str(above))
    except StagingError as error:
        finding = error
    if finding is not None or manifest is None:
        findings = () if finding is None else (finding,)
        return Destination(directory=directory, findings=findings, free_bytes=free)
    actions = plan(manifest, LocalState(entries={}))
    needed = _needed(actions, spared)
    return Destination(directory=directory, free_bytes=free, needed_bytes=needed, actions=actions)


def _open_above(directory: Path, fs: Fs) -> tuple[int, Path]:
    """Open the directory above, and tell which that is.

    Of a destination only the last component is created: it is the parent. Of a version's place in a
    cache it is the nearest one that exists, at the highest the one that the cache is to be made in.
    """
    cache = cache_of(directory)
    top = directory if cache is None else cache
    above = directory.parent
    while True:
        try:
            # The directory behind a link too: links on the way are the operator's.
            return fs.open(os.path.join(above, "."), _LOOK), above
        except (FileNotFoundError, NotADirectoryError) as error:
            if isinstance(error, FileNotFoundError) and above != top.parent:
                above = above.parent
                continue
            raise NotFound(
                f"there is no directory {str(above)!r} to make {_below(top, above)!r} in",
                reference="destination",
                hint="check the path and that its volume is mounted; only the last component is"
                " created",
                side="local",
            ) from error


def _below(top: Path, above: Path) -> str:
    return top.name if above == top.parent else CACHE_CONTROL


def _needed(actions: Iterable[Action], spared: Collection[str]) -> int:
    return to_allocate(
        action for action in actions if isinstance(action, Fetch) and action.file.path not in spared
    )


def _state(local: LocalDirectory, manifest: Manifest) -> tuple[LocalState, Marker | None]:
    """The facts for a plan: what would be hashed is taken for what it should be, by its size."""
    marker = read_marker(local, silent)  # what cannot be read is reported by the run itself
    published = published_here(local, silent)
    # Before the places: what another process moves from here to there meanwhile is in one of the two.
    partials: dict[str, PartialState] = {
        file.path: PartialState(frozenset(), entry.allocated)
        for file in manifest.files
        if (entry := local.tree.entry(f"{partial_directory(manifest.id)}/{file.path}")) is not None
        and entry.kind is Kind.FILE
        and entry.links == 1
        and entry.stamp.size <= file.size
    }
    entries = look_up(local.tree, manifest, published)
    state = LocalState(entries=entries, marker=marker, published=published)
    possible: dict[str, set[Digest]] = {path: set() for path in undecided(manifest, state)}
    for version in (manifest, *published):
        for file in version.files:
            if file.path in possible and file.size == entries[file.path].stamp.size:
                possible[file.path].add(file.digest)
    hashed = {path: frozenset(digests) for path, digests in possible.items()}
    return replace(state, hashed=hashed, partial=partials), marker
