"""The tar reader: every block accounted for (I2), one reading (I3), safe names (I10), bounds (I11).

Each hostile archive of `tests.support.tars` is refused with its own reference; archives made by GNU tar
and by CPython in every dialect are read as their makers meant them.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import tarfile  # noqa: TID251 - the oracle: it writes archives for the reader to read
from pathlib import Path

import pytest
from blake3 import blake3

from staging.formats.tar import TarMember, TarReader, Wanted, read_index
from staging.vocabulary.digest import MAX_FILE_SIZE
from staging.vocabulary.errors import MalformedInput
from staging.vocabulary.read_at import BytesAt
from tests.support import tars
from tests.support.tars import END, GNU, POSIX, V7, header, long_name, member, padded, pax, record

GIB = 1024**3


def read(data: bytes) -> dict[str, bytes]:
    return {
        found.name: data[found.data_offset : found.data_end] for found in read_index(BytesAt(data))
    }


def read_as_stream(data: bytes) -> list[TarMember]:
    """As a driver of a pipe reads: strictly forward, the members' data passed by."""
    stream = io.BytesIO(data)
    reader = TarReader()
    members = []
    while (wanted := reader.wanted) is not None:
        skipped = stream.read(wanted.offset - stream.tell())
        if stream.tell() < wanted.offset:
            assert len(skipped) < wanted.offset
            raise reader.truncated(stream.tell())
        found = reader.feed(stream.read(wanted.length))
        if found is not None:
            members.append(found)
    assert stream.read() == b""
    return members


def refusal(data: bytes) -> MalformedInput:
    with pytest.raises(MalformedInput) as caught:
        read_index(BytesAt(data))
    return caught.value


class Synthetic:
    """Bytes at a few places of an input far larger than memory, zeros elsewhere, within a cap."""

    def __init__(self, size: int, pieces: dict[int, bytes]) -> None:
        self.size = size
        self._pieces = pieces
        self.bytes_read = 0

    def read_at(self, offset: int, length: int) -> bytes:
        assert offset + length <= self.size
        self.bytes_read += length
        data = bytearray(length)
        for start, piece in self._pieces.items():
            low, high = max(start, offset), min(start + len(piece), offset + length)
            if low < high:
                data[low - offset : high - offset] = piece[low - start : high - start]
        return bytes(data)


@pytest.mark.parametrize("name", tars.HOSTILE)
def test_hostile_archives_are_refused(name: str) -> None:
    attack = tars.HOSTILE[name]
    error = refusal(attack.data)
    assert error.reference == attack.reference, (error.message, attack.after)
    assert error.exit_code == 16
    assert error.side == "source"
    assert error.hint
    assert "\n" not in error.message
    assert len(error.message) < 700
    with pytest.raises(MalformedInput) as caught:
        read_as_stream(attack.data)
    assert caught.value.reference == attack.reference


@pytest.mark.parametrize(
    ("name", "carrier"),
    [
        (name, carrier)
        for name, raw in tars.UNSAFE_NAMES.items()
        for carrier in ("pax", "long-name", "header", "directory")
        if len(raw) < 100 or carrier in ("pax", "long-name")
    ],
)
def test_unsafe_names_are_refused_wherever_they_stand(name: str, carrier: str) -> None:
    raw = tars.UNSAFE_NAMES[name]
    if carrier == "pax":
        data = pax(record(b"path", raw)) + member(b"x")
    elif carrier == "long-name":
        data = tars.long_name(raw) + member(b"x", magic=GNU)
    elif carrier == "directory":
        data = header(raw + b"/", kind=b"5") + member(b"x")
    else:
        data = member(raw)
    error = refusal(data + END)
    assert error.reference in ("tar-name", "tar-pax")
    assert error.message.isprintable()


@pytest.mark.parametrize("name", tars.VALID)
def test_valid_archives_are_read_in_full(name: str) -> None:
    data = tars.VALID[name]()
    expected = tars.CONTENTS
    if name == "gnu":
        long = tars.LONG.decode()
        expected = {
            long: b"long",
            "m/a.safetensors": tars.CONTENTS["m/a.safetensors"],
            long + ".index": b"{}",
        }
    assert read(data) == expected
    assert read_as_stream(data) == read_index(BytesAt(data))


def test_offsets_name_the_first_header_and_the_data() -> None:
    data = pax(record(b"path", b"m/a")) + member(b"x", b"12345") + member(b"m/b") + END
    first, second = read_index(BytesAt(data))
    assert first == TarMember("m/a", 5, 0, 1536, stamp=first.stamp)
    assert second == TarMember("m/b", 0, 2048, 2560, stamp=second.stamp)


def test_a_stamp_is_of_the_headers_of_one_member() -> None:
    extended = pax(record(b"path", b"m/a"))
    data = extended + member(b"x", b"12345") + long_name(b"m/b") + member(b"m/b", magic=GNU) + END
    first, second = read_index(BytesAt(data))
    assert first.stamp == blake3(extended + header(b"x", 5)).hexdigest()[:16]
    named = long_name(b"m/b") + header(b"m/b", magic=GNU)
    assert second.stamp == blake3(named).hexdigest()[:16]


@pytest.mark.parametrize(
    ("change", "same"),
    [
        pytest.param({"data": b"other"}, True, id="data"),  # it proves nothing
        pytest.param({"mtime": b"00000000001\0"}, False, id="time"),
        pytest.param({"mode": b"0000600\0"}, False, id="mode"),
        pytest.param({"data": b"longer"}, False, id="size"),
    ],
)
def test_a_stamp_is_another_one_when_a_header_is(change: dict[str, bytes], same: bool) -> None:
    def stamps(fields: dict[str, bytes]) -> list[str]:
        data = member(b"m/a", **{"data": b"12345", **fields}) + member(b"m/b") + END
        return [found.stamp for found in read_index(BytesAt(data))]

    assert (stamps(change) == stamps({})) is same
    assert stamps(change)[1] == stamps({})[1]


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(header(b"./", kind=b"5") + member(b"./m/a"), id="gnu-tar-of-a-dot"),
        pytest.param(header(b".", kind=b"5") + member(b"m/a"), id="bare-dot"),
        pytest.param(header(b"m/", kind=b"5") * 2 + member(b"m/a"), id="directory-twice"),
        pytest.param(header(b"m", kind=b"5") + member(b"m/a"), id="directory-without-slash"),
        pytest.param(member(b"m/a", magic=V7), id="v7"),
        pytest.param(member(b"m/a", magic=V7, kind=b"\0"), id="v7-old-file-type"),
        pytest.param(member(b"m/a", magic=POSIX, kind=b"\0"), id="ustar-old-file-type"),
        pytest.param(member(b"m/a", mtime=b"\xff" * 12), id="time-before-1970"),
        pytest.param(member(b"m/a", mtime=bytes(12)), id="no-time"),
        pytest.param(member(b"m/a", mode=b"   644 \0"), id="mode-with-spaces"),
        pytest.param(
            pax(record(b"comment", b"0123abcd"), kind=b"g") + member(b"m/a"), id="git-archive"
        ),
        pytest.param(
            pax(record(b"comment", b"1"), kind=b"g") + pax(record(b"path", b"m/a")) + member(b"x"),
            id="comment-then-pax",
        ),
        pytest.param(
            pax(
                record(b"atime", b"1.5"),
                record(b"hdrcharset", b"ISO-IR 10646 2000 UTF-8"),
                record(b"SCHILY.xattr.com.apple.provenance", b"\1\0\0\n\xff"),
                record(b"LIBARCHIVE.xattr.user.x", b"eA"),
                record(b"SCHILY.fflags", b"uchg"),
            )
            + member(b"m/a"),
            id="records-without-meaning",
        ),
        pytest.param(header(b"m/a", b"           0") + b"", id="twelve-characters-no-terminator"),
    ],
)
def test_what_writers_write_is_accepted(data: bytes) -> None:
    assert read(data + END) == {"m/a": b""}


@pytest.mark.parametrize("zeros", [0, 512, 8192, 64 * 1024, 64 * 1024 - 512, 1024 * 1024])
def test_zeros_behind_the_end_are_accepted_up_to_the_bound(zeros: int) -> None:
    data = member(b"m/a") + END + bytes(zeros)
    assert list(read(data)) == ["m/a"]
    assert [found.name for found in read_as_stream(data)] == ["m/a"]
    assert refusal(data + bytes(1024 * 1024 + 512)).reference == "tar-trailing"


@pytest.mark.parametrize(
    ("size", "form"),
    [
        (size, form)
        for size in (8 * GIB - 1, 8 * GIB, 8 * GIB + 1, 64 * GIB, 1024 * GIB)
        for form in ("octal", "base-256", "pax", "pax-beside-base-256")
        if size < 64 * GIB or form != "octal"  # where twelve octal digits end
    ],
)
def test_large_sizes(size: int, form: str) -> None:
    if form == "octal":
        head = header(b"m/big", b"%012o" % size)
    elif form == "base-256":
        head = header(b"m/big", tars.base256(size, 12))
    else:
        field = tars.base256(size, 12) if "beside" in form else (size if size < 8 * GIB else 0)
        head = pax(record(b"size", str(size).encode())) + header(b"m/big", field)
    after = len(head) + size + -size % 512
    tail = member(b"m/next", b"next") + END
    source = Synthetic(after + len(tail), {0: head, after: tail})
    big, following = read_index(source)
    assert (big.name, big.size, big.data_offset) == ("m/big", size, len(head))
    assert (following.name, following.data_offset) == ("m/next", after + 512)
    assert source.bytes_read < 8192

    short = Synthetic(len(head) + size - 1, {0: head})
    with pytest.raises(MalformedInput, match="'m/big'") as caught:
        read_index(short)
    assert caught.value.reference == "tar-truncated"


def test_the_largest_size_is_what_a_manifest_can_name() -> None:
    head = header(b"m/big", tars.base256(MAX_FILE_SIZE, 12))
    reader = TarReader()
    found = reader.feed(head)
    assert found is not None
    assert found.size == MAX_FILE_SIZE
    assert reader.wanted == Wanted(512 + MAX_FILE_SIZE, 1 + 512)


def test_metadata_is_refused_before_it_is_wanted() -> None:
    reader = TarReader(max_metadata=1000)
    with pytest.raises(MalformedInput, match="1001"):
        reader.feed(header(b"x", 1001, kind=b"x"))
    reader = TarReader(max_metadata=1000)
    reader.feed(header(b"x", 1000, kind=b"x"))
    assert reader.wanted == Wanted(512, 1024)


def test_the_number_of_entries_is_bounded() -> None:
    reader = TarReader(max_entries=2)
    reader.feed(header(b"a"))
    reader.feed(header(b"d/", kind=b"5"))
    with pytest.raises(MalformedInput) as caught:
        reader.feed(header(b"b"))
    assert caught.value.reference == "tar-too-many"


def test_names_together_are_bounded() -> None:
    reader = TarReader()
    path = b"m/" + b"n" * 240 + b"/" + b"n" * 240 + b"/%06d"
    caught = None
    for number in range(20_000):
        try:
            for block in (tars.long_name(path % number), header(b"x", magic=GNU)):
                while block:
                    assert reader.wanted is not None
                    length = reader.wanted.length
                    reader.feed(block[:length])
                    block = block[length:]
        except MalformedInput as error:
            caught = error
            break
    assert caught is not None
    assert caught.reference == "tar-too-many"
    assert number > 8 * 1024**2 // 500


def test_a_reader_that_refused_refuses_for_good() -> None:
    reader = TarReader()
    with pytest.raises(MalformedInput) as first:
        reader.feed(header(b"m/a", kind=b"2"))
    with pytest.raises(MalformedInput) as again:
        _ = reader.wanted
    assert again.value is first.value
    with pytest.raises(MalformedInput):
        reader.feed(header(b"m/b"))


def test_feeding_more_than_was_wanted_is_a_programming_mistake() -> None:
    reader = TarReader()
    with pytest.raises(ValueError, match="513 bytes"):
        reader.feed(bytes(513))


def test_feeding_after_the_end_is_a_programming_mistake() -> None:
    reader = TarReader()
    for piece in (header(b"m/a"), bytes(512), bytes(512), b""):
        reader.feed(piece)
    assert reader.wanted is None
    with pytest.raises(ValueError, match="None was wanted"):
        reader.feed(b"")


def test_a_refusal_names_the_member_and_its_place() -> None:
    error = refusal(member(b"m/a") + header(b"m/link", kind=b"2") + END)
    assert "'m/link'" in error.message
    assert "byte 512" in error.message
    assert "symbolic link" in error.message
    long = tars.long_name(b"m/" + b"x" * 100_000) + member(b"m", magic=GNU) + END
    assert len(refusal(long).message) < 400


def test_a_bad_checksum_names_the_member_before() -> None:
    error = refusal(tars.HOSTILE["later-checksum"].data)
    assert "byte 1024" in error.message
    assert "after 'm/a'" in error.message


@pytest.mark.parametrize(
    ("start", "name", "hint"),
    [
        (b"\x1f\x8b\x08\0", "gzip", "gzip -dc FILE | staging upload -"),
        (b"\x28\xb5\x2f\xfd", "zstd", "zstd -dc FILE | staging upload -"),
        (b"\xfd7zXZ\0", "xz", "xz -dc FILE"),
        (b"BZh9", "bzip2", "bzip2 -dc FILE"),
        (b"PK\x03\x04", "zip", "again"),
        (b"\n<!DOCTYPE html><html>", "web page", "expired"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code>", "XML", "expired"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git-LFS", "again"),
        ((40).to_bytes(8, "little") + b'{"a"', "safetensors", "directory"),
    ],
)
@pytest.mark.parametrize("length", [100, 4096])
def test_what_is_no_tar_is_called_by_its_name(
    start: bytes, name: str, hint: str, length: int
) -> None:
    error = refusal(start.ljust(length, b"\x55"))
    assert error.reference == "not-a-tar"
    assert name in error.message
    assert error.hint is not None
    assert hint in error.hint


def test_tar_by_tar_is_not_taken_for_another_kind() -> None:
    assert list(read(member(b"BZh/a") + END)) == ["BZh/a"]


FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


@pytest.mark.parametrize("dialect", FORMATS)
def test_archives_made_by_cpython(dialect: str) -> None:
    files = {"m/config.json": b"{}", "m/tokenizer/a.txt": b"a" * 513, "m/nothing": b""}
    if dialect != "ustar":
        files |= {"m/" + "l" * 120 + ".bin": b"long", "m/caf\u00e9": b"utf-8"}
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w", format=FORMATS[dialect]) as archive:
        directory = tarfile.TarInfo("m")
        directory.type = tarfile.DIRTYPE
        archive.addfile(directory)
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            info.mtime = 1_700_000_000.25 if dialect == "pax" else 1_700_000_000
            info.uname = "b\u00fcro" if dialect == "pax" else "root"
            archive.addfile(info, io.BytesIO(data))
    assert read(output.getvalue()) == files


@pytest.mark.parametrize("dialect", ["v7", "ustar", "gnu", "oldgnu", "pax"])
@pytest.mark.parametrize("start", ["m", "./m", "."])
def test_archives_made_by_gnu_tar(tmp_path: Path, dialect: str, start: str) -> None:
    program = shutil.which("tar")
    assert program is not None, "this test needs GNU tar"
    version = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
    assert "GNU tar" in version.stdout
    files = {"m/config.yaml": b"a: 1\n", "m/model.safetensors": b"w" * 5000, "m/tokenizer/x": b""}
    if dialect not in ("v7", "ustar"):
        files["m/" + "n" * 200 + "/" + "o" * 150] = b"long"
    for name, data in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    made = subprocess.run(
        [program, "-c", f"--format={dialect}", "-C", str(tmp_path), start],
        capture_output=True,
        check=True,
    )
    assert read(made.stdout) == files
    assert read(made.stdout) == {
        found.name: made.stdout[found.data_offset : found.data_end]
        for found in read_as_stream(made.stdout)
    }


def test_a_sparse_file_packed_by_gnu_tar_is_refused(tmp_path: Path) -> None:
    program = shutil.which("tar")
    assert program is not None, "this test needs GNU tar"
    with (tmp_path / "holes").open("wb") as file:
        file.truncate(1 << 20)
    for dialect in ("gnu", "pax"):
        made = subprocess.run(
            [program, "-c", "--sparse", f"--format={dialect}", "-C", str(tmp_path), "holes"],
            capture_output=True,
            check=True,
        )
        assert refusal(made.stdout).reference == "tar-sparse"


def test_padding_counts_from_the_data_not_from_the_block() -> None:
    for size in (1, 511, 512, 513, 1024):
        data = header(b"m/a", size) + padded(b"x" * size) + member(b"m/b") + END
        assert list(read(data)) == ["m/a", "m/b"]
