"""An extracted checkpoint as a source: links, names, changes, descriptors (I3, I4, I7, I10, I11)."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from staging.formats import tar
from staging.source import directory as module
from staging.source.directory import MAX_OPEN, Directory
from staging.source.enclosure import Enclosure, OpenFiles
from staging.source.tar_file import TarFile
from staging.store.memory import MemoryStore
from staging.transfer.scheduler import Scheduler
from staging.transfer.sizing import MIB
from staging.upload import UploadOptions, upload
from staging.vocabulary.errors import LayoutInvalid, MalformedInput, NotFound, StagingError
from staging.vocabulary.location import S3Location
from tests.support.checkpoints import hugging_face, random_bytes, tar_of, vendor, write_tree

FILES = vendor(1)


@contextlib.contextmanager
def opened(path: Path, target: str = "") -> Iterator[Directory]:
    source = Directory(path, target=target)
    try:
        yield source
    finally:
        source.close()


def content(source: Directory) -> dict[str, bytes]:
    found = {}
    for file in source.files():
        buffer = bytearray(file.size)
        source.read_into(file, 0, memoryview(buffer))
        found[str(file.path)] = bytes(buffer)
    return found


def refused(path: Path) -> MalformedInput:
    with pytest.raises(MalformedInput) as raised:
        Directory(path)
    assert raised.value.side == "source"
    assert raised.value.hint
    assert raised.value.message.isprintable()
    return raised.value


@pytest.fixture(autouse=True)
def no_descriptor_is_left() -> Iterator[None]:
    before = set(os.listdir("/proc/self/fd"))
    yield
    left = [
        fd
        for fd in set(os.listdir("/proc/self/fd")) - before
        if os.path.exists(f"/proc/self/fd/{fd}")
    ]
    assert left == []


def test_the_files_are_those_below_the_directory_in_order_of_their_bytes(tmp_path: Path) -> None:
    files = {**FILES, "é.txt": b"e", "Z.txt": b"Z", "a/b.txt": b"ab", "a.txt": b"a"}
    with opened(write_tree(tmp_path / "m", files)) as source:
        paths = [str(file.path) for file in source.files()]
        assert paths == sorted(files, key=lambda name: name.encode())
        assert content(source) == files
        assert (source.kind, source.name, source.identity) == ("directory", "m", None)
        assert source.size == sum(map(len, files.values()))
        assert not source.sequential
        source.finish()


def test_empty_directories_and_hard_links_are_fine(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "m", {"a.txt": b"a"})
    (root / "empty/inside").mkdir(parents=True)
    os.link(root / "a.txt", root / "b.txt")
    with opened(root) as source:
        assert content(source) == {"a.txt": b"a", "b.txt": b"a"}
        source.finish()


def test_the_directory_may_be_named_in_any_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_tree(tmp_path / "laguna-xs", FILES)
    (tmp_path / "current").symlink_to("laguna-xs")
    monkeypatch.chdir(root)
    for path in (root, Path(), Path("../laguna-xs/"), tmp_path / "current"):
        with opened(path) as source:
            assert content(source) == FILES
    with opened(Path()) as source:
        assert source.name == "laguna-xs"


def test_what_is_beside_the_model_is_skipped_and_named(tmp_path: Path) -> None:
    beside = [
        ".checkpoint/manifest.json",
        ".Checkpoint-Complete",
        ".cache/huggingface/download/a.metadata",
        ".git/objects/00/11",
        ".gitattributes",
    ]
    kept = {**FILES, ".cache/other": b"1", "sub/.git/x": b"2", "sub/.gitattributes": b"3"}
    root = write_tree(tmp_path / "m", {**kept, **dict.fromkeys(beside, b"not ours")})
    (root / ".git/loop").symlink_to("..")  # nobody looks inside
    with opened(root) as source:
        assert content(source) == kept
        assert source.skipped == (
            ".Checkpoint-Complete",
            ".cache/huggingface",
            ".checkpoint",
            ".git",
            ".gitattributes",
        )
        (root / ".checkpoint/ready.json").write_bytes(b"{}")
        source.finish()


# --- what is refused ---


def test_a_directory_that_is_not_there_or_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "models--a--b/snapshots").mkdir(parents=True)
    for name in ("nothing", "file", "file/below", "models--a--b/snapshots/gone"):
        with pytest.raises(NotFound) as raised:
            Directory(tmp_path / name)
        assert raised.value.reference == "source"


def test_a_directory_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(StagingError, match="too long") as raised:
        Directory(tmp_path / ("x" * 300))
    assert (raised.value.reference, raised.value.side) == ("source-io", "source")


def test_no_files_are_no_checkpoint(tmp_path: Path) -> None:
    for name in ("", "sub/", ".git/"):
        (tmp_path / "m" / name).mkdir(parents=True, exist_ok=True)
        assert refused(tmp_path / "m").reference == "no-files"


def test_a_named_pipe_and_a_socket_are_refused(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "m", FILES)
    os.mkfifo(root / "pipe")
    assert "'pipe'" in refused(root).message
    (root / "link").symlink_to("pipe")
    os.rename(root / "pipe", root / "sub-pipe")
    (root / "link").unlink()
    assert refused(root).reference == "special-file"
    os.unlink(root / "sub-pipe")
    with socket.socket(socket.AF_UNIX) as listening, contextlib.chdir(root):
        listening.bind("socket")
        assert refused(root).reference == "special-file"


@pytest.mark.parametrize(
    "name",
    [
        b"a\\b",
        b"line\nbreak",
        b"\xff\xfe",
        "e\u0301".encode(),
        "a\u200b".encode(),
        b"sub/a\x1b[31m",
    ],
)
def test_unsafe_names_are_refused_wherever_they_are(tmp_path: Path, name: bytes) -> None:
    root = write_tree(tmp_path / "m", FILES)
    path = os.path.join(os.fsencode(root), name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb"):
        pass
    assert refused(root).reference == "unsafe-name"


@pytest.mark.parametrize("second", ["CONFIG.yaml", "Tokenizer/other.json", "Tokenizer"])
def test_names_that_collide_somewhere_are_refused(tmp_path: Path, second: str) -> None:
    assert (
        refused(write_tree(tmp_path / "m", {**FILES, second: b"x"})).reference == "name-collision"
    )


def test_the_number_and_depth_of_names_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = "/".join("d" * tar.MAX_DEPTH)
    assert refused(write_tree(tmp_path / "deep", {f"{deep}/f": b""})).reference == "unsafe-name"
    with opened(write_tree(tmp_path / "less", {f"{deep[2:]}/f": b""})) as source:
        assert len(content(source)) == 1
    many = write_tree(tmp_path / "many", {f"{number}.txt": b"" for number in range(10)})
    monkeypatch.setattr(module, "MAX_ENTRIES", 9)
    assert refused(many).reference == "too-many-files"
    monkeypatch.setattr(module, "MAX_ENTRIES", 10)
    with opened(many) as source:
        assert len(content(source)) == 10
    monkeypatch.setattr(module, "MAX_NAME_BYTES", 40)
    assert refused(many).reference == "too-many-files"


# --- where the checkpoint is ---


def test_a_checkpoint_one_level_down_is_refused_with_its_directory(tmp_path: Path) -> None:
    root = write_tree(
        tmp_path / "un packed", {f"laguna-xs/{name}": data for name, data in FILES.items()}
    )
    with pytest.raises(LayoutInvalid) as raised:
        Directory(root, target="s3://b/m/")
    assert raised.value.reference == "layout-nested"
    assert "'laguna-xs'" in raised.value.message
    assert raised.value.hint == f"staging upload '{root}/laguna-xs' s3://b/m/"


def test_several_checkpoints_are_refused(tmp_path: Path) -> None:
    files = {f"{top}/{name}": data for top in ("a", "b") for name, data in FILES.items()}
    root = write_tree(tmp_path / "models", files)
    with pytest.raises(LayoutInvalid) as raised:
        Directory(root, target="s3://b/m/")
    assert raised.value.reference == "layout-several"
    assert "'a', 'b'" in raised.value.message
    assert f"staging upload {root}/a s3://b/m/" in (raised.value.hint or "")


def test_a_deployment_bundle_is_refused_as_an_archive_of_it_is(tmp_path: Path) -> None:
    files = {"scripts/up.sh": b"x", "charts/values.yaml": b"x", "containers/a.tar": b"x"}
    with pytest.raises(LayoutInvalid) as raised:
        Directory(write_tree(tmp_path / "bundle", files))
    assert raised.value.reference == "deployment-bundle"


def test_weights_at_the_root_and_below_are_one_checkpoint(tmp_path: Path) -> None:
    files = {**FILES, "original/model.safetensors": b"x"}
    with opened(write_tree(tmp_path / "m", files)) as source:
        assert content(source) == files


# --- links ---


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A snapshot as `huggingface-cli download` leaves it: links to blobs named by their hashes."""
    model = tmp_path / "hub/models--org--laguna-xs"
    snapshot = model / "snapshots/0123abc"
    for number, (name, data) in enumerate(hugging_face(1).items()):
        blob = model / f"blobs/{number:040x}"
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(data)
        link = snapshot / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return snapshot


def test_a_snapshot_of_the_cache_is_read_through_its_links(cache: Path, tmp_path: Path) -> None:
    with opened(cache) as source:
        assert content(source) == hugging_face(1)
        source.finish()
    (tmp_path / "shortcut").symlink_to(cache)
    with opened(tmp_path / "shortcut") as source:
        assert content(source) == hugging_face(1)


def test_links_of_the_cache_may_be_absolute(cache: Path) -> None:
    link = cache / "config.json"
    target = link.resolve()
    link.unlink()
    link.symlink_to(target)
    with opened(cache) as source:
        assert content(source) == hugging_face(1)


def test_links_of_the_cache_stay_inside_the_model(cache: Path) -> None:
    other = cache.parents[2] / "models--org--other/blobs/1"
    other.parent.mkdir(parents=True)
    other.write_bytes(b"other")
    (cache / "extra.txt").symlink_to(os.path.relpath(other, cache))
    error = refused(cache)
    assert error.reference == "symlink-outside"
    assert "'extra.txt'" in error.message


def test_a_sub_directory_of_a_snapshot_has_the_same_limit(cache: Path) -> None:
    (cache / "sub").mkdir()
    (cache / "sub/config.json").symlink_to(
        os.path.relpath((cache / "config.json").resolve(), cache / "sub")
    )
    with opened(cache / "sub") as source:
        assert content(source) == {"config.json": hugging_face(1)["config.json"]}


def test_links_inside_the_directory_are_followed(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "m", {"a/one.txt": b"1", "b/two.txt": b"2"})
    (root / "one").symlink_to("a/../b/../a/./one.txt")
    (root / "again").symlink_to("one")
    (root / "b/up").symlink_to("../a/one.txt")
    (root / "absolute").symlink_to(root / "b/two.txt")
    (root / "c").symlink_to("a")
    (root / "through").symlink_to("c/one.txt")
    with opened(root) as source:
        assert content(source) == {
            "a/one.txt": b"1",
            "b/two.txt": b"2",
            "one": b"1",
            "again": b"1",
            "b/up": b"1",
            "absolute": b"2",
            "c/one.txt": b"1",
            "through": b"1",
        }
        source.finish()


LINKS: dict[str, tuple[str, str]] = {
    "parent": ("../secret", "symlink-outside"),
    "absolute": ("/etc/hostname", "symlink-outside"),
    "sibling-with-the-same-beginning": ("../m-other/secret", "symlink-outside"),
    "out-and-in-again": ("../m/config.yaml", "symlink-outside"),
    "through-a-directory": ("tokenizer/../../secret", "symlink-outside"),
    "directory": ("..", "symlink-outside"),
    "nothing": ("no-such-file", "symlink-broken"),
    "itself": ("link", "symlink-loop"),
    "the-root": (".", "symlink-loop"),
}


@pytest.mark.parametrize(("target", "reference"), LINKS.values(), ids=LINKS.keys())
def test_links_that_lead_elsewhere_are_refused(tmp_path: Path, target: str, reference: str) -> None:
    for name in ("secret", "m-other/secret"):
        write_tree(tmp_path, {name: b"secret"})
    root = write_tree(tmp_path / "m", FILES)
    (root / "link").symlink_to(target)
    error = refused(root)
    assert error.reference == reference
    assert "link" in error.message


def test_an_absolute_link_is_not_helped_by_dots(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "m", FILES)
    write_tree(tmp_path, {"secret": b"secret"})
    (root / "link").symlink_to(f"{root}/../secret")
    assert refused(root).reference == "symlink-outside"


def test_directory_links_that_go_in_circles_are_refused(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "m", {"a/x.txt": b"x", "b/y.txt": b"y"})
    (root / "a/to-b").symlink_to("../b")
    (root / "b/to-a").symlink_to("../a")
    assert refused(root).reference == "symlink-loop"


def test_a_long_chain_of_links_is_a_loop(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "m", {"0": b"x"})
    for number in range(1, 60):
        (root / f"{number:02}").symlink_to(f"{number - 1:02}" if number > 1 else "0")
    assert refused(root).reference == "symlink-loop"


def test_no_link_is_followed_that_was_put_there_later(tmp_path: Path) -> None:
    write_tree(tmp_path, {"elsewhere/x.txt": b"s"})
    root = write_tree(tmp_path / "m", {"sub/x.txt": b"x"})
    with opened(root) as source:
        (file,) = source.files()
        os.rename(root / "sub", root / "old")
        (root / "sub").symlink_to("../elsewhere")
        with pytest.raises(MalformedInput) as raised:
            source.read_into(file, 0, memoryview(bytearray(1)))
        assert raised.value.reference == "source-changed"


# --- changes ---


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def cut(path: Path) -> None:
    os.truncate(path, 10)


def touch(path: Path) -> None:
    os.utime(path, ns=(1, 1))


def rewrite(path: Path) -> None:
    """Other bytes of the same length, and the old times put back."""
    status = path.stat()
    path.write_bytes(random_bytes(status.st_size, 99))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def replace(path: Path) -> None:
    other = path.with_name("new")
    other.write_bytes(path.read_bytes())
    os.utime(other, ns=(1, path.stat().st_mtime_ns))
    os.replace(other, path)


def remove(path: Path) -> None:
    path.unlink()


CHANGES = [grow, cut, touch, rewrite, replace, remove]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("was_open", [False, True], ids=["new", "open"])
def test_a_file_that_changes_is_refused_by_the_next_read(
    tmp_path: Path, change: Callable[[Path], None], was_open: bool
) -> None:
    root = write_tree(tmp_path / "m", {"a.bin": random_bytes(1000, 1), "b.txt": b"b"})
    with opened(root) as source:
        file, _ = source.files()
        view = memoryview(bytearray(20))
        if was_open:
            source.read_into(file, 0, view)
        change(root / "a.bin")
        with pytest.raises(MalformedInput) as raised:
            source.read_into(file, 0, view)
        assert raised.value.reference == "source-changed"
        assert "'a.bin'" in raised.value.message


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_changed_after_it_was_read_is_refused_at_the_end(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    root = write_tree(tmp_path / "m", {"a.bin": random_bytes(1000, 1), "b.txt": b"b"})
    with opened(root) as source:
        content(source)
        source.finish()
        change(root / "a.bin")
        with pytest.raises(MalformedInput) as raised:
            source.finish()
        assert raised.value.reference == "source-changed"
        assert "'a.bin'" in raised.value.message


def test_nothing_is_read_of_what_has_taken_a_files_place(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "m", {"a.bin": b"a"})
    with opened(root) as source:
        (file,) = source.files()
        (root / "a.bin").unlink()
        os.mkfifo(root / "a.bin")
        with pytest.raises(MalformedInput) as raised:
            source.read_into(file, 0, memoryview(bytearray(1)))
        assert raised.value.reference == "source-changed"


def test_a_file_that_comes_later_is_noticed(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "m", {"a.bin": b"a"})
    with opened(root) as source:
        content(source)
        write_tree(root, {"sub/later.bin": b"later"})
        with pytest.raises(MalformedInput, match=r"later\.bin") as raised:
            source.finish()
        assert raised.value.reference == "source-changed"


def test_a_link_that_leads_elsewhere_now_is_noticed(cache: Path) -> None:
    with opened(cache) as source:
        content(source)
        link = cache / "config.json"
        other = os.readlink(cache / "tokenizer.json")
        link.unlink()
        link.symlink_to(other)
        with pytest.raises(MalformedInput, match=r"config\.json"):
            source.finish()


def test_stamps_tell_a_file_from_a_changed_one(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "m", {"a.bin": b"a", "b.bin": b"b"})
    os.utime(root / "a.bin", ns=(1, 123_456_789))
    os.utime(root / "b.bin", ns=(1, 2))
    stamps = []
    for _ in range(2):
        with opened(root) as source:
            stamps.append([file.stamp for file in source.files()])
        os.utime(root / "b.bin", ns=(1, 3))
    assert stamps == [["1-123456789", "1-2"], ["1-123456789", "1-3"]]


# --- descriptors and threads ---


def open_below(path: Path) -> list[str]:
    found = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            target = os.readlink(f"/proc/self/fd/{fd}")
            if target.startswith(f"{path}/"):
                found.append(target)
    return found


def test_few_files_are_open_however_many_there_are(tmp_path: Path) -> None:
    files = {f"{number:04}.bin": random_bytes(100, number) for number in range(3 * MAX_OPEN)}
    root = write_tree(tmp_path / "m", files)
    with opened(root) as source:
        assert open_below(root) == []
        assert content(source) == files
        assert len(open_below(root)) == MAX_OPEN
    assert open_below(root) == []


def test_ranges_are_read_by_many_threads_in_any_order(tmp_path: Path) -> None:
    files = {f"{number:03}.bin": random_bytes(5000, number) for number in range(2 * MAX_OPEN)}
    root = write_tree(tmp_path / "m", files)
    wrong = []
    with opened(root) as source:
        spans = [(file, at) for file in source.files() for at in range(0, 5000, 1000)]
        random.Random(1).shuffle(spans)

        def read(span: tuple[module.SourceFile, int]) -> None:
            file, at = span
            buffer = bytearray(1000)
            source.read_into(file, at, memoryview(buffer))
            if buffer != files[file.path][at : at + 1000]:
                wrong.append(span)

        with Scheduler(8) as scheduler:
            for span in spans:
                scheduler.submit(lambda span=span: read(span))
        assert len(open_below(root)) <= MAX_OPEN
    assert wrong == []


def test_a_descriptor_in_use_outlives_its_eviction_and_the_end() -> None:
    closed: list[str] = []
    files = OpenFiles(1)

    def open_null() -> int:
        closed.append("opened")
        return os.open(os.devnull, os.O_RDONLY)

    with files.use("a", open_null) as first:
        with files.use("b", open_null) as second:
            assert first != second
            os.fstat(first)  # evicted, and still open
            with files.use("b", open_null) as same:
                assert same == second
            files.close()
            os.fstat(second)
        with pytest.raises(OSError, match="Bad file"):
            os.fstat(second)
        os.fstat(first)
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(first)
    assert closed == ["opened", "opened"]


def test_a_descriptor_with_two_users_stays_for_the_second() -> None:
    def open_null() -> int:
        return os.open(os.devnull, os.O_RDONLY)

    files = OpenFiles(1)
    with files.use("a", open_null) as fd:
        with files.use("a", open_null):
            files.close()
        os.fstat(fd)
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(fd)


def test_what_was_used_last_stays_open() -> None:
    opened_names = []
    files = OpenFiles(2)

    def use(name: str) -> None:
        def open_null() -> int:
            opened_names.append(name)
            return os.open(os.devnull, os.O_RDONLY)

        with files.use(name, open_null):
            pass

    for name in "abacab":
        use(name)
    files.close()
    assert "".join(opened_names) == "abcb"


def test_two_threads_that_open_the_same_file_at_once_keep_one(tmp_path: Path) -> None:
    both = threading.Barrier(2)
    files = OpenFiles(4)
    seen = []

    def open_null() -> int:
        both.wait(timeout=60)
        return os.open(os.devnull, os.O_RDONLY)

    def use() -> None:
        with files.use("a", open_null) as fd:
            os.fstat(fd)
            seen.append(fd)
            both.wait(timeout=60)

    with Scheduler(2) as scheduler:
        scheduler.submit(use)
        scheduler.submit(use)
    assert len(set(seen)) == 2
    kept = []
    for fd in seen:
        with contextlib.suppress(OSError):
            os.fstat(fd)
            kept.append(fd)
    assert len(kept) == 1
    files.close()


def test_an_enclosure_opens_no_link(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "m", {"sub/a.txt": b"a"})
    (root / "link").symlink_to("sub")
    (root / "file").symlink_to("sub/a.txt")
    enclosure = Enclosure(str(root))
    for place in ("link/a.txt", "file", "sub/none", "sub/a.txt/x"):
        with pytest.raises(OSError, match=r"directory|loop|levels|such"):
            enclosure.open(place)
    os.close(enclosure.open("sub/a.txt"))
    enclosure.close()


# --- one checkpoint, whatever it comes in ---


def test_the_id_is_that_of_the_archive_of_it(cache: Path, tmp_path: Path) -> None:
    files = hugging_face(1)
    archive = tmp_path / "m.tar"
    archive.write_bytes(tar_of(files))
    plain = write_tree(
        tmp_path / "plain", {**files, ".cache/huggingface/x": b"x", ".gitattributes": b""}
    )
    store = MemoryStore()
    ids = set()
    for number, source in enumerate((TarFile(archive), Directory(cache), Directory(plain))):
        location = S3Location("models", f"m{number}/")
        result = upload(source, store, location, UploadOptions(memory=256 * MIB, cores=2))
        source.close()
        ids.add(result.manifest.id)
    assert len(ids) == 1


def test_a_directory_that_changes_meanwhile_is_not_published(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "m", FILES)
    store = MemoryStore()
    source = Directory(root)
    write_tree(root, {"late.txt": b"late"})
    with pytest.raises(MalformedInput) as raised:
        upload(source, store, S3Location("models", "m/"), UploadOptions(memory=256 * MIB, cores=2))
    source.close()
    assert raised.value.reference == "source-changed"
    assert not list(store.list_objects(""))
    assert not list(store.list_multipart_uploads(""))
