"""One attempt to make an open directory hold a prefix whose digests nobody knows yet.

    inspect -> plan -> refuse, or check the space -> ask for the store's checksums -> take over what these
    prove -> fetch, hashing on the way -> hold against the checksums -> list again -> publish

What `staging.sync.filling` does for a manifest is done here for a stand-in; the manifest comes at the end,
and the partial files move below its id right before it is published.

Not guaranteed: parts of a file that an interrupted run left. There is nothing to hold them against; a file
is taken over whole or fetched again. So are the files of a run that is killed between that move and the
first step of publishing.
"""

from __future__ import annotations

import datetime
import functools
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace

from staging.directory.entry import Kind, Stamp
from staging.directory.local import LocalDirectory
from staging.directory.names import PARTIAL_DIRECTORY, partial_directory
from staging.directory.partial import settle
from staging.directory.publish import publish
from staging.published import read_manifest, require_id
from staging.store.store import ObjectInfo, Store
from staging.sync.fetch import Fetching
from staging.sync.filling import drop_stale_partials, publication, result, sizing_of, tell_of_left
from staging.sync.inspection import inspect, read_marker
from staging.sync.options import SyncOptions, SyncResult
from staging.sync.plan import Fetch, plan
from staging.sync.refusal import refusal_of
from staging.sync.space import check_space, to_allocate
from staging.sync.stand_in import FAMILY, Record, StandIn, refusals_in
from staging.transfer.budget import Budget
from staging.transfer.scheduler import Scheduler
from staging.unpublished.content import Content, encode, installed_crc64
from staging.unpublished.prefix import changed, require_unchanged, stored_checksums
from staging.vocabulary.digest import CHUNK_SIZE, chunk_count, chunk_span
from staging.vocabulary.errors import IntegrityError
from staging.vocabulary.events import Moved, Note, Reporter, Started
from staging.vocabulary.location import MANIFEST_NAME
from staging.vocabulary.manifest import Manifest, ManifestFile
from staging.vocabulary.paths import SafePath


class Learning:
    """One attempt, under the held lock of the directory."""

    def __init__(
        self,
        store: Store,
        local: LocalDirectory,
        expected: StandIn,
        options: SyncOptions,
        report: Reporter,
        rng: random.Random,
    ) -> None:
        self._store = store
        self._location = expected.found.location
        self._local = local
        self._expected = expected
        self._options = options
        self._report = report
        self._rng = rng
        self._sizing = sizing_of(options)
        self._threads = max(1, min(options.cores, self._sizing.concurrency))
        self._contents: dict[str, Content] = {}
        self._stored: Mapping[SafePath, str | None] = {}

    def fill(self, now: datetime.datetime) -> SyncResult:
        """Do it. Raises what `staging.sync.unverified.sync_unverified` raises."""
        local, planned, found = self._local, self._expected.manifest, self._expected.found
        state = inspect(local, planned, threads=self._threads, report=self._report)
        actions = plan(planned, state)
        refusal = refusal_of(refusals_in(actions, self._expected), local.path)
        if refusal is not None:
            raise refusal
        tell_of_left(actions, self._report)
        drop_stale_partials(local.tree, planned)
        fetches = [action for action in actions if isinstance(action, Fetch)]
        check_space(to_allocate(fetches), local.tree.free_bytes(), local.path)
        self._ask_for_checksums(fetches)
        fetches = self._take_over(fetches)
        placed = self._fetch(fetches)
        manifest = self._manifest(now)
        encode(manifest)  # or it is refused before anything is published
        require_id(manifest, self._options.expect_id, str(self._location), side="store")
        if require_unchanged(self._store, found):
            manifest = self._published(manifest)
        else:
            self._tell(manifest)
        if self._is_in_place(manifest):  # the same bytes in other versions: only the record is new
            local.tree.write_document(MANIFEST_NAME, manifest.encode())
            local.tree.remove_tree(PARTIAL_DIRECTORY)
        else:
            if placed and manifest.id != planned.id:
                waiting = partial_directory(manifest.id)
                local.tree.remove_tree(waiting)
                local.tree.rename(partial_directory(planned.id), waiting)
            publish(local, publication(manifest, state, actions, placed))
        unverified = self._options.expect_id is None and manifest.is_unverified
        return result(manifest, actions, fetches, unverified=unverified)

    def _published(self, learned: Manifest) -> Manifest:
        """The manifest that has come meanwhile. Raises Conflict when it is of other bytes."""
        published = read_manifest(self._store, self._location)
        if published.id != learned.id:
            what = f"{published.id} was published, what was read is {learned.id}"
            raise changed(what, self._store, self._location.prefix)
        return published

    def _is_in_place(self, manifest: Manifest) -> bool:
        marker = read_marker(self._local, self._report)
        return marker is not None and marker.covers(manifest) and self._local.is_intact(marker)

    def _ask_for_checksums(self, fetches: Sequence[Fetch]) -> None:
        """Prepare for the files whose digests nobody knows."""
        infos = {
            action.file.path: self._expected.found.files[action.file.path]
            for action in fetches
            if action.file.path not in self._expected.known
        }
        self._stored = stored_checksums(self._store, infos, concurrency=self._sizing.concurrency)
        self._contents = {path: _content(path, info) for path, info in infos.items()}
        if installed_crc64() is None and any(self._stored.values()):
            text = "the store's checksums cannot be compared: awscrt is not installed here"
            self._report(Note(text, warning=True))

    def _take_over(self, fetches: Sequence[Fetch]) -> list[Fetch]:
        """The same fetches, less what an interrupted run left complete and the store vouches for."""
        waiting = partial_directory(self._expected.manifest.id)
        left = {
            action.file.path: action.file.size
            for action in fetches
            if action.file.path in self._contents and action.allocated and action.missing
        }
        if not left:
            return list(fetches)
        self._report(Started("check", sum(left.values()), len(left)))
        budget = Budget(self._threads * CHUNK_SIZE)
        proven: dict[SafePath, Stamp] = {}

        def look(path: SafePath, scheduler: Scheduler) -> None:
            content, name = self._contents[path], f"{waiting}/{path}"
            if not content.is_provable(self._stored[path]):
                return
            with self._local.tree.open_member(name) as member:
                settle(self._local.tree, member)
                data = sum(end - start for start, end in member.data_extents())
                if member.size != content.size or data < content.size:
                    return  # parts of it never came
                for index in range(chunk_count(content.size)):
                    offset, length = chunk_span(content.size, index)
                    with (
                        budget.lease(length, scheduler.cancelled) as buffer,
                        memoryview(buffer) as view,
                    ):
                        member.read_into(offset, view)
                        content.take(index, view)
                    self._report(Moved(length))
            entry = self._local.tree.entry(name)
            if (
                content.proof(self._stored[path]) != "nothing"
                and entry is not None
                and entry.kind is Kind.FILE
                and entry.links == 1
                and entry.stamp == member.stamp
            ):
                proven[path] = entry.stamp

        with Scheduler(self._threads, name="check") as scheduler:
            for path in left:
                scheduler.submit(functools.partial(look, path, scheduler))
        self._report(
            Note(
                f"of {len(left)} files that an interrupted run began {len(proven)} are complete and proven"
                " by the store's checksum; the others are fetched again"
            )
        )
        return [
            replace(action, missing=(), partial=proven[action.file.path])
            if action.file.path in proven
            else action
            for action in fetches
        ]

    def _fetch(self, fetches: Sequence[Fetch]) -> dict[str, Stamp]:
        if not fetches:
            return {}
        fetching = _Learning(
            self._store,
            self._location,
            self._local.tree,
            self._expected.manifest,
            self._sizing,
            etags={str(path): info.etag for path, info in self._expected.found.files.items()},
            page_cache=self._options.page_cache,
            report=self._report,
            rng=self._rng,
        )
        fetching.contents = self._contents
        try:
            return fetching.run(fetches)
        except IntegrityError as error:
            if error.reference not in ("changed", "object-missing"):
                raise
            what = "an object was replaced or is gone"
            raise changed(what, self._store, self._location.prefix) from error

    def _manifest(self, now: datetime.datetime) -> Manifest:
        """The manifest of what is here. Raises IntegrityError when a stored checksum is another one."""
        files, proofs = [], dict(self._expected.known)
        for file in self._expected.manifest.files:
            content = self._contents.get(file.path)
            if content is None:
                files.append(file)
                continue
            uri = f"s3://{self._store.bucket}/{self._location.key(file.path)}"
            proofs[file.path] = content.require(self._stored[file.path], uri)
            files.append(content.file())
        objects = self._expected.found.files
        record = Record(
            str(self._location),
            {path: (objects[path].etag, proof) for path, proof in proofs.items()},
        )
        return Manifest.of(
            FAMILY,
            files,
            layout={"checked": self._options.layout_check, "warnings": []},
            source={
                "kind": "prefix",
                "name": self._location.prefix.rstrip("/").rpartition("/")[2],
                "size": self._expected.found.total_size,
            },
            created=now.astimezone(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            annotations=record.annotations(),
        )

    def _tell(self, manifest: Manifest) -> None:
        record = Record.of(manifest)
        if self._options.expect_id is None and record is not None:
            proven = sum(proof != "nothing" for _, proof in record.files.values())
            self._report(
                Note(
                    f"{self._location} has no manifest, its files are unverified; the store's checksums"
                    f" and ETags prove {proven} of {len(record.files)}",
                    warning=True,
                )
            )


class _Learning(Fetching):
    """Fetches files whose digests are not known yet, and finds these on the way."""

    contents: Mapping[str, Content]

    def is_right(self, entry: ManifestFile, index: int, chunk: memoryview, digest: bytes) -> bool:
        content = self.contents.get(entry.path)
        if content is None:
            return super().is_right(entry, index, chunk, digest)
        content.take(index, chunk, digest)
        return True


def _content(path: SafePath, info: ObjectInfo) -> Content:
    return Content(path, info.size, info.etag, FAMILY)
