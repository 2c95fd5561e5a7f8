"""A tar behind a presigned URL: the same files as from the local tar, over everything a server can do.

I2 (a stream that breaks off is no archive), I7 (ranges of one version), I11 (bounded requests), I13 (the
query is in nothing that anybody gets to see). All over real HTTP on loopback.
"""

from __future__ import annotations

import contextlib
import datetime
import itertools
import random
import ssl
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from staging.source.indexed_tar import IndexedTar
from staging.source.pipe import Pipe
from staging.source.source import Source
from staging.source.tar_file import TarFile
from staging.source.web import WebArchive, WebStream, open_web
from staging.source.web_address import is_public
from staging.source.web_host import WebSettings
from staging.source.web_resource import MAX_REDIRECTS
from staging.source.web_url import WebUrl
from staging.transfer.ranges import MAX_ATTEMPTS
from staging.transfer.scheduler import Cancellation, Cancelled
from staging.vocabulary.errors import (
    AccessDenied,
    MalformedInput,
    NotFound,
    StagingError,
    StoreUnavailable,
    UsageError,
)
from tests.support.checkpoints import hugging_face, tar_of, vendor
from tests.support.s3server.actions import Gate
from tests.support.web import (
    EXPIRED,
    TOKEN_EXPIRED,
    Asked,
    Change,
    Once,
    Reply,
    WebServer,
    certificate,
    chain,
    cut,
    drop,
    hold,
    refuse,
    shorten,
    stall,
    tunnel,
    with_headers,
)

SECRET = "c4na4ry"
QUERY = (
    f"X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIA{SECRET}%2F20260101"
    f"&X-Amz-Security-Token=t{SECRET}&X-Amz-Signature=s{SECRET}"
)
PATH = "/vendor/laguna-xs.tar"
FILES = vendor(1)
DATA = tar_of(FILES)
OTHER = tar_of(vendor(2))
NOW = datetime.datetime(2026, 6, 1, tzinfo=datetime.UTC)


class Patient(Cancellation):
    """Sleeps are noted, not slept."""

    def __init__(self) -> None:
        super().__init__()
        self.slept: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.check()


def settings(**changes: Any) -> WebSettings:
    return WebSettings(**{"allow_http": True, "allow_private_address": True, **changes})


def opened(url: str, patient: Cancellation | None = None, **changes: Any) -> WebArchive | WebStream:
    return open_web(
        WebUrl(url),
        settings(**changes),
        cancelled=Patient() if patient is None else patient,
        rng=random.Random(1),
        clock=lambda: NOW,
    )


@contextlib.contextmanager
def archive(url: str, patient: Cancellation | None = None, **changes: Any) -> Iterator[WebArchive]:
    result = opened(url, patient, **changes)
    with contextlib.closing(result):
        assert isinstance(result, WebArchive)
        yield result


@contextlib.contextmanager
def stream(url: str, **changes: Any) -> Iterator[WebStream]:
    result = opened(url, **changes)
    with contextlib.closing(result):
        assert isinstance(result, WebStream)
        yield result


def contents(source: Source) -> dict[str, bytes]:
    found = {}
    for file in source.files():
        buffer = bytearray(file.size)
        source.read_into(file, 0, memoryview(buffer))
        found[str(file.path)] = bytes(buffer)
    source.finish()
    return found


def read(web: WebArchive, offset: int, length: int) -> bytes:
    buffer = bytearray(length)
    web.read_into(offset, memoryview(buffer))
    return bytes(buffer)


def require_secret_kept(error: BaseException) -> None:
    """Neither shown nor reachable: not in the message, the hint, the traceback, or any chained error."""
    for link in chain(error):
        shown = [str(link), repr(link), repr(vars(link)), repr(link.args)]
        shown.append("".join(traceback.format_exception(link)))
        assert [text for text in shown if SECRET in text] == []


@pytest.fixture
def web() -> Iterator[WebServer]:
    with WebServer({PATH: DATA}) as server:
        yield server


# --- reading ---


@pytest.mark.parametrize("make", [vendor, hugging_face])
def test_the_same_files_and_stamps_as_from_the_local_tar(
    make: Callable[[int], dict[str, bytes]], tmp_path: Path
) -> None:
    files = make(3)
    tar = tmp_path / "laguna-xs.tar"
    tar.write_bytes(tar_of(files))
    with WebServer({PATH: tar.read_bytes()}) as web:
        source = IndexedTar(opened(web.url(PATH, QUERY)))  # type: ignore[arg-type]
        with contextlib.closing(source), contextlib.closing(TarFile(tar)) as local:
            assert contents(source) == contents(local) == files
            assert list(source.files()) == list(local.files())
            assert all(len(file.stamp) == 16 for file in source.files())
            assert len({file.stamp for file in source.files()}) == len(files)
            assert (source.kind, source.name) == ("url", "laguna-xs.tar")
            assert source.size == local.size
        assert {asked.method for asked in web.requests} == {"GET"}  # a HEAD is not what was signed
        assert {asked.query for asked in web.requests} == {QUERY}
        assert {asked.headers["accept-encoding"] for asked in web.requests} == {"identity"}
        assert {asked.headers.get("if-match") for asked in web.requests[1:]} == {
            (source.identity or "").split(" ")[0]
        }


def test_any_range_in_any_order_from_several_threads(web: WebServer) -> None:
    rng = random.Random(5)
    spans = [
        (offset, rng.randint(0, len(DATA) - offset)) for offset in rng.sample(range(len(DATA)), 40)
    ]
    with archive(web.url(PATH, QUERY)) as opened_archive, ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda span: read(opened_archive, *span), spans))
    assert found == [DATA[offset : offset + length] for offset, length in spans]
    assert web.connections <= 9


def test_connections_are_reused(web: WebServer) -> None:
    with archive(web.url(PATH, QUERY)) as opened_archive:
        for offset in range(0, 5000, 500):
            read(opened_archive, offset, 500)
    assert len(web.requests) == 11
    assert web.connections == 1


def test_nothing_is_asked_for_an_empty_range(web: WebServer) -> None:
    with archive(web.url(PATH, QUERY)) as opened_archive:
        assert read(opened_archive, 7, 0) == b""
    assert [asked.range for asked in web.requests] == ["bytes=0-0"]


def test_the_identity_is_that_of_the_object_and_holds_nothing_of_the_url(web: WebServer) -> None:
    web.files["/other/place.tar"] = DATA

    def identity(path: str, query: str) -> str:
        with archive(web.url(path, query)) as opened_archive:
            return opened_archive.identity

    first = identity(PATH, QUERY)
    assert first == identity(PATH, "X-Amz-Signature=another")
    assert first != identity("/other/place.tar", QUERY)  # an ETag names versions of one resource
    web.files[PATH] = OTHER
    assert first != identity(PATH, QUERY)
    assert SECRET not in first
    assert "laguna" not in first


def test_over_tls_the_certificate_is_that_of_the_name_and_the_connection_goes_to_the_address(
    tmp_path: Path,
) -> None:
    bundle, context = certificate(tmp_path, "vendor.test")
    asked: list[tuple[str, int]] = []

    def resolve(host: str, port: int) -> list[str]:
        asked.append((host, port))
        return ["127.0.0.1"]

    with WebServer({PATH: DATA}, tls=context) as web:
        url = web.url(PATH, QUERY, host="vendor.test")
        trusting = settings(ca_bundle=str(bundle), resolve=resolve, allow_http=False)
        with contextlib.closing(open_web(WebUrl(url), trusting)) as result:
            assert contents(IndexedTar(result)) == FILES  # type: ignore[arg-type]
        assert asked == [("vendor.test", web.port)]
        assert {asked.headers["host"] for asked in web.requests} == {f"vendor.test:{web.port}"}

        other = web.url(PATH, QUERY, host="other.test")
        for distrusted, bundle_of in ((other, str(bundle)), (url, None)):
            with pytest.raises(UsageError) as caught:
                opened(distrusted, resolve=resolve, ca_bundle=bundle_of)
            assert caught.value.reference == "certificate"
            require_secret_kept(caught.value)


# --- one stream ---


@pytest.mark.parametrize("kind", ["no-ranges", "weak-etag", "no-etag", "chunked"])
def test_what_cannot_be_pinned_is_read_as_one_stream(kind: str) -> None:
    with WebServer(
        {PATH: DATA},
        ranges=kind not in ("no-ranges", "chunked"),
        weak=kind == "weak-etag",
        chunked=kind == "chunked",
    ) as web:
        if kind == "no-etag":
            web.script(Once(with_headers(ETag=None), times=None))
        with stream(web.url(PATH, QUERY)) as body:
            assert body.size == (None if kind == "chunked" else len(DATA))
            assert contents(Pipe(body, name=body.name)) == FILES
        expected = ["bytes=0-0", None] if kind.endswith("etag") else ["bytes=0-0"]
        assert [asked.range for asked in web.requests] == expected


@pytest.mark.parametrize("chunked", [False, True])
def test_a_stream_that_breaks_off_is_no_end(chunked: bool) -> None:
    with WebServer({PATH: DATA}, ranges=False, chunked=chunked) as web:
        web.script(Once(cut(len(DATA) - 100)))
        with stream(web.url(PATH, QUERY)) as body, pytest.raises(StoreUnavailable) as caught:
            contents(Pipe(body))
        assert (caught.value.reference, caught.value.side) == ("connection", "source")
        require_secret_kept(caught.value)
        assert len(web.requests) == 1


# --- what goes wrong on the way ---


@pytest.mark.parametrize("after", [0, 1, 12_345, 49_999])
def test_it_goes_on_where_a_body_broke_off(web: WebServer, after: int) -> None:
    with archive(web.url(PATH, QUERY)) as opened_archive:
        web.script(Once(cut(after)))
        assert read(opened_archive, 1000, 50_000) == DATA[1000:51_000]
    assert [asked.range for asked in web.requests[1:]] == [
        "bytes=1000-50999",
        f"bytes={1000 + after}-50999",
    ]


def test_a_body_that_is_too_short_is_one_that_broke_off(web: WebServer) -> None:
    with archive(web.url(PATH, QUERY)) as opened_archive:
        web.script(Once(shorten(100)))
        assert read(opened_archive, 0, 1000) == DATA[:1000]
    assert [asked.range for asked in web.requests[1:]] == ["bytes=0-999", "bytes=900-999"]


def test_a_body_that_stalls_is_given_up_for_another(web: WebServer) -> None:
    with Gate() as gate, archive(web.url(PATH, QUERY), read_timeout=0.2) as opened_archive:
        web.script(Once(stall(10_000, gate)))
        assert read(opened_archive, 0, 50_000) == DATA[:50_000]
    assert len(web.requests) == 3


def test_a_body_that_trickles_is_given_up(web: WebServer) -> None:
    ticks = itertools.count(step=20.0)  # every look at the clock is 20 seconds after the last one
    running = False

    def clock() -> float:
        return next(ticks) if running else 0.0

    with archive(web.url(PATH, QUERY), clock=clock) as opened_archive:
        assert read(opened_archive, 0, 1000) == DATA[:1000]
        web.clear()
        running = True
        with pytest.raises(StoreUnavailable) as caught:
            read(opened_archive, 0, 100_000)
    assert caught.value.reference == "connection"
    assert "too slow" in caught.value.message
    assert len(web.requests) == MAX_ATTEMPTS
    require_secret_kept(caught.value)


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_busy_server_is_asked_again(web: WebServer, status: int) -> None:
    patient = Patient()
    web.script(Once(refuse(status, b"busy", Retry_After="7")), Once(refuse(status)))
    with archive(web.url(PATH, QUERY), patient) as opened_archive:
        assert read(opened_archive, 0, 100) == DATA[:100]
    assert [asked.status for asked in web.requests] == [status, status, 206, 206]
    assert patient.slept[0] == 7
    assert 0 <= patient.slept[1] <= 0.2


def test_no_retry_after_makes_it_wait_for_hours(web: WebServer) -> None:
    patient = Patient()
    web.script(Once(refuse(503, Retry_After="86400")))
    with archive(web.url(PATH, QUERY), patient):
        assert patient.slept == [20]


@pytest.mark.parametrize(
    ("change", "reference"),
    [
        pytest.param(refuse(503), "source-busy", id="busy"),
        pytest.param(drop, "connection", id="dropped"),
        pytest.param(cut(0), "connection", id="cut"),
        pytest.param(cut(10), "connection", id="cut-later"),
    ],
)
def test_it_gives_up_after_a_bounded_number_of_requests(
    web: WebServer, change: Change, reference: str
) -> None:
    patient = Patient()
    with archive(web.url(PATH, QUERY), patient) as opened_archive:
        web.clear()
        web.script(Once(change, times=None))
        with pytest.raises(StoreUnavailable) as caught:
            read(opened_archive, 0, 1000)
    # One more where the connection had been kept: that a server closes it tells nothing about the request.
    assert len(web.requests) == MAX_ATTEMPTS + (change is drop)
    assert len(patient.slept) == MAX_ATTEMPTS - 1
    assert all(slept <= 0.1 * 2**number for number, slept in enumerate(patient.slept))
    assert (caught.value.reference, caught.value.side) == (reference, "source")
    require_secret_kept(caught.value)


def test_connections_that_the_server_closed_meanwhile_cost_no_attempt(web: WebServer) -> None:
    patient = Patient()
    count = MAX_ATTEMPTS + 2
    with (
        archive(web.url(PATH, QUERY), patient) as opened_archive,
        ThreadPoolExecutor(count) as pool,
    ):
        with Gate(parties=count) as gate:
            web.script(Once(hold(gate), times=count))
            reading = [pool.submit(read, opened_archive, 0, 100) for _ in range(count)]
            assert gate.arrived.wait(60)
        assert [future.result(60) for future in reading] == [DATA[:100]] * count
        assert web.connections == count
        web.hang_up()
        web.clear()
        assert read(opened_archive, 5, 100) == DATA[5:105]
    assert [asked.status for asked in web.requests] == [206]
    assert patient.slept == []


# --- another version, another range ---


def test_an_object_that_changes_is_not_mixed(web: WebServer) -> None:
    with archive(web.url(PATH, QUERY)) as opened_archive:
        web.script(Once(cut(500)))
        first = read(opened_archive, 0, 1000)
        web.files[PATH] = OTHER
        with pytest.raises(MalformedInput) as caught:
            read(opened_archive, 1000, 1000)
    assert first == DATA[:1000]
    assert web.requests[-1].status == 412
    assert (caught.value.exit_code, caught.value.reference) == (16, "source-changed")
    require_secret_kept(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(with_headers(ETag='"other"'), id="other-etag"),
        pytest.param(with_headers(ETag='W/"x"'), id="weak-etag"),
        pytest.param(with_headers(ETag=None), id="no-etag"),
        pytest.param(refuse(416), id="ended-before"),
    ],
)
def test_a_server_that_ignores_the_condition_is_found_out(web: WebServer, change: Change) -> None:
    with archive(web.url(PATH, QUERY)) as opened_archive:
        web.clear()
        web.script(Once(change))
        with pytest.raises(MalformedInput) as caught:
            read(opened_archive, 1000, 1000)
    assert caught.value.reference == "source-changed"
    assert len(web.requests) == 1
    require_secret_kept(caught.value)


def _whole(asked: Asked, reply: Reply) -> Reply:
    headers = {name: value for name, value in reply.headers.items() if name != "Content-Range"}
    return Reply(200, headers, DATA)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(_whole, id="whole"),
        pytest.param(with_headers(Content_Range=None), id="no-content-range"),
        pytest.param(with_headers(Content_Range="bytes 1001-2000/108032"), id="shifted"),
        pytest.param(with_headers(Content_Range="bytes 1000-1999/*"), id="no-size"),
        pytest.param(with_headers(Content_Range="bytes 1000-1999/108033"), id="other-size"),
    ],
)
def test_another_range_than_the_one_asked_for_is_refused(web: WebServer, change: Change) -> None:
    with archive(web.url(PATH, QUERY)) as opened_archive:
        web.clear()
        web.script(Once(change))
        with pytest.raises(MalformedInput) as caught:
            read(opened_archive, 1000, 1000)
    assert (caught.value.exit_code, caught.value.reference) == (16, "url-range")
    assert len(web.requests) == 1
    require_secret_kept(caught.value)


# --- refusals ---

ARCHIVED = b"<Error><Code>InvalidObjectState</Code><Message>not in this tier</Message></Error>"
TALKATIVE = (
    f"<Error><Code>SignatureDoesNotMatch</Code><StringToSign>{SECRET}</StringToSign></Error>"
)


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(
    ("change", "kind", "code", "reference"),
    [
        pytest.param(refuse(403, EXPIRED), AccessDenied, 12, "url-expired", id="expired"),
        pytest.param(refuse(400, TOKEN_EXPIRED), AccessDenied, 12, "url-expired", id="token"),
        pytest.param(refuse(403, ARCHIVED), AccessDenied, 12, "archived", id="archived"),
        pytest.param(refuse(403, TALKATIVE.encode()), AccessDenied, 12, "url-denied", id="denied"),
        pytest.param(refuse(401), AccessDenied, 12, "url-denied", id="unauthorized"),
        pytest.param(refuse(403, b"x" * 100_000), AccessDenied, 12, "url-denied", id="long-page"),
        pytest.param(refuse(404), NotFound, 10, "source", id="missing"),
        pytest.param(refuse(410), NotFound, 10, "source", id="gone"),
        pytest.param(refuse(405), MalformedInput, 16, "url-answer", id="not-allowed"),
        pytest.param(refuse(204), MalformedInput, 16, "url-answer", id="no-content"),
        pytest.param(
            with_headers(Content_Encoding="gzip"), MalformedInput, 16, "url-encoding", id="encoded"
        ),
        pytest.param(refuse(302), UsageError, 2, "url-redirect", id="nowhere"),
        pytest.param(
            refuse(302, Location=f"https://elsewhere.test/?token={SECRET}"),
            UsageError,
            2,
            "url-redirect",
            id="elsewhere",
        ),
        pytest.param(
            refuse(307, Location=f"ftp://{SECRET}/"), UsageError, 2, "url-redirect", id="scheme"
        ),
        pytest.param(
            refuse(301, Location=f"https://{SECRET}@127.0.0.1/"),
            UsageError,
            2,
            "url-redirect",
            id="user",
        ),
    ],
)
def test_refusals_at_once_and_midway(
    web: WebServer,
    change: Change,
    kind: type[StagingError],
    code: int,
    reference: str,
    late: bool,
) -> None:
    web.script(Once(change, after=int(late)))
    with contextlib.ExitStack() as stack:
        if late:
            opened_archive = stack.enter_context(archive(web.url(PATH, QUERY)))
            act: Callable[[], object] = partial(read, opened_archive, 0, 100)
        else:
            act = partial(opened, web.url(PATH, QUERY))
        with pytest.raises(kind) as caught:
            act()
    error = caught.value
    assert (error.exit_code, error.reference) == (code, reference)
    assert error.hint
    assert len(web.requests) == 1 + late
    assert web.unmet == 0
    require_secret_kept(error)


AWS_OVER = "X-Amz-Date=20260531T120000Z&X-Amz-Expires=3600"
AWS_RUNNING = "X-Amz-Date=20260531T235900Z&X-Amz-Expires=3600"


@pytest.mark.parametrize(
    ("query", "reference"),
    [
        (AWS_OVER, "url-expired"),
        (AWS_RUNNING, "url-denied"),
        ("X-Goog-Date=20260531T120000Z&X-Goog-Expires=3600", "url-expired"),
        ("AWSAccessKeyId=A&Signature=S&Expires=1780000000", "url-expired"),
        ("AWSAccessKeyId=A&Signature=S&Expires=1790000000", "url-denied"),
        ("sig=S&se=2026-05-31T00:00:00Z", "url-expired"),
        ("sig=S&se=2026-07-01", "url-denied"),
        ("X-Amz-Date=yesterday&X-Amz-Expires=3600", "url-denied"),
        ("X-Amz-Date=20260531T120000Z&X-Amz-Expires=9e9", "url-denied"),
        ("Expires=99999999999999999999", "url-denied"),
        ("Expires=never", "url-denied"),
        ("", "url-denied"),
    ],
)
def test_a_refused_url_whose_own_time_is_over_has_expired(
    web: WebServer, query: str, reference: str
) -> None:
    web.script(Once(refuse(403)))
    with pytest.raises(AccessDenied) as caught:
        opened(web.url(PATH, query))
    assert caught.value.reference == reference
    if reference == "url-expired":
        assert "fresh URL" in (caught.value.hint or "")


def test_the_time_is_that_of_the_server(web: WebServer) -> None:
    web.script(Once(refuse(403, Date="Sun, 31 May 2026 12:30:00 GMT")))
    with pytest.raises(AccessDenied) as caught:  # by this machine's clock it would be over
        opened(web.url(PATH, AWS_OVER))
    assert caught.value.reference == "url-denied"
    web.script(Once(refuse(403, Date="Mon, 01 Jun 2026 01:30:00 GMT")))
    with pytest.raises(AccessDenied) as caught:
        opened(web.url(PATH, AWS_RUNNING))
    assert caught.value.reference == "url-expired"


def test_a_clock_that_is_wrong_keeps_no_url_from_working(web: WebServer) -> None:
    with archive(web.url(PATH, AWS_OVER)) as opened_archive:
        assert read(opened_archive, 0, 100) == DATA[:100]


def test_an_empty_object(web: WebServer) -> None:
    web.files[PATH] = b""
    with pytest.raises(MalformedInput) as caught:
        opened(web.url(PATH, QUERY))
    assert caught.value.reference == "tar-empty"


# --- redirects ---


def test_redirects_within_the_origin_are_followed(web: WebServer) -> None:
    web.files["/real.tar"] = DATA
    moved = Once(
        refuse(302, b"moved", Location=f"/real.tar?X-Amz-Signature=2{SECRET}"),
        times=None,
        where=lambda asked: asked.path == PATH,
    )
    web.script(moved)
    with archive(web.url(PATH, QUERY)) as opened_archive:
        assert read(opened_archive, 10, 1000) == DATA[10:1010]
        assert opened_archive.name == "laguna-xs.tar"
    assert [asked.path for asked in web.requests] == [PATH, "/real.tar"] * 2
    assert web.connections == 1


def test_redirects_end(web: WebServer) -> None:
    web.script(Once(refuse(302, Location=PATH), times=None))
    with pytest.raises(UsageError) as caught:
        opened(web.url(PATH, QUERY))
    assert caught.value.reference == "url-redirect"
    assert len(web.requests) == MAX_REDIRECTS + 1
    require_secret_kept(caught.value)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.2", "127.0.0.1.elsewhere.test"])
def test_no_other_host_is_asked(web: WebServer, host: str) -> None:
    web.script(Once(refuse(302, Location=web.url(PATH, QUERY, host=host))))
    with pytest.raises(UsageError) as caught:
        opened(web.url(PATH, QUERY))
    assert caught.value.reference == "url-redirect"
    assert host in caught.value.message
    assert len(web.requests) == 1
    require_secret_kept(caught.value)


def test_no_other_port_or_scheme_is_asked(web: WebServer) -> None:
    with WebServer({PATH: DATA}) as second:
        for location in (second.url(PATH), web.url(PATH).replace("http:", "https:")):
            web.script(Once(refuse(302, Location=location)))
            with pytest.raises(UsageError) as caught:
                opened(web.url(PATH, QUERY))
            assert caught.value.reference == "url-redirect"
        assert second.connections == 0


# --- what may be read at all ---


@pytest.mark.parametrize(
    "addresses",
    [
        ["127.0.0.1"],
        ["93.184.215.14", "127.0.0.1"],  # one that is not public is enough
        ["10.0.0.1"],
        ["172.16.5.5"],
        ["192.168.1.1"],
        ["169.254.169.254"],
        ["100.100.100.200"],
        ["0.0.0.0"],
        ["224.0.0.1"],
        ["240.0.0.1"],
        ["255.255.255.255"],
        ["198.18.0.1"],
        ["::1"],
        ["::"],
        ["fe80::1%eth0"],
        ["fd00:ec2::254"],
        ["ff02::1"],
        ["fec0::1"],
        ["::ffff:127.0.0.1"],
        ["::ffff:169.254.169.254"],
        ["64:ff9b::a9fe:a9fe"],
        ["2002:7f00:1::"],
        ["2001:db8::1"],
    ],
    ids=lambda addresses: addresses[-1],
)
def test_no_request_is_made_to_an_address_that_is_not_public(addresses: list[str]) -> None:
    with WebServer({PATH: DATA}) as web:
        with pytest.raises(UsageError) as caught:
            opened(
                web.url(PATH, QUERY, host="vendor.test"),
                allow_private_address=False,
                resolve=lambda host, port: addresses,
            )
        assert web.connections == 0
    assert caught.value.reference == "url-address"
    assert addresses[-1] in caught.value.message
    assert "--allow-private-address" in (caught.value.hint or "")
    require_secret_kept(caught.value)


@pytest.mark.parametrize(
    "address",
    ["93.184.215.14", "2606:2800:21f:cb07::1", "::ffff:93.184.215.14", "64:ff9b::5db8:d70e"],
)
def test_public_addresses(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "[::1]"])
def test_a_name_is_what_it_resolves_to(web: WebServer, host: str) -> None:
    with pytest.raises((UsageError, StoreUnavailable)):
        opened(web.url(PATH, QUERY, host=host), allow_private_address=False)
    assert web.connections == 0


def test_a_name_that_leads_elsewhere_later_is_not_looked_up_again() -> None:
    """Unless nothing answers any more; then it is checked again."""
    answers = [["127.0.0.1"], ["169.254.169.254"]]
    asked: list[str] = []

    def resolve(host: str, port: int) -> list[str]:
        asked.append(host)
        return answers[min(len(asked), len(answers)) - 1]

    with (
        WebServer({PATH: DATA}) as web,
        archive(web.url(PATH, QUERY, host="vendor.test"), resolve=resolve) as opened_archive,
    ):
        web.script(Once(cut(10)), Once(drop), Once(refuse(503)))
        assert read(opened_archive, 0, 1000) == DATA[:1000]
        assert asked == ["vendor.test"]


def test_another_address_is_tried_when_one_does_not_answer() -> None:
    with (
        WebServer({PATH: DATA}) as web,
        archive(
            web.url(PATH, QUERY, host="vendor.test"),
            # Nothing listens on that port there: connections are refused at once.
            resolve=lambda host, port: ["127.9.9.9", "127.0.0.1"],
        ) as opened_archive,
    ):
        assert read(opened_archive, 0, 1000) == DATA[:1000]
        assert web.connections == 1


def test_a_host_that_nobody_knows() -> None:
    def resolve(host: str, port: int) -> list[str]:
        raise OSError(0, "Name or service not known")

    with pytest.raises(StoreUnavailable) as caught:
        opened(f"https://vendor.test{PATH}?{QUERY}", resolve=resolve)
    assert (caught.value.reference, caught.value.side) == ("connection", "source")
    assert "vendor.test" in caught.value.message
    require_secret_kept(caught.value)


def test_plain_http_is_refused_unless_it_is_allowed(web: WebServer) -> None:
    with pytest.raises(UsageError) as caught:
        opened(web.url(PATH, QUERY), allow_http=False)
    assert caught.value.reference == "url-scheme"
    assert web.connections == 0
    require_secret_kept(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "https://",
        f"https:///{SECRET}",
        f"ftp://host/{SECRET}",
        f"https://user:{SECRET}@host/x.tar",
        f"https://host:{SECRET}/x.tar",
        f"https://host/x.tar?a={SECRET} b",
        f"https://host/x.tar?a={SECRET}\nX: y",
        f"https://[::1/{SECRET}",
        f"https://a..b/{SECRET}",
        f"https://{'a' * 64}/{SECRET}",
        f"https://host/{SECRET}{'x' * 40_000}",
    ],
)
def test_what_is_no_url_is_not_repeated(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        WebUrl(text)
    assert caught.value.reference == "url"
    require_secret_kept(caught.value)


def test_a_url_shows_where_it_leads_and_not_what_opens_it() -> None:
    url = WebUrl(f"https://Vendor.Test/m/laguna%20xs.tar?{QUERY}#{SECRET}")
    assert str(url) == "https://vendor.test/m/laguna%20xs.tar"
    assert SECRET not in repr(url)
    assert url.name == "laguna xs.tar"
    assert url.target == f"/m/laguna%20xs.tar?{QUERY}"


def test_a_target_is_sent_as_it_was_signed(web: WebServer) -> None:
    query = "X-Amz-Signature=a%2fb%2Fc+d~e!*'()&x=%C3%A9&y=[1]|{2}"
    with archive(web.url(PATH, query)):
        assert [(asked.path, asked.query) for asked in web.requests] == [(PATH, query)]


def test_nothing_is_logged(web: WebServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(0)
    web.script(Once(drop, after=1), Once(with_headers(Bad="x\r\n broken header"), after=1))
    with archive(web.url(PATH, QUERY)) as opened_archive:
        read(opened_archive, 0, 1000)
    assert SECRET not in caplog.text


def test_closing_ends_reads_that_are_under_way(web: WebServer) -> None:
    patient = Patient()
    with Gate() as gate, ThreadPoolExecutor(1) as pool:
        with archive(web.url(PATH, QUERY), patient) as opened_archive:
            web.script(Once(stall(10, gate)))
            reading = pool.submit(read, opened_archive, 0, 1000)
            assert gate.arrived.wait(60)
        with pytest.raises(Cancelled):
            reading.result(60)


# --- proxies ---


def test_a_proxy_is_asked_instead_of_the_name_server(web: WebServer) -> None:
    def resolve(host: str, port: int) -> list[str]:
        raise AssertionError("looked up here")

    web.files["http://vendor.test" + PATH] = DATA
    with archive(
        f"http://vendor.test{PATH}?{QUERY}",
        resolve=resolve,
        proxy=f"http://user:{SECRET}@127.0.0.1:{web.port}",
    ) as opened_archive:
        assert read(opened_archive, 0, 1000) == DATA[:1000]
    assert web.requests[0].headers["proxy-authorization"].startswith("Basic ")
    assert SECRET not in repr(settings(proxy=f"http://user:{SECRET}@127.0.0.1"))


def test_through_a_proxy_tls_is_with_the_name_behind_it(tmp_path: Path) -> None:
    bundle, context = certificate(tmp_path, "vendor.test")
    with WebServer({PATH: DATA}, tls=context) as web, tunnel(web.port) as (proxy, heads):
        with archive(
            f"https://vendor.test{PATH}?{QUERY}", proxy=f"u:{SECRET}@{proxy}", ca_bundle=str(bundle)
        ) as opened_archive:
            assert contents(IndexedTar(opened_archive)) == FILES
        assert {asked.headers["host"] for asked in web.requests} == {"vendor.test"}
        assert not any("proxy-authorization" in asked.headers for asked in web.requests)
    (head,) = heads
    assert head.startswith(b"CONNECT vendor.test:443 ")
    assert b"Proxy-Authorization: Basic " in head
    assert SECRET.encode() not in head  # the query is for the server alone


def test_a_proxy_that_opens_no_tunnel(web: WebServer) -> None:
    with pytest.raises(StoreUnavailable) as caught:
        opened(f"https://vendor.test{PATH}?{QUERY}", proxy=web.url("", ""))
    assert web.connections == MAX_ATTEMPTS
    assert caught.value.reference == "connection"
    require_secret_kept(caught.value)


@pytest.mark.parametrize(
    "proxy", [f"https://{SECRET}@proxy:1", f"http://u:{SECRET}@", "http://h:x"]
)
def test_an_unusable_proxy_is_not_repeated(proxy: str) -> None:
    with pytest.raises(UsageError) as caught:
        opened(f"https://vendor.test{PATH}", proxy=proxy)
    assert caught.value.reference == "connection-settings"
    require_secret_kept(caught.value)


def test_unusable_certificates(tmp_path: Path) -> None:
    for bundle in (tmp_path / "missing.pem", tmp_path / "empty.pem"):
        if bundle.name == "empty.pem":
            bundle.write_bytes(b"")
        with pytest.raises(UsageError) as caught:
            opened(f"https://vendor.test{PATH}?{QUERY}", ca_bundle=str(bundle))
        assert caught.value.reference == "connection-settings"
        assert isinstance(caught.value.__cause__, (OSError, ssl.SSLError))
