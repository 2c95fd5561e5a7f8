"""A Hub repository as a source: one commit, digests, retries, the token (I1, I7, I10, I11, I13, I16).

Against a stand-in of the Hub over loopback; huggingface_hub's own calls tell whether that is one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import itertools
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import HfApi, constants
from huggingface_hub.hf_api import RepoFile

from staging.source import hub as hub_module
from staging.source import hub_http
from staging.source.hub import Hub, HubLocation
from staging.source.hub_http import MAX_ATTEMPTS, HubHttp
from staging.source.pipe import Pipe
from staging.source.source import Source
from staging.store.memory import MemoryStore
from staging.transfer.scheduler import Cancellation, Cancelled
from staging.transfer.sizing import MIB
from staging.upload import UploadOptions, upload
from staging.vocabulary.digest import CHUNK_SIZE, HashFamily
from staging.vocabulary.errors import (
    AccessDenied,
    IntegrityError,
    MalformedInput,
    NotFound,
    StagingError,
    StoreUnavailable,
    UsageError,
)
from staging.vocabulary.location import S3Location
from tests.support.archives import small_checkpoint, tar_bytes, weights
from tests.support.hub import (
    Answer,
    Change,
    HubRequest,
    StandInHub,
    cut,
    flipped,
    on,
    stalled,
    status,
    with_headers,
)

REPO = "org/model"
TOKEN = "hf_NobodyMayReadThisToken"
FILES = small_checkpoint()
ASIDE = {
    ".gitattributes": b"*.safetensors filter=lfs",
    ".cache/huggingface/x.lock": b"",
    ".git/config": b"x",
    ".checkpoint/manifest.json": b"{}",
    ".checkpoint-complete": b"",
}
LOCATION = S3Location("models", "checkpoints/m/")


@pytest.fixture(autouse=True)
def fresh_session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No connection outlives a test, and what huggingface_hub might write or read is watched."""
    monkeypatch.setenv("HF_TOKEN", "hf_ambient")
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "hf/token"))
    monkeypatch.setattr(constants, "AGENT_HARNESSES_PATH", str(tmp_path / "hf/agents.json"))
    yield
    huggingface_hub.close_session()


@pytest.fixture
def hub() -> Iterator[StandInHub]:
    with StandInHub(token=TOKEN) as server:
        server.commit(REPO, FILES)
        yield server


def http(hub: StandInHub, **changes: Any) -> HubHttp:
    settings: dict[str, Any] = {
        "endpoint": hub.endpoint,
        "token": None,
        "backoff": 0.001,
        "rng": random.Random(7),
    }
    return HubHttp(**{**settings, **changes})


def source(
    hub: StandInHub,
    revision: str = "main",
    *,
    repo: str = REPO,
    memory: int = 8 * MIB,
    concurrency: int = 4,
    **changes: Any,
) -> Hub:
    location = HubLocation(repo, revision)
    return Hub(location, http(hub, **changes), memory=memory, concurrency=concurrency)


def read_all(opened: Source, step: int = MIB) -> dict[str, bytes]:
    """Every file of a source, read in steps."""
    found = {}
    with contextlib.closing(opened):
        for file in opened.files():
            data = bytearray(file.size)
            for offset in range(0, file.size, step):
                with memoryview(data)[offset : offset + step] as view:
                    opened.read_into(file, offset, view)
            found[str(file.path)] = bytes(data)
        opened.finish()
    return found


def first_read(opened: Hub) -> StagingError:
    """What reading ends with."""
    with pytest.raises(StagingError) as caught:
        read_all(opened)
    return caught.value


# What a repository is


@pytest.mark.parametrize("family", list(HashFamily))
def test_the_id_is_that_of_a_tar_of_the_same_files(hub: StandInHub, family: HashFamily) -> None:
    files = {
        **FILES,
        "model.safetensors": weights(2 * CHUNK_SIZE + 54321),
        "sub dir/ü+%#?&.json": b"{}",
        "exact.bin": weights(CHUNK_SIZE, 2)[:CHUNK_SIZE],
    }
    commit = hub.commit(REPO, {**files, **ASIDE})
    options = UploadOptions(memory=256 * MIB, cores=1, hash=family)
    manifests = []
    sources: list[Source] = [
        Pipe(io.BytesIO(tar_bytes(files))),
        source(hub, memory=3 * MIB, concurrency=3),
        source(hub, memory=64 * MIB, concurrency=1),
    ]
    for opened in sources:
        store = MemoryStore("models")
        with contextlib.closing(opened):
            manifests.append(upload(opened, store, LOCATION, options).manifest)
    assert len({manifest.id for manifest in manifests}) == 1
    assert manifests[1].source == {
        "kind": "hub",
        "name": f"{REPO}@{commit[:12]}",
        "size": sum(map(len, files.values())),
    }


def test_files_come_in_order_with_what_names_their_bytes(hub: StandInHub) -> None:
    names = ("a.json", "a/.gitattributes", "a/z.json", "b.bin")
    files = {"b.bin": b"1", "a/z.json": b"{}", "a.json": b"", "a/.gitattributes": b""}
    commit = hub.commit(REPO, {**files, **ASIDE})
    opened = source(hub)
    assert opened.identity == f"{REPO}@{commit}"
    assert opened.name == f"{REPO}@{commit[:12]}"
    assert opened.size == 3
    stamps = {}
    for file in opened.files():
        stamps[str(file.path)] = file.stamp
        with memoryview(bytearray(file.size)) as view:
            opened.read_into(file, 0, view)
    opened.finish()
    assert tuple(stamps) == names
    assert stamps["a.json"] == "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"  # git's empty blob
    assert stamps["b.bin"] == "6b86b273ff34fce19d6b804eff5a3f5747ada4eaa22f1d49c01e52ddb7875b4b"


@pytest.mark.parametrize("page_size", [1, 2, 3, 1000])
def test_listings_are_read_to_their_last_page(page_size: int) -> None:
    files = {f"layer-{number:03}/x.json": b"%d" % number for number in range(11)}
    with StandInHub(page_size=page_size) as hub:
        hub.commit(REPO, files)
        assert read_all(source(hub)) == files
        entries = 2 * len(files)  # each has a directory of its own
        assert len(hub.log("hub", "/tree/")) == -(-entries // page_size)


def test_a_revision_is_asked_about_once_and_everything_else_by_commit(hub: StandInHub) -> None:
    big = {"model.safetensors": weights(300_000), "config.json": b'{"model_type": "tiny"}'}
    commit = hub.commit(REPO, big)
    opened = source(hub, memory=100_000, concurrency=2)
    files = opened.files()
    first = next(files)
    hub.commit(REPO, {"model.safetensors": weights(300_000, 9), "config.json": b"[1]"})
    found = {}
    for file in itertools.chain([first], files):
        data = bytearray(file.size)
        opened.read_into(file, 0, memoryview(data))
        found[str(file.path)] = bytes(data)
    opened.finish()
    assert found == big
    about_main = [request for request in hub.log("hub") if "main" in request.path]
    assert [request.path for request in about_main] == [f"/api/models/{REPO}/revision/main"]
    assert all(commit in request.path for request in hub.log("hub")[1:])
    assert [request.path for request in hub.log("hub", "/tree/")] == [
        f"/api/models/{REPO}/tree/{commit}"
    ]


@pytest.mark.parametrize("ref", ["v1.0", "refs/pr/7", "feature/fast"])
def test_branches_tags_and_commits_are_revisions(hub: StandInHub, ref: str) -> None:
    commit = hub.commit(REPO, {"config.json": b"[2]"}, ref=ref)
    for revision in (ref, commit):
        opened = source(hub, revision)
        assert opened.commit == commit
        assert read_all(opened) == {"config.json": b"[2]"}


def test_a_repository_that_moved_is_followed_with_the_token(hub: StandInHub) -> None:
    hub.restrict(REPO, gated=True)
    hub.move(REPO, "new/name")
    assert read_all(source(hub, token=TOKEN)) == FILES


def test_no_request_is_made_that_is_not_needed(hub: StandInHub) -> None:
    hub.commit(REPO, {"a.bin": b"x" * 300, "b.bin": b"", "c.json": b"{}"})
    read_all(source(hub, memory=100, concurrency=1), step=70)
    assert [(request.side, request.range) for request in hub.requests[2:]] == [
        ("hub", (0, 100)),  # the link to the storage is asked for once
        ("cdn", (0, 100)),
        ("cdn", (100, 200)),
        ("cdn", (200, 300)),
        ("hub", None),  # a whole file needs no range, an empty one no request
        ("hub", None),
    ]
    pinned = [request.headers.get("if-match") for request in hub.log("cdn")]
    assert pinned[0] is None
    assert pinned[1] is not None
    assert pinned[1] == pinned[2]
    assert {request.headers["accept-encoding"] for request in hub.requests} == {"identity"}


# Read ahead


def test_ranges_are_fetched_in_parallel_across_files(hub: StandInHub) -> None:
    hub.commit(REPO, {"a.bin": b"a" * 150, "b.bin": b"b" * 100, "c.bin": b"c" * 100})
    together = threading.Barrier(4, timeout=30)  # breaks unless four are in flight at once

    def meet(answer: Answer) -> Answer:
        together.wait()
        return answer

    hub.fault(meet, where=on("cdn"))
    opened = source(hub, memory=400, concurrency=4)
    assert read_all(opened)["c.bin"] == b"c" * 100
    assert not together.broken


@pytest.mark.parametrize("concurrency", [1, 3, 8])
def test_no_more_is_asked_for_than_the_memory_holds(hub: StandInHub, concurrency: int) -> None:
    sizes = [0, 1, 999, 1000, 1001, 5000, 3, 3, 20_000]
    files = {f"{n}.bin": random.Random(n).randbytes(size) for n, size in enumerate(sizes)}
    hub.commit(REPO, files)
    memory = 4000
    opened = source(hub, memory=memory, concurrency=concurrency)
    most = memory // concurrency
    used = 0

    def asked() -> int:
        """Bytes that were asked for of the storage, each range once."""
        ranges = {(request.path, request.range) for request in hub.log("cdn")}
        return sum(r[1] - r[0] if r else whole[path] for path, r in ranges)

    whole = {f"/repos/{hashlib.sha256(data).hexdigest()}": len(data) for data in files.values()}
    for file in opened.files():
        for offset in range(0, file.size, 700):
            piece = bytearray(min(700, file.size - offset))
            opened.read_into(file, offset, memoryview(piece))
            assert piece == files[file.path][offset : offset + len(piece)]
            used += len(piece)
            assert asked() <= used + memory
    opened.finish()
    assert asked() == sum(sizes)
    lengths = [r[1] - r[0] for request in hub.log("cdn") if (r := request.range)]
    assert max(lengths) <= most


def test_nothing_is_asked_for_any_more_after_close(hub: StandInHub) -> None:
    hub.commit(REPO, {"a.bin": b"a" * 100_000})
    release = threading.Event()
    hub.fault(stalled(10, release), where=on("cdn"))
    opened = source(hub, memory=2000, concurrency=2)
    files = opened.files()
    file = next(files)
    opened.close()
    with pytest.raises(Cancelled):
        opened.read_into(file, 0, memoryview(bytearray(5000)))
    release.set()
    with pytest.raises(RuntimeError, match="to its end"):
        next(files)
    assert len(hub.log("cdn")) <= 2  # what the memory holds


def test_out_of_order_reads_are_a_mistake_of_the_caller(hub: StandInHub) -> None:
    hub.commit(REPO, {"a.bin": b"a" * 100, "b.bin": b"b"})
    opened = source(hub)
    files = opened.files()
    file = next(files)
    with pytest.raises(RuntimeError, match="in order"):
        opened.read_into(file, 1, memoryview(bytearray(1)))
    with pytest.raises(ValueError, match="100 bytes"):
        opened.read_into(file, 0, memoryview(bytearray(101)))
    with pytest.raises(RuntimeError, match="to its end"):
        next(files)
    with pytest.raises(RuntimeError, match="to its end"):
        opened.finish()


# Bytes


@pytest.mark.parametrize(
    ("name", "where", "kind"),
    [("model.safetensors", on("cdn"), "SHA-256"), ("config.json", on("hub", "cache"), "git SHA-1")],
)
def test_wrong_bytes_are_an_integrity_error(
    hub: StandInHub, name: str, where: Callable[[HubRequest], bool], kind: str
) -> None:
    hub.commit(REPO, {name: weights(5000)})
    hub.fault(flipped(-1), where=where)
    error = first_read(source(hub))
    assert isinstance(error, IntegrityError)
    assert (error.reference, error.side) == ("hub-digest", "source")
    assert kind in error.message
    assert name in error.message


def test_wrong_bytes_publish_nothing(hub: StandInHub) -> None:
    hub.fault(flipped(100), where=on("cdn"))
    store = MemoryStore("models")
    opened = source(hub)
    with contextlib.closing(opened), pytest.raises(IntegrityError):
        upload(opened, store, LOCATION, UploadOptions(memory=256 * MIB, cores=1))
    assert [info.key for info in store.list_objects("")] == []


def test_an_empty_file_has_the_digest_of_nothing(hub: StandInHub) -> None:
    hub.commit(REPO, {"empty.txt": b"", "full.txt": b"x"})
    change = replaced(b"e69de29bb2d1d6434b8b29ae775ad8c2e48c5391", b"0" * 40)
    hub.fault(change, where=on("hub", "/tree/"))
    assert first_read(source(hub)).reference == "hub-digest"


@pytest.mark.parametrize("side", ["hub", "cdn"])
@pytest.mark.parametrize(
    "change", [cut(0), cut(7), cut(400), status(503), status(429, Retry_After="0"), status(500)]
)
def test_failures_that_pass_are_repeated_from_where_they_broke(
    hub: StandInHub, side: Any, change: Change
) -> None:
    files = {"a.bin": weights(3000), "b.json": b"[%s]" % (b"1," * 600)}
    hub.commit(REPO, files)
    # A cut does nothing to redirects, which have no body; the listing and small files have one.
    hub.fault(change, where=on(side), occurrences={1, 3, 4, 7})
    assert read_all(source(hub, memory=2000, concurrency=2)) == files


def test_a_broken_body_is_continued_not_begun_again(hub: StandInHub) -> None:
    hub.commit(REPO, {"a.bin": weights(3000)})
    size = len(weights(3000))
    hub.fault(cut(1234), where=on("cdn"), occurrences={1})
    read_all(source(hub, memory=MIB, concurrency=1))
    assert [request.range for request in hub.log("cdn")] == [None, (1234, size)]


def test_a_body_without_a_length_that_ends_early_is_continued(hub: StandInHub) -> None:
    hub.commit(REPO, {"a.bin": weights(3000)})
    where = on("cdn")
    hub.fault(with_headers(Content_Length=None, Connection="close"), where=where, occurrences={1})
    hub.fault(cut(100), where=where, occurrences={1})
    assert read_all(source(hub, concurrency=1)) == {"a.bin": weights(3000)}
    assert [request.range for request in hub.log("cdn")][1:] == [(100, len(weights(3000)))]


def test_a_stalled_body_is_given_up_and_continued(hub: StandInHub) -> None:
    hub.commit(REPO, {"a.bin": weights(3000)})
    release = threading.Event()
    hub.fault(stalled(100, release), where=on("cdn"), occurrences={1})
    try:
        found = read_all(source(hub, concurrency=1, read_timeout=0.2))
    finally:
        release.set()
    assert found == {"a.bin": weights(3000)}
    assert [request.range for request in hub.log("cdn")][1:] == [(100, len(weights(3000)))]


def test_a_trickle_is_given_up(hub: StandInHub) -> None:
    hub.commit(REPO, {"a.bin": weights(3000)})
    seconds = itertools.count(step=61)
    error = first_read(source(hub, concurrency=1, clock=lambda: next(seconds)))
    assert isinstance(error, StoreUnavailable)
    assert "less than" in error.message


@pytest.mark.parametrize(
    ("change", "where", "about"),
    [
        (status(503), on("hub", "/revision/"), "main"),
        (status(429, Retry_After="0"), on("hub", "/tree/"), "listing"),
        (status(500), on("hub", "/resolve/"), "a.bin"),
        (cut(0), on("cdn"), "a.bin"),
    ],
)
def test_failures_that_stay_end_after_a_bounded_number_of_requests(
    hub: StandInHub, change: Change, where: Callable[[HubRequest], bool], about: str
) -> None:
    hub.commit(REPO, {"a.bin": weights(3000)})
    hub.fault(change, where=where)
    with pytest.raises(StoreUnavailable, match=about) as caught:
        read_all(source(hub, memory=MIB, concurrency=1))
    assert (caught.value.reference, caught.value.side) == ("hub-unavailable", "source")
    assert len([request for request in hub.requests if where(request)]) == MAX_ATTEMPTS


def test_a_hub_that_is_not_there_is_unavailable(hub: StandInHub) -> None:
    client = http(hub)
    nowhere = StandInHub()
    with nowhere:
        dead = nowhere.endpoint
    with pytest.raises(StoreUnavailable, match=r"127\.0\.0\.1 did not give hf://org/model@main"):
        Hub(HubLocation(REPO), http(hub, endpoint=dead))
    assert Hub(HubLocation(REPO), client).commit


class Impatient(Cancellation):
    """Writes down how long it was to sleep."""

    def __init__(self) -> None:
        super().__init__()
        self.slept: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.check()


def test_the_hub_says_how_long_to_wait_within_bounds(hub: StandInHub) -> None:
    opened = source(hub)
    asked = ["7", "999999", "soon", "-1"]
    for number, text in enumerate(asked, 1):
        change = status(429, Retry_After=text)
        hub.fault(change, where=on("hub", "/resolve/"), occurrences={number})
    file = hub_module.list_files(http(hub), REPO, opened.commit)[0]
    impatient = Impatient()
    data = bytearray(file.size)
    http(hub, backoff=0.01).read_into(file, 0, memoryview(data), impatient)
    assert bytes(data) == FILES[file.name]
    first, second, *others = impatient.slept
    assert (first, second) == (7, 60)
    assert [seconds <= 0.01 * 2**n for n, seconds in enumerate(others, 2)] == [True, True]


def test_waiting_can_be_called_off(hub: StandInHub) -> None:
    opened = source(hub)
    hub.fault(status(429, Retry_After="999999"), where=on("hub", "/resolve/"))
    cancelled = Cancellation()
    file = hub_module.list_files(http(hub), REPO, opened.commit)[0]
    ended = threading.Event()

    def read() -> None:
        with contextlib.suppress(Cancelled):
            http(hub).read_into(file, 0, memoryview(bytearray(file.size)), cancelled)
        ended.set()

    thread = threading.Thread(target=read)
    thread.start()
    assert hub.wait_for(lambda: any("/resolve/" in request.path for request in hub.requests))
    cancelled.set()
    thread.join(30)
    assert ended.is_set()


def test_links_that_expire_are_asked_for_again(hub: StandInHub) -> None:
    hub.commit(REPO, {"a.bin": b"a" * 1000})
    opened = source(hub, memory=100, concurrency=1)
    files = opened.files()
    file = next(files)
    data = bytearray(1000)
    for offset in range(0, 1000, 100):
        if offset == 500:
            hub.expire_links()
        opened.read_into(file, offset, memoryview(data)[offset : offset + 100])
    assert list(files) == []
    assert data == b"a" * 1000
    assert len(hub.log("hub", "/resolve/")) == 2


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (with_headers(Content_Range="bytes 0-99/101"), on("cdn")),
        (with_headers(Content_Range="bytes 0-99/9999999999"), on("cdn")),
        (status(412), on("cdn")),
        (status(416), on("cdn")),
        (with_headers(X_Linked_Size="1"), on("hub", "/resolve/")),
        (with_headers(X_Linked_Etag=f'"{"0" * 64}"'), on("hub", "/resolve/")),
        (with_headers(X_Repo_Commit="0" * 40), on("hub", "/resolve/")),
    ],
)
def test_a_file_that_is_not_the_listed_one_is_refused(
    hub: StandInHub, change: Change, where: Callable[[HubRequest], bool]
) -> None:
    hub.commit(REPO, {"a.bin": b"a" * 200})
    hub.fault(change, where=where)
    error = first_read(source(hub, memory=100, concurrency=1))
    assert isinstance(error, MalformedInput)
    assert (error.reference, error.side) == ("source-changed", "source")
    assert "a.bin" in error.message


@pytest.mark.parametrize("extra", [b"", b"abc"])
def test_a_whole_file_of_another_size_is_refused(hub: StandInHub, extra: bytes) -> None:
    hub.commit(REPO, {"a.json": b"a" * 200})

    def resized(answer: Answer) -> Answer:
        body = answer.body[:100] if not extra else answer.body + extra
        return dataclasses.replace(answer, body=body)

    hub.fault(resized, where=on("hub", "cache"))
    assert first_read(source(hub)).reference == "source-changed"


def test_an_etag_that_changes_between_ranges_is_refused(hub: StandInHub) -> None:
    hub.commit(REPO, {"a.bin": b"a" * 200})
    hub.fault(with_headers(ETag='"other"'), where=on("cdn"), occurrences={2})
    error = first_read(source(hub, memory=100, concurrency=1))
    assert error.reference == "source-changed"
    assert "ETag" in error.message


def test_storage_without_etags_will_do(hub: StandInHub) -> None:
    hub.commit(REPO, {"a.bin": b"a" * 200})
    hub.fault(with_headers(ETag=None), where=on("cdn"))
    assert read_all(source(hub, memory=100, concurrency=1)) == {"a.bin": b"a" * 200}
    assert all("if-match" not in request.headers for request in hub.log("cdn"))


@pytest.mark.parametrize("extra", [b"", b"more"])
def test_small_files_need_no_ranges(hub: StandInHub, extra: bytes) -> None:
    files = {"a.bin": random.Random(3).randbytes(300_000)}
    hub.commit(REPO, files)
    hub.fault(lambda answer: Answer(200, {}, files["a.bin"] + extra), where=on("cdn"))
    # Without a length only the last range can tell that the file goes on.
    hub.fault(with_headers(Content_Length=None, Connection="close"), where=on("cdn"))
    opened = source(hub, memory=70_000, concurrency=1)
    if extra:
        assert first_read(opened).reference == "source-changed"
    else:
        assert read_all(opened) == files


def test_large_files_do(hub: StandInHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_http, "_MOST_WITHOUT_RANGES", 199)
    hub.commit(REPO, {"a.bin": b"a" * 200})
    hub.fault(lambda answer: Answer(200, {}, b"a" * 200), where=on("cdn"))
    error = first_read(source(hub, memory=100, concurrency=1))
    assert error.reference == "hub-answer"
    assert "ranges" in error.message


# Refusals


@pytest.mark.parametrize(
    ("repo", "revision", "token", "said", "kind"),
    [
        ("org/nothing", "main", TOKEN, "no repository", NotFound),
        ("org/nothing", "main", None, "no repository", NotFound),
        (REPO, "v9", None, "not the revision", NotFound),
        (REPO, "0" * 40, None, "not the revision", NotFound),
    ],
)
def test_what_is_not_there_is_named(
    hub: StandInHub,
    repo: str,
    revision: str,
    token: str | None,
    said: str,
    kind: type[StagingError],
) -> None:
    with pytest.raises(kind, match=said) as caught:
        source(hub, revision, repo=repo, token=token)
    assert (caught.value.code, caught.value.reference) == (10, "hub-not-found")
    assert caught.value.side == "source"
    assert f"hf://{repo}@{revision}" in caught.value.message
    assert len(hub.requests) == 1


@pytest.mark.parametrize("token", [None, "hf_wrong"])
def test_a_private_repository_looks_as_if_it_were_not_there(
    hub: StandInHub, token: str | None
) -> None:
    hub.restrict(REPO, private=True)
    with pytest.raises(NotFound) as caught:
        source(hub, token=token)
    assert "HF_TOKEN" in str(caught.value.hint)
    assert read_all(source(hub, token=TOKEN)) == FILES


@pytest.mark.parametrize("token", [None, "hf_wrong"])
def test_a_gated_repository_is_denied_with_the_way_in(hub: StandInHub, token: str | None) -> None:
    hub.restrict(REPO, gated=True)
    error = first_read(source(hub, token=token, concurrency=1))
    assert isinstance(error, AccessDenied)
    assert (error.code, error.reference, error.side) == (12, "hub-denied", "source")
    assert "licence" in str(error.hint)
    assert "HF_TOKEN" in str(error.hint)
    assert len(hub.log("hub", "/resolve/")) == 1
    assert read_all(source(hub, token=TOKEN)) == FILES


@pytest.mark.parametrize(
    ("code", "kind"), [(401, AccessDenied), (403, AccessDenied), (404, NotFound), (410, NotFound)]
)
def test_refusals_without_a_code_are_told_by_their_status(
    hub: StandInHub, code: int, kind: type
) -> None:
    hub.fault(status(code), where=on("hub", "/revision/"))
    with pytest.raises(kind):
        source(hub)


def test_fresh_links_that_the_storage_refuses_are_denied(hub: StandInHub) -> None:
    hub.fault(status(403), where=on("cdn"))
    error = first_read(source(hub, concurrency=1))
    assert error.reference == "hub-denied"
    assert "storage" in error.message


def test_a_listed_file_that_is_missing_is_not_found(hub: StandInHub) -> None:
    hub.fault(status(404, X_Error_Code="EntryNotFound"), where=on("hub", "/resolve/"))
    error = first_read(source(hub, concurrency=1))
    assert isinstance(error, NotFound)
    assert "config.json" in error.message


@pytest.mark.parametrize(
    "name",
    [
        "../x.json",
        "/x.json",
        "a//b.json",
        "a\\b.json",
        "a/./b.json",
        "u\u0308.json",
        "a\u202eb.json",
        "x" * 256,
        "a\nb",
    ],
)
def test_unsafe_names_are_refused_before_any_byte(hub: StandInHub, name: str) -> None:
    hub.commit(REPO, {"config.json": b'{"model_type": "tiny"}', name: b"x"})
    with pytest.raises(MalformedInput) as caught:
        source(hub)
    assert (caught.value.code, caught.value.reference) == (16, "hub-name")
    assert caught.value.message.isprintable()
    assert hub.log("hub", "/resolve/") == []


@pytest.mark.parametrize("names", [("A.json", "a.json"), ("a", "a/b"), ("X/a", "x/b")])
def test_names_that_collide_are_refused(hub: StandInHub, names: tuple[str, str]) -> None:
    hub.commit(REPO, dict.fromkeys(names, b"{}"))
    with pytest.raises(MalformedInput, match="collide") as caught:
        source(hub)
    assert caught.value.reference == "hub-name"


@pytest.mark.parametrize("files", [{}, ASIDE])
def test_a_repository_without_files_is_refused(hub: StandInHub, files: dict[str, bytes]) -> None:
    hub.commit(REPO, files)
    with pytest.raises(MalformedInput, match="no files") as caught:
        source(hub)
    assert caught.value.reference == "hub-empty"


def replaced(old: bytes, new: bytes) -> Change:
    """A body in which some bytes are others."""

    def change(answer: Answer) -> Answer:
        assert old in answer.body
        return dataclasses.replace(answer, body=answer.body.replace(old, new))

    return change


def document(body: bytes) -> Change:
    return lambda answer: Answer(200, {}, body)


SHA = b'"oid": "' + b"a" * 40 + b'"'
SHA256 = b'"oid": "' + b"a" * 64 + b'"'


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"<html>",
        b"[1]",
        b'[{"type": "file"}]',
        b'[{"type": "file", "path": "a", "size": true, ' + SHA + b"}]",
        b'[{"type": "file", "path": "a", "size": -1, ' + SHA + b"}]",
        b'[{"type": "file", "path": "a", "size": 9007199254740992, ' + SHA + b"}]",
        b'[{"type": "file", "path": "a", "size": 1, "size": 2, ' + SHA + b"}]",
        b'[{"type": "file", "path": 7, "size": 1, ' + SHA + b"}]",
        b'[{"type": "file", "path": "a", "size": 1, "oid": "main"}]',
        b'[{"type": "file", "path": "a", "size": 1, "lfs": 1, ' + SHA + b"}]",
        b'[{"type": "file", "path": "a", "size": 1, "lfs": {"size": 1}, ' + SHA + b"}]",
        b'[{"type": "file", "path": "a", "size": 1, "lfs": {"size": 2, ' + SHA256 + b"}}]",
        b'[{"type": "submodule", "path": "a", "size": 1, ' + SHA + b"}]",
    ],
)
def test_a_listing_that_makes_no_sense_is_refused(hub: StandInHub, body: bytes) -> None:
    hub.fault(document(body), where=on("hub", "/tree/"))
    with pytest.raises(MalformedInput) as caught:
        source(hub)
    assert (caught.value.code, caught.value.reference) == (16, "hub-malformed")
    assert caught.value.side == "source"


@pytest.mark.parametrize(
    "link", ["<https://x/?a=1>; rel=next", '</api?cursor=7>; rel="next"', '<::>; rel="next"']
)
def test_a_listing_without_an_end_is_refused(hub: StandInHub, link: str) -> None:
    hub.fault(with_headers(Link=link), where=on("hub", "/tree/"))
    with pytest.raises(MalformedInput) as caught:
        source(hub)
    assert caught.value.reference == "hub-malformed"
    assert len(hub.log("hub", "/tree/")) <= 2


def test_listings_are_bounded(hub: StandInHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "MAX_FILES", 3)
    with pytest.raises(MalformedInput, match="more than 3 files"):
        source(hub)
    hub.fault(document(b" " * (17 * MIB)), where=on("hub", "/tree/"))
    with pytest.raises(MalformedInput, match="longer than"):
        source(hub)


@pytest.mark.parametrize("body", [b"[]", b"{}", b'{"sha": "main"}', b'{"sha": 7}'])
def test_a_revision_that_is_no_commit_is_refused(hub: StandInHub, body: bytes) -> None:
    hub.fault(document(body), where=on("hub", "/revision/"))
    with pytest.raises(MalformedInput, match="names no commit"):
        source(hub)


def test_a_commit_is_never_another_one(hub: StandInHub) -> None:
    body = b'{"sha": "%s"}' % (b"b" * 40)
    hub.fault(document(body), where=on("hub", "/revision/"))
    with pytest.raises(MalformedInput, match="another commit"):
        source(hub, "a" * 40)


@pytest.mark.parametrize(
    ("location", "reference"),
    [
        ("http://[", "hub-malformed"),
        ("ftp://127.0.0.1/x", "hub-malformed"),
        ("https://", "hub-malformed"),
        ("/same/again", "hub-not-found"),
    ],
)
def test_redirects_lead_to_urls(hub: StandInHub, location: str, reference: str) -> None:
    hub.fault(status(302, Location=location), where=on("hub", "/resolve/"))
    assert first_read(source(hub, concurrency=1)).reference == reference


def test_redirects_end(hub: StandInHub) -> None:
    hub.fault(lambda answer: Answer(307, {"Location": "?again"}), where=on("hub", "/tree/"))
    with pytest.raises(StagingError, match="in circles") as caught:
        source(hub)
    assert caught.value.reference == "hub-answer"
    assert len(hub.log("hub", "/tree/")) == 6


# Secrets, and what is left alone


def test_the_token_goes_to_the_hub_alone(hub: StandInHub) -> None:
    hub.restrict(REPO, gated=True)
    read_all(source(hub, token=TOKEN))
    assert {request.headers.get("authorization") for request in hub.log("hub")} == {
        f"Bearer {TOKEN}"
    }
    assert hub.log("cdn")
    for request in hub.log("cdn"):
        assert "authorization" not in request.headers
        assert TOKEN not in repr(request)


def test_no_token_means_none(hub: StandInHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUGGING_FACE_HUB_TOKEN", "hf_ambient")
    token = Path(constants.HF_TOKEN_PATH)
    token.parent.mkdir()
    token.write_text("hf_stored")
    read_all(source(hub))
    assert all("authorization" not in request.headers for request in hub.requests)


def test_nothing_is_written_to_disk(hub: StandInHub, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    code = f"""
import sys
from staging.source.hub import Hub, HubLocation
from staging.source.hub_http import HubHttp
source = Hub(HubLocation({REPO!r}), HubHttp(endpoint={hub.endpoint!r}, token={TOKEN!r}))
for file in source.files():
    source.read_into(file, 0, memoryview(bytearray(file.size)))
source.finish()
"""
    environment = {"HOME": str(home), "HF_HOME": str(home / "hf"), "TMPDIR": str(home)}
    process = subprocess.run(
        [sys.executable, "-B", "-c", code],
        cwd=Path(__file__).parents[2],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (process.returncode, process.stdout, process.stderr) == (0, "", "")
    assert list(home.iterdir()) == []
    assert hub.log("cdn")
    assert not hub.log("hub", "agent")


def test_the_library_is_loaded_when_it_is_needed() -> None:
    code = "import sys, staging.source.hub; print('huggingface_hub' in sys.modules)"
    process = subprocess.run(
        [sys.executable, "-B", "-c", code],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert process.stdout == "False\n"


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UsageError, match="huggingface_hub") as caught:
        HubHttp()
    assert caught.value.reference == "extra-missing"
    assert "[stage]" in str(caught.value.hint)


def test_offline_mode_is_said(hub: StandInHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UsageError) as caught:
        source(hub)
    assert caught.value.reference == "hub-offline"
    assert hub.requests == []


LOUD = f"token={TOKEN} Bearer {TOKEN} https://cdn/x?X-Amz-Signature=secret-1"


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (status(401, X_Error_Message=LOUD), on("hub", "/revision/")),
        (status(403, X_Error_Message=LOUD, X_Error_Code="GatedRepo"), on("hub", "/resolve/")),
        (status(404, X_Error_Message=LOUD, X_Error_Code="RepoNotFound"), on("hub", "/tree/")),
        (status(404, X_Error_Message=LOUD, X_Error_Code="EntryNotFound"), on("hub", "/resolve/")),
        (status(400, X_Error_Message=LOUD), on("hub", "/resolve/")),
        (status(400, X_Error_Message=LOUD), on("cdn")),
        (status(403, X_Error_Message=LOUD), on("cdn")),
        (status(503, X_Error_Message=LOUD), on("cdn")),
        (status(302, Location=f"ftp://{TOKEN}@x/?X-Amz-Signature=secret-1"), on("cdn")),
        (status(302, Location=f"http://[{TOKEN}?X-Amz-Signature=secret-1"), on("cdn")),
        (cut(3), on("cdn")),
        (flipped(0), on("cdn")),
    ],
)
def test_no_message_holds_a_secret(
    hub: StandInHub, change: Change, where: Callable[[HubRequest], bool]
) -> None:
    hub.commit(REPO, {"a.bin": b"a" * 200})
    hub.fault(change, where=where)
    with pytest.raises(StagingError) as caught:
        read_all(source(hub, token=TOKEN, memory=100, concurrency=1))
    error: BaseException | None = caught.value
    while error is not None:
        for text in (str(error), repr(error), str(getattr(error, "hint", ""))):
            assert TOKEN not in text
            assert "secret-" not in text
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


# Settings


@pytest.mark.parametrize(
    ("uri", "repo", "revision"),
    [
        ("hf://org/name", "org/name", "main"),
        ("hf://org/name/", "org/name", "main"),
        ("hf://models/org/name@v1", "org/name", "v1"),
        ("hf://Org-1/na_me.v2@refs/pr/3", "Org-1/na_me.v2", "refs/pr/3"),
        ("hf://org/name@feature%2Ffast", "org/name", "feature/fast"),
        (f"hf://org/name@{'a' * 40}", "org/name", "a" * 40),
    ],
)
def test_uris_name_a_repository_and_a_revision(uri: str, repo: str, revision: str) -> None:
    assert HubLocation.parse(uri) == HubLocation(repo, revision)


@pytest.mark.parametrize(
    "uri",
    [
        "hf://",
        "hf://name",
        "org/name",
        "hf://org/name/file.json",
        "hf://datasets/org/name",
        "hf://org/name@",
        "hf://org/name@a b",
        "hf://org/name@../../x",
        "hf://org/name@v1?download=true",
        "hf://org/..%2Fname",
        "hf://org/na--me",
        "hf://org/.name",
        "hf://org/name.git",
        f"hf://org/{'n' * 97}",
        f"hf://org/name@{'v' * 256}",
        f"hf://user:{TOKEN}@org/name?token={TOKEN}",
    ],
)
def test_other_uris_are_refused(uri: str) -> None:
    with pytest.raises(UsageError) as caught:
        HubLocation.parse(uri)
    assert caught.value.reference == "uri"
    assert "hf://ORG/NAME" in str(caught.value.hint)


@pytest.mark.parametrize(
    "endpoint",
    [
        "huggingface.co",
        "ftp://huggingface.co",
        "https://",
        "https://user:secret@host",
        "https://host?token=secret",
        "https://host:0",
        "https://[",
        "https://host:secret",
    ],
)
def test_endpoints_are_plain_urls(endpoint: str) -> None:
    with pytest.raises(UsageError) as caught:
        HubHttp(endpoint=endpoint)
    assert caught.value.reference == "hub-endpoint"
    assert "secret" not in caught.value.message


def test_an_endpoint_may_end_in_a_slash_and_have_a_path() -> None:
    assert HubHttp(endpoint="https://mirror.example/hub/").endpoint == "https://mirror.example/hub"


def test_a_token_is_not_sent_in_the_clear() -> None:
    with pytest.raises(UsageError, match="unencrypted"):
        HubHttp(endpoint="http://mirror.example", token=TOKEN)
    assert HubHttp(endpoint="http://mirror.example").host == "mirror.example"


@pytest.mark.parametrize("token", ["", "hf x", "hf\nx", "hf\x7f", "hfü"])
def test_tokens_that_are_none_are_not_shown(token: str) -> None:
    with pytest.raises(UsageError) as caught:
        HubHttp(token=token)
    assert caught.value.reference == "hub-token"
    assert not token or token not in caught.value.message


def test_the_links_of_a_mirror_do_not_lead_away_from_it() -> None:
    with StandInHub(page_size=1) as hub:
        hub.commit(REPO, FILES)
        elsewhere = with_headers(Link='<https://huggingface.co/x?cursor=1>; rel="next"')
        hub.fault(elsewhere, where=on("hub", "/tree/"), occurrences={1})
        assert read_all(source(hub)) == FILES
        assert len(hub.log("hub", "/tree/")) == len(FILES) + 1  # and a directory


# The stand-in


def test_the_stand_in_is_a_hub_to_the_hubs_own_library(
    hub: StandInHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True, raising=False)
    files = {**FILES, **ASIDE, "sub dir/ü+%#.json": b"{}"}
    with StandInHub(token=TOKEN, page_size=2) as other:
        commit = other.commit(REPO, files)
        other.restrict(REPO, gated=True)
        api = HfApi(endpoint=other.endpoint, token=TOKEN)
        assert api.model_info(REPO).sha == commit
        listed = {
            entry.path: entry
            for entry in api.list_repo_tree(REPO, recursive=True, revision=commit)
            if isinstance(entry, RepoFile)
        }
        ours = hub_module.list_files(http(other, token=TOKEN), REPO, commit)
        assert {file.name: file.size for file in ours} == {
            name: entry.size for name, entry in listed.items()
        }
        for file in ours:
            entry = listed[file.name]
            assert file.digest == (entry.lfs.sha256 if entry.lfs else entry.blob_id)
        for name in ("model.safetensors", "sub dir/ü+%#.json", "config.json"):
            path = api.hf_hub_download(REPO, name, local_dir=tmp_path / "downloaded")
            assert Path(path).read_bytes() == files[name]
        for read in (api.model_info, lambda repo: list(api.list_repo_tree(repo))):
            with pytest.raises(huggingface_hub.errors.RepositoryNotFoundError):
                read("org/nothing")
        with pytest.raises(huggingface_hub.errors.RevisionNotFoundError):
            api.model_info(REPO, revision="v9")
        nobody = HfApi(endpoint=other.endpoint, token=False)
        with pytest.raises(huggingface_hub.errors.GatedRepoError):
            nobody.hf_hub_download(REPO, "config.json", local_dir=tmp_path / "denied")
