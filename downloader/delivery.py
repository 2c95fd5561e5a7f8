"""One checkpoint on its way to one directory: what is there, what is in the way, the bytes, the result.

    announce -> is_there_already (a pinned id: no store, no SDK) -> is_there_by_manifest (one request)
    -> examine (all that can be refused before the first byte) -> fetch -> summarise

Which of these steps are taken, and for which pairs first, is the program's business.
"""

from __future__ import annotations

import os
import time
from typing import Protocol

from downloader.attempts import Attempts
from downloader.cache import CacheView
from downloader.log import Course, Log
from downloader.orders import Order, Settings
from downloader.outcome import Outcome
from downloader.plan import Plan, room
from staging import __version__
from staging.cli import quantity
from staging.cli.options import Common, cores
from staging.cli.traffic import Traffic
from staging.directory.cache import CONTROL as CACHE_CONTROL
from staging.directory.fs import Fs
from staging.published import read_manifest
from staging.store.store import Store
from staging.sync import SyncOptions, SyncResult, present, present_published, sync
from staging.sync.cached import present_cached, sync_cached
from staging.sync.destination import look
from staging.sync.preflight import Examination, examine
from staging.sync.unverified import examine_unverified, present_unverified, sync_unverified
from staging.transfer.sizing import choose
from staging.vocabulary.errors import NotFound, StagingError
from staging.vocabulary.events import Event, Started
from staging.vocabulary.manifest import Manifest
from staging.vocabulary.paths import CONTROL_DIRECTORY


class Principal(Protocol):
    """Who the requests come from."""

    @property
    def kind(self) -> str:
        """What kind of identity it is."""
        ...

    @property
    def text(self) -> str:
        """Its name, for people."""
        ...


Identity = Principal | StagingError
"""Who the requests come from, or why that is nobody who could make them."""


class Delivery:
    """One order being carried out."""

    def __init__(
        self,
        order: Order,
        common: Common,
        settings: Settings,
        log: Log,
        traffic: Traffic,
        course: Course,
    ) -> None:
        self._order = order
        self._common = common
        self._settings = settings
        self._log = log
        self._traffic = traffic
        self._course = course
        self._host = os.uname().nodename
        self._cache: CacheView | None = None
        if settings.cache is not None:
            self._cache = CacheView(settings.cache, order.directory)
        self._attempts: Attempts | None = None
        self._store: Store | None = None
        self._nobody: StagingError | None = None
        self._published: Manifest | StagingError | None = None
        self._examination: Examination | None = None
        self._result: SyncResult | None = None
        self._seconds = 0.0
        self._told = False

    def announce(self) -> None:
        """Say what is to be done, and what became of earlier attempts."""
        order, settings = self._order, self._settings
        pinned = f"{order.expect_id}, pinned" if order.expect_id else "no id pinned"
        via = f" by {settings.cache}" if settings.cache is not None else ""
        self._log.info(
            "start",
            f"model-downloader {__version__}: {order.location} ({pinned}) to {order.directory}{via}",
            version=__version__,
            uri=str(order.location),
            directory=str(order.directory),
            expect_id=order.expect_id,
            cache=None if settings.cache is None else str(settings.cache),
        )
        if not settings.dry_run:
            root, control = order.directory, CONTROL_DIRECTORY
            if settings.cache is not None:
                root, control = settings.cache, CACHE_CONTROL
            self._attempts = Attempts(
                root, control, host=self._host, shared=settings.cache is not None
            )
            if (told := self._attempts.told()) is not None:
                self._log.info("attempt", told, number=self._attempts.number)

    def is_there_already(self) -> bool:
        """Whether the pinned version is there, complete and untouched; asks no store."""
        return self._order.expect_id is not None and self._is_there(None)

    def is_there_by_manifest(self, identity: Identity) -> bool:
        """The same for a version that is not pinned: the store is asked which one it is.

        When the manifest cannot be had, that is kept for `examine`; nor is it asked for by somebody who
        is not who they should be.
        """
        self._record()
        order = self._order
        if isinstance(identity, StagingError):
            self._nobody = identity
            return False
        try:
            if self._settings.unverified:
                self._result = present_unverified(
                    self._opened_store(),
                    order.location,
                    order.directory,
                    self._report,
                    expect_id=order.expect_id,
                )
                if self._result is not None:
                    self._succeed()
                    return True
            published = read_manifest(
                self._opened_store(), order.location, expect_id=order.expect_id
            )
        except StagingError as error:
            self._published = error
            return False
        self._published = published
        if order.expect_id is None and self._is_there(published):
            return True
        self._tell_facts(published, identity)
        return False

    def examine(self) -> list[StagingError]:
        """Everything that is wrong and can be known before a byte is fetched."""
        if self._nobody is not None:  # who may not ask is told what can be seen from here
            there = look(self._settings.cache or self._order.directory, None, fs=Fs())
            return [self._nobody, *there.findings]
        published = self._published
        assert published is not None  # noqa: S101 - was asked for before
        store, location, directory = (
            self._opened_store(),
            self._order.location,
            self._order.directory,
        )
        options, report = self._options(), self._report
        if self.goes_unverified():
            found = examine_unverified(store, location, directory, options, report)
        elif self._cache is not None:
            found = self._cache.examine(store, location, options, report, manifest=published)
        else:
            found = examine(store, location, directory, options, report, manifest=published)
        self._examination = found
        return list(found.preflight.findings)

    def fetch(self) -> None:
        """Fetch what is missing, and publish."""
        store, location, directory = (
            self._opened_store(),
            self._order.location,
            self._order.directory,
        )
        options, cache, report = self._options(), self._settings.cache, self._report
        checked = None if self._examination is None else self._examination.preflight
        began = time.monotonic()
        if self.goes_unverified():
            self._result = sync_unverified(store, location, directory, options, report)
        elif cache is not None:
            self._result = sync_cached(
                store, location, cache, directory, options, report, checked=checked
            )
        else:
            self._result = sync(store, location, directory, options, report, checked=checked)
        self._seconds = time.monotonic() - began
        self._succeed()

    def failed(self, error: StagingError) -> None:
        """Record that the run ended before this was done."""
        if self._result is None and self._attempts is not None:
            self._attempts.end(error.code, error.reference)
            if self._attempts.trouble is not None:
                self._log.warning(self._attempts.trouble)

    def summarise(self) -> None:
        """Say what came of it, if anything did; once."""
        if self._result is not None and not self._told:
            self._told = True
            outcome = self.outcome()
            self._log.info("done", outcome.text(), **outcome.fields())

    def outcome(self) -> Outcome:
        """What came of it, when all is done."""
        assert self._result is not None  # noqa: S101 - asked for when all is done
        return Outcome(
            order=self._order,
            result=self._result,
            seconds=self._seconds,
            retries=self._traffic.sums().retries,
            attempt=1 if self._attempts is None else self._attempts.number,
        )

    def plan(self) -> Plan:
        """What would be done, when all has been examined."""
        return Plan(
            order=self._order,
            there=self._result,
            examination=self._examination,
            unverified=self.goes_unverified(),
        )

    def _is_there(self, published: Manifest | None) -> bool:
        """Whether it is there: what is published, or the pinned version before anybody was asked."""
        directory, cache = self._order.directory, self._settings.cache
        checkpoint_id = str(self._order.expect_id) if published is None else published.id
        if cache is None and published is not None:
            self._result = present_published(directory, published, self._report)
        elif cache is None:
            self._result = present(directory, checkpoint_id, self._report)
        else:
            change = not self._settings.dry_run
            self._result = present_cached(
                cache, directory, checkpoint_id, self._report, change=change
            )
        if self._result is not None:
            self._succeed()
        return self._result is not None

    def goes_unverified(self) -> bool:
        """Whether nothing is published there, and what lies there is to be fetched all the same."""
        published = self._published
        return (
            self._settings.unverified
            and isinstance(published, NotFound)
            and published.reference == "not-published"
        )

    def _opened_store(self) -> Store:
        """The store of the prefix; the SDK is imported when it is asked for the first time."""
        if self._store is None:
            settings = self._settings
            sizing = choose(
                0,
                memory=settings.memory,
                cores=cores(),
                part_size=settings.part_size,
                concurrency=settings.concurrency,
            )
            self._store = self._common.store(
                self._order.location, connections=sizing.connections + 2, traffic=self._traffic
            )
        return self._store

    def _tell_facts(self, manifest: Manifest, identity: Principal) -> None:
        """Say what is known now, before anything is fetched."""
        if self._cache is not None:
            there = self._cache.look(manifest)
        else:
            there = look(self._order.directory, manifest, fs=Fs())
        region = self._traffic.region
        text = (
            f"{self._order.location} is {manifest.id}: {len(manifest.files)} files,"
            f" {quantity.size(manifest.total_size)}{room(there.needed_bytes, there.free_bytes)};"
            f" as {identity.text}{'' if region is None else f', region {region}'}"
        )
        self._log.info(
            "checkpoint",
            text,
            uri=str(self._order.location),
            id=manifest.id,
            directory=str(self._order.directory),
            files=len(manifest.files),
            total_size=manifest.total_size,
            needed_bytes=there.needed_bytes,
            free_bytes=there.free_bytes,
            principal=identity.text,
            principal_kind=identity.kind,
            region=region,
        )

    def _options(self) -> SyncOptions:
        settings = self._settings
        return SyncOptions(
            memory=settings.memory,
            cores=cores(),
            part_size=settings.part_size,
            concurrency=settings.concurrency,
            expect_id=self._order.expect_id,
            page_cache=settings.page_cache,
            layout_check=settings.layout_check,
            holder=f"{self._host} pid {os.getpid()}",
            wait=settings.wait,
        )

    def _report(self, event: Event) -> None:
        if isinstance(event, Started) and event.phase == "download":
            self._record()
        self._course(event)

    def _succeed(self) -> None:
        if self._attempts is not None:
            self._attempts.succeed()

    def _record(self) -> None:
        if self._attempts is not None:
            self._attempts.begin()
