"""The local side by itself: markers, trees, members, partial files, locks (I5, I10, I15)."""

from __future__ import annotations

import ctypes
import errno
import inspect
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from staging.directory import fs as fs_module
from staging.directory.entry import Kind, Stamp
from staging.directory.failure import local_failure
from staging.directory.fs import Fs
from staging.directory.local import LocalDirectory
from staging.directory.marker import Marker
from staging.directory.partial import PIECE, PartialFile
from staging.directory.tree import Tree
from staging.transfer.scheduler import Cancellation, Cancelled
from staging.vocabulary.errors import (
    Conflict,
    MalformedInput,
    NoSpace,
    NotFound,
    StagingError,
)
from staging.vocabulary.paths import SafePath
from staging.vocabulary.read_at import ReadAt
from tests.support.checkpoints import manifest_of, random_bytes

ID = "sha256:" + "ab" * 32


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Tree]:
    opened = Tree.open(tmp_path / "dst", fs=Fs(), create=True)
    yield opened
    opened.close()


@pytest.fixture
def root(tree: Tree) -> Path:
    return tree.path


# --- the marker ---


def test_a_marker_survives_its_encoding_and_is_written_one_way() -> None:
    stamps = {"b/é.txt": Stamp(0, -5, 2**60), "a": Stamp(2**53 - 1, 10**19, 1)}
    marker = Marker(ID, stamps)
    assert Marker.decode(marker.encode()) == marker
    assert Marker(ID, dict(reversed(stamps.items()))).encode() == marker.encode()
    assert marker.encode().decode("utf-8").index('"a"') < marker.encode().decode().index('"b/é')


_GOOD = Marker(ID, {"a": Stamp(1, 2, 3)}).encode().decode()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("checkpoint-ready/1", "checkpoint-ready/2"),
        ("sha256:ab", "sha256:AB"),
        ('"size": 1', '"size": true'),
        ('"size": 1', '"size": -1'),
        ('"size": 1', '"size": 1.0'),
        ('"inode": 3', '"inode": null'),
        ('"inode": 3,', ""),
        ('"size": 1', '"size": 1, "mode": 2'),
        ('"a"', '"../a"'),
        ('"a"', '".checkpoint/a"'),
        ('"schema"', '"extra": 1, "schema"'),
        ('"schema"', '"schema": 1, "schema"'),
    ],
)
def test_a_marker_of_any_other_form_is_refused(before: str, after: str) -> None:
    text = _GOOD.replace(before, after)
    assert text != _GOOD
    with pytest.raises(MalformedInput) as caught:
        Marker.decode(text.encode())
    assert caught.value.reference == "marker-malformed"


def test_a_marker_covers_exactly_its_manifest() -> None:
    manifest = manifest_of({"a": b"1", "b": b"22"})
    stamps = {"a": Stamp(1, 1, 1), "b": Stamp(2, 1, 2)}
    assert Marker(manifest.id, stamps).covers(manifest)
    assert not Marker(ID, stamps).covers(manifest)
    assert not Marker(manifest.id, {"a": stamps["a"]}).covers(manifest)
    assert not Marker(manifest.id, {**stamps, "c": Stamp(0, 1, 3)}).covers(manifest)
    assert not Marker(manifest.id, {**stamps, "b": Stamp(3, 1, 2)}).covers(manifest)


# --- trees ---


def test_entries_tell_kinds_and_do_not_follow_links(tree: Tree, root: Path) -> None:
    (root / "file").write_bytes(b"12345")
    (root / "directory").mkdir()
    (root / "link").symlink_to(root / "file")
    os.mkfifo(root / "fifo")
    kinds = {name: entry.kind for name, entry in tree.walk()}
    assert kinds == {
        "file": Kind.FILE,
        "directory": Kind.DIRECTORY,
        "link": Kind.SYMLINK,
        "fifo": Kind.OTHER,
    }
    entry = tree.entry("file")
    assert entry is not None
    assert entry.stamp == Stamp.of((root / "file").stat())
    assert tree.entry("absent") is None
    assert tree.entry("file/below") is None
    assert tree.entry("absent/below") is None


def test_nothing_is_reached_through_a_link(tree: Tree, root: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_bytes(b"precious")
    (root / "link").symlink_to(outside)
    (root / "direct").symlink_to(outside / "file")
    (root / "mine").write_bytes(b"mine")
    attempts = [
        lambda: tree.open_member("link/file"),
        lambda: tree.open_member("direct"),
        lambda: tree.open_writable("link/file"),
        lambda: tree.open_writable("direct"),
        lambda: tree.create("link/new"),
        lambda: tree.make_directory("link/sub"),
        lambda: tree.rename("mine", "link/file"),
        lambda: tree.unlink("link/file"),
        lambda: tree.remove_if_empty("link/file"),
        lambda: tree.write_document("link/new.json", b"{}"),
        lambda: tree.listing("link"),
        lambda: tree.entry("link/file"),
        lambda: PartialFile(tree, "link/file", 3),
        lambda: PartialFile(tree, "direct", 3),
    ]
    for attempt in attempts:
        with pytest.raises(Conflict) as caught:
            attempt()
        assert caught.value.reference == "symlink"
    assert {path.name: path.read_bytes() for path in outside.iterdir()} == {"file": b"precious"}


def test_removing_a_tree_removes_links_and_not_their_targets(
    tree: Tree, root: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_bytes(b"precious")
    (root / "old/deep").mkdir(parents=True)
    (root / "old/deep/link").symlink_to(outside)
    (root / "old/file").write_bytes(b"x")
    tree.remove_tree("old")
    tree.remove_tree("absent")
    assert list(root.iterdir()) == []
    assert (outside / "file").read_bytes() == b"precious"


def test_a_document_is_replaced_whole(tree: Tree, root: Path) -> None:
    tree.write_document("x.json", b"first")
    inode = (root / "x.json").stat().st_ino
    tree.write_document("x.json", b"second")
    assert tree.read_document("x.json", limit=6) == b"second"
    assert (root / "x.json").stat().st_ino != inode
    assert [path.name for path in root.iterdir()] == ["x.json"]
    with pytest.raises(MalformedInput, match="at most 5"):
        tree.read_document("x.json", limit=5)
    assert tree.read_document("absent.json", limit=5) is None


def test_a_created_root_is_durable_in_the_directory_above_it(tmp_path: Path) -> None:
    synced: list[int] = []

    class Records(Fs):
        def fsync(self, fd: int) -> None:
            synced.append(os.fstat(fd).st_ino)
            super().fsync(fd)

    for _ in range(2):
        Tree.open(tmp_path / "new", fs=Records(), create=True).close()
    assert synced == [tmp_path.stat().st_ino]


class ShortWrites(Fs):
    def write(self, fd: int, view: memoryview, offset: int) -> int:
        return super().write(fd, view[: max(1, len(view) // 3)], offset)

    def read_into(self, fd: int, view: memoryview, offset: int) -> int:
        return super().read_into(fd, view[: max(1, len(view) // 3)], offset)


def test_short_reads_and_writes_are_carried_on(tmp_path: Path) -> None:
    data = random_bytes(10_000, 1)
    tree = Tree.open(tmp_path, fs=ShortWrites())
    tree.write_document("x", data)
    assert tree.read_document("x", limit=10_000) == data
    tree.close()


def test_an_existing_directory_keeps_its_mode(tree: Tree, root: Path) -> None:
    (root / "private").mkdir(mode=0o700)
    tree.make_directory("private/sub")
    assert (root / "private").stat().st_mode & 0o777 == 0o700
    assert (root / "private/sub").stat().st_mode & 0o777 == 0o755


def test_a_volume_s_setgid_bit_survives(tree: Tree, root: Path) -> None:
    root.chmod(0o2775)
    before = os.umask(0o077)
    try:
        tree.make_directory("sub")
    finally:
        os.umask(before)
    assert (root / "sub").stat().st_mode & 0o7777 == 0o2755


# --- members ---


def test_a_member_is_readable_anywhere(tree: Tree, root: Path) -> None:
    data = random_bytes(1000, 1)
    (root / "sub").mkdir()
    (root / "sub/file").write_bytes(data)
    with LocalDirectory(root) as local, local.open_member(SafePath("sub/file")) as member:
        as_read_at: ReadAt = member
        assert as_read_at.size == 1000
        assert as_read_at.read_at(990, 10) == data[990:]
        assert as_read_at.read_at(1000, 0) == b""
        for offset, length in ((-1, 1), (991, 10), (1001, 0)):
            with pytest.raises(ValueError, match="lies outside"):
                as_read_at.read_at(offset, length)
        os.truncate(root / "sub/file", 500)
        with pytest.raises(Conflict) as caught:
            as_read_at.read_at(400, 200)
        assert caught.value.reference == "changed-locally"


def test_a_missing_member_is_not_found(tree: Tree, root: Path) -> None:
    for path in ("absent", "no/such/directory"):
        with pytest.raises(NotFound) as caught:
            tree.open_member(path)
        assert (caught.value.reference, caught.value.side) == ("file", "local")


def test_files_are_the_regular_ones_with_safe_names(tree: Tree, root: Path) -> None:
    for name in ("a", "sub/b", ".checkpoint/manifest.json", ".checkpoint-complete", "back\\slash"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(b"x")
    (root / "link").symlink_to("a")
    (root / os.fsdecode(b"\xff")).write_bytes(b"x")
    with LocalDirectory(root) as local:
        assert local.files() == {
            "a": Stamp.of((root / "a").stat()),
            "sub/b": Stamp.of((root / "sub/b").stat()),
        }


def test_documents_are_read_strictly_or_are_not_there(root: Path) -> None:
    manifest = manifest_of({"a": b"1"})
    with LocalDirectory(root) as local:
        assert local.read_marker() is None
        assert local.read_manifest() is None
        assert local.begun_manifests() == []
        local.tree.make_directory(".checkpoint")
        local.tree.write_document(".checkpoint/manifest.json", manifest.encode())
        assert local.read_manifest() == manifest
        local.tree.write_document(".checkpoint/manifest.json", b"{}")
        local.tree.write_document(".checkpoint/ready.json", b"{}")
        for read in (local.read_manifest, local.read_marker):
            with pytest.raises(MalformedInput):
                read()


# --- partial files ---


def test_a_partial_file_has_its_size_at_once_and_holes_to_fill(tree: Tree, root: Path) -> None:
    partial = PartialFile(tree, "p/q/file", 1 << 20)
    with memoryview(b"hello") as view:
        partial.write(1 << 19, view)
    partial.close()
    partial.close()
    assert (root / "p/q/file").stat().st_size == 1 << 20
    with tree.open_member("p/q/file") as member:
        member.settle()
        assert all(0 <= start < end <= 1 << 20 for start, end in member.data_extents())
        assert any(start <= 1 << 19 < end for start, end in member.data_extents())
    again = PartialFile(tree, "p/q/file", 1 << 20)
    stamp = again.finish()
    assert stamp == Stamp.of((root / "p/q/file").stat())
    assert (root / "p/q/file").read_bytes()[1 << 19 : (1 << 19) + 6] == b"hello\0"


def test_a_closed_partial_file_takes_no_more_bytes(tree: Tree) -> None:
    partial = PartialFile(tree, "file", 5)
    partial.close()
    with memoryview(b"late") as view, pytest.raises(Cancelled):
        partial.write(0, view)
    with pytest.raises(Cancelled):
        partial.finish()


@pytest.mark.parametrize("obstacle", ["longer", "linked", "directory", "fifo"])
def test_what_cannot_be_gone_on_from_is_made_anew(
    tree: Tree, root: Path, tmp_path: Path, obstacle: str
) -> None:
    other = tmp_path / "other"
    other.write_bytes(b"precious")
    path = root / "file"
    if obstacle == "longer":
        path.write_bytes(bytes(9))
    elif obstacle == "linked":
        os.link(other, path)
    elif obstacle == "directory":
        (path / "sub").mkdir(parents=True)
    else:
        os.mkfifo(path)
    partial = PartialFile(tree, "file", 8)
    with memoryview(b"12345678") as view:
        partial.write(0, view)
    partial.finish()
    assert path.read_bytes() == b"12345678"
    assert other.read_bytes() == b"precious"


class _Libc:
    """A C library whose fallocate fails."""

    def __init__(self, number: int) -> None:
        self._number = number

    def fallocate(self, *arguments: object) -> int:
        ctypes.set_errno(self._number)
        return -1


def test_preallocation_falls_back_to_the_length_alone(
    tree: Tree, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The C library's own fallback would write into every block of a large file."""
    monkeypatch.setattr(fs_module, "_LIBC", _Libc(errno.EOPNOTSUPP))
    partial = PartialFile(tree, "file", 1 << 20)
    partial.reserve(Cancellation())
    partial.close()
    assert (root / "file").stat().st_size == 1 << 20
    assert (root / "file").stat().st_blocks == 0


def test_preallocation_reports_a_full_disk(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fs_module, "_LIBC", _Libc(errno.ENOSPC))
    partial = PartialFile(tree, "file", 12345)
    with pytest.raises(NoSpace):
        partial.reserve(Cancellation())
    partial.close()


class _Pieces(Fs):
    """Tells what is reserved, and reserves nothing; `then` is called after each piece."""

    def __init__(self, then: Callable[[int, int], bool]) -> None:
        self.reserved: list[tuple[int, int]] = []
        self._then = then

    def allocate(self, fd: int, offset: int, length: int) -> bool:
        self.reserved.append((offset, length))
        return self._then(offset, length)


@pytest.mark.parametrize("size", [1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE + 12345])
def test_all_of_a_file_is_reserved_in_pieces(root: Path, size: int) -> None:
    fs = _Pieces(lambda offset, length: True)
    with (
        closing(Tree.open(root, fs=fs)) as tree,
        closing(PartialFile(tree, "file", size)) as partial,
    ):
        partial.reserve(Cancellation())
    ends = [offset + length for offset, length in fs.reserved]
    assert [0, *ends[:-1]] == [offset for offset, _ in fs.reserved]
    assert ends[-1] == size
    assert all(0 < length <= PIECE for _, length in fs.reserved)
    assert (root / "file").stat().st_size == size


def test_between_the_pieces_others_write_and_a_closed_file_gets_no_more(root: Path) -> None:
    def then_write_and_close() -> None:
        partial.write(2 * PIECE, memoryview(b"late"))
        partial.close()

    other = threading.Thread(target=then_write_and_close)

    def meanwhile(offset: int, length: int) -> bool:
        if offset == 0:
            other.start()
        return True

    fs = _Pieces(meanwhile)
    with closing(Tree.open(root, fs=fs)) as tree:
        partial = PartialFile(tree, "file", 10_000 * PIECE)
        with pytest.raises(Cancelled):
            partial.reserve(Cancellation())
        other.join()
    assert len(fs.reserved) < 10_000
    with (root / "file").open("rb") as file:
        file.seek(2 * PIECE)
        assert file.read(4) == b"late"


def test_nothing_more_is_reserved_when_the_work_was_called_off(root: Path) -> None:
    cancelled = Cancellation()

    def stop(offset: int, length: int) -> bool:
        cancelled.set()
        return True

    fs = _Pieces(stop)
    with (
        closing(Tree.open(root, fs=fs)) as tree,
        closing(PartialFile(tree, "f", 9 * PIECE)) as file,
        pytest.raises(Cancelled),
    ):
        file.reserve(cancelled)
    assert len(fs.reserved) == 1


@pytest.mark.parametrize("change", ["gone", "other", "touched"])
def test_a_file_whose_bytes_are_counted_on_must_be_the_same(
    tree: Tree, root: Path, change: str
) -> None:
    (root / "file").write_bytes(bytes(5))
    expected = Stamp.of((root / "file").stat())
    if change == "gone":
        (root / "file").unlink()
    elif change == "other":
        (root / "new").write_bytes(bytes(5))
        (root / "new").rename(root / "file")
    else:
        os.utime(root / "file", ns=(1, 1))
    before = sorted(root.iterdir())
    with pytest.raises(Conflict) as caught:
        PartialFile(tree, "file", 5, expected=expected)
    assert caught.value.reference == "changed-locally"
    assert sorted(root.iterdir()) == before


def test_without_seek_hole_everything_counts_as_data(
    tree: Tree, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> int:
        raise OSError(errno.EINVAL, "not supported")

    (root / "file").write_bytes(bytes(100))
    with tree.open_member("file") as member:
        monkeypatch.setattr(os, "lseek", refuse)
        assert member.data_extents() == [(0, 100)]


# --- failures and locks ---


@pytest.mark.parametrize(
    ("code", "kind", "reference"),
    [
        (errno.ENOSPC, NoSpace, "no-space"),
        (errno.EDQUOT, NoSpace, "no-space"),
        (errno.EIO, StagingError, "local-io"),
        (errno.EMFILE, StagingError, "local-io"),
        (errno.EACCES, StagingError, "local-permission"),
        (errno.EROFS, StagingError, "local-permission"),
        (errno.ELOOP, Conflict, "symlink"),
    ],
)
def test_every_error_of_the_disk_is_typed_and_names_the_path(
    code: int, kind: type[StagingError], reference: str
) -> None:
    error = local_failure(OSError(code, "text"), "sub/file")
    assert (type(error), error.reference, error.side) == (kind, reference, "local")
    assert "'sub/file'" in error.message
    assert error.hint


def test_the_lock_is_exclusive_and_given_back(root: Path) -> None:
    with LocalDirectory(root) as first, LocalDirectory(root) as second:
        with first.locked():
            with pytest.raises(Conflict) as caught, second.locked():
                pytest.fail("both hold the lock")
            assert caught.value.reference == "locked"
            assert (root / ".checkpoint/lock").exists()
        with second.locked():
            pass


def test_a_lock_file_that_was_removed_meanwhile_is_not_the_lock(root: Path) -> None:
    class Races(Fs):
        raced = False

        def lock(self, fd: int) -> bool:
            if not self.raced:
                self.raced = True
                (root / ".checkpoint/lock").unlink()  # its holder was refused and cleaned up
            return super().lock(fd)

    with (
        LocalDirectory(root, fs=Races()) as local,
        local.locked(),
        LocalDirectory(root) as other,
        pytest.raises(Conflict),
        other.locked(),
    ):
        pytest.fail("both hold the lock")


def test_a_refusal_leaves_no_trace_but_what_was_there(root: Path) -> None:
    refusal = Conflict("no", reference="no")
    with LocalDirectory(root) as local:
        with pytest.raises(Conflict), local.locked():
            raise refusal
        assert list(root.iterdir()) == []
        local.tree.make_directory(".checkpoint/partial")
        with pytest.raises(Conflict), local.locked():
            raise refusal
        assert sorted(path.name for path in (root / ".checkpoint").iterdir()) == ["lock", "partial"]


def test_a_link_as_the_directory_is_refused(root: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(root)
    with pytest.raises(Conflict) as caught:
        LocalDirectory(tmp_path / "link")
    assert caught.value.reference == "symlink"


def test_how_deep_a_directory_goes_is_no_error(tree: Tree, root: Path) -> None:
    depth = 120  # more than may be called here
    tree.make_directory("top")
    with ExitStack() as opened:
        fd = os.open(root / "top", os.O_RDONLY)
        opened.callback(lambda: os.close(fd))
        for _ in range(depth):
            os.mkdir("x", dir_fd=fd)
            inner = os.open("x", os.O_RDONLY, dir_fd=fd)
            os.close(fd)
            fd = inner
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack(0)) + depth // 2)
    try:
        assert sum(1 for _ in tree.walk()) == depth + 1
        tree.remove_tree("top")
    finally:
        sys.setrecursionlimit(limit)
    assert list(root.iterdir()) == []


def test_a_walk_goes_in_order_of_names_with_parents_first(tree: Tree) -> None:
    for path in ("b/d", "a/z/y", "a/c"):
        tree.make_directory(path)
    assert [path for path, _ in tree.walk()] == ["a", "a/c", "a/z", "a/z/y", "b", "b/d"]
    assert [path for path, _ in tree.walk("a")] == ["a/c", "a/z", "a/z/y"]
