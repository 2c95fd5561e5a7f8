"""One attempt to make an open directory hold a manifest.

The steps: inspect -> plan -> refuse, or check the space -> fetch -> publish.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from staging.directory.entry import Stamp
from staging.directory.local import LocalDirectory
from staging.directory.names import PARTIAL_DIRECTORY, partial_directory
from staging.directory.publish import Publication, publish
from staging.directory.tree import Tree
from staging.store.store import Store
from staging.sync.fetch import Fetching, missing_bytes
from staging.sync.inspection import inspect
from staging.sync.options import SyncOptions, SyncResult
from staging.sync.plan import (
    Action,
    Fetch,
    Keep,
    Leave,
    LocalState,
    Refuse,
    Remove,
    emptied_directories,
    plan,
)
from staging.sync.refusal import refusal_of
from staging.sync.space import check_space, to_allocate
from staging.transfer.sizing import Sizing, choose
from staging.vocabulary.digest import Digest
from staging.vocabulary.events import Note, Reporter
from staging.vocabulary.location import S3Location
from staging.vocabulary.manifest import Manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class Filling:
    """What to bring and how. `etags` are the pinned versions, by path, as far as they are known.

    `known` are digests that the bytes of files with these stamps have, wherever such a file lies: they
    are not hashed again.
    """

    store: Store
    location: S3Location
    manifest: Manifest
    etags: Mapping[str, str]
    options: SyncOptions
    rng: random.Random
    known: Mapping[Stamp, frozenset[Digest]] = field(default_factory=dict)

    def fill(self, local: LocalDirectory, report: Reporter) -> SyncResult:
        """Do it, under the held lock of the directory. Raises what `staging.sync.sync` raises."""
        manifest = self.manifest
        sizing = sizing_of(self.options)
        state = inspect(
            local,
            manifest,
            threads=max(1, min(self.options.cores, sizing.concurrency)),
            report=report,
            known=self.known,
        )
        actions = plan(manifest, state)
        refusal = refusal_of(
            [action for action in actions if isinstance(action, Refuse)], local.path
        )
        if refusal is not None:
            raise refusal
        drop_stale_partials(local.tree, manifest)
        if _is_current(manifest, state, actions):
            # What this run fetched before it found out, where no lock kept it from trying.
            local.tree.remove_tree(PARTIAL_DIRECTORY)
            return already_present(manifest)
        tell_of_left(actions, report)
        fetches = [action for action in actions if isinstance(action, Fetch)]
        check_space(to_allocate(fetches), local.tree.free_bytes(), local.path)
        placed = self._fetch(local, fetches, sizing, report)
        publish(local, publication(manifest, state, actions, placed))
        return result(manifest, actions, fetches)

    def _fetch(
        self, local: LocalDirectory, fetches: list[Fetch], sizing: Sizing, report: Reporter
    ) -> Mapping[str, Stamp]:
        if not fetches:
            return {}
        fetching = Fetching(
            self.store,
            self.location,
            local.tree,
            self.manifest,
            sizing,
            etags=self.etags,
            page_cache=self.options.page_cache,
            report=report,
            rng=self.rng,
        )
        return fetching.run(fetches)


def sizing_of(options: SyncOptions) -> Sizing:
    """Part size and concurrency for these options. Raises UsageError for impossible ones."""
    return choose(
        0,  # ranges may be of any size and number, whatever the file's
        memory=options.memory,
        cores=options.cores,
        part_size=options.part_size,
        concurrency=options.concurrency,
    )


def tell_of_left(actions: Iterable[Action], report: Reporter) -> None:
    """Warn of files that an earlier version brought, this one lacks, and somebody changed."""
    for action in actions:
        if isinstance(action, Leave):
            text = f"{action.path!r} is of an earlier version but was changed: it stays"
            report(Note(text, warning=True))


def drop_stale_partials(tree: Tree, manifest: Manifest) -> None:
    """Remove what interrupted runs fetched for any other manifest."""
    current = partial_directory(manifest.id).rpartition("/")[2]
    for name in tree.listing(PARTIAL_DIRECTORY):
        if name != current:
            tree.remove_tree(f"{PARTIAL_DIRECTORY}/{name}")


def publication(
    manifest: Manifest,
    state: LocalState,
    actions: Sequence[Action],
    placed: Mapping[str, Stamp],
) -> Publication:
    """How a directory in `state` gets to hold `manifest`; `placed` are the files that were fetched."""
    kept: dict[str, Stamp] = {}
    outgoing: dict[str, Stamp] = {}
    for action in actions:
        match action:
            case Keep():
                kept[action.file.path] = action.stamp
            case Remove():
                outgoing[action.path] = action.stamp
            case Fetch() if action.replaces is not None:
                outgoing[action.file.path] = action.replaces
    return Publication(
        manifest=manifest,
        kept=kept,
        placed=placed,
        outgoing=outgoing,
        emptied=emptied_directories(manifest, state),
    )


def result(
    manifest: Manifest,
    actions: Sequence[Action],
    fetches: Sequence[Fetch],
    *,
    unverified: bool = False,
) -> SyncResult:
    """What a run came to that published `manifest`; `fetches` are those of its actions, as carried out."""
    fetched = sum(map(missing_bytes, fetches))
    return SyncResult(
        id=manifest.id,
        files=len(manifest.files),
        total_size=manifest.total_size,
        fetched_files=len(fetches),
        fetched_bytes=fetched,
        resumed_bytes=sum(action.file.size for action in fetches) - fetched,
        kept_files=sum(isinstance(action, Keep) for action in actions),
        removed_files=sum(isinstance(action, Remove) for action in actions),
        unverified=unverified,
    )


def already_present(manifest: Manifest) -> SyncResult:
    """The result of a run that changed nothing."""
    return SyncResult(
        id=manifest.id,
        files=len(manifest.files),
        total_size=manifest.total_size,
        kept_files=len(manifest.files),
        already_present=True,
    )


def _is_current(manifest: Manifest, state: LocalState, actions: Iterable[Action]) -> bool:
    """True when the marker stands for all of it: another process came first."""
    marker = state.marker
    return (
        marker is not None
        and marker.covers(manifest)
        and any(
            version.id == manifest.id and not version.is_unverified for version in state.published
        )
        and all(
            isinstance(action, Keep) and marker.files[action.file.path] == action.stamp
            for action in actions
        )
    )
