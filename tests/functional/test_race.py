"""Two uploads of different content for one prefix (I4, I9), stopped and released at every request.

Each writer sends its requests one after another, so that "stopped at its k-th request" names one
instant; it is held before the store executes the request, and again after, before it hears of it.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

import pytest

from staging.source.tar_file import TarFile
from staging.store.s3 import S3Store
from staging.transfer.sizing import MIB
from staging.upload import UploadOptions, UploadResult, upload
from staging.vocabulary.errors import Conflict
from staging.vocabulary.location import S3Location
from staging.vocabulary.manifest import Manifest
from tests.support.archives import small_checkpoint, tar_on_disk
from tests.support.s3server import ScriptedS3
from tests.support.stores import s3_store

BUCKET = "race"
LOCATION = S3Location(BUCKET, "models/m/")
TIMEOUT = 30.0
"""Seconds; a guard against hanging, no expectation."""

REQUESTS = 48
"""More requests than one upload of the test's checkpoints sends (asserted below)."""


@dataclass
class Writer:
    """One upload, on a thread of its own."""

    name: str
    store: S3Store
    tar: Path

    def start(self) -> Future[UploadResult]:
        future: Future[UploadResult] = Future()

        def work() -> None:
            source = TarFile(self.tar)
            options = UploadOptions(memory=256 * MIB, cores=1, concurrency=1, tool=self.name)
            try:
                future.set_result(upload(source, self.store, LOCATION, options))
            except Exception as error:  # handed to the test
                future.set_exception(error)
            finally:
                source.close()

        threading.Thread(target=work, name=self.name, daemon=True).start()
        return future


@dataclass
class Race:
    s3: ScriptedS3
    first: Writer
    second: Writer

    def clear(self) -> None:
        bucket = self.s3.bucket(BUCKET)
        for key in list(bucket):
            bucket.remove(key)
        self.s3.clear_script()
        self.s3.requests.clear()

    def check(self, futures: dict[str, Future[UploadResult]]) -> None:
        """One manifest, every object belongs to it, the loser ended with 15."""
        outcomes = {name: future.exception(TIMEOUT) for name, future in futures.items()}
        winners = [name for name, error in outcomes.items() if error is None]
        assert len(winners) == 1, outcomes
        for name, error in outcomes.items():
            if name not in winners:
                assert isinstance(error, Conflict), error
                assert error.code == 15
        self.check_published(futures[winners[0]].result().manifest.id)

    def check_published(self, checkpoint_id: str) -> None:
        bucket = self.s3.bucket(BUCKET)
        manifest = Manifest.decode(bucket.get(LOCATION.manifest_key))
        assert manifest.id == checkpoint_id
        keys = {LOCATION.key(file.path) for file in manifest.files}
        assert set(bucket.keys()) == {LOCATION.manifest_key, *keys}
        for file in manifest.files:
            data = bucket.get(LOCATION.key(file.path))
            assert manifest.hash.hash(data) == file.digest.value
        assert not bucket.uploads()


@pytest.fixture(autouse=True)
def every_file_goes_as_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The files here are small, and are to take the way of large ones."""
    monkeypatch.setattr("staging.upload.parts.HELD_BELOW", 1)


@pytest.fixture
def race(tmp_path: Path) -> Iterator[Race]:
    files = {"first": small_checkpoint(1), "second": small_checkpoint(2)}
    # Different sets of keys, too: neither writer's objects are a subset of the other's.
    files["first"]["only-first.txt"] = b"1"
    files["second"]["a-file-that-sorts-first.txt"] = b"2"
    with ScriptedS3(buckets=[BUCKET]) as s3, contextlib.ExitStack() as stack:
        writers = {
            name: Writer(
                name,
                stack.enter_context(s3_store(s3, BUCKET, access_key=name)),
                tar_on_disk(tmp_path, content, name=f"{name}.tar"),
            )
            for name, content in files.items()
        }
        yield Race(s3, writers["first"], writers["second"])


def test_alone_each_writer_wins(race: Race) -> None:
    for writer in (race.first, race.second):
        race.clear()
        race.check({writer.name: writer.start()})
        assert 15 < len(race.s3.requests) < REQUESTS


@pytest.mark.slow
@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
def test_one_is_stopped_at_every_request_while_the_other_runs(race: Race, before: bool) -> None:
    stopped = 0
    for occurrence in range(1, REQUESTS):
        race.clear()
        hold = race.s3.hold(None, access_key="first", before=before, occurrence=occurrence)
        first = race.first.start()
        if not _arrives(hold.arrived, first):
            race.check({"first": first})
            break  # it sends no more than that
        stopped += 1
        second = race.second.start()
        second.exception(TIMEOUT)
        hold.release()
        race.check({"first": first, "second": second})
    assert 15 < stopped < REQUESTS - 1


@pytest.mark.slow
@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
def test_both_are_stopped_and_released_in_turn(race: Race, before: bool) -> None:
    """The first stops at request k, the second at request j; the first ends, then the second."""
    crossings = 0
    for occurrence in range(8, REQUESTS, 6):
        for other in range(9, REQUESTS, 5):
            race.clear()
            held = race.s3.hold(None, access_key="first", before=before, occurrence=occurrence)
            other_held = race.s3.hold(
                None, access_key="second", before=not before, occurrence=other
            )
            first = race.first.start()
            _arrives(held.arrived, first)
            second = race.second.start()
            crossed = _arrives(other_held.arrived, second)
            held.release()
            first.exception(TIMEOUT)
            other_held.release()
            race.check({"first": first, "second": second})
            if not crossed:
                break  # the second ended before, and would before any later request
            crossings += 1
    assert crossings > 10


@pytest.mark.slow
def test_the_same_content_twice_is_no_conflict(race: Race) -> None:
    """Writers of the same id may meet anywhere: both succeed, and there is one manifest."""
    twin = Writer("second", race.second.store, race.first.tar)
    for occurrence in range(1, REQUESTS):
        race.clear()
        hold = race.s3.hold(None, access_key="first", before=True, occurrence=occurrence)
        first = race.first.start()
        arrived = _arrives(hold.arrived, first)
        second = twin.start()
        assert second.exception(TIMEOUT) is None
        hold.release()
        assert first.exception(TIMEOUT) is None
        assert first.result().manifest.id == second.result().manifest.id
        race.check_published(first.result().manifest.id)
        if not arrived:
            break  # it sends no more than that
    assert 15 < occurrence < REQUESTS - 1


def _arrives(arrived: threading.Event, future: Future[UploadResult]) -> bool:
    """Wait until a request is held, or until the writer ended without sending that many."""
    while not arrived.wait(0.01):
        if future.done():
            return arrived.is_set()
    return True
