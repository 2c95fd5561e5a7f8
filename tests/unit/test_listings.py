"""Listings that would never end are refused, those that have many pages are read whole (I11, I14)."""

from __future__ import annotations

import base64
import itertools
import re
from collections.abc import Callable, Iterator

import pytest

from staging.store import s3
from staging.store.s3 import S3Store
from staging.vocabulary.errors import StagingError
from tests.support.s3server import Fault, ReplaceBody, ScriptedS3
from tests.support.shared_s3 import SharedS3, shared_s3

BUCKET = "models"
PREFIX = "laguna-xs/"


@pytest.fixture(scope="module")
def shared() -> Iterator[SharedS3]:
    with shared_s3(BUCKET) as opened:
        yield opened


@pytest.fixture
def server(shared: SharedS3) -> ScriptedS3:
    shared.reset()
    return shared.server


@pytest.fixture
def store(shared: SharedS3, server: ScriptedS3) -> S3Store:
    return shared.store


def truncated(*markers: Callable[[], str]) -> ReplaceBody:
    """Makes a page one that goes on at the given markers, which are whole XML elements."""

    def change(body: bytes) -> bytes:
        body = re.sub(rb"<Next\w+>[^<]*</Next\w+>|<Next\w+ ?/>", b"", body)
        more = "<IsTruncated>true</IsTruncated>" + "".join(marker() for marker in markers)
        return re.sub(rb"<IsTruncated>\w+</IsTruncated>", more.encode(), body)

    return ReplaceBody(change)


def same(element: str) -> Callable[[], str]:
    return lambda: f"<{element}>77</{element}>"


def tokens(numbers: Iterator[int]) -> Callable[[], str]:
    """Tokens that the server takes: of keys that come before all others."""

    def token() -> str:
        name = base64.urlsafe_b64encode(f"k{next(numbers)}".encode()).decode()
        return f"<NextContinuationToken>{name}</NextContinuationToken>"

    return token


def refused(
    server: ScriptedS3, operation: str, answer: ReplaceBody, listing: Callable[[], Iterator[object]]
) -> StagingError:
    server.script(Fault(operation, answer, occurrence=None))
    with pytest.raises(StagingError) as caught:
        for _ in listing():
            pass
    error = caught.value
    assert (error.code, error.reference, error.side) == (1, "request", "store")
    assert f"s3://{BUCKET}/{PREFIX}" in error.message
    assert "no S3 store" in str(error.hint)
    return error


@pytest.mark.parametrize(
    ("marker", "said", "requests"),
    [
        ([], "goes on, but does not say where", 1),
        ([tokens(itertools.repeat(1))], "leads in a circle", 2),
        ([tokens(itertools.cycle([1, 2, 3]))], "leads in a circle", 4),
        ([tokens(itertools.count(1))], "goes on after 5 empty pages", 5),
    ],
    ids=["absent", "same", "cycle", "fresh"],
)
def test_empty_pages_without_end(
    server: ScriptedS3,
    store: S3Store,
    monkeypatch: pytest.MonkeyPatch,
    marker: list[Callable[[], str]],
    said: str,
    requests: int,
) -> None:
    monkeypatch.setattr(s3, "_EMPTY_PAGES", 5)
    answer = truncated(*marker)
    error = refused(server, "ListObjectsV2", answer, lambda: store.list_objects(PREFIX))
    assert said in error.message
    assert server.requests.count("ListObjectsV2") == requests


def test_a_page_with_entries_that_leads_back_to_itself(server: ScriptedS3, store: S3Store) -> None:
    server.bucket(BUCKET).put(f"{PREFIX}a", b"x")
    answer = truncated(tokens(itertools.repeat(1)))
    error = refused(server, "ListObjectsV2", answer, lambda: store.list_objects(PREFIX))
    assert "leads in a circle" in error.message
    assert server.requests.count("ListObjectsV2") == 2


@pytest.mark.parametrize(
    "markers",
    [(), ("NextKeyMarker",), ("NextKeyMarker", "NextUploadIdMarker")],
    ids=["none", "key", "both"],
)
def test_uploads_without_end(server: ScriptedS3, store: S3Store, markers: tuple[str, ...]) -> None:
    answer = truncated(*map(same, markers))
    error = refused(
        server, "ListMultipartUploads", answer, lambda: store.list_multipart_uploads(PREFIX)
    )
    assert ("circle" if len(markers) == 2 else "does not say where") in error.message


def test_parts_without_end(server: ScriptedS3, store: S3Store) -> None:
    upload = store.create_multipart_upload(f"{PREFIX}a")
    answer = truncated(same("NextPartNumberMarker"))
    error = refused(server, "ListParts", answer, lambda: store.list_parts(upload))
    assert "leads in a circle" in error.message


def test_parts_that_say_they_go_on_and_do_not_say_where_end(
    server: ScriptedS3, store: S3Store
) -> None:
    upload = store.create_multipart_upload(f"{PREFIX}a")
    server.script(Fault("ListParts", truncated(), occurrence=None))
    assert list(store.list_parts(upload)) == []


def test_many_pages_with_empty_ones_between_are_read_whole(
    server: ScriptedS3, store: S3Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "_EMPTY_PAGES", 2)
    keys = [f"{PREFIX}{number:04}" for number in range(1500)]
    for key in keys:
        server.bucket(BUCKET).put(key, b"")
    # One empty page on the way, which goes on where the listing began.
    empty = ReplaceBody(lambda body: re.sub(rb"<Contents>.*?</Contents>", b"", body))
    server.script(Fault("ListObjectsV2", empty, occurrence=1))
    found = [info.key for info in store.list_objects(PREFIX)]
    assert found == keys[len(keys) - len(found) :]
    assert len(found) == 500
    assert server.requests.count("ListObjectsV2") == 2
