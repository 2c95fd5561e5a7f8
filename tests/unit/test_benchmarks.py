"""The benchmarks' own code: what measures must be right before its numbers are.

No invariant of the product is proven here. The server is talked to over real HTTP by real clients.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import ssl
import subprocess
import sys
import tarfile  # noqa: TID251 - an oracle
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from benchmarks import authority, ceiling, gil, merge, plot, refusal, report
from benchmarks.comparison import Comparison, Cores, Endpoint, WrongResult, in_memory, serving
from benchmarks.contenders import find_tools
from benchmarks.crt_upload import Slice, members
from benchmarks.data import CASES, MIB, Case, build, compare
from benchmarks.framing import Dechunker, MalformedFraming
from benchmarks.holdings import Network
from benchmarks.model import Box, Cost, Sample, estimate, fit, requests_for
from benchmarks.process import CommandFailed, measure
from staging.vocabulary import crc64
from tests.support.checkpoints import random_bytes

ROOT = Path(__file__).parents[2]
SMALL = Case("shards", 3, 300_000)


def chunked(data: bytes, size: int, trailer: bytes = b"") -> bytes:
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    body = b"".join(b"%x;chunk-signature=0\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
    return body + b"0\r\n" + trailer + b"\r\n"


@pytest.mark.parametrize("step", [1, 2, 3, 7, 64, 10_000])
def test_a_body_in_both_framings_comes_out_whole(step: int) -> None:
    data = random_bytes(3000, 1)
    wire = (
        chunked(chunked(data, 1000, b"x-amz-checksum-crc32: AAAAAA==\r\n"), 77) + b"GET / HTTP/1.1"
    )
    outer, inner, found = Dechunker(), Dechunker(), bytearray()
    rest = b""
    for at in range(0, len(wire), step):
        if outer.done:
            rest += wire[at : at + step]
            continue
        for piece in outer.feed(memoryview(wire)[at : at + step]):
            for payload in inner.feed(piece):
                found += payload
    assert (outer.done, inner.done) == (True, True)
    assert bytes(found) == data
    assert inner.payload == len(data)
    assert outer.rest + rest == b"GET / HTTP/1.1"


@pytest.mark.parametrize("wire", [b"zz\r\n", b"3\r\nabcd\r\n", b"1" * 9000])
def test_what_is_no_chunked_body_is_refused(wire: bytes) -> None:
    with pytest.raises(MalformedFraming):
        list(Dechunker().feed(memoryview(wire)))


def test_a_case_is_the_same_every_time_and_a_tar_that_others_read(tmp_path: Path) -> None:
    checkpoint = build(SMALL, tmp_path, seed=3)
    first = checkpoint.tar.read_bytes()
    assert build(SMALL, tmp_path, seed=3).tar.read_bytes() == first
    assert build(SMALL, tmp_path, seed=4).tar.read_bytes() != first
    with tarfile.open(fileobj=io.BytesIO(first)) as tar:
        tar.extractall(tmp_path, filter="data")
    assert compare(tmp_path / "checkpoint", checkpoint) == []
    weights = [entry for name, entry in checkpoint.files.items() if name.endswith(".safetensors")]
    assert [entry.size for entry in weights] == [300_000] * 3
    assert len({entry.digest for entry in weights}) == 3


def test_compare_names_every_difference(tmp_path: Path) -> None:
    checkpoint = build(SMALL, tmp_path, seed=3)
    with tarfile.open(checkpoint.tar) as tar:
        tar.extractall(tmp_path, filter="data")
    tree = tmp_path / "checkpoint"
    first, second, third = sorted(tree.glob("*.safetensors"))
    data = bytearray(first.read_bytes())
    data[-1] ^= 1
    first.write_bytes(data)
    second.write_bytes(b"short")
    third.rename(tree / "odd")
    (tree / ".checkpoint").mkdir()
    (tree / ".checkpoint" / "ready.json").touch()
    assert compare(tree, checkpoint) == [
        f"{first.name} has other bytes",
        f"{second.name} has another size",
        f"{third.name} is missing",
        "odd does not belong there",
    ]


def test_cases_scale_in_bytes_and_keep_their_shape() -> None:
    one, shards, small, network, network_shards = (case.scaled(0.25) for case in CASES)
    assert (one.count, one.size) == (1, 1024 * MIB)
    assert (shards.count, shards.size) == (64, 16 * MIB)
    assert (small.count, small.size) == (500, 64 * 1024)
    assert (network.title, network.rate) == ("1 x 1 GiB over 2.5 Gb/s", 312_500_000)
    assert network_shards.title == "64 x 16 MiB over 2.5 Gb/s"


class Running:
    def __init__(self, server: Endpoint, client: Any, certificate: Path) -> None:
        self.server, self.client, self.certificate = server, client, certificate
        self.url, self.secure = server.url("http"), server.url("https")
        self.state = server.state


@contextmanager
def s3_client(url: str, certificate: Path, **config: Any) -> Iterator[Any]:
    client = boto3.client(
        "s3",
        endpoint_url=url,
        aws_access_key_id="a",
        aws_secret_access_key="b",
        region_name="us-east-1",
        verify=str(certificate),
        config=Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 1}, **config),
    )
    try:
        yield client
    finally:
        client.close()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    scratch = tmp_path_factory.mktemp("server")
    certificate, key = authority.issue(scratch)
    with serving(scratch, certificate, key, Cores((), ())) as server:
        url = server.url("http")
        with s3_client(url, certificate) as client:
            yield Running(server, client, certificate)


def test_what_is_kept_comes_back(running: Running) -> None:
    data = random_bytes(9 * MIB + 5, 7)
    key = "kept/big"
    upload = running.client.create_multipart_upload(Bucket="keep", Key=key)["UploadId"]
    sent = []
    for number, at in enumerate(range(0, len(data), 5 * MIB), 1):
        piece = data[at : at + 5 * MIB]
        answer = running.client.upload_part(
            Bucket="keep", Key=key, UploadId=upload, PartNumber=number, Body=piece
        )
        sent.append({"PartNumber": number, "ETag": answer["ETag"]})
    assert running.state("kept/")["uploads"] == [key]
    listed = running.client.list_parts(Bucket="keep", Key=key, UploadId=upload)["Parts"]
    assert [part["Size"] for part in listed] == [5 * MIB, 4 * MIB + 5]
    running.client.complete_multipart_upload(
        Bucket="keep", Key=key, UploadId=upload, MultipartUpload={"Parts": sent}
    )
    whole = running.client.get_object(Bucket="keep", Key=key)
    assert whole["Body"].read() == data
    across = f"bytes={5 * MIB - 10}-{5 * MIB + 9}"
    piece = running.client.get_object(Bucket="keep", Key=key, Range=across, IfMatch=whole["ETag"])
    assert piece["Body"].read() == data[5 * MIB - 10 : 5 * MIB + 10]
    assert piece["ContentRange"].endswith(f"/{len(data)}")
    with pytest.raises(ClientError, match="PreconditionFailed"):
        running.client.get_object(Bucket="keep", Key=key, IfMatch='"other"')
    assert running.state("kept/")["uploads"] == []


def test_a_network_carries_no_faster_than_it_may_and_only_as_long_as_it_was_told(
    running: Running,
) -> None:
    data = random_bytes(2 * MIB, 8)
    running.client.put_object(Bucket="keep", Key="paced", Body=data)
    for url in (running.url, running.secure):
        with s3_client(url, running.certificate) as client:
            with running.server.pace(8 * MIB):
                began = time.monotonic()
                assert client.get_object(Bucket="keep", Key="paced")["Body"].read() == data
                took = time.monotonic() - began
            assert took >= 0.2  # 2 MiB at 8 MiB/s, less what it may catch up
            assert client.get_object(Bucket="keep", Key="paced")["Body"].read() == data
    network = Network()
    network.carry(1 << 60)  # at any speed: this would take for ever at another


def test_the_sink_counts_what_it_drops(running: Running) -> None:
    before = running.state()["received"]
    running.client.put_object(Bucket="sink", Key="dropped/a b+é", Body=b"x" * 3 * MIB)
    after = running.state("dropped/")
    assert after["objects"] == {"dropped/a b+é": 3 * MIB}
    assert after["received"] - before == 3 * MIB


def test_trailing_checksums_are_no_payload(running: Running) -> None:
    body = io.BytesIO(random_bytes(2 * MIB + 1, 9))
    with s3_client(running.secure, running.certificate) as client:
        client.put_object(Bucket="keep", Key="framed/object", Body=body)
        assert (
            client.get_object(Bucket="keep", Key="framed/object")["Body"].read() == body.getvalue()
        )
    assert running.state("framed/")["objects"] == {"framed/object": 2 * MIB + 1}


def test_conditions_and_control_checksums_are_enforced(running: Running) -> None:
    key, body = "strict/.checkpoint/claim.json", b"{}"
    right = crc64.crc64(body)

    def create(checksum: int) -> Any:
        return running.client.put_object(
            Bucket="sink",
            Key=key,
            Body=body,
            IfNoneMatch="*",
            ChecksumCRC64NVME=crc64.to_text(checksum),
        )

    with pytest.raises(ClientError, match="BadDigest"):
        create(right ^ 1)
    create(right)
    with pytest.raises(ClientError, match="PreconditionFailed"):
        create(right)
    assert running.client.get_object(Bucket="sink", Key=key)["Body"].read() == body


def test_listings_are_paged_and_grouped(running: Running) -> None:
    for name in ("a", "b/1", "b/2", "c", "d/1"):
        running.client.put_object(Bucket="keep", Key=f"listed/{name}", Body=b"")
    pages = running.client.get_paginator("list_objects_v2").paginate(
        Bucket="keep", Prefix="listed/", Delimiter="/", PaginationConfig={"PageSize": 2}
    )
    found = [
        [entry.get("Key") or entry["Prefix"] for entry in entries]
        for page in pages
        for entries in (page.get("Contents", []), page.get("CommonPrefixes", []))
    ]
    names = sorted(name for entries in found for name in entries)
    assert names == ["listed/a", "listed/b/", "listed/c", "listed/d/"]


def test_an_etag_is_the_md5_that_was_sent_or_nothing_like_one(running: Running) -> None:
    digest = hashlib.md5(b"body", usedforsecurity=False)
    told = running.client.put_object(
        Bucket="sink",
        Key="etag/1",
        Body=b"body",
        ContentMD5=base64.b64encode(digest.digest()).decode(),
    )
    assert told["ETag"] == f'"{digest.hexdigest()}"'
    assert "-" in running.client.put_object(Bucket="sink", Key="etag/2", Body=b"body")["ETag"]


def test_the_ceiling_is_measured_with_whole_transfers(running: Running, tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(random_bytes(3 * MIB, 5))
    running.client.put_object(Bucket="keep", Key="lifted", Body=path.read_bytes())
    for url in (running.url, running.secure):
        before = running.state()
        assert ceiling.upload_speed(url, running.certificate, path) > 0
        assert ceiling.download_speed(url, running.certificate, "lifted") > 0
        assert ceiling.request_speed(url, running.certificate) > 0
        after = running.state()
        assert after["received"] - before["received"] == 3 * MIB
        assert after["sent"] - before["sent"] == 3 * MIB


def test_a_process_tree_is_measured_whole(tmp_path: Path) -> None:
    script = (
        "import hashlib; b = bytearray(b'x' * 80_000_000); [hashlib.sha256(b) for _ in range(3)]"
    )
    command = ["sh", "-c", f'"{sys.executable}" -S -c "{script}"; true']
    usage = measure(command, environment=os.environ, directory=tmp_path, timeout=60)
    assert usage.cpu > 0
    assert usage.peak > 80_000_000
    little = measure(["true"], environment=os.environ, directory=tmp_path, timeout=60)
    assert little.peak < 40_000_000


def test_a_failing_command_is_told_with_its_output(tmp_path: Path) -> None:
    command = ["sh", "-c", "echo what happened >&2; exit 3"]
    with pytest.raises(CommandFailed, match=r"ended with 3:\nwhat happened"):
        measure(command, environment=os.environ, directory=tmp_path, timeout=60)


def test_a_command_may_be_expected_to_fail_and_then_must(tmp_path: Path) -> None:
    command = ["sh", "-c", "echo out; echo err >&2; exit 17"]
    usage = measure(command, environment=os.environ, directory=tmp_path, timeout=60, expect=17)
    assert usage.output == "out\nerr\n"
    with pytest.raises(CommandFailed, match="ended with 0"):
        measure(["true"], environment=os.environ, directory=tmp_path, timeout=60, expect=17)


def test_a_command_that_takes_too_long_ends_with_all_it_started(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with open(os.open(pipe, os.O_RDONLY | os.O_NONBLOCK), "rb") as reader:
        command = ["sh", "-c", 'sleep 600 >"$0" & wait', str(pipe)]
        with pytest.raises(CommandFailed, match="longer than"):
            measure(command, environment=os.environ, directory=tmp_path, timeout=0.5)
        os.set_blocking(reader.fileno(), True)
        assert reader.read() == b""  # comes back when nobody is left who could write


def test_the_model_finds_the_costs_that_made_the_samples() -> None:
    cost = Cost(0.5, 1.2e-9, 1.5e-3)
    pairs = [(1e6, 20), (4.3e9, 270), (4.3e9, 400), (1.3e8, 6000)]
    found = fit(Sample(size, requests, cost.seconds(size, requests)) for size, requests in pairs)
    assert found.start == pytest.approx(cost.start)
    assert found.byte == pytest.approx(cost.byte)
    assert found.request == pytest.approx(cost.request)


def test_the_model_has_no_negative_cost_and_no_guess() -> None:
    found = fit([Sample(1e6, 20, 1.0), Sample(4e9, 270, 3.0), Sample(1e8, 6000, 0.9)])
    assert min(found.start, found.byte, found.request) >= 0
    with pytest.raises(ValueError, match="too little"):
        fit([Sample(1e9, 10, 1.0), Sample(1e9, 10, 1.1), Sample(1e9, 10, 0.9)])


@pytest.mark.parametrize(
    ("box", "limit", "seconds"),
    [
        (Box(64, 1e9, 0.0, 10), "bandwidth", 101.0),
        (Box(1, 1e12, 0.0, 10), "CPU", 201.0),
        (Box(64, 1e12, 0.0, 10), "lock", 51.0),
        (Box(64, 1e12, 1.0, 10), "latency", 701.0),
    ],
)
def test_the_largest_term_decides(box: Box, limit: str, seconds: float) -> None:
    cpu, lock = Cost(1.0, 2e-9, 0.0), Cost(1.0, 0.5e-9, 0.0)
    found = estimate(cpu, lock, box, 100_000_000_000, 7000)
    assert (found.limit, found.seconds) == (limit, pytest.approx(seconds))


def test_requests_grow_with_files_and_parts() -> None:
    mib = 1024 * 1024
    assert requests_for(1, 100 * mib, 16 * mib) == 7 + 4
    assert requests_for(10, 100 * mib, 16 * mib) == 10 * (1 + 4)
    assert requests_for(10, 100, 10) == 10
    assert requests_for(3, 0, 10) == 3


def run_of(contender: str, number: int, wall: float, **more: Any) -> dict[str, Any]:
    return {
        "case": "one",
        "direction": "upload",
        "transport": "http",
        "contender": contender,
        "round": number,
        "size": 2_000_000_000,
        "files": 3,
        "wall": wall,
        "user": wall / 2,
        "system": 0.0,
        "peak": 5_000_000,
        "requests": {"PutObject": 3},
        "received": 0,
        "sent": 0,
        "server_cpu": 0.1,
        "masked": False,
    } | more


def result_of(runs: list[dict[str, Any]], *, sha_ni: bool = True) -> dict[str, Any]:
    return {
        "schema": report.SCHEMA,
        "machine": {
            "cpu": "a processor",
            "cores": 2,
            "memory": 8_000_000_000,
            "sha_ni": sha_ni,
            "kernel": "6",
            "python": "3",
            "openssl": "OpenSSL 3",
            "date": "2026-01-01",
            "digests": {"sha256": 0.2},
        },
        "versions": {"ours": "1"},
        "cores": {"server": [0], "client": [1]},
        "scratch": "memory",
        "scale": 1.0,
        "options": "",
        "seconds": 10,
        "contenders": [
            {"name": "ours", "direction": "upload", "title": "staging upload", "proves": "all"},
            {"name": "s5cmd", "direction": "upload", "title": "tar & s5cmd", "proves": "little"},
        ],
        "cases": [{"name": "one", "title": "1 x 4 GiB", "count": 1, "size": 1}],
        "ceiling": {"http": {"upload": 5e9, "download": 4e9, "requests": 10_000.0}},
        "runs": runs,
        "again": [run_of("ours", 1, 0.5)],
        "gil": [],
    }


def test_ratios_are_taken_round_by_round() -> None:
    walls = [
        ("ours", 0, 1.0),
        ("s5cmd", 0, 4.0),
        ("s5cmd", 1, 20.0),
        ("ours", 1, 2.0),
        ("ours", 2, 9.0),
    ]
    ours, theirs = report.rows(result_of([run_of(*wall) for wall in walls]))
    assert (ours.rounds, ours.wall, ours.wall_ratio) == (3, (2.0, 1.0, 9.0), None)
    assert theirs.rounds == 2
    assert theirs.wall_ratio == pytest.approx((0.175, 0.1, 0.25))


def test_what_is_measured_again_replaces_what_was_measured_together_with_it() -> None:
    first = [run_of("ours", 0, 1.0), run_of("s5cmd", 0, 4.0), run_of("ours", 0, 7.0, masked=True)]
    first += [run_of("ours", 0, 3.0, transport="https")]
    again = [run_of("ours", 0, 2.0), run_of("s5cmd", 1, 5.0)]
    both = merge.merged([result_of(first), result_of(again)])
    kept = [run["wall"] for run in both["runs"]]
    assert sorted(kept) == [2.0, 3.0, 5.0, 7.0]
    assert both["seconds"] == 20
    assert len(both["contenders"]) == 2
    alone = result_of(first)
    assert merge.merged([alone]) == alone
    other = result_of(again)
    other["machine"]["cpu"] = "another"
    with pytest.raises(ValueError, match="two machines: 'cpu' differs"):
        merge.merged([alone, other])
    with pytest.raises(ValueError, match="differ in 'scale'"):
        merge.merged([alone, {**result_of(again), "scale": 0.5}])


def test_each_direction_may_have_a_system_of_its_own_and_only_one() -> None:
    here = result_of([run_of("ours", 0, 1.0), run_of("ours", 0, 2.0, direction="download")])
    there = result_of([run_of("ours", 0, 3.0, direction="download")])
    there["machine"] |= {"openssl": "OpenSSL 4", "date": "2026-02-02"}
    ours = {"name": "ours", "direction": "download", "title": "model-downloader", "proves": "all"}
    for result in (here, there):
        result["contenders"].append(ours)
    both = merge.merged([here, there])
    assert [(run["direction"], run["wall"]) for run in both["runs"]] == [
        ("upload", 1.0),
        ("download", 3.0),
    ]
    lines = report.tables(both)["machine"].splitlines()
    assert "| system, uploads | Python 3, OpenSSL 3 |" in lines
    assert "| system, downloads | Python 3, OpenSSL 4 |" in lines
    assert "| programs | ours: 1 |" in lines
    assert "| measured, downloads | 2026-02-02 |" in lines
    assert "| system | Python 3, OpenSSL 3 |" in report.tables(here)["machine"].splitlines()
    more = result_of([run_of("ours", 0, 3.0, direction="download", case="small")])
    assert merge.systems(merge.merged([here, more]))["download"]["openssl"] == "OpenSSL 3"
    for results in ([here, {**there, "runs": more["runs"]}], [both, more]):
        with pytest.raises(ValueError, match="two systems, and both have downloads"):
            merge.merged(results)


def test_cases_keep_their_order_whenever_they_were_measured() -> None:
    one, small = (result_of([run_of("ours", 0, 1.0, case=case)]) for case in ("one", "small"))
    for result, case in ((one, "one"), (small, "small")):
        result["cases"] = [{"name": case, "title": case}]
    both = merge.merged([small, one])
    assert [case["name"] for case in both["cases"]] == ["one", "small"]
    assert [row.case for row in report.rows(both)] == ["one", "small"]


def look_of(number: int, wall: float, **more: Any) -> dict[str, Any]:
    return {
        "case": "one shard missing",
        "direction": "download",
        "transport": "http",
        "program": "staging check",
        "round": number,
        "wall": wall,
        "user": wall / 2,
        "system": 0.0,
        "requests": {"GetObject": 201, "ListObjectsV2": 1},
        "sent": 1_100_000,
        "status": 17,
        "reference": "index-shard-missing",
    } | more


def test_refusals_are_medians_and_older_results_have_none() -> None:
    old = result_of([run_of("ours", 0, 1.0)])
    assert report.tables(old)["refusal"] == "not measured in this run\n"
    looks = [look_of(0, 1.0), look_of(1, 9.0), look_of(2, 2.0)]
    looks += [look_of(0, 5.0, case="nothing", reference="", transport="https")]
    new = {**old, "refusals": looks}
    lines = report.tables(new)["refusal"].splitlines()[2:]
    refused = "one shard missing | staging check | HTTP | `index-shard-missing`"
    passed = "nothing | staging check | HTTPS | passes"
    assert lines == [
        f"| {refused} | 2.00 (1.00–9.00) | 1.00 (0.50–4.50) | 202 | 1.1 MB | 3 |",
        f"| {passed} | 5.00 (5.00–5.00) | 2.50 (2.50–2.50) | 202 | 1.1 MB | 1 |",
    ]
    assert merge.merged([old, new])["refusals"] == looks
    assert merge.merged([new, old])["refusals"] == looks
    anew = {**old, "refusals": [look_of(0, 4.0)]}
    assert merge.merged([new, anew])["refusals"] == [looks[-1], look_of(0, 4.0)]


def test_tables_tell_what_was_not_measured_and_correct_for_slow_hashing() -> None:
    runs = [run_of("ours", 0, 2.0), run_of("s5cmd", 0, 24.0)]
    assert report.tables(result_of(runs))["download"] == "not measured in this run\n"
    slow = report.tables(result_of(runs, sha_ni=False))["sha-ni"]
    # 2 GB at 0.2 GB/s took 10 of 12 s; at 1.7 GB/s they take 1.2
    assert "| 12.00 | 3.18 | 0.31 |" in slow


def test_the_document_has_a_place_for_every_table() -> None:
    text = (ROOT / "docs" / "benchmarks.md").read_text()
    parts = {name: f"new {name}\n" for name in report.tables(result_of([run_of("ours", 0, 1.0)]))}
    written = report.rewrite(text, parts)
    assert all(
        f"<!-- bench:{name} -->\nnew {name}\n<!-- bench:end -->" in written for name in parts
    )
    assert report.rewrite(written, parts) == written
    with pytest.raises(ValueError, match="0 places for the table 'upload'"):
        report.rewrite("nothing", {"upload": "x"})


def test_the_plot_is_a_picture_with_a_bar_for_everybody() -> None:
    picture = plot.svg(result_of([run_of("ours", 0, 1.0), run_of("s5cmd", 0, 4.0)]))
    root = ElementTree.fromstring(picture)
    bars = root.findall("{http://www.w3.org/2000/svg}rect")[1:]
    widths = [float(bar.attrib["width"]) for bar in bars]
    assert widths[1] == pytest.approx(4 * widths[0], rel=0.01)


def test_looks_are_counted_from_raw_stacks() -> None:
    assert gil.count("main (a.py:1);work 2 (b.py:3) 12\nmain (a.py:9) 30\n") == 42
    assert gil.count("") == 0


def test_the_bare_uploader_finds_the_members(tmp_path: Path) -> None:
    checkpoint = build(SMALL, tmp_path, seed=3)
    with checkpoint.tar.open("rb") as tar:
        found = {}
        for name, offset, size in members(tar):
            with Slice(tar.fileno(), offset, size) as stream:
                found[name] = len(stream.read())
    assert found == {name: entry.size for name, entry in checkpoint.files.items()}


def test_the_certificate_is_its_own_authority(tmp_path: Path) -> None:
    certificate, key = authority.issue(tmp_path)
    ssl.create_default_context(cafile=str(certificate))
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key)
    assert key.stat().st_mode & 0o077 == 0


def test_memory_is_told_from_disk() -> None:
    assert in_memory(Path("/dev/shm"))
    assert not in_memory(Path("/proc"))


@pytest.mark.parametrize(
    ("output", "reference"),
    [
        (
            "error: bad [first]\n  hint: do\nerror: s3://b/p/ bad: it [last-one]\nhint: x\n",
            "last-one",
        ),
        ("ERROR exit=17 index-shard-missing model-1 [is] gone\nHINT x\n", "index-shard-missing"),
        ("s3://b/p/ ok: 103 files\n", ""),
        ("warning: odd [odd-one]\n", ""),
    ],
)
def test_the_reference_is_that_of_the_last_error(output: str, reference: str) -> None:
    assert refusal.reference_in(output) == reference


def test_a_look_that_reads_too_much_or_too_little_is_no_result() -> None:
    prefix = refusal.Prefix.made("p/", refusal.MISTAKES[0], shards=10)
    weights = sum(len(data) for path, data in prefix.files.items() if path.startswith("model-"))
    assert prefix.enough < weights / 10
    good = {"requests": {"GetObject": 24}, "sent": prefix.enough, "received": 0}
    refusal.judge(prefix, "it", good)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"requests": {"GetObject": 19}}, "19 requests"),
        ({"requests": {"GetObject": 20, "HeadObject": 13}}, "33 requests"),
        ({"sent": prefix.enough + 1}, "bytes, at most"),
        ({"received": 1}, "sent 1 bytes"),
    ]
    for change, words in wrong:
        with pytest.raises(WrongResult, match=words):
            refusal.judge(prefix, "it", good | change)


def test_a_mistake_is_refused_by_both_programs(tmp_path: Path) -> None:
    certificate, key = authority.issue(tmp_path)
    programs = refusal.programs(find_tools(None))
    said: list[str] = []
    with serving(tmp_path, certificate, key, Cores((), ())) as server:
        comparison = Comparison(server, tmp_path, certificate, Cores((), ()), [], said.append)
        looks = refusal.measured(comparison, programs, ["https"], rounds=1, shards=3)
        assert server.state("refusal")["objects"] == {}
    found = [(look.program, look.status, look.reference) for look in looks]
    assert found == [
        (program.name, 17 if mistake.reference else 0, mistake.reference)
        for mistake in refusal.MISTAKES
        for program in programs
    ]
    assert len(said) == len(looks)


@pytest.mark.slow
def test_a_small_benchmark_of_ours_runs_to_its_end(tmp_path: Path) -> None:
    options = ["--only-ours", "--case", "small", "--scale", "0.002", "--rounds", "1", "--quick"]
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", *options, "--scratch", scratch, "--output", tmp_path],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "result.json").read_text())
    kinds = {(run["case"], run["direction"], run["transport"]) for run in result["runs"]}
    assert kinds >= {
        ("small", way, wire) for way in ("upload", "download") for wire in ("http", "https")
    }
    assert len(result["refusals"]) == 4 * 2 * 2
    assert list(scratch.iterdir()) == []
    assert "staging upload" in done.stdout
    assert (tmp_path / "result.svg").exists()
