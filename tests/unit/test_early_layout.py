"""Layout rules while a sequential source passes by: what is certain is refused unsent (I11, I12, I16).

What holds: of a file that breaks a rule by its name nothing is read or sent. Of one that breaks a rule by its
document or header the part in which that ends is not sent, nor anything behind it; so no weights are sent
of a shard whose header is wrong. Parts that hold nothing but the beginning of a longer header may be.
"""

from __future__ import annotations

import functools
import gzip
import io
import json
import random
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest
import zstandard

from staging.formats.stranger import SNIFF_BYTES
from staging.inspection import Passing, take_inventory
from staging.layout.documents import MAX_DOCUMENT_BYTES
from staging.layout.inventory import INDEX_NAME, Inventory
from staging.layout.policy import Policy
from staging.layout.rules import RULES, Gradual
from staging.source.compressed import Unpacked
from staging.source.directory import Directory
from staging.source.hub import Hub, HubLocation
from staging.source.hub_http import HubHttp
from staging.source.pipe import Pipe
from staging.source.source import Source, SourceFile
from staging.source.tar_file import TarFile
from staging.transfer.sizing import MIB
from staging.upload import UploadOptions, UploadResult, upload
from staging.vocabulary.digest import CHUNK_SIZE
from staging.vocabulary.errors import AccessDenied, LayoutInvalid, MalformedInput
from staging.vocabulary.events import Note
from staging.vocabulary.location import S3Location
from staging.vocabulary.manifest import Manifest
from staging.vocabulary.paths import SafePath
from tests.support.checkpoints import tar_of, write_tree
from tests.support.hub import StandInHub
from tests.support.layouts import (
    BASES,
    FIRST,
    LFS_POINTER,
    SECOND,
    WEB_PAGE,
    Change,
    Files,
    adding,
    both,
    broken,
    edited,
    mapped,
    sharded,
    twice,
)
from tests.support.models import NAMES, bundle, contents, golden
from tests.support.s3server import Fault, Status
from tests.support.shared_s3 import SharedS3, shared_s3
from tests.support.tars import END, member
from tests.support.tensors import framed, safetensors_file

BUCKET: Final = "models"
LOCATION: Final = S3Location(BUCKET, "checkpoints/m/")
TOP: Final = b"laguna-xs/"
LAST: Final = "zz-notes.md"
ZIP: Final = b"PK\x03\x04" + bytes(2_000)
GUARD: Final = 30.0  # seconds; against hanging, no expectation


@pytest.fixture(autouse=True)
def every_file_goes_as_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The files here are small, and are to take the way of large ones."""
    monkeypatch.setattr("staging.upload.parts.HELD_BELOW", 1)


@pytest.fixture(scope="module")
def shared() -> Iterator[SharedS3]:
    with shared_s3(BUCKET) as opened:
        yield opened


@pytest.fixture
def s3(shared: SharedS3) -> SharedS3:
    shared.reset()
    return shared


class Tap:
    """A pipe that knows how much was read of it. At `gate`, an offset in bytes, it waits for `ready`."""

    def __init__(
        self, data: bytes, gate: int | None = None, ready: Callable[[], bool] = lambda: True
    ) -> None:
        self._data = io.BytesIO(data)
        self._gate = gate
        self._ready = ready

    @property
    def position(self) -> int:
        """Bytes that were read."""
        return self._data.tell()

    def readinto(self, view: memoryview, /) -> int:
        if self._gate is not None:
            if self.position < self._gate:
                view = view[: self._gate - self.position]
            else:
                end = time.monotonic() + GUARD
                while not self._ready() and time.monotonic() < end:
                    time.sleep(0.002)
                self._gate = None
        return self._data.readinto(view)


def starts(files: Files) -> dict[str, int]:
    """Where the header of each member begins in `tar_of`, in bytes."""
    found, at = {}, 0
    for path, data in files.items():
        found[path] = at
        at += len(member(TOP + path.encode(), data))
    return found


def options(**changes: Any) -> UploadOptions:
    return UploadOptions(**{"memory": 256 * MIB, "cores": 1, **changes})


def publish(source: Source, s3: SharedS3, **changes: Any) -> UploadResult:
    with closing(source):
        return upload(source, s3.store, LOCATION, options(**changes))


def sent(s3: SharedS3) -> dict[str, list[int]]:
    """Numbers of the parts that were sent, by path."""
    found: dict[str, list[int]] = {}
    for request in s3.server.requests.of("UploadPart"):
        assert request.part_number is not None
        found.setdefault(request.key.removeprefix(LOCATION.prefix), []).append(request.part_number)
    return found


def opened(s3: SharedS3) -> set[str]:
    """Paths of files for which an upload was opened."""
    requests = s3.server.requests.of("CreateMultipartUpload")
    return {request.key.removeprefix(LOCATION.prefix) for request in requests}


def check_untouched(s3: SharedS3) -> None:
    """Nothing is visible, and no upload is open."""
    bucket = s3.server.bucket(BUCKET)
    assert not list(bucket)
    assert not bucket.uploads()


def refused(source: Source, s3: SharedS3, **changes: Any) -> LayoutInvalid:
    """The error an upload ends with, which leaves nothing."""
    with pytest.raises(LayoutInvalid) as caught:
        publish(source, s3, **changes)
    check_untouched(s3)
    assert (caught.value.exit_code, caught.value.side) == (17, "source")
    assert caught.value.hint
    return caught.value


def cut(files: Files) -> None:
    files[SECOND] = files[SECOND][:-1]


def zeros(files: Files) -> None:
    files[SECOND] = bytes(len(files[SECOND]))


def overlapping(files: Files) -> None:
    entry = b'{"dtype":"U8","shape":[2],"data_offsets":[0,2]}'
    files[SECOND] = framed(b'{"a":%s,"b":%s}' % (entry, entry), b"ab")


BY_NAME: Final[dict[str, tuple[Change, str, str]]] = {
    "pickle": (adding("pytorch_model.bin", ZIP), "pytorch_model.bin", "pickle"),
    "distcp": (adding("__0_0.distcp", ZIP), "__0_0.distcp", "training-checkpoint"),
    "nemo": (adding("model.nemo", ZIP), "model.nemo", "training-checkpoint"),
    "optimizer": (adding("optimizer.pt", ZIP), "optimizer.pt", "training-state"),
    "program": (adding("lib/kernel.so"), "lib/kernel.so", "executable-content"),
    "archive": (adding("inner.tar"), "inner.tar", "archive-inside"),
    "macos": (adding("._model.safetensors"), "._model.safetensors", "macos-leftover"),
}
"""What is wrong, with the file that shows it and the rule: known from a file's name alone."""

BY_CONTENT: Final[dict[str, tuple[Change, str, str]]] = {
    "truncated": (cut, SECOND, "safetensors-broken"),
    "never-written": (zeros, SECOND, "safetensors-broken"),
    "overlapping": (overlapping, SECOND, "safetensors-broken"),
    "lfs-shard": (adding(SECOND, LFS_POINTER), SECOND, "safetensors-broken"),
    "web-page-shard": (adding(SECOND, WEB_PAGE), SECOND, "safetensors-broken"),
    "pickle-shard": (adding(SECOND, ZIP), SECOND, "safetensors-broken"),
    "empty-shard": (adding(SECOND, b""), SECOND, "safetensors-broken"),
    "tensor-elsewhere": (
        mapped(model__layers__0__mlp__down_proj__weight=SECOND),
        FIRST,
        "index-tensor-elsewhere",
    ),
    "tensor-missing": (
        mapped(model__layers__2__mlp__down_proj__weight=SECOND),
        SECOND,
        "index-tensor-missing",
    ),
    "tensor-twice": (twice, SECOND, "tensor-twice"),
    "web-page-config": (adding("config.json", WEB_PAGE), "config.json", "web-page"),
    "lfs-tokenizer": (adding("tokenizer.json", LFS_POINTER), "tokenizer.json", "lfs-pointer"),
    "cut-config": (adding("config.json", b'{"model_type": "lla'), "config.json", "json-broken"),
    "empty-config": (adding("config.json", b"{}"), "config.json", "config-no-architecture"),
    "no-index": (edited(INDEX_NAME, weight_map=None), INDEX_NAME, "index-broken"),
}
"""The same of what is known from a document, or from a header."""

KINDS: Final = BY_NAME | BY_CONTENT


def wrong(kind: str) -> tuple[Files, str, str]:
    """Files with one thing wrong and one more behind, the path where that shows, and the rule."""
    change, path, rule = KINDS[kind]
    files = sharded()
    change(files)
    return files | {LAST: b"x" * 5_000}, path, rule


# What is certain is refused at once


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_certain_is_refused_before_it_is_sent(s3: SharedS3, kind: str) -> None:
    files, path, rule = wrong(kind)
    data, start = tar_of(files), starts(files)[path]
    before = [name for name in files if starts(files)[name] < start]
    # So that it is certain which parts were sent: the file comes when all before it have arrived.
    arrived = lambda: s3.server.requests.count("UploadPart", status=200) == len(before)  # noqa: E731
    pipe = Tap(data, start, arrived)
    error = refused(Pipe(pipe), s3)
    assert error.reference == rule
    assert repr(path) in error.message
    assert sent(s3) == {name: [1] for name in before}
    assert opened(s3) == set(before)
    # Nothing behind it was read, and of what its name gives away not even its bytes.
    read = start + 512
    assert pipe.position == (read if kind in BY_NAME else read + len(files[path]))


@pytest.mark.parametrize("kind", KINDS)
def test_at_the_end_the_same_is_refused_and_all_was_sent(s3: SharedS3, kind: str) -> None:
    files, path, rule = wrong(kind)
    pipe = Tap(tar_of(files))
    error = refused(Pipe(pipe), s3, early=False)
    assert error.reference == rule
    assert repr(path) in error.message
    assert sent(s3) == {name: [1] for name, data in files.items() if data}
    assert pipe.position == len(tar_of(files))


@pytest.mark.parametrize("kind", KINDS)
def test_without_rules_it_is_published_and_the_manifest_says_so(s3: SharedS3, kind: str) -> None:
    files, _, _ = wrong(kind)
    result = publish(Pipe(Tap(tar_of(files))), s3, layout=None)
    assert result.findings == ()
    bucket = s3.server.bucket(BUCKET)
    layout = Manifest.decode(bucket.get(LOCATION.manifest_key)).layout
    assert (layout["checked"], layout["warnings"]) == (False, [])
    assert {name: bucket.get(LOCATION.prefix + name) for name in files} == files
    assert not bucket.uploads()


@pytest.mark.parametrize("early", [True, False], ids=["early", "end"])
@pytest.mark.parametrize(
    ("name", "reference"),
    [
        (b"../config.json", "tar-name"),
        (b"a\\b.json", "tar-name"),
        (b"config.json", "tar-duplicate"),
        (b"Config.json", "tar-duplicate"),
    ],
)
def test_names_that_no_archive_may_have_are_refused_by_the_format(
    s3: SharedS3, name: bytes, reference: str, early: bool
) -> None:
    """No rule is needed for them, whether or not there are rules."""
    data = tar_of(sharded()).removesuffix(END)
    pipe = Tap(data + member(TOP + name, b"x" * 600) + END)
    with pytest.raises(MalformedInput) as caught:
        publish(Pipe(pipe), s3, early=early)
    assert (caught.value.exit_code, caught.value.reference) == (16, reference)
    assert pipe.position == len(data) + 512
    assert set(sent(s3)) <= sharded().keys()
    check_untouched(s3)


def test_an_index_that_comes_last_refuses_shards_that_were_sent(s3: SharedS3) -> None:
    """Only then is it certain: order decides how much was sent for nothing, never what is refused."""
    files, _, rule = wrong("tensor-elsewhere")
    files[INDEX_NAME] = files.pop(INDEX_NAME)
    assert refused(Pipe(Tap(tar_of(files))), s3).reference == rule
    assert INDEX_NAME not in sent(s3)


def test_what_is_missing_is_only_known_at_the_end(s3: SharedS3) -> None:
    files = sharded()
    del files[SECOND]
    pipe = Tap(tar_of(files))
    assert refused(Pipe(pipe), s3).reference == "index-shard-missing"
    assert set(sent(s3)) == set(files)
    assert pipe.position == len(tar_of(files))


# Headers of several parts


def long_header(blanks: int, data: int) -> bytes:
    """A shard with `data` bytes, whose header is padded with blanks."""
    entry = {"dtype": "U8", "shape": [data], "data_offsets": [0, data]}
    header = json.dumps({"w": entry}).encode()
    return framed(header.ljust(len(header) + blanks), bytes(data))


@pytest.mark.parametrize(
    ("part_size", "parts"),
    [(CHUNK_SIZE, [1]), (2 * CHUNK_SIZE, []), (3 * CHUNK_SIZE, [])],
)
def test_of_a_header_longer_than_a_part_no_part_with_weights_is_sent(
    s3: SharedS3, part_size: int, parts: list[int]
) -> None:
    """It ends in the second chunk: of parts of one chunk the first holds nothing but header."""
    shard = long_header(CHUNK_SIZE + MIB, 3 * CHUNK_SIZE)[:-1]
    files = {"config.json": sharded()["config.json"], "model.safetensors": shard, LAST: b"x"}
    start = starts(files)["model.safetensors"] + 512
    arrived = lambda: s3.server.requests.count("UploadPart", status=200) == 1 + len(parts)  # noqa: E731
    pipe = Tap(tar_of(files), start + CHUNK_SIZE, arrived)
    assert refused(Pipe(pipe), s3, part_size=part_size).reference == "safetensors-broken"
    assert sent(s3) == {"config.json": [1]} | ({"model.safetensors": parts} if parts else {})
    assert pipe.position == start + 2 * CHUNK_SIZE


@pytest.mark.parametrize("claim", [100_000_001, 2 * CHUNK_SIZE, 2**63])
def test_a_header_that_cannot_be_is_known_from_its_length(s3: SharedS3, claim: int) -> None:
    shard = claim.to_bytes(8, "little") + b'{"w":' + bytes(CHUNK_SIZE + MIB)
    files = {"model.safetensors": shard, LAST: b"x"}
    pipe = Tap(tar_of(files))
    assert refused(Pipe(pipe), s3).reference == "safetensors-broken"
    assert sent(s3) == {}
    assert pipe.position == 512 + CHUNK_SIZE  # one chunk of it


def test_a_whole_file_with_a_long_header_is_published(s3: SharedS3) -> None:
    files = {
        "config.json": sharded()["config.json"],
        "model.safetensors": long_header(CHUNK_SIZE + MIB, CHUNK_SIZE),
        "tokenizer.json": b'{"model": {}}',
        "tokenizer_config.json": b'{"chat_template": "{{ messages }}"}',
    }
    result = publish(Pipe(Tap(tar_of(files))), s3, part_size=CHUNK_SIZE)
    assert result.manifest.layout["weight_bytes"] == CHUNK_SIZE
    assert sorted(sent(s3)["model.safetensors"]) == [1, 2, 3]


# What is sound is published, in any order


def golden_files(name: str) -> Files:
    return contents(golden(name))


LAYOUTS: Final[dict[str, Callable[[], Files]]] = {
    **{name: functools.partial(golden_files, name) for name in NAMES},
    **BASES,
    "vendor": lambda: contents(bundle()),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_what_is_sound_is_published_in_any_order_with_the_same_layout(
    s3: SharedS3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    monkeypatch.setattr("staging.upload.parts.HELD_BELOW", 5 * MIB)  # fewer requests
    files = LAYOUTS[name]()
    tar = tmp_path / "model.tar"
    tar.write_bytes(tar_of(files))
    indexed = publish(TarFile(tar), s3).manifest
    assert indexed.layout["checked"] is True
    for seed in range(3):
        paths = sorted(files)
        random.Random(seed).shuffle(paths)
        s3.reset()
        result = publish(Pipe(Tap(tar_of({path: files[path] for path in paths}))), s3)
        assert result.manifest.content == indexed.content
        assert result.manifest.layout == indexed.layout
        assert list(result.manifest.layout) == list(indexed.layout)


def swapped(files: Files) -> None:
    """Two tensors that the index has the wrong way round."""
    change = mapped(
        model__layers__0__mlp__down_proj__weight=SECOND,
        model__layers__1__mlp__down_proj__weight=FIRST,
    )
    change(files)


def twice_in_the_other_order(files: Files) -> None:
    """A tensor in both shards, where the index names the one that comes later."""
    twice(files)
    files[FIRST], files[SECOND] = files[SECOND], files[FIRST]
    index = json.loads(files[INDEX_NAME])
    other = {FIRST: SECOND, SECOND: FIRST}
    index["weight_map"] = {name: other[path] for name, path in index["weight_map"].items()}
    files[INDEX_NAME] = json.dumps(index).encode()


@pytest.mark.parametrize(
    ("change", "ignored"),
    [
        (swapped, {"index-tensor-elsewhere"}),
        (twice, {"tensor-twice"}),
        (twice_in_the_other_order, {"tensor-twice"}),
        (both(swapped, adding("a.pkl")), {"index-tensor-elsewhere", "pickle"}),
    ],
)
def test_what_passes_at_the_end_passes_early(
    s3: SharedS3, change: Change, ignored: set[str]
) -> None:
    """A rule that was left out is not found under another one's name while shards are still coming."""
    policy = Policy(ignore=frozenset(ignored))
    files = sharded()
    change(files)
    for order in (list(files), list(reversed(files))):
        s3.reset()
        data = tar_of({path: files[path] for path in order})
        refused(Pipe(Tap(data)), s3)
        refused(Pipe(Tap(data)), s3, early=False)
        result = publish(Pipe(Tap(data)), s3, layout=policy)
        assert result.manifest.layout["ignored"] == sorted(ignored)


def test_files_that_are_allowed_pass_early_and_others_do_not(s3: SharedS3) -> None:
    files, path, _ = wrong("pickle")
    policy = Policy(allow=frozenset({path}))
    publish(Pipe(Tap(tar_of(files))), s3, layout=policy)
    s3.reset()
    more = tar_of(files | {"other.pkl": b"x"})
    assert "'other.pkl'" in refused(Pipe(Tap(more)), s3, layout=policy).message


@pytest.mark.parametrize("piped", [False, True], ids=["file", "pipe"])
def test_strict_refuses_a_warning(s3: SharedS3, tmp_path: Path, piped: bool) -> None:
    files = broken("chat-template-missing")
    (tmp_path / "model.tar").write_bytes(tar_of(files))

    def source() -> Source:
        return Pipe(Tap(tar_of(files))) if piped else TarFile(tmp_path / "model.tar")

    strict = Policy(strict=True)
    assert refused(source(), s3, layout=strict).reference == "chat-template-missing"
    result = publish(source(), s3)
    assert [finding.rule for finding in result.findings] == ["chat-template-missing"]
    assert result.manifest.layout["warnings"] == ["chat-template-missing"]


@pytest.mark.parametrize("name", [".DS_Store", "convert.sh", "trainer_state.json"])
def test_strict_refuses_a_certain_warning_before_it_is_sent(s3: SharedS3, name: str) -> None:
    files = sharded()
    adding(name)(files)
    data = tar_of(files | {LAST: b"x" * 5_000})
    start = starts(files)[name]
    pipe = Tap(data)
    error = refused(Pipe(pipe), s3, layout=Policy(strict=True))
    assert repr(name) in error.message
    assert pipe.position == start + 512
    assert not sent(s3).keys() & {name, LAST}
    pipe = Tap(data)
    assert (
        refused(Pipe(pipe), s3, layout=Policy(strict=True), early=False).reference
        == error.reference
    )
    assert pipe.position == len(data)
    assert publish(Pipe(Tap(data)), s3).manifest.layout["warnings"] == [error.reference]


# From every source


def gzipped(data: bytes) -> Pipe:
    return Pipe(Unpacked(Tap(gzip.compress(data))))


def zstandarded(data: bytes) -> Pipe:
    return Pipe(Unpacked(Tap(zstandard.ZstdCompressor().compress(data))))


@pytest.mark.parametrize("packed", [gzipped, zstandarded])
@pytest.mark.parametrize("kind", ["truncated", "web-page-config", "distcp"])
def test_compressed_archives(s3: SharedS3, packed: Callable[[bytes], Pipe], kind: str) -> None:
    files, path, rule = wrong(kind)
    assert refused(packed(tar_of(files)), s3).reference == rule
    before = [name for name in files if starts(files)[name] < starts(files)[path]]
    assert set(sent(s3)) <= set(before)
    assert opened(s3) <= set(before)
    refused(packed(tar_of(files)), s3, early=False)
    assert path in sent(s3)


@pytest.mark.parametrize("kind", ["truncated", "web-page-config", "distcp"])
def test_a_hub_repository(s3: SharedS3, kind: str) -> None:
    """Its weights come last: an index is known before its shards."""
    files, path, rule = wrong(kind)
    with StandInHub() as hub:
        hub.commit("org/model", files)

        def source() -> Hub:
            http = HubHttp(endpoint=hub.endpoint, token=None, backoff=0.001, rng=random.Random(7))
            return Hub(HubLocation("org/model", "main"), http, memory=8 * MIB, concurrency=2)

        assert refused(source(), s3).reference == rule
        weights = {name for name in files if name.endswith(".safetensors")}
        assert set(sent(s3)) & weights <= {name for name in weights if name < path}
        s3.reset()
        refused(source(), s3, early=False)
        assert path in sent(s3)


@pytest.mark.parametrize("early", [True, False], ids=["early", "end"])
@pytest.mark.parametrize("kind", ["truncated", "tensor-missing", "web-page-config", "pickle"])
def test_of_an_indexed_source_nothing_at_all_is_sent(
    s3: SharedS3, tmp_path: Path, kind: str, early: bool
) -> None:
    files, _, rule = wrong(kind)
    (tmp_path / "model.tar").write_bytes(tar_of(files))
    directory = Directory(write_tree(tmp_path / "model", files))
    for source in (TarFile(tmp_path / "model.tar"), directory):
        assert refused(source, s3, early=early).reference == rule
        assert list(s3.server.requests) == []


# What is left


def test_a_refusal_leaves_no_record_and_says_that_nothing_is_kept(s3: SharedS3) -> None:
    files, _, _ = wrong("truncated")
    notes: list[Note] = []
    source = Pipe(Tap(tar_of(files)))
    with pytest.raises(LayoutInvalid) as caught:
        upload(
            source,
            s3.store,
            LOCATION,
            options(),
            lambda event: notes.append(event) if isinstance(event, Note) else None,
        )
    check_untouched(s3)
    assert caught.value.document["leftovers"] == []
    assert caught.value.document["kept_uploads"] == 0
    assert [note.text.partition(":")[0] for note in notes] == ["stopping"]


def test_what_an_interrupted_run_left_goes_as_far_as_this_run_came(s3: SharedS3) -> None:
    """What it did not come to is as the earlier run left it, and recorded: `staging gc` finds it."""
    files, path, rule = wrong("truncated")
    data = tar_of(files)
    s3.server.script(Fault("UploadPart", Status(403), key=LOCATION.prefix + path))
    with pytest.raises(AccessDenied):
        publish(Pipe(Tap(data)), s3, layout=None)
    bucket = s3.server.bucket(BUCKET)
    before = {upload.key.removeprefix(LOCATION.prefix) for upload in bucket.uploads()}
    assert FIRST in before
    s3.server.clear_script()
    s3.server.requests.clear()
    with pytest.raises(LayoutInvalid) as caught:
        publish(Pipe(Tap(data)), s3)
    assert caught.value.reference == rule
    assert sent(s3).keys().isdisjoint({path, LAST})
    after = {upload.key.removeprefix(LOCATION.prefix) for upload in bucket.uploads()}
    assert after == before & {path, LAST}
    records = [key for key in bucket if not key.endswith("/run.json")]
    assert len(records) == len(after)
    assert all(key.startswith(LOCATION.control_prefix + "upload/") for key in bucket)


# What it costs


class Sizes(dict[str, int]):
    """Sizes by path that count how often all of them are looked at."""

    walks = 0

    def __iter__(self) -> Iterator[str]:
        self.walks += 1
        return super().__iter__()

    def keys(self) -> Any:
        self.walks += 1
        return super().keys()

    def items(self) -> Any:
        self.walks += 1
        return super().items()


def test_a_call_looks_at_the_files_that_came_and_at_no_others() -> None:
    """Thousands of small files cost no more than once each."""
    files = Sizes(sharded_sizes())
    found = take_inventory(list(files.items()), lambda path: _At(sharded()[path]))
    files.walks = 0
    gradual = Gradual()
    for number in range(50):
        path = f"assets/{number}.txt"
        files[path] = 1
        assert gradual.judge(replace(found, files=files), [path]) == []
    for path in (FIRST, SECOND, INDEX_NAME, "config.json"):
        assert gradual.judge(replace(found, files=files), [path]) == []
    assert files.walks == 0
    assert list(files)
    assert files.walks == 1  # they are counted


def sharded_sizes() -> dict[str, int]:
    return {path: len(data) for path, data in sharded().items()}


class _At:
    """Bytes as `ReadAt`."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.size = len(data)

    def read_at(self, offset: int, length: int) -> bytes:
        return self._data[offset : offset + length]


def test_a_file_is_judged_once_for_its_name_and_once_for_what_is_in_it(
    s3: SharedS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged: list[list[str]] = []
    judge = Gradual.judge

    def counted(self: Gradual, inventory: Inventory, fresh: Any) -> Any:
        judged.append(sorted(fresh))
        return judge(self, inventory, fresh)

    monkeypatch.setattr(Gradual, "judge", counted)
    monkeypatch.setattr("staging.upload.parts.HELD_BELOW", 5 * MIB)
    assets = {f"assets/{number}.txt": b"x" for number in range(40)}
    large = safetensors_file({"w": ("U8", [CHUNK_SIZE * 2], bytes(CHUNK_SIZE * 2))})
    files = {"config.json": b'{"model_type": "m"}', "model.safetensors": large, **assets}
    publish(Pipe(Tap(tar_of(files))), s3)
    assert judged == [
        ["config.json"],
        ["config.json"],
        ["model.safetensors"],
        ["model.safetensors"],
        *([path] for path in assets),
    ]


def test_what_is_too_long_to_be_a_document_is_not_kept() -> None:
    passing = Passing(Gradual())
    piece = memoryview(b"{" * MIB)
    file = SourceFile(SafePath("config.json"), 4 * MAX_DOCUMENT_BYTES, 0)
    tracemalloc.start()
    try:
        passing.note(file)
        for _ in range(file.size // MIB):
            passing.watch(file, piece)
            [*found] = passing.certain()
            assert {finding.rule for finding in found} <= {"document-unread"}
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 64 * SNIFF_BYTES
    assert peak < MIB


def test_every_kind_is_a_rule_that_is_certain_early() -> None:
    assert {rule for _, _, rule in KINDS.values()} <= {
        name for name, rule in RULES.items() if rule.lasting and rule.severity == "error"
    }
